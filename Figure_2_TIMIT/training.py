"""Training of a classifier of speech, the same for frames and for CTC: flags, loop, results.

A run's iterations are updates; after each epoch the network is validated, and the weights of the best validation error are
the ones that are tested at the end (the published LSNN took those of the best test error).
"""
import os

import experiment
import program
from absl import flags
import keras
import numpy as np
import tensorflow as tf

from batches import crop, epoch_batches, make_batch
import checkpoints
from classifier import Classifier, REVERSE
import data
from evaluation import Evaluator, report
from experiment import rng
import files
import replicas
import result_plots
import scores

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)

# Data
program.DEFINE_path('dataset', None, 'folder that timit_processing.py wrote; default: TIMIT, NLTK\'s sample or a synthetic '
                    'corpus in <result_dir>/timit_processed, the first that is there')
flags.DEFINE_enum('preproc', 'fbank', ['fbank', 'mfccs', 'htk'], 'features')
flags.DEFINE_bool('reduced_phns', False, 'train on 39 phones instead of 61')
flags.DEFINE_bool('blank_class', False, 'framewise: a further class, which no frame has, as in the published LSNN')
flags.DEFINE_string('comment', '', 'a note, kept in config.json')
flags.DEFINE_enum('batch_order', 'random', ['random', 'length'], 'utterances of a batch: drawn at random, or of similar length, '
                  'which takes less padding')
flags.DEFINE_enum('reverse', 'batch', REVERSE, 'where the backward direction begins: at the end of the padded batch, as '
                  'published, or of each utterance')
# Learning
flags.DEFINE_enum('eprop', None, ['symmetric', 'adaptive', 'random'], 'e-prop with this feedback; without: BPTT')
flags.DEFINE_enum('eprop_impl', 'adjoint', ['adjoint', 'hardcoded', 'autodiff'], 'how the gradient is computed; all give the '
                  'same numbers')
flags.DEFINE_float('readout_decay', 1e-2, 'decay of w_out and B per update, with adaptive feedback', 0.0, 1.0)
flags.DEFINE_integer('n_epochs', 80, 'epochs', lower_bound=1)
flags.DEFINE_integer('batch', 32, 'utterances per update', 1, 10 ** 5)
flags.DEFINE_integer('test_batch', 32, 'utterances per evaluation', 1, 10 ** 5)
flags.DEFINE_float('lr_init', 0.01, 'learning rate', lower_bound=0.0)
flags.DEFINE_float('lr_decay', 0.3, 'factor of the learning rate', 0.0)
flags.DEFINE_integer('lr_decay_every', -1, 'updates (CTC: epochs) between two decays; -1: never', lower_bound=-1)
flags.DEFINE_bool('adam', True, 'Adam, else momentum')
flags.DEFINE_float('adam_epsilon', 1e-5, 'epsilon of Adam', lower_bound=0.0)
flags.DEFINE_float('momentum', 0.9, 'momentum, or the first decay of Adam', 0.0, 1.0)
flags.DEFINE_float('l2', 1e-5, 'L2 regularisation: l2 times the sum of squares of all that is trained', lower_bound=0.0)
flags.DEFINE_float('gd_noise', 0.06 ** 2 * 10, 'standard deviation of noise on the gradient, from the update on that '
                   '--noise_step_start says', lower_bound=0.0)
flags.DEFINE_integer('noise_step_start', -1, 'number of updates after which the noise on the gradient begins; -1: never',
                     lower_bound=-1)
flags.DEFINE_float('drop_out_probability', -1.0, 'probability with which drop-out keeps an input of a layer or of the readout; '
                   '-1: no drop-out', -1.0, 1.0)
# Output
flags.DEFINE_integer('print_every', 100, 'updates between two printed lines')
flags.DEFINE_bool('plot', True, 'draw the figures')
program.DEFINE_path('checkpoint', None, 'evaluate the weights in this .npz (best_weights.npz or final_weights.npz of a run with '
                    'the same flags) instead of training')
program.DEFINE_path('load', None, 'weights to begin training with, an .npz as for --checkpoint')
# Published flags without effect
flags.DEFINE_string('cuda_device', None, 'no effect')
flags.DEFINE_string('clip', None, 'no effect')
flags.DEFINE_string('l1', None, 'no effect')
flags.DEFINE_string('n_delay', None, 'no effect')
flags.DEFINE_string('proportion_excitatory', None, 'no effect')
flags.DEFINE_string('rewiring_temperature', None, 'no effect')
flags.DEFINE_string('run_id', None, 'no effect')
flags.DEFINE_string('verbose', None, 'no effect')

COLUMNS = ('epoch', 'train_loss', 'train_error', 'gradient_norm', 'rate_hz', 'learning_rate', 'validation_loss', 'validation_error',
           'validation_blank_share')
FREE_FLAGS = ('n_epochs', 'print_every', 'plot', 'comment', 'dataset')  # a resumed run may have other values


def load_corpus():
  """The Corpus of --dataset, or the first one found under --result_dir.

  Raises:
    UserError: there is none; the message names the three ways to get one.
  """
  folders = [data.folder_of(FLAGS.result_dir, corpus, FLAGS.preproc) for corpus in data.CORPORA]
  found = [folder for folder in folders if os.path.isdir(folder)]
  corpus = data.load(FLAGS.dataset or (found or folders)[0])
  print(f'{corpus.metadata["label"]}: {", ".join(f"{len(s.ids)} {name}" for name, s in zip(data.SPLITS, corpus[:3]))} utterances '
        f'of {corpus.metadata["n_features"]} features', flush=True)
  return corpus


def common_settings():
  """The Settings that are the same flags in all scripts."""
  return dict(feedback=FLAGS.eprop or 'symmetric', readout_decay=FLAGS.readout_decay, l2=FLAGS.l2, reverse=FLAGS.reverse,
              keep=FLAGS.drop_out_probability if FLAGS.drop_out_probability > 0 else 1.0)


def build(network, settings, corpus):
  """The Classifier of a script, its weights drawn from --seed, and its number of phones."""
  n_phones = 39 if FLAGS.reduced_phns else 61
  n_classes = n_phones + (settings.loss == 'ctc' or FLAGS.blank_class)
  return Classifier(network, settings, corpus.metadata['n_features'], n_classes, rng('weights'), FLAGS.dtype), n_phones


def make_optimizer(kind, variables):
  """The optimizer 'adam', 'sgd' (with momentum) or 'rmsprop', built for a list of variables."""
  dtype = np.dtype(FLAGS.dtype).type  # typed constants: Keras rounds Python's floats to float32
  if kind == 'adam':
    optimizer = keras.optimizers.Adam(FLAGS.lr_init, dtype(FLAGS.momentum), dtype(0.999), epsilon=FLAGS.adam_epsilon)
  elif kind == 'rmsprop':
    optimizer = keras.optimizers.RMSprop(FLAGS.lr_init, momentum=FLAGS.momentum, epsilon=FLAGS.adam_epsilon)
  else:
    optimizer = keras.optimizers.SGD(FLAGS.lr_init, momentum=FLAGS.momentum)
  optimizer.build(variables)
  return optimizer


class Schedule:
  """What depends on the number of the update, counted from 1.

  Args:
    per_epoch: updates of an epoch.
    ramp: updates in which the learning rate rises from 0 to its value; 0: it does not.
    decay_every: updates between two decays of the learning rate; -1: never.
    noise_start: first update with noise on the gradient, or None.
  """

  def __init__(self, per_epoch, ramp=0, decay_every=-1, noise_start=None):
    self.per_epoch, self.ramp, self.decay_every, self.noise_start = per_epoch, ramp, decay_every, noise_start

  def learning_rate(self, iteration):
    """Learning rate; in the ramp lr_init k / (ramp - 1) with k from 0."""
    n_decays = (iteration - 1) // self.decay_every if self.decay_every > 0 else 0
    rise = min(1, (iteration - 1) / (self.ramp - 1)) if self.ramp else 1
    return FLAGS.lr_init * FLAGS.lr_decay ** n_decays * rise

  def gradient_noise(self, iteration):
    """Standard deviation of the noise on the gradient."""
    return FLAGS.gd_noise if self.noise_start is not None and iteration >= self.noise_start else 0.0


def training_batches(split, per_epoch, n_phones, ctc, first, input_noise=0.0, window=-1):
  """Yields the Batch of each update from `first` on; the next one is made while the caller uses the last.

  Args:
    split: data.Split.
    per_epoch: updates of an epoch.
    n_phones, ctc: as for batches.make_batch.
    first: number of the first update, from 1.
    input_noise: standard deviation of noise on the features.
    window: frames to crop each batch to; -1: all.
  """
  batches = {}

  def make(iteration):
    epoch, k = divmod(iteration - 1, per_epoch)
    if epoch not in batches:
      batches.clear()
      batches[epoch] = epoch_batches(split.lengths, FLAGS.batch, rng('train', epoch), FLAGS.batch_order == 'length')
    batch = make_batch(split, batches[epoch][k], FLAGS.batch, n_phones, ctc, FLAGS.dtype)
    if window > 0:
      batch = crop(batch, window, rng('window', iteration))
    if input_noise:
      noise = input_noise * rng('input noise', iteration).standard_normal(batch.x.shape, dtype=batch.x.dtype)
      batch = batch._replace(x=batch.x + noise)
    return batch

  return experiment.prefetched(make, first)


class Best:
  """The weights of the best validation error so far, in variables of their own, which checkpoints hold too.

  Args:
    weights: dict of tf.Variables.
  """

  def __init__(self, weights):
    self.weights = weights
    self.kept = {f'best_{name}': tf.Variable(w.numpy()) for name, w in weights.items()}
    self.error, self.epoch = tf.Variable(np.inf, dtype=tf.float64), tf.Variable(0)
    self.variables = dict(self.kept, best_error=self.error, best_epoch=self.epoch)

  def offer(self, error, epoch):
    """Keeps the weights if their validation error is the lowest so far."""
    if error < self.error.numpy():
      self.error.assign(error)
      self.epoch.assign(epoch)
      for name, w in self.weights.items():
        self.kept[f'best_{name}'].assign(w.numpy())

  def restore(self):
    """Gives the network its best weights; returns them as a dict of arrays."""
    for name, w in self.weights.items():
      w.assign(self.kept[f'best_{name}'].numpy())
    return {name: w.numpy() for name, w in self.weights.items()}


def test_only(script, network, settings, corpus):
  """Evaluates the weights in --checkpoint."""
  classifier, n_phones = build(network, settings, corpus)
  checkpoints.restore(classifier.named_variables(), FLAGS.checkpoint)
  folder = os.path.join(FLAGS.result_dir, script, 'evaluation_' + os.path.basename(FLAGS.checkpoint).removesuffix('.npz'))
  os.makedirs(folder, exist_ok=True)
  lines, summary, signs = report(folder, Evaluator(classifier, n_phones, FLAGS.test_batch), corpus, FLAGS.plot)
  files.write_json(os.path.join(folder, 'summary.json'), dict(summary, signs_of_death=signs))
  print('\n'.join([*lines, *experiment.death_lines(signs), f'results:    {folder}']))


def train(script, network, settings, corpus, optimizer='adam', ramp=0, decay_in_epochs=False, noise_epoch_start=None,
          input_noise=0.0, weight_noise=0.0, window=-1):
  """Trains and tests; or, with --checkpoint, only tests.

  Args:
    script: its name.
    network: networks.Network.
    settings: classifier.Settings.
    corpus: data.Corpus.
    optimizer: as for `make_optimizer`.
    ramp: as for Schedule.
    decay_in_epochs: --lr_decay_every counts epochs, not updates.
    noise_epoch_start: epochs, and an epoch more, after which the noise on the gradient begins; None: --noise_step_start.
    input_noise, window: as for `training_batches`.
    weight_noise: as for Classifier.update.
  """
  if FLAGS.checkpoint:
    test_only(script, network, settings, corpus)
    return
  classifier, n_phones = build(network, settings, corpus)
  evaluate = Evaluator(classifier, n_phones, FLAGS.test_batch)
  optimizer = make_optimizer(optimizer, classifier.learning(classifier.variables))
  weights = classifier.named_variables()
  if FLAGS.load:
    checkpoints.restore(weights, FLAGS.load)
  best = Best(weights)
  state = {f'optimizer_{k}': v.value for k, v in enumerate(optimizer.variables)}
  run = experiment.Run(script, COLUMNS, dict(weights, **best.variables, **state), FREE_FLAGS, corpus.identity)

  per_epoch = -(-len(corpus.train.ids) // FLAGS.batch)
  noise_start = FLAGS.noise_step_start + 1 if FLAGS.noise_step_start >= 0 else None
  if noise_epoch_start is not None:
    noise_start = (noise_epoch_start + 1) * per_epoch + 1
  decay_every = FLAGS.lr_decay_every * (per_epoch if decay_in_epochs else 1)
  schedule = Schedule(per_epoch, ramp, decay_every, noise_start)
  update = replicas.function(lambda batch, seed, noise: classifier.update(optimizer, batch, seed, noise, weight_noise))
  stream = training_batches(corpus.train, per_epoch, n_phones, evaluate.ctc, run.iteration + 1, input_noise, window)
  for iteration in run.iterations(FLAGS.n_epochs * per_epoch, FLAGS.print_every if FLAGS.print_every > 0 else per_epoch):
    optimizer.learning_rate.assign(schedule.learning_rate(iteration))
    batch = next(stream)
    parts = replicas.each(FLAGS.batch, lambda part, batch=batch: batch.part(part, evaluate.ctc))
    result = update(parts, tf.constant([FLAGS.seed, iteration]), schedule.gradient_noise(iteration))
    rate, epoch = np.mean(np.concatenate(result.rates)), -(-iteration // per_epoch)
    run.guard(iteration, float(result.loss), rate if network.spiking else None)
    validation = {}
    if iteration % per_epoch == 0:
      validation, _ = evaluate(corpus.dev, scores.VALIDATION_BEAM_WIDTH)
      best.offer(validation['error'], epoch)
    run.log(iteration, epoch=epoch, train_loss=float(result.loss), train_error=None if evaluate.ctc else float(result.error),
            rate_hz=1000 * rate if network.spiking else None, learning_rate=schedule.learning_rate(iteration),
            gradient_norm=float(result.gradient_norm),
            **{f'validation_{name}': validation.get(name) for name in ('loss', 'error', 'blank_share')})
  stream.close()
  if replicas.leads():
    finish(run, evaluate, best, corpus)


def finish(run, evaluate, best, corpus):
  """Tests the best weights and writes what is left to write of an experiment.Run."""
  last = {name: w.numpy() for name, w in best.weights.items()}
  arrays = best.restore()
  files.check_finite(arrays, f'at the end of the run; {run.path("best_weights.npz")} is not written')
  files.write_npz(run.path('best_weights.npz'), arrays)
  lines, summary, signs = report(run.folder, evaluate, corpus, FLAGS.plot)
  if FLAGS.plot:
    result_plots.learning_curve(run.path('metrics.csv'), run.path('learning_curve.png'),
                                'phone error' if evaluate.ctc else 'frame error', corpus.metadata['label'])
  epoch = int(best.epoch.numpy())
  run.finish(last, dict(summary, best_epoch=epoch, best_validation_error=float(best.error.numpy())),
             [f'after {FLAGS.n_epochs} epochs; the best validation error came after epoch {epoch}', *lines], signs)

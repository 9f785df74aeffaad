"""Training and evaluation of a classifier of speech, the same for frames and for CTC: flags, batches, loop, results.

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

from classifier import Batch, Classifier
import data
from experiment import rng
import files
from phones import fold
import result_plots
import scores

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)

# Data
program.DEFINE_path('dataset', None, 'folder that timit_processing.py wrote; default: TIMIT, NLTK\'s sample or the synthetic '
                    'corpus in <result_dir>/timit_processed, the first that is there')
flags.DEFINE_enum('preproc', 'fbank', ['fbank', 'mfccs', 'htk'], 'features')
flags.DEFINE_bool('reduced_phns', False, 'train on 39 phones instead of 61')
flags.DEFINE_string('comment', '', 'a note, kept in config.json')
# Learning
flags.DEFINE_enum('eprop', None, ['symmetric', 'adaptive', 'random'], 'e-prop with this feedback; without: BPTT')
flags.DEFINE_enum('eprop_impl', 'adjoint', ['adjoint', 'hardcoded', 'autodiff'], 'how the gradient is computed; all give the '
                  'same numbers')
flags.DEFINE_float('readout_decay', 1e-2, 'decay of w_out and B per update, with adaptive feedback', 0.0, 1.0)
flags.DEFINE_integer('n_epochs', 80, 'epochs', lower_bound=1)
flags.DEFINE_integer('batch', 32, 'utterances per update', lower_bound=1)
flags.DEFINE_integer('test_batch', 32, 'utterances per evaluation', lower_bound=1)
flags.DEFINE_float('lr_init', 0.01, 'learning rate', lower_bound=0.0)
flags.DEFINE_float('lr_decay', 0.3, 'factor of the learning rate', 0.0)
flags.DEFINE_integer('lr_decay_every', -1, 'updates (CTC: epochs) between two decays; -1: never')
flags.DEFINE_bool('adam', True, 'Adam, else momentum')
flags.DEFINE_float('adam_epsilon', 1e-5, 'epsilon of Adam', lower_bound=0.0)
flags.DEFINE_float('momentum', 0.9, 'momentum without Adam', 0.0, 1.0)
flags.DEFINE_float('l2', 1e-5, 'L2 regularisation: l2 / 2 times the sum of squares of all that is trained', lower_bound=0.0)
flags.DEFINE_float('gd_noise', 0.0, 'standard deviation of noise on the gradient', lower_bound=0.0)
flags.DEFINE_float('input_noise', 0.0, 'standard deviation of noise on the features while training', lower_bound=0.0)
flags.DEFINE_float('w_noise', 0.0, 'standard deviation of noise on the weights while their gradient is computed',
                   lower_bound=0.0)
flags.DEFINE_integer('noise_step_start', -1, 'update at which the three noises begin; -1: at the first')
flags.DEFINE_integer('noise_epoch_start', 1, 'epoch, counted from 1, before which they do not begin')
flags.DEFINE_float('drop_out_probability', -1.0, 'probability with which drop-out keeps an output; -1: no drop-out')
flags.DEFINE_float('grad_clip', 0.0, 'largest norm of the gradient; 0: no limit', lower_bound=0.0)
# Output
flags.DEFINE_integer('print_every', 100, 'updates between two printed lines')
flags.DEFINE_bool('plot', True, 'draw the figures')
program.DEFINE_path('checkpoint', None, 'evaluate the weights in this .npz (best_weights.npz or final_weights.npz of a run with '
                    'the same flags) instead of training')
program.DEFINE_path('load', None, 'weights to begin training with, an .npz as for --checkpoint')

for _name in ('cuda_device', 'clip', 'l1', 'n_delay', 'proportion_excitatory', 'rewiring_temperature', 'run_id', 'verbose'):
  flags.DEFINE_string(_name, None, 'published flag without effect')

COLUMNS = ('epoch', 'train_loss', 'train_error', 'rate_hz', 'learning_rate', 'validation_loss', 'validation_error')
FREE_FLAGS = ('n_epochs', 'print_every', 'plot', 'comment', 'dataset')  # a resumed run may have other values
N_BUCKETS = 4


def load_corpus():
  """The Corpus of --dataset, or the first one found under --result_dir.

  Raises:
    UserError: there is none; the message names the three ways to get one.
  """
  folders = [data.folder_of(FLAGS.result_dir, corpus, FLAGS.preproc)
             for corpus in ('timit', 'nltk_sample', 'espeak', 'espeak_full')]
  found = [folder for folder in folders if os.path.isdir(folder)]
  corpus = data.load(FLAGS.dataset or (found or folders)[0])
  print(f'{corpus.metadata["label"]}: {", ".join(f"{len(s.ids)} {name}" for name, s in zip(data.SPLITS, corpus[:3]))} utterances '
        f'of {corpus.metadata["n_features"]} features', flush=True)
  return corpus


def bucket_bounds(corpus):
  """Lengths to which batches are padded: a few, so that few shapes are compiled."""
  lengths = np.concatenate([split.lengths for split in corpus[:3]])
  return np.unique(np.ceil(np.quantile(lengths, np.arange(1, N_BUCKETS + 1) / N_BUCKETS)).astype(int))


def epoch_batches(lengths, n_batch, generator):
  """Utterances of an epoch in batches of similar length: sorted by a noisy length, cut, and the batches shuffled.

  Args:
    lengths: int [U].
    n_batch: utterances per batch; one batch may have fewer.
    generator: numpy Generator.

  Returns:
    list of int arrays, indices of utterances.
  """
  order = np.argsort(lengths * np.exp(generator.uniform(-0.3, 0.3, len(lengths))))
  batches = np.split(order, np.arange(n_batch, len(order), n_batch))
  return [batches[k] for k in generator.permutation(len(batches))]


def make_batch(split, indices, n_batch, bounds, n_phones, ctc):
  """Pads utterances to a Batch.

  Args:
    split: data.Split.
    indices: which utterances, at most n_batch.
    n_batch: B; filled up with utterances of length 0.
    bounds: lengths to choose F from.
    n_phones: 61 or 39.
    ctc: targets are phone sequences instead of classes of frames.

  Returns:
    Batch of arrays.
  """
  lengths = np.zeros(n_batch, np.int32)
  lengths[:len(indices)] = split.lengths[indices]
  n_frames = bounds[np.searchsorted(bounds, lengths.max())]
  x = np.zeros((n_frames, n_batch, split.features[0].shape[1]), FLAGS.dtype)
  phones = split.phones[n_phones]
  targets = np.zeros((n_batch, max(map(len, phones.runs))) if ctc else (n_frames, n_batch), np.int32)
  target_lengths = np.zeros(n_batch, np.int32)
  for b, k in enumerate(indices):
    x[:lengths[b], b] = split.features[k]
    if ctc:
      target_lengths[b] = len(phones.runs[k])
      targets[b, :target_lengths[b]] = phones.runs[k]
    else:
      targets[:lengths[b], b] = phones.frames[k]
  return Batch(x, lengths, targets, target_lengths)


def learning_rate(iteration, per_epoch, ramp, decay_in_epochs):
  """Learning rate of an update, counted from 1."""
  steps = (iteration - 1) // per_epoch if decay_in_epochs else iteration - 1
  n_decays = steps // FLAGS.lr_decay_every if FLAGS.lr_decay_every > 0 else 0
  return FLAGS.lr_init * FLAGS.lr_decay ** n_decays * (min(1, iteration / ramp) if ramp else 1)


class Evaluator:
  """Runs a classifier over a split without learning.

  Args:
    classifier: Classifier.
    bounds: lengths to pad to.
    n_phones: 61 or 39, the classes it was trained on.
  """

  def __init__(self, classifier, bounds, n_phones):
    self.classifier, self.bounds, self.n_phones = classifier, bounds, n_phones
    self.ctc = classifier.settings.loss == 'ctc'
    self._evaluate = tf.function(classifier.evaluate)

  def __call__(self, split, beam_width=scores.BEAM_WIDTH):
    """Evaluates a data.Split; CTC decodes with this beam width.

    Returns:
      dict of numbers: loss, error (what models are chosen by: the published measure), and those of scores.py; dict of what
      the figures show: predicted (list of int [T] or of phone sequences), logits (list of [T, K]), rates [2 N] per layer.
    """
    order = np.argsort(split.lengths, kind='stable')
    losses, rates, logits = [], 0, [None] * len(order)
    for indices in np.split(order, np.arange(FLAGS.test_batch, len(order), FLAGS.test_batch)):
      batch = make_batch(split, indices, FLAGS.test_batch, self.bounds, self.n_phones, self.ctc)
      result = self._evaluate(batch)
      losses.append(float(result.loss) * len(indices))
      rates += np.concatenate(result.rates) * batch.lengths.sum() / split.lengths.sum()
      for b, k in enumerate(indices):
        logits[k] = result.logits[:split.lengths[k], b].numpy()
    phones = split.phones[self.n_phones]
    if self.ctc:
      predicted = scores.decode_all(logits, beam_width)
      numbers = scores.phone_errors(predicted, phones.runs, self.n_phones == 61)
      error = numbers['per_mean_over_utterances']
    else:
      predicted = [y.argmax(1) for y in logits]
      numbers = scores.frame_errors(predicted, phones.frames)
      error = numbers['frame_error']
      if self.n_phones == 61:
        folded = scores.frame_errors([fold(p) for p in predicted], split.phones[39].frames)
        numbers |= {f'{name}_39_phones': value for name, value in folded.items()}
    return dict(loss=sum(losses) / len(order), error=error, **numbers), dict(predicted=predicted, logits=logits, rates=rates)


def build(network, settings, corpus):
  """The Classifier of a script, its weights drawn from --seed."""
  n_phones = 39 if FLAGS.reduced_phns else 61
  n_classes = n_phones + (settings.loss == 'ctc')  # the blank
  return Classifier(network, settings, corpus.metadata['n_features'], n_classes, rng('weights'), FLAGS.dtype), n_phones


def common_settings():
  """The Settings that are the same flags in all scripts."""
  return dict(feedback=FLAGS.eprop or 'symmetric', readout_decay=FLAGS.readout_decay, l2=FLAGS.l2,
              keep=FLAGS.drop_out_probability if FLAGS.drop_out_probability > 0 else 1.0, grad_clip=FLAGS.grad_clip)


def train(script, network, settings, corpus, ramp=0, decay_in_epochs=False, published='not available'):
  """Trains and tests; or, with --checkpoint, only tests.

  Args:
    script: its name.
    network: networks.Network.
    settings: classifier.Settings.
    corpus: data.Corpus.
    ramp: updates in which the learning rate rises from 0 to its value.
    decay_in_epochs: --lr_decay_every counts epochs, not updates.
    published: the published number beside ours.
  """
  classifier, n_phones = build(network, settings, corpus)
  ctc = settings.loss == 'ctc'
  bounds = bucket_bounds(corpus)
  evaluate = Evaluator(classifier, bounds, n_phones)
  if FLAGS.checkpoint:
    experiment.restore(classifier.variables(), FLAGS.checkpoint)
    folder = os.path.join(FLAGS.result_dir, script, 'evaluation_' + os.path.basename(FLAGS.checkpoint).removesuffix('.npz'))
    os.makedirs(folder, exist_ok=True)
    lines, summary, signs = report(folder, classifier, evaluate, corpus, published)
    files.write_json(os.path.join(folder, 'summary.json'), dict(summary, signs_of_death=signs))
    print('\n'.join([*lines, *experiment.death_lines(signs), f'results:    {folder}']))
    return

  dtype = np.dtype(FLAGS.dtype).type
  if FLAGS.adam:  # typed constants: Keras rounds Python's floats to float32
    optimizer = keras.optimizers.Adam(FLAGS.lr_init, dtype(0.9), dtype(0.999), epsilon=FLAGS.adam_epsilon)
  else:
    optimizer = keras.optimizers.SGD(FLAGS.lr_init, momentum=FLAGS.momentum)
  optimizer.build(classifier.trainable())
  if FLAGS.load:
    experiment.restore(classifier.variables(), FLAGS.load)
  update = tf.function(lambda batch, seed, *noise: classifier.update(optimizer, batch, seed, *noise))

  weights = classifier.variables()
  best = {f'best_{name}': tf.Variable(w) for name, w in weights.items()}
  best_error = tf.Variable(np.inf, dtype=tf.float64)
  best_epoch = tf.Variable(0)
  state = {f'optimizer_{k}': v.value for k, v in enumerate(optimizer.variables)}
  run = experiment.Run(script, COLUMNS, dict(weights, **best, best_error=best_error, best_epoch=best_epoch, **state), FREE_FLAGS,
                       corpus.identity)

  train_split = corpus.train
  per_epoch = -(-len(train_split.ids) // FLAGS.batch)
  noise_start = max(FLAGS.noise_step_start, 1 + (FLAGS.noise_epoch_start - 1) * per_epoch)
  batches = {}

  def make(iteration):
    epoch, k = divmod(iteration - 1, per_epoch)
    if epoch not in batches:
      batches.clear()
      batches[epoch] = epoch_batches(train_split.lengths, FLAGS.batch, rng('train', epoch))
    batch = make_batch(train_split, batches[epoch][k], FLAGS.batch, bounds, n_phones, ctc)
    if FLAGS.input_noise and iteration >= noise_start:
      noise = FLAGS.input_noise * rng('input noise', iteration).standard_normal(batch.x.shape, dtype=batch.x.dtype)
      batch = batch._replace(x=batch.x + noise)
    return batch

  stream = experiment.prefetched(make, run.iteration + 1)
  for iteration in run.iterations(FLAGS.n_epochs * per_epoch, FLAGS.print_every if FLAGS.print_every > 0 else per_epoch):
    rate = learning_rate(iteration, per_epoch, ramp, decay_in_epochs)
    optimizer.learning_rate.assign(rate)
    noise = (FLAGS.gd_noise, FLAGS.w_noise) if iteration >= noise_start else (0.0, 0.0)
    result = update(next(stream), tf.constant([FLAGS.seed, iteration]), *noise)
    mean_rate = np.mean(np.concatenate(result.rates))
    run.guard(iteration, float(result.loss), mean_rate if network.spiking else None)
    validation = {}
    epoch, rest = divmod(iteration, per_epoch)
    if rest == 0:
      validation, _ = evaluate(corpus.dev, scores.VALIDATION_BEAM_WIDTH)
      if validation['error'] < best_error:
        best_error.assign(validation['error'])
        best_epoch.assign(epoch)
        for name, w in weights.items():
          best[f'best_{name}'].assign(w)
    run.log(iteration, epoch=(iteration - 1) // per_epoch + 1, train_loss=float(result.loss),
            train_error=None if ctc else float(result.error), rate_hz=1000 * mean_rate if network.spiking else None,
            learning_rate=rate,
            validation_loss=validation.get('loss'), validation_error=validation.get('error'))
  stream.close()

  last = {name: w.numpy() for name, w in weights.items()}
  for name, w in weights.items():
    w.assign(best[f'best_{name}'])
  arrays = {name: w.numpy() for name, w in weights.items()}
  files.check_finite(arrays, f'at the end of the run; {run.path("best_weights.npz")} is not written')
  files.write_npz(run.path('best_weights.npz'), arrays)
  lines, summary, signs = report(run.folder, classifier, evaluate, corpus, published)
  if FLAGS.plot:
    result_plots.learning_curve(run.path('metrics.csv'), run.path('learning_curve.png'),
                                'phone error' if ctc else 'frame error', corpus.metadata['label'])
  run.finish(last, dict(summary, best_epoch=int(best_epoch), best_validation_error=float(best_error)),
             [f'after {FLAGS.n_epochs} epochs; the best validation error came after epoch {int(best_epoch)}', *lines], signs)


def report(folder, classifier, evaluate, corpus, published):
  """Tests the weights as they are; writes figures and figure.npz.

  Returns:
    Lines to print; numbers for summary.json; signs of death.
  """
  summary = {}
  for name, split in (('validation', corpus.dev), ('test', corpus.test)):
    numbers, shown = evaluate(split)
    summary |= {f'{name}_{key}': value for key, value in numbers.items()}
  spiking = classifier.network.spiking
  summary |= dict(corpus=corpus.metadata['label'], synthetic=corpus.metadata['synthetic'],
                  rate_hz=1000 * float(np.mean(shown['rates'])) if spiking else None)
  ctc, n_phones = evaluate.ctc, evaluate.n_phones
  if ctc:
    lines = [f'test phone error: {100 * summary["test_per"]:.1f} % of all phones, '
             f'{100 * summary["test_per_mean_over_utterances"]:.1f} % as the published mean over utterances (39 phones)']
  else:
    lines = [f'test frame error: {100 * summary["test_frame_error"]:.1f} % in {n_phones} classes (mean over utterances)']
    if n_phones == 61:
      lines[0] += f', {100 * summary["test_frame_error_39_phones"]:.1f} % in 39'
  lines += [f'corpus:     {corpus.metadata["label"]}', f'published:  {published}']
  if FLAGS.plot:
    arrays = record(classifier, evaluate, corpus, shown)
    files.write_npz(os.path.join(folder, 'figure.npz'), arrays, compressed=True)
    result_plots.utterance(arrays, os.path.join(folder, 'utterance.png'), FLAGS.show)
    if not ctc:
      to_39 = fold if n_phones == 61 else np.asarray
      table = scores.confusion([to_39(p) for p in shown['predicted']], corpus.test.phones[39].frames, 39)
      result_plots.confusion(table, corpus.metadata['classes39'], os.path.join(folder, 'confusion.png'),
                             lines[0] + '\n' + corpus.metadata['label'])
    if spiking:
      result_plots.rates(1000 * shown['rates'], os.path.join(folder, 'rates.png'), corpus.metadata['label'])
    lines.append(f'figures:    {os.path.join(folder, "utterance.png")}')
  return lines, summary, experiment.signs_of_death(np.mean(shown['rates']) if spiking else None, shown['logits'])


def record(classifier, evaluate, corpus, shown, k=0):
  """Utterance k of the test split as the figure shows it; a dict of arrays."""
  split, n_phones = corpus.test, evaluate.n_phones
  length, logits = split.lengths[k], shown['logits'][k]
  batch = make_batch(split, [k], 1, evaluate.bounds, n_phones, evaluate.ctc)
  layer = classifier.network.layers[0]
  outputs = classifier.network.forward(batch.x, batch.lengths, classifier.layers, every_step=True)[1][0][:, 0, :layer.units]
  posterior = np.exp(logits - logits.max(1, keepdims=True))
  posterior /= posterior.sum(1, keepdims=True)
  classes = list(corpus.metadata[f'classes{n_phones}']) + ['blank'] * evaluate.ctc
  true = split.phones[n_phones]
  if evaluate.ctc:  # decoded phones have no times: they stand where the blank gives way, in their order
    predicted = scores.merge(shown['predicted'][k])
    starts = spike_times(posterior, len(predicted))
  else:
    predicted, starts = data.runs_of(shown['predicted'][k])
  n_regular = int(np.sum(np.broadcast_to(layer.cell.beta, layer.units) == 0)) if classifier.network.spiking else 0
  return dict(features=split.features[k][:, :41], outputs=outputs[:length * classifier.network.n_repeat].numpy(),
              spiking=classifier.network.spiking, n_regular=n_regular, posterior=posterior, predicted=predicted,
              predicted_starts=starts, true=true.runs[k], true_starts=true.run_starts[k], classes=np.array(classes),
              title=f'{split.ids[k]}: {corpus.metadata["label"]}')


def spike_times(posterior, n):
  """Frames of the n strongest rises of the probability that a frame is not blank, in order: where CTC sees phones."""
  not_blank = 1 - posterior[:, -1]
  rise = np.diff(not_blank, prepend=0)
  return np.sort(np.argsort(-rise, kind='stable')[:n])

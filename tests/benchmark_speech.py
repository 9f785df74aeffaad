"""Figure 2: speed and memory of training. See benchmark.py."""
import subprocess
import sys
import tempfile

from benchmarking import SPEECH_FOLDER, first_update, in_child, time_in_turn, timed

# Deciles of the lengths in frames of 128 utterances of TIMIT (NLTK's sample without its SA sentences).
TIMIT_LENGTHS = (142, 205, 233, 255, 270, 285, 307, 329, 382, 431, 551)


def make_speech_iteration(network, rule, impl, n_frames=551, n_batch=32):
  """A function that updates a network of figure 2 on n_batch utterances of n_frames of 123 features; framewise, 61 classes."""
  sys.path.append(str(SPEECH_FOLDER))
  import experiment
  import machine
  import keras
  import numpy as np
  import tensorflow as tf
  from classifier import Batch, Classifier, Settings
  from lsnn import exp_decay
  from networks import LSNNLayer, LSTMLayer, Network
  import replicas
  if network == 'lsnn':
    import neurons
  machine.keep_memory()  # as in the scripts
  experiment.FLAGS(['benchmark', '--device=CPU:0'])
  rng = np.random.default_rng(0)
  bptt = rule == 'bptt'
  layer = LSNNLayer(neurons.make(300, 100, 0), 5, bptt, impl) if network == 'lsnn' else LSTMLayer(200, bptt, impl)
  settings = Settings(kappa=float(exp_decay(3.0)), rate_cost=50.0) if network == 'lsnn' else Settings()
  classifier = Classifier(Network([layer]), settings, 123, 61, rng)
  optimizer = keras.optimizers.Adam(0.01, epsilon=1e-5)
  optimizer.build(classifier.learning(classifier.variables))
  batch = Batch(tf.constant(rng.standard_normal((n_frames, n_batch, 123)), tf.float32), tf.fill([n_batch], n_frames),
                tf.constant(rng.integers(0, 61, (n_frames, n_batch)), tf.int32), tf.zeros([n_batch], tf.int32))
  update = replicas.function(lambda batch: classifier.update(optimizer, batch).loss)
  parts = replicas.each(n_batch, lambda part: batch.part(part, ctc=False))
  return lambda: float(update(parts))


def speech():
  """Figure 2: one training iteration of the framewise networks, each rule beside the autodiff computation of e-prop."""
  results = {}
  for network in ('lsnn', 'lstm'):
    variants = {'adjoint': ('eprop', 'adjoint'), 'bptt': ('bptt', 'adjoint'), 'autodiff': ('eprop', 'autodiff')}
    run = lambda *names: in_child(timed, __name__, 'make_speech_iteration', {name: (network, *variants[name]) for name in names})
    seconds = run(*variants)['seconds']
    results[network] = dict(
        seconds=seconds, autodiff_over_adjoint=seconds['autodiff'] / seconds['adjoint'],
        bptt_over_adjoint=seconds['bptt'] / seconds['adjoint'],
        peak_mb={name: run(name)['peak_memory_mb'] for name in ('adjoint', 'bptt')})
  return results


def speech_start():
  """Figure 2: start of each script, published sizes, to the end of the first update, on a small synthetic corpus."""
  script = lambda name: [sys.executable, '-u', str(SPEECH_FOLDER / f'{name}.py')]
  seconds = {}
  with tempfile.TemporaryDirectory() as folder:
    subprocess.run([*script('timit_processing'), f'--result_dir={folder}', '--n_train=64', '--n_dev=8', '--n_test=8'],
                   check=True, capture_output=True)
    for name, flags in (('framewise_lsnn', []), ('framewise_lstm', []), ('ctc_in_tensorflow', ['--model=lstm']),
                        ('ctc_in_tensorflow', ['--model=lsnn'])):
      for rule, of_rule in (('eprop', ['--eprop=symmetric']), ('bptt', [])):
        command = [*script(f'solve_timit_with_{name}'), f'--dataset={folder}/timit_processed/espeak_fbank', *flags, *of_rule]
        seconds[' '.join([name, *flags, rule])] = first_update(command)
  return dict(seconds_to_first_update=seconds)


def epoch_updates(order, n_utterances=3696, n_batch=32):
  """Lengths to which an epoch of TIMIT's size is padded, and how many of its updates have each: dict, frames: updates.

  Args:
    order: 'random' or 'length', as --batch_order; 'four lengths': sorted, and padded to one of four lengths, as until this was
      changed to multiples of 64 frames.
    n_utterances: of an epoch.
    n_batch: of an update.
  """
  sys.path.append(str(SPEECH_FOLDER))
  import numpy as np
  from batches import epoch_batches, padded
  lengths = np.interp(np.linspace(0, 10, n_utterances), range(11), TIMIT_LENGTHS).round().astype(int)
  batches = epoch_batches(lengths, n_batch, np.random.default_rng(0), by_length=order != 'random')
  longest = np.array([lengths[batch].max() for batch in batches])
  if order == 'four lengths':
    four = np.ceil(np.quantile(lengths, [0.25, 0.5, 0.75, 1])).astype(int)
    longest = four[np.searchsorted(four, longest)]
  else:
    longest = np.array([padded(n) for n in longest])
  frames, updates = np.unique(longest, return_counts=True)
  return dict(zip(frames.tolist(), updates.tolist()))


def child_epoch(network, rule):
  """Median seconds of an update at each padded length, and their sum over an epoch, by the order of its batches."""
  orders = ('random', 'length') + ('four lengths',) * (rule == 'eprop')
  updates = {order: epoch_updates(order) for order in orders}
  lengths = sorted({n for of_order in updates.values() for n in of_order})
  seconds = time_in_turn({n: make_speech_iteration(network, rule, 'adjoint', n) for n in lengths}, 3)
  return dict(seconds_per_update=seconds, epoch_seconds={
      order: sum(number * seconds[n] for n, number in of_order.items()) for order, of_order in updates.items()})


def epoch():
  """Figure 2: an epoch of TIMIT's size, from measured updates at the lengths to which its batches are padded."""
  return {f'{network}_{rule}': in_child(child_epoch, network, rule)
          for network in ('lsnn', 'lstm') for rule in ('eprop', 'bptt')}

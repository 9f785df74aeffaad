"""Speed and memory, as ratios between variants timed in turn in one run.

  python tests/benchmark.py              all, about 12 minutes on two cores; with --write, the numbers go to figures/benchmark.json
                                         of the Figure 3 folder, those of speech to that of the Figure 2 folder
  python tests/benchmark.py iteration pattern start memory scaling speech speech_start epoch      some of it

Not part of the test suite: another program on the same machine changes the times, and hardly the ratios.
"""
import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'Figure_3_and_S7_e-prop_tutorials'
SPEECH_FOLDER = ROOT / 'Figure_2_TIMIT'
sys.path.insert(0, str(FOLDER))
EVIDENCE, PATTERN = (str(FOLDER / f'tutorial_{name}.py') for name in ('evidence_accumulation_with_alif', 'pattern_generation'))
PARTS = ('iteration', 'pattern', 'start', 'memory', 'scaling', 'speech', 'speech_start', 'epoch')
OF_SPEECH = ('speech', 'speech_start', 'epoch')
# Deciles of the lengths in frames of 128 utterances of TIMIT (NLTK's sample without its SA sentences).
TIMIT_LENGTHS = (142, 205, 233, 255, 270, 285, 307, 329, 382, 431, 551)


def make_iteration(rule, impl, n_batch=64, n_steps=None, n_rec=100):
  """A function that draws one batch of evidence accumulation, computes its gradient and updates the weights."""
  import experiment  # keeps memory between iterations, as in the scripts
  import keras
  import numpy as np
  import tensorflow as tf
  import eprop
  from lsnn import ALIF, exp_decay
  from tasks import EvidenceAccumulation
  experiment.FLAGS(['benchmark', '--device=CPU:0'])
  task = EvidenceAccumulation()
  if n_steps is not None:
    task = task._replace(delay=n_steps - 1200.0)
  alpha, rho = exp_decay(20), exp_decay(2000)
  cell = ALIF(n_rec, beta=np.repeat([0, 1.7 * (1 - rho) / (1 - alpha)], n_rec // 2), n_refractory=5)
  rng = np.random.default_rng(0)
  draw = lambda n_pre, n_post: tf.Variable(rng.standard_normal((n_pre, n_post)) / np.sqrt(n_pre), dtype=tf.float32)
  weights = eprop.Weights(draw(task.n_in, n_rec), draw(n_rec, n_rec), draw(n_rec, 2))
  learner = eprop.Learner(cell, eprop.Readout(np.float32(alpha)), eprop.RateCost(1.0, 0.01), rule == 'bptt', impl,
                          experiment.n_shards(n_batch))
  weight = tf.constant(task.loss_weight(task.n_steps, n_batch), tf.float32)
  optimizer = keras.optimizers.Adam(0.005, epsilon=1e-8)
  optimizer.build(weights)

  @tf.function
  def update(x, target):
    result = learner(x, target, weight, weights, weights.w_out)
    eprop.apply_gradients(optimizer, result.gradients, weights)
    return result.task_loss

  def make_batch(k):
    x, labels, _ = task.batch(np.random.default_rng(k), n_batch)
    return x, np.eye(2, dtype=np.float32)[labels][None]

  batches = experiment.prefetched(make_batch, 0)
  return lambda: float(update(*next(batches)))


def time_in_turn(functions, n_rounds):
  """Median seconds of each function (a dict), called in turn so that all meet the same disturbances."""
  seconds = {name: [] for name in functions}
  for name, function in functions.items():
    function()  # compiles
  for _ in range(n_rounds):
    for name, function in functions.items():
      start = time.perf_counter()
      function()
      seconds[name].append(time.perf_counter() - start)
  return {name: statistics.median(values) for name, values in seconds.items()}


def iteration():
  """One training iteration of evidence accumulation at batch 64, data included."""
  functions = {'adjoint': make_iteration('eprop', 'adjoint'), 'bptt': make_iteration('bptt', 'adjoint'),
               'hardcoded': make_iteration('eprop', 'hardcoded'), 'autodiff': make_iteration('eprop', 'autodiff')}
  seconds = time_in_turn(functions, 7)
  return dict(seconds=seconds, autodiff_over_adjoint=seconds['autodiff'] / seconds['adjoint'],
              bptt_over_adjoint=seconds['bptt'] / seconds['adjoint'],
              hardcoded_over_adjoint=seconds['hardcoded'] / seconds['adjoint'])


def call(script, *flags):
  """Runs a tutorial in a process of its own; wall seconds from its start to its end and its summary."""
  with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    subprocess.run([sys.executable, script, f'--result_dir={folder}', '--run_name=a', *flags], check=True,
                   capture_output=True)
    seconds = time.perf_counter() - start
    summary = next(pathlib.Path(folder).rglob('summary.json'))
    return dict(seconds=seconds, **json.loads(summary.read_text()))


def pattern():
  """Pattern generation: 2000 iterations as a user calls it, from start to end, figure included."""
  run = call(PATTERN, '--print_every=500')
  return dict(process_seconds=run['seconds'], training_seconds=run['wall_time_s'], compile_included=True)


def first_update(command):
  """Seconds from the start of a script to the line it prints after its first update."""
  with tempfile.TemporaryDirectory() as folder:
    begin = time.perf_counter()
    process = subprocess.Popen([*command, '--print_every=1', '--run_name=a', f'--result_dir={folder}'], stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)
    seconds = next(time.perf_counter() - begin for line in process.stdout if line.startswith('iteration 1/'))
    process.kill()
    process.communicate()
  return seconds


def start():
  """Start of the process to the end of the first update, imports and compilation included."""
  command = [sys.executable, '-u', EVIDENCE, '--n_iter=2', '--do_plot=False']
  seconds = dict(eprop=first_update([*command, '--eprop']), bptt=first_update(command))
  return dict(seconds_to_first_update=seconds)


def memory():
  """Peak memory of the whole process, MB; the hardcoded traces at three lengths of a trial."""
  peak = {impl: call(EVIDENCE, '--eprop', f'--eprop_impl={impl}', '--n_iter=2', '--do_plot=False')['peak_memory_mb']
          for impl in ('adjoint', 'hardcoded', 'autodiff')}
  by_steps = {n_steps: child_scaling('hardcoded', 64, n_steps, 100)['peak_memory_mb'] for n_steps in (2250, 4500, 9000)}
  return dict(peak_mb=peak, hardcoded_mb_by_steps=by_steps)


def child_scaling(impl, n_batch, n_steps, n_rec):
  """Seconds per iteration and peak memory of one configuration, in a process of its own."""
  code = (f'import sys, json; sys.path.insert(0, {str(ROOT / "tests")!r}); import benchmark; '
          f'f = benchmark.make_iteration("eprop", {impl!r}, {n_batch}, {n_steps}, {n_rec}); '
          'seconds = benchmark.time_in_turn({"f": f}, 3)["f"]; '
          'import experiment; print(json.dumps(dict(seconds=seconds, peak_memory_mb=experiment.peak_memory_mb())))')
  done = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
  return json.loads(done.stdout.splitlines()[-1])


def scaling():
  """Seconds and memory as steps, neurons and batch double."""
  base = dict(n_batch=32, n_steps=2250, n_rec=100)
  rows = []
  for impl in ('adjoint', 'hardcoded'):
    for name in base:
      for factor in (1, 2, 4):
        size = dict(base, **{name: base[name] * factor})
        if factor == 1 and name != 'n_batch':
          rows.append(dict(next(r for r in rows if r['impl'] == impl and r['factor'] == 1), doubled=name))
        else:
          rows.append(dict(impl=impl, doubled=name, factor=factor, **size, **child_scaling(impl, **size)))
  return rows


def make_speech_iteration(network, rule, impl, n_frames=551):
  """A function that updates a network of figure 2 on 32 utterances of n_frames of 123 features; framewise, 61 classes."""
  sys.path.append(str(SPEECH_FOLDER))
  import experiment
  import keras
  import numpy as np
  import tensorflow as tf
  from classifier import Batch, Classifier, Settings
  from lsnn import exp_decay
  from networks import LSNNLayer, LSTMLayer, Network
  if network == 'lsnn':
    import neurons
  experiment.FLAGS(['benchmark', '--device=CPU:0'])
  rng = np.random.default_rng(0)
  bptt = rule == 'bptt'
  layer = LSNNLayer(neurons.make(300, 100, 0), 5, bptt, impl) if network == 'lsnn' else LSTMLayer(200, bptt, impl)
  settings = Settings(kappa=float(exp_decay(3.0)), rate_cost=50.0) if network == 'lsnn' else Settings()
  classifier = Classifier(Network([layer]), settings, 123, 61, rng)
  optimizer = keras.optimizers.Adam(0.01, epsilon=1e-5)
  optimizer.build(classifier.trainable())
  batch = Batch(tf.constant(rng.standard_normal((n_frames, 32, 123)), tf.float32), tf.fill([32], n_frames),
                tf.constant(rng.integers(0, 61, (n_frames, 32)), tf.int32), tf.zeros([32], tf.int32))
  update = tf.function(lambda: classifier.update(optimizer, batch).loss)
  return lambda: float(update())


def speech():
  """Figure 2: one training iteration of the framewise networks, each rule beside the autodiff computation of e-prop."""
  results = {}
  for network in ('lsnn', 'lstm'):
    variants = {'adjoint': ('eprop', 'adjoint'), 'bptt': ('bptt', 'adjoint'), 'autodiff': ('eprop', 'autodiff')}
    code = (f'import sys, json; sys.path.insert(0, {str(ROOT / "tests")!r}); import benchmark; '
            f'functions = {{name: benchmark.make_speech_iteration({network!r}, *v) for name, v in %r.items()}}; '
            'seconds = benchmark.time_in_turn(functions, 3); '
            'import experiment; print(json.dumps(dict(seconds=seconds, peak_memory_mb=experiment.peak_memory_mb())))')
    run = lambda chosen: json.loads(subprocess.run([sys.executable, '-c', code % (chosen,)], check=True, capture_output=True,
                                                   text=True).stdout.splitlines()[-1])
    seconds = run(variants)['seconds']
    results[network] = dict(
        seconds=seconds, autodiff_over_adjoint=seconds['autodiff'] / seconds['adjoint'],
        bptt_over_adjoint=seconds['bptt'] / seconds['adjoint'],
        peak_mb={name: run({name: variants[name]})['peak_memory_mb'] for name in ('adjoint', 'bptt')})
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


def epoch_updates(n_utterances=3696, n_batch=32):
  """Lengths to which an epoch of TIMIT's size is padded, and how many of its updates have each: dict, frames: updates."""
  sys.path.append(str(SPEECH_FOLDER))
  import types
  import numpy as np
  import training
  lengths = np.interp(np.linspace(0, 10, n_utterances), range(11), TIMIT_LENGTHS).round().astype(int)
  bounds = training.bucket_bounds([types.SimpleNamespace(lengths=lengths)])
  batches = training.epoch_batches(lengths, n_batch, np.random.default_rng(0))
  longest = np.array([lengths[batch].max() for batch in batches])
  frames, updates = np.unique(bounds[np.searchsorted(bounds, longest)], return_counts=True)
  return dict(zip(frames.tolist(), updates.tolist()))


def child_epoch(network, rule):
  """Median seconds of an update at each padded length, and their sum over an epoch."""
  updates = epoch_updates()
  seconds = time_in_turn({n: make_speech_iteration(network, rule, 'adjoint', n) for n in updates}, 3)
  return dict(seconds_per_update=seconds, epoch_seconds=sum(updates[n] * seconds[n] for n in updates))


def epoch():
  """Figure 2: an epoch of TIMIT's size, from measured updates at the lengths to which its batches are padded."""
  code = (f'import sys, json; sys.path.insert(0, {str(ROOT / "tests")!r}); import benchmark; '
          'print(json.dumps(benchmark.child_epoch(%r, %r)))')
  run = lambda *arguments: json.loads(subprocess.run([sys.executable, '-c', code % arguments], check=True, capture_output=True,
                                                     text=True).stdout.splitlines()[-1])
  return {f'{network}_{rule}': run(network, rule) for network in ('lsnn', 'lstm') for rule in ('eprop', 'bptt')}


def draw_scaling(rows, path):
  """Time and memory relative to the smallest size."""
  import matplotlib
  matplotlib.use('Agg')
  import matplotlib.pyplot as plt
  names = dict(n_steps='steps T', n_rec='neurons N', n_batch='batch B')
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout='constrained')
  for impl, style in (('adjoint', '-'), ('hardcoded', '--')):
    for name, colour in zip(names, ('tab:blue', 'tab:orange', 'tab:green')):
      chosen = [row for row in rows if row['impl'] == impl and row['doubled'] == name]
      factors = [row['factor'] for row in chosen]
      axes[0].plot(factors, [row['seconds'] for row in chosen], 'o' + style, color=colour, label=f'{impl}, {names[name]}')
      axes[1].plot(factors, [row['peak_memory_mb'] for row in chosen], 'o' + style, color=colour)
  axes[0].set(yscale='log', ylabel='one iteration (s)')
  axes[1].set(ylabel='peak memory of the process (MB)', ylim=(0, 1.1 * max(row['peak_memory_mb'] for row in rows)))
  for axis in axes:
    axis.set_xscale('log', base=2)
    axis.set_xticks([1, 2, 4], ['1', '2', '4'])
    axis.set_xlabel('times the base size (T 2250, N 100, B 32)')
    axis.spines[['top', 'right']].set_visible(False)
  axes[0].legend(frameon=False, fontsize=7)
  figure.savefig(path, dpi=130)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('parts', nargs='*', help=f'some of {", ".join(PARTS)}; default: all')
  parser.add_argument('--write', action='store_true', help='keep the numbers in figures/benchmark.json')
  arguments = parser.parse_args()
  if not set(arguments.parts) <= set(PARTS):
    parser.error(f'the parts are {", ".join(PARTS)}')
  results = dict(cores=len(os.sched_getaffinity(0)), load_at_start=os.getloadavg()[0], python=platform.python_version())
  for name in arguments.parts or PARTS:
    results[name] = globals()[name]()
    print(name, json.dumps(results[name], indent=2), flush=True)
  if arguments.write:
    machine = {name: results.pop(name) for name in ('cores', 'load_at_start', 'python')}
    of_speech = {name: results.pop(name) for name in OF_SPEECH if name in results}
    for folder, numbers in ((FOLDER, results), (SPEECH_FOLDER, of_speech)):
      if numbers:
        path = folder / 'figures' / 'benchmark.json'
        path.parent.mkdir(exist_ok=True)
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(dict(before, **machine, **numbers), indent=2) + '\n')
    if 'scaling' in results:
      draw_scaling(results['scaling'], FOLDER / 'figures' / 'benchmark_scaling.png')


if __name__ == '__main__':
  main()

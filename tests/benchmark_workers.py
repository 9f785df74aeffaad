"""Training by several workers: seconds of an iteration, and how many of them go into sums over the workers.

  python tests/benchmark_workers.py              1, 2 and 4 workers on this machine, a minute or two; --write keeps the numbers in
                                                 figures/benchmark_workers.json of the Figure 3 folder

Also the processor time of an update of figure 2 by its number of utterances: whether parts of a batch cost less in proportion.

Weak scaling: evidence accumulation with 32 trials per worker, and the same sums for as many numbers as the networks of figures
2 and 4 have weights. Workers beyond the number of cores share them. Another program on the same machine changes the times.
"""
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'Figure_3_and_S7_e-prop_tutorials'
NUMBERS = dict(figure_3=14200, figure_2=467661, figure_4=1119733)  # weights: what is summed in an update
WORKERS, TRIALS = (1, 2, 4), 32
N_TIMED = 10


def median_seconds(function):
  function()
  seconds = []
  for _ in range(N_TIMED):
    start = time.perf_counter()
    function()
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)


def work():
  """What each worker does; the leader writes what it measured to <result_dir>/measured.json."""
  sys.path.insert(0, str(FOLDER))
  import numpy as np
  import tensorflow as tf
  import tutorial_evidence_accumulation_with_alif as tutorial
  import experiment
  import replicas
  flags = tutorial.FLAGS

  def main():
    with experiment.devices():
      trainer = tutorial.make_trainer()
      batch = trainer.batch('train', 1)
      measured = dict(iteration=median_seconds(lambda: float(trainer.update(*batch).task_loss)))
      for name, n in NUMBERS.items():
        add = replicas.function(lambda x: tf.reduce_sum(replicas.all_sum(x)))
        x = tf.constant(np.ones(n, np.float32))
        measured[name] = median_seconds(lambda: float(add(x)))  # noqa: B023
      if replicas.leads():
        (pathlib.Path(flags.result_dir) / 'measured.json').write_text(json.dumps(measured))

  experiment.run_app(main)


def speech(n_batches=(4, 8, 16, 32), n_frames=256):
  """Processor seconds of figure 2's update of so many utterances, on one core; what else the machine does hardly counts."""
  sys.path.insert(0, str(ROOT / 'tests'))
  import benchmark_speech
  seconds = {}
  for n in n_batches:
    update = benchmark_speech.make_speech_iteration('lsnn', 'eprop', 'adjoint', n_frames, n)
    update()
    start = time.process_time()
    for _ in range(3):
      update()
    seconds[n] = (time.process_time() - start) / 3
  return seconds


def measure(n):
  """What n workers measured."""
  with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.executable, __file__, '--eprop', '--feedback=random', f'--n_batch={n * TRIALS}', f'--n_workers={n}',
                    f'--result_dir={folder}'], check=True)
    return json.loads((pathlib.Path(folder) / 'measured.json').read_text())


def main():
  results = dict(cores=os.cpu_count(), load_at_start=os.getloadavg()[0], trials_per_worker=TRIALS, numbers=NUMBERS,
                 seconds={n: measure(n) for n in WORKERS})
  results['speech_processor_seconds'] = speech()
  print('figure 2, processor seconds by utterances:', results['speech_processor_seconds'])
  one = results['seconds'][1]
  for n, seconds in results['seconds'].items():
    share = (seconds['figure_3'] - one['figure_3']) / seconds['iteration']
    print(f'{n} workers: {seconds["iteration"]:.3f} s an iteration of {n * TRIALS} trials, sums over the workers {100 * share:.1f} % '
          f'of it; a sum of figure 2\'s weights {1000 * seconds["figure_2"]:.1f} ms, of figure 4\'s {1000 * seconds["figure_4"]:.1f} ms')
  if '--write' in sys.argv:
    (FOLDER / 'figures' / 'benchmark_workers.json').write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
  if any(argument.startswith('--n_workers') for argument in sys.argv):
    work()
  else:
    main()

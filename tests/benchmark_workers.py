"""Training by several workers: how it scales, what sums over the workers cost, and what other ways to use the cores give.

  python tests/benchmark_workers.py                    all, 10 minutes on two idle cores; --write keeps the numbers in
                                                       figures/benchmark_workers.json of the Figure 3 folder
  python tests/benchmark_workers.py scaling            some of it: scaling, processes, utterances
  python tests/benchmark_workers.py --tiny             proves this script; its numbers say nothing

scaling: an update of evidence accumulation (figure 3) and of the framewise LSNN (figure 2) by 1, 2 and 4 workers with one core
each and the same part of the batch each (workers beyond the number of cores share them), and by one process with two cores.
processes: frames per second of figure 4's published values by two workers, and by the processes that the commit BEFORE had, in
turn. utterances: processor time of an update of figure 2 by their number: whether parts of a batch cost less in proportion.
"""
import argparse
import csv
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

from benchmarking import ATARI_FOLDER, FOLDER, ROOT, in_child

NUMBERS = dict(figure_3=14200, figure_2=467661, figure_4=1119733)  # weights: what is summed in an update
EACH = dict(figure_3=32, figure_2=16)  # trials or utterances of a worker
N_FRAMES = 256  # of an utterance
BEFORE = '61efb74'  # the last commit with processes.py
N_TIMED = 10


def median_seconds(function, n_timed):
  function()
  seconds = []
  for _ in range(n_timed):
    start = time.perf_counter()
    function()
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)


def figure_2(n_batch):
  """An update of figure 2's network by all workers together."""
  import benchmark_speech
  return benchmark_speech.make_speech_iteration('lsnn', 'eprop', 'adjoint', N_FRAMES, n_batch)


def figure_3(_):
  """The same of evidence accumulation, as its flags say."""
  import tutorial_evidence_accumulation_with_alif as tutorial
  trainer = tutorial.make_trainer()
  batch = trainer.batch('train', 1)
  return lambda: float(trainer.update(*batch).task_loss)


def work():
  """What each worker does; the leader writes what it measured to <result_dir>/measured.json."""
  sys.path.insert(0, str(FOLDER))
  make_iteration = figure_2 if '--figure=figure_2' in sys.argv else figure_3
  if make_iteration is figure_3:
    import tutorial_evidence_accumulation_with_alif  # noqa: F401, whose flags say what is computed
  import experiment
  from absl import flags
  import devices
  import numpy as np
  import replicas
  import tensorflow as tf
  FLAGS = flags.FLAGS
  flags.DEFINE_string('figure', None, 'what is measured')
  flags.DEFINE_integer('n_timed', N_TIMED, 'how often')
  if make_iteration is figure_2:
    flags.DEFINE_integer('n_batch', 32, 'utterances')

  def main():
    with devices.scope():
      measured = dict(iteration=median_seconds(make_iteration(FLAGS.n_batch), FLAGS.n_timed))
      for name, n in NUMBERS.items():
        x = np.ones(n, np.float32)
        add = replicas.function(lambda x: tf.reduce_sum(replicas.all_sum(x)))
        tensor = tf.constant(x)
        measured[name] = median_seconds((lambda x=x: replicas.total([x])) if name == 'figure_4' else
                                        (lambda add=add, tensor=tensor: float(add(tensor))), FLAGS.n_timed)
      if replicas.leads():
        (pathlib.Path(FLAGS.result_dir) / 'measured.json').write_text(json.dumps(measured))

  experiment.run_app(main)


def measure(figure, n_workers, n_cores, n_batch, n_timed):
  """A row: seconds of an iteration, and of sums over the workers of as many numbers as each figure's networks have weights."""
  cores = sorted(os.sched_getaffinity(0))[:n_cores]
  with tempfile.TemporaryDirectory() as folder:
    rule = ['--eprop', '--feedback=random'] if figure == 'figure_3' else []
    subprocess.run([sys.executable, __file__, f'--figure={figure}', *rule, f'--n_batch={n_batch}', f'--n_timed={n_timed}',
                    f'--n_workers={n_workers}', f'--result_dir={folder}'], check=True,
                   preexec_fn=lambda: os.sched_setaffinity(0, cores))
    measured = json.loads((pathlib.Path(folder) / 'measured.json').read_text())
  share = measured[figure] / measured['iteration'] if n_workers > 1 else 0.0
  return dict(n_workers=n_workers, n_cores=len(cores), n_batch=n_batch, seconds=measured.pop('iteration'), share_of_sums=share,
              seconds_of_sums=measured)


def scaling(tiny):
  """Weak scaling of figures 3 and 2, and one process on two cores in place of two workers, at the same batch."""
  results = {}
  numbers, n_timed = ((1, 2), 1) if tiny else ((1, 2, 4), N_TIMED)
  for figure, each in EACH.items():
    each = 2 if tiny else each
    rows = [measure(figure, n, min(n, 2), n * each, n_timed) for n in numbers]
    one_process = measure(figure, 1, 2, 2 * each, n_timed)
    results[figure] = dict(weak_scaling=rows, one_process_on_two_cores=one_process,
                           speed_of_two_workers_over_one_process=one_process['seconds'] / rows[1]['seconds'])
  return results


def frames_per_s(folder, flags):
  """frames_per_s of all iterations of figure 4's main.py but the first, which compiles."""
  with tempfile.TemporaryDirectory() as results:
    subprocess.run([sys.executable, str(folder / 'main.py'), '--nodo_plot', '--eval_episodes=1', '--eval_max_episode_len=1',
                    *flags, f'--result_dir={results}', '--run_name=a'], check=True, stdout=subprocess.DEVNULL)
    with open(pathlib.Path(results) / 'main' / 'a' / 'metrics.csv', newline='') as file:
      return [float(line['frames_per_s']) for line in csv.DictReader(file)][1:]


def processes(tiny):
  """Figure 4: two workers and, in turn, two processes as they were before."""
  n_iterations, n_rounds = (2, 1) if tiny else (4, 2)
  size = ['--parallel_episodes=2', '--max_episode_len=20', '--max_episode_len_jitter=0', '--unroll_length=10',
          f'--total_environment_frames={n_iterations * 2 * 20 * 4}'] if tiny else [
          f'--total_environment_frames={n_iterations * 32 * 225 * 4}']
  seen = dict(workers=[], processes=[])
  archive = subprocess.run(['git', '-C', str(ROOT), 'archive', BEFORE, ATARI_FOLDER.name], capture_output=True, check=True)
  with tempfile.TemporaryDirectory() as folder:
    tarfile.open(fileobj=io.BytesIO(archive.stdout)).extractall(folder, filter='data')
    old = pathlib.Path(folder) / ATARI_FOLDER.name
    for _ in range(n_rounds):
      seen['processes'] += frames_per_s(old, [*size, '--n_processes=2'])
      seen['workers'] += frames_per_s(ATARI_FOLDER, [*size, '--n_workers=2'])
  median = {name: statistics.median(values) for name, values in seen.items()}
  return dict(frames_per_s=seen, median=median, workers_over_processes=median['workers'] / median['processes'])


def processor_seconds(n_batches, n_frames, n_updates):
  """Processor seconds of figure 2's update of so many utterances; what else the machine does hardly counts."""
  import benchmark_speech
  seconds = {}
  for n in n_batches:
    update = benchmark_speech.make_speech_iteration('lsnn', 'eprop', 'adjoint', n_frames, n)
    update()
    start = time.process_time()
    for _ in range(n_updates):
      update()
    seconds[n] = (time.process_time() - start) / n_updates
  return seconds


def utterances(tiny):
  import benchmark_workers  # under its own name, which the child can import
  return in_child(benchmark_workers.processor_seconds, *([[2], 20, 1] if tiny else [[4, 8, 16, 32], N_FRAMES, 3]))


def main():
  parts = dict(scaling=scaling, processes=processes, utterances=utterances)
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('parts', nargs='*', help=f'some of {", ".join(parts)}; default: all')
  parser.add_argument('--write', action='store_true', help='keep the numbers in figures/benchmark_workers.json')
  parser.add_argument('--tiny', action='store_true', help='proves this script')
  arguments = parser.parse_args()
  if not set(arguments.parts) <= set(parts) or arguments.tiny and arguments.write:
    parser.error(f'the parts are {", ".join(parts)}; numbers of --tiny are not written')
  path = FOLDER / 'figures' / 'benchmark_workers.json'
  for name in arguments.parts or parts:
    start, load = time.monotonic(), os.getloadavg()[0]
    numbers = parts[name](arguments.tiny)
    result = dict(command=f'python tests/benchmark_workers.py {name} --write', cores=len(os.sched_getaffinity(0)),
                  load_at_start=load, minutes=round((time.monotonic() - start) / 60, 1), result=numbers)
    print(name, json.dumps(result, indent=2), flush=True)
    if arguments.write:
      before = {other: rows for other, rows in json.loads(path.read_text()).items() if other in parts}
      path.write_text(json.dumps({'numbers': NUMBERS, **before, name: result}, indent=2) + '\n')


if __name__ == '__main__':
  if any(argument.startswith('--n_workers') for argument in sys.argv):
    work()
  else:
    main()

"""Kills workers of a run by SIGKILL at random moments, looks at what is left, and goes on.

  python tests/kills.py                                     figure 3's pattern generation, ten times each: leader, other, both
  python tests/kills.py --figure=2 --times=2                a few for the other figures
  python tests/kills.py --launcher --times=3                the process that --n_workers=2 was given to is killed
  python tests/kills.py ... --write                         keeps the rows in tests/kills_of_workers.csv, instead of old ones

Two workers are told of each other by TF_CONFIG. What must be true after each kill: a worker that was left ends within a minute
with one sentence and exit code 1 or 2; every file that is there can be read; the run goes on with two workers to the same
metrics.csv as one that nobody killed, and with one worker to the same numbers to 1e-10 (float64). Exit code 1: it was not.
"""
import argparse
import csv
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

from compare_workers import make_corpus
from forks import Script

TESTS = pathlib.Path(__file__).resolve().parent
FIGURES = {  # script and flags
    2: ('Figure_2_TIMIT/solve_timit_with_framewise_lsnn.py', [
        '--noplot', '--smoke', '--n_epochs=4', '--batch=4', '--n_regular=8', '--n_adaptive=4', '--eprop=symmetric']),
    3: ('Figure_3_and_S7_e-prop_tutorials/tutorial_pattern_generation.py', [
        '--nodo_plot', '--n_iter=100', '--n_batch=2', '--seq_len=60', '--n_rec=10', '--n_in=5', '--print_every=1']),
    4: ('Figure_4_and_5_ATARI/main.py', [
        '--nodo_plot', '--level_name=catch', '--preset=laptop', '--parallel_episodes=4', '--total_environment_frames=1200',
        '--eval_episodes=1', '--eval_max_episode_len=10', '--n_rec=20', '--n_filters_1=2', '--n_filters_2=2'])}
CASES = dict(leader=(0,), other=(1,), both=(0, 1))
COLUMNS = ['figure', 'killed', 'number', 'after_s', 'iterations_done', 'exit_code', 'ended_after_s', 'said', 'files_whole',
           'same_number_identical', 'one_worker_largest_difference']


def free_ports(n):
  sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(n)]
  ports = [s.getsockname()[1] for s in sockets]
  for s in sockets:
    s.close()
  return ports


def tf_config(ports, index):
  """Environment of worker `index` of those at these ports."""
  return dict(TF_CONFIG=json.dumps(dict(cluster=dict(worker=[f'127.0.0.1:{port}' for port in ports]),
                                        task=dict(type='worker', index=index))))


def is_gone(pid):
  """Whether a process has ended, or is only waited for."""
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] == 'Z'
  except OSError:
    return True


def table(folder):
  """metrics.csv without the column of times: names and a list of rows of text; [] where there is none."""
  if not (folder / 'metrics.csv').exists():
    return []
  with open(folder / 'metrics.csv', newline='') as file:
    rows = list(csv.reader(file)) or [[]]
  kept = [k for k, name in enumerate(rows[0]) if name != 'frames_per_s']
  return [[row[k] for k in kept] for row in rows[1:]]


def difference(a, b):
  """Largest relative difference between two tables; infinite if they have not the same rows."""
  if len(a) != len(b) or [[bool(x) for x in row] for row in a] != [[bool(y) for y in row] for row in b]:
    return np.inf
  pairs = [(float(x), float(y)) for one, other in zip(a, b) for x, y in zip(one, other) if x]
  return max(abs(x - y) / max(1e-30, abs(x)) for x, y in pairs)


def whole(folder):
  """Whether every file of a killed run can be read; the last row of metrics.csv may be cut, which --resume drops."""
  try:
    for path in folder.rglob('*.npz'):
      if path.stem.endswith('.part'):  # half of a file that was to be moved to its place when whole
        continue
      with np.load(path) as file:
        for name in file:
          file[name]
    for path in folder.glob('*.json'):
      json.loads(path.read_text())
  except (OSError, ValueError, EOFError) as error:
    print(path, error, file=sys.stderr)
    return False
  return True


class Killer:
  """Runs of one figure's script that are killed.

  Args:
    figure: 2, 3 or 4.
    folder: of all results.
    flags: besides FIGURES[figure].
  """

  def __init__(self, figure, folder, flags):
    path, own = FIGURES[figure]
    self.script, self.folder = Script(TESTS.parent / path), folder / pathlib.Path(path).stem
    self.flags = [*own, *flags, '--dtype=float64', '--checkpoint_seconds=0', f'--result_dir={folder}']
    start = time.monotonic()
    assert all(ended.code == 0 for ended in self.end(self.start('whole'))), 'the run does not work when nobody kills'
    self.seconds = time.monotonic() - start
    self.rows = table(self.folder / 'whole')

  def start(self, name, *flags, n=2):
    """n workers of a run."""
    ports = free_ports(n)
    return [self.script.start(*self.flags, f'--run_name={name}', *flags, env=tf_config(ports, k) if n > 1 else {})
            for k in range(n)]

  def end(self, workers):
    return [self.script.end(worker) for worker in workers]

  def go_on(self, name, n):
    """Resumes a run, or begins it anew where the kill came before there was one; its rows of metrics.csv."""
    resume = ['--resume'] if (self.folder / name / 'config.json').exists() else []
    for ended in self.end(self.start(name, *resume, n=n)):
      if ended.code:
        print(ended, file=sys.stderr)
    return table(self.folder / name)

  def kill(self, case, name):
    """One row of the table; None if the run had ended before. A quarter of the kills come while it begins."""
    n_rows, delay = random.randrange(len(self.rows)), random.uniform(0, 0.2)
    if random.random() < 0.25:
      n_rows, delay = 0, random.uniform(0, self.seconds / 2)
    begun, workers = time.monotonic(), self.start(name)
    while n_rows and len(table(self.folder / name)) < n_rows and not all(is_gone(pid) for pid, *_ in workers):
      time.sleep(0.01)
    time.sleep(delay)
    moment = time.monotonic() - begun
    for k in CASES[case]:
      os.kill(workers[k][0], signal.SIGKILL)
    start = time.monotonic()
    left = [k for k in range(2) if k not in CASES[case]]
    ended = [self.script.end(workers[k]) for k in left]
    seconds = time.monotonic() - start
    killed = [self.script.end(workers[k]) for k in CASES[case]]
    if any(end.code == 0 for end in killed):
      return None
    folder = self.folder / name
    row = dict(killed=case, after_s=round(moment, 2), iterations_done=len(table(folder)), files_whole=whole(folder))
    for end in ended:
      row.update(exit_code=end.code, ended_after_s=round(seconds, 1), said=' '.join(end.errors)[:160])
    was_done = row['iterations_done'] == len(self.rows)  # the others had no more to do
    fine = seconds < 60 and all(end.code in (1, 2) and len(end.errors) == 1 and 'Traceback' not in end.stderr or
                                end.code == 0 and was_done for end in ended)
    if folder.exists():
      shutil.copytree(folder, self.folder / f'{name}_one')
    same = self.go_on(name, 2) == self.rows
    row.update(same_number_identical=same, one_worker_largest_difference=difference(self.rows, self.go_on(f'{name}_one', 1)))
    row['fine'] = fine and row['files_whole'] and same and row['one_worker_largest_difference'] < 1e-10
    return row

  def kill_launcher(self, name):
    """The same for the process that was given --n_workers=2."""
    command = [sys.executable, self.script.path, *self.flags, f'--run_name={name}', '--n_workers=2', '--n_iter=100000']
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launcher:
      while not list((self.folder / name / 'checkpoints').glob('*.npz')):
        time.sleep(0.1)
      moment = random.uniform(0, 3)
      time.sleep(moment)
      children = pathlib.Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children').read_text().split()
      launcher.kill()
    start = time.monotonic()
    alive = children
    while alive and time.monotonic() - start < 90:
      time.sleep(0.1)
      alive = [pid for pid in alive if not is_gone(pid)]
    seconds = time.monotonic() - start
    done = [int(path.stem) for path in (self.folder / name / 'checkpoints').glob('*.npz')]
    row = dict(killed='launcher', after_s=round(moment, 2), iterations_done=max(done), ended_after_s=round(seconds, 1),
               files_whole=whole(self.folder / name))
    return dict(row, fine=not alive and seconds < 60 and row['files_whole'])


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--figure', type=int, choices=list(FIGURES), default=3)
  parser.add_argument('--times', type=int, default=10)
  parser.add_argument('--launcher', action='store_true', help='of figure 3')
  parser.add_argument('--write', action='store_true')
  parser.add_argument('--seed', type=int, default=0)
  arguments = parser.parse_args()
  if arguments.launcher and arguments.figure != 3:
    parser.error('--launcher is for figure 3')
  random.seed(arguments.seed)
  cases = ['launcher'] if arguments.launcher else list(CASES)
  all_fine, rows, path = True, [], TESTS / 'kills_of_workers.csv'
  if path.exists():
    with open(path, newline='') as file:
      rows = [row for row in csv.DictReader(file) if row['figure'] != str(arguments.figure) or row['killed'] not in cases]
  with tempfile.TemporaryDirectory() as folder:
    corpus = [f'--dataset={make_corpus(folder)}'] if arguments.figure == 2 else []
    killer = Killer(arguments.figure, pathlib.Path(folder), corpus)
    for number in range(1, arguments.times + 1):
      for case in cases:
        name, row = f'{case}_{number}', None
        for attempt in range(5):
          row = killer.kill_launcher(name) if arguments.launcher else killer.kill(case, f'{name}_{attempt}')
          if row:
            break
        fine = row is not None and row.pop('fine')
        all_fine = all_fine and fine
        row = dict(row or dict(killed=case, said='ended before each kill'), figure=arguments.figure, number=number)
        print(row, flush=True)
        if arguments.write:
          rows.append(row)
          with open(path, 'w', newline='') as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)
    killer.script.close()
  sys.exit(0 if all_fine else 1)


if __name__ == '__main__':
  main()

"""Comparisons of learning rules: runs side by side, ended as a group, reused only if they are the same; what is read back.

The runs are of a script without TensorFlow, in a folder with copies of the shared files.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import conftest

RUN = '''
import os, sys, time
import program
import files, machine
from absl import flags
FLAGS = flags.FLAGS
flags.adopt_module_key_flags(program)
flags.DEFINE_integer('n_iter', 3, '')
flags.DEFINE_float('seconds', 0.0, '')
flags.DEFINE_integer('fail', -1, '')
flags.DEFINE_list('signs', [], '')

def main():
  folder = os.path.join(FLAGS.result_dir, 'run', FLAGS.run_name)
  path = lambda name: os.path.join(folder, name)
  config = dict(n_iter=FLAGS.n_iter)
  if FLAGS.resume and files.read_json(path('config.json'))['n_iter'] > FLAGS.n_iter:
    raise files.UserError('too many iterations')
  files.write_json(path('config.json'), config)
  machine.Lock(folder)
  if FLAGS.fail == FLAGS.seed:
    raise files.UserError('it failed')
  program.if_interrupted(lambda: 'saved')
  for k in range(FLAGS.n_iter):
    files.write_json(path('alive.json'), dict(pid=os.getpid(), k=k, cores=machine.cores()))
    time.sleep(FLAGS.seconds)
  files.write_json(path('summary.json'), dict(score=FLAGS.seed, n_iter=FLAGS.n_iter, argv=sys.argv[1:],
                                          signs_of_death=FLAGS.signs))

program.run_app(main)
'''
COMPARE = '''
import os, sys
import comparison, files, program
from absl import flags
FLAGS = flags.FLAGS
flags.adopt_module_key_flags(comparison)
flags.DEFINE_list('extra', [], '')
flags.DEFINE_string('data', None, '')

def main():
  comparison.prepare(['a', 'b'])
  jobs = [comparison.Job(f'{rule} seed {seed}', 'run', os.path.join(comparison.folder_of('run'), f'{rule}_seed{seed}'),
                         [f'--seed={seed}', *FLAGS.extra, *comparison.common_arguments()], FLAGS.data)
          for seed in range(FLAGS.n_seeds) for rule in FLAGS.rules or ['a', 'b']]
  path = os.path.join(FLAGS.out, 'comparison.csv')
  def collect(finished):
    rows = [dict(label=job.label, **files.read_json(job.path('summary.json'), ['score', 'n_iter'])) for job in finished]
    files.write_csv(path, rows, ['label', 'score', 'n_iter', 'argv', 'signs_of_death'])
  complete = FLAGS.replot or comparison.train(jobs, collect)
  for row in files.read_csv(path, ['label'], ['score', 'n_iter']):
    print(row['label'], row['n_iter'])
  comparison.end(complete)

program.run_app(main)
'''


@pytest.fixture(scope='module')
def house(tmp_path_factory):
  """A folder with the shared files that need no TensorFlow and two scripts."""
  folder = tmp_path_factory.mktemp('house')
  for name in ('files', 'machine', 'program', 'comparison'):
    shutil.copy(conftest.FIGURE_3 / f'{name}.py', folder)
  (folder / 'run.py').write_text(RUN)
  (folder / 'compare.py').write_text(COMPARE)
  return folder


def command(house, folder, *arguments):
  return [sys.executable, str(house / 'compare.py'), f'--result_dir={folder}', f'--out={folder}/out', '--n_seeds=2',
          '--n_parallel=2', *map(str, arguments)]


def call(house, folder, *arguments, expect=0):
  done = subprocess.run(command(house, folder, *arguments), capture_output=True, text=True, timeout=120, check=False)
  assert done.returncode == expect, done.stdout + done.stderr
  return done


def iterations(done):
  """{label: iterations} of the table that was printed last."""
  return dict(line.rsplit(' ', 1) for line in done.stdout.splitlines() if ' seed ' in line)


def runs(folder):
  return folder / 'comparison' / 'run'


def test_runs_are_kept_if_they_are_the_same_and_go_on_if_not(house, tmp_path):
  first = call(house, tmp_path)
  assert '4/4 runs ended, 0 missing' in first.stdout
  assert iterations(first) == {f'{rule} seed {seed}': '3' for rule in 'ab' for seed in (0, 1)}
  before = {path: path.stat().st_mtime_ns for path in runs(tmp_path).rglob('summary.json')}
  assert len(before) == 4
  assert iterations(call(house, tmp_path)) == iterations(first)
  assert {path: path.stat().st_mtime_ns for path in runs(tmp_path).rglob('summary.json')} == before

  longer = call(house, tmp_path, '--extra=--n_iter=5')
  assert set(iterations(longer).values()) == {'5'}
  shorter = call(house, tmp_path, '--extra=--n_iter=4', expect=2)  # which the runs refuse: no number of another run is reported
  assert 'no run has finished' in shorter.stderr and 'too many iterations' in shorter.stderr and not iterations(shorter)
  other_data = call(house, tmp_path, '--extra=--n_iter=5', '--data=digest')
  assert {path: path.stat().st_mtime_ns for path in runs(tmp_path).rglob('summary.json')}.values() != before.values()
  assert set(iterations(other_data).values()) == {'5'}


def test_flags_are_passed_on_or_refused(house, tmp_path):
  call(house, tmp_path, '--device=CPU:7', '--dtype=float64', '--checkpoint_seconds=3', '--rules=a')
  argv = json.loads((runs(tmp_path) / 'a_seed0' / 'summary.json').read_text())['argv']
  assert {'--device=CPU:7', '--dtype=float64', '--checkpoint_seconds=3.0', '--seed=0'} <= set(argv)
  for flag in ('--seed=3', '--run_name=x', '--resume'):
    assert 'no meaning' in call(house, tmp_path, flag, expect=2).stderr
  assert 'unknown rule c' in call(house, tmp_path, '--rules=a,c', expect=2).stderr
  assert 'twice' in call(house, tmp_path, '--rules=a,a', expect=2).stderr
  assert 'names no rule' in call(house, tmp_path, '--rules=', expect=2).stderr


def test_dead_networks_are_told(house, tmp_path):
  for _ in range(2):  # of runs that have just ended, and of those that had before
    done = call(house, tmp_path, '--rules=a', '--extra=--signs=no neuron spiked')
    assert [line.split(': ')[1] for line in done.stderr.splitlines() if 'no neuron spiked' in line] == ['a seed 0', 'a seed 1']


def test_a_failed_run_is_told_and_missing(house, tmp_path):
  done = call(house, tmp_path, '--extra=--fail=1', expect=1)
  assert 'a seed 1 ended with exit code 2: error: it failed' in done.stderr and '4/4 runs ended, 2 missing' in done.stdout
  assert set(iterations(done)) == {'a seed 0', 'b seed 0'} and 'runs are missing' in done.stderr
  assert set(iterations(call(house, tmp_path))) == {f'{rule} seed {seed}' for rule in 'ab' for seed in (0, 1)}


@pytest.mark.parametrize('damage', ['', '{"score": 1', '[]', 'deleted'])
def test_damaged_summaries(house, tmp_path, damage):
  """A summary that is torn ends in one sentence; one that is gone is made anew."""
  call(house, tmp_path, '--rules=a', '--n_seeds=1')
  path = runs(tmp_path) / 'a_seed0' / 'summary.json'
  if damage == 'deleted':
    path.unlink()
    assert iterations(call(house, tmp_path, '--rules=a', '--n_seeds=1')) == {'a seed 0': '3'}
  else:
    path.write_text(damage)
    done = call(house, tmp_path, '--rules=a', '--n_seeds=1', expect=2)
    assert done.stderr.count('error: ') == 1 and 'summary.json' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize('content', ['', 'label;score;n_iter\na;1;2\n', 'label,score,n_iter\na,1\n', None])
def test_replot_of_a_table_that_is_none(house, tmp_path, content):
  (tmp_path / 'out').mkdir()
  if content is not None:
    (tmp_path / 'out' / 'comparison.csv').write_text(content)
  done = call(house, tmp_path, '--replot', expect=2)
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1 and 'comparison.csv' in done.stderr


def wait_for(condition, seconds=60):
  until = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < until
    time.sleep(0.02)


def alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  return True


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_group_ends_as_a_group(house, tmp_path, number):
  """Whatever ends the comparison ends its runs, too; none of those that wait begins."""
  process = subprocess.Popen(command(house, tmp_path, '--n_seeds=4', '--extra=--seconds=0.05,--n_iter=100000'),
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  files = lambda: list(runs(tmp_path).glob('*/alive.json'))
  wait_for(lambda: len(files()) == min(2, os.cpu_count()))
  pids = [json.loads(path.read_text())['pid'] for path in files()]
  process.send_signal(number)
  _, errors = process.communicate(timeout=60)
  wait_for(lambda: not any(map(alive, pids)))
  assert len(list(runs(tmp_path).iterdir())) == len(pids) + 1  # and the lock
  if number != signal.SIGKILL:
    assert process.returncode == 128 + number and errors.splitlines()[-1].startswith('error: interrupted; the same command')
    assert 'Traceback' not in errors
    assert all('error: interrupted; saved' in (path.parent / 'log.txt').read_text() for path in files())


def test_two_comparisons_do_not_share_runs(house, tmp_path):
  process = subprocess.Popen(command(house, tmp_path, '--extra=--seconds=0.05,--n_iter=100000'), stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
  wait_for(lambda: list(runs(tmp_path).glob('*/alive.json')))
  assert f'process {process.pid} on' in call(house, tmp_path, expect=2).stderr
  process.terminate()
  process.wait(60)


@pytest.mark.parametrize('folder, table, flag', [
    ('Figure_3_and_S7_e-prop_tutorials', 'comparison_pattern_generation', '--task=pattern_generation'),
    ('Figure_2_TIMIT', 'comparison_espeak_fbank', '--dataset=x/espeak_fbank'),
    ('Figure_4_and_5_ATARI', 'comparison_catch', '--level_name=catch')])
@pytest.mark.parametrize('damage', [lambda text: '', lambda text: text[:len(text) // 2], lambda text: text.replace(',', ';')],
                         ids=['empty', 'cut', 'semicolons'])
def test_tables_of_the_figures_drawn_once_more(tmp_path, folder, table, flag, damage):
  text = (conftest.ROOT / folder / 'figures' / f'{table}.csv').read_text(encoding='utf-8')
  (tmp_path / f'{table}.csv').write_text(damage(text), encoding='utf-8')
  done = subprocess.run([sys.executable, str(conftest.ROOT / folder / 'compare_learning_rules.py'), '--replot', flag,
                         f'--out={tmp_path}'], capture_output=True, text=True, timeout=120, check=False)
  assert done.returncode == 2 and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1, done.stderr
  assert f'{table}.csv' in done.stderr and os.listdir(tmp_path) == [f'{table}.csv']

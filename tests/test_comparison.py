"""Comparisons of learning rules: runs side by side, ended as a group, reused only if they are the same; what is read back.

The runs are of a script without TensorFlow, in a folder with copies of the shared files.
"""
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import conftest
import forks

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
  files.write_csv(path('metrics.csv'), [dict(iteration=k + 1, loss=1 / (k + 1)) for k in range(FLAGS.n_iter)], ['iteration', 'loss'])
  files.write_json(path('summary.json'), dict(score=FLAGS.seed, iterations=FLAGS.n_iter, argv=sys.argv[1:],
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
  comparison.prepare(['a', 'b'], ['extra'])
  job_of = lambda rule, seed: comparison.Job(
      f'{rule} seed {seed}', 'run', os.path.join(comparison.folder_of('run'), f'{rule}_seed{seed}'),
      [f'--seed={seed}', *FLAGS.extra, *comparison.common_arguments()], FLAGS.data)
  jobs = {(rule, seed): job_of(rule, seed) for seed in range(FLAGS.n_seeds) for rule in FLAGS.rules or ['a', 'b']}
  path = os.path.join(FLAGS.out, 'comparison.csv')
  read = lambda path: files.read_csv(path, ['rule'], ['score'], ['seed', 'iterations'], ['rule', 'seed', 'score'])
  others = [] if FLAGS.replot else comparison.kept(path, read, ('rule', 'seed'), jobs, job_of)
  def collect(finished):
    rows = [dict(rule=rule, seed=seed, **comparison.results_of(job, ['score'], ['loss'], ['loss'])[0])
            for (rule, seed), job in jobs.items() if job in finished]
    files.write_csv(path, others + rows, ['rule', 'seed', 'score', 'iterations', 'argv', 'signs_of_death'])
  complete = FLAGS.replot or comparison.train(list(jobs.values()), collect)
  for row in read(path):
    print(row['rule'], 'seed', row['seed'], row['iterations'])
  comparison.end(complete)

program.run_app(main)
'''


SCRIPTS = {}  # path: forks.Script, made when it is first called


@pytest.fixture(scope='module', autouse=True)
def closed_at_the_end():
  yield
  for script in SCRIPTS.values():
    script.close()
  SCRIPTS.clear()


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


def script(path):
  """forks.Script of a path, or of one from the root on."""
  path = conftest.ROOT / path
  if path not in SCRIPTS:
    SCRIPTS[path] = forks.Script(path)
  return SCRIPTS[path]


def call(house, folder, *arguments, expect=0):
  done = script(house / 'compare.py')(*command(house, folder, *arguments)[2:])
  assert done.code == expect and 'Traceback' not in done.stderr, done
  return done


def iterations(done):
  """{label: iterations} of the table that was printed last."""
  return dict(line.rsplit(' ', 1) for line in done.stdout.splitlines() if ' seed ' in line)


def runs(folder):
  return folder / 'comparison' / 'run'


def test_collect_trains_nothing(house, tmp_path):
  assert 'no run has finished' in call(house, tmp_path, '--collect', expect=2).stderr and not runs(tmp_path).exists()
  call(house, tmp_path, '--rules=a')
  done = call(house, tmp_path, '--collect')
  assert '2/4 runs ended, 2 missing' in done.stdout and 'missing: b seed 0, b seed 1' in done.stdout
  assert {'a seed 0', 'a seed 1'} <= set(iterations(done)) and not list(runs(tmp_path).glob('b_*'))


def test_other_runs_leave_the_committed_table_alone(house, tmp_path):
  """Without --out."""
  compare = script(house / 'compare.py')
  flags = [f'--result_dir={tmp_path}', '--n_seeds=1', '--rules=a']
  try:
    assert compare(*flags).code == 0
    committed = (house / 'figures' / 'comparison.csv').read_text()
    done = compare(*flags, '--extra=--n_iter=5')
    assert done.code == 0 and f'--extra: other runs than those in figures/; table and figures go to {tmp_path}' in done.stdout
    assert (house / 'figures' / 'comparison.csv').read_text() == committed
    assert iterations(done) == {'a seed 0': '5'} and (tmp_path / 'comparison' / 'comparison.csv').exists()
  finally:
    shutil.rmtree(house / 'figures', ignore_errors=True)


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


def test_runs_not_asked_for_stay_in_the_table(house, tmp_path):
  """Those of other rules, and other seeds that have run with the same flags; without such runs no mean is taken over both."""
  call(house, tmp_path)
  table = tmp_path / 'out' / 'comparison.csv'
  before = table.read_text()
  narrow = call(house, tmp_path, '--rules=b', '--n_seeds=1')
  assert sorted(table.read_text().splitlines()) == sorted(before.splitlines()) and 'are not compared: a\n' in narrow.stdout
  for flags in (['--extra=--n_iter=5'], [f'--result_dir={tmp_path}/elsewhere']):
    before = table.read_text()
    assert 'has seed 1 of b, which this command' in call(house, tmp_path, '--rules=b', '--n_seeds=1', *flags, expect=2).stderr
    assert table.read_text() == before
  call(house, tmp_path, '--rules=b', f'--result_dir={tmp_path}/elsewhere', '--extra=--n_iter=5')
  assert [line.split(',')[:4] for line in sorted(table.read_text().splitlines())[:4]] == [
      ['a', '0', '0', '3'], ['a', '1', '1', '3'], ['b', '0', '0', '5'], ['b', '1', '1', '5']]


def test_a_folder_for_the_table_is_one(house, tmp_path):
  (tmp_path / 'file').write_text('')
  for flag in (f'--out={tmp_path}/file', f'--result_dir={tmp_path}/file'):
    error = call(house, tmp_path, flag, expect=2).stderr
    assert error.startswith(f'error: {flag} is a file') and error.count('\n') == 1
  assert os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize('name, change, words', [
    ('summary.json', lambda text: '', 'damaged'), ('summary.json', lambda text: '{"score": 1', 'damaged'),
    ('summary.json', lambda text: '[]', 'damaged'), ('summary.json', lambda text: text.replace('"score": 0', '"score": null'), 'no number'),
    ('summary.json', lambda text: text.replace('"score": 0', '"score": NaN'), 'NaN is no JSON'),
    ('summary.json', lambda text: text.replace('"score": 0', '"score": "0"'), 'no number'),
    ('summary.json', lambda text: text.replace('"iterations": 3', '"iterations": 4'), 'ends at iteration 3'),
    ('metrics.csv', lambda text: '', 'no column loss'), ('metrics.csv', lambda text: text.rpartition('3,')[0], 'ends at iteration 2'),
    ('metrics.csv', lambda text: text.replace('2,0.5\n', ''), 'where iteration 2 should be there is 3'),
    ('metrics.csv', lambda text: text.replace('2,0.5', '1,0.5'), 'where iteration 2 should be there is 1'),
    ('metrics.csv', lambda text: text.replace('2,0.5', '2.0,0.5'), "'2.0' in row 2 is no iteration"),
    ('metrics.csv', lambda text: text.replace('2,0.5', '2,nan'), "'nan' in row 2 is no loss"),
    ('metrics.csv', lambda text: text.replace('2,0.5', '2,'), 'row 2 has no loss')])
def test_damaged_results_of_a_run(house, finished, name, change, words):
  path = runs(finished) / 'a_seed0' / name
  before = path.read_text()
  path.write_text(change(before))
  done = call(house, finished, '--rules=a', '--n_seeds=1', expect=2)
  spoilt = path.read_text()
  path.write_text(before)
  assert done.stderr.count('error: ') == 1 and str(path.parent) in done.stderr and words in done.stderr, done.stderr
  assert spoilt == change(before) != before


def test_a_run_without_results_is_made_anew(house, finished):
  (runs(finished) / 'a_seed0' / 'summary.json').unlink()
  assert iterations(call(house, finished, '--rules=a', '--n_seeds=1')) == {'a seed 0': '3'}


@pytest.fixture(scope='module')
def finished(house, tmp_path_factory):
  """A comparison of one run."""
  folder = tmp_path_factory.mktemp('finished')
  call(house, folder, '--rules=a', '--n_seeds=1')
  return folder


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


# ---------------------------------------------------------------------------------------------------------------------
# The tables that are committed, drawn once more


FIGURE_3, FIGURE_2, FIGURE_4 = ((f'{folder}/compare_learning_rules.py', table, flag) for folder, table, flag in (
    ('Figure_3_and_S7_e-prop_tutorials', 'comparison_evidence_accumulation', '--task=evidence_accumulation'),
    ('Figure_2_TIMIT', 'comparison_espeak_full_fbank', '--dataset=x/espeak_full_fbank'),
    ('Figure_4_and_5_ATARI', 'comparison_catch', '--level_name=catch')))
CURVES = FIGURE_2[0], 'curves_espeak_full_fbank', FIGURE_2[2]
CURVES_4 = FIGURE_4[0], 'curves_catch', FIGURE_4[2]
PUBLISHED = 'Figure_2_TIMIT/published_curve.py', 'published_curve', '--n_seeds=3'
cut_off = lambda text: text[:len(text) // 2]
empty = lambda text: ''
semicolons = lambda text: text.replace(',', ';')
less = lambda n: lambda text: ''.join(text.splitlines(keepends=True)[:-n])
without = lambda row: lambda text: ''.join(line for k, line in enumerate(text.splitlines(keepends=True)) if k != row)
twice = lambda row: lambda text: ''.join((1 + (k == row)) * line for k, line in enumerate(text.splitlines(keepends=True)))


def cell(row, column, value):
  """Changes a cell of a row, counted from 1, or from the last one backwards."""

  def change(text):
    rows = list(csv.reader(io.StringIO(text)))
    rows[row][rows[0].index(column)] = value
    changed = io.StringIO()
    csv.writer(changed, lineterminator='\n').writerows(rows)
    return changed.getvalue()

  return change


TABLES = FIGURE_3, FIGURE_2, FIGURE_4, CURVES, CURVES_4, PUBLISHED
DAMAGES = [*((table, change) for table in TABLES for change in (empty, cut_off, semicolons)),
           *((FIGURE_3, change) for change in (
               less(1), without(5), twice(5), cell(2, 'iteration', '2.5'), cell(2, 'iteration', '-2'), cell(2, 'iteration', ''),
               cell(2, 'iteration', '3'), cell(2, 'train_loss', ''), cell(2, 'train_loss', 'inf'), cell(2, 'rate_hz', '1_0'),
               cell(-1, 'criterion_reached', 'maybe'), cell(-1, 'test_error', ''), cell(2, 'rule', 'magic'), cell(2, 'seed', '0.5'))),
           *((FIGURE_2, change) for change in (
               twice(2), without(2), cell(2, 'corpus', 'another'), cell(1, 'test_error', ''), cell(1, 'test_error', 'nan'),
               cell(1, 'seed', '1.5'), cell(1, 'seed', ''), cell(1, 'rule', 'magic'), cell(1, 'iterations', '7.5'))),
           *((CURVES, change) for change in (
               less(1), less(3), without(2), without(1), twice(2), cell(2, 'corpus', 'another'), cell(1, 'iteration', '462.5'),
               cell(1, 'iteration', '461'), cell(1, 'validation_error', ''))),
           *((FIGURE_4, change) for change in (
               twice(2), without(2), cell(1, 'rule', 'magic'), cell(1, 'seed', ''), cell(1, 'iterations', '1106'),
               cell(1, 'score', ''), cell(1, 'score', 'nan'))),
           *((CURVES_4, change) for change in (
               less(1), without(2), twice(2), cell(1, 'seed', '7'), cell(1, 'return_200', 'nan'), cell(1, 'return_200', 'inf'),
               cell(1, 'return_200', ''), cell(1, 'frames', '99999'), cell(1, 'seconds', ''))),
           *((PUBLISHED, change) for change in (
               less(1), without(2), without(7), twice(6), cell(5, 'seed', ''), cell(5, 'program', 'theirs'), cell(5, 'update', '60.5'),
               cell(5, 'update', '61'), cell(1, 'validation_error', '')))]


@pytest.mark.parametrize('table, change', DAMAGES)
def test_tables_of_the_figures_drawn_once_more(tmp_path, table, change):
  path, name, flag = table
  figures = (conftest.ROOT / path).parent / 'figures'
  for other in figures.glob('*.csv'):
    shutil.copy(other, tmp_path)
  text = (figures / f'{name}.csv').read_text(encoding='utf-8')
  assert change(text) != text
  (tmp_path / f'{name}.csv').write_text(change(text), encoding='utf-8')
  done = script(path)('--replot', flag, f'--out={tmp_path}')
  assert done.code == 2 and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1, done
  assert f'{name}.csv' in done.stderr and not list(tmp_path.glob(f'{name}*.png')), done


@pytest.mark.parametrize('table', [FIGURE_3, FIGURE_2, FIGURE_4, PUBLISHED])
def test_tables_from_other_editors(tmp_path, table):
  """Windows' line ends, and the mark that some programs put before the text."""
  path, name, flag = table
  for other in (conftest.ROOT / path).parent.glob('figures/*.csv'):
    (tmp_path / other.name).write_bytes(b'\xef\xbb\xbf' + other.read_bytes().replace(b'\n', b'\r\n'))
  done = script(path)('--replot', flag, f'--out={tmp_path}')
  assert done.code == 0 and list(tmp_path.glob('*.png')), done.stderr


def test_nothing_to_compare(tmp_path):
  for path, flag in ((FIGURE_2[0], '--networks='), (FIGURE_2[0], '--rules='), (FIGURE_3[0], '--rules='), (FIGURE_4[0], '--rules='),
                       (PUBLISHED[0], '--variants=')):
    done = script(path)(flag, f'--out={tmp_path}/out', f'--result_dir={tmp_path}')
    assert done.code == 2 and flag.strip('=') in done.errors[0] and 'names no' in done.errors[0], done
  assert not os.listdir(tmp_path)

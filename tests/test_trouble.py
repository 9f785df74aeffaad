"""Troubles that users of such programs meet, kind by kind: nothing is lost, whatever happens around a run.

What its numbers and files say is in test_honest_results.py; comparisons, files and speech have tests of their own, too.
"""
# ruff: noqa: F811
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import conftest
import forks
import test_files
from trouble import begun, contents, finished, only_run, pattern, PATTERN, rows, says, toy, wait_for  # noqa: F401, fixtures


# ---------------------------------------------------------------------------------------------------------------------
# A, I, J: paths and text


@pytest.mark.parametrize('name', ['lr[0.01]', 'a]*?{b}', 'back\\slash', 'ünï ☃', os.fsdecode(b'caf\xe9'), '-', '~', '%s\n'])
def test_any_name_of_a_folder_is_resumed(toy, tmp_path, name):
  folder = tmp_path / name
  flags = [f'--result_dir={folder}', f'--run_name={name}', '--checkpoint_seconds=0']
  assert toy(*flags, '--n_iter=3').code == 0
  ended = toy(*flags, '--n_iter=5', '--resume', env={'PYTHONIOENCODING': 'ascii'})
  assert ended.code == 0, ended.stderr
  run = only_run(folder)
  assert run.name == name and len(rows(run)) == 5 and list((run / 'tensorboard').iterdir())
  assert sorted(path.name for path in (run / 'checkpoints').iterdir()) == ['4.npz', '5.npz']
  assert toy(f'--init_from={run}/final_weights.npz', f'--result_dir={tmp_path}/other').code == 0


@pytest.mark.parametrize('name', ['a/b', '../a', '..', '/tmp', '', ' '])
def test_names_that_are_none_are_refused(toy, tmp_path, name):
  says(toy(f'--result_dir={tmp_path}/r', f'--run_name={name}'), '--run_name')
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize('flag', ['--result_dir=', '--result_dir= ', '--init_from=', '--result_dir=~nobody_of_this_name/x'])
def test_paths_that_name_nothing_are_refused(toy, tmp_path, flag):
  """As of a variable of the shell that is not set."""
  says(toy(flag, cwd=tmp_path), flag.partition('=')[0])
  assert not os.listdir(tmp_path)


def test_home_is_found_after_an_equals_sign(toy, tmp_path):
  ended = toy('--n_iter=1', '--result_dir=~/x', env={'HOME': str(tmp_path)}, cwd=tmp_path)
  assert ended.code == 0 and os.listdir(tmp_path) == ['x'], ended.stderr
  says(toy('--init_from=~/nowhere.npz', env={'HOME': str(tmp_path)}, cwd=tmp_path), f'{tmp_path}/nowhere.npz')


def test_every_flag_that_is_a_path_knows_home():
  """Those of all scripts: whoever adds one finds it here."""
  paths = set()
  for path in conftest.ROOT.glob('Figure_*/*.py'):
    text = path.read_text(encoding='utf-8')
    paths |= set(re.findall(r"DEFINE_path\('(\w+)'", text))
    for name, help_text in re.findall(r"DEFINE_string\('(\w+)', [^,]*, (.*)", text):
      assert not re.search(r'folder|file|path|npz', help_text) or name == 'run_name', (path.name, name, help_text)
  assert {'result_dir', 'init_from', 'dataset', 'data_path', 'checkpoint', 'load', 'restore_from', 'restore_cnn_from',
          'out'} <= paths


# ---------------------------------------------------------------------------------------------------------------------
# B: who owns a folder


def test_runs_of_the_same_second_get_folders_of_their_own(toy, tmp_path):
  frozen = "import time; time.strftime = lambda *_: 'now'"
  started = [toy.start('--sleep=0.1', f'--seed={k}', f'--result_dir={tmp_path}', before=frozen) for k in range(3)]
  assert [toy.end(one).code for one in started] == [0, 0, 0]
  runs = sorted((tmp_path / 'toy').iterdir())
  assert [run.name for run in runs] == ['now', 'now-2', 'now-3']
  assert sorted(json.loads((run / 'config.json').read_text())['seed'] for run in runs) == [0, 1, 2]
  assert all(len(rows(run)) == 3 for run in runs)


def test_a_run_that_is_going_on_is_not_resumed_by_another_process(toy, tmp_path):
  flags = [f'--result_dir={tmp_path}', '--run_name=a', '--checkpoint_seconds=0', '--resume']
  going = toy.start(*flags[:-1], '--n_iter=100000', '--sleep=0.02')
  run = tmp_path / 'toy' / 'a'
  wait_for(lambda: begun(run / 'metrics.csv'))
  says(toy(*flags, '--n_iter=100000'), f'process {going[0]} ')
  os.kill(going[0], signal.SIGKILL)
  assert toy.end(going).code == -signal.SIGKILL
  n_done = max(int(path.stem) for path in (run / 'checkpoints').glob('*.npz') if path.stem.isdigit())
  assert toy(*flags, f'--n_iter={n_done + 2}').code == 0  # taken over from the dead process
  assert len(rows(run)) == n_done + 2


@pytest.mark.parametrize('name, words', [
    ('tensorboard', 'tensorboard cannot be written'), ('checkpoints', 'checkpoints'), ('metrics.csv', 'no regular file'),
    ('config.json', 'no regular file'), ('lock', 'lock')])
def test_something_else_in_place_of_what_a_run_writes(toy, finished, name, words):
  """A file for a folder, a folder for a file."""
  path = finished / name
  if path.is_dir():
    shutil.rmtree(path)
    path.write_text('')
  else:
    path.unlink()
    path.mkdir()
  says(toy('--resume', '--n_iter=3', f'--result_dir={finished.parent.parent}', limit=60), words)


def test_the_last_run_is_one_that_can_be_resumed(toy, finished):
  (finished.parent / 'evaluation').mkdir()
  assert toy('--resume', '--n_iter=3', f'--result_dir={finished.parent.parent}').code == 0 and len(rows(finished)) == 3


# ---------------------------------------------------------------------------------------------------------------------
# D: signals


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_save_what_is_done_and_say_so(toy, tmp_path, number):
  flags = [f'--result_dir={tmp_path}', '--run_name=a', '--checkpoint_seconds=1000']
  going = toy.start(*flags, '--n_iter=100000', '--sleep=0.02')
  run = tmp_path / 'toy' / 'a'
  wait_for(lambda: begun(run / 'metrics.csv'))
  os.kill(going[0], number)
  ended = toy.end(going)
  says(ended, '--resume --run_name=a goes on after iteration', code=128 + number)
  n_done = int(ended.errors[0].split()[-1])
  assert (run / 'checkpoints' / f'{n_done}.npz').exists() and len(rows(run)) == n_done
  assert toy(*flags, f'--n_iter={n_done + 1}', '--resume').code == 0 and len(rows(run)) == n_done + 1


def test_a_second_signal_ends_at_once(toy, tmp_path):
  """While an iteration takes long; what is said of checkpoints is true."""
  run = tmp_path / 'toy' / 'a'
  says_so = "import time; sleep = time.sleep; time.sleep = lambda s: (s == 1000 and open('asleep', 'w').close(), sleep(s))"
  going = toy.start(f'--result_dir={tmp_path}', '--run_name=a', '--sleep=1000', before=says_so, cwd=tmp_path)
  wait_for((tmp_path / 'asleep').exists)
  os.kill(going[0], signal.SIGINT)
  wait_for(lambda: 'asked once more' in pathlib.Path(going[2]).read_text())
  os.kill(going[0], signal.SIGTERM)
  says(toy.end(going), 'begins anew', 'no checkpoint yet', code=128 + signal.SIGTERM)
  assert not list((run / 'checkpoints').iterdir())
  assert toy(f'--result_dir={tmp_path}', '--run_name=a', '--resume').code == 0 and len(rows(run)) == 3


@pytest.mark.parametrize('seconds', [0.3, 1.0])
def test_ctrl_c_in_the_first_second(seconds):
  script = str(PATTERN)
  code = f'import runpy, sys; sys.path[0] = {str(conftest.FIGURE_3)!r}; print(flush=True); runpy.run_path({script!r}, run_name="__main__")'
  process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  process.stdout.readline()  # Python itself has begun
  time.sleep(seconds)
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=60)
  assert process.returncode in (-signal.SIGINT, 130) and errors == 'error: interrupted; nothing was begun\n'


def test_ignored_signals_stay_ignored(toy, tmp_path):
  """As under nohup."""
  ignore = 'import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)'
  going = toy.start('--n_iter=10', '--sleep=0.05', f'--result_dir={tmp_path}', '--run_name=a', before=ignore)
  wait_for(lambda: begun(tmp_path / 'toy' / 'a' / 'metrics.csv'))
  os.kill(going[0], signal.SIGHUP)
  assert toy.end(going).code == 0


# ---------------------------------------------------------------------------------------------------------------------
# K: matplotlib's surroundings


@pytest.mark.parametrize('backend, modules', [('module://no.such.module', 'plots'), ('tkagg', 'experiment, plots')])
def test_figures_are_files_under_any_backend(tmp_path, backend, modules):
  """Without a display; also where Keras has imported matplotlib."""
  code = f'import {modules}; figure, axis = plots.plt.subplots(); axis.plot([1, 2]); plots.save(figure, "x.png"); ' \
         'import os, sys; assert not "_tkinter" in sys.modules and plots.matplotlib.get_backend().lower() == "agg"; ' \
         f'assert os.environ["MPLBACKEND"] == {backend!r}'
  done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
                        env=dict(os.environ, MPLBACKEND=backend, PYTHONPATH=str(conftest.FIGURE_3), DISPLAY=''))
  assert done.returncode == 0 and os.listdir(tmp_path) == ['x.png'], done.stderr


def test_windows_that_cannot_be_opened_are_said(pattern, tmp_path):
  ended = pattern('--seq_len=50', '--n_iter=1', '--show', f'--result_dir={tmp_path}', env={'DISPLAY': '', 'WAYLAND_DISPLAY': ''})
  assert ended.code == 0 and '--show can open no window' in ended.stderr and (only_run(tmp_path) / 'figure.png').exists()


@pytest.mark.parametrize('path', ['Figure_3_and_S7_e-prop_tutorials/plots.py', 'Figure_2_TIMIT/result_plots.py',
                                  'Figure_4_and_5_ATARI/plots.py'])
def test_plots_drawn_once_more(tmp_path, path):
  (tmp_path / 'torn.npz').write_bytes(b'PK')
  (tmp_path / 'folder').mkdir()
  os.mkfifo(tmp_path / 'pipe.npz')
  np.savez(tmp_path / 'other.npz', a=np.ones(3))
  np.savez(tmp_path / 'objects.npz', a=np.array([None, 'x'], object))
  script = forks.Script(conftest.ROOT / path)
  try:
    for arguments in ([], ['nowhere.npz'], ['torn.npz'], ['other.npz'], ['objects.npz'], ['folder'], ['pipe.npz'], ['/dev/zero'], ['a', 'b']):
      done = script(*arguments, cwd=tmp_path, limit=20)
      assert done.code == 2 and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1, (arguments, done)
  finally:
    script.close()
  assert not list(tmp_path.glob('*.png'))


# ---------------------------------------------------------------------------------------------------------------------
# L: the wall clock


def test_durations_do_not_follow_the_wall_clock(toy, tmp_path):
  back = '''
import itertools, time
clock = itertools.count(2e9, -3600)
time.time = lambda: next(clock)
'''
  ended = toy('--n_iter=20', '--sleep=0.01', '--checkpoint_seconds=0.001', f'--result_dir={tmp_path}', before=back)
  assert ended.code == 0 and ' -' not in ended.stdout, ended
  run = only_run(tmp_path)
  assert 0.2 < json.loads((run / 'summary.json').read_text())['wall_time_s'] < forks.LIMIT
  assert sorted(int(path.stem) for path in (run / 'checkpoints').iterdir()) == [19, 20]


def test_no_duration_is_measured_by_the_wall_clock():
  for path in conftest.ROOT.glob('Figure_*/*.py'):
    assert 'time.time()' not in path.read_text(encoding='utf-8'), path


# ---------------------------------------------------------------------------------------------------------------------
# Q: disks and standard streams


def test_a_full_disk_keeps_the_last_checkpoint(toy, finished):
  """Files may not grow beyond 1 kB, which a checkpoint of 1000 rows does."""
  flags = ['--n_in=1000', '--run_name=b', f'--result_dir={finished.parent.parent}', '--checkpoint_seconds=0']
  assert toy(*flags, '--n_iter=2').code == 0
  run = finished.parent / 'b'
  before = contents(run / 'checkpoints')
  full = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))'
  says(toy(*flags, '--n_iter=3', '--resume', before=full), 'the checkpoint of iteration 3 in', 'could not be written')
  assert contents(run / 'checkpoints') == before and not list(run.rglob('*.part*'))
  assert toy(*flags, '--n_iter=3', '--resume').code == 0 and len(rows(run)) == 3


@pytest.mark.parametrize('before', [
    "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)",
    'import os, sys; r, w = os.pipe(); os.dup2(w, 1); os.dup2(w, 2); os.close(r); os.close(w)'], ids=['full', 'broken pipe'])
def test_output_that_fails_costs_no_run(toy, tmp_path, before):
  assert toy('--n_iter=20', f'--result_dir={tmp_path}', before=before).code == 0
  run = only_run(tmp_path)
  assert len(rows(run)) == 20 and (run / 'final_weights.npz').exists()


def test_streams_closed_from_the_start(tmp_path):
  """A script with neither stdin nor stderr, from Python's first line on; an é in the path, and nothing but ASCII to say it with."""
  command = [sys.executable, str(conftest.TESTS / 'toy_training.py'), '--n_iter=30', f'--result_dir={tmp_path}/é']
  done = subprocess.run(['bash', '-c', '"$@" 2>&- <&-', 'bash', *command], capture_output=True, timeout=240, check=False,
                        env=dict(os.environ, PYTHONIOENCODING='ascii'))
  assert done.returncode == 0 and b'\\xe9' in done.stdout
  assert len(rows(only_run(tmp_path / 'é'))) == 30


# ---------------------------------------------------------------------------------------------------------------------
# Other systems


def test_a_run_needs_no_linux(tmp_path):
  code = test_files.WITHOUT_LINUX + f'''
import runpy
sys.argv = [{str(conftest.TESTS / 'toy_training.py')!r}, '--result_dir={tmp_path}']
runpy.run_path(sys.argv[0], run_name='__main__')
'''
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=240, check=False)
  assert done.returncode == 0, done.stderr
  assert json.loads((only_run(tmp_path) / 'summary.json').read_text())['peak_memory_mb'] is None


def test_why_there_is_no_gpu_is_said(toy, tmp_path):
  ended = toy('--device=GPU:0', f'--result_dir={tmp_path}')
  says(ended, 'no device GPU:0', 'TensorFlow sees CPU:0')
  assert 'cuda' in ended.errors[0].lower() or 'gpu' in ended.errors[0].lower().replace('gpu:0', '')


# ---------------------------------------------------------------------------------------------------------------------
# The statement in README.md


def test_what_one_can_rely_on_has_its_tests():
  text = (conftest.ROOT / 'README.md').read_text(encoding='utf-8').split('## What you can rely on')[1].split('\n## ')[0]
  named = set(re.findall(r'`(test_\w+)`', text))
  there = {name for path in conftest.TESTS.glob('test_*.py') for name in re.findall(r'^def (test_\w+)', path.read_text(), re.M)}
  assert len(named) > 15 and named <= there, named - there

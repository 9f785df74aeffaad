"""Troubles that users of such programs meet, kind by kind: nothing is lost, and nothing lies.

Files and comparisons have tests of their own (test_files.py, test_comparison.py), speech has its own, too.
"""
import csv
import json
import os
import pathlib
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

SCRIPT = 'tutorial_pattern_generation'
SHORT = ['--seq_len=50', '--do_plot=False']


@pytest.fixture(scope='module')
def pattern():
  """Pattern generation, to be called many times."""
  script = forks.Script(conftest.FIGURE_3 / f'{SCRIPT}.py')
  yield script
  script.close()


@pytest.fixture(scope='module')
def finished(pattern, tmp_path_factory):
  """A run of two iterations, named `a`; the folder that --result_dir named."""
  folder = tmp_path_factory.mktemp('finished')
  assert pattern(*SHORT, '--n_iter=2', '--checkpoint_seconds=0', f'--result_dir={folder}', '--run_name=a').code == 0
  return folder


def only_run(folder):
  run, = (folder / SCRIPT).iterdir()
  return run


def rows(run):
  with open(run / 'metrics.csv', newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file))


def says(ended, *words, code=2):
  """That a call ended with one sentence which has these words."""
  assert (ended.code, len(ended.errors)) == (code, 1) and 'Traceback' not in ended.stderr, ended
  assert all(word in ended.errors[0] for word in words), ended.errors


def wait_for(condition, seconds=120):
  until = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < until
    time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------------------------
# A, I, J: paths and text


@pytest.mark.parametrize('name', ['lr[0.01]', 'a]*?{b}', 'back\\slash', 'ünï ☃', os.fsdecode(b'caf\xe9'), '-', '~', '%s\n'])
def test_any_name_of_a_folder_is_resumed(pattern, tmp_path, name):
  folder = tmp_path / name
  flags = [*SHORT, f'--result_dir={folder}', f'--run_name={name}', '--checkpoint_seconds=0']
  assert pattern(*flags, '--n_iter=3').code == 0
  ended = pattern(*flags, '--n_iter=5', '--resume', env={'PYTHONIOENCODING': 'ascii'})
  assert ended.code == 0, ended.stderr
  run = only_run(folder)
  assert run.name == name and len(rows(run)) == 5
  assert sorted(path.name for path in (run / 'checkpoints').iterdir()) == ['4.npz', '5.npz']


@pytest.mark.parametrize('name', ['a/b', '../a', '..', '/tmp'])
def test_names_that_are_none_are_refused(pattern, tmp_path, name):
  says(pattern(*SHORT, f'--result_dir={tmp_path}/r', f'--run_name={name}'), '--run_name')
  assert not os.listdir(tmp_path)


def test_home_is_found_after_an_equals_sign(pattern, tmp_path):
  ended = pattern(*SHORT, '--n_iter=1', '--result_dir=~/x', env={'HOME': str(tmp_path)}, cwd=tmp_path)
  assert ended.code == 0 and os.listdir(tmp_path) == ['x'], ended.stderr
  says(pattern('--init_from=~/nowhere.npz', env={'HOME': str(tmp_path)}), f'{tmp_path}/nowhere.npz')


# ---------------------------------------------------------------------------------------------------------------------
# B: who owns a folder


def test_runs_of_the_same_second_get_folders_of_their_own(pattern, tmp_path):
  frozen = "import time; time.strftime = lambda *_: 'now'"
  started = [pattern.start(*SHORT, '--n_iter=2', f'--seed={k}', f'--result_dir={tmp_path}', before=frozen) for k in range(3)]
  assert [pattern.end(one).code for one in started] == [0, 0, 0]
  runs = sorted((tmp_path / SCRIPT).iterdir())
  assert [run.name for run in runs] == ['now', 'now-2', 'now-3']
  assert sorted(json.loads((run / 'config.json').read_text())['seed'] for run in runs) == [0, 1, 2]
  assert len({(run / 'metrics.csv').read_text() for run in runs}) == 3


def test_a_run_that_is_going_on_is_not_resumed_by_another_process(pattern, tmp_path):
  flags = [*SHORT, f'--result_dir={tmp_path}', '--run_name=a', '--checkpoint_seconds=0']
  going = pattern.start(*flags, '--n_iter=100000')
  metrics = tmp_path / SCRIPT / 'a' / 'metrics.csv'
  wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 3)
  says(pattern(*flags, '--n_iter=100000', '--resume'), f'process {going[0]} ')
  os.kill(going[0], signal.SIGKILL)
  assert pattern.end(going).code == -signal.SIGKILL
  n_done = max(int(path.stem) for path in (metrics.parent / 'checkpoints').glob('*.npz') if path.stem.isdigit())
  assert pattern(*flags, f'--n_iter={n_done + 2}', '--resume').code == 0  # taken over from the dead process
  assert len(rows(metrics.parent)) == n_done + 2


# ---------------------------------------------------------------------------------------------------------------------
# D: signals


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_save_what_is_done_and_say_so(pattern, tmp_path, number):
  flags = [*SHORT, f'--result_dir={tmp_path}', '--run_name=a', '--checkpoint_seconds=1000']
  going = pattern.start(*flags, '--n_iter=100000')
  metrics = tmp_path / SCRIPT / 'a' / 'metrics.csv'
  wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 3)
  os.kill(going[0], number)
  ended = pattern.end(going)
  says(ended, '--resume --run_name=a goes on after iteration', code=128 + number)
  n_done = int(ended.errors[0].split()[-1])
  assert (metrics.parent / 'checkpoints' / f'{n_done}.npz').exists() and len(rows(metrics.parent)) == n_done
  assert pattern(*flags, f'--n_iter={n_done + 1}', '--resume').code == 0


def test_a_second_signal_ends_at_once(pattern, tmp_path):
  """While an iteration takes long; what is said of checkpoints is true."""
  slow = "import numpy as np\ndef hang(*_): import time; open('hangs', 'w').close(); time.sleep(100)\nnp.isfinite = hang"
  going = pattern.start(*SHORT, f'--result_dir={tmp_path}', '--run_name=a', before=slow, cwd=tmp_path)
  wait_for(lambda: (tmp_path / 'hangs').exists())
  os.kill(going[0], signal.SIGINT)
  time.sleep(0.2)
  os.kill(going[0], signal.SIGTERM)
  says(pattern.end(going), 'begins anew', 'no checkpoint yet', code=128 + signal.SIGTERM)
  assert not list((tmp_path / SCRIPT / 'a' / 'checkpoints').iterdir())


@pytest.mark.parametrize('seconds', [0.1, 1.0])
def test_ctrl_c_in_the_first_second(seconds):
  process = subprocess.Popen([sys.executable, str(conftest.FIGURE_3 / f'{SCRIPT}.py')], stderr=subprocess.PIPE, text=True)
  time.sleep(seconds)
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=60)
  assert process.returncode in (-signal.SIGINT, 130) and errors == 'error: interrupted; nothing was begun\n'


def test_ignored_signals_stay_ignored(pattern, tmp_path):
  """As under nohup."""
  ignore = 'import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)'
  going = pattern.start(*SHORT, '--n_iter=30', f'--result_dir={tmp_path}', before=ignore)
  metrics = lambda: list(tmp_path.rglob('metrics.csv'))
  wait_for(lambda: metrics() and len(metrics()[0].read_text().splitlines()) > 1)
  os.kill(going[0], signal.SIGHUP)
  assert pattern.end(going).code == 0


# ---------------------------------------------------------------------------------------------------------------------
# K: matplotlib's surroundings


@pytest.mark.parametrize('backend', ['module://matplotlib_inline.backend_inline', 'module://no.such.module', 'nonsense', 'tkagg'])
def test_figures_are_files_under_any_backend(tmp_path, backend):
  code = 'import numpy as np, plots; figure, axis = plots.plt.subplots(); axis.plot([1, 2]); plots.save(figure, "x.png")'
  done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
                        env=dict(os.environ, MPLBACKEND=backend, PYTHONPATH=str(conftest.FIGURE_3), DISPLAY=''))
  assert done.returncode == 0 and os.listdir(tmp_path) == ['x.png'], done.stderr


def test_windows_that_cannot_be_opened_are_said(pattern, tmp_path):
  ended = pattern('--seq_len=50', '--n_iter=1', '--show', f'--result_dir={tmp_path}', env={'DISPLAY': '', 'WAYLAND_DISPLAY': ''})
  assert ended.code == 0 and '--show can open no window' in ended.stderr and (only_run(tmp_path) / 'figure.png').exists()


@pytest.mark.parametrize('folder, name', [('Figure_3_and_S7_e-prop_tutorials', 'plots'), ('Figure_2_TIMIT', 'result_plots'),
                                          ('Figure_4_and_5_ATARI', 'plots')])
def test_plots_drawn_once_more(tmp_path, folder, name):
  (tmp_path / 'torn.npz').write_bytes(b'PK')
  np.savez(tmp_path / 'other.npz', a=np.ones(3))
  for arguments in ([], ['nowhere.npz'], ['torn.npz'], ['other.npz'], ['a', 'b']):
    done = subprocess.run([sys.executable, str(conftest.ROOT / folder / f'{name}.py'), *arguments], cwd=tmp_path,
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1, done.stderr
  assert not list(tmp_path.glob('*.png'))


# ---------------------------------------------------------------------------------------------------------------------
# L: the wall clock


def test_durations_do_not_follow_the_wall_clock(pattern, tmp_path):
  back = '''
import itertools, time
clock = itertools.count(2e9, -3600)
time.time = lambda: next(clock)
'''
  ended = pattern(*SHORT, '--n_iter=20', '--checkpoint_seconds=0.001', f'--result_dir={tmp_path}', before=back)
  assert ended.code == 0 and ' -' not in ended.stdout.split('ETA')[0], ended
  run = only_run(tmp_path)
  assert 0 < json.loads((run / 'summary.json').read_text())['wall_time_s'] < forks.LIMIT
  assert sorted(int(path.stem) for path in (run / 'checkpoints').iterdir()) == [19, 20]


def test_no_duration_is_measured_by_the_wall_clock():
  for path in conftest.ROOT.glob('Figure_*/*.py'):
    assert 'time.time()' not in path.read_text(encoding='utf-8'), path


# ---------------------------------------------------------------------------------------------------------------------
# M, N, R: numbers


def test_weights_that_are_not_finite_are_never_written_as_good(pattern, tmp_path):
  """The update after the last loss that anybody looked at."""
  folder = tmp_path / 'a'
  says(pattern(*SHORT, '--n_iter=1', '--learning_rate=1e38', f'--result_dir={folder}'), 'w_rec', 'learning rate')
  run = only_run(folder)
  assert not list((run / 'checkpoints').iterdir()) and not (run / 'final_weights.npz').exists()
  assert not (run / 'summary.json').exists()


def test_the_last_good_weights_stay(pattern, finished, tmp_path):
  shutil.copytree(finished / SCRIPT, tmp_path / SCRIPT)
  run = only_run(tmp_path)
  config = json.loads((run / 'config.json').read_text())
  config['flags']['learning_rate'] = 1e38
  (run / 'config.json').write_text(json.dumps(config))
  before = {path: path.read_bytes() for path in [run / 'final_weights.npz', *(run / 'checkpoints').iterdir()]}
  ended = pattern(*SHORT, '--n_iter=3', '--learning_rate=1e38', '--resume', '--run_name=a', f'--result_dir={tmp_path}')
  says(ended, 'checkpoints')
  assert {path: path.read_bytes() for path in before} == before
  assert json.loads((run / 'config.json').read_text()) == config


def test_a_dead_network_does_not_look_like_a_result(pattern, tmp_path):
  ended = pattern(*SHORT, '--n_iter=3', '--thr=1000', f'--result_dir={tmp_path}')
  last = ended.stdout.splitlines()[-2:]
  assert ended.code == 0 and 'no neuron spiked' in last[0] and 'no result' in last[0], ended.stdout
  signs = json.loads((only_run(tmp_path) / 'summary.json').read_text())['signs_of_death']
  assert signs == ['the outputs never changed', 'no neuron spiked']


def test_a_living_network_shows_no_signs_of_death(finished):
  assert json.loads((finished / SCRIPT / 'a' / 'summary.json').read_text())['signs_of_death'] == []


# ---------------------------------------------------------------------------------------------------------------------
# O: what a run learned from


def test_a_run_asked_for_less_than_it_has_done(pattern, finished):
  says(pattern(*SHORT, '--n_iter=1', '--resume', '--run_name=a', f'--result_dir={finished}'), '2 iterations already')


# ---------------------------------------------------------------------------------------------------------------------
# P: our own files read back


def test_damaged_files_of_a_run(finished, tmp_path):
  """60 cuts and changes of each file that a resumed run reads: it goes on, or refuses in one sentence and changes nothing."""
  code = f'''
import pathlib, shutil, sys, warnings
sys.path[:0] = [{str(conftest.FIGURE_3)!r}, {str(conftest.TESTS)!r}]
import experiment, machine, numpy as np, tensorflow as tf, test_files
from absl import flags
flags.DEFINE_integer('n_rec', 3, '')
flags.FLAGS([sys.argv[0], '--result_dir={tmp_path}', '--run_name=a', '--device=CPU:0'])
flags.FLAGS.device = 'CPU:0'
make = lambda: experiment.Run('s', ('loss', 'error'), dict(w=tf.Variable(np.random.randn(3, 2)), n=tf.Variable(0)))
run = make()
for iteration in run.iterations(3):
  run.log(iteration, loss=1 / iteration, error=None)
machine.Lock.release_all()
flags.FLAGS.resume = True
good = {{path: path.read_bytes() for path in pathlib.Path(run.folder).rglob('*') if path.suffix in ('.json', '.csv', '.npz')}}
rng, outcomes = np.random.default_rng(0), {{}}
for path, content in good.items():
  for variant in test_files.damaged(content, 60, rng):
    for other, whole in good.items():
      other.write_bytes(variant if other == path else whole)
    try:
      make()
      outcome = 'resumed'
    except experiment.UserError as error:
      assert len(str(error).splitlines()) == 1 and run.folder in str(error), error
      assert path.read_bytes() == variant
      outcome = 'refused'
    machine.Lock.release_all()
    outcomes[path.name, outcome] = outcomes.get((path.name, outcome), 0) + 1
print(outcomes)
'''
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=240, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  outcomes = eval(done.stdout.splitlines()[-1])
  assert {name for name, _ in outcomes} == {'config.json', 'metrics.csv', '3.npz'}
  assert all(outcomes[name, 'refused'] > 10 for name in ('config.json', 'metrics.csv', '3.npz')), outcomes


def test_the_checkpoint_before_is_used_if_the_last_is_damaged(pattern, finished, tmp_path):
  shutil.copytree(finished / SCRIPT, tmp_path / SCRIPT)
  run = only_run(tmp_path)
  (run / 'checkpoints' / '2.npz').write_bytes(b'')
  ended = pattern(*SHORT, '--n_iter=2', '--resume', '--run_name=a', f'--result_dir={tmp_path}')
  assert ended.code == 0 and 'warning: ' in ended.stderr
  for name in ('metrics.csv', 'final_weights.npz'):
    assert (run / name).read_bytes() == (finished / SCRIPT / 'a' / name).read_bytes(), name


# ---------------------------------------------------------------------------------------------------------------------
# Q: standard streams


@pytest.mark.parametrize('before', ['import os; os.close(1)', 'import os; os.close(2)', 'import os; os.closerange(0, 3)',
                                    "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)",
                                    'import os, sys; r, w = os.pipe(); os.dup2(w, 1); os.dup2(w, 2); os.close(r); os.close(w)'])
def test_output_that_fails_costs_no_run(pattern, tmp_path, before):
  if 'close' in before and 'pipe' not in before:
    before += '; import sys; sys.stdout = sys.stderr = sys.stdin = None; import machine; machine.open_missing_streams()'
  ended = pattern(*SHORT, '--n_iter=20', f'--result_dir={tmp_path}', before=before)
  assert ended.code == 0, ended
  run = only_run(tmp_path)
  assert len(rows(run)) == 20 and (run / 'final_weights.npz').exists()


def test_streams_closed_from_the_start(tmp_path):
  """And one that breaks: as `python script.py 2>&- | head -1`."""
  command = [sys.executable, str(conftest.FIGURE_3 / f'{SCRIPT}.py'), *SHORT, '--n_iter=30', f'--result_dir={tmp_path}']
  done = subprocess.run(['bash', '-c', '"$@" 2>&- <&- | head -1; exit ${PIPESTATUS[0]}', 'bash', *command], text=True,
                        capture_output=True, timeout=240, check=False)
  assert done.returncode == 0 and done.stdout.count('\n') == 1
  assert len(rows(only_run(tmp_path))) == 30


# ---------------------------------------------------------------------------------------------------------------------
# Other systems


def test_a_run_needs_no_linux(tmp_path):
  code = test_files.WITHOUT_LINUX + f'''
import runpy
sys.argv = [{str(conftest.FIGURE_3 / (SCRIPT + '.py'))!r}, *{SHORT!r}, '--n_iter=2', '--result_dir={tmp_path}']
sys.path.insert(0, {str(conftest.FIGURE_3)!r})
runpy.run_path(sys.argv[0], run_name='__main__')
'''
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=240, check=False)
  assert done.returncode == 0, done.stderr
  assert json.loads((only_run(tmp_path) / 'summary.json').read_text())['peak_memory_mb'] is None


def test_why_there_is_no_gpu_is_said(pattern, tmp_path):
  ended = pattern(*SHORT, '--device=GPU:0', f'--result_dir={tmp_path}')
  says(ended, 'no device GPU:0', 'TensorFlow sees CPU:0')
  assert 'cuda' in ended.errors[0].lower() or 'gpu' in ended.errors[0].lower().replace('gpu:0', '')

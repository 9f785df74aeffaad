"""Troubles that users of such programs meet, kind by kind: nothing is lost, and nothing lies.

Files and comparisons have tests of their own (test_files.py, test_comparison.py), speech has its own, too.
"""
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import conftest
import forks
import test_files

PATTERN = 'tutorial_pattern_generation'
SHORT = ['--seq_len=50', '--do_plot=False']


@pytest.fixture(scope='module')
def toy():
  """toy_training.py, a training of milliseconds, to be called many times."""
  script = forks.Script(conftest.TESTS / 'toy_training.py', conftest.FIGURE_3)
  yield script
  script.close()


@pytest.fixture(scope='module')
def pattern():
  """Pattern generation, likewise."""
  script = forks.Script(conftest.FIGURE_3 / f'{PATTERN}.py')
  yield script
  script.close()


@pytest.fixture
def finished(toy, tmp_path):
  """A finished run of the toy, named `a`."""
  assert toy('--n_iter=2', '--checkpoint_seconds=0', f'--result_dir={tmp_path}', '--run_name=a').code == 0
  return tmp_path / 'toy' / 'a'


def only_run(folder):
  (script,) = folder.iterdir()
  (run,) = script.iterdir()
  return run


def rows(run):
  with open(run / 'metrics.csv', newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file))


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file() and path.parent.name != 'tensorboard'}


def says(ended, *words, code=2):
  """That a call ended with one sentence which has these words."""
  assert (ended.code, len(ended.errors)) == (code, 1) and 'Traceback' not in ended.stderr, ended
  assert all(word in ended.errors[0] for word in words), ended.errors


def wait_for(condition, seconds=120):
  until = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < until
    time.sleep(0.01)


def begun(metrics):
  return metrics.exists() and len(metrics.read_text().splitlines()) > 3


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


def test_an_empty_folder_of_results_is_refused(toy):
  says(toy('--result_dir='), '--result_dir')


def test_a_finished_run_without_its_checkpoints_is_not_begun_anew(toy, finished):
  for path in (finished / 'checkpoints').iterdir():
    path.unlink()
  before = contents(finished)
  says(toy('--resume', '--n_iter=3', f'--result_dir={finished.parent.parent}'), 'checkpoints are gone')
  assert contents(finished) == before


def test_a_flag_that_the_config_lacks_had_its_default(toy, finished):
  """Of a run that was made before the flag was there."""
  config = json.loads((finished / 'config.json').read_text(encoding='utf-8'))
  del config['flags']['n_in']
  (finished / 'config.json').write_text(json.dumps(config), encoding='utf-8')
  flags = ['--resume', '--n_iter=3', f'--result_dir={finished.parent.parent}']
  says(toy(*flags, '--n_in=3'), '--n_in=2 (now 3)')
  assert toy(*flags).code == 0 and len(rows(finished)) == 3


def test_output_that_the_terminal_cannot_show(tmp_path):
  """From Python's first line on: an é in the path, and nothing but ASCII on the streams."""
  done = subprocess.run([sys.executable, str(conftest.TESTS / 'toy_training.py'), f'--result_dir={tmp_path}/é', '--run_name=é'],
                        capture_output=True, env=dict(os.environ, PYTHONIOENCODING='ascii'), timeout=120, check=False)
  assert done.returncode == 0 and b'\\xe9' in done.stdout and b'Traceback' not in done.stderr, done.stderr
  assert len(rows(tmp_path / 'é' / 'toy' / 'é')) == 3


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
  going = toy.start(f'--result_dir={tmp_path}', '--run_name=a', '--sleep=1000')
  wait_for((run / 'metrics.csv').exists)
  time.sleep(0.3)
  os.kill(going[0], signal.SIGINT)
  time.sleep(0.3)
  os.kill(going[0], signal.SIGTERM)
  says(toy.end(going), 'begins anew', 'no checkpoint yet', code=128 + signal.SIGTERM)
  assert not list((run / 'checkpoints').iterdir())
  assert toy(f'--result_dir={tmp_path}', '--run_name=a', '--resume').code == 0 and len(rows(run)) == 3


@pytest.mark.parametrize('seconds', [0.3, 1.0])
def test_ctrl_c_in_the_first_second(seconds):
  script = str(conftest.FIGURE_3 / f'{PATTERN}.py')
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
# M, N, R: numbers


@pytest.mark.parametrize('flag', ['--step=nan', '--step=inf', '--step=-inf', '--step=1e400', '--step=1e39', '--step=fast',
                                  '--checkpoint_seconds=nan', '--checkpoint_seconds=-1', '--n_iter=0', '--n_iter=1.5',
                                  '--n_iter=1e3', '--seed=-1', '--seed=4294967296', '--n_iter=9223372036854775808'])
def test_numbers_out_of_range_are_refused(toy, tmp_path, flag):
  says(toy(flag, f'--result_dir={tmp_path}/r'), flag[2:].partition('=')[0])
  assert not os.listdir(tmp_path)


def test_weights_that_are_not_finite_are_never_written_as_good(toy, finished):
  """The update after the last loss that anybody looked at; the weights and checkpoints from before stay."""
  before = contents(finished)
  flags = ['--resume', '--run_name=a', f'--result_dir={finished.parent.parent}', '--step=3e38']
  says(toy(*flags, '--n_iter=6'), 'NaN or infinity in w_in', 'learning rate')
  for path, content in before.items():
    if path.suffix in ('.npz', '.json'):
      assert path.read_bytes() == content, path
  assert toy(*flags[:-1], '--n_iter=6').code == 0 and len(rows(finished)) == 6


def test_pattern_generation_by_too_large_steps(pattern, tmp_path):
  says(pattern(*SHORT, '--n_iter=1', '--learning_rate=1e38', f'--result_dir={tmp_path}'), 'w_rec', 'learning rate')
  assert {path.name for path in only_run(tmp_path).rglob('*') if path.is_file()} >= {'config.json', 'metrics.csv'}
  assert not list(tmp_path.rglob('*.npz')) and not list(tmp_path.rglob('summary.json'))


@pytest.mark.parametrize('flag, sign', [('--rate=0', 'no neuron spiked'), ('--constant', 'the outputs never changed')])
def test_a_dead_network_does_not_look_like_a_result(toy, tmp_path, flag, sign):
  ended = toy(flag, f'--result_dir={tmp_path}')
  last = ended.stdout.splitlines()[-2]
  assert ended.code == 0 and sign in last and 'no result' in last, ended.stdout
  assert json.loads((only_run(tmp_path) / 'summary.json').read_text())['signs_of_death'] == [sign]


def test_pattern_generation_that_dies(pattern, tmp_path):
  ended = pattern(*SHORT, '--n_iter=2', '--thr=1000', f'--result_dir={tmp_path}')
  assert 'no neuron spiked' in ended.stdout.splitlines()[-2] and ended.stderr.count('no neuron spiked') == 1
  signs = json.loads((only_run(tmp_path) / 'summary.json').read_text())['signs_of_death']
  assert set(signs) == {'the outputs never changed', 'no neuron spiked'}


def test_a_living_network_shows_no_signs_of_death(finished):
  assert json.loads((finished / 'summary.json').read_text())['signs_of_death'] == []


# ---------------------------------------------------------------------------------------------------------------------
# O: what a run is of


@pytest.mark.parametrize('flag, words', [('--data=b', 'other data'), ('--rate=5', '--rate=10.0 (now 5.0)'),
                                         ('--n_iter=1', '2 iterations already'), ('--dtype=float64', '--dtype'),
                                         ('--n_in=3', '--n_in')])
def test_a_run_is_resumed_as_what_it_was_or_not_at_all(toy, finished, flag, words):
  before = contents(finished)
  says(toy('--n_iter=4', '--resume', '--run_name=a', f'--result_dir={finished.parent.parent}', flag), words)
  assert contents(finished) == before


MAKE_CORPUS = '''
import json, os, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import data, phones
rng, folder = np.random.default_rng(int(sys.argv[3])), sys.argv[2]
os.makedirs(folder, exist_ok=True)
for split in data.SPLITS:
  lengths = [12, 15, 9]
  arrays = data.pack([f'dr1/speaker/{k}' for k in range(3)], [rng.standard_normal((n, 41)).astype(np.float32) for n in lengths],
                     [rng.integers(0, 61, n).astype(np.int32) for n in lengths])
  np.savez(os.path.join(folder, f'{split}.npz'), **arrays)
metadata = dict(label='a small corpus', synthetic=True, n_features=41, classes61=phones.PHONES61, classes39=phones.PHONES39,
                outputs={f'{split}.npz': data.sha256(os.path.join(folder, f'{split}.npz')) for split in data.SPLITS})
with open(os.path.join(folder, 'metadata.json'), 'w') as file:
  json.dump(metadata, file)
'''


def test_speech_that_was_processed_anew_is_not_mixed_with_the_old(tmp_path):
  """A run goes on with the corpus it began with, wherever that is now, and refuses another one in its place."""
  figure_2 = conftest.ROOT / 'Figure_2_TIMIT'
  make = lambda folder, seed: subprocess.run([sys.executable, '-c', MAKE_CORPUS, str(figure_2), str(folder), str(seed)],
                                             check=True, timeout=120)
  make(tmp_path / 'corpus', 0)
  script = forks.Script(figure_2 / 'solve_timit_with_framewise_lstm.py')
  try:
    flags = ['--n_lstm=3', '--batch=2', '--test_batch=3', '--plot=False', f'--result_dir={tmp_path}', '--run_name=a']
    assert script(*flags, '--n_epochs=1', f'--dataset={tmp_path}/corpus').code == 0
    (tmp_path / 'corpus').rename(tmp_path / 'moved')
    make(tmp_path / 'corpus', 1)
    run = tmp_path / 'solve_timit_with_framewise_lstm' / 'a'
    before = contents(run)
    says(script(*flags, '--n_epochs=2', '--resume', f'--dataset={tmp_path}/corpus'), 'other data')
    assert contents(run) == before
    ended = script(*flags, '--n_epochs=2', '--resume', f'--dataset={tmp_path}/moved')
    assert ended.code == 0 and len(rows(run)) == 4, ended.stderr
    # Its outputs never change if no weight lets them.
    dead = script(*flags[:-1], '--run_name=b', '--n_epochs=1', '--lr_init=0', f'--dataset={tmp_path}/moved',
                  f'--load={dead_weights(run, tmp_path)}')
    assert 'the outputs never changed' in dead.stdout.splitlines()[-2], dead
  finally:
    script.close()


def dead_weights(run, folder):
  """The weights of a run without those of the readout."""
  with np.load(run / 'final_weights.npz') as arrays:
    nothing = np.zeros_like(arrays['w_out'])  # BPTT's feedback b_out is w_out
    np.savez(folder / 'dead.npz', **dict(arrays, w_out=nothing, b_out=nothing))
  return folder / 'dead.npz'


def test_an_agent_that_never_spikes(tmp_path):
  script = forks.Script(conftest.ROOT / 'Figure_4_and_5_ATARI' / 'main.py')
  try:
    ended = script('--smoke', '--level_name=catch', '--thr=1e6', '--do_plot=False', f'--result_dir={tmp_path}')
    assert ended.code == 0 and 'no neuron spiked' in ended.stdout.splitlines()[-2], ended
    assert 'no neuron spiked' in json.loads((only_run(tmp_path) / 'summary.json').read_text())['signs_of_death']
    played = script('--smoke', '--level_name=catch', '--thr=1e6', '--mode=eval', '--do_plot=False', f'--result_dir={tmp_path}',
                    f'--checkpoint={only_run(tmp_path)}/final_weights.npz')
    assert 'no neuron spiked' in played.stdout.splitlines()[-2], played
    for flag in ('--reg_factor_cnn=0', '--tau=nan', '--thr=-1'):
      says(script('--smoke', '--level_name=catch', f'--result_dir={tmp_path}', flag), flag[2:].partition('=')[0])
  finally:
    script.close()


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


def test_the_checkpoint_before_is_used_if_the_last_is_damaged(toy, finished):
  before = contents(finished)
  (finished / 'checkpoints' / '2.npz').write_bytes(b'')
  ended = toy('--n_iter=2', '--resume', '--run_name=a', f'--result_dir={finished.parent.parent}')
  assert ended.code == 0 and 'warning: ' in ended.stderr
  for name in ('metrics.csv', 'final_weights.npz', 'checkpoints/2.npz'):
    assert name.endswith('.csv') or np.load(finished / name).files, name
  assert (finished / 'metrics.csv').read_bytes() == before[finished / 'metrics.csv']


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


# ---------------------------------------------------------------------------------------------------------------------
# Q: standard streams


@pytest.mark.parametrize('before', [
    "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)",
    'import os, sys; r, w = os.pipe(); os.dup2(w, 1); os.dup2(w, 2); os.close(r); os.close(w)'], ids=['full', 'broken pipe'])
def test_output_that_fails_costs_no_run(toy, tmp_path, before):
  assert toy('--n_iter=20', f'--result_dir={tmp_path}', before=before).code == 0
  run = only_run(tmp_path)
  assert len(rows(run)) == 20 and (run / 'final_weights.npz').exists()


def test_streams_closed_from_the_start(tmp_path):
  """And one that breaks: as `python script.py 2>&- | head -1`."""
  command = [sys.executable, str(conftest.TESTS / 'toy_training.py'), '--n_iter=30', f'--result_dir={tmp_path}']
  done = subprocess.run(['bash', '-c', '"$@" 2>&- <&- | head -1; exit ${PIPESTATUS[0]}', 'bash', *command], text=True,
                        capture_output=True, timeout=240, check=False)
  assert done.returncode == 0 and done.stdout.count('\n') == 1
  assert len(rows(only_run(tmp_path))) == 30


# ---------------------------------------------------------------------------------------------------------------------
# Other systems


def test_a_run_needs_no_linux(tmp_path):
  code = test_files.WITHOUT_LINUX + f'''
import runpy
sys.argv = [{str(conftest.FIGURE_3 / (PATTERN + '.py'))!r}, *{SHORT!r}, '--n_iter=2', '--result_dir={tmp_path}']
sys.path.insert(0, {str(conftest.FIGURE_3)!r})
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

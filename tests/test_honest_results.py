"""Troubles that users of such programs meet, kind by kind: nothing lies, neither numbers nor what a run is of."""
# ruff: noqa: F811
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import conftest
from trouble import contents, finished, only_run, pattern, rows, says, SHORT, toy  # noqa: F401, fixtures


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


def test_an_agent_that_never_spikes(toy, tmp_path):
  main = toy.also(conftest.ROOT / 'Figure_4_and_5_ATARI' / 'main.py')
  flags = ['--smoke', '--level_name=catch', '--do_plot=False', f'--result_dir={tmp_path}']
  for flag in ('--reg_factor_cnn=0', '--tau=nan', '--thr=-1'):
    says(main(*flags, flag), flag[2:].partition('=')[0])
  ended = main(*flags, '--thr=1e6')
  assert ended.code == 0 and 'no neuron spiked' in ended.stdout.splitlines()[-2], ended
  assert 'no neuron spiked' in json.loads((only_run(tmp_path) / 'summary.json').read_text())['signs_of_death']
  played = main(*flags, '--thr=1e6', '--mode=eval', f'--checkpoint={only_run(tmp_path)}/final_weights.npz')
  assert 'no neuron spiked' in played.stdout.splitlines()[-2], played


# ---------------------------------------------------------------------------------------------------------------------
# O: what a run is of


@pytest.mark.parametrize('flag, words', [('--data=b', 'other data'), ('--rate=5', '--rate=10.0 (now 5.0)'),
                                         ('--n_iter=1', '2 iterations already'), ('--dtype=float64', '--dtype'),
                                         ('--n_in=3', '--n_in')])
def test_a_run_is_resumed_as_what_it_was_or_not_at_all(toy, finished, flag, words):
  before = contents(finished)
  says(toy('--n_iter=4', '--resume', '--run_name=a', f'--result_dir={finished.parent.parent}', flag), words)
  assert contents(finished) == before


@pytest.mark.parametrize('lost', [(), ('summary.json',), ('final_weights.npz',)])
def test_a_finished_run_without_its_checkpoints_is_not_begun_anew(toy, finished, lost):
  for path in [*(finished / 'checkpoints').iterdir(), *(finished / name for name in lost)]:
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


MAKE_CORPUS = '''
import json, os, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import data, phones
rng, lengths = np.random.default_rng(0), [12, 15, 9]
for folder in sys.argv[2:]:
  os.makedirs(folder)
  for split in data.SPLITS:
    arrays = data.pack([f'dr1/speaker/{k}' for k in range(3)], [rng.standard_normal((n, 41)).astype(np.float32) for n in lengths],
                       [rng.integers(0, 61, n).astype(np.int32) for n in lengths])
    np.savez(os.path.join(folder, f'{split}.npz'), **arrays)
  metadata = dict(label='a small corpus', synthetic=True, n_features=41, classes61=phones.PHONES61, classes39=phones.PHONES39,
                  outputs={f'{split}.npz': data.sha256(os.path.join(folder, f'{split}.npz')) for split in data.SPLITS})
  with open(os.path.join(folder, 'metadata.json'), 'w') as file:
    json.dump(metadata, file)
'''


def test_speech_that_was_processed_anew_is_not_mixed_with_the_old(toy, tmp_path):
  """A run goes on with the corpus it began with, wherever that is now, and refuses another one in its place."""
  figure_2 = conftest.ROOT / 'Figure_2_TIMIT'
  subprocess.run([sys.executable, '-c', MAKE_CORPUS, str(figure_2), str(tmp_path / 'moved'), str(tmp_path / 'corpus')], check=True,
                 timeout=120)
  script = toy.also(figure_2 / 'solve_timit_with_framewise_lstm.py')
  flags = ['--n_lstm=3', '--batch=2', '--test_batch=3', '--plot=False', '--n_epochs=1', f'--result_dir={tmp_path}']
  assert script(*flags, '--run_name=a', f'--dataset={tmp_path}/moved').code == 0
  run = tmp_path / 'solve_timit_with_framewise_lstm' / 'a'
  before = contents(run)
  says(script(*flags, '--run_name=a', '--resume', f'--dataset={tmp_path}/corpus'), 'other data')
  assert contents(run) == before
  (tmp_path / 'moved').rename(tmp_path / 'again')
  ended = script(*flags, '--run_name=a', '--resume', f'--dataset={tmp_path}/again')
  assert ended.code == 0 and len(rows(run)) == 2, ended.stderr
  # Its outputs never change if no weight lets them.
  dead = script(*flags, f'--dataset={tmp_path}/again', f'--checkpoint={dead_weights(run, tmp_path)}')
  assert 'the outputs never changed' in dead.stdout.splitlines()[-2], dead


def dead_weights(run, folder):
  """The weights of a run without those of the readout."""
  with np.load(run / 'final_weights.npz') as arrays:
    nothing = np.zeros_like(arrays['w_out'])  # BPTT's feedback b_out is w_out
    np.savez(folder / 'dead.npz', **dict(arrays, w_out=nothing, b_out=nothing))
  return folder / 'dead.npz'


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


@pytest.mark.parametrize('change, words', [
    (lambda text: text.replace('2,0.5,', '3,0.5,'), 'where iteration 2 should be there is 3'),
    (lambda text: text.replace('1,1.0,', '2,1.0,'), 'where iteration 1 should be there is 2'),
    (lambda text: text.replace('2,0.5,\n', ''), 'has 1 rows where the checkpoint is at iteration 2'),
    (lambda text: text.replace('2,0.5,', '2.5,0.5,'), "'2.5' in row 2 is no iteration"),
    (lambda text: text.replace('2,0.5,', '2,nan,'), "'nan' in row 2 is no loss"), (lambda text: '', 'has no column')])
def test_metrics_that_are_not_those_of_the_checkpoint(toy, finished, change, words):
  path = finished / 'metrics.csv'
  text = path.read_text()
  path.write_text(change(text))
  assert change(text) != text
  before = contents(finished)
  says(toy('--n_iter=4', '--resume', f'--result_dir={finished.parent.parent}'), 'metrics.csv', words)
  assert contents(finished) == before


def test_numbers_that_are_not_finite_are_empty_cells(toy, tmp_path):
  """So that a run that has some can be resumed."""
  infinite = 'import experiment; log = experiment.Run.log; ' \
             'experiment.Run.log = lambda run, k, **values: log(run, k, **dict(values, error=float("inf")))'
  flags = [f'--result_dir={tmp_path}', '--run_name=a']
  assert toy(*flags, '--n_iter=2', before=infinite).code == 0
  assert toy(*flags, '--n_iter=3', '--resume').code == 0
  assert [row['error'] for row in rows(only_run(tmp_path))] == ['', '', repr(3 / 7)]


@pytest.mark.parametrize('arrays, words', [
    (dict(w_in=np.array([[None, 1], [2, 3]], object)), 'not a readable'), (dict(w_in=np.full((2, 2), 1e300)), 'too large for float32'),
    (dict(w_in=np.ones((2, 2), complex)), 'no numbers'), (dict(w_in=np.ones((2, 2, 1))), 'shape'), (dict(w_in=np.ones(0)), 'shape'),
    (dict(w_in=np.full((2, 2), np.nan)), 'NaN'), (dict(other=np.ones((2, 2))), 'lacks'), (dict(w_in=np.array('text')), 'no numbers')])
def test_weights_that_are_none(toy, tmp_path, arrays, words):
  np.savez(tmp_path / 'weights.npz', **arrays)
  says(toy(f'--init_from={tmp_path}/weights.npz', f'--result_dir={tmp_path}/r'), 'weights.npz', words)
  assert os.listdir(tmp_path) == ['weights.npz']


def test_weights_that_are_no_file(toy, tmp_path):
  os.mkfifo(tmp_path / 'pipe.npz')
  for path, words in ((tmp_path / 'pipe.npz', 'no regular file'), (tmp_path, 'no regular file'), ('/dev/zero', 'no regular file'),
                      (tmp_path / 'nowhere.npz', 'no file')):
    says(toy(f'--init_from={path}', f'--result_dir={tmp_path}/r', limit=30), words)

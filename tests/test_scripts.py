"""The scripts as a user calls them: what they write, that runs repeat and resume, and how they meet bad input."""
import csv
import hashlib
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

import forks
import oracle

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'Figure_3_and_S7_e-prop_tutorials'
EVIDENCE, PATTERN = 'tutorial_evidence_accumulation_with_alif', 'tutorial_pattern_generation'


def command(script, *arguments):
  path = FOLDER / f'{script}.py'
  return [sys.executable, str(path if path.exists() else ROOT / f'{script}.py'), *map(str, arguments)]


PROCESS = []  # the one that has imported TensorFlow


@pytest.fixture(scope='module', autouse=True)
def closed_at_the_end():
  yield
  while PROCESS:
    PROCESS.pop().close()


def script_of(name):
  """A script, ready to be called."""
  if not PROCESS:
    PROCESS.append(forks.Script(FOLDER / f'{PATTERN}.py'))
  return PROCESS[0].also(command(name)[1])


def call(name, *arguments, expect=0):
  """Runs a script to its end; returns it with its output as text."""
  done = script_of(name)(*arguments)
  assert done.code == expect, done.stdout + done.stderr
  return done


def metrics(folder):
  with open(folder / 'metrics.csv', newline='') as file:
    return list(csv.DictReader(file))


def losses(folder):
  return np.array([float(row['train_loss']) for row in metrics(folder)])


def test_evidence_accumulation_smoke(tmp_path):
  done = call(EVIDENCE, '--smoke', '--eprop', '--feedback=adaptive', '--log_gradient_angle', '--gradient_angle_every=2',
              f'--result_dir={tmp_path}', '--run_name=a')
  run = tmp_path / EVIDENCE / 'a'
  for name in ('config.json', 'summary.json', 'metrics.csv', 'final_weights.npz', 'figure.png', 'learning_curve.png'):
    assert (run / name).stat().st_size > 0, name
  rows = metrics(run)
  assert [row['iteration'] for row in rows] == ['1', '2', '3']
  assert [bool(row['validation_error']) for row in rows] == [False, True, False]
  assert [bool(row['cos_bptt_w_rec']) for row in rows] == [False, True, False]
  assert abs(float(rows[1]['cos_bptt_w_out']) - 1) < 1e-5 and 0 < abs(float(rows[1]['cos_bptt_w_rec'])) < 1 - 1e-4
  assert abs(float(rows[0]['train_loss']) - np.log(2)) < 0.3
  config, summary = (json.loads((run / name).read_text()) for name in ('config.json', 'summary.json'))
  assert config['flags']['feedback'] == 'adaptive' and config['versions']['tensorflow'] and config['seed'] == 0
  assert summary['iterations'] == 3 and 0 <= summary['test_error'] <= 1 and summary['wall_time_s'] > 0
  assert 'published:' in done.stdout and str(run) in done.stdout and 'ETA' in done.stdout
  with np.load(run / 'final_weights.npz', allow_pickle=False) as weights:
    assert {name: weights[name].shape for name in weights} == dict(w_in=(40, 100), w_rec=(100, 100), w_out=(100, 2),
                                                                   b_out=(100, 2))
    assert np.all(np.diag(weights['w_rec']) == 0)


def test_pattern_generation_smoke(tmp_path):
  done = call(PATTERN, '--smoke', '--n_out=3', '--gradient_check', '--log_gradient_angle', f'--result_dir={tmp_path}',
              '--run_name=a')
  run = tmp_path / PATTERN / 'a'
  assert len(metrics(run)) == 20 and losses(run)[-1] < losses(run)[0]
  assert 'published:  not available' in done.stdout and (run / 'figure.png').stat().st_size > 0


def adam_oracle(n_iter, gradient, weights, learning_rate):
  """Kingma and Ba's Adam with TensorFlow 1's epsilon; weights are changed in place."""
  moments = [(np.zeros_like(w), np.zeros_like(w)) for w in weights]
  for k in range(1, n_iter + 1):
    for w, g, (m, v) in zip(weights, gradient(k), moments):
      m += 0.1 * (g - m)
      v += 0.001 * (g ** 2 - v)
      w -= learning_rate * np.sqrt(1 - 0.999 ** k) / (1 - 0.9 ** k) * m / (np.sqrt(v) + 1e-8)


def evidence_arrays():
  """Weights, and inputs that differ in each of 3 iterations, for 6 LIF and 6 ALIF neurons."""
  rng = np.random.default_rng(3)
  return dict(w_in=rng.standard_normal((8, 12)), w_rec=rng.standard_normal((12, 12)) / 3, w_out=rng.standard_normal((12, 2)),
              b_out=rng.standard_normal((12, 2)), inputs=(rng.random((3, 3, 200, 8)) < 0.1).astype(np.float64),
              labels=rng.integers(0, 2, (3, 3)))


def evidence_oracle(arrays, feedback, rate_kind):
  """The losses of 3 iterations with Adam, in NumPy."""
  alpha, rho = np.exp(-1 / 20), np.exp(-1 / 2000)
  neurons = oracle.Neurons(12, 0.6, 20, 2000, np.repeat([0, 1.7 * (1 - rho) / (1 - alpha)], 6), 5)
  weights = [arrays[name].copy() for name in ('w_in', 'w_rec', 'w_out')]
  np.fill_diagonal(weights[1], 0)
  weight = np.zeros((200, 1, 1))
  weight[-150:] = 1 / 450
  seen = []

  def gradient(k):
    x, target = arrays['inputs'][k - 1].swapaxes(0, 1), np.eye(2)[arrays['labels'][k - 1]][None]
    b = {'bptt': None, 'symmetric': weights[2], 'random': arrays['b_out']}[feedback]
    result = oracle.readout_gradient(neurons, x, target, weight, *weights, feedback=b, kappa=alpha, cost=1.0, f0=0.01,
                                     rate_kind=rate_kind)
    seen.append(result.task_loss)
    return result[:3]

  adam_oracle(3, gradient, weights, 0.005)
  return np.array(seen), weights


@pytest.mark.parametrize('feedback, impl, rate_kind', [
    ('bptt', 'adjoint', 'simple'), ('symmetric', 'adjoint', 'simple'), ('random', 'hardcoded', 'online'),
    ('random', 'autodiff', 'online')])
def test_evidence_accumulation_repeats_another_simulators_run(tmp_path, feedback, impl, rate_kind):
  arrays = evidence_arrays()
  np.savez(tmp_path / 'arrays.npz', **arrays)
  rule = [] if feedback == 'bptt' else ['--eprop', f'--feedback={feedback}']
  call(EVIDENCE, f'--init_from={tmp_path}/arrays.npz', '--n_regular=6', '--n_adaptive=6', '--n_iter=3', '--dtype=float64',
       f'--eprop_impl={impl}', f'--f_regularization_type={rate_kind}', '--do_plot=False', f'--result_dir={tmp_path}',
       '--run_name=a', *rule)
  run = tmp_path / EVIDENCE / 'a'
  want, weights = evidence_oracle(arrays, feedback, rate_kind)
  np.testing.assert_allclose(losses(run), want, rtol=1e-12)
  assert abs(want[0] - want[1]) > 1e-3
  with np.load(run / 'final_weights.npz') as final:
    for name, w in zip(('w_in', 'w_rec', 'w_out'), weights):
      np.testing.assert_allclose(final[name], w, atol=1e-10)


@pytest.mark.parametrize('feedback', ['symmetric', 'bptt'])
def test_pattern_generation_repeats_another_simulators_run(tmp_path, feedback):
  with np.load(ROOT / 'tests' / 'data' / 'figureS7_lif.npz') as golden:
    arrays = {name: golden[name].astype(np.float64)[..., :120, :] if name in ('inputs', 'targets') else
              golden[name].astype(np.float64) for name in ('w_in', 'w_rec', 'w_out', 'b_out', 'inputs', 'targets')}
  arrays['targets'] = np.repeat(arrays['targets'], 2, 0)
  np.savez(tmp_path / 'arrays.npz', **arrays)
  call(PATTERN, f'--init_from={tmp_path}/arrays.npz', '--n_rec=25', '--n_iter=3', '--learning_rate=1e-3', '--dtype=float64',
       '--do_plot=False', f'--result_dir={tmp_path}', '--run_name=a',
       '--eprop_or_bptt=bptt' if feedback == 'bptt' else f'--feedback={feedback}')
  neurons = oracle.Neurons(25, 0.03, 30, scale_input=True)
  weights = [arrays[name].copy() for name in ('w_in', 'w_rec', 'w_out')]
  want = []
  for _ in range(3):
    result = oracle.readout_gradient(
        neurons, arrays['inputs'].swapaxes(0, 1), arrays['targets'].swapaxes(0, 1), np.ones((120, 1, 1)), *weights,
        feedback=None if feedback == 'bptt' else weights[2], kappa=np.exp(-1 / 30), loss='squared_error', cost=150.0, f0=0.01)
    want.append(result.task_loss)
    weights = [w - 1e-3 * g for w, g in zip(weights, result)]
  np.testing.assert_allclose(losses(tmp_path / PATTERN / 'a'), want, rtol=1e-12)


def test_final_weights_are_read_back(tmp_path):
  """Six iterations in one run are five and, from their final weights, one more (gradient descent has no memory)."""
  flags = ['--seq_len=200', '--do_plot=False', f'--result_dir={tmp_path}', '--dtype=float64']
  call(PATTERN, *flags, '--n_iter=6', '--run_name=six')
  call(PATTERN, *flags, '--n_iter=5', '--run_name=five')
  runs = tmp_path / PATTERN
  call(PATTERN, *flags, '--n_iter=1', '--run_name=one', f'--init_from={runs}/five/final_weights.npz')
  np.testing.assert_allclose(losses(runs / 'one'), losses(runs / 'six')[5:], rtol=1e-13)


@pytest.mark.parametrize('script, flags, checkpoint_seconds', [
    (EVIDENCE, ['--eprop', '--feedback=adaptive', '--n_batch=4', '--n_iter=50', '--validate_every=2', '--stop_crit=0'], 0),
    (EVIDENCE, ['--n_batch=4', '--n_iter=50', '--validate_every=3', '--stop_crit=0'], 0.5),
    (PATTERN, ['--seq_len=500', '--n_iter=200', '--n_out=2'], 0.2)])
def test_killed_and_resumed_is_as_uninterrupted(tmp_path, script, flags, checkpoint_seconds):
  flags = [*flags, '--do_plot=False', f'--checkpoint_seconds={checkpoint_seconds}', f'--result_dir={tmp_path}']
  call(script, *flags, '--run_name=whole')
  whole, broken = tmp_path / script / 'whole', tmp_path / script / 'broken'
  rng = np.random.default_rng()
  going = script_of(script).start(*flags, '--run_name=broken')
  wanted, until = rng.integers(2, len(metrics(whole)) // 2), time.monotonic() + 240
  while not (broken / 'metrics.csv').exists() or len(metrics(broken)) < wanted:
    assert time.monotonic() < until
    time.sleep(0.02)
  time.sleep(rng.uniform(0, 0.1))
  os.kill(going[0], signal.SIGKILL)
  script_of(script).end(going)
  assert not (broken / 'summary.json').exists() or script == PATTERN
  call(script, *flags, '--run_name=broken', '--resume')
  assert (broken / 'metrics.csv').read_text() == (whole / 'metrics.csv').read_text()
  with np.load(whole / 'final_weights.npz') as a, np.load(broken / 'final_weights.npz') as b:
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope='module')
def finished_run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('finished')
  call(PATTERN, '--seq_len=50', '--n_iter=2', '--do_plot=False', f'--result_dir={folder}', '--run_name=a')
  return folder


def copy_of_run(finished_run, folder):
  shutil.copytree(finished_run / PATTERN, folder / PATTERN)
  return folder / PATTERN / 'a'


SHORT = ['--seq_len=50', '--n_iter=2', '--do_plot=False']


def bad_cases(folder, finished_run):
  """name: (script, flags, words of the message)."""
  arrays = dict(w_in=np.ones((40, 12)), w_rec=np.ones((12, 12)), w_out=np.ones((12, 2)))
  saved = {'good': arrays, 'wrong_shape': dict(arrays, w_rec=np.zeros((12, 11))), 'incomplete': {'w_in': arrays['w_in']},
           'nan': dict(arrays, w_out=np.full((12, 2), np.nan)), 'text': dict(arrays, w_out=np.full((12, 2), 'a')),
           'no_labels': dict(arrays, inputs=np.zeros((3, 200, 40))),
           'wrong_labels': dict(arrays, inputs=np.zeros((3, 200, 40)), labels=np.array([0, 1, 2]))}
  for name, values in saved.items():
    np.savez(folder / f'{name}.npz', **values)
  content = (folder / 'good.npz').read_bytes()
  (folder / 'torn.npz').write_bytes(content[:len(content) // 2])
  (folder / 'broken.npz').write_bytes(content[:300] + bytes(200) + content[500:])
  (folder / 'file').write_text('')

  resumed = ['--resume', '--run_name=a', *SHORT]
  torn, renamed = (copy_of_run(finished_run, folder / name) / 'checkpoints' for name in ('torn', 'renamed'))
  for path in torn.iterdir():
    path.write_bytes(path.read_bytes()[:100])
  for path in renamed.iterdir():
    path.rename(path.with_suffix('.index'))
  foreign = copy_of_run(finished_run, folder / 'foreign')
  config = json.loads((foreign / 'config.json').read_text())
  config['flags']['n_rec'] = 50
  (foreign / 'config.json').write_text(json.dumps(config))

  init = lambda name, *more: [f'--init_from={folder}/{name}.npz', '--n_regular=6', '--n_adaptive=6', f'--result_dir={folder}', *more]
  return {
      'n_batch 0': (EVIDENCE, ['--n_batch=0'], 'n_batch'),
      'no neurons': (EVIDENCE, ['--n_regular=0', '--n_adaptive=0'], 'neurons'),
      'unknown flag': (EVIDENCE, ['--n_bach=3'], 'n_bach'),
      'unknown value': (EVIDENCE, ['--feedback=other'], 'symmetric'),
      'no number': (PATTERN, ['--learning_rate=fast'], 'learning_rate'),
      'argument without flag': (PATTERN, ['fast'], 'fast'),
      'hardcoded BPTT': (EVIDENCE, ['--eprop_impl=hardcoded'], '--eprop'),
      'no such device': (EVIDENCE, ['--smoke', '--device=GPU:9', f'--result_dir={folder}'], 'GPU:9'),
      'init_from missing': (EVIDENCE, init('nowhere'), 'nowhere.npz'),
      'init_from torn': (EVIDENCE, init('torn'), 'torn.npz'),
      'init_from damaged': (EVIDENCE, init('broken'), 'broken.npz'),
      'init_from incomplete': (EVIDENCE, init('incomplete'), 'w_rec'),
      'init_from of another shape': (EVIDENCE, init('wrong_shape'), '[12, 12]'),
      'init_from of another size': (EVIDENCE, init('good', '--n_adaptive=7'), '[40, 13]'),
      'init_from with NaN': (EVIDENCE, init('nan'), 'NaN'),
      'init_from with text': (EVIDENCE, init('text'), 'w_out'),
      'inputs without labels': (EVIDENCE, init('no_labels'), 'labels'),
      'labels beyond the outputs': (EVIDENCE, init('wrong_labels'), 'labels'),
      'result_dir is a file': (PATTERN, [*SHORT, f'--result_dir={folder}/file'], 'file'),
      'result_dir cannot be written': (PATTERN, [*SHORT, '--result_dir=/proc/results'], '/proc/results'),
      'nothing to resume': (PATTERN, [*SHORT, '--resume', f'--result_dir={folder}/none'], 'no run'),
      'run exists': (PATTERN, [*SHORT, '--run_name=a', f'--result_dir={finished_run}'], '--resume'),
      'resumed with other flags': (PATTERN, [*resumed, '--reg=1', f'--result_dir={finished_run}'], '--reg'),
      'checkpoint torn': (PATTERN, [*resumed, f'--result_dir={folder}/torn'], 'checkpoint'),
      'checkpoint with another name': (PATTERN, [*resumed, f'--result_dir={folder}/renamed'], 'checkpoint'),
      'checkpoint of another network': (PATTERN, [*resumed, '--n_rec=50', f'--result_dir={folder}/foreign'], 'checkpoint'),
      'loss not finite': (PATTERN, ['--seq_len=200', '--n_iter=60', '--learning_rate=1e30', '--do_plot=False',
                                    f'--result_dir={folder}/diverged'], '--learning_rate'),
      'unknown rule': ('compare_learning_rules', ['--rules=magic', f'--result_dir={folder}'], 'magic'),
      'nothing to replot': ('compare_learning_rules', ['--replot', f'--out={folder}/empty'], 'no file'),
  }


def test_bad_input_ends_with_one_sentence_and_exit_code_2(tmp_path, finished_run):
  cases = bad_cases(tmp_path, finished_run)
  files = lambda: {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in finished_run.rglob('*') if path.is_file()}
  before = files()
  for name, (script, flags, words) in cases.items():
    done = script_of(script)(*flags)
    assert (done.code, len(done.errors)) == (2, 1), f'{name}: exit code {done.code}\n{done.stdout}{done.stderr}'
    assert words in done.errors[0], f'{name}: {done.errors[0]}'
    assert 'Traceback' not in done.stderr, f'{name}: {done.stderr}'
  assert files() == before
  assert not list(tmp_path.rglob('*.part*'))


def test_checkpoint_that_cannot_be_written(tmp_path, finished_run):
  """Files may not grow beyond 16 kB, which a checkpoint does: as on a full disk, the last good one stays."""
  run = copy_of_run(finished_run, tmp_path)
  before = {path.name: path.read_bytes() for path in (run / 'checkpoints').iterdir()}
  done = subprocess.run(['bash', '-c', 'ulimit -f 16; exec "$@"', 'bash', *command(  # a process of its own, as a user has it
      PATTERN, *SHORT, '--n_iter=3', '--resume', '--run_name=a', f'--result_dir={tmp_path}')], capture_output=True, text=True,
      timeout=300, check=False)
  assert done.returncode == 2 and 'the checkpoint of iteration 3 in' in done.stderr, done.stdout + done.stderr
  assert all((run / 'checkpoints' / name).read_bytes() == content for name, content in before.items())
  call(PATTERN, *SHORT, '--n_iter=3', '--resume', '--run_name=a', f'--result_dir={tmp_path}')
  assert len(metrics(run)) == 3


def test_silent_network_is_reported(tmp_path):
  done = call(PATTERN, *SHORT, '--f0=0', f'--result_dir={tmp_path}')
  assert 'no neuron spiked' in done.stderr and done.stderr.count('no neuron spiked') == 1


def test_same_seed_same_result_other_seed_another(tmp_path):
  for name, seed in (('a', 1), ('b', 1), ('c', 2)):
    call(PATTERN, *SHORT, f'--seed={seed}', f'--run_name={name}', f'--result_dir={tmp_path}')
  a, b, c = ((tmp_path / PATTERN / name / 'metrics.csv').read_text() for name in 'abc')
  assert a == b and a != c


def test_comparison_trains_resumes_and_replots(tmp_path):
  flags = ['--smoke', '--rules=bptt,eprop_random', f'--result_dir={tmp_path}', f'--out={tmp_path}/out']
  first = call('compare_learning_rules', *flags, '--task=pattern_generation', '--n_iter=3')
  assert '2/2 runs ended, 0 missing' in first.stdout
  out = tmp_path / 'out'
  table = (out / 'comparison_pattern_generation.csv').read_text()
  rows = list(csv.DictReader(table.splitlines()))
  assert [(row['rule'], row['iteration']) for row in rows] == [(r, str(k)) for r in ('bptt', 'eprop_random') for k in (1, 2, 3)]
  assert rows[2]['wall_time_s'] and not rows[1]['wall_time_s']
  pictures = sorted(out.glob('*.png'))
  assert len(pictures) == 2
  for picture in pictures:
    picture.unlink()
  call('compare_learning_rules', *flags, '--task=pattern_generation', '--n_iter=3', '--replot')
  assert sorted(out.glob('*.png')) == pictures and (out / 'comparison_pattern_generation.csv').read_text() == table


@pytest.mark.parametrize('script', ['numerical_verification_eprop_factorization_vs_BPTT',
                                    'numerical_verification_eprop_hardcoded_vs_autodiff'])
def test_numerical_verification(tmp_path, script):
  done = call(script, '--smoke', f'--result_dir={tmp_path}')
  lines = [line for line in done.stdout.splitlines() if line.startswith('max relative error: ')]
  assert len(lines) == 1 and 0 < float(lines[0].split(': ')[1]) < 1e-11
  assert list(tmp_path.rglob('*.png'))


SHARED = ('lsnn', 'eprop', 'files', 'machine', 'program', 'drawing', 'palette', 'experiment', 'checkpoints', 'comparison', 'distribution',
          'replicas', 'devices')


def test_shared_files_are_the_same_in_all_folders():
  """Mend with: for d in Figure_2_TIMIT Figure_4_and_5_ATARI; do cp Figure_3*/{lsnn,eprop,files,machine,program,drawing,palette,experiment,checkpoints,comparison,distribution,replicas,devices}.py $d; done"""
  folders = [folder for folder in ROOT.glob('Figure_*') if folder.is_dir()]
  assert FOLDER in folders
  for name in SHARED:
    assert len({(folder / f'{name}.py').read_bytes() for folder in folders}) == 1, name
  # No folder has a copy of another file of the same name that this list does not know of.
  names = [{path.stem for path in folder.glob('*.py')} for folder in folders]
  own = {'compare_learning_rules', 'plots', 'training'}
  assert {name for k, of in enumerate(names) for name in of if any(name in other for other in names[:k])} == set(SHARED) | own

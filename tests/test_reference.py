"""Reference data for other implementations: complete, right by an independent simulation, and readable without TensorFlow."""
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import oracle
from files import UserError
import reference

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'Figure_3_and_S7_e-prop_tutorials'
EXAMPLES = {
    'evidence_accumulation': ('tutorial_evidence_accumulation_with_alif',
                              ['--eprop', '--feedback=random', '--n_regular=3', '--n_adaptive=3']),
    'pattern_generation': ('tutorial_pattern_generation', ['--n_rec=10', '--learning_rate=1e-3']),
}


def load(path):
  with np.load(path) as file:
    return dict(file)


def run(script, *arguments):
  return subprocess.run([sys.executable, FOLDER / f'{script}.py', *map(str, arguments)], capture_output=True, text=True,
                        timeout=300, check=False)


def read(path):
  """The exit code and output of read_reference.py."""
  done = run('read_reference', path)
  return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize('example', EXAMPLES)
def test_reader_confirms_the_committed_examples_and_notices_changes(example, tmp_path):
  arrays = load(FOLDER / 'reference' / f'{example}.npz')
  assert read(FOLDER / 'reference' / f'{example}.npz')[0] == 0
  for name, change in (('psi', 1 + 1e-9), ('learning_signal', 1 - 1e-9), ('kappa', 1 + 1e-9), ('gradient_w_rec', 1 + 1e-9)):
    np.savez(tmp_path / 'changed.npz', **{**arrays, name: change * arrays[name]})
    code, output = read(tmp_path / 'changed.npz')
    assert code == 1 and 'difference' in output, f'{name}: {output}'


def test_reader_refuses_what_it_cannot_compare(tmp_path):
  arrays = load(FOLDER / 'reference' / f'{next(iter(EXAMPLES))}.npz')
  np.savez(tmp_path / 'nan.npz', **dict(arrays, psi=np.nan * arrays['psi']))
  assert read(tmp_path / 'nan.npz')[0] == 1
  np.savez(tmp_path / 'other.npz', z=arrays['z'])
  for path in ('nowhere.npz', tmp_path, tmp_path / 'other.npz'):
    code, output = read(path)
    assert code == 2 and output.startswith('error: ') and output.count('\n') == 1, output


def test_reader_needs_numpy_alone(tmp_path):
  """With a folder on the path whose tensorflow, keras and experiment cannot be imported."""
  shutil.copy(FOLDER / 'read_reference.py', tmp_path)
  for name in ('tensorflow', 'keras', 'experiment', 'lsnn'):
    (tmp_path / f'{name}.py').write_text('raise ImportError')
  done = subprocess.run([sys.executable, 'read_reference.py', FOLDER / 'reference' / 'pattern_generation.npz'], cwd=tmp_path,
                        capture_output=True, text=True, timeout=60, check=False)
  assert done.returncode == 0, done.stderr
  assert len((FOLDER / 'read_reference.py').read_text().splitlines()) <= 40


@pytest.mark.parametrize('example', EXAMPLES)
def test_examples_are_right_by_an_independent_simulation(example):
  f = load(FOLDER / 'reference' / f'{example}.npz')
  n = len(f['alpha'])
  tau = lambda decay: -1 / np.log(decay)
  neurons = oracle.Neurons(n, float(f['thr']), tau(f['alpha']), tau(f['rho']), f['beta'], int(f['n_refractory']),
                           float(f['dampening_factor']), scale_input=bool(np.all(f['current_gain'] < 1)))
  x = f['inputs'].swapaxes(0, 1).astype(np.float64)
  run_ = oracle.simulate(neurons, x, f['w_in'], f['w_rec'])
  for name in ('z', 'v', 'psi') + (('a',) if f['beta'].any() else ()):
    np.testing.assert_allclose(f[name].swapaxes(0, 1), getattr(run_, name), rtol=1e-9, atol=1e-9, err_msg=name)
  y = oracle.leaky(run_.z, float(f['kappa']), normalised=True) @ f['w_out']
  task_loss, error = oracle.loss_and_error(str(f['loss']), y, f['targets'].swapaxes(0, 1), f['loss_weight'][:, None, None])
  np.testing.assert_allclose(task_loss, f['task_loss'], rtol=1e-9)
  np.testing.assert_allclose(error @ f['b_out'].T, f['learning_signal'].swapaxes(0, 1), rtol=1e-8, atol=1e-12)
  pre = np.concatenate([x, oracle.one_step_later(run_.z)], 2)
  for k, (i, j) in enumerate(f['synapses'][::3]):
    only = oracle.Neurons(1, neurons.thr, tau(f['alpha'][j]), tau(f['rho'][j]), f['beta'][j], gamma=neurons.gamma,
                          scale_input=bool(f['current_gain'][j] < 1))
    e, eps_v, eps_a = oracle.eligibility(only, pre[:, 1 % pre.shape[1], i:i + 1], run_.psi[:, 1 % pre.shape[1], j:j + 1])
    for name, want in (('e', e), ('eps_v', eps_v), ('eps_a', eps_a)):
      if name != 'eps_a' or f['beta'][j]:
        np.testing.assert_allclose(f[name][-1, :, 3 * k], want[:, 0, 0], rtol=1e-8, atol=1e-12, err_msg=name)


@pytest.mark.parametrize('example', EXAMPLES)
def test_init_from_is_the_inverse_of_export(example, tmp_path):
  """A run from an exported file makes the same update, and exports the same once more."""
  script, flags = EXAMPLES[example]
  file = FOLDER / 'reference' / f'{example}.npz'
  done = run(script, f'--init_from={file}', '--n_iter=1', '--dtype=float64', '--do_plot=False', '--export_reference=1',
             f'--result_dir={tmp_path}', '--run_name=a', *flags)
  assert done.returncode == 0, done.stderr
  want, again = load(file), load(tmp_path / script / 'a' / 'reference_1.npz')
  final = load(tmp_path / script / 'a' / 'final_weights.npz')
  assert set(want) == set(again)
  for name in want:
    if want[name].dtype.kind in 'fiu':
      np.testing.assert_allclose(again[name], want[name], rtol=1e-8, atol=1e-10, err_msg=name)
  for name in ('w_in', 'w_rec', 'w_out'):
    np.testing.assert_allclose(final[name], want[f'{name}_after'], rtol=1e-8, atol=1e-10)
    assert not np.array_equal(want[name], want[f'{name}_after'])
  assert read(tmp_path / script / 'a' / 'reference_1.npz')[0] == 0


@pytest.mark.parametrize('texts, dtype, is_bptt, words', [
    (['0'], 'float64', False, 'iterations of this run'), (['11'], 'float64', False, '1 to 10'),
    (['a'], 'float64', False, 'numbers'), (['1'], 'float32', False, '--dtype=float64'), (['1'], 'float64', True, 'BPTT')])
def test_requests_that_make_no_sense(texts, dtype, is_bptt, words):
  with pytest.raises(UserError, match=words):
    reference.parse_iterations(texts, dtype, is_bptt, 10)
  assert reference.parse_iterations(['3', '1', '3'], 'float64', False, 10) == [1, 3]

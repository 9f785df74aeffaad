"""What the README says that somebody with a neuron, a task, a learning signal or a Keras script of their own writes, run as it
stands there."""
import csv
import inspect
import json
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import lsnn
import oracle
from gradient_check import gradient_errors
from learner import Learner
from lsnn import ALIF, LIF
from readout import LeakyReadout, RateCost, Readout, Weights

FOLDER = pathlib.Path(__file__).resolve().parent.parent / 'Figure_3_and_S7_e-prop_tutorials'


@pytest.fixture(scope='module')
def of_readme(tmp_path_factory):
  """The names that the README's Python leaves behind, and what it printed."""
  text = (FOLDER / 'README.md').read_text(encoding='utf-8')
  section = text[text.index('## Your own neuron'):]
  blocks = re.findall(r'```python\n(.*?)```', section[:section.index('\n## ', 3)], re.DOTALL)
  printed = []
  names = dict(print=lambda *values: printed.append(values), NamedTuple=__import__('typing').NamedTuple, tf=tf, printed=printed,
               Neuron=lsnn.Neuron, exp_decay=lsnn.exp_decay, spike=lsnn.spike, text=section)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(tmp_path_factory.mktemp('readme'))
    exec('\n'.join(blocks), names)
  return names


def test_neuron_of_the_readme_is_the_tutorials_and_its_gradient_is_right(of_readme):
  source = (FOLDER / 'tutorial_own_neuron.py').read_text(encoding='utf-8')
  of_tutorial = source[source.index('class CurrentBasedNeuron'):source.index('def make_trainer')].strip()
  assert of_tutorial in of_readme['text'] and len(of_tutorial.splitlines()) <= 30
  (errors,) = of_readme['printed'][0]
  assert set(errors) == {'adjoint', 'hardcoded', 'BPTT'} and max(errors.values()) < 1e-12


def test_gradient_check_notices_wrong_formulas():
  class Wrong(ALIF):
    def adjoint_step(self, h, dz, adjoint, dv=None, da=None):
      post, of_reset, (lam, cb) = super().adjoint_step(h, dz, adjoint)
      return post, of_reset, self.Adjoint(0.99 * lam, cb)

  errors = gradient_errors(Wrong(20, tau_adaptation=50.0, beta=0.3, dtype='float64'))
  assert errors['adjoint'] > 1e-4 and errors['BPTT'] > 1e-4 and errors['hardcoded'] < 1e-12
  with pytest.raises(ValueError, match='try another gain'):
    gradient_errors(LIF(20, thr=100.0, dtype='float64'))


def test_tutorial_smoke(tmp_path):
  done = subprocess.run([sys.executable, FOLDER / 'tutorial_own_neuron.py', '--smoke', f'--result_dir={tmp_path}', '--run_name=a'],
                        capture_output=True, text=True, timeout=300, check=False)
  assert done.returncode == 0, done.stderr
  run = tmp_path / 'tutorial_own_neuron' / 'a'
  with open(run / 'metrics.csv', newline='', encoding='utf-8') as file:
    losses = [float(row['train_loss']) for row in csv.DictReader(file)]
  assert len(losses) == 10 and min(losses[1:]) < losses[0]
  assert max(json.loads((run / 'summary.json').read_text())['gradient_errors'].values()) < 1e-12
  assert (run / 'figure.png').stat().st_size > 10000 and (run / 'final_weights.npz').exists()


def test_task_of_the_readme_is_learned(of_readme):
  errors = [values[1] for values in of_readme['printed'] if len(values) == 2]
  assert len(errors) == 30 and errors[-1] < 0.7 * errors[0]


def test_learning_signal_of_the_readme(of_readme):
  """Against the oracle: sign(error) @ B^T on the filtered traces; dE/dw_out takes what the readout was given."""
  rng = np.random.default_rng(0)
  x, target = (rng.random((30, 2, 4)) < 0.4).astype(float), rng.normal(size=(30, 2, 2))
  weights, feedback = Weights(rng.normal(size=(4, 5)), rng.normal(size=(5, 5)), rng.normal(size=(5, 2))), rng.normal(size=(5, 2))
  learner = of_readme['SignOfError'](ALIF(5, tau_adaptation=50.0, dtype='float64'), Readout(0.9, loss='squared_error'), RateCost(0.0, 0.01))
  learned = learner(*map(tf.constant, (x, target, np.ones((30, 1, 1)))), Weights(*map(tf.constant, weights)), tf.constant(feedback))
  neurons = oracle.Neurons(5, 0.6, 20.0, 50.0, 0.16)
  run = oracle.simulate(neurons, x, weights.w_in, weights.w_rec)
  signal = np.sign(learned.y - target) @ feedback.T
  expected = oracle.eprop(neurons, x, run.psi, signal, np.zeros_like(signal), 0.9, True)
  assert run.z.any()
  np.testing.assert_allclose(learned.gradients.w_in, expected, atol=1e-10 * np.abs(expected).max())
  with pytest.raises(ValueError, match='needs the adjoint implementation'):
    of_readme['SignOfError'](ALIF(5), Readout(0.9), RateCost(0.0, 0.01), impl='autodiff')


def test_keras_script_of_the_readme_learns_and_its_model_survives(of_readme):
  losses = of_readme['history'].history['loss']
  assert losses[-1] < losses[0]
  model, same, x = of_readme['model'], of_readme['same'], of_readme['x'].swapaxes(0, 1).astype('float32')
  np.testing.assert_array_equal(model.predict(x, verbose=0), same.predict(x, verbose=0))
  cell = same.layers[0].cell
  assert type(cell) is ALIF and cell.stop_z_gradients and cell.rho == np.float32(np.exp(-1 / 200))


class OfTheReadersOwn(lsnn.Neuron):
  """A neuron with an array among its arguments."""

  class State(ALIF.State):
    pass

  def __init__(self, units, decay=0.9, **kwargs):
    super().__init__(units, **kwargs)
    self.decay = self.constant(decay)


@pytest.mark.parametrize('make', [
    lambda: ALIF(3, thr=0.5, tau=np.linspace(5, 40, 3), beta=np.float64(0.1), n_refractory=4, stop_z_gradients=True, name='a'),
    lambda: LIF(3, 0.04, tau=np.array([1.0, 2.0, 3.0]), scale_input=True, dtype='float64'),
    lambda: OfTheReadersOwn(3, np.array([0.1, 0.2, 0.3]))], ids=['ALIF', 'LIF', 'own'])
def test_neurons_survive_get_config(make):
  cell = make()
  config = json.loads(json.dumps(cell.get_config()))
  again = type(cell).from_config(config)
  assert again.get_config() == cell.get_config()
  for name in set(vars(cell)) & {'alpha', 'rho', 'beta', 'thr', 'n_refractory', 'current_gain', 'decay', 'units', 'stop_z_gradients'}:
    np.testing.assert_array_equal(getattr(again, name), getattr(cell, name))
  assert again.compute_dtype == cell.compute_dtype


@pytest.mark.parametrize('symmetric', [False, True])
def test_keras_gives_the_learners_gradient(symmetric):
  """Through keras.layers.RNN and LeakyReadout goes the same gradient as Learner computes, here in float64."""
  keras.utils.set_random_seed(0)
  rng = np.random.default_rng(0)
  x, target = (rng.random((2, 30, 4)) < 0.4).astype(float), rng.normal(size=(2, 30, 3))
  cell = ALIF(5, tau_adaptation=50.0, n_refractory=2, stop_z_gradients=True, dtype='float64')
  model = keras.Sequential([keras.layers.RNN(cell, return_sequences=True, dtype='float64'),
                            LeakyReadout(3, tau=10.0, symmetric=symmetric, dtype='float64')])
  model.build((2, 30, 4))
  w_in, w_rec, w_out = (w.value for w in model.trainable_variables)

  @tf.function
  def by_keras(x):
    with tf.GradientTape() as tape:
      loss = tf.reduce_sum((model(x) - target) ** 2) / 2
    return tape.gradient(loss, (w_in, w_rec, w_out))

  learner = Learner(cell, Readout(lsnn.exp_decay(10.0), loss='squared_error'), RateCost(0.0, 0.01))
  feedback = w_out if symmetric else model.layers[1].feedback.value
  learned = learner(tf.constant(x.swapaxes(0, 1)), tf.constant(target.swapaxes(0, 1)), tf.ones([30, 1, 1], tf.float64),
                    Weights(*map(tf.convert_to_tensor, (w_in, w_rec, w_out))), tf.convert_to_tensor(feedback))
  assert np.any(learned.y)
  for actual, expected in zip(by_keras(tf.constant(x)), learned.gradients):
    np.testing.assert_allclose(actual, expected, atol=1e-10 * np.abs(expected).max())


def test_scripts_of_this_folder_keep_their_functions_short():
  """No function of more than 80 lines."""
  for path in FOLDER.glob('*.py'):
    lines = path.read_text(encoding='utf-8').splitlines()
    starts = [k for k, line in enumerate(lines) if re.match(r'\s*def ', line)]
    for k in starts:
      assert len(inspect.getblock([line + '\n' for line in lines[k:]])) <= 80, f'{path.name}:{k + 1}'

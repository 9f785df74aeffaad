"""Neurons, filters and simulation against the oracle, SciPy, Keras and the published cells."""
from typing import NamedTuple

import keras
import numpy as np
import pytest
import scipy.signal
import tensorflow as tf

import lsnn
import oracle
from eprop import Layer, Weights

T, B, I, N = 60, 3, 6, 8


def network(seed=0):
  """Random input spikes [T, B, I] and weights, float64."""
  rng = np.random.default_rng(seed)
  x = (rng.random((T, B, I)) < 0.2).astype(np.float64)
  return x, rng.normal(size=(I, N)) / I ** 0.5, rng.normal(size=(N, N)) / N ** 0.5


class Seen(NamedTuple):
  """A simulation as arrays."""
  z: np.ndarray
  h: np.ndarray
  psi: np.ndarray
  v: np.ndarray
  a: np.ndarray
  state: lsnn.ALIF.State  # after the last step


def simulate(cell, x, w_in, w_rec, reset=None, state=None, n_repeat=1):
  """Layer.simulate inside a graph, from arrays to arrays; for ALIF and LIF."""
  run = tf.function(lambda x, w_in, w_rec: Layer(cell, n_repeat=n_repeat).simulate(
      x, Weights(w_in, w_rec), state, reset, record_states=True))(*map(tf.constant, (x, w_in, w_rec)))
  seen = Seen(run.z, run.memory, cell.psi(run.memory), run.states.v, run.states.a, run.state)
  return tf.nest.map_structure(lambda tensor: tensor.numpy(), seen)


# ---------------------------------------------------------------------------------------------------------------------
# Filters


@pytest.mark.parametrize('normalised', [False, True])
@pytest.mark.parametrize('reverse', [False, True])
def test_exp_filter_equals_scipy(normalised, reverse):
  decay = lsnn.exp_decay(7.0)
  x = np.random.default_rng(0).normal(size=(T, B, N))
  flip = (lambda array: array[::-1]) if reverse else (lambda array: array)
  expected = flip(scipy.signal.lfilter([1 - decay if normalised else 1.0], [1.0, -decay], flip(x), axis=0))
  np.testing.assert_allclose(lsnn.exp_filter(tf.constant(x), decay, normalised, reverse), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize('normalised', [False, True])
def test_reverse_filter_is_the_transpose(normalised):
  """<F x, y> = <x, F' y>."""
  x, y = (tf.constant(array) for array in np.random.default_rng(1).normal(size=(2, T, N)))
  forward = lsnn.exp_filter(x, 0.9, normalised)
  backward = lsnn.exp_filter(y, 0.9, normalised, reverse=True)
  np.testing.assert_allclose(tf.reduce_sum(forward * y), tf.reduce_sum(x * backward), rtol=1e-12)


def test_normalised_filter_keeps_a_constant():
  filtered = lsnn.exp_filter(tf.ones([400, 1], tf.float64), 0.9, normalised=True)
  np.testing.assert_allclose(filtered[-1], 1, rtol=1e-12)


def test_exp_decay():
  np.testing.assert_allclose(lsnn.exp_decay([10.0, 20.0], dt=2.0), [np.exp(-0.2), np.exp(-0.1)], rtol=1e-15)


# ---------------------------------------------------------------------------------------------------------------------
# The spike function


def test_spike_and_pseudo_derivative():
  h = tf.constant([-2.0, -1.0, -0.25, 0.0, 0.5, 1.0, 3.0], tf.float64)
  with tf.GradientTape() as tape:
    tape.watch(h)
    z = lsnn.spike(h, np.float64(0.4))
  np.testing.assert_array_equal(z, [0, 0, 0, 0, 1, 1, 1])
  np.testing.assert_allclose(tape.gradient(z, h), 0.4 * np.array([0, 0, 0.75, 1, 0.5, 0, 0]), rtol=1e-15)


def test_dampening_factor_keeps_its_precision():
  h = tf.constant([0.0], tf.float64)
  with tf.GradientTape() as tape:
    tape.watch(h)
    z = lsnn.spike(h, 0.4)
  np.testing.assert_allclose(tape.gradient(z, h), [0.4], rtol=1e-15)


def test_psi_is_the_derivative_with_respect_to_v():
  """h = (v - A) / thr, hence dz/dv carries 1 / thr."""
  cell = lsnn.LIF(N, thr=0.2, dampening_factor=0.4, dtype='float64')
  v = tf.constant(np.random.default_rng(0).normal(0.2, 0.1, size=(B, N)))
  with tf.GradientTape() as tape:
    tape.watch(v)
    h = (v - 0.2) / 0.2
    z = lsnn.spike(h, cell.dampening_factor)
  np.testing.assert_allclose(cell.psi(h), tape.gradient(z, v), rtol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Neurons

NEURONS = {
    'LIF': dict(thr=0.6, tau=20.0, tau_adaptation=50.0),
    'LIF, refractory': dict(thr=0.6, tau=20.0, tau_adaptation=50.0, n_refractory=4),
    'LIF, scaled input': dict(thr=0.03, tau=30.0, tau_adaptation=50.0, scale_input=True),
    'ALIF': dict(thr=0.6, tau=20.0, tau_adaptation=50.0, beta=0.3, n_refractory=2),
    'ALIF, everything per neuron': dict(thr=0.05, tau=np.linspace(5, 40, N), tau_adaptation=np.linspace(20, 200, N),
                                        beta=np.linspace(0, 0.03, N), n_refractory=3, scale_input=True),
}


@pytest.mark.parametrize('name', NEURONS)
def test_simulation_equals_oracle(name):
  """Trials start anew at random steps."""
  constants = NEURONS[name]
  x, w_in, w_rec = network(seed=3)
  reset = (np.random.default_rng(4).random((T, B)) < 0.05).astype(np.float64)
  cell = (lsnn.ALIF if 'beta' in constants else lsnn.LIF)(N, dampening_factor=0.4, dtype='float64', **constants)
  run = simulate(cell, x, w_in, w_rec, reset=reset)
  expected = oracle.simulate(oracle.Neurons(N, gamma=0.4, **constants), x, w_in, w_rec, reset)
  assert 0.02 < expected.z.mean() < 0.5
  np.testing.assert_array_equal(run.z, expected.z)
  if 'beta' not in constants:
    assert not np.any(run.a)  # nothing depends on it
    expected.a[:] = 0
  for name in ('v', 'a', 'psi'):
    np.testing.assert_allclose(getattr(run, name), getattr(expected, name), rtol=0, atol=1e-12, err_msg=name)
  for name in ('v', 'a', 'z'):
    np.testing.assert_allclose(getattr(run.state, name), getattr(expected, name)[-1], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize('figure', ['figure3_alif', 'figureS7_lif', 'figure2_lif', 'figure4_alif_with_reset'])
def test_simulation_equals_published_cells(golden, figure):
  """In float32 every spike is the published one."""
  g = golden(figure)
  cell = lsnn.ALIF(g['w_rec'].shape[0], thr=g['thr'], tau=g['tau'], tau_adaptation=g.get('tau_adaptation', 1.0),
                   beta=g.get('beta', 0.0), n_refractory=g.get('n_refractory', 0), dampening_factor=g['dampening_factor'],
                   scale_input=figure == 'figureS7_lif')
  run = simulate(cell, g['inputs'], g['w_in'], g['w_rec'], reset=g.get('done'))
  assert run.z.dtype == np.float32
  np.testing.assert_array_equal(run.z, g['z'])
  # Figure 2's cell adapts to spikes that its refractory mask has removed; with beta = 0 nothing else depends on that.
  for name in {'v', 'a', 'psi'} & set(g) - ({'a'} if figure == 'figure2_lif' else set()):
    scale = np.abs(g[name]).max() or 1
    np.testing.assert_allclose(getattr(run, name), g[name], rtol=0, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize('n_refractory', [0, 1, 5])
def test_refractory_period(n_refractory):
  """Under strong drive, spikes of a neuron are n_refractory steps apart, at least 1, and psi is 0 in between.

  The step of the spike is the first one of the period, as in the published cells.
  """
  cell = lsnn.LIF(N, thr=0.1, n_refractory=n_refractory, dtype='float64')
  run = simulate(cell, np.ones((T, B, I)), np.ones((I, N)), np.zeros((N, N)))
  intervals = np.diff(np.flatnonzero(run.z[:, 0, 0]))
  np.testing.assert_array_equal(intervals, max(n_refractory, 1))
  assert run.z[0].all()
  x, w_in, w_rec = network(seed=5)
  run = simulate(cell, x, 3 * w_in, w_rec)
  silent = np.zeros((T, B, N), bool)
  for later in range(1, n_refractory):
    silent[later:] |= run.z[:-later] == 1
  assert run.z.any() and not run.z[silent].any() and not run.psi[silent].any()
  np.testing.assert_array_equal(run.h[silent], -1)


def test_diagonal_of_w_rec_is_ignored():
  x, w_in, w_rec = network()
  cell = lsnn.LIF(N, thr=0.6, dtype='float64')
  run, with_autapses = (simulate(cell, x, w_in, w_rec + shift * np.eye(N)) for shift in (0, 5))
  assert run.z.any()
  np.testing.assert_array_equal(run.v, with_autapses.v)


def test_simulation_continues_from_a_state():
  x, w_in, w_rec = network(seed=6)
  cell = lsnn.ALIF(N, n_refractory=4, dtype='float64')
  whole = simulate(cell, x, w_in, w_rec)
  first = simulate(cell, x[:23], w_in, w_rec)
  rest = simulate(cell, x[23:], w_in, w_rec, state=cell.State(*map(tf.constant, first.state)))
  assert whole.z[23:].any()
  np.testing.assert_array_equal(np.concatenate([first.v, rest.v]), whole.v)


def test_inputs_held_for_several_steps():
  x, w_in, w_rec = network(seed=12)
  cell = lsnn.ALIF(N, tau_adaptation=50.0, n_refractory=2, dtype='float64')
  held = simulate(cell, x, w_in, w_rec, n_repeat=3)
  expected = simulate(cell, np.repeat(x, 3, axis=0), w_in, w_rec)
  assert held.z.shape == (3 * T, B, N) and expected.z.any()
  np.testing.assert_array_equal(held.h, expected.h)


def test_reset_starts_a_trial_anew():
  """What follows a reset does not depend on what came before it; other trials go on."""
  x, w_in, w_rec = network(seed=7)
  cell = lsnn.ALIF(N, n_refractory=4, dtype='float64')
  reset = np.zeros((T, B))
  reset[20, 1] = 1
  run, uncut, fresh = (simulate(cell, x[start:], w_in, w_rec, reset=r) for start, r in ((0, reset), (0, None), (20, None)))
  np.testing.assert_array_equal(run.v[20:, 1], fresh.v[:, 1])
  np.testing.assert_array_equal(run.v[:, [0, 2]], uncut.v[:, [0, 2]])
  assert np.abs(run.v[20:, 1] - uncut.v[20:, 1]).max() > 0.1


def test_integer_inputs():
  x, w_in, w_rec = network()
  cell = lsnn.LIF(N, thr=0.6, dtype='float64')
  np.testing.assert_array_equal(simulate(cell, x.astype(np.uint8), w_in, w_rec).v, simulate(cell, x, w_in, w_rec).v)


def test_default_dtype_is_float32():
  x, w_in, w_rec = (array.astype(np.float32) for array in network())
  assert all(array.dtype == np.float32 for array in tf.nest.flatten(simulate(lsnn.ALIF(N), x, w_in, w_rec)))


@pytest.mark.parametrize('cell', [lsnn.ALIF, lsnn.LIF])
@pytest.mark.parametrize('bad', [dict(units=0), dict(thr=0.0), dict(thr=-1.0), dict(tau=0.0), dict(tau=[20.0, -1.0]),
                                 dict(tau_adaptation=0.0), dict(dt=0.0), dict(n_refractory=-1)], ids=str)
def test_bad_constants_are_refused(cell, bad):
  with pytest.raises(ValueError):
    cell(**{'units': 2, **bad})


def test_bad_time_constant_is_refused():
  with pytest.raises(ValueError, match='positive'):
    lsnn.exp_decay(-20.0)


# ---------------------------------------------------------------------------------------------------------------------
# The Keras protocol


def keras_rnn(cell, w_in, w_rec):
  """The cell in keras.layers.RNN, with given weights."""
  rnn = keras.layers.RNN(cell, return_sequences=True, dtype=cell.dtype)
  rnn.build((B, T, I))
  cell.set_weights([w_in, w_rec])
  return rnn


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_keras_rnn_gives_the_same_spikes(dtype):
  """keras.layers.RNN is batch-major."""
  x, w_in, w_rec = (array.astype(dtype) for array in network(seed=8))
  cell = lsnn.ALIF(N, tau_adaptation=50.0, beta=0.3, n_refractory=3, dtype=dtype)
  z = keras_rnn(cell, w_in, w_rec)(tf.constant(x.swapaxes(0, 1)))
  assert z.dtype == dtype
  expected = simulate(cell, x, w_in, w_rec).z
  assert expected.any()
  np.testing.assert_array_equal(z.numpy().swapaxes(0, 1), expected)


@pytest.mark.parametrize('stop_z_gradients', [False, True])
def test_keras_rnn_gives_the_same_gradient(stop_z_gradients):
  """With gradients stopped at the spikes it is e-prop, else BPTT; here for the loss sum_t c[t] z[t]."""
  x, w_in, w_rec = network(seed=9)
  c = np.random.default_rng(10).normal(size=(T, B, N))
  constants = dict(tau=20.0, tau_adaptation=50.0, beta=0.3, n_refractory=3)
  cell = lsnn.ALIF(N, thr=0.6, stop_z_gradients=stop_z_gradients, dtype='float64', **constants)
  rnn = keras_rnn(cell, w_in, w_rec)

  @tf.function
  def gradients(x):
    with tf.GradientTape() as tape:
      loss = tf.reduce_sum(rnn(x) * c.swapaxes(0, 1))
    return tape.gradient(loss, rnn.trainable_variables)

  neurons = oracle.Neurons(N, thr=0.6, **constants)
  run = oracle.simulate(neurons, x, w_in, w_rec)
  for gradient, pre in zip(gradients(tf.constant(x.swapaxes(0, 1))), (x, oracle.one_step_later(run.z))):
    if stop_z_gradients:
      expected = oracle.eprop(neurons, pre, run.psi, c, np.zeros_like(c))
    else:
      expected = oracle.bptt(neurons, pre, run.psi, c, w_rec)
    expected = expected if pre is x else oracle.no_autapses(expected)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def test_cell_takes_a_reset():
  """call((x, reset), states) zeroes the state of the trials where reset is 1, before the step."""
  x, w_in, w_rec = network(seed=11)
  cell = lsnn.ALIF(N, n_refractory=3, dtype='float64')
  cell.build((B, I))
  cell.set_weights([w_in, w_rec])
  reset = np.zeros((T, B))
  reset[[7, 7, 30], [0, 2, 1]] = 1
  states, z = cell.get_initial_state(batch_size=B), []
  for t in range(T):
    spikes, states = cell((tf.constant(x[t]), tf.constant(reset[t])), states)
    z.append(spikes.numpy())
  expected = simulate(cell, x, w_in, w_rec, reset=reset)
  np.testing.assert_array_equal(z, expected.z)
  np.testing.assert_allclose(states[0], expected.state.v, rtol=0, atol=1e-12)
  assert np.any(expected.z != simulate(cell, x, w_in, w_rec).z)


def test_cell_builds_itself_from_a_pair_of_inputs():
  cell = lsnn.ALIF(N)
  z, states = cell((tf.ones([B, I]), tf.zeros([B])), cell.get_initial_state(batch_size=B))
  assert cell.w_in.shape == (I, N) and cell.w_rec.shape == (N, N)
  assert z.shape == (B, N) and [state.shape for state in states] == [(B, N)] * len(cell.state_size)

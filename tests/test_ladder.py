"""One ladder of gradients for every class of neurons: a new class is tested by being listed in NEURONS.

In float64: formulas by hand = those that follow from `step` alone = autodiff; traces (stored, carried forward, online) = adjoint;
BPTT; and what must differ.
"""
import functools
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

import eprop
from eprop import IMPLEMENTATIONS, Layer, LearningSignal, cosine
from learner import Learner
from lsnn import ALIF, LIF, Neuron, without_autapses
from readout import RateCost, Readout, Weights
from tutorial_own_neuron import CurrentBasedNeuron

N_STEPS, N_BATCH, N_IN, N, N_OUT = 48, 3, 5, 6, 2

NEURONS = {  # class and arguments
    'LIF': (LIF, dict(thr=0.6)),
    'LIF, scaled input': (LIF, dict(thr=0.03, tau=30.0, scale_input=True)),
    'ALIF': (ALIF, dict(tau_adaptation=50.0, beta=0.3, n_refractory=3)),
    'ALIF, everything per neuron': (ALIF, dict(
        thr=0.05, tau=np.linspace(5, 40, N), tau_adaptation=np.linspace(20, 200, N), beta=np.linspace(0, 0.03, N), n_refractory=2,
        scale_input=True)),
    'current-based synapses': (CurrentBasedNeuron, {}),
}
CLASSES = list({neurons: name for name, (neurons, _) in NEURONS.items()}.values())  # the last of each
BY_HAND = ('remember', 'spikes', 'initial_adjoint', 'adjoint_step', 'initial_eps', 'trace_step')  # what a class may replace


def make(name, from_step_alone=False):
  """The neurons; from_step_alone: without what the class has instead of the functions that follow from `step`."""
  neurons, arguments = NEURONS[name]
  if from_step_alone:
    neurons = type('FromStepAlone', (neurons,), {function: getattr(Neuron, function) for function in BY_HAND})
  return neurons(N, dtype='float64', **arguments)


class Problem(NamedTuple):
  """Arrays of a layer and parts of learning signals."""
  x: tf.Tensor         # [T, B, I]
  weights: eprop.Weights
  error: tf.Tensor     # [T, B, K]
  feedback: tf.Tensor  # [N, K]
  direct: tf.Tensor    # [T, B, N]


def problem():
  rng = np.random.default_rng(3)
  normal = lambda *shape: tf.constant(rng.normal(size=shape))
  x = tf.constant((rng.random((N_STEPS, N_BATCH, N_IN)) < 0.4).astype(np.float64))
  return Problem(x, eprop.Weights(normal(N_IN, N) / 2, normal(N, N) / 2), normal(N_STEPS, N_BATCH, N_OUT), normal(N, N_OUT),
                 normal(N_STEPS, N_BATCH, N))


def signals(p, hold=1):
  """Learning signals of every kind, for T steps of which each entry of a signal covers `hold`."""
  error, direct = p.error[:N_STEPS // hold], p.direct[:N_STEPS // hold]
  return {'error': LearningSignal(error, p.feedback, hold=hold), 'direct': LearningSignal(direct=direct, hold=hold),
          'same at all steps': LearningSignal(direct=direct[0, 0], hold=hold),
          'error and direct': LearningSignal(error, p.feedback, direct, hold),
          'error and rate': LearningSignal(error, p.feedback, direct[0, 0], hold)}


def gradient(layer, x, weights, signal, **kwargs):
  """What Layer.gradient returns, from a graph."""
  return tf.function(lambda x, weights, signal: layer.gradient(x, weights, layer.forward(x, weights).memory, signal, **kwargs))(
      x, weights, signal)


def relative_error(actual, expected):
  """Largest difference of two structures of arrays over the largest entry of the second, the worst of all arrays."""
  tf.nest.assert_same_structure(actual, expected)
  pairs = [(a, b) for a, b in zip(tf.nest.flatten(actual), tf.nest.flatten(expected)) if b is not None]
  return max(np.abs(a - b).max() / (np.abs(b).max() or 1) for a, b in pairs)


def assert_equal(actual, expected):
  assert relative_error(actual, expected) < 1e-10


@functools.cache
def reference(name, bptt):
  """Gradient by autodiff, for a signal with error and direct part."""
  p = problem()
  return gradient(Layer(make(name), bptt, 'autodiff'), p.x, p.weights, signals(p)['error and direct'], input_gradient=True)


# ---------------------------------------------------------------------------------------------------------------------
# Every class of neurons


@pytest.mark.parametrize('from_step_alone', [False, True])
@pytest.mark.parametrize('name', NEURONS)
def test_gradients_are_those_of_autodiff(name, from_step_alone):
  p, cell = problem(), make(name, from_step_alone)
  signal = signals(p)['error and direct']
  z = tf.function(lambda: Layer(cell).forward(p.x, p.weights).z)()
  assert 0.02 < np.mean(z) < 0.6
  for bptt in (False, True):
    assert_equal(gradient(Layer(cell, bptt), p.x, p.weights, signal, input_gradient=True), reference(name, bptt))
  assert_equal(gradient(Layer(cell, impl='hardcoded'), p.x, p.weights, signal)[:2], reference(name, False)[:2])


@pytest.mark.parametrize('from_step_alone', [False, True])
@pytest.mark.parametrize('name', NEURONS)
def test_stored_traces_give_the_gradient(name, from_step_alone):
  """Eq. (1) as it stands: sum over t of L times e."""
  p, cell = problem(), make(name, from_step_alone)

  @tf.function
  def by_traces(signal):
    run = Layer(cell).simulate(p.x, p.weights)
    of = lambda pre: tf.einsum('tbj,tbij->ij', signal, eprop.eligibility_traces(cell, pre, run.memory)[0])
    return eprop.Weights(of(p.x), without_autapses(of(eprop.one_step_later(run.z))))

  assert_equal(by_traces(p.error @ tf.transpose(p.feedback) + p.direct), reference(name, False).weights)


@pytest.mark.parametrize('name', CLASSES)
def test_online_learner_equals_adjoint(name):
  """Network, traces, readout and gradient in one pass."""
  p = problem()
  weights = Weights(*p.weights, p.feedback)
  arguments = p.x, p.error, tf.ones([N_STEPS, 1, 1], tf.float64), weights, 2 * p.feedback[::-1]
  online, adjoint = (Learner(make(name), Readout(0.9, loss='squared_error'), RateCost(30.0, 0.02), impl=impl)(*arguments)
                     for impl in ('hardcoded', 'adjoint'))
  assert_equal(online, adjoint)


@pytest.mark.parametrize('name', NEURONS)
def test_bptt_differs_from_eprop_and_points_the_same_way(name):
  (by_eprop, *_), (by_bptt, *_) = reference(name, False), reference(name, True)
  for a, b in zip(by_eprop, by_bptt):
    assert relative_error(a, b) > 1e-2
    assert cosine(a, b) > 0.2


@pytest.mark.parametrize('name', CLASSES)
def test_without_recurrent_weights_only_the_reset_sets_bptt_apart(name):
  """A layer that is not recurrent: autodiff with nothing but the reset stopped is e-prop; with w_rec = 0 the same numbers."""
  p, cell = problem(), make(name)
  signal = signals(p)['error']
  without, zero = p.weights._replace(w_rec=None), p.weights._replace(w_rec=tf.zeros([N, N], tf.float64))
  for bptt in (False, True):
    layers = [Layer(cell, bptt, impl) for impl in IMPLEMENTATIONS if not (bptt and impl == 'hardcoded')]
    g_in, *others = (gradient(layer, p.x, without, signal).weights.w_in for layer in layers)
    for other in others:
      assert_equal(other, g_in)
    assert_equal(g_in, gradient(layers[0], p.x, zero, signal).weights.w_in)


# ---------------------------------------------------------------------------------------------------------------------
# The layer


@pytest.mark.parametrize('kind', signals(problem()))
def test_learning_signals_of_every_kind(kind):
  """Inputs held for n_repeat steps and signals for `hold` are what repeating their entries would be."""
  p, cell, n_repeat, hold = problem(), make('ALIF'), 3, 4
  x = p.x[:N_STEPS // n_repeat]
  signal = signals(p, hold)[kind]
  repeat = lambda array: array if array is None or array.shape.rank == 1 else tf.repeat(array, hold, 0)
  plain = signal._replace(error=repeat(signal.error), direct=repeat(signal.direct), hold=1)
  expected = gradient(Layer(cell, impl='autodiff'), tf.repeat(x, n_repeat, 0), p.weights, plain, input_gradient=True)
  of_frames = tf.reduce_sum(tf.reshape(expected.x, [len(x), n_repeat, N_BATCH, N_IN]), 1)
  for impl in IMPLEMENTATIONS:
    kwargs = {} if impl == 'hardcoded' else dict(input_gradient=True)
    actual = gradient(Layer(cell, impl=impl, n_repeat=n_repeat), x, p.weights, signal, **kwargs)
    assert (actual.w_read is None) == (signal.error is None)
    assert_equal(actual, expected._replace(x=of_frames if kwargs else None))


@pytest.mark.parametrize('bptt', [False, True])
def test_truncation_in_time(bptt):
  """Every 20 steps, within chunks and across them, no gradient goes further back; other numbers than without."""
  p, cell, length = problem(), make('ALIF'), 20
  signal = signals(p)['direct']

  @tf.function
  def by_parts():
    state, total = None, 0
    with tf.GradientTape() as tape:
      tape.watch(p.weights)
      for first in range(0, N_STEPS, length):
        run = Layer(cell).simulate(p.x[first:first + length], p.weights, state, stop_z_gradients=not bptt)
        state = tf.nest.map_structure(tf.stop_gradient, run.state)
        total += tf.reduce_sum(run.z * p.direct[first:first + length])
    return tape.gradient(total, p.weights)

  truncated = gradient(Layer(cell, bptt, truncation=length), p.x, p.weights, signal).weights
  assert_equal(truncated, by_parts())
  assert relative_error(truncated, gradient(Layer(cell, bptt), p.x, p.weights, signal).weights) > 1e-3


def test_forward_is_simulate():
  """In chunks of time as at once; read out before it is stored; mean rates; a fresh start goes on from a state."""
  p, layer = problem(), Layer(make('ALIF'), n_repeat=2)

  @tf.function
  def runs():
    whole = layer.simulate(p.x, p.weights)
    first = layer.simulate(p.x[:7], p.weights)
    return whole, layer.forward(p.x, p.weights), layer.forward(p.x, p.weights, p.feedback), first, \
        layer.simulate(p.x[7:], p.weights, first.state)

  whole, chunks, read_out, first, rest = runs()
  assert eprop.chunk_length(N_STEPS) < N_STEPS and whole.z.shape == (2 * N_STEPS, N_BATCH, N)
  assert_equal((chunks.z, chunks.memory, chunks.state), (whole.z, whole.memory, whole.state))
  assert_equal(read_out.z, whole.z @ p.feedback)
  assert_equal(chunks.rate, tf.reduce_mean(whole.z, [0, 1]))
  assert_equal((tf.concat([first.z, rest.z], 0), rest.state), (whole.z, whole.state))


def test_chunk_length():
  assert [eprop.chunk_length(n) for n in (2250, 1000, 48, 101, 1, 62)] == [30, 25, 24, 101, 1, 31]


@pytest.mark.parametrize('kwargs, message', [
    (dict(impl='magic'), "one of adjoint, hardcoded, autodiff, got 'magic'"),
    (dict(impl='hardcoded', bptt=True), 'BPTT has no hardcoded form'),
    (dict(impl='autodiff', truncation=5), 'for the adjoint implementation only')])
def test_unknown_rule_is_refused(kwargs, message):
  with pytest.raises(ValueError, match=message):
    Layer(make('LIF'), **kwargs)


def test_input_gradient_of_the_hardcoded_form_is_refused():
  p = problem()
  with pytest.raises(ValueError, match='no gradient of the inputs'):
    gradient(Layer(make('LIF'), impl='hardcoded'), p.x, p.weights, signals(p)['error'], input_gradient=True)

"""The LSTM of figure 2: cell, traces, three computations of e-prop and two of BPTT, against slow loops and each other."""
import functools
import sys
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import lstm_oracle
from conftest import TESTS
from eprop import cosine
from test_eprop import relative_error

sys.path.append(str(TESTS.parent / 'Figure_2_TIMIT'))
import lstm  # noqa: E402
from lstm import Weights  # noqa: E402

EXACT = 1e-10  # relative tolerance in float64


class Case(NamedTuple):
  """A network and a batch."""
  n_steps: int
  n_batch: int
  n_in: int
  n: int
  use_peepholes: bool


CASES = {
    'plain': Case(20, 3, 5, 4, False),
    'peepholes': Case(17, 2, 3, 5, True),
    'one_step': Case(1, 2, 3, 4, True),
}
LONG = ['plain', 'peepholes']


class Problem(NamedTuple):
  x: tf.Tensor
  learning_signal: tf.Tensor
  weights: Weights


@functools.cache
def problem(name):
  """Arrays (float64) of a case; weights so large that the gates leave their linear range."""
  case = CASES[name]
  rng = np.random.default_rng(list(CASES).index(name))
  weights = lstm.initial_weights(rng, case.n_in, case.n, 1.0, case.use_peepholes, np.float64)
  weights = weights._replace(bias=rng.normal(size=4 * case.n))
  return Problem(tf.constant(rng.normal(size=(case.n_steps, case.n_batch, case.n_in))),
                 tf.constant(rng.normal(size=(case.n_steps, case.n_batch, case.n))), constants(weights))


def constants(weights, dtype=np.float64):
  return Weights(*(None if w is None else tf.constant(np.array(w), dtype) for w in weights))


def by_adjoint(x, learning_signal, weights, bptt=False):
  return lstm.adjoint(lstm.forward(x, weights), x, learning_signal, weights, bptt, input_gradient=bptt)


# Every gradient there is: functions of (x, learning_signal, weights) that return (Weights, dE/dx or None).
EPROP = {
    'eprop_adjoint': by_adjoint,
    'eprop_hardcoded': lambda *arrays: (lstm.hardcoded(*arrays), None),
    'eprop_autodiff': lstm.autodiff,
}
BPTT = {
    'bptt_adjoint': functools.partial(by_adjoint, bptt=True),
    'bptt_autodiff': functools.partial(lstm.autodiff, bptt=True),
}
RULES = EPROP | BPTT


def learn(name, rule, **changes):
  """(Weights, dE/dx) of a rule on a case, with some of its arrays changed."""
  return RULES[rule](*problem(name)._replace(**changes))


result = functools.cache(learn)


@functools.cache
def by_oracle(name):
  """Run of the oracle, peepholes, and gradients of e-prop and BPTT."""
  x, signal, weights = problem(name)
  w_in, w_rec, bias = (w.numpy() for w in weights[:3])
  p = np.zeros([3, len(w_rec)]) if weights.peepholes is None else weights.peepholes.numpy()
  run = lstm_oracle.simulate(x.numpy(), w_in, w_rec, bias, p)
  return run, p, {'eprop': lstm_oracle.eprop(run, p, x.numpy(), signal.numpy()),
                  'bptt': lstm_oracle.bptt(run, p, x.numpy(), signal.numpy(), w_in, w_rec)}


def assert_close(actual, expected, tolerance=EXACT):
  """Weights agree to a tolerance relative to their largest entry."""
  for name, a, b in zip(Weights._fields, actual, expected):
    if a is not None and b is not None:
      assert a.shape == b.shape, name
      assert relative_error(a, b) < tolerance, name


# ---------------------------------------------------------------------------------------------------------------------
# The network


@pytest.mark.parametrize('name', CASES)
def test_forward_equals_oracle(name):
  p = problem(name)
  simulation, run = lstm.forward(p.x, p.weights), by_oracle(name)[0]
  for actual, expected in zip(simulation, (run.h, run.c, np.concatenate(run[2:], -1))):
    assert relative_error(actual, expected) < 1e-13


@pytest.mark.parametrize('name', LONG)
def test_cell_in_keras_rnn(name):
  """The same h; with stop_gradients, TensorFlow's gradients are e-prop's, without, BPTT's."""
  p, case = problem(name), CASES[name]
  for stop, rule in ((True, 'eprop_autodiff'), (False, 'bptt_autodiff')):
    cell = lstm.LSTM(case.n, use_peepholes=case.use_peepholes, stop_gradients=stop, dtype='float64')
    rnn = keras.layers.RNN(cell, return_sequences=True, dtype='float64')
    rnn.build((case.n_batch, case.n_steps, case.n_in))
    assert [w.name for w in cell.trainable_weights] == list(Weights._fields)[:4 if case.use_peepholes else 3]
    for variable, value in zip(cell.trainable_weights, p.weights):
      variable.assign(value)
    with tf.GradientTape() as tape:
      h = rnn(tf.transpose(p.x, [1, 0, 2]))
      loss = tf.reduce_sum(h * tf.transpose(p.learning_signal, [1, 0, 2]))
    assert relative_error(tf.transpose(h, [1, 0, 2]), lstm.forward(p.x, p.weights).h) < 1e-12
    assert_close(tape.gradient(loss, [w.value for w in cell.trainable_weights]), result(name, rule)[0])


def test_without_peepholes_it_is_keras_lstm():
  """Keras orders the gates i, f, j, o and has its forget bias in the bias."""
  p, case = problem('plain'), CASES['plain']
  layer = keras.layers.LSTM(case.n, return_sequences=True, dtype='float64')
  layer.build((case.n_batch, case.n_steps, case.n_in))
  bias = p.weights.bias.numpy() + np.repeat([0.0, 0.0, 1.0, 0.0], case.n)
  reordered = (np.concatenate([w[..., k * case.n:(k + 1) * case.n] for k in (0, 2, 1, 3)], -1)
               for w in (p.weights.w_in.numpy(), p.weights.w_rec.numpy(), bias))
  layer.set_weights(list(reordered))
  expected = tf.transpose(layer(tf.transpose(p.x, [1, 0, 2])), [1, 0, 2])
  assert relative_error(lstm.forward(p.x, p.weights).h, expected) < 1e-12


def test_peepholes_are_really_switched():
  """Every one of the three matters; peepholes of 0 are none; the cell has them only where asked for."""
  x, _, weights = problem('peepholes')
  h = lambda peepholes: lstm.forward(x, weights._replace(peepholes=peepholes)).h
  off, on = h(None), h(weights.peepholes)
  assert relative_error(on, off) > 1e-2
  assert relative_error(h(tf.zeros_like(weights.peepholes)), off) < 1e-14
  for k in range(3):
    assert relative_error(h(weights.peepholes * (1 - tf.eye(3, dtype=tf.float64)[k][:, None])), on) > 1e-3
  assert result('plain', 'bptt_adjoint')[0].peepholes is None
  for use_peepholes in (True, False):
    cell = lstm.LSTM(4, use_peepholes=use_peepholes)
    cell.build((2, 3))
    assert len(cell.trainable_weights) == 3 + use_peepholes


# ---------------------------------------------------------------------------------------------------------------------
# Traces and gradients are those of the oracle, and each other's


@pytest.mark.parametrize('name', CASES)
def test_traces_equal_oracle(name):
  """And their sum with the learning signal, eq. (1), is the gradient."""
  p, (run, peepholes, gradients) = problem(name), by_oracle(name)
  simulation = lstm.forward(p.x, p.weights)
  signal = np.tile(p.learning_signal, 4)
  for pre, expected in zip((p.x, lstm.one_step_later(simulation.h)), gradients['eprop']):
    e = lstm.eligibility_traces(simulation, pre, p.weights.peepholes)
    assert relative_error(e, lstm_oracle.eligibility(run, peepholes, pre.numpy())) < 1e-12
    assert relative_error(np.einsum('tbn,tbin->in', signal, e), expected) < 1e-12


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('name', CASES)
def test_gradient_equals_oracle(name, rule):
  gradients, dx = result(name, rule)
  expected = by_oracle(name)[2]['bptt' if rule in BPTT else 'eprop']
  assert_close(gradients, expected)
  assert (gradients.peepholes is not None) == CASES[name].use_peepholes
  if rule in BPTT:
    assert relative_error(dx, expected[4]) < EXACT
  else:
    assert dx is None


@pytest.mark.parametrize('name', CASES)
def test_implementations_agree(name):
  for rules in (EPROP, BPTT):
    first, *others = (result(name, rule)[0] for rule in rules)
    for other in others:
      assert_close(other, first)


@pytest.mark.parametrize('name', LONG)
def test_bptt_by_finite_differences(name):
  """The loss is sum L h: its slope along random directions in each array, by the oracle's simulation."""
  x, signal, weights = (problem(name).x.numpy(), problem(name).learning_signal.numpy(), by_oracle(name)[1])
  p = problem(name)
  arrays = dict(x=x, w_in=p.weights.w_in.numpy(), w_rec=p.weights.w_rec.numpy(), bias=p.weights.bias.numpy(), p=weights)
  loss = lambda **changes: np.sum(signal * lstm_oracle.simulate(**(arrays | changes)).h)
  gradients, dx = result(name, 'bptt_adjoint')
  for key, gradient in dict(x=dx, w_in=gradients.w_in, w_rec=gradients.w_rec, bias=gradients.bias,
                            p=gradients.peepholes).items():
    if gradient is None:
      continue
    change = 1e-5 * np.random.default_rng(0).normal(size=gradient.shape)
    slope = (loss(**{key: arrays[key] + change}) - loss(**{key: arrays[key] - change})) / 2
    np.testing.assert_allclose(np.sum(gradient * change), slope, rtol=1e-6, err_msg=key)


@pytest.mark.parametrize('rule', EPROP)
@pytest.mark.parametrize('name', LONG)
def test_ideal_learning_signal_gives_bptt(name, rule):
  """Eq. (1): with the true dE/dh for L, the sum over traces is the gradient of BPTT. The loss is not linear in h here."""
  x, _, weights = problem(name)
  n_batch, n = CASES[name].n_batch, CASES[name].n
  with tf.GradientTape(persistent=True) as tape:
    tape.watch([w for w in weights if w is not None])
    h = c = tf.zeros([n_batch, n], tf.float64)
    hs = []
    for x_t in x:
      h, c, _ = lstm.step(x_t @ weights.w_in + h @ weights.w_rec + weights.bias, c, weights.peepholes)
      hs.append(h)
    loss = tf.reduce_sum([tf.reduce_sum(h ** 3 - h) for h in hs])
  true = Weights(*tape.gradient(loss, [w for w in weights if w is not None]))
  ideal = tf.stack(tape.gradient(loss, hs))                     # through h[t] @ w_rec as well
  direct = 3 * tf.stack(hs) ** 2 - 1
  assert relative_error(direct, ideal) > 1e-2
  assert_close(learn(name, rule, learning_signal=ideal)[0], true)
  assert relative_error(learn(name, rule, learning_signal=direct)[0].w_in, true.w_in) > 1e-2
  assert_close(learn(name, 'bptt_adjoint', learning_signal=direct)[0], true)


# ---------------------------------------------------------------------------------------------------------------------
# What must be equal, and what must differ


@pytest.mark.parametrize('name', LONG)
def test_without_recurrent_weights_eprop_is_bptt(name):
  weights = problem(name).weights
  changes = dict(weights=weights._replace(w_rec=tf.zeros_like(weights.w_rec)))
  assert_close(learn(name, 'eprop_adjoint', **changes)[0], learn(name, 'bptt_adjoint', **changes)[0], 1e-13)


def test_in_a_single_step_eprop_is_bptt():
  assert_close(result('one_step', 'eprop_adjoint')[0], result('one_step', 'bptt_adjoint')[0], 1e-13)


@pytest.mark.parametrize('name', LONG)
def test_eprop_differs_from_bptt_but_points_the_same_way(name):
  """With recurrent weights of the usual size."""
  weights = problem(name).weights
  changes = dict(weights=weights._replace(w_rec=0.5 * weights.w_rec))
  for a, b in zip(learn(name, 'eprop_adjoint', **changes)[0], learn(name, 'bptt_adjoint', **changes)[0]):
    if a is not None:
      assert relative_error(a, b) > 1e-2
      assert 0.1 < cosine(a, b) < 0.9999


@pytest.mark.parametrize('rule', RULES)
def test_learning_signal_matters(rule):
  """Another signal gives another gradient; the gradient is linear in the signal."""
  other = tf.constant(np.random.default_rng(9).normal(size=problem('plain').learning_signal.shape))
  base, changed, both = (learn('plain', rule, learning_signal=signal)[0] for signal in (
      problem('plain').learning_signal, other, problem('plain').learning_signal + other))
  for name, a, b, c in zip(Weights._fields[:3], base, changed, both):
    assert relative_error(b, a) > 0.1, name
    assert relative_error(c, a + b) < 1e-12, name


@pytest.mark.parametrize('rule', EPROP)
def test_eprop_remembers_through_the_cell_state(rule):
  """A signal at the last step alone reaches the inputs of the first, except by the output gate, which sees the present."""
  p, n = problem('plain'), CASES['plain'].n
  last = tf.concat([tf.zeros_like(p.learning_signal[:-1]), p.learning_signal[-1:]], 0)
  x = tf.concat([p.x, tf.concat([tf.ones_like(p.x[:1, :, :1]), tf.zeros_like(p.x[1:, :, :1])], 0)], -1)
  weights = p.weights._replace(w_in=tf.concat([p.weights.w_in, tf.zeros([1, 4 * n], tf.float64)], 0))
  of_first_step = learn('plain', rule, x=x, weights=weights, learning_signal=last)[0].w_in[-1]
  of_i, of_j, of_f, of_o = np.split(of_first_step, 4)
  assert np.all(of_i != 0) and np.all(of_j != 0)
  np.testing.assert_array_equal(of_f, 0)  # c is 0 before the first step: there is nothing to forget
  np.testing.assert_array_equal(of_o, 0)


@pytest.mark.parametrize('bptt', [True, False])
def test_two_layers(bptt):
  """BPTT hands dE/dx down; under e-prop no gradient of the upper layer reaches the lower one."""
  p = problem('plain')
  lower, n = p.weights, CASES['plain'].n
  upper = constants(lstm.initial_weights(np.random.default_rng(5), n, 3, 1.0, dtype=np.float64))
  signal = tf.constant(np.random.default_rng(6).normal(size=(*p.x.shape[:2], 3)))
  variables = [*lower[:3], *upper[:3]]

  @tf.function
  def by_autodiff():
    with tf.GradientTape() as tape:
      tape.watch(variables)
      h = lstm.unroll(p.x, lower, stop_gradients=not bptt).h
      loss = tf.reduce_sum(lstm.unroll(h, upper, stop_gradients=not bptt).h * signal)
      loss += tf.reduce_sum(h * p.learning_signal)  # the lower layer is read out, too
    return tape.gradient(loss, variables)

  expected = by_autodiff()
  h = lstm.forward(p.x, lower)
  g_upper, dh = lstm.adjoint(lstm.forward(h.h, upper), h.h, signal, upper, bptt, input_gradient=bptt)
  g_lower, _ = lstm.adjoint(h, p.x, p.learning_signal + (dh if bptt else 0), lower, bptt)
  assert_close(g_lower, expected[:3])
  assert_close(g_upper, expected[3:])
  if bptt:
    assert relative_error(learn('plain', 'bptt_adjoint')[0].w_in, g_lower.w_in) > 1e-2


@pytest.mark.parametrize('rule', RULES)
def test_single_precision(rule):
  x, signal, weights = problem('peepholes')
  single = RULES[rule](tf.cast(x, tf.float32), tf.cast(signal, tf.float32), constants(weights, np.float32))[0]
  assert all(g.dtype == tf.float32 for g in single)
  assert_close(single, result('peepholes', rule)[0], 1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Utterances of unequal length


LENGTHS = [20, 11, 1]


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('backwards', [False, True])
def test_padding_changes_nothing(rule, backwards):
  """A batch with whatever after each utterance's end equals the utterances one by one, heard forwards or backwards."""
  p = problem('plain')
  real = tf.constant(np.arange(20)[:, None, None] < np.array(LENGTHS)[:, None])
  signal = tf.where(real, p.learning_signal, 0.0)
  padded = [tf.where(real, p.x, tf.constant(value, tf.float64)) for value in (0.0, 50.0)]
  turn = (lambda array: lstm.reverse_sequence(array, LENGTHS)) if backwards else tf.identity
  gradients, garbage = (RULES[rule](turn(x), turn(signal), p.weights) for x in padded)
  assert_close(garbage[0], gradients[0], 1e-14)
  alone = []
  for b, length in enumerate(LENGTHS):
    x, s = (array[:length, b:b + 1][::-1 if backwards else 1] for array in (p.x, signal))
    alone.append(RULES[rule](x, s, p.weights))
    h, expected = (turn(lstm.forward(turn(padded[1]), p.weights).h)[:length, b:b + 1],
                   lstm.forward(x, p.weights).h[::-1 if backwards else 1])
    assert relative_error(h, expected) < 1e-13
    if rule in BPTT:
      assert relative_error(turn(garbage[1])[:length, b:b + 1], alone[b][1][::-1 if backwards else 1]) < EXACT
      np.testing.assert_array_equal(turn(garbage[1])[length:, b], 0)
  assert_close(gradients[0], [sum(parts) for parts in zip(*(a[0][:3] for a in alone))])
  assert relative_error(learn('plain', rule)[0].w_in, gradients[0].w_in) > 1e-2  # where L is not 0, padding counts


def test_reverse_sequence():
  x = tf.constant(np.arange(40).reshape(20, 2, 1))
  y = lstm.reverse_sequence(x, [20, 3]).numpy()
  np.testing.assert_array_equal(y[:, 0], x[::-1, 0])
  np.testing.assert_array_equal(y[:, 1, 0], [5, 3, 1, *range(7, 40, 2)])
  np.testing.assert_array_equal(lstm.reverse_sequence(y, [20, 3]), x)


# ---------------------------------------------------------------------------------------------------------------------
# The published cell, and what is refused


@pytest.mark.parametrize('rule', RULES)
def test_published_cell(golden, rule):
  """Cross-entropy averaged over steps and trials. The arrays are float32, the computation here is not."""
  g = golden('figure2_lstm')
  assert str(g['gate_order']) == 'i,j,f,o' and g['forget_bias'] == lstm.FORGET_BIAS
  x, kernel, bias, w_out = (tf.constant(g[key], tf.float64) for key in ('inputs', 'kernel', 'bias', 'w_out'))
  weights = Weights(kernel[:x.shape[-1]], kernel[x.shape[-1]:], bias)
  h = lstm.forward(x, weights).h
  assert relative_error(h, g['h'].swapaxes(0, 1)) < 1e-6
  y, target = h @ w_out, np.eye(w_out.shape[1])[g['labels']]
  np.testing.assert_allclose(-tf.reduce_mean(tf.reduce_sum(target * tf.nn.log_softmax(y), -1)), g['loss'], rtol=1e-6)
  error = (tf.nn.softmax(y) - target) / g['labels'].size
  gradients, _ = RULES[rule](x, error @ tf.transpose(w_out), weights)                      # (4), symmetric
  kind, other = ('bptt', 'eprop_symmetric') if rule in BPTT else ('eprop_symmetric', 'bptt')
  expected = lambda kind: [*np.split(g[f'g_kernel_{kind}'], [x.shape[-1]]), g[f'g_bias_{kind}']]
  assert_close(gradients, expected(kind), 1e-5)
  assert relative_error(gradients.w_in, expected(other)[0]) > 1e-2


@pytest.mark.parametrize('init_scale', [0.0, 0.1])
def test_initial_weights(init_scale):
  weights = lstm.initial_weights(np.random.default_rng(0), 123, 200, init_scale, use_peepholes=True)
  kernel = init_scale or (6 / (123 + 200 + 800)) ** 0.5
  shapes, bounds = [(123, 800), (200, 800), (800,), (3, 200)], (kernel, kernel, 0, init_scale or (3 / 200) ** 0.5)
  for array, shape, bound in zip(weights, shapes, bounds):
    assert array.dtype == np.float32 and array.shape == shape
    assert 0.98 * bound <= np.abs(array).max() <= bound * (1 + 1e-6) and abs(array.mean()) <= 0.1 * bound
  assert lstm.initial_weights(np.random.default_rng(0), 3, 2).peepholes is None


def test_refused():
  with pytest.raises(ValueError, match='at least one cell'):
    lstm.LSTM(0)
  with pytest.raises(ValueError, match='init_scale'):
    lstm.initial_weights(np.random.default_rng(0), 3, 2, -0.1)
  x, signal, weights = problem('plain')
  with pytest.raises(ValueError, match='needs bptt'):
    lstm.adjoint(lstm.forward(x, weights), x, signal, weights, input_gradient=True)

"""Gradients: three computations of e-prop and two of BPTT against a slow oracle and each other."""
import functools
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

import eprop
import lsnn
import oracle
import readout
from eprop import cosine
from learner import Learner
from readout import RateCost, Readout, Weights

# Every gradient there is: arguments of Learner.
EPROP = {f'eprop_{impl}': dict(impl=impl) for impl in eprop.IMPLEMENTATIONS}
BPTT = {f'bptt_{impl}': dict(impl=impl, bptt=True) for impl in ('adjoint', 'autodiff')}
RULES = EPROP | BPTT


class Case(NamedTuple):
  """A network, a loss and a batch. neurons: arguments that lsnn.ALIF and oracle.Neurons share."""
  neurons: dict
  n: int
  loss: str
  rate_kind: str
  feedback: str
  cost: float  # of the rates
  n_steps: int = 60
  n_batch: int = 2
  n_in: int = 6
  n_out: int = 2
  n_shards: int = 1
  kappa: float = np.exp(-1 / 20)
  normalised: bool = True


LIF = dict(thr=0.6, tau=20.0, tau_adaptation=1.0, beta=0.0)
ALIF = dict(thr=0.6, tau=20.0, tau_adaptation=200.0, beta=0.3, n_refractory=3)
MIXED = dict(thr=0.5, tau=np.linspace(5, 40, 20), tau_adaptation=50.0, beta=np.repeat([0.0, 0.3], 10), n_refractory=2)
SCALED = dict(thr=0.04, tau=np.linspace(20, 40, 10), tau_adaptation=50.0, beta=0.01, scale_input=True)
CASES = {
    'lif': Case(LIF, 8, 'cross_entropy', 'simple', 'symmetric', 0.03),
    'prime_time': Case(MIXED, 20, 'squared_error', 'online', 'random', 0.3, n_steps=101, n_batch=3, n_shards=2),
    'chunks_of_time': Case(ALIF, 6, 'cross_entropy', 'online', 'symmetric', 0.3, n_steps=400, normalised=False,
                           kappa=np.exp(-1 / 3)),
    'three_shards': Case(SCALED, 10, 'squared_error', 'simple', 'random', 0.3, n_steps=48, n_batch=3, n_out=1, n_shards=3),
    'one_step': Case({**LIF, 'thr': 0.2}, 7, 'cross_entropy', 'online', 'random', 0.003, n_steps=1, n_shards=3),
}
LONG = [name for name in CASES if name != 'one_step']


class Problem(NamedTuple):
  """Settings and arrays (float64) of a case."""
  cell: lsnn.ALIF
  readout: Readout
  regularisation: RateCost
  x: tf.Tensor
  target: tf.Tensor
  weight: tf.Tensor
  weights: Weights
  feedback: tf.Tensor


@functools.cache
def problem(name):
  case = CASES[name]
  rng = np.random.default_rng(list(CASES).index(name))
  x = (rng.random((case.n_steps, case.n_batch, case.n_in)) < 0.25).astype(np.float64)
  weights = [rng.normal(size=shape) / shape[0] ** 0.5
             for shape in ((case.n_in, case.n), (case.n, case.n), (case.n, case.n_out))]
  target = rng.normal(size=(case.n_steps, case.n_batch, case.n_out))
  if case.loss == 'cross_entropy':
    target = np.exp(target) / np.exp(target).sum(-1, keepdims=True)
  weight = rng.random((case.n_steps, 1, 1)) / (case.n_steps * case.n_batch)
  feedback = eprop.feedback_matrix(case.feedback, weights[2], rng)
  return Problem(lsnn.ALIF(case.n, dtype='float64', **case.neurons), Readout(case.kappa, case.normalised, case.loss),
                 RateCost(case.cost, 0.02, case.rate_kind), tf.constant(x), tf.constant(target), tf.constant(weight),
                 Weights(*map(tf.constant, weights)), tf.constant(feedback))


@functools.cache
def learner(name, rule):
  """Compiled once per case and rule; tests call it with other arrays of the same shapes."""
  return Learner(*problem(name)[:3], n_shards=CASES[name].n_shards, **RULES[rule])


def learn(name, rule, **changes):
  """Result of a rule on a case, with some of its arrays changed."""
  return learner(name, rule)(*problem(name)._replace(**changes)[3:])


result = functools.cache(learn)


def by_oracle(name, bptt, through_reset=True, **changes):
  """What `learn` should give."""
  p = problem(name)._replace(**changes)
  arrays = (array.numpy() for array in (p.x, p.target, p.weight, *p.weights))
  cost, f0, rate_kind = p.regularisation
  return oracle.readout_gradient(oracle.Neurons(CASES[name].n, **CASES[name].neurons), *arrays,
                                 None if bptt else p.feedback.numpy(), *p.readout, rate_kind, cost, f0, through_reset)


expected_result = functools.cache(by_oracle)


def relative_error(actual, expected):
  """Largest difference over largest expected entry; the difference itself where 0 is expected."""
  actual, expected = np.asarray(actual), np.asarray(expected)
  return np.abs(actual - expected).max() / (np.abs(expected).max() or 1)


def assert_close(actual, expected, tolerance=1e-10):
  """Weights, or the first of them, agree to a tolerance relative to their largest entry."""
  for name, a, b in zip(Weights._fields, actual, expected):
    assert relative_error(a, b) < tolerance, name


# ---------------------------------------------------------------------------------------------------------------------
# The gradients are those of the oracle, and each other's


@pytest.mark.parametrize('name', CASES)
def test_case_is_worth_testing(name):
  """The networks fire, and both losses count."""
  full = result(name, 'eprop_autodiff')
  of_rates = learn(name, 'eprop_autodiff', weight=tf.zeros_like(problem(name).weight))
  assert 0.01 < np.mean(full.rate) < 0.5
  assert 0.03 < relative_error(of_rates.gradients.w_in, full.gradients.w_in) < 10


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('name', CASES)
def test_gradient_equals_oracle(name, rule):
  actual, expected = result(name, rule), expected_result(name, rule in BPTT)
  assert_close(actual.gradients, expected[:3])
  np.testing.assert_array_equal(np.diag(actual.gradients.w_rec), 0)
  np.testing.assert_allclose(actual.task_loss, expected.task_loss, rtol=1e-12)
  np.testing.assert_allclose(actual.rate_loss, expected.rate_loss, rtol=1e-12)


@pytest.mark.parametrize('rule', RULES)
def test_what_must_not_matter(rule):
  """The diagonal of w_rec; whether one target is given for all trials or one each."""
  name = 'prime_time'
  p = problem(name)
  target = p.target[:, :1]
  plain = learn(name, rule, target=tf.repeat(target, CASES[name].n_batch, axis=1)).gradients
  with_autapses = p.weights._replace(w_rec=p.weights.w_rec + 5 * tf.eye(p.cell.units, dtype=tf.float64))
  assert_close(learn(name, rule, target=target, weights=with_autapses).gradients, plain, 1e-14)


# ---------------------------------------------------------------------------------------------------------------------
# The gradients are derivatives


@pytest.mark.parametrize('name', ['lif', 'prime_time'])
def test_w_out_by_finite_differences(name):
  """The task loss is smooth in w_out, and `evaluate` gives the loss that learning descends."""
  p, rule = problem(name), learner(name, 'eprop_adjoint')
  loss, y, _ = rule.evaluate(p.x, p.target, p.weight, p.weights)
  learned = result(name, 'eprop_adjoint')
  np.testing.assert_allclose(loss, learned.task_loss, rtol=1e-14)
  assert relative_error(y, learned.y) < 1e-14
  for direction in np.random.default_rng(0).normal(size=(3, *p.weights.w_out.shape)):
    step = 1e-4 * direction
    plus, minus = (rule.evaluate(p.x, p.target, p.weight, p.weights._replace(w_out=p.weights.w_out + change))[0]
                   for change in (step, -step))
    np.testing.assert_allclose((plus - minus) / 2, np.sum(learned.gradients.w_out * step), rtol=1e-6)


def smooth_spike(h, dampening_factor=0.3):
  """The function whose true derivative is the pseudo-derivative: its integral from -1 to h."""
  h = tf.clip_by_value(h, -1, 1)
  return dampening_factor * (0.5 + h - h * tf.abs(h) / 2)


def test_bptt_of_smooth_spikes_by_finite_differences(monkeypatch):
  """With the spike function that the pseudo-derivative belongs to, BPTT is the slope of both losses in every weight."""
  monkeypatch.setattr(lsnn, 'spike', smooth_spike)
  p = problem('lif')
  cell = lsnn.ALIF(8, thr=0.6, tau=np.linspace(10, 30, 8), tau_adaptation=50.0, beta=2.0, dtype='float64')
  rule = Learner(cell, p.readout, RateCost(0.05, 0.02, 'online'), bptt=True)
  run = lambda weights: rule(p.x, p.target, p.weight, weights, p.feedback)
  for name, gradient in run(p.weights).gradients._asdict().items():
    step = 1e-5 * np.random.default_rng(1).normal(size=gradient.shape)
    plus, minus = (run(p.weights._replace(**{name: getattr(p.weights, name) + change})) for change in (step, -step))
    slope = (plus.task_loss + plus.rate_loss - minus.task_loss - minus.rate_loss) / 2
    np.testing.assert_allclose(np.sum(gradient * step), slope, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize('name', ['lif', 'prime_time', 'three_shards'])
def test_ideal_learning_signal_gives_bptt(name):
  """Eq. (1): with the true dE/dz for L, the sum over traces is the gradient of BPTT."""
  p = problem(name)

  @tf.function
  def factorised():
    dz = tf.zeros([*p.x.shape[:2], p.cell.units], tf.float64)
    with tf.GradientTape() as tape:
      tape.watch(dz)
      run = eprop.Layer(p.cell).simulate(p.x, eprop.Weights(*p.weights[:2]), dz=dz)
      y = lsnn.exp_filter(run.z, p.readout.kappa, p.readout.normalised) @ p.weights.w_out
      loss = readout.loss_and_error(p.readout.loss, y, p.target, p.weight)[0]
      loss += readout.rate_cost(p.regularisation, tf.reduce_mean(run.z, [0, 1]), run.z)
    ideal = tape.gradient(loss, dz)
    return [tf.einsum('tbj,tbij->ij', ideal, eprop.eligibility_traces(p.cell, pre, run.memory)[0])
            for pre in (p.x, eprop.one_step_later(run.z))]

  g_in, g_rec = factorised()
  assert_close([g_in, lsnn.without_autapses(g_rec)], result(name, 'bptt_adjoint').gradients)


# ---------------------------------------------------------------------------------------------------------------------
# What must be equal, and what must differ


@pytest.mark.parametrize('name', ['lif', 'prime_time', 'three_shards'])
def test_without_recurrent_weights_only_the_reset_sets_bptt_apart(name):
  """With w_rec = 0 the one path that e-prop leaves out is z[t] -> -thr z[t] -> v[t+1], a neuron's own reset."""
  weights = problem(name).weights
  changes = dict(weights=weights._replace(w_rec=tf.zeros_like(weights.w_rec)), feedback=weights.w_out)
  eprop_gradients, bptt_gradients = (learn(name, rule, **changes).gradients for rule in ('eprop_adjoint', 'bptt_adjoint'))
  assert_close(eprop_gradients, by_oracle(name, True, through_reset=False, **changes))
  assert_close(bptt_gradients, by_oracle(name, True, through_reset=True, **changes))
  assert relative_error(eprop_gradients.w_in, bptt_gradients.w_in) > 1e-2


def test_in_a_single_step_eprop_is_bptt():
  """Nothing comes back through the network where there is no next step."""
  symmetric = learn('one_step', 'eprop_adjoint', feedback=problem('one_step').weights.w_out)
  assert_close(symmetric.gradients, result('one_step', 'bptt_adjoint').gradients, 1e-14)


@pytest.mark.parametrize('name', LONG)
def test_eprop_differs_from_bptt_but_points_the_same_way(name):
  symmetric = learn(name, 'eprop_adjoint', feedback=problem(name).weights.w_out).gradients
  bptt = result(name, 'bptt_adjoint').gradients
  for a, b in zip(symmetric[:2], bptt[:2]):
    assert relative_error(a, b) > 1e-2
    assert 0.1 < cosine(a, b) < 0.9999
  assert relative_error(symmetric.w_out, bptt.w_out) < 1e-12


@pytest.mark.parametrize('rule', EPROP)
def test_feedback_matters(rule):
  """Random feedback gives another gradient than symmetric feedback, but for w_out.

  Uniform feedback is blind to the errors of a softmax, which sum to zero: what is left is the rate cost, as without
  any feedback.
  """
  feedback = problem('lif').feedback
  symmetric, random, uniform, none = (learn('lif', rule, feedback=b).gradients for b in (
      feedback, np.random.default_rng(0).normal(size=feedback.shape), tf.ones_like(feedback), tf.zeros_like(feedback)))
  for other in (random, uniform):
    assert relative_error(other.w_in, symmetric.w_in) > 0.1
    assert relative_error(other.w_rec, symmetric.w_rec) > 0.1
    assert relative_error(other.w_out, symmetric.w_out) < 1e-14
  assert_close(uniform, none)


@pytest.mark.parametrize('rule', BPTT)
def test_bptt_ignores_feedback(rule):
  blind = learn('lif', rule, feedback=tf.zeros_like(problem('lif').feedback))
  assert_close(blind.gradients, result('lif', rule).gradients, 1e-14)


def test_cosine():
  a, b = tf.constant([[3.0, 4.0], [0.0, 0.0]]), tf.constant([[4.0, -3.0], [2.0, 2.0]])
  np.testing.assert_allclose([cosine(a, a), cosine(a, -2 * a), cosine(a, b), cosine(a, 0 * a)], [1, -1, 0, 0], atol=1e-7)


# ---------------------------------------------------------------------------------------------------------------------
# Parts of the gradient


@pytest.mark.parametrize('rule', EPROP)
@pytest.mark.parametrize('name', ['prime_time', 'chunks_of_time'])
def test_gradient_of_the_rate_cost_alone(name, rule):
  """Without task: among others, hardcoded's sums carried forward give what a signal known only at the end gives."""
  changes = dict(weight=tf.zeros_like(problem(name).weight))
  learned, expected = learn(name, rule, **changes), by_oracle(name, False, **changes)
  assert_close(learned.gradients, expected)
  assert np.abs(learned.gradients.w_in).max() > 0 and not np.any(learned.gradients.w_out)


@pytest.mark.parametrize('name', ['prime_time', 'three_shards'])
def test_eligibility_traces_equal_oracle(name):
  p, case = problem(name), CASES[name]

  @tf.function
  def traces():
    run = eprop.Layer(p.cell).simulate(p.x, eprop.Weights(*p.weights[:2]))
    e, eps = eprop.eligibility_traces(p.cell, p.x, run.memory)
    return p.cell.psi(run.memory), (e, eps.v, eprop.one_step_later(eps.a))

  psi, actual = traces()
  assert np.any(psi)
  for b in range(case.n_batch):
    expected = oracle.eligibility(oracle.Neurons(case.n, **case.neurons), p.x[:, b].numpy(), psi[:, b].numpy())
    for trace, expected_trace in zip(actual, expected):
      assert relative_error(trace[:, b] * np.ones(case.n), expected_trace) < 1e-12


# ---------------------------------------------------------------------------------------------------------------------
# Arguments that are refused


def smallest(rate_kind='simple', loss='cross_entropy', **kwargs):
  """Builds a Learner with these settings and runs it on the smallest batch."""
  rule = Learner(lsnn.LIF(2), Readout(0.9, loss=loss), RateCost(1.0, 0.01, rate_kind), **kwargs)
  return rule(*[tf.ones([1, 1, 1])] * 3, Weights(tf.ones([1, 2]), tf.ones([2, 2]), tf.ones([2, 1])), tf.ones([2, 1]))


@pytest.mark.parametrize('rule', EPROP)
def test_unknown_loss_is_refused(rule):
  with pytest.raises(ValueError, match="loss must be one of cross_entropy, squared_error, .* got 'hinge', 'simple'"):
    smallest(loss='hinge', **RULES[rule])


@pytest.mark.parametrize('rule', EPROP)
def test_unknown_rate_cost_is_refused(rule):
  with pytest.raises(ValueError, match="rate cost one of simple, online; got 'cross_entropy', 'weekly'"):
    smallest(rate_kind='weekly', **RULES[rule])


def test_no_shards_are_refused():
  with pytest.raises(ValueError, match='n_shards must be at least 1, got 0'):
    smallest(n_shards=0)

"""The agent of figures 4 and 5 and reward-based e-prop: three computations, BPTT, a slow oracle, the published cell."""
import functools
import pathlib
import sys
import types
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

FIGURE_4 = pathlib.Path(__file__).resolve().parent.parent / 'Figure_4_and_5_ATARI'
sys.path.append(str(FIGURE_4))  # behind the Figure 3 folder, whose lsnn.py, eprop.py and experiment.py are the same

from actor_critic import Costs, Targets, Window, discounted_returns, episode_mask, learning_signals, log_pi_of_actions, targets
from agent import Agent, NAMES, Record, Weights, by_name, heads
import atari_oracle
import lsnn
from online_reward_based_eprop import hardcoded
import oracle
from reward_based_eprop import Learner, autodiff
from spiking_cnn import Affine, ConvLIF
from test_eprop import relative_error

N, B, S, SIZE, A = 8, 4, 3, 12, 3
N_LIF, N_ALIF = 6, 4
NEURONS = dict(n=N_LIF + N_ALIF, thr=0.8, tau=15.0, tau_adaptation=30.0, beta=np.repeat([0.0, 0.2], [N_LIF, N_ALIF]),
               n_refractory=2)
# Of a size at which each loss has its share in the gradient.
COSTS = Costs(discounting=0.9, baseline_cost=0.7, entropy_cost=0.4, rate_cost=5.0, rate_target=0.02, voltage_cost_rnn=3e-4,
              voltage_cost_cnn=0.05, reg_factor_cnn=3.0)
NO_MEANS = COSTS._replace(rate_cost=0.0, voltage_cost_rnn=0.0, voltage_cost_cnn=0.0)  # costs that do not see the window
BROADCAST = 'broadcast convolutions'
ESTIMATED = 'generalised, normalised advantages'
CLIPPED = 'a clipped update'
CASES = ('episodes end', 'begins inside an episode', 'averages over trials', 'random feedback', 'three windows', ESTIMATED,
         CLIPPED, BROADCAST, f'{BROADCAST}, random feedback')
HEADS = ('w_policy', 'b_policy', 'w_value', 'b_value')
SEEDS = {False: 3, True: 8}  # without and with broadcast convolutions, at which all layers spike


def make_agent(broadcast=False):
  """An agent whose heads see averages, or, with windows that leave a margin of the first layer, broadcast convolutions."""
  view1, view2 = (dict(pool=2, pool_stride=1), dict(pool=2, pool_stride=2)) if not broadcast else (
      dict(pool=2, pool_stride=2, broadcast=2), dict(pool=3, pool_stride=1, broadcast=3))
  conv1 = ConvLIF((SIZE, SIZE, 1), filters=3, kernel=4, stride=2, **view1)
  conv2 = ConvLIF(conv1.size, filters=2, kernel=2, stride=1, **view2)
  constants = {name: value for name, value in NEURONS.items() if name != 'n'}
  return Agent(A, conv1, conv2, lsnn.ALIF(NEURONS['n'], **constants, dtype='float64'), n_repeat=S)


def published_agent(broadcast=False):
  """The agent of the published runs, which is that of main.py's defaults; or with --ba_cnn."""
  filters = (32, 64) if broadcast else (None, None)
  conv1 = ConvLIF((84, 84, 1), filters=16, kernel=8, stride=4, pool=8, pool_stride=4, broadcast=filters[0])
  conv2 = ConvLIF(conv1.size, filters=8, kernel=4, stride=1, pool=4, pool_stride=2, broadcast=filters[1])
  cell = lsnn.ALIF(400, thr=1.0, tau=15.0, tau_adaptation=70.0, beta=np.repeat([0, 0.1], [240, 160]), n_refractory=5,
                   dtype='float32')
  return Agent(3, conv1, conv2, cell)


class Problem(NamedTuple):
  """An agent and what it lived through; arrays in float64."""
  agent: Agent
  costs: Costs
  weights: Weights
  state: tuple        # before the first frame
  window: Window
  feedback: object    # None: the heads' weights


def stack(records):
  return tf.nest.map_structure(lambda *arrays: tf.stack(arrays), *records)


@functools.cache
def actor(broadcast=False):
  agent = make_agent(broadcast)
  return agent, tf.function(agent.act)


def live(act, weights, state, frames, resets):
  """Acts one step after the other. Returns the records, stacked, and the states before each step and after the last."""
  records, states = [], [state]
  for frame, reset in zip(frames, resets):
    *_, state, record = act(weights, state, frame, reset)
    records.append(record)
    states.append(state)
  return stack(records), states


@functools.cache
def make_problem(case):
  agent, act = actor(BROADCAST in case)
  rng = np.random.default_rng(SEEDS[BROADCAST in case])
  weights = agent.initial_weights(rng)
  with_bias = lambda part, gain=1.0: part._replace(w=gain * part.w, b=rng.normal(0, 0.1, part.b.shape)) if part else ()
  weights = Weights(
      conv1=with_bias(weights.conv1, 0.15), conv2=with_bias(weights.conv2, 0.4),
      rnn=weights.rnn._replace(w_in=2 * weights.rnn.w_in), policy=with_bias(weights.policy), value=with_bias(weights.value),
      view1=with_bias(weights.view1), view2=with_bias(weights.view2))
  weights = tf.nest.map_structure(tf.constant, weights)
  frames = tf.constant(rng.integers(0, 256, (N + 1, B, SIZE, SIZE)), tf.uint8)
  reset = np.zeros((N + 1, B))
  reset[0] = case != 'begins inside an episode'
  reset[3, 0] = reset[5, 0] = reset[4, 1] = reset[N, 2] = 1
  state = agent.initial_state(B)
  if case == 'begins inside an episode':
    state = live(act, weights, state, frames[:4], tf.zeros((4, B), tf.float64))[1][-1]
  records, _ = live(act, weights, state, frames, tf.constant(reset))
  mask, _ = episode_mask(records.reset[1:], tf.zeros(B, tf.float64))
  mask = tf.ones_like(mask) if case in ('three windows', ESTIMATED, CLIPPED) else mask
  window = Window(records, tf.constant(rng.integers(0, A, (N, B)), tf.int32), tf.constant(rng.normal(size=(N, B))), mask,
                  tf.constant(0.6 if case in (ESTIMATED, CLIPPED) else 1.0, tf.float64))
  if case == CLIPPED:  # the policy was another one
    log_pi, *others = (tf.constant(rng.normal(0, scale, (N, B))) for scale in (0.3, 1.0, 1.0))
    window = window._replace(targets=Targets(log_pi_of_actions(window) + log_pi, *others))
  costs = COSTS._replace(voltage_reg_method='avg_all' if case == 'averages over trials' else 'avg_time',
                         gae_lambda=0.8 if case == ESTIMATED else 1.0)
  feedback = tf.constant(rng.normal(size=(agent.n_features, A + 1))) if 'random feedback' in case else None
  return Problem(agent, costs, weights, state, window, feedback)


def one_by_one(records):
  """Stacked records as a list of Records."""
  return [type(records)(*arrays) for arrays in zip(*map(tf.unstack, records))]


def learn(problem, costs, window=None, bptt=False, compiled=False):
  """Result of the adjoint form; by default without its graphs, which take longer to compile than to run."""
  window = window or problem.window
  tf.config.run_functions_eagerly(not compiled)
  try:
    return Learner(problem.agent, costs, bptt)(problem.weights, one_by_one(window.records), *window[1:],
                                               feedback=problem.feedback)
  finally:
    tf.config.run_functions_eagerly(False)


@functools.cache
def gradient(case, rule, costs=None, compiled=False):
  """Result of a rule: adjoint, autodiff, hardcoded, bptt_adjoint or bptt_autodiff. Compiling takes longer than running."""
  p = make_problem(case)
  costs = costs or p.costs
  bptt = rule.startswith('bptt')
  if rule == 'hardcoded':
    run = lambda: hardcoded(p.agent, costs, p.weights, p.window, feedback=p.feedback)[0]
  elif rule.endswith('adjoint'):
    return learn(p, costs, bptt=bptt, compiled=compiled)
  else:
    run = lambda: autodiff(p.agent, costs, p.weights, p.window, p.state, p.feedback, bptt)
  return tf.function(run, jit_compile=rule == 'hardcoded')() if compiled else run()


def assert_equal(actual, expected, tolerance=1e-10):
  """All gradients (Weights or lists) agree to a tolerance relative to their largest entry, and none of them is 0."""
  actual, expected = tf.nest.flatten(actual), tf.nest.flatten(expected)
  assert len(actual) == len(expected) >= 10
  for name, a, b in zip(by_name(NAMES), actual, expected):
    assert np.abs(b).max() > 1e-6, name
    assert relative_error(a, b) < tolerance, name


# ---------------------------------------------------------------------------------------------------------------------
# Neurons and agent


def test_convolutional_neurons_are_the_published_ones(golden):
  """Spikes, potentials and gradients, the latter by adjoint and by autodiff; arrays are [time, trial, neuron] already."""
  g = {key: array.swapaxes(0, 1) if key in ('inputs', 'learning_signal', 'z', 'v') else array
       for key, array in golden('figure4_conv_lif').items()}
  layer = ConvLIF((3, 4, 1), filters=1, kernel=1, stride=1, pool=2, pool_stride=1)
  np.testing.assert_allclose([layer.decay, layer.thr, layer.dampening_factor],
                             [g['decay'], g['thr'], g['dampening_factor']], rtol=1e-7)
  in_space = lambda x: tf.reshape(tf.constant(x), [*x.shape[:2], 3, 4, 1])
  currents, signal = in_space(g['inputs']), in_space(g['learning_signal'])

  frames = [slice(t, t + 5) for t in range(0, len(currents), 5)]
  zeros, step_weights = tf.zeros_like(currents[0]), (0.0,) * 5
  with tf.GradientTape() as tape:
    tape.watch(currents)
    v, hs, zs = zeros, [], []
    for frame in frames:
      h, z, _, v = layer.run(v, currents[frame], step_weights)
      hs.append(h)
      zs.append(z)
    loss = tf.reduce_sum(tf.concat(zs, 0) * signal)
  by_autodiff, by_adjoint, after = tape.gradient(loss, currents), [], zeros
  for h, frame in zip(reversed(hs), reversed(frames)):
    gi, after = layer.adjoint(h, zeros, step_weights, zeros, zeros, after, from_above=signal[frame])
    by_adjoint.insert(0, gi)

  h, by_autodiff, by_adjoint = (np.reshape(x, g['z'].shape) for x in (tf.concat(hs, 0), by_autodiff, tf.concat(by_adjoint, 0)))
  np.testing.assert_array_equal(h > 0, g['z'])
  assert 0.1 < g['z'].mean() < 0.9
  assert relative_error(layer.thr * (1 + h), g['v']) < 1e-5
  assert relative_error(by_autodiff, g['g_inputs']) < 1e-5
  assert relative_error(by_adjoint, g['g_inputs']) < 1e-5


@pytest.mark.parametrize('broadcast', [False, True])
def test_published_sizes_and_initial_weights(broadcast):
  agent = published_agent(broadcast)
  assert (agent.conv1.size, agent.conv2.size, agent.conv2.units) == ((20, 20, 16), (17, 17, 8), 2312)
  assert agent.feature_sizes == ([400, 4 * 4 * 32, 7 * 7 * 64] if broadcast else [400, 256, 392])
  weights = agent.initial_weights(np.random.default_rng(0))
  fan_in = dict(conv1=64, conv2=256, w_in=2312, w_rec=400, w_policy=agent.n_features, w_value=agent.n_features)
  if broadcast:
    fan_in |= dict(broadcast1=1024, broadcast2=128)
    assert weights.view1.w.shape == (8, 8, 16, 32) and weights.view2.w.shape == (4, 4, 8, 64)
    assert weights.view1.b.shape == (32,) and weights.view2.b.shape == (64,)
  assert list(by_name(weights)) == list(by_name(NAMES))[:14 if broadcast else 10]
  for name, w in by_name(weights).items():
    assert w.dtype == np.float32
    if name in fan_in:
      scaled = w * np.sqrt(fan_in[name])
      normal = name.startswith('w_in') or name == 'w_rec'
      np.testing.assert_allclose(scaled.std(), 1 if normal else 0.88, atol=0.08, err_msg=name)  # sd after truncation
      assert (np.abs(scaled).max() > 3) if normal else (1.8 < np.abs(scaled).max() <= 2.0001), name
    else:
      assert not w.any(), name
  assert not np.diag(weights.rnn.w_rec).any()
  np.testing.assert_array_equal(agent.cell.beta > 0, np.arange(400) >= 240)


def test_arguments_that_do_not_fit():
  with pytest.raises(ValueError, match='windows that fit'):
    ConvLIF((6, 6, 1), filters=1, kernel=8, stride=4, pool=1, pool_stride=1)
  for broadcast in (None, 1):
    with pytest.raises(ValueError, match='windows that fit'):
      ConvLIF((6, 6, 1), filters=1, kernel=4, stride=2, pool=3, pool_stride=1, broadcast=broadcast)
  with pytest.raises(ValueError, match='thr > 0'):
    ConvLIF((6, 6, 1), filters=1, kernel=4, stride=2, pool=1, pool_stride=1, thr=0)
  conv = ConvLIF((12, 12, 1), filters=3, kernel=4, stride=2, pool=2, pool_stride=1)
  with pytest.raises(ValueError, match='second layer'):
    Agent(3, conv, conv, lsnn.ALIF(4))
  p = make_problem('episodes end')
  with pytest.raises(ValueError, match='avg_time, avg_all'):
    learn(p, COSTS._replace(voltage_reg_method='mean'))


@pytest.mark.parametrize('broadcast', [False, True])
def test_spread_is_the_transpose_of_see(broadcast):
  rng = np.random.default_rng(0)
  for layer in (published_agent(broadcast).conv1, make_agent(broadcast).conv2):
    z, signal = (tf.constant(rng.normal(size=shape)) for shape in ((2, *layer.size), (2, layer.view.n_features)))
    weights = Affine(tf.constant(rng.normal(size=layer.view.filter_shape)), tf.zeros(layer.view.filters, tf.float64)
                     ) if broadcast else ()
    seen = layer.view.see(z, weights)
    np.testing.assert_allclose(tf.reduce_sum(seen * signal), tf.reduce_sum(z * layer.view.spread(signal, weights)), rtol=1e-10)


def of_oracle(case):
  """The oracle's simulation and its arguments from `weights` on; for cases that begin with an episode."""
  p = make_problem(case)
  none = dict.fromkeys(('broadcast1', 'bias_broadcast1', 'broadcast2', 'bias_broadcast2'), np.zeros(0))
  weights = types.SimpleNamespace(**none | {name: w.numpy() for name, w in by_name(p.weights).items()})
  images, reset = p.window.records.frame.numpy() / 255, p.window.records.reset.numpy()
  neurons = oracle.Neurons(**NEURONS)
  return p, neurons, weights, reset, atari_oracle.simulate(p.agent, neurons, weights, images, reset)


@pytest.mark.parametrize('case', ['episodes end', BROADCAST])
def test_agent_is_that_of_the_oracle(case):
  p, _, _, _, run = of_oracle(case)
  records = p.window.records
  over_time = lambda x: np.reshape(x, (-1, B, *x.shape[3:]))
  np.testing.assert_array_equal(over_time(records.h) > 0, run.rnn.z)
  for layer, h, (_, v) in zip((p.agent.conv1, p.agent.conv2), (records.h1, records.h2), run.layers):
    np.testing.assert_allclose(over_time(layer.thr * (1 + h)), v, atol=1e-12)
    assert 0.1 < np.mean(h > 0) < 0.7
  assert 0.05 < run.rnn.z.mean() < 0.5
  np.testing.assert_allclose(over_time(records.v), run.rnn.v, atol=1e-12)
  np.testing.assert_allclose(over_time(records.a), run.rnn.a, atol=1e-12)
  np.testing.assert_allclose(records.logits, run.y[..., :-1], atol=1e-12)
  np.testing.assert_allclose(records.value, run.y[..., -1], atol=1e-12)


def test_reset_makes_a_fresh_agent():
  """Where an episode begins, nothing of the past is left; elsewhere something is."""
  agent, act = actor()
  p = make_problem('begins inside an episode')
  frame = p.window.records.frame[0]
  assert all(np.abs(s).max() > 0 for s in tf.nest.flatten(p.state))
  *_, state, record = act(p.weights, p.state, frame, tf.constant([1.0, 0.0, 1.0, 0.0], tf.float64))
  *_, fresh_state, fresh_record = act(p.weights, agent.initial_state(B), frame, tf.zeros(B, tf.float64))
  of_state = [(0, *pair) for pair in zip(tf.nest.flatten(state), tf.nest.flatten(fresh_state))]
  of_record = [(1 if name in ('h1', 'h2', 'h', 'v', 'a') else 0, a, b)
               for name, a, b in zip(record._fields, record, fresh_record) if name not in ('frame', 'reset')]
  differs = []
  for trials, *arrays in of_state + of_record:
    with_past, fresh = (np.moveaxis(array.numpy(), trials, 0) for array in arrays)
    np.testing.assert_array_equal(with_past[[0, 2]], fresh[[0, 2]])
    differs.append(not np.array_equal(with_past[[1, 3]], fresh[[1, 3]]))
  assert np.mean(differs) > 0.9


def test_acting_step_by_step_is_unrolling():
  p = make_problem('begins inside an episode')
  records = p.window.records
  _, unrolled = tf.function(p.agent.unroll)(p.weights, p.state, records.frame, records.reset)
  for name, a, b in zip(records._fields, records, unrolled):
    np.testing.assert_allclose(a, b, atol=1e-12, err_msg=name)


# ---------------------------------------------------------------------------------------------------------------------
# Returns, losses, gradients


def test_returns_and_td_errors():
  p = make_problem('three windows')
  reward, done, value = p.window.reward.numpy(), p.window.records.reset[1:].numpy(), p.window.records.value.numpy()
  R = discounted_returns(p.window.reward, tf.constant(done), value[-1], 0.9)
  np.testing.assert_allclose(R, atari_oracle.returns(reward, done, value[-1], 0.9), rtol=1e-12)
  assert relative_error(R[-1], reward[-1]) > 0.01 and R[-1, 2] == reward[-1, 2]  # bootstrapped where no episode ended
  delta = atari_oracle.td_errors(reward, done, value, 0.9)
  np.testing.assert_allclose(atari_oracle.advantages(delta, done, 0.9), R - value[:-1], atol=1e-12)
  summed = discounted_returns(tf.constant(delta), tf.constant(done), tf.zeros(B, tf.float64), 0.72)
  np.testing.assert_allclose(summed, atari_oracle.advantages(delta, done, 0.72), atol=1e-12)


def test_mask_is_one_until_the_first_end():
  done = tf.constant([[0, 0, 1], [1, 0, 0], [0, 0, 0], [1, 0, 1.]])
  mask, finished = episode_mask(done, tf.constant([0, 0, 0.]))
  np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 1, 0]])
  np.testing.assert_array_equal(finished, [1, 0, 1])
  mask, finished = episode_mask(done, finished)
  np.testing.assert_array_equal(mask, [[0, 1, 0]] * 4)
  np.testing.assert_array_equal(finished, [1, 0, 1])


@pytest.mark.parametrize('case', [case for case in CASES if case != 'begins inside an episode'])
def test_losses_and_gradients_are_those_of_the_oracle(case):
  p, neurons, weights, reset, run = of_oracle(case)
  arrays = (*(x.numpy() for x in p.window[1:5]), p.window.targets, reset)
  result = gradient(case, 'adjoint')
  expected = atari_oracle.losses(p.agent, p.costs, neurons, run, *arrays)
  assert np.abs(expected).min() > 1e-3
  np.testing.assert_allclose(result.losses, expected, rtol=1e-10)
  np.testing.assert_allclose(result.rate, run.rnn.z.mean((0, 1)), rtol=1e-12)
  feedback = (heads(p.weights).w if p.feedback is None else p.feedback).numpy()
  gradients = atari_oracle.eprop(p.agent, p.costs, neurons, weights, run, *arrays, feedback)
  assert_equal(result.gradients, [gradients[name] for name in by_name(p.weights)])


@pytest.mark.parametrize('case, rule', [(case, rule) for case in CASES for rule in ('hardcoded', 'autodiff')
                                        if (case, rule) != (CLIPPED, 'hardcoded')])
def test_three_computations_are_one(case, rule):
  """Summation by parts: returns and TD errors give the same gradient, whatever ends inside the window."""
  assert_equal(gradient(case, rule).gradients, gradient(case, 'adjoint').gradients)
  np.testing.assert_allclose(gradient(case, rule).losses, gradient(case, 'adjoint').losses, rtol=1e-10)


def test_shares_of_a_batch_add_up():
  """What --n_workers does: each learns from its trials, with its part of the costs of means and the rates of all trials."""
  p = make_problem('episodes end')
  whole = gradient('episodes end', 'adjoint')
  means = ('rate_cost', 'voltage_cost_rnn', 'voltage_cost_cnn')
  costs = p.costs._replace(**{name: getattr(p.costs, name) / 2 for name in means})
  spikes = whole.rate * ((N + 1) * S * B // 2)  # of half a batch, on average
  learner = Learner(p.agent, costs, of_whole_batch=lambda seen: seen._replace(spikes=spikes))
  learn_alone, parts, alone = Learner(p.agent, costs), [], []
  flat = lambda result: tf.nest.flatten(result.gradients)
  for half in (slice(0, 2), slice(2, 4)):
    batch_first = {'reset', 'frame', 'z_before', 'features', 'logits', 'value'}
    records = [type(r)(*(x[half] if name in batch_first else x[:, half] for name, x in zip(r._fields, r)))
               for r in one_by_one(p.window.records)]
    arguments = p.weights, records, *(x[:, half] for x in p.window[1:4])
    parts.append(learner(*arguments))
    alone.append(learn_alone(*arguments))
  for results, agrees in ((parts, True), (alone, False)):
    losses, gradients = (np.sum([r.losses for r in results], 0), [sum(g) for g in zip(*map(flat, results))])
    assert np.allclose(losses, whole.losses, rtol=1e-10) == agrees
    assert (relative_error(gradients[4], whole.gradients.rnn.w_in) < 1e-10) == agrees
  assert_equal([sum(g) for g in zip(*map(flat, parts))], whole.gradients)


@pytest.mark.parametrize('case, rule', [
    *(('begins inside an episode', rule) for rule in ('hardcoded', 'autodiff')), (BROADCAST, 'hardcoded'),
    *((case, rule) for case in ('averages over trials', f'{BROADCAST}, random feedback')
      for rule in ('adjoint', 'bptt_adjoint'))])
def test_compiled_graphs_give_the_same(case, rule):
  """Compiled by XLA as a whole where it may be."""
  expected, actual = (gradient(case, rule, compiled=compiled) for compiled in (False, True))
  assert_equal(actual.gradients, expected.gradients)
  for a, b in zip(tf.nest.flatten(actual[1:]), tf.nest.flatten(expected[1:])):
    np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.parametrize('case', ['begins inside an episode', 'averages over trials', CLIPPED, BROADCAST])
def test_bptt_is_autodiff_without_stops(case):
  assert_equal(gradient(case, 'bptt_adjoint').gradients, gradient(case, 'bptt_autodiff').gradients)


def test_bptt_and_eprop_differ():
  """Except in the heads."""
  eprop, bptt = (gradient(BROADCAST, rule).gradients for rule in ('adjoint', 'bptt_adjoint'))
  eprop, bptt = by_name(eprop), by_name(bptt)
  for name, a in eprop.items():
    b = bptt[name]
    error = relative_error(a, b)
    assert error < 1e-10 if name in HEADS else error > 1e-2, name


@pytest.mark.parametrize('cost', ['baseline_cost', 'entropy_cost', 'rate_cost', 'voltage_cost_rnn', 'voltage_cost_cnn'])
def test_every_cost_counts(cost):
  """Each changes the gradients it acts on, by a part that the tolerances of this file cannot hide, and no other."""
  acts_on = dict(baseline_cost=(0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13), entropy_cost=(4, 5, 6, 7), rate_cost=(4, 5),
                 voltage_cost_rnn=(4, 5), voltage_cost_cnn=(0, 1, 2, 3))[cost]
  with_it, without = (gradient(BROADCAST, 'adjoint', costs).gradients for costs in (COSTS, COSTS._replace(**{cost: 0.0})))
  for k, (name, a, b) in enumerate(zip(by_name(NAMES), *map(tf.nest.flatten, (with_it, without)))):
    changed = np.abs(a - b).max() / np.abs(a).max()
    assert changed > 1e-3 if k in acts_on else changed < 1e-12, name


@pytest.mark.parametrize('change', ['lambda', 'policy_weight'])
def test_advantages_change_the_learning_signal_alone(change):
  """Lambda all that is learned from rewards; the weight of the policy what its head learns, by that factor."""
  p = make_problem(ESTIMATED)
  costs = p.costs._replace(entropy_cost=0.0)
  costs, window = (costs._replace(gae_lambda=1.0), p.window) if change == 'lambda' else (
      costs, p.window._replace(policy_weight=tf.constant(0.3, tf.float64)))
  changed = by_name(learn(p, costs, window).gradients)
  before = by_name(gradient(ESTIMATED, 'adjoint', p.costs._replace(entropy_cost=0.0)).gradients)
  for name in ('conv1', 'w_in', 'w_rec', 'w_policy') + ('w_value',) * (change == 'lambda'):
    assert relative_error(changed[name], before[name]) > 0.01, name
  if change == 'policy_weight':
    np.testing.assert_allclose(2 * changed['w_policy'], before['w_policy'], rtol=1e-12)
    np.testing.assert_array_equal(changed['w_value'], before['w_value'])


def test_clipped_signals_by_hand():
  """One trial, two actions of probability 1/2, c = 0.2: A rho (pi - onehot) where the ratio rho did not go too far, else 0."""
  old, A, factor = np.array([(0.5, 2, 2), (0.4, 2, 0), (0.4, -2, -2.5), (0.7, -2, 0), (0.7, 2, 10 / 7), (0.55, -2, -20 / 11)]).T
  zeros = tf.zeros((7, 1), tf.float64)
  records = Record(**dict.fromkeys(Record._fields) | dict(reset=zeros, logits=tf.zeros((7, 1, 2), tf.float64), value=zeros + 3))
  window = Window(records, tf.zeros((6, 1), tf.int32), zeros[1:], tf.ones_like(zeros[1:]), tf.constant(0.5, tf.float64),
                  Targets(*(tf.constant(x[:, None]) for x in (np.log(old), A, A + 10))))
  signals, returns = learning_signals(COSTS, window)
  rewarded = (signals.policy_value * signals.advantage).numpy()[:, 0]
  np.testing.assert_allclose(rewarded[:6], np.stack([-factor / 4, factor / 4, -0.7 * (A + 7)], 1), rtol=1e-12)
  assert not rewarded[6].any()
  np.testing.assert_array_equal(returns[:, 0], A + 10)


def test_the_first_clipped_update_is_the_usual_one():
  """Of the weights that played: the ratio is 1."""
  p = make_problem(ESTIMATED)
  fixed = targets(p.costs, p.window)
  actual, expected = learn(p, p.costs, p.window._replace(targets=fixed)), gradient(ESTIMATED, 'adjoint')
  assert_equal(actual.gradients, expected.gradients)
  np.testing.assert_allclose(actual.losses[1:], expected.losses[1:], rtol=1e-12)
  np.testing.assert_allclose(actual.losses.policy, -0.6 * np.sum(fixed.advantage), rtol=1e-12)
  np.testing.assert_allclose(actual.returns, expected.returns, rtol=1e-12)


def test_random_feedback_and_symmetric_feedback_differ():
  """Except in the heads."""
  symmetric, random = (gradient(case, 'adjoint').gradients for case in (BROADCAST, f'{BROADCAST}, random feedback'))
  for name, a, b in zip(by_name(NAMES), *map(tf.nest.flatten, (symmetric, random))):
    assert relative_error(a, b) < 1e-10 if name in HEADS else relative_error(a, b) > 0.1, name


@pytest.mark.parametrize('rule', ['adjoint', 'hardcoded'])
def test_finished_episodes_contribute_nothing(rule):
  """Other actions and rewards after the first end of an episode change nothing, before it they do."""
  p = make_problem('episodes end')
  rng = np.random.default_rng(7)
  after = p.window.mask.numpy() == 0
  assert 0 < after.sum() < after.size
  costs = NO_MEANS

  def gradients(reward, action):
    window = p.window._replace(reward=tf.constant(reward), action=tf.constant(action, tf.int32))
    return (learn(p, costs, window) if rule == 'adjoint' else hardcoded(p.agent, costs, p.weights, window)[0]).gradients

  reward, action = p.window.reward.numpy(), p.window.action.numpy()
  expected = gradients(reward, action)
  assert_equal(gradients(np.where(after, rng.normal(size=after.shape), reward),
                         np.where(after, (action + 1) % A, action)), expected, 1e-12)
  assert relative_error(gradients(np.where(after, reward, reward + 1), action).rnn.w_in, expected.rnn.w_in) > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Traces that are carried from window to window


def cut_window(window, first, last):
  """Steps first ... last - 1 and the frame after them."""
  records = type(window.records)(*(array[first:last + 1] for array in window.records))
  return Window(records, *(array[first:last] for array in window[1:4]), window.policy_weight)


@pytest.mark.parametrize('case', ['three windows', 'begins inside an episode', ESTIMATED, BROADCAST])
def test_carried_traces_give_the_gradient_of_the_long_window(case):
  """At fixed weights, windows cut inside episodes; without the costs that are means over a window."""
  p = make_problem(case)
  costs = NO_MEANS._replace(gae_lambda=p.costs.gae_lambda)
  whole = gradient(case, 'adjoint', costs).gradients
  traces, carried, truncated = None, [], []
  for first, last in ((0, 2), (2, 3), (3, N)):
    window = cut_window(p.window, first, last)
    result, traces = hardcoded(p.agent, costs, p.weights, window, traces)
    carried.append(result.gradients)
    truncated.append(hardcoded(p.agent, costs, p.weights, window)[0].gradients)
    assert_equal(truncated[-1], learn(p, costs, window).gradients)
  added = lambda parts: [np.sum(arrays, 0) for arrays in zip(*map(tf.nest.flatten, parts))]
  assert_equal(added(carried), whole)
  for name, a, b in zip(by_name(whole), added(truncated), tf.nest.flatten(whole)):
    assert relative_error(a, b) > 1e-3, name


def test_traces_do_not_grow_with_the_window():
  p = make_problem('three windows')
  traces = [hardcoded(p.agent, COSTS, p.weights, cut_window(p.window, 0, last))[1] for last in (2, N)]
  sizes = [[t.shape for t in tf.nest.flatten(of_window)] for of_window in traces]
  assert sizes[0] == sizes[1]

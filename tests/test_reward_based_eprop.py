"""Reward-based e-prop of figures 4 and 5: returns, losses, three computations of the gradient, BPTT, a slow oracle."""
import numpy as np
import pytest
import tensorflow as tf

# First: this makes the folder of figure 4 known.
from agent_problems import (A, B, N, S, BROADCAST, CASES, CLIPPED, COSTS, ESTIMATED, HEADS, NO_MEANS, assert_equal,
                            gradient, learn, make_problem, of_oracle, one_by_one)
from actor_critic import Targets, Window, discounted_returns, episode_mask, learning_signals, targets
from agent import NAMES, Record, by_name, heads
import atari_oracle
from online_reward_based_eprop import hardcoded
from reward_based_eprop import Learner
from test_eprop import relative_error


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

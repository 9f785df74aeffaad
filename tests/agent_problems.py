"""Small agents of figures 4 and 5 and what they live through, for the tests of agent and learning rule."""
import functools
import pathlib
import sys
import types
from typing import NamedTuple

import numpy as np
import tensorflow as tf

FIGURE_4 = pathlib.Path(__file__).resolve().parent.parent / 'Figure_4_and_5_ATARI'
sys.path.append(str(FIGURE_4))  # behind the Figure 3 folder, whose lsnn.py, eprop.py and experiment.py are the same

from actor_critic import Costs, Targets, Window, episode_mask, log_pi_of_actions
from agent import Agent, NAMES, Weights, by_name
import atari_oracle
import lsnn
from online_reward_based_eprop import hardcoded
import oracle
from reward_based_eprop import Learner, autodiff
from spiking_cnn import ConvLIF
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


def of_oracle(case):
  """The oracle's simulation and its arguments from `weights` on; for cases that begin with an episode."""
  p = make_problem(case)
  none = dict.fromkeys(('broadcast1', 'bias_broadcast1', 'broadcast2', 'bias_broadcast2'), np.zeros(0))
  weights = types.SimpleNamespace(**none | {name: w.numpy() for name, w in by_name(p.weights).items()})
  images, reset = p.window.records.frame.numpy() / 255, p.window.records.reset.numpy()
  neurons = oracle.Neurons(**NEURONS)
  return p, neurons, weights, reset, atari_oracle.simulate(p.agent, neurons, weights, images, reset)

"""Agents that play: windows of agent steps for learning, whole episodes for evaluation, one recorded game for the figures.

Notation as in reward_based_eprop.py. An environment is one of environments.py: after a step in which an episode ended it shows
the first frame of the next one.
"""
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from actor_critic import Window, discounted_returns
from agent import Record
import experiment


class Played(NamedTuple):
  """What happened in N agent steps of B environments."""
  state: NamedTuple    # agent.State before the first of the frames
  records: list        # N + 1 Records, of the bootstrap frame, too
  action: np.ndarray   # int32 [N, B]
  score: np.ndarray    # float32 [N, B] true rewards
  done: np.ndarray     # bool [N, B]

  def window(self, reward, mask, policy_weight, targets=None):
    """Everything as the Window of `autodiff` and `hardcoded`; the arguments are as in Window."""
    return Window(Record(*map(tf.stack, zip(*self.records))), tf.constant(self.action), reward, mask, policy_weight, targets)


def sample(logits, rng, first_game=0, n_games=0):
  """An action for each row of logits [B, A], drawn from the softmax; int64 [B]. first_game, n_games: see draws.py."""
  n_batch, n_actions = logits.shape
  return np.argmax(logits + rng.gumbel(size=(n_games or n_batch, n_actions))[first_game:first_game + n_batch], axis=1)


def greedy(logits, _):
  """The likeliest action for each row of logits [B, A]; int64 [B]."""
  return np.argmax(logits, axis=1)


class Player:
  """B agents in B environments.

  Args:
    agent: agent.Agent.
    environment: see environments.py.
  """

  def __init__(self, agent, environment):
    self.agent, self.environment = agent, environment
    self._act = tf.function(agent.act)

  def begin(self, weights, seed):
    """Resets all environments and agents; seed: int."""
    frame = self.environment.reset(seed=seed)
    state = self.agent.initial_state(len(frame))
    self._see(weights, frame, np.ones(len(frame)), state)
    self._window_state, self._records = state, [self.record]

  def look_again(self, weights):
    """Has the agents see the last frame once more, with weights that have changed since: the next window begins with it."""
    self._see(weights, self.record.frame, self.record.reset, self.state_before)
    self._records = [self.record]

  def step(self, weights, action):
    """One agent step. Returns true rewards [B] and done bool [B]."""
    frame, reward, terminated, truncated = self.environment.step(action)
    done = terminated | truncated
    self._see(weights, frame, done, self.state)
    return reward, done

  def _see(self, weights, frame, reset, state):
    reset = tf.constant(reset, self.agent.dtype)
    self.state_before = state
    self.logits, self.value, self.state, self.record = self._act(weights, state, tf.constant(frame), reset)

  def window(self, weights, n_steps, rng, first_game=0, n_games=0):
    """Plays n_steps agent steps and shows the frame after them.

    Args:
      weights: agent.Weights.
      n_steps: N.
      rng: numpy Generator of the actions.
      first_game, n_games: see draws.py.

    Returns:
      Played. The next window's first record is this one's last: if the weights change in between, `look_again` first.
    """
    actions, scores, dones = [], [], []
    before = self._window_state
    for _ in range(n_steps):
      actions.append(sample(self.logits.numpy(), rng, first_game, n_games))
      score, done = self.step(weights, actions[-1])
      scores.append(score)
      dones.append(done)
      self._records.append(self.record)
    records, self._records, self._window_state = self._records, self._records[-1:], self.state_before
    return Played(before, records, np.array(actions, np.int32), np.array(scores), np.array(dones))


def observations(played):
  """The frames [N + 1, B, 84, 84], true rewards and ends [N, B] of Played, as dict of arrays."""
  return dict(observation=np.stack([record.frame for record in played.records]), reward=played.score, done=played.done)


class Games(NamedTuple):
  """Whole episodes, [n_episodes] each."""
  score: np.ndarray
  won: np.ndarray     # points won; score - won were lost
  length: np.ndarray  # agent steps


def evaluate(player, weights, n_episodes, seed, rng, choose=sample):
  """Whole episodes: each environment plays its share, so that short ones are not preferred.

  Args:
    player: Player.
    weights: agent.Weights.
    n_episodes: how many.
    seed: of the environments.
    rng: numpy Generator of the actions.
    choose: actions of (logits, rng): `sample`, as in training, or `greedy`.

  Returns:
    Games; signs of death of the network, a list of sentences.
  """
  player.begin(weights, seed)
  n_batch = len(player.logits)
  shares = [len(range(b, n_episodes, n_batch)) for b in range(n_batch)]
  finished, running = [[] for _ in range(n_batch)], np.zeros((n_batch, len(Games._fields)))
  rate, logits = 0.0, []
  while any(len(games) < share for games, share in zip(finished, shares)):
    if not rate:
      rate = float(tf.reduce_mean(tf.cast(player.record.h > 0, tf.float32)))
    logits = [*logits[:99], player.logits.numpy()]
    reward, done = player.step(weights, choose(logits[-1], rng))
    running += np.stack([reward, np.maximum(reward, 0), np.ones(n_batch)], 1)
    for b in np.flatnonzero(done):
      finished[b].append(running[b].copy())
    running[done] = 0
  games = [game for games, share in zip(finished, shares) for game in games[:share]]
  return Games(*np.array(games).T), experiment.signs_of_death(rate, logits)


def record_game(player, weights, n_steps, discount, seed, rng, choose=sample, n_thresholds=5):
  """The first environment's agent for some steps, as plots.game and plots.animate show it.

  Args:
    player: Player.
    weights: agent.Weights.
    n_steps: agent steps M.
    discount: of the returns, per agent step.
    seed: of the environments.
    rng: numpy Generator of the actions.
    choose: see `evaluate`.
    n_thresholds: how many ALIF neurons' thresholds to keep.

  Returns:
    dict of arrays; see plots.game.
  """
  cell = player.agent.cell
  beta = np.broadcast_to(cell.beta, cell.units)
  adaptive = np.flatnonzero(beta)[:n_thresholds]
  player.begin(weights, seed)
  columns = {name: [] for name in ('screens', 'policy', 'value', 'spikes', 'thresholds', 'rewards', 'done')}
  for _ in range(n_steps):
    record, logits = player.record, player.logits.numpy()
    policy = tf.nn.softmax(logits[0]).numpy()
    threshold = cell.thr + beta * record.a[:, 0].numpy()
    screen = player.environment.screen()
    reward, done = player.step(weights, choose(logits, rng))
    for name, value in zip(columns, (screen, policy, record.value[0].numpy(), record.h[:, 0].numpy() > 0,
                                     threshold[:, adaptive], reward[0], done[0])):
      columns[name].append(value)
  arrays = {name: np.array(values) for name, values in columns.items()}
  dtype = arrays['value'].dtype
  returns = discounted_returns(arrays['rewards'].astype(dtype), arrays['done'].astype(dtype), player.value[0], discount)
  for name in ('spikes', 'thresholds'):
    arrays[name] = arrays[name].reshape(-1, arrays[name].shape[-1])
  return dict(arrays, returns=returns.numpy(), n_regular=int(np.sum(beta == 0)))

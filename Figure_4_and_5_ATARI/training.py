"""Training of figures 4 and 5: games in windows of agent steps, a gradient of each window, Adam.

An iteration plays --parallel_episodes episodes to their ends, in windows of --unroll_length agent steps. It adds up the
gradients of the windows and changes the weights once, and steps after an environment's first episode count for nothing; or,
with --noapply_after_end, it changes them after each window, once or several times (clipped_updates.py), and all steps count.
Then all games begin anew.
"""
import itertools
import os
import sys
import time
from typing import NamedTuple

import experiment
from absl import flags
import numpy as np
import tensorflow as tf

from actor_critic import Losses, episode_mask
from agent import by_name
import checkpoints
import clipped_updates
import configuration
import files
from experiment import rng
from files import UserError
from learning import AdvantageScale, Optimizer, costs_at, make_learner, own_games
import playing
import replicas
import reports
import schedules

FLAGS = flags.FLAGS

FREE_FLAGS = ('total_environment_frames', 'print_every', 'do_plot', 'comment', 'n_processes')  # a resumed run may have others
SHORT = 200  # agent steps over which `return_200` of metrics.csv is summed: the length of the published training's first games
COLUMNS = ('frames', 'score', 'won', 'lost', 'return_200', 'return_clipped', 'episode_len', 'policy_loss', 'value_loss',
           'explained', 'advantage_sd', 'entropy', 'rate_loss', 'voltage_rnn_loss', 'voltage_cnn_loss', 'rate_lsnn',
           'learning_rate', 'max_episode_len', 'frames_per_s')
DRIFT = ('kl', 'clipped')  # more of them, with several updates per window


def of_all_games(array):
  """An array [N, own games, ...] with those of all workers, [N, --parallel_episodes, ...]."""
  whole = np.zeros([len(array), FLAGS.parallel_episodes, *array.shape[2:]], array.dtype)
  whole[:, own_games()] = array
  return replicas.total([whole])[0]


class Sums(NamedTuple):
  """What the steps of windows add up to, in all trials; float64 [] each, so that workers can add theirs up in turn."""
  # Losses, each times its cost
  policy_loss: float = 0
  value_loss: float = 0
  entropy_loss: float = 0
  rate_loss: float = 0
  voltage_rnn_loss: float = 0
  voltage_cnn_loss: float = 0
  # Windows, their mean firing rates, first games that go on
  n_windows: float = 0
  rate_lsnn: float = 0
  n_unfinished: float = 0
  # Of the environments' first games: steps, true rewards, and those above 0 alone, of the first SHORT steps, clipped
  n_steps: float = 0
  score: float = 0
  won: float = 0
  return_200: float = 0
  return_clipped: float = 0
  entropy: float = 0
  # Of the steps that count for learning: how many, returns R and advantages A
  n_counted: float = 0
  returns: float = 0
  returns_square: float = 0
  advantage: float = 0
  advantage_square: float = 0
  # Of several updates per window, see clipped_updates.learn
  kl: float = 0
  clipped: float = 0

  @property
  def losses(self):
    return Losses(*self[:len(Losses._fields)])

  def row(self):
    """Columns of metrics.csv."""
    names = ('score', 'won', 'return_200', 'return_clipped')
    of_games = {name: getattr(self, name) / FLAGS.parallel_episodes for name in names}
    variance = lambda sum_, square: square / self.n_counted - (sum_ / self.n_counted) ** 2
    of_returns = variance(self.returns, self.returns_square)
    explained = 1 - variance(self.advantage, self.advantage_square) / of_returns if of_returns > 0 else None
    return dict(self._asdict(), **of_games, lost=of_games['won'] - of_games['score'],
                episode_len=self.n_steps / FLAGS.parallel_episodes, explained=explained, entropy=self.entropy / self.n_steps,
                advantage_sd=(self.advantage_square / self.n_counted) ** 0.5, rate_lsnn=self.rate_lsnn / self.n_windows,
                **{name: getattr(self, name) / self.n_counted for name in DRIFT})


def sums_of(played, first_step, reward, mask, counted, n_unfinished, result, kl, clipped):
  """Sums of a window.

  Args:
    played: playing.Played.
    first_step: how many agent steps went before.
    reward: clipped, [N, B].
    mask, counted: 1 for steps of first games, and for those that count for learning, [N, B].
    n_unfinished: first games that go on after it.
    result: reward_based_eprop.Result.
    kl, clipped: as in Sums.

  Returns:
    Sums.
  """
  log_pi = tf.nn.log_softmax(tf.stack([record.logits for record in played.records[:-1]])).numpy()
  returns = result.returns.numpy()
  advantage = returns - np.stack([record.value for record in played.records[:-1]])
  score = mask * played.score
  of_games = dict(
      n_steps=mask.sum(), score=score.sum(), won=score[score > 0].sum(), return_200=score[:max(0, SHORT - first_step)].sum(),
      return_clipped=(mask * reward).sum(), entropy=-(mask * (np.exp(log_pi) * log_pi).sum(-1)).sum())
  return Sums(*map(float, result.losses), n_windows=1, rate_lsnn=result.rate.numpy().mean(), n_unfinished=n_unfinished,
              **of_games, n_counted=counted.sum(), returns=(counted * returns).sum(),
              returns_square=(counted * returns ** 2).sum(), advantage=(counted * advantage).sum(),
              advantage_square=(counted * advantage ** 2).sum(), kl=kl, clipped=clipped)


def frames_of(path, otherwise=0):
  """Emulator frames of the training that weights (.npz) come from; otherwise: if the file does not say."""
  return checkpoints.load_npz(path, [], ['frames']).get('frames', otherwise)


def initial_weights(agent):
  """Variables, at random or as --restore_from and --restore_cnn_from have them.

  Returns:
    Weights; the emulator frames with which schedules begin.
  """
  weights = tf.nest.map_structure(tf.Variable, agent.initial_weights(rng('weights')))
  frames = 0
  if FLAGS.restore_from:
    checkpoints.restore(by_name(weights), FLAGS.restore_from)
    if FLAGS.resume_max_episode_len:
      frames = int(frames_of(FLAGS.restore_from))
  if FLAGS.restore_cnn_from:
    of_layers = {name: w for name, w in by_name(weights).items() if name in ('conv1', 'bias1', 'conv2', 'bias2')}
    checkpoints.restore(of_layers, FLAGS.restore_cnn_from)
  for path, names in ((FLAGS.restore_from, configuration.OF_AGENT), (FLAGS.restore_cnn_from, configuration.OF_CNN)):
    other = configuration.other_than_of(path, names) if path and replicas.leads() else ''
    if other:
      print(f'warning: {path} is of a training with {other}', file=sys.stderr, flush=True)
  return weights, frames


def assign(variables, values):
  """Gives variables their values."""
  for variable, value in zip(variables, values):
    variable.assign(value)


class Worker:
  """What each worker has: its share of the games, the agent, and the rule by which it learns.

  Attributes:
    player: playing.Player.
    weights: Weights of variables.
    frames_before: emulator frames of the training that --restore_from goes on with.
    scale: AdvantageScale.
  """

  def __init__(self):
    self._games = own_games()
    n_games = self._games.stop - self._games.start
    for n_groups in schedules.values(FLAGS.n_minibatches):
      if any(n % n_groups for n in (self._games.start, self._games.stop, FLAGS.parallel_episodes)):
        raise UserError(f'--n_minibatches={n_groups:g} must divide the number of environments of each worker, here '
                        f'{n_games} of --parallel_episodes={FLAGS.parallel_episodes}')
    environment = configuration.make_environment(n_games, self._games.start, FLAGS.parallel_episodes)
    self.agent = configuration.make_agent(environment.n_actions)
    self.weights, self.frames_before = initial_weights(self.agent)
    self._simulate = clipped_updates.Simulation(self.agent, self.weights)
    self.player, self.scale = playing.Player(self.agent, environment), AdvantageScale()
    self._costs = None

  def begin(self, n_frames):
    """Sets what depends on n_frames, the emulator frames so far with those of --restore_from."""
    self._n_frames = n_frames
    self.player.environment.set_max_episode_len(configuration.max_episode_len(n_frames))
    costs = costs_at(n_frames)
    if costs != self._costs:
      self._costs = costs
      self._learn, self._forget = make_learner(self.agent, self.weights, costs)
    self._forget()

  def _learn_from(self, played, signal, generator, change):
    """What clipped_updates.learn returns; of the one update without it, a Result with gradients, to be applied."""
    n_groups = configuration.n_minibatches(self._n_frames)
    if FLAGS.update_epochs * n_groups == 1:
      return self._learn(played, *signal), 0.0, 0.0
    splits = [clipped_updates.groups(generator, FLAGS.parallel_episodes, self._games, n_groups)
              for _ in range(FLAGS.update_epochs)]
    return clipped_updates.learn(self._simulate, self._costs, played, signal, splits, self._learn, change)

  def play_and_learn(self, iteration, change, folder=None):
    """The episodes of an iteration.

    Args:
      iteration: its number, on which everything random depends.
      change: function of gradients (a list), loss and rate that changes the weights.
      folder: of the run, for --save_observations.

    Returns:
      Sums of all workers; how many agent steps each environment was played.
    """
    player, unroll_length = self.player, int(schedules.at(FLAGS.unroll_length, self._n_frames))
    generator, of_groups = rng('episodes', iteration), rng('minibatches', iteration)
    player.begin(self.weights, int(generator.integers(2 ** 31)))

    def update(result):
      of_all = (result.gradients, sum(result.losses), tf.reduce_mean(result.rate))
      *gradients, loss, rate = replicas.total(tf.nest.flatten(of_all))
      change(gradients, float(loss), float(rate))

    finished, gradients, sums = tf.zeros(len(player.logits), FLAGS.dtype), None, Sums()
    for n_windows in itertools.count(1):
      played = player.window(self.weights, unroll_length, generator, self._games.start, FLAGS.parallel_episodes)
      mask, finished = episode_mask(tf.cast(played.done, FLAGS.dtype), finished)
      counted = mask if FLAGS.apply_after_end else tf.ones_like(mask)
      reward = np.clip(played.score, FLAGS.least_reward, 1).astype(FLAGS.dtype)
      weight = tf.constant(self.scale.policy_weight(self._n_frames), FLAGS.dtype)
      signal = tf.constant(FLAGS.reward_scale * reward), counted, weight
      result, *drift = self._learn_from(played, signal, of_groups, update)
      of_window = sums_of(played, (n_windows - 1) * unroll_length, reward, mask.numpy(), counted.numpy(),
                          np.sum(finished == 0), result, *drift)
      of_window = Sums(*replicas.total([np.array(of_window, np.float64)])[0])
      sums = Sums(*map(sum, zip(sums, of_window)))
      self.scale.update(of_window.advantage_square / max(of_window.n_counted, 1))
      if FLAGS.save_observations:
        arrays = {name: of_all_games(array) for name, array in playing.observations(played).items()}
        if replicas.leads():
          files.write_npz(os.path.join(folder, f'observations_{iteration}_{n_windows}.npz'), arrays, compressed=True)
      if not FLAGS.apply_after_end:
        if result.gradients is not None:
          update(result)
        player.look_again(self.weights)
      elif gradients is None:
        gradients = tf.nest.flatten(result.gradients)
      else:
        gradients = [a + b for a, b in zip(gradients, tf.nest.flatten(result.gradients))]
      if not of_window.n_unfinished:
        break
    if FLAGS.apply_after_end:
      change(replicas.total(gradients), sum(sums.losses), sums.rate_lsnn)
    return sums, n_windows * unroll_length


def train():
  """Trains an agent."""
  worker = Worker()
  weights, games, optimizer = worker.weights, worker.player.environment, Optimizer(worker.weights)
  frames, frames_before = (tf.Variable(n, dtype=tf.int64) for n in (0, worker.frames_before))
  state = {f'optimizer_{k}': variable for k, variable in enumerate(optimizer.variables)}
  state |= {f'advantage_{k}': variable for k, variable in enumerate(worker.scale.variables)}
  columns = COLUMNS + (DRIFT if configuration.several_updates() else ())
  run = experiment.Run('main', columns, dict(by_name(weights), frames=frames, frames_before=frames_before, **state),
                       FREE_FLAGS)
  arrays = lambda: dict({name: w.numpy() for name, w in by_name(weights).items()}, frames=np.int64(frames + frames_before))

  run.stop(int(frames) >= FLAGS.total_environment_frames)  # a finished run goes on if it now has more frames to play
  for iteration in run.iterations(None, FLAGS.print_every):
    start = time.monotonic()
    n_frames, n_all = int(frames), int(frames + frames_before)
    worker.begin(n_all)
    rate = schedules.at(FLAGS.learning_rate, n_all) * FLAGS.learning_rate_decay ** (n_frames // FLAGS.decay_every)
    optimizer.set_learning_rate(rate)

    def change(gradients, loss, spikes):
      run.guard(iteration, loss, spikes)
      optimizer.apply(tf.nest.pack_sequence_as(weights, gradients), weights)

    sums, n_steps = worker.play_and_learn(iteration, change, run.folder)
    played = n_steps * FLAGS.parallel_episodes * FLAGS.num_action_repeats
    frames.assign_add(played)
    run.log(iteration, **{name: value for name, value in dict(
        sums.row(), frames=n_frames + played, learning_rate=rate, max_episode_len=games.max_episode_len,
        frames_per_s=played / (time.monotonic() - start)).items() if name in columns})
    passed = lambda every: (n_frames + played) // every > n_frames // every
    if passed(FLAGS.save_every) and replicas.leads():
      path = run.path(f'weights_{n_frames + played}.npz')
      files.check_finite(arrays(), f'after iteration {iteration}; {path} is not written')
      files.write_npz(path, arrays())
    if FLAGS.do_plot and passed(FLAGS.log_every) and replicas.leads():
      reports.draw(run.folder, f'_{(n_frames + played) // 1000}k', worker.agent, weights,
                   f'after {n_frames + played:,} frames', n_all, games.max_episode_len)
    if n_frames + played >= FLAGS.total_environment_frames:
      run.stop()

  if not replicas.leads():
    return
  lines, summary, signs = reports.evaluate(run.folder, worker.agent, weights, int(frames + frames_before))
  run.finish(arrays(), dict(summary, frames=int(frames)), [f'after {int(frames):,} frames', *lines], signs)

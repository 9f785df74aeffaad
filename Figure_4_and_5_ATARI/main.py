"""Figures 4 and 5: a spiking network learns to play from pixels by reward-based e-prop.

  python main.py --level_name=catch --preset=laptop              learns within minutes
  python main.py --level_name=atari/pong --preset=laptop
  python main.py --level_name=atari/pong                         the published values
  python main.py --mode=eval --checkpoint=FILE.npz --level_name=atari/pong
  python main.py --mode=chance --level_name=atari/pong           what actions at random score

An iteration plays --parallel_episodes episodes to their ends, in windows of --unroll_length agent steps. It adds up the
gradients of the windows and changes the weights once, and steps after an environment's first episode count for nothing; or,
with --noapply_after_end, it changes them after each window, and all steps count. Then all games begin anew.
"""
import os
import sys
import time

import experiment
import program
from absl import flags
import keras
import numpy as np
import tensorflow as tf

from actor_critic import Costs, Losses, VOLTAGE_METHODS, episode_mask
from agent import Agent, Weights
import catch
import environments
from experiment import rng
import files
from files import UserError
import lsnn
from online_reward_based_eprop import hardcoded
import playing
import plots
import processes
from reward_based_eprop import Learner, autodiff
from spiking_cnn import ConvLIF

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)

flags.DEFINE_enum('mode', 'train', ['train', 'eval', 'chance'], 'train an agent, play games with --checkpoint, or with actions at '
                  'random')
flags.DEFINE_enum('preset', 'paper', ['paper', 'laptop', 'fishing_derby'], 'published values, those that learn fastest on two '
                  'cores, or published values with the size for Fishing Derby')
program.DEFINE_path('checkpoint', None, 'weights (.npz) to evaluate')
program.DEFINE_path('restore_from', '', 'weights (.npz) to begin training with')
program.DEFINE_path('restore_cnn_from', '', 'weights (.npz) of which to take the convolutional layers')
flags.DEFINE_bool('resume_max_episode_len', True, 'with --restore_from, go on with the schedule of episode lengths where that '
                  'training was')
flags.DEFINE_string('comment', '', 'a note, kept in config.json')
# Games
flags.DEFINE_string('level_name', 'atari/pong', 'atari/NAME, catch or catch_cue_delay')
flags.DEFINE_integer('parallel_episodes', 32, 'environments', lower_bound=1)
flags.DEFINE_integer('n_processes', 1, 'processes that share the environments, one per core at best', lower_bound=1)
flags.DEFINE_integer('num_action_repeats', 4, 'emulator frames per agent step', lower_bound=1)
flags.DEFINE_float('total_environment_frames', 1e9, 'emulator frames to train for', lower_bound=1)
flags.DEFINE_integer('max_episode_len', 200, 'agent steps after which a game is stopped', lower_bound=1)
flags.DEFINE_integer('max_episode_len_jitter', 25, 'how far that varies from game to game', lower_bound=0)
flags.DEFINE_bool('use_cubic_schedule', True, 'let games get longer')
flags.DEFINE_float('increase_episode_len_every', 7e7, 'frames between two increases', lower_bound=1)
flags.DEFINE_float('increase_episode_len_by', 1, 'by how much the cubic root of the length grows', lower_bound=0)
flags.DEFINE_float('repeat_action_probability', 0.25, 'probability that the emulator repeats the last action', 0.0, 1.0)
flags.DEFINE_integer('noop_max', 29, 'most frames without action at the beginning of a game', lower_bound=0)
flags.DEFINE_bool('maxpool', False, 'show the maximum of the last two emulator frames instead of the last')
flags.DEFINE_bool('fire_reset', False, 'press the button at the beginning of a game')
flags.DEFINE_bool('subtract_background', False, 'show how frames differ from their median')
flags.DEFINE_float('reward_scale', 1.0, 'factor of the clipped rewards that are learned from')
flags.DEFINE_integer('emulator_threads', 0, 'threads of the emulators, worth it from four cores on; 0: none of their own',
                     lower_bound=0)
# Network
flags.DEFINE_integer('n_rec', 400, 'neurons of the LSNN', lower_bound=1)
flags.DEFINE_float('fraction_adaptive', 0.4, 'share of ALIF neurons', 0.0, 1.0)
flags.DEFINE_integer('n_rnn_step_factor', 5, 'network steps per frame', lower_bound=1)
for _layer, _values in (('1', (16, 8, 4, 8, 4)), ('2', (8, 4, 1, 4, 2))):
  for _name, _value, _help in zip(('n_filters_{}', 'n_kernel_{}', 'stride_{}', 'avg_pool_{}_k', 'avg_pool_{}_stride'), _values,
                                  ('filters', 'edge of the kernels', 'stride', 'edge of the pools', 'stride of the pools')):
    flags.DEFINE_integer(_name.format(_layer), _value, f'{_help} of convolutional layer {_layer}', lower_bound=1)
flags.DEFINE_bool('avg_ba_cnn', True, 'let the heads see averages of the convolutional layers\' spikes, the pools; goes before '
                  '--ba_cnn')
flags.DEFINE_bool('ba_cnn', False, 'with --noavg_ba_cnn, let them see trained convolutions of these spikes')
for _layer, _values, _help in (('1_1', (32, 8, 4), ' on layer 1'), ('1_2', (64, 4, 2), '; not used'),
                               ('2', (64, 4, 2), ' on layer 2')):
  for _name, _value, _what in zip(('filters', 'kernel', 'stride'), _values, ('filters', 'edge of the kernels', 'stride')):
    flags.DEFINE_integer(f'ba_{_name}_{_layer}', _value, f'{_what} of --ba_cnn{_help}', lower_bound=1)
flags.DEFINE_float('tau_scnn', 1.0, 'membrane time constant of the convolutional layers [network steps]')
flags.DEFINE_float('thr_scnn', 0.1, 'their threshold')
flags.DEFINE_float('tau', 15.0, 'membrane time constant of the LSNN [network steps]')
flags.DEFINE_float('tau_readout', 2.0, 'time constant of the heads [network steps]')
flags.DEFINE_float('tau_adaptation', 70.0, 'time constant of the adaptation [network steps]')
flags.DEFINE_float('thr', 1.0, 'threshold of the LSNN')
flags.DEFINE_float('beta', 0.1, 'strength of the adaptation', lower_bound=0)
flags.DEFINE_integer('n_refractory', 5, 'refractory period of the LSNN [network steps]', lower_bound=0)
flags.DEFINE_float('dampening_factor', 0.3, 'height of the LSNN\'s pseudo-derivative', lower_bound=0)
# Learning
flags.DEFINE_bool('use_eprop', True, 'e-prop; else BPTT')
flags.DEFINE_enum('eprop_impl', 'adjoint', ['adjoint', 'hardcoded', 'autodiff'], 'how e-prop\'s gradient is computed')
flags.DEFINE_bool('apply_after_end', True, 'change the weights when all episodes have ended; else after each window')
flags.DEFINE_integer('unroll_length', 100, 'agent steps per window', lower_bound=1)
flags.DEFINE_bool('cell_train', True, 'train the whole network, not only the heads')
flags.DEFINE_float('learning_rate', 1e-3, 'learning rate of Adam', lower_bound=0)
flags.DEFINE_float('learning_rate_heads', 1.0, 'times that for the heads', lower_bound=0)
flags.DEFINE_float('learning_rate_decay', 1.0, 'its factor per --decay_every frames', lower_bound=0)
flags.DEFINE_float('decay_every', 1e8, 'frames between two decays', lower_bound=1)
flags.DEFINE_float('epsilon', 1.0, 'epsilon of Adam', lower_bound=0)
flags.DEFINE_float('discounting', 0.99, 'discount per agent step', 0.0, 1.0)
flags.DEFINE_float('entropy_cost', 0.0025, 'weight of the entropy', lower_bound=0)
flags.DEFINE_float('baseline_cost', 1.0, 'weight of the squared error of the value', lower_bound=0)
flags.DEFINE_float('rate_cost', 50.0, 'weight of the rate regularisation', lower_bound=0)
flags.DEFINE_float('rate_target', 0.02, 'target rate [spikes per network step]', 0.0, 1.0)
flags.DEFINE_float('voltage_cost_rnn', 1e-4, 'weight of the LSNN\'s voltage regularisation', lower_bound=0)
flags.DEFINE_float('voltage_cost_cnn', 0.5, 'weight of that of the convolutional layers', lower_bound=0)
flags.DEFINE_enum('voltage_reg_method', 'avg_time', list(VOLTAGE_METHODS), 'what their voltages are averaged '
                  'over')
flags.DEFINE_float('reg_factor_cnn', 1e8, 'by what the convolutional layers\' gradient of policy and value is divided')
# Output
flags.DEFINE_integer('print_every', 10, 'iterations between two printed lines', lower_bound=1)
flags.DEFINE_float('log_every', 5e6, 'frames between two recorded games with figures', lower_bound=1)
flags.DEFINE_float('save_every', 1e7, 'frames between two sets of weights to keep', lower_bound=1)
flags.DEFINE_bool('save_observations', False, 'write what each window showed: frames, rewards, ends')
flags.DEFINE_bool('export_image_data', False, 'write the screens of each recorded game')
flags.DEFINE_integer('eval_episodes', 32, 'whole games to evaluate with', lower_bound=1)
flags.DEFINE_integer('eval_max_episode_len', 27000, 'agent steps after which an evaluated game is stopped', lower_bound=1)
flags.DEFINE_integer('eval_length', 200, 'agent steps of the recorded game', lower_bound=1)
flags.DEFINE_bool('do_plot', True, 'draw the figures')
flags.DEFINE_bool('save_anim', False, 'write an animation of the recorded game')
flags.DEFINE_enum('anim_format', 'gif', ['gif', 'mp4'], 'its format')

PRESETS = {
    'paper': {},
    'fishing_derby': dict(level_name='atari/fishing_derby', n_rec=300),  # 180 LIF and 120 ALIF neurons
    'laptop': dict(  # README.md: why
        # Adam as usual, an update after each short window, rewards train the convolutional layers, too; whole games.
        epsilon=1e-5, reg_factor_cnn=1.0, apply_after_end=False, unroll_length=20, max_episode_len=3000,
        use_cubic_schedule=False, n_processes=2,
        learning_rate=1.5e-4, learning_rate_heads=10.0, learning_rate_decay=0.3, decay_every=1.65e7,
        # Rewards that are near, and costs that do not outweigh them in the gradient.
        discounting=0.97, entropy_cost=0.003, baseline_cost=0.05, rate_cost=0.2, voltage_cost_rnn=2e-5, voltage_cost_cnn=0.002,
        # Only what moves, seen by neurons that are easier to excite; two network steps per frame, time constants to match.
        subtract_background=True, thr_scnn=0.05, n_rnn_step_factor=2, n_refractory=2, tau=6.0, tau_readout=1.0,
        tau_adaptation=28.0, rate_target=0.05),
}


def laptop_catch(n_frames, **values):
  """A window is a game of Catch, and the learning rate falls to steady the end."""
  return dict(epsilon=1e-5, reg_factor_cnn=1.0, unroll_length=catch.N_ROWS - 1, max_episode_len=catch.N_ROWS - 1,
              max_episode_len_jitter=0, use_cubic_schedule=False, total_environment_frames=n_frames, learning_rate_decay=0.3,
              **values)


LAPTOP_CATCH = {
    'catch': laptop_catch(1.25e6, decay_every=3.75e5),
    # A membrane that forgets, so that what was seen must be kept by adaptation, which is strong; costs as for Pong.
    'catch_cue_delay': laptop_catch(
        8e5, decay_every=3.2e5, learning_rate=3e-4, learning_rate_heads=10.0, baseline_cost=0.1, rate_cost=2.0,
        voltage_cost_rnn=2e-5, voltage_cost_cnn=0.02, n_rnn_step_factor=2, n_refractory=2, tau=3.0, tau_readout=1.0,
        tau_adaptation=28.0, beta=0.5, rate_target=0.05)}
FREE_FLAGS = ('total_environment_frames', 'print_every', 'do_plot', 'comment')  # a resumed run may have other values
SHORT = 200  # agent steps over which `return_200` of metrics.csv is summed: the length of the published training's first games
COLUMNS = ('frames', 'score', 'return_200', 'return_clipped', 'episode_len', 'policy_loss', 'value_loss', 'entropy',
           'rate_loss', 'voltage_rnn_loss', 'voltage_cnn_loss', 'rate_lsnn', 'learning_rate', 'max_episode_len',
           'frames_per_s')


def make_environment(n_envs):
  """The environments that the flags ask for."""
  settings = environments.Settings(
      frame_skip=FLAGS.num_action_repeats, repeat_action_probability=FLAGS.repeat_action_probability, noop_max=FLAGS.noop_max,
      maxpool=FLAGS.maxpool, fire_reset=FLAGS.fire_reset, threaded=FLAGS.emulator_threads > 0,
      n_threads=max(1, FLAGS.emulator_threads), max_episode_len=FLAGS.max_episode_len,
      max_episode_len_jitter=FLAGS.max_episode_len_jitter, increase_episode_len_every=FLAGS.increase_episode_len_every,
      increase_episode_len_by=FLAGS.increase_episode_len_by, subtract_background=FLAGS.subtract_background)
  return environments.make(FLAGS.level_name, n_envs, FLAGS.seed, settings)


def make_agent(n_actions):
  """The agent that the flags ask for."""
  if not (FLAGS.avg_ba_cnn or FLAGS.ba_cnn):
    raise UserError('the heads need a view of the convolutional layers: give --avg_ba_cnn or --ba_cnn')
  if FLAGS.avg_ba_cnn:
    view1, view2 = (FLAGS.avg_pool_1_k, FLAGS.avg_pool_1_stride), (FLAGS.avg_pool_2_k, FLAGS.avg_pool_2_stride)
  else:
    view1 = FLAGS.ba_kernel_1_1, FLAGS.ba_stride_1_1, FLAGS.ba_filters_1_1
    view2 = FLAGS.ba_kernel_2, FLAGS.ba_stride_2, FLAGS.ba_filters_2
  neurons = dict(tau=FLAGS.tau_scnn, thr=FLAGS.thr_scnn)
  try:
    conv1 = ConvLIF((84, 84, 1), FLAGS.n_filters_1, FLAGS.n_kernel_1, FLAGS.stride_1, *view1, **neurons)
    conv2 = ConvLIF(conv1.size, FLAGS.n_filters_2, FLAGS.n_kernel_2, FLAGS.stride_2, *view2, **neurons)
    n_regular = FLAGS.n_rec - round(FLAGS.fraction_adaptive * FLAGS.n_rec)
    cell = lsnn.ALIF(FLAGS.n_rec, FLAGS.thr, FLAGS.tau, FLAGS.tau_adaptation,
                     np.repeat([0, FLAGS.beta], [n_regular, FLAGS.n_rec - n_regular]), FLAGS.n_refractory,
                     FLAGS.dampening_factor, dtype=FLAGS.dtype)
    return Agent(n_actions, conv1, conv2, cell, FLAGS.n_rnn_step_factor, FLAGS.tau_readout)
  except ValueError as error:
    raise UserError(error) from None


def make_learner(agent, weights, group):
  """How a window is learned from.

  Args:
    agent: Agent.
    weights: Weights of variables.
    group: processes.Group.

  Returns:
    A function of Played, rewards [N, B] and mask [N, B] that returns a Result, and one that makes it forget earlier windows.
  """
  # Costs of means over the batch: each process adds its part.
  share = {name: getattr(FLAGS, name) / group.size for name in ('rate_cost', 'voltage_cost_rnn', 'voltage_cost_cnn')}
  costs = Costs(**{name: getattr(FLAGS, name) for name in Costs._fields} | share)
  bptt = not FLAGS.use_eprop
  if FLAGS.eprop_impl == 'adjoint':
    learner = Learner(agent, costs, bptt, lambda spikes: tf.constant(group.sum([spikes])[0] / group.size))
    learn = lambda played, reward, mask: learner(weights, played.records, tf.constant(played.action), reward, mask)
    return learn, lambda: None
  if FLAGS.eprop_impl == 'autodiff':
    compiled = tf.function(lambda *arguments: autodiff(agent, costs, weights, *arguments, bptt=bptt))
    return lambda played, reward, mask: compiled(played.window(reward, mask), played.state), lambda: None
  online = tf.function(lambda *arguments: hardcoded(agent, costs, weights, *arguments))
  carried = []

  def learn(played, reward, mask):
    result, traces = online(played.window(reward, mask), *carried)
    carried[:] = [traces]
    return result

  return learn, carried.clear


class Optimizer:
  """Adam, of the heads and of the other weights, with a learning rate of each; or of the heads alone (--nocell_train)."""
  HEADS = ('w_policy', 'b_policy', 'w_value', 'b_value')

  def __init__(self, weights):
    dtype = np.dtype(FLAGS.dtype).type
    self._parts = []  # names, optimizer, factor of the learning rate
    for names, factor in ((self.HEADS, FLAGS.learning_rate_heads),
                          ([name for name in weights._asdict() if name not in self.HEADS], 1.0))[:1 + FLAGS.cell_train]:
      adam = keras.optimizers.Adam(FLAGS.learning_rate, dtype(0.9), dtype(0.999), epsilon=FLAGS.epsilon)
      adam.build(self._chosen(weights, names))
      self._parts.append((names, adam, factor))

  @staticmethod
  def _chosen(weights, names):
    by_name = weights._asdict()
    return [by_name[name] for name in names]

  @property
  def variables(self):
    """All that a resumed run needs."""
    return [variable.value for _, adam, _ in self._parts for variable in adam.variables]

  def set_learning_rate(self, rate):
    for _, adam, factor in self._parts:
      adam.learning_rate.assign(factor * rate)

  def apply(self, gradients, weights):
    """One update. gradients, weights: Weights, the latter of variables."""
    for names, adam, _ in self._parts:
      adam.apply(self._chosen(gradients, names), self._chosen(weights, names))


def play_and_learn(player, learn, change, weights, iteration, group, folder=None):
  """The episodes of one iteration.

  Args:
    player: playing.Player.
    learn: from `make_learner`.
    change: function of gradients, loss and rate that changes the weights.
    weights: Weights of variables.
    iteration: its number, on which everything random depends.
    group: processes.Group, each process of which calls this.
    folder: of the run, for --save_observations.

  Returns:
    A row of metrics.csv, without frames, learning rate and speed; how many agent steps each environment was played.
  """
  generator = rng(f'episodes{group.rank or ""}', iteration)
  player.begin(weights, int(generator.integers(2 ** 31)))
  finished = tf.zeros(len(player.logits), FLAGS.dtype)
  gradients, losses, score, early, clipped, length, entropy, rates = None, 0, 0, 0, 0, 0, 0, []
  n_unfinished = 1
  while n_unfinished:
    step = len(rates) * FLAGS.unroll_length
    played = player.window(weights, FLAGS.unroll_length, generator)
    mask, finished = episode_mask(tf.cast(played.done, FLAGS.dtype), finished)
    reward = np.clip(played.score, -1, 1).astype(FLAGS.dtype)
    result = learn(played, tf.constant(FLAGS.reward_scale * reward), mask if FLAGS.apply_after_end else tf.ones_like(mask))
    *window_losses, n_unfinished = group.sum([np.array([*map(float, result.losses), np.sum(finished == 0)])])[0]
    losses += np.array(window_losses)
    rates.append(result.rate.numpy().mean())
    if FLAGS.save_observations:
      playing.save_window(os.path.join(folder, f'observations_{iteration}_{len(rates)}.npz'), played)
    if not FLAGS.apply_after_end:
      change(Weights(*group.sum(result.gradients)), sum(window_losses), rates[-1])
      player.look_again(weights)
    elif gradients is None:
      gradients = result.gradients
    else:
      gradients = [a + b for a, b in zip(gradients, result.gradients)]
    mask = mask.numpy()
    score += (mask * played.score).sum()
    early += (mask * played.score)[:max(0, SHORT - step)].sum()
    clipped += (mask * reward).sum()
    length += mask.sum()
    log_pi = tf.nn.log_softmax(tf.stack([record.logits for record in played.records[:-1]])).numpy()
    entropy -= (mask * (np.exp(log_pi) * log_pi).sum(-1)).sum()
  if FLAGS.apply_after_end:
    change(Weights(*group.sum(gradients)), losses.sum(), np.mean(rates))
  losses = Losses(*losses)
  score, early, clipped, length, entropy = group.sum([np.array([score, early, clipped, length, entropy], float)])[0]
  n = FLAGS.parallel_episodes
  row = dict(score=score / n, return_200=early / n, return_clipped=clipped / n, episode_len=length / n,
             policy_loss=losses.policy, value_loss=losses.value, entropy=entropy / length, rate_loss=losses.rate,
             voltage_rnn_loss=losses.voltage_rnn, voltage_cnn_loss=losses.voltage_cnn, rate_lsnn=np.mean(rates))
  return row, len(rates) * FLAGS.unroll_length


def initial_weights(agent):
  """Variables, at random or as --restore_from and --restore_cnn_from have them.

  Returns:
    Weights; the emulator frames with which the schedule of episode lengths begins.
  """
  weights = Weights(*(tf.Variable(w) for w in agent.initial_weights(rng('weights'))))
  frames = 0
  if FLAGS.restore_from:
    experiment.restore(weights._asdict(), FLAGS.restore_from)
    if FLAGS.resume_max_episode_len:
      frames = int(experiment.load_npz(FLAGS.restore_from, [], ['frames']).get('frames', 0))
  if FLAGS.restore_cnn_from:
    experiment.restore(dict(zip(Weights._fields[:4], weights)), FLAGS.restore_cnn_from)
  return weights, frames


def prepare(group):
  """What each process of a run has: Player, Weights of variables, the two functions of `make_learner`, and the emulator frames
  with which the schedule of episode lengths begins."""
  environment = make_environment(FLAGS.parallel_episodes // group.size)
  agent = make_agent(environment.n_actions)
  weights, before = initial_weights(agent)
  return playing.Player(agent, environment), weights, *make_learner(agent, weights, group), before


def begin_iteration(group, iteration, n_frames, weights, environment):
  """Gives all processes the leader's weights and the limit of episode lengths; returns the iteration, 0 for the end."""
  (iteration, n_frames), *values = group.from_leader([np.array([iteration, n_frames]), *weights])
  if group.rank > 0:
    assign(weights, values)
  if FLAGS.use_cubic_schedule:
    environment.follow_schedule(int(n_frames))
  return int(iteration)


def assign(weights, values):
  """Gives variables their values."""
  for variable, value in zip(weights, values):
    variable.assign(value)


def assist(group):
  """What a further process does while the first one trains."""
  FLAGS(sys.argv)
  keras.config.set_floatx(FLAGS.dtype)
  set_flags()
  with experiment.device():
    player, weights, learn, forget, _ = prepare(group)
    while iteration := begin_iteration(group, 0, 0, weights, player.environment):
      forget()
      play_and_learn(player, learn, lambda *_: assign(weights, group.from_leader(weights)), weights, iteration, group)


def train(group):
  """Trains an agent, as the leader of a group."""
  player, weights, learn, forget, before = prepare(group)
  optimizer = Optimizer(weights)
  frames, frames_before = (tf.Variable(n, dtype=tf.int64) for n in (0, before))
  state = {f'optimizer_{k}': variable for k, variable in enumerate(optimizer.variables)}
  run = experiment.Run('main', COLUMNS, dict(weights._asdict(), frames=frames, frames_before=frames_before, **state), FREE_FLAGS)
  arrays = lambda: dict({name: w.numpy() for name, w in weights._asdict().items()}, frames=np.int64(frames + frames_before))

  run.stop(int(frames) >= FLAGS.total_environment_frames)  # a finished run goes on if it now has more frames to play
  for iteration in run.iterations(None, FLAGS.print_every):
    start = time.monotonic()
    n_frames = int(frames)
    begin_iteration(group, iteration, frames + frames_before, weights, player.environment)
    rate = FLAGS.learning_rate * FLAGS.learning_rate_decay ** (n_frames // FLAGS.decay_every)
    optimizer.set_learning_rate(rate)
    forget()

    def change(gradients, loss, spikes):
      run.guard(iteration, loss, spikes)
      optimizer.apply(gradients, weights)
      group.from_leader(weights)

    row, n_steps = play_and_learn(player, learn, change, weights, iteration, group, run.folder)
    played = n_steps * FLAGS.parallel_episodes * FLAGS.num_action_repeats
    frames.assign_add(played)
    run.log(iteration, frames=n_frames + played, **row, learning_rate=rate, max_episode_len=player.environment.max_episode_len,
            frames_per_s=played / (time.monotonic() - start))
    passed = lambda every: (n_frames + played) // every > n_frames // every
    if passed(FLAGS.save_every):
      path = run.path(f'weights_{n_frames + played}.npz')
      files.check_finite(arrays(), f'after iteration {iteration}; {path} is not written')
      files.write_npz(path, arrays())
    if FLAGS.do_plot and passed(FLAGS.log_every):
      draw(run.folder, f'_{(n_frames + played) // 1000}k', player, weights, f'after {n_frames + played:,} frames')
    if n_frames + played >= FLAGS.total_environment_frames:
      run.stop()
  begin_iteration(group, 0, 0, weights, player.environment)

  lines, summary, signs = report(run.folder, player, weights)
  run.finish(arrays(), dict(summary, frames=int(frames)), [f'after {int(frames):,} frames', *lines], signs)


def draw(folder, ending, player, weights, title):
  """Records a game and draws the figures of it, game<ending>.png and others, and of the run."""
  game = playing.record_game(player, weights, FLAGS.eval_length, FLAGS.discounting, FLAGS.seed, rng('recording'))
  game |= dict(action_names=np.array(player.environment.action_meanings), seconds_per_step=FLAGS.num_action_repeats / 60,
               title=f'{FLAGS.level_name}: {title}')
  path = lambda name: os.path.join(folder, name)
  plots.game(game, path(f'game{ending}.png'), FLAGS.show)
  if FLAGS.export_image_data:
    files.write_npz(path(f'screens{ending}.npz'), dict(screens=game['screens']), compressed=True)
  if FLAGS.save_anim:
    plots.animate(game, path(f'game{ending}.{FLAGS.anim_format}'))
  if os.path.exists(path('metrics.csv')):
    plots.learning_curve(path('metrics.csv'), path('learning_curve.png'), FLAGS.level_name)
  if not ending:
    files.write_npz(path('game.npz'), game, compressed=True)


def report(folder, player, weights):
  """Evaluates over whole games, records one, draws the figures.

  Returns:
    Lines to print; numbers for summary.json; signs of death.
  """
  player.environment.set_max_episode_len(FLAGS.eval_max_episode_len)
  scores, lengths, signs = playing.evaluate(player, weights, FLAGS.eval_episodes, FLAGS.seed, rng('evaluation'))
  summary = dict(score=scores.mean(), score_sd=scores.std(ddof=1) if len(scores) > 1 else 0.0, games=len(scores),
                 episode_len=lengths.mean())
  published = 'about 10 after about 3 days' if FLAGS.level_name == 'atari/pong' else 'not available'
  score = f'score {scores.mean():.2f} (sd {summary["score_sd"]:.2f}, {len(scores)} games)'
  lines = [f'{score}, {lengths.mean():.0f} agent steps each', f'published:  {published}']
  metrics = os.path.join(folder, 'metrics.csv')
  if os.path.exists(metrics):
    lines += [f'score {level:.0f} was first reached after {frames / 1e6:.1f} million frames, {hours:.2f} h'
              for level, frames, hours in plots.milestones(plots.read_curve(metrics))]
  if FLAGS.do_plot:
    draw(folder, '', player, weights, score)
    lines.append(f'figure:     {os.path.join(folder, "game.png")}')
  return lines, summary, [] if FLAGS.mode == 'chance' else signs


def evaluate():
  """Plays games with saved weights, or with actions at random."""
  if FLAGS.mode == 'eval' and not FLAGS.checkpoint:
    raise UserError('--mode=eval needs --checkpoint=FILE.npz, the final_weights.npz of a run')
  environment = make_environment(min(FLAGS.parallel_episodes, FLAGS.eval_episodes))
  agent = make_agent(environment.n_actions)
  weights = Weights(*(tf.Variable(w) for w in agent.initial_weights(rng('weights'))))
  if FLAGS.mode == 'eval':
    experiment.restore(weights._asdict(), FLAGS.checkpoint)
  else:
    assign((weights.w_policy, weights.b_policy), (tf.zeros_like(weights.w_policy), tf.zeros_like(weights.b_policy)))
  folder = os.path.join(FLAGS.result_dir, 'main', FLAGS.run_name or ('chance' if FLAGS.mode == 'chance' else 'evaluation'))
  os.makedirs(folder, exist_ok=True)
  lines, summary, signs = report(folder, playing.Player(agent, environment), weights)
  files.write_json(os.path.join(folder, 'evaluation.json'), dict(summary, signs_of_death=signs))
  print('\n'.join([*lines, *experiment.death_lines(signs), f'results:    {folder}']))


def set_flags():
  """Presets and --smoke, and flags that do not go together.

  Raises:
    UserError: they do not.
  """
  values = PRESETS[FLAGS.preset]
  program.preset(**LAPTOP_CATCH.get(FLAGS.level_name, values) if FLAGS.preset == 'laptop' else values)
  program.apply_smoke(total_environment_frames=1, parallel_episodes=2, unroll_length=10, max_episode_len=10,
                         max_episode_len_jitter=0, eval_episodes=2, eval_length=10, eval_max_episode_len=100, n_processes=1)
  if tf.config.list_physical_devices('GPU') and not (FLAGS.device or '').startswith('CPU'):
    program.preset(n_processes=1)  # two would each want all of its memory
  if not FLAGS.use_eprop and FLAGS.eprop_impl == 'hardcoded':
    raise UserError('--eprop_impl=hardcoded computes e-prop only: leave out --nouse_eprop')
  if FLAGS.mode != 'eval' and FLAGS.checkpoint:
    raise UserError('--checkpoint is for --mode=eval; --restore_from begins training with weights')
  if FLAGS.parallel_episodes % FLAGS.n_processes:
    raise UserError(f'--n_processes={FLAGS.n_processes} cannot share {FLAGS.parallel_episodes} environments evenly')
  if FLAGS.n_processes > 1 and (FLAGS.eprop_impl != 'adjoint' or FLAGS.save_observations or
                                FLAGS.voltage_reg_method == 'avg_all'):
    raise UserError('--n_processes=1 is needed for another --eprop_impl than adjoint, --save_observations and '
                    '--voltage_reg_method=avg_all')


def main():
  set_flags()
  if FLAGS.mode != 'train':
    with experiment.device():
      evaluate()
    return
  group = processes.start(FLAGS.n_processes, assist)
  with experiment.device():
    train(group)


if __name__ == '__main__':
  experiment.run_app(main)

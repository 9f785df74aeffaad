"""Flags and presets of figures 4 and 5, and the games and the agent that they describe."""
import os

import program
from absl import flags
import numpy as np
import tensorflow as tf

from actor_critic import VOLTAGE_METHODS
from agent import Agent
import catch
import distribution  # noqa: F401  (defines --n_workers)
import environments
import files
from files import UserError
import lsnn
import schedules
from spiking_cnn import ConvLIF

FLAGS = flags.FLAGS

flags.DEFINE_enum('mode', 'train', ['train', 'eval', 'chance'], 'train an agent, play games with --checkpoint, or with '
                  'actions at random')
flags.DEFINE_enum('preset', 'paper', ['paper', 'laptop', 'pong', 'fishing_derby'], 'published values; those that '
                  'learn fast on two cores; such for Pong and Fishing Derby')
program.DEFINE_path('checkpoint', None, 'weights (.npz) to evaluate')
program.DEFINE_path('restore_from', '', 'weights (.npz) to begin training with')
program.DEFINE_path('restore_cnn_from', '', 'weights (.npz) of which to take the convolutional layers')
flags.DEFINE_bool('resume_max_episode_len', True, 'with --restore_from, go on with all schedules where that '
                  'training was')
flags.DEFINE_string('comment', '', 'a note, kept in config.json')
# Games
flags.DEFINE_string('level_name', 'atari/pong', 'atari/NAME, catch or catch_cue_delay')
flags.DEFINE_integer('parallel_episodes', 32, 'environments', 1, 10 ** 5)
flags.DEFINE_alias('n_processes', 'n_workers')
flags.DEFINE_integer('num_action_repeats', 4, 'emulator frames per agent step', 1, 1000)
flags.DEFINE_float('total_environment_frames', 1e9, 'emulator frames to train for', lower_bound=1)
schedules.define('max_episode_len', 200, 'agent steps after which a game is stopped', lower_bound=1, whole=True)
flags.DEFINE_integer('max_episode_len_jitter', 25, 'how far that varies from game to game', lower_bound=0)
flags.DEFINE_bool('use_cubic_schedule', True, 'let games get longer')
flags.DEFINE_float('increase_episode_len_every', 7e7, 'frames between two increases', lower_bound=1)
flags.DEFINE_float('increase_episode_len_by', 1, 'by how much the cubic root of the length grows', lower_bound=0)
flags.DEFINE_float('repeat_action_probability', 0.25, 'probability that the emulator repeats the last action', 0.0, 1.0)
flags.DEFINE_integer('noop_max', 29, 'most frames without action at the beginning of a game', 0, 10 ** 4)
flags.DEFINE_bool('maxpool', False, 'show the maximum of the last two emulator frames instead of the last')
flags.DEFINE_bool('fire_reset', False, 'press the button at the beginning of a game')
flags.DEFINE_bool('subtract_background', False, 'show how frames differ from their median')
flags.DEFINE_float('reward_scale', 1.0, 'factor of the clipped rewards that are learned from')
flags.DEFINE_float('least_reward', -1.0, 'lower bound to which rewards are clipped; 0: learn from gains alone', -1.0, 0.0)
flags.DEFINE_integer('emulator_threads', 0, 'threads of the emulators, faster in long games; 0: none of their own', 0, 1024)
# Network
flags.DEFINE_integer('n_rec', 400, 'neurons of the LSNN', 1, 10 ** 5)
flags.DEFINE_float('fraction_adaptive', 0.4, 'share of ALIF neurons', 0.0, 1.0)
flags.DEFINE_integer('n_rnn_step_factor', 5, 'network steps per frame', 1, 1000)
flags.DEFINE_integer('n_filters_1', 16, 'filters of convolutional layer 1', 1, 1000)
flags.DEFINE_integer('n_kernel_1', 8, 'edge of the kernels of convolutional layer 1', 1, 84)
flags.DEFINE_integer('stride_1', 4, 'stride of convolutional layer 1', 1, 84)
flags.DEFINE_integer('avg_pool_1_k', 8, 'edge of the pools of convolutional layer 1', 1, 84)
flags.DEFINE_integer('avg_pool_1_stride', 4, 'stride of the pools of convolutional layer 1', 1, 84)
flags.DEFINE_integer('n_filters_2', 8, 'filters of convolutional layer 2', 1, 1000)
flags.DEFINE_integer('n_kernel_2', 4, 'edge of the kernels of convolutional layer 2', 1, 84)
flags.DEFINE_integer('stride_2', 1, 'stride of convolutional layer 2', 1, 84)
flags.DEFINE_integer('avg_pool_2_k', 4, 'edge of the pools of convolutional layer 2', 1, 84)
flags.DEFINE_integer('avg_pool_2_stride', 2, 'stride of the pools of convolutional layer 2', 1, 84)
flags.DEFINE_bool('avg_ba_cnn', True, 'let the heads see averages of the convolutional layers\' spikes, the pools; goes before '
                  '--ba_cnn')
flags.DEFINE_bool('ba_cnn', False, 'with --noavg_ba_cnn, let them see trained convolutions of these spikes')
flags.DEFINE_integer('ba_filters_1_1', 32, 'filters of --ba_cnn on layer 1', 1, 1000)
flags.DEFINE_integer('ba_kernel_1_1', 8, 'edge of the kernels of --ba_cnn on layer 1', 1, 84)
flags.DEFINE_integer('ba_stride_1_1', 4, 'stride of --ba_cnn on layer 1', 1, 84)
flags.DEFINE_integer('ba_filters_1_2', 64, 'filters of --ba_cnn; not used', 1, 1000)
flags.DEFINE_integer('ba_kernel_1_2', 4, 'edge of the kernels of --ba_cnn; not used', 1, 84)
flags.DEFINE_integer('ba_stride_1_2', 2, 'stride of --ba_cnn; not used', 1, 84)
flags.DEFINE_integer('ba_filters_2', 64, 'filters of --ba_cnn on layer 2', 1, 1000)
flags.DEFINE_integer('ba_kernel_2', 4, 'edge of the kernels of --ba_cnn on layer 2', 1, 84)
flags.DEFINE_integer('ba_stride_2', 2, 'stride of --ba_cnn on layer 2', 1, 84)
flags.DEFINE_float('tau_scnn', 1.0, 'membrane time constant of the convolutional layers [network steps]', 1e-3, 1e6)
flags.DEFINE_float('thr_scnn', 0.1, 'their threshold', 1e-6, 1e6)
flags.DEFINE_float('tau', 15.0, 'membrane time constant of the LSNN [network steps]', 1e-3, 1e6)
flags.DEFINE_float('tau_readout', 2.0, 'time constant of the heads [network steps]', 1e-3, 1e6)
flags.DEFINE_float('tau_adaptation', 70.0, 'time constant of the adaptation [network steps]', 1e-3, 1e6)
flags.DEFINE_float('thr', 1.0, 'threshold of the LSNN', 1e-6, 1e6)
flags.DEFINE_float('beta', 0.1, 'strength of the adaptation', lower_bound=0)
flags.DEFINE_integer('n_refractory', 5, 'refractory period of the LSNN [network steps]', 0, 10 ** 4)
flags.DEFINE_float('dampening_factor', 0.3, 'height of the LSNN\'s pseudo-derivative', 0.0, 1e6)
# Learning
flags.DEFINE_bool('use_eprop', True, 'e-prop; else BPTT')
flags.DEFINE_enum('eprop_impl', 'adjoint', ['adjoint', 'hardcoded', 'autodiff'], 'how e-prop\'s gradient is computed')
flags.DEFINE_bool('apply_after_end', True, 'change the weights when all episodes have ended; else after each window')
schedules.define('unroll_length', 100, 'agent steps per window', lower_bound=1, whole=True)
flags.DEFINE_bool('cell_train', True, 'train the whole network, not only the heads')
schedules.define('learning_rate', 1e-3, 'learning rate of Adam')
flags.DEFINE_float('learning_rate_heads', 1.0, 'times that for the heads', lower_bound=0)
flags.DEFINE_float('learning_rate_decay', 1.0, 'its factor per --decay_every frames', lower_bound=0)
flags.DEFINE_float('decay_every', 1e8, 'frames between two decays', lower_bound=1)
flags.DEFINE_float('epsilon', 1.0, 'epsilon of Adam', lower_bound=0)
schedules.define('discounting', 0.99, 'discount per agent step', upper_bound=1)
schedules.define('gae_lambda', 1.0, 'decay of advantages beside the discount, generalised advantage estimation', upper_bound=1)
flags.DEFINE_bool('normalise_advantages', False, 'divide the policy\'s advantages by their running root mean square')
flags.DEFINE_integer('update_epochs', 1, 'how often each window is learned from, see clipped_updates.py', 1, 1000)
schedules.define('n_minibatches', 1, 'groups of environments into which it is split, an update for each', 1, 10 ** 5,
                 whole=True)
flags.DEFINE_float('clip_range', 0.2, 'change of an action\'s relative probability from which on such updates ignore it',
                   lower_bound=0)
flags.DEFINE_float('critic_warmup_frames', 0, 'frames at the beginning in which the policy does not learn from rewards',
                   lower_bound=0)
schedules.define('entropy_cost', 0.0025, 'weight of the entropy')
schedules.define('baseline_cost', 1.0, 'weight of the squared error of the value')
flags.DEFINE_float('rate_cost', 50.0, 'weight of the rate regularisation', lower_bound=0)
flags.DEFINE_float('rate_target', 0.02, 'target rate [spikes per network step]', 0.0, 1.0)
flags.DEFINE_float('voltage_cost_rnn', 1e-4, 'weight of the LSNN\'s voltage regularisation', lower_bound=0)
flags.DEFINE_float('voltage_cost_cnn', 0.5, 'weight of that of the convolutional layers', lower_bound=0)
flags.DEFINE_enum('voltage_reg_method', 'avg_time', list(VOLTAGE_METHODS), 'what their voltages are averaged '
                  'over')
flags.DEFINE_float('reg_factor_cnn', 1e8, 'by what the convolutional layers\' gradient of policy and value is divided',
                   lower_bound=1e-30)
# Output
flags.DEFINE_integer('print_every', 10, 'iterations between two printed lines', lower_bound=1)
flags.DEFINE_float('log_every', 5e6, 'frames between two recorded games with figures', lower_bound=1)
flags.DEFINE_float('save_every', 1e7, 'frames between two sets of weights to keep', lower_bound=1)
flags.DEFINE_bool('save_observations', False, 'write what each window showed: frames, rewards, ends')
flags.DEFINE_bool('export_image_data', False, 'write the screens of each recorded game')
flags.DEFINE_integer('eval_episodes', 32, 'whole games to evaluate with', lower_bound=1)
flags.DEFINE_integer('eval_max_episode_len', 16000, 'agent steps after which an evaluated game is stopped', lower_bound=1)
flags.DEFINE_bool('eval_greedy', False, 'evaluate and record with each step\'s likeliest action instead of a drawn one')
flags.DEFINE_integer('eval_length', 200, 'agent steps of the recorded game', lower_bound=1)
flags.DEFINE_bool('do_plot', True, 'draw the figures')
flags.DEFINE_bool('save_anim', False, 'write an animation of the recorded game')
flags.DEFINE_enum('anim_format', 'gif', ['gif', 'mp4'], 'its format')

# What weights mean depends on these flags, besides their shapes.
OF_CNN = ('n_filters_1', 'n_kernel_1', 'stride_1', 'n_filters_2', 'n_kernel_2', 'stride_2', 'tau_scnn', 'thr_scnn',
          'n_rnn_step_factor', 'subtract_background', 'maxpool')
OF_AGENT = (*OF_CNN, 'level_name', 'num_action_repeats', 'n_rec', 'fraction_adaptive', 'tau', 'tau_readout', 'tau_adaptation',
            'thr', 'beta', 'n_refractory', 'avg_ba_cnn', 'ba_cnn', 'avg_pool_1_k', 'avg_pool_1_stride', 'avg_pool_2_k',
            'avg_pool_2_stride', 'ba_filters_1_1', 'ba_kernel_1_1', 'ba_stride_1_1', 'ba_filters_2', 'ba_kernel_2',
            'ba_stride_2')

LEARNS_FAST = dict(epsilon=1e-5, reg_factor_cnn=1.0, use_cubic_schedule=False)  # Adam as usual; rewards train all layers
LAPTOP = dict(  # Atari games on two cores; README.md: why
    **LEARNS_FAST,
    # An update after each short window; whole games.
    apply_after_end=False, unroll_length=20, max_episode_len=3000, n_workers=2, total_environment_frames=5e7,
    learning_rate=1.5e-4, learning_rate_heads=10.0, learning_rate_decay=0.3, decay_every=1.65e7,
    # Rewards that are near, and costs that do not outweigh them in the gradient.
    discounting=0.97, entropy_cost=0.003, baseline_cost=0.05, rate_cost=0.2, voltage_cost_rnn=2e-5, voltage_cost_cnn=0.002,
    # Only what moves, seen by neurons that are easier to excite; two network steps per frame, time constants to match.
    subtract_background=True, thr_scnn=0.05, n_rnn_step_factor=2, n_refractory=2, tau=6.0, tau_readout=1.0,
    tau_adaptation=28.0, rate_target=0.05)
CATCH = dict(  # a window is a game, and the learning rate falls to steady the end
    **LEARNS_FAST, unroll_length=catch.N_ROWS - 1, max_episode_len=catch.N_ROWS - 1, max_episode_len_jitter=0,
    learning_rate_decay=0.3)
LAPTOP_OF = {
    'catch': dict(CATCH, total_environment_frames=1.25e6, decay_every=3.75e5),
    # A membrane that forgets, so that what was seen must be kept by adaptation, which is strong; costs as for Pong.
    'catch_cue_delay': dict(
        CATCH, total_environment_frames=8e5, decay_every=3.2e5, learning_rate=3e-4, learning_rate_heads=10.0, baseline_cost=0.1,
        rate_cost=2.0, voltage_cost_rnn=2e-5, voltage_cost_cnn=0.02, n_rnn_step_factor=2, n_refractory=2, tau=3.0,
        tau_readout=1.0, tau_adaptation=28.0, beta=0.5, rate_target=0.05),
    # Later longer games, so that the agent sees all points, longer windows, a farther view and less reward for entropy.
    'atari/pong': dict(
        LAPTOP, total_environment_frames=8.64e7, max_episode_len='3000,5.05e7:10000', unroll_length='20,5.05e7:40',
        discounting='0.97,5.05e7:0.98', entropy_cost='0.003,5.05e7:0.0005', learning_rate_decay=1.0,
        learning_rate='1.5e-4,1.65e7:4.5e-5,3.3e7:1.35e-5,5.05e7:6e-5,7.45e7:1.8e-5')}
PONG = dict(
    LAPTOP, level_name='atari/pong', total_environment_frames=5.2e7,
    # Heads that see more sharply: finer pools of neurons that are still easier to excite.
    thr_scnn=0.02, avg_pool_1_k=2, avg_pool_1_stride=2, avg_pool_2_k=4, avg_pool_2_stride=2,
    # At first not to lose points, from what comes next; then to win them, long after the hit, which a better critic tells.
    unroll_length='20,3e6:80', discounting='0.97,3e6:0.99', gae_lambda='1,3e6:0.97', baseline_cost='0.05,3e6:0.5',
    n_minibatches='1,4e6:4',  # four updates of each window, which is four times as long
    entropy_cost='0.003,3e6:0.002,1e7:0.0005,2.6e7:0', learning_rate_decay=1.0,
    learning_rate='1.5e-4,1e7:1e-4,2.6e7:3e-5,4.4e7:1e-5',  # with less noise of the updates the policy becomes sharper
    max_episode_len='3000,2e7:10000')
FISHING_DERBY = dict(
    LAPTOP, level_name='atari/fishing_derby', n_rec=300,  # 180 LIF and 120 ALIF neurons
    # A cast takes seconds: eight frames per action, a farther view, advantages that bootstrap late.
    num_action_repeats=8, discounting=0.99, gae_lambda=0.99, unroll_length=100,
    # The opponent's 99 points are lost whatever the agent does: it learns from what it wins, which is little at first.
    least_reward=0.0, normalise_advantages=True, critic_warmup_frames=2e5, baseline_cost=0.5, entropy_cost='0.02,1.05e7:0.005',
    # Twelve updates of each window: what little is won counts more than once.
    update_epochs=3, n_minibatches=4, learning_rate='3e-4,2.05e7:1e-4', learning_rate_heads=3.0, learning_rate_decay=1.0)


def preset():
  """Values of flags that --preset sets."""
  laptop = LAPTOP_OF.get(FLAGS.level_name, LAPTOP)
  return {'paper': {}, 'laptop': laptop, 'pong': PONG, 'fishing_derby': FISHING_DERBY}[FLAGS.preset]


def set_flags():
  """Presets and --smoke, and flags that do not go together.

  Raises:
    UserError: they do not.
  """
  program.preset(**preset())
  program.apply_smoke(total_environment_frames=1, parallel_episodes=2, n_minibatches=min(2, n_minibatches(0)),
                      unroll_length=10, max_episode_len=10, max_episode_len_jitter=0, eval_episodes=2, eval_length=10,
                      eval_max_episode_len=100, n_workers=1)
  if tf.config.list_physical_devices('GPU') and not (FLAGS.device or '').startswith('CPU'):
    program.preset(n_workers=1)  # two would each want all of its memory
  if not FLAGS.use_eprop and FLAGS.eprop_impl == 'hardcoded':
    raise UserError('--eprop_impl=hardcoded computes e-prop only: leave out --nouse_eprop')
  if several_updates() and (FLAGS.apply_after_end or FLAGS.eprop_impl == 'hardcoded'):
    raise UserError('several updates per window (--update_epochs, --n_minibatches) need --noapply_after_end, and '
                    '--eprop_impl=adjoint or autodiff')
  if FLAGS.mode == 'chance' and FLAGS.eval_greedy:
    raise UserError('--mode=chance plays actions at random: it has no --eval_greedy')
  if FLAGS.mode != 'eval' and FLAGS.checkpoint:
    raise UserError('--checkpoint is for --mode=eval; --restore_from begins training with weights')
  if FLAGS.mode == 'eval' and not FLAGS.checkpoint:
    raise UserError('--mode=eval needs --checkpoint=FILE.npz, the final_weights.npz of a run')
  if not (FLAGS.avg_ba_cnn or FLAGS.ba_cnn):
    raise UserError('the heads need a view of the convolutional layers: give --avg_ba_cnn or --ba_cnn')


def other_than_of(weights, names=OF_AGENT):
  """Flags that the training from which weights come had other values of, as the config.json beside them has it.

  Args:
    weights: path of the .npz. NAME_config.json beside NAME_weights.npz goes before config.json.
    names: flags to look at.

  Returns:
    str, '--tau=15.0 (now 6.0), ...'; empty if there is no such flag or no such file.

  Raises:
    UserError: that file is damaged.
  """
  weights = os.path.abspath(weights)
  paths = weights.removesuffix('weights.npz') + 'config.json', os.path.join(os.path.dirname(weights), 'config.json')
  path = next(filter(os.path.exists, paths), None)
  if path is None:
    return ''
  was = files.read_json(path, ['flags'])['flags']
  if not isinstance(was, dict):
    raise UserError(f'{path} is damaged: its flags are no names and values')
  before = {name: was.get(name, files.as_json(FLAGS[name].default)) for name in names}  # an unknown flag had its default
  now = files.as_json({name: FLAGS[name].value for name in names})
  return ', '.join(f'--{name}={before[name]} (now {now[name]})' for name in names if before[name] != now[name])


def n_minibatches(n_frames):
  """The groups of environments into which a window is split after n_frames emulator frames."""
  return int(schedules.at(FLAGS.n_minibatches, n_frames))


def several_updates():
  """Whether some windows are learned from by several clipped updates."""
  return FLAGS.update_epochs > 1 or max(schedules.values(FLAGS.n_minibatches)) > 1


def make_environment(n_envs, first_game=0, n_games=0):
  """The environments that the flags ask for; first_game, n_games: see draws.py."""
  settings = environments.Settings(
      frame_skip=FLAGS.num_action_repeats, repeat_action_probability=FLAGS.repeat_action_probability, noop_max=FLAGS.noop_max,
      maxpool=FLAGS.maxpool, fire_reset=FLAGS.fire_reset, threaded=FLAGS.emulator_threads > 0,
      n_threads=max(1, FLAGS.emulator_threads), max_episode_len=max_episode_len(0),
      max_episode_len_jitter=FLAGS.max_episode_len_jitter, subtract_background=FLAGS.subtract_background,
      first_game=first_game, n_games=n_games)
  return environments.make(FLAGS.level_name, n_envs, FLAGS.seed, settings)


def max_episode_len(n_frames):
  """The limit of episode lengths after n_frames emulator frames [agent steps]."""
  length = schedules.at(FLAGS.max_episode_len, n_frames)
  if FLAGS.use_cubic_schedule:
    length = schedules.cubic(n_frames, length, FLAGS.increase_episode_len_every, FLAGS.increase_episode_len_by)
  return int(length)


def make_agent(n_actions):
  """The agent that the flags ask for."""
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

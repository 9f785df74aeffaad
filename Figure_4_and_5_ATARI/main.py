"""Figures 4 and 5: a spiking network learns to play from pixels by reward-based e-prop.

  python main.py --level_name=catch --preset=laptop              learns within minutes
  python main.py --level_name=atari/pong --preset=laptop
  python main.py --level_name=atari/pong                         the published values
  python main.py --mode=eval --checkpoint=FILE.npz --level_name=atari/pong

An update plays --parallel_episodes episodes to their ends, in windows of --unroll_length agent steps, adds up the windows'
gradients, and then changes the weights once. Steps after an environment's first episode count for nothing.
"""
import os
import time

import experiment
from absl import flags
import keras
import numpy as np
import tensorflow as tf

from actor_critic import Costs, Losses, VOLTAGE_METHODS, episode_mask
from agent import Agent, Weights
import environments
from experiment import UserError, rng
import lsnn
from online_reward_based_eprop import hardcoded
import playing
import plots
from reward_based_eprop import Learner, autodiff
from spiking_cnn import ConvLIF

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)

flags.DEFINE_enum('mode', 'train', ['train', 'eval'], 'train an agent, or play games with --checkpoint')
flags.DEFINE_enum('preset', 'paper', ['paper', 'laptop'], 'published values, or those that learn fastest on two cores')
flags.DEFINE_string('checkpoint', None, 'weights (.npz) to evaluate, or to begin training with')
flags.DEFINE_string('comment', '', 'a note, kept in config.json')
# Games
flags.DEFINE_string('level_name', 'atari/pong', 'atari/NAME, catch or catch_cue_delay')
flags.DEFINE_integer('parallel_episodes', 32, 'environments', lower_bound=1)
flags.DEFINE_integer('num_action_repeats', 4, 'emulator frames per agent step', lower_bound=1)
flags.DEFINE_float('total_environment_frames', 1e9, 'emulator frames to train for', lower_bound=1)
flags.DEFINE_integer('max_episode_len', 200, 'agent steps after which a game is stopped', lower_bound=1)
flags.DEFINE_integer('max_episode_len_jitter', 25, 'how far that varies from game to game', lower_bound=0)
flags.DEFINE_bool('use_cubic_schedule', True, 'let games get longer')
flags.DEFINE_float('increase_episode_len_every', 7e7, 'frames between two increases', lower_bound=1)
flags.DEFINE_float('increase_episode_len_by', 1, 'by how much the cubic root of the length grows', lower_bound=0)
flags.DEFINE_float('repeat_action_probability', 0.25, 'probability that the emulator repeats the last action', 0.0, 1.0)
flags.DEFINE_integer('noop_max', 29, 'most frames without action at the beginning of a game', lower_bound=0)
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
flags.DEFINE_integer('unroll_length', 100, 'agent steps per window', lower_bound=1)
flags.DEFINE_bool('cell_train', True, 'train the whole network, not only the heads')
flags.DEFINE_float('learning_rate', 1e-3, 'learning rate of Adam', lower_bound=0)
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
flags.DEFINE_integer('print_every', 10, 'updates between two printed lines', lower_bound=1)
flags.DEFINE_integer('eval_episodes', 32, 'whole games to evaluate with', lower_bound=1)
flags.DEFINE_integer('eval_max_episode_len', 27000, 'agent steps after which an evaluated game is stopped', lower_bound=1)
flags.DEFINE_integer('eval_length', 200, 'agent steps of the recorded game', lower_bound=1)
flags.DEFINE_bool('do_plot', True, 'draw the figures')
flags.DEFINE_bool('save_anim', False, 'write an animation of the recorded game')
flags.DEFINE_enum('anim_format', 'gif', ['gif', 'mp4'], 'its format')

# What has been tried on Catch so far; --preset=laptop is not settled.
LAPTOP = dict(epsilon=1e-5, reg_factor_cnn=1.0)
COLUMNS = ('frames', 'score', 'return_clipped', 'episode_len', 'policy_loss', 'value_loss', 'entropy', 'rate_loss',
           'voltage_rnn_loss', 'voltage_cnn_loss', 'rate_lsnn', 'learning_rate', 'max_episode_len', 'frames_per_s')


def make_environment(n_envs):
  """The environments that the flags ask for."""
  settings = environments.Settings(
      frame_skip=FLAGS.num_action_repeats, repeat_action_probability=FLAGS.repeat_action_probability, noop_max=FLAGS.noop_max,
      threaded=FLAGS.emulator_threads > 0, n_threads=max(1, FLAGS.emulator_threads), max_episode_len=FLAGS.max_episode_len,
      max_episode_len_jitter=FLAGS.max_episode_len_jitter, increase_episode_len_every=FLAGS.increase_episode_len_every,
      increase_episode_len_by=FLAGS.increase_episode_len_by)
  return environments.make(FLAGS.level_name, n_envs, FLAGS.seed, settings)


def make_agent(n_actions):
  """The agent that the flags ask for."""
  try:
    conv1 = ConvLIF((84, 84, 1), FLAGS.n_filters_1, FLAGS.n_kernel_1, FLAGS.stride_1, FLAGS.avg_pool_1_k,
                    FLAGS.avg_pool_1_stride, FLAGS.tau_scnn, FLAGS.thr_scnn)
    conv2 = ConvLIF(conv1.size, FLAGS.n_filters_2, FLAGS.n_kernel_2, FLAGS.stride_2, FLAGS.avg_pool_2_k,
                    FLAGS.avg_pool_2_stride, FLAGS.tau_scnn, FLAGS.thr_scnn)
    n_regular = FLAGS.n_rec - round(FLAGS.fraction_adaptive * FLAGS.n_rec)
    cell = lsnn.ALIF(FLAGS.n_rec, FLAGS.thr, FLAGS.tau, FLAGS.tau_adaptation,
                     np.repeat([0, FLAGS.beta], [n_regular, FLAGS.n_rec - n_regular]), FLAGS.n_refractory,
                     FLAGS.dampening_factor, dtype=FLAGS.dtype)
    return Agent(n_actions, conv1, conv2, cell, FLAGS.n_rnn_step_factor, FLAGS.tau_readout)
  except ValueError as error:
    raise UserError(error) from None


def make_learner(agent, weights):
  """How a window is learned from.

  Returns:
    A function of Played, rewards [N, B] and mask [N, B] that returns a Result, and one that makes it forget earlier windows.
  """
  costs = Costs(**{name: getattr(FLAGS, name) for name in Costs._fields})
  bptt = not FLAGS.use_eprop
  if FLAGS.eprop_impl == 'adjoint':
    learner = Learner(agent, costs, bptt)
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


def trained(weights):
  """Which weights learn: all, or the heads alone."""
  return list(weights if FLAGS.cell_train else weights[6:])


def play_and_learn(player, learn, weights, update):
  """The episodes of one update.

  Args:
    player: playing.Player.
    learn: from `make_learner`.
    weights: Weights.
    update: its number, on which everything random depends.

  Returns:
    Summed gradients; a row of metrics.csv, without frames, learning rate and speed; how many agent steps were played.
  """
  generator = rng('episodes', update)
  player.begin(weights, int(generator.integers(2 ** 31)))
  finished = tf.zeros(FLAGS.parallel_episodes, FLAGS.dtype)
  gradients, losses, score, clipped, length, entropy, rates = None, 0, 0, 0, 0, 0, []
  while not np.all(finished):
    played = player.window(weights, FLAGS.unroll_length, generator)
    mask, finished = episode_mask(tf.cast(played.done, FLAGS.dtype), finished)
    reward = np.clip(played.score, -1, 1).astype(FLAGS.dtype)
    result = learn(played, tf.constant(reward), mask)
    gradients = result.gradients if gradients is None else [a + b for a, b in zip(gradients, result.gradients)]
    losses += np.array([float(loss) for loss in result.losses])
    mask = mask.numpy()
    score += (mask * played.score).sum(0)
    clipped += (mask * reward).sum(0)
    length += mask.sum(0)
    log_pi = tf.nn.log_softmax(tf.stack([record.logits for record in played.records[:-1]])).numpy()
    entropy -= (mask * (np.exp(log_pi) * log_pi).sum(-1)).sum()
    rates.append(result.rate.numpy().mean())
  losses = Losses(*losses)
  row = dict(score=score.mean(), return_clipped=clipped.mean(), episode_len=length.mean(), policy_loss=losses.policy,
             value_loss=losses.value, entropy=entropy / length.sum(), rate_loss=losses.rate,
             voltage_rnn_loss=losses.voltage_rnn, voltage_cnn_loss=losses.voltage_cnn, rate_lsnn=np.mean(rates))
  return gradients, row, len(rates) * FLAGS.unroll_length


def train():
  """Trains an agent."""
  environment = make_environment(FLAGS.parallel_episodes)
  agent = make_agent(environment.n_actions)
  weights = Weights(*(tf.Variable(w) for w in agent.initial_weights(rng('weights'))))
  if FLAGS.checkpoint:
    experiment.restore(weights._asdict(), FLAGS.checkpoint)
  dtype = np.dtype(FLAGS.dtype).type
  optimizer = keras.optimizers.Adam(FLAGS.learning_rate, dtype(0.9), dtype(0.999), epsilon=FLAGS.epsilon)
  optimizer.build(trained(weights))
  frames = tf.Variable(0, dtype=tf.int64)
  state = {f'optimizer_{k}': v.value for k, v in enumerate(optimizer.variables)}
  run = experiment.Run('main', COLUMNS, dict(weights._asdict(), frames=frames, **state))
  learn, forget = make_learner(agent, weights)
  player = playing.Player(agent, environment)

  for update in run.iterations(None, FLAGS.print_every):
    start = time.time()
    n_frames = int(frames)
    if FLAGS.use_cubic_schedule:
      environment.follow_schedule(n_frames)
    rate = FLAGS.learning_rate * FLAGS.learning_rate_decay ** (n_frames // FLAGS.decay_every)
    optimizer.learning_rate.assign(rate)
    forget()
    gradients, row, n_steps = play_and_learn(player, learn, weights, update)
    run.guard(update, row['policy_loss'] + row['value_loss'], row['rate_lsnn'])
    optimizer.apply(trained(Weights(*gradients)), trained(weights))
    played = n_steps * FLAGS.parallel_episodes * FLAGS.num_action_repeats
    frames.assign_add(played)
    run.log(update, frames=n_frames + played, **row, learning_rate=rate, max_episode_len=environment.max_episode_len,
            frames_per_s=played / (time.time() - start))
    if n_frames + played >= FLAGS.total_environment_frames:
      run.stop()

  lines, summary = report(run.folder, player, weights)
  run.finish({name: w.numpy() for name, w in weights._asdict().items()}, dict(summary, frames=int(frames)),
             [f'after {int(frames):,} frames', *lines])


def report(folder, player, weights):
  """Evaluates over whole games, records one, draws the figures.

  Returns:
    Lines to print; numbers for summary.json.
  """
  player.environment.set_max_episode_len(FLAGS.eval_max_episode_len)
  scores, lengths = playing.evaluate(player, weights, FLAGS.eval_episodes, FLAGS.seed, rng('evaluation'))
  summary = dict(score=scores.mean(), score_sd=scores.std(ddof=1) if len(scores) > 1 else 0.0, games=len(scores),
                 episode_len=lengths.mean())
  published = 'about 10 after about 3 days' if FLAGS.level_name == 'atari/pong' else 'not available'
  score = f'score {scores.mean():.2f} (sd {summary["score_sd"]:.2f}, {len(scores)} games)'
  lines = [f'{score}, {lengths.mean():.0f} agent steps each', f'published:  {published}']
  if FLAGS.do_plot:
    game = playing.record_game(player, weights, FLAGS.eval_length, FLAGS.discounting, FLAGS.seed, rng('recording'))
    game |= dict(action_names=np.array(player.environment.action_meanings), seconds_per_step=FLAGS.num_action_repeats / 60,
                 title=f'{FLAGS.level_name}: {score}')
    experiment.write_whole(os.path.join(folder, 'game.npz'), lambda path: np.savez_compressed(path, **game))
    plots.game(game, os.path.join(folder, 'game.png'), FLAGS.show)
    if os.path.exists(os.path.join(folder, 'metrics.csv')):
      plots.learning_curve(os.path.join(folder, 'metrics.csv'), os.path.join(folder, 'learning_curve.png'), FLAGS.level_name)
    if FLAGS.save_anim:
      plots.animate(game, os.path.join(folder, f'game.{FLAGS.anim_format}'))
    lines.append(f'figure:     {os.path.join(folder, "game.png")}')
  return lines, summary


def evaluate():
  """Plays games with saved weights."""
  if not FLAGS.checkpoint:
    raise UserError('--mode=eval needs --checkpoint=FILE.npz, the final_weights.npz of a run')
  environment = make_environment(min(FLAGS.parallel_episodes, FLAGS.eval_episodes))
  agent = make_agent(environment.n_actions)
  weights = Weights(*(tf.Variable(w) for w in agent.initial_weights(rng('weights'))))
  experiment.restore(weights._asdict(), FLAGS.checkpoint)
  folder = os.path.join(FLAGS.result_dir, 'main', FLAGS.run_name or 'evaluation')
  os.makedirs(folder, exist_ok=True)
  lines, summary = report(folder, playing.Player(agent, environment), weights)
  experiment.write_json(os.path.join(folder, 'evaluation.json'), summary)
  print('\n'.join([*lines, f'results:    {folder}']))


def main():
  experiment.apply_smoke(total_environment_frames=1, parallel_episodes=2, unroll_length=10, max_episode_len=10,
                         max_episode_len_jitter=0, eval_episodes=2, eval_length=10)
  if FLAGS.preset == 'laptop':
    experiment.preset(**LAPTOP)
  if not FLAGS.use_eprop and FLAGS.eprop_impl == 'hardcoded':
    raise UserError('--eprop_impl=hardcoded computes e-prop only: leave out --nouse_eprop')
  with experiment.device():
    {'train': train, 'eval': evaluate}[FLAGS.mode]()


if __name__ == '__main__':
  experiment.run_app(main)

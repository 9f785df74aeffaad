"""What a run shows of an agent: whole games that it plays, one recorded game, figures."""
import os

from absl import flags
import numpy as np

import configuration
from experiment import rng
import files
import playing
import plots
import schedules

FLAGS = flags.FLAGS
PUBLISHED = {'atari/pong': 'about 10 after about 3 days'}  # the authors' note on their program


def _choose():
  return playing.greedy if FLAGS.eval_greedy else playing.sample


def _player(agent, n_games, max_episode_len):
  """One that does not depend on how the training's games are shared among workers."""
  environment = configuration.make_environment(n_games)
  environment.set_max_episode_len(max_episode_len)
  return playing.Player(agent, environment)


def draw(folder, ending, agent, weights, title, n_frames, max_episode_len):
  """Records a game and draws the figures of it, game<ending>.png and others, and of the run.

  Args:
    folder: to write to.
    ending: of the files' names.
    agent, weights: agent.Agent, agent.Weights.
    title: what the agent is.
    n_frames: emulator frames of its training, on which the discount of the returns may depend.
    max_episode_len: limit of the game [agent steps].
  """
  player, discount = _player(agent, 1, max_episode_len), schedules.at(FLAGS.discounting, n_frames)
  game = playing.record_game(player, weights, FLAGS.eval_length, discount, FLAGS.seed, rng('recording'), _choose())
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


def evaluate(folder, agent, weights, n_frames):
  """Evaluates over whole games, records one, draws the figures.

  Args:
    folder: to write figures to; of metrics.csv, if there is one.
    agent, weights: agent.Agent, agent.Weights.
    n_frames: emulator frames of its training, see `draw`.

  Returns:
    Lines to print; numbers for summary.json; signs of death.
  """
  player = _player(agent, min(FLAGS.parallel_episodes, FLAGS.eval_episodes), FLAGS.eval_max_episode_len)
  games, signs = playing.evaluate(player, weights, FLAGS.eval_episodes, FLAGS.seed, rng('evaluation'), _choose())
  scores = games.score
  summary = dict(score=scores.mean(), score_sd=scores.std(ddof=1) if len(scores) > 1 else 0.0, games=len(scores),
                 won=games.won.mean(), lost=(games.won - scores).mean(), episode_len=games.length.mean(),
                 greedy=FLAGS.eval_greedy)
  how = ', likeliest actions' if FLAGS.eval_greedy else ''
  score = f'score {scores.mean():.2f} (sd {summary["score_sd"]:.2f}, {len(scores)} games{how})'
  lines = [f'{score}, won {summary["won"]:.2f} points, lost {summary["lost"]:.2f}, {games.length.mean():.0f} agent steps each',
           f'published:  {PUBLISHED.get(FLAGS.level_name, "not available")}']
  metrics = os.path.join(folder, 'metrics.csv')
  if os.path.exists(metrics):
    lines += [f'score {level:.0f} was first reached after {frames / 1e6:.1f} million frames, {hours:.2f} h'
              for level, frames, hours in plots.milestones(plots.read_curve(metrics))]
  if FLAGS.do_plot:
    draw(folder, '', agent, weights, score, n_frames, FLAGS.eval_max_episode_len)
    lines.append(f'figure:     {os.path.join(folder, "game.png")}')
  return lines, summary, [] if FLAGS.mode == 'chance' else signs

"""Compares agents over seeds: all neurons, LIF neurons alone, the readout alone, BPTT, the preset with some published values.

  python compare_learning_rules.py --level_name=catch --rules=eprop
  python compare_learning_rules.py --level_name=catch_cue_delay
  python compare_learning_rules.py --level_name=atari/pong --rules=eprop,published_discounting --n_seeds=1    the beginning only
  python compare_learning_rules.py --level_name=catch_cue_delay --replot    the figure from the CSV, no training

Every run is one call of main.py. Stopped at any moment, the same command goes on: finished runs are kept, an unfinished one
resumes from its checkpoint. Seeds are the outer loop, so that every agent has one seed first.
"""
import csv
import json
import os

import experiment
from absl import flags
import numpy as np

import catch
import environments
import plots

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)

HERE = os.path.dirname(os.path.abspath(__file__))
RULES = {  # flags of main.py
    'eprop': [],
    'lif': ['--fraction_adaptive=0'],
    'readout': ['--cell_train=False'],
    'bptt': ['--nouse_eprop'],
    'published_adam': ['--epsilon=1', '--learning_rate=1e-3', '--learning_rate_heads=1'],
    'published_updates': ['--apply_after_end', '--unroll_length=100'],
    'published_cnn': ['--reg_factor_cnn=1e8'],
    'published_discounting': ['--discounting=0.99'],
    'published_costs': ['--baseline_cost=1', '--rate_cost=50', '--voltage_cost_rnn=1e-4', '--voltage_cost_cnn=0.5',
                        '--entropy_cost=0.0025'],
    'published_input': ['--nosubtract_background'],
    'published_steps': ['--n_rnn_step_factor=5', '--tau=15', '--tau_readout=2', '--tau_adaptation=70', '--n_refractory=5',
                        '--rate_target=0.02'],
}
COLUMNS = ('rule', 'seed', 'score', 'score_sd', 'games', 'frames', 'iterations', 'seconds_to_learn', 'wall_time_s',
           'peak_memory_mb')
CURVE = ('rule', 'seed', 'frames', 'seconds', 'return_200')
LEARNED = 0.95  # of Catch's optimal return: `seconds_to_learn` is when the mean of a block first reaches it
PONG = 'atari/pong'
TITLES = {'catch': 'Catch', 'catch_cue_delay': f'Catch, ball seen in {catch.N_VISIBLE} frames, paddle free after '
          f'{catch.N_LOCKED} of {catch.N_ROWS - 1} steps', PONG: 'Pong, the beginning of training'}
FLAGS_OF = {level_name: ['--eval_episodes=1024'] for level_name in environments.CATCH}  # of all agents
FLAGS_OF[PONG] = ['--n_processes=1', '--total_environment_frames=1.6e6', '--eval_episodes=32']

flags.DEFINE_string('level_name', 'catch_cue_delay', ', '.join(TITLES))
flags.DEFINE_list('rules', ['eprop', 'lif', 'readout'], 'some of ' + ', '.join(RULES))
flags.DEFINE_integer('n_seeds', 5, 'seeds 0, 1, ... of each', lower_bound=1)
flags.DEFINE_integer('n_parallel', 2, 'runs side by side, each on its share of the cores', lower_bound=1)
flags.DEFINE_bool('replot', False, 'draw the figure from the CSV without training')
flags.DEFINE_string('out', os.path.join(HERE, 'figures'), 'folder of the CSV files and the figure')


def short_name():
  """Of the game, for files."""
  return FLAGS.level_name.removeprefix('atari/')


def read_curve(folder):
  """Frames, seconds and mean return of the first 200 agent steps, of Catch all, for blocks of iterations of a run; [P, 3]."""
  block = 1 if FLAGS.level_name == PONG else 10
  metrics = plots.read_curve(os.path.join(folder, 'metrics.csv'))
  frames, seconds = metrics['frames'], 3600 * plots.hours(metrics)
  n = len(frames) // block * block or len(frames)
  blocks = lambda x: x[:n].reshape(-1, min(n, block))
  return np.stack([blocks(frames)[:, -1], blocks(seconds)[:, -1], blocks(metrics['return_200']).mean(1)], 1)


def collect(runs):
  """Rows of both CSV files of finished runs, and the names of the others; runs: {folder: (rule, seed)}."""
  rows, points, missing = [], [], []
  for folder, (rule, seed) in runs.items():
    path = os.path.join(folder, 'summary.json')
    if not os.path.exists(path):
      missing.append(f'{rule} seed {seed}')
      continue
    with open(path) as file:
      summary = json.load(file)
    curve = read_curve(folder)
    reached = curve[curve[:, 2] >= LEARNED * catch.OPTIMAL_RETURN, 1]
    rows.append(dict({name: summary[name] for name in COLUMNS if name in summary}, rule=rule, seed=seed,
                     seconds_to_learn=round(reached[0], 1) if len(reached) else ''))
    points += [dict(rule=rule, seed=seed, frames=int(frames), seconds=round(seconds, 1), return_200=round(value, 4))
               for frames, seconds, value in curve]
  return rows, points, missing


def train_all(path, curve_path):
  """Runs what is not finished yet and writes the CSV files after each run; rows of rules not asked for stay."""
  folder = os.path.join(os.path.abspath(FLAGS.result_dir), 'comparison' + ('_smoke' if FLAGS.smoke else ''), short_name())
  runs = {os.path.join(folder, 'main', f'{rule}_seed{seed}'): (rule, seed)
          for seed in range(FLAGS.n_seeds) for rule in FLAGS.rules}
  common = [f'--level_name={FLAGS.level_name}', '--preset=laptop', '--do_plot=False', f'--dtype={FLAGS.dtype}']
  common += ['--smoke'] if FLAGS.smoke else FLAGS_OF[FLAGS.level_name]
  flags_of = {run: [*common, f'--seed={seed}', *RULES[rule]] for run, (rule, seed) in runs.items()}
  others = [[row for row in read(name) if row['rule'] not in FLAGS.rules] for name in (path, curve_path)]
  for done in experiment.train_side_by_side(os.path.join(HERE, 'main.py'), flags_of, FLAGS.n_parallel):
    rows, points, missing = collect(runs)
    experiment.write_csv(path, [*others[0], *rows], COLUMNS)
    experiment.write_csv(curve_path, [*others[1], *points], CURVE)
    print(f'{done} runs ended, {len(missing)} missing', flush=True)
  if missing:
    print('missing: ' + ', '.join(missing) + '; the same command goes on with them')


def read(path):
  """Rows of a CSV file, none if there is no such file."""
  if not os.path.exists(path):
    return []
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def print_table(rows, curves):
  """Prints mean and standard deviation over the seeds of each rule.

  Args:
    rows: of the table.
    curves: dict, rule: {seed: (frames, returns)}.
  """
  spread = lambda x: f'{x.mean():.3f} (' + (
      f'sd {x.std(ddof=1):.3f}, least {x.min():.3f}, {len(x)} seeds)' if len(x) > 1 else 'one seed only)')
  for rule in (rule for rule in RULES if any(row['rule'] == rule for row in rows)):
    runs = [row for row in rows if row['rule'] == rule]
    score = np.array([float(row['score']) for row in runs])
    line = f'{rule:21s} score {spread(score)}'
    if FLAGS.level_name == PONG:
      line += f'; last 3 iterations\' return_200 {spread(np.array([np.mean(r[-3:]) for _, r in curves[rule].values()]))}'
    seconds = [float(row['seconds_to_learn']) for row in runs if row['seconds_to_learn']]
    if seconds:
      line += f'; {len(seconds)} reached {LEARNED} in training, after {min(seconds):.0f} to {max(seconds):.0f} s'
    print(line)


def main():
  experiment.apply_smoke(n_seeds=1, out=os.path.join(FLAGS.result_dir, 'comparison_smoke'))
  unknown = set(FLAGS.rules) - set(RULES)
  if unknown or FLAGS.level_name not in TITLES:
    raise experiment.UserError(f'the games are {", ".join(TITLES)}, the rules {", ".join(RULES)}; got '
                               f'{FLAGS.level_name}, {", ".join(FLAGS.rules)}')
  path = os.path.join(FLAGS.out, f'comparison_{short_name()}.csv')
  curve_path = os.path.join(FLAGS.out, f'curves_{short_name()}.csv')
  os.makedirs(FLAGS.out, exist_ok=True)
  if not FLAGS.replot:
    train_all(path, curve_path)
  elif not os.path.exists(path):
    raise experiment.UserError(f'no file {path} to replot')
  curves = {}
  for row in read(curve_path):
    frames, returns = curves.setdefault(row['rule'], {}).setdefault(row['seed'], ([], []))
    frames.append(float(row['frames']))
    returns.append(float(row['return_200']))
  lines = () if FLAGS.level_name == PONG else ((catch.OPTIMAL_RETURN, 'optimal'), (catch.CHANCE_RETURN, 'chance'))
  figure = os.path.join(FLAGS.out, f'comparison_{short_name()}.png')
  plots.comparison({rule: list(runs.values()) for rule, runs in curves.items()}, figure, TITLES[FLAGS.level_name],
                   'return of 200 agent steps' if FLAGS.level_name == PONG else 'return per game', lines, FLAGS.show)
  print_table(read(path), curves)
  print(f'figure: {figure}')


if __name__ == '__main__':
  experiment.run_app(main)

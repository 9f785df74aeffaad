"""Compares agents over seeds: all neurons, LIF neurons alone, the readout alone, BPTT, the preset with some other values.

  python compare_learning_rules.py --level_name=catch --rules=eprop
  python compare_learning_rules.py --level_name=catch_cue_delay
  python compare_learning_rules.py --level_name=atari/pong --rules=eprop,published_discounting --n_seeds=1    the beginning only
  python compare_learning_rules.py --level_name=atari/pong --frames=1e7 --rules=eprop,bptt,readout --n_seeds=1
  python compare_learning_rules.py --level_name=catch_cue_delay --replot    the figure from the CSV, no training

Every run is one call of main.py. Stopped at any moment, the same command goes on: finished runs are kept, an unfinished one
resumes from its checkpoint. Seeds are the outer loop, so that every agent has one seed first.
"""
import os

import comparison
from absl import flags
import numpy as np

import catch
import files
import plots
import program

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(comparison)

PUBLISHED_COSTS = ['--baseline_cost=1', '--rate_cost=50', '--voltage_cost_rnn=1e-4', '--voltage_cost_cnn=0.5',
                   '--entropy_cost=0.0025']
RULES = {  # flags of main.py
    'eprop': [],
    'lif': ['--fraction_adaptive=0'],
    'readout': ['--cell_train=False'],
    'bptt': ['--nouse_eprop'],
    'clipped_updates': ['--update_epochs=3', '--n_minibatches=4', '--unroll_length=100', '--normalise_advantages',
                        '--gae_lambda=0.95', '--discounting=0.99', '--learning_rate=3e-4', '--learning_rate_heads=3',
                        '--entropy_cost=0.01', '--baseline_cost=0.5', '--critic_warmup_frames=2e5',
                        '--max_episode_len=10000'],
    'pong': ['--preset=pong'],
    'pong_bptt': ['--preset=pong', '--nouse_eprop'],
    'pong_one_update': ['--preset=pong', '--n_minibatches=1'],  # of each window
    'pong_plain': ['--preset=pong', '--gae_lambda=1', '--n_minibatches=1'],  # returns as published, one update per window
    'published_adam': ['--epsilon=1', '--learning_rate=1e-3', '--learning_rate_heads=1'],
    'published_updates': ['--apply_after_end', '--unroll_length=100'],
    'published_cnn': ['--reg_factor_cnn=1e8'],
    'published_discounting': ['--discounting=0.99'],
    'published_costs': PUBLISHED_COSTS,
    'published_rewards': ['--reg_factor_cnn=1e8', '--discounting=0.99', *PUBLISHED_COSTS],  # these three together
    'published_input': ['--nosubtract_background'],
    'published_steps': ['--n_rnn_step_factor=5', '--tau=15', '--tau_readout=2', '--tau_adaptation=70', '--n_refractory=5',
                        '--rate_target=0.02'],
}
# Whose windows or frames do not suit Catch.
OF_PONG = ('clipped_updates', 'pong', 'pong_bptt', 'pong_one_update', 'pong_plain')
COLUMNS = ('rule', 'seed', 'score', 'score_sd', 'games', 'frames', 'iterations', 'seconds_to_learn', 'wall_time_s',
           'peak_memory_mb')
CURVE = ('rule', 'seed', 'frames', 'seconds', 'return_200', 'score')
LEARNED = 0.95  # of Catch's optimal return: `seconds_to_learn` is when the mean of a block first reaches it; Pong has none
PONG = 'atari/pong'
TITLES = {'catch': 'Catch', 'catch_cue_delay': f'Catch, ball seen in {catch.N_VISIBLE} frames, paddle free after '
          f'{catch.N_LOCKED} of {catch.N_ROWS - 1} steps', PONG: 'Pong, the first {:g} million frames'}
FLAGS_OF = {level_name: ['--eval_episodes=1024'] for level_name in ('catch', 'catch_cue_delay')}  # of all agents
FLAGS_OF[PONG] = ['--n_processes=1', '--eval_episodes=32']

flags.DEFINE_enum('level_name', 'catch_cue_delay', list(TITLES), 'the game')
flags.DEFINE_float('frames', 1.6e6, 'emulator frames of each run of Pong; the files of others than these bear their number',
                   lower_bound=1)
FLAGS.set_default('rules', 'eprop,lif,readout')


def short_name():
  """Of the game, for files."""
  of_length = FLAGS.level_name == PONG and FLAGS.frames != FLAGS['frames'].default
  return FLAGS.level_name.removeprefix('atari/') + (f'_{FLAGS.frames / 1e6:g}M' if of_length else '')


def block_length():
  """Iterations of a point of the curves."""
  return 1 if FLAGS.level_name == PONG else 10


def read_curve(folder):
  """The last four columns of CURVE, frames and seconds at the end and means of blocks of iterations of a run; [P, 4]."""
  block = block_length()
  metrics = plots.read_curve(os.path.join(folder, 'metrics.csv'))
  frames, seconds = metrics['frames'], 3600 * plots.hours(metrics)
  n = len(frames) // block * block or len(frames)
  blocks = lambda x: x[:n].reshape(-1, min(n, block))
  return np.stack([blocks(frames)[:, -1], blocks(seconds)[:, -1],
                   *(blocks(metrics[name]).mean(1) for name in CURVE[4:])], 1)


def rows_of(job, rule, seed):
  """Rows of both CSV files from a finished run."""
  summary, _ = comparison.results_of(job, ('score', 'games', 'frames'), plots.COLUMNS, ('frames', 'frames_per_s', 'return_200'))
  curve = read_curve(job.folder)
  reached = curve[curve[:, 2] >= LEARNED * catch.OPTIMAL_RETURN, 1] if FLAGS.level_name != PONG else ()
  row = dict({name: summary[name] for name in COLUMNS if name in summary}, rule=rule, seed=seed,
             seconds_to_learn=round(reached[0], 1) if len(reached) else '')
  points = [dict(rule=rule, seed=seed, frames=int(frames), seconds=round(seconds, 1), return_200=round(value, 4),
                 score=round(score, 4)) for frames, seconds, value, score in curve]
  return row, points


def train_all(path, curve_path):
  """Trains, and writes the CSV files after each run, where the runs not asked for stay; returns whether all have finished."""
  arguments = [f'--level_name={FLAGS.level_name}', '--preset=laptop', '--do_plot=False', *comparison.common_arguments()]
  arguments += [] if FLAGS.smoke else FLAGS_OF[FLAGS.level_name]
  arguments += [f'--total_environment_frames={FLAGS.frames:g}'] if FLAGS.level_name == PONG and not FLAGS.smoke else []
  folder = comparison.folder_of(short_name(), 'main')
  job_of = lambda rule, seed: comparison.Job(f'{rule} seed {seed}', 'main', os.path.join(folder, f'{rule}_seed{seed}'),
                                             [*arguments, f'--seed={seed}', *RULES[rule]])
  jobs = {(rule, seed): job_of(rule, seed) for seed in range(FLAGS.n_seeds) for rule in FLAGS.rules}
  others = comparison.kept(path, read, ('rule', 'seed'), jobs, job_of)
  other_curves = read_curves(curve_path, others, {(rule, str(seed)) for rule, seed in jobs}) if others else []

  def collect(finished):
    both = [rows_of(job, *key) for key, job in jobs.items() if job in finished]
    files.write_csv(path, [*others, *(row for row, _ in both)], COLUMNS)
    files.write_csv(curve_path, [*other_curves, *(point for _, points in both for point in points)], CURVE)

  return comparison.train(list(jobs.values()), collect)


def read(path):
  """Rows of the table, a run each; UserError if it is damaged."""
  rows = files.read_csv(path, ['rule'], COLUMNS[2:], ['seed', 'iterations'], ('rule', 'seed', 'score', 'iterations'))
  runs = [(row['rule'], row['seed']) for row in rows]
  for rule, seed in runs:
    if rule not in RULES or runs.count((rule, seed)) > 1:
      raise files.UserError(f'{path} is damaged: there is no rule {rule}' if rule not in RULES else
                            f'{path} is damaged: it has seed {seed} of {rule} twice')
  return [{name: row[name] for name in COLUMNS} for row in rows]


def read_curves(path, table, but=()):
  """Rows of the curves but those of some runs (rule, seed); UserError if they are not those of the rows of the table."""
  rows = [row for row in files.read_csv(path, ['rule'], CURVE[2:], ['seed'], CURVE[:5])
          if (row['rule'], row['seed']) not in but]  # scores of early comparisons were not kept
  curves = {}
  for row in rows:
    curves.setdefault((row['rule'], row['seed']), []).append(float(row['frames']))
  expected = {(row['rule'], row['seed']): max(1, int(row['iterations']) // block_length()) for row in table}
  for run in dict.fromkeys([*expected, *curves]):
    frames = curves.get(run, [])
    if len(frames) != expected.get(run, 0) or sorted(set(frames)) != frames:
      raise files.UserError(f'{path} is damaged: the curve of {run[0]}, seed {run[1]}, is not that of its run in '
                            f'comparison_{short_name()}.csv')
  return rows


def print_table(rows, curves):
  """Prints mean and standard deviation over the seeds of each rule.

  Args:
    rows: of the table.
    curves: dict, rule: {seed: dict of arrays}, see `main`.
  """
  def spread(values):
    return comparison.spread(values) + (f', least {min(values):.3f}' if len(values) > 1 else '')

  for rule in (rule for rule in RULES if any(row['rule'] == rule for row in rows)):
    runs = [row for row in rows if row['rule'] == rule]
    line = f'{rule:21s} score {spread([float(row["score"]) for row in runs])}'
    if FLAGS.level_name == PONG:
      line += f'; last 3 iterations\' return_200 {spread([np.mean(run["return_200"][-3:]) for run in curves[rule].values()])}'
    seconds = [float(row['seconds_to_learn']) for row in runs if row['seconds_to_learn']]
    if seconds:
      line += f'; {len(seconds)} reached {LEARNED} in training, after {min(seconds):.0f} to {max(seconds):.0f} s'
    print(line)


def main():
  program.apply_smoke(n_seeds=1, out=os.path.join(FLAGS.result_dir, 'comparison_smoke'))
  if FLAGS.level_name != PONG and FLAGS['frames'].present:
    raise files.UserError(f'--frames is for --level_name={PONG}; {FLAGS.level_name} plays as many as its preset says')
  comparison.prepare([rule for rule in RULES if FLAGS.level_name == PONG or rule not in OF_PONG])
  path = os.path.join(FLAGS.out, f'comparison_{short_name()}.csv')
  curve_path = os.path.join(FLAGS.out, f'curves_{short_name()}.csv')
  complete = FLAGS.replot or train_all(path, curve_path)
  rows, points = read(path), {}
  for row in read_curves(curve_path, rows):
    points.setdefault(row['rule'], {}).setdefault(row['seed'], []).append([float(row[name] or 'nan') for name in CURVE[2:]])
  curves = {rule: {seed: dict(zip(CURVE[2:], np.array(run).T)) for seed, run in runs.items()} for rule, runs in points.items()}
  for run in (run for runs in curves.values() for run in runs.values()):
    run.update(million_frames=run['frames'] / 1e6, hours=run['seconds'] / 3600)
  figure = os.path.join(FLAGS.out, f'comparison_{short_name()}.png')
  over_frames, lines = ('million_frames', 'environment frames (million)'), ()
  if FLAGS.level_name == PONG:
    scores = all(np.isfinite(run['score']).all() for runs in curves.values() for run in runs.values())
    up = ('score', 'score of a game') if scores else ('return_200', 'return of 200 agent steps')
    panels = [(*over_frames, *up), ('hours', 'hours of training', *up)]
    lines = ((0, 'as many points as the opponent'),) if scores else ()
  else:
    panels = [(*over_frames, 'return_200', 'return per game')]
    lines = (catch.OPTIMAL_RETURN, 'optimal'), (catch.CHANCE_RETURN, 'chance')
  plots.comparison({rule: list(runs.values()) for rule, runs in curves.items()}, figure,
                   TITLES[FLAGS.level_name].format(FLAGS.frames / 1e6), panels, lines, FLAGS.show)
  print_table(rows, curves)
  print(f'figure: {figure}', flush=True)
  comparison.end(complete)


if __name__ == '__main__':
  program.run_app(main)

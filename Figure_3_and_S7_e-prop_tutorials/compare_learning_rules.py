"""Compares learning rules over seeds: BPTT, e-prop with three kinds of feedback, and networks without adaptation.

  python compare_learning_rules.py                                   evidence accumulation, six rules, five seeds
  python compare_learning_rules.py --task=pattern_generation
  python compare_learning_rules.py --replot                          draws the figures from the CSV, trains nothing

Every run is one call of the tutorial. Stopped at any moment, the same command goes on: finished runs are kept, an
unfinished one resumes from its checkpoint. Seeds are the outer loop, so that every rule has one seed first.
"""
import csv
import json
import os

import experiment
from absl import flags
import numpy as np

import plots

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)

HERE = os.path.dirname(os.path.abspath(__file__))
EVIDENCE_ACCUMULATION = {
    'bptt': [],
    'eprop_symmetric': ['--eprop', '--feedback=symmetric'],
    'eprop_random': ['--eprop', '--feedback=random'],
    'eprop_adaptive': ['--eprop', '--feedback=adaptive'],
    'lif_bptt': ['--n_regular=100', '--n_adaptive=0'],
    'lif_eprop_symmetric': ['--eprop', '--feedback=symmetric', '--n_regular=100', '--n_adaptive=0'],
}
PATTERN_GENERATION = {
    'bptt': ['--eprop_or_bptt=bptt'],
    'eprop_symmetric': ['--feedback=symmetric'],
    'eprop_random': ['--feedback=random'],
    'eprop_adaptive': ['--feedback=adaptive'],
}
TASKS = {  # script, rules, iterations, columns of its metrics.csv, keys of its summary.json
    'evidence_accumulation': ('tutorial_evidence_accumulation_with_alif', EVIDENCE_ACCUMULATION, 600,
                              ('train_loss', 'train_error', 'validation_error', 'rate_hz'),
                              ('test_error', 'criterion_reached')),
    'pattern_generation': ('tutorial_pattern_generation', PATTERN_GENERATION, 2000, ('train_loss', 'nmse', 'rate_hz'),
                           ('nmse',)),
}

flags.DEFINE_enum('task', 'evidence_accumulation', list(TASKS), 'which tutorial')
flags.DEFINE_list('rules', None, 'learning rules, default all of the task')
flags.DEFINE_integer('n_seeds', 5, 'seeds 0, 1, ... of each rule', lower_bound=1)
flags.DEFINE_integer('n_iter', None, 'largest number of iterations; default 600 (evidence) or 2000 (pattern)', lower_bound=1)
flags.DEFINE_integer('n_batch', None, 'trials per iteration; default: the tutorial\'s', lower_bound=1)
flags.DEFINE_integer('n_parallel', 2, 'runs side by side, each on its share of the cores', lower_bound=1)
flags.DEFINE_bool('replot', False, 'draw the figures from the CSV without training')
flags.DEFINE_string('out', os.path.join(HERE, 'figures'), 'folder of the CSV and the figures')


def collect(folder, rules, n_seeds, columns, results):
  """Rows of the CSV from all finished runs, and the names of those that are missing."""
  rows, missing = [], []
  for rule in rules:
    for seed in range(n_seeds):
      run = os.path.join(folder, f'{rule}_seed{seed}')
      if not os.path.exists(os.path.join(run, 'summary.json')):
        missing.append(f'{rule} seed {seed}')
        continue
      with open(os.path.join(run, 'summary.json')) as file:
        summary = json.load(file)
      with open(os.path.join(run, 'metrics.csv'), newline='') as file:
        metrics = list(csv.DictReader(file))
      for metric in metrics:
        row = dict(rule=rule, seed=seed, iteration=metric['iteration'],
                   **{name: f'{float(metric[name]):.5g}' if metric[name] else '' for name in columns})
        if metric is metrics[-1]:
          row.update({name: summary[name] for name in (*results, 'wall_time_s', 'peak_memory_mb')})
        rows.append(row)
  return rows, missing


def main():
  script, all_rules, n_iter, columns, results = TASKS[FLAGS.task]
  experiment.apply_smoke(n_seeds=1, n_iter=2, n_batch=None if FLAGS.task == 'pattern_generation' else 4,
                         out=os.path.join(FLAGS.result_dir, script + '_comparison_smoke'))
  rules = FLAGS.rules or list(all_rules)
  unknown = [rule for rule in rules if rule not in all_rules]
  if unknown:
    raise experiment.UserError(f'unknown rule {", ".join(unknown)}; the rules of this task are {", ".join(all_rules)}')
  path = os.path.join(FLAGS.out, f'comparison_{FLAGS.task}.csv')
  os.makedirs(FLAGS.out, exist_ok=True)
  if not FLAGS.replot:
    train_all(script, {rule: all_rules[rule] for rule in rules}, FLAGS.n_iter or n_iter, columns, results, path)
  elif not os.path.exists(path):
    raise experiment.UserError(f'no file {path} to replot')
  print_table(path, results[0])
  figures = plots.comparison(path, FLAGS.task, FLAGS.show)
  print('\n'.join(f'figure: {figure}' for figure in figures))
  plots.wait(FLAGS.show)


def train_all(script, rules, n_iter, columns, results, path):
  """Runs what is not finished yet, `n_parallel` at a time, and writes the CSV after each run."""
  folder = os.path.join(os.path.abspath(FLAGS.result_dir), 'comparison' + ('_smoke' if FLAGS.smoke else ''), script)
  common = [f'--n_iter={n_iter}', f'--dtype={FLAGS.dtype}', '--do_plot=False']
  common += [f'--n_batch={FLAGS.n_batch}'] if FLAGS.n_batch else []
  runs = {os.path.join(folder, f'{rule}_seed{seed}'): [*common, f'--seed={seed}', *arguments]
          for seed in range(FLAGS.n_seeds) for rule, arguments in rules.items()}
  for n_done in experiment.train_side_by_side(os.path.join(HERE, script + '.py'), runs, FLAGS.n_parallel):
    rows, missing = collect(folder, rules, FLAGS.n_seeds, columns, results)
    experiment.write_csv(path, rows, ('rule', 'seed', 'iteration', *columns, *results, 'wall_time_s', 'peak_memory_mb'))
    print(f'{n_done}/{len(runs)} runs ended, {len(missing)} missing', flush=True)
  if missing:
    print('missing: ' + ', '.join(missing) + '; the same command goes on with them')


def print_table(path, result):
  """Prints mean and standard deviation over the seeds of each rule."""
  for rule, runs in plots.read_comparison(path).items():
    values = np.array([float(run[result][-1]) for run in runs])
    spread = f'{values.std(ddof=1):.3f}' if len(values) > 1 else 'one seed only'
    wall = np.mean([float(run['wall_time_s'][-1]) for run in runs])
    text = f'{plots.RULES[rule][0]:28s} seeds {len(runs)}  {result} {values.mean():.3f} (sd {spread})  mean wall time {wall:.0f} s'
    if 'criterion_reached' in runs[0]:
      reached = [int(run['iteration'][-1]) for run in runs if run['criterion_reached'][-1] == 'True']
      text += f'  criterion reached by {len(reached)}/{len(runs)}, after iterations {sorted(reached)}'
    print(text)


if __name__ == '__main__':
  experiment.run_app(main)

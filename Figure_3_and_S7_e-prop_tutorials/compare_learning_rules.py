"""Compares learning rules over seeds: BPTT, e-prop with three kinds of feedback, and networks without adaptation.

  python compare_learning_rules.py                                   evidence accumulation, six rules, five seeds
  python compare_learning_rules.py --task=pattern_generation
  python compare_learning_rules.py --replot                          draws the figures from the CSV, trains nothing

Every run is one call of the tutorial. Stopped at any moment, the same command goes on: finished runs are kept, an
unfinished one resumes from its checkpoint. Seeds are the outer loop, so that every rule has one seed first.
"""
import os

import comparison
from absl import flags
import numpy as np

import files
import plots
import program

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(comparison)

EVIDENCE_ACCUMULATION = {
    'bptt': [],
    'eprop_symmetric': ['--eprop', '--feedback=symmetric'],
    'eprop_random': ['--eprop', '--feedback=random'],
    'eprop_adaptive': ['--eprop', '--feedback=adaptive'],
    'eprop_random_sparse_dale': ['--eprop', '--feedback=random', '--connectivity=0.1', '--dale'],
    'lif_bptt': ['--n_regular=100', '--n_adaptive=0'],
    'lif_eprop_symmetric': ['--eprop', '--feedback=symmetric', '--n_regular=100', '--n_adaptive=0'],
}
PATTERN_GENERATION = {
    'bptt': ['--eprop_or_bptt=bptt'],
    'eprop_symmetric': ['--feedback=symmetric'],
    'eprop_random': ['--feedback=random'],
    'eprop_adaptive': ['--feedback=adaptive'],
}
TASKS = {  # script, rules, iterations
    'evidence_accumulation': ('tutorial_evidence_accumulation_with_alif', EVIDENCE_ACCUMULATION, 600),
    'pattern_generation': ('tutorial_pattern_generation', PATTERN_GENERATION, 2000),
}

flags.DEFINE_enum('task', 'evidence_accumulation', list(TASKS), 'which tutorial')
flags.DEFINE_integer('n_iter', None, 'largest number of iterations; default 600 (evidence) or 2000 (pattern)', lower_bound=1)
flags.DEFINE_integer('n_batch', None, 'trials per iteration; default: the tutorial\'s', 1, 10 ** 5)


def rows_of(job, rule, seed):
  """Rows of the CSV from a finished run: its metrics, and in the last one its results."""
  columns, optional, result, others = plots.TABLES[FLAGS.task]
  summary, metrics = comparison.results_of(job, [result], (*columns, *optional), columns)
  rows = [dict(rule=rule, seed=seed, iteration=metric['iteration'],
               **{name: f'{float(metric[name]):.5g}' if metric[name] else '' for name in (*columns, *optional)})
          for metric in metrics]
  rows[-1].update({name: summary.get(name) for name in (result, *others, *plots.COSTS)})
  return rows


def train_all(script, rules, n_iter, path):
  """Trains, and writes the CSV after each run, where the runs not asked for stay; returns whether all runs have finished."""
  folder = comparison.folder_of(script)
  arguments = [f'--n_iter={n_iter}', '--do_plot=False', *comparison.common_arguments()]
  arguments += [f'--n_batch={FLAGS.n_batch}'] if FLAGS.n_batch else []
  job_of = lambda rule, seed: comparison.Job(f'{rule} seed {seed}', script, os.path.join(folder, f'{rule}_seed{seed}'),
                                             [*arguments, f'--seed={seed}', *rules[rule]])
  jobs = {(rule, seed): job_of(rule, seed) for seed in range(FLAGS.n_seeds) for rule in rules}
  others = comparison.kept(path, lambda path: plots.read_rows(path, FLAGS.task), ('rule', 'seed'), jobs, job_of)

  def collect(finished):
    rows = others + [row for key, job in jobs.items() if job in finished for row in rows_of(job, *key)]
    order = list(TASKS[FLAGS.task][1])
    rows.sort(key=lambda row: (order.index(row['rule']), int(row['seed'])))
    columns, optional, result, more = plots.TABLES[FLAGS.task]
    files.write_csv(path, rows, dict.fromkeys(('rule', 'seed', 'iteration', *columns, *optional, result, *more, *plots.COSTS)))

  return comparison.train(list(jobs.values()), collect)


def print_table(path):
  """Prints mean and standard deviation over the seeds of each rule."""
  _, _, result, others = plots.TABLES[FLAGS.task]
  for rule, runs in plots.read_comparison(path, FLAGS.task).items():
    values = [float(run[result][-1]) for run in runs]
    wall = np.mean([float(run['wall_time_s'][-1]) for run in runs])
    text = f'{plots.RULES[rule][0]:28s} {result} {comparison.spread(values)}  mean wall time {wall:.0f} s'
    if 'criterion_reached' in others:
      reached = [int(run['iteration'][-1]) for run in runs if run['criterion_reached'][-1] == 'True']
      text += f'  criterion reached by {len(reached)}/{len(runs)}, after iterations {sorted(reached)}'
    print(text)


def main():
  script, all_rules, n_iter = TASKS[FLAGS.task]
  program.apply_smoke(n_seeds=1, n_iter=2, n_batch=None if FLAGS.task == 'pattern_generation' else 4,
                      out=os.path.join(FLAGS.result_dir, script + '_comparison_smoke'))
  comparison.prepare(list(all_rules), ('n_iter', 'n_batch'))
  path = os.path.join(FLAGS.out, f'comparison_{FLAGS.task}.csv')
  rules = {rule: all_rules[rule] for rule in FLAGS.rules or all_rules}
  complete = FLAGS.replot or train_all(script, rules, FLAGS.n_iter or n_iter, path)
  print_table(path)
  figures = plots.comparison(path, FLAGS.task, FLAGS.show)
  print('\n'.join(f'figure: {figure}' for figure in figures), flush=True)
  plots.wait(FLAGS.show)
  comparison.end(complete)


if __name__ == '__main__':
  program.run_app(main)

"""Our framewise LSNN beside the published program, with the same settings on the same corpus: validation error over updates.

  python timit_processing.py --n_train=480 --n_dev=64 --n_test=64
  python published_curve.py                        three seeds; --replot: the figure from the CSV, no training

Symmetric e-prop, batches of 8, four epochs, everything else as published. Writes figures/published_curve.csv and .png.
"""
import os

import comparison
from absl import flags

import data
import files
import program
import result_plots

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(comparison)
program.DEFINE_path('dataset', None, 'processed corpus; default: the synthetic one in <result_dir>')
FLAGS.set_default('n_seeds', 3)

SCRIPT = 'solve_timit_with_framewise_lsnn'
SETTINGS = ['--plot=False', '--eprop=symmetric', '--batch=8', '--n_epochs=4']
PUBLISHED = {60: 0.695, 120: 0.470, 180: 0.409, 240: 0.368}  # one run of the published program, measured with TensorFlow 1.15
COLUMNS = ('program', 'seed', 'update', 'validation_error')


def train(path, corpus):
  """Trains, and writes the CSV after each run; returns whether all have finished."""
  identity, folder = data.load(corpus).identity, comparison.folder_of('published_curve', SCRIPT)
  jobs = [comparison.Job(f'seed {seed}', SCRIPT, os.path.join(folder, f'seed{seed}'), [
      f'--dataset={corpus}', *SETTINGS, f'--seed={seed}', *comparison.common_arguments()], identity)
          for seed in range(FLAGS.n_seeds)]

  def collect(finished):
    rows = [dict(program='published', seed='', update=update, validation_error=error) for update, error in PUBLISHED.items()]
    for seed, job in enumerate(jobs):
      if job in finished:
        metrics = files.read_csv(job.path('metrics.csv'), numbers=('iteration', 'validation_error'))
        rows += [dict(program='ours', seed=seed, update=row['iteration'], validation_error=row['validation_error'])
                 for row in metrics if row['validation_error']]
    files.write_csv(path, rows, COLUMNS)

  return comparison.train(jobs, collect)


def main():
  program.apply_smoke(n_seeds=1, out=os.path.join(FLAGS.result_dir, 'comparison_smoke'))
  program.refuse(['rules'])
  comparison.prepare([])
  path = os.path.join(FLAGS.out, 'published_curve.csv')
  complete = FLAGS.replot or train(path, os.path.abspath(FLAGS.dataset or data.folder_of(FLAGS.result_dir, 'espeak', 'fbank')))
  print(f'figure: {result_plots.published_curve(path, FLAGS.show)}', flush=True)
  comparison.end(complete)


if __name__ == '__main__':
  program.run_app(main)

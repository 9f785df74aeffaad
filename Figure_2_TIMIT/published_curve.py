"""Our framewise LSNN beside the published program, with the same settings on the same corpus: validation error over updates.

  python timit_processing.py --n_train=480 --n_dev=64 --n_test=64
  python published_curve.py                                  three seeds; --replot: the figure from the CSV, no training
  python published_curve.py --variants=all                   also with one setting changed, for the list of differences

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

SCRIPT = 'solve_timit_with_framewise_lsnn'
SETTINGS = ['--plot=False', '--eprop=symmetric', '--batch=8', '--n_epochs=4']
VARIANTS = {  # flags beside SETTINGS
    'ours': [],
    'rates of the utterances alone': ['--reg_over=utterances'],
    'reversed at the end of each utterance': ['--reverse=utterance'],
    'batches of similar length': ['--batch_order=length'],
    'thresholds adapt to spikes': ['--adapt_to=spikes'],
    'a blank class': ['--blank_class'],
    'preset fast': ['--preset=fast']}
PUBLISHED = {60: 0.695, 120: 0.470, 180: 0.409, 240: 0.368}  # one run of the published program, measured with TensorFlow 1.15
COLUMNS = ('program', 'seed', 'update', 'validation_error')

flags.DEFINE_list('variants', ['ours'], f'some of {", ".join(VARIANTS)}; or all')
program.DEFINE_path('dataset', None, 'processed corpus; default: the synthetic one in <result_dir>')
FLAGS.set_default('n_seeds', 3)


def make_job(variant, seed, corpus, identity):
  """The run of one variant and seed."""
  folder = comparison.folder_of('published_curve', SCRIPT)
  arguments = [f'--dataset={corpus}', *SETTINGS, *VARIANTS[variant], f'--seed={seed}', *comparison.common_arguments()]
  name = variant.replace(' ', '_')
  return comparison.Job(f'{variant} seed {seed}', SCRIPT, os.path.join(folder, f'{name}_seed{seed}'), arguments, identity)


def train(path, variants, corpus):
  """Trains, and writes the CSV after each run, where the runs not asked for stay; returns whether those asked for have
  finished."""
  identity = data.load(corpus).identity
  job_of = lambda variant, seed: make_job(variant, seed, corpus, identity)
  jobs = {(variant, seed): job_of(variant, seed) for seed in range(FLAGS.n_seeds) for variant in variants}
  published = [dict(program='published', seed='', update=update, validation_error=error) for update, error in PUBLISHED.items()]

  def read(path):
    return [row for row in result_plots.read_published_curve(path, VARIANTS) if row['program'] != 'published']

  others = comparison.kept(path, read, ('program', 'seed'), jobs, job_of)

  def collect(finished):
    rows = others + [dict(program=variant, seed=seed, update=row['iteration'], validation_error=row['validation_error'])
                     for (variant, seed), job in jobs.items() if job in finished
                     for row in comparison.results_of(job, [], ['validation_error'])[1] if row['validation_error']]
    rows.sort(key=lambda row: (list(VARIANTS).index(row['program']), int(row['seed'])))
    files.write_csv(path, [*published, *rows], COLUMNS)

  return comparison.train(list(jobs.values()), collect)


def main():
  program.apply_smoke(n_seeds=1, out=os.path.join(FLAGS.result_dir, 'comparison_smoke'))
  program.refuse(['rules'])
  variants = list(VARIANTS) if FLAGS.variants == ['all'] else FLAGS.variants
  comparison.choose('variant', variants, VARIANTS)
  comparison.prepare([])
  path = os.path.join(FLAGS.out, 'published_curve.csv')
  corpus = os.path.abspath(FLAGS.dataset or data.folder_of(FLAGS.result_dir, 'espeak', 'fbank'))
  complete = FLAGS.replot or train(path, variants, corpus)
  print(f'figure: {result_plots.published_curve(path, VARIANTS, FLAGS.show)}', flush=True)
  comparison.end(complete)


if __name__ == '__main__':
  program.run_app(main)

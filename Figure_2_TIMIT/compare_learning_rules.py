"""Compares learning rules over seeds for the networks of figure 2, as its panel c does.

  python compare_learning_rules.py --networks=framewise_lsnn,framewise_lstm         six rules, three seeds
  python compare_learning_rules.py --networks=ctc_lstm,ctc_lsnn
  python compare_learning_rules.py --replot                                         the figure from the CSV, no training

Every run is one call of a solve script. Stopped at any moment, the same command goes on: finished runs are kept, an unfinished
one resumes from its checkpoint. Seeds are the outer loop, so that every rule has one seed first.
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

EPROP = {rule: [f'--eprop={rule}'] for rule in ('symmetric', 'adaptive', 'random')}
CTC = 'solve_timit_with_ctc_in_tensorflow'
CTC_RATE = ['--lr_init=0.005', '--lr_decay_every=-1']
NETWORKS = {  # script, its flags, rules
    # Batches of 8 instead of 32: a small corpus gives more updates an epoch.
    'framewise_lsnn': ('solve_timit_with_framewise_lsnn', ['--batch=8'], {
        'bptt': [], **EPROP, 'uniform': ['--BAglobal'], 'readout': ['--cell_train=False']}),
    'framewise_lstm': ('solve_timit_with_framewise_lstm', [], {'bptt': [], **EPROP}),
    # Sizes that two cores train in minutes: one layer instead of three, fewer units; the published decay of the learning rate
    # would end learning after a few hundred updates.
    'ctc_lstm': (CTC, ['--model=lstm', '--n_layer=1', '--n_neuron=100', *CTC_RATE], {'bptt': [], **EPROP}),
    'ctc_lsnn': (CTC, ['--model=lsnn', '--n_neuron=200', '--n_split=0.5', *CTC_RATE], {'bptt': [], **EPROP}),
}
COLUMNS = ('network', 'rule', 'seed', 'corpus', 'test_error', 'test_frame_error', 'test_frame_error_all_frames',
           'test_frame_error_39_phones', 'test_per', 'test_per_mean_over_utterances', 'test_substitutions', 'test_deletions',
           'test_insertions', 'test_phones', 'test_per_unmerged', 'validation_error', 'best_epoch', 'rate_hz', 'iterations',
           'wall_time_s', 'peak_memory_mb')

flags.DEFINE_list('networks', ['framewise_lsnn', 'framewise_lstm'], f'some of {", ".join(NETWORKS)}')
flags.DEFINE_integer('n_epochs', None, 'epochs; default: the script\'s', lower_bound=1)
program.DEFINE_path('dataset', None, 'processed corpus; default: NLTK\'s sample in <result_dir>')
FLAGS.set_default('n_seeds', 3)


def jobs_of(corpus, identity):
  """The runs asked for: {(network, rule, seed): Job}."""
  jobs = {}
  for network in FLAGS.networks:
    script, arguments, rules = NETWORKS[network]
    folder = comparison.folder_of(f'{os.path.basename(corpus)}_{network}', script)
    common = [f'--dataset={corpus}', '--plot=False', *arguments, *comparison.common_arguments()]
    common += [f'--n_epochs={FLAGS.n_epochs}'] if FLAGS.n_epochs else []
    for seed in range(FLAGS.n_seeds):
      for rule in rules:
        if not FLAGS.rules or rule in FLAGS.rules:
          jobs[network, rule, seed] = comparison.Job(
              f'{network} {rule} seed {seed}', script, os.path.join(folder, f'{rule}_seed{seed}'),
              [*common, f'--seed={seed}', *rules[rule]], identity)
  if not jobs:
    raise files.UserError(f'no network of {", ".join(FLAGS.networks)} has a rule {" or ".join(FLAGS.rules)}')
  return jobs


def train_all(path, corpus, identity):
  """Trains, and writes the CSV after each run, where rows of networks not asked for stay; returns whether all have finished."""
  jobs = jobs_of(corpus, identity)
  others = []
  if os.path.exists(path):
    others = [row for row in files.read_csv(path, ('network', 'rule'), n_rows=None) if row['network'] not in FLAGS.networks]

  def collect(finished):
    rows = []
    for (network, rule, seed), job in jobs.items():
      if job in finished:
        summary = files.read_json(job.path('summary.json'), ('test_error', 'corpus'))
        rows.append(dict({name: summary[name] for name in COLUMNS if summary.get(name) is not None}, network=network,
                         rule=rule, seed=seed))
    files.write_csv(path, [*({name: row.get(name, '') for name in COLUMNS} for row in others), *rows], COLUMNS)

  return comparison.train(list(jobs.values()), collect)


def print_table(path):
  """Prints mean and standard deviation over the seeds of each network and rule."""
  for (network, rule), runs in result_plots.read_comparison(path).items():
    for name in result_plots.MEASURES:
      values = [100 * float(run[name]) for run in runs if run[name]]
      if values:
        print(f'{network:15s} {rule:10s} {name:30s} in % {comparison.spread(values, "{:.1f}")}')


def main():
  program.apply_smoke(n_seeds=1, out=os.path.join(FLAGS.result_dir, 'comparison_smoke'))
  comparison.choose('network', FLAGS.networks, NETWORKS)
  comparison.prepare(result_plots.RULES)
  corpus = os.path.abspath(FLAGS.dataset or data.folder_of(FLAGS.result_dir, 'nltk_sample', 'fbank'))
  path = os.path.join(FLAGS.out, f'comparison_{os.path.basename(corpus)}.csv')
  complete = FLAGS.replot or train_all(path, corpus, data.load(corpus).identity)  # complains at once if it is not there
  print_table(path)
  print(f'figure: {result_plots.comparison(path, FLAGS.show)}', flush=True)
  comparison.end(complete)


if __name__ == '__main__':
  program.run_app(main)

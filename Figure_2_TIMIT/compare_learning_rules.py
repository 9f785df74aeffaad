"""Compares learning rules over seeds for the networks of figure 2, as its panel c does.

  python compare_learning_rules.py --networks=framewise_lsnn,framewise_lstm         six rules, three seeds
  python compare_learning_rules.py --networks=ctc_lstm,ctc_lsnn
  python compare_learning_rules.py --replot                                         the figures from the CSVs, no training

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
RULES = {'bptt': [], **EPROP}
CONTROLS = {'uniform': ['--BAglobal'], 'readout': ['--cell_train=False']}
LSNN, LSTM, CTC = ('solve_timit_with_' + name for name in ('framewise_lsnn', 'framewise_lstm', 'ctc_in_tensorflow'))
# Sizes that two cores train in minutes: fewer layers and units; the published decay of the learning rate would end learning
# after a few hundred updates.
CTC_LSTM = ['--model=lstm', '--n_neuron=100', '--lr_init=0.005', '--lr_decay_every=-1']
CTC_LSNN = ['--model=lsnn', '--n_neuron=200', '--n_split=0.5', '--lr_decay_every=-1']
RATE_COST = ['--lr_init=0.005', '--reg=20', '--reg_rate=20']  # the larger rate makes CTC learn, see README.md
NETWORKS = {  # script, its flags, rules
    # With a falling learning rate the published decay of readout and feedback, 0.01 per update, outweighs the updates.
    'framewise_lsnn': (LSNN, ['--preset=fast'], {
        **RULES, 'adaptive_slow': ['--eprop=adaptive', '--readout_decay=0.001'], **CONTROLS}),
    # Batches of 8 instead of 32: a small corpus gives more updates an epoch.
    'framewise_lsnn_published': (LSNN, ['--batch=8'], {**RULES, **CONTROLS}),
    'framewise_lsnn_two_layers': (LSNN, ['--preset=fast', '--n_layer=2', '--n_regular=150', '--n_adaptive=50'], RULES),
    'framewise_lstm': (LSTM, [], RULES),
    'framewise_lstm_two_layers': (LSTM, ['--n_layer=2', '--n_lstm=100'], RULES),
    'ctc_lstm': (CTC, [*CTC_LSTM, '--n_layer=1'], RULES),
    'ctc_lstm_two_layers': (CTC, [*CTC_LSTM, '--n_layer=2'], RULES),
    'ctc_lsnn': (CTC, [*CTC_LSNN, *RATE_COST, '--n_layer=1'], RULES),
    'ctc_lsnn_without_rate_cost': (CTC, [*CTC_LSNN, '--lr_init=0.005', '--n_layer=1'], RULES),
    'ctc_lsnn_published': (CTC, [*CTC_LSNN, '--lr_init=0.001', '--n_layer=1'], RULES),
    'ctc_lsnn_two_layers': (CTC, [*CTC_LSNN, *RATE_COST, '--n_layer=2'], RULES),
}
COLUMNS = ('network', 'rule', 'seed', 'corpus', 'test_error', 'test_frame_error', 'test_frame_error_all_frames',
           'test_frame_error_39_phones', 'test_per', 'test_per_mean_over_utterances', 'test_substitutions', 'test_deletions',
           'test_insertions', 'test_phones', 'test_per_unmerged', 'validation_error', 'best_epoch', 'rate_hz', 'iterations',
           'wall_time_s', 'peak_memory_mb')
KEY = ('network', 'rule', 'seed')
CURVE_COLUMNS = ('network', 'rule', 'seed', 'corpus', 'iteration', 'validation_error', 'rate_hz', 'gradient_norm',
                 'validation_blank_share')

flags.DEFINE_list('networks', ['framewise_lsnn', 'framewise_lstm'], f'some of {", ".join(NETWORKS)}')
flags.DEFINE_integer('n_epochs', None, 'epochs; default: the script\'s', lower_bound=1)
program.DEFINE_path('dataset', None, 'processed corpus; default: NLTK\'s sample in <result_dir>')
FLAGS.set_default('n_seeds', 3)


def make_job(network, rule, seed, corpus, identity):
  """The run of one network, rule and seed."""
  script, arguments, rules = NETWORKS[network]
  folder = comparison.folder_of(f'{os.path.basename(corpus)}_{network}', script)
  common = [f'--dataset={corpus}', '--plot=False', *arguments, *comparison.common_arguments()]
  common += [f'--n_epochs={FLAGS.n_epochs}'] if FLAGS.n_epochs else []
  return comparison.Job(f'{network} {rule} seed {seed}', script, os.path.join(folder, f'{rule}_seed{seed}'),
                        [*common, f'--seed={seed}', *rules[rule]], identity)


def train_all(path, curves_path, corpus, metadata, identity):
  """Trains, and writes the CSVs of results and of learning curves after each run, where the runs not asked for stay; returns
  whether all have finished."""
  job_of = lambda network, rule, seed: make_job(network, rule, seed, corpus, identity)
  jobs = {(network, rule, seed): job_of(network, rule, seed) for network in FLAGS.networks for seed in range(FLAGS.n_seeds)
          for rule in NETWORKS[network][2] if not FLAGS.rules or rule in FLAGS.rules}
  if not jobs:
    raise files.UserError(f'no network of {", ".join(FLAGS.networks)} has a rule {" or ".join(FLAGS.rules)}')
  others = comparison.kept(path, result_plots.read_rows, KEY, jobs, job_of)
  if others and others[0]['corpus'] != metadata['label']:
    raise files.UserError(f'{path} is of {others[0]["corpus"]}, not of {metadata["label"]}: give another --out')
  kept = {tuple(row[name] for name in KEY) for row in others}
  other_curves = [row for row in (result_plots.read_curves(curves_path, path) if os.path.exists(curves_path) else [])
                  if tuple(row[name] for name in KEY) in kept]

  def collect(finished):
    rows, curves = [], []
    for (network, rule, seed), job in jobs.items():
      if job in finished:
        summary, metrics = comparison.results_of(job, ['test_error'], ('validation_error', 'rate_hz'))
        name = dict(network=network, rule=rule, seed=seed, corpus=metadata['label'])
        rows.append({column: summary[column] for column in COLUMNS if summary.get(column) is not None} | name)
        curves += [{column: row[column] for column in CURVE_COLUMNS if column in row} | name
                   for row in metrics if row['validation_error']]
    only = lambda rows, columns: [{column: row.get(column, '') for column in columns} for row in rows]
    files.write_csv(path, only(others, COLUMNS) + rows, COLUMNS)
    files.write_csv(curves_path, only(other_curves, CURVE_COLUMNS) + curves, CURVE_COLUMNS)

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
  comparison.prepare(result_plots.RULES, ('n_epochs',))
  corpus = os.path.abspath(FLAGS.dataset or data.folder_of(FLAGS.result_dir, 'nltk_sample', 'fbank'))
  path, curves = (os.path.join(FLAGS.out, f'{kind}_{os.path.basename(corpus)}.csv') for kind in ('comparison', 'curves'))
  if FLAGS.replot:
    complete = True
  else:
    loaded = data.load(corpus)  # complains at once if it is not there
    complete = train_all(path, curves, corpus, loaded.metadata, loaded.identity)
  figures = [result_plots.curves(curves, path, FLAGS.show)] if os.path.exists(curves) else []
  print_table(path)
  figures.append(result_plots.comparison(path, FLAGS.show))
  print(f'figures: {", ".join(figures)}', flush=True)
  comparison.end(complete)


if __name__ == '__main__':
  program.run_app(main)

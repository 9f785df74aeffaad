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
CTC_LSNN = ['--model=lsnn', '--n_neuron=200', '--n_split=0.5', '--lr_init=0.005', '--lr_decay_every=-1', '--reg=20',
            '--reg_rate=20']
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
    'ctc_lsnn': (CTC, [*CTC_LSNN, '--n_layer=1'], RULES),
    'ctc_lsnn_two_layers': (CTC, [*CTC_LSNN, '--n_layer=2'], RULES),
}
COLUMNS = ('network', 'rule', 'seed', 'corpus', 'test_error', 'test_frame_error', 'test_frame_error_all_frames',
           'test_frame_error_39_phones', 'test_per', 'test_per_mean_over_utterances', 'test_substitutions', 'test_deletions',
           'test_insertions', 'test_phones', 'test_per_unmerged', 'validation_error', 'best_epoch', 'rate_hz', 'iterations',
           'wall_time_s', 'peak_memory_mb')
CURVE_COLUMNS = ('network', 'rule', 'seed', 'corpus', 'iteration', 'validation_error', 'rate_hz')

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


def others_in(path, columns):
  """Rows of a CSV that are of networks not asked for; they stay."""
  if not os.path.exists(path):
    return []
  rows = files.read_csv(path, ('network', 'rule'), n_rows=None)
  return [{name: row.get(name, '') for name in columns} for row in rows if row['network'] not in FLAGS.networks]


def train_all(path, curves_path, corpus, identity):
  """Trains, and writes the CSVs of results and of learning curves after each run; returns whether all have finished."""
  jobs = jobs_of(corpus, identity)
  others, other_curves = others_in(path, COLUMNS), others_in(curves_path, CURVE_COLUMNS)
  comparison.say_what_is_kept(row['network'] for row in others)

  def collect(finished):
    rows, curves = [], []
    for (network, rule, seed), job in jobs.items():
      if job in finished:
        summary = files.read_json(job.path('summary.json'), ('test_error', 'corpus'))
        name = dict(network=network, rule=rule, seed=seed, corpus=summary['corpus'])
        rows.append({column: summary[column] for column in COLUMNS if summary.get(column) is not None} | name)
        validated = [row for row in files.read_csv(job.path('metrics.csv'), numbers=('iteration', 'validation_error', 'rate_hz'))
                     if row['validation_error']]
        curves += [{column: row[column] for column in CURVE_COLUMNS if column in row} | name for row in validated]
    files.write_csv(path, [*others, *rows], COLUMNS)
    files.write_csv(curves_path, [*other_curves, *curves], CURVE_COLUMNS)

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
  if not FLAGS.networks:
    raise files.UserError('--networks names no network')
  comparison.choose('network', FLAGS.networks, NETWORKS)
  comparison.prepare(result_plots.RULES)
  corpus = os.path.abspath(FLAGS.dataset or data.folder_of(FLAGS.result_dir, 'nltk_sample', 'fbank'))
  path, curves = (os.path.join(FLAGS.out, f'{kind}_{os.path.basename(corpus)}.csv') for kind in ('comparison', 'curves'))
  complete = FLAGS.replot or train_all(path, curves, corpus, data.load(corpus).identity)  # complains at once if it is not there
  print_table(path)
  figures = [result_plots.comparison(path, FLAGS.show)]
  if os.path.exists(curves):
    figures.append(result_plots.curves(curves, FLAGS.show))
  print(f'figures: {", ".join(figures)}', flush=True)
  comparison.end(complete)


if __name__ == '__main__':
  program.run_app(main)

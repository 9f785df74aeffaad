"""Compares learning rules over seeds for the networks of figure 2, as its panel c does.

  python compare_learning_rules.py --networks=framewise_lsnn,framewise_lstm         six rules, three seeds
  python compare_learning_rules.py --networks=ctc_lstm,ctc_lsnn
  python compare_learning_rules.py --replot                                         the figure from the CSV, no training

Every run is one call of a solve script. Stopped at any moment, the same command goes on: finished runs are kept, an unfinished
one resumes from its checkpoint. Seeds are the outer loop, so that every rule has one seed first.
"""
import csv
import json
import os

import experiment
from absl import flags
import numpy as np

import data
import result_plots

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)

HERE = os.path.dirname(os.path.abspath(__file__))
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
flags.DEFINE_list('rules', None, 'learning rules, default all of each network')
flags.DEFINE_integer('n_seeds', 3, 'seeds 0, 1, ... of each rule', lower_bound=1)
flags.DEFINE_integer('n_epochs', None, 'epochs; default: the script\'s', lower_bound=1)
flags.DEFINE_string('dataset', None, 'processed corpus; default: NLTK\'s sample in <result_dir>')
flags.DEFINE_integer('n_parallel', 2, 'runs side by side, each on its share of the cores', lower_bound=1)
flags.DEFINE_bool('replot', False, 'draw the figure from the CSV without training')
flags.DEFINE_string('out', os.path.join(HERE, 'figures'), 'folder of the CSV and the figure')


def collect(runs):
  """Rows of the CSV of finished runs, and the names of the others; runs: {folder: (network, rule, seed)}."""
  rows, missing = [], []
  for folder, (network, rule, seed) in runs.items():
    path = os.path.join(folder, 'summary.json')
    if not os.path.exists(path):
      missing.append(f'{network} {rule} seed {seed}')
      continue
    with open(path) as file:
      summary = json.load(file)
    rows.append(dict({name: summary[name] for name in COLUMNS if summary.get(name) is not None}, network=network, rule=rule,
                     seed=seed))
  return rows, missing


def train_all(path, corpus):
  """Runs what is not finished yet and writes the CSV after each run; rows of networks not asked for stay."""
  with_others = []
  if os.path.exists(path):
    with open(path, newline='') as file:
      with_others = [row for row in csv.DictReader(file) if row['network'] not in FLAGS.networks]
  folder = os.path.join(os.path.abspath(FLAGS.result_dir), 'comparison' + ('_smoke' if FLAGS.smoke else ''))
  runs, done = {}, 0
  for network in FLAGS.networks:
    script, arguments, rules = NETWORKS[network]
    chosen = {rule: extra for rule, extra in rules.items() if not FLAGS.rules or rule in FLAGS.rules}
    common = [f'--dataset={corpus}', f'--dtype={FLAGS.dtype}', '--plot=False', *arguments]
    common += [f'--n_epochs={FLAGS.n_epochs}'] if FLAGS.n_epochs else []
    common += ['--smoke'] if FLAGS.smoke else []
    of_network = {os.path.join(folder, f'{os.path.basename(corpus)}_{network}', script, f'{rule}_seed{seed}'):
                  (network, rule, seed) for seed in range(FLAGS.n_seeds) for rule in chosen}
    runs |= of_network
    flags_of = {run: [*common, f'--seed={seed}', *chosen[rule]] for run, (_, rule, seed) in of_network.items()}
    for _ in experiment.train_side_by_side(os.path.join(HERE, script + '.py'), flags_of, FLAGS.n_parallel):
      done += 1
      rows, missing = collect(runs)
      experiment.write_csv(path, [*with_others, *rows], COLUMNS)
      print(f'{done} runs ended, {len(missing)} missing', flush=True)
  if missing:
    print('missing: ' + ', '.join(missing) + '; the same command goes on with them')


def print_table(path):
  """Prints mean and standard deviation over the seeds of each network and rule."""
  for (network, rule), runs in result_plots.read_comparison(path).items():
    for name in ('test_frame_error', 'test_frame_error_39_phones', 'test_per', 'test_per_mean_over_utterances'):
      values = np.array([100 * float(run[name]) for run in runs if run[name]])
      if len(values):
        spread = f'sd {values.std(ddof=1):.1f}' if len(values) > 1 else 'one seed only'
        print(f'{network:15s} {rule:10s} {name:30s} {values.mean():5.1f} % ({spread}, {len(values)} seeds)')


def main():
  experiment.apply_smoke(n_seeds=1, out=os.path.join(FLAGS.result_dir, 'comparison_smoke'))
  unknown = set(FLAGS.networks) - set(NETWORKS) or set(FLAGS.rules or []) - set(result_plots.RULES)
  if unknown:
    raise experiment.UserError(f'unknown {", ".join(sorted(unknown))}; the networks are {", ".join(NETWORKS)}, the rules '
                               f'{", ".join(result_plots.RULES)}')
  corpus = os.path.abspath(FLAGS.dataset or data.folder_of(FLAGS.result_dir, 'nltk_sample', 'fbank'))
  path = os.path.join(FLAGS.out, f'comparison_{os.path.basename(corpus)}.csv')
  os.makedirs(FLAGS.out, exist_ok=True)
  if not FLAGS.replot:
    data.load(corpus)  # complains at once if it is not there
    train_all(path, corpus)
  elif not os.path.exists(path):
    raise experiment.UserError(f'no file {path} to replot')
  print_table(path)
  print(f'figure: {result_plots.comparison(path, FLAGS.show)}')


if __name__ == '__main__':
  experiment.run_app(main)

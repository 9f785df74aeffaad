"""Figures of speech recognition from saved arrays. No TensorFlow.

  python result_plots.py results/<script>/<run>/figure.npz     draws utterance.png beside it once more
"""
import os

import numpy as np

import drawing
from drawing import matplotlib, plt
import files
from files import UserError
import palette
from timit_plots import COLOURS, kind_of, save

FRAME_MS = 10
MEASURES = ('test_frame_error', 'test_frame_error_39_phones', 'test_per', 'test_per_mean_over_utterances')
RULES = {  # label, colour and line of each learning rule; the controls are dashed, and hatched as bars
    'bptt': ('BPTT', palette.BLACK, '-'),
    'symmetric': ('e-prop, symmetric', palette.BLUE, '-'),
    'adaptive': ('e-prop, adaptive', palette.GREEN, '-'),
    'adaptive_slow': ('e-prop, adaptive, decay 0.001', '#1B7A5E', '-'),  # a darker green
    'random': ('e-prop, random', palette.ORANGE, '-'),
    'uniform': ('e-prop, uniform (control)', palette.LIGHT_GREY, '--'),
    'readout': ('readout alone (control)', palette.GREY, '--'),
}
NETWORKS = {  # what compare_learning_rules.py calls them, and what the figures do
    'framewise_lsnn': 'LSNN', 'framewise_lsnn_published': 'LSNN,\npublished', 'framewise_lsnn_two_layers': 'LSNN,\ntwo layers',
    'framewise_lstm': 'LSTM', 'framewise_lstm_two_layers': 'LSTM,\ntwo layers', 'ctc_lstm': 'LSTM, CTC',
    'ctc_lstm_two_layers': 'LSTM, CTC,\ntwo layers', 'ctc_lsnn': 'LSNN, CTC',
    'ctc_lsnn_without_rate_cost': 'LSNN, CTC,\nno rate cost', 'ctc_lsnn_published': 'LSNN, CTC,\npublished',
    'ctc_lsnn_two_layers': 'LSNN, CTC,\ntwo layers'}


def learning_curve(metrics, path, label, note):
  """Training loss over updates and validation error over epochs.

  Args:
    metrics: path of metrics.csv.
    path: PNG to write.
    label: of the validation error.
    note: title, which corpus.
  """
  rows = files.read_metrics(metrics, ('epoch', 'train_loss', 'validation_loss', 'validation_error'), ('epoch', 'train_loss'))
  iteration = np.arange(1, len(rows) + 1)
  validated = [k for k, row in enumerate(rows) if row['validation_error'] and row['validation_loss']]
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout='constrained')
  axes[0].plot(iteration, [float(row['train_loss']) for row in rows], color='0.7', lw=0.8, label='training batches')
  axes[0].plot(iteration[validated], [float(rows[k]['validation_loss']) for k in validated], color='black', label='validation')
  axes[0].set(xlabel='update', ylabel='loss', yscale='log')
  axes[0].legend(frameon=False)
  axes[1].plot([int(rows[k]['epoch']) for k in validated], [float(rows[k]['validation_error']) for k in validated], '.-',
               color='black', lw=1)
  axes[1].set(xlabel='epoch', ylabel=f'validation: {label}', ylim=(0, None))
  figure.suptitle(note, fontsize=9)
  for axis in axes:
    axis.spines[['top', 'right']].set_visible(False)
  save(figure, path)


def _phone_bar(axis, starts, phones, classes, n_frames, name):
  """Runs of phones as coloured boxes with their names."""
  bounds = [*starts, n_frames]
  for k, phone in enumerate(phones):
    left, right = bounds[k] * FRAME_MS / 1000, bounds[k + 1] * FRAME_MS / 1000
    axis.axvspan(left, right, color=COLOURS[kind_of(classes[phone])], lw=0)
    axis.text((left + right) / 2, (0.8, 0.5, 0.2)[k % 3], classes[phone], ha='center', va='center', fontsize=7)
    axis.axvline(left, color='white', lw=0.5)
  axis.set(yticks=[], ylim=(0, 1))
  axis.set_ylabel(name, rotation=0, ha='right', va='center')


def utterance(record, path, show=False):
  """One utterance as in figure 2b: features, spikes, posteriors of the phones, predicted and true phones.

  Args:
    record: dict of arrays: features [T, 41], outputs [T or n_repeat T, n] of the shown units, spiking (bool), n_regular,
      posterior [T, K], predicted and true (classes of runs), their first frames predicted_starts and true_starts, classes,
      title.
    path: PNG to write.
    show: bring up the window as well.
  """
  posterior, outputs, classes = record['posterior'], record['outputs'], [str(name) for name in record['classes']]
  n_frames = len(posterior)
  seconds = n_frames * FRAME_MS / 1000
  figure, axes = plt.subplots(5, 1, sharex=True, figsize=(11, 9), height_ratios=[1.4, 2, 2.4, 0.9, 0.9], layout='constrained')
  low, high = np.percentile(record['features'], [2, 99.5])
  image = axes[0].imshow(record['features'].T, origin='lower', aspect='auto', cmap='magma', vmin=low, vmax=high,
                         extent=[0, seconds, 0, record['features'].shape[1]])
  axes[0].set_ylabel('feature')
  figure.colorbar(image, ax=axes[0], label='sd', pad=0.01)
  if record['spiking']:
    steps, units = np.nonzero(outputs)
    time = steps * seconds / len(outputs)
    adaptive = units >= int(record['n_regular'])
    for chosen, colour, name in ((~adaptive, 'black', 'LIF'), (adaptive, palette.ALIF, 'ALIF')):
      axes[1].plot(time[chosen], units[chosen], '|', color=colour, ms=2, mew=0.5, label=name)
    axes[1].set(ylabel='neuron', ylim=(-1, outputs.shape[1]))
    axes[1].legend(loc='upper right', markerscale=4, fontsize=8)
  else:
    image = axes[1].imshow(outputs.T, origin='lower', aspect='auto', cmap='RdBu_r', vmin=-1, vmax=1,
                           extent=[0, seconds, 0, outputs.shape[1]])
    axes[1].set_ylabel('LSTM cell')
    figure.colorbar(image, ax=axes[1], label='h', pad=0.01)
  order = np.argsort(-posterior.max(0), kind='stable')[:20]  # the phones that are ever likely
  image = axes[2].imshow(posterior[:, order].T, aspect='auto', cmap='Greys', vmin=0, vmax=1, interpolation='nearest',
                         extent=[0, seconds, len(order) - 0.5, -0.5])
  axes[2].set_yticks(range(len(order)), [classes[k] for k in order], fontsize=7)
  axes[2].set_ylabel('phone')
  figure.colorbar(image, ax=axes[2], label='probability', pad=0.01)
  _phone_bar(axes[3], record['predicted_starts'], record['predicted'], classes, n_frames,
             'recognised' + ('\n(CTC: times\nroughly)' if classes[-1] == 'blank' else ''))
  _phone_bar(axes[4], record['true_starts'], record['true'], classes, n_frames, 'true')
  axes[4].set(xlabel='time (s)', xlim=(0, seconds))
  axes[0].set_title(str(record['title']), fontsize=9, loc='left')
  patches = [matplotlib.patches.Patch(color=colour, label=kind) for kind, colour in COLOURS.items()]
  axes[4].legend(handles=patches, loc='upper right', bbox_to_anchor=(1, -0.5), ncols=3, frameon=False, fontsize=8)
  save(figure, path, show)


def confusion(table, classes, path, title):
  """Confusion matrix, each row the distribution of what a true phone was taken for.

  Args:
    table: counts [true, predicted].
    classes: names.
    path: PNG to write.
    title: which corpus and error.
  """
  share = table / np.maximum(table.sum(1, keepdims=True), 1)
  figure, axis = plt.subplots(figsize=(8, 7), layout='constrained')
  image = axis.imshow(share, cmap='Blues', vmin=0, vmax=1)
  axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=7)
  axis.set_yticks(range(len(classes)), classes, fontsize=7)
  axis.set(xlabel='recognised phone', ylabel='true phone')
  axis.set_title(title, fontsize=9)
  figure.colorbar(image, ax=axis, label='share of the true phone\'s frames', shrink=0.8)
  save(figure, path)


def rates(hz, path, title):
  """Histogram of firing rates over neurons; hz: [n]."""
  figure, axis = plt.subplots(figsize=(5, 3.2), layout='constrained')
  axis.hist(hz, bins=np.linspace(0, max(np.max(hz), 1), 41), color=palette.BLUE)
  axis.axvline(np.mean(hz), color='black', ls=':', label=f'mean {np.mean(hz):.1f} Hz')
  axis.set(xlabel='firing rate (Hz)', ylabel='neurons')
  axis.set_title(title, fontsize=9)
  axis.legend(frameon=False)
  axis.spines[['top', 'right']].set_visible(False)
  save(figure, path)


def read_rows(path):
  """Rows (dicts of texts) of the CSV of compare_learning_rules.py, one a run.

  Raises:
    UserError: the file is missing, damaged, of two corpora or another table.
  """
  rows = files.read_csv(path, ('network', 'rule', 'corpus'), ('test_error', *MEASURES), ('seed', 'iterations'),
                        ('network', 'rule', 'corpus', 'seed', 'test_error', 'iterations'))
  _check_runs(path, rows)
  seen = set()
  for row in rows:
    run = row['network'], row['rule'], row['seed']
    if run in seen or not any(row[name] for name in MEASURES[:3:2]):
      raise UserError(f'{path} is damaged: the run {", seed ".join([" ".join(run[:2]), run[2]])}, '
                      f'{"is there twice" if run in seen else "has no result"}')
    seen.add(run)
  return rows


def _check_runs(path, rows):
  """Raises UserError if rows are of a rule that is none, or of two corpora."""
  for row in rows:
    if row['rule'] not in RULES:
      raise UserError(f'{path} is damaged: there is no rule {row["rule"]}')
  corpora = list(dict.fromkeys(row['corpus'] for row in rows))
  if len(corpora) > 1:
    raise UserError(f'{path} has rows of two corpora, {corpora[0]} and {corpora[1]}, which cannot be compared')


def read_comparison(path):
  """The rows of `read_rows` by network and rule: {(network, rule): list of rows}."""
  runs = {}
  for row in read_rows(path):
    runs.setdefault((row['network'], row['rule']), []).append(row)
  networks = list(dict.fromkeys(network for network, _ in runs))
  return {(network, rule): runs[network, rule] for network in networks for rule in RULES if (network, rule) in runs}


def read_curves(path, table):
  """Rows (dicts of texts) of the CSV of learning curves of compare_learning_rules.py.

  Args:
    path: of the file.
    table: path of the CSV of results beside it, which has the same runs.

  Raises:
    UserError: a file is missing, damaged or another table, or the curves are not those of the results.
  """
  rows = files.read_csv(path, ('network', 'rule', 'corpus'), ('validation_error', 'rate_hz'), ('seed', 'iteration'),
                        ('network', 'rule', 'corpus', 'seed', 'iteration', 'validation_error'))
  results = read_rows(table)
  _check_runs(path, results[:1] + rows)
  curves = {}
  for row in rows:
    curves.setdefault((row['network'], row['rule'], row['seed']), []).append(int(row['iteration']))
  last = {(row['network'], row['rule'], row['seed']): int(row['iterations']) for row in results}
  networks = {network for network, _, _ in curves}
  for run in dict.fromkeys([*curves, *(run for run in last if run[0] in networks)]):
    iterations = curves.get(run, [0])
    if iterations != [k * iterations[0] for k in range(1, len(iterations) + 1)] or iterations[-1] != last.get(run):
      raise UserError(f'{path} is damaged: the curve of {" ".join(run[:2])}, seed {run[2]}, does not go in equal steps to '
                      f'the {last.get(run, 0)} iterations of {os.path.basename(table)}')
  return rows


def _bar(rule):
  """How a rule's bar is filled."""
  _, colour, line = RULES[rule]
  return dict(facecolor='white', edgecolor=colour, hatch='///') if line == '--' else dict(facecolor=colour, edgecolor=colour)


def comparison(path, show=False):
  """Error per network and learning rule as in figure 2c: bars of the mean, a dot per seed.

  Args:
    path: CSV of compare_learning_rules.py.
    show: bring up the window as well.

  Returns:
    The path written.
  """
  runs = read_comparison(path)
  measures = {'test_frame_error': 'wrong frames, 61 classes (%)', 'test_per': 'phone error, 39 classes (%)'}
  measures = {name: label for name, label in measures.items() if any(row[name] for rows in runs.values() for row in rows)}
  figure, axes = plt.subplots(1, len(measures), figsize=(1.5 + 4.5 * len(measures), 4), layout='constrained', squeeze=False)
  for axis, (measure, label) in zip(axes[0], measures.items()):
    here = {key: [100 * float(row[measure]) for row in rows if row[measure]] for key, rows in runs.items()}
    here = {key: values for key, values in here.items() if values}
    networks = list(dict.fromkeys(network for network, _ in here))
    rules = [rule for rule in RULES if any(rule == of for _, of in here)]
    for k, network in enumerate(networks):
      for j, rule in enumerate(rules):
        values = here.get((network, rule))
        if values:
          x = k + 0.8 * (j - (len(rules) - 1) / 2) / len(rules)
          axis.bar(x, np.mean(values), 0.75 / len(rules), **_bar(rule))
          axis.plot([x] * len(values), values, 'o', color='black', mec='white', mew=0.5, ms=4)
    axis.set_xticks(range(len(networks)), [NETWORKS.get(network, network) for network in networks])
    axis.set(ylabel=f'test: {label}', ylim=(0, None), xlim=(-0.6, len(networks) - 0.4))
    axis.spines[['top', 'right']].set_visible(False)
    patches = [matplotlib.patches.Patch(label=RULES[rule][0], **_bar(rule)) for rule in rules]
    axis.legend(handles=patches, frameon=False, fontsize=8, loc='upper left', ncols=3)
    axis.set_ylim(0, 1.3 * axis.get_ylim()[1])
  corpus = next(iter(runs.values()))[0]['corpus']
  figure.suptitle(f'{corpus}\nbars: mean over seeds, a dot per seed', fontsize=9)
  target = os.path.splitext(path)[0] + '.png'
  save(figure, target, show)
  return target


def curves(path, table, show=False):
  """Validation error and firing rate over updates, a panel per network: mean over seeds, shaded from the lowest to the highest.

  Args:
    path, table: CSVs of learning curves and of results, of compare_learning_rules.py.
    show: bring up the window as well.

  Returns:
    The path written.

  Raises:
    UserError: as `read_curves`.
  """
  rows = read_curves(path, table)
  networks = list(dict.fromkeys(row['network'] for row in rows))
  n_columns = min(len(networks), 4)
  n_rows = -(-len(networks) // n_columns)
  figure, axes = plt.subplots(n_rows, n_columns, figsize=(1 + 4.8 * n_columns, 4 * n_rows), layout='constrained', squeeze=False)
  for axis in axes.flat[len(networks):]:
    axis.set_axis_off()
  for axis, network in zip(axes.flat, networks):
    for rule, (label, colour, line) in RULES.items():
      runs = {}
      for row in rows:
        if (row['network'], row['rule']) == (network, rule):
          runs.setdefault(row['seed'], []).append((int(row['iteration']), 100 * float(row['validation_error'])))
      if runs:
        length = min(map(len, runs.values()))
        updates, errors = np.moveaxis(np.array([run[:length] for run in runs.values()]), -1, 0)
        axis.plot(updates[0], errors.mean(0), line, marker='.', color=colour, label=f'{label} ({len(runs)} seed{"s" * (len(runs) > 1)})')
        axis.fill_between(updates[0], errors.min(0), errors.max(0), color=colour, alpha=0.2, lw=0)
    measure = 'phone error' if network.startswith('ctc') else 'wrong frames'
    axis.set(xlabel='update', ylabel=f'validation: {measure} (%)', ylim=(0, None), xlim=(0, None))
    axis.set_title(NETWORKS.get(network, network).replace('\n', ' '), fontsize=10)
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
  figure.suptitle(rows[0]['corpus'], fontsize=9)
  target = os.path.splitext(path)[0] + '.png'
  save(figure, target, show)
  return target


def read_published_curve(path, variants):
  """Rows (dicts of texts) of the CSV of published_curve.py.

  Args:
    path: of the file.
    variants: what its programs are called, beside 'published'.

  Raises:
    UserError: the file is missing, damaged or another table.
  """
  rows = files.read_csv(path, ['program'], ['validation_error'], ('seed', 'update'), ('program', 'update', 'validation_error'))
  runs = {}
  for row in rows:
    if row['program'] not in ('published', *variants) or not row['seed'] and row['program'] != 'published':
      raise UserError(f'{path} is damaged: there is no program {row["program"]} with seed {row["seed"] or "nothing"}')
    runs.setdefault((row['program'], row['seed']), []).append(int(row['update']))
  ours = [updates for (program, _), updates in runs.items() if program != 'published']
  for (program, seed), updates in runs.items():
    if (program != 'published' and updates != max(ours, key=len)) or updates != [k * updates[0] for k in range(1, len(updates) + 1)]:
      raise UserError(f'{path} is damaged: the curve of {program}, seed {seed}, lacks updates or has them twice')
  return rows


def published_curve(path, variants, show=False):
  """Validation error over updates of our seeds and of the published program.

  Args:
    path, variants: as for `read_published_curve`.
    show: bring up the window as well.

  Returns:
    The path written.
  """
  rows = read_published_curve(path, variants)
  figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout='constrained')
  of = {}
  for row in rows:
    of.setdefault((row['program'], row['seed']), []).append((int(row['update']), 100 * float(row['validation_error'])))
  for program, style, colour, name in (('published', 'o--', palette.BLACK, 'published program'),
                                       ('ours', '.-', palette.BLUE, 'ours')):
    curves_of = [points for (of_program, _), points in of.items() if of_program == program]
    for k, points in enumerate(curves_of):
      label = f'{name}, {len(curves_of)} run{"s" * (len(curves_of) > 1)}'
      axes[0].plot(*zip(*points), style, color=colour, label=None if k else label)
  axes[0].set(xlabel='update of 8 utterances', ylabel='validation: wrong frames (%)', ylim=(0, None), xlim=(0, None))
  axes[0].legend(frameon=False)
  names = [name for name in ('published', *variants) if any(name == program for program, _ in of)]
  colours = {'published': palette.BLACK, 'ours': palette.BLUE}
  for k, name in enumerate(names):
    ends = [points[-1][1] for (program, _), points in of.items() if program == name]
    axes[1].plot(ends, [k] * len(ends), 'o', color=colours.get(name, palette.ORANGE))
  axes[1].set_yticks(range(len(names)), ['published program' if name == 'published' else name for name in names])
  axes[1].set(xlabel=f'wrong frames after {rows[-1]["update"]} updates (%), a dot per run', ylim=(len(names) - 0.5, -0.5))
  axes[1].grid(axis='x', color='0.9')
  axes[1].set_axisbelow(True)
  figure.suptitle('Framewise LSNN, symmetric e-prop, published defaults; right: one setting changed. '
                  'Synthetic speech by espeak-ng, not TIMIT', fontsize=9)
  for axis in axes:
    axis.spines[['top', 'right']].set_visible(False)
  target = os.path.splitext(path)[0] + '.png'
  save(figure, target, show)
  return target


if __name__ == '__main__':
  drawing.run_on_file(lambda record, path, show: utterance(record, os.path.join(os.path.dirname(path), 'utterance.png'), show))

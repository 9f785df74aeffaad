"""The panels of figures 3 and S7 from saved arrays. No TensorFlow.

  python plots.py results/<script>/<run>/figure.npz     draws figure.png beside it once more
"""
import os

import numpy as np

import drawing
import files
from drawing import matplotlib, plt, wait  # noqa: F401
from files import UserError
import palette
from palette import LEFT, NOISE, RECALL, RIGHT

TABLES = {  # the CSV of compare_learning_rules.py: columns of every iteration, of some; of each run the result, and what else
    'evidence_accumulation': (('train_loss', 'train_error', 'rate_hz'), ('validation_error',), 'test_error',
                              ('criterion_reached',)),
    'pattern_generation': (('train_loss', 'nmse', 'rate_hz'), (), 'nmse', ()),
}
COSTS = ('wall_time_s', 'peak_memory_mb')  # of each run
NMSE_CRITERION = 0.1  # ours: the paper gives none for pattern generation
RULES = {  # label, colour and line style of each learning rule
    'bptt': ('BPTT', palette.BLACK, '-'),
    'eprop_symmetric': ('e-prop, symmetric', palette.BLUE, '-'),
    'eprop_random': ('e-prop, random', palette.ORANGE, '-'),
    'eprop_adaptive': ('e-prop, adaptive', palette.GREEN, '-'),
    'eprop_random_sparse_dale': ("e-prop, random, sparse, Dale's law", palette.VERMILION, '-'),
    'lif_bptt': ('BPTT, LIF only', palette.GREY, '--'),
    'lif_eprop_symmetric': ('e-prop symmetric, LIF only', palette.SKY, '--'),
}


def save(figure, path, show=False):
  """Writes a figure as PNG."""
  drawing.save(figure, path, show, dpi=130)


def _panels(n, heights, size, name):
  figure, axes = plt.subplots(n, 1, sharex=True, num=name, clear=True, figsize=size, height_ratios=heights,
                              layout='constrained')
  for axis in axes:
    axis.spines[['top', 'right']].set_visible(False)
  return figure, axes


def _raster(axis, spikes, time, colour='black', offset=0):
  """Spikes [T, n] as dots, neuron k at height offset + k."""
  steps, neurons = np.nonzero(spikes)
  axis.plot(time[steps], neurons + offset, '|', color=colour, markersize=3, markeredgewidth=0.7)


def _legend_above(axis, ncol, title=None):
  """Legend in a row above the right end of the panel, where it hides nothing."""
  handles, labels = axis.get_legend_handles_labels()
  if title:
    handles, labels = [matplotlib.lines.Line2D([], [], ls='')] + handles, [title] + labels
  axis.legend(handles, labels, loc='lower right', bbox_to_anchor=(1, 0.96), ncol=ncol + bool(title), fontsize=8, frameon=False,
              borderpad=0)


def evidence_accumulation(record, path, show=False):
  """Figure 3: one trial of evidence accumulation.

  Args:
    record: dict of arrays as figure.npz holds them.
    path: PNG to write.
    show: bring up the window as well.
  """
  x, z, dt, n_regular = record['x'], record['z'], float(record['dt']), int(record['n_regular'])
  n_steps, n_in = x.shape
  time = dt * np.arange(n_steps)
  recall = dt * (n_steps - int(record['n_recall_steps']))
  figure, axes = _panels(7, [2.2, 1.6, 1.6, 1, 1, 1, 1], (9, 11), 'evidence accumulation')
  inputs, lif, alif, output, signal, traces, slow = axes

  groups = [('left cues', LEFT), ('right cues', RIGHT), ('recall', RECALL), ('noise', NOISE)]
  size = n_in // 4
  if 'cues' in record:
    for (first, last), cue in zip(record['cue_steps'], record['cues']):
      inputs.axvspan(dt * first, dt * last, color=RIGHT if cue else LEFT, alpha=0.15, lw=0)
    for k, (_, colour) in enumerate(groups):
      _raster(inputs, x[:, k * size:(k + 1) * size], time, colour, k * size)
    inputs.set_yticks([(k + 0.5) * size for k in range(4)], [name for name, _ in groups])
    side = 'right' if record['label'] else 'left'
    inputs.set_title(f'{sum(record["cues"] == 0)} cues left, {sum(record["cues"] == 1)} right: the answer is {side}', fontsize=10)
  else:
    _raster(inputs, x, time)
    inputs.set_ylabel('input neuron')
  inputs.set_ylim(-1, n_in)

  for axis, name, spikes, colour in ((lif, 'LIF', z[:, :n_regular], palette.LIF), (alif, 'ALIF', z[:, n_regular:], palette.ALIF)):
    _raster(axis, spikes, time, colour)
    axis.set_ylim(-1, max(spikes.shape[1], 1))
    axis.set_ylabel(f'{name}\nneuron')
    axis.text(1.0, 1.02, f'mean rate {1000 * spikes.mean() / dt if spikes.size else 0:.1f} Hz', transform=axis.transAxes,
              ha='right', va='bottom', fontsize=8)

  for k, (name, colour) in enumerate((('left', LEFT), ('right', RIGHT))):
    output.plot(time, record['output'][:, k], color=colour, label=name, lw=1.2)
  output.axhline(0.5, color='black', ls=':', lw=1, label='decision threshold')
  output.set(ylim=(0, 1), ylabel='softmax\noutput')
  _legend_above(output, 3)

  n = z.shape[1]
  name = lambda j: f'LIF {j}' if j < n_regular else f'ALIF {j - n_regular}'
  order = np.argsort(record['learning_signal'].sum(0), kind='stable')
  chosen = order[np.linspace(0, n - 1, min(n, 5)).round().astype(int)]
  closer = signal.inset_axes([0.3, 0.12, 0.48, 0.86], xlim=(recall - 10, dt * n_steps), yticks=[])  # recall, stretched
  closer.set_title('recall, stretched', fontsize=7, loc='right', y=0.78, x=0.98)
  closer.tick_params(labelsize=6, length=2, pad=1)
  for rank, j in enumerate(chosen):
    for axis in (signal, closer):
      axis.plot(time, record['learning_signal'][:, j], lw=1.2, color=palette.SERIES[rank], label=name(j))
  signal.set_ylabel('learning\nsignals $L_j$')
  _legend_above(signal, 5, 'from the lowest to the highest:')

  for k, (i, j) in enumerate(zip(record['pre'], record['post'])):
    colour = palette.SERIES[1:][k]
    traces.plot(time, record['e'][:, k], lw=0.8, color=colour, label=f'{name(i)} \N{RIGHTWARDS ARROW} {name(j)}')
    slow.plot(time, record['eps_a'][:, k], lw=1.2, color=colour)
  traces.set_ylabel('eligibility\ntraces $e_{ji}$')
  _legend_above(traces, 3, 'synapse, pre \N{RIGHTWARDS ARROW} post:')
  slow.set_ylabel('slow factor\n' r'$\epsilon_{ji,a}$')
  slow.set(xlim=(0, dt * n_steps), xlabel='time (ms)')

  for axis in axes:
    axis.axvspan(recall, dt * n_steps, color=RECALL, alpha=0.1, lw=0)
  figure.align_ylabels(axes)
  save(figure, path, show)


def pattern_generation(record, metrics, path, show=False):
  """Figure S7: input, network, outputs over targets, one synapse, and the loss.

  Args:
    record: dict of arrays as figure.npz holds them.
    metrics: path of metrics.csv.
    path: PNG to write.
    show: bring up the window as well.
  """
  x, z, y, dt = record['x'], record['z'], record['y'], float(record['dt'])
  time = dt * np.arange(len(x))
  n_out = y.shape[1]
  figure = plt.figure(num='pattern generation', clear=True, figsize=(9, 10 + 0.9 * (n_out - 1)), layout='constrained')
  over_time, over_iterations = figure.subfigures(2, 1, height_ratios=[8.2 + 0.9 * (n_out - 1), 2.2])
  axes = over_time.subplots(6 + n_out, 1, sharex=True, height_ratios=[1.5, 1.5] + [1] * n_out + [0.8] * 4)
  for axis in axes:
    axis.spines[['top', 'right']].set_visible(False)
  inputs, network, outputs = axes[0], axes[1], axes[2:2 + n_out]
  pre, post, trace, signal = axes[2 + n_out:]
  _raster(inputs, x, time)
  inputs.set(ylabel='input\nneuron', ylim=(-1, x.shape[1]))
  _raster(network, z, time)
  network.set(ylabel='LIF\nneuron', ylim=(-1, z.shape[1]))
  for k, axis in enumerate(outputs):
    axis.plot(time, record['target'][:, k], color=palette.TARGET, ls='--', lw=2, label='target')
    axis.plot(time, y[:, k], color=palette.OUTPUT, label='output')
    axis.set_ylabel('output' if n_out == 1 else f'output {k + 1}')
  _legend_above(outputs[0], 2)
  synapse = f'synapse {record["pre"]} \N{RIGHTWARDS ARROW} {record["post"]}'
  for axis, name, label in ((pre, 'pre_term', r'pre: $\epsilon_v$'), (post, 'post_term', r'post: $\psi$'),
                            (trace, 'e', 'eligibility\ntrace $e$'), (signal, 'learning_signal', 'learning\nsignal $L$')):
    axis.plot(time, record[name], color='black', lw=1)
    axis.set_ylabel(label)
  pre.set_title(synapse, fontsize=9, loc='left')
  signal.axhline(0, color='0.7', lw=0.8, zorder=0)
  signal.set(xlabel='time (ms)', xlim=(0, dt * len(x)))
  over_time.align_ylabels(axes)
  loss = over_iterations.subplots()
  loss.semilogy(*read_column(metrics, 'train_loss'), color='black', lw=1)
  loss.set(xlabel='iteration', ylabel='loss', xlim=(0, None))
  loss.spines[['top', 'right']].set_visible(False)
  save(figure, path, show)


def read_column(path, column):
  """A column of metrics.csv: iterations and values where there is one, two float arrays."""
  rows = [(float(row['iteration']), float(row[column])) for row in files.read_metrics(path, [column]) if row[column]]
  return np.array(rows).reshape(-1, 2).T


def smooth(values, n=10):
  """Running mean over the last n values, over fewer at the start."""
  total = np.cumsum(np.concatenate([[0.0], values]))
  first = np.maximum(np.arange(1, len(total)) - n, 0)
  return (total[1:] - total[first]) / (np.arange(1, len(total)) - first)


def learning_curve(metrics, path, column, label, criterion=None, show=False):
  """One column of a run's metrics.csv over iterations, with its running mean.

  Args:
    metrics: path of metrics.csv.
    path: PNG to write.
    column: its name.
    label: of the y axis.
    criterion: value at which to draw a dotted line.
    show: bring up the window as well.
  """
  iterations, values = read_column(metrics, column)
  figure, axis = plt.subplots(num='learning curve', clear=True, figsize=(6, 3.5), layout='constrained')
  axis.plot(iterations, values, color='0.75', lw=0.8, label='each iteration')
  axis.plot(iterations, smooth(values), color='black', lw=1.5, label='mean of 10')
  if criterion is not None:
    axis.axhline(criterion, color=palette.CRITERION, ls=':', label=f'criterion {criterion:g}')
  axis.set(xlabel='iteration', ylabel=label, ylim=(0, None))
  axis.spines[['top', 'right']].set_visible(False)
  axis.legend(frameon=False)
  save(figure, path, show)


def read_rows(path, task):
  """Rows (dicts of texts) of the CSV of compare_learning_rules.py for a task.

  Raises:
    UserError: the file is missing, damaged or another table.
  """
  columns, optional, result, others = TABLES[task]
  rows = files.read_csv(path, ('rule', *others), (*columns, *optional, result, 'wall_time_s'), ('seed', 'iteration'),
                        ('rule', 'seed', 'iteration', *columns))
  runs = {}
  for row in rows:
    runs.setdefault((row['rule'], row['seed']), []).append(row)
  for (rule, seed), run in runs.items():
    files.check_iterations(path, run, f' of {rule}, seed {seed},')
    if rule not in RULES or not run[-1][result] or not run[-1]['wall_time_s']:
      raise UserError(f'{path} is damaged: the run {rule}, seed {seed}, has no result')
    if run[-1].get('criterion_reached', 'True') not in ('True', 'False'):
      raise UserError(f'{path} is damaged: {run[-1]["criterion_reached"][:20]!r} is neither True nor False')
  return rows


def read_comparison(path, task):
  """The rows of `read_rows` by rule and run: {rule: list of runs}, a run being {column: list of texts, one a row}."""
  runs = {}
  for row in read_rows(path, task):
    run = runs.setdefault((row['rule'], row['seed']), {name: [] for name in row})
    for name, value in row.items():
      run[name].append(value)
  return {rule: [run for (name, _), run in sorted(runs.items()) if name == rule]
          for rule in RULES if any(name == rule for name, _ in runs)}


def iterations_to_criterion(run, task):
  """Number of iterations after which a run of `read_comparison` met its criterion, None if it did not."""
  if task == 'evidence_accumulation':
    return int(run['iteration'][-1]) if run['criterion_reached'][-1] == 'True' else None
  below = np.nonzero(smooth(np.array(run['nmse'], float)) < NMSE_CRITERION)[0]
  return int(below[0]) + 1 if len(below) else None


def comparison(path, task, show=False):
  """Learning curves and iterations to the criterion per learning rule, beside the CSV.

  Args:
    path: CSV of compare_learning_rules.py.
    task: 'evidence_accumulation' or 'pattern_generation'.
    show: bring up the windows as well.

  Returns:
    The two paths written.
  """
  evidence = task == 'evidence_accumulation'
  column, label = ('train_error', 'wrong decisions') if evidence else ('nmse', 'normalised mean squared error')
  rules = read_comparison(path, task)
  longest = max(len(run['iteration']) for runs in rules.values() for run in runs)

  figure, axis = plt.subplots(num='learning curves', clear=True, figsize=(7.5, 4.5), layout='constrained')
  for rule, runs in rules.items():
    name, colour, style = RULES[rule]
    # A run that stopped at the criterion keeps its last value.
    curves = np.array([np.pad(smooth(np.array(run[column], float)), (0, longest - len(run[column])), 'edge') for run in runs])
    mean, spread = curves.mean(0), curves.std(0, ddof=1) if len(runs) > 1 else np.zeros(longest)
    iterations = np.arange(1, longest + 1)
    axis.plot(iterations, mean, style, color=colour, label=f'{name} ({len(runs)} seed{"s" if len(runs) > 1 else ""})')
    axis.fill_between(iterations, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
  axis.set(xlabel='iteration', ylabel=f'{label}\n(mean of 10 iterations)', xlim=(1, longest))
  if evidence:
    axis.axhline(0.07, color=palette.CRITERION, ls=':', label='criterion 7 %')
    axis.set_ylim(0, 0.6)
    axis.set_title('training batches; mean and standard deviation over seeds; finished runs keep their last value', fontsize=9)
  else:
    axis.set_yscale('log')
    axis.set_title('mean and standard deviation over seeds', fontsize=9)
  axis.legend(frameon=False, fontsize=8)
  axis.spines[['top', 'right']].set_visible(False)
  curves_path = os.path.join(os.path.dirname(path), f'comparison_{task}_curves.png')
  save(figure, curves_path, show)

  figure, axis = plt.subplots(num='iterations to criterion', clear=True, figsize=(7.5, 3.8), layout='constrained')
  for k, (rule, runs) in enumerate(rules.items()):
    counts = [iterations_to_criterion(run, task) for run in runs]
    reached = [count for count in counts if count is not None]
    jitter = lambda n: k + (np.arange(n) - (n - 1) / 2) * 0.08
    axis.plot(jitter(len(reached)), reached, 'o', color=RULES[rule][1], zorder=3)
    n_failed = len(counts) - len(reached)
    axis.plot(jitter(n_failed), [longest] * n_failed, 'x', color=RULES[rule][1], zorder=3)
    if len(reached) > n_failed:
      axis.hlines(np.median(reached + [longest] * n_failed), k - 0.3, k + 0.3, color=RULES[rule][1], lw=1)
  all_reached = all(iterations_to_criterion(run, task) is not None for runs in rules.values() for run in runs)
  if not all_reached:
    axis.axhline(longest, color='0.7', lw=0.8, ls='--')
  if evidence:
    axis.axhspan(200, 500, color=palette.ORANGE, alpha=0.15, lw=0, label='published, random feedback: 200 to 500')
    axis.legend(frameon=False, fontsize=8, loc='lower right')
  criterion = 'error below 7 %' if evidence else f'error below {NMSE_CRITERION:g}'
  axis.set_xticks(range(len(rules)), [RULES[rule][0].replace(', ', ',\n').replace(' LIF', '\nLIF') for rule in rules], fontsize=8)
  axis.set(ylabel=f'iterations to {criterion}', ylim=(0, 1.08 * longest), xlim=(-0.6, len(rules) - 0.4))
  axis.set_title('a dot per seed; line: their median' + (
      '' if all_reached else f'; x: not reached within {longest} iterations'), fontsize=9)
  axis.spines[['top', 'right']].set_visible(False)
  criterion_path = os.path.join(os.path.dirname(path), f'comparison_{task}_criterion.png')
  save(figure, criterion_path, show)
  return curves_path, criterion_path


def _draw(record, path, show):
  png = os.path.splitext(path)[0] + '.png'
  if 'n_regular' in record:
    evidence_accumulation(record, png, show)
  else:
    pattern_generation(record, os.path.join(os.path.dirname(path), 'metrics.csv'), png, show)


if __name__ == '__main__':
  drawing.run_on_file(_draw)

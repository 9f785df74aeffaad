"""Figures 4 and 5 from saved arrays: a game with policy, value and spikes, learning curves, animations. No TensorFlow.

  python plots.py results/main/<run>/game.npz        draws game.png beside it once more
"""
import os

import numpy as np

import drawing
from drawing import plt
import files
from matplotlib import animation, ticker  # after drawing
import palette

RULES = {  # label, colour and line style of each agent in comparisons
    'eprop': ('ALIF + LIF, e-prop', palette.BLUE, '-'),
    'lif': ('LIF only, e-prop', palette.ORANGE, '-'),
    'readout': ('readout alone', palette.GREY, '--'),
    'bptt': ('ALIF + LIF, BPTT', palette.BLACK, '-'),
    'clipped_updates': ('twelve clipped updates per window', palette.VERMILION, '-'),
    'pong': ('preset pong, e-prop', palette.GREEN, '-'),
    'pong_bptt': ('preset pong, BPTT', palette.GREEN, '--'),
    'pong_one_update': ('preset pong, one update per window', palette.ORANGE, '--'),
    'pong_plain': ('preset pong, plain advantages, one update per window', palette.ORANGE, '-'),
    'published_adam': ('published epsilon and rates of Adam', palette.GREEN, '-'),
    'published_updates': ('published updates, once in an iteration', palette.ORANGE, '-'),
    'published_cnn': ('published reg_factor_cnn, 1e8', palette.SKY, '--'),
    'published_discounting': ('published discounting, 0.99', palette.GREY, '--'),
    'published_costs': ('published costs', palette.GREEN, ':'),
    'published_rewards': ('published costs, discounting and reg_factor_cnn', palette.BLACK, '--'),
    'published_input': ('published input, background left in', palette.VERMILION, '-'),
    'published_steps': ('published five network steps per frame', palette.VERMILION, ':'),
}
FIGURE_SCREENS = 8
COLUMNS = ('frames', 'frames_per_s', 'score', 'return_200', 'max_episode_len', 'entropy', 'rate_lsnn')  # of metrics.csv


def save(figure, path, show=False):
  """Writes a figure, and opens its window if `show`."""
  drawing.save(figure, path, show, dpi=140, bbox_inches='tight')  # the layout cuts labels beside a second axis above
  drawing.wait(show)


def _bare(axes):
  for axis in np.ravel(axes):
    axis.spines[['top', 'right']].set_visible(False)


def game(record, path, show=False):
  """A stretch of a game as in figures 4c and 5: screens, policy, value and return, spikes, thresholds.

  Args:
    record: dict of arrays of M agent steps: screens uint8 [M, ...] grey or RGB, policy [M, A], value [M], returns [M]
      (discounted, of the rewards that followed), rewards [M], done bool [M], spikes bool [M n, N] over the network steps,
      n_regular (the first neurons are LIF, the others ALIF), thresholds [M n, N_shown] of some ALIF neurons,
      action_names [A], seconds_per_step, title.
    path: PNG to write.
    show: bring up the window as well.
  """
  n_steps, n_network = len(record['value']), len(record['spikes'])
  seconds = float(record['seconds_per_step'])
  time = np.arange(n_steps) * seconds
  network_time = np.arange(n_network) * seconds * n_steps / n_network
  n_regular = int(record['n_regular'])
  figure = plt.figure(figsize=(11, 10), layout='constrained')
  grid = figure.add_gridspec(6, FIGURE_SCREENS, height_ratios=[1.5, 1, 1.2, 1.6, 1.3, 1])
  for k, step in enumerate(np.linspace(0, n_steps - 1, FIGURE_SCREENS).astype(int)):
    axis = figure.add_subplot(grid[0, k])
    axis.imshow(record['screens'][step], cmap='gray', vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[])
    axis.set_title(f'{time[step]:.1f} s', fontsize=8)
  axes = [figure.add_subplot(grid[1, :])]
  axes += [figure.add_subplot(grid[k, :], sharex=axes[0]) for k in range(2, 6)]
  names = [str(name) for name in record['action_names']]
  shades = plt.get_cmap('cividis')(np.linspace(0, 1, len(names)))  # from dark to light
  axes[0].stackplot(time, record['policy'].T, labels=names, colors=shades, edgecolor='white', lw=0.3)
  axes[0].set(ylim=(0, 1), ylabel='policy')
  axes[0].legend(loc='center left', bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
  axes[1].plot(time, record['value'], color=palette.OUTPUT, label='value, predicted')
  axes[1].plot(time, record['returns'], color='black', lw=1, ls='--', label='return, discounted')
  for sign, colour in ((1, palette.GREEN), (-1, palette.VERMILION)):
    moments = time[np.sign(record['rewards']) == sign]
    axes[1].plot(moments, np.zeros(len(moments)), '^' if sign > 0 else 'v', color=colour,
                 label='reward > 0' if sign > 0 else 'reward < 0')
  for moment in time[record['done'].astype(bool)]:
    axes[1].axvline(moment, color='0.7', lw=1)
  axes[1].set_ylabel('value')
  axes[1].legend(loc='center left', bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
  for axis, chosen, colour, name in ((axes[2], slice(0, n_regular), palette.LIF, 'LIF'),
                                     (axes[3], slice(n_regular, None), palette.ALIF, 'ALIF')):
    steps, units = np.nonzero(record['spikes'][:, chosen])
    axis.plot(network_time[steps], units, '|', color=colour, ms=2, mew=0.4, rasterized=True)
    axis.set(ylabel=f'{name} neuron', ylim=(-1, max(1, record['spikes'][:, chosen].shape[1])))
  axes[4].set_prop_cycle(color=palette.SERIES)
  axes[4].plot(network_time, record['thresholds'], lw=0.8)
  axes[4].set(ylabel='threshold\n(some ALIF)', xlabel='time of the game (s)', xlim=(0, n_steps * seconds))
  _bare(axes)
  for axis in axes[:-1]:
    axis.tick_params(labelbottom=False)
  figure.suptitle(str(record['title']), fontsize=9)
  save(figure, path, show)


def read_curve(path):
  """COLUMNS of a metrics.csv as float arrays, NaN where a row has none."""
  rows = files.read_csv(path, numbers=COLUMNS)
  return {name: np.array([float(row[name]) if row[name] else np.nan for row in rows]) for name in COLUMNS}


def smooth(values, n):
  """Mean of the finite ones of the last n values, at each point."""
  kept = np.isfinite(values)
  total, count = np.cumsum(np.where(kept, values, 0)), np.cumsum(kept)
  total[n:], count[n:] = total[n:] - total[:-n], count[n:] - count[:-n]
  return total / np.maximum(count, 1)


def hours(curve):
  """Hours of training at each row of a metrics.csv, evaluations and figures not counted."""
  return np.cumsum(np.diff(curve['frames'], prepend=0) / curve['frames_per_s']) / 3600


def milestones(curve, step=5):
  """When an iteration's mean score first reached multiples of `step`: list of (score, frames, hours)."""
  time, best = hours(curve), np.maximum.accumulate(curve['score'])
  levels = np.arange(step * np.ceil(best[0] / step), best[-1] + 1e-9, step) + 0.0  # not -0
  reached = [np.argmax(best >= level) for level in levels]
  return [(level, curve['frames'][k], time[k]) for level, k in zip(levels, reached) if k > 0]


def learning_curve(metrics, path, title, show=False):
  """Score per game over environment frames and hours, policy entropy and firing rates below, as in figure 4d.

  Args:
    metrics: path of metrics.csv.
    path: PNG to write.
    title: what was trained.
    show: bring up the window as well.
  """
  curve = read_curve(metrics)
  window = 1 + len(curve['frames']) // 25  # iterations to average over
  frames, time = curve['frames'] / 1e6, hours(curve)
  figure, axes = plt.subplots(4, 1, sharex=True, figsize=(7, 8), height_ratios=[2, 1.4, 1, 1], layout='constrained')
  limits = curve['max_episode_len']
  changes = np.flatnonzero(np.diff(limits)) + 1  # scores before and after are not averaged
  for axis, name, cuts, label in ((axes[0], 'score', changes, 'score of a game'),
                                  (axes[1], 'return_200', [], 'return of the\nfirst 200 steps')):
    axis.plot(frames, curve[name], color='0.8', lw=0.7, label='mean of an iteration\'s games')
    for k, part in enumerate(np.split(np.arange(len(frames)), cuts)):
      axis.plot(frames[part], smooth(curve[name][part], window), color=palette.BLUE,
                label=None if k else f'mean of the last {window} iterations')
    axis.set_ylabel(label)
  for k in changes:
    axes[0].axvline(frames[k - 1], color='0.5', ls=':', lw=1)
    axes[0].annotate(f'games of up to {limits[k]:,.0f} steps', (frames[k - 1], 0.02), xycoords=('data', 'axes fraction'),
                     rotation=90, ha='right', va='bottom', fontsize=7, color='0.4')
  axes[0].legend(frameon=False, fontsize=8)
  axes[2].plot(frames, smooth(curve['entropy'], window), color=palette.BLUE)
  axes[2].set(ylabel='entropy of\nthe policy (nat)', ylim=(0, None))
  axes[3].plot(frames, 100 * smooth(curve['rate_lsnn'], window), color=palette.BLUE)
  axes[3].set(ylabel='LSNN spikes per\n100 steps', xlabel='environment frames (million)', ylim=(0, None))
  _bare(axes)
  if len(frames) > 1:
    frames, time = np.append(0, frames), np.append(0, time)
    to_time, to_frames = lambda x: np.interp(x, frames, time), lambda x: np.interp(x, time, frames)
    above = axes[0].secondary_xaxis('top', functions=(to_time, to_frames))
    above.set_xlabel('hours of training')
    above.set_xticks([hour for hour in ticker.MaxNLocator(8).tick_values(0, time[-1]) if hour <= time[-1]])
  figure.suptitle(title, fontsize=9)
  save(figure, path, show)


def comparison(curves, path, title, panels, lines=(), show=False):
  """Learning curves of several agents, mean and standard deviation over seeds.

  Args:
    curves: dict, rule of RULES: list of dicts of arrays [P], one a seed.
    path: PNG to write.
    title: of the figure.
    panels: (name of the horizontal axis in these dicts, label, name of the vertical axis, label) of each panel.
    lines: (value, label) of horizontal lines.
    show: bring up the window as well.
  """
  figure, axes = plt.subplots(1, len(panels), sharey=True, squeeze=False, figsize=(6 + 3 * len(panels), 4), layout='constrained')
  for axis, (across, x_label, up, y_label) in zip(axes[0], panels):
    for rule, runs in curves.items():
      name, colour, style = RULES[rule]
      grid = np.linspace(max(run[across][0] for run in runs), min(run[across][-1] for run in runs), 200)
      values = np.array([np.interp(grid, run[across], run[up]) for run in runs])
      mean, sd = values.mean(0), values.std(0, ddof=1) if len(runs) > 1 else 0
      axis.plot(grid, mean, style, color=colour, label=f'{name} ({len(runs)} seed{"s" * (len(runs) > 1)})')
      axis.fill_between(grid, mean - sd, mean + sd, color=colour, alpha=0.2, lw=0)
    for value, name in lines:
      axis.axhline(value, color='0.5', ls=':', lw=1)
      axis.annotate(name, (1, value), xycoords=('axes fraction', 'data'), ha='right', va='bottom', fontsize=8, color='0.4')
    axis.set(xlabel=x_label, ylabel=y_label)
  figure.suptitle(title)
  figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside right center', frameon=False, fontsize=8)
  _bare(axes)
  save(figure, path, show)


def animate(record, path):
  """A game with spikes, action probabilities and value beside the screen; the ending of path, gif or mp4, chooses the format.

  Args:
    record: as for `game`.
    path: file to write.
  """
  n_steps = len(record['value'])
  per_step = len(record['spikes']) // n_steps
  spikes = record['spikes'].reshape(n_steps, per_step, -1).mean(1)                                 # [M, N]
  side = int(np.ceil(np.sqrt(spikes.shape[1])))
  images = np.zeros((n_steps, side * side))
  images[:, :spikes.shape[1]] = spikes
  names = [str(name) for name in record['action_names']]
  figure, axes = plt.subplots(1, 4, figsize=(9, 2.8), width_ratios=[1, 1, 0.8, 1.4], layout='constrained')
  screen = axes[0].imshow(record['screens'][0], cmap='gray', vmin=0, vmax=255)
  raster = axes[1].imshow(images[0].reshape(side, side), cmap='inferno', vmin=0, vmax=max(images.max(), 1e-9))
  axes[1].set_title('LSNN spikes', fontsize=9)
  bars = axes[2].bar(names, record['policy'][0], color=palette.BLUE)
  axes[2].set_ylim(0, 1)
  axes[2].set_title('policy', fontsize=9)
  axes[2].tick_params(axis='x', labelsize=7, rotation=90 if len(names) > 4 else 0)
  line, = axes[3].plot([], [], color=palette.OUTPUT)
  low, high = float(record['value'].min()), float(record['value'].max())
  axes[3].set(xlim=(0, n_steps * float(record['seconds_per_step'])), ylim=(low - 0.1, high + 0.1), xlabel='time (s)')
  axes[3].set_title('predicted value', fontsize=9)
  for axis in axes[:2]:
    axis.set(xticks=[], yticks=[])

  def draw(step):
    screen.set_data(record['screens'][step])
    raster.set_data(images[step].reshape(side, side))
    for bar, height in zip(bars, record['policy'][step]):
      bar.set_height(height)
    line.set_data(np.arange(step + 1) * float(record['seconds_per_step']), record['value'][:step + 1])
    return [screen, raster, line, *bars]

  movie = animation.FuncAnimation(figure, draw, n_steps, interval=1000 * float(record['seconds_per_step']))
  fps = 1 / float(record['seconds_per_step'])
  if path.endswith('.mp4'):
    import imageio_ffmpeg
    plt.rcParams['animation.ffmpeg_path'] = imageio_ffmpeg.get_ffmpeg_exe()
    writer = animation.FFMpegWriter(fps=fps)
  else:
    writer = animation.PillowWriter(fps=fps)
  files.write_whole(path, lambda temporary: movie.save(temporary, writer, dpi=90))
  plt.close(figure)


if __name__ == '__main__':
  drawing.run_on_file(lambda record, path, show: game(record, os.path.splitext(path)[0] + '.png', show))

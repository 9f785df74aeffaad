"""The idea of e-prop in one picture: traces travel forward in time, learning signals are broadcast.

  python idea_figure.py          draws figures/idea.png

Above, who tells whom what during learning, in a network of three neurons over three steps. Below, one synapse of one neuron,
computed step by step from the equations of the paper with the constants of figure 3.
"""
import argparse
import os
import sys

import numpy as np

import drawing
from drawing import plt
import palette

N_STEPS = 1000  # ms
ALPHA, RHO, KAPPA = np.exp(-1 / 20), np.exp(-1 / 2000), np.exp(-1 / 20)  # membrane, adaptation, readout: decay per ms
THR, BETA, GAMMA = 0.6, 1.7 * (1 - RHO) / (1 - ALPHA), 0.3
W_I, W_OTHERS = 0.5, 0.35
CUE, RECALL = (50, 200), (700, 1000)  # ms in which input i, and in which other inputs are active


def one_synapse():
  """An ALIF neuron that is driven by input i and later by others: dict of arrays over N_STEPS steps of 1 ms."""
  pre, others = np.zeros([2, N_STEPS])
  pre[CUE[0]:CUE[1]:12] = 1
  others[RECALL[0]:RECALL[1]:14] = 1
  learning_signal = np.zeros(N_STEPS)
  learning_signal[RECALL[0] + 100:] = 0.8 * np.exp(-np.arange(RECALL[1] - RECALL[0] - 100) / 120)
  v = a = z = fast = slow = filtered = gradient = 0.0
  run = {name: np.zeros(N_STEPS) for name in ('z', 'slow', 'e', 'e_bar', 'gradient')}
  for t in range(N_STEPS):
    v = ALPHA * v + W_I * pre[t] + W_OTHERS * others[t] - z * THR
    a = RHO * a + z
    distance = v - THR - BETA * a
    z = float(distance > 0)
    psi = GAMMA / THR * max(0, 1 - abs(distance) / THR)
    fast = ALPHA * fast + pre[t]                                # (22)
    e = psi * (fast - BETA * slow)                              # (25)
    filtered = KAPPA * filtered + (1 - KAPPA) * e
    gradient += learning_signal[t] * filtered                   # (1), (28)
    for name, value in zip(run, (z, slow, e, filtered, gradient)):
      run[name][t] = value
    slow = psi * fast + (RHO - psi * BETA) * slow               # (24)
  return dict(run, pre=pre, others=others, L=learning_signal)


def draw_network(axis, rule):
  """Three neurons at three steps; arrows for what learning has to carry: 'bptt' or 'eprop'."""
  steps, heights, top = (0, 1, 2), (0, 0.55, 1.1), 1.85

  def arrow(start, end, colour):
    axis.annotate('', end, start, arrowprops=dict(arrowstyle='-|>', color=colour, lw=1.6, shrinkA=0, shrinkB=0))

  for t in steps:
    for y in (*heights, top):
      axis.plot(t, y, 's' if y == top else 'o', ms=15, mfc='white', mec=palette.BLACK, mew=1.4, zorder=3)
    axis.text(t, -0.25, f'$t{t - 2:+d}$' if t < 2 else '$t$', ha='center', va='top')
    # The error at the outputs reaches every neuron: a bus beside the column.
    bus = t - 0.23
    axis.plot([t - 0.09, bus, bus], [top, top, 0], color=palette.SIGNAL, lw=1.6, solid_joinstyle='round')
    for y in heights:
      arrow((bus, y), (t - 0.085, y), palette.SIGNAL)
  for t in steps[:-1]:
    for y in heights:
      if rule == 'eprop':
        arrow((t + 0.1, y + 0.07), (t + 0.9, y + 0.07), palette.TRACE)
      for y_before in heights if rule == 'bptt' else ():
        arrow((t + 0.9, y + 0.09), (t + 0.11, y_before + 0.03), palette.SIGNAL)
  if rule == 'eprop':
    axis.text(0.27, 1.5, 'learning signals $L_j^t$\nare broadcast', color=palette.SIGNAL, ha='center', va='center', fontsize=9)
    axis.text(1, -0.62, 'traces $e_{ji}^t$ stay at their synapse and are carried forward', color=palette.TRACE, ha='center',
              fontsize=9)
    axis.set_title('e-prop: nothing travels back in time', fontsize=11)
  else:
    axis.text(0.27, 1.5, 'errors', color=palette.SIGNAL, ha='center', va='center', fontsize=9)
    axis.text(1, -0.62, 'errors go back through every synapse and every step', color=palette.SIGNAL, ha='center',
              fontsize=9)
    axis.set_title('BPTT: the network is run backwards', fontsize=11)
  axis.text(-0.42, top, 'output', ha='right', va='center', fontsize=9)
  axis.text(-0.42, 0.55, 'neurons', ha='right', va='center', fontsize=9)
  axis.set(xlim=(-0.95, 2.4), ylim=(-0.78, 2.05))
  axis.axis('off')


def draw_synapse(axes, run):
  """What one synapse sees and keeps; one panel for each quantity."""
  time = np.arange(N_STEPS)
  spikes, slow, trace, signal, gradient = axes
  for k, name in enumerate(('pre', 'others', 'z')):
    spikes.eventplot(np.flatnonzero(run[name]), lineoffsets=2 - k, linelengths=0.7, colors=palette.SPIKE, linewidths=1.2)
  spikes.set_yticks([2, 1, 0], ['input $i$', 'other inputs', 'neuron $j$'])
  spikes.set_ylim(-0.6, 2.6)
  slow.plot(time, run['slow'], color=palette.TRACE, lw=1.8)
  slow.set_ylabel('slow\nfactor ' r'$\epsilon_{ji}^a$')
  trace.plot(time, run['e'], color=palette.SKY, lw=1.2, label='$e_{ji}$')
  trace.plot(time, run['e_bar'], color=palette.TRACE, lw=1.8, label=r'filtered by the readout, $\bar e_{ji}$')
  trace.set_ylabel('trace')
  trace.legend(frameon=False, fontsize=9, loc='upper right', ncol=2, borderaxespad=0)
  signal.plot(time, run['L'], color=palette.SIGNAL, lw=1.8)
  signal.set_ylabel('learning\nsignal $L_j$')
  gradient.plot(time, run['gradient'], color=palette.BLACK, lw=1.8)
  gradient.set(ylabel=r'$\sum_t L_j\,\bar e_{ji}$', xlabel='time (ms)', xlim=(0, N_STEPS))
  gradient.annotate('$= dE/dW_{ji}$', (N_STEPS, run['gradient'][-1]), (-4, 10), textcoords='offset points', ha='right')
  for axis in axes:
    axis.spines[['top', 'right']].set_visible(False)
    axis.margins(y=0.15)


def main(path):
  figure = plt.figure(figsize=(9, 7.6), layout='constrained')
  above, below = figure.subfigures(2, 1, height_ratios=[1, 1.15])
  for axis, rule in zip(above.subplots(1, 2), ('eprop', 'bptt')):
    draw_network(axis, rule)
  axes = below.subplots(5, 1, sharex=True, height_ratios=[1, 0.8, 1.1, 0.8, 0.8])
  draw_synapse(axes, one_synapse())
  below.align_ylabels(axes)
  drawing.save(figure, path, dpi=130)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description='Draws the idea of e-prop.')
  parser.add_argument('path', nargs='?', default=os.path.join(os.path.dirname(os.path.abspath(__file__)), 'figures', 'idea.png'),
                      help='file to write')
  target = parser.parse_args().path
  try:
    main(target)
  except (OSError, ValueError) as error:  # a folder that is not there, an ending that matplotlib does not know
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  print(f'figure: {target}')

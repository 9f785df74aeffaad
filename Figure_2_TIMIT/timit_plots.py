"""Pictures of the speech data. No TensorFlow."""
import numpy as np

import drawing
from drawing import matplotlib, plt

RATE, HOP = 16000, 160
VOWELS = 'iy ih eh ey ae aa aw ay ah ao oy ow uh uw ux er ax ix axr ax-h'.split()
SILENCES = 'h# pau epi bcl dcl gcl pcl tcl kcl q sil'.split()
COLOURS = {'vowel': '#F2C14E', 'consonant': '#5B9BD5', 'silence': '#F0F0F0'}


def kind_of(phone):
  """'vowel', 'consonant' or 'silence'."""
  return 'vowel' if phone in VOWELS else 'silence' if phone in SILENCES else 'consonant'


def save(figure, path, show=False):
  """Writes a figure as PNG, and opens its window if `show`."""
  drawing.save(figure, path, show, dpi=130)
  drawing.wait(show)


def utterance(path, audio, filters, centres, runs, starts, classes, title, show=False):
  """Filter bank, waveform and framewise phones of one utterance.

  Args:
    path: of the PNG.
    audio: [samples], 16 kHz; full scale is 32,768.
    filters: float [T, 40], log energy per filter.
    centres: float [40], centre frequencies in Hz.
    runs, starts: int [R], class and first frame of each run of equal labels.
    classes: names of the classes.
    title: str.
    show: whether to open a window.
  """
  duration, n_frames = len(audio) / RATE, len(filters)
  figure, axes = plt.subplots(3, 1, sharex=True, figsize=(12, 6.4), height_ratios=[3, 1.6, 1.2], layout='constrained')
  low, high = np.percentile(filters, [5, 99.5])
  image = axes[0].imshow(filters.T, origin='lower', aspect='auto', cmap='magma', vmin=low, vmax=high,
                         extent=[0, n_frames * HOP / RATE, -0.5, len(centres) - 0.5])
  khz = np.array([0.1, 0.25, 0.5, 1, 2, 4, 7])
  axes[0].set_yticks(np.interp(1000 * khz, centres, np.arange(len(centres))), [f'{value:g}' for value in khz])
  axes[0].set_ylabel('frequency (kHz)\n40 mel filters')
  figure.colorbar(image, ax=axes[0], label='log energy', pad=0.01)
  axes[1].plot(np.arange(len(audio)) / RATE, audio / 32768, color='black', linewidth=0.4)
  axes[1].set_ylabel('amplitude\n(of full scale)')
  bounds = np.append(starts, n_frames) * HOP / RATE
  for k, (left, right, run) in enumerate(zip(bounds, bounds[1:], runs)):
    axes[2].axvspan(left, right, color=COLOURS[kind_of(classes[run])], linewidth=0)
    axes[2].text((left + right) / 2, (0.8, 0.5, 0.2)[k % 3], classes[run], ha='center', va='center', fontsize=8)
    for axis in axes:
      axis.axvline(left, color='0.6' if axis is not axes[0] else 'white', linewidth=0.4, alpha=0.6)
  axes[2].set(yticks=[], ylim=(0, 1), xlim=(0, duration), xlabel='time (s)', ylabel='phone of\neach frame')
  patches = [matplotlib.patches.Patch(color=colour, label=kind) for kind, colour in COLOURS.items()]
  figure.legend(handles=patches, loc='outside lower right', ncols=3, frameon=False, fontsize=8)
  for axis in axes[1:]:
    axis.spines[['top', 'right']].set_visible(False)
  axes[0].set_title(title, fontsize=10, loc='left')
  save(figure, path, show)

"""Figures 3 and S7: speed and memory of training. See benchmark.py."""
import sys

from benchmarking import FOLDER, call, first_update, in_child, time_in_turn, timed

EVIDENCE, PATTERN = (str(FOLDER / f'tutorial_{name}.py') for name in ('evidence_accumulation_with_alif', 'pattern_generation'))


def make_iteration(rule, impl, n_batch=64, n_steps=2250, n_rec=100):
  """A function that draws one batch of evidence accumulation, computes its gradient and updates the weights."""
  import experiment
  import devices
  import keras
  import machine
  import numpy as np
  from learner import Learner
  from lsnn import ALIF, exp_decay
  from readout import RateCost, Readout
  from tasks import EvidenceAccumulation
  from trainer import Trainer, random_weights
  machine.keep_memory()  # as in the scripts
  experiment.FLAGS(['benchmark', '--device=CPU:0'])
  task = EvidenceAccumulation(experiment.rng, n_batch, delay=n_steps - 1200.0)
  alpha, rho = exp_decay(20), exp_decay(2000)
  cell = ALIF(n_rec, beta=np.repeat([0, 1.7 * (1 - rho) / (1 - alpha)], n_rec // 2), n_refractory=5)
  rng = np.random.default_rng(0)
  arrays = dict(random_weights(rng, task.n_in, n_rec), w_out=rng.standard_normal((n_rec, 2)) / np.sqrt(n_rec))
  learner = Learner(cell, Readout(np.float32(alpha)), RateCost(1.0, 0.01), rule == 'bptt', impl, devices.n_shards(n_batch))
  trainer = Trainer(learner, task, arrays, 'symmetric', keras.optimizers.Adam(0.005, epsilon=1e-8))
  batches = experiment.prefetched(lambda k: trainer.batch('train', k), 0)
  return lambda: float(trainer.update(*next(batches)).task_loss)


def iteration():
  """One training iteration of evidence accumulation at batch 64, data included."""
  functions = {'adjoint': make_iteration('eprop', 'adjoint'), 'bptt': make_iteration('bptt', 'adjoint'),
               'hardcoded': make_iteration('eprop', 'hardcoded'), 'autodiff': make_iteration('eprop', 'autodiff')}
  seconds = time_in_turn(functions, 7)
  return dict(seconds=seconds, autodiff_over_adjoint=seconds['autodiff'] / seconds['adjoint'],
              bptt_over_adjoint=seconds['bptt'] / seconds['adjoint'],
              hardcoded_over_adjoint=seconds['hardcoded'] / seconds['adjoint'])


def pattern():
  """Pattern generation: 2000 iterations as a user calls it, from start to end, figure included."""
  run = call(PATTERN, '--print_every=500')
  return dict(process_seconds=run['seconds'], training_seconds=run['wall_time_s'], compile_included=True)


def start():
  """Start of the process to the end of the first update, imports and compilation included."""
  command = [sys.executable, '-u', EVIDENCE, '--n_iter=2', '--do_plot=False']
  seconds = dict(eprop=first_update([*command, '--eprop']), bptt=first_update(command))
  return dict(seconds_to_first_update=seconds)


def memory():
  """Peak memory of the whole process, MB; the hardcoded traces at three lengths of a trial."""
  peak = {impl: call(EVIDENCE, '--eprop', f'--eprop_impl={impl}', '--n_iter=2', '--do_plot=False')['peak_memory_mb']
          for impl in ('adjoint', 'hardcoded', 'autodiff')}
  by_steps = {n_steps: child_scaling('hardcoded', 64, n_steps, 100)['peak_memory_mb'] for n_steps in (2250, 4500, 9000)}
  return dict(peak_mb=peak, hardcoded_mb_by_steps=by_steps)


def child_scaling(impl, n_batch, n_steps, n_rec):
  """Seconds per iteration and peak memory of one configuration, in a process of its own."""
  result = in_child(timed, __name__, 'make_iteration', {'f': ('eprop', impl, n_batch, n_steps, n_rec)})
  return dict(seconds=result['seconds']['f'], peak_memory_mb=result['peak_memory_mb'])


def scaling():
  """Seconds and memory as steps, neurons and batch double."""
  base = dict(n_batch=32, n_steps=2250, n_rec=100)
  rows = []
  for impl in ('adjoint', 'hardcoded'):
    for name in base:
      for factor in (1, 2, 4):
        size = dict(base, **{name: base[name] * factor})
        if factor == 1 and name != 'n_batch':
          rows.append(dict(next(r for r in rows if r['impl'] == impl and r['factor'] == 1), doubled=name))
        else:
          rows.append(dict(impl=impl, doubled=name, factor=factor, **size, **child_scaling(impl, **size)))
  return rows


def draw_scaling(rows, path):
  """Time and memory relative to the smallest size."""
  import matplotlib
  matplotlib.use('Agg')
  import matplotlib.pyplot as plt
  import palette
  names = dict(n_steps='steps T', n_rec='neurons N', n_batch='batch B')
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout='constrained')
  for impl, style in (('adjoint', '-'), ('hardcoded', '--')):
    for name, colour in zip(names, (palette.BLUE, palette.ORANGE, palette.GREEN)):
      chosen = [row for row in rows if row['impl'] == impl and row['doubled'] == name]
      factors = [row['factor'] for row in chosen]
      axes[0].plot(factors, [row['seconds'] for row in chosen], 'o' + style, color=colour, label=f'{impl}, {names[name]}')
      axes[1].plot(factors, [row['peak_memory_mb'] for row in chosen], 'o' + style, color=colour)
  axes[0].set(yscale='log', ylabel='one iteration (s)')
  axes[1].set(ylabel='peak memory of the process (MB)', ylim=(0, 1.1 * max(row['peak_memory_mb'] for row in rows)))
  for axis in axes:
    axis.set_xscale('log', base=2)
    axis.set_xticks([1, 2, 4], ['1', '2', '4'])
    axis.set_xlabel('times the base size (T 2250, N 100, B 32)')
    axis.spines[['top', 'right']].set_visible(False)
  axes[0].legend(frameon=False, fontsize=7, handlelength=4)
  figure.savefig(path, dpi=130)

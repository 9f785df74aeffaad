"""What the two numerical verifications share: random networks, devices, error measure, table, verdict and figure.

A case is one random network of LIF and ALIF neurons with random input. Its gradient is computed in several ways, all on
the same device, and compared with a reference; then the results of the devices are compared with each other.
"""
import os
import sys
from typing import NamedTuple

import program
from absl import flags
import numpy as np
import palette
import plots
import tensorflow as tf

import distribution
import drawing
import eprop
import files
from files import UserError
from lsnn import ALIF, exp_decay
from readout import RateCost, Readout, Weights

FLAGS = flags.FLAGS
flags.DEFINE_integer('n_seeds', 5, 'random networks of each size, seeds from --seed on', lower_bound=1)
SHARED_FLAGS = ('seed', 'result_dir', 'show', 'smoke')
for _flag in SHARED_FLAGS:
  flags.declare_key_flag(_flag)

TOLERANCE = 1e-11         # of the relative error in float64
DEVICE_TOLERANCE = 1e-9   # of the same between two devices whose spikes are equal
DETECTABLE = 1e-3         # a deliberately wrong gradient must be off by more than this
INPUT_RATE = 0.05         # spikes per step
DT, TAU_OUT = 1.0, 20.0   # ms
VITAL_SIGNS = ('rate_hz', 'psi_nonzero', 'prevented_by_refractory_period', 'prevented_by_adaptation')


class Network(NamedTuple):
  """A kind of network; half of the neurons adapt (tau_adaptation 200 ms), all are refractory for 5 steps."""
  n_in: int
  n: int
  n_out: int
  n_steps: int
  n_batch: int
  loss: str                  # as in readout.Readout
  rate_cost: str             # kind of readout.RateCost
  normalised: bool = True    # the readout's filter
  scale_input: bool = False  # as in lsnn.ALIF
  tau: tuple = (20.0, 20.0)  # membrane time constant [ms] of the first and the last neuron

  def __str__(self):
    return f'N={self.n} T={self.n_steps} B={self.n_batch}'

  def parts(self, dtype):
    """The neurons, the readout and the rate cost, in this dtype: ALIF, Readout, RateCost."""
    tau = np.linspace(*self.tau, self.n) if self.tau[0] != self.tau[1] else self.tau[0]
    beta = np.repeat([0, 0.4], [self.n - self.n // 2, self.n // 2])
    cell = ALIF(self.n, thr=0.6, tau=tau, tau_adaptation=200.0, beta=beta, n_refractory=5, dt=DT,
                scale_input=self.scale_input, dtype=dtype)
    readout = Readout(np.dtype(dtype).type(exp_decay(TAU_OUT, DT)), self.normalised, self.loss)
    return cell, readout, RateCost(5.0, 0.02, self.rate_cost)


NETWORKS = (
    Network(10, 10, 2, 101, 4, 'cross_entropy', 'simple'),
    Network(15, 20, 3, 200, 2, 'squared_error', 'online', tau=(10.0, 30.0)),
    Network(20, 40, 2, 300, 2, 'squared_error', 'simple', normalised=False, scale_input=True),
)


class Case(NamedTuple):
  """A network with random weights, input and targets."""
  x: tf.Tensor         # [T, B, I]
  target: tf.Tensor    # [T, B, K]
  weight: tf.Tensor    # [T, 1, 1] of each step in the task loss
  weights: Weights
  feedback: tf.Tensor  # random B of eq. (4), [N, K]


def draw_case(network, seed, dtype):
  """A random Case for this network; the same numbers in every dtype and on every device."""
  n_in, n, n_out, n_steps, n_batch = network[:5]
  rng = np.random.default_rng([seed, n])
  gain = 1 / (1 - exp_decay(20.0, DT) if network.scale_input else 1)
  x = rng.random((n_steps, n_batch, n_in)) < INPUT_RATE
  gain_out = (1 if network.normalised else 1 - exp_decay(TAU_OUT, DT)) / np.sqrt(n)
  weights = Weights(gain * (0.2 + rng.standard_normal((n_in, n))) / np.sqrt(n_in),
                    gain * rng.standard_normal((n, n)) / np.sqrt(n), gain_out * rng.standard_normal((n, n_out)))
  target = np.tile(rng.standard_normal((n_batch, n_out)), [n_steps, 1, 1])
  if network.loss == 'cross_entropy':
    target = np.eye(n_out)[target.argmax(-1)]
  weight = (rng.random(n_steps) * (np.arange(n_steps) >= n_steps // 3))[:, None, None]
  case = Case(x, target, weight / n_batch, weights, gain_out * rng.standard_normal((n, n_out)))
  return tf.nest.map_structure(lambda array: tf.constant(array, dtype), case)


class Activity(NamedTuple):
  """A simulation and the traces of input and recurrent synapses together."""
  z: tf.Tensor      # [T, B, N]
  h: tf.Tensor      # [T, B, N]
  psi: tf.Tensor    # [T, B, N]
  v: tf.Tensor      # [T, B, N]
  a: tf.Tensor      # [T, B, N]
  e: tf.Tensor      # [T, B, I + N, N]
  eps_v: tf.Tensor  # [T, B, I + N, 1 or N]
  eps_a: tf.Tensor  # [T, B, I + N, N]


def activity(cell, x, weights):
  """Activity of the neurons, an ALIF."""
  run = eprop.Layer(cell).simulate(x, eprop.Weights(weights.w_in, weights.w_rec), record_states=True)
  pre = tf.concat([x, eprop.one_step_later(run.z)], 2)
  e, eps = eprop.eligibility_traces(cell, pre, run.memory)
  return Activity(run.z, run.memory, cell.psi(run.memory), run.states.v, run.states.a, e, eps.v, eprop.one_step_later(eps.a))


def signal_times_trace(signal, e, n_in):
  """Eq. (1): sum over t and trials of signal [T, B, N] times e [T, B, I + N, N]; gives dE/dw_in and dE/dw_rec."""
  gradient = tf.reduce_sum(signal[:, :, None, :] * e, [0, 1])
  return gradient[:n_in], tf.linalg.set_diag(gradient[n_in:], tf.zeros_like(gradient[0]))


def vital_signs(cell, run):
  """What must have happened in a simulation for its gradient to prove anything: VITAL_SIGNS, all positive."""
  h, v, threshold = run.h.numpy(), run.v.numpy(), cell.thr + cell.beta * run.a.numpy()
  refractory = (h == -1) & (v > threshold)  # nothing else held these spikes back
  adapted = (h > -1) & (h <= 0) & (v > cell.thr)
  values = 1000 / DT * run.z.numpy().mean(), (run.psi.numpy() > 0).mean(), refractory.sum(), adapted.sum()
  return dict(zip(VITAL_SIGNS, map(float, values)))


def relative_error(a, b):
  """Largest absolute difference over largest entry of b; NaN if anything is, not finite if b is 0 everywhere."""
  a, b = np.asarray(a), np.asarray(b)
  with np.errstate(invalid='ignore', divide='ignore'):
    return np.max(np.abs(a - b)) / np.max(np.abs(b))


def cases():
  """Yields (Network, dtype, device, seeds) for everything that is to be compared, inside the device's scope."""
  program.refuse(flag.name for module in (program, distribution) for flag in FLAGS.get_flags_for_module(module)
                 if flag.name not in SHARED_FLAGS)
  program.apply_smoke(n_seeds=1)
  tf.config.experimental.enable_tensor_float_32_execution(False)  # ten bits of mantissa would be no float32
  tf.get_logger().setLevel('ERROR')  # each network is traced anew on purpose, which TensorFlow warns of
  for network in NETWORKS[:1] if FLAGS.smoke else NETWORKS:
    for dtype in ('float64',) if FLAGS.smoke else ('float64', 'float32'):
      for device in tf.config.list_logical_devices():
        if device.device_type in ('CPU', 'GPU'):
          with tf.device(device.name):
            yield network, dtype, device.name.removeprefix('/device:'), range(FLAGS.seed, FLAGS.seed + FLAGS.n_seeds)


def _name(row):
  return '{network} seed {seed} {dtype} {device}'.format(**row)


class Report:
  """Collects comparisons, prints them and gives the verdict.

  Args:
    script: name of the script, the folder under --result_dir.

  Raises:
    UserError: the folder cannot be written.
  """

  def __init__(self, script):
    self.folder = os.path.join(FLAGS.result_dir, script)
    self.rows, self.failures, self._first = [], [], {}
    os.makedirs(self.folder, exist_ok=True)
    if not os.access(self.folder, os.W_OK):
      raise UserError(f'cannot write to {self.folder}')

  def path(self, name):
    """Path of a file of this verification."""
    return os.path.join(self.folder, name)

  def add(self, case, spikes, gradients, wrong):
    """Compares the gradients of one case with each other, and with those of the first device.

    Args:
      case: dict of device, dtype, network, seed and the vital signs.
      spikes: [T, B, N].
      gradients: dict of Weights, which must be equal; the first is the reference.
      wrong: dict of (dE/dw_in, dE/dw_rec), which must differ from it.
    """
    self.failures += [f'{_name(case)} proves nothing: {key} is {case[key]}' for key in VITAL_SIGNS if not case[key] > 0]
    (_, reference), *others = gradients.items()
    for kind, variants in (('check', others), ('wrong', wrong.items())):
      for check, gradient in variants:
        self._compare(kind, check, case, gradient, reference)
    key = case['network'], case['dtype'], case['seed'], *gradients
    device, first_spikes, first = self._first.setdefault(key, (case['device'], spikes, gradients))
    if device != case['device']:
      case = dict(case, device=f'{case["device"]} against {device}', spikes_equal=np.array_equal(spikes, first_spikes))
      for check, gradient in gradients.items():
        self._compare('devices', check, case, gradient, first[check])

  def _compare(self, kind, check, case, gradients, reference):
    errors = [relative_error(*pair) for pair in zip(gradients, reference)]
    error = np.max(errors)
    self.rows.append(dict(kind=kind, check=check, **case, **dict(zip(Weights._fields, errors)), error=error))
    limit = TOLERANCE if kind == 'check' else DEVICE_TOLERANCE if case.get('spikes_equal') else np.inf
    if case['dtype'] == 'float32':
      limit = np.inf  # for information
    passed = error > DETECTABLE if kind == 'wrong' else error <= limit
    if not (passed and np.isfinite(error)):
      wanted = f'must be off by more than {DETECTABLE}' if kind == 'wrong' else f'may be off by {limit}'
      self.failures.append(f'{_name(case)}: {check} is off by {error:.2g}, {wanted}')

  def _groups(self, *columns):
    groups = {}
    for row in self.rows:
      groups.setdefault(tuple(str(row[column]) for column in columns), []).append(row)
    return groups.items()

  def finish(self):
    """Prints table and verdict, writes table.csv and summary.json; returns whether everything passed."""
    line = '{:<21}{:<9}{:<18}{:<34}{:>9}{:>9}{:>9}   {}'.format
    print('Relative error of each gradient, the worst of all seeds\n')
    print(line('device', 'dtype', 'network', 'gradient', *Weights._fields, 'mean rate'))
    for (kind, *names), rows in self._groups('kind', 'device', 'dtype', 'network', 'check'):
      if kind != 'wrong':
        errors = [f'{np.max([row[name] for row in rows]):.1e}' for name in Weights._fields]
        rates = [row['rate_hz'] for row in rows]
        n_equal = sum(row.get('spikes_equal', False) for row in rows)
        print(line(*names, *errors, f'{min(rates):.0f} to {max(rates):.0f} Hz'
                   + (f', spikes equal in {n_equal} of {len(rows)}' if kind == 'devices' else '')))
    wrong = {}
    print()
    for (kind, check), rows in self._groups('kind', 'check'):
      if kind == 'wrong':
        wrong[check] = np.min([row['error'] for row in rows]), np.max([row['error'] for row in rows])
        print('wrong on purpose, {}: off by {:.2g} to {:.2g}'.format(check, *wrong[check]))
    signs = {sign: np.min([row[sign] for row in self.rows]) for sign in VITAL_SIGNS}
    print('every case has at least: ' + ', '.join(f'{sign} {value:.3g}' for sign, value in signs.items()))
    worst = np.max([row['error'] for row in self.rows if (row['kind'], row['dtype']) == ('check', 'float64')])
    print(f'max relative error: {worst:.3g}')
    print(f'{"FAILED" if self.failures else "passed"}: {len(self._first)} cases; results: {self.folder}', flush=True)
    for failure in self.failures:
      print(f'FAILED: {failure}', file=sys.stderr)

    files.write_csv(self.path('table.csv'), self.rows, dict.fromkeys(name for row in self.rows for name in row))
    files.write_json(self.path('summary.json'), dict(
        passed=not self.failures, max_relative_error=worst, tolerance=TOLERANCE, wrong_on_purpose=wrong,
        devices=[device for (device,), _ in self._groups('device')], n_cases=len(self._first), seed=FLAGS.seed,
        n_seeds=FLAGS.n_seeds, failures=self.failures))
    return not self.failures


def figure(path, network, gradients, run, factors):
  """Two gradients and their difference; below, the recurrent synapse onto an ALIF neuron with the largest trace.

  Args:
    path: PNG to write.
    network: Network.
    gradients: dict of Weights, of which the first two are drawn.
    run: Activity.
    factors: dict of label and tensor [T, B, N] or [T, B, I + N, N] for the lowest panels.
  """
  n_in, n = network.n_in, network.n
  fig = plots.plt.figure(figsize=(7.2, 8.8), layout='constrained')
  above, below = fig.subfigures(2, 1, height_ratios=[1, 1.3])
  shown = [(title, np.concatenate(gradient[:2])) for title, gradient in list(gradients.items())[:2]]
  (_, reference), (_, other) = shown
  above.suptitle(f'one random network, float64, {network}', fontsize=9)
  axes = above.subplots(1, 3, sharey=True)
  for axis, (title, matrix) in zip(axes, [*shown, ('difference', 1e16 * (other - reference))]):
    difference = title == 'difference'
    limit = np.abs(matrix if difference else reference).max()
    image = axis.imshow(matrix, cmap='RdBu_r', vmin=-limit, vmax=limit, aspect='auto', interpolation='nearest')
    axis.axhline(n_in - 0.5, color='black', lw=0.8)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel('postsynaptic neuron $j$')
    axis.tick_params(axis='y', length=0)
    above.colorbar(image, ax=axis, location='bottom', shrink=0.9,
                   label='difference ($10^{-16}$)' if difference else '$dE/dW_{ji}$')
  axes[0].set_ylabel('presynaptic $i$')
  axes[0].set_yticks([(n_in - 1) / 2, n_in + (n - 1) / 2], ['inputs', 'neurons'], rotation=90, va='center')

  n_lif = n - n // 2
  size = np.abs(run.e[:, 0, n_in:, n_lif:]).sum(0)
  i, j = np.unravel_index(size.argmax(), size.shape)
  j += n_lif
  spikes = {'presynaptic\nspikes $z_i$': run.z[:, 0, i], 'postsynaptic\nspikes $z_j$': run.z[:, 0, j]}
  curves = {'pseudo-\nderivative $\\psi_j$': run.psi, 'fast component\n$\\epsilon_{ji,v}$': run.eps_v,
            'slow component\n$\\epsilon_{ji,a}$': run.eps_a, 'eligibility\ntrace $e_{ji}$': run.e, **factors}
  time = DT * np.arange(network.n_steps)
  axes = below.subplots(len(spikes) + len(curves), 1, sharex=True,
                        height_ratios=[0.4] * len(spikes) + [1] * len(curves))
  below.suptitle(f'synapse from neuron {i} to ALIF neuron {j}, first trial', fontsize=9)
  for axis, (label, z) in zip(axes, spikes.items()):
    axis.vlines(time[z.numpy() > 0], 0, 1, color=palette.SPIKE, lw=0.8)
    axis.set_yticks([])
    axis.spines['left'].set_visible(False)
  for axis, (label, array) in zip(axes[len(spikes):], curves.items()):
    y = array[:, 0, ..., min(j, array.shape[-1] - 1)].numpy()
    axis.axhline(0, color='0.8', lw=0.6)
    axis.plot(time, y if y.ndim == 1 else y[:, n_in + i], color=palette.SIGNAL if 'signal' in label else palette.TRACE, lw=1)
  for axis, label in zip(axes, [*spikes, *curves]):
    axis.set_ylabel(label, rotation=0, ha='right', va='center', fontsize=8)
    axis.spines[['top', 'right']].set_visible(False)
  axes[-1].set(xlabel='time (ms)', xlim=(0, DT * network.n_steps))
  below.align_ylabels(axes)
  drawing.save(fig, path, FLAGS.show, dpi=200)

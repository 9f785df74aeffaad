"""The LIF and ALIF neurons of figure 2, by their published flags."""
from absl import flags
import numpy as np
import tensorflow as tf

from experiment import rng
from files import UserError
from lsnn import ALIF, exp_decay, spike

FLAGS = flags.FLAGS
flags.DEFINE_float('tau_a', 200.0, 'time constant of the threshold adaptation [ms]', 1e-3, 1e6)
flags.DEFINE_float('tau_v', 20.0, 'membrane time constant [ms]', 1e-3, 1e6)
flags.DEFINE_bool('tau_a_spread', False, 'draw time constants of adaptation, each neuron\'s from tau_a and half of it')
flags.DEFINE_bool('tau_v_spread', False, 'draw membrane time constants, each neuron\'s from tau_v and half of it')
flags.DEFINE_float('beta', 1.8, 'strength of adaptation, multiplied by (1 - rho) / (1 - alpha)', lower_bound=0.0)
flags.DEFINE_float('thr', 0.01, 'threshold, divided by (1 - alpha)', 1e-6, 1e6)
flags.DEFINE_enum('adapt_to', 'crossings', ['crossings', 'spikes'], 'what raises a threshold: as published, each crossing, '
                  'also those that the refractory period keeps from being spikes; or spikes alone')
flags.DEFINE_integer('n_ref', 2, 'refractory period [steps]', 0, 10 ** 4)
flags.DEFINE_float('dt', 1.0, 'length of a network step [ms]', 0.01, 100.0)
flags.DEFINE_float('dampening_factor', 0.3, 'height of the pseudo-derivative', 0.0, 1e6)


class CrossingsALIF(ALIF):
  """ALIF neurons whose thresholds adapt to every crossing, those within the refractory period included: as published, where the
  past spike is computed anew from the state. Arguments as ALIF."""

  def step(self, current, z_network, state):
    """As Neuron.step."""
    crossing = spike(self.distance(state.v, state.a, 0), self.dampening_factor)
    return super().step(current, z_network, state._replace(z=crossing))

  def remember(self, current, before, after):
    """h [B, N] as without a refractory period, from which crossings and pseudo-derivative follow; where they are spikes."""
    return self.distance(after.v, after.a, 0), before.r <= 0

  def spikes(self, memory):
    """As Neuron.spikes."""
    h, free = memory
    return spike(h, self.dampening_factor) * tf.cast(free, h.dtype)

  def adjoint_step(self, memory, dz, adjoint):
    """As Neuron.adjoint_step: what comes from others passes through spikes, the neuron's own adaptation through crossings."""
    h, free = memory
    return super().adjoint_step(h, dz * tf.cast(free, h.dtype), adjoint)

  def trace_step(self, memory, pre, eps):
    """As Neuron.trace_step."""
    h, free = memory
    e, eps = super().trace_step(h, pre, eps)
    return e * tf.cast(free, h.dtype)[:, None], eps


def make(n_regular, n_adaptive, layer):
  """The neurons of one layer; threshold and adaptation as published, which gives them for filters scaled by (1 - decay).

  Args:
    n_regular, n_adaptive: numbers of LIF and ALIF neurons.
    layer: number of the layer, for the time constants that are drawn.

  Returns:
    lsnn.ALIF.

  Raises:
    UserError: no neurons, or a constant that must be positive is not.
  """
  if n_regular + n_adaptive < 1:
    raise UserError('the network needs neurons: at least one LIF or ALIF neuron')
  if min(FLAGS.tau_a, FLAGS.tau_v, FLAGS.thr, FLAGS.dt) <= 0:
    raise UserError('--tau_a, --tau_v, --thr and --dt must be positive')
  generator = rng('time constants', layer)
  spread = lambda tau, on: tau * generator.choice([1, 0.5], n_regular + n_adaptive) if on else tau
  tau_v, tau_a = spread(FLAGS.tau_v, FLAGS.tau_v_spread), spread(FLAGS.tau_a, FLAGS.tau_a_spread)
  scale = 1 / (1 - exp_decay(FLAGS.tau_v, FLAGS.dt))
  beta = np.repeat([0, FLAGS.beta], [n_regular, n_adaptive]) * (1 - exp_decay(tau_a, FLAGS.dt)) * scale
  kind = CrossingsALIF if FLAGS.adapt_to == 'crossings' else ALIF
  return kind(n_regular + n_adaptive, thr=FLAGS.thr * scale, tau=tau_v, tau_adaptation=tau_a, beta=beta,
              n_refractory=FLAGS.n_ref, dt=FLAGS.dt, dampening_factor=FLAGS.dampening_factor, dtype=FLAGS.dtype)

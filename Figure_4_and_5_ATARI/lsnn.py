"""Recurrent networks of spiking neurons: spike function, LIF and ALIF cells, leaky filters, simulation.

Notation, the same in code, docstrings and figures (paper: Bellec, Scherr et al., Nature Communications 11:3625, 2020):

  T, B, I, N, K   time steps, trials (batch), presynaptic inputs, recurrent neurons, outputs
  x [T, B, I]     input spikes;  w_in [I, N], w_rec [N, N], w_out [N, K] are stored [pre, post]
  v, a            membrane potential; threshold adaptation (a = 0 without spikes, thr + beta a is the threshold)
  z               spikes, 0 or 1
  psi             pseudo-derivative dz/dv
  h               (v - thr - beta a) / thr, the normalised distance to threshold; exactly -1 while refractory, so that
                  both z = H(h) and psi = (dampening_factor / thr) max(0, 1 - |h|) follow from this one array

All arrays are time-major. Times are in ms, rates in spikes per ms unless said otherwise.
"""
from typing import NamedTuple, Optional

import keras
import numpy as np
import tensorflow as tf


@tf.custom_gradient
def _spike(h, dampening_factor):
  triangle = tf.maximum(1 - tf.abs(h), 0)
  return tf.cast(h > 0, h.dtype), lambda dz: (dz * dampening_factor * triangle, None)


def spike(h, dampening_factor=0.3):
  """Heaviside spike function whose derivative is the piecewise-linear pseudo-derivative.

  Args:
    h: float tensor of any shape, normalised distance to threshold, (v - A) / thr.
    dampening_factor: height gamma of the pseudo-derivative dz/dh = gamma max(0, 1 - |h|).

  Returns:
    Spikes 0 or 1, shape and dtype of h.
  """
  return _spike(h, tf.convert_to_tensor(dampening_factor, h.dtype))


def exp_decay(tau, dt=1.0):
  """Decay factor exp(-dt / tau) of an exponential filter; tau (scalar or array) and dt in ms."""
  tau = np.asarray(tau, np.float64)
  if np.any(tau <= 0):
    raise ValueError(f'time constants must be positive, got {tau.min()} ms')
  return np.exp(-dt / tau)


def exp_filter(x, decay, normalised=False, reverse=False):
  """Exponential filter along time: y[t] = decay y[t-1] + x[t], with y[-1] = 0.

  Args:
    x: float tensor [T, ...].
    decay: decay factor per step, a scalar.
    normalised: multiply by (1 - decay), so that a constant input is kept.
    reverse: filter backwards in time (y[t] = decay y[t+1] + x[t]), the adjoint of the forward filter.

  Returns:
    The filtered tensor, shape and dtype of x.
  """
  n_steps = x.shape[0]
  gain = 1 - decay if normalised else 1
  source = tf.TensorArray(x.dtype, n_steps, element_shape=x.shape[1:]).unstack(x)

  def body(step, y, ys):
    t = n_steps - 1 - step if reverse else step
    y = decay * y + gain * source.read(t)
    return step + 1, y, ys.write(t, y)

  ys = tf.TensorArray(x.dtype, n_steps, element_shape=x.shape[1:])
  return tf.while_loop(lambda step, *_: step < n_steps, body, (0, tf.zeros(x.shape[1:], x.dtype), ys))[-1].stack()


def without_autapses(w_rec):
  """The recurrent weights [N, N] with diagonal 0: no neuron excites itself."""
  return tf.linalg.set_diag(w_rec, tf.zeros(w_rec.shape[0], w_rec.dtype))


class State(NamedTuple):
  """State of B networks after a step, each [B, N]."""
  v: tf.Tensor
  a: tf.Tensor
  z: tf.Tensor
  r: tf.Tensor  # steps of the refractory period still to come


class ALIF(keras.layers.Layer):
  """Adaptive leaky integrate-and-fire neurons as a Keras RNN cell.

    v[t] = alpha v[t-1] + x[t] @ w_in + z[t-1] @ w_rec - z[t-1] thr
    a[t] = rho a[t-1] + z[t-1]
    z[t] = H(v[t] - thr - beta a[t]), 0 while refractory

  Args:
    units: number of neurons N.
    thr: baseline threshold.
    tau: membrane time constant in ms, scalar or [N].
    tau_adaptation: time constant of the adaptation in ms, scalar or [N].
    beta: strength of the adaptation, scalar or [N]; 0 makes a neuron LIF.
    n_refractory: least number of steps from one spike of a neuron to its next; 0 and 1: no refractory period.
    dampening_factor: height gamma of the pseudo-derivative.
    dt: length of a step in ms.
    scale_input: multiply input and recurrent currents by (1 - alpha), as figure S7 does.
    stop_z_gradients: in `call`, let no gradient pass from a spike to other neurons and the reset: autodiff gives e-prop.

  Raises:
    ValueError: a time constant, the threshold, dt or the number of neurons is not positive.
  """

  def __init__(self, units, thr=0.6, tau=20.0, tau_adaptation=2000.0, beta=0.16, n_refractory=0,
               dampening_factor=0.3, dt=1.0, scale_input=False, stop_z_gradients=False, **kwargs):
    super().__init__(**kwargs)
    if units < 1 or thr <= 0 or dt <= 0 or n_refractory < 0:
      raise ValueError(f'need units >= 1, thr > 0, dt > 0, n_refractory >= 0; got {units}, {thr}, {dt}, {n_refractory}')
    dtype = np.dtype(self.compute_dtype).type
    alpha = exp_decay(tau, dt)
    self.units = units
    self.alpha = dtype(alpha)                            # membrane decay, () or [N]
    self.rho = dtype(exp_decay(tau_adaptation, dt))      # adaptation decay, () or [N]
    self.beta = dtype(beta)                              # () or [N]
    self.adapts = bool(np.any(self.beta))                # where no neuron does, a stays 0
    self.current_gain = dtype(1 - alpha if scale_input else 1)
    self.thr = dtype(thr)
    self.n_refractory = dtype(n_refractory)
    self.dampening_factor = dtype(dampening_factor)
    self.stop_z_gradients = stop_z_gradients
    self.state_size = [units] * len(State._fields)
    self.output_size = units

  def build(self, input_shape):
    n_in = (input_shape[0] if isinstance(input_shape[0], (tuple, list)) else input_shape)[-1]
    initializer = lambda fan_in: keras.initializers.RandomNormal(stddev=fan_in ** -0.5)
    self.w_in = self.add_weight(shape=(n_in, self.units), initializer=initializer(n_in), name='w_in')
    self.w_rec = self.add_weight(shape=(self.units, self.units), initializer=initializer(self.units), name='w_rec')

  def get_initial_state(self, batch_size=None):
    """The resting state, a list of zeros [batch_size, N] in the order of State."""
    return [tf.zeros([batch_size, self.units], self.compute_dtype)] * len(State._fields)

  def psi(self, h):
    """Pseudo-derivative dz/dv of every neuron, shape of h [..., N]."""
    return self.dampening_factor / self.thr * tf.maximum(1 - tf.abs(h), 0)

  def step(self, current, z_network, state):
    """One time step.

    Args:
      current: input current x[t] @ w_in + z[t-1] @ w_rec, [B, N].
      z_network: z[t-1] as the reset sees it, [B, N]; apart from state.z, which drives the neuron's own adaptation,
        because e-prop lets gradients pass through the second and not through the first.
      state: State at t-1.

    Returns:
      h[t] [B, N] and the State at t.
    """
    _, a, z, r = state
    v = self.alpha * state.v + self.current_gain * current - self.thr * z_network
    if self.adapts:
      a = self.rho * a + z
    h = (v - self.thr - self.beta * a) / self.thr
    if self.n_refractory:
      h = tf.where(r > 0, tf.cast(-1, h.dtype), h)
    z = spike(h, self.dampening_factor)
    if self.n_refractory:
      r = tf.clip_by_value(r + self.n_refractory * tf.stop_gradient(z) - 1, 0, self.n_refractory)
    return h, State(v, a, z, r)

  def call(self, inputs, states):
    """One step in the Keras protocol.

    Args:
      inputs: x[t] [B, I], or a pair (x[t], reset[t] [B]): where reset is 1 the state is zeroed before the step.
      states: list as get_initial_state returns it.

    Returns:
      z[t] [B, N] and the new states.
    """
    state = State(*states)
    if isinstance(inputs, (tuple, list)):
      inputs, reset = inputs
      state = cut(state, reset)
    z_network = tf.stop_gradient(state.z) if self.stop_z_gradients else state.z
    current = tf.matmul(inputs, self.w_in) + tf.matmul(z_network, without_autapses(tf.convert_to_tensor(self.w_rec)))
    _, state = self.step(current, z_network, state)
    return state.z, list(state)


class LIF(ALIF):
  """Leaky integrate-and-fire neurons: ALIF without adaptation. Arguments as ALIF."""

  def __init__(self, units, thr=0.03, tau=20.0, **kwargs):
    super().__init__(units, thr=thr, tau=tau, beta=0.0, **kwargs)


def cut(state, reset):
  """The state (any structure of [B, ...]) with the trials where reset [B] is 1 set to zero."""
  keep = 1 - tf.cast(reset, tf.nest.flatten(state)[0].dtype)
  return tf.nest.map_structure(lambda s: s * tf.reshape(keep, [-1] + [1] * (s.shape.rank - 1)), state)


class Simulation(NamedTuple):
  """What `unroll` returns."""
  z: tf.Tensor            # spikes [T, B, N]
  psi: tf.Tensor          # pseudo-derivative [T, B, N]
  h: tf.Tensor            # normalised distance to threshold [T, B, N]
  v: Optional[tf.Tensor]  # membrane potential [T, B, N], if asked for
  a: Optional[tf.Tensor]  # adaptation [T, B, N], if asked for; 0 where no neuron of the cell adapts
  state: State            # after the last step


def unroll(cell, x, w_in, w_rec, reset=None, state=None, stop_z_gradients=False, dz=None, record_va=False, n_repeat=1):
  """Simulates a batch of networks over time. Differentiable; meant to be called inside a tf.function.

  Args:
    cell: the neurons, ALIF or LIF.
    x: inputs [T, B, I], any numeric dtype.
    w_in: [I, N], dtype of the cell.
    w_rec: [N, N]; its diagonal is ignored.
    reset: optional [T, B]; where 1, the state is zeroed before the step.
    state: optional State to start from, default rest.
    stop_z_gradients: let no gradient pass from spikes to other neurons and the reset, so that autodiff gives e-prop.
    dz: optional zeros [T, B, N], added to the spikes where these act on the network (recurrence, reset, readout) but
      not where they act on their own neuron's adaptation: d loss / d dz is the dE/dz of eq. (1).
    record_va: return v and a as well.
    n_repeat: number of steps for which each input is held: x is [T / n_repeat, B, I], everything else has T steps.

  Returns:
    Simulation.
  """
  n_frames, n_batch, n_in = x.shape
  n_steps = n_repeat * n_frames
  n = cell.units
  dtype = w_in.dtype
  w_rec = without_autapses(w_rec)
  reset, dz = (None if array is None else tf.convert_to_tensor(array) for array in (reset, dz))
  # One product for all inputs: x @ w_in does not depend on the state.
  current = tf.reshape(tf.reshape(tf.cast(x, dtype), [-1, n_in]) @ w_in, [n_frames, n_batch, n])
  current = tf.TensorArray(dtype, n_frames, element_shape=[n_batch, n]).unstack(current)
  state = State(*cell.get_initial_state(n_batch)) if state is None else state
  extra = tf.zeros_like(state.z)

  def body(t, state, extra, records):
    if reset is not None:
      state, extra = cut((state, extra), reset[t])
    z_network = (tf.stop_gradient(state.z) if stop_z_gradients else state.z) + extra
    h, state = cell.step(current.read(t // n_repeat) + z_network @ w_rec, z_network, state)
    values = (h, state.v, state.a)[:len(records)]
    records = tuple(record.write(t, value) for record, value in zip(records, values))
    return t + 1, state, extra if dz is None else dz[t], records

  records = tuple(tf.TensorArray(dtype, n_steps, element_shape=[n_batch, n]) for _ in range(3 if record_va else 1))
  _, state, _, records = tf.while_loop(lambda t, *_: t < n_steps, body, (0, state, extra, records))
  h, v, a = tuple(record.stack() for record in records) + (None, None) * (not record_va)
  z = spike(h, cell.dampening_factor)
  return Simulation(z if dz is None else z + dz, cell.psi(h), h, v, a, state)

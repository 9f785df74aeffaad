"""Neurons: the spike function, one class for each kind of neuron, loops over time, leaky filters.

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
from typing import NamedTuple

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
  if not np.all(tau > 0):
    raise ValueError(f'time constants must be positive, got {tau.min()} ms')
  return np.exp(-dt / tau)


def scan(step, carried, n_steps, like, reverse=False):
  """A loop over time: carried, seen = step(t, carried).

  Args:
    step: that function.
    carried: what the first step gets, any structure of tensors.
    n_steps: t runs from 0 to n_steps - 1, or back.
    like: something of the structure, shapes and dtypes of what a step sees.
    reverse: run backwards.

  Returns:
    carried after the last step; what was seen, stacked along time.
  """
  records = [tf.TensorArray(value.dtype, n_steps, element_shape=value.shape) for value in tf.nest.flatten(like)]

  def body(k, carried, records):
    t = n_steps - 1 - k if reverse else k
    carried, seen = step(t, carried)
    return k + 1, carried, [record.write(t, value) for record, value in zip(records, tf.nest.flatten(seen))]

  _, carried, records = tf.while_loop(lambda k, *_: k < n_steps, body, (0, carried, records))
  return carried, tf.nest.pack_sequence_as(like, [record.stack() for record in records])


def at(structure, index):
  """array[index] of all arrays of a structure; None stays None."""
  return tf.nest.map_structure(lambda array: None if array is None else array[index], structure)


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
  gain = 1 - decay if normalised else 1
  source = tf.TensorArray(x.dtype, x.shape[0], element_shape=x.shape[1:]).unstack(x)

  def step(t, y):
    y = decay * y + gain * source.read(t)
    return y, y

  return scan(step, tf.zeros_like(x[0]), x.shape[0], x[0], reverse)[1]


def without_autapses(w_rec):
  """The recurrent weights [N, N] with diagonal 0: no neuron excites itself."""
  return tf.linalg.set_diag(w_rec, tf.zeros(w_rec.shape[0], w_rec.dtype))


def cut(state, reset):
  """The state (any structure of [B, ...]) with the trials where reset [B] is 1 set to zero."""
  keep = 1 - tf.cast(reset, tf.nest.flatten(state)[0].dtype)
  return tf.nest.map_structure(lambda s: s * tf.reshape(keep, [-1] + [1] * (s.shape.rank - 1)), state)


class Neuron(keras.layers.Layer):
  """Base class: a kind of neuron is its state and its `step`; all that learning needs follows from these two.

  A subclass has

    State      NamedTuple of arrays [B, N], all 0 at rest; one of them is z, the spikes
    step       State at t from the State at t-1, neuron by neuron: what a neuron knows of the others is in `current`

  The functions `remember`, `spikes`, `initial_adjoint`, `adjoint_step`, `initial_eps` and `trace_step` differentiate `step`
  automatically. A subclass may replace them by formulas of its own, which are faster (ALIF does).

  It is a Keras RNN cell: keras.layers.RNN(ALIF(100), return_sequences=True); models with it can be saved and loaded.

  Args:
    units: number of neurons N.
    stop_z_gradients: in `call`, let no gradient pass from a spike to other neurons and the reset: autodiff gives e-prop.

  Raises:
    ValueError: no neurons.
  """
  State = None

  def __init_subclass__(cls, **kwargs):
    super().__init_subclass__(**kwargs)
    keras.saving.register_keras_serializable('eprop')(cls)

  def __new__(cls, *args, **kwargs):
    # Keras keeps the arguments for get_config, which knows lists and no arrays.
    listed = lambda value: value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    return super().__new__(cls, *map(listed, args), **{name: listed(value) for name, value in kwargs.items()})

  def __init__(self, units, stop_z_gradients=False, **kwargs):
    super().__init__(**kwargs)
    if units < 1:
      raise ValueError(f'need units >= 1, got {units}')
    self.supports_jit = False  # XLA takes a minute for what a differentiated loop does without it in a second
    self.units, self.stop_z_gradients = units, stop_z_gradients
    self.state_size = [units] * len(self.State._fields)
    self.output_size = units

  def constant(self, value):
    """A number or array in the neuron's precision."""
    return np.dtype(self.compute_dtype).type(value)

  def build(self, input_shape):
    n_in = (input_shape[0] if isinstance(input_shape[0], (tuple, list)) else input_shape)[-1]
    initializer = lambda fan_in: keras.initializers.RandomNormal(stddev=fan_in ** -0.5)
    self.w_in = self.add_weight(shape=(n_in, self.units), initializer=initializer(n_in), name='w_in')
    self.w_rec = self.add_weight(shape=(self.units, self.units), initializer=initializer(self.units), name='w_rec')

  def get_initial_state(self, batch_size=None):
    """The resting state, a list of zeros [batch_size, N] in the order of State."""
    return [tf.zeros([batch_size, self.units], self.compute_dtype)] * len(self.State._fields)

  def step(self, current, z_network, state):
    """One time step.

    Args:
      current: input current x[t] @ w_in + z[t-1] @ w_rec, [B, N].
      z_network: z[t-1] as the reset sees it, [B, N]; apart from state.z, through which a neuron knows its own past spike,
        because e-prop lets gradients pass through the second and not through the first.
      state: State at t-1.

    Returns:
      State at t.
    """
    raise NotImplementedError

  def call(self, inputs, states):
    """One step in the Keras protocol.

    Args:
      inputs: x[t] [B, I], or a pair (x[t], reset[t] [B]): where reset is 1 the state is zeroed before the step.
      states: list as get_initial_state returns it.

    Returns:
      z[t] [B, N] and the new states.
    """
    state = self.State(*states)
    if isinstance(inputs, (tuple, list)):
      inputs, reset = inputs
      state = cut(state, reset)
    z_network = tf.stop_gradient(state.z) if self.stop_z_gradients else state.z
    current = tf.matmul(inputs, self.w_in) + tf.matmul(z_network, without_autapses(tf.convert_to_tensor(self.w_rec)))
    state = self.step(current, z_network, state)
    return state.z, list(state)

  def remember(self, current, before, after):
    """What `spikes`, `adjoint_step` and `trace_step` need to know of a step: arrays [B, N].

    Args:
      current: as for `step`.
      before, after: State before and after it.
    """
    return current, before, after.z

  def spikes(self, memory):
    """z of the remembered steps, [..., B, N]."""
    return memory[2]

  def initial_adjoint(self, n_batch):
    """The adjoint after the last step: zeros."""
    return self.State(*self.get_initial_state(n_batch))

  def adjoint_step(self, memory, dz, adjoint):
    """The transpose of `step`, one step backwards in time: here its vector-Jacobian product by automatic differentiation.

    Args:
      memory: what `remember` kept of step t.
      dz: dE/dz[t] on all paths but the neuron's own later states, [B, N].
      adjoint: from step t+1, or `initial_adjoint`.

    Returns:
      dE/d current[t] [B, N]; dE/dz[t-1] through the reset [B, N], which e-prop leaves out; the adjoint for step t-1.
    """
    current, before, _ = memory
    z_network = tf.identity(before.z)
    with tf.GradientTape() as tape:
      tape.watch((current, z_network, before))
      after = self.step(current, z_network, before)
    adjoint = adjoint._replace(z=adjoint.z + dz)
    return tape.gradient(after, (current, z_network, before), adjoint, tf.UnconnectedGradients.ZERO)

  def initial_eps(self, n_batch, n_pre):
    """Eligibility vectors before the first step: zeros."""
    return self.State(*[tf.zeros([n_batch, n_pre, self.units], self.compute_dtype)] * len(self.State._fields))

  def trace_step(self, memory, pre, eps):
    """One step of the eligibility traces of all synapses i -> j; here from the derivatives of `step`.

    Args:
      memory: what `remember` kept of step t.
      pre: what arrives at the synapses at t: x[t], or z[t-1] for recurrent synapses, [B, I].
      eps: eligibility vectors from step t-1, or `initial_eps`.

    Returns:
      Eligibility traces e[t] [B, I, N]; eligibility vectors for step t+1.
    """
    current, before, _ = memory
    with tf.GradientTape(persistent=True) as tape:
      tape.watch((current, before))
      after = self.step(current, tf.stop_gradient(before.z), before)

    def eligibility_vector(component):
      # Each neuron's state depends on its own alone, so that the Jacobian is diagonal and these gradients are all of it.
      by_current, by_state = tape.gradient(component, (current, before), unconnected_gradients=tf.UnconnectedGradients.ZERO)
      return by_current[:, None] * pre[..., None] + tf.add_n([d[:, None] * e for d, e in zip(by_state, eps)])

    eps = self.State(*map(eligibility_vector, after))
    return eps.z, eps


class ALIF(Neuron):
  """Adaptive leaky integrate-and-fire neurons.

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
    stop_z_gradients: as for Neuron.

  Raises:
    ValueError: a time constant, the threshold, dt or the number of neurons is not positive.
  """

  class State(NamedTuple):
    """State of B networks after a step, each [B, N]."""
    v: tf.Tensor
    a: tf.Tensor
    z: tf.Tensor
    r: tf.Tensor  # steps of the refractory period still to come

  class Adjoint(NamedTuple):
    """What a step hands to the one before it, each [B, N]."""
    lam: tf.Tensor  # dE/da
    cb: tf.Tensor   # dE/dv

  class Eps(NamedTuple):
    """Eligibility vector of the synapses i -> j, as one step hands it to the next."""
    v: tf.Tensor  # eps_v[t], [B, I, 1] (or N, where neurons differ in tau): the filtered presynaptic spikes
    a: tf.Tensor  # eps_a[t+1], [B, I, N]: the factor of the threshold adaptation

  def __init__(self, units, thr=0.6, tau=20.0, tau_adaptation=2000.0, beta=0.16, n_refractory=0,
               dampening_factor=0.3, dt=1.0, scale_input=False, stop_z_gradients=False, **kwargs):
    super().__init__(units, stop_z_gradients, **kwargs)
    if not (thr > 0 and dt > 0 and n_refractory >= 0):
      raise ValueError(f'need thr > 0, dt > 0, n_refractory >= 0; got {thr}, {dt}, {n_refractory}')
    alpha = exp_decay(tau, dt)
    self.alpha = self.constant(alpha)                            # membrane decay, () or [N]
    self.rho = self.constant(exp_decay(tau_adaptation, dt))      # adaptation decay, () or [N]
    self.beta = self.constant(beta)                              # () or [N]
    self.adapts = bool(np.any(self.beta))                        # where no neuron does, a stays 0
    self.current_gain = self.constant(1 - alpha if scale_input else 1)
    self.thr = self.constant(thr)
    self.n_refractory = self.constant(n_refractory)
    self.dampening_factor = self.constant(dampening_factor)

  def distance(self, v, a, r):
    """h, the normalised distance to threshold, where r steps of the refractory period are to come."""
    h = (v - self.thr - self.beta * a) / self.thr
    return tf.where(r > 0, tf.cast(-1, h.dtype), h) if self.n_refractory else h

  def psi(self, h):
    """Pseudo-derivative dz/dv of every neuron, shape of h [..., N]."""
    return self.dampening_factor / self.thr * tf.maximum(1 - tf.abs(h), 0)

  def step(self, current, z_network, state):
    """As Neuron.step."""
    v = self.alpha * state.v + self.current_gain * current - self.thr * z_network
    a = self.rho * state.a + state.z if self.adapts else state.a
    z = spike(self.distance(v, a, state.r), self.dampening_factor)
    r = state.r
    if self.n_refractory:
      r = tf.clip_by_value(r + self.n_refractory * tf.stop_gradient(z) - 1, 0, self.n_refractory)
    return self.State(v, a, z, r)

  def remember(self, current, before, after):
    """h [B, N], from which spikes and pseudo-derivative follow."""
    return self.distance(after.v, after.a, before.r)

  def spikes(self, h):
    """As Neuron.spikes."""
    return spike(h, self.dampening_factor)

  def initial_adjoint(self, n_batch):
    """As Neuron.initial_adjoint."""
    return self.Adjoint(*[tf.zeros([n_batch, self.units], self.compute_dtype)] * 2)

  def adjoint_step(self, h, dz, adjoint, dv=None, da=None):
    """As Neuron.adjoint_step; dv, da [B, N]: derivatives of costs on v[t] and a[t] themselves, if there are any."""
    lam, cb = adjoint
    psi_s = self.psi(h) * (dz + lam if self.adapts else dz)
    cb = self.alpha * cb + psi_s                                             # (22) transposed
    cb = cb if dv is None else cb + dv
    if self.adapts:
      lam = self.rho * lam - self.beta * psi_s                               # (24), (25) transposed
      lam = lam if da is None else lam + da
    return self.current_gain * cb, -self.thr * cb, self.Adjoint(lam, cb)

  def initial_eps(self, n_batch, n_pre):
    """As Neuron.initial_eps."""
    n_tau = self.units if self.alpha.ndim else 1
    return self.Eps(*(tf.zeros([n_batch, n_pre, n], self.compute_dtype) for n in (n_tau, self.units)))

  def trace_step(self, h, pre, eps):
    """As Neuron.trace_step."""
    psi = self.psi(h)[:, None]                                               # [B, 1, N]
    eps_v = self.alpha * eps.v + self.current_gain * pre[..., None]          # (22)
    if not self.adapts:
      return psi * eps_v, self.Eps(eps_v, eps.a)
    e = psi * (eps_v - self.beta * eps.a)                                    # (25)
    return e, self.Eps(eps_v, self.rho * eps.a + e)                          # (24): psi eps_v + (rho - psi beta) eps_a


class LIF(ALIF):
  """Leaky integrate-and-fire neurons: ALIF without adaptation. Arguments as ALIF."""

  def __init__(self, units, thr=0.03, tau=20.0, **kwargs):
    super().__init__(units, thr=thr, tau=tau, beta=0.0, **kwargs)

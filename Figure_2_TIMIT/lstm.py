"""LSTM networks and their e-prop: cell, simulation, eligibility traces, the gradient in three computations, and BPTT.

Notation as in lsnn.py (arrays are time-major, [T, B, ...]; matrices are stored [pre, post]), and for the LSTM

  i, j, f, o [T, B, N]   input gate, candidate, forget gate, output gate, in this order in the columns of every [., 4N]
  c, h [T, B, N]         cell state, and what leaves the cell; h is to an LSTM what the spikes z are to an LSNN
  u [T, B, 4N]           what the gates sum up, x[t] @ w_in + h[t-1] @ w_rec + bias

    i[t] = sigmoid(u_i[t] + p_i c[t-1])         c[t] = f[t] c[t-1] + i[t] j[t]
    f[t] = sigmoid(u_f[t] + p_f c[t-1] + 1)     h[t] = o[t] tanh(c[t])
    o[t] = sigmoid(u_o[t] + p_o c[t])           j[t] = tanh(u_j[t])          p: peepholes, where there are any

E-prop for LSTMs (paper: Methods) keeps the gradient that stays inside a cell, along c[t-1] -> c[t], and drops the one
through h[t-1], which reaches the other cells, and the one into the layer's inputs. With a learning signal L in the place
of dE/dh, dE/dw_ij = sum_t L_j[t] e_ij[t] as in eq. (1). Three functions give the same numbers: `adjoint` (that sum
transposed in time), `hardcoded` (as an online learner forms it) and `autodiff`. BPTT is `adjoint` or `autodiff` with
bptt=True.

An utterance that is shorter than its batch needs no mask: where L is 0 from its end on, the steps after it change
nothing, whatever (finite) inputs stand there. The network that hears it backwards takes `reverse_sequence` of x and L.

All functions are pure: arrays in, gradients out.
"""
from typing import NamedTuple, Optional

import keras
import numpy as np
import tensorflow as tf

from eprop import one_step_later, presynaptic_product

FORGET_BIAS = 1.0  # keeps the cell state of an untrained network


class Weights(NamedTuple):
  """Trainable arrays of a layer, or the gradients of the loss with respect to them."""
  w_in: tf.Tensor                        # [I, 4N]
  w_rec: tf.Tensor                       # [N, 4N]
  bias: tf.Tensor                        # [4N]
  peepholes: Optional[tf.Tensor] = None  # [3, N], p_i, p_f, p_o; None: the cells have none


class Simulation(NamedTuple):
  """A run of a layer: what leaves it, and what learning needs."""
  h: tf.Tensor      # [T, B, N]
  c: tf.Tensor      # [T, B, N]
  gates: tf.Tensor  # [T, B, 4N], the values of i, j, f, o


def initial_weights(rng, n_in, n, init_scale=0.0, use_peepholes=False, dtype=np.float32):
  """Weights before training: uniform, bias 0.

  Args:
    rng: numpy Generator.
    n_in, n: numbers of inputs I and cells N.
    init_scale: bound of the weights; 0: Glorot's for the kernel [I + N, 4N] and for peepholes [N].
    use_peepholes: draw peepholes too.
    dtype: of the arrays.

  Returns:
    Weights of arrays.

  Raises:
    ValueError: n_in or n is not positive, or init_scale is negative.
  """
  if n_in < 1 or n < 1 or init_scale < 0:
    raise ValueError(f'need n_in >= 1, n >= 1 and init_scale >= 0; got {n_in}, {n}, {init_scale}')
  draw = lambda bound, *shape: rng.uniform(-bound, bound, shape).astype(dtype)
  bound = init_scale or (6 / (n_in + n + 4 * n)) ** 0.5
  return Weights(draw(bound, n_in, 4 * n), draw(bound, n, 4 * n), np.zeros(4 * n, dtype),
                 draw(init_scale or (3 / n) ** 0.5, 3, n) if use_peepholes else None)


# ---------------------------------------------------------------------------------------------------------------------
# The network


def step(u, c, peepholes=None):
  """One time step.

  Args:
    u: x[t] @ w_in + h[t-1] @ w_rec + bias, [B, 4N].
    c: cell state at t-1, [B, N].
    peepholes: [3, N] or None.

  Returns:
    h[t] and c[t] [B, N], gates[t] [B, 4N].
  """
  u_i, u_j, u_f, u_o = tf.split(u, 4, -1)
  u_f += FORGET_BIAS
  if peepholes is not None:
    u_i += peepholes[0] * c
    u_f += peepholes[1] * c
  i, j, f = tf.sigmoid(u_i), tf.tanh(u_j), tf.sigmoid(u_f)
  c = f * c + i * j
  if peepholes is not None:
    u_o += peepholes[2] * c
  o = tf.sigmoid(u_o)
  return o * tf.tanh(c), c, tf.concat([i, j, f, o], -1)


class LSTM(keras.layers.Layer):
  """LSTM as a Keras RNN cell. Its first weights are Glorot-uniform matrix by matrix; see `initial_weights` for the paper's.

  Args:
    units: number of cells N.
    use_peepholes: let the gates see the cell state.
    stop_gradients: let no gradient pass through h[t-1] and the inputs: autodiff gives e-prop.

  Raises:
    ValueError: units is not positive.
  """

  def __init__(self, units, use_peepholes=False, stop_gradients=False, **kwargs):
    super().__init__(**kwargs)
    if units < 1:
      raise ValueError(f'an LSTM needs at least one cell, got units={units}')
    self.units, self.use_peepholes, self.stop_gradients = units, use_peepholes, stop_gradients
    self.state_size = [units, units]
    self.output_size = units

  def build(self, input_shape):
    n = self.units
    add = lambda name, initializer, *shape: self.add_weight(shape=shape, initializer=initializer, name=name)
    self.w_in = add('w_in', 'glorot_uniform', input_shape[-1], 4 * n)
    self.w_rec = add('w_rec', 'glorot_uniform', n, 4 * n)
    self.bias = add('bias', 'zeros', 4 * n)
    self.peepholes = add('peepholes', 'glorot_uniform', 3, n) if self.use_peepholes else None

  def get_initial_state(self, batch_size=None):
    """h and c before the first step, zeros [batch_size, N]."""
    return [tf.zeros([batch_size, self.units], self.compute_dtype)] * 2

  def call(self, inputs, states):
    """One step in the Keras protocol.

    Args:
      inputs: x[t] [B, I].
      states: [h, c] at t-1, each [B, N].

    Returns:
      h[t] [B, N] and the new states.
    """
    h, c = states
    if self.stop_gradients:
      inputs, h = tf.stop_gradient(inputs), tf.stop_gradient(h)
    u = tf.matmul(inputs, self.w_in) + tf.matmul(h, self.w_rec) + self.bias
    h, c, _ = step(u, c, self.peepholes)
    return h, [h, c]


def unroll(x, weights, stop_gradients=False):
  """Simulates a layer over time. Differentiable; meant to be called inside a tf.function.

  Args:
    x: inputs [T, B, I], any numeric dtype.
    weights: Weights.
    stop_gradients: let no gradient pass through h[t-1] and x, so that autodiff gives e-prop.

  Returns:
    Simulation.
  """
  n_steps, n_batch, n_in = x.shape
  n, dtype = weights.w_rec.shape[0], weights.w_in.dtype
  stop = tf.stop_gradient if stop_gradients else tf.identity
  # One product for all steps: x @ w_in does not depend on the state.
  u_in = tf.reshape(stop(tf.cast(x, dtype)), [-1, n_in]) @ weights.w_in + weights.bias
  u_in = tf.TensorArray(dtype, n_steps, element_shape=[n_batch, 4 * n]).unstack(tf.reshape(u_in, [n_steps, n_batch, 4 * n]))

  def body(t, h, c, records):
    h, c, gates = step(u_in.read(t) + stop(h) @ weights.w_rec, c, weights.peepholes)
    return t + 1, h, c, Simulation(*(record.write(t, value) for record, value in zip(records, (h, c, gates))))

  zeros = tf.zeros([n_batch, n], dtype)
  records = Simulation(*(tf.TensorArray(dtype, n_steps, element_shape=[n_batch, size]) for size in (n, n, 4 * n)))
  records = tf.while_loop(lambda t, *_: t < n_steps, body, (0, zeros, zeros, records))[-1]
  return Simulation(*(record.stack() for record in records))


forward = tf.function(unroll, jit_compile=True)  # the compiled form, of which gradients must not be taken


def reverse_sequence(x, lengths):
  """Reverses each utterance within its own length and leaves what follows its end in place; undoes itself.

  Args:
    x: [T, B, ...].
    lengths: number of steps of each utterance, integer [B].

  Returns:
    [T, B, ...].
  """
  return tf.reverse_sequence(x, lengths, seq_axis=0, batch_axis=1)


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives inside a cell, and eligibility traces


class Local(NamedTuple):
  """Derivatives of c[t] and h[t] inside one cell, h[t-1] held fixed; each [..., N]."""
  c_i: tf.Tensor  # dc/du_i
  c_j: tf.Tensor  # dc/du_j
  c_f: tf.Tensor  # dc/du_f
  h_o: tf.Tensor  # dh/du_o
  c_c: tf.Tensor  # dc[t]/dc[t-1]
  h_c: tf.Tensor  # dh/dc


def local_derivatives(gates, c, c_before, peepholes=None):
  """Local derivatives from gates [..., 4N], c[t] and c[t-1] [..., N], peepholes [3, N] or None."""
  i, j, f, o = tf.split(gates, 4, -1)
  tanh_c = tf.tanh(c)
  c_i, c_j, c_f = j * i * (1 - i), i * (1 - j ** 2), c_before * f * (1 - f)
  h_o = tanh_c * o * (1 - o)
  c_c, h_c = f, o * (1 - tanh_c ** 2)
  if peepholes is not None:
    c_c += peepholes[0] * c_i + peepholes[1] * c_f
    h_c += peepholes[2] * h_o
  return Local(c_i, c_j, c_f, h_o, c_c, h_c)


def trace_step(eps, pre, local):
  """One step of the eligibility traces.

    eps[t] = dc[t]/dc[t-1] eps[t-1] + dc[t]/du[t] pre[t]     eligibility vector, for each of the gates i, j, f
    e[t]   = dh[t]/dc[t] eps[t];   output gate: dh[t]/du_o[t] pre[t]

  Args:
    eps: eligibility vectors at t-1, [B, I, 3, N].
    pre: what arrives at the synapses at t: x[t], h[t-1], or 1 for a bias, [B, I].
    local: Local at t, each [B, N].

  Returns:
    eps [B, I, 3, N] and e [B, I, 4, N] at t.
  """
  pre = pre[:, :, None, None]
  gates = lambda *values: tf.stack(values, 1)[:, None]                                    # [B, 1, gates, N]
  eps = gates(local.c_c) * eps + gates(local.c_i, local.c_j, local.c_f) * pre
  return eps, tf.concat([gates(local.h_c) * eps, gates(local.h_o) * pre], 2)


@tf.function(jit_compile=True)
def eligibility_traces(simulation, pre, peepholes=None):
  """Eligibility traces over time, for figures and checks; memory O(T B I N).

  Args:
    simulation: Simulation.
    pre: what arrives at the synapses, [T, B, I]: x, or `one_step_later(h)` for recurrent synapses.
    peepholes: [3, N] or None.

  Returns:
    e [T, B, I, 4N].
  """
  n_steps, n_batch, n_pre = pre.shape
  n = simulation.c.shape[-1]
  locals_ = local_derivatives(simulation.gates, simulation.c, one_step_later(simulation.c), peepholes)

  def body(t, eps, record):
    eps, e = trace_step(eps, pre[t], Local(*(derivative[t] for derivative in locals_)))
    return t + 1, eps, record.write(t, tf.reshape(e, [n_batch, n_pre, 4 * n]))

  record = tf.TensorArray(pre.dtype, n_steps, element_shape=[n_batch, n_pre, 4 * n])
  start = (0, tf.zeros([n_batch, n_pre, 3, n], pre.dtype), record)
  return tf.while_loop(lambda t, *_: t < n_steps, body, start)[-1].stack()


# ---------------------------------------------------------------------------------------------------------------------
# The gradient in three computations


@tf.function(jit_compile=True)
def hardcoded(x, learning_signal, weights):
  """E-prop's gradient formed online: network, traces and gradient advance together, one step at a time.

  Carries O(B (I + N) N) numbers, independent of T.

  Args:
    x: inputs [T, B, I].
    learning_signal: L, in the place of dE/dh, [T, B, N].
    weights: Weights.

  Returns:
    Weights, the gradients.
  """
  n_steps, n_batch, n_in = x.shape
  n, dtype = weights.w_rec.shape[0], weights.w_in.dtype
  n_pre = n_in + n + 1  # the rows of w_in and w_rec, and the bias
  kernel = tf.concat([weights.w_in, weights.w_rec, weights.bias[None]], 0)
  with_peepholes = weights.peepholes is not None

  def body(t, h, c_before, eps, gradient, eps_p, g_p):
    pre = tf.concat([tf.cast(x[t], dtype), h, tf.ones([n_batch, 1], dtype)], 1)
    h, c, gates = step(pre @ kernel, c_before, weights.peepholes)
    local = local_derivatives(gates, c, c_before, weights.peepholes)
    eps, e = trace_step(eps, pre, local)
    gradient += tf.reduce_sum(learning_signal[t][:, None, None] * e, 0)                     # (1)
    if with_peepholes:  # the same, with a cell's own state as what arrives
      eps_p = local.c_c * eps_p + tf.stack([local.c_i, local.c_f]) * c_before
      e_p = tf.concat([local.h_c * eps_p, (local.h_o * c)[None]], 0)                        # [3, B, N]
      g_p += tf.reduce_sum(learning_signal[t] * e_p, 1)
    return t + 1, h, c, eps, gradient, eps_p, g_p

  zeros = lambda *shape: tf.zeros(shape, dtype)
  start = (0, zeros(n_batch, n), zeros(n_batch, n), zeros(n_batch, n_pre, 3, n), zeros(n_pre, 4, n),
           zeros(2, n_batch, n), zeros(3, n))
  _, _, _, _, gradient, _, g_p = tf.while_loop(lambda t, *_: t < n_steps, body, start)
  g_in, g_rec, g_bias = tf.split(tf.reshape(gradient, [n_pre, 4 * n]), [n_in, n, 1])
  return Weights(g_in, g_rec, g_bias[0], g_p if with_peepholes else None)


@tf.function
def autodiff(x, learning_signal, weights, bptt=False):
  """The gradient by TensorFlow's automatic differentiation. Slow and large; not to be compiled with XLA.

  Args:
    x, learning_signal, weights: as for `hardcoded`.
    bptt: BPTT; learning_signal is then dE/dh along the paths that leave the layer.

  Returns:
    Weights, the gradients; and dE/dx [T, B, I], None without bptt.
  """
  x = tf.cast(x, weights.w_in.dtype)
  trainable = [w for w in weights if w is not None]
  with tf.GradientTape() as tape:
    tape.watch((x, trainable))
    loss = tf.reduce_sum(unroll(x, weights, stop_gradients=not bptt).h * learning_signal)
  gradients, dx = tape.gradient(loss, (trainable, x))
  return Weights(*gradients), dx


@tf.function(jit_compile=True)
def adjoint(simulation, x, learning_signal, weights, bptt=False, input_gradient=False):
  """The gradient by one scan back in time over the cell state: the sum over traces, transposed.

    dh[t] = L[t]                                     BPTT: + du[t+1] @ w_rec^T
    dc[t] = dh[t]/dc[t] dh[t] + dc[t+1]/dc[t] dc[t+1]
    du[t] = dc[t]/du[t] dc[t] for i, j, f;  dh[t]/du_o[t] dh[t] for o

  Args:
    simulation: Simulation, by `forward` from the same x and weights.
    x, learning_signal, weights, bptt: as for `autodiff`.
    input_gradient: with bptt, return dE/dx as well, the learning signal of the layer below.

  Returns:
    Weights, the gradients; and dE/dx [T, B, I] or None.

  Raises:
    ValueError: input_gradient without bptt: e-prop stops the gradient at the inputs.
  """
  if input_gradient and not bptt:
    raise ValueError('e-prop stops the gradient at the inputs of a layer: input_gradient needs bptt')
  n_steps, n_batch, n = simulation.c.shape
  c_before = one_step_later(simulation.c)
  # All that does not depend on the step after is formed for all steps at once, outside the scan.
  local = local_derivatives(simulation.gates, simulation.c, c_before, weights.peepholes)

  def adjoint_of_u(local, dc, dh):
    return tf.concat([local.c_i * dc, local.c_j * dc, local.c_f * dc, local.h_o * dh], -1)

  def body(back, dc, dh_network, dcs, dhs):
    t = n_steps - 1 - back
    here = Local(*(derivative[t] for derivative in local))
    dh = learning_signal[t] + dh_network
    dc += here.h_c * dh
    if bptt:
      dh_network = tf.matmul(adjoint_of_u(here, dc, dh), weights.w_rec, transpose_b=True)
    return back + 1, here.c_c * dc, dh_network, dcs.write(t, dc), dhs.write(t, dh)

  zeros = tf.zeros([n_batch, n], simulation.c.dtype)
  records = (tf.TensorArray(zeros.dtype, n_steps, element_shape=[n_batch, n]) for _ in range(2))
  _, _, _, dcs, dhs = tf.while_loop(lambda back, *_: back < n_steps, body, (0, zeros, zeros, *records))
  du = adjoint_of_u(local, dcs.stack(), dhs.stack())                                        # [T, B, 4N]
  g_p = None
  if weights.peepholes is not None:
    du_i, _, du_f, du_o = tf.split(du, 4, -1)
    g_p = tf.stack([tf.reduce_sum(a * b, [0, 1]) for a, b in ((du_i, c_before), (du_f, c_before), (du_o, simulation.c))])
  gradients = Weights(presynaptic_product(tf.cast(x, du.dtype), du),
                      presynaptic_product(one_step_later(simulation.h), du), tf.reduce_sum(du, [0, 1]), g_p)
  return gradients, tf.matmul(du, weights.w_in, transpose_b=True) if input_gradient else None

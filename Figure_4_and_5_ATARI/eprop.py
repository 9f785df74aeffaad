"""The learning rule e-prop: eligibility traces, learning signals and the gradient in three computations, and BPTT.

Notation as in lsnn.py; equation numbers are those of the paper. The network reads out with a leaky filter,

  y[t] = F_kappa(z)[t] @ w_out

and learns from the error at the outputs (y - y*, or softmax(y) - y* for classes) and from a cost on the firing rates.
E-prop's gradient is, eqs. (1), (4) and (28),

  dE/dw_ij = sum_t L_j[t] e_bar_ij[t]     L = error @ B^T, e_bar = F_kappa(e), e the eligibility trace of synapse i -> j

Three functions give the same numbers: `adjoint` (that sum transposed in time: fast, memory O(T B N)), `hardcoded` (the
sum as an online learner forms it, memory independent of T) and `autodiff` (TensorFlow's gradients, stopped where the
rule demands). BPTT is `adjoint` or `autodiff` with the gradient through the recurrent weights left in.

All functions are pure: arrays in, gradients out.
"""
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from lsnn import State, cut, exp_filter, spike, unroll

FEEDBACK = ('symmetric', 'random', 'adaptive', 'global')
IMPLEMENTATIONS = ('adjoint', 'hardcoded', 'autodiff')
LOSSES = ('cross_entropy', 'squared_error')
RATE_COSTS = ('simple', 'online')


class Weights(NamedTuple):
  """Trainable matrices, or the gradients of the loss with respect to them."""
  w_in: tf.Tensor   # [I, N]
  w_rec: tf.Tensor  # [N, N]
  w_out: tf.Tensor  # [N, K]


class Readout(NamedTuple):
  """Leaky readout and the loss at the outputs."""
  kappa: float             # decay of the filter per step
  normalised: bool = True  # filter scaled by (1 - kappa)
  loss: str = 'cross_entropy'  # of softmax(y), or 'squared_error': half the squared error


class RateCost(NamedTuple):
  """cost * sum_j (f_j - target)^2: 'simple' with f the mean rate, 'online' with f the running mean over the trials in
  sequence, averaged over time and summed over trials."""
  cost: float
  target: float          # spikes per step
  kind: str = 'simple'


class Result(NamedTuple):
  """Gradients and what was seen on the way."""
  gradients: Weights
  task_loss: tf.Tensor   # [] without the rate cost
  rate_loss: tf.Tensor   # []
  y: tf.Tensor           # [T, B, K]
  rate: tf.Tensor        # [N] spikes per step


# ---------------------------------------------------------------------------------------------------------------------
# Learning signals


def feedback_matrix(kind, w_out, rng):
  """Initial feedback matrix B of the learning signals L = error @ B^T (eq. 4).

  Args:
    kind: 'symmetric' (w_out itself), 'random' (N(0,1), fixed), 'adaptive' (N(0,1), then learned, see
      `apply_gradients`), 'global' (one value per output, the same for all neurons).
    w_out: [N, K] array.
    rng: numpy Generator.

  Returns:
    [N, K] array of w_out's dtype.
  """
  if kind not in FEEDBACK:
    raise ValueError(f'feedback must be one of {", ".join(FEEDBACK)}, got {kind!r}')
  if kind == 'symmetric':
    return np.array(w_out)
  shape = (1, w_out.shape[1]) if kind == 'global' else w_out.shape
  return np.broadcast_to(rng.standard_normal(shape), w_out.shape).astype(w_out.dtype)


def apply_gradients(optimizer, gradients, weights, adaptive_feedback=None, readout_decay=0.0):
  """One update of the weights, and of a feedback matrix that learns (Kolen-Pollack).

  Adaptive feedback gets the same gradient as w_out, through optimizer slots of its own; then both shrink by
  (1 - readout_decay), so that their difference decays and B becomes w_out.

  Args:
    optimizer: keras optimizer, built for the variables that follow.
    gradients: Weights.
    weights: Weights of tf.Variables.
    adaptive_feedback: tf.Variable [N, K], or None where the feedback does not learn.
    readout_decay: decay of w_out and B per update.
  """
  if adaptive_feedback is None:
    optimizer.apply(gradients, weights)
    return
  optimizer.apply((*gradients, gradients.w_out), (*weights, adaptive_feedback))
  for variable in (weights.w_out, adaptive_feedback):
    variable.assign(variable * (1 - readout_decay))


def cosine(a, b):
  """Cosine of the angle between two tensors of the same shape; 0 where one of them is 0."""
  return tf.math.divide_no_nan(tf.reduce_sum(a * b), tf.norm(a) * tf.norm(b))


def loss_and_error(kind, y, target, weight):
  """Task loss and its derivative with respect to the outputs y (for classes: the logits).

  Args:
    kind: 'cross_entropy' or 'squared_error'.
    y: [..., B, K].
    target: class probabilities or values, [..., B, K].
    weight: weight of each step in the loss, [..., 1, 1].

  Returns:
    Loss [] and error [..., B, K].
  """
  if kind == 'cross_entropy':
    loss = tf.reduce_sum(-weight * target * tf.nn.log_softmax(y))
    return loss, weight * (tf.nn.softmax(y) - target)
  if kind == 'squared_error':
    return tf.reduce_sum(weight * (y - target) ** 2) / 2, weight * (y - target)
  raise ValueError(f"loss must be 'cross_entropy' or 'squared_error', got {kind!r}")


def running_rate(z):
  """Mean rate so far, the B trials laid end to end. z: [T, B, N]; returns [T, B, N], spikes per step."""
  n_steps, n_batch, n = z.shape
  sequence = tf.reshape(tf.transpose(z, [1, 0, 2]), [n_batch * n_steps, n])
  seen = tf.range(1, n_batch * n_steps + 1, dtype=z.dtype)[:, None]
  return tf.transpose(tf.reshape(tf.cumsum(sequence) / seen, [n_batch, n_steps, n]), [1, 0, 2])


def rate_cost(regularisation, rate, z=None):
  """Cost of the firing rates.

  Args:
    regularisation: RateCost.
    rate: mean rate [N], spikes per step.
    z: spikes [T, B, N], needed by 'online'.

  Returns:
    Loss [].
  """
  if regularisation.kind == 'simple':
    return regularisation.cost * tf.reduce_sum((rate - regularisation.target) ** 2)
  if regularisation.kind == 'online':
    return regularisation.cost / z.shape[0] * tf.reduce_sum((running_rate(z) - regularisation.target) ** 2)
  raise ValueError(f"rate regularisation must be 'simple' or 'online', got {regularisation.kind!r}")


def rate_signal(regularisation, rate, n_steps, n_batch, z=None):
  """d rate_cost / dz, the learning signal that acts on the unfiltered eligibility traces.

  Args:
    regularisation, rate, z: as for `rate_cost`.
    n_steps, n_batch: T and B.

  Returns:
    [N] for 'simple' (the same at all times), [T, B, N] for 'online'.
  """
  cost, target, kind = regularisation
  if kind == 'simple':
    return 2 * cost * (rate - target) / (n_batch * n_steps)
  steps_so_far = tf.reshape(tf.range(1, n_batch * n_steps + 1, dtype=z.dtype), [n_batch, n_steps, 1])
  change = tf.transpose(2 * cost / n_steps * (running_rate(z) - target), [1, 0, 2]) / steps_so_far
  later = tf.cumsum(tf.reshape(change, [n_batch * n_steps, -1]), reverse=True)
  return tf.transpose(tf.reshape(later, [n_batch, n_steps, -1]), [1, 0, 2])


# ---------------------------------------------------------------------------------------------------------------------
# Eligibility traces


class Traces(NamedTuple):
  """Eligibility vectors and traces of the synapses i -> j."""
  e: tf.Tensor      # [..., I, N] eligibility trace
  eps_v: tf.Tensor  # [..., I, 1] (or N, where neurons differ in tau) its fast component: the filtered presynaptic spikes
  eps_a: tf.Tensor  # [..., I, N] its slow component, the factor of the threshold adaptation


def initial_eps(cell, n_batch, n_pre):
  """(eps_v, eps_a) before the first step, zeros."""
  dtype = cell.alpha.dtype
  n_tau = cell.units if cell.alpha.ndim else 1
  return tf.zeros([n_batch, n_pre, n_tau], dtype), tf.zeros([n_batch, n_pre, cell.units], dtype)


def trace_step(cell, eps_v, eps_a, pre, psi):
  """One step of the eligibility traces.

  Args:
    cell: the neurons.
    eps_v, eps_a: eligibility vector, at t-1 and at t respectively; [B, I, 1 or N] and [B, I, N].
    pre: what arrives at the synapses at t: x[t], or z[t-1] for recurrent synapses, [B, I].
    psi: pseudo-derivative at t, [B, N].

  Returns:
    Traces with e[t], eps_v[t], eps_a[t]; and eps_a[t+1].
  """
  psi = psi[:, None, :]                                                # [B, 1, N]
  eps_v = cell.alpha * eps_v + cell.current_gain * pre[:, :, None]     # (22)
  e = psi * (eps_v - cell.beta * eps_a)                                # (25)
  next_eps_a = psi * eps_v + (cell.rho - psi * cell.beta) * eps_a      # (24)
  return Traces(e, eps_v, eps_a), next_eps_a


def eligibility_traces(cell, pre, psi):
  """Eligibility traces over time, for figures and checks; memory O(T B I N).

  Args:
    cell: the neurons.
    pre: what arrives at the synapses, [T, B, I]: x, or z delayed by one step for recurrent synapses.
    psi: pseudo-derivative [T, B, N].

  Returns:
    Traces, each [T, B, I, N] (eps_v: [T, B, I, 1 or N]).
  """
  n_steps, n_batch, n_pre = pre.shape

  def body(t, eps_v, eps_a, records):
    traces, next_eps_a = trace_step(cell, eps_v, eps_a, pre[t], psi[t])
    return t + 1, traces.eps_v, next_eps_a, Traces(*(r.write(t, value) for r, value in zip(records, traces)))

  records = Traces(*(tf.TensorArray(pre.dtype, n_steps) for _ in Traces._fields))
  start = (0, *initial_eps(cell, n_batch, n_pre), records)
  records = tf.while_loop(lambda t, *_: t < n_steps, body, start)[-1]
  return Traces(*(record.stack() for record in records))


# ---------------------------------------------------------------------------------------------------------------------
# The gradient as traces in a forward loop


class RateSums(NamedTuple):
  """What `hardcoded` carries for the rate cost.

  Both kinds of cost depend on spikes that are known only later, but only linearly: the sums that those spikes multiply
  are carried, and put together at the end. u is the step in the sequence of trials, f0 the target rate.
  """
  count: tf.Tensor         # [B, N] spikes n of this trial so far
  e: tf.Tensor             # [B, I, N] sum of e
  gradient: tf.Tensor      # [I, N] sum of (n/u - f0)/u (sum of e so far); this and the following for 'online' only
  e_by_u: tf.Tensor        # [B, I, N] sum of (sum of e so far)/u^2
  u: tf.Tensor             # [B, 1] sum of 1/u^2
  deviation: tf.Tensor     # [B, N] sum of (n/u - f0)/u
  deviation_sq: tf.Tensor  # [B, N] sum of (n/u - f0)^2


def _rate_sums_start(regularisation, n_batch, n_pre, n, dtype):
  zeros = lambda *shape: tf.zeros(shape if regularisation.kind == 'online' else [0], dtype)
  return RateSums(tf.zeros([n_batch, n], dtype), tf.zeros([n_batch, n_pre, n], dtype), zeros(n_pre, n),
                  zeros(n_batch, n_pre, n), zeros(n_batch, 1), zeros(n_batch, n), zeros(n_batch, n))


def _rate_sums_step(regularisation, sums, z, e, u):
  count, e_sum = sums.count + z, sums.e + e
  if regularisation.kind == 'simple':
    return sums._replace(count=count, e=e_sum)
  deviation = count / u - regularisation.target
  return RateSums(count, e_sum, sums.gradient + tf.reduce_sum((deviation / u)[:, None] * e_sum, 0),
                  sums.e_by_u + e_sum / u[:, None] ** 2, sums.u + 1 / u ** 2, sums.deviation + deviation / u,
                  sums.deviation_sq + deviation ** 2)


def _rate_sums_end(regularisation, sums, n_steps):
  """Rate cost [] and its gradient [I, N]."""
  cost, target, kind = regularisation
  if kind == 'simple':
    difference = tf.reduce_sum(sums.count, 0) / (sums.count.shape[0] * n_steps) - target
    signal = 2 * cost * difference / (sums.count.shape[0] * n_steps)
    return cost * tf.reduce_sum(difference ** 2), signal * tf.reduce_sum(sums.e, 0)
  earlier = tf.cumsum(sums.count, exclusive=True)                                         # [B, N] spikes of earlier trials
  later = tf.cumsum(sums.deviation + earlier * sums.u, exclusive=True, reverse=True)      # [B, N] later trials' signal
  gradient = sums.gradient + tf.reduce_sum(earlier[:, None] * sums.e_by_u + later[:, None] * sums.e, 0)
  square = tf.reduce_sum(earlier ** 2 * sums.u + 2 * earlier * sums.deviation + sums.deviation_sq)
  return cost / n_steps * square, 2 * cost / n_steps * gradient


def hardcoded(cell, readout, regularisation, x, target, weight, weights, feedback):
  """E-prop's gradient formed online: network, traces and gradient advance together, one step at a time.

  Memory O(B (I + N) N), independent of T.

  Args:
    cell: the neurons.
    readout: Readout.
    regularisation: RateCost.
    x: inputs [T, B, I].
    target: [T, B, K].
    weight: weight of each step in the task loss, [T, 1, 1].
    weights: Weights.
    feedback: B of eq. (4), [N, K].

  Returns:
    Result.
  """
  n_steps, n_batch, n_in = x.shape
  dtype = weights.w_in.dtype
  n, n_out = weights.w_out.shape
  n_pre = n_in + n  # the rows of w_in and w_rec together
  gain = 1 - readout.kappa if readout.normalised else 1
  w_rec = tf.linalg.set_diag(weights.w_rec, tf.zeros(n, dtype))
  earlier_steps = tf.range(n_batch, dtype=dtype)[:, None] * n_steps

  def body(t, state, eps_v, eps_a, z_bar, e_bar, gradient, g_out, loss, ys, sums):
    x_t = tf.cast(x[t], dtype)
    pre = tf.concat([x_t, state.z], 1)
    h, state = cell.step(x_t @ weights.w_in + state.z @ w_rec, state.z, state)
    traces, eps_a = trace_step(cell, eps_v, eps_a, pre, cell.psi(h))
    z_bar = readout.kappa * z_bar + gain * state.z
    e_bar = readout.kappa * e_bar + gain * traces.e
    y = z_bar @ weights.w_out
    step_loss, error = loss_and_error(readout.loss, y, target[t], weight[t])
    learning_signal = tf.matmul(error, feedback, transpose_b=True)                 # (4)
    gradient += tf.reduce_sum(learning_signal[:, None] * e_bar, 0)                 # (1), (28)
    g_out += tf.matmul(z_bar, error, transpose_a=True)
    sums = _rate_sums_step(regularisation, sums, state.z, traces.e, earlier_steps + tf.cast(t + 1, dtype))
    return t + 1, state, traces.eps_v, eps_a, z_bar, e_bar, gradient, g_out, loss + step_loss, ys.write(t, y), sums

  start = (0, State(*cell.get_initial_state(n_batch)), *initial_eps(cell, n_batch, n_pre), tf.zeros([n_batch, n], dtype),
           tf.zeros([n_batch, n_pre, n], dtype), tf.zeros([n_pre, n], dtype), tf.zeros([n, n_out], dtype),
           tf.zeros([], dtype), tf.TensorArray(dtype, n_steps), _rate_sums_start(regularisation, n_batch, n_pre, n, dtype))
  end = tf.while_loop(lambda t, *_: t < n_steps, body, start)
  gradient, g_out, task_loss, ys, sums = end[6:]
  rate_loss, rate_gradient = _rate_sums_end(regularisation, sums, n_steps)
  g_in, g_rec = tf.split(gradient + rate_gradient, [n_in, n])
  g_rec = tf.linalg.set_diag(g_rec, tf.zeros(n, dtype))
  rate = tf.reduce_sum(sums.count, 0) / (n_batch * n_steps)
  return Result(Weights(g_in, g_rec, g_out), task_loss, rate_loss, ys.stack(), rate)


# ---------------------------------------------------------------------------------------------------------------------
# The gradient by automatic differentiation


def broadcast_readout(z_bar, w_out, feedback):
  """z_bar @ w_out, whose gradient reaches z_bar through the feedback matrix instead of w_out (eq. 4).

  Args:
    z_bar: [T, B, N].
    w_out, feedback: [N, K].

  Returns:
    y [T, B, K].
  """

  @tf.custom_gradient
  def product(z_bar, w_out):
    def gradient(error):
      flat = lambda m: tf.reshape(m, [-1, m.shape[-1]])
      return tf.matmul(error, feedback, transpose_b=True), tf.matmul(flat(z_bar), flat(error), transpose_a=True)
    return z_bar @ w_out, gradient

  return product(z_bar, w_out)


def autodiff(cell, readout, regularisation, x, target, weight, weights, feedback=None):
  """The gradient by TensorFlow's automatic differentiation. Slow and large; not to be compiled with XLA.

  Args:
    As `hardcoded`; with feedback None the gradient is that of BPTT.

  Returns:
    Result.
  """
  recurrent = feedback is None
  with tf.GradientTape() as tape:
    tape.watch(weights)
    z = unroll(cell, x, weights.w_in, weights.w_rec, stop_z_gradients=not recurrent).z
    z_bar = exp_filter(z, readout.kappa, readout.normalised)
    y = z_bar @ weights.w_out if recurrent else broadcast_readout(z_bar, weights.w_out, feedback)
    task_loss, _ = loss_and_error(readout.loss, y, target, weight)
    rate = tf.reduce_mean(z, [0, 1])
    rate_loss = rate_cost(regularisation, rate, z)
    loss = task_loss + rate_loss
  return Result(Weights(*tape.gradient(loss, weights)), task_loss, rate_loss, y, rate)


# ---------------------------------------------------------------------------------------------------------------------
# The gradient in its adjoint form


def adjoint_scan(cell, psi, signal, after=None, w_rec=None, reset=None):
  """The backward scan in which e-prop's sum over traces, transposed in time, becomes one adjoint per neuron.

    s[t]   = signal[t] + lam[t+1]                  adjoint of z
    lam[t] = rho lam[t+1] - beta psi[t] s[t]       adjoint of a, eqs. (24), (25) transposed
    cb[t]  = alpha cb[t+1] + psi[t] s[t]           adjoint of v, eq. (22) transposed

  Args:
    cell: the neurons.
    psi: pseudo-derivative [T, B, N].
    signal: function t -> learning signal [B, N] after the backward filter of the readout, rate signal included.
    after: (lam, cb) at the step after the last one, default zeros.
    w_rec: [N, N] with diagonal 0: adds the gradient through recurrence and reset, which gives BPTT.
    reset: optional [T, B] as in lsnn.unroll; the recursions are cut there.

  Returns:
    The adjoint of the input currents, current_gain * cb [T, B, N], and (lam, cb) to hand to the scan of earlier steps.
  """
  n_steps, n_batch, n = psi.shape
  after = (tf.zeros([n_batch, n], psi.dtype),) * 2 if after is None else after

  def body(step, lam, cb, record):
    t = n_steps - 1 - step
    s = signal(t) + lam if cell.adapts else signal(t)
    if w_rec is not None:
      s += tf.matmul(cell.current_gain * cb, w_rec, transpose_b=True) - cell.thr * cb
    psi_s = psi[t] * s
    if cell.adapts:
      lam = cell.rho * lam - cell.beta * psi_s
    cb = cell.alpha * cb + psi_s
    record = record.write(t, cell.current_gain * cb)
    if reset is not None:
      lam, cb = cut((lam, cb), reset[t])
    return step + 1, lam, cb, record

  record = tf.TensorArray(psi.dtype, n_steps, element_shape=[n_batch, n])
  _, lam, cb, record = tf.while_loop(lambda step, *_: step < n_steps, body, (0, *after, record))
  return record.stack(), (lam, cb)


def presynaptic_product(pre, post):
  """sum_t pre[t]^T post[t] over trials and time: [T, B, I] and [T, B, N] give [I, N]."""
  return tf.matmul(tf.reshape(pre, [-1, pre.shape[-1]]), tf.reshape(post, [-1, post.shape[-1]]), transpose_a=True)


def chunk_length(n_steps, longest=32):
  """The longest divisor of n_steps up to `longest`; n_steps itself where only tiny ones exist."""
  length = max(d for d in range(1, longest + 1) if n_steps % d == 0)
  return length if length >= 8 else n_steps


def forward(cell, x, weights):
  """Simulation in chunks of time that stay in the processor's cache.

  Args:
    cell: the neurons.
    x: inputs [T, B, I].
    weights: Weights.

  Returns:
    h [T, B, N] (see lsnn.py), z @ w_out [T, B, K], spike count [N].
  """
  n_steps, n_batch, n_in = x.shape
  length = chunk_length(n_steps)
  chunks = tf.reshape(x, [-1, length, n_batch, n_in])
  dtype = weights.w_in.dtype
  n, n_out = weights.w_out.shape

  def body(k, state, count, hs, outs):
    run = unroll(cell, chunks[k], weights.w_in, weights.w_rec, state=state)
    return (k + 1, run.state, count + tf.reduce_sum(run.z, [0, 1]), hs.write(k, run.h),
            outs.write(k, run.z @ weights.w_out))

  start = (0, State(*cell.get_initial_state(n_batch)), tf.zeros([n], dtype),
           tf.TensorArray(dtype, len(chunks), element_shape=[length, n_batch, n]),
           tf.TensorArray(dtype, len(chunks), element_shape=[length, n_batch, n_out]))
  _, _, count, hs, outs = tf.while_loop(lambda k, *_: k < len(chunks), body, start)
  return tf.reshape(hs.stack(), [n_steps, n_batch, n]), tf.reshape(outs.stack(), [n_steps, n_batch, n_out]), count


def backward(cell, x, h, error_bar, feedback, rate_term, w_rec=None):
  """The gradient by the adjoint scan, in the same chunks of time as `forward`.

  Args:
    cell: the neurons.
    x: inputs [T, B, I].
    h: from `forward`, [T, B, N].
    error_bar: error at the outputs after the readout's filter run backwards, [T, B, K].
    feedback: B of eq. (4), [N, K]; w_out for BPTT.
    rate_term: from `rate_signal`, [N] or [T, B, N].
    w_rec: [N, N] for BPTT, None for e-prop.

  Returns:
    Weights, the gradients.
  """
  n_steps, n_batch, n_in = x.shape
  length = chunk_length(n_steps)
  in_chunks = lambda array: tf.reshape(array, [-1, length, *array.shape[1:]])
  xs, hs, errors = in_chunks(x), in_chunks(h), in_chunks(error_bar)
  rate_terms = in_chunks(rate_term) if rate_term.shape.rank == 3 else None
  n, n_out = feedback.shape
  w_rec = None if w_rec is None else tf.linalg.set_diag(w_rec, tf.zeros(n, h.dtype))

  def body(step, after, g_in, g_rec, g_out):
    k = len(xs) - 1 - step
    h, error = hs[k], errors[k]
    rates = tf.broadcast_to(rate_term, [length, *rate_term.shape]) if rate_terms is None else rate_terms[k]
    signal = lambda t: tf.matmul(error[t], feedback, transpose_b=True) + rates[t]             # (4)
    post, after = adjoint_scan(cell, cell.psi(h), signal, after, w_rec)
    z = spike(h)
    before = tf.where(k > 0, spike(hs[tf.maximum(k - 1, 0)][-1]), tf.zeros([n_batch, n], h.dtype))
    g_in += presynaptic_product(tf.cast(xs[k], h.dtype), post)
    g_rec += presynaptic_product(tf.concat([before[None], z[:-1]], 0), post)
    g_out += presynaptic_product(z, error)
    return step + 1, after, g_in, g_rec, g_out

  zeros = lambda *shape: tf.zeros(shape, h.dtype)
  start = (0, (zeros(n_batch, n),) * 2, zeros(n_in, n), zeros(n, n), zeros(n, n_out))
  _, _, g_in, g_rec, g_out = tf.while_loop(lambda step, *_: step < len(xs), body, start)
  return Weights(g_in, tf.linalg.set_diag(g_rec, tf.zeros(n, h.dtype)), g_out)


class Learner:
  """Loss and gradient of a network with a leaky readout, by e-prop or BPTT; a function with its compiled parts.

  Args:
    cell: the neurons (lsnn.ALIF or lsnn.LIF).
    readout: Readout.
    regularisation: RateCost.
    bptt: BPTT instead of e-prop.
    impl: one of IMPLEMENTATIONS.
    n_shards: parts of the batch that are simulated side by side, one per processor core.

  Raises:
    ValueError: an argument is none of the named ones, or BPTT was asked for in its hardcoded form, which e-prop alone has.
  """

  def __init__(self, cell, readout, regularisation, bptt=False, impl='adjoint', n_shards=1):
    if impl not in IMPLEMENTATIONS:
      raise ValueError(f'the implementation must be one of {", ".join(IMPLEMENTATIONS)}, got {impl!r}')
    if readout.loss not in LOSSES or regularisation.kind not in RATE_COSTS:
      raise ValueError(f'the loss must be one of {", ".join(LOSSES)}, the rate cost one of {", ".join(RATE_COSTS)}; '
                       f'got {readout.loss!r}, {regularisation.kind!r}')
    if n_shards < 1:
      raise ValueError(f'n_shards must be at least 1, got {n_shards}')
    if bptt and impl == 'hardcoded':
      raise ValueError('BPTT has no hardcoded form: traces that run forward in time are what e-prop has and BPTT lacks')
    self.cell, self.readout, self.regularisation = cell, readout, regularisation
    self.bptt, self.impl, self.n_shards = bptt, impl, n_shards
    self._forward = tf.function(lambda *a: forward(cell, *a), jit_compile=True)
    self._backward = tf.function(lambda *a: backward(cell, *a), jit_compile=True)
    self._hardcoded = tf.function(lambda *a: hardcoded(cell, readout, regularisation, *a), jit_compile=True)
    self._filter = tf.function(lambda x: exp_filter(x, readout.kappa, readout.normalised), jit_compile=True)
    self._filter_back = tf.function(lambda x: exp_filter(x, readout.kappa, readout.normalised, reverse=True),
                                    jit_compile=True)

  @tf.function
  def __call__(self, x, target, weight, weights, feedback):
    """Gradient, loss and outputs for one batch.

    Args:
      x: inputs [T, B, I], any numeric dtype.
      target: class probabilities or values, [T or 1, B or 1, K].
      weight: weight of each step in the task loss, [T, 1, 1].
      weights: Weights.
      feedback: B of eq. (4), [N, K]; ignored by BPTT.

    Returns:
      Result.
    """
    n_steps, n_batch, _ = x.shape
    target = tf.broadcast_to(target, [n_steps, n_batch, weights.w_out.shape[1]])
    if self.impl == 'hardcoded':
      return self._hardcoded(x, target, weight, weights, feedback)
    if self.impl == 'autodiff':
      return autodiff(self.cell, self.readout, self.regularisation, x, target, weight, weights,
                      None if self.bptt else feedback)
    xs, hs, y, rate = self._simulate(x, weights)
    task_loss, error = loss_and_error(self.readout.loss, y, target, weight)
    z = spike(tf.concat(hs, 1)) if self.regularisation.kind == 'online' else None
    rate_term = rate_signal(self.regularisation, rate, n_steps, n_batch, z)
    error_bars = self._split(self._filter_back(error))
    rate_terms = [rate_term] * len(xs) if z is None else self._split(rate_term)
    rule = (weights.w_out, weights.w_rec) if self.bptt else (feedback, None)
    parts = [self._backward(x, h, error_bar, rule[0], rates, rule[1])
             for x, h, error_bar, rates in zip(xs, hs, error_bars, rate_terms)]
    gradients = Weights(*(tf.add_n(part) for part in zip(*parts)))
    return Result(gradients, task_loss, rate_cost(self.regularisation, rate, z), y, rate)

  @tf.function
  def evaluate(self, x, target, weight, weights):
    """Task loss [] and outputs y [T, B, K] without learning; arguments as for `__call__`."""
    y = self._simulate(x, weights)[2]
    return loss_and_error(self.readout.loss, y, tf.broadcast_to(target, y.shape), weight)[0], y

  def _split(self, array):
    n_batch = array.shape[1]
    n_shards = min(self.n_shards, n_batch)
    return tf.split(array, [n_batch // n_shards + (k < n_batch % n_shards) for k in range(n_shards)], axis=1)

  def _simulate(self, x, weights):
    xs = self._split(x)
    hs, outs, counts = zip(*(self._forward(x, weights) for x in xs))
    y = self._filter(tf.concat(outs, 1))
    return xs, hs, y, tf.add_n(counts) / (x.shape[0] * x.shape[1])

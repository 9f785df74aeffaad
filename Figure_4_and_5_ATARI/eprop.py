"""The learning rule e-prop for a layer of any neurons: its gradient in three computations, and BPTT.

Notation as in lsnn.py; equation numbers are those of the paper. E-prop's gradient is, eqs. (1), (4) and (28),

  dE/dw_ij = sum_t L_j[t] e_ij[t]

with the eligibility trace e of synapse i -> j, that runs forward in time, and the learning signal L = dE/dz on the paths that
leave the layer. A readout that filters spikes, y = F(z) @ w_out, does to errors on their way back what it did to spikes, in
reverse: L = F_reverse(y - y*) @ B^T; the sum is the same with the filter on the traces, as the paper writes it: e_bar = F(e).

  adjoint     that sum transposed in time: one adjoint per neuron instead of a trace per synapse; fast, memory O(T B N)
  hardcoded   the sum as it stands, with traces that run forward in time
  autodiff    TensorFlow's gradients, stopped where the rule demands

All three give the same numbers for every class of neurons in lsnn.py. BPTT is `adjoint` or `autodiff` with the gradient
through recurrent weights and reset left in. All functions are pure: arrays in, gradients out.
"""
from typing import Any, NamedTuple, Optional

import numpy as np
import tensorflow as tf

from lsnn import cut, without_autapses

FEEDBACK = ('symmetric', 'random', 'adaptive', 'global')
IMPLEMENTATIONS = ('adjoint', 'hardcoded', 'autodiff')

# ---------------------------------------------------------------------------------------------------------------------
# Learning signals


class LearningSignal(NamedTuple):
  """L[t] = error[t // hold] @ feedback^T + direct: dE/dz on the paths that leave a layer, eq. (4).

  The part that is broadcast from K outputs is kept as its factors, which are smaller than L. Any part may be missing.
  """
  error: Optional[tf.Tensor] = None     # [T / hold, B, K] at the outputs, behind the reverse filter of the readout
  feedback: Optional[tf.Tensor] = None  # [N, K], B of eq. (4)
  direct: Optional[tf.Tensor] = None    # [N] the same at all steps, or [T / hold, B, N]
  hold: int = 1                         # number of steps for which each entry of `error` and `direct` stands

  def at(self, t):
    """L[t], [B, N]."""
    k = t if self.hold == 1 else t // self.hold
    terms = [] if self.error is None else [tf.matmul(self.error[k], self.feedback, transpose_b=True)]      # (4)
    if self.direct is not None:
      terms.append(self.direct if self.direct.shape.rank == 1 else self.direct[k])
    return terms[0] + terms[1] if len(terms) == 2 else terms[0]

  def over_time(self, z):
    """L of all steps, shape of the spikes z [T, B, N]."""
    signal = tf.zeros_like(z[::self.hold])
    if self.error is not None:
      signal += tf.matmul(self.error, self.feedback, transpose_b=True)                                     # (4)
    return hold(signal if self.direct is None else signal + self.direct, self.hold)


def feedback_matrix(kind, w_out, rng):
  """Initial feedback matrix B of the learning signals L = error @ B^T (eq. 4).

  Args:
    kind: 'symmetric' (w_out itself), 'random' (N(0,1), fixed), 'adaptive' (N(0,1), then learned, see
      `kolen_pollack`), 'global' (one value per output, the same for all neurons).
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


def kolen_pollack(w_out, feedback, readout_decay):
  """Second half of an update of adaptive feedback: both matrices shrink by (1 - readout_decay).

  In the first half the optimizer gave both the gradient of w_out. So their difference decays, and B becomes w_out.

  Args:
    w_out, feedback: tf.Variables [N, K].
    readout_decay: per update.
  """
  for variable in (w_out, feedback):
    variable.assign(variable * (1 - readout_decay))


def broadcast_readout(z_bar, w_out, feedback):
  """z_bar @ w_out, whose gradient reaches z_bar through the feedback matrix instead of w_out (eq. 4).

  Args:
    z_bar: [..., N], of rank 2 or more.
    w_out, feedback: [N, K].

  Returns:
    y [..., K].
  """

  @tf.custom_gradient
  def product(z_bar, w_out):
    gradient = lambda error: (tf.matmul(error, feedback, transpose_b=True), presynaptic_product(z_bar, error))
    return z_bar @ w_out, gradient

  return product(z_bar, w_out)


def presynaptic_product(pre, post):
  """sum pre^T post over all dimensions but the last: [..., I] and [..., N] give [I, N]."""
  return tf.matmul(tf.reshape(pre, [-1, pre.shape[-1]]), tf.reshape(post, [-1, post.shape[-1]]), transpose_a=True)


def cosine(a, b):
  """Cosine of the angle between two tensors of the same shape; 0 where one of them is 0."""
  return tf.math.divide_no_nan(tf.reduce_sum(a * b), tf.norm(a) * tf.norm(b))


# ---------------------------------------------------------------------------------------------------------------------
# A layer


class Weights(NamedTuple):
  """Synapses of a layer, or the gradients of the loss with respect to them."""
  w_in: tf.Tensor                    # [I, N]
  w_rec: Optional[tf.Tensor] = None  # [N, N], None where the layer is not recurrent; the diagonal is ignored


class Run(NamedTuple):
  """A simulation."""
  z: tf.Tensor            # spikes [T, B, N]; or what `Layer.forward` reads out instead, [T, B, K]
  memory: Any             # what the neurons remember of each step, arrays [T, B, N]
  state: Any              # the neurons' State after the last step
  states: Any = ()        # the neurons' State after each step, arrays [T, B, N], if asked for
  rate: Any = None        # [N] mean spikes per step (`Layer.forward` only)


class Gradient(NamedTuple):
  """What `Layer.gradient` returns."""
  weights: Weights
  w_read: Optional[tf.Tensor]  # [N, K] sum_t z[t]^T error[t], where the learning signal has an error
  x: Optional[tf.Tensor]       # dE/dx [T / n_repeat, B, I], if asked for


def chunk_length(n_steps, longest=32):
  """The longest divisor of n_steps up to `longest`; n_steps itself where only tiny ones exist."""
  length = max(d for d in range(1, longest + 1) if n_steps % d == 0)
  return length if length >= 8 else n_steps


def one_step_later(z, first=None):
  """z [T, B, N] moved by a step, as recurrent synapses see it; `first` [B, N] stands in front, default 0."""
  return tf.concat([tf.zeros_like(z[:1]) if first is None else first[None], z[:-1]], 0)


class Layer:
  """Recurrently connected neurons that learn by e-prop or BPTT. Its functions are pure, for use inside a tf.function.

  Args:
    cell: the neurons, lsnn.Neuron.
    bptt: BPTT instead of e-prop.
    impl: one of IMPLEMENTATIONS.
    n_repeat: number of steps for which each input is held: x is [T / n_repeat, B, I], everything else has T steps.
    truncation: number of steps after which no gradient goes further back in time; -1: none (`adjoint` only).

  Raises:
    ValueError: unknown implementation, or one that BPTT or truncation do not have.
  """

  def __init__(self, cell, bptt=False, impl='adjoint', n_repeat=1, truncation=-1):
    if impl not in IMPLEMENTATIONS:
      raise ValueError(f'the implementation must be one of {", ".join(IMPLEMENTATIONS)}, got {impl!r}')
    if bptt and impl == 'hardcoded':
      raise ValueError('BPTT has no hardcoded form: traces that run forward in time are what e-prop has and BPTT lacks')
    if truncation > 0 and impl != 'adjoint':
      raise ValueError('truncation in time is there for the adjoint implementation only')
    self.cell, self.bptt, self.impl, self.n_repeat, self.truncation = cell, bptt, impl, n_repeat, truncation

  def simulate(self, x, weights, state=None, reset=None, dz=None, stop_z_gradients=False, record_states=False):
    """Simulates a batch of networks over time. Differentiable.

    Args:
      x: inputs [T / n_repeat, B, I], any numeric dtype.
      weights: Weights, dtype of the neurons.
      state: State to start from, default rest.
      reset: optional [T, B]; where 1, the state is zeroed before the step.
      dz: optional zeros [T, B, N], added to the spikes where these act on the network (recurrence, reset, readout) but
        not where they act on their own neuron: d loss / d dz is the dE/dz of eq. (1).
      stop_z_gradients: let no gradient pass from spikes to other neurons and the reset, so that autodiff gives e-prop.
      record_states: return all States.

    Returns:
      Run.
    """
    cell, (n_frames, n_batch, n_in), dtype = self.cell, x.shape, weights.w_in.dtype
    n_steps = self.n_repeat * n_frames
    w_rec = None if weights.w_rec is None else without_autapses(weights.w_rec)
    reset, dz = (None if array is None else tf.convert_to_tensor(array) for array in (reset, dz))
    # One product for all inputs: x @ w_in does not depend on the state.
    current = tf.reshape(tf.reshape(tf.cast(x, dtype), [-1, n_in]) @ weights.w_in, [n_frames, n_batch, cell.units])
    current = tf.TensorArray(dtype, n_frames, element_shape=current.shape[1:]).unstack(current)
    state = cell.State(*cell.get_initial_state(n_batch)) if state is None else state
    extra = tf.zeros_like(state.z)

    def body(t, before, extra, records):
      if reset is not None:
        before, extra = cut((before, extra), reset[t])
      z_network = (tf.stop_gradient(before.z) if stop_z_gradients else before.z) + extra
      arriving = current.read(t // self.n_repeat)
      arriving = arriving if w_rec is None else arriving + z_network @ w_rec
      after = cell.step(arriving, z_network, before)
      seen = cell.remember(arriving, before, after), after if record_states else ()
      records = [record.write(t, value) for record, value in zip(records, tf.nest.flatten(seen))]
      return t + 1, after, extra if dz is None else dz[t], records

    like = cell.remember(extra, state, state), state if record_states else ()
    records = [tf.TensorArray(dtype, n_steps, element_shape=value.shape) for value in tf.nest.flatten(like)]
    _, state, _, records = tf.while_loop(lambda t, *_: t < n_steps, body, (0, state, extra, records))
    memory, states = tf.nest.pack_sequence_as(like, [record.stack() for record in records])
    z = cell.spikes(memory)
    return Run(z if dz is None else z + dz, memory, state, states)

  def forward(self, x, weights, w_read=None):
    """Simulates from rest, in chunks of time that stay in the processor's cache.

    Args:
      x, weights: as for `simulate`.
      w_read: optional [N, K]: read out z @ w_read instead of z.

    Returns:
      Run, with the mean rates.
    """
    n_frames, n_batch, n_in = x.shape
    length = chunk_length(n_frames)
    chunks = tf.reshape(x, [-1, length, n_batch, n_in])
    whole = lambda array: tf.reshape(array, [-1, *array.shape[2:]])

    def body(k, state, count, records):
      run = self.simulate(chunks[k], weights, state)
      out = run.z if w_read is None else run.z @ w_read
      records = [record.write(k, value) for record, value in zip(records, tf.nest.flatten((run.memory, out)))]
      return k + 1, run.state, count + tf.reduce_sum(run.z, [0, 1]), records

    rest = self.cell.State(*self.cell.get_initial_state(n_batch))
    memory = self.cell.remember(rest.z, rest, rest)
    like = memory, rest.z if w_read is None else rest.z @ w_read
    records = [tf.TensorArray(rest.z.dtype, len(chunks), element_shape=[length * self.n_repeat, *value.shape])
               for value in tf.nest.flatten(like)]
    start = 0, rest, tf.zeros_like(rest.z[0]), records
    _, state, count, records = tf.while_loop(lambda k, *_: k < len(chunks), body, start)
    memory, out = tf.nest.pack_sequence_as(like, [whole(record.stack()) for record in records])
    return Run(out, memory, state, rate=count / (n_frames * self.n_repeat * n_batch))

  def gradient(self, x, weights, memory, signal, input_gradient=False):
    """The gradient for a learning signal.

    Args:
      x, weights: as for `simulate`.
      memory: of the Run that `forward` or `simulate` returned.
      signal: LearningSignal.
      input_gradient: return dE/dx too (not for `hardcoded`).

    Returns:
      Gradient.

    Raises:
      ValueError: dE/dx was asked of the hardcoded form.
    """
    if self.impl == 'hardcoded':
      if input_gradient:
        raise ValueError('the hardcoded form gives no gradient of the inputs: e-prop needs none')
      return self._hardcoded(x, weights, memory, signal)
    return {'adjoint': self._adjoint, 'autodiff': self._autodiff}[self.impl](x, weights, memory, signal, input_gradient)

  def adjoint_scan(self, memory, signal, w_rec=None, after=None, reset=None):
    """The backward scan in which e-prop's sum over traces, transposed in time, becomes one adjoint per neuron.

    Args:
      memory: arrays [T, B, N] of a Run.
      signal: function of t that gives L[t], [B, N].
      w_rec: [N, N] with diagonal 0, for BPTT.
      after: what this function returned of the steps that follow, default the end of time.
      reset: optional [T, B] as for `simulate`; the recursions are cut there.

    Returns:
      dE/d current [T, B, N], and what to hand to the scan of earlier steps.
    """
    n_steps, n_batch, n = tf.nest.flatten(memory)[0].shape
    dtype = tf.nest.flatten(memory)[0].dtype
    if after is None:
      after = tf.zeros([n_batch, n], dtype), self.cell.initial_adjoint(n_batch)

    def body(step, from_network, adjoint, record):
      t = n_steps - 1 - step
      of_step = tf.nest.map_structure(lambda array: array[t], memory)
      post, of_reset, adjoint = self.cell.adjoint_step(of_step, signal(t) + from_network if self.bptt else signal(t), adjoint)
      if self.bptt:
        from_network = of_reset if w_rec is None else of_reset + tf.matmul(post, w_rec, transpose_b=True)
      record = record.write(t, post)
      if reset is not None:
        from_network, adjoint = cut((from_network, adjoint), reset[t])
      return step + 1, from_network, adjoint, record

    record = tf.TensorArray(dtype, n_steps, element_shape=[n_batch, n])
    _, *after, record = tf.while_loop(lambda step, *_: step < n_steps, body, (0, *after, record))
    return record.stack(), tuple(after)

  def _adjoint(self, x, weights, memory, signal, input_gradient):
    n_frames, n_batch, n_in = x.shape
    length, dtype = chunk_length(n_frames), weights.w_in.dtype
    n_chunks, n_steps = n_frames // length, length * self.n_repeat
    in_chunks = lambda array: tf.reshape(array, [n_chunks, -1, *array.shape[1:]])
    xs, memories = in_chunks(x), tf.nest.map_structure(in_chunks, memory)
    errors = None if signal.error is None else in_chunks(signal.error)
    w_rec = None if weights.w_rec is None else without_autapses(weights.w_rec)
    cuts = None
    if self.truncation > 0:
      at_cut = tf.cast(tf.range(n_chunks * n_steps) % self.truncation == 0, dtype)
      cuts = in_chunks(tf.repeat(at_cut[:, None], n_batch, 1))

    def body(step, after, sums, dxs):
      k = n_chunks - 1 - step
      of_chunk = tf.nest.map_structure(lambda array: array[k], memories)
      post, after = self.adjoint_scan(of_chunk, lambda t: signal.at(k * n_steps + t), w_rec, after,
                                      None if cuts is None else cuts[k])
      z = self.cell.spikes(of_chunk)
      of_frames = tf.reduce_sum(tf.reshape(post, [length, -1, *post.shape[1:]]), 1) if self.n_repeat > 1 else post
      products = [presynaptic_product(tf.cast(xs[k], dtype), of_frames)]
      if w_rec is not None:
        last = self.cell.spikes(tf.nest.map_structure(lambda array: array[tf.maximum(k - 1, 0), -1], memories))
        products.append(presynaptic_product(one_step_later(z, tf.where(k > 0, last, 0)), post))
      if errors is not None:
        products.append(presynaptic_product(z, hold(errors[k], signal.hold)))
      if input_gradient:
        dxs = dxs.write(k, tf.matmul(of_frames, weights.w_in, transpose_b=True))
      return step + 1, after, [a + b for a, b in zip(sums, products)], dxs

    n = self.cell.units
    shapes = [[n_in, n]] + [[n, n]] * (w_rec is not None) + ([] if errors is None else [[n, errors.shape[-1]]])
    start = (tf.zeros([n_batch, n], dtype), self.cell.initial_adjoint(n_batch)), [tf.zeros(shape, dtype) for shape in shapes]
    dxs = tf.TensorArray(dtype, n_chunks, element_shape=[length, n_batch, n_in])
    _, _, sums, dxs = tf.while_loop(lambda step, *_: step < n_chunks, body, (0, *start, dxs))
    g_in, *others = sums
    g_rec = None if w_rec is None else without_autapses(others.pop(0))
    dx = tf.reshape(dxs.stack(), x.shape) if input_gradient else None
    return Gradient(Weights(g_in, g_rec), others.pop() if others else None, dx)

  def _hardcoded(self, x, weights, memory, signal):
    """Traces that run forward in time; memory O(B (I + N) N) beside the arguments, less as blocks of trials take turns."""
    n_in, n_steps, n = x.shape[-1], self.n_repeat * x.shape[0], self.cell.units
    z = self.cell.spikes(memory)
    before = one_step_later(z)

    def body(t, eps, gradient):
      pre = tf.cast(x[t // self.n_repeat], z.dtype)
      pre = pre if weights.w_rec is None else tf.concat([pre, before[t]], 1)
      e, eps = self.cell.trace_step(tf.nest.map_structure(lambda array: array[t], memory), pre, eps)
      return t + 1, eps, gradient + tf.einsum('bj,bij->ij', signal.at(t), e)                              # (1)

    n_pre = n_in + (0 if weights.w_rec is None else n)
    start = 0, self.cell.initial_eps(x.shape[1], n_pre), tf.zeros([n_pre, n], z.dtype)
    gradient = tf.while_loop(lambda t, *_: t < n_steps, body, start)[-1]
    g_read = None if signal.error is None else presynaptic_product(z, hold(signal.error, signal.hold))
    g_rec = None if weights.w_rec is None else without_autapses(gradient[n_in:])
    return Gradient(Weights(gradient[:n_in], g_rec), g_read, None)

  def _autodiff(self, x, weights, memory, signal, input_gradient):
    """Slow and large; not to be compiled with XLA."""
    del memory  # it simulates once more
    x = tf.cast(x, weights.w_in.dtype)
    sources = [x, *(w for w in weights if w is not None)]
    with tf.GradientTape() as tape:
      tape.watch(sources)
      z = self.simulate(x, weights, stop_z_gradients=not self.bptt).z
    dx, *gradients = tape.gradient(z, sources, signal.over_time(z))
    g_read = None if signal.error is None else presynaptic_product(z, hold(signal.error, signal.hold))
    return Gradient(Weights(*gradients), g_read, dx if input_gradient else None)


def hold(array, n):
  """Repeats every entry of [T, ...] n times: [n T, ...]."""
  return array if n == 1 else tf.repeat(array, n, 0)


def eligibility_traces(cell, pre, memory):
  """Eligibility traces over time, for figures and checks; memory O(T B I N).

  Args:
    cell: the neurons.
    pre: what arrives at the synapses, [T, B, I]: x, or z delayed by one step for recurrent synapses.
    memory: of a Run, arrays [T, B, N].

  Returns:
    e [T, B, I, N]; the eligibility vectors that each step handed to the next, arrays [T, B, I, N].
  """
  n_steps, n_batch, n_pre = pre.shape

  def body(t, eps, records):
    e, eps = cell.trace_step(tf.nest.map_structure(lambda array: array[t], memory), pre[t], eps)
    return t + 1, eps, [record.write(t, value) for record, value in zip(records, (e, *eps))]

  eps = cell.initial_eps(n_batch, n_pre)
  records = [tf.TensorArray(pre.dtype, n_steps) for _ in range(1 + len(eps))]
  e, *vectors = (record.stack() for record in tf.while_loop(lambda t, *_: t < n_steps, body, (0, eps, records))[-1])
  return e, type(eps)(*vectors)

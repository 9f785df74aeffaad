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

from lsnn import at, cut, scan, without_autapses

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
    """L[t], [B, N]; or [N] where it is the same for all trials."""
    k = t if self.hold == 1 else t // self.hold
    direct = 0 if self.direct is None else self.direct if self.direct.shape.rank == 1 else self.direct[k]
    return direct if self.error is None else tf.matmul(self.error[k], self.feedback, transpose_b=True) + direct  # (4)

  def over_time(self, z):
    """L of all steps, shape of the spikes z [T, B, N]."""
    signal = tf.zeros_like(z[::self.hold])
    if self.error is not None:
      signal += tf.matmul(self.error, self.feedback, transpose_b=True)                                             # (4)
    return hold(signal if self.direct is None else signal + self.direct, self.hold)


def feedback_matrix(kind, w_out, rng):
  """Initial feedback matrix B of the learning signals L = error @ B^T (eq. 4).

  Args:
    kind: 'symmetric' (w_out itself), 'random' (N(0,1), fixed), 'adaptive' (N(0,1), then learned, see `kolen_pollack`),
      'global' (one value per output, the same for all neurons).
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
  """Second half of an update of adaptive feedback: the tf.Variables w_out and B [N, K] shrink by (1 - readout_decay).

  In the first half the optimizer gave both the gradient of w_out. So their difference decays, and B becomes w_out.
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


def trials_side_by_side(n_batch, n_synapses):
  """The largest part of the batch whose traces, one float each, fit the processor's cache: a divisor of n_batch."""
  return max(d for d in range(1, n_batch + 1) if n_batch % d == 0 and (d == 1 or d * n_synapses <= 2 ** 17))


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

    def body(t, carried):
      before, extra = carried if reset is None else cut(carried, reset[t])
      z_network = (tf.stop_gradient(before.z) if stop_z_gradients else before.z) + extra
      arriving = current.read(t // self.n_repeat)
      arriving = arriving if w_rec is None else arriving + z_network @ w_rec
      after = cell.step(arriving, z_network, before)
      seen = cell.remember(arriving, before, after), after if record_states else ()
      return (after, extra if dz is None else dz[t]), seen

    like = cell.remember(extra, state, state), state if record_states else ()
    (state, _), (memory, states) = scan(body, (state, extra), n_steps, like)
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
    rest = self.cell.State(*self.cell.get_initial_state(n_batch))

    def body(k, carried):
      state, count = carried
      run = self.simulate(chunks[k], weights, state)
      return (run.state, count + tf.reduce_sum(run.z, [0, 1])), (run.memory, run.z if w_read is None else run.z @ w_read)

    of_step = self.cell.remember(rest.z, rest, rest), rest.z if w_read is None else rest.z @ w_read
    like = tf.nest.map_structure(lambda value: tf.TensorSpec([length * self.n_repeat, *value.shape], value.dtype), of_step)
    (state, count), seen = scan(body, (rest, tf.zeros_like(rest.z[0])), len(chunks), like)
    memory, out = tf.nest.map_structure(lambda array: tf.reshape(array, [-1, *array.shape[2:]]), seen)
    return Run(out, memory, state, rate=count / (n_frames * self.n_repeat * n_batch))

  def gradient(self, x, weights, memory, signal, input_gradient=False):
    """The Gradient for a learning signal.

    Args:
      x, weights: as for `simulate`.
      memory: of the Run that `forward` or `simulate` returned.
      signal: LearningSignal.
      input_gradient: return dE/dx too (not for `hardcoded`).
    """
    compute = dict(adjoint=self._adjoint, hardcoded=self._hardcoded, autodiff=self._autodiff)[self.impl]
    return compute(x, weights, memory, signal, input_gradient)

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
    like = tf.zeros_like(tf.nest.flatten(memory)[0][0])
    if after is None:
      after = like, self.cell.initial_adjoint(like.shape[0])

    def body(t, carried):
      from_network, adjoint = carried
      dz = signal(t) + from_network if self.bptt else signal(t)
      post, of_reset, adjoint = self.cell.adjoint_step(at(memory, t), dz, adjoint)
      if self.bptt:
        from_network = of_reset if w_rec is None else of_reset + tf.matmul(post, w_rec, transpose_b=True)
      carried = from_network, adjoint
      return carried if reset is None else cut(carried, reset[t]), post

    after, post = scan(body, after, len(tf.nest.flatten(memory)[0]), like, reverse=True)
    return post, after

  def _adjoint(self, x, weights, memory, signal, input_gradient):
    n_frames, n_batch, n_in = x.shape
    length, dtype = chunk_length(n_frames), weights.w_in.dtype
    n_chunks, n_steps = n_frames // length, length * self.n_repeat
    in_chunks = lambda array: tf.reshape(array, [n_chunks, -1, *array.shape[1:]])
    xs, memories = in_chunks(x), tf.nest.map_structure(in_chunks, memory)
    errors = None if signal.error is None else in_chunks(signal.error)
    w_rec = None if weights.w_rec is None else without_autapses(weights.w_rec)
    is_cut = tf.cast(tf.range(n_chunks * n_steps) % self.truncation == 0, dtype)[:, None]
    cuts = in_chunks(is_cut) if self.truncation > 0 else None

    def body(k, carried):
      after, sums = carried
      of_chunk, x_chunk = at(memories, k), tf.cast(xs[k], dtype)
      post, after = self.adjoint_scan(of_chunk, lambda t: signal.at(k * n_steps + t), w_rec, after, at(cuts, k))
      z = self.cell.spikes(of_chunk)
      of_frames = tf.reduce_sum(tf.reshape(post, [length, -1, *post.shape[1:]]), 1) if self.n_repeat > 1 else post
      products = [presynaptic_product(x_chunk, of_frames)]
      if w_rec is not None:
        last = self.cell.spikes(at(at(memories, tf.maximum(k - 1, 0)), -1))
        products.append(presynaptic_product(one_step_later(z, tf.where(k > 0, last, 0)), post))
      if errors is not None:
        products.append(presynaptic_product(z, hold(errors[k], signal.hold)))
      dx = tf.matmul(of_frames, weights.w_in, transpose_b=True) if input_gradient else ()
      return (after, [a + b for a, b in zip(sums, products)]), dx

    n = self.cell.units
    shapes = [[n_in, n]] + [[n, n]] * (w_rec is not None) + ([] if errors is None else [[n, errors.shape[-1]]])
    start = (tf.zeros([n_batch, n], dtype), self.cell.initial_adjoint(n_batch)), [tf.zeros(shape, dtype) for shape in shapes]
    like = tf.TensorSpec([length, n_batch, n_in], dtype) if input_gradient else ()
    (_, (g_in, *others)), dx = scan(body, start, n_chunks, like, reverse=True)
    g_rec = None if w_rec is None else without_autapses(others.pop(0))
    return Gradient(Weights(g_in, g_rec), others.pop() if others else None, tf.reshape(dx, x.shape) if input_gradient else None)

  def _hardcoded(self, x, weights, memory, signal, input_gradient):
    """Traces that run forward in time. Trials take turns in blocks, so that memory is O((I + N) N) beside the arguments."""
    if input_gradient:
      raise ValueError('the hardcoded form gives no gradient of the inputs: e-prop needs none')
    z, recurrent = self.cell.spikes(memory), weights.w_rec is not None
    (n_steps, n_batch, n), n_pre = z.shape, x.shape[-1] + recurrent * self.cell.units
    block = trials_side_by_side(n_batch, n_pre * n)

    def in_blocks(array):
      if array is None or array.shape.rank == 1:
        return None
      return tf.transpose(tf.reshape(array, [len(array), -1, block, array.shape[-1]]), [1, 0, 2, 3])

    parts = tf.nest.map_structure(in_blocks, (tf.cast(x, z.dtype), one_step_later(z), memory, signal.error, signal.direct))

    def trials(b, gradient):
      x, before, memory, error, direct = at(parts, b)
      learning_signal = signal._replace(error=error, direct=signal.direct if direct is None else direct)

      def body(t, carried):
        eps, gradient = carried
        pre = tf.concat([x[t // self.n_repeat], before[t]], 1) if recurrent else x[t // self.n_repeat]
        e, eps = self.cell.trace_step(at(memory, t), pre, eps)                                              # (22)-(25)
        return (eps, gradient + tf.reduce_sum(learning_signal.at(t)[..., None, :] * e, 0)), ()              # (1)

      (_, gradient), _ = scan(body, (self.cell.initial_eps(block, n_pre), gradient), n_steps, ())
      return gradient, ()

    gradient, _ = scan(trials, tf.zeros([n_pre, n], z.dtype), n_batch // block, ())
    g_read = None if signal.error is None else presynaptic_product(z, hold(signal.error, signal.hold))
    g_in, g_rec = tf.split(gradient, [x.shape[-1], n_pre - x.shape[-1]])
    return Gradient(Weights(g_in, without_autapses(g_rec) if recurrent else None), g_read, None)

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

  def body(t, eps):
    e, eps = cell.trace_step(at(memory, t), pre[t], eps)
    return eps, (e, eps)

  start = cell.initial_eps(n_batch, n_pre)
  return scan(body, start, n_steps, (tf.TensorSpec([n_batch, n_pre, cell.units], pre.dtype), start))[1]

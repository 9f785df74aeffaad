"""The agent of figures 4 and 5: two spiking convolutional layers, an LSNN, and heads for policy and value.

Notation as in lsnn.py and spiking_cnn.py, and

  n, t, S   agent step (one frame, one action); network step, of which each frame takes S: t(n) = S n + S - 1 is n's last
  A         actions; the heads' K = A + 1 outputs are the logits of the policy and the value
  y         outputs of the heads, y[t] = kappa y[t-1] + (1 - kappa) (x[t] @ w + b), read at t(n)

x are the spikes of the LSNN and the views of the convolutional layers: averages of pools, or broadcast convolutions. As all
this is linear and read once per frame, the S steps of a frame are weighted first, by (1 - kappa) kappa^(S-1-s), and pass views
and heads once: these are the `features` of a frame. The weights add up to 1 - kappa^S, by which biases are multiplied.
Gradient and simulation are apart: `act` records what the gradient of reward_based_eprop.py needs.
"""
from typing import NamedTuple

import numpy as np
import tensorflow as tf

import eprop
import lsnn
from spiking_cnn import Affine


class Weights(NamedTuple):
  """Trainable arrays, or the gradients of the loss with respect to them."""
  conv1: Affine       # w [k, k, 1, F1]
  conv2: Affine       # w [k, k, F1, F2]
  rnn: eprop.Weights  # w_in [I, N], I = H2 W2 F2, and w_rec [N, N]
  policy: Affine      # w [n_features, A]
  value: Affine       # w [n_features, 1]
  view1: Affine       # of the broadcast convolution of layer 1, w [k', k', F1, F1']; () where the heads see averages
  view2: Affine       # of that of layer 2, w [k', k', F2, F2']; or ()


NAMES = Weights(Affine('conv1', 'bias1'), Affine('conv2', 'bias2'), eprop.Weights('w_in', 'w_rec'),
                Affine('w_policy', 'b_policy'), Affine('w_value', 'b_value'), Affine('broadcast1', 'bias_broadcast1'),
                Affine('broadcast2', 'bias_broadcast2'))


def by_name(weights):
  """Weights as files and optimizers hold them: {name: array}."""
  return {name: w for names, part in zip(NAMES, weights) for name, w in zip(names, part)}


class State(NamedTuple):
  """State of B agents after a network step."""
  v1: tf.Tensor          # [B, H1, W1, F1]
  v2: tf.Tensor          # [B, H2, W2, F2]
  rnn: lsnn.ALIF.State   # each [B, N]
  y: tf.Tensor           # [B, A + 1]


class Record(NamedTuple):
  """What one agent step leaves behind for learning."""
  frame: tf.Tensor     # [B, H, W], see Environment.reset
  reset: tf.Tensor     # [B] 1 where an episode begins with this frame
  h1: tf.Tensor        # [S, B, H1, W1, F1]
  h2: tf.Tensor        # [S, B, H2, W2, F2]
  h: tf.Tensor         # [S, B, N]
  v: tf.Tensor         # [S, B, N]
  a: tf.Tensor         # [S, B, N]
  z_before: tf.Tensor  # [B, N] the LSNN's spikes one step before, 0 where an episode begins
  features: tf.Tensor  # [B, n_features]
  logits: tf.Tensor    # [B, A]
  value: tf.Tensor     # [B]


def heads(weights):
  """Both heads side by side, Affine: w [n_features, A + 1], b [A + 1]."""
  return Affine(*(tf.concat(pair, -1) for pair in zip(weights.policy, weights.value)))


def truncated_normal(rng, shape):
  """Normal numbers, drawn anew where farther than two standard deviations from 0; float64 array."""
  x = rng.standard_normal(shape)
  while np.any(far := np.abs(x) > 2):
    x[far] = rng.standard_normal(far.sum())
  return x


class Agent:
  """Network of the agent; its weights are arguments of its functions.

  Args:
    n_actions: number of actions A.
    conv1, conv2: ConvLIF, the second on top of the first.
    cell: lsnn.ALIF.
    n_repeat: network steps S per frame.
    tau_readout: time constant of the heads in network steps.
  """

  def __init__(self, n_actions, conv1, conv2, cell, n_repeat=5, tau_readout=2.0):
    if conv2.size_in != conv1.size or n_repeat < 1 or n_actions < 1:
      raise ValueError(f'need a second layer for {conv1.size}, n_repeat >= 1 and n_actions >= 1; '
                       f'got {conv2.size_in}, {n_repeat}, {n_actions}')
    self.n_actions, self.conv1, self.conv2, self.cell, self.n_repeat = n_actions, conv1, conv2, cell, n_repeat
    self.dtype = tf.as_dtype(cell.compute_dtype)
    self.kappa = float(lsnn.exp_decay(tau_readout))
    self.kappa_frame = self.kappa ** n_repeat                                                      # decay per frame
    self.step_weights = tuple((1 - self.kappa) * self.kappa ** (n_repeat - 1 - s) for s in range(n_repeat))
    self.feature_sizes = [cell.units, conv1.view.n_features, conv2.view.n_features]
    self.n_features = sum(self.feature_sizes)
    self._lsnn = tf.function(self._lsnn_steps, jit_compile=True)

  def initial_weights(self, rng):
    """Weights of arrays: LSNN N(0, 1) / sqrt(fan-in) without autapses; otherwise truncated normal with a standard
    deviation, before truncation, of 1 / sqrt(fan-in), and biases 0. rng: numpy Generator."""
    n, n_in, dtype = self.cell.units, self.conv2.units, self.dtype.as_numpy_dtype
    affine = lambda *shape: Affine(truncated_normal(rng, shape) / np.sqrt(np.prod(shape[:-1])), np.zeros(shape[-1]))
    view = lambda layer: affine(*layer.view.filter_shape) if layer.view.filters else ()
    w_in, w_rec = (rng.standard_normal((pre, n)) / np.sqrt(pre) for pre in (n_in, n))
    np.fill_diagonal(w_rec, 0)
    conv1, conv2 = affine(*self.conv1.filter_shape), affine(*self.conv2.filter_shape)
    weights = Weights(conv1, conv2, eprop.Weights(w_in, w_rec), affine(self.n_features, self.n_actions),
                      affine(self.n_features, 1), view(self.conv1), view(self.conv2))
    return tf.nest.map_structure(lambda w: w.astype(dtype), weights)

  def initial_state(self, n_batch):
    """State of n_batch agents at rest."""
    zeros = lambda *shape: tf.zeros([n_batch, *shape], self.dtype)
    return State(zeros(*self.conv1.size), zeros(*self.conv2.size), self.cell.State(*self.cell.get_initial_state(n_batch)),
                 zeros(self.n_actions + 1))

  def _lsnn_steps(self, currents, w_rec, rnn, stop_gradients):
    w_rec = lsnn.without_autapses(w_rec)
    steps = []
    for s in range(self.n_repeat):
      z = tf.stop_gradient(rnn.z) if stop_gradients else rnn.z
      before, current = rnn, currents[s] + z @ w_rec
      rnn = self.cell.step(current, z, before)
      steps.append((self.cell.remember(current, before, rnn), rnn.v, rnn.a, rnn.z))
    *records, zs = zip(*steps)
    return *map(tf.stack, records), tf.add_n([w * z for w, z in zip(self.step_weights, zs)]), rnn  # h, v, a [S, B, N]

  def act(self, weights, state, frame, reset, stop_gradients=False, feedback=None):
    """One agent step. Differentiable; meant to be called inside a tf.function, without XLA: the parts it helps use it.

    Args:
      weights: Weights.
      state: State after the frame before.
      frame: grey values 0-255, uint8 [B, H, W], or how they differ from the background, float32.
      reset: [B], 1 where an episode begins with this frame: the whole state is zeroed before the first of its S steps.
      stop_gradients: let no gradient pass from layer to layer nor from the LSNN's spikes to other neurons and their
        reset, so that autodiff gives e-prop.
      feedback: [n_features, A + 1] through which gradients reach the features instead of the heads' weights (eq. 4).

    Returns:
      logits [B, A], value [B], State, Record.
    """
    n_batch, n_repeat = frame.shape[0], self.n_repeat
    network = tf.stop_gradient if stop_gradients else tf.identity
    flat = lambda z: tf.reshape(z, [n_repeat * n_batch, *z.shape[2:]])
    in_steps = lambda x: tf.reshape(x, [n_repeat, n_batch, *x.shape[1:]])
    weights, reset = tf.nest.map_structure(tf.convert_to_tensor, weights), tf.cast(reset, self.dtype)
    v1, v2, rnn, y = lsnn.cut(state, reset)
    z_before = rnn.z

    image = tf.cast(frame, self.dtype)[..., None] / 255
    current = self.conv1.convolve(image, weights.conv1)                        # the same at all steps of the frame
    h1, z1, seen1, v1 = self.conv1.run(v1, current, self.step_weights)         # h, z [S, B, H1, W1, F1]
    current = in_steps(self.conv2.convolve(flat(network(z1)), weights.conv2))
    h2, z2, seen2, v2 = self.conv2.run(v2, current, self.step_weights)         # h, z [S, B, H2, W2, F2]
    current = in_steps(tf.reshape(network(z2), [n_repeat * n_batch, -1]) @ weights.rnn.w_in)
    h, v, a, seen, rnn = self._lsnn(current, weights.rnn.w_rec, rnn, stop_gradients)
    gain = 1 - self.kappa_frame  # of biases
    features = tf.concat([seen, self.conv1.view.see(seen1, weights.view1, gain),
                          self.conv2.view.see(seen2, weights.view2, gain)], 1)
    w, b = heads(weights)
    if feedback is None:
      out = features @ w
    else:  # the same numbers, with a gradient that reaches the features through the feedback alone
      broadcast = features @ feedback
      out = tf.stop_gradient(features) @ w + broadcast - tf.stop_gradient(broadcast)
    y = self.kappa_frame * y + out + gain * b
    logits, value = y[:, :-1], y[:, -1]
    record = Record(frame, reset, h1, h2, h, v, a, z_before, features, logits, value)
    return logits, value, State(v1, v2, rnn, y), record

  def unroll(self, weights, state, frames, resets, stop_gradients=False, feedback=None):
    """Agent steps one after the other, on frames that are known beforehand. Differentiable; not to be compiled with XLA.

    Args:
      frames, resets: [n, B, H, W] and [n, B].
      Otherwise as `act`.

    Returns:
      State after the last step, and Record of all steps, [n, ...].
    """
    n_steps = frames.shape[0]
    stored = [name for name in Record._fields if name != 'frame']

    def body(n, state, arrays):
      _, _, state, record = self.act(weights, state, frames[n], resets[n], stop_gradients, feedback)
      return n + 1, state, [array.write(n, getattr(record, name)) for name, array in zip(stored, arrays)]

    arrays = [tf.TensorArray(self.dtype, n_steps) for _ in stored]
    _, state, arrays = tf.while_loop(lambda n, *_: n < n_steps, body, (0, state, arrays))
    return state, Record(frames, *(array.stack() for array in arrays))

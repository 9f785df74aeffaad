"""Bidirectional networks of figure 2: layers of LSNN or LSTM one above the other, and their gradient, layer by layer.

Notation as in lsnn.py and eprop.py, and

  F    frames of the batch's longest utterance, the rest is padding; T = n_repeat F network steps (an LSTM takes 1 per frame)
  L    layers, each a network that runs forward and one that hears the utterance backwards; their N outputs stand side by
       side in [..., 2 N]

The outputs of a layer are spikes (LSNN) or h (LSTM). A gradient needs dE/d output along the paths that leave the layer: the
learning signal that is broadcast to it and, for BPTT alone, what comes back from the layer above. E-prop stops there: each
layer learns from its own broadcast.
"""
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from eprop import adjoint_scan, initial_eps, presynaptic_product, trace_step
import lsnn
import lstm
from lstm import one_step_later, reverse_sequence


def hold(x, n):
  """Repeats every entry of x [F, ...] n times: [n F, ...]."""
  return x if n == 1 else tf.repeat(x, n, 0)


def values(weights):
  """The structure of weights with tensors for variables, which compiled functions would keep hold of."""
  return tf.nest.map_structure(lambda w: None if w is None else tf.convert_to_tensor(w), weights)


class LSNNLayer:
  """LIF and ALIF neurons that hear a sequence in one direction.

  Args:
    cell: lsnn.ALIF.
    n_repeat: network steps per input.
    bptt: BPTT instead of e-prop.
    impl: 'adjoint', 'hardcoded' (e-prop only) or 'autodiff'.
    recurrent: False leaves the recurrent weights out.
    truncation: steps after which no gradient goes further back in time; -1: none.
  """

  class Weights(NamedTuple):
    """Trainable matrices, or gradients."""
    w_in: tf.Tensor   # [I, N]
    w_rec: tf.Tensor  # [N, N], not there where recurrent is False

  def __init__(self, cell, n_repeat, bptt=False, impl='adjoint', recurrent=True, truncation=-1):
    self.cell, self.n_repeat, self.bptt, self.recurrent, self.truncation = cell, n_repeat, bptt, recurrent, truncation
    self.units = cell.units
    compute = {'adjoint': self._adjoint, 'hardcoded': self._hardcoded, 'autodiff': self._autodiff}[impl]
    self._compute = tf.function(compute, jit_compile=impl != 'autodiff')
    self._simulate = tf.function(self._run, jit_compile=True)

  def initial_weights(self, rng, n_in):
    """N(0, 1) / sqrt(fan-in), without autapses; Weights of arrays."""
    n = self.units
    w_in, w_rec = (rng.standard_normal((pre, n)) / np.sqrt(pre) for pre in (n_in, n))
    np.fill_diagonal(w_rec, 0)
    return self.Weights(w_in, w_rec if self.recurrent else None)

  def _w_rec(self, weights):
    return weights.w_rec if self.recurrent else tf.zeros([self.units, self.units], weights.w_in.dtype)

  def _run(self, x, weights, **kwargs):
    run = lsnn.unroll(self.cell, x, weights.w_in, self._w_rec(weights), n_repeat=self.n_repeat, **kwargs)
    return run.z, run.h

  def forward(self, x, weights):
    """Simulates. x: [T / n_repeat, B, I]. Returns spikes z [T, B, N], and h (lsnn.py), which `gradient` needs."""
    return self._simulate(x, weights)

  def gradient(self, x, weights, memory, signal, input_gradient):
    """The gradient for a learning signal.

    Args:
      x, weights: as for `forward`.
      memory: what `forward` returned.
      signal: dE/dz on the paths that leave the layer, [T, B, N], or [T / n_repeat, B, N] if it is the same at all steps
        of a frame.
      input_gradient: return dE/dx too (BPTT only).

    Returns:
      Weights, and dE/dx [T / n_repeat, B, I] or None.
    """
    return self._compute(x, weights, memory, signal, input_gradient)

  def _adjoint(self, x, weights, h, signal, input_gradient):
    n_steps, n_batch, n = h.shape
    held = n_steps // signal.shape[0]
    w_rec = lsnn.without_autapses(self._w_rec(weights)) if self.bptt else None
    cuts = None
    if self.truncation > 0:
      cuts = tf.repeat(tf.cast(tf.range(n_steps) % self.truncation == 0, h.dtype)[:, None], n_batch, 1)
    post, _ = adjoint_scan(self.cell, self.cell.psi(h), lambda t: signal[t // held], w_rec=w_rec, reset=cuts)
    g_rec = lsnn.without_autapses(presynaptic_product(one_step_later(lsnn.spike(h)), post)) if self.recurrent else None
    post = tf.reduce_sum(tf.reshape(post, [-1, self.n_repeat, n_batch, n]), 1)  # the input was the same at all of these
    dx = tf.matmul(post, weights.w_in, transpose_b=True) if input_gradient else None
    return self.Weights(presynaptic_product(x, post), g_rec), dx

  def _hardcoded(self, x, weights, h, signal, input_gradient):
    """Traces that run forward in time, eqs. (24), (25); memory O(B (I + N) N) beside the arguments."""
    if input_gradient:
      raise ValueError('BPTT has no hardcoded form')
    n_steps, n_batch, n = h.shape
    n_in, dtype = x.shape[-1], h.dtype
    held = n_steps // signal.shape[0]

    def body(t, before, eps_v, eps_a, gradient):
      pre = tf.concat([x[t // self.n_repeat], before], 1)
      traces, eps_a = trace_step(self.cell, eps_v, eps_a, pre, self.cell.psi(h[t]))
      gradient += tf.reduce_sum(signal[t // held][:, None] * traces.e, 0)                         # (1)
      return t + 1, lsnn.spike(h[t]), traces.eps_v, eps_a, gradient

    start = (0, tf.zeros([n_batch, n], dtype), *initial_eps(self.cell, n_batch, n_in + n), tf.zeros([n_in + n, n], dtype))
    g_in, g_rec = tf.split(tf.while_loop(lambda t, *_: t < n_steps, body, start)[-1], [n_in, n])
    return self.Weights(g_in, lsnn.without_autapses(g_rec) if self.recurrent else None), None

  def _autodiff(self, x, weights, h, signal, input_gradient):
    trainable = [w for w in weights if w is not None]
    with tf.GradientTape() as tape:
      tape.watch((x, trainable))
      z, _ = self._run(x, weights, stop_z_gradients=not self.bptt)
    gradients, dx = tape.gradient(z, (trainable, x), hold(signal, z.shape[0] // signal.shape[0]))
    return self.Weights(*gradients, *[None] * (2 - len(gradients))), dx if input_gradient else None


class LSTMLayer:
  """LSTM cells that hear a sequence in one direction; one step per frame.

  Args:
    units: number of cells N.
    bptt, impl: as for LSNNLayer.
    peepholes: let the gates see the cell state.
    init_scale: as for lstm.initial_weights.
  """
  n_repeat = 1

  def __init__(self, units, bptt=False, impl='adjoint', peepholes=False, init_scale=0.0):
    self.units, self.bptt, self.impl, self.peepholes, self.init_scale = units, bptt, impl, peepholes, init_scale

  def initial_weights(self, rng, n_in):
    """Glorot-uniform or uniform, bias 0; lstm.Weights of arrays."""
    return lstm.initial_weights(rng, n_in, self.units, self.init_scale, self.peepholes, np.float64)

  def forward(self, x, weights):
    """Simulates. x: [T, B, I]. Returns h [T, B, N], and what `gradient` needs."""
    run = lstm.forward(x, weights)
    return run.h, run

  def gradient(self, x, weights, memory, signal, input_gradient):
    """As LSNNLayer.gradient."""
    if self.impl == 'hardcoded':
      return lstm.hardcoded(x, signal, weights), None
    if self.impl == 'autodiff':
      return lstm.autodiff(x, signal, weights, self.bptt)
    return lstm.adjoint(memory, x, signal, weights, self.bptt, input_gradient)


class Network:
  """Layers one above the other, each with a forward and a backward direction.

  Args:
    layers: list of LSNNLayer or LSTMLayer, the lowest first; every layer but the lowest takes one step per input.
  """

  def __init__(self, layers):
    self.layers = layers
    self.bptt = layers[0].bptt
    self.n_repeat = layers[0].n_repeat
    self.spiking = isinstance(layers[0], LSNNLayer)
    self.units = [2 * layer.units for layer in layers]

  def initial_weights(self, rng, n_in):
    """Weights of arrays, a list of (forward, backward) per layer."""
    sizes = [n_in, *self.units[:-1]]
    return [tuple(layer.initial_weights(rng, size) for _ in range(2)) for layer, size in zip(self.layers, sizes)]

  def average(self, y):
    """Mean over the steps of each frame: [T, B, ...] to [F, B, ...]."""
    return y if self.n_repeat == 1 else tf.reduce_mean(tf.reshape(y, [-1, self.n_repeat, *y.shape[1:]]), 1)

  def forward(self, x, lengths, weights, keep=None, every_step=False):
    """Simulates all layers.

    Args:
      x: [F, B, I].
      lengths: frames of each utterance, int32 [B].
      weights: as of `initial_weights`.
      keep: drop-out masks [F, B, 2 N] per layer, that its output is multiplied by; or None.
      every_step: return the outputs at every network step, not averaged over each frame.

    Returns:
      Outputs [F, B, 2 N] of each layer, averaged over frames; [T, B, 2 N] at every step, or None; and what `gradient` needs.
    """
    n_frames = x.shape[0]
    averages, outputs, memories = [], [], []
    for k, (layer, of_layer) in enumerate(zip(self.layers, values(weights))):
      inputs = x, reverse_sequence(x, lengths * (x.shape[0] // n_frames))
      (forward, memory), (backward, memory_backward) = (layer.forward(i, w) for i, w in zip(inputs, of_layer))
      memories.append((inputs, (memory, memory_backward)))
      average = tf.concat([self.average(forward), reverse_sequence(self.average(backward), lengths)], -1)
      averages.append(average if keep is None else average * keep[k])
      if every_step or k + 1 < len(self.layers):
        x = tf.concat([forward, reverse_sequence(backward, lengths * self.n_repeat)], -1)
        x = x if keep is None else x * hold(keep[k], self.n_repeat)
        outputs.append(x)
    return averages, outputs if every_step else None, memories

  def gradient(self, lengths, weights, memories, signals, keep=None):
    """The gradient of all layers.

    Args:
      lengths, weights, keep: as for `forward`.
      memories: what `forward` returned.
      signals: learning signal of each layer, dE/d output on the paths to the readout, [T, B, 2 N], or [F, B, 2 N] if it is
        the same at all steps of a frame.

    Returns:
      Gradients in the structure of the weights.
    """
    n_frames = memories[0][0][0].shape[0]
    weights = values(weights)
    gradients, from_above = [], None
    for k in reversed(range(len(self.layers))):
      layer, signal = self.layers[k], signals[k]
      if from_above is not None:
        signal = from_above + hold(signal, from_above.shape[0] // signal.shape[0])
      held = signal.shape[0] // n_frames
      signal = signal if keep is None else signal * hold(keep[k], held)
      both = signal[..., :layer.units], reverse_sequence(signal[..., layer.units:], lengths * held)
      input_gradient = self.bptt and k > 0
      (forward, dx), (backward, dx_backward) = (
          layer.gradient(*parts, input_gradient) for parts in zip(memories[k][0], weights[k], memories[k][1], both))
      gradients.insert(0, (forward, backward))
      if input_gradient:
        from_above = dx + reverse_sequence(dx_backward, lengths * self.n_repeat)
    return gradients

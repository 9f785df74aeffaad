"""Bidirectional networks of figure 2: layers of LSNN or LSTM one above the other, and their gradient, layer by layer.

Notation as in lsnn.py and eprop.py, and

  F    frames of a batch; T = n_repeat F network steps (an LSTM takes 1 per frame)
  L    layers, each a network that runs forward and one that hears the utterance backwards; their N outputs stand side by
       side in [..., 2 N]

The outputs of a layer are spikes (LSNN) or h (LSTM). A gradient needs dE/d output along the paths that leave the layer: the
learning signal that is broadcast to it and, for BPTT alone, what comes back from the layer above. E-prop stops there: each
layer learns from its own broadcast.

Both kinds of layer have the contract of eprop.Layer: forward(x, weights) gives a Run, gradient(x, weights, memory, signal,
input_gradient) a Gradient.
"""
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from eprop import Gradient, hold, Layer, LearningSignal, Run, Weights
import lstm
from lstm import reverse_sequence


def values(weights):
  """The structure of weights with tensors for variables, which compiled functions would keep hold of."""
  return tf.nest.map_structure(lambda w: None if w is None else tf.convert_to_tensor(w), weights)


class LSNNLayer(Layer):
  """Spiking neurons that hear a sequence in one direction: eprop.Layer, compiled.

  Args:
    cell: lsnn.Neuron.
    n_repeat: network steps per input.
    bptt: BPTT instead of e-prop.
    impl: 'adjoint', 'hardcoded' (e-prop only) or 'autodiff'.
    recurrent: False leaves the recurrent weights out.
  """

  def __init__(self, cell, n_repeat=1, bptt=False, impl='adjoint', recurrent=True):
    super().__init__(cell, bptt, impl, n_repeat)
    self.units, self.recurrent = cell.units, recurrent
    self.forward = tf.function(self.simulate, jit_compile=True)  # in one piece: spikes are formed once, after the loop
    self.gradient = tf.function(self.gradient, jit_compile=impl != 'autodiff')

  def initial_weights(self, rng, n_in):
    """N(0, 1) / sqrt(fan-in), without autapses; Weights of arrays."""
    w_in, w_rec = (rng.standard_normal((pre, self.units)) / np.sqrt(pre) for pre in (n_in, self.units))
    np.fill_diagonal(w_rec, 0)
    return Weights(w_in, w_rec if self.recurrent else None)


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
    """Simulates. x: [T, B, I]. Returns Run with h [T, B, N] for z."""
    run = lstm.forward(x, weights)
    return Run(run.h, run, None)

  def gradient(self, x, weights, memory, signal, input_gradient=False):
    """As eprop.Layer.gradient; of the learning signal the `direct` part alone, one entry per step."""
    if self.impl == 'hardcoded':
      return Gradient(lstm.hardcoded(x, signal.direct, weights), None, None)
    if self.impl == 'autodiff':
      gradients, dx = lstm.autodiff(x, signal.direct, weights, self.bptt)
    else:
      gradients, dx = lstm.adjoint(memory, x, signal.direct, weights, self.bptt, input_gradient)
    return Gradient(gradients, None, dx)


class LayerRun(NamedTuple):
  """A simulation of one layer; each entry is a pair (forward, backward), in the order in which that direction hears."""
  inputs: tuple   # [T / n_repeat, B, I]
  outputs: tuple  # [T, B, N]
  memory: tuple   # what its gradient needs


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

  def forward(self, x, ends, weights, masks=None):
    """Simulates all layers.

    Args:
      x: [F, B, I].
      ends: number of frames after which the backward direction begins, int32 [B].
      weights: as of `initial_weights`.
      masks: what the inputs of each layer are multiplied by for drop-out, [F, B, inputs] per layer; or None.

    Returns:
      list of LayerRun.
    """
    runs = []
    for k, (layer, of_layer) in enumerate(zip(self.layers, values(weights))):
      held = self.n_repeat if k else 1  # inputs per frame
      x = self.at_steps(runs[-1], ends) if k else x
      x = x if masks is None else x * hold(masks[k], held)
      inputs = x, reverse_sequence(x, ends * held)
      both = [layer.forward(*each) for each in zip(inputs, of_layer)]
      runs.append(LayerRun(inputs, tuple(run.z for run in both), tuple(run.memory for run in both)))
    return runs

  def at_frames(self, run, ends):
    """Outputs of a layer, averaged over the steps of each frame and in the order of the utterance, [F, B, 2 N]."""
    forward, backward = map(self.average, run.outputs)
    return tf.concat([forward, reverse_sequence(backward, ends)], -1)

  def at_steps(self, run, ends):
    """Outputs of a layer in the order of the utterance, [T, B, 2 N]; `ends` in frames."""
    forward, backward = run.outputs
    return tf.concat([forward, reverse_sequence(backward, ends * self.n_repeat)], -1)

  def gradient(self, ends, weights, runs, signals, masks=None):
    """The gradient of all layers.

    Args:
      ends, weights, masks: as for `forward`.
      runs: what `forward` returned.
      signals: learning signal of each layer, dE/d output on the paths to the readout: LearningSignal whose `direct` is
        [F, B, 2 N] or [T, B, 2 N], as its `hold` says.

    Returns:
      Gradients in the structure of the weights.
    """
    weights, gradients, from_above = values(weights), [], None
    for k in reversed(range(len(self.layers))):
      layer, (direct, held) = self.layers[k], (signals[k].direct, signals[k].hold)
      if from_above is not None:
        direct, held = hold(direct, held) + from_above, 1
      turn = ends * (self.n_repeat // held)  # in entries of `direct`
      both = direct[..., :layer.units], reverse_sequence(direct[..., layer.units:], turn)
      input_gradient = self.bptt and k > 0
      forward, backward = (layer.gradient(x, w, memory, LearningSignal(direct=d, hold=held), input_gradient)
                           for x, w, memory, d in zip(runs[k].inputs, weights[k], runs[k].memory, both))
      gradients.insert(0, (forward.weights, backward.weights))
      if input_gradient:
        from_above = forward.x + reverse_sequence(backward.x, ends * self.n_repeat)
        from_above = from_above if masks is None else from_above * hold(masks[k], self.n_repeat)
    return gradients

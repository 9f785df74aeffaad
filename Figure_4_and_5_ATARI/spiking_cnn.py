"""A convolutional layer of spiking neurons, the eyes of the agent of figures 4 and 5.

Notation as in lsnn.py, and

  S            network steps for which one video frame is shown
  H, W, F, C   height and width of a layer, its filters, the channels of its input

The neurons are LIF neurons without a refractory period whose own spike resets them, and unlike the reset of the LSNN this
one carries a gradient: it stays inside the neuron, so that the gradient is still local to the synapse.

  v[t] = decay v[t-1] + i[t] - thr H(v[t-1] - thr)
  z[t] = H(v[t] - thr)                                   h[t] = (v[t] - thr) / thr,  psi = dz/dv as in lsnn.py

All neurons of a filter share its weights. Weights are [k, k, C, F], borders are not padded.

The heads see a layer through windows of neighbouring spikes: their averages, or a trained convolution of them (broadcast
alignment with convolutions). Learning signals take the same way back.
"""
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from lsnn import exp_decay, spike


class Affine(NamedTuple):
  """Weights and biases of a convolution or a head, or their gradients."""
  w: tf.Tensor  # [k, k, C, F] or [inputs, outputs]
  b: tf.Tensor  # [F] or [outputs]


def relu_below(h):
  """relu(-v - thr) / thr of neurons with the constant threshold thr, whose relu(v - thr) / thr is relu(h)."""
  return tf.nn.relu(-h - 2)


def windows(size_in, k, stride):
  """Numbers of windows of edge length k that fit, down and across. size_in: (H, W, C).

  Raises:
    ValueError: there are none.
  """
  if k > min(size_in[:2]):
    raise ValueError(f'need windows that fit; got a kernel or pool of edge {k} on {tuple(size_in)}')
  return tuple((length - k) // stride + 1 for length in size_in[:2])


class Convolution:
  """Convolution with biases; its weights are arguments of its functions.

  Args:
    size_in: (H, W, C) of the input.
    filters: number of filters F.
    kernel, stride: edge length k and stride.

  Raises:
    ValueError: the kernel is larger than what it slides over.
  """

  def __init__(self, size_in, filters, kernel, stride):
    self.size_in, self.size = tuple(size_in), (*windows(size_in, kernel, stride), filters)               # (H', W', F)
    self.units, self.filters, self.kernel, self.stride = int(np.prod(self.size)), filters, kernel, stride
    self.filter_shape = (kernel, kernel, size_in[2], filters)

  def convolve(self, x, weights):
    """x: [B, H, W, C]; weights: Affine. Returns [B, H', W', F]."""
    return tf.nn.conv2d(x, weights.w, self.stride, 'VALID') + weights.b

  def weight_gradient(self, x, gi):
    """Gradient of the weights, Affine: x [B, H, W, C] is the input, gi [B, H', W', F] what its currents contribute."""
    strides = [1, self.stride, self.stride, 1]
    filters = tf.raw_ops.Conv2DBackpropFilter(input=x, filter_sizes=self.filter_shape, out_backprop=gi, strides=strides,
                                              padding='VALID')
    return Affine(filters, tf.reduce_sum(tf.reduce_sum(gi, [1, 2]), 0))  # in two stages: float32 loses digits in long sums

  def input_gradient(self, weights, gi):
    """d loss / d input [B, H, W, C]; gi as for `weight_gradient`."""
    return tf.raw_ops.Conv2DBackpropInput(input_sizes=[gi.shape[0], *self.size_in], filter=weights.w, out_backprop=gi,
                                          strides=[1, self.stride, self.stride, 1], padding='VALID')

  def patches(self, x):
    """What arrives at the synapses of each place, bias included. x: [B, H, W, C]. Returns [B, H' W', k k C + 1]."""
    k, step = self.kernel, self.stride
    patches = tf.image.extract_patches(x, [1, k, k, 1], [1, step, step, 1], [1, 1, 1, 1], 'VALID')
    patches = tf.reshape(patches, [x.shape[0], -1, k * k * self.size_in[2]])
    return tf.concat([patches, tf.ones_like(patches[..., :1])], -1)

  def from_rows(self, rows):
    """Affine from rows as those of `patches`, [k k C + 1, F]."""
    return Affine(tf.reshape(rows[:-1], self.filter_shape), rows[-1])


class AveragePool:
  """Averages over windows of each filter's neurons, through which heads see a layer; without weights.

  Args:
    size_in: (H, W, F) of the layer.
    kernel, stride: edge length and stride of the windows.

  Raises:
    ValueError: the windows are larger than the layer.
  """
  filters = 0

  def __init__(self, size_in, kernel, stride):
    self.size_in, self.size = tuple(size_in), (*windows(size_in, kernel, stride), size_in[2])
    self.n_features, self.kernel, self.stride = int(np.prod(self.size)), kernel, stride

  def see(self, z, weights, gain=1.0):
    """What the heads read, [B, n_features]. z: [B, H, W, F]; weights: ()."""
    del weights, gain
    return tf.reshape(tf.nn.avg_pool2d(z, self.kernel, self.stride, 'VALID'), [-1, self.n_features])

  def spread(self, signal, weights):
    """The transpose of `see`: a learning signal [B, n_features] of the averages reaches the neurons, [B, H, W, F]."""
    del weights
    k, step = self.kernel, self.stride
    return tf.raw_ops.AvgPoolGrad(orig_input_shape=[signal.shape[0], *self.size_in], grad=tf.reshape(signal, [-1, *self.size]),
                                  ksize=[1, k, k, 1], strides=[1, step, step, 1], padding='VALID')

  def gradient(self, z, signal, gain=1.0):
    """Of the weights that it does not have: ()."""
    del z, signal, gain
    return ()

  def patches(self, z):
    """As of a convolution without filters: no places, and a row for their biases; [B, 0, 1]."""
    return tf.zeros([z.shape[0], 0, 1], z.dtype)

  def trial_gradients(self, patches, signal):
    """Empty as well, [B, 1, 0]."""
    del signal
    return tf.zeros([patches.shape[0], 1, 0], patches.dtype)

  def from_rows(self, rows):
    """As of a convolution: ()."""
    del rows
    return ()


class BroadcastConvolution(Convolution):
  """A trained convolution of a layer's spikes, through which heads see it. Arguments as for Convolution."""

  def __init__(self, size_in, filters, kernel, stride):
    super().__init__(size_in, filters, kernel, stride)
    self.n_features = self.units

  def see(self, z, weights, gain=1.0):
    """What the heads read, [B, n_features]. z: [B, H, W, C]; weights: Affine; gain: factor of the biases."""
    return tf.reshape(self.convolve(z, weights._replace(b=gain * weights.b)), [-1, self.n_features])

  def spread(self, signal, weights):
    """The transpose of `see`: a learning signal [B, n_features] reaches the neurons, [B, H, W, C]."""
    return self.input_gradient(weights, tf.reshape(signal, [-1, *self.size]))

  def gradient(self, z, signal, gain=1.0):
    """Gradient of the weights, Affine. z: [B, H, W, C]; signal: [B, n_features]; gain: as for `see`."""
    gradient = self.weight_gradient(z, tf.reshape(signal, [-1, *self.size]))
    return gradient._replace(b=gain * gradient.b)

  def trial_gradients(self, patches, signal):
    """The same from `patches` of z and apart for each trial, [B, k k C + 1, F], the bias last."""
    return tf.matmul(patches, tf.reshape(signal, [signal.shape[0], -1, self.filters]), transpose_a=True)


class ConvLIF(Convolution):
  """Convolution followed by LIF neurons, and the windows through which the heads see them.

  Args:
    size_in: (H, W, C) of the input.
    filters: number of filters F.
    kernel, stride: edge length k and stride of the convolution.
    pool, pool_stride: edge length and stride of the windows that the heads see.
    broadcast: filters of a trained convolution of these windows; None: the heads see averages.
    tau: membrane time constant in network steps.
    thr: threshold.
    dampening_factor: height gamma of the pseudo-derivative.

  Raises:
    ValueError: the kernel or the pool is larger than what it slides over, or thr is not positive.
  """

  def __init__(self, size_in, filters, kernel, stride, pool, pool_stride, broadcast=None, tau=1.0, thr=0.1,
               dampening_factor=1.0):
    super().__init__(size_in, filters, kernel, stride)
    if thr <= 0:
      raise ValueError(f'need thr > 0; got {thr}')
    self.view = (AveragePool(self.size, pool, pool_stride) if broadcast is None else
                 BroadcastConvolution(self.size, broadcast, pool, pool_stride))
    self.decay, self.thr, self.dampening_factor = float(exp_decay(tau)), float(thr), float(dampening_factor)
    # Many small operations on large arrays: compiled. Convolutions are not, XLA's are slow on processors.
    self._compiled_run = tf.function(self._run, jit_compile=True)
    self._compiled_adjoint = tf.function(self._adjoint, jit_compile=True)

  def run(self, v, current, step_weights):
    """The S steps of a frame. Differentiable.

    Args:
      v: membrane potential before them [B, H, W, F].
      current: input current, the same at all steps [B, H, W, F] or [S, B, H, W, F].
      step_weights: S numbers.

    Returns:
      h, z [S, B, H, W, F]; the sum of z over the steps, each times its weight; and v after the last step.
    """
    return self._compiled_run(v, current, step_weights)

  def adjoint(self, h, signal, step_weights, above, below, after, from_above=None, summed=False):
    """The steps of `run` backwards: what a current at each step contributes to the loss.

      gi[t] = psi[t] Lz[t] + (decay - thr psi[t]) gi[t+1] + g_v[t]

    Args:
      h: from `run`, [S, B, H, W, F].
      signal: learning signal of the frame, [B, H, W, F]; Lz is this times the step's weight.
      step_weights: S numbers.
      above, below: dE/d relu(v - thr), dE/d relu(-v - thr), the same at all steps; together they make g_v.
      after: gi one step later than the last one here.
      from_above: what is added to Lz at each step, [S, B, H, W, F].
      summed: return gi summed over the steps.

    Returns:
      gi [S, B, H, W, F] or [B, H, W, F], and gi of the first step.
    """
    return self._compiled_adjoint(h, signal, step_weights, above, below, after, from_above, summed)

  def psi(self, h):
    """Pseudo-derivative dz/dv, shape of h."""
    return self.dampening_factor / self.thr * tf.maximum(1 - tf.abs(h), 0)

  def _run(self, v, current, step_weights):
    zs, hs, h = [], [], (v - self.thr) / self.thr
    z = spike(h, self.dampening_factor)
    for s in range(len(step_weights)):
      v = self.decay * v + (current if current.shape.rank == 4 else current[s]) - self.thr * z
      h = (v - self.thr) / self.thr
      z = spike(h, self.dampening_factor)
      hs.append(h)
      zs.append(z)
    return tf.stack(hs), tf.stack(zs), tf.add_n([w * z for w, z in zip(step_weights, zs)]), v

  def _adjoint(self, h, signal, step_weights, above, below, after, from_above, summed):
    record = []
    for s in reversed(range(len(step_weights))):
      of_z = step_weights[s] * signal if from_above is None else step_weights[s] * signal + from_above[s]
      g_v = above * tf.cast(h[s] > 0, h.dtype) - below * tf.cast(relu_below(h[s]) > 0, h.dtype)
      after = self.psi(h[s]) * (of_z - self.thr * after) + self.decay * after + g_v
      record.insert(0, after)
    return tf.add_n(record) if summed else tf.stack(record), after

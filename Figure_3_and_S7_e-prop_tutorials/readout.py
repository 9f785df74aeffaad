"""Figures 3 and S7: the leaky readout on top of a layer, its losses, the cost of firing rates, and what is learned from them.

Notation as in lsnn.py and eprop.py. The network reads out y[t] = F_kappa(z)[t] @ w_out and learns from the error at the outputs
(y - y*, or softmax(y) - y* for classes) and from a cost on the firing rates:

  L[t] = F_kappa_reverse(error)[t] @ B^T + d rate cost / dz[t]                                                eqs. (4), (28)

learner.py puts these together with a layer.
"""
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from eprop import broadcast_readout
from lsnn import exp_decay, exp_filter

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


class Before(NamedTuple):
  """What other replicas have of the trials that come before one's own, for the rate cost 'online'."""
  count: tf.Tensor     # [N] spikes
  n_trials: tf.Tensor  # []


def running_rate(z, before=None):
  """Mean rate so far, the B trials laid end to end, and the number of steps so far.

  Args:
    z: [T, B, N].
    before: Before, default no trials.

  Returns:
    [T, B, N], spikes per step; [T, B, 1].
  """
  n_steps, n_batch, n = z.shape
  sequence = tf.cumsum(tf.reshape(tf.transpose(z, [1, 0, 2]), [n_batch * n_steps, n]))
  seen = tf.range(1, n_batch * n_steps + 1, dtype=z.dtype)[:, None]
  if before is not None:
    sequence, seen = sequence + before.count, seen + before.n_trials * n_steps
  in_trials = lambda array: tf.transpose(tf.reshape(array, [n_batch, n_steps, -1]), [1, 0, 2])
  return in_trials(sequence / seen), in_trials(seen)


def rate_cost(regularisation, rate, z=None, before=None):
  """Cost of the firing rates.

  Args:
    regularisation: RateCost.
    rate: mean rate [N], spikes per step.
    z: spikes [T, B, N], needed by 'online'.
    before: Before, for 'online'.

  Returns:
    Loss [].
  """
  if regularisation.kind == 'simple':
    return regularisation.cost * tf.reduce_sum((rate - regularisation.target) ** 2)
  if regularisation.kind == 'online':
    return regularisation.cost / z.shape[0] * tf.reduce_sum((running_rate(z, before)[0] - regularisation.target) ** 2)
  raise ValueError(f"rate regularisation must be 'simple' or 'online', got {regularisation.kind!r}")


def rate_signal(regularisation, rate, n_steps, n_batch, z=None, before=None):
  """d rate_cost / dz, the learning signal that acts on the unfiltered eligibility traces.

  Args:
    regularisation, rate, z, before: as for `rate_cost`.
    n_steps, n_batch: T and B.

  Returns:
    [N] for 'simple' (the same at all times), [T, B, N] for 'online'.
  """
  cost, target, kind = regularisation
  if kind == 'simple':
    return 2 * cost * (rate - target) / (n_batch * n_steps)
  rate_so_far, steps_so_far = running_rate(z, before)
  change = tf.transpose(2 * cost / n_steps * (rate_so_far - target) / steps_so_far, [1, 0, 2])
  later = tf.cumsum(tf.reshape(change, [z.shape[1] * n_steps, -1]), reverse=True)
  return tf.transpose(tf.reshape(later, [z.shape[1], n_steps, -1]), [1, 0, 2])


@keras.saving.register_keras_serializable('eprop')
class LeakyReadout(keras.layers.Layer):
  """The leaky readout as a Keras layer: spikes [B, T, N] in, y [B, T, K] out; errors go back through random feedback, eq. (4).

  On top of keras.layers.RNN(ALIF(N, stop_z_gradients=True), return_sequences=True) a model that is fitted learns by e-prop.

  Args:
    units: number of outputs K.
    tau: time constant of the filter in ms.
    symmetric: let errors go back through w_out instead.
    seed: of the feedback matrix.
  """

  def __init__(self, units, tau=20.0, symmetric=False, seed=0, **kwargs):
    super().__init__(**kwargs)
    self.units, self.tau, self.symmetric, self.seed = units, tau, symmetric, seed
    self.supports_jit = False  # as lsnn.Neuron

  def build(self, input_shape):
    shape = input_shape[-1], self.units
    self.w_out = self.add_weight(shape=shape, initializer=keras.initializers.RandomNormal(stddev=shape[0] ** -0.5), name='w_out')
    self.feedback = self.add_weight(shape=shape, initializer=keras.initializers.RandomNormal(stddev=1.0, seed=self.seed),
                                    trainable=False, name='feedback')

  def call(self, z):
    kappa = np.dtype(self.compute_dtype).type(exp_decay(self.tau))
    z_bar = exp_filter(tf.transpose(z, [1, 0, 2]), kappa, normalised=True)
    w_out = tf.convert_to_tensor(self.w_out)
    y = z_bar @ w_out if self.symmetric else broadcast_readout(z_bar, w_out, tf.convert_to_tensor(self.feedback))
    return tf.transpose(y, [1, 0, 2])

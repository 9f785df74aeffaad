"""A readout on top of a network of figure 2: classes of frames, or of whole utterances by CTC; its loss and its learning.

Notation as in networks.py, and D outputs of all layers that are read out, K classes.

  framewise   outputs averaged over the steps of a frame, then filtered from frame to frame; cross-entropy, averaged over each
              utterance's frames and then over utterances
  ctc         outputs filtered from step to step, then averaged over the steps of a frame; the negative logarithm of the
              probability of the utterance's phones, averaged over utterances; the last class is the blank

Both orders are the published ones. The learning signal of eq. (4) is L = error @ B^T with the error at the K outputs.
"""
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from eprop import feedback_matrix, presynaptic_product
from lsnn import exp_filter
from networks import hold

FEEDBACK = ('symmetric', 'adaptive', 'random', 'uniform')
LOSSES = ('framewise', 'ctc')


class Batch(NamedTuple):
  """Padded utterances. Utterances of length 0 only fill the batch up and count for nothing."""
  x: tf.Tensor               # [F, B, I]
  lengths: tf.Tensor         # int32 [B], frames
  targets: tf.Tensor         # int32 [F, B] class of each frame; CTC: [B, R] classes of each utterance
  target_lengths: tf.Tensor  # CTC: int32 [B]; else int32 [B], unused


class Settings(NamedTuple):
  """How a classifier reads out and learns."""
  loss: str = 'framewise'          # one of LOSSES
  kappa: float = 0.0               # decay of the readout's filter per frame (framewise) or per step (ctc); 0: none
  all_layers: bool = True          # read out from all layers, else from the last
  readout_bias: bool = True
  feedback: str = 'symmetric'      # one of FEEDBACK; without meaning for BPTT
  readout_decay: float = 0.0       # adaptive feedback: w_out and B shrink by (1 - readout_decay) per update
  train_network: bool = True       # False: only the readout learns
  rate_cost: float = 0.0           # cost * sum_j (f_j - rate_target)^2 for spiking networks, f_j over all real steps
  rate_target: float = 0.01        # spikes per step
  l2: float = 0.0                  # l2 / 2 times the sum of squares of all trainable numbers
  keep: float = 1.0                # probability with which drop-out keeps an output of a layer
  grad_clip: float = 0.0           # largest norm of all gradients together; 0: no limit


class Result(NamedTuple):
  """What one batch gave."""
  loss: tf.Tensor       # [] task loss alone, averaged over utterances
  error: tf.Tensor      # [] framewise: wrong frames, averaged like the loss; ctc: 0
  rates: list           # [2 N] per layer, mean output over all real steps (LSNN: spikes per step)
  logits: tf.Tensor     # [F, B, K]


class Classifier:
  """A network, its readout and how they learn. All weights are tf.Variables in `weights`, a nested structure.

  Args:
    network: networks.Network.
    settings: Settings.
    n_in: features I.
    n_classes: K.
    rng: numpy Generator of the initial weights.
    dtype: of all computations.

  Raises:
    ValueError: unknown loss or feedback; e-prop in several layers of which only the last is read out: the others would get no
      learning signal.
  """

  def __init__(self, network, settings, n_in, n_classes, rng, dtype='float32'):
    if settings.loss not in LOSSES or settings.feedback not in FEEDBACK:
      raise ValueError(f'the loss must be one of {", ".join(LOSSES)}, the feedback one of {", ".join(FEEDBACK)}; got '
                       f'{settings.loss!r}, {settings.feedback!r}')
    if not (network.bptt or settings.all_layers or len(network.layers) == 1):
      raise ValueError('by e-prop each layer learns from the readout: it must read out from all layers')
    self.network, self.settings, self.dtype = network, settings, tf.as_dtype(dtype)
    n_read = sum(network.units) if settings.all_layers else network.units[-1]
    variable = lambda array: None if array is None else tf.Variable(array, dtype=self.dtype)
    self.layers = tf.nest.map_structure(variable, network.initial_weights(rng, n_in))
    w_out = rng.standard_normal((n_read, n_classes)) / np.sqrt(n_read)
    self.w_out = variable(w_out)
    self.bias = tf.Variable(tf.zeros(n_classes, self.dtype), trainable=settings.readout_bias)
    if network.bptt or settings.feedback == 'symmetric':
      self.feedback = self.w_out
    elif settings.feedback == 'uniform':  # blind to a softmax's errors, which sum to zero: a null control
      self.feedback = variable(np.full(w_out.shape, n_read ** -0.5))
    else:
      scale = n_read ** -0.5 if settings.feedback == 'adaptive' else 1
      self.feedback = variable(scale * feedback_matrix(settings.feedback, w_out, rng))

  @property
  def adaptive(self):
    """Whether the feedback matrix learns."""
    return not self.network.bptt and self.settings.feedback == 'adaptive'

  def trainable(self):
    """Variables that the optimizer updates, in the order of `gradients`."""
    network = [w for w in tf.nest.flatten(self.layers) if w is not None] if self.settings.train_network else []
    return [*network, self.w_out, *([self.bias] if self.settings.readout_bias else []),
            *([self.feedback] if self.adaptive else [])]

  def variables(self):
    """All variables by name, for checkpoints and files."""
    named = {}
    for k, both in enumerate(self.layers):
      for direction, weights in zip(('forward', 'backward'), both):
        named.update({f'layer{k}_{direction}_{name}': w for name, w in weights._asdict().items() if w is not None})
    return dict(named, w_out=self.w_out, bias_out=self.bias, b_out=self.feedback)

  def _forward(self, batch, keep=None):
    """Averaged outputs of the layers; what the readout reads, [F, B, D] or for CTC [T, B, D]; what the gradient needs."""
    ctc = self.settings.loss == 'ctc'
    averages, outputs, memories = self.network.forward(batch.x, batch.lengths, self.layers, keep, every_step=ctc)
    read = outputs if ctc else averages
    return averages, tf.concat(read if self.settings.all_layers else read[-1:], -1), memories

  def _logits(self, read):
    """What is read [T or F, B, D] to logits [F, B, K]."""
    y = exp_filter(read @ self.w_out, self.settings.kappa)
    return (y if self.settings.loss == 'framewise' else self.network.average(y)) + self.bias

  def _error_bar(self, error):
    """Transpose of what `_logits` does after w_out: error [F, B, K] at the logits to the error at z @ w_out, [F or T, B, K].

    In the framewise form it is the same at all steps of a frame and stands there once.
    """
    kappa, n_repeat = self.settings.kappa, self.network.n_repeat
    if self.settings.loss == 'framewise':
      return exp_filter(error, kappa, reverse=True) / n_repeat
    return exp_filter(hold(error / n_repeat, n_repeat), kappa, reverse=True)

  def _loss_and_error(self, logits, batch):
    """Loss [], its derivative with respect to the logits [F, B, K], and the framewise error rate []."""
    there = tf.cast(batch.lengths > 0, self.dtype)                                        # [B]
    per_utterance = there / tf.maximum(tf.reduce_sum(there), 1)
    if self.settings.loss == 'framewise':
      weight = per_utterance / tf.cast(tf.maximum(batch.lengths, 1), self.dtype)
      weight = weight * self._real(batch)[..., 0]                        # [F, B]
      target = tf.one_hot(batch.targets, logits.shape[-1], dtype=self.dtype)
      loss = -tf.reduce_sum(weight * tf.reduce_sum(target * tf.nn.log_softmax(logits), -1))
      wrong = tf.cast(tf.argmax(logits, -1, tf.int32) != batch.targets, self.dtype)
      return loss, weight[..., None] * (tf.nn.softmax(logits) - target), tf.reduce_sum(weight * wrong)
    # Sparse targets choose TensorFlow's compiled loss, which the published program used too.
    # It takes no empty utterances: those of length 0 get a frame and a phone, and count for nothing.
    given = tf.where(tf.sequence_mask(tf.maximum(batch.target_lengths, 1), batch.targets.shape[1]))
    targets = tf.SparseTensor(given, tf.gather_nd(batch.targets, given), batch.targets.shape)
    with tf.GradientTape() as tape:
      tape.watch(logits)
      losses = tf.nn.ctc_loss(targets, tf.cast(logits, tf.float32), None, tf.maximum(batch.lengths, 1), blank_index=-1)
      loss = tf.reduce_sum(tf.cast(losses, self.dtype) * per_utterance)
    return loss, tape.gradient(loss, logits), tf.zeros([], self.dtype)

  def gradients(self, batch, seed=None, gradient_noise=0.0):
    """Loss and gradients for one batch.

    Args:
      batch: Batch.
      seed: int32 [2], of drop-out and gradient noise, which are left out without.
      gradient_noise: standard deviation of normal noise on the gradients.

    Returns:
      Result, and the gradients of `trainable()`.
    """
    s = self.settings
    n_frames, n_batch, _ = batch.x.shape
    keep = None
    if s.keep < 1 and seed is not None:
      keep = [tf.cast(tf.random.stateless_uniform([n_frames, n_batch, n], seed + [0, k]) < s.keep, self.dtype) / s.keep
              for k, n in enumerate(self.network.units, 1)]
    averages, read, memories = self._forward(batch, keep)
    logits = self._logits(read)
    loss, error, error_rate = self._loss_and_error(logits, batch)
    error_bar = self._error_bar(error)

    # Readout
    steps_of_a_read = self.network.n_repeat if s.loss == 'framewise' else 1  # `error_bar` is of one step
    gradients = [steps_of_a_read * presynaptic_product(read, error_bar)]
    gradients += [tf.reduce_sum(error, [0, 1])] if s.readout_bias else []
    gradients += gradients[:1] if self.adaptive else []  # B takes the steps of w_out

    # Network: the learning signal (4), and that of the firing rates over real steps
    rates = self._rates(averages, batch)
    if s.train_network:
      signals = tf.split(tf.matmul(error_bar, self.feedback, transpose_b=True),
                         self.network.units if s.all_layers else self.network.units[-1:], -1)
      if not s.all_layers:
        signals = [tf.zeros([*error_bar.shape[:2], n], self.dtype) for n in self.network.units[:-1]] + signals
      if s.rate_cost:
        where = hold(self._real(batch), error_bar.shape[0] // n_frames)
        n_real = tf.cast(self.network.n_repeat * tf.reduce_sum(batch.lengths), self.dtype)
        signals = [signal + where * (2 * s.rate_cost / n_real * (rate - s.rate_target)) for signal, rate in zip(signals, rates)]
      of_network = self.network.gradient(batch.lengths, self.layers, memories, signals, keep)
      gradients = [g for g in tf.nest.flatten(of_network) if g is not None] + gradients

    trainable = self.trainable()
    if s.l2:
      gradients = [g + s.l2 * w if w is not self.feedback or self.feedback is self.w_out else g
                   for g, w in zip(gradients, trainable)]
    if gradient_noise and seed is not None:
      gradients = [g + gradient_noise * tf.random.stateless_normal(g.shape, seed + [1, k], dtype=self.dtype)
                   for k, g in enumerate(gradients)]
    if s.grad_clip:
      gradients, _ = tf.clip_by_global_norm(gradients, s.grad_clip)
    return Result(loss, error_rate, rates, logits), gradients

  def evaluate(self, batch):
    """Result for one batch, without learning and drop-out."""
    averages, read, _ = self._forward(batch)
    logits = self._logits(read)
    loss, _, error_rate = self._loss_and_error(logits, batch)
    return Result(loss, error_rate, self._rates(averages, batch), logits)

  def _real(self, batch):
    """1 where an utterance has a frame, 0 in the padding, [F, B, 1]."""
    return tf.cast(tf.range(batch.x.shape[0])[:, None] < batch.lengths, self.dtype)[..., None]

  def _rates(self, averages, batch):
    real = self._real(batch)
    return [tf.math.divide_no_nan(tf.reduce_sum(real * z, [0, 1]), tf.reduce_sum(real)) for z in averages]

  def update(self, optimizer, batch, seed=None, gradient_noise=0.0, weight_noise=0.0):
    """One update of all weights.

    Args:
      optimizer: Keras optimizer.
      batch, seed, gradient_noise: as for `gradients`.
      weight_noise: standard deviation of normal noise on the weights while the gradients are computed; it is gone afterwards.

    Returns:
      Result.
    """
    trainable = self.trainable()
    if weight_noise and seed is not None:
      noisy = [w for w in trainable if not self.adaptive or w is not self.feedback]
      clean = [tf.identity(w) for w in noisy]
      for k, w in enumerate(noisy):
        w.assign_add(weight_noise * tf.random.stateless_normal(w.shape, seed + [2, k], dtype=self.dtype))
    result, gradients = self.gradients(batch, seed, gradient_noise)
    if weight_noise and seed is not None:
      for w, value in zip(noisy, clean):
        w.assign(value)
    optimizer.apply(gradients, trainable)
    if self.adaptive:  # Kolen-Pollack
      for variable in (self.w_out, self.feedback):
        variable.assign(variable * (1 - self.settings.readout_decay))
    return result

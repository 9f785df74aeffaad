"""A readout on top of a network of figure 2: classes of frames, or of whole utterances by CTC; its loss and its learning.

Notation as in networks.py, and D outputs of all layers that are read out, K classes.

  framewise   outputs averaged over the steps of a frame, then filtered from frame to frame; cross-entropy, averaged over each
              utterance's frames and then over utterances
  ctc         outputs filtered from step to step, then averaged over the steps of a frame; the negative logarithm of the
              probability of the utterance's phones, averaged over utterances; the last class is the blank

Both orders are the published ones. The learning signal of eq. (4) is L = error @ B^T with the error at the K outputs.
"""
from typing import NamedTuple, Optional

import numpy as np
import tensorflow as tf

from eprop import feedback_matrix, hold, kolen_pollack, LearningSignal, presynaptic_product
from lsnn import exp_filter
from networks import values
import replicas

FEEDBACK = ('symmetric', 'adaptive', 'random', 'uniform')
LOSSES = ('framewise', 'ctc')
REVERSE = ('batch', 'utterance')  # the backward direction begins at the end of the padded batch (published), or of each utterance
RATE_OVER = ('batch', 'utterances')  # the rate cost's means: all steps of the padded batch (published), or real steps alone


class Batch(NamedTuple):
  """Padded utterances. Utterances of length 0 only fill the batch up and count for nothing; nor does what is padded beyond
  the longest utterance."""
  x: tf.Tensor               # [F, B, I], 0 in the padding
  lengths: tf.Tensor         # int32 [B], frames
  targets: tf.Tensor         # int32 [F, B] class of each frame; CTC: [B, R] classes of each utterance
  target_lengths: tf.Tensor  # CTC: int32 [B]; else int32 [B], unused
  all_lengths: tf.Tensor = None  # int32, `lengths` of the whole batch where these B are a replica's part of it

  @property
  def lengths_of_all(self):
    """`lengths` of all utterances of the batch."""
    return self.lengths if self.all_lengths is None else self.all_lengths

  def part(self, chosen, ctc):
    """A replica's part; chosen: slice; ctc: what targets are."""
    targets = self.targets[chosen] if ctc else self.targets[:, chosen]
    return Batch(self.x[:, chosen], self.lengths[chosen], targets, self.target_lengths[chosen], self.lengths)


class Settings(NamedTuple):
  """How a classifier reads out and learns."""
  loss: str = 'framewise'          # one of LOSSES
  kappa: float = 0.0               # decay of the readout's filter per frame (framewise) or per step (ctc); 0: none
  all_layers: bool = True          # read out from all layers, else from the last
  readout_bias: bool = True
  feedback: str = 'symmetric'      # one of FEEDBACK; without meaning for BPTT
  readout_decay: float = 0.0       # adaptive feedback: w_out and B shrink by (1 - readout_decay) per update
  train_network: bool = True       # False: only the readout learns
  reverse: str = 'batch'           # one of REVERSE
  rate_cost: float = 0.0           # cost * sum_j (f_j - rate_target)^2 for spiking networks, f_j the mean rate of neuron j
  rate_target: float = 0.01        # spikes per step
  rate_over: str = 'batch'         # one of RATE_OVER
  l2: float = 0.0                  # l2 times the sum of squares of all that learns
  keep: float = 1.0                # probability with which drop-out keeps an input of a layer or of the readout
  grad_clip: float = 0.0           # largest norm of all gradients together; 0: no limit


class Weights(NamedTuple):
  """All weights, or their gradients: None where one is not there or does not learn."""
  layers: list                    # of each layer the pair (forward, backward)
  w_out: tf.Tensor                # [D, K]
  bias: Optional[tf.Tensor]       # [K]
  feedback: Optional[tf.Tensor]   # [D, K], B of eq. (4) where it is not w_out itself


class Result(NamedTuple):
  """What one batch gave."""
  loss: tf.Tensor       # [] task loss alone, averaged over utterances
  error: tf.Tensor      # [] framewise: wrong frames, averaged like the loss; ctc: 0
  rates: list           # [2 N] per layer, mean output over all real steps (LSNN: spikes per step)
  logits: tf.Tensor     # [F, B, K]
  gradient_norm: Optional[tf.Tensor] = None  # [] of all gradients together, before it is limited


def real_frames(batch, dtype):
  """1 where an utterance has a frame, 0 in the padding, [F, B, 1]."""
  return tf.cast(tf.range(batch.x.shape[0])[:, None] < batch.lengths, dtype)[..., None]


def counted_frames(batch, over, dtype):
  """1 where a frame counts for the rate cost, [F, B, 1]; `over`: one of RATE_OVER."""
  if over == 'utterances':
    return real_frames(batch, dtype)
  until_longest = tf.range(batch.x.shape[0])[:, None] < tf.reduce_max(batch.lengths_of_all)
  return tf.cast(until_longest & (batch.lengths > 0), dtype)[..., None]


def mean_rates(outputs, counted):
  """Means of the outputs of each layer (list of [F, B, 2 N]) where `counted` [F, B, 1] is 1, over the whole batch; list of
  [2 N]."""
  sums, n = replicas.all_sum(([tf.reduce_sum(counted * z, [0, 1]) for z in outputs], tf.reduce_sum(counted)))
  return [tf.math.divide_no_nan(total, n) for total in sums]


def rate_signals(settings, outputs, counted, n_repeat):
  """Derivative of the rate cost with respect to the spikes of each step of a frame.

  Args:
    settings: Settings.
    outputs: of each layer, averaged over the n_repeat steps of a frame, [F, B, 2 N].
    counted: from `counted_frames`.
    n_repeat: steps of a frame.

  Returns:
    list of [F, B, 2 N]: 2 cost (f_j - target) / (number of steps) where a frame counts, else 0.
  """
  scale = 2 * settings.rate_cost / (n_repeat * replicas.all_sum(tf.reduce_sum(counted)))
  return [counted * (scale * (rate - settings.rate_target)) for rate in mean_rates(outputs, counted)]


class Classifier:
  """A network, its readout and how they learn. `gradients` and `evaluate` are functions of weights, `variables` holds them.

  On several replicas each is given its part of a batch, and what they return is of the whole batch, but for the logits.

  Args:
    network: networks.Network.
    settings: Settings.
    n_in: features I.
    n_classes: K.
    rng: numpy Generator of the initial weights.
    dtype: of all computations.

  Raises:
    ValueError: a setting is none of those named; e-prop in several layers of which only the last is read out: the others
      would get no learning signal.
  """

  def __init__(self, network, settings, n_in, n_classes, rng, dtype='float32'):
    for name, known in dict(loss=LOSSES, feedback=FEEDBACK, reverse=REVERSE, rate_over=RATE_OVER).items():
      if getattr(settings, name) not in known:
        raise ValueError(f'{name} must be one of {", ".join(known)}, got {getattr(settings, name)!r}')
    if not (network.bptt or settings.all_layers or len(network.layers) == 1):
      raise ValueError('by e-prop each layer learns from the readout: it must read out from all layers')
    self.network, self.settings, self.dtype = network, settings, tf.as_dtype(dtype)
    self.adaptive = not network.bptt and settings.feedback == 'adaptive'
    self.input_sizes = [n_in, *network.units[:-1]]
    layers = network.initial_weights(rng, n_in)
    n_read = sum(network.units) if settings.all_layers else network.units[-1]
    w_out = rng.standard_normal((n_read, n_classes)) / np.sqrt(n_read)
    if network.bptt or settings.feedback == 'symmetric':
      feedback = None
    elif settings.feedback == 'uniform':  # blind to a softmax's errors, which sum to zero: a null control
      feedback = np.full(w_out.shape, n_read ** -0.5)
    else:
      scale = n_read ** -0.5 if settings.feedback == 'adaptive' else 1
      feedback = scale * feedback_matrix(settings.feedback, w_out, rng)
    variable = lambda array: None if array is None else tf.Variable(array, dtype=self.dtype)
    self.variables = tf.nest.map_structure(variable, Weights(layers, w_out, np.zeros(n_classes), feedback))

  def learning(self, weights):
    """Those of the weights, or of their gradients, that learn: a list, always in the same order."""
    s = self.settings
    parts = [weights.layers if s.train_network else (), weights.w_out, weights.bias if s.readout_bias else None,
             weights.feedback if self.adaptive else None]
    return [w for w in tf.nest.flatten(parts) if w is not None]

  def named_variables(self):
    """All variables by name, for checkpoints and files."""
    named, w = {}, self.variables
    for k, both in enumerate(w.layers):
      for direction, weights in zip(('forward', 'backward'), both):
        named.update({f'layer{k}_{direction}_{name}': v for name, v in weights._asdict().items() if v is not None})
    return dict(named, w_out=w.w_out, bias_out=w.bias, b_out=w.w_out if w.feedback is None else w.feedback)

  def evaluate(self, weights, batch):
    """Result for one batch, without learning and drop-out."""
    runs, _, logits, averages = self._forward(values(weights), batch, None)
    loss, _, error_rate = self._loss_and_error(logits, batch)
    loss, error_rate = replicas.all_sum((loss, error_rate))
    return Result(loss, error_rate, mean_rates(averages, real_frames(batch, self.dtype)), logits)

  def gradients(self, weights, batch, seed=None, gradient_noise=0.0):
    """Loss and gradients for one batch.

    Args:
      weights: Weights.
      batch: Batch.
      seed: int32 [2], of drop-out and gradient noise, which are left out without.
      gradient_noise: standard deviation of normal noise on the gradients.

    Returns:
      Result, and the gradients of `learning(weights)`.
    """
    s, weights = self.settings, values(weights)
    masks = self._drop_out(batch, seed)
    runs, read, logits, averages = self._forward(weights, batch, masks)
    loss, error, error_rate = self._loss_and_error(logits, batch)
    error_bar, held = self._error_bar(error)
    g_out = held * presynaptic_product(read, error_bar)
    of_layers = None
    if s.train_network:
      signals = self._signals(weights, batch, error_bar, held, averages, masks)
      of_layers = self.network.gradient(self._ends(batch), weights.layers, runs, signals, masks and masks[:-1])
    gradients = self.learning(Weights(of_layers, g_out, tf.reduce_sum(error, [0, 1]), g_out))
    gradients, loss, error_rate = replicas.all_sum((gradients, loss, error_rate))
    if s.l2:
      gradients = [g + 2 * s.l2 * w for g, w in zip(gradients, self.learning(weights))]
    norm = tf.linalg.global_norm(gradients)
    if s.grad_clip:
      gradients, _ = tf.clip_by_global_norm(gradients, s.grad_clip, norm)
    if gradient_noise and seed is not None:
      gradients = [g + gradient_noise * tf.random.stateless_normal(g.shape, seed + [1, k], dtype=self.dtype)
                   for k, g in enumerate(gradients)]
    return Result(loss, error_rate, mean_rates(averages, real_frames(batch, self.dtype)), logits, norm), gradients

  def update(self, optimizer, batch, seed=None, gradient_noise=0.0, weight_noise=0.0):
    """One update of `variables`.

    Args:
      optimizer: Keras optimizer, built for `learning(variables)`.
      batch, seed, gradient_noise: as for `gradients`.
      weight_noise: standard deviation of normal noise that is added to the weights after the update.

    Returns:
      Result.
    """
    result, gradients = self.gradients(self.variables, batch, seed, gradient_noise)
    learning = self.learning(self.variables)
    replicas.apply(optimizer, gradients, learning)
    if self.adaptive:
      kolen_pollack(self.variables.w_out, self.variables.feedback, self.settings.readout_decay)
    if weight_noise and seed is not None:
      for k, w in enumerate(learning):
        w.assign_add(weight_noise * tf.random.stateless_normal(w.shape, seed + [2, k], dtype=self.dtype))
    return result

  def _drop_out(self, batch, seed):
    """Masks of the inputs of each layer [F, B, inputs], and last of the readout [F, B, D]; None without drop-out."""
    keep = self.settings.keep
    if keep == 1 or seed is None:
      return None
    sizes, shape = [*self.input_sizes, self.variables.w_out.shape[0]], (batch.x.shape[0], batch.lengths_of_all.shape[0])
    draws = (tf.random.stateless_uniform([*shape, n], seed + [0, k]) for k, n in enumerate(sizes))
    return [tf.cast(replicas.own(draw, 1) < keep, self.dtype) / keep for draw in draws]

  def _ends(self, batch):
    """Frame of each utterance at which the backward direction begins, int32 [B]."""
    if self.settings.reverse == 'utterance':
      return batch.lengths
    return tf.fill(batch.lengths.shape, tf.reduce_max(batch.lengths_of_all))

  def _forward(self, weights, batch, masks):
    """LayerRuns; what is read out, [F, B, D] or for CTC [T, B, D]; logits [F, B, K]; outputs [F, B, 2 N] of each layer."""
    s, network, ends = self.settings, self.network, self._ends(batch)
    runs = network.forward(batch.x, ends, weights.layers, masks and masks[:-1])
    averages = [network.at_frames(run, ends) for run in runs]
    read = averages if s.loss == 'framewise' else [network.at_steps(run, ends) for run in runs]
    read = tf.concat(read if s.all_layers else read[-1:], -1)
    if masks is not None:
      read *= hold(masks[-1], 1 if s.loss == 'framewise' else network.n_repeat)
    y = exp_filter(read @ weights.w_out, s.kappa)
    return runs, read, (y if s.loss == 'framewise' else network.average(y)) + weights.bias, averages

  def _error_bar(self, error):
    """Transpose of what `_forward` does from z @ w_out to the logits, applied to the error [F, B, K] there.

    Returns:
      The error at z @ w_out, and for how many steps each entry stands: [F, B, K] and n_repeat, or for CTC [T, B, K] and 1.
    """
    kappa, n_repeat = self.settings.kappa, self.network.n_repeat
    if self.settings.loss == 'framewise':
      return exp_filter(error, kappa, reverse=True) / n_repeat, n_repeat
    return exp_filter(hold(error / n_repeat, n_repeat), kappa, reverse=True), 1

  def _signals(self, weights, batch, error_bar, held, averages, masks):
    """LearningSignal of each layer: the broadcast error, eq. (4), and the derivative of the rate cost."""
    s, units, n_repeat = self.settings, self.network.units, self.network.n_repeat
    direct = tf.matmul(error_bar, weights.w_out if weights.feedback is None else weights.feedback, transpose_b=True)   # (4)
    if masks is not None:
      direct *= hold(masks[-1], n_repeat // held)
    of_layers = tf.split(direct, units if s.all_layers else units[-1:], -1)
    of_layers = [tf.zeros([*direct.shape[:2], n], self.dtype) for n in units[:len(units) - len(of_layers)]] + of_layers
    if s.rate_cost:
      of_rates = rate_signals(s, averages, counted_frames(batch, s.rate_over, self.dtype), n_repeat)
      of_layers = [signal + hold(of_rate, n_repeat // held) for signal, of_rate in zip(of_layers, of_rates)]
    return [LearningSignal(direct=signal, hold=held) for signal in of_layers]

  def _loss_and_error(self, logits, batch):
    """Loss [], its derivative with respect to the logits [F, B, K], and the framewise error rate []."""
    there = tf.cast(batch.lengths > 0, self.dtype)                                        # [B]
    per_utterance = there / tf.maximum(tf.reduce_sum(tf.cast(batch.lengths_of_all > 0, self.dtype)), 1)
    if self.settings.loss == 'framewise':
      weight = per_utterance / tf.cast(tf.maximum(batch.lengths, 1), self.dtype)
      weight = weight * real_frames(batch, self.dtype)[..., 0]                            # [F, B]
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

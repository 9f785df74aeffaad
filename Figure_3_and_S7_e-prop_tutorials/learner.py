"""Figures 3 and S7: a network with a leaky readout learns by e-prop or BPTT.

Notation as in lsnn.py, eprop.py and readout.py.
"""
import tensorflow as tf

import eprop
from eprop import Layer, LearningSignal, broadcast_readout
from lsnn import exp_filter
from online import online_gradient
import replicas
from readout import LOSSES, RATE_COSTS, Before, Result, Weights, loss_and_error, rate_cost, rate_signal


class Learner:
  """Loss and gradient of a network with a leaky readout, by e-prop or BPTT; a function with its compiled parts.

  On several replicas each is given its part of the batch, and loss, gradient and rates are those of the whole batch on all.

  Args:
    cell: the neurons, lsnn.Neuron.
    readout: Readout.
    regularisation: RateCost.
    bptt: BPTT instead of e-prop.
    impl: 'adjoint', 'autodiff', or 'hardcoded': online, see online.py.
    n_shards: parts of the batch that are simulated side by side, one per processor core.

  Raises:
    ValueError: an argument is none of the named ones, BPTT was asked for in its hardcoded form, which e-prop alone has, or a
      subclass has a learning signal of its own, which the adjoint implementation alone asks for.
  """

  def __init__(self, cell, readout, regularisation, bptt=False, impl='adjoint', n_shards=1):
    if readout.loss not in LOSSES or regularisation.kind not in RATE_COSTS:
      raise ValueError(f'the loss must be one of {", ".join(LOSSES)}, the rate cost one of {", ".join(RATE_COSTS)}; '
                       f'got {readout.loss!r}, {regularisation.kind!r}')
    if n_shards < 1:
      raise ValueError(f'n_shards must be at least 1, got {n_shards}')
    if impl != 'adjoint' and type(self).signal is not Learner.signal:
      raise ValueError(f'a learning signal of your own needs the adjoint implementation, got {impl!r}')
    self.layer = Layer(cell, bptt, impl)
    self.readout, self.regularisation, self.n_shards = readout, regularisation, n_shards
    self._forward = tf.function(self._forward_shard, jit_compile=True)
    self._backward = tf.function(self._backward_shard, jit_compile=True)
    self._online = tf.function(lambda *a: online_gradient(self.layer.cell, readout, regularisation, *a), jit_compile=True)
    self._filter = tf.function(lambda x: exp_filter(x, readout.kappa, readout.normalised), jit_compile=True)
    self._filter_back = tf.function(lambda x: exp_filter(x, readout.kappa, readout.normalised, reverse=True),
                                    jit_compile=True)
    self._alone, self._evaluate_alone = tf.function(self._learn), tf.function(self._evaluate)

  def signal(self, error, feedback, rate_term):
    """The learning signal of the adjoint implementation: the one place to change for somebody with another one.

    Args:
      error: at the outputs, [T, B, K].
      feedback: B of eq. (4), [N, K]; w_out for BPTT.
      rate_term: d rate cost / dz, [N] or [T, B, N].

    Returns:
      LearningSignal.
    """
    return LearningSignal(self._filter_back(error), feedback, rate_term)                                     # (4), (28)

  def __call__(self, x, target, weight, weights, feedback):
    """Gradient, loss and outputs for one batch.

    Args:
      x: inputs [T, B, I], any numeric dtype.
      target: class probabilities or values, [T or 1, B or 1, K].
      weight: weight of each step in the task loss, [T, 1, 1].
      weights: Weights.
      feedback: B of eq. (4), [N, K]; ignored by BPTT.

    Returns:
      Result; y is of the replica's own part of the batch.
    """
    learn = self._alone if tf.executing_eagerly() else self._learn  # replicas cannot meet within a tf.function of its own
    return learn(x, target, weight, Weights(*map(tf.convert_to_tensor, weights)), tf.convert_to_tensor(feedback))

  def evaluate(self, x, target, weight, weights):
    """Task loss [], outputs y [T, B, K] and mean rates [N] without learning; arguments and replicas as for `__call__`."""
    evaluate = self._evaluate_alone if tf.executing_eagerly() else self._evaluate
    return evaluate(x, target, weight, Weights(*map(tf.convert_to_tensor, weights)))

  def _learn(self, x, target, weight, weights, feedback):
    target = tf.broadcast_to(target, [*x.shape[:2], weights.w_out.shape[1]])
    learn = {'adjoint': self._adjoint, 'hardcoded': self._hardcoded, 'autodiff': self._autodiff}[self.layer.impl]
    gradients, task_loss, rate_loss, y, rate = learn(x, target, weight, weights, feedback)
    if self.regularisation.kind == 'online':  # a sum over trials
      gradients, task_loss, rate_loss = replicas.all_sum((gradients, task_loss, rate_loss))
    else:
      gradients, task_loss = replicas.all_sum((gradients, task_loss))
    return Result(Weights(*gradients), task_loss, rate_loss, y, rate)

  def _evaluate(self, x, target, weight, weights):
    _, y, rate = self._simulate(x, weights)
    loss = loss_and_error(self.readout.loss, y, tf.broadcast_to(target, y.shape), weight)[0]
    return replicas.all_sum(loss), y, self._of_batch(rate, x)[0]

  def _of_batch(self, rate, x):
    """What concerns other replicas' trials.

    Args:
      rate: of the own trials, [N].
      x: inputs of these [T, B, I].

    Returns:
      Mean rate of all trials [N]; their number; Before.
    """
    n_trials = tf.constant(x.shape[1], rate.dtype)
    all_rates, k = replicas.in_order(tf.concat([rate * n_trials, n_trials[None]], 0))
    total, before = tf.reduce_sum(all_rates, 0), tf.reduce_sum(all_rates[:k], 0)
    return total[:-1] / total[-1], total[-1], Before(before[:-1] * x.shape[0], before[-1])

  def _later(self, change):
    """Sum of [N] over the replicas with later trials."""
    of_all, k = replicas.in_order(change)
    return tf.reduce_sum(of_all[k + 1:], 0)

  def _split(self, array):
    n_batch = array.shape[1]
    n_shards = min(self.n_shards, n_batch)
    return tf.split(array, [n_batch // n_shards + (k < n_batch % n_shards) for k in range(n_shards)], axis=1)

  def _split_signal(self, signal):
    errors = self._split(signal.error)
    same = signal.direct.shape.rank == 1
    directs = [signal.direct] * len(errors) if same else self._split(signal.direct)
    return [signal._replace(error=error, direct=direct) for error, direct in zip(errors, directs)]

  def _forward_shard(self, x, weights):
    return self.layer.forward(x, eprop.Weights(weights.w_in, weights.w_rec), weights.w_out)

  def _simulate(self, x, weights):
    """Per shard its inputs and Run; outputs y [T, B, K]; mean rates [N]."""
    shards = [(x, self._forward(x, weights)) for x in self._split(x)]
    y = self._filter(tf.concat([run.z for _, run in shards], 1))
    return shards, y, tf.add_n([run.rate * (part.shape[1] / x.shape[1]) for part, run in shards])

  def _adjoint(self, x, target, weight, weights, feedback):
    shards, y, rate = self._simulate(x, weights)
    rate, n_trials, before = self._of_batch(rate, x)
    task_loss, error = loss_and_error(self.readout.loss, y, target, weight)
    z, online = None, self.regularisation.kind == 'online'
    if online:
      z = tf.concat([self.layer.cell.spikes(run.memory) for _, run in shards], 1)
    rate_term = rate_signal(self.regularisation, rate, x.shape[0], n_trials, z, before)
    if online:
      rate_term += self._later(rate_term[0, 0])
    signal = self.signal(error, weights.w_out if self.layer.bptt else feedback, rate_term)
    parts = [self._backward(x, run.memory, part, weights) for (x, run), part in zip(shards, self._split_signal(signal))]
    gradients = tuple(tf.add_n(part) for part in zip(*parts))
    return gradients, task_loss, rate_cost(self.regularisation, rate, z, before), y, rate

  def _hardcoded(self, x, target, weight, weights, feedback):
    before, online = None, self.regularisation.kind == 'online'
    if online:  # the number of spikes in other replicas' trials must be known first
      before = self._of_batch(self._simulate(x, weights)[2], x)[2]
    run = self._online(x, target, weight, weights, feedback, before)
    rate, n_trials, _ = self._of_batch(run.count / (x.shape[0] * x.shape[1]), x)
    if online:
      factor, rate_loss = self._later(run.change), run.rate_loss
    else:
      factor = rate_signal(self.regularisation, rate, x.shape[0], n_trials)
      rate_loss = rate_cost(self.regularisation, rate)
    return run.gradients(x.shape[2], factor), run.task_loss, rate_loss, run.y, rate

  def _backward_shard(self, x, memory, signal, weights):
    gradient = self.layer.gradient(x, eprop.Weights(weights.w_in, weights.w_rec), memory, signal)
    return (*gradient.weights, gradient.w_read)

  def _autodiff(self, x, target, weight, weights, feedback):
    """The gradient of the whole loss by TensorFlow's automatic differentiation. Slow and large."""
    bptt = self.layer.bptt
    with tf.GradientTape() as tape:
      tape.watch(weights)
      run = self.layer.simulate(x, eprop.Weights(weights.w_in, weights.w_rec), stop_z_gradients=not bptt)
      z_bar = exp_filter(run.z, self.readout.kappa, self.readout.normalised)
      y = z_bar @ weights.w_out if bptt else broadcast_readout(z_bar, weights.w_out, feedback)
      task_loss, _ = loss_and_error(self.readout.loss, y, target, weight)
    rate, n_trials, before = self._of_batch(tf.reduce_mean(run.z, [0, 1]), x)
    with tf.GradientTape() as of_rates:
      of_rates.watch((run.z, rate, before.count))
      rate_loss = rate_cost(self.regularisation, rate, run.z, before)
    by_z, by_rate, by_count = of_rates.gradient(rate_loss, (run.z, rate, before.count), unconnected_gradients='zero')
    by_z += by_rate / (n_trials * x.shape[0]) + self._later(by_count)
    gradients = tape.gradient((task_loss, run.z), weights, output_gradients=(tf.ones_like(task_loss), by_z))
    return gradients, task_loss, rate_loss, y, rate

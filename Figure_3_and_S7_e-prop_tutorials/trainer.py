"""Figures 3 and S7: a network in training on a task, with weights, feedback matrix and optimizer."""
import numpy as np
import tensorflow as tf

import eprop
from learner import Learner
from readout import Weights
import replicas


def apply_gradients(optimizer, gradients, weights, adaptive_feedback=None, readout_decay=0.0):
  """One update of the weights, and of a feedback matrix that learns.

  Args:
    optimizer: keras optimizer, built for the variables that follow.
    gradients: Weights.
    weights: Weights of tf.Variables.
    adaptive_feedback: tf.Variable [N, K], which gets the same gradient as w_out through optimizer slots of its own; or None
      where the feedback does not learn.
    readout_decay: decay of w_out and B per update, see eprop.kolen_pollack.
  """
  if adaptive_feedback is None:
    replicas.apply(optimizer, gradients, weights)
    return
  replicas.apply(optimizer, (*gradients, gradients.w_out), (*weights, adaptive_feedback))
  eprop.kolen_pollack(weights.w_out, adaptive_feedback, readout_decay)


def random_weights(rng, n_in, n_rec):
  """w_in [I, N], w_rec [N, N] ~ N(0, 1) / sqrt(fan-in), no autapses; a dict. rng: numpy Generator."""
  w_rec = rng.standard_normal((n_rec, n_rec)) / np.sqrt(n_rec)
  np.fill_diagonal(w_rec, 0)
  return dict(w_rec=w_rec, w_in=rng.standard_normal((n_in, n_rec)) / np.sqrt(n_in))


class Trainer:
  """A network in training.

  Args:
    learner: Learner.
    task: tasks.Task.
    arrays: dict of initial w_in, w_rec, w_out and, if B is not w_out, b_out.
    feedback: kind of the feedback matrix B, one of eprop.FEEDBACK; BPTT uses none.
    optimizer: keras optimizer.
    readout_decay: decay of w_out and B per update where the feedback is adaptive.
    rewiring: optional rewiring.Rewiring, which follows each update.

  Attributes:
    weights: Weights of tf.Variables.
    feedback: B, a tf.Variable [N, K]; w_out itself where it is symmetric.
  """

  def __init__(self, learner, task, arrays, feedback, optimizer, readout_decay=0.0, rewiring=None):
    self.learner, self.task, self._rewiring = learner, task, rewiring
    self._dtype, self._optimizer, self._readout_decay = np.dtype(learner.layer.cell.compute_dtype), optimizer, readout_decay
    self._bptt = Learner(learner.layer.cell, learner.readout, learner.regularisation, bptt=True, n_shards=learner.n_shards)
    self.weights = Weights(*(tf.Variable(arrays[name], dtype=self._dtype) for name in Weights._fields))
    self.feedback = self.weights.w_out
    if feedback != 'symmetric':
      self.feedback = tf.Variable(arrays.get('b_out', arrays['w_out']), dtype=self._dtype)
    self._adaptive_feedback = self.feedback if feedback == 'adaptive' and not learner.layer.bptt else None
    self.loss_weight = tf.constant(task.loss_weight(task.n_steps, task.n_batch), self._dtype)
    optimizer.build([*self.weights] + ([] if self._adaptive_feedback is None else [self._adaptive_feedback]))
    self._update, self._cosines, self._evaluate = map(replicas.function, (self._update_by, self._cosines_by, self._evaluate_by))

  def variables(self):
    """All that a resumed run needs to go on, a dict."""
    return dict(self.weights._asdict(), b_out=self.feedback,
                **{f'optimizer_{k}': variable.value for k, variable in enumerate(self._optimizer.variables)},
                **{f'active_{k}': mask for k, mask in enumerate(self._rewiring.active if self._rewiring else ())})

  def final_weights(self):
    """dict of arrays, as --init_from takes them."""
    return dict({name: w.numpy() for name, w in self.weights._asdict().items()}, b_out=self.feedback.numpy())

  def batch(self, stream, k):
    """As Task.batch, the target in the network's precision."""
    x, target = self.task.batch(stream, k)
    return x, np.ascontiguousarray(target, self._dtype)

  def update(self, x, target):
    """One update of the weights; the Result from before it."""
    return self._update(*self._parts(x, target))

  def gradient_angle(self, x, target):
    """Cosine between the gradient in use and that of BPTT, dict of cos_bptt_w_in, cos_bptt_w_rec, cos_bptt_w_out."""
    return {f'cos_bptt_{name}': float(cosine) for name, cosine in zip(Weights._fields, self._cosines(*self._parts(x, target)))}

  def evaluate(self, x, target):
    """Outputs y [T, B, K] and mean rate of all neurons, spikes per step."""
    y, rate = self._evaluate(*self._parts(x, target))
    return y.numpy(), float(tf.reduce_mean(rate))

  @staticmethod
  def _parts(x, target):
    """A batch as the functions that follow take it, which each replica calls for its part."""
    return replicas.each(x.shape[1], lambda part: (x[:, part], target[:, part]))

  def _update_by(self, x, target):
    result = self.learner(x, target, self.loss_weight, self.weights, self.feedback)
    apply_gradients(self._optimizer, result.gradients, self.weights, self._adaptive_feedback, self._readout_decay)
    if self._rewiring:
      self._rewiring.apply(self.weights[:2], self._optimizer.iterations)
    return result._replace(y=replicas.whole(result.y, self.task.n_batch, 1))

  def _cosines_by(self, x, target):
    gradients, of_bptt = (rule(x, target, self.loss_weight, self.weights, self.feedback).gradients
                          for rule in (self.learner, self._bptt))
    return [eprop.cosine(a, b) for a, b in zip(gradients, of_bptt)]

  def _evaluate_by(self, x, target):
    _, y, rate = self.learner.evaluate(x, target, self.loss_weight, self.weights)
    return replicas.whole(y, self.task.n_batch, 1), rate

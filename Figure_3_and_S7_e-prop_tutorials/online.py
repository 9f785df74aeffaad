"""Figures 3 and S7: e-prop as an online learner runs it. A reference: short, close to the equations, and slow.

Network, eligibility traces, readout and gradient advance together, one step at a time, and nothing looks ahead, so that memory is
O((I + N) N) however long trials are. Trials take turns in small blocks, whose traces fit the processor's cache.
"""
from typing import NamedTuple

import tensorflow as tf

from eprop import trials_side_by_side
from lsnn import scan, without_autapses
from readout import loss_and_error


class Online(NamedTuple):
  """What was summed up on the way."""
  gradient: tf.Tensor   # [I + N, N] of w_in and w_rec, without what a rate cost adds that is known at the end only
  g_out: tf.Tensor      # [N, K]
  task_loss: tf.Tensor  # []
  rate_loss: tf.Tensor  # [] of the rate cost 'online'
  count: tf.Tensor      # [N] spikes
  e_sum: tf.Tensor      # [I + N, N] sum of all traces
  change: tf.Tensor     # [N] derivative of rate_loss by a spike before the first trial
  y: tf.Tensor          # [T, B, K]

  def gradients(self, n_in, rate_factor):
    """Of w_in, w_rec and w_out. rate_factor: [N], derivative by each spike of what a rate cost adds."""
    gradient = self.gradient + rate_factor * self.e_sum
    return gradient[:n_in], without_autapses(gradient[n_in:]), self.g_out


def online_gradient(cell, readout, regularisation, x, target, weight, weights, feedback, before=None):
  """E-prop's gradient formed online.

  The derivative of a rate cost by a spike depends on later spikes, but only through its factor: what those spikes multiply is the
  sum of all traces so far, which is carried. With the rate cost 'online', trials follow one another in one sequence.

  Args:
    cell: the neurons, lsnn.Neuron.
    readout: Readout.
    regularisation: RateCost.
    x: inputs [T, B, I].
    target: [T, B, K].
    weight: weight of each step in the task loss, [T, 1, 1].
    weights: Weights.
    feedback: B of eq. (4), [N, K].
    before: readout.Before, for the rate cost 'online'.

  Returns:
    Online.
  """
  n_steps, n_batch, n_in = x.shape
  n, n_out = weights.w_out.shape
  dtype, n_pre = weights.w_in.dtype, n_in + n  # n_pre: the rows of w_in and w_rec together
  gain = 1 - readout.kappa if readout.normalised else 1
  cost, rate_target, kind = regularisation
  block = 1 if kind == 'online' else trials_side_by_side(n_batch, n_pre * n)
  in_blocks = lambda array: tf.transpose(tf.reshape(array, [n_steps, n_batch // block, block, array.shape[-1]]), [1, 0, 2, 3])
  xs, targets = in_blocks(tf.cast(x, dtype)), in_blocks(target)
  w_rec = without_autapses(weights.w_rec)
  zeros = lambda *shape: tf.zeros(shape, dtype)
  count_before, steps_before = (0, 0) if before is None else (before.count, before.n_trials * n_steps)

  def trials(b, sums):
    x, target = xs[b], targets[b]

    def step(t, carried):
      state, eps, z_bar, e_bar, (gradient, g_out, loss, rate_loss, count, e_sum, change) = carried
      current = x[t] @ weights.w_in + state.z @ w_rec
      after = cell.step(current, state.z, state)
      e, eps = cell.trace_step(cell.remember(current, state, after), tf.concat([x[t], state.z], 1), eps)      # (22)-(25)
      z_bar = readout.kappa * z_bar + gain * after.z
      e_bar = readout.kappa * e_bar + gain * e                                                                # (28)
      y = z_bar @ weights.w_out
      step_loss, error = loss_and_error(readout.loss, y, target[t], weight[t])
      learning_signal = tf.matmul(error, feedback, transpose_b=True)                                          # (4)
      gradient += tf.reduce_sum(learning_signal[:, None] * e_bar, 0)                                          # (1)
      g_out += tf.matmul(z_bar, error, transpose_a=True)
      count, e_sum = count + tf.reduce_sum(after.z, 0), e_sum + tf.reduce_sum(e, 0)
      if kind == 'online':
        seen = tf.cast(b * n_steps + t + 1, dtype) + steps_before
        deviation = (count + count_before) / seen - rate_target
        rate_loss += cost / n_steps * tf.reduce_sum(deviation ** 2)
        factor = 2 * cost / n_steps * deviation / seen
        gradient, change = gradient + factor * e_sum, change + factor
      return (after, eps, z_bar, e_bar, (gradient, g_out, loss + step_loss, rate_loss, count, e_sum, change)), y

    start = cell.State(*cell.get_initial_state(block)), cell.initial_eps(block, n_pre), zeros(block, n), zeros(block, n_pre, n), sums
    (*_, sums), y = scan(step, start, n_steps, zeros(block, n_out))
    return sums, y

  start = zeros(n_pre, n), zeros(n, n_out), zeros(), zeros(), zeros(n), zeros(n_pre, n), zeros(n)
  sums, y = scan(trials, start, n_batch // block, zeros(n_steps, block, n_out))
  return Online(*sums, tf.reshape(tf.transpose(y, [1, 0, 2, 3]), [n_steps, n_batch, n_out]))

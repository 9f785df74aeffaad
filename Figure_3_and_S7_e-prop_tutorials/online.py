"""Figures 3 and S7: e-prop as an online learner runs it. A reference: short, close to the equations, and slow.

Network, eligibility traces, readout and gradient advance together, one step at a time, and nothing looks ahead, so that memory is
O((I + N) N) however long trials are. Trials take turns in small blocks, whose traces fit the processor's cache.
"""
import tensorflow as tf

from eprop import scan, trials_side_by_side
from lsnn import without_autapses
from readout import Result, Weights, loss_and_error


def online_gradient(cell, readout, regularisation, x, target, weight, weights, feedback):
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

  Returns:
    Result.
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

  def trials(b, sums):
    x, target = xs[b], targets[b]

    def step(t, carried):
      state, eps, z_bar, e_bar, (gradient, g_out, loss, rate_loss, count, e_sum) = carried
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
        seen = tf.cast(b * n_steps + t + 1, dtype)
        deviation = count / seen - rate_target
        rate_loss += cost / n_steps * tf.reduce_sum(deviation ** 2)
        gradient += 2 * cost / n_steps * deviation / seen * e_sum
      return (after, eps, z_bar, e_bar, (gradient, g_out, loss + step_loss, rate_loss, count, e_sum)), y

    start = cell.State(*cell.get_initial_state(block)), cell.initial_eps(block, n_pre), zeros(block, n), zeros(block, n_pre, n), sums
    (*_, sums), y = scan(step, start, n_steps, zeros(block, n_out))
    return sums, y

  start = zeros(n_pre, n), zeros(n, n_out), zeros(), zeros(), zeros(n), zeros(n_pre, n)
  sums, y = scan(trials, start, n_batch // block, zeros(n_steps, block, n_out))
  gradient, g_out, task_loss, rate_loss, count, e_sum = sums
  rate = count / (n_batch * n_steps)
  if kind == 'simple':
    rate_loss = cost * tf.reduce_sum((rate - rate_target) ** 2)
    gradient += 2 * cost / (n_batch * n_steps) * (rate - rate_target) * e_sum
  y = tf.reshape(tf.transpose(y, [1, 0, 2, 3]), [n_steps, n_batch, n_out])
  return Result(Weights(gradient[:n_in], without_autapses(gradient[n_in:]), g_out), task_loss, rate_loss, y, rate)

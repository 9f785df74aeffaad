"""Reference data for other implementations: everything that one iteration of learning by e-prop computes, in one .npz file.

The inverse of --init_from, which reads these files as they are. README.md has the schema; read_reference.py recomputes the
gradient from a file without TensorFlow.
"""
import numpy as np
import tensorflow as tf

import eprop
from files import UserError, write_whole
from lsnn import exp_filter
from readout import loss_and_error, rate_signal

N_SYNAPSES = 4  # traces are written of this many synapses of w_in, and as many of w_rec: those with the largest gradients


def parse_iterations(texts, dtype, is_bptt, n_iter):
  """Iteration numbers of --export_reference.

  Raises:
    UserError: they are no iterations of this run, or the run is not by e-prop in float64.
  """
  if not texts:
    return []
  try:
    iterations = sorted({int(text) for text in texts})
  except ValueError:
    raise UserError(f'--export_reference takes numbers of iterations, such as 1,2,10; got {",".join(texts)}') from None
  if iterations[0] < 1 or iterations[-1] > n_iter:
    raise UserError(f'--export_reference={",".join(texts)}: the iterations of this run are 1 to {n_iter}')
  if is_bptt:
    raise UserError('--export_reference writes what learning by e-prop computes; this run learns by BPTT')
  if dtype != 'float64':
    raise UserError('--export_reference writes numbers for comparison to the last digits: add --dtype=float64')
  return iterations


def snapshot(weights, feedback):
  """(readout.Weights, B) as they are now, arrays."""
  return type(weights)(*(w.numpy() for w in weights)), feedback.numpy()


def strongest(gradient):
  """(pre, post) of the N_SYNAPSES entries of a gradient [I, N] with the largest absolute values, no two onto one neuron."""
  pre = np.abs(gradient).argmax(0)
  post = np.argsort(-np.abs(gradient).max(0), kind='stable')[:N_SYNAPSES]
  return pre[post], post


def arrays_over_time(learner, x, target, loss_weight, weights, feedback, pre, post):
  """What happened at each step of one iteration.

  Args:
    learner: learner.Learner.
    x, target, loss_weight, weights, feedback: as for the learner.
    pre, post: synapses whose traces are wanted, [S]; `pre` counts inputs first, then neurons.

  Returns:
    dict of arrays [T, B, ...].
  """
  cell, readout, (n_steps, n_batch, _) = learner.layer.cell, learner.readout, x.shape
  x = tf.cast(x, weights.w_in.dtype)
  run = learner.layer.simulate(x, eprop.Weights(weights.w_in, weights.w_rec), record_states=True)
  y = exp_filter(run.z, readout.kappa, readout.normalised) @ weights.w_out
  target = tf.broadcast_to(target, y.shape)
  _, error = loss_and_error(readout.loss, y, target, loss_weight)
  rate_term = rate_signal(learner.regularisation, tf.reduce_mean(run.z, [0, 1]), n_steps, n_batch, run.z)
  arriving = tf.gather(tf.concat([x, eprop.one_step_later(run.z)], 2), pre, axis=2)
  e, eps = eprop.eligibility_traces(cell, arriving, run.memory)
  chosen = lambda traces: tf.stack([traces[:, :, k, min(j, traces.shape[3] - 1)] for k, j in enumerate(post)], 2)
  return dict(inputs=x, targets=target, y=y, error=error, learning_signal=tf.matmul(error, feedback, transpose_b=True),
              rate_signal=tf.broadcast_to(rate_term, run.z.shape), z=run.z, v=run.states.v, a=run.states.a,
              psi=cell.psi(run.memory), eps_v=chosen(eps.v), eps_a=chosen(eprop.one_step_later(eps.a)), e=chosen(e),
              e_bar=chosen(exp_filter(e, readout.kappa, readout.normalised)))


def constants(learner, dt):
  """Constants of neurons and readout, per neuron where neurons may differ."""
  cell, readout = learner.layer.cell, learner.readout
  of_each = lambda value: np.broadcast_to(value, cell.units).astype(np.float64)
  return dict(alpha=of_each(cell.alpha), rho=of_each(cell.rho), beta=of_each(cell.beta), thr=cell.thr, dt=dt,
              n_refractory=cell.n_refractory, dampening_factor=cell.dampening_factor, current_gain=of_each(cell.current_gain),
              kappa=readout.kappa, readout_gain=1 - readout.kappa if readout.normalised else 1.0, loss=readout.loss)


def export(path, iteration, learner, x, target, loss_weight, before, weights, result, dt, labels=None):
  """Writes the file of one iteration, after its update.

  Args:
    path: .npz to write.
    iteration: its number, from 1.
    learner: learner.Learner.
    x, target, loss_weight: as for the learner.
    before: `snapshot` before the update.
    weights: readout.Weights after the update.
    result: what the learner returned.
    dt: length of a step in ms.
    labels: classes [B], where there are any.
  """
  (before, feedback), after = before, type(weights)(*(w.numpy() for w in weights))
  (pre_in, post_in), (pre_rec, post_rec) = (strongest(gradient.numpy()) for gradient in result.gradients[:2])
  pre, post = np.concatenate([pre_in, x.shape[2] + pre_rec]), np.concatenate([post_in, post_rec])
  over_time = tf.function(lambda *a: arrays_over_time(learner, *a, pre, post))(x, target, loss_weight, before, feedback)
  arrays = {name: np.swapaxes(array.numpy(), 0, 1) for name, array in over_time.items()}
  arrays.update(constants(learner, dt), iteration=iteration, synapses=np.stack([pre, post], 1), b_out=feedback,
                loss_weight=loss_weight[:, 0, 0], task_loss=result.task_loss, rate_loss=result.rate_loss)
  for name in before._fields:
    arrays.update({name: getattr(before, name), f'{name}_after': getattr(after, name),
                   f'gradient_{name}': getattr(result.gradients, name)})
  if labels is not None:
    arrays['labels'] = labels
  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  for name in ('inputs', 'z'):
    arrays[name] = arrays[name].astype(np.uint8)
  write_whole(path, lambda temporary: np.savez_compressed(temporary, **arrays))

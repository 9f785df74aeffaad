"""Where a run starts from: arrays of --init_from, so that another simulator's run can be repeated number by number."""
import numpy as np

from experiment import load_npz
from files import UserError


def check_shape(path, name, array, *shapes):
  """Raises UserError unless the array has one of the shapes; None in a shape stands for any size of at least 1."""
  for shape in shapes:
    if array.ndim == len(shape) and all(size == want or want is None and size for size, want in zip(array.shape, shape)):
      return
  text = ' or '.join('[' + ', '.join('any' if want is None else str(want) for want in shape) + ']' for shape in shapes)
  raise UserError(f'array {name} in {path} has shape {list(array.shape)}, needed is {text}')


def load_initial_arrays(path, n_in, n_rec, n_out, target_name, needs_feedback):
  """Reads and checks the arrays of --init_from.

  Args:
    path: .npz file with w_in [I, N], w_rec [N, N], w_out [N, K], b_out [N, K], and where given inputs [trial, time, I]
      or [iteration, trial, time, I] together with targets [trial, time, K], or labels [trial] or [iteration, trial].
    n_in, n_rec, n_out: I, N, K; n_in and n_out may be None, which takes what the file has.
    target_name: 'labels' or 'targets', the one the task learns from.
    needs_feedback: whether b_out must be there.

  Returns:
    dict of the arrays.

  Raises:
    UserError: the file or an array is missing, has a wrong shape or type, or holds NaN.
  """
  required = ('w_in', 'w_rec', 'w_out') + (('b_out',) if needs_feedback else ())
  arrays = load_npz(path, required, ('b_out', 'inputs', 'labels', 'targets'))
  if 'inputs' in arrays:
    n_in = None  # the given inputs decide
  check_shape(path, 'w_in', arrays['w_in'], (n_in, n_rec))
  check_shape(path, 'w_rec', arrays['w_rec'], (n_rec, n_rec))
  check_shape(path, 'w_out', arrays['w_out'], (n_rec, n_out))
  np.fill_diagonal(arrays['w_rec'], 0)  # no autapses
  if 'b_out' in arrays:
    check_shape(path, 'b_out', arrays['b_out'], arrays['w_out'].shape)
  if 'inputs' not in arrays:
    if target_name == 'labels' and 'labels' in arrays:
      raise UserError(f'{path} has labels without inputs')
    return arrays
  if target_name not in arrays:
    raise UserError(f'{path} has inputs without {target_name}')
  n_in = arrays['w_in'].shape[0]
  check_shape(path, 'inputs', arrays['inputs'], (None, None, n_in), (None, None, None, n_in))
  *n_iter, n_batch, n_steps, _ = arrays['inputs'].shape
  n_out = arrays['w_out'].shape[1]
  if target_name == 'targets':
    check_shape(path, 'targets', arrays['targets'], (n_batch, n_steps, n_out))
    return arrays
  check_shape(path, 'labels', arrays['labels'], (n_batch,), *([(*n_iter, n_batch)] if n_iter else []))
  labels = arrays['labels']
  if np.any(labels != np.floor(labels)) or labels.min() < 0 or labels.max() >= n_out:
    raise UserError(f'array labels in {path} must hold whole numbers from 0 to {n_out - 1}')
  arrays['labels'] = labels.astype(np.int64)
  return arrays


def batch_of_iteration(path, array, iteration, n_dims):
  """The entry of an array for one iteration (counted from 1); arrays of n_dims dimensions are the same in every one.

  Raises:
    UserError: the file has too few iterations.
  """
  if array.ndim == n_dims:
    return array
  if iteration > len(array):
    raise UserError(f'{path} has inputs for {len(array)} iterations: --n_iter may not be larger')
  return array[iteration - 1]

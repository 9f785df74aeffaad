"""Where a run starts from: arrays of --init_from, so that another simulator's run can be repeated number by number."""
import numpy as np

from checkpoints import load_npz
from files import UserError
from tasks import GivenTrials


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


def given_trials(path, arrays, like, n_iter, n_batch=None):
  """The task of given inputs.

  Args:
    path: the file, for messages.
    arrays: of `load_initial_arrays`, with inputs.
    like: Task whose loss and error they are for.
    n_iter: number of iterations.
    n_batch: number of trials that was asked for, None for none.

  Returns:
    GivenTrials.

  Raises:
    UserError: other trials or fewer iterations than asked for.
  """
  inputs = arrays['inputs']
  of_classes = like.loss == 'cross_entropy'
  target = np.eye(like.n_out)[arrays['labels']][..., None, :] if of_classes else arrays['targets']
  if n_batch is not None and n_batch != inputs.shape[-3]:
    raise UserError(f'--n_batch is {n_batch}, but the inputs in {path} have {inputs.shape[-3]} trials')
  if inputs.ndim == 4 and n_iter > len(inputs):
    raise UserError(f'{path} has inputs for {len(inputs)} iterations: --n_iter may not be larger')
  return GivenTrials(like, inputs, target, n_iter)

"""Arrays of files into variables and back: weights that a run begins with, checkpoints that it goes on from."""
import os
import re
import sys

from absl import flags

import files
from files import UserError

FLAGS = flags.FLAGS


def load_npz(path, required, optional=()):
  """`files.load_npz`, floats as --dtype."""
  return files.load_npz(path, required, optional, FLAGS.dtype)


def restore(variables, path):
  """Gives variables (dict, name: tf.Variable) the arrays of those names in an .npz file.

  Raises:
    UserError: as `load_npz`, or an array has another shape than its variable, or no whole numbers for one that has these.
  """
  arrays = load_npz(path, list(variables))
  for name, variable in variables.items():
    if arrays[name].shape != variable.shape:
      raise UserError(f'array {name} in {path} has shape {list(arrays[name].shape)}, needed is {variable.shape.as_list()}: '
                      'give the flags of the run that wrote it')
    if variable.dtype.is_integer and arrays[name].dtype.kind == 'f':
      raise UserError(f'array {name} in {path} is {arrays[name].dtype}, needed is {variable.dtype.name}')
  for name, variable in variables.items():
    variable.assign(arrays[name])


class Checkpoints:
  """The last checkpoints of a run, <folder>/<iteration>.npz.

  Args:
    folder: where they lie.
    variables: dict of tf.Variables.
  """
  KEPT = 2

  def __init__(self, folder, variables):
    self._folder, self._variables = folder, variables
    os.makedirs(folder, exist_ok=True)

  def paths(self):
    """Of the checkpoints that are there, the latest first."""
    numbers = sorted((int(name[:-4]) for name in os.listdir(self._folder) if re.fullmatch(r'\d+\.npz', name)), reverse=True)
    return [os.path.join(self._folder, f'{number}.npz') for number in numbers]

  def save(self, iteration):
    """Writes a checkpoint, and removes those that are too many.

    Raises:
      UserError: a variable is not finite, or the disk is full or cannot be written; the checkpoints before stay as they are.
    """
    arrays = {name: variable.numpy() for name, variable in self._variables.items()}
    path = os.path.join(self._folder, f'{iteration}.npz')
    before = f'the checkpoints in {self._folder} are from before' if self.paths() else 'there is no checkpoint yet'
    _check_weights(arrays, f'after iteration {iteration}; {before}')
    try:
      files.write_npz(path, arrays)
    except OSError as error:
      raise UserError(f'the checkpoint of iteration {iteration} in {self._folder} could not be written: '
                      f'{error.strerror or error}') from None
    for old in self.paths()[self.KEPT:]:
      os.remove(old)

  def restore(self):
    """Gives the variables the values of the latest checkpoint that can be read; leaves them if there has been none yet.

    Raises:
      UserError: there are checkpoints, and none of them can be read.
    """
    reasons = []
    for path in self.paths():
      try:
        return self._read(path)
      except UserError as error:
        reasons.append(str(error))
        print(f'warning: {error}', file=sys.stderr, flush=True)
    others = [name for name in os.listdir(self._folder) if '.part' not in name]
    if others:
      raise UserError(f'no checkpoint in {self._folder} can be read, so that the run cannot be resumed: '
                      f'{reasons[0] if reasons else "it holds " + others[0]}')

  def _read(self, path):
    arrays = files.read_npz(path, list(self._variables))
    for name, variable in self._variables.items():
      if arrays[name].shape != variable.shape or arrays[name].dtype != variable.dtype.as_numpy_dtype:
        raise UserError(f'array {name} in {path} is {arrays[name].dtype} {list(arrays[name].shape)}, needed is '
                        f'{variable.dtype.name} {variable.shape.as_list()}: this checkpoint is of another network')
    _check_weights(arrays, f'in {path}')
    for name, variable in self._variables.items():
      variable.assign(arrays[name])


def _check_weights(arrays, where):
  files.check_finite({name: array for name, array in arrays.items() if array.ndim}, where)  # a best error may be infinite

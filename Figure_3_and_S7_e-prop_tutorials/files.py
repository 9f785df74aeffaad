"""Files: whole or not at all when written, checked when read back. No TensorFlow.

Whatever is wrong with a file that is read ends in a UserError of one sentence.
"""
import csv
import io
import json
import math
import os
import re
import sys
import time

import numpy as np


class UserError(Exception):
  """Something the user can mend: shown as one line, exit code 2."""


def write_whole(path, write):
  """Calls write(temporary path) and moves the result to path, so that a good file is never replaced by half a one.

  A link is followed: the file it points to is replaced, the link stays.
  """
  path = os.path.realpath(path)
  root, ending = os.path.splitext(path)
  temporary = f'{root}.part{ending}'
  try:
    write(temporary)
    _replace(temporary, path)
  except OSError as error:
    if error.errno and error.filename is None:  # of a full disk: say where
      raise OSError(error.errno, error.strerror, path) from None
    raise
  finally:
    if os.path.exists(temporary):
      os.remove(temporary)


def _replace(source, target):
  """os.replace; on Windows, where that fails while another program reads the target, tried for a second."""
  for _ in range(20 if sys.platform == 'win32' else 0):
    try:
      return os.replace(source, target)
    except PermissionError:
      time.sleep(0.05)
  return os.replace(source, target)


def write_text(path, text):
  """Writes text as UTF-8."""

  def write(temporary):
    with open(temporary, 'w', encoding='utf-8', errors='backslashreplace', newline='') as file:
      file.write(text)

  write_whole(path, write)


def _check_regular(path):
  """Raises UserError if there is no file, or a folder, or something that would be waited for, such as a pipe."""
  if not os.path.isfile(path):
    raise UserError(f'{path} is no regular file' if os.path.exists(path) else f'no file {path}')


def read_text(path):
  """Text of a file in UTF-8. Raises UserError if there is none, or it is no such text."""
  _check_regular(path)
  try:
    with open(path, encoding='utf-8-sig', newline='') as file:  # some editors put a mark before the text
      return file.read()
  except UnicodeDecodeError:
    raise UserError(f'{path} is damaged: it is not text in UTF-8') from None


def as_json(value):
  """What JSON can hold: arrays as lists, numbers of NumPy and TensorFlow as Python's, null for those that are not finite."""
  if isinstance(value, dict):
    return {str(key): as_json(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [as_json(item) for item in value]
  if value is None or isinstance(value, (str, bool, int)):
    return value
  if isinstance(value, np.bool_):
    return bool(value)
  if isinstance(value, np.integer):
    return int(value)
  if np.ndim(value):
    return as_json(np.asarray(value).tolist())
  return float(value) if math.isfinite(float(value)) else None


def write_json(path, values):
  """Writes a dict as JSON; numbers that are not finite, which JSON does not know, as null."""
  write_text(path, json.dumps(as_json(values), indent=2, allow_nan=False) + '\n')


def read_json(path, required=(), numbers=()):
  """Reads a dict that `write_json` wrote.

  Args:
    path: of the file.
    required: names that must be there.
    numbers: those of them that are numbers, and not null, which `write_json` writes for one that is not finite.

  Raises:
    UserError: the file is missing, torn or no such dict, or lacks a name or number.
  """

  def refuse(text):
    raise ValueError(f'{text} is no JSON')

  try:
    values = json.loads(read_text(path), parse_constant=refuse)
  except (ValueError, RecursionError) as error:
    raise UserError(f'{path} is damaged: {error or "it is no JSON"}') from None
  if not isinstance(values, dict):
    raise UserError(f'{path} is damaged: it holds no names and values')
  missing = [name for name in required if name not in values]
  if missing:
    raise UserError(f'{path} lacks {", ".join(missing)}')
  for name in numbers:
    if type(values[name]) not in (int, float) or not math.isfinite(values[name]):
      raise UserError(f'{path} has no number as {name}, but {str(values[name])[:20]}')
  return values


def write_csv(path, rows, columns):
  """Writes rows (dicts) as CSV; columns that a row lacks stay empty."""
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, restval='', lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write_text(path, text.getvalue())


def read_csv(path, texts=(), numbers=(), integers=(), filled=(), n_rows=None):
  """Reads a table that `write_csv` wrote.

  Args:
    path: of the file.
    texts, numbers, integers: columns that must be there. Each cell of `numbers` is empty or a finite number, each one of
      `integers` is empty or a whole number from 0 on.
    filled: those of them no cell of which may be empty.
    n_rows: how many rows to read; None: all, at least one.

  Returns:
    list of dicts of str.

  Raises:
    UserError: the file is missing, empty, torn or another table.
  """
  try:
    header, *rows = list(csv.reader(io.StringIO(read_text(path)), strict=True)) or [[]]
  except csv.Error as error:
    raise UserError(f'{path} is damaged: {error}') from None
  missing = [name for name in (*texts, *numbers, *integers) if name not in header]
  if missing:
    raise UserError(f'{path} has no column {", ".join(missing)}; its first line is {",".join(header)[:80]!r}')
  if not rows and n_rows is None:
    raise UserError(f'{path} has no rows')
  for k, row in enumerate(rows[:n_rows], 1):
    if len(row) != len(header):
      raise UserError(f'{path} is damaged: row {k} has {len(row)} cells where there are {len(header)} columns')
    for name, cell in zip(header, row):
      if not cell and name in filled:
        raise UserError(f'{path} is damaged: row {k} has no {name}')
      if cell and (name in numbers and not _is_number(cell) or name in integers and not re.fullmatch('[0-9]{1,18}', cell)):
        raise UserError(f'{path} is damaged: {cell[:20]!r} in row {k} is no {name}')
  return [dict(zip(header, row)) for row in rows[:n_rows]]


def _is_number(text):
  return bool(re.fullmatch(r'[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?', text)) and math.isfinite(float(text))


def read_metrics(path, numbers=(), filled=(), n_rows=None):
  """`read_csv` of a run's metrics.csv, whose rows are the iterations 1, 2, ..., none missing and none twice."""
  rows = read_csv(path, (), numbers, ['iteration'], ['iteration', *filled], n_rows)
  check_iterations(path, rows)
  return rows


def check_iterations(path, rows, of=''):
  """Raises UserError if rows (dicts) of a table are not of the iterations 1, 2, ...; of: what the sentence says they are of."""
  for k, row in enumerate(rows, 1):
    if int(row['iteration']) != k:
      raise UserError(f'{path} is damaged: where iteration {k}{of} should be there is {row["iteration"]}')


def load_npz(path, required, optional=(), dtype=None):
  """Reads arrays from an .npz file, without pickle.

  Args:
    path: of the file.
    required, optional: names of arrays.
    dtype: of floats; None: as they are.

  Returns:
    dict of those of `required` and `optional` that are there.

  Raises:
    UserError: the file is missing, torn or no .npz, lacks an array, or holds NaN or something that is not numbers.
  """
  arrays = read_npz(path, required, optional)
  for name, array in arrays.items():
    if array.dtype.kind not in 'fiub':
      raise UserError(f'array {name} in {path} holds no numbers (dtype {array.dtype})')
    if array.dtype.kind == 'f':
      with np.errstate(over='ignore'):
        arrays[name] = array.astype(dtype or array.dtype)
      if not np.isfinite(arrays[name]).all():
        raise UserError(f'array {name} in {path} holds NaN, infinity or what is too large for {arrays[name].dtype}')
  return arrays


def read_npz(path, required=(), optional=None):
  """As `load_npz`, of arrays of any kind and with any numbers; all arrays if `optional` is None."""
  _check_regular(path)
  try:
    with np.load(path, allow_pickle=False) as data:
      missing = [name for name in required if name not in data]
      if missing:
        raise UserError(f'{path} lacks the array(s) {", ".join(missing)}; it has {", ".join(data) or "none"}')
      return {name: data[name] for name in (data if optional is None else (*required, *optional)) if name in data}
  except UserError:
    raise
  except Exception as error:  # damaged bytes raise whatever NumPy, zipfile, zlib and the header's parser can
    raise UserError(f'{path} is not a readable .npz file ({str(error) or type(error).__name__})') from None


def write_npz(path, arrays, compressed=False):
  """Writes a dict of arrays as .npz."""
  write_whole(path, lambda temporary: (np.savez_compressed if compressed else np.savez)(temporary, **arrays))


def check_finite(arrays, where):
  """Raises UserError if an array (of a dict) holds NaN or infinity; where: what the sentence says of them."""
  bad = [name for name, array in arrays.items() if array.dtype.kind == 'f' and not np.isfinite(array).all()]
  if bad:
    raise UserError(f'NaN or infinity in {", ".join(bad)} {where}: try a smaller learning rate, a larger batch or another '
                    '--seed')

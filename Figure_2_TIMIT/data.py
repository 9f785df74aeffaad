"""Processed speech on disk: written by timit_processing.py, read by the solve scripts.

A folder holds train.npz, dev.npz, test.npz (no pickle) and metadata.json. The utterances of a split stand one after another
(U utterances, T frames in all, R runs of equal frame labels in all):

  ids                      str [U]
  lengths                  int32 [U], frames of each utterance
  features                 float32 [T, features], mean 0 and standard deviation 1 over the training set
  labels61, labels39       int32 [T]
  runs61, runs39           int32 [R], the phone of each run of equal labels, silence and last run included
  run_starts61, ..39       int32 [R], its first frame, counted within its utterance
  run_counts61, ..39       int32 [U], runs of each utterance
"""
import ctypes
import hashlib
import os
import shutil
import sys
from typing import NamedTuple

from absl import flags
import numpy as np

from files import load_npz, read_json, read_npz, UserError
from phones import fold, PHONES39, PHONES61

FLAGS = flags.FLAGS
CORPORA = ('timit', 'nltk_sample', 'espeak', 'espeak_full')  # the first of these that is there is what a solve script takes
SPLITS = ('train', 'dev', 'test')
NUMBERS = ('lengths', 'features', 'labels61', 'runs61', 'run_starts61', 'run_counts61', 'labels39', 'runs39', 'run_starts39',
           'run_counts39')
HOW_TO_GET_DATA = (
    'There are three ways to get a corpus: (1) python timit_processing.py --data_path=DIR, with TIMIT as the LDC ships it; '
    '(2) python timit_processing.py --corpus=nltk_sample, 160 utterances of TIMIT, downloaded by NLTK; '
    '(3) python timit_processing.py --corpus=espeak, made on this machine by espeak-ng: synthetic, not TIMIT '
    '(--corpus=espeak_full: at TIMIT\'s size). '
    'Give them the same --preproc')


class Phones(NamedTuple):
  """Labels of one split in 61 or 39 classes.

  Attributes:
    frames: list of int32 [T of the utterance], the class of each frame.
    runs: list of int32 [R of the utterance], the class of each run of equal frames: CTC's targets.
    run_starts: list of int32 [R of the utterance], first frame of each run.
  """
  frames: list
  runs: list
  run_starts: list


class Split(NamedTuple):
  """Utterances, in lists of the same length.

  Attributes:
    ids: list of str, 'dr1/fvmh0/si836'.
    lengths: int32 [U], frames.
    features: list of float [T of the utterance, features].
    phones: dict, 61 and 39: Phones.
  """
  ids: list
  lengths: np.ndarray
  features: list
  phones: dict


class Corpus(NamedTuple):
  """A processed corpus; `metadata` is metadata.json, with classes61, classes39, label, synthetic, n_features and more."""
  train: Split
  dev: Split
  test: Split
  metadata: dict

  @property
  def identity(self):
    """What a run that learns from this corpus remembers of it: dict of its name and the digests of its files."""
    return dict(corpus=self.metadata['label'], outputs=self.metadata['outputs'])


def folder_of(result_dir, corpus, preproc):
  """Where timit_processing.py puts a corpus unless --dataset says otherwise."""
  return os.path.join(result_dir, 'timit_processed', f'{corpus}_{preproc}')


def runs_of(labels):
  """Runs of equal labels. Args: int [T]. Returns: the label and the first frame of each run, int32 [R] both."""
  starts = np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1]]))
  return labels[starts].astype(np.int32), starts.astype(np.int32)


def pack(ids, features, labels):
  """The arrays of a split.

  Args:
    ids: list of str.
    features: list of float32 [T of the utterance, features].
    labels: list of int32 [T of the utterance], indices into PHONES61.

  Returns:
    dict of the arrays that the file of a split holds.
  """
  arrays = dict(ids=np.array(ids), lengths=np.array([len(x) for x in labels], np.int32), features=np.concatenate(features))
  for n, frames in ((61, labels), (39, [fold(x) for x in labels])):
    runs = [runs_of(x) for x in frames]
    arrays[f'labels{n}'] = np.concatenate(frames)
    arrays[f'runs{n}'] = np.concatenate([phone for phone, _ in runs])
    arrays[f'run_starts{n}'] = np.concatenate([start for _, start in runs])
    arrays[f'run_counts{n}'] = np.array([len(phone) for phone, _ in runs], np.int32)
  return arrays


def sha256(path):
  """SHA-256 of a file, hexadecimal.

  Raises:
    UserError: it cannot be read.
  """
  try:
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise UserError(f'{path} cannot be read ({error.strerror})') from None


def put_in_place(new, folder):
  """Gives the folder `new` the name `folder`; a good folder of that name stays under it until the moment it is replaced.

  Linux exchanges two folders at once. Elsewhere the old one is called <folder>.old between two renames, and is put back if the
  second fails.

  Raises:
    UserError: it cannot be renamed; `folder` is as it was.
  """
  try:
    if not os.path.isdir(folder):
      os.rename(new, folder)
    elif not _exchange(new, folder):
      old = f'{folder}.old'
      shutil.rmtree(old, ignore_errors=True)
      os.rename(folder, old)
      try:
        os.rename(new, folder)
      except BaseException:
        os.rename(old, folder)
        raise
      shutil.rmtree(old, ignore_errors=True)
  except OSError as error:
    raise UserError(f'{new} is complete but cannot be given the name {folder} ({error.strerror})') from None


def _exchange(one, other):
  """Exchanges two names at once where the system can. Returns: whether it could."""
  rename = getattr(ctypes.CDLL(None), 'renameat2', None) if sys.platform == 'linux' else None
  current_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
  return bool(rename) and rename(current_folder, os.fsencode(one), current_folder, os.fsencode(other), exchange) == 0


def _read_split(path, digest):
  if not os.path.exists(path):
    raise UserError(f'no file {path}; process the corpus once more')
  if sha256(path) != digest:
    raise UserError(f'{path} is damaged or of another corpus than its metadata.json; process the corpus once more')
  arrays = load_npz(path, NUMBERS, dtype=FLAGS.dtype)
  arrays['ids'] = read_npz(path, ['ids'], [])['ids']
  wrong = _what_is_wrong(arrays)
  if wrong:
    raise UserError(f'{path} is damaged: {wrong}; process the corpus once more')
  parts = lambda name, counts: np.split(arrays[name], np.cumsum(arrays[counts])[:-1])
  phones = {n: Phones(parts(f'labels{n}', 'lengths'), parts(f'runs{n}', f'run_counts{n}'),
                      parts(f'run_starts{n}', f'run_counts{n}')) for n in (61, 39)}
  return Split(arrays['ids'].tolist(), arrays['lengths'], parts('features', 'lengths'), phones)


def _what_is_wrong(arrays):
  """What is wrong with the arrays of a split; None if they are as `pack` makes them."""
  lengths, features = arrays['lengths'], arrays['features']
  for name, array in arrays.items():
    kind, n_axes = {'features': ('f', 2), 'ids': ('U', 1)}.get(name, ('iu', 1))
    if array.dtype.kind not in kind or array.ndim != n_axes:
      return f'{name} is {array.dtype} with {array.ndim} axes'
  if not len(lengths) or lengths.min() < 1 or len(arrays['ids']) != len(lengths) or lengths.sum() != len(features):
    return f'there are {len(arrays["ids"])} names and {len(features)} frames for {len(lengths)} lengths'
  for n in (61, 39):
    labels = arrays[f'labels{n}']
    if len(labels) != len(features) or labels.min() < 0 or labels.max() >= n:
      return f'labels{n} are {len(labels)} from {labels.min(initial=0)} to {labels.max(initial=0)} for {len(features)} frames'
    if n == 39 and not np.array_equal(labels, fold(arrays['labels61'])):
      return 'labels39 does not follow from labels61'
    runs = [runs_of(part) for part in np.split(labels, np.cumsum(lengths)[:-1])]
    for name, expected in ((f'runs{n}', np.concatenate([phone for phone, _ in runs])),
                           (f'run_starts{n}', np.concatenate([start for _, start in runs])),
                           (f'run_counts{n}', [len(phone) for phone, _ in runs])):
      if not np.array_equal(arrays[name], expected):
        return f'{name} does not follow from labels{n}'
  return None


def load(folder):
  """Reads a processed corpus.

  Args:
    folder: what timit_processing.py wrote.

  Returns:
    Corpus; features in the precision of --dtype.

  Raises:
    UserError: nothing there (the message names the three ways to get a corpus), or files damaged.
  """
  path = os.path.join(folder, 'metadata.json')
  if not os.path.exists(path):
    raise UserError(f'no processed corpus in {folder}. {HOW_TO_GET_DATA}')
  metadata = read_json(path, ('label', 'synthetic', 'n_features', 'classes61', 'classes39', 'outputs'))
  outputs = metadata['outputs']
  right = dict(label=isinstance(metadata['label'], str) and metadata['label'].strip() != '',
               synthetic=isinstance(metadata['synthetic'], bool), n_features=type(metadata['n_features']) is int,
               classes61=metadata['classes61'] == list(PHONES61), classes39=metadata['classes39'] == list(PHONES39),
               outputs=isinstance(outputs, dict) and all(f'{split}.npz' in outputs for split in SPLITS))
  for name, is_right in right.items():
    if not is_right:
      raise UserError(f'{path} is damaged: {name} is not what timit_processing.py writes; process the corpus once more')
  splits = [_read_split(os.path.join(folder, f'{split}.npz'), outputs[f'{split}.npz']) for split in SPLITS]
  if any(values.shape[1] != metadata['n_features'] for split in splits for values in split.features):
    raise UserError(f'{path} is damaged: n_features is {metadata["n_features"]}; process the corpus once more')
  return Corpus(*splits, metadata)

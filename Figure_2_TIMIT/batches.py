"""Batches of padded utterances."""
import numpy as np

from classifier import Batch

GRID = 64  # batches are padded to a multiple of so many frames: few shapes to compile


def padded(n_frames):
  """n_frames, rounded up to the grid."""
  return -(-int(n_frames) // GRID) * GRID


def epoch_batches(lengths, n_batch, generator, by_length=False):
  """Utterances of an epoch in batches.

  Args:
    lengths: int [U].
    n_batch: utterances per batch; one batch may have fewer.
    generator: numpy Generator.
    by_length: put utterances of similar length together: sorted by a noisy length, cut, and the batches shuffled.

  Returns:
    list of int arrays, indices of utterances.
  """
  noisy = lengths * np.exp(generator.uniform(-0.3, 0.3, len(lengths)))
  order = np.argsort(noisy) if by_length else generator.permutation(len(lengths))
  batches = np.split(order, np.arange(n_batch, len(order), n_batch))
  return [batches[k] for k in generator.permutation(len(batches))]


def make_batch(split, indices, n_batch, n_phones, ctc, dtype='float32'):
  """Pads utterances to a Batch.

  Args:
    split: data.Split.
    indices: which utterances, at most n_batch.
    n_batch: B; filled up with utterances of length 0.
    n_phones: 61 or 39.
    ctc: targets are phone sequences instead of classes of frames.
    dtype: of the features.

  Returns:
    Batch of arrays.
  """
  lengths = np.zeros(n_batch, np.int32)
  lengths[:len(indices)] = split.lengths[indices]
  n_frames = padded(lengths.max())
  x = np.zeros((n_frames, n_batch, split.features[0].shape[1]), dtype)
  phones = split.phones[n_phones]
  targets = np.zeros((n_batch, max(map(len, phones.runs))) if ctc else (n_frames, n_batch), np.int32)
  target_lengths = np.zeros(n_batch, np.int32)
  for b, k in enumerate(indices):
    x[:lengths[b], b] = split.features[k]
    if ctc:
      target_lengths[b] = len(phones.runs[k])
      targets[b, :target_lengths[b]] = phones.runs[k]
    else:
      targets[:lengths[b], b] = phones.frames[k]
  return Batch(x, lengths, targets, target_lengths)


def crop(batch, n_frames, generator):
  """A random window of n_frames of a framewise Batch, the same for all its utterances; shorter than the longest of them."""
  longest = int(batch.lengths.max())
  n_frames = min(n_frames, longest - 1)
  start = int(generator.integers(longest - n_frames))
  x, targets = (np.zeros((padded(n_frames), *array.shape[1:]), array.dtype) for array in (batch.x, batch.targets))
  x[:n_frames], targets[:n_frames] = (array[start:start + n_frames] for array in (batch.x, batch.targets))
  return Batch(x, np.clip(batch.lengths - start, 0, n_frames), targets, batch.target_lengths)

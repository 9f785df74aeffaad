"""Error rates of speech recognition, and CTC decoding.

The published phone error is the mean over utterances of edit distance / length of the reference; the field's is the sum of
all edits over the sum of all lengths. Both are given. TensorFlow 1's decoder, which the published numbers come from, merged
equal neighbours in what it decoded before the 61 phones were folded to 39; the unmerged error is given too.
"""
import concurrent.futures

import numpy as np
from rapidfuzz.distance import Levenshtein
import tensorflow as tf

import machine
from phones import fold

BEAM_WIDTH = 100
VALIDATION_BEAM_WIDTH = 10  # while training: a tenth of the time, to choose an epoch


def decode(logits, lengths, beam_width=BEAM_WIDTH):
  """The most probable phone sequences by beam search; the last class is the blank.

  Args:
    logits: [F, B, K].
    lengths: int [B], frames.
    beam_width: number of hypotheses that are kept.

  Returns:
    list of B int arrays.
  """
  (paths,), _ = tf.nn.ctc_beam_search_decoder(tf.cast(logits, tf.float32), tf.cast(lengths, tf.int32), beam_width, 1)
  rows, values = paths.indices.numpy()[:, 0], paths.values.numpy()
  return [values[rows == b] for b in range(len(lengths))]


def decode_all(logits, beam_width=BEAM_WIDTH):
  """`decode` for a list of logits [T, K] of different lengths, one part per core; list of int arrays."""

  def part(some):
    lengths = [len(y) for y in some]
    padded = np.zeros((max(lengths), len(some), some[0].shape[1]), np.float32)
    for b, y in enumerate(some):
      padded[:len(y), b] = y
    return decode(padded, lengths, beam_width)

  n_parts = min(len(machine.cores()), len(logits))
  with concurrent.futures.ThreadPoolExecutor(n_parts) as pool:
    parts = list(pool.map(part, [logits[k::n_parts] for k in range(n_parts)]))
  decoded = [None] * len(logits)
  for k, some in enumerate(parts):
    decoded[k::n_parts] = some
  return decoded


def merge(sequence):
  """A sequence without repetitions of neighbours."""
  sequence = np.asarray(sequence)
  return sequence[np.concatenate([[True], sequence[1:] != sequence[:-1]])] if len(sequence) else sequence


def edit_errors(hypotheses, references):
  """Edit distances of sequences.

  Args:
    hypotheses, references: lists of int arrays; references are not empty.

  Returns:
    dict: per (all edits over all phones), per_mean_over_utterances (the published measure), substitutions, deletions,
    insertions, phones (numbers).
  """
  counts = dict(replace=0, delete=0, insert=0)
  ratios, n_phones = [], 0
  for hypothesis, reference in zip(hypotheses, references):
    edits = Levenshtein.editops(list(reference), list(hypothesis))
    for edit in edits:
      counts[edit.tag] += 1
    ratios.append(len(edits) / len(reference))
    n_phones += len(reference)
  return dict(per=sum(counts.values()) / n_phones, per_mean_over_utterances=float(np.mean(ratios)),
              substitutions=counts['replace'], deletions=counts['delete'], insertions=counts['insert'], phones=n_phones)


def phone_errors(decoded, references, folds):
  """Phone errors in 39 classes, merged as published and unmerged.

  Args:
    decoded, references: lists of int arrays, in 61 classes, or in 39 where folds is False.
    folds: whether the classes are the 61 phones.

  Returns:
    dict of `edit_errors` for merged hypotheses, and those unmerged under names that end in _unmerged.
  """
  to_39 = fold if folds else np.asarray
  references = [to_39(reference) for reference in references]
  merged = edit_errors([to_39(merge(phones)) for phones in decoded], references)
  unmerged = edit_errors([to_39(phones) for phones in decoded], references)
  return merged | {f'{name}_unmerged': value for name, value in unmerged.items() if name != 'phones'}


def frame_errors(predicted, true):
  """Wrong frames, averaged over utterances (published) and over all frames; lists of int [T]; a dict."""
  wrong = [np.mean(p != t) for p, t in zip(predicted, true)]
  return dict(frame_error=float(np.mean(wrong)), frame_error_all_frames=float(np.mean(np.concatenate(
      [p != t for p, t in zip(predicted, true)]))))


def confusion(predicted, true, n_classes):
  """Counts [true, predicted] over all frames; lists of int [T]."""
  table = np.zeros((n_classes, n_classes), np.int64)
  np.add.at(table, (np.concatenate(true), np.concatenate(predicted)), 1)
  return table

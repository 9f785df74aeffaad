"""A trained classifier on the validation and test sets: error rates, what the figures show."""
import os

import experiment
from absl import flags
import numpy as np
import tensorflow as tf

from batches import make_batch
import data
import files
from phones import fold
import result_plots
import scores

FLAGS = flags.FLAGS


class Evaluator:
  """Runs a classifier over a split without learning.

  Args:
    classifier: Classifier.
    n_phones: 61 or 39, the classes it was trained on.
    n_batch: utterances per batch.
  """

  def __init__(self, classifier, n_phones, n_batch):
    self.classifier, self.n_phones, self.n_batch = classifier, n_phones, n_batch
    self.ctc = classifier.settings.loss == 'ctc'
    self._evaluate = tf.function(lambda batch: classifier.evaluate(classifier.variables, batch))

  def __call__(self, split, beam_width=scores.BEAM_WIDTH):
    """Evaluates a data.Split; CTC decodes with this beam width.

    Returns:
      dict of numbers: loss, error (what models are chosen by: the published measure), and those of scores.py; dict of what
      the figures show: predicted (list of int [T] or of phone sequences), logits (list of [T, K]), rates [2 N] per layer.
    """
    order = np.argsort(split.lengths, kind='stable')
    losses, rates, logits = [], 0, [None] * len(order)
    for indices in np.split(order, np.arange(self.n_batch, len(order), self.n_batch)):
      batch = make_batch(split, indices, self.n_batch, self.n_phones, self.ctc, self.classifier.dtype.name)
      result = self._evaluate(batch)
      losses.append(float(result.loss) * len(indices))
      rates += np.concatenate(result.rates) * batch.lengths.sum() / split.lengths.sum()
      of_batch = result.logits.numpy()  # one transfer from a GPU instead of one for each utterance
      for b, k in enumerate(indices):
        logits[k] = of_batch[:split.lengths[k], b].copy()
    phones = split.phones[self.n_phones]
    if self.ctc:
      predicted = scores.decode_all(logits, beam_width)
      numbers = scores.phone_errors(predicted, phones.runs, self.n_phones == 61)
      numbers['blank_share'] = float(np.mean(np.concatenate([y.argmax(1) for y in logits]) == self.n_phones))
      error = numbers['per_mean_over_utterances']
    else:
      predicted = [y[:, :self.n_phones].argmax(1) for y in logits]  # without the class of --blank_class
      numbers = scores.frame_errors(predicted, phones.frames)
      error = numbers['frame_error']
      if self.n_phones == 61:
        folded = scores.frame_errors([fold(p) for p in predicted], split.phones[39].frames)
        numbers |= {f'{name}_39_phones': value for name, value in folded.items()}
    return dict(loss=sum(losses) / len(order), error=error, **numbers), dict(predicted=predicted, logits=logits, rates=rates)


def report(folder, evaluate, corpus, plot):
  """Tests the weights as they are; with `plot` writes figures and figure.npz.

  Args:
    folder: to write to.
    evaluate: Evaluator.
    corpus: data.Corpus.
    plot: whether to draw.

  Returns:
    Lines to print; numbers for summary.json; signs of death, as of experiment.signs_of_death.
  """
  summary = {}
  for name, split in (('validation', corpus.dev), ('test', corpus.test)):
    numbers, shown = evaluate(split)
    summary |= {f'{name}_{key}': value for key, value in numbers.items()}
  spiking, label = evaluate.classifier.network.spiking, corpus.metadata['label']
  summary |= dict(corpus=label, synthetic=corpus.metadata['synthetic'],
                  rate_hz=1000 * float(np.mean(shown['rates'])) if spiking else None)
  if evaluate.ctc:
    result = (f'test phone error: {100 * summary["test_per"]:.1f} % of all phones, '
              f'{100 * summary["test_per_mean_over_utterances"]:.1f} % as the published mean over utterances (39 phones)')
  else:
    result = f'test frame error: {100 * summary["test_frame_error"]:.1f} % in {evaluate.n_phones} classes (mean over utterances)'
    if evaluate.n_phones == 61:
      result += f', {100 * summary["test_frame_error_39_phones"]:.1f} % in 39'
  lines = [result, f'corpus:     {label}', 'published:  not available']
  if plot:
    draw(folder, evaluate, corpus, shown, result)
    lines.append(f'figures:    {os.path.join(folder, "utterance.png")}')
  return lines, summary, experiment.signs_of_death(summary['rate_hz'] if spiking else None, shown['logits'])


def draw(folder, evaluate, corpus, shown, result):
  """The figures of one evaluation; `result`: the line that is their title."""
  label = corpus.metadata['label']
  arrays = record(evaluate, corpus, shown)
  files.write_npz(os.path.join(folder, 'figure.npz'), arrays, compressed=True)
  result_plots.utterance(arrays, os.path.join(folder, 'utterance.png'), FLAGS.show)
  if not evaluate.ctc:
    predicted = [fold(p) for p in shown['predicted']] if evaluate.n_phones == 61 else shown['predicted']
    table = scores.confusion(predicted, corpus.test.phones[39].frames, 39)
    result_plots.confusion(table, corpus.metadata['classes39'], os.path.join(folder, 'confusion.png'), f'{result}\n{label}')
  if evaluate.classifier.network.spiking:
    result_plots.rates(1000 * shown['rates'], os.path.join(folder, 'rates.png'), label)


def record(evaluate, corpus, shown, k=0):
  """Utterance k of the test split as the figure shows it; a dict of arrays."""
  classifier, split, n_phones = evaluate.classifier, corpus.test, evaluate.n_phones
  network, length, logits = classifier.network, split.lengths[k], shown['logits'][k]
  batch = make_batch(split, [k], 1, n_phones, evaluate.ctc, classifier.dtype.name)
  run = network.forward(batch.x, batch.lengths, classifier.variables.layers)[0]
  posterior = np.exp(logits - logits.max(1, keepdims=True))
  posterior /= posterior.sum(1, keepdims=True)
  classes = list(corpus.metadata[f'classes{n_phones}'])
  classes += ['blank' if evaluate.ctc else 'unused'] * (logits.shape[1] - n_phones)
  true = split.phones[n_phones]
  if evaluate.ctc:  # decoded phones have no times: they stand where the blank gives way, in their order
    predicted = scores.merge(shown['predicted'][k])
    starts = rises(posterior, len(predicted))
  else:
    predicted, starts = data.runs_of(shown['predicted'][k])
  layer = network.layers[0]
  n_regular = int(np.sum(np.broadcast_to(layer.cell.beta, layer.units) == 0)) if network.spiking else 0
  return dict(features=split.features[k][:, :41], outputs=run.outputs[0][:length * network.n_repeat, 0].numpy(),
              spiking=network.spiking, n_regular=n_regular, posterior=posterior, predicted=predicted, predicted_starts=starts,
              true=true.runs[k], true_starts=true.run_starts[k], classes=np.array(classes),
              title=f'{split.ids[k]}: {corpus.metadata["label"]}')


def rises(posterior, n):
  """Frames of the n strongest rises of the probability that a frame is not blank, in order: where CTC sees phones."""
  rise = np.diff(1 - posterior[:, -1], prepend=0)
  return np.sort(np.argsort(-rise, kind='stable')[:n])

"""The tasks: evidence accumulation (figure 3), pattern generation (figure S7), given trials. NumPy only; arrays are time-major."""
import dataclasses
from typing import Callable, Optional

import numpy as np


class Task:
  """What a network learns to do. A task of your own is a subclass with these attributes and functions.

    n_in, n_out        inputs I, outputs K
    n_steps, n_batch   steps of a trial T, trials of a batch B
    loss               'squared_error' or 'cross_entropy', of the outputs y [T, B, K]
    fresh              whether trials are drawn anew for each batch, so that there are others to validate and test on
  """
  loss = 'squared_error'
  fresh = True

  def batch(self, stream, k):
    """Trials.

    Args:
      stream: what they are for: 'train', 'validation', 'confirmation', 'test', 'figure'.
      k: number of the batch within the stream; the same k gives the same trials.

    Returns:
      x: inputs [T, B, I], any numeric dtype.
      target: values or class probabilities, [T or 1, B, K].
    """
    raise NotImplementedError

  def error(self, y, target):
    """How wrong the outputs y [T, B, K] are, a number that learning should make small."""
    raise NotImplementedError

  def loss_weight(self, n_steps, n_batch):
    """Weight of each step in the loss, [n_steps, 1, 1]; here 1, so that the loss is a sum over steps and trials."""
    del n_batch
    return np.ones((n_steps, 1, 1))

  def shown(self):
    """The trial that the figure shows: x [T, 1, I], target [T or 1, 1, K], and a dict of arrays that the figure shades."""
    x, target = self.batch('figure', 0)
    return np.ascontiguousarray(x[:, :1]), target[:, :1], {}


@dataclasses.dataclass
class EvidenceAccumulation(Task):
  """Which side showed more cues? Seven cues to the left or right, a delay, and a decision when the recall signal comes.

  Four groups of input neurons spike at Poisson times: left cues, right cues, recall signal (each silent but while its
  signal is shown) and background noise (always). Times in ms, rates in Hz. Classes: 0 left, 1 right.
  """
  rng: Optional[Callable] = None  # function of stream and k that gives a numpy Generator
  n_batch: int = 64
  dt: float = 1.0
  n_cues: int = 7
  silence: float = 50.0           # before each cue
  cue: float = 100.0
  delay: float = 1050.0
  recall: float = 150.0
  p_majority: float = 0.7         # probability that a cue is on the trial's majority side
  rate: float = 40.0              # of a group while its signal is shown
  noise_rate: float = 10.0
  n_per_group: int = 10
  n_out = 2
  loss = 'cross_entropy'

  @property
  def n_in(self):
    """Number of input neurons I."""
    return 4 * self.n_per_group

  @property
  def n_steps(self):
    """Number of steps T of a trial."""
    return round((self.n_cues * (self.silence + self.cue) + self.delay + self.recall) / self.dt)

  @property
  def n_recall_steps(self):
    """Number of steps of the recall signal, in which the loss is taken and the decision made."""
    return round(self.recall / self.dt)

  def cue_steps(self, k):
    """First step of cue k and the step after its last."""
    start = k * (self.silence + self.cue) + self.silence
    return round(start / self.dt), round((start + self.cue) / self.dt)

  def draw(self, rng, n_batch):
    """Draws trials.

    Args:
      rng: numpy Generator.
      n_batch: number of trials B.

    Returns:
      x: uint8 spikes [T, B, I].
      labels: int [B], 1 where right cues (cues[b, k] = 1) are the majority.
      cues: int [B, n_cues], 0 left, 1 right.
    """
    majority = rng.integers(0, 2, n_batch)
    cues = np.where(rng.random((n_batch, self.n_cues)) < self.p_majority, majority[:, None], 1 - majority[:, None])
    # Spike where a 16-bit random number is below the rate: four times faster than floating-point numbers.
    limit = np.zeros((self.n_steps, n_batch, 4), np.uint16)
    shown, noise = (round(rate * self.dt / 1000 * 2 ** 16) for rate in (self.rate, self.noise_rate))
    for k in range(self.n_cues):
      first, last = self.cue_steps(k)
      limit[first:last, :, 0] = shown * (1 - cues[:, k])
      limit[first:last, :, 1] = shown * cues[:, k]
    limit[-self.n_recall_steps:, :, 2] = shown
    limit[:, :, 3] = noise
    draws = rng.integers(0, 2 ** 16, (self.n_steps, n_batch, 4, self.n_per_group), dtype=np.uint16)
    x = (draws < limit[..., None]).reshape(self.n_steps, n_batch, self.n_in).view(np.uint8)
    return x, (cues.sum(1) > self.n_cues // 2).astype(np.int64), cues

  def batch(self, stream, k):
    """As Task.batch."""
    x, labels, _ = self.draw(self.rng(stream, k), self.n_batch)
    return x, one_hot(labels, self.n_out)

  def error(self, y, target):
    """Fraction of wrong decisions, the argmax of the logits averaged over the recall period."""
    return float(np.mean(np.argmax(np.mean(y[-self.n_recall_steps:], 0), 1) != np.argmax(target[-1], 1)))

  def loss_weight(self, n_steps, n_batch):
    """The mean over trials and the recall period, [n_steps, 1, 1]."""
    weight = np.zeros((n_steps, 1, 1))
    weight[-self.n_recall_steps:] = 1 / (self.n_recall_steps * n_batch)
    return weight

  def shown(self):
    """As Task.shown."""
    x, labels, cues = self.draw(self.rng('figure', 0), 1)
    return x, one_hot(labels, self.n_out), dict(cues=cues[0], cue_steps=[self.cue_steps(k) for k in range(self.n_cues)])


class PatternGeneration(Task):
  """Give out a pattern in time for every presentation of the same input, which is frozen noise.

  Args:
    rng: function of stream and k that gives a numpy Generator.
    n_steps, n_batch, n_in, n_out: as for Task.
    rate: of the inputs, Hz.
    dt: length of a step in ms.
    target: [T, B, K], default a sum of sines, the same for all trials.
  """
  fresh = False

  def __init__(self, rng, n_steps=1000, n_batch=1, n_in=100, n_out=1, rate=50.0, dt=1.0, target=None):
    self.n_steps, self.n_batch, self.n_in, self.n_out = n_steps, n_batch, n_in, n_out
    self._x = (rng('inputs', 0).random((n_steps, n_batch, n_in)) < rate * dt / 1000).astype(np.uint8)
    if target is None:
      target = np.repeat(sum_of_sines(rng('targets', 0), n_steps, n_out, dt)[:, None], n_batch, 1)
    self._target = target

  def batch(self, stream, k):
    """As Task.batch: always the same."""
    return self._x, self._target

  def error(self, y, target):
    """Mean squared error over the variance of the target, both over time and trials, averaged over outputs."""
    return float(np.mean(np.mean((y - target) ** 2, (0, 1)) / np.maximum(np.var(target, (0, 1)), 1e-12)))


class GivenTrials(Task):
  """Trials from arrays, for the loss and the error of another task.

  Args:
    like: that other Task.
    inputs: [trial, time, I], or [iteration, trial, time, I].
    target: [trial, time or 1, K] or, where inputs have it too, [iteration, trial, time or 1, K].
    n_iter: number of iterations; all other streams than 'train' show the trials of the last one.
  """
  fresh = False

  def __init__(self, like, inputs, target, n_iter):
    self.loss, self.error, self.loss_weight = like.loss, like.error, like.loss_weight
    self._inputs, self._target, self._n_iter = inputs, target, n_iter
    self.n_batch, self.n_steps, self.n_in = inputs.shape[-3:]
    self.n_out = target.shape[-1]

  def batch(self, stream, k):
    """As Task.batch; k counts from 1."""
    k = min(k, self._n_iter) if stream == 'train' else self._n_iter
    return tuple(np.moveaxis(array if array.ndim == 3 else array[k - 1], 0, 1) for array in (self._inputs, self._target))


def one_hot(labels, n_classes):
  """Class probabilities [1, B, K], the same at all steps, for labels [B]."""
  return np.eye(n_classes)[labels][None]


def sum_of_sines(rng, n_steps, n_out, dt=1.0):
  """Target of pattern generation: sums of four sines of random amplitude and phase.

  Args:
    rng: numpy Generator.
    n_steps: number of steps T.
    n_out: number of outputs K.
    dt: length of a step in ms.

  Returns:
    [T, K], 0 at the first step and with largest absolute value 1.
  """
  periods = np.array([1000, 500, 333, 200])  # ms
  amplitude = rng.uniform(0.5, 2, (n_out, len(periods)))
  phase = rng.uniform(0, 2 * np.pi, (n_out, len(periods)))
  time = dt * np.arange(n_steps)[:, None, None]
  target = np.sum(amplitude * np.sin(2 * np.pi * time / periods + phase), -1)
  target -= target[:1]
  return target / np.maximum(np.abs(target).max(0), 1e-12)

"""The two tasks: evidence accumulation (figure 3) and pattern generation (figure S7). NumPy only; arrays are time-major."""
from typing import NamedTuple

import numpy as np


class EvidenceAccumulation(NamedTuple):
  """Which side showed more cues? Seven cues to the left or right, a delay, and a decision when the recall signal comes.

  Four groups of input neurons spike at Poisson times: left cues, right cues, recall signal (each silent but while its
  signal is shown) and background noise (always). Times in ms, rates in Hz.
  """
  dt: float = 1.0
  n_cues: int = 7
  silence: float = 50.0       # before each cue
  cue: float = 100.0
  delay: float = 1050.0
  recall: float = 150.0
  p_majority: float = 0.7     # probability that a cue is on the trial's majority side
  rate: float = 40.0          # of a group while its signal is shown
  noise_rate: float = 10.0
  n_per_group: int = 10

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

  def batch(self, rng, n_batch):
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

  def loss_weight(self, n_steps, n_batch):
    """Weight [T, 1, 1] of each step in the loss: its mean over trials and the recall period."""
    weight = np.zeros((n_steps, 1, 1))
    weight[-self.n_recall_steps:] = 1 / (self.n_recall_steps * n_batch)
    return weight

  def error(self, y, labels):
    """Fraction of wrong decisions, the argmax of the logits [T, B, K] averaged over the recall period; labels [B]."""
    return float(np.mean(np.argmax(np.mean(y[-self.n_recall_steps:], 0), 1) != labels))


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


def poisson_spikes(rng, n_steps, n_batch, n_in, rate, dt=1.0):
  """Frozen input of pattern generation: spikes [T, B, I], uint8, at `rate` Hz."""
  return (rng.random((n_steps, n_batch, n_in)) < rate * dt / 1000).astype(np.uint8)

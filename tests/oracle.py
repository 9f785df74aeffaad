"""The equations of e-prop as slow loops in float64 NumPy: what the fast programs are compared with.

Written from the paper's equations (Bellec, Scherr et al., Nature Communications 11:3625, 2020), close to their notation and
free of TensorFlow. The networks simulated here share nothing with lsnn.py and eprop.py but the names.

  t, b, i, j, k    time step, trial, presynaptic neuron or input, postsynaptic neuron, output
  T, B, I, N, K    how many there are of each
  x [T, B, I], v, a, z, psi [T, B, N], y [T, B, K]; w_in[i, j] is the weight of the synapse from i to j, paper: W_ji
"""
from typing import NamedTuple

import numpy as np


class Neurons:
  """Constants of N neurons. tau, tau_adaptation (ms) and beta may be arrays [N]; beta = 0 makes a neuron LIF."""

  def __init__(self, n, thr, tau, tau_adaptation=1.0, beta=0.0, n_refractory=0, gamma=0.3, scale_input=False):
    self.n, self.thr, self.n_refractory, self.gamma = n, thr, n_refractory, gamma
    self.alpha = np.exp(-1 / np.broadcast_to(np.float64(tau), n))
    self.rho = np.exp(-1 / np.broadcast_to(np.float64(tau_adaptation), n))
    self.beta = np.broadcast_to(np.float64(beta), n)
    self.gain = 1 - self.alpha if scale_input else np.ones(n)  # figure S7 scales its currents by 1 - alpha


class Run(NamedTuple):
  """What a simulation leaves behind, each [T, B, N]."""
  z: np.ndarray
  v: np.ndarray
  a: np.ndarray
  psi: np.ndarray


class Gradient(NamedTuple):
  """The gradient and the losses it belongs to."""
  w_in: np.ndarray   # [I, N]
  w_rec: np.ndarray  # [N, N]
  w_out: np.ndarray  # [N, K]
  task_loss: float
  rate_loss: float


def no_autapses(w_rec):
  """Recurrent weights or their gradient, or the first rows of these, without a neuron's synapse onto itself."""
  return w_rec * (1 - np.eye(*w_rec.shape))


def simulate(neurons, x, w_in, w_rec, reset=None):
  """LIF and ALIF neurons, step by step. reset [T, B]: where 1, the trial starts anew before the step."""
  n_steps, n_batch, _ = x.shape
  p, w_rec = neurons, no_autapses(w_rec)
  run = Run(*np.zeros([4, n_steps, n_batch, p.n]))
  for b in range(n_batch):
    v = a = z = r = np.zeros(p.n)
    for t in range(n_steps):
      if reset is not None and reset[t, b]:
        v = a = z = r = np.zeros(p.n)
      refractory = r > 0
      v = p.alpha * v + p.gain * (x[t, b] @ w_in + z @ w_rec) - z * p.thr  # here z is still z[t-1]
      a = p.rho * a + z
      distance = v - (p.thr + p.beta * a)
      z = np.where(refractory, 0.0, distance > 0)
      psi = np.where(refractory, 0.0, p.gamma / p.thr * np.maximum(0, 1 - np.abs(distance) / p.thr))
      r = np.clip(r + p.n_refractory * z - 1, 0, p.n_refractory)
      for record, value in zip(run, (z, v, a, psi)):
        record[t, b] = value
  return run


def one_step_later(z, reset=None):
  """What arrives at recurrent synapses: pre[t] = z[t-1], nothing at the start of a trial."""
  pre = np.zeros_like(z)
  for t in range(1, len(z)):
    pre[t] = z[t - 1]
    if reset is not None:
      pre[t][reset[t] == 1] = 0
  return pre


def leaky(x, kappa, normalised):
  """F_kappa(x)[t] = kappa F_kappa(x)[t-1] + x[t], times 1 - kappa if normalised."""
  y = np.zeros_like(x)
  for t in range(len(x)):
    y[t] = x[t] + (kappa * y[t - 1] if t else 0)
  return (1 - kappa) * y if normalised else y


# ---------------------------------------------------------------------------------------------------------------------
# Losses and learning signals


def loss_and_error(kind, y, target, weight):
  """Sum over steps, trials and outputs, weight [T, 1, 1] per step; and d loss / dy."""
  if kind == 'squared_error':
    return 0.5 * np.sum(weight * (y - target) ** 2), weight * (y - target)
  pi = np.exp(y) / np.sum(np.exp(y), axis=-1, keepdims=True)
  return -np.sum(weight * target * np.log(pi)), weight * (pi - target)


def rate_loss_and_signal(kind, cost, f0, z):
  """Cost of the firing rates and its learning signal [T, B, N], which acts on the unfiltered traces."""
  n_steps, n_batch, n = z.shape
  signal = np.zeros_like(z)
  if kind == 'simple':
    f = z.sum((0, 1)) / (n_batch * n_steps)
    signal[:] = 2 * cost * (f - f0) / (n_batch * n_steps)
    return cost * np.sum((f - f0) ** 2), signal
  # 'online': the trials in sequence, u runs over all their steps, ra[u] is the rate until then.
  sequence = [(b, t) for b in range(n_batch) for t in range(n_steps)]
  ra, spikes, loss = [], np.zeros(n), 0.0
  for u, (b, t) in enumerate(sequence):
    spikes = spikes + z[t, b]
    ra.append(spikes / (u + 1))
    loss += cost / n_steps * np.sum((ra[u] - f0) ** 2)
  change = [2 * cost * (ra[u] - f0) / ((u + 1) * n_steps) for u in range(len(sequence))]
  for u, (b, t) in enumerate(sequence):
    signal[t, b] = sum(change[u:])
  return loss, signal


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


def eligibility(neurons, pre, psi, reset=None):
  """Eligibility traces of one trial, synapse by synapse.

  pre [T, I] (x, or z one step later), psi [T, N], reset [T] -> e, eps_v, eps_a, each [T, I, N].
  """
  p = neurons
  n_steps, n_pre = pre.shape
  e, eps_v, eps_a = np.zeros([3, n_steps, n_pre, p.n])
  for i in range(n_pre):
    for j in range(p.n):
      fast = slow = 0.0  # eps_v at t-1 and eps_a at t
      for t in range(n_steps):
        if reset is not None and reset[t]:
          fast = slow = 0.0
        fast = p.alpha[j] * fast + p.gain[j] * pre[t, i]                                       # (22)
        e[t, i, j] = psi[t, j] * (fast - p.beta[j] * slow)                                     # (25); LIF: (23)
        eps_v[t, i, j], eps_a[t, i, j] = fast, slow
        slow = psi[t, j] * fast + (p.rho[j] - psi[t, j] * p.beta[j]) * slow                    # (24)
  return e, eps_v, eps_a


def eprop(neurons, pre, psi, signal, rate_signal, kappa=0.0, normalised=False, reset=None):
  """dE/dw of the synapses from pre, as the sum over trials, time and synapses of eqs. (1), (28).

  pre [T, B, I], psi, signal L, rate_signal [T, B, N] -> [I, N].
  """
  n_steps, n_batch, n_pre = pre.shape
  gradient = np.zeros([n_pre, neurons.n])
  for b in range(n_batch):
    e, _, _ = eligibility(neurons, pre[:, b], psi[:, b], None if reset is None else reset[:, b])
    e_bar = leaky(e, kappa, normalised)
    for t in range(n_steps):
      for i in range(n_pre):
        gradient[i] += signal[t, b] * e_bar[t, i] + rate_signal[t, b] * e[t, i]
  return gradient


def bptt(neurons, pre, psi, direct, w_rec, reset=None, through_reset=True):
  """dE/dw of the synapses from pre by back-propagation through time.

  direct [T, B, N]: dE/dz[t] but for what z[t] does to the network itself. through_reset=False leaves the path
  z[t] -> -thr z[t] -> v[t+1] out.
  """
  p, w_rec = neurons, no_autapses(w_rec)
  n_steps, n_batch, n_pre = pre.shape
  gradient = np.zeros([n_pre, p.n])
  for b in range(n_batch):
    dv = da = np.zeros(p.n)  # dE/dv[t+1], dE/da[t+1]
    for t in reversed(range(n_steps)):
      dz = direct[t, b] + da + w_rec @ (p.gain * dv)  # a[t+1] and the other neurons receive z[t]
      if through_reset:
        dz = dz - p.thr * dv
      dv = p.alpha * dv + psi[t, b] * dz
      da = p.rho * da - p.beta * psi[t, b] * dz      # the threshold is thr + beta a: dz/da = -beta psi
      for i in range(n_pre):
        gradient[i] += pre[t, b, i] * p.gain * dv
      if reset is not None and reset[t, b]:
        dv = da = np.zeros(p.n)
  return gradient


def readout_gradient(neurons, x, target, weight, w_in, w_rec, w_out, feedback=None, kappa=0.95, normalised=True,
                     loss='cross_entropy', rate_kind='simple', cost=0.0, f0=0.01, through_reset=True):
  """Gradient of a network with a leaky readout: e-prop with the feedback matrix B [N, K], BPTT where it is None."""
  z, _, _, psi = simulate(neurons, x, w_in, w_rec)
  z_bar = leaky(z, kappa, normalised)
  task_loss, error = loss_and_error(loss, z_bar @ w_out, target, weight)
  rate_loss, rate_signal = rate_loss_and_signal(rate_kind, cost, f0, z)
  g_out = sum(np.outer(z_bar[t, b], error[t, b]) for t in range(x.shape[0]) for b in range(x.shape[1]))
  gradients = []
  for pre in (x, one_step_later(z)):
    if feedback is None:
      # z[t] reaches y[t'] for all t' >= t: the readout's filter run backwards.
      direct = leaky((error @ w_out.T)[::-1], kappa, normalised)[::-1] + rate_signal
      gradients.append(bptt(neurons, pre, psi, direct, w_rec, through_reset=through_reset))
    else:
      learning_signal = error @ feedback.T                                                     # (4)
      gradients.append(eprop(neurons, pre, psi, learning_signal, rate_signal, kappa, normalised))
  return Gradient(gradients[0], no_autapses(gradients[1]), g_out, task_loss, rate_loss)

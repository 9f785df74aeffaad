"""The LSTM, its eligibility traces and its gradients as slow loops in float64 NumPy: what lstm.py is compared with.

Written from the equations, free of TensorFlow; nothing is shared with lstm.py but the names.

  t, b, k, n    time step, trial, presynaptic input or cell, postsynaptic cell
  p             peepholes p_i, p_f, p_o [3, N]; zeros where there are none
  weights       w_in [I, 4N], w_rec [N, 4N], bias [4N]; columns in the order i, j, f, o
"""
from typing import NamedTuple

import numpy as np


class Run(NamedTuple):
  """What a simulation leaves behind, each [T, B, N]."""
  h: np.ndarray
  c: np.ndarray
  i: np.ndarray
  j: np.ndarray
  f: np.ndarray
  o: np.ndarray


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def simulate(x, w_in, w_rec, bias, p):
  """The network, step by step."""
  n_steps, n_batch, _ = x.shape
  n = len(w_rec)
  run = Run(*np.zeros([6, n_steps, n_batch, n]))
  for b in range(n_batch):
    h, c = np.zeros([2, n])
    for t in range(n_steps):
      u_i, u_j, u_f, u_o = np.reshape(x[t, b] @ w_in + h @ w_rec + bias, [4, n])
      i, j, f = sigmoid(u_i + p[0] * c), np.tanh(u_j), sigmoid(u_f + p[1] * c + 1)
      c = f * c + i * j
      o = sigmoid(u_o + p[2] * c)
      h = o * np.tanh(c)
      for record, value in zip(run, (h, c, i, j, f, o)):
        record[t, b] = value
  return run


def before(x):
  """x[t-1] at t, 0 at the first step."""
  return np.concatenate([np.zeros_like(x[:1]), x[:-1]])


def synapse_traces(run, p, b, n, pre):
  """Eligibility traces of what arrives as pre [T] at the gates i, j, f, o of cell n in trial b: e [T, 4]."""
  e = np.zeros([len(pre), 4])
  eps = np.zeros(3)
  for t in range(len(pre)):
    i, j, f, o, c = (array[t, b, n] for array in (run.i, run.j, run.f, run.o, run.c))
    c_before = run.c[t - 1, b, n] if t else 0.0
    into_c = np.array([j * i * (1 - i), i * (1 - j * j), c_before * f * (1 - f)])
    decay = f + p[0, n] * into_c[0] + p[1, n] * into_c[2]     # a change of c[t-1] reaches c[t] through the peepholes too
    eps = decay * eps + into_c * pre[t]
    o_slope = o * (1 - o) * np.tanh(c)
    out_of_c = o * (1 - np.tanh(c) ** 2) + o_slope * p[2, n]
    e[t, :3] = out_of_c * eps
    e[t, 3] = o_slope * pre[t]
  return e


def eligibility(run, p, pre):
  """Traces of the synapses from pre [T, B, I]: [T, B, I, 4N]."""
  n_steps, n_batch, n = run.c.shape
  e = np.zeros([n_steps, n_batch, pre.shape[2], 4, n])
  for b in range(n_batch):
    for k in range(pre.shape[2]):
      for m in range(n):
        e[:, b, k, :, m] = synapse_traces(run, p, b, m, pre[:, b, k])
  return e.reshape(*e.shape[:3], 4 * n)


def eprop(run, p, x, signal):
  """E-prop's gradients with respect to w_in, w_rec, bias and p, from a learning signal [T, B, N]."""
  n_batch, n = run.c.shape[1:]
  arrivals = x, before(run.h), np.ones([*x.shape[:2], 1])
  g_in, g_rec, g_bias = (sum(np.tile(signal[t, b], 4) * e[t, b] for t in range(len(x)) for b in range(n_batch))
                         for e in (eligibility(run, p, pre) for pre in arrivals))
  g_p = np.zeros([3, n])
  for b in range(n_batch):
    for m in range(n):
      by_old_state = synapse_traces(run, p, b, m, before(run.c)[:, b, m])
      by_new_state = synapse_traces(run, p, b, m, run.c[:, b, m])
      g_p[:, m] += signal[:, b, m] @ np.stack([by_old_state[:, 0], by_old_state[:, 2], by_new_state[:, 3]], 1)
  return g_in, g_rec, g_bias[0], g_p


def bptt(run, p, x, signal, w_in, w_rec):
  """Back-propagation through time, one trial and one step after the other; signal: dE/dh along paths out of the network.

  Returns the gradients with respect to w_in, w_rec, bias and p, and dE/dx.
  """
  n_steps, n_batch, n = run.c.shape
  g_in, g_rec, g_bias, g_p, dx = (np.zeros(shape) for shape in (w_in.shape, w_rec.shape, 4 * n, (3, n), x.shape))
  for b in range(n_batch):
    dh_later = dc_later = np.zeros(n)
    for t in reversed(range(n_steps)):
      h_before, c_before = (array[t - 1, b] if t else np.zeros(n) for array in (run.h, run.c))
      c, i, j, f, o = (array[t, b] for array in run[1:])
      dh = signal[t, b] + dh_later
      du_o = dh * np.tanh(c) * o * (1 - o)
      dc = dc_later + dh * o * (1 - np.tanh(c) ** 2) + du_o * p[2]
      du_i, du_j, du_f = dc * j * i * (1 - i), dc * i * (1 - j ** 2), dc * c_before * f * (1 - f)
      du = np.concatenate([du_i, du_j, du_f, du_o])
      g_in += np.outer(x[t, b], du)
      g_rec += np.outer(h_before, du)
      g_bias += du
      g_p += [du_i * c_before, du_f * c_before, du_o * c]
      dx[t, b] = w_in @ du
      dh_later, dc_later = w_rec @ du, dc * f + du_i * p[0] + du_f * p[1]
  return g_in, g_rec, g_bias, g_p, dx

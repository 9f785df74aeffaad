"""Recomputes e-prop's gradient from a file of --export_reference, in NumPy alone, and compares.

  python read_reference.py reference/evidence_accumulation.npz
"""
import sys

import numpy as np


def gradient(f):
  """dE/dW [I + N, N] of eq. (1): sum over trials and steps of learning signal times filtered trace."""
  n_trials, n_steps, n = f['z'].shape
  z_before = np.concatenate([np.zeros((n_trials, 1, n)), f['z'][:, :-1]], 1)
  pre = np.concatenate([f['inputs'], z_before], 2)                                   # what arrives at step t
  eps_v, eps_a, e_bar = np.zeros([3, n_trials, pre.shape[2], n])
  total = np.zeros((pre.shape[2], n))
  for t in range(n_steps):
    psi = f['psi'][:, t, None]
    eps_v = f['alpha'] * eps_v + f['current_gain'] * pre[:, t, :, None]              # (22)
    e = psi * (eps_v - f['beta'] * eps_a)                                            # (25)
    eps_a = psi * eps_v + (f['rho'] - psi * f['beta']) * eps_a                       # (24)
    e_bar = f['kappa'] * e_bar + f['readout_gain'] * e                               # (28)
    total += np.sum(f['learning_signal'][:, t, None] * e_bar + f['rate_signal'][:, t, None] * e, 0)
  return total


if __name__ == '__main__':
  try:
    with np.load(sys.argv[1]) as file:
      f = dict(file)
    ours, theirs = gradient(f), np.concatenate([f['gradient_w_in'], f['gradient_w_rec']])
    np.fill_diagonal(ours[f['inputs'].shape[2]:], 0)                                 # no autapses
    error = np.abs(ours - theirs).max() / np.abs(ours).max()
  except Exception as error:  # damaged bytes raise whatever NumPy and zipfile can
    print(f'error: {sys.argv[1:]} is no file of --export_reference ({error!r})', file=sys.stderr)
    sys.exit(2)
  print(f'largest relative difference: {error:.1e}')
  sys.exit(int(not error <= 1e-11))  # NaN is not, either

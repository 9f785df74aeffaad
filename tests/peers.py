"""Seconds for one gradient of evidence accumulation by other simulators, beside ours: the same network, spikes and loss.

  python tests/peers.py ours arrays.npz         writes network, inputs and our gradients, and times them
  pip install jax                               in an environment of its own
  python tests/peers.py jax arrays.npz          times jax.lax.scan with jax.grad, and compares its gradients with ours

One core; seconds of processor time, so that other programs disturb little; the least of five calls after the first. Not part
of the test suite.
"""
import argparse
import os
import pathlib
import sys
import time

import numpy as np

N_STEPS, N_BATCH, N = 2250, 64, 100
ALPHA, RHO = np.exp(-1 / 20), np.exp(-1 / 2000)
THR, BETA, N_REFRACTORY, GAMMA = 0.6, np.repeat([0, 1.7 * (1 - RHO) / (1 - ALPHA)], N // 2), 5, 0.3
COST, TARGET_RATE = 1.0, 0.01
ROUNDS = 5


def least_seconds(compute):
  """Least processor time of five calls, after one that compiles; and what the last call returned."""
  compute()
  seconds = []
  for _ in range(ROUNDS):
    start = time.process_time()
    result = compute()
    seconds.append(time.process_time() - start)
  return min(seconds), result


def ours(path):
  """Writes the arrays; {name: seconds}."""
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'Figure_3_and_S7_e-prop_tutorials'))
  import tensorflow as tf
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(1)
  from learner import Learner
  from lsnn import ALIF
  from readout import RateCost, Readout, Weights
  from tasks import EvidenceAccumulation
  print('TensorFlow', tf.__version__)
  rng, task = np.random.default_rng(0), EvidenceAccumulation()
  x, labels, _ = task.draw(rng, N_BATCH)
  draw = lambda *shape: (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
  weights = Weights(draw(task.n_in, N), draw(N, N), draw(N, 2))
  arrays = dict(x=x, target=np.eye(2, dtype=np.float32)[labels][None], weight=task.loss_weight(N_STEPS, N_BATCH).astype(np.float32),
                **weights._asdict())
  cell, batch = ALIF(N, beta=BETA, n_refractory=N_REFRACTORY), [arrays[name] for name in ('x', 'target', 'weight')]
  seconds = {}
  for name, bptt, impl in (('eprop', False, 'adjoint'), ('bptt', True, 'adjoint'), ('eprop_hardcoded', False, 'hardcoded')):
    learner = Learner(cell, Readout(np.float32(ALPHA)), RateCost(COST, TARGET_RATE), bptt, impl)
    compute = lambda learner=learner: [g.numpy() for g in learner(*batch, weights, weights.w_out).gradients]
    seconds[name], gradients = least_seconds(compute)
    arrays.update({f'{name}_{of}': gradient for of, gradient in zip(Weights._fields, gradients)})
  np.savez(path, **arrays)
  return seconds


def with_jax(path):
  """{name: (seconds, largest difference from our gradient over its largest entry)}."""
  import jax
  import jax.numpy as jnp
  print('JAX', jax.__version__)
  arrays = dict(np.load(path))
  x, target, weight = (jnp.asarray(arrays[name], jnp.float32) for name in ('x', 'target', 'weight'))

  @jax.custom_vjp
  def spike(h):
    return (h > 0).astype(h.dtype)

  spike.defvjp(lambda h: (spike(h), h), lambda h, dz: (dz * GAMMA * jnp.maximum(1 - jnp.abs(h), 0),))

  def loss(weights, of_others):
    """of_others: jax.lax.stop_gradient for e-prop, the identity for BPTT."""
    w_in, w_rec, w_out = weights
    w_rec = w_rec * (1 - jnp.eye(N))

    def step(carried, current):
      v, a, z, r, z_bar = carried
      arriving = of_others(z)
      v = ALPHA * v + current + arriving @ w_rec - THR * arriving
      a = RHO * a + z
      z = spike(jnp.where(r > 0, -1.0, (v - THR - BETA * a) / THR))
      r = jnp.clip(r + N_REFRACTORY * jax.lax.stop_gradient(z) - 1, 0, N_REFRACTORY)
      z_bar = ALPHA * z_bar + (1 - ALPHA) * z
      return (v, a, z, r, z_bar), (z_bar @ w_out, z)

    start = (jnp.zeros((N_BATCH, N), jnp.float32),) * 5
    _, (y, z) = jax.lax.scan(step, start, x @ w_in)
    return -jnp.sum(weight * target * jax.nn.log_softmax(y)) + COST * jnp.sum((z.mean((0, 1)) - TARGET_RATE) ** 2)

  results, weights = {}, tuple(jnp.asarray(arrays[name]) for name in ('w_in', 'w_rec', 'w_out'))
  for name, of_others in (('eprop', jax.lax.stop_gradient), ('bptt', lambda z: z)):
    gradient = jax.jit(jax.grad(lambda w, of_others=of_others: loss(w, of_others)))
    seconds, gradients = least_seconds(lambda gradient=gradient: [np.asarray(g) for g in gradient(weights)])
    expected = [arrays[f'{name}_{of}'] for of in ('w_in', 'w_rec', 'w_out')]
    results[name] = seconds, max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(gradients, expected))
  return results


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('who', choices=['ours', 'jax'])
  parser.add_argument('path', help='.npz file of the arrays')
  arguments = parser.parse_args()
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  os.environ['XLA_FLAGS'] = '--xla_cpu_multi_thread_eigen=false'
  for name, result in {'ours': ours, 'jax': with_jax}[arguments.who](arguments.path).items():
    print(name, result)


if __name__ == '__main__':
  main()

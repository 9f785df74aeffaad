"""One call that says whether the gradients of a class of neurons are right, for instance of one that you wrote."""
import numpy as np
import tensorflow as tf

from eprop import Layer, LearningSignal, Weights


def gradient_errors(cell, n_in=10, n_steps=60, n_batch=2, gain=1.0, seed=0):
  """Compares what Layer computes for these neurons with TensorFlow's automatic differentiation, on random input and weights.

  Args:
    cell: the neurons, lsnn.Neuron, of dtype float64.
    n_in, n_steps, n_batch: I, T, B.
    gain: factor of the random weights, for neurons that need more or less input to spike.
    seed: of all random numbers.

  Returns:
    dict: for 'adjoint', 'hardcoded' and 'BPTT' the largest difference, relative to the largest entry of the gradient.

  Raises:
    ValueError: the neurons never spike, or some always do, which would prove little; another gain helps.
  """
  rng, n = np.random.default_rng(seed), cell.units
  draw = lambda *shape: tf.constant(rng.standard_normal(shape))
  x = tf.constant((rng.random((n_steps, n_batch, n_in)) < 0.2).astype(np.float64))
  weights = Weights(gain * draw(n_in, n) / n_in ** 0.5, gain * draw(n, n) / n ** 0.5)
  signal = LearningSignal(direct=draw(n_steps, n_batch, n))

  layers = {(bptt, impl): Layer(cell, bptt, impl) for bptt, impl in (
      (False, 'adjoint'), (False, 'hardcoded'), (False, 'autodiff'), (True, 'adjoint'), (True, 'autodiff'))}

  @tf.function
  def gradients():
    run = Layer(cell).forward(x, weights)
    return run.rate, [layer.gradient(x, weights, run.memory, signal).weights for layer in layers.values()]

  rate, results = gradients()
  if not np.max(rate) > 0 or np.max(rate) == 1:
    raise ValueError(f'the mean rates are {np.min(rate):.3g} to {np.max(rate):.3g} spikes per step: try another gain')
  results = dict(zip(layers, results))

  def error(bptt, impl):
    pairs = zip(results[bptt, impl], results[bptt, 'autodiff'])
    return max(float(tf.reduce_max(tf.abs(a - b)) / tf.reduce_max(tf.abs(b))) for a, b in pairs)

  return {'adjoint': error(False, 'adjoint'), 'hardcoded': error(False, 'hardcoded'), 'BPTT': error(True, 'adjoint')}

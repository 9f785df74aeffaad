"""What multiplies the eligibility traces: feedback matrices and how they learn, derivatives of the losses and of the rate cost."""
import keras
import numpy as np
import pytest
import tensorflow as tf

import eprop
import oracle
import readout
from readout import RateCost, Weights
from test_eprop import problem, relative_error
from trainer import apply_gradients


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('kind', eprop.FEEDBACK)
def test_feedback_matrix(kind, dtype):
  w_out = np.random.default_rng(0).normal(size=(300, 4)).astype(dtype)
  b = eprop.feedback_matrix(kind, w_out, np.random.default_rng(1))
  assert b.shape == w_out.shape and b.dtype == dtype
  assert len(np.unique(b, axis=0)) == (1 if kind == 'global' else len(b))
  assert len(np.unique(b[0])) == 4
  if kind == 'symmetric':
    np.testing.assert_array_equal(b, w_out)
    assert not np.shares_memory(b, w_out)
  else:
    assert relative_error(b, w_out) > 0.1
  if kind in ('random', 'adaptive'):
    assert abs(b.mean()) < 0.1 and abs(b.std() - 1) < 0.1


@pytest.mark.parametrize('optimizer', [keras.optimizers.SGD, keras.optimizers.Adam])
def test_adaptive_feedback_becomes_w_out(optimizer):
  """Kolen-Pollack: w_out and B take the same steps and decay, their difference shrinks by (1 - decay) per update."""
  rng = np.random.default_rng(0)
  weights = Weights(*(tf.Variable(rng.normal(size=shape)) for shape in ((4, 5), (5, 5), (5, 2))))
  feedback = tf.Variable(rng.normal(size=(5, 2)))
  optimizer, decay = optimizer(0.1), 0.125
  optimizer.build([*weights, feedback])
  initial, difference = Weights(*(w.numpy() for w in weights)), (feedback - weights.w_out).numpy()
  for update in range(1, 5):
    gradients = Weights(*(tf.constant(rng.normal(size=w.shape)) for w in weights))
    apply_gradients(optimizer, gradients, weights, feedback, decay)
    np.testing.assert_allclose(feedback - weights.w_out, difference * (1 - decay) ** update, rtol=1e-6)
    if update == 1 and isinstance(optimizer, keras.optimizers.SGD):
      for w, start, gradient, shrink in zip(weights, initial, gradients, (1, 1, 1 - decay)):
        np.testing.assert_allclose(w, (start - 0.1 * gradient) * shrink, rtol=1e-6)


def test_fixed_feedback_means_no_decay():
  weights = Weights(*(tf.Variable(tf.ones([2, 2])) for _ in range(3)))
  apply_gradients(keras.optimizers.SGD(0.5), Weights(*[tf.ones([2, 2])] * 3), weights, readout_decay=0.5)
  np.testing.assert_array_equal(weights, np.full([3, 2, 2], 0.5))


@pytest.mark.parametrize('kind', ['cross_entropy', 'squared_error'])
def test_error_is_the_derivative_of_the_loss(kind):
  p = problem('lif')
  y = tf.constant(np.random.default_rng(0).normal(size=p.target.shape))
  with tf.GradientTape() as tape:
    tape.watch(y)
    loss, error = readout.loss_and_error(kind, y, p.target, p.weight)
  assert relative_error(error, tape.gradient(loss, y)) < 1e-12


@pytest.mark.parametrize('kind', ['simple', 'online'])
def test_rate_signal_is_the_derivative_of_the_rate_cost(kind):
  regularisation = RateCost(5.0, 0.1, kind)
  z = tf.constant((np.random.default_rng(0).random((20, 3, 4)) < 0.2).astype(np.float64))
  with tf.GradientTape() as tape:
    tape.watch(z)
    rate = tf.reduce_mean(z, [0, 1])
    loss = readout.rate_cost(regularisation, rate, z)
  signal = np.broadcast_to(readout.rate_signal(regularisation, rate, 20, 3, z), z.shape)
  expected_loss, expected_signal = oracle.rate_loss_and_signal(kind, 5.0, 0.1, z.numpy())
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
  assert relative_error(signal, tape.gradient(loss, z)) < 1e-12
  assert relative_error(signal, expected_signal) < 1e-12


def test_unknown_feedback_is_refused():
  with pytest.raises(ValueError, match="feedback must be one of symmetric, random, adaptive, global, got 'rnd'"):
    eprop.feedback_matrix('rnd', np.ones([2, 1]), np.random.default_rng(0))

"""Figure 2's networks: bidirectional layers, readout and losses, against one tape over everything; padding."""
import functools
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

FIGURE_2 = pathlib.Path(__file__).resolve().parent.parent / 'Figure_2_TIMIT'
sys.path.append(str(FIGURE_2))  # behind the Figure 3 folder, whose lsnn.py, eprop.py and experiment.py are the same

from classifier import Batch, Classifier, Settings
from eprop import broadcast_readout
import lsnn
import lstm
from networks import LSNNLayer, LSTMLayer, Network
from test_eprop import relative_error

F, B, I, N, K = 12, 3, 5, 6, 4
LENGTHS = np.array([12, 7, 10], np.int32)
KINDS = ('lsnn', 'lsnn of two layers', 'lstm of two layers')


def make_network(kind, rule):
  """rule: 'bptt', or the implementation of e-prop; 'bptt_autodiff'."""
  options = dict(bptt=rule.startswith('bptt'), impl='adjoint' if rule == 'bptt' else rule.removeprefix('bptt_'))
  if kind.startswith('lstm'):
    return Network([LSTMLayer(N, peepholes=rule.startswith('bptt'), **options) for _ in range(2)])
  cell = lsnn.ALIF(N, thr=0.3, tau=20.0, tau_adaptation=50.0, beta=np.repeat([0, 0.2], N // 2), n_refractory=2, dtype='float64')
  return Network([LSNNLayer(cell, 1 if k else 3, **options) for k in range(2 if 'two' in kind else 1)])


def make_batch(loss, seed=0):
  rng = np.random.default_rng(seed)
  targets = rng.integers(0, K - 1, (F, B) if loss == 'framewise' else (B, 3))
  return Batch(tf.constant(rng.standard_normal((F, B, I))), tf.constant(LENGTHS), tf.constant(targets, tf.int32),
               tf.constant([3, 2, 1], tf.int32))


def make_classifier(kind, rule, loss, feedback='random', **settings):
  network = make_network(kind, rule)
  spiking = kind.startswith('lsnn')
  settings = Settings(**dict(dict(loss=loss, kappa=np.exp(-1 / 3), feedback=feedback, l2=1e-3, rate_target=0.05,
                                  rate_cost=0.5 if spiking else 0.0), **settings))
  return Classifier(network, settings, I, K, np.random.default_rng(1), 'float64')


@functools.cache
def by_classifier(kind, rule, loss):
  classifier = make_classifier(kind, rule, loss)
  return tf.function(classifier.gradients)(make_batch(loss))


@functools.cache
def by_one_tape(kind, bptt, loss):
  """The loss written down anew, and one gradient of all of it; e-prop with gradients stopped where the rule demands."""
  classifier = make_classifier(kind, 'bptt' if bptt else 'adjoint', loss)
  batch, s = make_batch(loss), classifier.settings
  real = np.arange(F)[:, None] < LENGTHS

  @tf.function
  def run():
    with tf.GradientTape() as tape:
      x, outputs, rate_loss = batch.x, [], 0.0
      for k, both in enumerate(classifier.layers):
        repeat, halves = classifier.network.layers[k].n_repeat, []
        for direction, weights in enumerate(both):
          steps = LENGTHS * (x.shape[0] // F)
          inputs = lstm.reverse_sequence(x, steps) if direction else x
          inputs = inputs if bptt else tf.stop_gradient(inputs)
          if kind.startswith('lstm'):
            out = lstm.unroll(inputs, weights, stop_gradients=not bptt).h
          else:
            out = lsnn.unroll(classifier.network.layers[k].cell, tf.repeat(inputs, repeat, 0), weights.w_in, weights.w_rec,
                              stop_z_gradients=not bptt).z
          halves.append(lstm.reverse_sequence(out, LENGTHS * (out.shape[0] // F)) if direction else out)
        x = tf.concat(halves, -1)
        outputs.append(x)
        mask = np.repeat(real, x.shape[0] // F, 0)[..., None]
        rate_loss += s.rate_cost * tf.reduce_sum((tf.reduce_sum(x * mask, [0, 1]) / mask.sum() - s.rate_target) ** 2)
      z = tf.concat(outputs, -1)
      n_repeat = z.shape[0] // F
      average = lambda y: tf.reduce_mean(tf.reshape(y, [F, n_repeat, B, -1]), 1)
      readout = (lambda z: z @ classifier.w_out) if bptt else lambda z: broadcast_readout(z, classifier.w_out, classifier.feedback)
      if loss == 'framewise':
        logits = readout(lsnn.exp_filter(average(z), s.kappa)) + classifier.bias
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(batch.targets, logits)
        task_loss = tf.reduce_mean(tf.reduce_sum(cross_entropy * real, 0) / LENGTHS)
      else:
        logits = average(readout(lsnn.exp_filter(z, s.kappa))) + classifier.bias
        task_loss = tf.cast(tf.reduce_mean(tf.nn.ctc_loss(batch.targets, tf.cast(logits, tf.float32), batch.target_lengths,
                                                          LENGTHS, blank_index=-1)), tf.float64)
      l2 = s.l2 * tf.add_n([tf.nn.l2_loss(w) for w in classifier.trainable()])
      total = task_loss + rate_loss + l2
    return task_loss, tape.gradient(total, classifier.trainable())

  return run()


@pytest.mark.parametrize('loss', ['framewise', 'ctc'])
@pytest.mark.parametrize('rule', ['adjoint', 'hardcoded', 'autodiff', 'bptt', 'bptt_autodiff'])
@pytest.mark.parametrize('kind', KINDS)
def test_gradient_is_that_of_one_tape(kind, rule, loss):
  """CTC's own gradient is float32, equal on both sides."""
  (result, gradients), (task_loss, expected) = by_classifier(kind, rule, loss), by_one_tape(kind, rule.startswith('bptt'), loss)
  np.testing.assert_allclose(result.loss, task_loss, rtol=1e-6 if loss == 'ctc' else 1e-12)
  assert len(gradients) == len(expected)
  for actual, want in zip(gradients, expected):
    assert np.abs(want).max() > 1e-6
    assert relative_error(actual, want) < (1e-5 if loss == 'ctc' else 1e-10)
  if kind.startswith('lsnn'):
    assert all(0.02 < np.mean(rate) < 0.4 for rate in result.rates)


@pytest.mark.parametrize('kind', ['lsnn', 'lsnn of two layers'])
def test_eprop_and_bptt_differ(kind):
  symmetric = tf.function(make_classifier(kind, 'adjoint', 'framewise', 'symmetric').gradients)(make_batch('framewise'))[1]
  bptt = tf.function(make_classifier(kind, 'bptt', 'framewise').gradients)(make_batch('framewise'))[1]
  assert relative_error(symmetric[0], bptt[0]) > 1e-2 and relative_error(symmetric[-2], bptt[-2]) < 1e-12


@pytest.mark.parametrize('loss', ['framewise', 'ctc'])
@pytest.mark.parametrize('kind', ['lsnn', 'lstm of two layers'])
@pytest.mark.parametrize('rule', ['adjoint', 'bptt'])
def test_padding_changes_nothing(kind, rule, loss):
  """Longer padding with other numbers in it, and utterances of length 0 that fill up the batch."""
  batch = make_batch(loss)
  rng = np.random.default_rng(5)
  x = rng.standard_normal((F + 5, B + 2, I))
  for b, n in enumerate(LENGTHS):
    x[:n, b] = batch.x[:n, b]
  if loss == 'framewise':
    targets = rng.integers(0, K, (F + 5, B + 2))
    for b, n in enumerate(LENGTHS):
      targets[:n, b] = batch.targets[:n, b]
  else:
    targets = np.concatenate([batch.targets, np.zeros((2, 3))])
  padded = Batch(tf.constant(x), tf.constant([*LENGTHS, 0, 0], tf.int32), tf.constant(targets, tf.int32),
                 tf.constant([*batch.target_lengths.numpy(), 0, 0], tf.int32))
  classifier = make_classifier(kind, rule, loss)
  tolerance = 1e-12 if loss == 'framewise' else 1e-5  # CTC is float32
  (plain, expected), (result, gradients) = (tf.function(classifier.gradients)(each) for each in (batch, padded))
  for name in ('loss', 'error', 'rates'):
    np.testing.assert_allclose(getattr(result, name), getattr(plain, name), rtol=tolerance, err_msg=name)
  for b, n in enumerate(LENGTHS):
    np.testing.assert_allclose(result.logits[:n, b], plain.logits[:n, b], atol=1e-12)
  for actual, want in zip(gradients, expected):
    assert relative_error(actual, want) < tolerance


def test_backward_direction_hears_each_utterance_from_its_own_end():
  """Of an utterance that reads the same backwards, and of two equal directions, the outputs mirror each other."""
  classifier = make_classifier('lsnn', 'adjoint', 'framewise')
  for a, b in zip(*classifier.layers[0]):
    b.assign(a)
  x = np.zeros((F, B, I))
  rng = np.random.default_rng(2)
  for b, n in enumerate(LENGTHS):
    half = rng.standard_normal((n, I))
    x[:n, b] = half + half[::-1]
  _, (z,), _ = classifier.network.forward(tf.constant(x), tf.constant(LENGTHS), classifier.layers, every_step=True)
  for b, n in enumerate(LENGTHS * 3):
    assert z[:n, b].numpy().any()
    # Steps within a frame count up in both directions: mirror frames, not steps.
    frames = z[:n, b].numpy()
    np.testing.assert_array_equal(frames[:, :N], frames[::-1, N:])


def test_truncation_and_readout_alone():
  cell = lsnn.ALIF(N, thr=0.3, beta=0.0, dtype='float64')
  gradients = {}
  for truncation in (-1, 1, 9, 36):
    network = Network([LSNNLayer(cell, 3, bptt=True, truncation=truncation)])
    classifier = Classifier(network, Settings(), I, K, np.random.default_rng(1), 'float64')
    gradients[truncation] = tf.function(classifier.gradients)(make_batch('framewise'))[1]
  assert relative_error(gradients[36][0], gradients[-1][0]) < 1e-14
  assert relative_error(gradients[9][0], gradients[-1][0]) > 1e-3 and relative_error(gradients[1][0], gradients[9][0]) > 1e-3
  alone = make_classifier('lsnn', 'adjoint', 'framewise', train_network=False)
  assert [w.shape for w in alone.trainable()] == [(2 * N, K), (K,)]
  assert len(tf.function(alone.gradients)(make_batch('framewise'))[1]) == 2


def test_uniform_feedback_is_blind():
  """Errors of a softmax sum to zero over the classes: nothing reaches the network."""
  classifier = make_classifier('lsnn', 'adjoint', 'framewise', 'uniform', l2=0.0, rate_cost=0.0)
  gradients = tf.function(classifier.gradients)(make_batch('framewise'))[1]
  assert np.abs(gradients[0]).max() < 1e-16 and np.abs(gradients[-2]).max() > 1e-3


def test_eprop_needs_a_readout_of_every_layer():
  with pytest.raises(ValueError, match='all layers'):
    make_classifier('lsnn of two layers', 'adjoint', 'framewise', all_layers=False)
  bptt = make_classifier('lsnn of two layers', 'bptt', 'framewise', all_layers=False)
  gradients = tf.function(bptt.gradients)(make_batch('framewise'))[1]
  assert np.abs(gradients[0]).max() > 1e-4  # from the layer above


@pytest.mark.parametrize('bad', [dict(loss='hinge'), dict(feedback='rnd')], ids=str)
def test_unknown_settings_are_refused(bad):
  with pytest.raises(ValueError, match="one of framewise, ctc, the feedback one of symmetric, adaptive, random, uniform; got"):
    make_classifier('lsnn', 'adjoint', **{'loss': 'framewise', **bad})

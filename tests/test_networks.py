"""Figure 2's networks: bidirectional layers, readout and losses, against one tape over everything; padding."""
import functools
import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

FIGURE_2 = pathlib.Path(__file__).resolve().parent.parent / 'Figure_2_TIMIT'
sys.path.append(str(FIGURE_2))  # behind the Figure 3 folder, whose lsnn.py, eprop.py and experiment.py are the same

from classifier import Batch, Classifier, counted_frames, rate_signals, Settings
from eprop import broadcast_readout
import lsnn
import lstm
import neurons
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
  neuron = neurons.CrossingsALIF if kind == 'lsnn that adapts to crossings' else lsnn.ALIF
  cell = neuron(N, thr=0.3, tau=20.0, tau_adaptation=50.0, beta=np.repeat([0, 0.2], N // 2), n_refractory=2, dtype='float64')
  return Network([LSNNLayer(cell, 1 if k else 3, **options) for k in range(2 if 'two' in kind else 1)])


def make_batch(loss, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((F, B, I)) * (np.arange(F)[:, None] < LENGTHS)[..., None]
  targets = rng.integers(0, K - 1, (F, B) if loss == 'framewise' else (B, 3))
  return Batch(tf.constant(x), tf.constant(LENGTHS), tf.constant(targets, tf.int32),
               tf.constant([3, 2, 1], tf.int32))


def make_classifier(kind, rule, loss, feedback='random', **settings):
  network = make_network(kind, rule)
  spiking = kind.startswith('lsnn')
  settings = Settings(**dict(dict(loss=loss, kappa=np.exp(-1 / 3), feedback=feedback, l2=1e-3, rate_target=0.05,
                                  rate_cost=0.5 if spiking else 0.0), **settings))
  return Classifier(network, settings, I, K, np.random.default_rng(1), 'float64')


def gradients_of(classifier, batch, *noise):
  return tf.function(lambda: classifier.gradients(classifier.variables, batch, *noise))()


@functools.cache
def by_classifier(kind, rule, loss, over='batch', reverse='batch'):
  classifier = make_classifier(kind, rule, loss, rate_over=over, reverse=reverse)
  return gradients_of(classifier, make_batch(loss))


@functools.cache
def by_one_tape(kind, bptt, loss, over='batch', reverse='batch'):
  """The loss written down anew, and one gradient of all of it; e-prop with gradients stopped where the rule demands."""
  classifier = make_classifier(kind, 'bptt' if bptt else 'adjoint', loss)
  batch, s, weights = make_batch(loss), classifier.settings, classifier.variables
  real = np.arange(F)[:, None] < LENGTHS
  counted = real if over == 'utterances' else np.ones((F, B), bool)
  ends = LENGTHS if reverse == 'utterance' else np.full(B, F)

  @tf.function
  def run():
    with tf.GradientTape() as tape:
      x, outputs, rate_loss = batch.x, [], 0.0
      for k, both in enumerate(weights.layers):
        layer, halves = classifier.network.layers[k], []
        for direction, of_layer in enumerate(both):
          steps = ends * (x.shape[0] // F)
          inputs = lstm.reverse_sequence(x, steps) if direction else x
          inputs = inputs if bptt else tf.stop_gradient(inputs)
          if kind.startswith('lstm'):
            out = lstm.unroll(inputs, of_layer, stop_gradients=not bptt).h
          else:
            out = layer.simulate(inputs, of_layer, stop_z_gradients=not bptt).z
          halves.append(lstm.reverse_sequence(out, ends * (out.shape[0] // F)) if direction else out)
        x = tf.concat(halves, -1)
        outputs.append(x)
        mask = np.repeat(counted, x.shape[0] // F, 0)[..., None]
        rate_loss += s.rate_cost * tf.reduce_sum((tf.reduce_sum(x * mask, [0, 1]) / mask.sum() - s.rate_target) ** 2)
      z = tf.concat(outputs, -1)
      n_repeat = z.shape[0] // F
      average = lambda y: tf.reduce_mean(tf.reshape(y, [F, n_repeat, B, -1]), 1)
      readout = (lambda z: z @ weights.w_out) if bptt else lambda z: broadcast_readout(z, weights.w_out, weights.feedback)
      if loss == 'framewise':
        logits = readout(lsnn.exp_filter(average(z), s.kappa)) + weights.bias
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(batch.targets, logits)
        task_loss = tf.reduce_mean(tf.reduce_sum(cross_entropy * real, 0) / LENGTHS)
      else:
        logits = average(readout(lsnn.exp_filter(z, s.kappa))) + weights.bias
        task_loss = tf.cast(tf.reduce_mean(tf.nn.ctc_loss(batch.targets, tf.cast(logits, tf.float32), batch.target_lengths,
                                                          LENGTHS, blank_index=-1)), tf.float64)
      l2 = s.l2 * tf.add_n([tf.reduce_sum(w ** 2) for w in classifier.learning(weights)])
      total = task_loss + rate_loss + l2
    return task_loss, tape.gradient(total, classifier.learning(weights))

  return run()


@pytest.mark.parametrize('rule, loss', [
    ('adjoint', 'framewise'), ('hardcoded', 'framewise'), ('autodiff', 'framewise'), ('bptt', 'framewise'),
    ('bptt_autodiff', 'framewise'), ('adjoint', 'ctc'), ('bptt', 'ctc')])
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
  symmetric = gradients_of(make_classifier(kind, 'adjoint', 'framewise', 'symmetric'), make_batch('framewise'))[1]
  bptt = gradients_of(make_classifier(kind, 'bptt', 'framewise'), make_batch('framewise'))[1]
  assert relative_error(symmetric[0], bptt[0]) > 1e-2 and relative_error(symmetric[-2], bptt[-2]) < 1e-12


@pytest.mark.parametrize('over, reverse', [('batch', 'utterance'), ('utterances', 'batch'), ('utterances', 'utterance')])
def test_unpublished_rates_and_reversal(over, reverse):
  (result, gradients), (task_loss, expected) = (function('lsnn', rule, 'framewise', over, reverse) for function, rule in
                                                ((by_classifier, 'adjoint'), (by_one_tape, False)))
  np.testing.assert_allclose(result.loss, task_loss, rtol=1e-12)
  for actual, want in zip(gradients, expected):
    assert relative_error(actual, want) < 1e-10
  published = by_classifier('lsnn', 'adjoint', 'framewise')[1]
  assert relative_error(gradients[2], published[2]) > 1e-3  # w_in of the backward direction


@pytest.mark.parametrize('rule', ['adjoint', 'hardcoded', 'autodiff', 'bptt'])
def test_thresholds_that_adapt_to_crossings_have_the_gradient_of_one_tape(rule):
  kind = 'lsnn that adapts to crossings'
  gradients, expected = by_classifier(kind, rule, 'framewise')[1], by_one_tape(kind, rule == 'bptt', 'framewise')[1]
  for actual, want in zip(gradients, expected):
    assert relative_error(actual, want) < 1e-10
  assert relative_error(gradients[0], by_classifier('lsnn', rule, 'framewise')[1][0]) > 1e-3


def test_crossings_raise_thresholds_by_hand():
  """A current of 1.2 on a threshold of 1, no leak to speak of: the refractory period suppresses what would be spikes 2 and 3."""
  thresholds = {}
  for kind in (lsnn.ALIF, neurons.CrossingsALIF):
    cell = kind(1, thr=1.0, tau=1e9, tau_adaptation=1e9, beta=0.1, n_refractory=3, dtype='float64')
    state = cell.State(*cell.get_initial_state(1))
    seen = []
    for _ in range(5):
      state = cell.step(tf.constant([[1.2]], tf.float64), state.z, state)
      seen.append((float(state.z[0, 0]), round(float(state.a[0, 0]), 6)))
    thresholds[kind] = seen
  # v is 1.2, then 1.4 after the reset, 2.6, 3.8: over 1 + 0.1 a at every step.
  assert thresholds[lsnn.ALIF] == [(1, 0), (0, 1), (0, 1), (1, 1), (0, 2)]
  assert thresholds[neurons.CrossingsALIF] == [(1, 0), (0, 1), (0, 2), (1, 3), (0, 4)]


def test_rate_cost_by_hand():
  """Two utterances of 3 frames and 1 frame, 2 steps each; a fourth frame and a third utterance only fill the batch up."""
  z = np.array([[0.5, 1.0, 9.0], [1.0, 0.0, 9.0], [0.0, 0.5, 9.0], [9.0, 9.0, 9.0]])[..., None]  # [F, B, N], the mean of 2 steps
  batch = Batch(tf.zeros([4, 3, 1]), tf.constant([3, 1, 0]), None, None)
  settings = Settings(rate_cost=50.0, rate_target=0.01)
  # Published: mean over 2 x 3 frames of the padded batch, 3 / 6 = 0.5; 2 * 50 * (0.5 - 0.01) / (6 frames * 2 steps).
  signal, = rate_signals(settings, [z], counted_frames(batch, 'batch', tf.float64), 2)
  np.testing.assert_allclose(signal[..., 0], 49 / 12 * np.array([[1, 1, 0]] * 3 + [[0, 0, 0]]), rtol=1e-12)
  # Over the utterances alone: 2.5 spikes per step in 4 frames; 2 * 50 * (0.625 - 0.01) / (4 frames * 2 steps).
  signal, = rate_signals(settings, [z], counted_frames(batch, 'utterances', tf.float64), 2)
  np.testing.assert_allclose(signal[..., 0], 61.5 / 8 * np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]), rtol=1e-12)


@pytest.mark.parametrize('kind, rule, loss, published', [
    ('lsnn', 'adjoint', 'framewise', True), ('lsnn', 'bptt', 'ctc', True), ('lsnn', 'bptt', 'framewise', False),
    ('lsnn', 'adjoint', 'ctc', False), ('lstm of two layers', 'bptt', 'ctc', False),
    ('lstm of two layers', 'adjoint', 'framewise', True)])
def test_padding_changes_nothing(kind, rule, loss, published):
  """Longer padding and utterances of length 0 that fill up the batch. What stands in the padding changes nothing where each
  utterance is reversed at its own end and rates are those of the utterances."""
  batch = make_batch(loss)
  rng = np.random.default_rng(5)
  x = np.zeros((F + 5, B + 2, I)) if published else rng.standard_normal((F + 5, B + 2, I))
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
  classifier = make_classifier(kind, rule, loss, **({} if published else dict(rate_over='utterances', reverse='utterance')))
  tolerance = 1e-12 if loss == 'framewise' else 1e-5  # CTC is float32
  (plain, expected), (result, gradients) = (gradients_of(classifier, each) for each in (batch, padded))
  for name in ('loss', 'error', 'rates'):
    np.testing.assert_allclose(getattr(result, name), getattr(plain, name), rtol=tolerance, err_msg=name)
  for b, n in enumerate(LENGTHS):
    np.testing.assert_allclose(result.logits[:n, b], plain.logits[:n, b], atol=1e-12)
  for actual, want in zip(gradients, expected):
    assert relative_error(actual, want) < tolerance


@pytest.mark.parametrize('reverse', ['utterance', 'batch'])
def test_where_the_backward_direction_begins(reverse):
  """Of an utterance that reads the same backwards, and of two equal directions, the outputs mirror each other."""
  classifier = make_classifier('lsnn', 'adjoint', 'framewise')
  layers = classifier.variables.layers
  for a, b in zip(*layers[0]):
    b.assign(a)
  ends = LENGTHS if reverse == 'utterance' else np.full(B, F)
  x = np.zeros((F, B, I))
  rng = np.random.default_rng(2)
  for b, n in enumerate(ends):
    half = rng.standard_normal((n, I))
    x[:n, b] = half + half[::-1]
  run, = classifier.network.forward(tf.constant(x), tf.constant(ends), layers)
  z = classifier.network.at_steps(run, ends)
  for b, n in enumerate(ends * 3):
    assert z[:n, b].numpy().any()
    # Steps within a frame count up in both directions: mirror frames, not steps.
    frames = z[:n, b].numpy()
    np.testing.assert_array_equal(frames[:, :N], frames[::-1, N:])


def test_drop_out_is_that_of_one_tape():
  """Of the inputs of each layer and of the readout, with a mask of its own; none without a seed."""
  seed = tf.constant([3, 4])
  for kind in ('lsnn of two layers', 'lstm of two layers'):
    classifier = make_classifier(kind, 'bptt', 'ctc', keep=0.7)
    batch, w, network = make_batch('ctc'), classifier.variables, classifier.network
    masks = classifier._drop_out(batch, seed)
    assert [mask.shape[-1] for mask in masks] == [I, 2 * N, 4 * N]
    assert {0.0, 1 / 0.7} == set(np.concatenate([np.ravel(mask) for mask in masks]))

    @tf.function
    def run():
      with tf.GradientTape() as tape:
        x, outputs = batch.x, []
        for k, both in enumerate(w.layers):
          x = x * tf.repeat(masks[k], x.shape[0] // F, 0)
          halves = []
          for direction, of_layer in enumerate(both):
            inputs = x[::-1] if direction else x
            out = (lstm.unroll(inputs, of_layer).h if 'lstm' in kind else network.layers[k].simulate(inputs, of_layer).z)
            halves.append(out[::-1] if direction else out)
          x = tf.concat(halves, -1)
          outputs.append(x)
        z = tf.concat(outputs, -1) * tf.repeat(masks[-1], x.shape[0] // F, 0)
        logits = network.average(lsnn.exp_filter(z, classifier.settings.kappa) @ w.w_out) + w.bias
        loss, _, _ = classifier._loss_and_error(logits, batch)
      return loss, tape.gradient(loss, classifier.learning(w))

    loss, expected = run()
    classifier.settings = classifier.settings._replace(l2=0.0, rate_cost=0.0)
    result, gradients = gradients_of(classifier, batch, seed)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-6)
    for actual, want in zip(gradients, expected):
      assert relative_error(actual, want) < 1e-5
    assert abs(gradients_of(classifier, batch)[0].loss - loss) > 1e-3


def test_readout_alone():
  alone = make_classifier('lsnn', 'adjoint', 'framewise', train_network=False)
  assert [w.shape for w in alone.learning(alone.variables)] == [(2 * N, K), (K,)]
  assert len(gradients_of(alone, make_batch('framewise'))[1]) == 2


def test_adaptive_feedback_gets_the_updates_of_w_out_and_decays_with_it():
  """Kolen-Pollack: without L2 the difference of the two matrices shrinks by (1 - readout_decay) and by nothing else."""
  classifier = make_classifier('lsnn', 'adjoint', 'framewise', 'adaptive', l2=0.0, readout_decay=0.01)
  weights = classifier.variables
  optimizer = keras.optimizers.SGD(0.5)
  optimizer.build(classifier.learning(weights))
  before = [w.numpy() for w in (weights.w_out, weights.feedback)]
  batch = make_batch('framewise')
  g_out = gradients_of(classifier, batch)[1][-3]
  tf.function(lambda: classifier.update(optimizer, batch))()
  np.testing.assert_allclose(weights.w_out, 0.99 * (before[0] - 0.5 * g_out), rtol=1e-6)
  np.testing.assert_allclose(weights.feedback, 0.99 * (before[1] - 0.5 * g_out), rtol=1e-6)


def test_clipping_comes_before_the_noise_on_the_gradient():
  batch, seed = make_batch('framewise'), tf.constant([3, 4])
  classifier = make_classifier('lsnn', 'adjoint', 'framewise', grad_clip=0.1)
  plain = gradients_of(classifier, batch, seed)[1]
  np.testing.assert_allclose(tf.linalg.global_norm(plain), 0.1, rtol=1e-12)
  noise = [a - b for a, b in zip(gradients_of(classifier, batch, seed, 2.0)[1], plain)]
  assert 1.8 < np.std(np.concatenate([np.ravel(n) for n in noise])) < 2.2


def test_uniform_feedback_is_blind():
  """Errors of a softmax sum to zero over the classes: nothing reaches the network."""
  classifier = make_classifier('lsnn', 'adjoint', 'framewise', 'uniform', l2=0.0, rate_cost=0.0)
  gradients = gradients_of(classifier, make_batch('framewise'))[1]
  assert np.abs(gradients[0]).max() < 1e-16 and np.abs(gradients[-2]).max() > 1e-3


def test_eprop_needs_a_readout_of_every_layer():
  with pytest.raises(ValueError, match='all layers'):
    make_classifier('lsnn of two layers', 'adjoint', 'framewise', all_layers=False)
  bptt = make_classifier('lsnn of two layers', 'bptt', 'framewise', all_layers=False)
  gradients = gradients_of(bptt, make_batch('framewise'))[1]
  assert np.abs(gradients[0]).max() > 1e-4  # from the layer above


@pytest.mark.parametrize('bad', [dict(loss='nonsense'), dict(feedback='nonsense'), dict(reverse='nonsense'),
                                 dict(rate_over='nonsense')], ids=str)
def test_unknown_settings_are_refused(bad):
  with pytest.raises(ValueError, match="must be one of .*, got 'nonsense'"):
    make_classifier('lsnn', 'adjoint', **{'loss': 'framewise', **bad})

"""Gradients, losses and traces against what the published cells gave on fixed arrays, in float32."""
import numpy as np
import pytest
import tensorflow as tf

import eprop
import lsnn
import oracle
from learner import Learner
from readout import RateCost, Readout, Weights
from test_eprop import BPTT, RULES, assert_close, relative_error

GOLDEN = 1e-5  # relative tolerance


def golden_cell(g, **kwargs):
  return lsnn.ALIF(len(g['w_rec']), thr=g['thr'], tau=g['tau'], tau_adaptation=g.get('tau_adaptation', 1.0),
                   beta=g.get('beta', 0.0), n_refractory=g.get('n_refractory', 0), dampening_factor=g['dampening_factor'],
                   **kwargs)


def golden_learn(rule, g, x, target, weight, feedback='w_out'):
  """Result of a rule on the arrays of a file."""
  arrays = map(tf.constant, (x, target, np.broadcast_to(np.float32(weight), [len(g['inputs']), 1, 1])))
  return rule(*arrays, Weights(*(tf.constant(g[name]) for name in Weights._fields)), tf.constant(g[feedback]))


def golden_gradients(g, suffix, prefix='g'):
  return [g[key] for key in (f'{prefix}_{part}_{suffix}' for part in ('in', 'rec', 'out')) if key in g]


@pytest.mark.parametrize('rule', RULES)
def test_figure_3(golden, rule):
  """Evidence accumulation: LIF and ALIF neurons, cross-entropy in the last steps, rate cost; both and the second alone."""
  g = golden('figure3_alif')
  compiled = Learner(golden_cell(g), Readout(lsnn.exp_decay(g['tau_out'])), RateCost(1.0, 0.01), **RULES[rule])
  target = np.eye(2, dtype=np.float32)[g['labels']][None]
  n_steps, n_batch, _ = g['inputs'].shape
  weight = (np.arange(n_steps) >= n_steps - g['loss_window'])[:, None, None] / (g['loss_window'] * n_batch)
  for kind, feedback in [('bptt', 'w_out')] if rule in BPTT else [('eprop_symmetric', 'w_out'), ('eprop_random', 'b_out')]:
    both, of_rates = (golden_learn(compiled, g, g['inputs'], target, w, feedback) for w in (weight, 0))
    expected, expected_of_rates = golden_gradients(g, kind), golden_gradients(g, kind, 'greg')
    np.testing.assert_allclose(both.task_loss, g[f'loss_{kind}'], rtol=GOLDEN)
    np.testing.assert_allclose(both.rate_loss, g['loss_reg'], rtol=GOLDEN)
    assert_close(of_rates.gradients, expected_of_rates, GOLDEN)
    assert_close(both.gradients, [*map(np.add, expected, expected_of_rates), expected[2]], GOLDEN)
    assert_close([a - b for a, b in zip(both.gradients, of_rates.gradients)], expected, GOLDEN)


def test_figure_3_traces(golden):
  """Traces of the recurrent synapses of six presynaptic neurons in the first trial; autapses there are none."""
  g = golden('figure3_alif')
  cell = golden_cell(g)

  @tf.function
  def traces(x, w_in, w_rec):
    run = eprop.Layer(cell).simulate(x, eprop.Weights(w_in, w_rec))
    return eprop.eligibility_traces(cell, eprop.one_step_later(run.z)[:, :, :6], run.memory)

  e, eps = traces(*map(tf.constant, (g['inputs'][:, :1], g['w_in'], g['w_rec'])))
  synapses = ~np.eye(6, len(g['w_rec']), dtype=bool)
  assert relative_error(e[:, 0] * synapses, g['e_trial0_pre0to5']) < GOLDEN
  assert relative_error(eprop.one_step_later(eps.a)[:, 0] * synapses, g['epsilon_a_trial0_pre0to5']) < GOLDEN


@pytest.mark.parametrize('rule', RULES)
def test_figure_S7(golden, rule):
  """Pattern generation: half the squared error of two trials with one target. The gradients include the rate cost, 300
  times half the squared difference, the loss does not. Spikes come in as bytes here."""
  g = golden('figureS7_lif')
  compiled = Learner(golden_cell(g, scale_input=True), Readout(lsnn.exp_decay(g['tau_out']), loss='squared_error'),
                     RateCost(float(g['reg']) / 2, float(g['reg_rate_khz'])), **RULES[rule])
  learned = golden_learn(compiled, g, g['inputs'].astype(np.uint8), g['targets'], 1)
  assert relative_error(learned.y, g['output']) < GOLDEN
  np.testing.assert_allclose(learned.task_loss, g['loss'], rtol=GOLDEN)
  np.testing.assert_allclose(learned.rate_loss, g['reg'] * g['loss_reg'], rtol=GOLDEN)
  assert_close(learned.gradients, golden_gradients(g, 'bptt' if rule in BPTT else 'eprop_symmetric'), GOLDEN)


@pytest.mark.parametrize('rule', ['eprop_adjoint', 'bptt_adjoint'])
def test_figure_2(golden, rule):
  """Phoneme recognition: plain filter, a label per step, cross-entropy averaged over steps and trials."""
  g = golden('figure2_lif')
  compiled = Learner(golden_cell(g), Readout(lsnn.exp_decay(g['tau_out']), normalised=False), RateCost(0.0, 0.0),
                     **RULES[rule])
  learned = golden_learn(compiled, g, g['inputs'], np.eye(5, dtype=np.float32)[g['labels']], 1 / g['labels'].size)
  np.testing.assert_allclose(learned.task_loss, g['loss'], rtol=GOLDEN)
  assert_close(learned.gradients, golden_gradients(g, 'bptt' if rule in BPTT else 'eprop_symmetric'), GOLDEN)


@pytest.mark.parametrize('kind', ['eprop', 'bptt'])
def test_figure_4(golden, kind):
  """Trials that start anew inside a sequence, loss sum z * learning_signal: adjoint scan and autodiff."""
  g = golden('figure4_alif_with_reset')
  x, signal, done, w_in, w_rec = (tf.constant(g[name]) for name in ('inputs', 'learning_signal', 'done', 'w_in', 'w_rec'))
  layer = eprop.Layer(golden_cell(g), bptt=kind == 'bptt')

  @tf.function
  def gradients():
    with tf.GradientTape() as tape:
      tape.watch((w_in, w_rec))
      run = layer.simulate(x, eprop.Weights(w_in, w_rec), reset=done, stop_z_gradients=kind == 'eprop')
      loss = tf.reduce_sum(run.z * signal)
    post, _ = layer.adjoint_scan(run.memory, lambda t: signal[t], lsnn.without_autapses(w_rec), reset=done)
    before = eprop.one_step_later(run.z) * (1 - done)[:, :, None]
    by_adjoint = eprop.presynaptic_product(x, post), lsnn.without_autapses(eprop.presynaptic_product(before, post))
    return loss, by_adjoint, tape.gradient(loss, (w_in, w_rec))

  loss, by_adjoint, by_autodiff = gradients()
  np.testing.assert_allclose(loss, g['loss'], rtol=GOLDEN)
  assert_close(by_adjoint, golden_gradients(g, kind), GOLDEN)
  assert_close(by_autodiff, golden_gradients(g, kind), GOLDEN)


@pytest.mark.parametrize('kind', ['eprop', 'bptt'])
def test_figure_4_by_the_oracle(golden, kind):
  """The oracle itself, where trials start anew: synapses from the first five presynaptic neurons."""
  g = golden('figure4_alif_with_reset')
  neurons = oracle.Neurons(len(g['w_rec']), *(g[name] for name in (
      'thr', 'tau', 'tau_adaptation', 'beta', 'n_refractory', 'dampening_factor')))
  z, _, _, psi = oracle.simulate(neurons, g['inputs'], g['w_in'], g['w_rec'], g['done'])
  np.testing.assert_array_equal(z, g['z'])
  gradients = []
  for pre in (g['inputs'][:, :, :5], oracle.one_step_later(z, g['done'])[:, :, :5]):
    if kind == 'eprop':
      gradients.append(oracle.eprop(neurons, pre, psi, g['learning_signal'], np.zeros_like(z), reset=g['done']))
    else:
      gradients.append(oracle.bptt(neurons, pre, psi, g['learning_signal'], g['w_rec'], g['done']))
  gradients[1] = oracle.no_autapses(gradients[1])
  assert_close(gradients, [gradient[:5] for gradient in golden_gradients(g, kind)], GOLDEN)

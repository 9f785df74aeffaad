"""The agent of figures 4 and 5: published neurons and sizes, a slow oracle, the beginning of episodes."""
import types

import numpy as np
import pytest
import tensorflow as tf

# First: this makes the folder of figure 4 known.
from agent_problems import B, BROADCAST, COSTS, actor, learn, make_agent, make_problem, of_oracle, published_agent
from agent import Agent, NAMES, by_name
import lsnn
import playing
from spiking_cnn import Affine, ConvLIF
from test_eprop import relative_error


def test_convolutional_neurons_are_the_published_ones(golden):
  """Spikes, potentials and gradients, the latter by adjoint and by autodiff; arrays are [time, trial, neuron] already."""
  g = {key: array.swapaxes(0, 1) if key in ('inputs', 'learning_signal', 'z', 'v') else array
       for key, array in golden('figure4_conv_lif').items()}
  layer = ConvLIF((3, 4, 1), filters=1, kernel=1, stride=1, pool=2, pool_stride=1)
  np.testing.assert_allclose([layer.decay, layer.thr, layer.dampening_factor],
                             [g['decay'], g['thr'], g['dampening_factor']], rtol=1e-7)
  in_space = lambda x: tf.reshape(tf.constant(x), [*x.shape[:2], 3, 4, 1])
  currents, signal = in_space(g['inputs']), in_space(g['learning_signal'])

  frames = [slice(t, t + 5) for t in range(0, len(currents), 5)]
  zeros, step_weights = tf.zeros_like(currents[0]), (0.0,) * 5
  with tf.GradientTape() as tape:
    tape.watch(currents)
    v, hs, zs = zeros, [], []
    for frame in frames:
      h, z, _, v = layer.run(v, currents[frame], step_weights)
      hs.append(h)
      zs.append(z)
    loss = tf.reduce_sum(tf.concat(zs, 0) * signal)
  by_autodiff, by_adjoint, after = tape.gradient(loss, currents), [], zeros
  for h, frame in zip(reversed(hs), reversed(frames)):
    gi, after = layer.adjoint(h, zeros, step_weights, zeros, zeros, after, from_above=signal[frame])
    by_adjoint.insert(0, gi)

  h, by_autodiff, by_adjoint = (np.reshape(x, g['z'].shape) for x in (tf.concat(hs, 0), by_autodiff, tf.concat(by_adjoint, 0)))
  np.testing.assert_array_equal(h > 0, g['z'])
  assert 0.1 < g['z'].mean() < 0.9
  assert relative_error(layer.thr * (1 + h), g['v']) < 1e-5
  assert relative_error(by_autodiff, g['g_inputs']) < 1e-5
  assert relative_error(by_adjoint, g['g_inputs']) < 1e-5


@pytest.mark.parametrize('broadcast', [False, True])
def test_published_sizes_and_initial_weights(broadcast):
  agent = published_agent(broadcast)
  assert (agent.conv1.size, agent.conv2.size, agent.conv2.units) == ((20, 20, 16), (17, 17, 8), 2312)
  assert agent.feature_sizes == ([400, 4 * 4 * 32, 7 * 7 * 64] if broadcast else [400, 256, 392])
  weights = agent.initial_weights(np.random.default_rng(0))
  fan_in = dict(conv1=64, conv2=256, w_in=2312, w_rec=400, w_policy=agent.n_features, w_value=agent.n_features)
  if broadcast:
    fan_in |= dict(broadcast1=1024, broadcast2=128)
    assert weights.view1.w.shape == (8, 8, 16, 32) and weights.view2.w.shape == (4, 4, 8, 64)
    assert weights.view1.b.shape == (32,) and weights.view2.b.shape == (64,)
  assert list(by_name(weights)) == list(by_name(NAMES))[:14 if broadcast else 10]
  for name, w in by_name(weights).items():
    assert w.dtype == np.float32
    if name in fan_in:
      scaled = w * np.sqrt(fan_in[name])
      normal = name.startswith('w_in') or name == 'w_rec'
      np.testing.assert_allclose(scaled.std(), 1 if normal else 0.88, atol=0.08, err_msg=name)  # sd after truncation
      assert (np.abs(scaled).max() > 3) if normal else (1.8 < np.abs(scaled).max() <= 2.0001), name
    else:
      assert not w.any(), name
  assert not np.diag(weights.rnn.w_rec).any()
  np.testing.assert_array_equal(agent.cell.beta > 0, np.arange(400) >= 240)


def test_arguments_that_do_not_fit():
  with pytest.raises(ValueError, match='windows that fit'):
    ConvLIF((6, 6, 1), filters=1, kernel=8, stride=4, pool=1, pool_stride=1)
  for broadcast in (None, 1):
    with pytest.raises(ValueError, match='windows that fit'):
      ConvLIF((6, 6, 1), filters=1, kernel=4, stride=2, pool=3, pool_stride=1, broadcast=broadcast)
  with pytest.raises(ValueError, match='thr > 0'):
    ConvLIF((6, 6, 1), filters=1, kernel=4, stride=2, pool=1, pool_stride=1, thr=0)
  conv = ConvLIF((12, 12, 1), filters=3, kernel=4, stride=2, pool=2, pool_stride=1)
  with pytest.raises(ValueError, match='second layer'):
    Agent(3, conv, conv, lsnn.ALIF(4))
  p = make_problem('episodes end')
  with pytest.raises(ValueError, match='avg_time, avg_all'):
    learn(p, COSTS._replace(voltage_reg_method='mean'))


@pytest.mark.parametrize('broadcast', [False, True])
def test_spread_is_the_transpose_of_see(broadcast):
  rng = np.random.default_rng(0)
  for layer in (published_agent(broadcast).conv1, make_agent(broadcast).conv2):
    z, signal = (tf.constant(rng.normal(size=shape)) for shape in ((2, *layer.size), (2, layer.view.n_features)))
    weights = Affine(tf.constant(rng.normal(size=layer.view.filter_shape)), tf.zeros(layer.view.filters, tf.float64)
                     ) if broadcast else ()
    seen = layer.view.see(z, weights)
    np.testing.assert_allclose(tf.reduce_sum(seen * signal), tf.reduce_sum(z * layer.view.spread(signal, weights)), rtol=1e-10)


@pytest.mark.parametrize('case', ['episodes end', BROADCAST])
def test_agent_is_that_of_the_oracle(case):
  p, _, _, _, run = of_oracle(case)
  records = p.window.records
  over_time = lambda x: np.reshape(x, (-1, B, *x.shape[3:]))
  np.testing.assert_array_equal(over_time(records.h) > 0, run.rnn.z)
  for layer, h, (_, v) in zip((p.agent.conv1, p.agent.conv2), (records.h1, records.h2), run.layers):
    np.testing.assert_allclose(over_time(layer.thr * (1 + h)), v, atol=1e-12)
    assert 0.1 < np.mean(h > 0) < 0.7
  assert 0.05 < run.rnn.z.mean() < 0.5
  np.testing.assert_allclose(over_time(records.v), run.rnn.v, atol=1e-12)
  np.testing.assert_allclose(over_time(records.a), run.rnn.a, atol=1e-12)
  np.testing.assert_allclose(records.logits, run.y[..., :-1], atol=1e-12)
  np.testing.assert_allclose(records.value, run.y[..., -1], atol=1e-12)


def test_reset_makes_a_fresh_agent():
  """Where an episode begins, nothing of the past is left; elsewhere something is."""
  agent, act = actor()
  p = make_problem('begins inside an episode')
  frame = p.window.records.frame[0]
  assert all(np.abs(s).max() > 0 for s in tf.nest.flatten(p.state))
  *_, state, record = act(p.weights, p.state, frame, tf.constant([1.0, 0.0, 1.0, 0.0], tf.float64))
  *_, fresh_state, fresh_record = act(p.weights, agent.initial_state(B), frame, tf.zeros(B, tf.float64))
  of_state = [(0, *pair) for pair in zip(tf.nest.flatten(state), tf.nest.flatten(fresh_state))]
  of_record = [(1 if name in ('h1', 'h2', 'h', 'v', 'a') else 0, a, b)
               for name, a, b in zip(record._fields, record, fresh_record) if name not in ('frame', 'reset')]
  differs = []
  for trials, *arrays in of_state + of_record:
    with_past, fresh = (np.moveaxis(array.numpy(), trials, 0) for array in arrays)
    np.testing.assert_array_equal(with_past[[0, 2]], fresh[[0, 2]])
    differs.append(not np.array_equal(with_past[[1, 3]], fresh[[1, 3]]))
  assert np.mean(differs) > 0.9


def test_acting_step_by_step_is_unrolling():
  p = make_problem('begins inside an episode')
  records = p.window.records
  _, unrolled = tf.function(p.agent.unroll)(p.weights, p.state, records.frame, records.reset)
  for name, a, b in zip(records._fields, records, unrolled):
    np.testing.assert_allclose(a, b, atol=1e-12, err_msg=name)


class OneStepGames:
  """In place of a playing.Player: two environments whose games last one step, for a policy that prefers an action slightly."""
  logits = tf.constant([[0.0, 0.1, 0.0], [0.1, 0.0, 0.0]])
  record = types.SimpleNamespace(h=tf.ones((1, 2)))

  def begin(self, weights, seed):
    self.actions = []

  def step(self, weights, action):
    self.actions.append(action)
    return np.zeros(2), np.ones(2, bool)


def test_greedy_games_take_the_likeliest_action():
  player = OneStepGames()
  playing.evaluate(player, None, 80, 0, np.random.default_rng(0), playing.greedy)
  np.testing.assert_array_equal(player.actions, [[1, 0]] * 40)
  playing.evaluate(player, None, 80, 0, np.random.default_rng(0))
  assert np.all(np.std(player.actions, axis=0) > 0.5)

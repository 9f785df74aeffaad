"""Reward-based e-prop: the gradient of the actor-critic losses of figures 4 and 5, eqs. (5), (36), (37).

Notation as in agent.py and actor_critic.py, and

  L[n, j]    signal of policy and value to feature j, without its factor of advantage or TD error

  dE/dW = sum_n A[n] L[n] e_bar[t(n)] = sum_n delta[n] F_(g lambda)(L e_bar)[n]

Here the first sum is computed, by `Learner` (transposed in time, from what the agent recorded while it acted: nothing is
simulated twice) and by `autodiff` (TensorFlow's gradients of a second simulation); the second, which needs no look into the
future, in online_reward_based_eprop.py. BPTT is either of the two with all gradients left in. How one step of the LSNN is
transposed in time, eqs. (22), (24) and (25), is its neurons' own `adjoint_step`.

Learning signals are broadcast from the heads to the LSNN and, through their views, to both convolutional layers; no gradient
passes between layers. The convolutional layers learn from (policy + value loss) / reg_factor_cnn and their voltage, and so do
broadcast convolutions, if these are the views.
"""
from typing import Any, NamedTuple

import tensorflow as tf

from actor_critic import (Costs, Losses, Seen, Window, all_losses, for_heads, learning_signals, lsnn_voltage, observe,
                          rate_signal, voltage_factors)
from agent import Weights, heads
import eprop
from eprop import presynaptic_product
from lsnn import cut, spike, without_autapses
from spiking_cnn import Affine


class Result(NamedTuple):
  """A gradient and what was seen on the way."""
  gradients: Weights
  losses: Losses
  returns: tf.Tensor  # [N, B] R
  rate: tf.Tensor     # [N] mean rate of each neuron of the LSNN, spikes per network step


def filter_back(signal, reset, decay):
  """The heads' filter run backwards over agent steps, cut where episodes begin. signal: [N + 1, B, A + 1]."""
  keep = decay * (1 - reset)[..., None]
  after, filtered = tf.zeros_like(signal[0]), []
  for n in reversed(range(signal.shape[0])):
    following = signal[n] + after
    filtered.insert(0, following)
    after = keep[n] * following
  return tf.stack(filtered)


class Plan(NamedTuple):
  """All that is known before the scan backwards, see `prepare`."""
  signal_rnn: tf.Tensor  # [N + 1, B, A + 1] derivative of the loss by the heads' outputs, behind the filter run backwards
  signal_cnn: tf.Tensor  # [N + 1, B, A + 1] the same of the loss of which the convolutional layers learn
  of_rate: tf.Tensor     # [N] d rate cost / dz
  factors: list          # of `voltage_factors`
  policy: Affine         # gradients of the heads
  value: Affine
  losses: Losses
  returns: tf.Tensor     # [N, B]
  rate: tf.Tensor        # [N]


class Adjoints(NamedTuple):
  """What one network step hands to the one before it."""
  rnn: NamedTuple      # of the neurons of the LSNN, cell.Adjoint
  from_network: Any    # BPTT: dE/dz through recurrent weights and reset [B, N]; e-prop: ()
  gi1: tf.Tensor       # of the convolutional layers, see ConvLIF.adjoint
  gi2: tf.Tensor


def prepare(agent, costs, window, seen, bptt=False):
  """Losses, signals and the heads' gradients, from small arrays.

  Args:
    agent, costs: Agent, Costs.
    window: Window, of whose records only reset, features, logits and value are needed.
    seen: Seen over all frames.
    bptt: the convolutional layers learn from the same loss as all others.

  Returns:
    Plan.
  """
  records = window.records
  n_steps, n_batch = records.reset.shape[0] * agent.n_repeat, records.reset.shape[1]
  signals, returns = learning_signals(costs, window)
  losses, rate = all_losses(costs, window, signals.advantage[:-1, :, -1], seen, n_steps)
  rewarded = signals.policy_value * signals.advantage
  signal_rnn = filter_back(rewarded + signals.entropy, records.reset, agent.kappa_frame)
  signal_cnn = signal_rnn if bptt else filter_back(rewarded / costs.reg_factor_cnn, records.reset, agent.kappa_frame)
  both = presynaptic_product(records.features, signal_rnn), (1 - agent.kappa_frame) * tf.reduce_sum(signal_rnn, [0, 1])
  policy, value = (Affine(*part) for part in zip(*(tf.split(x, [agent.n_actions, 1], -1) for x in both)))
  return Plan(signal_rnn, signal_cnn, rate_signal(costs, rate, n_steps, n_batch), voltage_factors(costs, seen, n_steps),
              policy, value, losses, returns, rate)


def start_of_scan(agent, weights, n_batch, bptt):
  """Adjoints after the last step, and Weights of zeros to which all gradients but the heads' are added."""
  zeros = lambda *shape: tf.zeros([n_batch, *shape], agent.dtype)
  from_network = zeros(agent.cell.units) if bptt else ()
  adjoints = Adjoints(agent.cell.initial_adjoint(n_batch), from_network, zeros(*agent.conv1.size), zeros(*agent.conv2.size))
  return adjoints, tf.nest.map_structure(tf.zeros_like, weights._replace(policy=(), value=()))


def lsnn_backward(agent, costs, w_rec, record, signal, of_rate, adjoint, from_network):
  """One frame of the LSNN backwards.

  Args:
    w_rec: [N, N] without diagonal for BPTT, None for e-prop.
    record: Record of the frame.
    signal: [B, N], broadcast from the heads.
    of_rate: [N].
    adjoint, from_network: as in Adjoints, from one step later.

  Returns:
    dE/d current of all steps [S, B, N]; adjoint and from_network of the first.
  """
  posts = []
  _, g_v, g_a = lsnn_voltage(costs, agent.cell, record.v, record.a)
  for s in reversed(range(agent.n_repeat)):
    dz = agent.step_weights[s] * signal + of_rate
    dz = dz if w_rec is None else dz + from_network
    post, of_reset, adjoint = agent.cell.adjoint_step(record.h[s], dz, adjoint, g_v[s], g_a[s])
    from_network = () if w_rec is None else tf.matmul(post, w_rec, transpose_b=True) + of_reset
    posts.insert(0, post)
  return tf.stack(posts), adjoint, from_network


class Posts(NamedTuple):
  """What the currents of one frame contribute to the loss: the postsynaptic factors of its gradients."""
  conv1: tf.Tensor  # [B, H1, W1, F1], summed over the S steps, in which the image was the same
  conv2: tf.Tensor  # [S, B, H2, W2, F2]
  rnn: tf.Tensor    # [S, B, N]
  view1: tf.Tensor  # [B, features of layer 1]
  view2: tf.Tensor  # [B, features of layer 2]


def frame_backward(agent, costs, weights, record, plan, k, adjoints, feedback, bptt):
  """One frame of the scan backwards, all layers.

  Args:
    agent, costs, weights, feedback, bptt: as for `Learner`.
    record: Record of the frame.
    plan: Plan.
    k: number of the frame, 0 ... N.
    adjoints: from the frame after it, or `start_of_scan`.

  Returns:
    Adjoints, cut where an episode begins; Posts.
  """
  conv1, conv2, n_repeat = agent.conv1, agent.conv2, agent.n_repeat
  flat = lambda x: tf.reshape(x, [-1, *x.shape[2:]])
  in_steps = lambda x: tf.reshape(x, [n_repeat, -1, *x.shape[1:]])
  to_rnn, to_conv1, to_conv2 = tf.split(heads(weights).w if feedback is None or bptt else feedback, agent.feature_sizes)
  signal1, signal2 = (tf.matmul(plan.signal_cnn[k], b, transpose_b=True) for b in (to_conv1, to_conv2))       # (4)

  w_rec = without_autapses(weights.rnn.w_rec) if bptt else None
  signal = tf.matmul(plan.signal_rnn[k], to_rnn, transpose_b=True)                                            # (4)
  post, *of_rnn = lsnn_backward(agent, costs, w_rec, record, signal, plan.of_rate, adjoints.rnn, adjoints.from_network)
  above = in_steps(tf.reshape(tf.matmul(flat(post), weights.rnn.w_in, transpose_b=True), [-1, *conv2.size])) if bptt else None
  post2, gi2 = conv2.adjoint(record.h2, conv2.view.spread(signal2, weights.view2), agent.step_weights,
                             *plan.factors[2:], adjoints.gi2, above)
  above = in_steps(conv2.input_gradient(weights.conv2, flat(post2))) if bptt else None
  post1, gi1 = conv1.adjoint(record.h1, conv1.view.spread(signal1, weights.view1), agent.step_weights,
                             *plan.factors[:2], adjoints.gi1, above, summed=True)
  return cut(Adjoints(*of_rnn, gi1, gi2), record.reset), Posts(post1, post2, post, signal1, signal2)


def products(agent, records, posts):
  """Gradients of all weights but the heads' from some frames: presynaptic times postsynaptic factors, summed.

  Args:
    records, posts: lists of Record and of Posts, a frame each.

  Returns:
    Weights, those of the heads ().
  """
  joined = lambda arrays: tf.concat(list(arrays), 0)
  flat = lambda arrays: joined(tf.reshape(x, [-1, *x.shape[2:]]) for x in arrays)
  post1, post2, post, signal1, signal2 = zip(*posts)
  z1, z2, z = ([spike(getattr(record, name)) for record in records] for name in ('h1', 'h2', 'h'))
  image = lambda record: tf.cast(record.frame, agent.dtype)[..., None] / 255
  # Joining those of layer 1 wins no time, and loses digits in float32.
  of_conv1 = [agent.conv1.weight_gradient(image(record), post) for record, post in zip(records, post1)]
  before = joined(x for record, zs in zip(records, z) for x in (record.z_before[None], zs[:-1]))

  def of_view(view, z, signal):
    weighted = joined(tf.tensordot(tf.constant(agent.step_weights, zs.dtype), zs, 1) for zs in z)
    return view.gradient(weighted, joined(signal), 1 - agent.kappa_frame)

  of_rnn = eprop.Weights(presynaptic_product(tf.reshape(flat(z2), [-1, agent.conv2.units]), flat(post)),
                         presynaptic_product(before, joined(post)))
  return Weights(Affine(*map(tf.add_n, zip(*of_conv1))), agent.conv2.weight_gradient(flat(z1), flat(post2)), of_rnn, (), (),
                 of_view(agent.conv1.view, z1, signal1), of_view(agent.conv2.view, z2, signal2))


def backward(agent, costs, weights, records, plan, first, adjoints, sums, feedback=None, bptt=False):
  """Some frames of the scan backwards, with one product of each kind for all of them: large products are faster.

  Args:
    records: list of Records.
    first: number of the first of these frames.
    adjoints, sums: from the frame after the last one, or `start_of_scan`.
    Otherwise as for `frame_backward`.

  Returns:
    Adjoints of the first frame, and sums with these frames' part.
  """
  posts = []
  for k in reversed(range(len(records))):
    adjoints, post = frame_backward(agent, costs, weights, records[k], plan, first + k, adjoints, feedback, bptt)
    posts.insert(0, post)
  return adjoints, tf.nest.map_structure(tf.add, sums, products(agent, records, posts))


def autodiff(agent, costs, weights, window, state, feedback=None, bptt=False, seen=None):
  """The gradient by automatic differentiation of a second simulation. Slow and large; not to be compiled with XLA.

  Args:
    agent, costs, bptt: as for `Learner`.
    weights, feedback: as for `Learner.__call__`.
    window: Window.
    state: agent.State before the window's first frame.
    seen: Seen as others' trials change it, see `Learner`; default: as observed.

  Returns:
    Result.
  """
  weights = tf.nest.map_structure(tf.convert_to_tensor, weights)
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(tf.nest.flatten(weights))
    _, records = agent.unroll(weights, state, window.records.frame, window.records.reset, stop_gradients=not bptt,
                              feedback=None if bptt else feedback)
    window = window._replace(records=records)
    _, returns = learning_signals(costs, window)
    returns = tf.stop_gradient(returns)
    n_steps = records.reset.shape[0] * agent.n_repeat
    own = observe(agent, costs, records)
    if seen is not None:
      own = Seen(*(x + tf.stop_gradient(y - x) for x, y in zip(own, seen)))
    losses, rate = all_losses(costs, window, returns - records.value[:-1], own, n_steps)
    loss = tf.add_n(losses)
    loss_cnn = loss if bptt else (losses.policy + losses.value) / costs.reg_factor_cnn + losses.voltage_cnn
  of_layers = {name: tape.gradient(loss_cnn if name in ('conv1', 'conv2', 'view1', 'view2') else loss, part)
               for name, part in weights._asdict().items() if part}
  return Result(weights._replace(**of_layers), losses, returns, rate)


def observe_more(agent, costs, record, seen):
  """Adds what a Record shows to Seen. Step after step: XLA makes that one pass over the record, unlike sums over an axis."""
  for s in range(agent.n_repeat):
    step = record._replace(**{name: getattr(record, name)[s] for name in ('h1', 'h2', 'h', 'v', 'a')})
    seen = Seen(*(a + b for a, b in zip(observe(agent, costs, step), seen)))
  return seen


class Learner:
  """The gradient of a window as one scan backwards over what the agent recorded, some frames at a time.

  Args:
    agent: Agent.
    costs: Costs.
    bptt: leave in what flows back through recurrent weights, the LSNN's reset and from layer to layer; the convolutional
      layers then learn from the same loss as all others.
    of_whole_batch: function of Seen of this worker's part of a batch that returns it with what others saw: spikes as many as if
      all trials' mean rates were those of this part, and for 'avg_all' the levels, too.
  """

  GROUP = 5  # frames of a product of `backward`

  def __init__(self, agent, costs=Costs(), bptt=False, of_whole_batch=lambda seen: seen):
    self.agent, self._bptt, self._of_whole_batch = agent, bptt, of_whole_batch
    self._observe = tf.function(lambda record, seen: observe_more(agent, costs, record, seen), jit_compile=True)
    self._prepare = tf.function(lambda window, seen: prepare(agent, costs, window, seen, bptt))
    self._backward = tf.function(lambda *args, feedback: backward(agent, costs, *args, feedback, bptt))

  def __call__(self, weights, records, action, reward, mask, policy_weight=1.0, targets=None, feedback=None):
    """The gradient of a window.

    Args:
      weights: Weights with which the records were made.
      records: list of N + 1 Records.
      feedback: [n_features, A + 1] through which signals are broadcast, default the heads' weights; BPTT ignores it.
      action, reward, mask, policy_weight, targets: as in Window.

    Returns:
      Result.
    """
    agent, n_batch = self.agent, records[0].reset.shape[0]
    weights = tf.nest.map_structure(tf.convert_to_tensor, weights)
    adjoints, sums = start_of_scan(agent, weights, n_batch, self._bptt)
    seen = Seen(*[tf.zeros_like(adjoints.gi1)] * 2, *[tf.zeros_like(adjoints.gi2)] * 2, tf.zeros(agent.cell.units, agent.dtype),
                tf.zeros([], agent.dtype))
    for record in records:
      seen = self._observe(record, seen)
    seen = self._of_whole_batch(seen)
    window = Window(for_heads(records), action, reward, mask, tf.constant(policy_weight, agent.dtype), targets)
    plan = self._prepare(window, seen)
    for k in reversed(range(0, len(records), self.GROUP)):
      adjoints, sums = self._backward(weights, records[k:k + self.GROUP], plan, tf.constant(k), adjoints, sums,
                                      feedback=feedback)
    rnn = sums.rnn._replace(w_rec=without_autapses(sums.rnn.w_rec))
    gradients = sums._replace(rnn=rnn, policy=plan.policy, value=plan.value)
    return Result(gradients, plan.losses, plan.returns, plan.rate)

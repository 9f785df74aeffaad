"""Reward-based e-prop: the gradient of the actor-critic losses of figures 4 and 5, eqs. (5), (36), (37).

Notation as in agent.py and actor_critic.py, and

  L[n, j]    signal of policy and value to feature j, without its factor of advantage or TD error

  dE/dW = sum_n (R[n] - V[n]) L[n] e_bar[t(n)] = sum_n delta[n] F_g(L e_bar)[n]

Here the first sum is computed, by `adjoint` (transposed in time, from what the agent recorded while it acted: nothing is
simulated twice) and by `autodiff` (TensorFlow's gradients of a second simulation); the second, which needs no look into the
future, in online_reward_based_eprop.py. BPTT is either of the two with all gradients left in.

Learning signals are broadcast from the heads to the LSNN and, through their views, to both convolutional layers; no gradient
passes between layers. The convolutional layers learn from (policy + value loss) / reg_factor_cnn and their voltage, and so do
broadcast convolutions, if these are the views.
"""
from typing import NamedTuple

import tensorflow as tf

from actor_critic import (Costs, Losses, Seen, Window, all_losses, learning_signals, lsnn_voltage, observe, rate_signal,
                          voltage_factors)
from agent import Record, Weights, heads
from eprop import presynaptic_product
from lsnn import cut, spike, without_autapses


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
  of_heads: list         # gradients of the heads
  losses: Losses
  returns: tf.Tensor     # [N, B]
  rate: tf.Tensor        # [N]


class Adjoints(NamedTuple):
  """What one network step hands to the one before it: adjoints of a and v of the LSNN, and gi of the convolutions."""
  lam: tf.Tensor
  cb: tf.Tensor
  gi1: tf.Tensor
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
  losses, rate = all_losses(costs, window, signals.advantage[:-1], seen, n_steps)
  rewarded = signals.policy_value * signals.advantage[..., None]
  signal_rnn = filter_back(rewarded + signals.entropy, records.reset, agent.kappa_frame)
  signal_cnn = signal_rnn if bptt else filter_back(rewarded / costs.reg_factor_cnn, records.reset, agent.kappa_frame)
  w_policy, w_value = tf.split(presynaptic_product(records.features, signal_rnn), [agent.n_actions, 1], 1)
  b_policy, b_value = tf.split((1 - agent.kappa_frame) * tf.reduce_sum(signal_rnn, [0, 1]), [agent.n_actions, 1])
  return Plan(signal_rnn, signal_cnn, rate_signal(costs, rate, n_steps, n_batch), voltage_factors(costs, seen, n_steps),
              [w_policy, b_policy, w_value, b_value], losses, returns, rate)


def start_of_scan(agent, n_batch):
  """Adjoints after the last step, and sums of all gradients but the heads' before it: zeros."""
  zeros = lambda *shape: tf.zeros(shape, agent.dtype)
  n, n_in = agent.cell.units, agent.conv2.units
  layers = (agent.conv1, agent.conv2)
  of_convolutions = lambda layers: [z for layer in layers for z in (zeros(*layer.filter_shape), zeros(layer.filters))]
  return (Adjoints(zeros(n_batch, n), zeros(n_batch, n), zeros(n_batch, *agent.conv1.size), zeros(n_batch, *agent.conv2.size)),
          [*of_convolutions(layers), zeros(n_in, n), zeros(n, n), *of_convolutions(layer.view for layer in layers)])


def lsnn_backward(agent, costs, w_rec, record, signal, of_rate, lam, cb):
  """One frame of the LSNN backwards.

    s[t] = L[t] + rate term + lam[t+1];   lam[t] = rho lam[t+1] - beta psi s + g_a;   cb[t] = alpha cb[t+1] + psi s + g_v

  Args:
    w_rec: [N, N] without diagonal for BPTT, None for e-prop.
    record: Record of the frame.
    signal: [B, N], broadcast from the heads.
    of_rate: [N].
    lam, cb: adjoints of a and v one step later [B, N].

  Returns:
    cb of all steps [S, B, N]; lam and cb of the first.
  """
  cell, post = agent.cell, []
  psi = cell.psi(record.h)
  _, g_v, g_a = lsnn_voltage(costs, cell, record.v, record.a)
  for s in reversed(range(agent.n_repeat)):
    of_z = agent.step_weights[s] * signal + of_rate + lam
    if w_rec is not None:
      of_z += tf.matmul(cb, w_rec, transpose_b=True) - cell.thr * cb
    psi_s = psi[s] * of_z
    lam = cell.rho * lam - cell.beta * psi_s + g_a[s]                                               # (24), (25) transposed
    cb = cell.alpha * cb + psi_s + g_v[s]                                                           # (22) transposed
    post.insert(0, cb)
  return tf.stack(post), lam, cb


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
    agent, costs, weights, feedback, bptt: as for `adjoint`.
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
  to_rnn, to_conv1, to_conv2 = tf.split(heads(weights)[0] if feedback is None or bptt else feedback, agent.feature_sizes)
  signal1, signal2 = (tf.matmul(plan.signal_cnn[k], b, transpose_b=True) for b in (to_conv1, to_conv2))       # (4)

  w_rec = without_autapses(weights.w_rec) if bptt else None
  signal = tf.matmul(plan.signal_rnn[k], to_rnn, transpose_b=True)                                            # (4)
  post, lam, cb = lsnn_backward(agent, costs, w_rec, record, signal, plan.of_rate, adjoints.lam, adjoints.cb)
  above = in_steps(tf.reshape(tf.matmul(flat(post), weights.w_in, transpose_b=True), [-1, *conv2.size])) if bptt else None
  post2, gi2 = conv2.adjoint(record.h2, conv2.view.spread(signal2, weights.broadcast2), agent.step_weights,
                             *plan.factors[2:], adjoints.gi2, above)
  above = in_steps(conv2.input_gradient(weights.conv2, flat(post2))) if bptt else None
  post1, gi1 = conv1.adjoint(record.h1, conv1.view.spread(signal1, weights.broadcast1), agent.step_weights,
                             *plan.factors[:2], adjoints.gi1, above, summed=True)
  return cut(Adjoints(lam, cb, gi1, gi2), record.reset), Posts(post1, post2, post, signal1, signal2)


def products(agent, records, posts):
  """Gradients of all weights but the heads' from some frames: presynaptic times postsynaptic factors, summed.

  Args:
    records, posts: lists of Record and of Posts, a frame each.

  Returns:
    List of arrays, as the sums of `start_of_scan`.
  """
  joined = lambda arrays: tf.concat(list(arrays), 0)
  flat = lambda arrays: joined(tf.reshape(x, [-1, *x.shape[2:]]) for x in arrays)
  post1, post2, post, signal1, signal2 = zip(*posts)
  z1, z2, z = ([spike(getattr(record, name)) for record in records] for name in ('h1', 'h2', 'h'))
  image = lambda record: tf.cast(record.frame, agent.dtype)[..., None] / 255
  # Joining those of layer 1 wins no time, and loses digits in float32.
  of_conv1 = [agent.conv1.filter_gradient(image(record), post) for record, post in zip(records, post1)]
  before = joined(x for record, zs in zip(records, z) for x in (record.z_before[None], zs[:-1]))

  def of_view(view, z, signal):
    weighted = joined(tf.tensordot(tf.constant(agent.step_weights, zs.dtype), zs, 1) for zs in z)
    filters, bias = view.gradient(weighted, joined(signal))
    return filters, (1 - agent.kappa_frame) * bias

  return [*map(tf.add_n, zip(*of_conv1)), *agent.conv2.filter_gradient(flat(z1), flat(post2)),
          presynaptic_product(tf.reshape(flat(z2), [-1, agent.conv2.units]), flat(post)),
          presynaptic_product(before, joined(post)), *of_view(agent.conv1.view, z1, signal1),
          *of_view(agent.conv2.view, z2, signal2)]


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
  return adjoints, [a + b for a, b in zip(sums, products(agent, records, posts))]


def finish(plan, sums):
  """Result of a scan."""
  *of_layers, g_rec = sums[:6]
  gradients = Weights(*of_layers, without_autapses(g_rec), *plan.of_heads, *sums[6:])
  return Result(gradients, plan.losses, plan.returns, plan.rate)


def adjoint(agent, costs, weights, window, feedback=None, bptt=False):
  """The gradient as one scan backwards over the records. Not to be compiled with XLA as a whole; see `Learner`, too.

  Args:
    agent: Agent.
    costs: Costs.
    weights: Weights with which the records were made.
    window: Window.
    feedback: [n_features, A + 1] through which signals are broadcast, default the heads' weights; BPTT ignores it.
    bptt: leave in what flows back through recurrent weights, the LSNN's reset and from layer to layer; the convolutional
      layers then learn from the same loss as all others.

  Returns:
    Result.
  """
  n_frames, n_batch = window.records.reset.shape
  weights = Weights(*map(tf.convert_to_tensor, weights))
  plan = prepare(agent, costs, window, observe(agent, costs, window.records), bptt)

  def body(step, adjoints, sums):
    k = n_frames - 1 - step
    record = Record(*(array[k] for array in window.records))
    return step + 1, *backward(agent, costs, weights, [record], plan, k, adjoints, sums, feedback, bptt)

  end = tf.while_loop(lambda step, *_: step < n_frames, body, (0, *start_of_scan(agent, n_batch)))
  return finish(plan, end[-1])


def autodiff(agent, costs, weights, window, state, feedback=None, bptt=False):
  """The gradient by automatic differentiation of a second simulation. Slow and large; not to be compiled with XLA.

  Args:
    state: agent.State before the window's first frame.
    Otherwise as `adjoint`.

  Returns:
    Result.
  """
  weights = Weights(*map(tf.convert_to_tensor, weights))
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(weights)
    _, records = agent.unroll(weights, state, window.records.frame, window.records.reset, stop_gradients=not bptt,
                              feedback=None if bptt else feedback)
    window = window._replace(records=records)
    _, returns = learning_signals(costs, window)
    returns = tf.stop_gradient(returns)
    n_steps = records.reset.shape[0] * agent.n_repeat
    losses, rate = all_losses(costs, window, returns - records.value[:-1], observe(agent, costs, records), n_steps)
    loss = tf.add_n(losses)
    loss_cnn = loss if bptt else (losses.policy + losses.value) / costs.reg_factor_cnn + losses.voltage_cnn
  of_broadcast = tape.gradient(loss_cnn, weights[10:], unconnected_gradients=tf.UnconnectedGradients.ZERO)  # empty
  gradients = Weights(*tape.gradient(loss_cnn, weights[:4]), *tape.gradient(loss, weights[4:10]), *of_broadcast)
  return Result(gradients, losses, returns, rate)


def observe_more(agent, costs, record, seen):
  """Adds what a Record shows to Seen. Step after step: XLA makes that one pass over the record, unlike sums over an axis."""
  for s in range(agent.n_repeat):
    step = record._replace(**{name: getattr(record, name)[s] for name in ('h1', 'h2', 'h', 'v', 'a')})
    seen = Seen(*(a + b for a, b in zip(observe(agent, costs, step), seen)))
  return seen


class Learner:
  """`adjoint` for records that were never stacked, some frames at a time: half the memory, and less of it moved.

  Args:
    agent, costs, bptt: as for `adjoint`.
    over_processes: function of the spike counts [N] of this process's part of a batch that returns their mean over all parts.
  """

  GROUP = 5  # frames of a product of `backward`

  def __init__(self, agent, costs=Costs(), bptt=False, over_processes=lambda spikes: spikes):
    self.agent, self._over_processes = agent, over_processes
    self._observe = tf.function(lambda record, seen: observe_more(agent, costs, record, seen), jit_compile=True)
    self._prepare = tf.function(lambda window, seen: prepare(agent, costs, window, seen, bptt))
    self._backward = tf.function(lambda *args, feedback: backward(agent, costs, *args, feedback, bptt))

  def __call__(self, weights, records, action, reward, mask, feedback=None):
    """The gradient of a window.

    Args:
      records: list of N + 1 Records.
      weights, feedback: as for `adjoint`.
      action, reward, mask: as in Window.

    Returns:
      Result.
    """
    agent, n_batch = self.agent, records[0].reset.shape[0]
    weights = Weights(*map(tf.convert_to_tensor, weights))
    adjoints, sums = start_of_scan(agent, n_batch)
    seen = Seen(*[tf.zeros_like(adjoints.gi1)] * 2, *[tf.zeros_like(adjoints.gi2)] * 2, tf.zeros_like(adjoints.cb[0]),
                tf.zeros([], agent.dtype))
    for record in records:
      seen = self._observe(record, seen)
    seen = seen._replace(spikes=self._over_processes(seen.spikes))
    small = {name: tf.stack([getattr(record, name) for record in records]) for name in ('reset', 'features', 'logits', 'value')}
    window = Window(Record(**{name: small.get(name) for name in Record._fields}), action, reward, mask)
    plan = self._prepare(window, seen)
    for k in reversed(range(0, len(records), self.GROUP)):
      adjoints, sums = self._backward(weights, records[k:k + self.GROUP], plan, tf.constant(k), adjoints, sums,
                                      feedback=feedback)
    return finish(plan, sums)

"""Reward-based e-prop as an online learner forms it: traces per synapse and TD errors, eqs. (5), (36), (37).

Notation as in actor_critic.py, and

  e, e_bar   eligibility trace of a synapse, and the same behind the heads' filter
  G          F_(g lambda)(L e_bar), per synapse and trial: G[n] = g lambda (1 - done[n-1]) G[n-1] + L[n] e_bar[t(n)]
  P          places of a convolutional layer, H W; its filter's C k k weights and its bias make Q rows, as in `patches`

  dE/dW = sum_n delta[n] G[n]                                                                                         (36)

All state of the rule is in `Traces`. Carried from window to window at fixed weights they give the gradient of one long
window; started at 0 in each window, exactly that of `Learner`. Memory O(B (I + N) N + B P Q F), independent of N. Costs of
rates and of convolutional voltages depend on means over the window: the sums they multiply are carried and put together at
its end.
"""
from typing import NamedTuple

import tensorflow as tf

from actor_critic import all_losses, learning_signals, lsnn_voltage, observe, rate_signal, voltage_factors
from agent import Weights, heads
import eprop
from lsnn import cut, spike, without_autapses
from reward_based_eprop import Result
from spiking_cnn import Affine, relu_below


class LSNNTraces(NamedTuple):
  """Traces of the rows of w_in and, below them, w_rec."""
  eps: NamedTuple   # the neurons' eligibility vectors, cell.Eps
  e_bar: tf.Tensor  # [B, I + N, N]
  G: tf.Tensor      # [B, I + N, N]


class ConvTraces(NamedTuple):
  """Traces of a convolutional layer."""
  eps_v: tf.Tensor  # [B, P, Q, F] dv/dw
  leak: tf.Tensor   # [B, P, F] dv[t]/dv[t-1] of the step to come: decay - thr psi
  e_bar: tf.Tensor  # [B, P, Q, F]
  G: tf.Tensor      # [B, Q, F] summed over the places that share a weight


class ViewTraces(NamedTuple):
  """Traces of a broadcast convolution; those of an average pool, which has no weights, are empty."""
  x_bar: tf.Tensor  # [B, P, Q] what the heads' filter makes of its inputs
  G: tf.Tensor      # [B, Q, F] as in ConvTraces


class HeadTraces(NamedTuple):
  """Traces of the heads, bias last."""
  x_bar: tf.Tensor  # [B, n_features + 1] what a head's filter makes of its inputs
  G: tf.Tensor      # [B, n_features + 1, A + 1]


class Traces(NamedTuple):
  """State of the learning rule after an agent step."""
  conv1: ConvTraces
  conv2: ConvTraces
  view1: ViewTraces
  view2: ViewTraces
  rnn: LSNNTraces
  heads: HeadTraces


def initial_traces(agent, n_batch):
  """Traces of n_batch agents that know of no past."""
  zeros = lambda *shape: tf.zeros([n_batch, *shape], agent.dtype)
  n_pre, n = agent.conv2.units + agent.cell.units, agent.cell.units

  def of_convolution(layer):
    places, n_weights = layer.size[0] * layer.size[1], layer.kernel ** 2 * layer.size_in[2] + 1
    synapses = zeros(places, n_weights, layer.filters)
    return ConvTraces(synapses, zeros(places, layer.filters), synapses, zeros(n_weights, layer.filters))

  def of_view(layer):
    x_bar = tf.zeros_like(layer.view.patches(zeros(*layer.size)))
    return ViewTraces(x_bar, tf.zeros_like(layer.view.trial_gradients(x_bar, zeros(layer.view.n_features))))

  n_heads = agent.n_features + 1
  return Traces(of_convolution(agent.conv1), of_convolution(agent.conv2), of_view(agent.conv1), of_view(agent.conv2),
                LSNNTraces(agent.cell.initial_eps(n_batch, n_pre), zeros(n_pre, n), zeros(n_pre, n)),
                HeadTraces(zeros(n_heads), zeros(n_heads, agent.n_actions + 1)))


class Sums(NamedTuple):
  """What a window adds up, of the same shapes as the weights (convolutions: [Q, F], heads side by side) and per trial."""
  conv1: tf.Tensor
  conv2: tf.Tensor
  view1: tf.Tensor
  view2: tf.Tensor
  rnn: tf.Tensor       # [I + N, N]
  heads: tf.Tensor     # [n_features + 1, A + 1]
  e: tf.Tensor         # [I + N, N] sum of e
  voltage1: tf.Tensor  # [2, B, P, Q, F] sums of eps_v where v > thr and where v < -thr
  voltage2: tf.Tensor


def convolution_step(agent, layer, traces, sums, pre, h):
  """One network step of a convolutional layer.

  Args:
    pre: from Convolution.patches, [B, P, Q].
    h: [B, H, W, F].

  Returns:
    ConvTraces, and sums [2, B, P, Q, F] with what this step adds for the voltage cost.
  """
  h = tf.reshape(h, [h.shape[0], -1, layer.filters])                                     # [B, P, F]
  psi = layer.psi(h)
  eps_v = traces.leak[:, :, None] * traces.eps_v + pre[..., None]
  e_bar = agent.kappa * traces.e_bar + (1 - agent.kappa) * psi[:, :, None] * eps_v
  outside = tf.cast(tf.stack([h > 0, relu_below(h) > 0]), h.dtype)
  return traces._replace(eps_v=eps_v, leak=layer.decay - layer.thr * psi, e_bar=e_bar), sums + outside[:, :, :, None] * eps_v


class Online:
  """The rule at work on a window, one network step after the other; arguments as for `hardcoded`."""

  def __init__(self, agent, costs, weights, window, feedback):
    self.agent, self.costs, self.weights, self.records = agent, costs, weights, window.records
    self.signals, self.returns = learning_signals(costs, window)
    self.to_rnn, self.to_conv1, self.to_conv2 = tf.split(feedback, agent.feature_sizes)
    self.decay = costs.discounting * costs.gae_lambda

  def low_pass(self, x_bar, x):
    """F_kappa."""
    return self.agent.kappa * x_bar + (1 - self.agent.kappa) * x

  def network_step(self, k, s, traces, sums, pre1, x_of_heads):
    """Traces at one network step, s = 0 ... S - 1 of frame k. pre1: patches of the image; x_of_heads: [B, n_features + 1]."""
    agent, records, n_batch = self.agent, self.records, pre1.shape[0]
    h1, h2, h = records.h1[k, s], records.h2[k, s], records.h[k, s]
    c1, voltage1 = convolution_step(agent, agent.conv1, traces.conv1, sums.voltage1, pre1, h1)
    c2, voltage2 = convolution_step(agent, agent.conv2, traces.conv2, sums.voltage2, agent.conv2.patches(spike(h1)), h2)
    z_before = records.z_before[k] if s == 0 else spike(records.h[k, s - 1])
    pre = tf.concat([tf.reshape(spike(h2), [n_batch, -1]), z_before], 1)
    e, eps = agent.cell.trace_step(h, pre, traces.rnn.eps)                                          # (22), (24), (25)
    rnn = traces.rnn._replace(eps=eps, e_bar=self.low_pass(traces.rnn.e_bar, e))                    # (28)
    _, g_v, g_a = lsnn_voltage(self.costs, agent.cell, records.v[k, s], records.a[k, s])
    of_voltage = tf.reduce_sum(g_v[:, None] * eps.v + g_a[:, None] * traces.rnn.eps.a, 0)  # eps.a is that of the next step
    sums = sums._replace(rnn=sums.rnn + of_voltage, e=sums.e + tf.reduce_sum(e, 0), voltage1=voltage1, voltage2=voltage2)
    seen = lambda traces, x: traces._replace(x_bar=self.low_pass(traces.x_bar, x))
    return Traces(c1, c2, seen(traces.view1, agent.conv1.view.patches(spike(h1))),
                  seen(traces.view2, agent.conv2.view.patches(spike(h2))), rnn, seen(traces.heads, x_of_heads)), sums

  def network_steps(self, k, traces, sums):
    """Traces after the S steps of frame k, and sums."""
    agent, records, weights = self.agent, self.records, self.weights
    traces = cut(traces, records.reset[k])
    pre1 = agent.conv1.patches(tf.cast(records.frame[k], agent.dtype)[..., None] / 255)
    for s in range(agent.n_repeat):
      features = [spike(records.h[k, s]), agent.conv1.view.see(spike(records.h1[k, s]), weights.view1),
                  agent.conv2.view.see(spike(records.h2[k, s]), weights.view2)]
      x_of_heads = tf.concat([*features, tf.ones_like(features[0][:, :1])], 1)
      traces, sums = self.network_step(k, s, traces, sums, pre1, x_of_heads)
    return traces, sums

  def learn(self, k, traces, sums):
    """What the end of agent step k adds to G and to the gradient; delta is known when the next frame has been seen."""
    delta, signal, of_entropy = (x[k] for x in (self.signals.td_error, self.signals.policy_value, self.signals.entropy))

    def accumulate(traces, total, L_e_bar):
      G = self.decay * traces.G + L_e_bar
      return traces._replace(G=G), total + tf.einsum('b,bqf->qf', delta, G)                                   # (36)

    def of_layer(layer, b, view, of_neurons, of_view, total, total_view):
      signal_j = tf.matmul(signal, b, transpose_b=True) / self.costs.reg_factor_cnn                           # (5)
      at_neurons = tf.reshape(layer.view.spread(signal_j, view), [len(signal_j), -1, 1, layer.filters])
      return (*accumulate(of_neurons, total, tf.reduce_sum(at_neurons * of_neurons.e_bar, 1)),
              *accumulate(of_view, total_view, layer.view.trial_gradients(of_view.x_bar, signal_j)))

    agent, weights = self.agent, self.weights
    c1, g1, view1, g_view1 = of_layer(agent.conv1, self.to_conv1, weights.view1, traces.conv1, traces.view1, sums.conv1,
                                      sums.view1)
    c2, g2, view2, g_view2 = of_layer(agent.conv2, self.to_conv2, weights.view2, traces.conv2, traces.view2, sums.conv2,
                                      sums.view2)
    signal_j, entropy_j = (tf.matmul(x, self.to_rnn, transpose_b=True)[:, None] for x in (signal, of_entropy))  # (5)
    rnn, g_rnn = accumulate(traces.rnn, sums.rnn, signal_j * traces.rnn.e_bar)
    x_bar = traces.heads.x_bar[:, :, None]
    of_heads, g_heads = accumulate(traces.heads, sums.heads, x_bar * signal[:, None])
    sums = sums._replace(conv1=g1, conv2=g2, view1=g_view1, view2=g_view2,
                         rnn=g_rnn + tf.reduce_sum(entropy_j * traces.rnn.e_bar, 0),
                         heads=g_heads + tf.reduce_sum(x_bar * of_entropy[:, None], 0))
    return Traces(c1, c2, view1, view2, rnn, of_heads), sums

  def gradients(self, sums, seen, rate):
    """Weights from Sums of the whole window; seen: Seen, rate: [N]."""
    agent, costs, (n_frames, _, n_batch, n) = self.agent, self.costs, self.records.h.shape
    n_steps = n_frames * agent.n_repeat
    factors, of_convolutions = voltage_factors(costs, seen, n_steps), []
    for layer, total, outside, pair in ((agent.conv1, sums.conv1, sums.voltage1, factors[:2]),
                                        (agent.conv2, sums.conv2, sums.voltage2, factors[2:])):
      above, below = (tf.reshape(factor, [factor.shape[0], -1, 1, layer.filters]) for factor in pair)
      of_convolutions.append(layer.from_rows(total + tf.reduce_sum(above * outside[0] - below * outside[1], [0, 1])))
    g_in, g_rec = tf.split(sums.rnn + rate_signal(costs, rate, n_steps, n_batch) * sums.e, [agent.conv2.units, n])
    of_heads = (Affine(g[:-1], g[-1]) for g in tf.split(sums.heads, [agent.n_actions, 1], 1))
    return Weights(*of_convolutions, eprop.Weights(g_in, without_autapses(g_rec)), *of_heads,
                   agent.conv1.view.from_rows(sums.view1), agent.conv2.view.from_rows(sums.view2))


def hardcoded(agent, costs, weights, window, traces=None, feedback=None, seen=None):
  """E-prop's gradient by traces that run forward in time.

  Args:
    agent: Agent.
    costs: Costs.
    weights: Weights.
    window: Window.
    traces: Traces after the step before the window, default `initial_traces`.
    feedback: [n_features, A + 1] through which signals are broadcast, default the heads' weights.
    seen: Seen as others' trials change it, see reward_based_eprop.Learner; default: as observed.

  Returns:
    Result, and Traces after the last of the window's N steps.
  """
  n_frames, n_batch = window.records.reset.shape
  weights = tf.nest.map_structure(tf.convert_to_tensor, weights)
  rule = Online(agent, costs, weights, window, heads(weights).w if feedback is None else feedback)
  traces = initial_traces(agent, n_batch) if traces is None else traces
  zeros = lambda array: tf.zeros(array.shape[1:], agent.dtype)
  pair = lambda array: tf.zeros([2, *array.shape], agent.dtype)
  sums = Sums(*(zeros(of_part.G) for of_part in traces), e=zeros(traces.rnn.G), voltage1=pair(traces.conv1.eps_v),
              voltage2=pair(traces.conv2.eps_v))
  body = lambda k, traces, sums: (k + 1, *rule.learn(k, *rule.network_steps(k, traces, sums)))
  _, traces, sums = tf.while_loop(lambda k, *_: k < n_frames - 1, body, (0, traces, sums))
  _, sums = rule.network_steps(n_frames - 1, traces, sums)                                    # the bootstrap frame

  seen = observe(agent, costs, window.records) if seen is None else seen
  losses, rate = all_losses(costs, window, rule.signals.advantage[:-1, :, 0], seen, n_frames * agent.n_repeat)
  return Result(rule.gradients(sums, seen, rate), losses, rule.returns, rate), traces

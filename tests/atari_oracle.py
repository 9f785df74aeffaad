"""The agent of figures 4 and 5 and reward-based e-prop as slow loops in float64 NumPy, free of TensorFlow.

Written from the paper's equations, close to their notation; an oracle for spiking_cnn.py, agent.py and the two files of
reward-based e-prop, with which it shares nothing but the names.

  n, b, S      agent step, trial, network steps per frame; u, s count network steps over all frames and within one
  i, j, k      presynaptic neuron or input, postsynaptic neuron, output of the heads (logits, then the value)
  images       [N + 1, B, H, W], grey values / 255, of which the last is the bootstrap frame
  reset        [N + 1, B], 1 where an episode begins with the frame
"""
from typing import NamedTuple

import numpy as np

import oracle


class Run(NamedTuple):
  """A simulation; time runs over network steps [S (N + 1)] or agent steps [N + 1]."""
  layers: list         # per convolutional layer: inputs x [T', B, H, W, C] and potentials v [T', B, H', W', F]
  rnn: oracle.Run      # z, v, a, psi of the LSNN, each [T', B, n]
  x: np.ndarray        # its inputs [T', B, i]
  y: np.ndarray        # outputs of the heads [N + 1, B, A + 1]


def places(size_in, k, stride):
  """Upper left corners of all windows."""
  return [(row, column) for row in range(0, size_in[0] - k + 1, stride) for column in range(0, size_in[1] - k + 1, stride)]


def convolution(x, filters, bias, stride):
  """x: [H, W, C], filters: [k, k, C, F]. Returns [H', W', F]."""
  k = len(filters)
  out = [np.tensordot(x[row:row + k, column:column + k], filters, 3) for row, column in places(x.shape, k, stride)]
  height = (x.shape[0] - k) // stride + 1
  return np.reshape(out, (height, -1, filters.shape[-1])) + bias


def average_pool(z, k, stride):
  """z: [H, W, F]. Returns [features], the filters of a place side by side."""
  return np.concatenate([z[row:row + k, column:column + k].mean((0, 1)) for row, column in places(z.shape, k, stride)])


def see(z, filters, bias, k, stride):
  """What the heads see of z [H, W, F]: its convolution, or averages where there are no filters. Returns [features]."""
  return convolution(z, filters, bias, stride).ravel() if len(filters) else average_pool(z, k, stride)


def unsee(signal, filters, size, k, stride):
  """Signals of these features as signals of the neurons [H, W, F]: each average is that of k k neurons."""
  signals = np.zeros(size)
  corners = places(size, k, stride)
  for of_place, (row, column) in zip(signal.reshape(len(corners), -1), corners):
    signals[row:row + k, column:column + k] += filters @ of_place if len(filters) else of_place / k ** 2
  return signals


def simulate(agent, neurons, weights, images, reset):
  """All layers of the agent.

  Args:
    agent: sizes and constants: conv1, conv2 (stride, decay, thr, view with kernel and stride), n_repeat, kappa.
    neurons: oracle.Neurons of the LSNN.
    weights: named arrays as agent.Weights.
    images, reset: see above.
  """
  n_frames, n_batch = reset.shape
  n_repeat = agent.n_repeat
  n_steps = n_frames * n_repeat
  starts = np.zeros((n_steps, n_batch))
  starts[::n_repeat] = reset
  x = np.repeat(images[..., None], n_repeat, 0)
  layers, features = [], []
  for layer, filters, bias, *of_view in (
      (agent.conv1, weights.conv1, weights.bias1, weights.broadcast1, weights.bias_broadcast1),
      (agent.conv2, weights.conv2, weights.bias2, weights.broadcast2, weights.bias_broadcast2)):
    v = np.zeros((n_steps, n_batch, *convolution(x[0, 0], filters, bias, layer.stride).shape))
    for b in range(n_batch):
      state = np.zeros(v.shape[2:])
      for u in range(n_steps):
        state = state * (1 - starts[u, b])
        current = convolution(x[u, b], filters, bias, layer.stride)
        state = layer.decay * state + current - layer.thr * (state > layer.thr)
        v[u, b] = state
    z = (v > layer.thr).astype(float)
    layers.append((x, v))
    features.append([[see(z_ub, *of_view, layer.view.kernel, layer.view.stride) for z_ub in z_u] for z_u in z])
    x = z
  x = x.reshape(n_steps, n_batch, -1)
  rnn = oracle.simulate(neurons, x, weights.w_in, weights.w_rec, starts)
  features = np.concatenate([rnn.z, *map(np.array, features)], -1)
  out = features @ np.hstack([weights.w_policy, weights.w_value]) + np.hstack([weights.b_policy, weights.b_value])
  y = np.zeros((n_steps + 1, *out.shape[1:]))
  for u in range(n_steps):
    y[u] = agent.kappa * y[u - 1] * (1 - starts[u])[:, None] + (1 - agent.kappa) * out[u]  # y[-1] is still 0 for u = 0
  return Run(layers, rnn, x, y[n_repeat - 1:-1:n_repeat])


def returns(reward, done, bootstrap, g):
  """R[n]: rewards until the end of the episode, each discounted, and the bootstrap value if it does not end. [N, B]"""
  n_steps, n_batch = reward.shape
  R = np.zeros((n_steps, n_batch))
  for b in range(n_batch):
    for n in range(n_steps):
      factor = 1.0
      for m in range(n, n_steps):
        R[n, b] += factor * reward[m, b]
        factor *= g * (1 - done[m, b])
      R[n, b] += factor * bootstrap[b]
  return R


def td_errors(reward, done, value, g):
  """delta[n] = r[n] + g (1 - done[n]) V[n+1] - V[n]; value: [N + 1, B]. Returns [N, B]."""
  delta = np.zeros_like(reward)
  for n in range(len(reward)):
    delta[n] = reward[n] + g * (1 - done[n]) * value[n + 1] - value[n]
  return delta


def advantages(delta, done, g):
  """A[n]: the TD errors that follow until the end of the episode, each discounted by powers of g, here g lambda. [N, B]"""
  A = np.zeros_like(delta)
  for b in range(delta.shape[1]):
    for n in range(len(delta)):
      factor = 1.0
      for m in range(n, len(delta)):
        A[n, b] += factor * delta[m, b]
        factor *= g * (1 - done[m, b])
  return A


def policy(y):
  """Softmax of the logits in front of the value. y: [..., A + 1]."""
  return np.exp(y[..., :-1]) / np.exp(y[..., :-1]).sum(-1, keepdims=True)


def clipped(targets, log_pi, clip_range, n, b):
  """Of a clipped update: loss of the policy at a step per unit of its weight, and the factor of its learning signal."""
  old, A, _ = (x[n, b] for x in targets)
  ratio = np.exp(log_pi - old)
  if A > 0 and ratio > 1 + clip_range:
    return -A * (1 + clip_range), 0.0
  if A < 0 and ratio < 1 - clip_range:
    return -A * (1 - clip_range), 0.0
  return -A * ratio, A * ratio


def losses(agent, costs, neurons, run, action, reward, mask, policy_weight, targets, reset):
  """Policy, value, entropy, rate, voltage of the LSNN, voltage of the convolutional layers, each times its cost."""
  n_agent_steps, n_batch = reward.shape
  delta = td_errors(reward, reset[1:], run.y[..., -1], costs.discounting)
  A = advantages(delta, reset[1:], costs.discounting * costs.gae_lambda)
  of_policy = of_value = of_entropy = 0.0
  for n in range(n_agent_steps):
    for b in range(n_batch):
      pi = policy(run.y[n, b])
      log_pi, error = np.log(pi[action[n, b]]), A[n, b]
      of_step = -log_pi * A[n, b]
      if targets:
        error, (of_step, _) = targets[2][n, b] - run.y[n, b, -1], clipped(targets, log_pi, costs.clip_range, n, b)
      of_policy += policy_weight * mask[n, b] * of_step
      of_value += mask[n, b] * costs.baseline_cost * error ** 2 / 2
      of_entropy += mask[n, b] * costs.entropy_cost * np.sum(pi * np.log(pi))
  of_rate = costs.rate_cost * np.sum((run.rnn.z.mean((0, 1)) - costs.rate_target) ** 2)
  relu = lambda x: np.maximum(x, 0)
  thr = neurons.thr + neurons.beta * run.rnn.a
  of_voltage = costs.voltage_cost_rnn / n_batch * np.sum(relu(run.rnn.v - thr) ** 2 + relu(-run.rnn.v - thr) ** 2)
  of_cnn = 0.0
  for layer, (_, v) in zip((agent.conv1, agent.conv2), run.layers):
    for sign in (1, -1):
      level = relu(sign * v - layer.thr).mean(0)  # [B, H, W, F]
      level = level if costs.voltage_reg_method == 'avg_time' else level.mean(0, keepdims=True)
      of_cnn += costs.voltage_cost_cnn * np.sum((level ** 2).mean(0))
  return of_policy, of_value, of_entropy, of_rate, of_voltage, of_cnn


class Trace:
  """F_kappa(e) and F_g(L e_bar) of one trial, and what they add to a gradient; e has a last axis j, L an entry per j.

  g is the discount times lambda of the advantages.
  """

  def __init__(self, shape, kappa, g):
    self.e_bar, self.G, self.gradient = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    self.kappa, self.g = kappa, g

  def reset(self):
    self.e_bar, self.G = 0 * self.e_bar, 0 * self.G

  def step(self, e, signal_now=0.0):
    self.e_bar = self.kappa * self.e_bar + (1 - self.kappa) * e
    self.gradient += signal_now * e

  def end_of_frame(self, L, delta, L_now=0.0):
    self.G = self.g * self.G + L * self.e_bar                     # F_g(L e_bar)
    self.gradient += delta * self.G + L_now * self.e_bar          # (36)


def eprop(agent, costs, neurons, weights, run, action, reward, mask, policy_weight, targets, reset, feedback):
  """Reward-based e-prop as traces that run forward, trial by trial.

  Args:
    feedback: [features, A + 1].
    Otherwise as `simulate` and `losses`.

  Returns:
    Dictionary of gradients, named as the weights.
  """
  n_frames, n_batch = reset.shape
  n_agent_steps, n_repeat, p = n_frames - 1, agent.n_repeat, neurons
  n_steps = n_frames * n_repeat
  n_outputs, n = run.y.shape[-1], p.n
  delta = td_errors(reward, reset[1:], run.y[..., -1], costs.discounting)
  of_rate = 2 * costs.rate_cost * (run.rnn.z.mean((0, 1)) - costs.rate_target) / (n_batch * n_steps)
  starts = np.zeros((n_steps, n_batch))
  starts[::n_repeat] = reset
  pre = np.concatenate([run.x, oracle.one_step_later(run.rnn.z, starts)], -1)  # synapses of w_in, then of w_rec
  layers = list(zip((agent.conv1, agent.conv2), run.layers, (weights.conv1, weights.conv2)))
  z_conv = [(v > layer.thr).astype(float) for layer, (_, v), _ in layers]
  of_views = [(weights.broadcast1, weights.bias_broadcast1), (weights.broadcast2, weights.bias_broadcast2)]
  windows = [(layer.view.kernel, layer.view.stride) for layer, *_ in layers]
  corners = [places(z.shape[2:], *window) for z, window in zip(z_conv, windows)]
  sizes = [n, *(see(z[0, 0], *of_view, *window).size for z, of_view, window in zip(z_conv, of_views, windows))]
  B_rnn, *B_conv = np.split(feedback, np.cumsum(sizes)[:-1])
  total = 0
  relu = lambda x: np.maximum(x, 0)
  for b in range(n_batch):
    trace_of = lambda *shape: Trace(shape, agent.kappa, 0.0 if targets else costs.discounting * costs.gae_lambda)
    rnn, heads = trace_of(pre.shape[-1], n), trace_of(sum(sizes) + 1, n_outputs)
    convs = [trace_of(filters[..., 0].size + 1, *z.shape[2:])                                # [i, H, W, F]
             for z, (_, _, filters) in zip(z_conv, layers)]
    views = [trace_of(k * k * z.shape[-1] + 1, len(of_layer), len(bias))                     # [i, place, F]
             for z, (_, bias), (k, _), of_layer in zip(z_conv, of_views, windows, corners)]
    eps_v, eps_a = np.zeros((pre.shape[-1], n)), np.zeros((pre.shape[-1], n))
    dv = [np.zeros(trace.e_bar.shape) for trace in convs]
    for f in range(n_frames):
      for s in range(n_repeat):
        u = f * n_repeat + s
        if starts[u, b]:
          eps_v, eps_a, dv = 0 * eps_v, 0 * eps_a, [0 * d for d in dv]
          for trace in (rnn, heads, *convs, *views):
            trace.reset()
        # LSNN
        psi, v, A = run.rnn.psi[u, b], run.rnn.v[u, b], p.thr + p.beta * run.rnn.a[u, b]
        eps_v = p.alpha * eps_v + pre[u, b][:, None]                                # (22)
        e = psi * (eps_v - p.beta * eps_a)                                          # (25)
        rnn.step(e, of_rate)
        c = 2 * costs.voltage_cost_rnn / n_batch
        rnn.gradient += c * (relu(v - A) * (eps_v - p.beta * eps_a) - relu(-v - A) * (eps_v + p.beta * eps_a))
        eps_a = psi * eps_v + (p.rho - psi * p.beta) * eps_a                        # (24)
        # convolutional layers, one neuron after the other
        seen = []
        for index, (layer, (x, v), filters) in enumerate(layers):
          k, trace = len(filters), convs[index]
          psi_of = lambda v: layer.dampening_factor / layer.thr * relu(1 - np.abs(v - layer.thr) / layer.thr)
          first = u == 0 or starts[u, b]
          leak = layer.decay - layer.thr * psi_of(np.zeros(v.shape[2:]) if first else v[u - 1, b])
          for (row, column), (h, w) in zip(places(x.shape[2:], k, layer.stride), np.ndindex(v.shape[2:4])):
            patch = np.append(x[u, b, row:row + k, column:column + k], 1.0)
            dv[index][:, h, w] = leak[h, w] * dv[index][:, h, w] + patch[:, None]
          trace.step(psi_of(v[u, b]) * dv[index])
          for sign in (1, -1):
            level = relu(sign * v - layer.thr).mean(0)
            level = level[b] if costs.voltage_reg_method == 'avg_time' else level.mean(0)
            signal = sign * 2 * costs.voltage_cost_cnn / (n_batch * n_steps) * level * (sign * v[u, b] > layer.thr)
            trace.gradient += signal * dv[index]
          z = z_conv[index][u, b]
          seen.append(see(z, *of_views[index], *windows[index]))
          k = windows[index][0]
          patches = [np.append(z[row:row + k, column:column + k], 1.0) for row, column in corners[index]]
          views[index].step(np.transpose(patches)[..., None])                       # dx/dw of what the heads see, x
        heads.step(np.concatenate([run.rnn.z[u, b], *seen, [1.0]])[:, None] * np.ones(n_outputs))
      if f < n_agent_steps:
        pi = policy(run.y[f, b])
        of_policy = policy_weight * (pi - (np.arange(n_outputs - 1) == action[f, b]))
        error = mask[f, b] * np.append(of_policy, -costs.baseline_cost)
        if targets:  # each step has its own factors, instead of a TD error for all steps before
          delta[f, b] = 1.0
          _, factor = clipped(targets, np.log(pi[action[f, b]]), costs.clip_range, f, b)
          error *= np.append(factor * np.ones_like(pi), targets[2][f, b] - run.y[f, b, -1])
        H = -np.sum(pi * np.log(pi))
        entropy = mask[f, b] * np.append(costs.entropy_cost * pi * (np.log(pi) + H), 0.0)
        rnn.end_of_frame(B_rnn @ error, delta[f, b], B_rnn @ entropy)               # (5), (37)
        heads.end_of_frame(error, delta[f, b], entropy)
        for trace, of_view, B_layer, z, (filters, bias), window in zip(convs, views, B_conv, z_conv, of_views, windows):
          signal = B_layer @ error / costs.reg_factor_cnn
          trace.end_of_frame(unsee(signal, filters, z.shape[2:], *window), delta[f, b])
          if len(filters):
            of_view.end_of_frame(signal.reshape(-1, len(bias)), delta[f, b])
    of_convs = [trace.gradient.sum((1, 2)) for trace in convs] + [trace.gradient.sum(1) for trace in views]
    total = total + np.array([rnn.gradient, heads.gradient, *of_convs], dtype=object)
  of_rnn, of_heads, of_conv1, of_conv2, of_view1, of_view2 = total
  n_in = run.x.shape[-1]
  return dict(conv1=of_conv1[:-1].reshape(weights.conv1.shape), bias1=of_conv1[-1],
              conv2=of_conv2[:-1].reshape(weights.conv2.shape), bias2=of_conv2[-1],
              w_in=of_rnn[:n_in], w_rec=oracle.no_autapses(of_rnn[n_in:]), w_policy=of_heads[:-1, :-1],
              b_policy=of_heads[-1, :-1], w_value=of_heads[:-1, -1:], b_value=of_heads[-1, -1:],
              broadcast1=of_view1[:-1].reshape(weights.broadcast1.shape), bias_broadcast1=of_view1[-1],
              broadcast2=of_view2[:-1].reshape(weights.broadcast2.shape), bias_broadcast2=of_view2[-1])

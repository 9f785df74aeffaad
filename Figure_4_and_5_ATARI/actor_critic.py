"""Actor and critic of figures 4 and 5: returns, losses, and what the heads have to say about them, eqs. (36), (37).

Notation as in agent.py, and

  n, N       agent steps of a window; one more frame follows, whose value bootstraps the returns: the bootstrap frame
  T'         network steps of the window, S (N + 1): rate and voltage costs count the bootstrap frame, and all trials
  r, g       reward, discount per agent step
  delta[n]   r[n] + g (1 - done[n]) V[n+1] - V[n], the TD error; done[n] is reset[n+1]
  A[n]       delta[n] + g lambda (1 - done[n]) A[n+1], the advantage, A[N] = 0 (generalised advantage estimation)
  R[n]       V[n] + A[n], the return; with lambda = 1, r[n] + g (1 - done[n]) R[n+1] and R[N] = V[N]
  rho[n]     pi(a[n]) / pi_old(a[n]), of clipped updates: how much likelier the action is than when it was taken
  c          --clip_range
"""
from typing import NamedTuple

import tensorflow as tf

from agent import Record
from lsnn import spike
from spiking_cnn import relu_below

VOLTAGE_METHODS = ('avg_time', 'avg_all')


class Costs(NamedTuple):
  """Weights of the losses; defaults of the published runs."""
  discounting: float = 0.99        # per agent step
  gae_lambda: float = 1.0
  baseline_cost: float = 1.0
  entropy_cost: float = 0.0025
  rate_cost: float = 50.0
  rate_target: float = 0.02        # spikes per network step
  voltage_cost_rnn: float = 1e-4
  voltage_cost_cnn: float = 0.5
  reg_factor_cnn: float = 1e8
  voltage_reg_method: str = 'avg_time'  # convolutional layers: voltages averaged over time; 'avg_all': trials, too
  clip_range: float = 0.2          # of rho in clipped updates


class Targets(NamedTuple):
  """What stays as play found it while a window is learned from several times; [N, B] each."""
  log_pi: tf.Tensor     # log-probability of the actions
  advantage: tf.Tensor  # A
  returns: tf.Tensor    # R


class Window(NamedTuple):
  """N agent steps of B environments and the bootstrap frame."""
  records: Record    # [N + 1, ...]; while the weights stay the same, the last is the first of the next window
  action: tf.Tensor  # int32 [N, B]
  reward: tf.Tensor  # [N, B]
  mask: tf.Tensor    # [N, B] weight of each step in the policy, value and entropy losses, see `episode_mask`
  policy_weight: tf.Tensor = 1.0  # [] of the policy loss
  targets: Targets = None         # of a clipped update; None: the records are those of play, and A and R follow from them


class Losses(NamedTuple):
  """Each [] and multiplied by its cost. Policy, value and entropy are sums over steps and trials."""
  policy: tf.Tensor
  value: tf.Tensor
  entropy: tf.Tensor
  rate: tf.Tensor
  voltage_rnn: tf.Tensor
  voltage_cnn: tf.Tensor


class Signals(NamedTuple):
  """What the heads have to say, of N + 1 agent steps each; the bootstrap frame's are 0."""
  policy_value: tf.Tensor  # [N + 1, B, A + 1] derivative of policy and value loss by the heads' outputs, per unit advantage
  entropy: tf.Tensor       # [N + 1, B, A + 1] derivative of the entropy loss
  advantage: tf.Tensor     # [N + 1, B, 1] A; of clipped updates [N + 1, B, A + 1]: rho A where it is not clipped, and R - V
  td_error: tf.Tensor      # [N + 1, B] delta


def episode_mask(done, finished):
  """Mask of the steps until the first end of an episode, that last step included.

  Args:
    done: [N, B], 1 where an episode ended with the step.
    finished: [B], 1 where one ended in an earlier window already.

  Returns:
    mask [N, B], and finished [B] for the next window; dtype of done.
  """
  before = tf.minimum(tf.cumsum(done, 0, exclusive=True) + finished, 1)
  return 1 - before, tf.maximum(finished, tf.reduce_max(done, 0))


def discounted_returns(reward, done, bootstrap, discount):
  """R[n] = r[n] + discount (1 - done[n]) R[n+1]. reward, done: [N, B]; bootstrap = R[N]: [B]. Returns [N, B]."""
  following, returns = bootstrap, []
  for r, end in zip(reversed(tf.unstack(reward)), reversed(tf.unstack(done))):
    following = r + discount * (1 - end) * following
    returns.insert(0, following)
  return tf.stack(returns)


def for_heads(records):
  """Of a list of Records, what losses and signals need: a Record of reset, features, logits and value, [N + 1, ...] each."""
  small = {name: tf.stack([getattr(record, name) for record in records]) for name in ('reset', 'features', 'logits', 'value')}
  return Record(**{name: small.get(name) for name in Record._fields})


def log_pi_of_actions(window):
  """log pi(a[n]), [N, B]."""
  log_pi = tf.nn.log_softmax(window.records.logits[:-1])
  return tf.reduce_sum(log_pi * tf.one_hot(window.action, log_pi.shape[-1], dtype=log_pi.dtype), -1)


def surrogate(costs, window):
  """rho A and clip(rho, 1 - c, 1 + c) A, [N, B] each: the smaller one is what a clipped update makes large. Differentiable."""
  rho = tf.exp(log_pi_of_actions(window) - window.targets.log_pi)
  return tuple(x * window.targets.advantage for x in (rho, tf.clip_by_value(rho, 1 - costs.clip_range, 1 + costs.clip_range)))


def targets(costs, window):
  """Targets of a window as it was played."""
  signals, returns = learning_signals(costs, window)
  return Targets(log_pi_of_actions(window), signals.advantage[:-1, :, 0], returns)


def learning_signals(costs, window):
  """Signals of the heads, from the records.

  Args:
    costs: Costs.
    window: Window.

  Returns:
    Signals, returns [N, B].
  """
  logits, value, done = window.records.logits, window.records.value, window.records.reset[1:]
  td_error = window.reward + costs.discounting * (1 - done) * value[1:] - value[:-1]
  advantage = discounted_returns(td_error, done, tf.zeros_like(value[0]), costs.discounting * costs.gae_lambda)
  returns, advantage = value[:-1] + advantage, advantage[..., None]
  pi, log_pi = tf.nn.softmax(logits[:-1]), tf.nn.log_softmax(logits[:-1])
  entropy = -tf.reduce_sum(pi * log_pi, -1, keepdims=True)
  mask = window.mask[..., None]
  of_policy = window.policy_weight * (pi - tf.one_hot(window.action, logits.shape[-1], dtype=logits.dtype))
  of_value = -costs.baseline_cost * tf.ones_like(entropy)
  policy_value = mask * tf.concat([of_policy, of_value], -1)                                        # (37)
  of_entropy = mask * tf.concat([costs.entropy_cost * pi * (log_pi + entropy), tf.zeros_like(entropy)], -1)
  if window.targets is not None:
    returns, (free, clipped) = window.targets.returns, surrogate(costs, window)
    of_policy = tf.repeat(tf.where(free <= clipped, free, tf.zeros_like(free))[..., None], logits.shape[-1], -1)
    advantage = tf.concat([of_policy, (returns - value[:-1])[..., None]], -1)
  padded = lambda x: tf.pad(x, [[0, 1]] + [[0, 0]] * (x.shape.rank - 1))
  return Signals(*map(padded, (policy_value, of_entropy, advantage, td_error))), returns


class Seen(NamedTuple):
  """What the costs need to know of all network steps: sums over time."""
  above1: tf.Tensor       # [B, H1, W1, F1] relu(v - thr)
  below1: tf.Tensor       # [B, H1, W1, F1] relu(-v - thr)
  above2: tf.Tensor       # [B, H2, W2, F2]
  below2: tf.Tensor       # [B, H2, W2, F2]
  spikes: tf.Tensor       # [N], over trials, too
  voltage_rnn: tf.Tensor  # [], see `lsnn_voltage`


def observe(agent, costs, record):
  """Seen of a Record, of one agent step or of many. Differentiable."""
  over_time = lambda layer, relu, h: layer.thr * tf.reduce_sum(relu(h), list(range(h.shape.rank - 4)))
  return Seen(*(over_time(layer, relu, h) for layer, h in ((agent.conv1, record.h1), (agent.conv2, record.h2))
                for relu in (tf.nn.relu, relu_below)),
              tf.reduce_sum(spike(record.h, agent.cell.dampening_factor), list(range(record.h.shape.rank - 1))),
              lsnn_voltage(costs, agent.cell, record.v, record.a)[0])


def voltage_levels(costs, seen, n_steps):
  """The first four of Seen as means over time; with 'avg_all' over trials, too: [1, H, W, F]."""
  if costs.voltage_reg_method not in VOLTAGE_METHODS:
    raise ValueError(f'voltage_reg_method must be one of {", ".join(VOLTAGE_METHODS)}, got {costs.voltage_reg_method!r}')
  levels = [total / n_steps for total in seen[:4]]
  return levels if costs.voltage_reg_method == 'avg_time' else [tf.reduce_mean(x, 0, keepdims=True) for x in levels]


def voltage_factors(costs, seen, n_steps):
  """dE/d relu(v - thr) and dE/d relu(-v - thr) at every network step, of both convolutional layers, as in Seen."""
  n_batch = seen.above1.shape[0]
  return [2 * costs.voltage_cost_cnn / (n_steps * n_batch) * level for level in voltage_levels(costs, seen, n_steps)]


def lsnn_voltage(costs, cell, v, a):
  """Voltage cost of the LSNN and its derivatives: (c / B) sum relu(v - A)^2 + relu(-v - A)^2, A = thr + beta a.

  Args:
    costs, cell: Costs, lsnn.ALIF.
    v, a: [..., B, N].

  Returns:
    Cost [], g_v and g_a of the shape of v.
  """
  threshold = cell.thr + cell.beta * a
  above, below = tf.nn.relu(v - threshold), tf.nn.relu(-v - threshold)
  factor = costs.voltage_cost_rnn / v.shape[-2]
  cost = factor * (tf.reduce_sum(above ** 2) + tf.reduce_sum(below ** 2))
  return cost, 2 * factor * (above - below), -2 * factor * cell.beta * (above + below)


def all_losses(costs, window, advantage, seen, n_steps):
  """Losses, and mean rates [N]. advantage: R - V, [N, B]; seen: Seen; n_steps: T'. Differentiable."""
  logits, mask = window.records.logits[:-1], window.mask
  log_pi = tf.nn.log_softmax(logits)
  gain = (tf.stop_gradient(advantage) * log_pi_of_actions(window) if window.targets is None else
          tf.minimum(*surrogate(costs, window)))
  entropy = -tf.reduce_sum(tf.exp(log_pi) * log_pi, -1)
  rate = seen.spikes / (n_steps * logits.shape[1])
  of_level = [tf.reduce_sum(tf.reduce_mean(level ** 2, 0)) for level in voltage_levels(costs, seen, n_steps)]
  return Losses(policy=-window.policy_weight * tf.reduce_sum(mask * gain),
                value=costs.baseline_cost / 2 * tf.reduce_sum(mask * advantage ** 2),
                entropy=-costs.entropy_cost * tf.reduce_sum(mask * entropy),
                rate=costs.rate_cost * tf.reduce_sum((rate - costs.rate_target) ** 2),
                voltage_rnn=seen.voltage_rnn,
                voltage_cnn=costs.voltage_cost_cnn * tf.add_n(of_level)), rate


def rate_signal(costs, rate, n_steps, n_batch):
  """d rate cost / dz at every network step, [N]."""
  return 2 * costs.rate_cost / (n_steps * n_batch) * (rate - costs.rate_target)

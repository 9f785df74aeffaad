"""Deep R: a sparse network that rewires itself while it learns (Bellec, Kappel, Maass and Legenstein, ICLR 2018).

Every possible synapse i -> j has a sign that never changes and is either active, with weight sign * theta and theta >= 0, or
dormant, with weight 0. After each step of the optimizer

    theta <- theta - eta l1 + sqrt(2 eta T) nu        nu ~ N(0, 1), l1: pull towards 0, T: temperature of the random walk

An active synapse whose theta falls below 0 becomes dormant, and as many dormant ones, drawn with equal probability, become
active with theta = 0: the number of active synapses never changes. A new synapse that the gradient pulls against its sign is
dormant again after the next step, so the network keeps trying until it finds one that helps.

With Dale's law all synapses of one presynaptic neuron have the same sign.
"""
import numpy as np
import tensorflow as tf


def draw_signs(rng, n_pre, n_post, dale, proportion_excitatory=0.75):
  """Signs of all possible synapses.

  Args:
    rng: numpy Generator.
    n_pre, n_post: numbers of presynaptic and postsynaptic neurons.
    dale: one sign for each presynaptic neuron: the first round(proportion_excitatory n_pre) of a random order are excitatory.
      Otherwise each synapse is excitatory or inhibitory with probability 1/2.
    proportion_excitatory: between 0 and 1.

  Returns:
    float64 [n_pre, n_post] of -1 and 1.
  """
  if not dale:
    return rng.choice([-1.0, 1.0], (n_pre, n_post))
  sign = np.where(rng.permutation(n_pre) < round(proportion_excitatory * n_pre), 1.0, -1.0)
  return np.repeat(sign[:, None], n_post, 1)


def draw_weights(rng, sign, connectivity, autapses=True):
  """Initial weights and which of them are active.

  Magnitudes are those of N(0, 1) / sqrt(active synapses per neuron). Where the signs differ in number, the rarer ones
  are made larger in proportion, so that excitation and inhibition balance on average, and all are scaled to the same
  mean square as without signs.

  Args:
    rng: numpy Generator.
    sign: from `draw_signs`, [n_pre, n_post].
    connectivity: active share of the possible synapses, in (0, 1].
    autapses: whether a neuron may have a synapse onto itself.

  Returns:
    weights: float64 [n_pre, n_post], 0 where dormant.
    active: bool [n_pre, n_post].
  """
  possible = np.flatnonzero(np.ones(sign.shape, bool) if autapses else ~np.eye(*sign.shape, dtype=bool))
  active = np.zeros(sign.size, bool)
  active[rng.permutation(possible)[:max(1, round(connectivity * len(possible)))]] = True
  active = active.reshape(sign.shape)
  share = {s: np.mean(sign[active] == s) for s in (-1.0, 1.0)}
  balance = np.where(sign > 0, share[-1.0], share[1.0]) if min(share.values()) > 0 else np.ones_like(sign)
  weights = np.where(active, sign * balance * np.abs(rng.standard_normal(sign.shape)), 0.0)
  return weights * np.sqrt(sign.shape[1] / np.sum(weights ** 2)), active


def rewire(w, active, sign, seed, learning_rate, l1=0.01, temperature=0.0, autapses=True):
  """What Deep R does to a weight matrix after a step of the optimizer; the number of active synapses stays the same.

  Args:
    w: weights after the optimizer's step, [n_pre, n_post]; what it did to dormant synapses is dropped.
    active: bool [n_pre, n_post], which synapses were active before.
    sign: [n_pre, n_post] of -1 and 1, dtype of w.
    seed: int [2]; the same seed gives the same noise and the same new synapses.
    learning_rate: eta.
    l1: strength of the pull towards 0.
    temperature: T of the random walk.
    autapses: whether a neuron may have a synapse onto itself.

  Returns:
    w and active anew.
  """
  noise_seed, choice_seed = tf.unstack(tf.random.split(seed, 2))
  theta = sign * w - learning_rate * l1
  if temperature:
    theta += (2 * learning_rate * temperature) ** 0.5 * tf.random.stateless_normal(w.shape, noise_seed, dtype=w.dtype)
  stays = active & (theta >= 0)
  n_lost = tf.reduce_sum(tf.cast(active & ~stays, tf.int32))
  dormant = ~stays if autapses else tf.linalg.set_diag(~stays, tf.zeros(w.shape[0], tf.bool))
  # Every dormant synapse draws a lot; the n_lost highest lots win.
  lot = tf.where(dormant, tf.random.stateless_uniform(w.shape, choice_seed), -1.0)
  order = tf.argsort(tf.reshape(lot, [-1]), direction='DESCENDING', stable=True)
  drawn = tf.scatter_nd(order[:n_lost, None], tf.ones([n_lost], tf.int32), [tf.size(lot)])
  return tf.where(stays, sign * theta, 0), stays | (tf.reshape(drawn, w.shape) > 0)


class Rewiring:
  """Deep R on the input and recurrent synapses of a network; those of the readout are left alone.

  Args:
    rng: numpy Generator, for signs and initial weights.
    n_in, n: numbers of inputs I and neurons N.
    dtype: of the weights.
    seed: of noise and new synapses, int.
    connectivity, dale, proportion_excitatory: as for `draw_signs` and `draw_weights`.
    learning_rate, l1, temperature: as for `rewire`.
  """

  def __init__(self, rng, n_in, n, dtype, seed, connectivity, dale, proportion_excitatory, learning_rate, l1, temperature):
    self.seed, self.rule = seed, dict(learning_rate=learning_rate, l1=l1, temperature=temperature)
    signs = [draw_signs(rng, n_pre, n, dale, proportion_excitatory) for n_pre in (n_in, n)]
    w, active = zip(*(draw_weights(rng, sign, connectivity, autapses) for sign, autapses in zip(signs, (True, False))))
    self.initial_weights = dict(w_in=w[0], w_rec=w[1])
    self.signs = [tf.constant(sign, dtype) for sign in signs]
    self.active = [tf.Variable(mask) for mask in active]  # part of what a resumed run needs

  def apply(self, weights, iteration):
    """Rewires after a step of the optimizer.

    Args:
      weights: tf.Variables w_in and w_rec.
      iteration: number of steps of the optimizer so far, int.
    """
    iteration = tf.cast(iteration, tf.int32)
    for k, (w, active, sign) in enumerate(zip(weights, self.active, self.signs)):
      new, now = rewire(w, active, sign, tf.stack([self.seed, 2 * iteration + k]), autapses=k == 0, **self.rule)
      w.assign(new)
      active.assign(now)

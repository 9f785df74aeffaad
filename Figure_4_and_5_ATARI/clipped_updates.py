"""Several updates per window with clipped learning signals, as in proximal policy optimisation (Schulman et al., 2017).

Notation as in actor_critic.py. A window is played once. Then its environments are split at random into --n_minibatches groups,
each update learns from one group, and --update_epochs splits follow one another. Advantages A, returns R and the probabilities
of the actions stay as play found them; frames are simulated anew with the weights of the moment, for the policy's loss

  E_policy = -sum_n min(rho[n] A[n], clip(rho[n], 1 - c, 1 + c) A[n])

Its signal to the logits is A[n] rho[n] (pi - onehot(a[n])), and 0 where the clipped term is the smaller one; that of the value
is -baseline_cost (R[n] - V[n]). So the factor of the learning signals changes, and the eligibility traces are those of the new
simulation, as in any window. A group's sums over trials count --n_minibatches times, as its means over trials do by themselves.

The state from which a group is simulated, and that from which play goes on, is the one that the weights before the updates have
led to. The online rule passes each step once, with the signal of the moment: this is not for it.
"""
import numpy as np
import tensorflow as tf

from actor_critic import Window, for_heads, log_pi_of_actions, surrogate, targets
from reward_based_eprop import Result


def groups(rng, n_games, own, n_groups):
  """Environments in groups at random: of every n_groups that follow one another each group gets one.

  Args:
    rng: numpy Generator.
    n_games: environments of all workers.
    own: slice of this worker's; its ends must be multiples of n_groups.
    n_groups: number of groups.

  Returns:
    int [n_groups, own environments / n_groups], counted from this worker's first: with others' the same groups as one worker's.
  """
  of_all = rng.permuted(np.arange(n_games).reshape(-1, n_groups), axis=1).T
  return of_all[:, own.start // n_groups:own.stop // n_groups] - own.start


class Simulation:
  """Simulates some environments' part of a window as the agent sees it with the weights of the moment.

  Args:
    agent: agent.Agent.
    weights: agent.Weights of variables.
  """

  GROUP = 5  # frames of a call: fewer calls are faster

  def __init__(self, agent, weights):
    self._weights, self._act = weights, agent.act
    self._several = tf.function(self._act_several)

  def _act_several(self, weights, state, frames, resets, games):
    records = []
    for frame, reset in zip(frames, resets):
      *_, state, record = self._act(weights, state, tf.gather(frame, games), tf.gather(reset, games))
      records.append(record)
    return state, records

  def __call__(self, played, games):
    """Played of these environments, int [B'], from playing.Played of all."""
    games, records = tf.constant(games), []
    state = first = tf.nest.map_structure(lambda array: tf.gather(array, games), played.state)
    for k in range(0, len(played.records), self.GROUP):
      group = played.records[k:k + self.GROUP]
      frames, resets = [record.frame for record in group], [record.reset for record in group]
      state, again = self._several(self._weights, state, frames, resets, games)
      records += again
    return played._replace(state=first, records=records, **{
        name: getattr(played, name)[:, games] for name in ('action', 'score', 'done')})


def learn(simulate, costs, played, signal, splits, gradient, change):
  """Changes the weights several times, by what a window shows.

  Args:
    simulate: Simulation.
    costs: Costs.
    played: playing.Played, by the weights as they are.
    signal: reward, mask, policy_weight as in Window.
    splits: list of what `groups` returns.
    gradient: function of Played and the last four of Window that returns a Result.
    change: function of a Result that changes the weights.

  Returns:
    Result of the window: losses and rate are means over the first split; no gradients.
    How far the policy went from that which played, each a sum over steps and trials and a mean over the splits:
    rho - 1 - log rho, an estimate of the Kullback-Leibler divergence; 1 where the signal was clipped.
  """
  reward, mask, policy_weight = signal
  fixed = targets(costs, Window(for_heads(played.records), tf.constant(played.action), *signal))
  results, kl, n_clipped = [], 0.0, 0.0
  for split in splits:
    for games in split:
      of = lambda array: tf.gather(array, games, axis=1)
      as_played = not results and len(split) == 1
      part = played if as_played else simulate(played, games)
      of_part = of(reward), len(split) * of(mask), policy_weight, tf.nest.map_structure(of, fixed)
      result = gradient(part, *of_part)
      change(result)
      results.append(result._replace(gradients=None))
      window = Window(for_heads(part.records), tf.constant(part.action), *of_part)
      log_rho = log_pi_of_actions(window) - window.targets.log_pi
      free, clipped = surrogate(costs, window)
      kl += float(tf.reduce_sum(of(mask) * (tf.exp(log_rho) - 1 - log_rho))) / len(splits)
      n_clipped += float(tf.reduce_sum(of(mask) * tf.cast(free > clipped, mask.dtype))) / len(splits)
  first = results[:len(splits[0])]
  mean = lambda values: tf.add_n(list(values)) / len(first)
  losses = type(first[0].losses)(*map(mean, zip(*(result.losses for result in first))))
  return Result(None, losses, fixed.returns, mean(result.rate for result in first)), kl, n_clipped

"""How a window is learned from, as the flags of figures 4 and 5 ask: costs, rule, optimizer, scale of the advantages."""
from absl import flags
import keras
import numpy as np
import tensorflow as tf

from actor_critic import Costs, observe
from agent import by_name
from online_reward_based_eprop import hardcoded
import replicas
from reward_based_eprop import Learner, autodiff
import schedules

FLAGS = flags.FLAGS


def own_games():
  """The slice of --parallel_episodes that this worker plays."""
  return replicas.part(FLAGS.parallel_episodes, replicas.worker())


def of_whole_batch(seen):
  """actor_critic.Seen of this worker's games, with what the others saw; see reward_based_eprop.Learner."""
  if not replicas.several():
    return seen
  own = seen.above1.shape[0]  # all of this worker's games, or one group of them
  n_games = FLAGS.parallel_episodes * own // (own_games().stop - own_games().start)
  levels = [tf.reduce_sum(level, 0) for level in seen[:4]] if FLAGS.voltage_reg_method == 'avg_all' else []
  spikes, *levels = replicas.total([seen.spikes, *levels])
  seen = seen._replace(spikes=tf.constant(spikes * (own / n_games)))
  levels = [tf.repeat(level[None] / n_games, own, 0) for level in levels]
  return seen._replace(**dict(zip(seen._fields, levels)))


def costs_at(n_frames):
  """Costs of this worker after n_frames emulator frames."""
  values = {name: getattr(FLAGS, name) for name in Costs._fields}
  scheduled = 'discounting', 'gae_lambda', 'baseline_cost', 'entropy_cost'
  values |= {name: schedules.at(values[name], n_frames) for name in scheduled}
  # Costs of means over the batch: each worker adds its part.
  share = (own_games().stop - own_games().start) / FLAGS.parallel_episodes
  values |= {name: share * values[name] for name in ('rate_cost', 'voltage_cost_rnn', 'voltage_cost_cnn')}
  return Costs(**values)


def make_learner(agent, weights, costs):
  """How a window is learned from.

  Args:
    agent: Agent.
    weights: Weights of variables.
    costs: Costs.

  Returns:
    A function of Played and the last four of Window that returns a Result, and one that makes it forget earlier windows.
  """
  bptt = not FLAGS.use_eprop
  if FLAGS.eprop_impl == 'adjoint':
    learner = Learner(agent, costs, bptt, of_whole_batch)
    return lambda played, *signal: learner(weights, played.records, tf.constant(played.action), *signal), lambda: None
  see = tf.function(lambda records: observe(agent, costs, records))
  if FLAGS.eprop_impl == 'autodiff':
    compiled = tf.function(lambda window, state, seen: autodiff(agent, costs, weights, window, state, bptt=bptt, seen=seen))

    def learn_from(played, *signal):
      window = played.window(*signal)
      return compiled(window, played.state, of_whole_batch(see(window.records)))

    return learn_from, lambda: None
  online = tf.function(lambda window, traces, seen: hardcoded(agent, costs, weights, window, traces, seen=seen))
  carried = [None]

  def learn(played, *signal):
    window = played.window(*signal)
    result, carried[0] = online(window, carried[0], of_whole_batch(see(window.records)))
    return result

  return learn, lambda: carried.__setitem__(0, None)


class Optimizer:
  """Adam, of the heads and of the other weights, with a learning rate of each; or of the heads alone (--nocell_train)."""
  HEADS = ('w_policy', 'b_policy', 'w_value', 'b_value')

  def __init__(self, weights):
    dtype = np.dtype(FLAGS.dtype).type
    self._parts = []  # names, optimizer, factor of the learning rate
    for names, factor in ((self.HEADS, FLAGS.learning_rate_heads),
                          ([name for name in by_name(weights) if name not in self.HEADS], 1.0))[:1 + FLAGS.cell_train]:
      adam = keras.optimizers.Adam(0.0, dtype(0.9), dtype(0.999), epsilon=FLAGS.epsilon)
      adam.build(self._chosen(weights, names))
      self._parts.append((names, adam, factor))
    self.set_learning_rate(schedules.at(FLAGS.learning_rate, 0))

  @staticmethod
  def _chosen(weights, names):
    arrays = by_name(weights)
    return [arrays[name] for name in names]

  @property
  def variables(self):
    """All that a resumed run needs."""
    return [variable.value for _, adam, _ in self._parts for variable in adam.variables]

  def set_learning_rate(self, rate):
    for _, adam, factor in self._parts:
      adam.learning_rate.assign(factor * rate)

  def apply(self, gradients, weights):
    """One update. gradients, weights: Weights, the latter of variables."""
    for names, adam, _ in self._parts:
      adam.apply(self._chosen(gradients, names), self._chosen(weights, names))


class AdvantageScale:
  """Running root mean square of the advantages, by which --normalise_advantages divides those that follow.

  Attributes:
    variables: running mean of their squares, and the weight of what it has seen, both float64 [].
  """
  MEMORY = 0.99  # per window

  def __init__(self):
    self.variables = [tf.Variable(0.0, dtype=tf.float64) for _ in range(2)]

  def policy_weight(self, n_frames):
    """Of the policy loss of the window that begins after n_frames; 0 while the critic warms up or nothing is known."""
    square, weight = (float(variable) for variable in self.variables)
    if n_frames < FLAGS.critic_warmup_frames:
      return 0.0
    if not FLAGS.normalise_advantages:
      return 1.0
    return (weight / square) ** 0.5 if square else 0.0

  def update(self, square):
    """Takes in a window's mean square."""
    for variable, value in zip(self.variables, (square, 1.0)):
      variable.assign(self.MEMORY * variable + (1 - self.MEMORY) * value)

"""Replicas: devices, of one worker (process) or many, that hold the same weights and compute parts of the same batch.

All workers run the same program from the same seed. A replica computes its part of a batch (`each`); what is a sum over the
batch is summed over the replicas (`all_sum`), so that all hold the same numbers and take the same decisions. The leader alone
writes files. With one device all this does nothing. distribution.py brings workers together.
"""
import types
import zlib

import numpy as np
import tensorflow as tf

from files import UserError

_here = types.SimpleNamespace(strategy=None, worker=0, n_workers=1, n_local=1)  # n_local: replicas of this worker


def join(strategy=None, worker=0, n_workers=1):
  """Makes this process one of several, or of one, for all that follows.

  Args:
    strategy: tf.distribute.Strategy; None for one device.
    worker: number of this process; 0 leads.
    n_workers: how many there are.
  """
  vars(_here).update(strategy=strategy, worker=worker, n_workers=n_workers, n_local=1)
  if strategy is not None:
    _here.n_local = strategy.num_replicas_in_sync // n_workers
    _here.sums = {}


def several():
  """Whether other workers take part."""
  return _here.n_workers > 1


def worker():
  """The number of this worker."""
  return _here.worker


def leads():
  """Whether this process writes the files."""
  return _here.worker == 0


def require_items(n_items, n_replicas):
  """Raises UserError if there are fewer items than replicas."""
  if n_items < n_replicas:
    raise UserError(f'a batch of {n_items} cannot be shared by {n_replicas} workers: each needs at least one of it')


def part(n_items, replica):
  """The slice of a batch that is a replica's; the first ones have one more where the batch does not divide evenly.

  Raises:
    UserError: there are fewer items than replicas.
  """
  n_replicas = _here.n_workers * _here.n_local
  require_items(n_items, n_replicas)
  length, n_longer = divmod(n_items, n_replicas)
  start = replica * length + min(replica, n_longer)
  return slice(start, start + length + (replica < n_longer))


def each(n_items, make):
  """What the replicas of this process get as an argument of a `function`.

  Args:
    n_items: size of the batch.
    make: function of a replica's `part` of the batch that returns arrays in any structure.

  Returns:
    make(part) where this process is one replica; else what stands for those of all.
  """
  if _here.n_local == 1:
    return make(part(n_items, _here.worker))
  values = lambda context: tf.nest.map_structure(tf.convert_to_tensor, make(part(n_items, _number(context))))
  return _here.strategy.experimental_distribute_values_from_function(values)


def function(compute):
  """tf.function that calls `compute` on all replicas and returns what it returned on the first one of this process.

  Within it, nothing that all replicas do together (`all_sum`, an optimizer's update) may stand in a loop or another
  tf.function.
  """
  if _here.strategy is None:
    return tf.function(compute)
  on_all = tf.function(lambda *arguments: _here.strategy.run(compute, arguments))
  first = lambda value: _here.strategy.experimental_local_results(value)[0]
  return lambda *arguments: tf.nest.map_structure(first, on_all(*arguments))


def _replica():
  """The replica for which a `function` is being built, where there are several; None elsewhere."""
  context = tf.distribute.get_replica_context()
  return context if context is not None and context.num_replicas_in_sync > 1 else None


def _number(replica):
  return int(tf.get_static_value(replica.replica_id_in_sync_group))


def all_sum(tensors):
  """Sums over the replicas, the same bits on each, within a `function`; elsewhere the tensors as they are, so that what a
  worker computes by itself needs no other.

  Args:
    tensors: any structure of tensors of one dtype, of the same shapes on all replicas.

  Returns:
    The same structure.
  """
  replica = _replica()
  if replica is None:
    return tensors
  flat = [tf.convert_to_tensor(tensor) for tensor in tf.nest.flatten(tensors)]
  joined = tf.concat([tf.reshape(tensor, [-1]) for tensor in flat], 0)  # one message instead of many
  sums = tf.split(replica.all_reduce(tf.distribute.ReduceOp.SUM, joined), [tensor.shape.num_elements() for tensor in flat])
  return tf.nest.pack_sequence_as(tensors, [tf.reshape(values, tensor.shape) for values, tensor in zip(sums, flat)])


def apply(optimizer, gradients, variables):
  """optimizer.apply for gradients that are sums over the replicas already: Keras would sum them once more.

  Args:
    optimizer: keras optimizer, built, without clipping, weight decay or moving averages.
    gradients, variables: lists.
  """
  if _replica() is None:
    optimizer.apply(gradients, variables)
    return
  for gradient, variable in zip(gradients, variables):
    optimizer.update_step(gradient, variable, optimizer.learning_rate)
  optimizer.iterations.assign_add(1)


def in_order(tensor):
  """A tensor of all replicas in the order of their parts of the batch, within a `function`.

  Returns:
    [replicas, ...], and the number of this one; elsewhere [1, ...] and 0.
  """
  replica = _replica()
  if replica is None:
    return tensor[None], 0
  k = _number(replica)
  here = tf.one_hot(k, replica.num_replicas_in_sync, dtype=tensor.dtype)
  return all_sum(tf.tensordot(here, tensor, 0)), k


def own(tensor, axis):
  """The replica's part of a tensor of the whole batch that lies along an axis, within a `function`; elsewhere all of it."""
  replica = _replica()
  if replica is None:
    return tensor
  mine = part(tensor.shape[axis], _number(replica))
  return tf.gather(tensor, tf.range(mine.start, mine.stop), axis=axis)


def whole(tensor, n_items, axis):
  """A tensor of the whole batch from those of its parts, within a `function`; elsewhere the tensor as it is.

  Args:
    tensor: of this replica's part.
    n_items: size of the batch.
    axis: along which it lies.
  """
  replica = _replica()
  if replica is None:
    return tensor
  mine = part(n_items, _number(replica))
  return all_sum(tf.pad(tensor, [[mine.start, n_items - mine.stop] if k == axis else [0, 0] for k in range(tensor.shape.rank)]))


def total(arrays):
  """Sums over the workers, the same bits in each, outside of a `function`; all workers must call it.

  Args:
    arrays: list of arrays, of the same shapes in all workers; float32, or else added as float64.

  Returns:
    List of arrays of the same shapes and dtypes; the arguments themselves if there is one worker only.
  """
  if _here.n_workers == 1:
    return arrays
  arrays = [np.asarray(array) for array in arrays]
  flat = np.concatenate([array.ravel() for array in arrays], dtype=np.result_type(np.float32, *arrays))
  kind = (flat.size, flat.dtype)
  if kind not in _here.sums:  # built here, because TensorFlow warns of a function that it has to build often by itself
    on_all = tf.function(lambda flat: _here.strategy.run(_total, (flat,)))
    _here.sums[kind] = on_all.get_concrete_function(tf.TensorSpec(flat.shape, flat.dtype))
  first = _here.strategy.experimental_local_results(_here.sums[kind](tf.constant(flat)))[0]
  parts = np.split(first.numpy(), np.cumsum([array.size for array in arrays])[:-1])
  return [values.reshape(array.shape).astype(array.dtype) for values, array in zip(parts, arrays)]


def _total(flat):
  counts = _number(_replica()) % _here.n_local == 0  # of several replicas of a worker, the first one's
  return all_sum(flat if counts else tf.zeros_like(flat))


def from_leader(arrays):
  """The leader's arrays, as `total`."""
  return total(arrays if leads() else [np.zeros_like(array) for array in arrays])


def differing(values):
  """Names of the values that are not the same in all workers; all must call it.

  Args:
    values: dict of what `repr` tells apart, with the same names in all workers.

  Returns:
    list of str, the same in all.
  """
  if not values:  # TensorFlow dies of the sum of nothing
    return []
  here = np.array([zlib.crc32(repr(value).encode()) for value in values.values()], float)
  [leaders] = from_leader([here])
  [others] = total([(here != leaders).astype(float)])
  return [name for name, is_other in zip(values, others) if is_other]

"""Processes that share a batch: each plays and learns from its part of the environments, on its part of the cores.

Emulators hold Python's lock, so threads would wait for each other. All processes run the same program and meet where arrays
have to be added up: `Group.sum`. The first one leads: it holds the optimizer, writes the files and prints.
"""
import multiprocessing
from multiprocessing import connection
import sys
import threading

import numpy as np

from files import UserError
import machine

CHUNK = 2 ** 20  # numbers that are exchanged at a time


class Group:
  """The processes of a run, seen from one of them.

  Args:
    rank: number of this process; 0 leads.
    size: how many there are.
    buffer: shared memory for 2 x size x CHUNK numbers.
    barrier: multiprocessing.Barrier of all.
  """

  def __init__(self, rank=0, size=1, buffer=None, barrier=None):
    self.rank, self.size, self._barrier, self._turn = rank, size, barrier, 0
    if size > 1:
      self._buffers = np.frombuffer(buffer).reshape(2, size, CHUNK)

  def sum(self, arrays):
    """Sums over all processes, in float64 and in the same order, so that each gets the same numbers.

    Args:
      arrays: list of arrays, of the same shapes in all processes, which all must call this.

    Returns:
      List of arrays of the same shapes and dtypes; the arguments themselves if there is one process only.

    Raises:
      UserError: another process has ended.
    """
    if self.size == 1:
      return arrays
    arrays = [np.asarray(array) for array in arrays]
    flat = np.concatenate([array.ravel() for array in arrays])
    for start in range(0, len(flat), CHUNK):
      part = flat[start:start + CHUNK]
      buffer = self._buffers[self._turn][:, :len(part)]
      self._turn = 1 - self._turn  # who is late may still read the other one
      buffer[self.rank] = part
      try:
        self._barrier.wait()
      except threading.BrokenBarrierError:
        raise UserError('another process of this run has ended: see above') from None
      except AssertionError:  # the barrier's lock, when the user's interruption comes at the wrong moment
        raise KeyboardInterrupt from None
      part[:] = buffer.sum(0)
    parts = np.split(flat, np.cumsum([array.size for array in arrays])[:-1])
    return [part.reshape(array.shape).astype(array.dtype) for part, array in zip(parts, arrays)]

  def from_leader(self, arrays):
    """The arrays of process 0; those of the others give shapes and dtypes only."""
    return self.sum(arrays if self.rank == 0 else [np.zeros_like(array) for array in arrays])


def start(size, work):
  """Starts size - 1 further processes that call work(group) and end with this one, and divides the cores among all.

  To be called before TensorFlow computes anything, so that it sees this process's share of the cores.

  Args:
    size: processes, this one included.
    work: function of a module.

  Returns:
    Group of this process.
  """
  if size == 1:
    return Group()
  cores = machine.cores()
  shares = [cores[rank::size] or cores for rank in range(size)]
  context = multiprocessing.get_context('spawn')  # TensorFlow does not survive a fork
  shared = size, context.RawArray('d', 2 * size * CHUNK), context.Barrier(size)
  others = [context.Process(target=_assist, args=(work, rank, *shared), daemon=True) for rank in range(1, size)]
  for process, share in zip(others, shares[1:]):
    machine.keep_to(share)  # it inherits this
    process.start()
  machine.keep_to(shares[0])

  def watch():
    running = list(others)
    while running:
      connection.wait([process.sentinel for process in running])
      if any(process.exitcode for process in running):
        shared[-1].abort()
      running = [process for process in running if process.exitcode is None]

  threading.Thread(target=watch, daemon=True).start()
  return Group(0, *shared)


def _assist(work, rank, *shared):
  machine.follow_parent()  # the first process ends all
  try:
    work(Group(rank, *shared))
  except UserError:  # the first process has the same, and says so
    sys.exit(1)

"""How processes of Figures 4 and 5 add up arrays; threads stand for them. Whole runs of processes: test_atari_scripts.py."""
import concurrent.futures
import pathlib
import sys
import threading

import numpy as np
import pytest

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / 'Figure_4_and_5_ATARI'))

import files  # noqa: E402
import processes  # noqa: E402

SIZE = 3


def in_all(function):
  """Values of function(group), called by all of a Group at the same time."""
  shared = SIZE, np.zeros(2 * SIZE * processes.CHUNK), threading.Barrier(SIZE)
  with concurrent.futures.ThreadPoolExecutor(SIZE) as pool:
    return list(pool.map(lambda rank: function(processes.Group(rank, *shared)), range(SIZE)))


def test_sums_of_arrays_of_all_sizes():
  rng = np.random.default_rng(0)
  rounds = [[[rng.normal(size=(3, 2)), np.arange(4) + rank, np.float64(rank), np.zeros(0)] for rank in range(SIZE)],
            [[rng.normal(size=2 * processes.CHUNK + 5).astype(np.float32)] for _ in range(SIZE)],
            [[np.full(2, rank)] for rank in range(SIZE)]]
  found = in_all(lambda group: [group.sum(arrays[group.rank]) for arrays in rounds])
  for k, arrays in enumerate(rounds):
    expected = [sum(np.asarray(array, np.float64) for array in same) for same in zip(*arrays)]
    for of_rank in found:
      for a, b, own, first in zip(of_rank[k], expected, arrays[0], found[0][k]):
        assert a.dtype == own.dtype and a.shape == own.shape
        np.testing.assert_allclose(a, b, rtol=1e-6 if own.dtype == np.float32 else 1e-15)
        assert np.array_equal(a, first)  # the same bits for all


def test_arrays_of_the_leader():
  found = in_all(lambda group: group.from_leader([np.full(3, 5.0 + group.rank), np.array(7 * group.rank + 1)]))
  assert all(np.array_equal(a, [5, 5, 5]) and b == 1 for a, b in found)


def test_alone_nothing_is_exchanged():
  arrays = [np.ones(2)]
  assert processes.Group().sum(arrays) is arrays and processes.Group().from_leader(arrays) is arrays


def test_says_that_another_process_has_ended():
  def work(group):
    if group.rank == 2:
      group._barrier.abort()
    else:
      group.sum([np.ones(2)])

  with pytest.raises(files.UserError, match='has ended'):
    in_all(work)

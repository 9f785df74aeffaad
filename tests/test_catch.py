"""Catch: what it shows, where its ball and its paddle go, and how games begin and end."""
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / 'Figure_4_and_5_ATARI'))  # after the Figure 3 folder, whose experiment.py is the same file

import catch  # noqa: E402
from environments import make  # noqa: E402


def cells(frame):
  """The grid of Catch that a frame shows, bool [N_ROWS, N_COLUMNS]; every cell is of one colour."""
  rows, columns = catch.cell_edges(catch.N_ROWS), catch.cell_edges(catch.N_COLUMNS)
  grid = [[np.unique(frame[rows[i]:rows[i + 1], columns[j]:columns[j + 1]]) for j in range(catch.N_COLUMNS)]
          for i in range(catch.N_ROWS)]
  assert all(len(levels) == 1 for row in grid for levels in row)
  return np.array(grid)[:, :, 0] > 0


@pytest.mark.parametrize('level_name, n_visible, n_locked', [('catch', 9, 0), ('catch_cue_delay', 2, 6)])
def test_catch(level_name, n_visible, n_locked):
  """A slow player that looks at the pixels catches every ball."""
  environment = make(level_name, 20)
  frames, seen = environment.reset(3), set()
  for _ in range(5):
    column = [int(np.flatnonzero(cells(frame)[0])[0]) for frame in frames]
    seen |= set(column)
    assert all(np.flatnonzero(cells(frame)[-1]).tolist() == [2] for frame in frames)
    for n in range(9):
      paddle = [int(np.flatnonzero(cells(frame)[-1])[0]) for frame in frames]
      for frame, ball in zip(frames[:5], column):
        shown = np.argwhere(cells(frame)[:-1]).tolist()
        assert shown == ([[n, ball]] if n < n_visible else [])
      assert (set(paddle) == {2}) == (n <= n_locked)
      frames, reward, terminated, truncated = environment.step(1 + np.sign(np.subtract(column, paddle)))
      assert np.all(reward == (1 if n == 8 else 0)) and np.all(terminated == (n == 8)) and not truncated.any()
  assert seen == set(range(5)) and catch.OPTIMAL_RETURN == 1
  assert environment.action_meanings == ('LEFT', 'STAY', 'RIGHT') and frames.shape == (20, 84, 84)


def test_catch_by_chance():
  environment = make('catch', 500)
  for policy in (lambda rng: rng.integers(3, size=500), lambda rng: np.zeros(500, int)):
    environment.reset(1)
    rng = np.random.default_rng(0)
    reward = np.array([environment.step(policy(rng))[1] for _ in range(9 * 20)])
    assert abs(reward.sum() / (500 * 20) - catch.CHANCE_RETURN) < 0.03
  assert catch.CHANCE_RETURN == -0.6


def test_balls_of_catch_fall_in_all_columns_alike():
  """Independent from game to game and side by side; 20,000 balls, five standard deviations."""
  games = catch.Catch(500)
  games.reset(seed=0)
  balls = np.array([games.ball.copy() for _ in range(40) if games.reset()])
  assert np.abs(np.bincount(balls.ravel(), minlength=5) / balls.size - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / balls.size)
  for first, second in ((balls[:-1], balls[1:]), (balls[:, :-1], balls[:, 1:])):
    assert abs((first == second).mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / first.size)


def test_catch_screen_and_masked_reset():
  environment = make('catch', 4)
  frames = environment.reset(0)
  assert np.array_equal(environment.screen(), np.stack([frames[0]] * 3, -1))
  games = catch.Catch(4)
  games.reset(seed=0)
  games.step([0, 0, 0, 0])
  frames, _ = games.reset(options={'reset_mask': np.array([True, False, False, False])})
  assert games.row.tolist() == [0, 1, 1, 1] and games.paddle.tolist() == [2, 1, 1, 1]
  assert games.observation_space.contains(frames)

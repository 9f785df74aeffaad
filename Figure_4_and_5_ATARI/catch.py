"""Catch: a ball falls through a grid of pixels, a paddle on the bottom row catches it (after DeepMind's bsuite).

A game lasts N_ROWS - 1 steps. In each the paddle moves left, stays or moves right, and the ball falls by one row; at the end
the reward is +1 if the ball is on the paddle, else -1. The column of the ball is drawn at random, the paddle starts in the
middle. With the cue delay the ball shows in the first frames only, and the paddle stands still until just before the end: the
ball's column must be remembered in between.
"""
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
import numpy as np

from draws import Draws

N_ROWS, N_COLUMNS = 10, 5
SIZE = 84                    # edge of a frame [pixels]
# With the cue delay:
N_VISIBLE = 2                # frames that show the ball
N_LOCKED = 6                 # steps in which the paddle stands still
ACTION_MEANINGS = ('LEFT', 'STAY', 'RIGHT')
OPTIMAL_RETURN = 1.0
CHANCE_RETURN = 2 / N_COLUMNS - 1  # the ball's column is uniform, whatever a paddle that ignores it does


def cell_edges(n_cells, size=SIZE):
  """First pixel of each of n cells that divide `size` pixels, and `size`; [n_cells + 1]."""
  return np.arange(n_cells + 1) * size // n_cells


class Catch(VectorEnv):
  """B games of Catch.

  It does not reset itself: `reset` takes options={'reset_mask': bool [B]}.

  Args:
    num_envs: B.
    cue_delay: show the ball in the first N_VISIBLE frames only, let the paddle move after N_LOCKED steps.
    first_game, n_games: see draws.py.

  Attributes:
    ball, paddle: columns, int [B].
    row: of the ball, int [B].
  """
  metadata = {'autoreset_mode': AutoresetMode.DISABLED}

  def __init__(self, num_envs, cue_delay=False, first_game=0, n_games=0):
    self.num_envs, self._games = num_envs, (num_envs, first_game, n_games)
    self._draws = None
    self.n_visible, self.n_locked = (N_VISIBLE, N_LOCKED) if cue_delay else (N_ROWS, 0)
    self.single_observation_space = Box(0, 255, (1, SIZE, SIZE), np.uint8)
    self.single_action_space = Discrete(len(ACTION_MEANINGS))
    self.observation_space = batch_space(self.single_observation_space, num_envs)
    self.action_space = batch_space(self.single_action_space, num_envs)
    self.row, self.ball, self.paddle = (np.zeros(num_envs, int) for _ in range(3))
    pixel_row = np.repeat(np.arange(N_ROWS), np.diff(cell_edges(N_ROWS)))          # [84]
    pixel_column = np.repeat(np.arange(N_COLUMNS), np.diff(cell_edges(N_COLUMNS)))  # [84]
    self._in_row = pixel_row == np.arange(N_ROWS)[:, None]                         # [N_ROWS, 84]
    self._in_column = pixel_column == np.arange(N_COLUMNS)[:, None]                # [N_COLUMNS, 84]

  def reset(self, *, seed=None, options=None):
    """Begins games: all, or those of options['reset_mask'].

    Returns:
      Frames, uint8 [B, 1, 84, 84], of all games; an empty dict.
    """
    super().reset(seed=seed)
    if seed is not None or self._draws is None:
      self._draws = Draws(lambda n: self.np_random.integers(N_COLUMNS, size=n), *self._games)
    mask = (options or {}).get('reset_mask', np.ones(self.num_envs, bool))
    self.row[mask] = 0
    self.paddle[mask] = N_COLUMNS // 2
    self.ball[mask] = self._draws.of(mask)
    return self._frames(), {}

  def step(self, actions):
    """One step of all games; actions: int [B], indices of ACTION_MEANINGS.

    Returns:
      Frames, uint8 [B, 1, 84, 84]; rewards, float32 [B]; terminated, bool [B]; truncated, bool [B]; an empty dict.
    """
    moved = np.clip(self.paddle + np.asarray(actions) - 1, 0, N_COLUMNS - 1)
    self.paddle = np.where(self.row < self.n_locked, self.paddle, moved)
    self.row = self.row + 1
    terminated = self.row == N_ROWS - 1
    reward = np.where(terminated, np.where(self.ball == self.paddle, 1, -1), 0).astype(np.float32)
    return self._frames(), reward, terminated, np.zeros(self.num_envs, bool), {}

  def _frames(self):
    visible = self.row < self.n_visible
    ball = (self._in_row[self.row] & visible[:, None])[:, :, None] & self._in_column[self.ball][:, None]  # [B, 84, 84]
    paddle = self._in_row[-1][:, None] & self._in_column[self.paddle][:, None]                            # [B, 84, 84]
    return np.where(ball | paddle, 255, 0).astype(np.uint8)[:, None]

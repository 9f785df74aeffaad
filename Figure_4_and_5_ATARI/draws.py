"""What is drawn for a game when it begins, the same however many processes share the games."""
import numpy as np


class Draws:
  """The k-th game of an environment gets its own number of the k-th draw for all environments.

  Args:
    draw: function of a number of games that returns as many numbers.
    n_envs: B.
    first_game, n_games: number of the first of these among all; 0: these are all.
  """

  def __init__(self, draw, n_envs, first_game=0, n_games=0):
    self._draw, self._first, self._n_games = draw, first_game, n_games or n_envs
    self._draws, self._begun = [], np.zeros(n_envs, int)

  def of(self, games):
    """Numbers for those games, bool [B], that begin now."""
    while len(self._draws) <= self._begun[games].max(initial=-1):
      self._draws.append(self._draw(self._n_games)[self._first:])
    values = [self._draws[self._begun[b]][b] for b in np.flatnonzero(games)]
    self._begun[games] += 1
    return np.array(values)

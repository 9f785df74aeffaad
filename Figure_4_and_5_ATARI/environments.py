"""The games of figures 4 and 5, many at a time: Atari games, Catch, and Catch with a delay.

Notation: B games are played side by side. A frame is what the agent sees: 84 x 84 grey pixels, once per agent step. An agent
step lasts `frame_skip` emulator frames, of which it sees the last.

`Environment` plays on any gymnasium.vector.VectorEnv of frames and discrete actions whose reset takes a mask (of those with
autoreset: NEXT_STEP, which never gets its turn). Everything random depends on the seeds of `make` and `reset` only.
"""
import math
from typing import NamedTuple

import ale_py
from ale_py import ALEInterface, roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
import numpy as np

import catch
from draws import Draws
from files import UserError

SIZE = 84  # edge of a frame [pixels]
FIRE = 1   # the emulator's code of that action
# The emulator's codes of the actions that matter; in other games the game's minimal set.
ACTION_CODES = {
    'pong': (0, 3, 4),                     # stay, up, down: the joystick's right moves the paddle up
    'fishing_derby': (0, 1, 2, 3, 4, 5),   # the line along each axis, and the button, which reels a fish in faster
}
ACTION_NAMES = {'pong': ('STAY', 'UP', 'DOWN')}
CATCH = {'catch': False, 'catch_cue_delay': True}  # whether with the delay
NO_LIMIT = 2 ** 31 - 2  # of the emulator's own count of frames
# Emulator frames after which a game ends whatever the limit: shortly before 2^16 Pong sets its scores back and plays on.
MOST_FRAMES = {'pong': 64000}


class Settings(NamedTuple):
  """How the games are played; the defaults are the published program's. Catch uses the last five alone.

  Attributes:
    frame_skip: emulator frames per agent step.
    repeat_action_probability: in each emulator frame, that the last frame's action acts again ("sticky actions").
    noop_max: most frames without action at the beginning of a game; their number is uniform from 0.
    maxpool: show the maximum of the last two emulator frames instead of the last.
    fire_reset: press the button at the beginning of a game.
    threaded: ale_py's vector environment, with threads of its own. `Environment.reset` takes it a few hundredths of a second per
      game: with two threads it is faster where some 190 agent steps or more follow (README.md, Speed). It has no colour screens.
    n_threads: how many threads, if threaded.
    max_episode_len: agent steps after which a game is stopped.
    max_episode_len_jitter: how far that varies, uniformly, from game to game.
    subtract_background: show how frames differ from the game's `background` instead of the frames.
    first_game, n_games: number of the first of these games among n_games that several processes play; 0: these are all. What is
      drawn for a game does not depend on who plays it.
  """
  frame_skip: int = 4
  repeat_action_probability: float = 0.25
  noop_max: int = 29
  maxpool: bool = False
  fire_reset: bool = False
  threaded: bool = False
  n_threads: int = 1
  max_episode_len: int = 200
  max_episode_len_jitter: int = 25
  subtract_background: bool = False
  first_game: int = 0
  n_games: int = 0

  def check(self):
    """Raises UserError where a value makes no sense."""
    for name, least in (('frame_skip', 1), ('noop_max', 0), ('n_threads', 1), ('max_episode_len', 1),
                        ('max_episode_len_jitter', 0)):
      if getattr(self, name) < least:
        raise UserError(f'{name} must be at least {least}, not {getattr(self, name)}')
    if not 0 <= self.repeat_action_probability <= 1:
      raise UserError(f'repeat_action_probability must be between 0 and 1, not {self.repeat_action_probability}')


def atari_games():
  """Names of the games that come with ale_py and have a single-player mode."""
  return [name for name in sorted(roms.get_all_rom_ids()) if ALEInterface.isSupportedROM(roms.get_rom_path(name))]


def make(level_name, n_envs, seed=0, settings=Settings()):
  """Games for B agents.

  Args:
    level_name: 'atari/NAME' as in `atari_games`, 'catch' or 'catch_cue_delay'.
    n_envs: B.
    seed: of everything random, beside the one that `Environment.reset` is given.
    settings: Settings.

  Returns:
    Environment, to be reset before its first step.

  Raises:
    UserError: no such game, or values that make no sense.
  """
  settings.check()
  if n_envs < 1:
    raise UserError(f'at least one environment is needed, not {n_envs}')
  games = _games(level_name, n_envs, settings)
  longest = MOST_FRAMES.get(level_name.removeprefix('atari/'), NO_LIMIT) // settings.frame_skip
  return Environment(*games, seed, settings, background(level_name, settings) if settings.subtract_background else None, longest)


def _games(level_name, n_envs, settings):
  """First arguments of Environment."""
  if level_name in CATCH:
    games = catch.Catch(n_envs, CATCH[level_name], settings.first_game, settings.n_games)
    return games, range(len(catch.ACTION_MEANINGS)), catch.ACTION_MEANINGS
  kind, _, name = level_name.partition('/')
  if kind != 'atari' or name not in atari_games():
    raise UserError(f'no game {level_name!r}; there are {", ".join(CATCH)}, and as atari/NAME: '
                    f'{", ".join(atari_games())}')
  codes = action_codes(name)
  names = ACTION_NAMES.get(name, [ale_py.Action(code).name for code in codes])
  if not settings.threaded:
    return Emulators(name, n_envs, settings), codes, names
  games = AtariVectorEnv(
      name, n_envs, num_threads=settings.n_threads, stack_num=1, grayscale=True, img_height=SIZE, img_width=SIZE,
      frameskip=settings.frame_skip, maxpool=settings.maxpool, noop_max=settings.noop_max + 1,  # one more than it ever takes
      use_fire_reset=settings.fire_reset, episodic_life=False, reward_clipping=False, full_action_space=True,
      repeat_action_probability=settings.repeat_action_probability, max_num_frames_per_episode=NO_LIMIT,
      autoreset_mode=AutoresetMode.NEXT_STEP)
  return games, codes, names


def background(level_name, settings=Settings(), n_steps=1000):
  """What a game shows most of the time: the median of frames in which one agent acts at random, whatever the length of games.

  Args:
    level_name, settings: as for `make`.
    n_steps: agent steps.

  Returns:
    float32 [84, 84].
  """
  of_one = settings._replace(subtract_background=False, threaded=False, first_game=0, n_games=0, max_episode_len=n_steps + 1,
                             max_episode_len_jitter=0)
  environment = make(level_name, 1, 0, of_one)
  actions = np.random.default_rng(0).integers(environment.n_actions, size=n_steps)
  environment.reset()
  return np.median([environment.step([action])[0][0] for action in actions], 0).astype(np.float32)


class Environment:
  """B games that begin anew when they end, and end at a limit of their length.

  After a step in which a game ended its frame is the FIRST one of the next game; the last one is not shown.

  Args:
    games: gymnasium.vector.VectorEnv.
    codes: int [A], its code of each action.
    action_meanings: A names.
    seed: of everything random.
    settings: Settings.
    background: what frames are compared with, [84, 84], or None.
    longest: agent steps after which a game ends whatever the limit.

  Attributes:
    n_envs, n_actions: B, A.
    action_meanings: A names.
    max_episode_len: the limit that is now in force [agent steps].
  """

  def __init__(self, games, codes, action_meanings, seed, settings, background=None, longest=NO_LIMIT):
    self.n_envs, self.n_actions, self.action_meanings = games.num_envs, len(codes), tuple(action_meanings)
    self.games = games
    self._codes, self._seed, self._settings, self._background = np.asarray(codes), seed, settings, background
    self.max_episode_len, self._longest = settings.max_episode_len, longest
    # The emulator's own vector environment counts on from the seed; the others know who they are.
    self._first_seed = settings.first_game if isinstance(games, AtariVectorEnv) else 0

  def set_max_episode_len(self, length):
    """Sets the limit of games that begin from now on [agent steps]."""
    self.max_episode_len = max(1, int(length))

  def reset(self, seed=0):
    """Begins all games; the same seed (of an update, say) gives the same games, whatever was played before.

    Returns:
      Frames [B, 84, 84]: grey values, uint8, or how they differ from the background, float32.
    """
    self._rng = np.random.default_rng([self._seed, seed])
    frames, _ = self.games.reset(seed=int(self._rng.integers(2 ** 30)) + self._first_seed)
    self._steps = np.zeros(self.n_envs, int)
    self._draws = Draws(self._draw_limits, self.n_envs, self._settings.first_game, self._settings.n_games)
    self._limits = self._draws.of(np.ones(self.n_envs, bool))
    self._frames = frames.reshape(self.n_envs, SIZE, SIZE)
    return self._seen()

  def step(self, actions):
    """One agent step of all games.

    Args:
      actions: int [B], from 0 to A - 1.

    Returns:
      Frames [B, 84, 84], see `reset`; true rewards, float32 [B]; terminated, bool [B]; truncated at the limit, bool [B].
    """
    frames, reward, terminated, truncated, _ = self.games.step(self._codes[np.asarray(actions)])
    self._steps += 1
    truncated = (truncated | (self._steps >= self._limits)) & ~terminated
    done = terminated | truncated
    if done.any():
      first, _ = self.games.reset(options={'reset_mask': done})
      frames = np.where(done.reshape(-1, *[1] * (frames.ndim - 1)), first, frames)
      self._steps[done] = 0
      self._limits[done] = self._draws.of(done)
    self._frames = frames.reshape(self.n_envs, SIZE, SIZE)
    return self._seen(), reward.astype(np.float32), terminated, truncated

  def screen(self):
    """What a spectator of the first game sees: the emulator's colours, uint8 [210, 160, 3], or else the frame thrice."""
    if isinstance(self.games, Emulators):
      return self.games.emulators[0].screen()
    return np.repeat(self._frames[0][:, :, None], 3, 2)

  def _seen(self):
    return self._frames if self._background is None else self._frames - self._background

  def _draw_limits(self, n):
    jitter = self._settings.max_episode_len_jitter
    limits = self._rng.integers(max(1, self.max_episode_len - jitter), self.max_episode_len + jitter + 1, n)
    return np.minimum(limits, self._longest)


def action_codes(name):
  """The emulator's codes of the actions of an Atari game; int, A of them."""
  if name in ACTION_CODES:
    return ACTION_CODES[name]
  return tuple(int(action.value) for action in Emulator(name, Settings()).ale.getMinimalActionSet())


class Emulator:
  """One Atari game whose chance is drawn from NumPy.

  The emulator's own generator can be seeded only by loading the game anew, which takes a tenth of a second. So the sticky
  actions and the beginnings are drawn here; a seed also takes the emulator back to its state after loading.

  Args:
    name: of the game.
    settings: Settings.
  """

  def __init__(self, name, settings):
    ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    self.ale = ALEInterface()
    self.ale.setFloat('repeat_action_probability', 0.0)
    self.ale.setInt('random_seed', 0)
    self.ale.loadROM(roms.get_rom_path(name))
    self._start = self.ale.cloneState(include_rng=True)
    self._settings = settings
    self._actions = [ale_py.Action(code) for code in range(18)]
    height, width = self.ale.getScreenDims()
    self.grey = np.zeros((2, height, width), np.uint8)  # the last frame, and the one before if they are pooled

  def begin(self, seed=None):
    """Begins a game; a seed (int or ints) determines this one and those that follow."""
    if seed is not None:
      self._rng = np.random.default_rng(seed)
      self.ale.restoreState(self._start)  # some games (Fishing Derby) begin differently after what was played before
    self.ale.reset_game()
    self._last = 0
    self._play([FIRE] * self._settings.fire_reset + [0] * self._rng.integers(self._settings.noop_max + 1))
    if self.ale.game_over():
      self.ale.reset_game()
    self.ale.getScreenGrayscale(self.grey[0])

  def step(self, code):
    """One agent step. Returns its reward and whether the game is over."""
    skip, pool = self._settings.frame_skip, self._settings.maxpool
    reward = self._play([code] * (skip - 1 if pool else skip))
    if pool:
      self.ale.getScreenGrayscale(self.grey[1])
      reward += self._play([code])
    self.ale.getScreenGrayscale(self.grey[0])
    if pool:
      np.maximum(*self.grey, out=self.grey[0])
    return reward, self.ale.game_over()

  def screen(self):
    """The colour screen, uint8 [210, 160, 3] (some games are higher)."""
    return self.ale.getScreenRGB()

  def _play(self, codes):
    """Emulator frames with these actions, up to the end of the game; returns the reward."""
    reward = 0
    sticky = self._rng.random(len(codes)) < self._settings.repeat_action_probability
    for code, repeat in zip(codes, sticky.tolist()):
      if self.ale.game_over():
        break
      if not repeat:
        self._last = code
      reward += self.ale.act(self._actions[self._last])
    return reward


class Emulators(VectorEnv):
  """B Emulators as a vector environment that does not reset itself; its actions are the emulator's 18 codes.

  Args:
    name: of the game.
    num_envs: B.
    settings: Settings.
  """
  metadata = {'autoreset_mode': AutoresetMode.DISABLED}

  def __init__(self, name, num_envs, settings):
    self.num_envs = num_envs
    self.emulators = [Emulator(name, settings) for _ in range(num_envs)]
    self._first_game = settings.first_game
    self.single_observation_space = Box(0, 255, (1, SIZE, SIZE), np.uint8)
    self.single_action_space = Discrete(18)
    self.observation_space = batch_space(self.single_observation_space, num_envs)
    self.action_space = batch_space(self.single_action_space, num_envs)

  def reset(self, *, seed=None, options=None):
    """Begins games: all, or those of options['reset_mask']; game b has the seed (seed, first_game + b).

    Returns:
      Frames, uint8 [B, 1, 84, 84], of all games; an empty dict.
    """
    mask = (options or {}).get('reset_mask', np.ones(self.num_envs, bool))
    for b in np.flatnonzero(mask):
      self.emulators[b].begin(None if seed is None else [seed, self._first_game + b])
    return self._frames(), {}

  def step(self, actions):
    """One agent step of all games; actions: int [B].

    Returns:
      Frames, uint8 [B, 1, 84, 84]; rewards, float32 [B]; terminated, bool [B]; truncated, bool [B]; an empty dict.
    """
    reward, over = zip(*(emulator.step(code) for emulator, code in zip(self.emulators, np.asarray(actions).tolist())))
    return self._frames(), np.array(reward, np.float32), np.array(over), np.zeros(self.num_envs, bool), {}

  def _frames(self):
    return area_resize(np.stack([emulator.grey[0] for emulator in self.emulators]))[:, None]


def area_resize(images, size=SIZE):
  """Each pixel of the result is the mean of the area it covers (OpenCV's INTER_AREA).

  Args:
    images: uint8 [B, height, width].
    size: edge of the results.

  Returns:
    uint8 [B, size, size].
  """
  height, width = images.shape[1:]
  across, down = _area_weights(width, size), _area_weights(height, size)
  x = images.reshape(-1, len(across)).astype(np.float32) @ across
  x = down.T @ x.reshape(len(images), -1, len(down), size)  # [B, groups of rows, rows of the result, size]
  return np.rint(x).astype(np.uint8).reshape(-1, size, size)


def _area_weights(n_in, n_out):
  """Weights [in, out] by which each of gcd(n_in, n_out) groups of pixels becomes pixels of another size."""
  n_groups = math.gcd(n_in, n_out)
  n_in, n_out = n_in // n_groups, n_out // n_groups
  left = np.arange(n_in)[:, None]  # a pixel covers [left, left + 1), one of the result what lies between two edges
  edges = np.arange(n_out + 1) * (n_in / n_out)
  overlap = np.minimum(left + 1, edges[1:]) - np.maximum(left, edges[:-1])
  return (np.maximum(overlap, 0) * (n_out / n_in)).astype(np.float32)

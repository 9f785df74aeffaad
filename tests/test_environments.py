"""The games of figures 4 and 5: frames, seeds, beginnings and ends, actions."""
import pathlib
import sys

from ale_py import ALEInterface, Action, roms
from absl import flags as absl_flags
import gymnasium
from gymnasium.vector import AutoresetMode, SyncVectorEnv
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / 'Figure_4_and_5_ATARI'))  # after the Figure 3 folder, whose experiment.py is the same file

import environments  # noqa: E402
from environments import Settings, make  # noqa: E402
from files import UserError  # noqa: E402
import schedules  # noqa: E402

PLAIN = Settings(repeat_action_probability=0.0, noop_max=0, max_episode_len=10 ** 6)  # no chance, no limit


def actions_for(environment, n_steps, seed=0):
  return np.random.default_rng(seed).integers(environment.n_actions, size=(n_steps, environment.n_envs))


def play(environment, actions):
  """Frames [N, B, 84, 84], rewards, terminated and truncated [N, B]."""
  return tuple(map(np.array, zip(*(environment.step(action) for action in actions))))


def area_oracle(image, size=84):
  """Mean over the area of each pixel of the result, one by one."""

  def covered(k, n):
    """Which of n pixels lie in pixel k of the result, and how much of each."""
    pixels = np.arange(int(k * n / size), int(np.ceil((k + 1) * n / size)))
    return pixels, np.minimum(pixels + 1, (k + 1) * n / size) - np.maximum(pixels, k * n / size)

  result = np.zeros((size, size))
  for row in range(size):
    rows, height = covered(row, image.shape[0])
    for column in range(size):
      columns, width = covered(column, image.shape[1])
      result[row, column] = np.average(image[np.ix_(rows, columns)], weights=np.outer(height, width))
  return result


# Frames

@pytest.mark.parametrize('name', ['pong', 'fishing_derby', 'air_raid'])
def test_frames_are_grey_and_shrunk_by_area(name):
  """Against a bare emulator; air_raid has 250 rows. Tolerance: one grey level, for rounding."""
  game = make(f'atari/{name}', 1, settings=PLAIN)
  bare = ALEInterface()
  bare.setFloat('repeat_action_probability', 0.0)
  bare.setInt('random_seed', 0)
  bare.loadROM(roms.get_rom_path(name))
  bare.reset_game()
  codes, frames = environments.action_codes(name), [game.reset(0)]
  screens, grey = [bare.getScreenRGB()], [bare.getScreenGrayscale()]
  for action in actions_for(game, 60):
    frames.append(game.step(action)[0])
    for _ in range(4):
      bare.act(Action(codes[action[0]]))
    screens.append(bare.getScreenRGB())
    grey.append(bare.getScreenGrayscale())
  assert np.array_equal(game.screen(), screens[-1])
  for k in (0, 1, 20, 60):
    if name != 'air_raid':  # some of the greys of PAL games are not the luminance of their colours
      assert np.abs(screens[k] @ [0.299, 0.587, 0.114] - grey[k]).max() <= 1
    assert np.abs(area_oracle(grey[k]) - frames[k][0]).max() <= 1
  assert len({frame.tobytes() for frame in frames}) > 20  # something moves


@pytest.mark.parametrize('options', [{}, dict(maxpool=True), dict(frame_skip=3), dict(frame_skip=1, fire_reset=True)])
@pytest.mark.parametrize('name', ['pong', 'fishing_derby', 'breakout', 'air_raid'])
def test_both_emulators_show_the_same_game(name, options):
  """ale_py's vector environment resizes with OpenCV and shares no code with ours but the emulator."""
  settings = PLAIN._replace(**options)
  ours, theirs = (make(f'atari/{name}', 2, settings=settings._replace(threaded=threaded)) for threaded in (False, True))
  assert np.abs(ours.reset(0).astype(int) - theirs.reset(0)).max() <= 1
  actions = actions_for(ours, 250)
  frames, reward, terminated, truncated = play(ours, actions)
  their_frames, *theirs = play(theirs, actions)
  distance = np.abs(frames.astype(int) - their_frames)
  assert distance.max() <= 1 and (distance > 0).mean() < 0.01
  for a, b in zip((reward, terminated, truncated), theirs):
    assert np.array_equal(a, b)
  assert frames.dtype == their_frames.dtype == np.uint8 and reward.dtype == np.float32
  assert terminated.dtype == truncated.dtype == bool


@pytest.mark.parametrize('threaded', [False, True])
def test_true_rewards(threaded):
  """A hit in Space Invaders is worth 5 to 30 points."""
  game = make('atari/space_invaders', 2, settings=Settings(max_episode_len=1000, threaded=threaded))
  game.reset(0)
  reward = play(game, actions_for(game, 400))[1]
  assert set(np.unique(reward)) > {0, 5, 10}


@pytest.mark.parametrize('level_name', ['atari/pong', 'catch'])
def test_background_is_what_stands_still(level_name):
  """Most of what is left without it is 0; the same with other seeds, numbers of games and emulators; nothing else changes."""
  frame = environments.background(level_name)
  assert frame.dtype == np.float32 and np.array_equal(frame, environments.background(level_name, Settings(threaded=True)))
  with_it, without = (make(level_name, 2, 3, Settings(subtract_background=value)) for value in (True, False))
  assert np.array_equal(with_it.reset(1), without.reset(1) - frame)
  actions = actions_for(without, 80)
  (differences, *others), (frames, *same) = play(with_it, actions), play(without, actions)
  assert differences.dtype == np.float32 and frames.dtype == np.uint8
  assert np.array_equal(differences, frames - frame) and all(map(np.array_equal, others, same))
  assert 0 < np.mean(differences != 0) < 0.05 and np.array_equal(with_it.screen(), without.screen())


# Chance

@pytest.mark.parametrize('level_name, threaded, n_steps', [
    ('atari/pong', False, 250), ('atari/pong', True, 250), ('atari/fishing_derby', False, 150),
    ('atari/assault', False, 150), ('catch', False, 1000), ('catch_cue_delay', False, 1000)])
def test_seeds(level_name, threaded, n_steps):
  settings = Settings(max_episode_len=100, threaded=threaded, n_threads=2)
  one, two, other = (make(level_name, 2, seed, settings) for seed in (5, 5, 6))
  actions = actions_for(one, n_steps)
  runs = [(game.reset(seed), *play(game, actions)) for game, seed in ((one, 7), (two, 7), (two, 8), (two, 7), (other, 7))]
  same = [all(np.array_equal(a, b) for a, b in zip(runs[0], run)) for run in runs]
  assert same == [True, True, False, True, False]
  frames, ended = runs[0][1], runs[0][3] | runs[0][4]
  assert ended.any(0).all() and not np.array_equal(frames[:, 0], frames[:, 1])  # the games of a batch differ, too


def test_sticky_actions_and_noops(monkeypatch):
  """Each emulator frame repeats with the probability; a game begins with 0 to 29 frames of no action, all equally likely."""
  game = environments.Emulator('pong', Settings())
  acted = []

  class Recorder:
    def __init__(self, ale):
      self._ale = ale

    def act(self, action):
      acted.append(int(action.value))
      return 0

    def __getattr__(self, name):
      return getattr(self._ale, name)

  game.ale = Recorder(game.ale)
  counts = []
  for k in range(300):
    acted.clear()
    game.begin(0 if k == 0 else None)
    counts.append(len(acted))
    assert set(acted) <= {0}
  assert min(counts) == 0 and max(counts) == 29 and len(set(counts)) == 30 and abs(np.mean(counts) - 14.5) < 1.6
  for probability in (0.0, 0.25, 1.0):
    game._settings = Settings(repeat_action_probability=probability, frame_skip=4)
    acted.clear()
    wanted = np.random.default_rng(1).integers(18, size=1000)
    for code in wanted.tolist():
      game.step(code)
    frames = np.array(acted)
    followed = frames == np.repeat(wanted, 4)
    expected = 1 - probability ** np.arange(1, 5) * 17 / 18  # a frame is wrong if it and those before it in the step repeat
    assert np.abs(followed.reshape(-1, 4).mean(0) - expected).max() < 0.04
    assert np.array_equal(frames[1:][~followed[1:]], frames[:-1][~followed[1:]])


def paddle_row(frame):
  """Centre of Pong's right paddle in a frame."""
  return np.flatnonzero(frame[14:77, 74] > 120).mean()


def test_sticky_actions_are_the_emulators():
  """How often the paddle leaps during alternating steps: in both emulators, and without sticky actions."""
  leaps = {}
  for label, probability in (('ours', 0.7), ('theirs', 0.7), ('none', 0.0)):
    game = make('atari/pong', 8, settings=Settings(
        repeat_action_probability=probability, max_episode_len=1000, threaded=label == 'theirs'))
    game.reset(0)
    play(game, np.zeros((20, 8), int))
    rows = [[paddle_row(frame) for frame in game.step(np.full(8, 1 + k % 2))[0]] for k in range(100)]
    leaps[label] = (np.abs(np.diff(rows, axis=0)) > 4).mean()
  assert abs(leaps['ours'] - leaps['theirs']) < 0.05 and leaps['theirs'] > leaps['none'] + 0.25


# Actions

def test_pong_stays_goes_up_and_goes_down():
  game = make('atari/pong', 3, settings=PLAIN)
  game.reset(0)
  frame = play(game, np.zeros((20, 3), int))[0][-1]
  before = [paddle_row(image) for image in frame]
  after = [paddle_row(image) for image in play(game, [[0, 1, 2]] * 3)[0][-1]]
  assert game.action_meanings == ('STAY', 'UP', 'DOWN') and game.n_actions == 3
  assert after[0] == before[0] and after[1] < before[1] - 10 and after[2] > before[2] + 10


def test_pong_begins_anew_by_itself():
  """Byte 9 of its memory counts 256 frames; when it overflows, the scores (bytes 13, 14) are set back and no end is told."""
  emulator = environments.Emulator('pong', Settings(repeat_action_probability=0, noop_max=0))
  emulator.begin(0)
  played, memory = [emulator.step(0) for _ in range(120)], emulator.ale.getRAM()
  assert (memory[9], memory[13], memory[14]) == (3, 2, 0) and sum(reward for reward, _ in played) == -2
  emulator.ale.setRAM(9, 255)
  played = [emulator.step(0) for _ in range(70)]
  memory = emulator.ale.getRAM()
  assert memory[9] == 0 and memory[13] + memory[14] < 2 and max(reward for reward, _ in played) > 0
  assert not any(over for _, over in played)


def test_games_of_pong_end_before_that(monkeypatch):
  """Whatever the limit says, and however many frames a step takes."""
  assert environments.MOST_FRAMES['pong'] < 2 ** 16 - 1000
  monkeypatch.setitem(environments.MOST_FRAMES, 'pong', 50)
  for frame_skip, steps in ((4, 12), (10, 5)):
    game = make('atari/pong', 2, settings=Settings(frame_skip=frame_skip, max_episode_len=10 ** 5, max_episode_len_jitter=0))
    game.reset(0)
    ends = play(game, np.zeros((steps, 2), int))[3]
    assert ends[-1].all() and not ends[:-1].any()


def test_fishing_derby_moves_the_line():
  """Every direction moves something, the button alone nothing; with a fish on the hook the button reels it in faster."""
  game = make('atari/fishing_derby', 6, settings=PLAIN)
  game.reset(0)
  play(game, np.zeros((15, 6), int))
  frames = play(game, [range(6)] * 6)[0][-1]
  differs = [not np.array_equal(frame, frames[0]) for frame in frames]
  assert dict(zip(game.action_meanings, differs)) == dict(NOOP=False, FIRE=False, UP=False, RIGHT=True, LEFT=True, DOWN=True)
  play(game, [[5] * 6] * 3)
  lower = game.step([5] * 6)[0][0]
  assert not np.array_equal(play(game, [[0, 2, 0, 0, 0, 0]] * 6)[0][-1][0], game.step([0, 2, 0, 0, 0, 0])[0][1])  # it can rise
  assert lower.shape == (84, 84)
  ale = game.games.emulators[0].ale

  def frames_until_reward(state, code):
    ale.restoreState(state)
    return next((k for k in range(500) if ale.act(Action(code)) > 0), 500)

  rng, code, found = np.random.default_rng(0), 5, False
  ale.reset_game()
  for k in range(60):
    if k % 3 == 0:
      code = int(rng.choice([2, 3, 4, 5, 5, 5]))
    for _ in range(16):
      ale.act(Action(code))
    state = ale.cloneState()
    found = found or frames_until_reward(state, 1) + 100 < min(frames_until_reward(state, 0), 500)
    ale.restoreState(state)
  assert found


def test_other_games_have_their_minimal_set():
  assert make('atari/breakout', 1).action_meanings == ('NOOP', 'FIRE', 'RIGHT', 'LEFT')
  assert make('atari/seaquest', 1).n_actions == 18


# Beginnings and ends

class Count(gymnasium.Env):
  """Shows how often it was reset and how many steps it has made since; ends after `length` steps."""
  observation_space = gymnasium.spaces.Box(0, 255, (84, 84), np.uint8)
  action_space = gymnasium.spaces.Discrete(2)

  def __init__(self, length):
    self.length, self.n_resets = length, 0

  def _frame(self):
    return np.array([self.n_resets % 256, self.n_steps % 256] + [0] * (84 * 84 - 2), np.uint8).reshape(84, 84)

  def reset(self, *, seed=None, options=None):
    self.n_resets, self.n_steps = self.n_resets + 1, 0
    return self._frame(), {}

  def step(self, action):
    self.n_steps += 1
    return self._frame(), float(action) * self.n_steps, self.n_steps == self.length, False, {}


@pytest.mark.parametrize('mode', [AutoresetMode.DISABLED, AutoresetMode.NEXT_STEP])
def test_a_game_begins_where_the_last_one_ended(mode):
  """Also: any vector environment of gymnasium will do. Games end by themselves after 3 and never; the limit is 5."""
  games = SyncVectorEnv([lambda: Count(3), lambda: Count(1000)], autoreset_mode=mode)
  settings = Settings(max_episode_len=5, max_episode_len_jitter=0)
  environment = environments.Environment(games, [0, 1], 'ab', 0, settings)
  assert environment.reset(0)[:, 0, :2].tolist() == [[1, 0], [1, 0]]
  frames, reward, terminated, truncated = play(environment, np.ones((11, 2), int))
  assert frames[:, 0, 0, :2].tolist() == [[1 + n // 3, n % 3] for n in range(1, 12)]  # the third step shows the next game
  assert frames[:, 1, 0, :2].tolist() == [[1 + n // 5, n % 5] for n in range(1, 12)]
  assert reward[:, 0].tolist() == [1, 2, 3] * 3 + [1, 2]  # the last reward is not lost
  assert np.flatnonzero(terminated[:, 0]).tolist() == [2, 5, 8] and not truncated[:, 0].any()
  assert np.flatnonzero(truncated[:, 1]).tolist() == [4, 9] and not terminated[:, 1].any()


@pytest.mark.parametrize('threaded', [False, True])
def test_the_frame_after_the_end_is_a_first_one(threaded):
  """Pong against nobody is over at 21 points: both ends, by the game and by the limit, show the beginning, others go on."""
  settings = PLAIN._replace(threaded=threaded, max_episode_len_jitter=0)
  game = make('atari/pong', 2, settings=settings)
  first = game.reset(0).copy()
  frames, reward, terminated, truncated = play(game, np.zeros((1100, 2), int))
  ends = np.flatnonzero(terminated[:, 0])
  assert len(ends) >= 1 and reward[:ends[0] + 1, 0].sum() == -21 and not truncated.any()
  assert np.array_equal(frames[ends[0], 0], first[0])
  game.set_max_episode_len(30)
  first = game.reset(0).copy()
  actions = np.random.default_rng(0).integers(3, size=(70, 2))
  frames, _, terminated, truncated = play(game, actions)
  assert np.flatnonzero(truncated[:, 1]).tolist() == [29, 59] and not terminated.any()
  assert np.array_equal(frames[29], first) and not np.array_equal(frames[28], first)


def lengths(environment, n_steps):
  """Lengths of the first game's episodes."""
  ends = [-1] + [k for k in range(n_steps) if environment.step(np.zeros(environment.n_envs, int))[3][0]]
  return np.diff(ends)


def test_limits():
  games = SyncVectorEnv([lambda: Count(10 ** 9)], autoreset_mode=AutoresetMode.DISABLED)
  environment = environments.Environment(games, [0, 1], 'ab', 0, Settings(max_episode_len=20, max_episode_len_jitter=3))
  environment.reset(0)
  found = lengths(environment, 6000)
  assert set(found) == set(range(17, 24)) and abs(found.mean() - 20) < 0.5
  environment.reset(0)
  again = lengths(environment, 6000)
  environment.reset(1)
  assert np.array_equal(again, found) and not np.array_equal(lengths(environment, 6000), found)
  environment.reset(0)
  environment.set_max_episode_len(50)  # the game that has begun keeps its limit
  later = lengths(environment, 500)
  assert later[0] == found[0] and 47 <= later[1:].min() <= later[1:].max() <= 53
  environment.set_max_episode_len(1)
  environment.reset(0)
  assert set(lengths(environment, 200)) == {1, 2, 3, 4}


def test_cubic_schedule():
  length, cubic = 200.0, lambda n_frames: schedules.cubic(n_frames, 200, 7e7, 1)
  for k in range(6):
    assert cubic(k * 7e7) == cubic((k + 1) * 7e7 - 1) == round(length)
    length = (length ** (1 / 3) + 1) ** 3
  assert [cubic(n) for n in (0, 7e7, 1.4e8)] == [200, 321, 483]
  assert schedules.cubic(100, 8, 10, 0.5) == 343 and schedules.cubic(1e9, 27, 7e7, 0) == 27


def test_schedules_of_flags():
  found = [schedules.at('0.97,5e7:0.98,7e7:0.5', n) for n in (0, 4.9e7, 5e7, 6e7, 7e7, float('inf'))]
  assert found == [0.97, 0.97, 0.98, 0.98, 0.5, 0.5] and schedules.at(0.25, 1e9) == schedules.at('0.25', 0) == 0.25
  values = absl_flags.FlagValues()
  schedules.define('discount', 0.9, '', upper_bound=1, flag_values=values)
  values(['program', '--discount=0.5'])
  assert values.discount == 0.5 and isinstance(values.discount, float)
  values(['program', '--discount=0.5,10:1'])
  assert schedules.at(values.discount, 9) == 0.5 and schedules.at(values.discount, 10) == 1
  for text in ('', 'a', '0.5,', '0.5,10', '0.5,10:', '0.5,10:0.6,10:0.7', '0.5,10:0.6:0.7', '2', '0.5,10:2', '-1', 'nan'):
    with pytest.raises(absl_flags.IllegalFlagValueError, match='discount'):
      values(['program', f'--discount={text}'])


# Mistakes

@pytest.mark.parametrize('level_name, n_envs, settings, message', [
    ('atari/pingpong', 1, {}, r"no game 'atari/pingpong'; there are catch, catch_cue_delay, and as atari/NAME: .*pong"),
    ('pong', 1, {}, 'no game'), ('atari/Pong', 1, {}, 'no game'), ('atari/combat', 1, {}, 'no game'), ('', 1, {}, 'no game'),
    ('catch', 0, {}, 'at least one environment is needed, not 0'),
    ('atari/pong', 1, dict(frame_skip=0), 'frame_skip must be at least 1, not 0'),
    ('atari/pong', 1, dict(noop_max=-1), 'noop_max must be at least 0'),
    ('atari/pong', 1, dict(n_threads=0), 'n_threads must be at least 1'),
    ('catch', 1, dict(max_episode_len=0), 'max_episode_len must be at least 1'),
    ('atari/pong', 1, dict(repeat_action_probability=1.1), 'between 0 and 1, not 1.1'),
    ('atari/pong', 1, dict(repeat_action_probability=float('nan')), 'between 0 and 1')])
def test_mistakes(level_name, n_envs, settings, message):
  with pytest.raises(UserError, match=message):
    make(level_name, n_envs, 0, Settings(**settings))


def test_all_games():
  assert len(environments.atari_games()) == 104 and {'pong', 'fishing_derby'} <= set(environments.atari_games())

"""Figures 4 and 5: speed and memory of playing and training. See benchmark.py."""
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarking import ATARI_FOLDER, in_child, time_in_turn


class Atari:
  """Training on Pong with the default flags of figure 4's main.py, the published values, in pieces. For a process of its own.

  A call plays one window, computes its gradient and changes the weights.

  Args:
    rule, impl: 'eprop' or 'bptt', and its computation.
    n_envs, n_steps: environments, agent steps per window.
    threads: of the emulators, as --emulator_threads.
  """

  def __init__(self, rule='eprop', impl='adjoint', n_envs=32, n_steps=100, threads=0):
    sys.path.insert(0, str(ATARI_FOLDER))  # in front: this folder has a plots.py of its own
    import numpy as np
    import tensorflow as tf
    import configuration
    import learning
    import playing
    import training
    configuration.FLAGS(['benchmark', '--device=CPU:0', f'--use_eprop={rule == "eprop"}', f'--eprop_impl={impl}',
                   f'--parallel_episodes={n_envs}', f'--unroll_length={n_steps}', f'--emulator_threads={threads}'])
    flags = configuration.FLAGS.flag_values_dict()
    self.shape, self.frame_skip = (n_steps, n_envs), flags['num_action_repeats']
    self.episode = flags['max_episode_len'] + flags['max_episode_len_jitter']  # agent steps of the longest
    environment = configuration.make_environment(n_envs)
    self.agent = configuration.make_agent(environment.n_actions)
    self.weights, _ = training.initial_weights(self.agent)
    self._learn, _ = learning.make_learner(self.agent, self.weights, learning.costs_at(0))
    self._optimizer = learning.Optimizer(self.weights)
    self._rng = np.random.default_rng(0)
    self.reward = lambda played: tf.constant(np.clip(played.score, -1, 1))
    self.mask, self.policy_weight = tf.ones(self.shape), tf.constant(1.0)
    self.player = playing.Player(self.agent, environment)
    self.emulator_seconds = []  # of each window
    step = environment.step

    def timed_step(action):
      start = time.perf_counter()
      result = step(action)
      self.emulator_seconds[-1] += time.perf_counter() - start
      return result

    environment.step = timed_step
    self.begin()

  def begin(self):
    self.player.begin(self.weights, 0)

  def play(self):
    self.emulator_seconds.append(0.0)
    return self.player.window(self.weights, self.shape[0], self._rng)

  def learn(self, played):
    return self._learn(played, self.reward(played), self.mask, self.policy_weight)

  def update(self, gradients):
    self._optimizer.apply(gradients, self.weights)
    self.player.look_again(self.weights)

  def __call__(self):
    self.update(self.learn(self.play()).gradients)

  def frames_per_s(self, window_seconds, begin_seconds):
    """Of an iteration, which begins all games anew and plays windows until the longest episode is over."""
    n_steps, n_envs = self.shape
    n_windows = -(-self.episode // n_steps)
    return self.frame_skip * n_envs * n_steps * n_windows / (n_windows * window_seconds + begin_seconds)


def child_atari(variants, n_rounds):
  """Windows of variants in turn, each with the arguments of Atari, and peak memory of the process."""
  import machine
  programs = {name: Atari(*arguments) for name, arguments in variants.items()}
  begin = time_in_turn({name: program.begin for name, program in programs.items()}, 1)
  window = time_in_turn(programs, n_rounds)
  rows = {name: dict(window_seconds=window[name], begin_seconds=begin[name],
                     frames_per_s=program.frames_per_s(window[name], begin[name])) for name, program in programs.items()}
  return dict(rows=rows, peak_memory_mb=machine.peak_memory_mb())


def atari_profile(n_rounds, n_envs=32, n_steps=100):
  """Where the time of a window goes.

  Emulator, playing, learning and update are timed as they are. The layers' shares come from what was recorded: the compiled
  functions run over it once more, cut down to one layer's outputs, then to two layers', and so on (TensorFlow computes only
  what is asked for). A share is the difference, so that what runs side by side counts once, and 'rest' is what remains.

  Returns:
    dict of the pieces, each a dict of seconds per window and per cent.
  """
  program = Atari('eprop', 'adjoint', n_envs, n_steps)
  import tensorflow as tf
  from actor_critic import Costs, Seen, observe
  from agent import Record, State
  from reward_based_eprop import Adjoints, Learner, backward, observe_more, prepare, start_of_scan
  agent, weights, costs, played = program.agent, program.weights, Costs(), program.play()
  window = played.window(program.reward(played), program.mask)
  seen = observe(agent, costs, window.records)
  plan = prepare(agent, costs, window, seen)
  gradients = program.learn(played).gradients

  def acting(states, fields):
    """Acts on the recorded frames; computes and keeps these fields of State and Record only."""
    @tf.function
    def act(state, frame, reset):
      _, _, after, record = agent.act(weights, state, frame, reset)
      return state._replace(**{name: getattr(after, name) for name in states}), [getattr(record, name) for name in fields]

    def run():
      state, kept = played.state, []
      for record in played.records:
        state, values = act(state, record.frame, record.reset)
        kept.append(values)
    return run

  def going_back(conv_only):
    """The scan backwards over the records, of the convolutional layers or of all."""
    @tf.function
    def step(records, k, before, sums):
      adjoints, summed = backward(agent, costs, weights, records, plan, k, before, sums)
      return (Adjoints(*before[:2], *adjoints[2:]), [*summed[:4], *sums[4:]]) if conv_only else (adjoints, summed)

    def run():
      adjoints, sums = start_of_scan(agent, n_envs)
      for k in reversed(range(0, n_steps + 1, Learner.GROUP)):
        adjoints, sums = step(played.records[k:k + Learner.GROUP], tf.constant(k), adjoints, sums)
    return run

  observe_one = tf.function(lambda record, total: observe_more(agent, costs, record, total), jit_compile=True)

  def observing():
    total = Seen(*map(tf.zeros_like, seen))
    for record in played.records:
      total = observe_one(record, total)

  conv, lsnn = ('frame', 'reset', 'h1', 'h2'), ('h', 'v', 'a', 'z_before')
  t = time_in_turn({
      'play': program.play, 'learn': lambda: program.learn(played), 'update': lambda: program.update(gradients),
      'act_conv': acting(('v1', 'v2'), conv), 'act_lsnn': acting(('v1', 'v2', 'rnn'), conv + lsnn),
      'act': acting(State._fields, Record._fields), 'observe': observing,
      'prepare': tf.function(lambda: prepare(agent, costs, window, seen)), 'back_conv': going_back(True),
      'back': going_back(False)}, n_rounds)
  emulator = statistics.median(program.emulator_seconds[-n_rounds:])
  pieces = {'emulator': emulator, 'acting: convolutional layers': t['act_conv'], 'acting: LSNN': t['act_lsnn'] - t['act_conv'],
            'acting: heads': t['act'] - t['act_lsnn'], 'acting: rest': t['play'] - emulator - t['act'],
            'gradient: observe': t['observe'], 'gradient: prepare': t['prepare'],
            'gradient: convolutional layers': t['back_conv'], 'gradient: LSNN': t['back'] - t['back_conv'],
            'gradient: rest': t['learn'] - t['observe'] - t['prepare'] - t['back'], 'update': t['update']}
  total = sum(pieces.values())
  return {name: dict(seconds=seconds, per_cent=100 * seconds / total) for name, seconds in pieces.items()}


def memory_of(pid):
  """Memory in MB that a process and those that it started hold."""
  total = 0.0
  for status in pathlib.Path('/proc').glob('[0-9]*/status'):
    try:
      lines = dict(line.split(':', 1) for line in status.read_text().splitlines())
    except (OSError, ValueError):  # it has ended
      continue
    if str(pid) in (lines['Pid'].strip(), lines['PPid'].strip()) and 'VmRSS' in lines:
      total += int(lines['VmRSS'].split()[0]) / 1024
  return total


def atari_workers(numbers=(1, 2), n_rounds=2, n_iterations=5):
  """Figures 4, 5: training on Pong as published by main.py itself, by --n_workers, in turn; peak memory of all processes."""
  import csv
  rows = {n: dict(frames_per_s=[], peak_memory_mb=0.0) for n in numbers}
  for _ in range(n_rounds):
    for n, row in rows.items():
      with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([sys.executable, str(ATARI_FOLDER / 'main.py'), '--nodo_plot', f'--n_workers={n}',
                                    f'--total_environment_frames={n_iterations * 32 * 300 * 4}', '--eval_episodes=1',
                                    '--eval_max_episode_len=1', f'--result_dir={folder}', '--run_name=a'],
                                   stdout=subprocess.DEVNULL)
        while process.poll() is None:
          row['peak_memory_mb'] = max(row['peak_memory_mb'], memory_of(process.pid))
          time.sleep(0.5)
        if process.returncode:
          raise RuntimeError(f'main.py --n_workers={n} ended with {process.returncode}')
        with open(pathlib.Path(folder) / 'main' / 'a' / 'metrics.csv', newline='') as file:
          row['frames_per_s'] += [float(line['frames_per_s']) for line in csv.DictReader(file)][1:]  # the first one compiles
  return [dict(row, n_workers=n, frames_per_s=statistics.median(row['frames_per_s'])) for n, row in rows.items()]


def atari(n_rounds=2, n_envs=32, n_steps=100, autodiff_steps=40):
  """Figures 4, 5: training on Pong as published, beside BPTT and the autodiff computation; where the time of a window goes.

  Autodiff and what it is compared with play shorter windows: it needs 130 MB per agent step of 32 environments.
  """
  variants = {'adjoint': ('eprop', 'adjoint', n_envs, n_steps), 'bptt': ('bptt', 'adjoint', n_envs, n_steps),
              'adjoint_short': ('eprop', 'adjoint', n_envs, autodiff_steps),
              'autodiff_short': ('eprop', 'autodiff', n_envs, autodiff_steps)}
  rows = in_child(child_atari, variants, n_rounds)['rows']
  ratio = lambda name, base: rows[name]['window_seconds'] / rows[base]['window_seconds']
  alone = in_child(child_atari, {'adjoint': variants['adjoint']}, 1)
  return dict(rows['adjoint'], peak_memory_mb=alone['peak_memory_mb'], bptt_over_adjoint=ratio('bptt', 'adjoint'),
              autodiff_over_adjoint=ratio('autodiff_short', 'adjoint_short'), autodiff_steps=autodiff_steps,
              profile=in_child(atari_profile, n_rounds, n_envs, n_steps))


def atari_scaling(n_rounds=2, envs=(8, 16, 32, 64), windows=(100, 20), threads=(1, 2), n_threaded=32):
  """Figures 4, 5: speed by environments, by length of the window, and by threads of the emulators."""
  sizes = [(n_envs, n_steps, 0) for n_steps in windows for n_envs in envs] + [(n_threaded, windows[0], n) for n in threads]
  rows = in_child(child_atari, {str(size): ('eprop', 'adjoint', *size) for size in sizes}, n_rounds)['rows']
  return [dict(zip(('n_envs', 'n_steps', 'threads'), size), **rows[str(size)]) for size in sizes]


def draw_atari_scaling(rows, path):
  """Frames per second by environments and by threads of the emulators."""
  import matplotlib
  matplotlib.use('Agg')
  import matplotlib.pyplot as plt
  import palette
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout='constrained', sharey=True)
  for n_steps, colour in zip(dict.fromkeys(row['n_steps'] for row in rows), palette.SERIES[1:]):
    chosen = [row for row in rows if row['n_steps'] == n_steps and row['threads'] == 0]
    axes[0].plot([row['n_envs'] for row in chosen], [row['frames_per_s'] for row in chosen], 'o-', color=colour,
                 label=f'windows of {n_steps} agent steps')
  ticks = sorted({row['n_envs'] for row in rows})
  axes[0].set_xscale('log', base=2)
  axes[0].set_xticks(ticks, map(str, ticks))
  axes[0].set(title='by environments', xlabel='environments', ylabel='emulator frames per second')
  axes[0].legend(frameon=False, fontsize=8)
  threaded = next(row for row in rows if row['threads'] > 0)
  chosen = [row for row in rows if all(row[name] == threaded[name] for name in ('n_envs', 'n_steps'))]
  axes[1].bar([str(row['threads'] or "0 (own emulators)") for row in chosen], [row['frames_per_s'] for row in chosen], 0.5,
              color=palette.BLUE)
  axes[1].set(title=f'by threads, {threaded["n_envs"]} environments, windows of {threaded["n_steps"]}',
              xlabel='threads of the emulators', ylim=(0, None))
  for axis in axes:
    axis.spines[['top', 'right']].set_visible(False)
  figure.suptitle('Training on Pong, emulator included')
  figure.savefig(path, dpi=130)

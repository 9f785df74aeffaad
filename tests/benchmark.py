"""Speed and memory, as ratios between variants timed in turn in one run.

  python tests/benchmark.py              all, about 16 minutes on two cores; with --write, numbers go to figures/benchmark.json
                                         of the Figure 3 folder, those of speech and of Atari to those of their folders
  python tests/benchmark.py iteration    some of it: iteration, pattern, start, memory, scaling, speech, speech_start, epoch,
                                         atari, atari_workers, atari_scaling

Not part of the test suite: another program on the same machine changes the times, and hardly the ratios.
"""
import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'Figure_3_and_S7_e-prop_tutorials'
SPEECH_FOLDER = ROOT / 'Figure_2_TIMIT'
ATARI_FOLDER = ROOT / 'Figure_4_and_5_ATARI'
sys.path.insert(0, str(FOLDER))
EVIDENCE, PATTERN = (str(FOLDER / f'tutorial_{name}.py') for name in ('evidence_accumulation_with_alif', 'pattern_generation'))
OF_SPEECH = ('speech', 'speech_start', 'epoch')
OF_ATARI = ('atari', 'atari_workers', 'atari_scaling')
PARTS = ('iteration', 'pattern', 'start', 'memory', 'scaling', *OF_SPEECH, *OF_ATARI)
# Deciles of the lengths in frames of 128 utterances of TIMIT (NLTK's sample without its SA sentences).
TIMIT_LENGTHS = (142, 205, 233, 255, 270, 285, 307, 329, 382, 431, 551)


def make_iteration(rule, impl, n_batch=64, n_steps=None, n_rec=100):
  """A function that draws one batch of evidence accumulation, computes its gradient and updates the weights."""
  import experiment
  import machine
  import keras
  import numpy as np
  import tensorflow as tf
  import eprop
  from lsnn import ALIF, exp_decay
  from tasks import EvidenceAccumulation
  machine.keep_memory()  # as in the scripts
  experiment.FLAGS(['benchmark', '--device=CPU:0'])
  task = EvidenceAccumulation()
  if n_steps is not None:
    task = task._replace(delay=n_steps - 1200.0)
  alpha, rho = exp_decay(20), exp_decay(2000)
  cell = ALIF(n_rec, beta=np.repeat([0, 1.7 * (1 - rho) / (1 - alpha)], n_rec // 2), n_refractory=5)
  rng = np.random.default_rng(0)
  draw = lambda n_pre, n_post: tf.Variable(rng.standard_normal((n_pre, n_post)) / np.sqrt(n_pre), dtype=tf.float32)
  weights = eprop.Weights(draw(task.n_in, n_rec), draw(n_rec, n_rec), draw(n_rec, 2))
  learner = eprop.Learner(cell, eprop.Readout(np.float32(alpha)), eprop.RateCost(1.0, 0.01), rule == 'bptt', impl,
                          experiment.n_shards(n_batch))
  weight = tf.constant(task.loss_weight(task.n_steps, n_batch), tf.float32)
  optimizer = keras.optimizers.Adam(0.005, epsilon=1e-8)
  optimizer.build(weights)

  @tf.function
  def update(x, target):
    result = learner(x, target, weight, weights, weights.w_out)
    eprop.apply_gradients(optimizer, result.gradients, weights)
    return result.task_loss

  def make_batch(k):
    x, labels, _ = task.batch(np.random.default_rng(k), n_batch)
    return x, np.eye(2, dtype=np.float32)[labels][None]

  batches = experiment.prefetched(make_batch, 0)
  return lambda: float(update(*next(batches)))


def time_in_turn(functions, n_rounds):
  """Median seconds of each function (a dict), called in turn so that all meet the same disturbances."""
  seconds = {name: [] for name in functions}
  for name, function in functions.items():
    function()  # compiles
  for _ in range(n_rounds):
    for name, function in functions.items():
      start = time.perf_counter()
      function()
      seconds[name].append(time.perf_counter() - start)
  return {name: statistics.median(values) for name, values in seconds.items()}


def in_child(name, *arguments):
  """What a function of this file returns in a process of its own."""
  code = (f'import sys, json; sys.path.insert(0, {str(ROOT / "tests")!r}); import benchmark; '
          f'print(json.dumps(benchmark.{name}(*{arguments!r})))')
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  if done.returncode:
    raise RuntimeError(done.stderr)
  return json.loads(done.stdout.splitlines()[-1])


def timed(maker, variants):
  """Seconds of what a function of this file makes, by name and arguments of each variant, and peak memory of the process."""
  seconds = time_in_turn({name: globals()[maker](*arguments) for name, arguments in variants.items()}, 3)
  import machine
  return dict(seconds=seconds, peak_memory_mb=machine.peak_memory_mb())


def iteration():
  """One training iteration of evidence accumulation at batch 64, data included."""
  functions = {'adjoint': make_iteration('eprop', 'adjoint'), 'bptt': make_iteration('bptt', 'adjoint'),
               'hardcoded': make_iteration('eprop', 'hardcoded'), 'autodiff': make_iteration('eprop', 'autodiff')}
  seconds = time_in_turn(functions, 7)
  return dict(seconds=seconds, autodiff_over_adjoint=seconds['autodiff'] / seconds['adjoint'],
              bptt_over_adjoint=seconds['bptt'] / seconds['adjoint'],
              hardcoded_over_adjoint=seconds['hardcoded'] / seconds['adjoint'])


def call(script, *flags):
  """Runs a tutorial in a process of its own; wall seconds from its start to its end and its summary."""
  with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    subprocess.run([sys.executable, script, f'--result_dir={folder}', '--run_name=a', *flags], check=True,
                   capture_output=True)
    seconds = time.perf_counter() - start
    summary = next(pathlib.Path(folder).rglob('summary.json'))
    return dict(seconds=seconds, **json.loads(summary.read_text()))


def pattern():
  """Pattern generation: 2000 iterations as a user calls it, from start to end, figure included."""
  run = call(PATTERN, '--print_every=500')
  return dict(process_seconds=run['seconds'], training_seconds=run['wall_time_s'], compile_included=True)


def first_update(command):
  """Seconds from the start of a script to the line it prints after its first update."""
  with tempfile.TemporaryDirectory() as folder:
    begin = time.perf_counter()
    process = subprocess.Popen([*command, '--print_every=1', '--run_name=a', f'--result_dir={folder}'], stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)
    seconds = next(time.perf_counter() - begin for line in process.stdout if line.startswith('iteration 1/'))
    process.kill()
    process.communicate()
  return seconds


def start():
  """Start of the process to the end of the first update, imports and compilation included."""
  command = [sys.executable, '-u', EVIDENCE, '--n_iter=2', '--do_plot=False']
  seconds = dict(eprop=first_update([*command, '--eprop']), bptt=first_update(command))
  return dict(seconds_to_first_update=seconds)


def memory():
  """Peak memory of the whole process, MB; the hardcoded traces at three lengths of a trial."""
  peak = {impl: call(EVIDENCE, '--eprop', f'--eprop_impl={impl}', '--n_iter=2', '--do_plot=False')['peak_memory_mb']
          for impl in ('adjoint', 'hardcoded', 'autodiff')}
  by_steps = {n_steps: child_scaling('hardcoded', 64, n_steps, 100)['peak_memory_mb'] for n_steps in (2250, 4500, 9000)}
  return dict(peak_mb=peak, hardcoded_mb_by_steps=by_steps)


def child_scaling(impl, n_batch, n_steps, n_rec):
  """Seconds per iteration and peak memory of one configuration, in a process of its own."""
  result = in_child('timed', 'make_iteration', {'f': ('eprop', impl, n_batch, n_steps, n_rec)})
  return dict(seconds=result['seconds']['f'], peak_memory_mb=result['peak_memory_mb'])


def scaling():
  """Seconds and memory as steps, neurons and batch double."""
  base = dict(n_batch=32, n_steps=2250, n_rec=100)
  rows = []
  for impl in ('adjoint', 'hardcoded'):
    for name in base:
      for factor in (1, 2, 4):
        size = dict(base, **{name: base[name] * factor})
        if factor == 1 and name != 'n_batch':
          rows.append(dict(next(r for r in rows if r['impl'] == impl and r['factor'] == 1), doubled=name))
        else:
          rows.append(dict(impl=impl, doubled=name, factor=factor, **size, **child_scaling(impl, **size)))
  return rows


def make_speech_iteration(network, rule, impl, n_frames=551):
  """A function that updates a network of figure 2 on 32 utterances of n_frames of 123 features; framewise, 61 classes."""
  sys.path.append(str(SPEECH_FOLDER))
  import experiment
  import machine
  import keras
  import numpy as np
  import tensorflow as tf
  from classifier import Batch, Classifier, Settings
  from lsnn import exp_decay
  from networks import LSNNLayer, LSTMLayer, Network
  if network == 'lsnn':
    import neurons
  machine.keep_memory()  # as in the scripts
  experiment.FLAGS(['benchmark', '--device=CPU:0'])
  rng = np.random.default_rng(0)
  bptt = rule == 'bptt'
  layer = LSNNLayer(neurons.make(300, 100, 0), 5, bptt, impl) if network == 'lsnn' else LSTMLayer(200, bptt, impl)
  settings = Settings(kappa=float(exp_decay(3.0)), rate_cost=50.0) if network == 'lsnn' else Settings()
  classifier = Classifier(Network([layer]), settings, 123, 61, rng)
  optimizer = keras.optimizers.Adam(0.01, epsilon=1e-5)
  optimizer.build(classifier.learning(classifier.variables))
  batch = Batch(tf.constant(rng.standard_normal((n_frames, 32, 123)), tf.float32), tf.fill([32], n_frames),
                tf.constant(rng.integers(0, 61, (n_frames, 32)), tf.int32), tf.zeros([32], tf.int32))
  update = tf.function(lambda: classifier.update(optimizer, batch).loss)
  return lambda: float(update())


def speech():
  """Figure 2: one training iteration of the framewise networks, each rule beside the autodiff computation of e-prop."""
  results = {}
  for network in ('lsnn', 'lstm'):
    variants = {'adjoint': ('eprop', 'adjoint'), 'bptt': ('bptt', 'adjoint'), 'autodiff': ('eprop', 'autodiff')}
    run = lambda *names: in_child('timed', 'make_speech_iteration', {name: (network, *variants[name]) for name in names})
    seconds = run(*variants)['seconds']
    results[network] = dict(
        seconds=seconds, autodiff_over_adjoint=seconds['autodiff'] / seconds['adjoint'],
        bptt_over_adjoint=seconds['bptt'] / seconds['adjoint'],
        peak_mb={name: run(name)['peak_memory_mb'] for name in ('adjoint', 'bptt')})
  return results


def speech_start():
  """Figure 2: start of each script, published sizes, to the end of the first update, on a small synthetic corpus."""
  script = lambda name: [sys.executable, '-u', str(SPEECH_FOLDER / f'{name}.py')]
  seconds = {}
  with tempfile.TemporaryDirectory() as folder:
    subprocess.run([*script('timit_processing'), f'--result_dir={folder}', '--n_train=64', '--n_dev=8', '--n_test=8'],
                   check=True, capture_output=True)
    for name, flags in (('framewise_lsnn', []), ('framewise_lstm', []), ('ctc_in_tensorflow', ['--model=lstm']),
                        ('ctc_in_tensorflow', ['--model=lsnn'])):
      for rule, of_rule in (('eprop', ['--eprop=symmetric']), ('bptt', [])):
        command = [*script(f'solve_timit_with_{name}'), f'--dataset={folder}/timit_processed/espeak_fbank', *flags, *of_rule]
        seconds[' '.join([name, *flags, rule])] = first_update(command)
  return dict(seconds_to_first_update=seconds)


def epoch_updates(by_length, n_utterances=3696, n_batch=32):
  """Lengths to which an epoch of TIMIT's size is padded, and how many of its updates have each: dict, frames: updates."""
  sys.path.append(str(SPEECH_FOLDER))
  import numpy as np
  from batches import epoch_batches, padded
  lengths = np.interp(np.linspace(0, 10, n_utterances), range(11), TIMIT_LENGTHS).round().astype(int)
  batches = epoch_batches(lengths, n_batch, np.random.default_rng(0), by_length=by_length)
  longest = np.array([padded(lengths[batch].max()) for batch in batches])
  frames, updates = np.unique(longest, return_counts=True)
  return dict(zip(frames.tolist(), updates.tolist()))


def child_epoch(network, rule):
  """Median seconds of an update at each padded length, and their sum over an epoch, by the order of its batches."""
  updates = {order: epoch_updates(order == 'length') for order in ('random', 'length')}
  lengths = sorted({*updates['random'], *updates['length']})
  seconds = time_in_turn({n: make_speech_iteration(network, rule, 'adjoint', n) for n in lengths}, 3)
  return dict(seconds_per_update=seconds, epoch_seconds={
      order: sum(number * seconds[n] for n, number in of_order.items()) for order, of_order in updates.items()})


def epoch():
  """Figure 2: an epoch of TIMIT's size, from measured updates at the lengths to which its batches are padded."""
  return {f'{network}_{rule}': in_child('child_epoch', network, rule)
          for network in ('lsnn', 'lstm') for rule in ('eprop', 'bptt')}


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
    self._learn, _ = training.make_learner(self.agent, self.weights)
    self._optimizer = training.Optimizer(self.weights)
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
  rows = in_child('child_atari', variants, n_rounds)['rows']
  ratio = lambda name, base: rows[name]['window_seconds'] / rows[base]['window_seconds']
  alone = in_child('child_atari', {'adjoint': variants['adjoint']}, 1)
  return dict(rows['adjoint'], peak_memory_mb=alone['peak_memory_mb'], bptt_over_adjoint=ratio('bptt', 'adjoint'),
              autodiff_over_adjoint=ratio('autodiff_short', 'adjoint_short'), autodiff_steps=autodiff_steps,
              profile=in_child('atari_profile', n_rounds, n_envs, n_steps))


def atari_scaling(n_rounds=2, envs=(8, 16, 32, 64), windows=(100, 20), threads=(1, 2), n_threaded=32):
  """Figures 4, 5: speed by environments, by length of the window, and by threads of the emulators."""
  sizes = [(n_envs, n_steps, 0) for n_steps in windows for n_envs in envs] + [(n_threaded, windows[0], n) for n in threads]
  rows = in_child('child_atari', {str(size): ('eprop', 'adjoint', *size) for size in sizes}, n_rounds)['rows']
  return [dict(zip(('n_envs', 'n_steps', 'threads'), size), **rows[str(size)]) for size in sizes]


def draw_scaling(rows, path):
  """Time and memory relative to the smallest size."""
  import matplotlib
  matplotlib.use('Agg')
  import matplotlib.pyplot as plt
  names = dict(n_steps='steps T', n_rec='neurons N', n_batch='batch B')
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout='constrained')
  for impl, style in (('adjoint', '-'), ('hardcoded', '--')):
    for name, colour in zip(names, ('tab:blue', 'tab:orange', 'tab:green')):
      chosen = [row for row in rows if row['impl'] == impl and row['doubled'] == name]
      factors = [row['factor'] for row in chosen]
      axes[0].plot(factors, [row['seconds'] for row in chosen], 'o' + style, color=colour, label=f'{impl}, {names[name]}')
      axes[1].plot(factors, [row['peak_memory_mb'] for row in chosen], 'o' + style, color=colour)
  axes[0].set(yscale='log', ylabel='one iteration (s)')
  axes[1].set(ylabel='peak memory of the process (MB)', ylim=(0, 1.1 * max(row['peak_memory_mb'] for row in rows)))
  for axis in axes:
    axis.set_xscale('log', base=2)
    axis.set_xticks([1, 2, 4], ['1', '2', '4'])
    axis.set_xlabel('times the base size (T 2250, N 100, B 32)')
    axis.spines[['top', 'right']].set_visible(False)
  axes[0].legend(frameon=False, fontsize=7)
  figure.savefig(path, dpi=130)


def draw_atari_scaling(rows, path):
  """Frames per second by environments and by threads of the emulators."""
  import matplotlib
  matplotlib.use('Agg')
  import matplotlib.pyplot as plt
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout='constrained', sharey=True)
  for n_steps in dict.fromkeys(row['n_steps'] for row in rows):
    chosen = [row for row in rows if row['n_steps'] == n_steps and row['threads'] == 0]
    axes[0].plot([row['n_envs'] for row in chosen], [row['frames_per_s'] for row in chosen], 'o-',
                 label=f'windows of {n_steps} agent steps')
  ticks = sorted({row['n_envs'] for row in rows})
  axes[0].set_xscale('log', base=2)
  axes[0].set_xticks(ticks, map(str, ticks))
  axes[0].set(title='by environments', xlabel='environments', ylabel='emulator frames per second')
  axes[0].legend(frameon=False, fontsize=8)
  threaded = next(row for row in rows if row['threads'] > 0)
  chosen = [row for row in rows if all(row[name] == threaded[name] for name in ('n_envs', 'n_steps'))]
  axes[1].bar([str(row['threads'] or "0 (own emulators)") for row in chosen], [row['frames_per_s'] for row in chosen], 0.5)
  axes[1].set(title=f'by threads, {threaded["n_envs"]} environments, windows of {threaded["n_steps"]}',
              xlabel='threads of the emulators', ylim=(0, None))
  for axis in axes:
    axis.spines[['top', 'right']].set_visible(False)
  figure.suptitle('Training on Pong, emulator included')
  figure.savefig(path, dpi=130)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('parts', nargs='*', help=f'some of {", ".join(PARTS)}; default: all')
  parser.add_argument('--write', action='store_true', help='keep the numbers in figures/benchmark.json')
  arguments = parser.parse_args()
  if not set(arguments.parts) <= set(PARTS):
    parser.error(f'the parts are {", ".join(PARTS)}')
  results = dict(cores=len(os.sched_getaffinity(0)), load_at_start=os.getloadavg()[0], python=platform.python_version())
  for name in arguments.parts or PARTS:
    results[name] = globals()[name]()
    print(name, json.dumps(results[name], indent=2), flush=True)
  if arguments.write:
    machine = {name: results.pop(name) for name in ('cores', 'load_at_start', 'python')}
    of_speech = {name: results.pop(name) for name in OF_SPEECH if name in results}
    of_atari = {name: results.pop(name) for name in OF_ATARI if name in results}
    for folder, numbers in ((FOLDER, results), (SPEECH_FOLDER, of_speech), (ATARI_FOLDER, of_atari)):
      if numbers:
        path = folder / 'figures' / 'benchmark.json'
        path.parent.mkdir(exist_ok=True)
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(dict(before, **machine, **numbers), indent=2) + '\n')
    if 'scaling' in results:
      draw_scaling(results['scaling'], FOLDER / 'figures' / 'benchmark_scaling.png')
    if 'atari_scaling' in of_atari:
      draw_atari_scaling(of_atari['atari_scaling'], ATARI_FOLDER / 'figures' / 'benchmark_scaling.png')


if __name__ == '__main__':
  main()

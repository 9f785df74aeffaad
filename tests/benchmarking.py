"""What the benchmarks of the three figures share: time and memory of functions, scripts and processes."""
import importlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent
FOLDER, SPEECH_FOLDER, ATARI_FOLDER = (ROOT / name for name in (
    'Figure_3_and_S7_e-prop_tutorials', 'Figure_2_TIMIT', 'Figure_4_and_5_ATARI'))


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


def in_child(function, *arguments):
  """What a function of one of the benchmark modules returns in a process of its own."""
  code = (f'import sys, json; sys.path[:0] = [{str(TESTS)!r}, {str(FOLDER)!r}]; import {function.__module__} as module; '
          f'print(json.dumps(module.{function.__name__}(*{arguments!r})))')
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  if done.returncode:
    raise RuntimeError(done.stderr)
  return json.loads(done.stdout.splitlines()[-1])


def timed(module, maker, variants):
  """Seconds of what a function of a module makes, by name and arguments of each variant, and peak memory of the process."""
  make = getattr(importlib.import_module(module), maker)
  seconds = time_in_turn({name: make(*arguments) for name, arguments in variants.items()}, 3)
  import machine
  return dict(seconds=seconds, peak_memory_mb=machine.peak_memory_mb())


def call(script, *flags):
  """Runs a tutorial in a process of its own; wall seconds from its start to its end and its summary."""
  with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    subprocess.run([sys.executable, script, f'--result_dir={folder}', '--run_name=a', *flags], check=True,
                   capture_output=True)
    seconds = time.perf_counter() - start
    summary = next(pathlib.Path(folder).rglob('summary.json'))
    return dict(seconds=seconds, **json.loads(summary.read_text()))


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

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
import platform
import sys

from benchmarking import ATARI_FOLDER, FOLDER, SPEECH_FOLDER

sys.path.insert(0, str(FOLDER))

import benchmark_atari  # noqa: E402
import benchmark_figure3  # noqa: E402
import benchmark_speech  # noqa: E402

MODULES = {  # of each part
    **dict.fromkeys(('iteration', 'pattern', 'start', 'memory', 'scaling'), benchmark_figure3),
    **dict.fromkeys(('speech', 'speech_start', 'epoch'), benchmark_speech),
    **dict.fromkeys(('atari', 'atari_workers', 'atari_scaling'), benchmark_atari),
}
FOLDERS = {benchmark_figure3: FOLDER, benchmark_speech: SPEECH_FOLDER, benchmark_atari: ATARI_FOLDER}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('parts', nargs='*', help=f'some of {", ".join(MODULES)}; default: all')
  parser.add_argument('--write', action='store_true', help='keep the numbers in figures/benchmark.json')
  arguments = parser.parse_args()
  if not set(arguments.parts) <= set(MODULES):
    parser.error(f'the parts are {", ".join(MODULES)}')
  machine = dict(cores=len(os.sched_getaffinity(0)), load_at_start=os.getloadavg()[0], python=platform.python_version())
  results = {}
  for name in arguments.parts or MODULES:
    results[name] = getattr(MODULES[name], name)()
    print(name, json.dumps(results[name], indent=2), flush=True)
  if arguments.write:
    for module, folder in FOLDERS.items():
      numbers = {name: result for name, result in results.items() if MODULES[name] is module}
      if numbers:
        path = folder / 'figures' / 'benchmark.json'
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(dict(before, **machine, **numbers), indent=2) + '\n')
    for name in ('scaling', 'atari_scaling'):
      if name in results:
        getattr(MODULES[name], f'draw_{name}')(results[name], FOLDERS[MODULES[name]] / 'figures' / 'benchmark_scaling.png')


if __name__ == '__main__':
  main()

"""Measures how long the corpora of figure 2 take to make and process, their size on disk and what is in them.

  python tests/benchmark_corpora.py [--sample=DIR] [--write]

DIR holds NLTK's sample of TIMIT (without: NLTK downloads it). Writes Figure_2_TIMIT/figures/corpora.json with --write.
"""
import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

FOLDER = pathlib.Path(__file__).resolve().parent.parent / 'Figure_2_TIMIT'


def measure(corpus, flags):
  """Runs timit_processing.py in a folder of its own. Returns: dict of what was measured."""
  with tempfile.TemporaryDirectory() as folder:
    command = ['timit_processing.py', f'--corpus={corpus}', *flags]
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command, f'--result_dir={folder}'], cwd=FOLDER, check=True)
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    files = lambda name: [path for path in pathlib.Path(folder, name).rglob('*') if path.is_file()]
    size = lambda name: round(sum(path.stat().st_size for path in files(name)) / 1e6)
    metadata = json.loads(pathlib.Path(folder, 'timit_processed', f'{corpus}_fbank', 'metadata.json').read_text())
    return dict(command=' '.join(part for part in command if not part.startswith('--data_path')), seconds=round(seconds),
                processor_seconds=round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
                audio_mb=size(f'{corpus}_corpus'), processed_mb=size('timit_processed'), splits=metadata['splits'])


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--sample')
  parser.add_argument('--write', action='store_true')
  arguments = parser.parse_args()
  sample = [f'--data_path={os.path.abspath(arguments.sample)}'] if arguments.sample else []
  results = dict(cores=os.cpu_count(), load_before=round(os.getloadavg()[0], 1), corpora=[
      measure('espeak_full', []), measure('espeak', []), measure('espeak', ['--n_train=480', '--n_dev=64', '--n_test=64']),
      measure('nltk_sample', sample)])
  text = json.dumps(results, indent=2) + '\n'
  print(text)
  if arguments.write:
    (FOLDER / 'figures' / 'corpora.json').write_text(text)


if __name__ == '__main__':
  main()

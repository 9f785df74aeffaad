"""What the tests of troubles share: a training of milliseconds, many times for the price of one import; not a test itself."""
import csv
import time

import pytest

import conftest
import forks

PATTERN = conftest.FIGURE_3 / 'tutorial_pattern_generation.py'
SHORT = ['--seq_len=50', '--do_plot=False']


@pytest.fixture(scope='module')
def toy():
  """toy_training.py, ready to be called; and with `also` any other script."""
  script = forks.Script(conftest.TESTS / 'toy_training.py', conftest.FIGURE_3)
  yield script
  script.close()


@pytest.fixture
def pattern(toy):
  """Pattern generation, likewise."""
  return toy.also(PATTERN)


@pytest.fixture
def finished(toy, tmp_path):
  """A finished run of the toy, named `a`."""
  assert toy('--n_iter=2', '--checkpoint_seconds=0', f'--result_dir={tmp_path}', '--run_name=a').code == 0
  return tmp_path / 'toy' / 'a'


def only_run(folder):
  (script,) = folder.iterdir()
  (run,) = script.iterdir()
  return run


def rows(run):
  with open(run / 'metrics.csv', newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file))


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file() and path.parent.name != 'tensorboard'}


def says(ended, *words, code=2):
  """That a call ended with one sentence which has these words."""
  assert (ended.code, len(ended.errors)) == (code, 1) and 'Traceback' not in ended.stderr, ended
  assert all(word in ended.errors[0] for word in words), ended.errors


def wait_for(condition, seconds=120):
  until = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < until
    time.sleep(0.01)


def begun(metrics):
  return metrics.exists() and len(metrics.read_text().splitlines()) > 3

"""Figures 4 and 5's programs, called as a user calls them: what the tests of them share."""
import csv
import pathlib
import sys

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).resolve().parent.parent / 'Figure_4_and_5_ATARI'
sys.path.append(str(FOLDER))  # behind the Figure 3 folder, whose lsnn.py, eprop.py and experiment.py are the same

import forks  # noqa: E402

SMALL = ['--n_rec=20', '--n_filters_1=3', '--n_filters_2=2', '--n_rnn_step_factor=2', '--do_plot=False', '--dtype=float64']

SCRIPTS = {}  # by name: forks.Script


@pytest.fixture(scope='module', autouse=True)
def programs_closed():
  """To be imported by each file of tests."""
  yield
  while SCRIPTS:
    SCRIPTS.popitem()[1].close()


def script(name):
  """A program of the folder, ready to be called."""
  if name not in SCRIPTS:
    SCRIPTS[name] = forks.Script(FOLDER / f'{name}.py')
  return SCRIPTS[name]


def call_all(calls, expect=0, name='main'):
  """Runs a program with each of some lists of flags to its end, two at a time; returns what forks.Script does."""
  running, ended = [], []

  def end():
    ended.append(script(name).end(running.pop(0), 600))
    assert ended[-1].code == expect, ended[-1].stdout + ended[-1].stderr

  for flags in calls:
    if len(running) == 2:
      end()
    running.append(script(name).start('--smoke', *flags))
  while running:
    end()
  return ended


def call(*flags, expect=0, name='main'):
  """Runs a program to its end."""
  return call_all([flags], expect, name)[0]


def metrics(folder):
  with open(folder / 'metrics.csv', newline='') as file:
    return list(csv.DictReader(file))


def run_all(folder, common, runs):
  """Runs main.py with the flags of each of runs, {name: flags}."""
  call_all([(*common, *flags, f'--result_dir={folder}', f'--run_name={name}') for name, flags in runs.items()])


def rows(folder, *left_out):
  """Rows of metrics.csv without what the clock says, and without the columns left_out."""
  return [{name: text for name, text in row.items() if name not in ('frames_per_s', *left_out)} for row in metrics(folder)]


def arrays(path):
  with np.load(path) as content:
    return dict(content)


def same(a, b, names=None):
  """Whether two dicts of arrays are the same; names: of the arrays to look at."""
  return all(np.array_equal(a[name], b[name]) for name in names or a.keys() | b.keys())

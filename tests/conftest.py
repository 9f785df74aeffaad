"""Puts the tutorials' folder on sys.path (its hyphen rules out a package) and keeps TensorFlow and matplotlib quiet."""
import os
os.environ['OPENBLAS_NUM_THREADS'] = '1'  # before NumPy, as in the scripts: small products would keep every core busy
import pathlib
import sys

import numpy as np
import pytest

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['MPLBACKEND'] = 'Agg'
TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent
FIGURE_3 = ROOT / 'Figure_3_and_S7_e-prop_tutorials'
sys.path.insert(0, str(FIGURE_3))

TRIAL_FIRST = {'inputs', 'targets', 'labels', 'done', 'learning_signal', 'z', 'v', 'a', 'psi', 'output'}


def _load(name):
  with np.load(TESTS / 'data' / f'{name}.npz') as arrays:
    return {key: array.swapaxes(0, 1) if key in TRIAL_FIRST and array.ndim > 1 else array for key, array in arrays.items()}


@pytest.fixture
def golden():
  """Loads what the published cells gave on fixed arrays, by name of the file; time-major as everything here."""
  return _load

"""Figures 4 and 5's program as a user calls it."""
import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

MAIN = pathlib.Path(__file__).resolve().parent.parent / 'Figure_4_and_5_ATARI' / 'main.py'
SMALL = ['--n_rec=20', '--n_filters_1=3', '--n_filters_2=2', '--n_rnn_step_factor=2', '--do_plot=False', '--dtype=float64']


def call(*arguments, expect=0):
  """Runs the program to its end; returns it with its output as text."""
  done = subprocess.run([sys.executable, str(MAIN), '--smoke', *map(str, arguments)], capture_output=True, text=True,
                        timeout=600, check=False)
  assert done.returncode == expect, done.stdout + done.stderr
  return done


def metrics(folder):
  with open(folder / 'metrics.csv', newline='') as file:
    return list(csv.DictReader(file))


def test_smoke_and_evaluation(tmp_path):
  call('--level_name=catch', '--save_anim', f'--result_dir={tmp_path}', '--run_name=a')
  run = tmp_path / 'main' / 'a'
  for name in ('config.json', 'summary.json', 'final_weights.npz', 'game.png', 'game.npz', 'game.gif', 'learning_curve.png'):
    assert (run / name).stat().st_size > 0, name
  assert -1 <= json.loads((run / 'summary.json').read_text())['score'] <= 1
  with np.load(run / 'final_weights.npz') as weights:  # published sizes
    assert weights['w_in'].shape == (2312, 400) and weights['w_policy'].shape == (1048, 3)
  done = call('--level_name=catch', '--mode=eval', f'--checkpoint={run}/final_weights.npz', '--do_plot=False',
              f'--result_dir={tmp_path}')
  evaluation = json.loads((tmp_path / 'main' / 'evaluation' / 'evaluation.json').read_text())
  assert evaluation['games'] == 2 and evaluation['episode_len'] == 9 and 'score' in done.stdout


def test_all_computations_agree(tmp_path):
  flags = ['--level_name=catch', *SMALL, f'--result_dir={tmp_path}', '--epsilon=1e-5', '--learning_rate=0.01']
  frames = 2 * 10 * 4  # of an update: environments, agent steps, frames per step
  for impl in ('adjoint', 'hardcoded', 'autodiff'):
    call(*flags, f'--eprop_impl={impl}', f'--run_name={impl}', f'--total_environment_frames={3 * frames}')
  rows = {impl: metrics(tmp_path / 'main' / impl) for impl in ('adjoint', 'hardcoded', 'autodiff')}
  assert len(rows['adjoint']) == 3 and rows['adjoint'][0]['value_loss'] != rows['adjoint'][2]['value_loss']
  for name in ('value_loss', 'policy_loss', 'score', 'rate_lsnn'):
    values = {impl: np.array([float(row[name]) for row in rows[impl]]) for impl in rows}
    np.testing.assert_allclose(values['hardcoded'], values['adjoint'], rtol=1e-10, err_msg=name)
    np.testing.assert_allclose(values['autodiff'], values['adjoint'], rtol=1e-10, err_msg=name)


@pytest.mark.parametrize('flags, words', [
    (['--level_name=atari/chess'], 'chess'), (['--level_name=catch', '--mode=eval'], '--checkpoint'),
    (['--level_name=catch', '--mode=eval', '--checkpoint=nowhere.npz'], 'nowhere.npz'),
    (['--level_name=catch', '--n_kernel_1=100'], 'kernel'), (['--level_name=catch', '--discounting=2'], 'discounting'),
    (['--level_name=catch', '--nouse_eprop', '--eprop_impl=hardcoded'], 'e-prop only')], ids=str)
def test_bad_input_ends_with_one_sentence_and_exit_code_2(tmp_path, flags, words):
  done = call(*flags, f'--result_dir={tmp_path}', expect=2)
  errors = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
  assert len(errors) == 1 and words in errors[0] and 'Traceback' not in done.stderr, done.stderr

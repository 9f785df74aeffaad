"""Figure 3's tasks: published constants, statistics of what is generated, and the arrays of --init_from as a task."""
import ast
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tasks import EvidenceAccumulation, GivenTrials, PatternGeneration, Task, one_hot, sum_of_sines

FOLDER = pathlib.Path(__file__).resolve().parent.parent / 'Figure_3_and_S7_e-prop_tutorials'
PUBLISHED_FLAGS = {
    'tutorial_evidence_accumulation_with_alif': dict(
        n_batch=64, n_iter=2000, learning_rate=0.005, stop_crit=0.07, print_every=10, validate_every=10, eprop=False,
        feedback='symmetric', f_regularization_type='simple', tau_a=2000.0, thr=0.6, tau_v=20.0, tau_out=20.0, reg_f=1.0,
        reg_rate=10.0, n_ref=5, dt=1.0, dampening_factor=0.3, n_regular=50, n_adaptive=50, beta=None, do_plot=True,
        device_placement=False, readout_decay=1e-3),
    'tutorial_pattern_generation': dict(
        n_batch=1, n_out=1, n_in=100, n_rec=100, f0=50.0, reg_rate=10.0, n_iter=2000, seq_len=1000, print_every=10,
        dampening_factor=0.3, learning_rate=1e-4, reg=300.0, dt=1.0, thr=0.03, tau_v=30.0, tau_out=30.0, do_plot=True,
        random_feedback=True, stop_z_gradients=True, eprop_or_bptt='eprop', readout_decay=1e-3),
}


def rng(stream, k=0):
  return np.random.default_rng([len(stream), k])


@pytest.fixture(scope='module')
def trials():
  """Many trials of evidence accumulation: the task, and x [T, B, I], labels, cues."""
  task = EvidenceAccumulation()
  return task, *task.draw(np.random.default_rng(0), 1000)


@pytest.mark.parametrize('script', PUBLISHED_FLAGS)
def test_published_flags_and_defaults(script):
  calls = [node for node in ast.walk(ast.parse((FOLDER / f'{script}.py').read_text()))
           if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith('DEFINE')]
  defaults = {}
  for call in calls:
    try:
      defaults[call.args[0].value] = ast.literal_eval(call.args[1])
    except ValueError:
      pass
  assert {name: defaults[name] for name in PUBLISHED_FLAGS[script]} == PUBLISHED_FLAGS[script]


def test_published_times(trials):
  task, x, *_ = trials
  assert (task.n_steps, task.n_in, task.n_out, task.n_recall_steps) == (2250, 40, 2, 150) and x.shape == (2250, 1000, 40)
  assert [task.cue_steps(k) for k in (0, 1, 6)] == [(50, 150), (200, 300), (950, 1050)]
  assert (EvidenceAccumulation(dt=2.0).n_steps, EvidenceAccumulation(dt=2.0).cue_steps(1)) == (1125, (100, 150))


def test_cues_take_the_majority_side_with_probability_0_7(trials):
  """The number of right cues is a mixture of two binomials; each number of cues within five standard deviations."""
  _, _, labels, cues = trials
  assert cues.shape == (1000, 7)
  binomial = np.poly1d([1.0])
  for _ in range(7):
    binomial *= np.poly1d([0.7, 0.3])
  expected = (binomial.coeffs + binomial.coeffs[::-1]) / 2
  counts = np.bincount(cues.sum(1), minlength=8) / 1000
  assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected * (1 - expected) / 1000))
  np.testing.assert_array_equal(labels, cues.sum(1) > 3)
  assert abs(labels.mean() - 0.5) < 5 * np.sqrt(0.25 / 1000)


def test_groups_fire_at_40_hz_while_their_signal_is_shown_and_noise_at_10(trials):
  task, x, _, cues = trials
  groups = x.reshape(task.n_steps, 1000, 4, 10)
  within = lambda spikes, rate: abs(spikes.mean() - rate) < 5 * np.sqrt(rate / spikes.size)
  in_cue = np.zeros(task.n_steps, bool)
  for k in range(7):
    first, last = task.cue_steps(k)
    in_cue[first:last] = True
    for side in (0, 1):
      shown = groups[first:last, :, side]
      assert within(shown[:, cues[:, k] == side], 0.04) and not shown[:, cues[:, k] != side].any()
  assert not groups[~in_cue, :, :2].any()
  assert within(groups[-150:, :, 2], 0.04) and not groups[:-150, :, 2].any()
  assert within(groups[:, :, 3], 0.01)
  assert all(within(groups[part, :, 3], 0.01) for part in (slice(0, 500), slice(1000, 1500), slice(-150, None)))


def test_batches_of_evidence_accumulation_repeat_and_differ():
  task = EvidenceAccumulation(rng, n_batch=16)
  (x, target), again, other, of_another_stream = (task.batch(*of) for of in (
      ('train', 1), ('train', 1), ('train', 2), ('validation', 1)))
  assert x.shape == (2250, 16, 40) and target.shape == (1, 16, 2) and task.fresh and task.loss == 'cross_entropy'
  assert np.array_equal(x, again[0]) and not np.array_equal(x, other[0]) and not np.array_equal(x, of_another_stream[0])


def test_decision_and_loss_are_taken_in_the_recall_period():
  task = EvidenceAccumulation()
  target = one_hot(np.array([0, 1, 1]), 2)
  y = np.zeros((2250, 3, 2))
  y[:-150, :, 0] = 100  # before the recall signal: does not count
  y[-150:, :, 1] = 0.01
  y[-150:, 1, 0] = 0.02
  assert task.error(y, target) == 2 / 3
  weight = task.loss_weight(2250, 8)
  assert weight.shape == (2250, 1, 1) and np.count_nonzero(weight) == 150 and np.all(weight[-150:] == 1 / 1200)


def test_pattern_generation():
  task = PatternGeneration(rng, n_steps=2000, n_batch=3, n_in=50, n_out=2, rate=50.0)
  (x, target), again = task.batch('train', 1), task.batch('test', 7)
  assert x.shape == (2000, 3, 50) and x.dtype == np.uint8 and target.shape == (2000, 3, 2)
  assert x is again[0] and target is again[1]  # frozen
  assert abs(x.mean() - 0.05) < 5 * np.sqrt(0.05 / x.size) and not np.array_equal(x[:, 0], x[:, 1])
  assert np.array_equal(target[:, 0], target[:, 2]) and not np.array_equal(target[:, 0, 0], target[:, 0, 1])
  assert abs(PatternGeneration(rng, rate=50.0, dt=2.0).batch('train', 1)[0].mean() - 0.1) < 0.005
  assert task.error(target, target) == 0
  np.testing.assert_allclose(task.error(np.broadcast_to(target.mean((0, 1)), target.shape), target), 1)
  assert np.array_equal(task.loss_weight(5, 3), np.ones((5, 1, 1)))


def test_target_is_a_sum_of_four_sines():
  """Fitted by sines of the four published periods it leaves nothing; amplitudes before scaling are U(0.5, 2), phases random."""
  target = sum_of_sines(np.random.default_rng(0), 1000, 400)
  assert not target[0].any()
  np.testing.assert_allclose(np.abs(target).max(0), 1)
  angle = 2 * np.pi * np.arange(1000)[:, None] / np.array([1000, 500, 333, 200])
  basis = np.concatenate([np.sin(angle), np.cos(angle), np.ones((1000, 1))], 1)
  fit, *_ = np.linalg.lstsq(basis, target, rcond=None)
  np.testing.assert_allclose(basis @ fit, target, atol=1e-10)
  amplitude = np.hypot(fit[:4], fit[4:8])
  ratio = amplitude / amplitude.sum(0)  # scaling drops out
  of_uniform = np.random.default_rng(1).uniform(0.5, 2, (4, 10000))
  np.testing.assert_allclose(ratio.std(), (of_uniform / of_uniform.sum(0)).std(), rtol=0.1)
  assert 0.5 / 6.5 < ratio.min() and ratio.max() < 2 / 3.5
  phase = np.arctan2(fit[4:8], fit[:4])
  assert np.abs(np.exp(1j * phase).mean(1)).max() < 0.25


def test_given_trials_are_a_task_like_the_others():
  like = EvidenceAccumulation()
  generator = np.random.default_rng(0)
  inputs, labels = generator.random((3, 4, 200, 8)), np.array([[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]])
  task = GivenTrials(like, inputs, np.eye(2)[labels][:, :, None], n_iter=3)
  assert isinstance(task, Task) and (task.n_batch, task.n_steps, task.n_in, task.n_out, task.fresh) == (4, 200, 8, 2, False)
  for k in (1, 2, 3):
    x, target = task.batch('train', k)
    assert np.array_equal(x, inputs[k - 1].swapaxes(0, 1)) and np.array_equal(target[0].argmax(1), labels[k - 1])
  for stream in ('test', 'figure'):
    assert np.array_equal(task.batch(stream, 0)[0], x)
  x, target, shaded = task.shown()
  assert x.shape == (200, 1, 8) and target.shape == (1, 1, 2) and not shaded
  same = GivenTrials(like, inputs[0], np.zeros((4, 200, 2)), n_iter=3)
  assert np.array_equal(same.batch('train', 1)[0], same.batch('train', 3)[0]) and same.batch('train', 1)[1].shape == (200, 4, 2)


@pytest.mark.parametrize('script, flags, stds', [
    ('tutorial_evidence_accumulation_with_alif', ['--eprop', '--feedback=random', '--n_batch=1'],
     dict(w_in=40 ** -0.5, w_rec=0.1, w_out=(2 / 102) ** 0.5, b_out=1.0)),
    ('tutorial_pattern_generation', ['--n_out=3', '--seq_len=20'], dict(w_in=0.1, w_rec=0.1, w_out=0.1, b_out=0.1))])
def test_initial_weights(tmp_path, script, flags, stds):
  """What a run that does not learn ends with: mean 0 and the published standard deviations; Glorot's are uniform."""
  subprocess.run([sys.executable, FOLDER / f'{script}.py', *flags, '--n_iter=1', '--learning_rate=0', '--do_plot=False',
                  f'--result_dir={tmp_path}', '--run_name=a'], check=True, capture_output=True, timeout=300)
  run = tmp_path / script / 'a'
  weights = dict(np.load(run / 'final_weights.npz'))
  assert not np.diag(weights['w_rec']).any()
  for name, std in stds.items():
    w = weights[name]
    assert abs(w.std() / std - 1) < 5 / np.sqrt(2 * w.size) and abs(w.mean()) < 5 * std / np.sqrt(w.size), name
  if 'evidence' in script:
    limit = (6 / 102) ** 0.5
    assert 0.95 * limit < np.abs(weights['w_out']).max() <= limit
  assert json.loads((run / 'config.json').read_text())['flags']['learning_rate'] == 0

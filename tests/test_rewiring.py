"""Deep R: signs, number of synapses, how dormant ones come back, exact repetition."""
import numpy as np
import pytest
import tensorflow as tf

from conftest import FIGURE_3
from forks import Script
from rewiring import draw_signs, draw_weights, rewire

N_PRE, N_POST = 30, 30


def network(dale=True, connectivity=0.1, autapses=False, seed=0):
  rng = np.random.default_rng(seed)
  sign = draw_signs(rng, N_PRE, N_POST, dale)
  return (*draw_weights(rng, sign, connectivity, autapses), sign)


@pytest.mark.parametrize('dale', [True, False])
def test_initial_network(dale):
  w, active, sign = network(dale)
  assert active.sum() == round(0.1 * (N_PRE * N_POST - N_PRE)) and not active.diagonal().any()
  assert np.array_equal(w != 0, active) and np.all(w * sign >= 0)
  if dale:
    assert np.all(sign == sign[:, :1]) and (sign[:, 0] > 0).sum() == round(0.75 * N_PRE)
  else:
    assert 0.4 < np.mean(sign > 0) < 0.6 and not np.all(sign == sign[:, :1])
  np.testing.assert_allclose(np.sum(w ** 2), N_POST)  # as N(0, 1) / sqrt(fan-in)
  rng = np.random.default_rng(0)
  big = draw_weights(rng, draw_signs(rng, 400, 400, dale), 0.2)[0]
  assert abs(big.sum()) < 0.03 * np.abs(big).sum()    # excitation and inhibition balance


def test_rule_against_numpy():
  """Without noise every number is known but which dormant synapses are drawn."""
  w, active, sign = network()
  step = 0.3 * np.random.default_rng(1).standard_normal(w.shape)  # the optimizer moves dormant synapses, too
  new, now = map(np.array, rewire(w + step, active, sign, [3, 4], learning_rate=0.5, l1=0.1, autapses=False))
  theta = sign * (w + step) - 0.5 * 0.1
  stays = active & (theta >= 0)
  assert 0 < stays.sum() < active.sum()
  np.testing.assert_allclose(new, np.where(stays, sign * theta, 0), rtol=1e-15)
  assert now[stays].all() and now.sum() == active.sum() and not now.diagonal().any()


def test_signs_and_number_of_synapses_stay_over_many_steps():
  w, active, sign = network()
  n_active, rng = active.sum(), np.random.default_rng(2)
  ever, step = active.copy(), tf.function(rewire)
  for k in range(200):
    w, active = step(w + 0.02 * rng.standard_normal(w.shape), active, sign, tf.constant([7, k]), 0.01, l1=0.01, temperature=0.1,
                     autapses=False)
    w, active = w.numpy(), active.numpy()
    assert active.sum() == n_active and np.all(w * sign >= 0) and not np.any(w[~active])
    ever |= active
  assert ever.sum() > 3 * n_active and not ever.diagonal().any()


def test_dormant_synapses_come_back_with_equal_probability():
  w, active, sign = network()
  falling = np.where(np.cumsum(active) <= 30, -1.0, 1.0).reshape(w.shape) * active  # theta of 30 synapses falls below 0
  n_trials, step = 400, tf.function(rewire)
  runs = (step(sign * falling, active, sign, tf.constant([k, 1]), 0.0, autapses=False)[1] for k in range(n_trials))
  count = sum(now.numpy().astype(int) for now in runs)
  stays = falling > 0
  assert np.all(count[stays] == n_trials) and not count.diagonal().any()
  others = count[~stays & ~np.eye(N_PRE, dtype=bool)]
  rate = 30 / len(others)
  assert others.sum() == 30 * n_trials
  deviation = (others - rate * n_trials) / np.sqrt(n_trials * rate * (1 - rate))
  assert 0.85 < np.std(deviation) < 1.15 and np.abs(deviation).max() < 5.5


def test_noise_has_the_stated_size():
  sign = np.ones((200, 200))
  w, active = rewire(np.full(sign.shape, 10.0), sign > 0, sign, [1, 2], learning_rate=0.02, l1=0.5, temperature=3.0)
  assert active.numpy().all()
  np.testing.assert_allclose(np.mean(w), 10 - 0.02 * 0.5, atol=5 * 0.12 ** 0.5 / 200)
  np.testing.assert_allclose(np.var(w), 2 * 0.02 * 3.0, rtol=0.04)


def test_same_seed_same_result():
  w, active, sign = network()
  runs = [rewire(w, active, sign, seed, 0.1, l1=3.0, temperature=0.1) for seed in ([5, 6], [5, 6], [5, 7])]
  equal = lambda a, b: all(np.array_equal(x, y) for x, y in zip(a, b))
  assert equal(runs[0], runs[1]) and not equal(runs[0], runs[2])


def arrays(path):
  with np.load(path) as file:
    return dict(file)


def test_evidence_accumulation_with_rewiring(tmp_path):
  """Three iterations and, resumed, three more are six; signs and number of synapses stay; the readout is free."""
  script = Script(FIGURE_3 / 'tutorial_evidence_accumulation_with_alif.py')
  flags = ['--eprop', '--feedback=random', '--connectivity=0.1', '--dale', '--rewiring_temperature=1', '--n_batch=2',
           '--n_regular=15', '--n_adaptive=15', '--do_plot=False', f'--result_dir={tmp_path}']
  for more in (['--run_name=six', '--n_iter=6'], ['--run_name=three', '--n_iter=3'],
               ['--run_name=three', '--n_iter=6', '--resume']):
    if more[-1] == '--resume':
      three = arrays(tmp_path / script.path.stem / 'three' / 'final_weights.npz')
    done = script(*flags, *more)
    assert done.code == 0, done.stdout + done.stderr
    assert 'the criterion of fewer than 7 % wrong decisions was not met' in done.stdout
  refused = script(*flags, f'--init_from={tmp_path}/weights.npz')
  script.close()
  assert refused.code == 2 and '--connectivity' in refused.errors[0]
  six, resumed = (arrays(tmp_path / script.path.stem / name / 'final_weights.npz') for name in ('six', 'three'))
  assert all(np.array_equal(six[name], resumed[name]) for name in six)
  assert (tmp_path / script.path.stem / 'six' / 'metrics.csv').read_text() == (
      tmp_path / script.path.stem / 'three' / 'metrics.csv').read_text()
  for name, possible in (('w_in', 40 * 30), ('w_rec', 30 * 29)):
    excitatory, inhibitory = (six[name] > 0).any(1), (six[name] < 0).any(1)
    assert not np.any(excitatory & inhibitory)
    n_active = round(0.1 * possible)
    assert 0.7 * n_active < np.count_nonzero(six[name]) <= n_active     # a new synapse begins with weight 0
    assert np.any((six[name] != 0) & (three[name] == 0)) and np.any((six[name] == 0) & (three[name] != 0))
  assert np.all(six['w_out'] != 0)

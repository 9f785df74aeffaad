"""Runs on Catch: when weights change, what flags and schedules change of them, and where training begins."""
import itertools

import numpy as np
import pytest

from atari_programs import SMALL, arrays, call, programs_closed, rows, run_all, same  # noqa: F401
import clipped_updates

ONCE = ['--learning_rate=0.01', '--learning_rate_decay=0', '--decay_every=80']  # the first iteration of 80 frames learns
STILL = ['--learning_rate=0']
PLAIN = ['--learning_rate=0.01', '--nouse_cubic_schedule']
TWICE = ['--noapply_after_end', '--update_epochs=2', '--n_minibatches=2']


@pytest.fixture(scope='module')
def on_catch(tmp_path_factory):
  """Folder of runs of three iterations, by name; a game lasts 9 agent steps, 8 in the first iteration."""
  folder = tmp_path_factory.mktemp('catch')
  common = ['--level_name=catch', *SMALL, '--epsilon=1e-5', '--reg_factor_cnn=1', '--unroll_length=5', '--max_episode_len=8',
            '--increase_episode_len_every=80', '--total_environment_frames=240']
  one_window = ['--unroll_length=9', '--max_episode_len=9', '--learning_rate=0.01', '--total_environment_frames=216']
  run_all(folder, common, dict(
      trained=ONCE, windows=[*ONCE, '--noapply_after_end'], still=STILL, still_windows=[*STILL, '--noapply_after_end'],
      plain=PLAIN, scheduled=[*PLAIN, '--max_episode_len=8,160:4', '--learning_rate=0.01,160:0',
                                '--total_environment_frames=200'],
      discounted=[*PLAIN, '--discounting=0.99,160:0.5'], entropy=[*PLAIN, '--entropy_cost=0.0025,160:1'],
      critic=[*PLAIN, '--baseline_cost=1,160:3', '--gae_lambda=1,160:0.5'],
      grouped=[*PLAIN, '--noapply_after_end', '--n_minibatches=1,160:2'], ungrouped=[*PLAIN, '--noapply_after_end'],
      warming=['--learning_rate=0.01', '--critic_warmup_frames=1e6', '--entropy_cost=0'],
      undivided=[*one_window, *STILL], divided=[*one_window, *STILL, '--normalise_advantages'],
      longer=[*ONCE, '--total_environment_frames=80'], still_heads=[*ONCE, '--learning_rate_heads=0'],
      one_window=one_window, one_window_each=[*one_window, '--noapply_after_end'],
      twice=[*ONCE, *TWICE, '--clip_range=1e-4'], never_clipped=[*ONCE, *TWICE, '--clip_range=1e9'],
      still_twice=[*STILL, *TWICE]))
  weights = f'{folder}/main/trained/final_weights.npz'
  run_all(folder, common, dict(
      restored=[*STILL, f'--restore_from={weights}'], cnn=[*STILL, f'--restore_cnn_from={weights}'],
      restarted=[*STILL, f'--restore_from={weights}', '--noresume_max_episode_len'], longer=[*ONCE, '--resume']))
  return folder / 'main'


def test_finished_run_goes_on_with_more_frames(on_catch):
  assert rows(on_catch / 'longer') == rows(on_catch / 'trained')
  assert same(*(arrays(on_catch / name / 'final_weights.npz') for name in ('longer', 'trained')))


def test_noapply_after_end_changes_weights_after_each_window(on_catch):
  """The costs of rates and voltages count all steps and trials in both modes, so that only the weights can tell them apart."""
  assert rows(on_catch / 'one_window') == rows(on_catch / 'one_window_each')  # no window follows the one that learned
  assert len({row['value_loss'] for row in rows(on_catch / 'one_window')}) == 3
  masked = ('policy_loss', 'value_loss', 'explained', 'advantage_sd')  # the first mode does not count steps after a game
  still, still_windows = (rows(on_catch / name, *masked) for name in ('still', 'still_windows'))
  assert still == still_windows
  assert same(*(arrays(on_catch / name / 'final_weights.npz') for name in ('still', 'still_windows')))
  trained, windows = (rows(on_catch / name, *masked) for name in ('trained', 'windows'))
  unchanged = dict(still[0], learning_rate='0.01')
  assert trained[0] == unchanged
  for name in ('voltage_cnn_loss', 'voltage_rnn_loss', 'entropy'):
    assert windows[0][name] != unchanged[name], name


def test_heads_have_a_learning_rate_of_their_own(on_catch):
  trained, still, still_heads = (arrays(on_catch / name / 'final_weights.npz') for name in ('trained', 'still', 'still_heads'))
  heads = ['w_policy', 'b_policy', 'w_value', 'b_value']
  assert same(still_heads, still, heads) and same(still_heads, trained, [name for name in trained if name not in heads])
  assert not any(same(trained, still, [name]) for name in heads)


def test_schedules_of_flags_change_what_they_say_when_they_say(on_catch):
  """After two iterations of 80 frames; the discount is seen in the value's loss, the entropy's cost in the weights."""
  plain, scheduled = rows(on_catch / 'plain'), rows(on_catch / 'scheduled')
  columns = lambda name: [float(row[name]) for row in scheduled]
  assert columns('max_episode_len') == [8, 8, 4] and columns('episode_len') == [8, 8, 4]
  assert columns('learning_rate') == [0.01, 0.01, 0] and columns('frames') == [80, 160, 200]
  assert scheduled[:2] == plain[:2] and scheduled[2] != plain[2]
  discounted = rows(on_catch / 'discounted')
  assert discounted[:2] == plain[:2] and discounted[2] == dict(plain[2], value_loss=discounted[2]['value_loss'], **{
      name: discounted[2][name] for name in ('policy_loss', 'explained', 'advantage_sd')})
  assert discounted[2]['value_loss'] != plain[2]['value_loss']
  weights = [arrays(on_catch / name / 'final_weights.npz') for name in ('plain', 'entropy')]
  assert rows(on_catch / 'entropy') == plain and not same(*weights, ['w_policy'])
  critic = rows(on_catch / 'critic')
  cost = [float(row['value_loss']) / float(row['advantage_sd']) ** 2 for row in (plain[2], critic[2])]
  assert critic[:2] == plain[:2] and critic[2]['policy_loss'] != plain[2]['policy_loss']
  np.testing.assert_allclose(cost[1], 3 * cost[0], rtol=1e-9)


def test_windows_are_split_from_the_frames_on_that_say_so(on_catch):
  drift = ('kl', 'clipped')
  grouped, ungrouped = rows(on_catch / 'grouped', *drift), rows(on_catch / 'ungrouped')
  assert grouped[:2] == ungrouped[:2] and grouped[2] != ungrouped[2]
  kl = [float(row['kl']) for row in rows(on_catch / 'grouped')]
  assert kl[:2] == [0, 0] and kl[2] > 0


def test_critic_learns_first(on_catch):
  """The policy's head waits, the value's and the LSNN do not."""
  warming, still = (arrays(on_catch / name / 'final_weights.npz') for name in ('warming', 'still'))
  assert same(warming, still, ['w_policy', 'b_policy']) and not same(warming, still, ['w_value'])
  assert float(rows(on_catch / 'warming')[0]['policy_loss']) == 0 and not same(warming, still, ['w_rec'])


def test_advantages_are_divided_by_their_running_deviation(on_catch):
  """The first window gives its size, the third iteration's policy loss the mean of the two before."""
  plain, divided = rows(on_catch / 'undivided'), rows(on_catch / 'divided')
  numbers = lambda name, table=plain: np.array([float(row[name]) for row in table])
  sd = numbers('advantage_sd')
  weight = [0, 1 / sd[0], 1 / np.sqrt((0.99 * sd[0] ** 2 + sd[1] ** 2) / 1.99)]
  np.testing.assert_allclose(numbers('policy_loss', divided), weight * numbers('policy_loss'), rtol=1e-9)
  assert numbers('value_loss', divided).tolist() == numbers('value_loss').tolist()


def test_clipped_updates_are_several(on_catch):
  """Without learning they see what one update sees, but for the rates of one trial instead of two, whose squares count."""
  names = ('windows', 'twice', 'never_clipped', 'still_twice', 'still_windows')
  first = {name: rows(on_catch / name)[0] for name in names}
  weights = {name: arrays(on_catch / name / 'final_weights.npz') for name in names}
  for a, b in itertools.combinations(names[:3], 2):
    assert not any(same(weights[a], weights[b], [name]) for name in ('conv1', 'w_in', 'w_rec', 'w_policy')), (a, b)
  assert same(weights['still_twice'], weights['still_windows'])
  assert not {'kl', 'clipped'} & first['windows'].keys()
  names = ('still_twice', 'twice', 'never_clipped')
  still, twice, never = ({name: float(x) for name, x in first[run].items()} for run in names)
  for name in ('value_loss', 'entropy', 'explained', 'voltage_rnn_loss', 'voltage_cnn_loss', 'advantage_sd', 'rate_lsnn'):
    np.testing.assert_allclose(still[name], float(first['still_windows'][name]), rtol=1e-10, err_msg=name)
  assert abs(still['kl']) < 1e-20 and min(twice['kl'], never['kl']) > 1e-10
  assert still['clipped'] == never['clipped'] == 0 < twice['clipped'] < 1


def test_groups_of_environments():
  """Each environment in one group, at random, and the same whoever's they are."""
  of_all = clipped_updates.groups(np.random.default_rng(1), 12, slice(0, 12), 3)
  assert sorted(of_all.ravel()) == list(range(12)) and of_all.shape == (3, 4)
  of_workers = [clipped_updates.groups(np.random.default_rng(1), 12, slice(first, first + 6), 3) + first for first in (0, 6)]
  np.testing.assert_array_equal(np.concatenate(of_workers, 1), of_all)
  assert len({tuple(clipped_updates.groups(np.random.default_rng(seed), 12, slice(0, 12), 3)[0]) for seed in range(20)}) > 10


def test_restored_weights_play_as_in_the_run_they_come_from(on_catch):
  """In that run the second and the third iteration were played with the final weights, too."""
  trained, restarted, still = (rows(on_catch / name, 'learning_rate') for name in ('trained', 'restarted', 'still'))
  assert restarted[1:] == trained[1:] and len({row['value_loss'] for row in trained}) == 3
  assert all(row['value_loss'] != other['value_loss'] for row, other in zip(restarted, still))
  names = ('trained', 'restarted', 'restored', 'cnn', 'still')
  weights = {name: arrays(on_catch / name / 'final_weights.npz') for name in names}
  assert weights['trained'].pop('frames') == weights['cnn'].pop('frames') == weights['restarted'].pop('frames') == 240
  assert weights['restored'].pop('frames') == 480 and len(weights['trained']) == 10
  assert same(weights['trained'], weights['restarted']) and same(weights['trained'], weights['restored'])
  cnn = ['conv1', 'bias1', 'conv2', 'bias2']
  others = [name for name in weights['trained'] if name not in cnn]
  assert not any(same(weights['trained'], weights['still'], [name]) for name in cnn + others)
  assert same(weights['cnn'], weights['trained'], cnn) and same(weights['cnn'], weights['still'], others)


def test_schedule_of_episode_lengths_goes_on_with_restored_weights(on_catch):
  """Its cubic root, 2 at the beginning, grows by 1 every 80 frames; 240 frames were played before."""
  columns = lambda column: {name: [float(row[column]) for row in rows(on_catch / name)]
                            for name in ('trained', 'restored', 'restarted')}
  assert columns('max_episode_len') == dict(trained=[8, 27, 64], restored=[125, 216, 343], restarted=[8, 27, 64])
  assert columns('episode_len') == dict(trained=[8, 9, 9], restored=[9, 9, 9], restarted=[8, 9, 9])

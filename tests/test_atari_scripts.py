"""Figures 4 and 5's programs as a user calls them."""
import csv
import importlib.util
import json
import os
import zlib

import imageio_ffmpeg
import numpy as np
import pytest

from atari_programs import (FOLDER, SMALL, arrays, call, call_all, metrics, programs_closed, rows, run_all, same,  # noqa: F401
                            script)
import environments
import forks
import machine

BROADCAST = ['--ba_cnn', '--noavg_ba_cnn', '--reg_factor_cnn=1']  # so that all of them learn from rewards


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
  call('--level_name=catch', '--mode=chance', f'--result_dir={tmp_path}')
  np.testing.assert_allclose(arrays(tmp_path / 'main' / 'chance' / 'game.npz')['policy'], 1 / 3, rtol=1e-6)


def test_evaluation_is_of_the_agent_that_was_trained_and_keeps_what_is_there(tmp_path):
  """As many games as asked for, though they are more or fewer than the environments, which are two."""
  flags = ['--level_name=catch', *SMALL, f'--result_dir={tmp_path}']
  call(*flags, '--run_name=a', '--eval_episodes=1')
  run, weights = tmp_path / 'main' / 'a', tmp_path / 'main' / 'a' / 'final_weights.npz'
  assert json.loads((run / 'summary.json').read_text())['games'] == 1
  before = {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}
  evaluation = ['--mode=eval', f'--checkpoint={weights}']
  call(*flags, *evaluation, '--eval_episodes=3', '--run_name=b')
  assert json.loads((tmp_path / 'main' / 'b' / 'evaluation.json').read_text())['games'] == 3
  locked = tmp_path / 'main' / 'locked'
  locked.mkdir()
  lock = machine.Lock(locked)
  refused = {('--run_name=a',): 'holds a training', ('--run_name=locked',): f'process {os.getpid()}',
             ('--tau=3', '--num_action_repeats=8'): '--num_action_repeats=4 (now 8), --tau=15.0 (now 3.0)',
             ('--level_name=catch_cue_delay',): '--level_name=catch (now', ('--n_rec=21',): '--n_rec=20',
             ('--mode=chance', '--eval_greedy'): 'no --eval_greedy'}
  for (more, words), done in zip(refused.items(), call_all([[*flags, *evaluation, *more] for more in refused], expect=2)):
    assert len(done.errors) == 1 and words in done.errors[0] and 'Traceback' not in done.stderr, f'{more}: {done.stderr}'
  lock.release()
  warned, plain = call_all([[*flags, f'--restore_from={weights}', *more] for more in (['--tau=3'], ['--learning_rate=1e-4'])])
  assert [line for line in warned.stderr.splitlines() if '--tau=15.0 (now 3.0)' in line][0].startswith('warning: ')
  assert 'of a training with' not in plain.stderr
  assert before == {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}


def test_published_weights_play_with_the_flags_of_their_training_alone(tmp_path):
  of = {'pong_finer': ['--preset=pong'], 'pong': ['--preset=laptop', '--level_name=atari/pong'],
        'fishing_derby': ['--preset=fishing_derby']}
  evaluation = {name: ['--mode=eval', f'--checkpoint={FOLDER}/figures/{name}_weights.npz', '--do_plot=False',
                       f'--result_dir={tmp_path}', f'--run_name={name}'] for name in of}
  call_all([[*of[name], *evaluation[name]] for name in of])
  for done in call_all([evaluation[name] for name in of], expect=2):
    assert len(done.errors) == 1 and '--thr_scnn=' in done.errors[0] and '(now 0.1)' in done.errors[0], done.stderr


@pytest.mark.parametrize('impls, flags', [
    (('adjoint', 'hardcoded', 'autodiff'), []),
    # The online form keeps its traces from window to window. Autodiff simulates each window anew, with its weights.
    (('adjoint', 'autodiff'), ['--noapply_after_end', '--unroll_length=5']),
    (('adjoint', 'autodiff'), ['--noapply_after_end', '--unroll_length=5', '--update_epochs=2', '--n_minibatches=2'])],
                         ids=['iterations', 'windows', 'clipped updates'])
def test_all_computations_agree(tmp_path, impls, flags):
  frames = 2 * 10 * 4  # of an update: environments, agent steps, frames per step
  run_all(tmp_path, ['--level_name=catch', *SMALL, '--epsilon=1e-5', '--learning_rate=0.01',
                     f'--total_environment_frames={3 * frames}', *flags], {impl: [f'--eprop_impl={impl}'] for impl in impls})
  found = {impl: metrics(tmp_path / 'main' / impl) for impl in impls}
  assert len(found['adjoint']) == 3 and found['adjoint'][0]['value_loss'] != found['adjoint'][2]['value_loss']
  for name in ('value_loss', 'policy_loss', 'score', 'rate_lsnn'):
    values = {impl: np.array([float(row[name]) for row in found[impl]]) for impl in impls}
    for impl in impls[1:]:
      np.testing.assert_allclose(values[impl], values['adjoint'], rtol=1e-10, err_msg=name)


def test_broadcast_convolutions_learn_unless_the_heads_alone_do(tmp_path):
  """And play from their file."""
  flags = ['--level_name=catch', *SMALL, *BROADCAST]
  run_all(tmp_path, [*flags, '--epsilon=1e-5'], dict(still=['--learning_rate=0'], whole=[], heads=['--nocell_train'],
                                                     averages=['--avg_ba_cnn']))
  still, whole, heads, averages = (arrays(tmp_path / 'main' / name / 'final_weights.npz') for name in (
      'still', 'whole', 'heads', 'averages'))
  broadcast = {'broadcast1': (8, 8, 3, 32), 'bias_broadcast1': (32,), 'broadcast2': (4, 4, 2, 64), 'bias_broadcast2': (64,)}
  assert {name: still[name].shape for name in still.keys() - averages.keys()} == broadcast  # averages go before them
  changed = lambda weights: {name for name in weights if not np.array_equal(weights[name], still[name])}
  assert changed(whole) == whole.keys() - {'frames'} and changed(heads) == {'w_policy', 'b_policy', 'w_value', 'b_value'}
  call(*flags, '--mode=eval', f'--checkpoint={tmp_path}/main/whole/final_weights.npz', f'--result_dir={tmp_path}')


def test_bad_input_ends_with_one_sentence_and_exit_code_2(tmp_path):
  on_catch = {
      '--mode=eval': '--checkpoint', '--mode=eval --checkpoint=nowhere.npz': 'nowhere.npz', '--n_kernel_1=100': 'kernel',
      '--discounting=2': 'discounting', '--entropy_cost=1,5': 'VALUE,FRAMES:VALUE',
      '--nouse_eprop --eprop_impl=hardcoded': 'e-prop only', '--noavg_ba_cnn': '--ba_cnn',
      '--checkpoint=weights.npz': '--restore_from', '--update_epochs=2': '--noapply_after_end',
      '--noapply_after_end --n_minibatches=2 --eprop_impl=hardcoded': '--eprop_impl=adjoint',
      '--noapply_after_end --n_minibatches=3': 'must divide', '--noapply_after_end --n_minibatches=1,9:3': 'must divide',
      '--n_minibatches=1,9:2': '--noapply_after_end', '--unroll_length=2.7': 'whole numbers',
      '--max_episode_len=9,10:1.5': 'whole numbers'}
  cases = [('--level_name=atari/chess', 'chess'), *((f'--level_name=catch {flags}', on_catch[flags]) for flags in on_catch)]
  calls = [(*flags.split(), f'--result_dir={tmp_path}') for flags, _ in cases]
  for (flags, words), done in zip(cases, call_all(calls, expect=2)):
    assert len(done.errors) == 1 and words in done.errors[0] and 'Traceback' not in done.stderr, f'{flags}: {done.stderr}'


def test_milestones():
  """Iterations of a million frames at 1,000 frames/s, that is 1000 s each."""
  spec = importlib.util.spec_from_file_location('atari_plots', FOLDER / 'plots.py')  # other folders have a plots.py, too
  plots = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(plots)
  scores = np.array([-20.5, -17, -19, -14.9, -15.1, -4, -6])
  curve = dict(score=scores, frames=1e6 * np.arange(1, 8), frames_per_s=np.full(7, 1e3))
  found = plots.milestones(curve)
  assert [(level, frames) for level, frames, _ in found] == [(-20, 2e6), (-15, 4e6), (-10, 6e6), (-5, 6e6)]
  np.testing.assert_allclose([hours for *_, hours in found], np.array([2, 4, 6, 6]) * 1e3 / 3600)
  assert plots.milestones({name: x[:1] for name, x in curve.items()}) == []
  (level, *_), = plots.milestones(dict(curve, score=np.array([-0.5, -0.5, -0.5, 0.5, 0.5, 0.5, 0.5])))
  assert f'{level:.0f}' == '0'


# ---------------------------------------------------------------------------------------------------------------------
# Stopped and resumed


@pytest.mark.parametrize('flags', [
    ['--level_name=catch', '--total_environment_frames=4800', '--increase_episode_len_by=1'],
    ['--level_name=atari/pong', '--noapply_after_end', '--total_environment_frames=3200', '--update_epochs=2',
     '--n_minibatches=2', '--max_episode_len_jitter=2', '--increase_episode_len_by=0.1']], ids=['catch', 'pong'])
def test_killed_and_resumed_is_as_uninterrupted(tmp_path, flags):
  flags = [*flags, *SMALL, '--unroll_length=5', '--max_episode_len=8', '--increase_episode_len_every=400', '--epsilon=1e-5',
           '--learning_rate=0.01', '--learning_rate_decay=0.9', '--decay_every=400', '--eval_max_episode_len=20',
           f'--result_dir={tmp_path}']
  whole, broken = tmp_path / 'main' / 'whole', tmp_path / 'main' / 'broken'
  wanted = np.random.default_rng().integers(8, 20)
  ready = lambda: any((broken / 'checkpoints').glob('[0-9]*.npz')) and len(metrics(broken)) >= wanted
  # Checkpoints are rarer than iterations, so that rows of metrics.csv have none when the program is killed.
  start = lambda *more: script('main').start('--smoke', *flags, *more)
  uninterrupted = start('--run_name=whole')
  script('main').kill_when(ready, start('--run_name=broken', '--checkpoint_seconds=0.3'))
  assert script('main').end(uninterrupted, 600).code == 0
  n_killed = len(metrics(broken))
  done = call(*flags, '--run_name=broken', '--resume', '--checkpoint_seconds=0', '--print_every=1')
  n_first = int(done.stdout.split(maxsplit=2)[1])
  assert 1 < n_first <= n_killed + 1 < len(metrics(whole)), (n_first, n_killed)
  assert rows(broken) == rows(whole) and len({row['max_episode_len'] for row in rows(whole)}) > 5
  assert same(*(arrays(run / 'final_weights.npz') for run in (whole, broken)))
  summaries = [json.loads((run / 'summary.json').read_text()) for run in (whole, broken)]
  assert all(summaries[0][name] == summaries[1][name] for name in ('score', 'episode_len', 'frames', 'iterations'))


# ---------------------------------------------------------------------------------------------------------------------
# Runs on Atari: seeds, files, settings


@pytest.fixture(scope='module')
def on_pong(tmp_path_factory):
  """Folder of runs of three iterations of 1,000 frames, by name; `written` writes what it can, and learns in the first two."""
  folder = tmp_path_factory.mktemp('pong')
  common = ['--level_name=atari/pong', *SMALL, '--num_action_repeats=50', '--unroll_length=5', '--epsilon=1e-5',
            '--learning_rate=0.01', '--learning_rate_decay=0', '--decay_every=2000', '--total_environment_frames=3000',
            '--eval_max_episode_len=10']
  run_all(folder, common, dict(
      written=['--do_plot', '--save_observations', '--export_image_data', '--save_anim', '--anim_format=mp4',
               '--log_every=2000', '--save_every=1000'], plain=[], other=['--seed=1']))
  return folder / 'main'


def test_same_seed_same_metrics_whatever_is_written(on_pong):
  written, plain, other = (rows(on_pong / name) for name in ('written', 'plain', 'other'))
  assert written == plain and len(plain) == 3
  assert same(*(arrays(on_pong / name / 'final_weights.npz') for name in ('written', 'plain')))
  for name in ('policy_loss', 'value_loss'):
    assert all(row[name] != other_row[name] for row, other_row in zip(plain, other)), name


def test_written_observations(on_pong):
  """Two windows of 5 agent steps an iteration, in which both games end with the last step."""
  run = on_pong / 'written'
  assert len(list(run.glob('observations_*'))) == 6
  for k, row in enumerate(rows(run), 1):
    first, second = (arrays(run / f'observations_{k}_{window}.npz') for window in (1, 2))
    for window in (first, second):
      assert {name: (array.dtype, array.shape) for name, array in window.items()} == dict(
          observation=(np.uint8, (6, 2, 84, 84)), reward=(np.float32, (5, 2)), done=(bool, (5, 2)))
    assert np.array_equal(first['observation'][-1], second['observation'][0])
    assert len({frame.tobytes() for frame in [*first['observation'], *second['observation'][1:]]}) > 5  # something moves
    assert np.concatenate([first['done'], second['done']]).tolist() == [[False] * 2] * 9 + [[True] * 2]
    assert (first['reward'].sum() + second['reward'].sum()) / 2 == float(row['score'])


def test_written_weights_games_and_animations(on_pong):
  run = on_pong / 'written'
  assert sorted(path.name for path in run.glob('*_*') if not path.name.startswith('observations')) == [
      'final_weights.npz', 'game_2k.mp4', 'game_2k.png', 'learning_curve.png', 'screens_2k.npz', 'weights_1000.npz',
      'weights_2000.npz', 'weights_3000.npz']
  kept = {frames: arrays(run / f'weights_{frames}.npz') for frames in (1000, 2000, 3000)}
  assert [int(weights.pop('frames')) for weights in kept.values()] == [1000, 2000, 3000]
  final = arrays(run / 'final_weights.npz')
  assert final.pop('frames') == 3000 and len(final) == 10 and all(array.dtype == np.float64 for array in final.values())
  assert same(kept[3000], final) and same(kept[2000], final) and not same(kept[1000], final, ['w_rec'])
  game = arrays(run / 'game.npz')
  assert game['screens'].shape == (10, 210, 160, 3) and game['screens'].dtype == np.uint8
  assert game['spikes'].shape == (20, 20) and game['spikes'].dtype == bool and game['n_regular'] == 12
  assert game['policy'].shape == (10, 3) and np.allclose(game['policy'].sum(1), 1)
  assert np.array_equal(arrays(run / 'screens.npz')['screens'], game['screens'])
  assert np.array_equal(arrays(run / 'screens_2k.npz')['screens'][0], game['screens'][0])  # the same game
  for name in ('game.mp4', 'game_2k.mp4'):
    n_frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(run / name))
    assert n_frames == 10 and abs(seconds - 10 * 50 / 60) < 0.1


@pytest.fixture(scope='module')
def fishing_derby(tmp_path_factory):
  """Folder of a run on Fishing Derby whose agent cannot act: the emulator repeats the first frames' absence of action."""
  folder = tmp_path_factory.mktemp('fishing_derby')
  call('--preset=fishing_derby', '--maxpool', '--fire_reset', '--repeat_action_probability=1', '--noop_max=3',
       '--num_action_repeats=3', '--eval_max_episode_len=5', '--save_observations', f'--result_dir={folder}', '--run_name=a')
  return folder / 'main' / 'a'


@pytest.mark.parametrize('other', [{}, dict(maxpool=False), dict(fire_reset=False), dict(repeat_action_probability=0.25),
                                   dict(noop_max=29), dict(frame_skip=4)], ids=str)
def test_settings_reach_the_emulator(fishing_derby, other):
  """Frames are those of an environment with the flags' settings, and no others."""
  settings = dict(maxpool=True, fire_reset=True, repeat_action_probability=1.0, noop_max=3, frame_skip=3, max_episode_len=20,
                  subtract_background=True)
  game = environments.make('atari/fishing_derby', 2, 0, environments.Settings(**{**settings, **other}))
  seed = np.random.default_rng([0, zlib.crc32(b'episodes'), 1]).integers(2 ** 31)
  frames = [game.reset(int(seed))] + [game.step([3, 3])[0] for _ in range(9)]  # the tenth step ends the games
  assert np.array_equal(arrays(fishing_derby / 'observations_1_1.npz')['observation'][:10], frames) == (not other)


def test_rewards_are_clipped_before_they_are_learned_from(tmp_path):
  """In steps of 100 frames the opponent wins several points; the agent cannot act."""
  run_all(tmp_path, ['--level_name=atari/fishing_derby', *SMALL, '--num_action_repeats=100', '--repeat_action_probability=1',
                     '--eval_max_episode_len=1', '--save_observations'], dict(both=[], gains=['--least_reward=0'],
                                                                              half=['--reward_scale=0.5']))
  runs = {name: tmp_path / 'main' / name for name in ('both', 'gains', 'half')}
  reward = arrays(runs['both'] / 'observations_1_1.npz')['reward']
  assert reward.min() < -1 and reward.max() <= 0
  (both,), (gains,), (half,) = (rows(run) for run in runs.values())
  assert float(both['score']) == -float(both['lost']) == reward.sum() / 2 and float(both['won']) == 0
  assert float(both['return_clipped']) == float(half['return_clipped']) == np.clip(reward, -1, 1).sum() / 2
  assert float(gains['return_clipped']) == 0 and gains['score'] == both['score']
  assert len({row['value_loss'] for row in (both, gains, half)}) == 3


# ---------------------------------------------------------------------------------------------------------------------
# Presets


def test_fishing_derby_has_300_neurons(fishing_derby):
  flags = json.loads((fishing_derby / 'config.json').read_text())['flags']
  assert flags['level_name'] == 'atari/fishing_derby' and flags['n_rec'] == 300
  weights, game = arrays(fishing_derby / 'final_weights.npz'), arrays(fishing_derby / 'game.npz')
  assert weights['w_rec'].shape == (300, 300) and weights['w_policy'].shape[1] == 6
  assert game['n_regular'] == 180 and game['spikes'].shape == (10 * 2, 300) and len(game['action_names']) == 6


PUBLISHED = dict(  # the published program's values
    num_action_repeats=4, total_environment_frames=1e9, increase_episode_len_every=7e7, increase_episode_len_by=1.0,
    fraction_adaptive=0.4, n_rnn_step_factor=5, tau_scnn=1.0, thr_scnn=0.1, tau=15.0, tau_readout=2.0, tau_adaptation=70.0,
    thr=1.0, beta=0.1, n_refractory=5, dampening_factor=0.3, use_eprop=True, cell_train=True, avg_ba_cnn=True, ba_cnn=False,
    n_filters_1=16, n_kernel_1=8, stride_1=4, n_filters_2=8, n_kernel_2=4, stride_2=1, avg_pool_1_k=8, avg_pool_1_stride=4,
    avg_pool_2_k=4, avg_pool_2_stride=2, learning_rate=1e-3, learning_rate_heads=1.0, learning_rate_decay=1.0, decay_every=1e8,
    discounting=0.99, entropy_cost=0.0025, baseline_cost=1.0, rate_cost=50.0, rate_target=0.02, voltage_cost_rnn=1e-4,
    voltage_cost_cnn=0.5, voltage_reg_method='avg_time', repeat_action_probability=0.25, noop_max=29, maxpool=False)
LEARNS_FAST = dict(epsilon=1e-5, reg_factor_cnn=1.0, use_cubic_schedule=False)
WHOLE_GAMES = dict(LEARNS_FAST, apply_after_end=False, n_workers=2, tau=6.0, subtract_background=True, gae_lambda=1.0,
                   normalise_advantages=False, least_reward=-1.0, num_action_repeats=4)


def test_presets_and_flags_that_win_over_them(tmp_path):
  """The values in config.json, which is written before training begins."""
  cases = {
      'catch': (['--level_name=catch', '--preset=laptop'], dict(
          LEARNS_FAST, apply_after_end=True, unroll_length=9, max_episode_len=9, max_episode_len_jitter=0, n_workers=1,
          tau=15.0, subtract_background=False, discounting=0.99)),
      'pong': (['--level_name=atari/pong', '--preset=laptop'], dict(
          WHOLE_GAMES, unroll_length='20,5.05e7:40', max_episode_len='3000,5.05e7:10000', discounting='0.97,5.05e7:0.98',
          entropy_cost='0.003,5.05e7:0.0005', total_environment_frames=8.64e7, thr_scnn=0.05, avg_pool_1_k=8)),
      'finer_pong': (['--preset=pong', '--parallel_episodes=8'], dict(
          {**WHOLE_GAMES, 'gae_lambda': '1,3e6:0.97'}, level_name='atari/pong', thr_scnn=0.02, avg_pool_1_k=2,
          avg_pool_1_stride=2, avg_pool_2_k=4, avg_pool_2_stride=2, unroll_length='20,3e6:80', n_minibatches='1,4e6:4',
          baseline_cost='0.05,3e6:0.5', discounting='0.97,3e6:0.99', max_episode_len='3000,2e7:10000',
          learning_rate='1.5e-4,1e7:1e-4,2.6e7:3e-5,4.4e7:1e-5', entropy_cost='0.003,3e6:0.002,1e7:0.0005,2.6e7:0',
          eval_max_episode_len=16000)),
      'fishing_derby': (['--preset=fishing_derby', '--parallel_episodes=8'], dict(
          WHOLE_GAMES, level_name='atari/fishing_derby', gae_lambda=0.99, normalise_advantages=True, least_reward=0.0,
          num_action_repeats=8, update_epochs=3, n_minibatches=4, learning_rate='3e-4,2.05e7:1e-4')),
      'another': (['--level_name=atari/breakout', '--preset=laptop'], dict(
          WHOLE_GAMES, unroll_length=20, max_episode_len=3000, discounting=0.97)),
      'flags': (['--preset=laptop', '--apply_after_end', '--unroll_length=30', '--epsilon=0.1', '--max_episode_len=7'], dict(
          WHOLE_GAMES, level_name='atari/pong', apply_after_end=True, unroll_length=30, epsilon=0.1, max_episode_len=7)),
      'paper': ([], dict(level_name='atari/pong', epsilon=1.0, reg_factor_cnn=1e8, use_cubic_schedule=True, n_rec=400,
                         apply_after_end=True, unroll_length=100, max_episode_len=200, max_episode_len_jitter=25,
                         gae_lambda=1.0, normalise_advantages=False, critic_warmup_frames=0.0, least_reward=-1.0,
                         reward_scale=1.0, **PUBLISHED))}
  config = {name: tmp_path / 'main' / name / 'config.json' for name in cases}
  for name, (flags, expected) in cases.items():
    started = script('main').start('--parallel_episodes=2', *flags, f'--result_dir={tmp_path}', f'--run_name={name}',
                                   before=forks.FORKED)
    script('main').kill_when(config[name].exists, started)
    values = json.loads(config[name].read_text())['flags']
    assert {key: values[key] for key in expected} == expected, name


# ---------------------------------------------------------------------------------------------------------------------
# compare_learning_rules.py


def test_comparison_trains_replots_and_loses_nothing(tmp_path):
  flags = ['--level_name=catch', f'--out={tmp_path}/out']
  compare = lambda *arguments, **options: call(*flags, *arguments, name='compare_learning_rules', **options)
  first = compare('--rules=lif,readout', f'--result_dir={tmp_path}')
  assert '2 runs ended, 0 missing' in first.stdout
  runs = {rule: tmp_path / 'comparison_smoke' / 'catch' / 'main' / f'{rule}_seed0' for rule in ('lif', 'readout')}
  used = {rule: json.loads((run / 'config.json').read_text())['flags'] for rule, run in runs.items()}
  assert used['lif']['fraction_adaptive'] == 0 and used['lif']['cell_train'] and used['lif']['preset'] == 'laptop'
  assert used['readout']['fraction_adaptive'] == 0.4 and not used['readout']['cell_train']
  table, curves, picture = (tmp_path / 'out' / name for name in (
      'comparison_catch.csv', 'curves_catch.csv', 'comparison_catch.png'))
  read = lambda path: list(csv.DictReader(path.read_text().splitlines()))
  assert [(row['rule'], row['seed'], row['games']) for row in read(table)] == [(rule, '0', '2') for rule in runs]
  assert [(row['rule'], row['frames'], float(row['return_200']), float(row['score'])) for row in read(curves)] == [
      (rule, row['frames'], *[float(row['score'])] * 2) for rule, run in runs.items() for row in metrics(run)]
  files = lambda: {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file() and path != picture}
  before = files()
  picture.unlink()
  # The figure once more without the runs, and a mistake, whatever else stands beside it.
  replotted = compare('--replot', f'--result_dir={tmp_path}/none')
  for other, message in (('--rules=pong', 'unknown rule pong;'), ('--frames=1e7', '--frames is for --level_name=atari/pong')):
    assert message in compare(other, f'--result_dir={tmp_path}', expect=2).stderr
  mistaken = compare('--rules=readout,magic', f'--result_dir={tmp_path}', expect=2)
  assert picture.stat().st_size > 0 and replotted.stdout.splitlines() == first.stdout.splitlines()[-3:]
  assert len(mistaken.errors) == 1 and 'magic' in mistaken.errors[0] and 'Traceback' not in mistaken.stderr
  assert files() == before
  compare('--rules=readout', f'--result_dir={tmp_path}')  # finished runs are not trained again, rows of other rules stay
  assert files() == before

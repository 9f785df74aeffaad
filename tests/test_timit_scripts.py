"""Figure 2's scripts as a user calls them, on a few real utterances; error rates and decoding."""
import csv
import json
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'Figure_2_TIMIT'
sys.path.append(str(FOLDER))  # behind the Figure 3 folder, whose lsnn.py, eprop.py and experiment.py are the same

import forks
import scores
import test_timit_processing

LSNN, LSTM, CTC = ('solve_timit_with_' + name for name in ('framewise_lsnn', 'framewise_lstm', 'ctc_in_tensorflow'))
SMALL_LSNN = ['--n_regular=12', '--n_adaptive=8', '--n_repeat=2', '--batch=2', '--test_batch=2', '--plot=False']


SCRIPTS = {}


@pytest.fixture(scope='module', autouse=True)
def scripts():
  """Processes that have imported a script, each started when it is first called, end with the module."""
  yield
  for script in SCRIPTS.values():
    script.close()
  SCRIPTS.clear()


def script(name):
  if name not in SCRIPTS:
    SCRIPTS[name] = forks.Script(FOLDER / f'{name}.py')
  return SCRIPTS[name]


def call(name, *arguments, expect=0):
  """Runs a script to its end."""
  done = script(name)(*arguments)
  assert done.code == expect, done.stdout + done.stderr
  return done


def metrics(folder, column):
  """A column of metrics.csv, the rows where it is empty left out."""
  with open(folder / 'metrics.csv', newline='') as file:
    return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def arrays_of(path):
  with np.load(path) as arrays:
    return dict(arrays)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  """The few utterances in tests/data, processed."""
  folder = tmp_path_factory.mktemp('processed')
  call('timit_processing', '--corpus=nltk_sample', f'--data_path={ROOT}/tests/data/timit_sample', f'--dataset={folder}/corpus',
       f'--result_dir={folder}', '--skip_bad')
  return folder / 'corpus'


@pytest.mark.parametrize('name, flags', [
    (LSNN, ['--eprop=adaptive', '--n_layer=2']), (LSTM, ['--eprop=symmetric', '--reduced_phns']),
    (CTC, ['--model=lstm', '--n_layer=2']), (CTC, ['--model=lsnn', '--eprop=random'])], ids=str)
def test_smoke(dataset, tmp_path, name, flags):
  done = call(name, '--smoke', *flags, f'--dataset={dataset}', f'--result_dir={tmp_path}', '--run_name=a')
  run = tmp_path / name / 'a'
  summary = json.loads((run / 'summary.json').read_text())
  ctc = name == CTC
  expected = ['config.json', 'metrics.csv', 'final_weights.npz', 'best_weights.npz', 'utterance.png', 'learning_curve.png']
  for file in expected + ['confusion.png'] * (not ctc) + ['rates.png'] * (name == LSNN):
    assert (run / file).stat().st_size > 0, file
  measures = ('test_per', 'test_per_mean_over_utterances', 'test_per_unmerged') if ctc else ('test_frame_error',)
  assert all(summary[measure] > 0 for measure in measures) and not summary['synthetic'] and 'NLTK' in summary['corpus']
  assert ('test_frame_error_39_phones' in summary) == (name == LSNN)
  assert 'published:  not available' in done.stdout and 'NLTK' in done.stdout
  assert min(metrics(run, 'gradient_norm')) > 0
  shares = metrics(run, 'validation_blank_share')
  assert bool(shares) == ctc and all(0 <= share <= 1 for share in shares)

  # The saved weights, evaluated once more, give the same numbers.
  again = call(name, '--smoke', *flags, f'--dataset={dataset}', f'--result_dir={tmp_path}', '--plot=False',
               f'--checkpoint={run}/best_weights.npz')
  evaluated = json.loads((tmp_path / name / 'evaluation_best_weights' / 'summary.json').read_text())
  for measure in (*measures, 'validation_loss'):
    assert evaluated[measure] == pytest.approx(summary[measure], rel=1e-5), measure
  assert again.stdout.splitlines()[-1].startswith('results:')


def test_learning_lowers_the_loss_and_all_computations_agree(dataset, tmp_path):
  losses = {}
  for impl in ('adjoint', 'hardcoded', 'autodiff'):
    call(LSNN, *SMALL_LSNN, '--eprop=symmetric', f'--eprop_impl={impl}', '--n_epochs=3', '--dtype=float64', '--reg=1',
         f'--dataset={dataset}', f'--result_dir={tmp_path}', f'--run_name={impl}')
    losses[impl] = metrics(tmp_path / LSNN / impl, 'train_loss')
  np.testing.assert_allclose(losses['hardcoded'], losses['adjoint'], rtol=1e-10)
  np.testing.assert_allclose(losses['autodiff'], losses['adjoint'], rtol=1e-10)
  assert losses['adjoint'][-1] < losses['adjoint'][1]  # the first update has a learning rate of 0


def test_killed_and_resumed_is_as_uninterrupted(dataset, tmp_path):
  flags = ['--n_lstm=30', '--batch=2', '--test_batch=2', '--n_epochs=40', '--eprop=adaptive', '--drop_out_probability=0.8',
           '--gd_noise=0.01', '--noise_step_start=3', '--plot=False', '--checkpoint_seconds=0', f'--dataset={dataset}',
           f'--result_dir={tmp_path}']
  call(LSTM, *flags, '--run_name=whole')
  whole, broken = tmp_path / LSTM / 'whole', tmp_path / LSTM / 'broken'
  script(LSTM).kill_when(lambda: any(broken.glob('checkpoints/*.npz')), script(LSTM).start(*flags, '--run_name=broken'))
  assert not (broken / 'summary.json').exists()
  call(LSTM, *flags, '--run_name=broken', '--resume')
  assert (broken / 'metrics.csv').read_text() == (whole / 'metrics.csv').read_text()
  a, b = (arrays_of(folder / 'best_weights.npz') for folder in (whole, broken))
  assert all(np.array_equal(a[name], b[name]) for name in a)


def test_two_commands_from_timit_as_the_ldc_ships_it(tmp_path):
  corpus = test_timit_processing.layout(tmp_path / 'timit', upper=True)
  call('timit_processing', f'--data_path={corpus}', f'--result_dir={tmp_path}', '--skip_bad')
  done = call(LSNN, '--smoke', '--eprop=symmetric', f'--result_dir={tmp_path}', '--run_name=a', '--plot=False')
  summary = json.loads((tmp_path / LSNN / 'a' / 'summary.json').read_text())
  assert done.stdout.startswith(summary['corpus']) and 'TIMIT' in summary['corpus'] and 'NLTK' not in summary['corpus']
  assert 0 < summary['test_frame_error'] <= 1


def test_noise(dataset, tmp_path):
  """That on the gradient begins with its epoch, that on the weights stays in them, that on the inputs leaves them."""
  flags = ['--model=lsnn', '--n_layer=1', '--n_neuron=20', '--n_repeat=2', '--batch=2', '--plot=False', f'--dataset={dataset}',
           f'--result_dir={tmp_path}']

  def run(name, *more):
    call(CTC, *flags, f'--run_name={name}', *more)
    return metrics(tmp_path / CTC / name, 'train_loss'), arrays_of(tmp_path / CTC / name / 'final_weights.npz')

  quiet, start = run('quiet', '--n_epochs=2')
  noisy, _ = run('noisy', '--n_epochs=2', '--gd_noise=0.1')
  first = len(quiet) // 2 + 1  # the loss is that before the update
  assert noisy[:first] == quiet[:first] and all(a != b for a, b in zip(noisy[first:], quiet[first:]))
  begun = ['--n_epochs=2', '--lr_init=0', f'--load={tmp_path}/{CTC}/quiet/final_weights.npz']
  plain, _ = run('begun', *begun)
  heard, weights = run('heard', *begun, '--input_noise=0.3')
  assert heard != plain and all(np.array_equal(array, start[key]) for key, array in weights.items())
  _, weights = run('walked', *begun, '--w_noise=0.1')
  walk = weights['layer0_forward_w_in'] - start['layer0_forward_w_in']
  assert np.std(walk) == pytest.approx(0.1 * len(quiet) ** 0.5, rel=0.1)


def test_learning_rate_ramps_and_window_crops(dataset, tmp_path):
  flags = [*SMALL_LSNN, '--eprop=symmetric', f'--dataset={dataset}', f'--result_dir={tmp_path}', '--n_epochs=113']
  call(LSNN, *flags, '--run_name=a', '--truncT=20', '--lr_decay_every=110')
  rates = metrics(tmp_path / LSNN / 'a', 'learning_rate')
  assert len(rates) > 112
  np.testing.assert_allclose(rates[:100], 0.01 * np.arange(100) / 99, rtol=1e-12)
  np.testing.assert_allclose(rates[100:112], [0.01] * 10 + [0.003] * 2, rtol=1e-12)


def test_constants(dataset, tmp_path):
  """Values of flags, as config.json has them: the published ones by default, others where a preset is asked for."""
  neuron = dict(tau_v=20, n_ref=2, beta=1.8, thr=0.01, dt=1, dampening_factor=0.3, adapt_to='crossings')
  common = dict(lr_decay=0.3, adam_epsilon=1e-5, adam=True)
  lsnn = dict(neuron, **common, tau_a=200, tau_out=3, psp_out=True, ramping_learning_rate=True, readout_decay=1e-2, l2=1e-5,
              lr_init=0.01, lr_decay_every=-1, reg=50, reg_rate=10, reg_over='batch', reverse='batch', batch_order='random',
              momentum=0.9, drop_out_probability=-1, truncT=-1, gd_noise=0.036, noise_step_start=-1, cell_train=True, rec=True)
  cases = [
      (LSNN, [], lsnn),
      (LSNN, ['--preset=fast'], dict(lsnn, adapt_to='spikes', reg=20, reg_rate=20, batch_order='length', lr_decay_every=924)),
      (LSNN, ['--preset=fast', '--adapt_to=crossings', '--reg=30'], dict(adapt_to='crossings', reg=30, reg_rate=20)),
      (LSTM, [], dict(common, readout_decay=1e-3, l2=1e-5, lr_init=0.01, lr_decay_every=500, init_scale=0, reverse='batch')),
      (CTC, [], dict(neuron, **common, tau_a=500, tau_out=3, n_split=0.1, reg=0, reg_rate=10, readout_decay=1e-4, l2=0,
                     lr_init=1e-3, lr_decay_every=15, init_scale=0.1, drop_out_probability=0.7, grad_clip=1, momentum=0.9,
                     loss_from_all_layers=False, peephole=True, noise_epoch_start=0, reverse='utterance'))]
  for number, (name, given, constants) in enumerate(cases):
    config = tmp_path / name / str(number) / 'config.json'
    started = script(name).start('--smoke', *given, f'--dataset={dataset}', f'--result_dir={tmp_path}', f'--run_name={number}')
    script(name).kill_when(config.exists, started)
    flags = json.loads(config.read_text())['flags']
    assert {key: flags[key] for key in constants} == pytest.approx(constants), (name, given)


def test_bad_input_ends_with_one_sentence_and_exit_code_2(dataset, tmp_path):
  cases = [
      (LSNN, ['--dataset=nowhere'], 'three ways'), (LSNN, ['--n_regular=0', '--n_adaptive=0'], 'neurons'),
      (LSNN, ['--eprop_impl=hardcoded'], '--eprop'), (LSNN, ['--batch=0'], 'batch'), (LSTM, ['--eprop=magic'], 'symmetric'),
      (LSNN, ['--eprop=random', '--n_layer=2', '--noloss_from_all_layers'], 'all'),
      (LSTM, ['--checkpoint=nowhere.npz'], 'nowhere.npz'), (CTC, ['--optimizer=magic'], 'rmsprop')]

  for name, flags, words in cases:
    chosen = [] if any(flag.startswith('--dataset') for flag in flags) else [f'--dataset={dataset}']
    done = call(name, *flags, *chosen, f'--result_dir={tmp_path}', expect=2)
    assert len(done.errors) == 1 and words in done.errors[0] and 'Traceback' not in done.stderr, done.stderr


def test_comparison_trains_and_replots(dataset, tmp_path):
  flags = ['--smoke', '--networks=framewise_lstm', '--rules=bptt,random', f'--dataset={dataset}', f'--result_dir={tmp_path}',
           f'--out={tmp_path}/out']
  first = call('compare_learning_rules', *flags)
  assert '2 runs ended, 0 missing' in first.stdout
  table, picture = (tmp_path / 'out' / f'comparison_corpus.{ending}' for ending in ('csv', 'png'))
  content = table.read_text()
  assert [(row['rule'], row['seed']) for row in csv.DictReader(content.splitlines())] == [('bptt', '0'), ('random', '0')]
  with open(tmp_path / 'out' / 'curves_corpus.csv', newline='') as file:
    assert [row['rule'] for row in csv.DictReader(file)] == ['bptt'] * 2 + ['random'] * 2  # two epochs each
  picture.unlink()
  call('compare_learning_rules', *flags, '--replot')
  assert picture.stat().st_size > 0 and table.read_text() == content


def test_published_curve(dataset, tmp_path):
  flags = [f'--dataset={dataset}', f'--result_dir={tmp_path}', f'--out={tmp_path}/out']
  call('published_curve', '--smoke', *flags)
  with open(tmp_path / 'out' / 'published_curve.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert [row['program'] for row in rows] == ['published'] * 4 + ['ours'] * 4
  assert [float(row['validation_error']) for row in rows[:4]] == [0.695, 0.47, 0.409, 0.368]
  assert (tmp_path / 'out' / 'published_curve.png').stat().st_size > 0


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def test_edit_errors():
  """kitten -> sitting: two substitutions, an insertion; and an utterance of which one phone of two is lost."""
  letters = lambda word: np.array([ord(letter) for letter in word])
  errors = scores.edit_errors([letters('sitting'), letters('a')], [letters('kitten'), letters('ab')])
  assert (errors['substitutions'], errors['insertions'], errors['deletions'], errors['phones']) == (2, 1, 1, 8)
  assert errors['per'] == pytest.approx(4 / 8) and errors['per_mean_over_utterances'] == pytest.approx((3 / 6 + 1 / 2) / 2)


def test_duplicates_are_merged_before_folding():
  from phones import INDEX61
  b, ao, aa = (INDEX61[name] for name in ('b', 'ao', 'aa'))  # ao is scored as aa
  decoded, reference = [np.array([b, b, ao, aa])], [np.array([b, ao, aa])]
  errors = scores.phone_errors(decoded, reference, folds=True)
  assert errors['per'] == 0 and errors['per_unmerged'] == pytest.approx(1 / 3) and errors['insertions_unmerged'] == 1
  np.testing.assert_array_equal(scores.merge(np.array([1, 1, 2, 2, 1])), [1, 2, 1])
  assert len(scores.merge(np.array([]))) == 0


def test_decoding_of_clear_logits():
  """Blank is the last class; it parts repetitions."""
  paths = [[0, 0, 3, 1, 1, 3, 1], [2, 2, 2, 3, 3]]
  logits = [10.0 * np.eye(4)[path] for path in paths]
  assert [list(phones) for phones in scores.decode_all(logits)] == [[0, 1, 1], [2]]


def test_frame_errors_and_confusion():
  predicted, true = [np.array([0, 1]), np.array([2, 2, 2, 2])], [np.array([0, 0]), np.array([2, 2, 2, 1])]
  errors = scores.frame_errors(predicted, true)
  assert errors == dict(frame_error=pytest.approx(0.375), frame_error_all_frames=pytest.approx(2 / 6))
  np.testing.assert_array_equal(scores.confusion(predicted, true, 3), [[1, 1, 0], [0, 0, 1], [0, 0, 3]])

"""Figure 2's scripts as a user calls them, on a few real utterances; error rates and decoding."""
import concurrent.futures
import csv
import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'Figure_2_TIMIT'
sys.path.append(str(FOLDER))  # behind the Figure 3 folder, whose lsnn.py, eprop.py and experiment.py are the same

import scores
import test_timit_processing

LSNN, LSTM, CTC = ('solve_timit_with_' + name for name in ('framewise_lsnn', 'framewise_lstm', 'ctc_in_tensorflow'))
SMALL_LSNN = ['--n_regular=12', '--n_adaptive=8', '--n_repeat=2', '--batch=2', '--test_batch=2', '--plot=False']


def command(script, *arguments):
  return [sys.executable, str(FOLDER / f'{script}.py'), *map(str, arguments)]


def call(script, *arguments, expect=0):
  """Runs a script to its end; returns it with its output as text."""
  done = subprocess.run(command(script, *arguments), capture_output=True, text=True, timeout=600, check=False)
  assert done.returncode == expect, done.stdout + done.stderr
  return done


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  """The few utterances in tests/data, processed."""
  folder = tmp_path_factory.mktemp('processed')
  call('timit_processing', '--corpus=nltk_sample', f'--data_path={ROOT}/tests/data/timit_sample', f'--dataset={folder}/corpus',
       f'--result_dir={folder}', '--skip_bad')
  return folder / 'corpus'


@pytest.mark.parametrize('script, flags', [
    (LSNN, ['--eprop=adaptive', '--n_layer=2']), (LSTM, ['--eprop=symmetric', '--reduced_phns']),
    (CTC, ['--model=lstm', '--n_layer=2']), (CTC, ['--model=lsnn', '--eprop=random'])], ids=str)
def test_smoke(dataset, tmp_path, script, flags):
  done = call(script, '--smoke', *flags, f'--dataset={dataset}', f'--result_dir={tmp_path}', '--run_name=a')
  run = tmp_path / script / 'a'
  summary = json.loads((run / 'summary.json').read_text())
  ctc = script == CTC
  expected = ['config.json', 'metrics.csv', 'final_weights.npz', 'best_weights.npz', 'utterance.png', 'learning_curve.png']
  for name in expected + ['confusion.png'] * (not ctc) + ['rates.png'] * (script == LSNN):
    assert (run / name).stat().st_size > 0, name
  measures = ('test_per', 'test_per_mean_over_utterances', 'test_per_unmerged') if ctc else ('test_frame_error',)
  assert all(summary[name] > 0 for name in measures) and not summary['synthetic'] and 'NLTK' in summary['corpus']
  assert ('test_frame_error_39_phones' in summary) == (script == LSNN)
  assert 'published:  not available' in done.stdout and 'NLTK' in done.stdout

  # The saved weights, evaluated once more, give the same numbers.
  again = call(script, '--smoke', *flags, f'--dataset={dataset}', f'--result_dir={tmp_path}', '--plot=False',
               f'--checkpoint={run}/best_weights.npz')
  evaluated = json.loads((tmp_path / script / 'evaluation_best_weights' / 'summary.json').read_text())
  for name in (*measures, 'validation_loss'):
    assert evaluated[name] == pytest.approx(summary[name], rel=1e-5), name
  assert again.stdout.splitlines()[-1].startswith('results:')


def test_learning_lowers_the_loss_and_all_computations_agree(dataset, tmp_path):
  losses = {}
  for impl in ('adjoint', 'hardcoded', 'autodiff'):
    call(LSNN, *SMALL_LSNN, '--eprop=symmetric', f'--eprop_impl={impl}', '--n_epochs=3', '--dtype=float64', '--reg=1',
         f'--dataset={dataset}', f'--result_dir={tmp_path}', f'--run_name={impl}')
    with open(tmp_path / LSNN / impl / 'metrics.csv', newline='') as file:
      losses[impl] = np.array([float(row['train_loss']) for row in csv.DictReader(file)])
  np.testing.assert_allclose(losses['hardcoded'], losses['adjoint'], rtol=1e-10)
  np.testing.assert_allclose(losses['autodiff'], losses['adjoint'], rtol=1e-10)
  assert losses['adjoint'][-1] < losses['adjoint'][0]


def test_killed_and_resumed_is_as_uninterrupted(dataset, tmp_path):
  flags = ['--n_lstm=30', '--batch=2', '--test_batch=2', '--n_epochs=60', '--eprop=adaptive', '--drop_out_probability=0.8',
           '--gd_noise=0.01', '--plot=False', '--checkpoint_seconds=0', f'--dataset={dataset}', f'--result_dir={tmp_path}']
  call(LSTM, *flags, '--run_name=whole')
  whole, broken = tmp_path / LSTM / 'whole', tmp_path / LSTM / 'broken'
  process = subprocess.Popen(command(LSTM, *flags, '--run_name=broken'), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  while process.poll() is None and not (broken / 'checkpoints' / 'checkpoint').exists():
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (broken / 'summary.json').exists()
  call(LSTM, *flags, '--run_name=broken', '--resume')
  assert (broken / 'metrics.csv').read_text() == (whole / 'metrics.csv').read_text()
  with np.load(whole / 'best_weights.npz') as a, np.load(broken / 'best_weights.npz') as b:
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_two_commands_from_timit_as_the_ldc_ships_it(tmp_path):
  corpus = test_timit_processing.layout(tmp_path / 'timit', upper=True)
  call('timit_processing', f'--data_path={corpus}', f'--result_dir={tmp_path}', '--skip_bad')
  done = call(LSNN, '--smoke', '--eprop=symmetric', f'--result_dir={tmp_path}', '--run_name=a', '--plot=False')
  summary = json.loads((tmp_path / LSNN / 'a' / 'summary.json').read_text())
  assert done.stdout.startswith(summary['corpus']) and 'TIMIT' in summary['corpus'] and 'NLTK' not in summary['corpus']
  assert 0 < summary['test_frame_error'] <= 1


def test_noise_begins_with_its_epoch_and_leaves_the_weights(dataset, tmp_path):
  flags = ['--model=lsnn', '--n_neuron=20', '--n_repeat=2', '--batch=2', '--plot=False', f'--dataset={dataset}',
           f'--result_dir={tmp_path}']
  noise = ['--input_noise=0.3', '--w_noise=0.1', '--gd_noise=0.1']

  def losses(name, *more):
    call(CTC, *flags, f'--run_name={name}', *more)
    with open(tmp_path / CTC / name / 'metrics.csv', newline='') as file:
      return [float(row['train_loss']) for row in csv.DictReader(file)]

  def weights(name):
    with np.load(tmp_path / CTC / name / 'final_weights.npz') as arrays:
      return dict(arrays)

  quiet = losses('quiet', '--n_epochs=2')
  noisy = losses('noisy', '--n_epochs=2', '--noise_epoch_start=2', *noise)
  per_epoch = len(quiet) // 2
  assert noisy[:per_epoch] == quiet[:per_epoch] and all(a != b for a, b in zip(noisy[per_epoch:], quiet[per_epoch:]))
  # Begun with the weights of a run and a learning rate of 0, only the losses show the noise.
  saved = f'--load={tmp_path}/{CTC}/quiet/final_weights.npz'
  begun = ['--n_epochs=1', '--lr_init=0', saved]
  assert losses('begun', *begun) != losses('begun_noisy', *begun, *noise)
  for name in ('begun', 'begun_noisy'):
    assert all(np.array_equal(array, weights('quiet')[key]) for key, array in weights(name).items())


def test_bad_input_ends_with_one_sentence_and_exit_code_2(dataset, tmp_path):
  cases = [
      (LSNN, ['--dataset=nowhere'], 'three ways'), (LSNN, ['--n_regular=0', '--n_adaptive=0'], 'neurons'),
      (LSNN, ['--eprop_impl=hardcoded'], '--eprop'), (LSNN, ['--batch=0'], 'batch'), (LSTM, ['--eprop=magic'], 'symmetric'),
      (LSNN, ['--eprop=random', '--n_layer=2', '--noloss_from_all_layers'], 'all'),
      (LSTM, ['--checkpoint=nowhere.npz'], 'nowhere.npz'), (CTC, ['--optimizer=magic'], 'momentum')]

  def run(case):
    script, flags, _ = case
    chosen = [] if any(flag.startswith('--dataset') for flag in flags) else [f'--dataset={dataset}']
    return call(script, *flags, *chosen, f'--result_dir={tmp_path}', expect=2)

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for (*_, words), done in zip(cases, pool.map(run, cases)):
      errors = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
      assert len(errors) == 1 and words in errors[0] and 'Traceback' not in done.stderr, done.stderr


def test_comparison_trains_and_replots(dataset, tmp_path):
  flags = ['--smoke', '--networks=framewise_lstm', '--rules=bptt,random', f'--dataset={dataset}', f'--result_dir={tmp_path}',
           f'--out={tmp_path}/out']
  first = call('compare_learning_rules', *flags)
  assert '2 runs ended, 0 missing' in first.stdout
  table, picture = (tmp_path / 'out' / f'comparison_corpus.{ending}' for ending in ('csv', 'png'))
  content = table.read_text()
  assert [(row['rule'], row['seed']) for row in csv.DictReader(content.splitlines())] == [('bptt', '0'), ('random', '0')]
  picture.unlink()
  call('compare_learning_rules', *flags, '--replot')
  assert picture.stat().st_size > 0 and table.read_text() == content


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

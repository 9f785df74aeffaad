"""Speech to features and frame labels, for the scripts of figure 2.

  python timit_processing.py --data_path=DIR          TIMIT (LDC93S1) as the LDC ships it
  python timit_processing.py --corpus=nltk_sample     160 utterances of TIMIT, downloaded by NLTK or from --data_path
  python timit_processing.py --corpus=espeak          synthetic, not TIMIT: made here by espeak-ng, half of TIMIT's size
  python timit_processing.py --corpus=espeak_full     the same at TIMIT's size and splits, of 536 speakers

Writes <result_dir>/timit_processed/<corpus>_<preproc>/: train.npz, dev.npz, test.npz (see data.py), metadata.json and the
picture utterance.png. Interrupted, the same command goes on where it stopped.
"""
from program import apply_smoke, DEFINE_path, if_interrupted, refuse, run_app  # first: an interruption from here on ends with one line
import contextlib
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile

from absl import flags
import numpy as np

import corpora
import data
import espeak_corpus
import features
from files import read_npz, UserError, write_json, write_npz
import machine
from parallel import in_parallel
from phones import FOLDING, PHONES39, PHONES61
import timit_plots

FLAGS = flags.FLAGS
flags.DEFINE_enum('corpus', None, data.CORPORA, 'default: timit with --data_path, else espeak')
DEFINE_path('data_path', None, 'folder of the corpus; of a synthetic one: where it is made')
flags.DEFINE_enum('preproc', 'fbank', ['fbank', 'mfccs', 'htk'], 'features: 40 mel filters and energy; 13 cepstral '
                  'coefficients; 123 features from .htk files beside the audio')
DEFINE_path('dataset', None, 'folder to write; default: <result_dir>/timit_processed/<corpus>_<preproc>')
flags.DEFINE_bool('skip_bad', False, 'go on without utterances that are damaged or missing, and list them')
flags.DEFINE_integer('n_train', None, 'synthetic: utterances for training; default: 1920 (espeak_full: 3696)', lower_bound=1)
flags.DEFINE_integer('n_dev', None, 'synthetic: utterances for validation; default: 192 (espeak_full: 400)', lower_bound=1)
flags.DEFINE_integer('n_test', None, 'synthetic: utterances for the test; default: 192', lower_bound=1)

LABELS = {'timit': 'TIMIT (LDC93S1)', 'nltk_sample': 'NLTK\'s sample of TIMIT: 16 training speakers, not the standard split',
          **dict.fromkeys(espeak_corpus.SIZES, espeak_corpus.LABEL)}
LICENCES = {
    'timit': 'licensed by the Linguistic Data Consortium; what is made from it may not be passed on',
    'nltk_sample': 'copyright 1993 Linguistic Data Consortium; Creative Commons Attribution-NonCommercial-ShareAlike',
    **dict.fromkeys(espeak_corpus.SIZES, 'made by espeak-ng (GPL-3.0-or-later) from sentences of this project'),
}
CACHE_VERSION = 2  # of what `process` stores


def find_utterances():
  """The utterances of --corpus and what is missing of them."""
  path = FLAGS.data_path
  if FLAGS.corpus == 'timit':
    if path is None:
      raise UserError('--corpus=timit needs --data_path=DIR, the folder with TIMIT')
    return corpora.timit(path)
  if FLAGS.corpus == 'nltk_sample':
    FLAGS.data_path = path or corpora.download_sample(os.path.join(FLAGS.result_dir, 'nltk_data'))
    return corpora.nltk_sample(FLAGS.data_path)
  if FLAGS.preproc == 'htk':
    raise UserError('there are no .htk files for the synthetic corpus; --preproc=fbank or mfccs')
  FLAGS.data_path = path or os.path.join(FLAGS.result_dir, f'{FLAGS.corpus}_corpus')
  sizes = {split: FLAGS[f'n_{split}'].value or size for split, size in espeak_corpus.SIZES[FLAGS.corpus].items()}
  print(f'{LABELS[FLAGS.corpus]}: {sum(sizes.values())} utterances in {FLAGS.data_path}', flush=True)
  return espeak_corpus.make(FLAGS.data_path, FLAGS.corpus, sizes, FLAGS.seed), []


def process(utterance, preproc, cache, skip_bad):
  """Computes and stores the arrays of one utterance, under a name that follows from its files and settings.

  Returns:
    dict: `stored`, path of the arrays; `digest`, checksums of the files; or `reason` why it is left out.

  Raises:
    UserError: something is wrong with its files, and not skip_bad.
  """
  try:
    names = [utterance.audio, utterance.phn] + ([utterance.htk] if preproc == 'htk' else [])
    digest = ' '.join(data.sha256(name) if os.path.isfile(name) else '-' for name in names)
    key = hashlib.sha256(f'{CACHE_VERSION} {features.SETTINGS} {preproc} {utterance.id} {digest}'.encode()).hexdigest()
    stored = os.path.join(cache, key + '.npz')
    if not os.path.exists(stored):
      values, labels = features.utterance_arrays(utterance, preproc)
      write_npz(stored, dict(features=values, labels=labels))
    return dict(stored=stored, digest=f'{utterance.id} {digest}\n')
  except UserError as error:
    if not skip_bad:
      raise
    return dict(reason=str(error))


def read_stored(results):
  """Features and labels of utterances, from where `process` put them."""
  values, labels = [], []
  for result in results:
    arrays = read_npz(result['stored'], ('features', 'labels'))
    values.append(arrays['features'])
    labels.append(arrays['labels'])
  return values, labels


def draw(utterance, path, arrays, k):
  """The picture of utterance k of a split."""
  audio = features.read_audio(utterance.audio)
  first, n_runs = np.cumsum(arrays['run_counts61'])[k] - arrays['run_counts61'][k], arrays['run_counts61'][k]
  runs = slice(first, first + n_runs)
  filters = features.fbank(audio)[:, :features.N_FILTERS]
  timit_plots.utterance(path, audio, filters, features.mel_centres(), arrays['runs61'][runs], arrays['run_starts61'][runs],
                        PHONES61, f'{utterance.id}: {LABELS[FLAGS.corpus]}', FLAGS.show)


def write_splits(folder, utterances, results):
  """Writes train.npz, dev.npz, test.npz and the picture.

  Returns:
    dict of numbers per split; mean and standard deviation of each feature over the training set, float64 [features].
  """
  numbers = {}
  for split in data.SPLITS:
    good = [(u, r) for u, r in zip(utterances, results) if u.split == split and 'stored' in r]
    if not good:
      raise UserError(f'no {split} utterance is left')
    arrays = data.pack([u.id for u, _ in good], *read_stored([r for _, r in good]))
    values = arrays['features']
    if split == 'train':
      mean = values.mean(axis=0, dtype=np.float64)
    values -= mean.astype(np.float32)
    if split == 'train':  # by einsum, which makes no copy in float64
      sd = np.maximum(np.sqrt(np.einsum('tk,tk->k', values, values, dtype=np.float64) / len(values)), 1e-6)
    values /= sd.astype(np.float32)
    write_npz(os.path.join(folder, f'{split}.npz'), arrays)
    frames, seconds = arrays['lengths'], arrays['lengths'].sum() * features.HOP / features.RATE
    numbers[split] = dict(
        utterances=len(good), speakers=len({u.id.rsplit('/', 1)[0] for u, _ in good}), frames=int(frames.sum()),
        hours=round(seconds / 3600, 3), longest=int(frames.max()), phones_per_second=round(len(arrays['runs61']) / seconds, 2),
        silent=round(np.mean(arrays['labels39'] == PHONES39.index('sil')), 3))
  draw(good[0][0], os.path.join(folder, 'utterance.png'), arrays, 0)
  return numbers, mean, sd


def describe(utterances, missing, results, numbers, mean, sd, outputs):
  """What metadata.json holds."""
  digests = sorted(result['digest'] for result in results if 'digest' in result)
  libraries = ('numpy', 'scipy', 'soundfile', 'python_speech_features', 'espeakng-loader')
  synthetic = FLAGS.corpus in espeak_corpus.SIZES
  return dict(
      corpus=FLAGS.corpus, label=LABELS[FLAGS.corpus], synthetic=synthetic, licence=LICENCES[FLAGS.corpus],
      source=FLAGS.data_path, preproc=FLAGS.preproc, n_features=features.N_FEATURES[FLAGS.preproc],
      features=features.SETTINGS, splits=numbers, missing=missing,
      skipped=[dict(utterance=u.id, reason=r['reason']) for u, r in zip(utterances, results) if 'reason' in r],
      classes61=PHONES61, classes39=PHONES39, folding=FOLDING, seed=FLAGS.seed if synthetic else None,
      inputs=dict(utterances=len(digests), sha256=hashlib.sha256(''.join(digests).encode()).hexdigest()), outputs=outputs,
      mean=mean.tolist(), sd=sd.tolist(),
      versions=dict(python=platform.python_version(), **{name: importlib.metadata.version(name) for name in libraries}))


def result_folder():
  """The folder to write, links in its path resolved.

  Raises:
    UserError: it is a file, holds something else, cannot be written or replaced; before any work is done.
  """
  folder = os.path.realpath(FLAGS.dataset or data.folder_of(FLAGS.result_dir, FLAGS.corpus, FLAGS.preproc))
  if os.path.isdir(f'{folder}.old') and not os.path.exists(folder):  # killed between two renames
    os.rename(f'{folder}.old', folder)
  if os.path.exists(folder) and not os.path.isdir(folder):
    raise UserError(f'{folder} is a file; give another --dataset')
  if os.path.isdir(folder) and os.listdir(folder) and not os.path.exists(os.path.join(folder, 'metadata.json')):
    raise UserError(f'{folder} holds something else; give another --dataset')
  if os.path.ismount(folder):
    raise UserError(f'{folder} is where a file system is mounted and cannot be replaced; give a folder in it as --dataset')
  above = os.path.dirname(folder)
  while not os.path.exists(above):
    above = os.path.dirname(above)
  try:
    with contextlib.suppress(FileNotFoundError):
      os.lstat(f'{folder}.part')
  except OSError as error:
    raise UserError(f'{folder}.part, where the work is done, cannot be made ({error.strerror}); give another --dataset') from None
  try:
    with tempfile.TemporaryDirectory(dir=above):
      pass
  except OSError as error:
    raise UserError(f'nothing can be written to {above} ({error.strerror}); give another --dataset') from None
  return folder


def main():
  """From the corpus to the processed folder, which appears when it is complete."""
  refuse(('resume', 'run_name', 'device', 'dtype', 'checkpoint_seconds'))
  apply_smoke(corpus='espeak', n_train=16, n_dev=8, n_test=8)
  FLAGS.corpus = FLAGS.corpus or ('timit' if FLAGS.data_path else 'espeak')
  folder = result_folder()
  if_interrupted(lambda: 'the same command goes on where it stopped')
  work = f'{folder}.part'
  cache, new = os.path.join(work, 'utterances'), os.path.join(work, 'corpus')

  utterances, missing = find_utterances()
  counts = ', '.join(f'{sum(u.split == split for u in utterances)} {split}' for split in data.SPLITS)
  print(f'{LABELS[FLAGS.corpus]}: {counts} utterances', flush=True)
  if missing and not FLAGS.skip_bad:
    raise UserError(f'the corpus in {FLAGS.data_path} is incomplete, missing: {"; ".join(missing)} (--skip_bad goes on '
                    'without)')

  os.makedirs(cache, exist_ok=True)
  os.makedirs(new, exist_ok=True)
  lock = machine.Lock(work)
  results = in_parallel(functools.partial(process, preproc=FLAGS.preproc, cache=cache, skip_bad=FLAGS.skip_bad), utterances,
                        'utterances')
  for text in missing:
    print(f'missing: {text}', file=sys.stderr)
  for u, result in zip(utterances, results):
    if 'reason' in result:
      print(f'skipped: {u.id}: {result["reason"]}', file=sys.stderr, flush=True)
  numbers, mean, sd = write_splits(new, utterances, results)
  outputs = {f'{split}.npz': data.sha256(os.path.join(new, f'{split}.npz')) for split in data.SPLITS}
  write_json(os.path.join(new, 'metadata.json'), describe(utterances, missing, results, numbers, mean, sd, outputs))
  data.put_in_place(new, folder)
  lock.release()
  shutil.rmtree(work, ignore_errors=True)

  for split, of_split in numbers.items():
    print(f'{split + ":":12}{of_split["utterances"]} utterances of {of_split["speakers"]} speaker(s), '
          f'{of_split["frames"]} frames')
  print(f'figure:     {os.path.join(folder, "utterance.png")}\nresults:    {folder}', flush=True)


if __name__ == '__main__':
  run_app(main)

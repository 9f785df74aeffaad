"""Finds the utterances of TIMIT as the LDC ships it, and of the sample that NLTK distributes, and their standard splits."""
import collections
import os
import re
from typing import NamedTuple

from files import UserError

# Standard split of the test part (Halberstadt's development set, TIMIT's core test set); the rest of it is not used.
DEV_SPEAKERS = {
    'dr1': 'faks0 fdac1 fjem0 mjsw0 mreb0',
    'dr2': 'mgwt0 mjar0 mmdb1 mmdm2 mpdf0',
    'dr3': 'fcmh0 fkms0 mbdg0 mbwm0 mcsh0 mgjf0 mglb0 mmjr0 mmwh0 mrtk0 mtaa0 mtdt0 mthc0 mwjg0',
    'dr4': 'fadg0 fdms0 fedw0 fgjd0 fjmg0 fnmr0 frew0 fsem0 mbns0 mdls0 mroa0 mteb0',
    'dr5': 'fcal1 fmah0 mrws1',
    'dr6': 'fdrw0 mjfc0 mrjr0',
    'dr7': 'fmml0 mdlf0 mdvc0 mers0 mrcs0 mrjm4',
    'dr8': 'fjsj0 majc0',
}
TEST_SPEAKERS = {
    'dr1': 'felc0 mdab0 mwbt0',
    'dr2': 'fpas0 mtas1 mwew0',
    'dr3': 'fpkt0 mjmp0 mlnt0',
    'dr4': 'fjlm0 mlll0 mtls0',
    'dr5': 'fnlp0 mbpm0 mklt0',
    'dr6': 'fmgd0 mcmj0 mjdh0',
    'dr7': 'fdhc0 mgrt0 mnjm0',
    'dr8': 'fmld0 mjln0 mpam0',
}
TRAINING_SPEAKERS = {'dr1': 38, 'dr2': 76, 'dr3': 76, 'dr4': 68, 'dr5': 70, 'dr6': 35, 'dr7': 77, 'dr8': 22}  # how many
SENTENCES = 8  # of each speaker, without the two SA sentences that everybody speaks
SAMPLE_SPEAKERS = {'train': 12, 'dev': 2, 'test': 2}  # in NLTK's sample


class Utterance(NamedTuple):
  """The files of one utterance.

  Attributes:
    split: 'train', 'dev' or 'test'.
    id: 'dr1/fvmh0/si836'.
    audio, phn, htk: paths; those of .phn and .htk files need not exist.
  """
  split: str
  id: str
  audio: str
  phn: str
  htk: str


def _speakers(table):
  return {f'{region}/{speaker}' for region, names in table.items() for speaker in names.split()}


def _walk(folder, levels):
  """Finds the folders <level 1>/<level 2>/... anywhere below `folder`; each real folder once, and loops of links end.

  What cannot be listed is passed by: what a corpus lacks is counted later.

  Args:
    folder: where to begin.
    levels: a regular expression of the lower-case name for each level.

  Yields:
    lower-case names of the levels, path, {lower-case name: name} of the regular files there.
  """
  if not os.path.isdir(folder):
    raise UserError(f'no folder {folder}')
  fits = lambda level, name: re.fullmatch(levels[level], name, re.ASCII)
  waiting, visited, found = collections.deque([(folder, ())]), set(), set()
  while waiting:
    path, names = waiting.popleft()  # names: of the levels above and of this folder
    real = os.path.realpath(path)
    if (real, names) in visited:
      continue
    visited.add((real, names))
    try:
      with os.scandir(path) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    except OSError:
      continue
    if len(names) == len(levels):
      if real not in found:
        found.add(real)
        yield names, path, {entry.name.lower(): entry.name for entry in entries if os.path.isfile(entry.path)}
      names = ()
    below, links = [], []
    for entry in entries:
      if os.path.isdir(entry.path):
        name = entry.name.lower()
        inside = (*names, name) if fits(len(names), name) else (name,) if fits(0, name) else ()
        (links if entry.is_symlink() else below).append((entry.path, inside))
    waiting.extendleft(reversed(below))
    waiting.extend(links)  # last, so that a folder is found by its own path rather than by a link


def _utterances(split, speaker, path, names):
  """Utterances in a speaker's folder, SA sentences left out."""
  for lower, name in names.items():
    if re.fullmatch(r'(?!sa)\w[\w-]*\.wav', lower, re.ASCII):
      stem = name[:-4]
      beside = lambda ending: names.get(lower[:-4] + ending, stem + (ending if name.islower() else ending.upper()))
      yield Utterance(split, f'{speaker}/{lower[:-4]}',
                      *(os.path.join(path, each) for each in (name, beside('.phn'), beside('.htk'))))


def _once(utterances):
  """The utterances as a list; raises UserError where one occurs twice."""
  seen = {}
  for utterance in utterances:
    before = seen.setdefault(utterance.id, utterance)
    if before is not utterance:
      raise UserError(f'utterance {utterance.id} occurs twice: {before.audio} and {utterance.audio}')
  return list(seen.values())


def _counts(utterances, split):
  counts = {}
  for utterance in utterances:
    if utterance.split == split:
      speaker = utterance.id.rsplit('/', 1)[0]
      counts[speaker] = counts.get(speaker, 0) + 1
  return counts


def _short_list(names):
  return ', '.join(names[:6]) + (f' and {len(names) - 6} more' if len(names) > 6 else '')


def timit(folder):
  """TIMIT in the LDC's layout, TRAIN/DR1/FCJF0/SI1027.WAV, in any letter case, anywhere below the folder.

  Returns:
    list of Utterance; list of str, what is missing of the 3696, 400 and 192 utterances of the standard split.

  Raises:
    UserError: no such folder, no utterance there, or one twice.
  """
  chosen = dict.fromkeys(_speakers(DEV_SPEAKERS), 'dev') | dict.fromkeys(_speakers(TEST_SPEAKERS), 'test')
  found = []
  for (part, region, speaker), path, names in _walk(folder, ('train|test', 'dr[1-8]', r'\w+')):
    speaker = f'{region}/{speaker}'
    split = 'train' if part == 'train' else chosen.get(speaker)
    if split:
      found += _utterances(split, speaker, path, names)
  if not found:
    raise UserError(f'no TIMIT in {folder}: no audio like TRAIN/DR1/FCJF0/SI1027.WAV (for NLTK\'s sample: '
                    '--corpus=nltk_sample)')
  utterances = _once(found)
  missing = []
  for split, table in (('dev', DEV_SPEAKERS), ('test', TEST_SPEAKERS)):
    absent = sorted(_speakers(table) - set(_counts(utterances, split)))
    if absent:
      missing.append(f'{len(absent)} of {len(_speakers(table))} {split} speakers ({_short_list(absent)})')
  training = list(_counts(utterances, 'train'))
  for region, n_speakers in TRAINING_SPEAKERS.items():
    present = sum(speaker.startswith(region + '/') for speaker in training)
    if present < n_speakers:
      missing.append(f'{n_speakers - present} of {n_speakers} training speakers of {region}')
  return utterances, missing + _short_speakers(utterances)


def nltk_sample(folder):
  """NLTK's sample of TIMIT, dr1-fvmh0/si836.wav, anywhere below the folder.

  All its speakers are training speakers of the full corpus: dr1 to dr6 are used for training, dr7 for validation, dr8 for
  the test.

  Returns, raises: as `timit`.
  """
  found = []
  for (name,), path, names in _walk(folder, (r'dr[1-8]-\w+',)):
    region, speaker = name.split('-')
    split = {'dr7': 'dev', 'dr8': 'test'}.get(region, 'train')
    found += _utterances(split, f'{region}/{speaker}', path, names)
  if not found:
    raise UserError(f'no sample of TIMIT in {folder}: no audio like dr1-fvmh0/si836.wav (for the LDC\'s layout: '
                    '--corpus=timit)')
  utterances = _once(found)
  missing = [f'{n - len(_counts(utterances, split))} of {n} {split} speakers' for split, n in SAMPLE_SPEAKERS.items()
             if len(_counts(utterances, split)) < n]
  return utterances, missing + _short_speakers(utterances)


def _short_speakers(utterances):
  short = [f'{speaker} has {n}' for split in ('train', 'dev', 'test') for speaker, n in _counts(utterances, split).items()
           if n < SENTENCES]
  return [f'sentences (of {SENTENCES} per speaker, {_short_list(short)})'] if short else []


def download_sample(folder):
  """The folder of NLTK's sample: where NLTK keeps its data, else downloaded to `folder`.

  Raises:
    UserError: the download fails.
  """
  import nltk  # slow to import, and needed here only
  for place in [folder, *nltk.data.path]:
    sample = os.path.join(place, 'corpora', 'timit')
    if os.path.isdir(sample):
      return sample
  print(f'downloading NLTK\'s sample of TIMIT (22 MB) to {folder}', flush=True)
  os.makedirs(folder, exist_ok=True)
  try:
    with open(os.devnull, 'w') as nowhere:
      nltk.download('timit', download_dir=folder, quiet=True, raise_on_error=True, print_error_to=nowhere)
  except Exception as error:  # of many kinds, and of urllib's
    raise UserError(f'NLTK\'s sample of TIMIT cannot be downloaded ({error}); with a copy of it: --data_path=DIR; without: '
                    '--corpus=espeak makes a synthetic corpus') from None
  sample = os.path.join(folder, 'corpora', 'timit')
  if not os.path.isdir(sample):
    raise UserError(f'NLTK downloaded no sample of TIMIT to {sample}; with a copy of it: --data_path=DIR')
  return sample

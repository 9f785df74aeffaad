"""Synthetic speech of figure 2: made, killed, made again; its sizes, speakers, statistics and phones."""
# ruff: noqa: F811
import hashlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from test_timit_processing import process, SCRIPT  # noqa: F401, puts the folder on sys.path

import data
import espeak_corpus
from files import UserError
import phones
import sentences


# Of the first training speaker's eight .phn and .txt files with seed 0: learning curves in the README were measured on them.
DIGEST = 'f3f84e2dd3cfcaaa'


def contents(folder, ending):
  return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob(f'*{ending}'))
          if path.is_file()}


def spawning(*arguments):
  """timit_processing.py with worker processes that are started, not forked, as on macOS and Windows; returns its output."""
  code = f'''import multiprocessing, runpy, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import machine
machine.WORKERS = multiprocessing.get_context('spawn')
sys.argv = {[str(SCRIPT), *map(str, arguments)]!r}
runpy.run_path(sys.argv[0], run_name='__main__')'''
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300, check=False)
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_espeak_killed_and_resumed(tmp_path, process):
  sizes = ('--corpus=espeak', '--n_train=40', '--n_dev=9', '--n_test=9')
  killed, whole = tmp_path / 'killed', tmp_path / 'whole'
  run = subprocess.Popen([sys.executable, str(SCRIPT), *sizes, f'--result_dir={killed}'], stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL)
  while run.poll() is None and len(contents(killed, '.wav')) < 12:
    time.sleep(0.02)
  run.send_signal(signal.SIGKILL)
  run.wait()
  time.sleep(0.3)
  there = len(contents(killed, '.wav'))
  time.sleep(0.3)
  assert len(contents(killed, '.wav')) == there  # its worker processes ended with it
  assert 12 <= len(contents(killed, '.wav')) < 58 and not (killed / 'timit_processed').exists()
  process(*sizes, f'--result_dir={whole}')
  for audio in contents(whole, '.wav'):  # nothing that is there is half written
    if (killed / audio).exists():
      assert (killed / audio).read_bytes() == (whole / audio).read_bytes()
  output = spawning(*sizes, f'--result_dir={killed}')
  assert 'synthetic speech by espeak-ng, not TIMIT' in output
  corpus = contents(whole / 'espeak_corpus', '')
  assert contents(killed / 'espeak_corpus', '') == corpus
  for name in ('train.npz', 'dev.npz', 'test.npz'):
    assert contents(killed / 'timit_processed', name) == contents(whole / 'timit_processed', name)
  assert 'of other settings' in process(*sizes, f'--result_dir={whole}', '--seed=1', expect=2)

  loaded = data.load(str(whole / 'timit_processed' / 'espeak_fbank'))
  assert [len(split.ids) for split in loaded[:3]] == [40, 9, 9] and loaded.metadata['synthetic']
  assert 'not TIMIT' in loaded.metadata['label'] and not loaded.metadata['skipped']
  check_corpus(whole / 'espeak_corpus')
  first = sorted(next((whole / 'espeak_corpus' / 'train' / 'dr1').iterdir()).iterdir())
  texts = b''.join(path.read_bytes() for path in first if path.suffix in ('.phn', '.txt'))
  assert hashlib.sha256(texts).hexdigest()[:16] == DIGEST


def check_corpus(folder):
  """Splits share neither speakers nor sentences, and the speech has TIMIT's measures (NLTK's sample: 12.6 to 13.5 phones per
  second, 24 to 25 % of the frames silent, utterances of 1.4 to 5.5 s).

  Returns:
    dict of split: set of speakers.
  """
  speakers, texts = ({split: set() for split in data.SPLITS} for _ in range(2))
  seconds, phone_counts, silent = [], [], 0
  for path in sorted(folder.rglob('*.wav')):
    with soundfile.SoundFile(path) as file:
      assert file.comment == espeak_corpus.LABEL and file.samplerate == 16000
      audio = file.read(dtype='int16').astype(float)
    split = path.relative_to(folder).parts[0]
    speakers[split].add(path.parent.name)
    texts[split].add(path.with_suffix('.txt').read_text().split(' ', 2)[2])
    segments = [line.split() for line in path.with_suffix('.phn').read_text().splitlines()]
    ends = [int(end) for _, end, _ in segments]
    assert [int(start) for start, _, _ in segments] == [0, *ends[:-1]] and ends[-1] == len(audio)
    assert segments[0][2] == segments[-1][2] == 'h#' and 1600 <= ends[0] <= 5000
    assert 2500 < np.abs(audio).max() < 17000 and 1 < audio[:1600].std() < 12 * np.e ** 2 + 1
    silent += sum(int(end) - int(start) for start, end, phone in segments if phones.FOLDING.get(phone, phone) == 'sil')
    seconds.append(len(audio) / 16000)
    phone_counts.append(len(segments))
  assert 11.5 < np.sum(phone_counts) / np.sum(seconds) < 14 and 0.17 < silent / 16000 / np.sum(seconds) < 0.25
  assert 2.7 < np.mean(seconds) < 3.4 and 1.2 < np.min(seconds) and np.max(seconds) < 7
  for sets in (speakers, texts):
    assert not (sets['train'] & sets['dev'] | sets['train'] & sets['test'] | sets['dev'] & sets['test'])
  assert sum(map(len, texts.values())) > 0.9 * len(seconds)
  return speakers


def test_corpus_of_many_speakers(tmp_path, process):
  process('--corpus=espeak_full', '--n_train=48', '--n_dev=16', '--n_test=8', f'--result_dir={tmp_path}')
  assert {split: len(each) for split, each in check_corpus(tmp_path / 'espeak_full_corpus').items()} == dict(
      train=6, dev=2, test=1)
  loaded = data.load(str(tmp_path / 'timit_processed' / 'espeak_full_fbank'))
  assert loaded.metadata['synthetic'] and 'not TIMIT' in loaded.metadata['label']
  corpus = tmp_path / 'espeak_full_corpus'
  output = process('--corpus=espeak', f'--data_path={corpus}', f'--result_dir={tmp_path / "other"}', expect=2)
  assert 'of other settings' in output


@pytest.mark.parametrize('corpus, sizes, speakers', [('espeak', [1920, 192, 192], [240, 24, 24]),
                                                     ('espeak_full', [3696, 400, 192], [462, 50, 24])])
def test_sizes(tmp_path, monkeypatch, corpus, sizes, speakers):
  monkeypatch.setattr(espeak_corpus, 'in_parallel', lambda *_: None)  # nothing is said
  utterances = espeak_corpus.make(str(tmp_path), corpus, espeak_corpus.SIZES[corpus], 0)
  of = [[u.id for u in utterances if u.split == split] for split in data.SPLITS]
  assert [len(ids) for ids in of] == sizes and len(set(sum(of, []))) == sum(sizes)
  assert [len({name.rsplit('/', 1)[0] for name in ids}) for ids in of] == speakers


class Tone:
  """Stands for espeak-ng: says 0.5 s of 1000 Hz, and remembers how it was asked."""
  asked = []

  def __init__(self, seed):
    pass

  def say(self, text, voice, rate, pitch, pitch_range):
    self.asked.append((rate, pitch, pitch_range))
    samples = np.arange(espeak_corpus.ESPEAK_RATE // 2)
    return (8000 * np.sin(2 * np.pi * 1000 * samples / espeak_corpus.ESPEAK_RATE)).astype(np.int16), [(0, 'A:')], [(0, 0, 1)]


@pytest.mark.parametrize('corpus, spread', [('espeak', 0), ('espeak_full', 0.13)])
def test_speakers_differ(tmp_path, monkeypatch, corpus, spread):
  """Of 40 speakers with two utterances each: where the tone is heard, how fast and how high they speak, how noisy it is."""
  monkeypatch.setattr(espeak_corpus, 'Espeak', Tone)
  monkeypatch.setattr(Tone, 'asked', [])
  hertz, noise = [], []
  for k in range(40):
    espeak_corpus._say_all(str(tmp_path), corpus, 'train', k, str(k), 2, 0)
    audio = soundfile.read(tmp_path / str(k) / 'sx1.wav', dtype='int16')[0].astype(float)
    hertz.append(np.abs(np.fft.rfft(audio * np.hanning(len(audio)))).argmax() * 16000 / len(audio))
    noise.append(audio[:1600].std())
  tracts, (rates, pitches, ranges) = np.array(hertz) / 1000, np.array(Tone.asked).reshape(40, 2, 3).transpose(2, 0, 1)
  assert np.abs(tracts - 1).max() < spread + 0.003 and np.abs(tracts.std() - spread / np.sqrt(3)) < 0.02
  heard = rates * tracts[:, None]  # words per minute, in the audio
  assert 135 * (1 - 0.15) - 2 < heard.min() and heard.max() < 200 * (1 + 0.15) + 2 and 15 < heard.std() < 40
  assert 30 - 8 <= pitches.min() and pitches.max() < 70 + 8 and 25 <= ranges.min() and ranges.max() < 75
  if spread:
    assert np.abs(np.diff(rates)).mean() > 5 and np.abs(np.diff(pitches)).mean() > 2 and 12 < np.max(noise) < 12 * np.e ** 2
  else:
    assert not np.diff(rates).any() and not np.diff(pitches).any() and np.max(noise) < 13


def test_voices_and_sentences_are_disjoint():
  voices = [espeak_corpus.voices(split) for split in data.SPLITS]
  assert [len(each) for each in voices] == [62, 10, 12] and len(set(sum(voices, []))) == 84
  texts = {split: {sentences.sentence(split, np.random.default_rng(k)) for k in range(300)} for split in data.SPLITS}
  assert not (texts['train'] & texts['dev'] | texts['train'] & texts['test'] | texts['dev'] & texts['test'])
  assert len(texts['train']) > 290
  assert not any(' a a' in text or ' a orange' in text or '+' in text for text in texts['train'])


def test_phones_by_rule():
  """A tone of 100 ms with 60 ms of silence at its end, a burst, a voiced stop, and a pause."""
  step = espeak_corpus.ESPEAK_RATE // 100  # [samples], 10 ms
  tone = (8000 * np.sin(np.arange(40 * step) * 0.2)).astype(np.int16)
  audio = tone.copy()
  audio[10 * step:16 * step] = 0
  audio[34 * step:] = 0
  phonemes = [(0, "'u:"), (16 * step, 't'), (20 * step, '@'), (24 * step, 'b'), (30 * step, 'I'), (34 * step, '_:')]
  segments = espeak_corpus.to_segments(audio, phonemes)
  assert [phone for _, phone in segments] == ['uw', 'tcl', 't', 'ax', 'bcl', 'b', 'ih', 'pau']
  starts = np.array([start for start, _ in segments]) / step
  assert np.abs(starts - [0, 10, 16, 20, 24, 27, 30, 34]).max() < 0.2
  with pytest.raises(UserError, match='no TIMIT phone'):
    espeak_corpus.to_segments(audio, [(0, 'x^')])
  assert all(phone in phones.INDEX61 for parts in espeak_corpus.PHONES.values() for phone in parts)

"""A corpus in TIMIT's format, spoken by espeak-ng. SYNTHETIC, NOT TIMIT.

  <folder>/<split>/dr<1-8>/<speaker>/sx<n>.wav .phn .wrd .txt    16 kHz; the comment of each .wav says what it is
  <folder>/README.txt                                            says so once more
  <folder>/corpus.json                                           seed and versions

There are two of them. In `espeak` a speaker is a voice of espeak-ng at a rate, pitch and pitch range of its own, with its own
loudness and noise. `espeak_full` has TIMIT's size and so more speakers than there are voices: there, speakers also differ in
the length of the vocal tract, in spectral tilt and in noise, and change pace and pitch from sentence to sentence. No voice and
no sentence belongs to two splits. A speaker's utterances depend on the seed, the split and the speaker's number only, so a
corpus can be interrupted, and enlarged later.

espeak-ng tells which of its phonemes begins at which sample. They become TIMIT's phones by rule: a table, the context
(flaps, nasal flaps, voiced h, fronted u), and the closures of stops and affricates, which espeak-ng counts to the phoneme
before (a silence at its end) or to the stop itself (a voice bar in its first half).
"""
import concurrent.futures
import ctypes
import functools
import importlib.metadata
import io
import os
import zlib

import espeakng_loader
import numpy as np
import scipy.signal
import soundfile

from corpora import Utterance
from files import read_json, UserError, write_json, write_text, write_whole
import machine
from parallel import in_parallel
from sentences import sentence

LABEL = 'synthetic speech by espeak-ng, not TIMIT'
FORMAT = 1  # of the rules in this file and in sentences.py; a corpus of another number is not continued
RATE, ESPEAK_RATE = 16000, 22050  # [Hz]
UTTERANCES_PER_SPEAKER = 8
SIZES = {'espeak': dict(train=1920, dev=192, test=192), 'espeak_full': dict(train=3696, dev=400, test=192)}  # utterances

# How far speakers of espeak_full differ beyond those of espeak, up and down; drawn uniformly.
TRACT = 0.13   # of all formants, as with a shorter or longer vocal tract, per speaker
TILT = 0.35    # coefficient of x[t] + a x[t-1], per speaker: a dull or a bright voice or microphone
NOISE = 2.0    # logarithm of the factor by which there is more noise, per speaker
PACE = 0.15    # of the rate, per utterance
PITCH = 8      # espeak-ng's units of 0 to 99, per utterance

DEV_VOICES = 'Andy AnxiousAndy Michael adam aunty ed f3 m2 m7 travis'.split()
TEST_VOICES = 'Lee Nguyen Storm david f4 grandma gustave linda belinda m1 m8 quincy'.split()
NOT_USED = (  # sound effects
    'Demonic RicishayMax RicishayMax2 RicishayMax3 Tweaky UniRobot anikaRobot announcer croak fast robosoft robosoft2 '
    'robosoft3 robosoft4 robosoft5 robosoft6 robosoft7 robosoft8 whisper whisperf').split()

# espeak-ng's phonemes (stress marks removed) as TIMIT's phones; of two, the first takes FIRST_PART of the time.
PHONES = {name: phones.split('+') for name, phones in (item.split('=') for item in (
    'b=b d=d g=g p=p t=t t2=t k=k t#=dx ?=q dZ=jh tS=ch s=s S=sh z=z Z=zh f=f T=th v=v D=dh m=m n=n N=ng n-=en l=l r=r r-=r '
    'w=w j=y h=hh @L=el i:=iy i=iy I=ih I2=ix I#=ix E=eh eI=ey a=ae aa=ae 0=aa A:=aa aU=aw aI=ay V=ah O:=ao O2=ao OI=oy '
    'oU=ow U=uh u:=uw 3:=er 3=axr @=ax @2=ax @-=ax a#=ax A@=aa+r O@=ao+r o@=ao+r U@=uh+r e@=eh+r i@=iy+ax i@3=iy+axr '
    'aI@=ay+ax aI3=ay+axr').split())}
FIRST_PART = 0.6
CLOSURES = {'b': 'bcl', 'd': 'dcl', 'g': 'gcl', 'p': 'pcl', 't': 'tcl', 'k': 'kcl', 'jh': 'dcl', 'ch': 'tcl'}
VOICED_STOPS = ('b', 'd', 'g', 'jh')
FRICATIVES = ('s', 'sh', 'z', 'zh', 'f', 'th', 'v', 'dh')
SONORANTS = ('m', 'n', 'ng', 'l', 'r', 'w', 'y')
VOWELS = 'iy ih eh ey ae aa aw ay ah ao oy ow uh uw ux er ax ix axr ax-h'.split()
REDUCED = ('ax', 'ix', 'axr', 'iy', 'el')  # where unstressed
VOICELESS = ('p', 't', 'k', 's', 'sh', 'f', 'th', 'ch', 'hh', 'pcl', 'tcl', 'kcl')
CORONALS = ('t', 'd', 's', 'z', 'n', 'sh', 'ch', 'jh', 'y', 'dx', 'l')
QUIET = 0.06           # of a phoneme's peak: below is silence
LEAST_SILENCE = 0.010  # [s]; shorter ones stay with the phoneme before
LEAST_VOICE_BAR = 0.040  # [s]; a voiced stop longer than this begins with its closure


class _Id(ctypes.Union):
  _fields_ = [('number', ctypes.c_int), ('name', ctypes.c_char_p), ('string', ctypes.c_char * 8)]


class _Event(ctypes.Structure):
  _fields_ = [('type', ctypes.c_int), ('unique', ctypes.c_uint), ('text_position', ctypes.c_int), ('length', ctypes.c_int),
              ('audio_position', ctypes.c_int), ('sample', ctypes.c_int), ('user', ctypes.c_void_p), ('id', _Id)]


class Espeak:
  """espeak-ng in this process. It is not thread-safe and its noise depends on all it has said before."""

  def __init__(self, seed):
    self._library = ctypes.CDLL(espeakng_loader.get_library_path())
    synchronous, phoneme_events, do_not_exit = 2, 1, 0x8000
    data = espeakng_loader.get_data_path().encode()
    if self._library.espeak_Initialize(synchronous, 0, data, phoneme_events | do_not_exit) != ESPEAK_RATE:
      raise UserError('espeak-ng cannot be started; pip install --force-reinstall espeakng-loader')
    self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
    self._callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int,
                                      ctypes.POINTER(_Event))(self._receive)
    self._library.espeak_SetSynthCallback(self._callback)

  def _receive(self, samples, n_samples, events):
    if samples and n_samples:
      self._audio.append(np.ctypeslib.as_array(samples, (n_samples,)).copy())
    for event in events:
      if event.type == 1:
        self._words.append((event.sample, event.text_position - 1, event.length))
      elif event.type == 7:
        self._phonemes.append((event.sample, event.id.string.decode('ascii', 'replace')))
      elif event.type == 0:
        return 0

  def say(self, text, voice, rate, pitch, pitch_range):
    """Speaks.

    Returns:
      int16 [samples] at 22,050 Hz; list of (first sample, phoneme); list of (first sample, first letter, letters) of words.
    """
    self._audio, self._phonemes, self._words = [], [], []
    if self._library.espeak_SetVoiceByName(f'en-us+{voice}'.encode()):
      raise UserError(f'espeak-ng has no voice {voice}')
    for parameter, value in ((1, rate), (3, pitch), (4, pitch_range)):
      self._library.espeak_SetParameter(parameter, value, 0)
    content = text.encode()
    if self._library.espeak_Synth(content, ctypes.c_size_t(len(content) + 1), 0, 1, 0, 1, None, None) or not self._audio:
      raise UserError(f'espeak-ng cannot say {text!r} as {voice}')
    return np.concatenate(self._audio), self._phonemes, self._words


def _quiet_tail(audio):
  """Length of the silence at the end of a phoneme. Args: int16 [samples]. Returns: int, 0 if below LEAST_SILENCE."""
  loud = np.flatnonzero(np.abs(audio.astype(int)) > QUIET * np.abs(audio.astype(int)).max(initial=1))
  tail = len(audio) - (loud[-1] + 1 if len(loud) else 0)
  return tail if tail >= LEAST_SILENCE * ESPEAK_RATE else 0


def _symbols(phonemes, end):
  """Phonemes as phones of the table. Returns: list of (first sample, phone, whether it is stressed)."""
  symbols = []
  for (start, name), stop in zip(phonemes, [start for start, _ in phonemes[1:]] + [end]):
    bare = name.lstrip("',%=|")
    if bare in ('', ';') or stop <= start:  # a mark of palatalisation; nothing to hear
      continue
    if bare[0] == '_':
      symbols.append((start, 'pau', False))
    elif bare not in PHONES:
      raise UserError(f'no TIMIT phone stands for espeak-ng\'s phoneme {bare!r}')
    else:
      symbols.append((start, PHONES[bare][0], name[0] in "',"))
      symbols += [(start + int(FIRST_PART * (stop - start)), phone, False) for phone in PHONES[bare][1:]]
  return symbols


def _allophone(phone, before, after, after_stressed):
  """What the context makes of a phone."""
  if phone == 'hh' and before in (*VOWELS, *SONORANTS) and after in VOWELS:
    return 'hv'
  if phone == 'n' and before in VOWELS and after in REDUCED and not after_stressed:
    return 'nx'
  if phone == 'uw' and before in CORONALS:
    return 'ux'
  if phone == 'ax' and before in VOICELESS and after in VOICELESS:
    return 'ax-h'
  return phone


def to_segments(audio, phonemes):
  """TIMIT's phones of what espeak-ng said.

  Args:
    audio: int16 [samples].
    phonemes: list of (first sample, espeak-ng's phoneme), ascending.

  Returns:
    list of [first sample, phone]; each ends where the next begins, the last at the end of the audio.

  Raises:
    UserError: a phoneme that PHONES lacks.
  """
  symbols = _symbols(phonemes, len(audio)) + [(len(audio), 'pau', False)]
  segments = []
  for (start, phone, _), (end, after, after_stressed) in zip(symbols, symbols[1:]):
    before = segments[-1][1] if segments else 'pau'
    silence = _quiet_tail(audio[segments[-1][0]:start]) if before != 'pau' else 0
    if phone in CLOSURES and before != 'pau':
      if silence:
        segments.append([start - silence, CLOSURES[phone]])
      elif phone in VOICED_STOPS and end - start > LEAST_VOICE_BAR * ESPEAK_RATE:
        segments.append([start, CLOSURES[phone]])
        start += (end - start) // 2
    elif phone in ('pau', 'q'):
      start -= silence
    elif silence and before in FRICATIVES and phone in SONORANTS:
      segments.append([start - silence, 'epi'])
    if not segments or phone != 'pau' or before != 'pau':
      segments.append([start, _allophone(phone, before, after, after_stressed)])
  return segments


def _words_of(words, starts, phones, end, text):
  """Lines of the .wrd file: words begin where a segment does, a closure belongs to the word of its stop."""
  marks = []
  for sample, _, _ in words:
    k = min(np.searchsorted(starts, sample), len(starts) - 1)
    marks.append(starts[k - 1 if k and phones[k - 1] in CLOSURES.values() else k])
  return [f'{start} {stop} {(text[first:first + length] + text[first + length:].split(" ")[0]).lower().strip(".,?")}'
          for start, stop, (_, first, length) in zip(marks, [*marks[1:], end], words) if stop > start]


def _gender(voice):
  path = os.path.join(espeakng_loader.get_data_path(), 'voices', '!v', voice)
  with open(path, encoding='utf-8', errors='replace') as file:
    return 'f' if any(line.split()[:2] == ['gender', 'female'] for line in file) else 'm'


def voices(split):
  """Names of the voices of a split."""
  everyone = sorted(os.listdir(os.path.join(espeakng_loader.get_data_path(), 'voices', '!v')))
  own = {'dev': DEV_VOICES, 'test': TEST_VOICES}
  return own.get(split) or [voice for voice in everyone if voice not in DEV_VOICES + TEST_VOICES + NOT_USED]


def _say_all(folder, corpus, split, speaker, name, n_utterances, seed):
  """Writes the utterances of one speaker; in a fresh process, since espeak-ng's noise depends on what it said before."""
  rng = np.random.default_rng([seed, zlib.crc32(split.encode()), speaker])
  names = voices(split)
  voice = names[speaker % len(names)]
  rate, pitch, pitch_range = (int(rng.integers(*bounds)) for bounds in ((135, 200), (30, 70), (25, 75)))
  level, noise = rng.uniform(3000, 16000), rng.uniform(2, 12)  # peak and standard deviation, of 32,768
  espeak = Espeak(int(rng.integers(2 ** 31)))
  varied = np.random.default_rng([seed, zlib.crc32(corpus.encode()), zlib.crc32(split.encode()), speaker])
  vary = lambda spread: varied.uniform(-spread, spread) if corpus == 'espeak_full' else 0
  tract, tilt, noise = 1 + vary(TRACT), vary(TILT), noise * np.exp(abs(vary(NOISE)))
  down = round(441 * tract)  # as if played at ESPEAK_RATE * tract: faster, too, for which espeak-ng speaks more slowly
  for k in range(n_utterances):
    text = sentence(split, rng)
    manner = int(rate * (1 + vary(PACE)) / tract), int(pitch + vary(PITCH)), pitch_range
    spoken, phonemes, words = espeak.say(text, voice, *manner)
    segments = to_segments(spoken, phonemes)
    lead, trail = rng.integers(RATE // 10, RATE // 4, 2)
    audio = scipy.signal.lfilter([1, tilt], 1, scipy.signal.resample_poly(spoken.astype(float), 320, down))
    audio = np.concatenate([np.zeros(lead), audio * level / np.abs(audio).max(), np.zeros(trail)])
    audio = (audio + noise * rng.standard_normal(len(audio))).round().clip(-32768, 32767).astype(np.int16)
    to_16k = lambda sample: int(lead + sample * 320 / down)
    starts = [to_16k(start) for start, _ in segments]
    phones = [phone for _, phone in segments]
    if phones[-1] == 'pau':
      end = starts.pop()
      phones.pop()
    else:
      end = to_16k(len(spoken))
    bounds = [0, *starts, end, len(audio)]
    phn = [f'{a} {b} {phone}' for a, b, phone in zip(bounds, bounds[1:], ['h#', *phones, 'h#']) if b > a]
    wrd = _words_of([(to_16k(sample), *rest) for sample, *rest in words], starts, phones, end, text)
    base = os.path.join(folder, name, f'sx{k + 1}')
    _write(base, phn, wrd, text, audio)


def _write(base, phn, wrd, text, audio):
  """The four files of an utterance, the audio last: where it is, the utterance is complete."""

  def wav(path):
    content = io.BytesIO()  # soundfile cannot open paths that are not UTF-8
    with soundfile.SoundFile(content, 'w', RATE, 1, 'PCM_16', format='WAV') as file:
      file.comment, file.title = LABEL, os.path.basename(base)
      file.write(audio)
    with open(path, 'wb') as file:
      file.write(content.getvalue())

  os.makedirs(os.path.dirname(base), exist_ok=True)
  for ending, content in (('phn', phn), ('wrd', wrd), ('txt', [f'0 {len(audio)} {text}'])):
    write_text(f'{base}.{ending}', '\n'.join(content) + '\n')
  write_whole(f'{base}.wav', wav)


def _speak(speaker, folder, corpus, seed):
  split, number, name, n_utterances = speaker
  paths = [os.path.join(folder, name, f'sx{k + 1}.wav') for k in range(n_utterances)]
  if not all(os.path.exists(path) for path in paths):
    try:
      with concurrent.futures.ProcessPoolExecutor(1, mp_context=machine.WORKERS, initializer=machine.follow_parent) as fresh:
        fresh.submit(_say_all, folder, corpus, split, number, name, n_utterances, seed).result()
    except concurrent.futures.process.BrokenProcessPool:
      raise UserError(f'espeak-ng crashed while it spoke for {name}') from None


def make(folder, corpus, sizes, seed):
  """Makes the corpus, or what is missing of it.

  Args:
    folder: where.
    corpus: 'espeak' or 'espeak_full'.
    sizes: dict, number of utterances of 'train', 'dev' and 'test'.
    seed: of everything random.

  Returns:
    list of corpora.Utterance.

  Raises:
    UserError: the folder holds a corpus of another seed or program.
  """
  settings = dict(label=LABEL, synthetic=True, seed=seed, format=FORMAT, numpy=np.__version__,
                  espeakng_loader=importlib.metadata.version('espeakng-loader'), language='en-us')
  if corpus != 'espeak':
    settings['corpus'] = corpus
  path = os.path.join(folder, 'corpus.json')
  if os.path.exists(path):
    before = read_json(path)
    if before != settings:
      raise UserError(f'{folder} holds a corpus of other settings ({before}): remove it or give another --data_path')
  elif os.path.isdir(folder) and set(os.listdir(folder)) - {'lock', 'corpus.part.json'}:  # these two are from a killed run
    raise UserError(f'{folder} holds something else; give another --data_path')
  os.makedirs(folder, exist_ok=True)
  lock = machine.Lock(folder)
  write_json(path, settings)
  write_text(os.path.join(folder, 'README.txt'), f'{LABEL[0].upper()}{LABEL[1:]}: results on it are not results on TIMIT.\n'
             'Made by espeak_corpus.py; sentences by sentences.py; settings in corpus.json.\n')

  speakers = []
  for code, split in enumerate(('train', 'dev', 'test')):
    names = voices(split)
    for number in range(-(-sizes[split] // UTTERANCES_PER_SPEAKER)):
      n_utterances = min(UTTERANCES_PER_SPEAKER, sizes[split] - number * UTTERANCES_PER_SPEAKER)
      letters = ''.join(chr(ord('a') + number // 26 ** power % 26) for power in (2, 1, 0))
      speaker = f'{_gender(names[number % len(names)])}{letters}{code}'
      speakers.append((split, number, os.path.join(split, f'dr{number % 8 + 1}', speaker), n_utterances))
  in_parallel(functools.partial(_speak, folder=folder, corpus=corpus, seed=seed), speakers, 'speakers')
  lock.release()
  return [Utterance(split, name.split(os.sep, 1)[1].replace(os.sep, '/') + f'/sx{k + 1}',
                    *(os.path.join(folder, name, f'sx{k + 1}.{ending}') for ending in ('wav', 'phn', 'htk')))
          for split, _, name, n_utterances in speakers for k in range(n_utterances)]

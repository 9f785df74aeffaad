"""Features and frame labels of one utterance: audio and .phn in, arrays out.

T: frames. Frame t is computed from the 25 ms of audio [160 t, 160 t + 400) and is labelled with the phone at its centre,
sample 160 t + 200: the phone that holds most of the window. Labels advance by the hop of the features, 160 samples (the
published program cut them every 161 samples, so that they drifted by a frame every 1.6 s).
"""
import codecs
import io
import os
import re
import stat
import struct

import numpy as np
import python_speech_features
import soundfile

from files import UserError
from phones import INDEX61

RATE = 16000   # [Hz]
HOP = 160      # [samples], 10 ms
WINDOW = 400   # [samples], 25 ms
FULL_SCALE = 32768  # audio is counted in steps of 16 bits
LEAST_SWING = 16    # [steps] between the lowest and the highest sample; less is silence
MOST_CLIPPED = 0.01  # share of samples at full scale
SLACK = 80          # [samples] that may be missing between two segments, before the first and after the last one: half a frame
SILENT_TAIL = 3200  # [samples] that may follow a last segment of silence; at most 2,802 do in NLTK's sample
N_FILTERS = 40
MOST_LOG_ENERGY = 1e4
N_FEATURES = {'mfccs': 39, 'fbank': 123, 'htk': 123}  # with both deltas
SETTINGS = dict(rate_hz=RATE, hop_samples=HOP, window_samples=WINDOW, label_of_frame='phone at the centre of its window',
                deltas='f[t+1] - f[t-1], zero at both ends, applied twice',
                normalisation='mean 0, standard deviation 1 over the training set')


def read_bytes(path):
  """The content of a file.

  Raises:
    UserError: no such file; a pipe, device or folder, which are not waited for; not readable.
  """
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):
      raise UserError(f'{path} is no regular file')
    with open(path, 'rb') as file:
      return file.read()
  except FileNotFoundError:
    raise UserError(f'no file {path}') from None
  except OSError as error:
    raise UserError(f'{path} cannot be read ({error.strerror})') from None


def read_audio(path):
  """Reads an audio file, SPHERE or RIFF, whatever its name ends in, of any sample format.

  Returns:
    int16 [samples], or float64 [samples] where these are no whole numbers of 16 bits; full scale is 32,768.

  Raises:
    UserError: no such file; damaged, empty, silent or clipped audio; NaN; not 16 kHz, not one channel.
  """
  content = read_bytes(path)
  try:
    with soundfile.SoundFile(io.BytesIO(content)) as file:
      rate, channels = file.samplerate, file.channels
      if file.frames > 100 * len(content):
        raise ValueError(f'{file.frames} samples in {len(content)} bytes')
      audio = file.read(dtype='float64') * FULL_SCALE
  except (OSError, RuntimeError, TypeError, ValueError, MemoryError) as error:  # soundfile's own errors are RuntimeErrors
    raise UserError(f'{path} cannot be read as audio ({error if content else "empty file"})') from None
  if rate != RATE:
    raise UserError(f'{path} is sampled at {rate} Hz; {RATE} Hz are needed')
  if channels != 1:
    raise UserError(f'{path} has {channels} channels; one is needed')
  if len(audio) < WINDOW:
    raise UserError(f'{path} holds {len(audio)} samples, less than one frame of {WINDOW}')
  if not np.isfinite(audio).all():
    raise UserError(f'{path} holds NaN or infinity')
  if np.ptp(audio) < LEAST_SWING:
    raise UserError(f'{path} is silent: all its samples lie between {audio.min():g} and {audio.max():g}, full scale is '
                    f'{FULL_SCALE}')
  loudest = np.abs(audio).max() / FULL_SCALE
  if loudest > 1:
    raise UserError(f'{path} reaches {loudest:.4g} times full scale; floating-point samples must lie between -1 and 1')
  clipped = np.mean(np.abs(audio) >= FULL_SCALE - 256)  # the largest value of 8 bits, too
  if clipped > MOST_CLIPPED:
    raise UserError(f'{path} is clipped: {100 * clipped:.1f} % of its samples stand at full scale')
  with np.errstate(invalid='ignore'):
    whole = audio.astype(np.int16)
  return whole if np.array_equal(whole, audio) else audio


def read_phones(path, n_samples):
  """Reads a .phn file: lines of `start end phone`, in samples.

  Args:
    path: the file.
    n_samples: length of the audio.

  Returns:
    int64 [segments], first samples; int32 [segments], indices into PHONES61.

  Raises:
    UserError: no such file; empty; a line that is no segment; an unknown phone; segments that overlap, are unsorted, leave
      a gap, begin late, end long before the audio does or reach beyond it.
  """
  content = read_bytes(path).removeprefix(codecs.BOM_UTF8)  # which some editors put before the text
  text = io.TextIOWrapper(io.BytesIO(content), encoding='ascii', errors='replace')
  lines = [(f'{path}, line {number}', line.split()) for number, line in enumerate(text, 1) if line.strip()]
  if not lines:
    raise UserError(f'{path} is empty')
  starts, phones, gaps, before = [], [], [], 0
  for where, fields in lines:
    if len(fields) != 3 or not all(re.fullmatch('[0-9]{1,15}', field) for field in fields[:2]):
      raise UserError(f'{where}: {" ".join(fields)[:80]!r} is not `start end phone`')
    start, end, phone = int(fields[0]), int(fields[1]), fields[2].lower()
    if phone not in INDEX61:
      raise UserError(f'{where}: {phone[:80]!r} is none of the 61 phones')
    if end < start:
      raise UserError(f'{where}: the segment ends at {end}, before it starts at {start}')
    if start < before:
      raise UserError(f'{where}: the segment starts at {start}, before the last one ends at {before} (overlapping or '
                      'unsorted)')
    gaps.append(start - before)
    starts.append(start)
    phones.append(INDEX61[phone])
    before = end
  for (where, _), start, gap in zip(lines, starts, gaps):
    if gap > SLACK:
      raise UserError(f'{where}: the segment starts at {start}, and no segment covers the {gap} samples before')
  if before > n_samples + WINDOW:
    raise UserError(f'{path} reaches to sample {before} of an audio file of {n_samples} samples (is the audio cut off?)')
  if n_samples - before > (SILENT_TAIL if phone in ('h#', 'pau') else SLACK):
    raise UserError(f'{path} ends at sample {before}, with {phone}, and the audio at {n_samples} (is the annotation cut off?)')
  return np.array(starts), np.array(phones, np.int32)


def frame_labels(starts, phones, n_frames):
  """The phone at the centre of each frame; between two segments and after the last one, the phone before.

  Args:
    starts: int [segments], first samples, ascending.
    phones: int32 [segments].
    n_frames: number of frames.

  Returns:
    int32 [T].
  """
  centres = HOP * np.arange(n_frames) + WINDOW // 2
  return phones[np.maximum(np.searchsorted(starts, centres, side='right') - 1, 0)]


def deltas(values):
  """f[t+1] - f[t-1], zero at both ends. Args and returns: float [T, features]."""
  difference = np.zeros_like(values)
  difference[1:-1] = values[2:] - values[:-2]
  return difference


def mfccs(audio):
  """13 cepstral coefficients, the first replaced by the log energy. Args: as `read_audio` returns. Returns: float [T, 13]."""
  return python_speech_features.mfcc(audio, RATE, WINDOW / RATE, HOP / RATE)


def fbank(audio):
  """Logarithms of 40 mel filters and of the energy. Args: as `read_audio` returns. Returns: float [T, 41]."""
  filters, energy = python_speech_features.fbank(audio, RATE, WINDOW / RATE, HOP / RATE, nfilt=N_FILTERS)
  return np.log(np.column_stack([filters, energy]))


def mel_centres():
  """Centre frequencies of the filters of `fbank`. Returns: float [40], Hz."""
  points = np.linspace(python_speech_features.base.hz2mel(0), python_speech_features.base.hz2mel(RATE / 2), N_FILTERS + 2)
  return python_speech_features.base.mel2hz(points[1:-1])


def read_htk(path, n_samples):
  """Reads an HTK parameter file of 123 features per 10 ms, big-endian as HTK writes it or little-endian.

  Args:
    path: the file.
    n_samples: length of the audio it was made from.

  Returns:
    float32 [T, 123].

  Raises:
    UserError: no such file, a header that does not fit the file or the audio, compressed, NaN.
  """
  if not os.path.exists(path):
    raise UserError(f'no file {path} (htk features lie beside the audio; --preproc=fbank needs none)')
  content = read_bytes(path)
  width = 4 * N_FEATURES['htk']
  if len(content) < 12:
    raise UserError(f'{path} is cut off or no HTK file: it has {len(content)} bytes')
  for order in '><':
    n_frames, period, frame_size, kind = struct.unpack(f'{order}iihH', content[:12])
    checksum = 2 if kind & 0o10000 else 0  # _K
    if n_frames > 0 and frame_size > 0 and len(content) == 12 + n_frames * frame_size + checksum:
      break
  else:
    raise UserError(f'{path} is cut off or no HTK file: its header does not fit its size in either byte order')
  if kind & 0o2000:  # _C
    raise UserError(f'{path} is compressed; write it without _C')
  if frame_size != width or period != HOP * 10 ** 7 // RATE:
    raise UserError(f'{path} holds {frame_size / 4:g} features every {period / 1e4:g} ms; {width // 4} every '
                    f'{1000 * HOP / RATE:g} ms are needed (40 filters and energy with both deltas: FBANK_E_D_A)')
  if abs(n_frames - (n_samples - WINDOW) // HOP - 1) > 2:
    raise UserError(f'{path} has {n_frames} frames, its audio {(n_samples - WINDOW) // HOP + 1}')
  values = np.frombuffer(content, f'{order}f4', n_frames * width // 4, 12).reshape(n_frames, width // 4)
  if not np.isfinite(values).all():
    raise UserError(f'{path} holds NaN or infinity')
  if np.abs(values).max() > MOST_LOG_ENERGY:
    raise UserError(f'{path} holds {np.abs(values).max():g}, which is no logarithm of an energy (is it damaged?)')
  return values.astype(np.float32)


def utterance_arrays(utterance, preproc):
  """Features, not yet normalised, and frame labels of an utterance.

  Args:
    utterance: corpora.Utterance.
    preproc: 'mfccs', 'fbank' or 'htk'.

  Returns:
    float32 [T, features] and int32 [T], indices into PHONES61.

  Raises:
    UserError: something is wrong with its files.
  """
  audio = read_audio(utterance.audio)
  starts, phones = read_phones(utterance.phn, len(audio))
  if preproc == 'htk':
    values = read_htk(utterance.htk, len(audio))
  else:
    static = {'mfccs': mfccs, 'fbank': fbank}[preproc](audio)
    first = deltas(static)
    values = np.concatenate([static, first, deltas(first)], axis=1, dtype=np.float32)
  return values, frame_labels(starts, phones, len(values))

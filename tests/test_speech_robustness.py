"""Speech data that is not as it should be: sample formats, annotations, links, folders that are replaced, damaged files."""
# ruff: noqa: F811
import os
import pathlib
import shutil
import signal
import socket
import sys

import numpy as np
import pytest
import soundfile

from test_timit_processing import complete, htk, layout, process, SAMPLE, spoken  # noqa: F401, puts the folder on sys.path

import corpora
import data
import features
from files import read_json, UserError, write_json
import phones

RATE = 16000


@pytest.fixture(autouse=True)
def no_hang():
  """Ends a test that waits for ever."""

  def end(*_):
    pytest.fail('it hangs')

  before = signal.signal(signal.SIGALRM, end)
  signal.alarm(60)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


@pytest.fixture
def utterance(tmp_path):
  """One utterance, whose files a test may spoil, with an .htk file."""
  source = spoken(SAMPLE, 'sx42')
  files = [tmp_path / f'sx42.{ending}' for ending in ('wav', 'phn', 'htk')]
  for path in files[:2]:
    shutil.copy(source.with_suffix(path.suffix), path)
  n_frames = (len(features.read_audio(str(files[0]))) - 400) // 160 + 1
  files[2].write_bytes(htk(np.random.default_rng(0).standard_normal((n_frames, 123)), '>'))
  return corpora.Utterance('train', 'dr2/faem0/sx42', *map(str, files))


# Audio


@pytest.mark.parametrize('subtype', ['PCM_16', 'PCM_24', 'PCM_32', 'FLOAT', 'DOUBLE'])
def test_sample_formats_give_the_same_features(utterance, subtype):
  wanted = features.utterance_arrays(utterance, 'fbank')
  soundfile.write(utterance.audio, features.read_audio(utterance.audio) / 32768, RATE, subtype, format='WAV')
  found = features.utterance_arrays(utterance, 'fbank')
  assert np.array_equal(found[0], wanted[0]) and np.array_equal(found[1], wanted[1])


def test_eight_bits(utterance):
  audio = (features.read_audio(utterance.audio).astype(float) / 256).round() / 128
  arrays = []
  for subtype in ('PCM_16', 'PCM_U8'):
    soundfile.write(utterance.audio, audio, RATE, subtype, format='WAV')
    arrays.append(features.utterance_arrays(utterance, 'mfccs')[0])
  assert np.array_equal(*arrays)


def test_level_shifts_log_energies(utterance):
  """A float file at full level: the same features but for twice the logarithm of the gain, far finer than a step of 16 bits."""
  audio = features.read_audio(utterance.audio)
  gain = 32768 / np.abs(audio).max()
  soundfile.write(utterance.audio, gain * audio / 32768, RATE, 'FLOAT', format='WAV')
  louder = features.read_audio(utterance.audio)
  assert louder.dtype == np.float64 and np.abs(louder).max() == 32768
  assert np.abs(features.fbank(louder) - features.fbank(audio) - 2 * np.log(gain)).max() < 1e-3


@pytest.mark.parametrize('spoil, message', [
    (lambda x: x * 32768, 'times full scale'),  # samples of 16 bits, written as floats
    (lambda x: np.where(np.arange(len(x)) == 5000, np.nan, x), 'NaN or infinity'),
    (lambda x: np.where(np.arange(len(x)) == 5000, -np.inf, x), 'NaN or infinity'),
    (lambda x: np.clip(100 * x, -1, 1), 'is clipped: '),
    (lambda x: np.sign(x) / 32768, 'is silent'),  # floats that another program read as integers
    (lambda x: 0 * x + 0.25, 'is silent'),
], ids=['16 bits as float', 'NaN', 'infinity', 'clipped', 'one bit', 'constant'])
def test_audio_refused(utterance, spoil, message):
  audio = features.read_audio(utterance.audio) / 32768
  soundfile.write(utterance.audio, spoil(audio), RATE, 'FLOAT', format='WAV')
  with pytest.raises(UserError, match=message):
    features.read_audio(utterance.audio)


def test_clipped_integers(utterance):
  audio = features.read_audio(utterance.audio) / 32768
  for subtype in ('PCM_U8', 'PCM_16', 'PCM_24'):
    soundfile.write(utterance.audio, np.clip(100 * audio, -1, 1), RATE, subtype, format='WAV')
    with pytest.raises(UserError, match='is clipped'):
      features.read_audio(utterance.audio)


# Annotations


def scaled(factor):
  return lambda lines: [f'{int(int(a) * factor)} {int(int(b) * factor)} {phone}' for a, b, phone in map(str.split, lines)]


def shifted(by):
  return lambda lines: [f'{int(a) + by} {int(b) + by} {phone}' for a, b, phone in map(str.split, lines)]


@pytest.mark.parametrize('change, message', [
    (scaled(1 / 160), 'ends at sample .* the annotation cut off'), (scaled(0.5), 'the annotation cut off'),
    (scaled(2), 'reaches to sample'), (shifted(1000), 'line 1: the segment starts at 1000'), (shifted(81), 'line 1: '),
    (lambda x: x[:6], 'the annotation cut off'), (lambda x: x[:-1], 'the annotation cut off'),
    (lambda x: x[1:], 'line 1: the segment starts'), (lambda x: [*x[:5], *x[9:]], 'line 6: .* no segment covers'),
    (lambda x: [*x[:7], *x[8:]], 'line 8: .* no segment covers'), (lambda x: [*x[:7], x[6], *x[7:]], 'overlapping'),
    (lambda x: [*x[:3], '9' * 5000 + ' 9 h#', *x[3:]], 'line 4: .* is not `start end phone`'),
], ids=['/ 160', '/ 2', '* 2', 'late', 'a little late', 'six lines', 'no last', 'no first', 'gap', 'one missing', 'twice',
        'digits'])
def test_annotation_must_cover_the_audio(utterance, change, message):
  path = pathlib.Path(utterance.phn)
  path.write_text('\n'.join(change(path.read_text().splitlines())) + '\n')
  with pytest.raises(UserError, match=f'sx42.phn.*{message}'):
    features.utterance_arrays(utterance, 'fbank')


@pytest.mark.parametrize('lines, good', [
    ('80 8000 h#,8000 16000 s', True), ('81 8000 h#,8000 16000 s', False),
    ('0 8000 h#,8080 16000 s', True), ('0 8000 h#,8081 16000 s', False),
    ('0 8000 h#,8000 15920 s', True), ('0 8000 h#,8000 15919 s', False),
    ('0 8000 s,8000 12800 h#', True), ('0 8000 s,8000 12799 h#', False),
    ('0 8000 s,8000 16400 h#', True), ('0 8000 s,8000 16401 h#', False)])
def test_how_much_may_be_missing(tmp_path, lines, good):
  path = tmp_path / 'a.phn'
  path.write_text(lines.replace(',', '\n'))
  if good:
    assert len(features.read_phones(str(path), 16000)[0]) == 2
  else:
    with pytest.raises(UserError):
      features.read_phones(str(path), 16000)


# Walks


def chain_of_links(root):
  """Four links in each of 15 folders to the next one: a thousand million paths."""
  for k in range(15):
    (root / f'd{k}').mkdir()
  for k in range(14):
    for name in 'abcd':
      (root / f'd{k}' / name).symlink_to(root / f'd{k + 1}')


def special_files(root):
  speaker = root / 'train' / 'dr1' / 'fvmh0'
  os.mkfifo(speaker / 'sx1.wav')
  (speaker / 'sx2.wav').symlink_to('/dev/zero')
  (speaker / 'sx3.wav').symlink_to(root / 'nothing')
  (speaker / 'sx4.wav').mkdir()
  (speaker / 'sx5.wav').symlink_to(speaker / 'sx5.wav')
  (speaker / '._sx836.wav').write_bytes(b'of a Macintosh')
  here = os.getcwd()
  os.chdir(speaker)  # the path of a socket must be short
  with socket.socket(socket.AF_UNIX) as server:
    server.bind('sx6.wav')
  os.chdir(here)


@pytest.mark.parametrize('spoil', [
    lambda root: (root / 'a').symlink_to(root),
    lambda root: [(root / 'train' / name).symlink_to(root) for name in ('a', 'b', 'dr3')],
    lambda root: (root / 'train' / 'dr1' / 'fvmh0' / 'loop').symlink_to(root / 'train'),
    lambda root: (root / 'A').symlink_to(root / 'train' / 'dr1'),
    lambda root: (root / 'a').mkdir() or (root / 'a' / 'train').symlink_to(root / 'train'),
    lambda root: (root / 'train' / 'dr1' / 'aaaa0').symlink_to(root / 'train' / 'dr1' / 'fvmh0'),
    chain_of_links, special_files,
], ids=['loop', 'loops', 'deep loop', 'region', 'twice', 'speaker', 'chain', 'special'])
def test_walk(tmp_path, spoil):
  root = layout(tmp_path / 'timit', False)
  before = corpora.timit(str(root))
  spoil(root)
  assert corpora.timit(str(root)) == before and len(before[0]) == 4


def test_corpus_of_links(tmp_path):
  layout(tmp_path / 'disk', False)
  (tmp_path / 'corpus').mkdir()
  (tmp_path / 'corpus' / 'A').symlink_to(tmp_path / 'disk' / 'train' / 'dr1')  # leads to a part of what comes next
  (tmp_path / 'corpus' / 'TRAIN').symlink_to(tmp_path / 'disk' / 'train')
  (tmp_path / 'corpus' / 'TEST').symlink_to(tmp_path / 'disk' / 'test')
  found = corpora.timit(str(tmp_path / 'corpus'))[0]
  assert sorted(u.id for u in found) == ['dr1/faks0/sx158', 'dr1/felc0/si1612', 'dr1/fvmh0/si836', 'dr2/faem0/sx42']


@pytest.mark.parametrize('ending', ['wav', 'phn', 'htk'])
def test_pipes_are_not_waited_for(utterance, ending):
  path = pathlib.Path(utterance.audio).with_suffix(f'.{ending}')
  path.unlink()
  os.mkfifo(path)
  with pytest.raises(UserError, match=f'sx42.{ending} is no regular file'):
    features.utterance_arrays(utterance, 'htk')


# Folders that are replaced


def folder_with(path, text):
  path.mkdir()
  (path / 'metadata.json').write_text(text)
  return str(path)


@pytest.mark.skipif(sys.platform != 'linux', reason='two names can be exchanged at once on Linux only')
def test_a_good_folder_is_never_without_its_name(tmp_path, monkeypatch):
  folder, new = folder_with(tmp_path / 'folder', 'old'), folder_with(tmp_path / 'new', 'new')
  monkeypatch.delattr(os, 'rename')  # which could do it in two steps only
  data.put_in_place(new, folder)
  assert (tmp_path / 'folder' / 'metadata.json').read_text() == 'new'


@pytest.mark.parametrize('error', [OSError(5, 'disk is gone'), KeyboardInterrupt()])
def test_second_rename_fails(tmp_path, monkeypatch, error):
  folder, new = folder_with(tmp_path / 'folder', 'good'), folder_with(tmp_path / 'new', 'new')
  rename, calls = os.rename, []

  def failing(source, target):
    calls.append(source)
    if len(calls) == 2:
      raise error
    rename(source, target)

  monkeypatch.setattr(data, '_exchange', lambda *_: False)
  monkeypatch.setattr(os, 'rename', failing)
  with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
    data.put_in_place(new, folder)
  assert len(calls) == 3 and sorted(os.listdir(tmp_path)) == ['folder', 'new']
  assert (tmp_path / 'folder' / 'metadata.json').read_text() == 'good'
  monkeypatch.setattr(os, 'rename', rename)
  data.put_in_place(new, folder)
  assert (tmp_path / 'folder' / 'metadata.json').read_text() == 'new'


def test_dataset(complete, tmp_path, process):
  """A link to a folder of another name, which a killed run on a system without exchange left as .old."""
  corpus = ('--corpus=nltk_sample', f'--data_path={complete}')
  (tmp_path / 'link').symlink_to(tmp_path / 'disk')
  process(*corpus, f'--dataset={tmp_path / "link"}')
  process(*corpus, f'--dataset={tmp_path / "link"}', '--preproc=mfccs')
  assert (tmp_path / 'link').is_symlink() and data.load(str(tmp_path / 'disk')).metadata['preproc'] == 'mfccs'
  (tmp_path / 'disk').rename(tmp_path / 'disk.old')
  spoken(complete, 'sx42').write_bytes(b'')
  process(*corpus, f'--dataset={tmp_path / "link"}', expect=2)
  assert data.load(str(tmp_path / 'link')).metadata['preproc'] == 'mfccs' and not (tmp_path / 'disk.old').exists()
  for place, message in (('/proc/x', 'nothing can be written to /proc'), (tmp_path / 'link' / 'dev.npz', 'is a file'),
                         (tmp_path / (252 * 'x'), 'File name too long'), (tmp_path / 'link' / 'dev.npz' / 'x', 'Not a directory')):
    output = process(*corpus, f'--dataset={place}', expect=2)
    assert message in output and 'utterances' not in output  # before any work


def test_flags_without_meaning(tmp_path, process):
  for flag in ('--resume', '--run_name=a', '--device=GPU:0', '--dtype=float64'):
    assert 'has no meaning in this program' in process('--corpus=espeak', flag, f'--result_dir={tmp_path}', expect=2)
  assert not os.listdir(tmp_path)


def test_paths_that_are_not_utf8(tmp_path, process):
  place = tmp_path / 'caf\udce9 [1]*'
  layout(place / 'timit', True)
  process(f'--data_path={place / "timit"}', f'--result_dir={place}', '--skip_bad')
  assert data.load(str(place / 'timit_processed' / 'timit_fbank')).test.ids == ['dr1/felc0/si1612']
  process('--corpus=espeak', '--n_train=1', '--n_dev=1', '--n_test=1', f'--result_dir={place}')
  assert data.load(str(place / 'timit_processed' / 'espeak_fbank')).metadata['source'].startswith(str(tmp_path))


# Damaged files: 200 of each kind


def spoiled(content, rng):
  """Cut off in half of the cases, up to five bytes changed, most of them at the beginning."""
  content = bytearray(content[:rng.integers(len(content) + 1)] if rng.random() < 0.5 else content)
  for _ in range(rng.integers(6)):
    if content:
      header = 1024 if content[:4] == b'NIST' else 60
      content[rng.integers(min(len(content), header) if rng.random() < 0.7 else len(content))] = rng.integers(256)
  return bytes(content)


@pytest.mark.parametrize('kind', ['SPHERE', 'PCM_16', 'FLOAT', 'phn', 'htk'])
def test_damaged_files(utterance, kind):
  path = pathlib.Path({'phn': utterance.phn, 'htk': utterance.htk}.get(kind, utterance.audio))
  if kind in ('PCM_16', 'FLOAT'):
    soundfile.write(path, features.read_audio(str(path)) / 32768, RATE, kind, format='WAV')
  whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
  for _ in range(200):
    path.write_bytes(spoiled(whole, rng))
    try:
      values, labels = features.utterance_arrays(utterance, 'htk' if kind == 'htk' else 'mfccs')
      assert np.isfinite(values).all() and values.shape == (len(labels), 123 if kind == 'htk' else 39)
      assert labels.min() >= 0 and labels.max() < 61
    except UserError as error:
      refused += 1
      assert str(path) in str(error) or str(pathlib.Path(utterance.phn)) in str(error)
  assert 50 < refused < 200


@pytest.fixture
def corpus(tmp_path):
  """A processed corpus of two utterances a split."""
  rng = np.random.default_rng(0)
  for split in data.SPLITS:
    labels = [np.repeat(rng.integers(0, 61, 4), 3).astype(np.int32) for _ in range(2)]
    write_split(tmp_path, split, **data.pack(['dr1/a/sx1', 'dr1/a/sx2'], [np.ones((12, 3), np.float32)] * 2, labels))
  outputs = {f'{split}.npz': data.sha256(str(tmp_path / f'{split}.npz')) for split in data.SPLITS}
  write_json(str(tmp_path / 'metadata.json'), dict(label='x', synthetic=True, n_features=3, classes61=phones.PHONES61,
                                                   classes39=phones.PHONES39, outputs=outputs))
  data.load(str(tmp_path))
  return tmp_path


def write_split(folder, split, **arrays):
  """Writes the arrays of a split; where there is metadata.json, with the digest that it then needs."""
  np.savez(folder / f'{split}.npz', **arrays)
  if (folder / 'metadata.json').exists():
    metadata = read_json(folder / 'metadata.json')
    metadata['outputs'][f'{split}.npz'] = data.sha256(str(folder / f'{split}.npz'))
    write_json(folder / 'metadata.json', metadata)


@pytest.mark.parametrize('name', ['metadata.json', 'dev.npz'])
def test_damaged_corpus(corpus, name):
  whole, rng, refused = (corpus / name).read_bytes(), np.random.default_rng(0), 0
  for _ in range(200):
    (corpus / name).write_bytes(spoiled(whole, rng))
    try:
      loaded = data.load(str(corpus)).metadata
      assert loaded['n_features'] == 3 and loaded['classes39'] == list(phones.PHONES39)
    except UserError as error:
      refused += 1
      assert str(corpus) in str(error)
  assert refused > 100


@pytest.mark.parametrize('name, value', [
    ('classes61', phones.PHONES61[::-1]), ('classes61', phones.PHONES61[:60]), ('classes39', phones.PHONES61), ('classes39', None),
    ('label', None), ('label', 3), ('label', ''), ('synthetic', 'no'), ('n_features', 4), ('n_features', '3'), ('outputs', []),
    ('outputs', {})])
def test_metadata_of_something_else(corpus, name, value):
  metadata = read_json(corpus / 'metadata.json')
  write_json(corpus / 'metadata.json', dict(metadata, **{name: value}))
  with pytest.raises(UserError, match=f'metadata.json is damaged: {name} '):
    data.load(str(corpus))


@pytest.mark.parametrize('name, change', [
    ('labels61', lambda x: x + 60), ('labels61', lambda x: x - 61), ('labels61', lambda x: x[:-1]), ('labels39', lambda x: 38 - x),
    ('labels61', lambda x: x.astype(float)), ('lengths', lambda x: x + 1), ('lengths', lambda x: np.array([24, 0], np.int32)),
    ('lengths', lambda x: x[:1]), ('run_counts61', lambda x: x + 1), ('run_starts39', lambda x: x[::-1]), ('runs61', lambda x: x + 1),
    ('runs39', lambda x: x[:0]), ('ids', lambda x: x[:1]), ('ids', lambda x: np.arange(2)), ('features', lambda x: x[:, 0]),
    ('features', lambda x: x[:-1]), ('features', lambda x: x * np.nan)])
def test_arrays_that_do_not_fit(corpus, name, change):
  with np.load(corpus / 'dev.npz') as arrays:
    arrays = dict(arrays)
  write_split(corpus, 'dev', **dict(arrays, **{name: change(arrays[name])}))
  with pytest.raises(UserError, match='dev.npz'):
    data.load(str(corpus))


def test_a_mark_before_the_annotation(utterance):
  """That some editors write, and Windows' line ends."""
  wanted = features.utterance_arrays(utterance, 'mfccs')[1]
  path = pathlib.Path(utterance.phn)
  path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes().replace(b'\n', b'\r\n'))
  assert np.array_equal(features.utterance_arrays(utterance, 'mfccs')[1], wanted)

"""Speech data of figure 2: corpora, features, labels, and timit_processing.py as a user calls it."""
import hashlib
import json
import pathlib
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'Figure_2_TIMIT'
sys.path.append(str(FOLDER))  # after the Figure 3 folder, whose experiment.py is the same file

import corpora  # noqa: E402
import data  # noqa: E402
from files import UserError  # noqa: E402
import features  # noqa: E402
import phones  # noqa: E402
from program import FLAGS  # noqa: E402
import timit_plots  # noqa: E402

SAMPLE = ROOT / 'tests' / 'data' / 'timit_sample'
SCRIPT = FOLDER / 'timit_processing.py'
if not FLAGS.is_parsed():
  FLAGS(['pytest'])

# Imports the script once and runs its main in a fork for each line of arguments, since TensorFlow takes seconds to import.
DRIVER = f'''
import json, os, sys, tempfile, traceback
sys.path.insert(0, {str(FOLDER)!r})
import timit_processing
for line in sys.stdin:
  with tempfile.TemporaryFile() as output:
    child = os.fork()
    if not child:
      os.dup2(output.fileno(), 1)
      os.dup2(output.fileno(), 2)
      sys.argv = [timit_processing.__file__, *json.loads(line)]
      try:
        timit_processing.run_app(timit_processing.main)
      except SystemExit as end:
        code = end.code or 0
      except BaseException:
        code = 1
        traceback.print_exc()
      sys.stdout.flush()
      os._exit(code)  # without TensorFlow's slow farewell
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    output.seek(0)
    print(json.dumps([code, output.read().decode()]), flush=True)
'''


@pytest.fixture(scope='module')
def process():
  """Runs timit_processing.py with arguments; returns its output."""
  driver = subprocess.Popen([sys.executable, '-c', DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

  def run(*arguments, expect=0):
    driver.stdin.write(json.dumps([str(argument) for argument in arguments]) + '\n')
    driver.stdin.flush()
    code, output = json.loads(driver.stdout.readline())
    assert code == expect, output
    assert 'Traceback' not in output
    return output

  yield run
  driver.stdin.close()
  driver.wait(10)


@pytest.fixture
def sample(tmp_path):
  """A copy of the four utterances that a test may spoil."""
  folder = tmp_path / 'sample'
  shutil.copytree(SAMPLE, folder)
  return folder


def spoken(folder, name):
  return next(folder.rglob(f'{name}.wav'))


def layout(folder, upper):
  """TIMIT in the LDC's layout, made of the four utterances; with SA sentences and a test speaker that is in no split."""
  case = str.upper if upper else str.lower
  for place, name in (('train/dr1/fvmh0', 'si836'), ('train/dr2/faem0', 'sx42'), ('test/dr1/faks0', 'sx158'),
                      ('test/dr1/felc0', 'si1612'), ('test/dr1/mjsw9', 'si1612')):
    target = folder / case(place)
    target.mkdir(parents=True)
    for ending in ('wav', 'phn', 'wrd', 'txt'):
      source = spoken(SAMPLE, name).with_suffix(f'.{ending}')
      shutil.copy(source, target / case(f'{name}.{ending}'))
      shutil.copy(source, target / case(f'sa1.{ending}'))
  return folder


def test_phones():
  assert len(phones.PHONES61) == len(set(phones.PHONES61)) == 61
  assert len(phones.PHONES39) == len(set(phones.PHONES39)) == 39
  name = lambda phone: phones.PHONES39[phones.fold(phones.INDEX61[phone])]
  expected = dict(ao='aa', ax='ah', axr='er', hv='hh', ix='ih', el='l', em='m', en='n', nx='n', eng='ng', zh='sh', ux='uw',
                  b='b', iy='iy', **dict.fromkeys('pcl tcl kcl bcl dcl gcl pau epi q'.split(), 'sil'))
  assert {phone: name(phone) for phone in expected} == expected
  assert name('ax-h') == 'ah' and name('h#') == 'sil'


def test_standard_split():
  counts = [len(corpora._speakers(table)) for table in (corpora.DEV_SPEAKERS, corpora.TEST_SPEAKERS)]
  assert counts == [50, 24] and [8 * n for n in counts] == [400, 192]
  assert 8 * sum(corpora.TRAINING_SPEAKERS.values()) == 3696
  digests = [hashlib.sha256(' '.join(sorted(corpora._speakers(table))).encode()).hexdigest()[:16]
             for table in (corpora.DEV_SPEAKERS, corpora.TEST_SPEAKERS)]
  assert digests == ['64b18b5ea74c3f2e', 'af7342ecbf803aad']  # of the published lists


def test_sample_is_split_by_speakers(complete):
  utterances, missing = corpora.nltk_sample(str(complete))
  of = {split: [u for u in utterances if u.split == split] for split in data.SPLITS}
  assert {split: len(each) for split, each in of.items()} == dict(train=96, dev=16, test=16) and not missing
  assert {u.id[:3] for u in of['dev']} == {'dr7'} and {u.id[:3] for u in of['test']} == {'dr8'}


def test_published_constants():
  assert (features.RATE, features.HOP, features.WINDOW, features.N_FILTERS) == (16000, 160, 400, 40)
  assert features.N_FEATURES == dict(mfccs=39, fbank=123, htk=123)


@pytest.mark.parametrize('upper', [True, False])
def test_ldc_layout(tmp_path, process, upper):
  corpus = layout(tmp_path / 'timit', upper)
  output = process(f'--data_path={corpus}', f'--result_dir={tmp_path}', expect=2)
  for text in ('49 of 50 dev speakers', '23 of 24 test speakers', '37 of 38 training speakers of dr1', 'dr1/fvmh0 has 1'):
    assert text in output
  assert not (tmp_path / 'timit_processed').exists()
  process(f'--data_path={corpus}', f'--result_dir={tmp_path}', '--skip_bad')
  loaded = data.load(str(tmp_path / 'timit_processed' / 'timit_fbank'))
  assert [split.ids for split in loaded[:3]] == [['dr1/fvmh0/si836', 'dr2/faem0/sx42'], ['dr1/faks0/sx158'],
                                                 ['dr1/felc0/si1612']]
  assert not loaded.metadata['synthetic'] and len(loaded.metadata['missing']) == 11


def test_processed_sample(tmp_path, process):
  for preproc, width in (('fbank', 123), ('mfccs', 39)):
    output = process('--corpus=nltk_sample', f'--data_path={SAMPLE}', f'--result_dir={tmp_path}', '--skip_bad',
                     f'--preproc={preproc}')
    folder = tmp_path / 'timit_processed' / f'nltk_sample_{preproc}'
    assert str(folder) in output and (folder / 'utterance.png').stat().st_size > 10000
    train, dev, test, metadata = data.load(str(folder))
    assert train.features[0].shape == (train.lengths[0], width) and train.features[0].dtype == np.float32
    everything = np.concatenate(train.features)
    assert np.abs(everything.mean(0)).max() < 1e-3 and np.abs(everything.std(0) - 1).max() < 1e-3
    assert abs(dev.features[0].mean()) > 1e-3  # normalised by the training set, not by itself
  assert len(metadata['mean']) == len(metadata['sd']) == width
  assert len(list((tmp_path / 'timit_processed').iterdir())) == 2  # nothing else is left behind
  (frames, runs, starts), short = test.phones[61], test.phones[39]
  names = [metadata['classes61'][run] for run in runs[0]]
  wanted = [line.split()[2] for line in spoken(SAMPLE, 'si1612').with_suffix('.phn').read_text().splitlines()]
  assert names == wanted and names[-1] == 'h#'  # the last run is there, unlike in the published program
  assert np.array_equal(np.repeat(runs[0], np.diff([*starts[0], len(frames[0])])), frames[0])
  assert np.array_equal(short.frames[0], phones.fold(frames[0])) and (np.diff(short.runs[0]) != 0).all()
  (folder / 'dev.npz').write_bytes((folder / 'dev.npz').read_bytes()[:-5])
  with pytest.raises(UserError, match='dev.npz is damaged'):
    data.load(str(folder))


def test_load_names_the_three_ways(tmp_path):
  with pytest.raises(UserError) as error:
    data.load(str(tmp_path / 'nothing'))
  for way in ('--data_path=DIR', '--corpus=nltk_sample', '--corpus=espeak', 'not TIMIT'):
    assert way in str(error.value)


def drift(seconds=20):
  """Largest distance, in frames, of label edges from edges of the energy in a long file of bursts."""
  rng = np.random.default_rng(0)
  edges = np.concatenate([[0], np.cumsum(rng.integers(4000, 9000, int(seconds * 16000 / 6500)))])
  audio = np.zeros(edges[-1])
  for k in range(1, len(edges) - 1, 2):
    audio[edges[k]:edges[k + 1]] = 8000 * np.sin(np.arange(edges[k + 1] - edges[k]) * 0.4)
  audio += rng.standard_normal(len(audio))
  energy = features.fbank(audio.astype(np.int16))[:, -1]
  labels = features.frame_labels(edges[:-1], np.arange(len(edges) - 1, dtype=np.int32) % 2, len(energy))
  threshold = energy.max() - np.log(4)  # half the amplitude: the edge is at the centre of the frame
  heard, labelled = (np.flatnonzero(np.diff(x.astype(int))) for x in (energy > threshold, labels == 1))
  assert len(heard) == len(labelled) > 30
  return np.abs(heard - labelled).max()


def test_labels_do_not_drift(monkeypatch):
  assert drift() <= 1
  published = lambda starts, kinds, n: kinds[np.searchsorted(starts, 161 * np.arange(n) + 200, side='right') - 1]
  monkeypatch.setattr(features, 'frame_labels', published)
  assert drift() > 10


def test_labels_of_the_sample_follow_its_segments():
  utterance = next(u for u in corpora.nltk_sample(str(SAMPLE))[0] if u.id.endswith('si836'))
  values, labels = features.utterance_arrays(utterance, 'fbank')
  lines = [line.split() for line in pathlib.Path(utterance.phn).read_text().splitlines()]
  assert len(values) == len(labels) == 1 + int(np.ceil((len(features.read_audio(utterance.audio)) - 400) / 160))
  for t, label in enumerate(labels):  # an oracle that searches every segment
    holders = [phone for start, end, phone in lines if int(start) <= 160 * t + 200 < int(end)]
    assert phones.PHONES61[label] == (holders[0] if holders else 'h#')


def test_sphere_and_riff(tmp_path):
  sphere = features.read_audio(str(spoken(SAMPLE, 'si836')))
  assert spoken(SAMPLE, 'si836').read_bytes().startswith(b'NIST_1A')
  soundfile.write(tmp_path / 'riff.wav', sphere, 16000)
  assert np.array_equal(features.read_audio(str(tmp_path / 'riff.wav')), sphere) and sphere.std() > 100


def test_deltas():
  values = np.random.default_rng(0).standard_normal((7, 3))
  slow = np.zeros_like(values)
  for t in range(1, 6):
    slow[t] = values[t + 1] - values[t - 1]
  assert np.array_equal(features.deltas(values), slow)
  audio = (1000 * np.random.default_rng(1).standard_normal(8000)).astype(np.int16)
  assert features.fbank(audio).shape == (49, 41) and features.mfccs(audio).shape == (49, 13)
  assert np.all(np.diff(features.mel_centres()) > 0) and features.mel_centres()[-1] < 8000


def htk(values, order, period=100000, kind=7 | 0o1500):
  return struct.pack(f'{order}iihH', len(values), period, 4 * values.shape[1], kind) + values.astype(f'{order}f4').tobytes()


def test_htk(tmp_path):
  path, n_samples = tmp_path / 'a.htk', 400 + 160 * 9
  values = np.random.default_rng(0).standard_normal((10, 123)).astype(np.float32)
  for order in '><':
    path.write_bytes(htk(values, order))
    assert np.array_equal(features.read_htk(str(path), n_samples), values)
  torn = np.full((10, 123), np.nan)
  for content, message in ((htk(values, '>')[:-3], 'does not fit its size'), (b'abc', '3 bytes'),
                           (htk(values[:, :39], '>'), 'holds 39 features'), (htk(values, '>', 50000), 'every 5 ms'),
                           (htk(values, '>', kind=7 | 0o3500), 'compressed'),
                           (htk(values[:3], '>'), '3 frames'), (htk(torn, '>'), 'NaN')):
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
      features.read_htk(str(path), n_samples)


def test_htk_corpus(sample, tmp_path, process):
  arguments = ('--corpus=nltk_sample', f'--data_path={sample}', f'--result_dir={tmp_path}', '--skip_bad', '--preproc=htk')
  rng = np.random.default_rng(0)
  for path in sample.rglob('*.wav'):
    n_frames = (len(features.read_audio(str(path))) - 400) // 160 + 1
    path.with_suffix('.htk').write_bytes(htk(rng.standard_normal((n_frames, 123)), '>'))
  process(*arguments)
  loaded = data.load(str(tmp_path / 'timit_processed' / 'nltk_sample_htk'))
  assert loaded.metadata['n_features'] == 123 and len(loaded.train.phones[61].frames[0]) == loaded.train.lengths[0]
  spoken(sample, 'sx158').with_suffix('.htk').unlink()
  assert 'sx158.htk' in process(*arguments, expect=2)  # the only utterance for validation


def _rewrite(path, change):
  lines = path.read_text().splitlines()
  path.write_text('\n'.join(change(lines)) + '\n')


def _resample(wav, rate=16000, channels=1, length=None, scale=1):
  audio = features.read_audio(str(wav))[:length]
  soundfile.write(wav, np.stack([scale * audio] * channels, 1), rate, format='WAV', subtype='PCM_16')


BAD = {  # what is done to an utterance, and what the message says
    'noise for audio': (lambda wav, phn: wav.write_bytes(b'RIFF' + bytes(range(256))), 'sx42.wav cannot be read as audio'),
    'empty audio': (lambda wav, phn: wav.write_bytes(b''), 'sx42.wav cannot be read as audio (empty file)'),
    'no samples': (lambda wav, phn: _resample(wav, length=0), 'sx42.wav holds 0 samples'),
    'audio cut off': (lambda wav, phn: wav.write_bytes(wav.read_bytes()[:40000]), 'is the audio cut off?'),
    'silent audio': (lambda wav, phn: _resample(wav, scale=0), 'sx42.wav is silent'),
    'wrong rate': (lambda wav, phn: _resample(wav, rate=8000), 'sx42.wav is sampled at 8000 Hz; 16000 Hz are needed'),
    'stereo': (lambda wav, phn: _resample(wav, channels=2), 'sx42.wav has 2 channels'),
    'no .phn': (lambda wav, phn: phn.unlink(), 'no file'),
    'empty .phn': (lambda wav, phn: phn.write_text(''), 'sx42.phn is empty'),
    'binary .phn': (lambda wav, phn: phn.write_bytes(bytes(range(128, 256))), 'is not `start end phone`'),
    'unknown phone': (lambda wav, phn: _rewrite(phn, lambda x: [*x[:3], x[3].rsplit(' ', 1)[0] + ' xyz', *x[4:]]),
                      "sx42.phn, line 4: 'xyz' is none of the 61 phones"),
    'unsorted': (lambda wav, phn: _rewrite(phn, lambda x: [*x[:3], x[4], x[3], *x[5:]]),
                 'sx42.phn, line 5: the segment starts'),
    'overlapping': (lambda wav, phn: _rewrite(phn, lambda x: [*x[:3], '1 ' + x[3].split(' ', 1)[1], *x[4:]]),
                    'sx42.phn, line 4: the segment starts at 1, before'),
    'backwards': (lambda wav, phn: _rewrite(phn, lambda x: [*x[:-1], '40000 30000 h#']),
                  'the segment ends at 30000, before'),
    'no number': (lambda wav, phn: _rewrite(phn, lambda x: [*x, '12 h#']), "'12 h#' is not"),
}


@pytest.fixture
def complete(tmp_path):
  """The layout and counts of NLTK's sample, all utterances links to the shortest one, but for dr1-faaa0/sx0."""
  folder = tmp_path / 'complete'
  for region in range(1, 9):
    for speaker in ('faaa0', 'maaa0'):
      place = folder / f'dr{region}-{speaker}'
      place.mkdir(parents=True)
      for k in range(8):
        for ending in ('wav', 'phn'):
          (place / f'sx{k}.{ending}').symlink_to(spoken(SAMPLE, 'si1612').with_suffix(f'.{ending}'))
  for ending in ('wav', 'phn'):
    (folder / 'dr1-faaa0' / f'sx0.{ending}').unlink()
    shutil.copy(spoken(SAMPLE, 'sx42').with_suffix(f'.{ending}'), folder / 'dr1-faaa0' / f'sx42.{ending}')
  return folder


@pytest.mark.parametrize('bad', BAD)
def test_bad_input(complete, tmp_path, process, bad):
  spoil, message = BAD[bad]
  wav = complete / 'dr1-faaa0' / 'sx42.wav'
  spoil(wav, wav.with_suffix('.phn'))
  output = process('--corpus=nltk_sample', f'--data_path={complete}', f'--dataset={tmp_path / "out"}', expect=2)
  last = output.strip().splitlines()[-1]
  assert last.startswith('error: ') and message in last and str(wav.with_suffix('')) in last
  assert not (tmp_path / 'out').exists()


def test_skip_bad(complete, tmp_path, process):
  (complete / 'dr1-faaa0' / 'sx42.wav').write_bytes(b'')
  (complete / 'dr7-faaa0' / 'sx3.phn').unlink()
  output = process('--corpus=nltk_sample', f'--data_path={complete}', f'--dataset={tmp_path / "out"}', '--skip_bad')
  loaded = data.load(str(tmp_path / 'out'))
  assert [(item['utterance'], item['reason'][-12:]) for item in loaded.metadata['skipped']] == [
      ('dr1/faaa0/sx42', '(empty file)'), ('dr7/faaa0/sx3', 'aaa0/sx3.phn')]
  assert [len(split.ids) for split in loaded[:3]] == [95, 15, 16]
  assert 'skipped: dr1/faaa0/sx42: ' in output and 'skipped: dr7/faaa0/sx3: no file' in output


def test_bad_input_keeps_a_good_result(complete, tmp_path, process):
  arguments = ('--corpus=nltk_sample', f'--data_path={complete}', f'--dataset={tmp_path / "out"}')
  process(*arguments)
  before = {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
  (complete / 'dr1-faaa0' / 'sx42.wav').write_bytes(b'')
  process(*arguments, expect=2)
  assert {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()} == before


def test_other_mistakes(tmp_path, process):
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'thesis.txt').write_text('precious')
  for arguments, message in (
      (['--corpus=timit'], '--corpus=timit needs --data_path=DIR'),
      ([f'--data_path={tmp_path / "none"}'], 'no folder'),
      ([f'--data_path={SAMPLE}'], 'for NLTK\'s sample: --corpus=nltk_sample'),
      (['--corpus=nltk_sample', f'--data_path={tmp_path / "full"}'], 'no sample of TIMIT'),
      (['--corpus=espeak', '--preproc=htk'], 'no .htk files'),
      (['--corpus=espeak', f'--data_path={tmp_path / "full"}'], 'holds something else'),
      (['--corpus=espeak', f'--dataset={tmp_path / "full"}'], 'holds something else'),
      (['--corpus=klingon'], 'klingon'), (['--n_train=0'], 'n_train')):
    output = process(f'--result_dir={tmp_path}', *arguments, expect=2)
    assert message in output and output.splitlines()[-1].startswith('error: ')
  assert sorted(path.name for path in tmp_path.rglob('*')) == ['full', 'thesis.txt']


def test_twice_the_same_utterance(tmp_path):
  layout(tmp_path / 'a', True)
  layout(tmp_path / 'b', False)
  with pytest.raises(UserError, match='occurs twice'):
    corpora.timit(str(tmp_path))


def test_failed_download(tmp_path, monkeypatch):
  nltk = pytest.importorskip('nltk')
  monkeypatch.setattr(nltk.data, 'path', [])

  def fail(*_, **__):
    raise ValueError('no connection')

  monkeypatch.setattr(nltk, 'download', fail)
  with pytest.raises(UserError, match=r'cannot be downloaded \(no connection\); with a copy of it: --data_path'):
    corpora.download_sample(str(tmp_path))
  (tmp_path / 'corpora' / 'timit').mkdir(parents=True)
  assert corpora.download_sample(str(tmp_path)) == str(tmp_path / 'corpora' / 'timit')


def test_picture_colours():
  assert [timit_plots.kind_of(phone) for phone in ('ax-h', 'h#', 'sh')] == ['vowel', 'silence', 'consonant']

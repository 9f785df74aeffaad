"""Files: written whole or not at all, and checked when read back; what the system lacks is done without."""
import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import conftest
import files
import machine


def damaged(content, n, rng):
  """n variants of some bytes: cut somewhere, a few bytes changed, a stretch zeroed or left out."""
  for k in range(n):
    first, last = sorted(rng.integers(0, len(content) + 1, 2))
    flipped = bytearray(content)
    for place in rng.integers(0, len(content), rng.integers(1, 6)):
      flipped[place] ^= 1 << rng.integers(8)
    yield (content[:first], bytes(flipped), content[:first] + bytes(last - first) + content[last:],
           content[:first] + content[last:])[k % 4]


def readers(folder):
  """name: (file that is good, function that reads it)."""
  rng = np.random.default_rng(0)
  files.write_npz(folder / 'weights.npz', dict(w_in=rng.standard_normal((9, 4)), w_rec=np.eye(4, dtype=np.float32)))
  files.write_npz(folder / 'packed.npz', dict(w_in=rng.standard_normal((9, 4)), names=np.array(['a', 'b'])), compressed=True)
  files.write_json(folder / 'summary.json', dict(score=1.5, flags=dict(seed=0, name='é'), curve=[1, 2.5], missing=None))
  files.write_csv(folder / 'metrics.csv', [dict(iteration=k, loss=k / 3, error=k / 7 if k % 2 else '') for k in range(20)],
                  ['iteration', 'loss', 'error'])
  return {
      'weights.npz': lambda path: files.load_npz(path, ['w_in', 'w_rec']),
      'packed.npz': lambda path: files.read_npz(path, ['w_in', 'names']),
      'summary.json': lambda path: files.read_json(path, ['score', 'flags']),
      'metrics.csv': lambda path: files.read_csv(path, (), ('iteration', 'loss', 'error'))}


def test_damaged_files_are_read_rightly_or_end_in_one_sentence(tmp_path):
  """200 cuts and changes of each: a UserError of one line that names the file, or something that the reader may have read."""
  rng = np.random.default_rng(1)
  for name, read in readers(tmp_path).items():
    content = (tmp_path / name).read_bytes()
    read(tmp_path / name)
    path, n_refused = tmp_path / f'damaged_{name}', 0
    for variant in damaged(content, 200, rng):
      path.write_bytes(variant)
      try:
        got = read(path)
      except files.UserError as error:
        n_refused += 1
        assert str(path) in str(error)
      else:
        if name.endswith('npz'):
          assert all(array.dtype.kind in 'fU' for array in got.values())
        elif name.endswith('csv'):
          assert all(set(row) == {'iteration', 'loss', 'error'} and float(row['loss'] or 0) is not None for row in got)
        else:
          assert {'score', 'flags'} <= set(got)
      assert path.read_bytes() == variant
    assert n_refused > 40, name


@pytest.mark.parametrize('content, words', [
    ('', 'no column rule'), ('rule;seed\nbptt;0\n', 'rule;seed'), ('rule,seed\n', 'no rows'), ('rule,seed\nbptt\n', '1 cells'),
    ('rule,seed\nbptt,x\n', "'x'"), ('rule,seed\nbptt,nan\n', "'nan'"), ('rule,seed\nbptt,-inf\n', "'-inf'"),
    ('rule,seed\n"bptt,0\n', 'damaged')])
def test_tables_that_are_none(tmp_path, content, words):
  (tmp_path / 't.csv').write_text(content)
  with pytest.raises(files.UserError, match='t.csv') as caught:
    files.read_csv(tmp_path / 't.csv', ['rule'], ['seed'])
  assert words in str(caught.value)


@pytest.mark.parametrize('content', ['', '{"a": 1', '[1]', 'null', '{}', '[' * 100000, '\0'])
def test_json_that_is_none(tmp_path, content):
  (tmp_path / 'x.json').write_text(content)
  with pytest.raises(files.UserError, match='x.json'):
    files.read_json(tmp_path / 'x.json', ['a'])


def test_json_knows_no_nan(tmp_path):
  files.write_json(tmp_path / 'x.json', dict(a=np.float32('nan'), b=[np.inf, np.int64(3)], c=np.array([1.5]), d=np.bool_(True)))
  forbid = lambda text: pytest.fail(f'{text} is no JSON')
  values = json.loads((tmp_path / 'x.json').read_text(), parse_constant=forbid)
  assert values == dict(a=None, b=[None, 3], c=[1.5], d=True)


def test_a_good_file_stays_if_writing_fails(tmp_path):
  path = tmp_path / 'x.npz'
  files.write_npz(path, dict(a=np.ones(3)))
  before = path.read_bytes()

  def fail(temporary):
    with open(temporary, 'w') as file:
      file.write('half')
    raise OSError('disk full')

  with pytest.raises(OSError):
    files.write_whole(path, fail)
  assert path.read_bytes() == before and os.listdir(tmp_path) == ['x.npz']


def test_a_link_to_a_file_stays_a_link(tmp_path):
  (tmp_path / 'there').mkdir()
  target, link = tmp_path / 'there' / 'a.json', tmp_path / 'a.json'
  target.write_text('old')
  link.symlink_to(target)
  files.write_json(link, dict(a=1))
  assert link.is_symlink() and json.loads(target.read_text()) == dict(a=1)


def test_weights_that_are_not_finite_are_named():
  good = dict(a=np.ones(2), n=np.array([3]))
  files.check_finite(good, 'here')
  with pytest.raises(files.UserError, match='w_rec here'):
    files.check_finite(dict(good, w_rec=np.array([1, np.inf])), 'here')


def test_csv_reads_what_it_wrote(tmp_path):
  rows = [dict(a='1', b='x,"y"'), dict(a='2.5', b='é')]
  files.write_csv(tmp_path / 'x.csv', rows, ['a', 'b'])
  assert files.read_csv(tmp_path / 'x.csv', ['b'], ['a']) == rows
  with open(tmp_path / 'x.csv', newline='', encoding='utf-8') as file:
    assert list(csv.DictReader(file)) == rows


# ---------------------------------------------------------------------------------------------------------------------
# The machine


def test_a_lock_is_held_by_one_process_and_goes_with_it(tmp_path):
  """While a process that is alive has it, its number is named; killed, it is taken over."""
  code = f'import sys; sys.path.insert(0, {str(conftest.FIGURE_3)!r}); import machine; machine.Lock({str(tmp_path)!r}); ' \
         'print(flush=True); sys.stdin.read()'
  owner = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  owner.stdout.readline()
  with pytest.raises(files.UserError, match=f'process {owner.pid} on'):
    machine.Lock(tmp_path)
  owner.kill()
  owner.communicate()
  lock = machine.Lock(tmp_path)
  assert f'process {os.getpid()} ' in (tmp_path / 'lock').read_text()
  with pytest.raises(files.UserError):
    machine.Lock(tmp_path)  # nor does one process own it twice
  lock.release()
  machine.Lock(tmp_path).release()
  assert (tmp_path / 'lock').read_text() == ''


WITHOUT_LINUX = '''
import ctypes, multiprocessing, os, signal, sys, numpy  # which asks for its system by itself
for name in ('sched_getaffinity', 'sched_setaffinity', 'fork', 'setsid', 'getuid', 'getpgid', 'killpg', 'uname'):
  if hasattr(os, name): delattr(os, name)
for name in ('SIGHUP', 'SIGKILL', 'SIGALRM', 'setitimer', 'alarm', 'pthread_sigmask'):
  if hasattr(signal, name): delattr(signal, name)
for name in ('resource', 'fcntl', 'pwd', 'grp', 'termios'):
  sys.modules[name] = None
def library(name=None, *args, load=ctypes.CDLL, **kwargs):
  if name is None: raise TypeError('no such library')
  return load(name, *args, **kwargs)
ctypes.CDLL = library
import builtins
def opened(path, *args, before=builtins.open, **kwargs):
  if str(path).startswith('/proc'): raise FileNotFoundError(path)
  return before(path, *args, **kwargs)
builtins.open = opened
'''


def test_nothing_needs_linux(tmp_path):
  """What other systems lack taken away, everything without TensorFlow still works; with it: test_trouble.py."""
  code = WITHOUT_LINUX + f'''
sys.path.insert(0, {str(conftest.FIGURE_3)!r})
import comparison, drawing, files, machine, program
assert len(machine.cores()) >= 1 and machine.peak_memory_mb() is None
machine.keep_to([0]); machine.keep_memory(); machine.Lock({str(tmp_path)!r})
with machine.SIGNALS.caught(): files.write_json({str(tmp_path / 'x.json')!r}, dict(a=1))
'''
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, check=False)
  assert done.returncode == 0, done.stderr
  assert json.loads((tmp_path / 'x.json').read_text()) == dict(a=1)


@pytest.mark.parametrize('refusals', [3, 100])
def test_a_file_that_another_program_reads(tmp_path, monkeypatch, refusals):
  """Windows replaces no open file: it is tried again while the other may close it; then the good file stays."""
  asked, replace = [], os.replace

  def reluctant(*paths):
    asked.append(paths)
    if len(asked) <= refusals:
      raise PermissionError(13, 'used by another process')
    replace(*paths)

  path = tmp_path / 'a.json'
  files.write_json(path, dict(a=1))
  monkeypatch.setattr(sys, 'platform', 'win32')
  monkeypatch.setattr(files.time, 'sleep', lambda seconds: None)
  monkeypatch.setattr(os, 'replace', reluctant)
  if refusals < 20:
    files.write_json(path, dict(a=2))
  else:
    with pytest.raises(PermissionError):
      files.write_json(path, dict(a=2))
  assert json.loads(path.read_text()) == dict(a=2 if refusals < 20 else 1) and os.listdir(tmp_path) == ['a.json']


@pytest.mark.parametrize('folder, names', [
    ('Figure_3_and_S7_e-prop_tutorials', ['plots', 'compare_learning_rules']),
    ('Figure_2_TIMIT', ['timit_processing', 'result_plots']), ('Figure_2_TIMIT', ['compare_learning_rules']),
    ('Figure_4_and_5_ATARI', ['plots', 'compare_learning_rules'])])
def test_speech_processing_and_plots_start_without_tensorflow(folder, names):
  code = f'import sys; sys.path.insert(0, {str(conftest.ROOT / folder)!r}); sys.modules["tensorflow"] = sys.modules["keras"] = None'
  done = subprocess.run([sys.executable, '-c', f'{code}; import {", ".join(names)}'], capture_output=True, text=True, timeout=120,
                        check=False)
  assert done.returncode == 0, done.stderr

"""The machine under a run: cores, memory, standard streams, signals, locks. No TensorFlow.

What only some systems have is called here and nowhere else, and left out where it is missing.
"""
import contextlib
import ctypes
import errno
import multiprocessing
import os
import platform
import runpy
import signal
import subprocess
import sys
import threading
import time

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None
try:
  import msvcrt
except ImportError:
  msvcrt = None
try:
  import resource
except ImportError:
  resource = None

from files import UserError

# How to start processes that use NumPy and never TensorFlow: forked where that is safe, they need not import it again.
WORKERS = multiprocessing.get_context('fork' if sys.platform == 'linux' else 'spawn')
SIGNAL_NAMES = ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGBREAK')  # that ask a process to end
LOCKED_BYTE = 2 ** 30  # of a lock file on Windows, where what is locked cannot be read


def cores():
  """Numbers of the cores this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def gpus():
  """Names of the NVIDIA GPUs this process may use, as CUDA_VISIBLE_DEVICES takes them; without asking TensorFlow."""
  seen = os.environ.get('CUDA_VISIBLE_DEVICES')
  if seen is not None:
    return [name for name in seen.split(',') if name not in ('', '-1')]
  try:
    return subprocess.run(['nvidia-smi', '--query-gpu=index', '--format=csv,noheader'], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=20, check=True).stdout.split()
  except (OSError, subprocess.SubprocessError):
    return []


def keep_to(chosen):
  """Confines this process, and those it will start, to some cores, where the system can do that."""
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, chosen)


def keep_memory():
  """Lets the C library keep freed memory for the next iteration instead of returning it to the system.

  Asking for the same large arrays anew in every iteration costs a sixth of the processor time in page faults.
  """
  try:
    library = ctypes.CDLL(None)
  except (OSError, TypeError):  # Windows
    return
  if hasattr(library, 'mallopt'):  # glibc
    for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
      library.mallopt(option, 2 ** 30)


def peak_memory_mb():
  """Largest memory this process has held; None if the system does not tell."""
  try:
    with open('/proc/self/status', encoding='ascii', errors='replace') as file:
      # getrusage would count the memory of the process that started this one
      return next(int(line.split()[1]) for line in file if line.startswith('VmHWM')) / 1024
  except (OSError, StopIteration):
    if resource is None:
      return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == 'darwin' else 1024)


# ---------------------------------------------------------------------------------------------------------------------
# Standard streams


def open_missing_streams():
  """Opens the null device for standard streams that are closed, before another file gets their number."""
  for number, name in enumerate(('stdin', 'stdout', 'stderr')):
    try:
      os.fstat(number)
    except OSError:
      opened = os.open(os.devnull, os.O_RDWR)
      if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    if getattr(sys, name) is None:
      setattr(sys, name, open(number, 'w' if number else 'r', encoding='utf-8', closefd=False))


class SturdyStream:
  """A text stream that nobody has to read: once it cannot be written, because the pipe is broken or the disk full, what is
  written is lost and nothing else."""

  def __init__(self, stream):
    self._stream = stream
    with contextlib.suppress(AttributeError, OSError, ValueError):
      stream.reconfigure(errors='backslashreplace')  # for what the encoding lacks

  def __getattr__(self, name):
    return getattr(self._stream, name)

  def write(self, text):
    with self._losing_errors():
      self._stream.write(text)
    return len(text)

  def flush(self):
    with self._losing_errors():
      self._stream.flush()

  @contextlib.contextmanager
  def _losing_errors(self):
    try:
      yield
    except (OSError, ValueError):
      with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # so that what is still held back can go
        os.close(nowhere)


@contextlib.contextmanager
def hidden_stderr():
  """Hides what libraries print on stderr; errors are raised all the same."""
  sys.stderr.flush()
  kept = os.dup(2)
  with open(os.devnull, 'wb') as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)


# ---------------------------------------------------------------------------------------------------------------------
# Signals


class Interrupted(KeyboardInterrupt):
  """Ctrl-C, or a signal that asks the process to end; `number` is the signal's."""

  def __init__(self, number=signal.SIGINT):
    super().__init__()
    self.number = int(number)


class Signals:
  """What to do when the process is asked to end: Interrupted is raised at once or, within `patiently`, not before a second
  signal; the first one is then found in `asked`."""

  def __init__(self):
    self.asked = None
    self._patient = False
    self._caught = ()

  @contextlib.contextmanager
  def caught(self):
    """Within this, signals that would end the process are dealt with; those that are ignored (nohup) stay so."""
    before = {}
    self.asked, self._patient = None, False
    if threading.current_thread() is threading.main_thread():
      for name in SIGNAL_NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
          before[number] = signal.signal(number, self._receive)
    self._caught = tuple(before)
    try:
      yield
    finally:
      self._caught = ()
      for number, handler in before.items():
        signal.signal(number, handler)

  @contextlib.contextmanager
  def kept(self):
    """Within this, a library may begin to catch signals: they wait, and are caught as before afterwards."""
    if hasattr(signal, 'pthread_sigmask'):
      signal.pthread_sigmask(signal.SIG_BLOCK, self._caught)
    try:
      yield
    finally:
      for number in self._caught:
        signal.signal(number, self._receive)
      if hasattr(signal, 'pthread_sigmask'):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._caught)

  @contextlib.contextmanager
  def patiently(self):
    """Within this, the first signal is only noted."""
    self._patient = True
    for number in self._caught:  # once more: TensorFlow's strategy for several workers takes SIGTERM away
      signal.signal(number, self._receive)
    try:
      yield
    finally:
      self._patient = False

  def _receive(self, number, _):
    first, self.asked = self.asked is None, number
    if not (self._patient and first):
      raise Interrupted(number)
    with contextlib.suppress(OSError):
      os.write(2, b'\nending after this iteration; asked once more: at once\n')


SIGNALS = Signals()


def follow_parent():
  """To be called in a process that multiprocessing started: leaves signals to the one that started it, and ends with that,
  whatever ends it."""
  for name in SIGNAL_NAMES:
    if hasattr(signal, name):
      signal.signal(getattr(signal, name), signal.SIG_IGN)

  def follow():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


def run_script(cores_to_use, argv, patience=50):
  """Runs a script as the command line `argv` in this process, which another one started with a pipe as stdin.

  When the other process ends, whatever ends it, the pipe breaks: the script is asked to end, and made to after `patience`
  seconds.
  """

  def watch():
    while os.read(0, 1024):
      pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(patience)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
  keep_to(cores_to_use)
  sys.argv[:] = argv
  sys.path[0] = os.path.dirname(argv[0])
  runpy.run_path(argv[0], run_name='__main__')


# ---------------------------------------------------------------------------------------------------------------------
# Locks


class Lock:
  """Owns a folder: holds the file `lock` in it, which names the process, until `release` or the end of the process.

  The system keeps the lock, so that it goes with the process, whatever ends that.

  Args:
    folder: which exists.

  Raises:
    UserError: a process that is alive has it; the sentence names it.
  """
  held = []

  def __init__(self, folder):
    self._file = open(os.path.join(folder, 'lock'), 'a+', encoding='utf-8')
    try:
      self._lock()
    except OSError as error:
      if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):  # the file system has no locks
        return
      self._file.seek(0)
      owner = self._file.read(200).strip() or 'another process'
      self._file.close()
      raise UserError(f'{folder} is being written by {owner}: wait for it, or give another --run_name or --result_dir') from None
    self._file.truncate(0)
    self._file.write(f'process {os.getpid()} on {platform.node()}, since {time.strftime("%Y-%m-%d %H:%M:%S")}\n')
    self._file.flush()
    Lock.held.append(self)

  def _lock(self):
    if fcntl:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt:
      self._file.seek(LOCKED_BYTE)
      msvcrt.locking(self._file.fileno(), msvcrt.LK_NBLCK, 1)

  def release(self):
    """Gives the folder back."""
    with contextlib.suppress(OSError, ValueError):
      self._file.truncate(0)
    self._file.close()
    Lock.held.remove(self)

  @classmethod
  def release_all(cls):
    """Gives back all folders of this process."""
    for lock in list(cls.held):
      lock.release()

"""What every script does around its experiment: flags, result folder, metrics, progress, checkpoints, clear errors.

A run lives in <result_dir>/<script>/<run_name>/:

  config.json         flags, versions, git commit, device, seed
  metrics.csv         a row per iteration
  tensorboard/        the same as scalars
  checkpoints/        the last two checkpoints
  final_weights.npz   at the end; --init_from reads it back
  summary.json        at the end: final numbers, wall time, peak memory
  *.png, *.npz        figures and the arrays they show

Everything random comes from `rng(seed, stream, iteration)`, so a resumed run needs no random state to be restored.
"""
import concurrent.futures
import contextlib
import csv
import ctypes
import itertools
import json
import os
import platform
import queue
import resource
import subprocess
import sys
import time
import zipfile
import zlib

os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # NumPy's threads would stand in the way of TensorFlow's

from absl import app
from absl import flags
from absl import logging
import numpy as np
import tqdm


@contextlib.contextmanager
def quiet_start():
  """Hides what TensorFlow's libraries print on stderr while they look for a GPU; errors are raised all the same."""
  sys.stderr.flush()
  stderr = os.dup(2)
  with open(os.devnull, 'w') as devnull:
    os.dup2(devnull.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(stderr, 2)
    os.close(stderr)


os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
with quiet_start():
  import keras
  import tensorflow as tf
  tf.config.list_physical_devices()

FLAGS = flags.FLAGS
flags.DEFINE_integer('seed', 0, 'seed of everything random', lower_bound=0)
flags.DEFINE_string('result_dir', 'results', 'folder of all results')
flags.DEFINE_string('run_name', None, 'folder of this run; default: date and time (with --resume: the last run)')
flags.DEFINE_bool('resume', False, 'go on with a run from its last checkpoint')
flags.DEFINE_string('device', None, "'CPU:0' or 'GPU:0'; default: what TensorFlow prefers")
flags.DEFINE_enum('dtype', 'float32', ['float32', 'float64'], 'precision of all computations')
flags.DEFINE_bool('show', False, 'open windows for the figures (they are written to files in any case)')
flags.DEFINE_bool('smoke', False, 'a run of seconds that proves the installation')
flags.DEFINE_float('checkpoint_seconds', 20.0, 'seconds between checkpoints; 0: after every iteration', lower_bound=0.0)

# A resumed run may differ in these, which do not change what is computed.
FREE_FLAGS = ('resume', 'result_dir', 'run_name', 'device', 'show', 'checkpoint_seconds', 'n_iter', 'print_every', 'do_plot',
              'plot_every', 'device_placement', 'total_environment_frames')


def keep_memory():
  """Lets the C library keep freed memory for the next iteration instead of returning it to the system.

  Asking for the same large arrays anew in every iteration costs a sixth of the processor time in page faults.
  """
  libc = ctypes.CDLL(None)
  if hasattr(libc, 'mallopt'):  # glibc
    for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
      libc.mallopt(option, 2 ** 30)


keep_memory()


class UserError(Exception):
  """Something the user can mend: shown as one line, exit code 2."""


def run_app(main):
  """Parses the flags and calls main(); what the user can mend ends with one line on stderr and exit code 2."""

  def parse(argv):
    try:
      rest = FLAGS(argv)
      if len(rest) > 1:
        raise flags.Error(f'unexpected argument {rest[1]!r}')
    except flags.Error as error:
      _fail(error)
    return rest

  def guarded(_):
    logging.set_verbosity(logging.WARNING)
    keras.config.set_floatx(FLAGS.dtype)  # the precision of the optimizers' learning rate, among others
    try:
      main()
    except tf.errors.ResourceExhaustedError:
      _fail('out of memory; a smaller batch or a shorter trial needs less')
    except (UserError, OSError) as error:
      _fail(error)
    except KeyboardInterrupt:
      _fail('interrupted; training goes on from its last checkpoint with --resume and the same --run_name', 130)

  asks_for_help = any(argument.lstrip('-').startswith('help') for argument in sys.argv[1:])
  app.run(guarded, **({} if asks_for_help else {'flags_parser': parse}))


def _fail(error, code=2):
  print('error: ' + ' '.join(str(error).split()), file=sys.stderr)
  sys.exit(code)


def preset(**values):
  """Gives flags these values unless the command line set them."""
  for name, value in values.items():
    if not FLAGS[name].present:
      FLAGS[name].value = value


def apply_smoke(**values):
  """With --smoke, gives flags these values unless the command line set them."""
  if FLAGS.smoke:
    preset(**values)


def device():
  """The device scope that --device asks for, to be entered with `with`.

  Raises:
    UserError: there is no such device.
  """
  present = [d.name.removeprefix('/device:') for d in tf.config.list_logical_devices() if d.device_type in ('CPU', 'GPU')]
  if FLAGS.device is None:
    FLAGS.device = 'GPU:0' if 'GPU:0' in present else 'CPU:0'
  if FLAGS.device not in present:
    raise UserError(f'no device {FLAGS.device} on this machine; TensorFlow sees {", ".join(present)}')
  return tf.device(FLAGS.device)


def n_shards(n_batch):
  """How many parts of a batch to compute side by side: one per core, of at least 16 trials each; 1 on a GPU."""
  if FLAGS.device.startswith('GPU'):
    return 1
  return max(1, min(len(os.sched_getaffinity(0)), n_batch // 16))


def rng(stream, iteration=0):
  """A generator that depends on --seed, the name of the stream and the iteration only."""
  return np.random.default_rng([FLAGS.seed, zlib.crc32(stream.encode()), iteration])


def prefetched(make, first):
  """Yields make(first), make(first + 1), ...; the next one is made on a thread while the caller uses the last."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    future = pool.submit(make, first)
    while True:
      first += 1
      item, future = future.result(), pool.submit(make, first)
      yield item


def load_npz(path, required, optional=()):
  """Reads arrays from an .npz file, without pickle.

  Returns:
    dict of those of `required` and `optional` that are there, floats as --dtype.

  Raises:
    UserError: the file is missing, torn or no .npz, lacks an array, or holds NaN or something that is not numbers.
  """
  try:
    with np.load(path, allow_pickle=False) as data:
      missing = [name for name in required if name not in data]
      if missing:
        raise UserError(f'{path} lacks the array(s) {", ".join(missing)}; it has {", ".join(data) or "none"}')
      arrays = {name: data[name] for name in (*required, *optional) if name in data}
  except FileNotFoundError:
    raise UserError(f'no file {path}') from None
  except (OSError, ValueError, EOFError, AttributeError, TypeError, zlib.error, zipfile.BadZipFile) as error:
    raise UserError(f'{path} is not a readable .npz file ({error})') from None
  for name, array in arrays.items():
    if array.dtype.kind not in 'fiub':
      raise UserError(f'array {name} in {path} holds no numbers (dtype {array.dtype})')
    if array.dtype.kind == 'f':
      if not np.isfinite(array).all():
        raise UserError(f'array {name} in {path} holds NaN or infinity')
      arrays[name] = array.astype(FLAGS.dtype)
  return arrays


def restore(variables, path):
  """Gives variables (dict, name: tf.Variable) the arrays of those names in an .npz file.

  Raises:
    UserError: as `load_npz`, or an array has another shape than its variable.
  """
  arrays = load_npz(path, list(variables))
  for name, variable in variables.items():
    if arrays[name].shape != variable.shape:
      raise UserError(f'array {name} in {path} has shape {list(arrays[name].shape)}, needed is {variable.shape.as_list()}: '
                      'give the flags of the run that wrote it')
  for name, variable in variables.items():
    variable.assign(arrays[name])


def write_whole(path, write):
  """Calls write(temporary path) and moves the result to path, so that a good file is never replaced by half a one."""
  root, ending = os.path.splitext(path)
  temporary = f'{root}.part{ending}'
  try:
    write(temporary)
    os.replace(temporary, path)
  finally:
    if os.path.exists(temporary):
      os.remove(temporary)


def write_json(path, values):
  """Writes a dict as JSON."""

  def write(temporary):
    with open(temporary, 'w') as file:
      json.dump(values, file, indent=2, default=float)
      file.write('\n')

  write_whole(path, write)


def write_csv(path, rows, columns):
  """Writes rows (dicts) as CSV; columns that a row lacks stay empty."""

  def write(temporary):
    with open(temporary, 'w', newline='') as file:
      writer = csv.DictWriter(file, columns, restval='', lineterminator='\n')
      writer.writeheader()
      writer.writerows(rows)

  write_whole(path, write)


def peak_memory_mb():
  """Largest memory this process has held."""
  try:
    with open('/proc/self/status') as file:  # getrusage would count the memory of the process that started this one
      return next(int(line.split()[1]) for line in file if line.startswith('VmHWM')) / 1024
  except (OSError, StopIteration):
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def metric_text(value):
  """A number as metrics.csv holds it: every digit of a float, nothing for None."""
  return '' if value is None else repr(int(value)) if isinstance(value, (int, np.integer)) else repr(float(value))


class Run:
  """One run of a script: its folder, metrics and checkpoints.

  Args:
    script: name of the script, the folder under --result_dir.
    columns: names of the columns of metrics.csv after `iteration`.
    variables: dict of tf.Variables, all that a resumed run needs to go on.

  Raises:
    UserError: the run exists and --resume was not given, or the other way round; its flags or checkpoint do not fit.
  """

  def __init__(self, script, columns, variables):
    self.columns = ('iteration', *columns)
    self._iteration = tf.Variable(0, dtype=tf.int64)
    self._seconds = tf.Variable(0.0, dtype=tf.float64)
    self._stopped = tf.Variable(False)
    self.folder = self._folder(os.path.join(FLAGS.result_dir, script))
    own = dict(variables, iteration=self._iteration, seconds=self._seconds, stopped=self._stopped)
    self._manager = tf.train.CheckpointManager(tf.train.Checkpoint(variables=own), self.path('checkpoints'), max_to_keep=2)
    if FLAGS.resume:
      self._check_config()
      self._restore()
    else:
      write_json(self.path('config.json'), self._config(script))
    self._metrics = self._open_metrics()
    self._tensorboard = tf.summary.create_file_writer(self.path('tensorboard'))
    self._scalars_written = 0.0
    self._silent = False

  def path(self, name):
    """Path of a file of this run."""
    return os.path.join(self.folder, name)

  @property
  def iteration(self):
    """Number of iterations done."""
    return int(self._iteration)

  @property
  def stopped(self):
    """Whether `stop` was called, in this process or before the run was resumed."""
    return bool(self._stopped)

  def iterations(self, n_iter=None, print_every=10):
    """Yields iteration numbers from the one after the last checkpoint's to n_iter, with progress and checkpoints.

    Without n_iter it goes on until `stop`.
    """
    n_done = self.iteration
    start, before = time.time(), float(self._seconds)
    saved = start
    on_terminal = sys.stderr.isatty()
    bar = tqdm.tqdm(total=n_iter, initial=n_done, unit='it', disable=not on_terminal, dynamic_ncols=True)
    for iteration in itertools.count(n_done + 1) if n_iter is None else range(n_done + 1, n_iter + 1):
      if self.stopped:
        break
      yield iteration
      self._iteration.assign(iteration)
      self._seconds.assign(before + time.time() - start)
      bar.update()
      if iteration % print_every == 0 or iteration == n_iter:
        text = '  '.join(f'{name} {value:.4g}' for name, value in self._last.items())
        bar.set_postfix_str(text)
        if not on_terminal:
          rate = (iteration - n_done) / (time.time() - start)
          of, eta = '', ''
          if n_iter is not None:
            of, eta = f'/{n_iter}', f'  ETA {tqdm.tqdm.format_interval((n_iter - iteration) / rate)}'
          print(f'iteration {iteration}{of}  {text}  {rate:.3g} it/s{eta}', flush=True)
      if time.time() - saved >= FLAGS.checkpoint_seconds:
        self.checkpoint()
        saved = time.time()
    bar.close()
    if self._manager.latest_checkpoint is None or self.iteration > n_done:
      self.checkpoint()

  def log(self, iteration, **values):
    """Writes one row of metrics.csv (columns not given, or None, stay empty); TensorBoard's scalars ten times a second."""
    self._metrics.writerow([iteration] + [metric_text(values.get(name)) for name in self.columns[1:]])
    self._metrics_file.flush()
    self._last = {name: value for name, value in values.items() if value is not None}
    if time.time() - self._scalars_written < 0.1:
      return
    self._scalars_written = time.time()
    with self._tensorboard.as_default(step=iteration):
      for name, value in self._last.items():
        tf.summary.scalar(name, value)

  def guard(self, iteration, loss, rate):
    """Stops at a loss that is not finite; says once that the network is silent.

    Args:
      iteration: its number.
      loss: loss before this iteration's update, nothing of which has been kept if it is not finite.
      rate: mean firing rate.

    Raises:
      UserError: the loss is NaN or infinite.
    """
    if not np.isfinite(loss):
      last = self._manager.latest_checkpoint
      raise UserError(f'the loss became {loss} at iteration {iteration}: try a smaller --learning_rate, a larger batch '
                      'or another --seed; ' + (f'the last good checkpoint is {last}' if last else 'no checkpoint yet'))
    if rate == 0 and not self._silent:
      self._silent = True
      print(f'warning: no neuron spiked at iteration {iteration}. Rate regularisation may bring the network back; else try '
            'larger input weights, a lower --thr or a stronger rate regularisation.', file=sys.stderr, flush=True)

  def stop(self, stopped=True):
    """Ends `iterations` after the current one; or, with False, takes that back for a run that is to go on."""
    self._stopped.assign(stopped)

  def checkpoint(self):
    """Saves all variables.

    Raises:
      UserError: the disk is full or cannot be written; the checkpoints before stay as they are.
    """
    try:
      self._manager.save(checkpoint_number=self.iteration)
      self._tensorboard.flush()
    except tf.errors.OpError as error:
      reason = error.message.split('; ')[-1].split(' [Op:')[0]  # without TensorFlow's names of operations
      raise UserError(f'the checkpoint of iteration {self.iteration} in {self.folder} could not be written: {reason}') from None

  def finish(self, weights, summary, lines):
    """Writes final_weights.npz and summary.json and prints the closing lines.

    Args:
      weights: dict of arrays.
      summary: dict of final numbers.
      lines: what to print at the end.
    """
    write_whole(self.path('final_weights.npz'), lambda path: np.savez(path, **weights))
    write_json(self.path('summary.json'), dict(
        summary, iterations=self.iteration, wall_time_s=round(float(self._seconds), 3),
        peak_memory_mb=round(peak_memory_mb(), 1), device=FLAGS.device))
    self._metrics_file.close()
    print('\n'.join([*lines, f'results:    {self.folder}']), flush=True)

  def _folder(self, parent):
    name = FLAGS.run_name
    if FLAGS.resume and name is None:
      runs = sorted(os.listdir(parent)) if os.path.isdir(parent) else []
      if not runs:
        raise UserError(f'no run to resume in {parent}')
      name = max(runs, key=lambda run: os.path.getmtime(os.path.join(parent, run)))
    folder = os.path.join(parent, name or time.strftime('%Y%m%d-%H%M%S'))
    exists = os.path.exists(os.path.join(folder, 'config.json'))
    if FLAGS.resume and not exists:
      raise UserError(f'no run to resume in {folder}')
    if exists and not FLAGS.resume:
      raise UserError(f'{folder} holds a run already: --resume goes on with it, another --run_name begins a new one')
    os.makedirs(folder, exist_ok=True)
    return folder

  @staticmethod
  def _flags():
    return {flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(sys.argv[0])}

  def _config(self, script):
    return dict(script=script, flags=self._flags(), seed=FLAGS.seed, device=FLAGS.device,
                cores=len(os.sched_getaffinity(0)), git_commit=_git_commit(),
                versions=dict(python=platform.python_version(), tensorflow=tf.__version__, keras=keras.__version__,
                              numpy=np.__version__))

  def _check_config(self):
    try:
      with open(self.path('config.json')) as file:
        before = json.load(file)['flags']
    except (ValueError, KeyError):
      raise UserError(f'{self.path("config.json")} is damaged; the run cannot be resumed') from None
    now = json.loads(json.dumps(self._flags()))
    different = [name for name in now if name not in FREE_FLAGS and now[name] != before.get(name, now[name])]
    if different:
      text = ', '.join(f'--{name}={before[name]} (now {now[name]})' for name in different)
      raise UserError(f'{self.folder} was run with {text}: give the same flags to resume it')

  def _restore(self):
    state = self.path('checkpoints/checkpoint')
    latest = self._manager.latest_checkpoint
    if latest is None:
      if os.path.exists(state):
        raise UserError(f'{state} is damaged; the run cannot be resumed')
      return  # stopped before its first checkpoint
    try:
      self._manager.checkpoint.restore(latest).assert_existing_objects_matched()
    except Exception as error:  # damaged bytes raise anything, from OpError to IndexError and protobuf's own
      reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
      raise UserError(f'checkpoint {latest} is damaged or of another program: {reason}') from None

  def _open_metrics(self):
    """The CSV writer, the rows after the last checkpoint dropped."""
    path = self.path('metrics.csv')
    kept = []
    if FLAGS.resume and os.path.exists(path):
      with open(path, newline='') as file:
        kept = list(csv.reader(file))[1:self.iteration + 1]
    if len(kept) != self.iteration:
      raise UserError(f'{path} has {len(kept)} rows where the checkpoint is at iteration {self.iteration}')

    def write(temporary):
      with open(temporary, 'w', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows([self.columns, *kept])

    write_whole(path, write)
    self._metrics_file = open(path, 'a', newline='')
    self._last = {}
    return csv.writer(self._metrics_file, lineterminator='\n')


def train_side_by_side(script, runs, n_parallel):
  """Calls a script for each of many runs, those that have a summary.json left out, those that stopped half-way resumed.

  Each run keeps to its share of the cores: two networks on a core each train faster than one after the other on both. What
  a run prints goes to log.txt in its folder.

  Args:
    script: path of the script.
    runs: dict, folder <result_dir>/<script>/<run_name> of a run: list of its flags.
    n_parallel: runs side by side; no more than there are cores.

  Yields:
    After each run, the number of runs that have ended.
  """
  cores = sorted(os.sched_getaffinity(0))
  n_parallel = min(n_parallel, len(cores))
  shares = queue.SimpleQueue()
  for k in range(n_parallel):
    shares.put(set(cores[k::n_parallel]))

  def train(folder):
    if os.path.exists(os.path.join(folder, 'summary.json')):
      return 0
    os.makedirs(folder, exist_ok=True)
    share = shares.get()
    code = f'import os, runpy, sys; os.sched_setaffinity(0, {share}); del sys.argv[0]; ' \
           'sys.path.insert(0, os.path.dirname(sys.argv[0])); runpy.run_path(sys.argv[0], run_name="__main__")'
    parent, name = os.path.split(folder)
    resume = ['--resume'] if os.path.exists(os.path.join(folder, 'config.json')) else []
    try:
      with open(os.path.join(folder, 'log.txt'), 'a') as log:
        return subprocess.run([sys.executable, '-c', code, script, f'--result_dir={os.path.dirname(parent)}',
                               f'--run_name={name}', *runs[folder], *resume], stdout=log, stderr=log, check=False).returncode
    finally:
      shares.put(share)

  with concurrent.futures.ThreadPoolExecutor(n_parallel) as pool:
    futures = {pool.submit(train, folder): folder for folder in runs}
    for n_done, future in enumerate(concurrent.futures.as_completed(futures), 1):
      if future.result():
        folder = futures[future]
        print(f'warning: {os.path.basename(folder)} ended with exit code {future.result()}: see {folder}/log.txt',
              file=sys.stderr)
      yield n_done


def _git_commit():
  """The commit of the code, None outside a git checkout."""
  try:
    return subprocess.run(['git', '-C', os.path.dirname(os.path.abspath(__file__)), 'rev-parse', 'HEAD'],
                          capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None

"""What every script does around its training: result folder, metrics, progress, checkpoints.

A run lives in <result_dir>/<script>/<run_name>/:

  config.json         flags, versions, git commit, device, seed
  metrics.csv         a row per iteration
  tensorboard/        the same as scalars
  checkpoints/        the last two checkpoints, .npz
  final_weights.npz   at the end; --init_from reads it back
  summary.json        at the end: final numbers, wall time, peak memory
  lock                names the process that writes here
  *.png, *.npz        figures and the arrays they show

Everything random comes from `rng(seed, stream, iteration)`, so a resumed run needs no random state to be restored.
"""
import program  # first: an interruption from here on ends with one line
import concurrent.futures
import itertools
import os
import platform
import subprocess
import sys
import time
import zlib

from absl import flags
import numpy as np
import tqdm

from checkpoints import Checkpoints
import drawing  # noqa: F401, before Keras, which imports matplotlib, too
import files
import machine
from files import UserError

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
with machine.hidden_stderr():
  import keras
  import tensorflow as tf
  for gpu in tf.config.list_physical_devices('GPU'):
    tf.config.experimental.set_memory_growth(gpu, True)  # leave to other programs what is not needed

import distribution  # noqa: E402
import replicas  # noqa: E402

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(program)
flags.adopt_module_key_flags(distribution)


def run_app(main):
  """Calls main() as `program.run_app` does, with TensorFlow as training needs it."""

  def prepared():
    keras.config.set_floatx(FLAGS.dtype)  # the precision of the optimizers' learning rate, among others
    machine.keep_memory()
    try:
      with distribution.guarded():
        main()
    except tf.errors.ResourceExhaustedError:
      raise MemoryError from None

  program.run_app(prepared)


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


def metric_text(value):
  """A number as metrics.csv holds it: every digit of a float, nothing for None or what is not finite."""
  if value is None or not np.isfinite(value):
    return ''
  return repr(int(value)) if isinstance(value, (int, np.integer)) else repr(float(value))


def signs_of_death(rate=None, outputs=None):
  """What shows that a network has died, so that its numbers are no result.

  Args:
    rate: mean firing rate of a network that should spike.
    outputs: float [..., K], or a list of such, what it gave at many moments.

  Returns:
    list of sentences, none for a network that lives.
  """
  signs = []
  if rate is not None and not rate > 0:
    signs.append('no neuron spiked')
  if outputs is not None:
    flat = np.concatenate([np.reshape(part, (-1, np.shape(part)[-1])) for part in
                           (outputs if isinstance(outputs, list) else [outputs])])
    if len(flat) > 1 and not np.ptp(flat, axis=0).any():
      signs.append('the outputs never changed')
  return signs


class Run:
  """One run of a script: its folder, which it owns until the process ends, metrics and checkpoints.

  Of several workers only the leader has these; the others are given its variables, and write nothing.

  Args:
    script: name of the script, the folder under --result_dir.
    columns: names of the columns of metrics.csv after `iteration`.
    variables: dict of tf.Variables, all that a resumed run needs to go on.
    free_flags: flags of the script that a resumed run may have other values of, those that do not change what is computed.
    data: dict that identifies the data the run learns from, such as their digest; a resumed run must have the same.

  Raises:
    UserError: the run exists and --resume was not given, or the other way round; its flags, data or checkpoint do not fit;
      another process is writing it; the workers' data differ.
  """

  def __init__(self, script, columns, variables, free_flags=(), data=None):
    self.columns = ('iteration', *columns)
    self._free_flags = (*program.FREE_FLAGS, *free_flags)
    self._iteration = tf.Variable(0, dtype=tf.int64)
    self._seconds = tf.Variable(0.0, dtype=tf.float64)
    self._stopped = tf.Variable(False)
    self._last = {}
    self._rate = None  # mean firing rate in the last iteration
    own = dict(run_iteration=self._iteration, run_seconds=self._seconds, run_stopped=self._stopped)
    variables = dict(variables, **own)
    self.folder = os.devnull
    distribution.require_same('data', data or {})
    if replicas.leads():
      self._open(script, variables, data)
    for variable, value in zip(variables.values(), replicas.from_leader([v.numpy() for v in variables.values()])):
      variable.assign(value)

  def _open(self, script, variables, data):
    self.folder = self._own_folder(os.path.join(FLAGS.result_dir, script))
    program.if_interrupted(self._how_to_go_on)
    config = self._config(script, data)
    if FLAGS.resume:
      self._check_config(config)
    self._checkpoints = Checkpoints(self.path('checkpoints'), variables)
    if FLAGS.resume:
      self._checkpoints.restore()
      if not self.iteration and any(os.path.exists(self.path(name)) for name in ('summary.json', 'final_weights.npz')):
        raise UserError(f'{self.folder} is a finished run whose checkpoints are gone: it cannot be resumed')
    else:
      files.write_json(self.path('config.json'), config)
    self._metrics_file = self._open_metrics()
    try:
      self._tensorboard = tf.summary.create_file_writer(os.fsencode(self.path('tensorboard')))
    except tf.errors.OpError as error:
      raise UserError(f'{self.path("tensorboard")} cannot be written ({error.message.partition("[")[0].strip()})') from None
    self._scalars_written = 0.0

  def path(self, name):
    """Path of a file of this run, for the leader."""
    return os.path.join(self.folder, name)

  @property
  def iteration(self):
    """Number of iterations done."""
    return int(self._iteration.numpy())

  @property
  def stopped(self):
    """Whether `stop` was called, in this process or before the run was resumed."""
    return bool(self._stopped.numpy())

  def iterations(self, n_iter=None, print_every=10):
    """Yields iteration numbers from the one after the last checkpoint's to n_iter, with progress and checkpoints.

    Without n_iter it goes on until `stop`. Asked to end by a signal, it finishes the iteration and saves a checkpoint.

    Raises:
      UserError: more than n_iter iterations are done already.
      machine.Interrupted: after that checkpoint.
    """
    n_done = self.iteration
    if n_iter is not None and n_done > n_iter:
      raise UserError(f'{self.folder} has {n_done} iterations already, more than the {n_iter} asked for')
    start, before = time.monotonic(), float(self._seconds.numpy())
    saved = start
    on_terminal = sys.stderr.isatty()
    bar = tqdm.tqdm(total=n_iter, initial=n_done, unit='it', disable=not on_terminal, dynamic_ncols=True)
    with machine.SIGNALS.patiently():
      for iteration in itertools.count(n_done + 1) if n_iter is None else range(n_done + 1, n_iter + 1):
        if self.stopped:
          break
        yield iteration
        self._iteration.assign(iteration)
        self._seconds.assign(before + time.monotonic() - start)
        bar.update()
        if iteration % print_every == 0 or iteration == n_iter:
          self._print_progress(bar, iteration, n_iter, (iteration - n_done) / max(time.monotonic() - start, 1e-9))
        asked = machine.SIGNALS.asked
        if asked or time.monotonic() - saved >= FLAGS.checkpoint_seconds:
          self.checkpoint()
          saved = time.monotonic()
        if asked:
          raise machine.Interrupted(asked)
    bar.close()
    if self.iteration > n_done or replicas.leads() and not self._checkpoints.paths():
      self.checkpoint()

  def _print_progress(self, bar, iteration, n_iter, rate):
    text = '  '.join(f'{name} {value:.4g}' for name, value in self._last.items())
    bar.set_postfix_str(text)
    if bar.disable:
      of, eta = '', ''
      if n_iter is not None:
        of, eta = f'/{n_iter}', f'  ETA {tqdm.tqdm.format_interval((n_iter - iteration) / rate)}'
      print(f'iteration {iteration}{of}  {text}  {rate:.3g} it/s{eta}', flush=True)

  def log(self, iteration, **values):
    """Writes one row of metrics.csv (columns not given, or None, stay empty); TensorBoard's scalars ten times a second."""
    self._last = {name: value for name, value in values.items() if value is not None}
    if not replicas.leads():
      return
    row = [metric_text(iteration), *(metric_text(values.get(name)) for name in self.columns[1:])]
    self._metrics_file.write(','.join(row) + '\n')
    self._metrics_file.flush()
    if time.monotonic() - self._scalars_written < 0.1:
      return
    self._scalars_written = time.monotonic()
    with self._tensorboard.as_default(step=iteration):
      for name, value in self._last.items():
        tf.summary.scalar(name, value)

  def guard(self, iteration, loss, rate):
    """Stops at a loss that is not finite; says when the network falls silent.

    Args:
      iteration: its number.
      loss: loss before this iteration's update, nothing of which has been kept if it is not finite.
      rate: mean firing rate.

    Raises:
      UserError: the loss is NaN or infinite.
    """
    if not np.isfinite(loss):
      last = self._checkpoints.paths() if replicas.leads() else []
      raise UserError(f'the loss became {loss} at iteration {iteration}: try a smaller --learning_rate, a larger batch '
                      'or another --seed; ' + (f'the last good checkpoint is {last[0]}' if last else 'no checkpoint yet'))
    silent, self._rate = self._rate == 0, rate
    if rate == 0 and not silent:
      print(f'warning: no neuron spiked at iteration {iteration}. Rate regularisation may bring the network back; else try '
            'larger input weights, a lower --thr or a stronger rate regularisation.', file=sys.stderr, flush=True)

  def stop(self, stopped=True):
    """Ends `iterations` after the current one; or, with False, takes that back for a run that is to go on."""
    self._stopped.assign(stopped)

  def checkpoint(self):
    """Saves all variables.

    Raises:
      UserError: a weight is not finite, or the disk cannot be written; the checkpoints before stay as they are.
    """
    if replicas.leads():
      self._checkpoints.save(self.iteration)
      self._tensorboard.flush()

  def finish(self, weights, summary, lines, signs=()):
    """Writes final_weights.npz and summary.json and prints the closing lines.

    Args:
      weights: dict of arrays.
      summary: dict of final numbers.
      lines: what to print at the end.
      signs: of death in the final evaluation, from `signs_of_death`; printed, and kept in summary.json.

    Raises:
      UserError: a weight is not finite.
    """
    if not replicas.leads():
      return
    signs = list(dict.fromkeys([*signs, *signs_of_death(self._rate)]))
    files.check_finite(weights, f'at the end of the run; {self.path("final_weights.npz")} is not written')
    files.write_npz(self.path('final_weights.npz'), weights)
    memory = machine.peak_memory_mb()
    files.write_json(self.path('summary.json'), dict(
        summary, iterations=self.iteration, wall_time_s=round(float(self._seconds.numpy()), 3),
        peak_memory_mb=memory and round(memory, 1), device=FLAGS.device, signs_of_death=signs))
    self._metrics_file.close()
    print('\n'.join([*lines, *death_lines(signs), f'results:    {self.folder}']), flush=True)

  def _how_to_go_on(self):
    last = self._checkpoints.paths()
    done = f'goes on after iteration {os.path.basename(last[0])[:-4]}' if last else 'begins anew, there is no checkpoint yet'
    return f'--resume --run_name={os.path.basename(self.folder)} {done}'

  def _own_folder(self, parent):
    """The folder of --run_name, of the last run or, for a new run without a name, one that nobody else has made."""
    name = FLAGS.run_name
    is_run = lambda run: os.path.exists(os.path.join(parent, run, 'config.json'))
    if FLAGS.resume:
      runs = [run for run in (os.listdir(parent) if os.path.isdir(parent) else []) if is_run(run)]
      if not runs or name and name not in runs:
        raise UserError(f'no run to resume in {os.path.join(parent, name or "")}')
      name = name or max(runs, key=lambda run: os.path.getmtime(os.path.join(parent, run)))
    elif name:
      if is_run(name):
        raise UserError(f'{os.path.join(parent, name)} holds a run already: --resume goes on with it, another --run_name '
                        'begins a new one')
      os.makedirs(os.path.join(parent, name), exist_ok=True)
    else:
      name = _new_folder(parent, time.strftime('%Y%m%d-%H%M%S'))
    folder = os.path.join(parent, name)
    machine.Lock(folder)
    if is_run(name) != FLAGS.resume:  # by a process that has had the lock in between
      raise UserError(f'{folder} was changed by another process; the same command once more says what is there')
    return folder

  def _config(self, script, data):
    return dict(script=script, flags={flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(sys.argv[0])},
                seed=FLAGS.seed, device=FLAGS.device, data=data, cores=len(machine.cores()), git_commit=_git_commit(),
                versions=dict(python=platform.python_version(), tensorflow=tf.__version__, keras=keras.__version__,
                              numpy=np.__version__))

  def _check_config(self, config):
    before = files.read_json(self.path('config.json'), ['flags'])
    now = files.as_json(config)
    if not isinstance(before['flags'], dict):
      raise UserError(f'{self.path("config.json")} is damaged; the run cannot be resumed')
    # A flag that the run did not know yet had its default.
    was = {name: before['flags'].get(name, files.as_json(FLAGS[name].default)) for name in now['flags']}
    different = [name for name, value in now['flags'].items() if name not in self._free_flags and was[name] != value]
    if different:
      text = ', '.join(f'--{name}={was[name]} (now {now["flags"][name]})' for name in different)
      raise UserError(f'{self.folder} was run with {text}: give the same flags to resume it')
    if before.get('data') != now['data']:
      raise UserError(f'{self.folder} learned from other data than are there now ({before.get("data")}, now {now["data"]}): '
                      'it can be resumed with the same data only')

  def _open_metrics(self):
    """The file, the rows after the last checkpoint dropped."""
    path = self.path('metrics.csv')
    kept = []
    if FLAGS.resume and os.path.exists(path) and self.iteration:
      kept = files.read_metrics(path, self.columns, n_rows=self.iteration)
    if len(kept) != self.iteration:
      raise UserError(f'{path} has {len(kept)} rows where the checkpoint is at iteration {self.iteration}')
    files.write_csv(path, kept, self.columns)
    return open(path, 'a', encoding='utf-8', newline='')


def death_lines(signs):
  """What to print last of a network that shows these signs of death; nothing for one that lives."""
  return [f'warning:    {" and ".join(signs)}: this network has died, its numbers are no result'] if signs else []


def _new_folder(parent, name):
  """Makes <parent>/<name> or, if that is there, <name>-2 and so on; returns the name."""
  os.makedirs(parent, exist_ok=True)
  for k in itertools.count(1):
    chosen = name if k == 1 else f'{name}-{k}'
    try:
      os.mkdir(os.path.join(parent, chosen))
      return chosen
    except FileExistsError:
      pass


def _git_commit():
  """The commit of the code, None outside a git checkout."""
  try:
    return subprocess.run(['git', '-C', os.path.dirname(os.path.abspath(__file__)), 'rev-parse', 'HEAD'], timeout=10,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None

"""One run on many devices, processes and machines, by TensorFlow's own engine, tf.distribute.

  python SCRIPT --n_workers=4                processes on this machine, each with its share of the cores or GPUs
  TF_CONFIG='{"cluster": ...}' python ...    one process of several, on any machines
  srun python SCRIPT --cluster=slurm         the same, as Slurm has placed them
  python SCRIPT                              one device; or all GPUs of this machine, where there are several

What workers do together stands in replicas.py. What the leader prints is seen; what the others print only if they fail.
"""
import contextlib
import faulthandler
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib

import program
from absl import flags
import numpy as np
import tensorflow as tf

import machine
import replicas
from files import UserError

FLAGS = flags.FLAGS
flags.DEFINE_integer('n_workers', 1, 'processes on this machine that share each batch; not where TF_CONFIG or --cluster names '
                     'the workers', 1, 1024)
flags.DEFINE_enum('cluster', None, ['slurm'], 'who says which process of several this is; default: TF_CONFIG, where it is set')

HERE = os.path.dirname(os.path.abspath(__file__))
PATIENCE = 55  # seconds within which all workers must have come, and within which they end if one fails
SPEAK_UNLESS_TOLD = '''
import sys, threading
told = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), told.set()), daemon=True).start()
if not told.wait(float(sys.argv[1])):
  print(sys.argv[2], file=sys.stderr, flush=True)
'''
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)
ADDRESS = re.compile(r'(\[[^]/\s]+\]|[^:/\s]+):(\d+)')  # host:port
TRACEBACK = 'Traceback (most recent call last)'
EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'

# ---------------------------------------------------------------------------------------------------------------------
# How workers come together


def start(n_items=None, mirrored=True):
  """Brings together the workers that flags and surroundings ask for; to be called before TensorFlow computes anything.

  With --n_workers this process starts them, waits for them and exits as they did.

  Args:
    n_items: size of the batch, if it is known before the data are.
    mirrored: several GPUs of one worker take part as replicas; otherwise a worker uses one.

  Returns:
    The strategy, within whose scope mirrored variables must be made; None for one device.

  Raises:
    UserError: the surroundings make no sense, there are more workers than items, a port is in use, or a worker does not come.
  """
  addresses, index = workers_of_slurm() if FLAGS.cluster == 'slurm' else workers_of_tf_config()
  if addresses and FLAGS['n_workers'].present and FLAGS.n_workers not in (1, len(addresses)):
    by = '--cluster' if FLAGS.cluster else 'TF_CONFIG'
    raise UserError(f'--n_workers={FLAGS.n_workers} is for this machine alone, but {by} names the workers already '
                    f'({len(addresses)}): leave out one of the two')
  if n_items is not None:
    replicas.require_items(n_items, len(addresses) or FLAGS.n_workers)
  if not addresses and FLAGS.n_workers > 1:
    sys.exit(supervise(FLAGS.n_workers))
  replicas.join()
  if len(addresses) > 1:
    os.environ['TF_CONFIG'] = _tf_config(addresses, index)
    program.if_interrupted(lambda: '--resume goes on from the last checkpoint')
    on_cpu, gpus = (FLAGS.device or '').startswith('CPU'), tf.config.list_physical_devices('GPU')
    tf.config.set_visible_devices([] if on_cpu else gpus if mirrored else gpus[:1], 'GPU')
    meet(addresses, index)
    with _impatient(), machine.SIGNALS.kept():  # TensorFlow takes SIGTERM for itself
      try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
      except tf.errors.UnknownError as error:
        raise UserError(f'worker {index} cannot use its address {addresses[index]} ({error.message})') from None
  elif mirrored and FLAGS.device is None and len(tf.config.list_physical_devices('GPU')) > 1:
    strategy = tf.distribute.MirroredStrategy()
  else:
    return None
  replicas.join(strategy, index, max(1, len(addresses)))
  require_same('flags', {  # paths may differ from machine to machine
      f'--{flag.name}': flag.value for flag in FLAGS.get_key_flags_for_module(sys.argv[0])
      if flag.name not in program.FREE_FLAGS and flag.flag_type() != 'path'})
  return strategy


def require_same(what, values):
  """Refuses workers whose parts would not be of one batch; all must call it.

  Args:
    what: what the values are called, in the plural.
    values: dict of what `repr` tells apart, with the same names in all workers.

  Raises:
    UserError: a value is not the same in all workers; raised in all.
  """
  differing = replicas.differing(values)
  if differing:
    with contextlib.suppress(*LOST):  # so that all have got this far
      replicas.total([np.zeros(1)])
    raise UserError(f'all workers need the same {what}, and these differ: {", ".join(differing)}')


def _local_gpus():
  """Numbers of the GPUs that this process sees, as CUDA_VISIBLE_DEVICES has them."""
  n, seen = len(tf.config.list_physical_devices('GPU')), os.environ.get('CUDA_VISIBLE_DEVICES')
  return (seen.split(',') if seen else [str(k) for k in range(n)])[:n]


@contextlib.contextmanager
def guarded():
  """Within this, the end of another worker ends this one with a sentence and exit code 1.

  Workers leave it together, because one that has got its last sum may still have to send it to another.
  """
  try:
    yield
    with contextlib.suppress(*LOST if replicas.leads() else ()):  # the leader is done, whatever has become of the others
      replicas.total([np.zeros(1)])
    with contextlib.suppress(*LOST):  # all have come this far: nobody is missed any more
      replicas.total([np.zeros(1)])
  except LOST:
    if not replicas.several():
      raise
    print(f'error: another worker of this run has ended, or cannot be reached; {program.advice()}', file=sys.stderr, flush=True)
    sys.exit(1)


def _tf_config(addresses, index):
  return json.dumps(dict(cluster=dict(worker=addresses), task=dict(type='worker', index=index)))


def workers_of_tf_config():
  """Addresses of all workers and the number of this one as TF_CONFIG says; [] and 0 where it is not set."""
  text = os.environ.get('TF_CONFIG')
  if not text:
    return [], 0
  try:
    config = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(f'TF_CONFIG is no JSON ({error}): it needs {EXAMPLE}') from None
  try:
    groups = {kind: config['cluster'].get(kind, []) for kind in ('chief', 'worker')}
    addresses = groups['chief'] + groups['worker']
    own, index = groups[config['task']['type']], int(str(config['task']['index']))
    ports = [int(ADDRESS.fullmatch(address)[2]) for address in addresses]
    if not 0 <= index < len(own) or len(set(addresses)) < len(addresses) or not all(0 < port < 2 ** 16 for port in ports):
      raise ValueError
  except (AttributeError, KeyError, TypeError, ValueError):
    raise UserError(f'TF_CONFIG names no worker that this process could be, or an address twice: it needs {EXAMPLE}') from None
  return addresses, addresses.index(own[index])


def workers_of_slurm():
  """The same from the variables that srun sets; which GPUs a task sees is srun's to say (--gpus-per-task)."""
  step = '.'.join(os.environ.get(name, '') for name in ('SLURM_JOB_ID', 'SLURM_STEP_ID'))
  first_port = 10000 + zlib.crc32(step.encode()) % 20000  # so that steps on one node do not meet
  try:
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=first_port, gpus_per_node=2 ** 16, gpus_per_task=1, auto_set_gpu=False)
    addresses = resolver.cluster_spec().as_dict()['worker']
    if resolver.task_id is None:
      raise ValueError('SLURM_PROCID is the number of no task')
  except (RuntimeError, ValueError) as error:
    raise UserError(f'--cluster=slurm, but this process was not started by srun ({error})') from None
  return addresses, resolver.task_id


@contextlib.contextmanager
def _impatient():
  """Ends this process with a sentence and exit code 1 if what is within takes longer than PATIENCE.

  The strategy's constructor waits for ever, and neither signals nor threads of Python get their turn meanwhile: another process
  speaks, and faulthandler's own thread ends this one.
  """
  message = (f'error: the workers did not come together within {PATIENCE} s: one of them has ended meanwhile, or another '
             'program answers at its address')
  with open(os.devnull, 'w') as tracebacks, subprocess.Popen(
      [sys.executable, '-I', '-S', '-c', SPEAK_UNLESS_TOLD, str(PATIENCE), message], stdin=subprocess.PIPE) as speaker:
    faulthandler.dump_traceback_later(PATIENCE + 1, exit=True, file=tracebacks)
    try:
      yield
    finally:
      faulthandler.cancel_dump_traceback_later()
      speaker.stdin.close()


def meet(addresses, index, patience=None):
  """Waits until all workers can be reached.

  Args:
    addresses: of all workers, 'host:port'.
    index: number of this one.
    patience: seconds, default PATIENCE.

  Raises:
    UserError: this one's port is in use, or another worker does not come.
  """
  patience = PATIENCE if patience is None else patience
  until = time.monotonic() + patience
  ends = [(address.rpartition(':')[0].strip('[]'), int(address.rpartition(':')[2])) for address in addresses]
  try:
    here = socket.create_server(('', ends[index][1]))
  except OSError as error:
    raise UserError(f'port {ends[index][1]} of worker {index} cannot be used ({error.strerror}): another program has it, or '
                    'another run with the same addresses') from None
  with here:
    for k, end in enumerate(ends):
      while k != index:
        try:
          socket.create_connection(end, timeout=1).close()
          break
        except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host
          if time.monotonic() > until:
            reason = getattr(error, 'strerror', None) or error
            raise UserError(f'worker {k} at {addresses[k]} has not come within {patience} s ({reason})') from None
          time.sleep(0.1)


# ---------------------------------------------------------------------------------------------------------------------
# Workers on this machine


def supervise(n):
  """Starts n workers and waits for them; if one fails, all end.

  Returns:
    Exit code: the leader's; 1 if another one failed.

  Raises:
    UserError: there are fewer GPUs than workers.
    machine.Interrupted: before the leader had begun, or twice.
  """
  gpus = [] if (FLAGS.device or '').startswith('CPU') else _local_gpus()
  if gpus and n > len(gpus):
    raise UserError(f'{n} workers cannot share {len(gpus)} GPU(s): give --n_workers={len(gpus)} at most, or --device=CPU:0')
  program.if_interrupted(lambda: '--resume goes on from the last checkpoint, if there is one')
  with contextlib.ExitStack() as stack:
    ports = [stack.enter_context(socket.create_server(('127.0.0.1', 0))).getsockname()[1] for _ in range(n)]
  with contextlib.ExitStack() as stack:
    logs = [None, *(stack.enter_context(tempfile.TemporaryFile()) for _ in range(n - 1))]  # the leader's output is seen
    workers = []
    stack.callback(_end, workers)
    for k, log in enumerate(logs):
      workers.append(_launch(k, [f'127.0.0.1:{port}' for port in ports], gpus[k::n], log))
    try:
      _wait(workers)
    except machine.Interrupted as error:
      workers[0].send_signal(signal.SIGTERM)  # it ends after its iteration, with a checkpoint, and says so
      workers[0].wait()
      if workers[0].poll() < 0:
        raise
      if workers[0].poll() == 128 + signal.SIGTERM:
        return 128 + error.number
    return _exit_code([worker.poll() for worker in workers], logs)


def _launch(k, addresses, gpus, log):
  """Worker k, in a group of its own, so that Ctrl-C reaches it through this process only."""
  cores = machine.cores()
  share = cores[k::len(addresses)] or [cores[k % len(cores)]]
  env = dict(os.environ, TF_CONFIG=_tf_config(addresses, k))
  if gpus:
    env['CUDA_VISIBLE_DEVICES'] = ','.join(gpus)
  code = f'import sys; sys.path.insert(0, {HERE!r}); import machine; machine.run_script({share}, sys.argv[1:])'
  group = {'creationflags': subprocess.CREATE_NEW_PROCESS_GROUP} if sys.platform == 'win32' else {'start_new_session': True}
  return subprocess.Popen([sys.executable, '-c', code, os.path.abspath(sys.argv[0]), *sys.argv[1:]], env=env,
                          stdin=subprocess.PIPE, stdout=log, stderr=log, **group)


def _wait(workers):
  """Waits until all workers have ended; half of PATIENCE if one has failed or the leader is done."""
  until = np.inf
  while any(worker.poll() is None for worker in workers) and time.monotonic() < until:
    if until == np.inf and (workers[0].returncode == 0 or any(worker.returncode for worker in workers)):
      until = time.monotonic() + PATIENCE / 2
    time.sleep(0.05)


def _exit_code(codes, logs):
  """What to exit with, after a sentence about what the leader cannot have said."""
  said = ['', *(_text(log) for log in logs[1:])]
  failed = next((k for k, code in enumerate(codes)  # 1 without a traceback: because another one had ended
                 if code not in (None, 0, 1) or code == 1 and TRACEBACK in said[k]), None)
  if codes[0] == 0 or failed is None:
    return codes[0] if codes[0] is not None else 1
  if codes[failed] < 0:
    print(f'error: worker {failed} of {len(codes)} was ended by signal {-codes[failed]}', file=sys.stderr, flush=True)
  elif failed > 0:
    _, traceback, rest = said[failed].partition(TRACEBACK)
    last = (said[failed].splitlines() or [f'exit code {codes[failed]}'])[-1]
    print(f'worker {failed} of {len(codes)}: {traceback + rest or last}', file=sys.stderr, flush=True)
  return max(1, codes[failed])


def _text(log):
  log.seek(0)
  return log.read().decode(errors='replace').strip()


def _end(workers):
  """Ends what still runs."""
  for worker in workers:
    worker.kill()
    worker.wait()
    worker.stdin.close()

"""Where a run computes: the device, or the devices and workers, that flags and machine give it."""
import os
import re
import shutil
import subprocess
import sys

from absl import flags
import tensorflow as tf

import distribution
from files import UserError
import machine

FLAGS = flags.FLAGS


def one():
  """The device scope that --device asks for, to be entered with `with`.

  Raises:
    UserError: there is no such device.
  """
  present = _names(tf.config.list_logical_devices())
  if FLAGS.device is None:
    FLAGS.device = 'GPU:0' if 'GPU:0' in present else 'CPU:0'
    if FLAGS.device == 'CPU:0' and shutil.which('nvidia-smi'):
      print('TensorFlow finds no GPU on this machine; --device=GPU:0 says why', file=sys.stderr, flush=True)
  _require(present)
  return tf.device(FLAGS.device)


def _names(devices):
  """CPU:0, GPU:0 and so on, of TensorFlow's devices."""
  return [d.name.partition('device:')[2] for d in devices if d.device_type in ('CPU', 'GPU')]


def _require(present):
  """Raises UserError unless --device is among these."""
  if FLAGS.device not in present:
    reason = _why_no_gpu() if FLAGS.device.startswith('GPU') and 'GPU:0' not in present else ''
    raise UserError(f'no device {FLAGS.device} on this machine; TensorFlow sees {", ".join(present)}{reason}')


def scope(n_items=None, mirrored=True):
  """The scope of all devices on which a run trains, to be entered with `with`; see distribution.start.

  Args:
    n_items: size of the batch, if it is known before the data are.
    mirrored: the program computes in replicas.function, on copies of its variables on all devices; otherwise it uses one device,
      and replicas.total.

  Raises:
    UserError: there is no such device, or workers do not come together.
  """
  if FLAGS.device is not None:
    _require(_names(tf.config.list_physical_devices()))  # before workers wait for each other
  strategy = distribution.start(n_items, mirrored)
  if strategy is None:
    return one()
  own = strategy.extended.worker_devices[0]
  name = own.rpartition('device:')[2]
  if FLAGS.device is not None:
    _require([name])
  FLAGS.device = name
  return strategy.scope() if mirrored else tf.device(own)


def _why_no_gpu():
  """What TensorFlow says of GPUs when it looks for them, of which it says nothing otherwise."""
  try:
    said = subprocess.run([sys.executable, '-c', 'import tensorflow as tf; tf.config.list_physical_devices("GPU")'],
                          env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL='0'), stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, errors='replace', timeout=60, check=False).stderr
  except (OSError, subprocess.SubprocessError):
    return ''
  lines = [line.rpartition('] ')[2] for line in said.splitlines() if re.search('cuda|gpu|rocm', line, re.IGNORECASE)]
  return ''.join(f'; {line}' for line in dict.fromkeys(lines))


def n_shards(n_batch):
  """How many parts of a batch to compute side by side: one per core, of at least 16 trials each; 1 on a GPU."""
  if FLAGS.device.startswith('GPU'):
    return 1
  return max(1, min(len(machine.cores()), n_batch // 16))

"""Several workers compute what one computes; they end together, and say why. What scripts do with them: the scripts' tests."""
import json
import os
import signal
import socket
import subprocess
import sys
import time

from absl import flags
import numpy as np
import pytest

import distribution
import replicas
from files import UserError

PROGRAM = '''
"""Sums over the replicas, in steps; what a training script does, in small."""
import os
import sys
import time

sys.path.insert(0, {folder!r})
import experiment
from absl import flags
import keras
import numpy as np
import tensorflow as tf

import distribution
import replicas

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)
flags.DEFINE_integer('n_iter', 3, '')
flags.DEFINE_integer('fails', -1, '')
flags.DEFINE_float('wait', 0, '')
BATCH = np.random.default_rng(0).standard_normal((7, 5))


def train():
  w = tf.Variable(np.ones((5, 5)))
  optimizer = keras.optimizers.Adam(0.1, np.float64(0.9), np.float64(0.999))
  optimizer.build([w])
  product = tf.function(lambda x, w: tf.matmul(x, x @ w, transpose_a=True), jit_compile=True)

  @replicas.function
  def update(x):
    gradient, n = replicas.all_sum((product(x, tf.convert_to_tensor(w)), tf.constant(len(x), tf.float64)))
    rows, k = replicas.in_order(tf.reduce_sum(x))
    replicas.apply(optimizer, [gradient], [w])
    return tf.reduce_sum(gradient ** 2), n, tf.cumsum(rows)[-1]

  run = experiment.Run('program', ('loss', 'n', 'sum', 'total'), {{'w': w, **{{f'o{{k}}': v.value for k, v in enumerate(optimizer.variables)}}}})
  for iteration in run.iterations(FLAGS.n_iter, 1):
    time.sleep(FLAGS.wait)
    if replicas.leads() == (FLAGS.fails == 0) and FLAGS.fails >= 0:
      raise experiment.UserError('this one fails')
    loss, n, total = update(replicas.each(7, lambda part: BATCH[part]))
    [seven], [one] = replicas.total([np.float32([7]), np.array([replicas.leads()])])
    run.log(iteration, loss=loss, n=n, sum=total, total=seven)
    assert one == 1
  run.finish(dict(w=w.numpy()), {{}}, ['done'])


def main():
  with experiment.devices():
    train()


experiment.run_app(main)
'''


@pytest.fixture(scope='module')
def script(tmp_path_factory):
  path = tmp_path_factory.mktemp('program') / 'program.py'
  path.write_text(PROGRAM.format(folder=os.path.dirname(distribution.__file__)))
  return path


def start(script, folder, *arguments, env=None, name='run'):
  command = [sys.executable, str(script), '--dtype=float64', f'--result_dir={folder}', f'--run_name={name}', *arguments]
  return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ, **env or {}))


def call(*arguments, expect=0, **options):
  process = start(*arguments, **options)
  out, err = process.communicate(timeout=300)
  assert process.returncode == expect, out + err
  return out, err


def numbers(folder, name='run'):
  return np.loadtxt(folder / 'program' / name / 'metrics.csv', delimiter=',', skiprows=1, ndmin=2)


def test_workers_compute_what_one_computes(script, tmp_path):
  call(script, tmp_path, name='one')
  out, err = call(script, tmp_path, '--n_workers=2', name='two')
  assert 'done' in out and out.count('iteration 3/3') == 1 and not err
  one, two = numbers(tmp_path, 'one'), numbers(tmp_path, 'two')
  np.testing.assert_allclose(two[:, :4], one[:, :4], rtol=1e-12)
  assert (two[:, 4] == 14).all() and (one[:, 4] == 7).all() and (one[:, 2] == 7).all()

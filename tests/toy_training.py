"""A training of milliseconds around experiment.Run, for tests of what every script does; not a test itself.

It counts: its weights grow by --step per iteration, and its loss falls.
"""
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'Figure_3_and_S7_e-prop_tutorials'))

import experiment
import program
from absl import flags
import checkpoints
import devices
import numpy as np
import tensorflow as tf

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)
flags.DEFINE_integer('n_iter', 3, 'iterations', lower_bound=1)
flags.DEFINE_float('step', 1.0, 'growth of the weights')
flags.DEFINE_float('rate', 10.0, 'firing rate')
flags.DEFINE_float('sleep', 0.0, 'seconds per iteration')
flags.DEFINE_integer('n_in', 2, 'rows', lower_bound=1)
flags.DEFINE_bool('constant', False, 'whether the outputs never change')
program.DEFINE_path('init_from', None, 'weights')
flags.DEFINE_string('data', 'a', 'what it learns from')


def main():
  with devices.one():
    weights = dict(w_in=tf.Variable(np.zeros((FLAGS.n_in, 2)), dtype=FLAGS.dtype), count=tf.Variable(0))
    if FLAGS.init_from:
      checkpoints.restore(dict(w_in=weights['w_in']), FLAGS.init_from)
    run = experiment.Run('toy', ('loss', 'error'), weights, ('n_iter', 'sleep', 'step', 'data'), dict(digest=FLAGS.data))
    for iteration in run.iterations(FLAGS.n_iter, 10):
      time.sleep(FLAGS.sleep)
      run.guard(iteration, 1 / iteration, FLAGS.rate)
      with np.errstate(over='ignore'):
        weights['w_in'].assign(weights['w_in'].numpy() * weights['w_in'].dtype.as_numpy_dtype(FLAGS.step) + 1)
      weights['count'].assign_add(1)
      run.log(iteration, loss=1 / iteration, error=iteration / 7 if iteration % 2 else None)
    outputs = np.ones((4, 2)) if FLAGS.constant else np.eye(2)
    run.finish(dict(w_in=weights['w_in'].numpy()), dict(score=1.5), ['done'], experiment.signs_of_death(outputs=outputs))


if __name__ == '__main__':
  experiment.run_app(main)

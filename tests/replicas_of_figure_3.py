"""Learning rules of figure 3 on one device and on two replicas, five updates each; prints the largest relative difference.

  python tests/replicas_of_figure_3.py [WORDS]    rules whose name has all these words in it; default: all

Two replicas are two of TensorFlow's logical processors in one process, as MirroredStrategy has them on two GPUs.
"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'Figure_3_and_S7_e-prop_tutorials'))

import keras
import numpy as np
import tensorflow as tf

import lsnn
import replicas
from learner import Learner
from readout import RateCost, Readout
from tasks import EvidenceAccumulation
from trainer import Trainer, random_weights

CPU, = tf.config.list_physical_devices('CPU')
tf.config.set_logical_device_configuration(CPU, [tf.config.LogicalDeviceConfiguration()] * 2)
BOTH = tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])
RULES = {  # bptt, implementation, feedback, rate cost
    'symmetric e-prop': (False, 'adjoint', 'symmetric', 'simple'),
    'adaptive e-prop': (False, 'adjoint', 'adaptive', 'online'),
    'random e-prop, hardcoded': (False, 'hardcoded', 'random', 'simple'),
    'random e-prop, hardcoded, running rates': (False, 'hardcoded', 'random', 'online'),
    'random e-prop, autodiff': (False, 'autodiff', 'random', 'simple'),
    'random e-prop, autodiff, running rates': (False, 'autodiff', 'random', 'online'),
    'BPTT': (True, 'adjoint', 'symmetric', 'simple'),
    'BPTT, running rates': (True, 'adjoint', 'symmetric', 'online'),
    'BPTT, autodiff, running rates': (True, 'autodiff', 'symmetric', 'online')}


def learn(rule):
  """Losses, rates and outputs of five updates, and the weights after them."""
  bptt, impl, feedback, rate_kind = rule
  rng = np.random.default_rng(0)
  task = EvidenceAccumulation(lambda stream, k: np.random.default_rng(k), n_batch=5, silence=5.0, cue=10.0, delay=20.0,
                              recall=15.0, n_per_group=4, rate=200.0)
  n = 12
  arrays = random_weights(rng, task.n_in, n)
  arrays['w_out'], arrays['b_out'] = rng.standard_normal((2, n, task.n_out)) / n ** 0.5
  cell = lsnn.ALIF(n, thr=0.6, beta=np.repeat([0, 0.3], n // 2), n_refractory=3, dtype='float64')
  learner = Learner(cell, Readout(np.float64(0.9)), RateCost(5.0, 0.02, rate_kind), bptt, impl)
  trainer = Trainer(learner, task, arrays, feedback, keras.optimizers.Adam(0.05, np.float64(0.9), np.float64(0.999)), 1e-3)
  seen = []
  for k in range(5):
    x, target = trainer.batch('train', k)
    result = trainer.update(x, target)
    seen += [result.task_loss, result.rate_loss, result.rate, result.y]
  return [*map(np.asarray, seen), *trainer.evaluate(x, target), *trainer.final_weights().values()]


def main():
  keras.config.set_floatx('float64')
  worst = 0.0
  for name, rule in RULES.items():
    if not all(word in name for word in sys.argv[1:]):
      continue
    one = learn(rule)
    replicas.join(BOTH)
    with BOTH.scope():
      two = learn(rule)
    replicas.join()
    difference = max(np.max(np.abs(a - b)) / np.max(np.abs(a)) for a, b in zip(one, two))
    print(f'{name}: {difference:.1g}, mean rate {np.mean(one[2]):.2f}')
    worst = max(worst, difference)
  print(worst)


if __name__ == '__main__':
  main()

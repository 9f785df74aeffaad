"""Figure 2: an LSNN tells which phone is being spoken in each 10 ms frame, by e-prop or BPTT.

  python timit_processing.py                                        once: makes the synthetic corpus
  python solve_timit_with_framewise_lsnn.py --eprop=symmetric

The features drive LIF and ALIF neurons for 5 steps per frame, one network forward and one backward in time. Their spikes are
averaged over the frame, filtered and read out.
"""
import sys

import experiment
from absl import flags
import numpy as np

from classifier import Settings
from experiment import UserError
from lsnn import ALIF, exp_decay
from networks import LSNNLayer, Network
import training

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)
flags.adopt_module_key_flags(training)

# Network
flags.DEFINE_integer('n_layer', 1, 'layers', lower_bound=1)
flags.DEFINE_integer('n_regular', 300, 'LIF neurons per layer and direction', lower_bound=0)
flags.DEFINE_integer('n_adaptive', 100, 'ALIF neurons per layer and direction', lower_bound=0)
flags.DEFINE_integer('n_repeat', 5, 'network steps per frame', lower_bound=1)
flags.DEFINE_bool('rec', True, 'recurrent weights')
flags.DEFINE_float('tau_a', 200.0, 'time constant of the threshold adaptation [ms]')
flags.DEFINE_float('tau_v', 20.0, 'membrane time constant [ms]')
flags.DEFINE_bool('tau_a_spread', False, 'draw time constants of adaptation evenly between 0 and tau_a')
flags.DEFINE_bool('tau_v_spread', False, 'draw membrane time constants evenly between 0 and tau_v')
flags.DEFINE_float('beta', 1.8, 'strength of adaptation, multiplied by (1 - rho) / (1 - alpha)', lower_bound=0.0)
flags.DEFINE_float('thr', 0.01, 'threshold, divided by (1 - alpha)')
flags.DEFINE_integer('n_ref', 2, 'refractory period [steps]', lower_bound=0)
flags.DEFINE_float('dt', 1.0, 'length of a network step [ms]')
flags.DEFINE_float('dampening_factor', 0.3, 'height of the pseudo-derivative', lower_bound=0.0)
# Readout and learning
flags.DEFINE_float('tau_out', 3.0, 'time constant of the readout [frames]')
flags.DEFINE_bool('psp_out', True, 'filter the outputs')
flags.DEFINE_bool('readout_bias', True, 'bias at the readout')
flags.DEFINE_bool('loss_from_all_layers', True, 'read out from all layers, else from the last')
flags.DEFINE_bool('BAglobal', False, 'uniform feedback, which a softmax readout turns into none: a null control')
flags.DEFINE_bool('cell_train', True, 'train the network, not only the readout')
flags.DEFINE_float('reg', 50.0, 'strength of the rate regularisation', lower_bound=0.0)
flags.DEFINE_float('reg_rate', 10.0, 'target rate [Hz]', lower_bound=0.0)
flags.DEFINE_bool('ramping_learning_rate', True, 'let the learning rate rise over the first 100 updates')
flags.DEFINE_integer('truncT', -1, 'steps after which no gradient goes further back in time; -1: none')


def alif(seed_stream):
  """The published neurons: threshold and adaptation given for normalised filters, here for plain ones."""
  n = FLAGS.n_regular + FLAGS.n_adaptive
  if n < 1:
    raise UserError('the network needs neurons: --n_regular + --n_adaptive must be at least 1')
  if min(FLAGS.tau_a, FLAGS.tau_v, FLAGS.tau_out, FLAGS.thr, FLAGS.dt) <= 0:
    raise UserError('--tau_a, --tau_v, --tau_out, --thr and --dt must be positive')
  generator = experiment.rng(seed_stream)
  spread = lambda tau, on: tau * (1 - generator.random(n)) if on else tau  # in (0, tau]
  tau_v, tau_a = spread(FLAGS.tau_v, FLAGS.tau_v_spread), spread(FLAGS.tau_a, FLAGS.tau_a_spread)
  alpha, rho = exp_decay(FLAGS.tau_v, FLAGS.dt), exp_decay(tau_a, FLAGS.dt)
  beta = np.repeat([0, FLAGS.beta], [FLAGS.n_regular, FLAGS.n_adaptive]) * (1 - rho) / (1 - alpha)
  return ALIF(n, thr=FLAGS.thr / (1 - alpha), tau=tau_v, tau_adaptation=tau_a, beta=beta, n_refractory=FLAGS.n_ref,
              dt=FLAGS.dt, dampening_factor=FLAGS.dampening_factor, dtype=FLAGS.dtype)


def main():
  experiment.apply_smoke(n_epochs=2, n_regular=20, n_adaptive=10, n_repeat=2, batch=8, test_batch=8)
  bptt = FLAGS.eprop is None and not FLAGS.BAglobal
  if bptt and FLAGS.eprop_impl == 'hardcoded':
    raise UserError('--eprop_impl=hardcoded computes e-prop only: add --eprop')
  if not bptt and FLAGS.n_layer > 1 and not FLAGS.loss_from_all_layers:
    raise UserError('by e-prop each layer learns from the readout: it needs --loss_from_all_layers')
  with experiment.device():
    corpus = training.load_corpus()
    layers = [LSNNLayer(alif(f'neurons of layer {k}'), 1 if k else FLAGS.n_repeat, bptt, FLAGS.eprop_impl, FLAGS.rec,
                        FLAGS.truncT) for k in range(FLAGS.n_layer)]
    settings = Settings(**dict(
        training.common_settings(), loss='framewise', kappa=float(exp_decay(FLAGS.tau_out)) if FLAGS.psp_out else 0.0,
        all_layers=FLAGS.loss_from_all_layers, readout_bias=FLAGS.readout_bias, train_network=FLAGS.cell_train,
        rate_cost=FLAGS.reg, rate_target=FLAGS.reg_rate * FLAGS.dt / 1000, **({'feedback': 'uniform'} if FLAGS.BAglobal else {})))
    training.train('solve_timit_with_framewise_lsnn', Network(layers), settings, corpus,
                   ramp=100 if FLAGS.ramping_learning_rate else 0)


if __name__ == '__main__':
  experiment.run_app(main)

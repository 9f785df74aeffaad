"""Figure 2: an LSNN tells which phone is being spoken in each 10 ms frame, by e-prop or BPTT.

  python timit_processing.py                                        once: makes the synthetic corpus
  python solve_timit_with_framewise_lsnn.py --eprop=symmetric

The features drive LIF and ALIF neurons for 5 steps per frame, one network forward and one backward in time. Their spikes are
averaged over the frame, filtered and read out.
"""
import experiment
import program
from absl import flags

from classifier import RATE_OVER, Settings
import devices
from files import UserError
from lsnn import exp_decay
from networks import LSNNLayer, Network
import neurons
import training

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)
flags.adopt_module_key_flags(training)
flags.adopt_module_key_flags(neurons)

# Values of flags that the command line does not set. README.md says by what measurement `fast` is better in a short training.
PRESETS = {
    'published': {},
    # Small batches, sorted to save padding; thresholds by the paper's equations; twice the rate; three epochs of TIMIT's 3696
    # utterances, the last at a lower learning rate.
    'fast': dict(batch=8, batch_order='length', adapt_to='spikes', reg=20.0, reg_rate=20.0, n_epochs=3, lr_decay_every=924)}
flags.DEFINE_enum('preset', 'published', list(PRESETS), 'fast: three epochs in batches of 8, firing rates of 20 Hz')
# Network
flags.DEFINE_integer('n_layer', 1, 'layers', 1, 100)
flags.DEFINE_integer('n_regular', 300, 'LIF neurons per layer and direction', 0, 10 ** 5)
flags.DEFINE_integer('n_adaptive', 100, 'ALIF neurons per layer and direction', 0, 10 ** 5)
flags.DEFINE_integer('n_repeat', 5, 'network steps per frame', 1, 1000)
flags.DEFINE_bool('rec', True, 'recurrent weights')
# Readout and learning
flags.DEFINE_float('tau_out', 3.0, 'time constant of the readout [frames]', 1e-3, 1e6)
flags.DEFINE_bool('psp_out', True, 'filter the outputs')
flags.DEFINE_bool('readout_bias', True, 'bias at the readout')
flags.DEFINE_bool('loss_from_all_layers', True, 'read out from all layers, else from the last')
flags.DEFINE_bool('BAglobal', False, 'uniform feedback, which a softmax readout turns into none: a null control')
flags.DEFINE_bool('cell_train', True, 'train the network, not only the readout')
flags.DEFINE_float('reg', 50.0, 'strength of the rate regularisation', lower_bound=0.0)
flags.DEFINE_float('reg_rate', 10.0, 'target rate [Hz]', 0.0, 1e6)
flags.DEFINE_enum('reg_over', 'batch', RATE_OVER, 'mean rates of the regularisation: over all steps of the padded batch, as '
                  'published, or over the utterances alone')
flags.DEFINE_bool('ramping_learning_rate', True, 'let the learning rate rise over the first 100 updates')
flags.DEFINE_integer('truncT', -1, 'frames of the random window to which each batch is cropped; -1: whole utterances',
                     lower_bound=-1)


def main():
  program.preset(**PRESETS[FLAGS.preset])
  program.apply_smoke(n_epochs=2, n_regular=20, n_adaptive=10, n_repeat=2, batch=8, test_batch=8)
  bptt = FLAGS.eprop is None and not FLAGS.BAglobal
  if bptt and FLAGS.eprop_impl == 'hardcoded':
    raise UserError('--eprop_impl=hardcoded computes e-prop only: add --eprop')
  if not bptt and FLAGS.n_layer > 1 and not FLAGS.loss_from_all_layers:
    raise UserError('by e-prop each layer learns from the readout: it needs --loss_from_all_layers')
  if FLAGS.tau_out <= 0:
    raise UserError('--tau_out must be positive')
  with devices.scope(FLAGS.batch):
    corpus = training.load_corpus()
    layers = [LSNNLayer(neurons.make(FLAGS.n_regular, FLAGS.n_adaptive, k), 1 if k else FLAGS.n_repeat, bptt, FLAGS.eprop_impl,
                        FLAGS.rec) for k in range(FLAGS.n_layer)]
    settings = dict(
        training.common_settings(), kappa=float(exp_decay(FLAGS.tau_out)) if FLAGS.psp_out else 0.0,
        all_layers=FLAGS.loss_from_all_layers, readout_bias=FLAGS.readout_bias, train_network=FLAGS.cell_train,
        rate_cost=FLAGS.reg, rate_over=FLAGS.reg_over, rate_target=FLAGS.reg_rate * FLAGS.dt / 1000)
    if FLAGS.BAglobal:
      settings['feedback'] = 'uniform'
    training.train('solve_timit_with_framewise_lsnn', Network(layers), Settings(**settings), corpus,
                   optimizer='adam' if FLAGS.adam else 'sgd', ramp=100 if FLAGS.ramping_learning_rate else 0,
                   window=FLAGS.truncT)


if __name__ == '__main__':
  experiment.run_app(main)

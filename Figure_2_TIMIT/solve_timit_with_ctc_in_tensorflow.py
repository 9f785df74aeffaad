"""Figure 2: an LSTM or LSNN writes down the phones of an utterance, trained by CTC, with e-prop or BPTT.

  python timit_processing.py                                        once: makes the synthetic corpus
  python solve_timit_with_ctc_in_tensorflow.py --model=lstm --eprop=symmetric

Nobody tells the network when which phone is spoken: CTC sums over all alignments. Decoding is a beam search; errors are scored
in 39 classes. E-prop reads out from all layers, and its LSTM has no peepholes.
"""
import experiment
import program
from absl import flags

from classifier import RATE_OVER, Settings
import devices
from files import UserError
from lsnn import exp_decay
from networks import LSNNLayer, LSTMLayer, Network
import neurons
import training

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)
flags.adopt_module_key_flags(training)
flags.adopt_module_key_flags(neurons)

# Network
flags.DEFINE_enum('model', 'lstm', ['lstm', 'lsnn'], 'the network')
flags.DEFINE_integer('n_layer', 3, 'layers', 1, 100)
flags.DEFINE_integer('n_neuron', None, 'cells or neurons per layer and direction; default 250 (lstm), 800 (lsnn)', 1, 10 ** 5)
flags.DEFINE_float('n_split', 0.1, 'lsnn: share of LIF neurons, the others are ALIF', 0.0, 1.0)
flags.DEFINE_integer('n_repeat', 5, 'lsnn: network steps per frame', 1, 1000)
flags.DEFINE_float('init_scale', 0.1, 'lstm: bound of uniform initial weights; 0: Glorot-uniform', lower_bound=0.0)
flags.DEFINE_bool('peephole', True, 'lstm: peepholes, with BPTT')
flags.DEFINE_bool('loss_from_all_layers', False, 'with BPTT: read out from all layers, as e-prop does, else from the last')
# Learning
flags.DEFINE_float('tau_out', 3.0, 'lsnn: time constant of the readout [ms]', 1e-3, 1e6)
flags.DEFINE_float('reg', 0.0, 'lsnn: strength of the rate regularisation', lower_bound=0.0)
flags.DEFINE_float('reg_rate', 10.0, 'lsnn: target rate [Hz]', 0.0, 1e6)
flags.DEFINE_enum('reg_over', 'batch', RATE_OVER, 'lsnn: mean rates of the regularisation: over all steps of the padded batch, as '
                  'published, or over the utterances alone')
flags.DEFINE_enum('optimizer', 'adam', ['adam', 'sgd', 'rmsprop'], 'optimizer; sgd has momentum')
flags.DEFINE_float('grad_clip', 1.0, 'largest norm of the gradient; 0: no limit', lower_bound=0.0)
flags.DEFINE_float('input_noise', 0.0, 'standard deviation of noise on the features while training', lower_bound=0.0)
flags.DEFINE_float('w_noise', 0.0, 'standard deviation of noise that is added to the weights after each update', lower_bound=0.0)
flags.DEFINE_integer('noise_epoch_start', 0, 'the noise on the gradient begins in the second epoch after this one', lower_bound=0)
FLAGS.set_default('n_epochs', 60)
FLAGS.set_default('batch', 8)
FLAGS.set_default('test_batch', 64)
FLAGS.set_default('lr_init', 1e-3)
FLAGS.set_default('lr_decay_every', 15)
FLAGS.set_default('readout_decay', 1e-4)
FLAGS.set_default('l2', 0.0)
FLAGS.set_default('gd_noise', 0.0)
FLAGS.set_default('drop_out_probability', 0.7)
FLAGS.set_default('tau_a', 500.0)


def lsnn_settings():
  """The Settings of a spiking network."""
  return dict(kappa=float(exp_decay(FLAGS.tau_out, FLAGS.dt)), rate_cost=FLAGS.reg, rate_over=FLAGS.reg_over,
              rate_target=FLAGS.reg_rate * FLAGS.dt / 1000)


def main():
  program.apply_smoke(n_epochs=1, n_layer=1, n_neuron=20, batch=8, test_batch=8, n_repeat=2)
  bptt = FLAGS.eprop is None
  if bptt and FLAGS.eprop_impl == 'hardcoded':
    raise UserError('--eprop_impl=hardcoded computes e-prop only: add --eprop')
  if FLAGS.tau_out <= 0:
    raise UserError('--tau_out must be positive')
  if FLAGS.model == 'lstm':
    program.preset(n_neuron=250, reverse='utterance')  # published, too
  else:
    program.preset(n_neuron=800)
  n = FLAGS.n_neuron
  with devices.scope(FLAGS.batch):
    corpus = training.load_corpus()
    if FLAGS.model == 'lsnn':
      n_regular = int(FLAGS.n_split * n)
      layers = [LSNNLayer(neurons.make(n_regular, n - n_regular, k), 1 if k else FLAGS.n_repeat, bptt, FLAGS.eprop_impl)
                for k in range(FLAGS.n_layer)]
    else:
      layers = [LSTMLayer(n, bptt, FLAGS.eprop_impl, bptt and FLAGS.peephole, FLAGS.init_scale) for _ in range(FLAGS.n_layer)]
    settings = dict(training.common_settings(), loss='ctc', grad_clip=FLAGS.grad_clip,
                    all_layers=not bptt or FLAGS.loss_from_all_layers, **(lsnn_settings() if FLAGS.model == 'lsnn' else {}))
    training.train('solve_timit_with_ctc_in_tensorflow', Network(layers), Settings(**settings), corpus,
                   optimizer=FLAGS.optimizer if FLAGS.adam else 'sgd', decay_in_epochs=True,
                   noise_epoch_start=FLAGS.noise_epoch_start, input_noise=FLAGS.input_noise, weight_noise=FLAGS.w_noise)


if __name__ == '__main__':
  experiment.run_app(main)

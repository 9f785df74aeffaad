"""Figure 2: an LSTM tells which phone is being spoken in each 10 ms frame, by e-prop or BPTT.

  python timit_processing.py                                        once: makes the synthetic corpus
  python solve_timit_with_framewise_lstm.py --eprop=symmetric

E-prop for an LSTM keeps the gradient inside each cell and drops what would pass through h[t-1] to other cells; see lstm.py.
"""
import experiment
import program
from absl import flags

from classifier import Settings
import devices
from files import UserError
from networks import LSTMLayer, Network
import training

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)
flags.adopt_module_key_flags(training)

flags.DEFINE_integer('n_lstm', 200, 'LSTM cells per direction', 1, 10 ** 5)
flags.DEFINE_integer('n_layer', 1, 'layers', 1, 100)
flags.DEFINE_float('init_scale', 0.0, 'bound of uniform initial weights; 0: Glorot-uniform', lower_bound=0.0)
flags.DEFINE_bool('lstm', True, 'published flag without effect: the cells are LSTM cells')
FLAGS.set_default('n_epochs', 30)
FLAGS.set_default('lr_decay_every', 500)
FLAGS.set_default('readout_decay', 1e-3)


def main():
  program.apply_smoke(n_epochs=2, n_lstm=20, batch=8, test_batch=8)
  if not FLAGS.adam:
    program.preset(momentum=0.0)  # published: plain gradient descent
  bptt = FLAGS.eprop is None
  if bptt and FLAGS.eprop_impl == 'hardcoded':
    raise UserError('--eprop_impl=hardcoded computes e-prop only: add --eprop')
  with devices.scope(FLAGS.batch):
    corpus = training.load_corpus()
    layers = [LSTMLayer(FLAGS.n_lstm, bptt, FLAGS.eprop_impl, init_scale=FLAGS.init_scale) for _ in range(FLAGS.n_layer)]
    training.train('solve_timit_with_framewise_lstm', Network(layers), Settings(**training.common_settings()), corpus,
                   optimizer='adam' if FLAGS.adam else 'sgd')


if __name__ == '__main__':
  experiment.run_app(main)

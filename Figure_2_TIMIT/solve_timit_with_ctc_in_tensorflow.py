"""Figure 2: an LSTM or LSNN writes down the phones of an utterance, trained by CTC, with e-prop or BPTT.

  python timit_processing.py                                        once: makes the synthetic corpus
  python solve_timit_with_ctc_in_tensorflow.py --model=lstm --eprop=symmetric

Nobody tells the network when which phone is spoken: CTC sums over all alignments. Decoding is a beam search; errors are scored
in 39 classes. E-prop reads out from all layers, and its LSTM has no peepholes.
"""
import experiment
import program
from absl import flags

from classifier import Settings
from files import UserError
from lsnn import exp_decay
from networks import LSNNLayer, LSTMLayer, Network
import neurons
import training

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)
flags.adopt_module_key_flags(training)
flags.adopt_module_key_flags(neurons)

flags.DEFINE_enum('model', 'lstm', ['lstm', 'lsnn'], 'the network')
flags.DEFINE_integer('n_layer', None, 'layers; default 3 (lstm), 1 (lsnn)', lower_bound=1)
flags.DEFINE_integer('n_neuron', None, 'cells or neurons per layer and direction; default 250 (lstm), 800 (lsnn)', lower_bound=1)
flags.DEFINE_float('n_split', 0.1, 'lsnn: share of LIF neurons, the others are ALIF', 0.0, 1.0)
flags.DEFINE_integer('n_repeat', 5, 'lsnn: network steps per frame', lower_bound=1)
flags.DEFINE_float('init_scale', 0.1, 'lstm: bound of uniform initial weights; 0: Glorot-uniform', lower_bound=0.0)
flags.DEFINE_bool('peephole', True, 'lstm: peepholes, with BPTT')
flags.DEFINE_float('tau_out', 3.0, 'lsnn: time constant of the readout [ms]')
flags.DEFINE_float('reg', 0.0, 'strength of the rate regularisation', lower_bound=0.0)
flags.DEFINE_float('reg_rate', 10.0, 'target rate [Hz]', lower_bound=0.0)
flags.DEFINE_enum('optimizer', 'adam', ['adam', 'momentum'], 'another name of --adam and --noadam')
for _name, _value in dict(n_epochs=60, batch=8, test_batch=64, lr_init=1e-3, lr_decay_every=15, readout_decay=1e-4, l2=0.0,
                          drop_out_probability=0.7, grad_clip=1.0, tau_a=500.0).items():
  FLAGS.set_default(_name, _value)


def main():
  program.apply_smoke(n_epochs=1, n_layer=1, n_neuron=20, batch=8, test_batch=8, n_repeat=2)
  FLAGS.adam = FLAGS.adam and FLAGS.optimizer == 'adam'
  bptt = FLAGS.eprop is None
  if bptt and FLAGS.eprop_impl == 'hardcoded':
    raise UserError('--eprop_impl=hardcoded computes e-prop only: add --eprop')
  lsnn = FLAGS.model == 'lsnn'
  n_layer = FLAGS.n_layer or (1 if lsnn else 3)
  n = FLAGS.n_neuron or (800 if lsnn else 250)
  with experiment.device():
    corpus = training.load_corpus()
    settings = dict(training.common_settings(), loss='ctc', rate_cost=FLAGS.reg if lsnn else 0.0,
                    rate_target=FLAGS.reg_rate * FLAGS.dt / 1000)
    if lsnn:
      n_regular = round(FLAGS.n_split * n)
      layers = [LSNNLayer(neurons.make(n_regular, n - n_regular, k), 1 if k else FLAGS.n_repeat, bptt, FLAGS.eprop_impl)
                for k in range(n_layer)]
      settings['kappa'] = float(exp_decay(FLAGS.tau_out, FLAGS.dt))
    else:
      layers = [LSTMLayer(n, bptt, FLAGS.eprop_impl, bptt and FLAGS.peephole, FLAGS.init_scale) for _ in range(n_layer)]
    training.train('solve_timit_with_ctc_in_tensorflow', Network(layers), Settings(**settings), corpus, decay_in_epochs=True)


if __name__ == '__main__':
  experiment.run_app(main)

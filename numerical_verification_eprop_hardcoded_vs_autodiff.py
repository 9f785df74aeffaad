"""Proves numerically that e-prop, computed by hardcoded eligibility traces, is a gradient with two paths cut.

E-prop's gradient, eqs. (1), (4) and (28) of Bellec, Scherr et al. (2020),

  dE/dW_ji = sum_t L_j[t] F_kappa(e_ji)[t]      L_j = sum_k B_jk (y_k - y*_k)

with the eligibility trace e_ji of eqs. (22) to (25), is what automatic differentiation returns if no gradient may pass
from a spike to other neurons and to the reset of its own membrane potential, while the path from the spike to the
threshold of its own neuron stays open; with B = w_out (symmetric feedback), or with B in place of w_out in the backward
pass (random feedback). The cost on the firing rates acts through the unfiltered trace.

  python numerical_verification_eprop_hardcoded_vs_autodiff.py [--n_seeds=5] [--smoke]

Random networks of LIF and ALIF neurons with a refractory period get random input, a loss at the outputs and a cost on
the firing rates, on every device present. The reference is automatic differentiation with the two paths stopped. It is
compared with `hardcoded` (traces, learning signal and gradient advance together with the network), `adjoint` (the same
sum transposed in time, which training uses) and `stored traces` (the sum written out, from which the wrong variants
depart). Shown is the largest absolute difference over the largest entry of the gradient; `max relative error` is the
worst of that in float64 (expected: a few 1e-15). Float32 is for information, and so is by how much four gradients that
are wrong on purpose are off.

Exit code 0: all is well. 1: an error above 1e-11, two devices that differ by more than 1e-9 although their spikes are
equal, a wrong gradient that went unnoticed, or a network without spikes, adaptation or refractory neurons, which would
prove nothing. 2: bad arguments. figure.png, table.csv and summary.json go to <result_dir>/<name of this script>/.

Takes 20 s on two cores, 8 s with --smoke; most of it is compilation.
"""
import os
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(FOLDER, 'Figure_3_and_S7_e-prop_tutorials'))

import experiment
import verification
from absl import flags
import plots
import tensorflow as tf

from eprop import presynaptic_product
from learner import Learner
from lsnn import exp_filter
from readout import Weights, loss_and_error, rate_signal

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(verification)


class Gradients:
  """E-prop's gradient of one kind of network in all ways, compiled once and used for every seed.

  Args:
    network: verification.Network.
    dtype: 'float32' or 'float64'.
  """

  def __init__(self, network, dtype):
    self.n_in = network.n_in
    self.cell, self.readout, self.regularisation = parts = network.parts(dtype)
    self.autodiff = Learner(*parts, impl='autodiff')
    self.hardcoded = Learner(*parts, impl='hardcoded')
    self.adjoint = Learner(*parts, impl='adjoint', n_shards=2)

  @tf.function
  def by_stored_traces(self, case, feedback, y):
    """The same gradient from traces kept for all times, and variants of it that are wrong on purpose.

    Args:
      case: verification.Case.
      feedback: B of eq. (4), [N, K].
      y: outputs, [T, B, K].

    Returns:
      Activity; L [T, B, N]; Weights; dict of wrong (dE/dw_in, dE/dw_rec).
    """
    run = verification.activity(self.cell, case.x, case.weights)
    n_steps, n_batch, n = run.z.shape
    kappa, normalised, loss = self.readout
    error = loss_and_error(loss, y, case.target, case.weight)[1]
    learning_signal = tf.matmul(error, feedback, transpose_b=True)              # (4)
    task = exp_filter(learning_signal, kappa, normalised, reverse=True)         # F_kappa of (28), moved from e to L
    rate_term = rate_signal(self.regularisation, tf.reduce_mean(run.z, [0, 1]), n_steps, n_batch, run.z)
    gradient = lambda signal, e: verification.signal_times_trace(signal, e, self.n_in)
    g_out = presynaptic_product(exp_filter(run.z, kappa, normalised), error)
    wrong = {'trace without its slow component eps_a': gradient(task + rate_term, run.psi[:, :, None] * run.eps_v),
             'traces of other synapses (rows shifted by one)': gradient(task + rate_term, tf.roll(run.e, 1, axis=2)),
             'rate cost left out': gradient(task, run.e)}
    return run, learning_signal, Weights(*gradient(task + rate_term, run.e), g_out), wrong

  def __call__(self, case, kind):
    """All gradients of a case with 'symmetric' or 'random' feedback.

    Returns:
      Activity and learning signal; dict of gradients that must be equal, the reference first; dict of
      gradients that must differ from it.
    """
    symmetric = case.weights.w_out
    feedback = symmetric if kind == 'symmetric' else case.feedback
    reference = self.autodiff(*case[:4], feedback)
    run, signal, stored, wrong = self.by_stored_traces(case, feedback, reference.y)
    equal = {f'autodiff, {kind} feedback': reference.gradients,
             f'hardcoded, {kind} feedback': self.hardcoded(*case[:4], feedback).gradients,
             f'adjoint, {kind} feedback': self.adjoint(*case[:4], feedback).gradients,
             f'stored traces, {kind} feedback': stored}
    if kind == 'random':
      wrong['symmetric instead of random feedback'] = self.hardcoded(*case[:4], symmetric).gradients[:2]
    return run, signal, equal, wrong


def main():
  report = verification.Report('numerical_verification_eprop_hardcoded_vs_autodiff')
  shown = None
  for network, dtype, device, seeds in verification.cases():
    gradients = Gradients(network, dtype)
    for seed in seeds:
      for kind in ('symmetric', 'random'):
        run, signal, equal, wrong = gradients(verification.draw_case(network, seed, dtype), kind)
        case = dict(device=device, dtype=dtype, network=str(network), seed=seed,
                    **verification.vital_signs(gradients.cell, run))
        report.add(case, run.z.numpy(), equal, wrong)
        if shown is None:
          e_bar = exp_filter(run.e, gradients.readout.kappa, gradients.readout.normalised)
          shown = (network, equal, run,
                   {'filtered trace\n$\\bar{e}_{ji}$': e_bar, 'learning\nsignal $L_j$': signal})
  passed = report.finish()
  verification.figure(report.path('figure.png'), *shown)
  plots.wait(FLAGS.show)
  sys.exit(0 if passed else 1)


if __name__ == '__main__':
  experiment.run_app(main)

"""Proves numerically that e-prop's factorization of the loss gradient, eq. (1), is exact.

Eq. (1) of Bellec, Scherr et al. (2020) says that a network's gradient is a sum over time of products of two factors,

  dE/dW_ji = sum_t dE/dz_j[t] e_ji[t]

The eligibility trace e_ji, eq. (25), is computed forward in time and knows nothing of the loss. The ideal learning
signal dE/dz_j is obtained by automatic differentiation with respect to the spike as it acts on the readout, on other
neurons and on the reset; its effect on the neuron's own threshold is already inside the trace. Nothing is approximated:
the sum has to equal the gradient of backpropagation through time (BPTT). E-prop's approximation comes later, where a
learning signal available online, eq. (4), takes the place of dE/dz_j.

  python numerical_verification_eprop_factorization_vs_BPTT.py [--n_seeds=5] [--smoke]

Random networks of LIF and ALIF neurons with a refractory period get random input, a loss at the outputs and a cost on
the firing rates, on every device present. The reference is BPTT by automatic differentiation. With it are compared
eq. (1) and the hand-written backward scan that training uses (`adjoint BPTT`). Shown is the largest absolute difference
over the largest entry of the gradient; `max relative error` is the worst of that in float64 (expected: a few 1e-15).
Float32 is for information, and so is by how much three gradients that are wrong on purpose are off.

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
import numpy as np
import plots
import tensorflow as tf

import eprop
from learner import Learner
from lsnn import exp_filter
from readout import Weights, loss_and_error, rate_cost

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(verification)


class Gradients:
  """The gradient of one kind of network in all ways, compiled once and used for every seed.

  Args:
    network: verification.Network.
    dtype: 'float32' or 'float64'.
  """

  def __init__(self, network, dtype):
    self.n_in = network.n_in
    self.cell, self.readout, self.regularisation = parts = network.parts(dtype)
    self.bptt = Learner(*parts, bptt=True, impl='autodiff')
    self.adjoint_bptt = Learner(*parts, bptt=True, impl='adjoint')
    self.eprop = Learner(*parts, impl='autodiff')
    self.activity = tf.function(lambda case: verification.activity(self.cell, case.x, case.weights))
    self.signal_times_trace = tf.function(lambda signal, e: verification.signal_times_trace(signal, e, self.n_in))

  @tf.function
  def ideal_learning_signal(self, case):
    """dE/dz [T, B, N] of eq. (1) by automatic differentiation; and dE/dw_out [N, K], presynaptic times error."""
    x, target, weight, weights, _ = case
    dz = tf.zeros([*x.shape[:2], self.cell.units], x.dtype)
    with tf.GradientTape() as tape:
      tape.watch(dz)
      z = eprop.Layer(self.cell).simulate(x, eprop.Weights(weights.w_in, weights.w_rec), dz=dz).z
      z_bar = exp_filter(z, self.readout.kappa, self.readout.normalised)
      task_loss, error = loss_and_error(self.readout.loss, z_bar @ weights.w_out, target, weight)
      loss = task_loss + rate_cost(self.regularisation, tf.reduce_mean(z, [0, 1]), z)
    return tape.gradient(loss, dz), eprop.presynaptic_product(z_bar, error)

  def with_own_adaptation(self, signal, psi):
    """dE/dz plus the path z -> own adaptation, which the trace contains already; [T, B, N]."""
    signal, psi = np.array(signal), psi.numpy()
    lam = np.zeros_like(psi[0])
    for t in reversed(range(len(psi))):
      signal[t] += lam
      lam = self.cell.rho * lam - self.cell.beta * psi[t] * signal[t]
    return tf.constant(signal)

  def __call__(self, case):
    """All gradients of a case.

    Returns:
      Activity and learning signal; dict of gradients that must be equal, the reference first; dict of
      gradients that must differ from it.
    """
    run = self.activity(case)
    signal, g_out = self.ideal_learning_signal(case)
    equal = {'BPTT by autodiff': self.bptt(*case).gradients,
             'eq. (1) with the true dE/dz': Weights(*self.signal_times_trace(signal, run.e), g_out),
             'adjoint BPTT': self.adjoint_bptt(*case).gradients}
    fast = run.psi[:, :, None, :] * run.eps_v
    wrong = {'own adaptation counted twice, in dE/dz and in the trace':
             self.signal_times_trace(self.with_own_adaptation(signal, run.psi), run.e),
             'trace without its slow component eps_a': self.signal_times_trace(signal, fast),
             "e-prop's learning signal, eq. (4), for dE/dz": self.eprop(*case).gradients[:2]}
    return run, signal, equal, wrong


def main():
  report = verification.Report('numerical_verification_eprop_factorization_vs_BPTT')
  shown = None
  for network, dtype, device, seeds in verification.cases():
    gradients = Gradients(network, dtype)
    for seed in seeds:
      run, signal, equal, wrong = gradients(verification.draw_case(network, seed, dtype))
      case = dict(device=device, dtype=dtype, network=str(network), seed=seed,
                  **verification.vital_signs(gradients.cell, run))
      report.add(case, run.z.numpy(), equal, wrong)
      if shown is None:
        shown = network, equal, run, {'learning\nsignal $dE/dz_j$': signal}
  passed = report.finish()
  verification.figure(report.path('figure.png'), *shown)
  plots.wait(FLAGS.show)
  sys.exit(0 if passed else 1)


if __name__ == '__main__':
  experiment.run_app(main)

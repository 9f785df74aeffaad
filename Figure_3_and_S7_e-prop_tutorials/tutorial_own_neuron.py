"""A neuron of your own learns pattern generation by e-prop: one class with its `step`, and nothing else to derive.

  python tutorial_own_neuron.py

The paper's neurons feel a presynaptic spike as a jump of the membrane potential. These have current-based synapses: a spike
adds to a synaptic current that decays with a time constant of its own, and the current charges the membrane. What e-prop and
BPTT need to know of them is derived from `step` automatically, which one call checks. Constants stand at the top; the flags
are those that every script has.
"""
from typing import NamedTuple

import experiment
from absl import flags
import keras
import numpy as np
import tensorflow as tf

import devices
import drawing
import eprop
import files
import palette
from drawing import plt
from experiment import rng
from files import UserError
from gradient_check import gradient_errors
from learner import Learner
from lsnn import Neuron, exp_decay, spike
from readout import RateCost, Readout
import replicas
from tasks import PatternGeneration
from trainer import Trainer, random_weights

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)

N_REC, N_ITER = 100, 500
TAU_OUT = 30.0            # ms
LEARNING_RATE = 0.003     # of Adam
RATE_COST = 30.0
TARGET_RATE = 0.01        # spikes per step
TOLERANCE = 1e-10         # of the gradient check, float64


class CurrentBasedNeuron(Neuron):
  """Leaky integrate-and-fire neurons with synaptic currents that last.

    i[t] = alpha_syn i[t-1] + x[t] @ w_in + z[t-1] @ w_rec
    v[t] = alpha v[t-1] + (1 - alpha) i[t] - z[t-1] thr
    z[t] = H(v[t] - thr)
  """

  class State(NamedTuple):
    i: tf.Tensor  # synaptic current
    v: tf.Tensor  # membrane potential
    z: tf.Tensor  # spikes

  def __init__(self, units, thr=0.4, tau=20.0, tau_syn=10.0, **kwargs):  # ms
    super().__init__(units, **kwargs)
    self.thr, self.alpha, self.alpha_syn = map(self.constant, (thr, exp_decay(tau), exp_decay(tau_syn)))

  def step(self, current, z_network, state):
    i = self.alpha_syn * state.i + current
    v = self.alpha * state.v + (1 - self.alpha) * i - self.thr * z_network
    return self.State(i, v, spike((v - self.thr) / self.thr))


def make_trainer():
  """The network in training on its task, with random feedback."""
  task = PatternGeneration(rng, n_steps=200 if FLAGS.smoke else 1000)
  generator = rng('weights')
  arrays = random_weights(generator, task.n_in, N_REC)
  arrays['w_out'], arrays['b_out'] = generator.standard_normal((2, N_REC, task.n_out)) / np.sqrt(N_REC)
  readout = Readout(np.dtype(FLAGS.dtype).type(exp_decay(TAU_OUT)), loss='squared_error')
  learner = Learner(CurrentBasedNeuron(N_REC, dtype=FLAGS.dtype), readout, RateCost(RATE_COST, TARGET_RATE))
  return Trainer(learner, task, arrays, 'random', keras.optimizers.Adam(LEARNING_RATE))


def train(run, trainer):
  """The iterations."""
  for iteration in run.iterations(10 if FLAGS.smoke else N_ITER, print_every=50):
    x, target = trainer.batch('train', iteration)
    result = trainer.update(x, target)
    train_loss, rate = float(result.task_loss), float(tf.reduce_mean(result.rate))
    run.guard(iteration, train_loss, rate)
    run.log(iteration, train_loss=train_loss, nmse=trainer.task.error(result.y.numpy(), target), rate_hz=1000 * rate)


@tf.function(jit_compile=True)
def simulate_trial(cell, x, weights):
  """Run of one trial with all States, and the traces of the synapses from input 0: e [T, 1, 1, N], eligibility vectors."""
  run = eprop.Layer(cell).simulate(x, eprop.Weights(weights.w_in, weights.w_rec), record_states=True)
  return run, *eprop.eligibility_traces(cell, tf.cast(x[:, :, :1], run.z.dtype), run.memory)


def draw(run, trainer, y):
  """Writes figure.npz and figure.png: the network and, of one synapse, the traces that were derived from `step`."""
  x, target, _ = trainer.task.shown()
  seen, e, eps = simulate_trial(trainer.learner.layer.cell, x, trainer.weights)
  post = int(np.abs(e[:, 0, 0]).max(0).argmax())
  record = dict(x=x[:, 0], z=seen.z[:, 0].numpy(), y=y[:, 0], target=target[:, 0], post=post, i=seen.states.i[:, 0, post].numpy(),
                v=seen.states.v[:, 0, post].numpy(), eps_v=eps.v[:, 0, 0, post].numpy(), e=e[:, 0, 0, post].numpy())
  files.write_npz(run.path('figure.npz'), record, compressed=True)
  figure, axes = plt.subplots(6, 1, sharex=True, figsize=(8, 8), layout='constrained', height_ratios=[1.6, 1.2, 0.8, 0.8, 0.8, 0.8])
  raster, output, *of_synapse = axes
  raster.plot(*np.nonzero(record['z']), '|', color=palette.SPIKE, markersize=3)
  raster.set(ylabel='neuron', ylim=(-1, N_REC))
  output.plot(record['target'], '--', color=palette.TARGET, label='target')
  output.plot(record['y'], color=palette.OUTPUT, label='output')
  output.set_ylabel('output')
  output.legend(frameon=False, fontsize=8, ncols=2, loc='lower right', bbox_to_anchor=(1, 0.95))
  of_synapse[0].set_title(f'synapse from input 0 to neuron {post}', fontsize=9, loc='left')
  for axis, name, label in zip(of_synapse, ('i', 'v', 'eps_v', 'e'), (
      'synaptic\ncurrent $i$', 'membrane\npotential $v$', r'$\partial v / \partial w$: $\epsilon_v$', 'eligibility\ntrace $e$')):
    axis.plot(record[name], color=palette.TRACE, lw=1)
    axis.set_ylabel(label)
  of_synapse[1].axhline(trainer.learner.layer.cell.thr, color=palette.CRITERION, lw=0.8, ls=':')
  of_synapse[-1].set(xlabel='time (ms)', xlim=(0, len(x)))
  for axis in axes:
    axis.spines[['top', 'right']].set_visible(False)
  figure.align_ylabels(axes)
  drawing.save(figure, run.path('figure.png'), FLAGS.show, dpi=130)


def main():
  with devices.scope(1):  # one trial
    errors = gradient_errors(CurrentBasedNeuron(20, dtype='float64'))
    print('gradient against autodiff, largest relative difference: ' + ', '.join(f'{k} {v:.1g}' for k, v in errors.items()))
    if not max(errors.values()) < TOLERANCE:
      raise UserError('the gradient of this neuron is wrong')
    trainer = make_trainer()
    run = experiment.Run('tutorial_own_neuron', ('train_loss', 'nmse', 'rate_hz'), trainer.variables())
    train(run, trainer)
    x, target = trainer.batch('test', 0)
    y, rate = trainer.evaluate(x, target)
    nmse = trainer.task.error(y, target)
    if replicas.leads():
      draw(run, trainer, y)
    run.finish(trainer.final_weights(), dict(nmse=nmse, gradient_errors=errors), [
        f'normalised mean squared error: {nmse:.4f} after {run.iteration} iterations',
        'published:  not in the paper', f'figure:     {run.path("figure.png")}'], experiment.signs_of_death(rate, y))
  drawing.wait(FLAGS.show)


if __name__ == '__main__':
  experiment.run_app(main)

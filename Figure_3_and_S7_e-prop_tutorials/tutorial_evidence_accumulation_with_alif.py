"""Figure 3: a network of LIF and ALIF neurons learns to accumulate evidence and to remember it, by e-prop or BPTT.

  python tutorial_evidence_accumulation_with_alif.py --eprop --feedback=random

Seven cues come from the left or the right. After a delay of a second a recall signal asks on which side there were
more. The published program reaches its criterion (7 % wrong decisions) after 200 to 500 iterations.
"""
import experiment
import program
from absl import flags
import keras
import numpy as np
import tensorflow as tf

import devices
import eprop
from eprop import FEEDBACK, IMPLEMENTATIONS, eligibility_traces, feedback_matrix
from experiment import rng
import files
from files import UserError
from initial_arrays import given_trials, load_initial_arrays
from learner import Learner
from lsnn import ALIF, exp_decay, exp_filter
import plots
import reference
import replicas
from readout import RateCost, Readout
from rewiring import Rewiring
from tasks import EvidenceAccumulation
from trainer import Trainer, random_weights

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)

# Learning
flags.DEFINE_bool('eprop', False, 'learn by e-prop instead of BPTT')
flags.DEFINE_enum('eprop_impl', 'adjoint', IMPLEMENTATIONS, 'how the gradient is computed; all give the same numbers')
flags.DEFINE_enum('feedback', 'symmetric', FEEDBACK, 'feedback matrix of the learning signals')
flags.DEFINE_float('readout_decay', 1e-3, 'decay of w_out and B per update, with adaptive feedback', 0.0, 1.0)
flags.DEFINE_enum('f_regularization_type', 'simple', ['simple', 'online'], 'rate cost: mean rate, or running mean')
flags.DEFINE_integer('n_batch', 64, 'trials per iteration', 1, 10 ** 5)
flags.DEFINE_integer('n_iter', 2000, 'largest number of iterations', lower_bound=1)
flags.DEFINE_float('learning_rate', 0.005, 'learning rate of Adam', lower_bound=0.0)
flags.DEFINE_float('stop_crit', 0.07, 'error at which training stops')
flags.DEFINE_float('reg_f', 1.0, 'strength of the rate regularisation', lower_bound=0.0)
flags.DEFINE_float('reg_rate', 10.0, 'target rate [Hz]', 0.0, 1e6)
# Network
flags.DEFINE_integer('n_regular', 50, 'LIF neurons', 0, 10 ** 5)
flags.DEFINE_integer('n_adaptive', 50, 'ALIF neurons', 0, 10 ** 5)
flags.DEFINE_float('tau_a', 2000.0, 'time constant of the threshold adaptation [ms]', 1e-3, 1e6)
flags.DEFINE_float('tau_v', 20.0, 'membrane time constant [ms]', 1e-3, 1e6)
flags.DEFINE_float('tau_out', 20.0, 'time constant of the readout [ms]', 1e-3, 1e6)
flags.DEFINE_float('thr', 0.6, 'baseline threshold', 1e-6, 1e6)
flags.DEFINE_float('beta', None, 'strength of the adaptation; default 1.7 (1 - rho) / (1 - alpha)', -1e6, 1e6)
flags.DEFINE_integer('n_ref', 5, 'refractory period [steps]', 0, 10 ** 4)
flags.DEFINE_float('dt', 1.0, 'length of a step [ms]', 0.01, 100.0)
flags.DEFINE_float('dampening_factor', 0.3, 'height of the pseudo-derivative', 0.0, 1e6)
flags.DEFINE_float('connectivity', 1.0, 'share of the synapses that exist; below 1: Deep R rewires the network', 1e-3, 1.0)
flags.DEFINE_bool('dale', False, "Dale's law: all synapses of a neuron have its sign; learned with Deep R")
flags.DEFINE_float('proportion_excitatory', 0.75, 'share of excitatory neurons and inputs, with --dale', 0.0, 1.0)
flags.DEFINE_float('l1', 0.01, 'Deep R: strength of the pull of weights towards 0', lower_bound=0.0)
flags.DEFINE_float('rewiring_temperature', 0.0, 'Deep R: temperature of the random walk of weights', lower_bound=0.0)
flags.DEFINE_list('export_reference', [], 'iterations whose every array is written, for other implementations, e.g. 1,2; by '
                  'e-prop and with --dtype=float64')
program.DEFINE_path('init_from', None, '.npz file with weights, and if you like inputs and labels, to start from')
# Output
flags.DEFINE_integer('print_every', 10, 'iterations between two printed lines', lower_bound=1)
flags.DEFINE_integer('validate_every', 10, 'iterations between two validations', lower_bound=1)
flags.DEFINE_bool('do_plot', True, 'draw the figures')
flags.DEFINE_integer('plot_every', 100, 'iterations between two drawings while training goes on', lower_bound=1)
flags.DEFINE_bool('log_gradient_angle', False, 'log the cosine between the e-prop gradient and that of BPTT')
flags.DEFINE_integer('gradient_angle_every', 10, 'iterations between two such cosines', lower_bound=1)
flags.DEFINE_bool('device_placement', False, 'let TensorFlow say where each operation runs')

N_CONFIRMATION_BATCHES, N_TEST_BATCHES = 8, 4
COLUMNS = ('train_loss', 'rate_loss', 'train_error', 'rate_hz', 'validation_error', 'confirmation_error',
           'cos_bptt_w_in', 'cos_bptt_w_rec', 'cos_bptt_w_out')
FREE_FLAGS = ('n_iter', 'print_every', 'do_plot', 'plot_every', 'device_placement')  # a resumed run may have other values
PUBLISHED = 'criterion reached after 200 to 500 iterations (random feedback, batch 32)'


def initial_weights(n_in, n_rec, n_out):
  """w_in, w_rec ~ N(0, 1) / sqrt(fan-in), w_out Glorot-uniform, and the feedback matrix of --feedback; a dict."""
  generator, limit = rng('weights'), np.sqrt(6 / (n_rec + n_out))
  weights = random_weights(generator, n_in, n_rec)
  weights['w_out'] = generator.uniform(-limit, limit, (n_rec, n_out))
  return dict(weights, b_out=feedback_matrix(FLAGS.feedback, weights['w_out'], generator))


def check_flags():
  """Finds combinations of flags that make no sense."""
  if FLAGS.n_regular + FLAGS.n_adaptive < 1:
    raise UserError('the network needs neurons: --n_regular + --n_adaptive must be at least 1')
  if not FLAGS.eprop and FLAGS.eprop_impl == 'hardcoded':
    raise UserError('--eprop_impl=hardcoded computes e-prop only: add --eprop')
  if FLAGS.init_from and (FLAGS.dale or FLAGS.connectivity < 1):
    raise UserError('--init_from gives the weights: leave --connectivity and --dale out')
  if not FLAGS.eprop and FLAGS.log_gradient_angle:
    raise UserError('--log_gradient_angle compares e-prop with BPTT: add --eprop')
  if min(FLAGS.tau_a, FLAGS.tau_v, FLAGS.tau_out, FLAGS.thr, FLAGS.dt) <= 0 or FLAGS.dt > 50:
    raise UserError('--tau_a, --tau_v, --tau_out and --thr must be positive, --dt between 0 and 50 ms')


def make_network():
  """The neurons, the first of them LIF, the others ALIF; the readout; the cost of the firing rates."""
  alpha, rho = exp_decay(FLAGS.tau_v, FLAGS.dt), exp_decay(FLAGS.tau_a, FLAGS.dt)
  beta = 1.7 * (1 - rho) / (1 - alpha) if FLAGS.beta is None else FLAGS.beta
  cell = ALIF(FLAGS.n_regular + FLAGS.n_adaptive, thr=FLAGS.thr, tau=FLAGS.tau_v, tau_adaptation=FLAGS.tau_a, dt=FLAGS.dt,
              beta=np.repeat([0, beta], [FLAGS.n_regular, FLAGS.n_adaptive]), n_refractory=FLAGS.n_ref,
              dampening_factor=FLAGS.dampening_factor, dtype=FLAGS.dtype)
  readout = Readout(np.dtype(FLAGS.dtype).type(exp_decay(FLAGS.tau_out, FLAGS.dt)), loss='cross_entropy')
  return cell, readout, RateCost(FLAGS.reg_f, FLAGS.reg_rate * FLAGS.dt / 1000, FLAGS.f_regularization_type)


def make_trainer():
  """The network in training on its task: the same trials for the same seed, or those of --init_from."""
  cell, readout, regularisation = make_network()
  task = EvidenceAccumulation(rng, FLAGS.n_batch, FLAGS.dt)
  if FLAGS.init_from:
    arrays = load_initial_arrays(FLAGS.init_from, task.n_in, cell.units, task.n_out, 'labels',
                                 needs_feedback=FLAGS.eprop and FLAGS.feedback != 'symmetric')
    if 'inputs' in arrays:
      if arrays['inputs'].shape[-2] < task.n_recall_steps:
        raise UserError(f'the inputs in {FLAGS.init_from} have {arrays["inputs"].shape[-2]} steps, fewer than the recall period')
      task = given_trials(FLAGS.init_from, arrays, task, FLAGS.n_iter, FLAGS.n_batch if FLAGS['n_batch'].present else None)
  else:
    arrays = initial_weights(task.n_in, cell.units, task.n_out)
  rewiring = None
  if FLAGS.dale or FLAGS.connectivity < 1:
    rewiring = Rewiring(rng('wiring'), task.n_in, cell.units, FLAGS.dtype, FLAGS.seed, FLAGS.connectivity, FLAGS.dale,
                        FLAGS.proportion_excitatory, FLAGS.learning_rate, FLAGS.l1, FLAGS.rewiring_temperature)
    arrays.update(rewiring.initial_weights)
  learner = Learner(cell, readout, regularisation, not FLAGS.eprop, FLAGS.eprop_impl, devices.n_shards(task.n_batch))
  # Typed constants: Keras rounds Python's floats to float32, which a float64 run would show.
  typed = np.dtype(FLAGS.dtype).type
  optimizer = keras.optimizers.Adam(FLAGS.learning_rate, typed(0.9), typed(0.999), epsilon=1e-8)
  return Trainer(learner, task, arrays, FLAGS.feedback, optimizer, FLAGS.readout_decay, rewiring)


def mean_error(trainer, stream, first, n):
  """Mean error on n batches of a stream from number `first` on."""
  errors = []
  for k in range(first, first + n):
    x, target = trainer.batch(stream, k)
    errors.append(trainer.task.error(trainer.evaluate(x, target)[0], target))
  return np.mean(errors)


def train(run, trainer, validation_error, exported):
  """The iterations, until the criterion is met: by a validation batch first, then by fresh batches drawn to confirm it."""
  data = experiment.prefetched(lambda k: trainer.batch('train', k), run.iteration + 1)
  for iteration in run.iterations(FLAGS.n_iter, FLAGS.print_every):
    x, target = next(data)
    angle = {}
    if FLAGS.log_gradient_angle and iteration % FLAGS.gradient_angle_every == 0:
      angle = trainer.gradient_angle(x, target)
    before = reference.snapshot(trainer.weights, trainer.feedback) if iteration in exported and replicas.leads() else None
    result = trainer.update(x, target)
    if before:
      reference.export(run.path(f'reference_{iteration}.npz'), iteration, trainer.learner, x, target, trainer.loss_weight, before,
                       trainer.weights, result, FLAGS.dt, target[-1].argmax(-1))
    train_loss, rate_loss = float(result.task_loss), float(result.rate_loss)
    rate_hz = float(tf.reduce_mean(result.rate)) * 1000 / FLAGS.dt
    run.guard(iteration, train_loss + rate_loss, rate_hz)
    confirmation_error = None
    validated = trainer.task.fresh and iteration % FLAGS.validate_every == 0
    if validated:
      validation_error.assign(mean_error(trainer, 'validation', iteration, 1))
    if validation_error.numpy() < FLAGS.stop_crit:
      confirmation_error = mean_error(trainer, 'confirmation', N_CONFIRMATION_BATCHES * iteration, N_CONFIRMATION_BATCHES)
      if confirmation_error < FLAGS.stop_crit:
        run.stop()
    run.log(iteration, train_loss=train_loss, rate_loss=rate_loss, train_error=trainer.task.error(result.y.numpy(), target),
            rate_hz=rate_hz, validation_error=float(validation_error.numpy()) if validated else None,
            confirmation_error=confirmation_error, **angle)
    if FLAGS.do_plot and iteration % FLAGS.plot_every == 0 and replicas.leads():
      draw(run, trainer)
  data.close()


@tf.function(jit_compile=True)
def simulate_trial(cell, readout, x, weights):
  """Run of one trial [T, 1, I] and its softmax output [T, 1, K]."""
  run = eprop.Layer(cell).simulate(x, eprop.Weights(weights.w_in, weights.w_rec))
  return run, tf.nn.softmax(exp_filter(run.z @ weights.w_out, readout.kappa, readout.normalised))


trace_recorder = tf.function(eligibility_traces, jit_compile=True)


def record_trial(trainer):
  """One trial as the figure shows it, a dict of arrays without the trial dimension."""
  x, target, shaded = trainer.task.shown()
  cell = trainer.learner.layer.cell
  run, output = simulate_trial(cell, trainer.learner.readout, x, trainer.weights)
  z, in_loss = run.z.numpy(), trainer.loss_weight.numpy()[:, 0] > 0
  error = np.where(in_loss, output.numpy()[:, 0] - target[:, 0], 0)
  # From each of the three neurons that spike most, the synapse with the largest slow (without ALIF: any) trace, onto
  # three different neurons, ALIF where there are enough: only there the slow factor takes part in the trace.
  pre = np.argsort(-z[:, 0].sum(0), kind='stable')[:3]
  e, eps = trace_recorder(cell, np.concatenate([np.zeros_like(z[:1]), z[:-1]])[:, :, pre], run.memory)
  eps_a, e = eprop.one_step_later(eps.a).numpy()[:, 0], e.numpy()[:, 0]
  strength = np.abs(eps_a if FLAGS.n_adaptive else e).max(0)
  strength[np.arange(len(pre)), pre] = -1  # no autapses
  if FLAGS.n_adaptive > len(pre):
    strength[:, :FLAGS.n_regular] = -1
  post = []
  for row in strength:
    row[post] = -1
    post.append(int(row.argmax()))
  return dict(x=x[:, 0], z=z[:, 0], output=output.numpy()[:, 0], label=target[-1, 0].argmax(),
              learning_signal=error @ trainer.feedback.numpy().T, pre=pre, post=post, e=e[:, range(len(pre)), post],
              eps_a=eps_a[:, range(len(pre)), post], n_regular=FLAGS.n_regular, dt=FLAGS.dt, n_recall_steps=in_loss.sum(),
              **shaded)


def draw(run, trainer):
  """Writes figure.npz and figure.png."""
  record = record_trial(trainer)
  files.write_npz(run.path('figure.npz'), record, compressed=True)
  plots.evidence_accumulation(record, run.path('figure.png'), FLAGS.show)


def closing_lines(iteration, stopped, test_error, tested_on):
  """How training ended and what the network can do now; a newcomer may take a test error above the criterion for a fault."""
  criterion = f'{100 * FLAGS.stop_crit:g} %'
  ended = (f'stopped after {iteration} iterations, with fewer than {criterion} wrong decisions on fresh trials (criterion)'
           if stopped else f'{iteration} iterations; the criterion of fewer than {criterion} wrong decisions was not met')
  above = f'; often above {criterion}, as training stops at a lucky moment' if stopped and test_error > FLAGS.stop_crit else ''
  return [f'training:   {ended}', f'test error: {100 * test_error:.1f} % wrong decisions on {tested_on}{above}',
          f'published:  {PUBLISHED}']


def finish(run, trainer):
  """The test after training, the figures, the closing lines."""
  task = trainer.task
  test_error = mean_error(trainer, 'test', 0, N_TEST_BATCHES if task.fresh else 1)
  y, rate = trainer.evaluate(*trainer.batch('test', 0))
  if not replicas.leads():
    return
  tested_on = f'{N_TEST_BATCHES * task.n_batch} other trials' if task.fresh else 'the given inputs'
  lines = closing_lines(run.iteration, run.stopped, test_error, tested_on)
  if FLAGS.do_plot:
    draw(run, trainer)
    plots.learning_curve(run.path('metrics.csv'), run.path('learning_curve.png'), 'train_error', 'wrong decisions',
                         FLAGS.stop_crit)
    lines.append(f'figure:     {run.path("figure.png")}')
  summary = dict(test_error=test_error, criterion_reached=run.stopped, stop_crit=FLAGS.stop_crit)
  run.finish(trainer.final_weights(), summary, lines, experiment.signs_of_death(rate, y))


def main():
  program.apply_smoke(n_iter=3, n_batch=4, validate_every=2)
  check_flags()
  tf.debugging.set_log_device_placement(FLAGS.device_placement)
  exported = reference.parse_iterations(FLAGS.export_reference, FLAGS.dtype, not FLAGS.eprop, FLAGS.n_iter)
  with devices.scope(None if FLAGS.init_from else FLAGS.n_batch):
    trainer = make_trainer()
    validation_error = tf.Variable(1.0, dtype=tf.float64)
    run = experiment.Run('tutorial_evidence_accumulation_with_alif', COLUMNS,
                         dict(trainer.variables(), validation_error=validation_error), FREE_FLAGS)
    train(run, trainer, validation_error, exported)
    finish(run, trainer)
  plots.wait(FLAGS.show)


if __name__ == '__main__':
  experiment.run_app(main)

"""Figure S7: a network of LIF neurons learns to generate patterns in time from frozen noise, by e-prop or BPTT.

  python tutorial_pattern_generation.py                    one output, random feedback
  python tutorial_pattern_generation.py --n_out=3 --feedback=symmetric

The target of each output is a sum of four sines. The network gets the same Poisson input in every iteration.
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
from initial_arrays import check_shape, given_trials, load_initial_arrays
from learner import Learner
from lsnn import LIF, exp_decay
import plots
import reference
import replicas
from readout import RateCost, Readout, Weights
from tasks import PatternGeneration
from trainer import Trainer, random_weights

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)

# Learning
flags.DEFINE_enum('eprop_or_bptt', 'eprop', ['eprop', 'bptt'], 'learning rule')
flags.DEFINE_enum('eprop_impl', 'adjoint', IMPLEMENTATIONS, 'how the gradient is computed; all give the same numbers')
flags.DEFINE_bool('random_feedback', True, 'random feedback matrix instead of the symmetric one')
flags.DEFINE_enum('feedback', None, FEEDBACK, 'feedback matrix of the learning signals; goes before --random_feedback')
flags.DEFINE_float('readout_decay', 1e-3, 'decay of w_out and B per update, with adaptive feedback', 0.0, 1.0)
flags.DEFINE_integer('n_batch', 1, 'trials per iteration', 1, 10 ** 5)
flags.DEFINE_integer('n_iter', 2000, 'number of iterations', lower_bound=1)
flags.DEFINE_float('learning_rate', 1e-4, 'learning rate of gradient descent', lower_bound=0.0)
flags.DEFINE_float('reg', 300.0, 'strength of the rate regularisation', lower_bound=0.0)
flags.DEFINE_float('reg_rate', 10.0, 'target rate [Hz]', 0.0, 1e6)
flags.DEFINE_bool('gradient_check', False, 'check the gradient against autodiff in float64; a difference ends the run')
flags.DEFINE_float('gradient_check_tolerance', 1e-10, 'largest difference, relative to the largest entry', lower_bound=0.0)
flags.DEFINE_bool('stop_z_gradients', True, 'published flag without effect: --eprop_or_bptt alone chooses the rule')
# Network and task
flags.DEFINE_integer('n_in', 100, 'input neurons', 1, 10 ** 5)
flags.DEFINE_integer('n_rec', 100, 'LIF neurons', 1, 10 ** 5)
flags.DEFINE_integer('n_out', 1, 'outputs', 1, 10 ** 5)
flags.DEFINE_float('f0', 50.0, 'rate of the input neurons [Hz]', 0.0, 1e6)
flags.DEFINE_integer('seq_len', 1000, 'length of the pattern [ms]', 1, 10 ** 6)
flags.DEFINE_float('tau_v', 30.0, 'membrane time constant [ms]', 1e-3, 1e6)
flags.DEFINE_float('tau_out', 30.0, 'time constant of the readout [ms]', 1e-3, 1e6)
flags.DEFINE_float('thr', 0.03, 'threshold', 1e-6, 1e6)
flags.DEFINE_float('dt', 1.0, 'length of a step [ms]', 0.01, 100.0)
flags.DEFINE_float('dampening_factor', 0.3, 'height of the pseudo-derivative', 0.0, 1e6)
flags.DEFINE_list('export_reference', [], 'iterations whose every array is written, for other implementations, e.g. 1,2; by '
                  'e-prop and with --dtype=float64')
program.DEFINE_path('init_from', None, '.npz file with weights, and if you like inputs and targets, to start from')
# Output
flags.DEFINE_integer('print_every', 10, 'iterations between two printed lines and gradient checks', lower_bound=1)
flags.DEFINE_bool('do_plot', True, 'draw the figures')
flags.DEFINE_integer('plot_every', 1000, 'iterations between two drawings while training goes on', lower_bound=1)
flags.DEFINE_bool('log_gradient_angle', False, 'log the cosine between the e-prop gradient and that of BPTT')
flags.DEFINE_integer('gradient_angle_every', 10, 'iterations between two such cosines', lower_bound=1)

COLUMNS = ('train_loss', 'rate_loss', 'nmse', 'rate_hz', 'cos_bptt_w_in', 'cos_bptt_w_rec', 'cos_bptt_w_out')
FREE_FLAGS = ('n_iter', 'print_every', 'do_plot', 'plot_every')  # a resumed run may have other values


def initial_weights(kind):
  """All weights ~ N(0, 1) / sqrt(fan-in), the feedback matrix like w_out; a dict."""
  generator = rng('weights')
  weights = random_weights(generator, FLAGS.n_in, FLAGS.n_rec)
  weights['w_out'] = generator.standard_normal((FLAGS.n_rec, FLAGS.n_out)) / np.sqrt(FLAGS.n_rec)
  scale = 1 if kind == 'symmetric' else 1 / np.sqrt(FLAGS.n_rec)
  return dict(weights, b_out=scale * feedback_matrix(kind, weights['w_out'], generator))


def make_network(dtype):
  """The neurons, the readout and the cost of the firing rates."""
  cell = LIF(FLAGS.n_rec, thr=FLAGS.thr, tau=FLAGS.tau_v, dt=FLAGS.dt, scale_input=True,
             dampening_factor=FLAGS.dampening_factor, dtype=dtype)
  readout = Readout(np.dtype(dtype).type(exp_decay(FLAGS.tau_out, FLAGS.dt)), loss='squared_error')
  return cell, readout, RateCost(FLAGS.reg / 2, FLAGS.reg_rate * FLAGS.dt / 1000)


def make_task(arrays):
  """Frozen noise and a sum of sines, or what arrays (of --init_from) give instead."""
  n_steps, n_in, n_out = round(FLAGS.seq_len / FLAGS.dt), arrays['w_in'].shape[0], arrays['w_out'].shape[1]
  target = None
  if 'targets' in arrays and 'inputs' not in arrays:
    check_shape(FLAGS.init_from, 'targets', arrays['targets'], (FLAGS.n_batch, n_steps, n_out))
    target = np.moveaxis(arrays['targets'], 0, 1)
  task = PatternGeneration(rng, n_steps, FLAGS.n_batch, n_in, n_out, FLAGS.f0, FLAGS.dt, target)
  if 'inputs' in arrays:
    task = given_trials(FLAGS.init_from, arrays, task, FLAGS.n_iter, FLAGS.n_batch if FLAGS['n_batch'].present else None)
  return task


def make_trainer():
  """The network in training on its task."""
  bptt, feedback = FLAGS.eprop_or_bptt == 'bptt', FLAGS.feedback or ('random' if FLAGS.random_feedback else 'symmetric')
  if FLAGS.init_from:
    n_in, n_out = (None if FLAGS[name].using_default_value else FLAGS[name].value for name in ('n_in', 'n_out'))
    needs_feedback = not bptt and feedback != 'symmetric'
    arrays = load_initial_arrays(FLAGS.init_from, n_in, FLAGS.n_rec, n_out, 'targets', needs_feedback)
  else:
    arrays = initial_weights(feedback)
  task = make_task(arrays)
  learner = Learner(*make_network(FLAGS.dtype), bptt, FLAGS.eprop_impl, devices.n_shards(task.n_batch))
  return Trainer(learner, task, arrays, feedback, keras.optimizers.SGD(FLAGS.learning_rate), FLAGS.readout_decay)


def check_gradient(trainer, x, target):
  """Compares the learner's gradient with autodiff in float64, for the weights as they are.

  Raises:
    UserError: they differ.
  """
  layer = trainer.learner.layer
  target, weight, feedback, *weights = (tf.cast(array, tf.float64) for array in (
      target, trainer.loss_weight, trainer.feedback, *trainer.weights))
  gradients, expected = (Learner(*make_network('float64'), layer.bptt, impl)(
      x, target, weight, Weights(*weights), feedback).gradients for impl in (layer.impl, 'autodiff'))
  for name, gradient, right in zip(Weights._fields, gradients, expected):
    difference = float(tf.reduce_max(tf.abs(gradient - right)) / tf.reduce_max(tf.abs(right)))
    if not difference <= FLAGS.gradient_check_tolerance:
      raise UserError(f'gradient check failed: {layer.impl} and autodiff differ by {difference:.2g} of the largest entry in '
                      f'{name}, more than {FLAGS.gradient_check_tolerance:g}')


def train(run, trainer, exported):
  """The iterations."""
  for iteration in run.iterations(FLAGS.n_iter, FLAGS.print_every):
    x, target = trainer.batch('train', iteration)
    if FLAGS.gradient_check and (iteration == 1 or iteration % FLAGS.print_every == 0):
      check_gradient(trainer, x, target)
    angle = {}
    if FLAGS.log_gradient_angle and iteration % FLAGS.gradient_angle_every == 0:
      angle = trainer.gradient_angle(x, target)
    before = reference.snapshot(trainer.weights, trainer.feedback) if iteration in exported and replicas.leads() else None
    result = trainer.update(x, target)
    if before:
      reference.export(run.path(f'reference_{iteration}.npz'), iteration, trainer.learner, x, target, trainer.loss_weight, before,
                       trainer.weights, result, FLAGS.dt)
    train_loss, rate_loss = float(result.task_loss), float(result.rate_loss)
    rate_hz = float(tf.reduce_mean(result.rate)) * 1000 / FLAGS.dt
    run.guard(iteration, train_loss + rate_loss, rate_hz)
    run.log(iteration, train_loss=train_loss, rate_loss=rate_loss, nmse=trainer.task.error(result.y.numpy(), target),
            rate_hz=rate_hz, **angle)
    if FLAGS.do_plot and iteration % FLAGS.plot_every == 0 and iteration < FLAGS.n_iter:
      y = trainer.evaluate(x, target)[0]
      if replicas.leads():
        draw(run, trainer, y)


@tf.function(jit_compile=True)
def simulate_trial(cell, x, weights):
  """Run of one trial [T, 1, I] and its pseudo-derivative [T, 1, N]."""
  run = eprop.Layer(cell).simulate(x, eprop.Weights(weights.w_in, weights.w_rec))
  return run, cell.psi(run.memory)


trace_recorder = tf.function(eligibility_traces, jit_compile=True)


def record_trial(trainer, y):
  """The first trial as the figure shows it, a dict of arrays; y: outputs [T, B, K]."""
  x, target, _ = trainer.task.shown()
  y, target, cell = y[:, 0], np.asarray(target[:, 0], y.dtype), trainer.learner.layer.cell
  run, psi = simulate_trial(cell, x, trainer.weights)
  z, psi = run.z.numpy(), psi.numpy()
  learning_signal = (y - target) @ trainer.feedback.numpy().T  # (4) [T, N]
  # The synapse shown: from the neuron that spikes most to the one (another) that is most often near its threshold.
  pre = int(z.sum((0, 1)).argmax())
  near = psi[:, 0].sum(0)
  near[pre] = -1
  post = int(near.argmax())
  arriving = np.concatenate([np.zeros_like(z[:1]), z[:-1]])[:, :, pre:pre + 1]
  e, eps = trace_recorder(cell, arriving, run.memory)
  return dict(x=x[:, 0], z=z[:, 0], y=y, target=target, pre=pre, post=post, pre_term=eps.v.numpy()[:, 0, 0, 0],
              post_term=psi[:, 0, post], e=e.numpy()[:, 0, 0, post], learning_signal=learning_signal[:, post],
              dt=FLAGS.dt)


def draw(run, trainer, y):
  """Writes figure.npz and figure.png."""
  record = record_trial(trainer, y)
  files.write_npz(run.path('figure.npz'), record, compressed=True)
  plots.pattern_generation(record, run.path('metrics.csv'), run.path('figure.png'), FLAGS.show)


def finish(run, trainer):
  """The error after training, the figure, the closing lines."""
  x, target = trainer.batch('test', 0)
  y, rate = trainer.evaluate(x, target)
  if not replicas.leads():
    return
  nmse = trainer.task.error(y, target)
  lines = [f'normalised mean squared error: {nmse:.4f} after {run.iteration} iterations', 'published:  not available']
  if FLAGS.do_plot:
    draw(run, trainer, y)
    lines.append(f'figure:     {run.path("figure.png")}')
  run.finish(trainer.final_weights(), dict(nmse=nmse), lines, experiment.signs_of_death(rate, y))


def main():
  program.apply_smoke(n_iter=20, seq_len=200)
  if min(FLAGS.tau_v, FLAGS.tau_out, FLAGS.thr, FLAGS.dt) <= 0 or FLAGS.seq_len < FLAGS.dt:
    raise UserError('--tau_v, --tau_out, --thr and --dt must be positive, --seq_len at least --dt')
  if FLAGS.eprop_or_bptt == 'bptt' and FLAGS.eprop_impl == 'hardcoded':
    raise UserError('--eprop_impl=hardcoded computes e-prop only, not --eprop_or_bptt=bptt')
  if FLAGS.eprop_or_bptt == 'bptt' and FLAGS.log_gradient_angle:
    raise UserError('--log_gradient_angle compares e-prop with BPTT: it needs --eprop_or_bptt=eprop')
  is_bptt = FLAGS.eprop_or_bptt == 'bptt'
  exported = reference.parse_iterations(FLAGS.export_reference, FLAGS.dtype, is_bptt, FLAGS.n_iter)
  with devices.scope(None if FLAGS.init_from else FLAGS.n_batch):
    trainer = make_trainer()
    run = experiment.Run('tutorial_pattern_generation', COLUMNS, trainer.variables(), FREE_FLAGS)
    train(run, trainer, exported)
    finish(run, trainer)
  plots.wait(FLAGS.show)


if __name__ == '__main__':
  experiment.run_app(main)

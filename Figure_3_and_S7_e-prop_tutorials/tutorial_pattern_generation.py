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

import eprop
from eprop import FEEDBACK, IMPLEMENTATIONS, cosine, eligibility_traces, feedback_matrix
from experiment import rng
import files
from files import UserError
from initial_arrays import batch_of_iteration, load_initial_arrays
from learner import Learner, apply_gradients
from lsnn import LIF, exp_decay
import plots
import reference
from readout import RateCost, Readout, Weights
from tasks import poisson_spikes, sum_of_sines

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)

# Learning
flags.DEFINE_enum('eprop_or_bptt', 'eprop', ['eprop', 'bptt'], 'learning rule')
flags.DEFINE_enum('eprop_impl', 'adjoint', IMPLEMENTATIONS, 'how the gradient is computed; all give the same numbers')
flags.DEFINE_bool('random_feedback', True, 'random feedback matrix instead of the symmetric one')
flags.DEFINE_enum('feedback', None, FEEDBACK, 'feedback matrix of the learning signals; goes before --random_feedback')
flags.DEFINE_float('readout_decay', 1e-3, 'decay of w_out and B per update, with adaptive feedback', 0.0, 1.0)
flags.DEFINE_integer('n_batch', 1, 'trials per iteration', lower_bound=1)
flags.DEFINE_integer('n_iter', 2000, 'number of iterations', lower_bound=1)
flags.DEFINE_float('learning_rate', 1e-4, 'learning rate of gradient descent', lower_bound=0.0)
flags.DEFINE_float('reg', 300.0, 'strength of the rate regularisation', lower_bound=0.0)
flags.DEFINE_float('reg_rate', 10.0, 'target rate [Hz]', lower_bound=0.0)
flags.DEFINE_bool('gradient_check', False, 'check the gradient against autodiff in float64; a difference ends the run')
flags.DEFINE_float('gradient_check_tolerance', 1e-10, 'largest difference, relative to the largest entry', lower_bound=0.0)
flags.DEFINE_bool('stop_z_gradients', True, 'published flag without effect: --eprop_or_bptt alone chooses the rule')
# Network and task
flags.DEFINE_integer('n_in', 100, 'input neurons', lower_bound=1)
flags.DEFINE_integer('n_rec', 100, 'LIF neurons', lower_bound=1)
flags.DEFINE_integer('n_out', 1, 'outputs', lower_bound=1)
flags.DEFINE_float('f0', 50.0, 'rate of the input neurons [Hz]', lower_bound=0.0)
flags.DEFINE_integer('seq_len', 1000, 'length of the pattern [ms]', lower_bound=1)
flags.DEFINE_float('tau_v', 30.0, 'membrane time constant [ms]')
flags.DEFINE_float('tau_out', 30.0, 'time constant of the readout [ms]')
flags.DEFINE_float('thr', 0.03, 'threshold')
flags.DEFINE_float('dt', 1.0, 'length of a step [ms]')
flags.DEFINE_float('dampening_factor', 0.3, 'height of the pseudo-derivative', lower_bound=0.0)
flags.DEFINE_list('export_reference', [], 'iterations whose every array is written, for other implementations, e.g. 1,2')
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
  draw = lambda n_pre, n_post: generator.standard_normal((n_pre, n_post)) / np.sqrt(n_pre)
  w_rec = draw(FLAGS.n_rec, FLAGS.n_rec)
  np.fill_diagonal(w_rec, 0)
  weights = dict(w_in=draw(FLAGS.n_in, FLAGS.n_rec), w_rec=w_rec, w_out=draw(FLAGS.n_rec, FLAGS.n_out))
  scale = 1 if kind == 'symmetric' else 1 / np.sqrt(FLAGS.n_rec)
  return dict(weights, b_out=scale * feedback_matrix(kind, weights['w_out'], generator))


def normalised_mse(y, target):
  """Mean squared error over the variance of the target, both over time and trials, averaged over outputs."""
  return float(np.mean(np.mean((y - target) ** 2, (0, 1)) / np.maximum(np.var(target, (0, 1)), 1e-12)))


def check_gradient(cell, learner, x, target, weight, weights, feedback):
  """Compares the learner's gradient with autodiff in float64, for the weights as they are.

  Raises:
    UserError: they differ.
  """
  double = lambda *tensors: [tf.cast(t, tf.float64) for t in tensors]
  kappa = np.float64(exp_decay(FLAGS.tau_out, FLAGS.dt))
  make = lambda impl: Learner(cell, learner.readout._replace(kappa=kappa), learner.regularisation, learner.layer.bptt, impl)
  target, weight, feedback = double(target, weight, feedback)
  arguments = (x, target, weight, Weights(*double(*weights)), feedback)
  names_and_pairs = zip(Weights._fields, make(learner.layer.impl)(*arguments).gradients, make('autodiff')(*arguments).gradients)
  for name, gradient, reference in names_and_pairs:
    difference = float(tf.reduce_max(tf.abs(gradient - reference)) / tf.reduce_max(tf.abs(reference)))
    if not difference <= FLAGS.gradient_check_tolerance:
      raise UserError(f'gradient check failed: {learner.layer.impl} and autodiff differ by {difference:.2g} of the largest '
                      f'entry in {name}, more than {FLAGS.gradient_check_tolerance:g}')


@tf.function(jit_compile=True)
def simulate(cell, x, weights):
  """Run of the first trial, and its pseudo-derivative [T, 1, N]."""
  run = eprop.Layer(cell).simulate(x, eprop.Weights(weights.w_in, weights.w_rec))
  return run, cell.psi(run.memory)


trace_recorder = tf.function(eligibility_traces, jit_compile=True)


def record_trial(cell, readout, weights, feedback, x, y, target):
  """The first trial as the figure shows it; x [T, 1, I], y and target [T, K]; a dict of arrays."""
  run, psi = simulate(cell, x, weights)
  z, psi = run.z.numpy(), psi.numpy()
  learning_signal = (y - target) @ feedback.numpy().T  # (4) [T, N]
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


def main():
  program.apply_smoke(n_iter=20, seq_len=200)
  if min(FLAGS.tau_v, FLAGS.tau_out, FLAGS.thr, FLAGS.dt) <= 0 or FLAGS.seq_len < FLAGS.dt:
    raise UserError('--tau_v, --tau_out, --thr and --dt must be positive, --seq_len at least --dt')
  if FLAGS.eprop_or_bptt == 'bptt' and FLAGS.eprop_impl == 'hardcoded':
    raise UserError('--eprop_impl=hardcoded computes e-prop only, not --eprop_or_bptt=bptt')
  if FLAGS.eprop_or_bptt == 'bptt' and FLAGS.log_gradient_angle:
    raise UserError('--log_gradient_angle compares e-prop with BPTT: it needs --eprop_or_bptt=eprop')
  with experiment.device():
    train()


def train():
  dtype = np.dtype(FLAGS.dtype)
  is_bptt = FLAGS.eprop_or_bptt == 'bptt'
  feedback_kind = FLAGS.feedback or ('random' if FLAGS.random_feedback else 'symmetric')

  exported = reference.parse_iterations(FLAGS.export_reference, FLAGS.dtype, is_bptt, FLAGS.n_iter)

  # Network and data
  if FLAGS.init_from:
    n_in, n_out = (None if FLAGS[name].using_default_value else FLAGS[name].value for name in ('n_in', 'n_out'))
    needs_feedback = not is_bptt and feedback_kind != 'symmetric'
    arrays = load_initial_arrays(FLAGS.init_from, n_in, FLAGS.n_rec, n_out, 'targets', needs_feedback)
  else:
    arrays = initial_weights(feedback_kind)
  n_in, n_out = arrays['w_in'].shape[0], arrays['w_out'].shape[1]
  given = 'inputs' in arrays
  n_steps = round(FLAGS.seq_len / FLAGS.dt)
  if given:
    n_batch, n_steps = arrays['inputs'].shape[-3:-1]
    if FLAGS['n_batch'].present and FLAGS.n_batch != n_batch:
      raise UserError(f'--n_batch is {FLAGS.n_batch}, but the inputs in {FLAGS.init_from} have {n_batch} trials')
    target = np.moveaxis(arrays['targets'], 0, 1)
  else:
    n_batch = FLAGS.n_batch
    frozen = poisson_spikes(rng('inputs'), n_steps, n_batch, n_in, FLAGS.f0, FLAGS.dt)
    if 'targets' in arrays:
      target = arrays['targets']
      if target.shape != (n_batch, n_steps, n_out):
        raise UserError(f'array targets in {FLAGS.init_from} has shape {list(target.shape)}, needed is '
                        f'{[n_batch, n_steps, n_out]}')
      target = np.moveaxis(target, 0, 1)
    else:
      target = np.repeat(sum_of_sines(rng('targets'), n_steps, n_out, FLAGS.dt)[:, None], n_batch, 1)

  def inputs(iteration):
    if not given:
      return frozen
    return np.moveaxis(batch_of_iteration(FLAGS.init_from, arrays['inputs'], min(iteration, FLAGS.n_iter), 3), 0, 1)

  make_cell = lambda cell_dtype: LIF(FLAGS.n_rec, thr=FLAGS.thr, tau=FLAGS.tau_v, dt=FLAGS.dt, scale_input=True,
                                     dampening_factor=FLAGS.dampening_factor, dtype=cell_dtype)
  cell = make_cell(FLAGS.dtype)
  weights = Weights(*(tf.Variable(arrays[name], dtype=dtype) for name in Weights._fields))
  feedback = tf.Variable(arrays.get('b_out', arrays['w_out']), dtype=dtype)
  if feedback_kind == 'symmetric':
    feedback = weights.w_out

  # Learning rule
  readout = Readout(dtype.type(exp_decay(FLAGS.tau_out, FLAGS.dt)), loss='squared_error')
  regularisation = RateCost(FLAGS.reg / 2, FLAGS.reg_rate * FLAGS.dt / 1000)
  n_shards = experiment.n_shards(n_batch)
  learner = Learner(cell, readout, regularisation, is_bptt, FLAGS.eprop_impl, n_shards)
  bptt = Learner(cell, readout, regularisation, bptt=True, n_shards=n_shards)
  target = tf.constant(target, dtype)
  loss_weight = tf.ones([n_steps, 1, 1], dtype)
  adaptive_feedback = feedback if not is_bptt and feedback_kind == 'adaptive' else None
  optimizer = keras.optimizers.SGD(FLAGS.learning_rate)
  optimizer.build([*weights] + ([] if adaptive_feedback is None else [adaptive_feedback]))

  @tf.function
  def update(x):
    result = learner(x, target, loss_weight, weights, feedback)
    apply_gradients(optimizer, result.gradients, weights, adaptive_feedback, FLAGS.readout_decay)
    return result

  @tf.function
  def gradient_angle(x):
    pairs = zip(learner(x, target, loss_weight, weights, feedback).gradients,
                bptt(x, target, loss_weight, weights, feedback).gradients)
    return [cosine(a, b) for a, b in pairs]

  # Loop
  variables = dict(weights._asdict(), b_out=feedback,
                   **{f'optimizer_{k}': variable.value for k, variable in enumerate(optimizer.variables)})
  run = experiment.Run('tutorial_pattern_generation', COLUMNS, variables, FREE_FLAGS)

  def draw(y):
    x = np.ascontiguousarray(inputs(FLAGS.n_iter)[:, :1])
    record = record_trial(cell, readout, weights, feedback, x, y[:, 0], target[:, 0].numpy())
    files.write_npz(run.path('figure.npz'), record, compressed=True)
    plots.pattern_generation(record, run.path('metrics.csv'), run.path('figure.png'), FLAGS.show)

  for iteration in run.iterations(FLAGS.n_iter, FLAGS.print_every):
    x = inputs(iteration)
    if FLAGS.gradient_check and (iteration == 1 or iteration % FLAGS.print_every == 0):
      check_gradient(make_cell('float64'), learner, x, target, loss_weight, weights, feedback)
    angle = {}
    if FLAGS.log_gradient_angle and iteration % FLAGS.gradient_angle_every == 0:
      angle = dict(zip(COLUMNS[-3:], map(float, gradient_angle(x))))
    before = reference.snapshot(weights, feedback) if iteration in exported else None
    result = update(x)
    if before:
      reference.export(run.path(f'reference_{iteration}.npz'), iteration, learner, x, target, loss_weight, before, weights,
                       result, FLAGS.dt)
    train_loss, rate_hz = float(result.task_loss), float(tf.reduce_mean(result.rate)) * 1000 / FLAGS.dt
    run.guard(iteration, train_loss + float(result.rate_loss), rate_hz)
    run.log(iteration, train_loss=train_loss, rate_loss=float(result.rate_loss),
            nmse=normalised_mse(result.y.numpy(), target.numpy()), rate_hz=rate_hz, **angle)
    if FLAGS.do_plot and iteration % FLAGS.plot_every == 0 and iteration < FLAGS.n_iter:
      draw(learner.evaluate(x, target, loss_weight, weights)[1].numpy())

  # Result
  y = learner.evaluate(inputs(FLAGS.n_iter), target, loss_weight, weights)[1].numpy()
  nmse = normalised_mse(y, target.numpy())
  lines = [f'normalised mean squared error: {nmse:.4f} after {run.iteration} iterations', 'published:  not available']
  if FLAGS.do_plot:
    draw(y)
    lines.append(f'figure:     {run.path("figure.png")}')
  run.finish(dict({name: w.numpy() for name, w in weights._asdict().items()}, b_out=feedback.numpy()), dict(nmse=nmse), lines,
             experiment.signs_of_death(outputs=y))
  plots.wait(FLAGS.show)


if __name__ == '__main__':
  experiment.run_app(main)

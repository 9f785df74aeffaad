"""Figures 4 and 5: a spiking network learns to play from pixels by reward-based e-prop.

  python main.py --level_name=catch --preset=laptop              learns within minutes
  python main.py --preset=pong
  python main.py --level_name=atari/pong                         the published values
  python main.py --preset=fishing_derby
  python main.py --mode=eval --checkpoint=FILE.npz --level_name=atari/pong
  python main.py --mode=chance --level_name=atari/pong           what actions at random score

Flags and presets: configuration.py. What an iteration is: training.py.
"""
import os

import experiment
from absl import flags
import tensorflow as tf

from agent import by_name
import checkpoints
import configuration
import devices
import files
from files import UserError
import machine
import reports
import training

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)
flags.adopt_module_key_flags(configuration)


def evaluate():
  """Plays games with saved weights, or with actions at random.

  Raises:
    UserError: the weights are of a training with other flags, or the folder is that of a training or in use.
  """
  other = configuration.other_than_of(FLAGS.checkpoint) if FLAGS.mode == 'eval' else ''
  if other:
    raise UserError(f'{FLAGS.checkpoint} is of a training with {other}: give the same flags to evaluate it')
  agent = configuration.make_agent(configuration.make_environment(1).n_actions)
  weights, n_frames = tf.nest.map_structure(tf.Variable, agent.initial_weights(experiment.rng('weights'))), 0
  if FLAGS.mode == 'eval':
    checkpoints.restore(by_name(weights), FLAGS.checkpoint)
    n_frames = training.frames_of(FLAGS.checkpoint, otherwise=float('inf'))
  else:
    training.assign(weights.policy, map(tf.zeros_like, weights.policy))
  folder = os.path.join(FLAGS.result_dir, 'main', FLAGS.run_name or ('chance' if FLAGS.mode == 'chance' else 'evaluation'))
  if os.path.exists(os.path.join(folder, 'config.json')):
    raise UserError(f'{folder} holds a training, whose files an evaluation would replace: give another --run_name')
  os.makedirs(folder, exist_ok=True)
  machine.Lock(folder)
  lines, summary, signs = reports.evaluate(folder, agent, weights, n_frames)
  files.write_json(os.path.join(folder, 'evaluation.json'), dict(summary, signs_of_death=signs))
  print('\n'.join([*lines, *experiment.death_lines(signs), f'results:    {folder}']))


def main():
  configuration.set_flags()
  if FLAGS.mode != 'train':
    with devices.one():
      evaluate()
    return
  with devices.scope(FLAGS.parallel_episodes, mirrored=False):
    training.train()


if __name__ == '__main__':
  experiment.run_app(main)

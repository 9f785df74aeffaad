"""Several workers compute what one computes; they end together, and say why."""
import csv
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

import compare_workers
import distribution
import forks
from kills import free_ports, is_gone, tf_config

ROOT = pathlib.Path(__file__).resolve().parent.parent

PROGRAM = '''
"""Sums over the replicas, in steps; what a training script does, in small."""
import os
import sys
import time

sys.path.insert(0, {folder!r})
import experiment
from absl import flags
import keras
import numpy as np
import tensorflow as tf

import devices
import distribution
import replicas

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(experiment)
flags.DEFINE_integer('n_iter', 3, '')
flags.DEFINE_integer('fails', -1, '')
flags.DEFINE_float('wait', 0, '')
BATCH = np.random.default_rng(0).standard_normal((7, 5))


def train():
  w = tf.Variable(np.ones((5, 5)))
  optimizer = keras.optimizers.Adam(0.1, np.float64(0.9), np.float64(0.999))
  optimizer.build([w])
  product = tf.function(lambda x, w: tf.matmul(x, x @ w, transpose_a=True), jit_compile=True)

  @replicas.function
  def update(x):
    gradient, n = replicas.all_sum((product(x, tf.convert_to_tensor(w)), tf.constant(len(x), tf.float64)))
    rows, k = replicas.in_order(tf.reduce_sum(x))
    replicas.apply(optimizer, [gradient], [w])
    return tf.reduce_sum(gradient ** 2), n, tf.cumsum(rows)[-1]

  variables = {{'w': w, **{{f'o{{k}}': v.value for k, v in enumerate(optimizer.variables)}}}}
  run = experiment.Run('program', ('loss', 'n', 'sum', 'total'), variables, ('n_iter', 'wait', 'fails'),
                       dict(corpus=os.environ.get('CORPUS', 'one')))
  for iteration in run.iterations(FLAGS.n_iter, 1):
    time.sleep(FLAGS.wait)
    if replicas.leads() == (FLAGS.fails == 0) and FLAGS.fails >= 0:
      raise experiment.UserError('this one fails')
    loss, n, total = update(replicas.each(7, lambda part: BATCH[part]))
    [seven], [one] = replicas.total([np.float32([7]), np.array([replicas.leads()])])
    run.log(iteration, loss=loss, n=n, sum=total, total=seven)
    assert one == 1
  run.finish(dict(w=w.numpy()), {{}}, ['done'])


def main():
  with devices.scope():
    train()


experiment.run_app(main)
'''


@pytest.fixture(scope='module')
def scripts(tmp_path_factory):
  """Function of a path: the script, for whose folder TensorFlow is imported once."""
  folder = tmp_path_factory.mktemp('program')
  (folder / 'program.py').write_text(PROGRAM.format(folder=os.path.dirname(distribution.__file__)))
  ready = {}

  def script(path=None):
    path = ROOT / path if path else folder / 'program.py'
    modules = path.parent if path.parent != folder else pathlib.Path(distribution.__file__).parent
    if modules not in ready:
      ready[modules] = forks.Script(path, modules)
    return ready[modules].also(path)

  yield script
  for one in ready.values():
    one.close()


@pytest.fixture(scope='module')
def script(scripts):
  return scripts()


def start(script, folder, *arguments, env=None, name='run', before=forks.FORKED):
  return script.start('--dtype=float64', f'--result_dir={folder}', f'--run_name={name}', *arguments, env=env, before=before)


def by_hand(script, folder, *arguments, name='run', n=2):
  """n workers that TF_CONFIG tells of each other."""
  ports = free_ports(n)
  return [start(script, folder, *arguments, name=name, env=tf_config(ports, k)) for k in range(n)]


def end(script, started, expect=0):
  """Waits for a process; returns what it printed on stdout and stderr."""
  ended = script.end(started)
  assert ended.code == expect and 'Traceback' not in ended.stderr, ended
  return ended.stdout, ended.stderr


def rows(folder, script='program', name='run'):
  """metrics.csv without columns of time, numbers or None."""
  with open(folder / script / name / 'metrics.csv', newline='') as file:
    return [{key: float(value) if value else None for key, value in row.items() if key != 'frames_per_s'}
            for row in csv.DictReader(file)]


def summary(folder, script, name):
  """Numbers of summary.json that do not depend on the machine: of figure 4, its evaluated games, too."""
  values = json.loads((folder / script / name / 'summary.json').read_text())
  return {key: value for key, value in values.items()
          if isinstance(value, (int, float)) and key not in ('wall_time_s', 'peak_memory_mb')}


def assert_equal(a, b, tolerance=1e-10):
  assert len(a) == len(b) > 0
  for x, y in zip(a, b):
    assert {key for key in x if x[key] is None} == {key for key in y if y[key] is None}
    for key in x:
      assert x[key] is None or abs(x[key] - y[key]) <= tolerance * max(1e-30, abs(x[key])), (key, x, y)


def test_workers_compute_what_one_computes_and_resume_with_any_number(script, tmp_path):
  """Three iterations of one worker; the same of two, by --n_workers and by TF_CONFIG; two more of one, or two, that go on."""
  going = [start(script, tmp_path, '--n_iter=5', name='one'),
           start(script, tmp_path, '--n_workers=2', name='two', before=''),  # whose workers import all anew, as a user's do
           *by_hand(script, tmp_path, '--n_iter=5', name='whole'), *by_hand(script, tmp_path, '--n_iter=3', name='by_hand')]
  _, (out, err), *_ = [end(script, process) for process in going]
  assert 'done' in out and out.count('iteration 3/3') == 1 and not err  # the leader's
  going = [start(script, tmp_path, '--n_iter=5', '--resume', name='two'),
           *by_hand(script, tmp_path, '--n_iter=5', '--resume', name='by_hand')]
  for process in going:
    end(script, process)
  metrics = [(tmp_path / 'program' / name / 'metrics.csv').read_text() for name in ('whole', 'by_hand')]
  assert metrics[0] == metrics[1]  # the same number of workers: to the last bit
  one = rows(tmp_path, name='one')
  for name in ('two', 'by_hand'):
    several = rows(tmp_path, name=name)
    for row in several:
      row['total'] = one[0]['total'] if row['total'] in (7, 14) else None
    assert_equal(several, one, 1e-12)
  assert all(row['n'] == 7 for row in one)


def wait_until(holds):
  until = time.monotonic() + 200
  while not holds() and time.monotonic() < until:
    time.sleep(0.02)
  assert holds()


@pytest.mark.parametrize('victim', ['leader', 'other', 'launcher'])
def test_killed_worker_ends_all_with_a_sentence(script, tmp_path, victim):
  process = start(script, tmp_path, '--n_workers=2', '--n_iter=10000', '--wait=0.02', '--checkpoint_seconds=0')
  folder = tmp_path / 'program' / 'run'
  wait_until((folder / 'checkpoints' / '3.npz').exists)
  workers = [int(pid) for pid in pathlib.Path(f'/proc/{process[0]}/task/{process[0]}/children').read_text().split()]
  assert len(workers) == 2
  os.kill(dict(leader=workers[0], other=workers[1], launcher=process[0])[victim], signal.SIGKILL)
  killed = time.monotonic()
  _, err = end(script, process, -signal.SIGKILL if victim == 'launcher' else 1)
  while not all(map(is_gone, workers)) and time.monotonic() - killed < 62:
    time.sleep(0.02)
  assert time.monotonic() - killed < 62
  assert ('signal 9' in err) == (victim != 'launcher')
  if victim != 'launcher':  # whose leader may or may not still have a terminal to say so on
    assert ('goes on after iteration' in err) == (victim == 'other')  # the leader says so itself
  done = int(max((folder / 'checkpoints').glob('*.npz'), key=lambda path: int(path.stem)).stem)
  end(script, start(script, tmp_path, f'--n_iter={done + 2}', '--resume'))
  assert [row['iteration'] for row in rows(tmp_path)] == list(range(1, done + 3))


def test_a_worker_that_fails_ends_all_and_is_heard(script, tmp_path):
  by_other, by_leader = (start(script, tmp_path, '--n_workers=2', f'--fails={k}', name=f'by_{k}') for k in (1, 0))
  _, err = end(script, by_other, 2)
  assert 'worker 1 of 2: error: this one fails' in err
  _, err = end(script, by_leader, 2)
  assert err.count('this one fails') == 1 and err.count('error') == 1


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_interrupted_once(script, tmp_path, number):
  """Ctrl-C and SIGTERM reach the launching process; the leader saves a checkpoint and says how to go on."""
  heard = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); '  # also where tests run in the background
  process = start(script, tmp_path, '--n_workers=2', '--n_iter=10000', '--wait=0.02', before=heard + forks.FORKED)
  metrics = tmp_path / 'program' / 'run' / 'metrics.csv'
  wait_until(lambda: metrics.exists() and metrics.read_text().count('\n') > 3)
  os.kill(process[0], number)
  _, err = end(script, process, 128 + number)
  assert 'interrupted; --resume --run_name=run goes on after iteration' in err
  assert len(rows(tmp_path)) == max(int(path.stem) for path in (tmp_path / 'program' / 'run' / 'checkpoints').glob('*.npz'))


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_interrupted_before_anything_is_begun(script, tmp_path, number):
  heard = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler)'
  process = start(script, tmp_path, '--n_workers=2', before=heard)
  children = pathlib.Path(f'/proc/{process[0]}/task/{process[0]}/children')
  wait_until(lambda: len(children.read_text().split()) == 2)
  workers = [int(pid) for pid in children.read_text().split()]
  os.kill(process[0], number)
  _, err = end(script, process, 128 + number)
  assert err == 'error: interrupted; --resume goes on from the last checkpoint, if there is one\n'
  wait_until(lambda: all(map(is_gone, workers)))  # one that was just being started notices it by its pipe
  assert not (tmp_path / 'program').exists()


def test_workers_that_are_not_told_the_same(script, tmp_path):
  """Both say what differs."""
  pairs = {'the same flags, and these differ: --n_iter\n': [(['--n_iter=3'], {}), (['--n_iter=4'], {})],
           'the same flags, and these differ: --seed, --dtype\n': [([], {}), (['--dtype=float32', '--seed=1'], {})],
           'the same data, and these differ: corpus\n': [([], {}), ([], dict(CORPUS='two'))]}
  for words, pair in pairs.items():
    ports = free_ports(2)
    going = [start(script, tmp_path, *flags, env=dict(tf_config(ports, k), **env)) for k, (flags, env) in enumerate(pair)]
    for process in going:
      assert end(script, process, 2)[1] == 'error: all workers need ' + words
  assert not (tmp_path / 'program').exists()


def test_surroundings_that_make_no_sense(scripts, script, tmp_path):
  """One sentence and exit code 2 from the process that a user has started."""
  ports = free_ports(2)
  impatient = 'import distribution; distribution.PATIENCE = 1'
  blind = 'import distribution; distribution.meet = lambda *_: None'  # to a program that takes the port a moment later
  with socket.create_server(('127.0.0.1', 0)) as taken:
    going = {'TF_CONFIG is no JSON': start(script, tmp_path, env=dict(TF_CONFIG='no JSON')),
             'TF_CONFIG names no worker': start(script, tmp_path, env=tf_config(ports, 2)),
             'not started by srun': start(script, tmp_path, '--cluster=slurm'),
             'of worker 0 cannot be used': start(script, tmp_path, env=tf_config([taken.getsockname()[1], ports[1]], 0)),
             'worker 0 cannot use its address': start(script, tmp_path, env=tf_config([taken.getsockname()[1], ports[1]], 0),
                                                      before=blind),
             'TF_CONFIG names the workers already (1)': start(script, tmp_path, '--n_workers=2', env=tf_config(ports[:1], 0)),
             'no device CPU:7 on this machine': start(script, tmp_path, '--n_workers=2', '--device=CPU:7'),
             'a batch of 7 cannot be shared by 8 workers': start(script, tmp_path, '--n_workers=8'),
             'a batch of 1 cannot be shared by 2 workers': start(
                 scripts('Figure_3_and_S7_e-prop_tutorials/tutorial_pattern_generation.py'), tmp_path, '--n_workers=2'),
             'has not come within 1 s': start(script, tmp_path, env=tf_config(ports, 0), before=impatient)}
    for words, process in going.items():
      _, err = end(script, process, 2)
      assert words in err and err.count('error: ') == err.count('\n') == 1, err
  assert not (tmp_path / 'tutorial_pattern_generation').exists()


def test_a_worker_that_ends_while_they_come_together(script, tmp_path):
  """The other, which TensorFlow holds, ends all the same, with a sentence."""
  ports = free_ports(2)
  with socket.create_server(('127.0.0.1', ports[1])) as other:
    other.settimeout(60)
    process = start(script, tmp_path, env=tf_config(ports, 0), before='import distribution; distribution.PATIENCE = 4')
    other.accept()[0].close()
  _, err = end(script, process, 1)
  assert 'error: the workers did not come together within 4 s' in err


# ---------------------------------------------------------------------------------------------------------------------
# The figures


def test_a_rule_of_figure_3_on_two_devices():
  """One of them on two replicas in one process, as with MirroredStrategy on two GPUs; that program alone takes all."""
  done = subprocess.run([sys.executable, str(ROOT / 'tests' / 'replicas_of_figure_3.py'), 'adaptive'], timeout=500,
                        capture_output=True, text=True, check=False)
  assert done.returncode == 0 and float(done.stdout.split()[-1]) < 1e-10, done.stdout + done.stderr


@pytest.mark.parametrize('name', ['figure 3: adaptive feedback', 'figure 4: avg_all', 'figure 4: clipped updates'])
def test_scripts(scripts, tmp_path, name):
  path, flags = compare_workers.CASES[name]
  script = scripts(path)
  going = [start(script, tmp_path, f'--n_workers={n}', *flags, name=name) for name, n in (('one', 1), ('two', 2))]
  for process in going:
    end(script, process)
  one, two = (rows(tmp_path, pathlib.Path(path).stem, name) for name in ('one', 'two'))
  assert_equal(two, one)
  assert len(one) >= 5
  assert_equal(*([summary(tmp_path, pathlib.Path(path).stem, name)] for name in ('two', 'one')))
  one, two = ([path.name for path in (tmp_path / pathlib.Path(path).stem / name).iterdir()] for name in ('one', 'two'))
  assert sorted(one) == sorted(two)


def test_speech(scripts, tmp_path):
  """Drop-out, noise and the rate cost, of a network that reads batches of three utterances, the last of an epoch one."""
  corpus = compare_workers.make_corpus(tmp_path)
  path, flags = compare_workers.CASES['figure 2: framewise LSNN, adaptive feedback']
  script, stem = scripts(path), pathlib.Path(path).stem
  going = [start(script, tmp_path, f'--dataset={corpus}', *flags, name='one'),
           *by_hand(script, tmp_path, f'--dataset={corpus}', *flags, name='two')]
  for process in going:
    end(script, process)
  assert_equal(rows(tmp_path, stem, 'two'), rows(tmp_path, stem, 'one'))

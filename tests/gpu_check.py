"""What gpu_check.sh runs: verifications, gradient tests and one iteration of each figure, on CPU and GPU.

Each part has a process of its own, so that one that fails, or finds no memory, costs only itself.
"""
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIGURE_3 = ROOT / 'Figure_3_and_S7_e-prop_tutorials'
SECONDS = 60  # for one part; 150 for the tests
VERIFICATIONS = ('numerical_verification_eprop_factorization_vs_BPTT', 'numerical_verification_eprop_hardcoded_vs_autodiff')
SMALL_DIVISOR = 16  # of batches, where there is no GPU
N_TIMED = 3


def evidence(n_batch, dtype='float32'):
  """Figure 3: a Trainer of evidence accumulation by random e-prop, and a batch."""
  sys.path.insert(0, str(FIGURE_3))
  import tutorial_evidence_accumulation_with_alif as tutorial
  import experiment
  tutorial.FLAGS(['gpu_check', '--eprop', '--feedback=random', f'--n_batch={n_batch}', f'--dtype={dtype}',
                  f'--device={DEVICE}'])
  experiment.keras.config.set_floatx(dtype)
  trainer = tutorial.make_trainer()
  return trainer, trainer.batch('train', 1)


def figure_3(n_batch):
  trainer, batch = evidence(n_batch)
  return lambda: float(trainer.update(*batch).task_loss)


def figure_2(n_batch):
  import benchmark_speech
  return benchmark_speech.make_speech_iteration('lsnn', 'eprop', 'adjoint', n_batch=n_batch)


def figure_4(n_batch):
  import benchmark_atari
  program = benchmark_atari.Atari(n_envs=n_batch)
  played = program.play()
  return lambda: program.learn(played).losses.policy.numpy()


# What is timed: function, size of the batch.
TIMED = {'figure 3, batch 64': (figure_3, 64), 'figure 3, batch 256': (figure_3, 256), 'figure 3, batch 1024': (figure_3, 1024),
         'figure 2, batch 32': (figure_2, 32), 'figure 4, learner, 32 games': (figure_4, 32)}


def child_timed(name, device, small):
  """Seconds of an iteration of TIMED[name], and peak memory of the GPU."""
  import tensorflow as tf
  function, n_batch = TIMED[name]
  with tf.device(device):
    iterate = function(max(2, n_batch // (SMALL_DIVISOR if small else 1)))
    start = time.perf_counter()
    iterate()
    first, seconds = time.perf_counter() - start, []
    for _ in range(1 if small else N_TIMED):
      start = time.perf_counter()
      iterate()
      seconds.append(time.perf_counter() - start)
  peak = tf.config.experimental.get_memory_info(device)['peak'] / 2 ** 20 if device.startswith('GPU') else None
  return dict(seconds=statistics.median(seconds), seconds_with_compilation=first, peak_gpu_mb=peak)


def child_gradients(path, device, small):
  """Writes figure 3's gradients in float64 to a file."""
  import numpy as np
  import tensorflow as tf
  with tf.device(device):
    trainer, (x, target) = evidence(2 if small else 16, 'float64')
    result = trainer.learner(x, target, trainer.loss_weight, trainer.weights, trainer.feedback)
    np.savez(path, loss=result.task_loss, **{name: g.numpy() for name, g in result.gradients._asdict().items()})
  return {}


def run(command, seconds=SECONDS):
  """Runs a command; returns its exit code (None: it took too long), and what it printed."""
  try:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, errors='replace',
                          timeout=seconds, cwd=ROOT, check=False)
    return done.returncode, done.stdout, done.stderr
  except subprocess.TimeoutExpired:
    return None, '', f'took more than {seconds} s'


def in_child(function, *arguments):
  """What a child_... function returns in a process of its own, or dict(error=...)."""
  code, out, err = run([__file__, function, *arguments])
  if code == 0:
    return json.loads(out.splitlines()[-1])
  return dict(error=(err.strip().splitlines() or ['no output'])[-1][:300])


def gpus():
  """Names of the GPUs that TensorFlow sees, and what it says if there is none."""
  code = 'import tensorflow as tf; print(*[tf.config.experimental.get_device_details(d).get("device_name", d.name) ' \
         'for d in tf.config.list_physical_devices("GPU")], sep="; ")'
  exit_code, out, err = run(['-c', code])
  return [name for name in out.strip().split('; ') if name], err if exit_code else ''


def gradients_agree(folder, small):
  """Largest difference between the gradients on CPU and GPU, relative to the largest entry."""
  import numpy as np
  paths = [folder / f'gpu_check_{device[:3]}.npz' for device in ('CPU:0', 'GPU:0')]
  for path, device in zip(paths, ('CPU:0', 'GPU:0')):
    result = in_child('child_gradients', path, device, small)
    if 'error' in result:
      return result
  a, b = (dict(np.load(path)) for path in paths)
  for path in paths:
    path.unlink()
  return dict(largest_relative_difference=max(float(np.abs(a[k] - b[k]).max() / np.abs(a[k]).max()) for k in a))


def main():
  started = time.monotonic()
  names, trouble = gpus()
  small, devices = not names, ['CPU:0', *['GPU:0'] * bool(names)]
  results = dict(gpus=names, stand_in=small, python=platform.python_version(), machine=platform.machine(), trouble=trouble)
  print(f'GPU: {"; ".join(names)}' if names else
        'no GPU here: the parts run at a small size on the processor, to prove this script; their times say nothing', flush=True)
  folder = pathlib.Path.cwd()
  for name in VERIFICATIONS:
    n_seeds = ['--n_seeds=1'] if small else []
    code, out, err = run([ROOT / f'{name}.py', *n_seeds, f'--result_dir={folder / "gpu_check_results"}'], 3 * SECONDS)
    results[name] = dict(passed=code == 0, said=(out.strip() or err.strip()).splitlines()[-1:])
    print(f'{name}: {"passed" if code == 0 else "FAILED"}', flush=True)
  if names:
    results['gradients'] = gradients_agree(folder, small)
    print('gradients on CPU and GPU:', results['gradients'], flush=True)
  tests = ['tests/test_ladder.py', *['tests/test_eprop.py', 'tests/test_learning_signals.py'] * bool(names)]
  code, out, err = run(['-m', 'pytest', '-q', '-x', *tests, *['-k', 'hardcoded'] * small], 150)
  results['gradient_tests'] = dict(passed=code == 0, said=(out.strip() or err.strip()).splitlines()[-1:])
  print('gradient tests:', *results['gradient_tests']['said'], flush=True)
  results['timed'] = {}
  for name in TIMED:
    row = results['timed'][name] = {device: in_child('child_timed', name, device, small) for device in devices}
    of = lambda numbers: numbers.get('error') or f'{numbers["seconds"]:.3f} s' + (
        f', {numbers["peak_gpu_mb"]:.0f} MB' if numbers['peak_gpu_mb'] else '')
    print(f'{name:30s}', '   '.join(f'{device[:3]} {of(numbers)}' for device, numbers in row.items()), flush=True)
  results['minutes'] = round((time.monotonic() - started) / 60, 1)
  (folder / 'gpu_check.json').write_text(json.dumps(results, indent=2) + '\n')
  print(f'{results["minutes"]} minutes; please send gpu_check.json with what you saw')


if __name__ == '__main__':
  if sys.argv[1:2] and sys.argv[1].startswith('child_'):
    name, first, DEVICE, small = sys.argv[1:]
    sys.path.insert(0, str(ROOT / 'tests'))
    print(json.dumps(globals()[name](first, DEVICE, small == 'True')))
  else:
    main()

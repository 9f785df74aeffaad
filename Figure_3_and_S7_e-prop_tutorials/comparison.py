"""Runs of other scripts side by side, for comparisons of learning rules over seeds: started, resumed, ended, collected.

A comparison's runs lie in <result_dir>/comparison/, each with the command it was asked for (request.json) and what it
printed (log.txt). Stopped at any moment, the same command goes on: a finished run is kept if its command and its data are the
same as now; any other one is called with --resume, and goes on or refuses. No TensorFlow.
"""
import contextlib
import os
import subprocess
import sys
import time
from typing import NamedTuple

import program
from absl import flags
import numpy as np

import files
import machine
from files import UserError

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(program)

HERE = os.path.dirname(os.path.abspath(__file__))
flags.DEFINE_list('rules', None, 'learning rules; default: all, or those that the script names')
flags.DEFINE_integer('n_seeds', 5, 'seeds 0, 1, ... of each rule', 1, 10 ** 4)
flags.DEFINE_integer('n_parallel', 2, 'runs side by side, each on its share of the cores', lower_bound=1)
flags.DEFINE_bool('replot', False, 'draw the figures from the CSV without training')
flags.DEFINE_bool('collect', False, 'tables and figures of the runs that have finished, without training')
program.DEFINE_path('out', os.path.join(HERE, 'figures'), 'folder of the CSV and the figures; by default that of the runs if a '
                    'flag makes them others than those that figures/ shows')

WITHOUT_MEANING = ('seed', 'run_name', 'resume')  # runs have their own
PASSED_ON = ('dtype', 'device', 'checkpoint_seconds')
SECONDS_TO_END = 60  # a run gets to finish its iteration and save it when the comparison is interrupted


class Job(NamedTuple):
  """One run.

  Attributes:
    label: what it is called in messages, 'bptt seed 0'.
    script: its script, a file beside this one, without '.py'.
    folder: <result_dir>/<script>/<run_name>.
    arguments: list of str, its flags.
    data: what identifies its data, where there are any.
  """
  label: str
  script: str
  folder: str
  arguments: list
  data: object = None

  def path(self, name):
    """Path of a file of the run."""
    return os.path.join(self.folder, name)

  @property
  def request(self):
    """What request.json says, which a finished run must have been asked for."""
    return files.as_json(dict(script=self.script, arguments=sorted(self.arguments), data=self.data))

  def finished(self):
    """Whether there is a finished run of the same request."""
    try:
      return os.path.exists(self.path('summary.json')) and files.read_json(self.path('request.json')) == self.request
    except UserError:
      return False


def prepare(known_rules, changing=()):
  """Refuses what a comparison cannot do; makes the folder --out unless it only replots.

  Args:
    known_rules: names that --rules may have.
    changing: names of flags, beside --dtype, that change the runs. Where one is given, --out is by default the folder of the
      runs, so that the results that come with the code stay.
  """
  program.refuse(WITHOUT_MEANING)
  given = [f'--{name}' for name in ('dtype', *changing) if FLAGS[name].present]
  if given and not FLAGS['out'].present and not FLAGS.smoke:
    FLAGS.out = folder_of()
    print(f'{", ".join(given)}: other runs than those in figures/; table and figures go to {FLAGS.out}', flush=True)
  if FLAGS.rules is not None:
    choose('rule', FLAGS.rules, known_rules)
  if os.path.exists(FLAGS.out) and not os.path.isdir(FLAGS.out):
    raise UserError(f'--out={FLAGS.out} is a file, and must be a folder')
  if not FLAGS.replot:
    os.makedirs(FLAGS.out, exist_ok=True)


def choose(what, names, known):
  """Raises UserError if there is no name, or one of them is unknown, or comes twice."""
  if not names:
    raise UserError(f'--{what}s names no {what}')
  for name in names:
    if name not in known:
      raise UserError(f'unknown {what} {name}; there are {", ".join(known)}')
    if names.count(name) > 1:
      raise UserError(f'{what} {name} is given twice')


def folder_of(*names):
  """The folder of a comparison's runs in --result_dir."""
  return os.path.join(os.path.abspath(FLAGS.result_dir), 'comparison' + ('_smoke' if FLAGS.smoke else ''), *names)


def common_arguments():
  """Flags of the comparison that each run gets as well, as they were given."""
  return [f'--{name}={FLAGS[name].value}' for name in PASSED_ON if FLAGS[name].present] + ['--smoke'] * FLAGS.smoke


def train(jobs, collect):
  """Runs what is not finished yet, --n_parallel at a time, and collects after each run; with --collect, collects alone.

  Each run keeps to its share of the cores: two networks on a core each train faster than one after the other on both.

  Args:
    jobs: list of Job.
    collect: function of a list of finished Jobs that writes the tables.

  Returns:
    Whether all are finished that were to be trained.

  Raises:
    UserError: another comparison works in the same folder, or no run has finished.
  """
  program.if_interrupted(lambda: 'the same command goes on with what is missing')
  if not jobs:
    raise UserError('there is nothing to train: the flags name no rule, network or seed')
  if not FLAGS.collect:
    top = os.path.commonpath([os.path.dirname(job.folder) for job in jobs])
    os.makedirs(top, exist_ok=True)
    machine.Lock(top)
  finished = [job for job in jobs if job.finished()]
  pending = [job for job in jobs if job not in finished]
  failed = {}
  if finished:
    collect(finished)
  print(f'{len(finished)}/{len(jobs)} runs ended, {len(pending)} missing', flush=True)
  if FLAGS.collect and pending:
    print(f'missing: {", ".join(job.label for job in pending)}', flush=True)
  for job, error in _side_by_side([] if FLAGS.collect else pending):
    if error:
      failed[job.label] = error
      print(f'warning: {job.label} {error}', file=sys.stderr, flush=True)
    else:
      finished = [other for other in jobs if other in finished or other == job]
      collect(finished)
    print(f'{len(finished) + len(failed)}/{len(jobs)} runs ended, {len(jobs) - len(finished)} missing', flush=True)
  if not finished:
    raise UserError('no run has finished: see above')
  for job in finished:
    for sign in files.read_json(job.path('summary.json')).get('signs_of_death') or []:
      print(f'warning: {job.label}: {sign}: this network has died, its numbers are no result', file=sys.stderr, flush=True)
  return not failed


def kept(path, read, key, jobs, job_of):
  """Rows of a table that are of other runs than those asked for: they stay in it, and this says so.

  Args:
    path: of the CSV, which need not be there.
    read: function of the path that returns its rows, dicts of str.
    key: columns that name a run, the last of which is its seed.
    jobs: dict, key of a run (tuple): its Job, of the runs asked for.
    job_of: function of such a key that returns what its Job would be.

  Returns:
    list of dicts of str.

  Raises:
    UserError: the table cannot be read; or it has other seeds of what is asked for, which would be averaged with these,
      and no run of the same command tells that they belong together.
  """
  if not os.path.exists(path):
    return []
  asked = {tuple(map(str, run)) for run in jobs}
  rows = [row for row in read(path) if tuple(row[name] for name in key) not in asked]
  others = []
  for *names, seed in dict.fromkeys(tuple(row[name] for name in key) for row in rows):
    if (*names,) not in {run[:-1] for run in asked}:
      others.append(' '.join(names))
    elif not job_of(*names, int(seed)).finished():
      raise UserError(f'{path} has seed {seed} of {" ".join(names)}, which this command does not ask for and of which there is no '
                      f'run with its flags in {FLAGS.result_dir}: give a larger --n_seeds, or another --out')
  if others:
    print('kept in the table from earlier commands, whose flags are not compared: ' + ', '.join(dict.fromkeys(others)), flush=True)
  return rows


def results_of(job, numbers, columns, filled=()):
  """What a finished run has written.

  Args:
    job: Job.
    numbers: names of numbers that its summary.json must have.
    columns: of numbers in its metrics.csv.
    filled: those of them that each row must have.

  Returns:
    summary.json, dict; rows of metrics.csv, list of dicts of str.

  Raises:
    UserError: a file is missing or damaged, or the two are not of the same iterations.
  """
  summary = files.read_json(job.path('summary.json'), ('iterations', *numbers), ('iterations', *numbers))
  metrics = files.read_metrics(job.path('metrics.csv'), columns, filled)
  if len(metrics) != summary['iterations']:
    raise UserError(f'{job.path("metrics.csv")} ends at iteration {len(metrics)}, the run at {summary["iterations"]}: it is '
                    'damaged; remove its folder to train it anew')
  return summary, metrics


def end(complete):
  """Says at the end what is missing; exit code 1 if something is."""
  if not complete:
    print('error: runs are missing, see above; the same command goes on with them', file=sys.stderr, flush=True)
    sys.exit(1)


def _side_by_side(jobs):
  """Runs jobs, each on its share of the cores and on a GPU of its own, where there are any; yields each with None or what went
  wrong. Ends those that run if it is interrupted itself."""
  cores = machine.cores()
  gpus = [] if (FLAGS.device or '').startswith('CPU') else machine.gpus()
  n_parallel = max(1, min(FLAGS.n_parallel, len(cores), len(jobs), len(gpus) or len(jobs)))
  shares = [(cores[k::n_parallel], gpus[k:k + 1]) for k in range(n_parallel)]
  pending, running = list(jobs), []
  try:
    while pending or running:
      while pending and shares:
        job, share = pending.pop(0), shares.pop()
        running.append((job, share, *_start(job, *share)))
      for one in list(running):
        job, share, process, log_size = one
        if process.poll() is not None:
          running.remove(one)
          shares.append(share)
          yield job, _what_went_wrong(job, process.returncode, log_size)
      time.sleep(0.05)
  finally:
    _end_all([process for _, _, process, _ in running])


def _start(job, share, gpus):
  """The process of a run, in a group of its own, so that Ctrl-C reaches it through this process only; the size of its log."""
  os.makedirs(job.folder, exist_ok=True)
  parent, name = os.path.split(job.folder)
  resume = ['--resume'] if os.path.exists(job.path('config.json')) else []
  argv = [os.path.join(HERE, f'{job.script}.py'), f'--result_dir={os.path.dirname(parent)}', f'--run_name={name}',
          *job.arguments, *resume]
  code = f'import sys; sys.path.insert(0, {HERE!r}); import machine; machine.run_script({share}, sys.argv[1:])'
  group = {'creationflags': subprocess.CREATE_NEW_PROCESS_GROUP} if sys.platform == 'win32' else {'start_new_session': True}
  env = dict(os.environ, CUDA_VISIBLE_DEVICES=gpus[0]) if gpus else None
  with open(job.path('log.txt'), 'ab') as log:
    return subprocess.Popen([sys.executable, '-c', code, *argv], env=env, stdin=subprocess.PIPE, stdout=log, stderr=log,
                            **group), log.tell()


def _what_went_wrong(job, exit_code, log_size):
  """None for a run that has finished, whose request is noted; else the last error in its log after the first bytes."""
  if exit_code == 0 and os.path.exists(job.path('summary.json')):
    files.write_json(job.path('request.json'), job.request)
    return None
  with open(job.path('log.txt'), 'rb') as log:
    log.seek(log_size)
    errors = [line for line in log.read().decode(errors='replace').splitlines() if line.startswith('error: ')]
  return f'ended with exit code {exit_code}: {errors[-1] if errors else "see " + job.path("log.txt")}'


def _end_all(processes):
  """Asks processes to end, and ends those that do not."""
  for process in processes:
    process.terminate()
  try:
    until = time.monotonic() + SECONDS_TO_END
    for process in processes:
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0, until - time.monotonic()))
  finally:
    for process in processes:
      process.kill()


def spread(values, form='{:.3f}'):
  """Mean and standard deviation over seeds as text."""
  values = np.asarray(values, float)
  sd = f'sd {form.format(values.std(ddof=1))}, {len(values)} seeds' if len(values) > 1 else 'one seed only'
  return f'{form.format(values.mean())} ({sd})'

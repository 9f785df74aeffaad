"""Workers of --n_workers as forks of the process that is to start them, so that they need not import TensorFlow once more.

For tests: `import forked_workers` in a process of forks.py, before its script runs. What is different: modules are there
already.
"""
import os
import signal
import sys
import time

from absl import flags
import distribution
import forks


class Popen:
  """As much of subprocess.Popen as distribution.supervise needs; the command is [python, '-c', code, *arguments]."""
  pipes = []  # the ends that this process writes to; another worker must not hold them

  def __init__(self, command, env, stdin, stdout, stderr, start_new_session):
    assert stdin == distribution.subprocess.PIPE and start_new_session
    reading, writing = os.pipe()
    self.pipes.append(writing)
    self.stdin, self.returncode, self.pid = os.fdopen(writing, 'w'), None, os.fork()
    if self.pid:
      os.close(reading)
      return
    for pipe in self.pipes:
      os.close(pipe)
    os.setsid()
    os.dup2(reading, 0)
    for number, file in ((1, stdout), (2, stderr)):
      if file is not None:
        os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    for number in (signal.SIGTERM, signal.SIGHUP):
      signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for flag in flags.FLAGS.get_flags_for_module(sys.argv[0]):
      delattr(flags.FLAGS, flag.name)  # which the script will define once more
    sys.argv[:] = ['-c', *command[3:]]
    forks.end_as(lambda: exec(command[2], {}))

  def poll(self):
    if self.returncode is None:
      done, status = os.waitpid(self.pid, os.WNOHANG)
      self.returncode = os.waitstatus_to_exitcode(status) if done else None
    return self.returncode

  def wait(self):
    while self.poll() is None:
      time.sleep(0.01)

  def send_signal(self, number):
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self):
    self.send_signal(signal.SIGKILL)


class Subprocess:
  """The module `subprocess` as distribution sees it: workers are forked, other programs are started."""
  PIPE = distribution.subprocess.PIPE
  start = distribution.subprocess.Popen

  @classmethod
  def Popen(cls, command, **options):
    return Popen(command, **options) if 'start_new_session' in options else cls.start(command, **options)


distribution.subprocess = Subprocess

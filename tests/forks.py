"""Scripts as a user calls them, many times, for the price of one import of TensorFlow.

`Script(path)` starts a process that imports what the script imports and no more; each call forks it, sets sys.argv and runs the
script from its first line, as `python script.py` would. What is different: modules are there already.
"""
import ast
import contextlib
import copy
import importlib
import itertools
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

LIMIT = 240  # seconds after which a call counts as hanging
FORKED = f'import sys; sys.path.append({os.path.dirname(os.path.abspath(__file__))!r}); import forked_workers'  # see there


class Ended(NamedTuple):
  """A call that has ended: exit code (negative: signal; None: it hung and was killed), what it printed."""
  code: int
  stdout: str
  stderr: str

  @property
  def errors(self):
    """The lines that say what is wrong."""
    return [line for line in self.stderr.splitlines() if line.startswith('error: ')]


class Script:
  """A script, ready to be called; see above. To be closed. modules: folder of what it imports, if that is not its own."""

  def __init__(self, path, modules=None):
    self.path, self._folder = pathlib.Path(path), tempfile.TemporaryDirectory()
    self._process = subprocess.Popen([sys.executable, __file__, str(path), str(modules or self.path.parent)], text=True,
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    self._numbers = itertools.count()

  def also(self, path):
    """Another script, called in the same process, whose modules are there already as far as the two import the same."""
    other = copy.copy(self)
    other.path = pathlib.Path(path)
    return other

  def close(self):
    self._process.stdin.close()
    self._process.wait()
    self._folder.cleanup()

  def start(self, *arguments, before='', env=None, cwd=None):
    """Begins a call; before: Python code to run first. Returns what `end` takes; its first item is the process."""
    number = next(self._numbers)
    outputs = [os.path.join(self._folder.name, f'{number}.{name}') for name in ('stdout', 'stderr')]
    pid = self._ask(argv=[str(self.path), *map(str, arguments)], before=before, env=env or {}, cwd=str(cwd or os.getcwd()),
                    outputs=outputs)
    return pid, *outputs

  def end(self, started, limit=LIMIT):
    """Waits for the end of a call. Returns Ended."""
    pid, *outputs = started
    code = self._ask(wait=pid, limit=limit)
    return Ended(code, *(pathlib.Path(path).read_text(errors='replace') for path in outputs))

  def kill_when(self, ready, started):
    """Kills a call, and the processes it has started, once ready() holds; it must not have ended before."""
    until = time.monotonic() + LIMIT
    while not ready() and time.monotonic() < until:
      time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
      os.killpg(started[0], signal.SIGKILL)
    assert self.end(started).code == -signal.SIGKILL, 'it ended before'

  def __call__(self, *arguments, limit=LIMIT, **options):
    return self.end(self.start(*arguments, **options), limit)

  def _ask(self, **question):
    self._process.stdin.write(json.dumps(question) + '\n')
    self._process.stdin.flush()
    return json.loads(self._process.stdout.readline())


def _run(argv, before, env, cwd, outputs):
  """In the child: the script, from its first line."""
  os.setsid()
  for number, path in zip((1, 2), outputs):
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(opened, number)
    os.close(opened)
  nothing = os.open(os.devnull, os.O_RDONLY)
  os.dup2(nothing, 0)
  os.close(nothing)
  sys.stdout, sys.stderr = (open(number, 'w', encoding='utf-8', closefd=False) for number in (1, 2))
  os.environ.update(env)
  os.chdir(cwd)
  sys.argv[:] = argv
  sys.path.insert(0, os.path.dirname(argv[0]))
  exec(before, {})
  runpy.run_path(argv[0], run_name='__main__')


def end_as(run):
  """Ends this process, a fork, as a program that consists of run() would."""
  code = 1
  try:
    run()
    code = 0
  except SystemExit as error:
    code = error.code if isinstance(error.code, int) else int(error.code is not None)
  except BaseException:
    sys.excepthook(*sys.exc_info())
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(code)


def _wait(pid, limit):
  until = time.monotonic() + limit
  while True:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
      return os.waitstatus_to_exitcode(status)
    if time.monotonic() > until:
      os.kill(pid, signal.SIGKILL)
      os.waitpid(pid, 0)
      return None
    time.sleep(0.01)


def main():
  path, modules = sys.argv[1:]
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  sys.path[0] = modules
  with open(path, encoding='utf-8') as file:
    tree = ast.walk(ast.parse(file.read()))
  for node in tree:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    for name in [node.module] if isinstance(node, ast.ImportFrom) else names:
      with contextlib.suppress(ImportError):
        importlib.import_module(name)
  while line := sys.stdin.readline():
    question = json.loads(line)
    if 'wait' in question:
      answer = _wait(question['wait'], question['limit'])
    else:
      answer = os.fork()
      if answer == 0:
        answers.close()
        end_as(lambda question=question: _run(**question))
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
  main()

"""Matplotlib for files, whatever backend the surroundings ask for, and for windows where there can be any. No TensorFlow."""
import os
import sys

from absl import flags

import files
from files import UserError

_in_use = 'matplotlib' in sys.modules or 'ipykernel' in sys.modules  # by a notebook, say, whose choice it is then
_asked_for = os.environ.get('MPLBACKEND')
if not _in_use:
  os.environ.pop('MPLBACKEND', None)  # an unknown one would stop the import
import matplotlib  # noqa: E402
if not _in_use:
  matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402
if _asked_for is not None:
  os.environ['MPLBACKEND'] = _asked_for

BACKENDS = ('macosx', 'qtagg', 'gtk4agg', 'gtk3agg', 'tkagg', 'wxagg')
_windows = []


def open_windows():
  """Has the figures that are made from here on open windows; says so if there can be none."""
  for backend in (_asked_for, *BACKENDS):
    if backend and backend.lower() in map(str.lower, matplotlib.backends.backend_registry.list_builtin(
        matplotlib.backends.BackendFilter.INTERACTIVE)):
      try:
        plt.switch_backend(backend)
        return _windows.append(backend)
      except Exception:  # toolkits fail in ways of their own
        pass
  plt.switch_backend('Agg')
  print('warning: --show can open no window here (no display, or no toolkit such as tkinter); the figures are in files',
        file=sys.stderr, flush=True)


def save(figure, path, show=False, **options):
  """Writes a figure, whole or not at all, in the format of the path's ending and that of --figure_format.

  Args:
    figure: of matplotlib.
    path: file to write.
    show: bring its window up to date as well.
    options: of savefig.
  """
  root, ending = os.path.splitext(path)
  asked_for = flags.FLAGS.figure_format if 'figure_format' in flags.FLAGS and flags.FLAGS.is_parsed() else 'png'
  for ending in dict.fromkeys((ending, f'.{asked_for}' if asked_for != 'png' else ending)):
    files.write_whole(root + ending, lambda temporary: figure.savefig(temporary, **options))
  if show and _windows:
    figure.show()
    figure.canvas.flush_events()
  else:
    plt.close(figure)


def wait(show):
  """With `show`, leaves the windows open until they are closed."""
  if show and _windows:
    plt.show()


def run_on_file(draw):
  """What `python plots.py FILE.npz [--show]` does: draw(arrays, path of the file, show) once more; exit code 2 for bad files."""
  paths = [argument for argument in sys.argv[1:] if argument.lstrip('-') != 'show']
  show = len(paths) < len(sys.argv) - 1
  try:
    if len(paths) != 1:
      raise UserError(f'give one file: python {os.path.basename(sys.argv[0])} FILE.npz [--show]')
    if show:
      open_windows()
    path = os.path.expanduser(paths[0])
    try:
      draw(files.read_npz(path), path, show)
    except (KeyError, IndexError, ValueError, TypeError) as error:
      raise UserError(f'{path} is no file of this figure ({error})') from None
    wait(show)
  except (UserError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)

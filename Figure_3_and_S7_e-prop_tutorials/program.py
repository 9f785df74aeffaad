"""How every program here begins and ends: its flags and their check, its exit code. No TensorFlow.

Exit code 0: done. 1: done, and something is missing or wrong, as was said. 2: what the user can mend, in one sentence on
stderr. 128 + n: ended by signal n.
"""
import os
import sys


def _excepthook(kind, error, traceback):
  if issubclass(kind, KeyboardInterrupt):  # while modules are imported, before run_app
    print('error: interrupted; nothing was begun', file=sys.stderr, flush=True)
  else:
    sys.__excepthook__(kind, error, traceback)


if sys.excepthook is sys.__excepthook__:
  sys.excepthook = _excepthook
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # NumPy's threads would stand in the way of TensorFlow's

import machine  # noqa: E402

machine.open_missing_streams()

from absl import app  # noqa: E402
from absl import flags  # noqa: E402
from absl import logging  # noqa: E402

from files import UserError  # noqa: E402

FLAGS = flags.FLAGS
LARGEST_INTEGER = 2 ** 31 - 1  # that TensorFlow's int32 can hold
LARGEST_FLOAT = 3.4e38         # that float32 can hold


class _PathParser(flags.ArgumentParser):
  """Paths, `~` and `~user` at their beginning expanded."""

  def flag_type(self):
    return 'path'

  def parse(self, argument):
    path = os.path.expanduser(argument)
    if path.startswith('~'):
      raise ValueError(f'there is no such user; a file or folder of this name here is ./{path}')
    return path


def DEFINE_path(name, default, help):  # named and used as those of absl
  """Defines a flag whose value is a path."""
  flags.DEFINE(_PathParser(), name, default, help, serializer=flags.ArgumentSerializer())


flags.DEFINE_integer('seed', 0, 'seed of everything random', lower_bound=0)
DEFINE_path('result_dir', 'results', 'folder of all results')
flags.DEFINE_string('run_name', None, 'folder of this run; default: date and time (with --resume: the last run)')
flags.DEFINE_bool('resume', False, 'go on with a run from its last checkpoint')
flags.DEFINE_string('device', None, "'CPU:0' or 'GPU:0'; default: what TensorFlow prefers")
flags.DEFINE_enum('dtype', 'float32', ['float32', 'float64'], 'precision of all computations')
flags.DEFINE_bool('show', False, 'open windows for the figures (they are written to files in any case)')
flags.DEFINE_enum('figure_format', 'png', ['png', 'pdf', 'svg'], 'pdf, svg: figures are written in this format, too')
flags.DEFINE_bool('smoke', False, 'a run of seconds that proves the installation')
flags.DEFINE_float('checkpoint_seconds', 20.0, 'seconds between checkpoints; 0: after every iteration', lower_bound=0.0)
flags.disclaim_key_flags()  # what DEFINE_path defines from here on are flags of the module that calls it

# What does not change what is computed, so that a resumed run may have other values of it.
FREE_FLAGS = ('resume', 'result_dir', 'run_name', 'device', 'show', 'figure_format', 'checkpoint_seconds', 'n_workers', 'cluster')

_advice = [lambda: 'nothing was begun']


def if_interrupted(advice):
  """Sets what the last line says if the program is interrupted; advice: function that returns it."""
  _advice[:] = [advice]


def advice():
  """What `if_interrupted` set."""
  return _advice[0]()


def parse(argv):
  """Gives the flags the values of a command line.

  Raises:
    UserError: there is no such flag or value.
  """
  try:
    rest = FLAGS(argv)
  except flags.Error as error:
    raise UserError(error) from None
  if len(rest) > 1:
    raise UserError(f'unexpected argument {rest[1]!r}')
  _check_flags()
  return rest


def run_app(main):
  """Parses the flags and calls main(); what the user can mend ends with one line on stderr and exit code 2."""

  def parse_or_fail(argv):
    try:
      return parse(argv)
    except UserError as error:
      _fail(error)

  def guarded(_):
    logging.set_verbosity(logging.WARNING)
    try:
      with machine.SIGNALS.caught():
        if FLAGS.show:
          import drawing  # matplotlib, which not every program needs
          drawing.open_windows()
        main()
    except MemoryError:
      _fail('out of memory; smaller networks, batches or shorter trials need less')
    except (UserError, OSError) as error:
      _fail(error)
    except KeyboardInterrupt as error:
      _fail(f'interrupted; {advice()}', 128 + getattr(error, 'number', 2))
    finally:
      machine.Lock.release_all()
      sys.stdout.flush()

  sys.stdout, sys.stderr = machine.SturdyStream(sys.stdout), machine.SturdyStream(sys.stderr)
  asks_for_help = any(argument.lstrip('-').startswith('help') for argument in sys.argv[1:])
  app.run(guarded, **({} if asks_for_help else {'flags_parser': parse_or_fail}))


def _fail(error, code=2):
  print('error: ' + ' '.join(str(error).split()), file=sys.stderr, flush=True)
  sys.exit(code)


def _check_flags():
  """Refuses what the parsers of single flags let pass: numbers that are not finite or too large, names of no folder."""
  for name in FLAGS:
    value, help_text = FLAGS[name].value, FLAGS[name].parser.syntactic_help or 'a number'
    if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:  # NaN is not, either
      raise UserError(f'--{name}={value} is out of range: it must be {help_text}, and finite')
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
      raise UserError(f'--{name}={value} is out of range: it must be {help_text}, of at most {LARGEST_INTEGER} in size')
    if isinstance(FLAGS[name].parser, _PathParser) and value != FLAGS[name].default and not value.strip():
      raise UserError(f'--{name} is empty: it must name a file or folder')
  if os.path.exists(FLAGS.result_dir) and not os.path.isdir(FLAGS.result_dir):
    raise UserError(f'--result_dir={FLAGS.result_dir} is a file, and must be a folder')
  name = FLAGS.run_name
  if name is not None and not name.strip():
    raise UserError('--run_name is empty: it must name a folder')
  if name and (os.path.basename(name) != name or name in (os.curdir, os.pardir) or '\0' in name):
    raise UserError(f'--run_name={name} is not the name of a folder; --result_dir says where it lies')


def refuse(names):
  """Raises UserError if one of these flags was given, because it has no meaning in this program."""
  for name in names:
    if FLAGS[name].present:
      raise UserError(f'--{name} has no meaning in this program')


def preset(**values):
  """Gives flags these values unless the command line set them."""
  for name, value in values.items():
    if not FLAGS[name].present:
      FLAGS[name].value = value


def apply_smoke(**values):
  """With --smoke, gives flags these values unless the command line set them."""
  if FLAGS.smoke:
    preset(**values)

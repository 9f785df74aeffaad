"""Values that change while training goes on: functions of the emulator frames played so far.

A flag defined here takes a number, or numbers with the frames from which they hold: --discounting=0.97,5e7:0.98,7e7:0.99
"""
from absl import flags

flags.disclaim_key_flags()  # what `define` defines are flags of the module that calls it


def steps_of(text):
  """The steps of a schedule: '0.97,5e7:0.98' is [(0, 0.97), (5e7, 0.98)].

  Raises:
    ValueError: it is no schedule, or its frames do not rise.
  """
  first, *others = text.split(',')
  steps = [(0.0, float(first)), *(tuple(map(float, step.split(':'))) for step in others)]
  if any(len(step) != 2 for step in steps) or any(not a < b for (a, _), (b, _) in zip(steps, steps[1:])):
    raise ValueError(f'{text!r} should be VALUE,FRAMES:VALUE,... with frames that rise')
  return steps


def at(schedule, n_frames):
  """The value of a schedule, a number or text, after n_frames emulator frames."""
  return [value for start, value in steps_of(str(schedule)) if start <= n_frames][-1]


def values(schedule):
  """All values of a schedule, in their order."""
  return [value for _, value in steps_of(str(schedule))]


class _Parser(flags.ArgumentParser):
  """Of a schedule between two bounds; a number becomes a number, so that config.json holds it as one."""
  syntactic_help = 'a number, or VALUE,FRAMES:VALUE,...'

  def __init__(self, lower, upper, whole):
    self._lower, self._upper, self._whole = lower, upper, whole

  def parse(self, argument):
    steps = steps_of(str(argument))
    if not all(self._lower <= value <= self._upper for _, value in steps):
      raise ValueError(f'values must be between {self._lower:g} and {self._upper:g}')
    if self._whole and not all(value.is_integer() for _, value in steps):
      raise ValueError('values must be whole numbers')
    return argument if len(steps) > 1 else int(steps[0][1]) if self._whole else steps[0][1]


def define(name, default, description, lower_bound=0.0, upper_bound=1e12, whole=False, flag_values=flags.FLAGS):
  """Defines a flag that holds a schedule; `at` reads it. whole: its values are whole numbers."""
  flags.DEFINE(_Parser(lower_bound, upper_bound, whole), name, default, f'{description}; may change: VALUE,FRAMES:VALUE,...',
               flag_values)


def cubic(n_frames, length, every, by):
  """The published limit of episode lengths: every so many frames, L <- (L^(1/3) + by)^3.

  Args:
    n_frames: emulator frames played so far.
    length: L at the beginning [agent steps].
    every: emulator frames between two increases.
    by: what each adds to the cubic root.

  Returns:
    L, rounded to an int.
  """
  return round((length ** (1 / 3) + by * (n_frames // every)) ** 3)

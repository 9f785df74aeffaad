"""Writes the tables of SCALING.md, between <!-- name --> and <!-- end -->, from the files that the benchmarks wrote.

  python tests/scaling_page.py

What has not been measured is called so.
"""
import csv
import json
import re

import numpy as np

from benchmarking import ATARI_FOLDER, FOLDER, ROOT, SPEECH_FOLDER, TESTS
import compare_workers

PAGE = ROOT / 'SCALING.md'
NAMES = dict(figure_3='figure 3, evidence accumulation', figure_2='figure 2, framewise LSNN')
MACHINES = (1, 2, 4, 8, 16)
MISSING = 'Not measured yet: `python tests/benchmark_workers.py {} --write` does it.'


def table(header, rows):
  return '\n'.join(['| ' + ' | '.join(map(str, row)) + ' |' for row in (header, ['---'] * len(header), *rows)])


def read_csv(path):
  if not path.exists():
    return []
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def machines_table(seconds):
  """A row for each of MACHINES; seconds: function of their number."""
  return table(['machines', *MACHINES], [['s, estimated', *(f'{seconds(n):.3g}' for n in MACHINES)],
                                        ['times faster, estimated', *(f'{seconds(1) / seconds(n):.1f}' for n in MACHINES)]])


def scaling(measured):
  """Weak scaling, and one process in place of two workers."""
  if 'scaling' not in measured:
    return MISSING.format('scaling')
  rows, ratios = [], []
  for figure, result in measured['scaling']['result'].items():
    for row in [*result['weak_scaling'], result['one_process_on_two_cores']]:
      rows.append([NAMES[figure], row['n_workers'], row['n_cores'], row['n_batch'], f'{row["seconds"]:.3f}',
                   f'{100 * row["share_of_sums"]:.1f} %' if row['n_workers'] > 1 else ''])
    ratios.append(f'{NAMES[figure]} {result["speed_of_two_workers_over_one_process"]:.2f}')
  return '\n'.join([table(['', 'workers', 'cores', 'batch', 's per update', 'of which sums over the workers'], rows), '',
                    'Speed of two workers with one core each over that of one process with two cores, same batch: ' +
                    '; '.join(ratios) + '.'])


def processes(measured):
  if 'processes' not in measured:
    return MISSING.format('processes')
  result = measured['processes']['result']
  n = len(result['frames_per_s']['workers'])
  return (f'Figure 4, published values, two cores: {result["median"]["workers"]:.0f} frames/s by two workers, '
          f'{result["median"]["processes"]:.0f} by the processes of our own that they replaced, in turn (medians of {n} '
          f'iterations): a ratio of {result["workers_over_processes"]:.2f}.')


def timit(measured):
  """T(N) = T(1) p(32 / N) / p(32) + s 2 (N - 1) / N."""
  if not {'scaling', 'utterances'} <= set(measured):
    return MISSING.format('scaling utterances')
  whole = json.loads((SPEECH_FOLDER / 'figures' / 'benchmark.json').read_text())['speech']['lsnn']['seconds']['adjoint']
  of = {int(n): seconds for n, seconds in measured['utterances']['result'].items()}
  least = min(of)
  part = lambda n: of[n] if n in of else of[least] * n / least
  two = measured['scaling']['result']['figure_2']['weak_scaling'][1]
  sums = two['seconds_of_sums']['figure_2']
  seconds = lambda n: whole * part(32 // n) / part(32) + sums * 2 * (n - 1) / n
  return '\n'.join([
      f'An update of 32 utterances: T(N) = T(1) p(32 / N) / p(32) + s 2 (N - 1) / N, with T(1) = {whole:.2f} s, p the',
      f'processor time by utterances ({", ".join(f"{n}: {of[n]:.3f} s" for n in sorted(of))}; fewer in proportion), and',
      f's = {1000 * sums:.1f} ms, a sum of 467,661 numbers over two workers on one machine.', '', machines_table(seconds)])


def pong(measured):
  """T(N) = a + b 32 / N + s 2 (N - 1) / N / 3."""
  if 'scaling' not in measured:
    return MISSING.format('scaling')
  rows = json.loads((ATARI_FOLDER / 'figures' / 'benchmark.json').read_text())['atari_scaling']
  rows = [row for row in rows if row['n_steps'] == 100 and not row['threads']]
  n_games, windows = ([row[name] for row in rows] for name in ('n_envs', 'window_seconds'))
  b, a = np.polyfit(n_games, windows, 1)
  sums = measured['scaling']['result']['figure_3']['weak_scaling'][1]['seconds_of_sums']['figure_4']
  seconds = lambda n: a + b * 32 / n + sums * 2 * (n - 1) / n / 3
  return '\n'.join([
      f'A window of 100 steps of 32 games: T(N) = a + b 32 / N + s 2 (N - 1) / N / 3, with a = {a:.2f} s and b = {b:.3f} s',
      f'per game (line through {", ".join(map(str, n_games))} games), and s = {1000 * sums:.0f} ms, a sum of 1,119,733',
      'numbers over two workers on one machine, of which there is one in three windows.', '', machines_table(seconds)])


def compared(_):
  """Two workers beside one."""
  rows = read_csv(TESTS / 'compare_workers.csv')
  if not rows:
    return 'Not measured yet: `python tests/compare_workers.py --write` does it.'
  worst = max(rows, key=lambda row: float(row['largest_relative_difference']))
  least = min(int(row['iterations']) for row in rows)
  return (f'{len(rows)} of {len(compare_workers.CASES)} combinations of script and learning rule, at least {least} iterations '
          f'each: the largest\nrelative difference is {worst["largest_relative_difference"]} ({worst["case"]}, column '
          f'{worst["column"]}).')


def killed(_):
  """What happened to runs whose workers were killed."""
  rows = read_csv(TESTS / 'kills_of_workers.csv')
  if not rows:
    return 'Not measured yet: `python tests/kills.py --write` does it.'
  lines = []
  for figure, victim in sorted(dict.fromkeys((row['figure'], row['killed']) for row in rows), key=lambda pair: pair[0]):
    of = [row for row in rows if (row['figure'], row['killed']) == (figure, victim)]
    ended = [float(row['ended_after_s']) for row in of if row['ended_after_s']]
    resumed = [row['same_number_identical'] for row in of if row['same_number_identical']]
    differences = [float(row['one_worker_largest_difference']) for row in of if row['one_worker_largest_difference']]
    lines.append([figure, victim, len(of), f'{max(ended):.1f}' if ended and victim != 'both' else '',
                  f'{sum(row["files_whole"] == "True" for row in of)} of {len(of)}',
                  f'{resumed.count("True")} of {len(resumed)}' if resumed else '',
                  f'{max(differences):.1g}' if differences else ''])
  return table(['figure', 'killed', 'times', 'others ended within, s', 'files whole', 'two workers go on identically',
                'one worker goes on, largest relative difference'], lines)


def main():
  measured = json.loads((FOLDER / 'figures' / 'benchmark_workers.json').read_text())
  text = PAGE.read_text()
  for make in (scaling, processes, timit, pong, compared, killed):
    new = lambda found, make=make: f'{found[1]}{make(measured)}\n{found[2]}'
    text, n = re.subn(f'(<!-- {make.__name__} -->\n).*?(<!-- end -->)', new, text, flags=re.DOTALL)
    assert n == 1, make.__name__
  PAGE.write_text(text)


if __name__ == '__main__':
  main()

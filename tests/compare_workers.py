"""Two workers beside one, in float64: every script and every learning rule; the largest difference in metrics.csv of each.

  python tests/compare_workers.py                  all, some minutes; --write keeps the table in tests/compare_workers.csv
  python tests/compare_workers.py 'figure 2'       those whose name has this in it; with --write, other rows stay

Each case trains for at least five iterations, alone and by --n_workers=2, from the same flags; batches mostly do not divide
evenly. A difference is relative to one worker's number; the seconds a row took do not count. Exit code 1: more than 1e-10
somewhere. The tutorial of an own neuron is not among them: it trains on one trial, which two workers cannot share.
"""
import argparse
import csv
import os
import pathlib
import subprocess
import sys
import tempfile

from forks import FORKED, Script

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent
TOLERANCE = 1e-10
FIGURE_2, FIGURE_3, FIGURE_4 = 'Figure_2_TIMIT/', 'Figure_3_and_S7_e-prop_tutorials/', 'Figure_4_and_5_ATARI/'

SPEECH = ['--noplot', '--smoke', '--n_epochs=5', '--batch=3']
LSNN = [*SPEECH, '--n_regular=8', '--n_adaptive=4', '--n_repeat=2']
LSTM = [*SPEECH, '--n_lstm=5']
CTC = [*SPEECH, '--n_layer=1', '--n_neuron=6']
PATTERN = ['--nodo_plot', '--n_iter=5', '--n_batch=3', '--seq_len=100', '--n_out=2', '--n_in=20', '--n_rec=20']
EVIDENCE = ['--nodo_plot', '--smoke', '--n_iter=5', '--n_batch=3', '--n_regular=6', '--n_adaptive=6']
GAMES = ['--nodo_plot', '--preset=laptop', '--total_environment_frames=900', '--eval_episodes=1', '--eval_max_episode_len=10',
         '--n_rec=20', '--n_filters_1=2', '--n_filters_2=2']
CATCH = [*GAMES, '--level_name=catch', '--parallel_episodes=5']
PONG = [*GAMES, '--level_name=atari/pong', '--parallel_episodes=3', '--unroll_length=10', '--max_episode_len=10',
        '--total_environment_frames=2000']
WINDOWS = ['--noapply_after_end', '--unroll_length=5']


def cases():
  """{name: (script, flags)}."""
  lsnn, lstm, ctc = (FIGURE_2 + f'solve_timit_with_{name}.py' for name in (
      'framewise_lsnn', 'framewise_lstm', 'ctc_in_tensorflow'))
  pattern, evidence = (FIGURE_3 + f'tutorial_{name}.py' for name in ('pattern_generation', 'evidence_accumulation_with_alif'))
  main = FIGURE_4 + 'main.py'
  rules = {'BPTT': [], 'symmetric feedback': ['--eprop=symmetric'], 'random feedback': ['--eprop=random'],
           'hardcoded': ['--eprop=random', '--eprop_impl=hardcoded'], 'autodiff': ['--eprop=random', '--eprop_impl=autodiff'],
           'BPTT by autodiff': ['--eprop_impl=autodiff']}
  named = {f'figure 2: framewise LSNN, {name}': (lsnn, [*LSNN, *more]) for name, more in {
      **rules, 'adaptive feedback': ['--eprop=adaptive', '--n_layer=2', '--drop_out_probability=0.8', '--noise_step_start=1',
                                     '--gd_noise=0.01'],
      'uniform feedback': ['--eprop=symmetric', '--BAglobal'],
      'readout alone': ['--nocell_train', '--eprop=symmetric']}.items()}
  named |= {f'figure 2: framewise LSTM, {name}': (lstm, [*LSTM, *more]) for name, more in {
      **rules, 'adaptive feedback': ['--eprop=adaptive']}.items()}
  named |= {f'figure 2: CTC, {name}': (ctc, [*CTC, *more]) for name, more in {
      'LSTM, BPTT': [], 'LSTM, adaptive feedback': ['--eprop=adaptive'], 'LSNN, BPTT, rate cost': ['--model=lsnn', '--reg=1'],
      'LSNN, random feedback': ['--model=lsnn', '--eprop=random']}.items()}
  named |= {f'figure 3: {name}': (pattern, [*PATTERN, *more]) for name, more in {
      'adaptive feedback': ['--feedback=adaptive', '--log_gradient_angle', '--gradient_angle_every=2'],
      'symmetric feedback': ['--feedback=symmetric'], 'random feedback': [], 'uniform feedback': ['--feedback=global'],
      'hardcoded': ['--eprop_impl=hardcoded'], 'autodiff': ['--eprop_impl=autodiff'], 'BPTT': ['--eprop_or_bptt=bptt'],
      'BPTT by autodiff': ['--eprop_or_bptt=bptt', '--eprop_impl=autodiff']}.items()}
  named |= {f'figure 3: evidence, {name}': (evidence, [*EVIDENCE, *more]) for name, more in {
      'random feedback': ['--eprop', '--feedback=random'], 'BPTT, running rates': ['--f_regularization_type=online'],
      'rewiring, Dale': ['--eprop', '--connectivity=0.3', '--dale']}.items()}
  named |= {f'figure 4: {name}': (main, [*CATCH, *more]) for name, more in {
      'avg_all': ['--voltage_reg_method=avg_all', '--eprop_impl=hardcoded', '--save_observations'], 'adjoint': [],
      'autodiff, avg_all': ['--voltage_reg_method=avg_all', '--eprop_impl=autodiff'],
      'BPTT': ['--nouse_eprop'], 'readout alone': ['--nocell_train'], 'windows': [*WINDOWS, '--normalise_advantages'],
      'clipped updates': [*WINDOWS, '--parallel_episodes=4', '--update_epochs=2', '--n_minibatches=2',
                          '--normalise_advantages']}.items()}
  named['figure 4: Pong'] = (main, PONG)
  return named


CASES = cases()


def make_corpus(folder):
  """Figure 2's corpus of a few utterances; its path."""
  subprocess.run([sys.executable, str(ROOT / FIGURE_2 / 'timit_processing.py'), '--corpus=nltk_sample', '--skip_bad',
                  f'--data_path={TESTS}/data/timit_sample', f'--dataset={folder}/corpus', f'--result_dir={folder}'], check=True,
                 capture_output=True)
  return f'{folder}/corpus'


def difference(paths):
  """Number of iterations and largest relative difference of two metrics.csv, and where it is."""
  tables = []
  for path in paths:
    with open(path, newline='') as file:
      tables.append(list(csv.DictReader(file)))
  one, two = tables
  if len(one) != len(two) or any({k for k in a if a[k]} != {k for k in b if b[k]} for a, b in zip(one, two)):
    return len(one), float('inf'), 'other rows or columns'
  return (len(one), *max((abs(float(a[k]) - float(b[k])) / max(1e-30, abs(float(a[k]))), k) for a, b in zip(one, two) for k in a
                         if a[k] and k != 'frames_per_s'))


def compare(script, folder, path, flags):
  """A row of the table: number of iterations, largest difference, the column that has it."""
  name = {1: 'one', 2: 'two'}
  going = {n: script.start('--dtype=float64', f'--result_dir={folder}', f'--run_name={name[n]}', *flags, f'--n_workers={n}',
                           before=FORKED) for n in name}
  for process in going.values():
    ended = script.end(process)
    if ended.code:
      return dict(iterations=0, largest_relative_difference='nan', column=f'exit code {ended.code}: {ended.stderr[-300:]}')
  stem = pathlib.Path(path).stem
  iterations, largest, column = difference([os.path.join(folder, stem, name[n], 'metrics.csv') for n in name])
  return dict(iterations=iterations, largest_relative_difference=f'{largest:.2g}', column=column)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('words', nargs='*', help='of the cases to compare; default: all')
  parser.add_argument('--write', action='store_true', help='keep the table in tests/compare_workers.csv')
  arguments = parser.parse_args()
  table, path = {}, TESTS / 'compare_workers.csv'
  if path.exists():
    with open(path, newline='') as file:
      table = {row['case']: row for row in csv.DictReader(file) if row['case'] in CASES}
  chosen = [name for name in CASES if not arguments.words or any(word in name for word in arguments.words)]
  scripts, fine = {}, True
  with tempfile.TemporaryDirectory() as folder:
    corpus = make_corpus(folder) if any(name.startswith('figure 2') for name in chosen) else None
    for k, name in enumerate(chosen):
      of, flags = CASES[name]
      script = ROOT / of
      if script.parent not in scripts:
        scripts[script.parent] = Script(script)
      if of.startswith(FIGURE_2):
        flags = [*flags, f'--dataset={corpus}']
      row = compare(scripts[script.parent].also(script), os.path.join(folder, str(k)), of, flags)
      row.update(case=name, command=' '.join(['python', of, '--dtype=float64', *CASES[name][1]]))
      print(f'{name}: {row["largest_relative_difference"]} ({row["column"]}) after {row["iterations"]} iterations', flush=True)
      fine = fine and row['iterations'] >= 5 and float(row['largest_relative_difference']) < TOLERANCE
      table[name] = row
      if arguments.write:
        with open(path, 'w', newline='') as file:
          writer = csv.DictWriter(file, ['case', 'iterations', 'largest_relative_difference', 'column', 'command'],
                                  lineterminator='\n')
          writer.writeheader()
          writer.writerows(table[name] for name in CASES if name in table)
    for script in scripts.values():
      script.close()
  sys.exit(0 if fine else 1)


if __name__ == '__main__':
  main()

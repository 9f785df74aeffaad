"""All committed figures on one page, with captions, our numbers and what the paper reports. Python's own library only.

  python figures_page.py          writes figures.html; open it in any browser, no server needed

The numbers are read from the CSV and JSON files beside the figures, so the page always shows what is committed.
"""
import argparse
import csv
import html
import json
import os
import statistics
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
F2, F3, F4 = 'Figure_2_TIMIT', 'Figure_3_and_S7_e-prop_tutorials', 'Figure_4_and_5_ATARI'
NOT_AVAILABLE = 'not available'
RULES = {'bptt': 'BPTT', 'eprop': 'e-prop', 'eprop_symmetric': 'e-prop, symmetric', 'eprop_random': 'e-prop, random',
         'eprop_adaptive': 'e-prop, adaptive', 'eprop_random_sparse_dale': "e-prop, random, sparse, Dale's law",
         'symmetric': 'e-prop, symmetric', 'random': 'e-prop, random', 'adaptive': 'e-prop, adaptive',
         'global': 'e-prop, uniform feedback', 'lif': 'LIF neurons alone', 'readout': 'readout alone',
         'lif_bptt': 'BPTT, LIF neurons alone', 'lif_eprop_symmetric': 'e-prop, symmetric, LIF neurons alone'}

STYLE = '''
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #111; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5em; border-bottom: 2px solid #0B4A8F; }
figure { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 1.5em; margin: 2em 0; align-items: start; }
figure img { width: 100%; height: auto; border: 1px solid #ccc; }
dt { font-weight: 600; margin-top: .6em; } dd { margin: 0; white-space: pre-line; }
@media (max-width: 800px) { figure { grid-template-columns: 1fr; } }
'''


def path(folder, name):
  return os.path.join(ROOT, folder, 'figures', name)


def read_json(folder, name):
  with open(path(folder, name), encoding='utf-8') as file:
    return json.load(file)


def read_csv(folder, name):
  with open(path(folder, name), encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))


def mean_sd(values, scale=1, digits=1, unit=''):
  """'7.7 % (sd 1.6, 5 seeds)'."""
  values = [scale * float(value) for value in values]
  spread = f'sd {statistics.stdev(values):.{digits}f}, {len(values)} seeds' if len(values) > 1 else 'one seed'
  return f'{statistics.mean(values):.{digits}f}{unit} ({spread})'


def by_rule(rows, column, **format_):
  """A line per rule, over its seeds; rows where the column is empty do not count."""
  groups = {}
  for row in rows:
    if row[column]:
      groups.setdefault(row['rule'], []).append(row[column])
  return '\n'.join(f'{RULES.get(rule, rule)}: {mean_sd(values, **format_)}' for rule, values in groups.items())


def last_rows(name):
  """The last row of each run in a CSV of figure 3's comparison."""
  return [row for row in read_csv(F3, name) if row['wall_time_s']]


def criterion_reached():
  """Iterations to the criterion of evidence accumulation, a line per rule."""
  lines = []
  rows = last_rows('comparison_evidence_accumulation.csv')
  for rule in dict.fromkeys(row['rule'] for row in rows):
    of_rule = [row for row in rows if row['rule'] == rule]
    reached = sorted(int(row['iteration']) for row in of_rule if row['criterion_reached'] == 'True')
    lines.append(f'{RULES.get(rule, rule)}: {", ".join(map(str, reached)) or "not reached"} ({len(reached)} of {len(of_rule)})')
  return '\n'.join(lines)


def game(name):
  ours, chance = read_json(F4, f'evaluation_{name}.json'), read_json(F4, f'chance_{name}.json')
  return (f'{ours["score"]:.1f} (sd {ours["score_sd"]:.1f}, {ours["games"]} games, one agent); '
          f'actions at random {chance["score"]:.1f} (sd {chance["score_sd"]:.1f}, {chance["games"]} games)')


def speech(name, network='framewise_lstm', title='framewise LSTM'):
  """Wrong frames of one kind of network, a line per rule."""
  rows = [row for row in read_csv(F2, name) if row['network'] == network]
  return f'{title}, wrong frames in 61 classes:\n' + by_rule(rows, 'test_frame_error', scale=100, unit=' %')


def largest_error(name):
  return f'largest relative error {read_json(F3, name)["max_relative_error"]:.1e} (float64)'


# Section, folder, file, caption of every panel, our numbers, the paper's. Numbers are functions or texts; None: no line.
FIGURES = (
    ('The idea', F3, 'idea.png', 'Above: what learning carries from step to step, and to whom, in e-prop (blue: '
     'eligibility traces, forward in time; orange: learning signals) and in BPTT. Below, one synapse: spikes of its input, of '
     'other inputs and of its neuron; slow factor (24); trace (25), plain and filtered by the readout; learning signal; '
     'their product summed over time, the gradient.',
     None, None),
    ('Figure 3: evidence accumulation', F3, 'evidence_accumulation.png', 'One trial after learning by e-prop with random '
     'feedback. From above: input spikes, cues shaded in the colour of their side; spikes of the LIF and of the ALIF '
     'neurons; softmax output, read during recall (shaded); five learning signals, from lowest to highest; traces of three '
     'synapses; their slow factors, which bridge the delay.',
     lambda: f'this run: {100 * read_json(F3, "evidence_accumulation.json")["test_error"]:.1f}'
             f' % wrong decisions on fresh trials, '
             f'after {read_json(F3, "evidence_accumulation.json")["iterations"]} iterations', NOT_AVAILABLE),
    ('', F3, 'comparison_evidence_accumulation_curves.png', 'Wrong decisions on training batches over iterations: running '
     'mean over 10, mean and standard deviation over seeds. A run that has met the criterion keeps its last value.',
     lambda: 'test error:\n' + by_rule(last_rows('comparison_evidence_accumulation.csv'), 'test_error', scale=100, unit=' %'),
     NOT_AVAILABLE),
    ('', F3, 'comparison_evidence_accumulation_criterion.png', 'Iterations until fewer than 7 % of the decisions on fresh '
     'trials are wrong: a dot per seed, a line at the median; x: not reached.',
     criterion_reached, '200 to 500 iterations (random feedback, batch 32)'),
    ('Figure S7: pattern generation', F3, 'pattern_generation.png', 'From above: frozen input spikes; spikes of the LIF '
     'neurons; output and target; for one synapse the filtered presynaptic spikes, the pseudo-derivative of its neuron, '
     'the eligibility trace and the learning signal; the loss over iterations.',
     lambda: f'this run: normalised mean squared error {read_json(F3, "pattern_generation.json")["nmse"]:.3f}', NOT_AVAILABLE),
    ('', F3, 'comparison_pattern_generation_curves.png', 'Normalised mean squared error over iterations, mean and standard '
     'deviation over seeds.',
     lambda: 'at the end:\n' + by_rule(last_rows('comparison_pattern_generation.csv'), 'nmse', digits=3), NOT_AVAILABLE),
    ('', F3, 'comparison_pattern_generation_criterion.png', 'Iterations to an error of 0.1 (our criterion): a dot per '
     'seed, a line at the median; x: not reached.', None, NOT_AVAILABLE),
    ('', F3, 'own_neuron.png', 'Pattern generation with a neuron that is not in the paper. From above: spikes; output and '
     'target; for one synapse the synaptic current and membrane potential of its neuron, the eligibility vector of the '
     'membrane potential, the eligibility trace.', None, None),
    ('The equations', F3, 'verification_factorization.png', 'Eq. (1) is exact. Above: the gradient by BPTT, by eq. (1) '
     'with the true dE/dz, and their difference. Below, one synapse: spikes before and after it, pseudo-derivative, fast '
     'and slow component of its eligibility vector, eligibility trace, true learning signal.',
     lambda: largest_error('verification_factorization.json'),
     '3e-14, squared (float32, run here)'),
    ('', F3, 'verification_hardcoded.png', 'Eqs. (4) and (25): the gradient by traces, in its adjoint form and by autodiff '
     'with stopped gradients, and their difference; below, one synapse as above.',
     lambda: largest_error('verification_hardcoded.json'),
     'the published script stops with an error'),
    ('Figure 2: phoneme recognition', F2, 'comparison_espeak_full_fbank.png', 'Synthetic speech of TIMIT\'s size, not '
     'TIMIT. Wrong frames of the framewise LSNN by learning rule: a bar is the mean, a dot a seed.',
     lambda: speech('comparison_espeak_full_fbank.csv', 'framewise_lsnn', 'framewise LSNN'),
     'other data (TIMIT): not comparable'),
    ('', F2, 'curves_espeak_full_fbank.png', 'The same: wrong frames on the validation set over updates; a line is the '
     'mean over seeds, a band their range.', None, None),
    ('', F2, 'published_curve.png', 'The published program (one run, dashed) and ours (three seeds) on the same small '
     'corpus of synthetic speech, not TIMIT. Left: wrong frames on the validation set over updates. Right: after 240 '
     'updates, and with one setting changed; a dot is a run.', None, None),
    ('', F2, 'curves_espeak_fbank.png', 'A small corpus of synthetic speech, not TIMIT; a panel for each kind of network. '
     'Error on the validation set over updates: phone error of networks trained on phone sequences (CTC), wrong frames of '
     'framewise ones. A line is the mean over seeds, a band their range.', None, None),
    ('', F2, 'comparison_espeak_fbank.png', 'The same networks on the test set. Left: wrong frames. Right: phone error. A '
     'bar is the mean, a dot a seed.', None, None),
    ('', F2, 'comparison_nltk_sample_fbank.png', 'The free sample of TIMIT (16 speakers, not the standard split). Wrong '
     'frames of the framewise LSNN by learning rule: a bar is the mean, a dot a seed.',
     lambda: speech('comparison_nltk_sample_fbank.csv', 'framewise_lsnn', 'framewise LSNN'),
     'other data (TIMIT): not comparable'),
    ('', F2, 'curves_nltk_sample_fbank.png', 'The same: wrong frames on the validation set over updates; a line is the '
     'mean over seeds, a band their range.', None, None),
    ('', F2, 'lstm/comparison_espeak_fbank.png', 'LSTM, framewise and trained on phone sequences (CTC), on the small corpus of '
     'synthetic speech, not TIMIT. Wrong frames and phone error by learning rule: a bar is the mean, a dot a seed.',
     lambda: speech('lstm/comparison_espeak_fbank.csv'), 'other data (TIMIT): not comparable'),
    ('', F2, 'lstm/comparison_nltk_sample_fbank.png', 'The same on the free sample of TIMIT (16 speakers, not the standard '
     'split).',
     lambda: speech('lstm/comparison_nltk_sample_fbank.csv'), 'other data (TIMIT): not comparable'),
    ('', F2, 'lstm/curves_espeak_fbank.png', 'LSTM, synthetic speech: errors on the validation set over updates; a line is the '
     'mean over seeds, a band their range.', None, None),
    ('', F2, 'lstm/curves_nltk_sample_fbank.png', 'The same on the free sample of TIMIT.', None, None),
    ('', F2, 'utterance_lstm_espeak.png', 'One test utterance, framewise LSTM. From above: features in standard '
     'deviations; output of the LSTM cells; probability of each phone; phones recognised; true phones, coloured as vowel, '
     'consonant or silence.', None, None),
    ('', F2, 'utterance_lsnn_espeak.png', 'One test utterance, framewise LSNN: as above, with spikes in place of the '
     'cells\' output.', None, None),
    ('', F2, 'utterance_ctc_lsnn_espeak.png', 'One test utterance, LSNN trained on phone sequences (CTC): times of '
     'recognised phones are approximate.', None, None),
    ('Figure 4: reward-based e-prop', F4, 'comparison_catch.png', 'Catch from pixels: return per game over frames, mean '
     'and standard deviation over seeds. Dotted: the best possible return, and that of actions at random.',
     lambda: 'return, at most 1:\n' + by_rule(read_csv(F4, 'comparison_catch.csv'), 'score', digits=3), NOT_AVAILABLE),
    ('', F4, 'catch.png', 'Games of Catch. From above: screens at eight moments; probability of each action, stacked; '
     'predicted value and discounted return, with rewards (triangles) and ends of games (grey lines); spikes of the LIF '
     'and of the ALIF neurons; thresholds of some ALIF neurons.', None, None),
    ('', F4, 'comparison_catch_cue_delay.png', 'Catch with a ball that must be remembered: return per game over frames, '
     'mean and standard deviation over seeds. Dotted as above.',
     lambda: 'return, at most 1:\n' + by_rule(read_csv(F4, 'comparison_catch_cue_delay.csv'),
     'score', digits=3), NOT_AVAILABLE),
    ('', F4, 'learning_curve_pong.png', 'Training on Pong, one agent, over emulator frames (below) and hours (above). From '
     'above: score of a game, a point per iteration (grey) and its running mean; dotted: games become longer; return of '
     'the first 200 agent steps, likewise; entropy of the policy; firing rate of the LSNN.',
     lambda: game('pong'), 'a score of about 10 after about 3 days on more than 12 cores and a GPU'),
    ('', F4, 'pong.png', 'A game of Pong by the preset pong, likeliest actions: panels as for Catch.', None, None),
    ('', F4, 'comparison_pong.png', 'The first 1.6 million frames of Pong: return of the first 200 agent steps for our '
     'preset and for the preset with one group of settings as published, one seed each.', None, None),
    ('', F4, 'comparison_pong_10M.png', 'The first 10 million frames of Pong by e-prop, BPTT and the readout alone, and by '
     'e-prop with the preset pong: score of a game (of up to 3,000 agent steps) over frames (left) and hours (right), mean and '
     'standard deviation over seeds.',
     lambda: 'whole games:\n' + by_rule(read_csv(F4, 'comparison_pong_10M.csv'), 'score', digits=1), NOT_AVAILABLE),
    ('', F4, 'comparison_pong_52M.png', 'Training on Pong with the preset pong: score of a game (of up to 3,000 agent steps, '
     'later 10,000) over frames (left) and hours (right), mean and standard deviation over seeds.',
     lambda: 'whole games, drawn actions:\n' + by_rule(read_csv(F4, 'comparison_pong_52M.csv'), 'score', digits=1),
     'a score of about 10 after about 3 days on more than 12 cores and a GPU'),
    ('Figure 5: Fishing Derby', F4, 'learning_curve_fishing_derby.png', 'Training on Fishing Derby, one agent: panels as '
     'for Pong.',
     lambda: game('fishing_derby'), NOT_AVAILABLE),
    ('', F4, 'fishing_derby.png', 'A game of Fishing Derby: panels as for Catch.', None, None),
    ('Speed', F3, 'benchmark_scaling.png', 'One training iteration of figure 3 as steps, neurons or batch grow to four '
     'times their number: time (left) and peak memory (right), by the adjoint form (solid) and by traces that run forward '
     '(dashed).',
     lambda: f'{read_json(F3, "benchmark.json")["iteration"]["seconds"]["adjoint"]:.2f} s per iteration, batch 64',
     '2.0 s (TensorFlow 1.15, run here)'),
    ('', F4, 'benchmark_scaling.png', 'Training on Pong, emulator frames per second. Left: by number of environments, for '
     'two lengths of the window between updates. Right: by number of threads of the emulators; 0: our own emulators.',
     None, None),
)


def all_figures():
  """(folder, file) of every committed PNG, those of FIGURES first."""
  named = [(folder, name) for _, folder, name, *_ in FIGURES]
  found = [(folder, name) for folder in (F3, F2, F4) for name in sorted(os.listdir(os.path.dirname(path(folder, 'x'))))
           if name.endswith('.png')]
  return named + [item for item in found if item not in named]


def figure_html(folder, name, caption, ours, papers):
  """One figure with its caption and numbers; without the numbers if their file is not there."""
  source = f'{folder}/figures/{name}'
  lines = []
  if ours:
    try:
      lines.append(('Here', ours() if callable(ours) else ours))
    except (OSError, KeyError, ValueError) as error:
      lines.append(('Here', f'numbers not readable: {error}'))
  if papers:
    lines.append(('Published', papers))
  numbers = ''.join(f'<dt>{term}</dt><dd>{html.escape(text)}</dd>' for term, text in lines)
  return (f'<figure><a href="{source}"><img src="{source}" alt="{html.escape(caption, quote=True)}"></a><figcaption>'
          f'<p>{html.escape(caption)}</p><dl>{numbers}</dl><p><a href="{folder}/README.md">how it was made</a></p>'
          '</figcaption></figure>')


def page():
  """The page as text."""
  parts = ['<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>E-prop, reproduced: all figures</title>',
           '<meta name="viewport" content="width=device-width, initial-scale=1">', f'<style>{STYLE}</style></head><body>',
           '<h1>E-prop, reproduced: all figures</h1><p>Bellec, Scherr et al., '
           '<a href="https://doi.org/10.1038/s41467-020-17236-y">A solution to the learning dilemma for recurrent networks of '
           'spiking neurons</a>, 2020, repeated. See the '
           '<a href="README.md">README</a>.</p>']
  known = {(folder, name): (section, *rest) for section, folder, name, *rest in FIGURES}
  for folder, name in all_figures():
    section, caption, ours, papers = known.get((folder, name), ('', name.removesuffix('.png').replace('_', ' '), None, None))
    if not os.path.exists(path(folder, name)):
      continue
    parts.append((f'<h2>{section}</h2>' if section else '') + figure_html(folder, name, caption, ours, papers))
  return '\n'.join([*parts, '</body></html>\n'])


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description='Puts all committed figures on one page.')
  parser.add_argument('path', nargs='?', default=os.path.join(ROOT, 'figures.html'), help='file to write')
  target = parser.parse_args().path
  try:
    with open(target, 'w', encoding='utf-8') as file:
      file.write(page())
  except OSError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  print(f'page: {target}')

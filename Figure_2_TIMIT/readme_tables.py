"""Fills the tables of README.md, and the sentences that follow from them, from the CSVs in figures/.

  python readme_tables.py            after compare_learning_rules.py or published_curve.py; they write the CSVs

What stands in README.md between <!-- name --> and <!-- end --> is written anew; what has not been measured is called missing. No
TensorFlow.
"""
import os
import re
import statistics
import textwrap

import program
import published_curve
from absl import flags

import files
import result_plots

FLAGS = flags.FLAGS
HERE = os.path.dirname(os.path.abspath(__file__))
program.DEFINE_path('readme', os.path.join(HERE, 'README.md'), 'page to fill')
program.DEFINE_path('figures', os.path.join(HERE, 'figures'), 'folder of the CSVs')

NAMES = {
    'bptt': 'BPTT', 'symmetric': 'e-prop, symmetric', 'adaptive': 'e-prop, adaptive',
    'adaptive_slow': 'e-prop, adaptive, readout decay 0.001', 'random': 'e-prop, random',
    'uniform': 'e-prop, uniform feedback (null control)', 'readout': 'readout alone, network untrained'}
CTC_LSNN = {'ctc_lsnn': '--lr_init=0.005 --reg=20 --reg_rate=20', 'ctc_lsnn_without_rate_cost': '--lr_init=0.005',
            'ctc_lsnn_published': '--lr_init=0.001'}
LEARNED = 80    # phone error in % below which a network has begun to learn: it is higher where the blank does not lead
LEAST_GAIN = 4  # percentage points that a rule is to be below the readout alone


def read(corpus, folder=''):
  """Runs by network and rule of a corpus: {(network, rule): list of rows}; none if `folder` of figures/ has no table of it."""
  path = os.path.join(FLAGS.figures, folder, f'comparison_{corpus}.csv')
  return result_plots.read_comparison(path) if os.path.exists(path) else {}


def by_seed(runs, measure, scale=100):
  """A measure of each run, in % unless `scale` is another: {seed: number}."""
  return {row['seed']: scale * float(row[measure]) for row in runs if row[measure]}


def spread(values, unit=' %', digits=1):
  """'20.3 % (sd 0.1)' of a list of numbers; 'missing' without any."""
  if not values:
    return 'missing'
  sd = f' (sd {statistics.stdev(values):.{digits}f})' if len(values) > 1 else ''
  return f'{statistics.mean(values):.{digits}f}{unit}{sd}'


def minus(a, b):
  """Differences of two {seed: number} seed by seed: a list."""
  return [a[seed] - b[seed] for seed in a if seed in b]


def table(head, rows):
  """A Markdown table of a list of names and rows of texts."""
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines).replace('|  |', '| |').replace('|  |', '| |')


def items(lines):
  """Items of a Markdown list, wrapped."""
  return '\n'.join(textwrap.fill(line, 128, subsequent_indent='  ', break_on_hyphens=False) for line in lines)


def rule_table(runs, network, rules):
  """Learning rules of a network: errors, differences from BPTT and from the readout alone, firing rate."""
  of = {rule: by_seed(runs.get((network, rule), []), 'test_frame_error') for rule in rules}
  rows = []
  for rule in rules:
    these = runs.get((network, rule), [])
    behind, below = minus(of[rule], of['bptt']), minus(of['readout'], of[rule])
    rows.append([
        NAMES[rule], str(len(these)), spread(list(of[rule].values())),
        spread(list(by_seed(these, 'test_frame_error_39_phones').values())),
        spread(behind, '') if behind and rule != 'bptt' else '', spread(below, '') if below and rule != 'readout' else '',
        spread(list(by_seed(these, 'rate_hz', 1).values()), ' Hz', 0).split(' (')[0]])
  return table(['', 'seeds', 'wrong frames, 61 classes', '39 classes', 'behind BPTT', 'below the readout alone', 'firing rate'],
               rows)


def verdict(name, rule, of):
  """A sentence on a rule: its distance to BPTT, whether its seeds and BPTT's overlap, and its distance to the readout alone.

  Args:
    name: of the rule.
    rule: its key in `of`.
    of: {rule: {seed: error in %}}.
  """
  behind, below = minus(of[rule], of['bptt']), minus(of['readout'], of[rule])
  if not behind or not below:
    return f'- {name}: missing.'
  overlap = min(of[rule].values()) <= max(of['bptt'].values())
  gain = statistics.mean(below)
  return (f'- {name} is {spread(behind, "")} percentage points behind BPTT, {"within" if overlap else "outside"} the spread of '
          f'seeds, and {spread(below, "")} below the readout alone{"" if gain >= LEAST_GAIN else f", less than {LEAST_GAIN}"} '
          f'({len(behind)} seed{"s" * (len(behind) > 1)}).')


def full_size_findings(runs):
  """What the table at TIMIT's size shows, rule by rule."""
  of = {rule: by_seed(runs.get(('framewise_lsnn', rule), []), 'test_frame_error') for rule in NAMES}
  lines = [verdict(name, rule, of) for name, rule in (
      ('Symmetric feedback', 'symmetric'), ('Adaptive feedback with a readout decay of 0.001', 'adaptive_slow'),
      ('Adaptive feedback with the published decay', 'adaptive'), ('Random feedback', 'random'))]
  mean = {rule: statistics.mean(values.values()) for rule, values in of.items() if values}
  if {'bptt', 'symmetric', 'adaptive_slow', 'random', 'readout'} <= set(mean):
    inside = max(mean['bptt'], mean['symmetric'], mean['adaptive_slow']) < mean['random'] < mean['readout']
    lines.append(f'- So random feedback lies {"" if inside else "not "}between symmetric and adaptive feedback (readout decay 0.001) '
                 'on one side and the readout alone on the other.')
  return items(lines)


def published_table(rows):
  """Our curve beside the published program's."""
  at = lambda name, update: [100 * float(r['validation_error']) for r in rows if (r['program'], r['update']) == (name, str(update))]
  n = len(at('ours', 240))
  return table(['updates', 'published program, one run', f'ours, {n} seed{"s" * (n > 1)}'], [
      [str(update), f'{at("published", update)[0]:.1f} %', spread(at('ours', update))] for update in published_curve.PUBLISHED])


def variants_table(rows, last=240):
  """What one changed setting does after the last update, and its difference from the published setting, seed by seed."""
  of = {name: {r['seed']: 100 * float(r['validation_error']) for r in rows if (r['program'], r['update']) == (name, str(last))}
        for name in published_curve.VARIANTS}
  body = []
  for name, arguments in published_curve.VARIANTS.items():
    what = f'`{" ".join(arguments)}`: {name}' if arguments else 'nothing'
    body.append([what, str(len(of[name])), spread(list(of[name].values())),
                 spread(minus(of[name], of['ours']), '') if arguments and of[name] else ''])
  return table(['changed', 'seeds', 'wrong validation frames', 'more than with the published setting, same seeds'], body)


def between(values, unit=''):
  """'37 to 41 %' of a list of numbers."""
  return ' to '.join(dict.fromkeys(f'{value:.0f}' for value in (min(values), max(values)))) + unit


def ctc_table(runs):
  """CTC with the LSNN by its flags: seeds that learn, phone errors, firing rates."""
  body = []
  for network, name in CTC_LSNN.items():
    these = runs.get((network, 'symmetric'), [])
    errors, rates = (list(by_seed(these, *of).values()) for of in (('test_per',), ('rate_hz', 1)))
    body.append([f'`{name}`', f'{sum(error < LEARNED for error in errors)} of {len(errors)}',
                 *((between(errors, ' %'), between(rates, ' Hz')) if errors else ('missing', ''))])
  return table(['beside these flags', 'seeds that learn', 'phone error', 'firing rate'], body)


def ctc_state(runs, curves):
  """What the blank and the gradient do in networks that learn by CTC, and in those that do not: a list of sentences.

  Args:
    runs: as of `read`.
    curves: rows of the CSV of learning curves.
  """
  epochs, lines = {}, []
  for row in curves:
    if row['network'] in CTC_LSNN and row.get('validation_blank_share'):
      epochs.setdefault((row['network'], row['rule'], row['seed']), []).append(row)
  for learns, what, when in ((True, 'learned', 'the last update'), (False, 'not learned', 'each epoch')):
    of_runs = [rows for (network, rule, seed), rows in epochs.items() for run in runs[network, rule]
               if run['seed'] == seed and (100 * float(run['test_per']) < LEARNED) == learns]
    if of_runs:
      rows = [row for of_run in of_runs for row in of_run[-1 if learns else 0:]]
      of = lambda name, scale, rows=rows: [scale * float(row[name]) for row in rows]
      lines.append(f'- Networks that have {what} ({len(of_runs)}): after {when} the blank leads in '
                   f'{between(of("validation_blank_share", 100), " %")} of the frames, and the norm of the gradient is '
                   f'{between(of("gradient_norm", 1))} before it is limited to 1.')
  return items(lines)


def two_layer_table(runs):
  """Networks of two layers: BPTT and symmetric e-prop."""
  names = {'framewise_lsnn_two_layers': ('LSNN, framewise', 'test_frame_error', 'wrong frames, 61 classes'),
           'framewise_lstm_two_layers': ('LSTM, framewise', 'test_frame_error', 'wrong frames, 61 classes'),
           'ctc_lsnn_two_layers': ('LSNN, CTC', 'test_per', 'phone error, 39 classes'),
           'ctc_lstm_two_layers': ('LSTM, CTC', 'test_per', 'phone error, 39 classes')}
  body = []
  for network, (name, measure, what) in names.items():
    of = {rule: runs.get((network, rule), []) for rule in ('bptt', 'symmetric')}
    updates = {row['iterations'] for rows in of.values() for row in rows}
    body.append([name, what, ' or '.join(sorted(updates)), *(spread(list(by_seed(of[rule], measure).values())) for rule in of)])
  return table(['', 'measure', 'updates', 'BPTT', 'e-prop, symmetric'], body)


def lstm_table(corpora):
  """Learning rules of the LSTM, framewise and by CTC, a row for each and as many columns for each corpus.

  Args:
    corpora: {title: runs as of `read`}.
  """
  columns = (('framewise_lstm', 'test_frame_error', 'LSTM, 61 classes'),
             ('framewise_lstm', 'test_frame_error_39_phones', '39 classes'), ('ctc_lstm', 'test_per', 'CTC, LSTM'))
  body = []
  for rule in ('bptt', 'symmetric', 'adaptive', 'random'):
    values = [list(by_seed(runs.get((network, rule), []), measure).values()) for runs in corpora.values()
              for network, measure, _ in columns]
    body.append([NAMES[rule], *map(spread, values)])
  return table(['', *(name * (k == 0) + title for name in corpora for k, (*_, title) in enumerate(columns))], body)


def blocks():
  """The text of each block, {name: str}."""
  full, sample, small = (read(corpus) for corpus in ('espeak_full_fbank', 'nltk_sample_fbank', 'espeak_fbank'))
  lstm = {'synthetic: ': read('espeak_fbank', 'lstm'), 'sample of TIMIT: ': read('nltk_sample_fbank', 'lstm')}
  curve = result_plots.read_published_curve(os.path.join(FLAGS.figures, 'published_curve.csv'), published_curve.VARIANTS)
  curves = result_plots.read_curves(*(os.path.join(FLAGS.figures, f'{kind}_espeak_fbank.csv') for kind in ('curves', 'comparison')))
  return dict(full_size=rule_table(full, 'framewise_lsnn', NAMES), full_size_findings=full_size_findings(full),
              published=published_table(curve), variants=variants_table(curve), ctc=ctc_table(small),
              ctc_state=ctc_state(small, curves), two_layers=two_layer_table(small),
              sample=rule_table(sample, 'framewise_lsnn', NAMES), lstm=lstm_table(lstm))


def filled(text):
  """The page `text` with every block written anew.

  Raises:
    UserError: the page lacks a block.
  """
  for name, block in blocks().items():
    pattern = re.compile(rf'(<!-- {name} -->\n).*?(<!-- end -->)', re.S)
    if not pattern.search(text):
      raise files.UserError(f'{FLAGS.readme} has no <!-- {name} --> ... <!-- end -->')
    text = pattern.sub(lambda found, block=block: f'{found[1]}{block}\n{found[2]}', text)
  return text


def main():
  text = files.read_text(FLAGS.readme)
  new = filled(text)
  if new != text:
    files.write_text(FLAGS.readme, new)
  print(f'{FLAGS.readme} {"has new numbers" if new != text else "is up to date"}')


if __name__ == '__main__':
  program.run_app(main)

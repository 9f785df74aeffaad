"""Every flag of every script with values that make no sense, and some that hardly do."""
import json

import numpy as np
import pytest

import conftest
import forks

SCRIPTS = [*sorted(path for path in conftest.ROOT.glob('Figure_*/*.py') if path.stem not in ('experiment', 'program') and
                   'run_app(main)' in path.read_text(encoding='utf-8')),
           *sorted(conftest.ROOT.glob('numerical_verification*.py'))]

# Calls the script with run_app replaced: instead of main(), every flag gets every value that fits none of its kind.
EVERY_FLAG = '''
import json, sys
import experiment, program
from absl import flags

def wrong_values(flag):
  kind, parser = flag.flag_type(), flag.parser
  values = {'float': ['nan', 'inf', '-inf', '1e400', '1e39', 'fast', ''], 'int': ['1.5', '1e3', 'nan', 'many', '', str(2 ** 63)],
            'bool': ['maybe', '2', ''], 'string enum': ['magic', '']}.get(kind, [])
  low, high = getattr(parser, 'lower_bound', None), getattr(parser, 'upper_bound', None)
  if low is not None:
    values += [str(low - 1), '-3e38' if kind == 'float' else str(-2 ** 31)]
  if high is not None:
    values += [str(2 * high + 1), '3e38' if kind == 'float' else str(2 ** 31 - 1)]
  return values

def check(main):
  program.parse(sys.argv)
  wrong, n = [], 0
  for flag in sorted(flags.FLAGS.get_key_flags_for_module(sys.argv[0]), key=lambda flag: flag.name):
    for value in wrong_values(flag):
      n += 1
      for other in flags.FLAGS:
        flags.FLAGS[other].unparse()
      try:
        program.parse([sys.argv[0], f'--{flag.name}={value}'])
      except program.UserError as error:
        if flag.name in str(error) or type(flag).__name__ == '_FlagAlias':  # which names the other
          continue
      wrong.append(f'--{flag.name}={value}')
  print(json.dumps([n, wrong]))

experiment.run_app = program.run_app = check
'''


@pytest.fixture(scope='module')
def imported():
  """TensorFlow, imported once; every call gives its own script."""
  script = forks.Script(conftest.TESTS / 'toy_training.py', conftest.FIGURE_3)
  yield script
  script.close()


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: f'{path.parent.name[:8]}_{path.stem}')
def test_every_flag_refuses_what_it_cannot_be(imported, path):
  ended = imported.also(path)(before=EVERY_FLAG)
  assert ended.code == 0, ended.stderr[-2000:]
  n, wrong = json.loads(ended.stdout.splitlines()[-1])
  assert (n > 20 or path.stem == 'readme_tables') and not wrong, wrong  # which has no flags but paths


# Values at the edge of what is allowed, all in one small run: it is right, or ends in one sentence.
EDGES = {
    'tutorial_pattern_generation': dict(
        tau_v=['1e-3', '1e6'], tau_out=['1e-3', '1e6'], thr=['1e-6', '1e6'], dt=['100', '0.5'], f0=['0', '1e6'], reg=['0', '1e30'],
        reg_rate=['0', '1e6'], learning_rate=['0', '1e30', '1e-30'], dampening_factor=['0', '1e6'], n_in=['1'], n_rec=['1', '2'],
        n_out=['1', '7'], n_batch=['3'], seed=['2147483647'], print_every=['2147483647'], checkpoint_seconds=['0', '3e38'],
        feedback=['adaptive', 'global'], eprop_impl=['hardcoded', 'autodiff'], dtype=['float64'], readout_decay=['1']),
}


@pytest.mark.parametrize('seed', range(6))
def test_values_at_the_edge(edge_script, tmp_path, seed):
  rng, edges = np.random.default_rng(seed), EDGES[edge_script.path.stem]
  chosen = rng.choice(list(edges), 6, replace=False)
  arguments = [f'--{name}={rng.choice(edges[name])}' for name in chosen]
  ended = edge_script('--smoke', '--seq_len=50', '--n_iter=2', '--do_plot=False', f'--result_dir={tmp_path}', *arguments)
  assert ended.code in (0, 2) and len(ended.errors) == (ended.code == 2) and 'Traceback' not in ended.stderr, (arguments, ended)
  if ended.code == 0:
    weights, = tmp_path.rglob('final_weights.npz')
    with np.load(weights) as arrays:
      assert all(np.isfinite(array).all() for array in arrays.values()), arguments


@pytest.fixture
def edge_script(imported):
  return imported.also(conftest.FIGURE_3 / 'tutorial_pattern_generation.py')

"""What a reader looks at: pages, links, pictures, colours."""
import ast
import doctest
import pathlib
import re
import runpy
import shutil
import struct
import subprocess
import sys
import urllib.parse
from html.parser import HTMLParser

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'Figure_3_and_S7_e-prop_tutorials'
PAGES = [*sorted(ROOT.glob('*.md')), *sorted(ROOT.glob('Figure_*/*.md'))]


def links(page):
  """Targets of a Markdown page's links and pictures, code aside."""
  text = re.sub(r'```.*?```|`[^`\n]*`', '', page.read_text(encoding='utf-8'), flags=re.S)
  return re.findall(r'\]\(([^)\s]+)\)', text)


def anchors(page):
  headings = re.findall(r'^#+ (.*)$', page.read_text(encoding='utf-8'), flags=re.M)
  return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
  local = [link for link in links(page) if not link.startswith('https://')]
  assert local or page.name != 'README.md'
  for link in local:
    target, _, anchor = urllib.parse.unquote(link).partition('#')
    file = page.parent / target if target else page
    assert file.exists(), f'{page.name}: {link}'
    assert not anchor or anchor in anchors(file), f'{page.name}: {link}'


def commands(page):
  """(script, its arguments) of every call of Python in a page, in fences or in a line.

  Scripts lie in the page's folder, at the root, or in the folder to which the line links.
  """
  found = []
  for line in page.read_text(encoding='utf-8').splitlines():
    folders = [page.parent, ROOT, *(ROOT / folder for folder in re.findall(r'\]\((Figure_\w+[\w-]*)/', line))]
    for script, arguments in re.findall(r'(?:^|[`\s])(?:\S*/)?python ([a-z./]\S+\.py)([^`#&|;]*)', line):
      path = next((folder / script for folder in folders if (folder / script).exists()), page.parent / script)
      found.append((path.resolve(), arguments.split()))
  return found


def flags_of(script, seen=()):
  """Names of the flags that a script and what it imports from its folders define, by reading them."""
  folders, source = (script.parent, FOLDER), script.read_text(encoding='utf-8')
  names = set(re.findall(r"""(?:DEFINE_\w+|define|add_argument)\(\s*['"](?:--)?(\w+)['"]""", source))
  for module in re.findall(r'^ *(?:import|from) (\w+)', source, flags=re.M):
    path = next((folder / f'{module}.py' for folder in folders if (folder / f'{module}.py').exists()), None)
    if path and path not in seen:
      seen = (*seen, path)
      names |= flags_of(path, seen)
  return names


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_page_exist(page):
  """The script is there and has each of the flags; which values it takes, other tests know."""
  named = commands(page)
  assert named or page.name in ('E-PROP_IN_THIS_CODE.md', 'SCALING.md')
  for script, arguments in named:
    assert script.exists(), f'{page.name}: {script.name}'
    flags = flags_of(script) | {'help'}
    for flag in re.findall(r'--([\w-]+)', ' '.join(arguments)):
      assert flag in flags or flag.removeprefix('no') in flags, f'{page.name}: {script.name} has no --{flag}'


def test_results_of_the_root_page_are_those_of_the_folders_pages():
  """Every decimal of its table of figures stands on the page of the figure's folder, but for the two verifications' errors."""
  table = (ROOT / 'README.md').read_text(encoding='utf-8').split('## Figures')[1].split('\n\n¹')[0]
  found = 0
  for row in re.findall(r'^\|.*Figure_.*\|$', table, flags=re.M):
    page = (ROOT / re.search(r'\]\((Figure_[\w-]+)/', row)[1] / 'README.md').read_text(encoding='utf-8')
    for number in re.findall(r'(?<![\d.])\d+\.\d+(?![\de])', row.split(' | ')[3]):
      assert re.search(rf'(?<![\d.]){re.escape(number)}(?!\d)', page), f'{number} in {row[:60]}'
      found += 1
  assert found > 20


@pytest.mark.parametrize('folder', sorted(ROOT.glob('Figure_*')), ids=lambda folder: folder.name)
def test_a_figures_page_names_its_files(folder):
  page = (folder / 'README.md').read_text(encoding='utf-8')
  assert [file.name for file in [*folder.glob('*.py'), *folder.glob('*.ipynb')] if file.name not in page] == []


def test_figure_2s_page_has_the_numbers_of_its_tables(tmp_path):
  folder, page = ROOT / 'Figure_2_TIMIT', tmp_path / 'README.md'
  text = (folder / 'README.md').read_text(encoding='utf-8')
  page.write_text(re.sub(r'[0-9] %', '? %', text.split('## Run it')[0]), encoding='utf-8')
  subprocess.run([sys.executable, folder / 'readme_tables.py', f'--readme={page}'], check=True, timeout=120)
  blocks = lambda text: re.findall(r'<!-- \w+ -->\n.*?<!-- end -->', text, flags=re.S)
  assert blocks(page.read_text(encoding='utf-8')) == blocks(text) and len(blocks(text)) >= 7
  page.write_bytes(b'\xff')
  ended = subprocess.run([sys.executable, folder / 'readme_tables.py', f'--readme={page}'],
                         capture_output=True, text=True, timeout=120)
  assert ended.returncode == 2 and ended.stderr == f'error: {page} is damaged: it is not text in UTF-8\n'


def test_worked_numbers_of_the_page_are_right():
  result = doctest.testfile(str(FOLDER / 'E-PROP_IN_THIS_CODE.md'), module_relative=False)
  assert result.attempted > 20 and result.failed == 0


def test_functions_the_page_names_are_there():
  text = (FOLDER / 'E-PROP_IN_THIS_CODE.md').read_text(encoding='utf-8')
  named = re.findall(r'\[(\w+\.py):\s+`([\w.]+)`\]\((\w+\.py)\)', text)
  assert len(named) >= 8
  for file, name, target in named:
    scope = ast.parse((FOLDER / target).read_text(encoding='utf-8')).body
    for part in name.split('.'):
      found = [node for node in scope if getattr(node, 'name', None) == part]
      assert file == target and found, f'{target}: {name}'
      scope = found[0].body


def test_idea_figure(tmp_path):
  subprocess.run([sys.executable, FOLDER / 'idea_figure.py', tmp_path / 'idea.png'], check=True, timeout=120)
  png = (tmp_path / 'idea.png').read_bytes()
  assert png.startswith(b'\x89PNG') and min(struct.unpack('>II', png[16:24])) > 600


@pytest.mark.parametrize('script', [FOLDER / 'idea_figure.py', ROOT / 'figures_page.py'])
def test_what_is_no_file_to_write(tmp_path, script):
  for argument in ('--nix', tmp_path):
    done = subprocess.run([sys.executable, script, argument], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and 'error: ' in done.stderr and 'Traceback' not in done.stderr, done.stderr


def test_figure_format(tmp_path):
  """The comparison's figures from the committed CSV as vectors, beside the PNG."""
  shutil.copy(FOLDER / 'figures' / 'comparison_pattern_generation.csv', tmp_path)
  for figure_format, first in (('svg', b'<?xml'), ('pdf', b'%PDF')):
    done = subprocess.run([sys.executable, FOLDER / 'compare_learning_rules.py', '--replot', '--task=pattern_generation',
                           f'--out={tmp_path}', f'--figure_format={figure_format}'], capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    vectors = sorted(tmp_path.glob(f'*.{figure_format}'))
    assert [vector.with_suffix('.png') for vector in vectors] == sorted(tmp_path.glob('*.png')) and len(vectors) == 2
    assert all(vector.read_bytes().startswith(first) for vector in vectors)


def test_figure_format_is_known_to_every_script_that_draws():
  """--figure_format is known to all that train or draw, and obeyed, since drawing.save alone writes figures."""
  scripts = [path for path in [*ROOT.glob('Figure_*/*.py'), *ROOT.glob('numerical_*.py')] if 'run_app(main)' in path.read_text()]
  drawing = [path for path in scripts if re.search(r'plots|drawing', path.read_text())]
  assert len(drawing) >= 8 and [path.name for path in drawing if 'figure_format' not in flags_of(path)] == []
  assert {path.name for path in ROOT.glob('Figure_*/*.py') if '.savefig(' in path.read_text()} == {'drawing.py'}


def lightness(colour):
  """CIE L* of '#rrggbb'."""
  linear = [((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92
            for c in (int(colour[k:k + 2], 16) / 255 for k in (1, 3, 5))]
  y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
  return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def curves(folder, shown_together=''):
  """The colours of a comparison's curves whose names begin so, by line style."""
  rules = runpy.run_path(str(folder / 'plots.py'))['RULES']
  return [[colour for rule, (_, colour, its_style) in rules.items() if its_style == style and rule.startswith(shown_together)]
          for style in ('-', '--', ':')]


def test_colours_differ_in_lightness():
  import palette as p
  groups = (*curves(FOLDER), *curves(ROOT / 'Figure_4_and_5_ATARI', ('eprop', 'published')), p.SERIES,
            (p.LEFT, p.RIGHT, p.RECALL, p.NOISE), (p.LIF, p.ALIF),
            (p.OUTPUT, p.TARGET), (p.TRACE, p.SIGNAL, p.SPIKE))
  for group in groups:
    steps = sorted(map(lightness, group))
    assert min((b - a for a, b in zip(steps, steps[1:])), default=100) > 10, group
  assert lightness('#ffffff') == pytest.approx(100) and lightness('#777777') == pytest.approx(50, abs=0.5)


def test_colours_of_figure_2_differ_in_lightness():
  sys.path.append(str(ROOT / 'Figure_2_TIMIT'))
  import result_plots
  import timit_plots
  groups = [[colour for _, colour, style in result_plots.RULES.values() if style == line] for line in ('-', '--')]
  for group in (*groups, timit_plots.COLOURS.values()):
    steps = sorted(map(lightness, group))
    assert len(steps) > 1 and min(b - a for a, b in zip(steps, steps[1:])) > 10, group


def test_every_agent_of_figure_4_has_a_line_in_its_figure():
  """Or hours of training end without one."""
  code = 'import compare_learning_rules, plots; print(set(compare_learning_rules.RULES) ^ set(plots.RULES))'
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT / 'Figure_4_and_5_ATARI', stdout=subprocess.PIPE, text=True,
                        check=True)
  assert done.stdout.strip() == 'set()'


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  """The page of all figures, in a folder with links to those of the repository."""
  folder = tmp_path_factory.mktemp('page')
  for item in ROOT.iterdir():
    if item.name.startswith('Figure_') or item.name == 'README.md':
      (folder / item.name).symlink_to(item)
  subprocess.run([sys.executable, ROOT / 'figures_page.py', folder / 'figures.html'], check=True, timeout=60)
  return folder / 'figures.html'


def test_page_shows_every_committed_figure_with_its_numbers(page):
  text = page.read_text(encoding='utf-8')
  targets = []

  class Parser(HTMLParser):
    def handle_starttag(self, tag, attributes):
      targets.extend(value for name, value in attributes if name in ('src', 'href') and not value.startswith('https://'))

  Parser().feed(text)
  assert all((page.parent / target).exists() for target in targets), targets
  shown = {(ROOT / target).resolve() for target in targets if target.endswith('.png')}
  assert shown == {picture.resolve() for picture in ROOT.glob('Figure_*/figures/**/*.png')} and len(shown) > 15
  assert 'not readable' not in text
  assert '200 to 500 iterations' in text and '5 seeds' in text


def test_page_opens_in_a_browser(page):
  browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
  if browser is None:
    pytest.skip('no Chromium on this machine')
  probe = ('<script>onload = () => document.title = [...document.images].filter(i => i.naturalWidth < 300).map(i => i.src)'
           '.join() || "all " + document.images.length + " pictures are there"</script>')
  probed = page.parent / 'probed.html'
  for name, text in (('whole', page.read_text()), ('broken', page.read_text().replace('idea.png', 'no_idea.png'))):
    probed.write_text(text + probe)
    done = subprocess.run([browser, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={page.parent / "profile"}',
                           '--dump-dom', f'file://{probed}'], capture_output=True, text=True, timeout=120, check=False)
    title = re.search('<title>(.*)</title>', done.stdout)[1]
    assert title.startswith('all ') if name == 'whole' else title.endswith('no_idea.png'), title

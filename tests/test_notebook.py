"""The notebook that teaches runs, and what is committed is what it shows."""
import pathlib
import re

import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).resolve().parent.parent / 'Figure_3_and_S7_e-prop_tutorials'


def shown(notebook):
  """(number of cell, kind of output, text without its small numbers) of every output."""
  outputs = [(k, output) for k, cell in enumerate(notebook.cells) for output in cell.get('outputs', ())]
  return [(k, output.output_type, re.sub(r'\d\.\de-\d+', 'small', output.get('text', ''))) for k, output in outputs]


def test_notebook_runs_and_shows_what_is_committed(monkeypatch):
  monkeypatch.delenv('MPLBACKEND', raising=False)  # figures are shown, as for a reader
  committed = nbformat.read(FOLDER / 'eprop_step_by_step.ipynb', 4)
  nbformat.validate(committed)
  assert all('jupyter' not in cell.metadata and 'hide' not in str(cell.metadata.get('tags', '')) for cell in committed.cells)
  notebook = nbformat.read(FOLDER / 'eprop_step_by_step.ipynb', 4)
  for cell in notebook.cells:
    if cell.cell_type == 'code':
      cell.outputs = []
  NotebookClient(notebook, timeout=300, kernel_name='python3', resources={'metadata': {'path': str(FOLDER)}}).execute()
  # What learning ends with may differ in its last digits between processors: the notebook itself asserts what it must be.
  same = lambda notebook: [output for output in shown(notebook) if 'after' not in output[2]]
  assert same(notebook) == same(committed) and len(shown(committed)) >= 9
  assert not any(kind == 'error' or 'Warning' in text for _, kind, text in shown(notebook))

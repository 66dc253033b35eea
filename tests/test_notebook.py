"""The notebook of demo/ runs from top to bottom."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "demo/streets.ipynb"


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)  # results belong into docs/results, with their conditions
    names = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert names["trained"].weights.is_file()
    assert names["result"].images == 4
    assert names["exported"].path.is_file()

"""docs/tour.ipynb runs as a new user finds it, and stands in the repository with its pictures."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers import ROOT

NOTEBOOK = ROOT / "docs" / "tour.ipynb"


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook):
    outputs = [x for cell in code_cells(notebook) for x in cell.outputs]
    return [x.data["image/png"] for x in outputs if "image/png" in x.get("data", {})]


def test_it_is_kept_with_small_outputs_of_no_machine():
    notebook, text = read(), NOTEBOOK.read_text()
    assert len(text) < 300_000
    assert len(pictures(notebook)) == 2
    assert [cell.execution_count for cell in code_cells(notebook)] == list(
        range(1, len(code_cells(notebook)) + 1)
    )
    assert not re.search(r'[" ]/(tmp|root|home|work|usr)\b', text)


@pytest.mark.slow
def test_it_runs_where_nothing_was_trained_yet(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = read()
    for cell in code_cells(notebook):
        cell.outputs = []
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}})
    client.execute()  # which raises what a cell raises: its assertions are the test
    assert len(pictures(notebook)) == 2
    made = tmp_path / "runs/small_tour"
    assert (made / "generator_run/export/params.msgpack").is_file()
    assert (made / "teacher_run/teacher").is_dir() and not (made / "teacher_run/export").exists()

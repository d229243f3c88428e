"""The notebook of examples runs, and shows what it tells of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import BINARY, PACKAGE

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
for needed in ("torch", "ipykernel", "matplotlib"):
    pytest.importorskip(needed)


def test_first_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASNG_CONTROLLER_BIN", str(BINARY))
    notebook = nbformat.read(PACKAGE / "examples/first_search.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "clear the outputs"
    directory = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=60, resources=directory).execute()
    data = [o.data for cell in cells for o in cell.outputs if o.output_type == "execute_result"]
    assert any("image/png" in shown for shown in data)
    assert any("metrics.train_loss" in shown["text/plain"] for shown in data)
    printed = cells[-1].outputs[0].text
    accuracy = re.search(r"accuracy on other examples: (\S+)", printed)
    assert accuracy and float(accuracy[1]) > 0.95

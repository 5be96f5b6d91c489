# SPDX-License-Identifier: Apache-2.0
"""Every notebook runs from top to bottom and is stored without outputs."""

import os
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODEL = os.environ.get("SMOLLM2_GGUF", "")
MARKS = {
    "02_real_model": [
        pytest.mark.slow,
        pytest.mark.skipif(not MODEL, reason="SMOLLM2_GGUF does not name the model's file"),
    ]
}


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=MARKS.get(path.stem, ())) for path in NOTEBOOKS]
)
def test_notebook(path, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.delenv("JAX_NUMPY_RANK_PROMOTION")
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    for cell in code:
        for output in cell.outputs:
            assert "error: " not in output.get("text", ""), output["text"]

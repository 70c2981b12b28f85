# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The notebooks run from top to bottom at a small size, offline, and hold no outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Sizes that the test makes smaller.
SMALLER = {"num_held_out = 256, 4, 64": "num_held_out = 32, 1, 8"}


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_kept(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, f"clear the outputs of {path.name}"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for cell in read(path).cells:
        for target in re.findall(r"\]\(([^)#]+)", cell.source) if cell.cell_type == "markdown" else ():
            assert (path.parent / target).is_file(), f"{path.name} links to {target}"


def test_the_quickstart_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two threads that wait for each other are far slower on a busy machine
    notebook = read(ROOT / "notebooks" / "quickstart.ipynb")
    for size, smaller in SMALLER.items():
        assert sum(size in cell.source for cell in notebook.cells) == 1
        for cell in notebook.cells:
            cell.source = cell.source.replace(size, smaller)
    NotebookClient(notebook, timeout=250, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    # two plots of training, one of budgets
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    printed = "".join(output.get("text", "") for output in outputs)
    assert "within-prompt accuracy on completions of the base: " in printed and "L = 16: accuracy " in printed
    assert "the plain model, greedy: accuracy " in printed

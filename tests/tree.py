"""What tests of the pipeline share: cells, notebooks, chapters with results, a tree to put them in."""
from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from pipeline import copies


def script(file: Path) -> ModuleType:
    """A script of full/ or benchmarks/ as a module, with the common.py of its own folder."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(file.parent)
        sys.modules.pop("common", None)
        spec.loader.exec_module(module)
        sys.modules.pop("common", None)
    return module


def code(source: str, *tags: str, **kwargs: object) -> nbformat.NotebookNode:
    return new_code_cell(source, metadata={"tags": list(tags)} if tags else {}, **kwargs)


def write(file: Path, *cells: nbformat.NotebookNode) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), file)
    return file


def folder(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    return path


def row(id: str, chapter: str, **changed: object) -> dict:
    """A line of claims.json."""
    return {"id": id, "chapter": chapter, "says": "something", "source": "paper: Table 1", "quantity": "a number",
            "rule": "≤ 2", "value": 1.0, "spread": None, "seeds": 1, "verdict": "holds", "note": ""} | changed


def missing(id: str, chapter: str) -> dict:
    return row(id, chapter, quantity="", rule="", value=None, seeds=None, verdict="not reproduced", note="days")


def chapter(root: Path, name: str, *cells: nbformat.NotebookNode) -> Path:
    """A chapter with results, as the pipeline leaves them: one claim that holds and one that was not reproduced."""
    source = write(root / "notebooks" / f"{name}.ipynb", *cells)
    results = root / "results" / name
    (results / "figures").mkdir(parents=True)
    (results / "figures" / "gallery.png").write_bytes(b"a picture")
    (results / "figures" / "gallery.webp").write_bytes(b"a film")
    made = copies.stripped(copies.read(source))
    for count, cell in enumerate((cell for cell in made.cells if cell.cell_type == "code"), 1):
        cell.outputs = [new_output("stream", name="stdout", text="made by the pipeline")]
        cell.execution_count = count
    (results / f"{name}.ipynb").write_text(copies.dumps(made))
    prefix = name[-1].upper()
    record(root, name, [row(f"{prefix}-1", name), missing(f"{prefix}-2", name)])
    (results / "metrics.json").write_text('{"loss": 1.5}')
    (results / "tolerances.json").write_text('{"loss": 0.1}')
    return source


def record(root: Path, name: str, rows: list[dict]) -> None:
    (root / "results" / name / "claims.json").write_text(json.dumps(rows))


def commit(root: Path) -> str:
    """Commit all that is there; the commit's name."""
    for words in (["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=root, text=True).strip()

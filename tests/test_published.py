"""The notebooks in the tree: executed, in order, by themselves readable, and what the pipeline made."""
from __future__ import annotations

import ast
import functools
import json
import re
import sys
from types import SimpleNamespace

import nbformat
import pytest

from lib.chapter.claims import registry
from pipeline.copies import INJECTED, KERNEL, dumps, read, stripped, tagged
from pipeline.files import RESULTS, ROOT
from pipeline.parameters import literals, read_yaml
from pipeline.run import parameters
from pipeline.student import student

NAMES = sorted(file.stem for file in (ROOT / "notebooks").glob("*.ipynb"))
MACHINE = re.compile(r"(?<![\w.:/])(?:/(?:home|root|Users|tmp|work|private|var|opt|mnt|usr)/\w|[A-Z]:\\)|ipykernel_\d")
ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,}")

chapter = pytest.mark.parametrize("name", NAMES)


@functools.cache
def notebook(name: str) -> nbformat.NotebookNode:
    return read(ROOT / "notebooks" / f"{name}.ipynb")


def code(name: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook(name).cells if cell.cell_type == "code"]


def outputs(name: str) -> list[nbformat.NotebookNode]:
    return [output for cell in code(name) for output in cell.outputs]


# --- as a reader sees them --------------------------------------------------------------------------------


@chapter
def test_cells_were_executed_in_order_and_show_what_they_made(name: str):
    assert [cell.execution_count for cell in code(name)] == list(range(1, len(code(name)) + 1)), "run `make publish`"
    assert any("image/png" in output.get("data", {}) for output in outputs(name))


@chapter
def test_nothing_failed_warned_or_was_injected(name: str):
    assert not [output for output in outputs(name) if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [cell for cell in notebook(name).cells if tagged(cell, INJECTED)]


@chapter
def test_nothing_tells_of_a_machine(name: str):
    """No absolute path, kernel number or memory address, in sources or in outputs that are text."""
    texts = [cell.source for cell in notebook(name).cells]
    for output in outputs(name):
        texts += [output.get("text", ""), *map(str, (v for k, v in output.get("data", {}).items() if k[:5] != "image"))]
    for text in texts:
        assert not MACHINE.search(text) and not ADDRESS.search(text), text[:500]


@chapter
def test_a_notebook_is_light(name: str):
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 2_000_000


@chapter
def test_every_picture_says_what_is_to_be_seen(name: str):
    for output in outputs(name):
        if "image/png" in output.get("data", {}):
            assert len(output.metadata.get("image/png", {}).get("alt", "").split()) >= 6


@chapter
def test_the_file_is_what_the_pipeline_writes(name: str):
    text = (ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    assert dumps(read(ROOT / "notebooks" / f"{name}.ipynb")) == text
    assert [(cell.id, dict(cell.metadata)) for cell in notebook(name).cells] == [
        (cell.id, dict(cell.metadata)) for cell in stripped(read(ROOT / "notebooks" / f"{name}.ipynb")).cells]


@chapter
def test_opening_and_saving_in_lab_leaves_no_difference(name: str):
    """But for the version of Python, where another one opens it."""
    record()
    kernel = notebook(name).metadata
    assert re.fullmatch(r"3\.\d+\.\d+", kernel.language_info.pop("version")) and kernel == KERNEL


@chapter
def test_the_first_cell_finds_the_library_fetches_it_on_colab_or_says_what_to_do(
        name: str, monkeypatch: pytest.MonkeyPatch):
    guard, = [cell.source for cell in code(name) if 'find_spec("lib")' in cell.source]
    assert guard == next(cell.source for cell in code(name))
    monkeypatch.setattr(sys, "path", ["elsewhere"])
    monkeypatch.chdir(ROOT / "notebooks")
    found = [True] * 9
    monkeypatch.setattr("importlib.util.find_spec", lambda _: found.pop(0))
    exec(guard, {})
    assert sys.path == [str(ROOT), "elsewhere"]

    found[:] = [True, False] + [True] * 9
    with pytest.raises(ImportError, match=r"^torch not found: take \.venv as the kernel; `python -m pipeline setup`"):
        exec(guard, {})

    asked, found[:] = [], [False] + [True] * 9
    monkeypatch.setitem(sys.modules, "google.colab", ast)
    shell = SimpleNamespace(system=asked.append, run_line_magic=lambda *words: asked.append(" ".join(words)))
    exec(guard, {"get_ipython": lambda: shell, "input": lambda _: "https://example.org/house.git"})
    assert asked[0].startswith("git clone -q --depth 1 https://example.org/house.git /content/five-roads; ")
    assert "pip install -q -e . dvc && python -m pipeline data" in asked[0]
    assert asked[1] == "cd -q /content/five-roads/notebooks"


# --- parameters, verdicts, exercises ----------------------------------------------------------------------


@chapter
def test_parameters_are_those_of_params_yaml(name: str):
    """Names, types and values are equal, values are allowed, and every default is a literal."""
    values, changed = parameters(name, notebook(name))
    assert changed == {}
    cells = [cell for cell in notebook(name).cells if tagged(cell, "parameters")]
    assert len(cells) == 1 and len(values) == len(ast.parse(cells[0].source).body) == len(literals(cells[0].source))
    assert all("#" in line for line in cells[0].source.splitlines()), "each parameter says what it is"


@chapter
def test_verdicts_are_compared_exactly(name: str):
    verdicts = [cell for cell in code(name) if ".verdicts()" in cell.source]
    assert verdicts and all(tagged(cell, "nbval-check-output") for cell in verdicts)


@chapter
def test_exercises_have_solutions_that_are_marked_and_collapsed(name: str):
    marked = [cell for cell in code(name) if "### BEGIN SOLUTION" in cell.source]
    headings = [cell for cell in notebook(name).cells if re.search(r"^\W*Exercise \d", cell.source, re.MULTILINE)]
    assert len(marked) == len(headings) >= 4
    assert marked == [cell for cell in code(name) if tagged(cell, "solution")]
    for cell in marked:
        assert cell.source.startswith("### BEGIN SOLUTION\n") and cell.source.endswith("\n### END SOLUTION")
        assert cell.metadata.jupyter.source_hidden


@chapter
def test_the_student_edition_needs_no_solution(name: str):
    """No cell that is left uses a name that only a solution defines."""
    edition = [cell.source for cell in student(read(ROOT / "notebooks" / f"{name}.ipynb")).cells
               if cell.cell_type == "code"]
    assert "SOLUTION" not in "".join(edition)
    left = ast.parse("\n".join(edition))
    gone = _defined(ast.parse("\n".join(cell.source for cell in code(name)))) - _defined(left)
    assert not gone & {node.id for node in ast.walk(left) if isinstance(node, ast.Name)}


def _defined(tree: ast.Module) -> set[str]:
    return ({node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
            | {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
            | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
            | {alias.asname or alias.name.split(".")[0] for node in ast.walk(tree)
               if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names})


# --- the pipeline around them -----------------------------------------------------------------------------


def test_the_pipeline_knows_every_notebook():
    pipeline = read_yaml(ROOT / "dvc.yaml")
    assert pipeline["stages"]["run"]["foreach"] == NAMES
    assert pipeline["metrics"] == [f"results/{name}/{part}.json" for name in NAMES for part in ("metrics", "verdicts")]
    assert pipeline["plots"] == [f"results/{name}/figures" for name in NAMES]
    assert set(NAMES) <= set(read_yaml(ROOT / "params.yaml"))


@functools.cache
def record() -> dict:
    chapters = json.loads((ROOT / "docs" / "published.json").read_text(encoding="utf-8"))["chapters"]
    if not all(isinstance(row, dict) for chapter in chapters.values() for row in chapter["claims"].values()):
        pytest.skip("published before the ledger had rules: `make publish` renews it")
    return chapters


def test_the_published_record_is_of_these_notebooks():
    """Every claim of claims.yaml has its row; what does not hold stands on the README."""
    assert list(record()) == NAMES
    claims = registry()
    assert {id for name in NAMES for id in record()[name]["claims"]} == set(claims)
    readme, ledger = ((ROOT / file).read_text(encoding="utf-8") for file in ("README.md", "docs/ledger.md"))
    for name in NAMES:
        assert (ROOT / "docs" / "gallery" / f"{name}.png").exists()
        assert set(record()[name]["metrics"]) == set(record()[name]["tolerances"])
        printed = "".join(output.get("data", {}).get("text/plain", "") for output in outputs(name))
        for id, row in record()[name]["claims"].items():
            assert f"'{id}': {row['verdict']!r}" in printed and f"| [{id}](../notebooks/{name}.ipynb" in ledger
            assert (f"| [{id}](notebooks/{name}.ipynb" in readme) == (row["verdict"] != "holds")
            assert row["rule"] == str(claims[id].rule or "")


@chapter
def test_results_agree_with_the_published_ones(name: str):
    """Verdicts are equal; numbers agree within the tolerance that the chapter states for another processor."""
    made = RESULTS / name / f"{name}.ipynb"
    if not made.exists():
        pytest.skip("no results here: `make repro` makes them")
    if dumps(stripped(read(made))) != dumps(stripped(read(ROOT / "notebooks" / f"{name}.ipynb"))):
        pytest.skip("the results here are of another version of the notebook: `make repro` renews them")
    if any(tagged(cell, INJECTED) for cell in read(made).cells):
        pytest.skip("the results here are of other parameters")
    published = record()[name]
    metrics, claims = (json.loads((RESULTS / name / f"{part}.json").read_text()) for part in ("metrics", "claims"))
    was = {id: row["verdict"] for id, row in published["claims"].items()}
    assert {row["id"]: row["verdict"] for row in claims} == was
    assert set(metrics) == set(published["metrics"])
    for key, value in metrics.items():
        tolerance = published["tolerances"][key]
        assert value == pytest.approx(published["metrics"][key], rel=tolerance, abs=1e-12), key

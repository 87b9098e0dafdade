"""The stripped copy of a notebook, the executed one, and the student's edition."""
from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook, new_output
from tree import code, write

from pipeline import copies, student
from pipeline import fingerprint as prints
from pipeline.parameters import Refused


def executed(seconds: str, random: str) -> nbformat.NotebookNode:
    """A notebook as papermill leaves it, with its times and random identifiers."""
    cells = [new_markdown_cell("# Title", id=f"m{random}"),
             code("seed = 0", "parameters", id=f"p{random}"),
             code("seed = 1", copies.INJECTED, id=f"i{random}"),
             code("print(seed)", "solution", id=f"c{random}", execution_count=3,
                  outputs=[new_output("stream", name="stdout", text="1\n")])]
    for cell in cells:
        cell.metadata.update(papermill={"duration": seconds}, execution={"iopub.status.idle": seconds}, collapsed=True)
    metadata = {"kernelspec": {"name": random, "display_name": random}, "papermill": {"start_time": seconds},
                "widgets": {random: 1}}
    return new_notebook(cells=cells, metadata=metadata)


def test_stripping_leaves_what_the_author_wrote():
    copy = copies.stripped(executed("1.5", "abc"))
    assert [cell.source for cell in copy.cells] == ["# Title", "seed = 0", "print(seed)"]
    assert [cell.id for cell in copy.cells] == ["cell-00", "cell-01", "cell-02"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in copy.cells if cell.cell_type == "code")
    assert [dict(cell.metadata) for cell in copy.cells] == [
        {}, {"tags": ["parameters"]}, {"tags": ["solution"], "jupyter": {"source_hidden": True}}]
    assert copy.metadata.kernelspec.name == "python3"
    nbformat.validate(copy)


def test_opening_and_saving_in_lab_changes_nothing():
    """The metadata are the installed kernel's own, as JupyterLab writes them"""
    made = copies.normalised(executed("1.5", "abc"))
    kernel = pytest.importorskip("ipykernel.kernelspec").get_kernel_dict()
    info = pytest.importorskip("ipykernel.ipkernel").IPythonKernel.language_info
    assert made.metadata.kernelspec == {"name": "python3", "display_name": kernel["display_name"],
                                        "language": kernel["language"]}
    assert made.metadata.language_info == info
    clean = copies.stripped(executed("1.5", "abc")).metadata
    assert "version" not in clean.language_info  # another Python makes no chapter stale
    assert clean.language_info.items() <= made.metadata.language_info.items()


def test_stripping_and_normalising_forget_times_and_identifiers_and_are_idempotent():
    for function in (copies.stripped, copies.normalised):
        once = copies.dumps(function(executed("1.5", "abc")))
        assert once == copies.dumps(function(function(executed("1.5", "abc"))))
        if function is copies.stripped:
            assert once == copies.dumps(function(executed("2.5", "xyz")))


def test_normalising_keeps_outputs_and_the_injected_cell():
    first, second = (copies.normalised(executed(*run)) for run in (("1.5", "abc"), ("2.5", "abc")))
    assert copies.dumps(first) == copies.dumps(second)
    assert [cell.source for cell in first.cells] == ["# Title", "seed = 0", "seed = 1", "print(seed)"]
    assert first.cells[2].id == copies.INJECTED  # papermill's is random
    assert first.cells[3].outputs[0].text == "1\n" and first.cells[3].execution_count == 3


def test_a_file_that_is_no_notebook_is_refused_by_name(root: Path):
    (root / "notebooks").mkdir()
    file = root / "notebooks" / "00_a.ipynb"
    good = json.loads(nbformat.writes(new_notebook(cells=[code("1", "solution"), new_markdown_cell("a")])))
    cell, text = good["cells"]
    wrong = [good | {"cells": None}, good | {"cells": {}}, good | {"cells": [None]}, good | {"metadata": None},
             good | {"nbformat": "4"}, good | {"nbformat": 99}, {key: good[key] for key in good if key != "cells"},
             *(good | {"cells": [text, cell | part]} for part in (
                 {"source": None}, {"metadata": None}, {"metadata": {"tags": None}}, {"metadata": {"tags": "solution"}},
                 {"cell_type": "poem"}, {"outputs": None}, {"outputs": [{}]})),
             *(good | {"cells": [{key: cell[key] for key in cell if key != part}, text]} for part in (
                 "source", "metadata", "cell_type", "outputs"))]
    for content in ("<<<<<<< ours\n{}", "[]", "{}", '{"nbformat": 4}', "\xff", "null", "", "[" * 100_000,
                    *map(json.dumps, wrong)):
        file.write_bytes(content.encode("latin1"))
        with pytest.raises(Refused, match=r"error: notebooks/00_a\.ipynb cannot be read as a notebook: "):
            prints.clean()
    file.write_text(json.dumps(good))
    prints.clean()


def test_the_student_has_no_solutions_and_no_outputs(root: Path):
    write(root / "notebooks" / "00_a.ipynb", new_markdown_cell("**Exercise.**"),
          code("def f(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION\n\n\nprint(1)",
               outputs=[new_output("stream", name="stdout", text="1\n")], execution_count=7),
          code("### BEGIN SOLUTION\nsecret = 1\n### END SOLUTION", "solution"),
          code("print(2)  # kept", "nbval-check-output"))
    student.write(root / "out")
    made = copies.read(root / "out" / "00_a.ipynb")
    assert [cell.source for cell in made.cells] == [
        "**Exercise.**", "def f(x):\n# your solution\n\n\nprint(1)", "# your solution", "print(2)  # kept"]
    assert all(not cell.outputs and cell.execution_count is None for cell in made.cells[1:])
    assert "source_hidden" not in str(made) and made.cells[2].metadata.tags == ["solution"]


def test_the_pipeline_speaks_with_one_kind_of_error():
    assert issubclass(Refused, SystemExit)  # a message and exit status 1, no traceback
    assert str(Refused("x")) == "error: x"

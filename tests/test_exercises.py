"""Every exercise of every chapter: stub, solution, an exception and all wrong answers get the right word."""
from __future__ import annotations

import ast
import io
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from IPython.core.inputtransformer2 import TransformerManager

from pipeline import files, grade
from pipeline.copies import read

NOTEBOOKS = sorted((files.ROOT / "notebooks").glob("*.ipynb"))


def solutions(notebook: nbformat.NotebookNode) -> dict[str, tuple[ast.expr, list[ast.stmt]]]:
    """The answer in the solution of each check, and the statements of that cell before it."""
    found = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and "### BEGIN SOLUTION" in cell.source:
            body = ast.parse(TransformerManager().transform_cell(cell.source)).body
            for position, statement in enumerate(body):
                if name := grade.called(statement):
                    found[name] = statement.value.args[0], body[:position]
    return found


def raises(*_: object, **__: object) -> None:
    raise RuntimeError("on purpose")


@pytest.fixture(autouse=True)
def nothing_stays():
    """Chapters set a type and a style for all that follows; the next test is not theirs."""
    before = torch.get_default_dtype()
    with plt.rc_context():
        yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_every_answer_gets_its_word(file: Path, monkeypatch: pytest.MonkeyPatch):
    notebook = read(file)
    body = [one for one in grade.statements(notebook) if not isinstance(one, str)]
    stubs = {grade.called(one): (one.value.args[0], body[:position]) for position, one in enumerate(body)
             if grade.called(one)}
    solved = solutions(notebook)
    assert len(stubs) >= 4 and stubs.keys() == solved.keys()
    monkeypatch.chdir(file.parent)
    for name, (stub, before) in stubs.items():
        answer, own = solved[name]
        wanted = ast.parse(f"judged = ({name}, {ast.unparse(stub)}, {ast.unparse(answer)})").body[0]
        space: dict[str, object] = {"__name__": "exercise"}
        with redirect_stdout(io.StringIO()):
            exec(compile(ast.Module(grade.needed(wanted, [*before, *own]), []), str(file), "exec"), space)
        plt.close("all")
        check, stub, right = space["judged"]
        assert check.judge(stub).word == "not attempted", name
        assert check.judge(right) == ("correct", ""), name
        word, why = check.judge(raises)
        assert word == "not yet" and "RuntimeError: on purpose" in why, name
        assert len(check.wrong) >= 3
        for what, wrong in check.wrong.items():
            assert check.judge(wrong).word == "not yet", f"{name}: {what} passes"

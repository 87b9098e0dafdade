"""The exercises of a chapter with no more of it than they need, as nbgrader and otter-grader want their assignments.

What an exercise needs is found as for grading, so an assignment runs in seconds where its chapter takes minutes.
"""
from __future__ import annotations

import ast
from typing import Any, NamedTuple

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_raw_cell

from pipeline.copies import KERNEL, stripped, tagged
from pipeline.grade import FUNCTIONS, called, needed
from pipeline.student import ANSWER, PROMISE, STUDENT, TEACHER

GUARD = 'find_spec("lib")'  # in the cell that looks for the library
CONFIG = """\
# as nbgrader reads it, in the folder above source/
c = get_config()
c.CourseDirectory.course_id = "five-roads"
c.ClearSolutions.code_stub = {"python": "# your answer: change the function above"}
c.ExecutePreprocessor.timeout = 180
"""


class Part(NamedTuple):
    """A piece of an assignment: text or code that is given, or, where it has a number, an exercise in code."""

    text: bool
    source: str
    number: str = ""
    answer: str = ""  # name of the function asked for, and its solution
    solution: str = ""


def parts(notebook: nbformat.NotebookNode) -> list[Part]:
    """Title, what the exercises need, and the exercises."""
    cells, found = stripped(notebook).cells, []
    bodies = [body(cell.source) if cell.cell_type == "code" else [] for cell in cells]
    wanted = kept(cells, bodies)
    title = cells[0].source.partition("\n")[0]
    found.append(Part(True, f"{title}\n\nThe exercises of this chapter, after those of its cells that they need."))
    inside = False
    for cell, statements in zip(cells, bodies, strict=True):
        if cell.cell_type == "markdown":
            inside = "## Exercises" in cell.source or (inside and not cell.source.startswith("## "))
            if inside:
                found.append(Part(True, PROMISE.sub("", ANSWER.sub("*your answer*", cell.source))))
        elif GUARD in cell.source:
            found.append(Part(False, cell.source.replace(TEACHER, STUDENT)))
        elif tagged(cell, "solution"):
            found[-1] = found[-1]._replace(solution=solved(cell.source, statements, found[-1].answer))
        elif needs := [one for one in statements if id(one) in wanted]:
            call = next((one for one in needs if called(one)), None)
            source = text(cell.source, [one for one in needs if one is not call])
            exercise = (called(call).removeprefix("check_"), judged(call)) if call else ()
            found.append(Part(False, source, *exercise))
    return found


def kept(cells: list[nbformat.NotebookNode], bodies: list[list[ast.stmt]]) -> set[int]:
    """Identities of the statements that an exercise or its solution needs, and all imports, which answers may want."""
    before, wanted = [], set()
    for cell, statements in zip(cells, bodies, strict=True):
        for position, one in enumerate(statements):
            if called(one):
                wanted |= set(map(id, needed(one, [*before, *statements[:position]])))
        if not tagged(cell, "solution"):
            wanted |= {id(one) for one in statements if isinstance(one, (ast.Import, ast.ImportFrom))}
            before += statements
    return wanted


def body(source: str) -> list[ast.stmt]:
    """The top-level statements of a cell."""
    return ast.parse(TransformerManager().transform_cell(source)).body


def text(source: str, statements: list[ast.stmt]) -> str:
    """Those statements as they are written, with their comments."""
    lines, found = source.splitlines(), ""
    for one, before in zip(statements, [None, *statements], strict=False):
        first = min([one.lineno, *(part.lineno for part in getattr(one, "decorator_list", []))])
        apart = "\n\n\n" if isinstance(one, FUNCTIONS) or isinstance(before, FUNCTIONS) else "\n"
        found += (apart if found else "") + "\n".join(lines[first - 1:one.end_lineno])
    return found


def solved(source: str, statements: list[ast.stmt], name: str) -> str:
    """The solution under the name that the exercise asks for: what its check is given, and what that needs.

    Where the check is given what a function without arguments returns, that function is asked for.
    """
    position = next(position for position, one in enumerate(statements) if called(one))
    *needs, call = needed(statements[position], statements[:position])
    function = name.removesuffix("()")
    return f"{text(source, needs)}\n\n\n{function} = {'lambda: ' * (function != name)}{judged(call)}"


def judged(call: Any) -> str:
    """What the call of a check gives it."""
    return ast.unparse(call.value.args[0])


def nbgrader(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The source version of an nbgrader assignment: answers to be cleared, tests of one point each, the rest locked."""
    cells = []
    for position, part in enumerate(parts(notebook)):
        locked = {"schema_version": 3, "locked": True, "solution": False, "grade": False, "task": False}
        if part.number:
            answer, test = in_code(part, "###", "")
            cells += [answer, test]
            answer.metadata["nbgrader"] = locked | {"grade_id": f"exercise-{part.number}", "locked": False,
                                                    "solution": True}
            test.metadata["nbgrader"] = locked | {"grade_id": f"test-{part.number}", "grade": True, "points": 1}
        else:
            cells.append((new_markdown_cell if part.text else new_code_cell)(part.source))
            cells[-1].metadata["nbgrader"] = locked | {"grade_id": f"given-{position}"}
    return numbered(cells)


def otter(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """The master of an otter-grader assignment."""
    cells = [new_raw_cell(f"# ASSIGNMENT CONFIG\nname: {name}\nexport_cell: false\ncheck_all_cell: false")]
    for part in parts(notebook):
        if part.number:
            answer, test = in_code(part, "#", " NO PROMPT")
            cells += [new_raw_cell(f"# BEGIN QUESTION\nname: exercise_{part.number}\npoints: 1"),
                      new_raw_cell("# BEGIN SOLUTION"), answer, new_raw_cell("# END SOLUTION"),
                      new_raw_cell("# BEGIN TESTS"), test, new_raw_cell("# END TESTS"), new_raw_cell("# END QUESTION")]
        else:
            cells.append((new_markdown_cell if part.text else new_code_cell)(part.source))
    return numbered(cells)


def in_code(part: Part, mark: str, more: str) -> list[nbformat.NotebookNode]:
    """A cell with stub and solution, and one that passes with the right answer and says why not with another."""
    check = f"check_{part.number}"
    return [new_code_cell(f"{part.source}\n\n\n{mark} BEGIN SOLUTION{more}\n{part.solution}\n{mark} END SOLUTION\n"
                          f"{check}({part.answer})"),
            new_code_cell(f'assert {check}.judge({part.answer}).word == "correct", {check}.judge({part.answer})')]


def numbered(cells: list[nbformat.NotebookNode]) -> nbformat.NotebookNode:
    """A notebook of these cells, with identifiers and metadata as all ours have them."""
    for position, cell in enumerate(cells):
        cell.id = f"cell-{position:02d}"
    return new_notebook(cells=cells, metadata=KERNEL)

"""A table of the exercises in a folder of students' notebooks, as CSV: a row a notebook, a word and a message each.

    python -m pipeline grade FOLDER > grades.csv

Of a notebook only what an exercise needs is run, each exercise in a process of its own with a limit of time: the call
of its check, and backwards from there every top-level statement that makes or changes a name needed.  So neither a
broken cell nor an endless loop elsewhere stops anything.  The checks are those in the student's file.
"""
from __future__ import annotations

import ast
import csv
import os
import re
import subprocess
import symtable
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from pipeline import files
from pipeline.files import Refused

SECONDS = 180  # for one exercise
SAID = re.compile(r"^exercise \S+: (not attempted|correct|not yet)(?: \((.*)\))?$", re.MULTILINE)
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
PLAIN = *FUNCTIONS, ast.Assign, ast.Import, ast.ImportFrom
MUTATING = {"append", "extend", "update", "add", "insert", "setdefault", "pop", "remove", "clear", "sort"}


class Mark(NamedTuple):
    """What a check said of an answer."""

    word: str
    message: str = ""


def statements(notebook: nbformat.NotebookNode) -> Iterator[ast.stmt | str]:
    """Top-level statements in their order; a cell that is no Python comes as its text.  Solutions are left out."""
    for cell in notebook.cells:
        if cell.cell_type != "code" or "### BEGIN SOLUTION" in cell.source:
            continue
        try:
            yield from ast.parse(TransformerManager().transform_cell(cell.source)).body
        except SyntaxError as error:
            yield f"{cell.source}\n{error}"


def needed(target: ast.stmt, before: list[ast.stmt]) -> list[ast.stmt]:
    """Those statements that the target needs, directly or not, and the target.

    Backwards, a plain binding of a needed name ends the search for it; what functions read is needed when they are
    called, so at the target.
    """
    later, chosen = loaded(target), {}
    while True:
        names, deferred, chosen = set(later), set(later), {}
        for position in reversed(range(len(before))):
            statement = before[position]
            if not (made(statement) & names or sets_the_scene(statement)):
                continue
            chosen[position] = statement
            if isinstance(statement, PLAIN) and not changes(statement):
                names -= made(statement)
            names |= loaded(statement)
            deferred |= loaded(statement) if isinstance(statement, FUNCTIONS) else set()
        if deferred == later:
            return [chosen[position] for position in sorted(chosen)] + [target]
        later = deferred


def loaded(statement: ast.stmt) -> set[str]:
    """Names of the top level that a statement reads, in nested functions too; not what is local to those."""
    pending, found = [symtable.symtable(ast.unparse(statement), "cell", "exec")], set()
    while pending:
        table = pending.pop()
        top = table.get_type() == "module"
        found |= {one.get_name() for one in table.get_symbols() if one.is_referenced() and (top or one.is_global())}
        pending += table.get_children()
    return found


def changes(statement: ast.stmt) -> bool:
    """Whether a binding also changes an object that was there, as `a[0] = 1` does."""
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return any(isinstance(node, (ast.Subscript, ast.Attribute)) and isinstance(node.ctx, ast.Store)
               for target in targets for node in ast.walk(target))


def made(statement: ast.stmt) -> set[str]:
    """Names that a statement binds at the top level, or whose object it changes."""
    if isinstance(statement, FUNCTIONS):
        return {statement.name}
    found: set[str] = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, (ast.Subscript, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            found.add(_root(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and (
                node.func.attr in MUTATING or node.func.attr.endswith("_")):
            found.add(_root(node.func))
    return found - {""}


def _root(node: ast.expr) -> str:
    while isinstance(node, (ast.Subscript, ast.Attribute, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def sets_the_scene(statement: ast.stmt) -> bool:
    """Whether a statement changes what all that follows it does, as torch.set_default_dtype does."""
    call = getattr(statement, "value", None) if isinstance(statement, ast.Expr) else None
    name = getattr(call.func, "attr", "") if isinstance(call, ast.Call) else ""
    return name.startswith("set_default")


def called(statement: ast.stmt | str) -> str:
    """The check that a statement calls; empty if none."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        name = getattr(statement.value.func, "id", "")
        return name if name.startswith("check_") else ""
    found = re.search(r"^(check_\w+)\(", statement, re.MULTILINE) if isinstance(statement, str) else None
    return found[1] if found else ""


def marks(notebook: nbformat.NotebookNode, seconds: float = SECONDS) -> dict[str, Mark]:
    """What each check says of the last answer it was given, by the number of the exercise."""
    body = list(statements(notebook))
    whole = [one for one in body if not isinstance(one, str)]
    names = [target.id for one in whole if isinstance(one, ast.Assign) for target in one.targets
             if isinstance(target, ast.Name) and target.id.startswith("check_")]
    last = {called(one): position for position, one in enumerate(body) if called(one)}
    found = {}
    for name in dict.fromkeys([*names, *last]):
        target = body[last[name]] if name in last else None
        if target is None:
            mark = Mark("not attempted", f"{name} is not called")
        elif isinstance(target, str):
            mark = Mark("not yet", f"SyntaxError: {target.splitlines()[-1]}")
        else:
            before = [one for one in body[:last[name]] if not isinstance(one, str)]
            mark = run(needed(target, before), seconds)
        found[name.removeprefix("check_")] = mark
    return found


def run(program: list[ast.stmt], seconds: float) -> Mark:
    """Run statements of which the last calls a check; what it said, or why it could not say anything."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        file = Path(scratch) / "answer.py"
        file.write_text(ast.unparse(ast.Module(program, [])), encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(files.ROOT), "MPLBACKEND": "Agg", "PYTHONIOENCODING": "utf-8"}
        try:
            done = subprocess.run([sys.executable, str(file)], cwd=files.ROOT / "notebooks", env=environment, text=True,
                                  encoding="utf-8", errors="replace", capture_output=True, timeout=seconds,
                                  stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            return Mark("not yet", f"no answer within {seconds:g} seconds")
    if said := SAID.findall(done.stdout):
        return Mark(*said[-1])
    return Mark("not yet", (done.stderr.strip().splitlines() or ["it ended before the check said anything"])[-1])


def row(file: Path) -> dict[str, str]:
    """The line of one notebook, whatever state it is in."""
    found = {"notebook": file.as_posix()}
    try:
        for number, mark in marks(nbformat.read(file, as_version=4)).items():
            found |= {f"exercise {number}": mark.word, f"message {number}": mark.message}
    except Exception as error:  # a teacher wants the other rows
        found["problem"] = f"{type(error).__name__}: {str(error)[:200]}"
    return found


def grade(folder: Path) -> None:
    """Print the table of every notebook in a folder and below."""
    notebooks = sorted(file for file in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in file.parts)
    if not notebooks:
        raise Refused(f"folder: got {folder}, without notebooks; need a folder of students' notebooks")
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        rows = list(pool.map(row, notebooks))
    columns = sorted({column for one in rows for column in one} - {"notebook", "problem"},
                     key=lambda column: (column.split()[1], column))
    table = csv.DictWriter(sys.stdout, ["notebook", *columns, "problem"], restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)

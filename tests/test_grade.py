"""Grading a folder of notebooks: only what an exercise needs is run, and nothing stops the table."""
from __future__ import annotations

import ast
import csv
import io
from pathlib import Path

import pytest
from nbformat.v4 import new_markdown_cell, new_notebook
from tree import code, write

from pipeline import grade
from pipeline.files import Refused

CHECK = """\
class Check:
    def __init__(self, name):
        self.name = name

    def __call__(self, answer):
        try:
            word = "not attempted" if answer(1) is None else "correct" if answer(1) == 2 else "not yet (no)"
        except Exception as error:
            word = f"not yet ({error})"
        print(f"exercise {self.name}: {word}")"""


def notebook(*answers: str):
    cells = [new_markdown_cell("# Exercises"), code("raise RuntimeError('an experiment of hours')"), code(CHECK)]
    for number, answer in enumerate(answers, 1):
        cells += [code(f"check_{number} = Check('{number}')"), code(f"{answer}\n\n\ncheck_{number}(f)")]
    return cells


def test_each_exercise_gets_its_word_and_nothing_else_is_run():
    found = grade.marks(new_notebook(cells=notebook(
        "def f(x):\n    return None", "def f(x):\n    return x + 1", "def f(x):\n    return x", "def f(x):\n    1/0",
        "import sys\ndef f(x):\n    sys.exit('gone')", "def f(x:\n    return", "f = lambda x: print(x)", "f = absent")))
    assert [mark.word for mark in found.values()] == [
        "not attempted", "correct", "not yet", "not yet", "not yet", "not yet", "not attempted", "not yet"]
    assert [found[number].message for number in "2345"] == ["", "no", "division by zero", "gone"]
    assert found["6"].message.startswith("SyntaxError") and "absent" in found["8"].message


def test_an_endless_answer_costs_its_time_and_no_more():
    found = grade.marks(new_notebook(cells=notebook("def f(x):\n    while True:\n        pass")), seconds=1)
    assert found == {"1": ("not yet", "no answer within 1 seconds")}


def test_the_last_answer_counts_and_a_missing_one_is_not_attempted():
    cells = notebook("def f(x):\n    return 5")
    cells += [code("def f(x):\n    return 2\n\n\ncheck_1(f)"), code("check_2 = Check('2')")]
    assert grade.marks(new_notebook(cells=cells)) == {"1": ("correct", ""),
                                                      "2": ("not attempted", "check_2 is not called")}


def test_solutions_are_not_graded():
    cells = notebook("def f(x):\n    return None")
    cells += [code("### BEGIN SOLUTION\ndef f(x):\n    return 2\n\n\ncheck_1(f)\n### END SOLUTION", "solution")]
    assert grade.marks(new_notebook(cells=cells))["1"].word == "not attempted"


@pytest.mark.parametrize(("source", "wanted"), [
    ("a = 1\nb = 2\nuse(a)", "a = 1\nuse(a)"),
    ("a = []\na.append(1)\nb = [2]\nb.append(3)\nuse(a)", "a = []\na.append(1)\nuse(a)"),
    ("def f():\n    return g()\n\ndef g():\n    return c\nc = 1\nuse(f)", None),
    ("import os\nimport sys as s\nuse(s)", "import sys as s\nuse(s)"),
    ("a = {}\na['k'] = 1\na.x.y = 2\nb = 1\nuse(a)", "a = {}\na['k'] = 1\na.x.y = 2\nuse(a)"),
    ("a = 0\nfor i in range(3):\n    a += i\nplot(a)\nuse(a)", "a = 0\nfor i in range(3):\n    a += i\nuse(a)"),
    ("torch.set_default_dtype(1)\nuse()", None),
])
def test_what_is_needed(source: str, wanted: str | None):
    *before, target = ast.parse(source).body
    if wanted is None:
        wanted = source
    kept = [ast.unparse(one) for one in grade.needed(target, before)]
    assert kept == [ast.unparse(one) for one in ast.parse(wanted).body]


def test_a_folder_becomes_a_table_and_a_broken_notebook_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "ann" / "00.ipynb", *notebook("def f(x):\n    return 2", "def f(x):\n    return 3"))
    (tmp_path / "ben.ipynb").write_text("{<<<<<<<")
    write(tmp_path / "ann" / ".ipynb_checkpoints" / "00.ipynb", code("1"))
    grade.grade(tmp_path)
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert first["notebook"].endswith("ann/00.ipynb") and first["problem"] == ""
    assert (first["exercise 1"], first["exercise 2"], first["message 2"]) == ("correct", "not yet", "no")
    assert second["notebook"].endswith("ben.ipynb") and second["problem"] and second["exercise 1"] == ""
    with pytest.raises(Refused, match="without notebooks"):
        grade.grade(tmp_path / "nobody")

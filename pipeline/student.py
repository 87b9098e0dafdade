"""An edition of the notebooks to hand out: without solutions and without outputs.

    python -m pipeline student [FOLDER]          default: student/

A cell tagged `solution` becomes an empty one; elsewhere, what stands between the two marks goes, and so do folded
answers in the text.  Where `lib` is missing, the first cell says what to install.
"""
import re
from pathlib import Path

import nbformat

from pipeline import files
from pipeline.copies import dumps, read, stripped, tagged
from pipeline.files import replace

SOLUTION = re.compile(r"^[ \t]*### BEGIN SOLUTION.*?### END SOLUTION[^\n]*", re.DOTALL | re.MULTILINE)
ANSWER = re.compile(r"<details>\s*<summary>(?:Answer|Solution)\b.*?</details>", re.DOTALL)
PROMISE = re.compile(r",? and a solution in a collapsed cell| ?Solutions are in the collapsed cells\.")
TEACHER = "take .venv as the kernel; `python -m pipeline setup` makes it"
STUDENT = "in the unpacked student.zip `python -m pip install -r requirements.txt`, and open the notebook there"


def student(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without its solutions."""
    for cell in stripped(notebook).cells:
        if tagged(cell, "solution"):
            cell.source = "# your solution" if cell.cell_type == "code" else "*your solution*"
            cell.metadata.pop("jupyter")  # it was collapsed
        elif cell.cell_type == "code":
            cell.source = SOLUTION.sub("# your solution", cell.source).replace(TEACHER, STUDENT)
        else:
            cell.source = PROMISE.sub("", ANSWER.sub("*your answer*", cell.source))
    return notebook


def write(folder: Path) -> None:
    """The edition of every notebook, into `folder`."""
    for source in sorted((files.ROOT / "notebooks").glob("*.ipynb")):
        replace(folder / source.name, dumps(student(read(source))))
    print(f"written to {folder}/")

"""An edition of the notebooks to hand out: without solutions and without outputs.

    python -m pipeline student [FOLDER]          default: student/

A cell tagged `solution` becomes an empty one; elsewhere, what stands between the two marks goes.
"""
import re
from pathlib import Path

import nbformat

from pipeline import files
from pipeline.copies import dumps, read, stripped, tagged
from pipeline.files import replace

SOLUTION = re.compile(r"^[ \t]*### BEGIN SOLUTION.*?### END SOLUTION[^\n]*", re.DOTALL | re.MULTILINE)


def student(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without its solutions."""
    for cell in stripped(notebook).cells:
        if tagged(cell, "solution"):
            cell.source = "# your solution" if cell.cell_type == "code" else "*your solution*"
            cell.metadata.pop("jupyter")  # it was collapsed
        else:
            cell.source = SOLUTION.sub("# your solution", cell.source)
    return notebook


def write(folder: Path) -> None:
    """The edition of every notebook, into `folder`."""
    for source in sorted((files.ROOT / "notebooks").glob("*.ipynb")):
        replace(folder / source.name, dumps(student(read(source))))
    print(f"written to {folder}/")

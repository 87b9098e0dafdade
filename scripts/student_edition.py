"""An edition of the notebooks to hand out: without solutions and without outputs.

    python -m scripts.student_edition FOLDER

A cell tagged `solution` becomes an empty one; elsewhere, what stands between the two marks goes.
"""
import re
import sys
from pathlib import Path

import nbformat

from lib.notebook import ROOT, dumps, read, replace, stripped, tagged

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


def main(folder: Path) -> None:
    for source in sorted((ROOT / "notebooks").glob("*.ipynb")):
        replace(folder / source.name, dumps(student(read(source))))
    print(f"written to {folder}/")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) == 2 else sys.exit("usage: python -m scripts.student_edition FOLDER")))

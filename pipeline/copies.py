"""The stripped copy of a notebook, and an executed one as a function of its inputs alone."""
from __future__ import annotations

import platform
from pathlib import Path

import nbformat

from pipeline import files
from pipeline.files import Refused

# What JupyterLab writes when it saves, so that opening and saving changes nothing.  It adds the version of its Python:
# an executed copy carries that of the Python that ran it, so on another one a saved notebook differs in that one line.
KERNEL = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
          "language_info": {"codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py",
                            "mimetype": "text/x-python", "name": "python", "nbconvert_exporter": "python",
                            "pygments_lexer": "ipython3"}}
INJECTED = "injected-parameters"  # papermill's tag


def read(file: Path) -> nbformat.NotebookNode:
    """A notebook file; refuses what is not one, such as a file with merge-conflict marks or a cell without source."""
    try:
        notebook = nbformat.convert(nbformat.reader.reads(file.read_text(encoding="utf-8")), 4)
        nbformat.validate(notebook)  # `nbformat.read` would log what it finds, and go on
        return notebook
    except (OSError, ValueError, AttributeError, LookupError, TypeError, RecursionError,
            nbformat.ValidationError) as error:
        raise Refused(f"{file.relative_to(files.ROOT)} cannot be read as a notebook: {str(error)[:200]}") from error


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as its author wrote it: no outputs, no injected cell, fixed metadata."""
    notebook.cells = [cell for cell in notebook.cells if not tagged(cell, INJECTED)]
    for position, cell in enumerate(notebook.cells):
        cell.id = f"cell-{position:02d}"
        cell.metadata = _metadata(cell)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = nbformat.from_dict(KERNEL)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def normalised(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An executed notebook as a function of its inputs: without times, widgets and random identifiers."""
    for cell in notebook.cells:
        cell.metadata = _metadata(cell)
        if tagged(cell, INJECTED):
            cell.id = INJECTED
    notebook.metadata = nbformat.from_dict(KERNEL)
    notebook.metadata.language_info.version = platform.python_version()
    return notebook


def _metadata(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A cell's tags; cells tagged `solution` are collapsed."""
    kept = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
    if tagged(cell, "solution"):
        kept["jupyter"] = {"source_hidden": True}
    return nbformat.from_dict(kept)


def tagged(cell: nbformat.NotebookNode, tag: str) -> bool:
    """Whether a cell carries a tag."""
    return tag in cell.metadata.get("tags", [])


def dumps(notebook: nbformat.NotebookNode) -> str:
    """Notebook text with a fixed order of keys and a final newline."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"

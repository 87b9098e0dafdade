"""The ledger of all chapters: results/ledger.json and .csv for machines, docs/ledger.md whole, the README's part."""
from __future__ import annotations

import csv
import io
import json
import re
from typing import TYPE_CHECKING

import nbformat

from pipeline import files
from pipeline.files import NUMBER, read_json, replace

if TYPE_CHECKING:
    from lib.chapter.claims import Row

VERDICTS = ("holds", "fails", "open", "not reproduced")
SOURCES = {"paper": "What the paper says", "follow-up": "What follow-ups say", "ours": "What we add"}


# A line of claims.json, as Row of lib.chapter.claims, which needs torch, writes it.
ROW = {"id": str, "chapter": str, "says": str, "source": str, "quantity": str, "rule": str, "value": NUMBER | None,
       "spread": NUMBER | None, "seeds": int | None, "verdict": str, "note": str}


def claims(name: str) -> list[dict]:
    """The rows of a chapter's results; empty without results."""
    found = read_json(files.RESULTS / name / "claims.json", [], [ROW])
    return [{key: row[key] for key in ROW} for row in found]


def write(chapters: list[str]) -> None:
    """results/ledger.json and results/ledger.csv, all chapters in one."""
    found = [row for name in chapters for row in claims(name)]
    replace(files.RESULTS / "ledger.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    text = io.StringIO()
    table = csv.DictWriter(text, list(ROW), lineterminator="\n")
    table.writeheader()
    table.writerows(found)
    replace(files.RESULTS / "ledger.csv", text.getvalue())


def counted(rows: list[Row]) -> str:
    """How many claims there are, and how many of each verdict."""
    verdicts = [row.verdict for row in rows]
    parts = [f"{verdict} {verdicts.count(verdict)}" for verdict in VERDICTS if verdict in verdicts]
    return f"{len(rows)} claims: {' · '.join(parts)}" if rows else "no claims"


def linked(row: Row, notebook: nbformat.NotebookNode, folder: str) -> Row:
    """The row with its identifier leading to the cell that measured it, or to the notebook."""
    measured = re.compile(rf"""["']{re.escape(row.id)}["']""")
    cell = next((cell for cell in notebook.cells if cell.cell_type == "code" and measured.search(cell.source)), None)
    anchor = "" if cell is None else f"#cell-id={cell.id}"
    where = "" if cell is None or not cell.execution_count else f" In [{cell.execution_count}]"
    return row._replace(id=f"[{row.id}]({folder}notebooks/{row.chapter}.ipynb{anchor}){where}")


def page(rows: list[Row], notebooks: dict[str, nbformat.NotebookNode]) -> str:
    """docs/ledger.md: every row, by chapter and source."""
    from lib.chapter.claims import table

    text = ["# The ledger", "", f"{counted(rows)}. Written by `make publish` from the published run; each rule is in "
            "[claims.yaml](../claims.yaml), where it was committed before its number. A measured value stands with "
            "its standard error, and the verdict is on its 95 % interval, Student's t over the seeds."]
    for name, notebook in notebooks.items():
        mine = [row for row in rows if row.chapter == name]
        heading = re.search(r"^# (.*)", notebook.cells[0].source if notebook.cells else "")
        text += ["", f"## {heading[1] if heading else name}", "", f"{counted(mine)}."]
        for source, title in SOURCES.items():
            some = [linked(row, notebook, "../") for row in mine if row.source.split(":")[0] == source]
            text += ["", f"### {title}", "", table(some)] if some else []
    return "\n".join(text) + "\n"


def summary(rows: list[Row], notebooks: dict[str, nbformat.NotebookNode]) -> str:
    """The README's part: the counts, and every row that does not hold."""
    from lib.chapter.claims import table

    others = [linked(row, notebooks[row.chapter], "") for row in rows if row.verdict != "holds"]
    text = (f"{counted(rows)}. [docs/ledger.md](docs/ledger.md) has every row, with its rule and the cell that "
            "measured it.")
    return f"{text} Those that do not hold:\n\n{table(others)}" if others else text

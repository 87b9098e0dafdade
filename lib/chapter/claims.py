"""The ledger: what a paper says, what this run measures, within what tolerance, and whether it holds.

    claims = Ledger("KO")
    claims.record("KO-1", "energy through λ equals brute force", measured=1.021, expected=1.0, tolerance=0.02)
    claims.not_reproduced("KO-9", "FID on CIFAR-10", "needs a GPU for days")
    claims.metric("energy of Cond-OT on digits", 1.583, tolerance=0.02)
    claims.show()

`measured` comes from the run, never from a source file.  A claim that does not hold stays in the ledger.
Inside the pipeline, `claims.json`, `metrics.json` and `tolerances.json` are written as the notebook goes.
"""
from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

from IPython.display import Markdown, display

from lib.base import check
from lib.base.stage import OUT

RELATIONS = {
    "=": lambda measured, expected, tolerance: abs(measured - expected) <= tolerance,
    "≤": lambda measured, expected, tolerance: measured <= expected + tolerance,
    "≥": lambda measured, expected, tolerance: measured >= expected - tolerance,
}


class Claim(NamedTuple):
    """One row of the ledger."""

    id: str
    says: str  # the paper's claim, in words
    measured: float | None  # None: not reproduced
    relation: str  # measured `relation` expected, up to the tolerance
    expected: float | None
    tolerance: float
    holds: bool | None
    note: str = ""


class Ledger:
    """The claims and metrics of one chapter."""

    def __init__(self, chapter: str) -> None:
        self.chapter = chapter
        self.rows: dict[str, Claim] = {}
        self.metrics: dict[str, float] = {}
        self.tolerances: dict[str, float] = {}

    def record(self, id: str, says: str, measured: float, expected: float, tolerance: float = 0.0,
               relation: str = "=", note: str = "") -> bool:
        """Record that measured = expected ± tolerance (or ≤, ≥), and return whether it holds; NaN never does."""
        check.choice("relation", relation, tuple(RELATIONS))
        measured, expected = float(measured), float(expected)
        if tolerance < 0:
            check.refuse("tolerance", tolerance, "a number ≥ 0")
        holds = math.isfinite(measured) and RELATIONS[relation](measured, expected, tolerance)
        self._add(Claim(id, says, _round(measured), relation, _round(expected), tolerance, bool(holds), note))
        return bool(holds)

    def not_reproduced(self, id: str, says: str, reason: str) -> None:
        """Keep a claim this chapter could not test, with the reason."""
        self._add(Claim(id, says, None, "", None, 0.0, None, reason))

    def metric(self, name: str, value: float, *, tolerance: float) -> float:
        """Record a number of this run; `tolerance` is the relative change another processor may bring."""
        if name in self.metrics:
            check.refuse("name", repr(name), "a metric not recorded before")
        self.metrics[name], self.tolerances[name] = _round(float(value)), tolerance
        self._write()
        return float(value)

    def show(self) -> None:
        """Print the ledger as a table."""
        display(Markdown(table(list(self.rows.values()))))

    def verdicts(self) -> dict[str, bool | None]:
        """Which claims hold; None marks those not reproduced."""
        return {id: row.holds for id, row in self.rows.items()}

    def _add(self, row: Claim) -> None:
        if row.id in self.rows:
            check.refuse("id", repr(row.id), "a claim not recorded before")
        self.rows[row.id] = row
        self._write()

    def _write(self) -> None:
        folder = os.environ.get(OUT)
        rows = [row._asdict() for row in self.rows.values()]
        if folder:
            for name, content in (("claims", rows), ("metrics", self.metrics), ("tolerances", self.tolerances)):
                text = json.dumps(content, indent=1, ensure_ascii=False)
                (Path(folder) / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def table(rows: list[Claim]) -> str:
    """Claims as a Markdown table."""
    lines = ["| claim | the paper says | we measure | required | holds |", "|---|---|---|---|---|"]
    for row in rows:
        if row.holds is None:
            lines.append(f"| {row.id} | {_cell(row.says)} | *not reproduced*: {_cell(row.note)} | | – |")
            continue
        slack = f" ± {row.tolerance:.2g}" if row.tolerance else ""
        note = f" ({_cell(row.note)})" if row.note else ""
        lines.append(f"| {row.id} | {_cell(row.says)} | {row.measured:.4g}{note} | "
                     f"{row.relation} {row.expected:.4g}{slack} | {'yes' if row.holds else '**no**'} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")  # a bar would end the cell


def _round(value: float) -> float:
    """Four significant digits: what survives a change of processor, and what makes files comparable."""
    return float(f"{value:.4g}")

"""The ledger: what holds, what does not, what is kept."""
from __future__ import annotations

import json
import math

import pytest

from lib.chapter import claims
from lib.chapter.claims import Ledger


@pytest.mark.parametrize(("measured", "relation", "expected", "tolerance", "holds"), [
    (1.02, "=", 1.0, 0.03, True), (0.98, "=", 1.0, 0.03, True), (1.04, "=", 1.0, 0.03, False),
    (0.96, "=", 1.0, 0.03, False), (1.0, "=", 1.0, 0.0, True), (1.00004, "=", 1.0, 0.00001, False),
    (0.1, "≤", 1.0, 0.0, True), (1.02, "≤", 1.0, 0.03, True), (1.04, "≤", 1.0, 0.03, False),
    (9.0, "≥", 1.0, 0.0, True), (0.98, "≥", 1.0, 0.03, True), (0.96, "≥", 1.0, 0.03, False),
    (math.nan, "=", 1.0, 9.0, False), (math.nan, "≤", 1.0, 9.0, False), (math.nan, "≥", 1.0, 9.0, False),
    (math.inf, "≥", 1.0, 0.0, False), (-math.inf, "≤", 1.0, 0.0, False), (1.0, "=", math.nan, 1.0, False),
    (1.0, "=", 1.0, math.nan, False),
])
def test_what_holds(measured, relation, expected, tolerance, holds):
    ledger = Ledger("X")
    assert ledger.record("X-1", "it is so", measured, expected, tolerance, relation) is holds
    assert ledger.verdicts() == {"X-1": holds}


def filled() -> Ledger:
    ledger = Ledger("X")
    ledger.record("X-1", "|a| = 1", 1.23456, 1.0, 0.5, note="p(x|y)")
    ledger.record("X-2", "it is small", 5.0, 1.0, relation="≤")
    ledger.not_reproduced("X-3", "FID", "needs days")
    assert ledger.metric("energy", 1.58349, tolerance=0.02) == 1.58349
    return ledger


def test_duplicates_and_nonsense_are_refused():
    ledger = filled()
    for name, call in [("id", lambda: ledger.record("X-1", "again", 1, 1)),
                       ("id", lambda: ledger.not_reproduced("X-2", "", "")),
                       ("name", lambda: ledger.metric("energy", 1, tolerance=0)),
                       ("relation", lambda: ledger.record("X-4", "", 1, 1, relation="<")),
                       ("tolerance", lambda: ledger.record("X-4", "", 1, 1, -0.1))]:
        with pytest.raises(ValueError, match=rf"^{name}: got .+; need"):
            call()
    assert ledger.verdicts() == {"X-1": True, "X-2": False, "X-3": None}


def test_files_follow_the_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv(claims.OUT, str(tmp_path))
    filled()
    rows, metrics, tolerances = (json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
                                 for name in ("claims", "metrics", "tolerances"))
    assert metrics == {"energy": 1.583} and tolerances == {"energy": 0.02}  # four digits
    assert rows[0] == {"id": "X-1", "says": "|a| = 1", "measured": 1.235, "relation": "=", "expected": 1.0,
                       "tolerance": 0.5, "holds": True, "note": "p(x|y)"}
    assert [row["holds"] for row in rows] == [True, False, None]
    first = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    filled()
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == first


def test_outside_the_pipeline_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    filled()
    assert not list(tmp_path.iterdir())


def test_the_table_says_it_all(monkeypatch):
    shown = []
    monkeypatch.setattr(claims, "display", shown.append)
    filled().show()
    lines = shown[0].data.splitlines()
    assert len(lines) == 5
    assert lines[2] == r"| X-1 | \|a\| = 1 | 1.235 (p(x\|y)) | = 1 ± 0.5 | yes |"
    assert lines[3] == "| X-2 | it is small | 5 | ≤ 1 | **no** |"
    assert lines[4] == "| X-3 | FID | *not reproduced*: needs days | | – |"
    assert {line.replace(r"\|", "").count("|") for line in lines} == {6}  # a bar in the text ends no cell

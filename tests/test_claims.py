"""The ledger: rules come from claims.yaml, verdicts from intervals, and nothing is chosen after its number."""
from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lib.chapter import claims
from lib.chapter.claims import FAILS, HOLDS, NOT_REPRODUCED, OPEN, Ledger, Rule, registry

YAML = """
00_x:
  X-1: {says: "|a| is one", source: "paper: Eq. 3", quantity: "|a|", refuted: "another length",
        rule: {relation: "=", threshold: 1, tolerance: 0.5}}
  X-2: {says: it is small, source: ours, quantity: size, refuted: it is large,
        rule: {relation: "≤", threshold: 1.0, seeds: 3}}
  X-3: {says: FID, source: "follow-up: Doe 2024", not_reproduced: needs days}
01_y:
  Y-1: {says: other, source: ours, quantity: q, refuted: r, rule: {relation: "≥", threshold: -2}}
"""


@pytest.fixture(autouse=True)
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "claims.yaml"
    file.write_text(YAML, encoding="utf-8")
    monkeypatch.setattr(claims, "REGISTRY", file)
    return file


@pytest.mark.parametrize(("relation", "value", "spread", "verdict"), [
    ("≤", 0.9, 0.0, HOLDS), ("≤", 1.0, 0.0, HOLDS), ("≤", 1.1, 0.0, FAILS), ("≤", 0.9, 0.06, OPEN),
    ("≤", 0.9, 0.04, HOLDS), ("≤", 1.1, 0.06, OPEN), ("≤", 1.1, 0.04, FAILS),
    ("≥", 1.1, 0.0, HOLDS), ("≥", 0.9, 0.0, FAILS), ("≥", 1.1, 0.06, OPEN), ("≥", 1.1, 0.04, HOLDS),
    ("=", 1.0, 0.0, HOLDS), ("=", 1.09, 0.0, HOLDS), ("=", 1.11, 0.0, FAILS), ("=", 0.91, 0.0, HOLDS),
    ("=", 0.89, 0.0, FAILS), ("=", 1.0, 0.04, HOLDS), ("=", 1.0, 0.06, OPEN), ("=", 1.2, 0.04, FAILS),
    ("=", 1.2, 0.06, OPEN), ("≤", math.nan, 0.0, FAILS), ("≥", math.inf, 0.0, FAILS), ("≤", -math.inf, 0.0, FAILS),
    ("≥", 2.0, math.nan, FAILS), ("≥", 2.0, math.inf, FAILS),
])
def test_the_interval_decides(relation, value, spread, verdict):
    assert Rule(relation, 1.0, 0.1 if relation == "=" else 0.0).verdict(value, spread, 1) == verdict


def test_few_seeds_have_students_interval_of_95_percent():
    for seeds, quantile in ((1, 1.96), (2, 12.706), (3, 4.303), (5, 2.776), (31, 2.042)):  # tables of Student's t
        assert Rule("≤", 1.0).verdict(1.0 - 1.001 * quantile, 1.0, seeds) == HOLDS
        assert Rule("≤", 1.0).verdict(1.0 - 0.999 * quantile, 1.0, seeds) == OPEN


def test_too_few_seeds_leave_a_claim_open_and_do_not_save_one_that_fails():
    rule = Rule("≤", 1.0, seeds=3)
    assert [rule.verdict(0.5, 0.0, seeds) for seeds in (1, 2, 3, 9)] == [OPEN, OPEN, HOLDS, HOLDS]
    assert rule.verdict(1.5, 0.0, 1) == FAILS


def filled() -> Ledger:
    ledger = Ledger("X")
    assert ledger.measure("X-1", 1.23456, note="p(x|y)") == HOLDS
    assert ledger.measure("X-2", 5.0, spread=0.1234567, seeds=2) == FAILS
    assert ledger.metric("energy", 1.58349, tolerance=0.02) == 1.58349
    return ledger


def test_a_ledger_knows_its_own_claims_in_their_order():
    assert filled().verdicts() == {"X-1": HOLDS, "X-2": FAILS, "X-3": NOT_REPRODUCED}
    assert Ledger("Y").verdicts() == {}


@pytest.mark.parametrize("id", ["X-3", "X-9", "Y-1", "", None])
def test_a_claim_without_a_rule_is_refused(id):
    with pytest.raises(ValueError, match=r"^id: got .*; need a claim with a rule in claims\.yaml: X-1, X-2$"):
        Ledger("X").measure(id, 1.0)


def test_a_rule_that_asks_for_seeds_asks_for_a_spread():
    with pytest.raises(ValueError, match=r"^spread: got none; need a standard error: the rule of X-2 asks for 3 seeds"):
        Ledger("X").measure("X-2", 0.5)


def test_a_negative_spread_is_refused():
    with pytest.raises(ValueError, match=r"^spread: got -1\.0; need a standard error ≥ 0"):
        Ledger("X").measure("X-2", 0.4, spread=-1.0, seeds=3)


def test_a_cell_may_run_again_outside_the_pipeline_only(tmp_path, monkeypatch):
    ledger = filled()
    assert ledger.measure("X-1", 3.0) == FAILS and ledger.metric("energy", 2.0, tolerance=0.1) == 2.0
    assert ledger.verdicts()["X-1"] == FAILS and ledger.metrics == {"energy": 2.0}
    monkeypatch.setenv(claims.OUT, str(tmp_path))
    for call in (lambda: ledger.measure("X-1", 1.0), lambda: ledger.metric("energy", 1.0, tolerance=0.1)):
        with pytest.raises(ValueError, match=r"^name: got .*; need what this run has not recorded before"):
            call()


def test_files_follow_the_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv(claims.OUT, str(tmp_path))
    filled()
    first, second, third = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    assert first == {"id": "X-1", "chapter": "00_x", "says": "|a| is one", "source": "paper: Eq. 3", "quantity": "|a|",
                     "rule": "= 1 ± 0.5", "value": 1.235, "spread": None, "seeds": 1, "verdict": HOLDS,
                     "note": "p(x|y)"}
    assert (second["value"], second["spread"], second["rule"]) == (5.0, 0.1235, "≤ 1, 3 seeds")
    assert second["note"] == "2 of 3 seeds"
    assert (third["verdict"], third["note"], third["value"]) == (NOT_REPRODUCED, "needs days", None)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"energy": 1.583}
    assert json.loads((tmp_path / "tolerances.json").read_text()) == {"energy": 0.02}


def test_outside_the_pipeline_nothing_is_written(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    filled()
    assert list(Path.cwd().iterdir()) == []


def test_a_check_shows_and_stops_the_pipeline_where_it_does_not_hold(tmp_path, monkeypatch, capsys):
    ledger = Ledger("X")
    ledger.check("a = 1", 1.0000001, 1.0, 1e-6)
    ledger.check("a = 1", 1.1, 1.0, 1e-6)
    ledger.check("a ≥ 1", 1.1, 1.0, relation="≥")
    ledger.check("a = 0", math.nan)
    assert [line[0] for line in capsys.readouterr().out.splitlines()] == ["✓", "✗", "✓", "✗"]
    monkeypatch.setenv(claims.OUT, str(tmp_path))
    with pytest.raises(AssertionError, match=r"✗ a = 1: 1\.1"):
        ledger.check("a = 1", 1.1, 1.0, 1e-6)
    assert ledger.verdicts() == {"X-3": NOT_REPRODUCED}  # no claim


def test_the_table_says_it_all_and_what_is_missing(monkeypatch, capsys, tmp_path):
    shown = []
    monkeypatch.setattr(claims, "display", shown.append)
    filled().show()
    lines = shown[0].data.splitlines()
    assert len(lines) == 5
    assert lines[2] == r"| X-1 | \|a\| is one | paper: Eq. 3 | 1.235 (p(x\|y)) | = 1 ± 0.5 | holds |"
    assert lines[3] == "| X-2 | it is small | ours | 5 ± 0.12 (2 of 3 seeds) | ≤ 1, 3 seeds | **fails** |"
    assert lines[4] == "| X-3 | FID | follow-up: Doe 2024 |  (needs days) |  | **not reproduced** |"
    Ledger("Y").show()
    assert capsys.readouterr().out == "not measured: Y-1\n"
    monkeypatch.setenv(claims.OUT, str(tmp_path))
    with pytest.raises(ValueError, match=r"^claims: got no value of Y-1"):
        Ledger("Y").show()


@pytest.mark.parametrize(("old", "new", "message"), [
    ("X-2", "X-1", r"claims\.yaml cannot be read.*"), ("Y-1", "X-1", r"X-1: got two entries"),
    ("source: ours, quantity: size", "source: hearsay, quantity: size", r"X-2: source: got 'hearsay'"),
    ("quantity: size, ", "", r"X-2: got .*; need says, source, quantity, rule, refuted"),
    ("refuted: it is large", 'refuted: ""', r"X-2: got .*none empty"),
    ("not_reproduced: needs days", "not_reproduced: a, quantity: b", r"X-3: got"),
    ('relation: "≤"', 'relation: "<"', r"X-2: rule: relation: got '<'"),
    ("threshold: 1.0", "threshold: one", r"X-2: rule: threshold: got 'one'"),
    ("seeds: 3", "seeds: 0", r"X-2: rule: seeds: got 0"), ("seeds: 3", "sides: 2", r"X-2: rule: got .*sides"),
    ("tolerance: 0.5", "tolerance: -1", r"X-1: rule: tolerance: got"),
    ("00_x:", "- a\n00_x:", "cannot be read"), ("00_x:", "z: [\n00_x:", "cannot be read"),
    ("00_x:", "z: 3\n00_x:", "shape"),
])
def test_an_entry_that_is_not_whole_is_named(written, old, new, message):
    written.write_text(YAML.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        registry()


@pytest.mark.parametrize(("text", "message"), [
    ("X: {X-1: \udcff}", "claims.yaml cannot be read"), ("X: [1", "claims.yaml cannot be read"),
    ("X: {1: {says: a}}", "claims.yaml: 1: got no word; need a name"), ("- X", "claims.yaml: got another shape")])
def test_a_registry_that_is_none_is_named(written, text, message):
    written.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=f"^{message}"):
        claims.registry()


def test_without_a_registry_there_are_no_claims(written):
    written.unlink()
    assert registry() == {}

"""This run against the published one."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from nbformat.v4 import new_markdown_cell
from tree import code, missing, record, row, write

from pipeline import compare, copies, repro
from pipeline.compare import Line


@pytest.fixture
def published(two_chapters: Path) -> Path:
    """Two chapters whose results are as published, the second without claims in the record."""
    entry = {"value": 1.0, "spread": None, "seeds": 1, "verdict": "holds", "rule": "≤ 2"}
    nothing = {"value": None, "spread": None, "seeds": None, "verdict": "not reproduced", "rule": ""}
    common = {"metrics": {"loss": 1.5}, "tolerances": {"loss": 0.1}}
    chapters = {"00_a": common | {"claims": {"A-1": entry, "A-2": nothing}},
                "01_b": common | {"claims": {"B-1": entry, "B-2": nothing}}}
    (two_chapters / "docs").mkdir()
    (two_chapters / "docs" / "published.json").write_text(json.dumps({"chapters": chapters}))
    return two_chapters


def test_nothing_moved(published: Path, capsys: pytest.CaptureFixture[str]):
    compare.told(["00_a", "01_b"])
    assert capsys.readouterr().out == ""
    compare.compare()
    said = capsys.readouterr().out
    assert said.count(" = ") == 6 and "!" not in said
    assert said.endswith("against docs/published.json: 0 of 4 verdicts changed, 0 of their values moved; "
                         "0 of 2 metrics moved, 0 of them beyond their tolerance\n")


def test_what_moved_is_told_by_how_much(published: Path, capsys: pytest.CaptureFixture[str]):
    record(published, "00_a", [row("A-1", "00_a", value=2.5, verdict="fails"), missing("A-2", "00_a")])
    record(published, "01_b", [row("B-1", "01_b", value=1.25), missing("B-2", "01_b")])
    (published / "results" / "00_a" / "metrics.json").write_text('{"loss": 1.56}')
    (published / "results" / "01_b" / "metrics.json").write_text('{"loss": 1.2}')
    compare.compare()
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:5] == ["00_a", "published here", "! 1 holds 2.5 fails A-1 (+150.00%)",
                         "– not reproduced = A-2", "1.5 1.56 loss (+4.00%, tolerance 10.00%)"]
    assert lines[6:11] == ["01_b", "published here", "1 holds 1.25 holds B-1 (+25.00%)", "– not reproduced = B-2",
                           "! 1.5 1.2 loss (-20.00%, tolerance 10.00%)"]
    assert lines[-1].endswith("1 of 4 verdicts changed, 2 of their values moved; "
                              "2 of 2 metrics moved, 1 of them beyond their tolerance")
    compare.told(["01_b"])
    said = capsys.readouterr().out
    assert "0 of 2 verdicts changed, 1 of their values moved; 1 of 1 metrics moved, 1 of them beyond" in said
    assert said.index("! ") < said.index("B-1") and "A-1" not in said  # the worst first, of this chapter alone


def test_other_parameters_are_named(published: Path, capsys: pytest.CaptureFixture[str]):
    write(published / "results" / "00_a" / "00_a.ipynb", new_markdown_cell("# A"),
          code("# Parameters\nseed = 3\nsteps = 7\n", copies.INJECTED), code("print(1)"))
    compare.compare()
    assert "00_a with seed = 3, steps = 7\n" in capsys.readouterr().out


def test_what_is_new_and_what_has_gone(published: Path, capsys: pytest.CaptureFixture[str]):
    record(published, "00_a", [row("A-3", "00_a"), missing("A-2", "00_a")])
    (published / "results" / "00_a" / "metrics.json").write_text('{"gain": 2}')
    turned = {line.name: line for line in compare.lines("00_a") if line.turned}
    assert set(turned) == {"A-1", "A-3", "loss", "gain"}
    assert (turned["A-1"].verdicts, turned["A-3"].verdicts) == (("holds", "none"), ("none", "holds"))
    assert (turned["loss"].now, turned["gain"].was) == (None, None)
    compare.compare()


@pytest.mark.parametrize("record", ["", "{}", '{"chapters": {"00_a": {"metrics": {}, "claims": {"A-1": true}}}}'])
def test_without_a_record_everything_is_new(published: Path, record: str, capsys: pytest.CaptureFixture[str]):
    (published / "docs" / "published.json").write_text(record)
    assert all(line.was is None for line in compare.lines("00_a"))
    compare.told(["00_a"])
    assert "2 of 2 verdicts changed" in capsys.readouterr().out


def test_without_results_it_says_what_makes_them(root: Path, capsys: pytest.CaptureFixture[str]):
    (root / "dvc.yaml").write_text("stages: {run: {foreach: [00_a]}}")
    compare.compare()
    assert capsys.readouterr().out == "no results here; `make repro` makes them\n"


@pytest.mark.parametrize(("was", "now", "turned"), [
    (1.0, 1.0, False), (1.0, 1.01, False), (1.0, 1.011, True), (-1.0, -1.011, True), (-1.0, -0.99, False),
    (0.0, 0.0, False), (0.0, 1e-9, True), (None, 1.0, True), (1.0, None, True)])
def test_a_metric_may_move_by_its_tolerance(was: float | None, now: float | None, turned: bool):
    line = Line("a", was, now, tolerance=0.01)
    assert line.turned == turned and str(line).startswith("!" if turned else " ")


def test_repro_ends_with_it_for_the_chapters_that_were_rebuilt(
        published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    timings = published / "results" / "timings"
    timings.mkdir()
    (timings / "00_a.json").write_text('{"seconds": 1, "finished": 4e9}')
    for name in ("00_a", "01_b"):
        (published / "results" / name / "metrics.json").write_text('{"loss": 1.6}')
    monkeypatch.setattr(repro, "dvc", lambda *_, **__: 0)
    repro.repro()
    said = capsys.readouterr().out
    assert "1 of 1 metrics moved, 0 of them beyond" in said and "loss (+6.67%, tolerance 10.00%)" in said

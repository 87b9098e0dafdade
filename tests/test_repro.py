"""The table after `dvc repro`, what moved, and DVC's own files."""
from __future__ import annotations

import csv
import json
import re
import time
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from pipeline import compare, ledger, repro, run
from pipeline.parameters import Refused


def test_the_table_says_what_was_done(
        two_chapters: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    timings = two_chapters / "results" / "timings"
    timings.mkdir()
    (timings / "00_a.json").write_text(json.dumps({"seconds": 12.3, "finished": time.time() + 60}))
    (timings / "01_b.json").write_text('{"seconds": 4')  # cut short
    monkeypatch.setattr(repro, "dvc", lambda *_, **__: 0)
    repro.repro()
    lines = {line.split()[0]: " ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line}
    assert lines["00_a"] == "00_a 12.3 rebuilt 1/1 results/00_a/00_a.ipynb"
    assert lines["01_b"] == "01_b – up to date 1/1 results/01_b/01_b.ipynb"
    assert [row["id"] for row in json.loads((two_chapters / "results" / "ledger.json").read_text())] == [
        "A-1", "A-2", "B-1", "B-2"]
    with (two_chapters / "results" / "ledger.csv").open(encoding="utf-8") as file:
        assert [(line["id"], line["verdict"], line["value"]) for line in csv.DictReader(file)] == [
            ("A-1", "holds", "1.0"), ("A-2", "not reproduced", ""), ("B-1", "holds", "1.0"),
            ("B-2", "not reproduced", "")]

    monkeypatch.setattr(repro, "dvc", lambda first, *_, **__: first == "repro")
    (timings / "00_a.json").unlink()
    run.shutil.rmtree(two_chapters / "results" / "01_b")
    with pytest.raises(Refused, match="stopped"):
        repro.repro()
    lines = {line.split()[0]: " ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line}
    assert lines["00_a"].startswith("00_a – last good 1/1") and lines["01_b"].startswith("01_b – missing 0/0")


def test_dvc_files_that_a_kill_cut_short_are_removed_and_whole_ones_kept(root: Path):
    out = {"path": "results/00_a", "hash": "md5", "md5": "a1588fce862686def999c952857ab0d3.dir", "size": 1, "nfiles": 1}
    stage = {"cmd": "python", "outs": [out]}
    whole = {root / "dvc.lock": json.dumps({"schema": "2.0", "stages": {"clean": stage, "run@00_a": stage}}),
             root / ".dvc" / "tmp" / "rwlock": json.dumps({"write": {"/a": {"pid": 1, "cmd": "dvc"}}, "read": {}})}
    (root / ".dvc" / "tmp").mkdir(parents=True)
    assert not repro.mended()
    for file, text in whole.items():
        file.write_text(text)
    assert not repro.mended() and all(file.exists() for file in whole)
    for file, text in whole.items():
        for length in range(0, len(text), 7):
            file.write_text(text[:length])
            assert repro.mended() and not file.exists()
        file.write_text(text)


def test_the_pipeline_goes_on_once_dvcs_files_are_mended(two_chapters: Path, monkeypatch: pytest.MonkeyPatch):
    codes = iter([0, 1, 0])
    monkeypatch.setattr(repro, "dvc", lambda *_, **__: next(codes))
    (two_chapters / "dvc.lock").write_text("schema: '2.0'\nstages:\n  clean:\n    cm")
    repro.repro()
    assert next(codes, None) is None


def test_damaged_data_stop_everything_with_words(root: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(repro, "dvc", lambda *words, **_: asked.append(words) or 1)
    with pytest.raises(Refused, match=r"data/ cannot be made whole.*delete it.*take a fresh copy"):
        repro.repro()
    assert asked == [("pull", "data.dvc")]  # never a bare pull


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["A-1", "id", "verdict", "rule", "value", "seconds", "finished", "chapters", "claims"]), inner,
        max_size=4), max_leaves=8)
READ = ("timings/00_a", "00_a/claims", "00_a/metrics", "00_a/tolerances", "00_a/verdicts")


@pytest.mark.parametrize("name", [f"results/{name}.json" for name in READ] + ["docs/published.json"])
@hypothesis.given(content=st.one_of(
    ANYTHING.map(json.dumps), st.just("[" * 100_000), st.just('{"loss": 1' + "0" * 400 + "}"),
    st.just('{"loss": 1' + "0" * 5000 + "}"), st.just("\udcff")))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_a_file_of_the_reports_stops_nothing(
        name: str, content: str, two_chapters: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(repro, "dvc", lambda *_, **__: 0)
    (two_chapters / name).parent.mkdir(exist_ok=True)
    (two_chapters / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    repro.repro()
    compare.compare()


@pytest.mark.parametrize(("name", "content"), [
    ("results/timings/00_a.json", '{"seconds": 3}'), ("results/timings/00_a.json", '{"seconds": "3", "finished": 4}'),
    ("results/00_a/claims.json", '[{"id": "A-1"}]'), ("results/00_a/claims.json", '{"A-1": "holds"}'),
    ("results/00_a/claims.json", "[1"), ("results/00_a/metrics.json", '{"loss": "low"}'),
    ("results/00_a/tolerances.json", "[]"), ("docs/published.json", '{"chapters": {"00_a": {}}}')])
def test_a_file_of_the_reports_that_is_wrong_is_named_once_and_the_others_are_told(
        two_chapters: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str,
        content: str):
    monkeypatch.setattr(repro, "dvc", lambda *_, **__: 0)
    (two_chapters / name).parent.mkdir(exist_ok=True)
    (two_chapters / name).write_text(content)
    repro.repro()
    compare.compare()
    out, err = capsys.readouterr()
    assert err.count(name) == 1 and err.startswith(f"passed over: {name}") and "01_b  " in out
    assert re.search(r"01_b .* 1/1  results/01_b", out)


def test_a_notebook_among_the_results_that_is_none_stops_no_comparison(
        two_chapters: Path, capsys: pytest.CaptureFixture[str]):
    (two_chapters / "results" / "00_a" / "00_a.ipynb").write_text('{"nbformat": 4, "cells": null}')
    compare.compare()
    out = capsys.readouterr().out
    assert "results/00_a/00_a.ipynb cannot be read as a notebook" in out and "\n01_b\n" in out and "A-1" in out


def test_the_shape_of_a_row_is_that_of_the_ledger():
    from lib.chapter.claims import Row

    assert tuple(ledger.ROW) == Row._fields

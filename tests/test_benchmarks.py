"""The benchmark of the reduction runs, keeps what it measured, and prints nothing where numbers disagree."""
from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "reduction.py"


@pytest.fixture
def benchmark(tmp_path, monkeypatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reduction", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in {"RESULTS": tmp_path / "results", "SIZES": [(40, 90), (50, 300)], "REPEATS": 2,
                        "rates": lambda: dict.fromkeys(("bytes", "operations", "products", "exps"), 1e9)}.items():
        monkeypatch.setattr(module, name, value)
    methods = ["ours", "prepared", "torch", "sdpa"]
    monkeypatch.setattr(sys, "argv", ["reduction.py", "--dims", "2", "64", "--methods", *methods])
    return module


def test_it_writes_what_it_measured_and_keeps_the_rest(benchmark, capsys, monkeypatch):
    benchmark.main()
    file, = benchmark.RESULTS.iterdir()
    with file.open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 2 * 2 * (2 * 3 + 1)  # dimensions, sizes, passes and methods; prepared forward only
    assert all(float(row["error"]) <= 1 and float(row["processor_ms"]) >= 0 for row in rows)
    assert {row["torch"] for row in rows} == {torch.__version__}
    monkeypatch.setattr(sys, "argv", ["reduction.py", "--dims", "2", "--methods", "ours"])
    benchmark.main()
    with file.open(encoding="utf-8") as f:
        again = list(csv.DictReader(f))
    same = lambda row: (row["D"], row["method"]) != ("2", "ours")
    assert list(filter(same, again)) == list(filter(same, rows)) and len(again) == len(rows)
    assert "40       90  gradients" in capsys.readouterr().out


@pytest.mark.parametrize("entry", [0, 1, 2])
def test_a_method_that_disagrees_stops_it(entry, benchmark, monkeypatch, capsys):
    def wrong(x, y, sigma):
        out = list(benchmark.plain(x, y, sigma))
        out[entry] = out[entry] * 1.02 + 0.01
        return tuple(out)

    monkeypatch.setitem(benchmark.METHODS, "torch", wrong)
    with pytest.raises(SystemExit, match=r"^torch: D=2 B=40 N=90, forward: .+ times the error allowed; no table$"):
        benchmark.main()
    assert capsys.readouterr().out == "" and not benchmark.RESULTS.exists()


def test_the_floor_counts_what_it_says(benchmark):
    """A pair costs one exponential and 5D + 8 operations by differences, 4D + 8 by products."""
    rate = {"bytes": 1e30, "operations": 10.0, "products": 100.0, "exps": 1.0}
    assert benchmark.floor(3, 4, 2, False, rate) == (12 * 18 / 10, "operations")
    assert benchmark.floor(3, 4, 64, False, rate) == (12 * 264 / 100, "products")
    assert benchmark.floor(3, 4, 64, True, rate | {"products": 1e9}) == (24.0, "exps")


def test_no_script_hides_a_module_of_python():
    """A script's folder comes first on its path, and on that of every process torch's compiler starts."""
    for folder in ("benchmarks", "full", "pipeline"):
        names = {file.stem for file in (FILE.parent.parent / folder).glob("*.py")}
        assert not names & set(sys.stdlib_module_names)

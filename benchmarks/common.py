"""What the benchmarks share: the chip, a stopwatch, tables that grow as they are measured, and their files.

On a CPU a time is processor time over the number of threads, which other work on the machine leaves alone; beside it
is the time by the clock.  Every row of a file says what it was measured on.
"""
from __future__ import annotations

import csv
import platform
import re
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

RESULTS = Path(__file__).resolve().parent / "results"
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")

Row = dict[str, object]


def chip() -> str:
    """The GPU, or the CPU and its threads in use."""
    if GPU:
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else []
    threads = torch.get_num_threads()
    return f"{names[0] if names else platform.machine()}, {threads} thread{'s' * (threads > 1)}"


def made() -> Row:
    """What a time depends on: the chip and versions."""
    found = {name: version(name) for name in ("torch", "triton", "pykeops") if find_spec(name)}
    return {"chip": chip(), "python": platform.python_version()} | found


def stopwatch(call: Callable[[], object], repeats: int = 20, seconds: float = 2.0) -> tuple[list[float], list[float]]:
    """Seconds by the clock and, of one thread, by the processor, of a warm call, until `repeats` or `seconds`."""
    wait = torch.cuda.synchronize if GPU else lambda: None
    clock, processor = [], []
    while not clock or (len(clock) < repeats and sum(clock) < seconds):
        wait()
        start = time.perf_counter(), time.process_time()
        call()
        wait()
        clock.append(time.perf_counter() - start[0])
        processor.append((time.process_time() - start[1]) / torch.get_num_threads())
    return clock, processor


def table(rows: Iterable[Row], first: int = 11) -> list[Row]:
    """The rows, each printed as soon as it is measured; `first` is the width of the first column."""
    kept: list[Row] = []
    for row in rows:
        widths = [max(len(key), 11 if place else first) for place, key in enumerate(row)]
        if not kept:
            print(", ".join(f"{key} {value}" for key, value in made().items()))
            print(_line(row, widths))
        print(_line(row.values(), widths), flush=True)
        kept.append(row)
    return kept


def _line(values: Iterable[object], widths: list[int]) -> str:
    return "  ".join(f"{'' if v is None else v!s:>{width}}" for v, width in zip(values, widths, strict=True))


def named(name: str, quick: bool = False, *, by_chip: bool = False) -> Path:
    """The file of a benchmark; a quick one never takes the place of a long one, nor one chip that of another."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", chip()).strip("-")
    return RESULTS / f"{name}{f'-{slug}' * by_chip}{'-quick' * quick}.csv"


def save(file: Path, rows: list[Row]) -> None:
    """All rows as CSV, with the columns of the first."""
    file.parent.mkdir(exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {file.parent.name}/{file.name}")

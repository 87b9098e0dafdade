"""Operator-informed scores: what the moments cost once, and what a score costs at every noise level afterwards.

    python benchmarks/operator_informed.py

`fit_oism` on 50,000 points in two dimensions with 14 cosines per axis; then, at one noise level, the linear system and
the scores of 4,096 points, first with an empty cache and then with the coefficients kept.  Beside it `kernel_score`,
which passes over all the data, with all their mirror images, for every query: 128 queries only.  Required on two
cores: moments under 5 s, cached scores under 50 ms.  Writes benchmarks/results/operator_informed.csv.
"""
from __future__ import annotations

import csv
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from lib import toys
from lib.markov import ReflectedBrownian, fit_oism, kernel_score
from lib.markov.process import into_box

OUT = Path(__file__).resolve().parent / "results" / "operator_informed.csv"
POINTS, QUERIES, FEW, ORDER, TAU = 50_000, 4096, 128, 14, 0.01
FIELDS = ("what", "milliseconds", "cpu_milliseconds", "allowed")


def timed(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median wall-clock and processor time of a call, in milliseconds."""
    wall, cpu = [], []
    for _ in range(repeats):
        start, clock = time.perf_counter(), time.process_time()
        run()
        wall.append(1e3 * (time.perf_counter() - start))
        cpu.append(1e3 * (time.process_time() - clock))
    return statistics.median(wall), statistics.median(cpu)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    x = toys.two_spirals().sample(POINTS, generator, torch.float64)
    z, process = into_box(x)(x), ReflectedBrownian(2)
    query = process.noise(z[:QUERIES], TAU, generator)
    model = fit_oism(z, process, ORDER)

    cases = {
        f"moments of {POINTS:,} points, {ORDER} cosines per axis": (lambda: fit_oism(z, process, ORDER), 3, 5000),
        f"a new noise level: system, solution, {QUERIES:,} scores": (lambda: replace(model).score(TAU, query), 5, None),
        f"a known noise level: {QUERIES:,} scores": (lambda: model.score(TAU, query), 20, 50),
        f"a known noise level: {QUERIES:,} divergences": (lambda: model.score_divergence(TAU, query), 20, None),
        f"kernel smoothing: {FEW} scores": (lambda: kernel_score(z, process, TAU, query[:FEW]), 1, None),
    }
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    OUT.parent.mkdir(exist_ok=True)
    with OUT.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, FIELDS, lineterminator="\n")
        table.writeheader()
        for name, (run, repeats, allowed) in cases.items():
            wall, cpu = timed(run, repeats)
            table.writerow(dict(zip(FIELDS, (name, f"{wall:.1f}", f"{cpu:.1f}", allowed), strict=True)))
            print(f"{name:60} {wall:10.1f} ms  {cpu:10.1f} ms of processor   allowed {allowed}", flush=True)


if __name__ == "__main__":
    main()

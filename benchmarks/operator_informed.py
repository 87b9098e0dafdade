"""Operator-informed scores: what the moments cost once, and what a score costs at every noise level afterwards.

    python benchmarks/operator_informed.py

`fit_oism` on 50,000 points in two dimensions with 14 cosines per axis; then, at one noise level, the linear system and
the scores of 4,096 points, first with an empty cache and then with the coefficients kept.  Beside it `kernel_score`,
which passes over all the data, with all their mirror images, for every query: 128 queries only.  Required on two
cores: moments under 5 s, cached scores under 50 ms.  Writes benchmarks/results/operator_informed.csv.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import common
import torch

from lib import toys
from lib.markov import ReflectedBrownian, fit_oism, kernel_score
from lib.markov.process import into_box

POINTS, QUERIES, FEW, ORDER, TAU = 50_000, 4096, 128, 14, 0.01



def measurements() -> Iterator[common.Row]:
    """Median milliseconds by the clock and of all processors, beside what is allowed."""
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
    for name, (run, repeats, allowed) in cases.items():
        clock, processor = (1e3 * median(seconds) for seconds in common.stopwatch(run, repeats, math.inf))
        yield {"what": name, "milliseconds": f"{clock:.1f}",
               "cpu_milliseconds": f"{processor * torch.get_num_threads():.1f}", "allowed": allowed}


def main() -> None:
    rows = common.table(measurements(), first=60)
    common.save(common.named("operator_informed"), [row | common.made() for row in rows])


if __name__ == "__main__":
    main()

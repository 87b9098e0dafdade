"""What the separation function and the optimal path cost: seconds, memory, standard error.

    python benchmarks/separation.py

λ of the digits (1,797 × 64) and of 50,000 photograph patches (64 pixels) at 80 nodes and 4,096 draws, in sample and,
for the digits, leave-one-out; then `optimal_path` from the tabulated λ.  Each case runs in its own process, so that
the peak memory is its own.  Required on two cores: 15 s, 180 s, 2 GB, 50 ms.  Writes benchmarks/results/separation.csv.
"""
from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Iterator

import common
import torch

from lib import affine, data, kinetic

CASES = {  # name: (seconds allowed, leave one out)
    "digits": (15, False),
    "digits, leave-one-out": (None, True),
    "patches": (180, False),
}


def case(name: str) -> common.Row:
    """One estimate of λ and one path from it, with what they cost."""
    if name == "patches":
        x = data.patches(50_000).train.x
    else:
        x = torch.cat([part.x for part in data.digits(dequantise=False)])
    x = affine.normaliser(x)(x)
    allowed, leave_one_out = CASES[name]
    start, cpu = time.perf_counter(), time.process_time()
    seen = kinetic.separation(x, kinetic.nodes(80), generator=torch.Generator().manual_seed(0), draws=4096,
                              leave_one_out=leave_one_out)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    kinetic.optimal_path(seen.smooth)  # the first call loads code
    start = time.perf_counter()
    for _ in range(10):
        kinetic.optimal_path(seen.smooth)
    path_ms = 100 * (time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"case": name, "points": len(x), "dimension": x.shape[1], "nodes": 80, "draws": 4096,
            "threads": torch.get_num_threads(), "seconds": f"{seconds:.1f}", "allowed": allowed,
            "cpu_seconds": f"{cpu:.1f}", "peak_GB": f"{peak:.2f}",
            "largest_stderr": f"{float(seen.stderr.max()):.4f}", "optimal_path_ms": f"{path_ms:.1f}"}


def measurements() -> Iterator[common.Row]:
    for name in CASES:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            yield pool.apply(case, (name,))


def main() -> None:
    rows = common.table(measurements(), first=22)
    common.save(common.named("separation"), [row | common.made() for row in rows])


if __name__ == "__main__":
    main()

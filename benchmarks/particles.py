"""One step of the score-difference flow beside its peers: 10,000 particles, 50,000 targets, 64 dimensions.

    python benchmarks/particles.py            on the GPU where there is one, else on all threads of the CPU
    python benchmarks/particles.py --quick    a tenth of the points

A step takes two posterior means for every particle, over the targets and over the particles themselves, and moves it
by their difference.  Every method makes the same step with the same noise, in float32:

    ours      lib.difference.transport_particles
    torch     plain torch, a matrix of all pairs for each mean; split: the same for 1,000 particles at a time
    keops     pykeops: a softmax-weighted sum for each mean

Each is compared with the definition in float64 on a few particles before it is timed; a method that disagrees is an
error and no table is printed.  On a CPU times are processor time over the number of threads, which other work on the
machine leaves alone; the CSV in benchmarks/results/ has both.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median

import common
import torch
from common import DEVICE, GPU
from torch import Tensor

from lib.difference import transport_particles
from lib.kernels import gaussian_posterior

SIGMA = 2.0  # where the softmax over normal points in 64 dimensions sees many of them
REPEATS, SECONDS = 5, 20.0  # of a measurement, at most


def ours(x: Tensor, target: Tensor) -> Tensor:
    return transport_particles(x, target, [SIGMA], generator=torch.Generator(DEVICE).manual_seed(0))


def noised(x: Tensor) -> Tensor:
    """The points at which `ours` takes the field."""
    return x + SIGMA * torch.randn(x.shape, generator=torch.Generator(DEVICE).manual_seed(0), device=DEVICE)


def softmax_mean(y: Tensor, cloud: Tensor) -> Tensor:
    return ((y @ cloud.T - cloud.square().sum(1) / 2) / SIGMA**2).softmax(1) @ cloud


def plain(x: Tensor, target: Tensor) -> Tensor:
    y = noised(x)
    return x + softmax_mean(y, target) - softmax_mean(y, x)


def split(x: Tensor, target: Tensor) -> Tensor:
    return x + torch.cat([softmax_mean(y, target) - softmax_mean(y, x) for y in noised(x).split(1000)])


def keops(x: Tensor, target: Tensor) -> Tensor:
    from pykeops.torch import LazyTensor
    y = LazyTensor(noised(x)[:, None])

    def mean(cloud: Tensor) -> Tensor:
        points = LazyTensor(cloud[None])
        return (-((y - points) ** 2).sum(-1) / (2 * SIGMA**2)).sumsoftmaxweight(points, 1)

    return x + mean(target) - mean(x)


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ours": ours, "torch": plain, "split": split, "keops": keops}


def disagreement(method: Callable[[Tensor, Tensor], Tensor], x: Tensor, target: Tensor) -> float:
    """Largest error of 32 particles in units of what is allowed, a thousandth of σ."""
    few = torch.linspace(0, len(x) - 1, 32, device=DEVICE).long()
    y = noised(x)[few].double()
    pull, push = (gaussian_posterior(y, cloud.double(), SIGMA, backend="definition").mean for cloud in (target, x))
    return float((method(x, target)[few] - (x[few] + pull - push)).norm(dim=1).max()) / (1e-3 * SIGMA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the points")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    m, n, d = (1000, 5000, 64) if args.quick else (10_000, 50_000, 64)
    g = torch.Generator().manual_seed(0)
    x, target = torch.randn(m, d, generator=g).to(DEVICE) + 1, torch.randn(n, d, generator=g).to(DEVICE)
    rows = []
    for name in args.methods:
        error = disagreement(METHODS[name], x, target)
        if not error <= 1:
            raise SystemExit(f"{name}: {error:.3g} times the error allowed; no table")
        clock, processor = common.stopwatch(partial(METHODS[name], x, target), REPEATS, SECONDS)
        rows.append({"particles": m, "targets": n, "D": d, "method": name, "ms": f"{median(clock) * 1e3:.4g}",
                     "processor_ms": f"{min(processor) * 1e3:.4g}", "error": f"{error:.2g}", "sigma": SIGMA})
    made = common.made()
    print(", ".join(f"{key} {value}" for key, value in made.items()))
    print(f"one step of {m:,} particles, {n:,} targets, D = {d}")
    used = "ms" if GPU else "processor_ms"
    base = float(rows[0][used])
    for row in rows:
        times = f"({float(row[used]) / base:.1f}×)"
        print(f"  {row['method']:8}{float(row[used]):10.4g} ms {times:>9}   error {row['error']} of that allowed")
    common.save(common.named("particles", args.quick, by_chip=True), [row | made for row in rows])


if __name__ == "__main__":
    main()

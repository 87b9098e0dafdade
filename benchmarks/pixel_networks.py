r"""Which network of 28 × 28 pixels is the best that two cores can afford, at equal processor time.

    python benchmarks/pixel_networks.py                two networks at a time, a thread each; about half an hour
    python benchmarks/pixel_networks.py --quick        10 seconds for each training instead of 300

Each network learns the velocity of the Cond-OT path to MNIST as a likelihood needs it: pixels dequantised afresh in
every batch of 128, through the logit (α = 10⁻⁶), centred and scaled to unit second moment; times t = 1 − (1 − u)².
The rate is the best of three, of a training of an eighth of the budget each (a short search favours high rates); the
layout of its convolutions is the faster one, channels last or not.  All start at the zero function, from one seed.

    residual MLP      nets.ResidualMLP, 512 × 4 and 1024 × 4
    convolutions      here: width 32, three blocks at full resolution
    U-Net             nets.UNet: 28 → 14 → 7 pixels; or, in patches of 2, 14 → 7 from the start
    patches of 4      the trunk of that U-Net at 7 × 7 alone, three blocks
    mean, Gaussian    baselines: no x at all, and the best field linear in x at each time (data's covariance)

held_out    squared error of the velocity per pixel, 5,000 validation pictures, one noise and time each, the same for
            all; averaged weights.  near_data: of the times t ≥ 0.9 alone, a third of them.
at_…        held_out of the search, by rate, on a fifth of these pictures.
frechet     distance in the judge's features of 1,000 samples, 25 Euler steps, from the test set; floor: of so many
            training pictures.
ms          of the processor: a step of training, and one evaluation of one picture in a batch of 125.

Results go to benchmarks/results/pixel_networks.csv, quick ones to pixel_networks-quick.csv.
"""
from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from typing import NamedTuple

import common
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import affine, data, judge, metrics, nets, path, solve
from lib import interpolant as si
from lib.fit import fit

SIDE, BATCH, PIECE = 28, 128, 125
SECONDS, QUICK = 300.0, 10.0  # of the processor, for each training
RATES, SEARCH = (3e-4, 1e-3, 3e-3), 8  # a search has the budget's SEARCH-th part for each rate
SAMPLES, EULER = 1000, 25
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
BETWEEN = path.cond_ot()


class ConvNet(nn.Module):
    """`depth` residual blocks of two 3 × 3 convolutions at full resolution, (B, 784) to the same."""

    def __init__(self, *, generator: torch.Generator, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        with nets.seeded(generator):
            self.time = nets.TimeFeatures()
            self.condition = nn.Linear(self.time.size, width)
            self.first = nn.Conv2d(1, width, 3, padding=1)
            self.shift = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
            self.block = nn.ModuleList(
                nn.ModuleList([nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)])
                for _ in range(depth))
            self.last = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, t: Tensor | float, x: Tensor) -> Tensor:
        condition = F.silu(self.condition(self.time(t, x)))
        h = self.first(x.unflatten(1, (1, SIDE, SIDE)))
        for shift, block in zip(self.shift, self.block, strict=True):
            one, two = block.children()
            h = h + two(F.silu(one(F.silu(h + shift(condition)[:, :, None, None]))))
        return self.last(F.silu(h)).flatten(1)


NETWORKS: dict[str, Callable[[torch.Generator], nn.Module]] = {
    "residual MLP, 512 × 4": lambda g: nets.ResidualMLP(SIDE**2, width=512, depth=4, zero=True, generator=g),
    "residual MLP, 1024 × 4": lambda g: nets.ResidualMLP(SIDE**2, width=1024, depth=4, zero=True, generator=g),
    "convolutions": lambda g: ConvNet(generator=g),
    "U-Net": lambda g: nets.UNet(SIDE, (16, 48, 96), generator=g),
    "U-Net, patches of 2": lambda g: nets.UNet(SIDE, (48, 96), patch=2, generator=g),
    "patches of 4": lambda g: nets.UNet(SIDE, (96,), patch=4, depth=3, generator=g),
}


class Gaussian(nn.Module):
    """The best field linear in x on the Cond-OT path, to centred data x (n, D): exact for N(0, x'x/n)."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.variance, self.basis = torch.linalg.eigh(x.T @ x / len(x))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        t = torch.as_tensor(t).reshape(-1, 1)
        gain = (t * self.variance - (1 - t)) / (t.square() * self.variance + (1 - t).square())
        return gain * (x @ self.basis) @ self.basis.T


class Draw(NamedTuple):
    """Points of the path at their times, and the velocities there."""

    t: Tensor  # (n,)
    x: Tensor  # (n, 784)
    velocity: Tensor  # (n, 784)


class Problem(NamedTuple):
    """What all networks are given."""

    levels: Tensor  # (n, 784) of the training pictures
    scale: affine.Affine
    held_out: Draw
    gaussian: Gaussian


def unscaled(levels: Tensor, g: torch.Generator) -> Tensor:
    return data.logit(data.dequantise(levels, 256, g)).y


def draw(levels: Tensor, scale: affine.Affine, g: torch.Generator) -> Draw:
    x1 = scale(unscaled(levels, g))
    x0, t = torch.randn(x1.shape, generator=g), 1 - (1 - si.stratified(len(x1), g)).square()
    return Draw(t, BETWEEN.point(x0, x1, t), BETWEEN.velocity(x0, x1, t))


@functools.cache
def problem() -> Problem:
    parts, g = data.mnist(), torch.Generator().manual_seed(0)
    y = unscaled(parts.train.x, g)
    scale = affine.normaliser(y)
    return Problem(parts.train.x, scale, draw(parts.validation.x, scale, g), Gaussian(scale(y)))


def loss(model: nn.Module, g: torch.Generator) -> Tensor:
    levels, scale = problem()[:2]
    t, x, velocity = draw(levels[torch.randint(len(levels), (BATCH,), generator=g)], scale, g)
    return (model(t, x) - velocity).square().mean()


@torch.no_grad()
def errors(field: solve.Field, held_out: Draw) -> Tensor:
    """Squared error per pixel of each picture (n,)."""
    pieces = zip(*(part.split(PIECE) for part in held_out), strict=True)
    return torch.cat([(field(t, x) - velocity).square().mean(1) for t, x, velocity in pieces])


@functools.cache
def real() -> Tensor:
    return judge.view(data.mnist().test.x / 255).features


def distance(pictures: Tensor) -> float:
    return metrics.frechet_distance(judge.view(pictures).features, real())


@torch.no_grad()
def samples(field: solve.Field) -> Tensor:
    """Pictures (SAMPLES, 784) in [0, 1], all fields from one noise."""
    noise = torch.randn(SAMPLES, SIDE**2, generator=torch.Generator().manual_seed(1))
    times = torch.linspace(0, 1, EULER + 1)
    x = torch.cat([solve.ode(field, part, times, "euler")[-1] for part in noise.split(PIECE)])
    return data.unlogit(problem().scale.inverse(x))


@torch.no_grad()
def row(name: str, field: solve.Field | None, **training: object) -> common.Row:
    """A line of the table; without a field, that of real pictures."""
    held_out = problem().held_out
    found: common.Row = {"network": name} | dict.fromkeys((
        "weights", "layout", *(f"at_{rate:g}" for rate in RATES), "rate", "steps", "seconds", "step_ms", "held_out",
        "near_data", "evaluation_ms", "frechet")) | training
    if field is None:
        return found | {"frechet": f"{distance(problem().levels[:SAMPLES] / 255):.2f}"}
    error, few = errors(field, held_out), Draw(*(part[:PIECE] for part in held_out))
    taken = min(common.stopwatch(lambda: field(few.t, few.x))[1]) / len(few.t)
    return found | {"held_out": f"{float(error.mean()):.4f}",
                    "near_data": f"{float(error[held_out.t >= 0.9].mean()):.4f}",
                    "evaluation_ms": f"{1000 * taken:.3f}", "frechet": f"{distance(samples(field)):.2f}"}


def trained(name: str, layout: str, rate: float, steps: int) -> tuple[nn.Module, float]:
    """A network after so many steps, and the processor seconds they took."""
    net = NETWORKS[name](torch.Generator().manual_seed(0)).to(memory_format=LAYOUTS[layout])
    start = time.process_time()
    model = fit(net, loss, steps, generator=torch.Generator().manual_seed(0), lr=rate, name=name).model
    return model, time.process_time() - start


def faster(name: str, steps: int = 3) -> tuple[str, float]:
    """The layout in which a network trains faster, and seconds a step."""
    flat = all(p.dim() < 4 for p in NETWORKS[name](torch.Generator()).parameters())
    taken = {layout: min(trained(name, layout, RATES[0], steps)[1] for _ in range(3)) / steps
             for layout in (*LAYOUTS,)[:1 if flat else None]}
    return min(taken.items(), key=lambda pair: pair[1])


def run(name: str, seconds: float) -> common.Row:
    """Search for the rate, training and judgement of one network."""
    layout, pace = faster(name)
    steps, few = max(1, round(seconds / SEARCH / pace)), Draw(*(part[::5] for part in problem().held_out))
    found, total = dict.fromkeys(RATES, math.inf), 0.0
    for rate in RATES:
        try:
            model, spent = trained(name, layout, rate, steps)
        except FloatingPointError:  # too high a rate
            continue
        found[rate], total = float(errors(model, few).mean()), total + spent / steps
    rate = min(found, key=lambda rate: found[rate])
    pace = total / sum(map(math.isfinite, found.values()))
    model, spent = trained(name, layout, rate, steps := max(1, round(seconds / pace)))
    return row(name, model, weights=sum(p.numel() for p in model.parameters()), layout=layout,
               **{f"at_{rate:g}": f"{value:.4f}" for rate, value in found.items()}, rate=rate, steps=steps,
               seconds=f"{spent:.1f}", step_ms=f"{1000 * spent / steps:.1f}")


def measurements(seconds: float, jobs: int) -> Iterator[common.Row]:
    yield row("training pictures", None)
    yield row("mean", lambda t, x: torch.zeros_like(x))
    yield row("Gaussian", problem().gaussian)
    with ProcessPoolExecutor(jobs, get_context("fork")) as pool:  # a forked process has the problem
        yield from pool.map(run, NETWORKS, repeat(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 seconds for each training instead of 300")
    parser.add_argument("--jobs", type=int, default=2, help="networks trained side by side, a thread each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = common.table(measurements(QUICK if options.quick else SECONDS, options.jobs), first=22)
    common.save(common.named("pixel_networks", options.quick), [row | common.made() for row in rows])


if __name__ == "__main__":
    main()

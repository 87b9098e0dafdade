r"""The training loop beside the loops of flow_matching's and torchcfm's examples: what a step costs, what it learns.

    python benchmarks/training_loop.py             one thread of the CPU; about 10 minutes
    python benchmarks/training_loop.py --quick     one seed, a tenth of the steps

All train the same network on straight paths from N(0, I), with batches of 512 and Adam at 10⁻³.

    fit              lib.fit.fit at the peers' constant rate; its weights are averaged, as they are by default
    fit, cosine      its defaults: the rate falls to 0 along half a cosine
    fit, features    as the first, the network with 32 Fourier features of its input, 0.3 periods per unit
    flow_matching    the loop of its notebook 2d_flow_matching: AffineProbPath, constant rate, last weights
    torchcfm         the loop of its tutorial: ConditionalFlowMatcher(sigma=0), constant rate, last weights

Processor seconds for 1,000 steps: the loops take turns, and the least and the median of the turns are kept.  Energy
distance of 4,000 samples (50 steps of Heun) from 4,000 held-out points, unbiased, so that it may be below 0; nats of
1,000 held-out points.  Both are means over seeds, with the standard error of the mean.  A constant rate is stopped on
its way; `fit` is trained anew for each length.  To benchmarks/results/training_loop.csv.
"""
from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator

import common
import torch
from torch import Tensor, nn

from lib import interpolant as si
from lib import metrics, solve, toys
from lib.fit import constant, cosine, fit
from lib.nets import MLP

BATCH, POOL, RATE, WIDTH = 512, 50_000, 1e-3, 64
LENGTHS, SEEDS, TURNS, TURN = (1000, 2000, 5000), 3, 9, 200
SAMPLES, HELD_OUT = 4000, 1000
TOYS = {"checkerboard": toys.checkerboard, "two moons": toys.two_moons}

Batch = Callable[[torch.Generator], Tensor]


def by_fit(net: nn.Module, batch: Batch, lengths: tuple[int, ...], generator: torch.Generator, *,
           schedule: Callable[[float], float] = constant) -> Iterator[nn.Module]:
    def loss(model: nn.Module, g: torch.Generator) -> Tensor:
        x1 = batch(g)
        x0, t = torch.randn(x1.shape, generator=g), torch.rand(len(x1), generator=g)
        return (model(t, (1 - t[:, None]) * x0 + t[:, None] * x1) - (x1 - x0)).square().mean()

    start = {key: value.clone() for key, value in net.state_dict().items()}
    for steps in lengths:
        net.load_state_dict(start)
        yield fit(net, loss, steps, generator=generator, lr=RATE, schedule=schedule, name=f"{steps} steps").model


def by_flow_matching(net: nn.Module, batch: Batch, lengths: tuple[int, ...],
                     generator: torch.Generator) -> Iterator[nn.Module]:
    from flow_matching.path import AffineProbPath
    from flow_matching.path.scheduler import CondOTScheduler

    path, optim = AffineProbPath(scheduler=CondOTScheduler()), torch.optim.Adam(net.parameters(), lr=RATE)
    for step in range(1, max(lengths) + 1):
        optim.zero_grad()
        x_1 = batch(generator)
        x_0 = torch.randn_like(x_1)
        t = torch.rand(x_1.shape[0])
        path_sample = path.sample(t=t, x_0=x_0, x_1=x_1)
        loss = torch.pow(net(path_sample.t, path_sample.x_t) - path_sample.dx_t, 2).mean()
        loss.backward()
        optim.step()
        if step in lengths:
            yield net


def by_torchcfm(net: nn.Module, batch: Batch, lengths: tuple[int, ...],
                generator: torch.Generator) -> Iterator[nn.Module]:
    from torchcfm import ConditionalFlowMatcher

    matcher, optimizer = ConditionalFlowMatcher(sigma=0.0), torch.optim.Adam(net.parameters(), lr=RATE)
    for step in range(1, max(lengths) + 1):
        optimizer.zero_grad()
        x1 = batch(generator)
        x0 = torch.randn_like(x1)
        t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
        vt = net(t, xt)
        loss = torch.mean((vt - ut) ** 2)
        loss.backward()
        optimizer.step()
        if step in lengths:
            yield net


LOOPS = {"fit": by_fit, "fit, cosine": functools.partial(by_fit, schedule=cosine), "fit, features": by_fit,
         "flow_matching": by_flow_matching, "torchcfm": by_torchcfm}


def start(loop: str, toy: toys.Toy, seed: int) -> tuple[nn.Module, Batch, torch.Generator]:
    """The same network and points for all loops of a seed."""
    torch.manual_seed(seed)  # the peers draw from the global stream
    g = torch.Generator().manual_seed(seed)
    pool = toy.sample(POOL, g)
    features = {"fourier": 32, "scale": 0.3} if "features" in loop else {}
    net = MLP(2, width=WIDTH, generator=g, **features)
    return net, lambda g: pool[torch.randint(len(pool), (BATCH,), generator=g)], g


def seconds(toy: toys.Toy, turns: int, steps: int) -> dict[str, list[float]]:
    """Processor seconds for 1,000 steps of each loop, taking turns; the first turn warms up and is left out."""
    taken: dict[str, list[float]] = {name: [] for name in LOOPS}
    for _ in range(turns + 1):
        for name, loop in LOOPS.items():
            net, batch, g = start(name, toy, 0)
            before = time.process_time()
            list(loop(net, batch, (steps,), g))
            taken[name].append((time.process_time() - before) * 1000 / steps)
    return {name: values[1:] for name, values in taken.items()}


def quality(net: nn.Module, toy: toys.Toy) -> tuple[float, float]:
    """Energy distance and held-out nats."""
    g = torch.Generator().manual_seed(1000)
    held_out = toy.sample(SAMPLES, g)
    with torch.no_grad():
        x = solve.ode(net, torch.randn(SAMPLES, 2, generator=g), torch.linspace(0, 1, 51), "heun")[-1]
        normal = lambda x: torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
        log_p = si.log_density(net, 1.0, held_out[:HELD_OUT], normal, steps=20)
    return metrics.energy_distance(x, held_out), -float(log_p.mean())


def measurements(lengths: tuple[int, ...], seeds: int, turns: int) -> Iterator[common.Row]:
    for data, make in TOYS.items():
        toy, error = make(), lambda v: statistics.stdev(v) / len(v)**0.5 if len(v) > 1 else float("nan")
        taken = seconds(toy, turns, TURN)
        for name, loop in LOOPS.items():
            runs = []
            for seed in range(seeds):
                net, batch, g = start(name, toy, seed)
                runs.append([quality(trained, toy) for trained in loop(net, batch, lengths, g)])
            for steps, found in zip(lengths, zip(*runs, strict=True), strict=True):
                distance, nats = zip(*found, strict=True)
                yield {"data": data, "loop": name, "steps": steps, "seeds": seeds,
                       "seconds_least": f"{min(taken[name]):.3f}",
                       "seconds_median": f"{statistics.median(taken[name]):.3f}",
                       "energy_distance": f"{statistics.mean(distance):.5f}",
                       "distance_error": f"{error(distance):.5f}",
                       "nats": f"{statistics.mean(nats):.4f}", "nats_error": f"{error(nats):.4f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, a tenth of the steps")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    lengths = tuple(steps // 10 for steps in LENGTHS) if quick else LENGTHS
    rows = common.table(measurements(lengths, 1 if quick else SEEDS, 3 if quick else TURNS), first=14)
    common.save(common.named("training_loop", quick), [row | common.made() for row in rows])


if __name__ == "__main__":
    main()

r"""Diffusion Schrödinger bridge: lib.bridge beside a plain transcription of the paper's algorithm.

    python benchmarks/bridge.py             one thread of the CPU; about two minutes
    python benchmarks/bridge.py --quick     a tenth of the gradient steps

Problem: N(0.1·1, I) → N(−0.1·1, I) in five dimensions, σ = 1, whose bridge is known.  Both sides use the same network,
the same number of pairs per gradient step and Adam at the same rate.

    paper    Algorithm 1 as printed (De Bortoli et al. 2021): before every gradient step simulate fresh paths with the
             frozen network of the other direction, and fit all their steps by mean matching (Eq. 12); constant rate.
    ours     lib.bridge.train_dsb: one cache of paths for each fit, shuffled pairs, cosine rate, averaged weights.

Two comparisons: the processor time of one iteration (two fits) at the same number of gradient steps, and the error
after the same processor time, the paper's steps being scaled down to it.  Processor time, not wall-clock, so that
other work on the machine matters less.  The error is transport.marginal_kl, the mean KL of Gaussian fits to the
simulated marginals from the exact ones, and the error of Cov(X_0, X_1).  Results go to benchmarks/results/bridge.csv,
quick ones to bridge-quick.csv.
"""
from __future__ import annotations

import argparse
import copy
import itertools
import math
import time
from collections.abc import Iterator

import common
import torch
from torch import Tensor, nn

from lib import bridge, transport
from lib.bridge import Bridge
from lib.nets import MLP

DIM, SHIFT, SIGMA, STEPS, BATCH, RATE, ITERATIONS = 5, 0.1, 1.0, 20, 260, 3e-3, 4


def network(dim: int, generator: torch.Generator) -> MLP:
    return MLP(dim, generator=generator, width=128, depth=2)


def paper(x0: Tensor, x1: Tensor, gradient_steps: int, generator: torch.Generator) -> Bridge:
    """Algorithm 1: F moves data to prior (our backward drift), B prior to data, M paths for each gradient step."""
    times, h, noise = bridge.symmetric_times(STEPS).float(), 1 / STEPS, SIGMA * math.sqrt(1 / STEPS)
    up, down = network(DIM, generator), network(DIM, generator)
    frozen = lambda t, x: torch.zeros_like(x)  # F⁰: Brownian motion

    def fit(net: nn.Module, frozen: bridge.Field, data: Tensor, clock: Tensor) -> None:
        optimiser = torch.optim.Adam(net.parameters(), RATE)
        for _ in range(gradient_steps):
            states = [data[torch.randint(len(data), (BATCH // STEPS,), generator=generator)]]
            loss = torch.zeros(())
            for now, later in itertools.pairwise(clock):
                with torch.no_grad():
                    x, mean = states[-1], states[-1] + h * frozen(now, states[-1])
                    y = mean + noise * torch.randn(x.shape, generator=generator)
                    target = y + mean - (y + h * frozen(now, y))  # X_{k+1} + F_k(X_k) − F_k(X_{k+1})
                states.append(y)
                loss = loss + (y + h * net(later, y) - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    for _ in range(ITERATIONS):
        fit(up, frozen, x1, times.flip(0))
        frozen = copy.deepcopy(up).requires_grad_(False)
        fit(down, frozen, x0, times)
        frozen = copy.deepcopy(down).requires_grad_(False)
    return Bridge(up, down, SIGMA, times)


def ours(x0: Tensor, x1: Tensor, gradient_steps: int, generator: torch.Generator) -> Bridge:
    regress = bridge.network(network, steps=gradient_steps, batch=BATCH, lr=RATE)
    return bridge.train_dsb(x0, x1, SIGMA, generator=generator, iterations=ITERATIONS,
                            times=bridge.symmetric_times(STEPS), regress=regress)


def measurements(gradient_steps: int) -> Iterator[common.Row]:
    """The paper's algorithm and ours with the same gradient steps, and the paper's with the time of ours."""
    generator = torch.Generator().manual_seed(0)
    x0, x1 = (torch.randn(20_000, DIM, generator=generator) + m for m in (SHIFT, -SHIFT))
    ends = torch.full((DIM,), SHIFT), torch.eye(DIM), torch.full((DIM,), -SHIFT), torch.eye(DIM)
    exact = transport.gaussian_bridge(*ends, SIGMA)

    def measured(name: str, train, gradient_steps: int) -> common.Row:
        start = time.process_time()
        model = train(x0, x1, gradient_steps, generator.manual_seed(1))
        seconds = (time.process_time() - start) / ITERATIONS
        walk = model.trajectory(x0, "forward", generator.manual_seed(2))
        a, b = walk[0] - walk[0].mean(0), walk[-1] - walk[-1].mean(0)
        cross = float((a * b).mean() - exact.cross_covariance.diagonal().mean())
        return {"method": name, "gradient steps per fit": gradient_steps, "seconds per iteration": round(seconds, 2),
                "marginal KL": round(transport.marginal_kl(exact, model.times, walk), 5),
                "covariance error": round(cross, 4)}

    yield (slow := measured("paper", paper, gradient_steps))
    yield (fast := measured("ours", ours, gradient_steps))
    share = fast["seconds per iteration"] / slow["seconds per iteration"]
    yield measured("paper", paper, max(1, round(gradient_steps * share)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the gradient steps")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print(f"{ITERATIONS} iterations, processor time")
    rows = common.table(measurements(100 if quick else 1000))
    share = rows[1]["seconds per iteration"] / rows[0]["seconds per iteration"]
    print(f"an iteration of ours takes {share:.2f} of the paper's time; the last line had the time of the second")
    common.save(common.named("bridge", quick), [row | common.made() for row in rows])


if __name__ == "__main__":
    main()

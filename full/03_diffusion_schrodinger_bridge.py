"""Chapter 3 at length: bridges between Gaussians in 5, 20 and 50 dimensions, and bridges of known plan in 16.

    python full/03_diffusion_schrodinger_bridge.py

gaussians  N(0.1·1, I) → N(−0.1·1, I), σ = 1, 20 steps: the problem of Shi et al. (2023), Table 2.  DSB, and DSBM
           from the reference's pairs (IPF) and from independent ones (IMF).  After each iteration: the mean
           KL of the simulated marginals from the exact ones, and the error of Cov(X_0, X_1).
plans      From N(0, I), Brownian motion of variance ε over [0, 1] seen through a Gaussian mixture, ε = 0.1, 1, 10,
           in the manner of Gushchin et al. (2023).  After each iteration: cBW₂²-UVP, in per cent.  Beside it, what
           the true drift scores with the same number of Euler steps.

Written to full/results/03_diffusion_schrodinger_bridge/bridges.json with hardware, versions and command.  The chapter
reads that file.
"""
from __future__ import annotations

import argparse
import functools
import itertools

import common
import torch
from torch import Tensor

from lib import bridge, transport
from lib.base.stage import progress
from lib.nets import MLP

SHIFT, DIM, COMPONENTS = 0.1, 16, 10
METHODS = {"DSB": bridge.train_dsb, "DSBM-IPF": functools.partial(bridge.train_dsbm, start="reference"),
           "DSBM-IMF": bridge.train_dsbm}


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__, __file__, seeds=3)
    parser.add_argument("--iterations", type=int, default=5, help="of two regressions each")
    parser.add_argument("--steps", type=int, default=5000, help="gradient steps of each regression")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=256, help="of the two hidden layers")
    parser.add_argument("--knots", type=int, default=20, help="steps of the simulated motions")
    return common.options(parser)


def train(method: str, x0: Tensor, x1: Tensor, sigma: float, g: torch.Generator,
          options: argparse.Namespace) -> bridge.Bridge:
    """A bridge by one of the methods; the rate of Adam falls from 3·10⁻³ by a cosine."""
    def network(dim: int, generator: torch.Generator) -> MLP:
        return MLP(dim, generator=generator, width=options.width, depth=2).to(x0)

    regress = bridge.network(network, steps=options.steps, batch=options.batch, lr=3e-3)
    return METHODS[method](x0, x1, sigma, generator=g, iterations=options.iterations, paths=10_000, regress=regress,
                           times=bridge.symmetric_times(options.knots), name=f"{method}, d = {x0.shape[1]}")


def gaussian(method: str, dim: int, seed: int, options: argparse.Namespace) -> dict:
    """One run between Gaussians: after each iteration, marginal KL and covariance error, the worse direction."""
    g = torch.Generator(options.device).manual_seed(seed)
    mean, eye = (v.to(options.device) for v in (torch.full((dim,), SHIFT), torch.eye(dim)))
    exact = transport.gaussian_bridge(mean, eye, -mean, eye, 1.0)
    x0, x1, test0, test1 = (torch.randn(20_000, dim, generator=g, device=g.device) + m for m in (mean, -mean) * 2)
    model = train(method, x0, x1, 1.0, g, options)
    result = {"method": method, "dim": dim, "seed": seed, "kl": [], "covariance": []}
    for k in range(1, options.iterations + 1):
        kl, off = [], []
        for start, direction in ((test0, "forward"), (test1, "backward")):
            walk = model.after(k).trajectory(start, direction, g)
            times = model.times if direction == "forward" else model.times.flip(0)
            ends = walk[[0, -1]] - walk[[0, -1]].mean(1, keepdim=True)
            kl.append(transport.marginal_kl(exact, times, walk))
            off.append(float(ends.prod(0).mean() - exact.cross_covariance.diagonal().mean()))
        result["kl"].append(round(max(kl), 6))
        result["covariance"].append(round(max(off, key=abs), 5))
    return result


def known_plan(epsilon: float, seed: int, options: argparse.Namespace) -> list[dict]:
    """One problem of known plan: the score of DSB and of DSBM after each iteration, and of the true drift."""
    g, sigma = torch.Generator(options.device).manual_seed(seed), epsilon**0.5
    normal = lambda n: torch.randn(n, DIM, generator=g, device=g.device)
    centres = 4 * torch.nn.functional.normalize(normal(COMPONENTS))  # as far out as a typical x, |x| ≈ √16
    plan = transport.MixtureBridge(centres, 0.5, sigma)
    x0, asked = normal(20_000), normal(200)
    x1 = plan.sample(normal(20_000), g)  # ends of other starts

    def score(model: bridge.Bridge) -> float:
        ends = model.sample(asked.repeat_interleave(500, 0), "forward", g)
        return round(transport.conditional_uvp(plan, asked, ends.unflatten(0, (200, 500))), 3)

    true = bridge.Bridge(plan.forward_drift, lambda t, x: torch.zeros_like(x), sigma,
                         bridge.symmetric_times(options.knots))
    rows = [{"epsilon": epsilon, "seed": seed, "method": "true drift", "uvp": [score(true)]}]
    for method in ("DSB", "DSBM-IMF"):
        model = train(method, x0, x1, sigma, g, options)
        scores = [score(model.after(k)) for k in range(1, options.iterations + 1)]
        rows.append({"epsilon": epsilon, "seed": seed, "method": method, "uvp": scores})
    return rows


def main() -> None:
    options = arguments()
    what = "Schrödinger bridges learned by DSB and DSBM, against closed forms and known plans"
    file, result = common.place(options, "bridges"), common.head(options, what) | {"gaussians": [], "plans": []}
    seeds = range(options.seeds)
    for seed, dim, method in progress(list(itertools.product(seeds, (5, 20, 50), METHODS)), desc="Gaussians"):
        result["gaussians"].append(gaussian(method, dim, seed, options))
    for seed, epsilon in progress(list(itertools.product(seeds, (0.1, 1.0, 10.0))), desc="known plans"):
        result["plans"] += known_plan(epsilon, seed, options)
    common.save(file, result)


if __name__ == "__main__":
    main()

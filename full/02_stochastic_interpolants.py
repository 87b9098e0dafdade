"""Chapter 2 at length: digits from noise by a linear interpolant, two ways of pairing a batch, over several seeds.

    python full/02_stochastic_interpolants.py

trains the same network with independent pairs and with pairs by the optimal assignment of each batch, and writes
full/results/02_stochastic_interpolants/digits.json: energy distance of Euler steps to held-out digits, bits per pixel
by the exact likelihood of the learned flow, energy distance of the diffusion with the same marginals (independent
pairs only: under a coupling the velocity does not know the score), with hardware, versions and command.  The chapter
reads that file.
"""
from __future__ import annotations

import argparse
import itertools

import common
import torch
from torch import Tensor

from lib import affine, data, metrics, solve, transport
from lib import interpolant as si
from lib.base.stage import progress
from lib.fit import fit
from lib.nets import MLP, ConvNet

PAIRS = {"independent": None, "batch transport": "exact"}


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__, __file__, seeds=5)
    parser.add_argument("--steps", type=int, default=20_000, help="gradient steps for each pairing and seed")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--network", choices=("conv", "mlp"), default="conv")
    parser.add_argument("--width", type=int, default=64, help="channels of conv, units of mlp")
    parser.add_argument("--held-out", type=int, default=300, help="test digits whose likelihood is evaluated")
    parser.add_argument("--ode-steps", type=int, default=40, help="Runge–Kutta steps of the likelihood")
    return common.options(parser)


def run(coupling: str | None, seed: int, options: argparse.Namespace) -> dict:
    """Train with one pairing from one seed; sample quality by number of steps, and bits per pixel."""
    digits, levels = data.digits(), data.digits(dequantise=False)
    scale, device = affine.normaliser(digits.train.x), torch.device(options.device)
    counts = (levels.train.x * 16).round().to(device)
    test = scale(digits.test.x).to(device)
    held_out = torch.cat([scale(digits.validation.x).to(device), test])
    g = torch.Generator(device).manual_seed(seed)
    build, size = (ConvNet, 8) if options.network == "conv" else (MLP, 64)
    net = build(size, generator=torch.Generator().manual_seed(seed), width=options.width).to(device)

    def ends(g: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(counts), (options.batch,), generator=g, device=device)
        pixels = (counts[rows] + torch.rand((options.batch, 64), generator=g, device=device)) / 17
        return torch.randn((options.batch, 64), generator=g, device=device), scale(pixels)

    pairs = ends if coupling is None else transport.coupled(ends, coupling)
    model, history = fit(net, si.objective(si.linear(), pairs), options.steps, generator=g, lr=2e-3,
                         name=f"{coupling or 'independent'}, seed {seed}")
    noise = torch.randn(len(held_out), 64, generator=torch.Generator().manual_seed(1000 + seed)).to(device)
    result = {"seed": seed, "path length": round(float(history["length"][-500:].mean()), 3)}
    with torch.no_grad():
        result["energy distance"] = {
            steps: round(metrics.energy_distance(
                solve.ode(model, noise, torch.linspace(0, 1, steps + 1), "euler")[-1], held_out), 5)
            for steps in (1, 2, 4, 8, 16, 64)}
        if coupling is None:
            score = lambda t, x: si.score_from_velocity(si.linear(), t, x, model(t, x))
            grid = torch.linspace(0, 0.99, 64, device=device)
            result["diffusion, 64 steps"] = {}
            for c in (0.25, 1.0):
                end = si.diffuse(model, score, lambda t, c=c: c * (1 - t), noise, grid, g)[-1]
                end = end + 0.01 * model(grid[-1], end)
                result["diffusion, 64 steps"][str(c)] = round(metrics.energy_distance(end, held_out), 5)
        log_p = si.log_density(model, 1.0, test[:options.held_out], common.standard_normal, steps=options.ode_steps)
    result["bits per pixel"] = round(metrics.bits_per_dim(log_p + scale.log_det, 64, 17), 4)
    return result


def main() -> None:
    options = arguments()
    file, what = common.place(options, "digits"), "the same network, gradient steps and seeds for two pairings"
    result = common.head(options, f"digits from noise, linear interpolant, {what}")
    result |= {"pairs": {name: [] for name in PAIRS}}
    for name, seed in progress(list(itertools.product(PAIRS, range(options.seeds))), desc="trainings"):
        result["pairs"][name].append(run(PAIRS[name], seed, options))
    common.save(file, result)


if __name__ == "__main__":
    main()

"""Chapter 1 at length: digits, one network and one budget on four paths, over several seeds.

    python full/01_kinetic_optimal_paths.py

trains by conditional flow matching on the trigonometric path, Cond-OT, and the kinetic-optimal path of the in-sample
and of the leave-one-out separation function, and writes full/results/01_kinetic_optimal_paths/digits.json: sample
quality of Euler steps against held-out digits, bits per pixel by the exact likelihood of the learned flow, with
hardware, versions and command.  The chapter reads that file.
"""
from __future__ import annotations

import argparse
import itertools

import common
import torch

from lib import affine, data, kinetic, metrics, path, solve
from lib.base.stage import progress
from lib.fit import fit
from lib.nets import MLP, ConvNet


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__, __file__, seeds=5)
    parser.add_argument("--steps", type=int, default=20_000, help="gradient steps for each path and seed")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--network", choices=("conv", "mlp"), default="conv")
    parser.add_argument("--width", type=int, default=64, help="channels of conv, units of mlp")
    parser.add_argument("--floor", type=float, default=0.1, help="of γ for the kinetic-optimal paths")
    parser.add_argument("--held-out", type=int, default=300, help="test digits whose likelihood is evaluated")
    parser.add_argument("--ode-steps", type=int, default=50, help="Runge–Kutta steps of the likelihood")
    return common.options(parser)


def paths(train: torch.Tensor, floor: float) -> dict[str, dict]:
    """The four paths, with their energies in the two separation functions."""
    lam = {}
    for name, left_out in (("in-sample", False), ("leave-one-out", True)):
        g = torch.Generator().manual_seed(0)
        lam[name] = kinetic.separation(train, kinetic.nodes(), generator=g, leave_one_out=left_out).smooth
    found = {"trigonometric": path.trigonometric(), "Cond-OT": path.cond_ot(),
             "KO": kinetic.optimal_path(lam["in-sample"], floor).path,
             "KO, leave-one-out": kinetic.optimal_path(lam["leave-one-out"], floor).path}
    return {name: {"path": p, "energy": {k: round(kinetic.kinetic_energy(p, v), 4) for k, v in lam.items()}}
            for name, p in found.items()}


def run(p: path.Path, seed: int, splits: list[torch.Tensor], log_det: float, options: argparse.Namespace) -> dict:
    """Train on one path from one seed; sample quality by number of Euler steps, and bits per pixel."""
    train, held_out, test = splits
    device = train.device
    g = torch.Generator(device).manual_seed(seed)
    build, size = (ConvNet, 8) if options.network == "conv" else (MLP, 64)
    net = build(size, generator=torch.Generator().manual_seed(seed), width=options.width).to(device)

    loss = common.flow_matching(p, train, options.batch)
    model, history = fit(net, loss, options.steps, generator=g, lr=2e-3, name=f"{p.name}, seed {seed}")
    noise = torch.randn(len(held_out), 64, generator=torch.Generator().manual_seed(1000 + seed)).to(device)
    quality = {}
    for steps in (2, 4, 6, 10, 16, 32, 64):
        with torch.no_grad():
            x = solve.ode(model, noise, torch.linspace(0, 1, steps + 1), "euler")[-1]
        directions = torch.Generator().manual_seed(0)
        quality[steps] = {"energy distance": round(metrics.energy_distance(x, held_out), 5),
                          "sliced W2": round(metrics.sliced_wasserstein2(x, held_out, generator=directions), 5)}
    log_p = solve.log_likelihood(model, test, torch.linspace(1, 0, options.ode_steps + 1),
                                 common.standard_normal)
    return {"seed": seed, "final loss": round(float(history["loss"][-500:].mean()), 5), "quality": quality,
            "bits per pixel": round(metrics.bits_per_dim(log_p.detach() + log_det, 64, 17), 4)}


def main() -> None:
    options = arguments()
    digits = data.digits()
    scale = affine.normaliser(digits.train.x)
    train, validation, test = (scale(part.x).to(options.device) for part in digits)
    splits = [train, torch.cat([validation, test]), test[:options.held_out]]
    file, what = common.place(options, "digits"), "the same network, gradient steps and seeds on four paths"
    found = paths(train, options.floor)
    result = common.head(options, f"digits, conditional flow matching, {what}")
    result |= {"paths": {name: {"energy": entry["energy"], "runs": []} for name, entry in found.items()}}
    for name, seed in progress(list(itertools.product(found, range(options.seeds))), desc="trainings"):
        result["paths"][name]["runs"].append(run(found[name]["path"], seed, splits, scale.log_det, options))
    common.save(file, result)


if __name__ == "__main__":
    main()

"""Chapter 4 at length: training-free scores in the plane beside networks with the paper's number of steps.

    python full/04_operator_informed_scores.py

For each set and seed: OISM with many and with few cosines, a network on top of the few, a network that first imitates
them, and a network alone, by denoising score matching in the same box; held-out log-likelihood of all.  Writes
full/results/04_operator_informed_scores/plane.json, with hardware, versions and command.  The chapter reads that file.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
from pathlib import Path as File

import torch
from torch import Tensor, nn

from lib import data, solve
from lib.fit import fit
from lib.markov import OISM, ReflectedBrownian, ScoreNet, fit_oism, score_loss
from lib.nets import MLP
from lib.semigroup import into_box

OUT = File(__file__).resolve().parent / "results" / File(__file__).stem / "plane.json"
SETS = {"two spirals": data.two_spirals, "8 Gaussians": data.eight_gaussians, "pinwheel": data.pinwheel}
LOW, HIGH, LEVELS = 1e-3, 2.0, 60
BOX = ReflectedBrownian(2)
TIMES = torch.logspace(math.log10(LOW), math.log10(HIGH), LEVELS + 1, dtype=torch.float64)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20_000, help="gradient steps of each network")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--points", type=int, default=5000, help="training points of each set")
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--order", type=int, default=20, help="cosines per axis of the large basis")
    parser.add_argument("--small-order", type=int, default=6)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


class Walled(nn.Module):
    """A network on the box with the symmetries of reflection."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.sin(x) * self.net(t, 3 * torch.cos(x))


def train(z: Tensor, seed: int, options: argparse.Namespace, *, base: OISM | None = None,
          imitate: OISM | None = None) -> nn.Module:
    """A network alone, on top of `base`, or after imitating another model for a twentieth of the steps."""
    g, steps = torch.Generator(z.device).manual_seed(seed), options.steps
    net = MLP(2, generator=torch.Generator().manual_seed(seed), width=options.width, zero=base is not None)
    net = ScoreNet(Walled(net), LOW, HIGH, base and base.score).to(z.device)
    taus = torch.logspace(math.log10(LOW), math.log10(HIGH), 40, device=z.device)
    if imitate is not None:
        loss = score_loss(z, BOX, taus, imitate=imitate.score, batch=options.batch)
        net = fit(net, loss, steps // 20, generator=g, lr=1e-2, ema=None, name="imitate").model
        steps -= steps // 20
    return fit(net, score_loss(z, BOX, taus, batch=options.batch), steps, generator=g, lr=5e-3, ema=1 - 20 / steps,
               name=f"seed {seed}").model


def of_network(net: nn.Module, z: Tensor) -> Tensor:
    with torch.no_grad():
        return solve.log_likelihood(BOX.flow(net), z, TIMES, BOX.log_stationary, method="heun")


def of_oism(model: OISM, z: Tensor) -> Tensor:
    return solve.log_likelihood(model.velocity, z, TIMES, BOX.log_stationary, model.divergence, "heun")


def run(name: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Mean held-out log-likelihood of every model, nats, in the set's own coordinates."""
    toy, sizes = SETS[name](), (options.points, options.held_out)
    draws = toy.sample(sum(sizes), torch.Generator().manual_seed(1000 + seed), torch.float64)
    box = into_box(draws)
    z, held_out = (part.to(options.device) for part in box(draws).split(sizes))
    large, small = (fit_oism(z, BOX, k, shrinkage=1e-3) for k in (options.order, options.small_order))
    nats = {"OISM, large": of_oism(large, held_out), "OISM, small": of_oism(small, held_out)}
    for label, extra in (("OISM, small + network", {"base": small}), ("network, pre-trained", {"imitate": small}),
                         ("network", {})):
        nats[label] = of_network(train(z.float(), seed, options, **extra), held_out.float())
    found = {label: float(v.double().mean()) + box.log_det for label, v in nats.items()}
    found["truth"] = float(toy.log_prob(draws[options.points:]).mean())
    return {"seed": seed} | {label: round(v, 4) for label, v in found.items()}


def main() -> None:
    options = arguments()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    result = {
        "what": "held-out log-likelihood in nats of training-free and trained scores in the plane",
        "command": shlex.join(["python", *sys.argv]), "hardware": f"{name}, {platform.machine()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "settings": {key: value for key, value in vars(options).items() if key != "device"}, "sets": {}}
    for name in SETS:
        result["sets"][name] = [run(name, seed, options) for seed in range(options.seeds)]
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {OUT.relative_to(OUT.parents[3])}")


if __name__ == "__main__":
    main()

"""Chapter 4 at length: networks with the paper's number of steps, alone and on top of operator-informed scores.

    python full/04_operator_informed_scores.py

plane    for each set and seed: OISM with many and with few cosines, a network on top of the few, a network that first
         imitates them, and a network alone, by denoising score matching in the same box; held-out log-likelihood.
digits   for each seed: a network alone and on top of two bases; held-out denoising loss along the way.

Writes full/results/04_operator_informed_scores/{plane,digits}.json, with hardware, versions and command.  The chapter
reads these files.
"""
from __future__ import annotations

import argparse
import math

import common
import torch
from torch import Tensor, nn

from lib import affine, data, solve, toys
from lib.base.stage import progress
from lib.fit import fit
from lib.markov import OISM, OrnsteinUhlenbeck, ReflectedBrownian, ScoreNet, fit_oism, score_loss
from lib.markov.process import into_box
from lib.nets import MLP

SETS = {"two spirals": toys.two_spirals, "8 Gaussians": toys.eight_gaussians, "pinwheel": toys.pinwheel}
LOW, HIGH, LEVELS = 1e-3, 2.0, 60
BOX = ReflectedBrownian(2)
TIMES = torch.logspace(math.log10(LOW), math.log10(HIGH), LEVELS + 1, dtype=torch.float64)


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__, __file__, seeds=3)
    parser.add_argument("--steps", type=int, default=20_000, help="gradient steps of each network in the plane")
    parser.add_argument("--digit-steps", type=int, default=20_000, help="gradient steps of each network on digits")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--points", type=int, default=5000, help="training points of each set")
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--order", type=int, default=20, help="cosines per axis of the large basis")
    parser.add_argument("--small-order", type=int, default=6)
    return common.options(parser)


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
    loss = score_loss(z, BOX, taus, batch=options.batch)
    return fit(net, loss, steps, generator=g, lr=5e-3, name=f"seed {seed}").model


def of_network(net: nn.Module, z: Tensor) -> Tensor:
    with torch.no_grad():
        return solve.log_likelihood(BOX.flow(net), z, TIMES, BOX.log_stationary, method="heun")


def of_oism(model: OISM, z: Tensor) -> Tensor:
    return solve.log_likelihood(model.flow, z, TIMES, BOX.log_stationary, method="heun")


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


def digits(seed: int, options: argparse.Namespace) -> dict[str, list[float]]:
    """Held-out loss per pixel, weighted with σ², at the steps of `milestones`: alone, and on top of two bases."""
    parts = data.digits()
    scale = affine.normaliser(parts.train.x.double())
    train, validation, test = (scale(part.x.double()).to(options.device) for part in parts)
    process, taus = OrnsteinUhlenbeck(64), torch.logspace(-3, math.log10(3.0), 40, device=train.device)
    bases = {"DSM": None, "separable(6) + network": fit_oism(train, process, 6, "separable", held_out=validation),
             "PCA(2) + network": fit_oism(train, process, 2, "pca")}
    tau = taus.double().repeat(12)
    noise = torch.randn(480, 64, generator=torch.Generator().manual_seed(150), dtype=torch.float64).to(train)
    deviation = (-torch.expm1(-2 * tau)).sqrt()[:, None]
    x = (-tau).exp()[:, None] * test.repeat(2, 1)[:480] + deviation * noise
    loss, curves = score_loss(train.float(), process, taus, batch=128), {}
    for name, base in bases.items():
        known = 0.0 if base is None else base.score(tau, x)

        def watched(model: nn.Module, g: torch.Generator, known: Tensor | float = known) -> dict[str, Tensor]:
            with torch.no_grad():
                rest = ScoreNet(model.net, LOW, 3.0)(tau.float(), x.float())
            return {"loss": loss(model, g), "held_out": (deviation * (rest + known) + noise).square().mean()}

        net = MLP(64, generator=torch.Generator().manual_seed(seed), width=256, zero=True)
        net = ScoreNet(net, LOW, 3.0, base and base.score).to(train.device)
        g = torch.Generator(train.device).manual_seed(seed)
        _, history = fit(net, watched, options.digit_steps, generator=g, ema=None, name=f"{name}, seed {seed}")
        curves[name] = [round(float(history["held_out"][max(0, k - 20):k].mean()), 4) for k in milestones(options)]
    return curves


def milestones(options: argparse.Namespace) -> list[int]:
    """Steps in ratios of about two, the last one last."""
    return [round(options.digit_steps / 2**k) for k in range(8, -1, -1)]


def main() -> None:
    options = arguments()
    seeds, files = range(options.seeds), {name: common.place(options, name) for name in ("digits", "plane")}
    result = common.head(options, "held-out denoising loss per pixel of digits, along the way")
    result |= {"steps": milestones(options), "runs": [digits(seed, options) for seed in progress(seeds, desc="digits")]}
    common.save(files["digits"], result)
    what = "held-out log-likelihood in nats of training-free and trained scores in the plane"
    sets = {name: [run(name, seed, options) for seed in seeds] for name in progress(SETS, desc="sets of the plane")}
    common.save(files["plane"], common.head(options, what) | {"sets": sets})


if __name__ == "__main__":
    main()

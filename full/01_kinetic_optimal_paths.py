"""Chapter 1 at length: one network and one budget on six paths among the codes of MNIST, and on three in its pixels.

    python full/01_kinetic_optimal_paths.py                 all three parts, or --parts with some of them

`codes` trains a residual perceptron among the codes of `lib.latents` on every path from every seed and writes
codes.json: energies, evaluations of an adaptive solver, the judge's Fréchet distance by Euler steps, also along paths
that a network was not trained on, likelihood, steepness; and codes.png, pictures of the first seed.  `pixels` does the
shorter half of it at 14 × 14 pixels.  `separation` writes λ of MNIST at 7, 14 and 28 pixels by number of images.  The
chapter reads these files, all under full/results/01_kinetic_optimal_paths/.
"""
from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable

import common
import matplotlib.pyplot as plt
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from lib import affine, data, judge, kinetic, latents, metrics, nets, path, solve
from lib.base.stage import progress
from lib.fit import fit

EULER = (2, 4, 6, 10, 20, 50)
TRANSFERRED = 4  # Euler steps along the path of another network
TABLE = 4096  # training times: the middles of so many cells of [0, 1], VP's rate being infinite at its end
IN, OUT = "in-sample", "leave-one-out"
PIXEL_PATHS = ("trigonometric", "Cond-OT", "KO")
KNOWN: dict[str, path.Path] = {}
SIDES, SIZES = (7, 14, 28), (100, 1000, 10_000, 60_000)


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__, __file__, seeds=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--steps", type=int, default=20_000, help="gradient steps for each path and seed")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--floor", type=float, default=0.1, help="of γ for the kinetic-optimal paths")
    parser.add_argument("--pixel-seeds", type=int, default=2)
    parser.add_argument("--draws", type=int, default=512, help="for λ of pixels")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side")
    return common.options(parser)


def separations(x: Tensor, draws: int = 4096) -> dict[str, kinetic.Lambda]:
    """λ of points, in-sample and leave-one-out."""
    return {name: kinetic.separation(x, kinetic.nodes(), generator=torch.Generator().manual_seed(0), draws=draws,
                                     leave_one_out=name == OUT).smooth for name in (IN, OUT)}


def rim(lam: kinetic.Lambda, floor: float) -> path.Path:
    """The best path of radius 1: the flat angle grows evenly."""
    theta, angle = kinetic.unroll(lam, floor)
    turn, end = path.pchip(angle, theta), float(angle[-1])
    return path.Path(lambda t: torch.sin(turn(end * t)), lambda t: torch.cos(turn(end * t)), "rim, " + OUT)


def paths(lam: dict[str, kinetic.Lambda], floor: float) -> dict[str, path.Path]:
    return {"VP": path.variance_preserving(), "trigonometric": path.trigonometric(), "Cond-OT": path.cond_ot(),
            "KO": kinetic.optimal_path(lam[IN], floor).path, "KO, " + OUT: kinetic.optimal_path(lam[OUT], floor).path,
            "rim, " + OUT: rim(lam[OUT], floor)}


def transferred(net: nn.Module, trained: path.Path, along: path.Path) -> solve.Field:
    """The velocity of path `along` from a network trained on another: both know one posterior mean D(x/m, s)."""
    def coefficients(p: path.Path, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, m, (da, dm) = p.a(t), p.m(t), p.rates(t)
        return m, dm / m, da - a * dm / m

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        t = t.double()
        s, low, high = along.ratio(t), torch.zeros_like(t), torch.ones_like(t)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if trained.ratio(middle) < s else (low, middle)
        (m, alpha, beta), (m_there, alpha_there, beta_there) = coefficients(along, t), coefficients(trained, low)
        there = float(m_there / m) * x
        guess = (net(low.to(x), there) - float(alpha_there) * there) / float(beta_there)
        return float(alpha) * x + float(beta) * guess

    return velocity


def train(p: path.Path, x: Tensor, seed: int, options: argparse.Namespace) -> tuple[nn.Module, float]:
    """A velocity network on a path to points x, and its last loss."""
    t = (torch.arange(TABLE, dtype=torch.float64) + 0.5) / TABLE
    table = torch.stack([t, p.a(t), p.m(t), *p.rates(t)], 1).float().to(x.device)

    def loss(model: nn.Module, g: torch.Generator) -> Tensor:
        draw = lambda n: torch.randint(n, (options.batch,), generator=g, device=g.device).to(x.device)
        x1 = x[draw(len(x))]
        x0 = torch.randn(x1.shape, generator=g, device=g.device).to(x1)
        t, a, m, da, dm = table[draw(TABLE)].split(1, 1)
        return (model(t[:, 0], a * x1 + m * x0) - (da * x1 + dm * x0)).square().mean()

    net = nets.ResidualMLP(x.shape[1], width=options.width, depth=options.depth,
                           generator=torch.Generator().manual_seed(seed)).to(x.device)
    model, history = fit(net, loss, options.steps, generator=torch.Generator(x.device).manual_seed(seed),
                         name=f"{p.name}, seed {seed}")
    return model, float(history["loss"][-500:].mean())


def sample(f: solve.Field, noise: Tensor, steps: int) -> Tensor:
    with torch.no_grad():
        return solve.ode(f, noise, torch.linspace(0, 1, steps + 1), "euler")[-1]


def along_the_path(model: nn.Module, p: path.Path, x: Tensor, count: int = 8192) -> tuple[float, float]:
    """Energy per dimension of a network on x_t of points x, and the mean of ‖its Jacobian‖², spectral norm."""
    g = torch.Generator().manual_seed(0)
    t = (torch.arange(count) + torch.rand(count, generator=g)) / count * (1 - 1 / TABLE)
    x1 = x[torch.randint(len(x), (count,), generator=g).to(x.device)]
    at, t = p.point(torch.randn(x1.shape, generator=g).to(x1), x1, t.to(x1)), t.to(x1)
    some = slice(None, None, 8)
    basis = torch.eye(x.shape[1], device=x.device)
    with torch.no_grad():
        energy = float(model(t, at).square().mean())
        column = lambda e: torch.func.jvp(lambda y: model(t[some], y), (at[some],), (e.expand_as(at[some]),))[1]
        jacobian = torch.func.vmap(column)(basis).permute(1, 2, 0)
    return energy, float(torch.linalg.matrix_norm(jacobian, 2).square().mean())


def solved(model: nn.Module, noise: Tensor, codes: Tensor) -> tuple[int, float]:
    """Evaluations of dopri5 at 1e-5 from noise to data, and nats per dimension of codes, by the exact trace."""
    calls = []
    with torch.no_grad():
        solve.ode(lambda t, x: (calls.append(t), model(t, x))[1], noise, torch.tensor([0.0, 1.0]), "dopri5", atol=1e-5)
        log_p = solve.log_likelihood(model, codes, torch.tensor([1.0, 0.0]), common.standard_normal, method="dopri5",
                                     atol=1e-5)
    return len(calls), -float(log_p.mean()) / codes.shape[1]


def run_codes(task: tuple[str, int], options: argparse.Namespace) -> dict:
    """All about one network; and ten pictures of it by 4, 10 and 50 Euler steps."""
    name, seed = task
    codes = latents.mnist()
    x, test = codes.train.x.to(options.device), codes.test.x.to(options.device)
    real = judge.view(data.mnist().test.x / 255).features
    far = lambda w: round(float(metrics.frechet_distance(judge.view(latents.load().decode(w.cpu())).features, real)), 3)
    model, last = train(KNOWN[name], x, seed, options)
    noise = torch.randn(test.shape, generator=torch.Generator().manual_seed(1000 + seed)).to(x)
    ends = {steps: sample(model, noise, steps) for steps in EULER}
    energy, steepness = along_the_path(model, KNOWN[name], test)
    evaluations, nats = solved(model, noise[:1000], test[:128])
    return {"seed": seed, "loss": round(last, 4), "energy": round(energy, 4), "steepness": round(steepness, 3),
            "evaluations": evaluations, "nats per dimension": round(nats, 4),
            "Fréchet": {steps: far(w) for steps, w in ends.items()},
            "along": {other: far(sample(transferred(model, KNOWN[name], p), noise, TRANSFERRED))
                      for other, p in KNOWN.items() if other != name},
            "pictures": torch.cat([latents.load().decode(ends[k][:10].cpu()) for k in (4, 10, 50)])}


def run_pixels(task: tuple[str, int], options: argparse.Namespace) -> dict:
    name, seed = task
    parts = data.mnist(side=14)
    scale = affine.normaliser(parts.train.x)
    features = lambda levels: common.seen_doubled(levels).features
    real = features(parts.test.x)
    model, last = train(KNOWN[name], scale(parts.train.x).to(options.device), seed, options)
    test = scale(parts.test.x).to(options.device)
    noise = torch.randn(test.shape, generator=torch.Generator().manual_seed(1000 + seed)).to(test)
    calls = []
    with torch.no_grad():
        solve.ode(lambda t, x: (calls.append(t), model(t, x))[1], noise[:1000], torch.tensor([0.0, 1.0]), "dopri5",
                  atol=1e-5)
    far = lambda x: round(float(metrics.frechet_distance(features(scale.inverse(x.cpu())), real)), 3)
    return {"seed": seed, "loss": round(last, 4), "evaluations": len(calls),
            "Fréchet": {steps: far(sample(model, noise, steps)) for steps in EULER}}


def trained(run: Callable[..., dict], known: dict[str, path.Path], seeds: int, options: argparse.Namespace) -> dict:
    """Every path from every seed."""
    KNOWN.update(known)  # paths hold closures: a forked process has them, no message could carry them
    return common.side_by_side(run, [(name, seed) for seed in range(seeds) for name in known], options)


def codes(options: argparse.Namespace) -> dict:
    parts, pixels = latents.mnist(), data.mnist()
    lam = separations(parts.train.x)
    known = paths(lam, options.floor)
    real = judge.view(pixels.test.x / 255).features
    again = judge.view(latents.load().decode(parts.train.x[:10_000])).features
    mixtures = {k: GaussianMixture(k, reg_covar=1e-3, max_iter=50, random_state=0).fit(parts.train.x[:20_000].numpy())
                for k in (1, 10, 50)}
    best = max(mixtures, key=lambda k: mixtures[k].score(parts.validation.x.numpy()))
    nats = {f"mixture of {k}": round(-mixtures[k].score(parts.test.x[:128].numpy()) / latents.SIZE, 4)
            for k in (1, best)}
    runs = trained(run_codes, known, options.seeds, options)
    sheet = torch.cat([r[0].pop("pictures").reshape(3, 10, 28, 28) for r in runs.values()], 1)  # 3 × 60 pictures
    rows = sheet.reshape(3, len(runs), 10, 28, 28).permute(1, 3, 0, 2, 4).reshape(28 * len(runs), 3 * 280)
    options.out.mkdir(parents=True, exist_ok=True)
    plt.imsave(options.out / "codes.png", 1 - rows, cmap="gray", vmin=0, vmax=1, metadata={"Software": None})
    for run in itertools.chain(*runs.values()):
        run.pop("pictures", None)
    return {"what": "flow matching among the codes of MNIST: one network, one budget, six paths",
            "floor": {"reconstructed": round(float(metrics.frechet_distance(again, real)), 3)}, "nats": nats,
            "paths": {name: {"energy": {k: round(kinetic.kinetic_energy(p, v), 4) for k, v in lam.items()},
                             "runs": runs[name]} for name, p in known.items()}}


def pixels(options: argparse.Namespace) -> dict:
    x = data.mnist(side=14).train.x
    lam = separations(affine.normaliser(x)(x), options.draws)
    known = {name: p for name, p in paths(lam, options.floor).items() if name in PIXEL_PATHS}
    runs = trained(run_pixels, known, options.pixel_seeds, options)
    return {"what": "flow matching at 14 × 14 pixels of MNIST: one network, one budget, three paths",
            "paths": {name: {"energy": {k: round(kinetic.kinetic_energy(p, v), 4) for k, v in lam.items()},
                             "runs": runs[name]} for name, p in known.items()}}


def separation(options: argparse.Namespace) -> dict:
    """G = ∫(1 − λ)ds, energies and λ itself, by side, number of images, and whether the own image is left out."""
    s, found = kinetic.nodes(40), []
    for side, n in progress(list(itertools.product(SIDES, SIZES)), desc="λ of MNIST"):
        parts = data.mnist(side=side)
        everything = torch.cat([parts.train.x, parts.validation.x])
        x = everything[torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))[:n]]
        x = affine.normaliser(x)(x).to(options.device)
        for seed in range(options.seeds):
            for kind in (IN, OUT)[: 2 if seed == 0 else 1]:
                lam = kinetic.separation(x, s, generator=torch.Generator().manual_seed(seed), draws=options.draws,
                                         leave_one_out=kind == OUT)
                straight = kinetic.kinetic_energy(path.cond_ot(), lam.smooth, cutoff=0)
                angle = kinetic.optimal_path(lam.smooth, 0.0).angle
                found.append({
                    "side": side, "images": n, "kind": kind, "seed": seed, "G": round(2 - straight, 5),
                    "Cond-OT": round(straight, 4), "KO": round(2 - 2 * math.cos(angle), 4),
                    "trigonometric": round(kinetic.kinetic_energy(path.trigonometric(), lam.smooth), 4),
                    "lambda": [round(float(v), 4) for v in lam.lam],
                    "stderr": [round(float(v), 5) for v in lam.stderr]})
    return {"what": "λ of MNIST by resolution and number of images, at s = tan θ in the middles of 40 cells",
            "tables": found}


PARTS = {"codes": codes, "separation": separation, "pixels": pixels}


def main() -> None:
    options = arguments()
    for part in options.parts:
        file = common.place(options, part)
        common.save(file, common.head(options, part) | PARTS[part](options))


if __name__ == "__main__":
    main()

"""Chapter 3 at length: what diffusion Schrödinger bridges promise, each promise against its strongest rival.

    python full/03_diffusion_schrodinger_bridge.py               all six parts, or --parts with some of them

`short` runs DSB for the paper's short times, exactly and learned, against diffusions that are helped in every way.
`sinkhorn` compares the learned drift of each iterate with that of Sinkhorn's.  `gaussian` is the table of Shi et al.
(2023) in 5, 20 and 50 dimensions, `plane` theirs of W₂ in two.  `images` generates codes of MNIST in twelve steps, and
carries 0–4 to 5–9 and back.  `arrival` follows the ends' distance over the iterations, and looks for what spoils it.
Each writes PART.json under full/results/03_diffusion_schrodinger_bridge/, `images` its pictures beside.
"""
from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import common
import matplotlib.pyplot as plt
import torch
from sklearn import datasets
from torch import Tensor, nn

from lib import bridge, data, judge, latents, metrics, nets, solve, toys, transport
from lib.base.stage import progress
from lib.bridge import Bridge, Cache, symmetric_times
from lib.fit import fit
from lib.kernels import gaussian_posterior

MOONS, LOBES = toys.two_moons(), toys.eight_gaussians()


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__, __file__, seeds=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--iterations", type=int, default=6, help="of two regressions each, of `gaussian`")
    parser.add_argument("--steps", type=int, default=1500, help="gradient steps of each regression, but in `short`")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=256, help="of the hidden layers")
    parser.add_argument("--knots", type=int, default=20, help="steps of the motions, where nothing else is said")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side")
    return common.options(parser)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(make: Callable, options: argparse.Namespace, **settings: object) -> bridge.Regress:
    """Regressions whose cache is simulated anew five times, where nothing else is said."""
    settings = {"steps": options.steps, "batch": options.batch, "refresh": max(1, options.steps // 6)} | settings
    return bridge.network(make, **settings)


def perceptron(dim: int, generator: torch.Generator) -> nets.MLP:
    return nets.MLP(dim, width=128, fourier=16, scale=0.3, generator=generator)


def far(x: Tensor, y: Tensor) -> float:
    return round(metrics.energy_distance(x, y), 5)


# short --------------------------------------------------------------------------------------------------------------

LENGTHS, SHORT_ITERATIONS, SHORT_STEPS, CLOUD = (0.004, 0.02, 0.1), 20, 1500, 4000
LASTS = (0.2, 0.05, 0.01)  # of geometric grids: the share of the noise that is left before the last step


class Film(NamedTuple):
    """Brownian motion of moons for the time T = σ²/2, the prior of DSB, and the Gaussian of what is noised."""

    sigma: float
    isotropic: Callable[[int, torch.Generator], Tensor]
    fitted: Callable[[int, torch.Generator], Tensor]


def film(length: float) -> Film:
    """T/s² = length; the priors have the moments of 200,000 moons and the noise, one of them in every direction."""
    x = MOONS.sample(200_000, rng(77)).double()
    s2 = float(x.var(0).mean())
    sigma = math.sqrt(2 * length * s2)
    root = torch.linalg.cholesky(x.T.cov() + sigma**2 * torch.eye(2).double()).float()
    mean, wide = x.mean(0).float(), math.sqrt(s2 + sigma**2)
    return Film(sigma, lambda n, g: mean + wide * torch.randn(n, 2, generator=g),
                lambda n, g: mean + torch.randn(n, 2, generator=g) @ root.T)


def geometric_times(steps: int, last: float) -> Tensor:
    """Times 0 = t_0 < … < t_N = 1 with 1 − t_k = last^(k/(N − 1)) for k < N: the noise to come falls by one factor."""
    k = torch.arange(steps, dtype=torch.float64)
    return torch.cat([1 - last ** (k / (steps - 1)), torch.ones(1, dtype=torch.float64)])


def clocks(steps: int) -> dict[str, Tensor]:
    return {"uniform": symmetric_times(steps)} | {f"geometric to {last:g}": geometric_times(steps, last)
                                                  for last in LASTS}


def iterates(x0: Tensor, x1: Tensor, sigma: float, count: int) -> Iterator[transport.CloudBridge]:
    """What IPF between clouds has after each iteration: exact drifts of DSB's iterates.

    The forward drift of the first is the reversal of Brownian motion from x1 (potential g = 0); its backward drift
    has the f that belongs to it, and so on.
    """
    epsilon, g = 2 * sigma**2, torch.zeros(len(x1)).to(x1)
    for _ in range(count):
        log_w1 = g / epsilon - math.log(len(x1))
        f = -epsilon * gaussian_posterior(x0, x1, sigma, log_w=log_w1).log_z
        log_w0 = f / epsilon - math.log(len(x0))
        yield transport.CloudBridge(x0, x1, sigma, log_w0, log_w1)
        g = -epsilon * gaussian_posterior(x1, x0, sigma, log_w=log_w0).log_z


def walked(drift: solve.Field, sigma: float, x: Tensor, times: Tensor, g: torch.Generator) -> Tensor:
    """Ends of simulated paths, the last step without noise, as the paper generates."""
    x = bridge.simulate(drift, sigma, x, times[:-1], g)[-1]
    with torch.no_grad():
        return x + float(times[-1] - times[-2]) * drift(times[-2].to(x), x)


def diffusions(drift: solve.Field, film: Film, truth: Tensor, steps: int, g: torch.Generator) -> dict[str, float]:
    """Energy distances of a plain diffusion: two priors, and grids."""
    priors = {"isotropic": film.isotropic, "fitted": film.fitted}
    return {f"{prior}, {clock}": far(walked(drift, film.sigma, draw(len(truth), g), times, g), truth)
            for prior, draw in priors.items() for clock, times in clocks(steps).items()}


def shot(task: tuple[str, float, int], options: argparse.Namespace) -> dict:
    """One film, its drifts exact for clouds or learned: distances to fresh moons of diffusions and of DSB."""
    kind, length, seed = task
    now, g, steps = film(length), rng(seed), options.knots
    truth, again = MOONS.sample(CLOUD, rng(500 + seed)), MOONS.sample(CLOUD, rng(600 + seed))
    even, found = symmetric_times(steps), {"kind": kind, "length": length, "seed": seed, "floor": far(again, truth)}
    ends = lambda drift: far(walked(drift, now.sigma, now.isotropic(CLOUD, g), even, g), truth)
    if kind == "exact":
        x0, x1 = now.isotropic(CLOUD, g), MOONS.sample(CLOUD, g)
        all_of_them = list(iterates(x0, x1, now.sigma, SHORT_ITERATIONS))
        found["DSB"] = [ends(one.forward_drift) for one in all_of_them]
        plain = all_of_them[0].forward_drift
    else:
        regress = network(perceptron, options, steps=SHORT_STEPS, lr=2e-3, refresh=max(1, SHORT_STEPS // 6))
        model = bridge.train_dsb(now.isotropic, MOONS.sample, now.sigma, generator=g, iterations=SHORT_ITERATIONS,
                                 times=even, paths=1000, regress=regress, name=str(task))
        found["DSB"] = [ends(one.forward_drift) for one in model.history]
        plain = denoiser(now.sigma, SHORT_ITERATIONS * SHORT_STEPS, options.batch, g)
    return found | {"diffusion": diffusions(plain, now, truth, steps, g)}


def denoiser(sigma: float, steps: int, batch: int, g: torch.Generator) -> solve.Field:
    """A plain diffusion at its best: fresh moons and noise at each step, the target given x_1, noise levels by ratio.

    x_t = x_1 + σ√(1 − t) z, and (x_1 − x_t)/(1 − t) is fitted with weight 1 − t: the network predicts noise.
    """
    def loss(model: nn.Module, g: torch.Generator) -> Tensor:
        left = 0.005 ** torch.rand(batch, generator=g)[:, None]
        z = torch.randn(batch, 2, generator=g)
        x = MOONS.sample(batch, g) + sigma * left.sqrt() * z
        return (left * (model(1 - left[:, 0], x) + sigma * z / left.sqrt()).square()).mean()

    return fit(perceptron(2, generator=g), loss, steps, generator=g, lr=2e-3, name="diffusion").model


def short(options: argparse.Namespace) -> dict:
    tasks = [(kind, length, seed) for kind in ("learned", "exact") for length in LENGTHS
             for seed in range(options.seeds)]
    return {"what": "moons in 20 steps for short times T/s²: energy distance of DSB by iteration, and of diffusions",
            "films": common.side_by_side(shot, tasks, options)}


# sinkhorn -----------------------------------------------------------------------------------------------------------

ITERATES = 5


def compared(task: tuple[str, int], options: argparse.Namespace) -> dict:
    """Root mean square of learned forward drifts less those of Sinkhorn's iterates, over that of the latter."""
    name, seed = task
    g, times = rng(seed), symmetric_times(options.knots)
    regress = network(perceptron, options, steps=2 * options.steps, lr=2e-3)
    model = bridge.train_dsb(MOONS.sample, LOBES.sample, 1.0, generator=g, iterations=ITERATES, times=times, paths=2000,
                             regress=regress, name=name)
    clouds = [draw(CLOUD, g) for draw in (MOONS.sample, LOBES.sample)]
    exact = list(iterates(*clouds, 1.0, ITERATES))
    starts, goal = MOONS.sample(CLOUD, g), LOBES.sample(CLOUD, g)
    walk = bridge.simulate(exact[-1].forward_drift, 1.0, starts[:1000], times, g)
    size = lambda drifts: torch.stack(drifts).square().mean().sqrt()
    along = lambda drift: [drift(t, x) for t, x in zip(times[:-1].to(walk), walk, strict=False)]
    with torch.no_grad():
        learned, true = ([along(one.forward_drift) for one in many] for many in (model.history, exact))
    matrix = [[round(float(size([a - b for a, b in zip(x, y, strict=True)]) / size(y)), 4) for y in true]
              for x in learned]
    up = [one.sample(starts, "forward", g) for one in model.history]
    cost = lambda one: float((starts - (seen := gaussian_posterior(starts, one.x1, 1.0, log_w=one.log_w1)).mean)
                             .square().sum(1).mean() + seen.spread.mean())
    return {"seed": seed, "apart": matrix, "between successive": [
        round(float(size([a - b for a, b in zip(x, y, strict=True)]) / size(y)), 4)
        for x, y in itertools.pairwise(true)],
        "ends": [far(x, goal) for x in up], "floor": far(LOBES.sample(CLOUD, g), goal),
        "cost": [round(float((x - starts).square().sum(1).mean()), 4) for x in up],
        "Sinkhorn's cost": [round(cost(one), 4) for one in exact]}


def sinkhorn(options: argparse.Namespace) -> dict:
    runs = common.side_by_side(compared, [("DSB", seed) for seed in range(options.seeds)], options)
    return {"what": "moons to eight Gaussians, σ = 1: learned drifts of iterates (rows) against Sinkhorn's (columns)",
            "runs": runs["DSB"]}


# gaussian -----------------------------------------------------------------------------------------------------------

SHIFT, DIMS, SWEEPS = 0.1, (5, 20, 50), 4
METHODS: dict[str, tuple[Callable, dict]] = {
    "DSB": (bridge.train_dsb, {}), "DSBM-IPF": (bridge.train_dsbm, {"start": "reference"}),
    "DSBM-IMF": (bridge.train_dsbm, {})}


def affine_features(t: Tensor, x: Tensor) -> Tensor:
    """(B, 5(D + 1)): Chebyshev polynomials of the time to degree 4, times 1 and x."""
    angle = torch.arccos((2 * t - 1).clamp(-1, 1))[:, None] * torch.arange(5).to(x)
    return (angle.cos()[:, :, None] * torch.cat([torch.ones_like(x[:, :1]), x], 1)[:, None]).flatten(1)


class AffinePlus(nn.Module):
    """A drift affine in x, by a table, and a network on top that starts at zero."""

    table: Tensor

    def __init__(self, dim: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.network = nets.MLP(dim, width=width, depth=2, zero=True, generator=generator)
        self.register_buffer("table", torch.zeros(5 * (dim + 1), dim))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        times = torch.as_tensor(t).to(x).expand(len(x))
        return affine_features(times, x) @ self.table + self.network(t, x)


def solved(cache: Cache, net: AffinePlus, generator: torch.Generator, sweeps: int) -> None:
    """The best table beside the network, by least squares over `sweeps` caches."""
    gram, right, passes = 0.0, 0.0, len(cache.times) - 1 if cache.joined else 1  # joined ends give one row a pass
    for k in range(sweeps * passes):
        t, x, target, weight = (cache.refresh(generator) if k and k % passes == 0 else cache).pairs(generator)
        phi = affine_features(t, x).double() * weight.double().sqrt()[:, None]
        with torch.no_grad():
            rest = (target - net.network(t, x)).double() * weight.double().sqrt()[:, None]
        gram, right = gram + phi.T @ phi, right + phi.T @ rest
    ridge = 1e-9 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    net.table.copy_(torch.linalg.solve(gram + ridge, right))


def affine_first(options: argparse.Namespace) -> bridge.Regress:
    """Solve for the table, then train the network from where it was; its rate falls from fit to fit."""
    done = itertools.count()

    def regress(cache: Cache, previous: solve.Field | None, generator: torch.Generator,
                name: str) -> tuple[solve.Field, Tensor]:
        dim = cache.pairs(generator, 1).x.shape[1]
        net = AffinePlus(dim, options.width, generator)
        if isinstance(previous, AffinePlus):
            net.load_state_dict(previous.state_dict())
        solved(cache, net, generator, SWEEPS)
        lr = 1e-3 / (1 + next(done) // 2)
        train = network(lambda dim, generator: net, options, lr=lr, warm=False, refresh=max(1, options.steps // 3))
        return train(cache, None, generator, name)

    return regress


def marginals(exact: transport.GaussianBridge, times: Tensor, walk: Tensor) -> dict[str, float]:
    """Mean over times of KL(fit of walk[k] (K, n, D) | p_t), nats, by three readings of a table that shows no formula.

    full         Gaussians with all covariances; the bias of n points subtracted
    coordinates  the sum over coordinates of Gaussians on a line; a bias of D/n is left in it
    averaged     D times that of the coordinates' mean mean and mean variance, which is what the public script logs
    """
    mean, var = walk.double().mean(1), walk.double().var(1)
    m = torch.stack([exact.mean(t).double() for t in times])
    v = torch.stack([exact.covariance(t).diagonal().double() for t in times])
    line = lambda mean, var, m, v: ((v / var).log() + (var + (mean - m).square()) / v - 1) / 2
    flat = line(*(u.mean(1) for u in (mean, var, m, v)))
    return {"full": transport.marginal_kl(exact, times, walk.double()), "averaged": float(flat.mean()) * walk.shape[2],
            "coordinates": float(line(mean, var, m, v).sum(1).mean())}


def gauss(task: tuple[str, int, int], options: argparse.Namespace) -> dict:
    """One run between Gaussians: after each iteration, marginal KL and covariance error, the worse direction."""
    method, dim, seed = task
    g, mean, eye = rng(seed), torch.full((dim,), SHIFT), torch.eye(dim)
    exact = transport.gaussian_bridge(*(v.double() for v in (mean, eye, -mean, eye)), 1.0)
    draw = [lambda n, g, m=m: m + torch.randn(n, dim, generator=g) for m in (mean, -mean)]
    train, settings = METHODS.get(method, (None, {}))
    even = symmetric_times(options.knots)
    if train is None:
        models = [Bridge(*(lambda t, x, u=u: u(t.double(), x.double()).float()
                           for u in (exact.forward_drift, exact.backward_drift)), 1.0, even)]
    else:
        models = train(*draw, 1.0, generator=g, iterations=options.iterations, times=even, paths=2000,
                       regress=affine_first(options), name=str(task), **settings).history
    found, fresh = [], rng(1000 + seed)
    for model in models:
        both = []
        for source, direction in zip(draw, bridge.DIRECTIONS, strict=True):
            walk = model.trajectory(source(10_000, fresh), direction, fresh)
            ends = walk[[0, -1]] - walk[[0, -1]].mean(1, keepdim=True)
            times = even if direction == "forward" else even.flip(0)
            both.append(marginals(exact, times, walk) | {
                "covariance": float(ends.prod(0).mean() - exact.cross_covariance.diagonal().mean())})
        found.append({key: round(max((one[key] for one in both), key=abs), 6) for key in both[0]})
    return {"dim": dim, "seed": seed, "iterations": found}


def gaussian(options: argparse.Namespace) -> dict:
    tasks = [(method, dim, seed) for dim in reversed(DIMS) for seed in range(options.seeds)
             for method in (*METHODS, "exact drift")]
    return {"what": "N(±0.1·1, I), σ = 1, draws fresh at each refresh: marginal KL by three readings, 10,000 paths",
            "gaussians": common.side_by_side(gauss, tasks, options)}


# plane --------------------------------------------------------------------------------------------------------------

PLANE_ITERATIONS, PLANE_POINTS, PLANE_STEPS = 5, 4000, 2000


def by_sklearn(make: Callable, columns: Sequence[int], scale: float,
               shift: float) -> Callable[[int, torch.Generator], Tensor]:
    """A sampler of a set as TorchCFM scales it: noise 0.05, two columns."""
    def sample(n: int, g: torch.Generator) -> Tensor:
        x, _ = make(n, noise=0.05, random_state=int(torch.randint(2**31, (1,), generator=g)))
        return torch.from_numpy(x[:, columns]).float() * scale + torch.tensor([shift, 0.0])

    return sample


def normal(n: int, g: torch.Generator) -> Tensor:
    return torch.randn(n, 2, generator=g)


def ring(n: int, g: torch.Generator) -> Tensor:
    """Eight Gaussians of variance 0.1 on a circle of radius 5."""
    angle = math.pi / 4 * torch.randint(8, (n,), generator=g)
    return 5 * torch.stack([angle.cos(), angle.sin()], 1) + math.sqrt(0.1) * torch.randn(n, 2, generator=g)


MOON, CURVE = by_sklearn(datasets.make_moons, [0, 1], 2.0, -1.0), by_sklearn(datasets.make_s_curve, [0, 2], 1.5, 0.0)
PROBLEMS = {"moons": (normal, MOON), "S-curve": (normal, CURVE), "8 Gaussians": (normal, ring),
            "moons to 8 Gaussians": (MOON, ring)}


def planar(task: tuple[str, str, int], options: argparse.Namespace) -> dict:
    problem, method, seed = task
    start, goal = PROBLEMS[problem]
    g, (train, settings) = rng(seed), METHODS[method]
    regress = network(lambda dim, generator: nets.MLP(dim, width=options.width, depth=2, generator=generator), options,
                      steps=PLANE_STEPS, lr=2e-3)
    model = train(start, goal, 1.0, generator=g, iterations=PLANE_ITERATIONS, times=symmetric_times(options.knots),
                  paths=2000, regress=regress, name=str(task), **settings)
    fresh = rng(1000 + seed)
    truth, again, ends = (draw(PLANE_POINTS, fresh) for draw in (goal, goal, start))
    return {"method": method, "seed": seed, "floor": round(metrics.wasserstein2(again, truth), 4), "W2": round(
        metrics.wasserstein2(model.sample(ends, "forward", fresh), truth), 4)}


def plane(options: argparse.Namespace) -> dict:
    tasks = [(problem, method, seed) for seed in range(options.seeds) for problem in PROBLEMS
             for method in ("DSB", "DSBM-IMF")]
    return {"what": f"W₂ (not its square) of {PLANE_POINTS:,} ends from as many points of the truth, σ = 1",
            "problems": common.side_by_side(planar, tasks, options)}


# images -------------------------------------------------------------------------------------------------------------

IMAGE_ITERATIONS, FEW, MANY, HALF, SAMPLES = 8, 12, 40, 0.5, 5000
CARRY_SIGMA, CARRY_STEPS = 1.5, 30


def image_network(dim: int, generator: torch.Generator) -> nets.ResidualMLP:
    return nets.ResidualMLP(dim, width=256, depth=3, generator=generator)


def seen(w: Tensor) -> judge.View:
    return judge.view(latents.load().decode(w))


def sheet(codes: Sequence[Tensor], columns: int) -> Tensor:
    """Pictures of the first few of each (B, 32): a row for each, (28 rows, 28 columns)."""
    x = latents.load().decode(torch.cat([w[:columns] for w in codes]))
    return x.reshape(len(codes), columns, 28, 28).permute(0, 2, 1, 3).reshape(28 * len(codes), 28 * columns)


def written(task: tuple[str, int], options: argparse.Namespace) -> dict:
    """Fréchet distances of codes generated from noise: DSB by iteration, or one long fit of its first half."""
    kind, seed = task
    parts, real = latents.mnist(), judge.view(data.mnist().test.x / 255).features
    g, sigma, drift = rng(seed), math.sqrt(2 * HALF), lambda t, x: -HALF * x
    noise = lambda n, g: torch.randn(n, latents.SIZE, generator=g)
    steps = MANY if kind == "diffusion, 40 steps" else FEW
    times, start = symmetric_times(steps, 10.0), torch.randn(SAMPLES, latents.SIZE, generator=rng(1000 + seed))
    if kind == "DSB":
        model = bridge.train_dsb(noise, parts.train.x, sigma, generator=g, iterations=IMAGE_ITERATIONS, times=times,
                                 paths=2000, reference=drift, name=str(task),
                                 regress=network(image_network, options, clip=1.0))
        drifts = [one.forward_drift for one in model.history]
    else:
        every = 2 * IMAGE_ITERATIONS * options.steps
        regress = network(image_network, options, steps=every, clip=1.0)
        cache = Cache("forward", drift, parts.train.x, noise, sigma, times, 2000, joined=False).refresh(g)
        drifts = [regress(cache, None, g, str(task))[0]]
    ends = [walked(one, sigma, start, times, rng(2000 + seed)) for one in drifts]
    return {"seed": seed, "Fréchet": [round(float(metrics.frechet_distance(seen(w).features, real)), 3) for w in ends],
            "pictures": sheet(ends, 14)}


def halves(label: Tensor) -> Tensor:
    return label >= 5


def kept(start: Tensor, end: Tensor) -> float:
    """Mean squared distance to one's own end over that to all ends: 0 for the identity, 1 for independent ends."""
    return float((end - start).square().sum(1).mean() / torch.cdist(start, end).square().mean())


def plan_kept(x0: Tensor, x1: Tensor, sigma: float) -> float:
    """The same ratio of Sinkhorn's plan at ε = 2σ²."""
    found = transport.cloud_bridge(x0, x1, sigma, tolerance=1e-3)
    seen = gaussian_posterior(x0, x1, sigma, log_w=found.log_w1)
    own = (x0 - seen.mean).square().sum(1) + seen.spread
    return float(own.mean() / torch.cdist(x0, x1).square().mean())


class Halves(NamedTuple):
    """Codes of 0–4 and of 5–9."""

    low: Tensor
    high: Tensor
    low_test: Tensor
    high_test: Tensor


def split() -> Halves:
    parts = latents.mnist()
    return Halves(*(part.x[halves(part.label) == high] for part in (parts.train, parts.test) for high in (False, True)))


def carried(task: tuple[str, int], options: argparse.Namespace) -> dict:
    """Held-out codes of one half taken to the other and back: who arrives, and how much of a code is kept."""
    method, seed = task
    both, g, (train, settings) = split(), rng(seed), METHODS[method]
    model = train(both.low, both.high, CARRY_SIGMA, generator=g, iterations=IMAGE_ITERATIONS, paths=2000, **settings,
                  times=symmetric_times(CARRY_STEPS, 10.0), regress=network(image_network, options, clip=1.0),
                  name=str(task))
    rows = []
    for one in model.history:
        row, ends = {}, []
        for way, start, goal in (("forward", *both[2:]), ("backward", *both[:1:-1])):
            end = one.sample(start, way, rng(1000 + seed))
            right = halves(seen(end).label) == (way == "forward")
            ends.append(sheet([start, end], 10))
            row[way] = {"arrived": round(float(right.double().mean()), 4), "kept": round(kept(start, end), 4),
                        "end": far(end[:3000], goal[:3000])}
        rows.append(row)
    return {"seed": seed, "iterations": rows, "pictures": torch.cat(ends)}


def images(options: argparse.Namespace) -> dict:
    seeds = range(options.seeds)
    kinds = ("DSB", "diffusion, 40 steps", "diffusion, 12 steps")
    found = common.side_by_side(written, [(kind, seed) for seed in seeds for kind in kinds], options)
    ways = common.side_by_side(carried, [(name, seed) for seed in seeds for name in ("DSB", "DSBM-IMF")], options)
    parts, both = latents.mnist(), split()
    real = judge.view(data.mnist().test.x / 255).features
    few = [x[:CLOUD] for x in both[:2]]
    right = [round(float((halves(seen(x).label) == high).double().mean()), 4)
             for x, high in ((both.low_test, False), (both.high_test, True))]
    floor = metrics.frechet_distance(seen(parts.train.x[:SAMPLES]).features, real)
    one, other = (runs[0]["pictures"].split(28) for runs in ways.values())  # each: starts, ends, and on the way back
    options.out.mkdir(parents=True, exist_ok=True)
    for name, picture in (("generated", torch.cat([runs[0]["pictures"] for runs in found.values()])),
                          ("carried", torch.cat([*one[:2], other[1], *one[2:], other[3]]))):
        plt.imsave(options.out / f"{name}.png", 1 - picture, cmap="gray", vmin=0, vmax=1, metadata={"Software": None})
    for run in itertools.chain(*found.values(), *ways.values()):
        del run["pictures"]
    return {"what": "codes of MNIST: Fréchet distance (judge) by iteration, 12 steps; 0–4 to 5–9 and back, 30 steps",
            "floor": round(float(floor), 3), "generated": found, "carried": ways,
            "judge right on held-out codes": right,
            "Sinkhorn keeps": [round(plan_kept(a, b, CARRY_SIGMA), 4) for a, b in (few, few[::-1])]}


# arrival ------------------------------------------------------------------------------------------------------------

class Setting(NamedTuple):
    """How a bridge between the halves is trained."""

    ratio: float = 1.0  # of the grid's middle step to those at the ends
    anew: bool = False  # whether the cache is
    weighted: bool = False  # by the time left, as the variance of DSBM's target asks; DSB's is even
    first: int = 1  # how many times longer the first two fits are


SETTINGS = {"as it was": Setting(), "grid": Setting(ratio=10.0), "cache": Setting(anew=True),
            "weight": Setting(weighted=True), "first fit": Setting(first=4),
            "all": Setting(10.0, True, True, 4)}


class Weighted(Cache):
    """Bridge matching whose weight is the time left, over its mean: the variance of the target is its inverse."""

    def pairs(self, generator: torch.Generator, n: int | None = None) -> bridge.Pairs:
        found = super().pairs(generator, n)
        left = 1 - found.t if self.direction == "forward" else found.t
        return found._replace(weight=found.weight * left / left.mean())


def fitted_by(setting: Setting, options: argparse.Namespace) -> bridge.Regress:
    done = itertools.count()

    def regress(cache: Cache, previous: solve.Field | None, generator: torch.Generator,
                name: str) -> tuple[solve.Field, Tensor]:
        steps = options.steps * (setting.first if next(done) < 2 else 1)
        if setting.weighted and cache.joined:
            cache = Weighted(**vars(cache))
        refresh = {} if setting.anew else {"refresh": 0}
        return network(image_network, options, steps=steps, clip=1.0, **refresh)(cache, previous, generator, name)

    return regress


def arrived(task: tuple[str, str, int], options: argparse.Namespace) -> dict:
    """Energy distance of the ends from the other half, by iteration, forward."""
    method, name, seed = task
    both, g, setting = split(), rng(seed), SETTINGS[name]
    times = symmetric_times(options.knots, setting.ratio)
    if method == "exact drift":
        cloud = transport.cloud_bridge(both.low[:CLOUD], both.high[:CLOUD], CARRY_SIGMA, tolerance=1e-3)
        models = [Bridge(cloud.forward_drift, cloud.backward_drift, CARRY_SIGMA, times)]
    else:
        train, settings = METHODS[method]
        models = train(both.low, both.high, CARRY_SIGMA, generator=g, iterations=IMAGE_ITERATIONS, paths=4000,
                       times=times, regress=fitted_by(setting, options), name=str(task), **settings).history
    ends = [one.sample(both.low_test[:3000], "forward", rng(1000 + seed)) for one in models]
    return {"setting": name, "seed": seed, "ends": [far(x, both.high_test[:3000]) for x in ends]}


def arrival(options: argparse.Namespace) -> dict:
    tasks = [(method, name, seed) for name in SETTINGS for method in ("DSB", "DSBM-IMF")
             for seed in range(options.seeds if name in ("as it was", "all") else 1)]
    tasks += [("exact drift", name, seed) for name in ("as it was", "all") for seed in range(options.seeds)]
    both = split()
    return {"what": "codes of MNIST, 0–4 to 5–9: energy distance of 3,000 ends by iteration, under different cares",
            "floor": far(both.high[:3000], both.high_test[:3000]), "apart": far(both.low_test[:3000],
                                                                               both.high_test[:3000]),
            "runs": common.side_by_side(arrived, tasks, options)}


PARTS = {"short": short, "sinkhorn": sinkhorn, "gaussian": gaussian, "plane": plane, "images": images,
         "arrival": arrival}


def main() -> None:
    options = arguments()
    for part in progress(options.parts, desc="parts"):
        file = common.place(options, part)
        common.save(file, common.head(options, part) | PARTS[part](options))


if __name__ == "__main__":
    main()

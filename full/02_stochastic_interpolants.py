"""Chapter 2 at length: what interpolants promise, each against its strongest rival.

    python full/02_stochastic_interpolants.py               all seven parts, or --parts with some of them

`cost` trains one network on tables of known density by the interpolant's loss and by maximum likelihood through an ODE
solver, and follows the held-out KL by processor time.  `diffusion` compares interpolant and diffusion, flow and noise,
among the codes of MNIST, `pixels` once at 14 × 14 pixels.  `bits` is the likelihood of MNIST at 28 × 28 pixels.
`pairs` carries moons to eight Gaussians, and digits to the next digit.
`shorter` plays the max–min game on the checkerboard.  `patches` is density estimation on photographs.  Each writes
PART.json under full/results/02_stochastic_interpolants/, which the chapter reads.
"""
from __future__ import annotations

import argparse
import itertools
import math
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import common
import matplotlib.pyplot as plt
import ot
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint

from lib import affine, data, judge, latents, metrics, nets, path, posterior, solve, toys
from lib import interpolant as si
from lib.fit import fit

ARC = si.trigonometric()
END = math.sqrt(16 / 3)  # the checkerboard's second moment in a coordinate is 16/3
BOARD, MOONS, LOBES = toys.checkerboard(), toys.two_moons(), toys.eight_gaussians()


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__, __file__, seeds=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--steps", type=int, default=20_000, help="gradient steps among codes, and on patches")
    parser.add_argument("--plane-steps", type=int, default=12_000, help="gradient steps in the plane")
    parser.add_argument("--seconds", type=float, default=48.0, help="of processor time for each training of `cost`")
    parser.add_argument("--search", type=float, default=12.0, help="and for each learning rate tried before")
    parser.add_argument("--rows", type=int, default=200_000, help="of each table")
    parser.add_argument("--samples", type=int, default=5000, help="whose Fréchet distance is taken")
    parser.add_argument("--rounds", type=int, default=2000, help="of the max–min game")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side")
    return common.options(parser)


# cost ---------------------------------------------------------------------------------------------------------------

SIZES, RATES, BATCH = (6, 21, 43, 63), (1e-3, 3e-3, 1e-2, 3e-2), 256
TOLERANCE = 1e-3  # of the adjoint method; its gradients are as wrong
SEARCH = 100  # the seed of trainings that only choose a learning rate, judged on rows of their own


class Teacher:
    """A random flow of six affine couplings (Dinh et al. 2017): samples and exact density in D dimensions."""

    def __init__(self, dim: int, seed: int = 0, layers: int = 6, width: int = 64) -> None:
        g = torch.Generator().manual_seed(seed)
        self.dim, half = dim, dim // 2
        draw = lambda n, m: torch.randn(n, m, generator=g) / math.sqrt(n)
        self.layers = [(torch.randperm(dim, generator=g), draw(half, width), 0.6 * draw(width, 2 * (dim - half)))
                       for _ in range(layers)]

    def _shift(self, layer: tuple[Tensor, Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = (torch.tanh(x @ layer[1]) @ layer[2]).chunk(2, 1)
        return 0.5 * torch.tanh(log_scale), shift

    def sample(self, n: int, g: torch.Generator) -> Tensor:
        return self.forward(torch.randn(n, self.dim, generator=g))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            one, other = x.split([self.dim // 2, self.dim - self.dim // 2], 1)
            log_scale, shift = self._shift(layer, one)
            x = torch.cat([one, other * log_scale.exp() + shift], 1)[:, layer[0]]
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        log_det = torch.zeros(len(x))
        for layer in reversed(self.layers):
            one, other = x[:, layer[0].argsort()].split([self.dim // 2, self.dim - self.dim // 2], 1)
            log_scale, shift = self._shift(layer, one)
            x, log_det = torch.cat([one, (other - shift) * (-log_scale).exp()], 1), log_det - log_scale.sum(1)
        return common.standard_normal(x) + log_det


class Augmented(nn.Module):
    """Position and Hutchinson's divergence of a network, with one sign vector for each row; counts evaluations."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        graph = torch.is_grad_enabled()
        self.calls += 2 if graph else 1
        with torch.enable_grad():
            x = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
            velocity = self.net(t, x)
            row, = torch.autograd.grad(velocity, x, self.signs, create_graph=graph)
        slope = (row * self.signs).sum(1)
        return (velocity, slope) if graph else (velocity.detach(), slope.detach())


def by_interpolant(field: Augmented, x: Tensor, g: torch.Generator) -> Tensor:
    field.calls += 2
    return si.velocity_loss(field.net, ARC, torch.randn(x.shape, generator=g), x, si.stratified(len(x), g))["loss"]


def by_adjoint(field: Augmented, x: Tensor, g: torch.Generator) -> Tensor:
    """Minus the likelihood by dopri5, its gradient by a second equation: Grathwohl et al. 2019."""
    field.signs = solve.rademacher(tuple(x.shape), g)
    z, total = odeint_adjoint(field, (x, torch.zeros(len(x))), torch.tensor([1.0, 0.0]), method="dopri5",
                              rtol=TOLERANCE, atol=TOLERANCE)
    return -(common.standard_normal(z[-1]) + total[-1]).mean()


def by_unrolling(field: Augmented, x: Tensor, g: torch.Generator) -> Tensor:
    """Minus the likelihood by eight steps of RK4, its gradient through them: Onken et al. 2021."""
    field.signs = solve.rademacher(tuple(x.shape), g)
    flow = lambda t, y: field(t, (y, y))
    return -solve.log_likelihood(flow, x, torch.linspace(1, 0, 9), common.standard_normal).mean()


WAYS = {"interpolant": by_interpolant, "adjoint": by_adjoint, "unrolled": by_unrolling}


def kl(net: nn.Module, x: Tensor, exact: Tensor, method: str, **options) -> Tensor:
    """log p − log p̂ of each held-out row, Hutchinson's divergence with one fixed sign vector for each."""
    signs = solve.rademacher((1, *x.shape), torch.Generator().manual_seed(7))
    clock = torch.linspace(1, 0, 2 if method == "dopri5" else 13)
    with torch.no_grad():
        found = solve.log_likelihood(net, x, clock, common.standard_normal, solve.hutchinson_divergence(net, signs),
                                     method, **options)
    return exact - found


def race(task: tuple[str, int, float, int, float], options: argparse.Namespace) -> dict:
    """One training within a budget of processor seconds; the held-out KL of its average at geometric times."""
    way, dim, lr, seed, seconds = task
    teacher = Teacher(dim)
    rows = teacher.sample(options.rows, torch.Generator().manual_seed(0))
    scale = affine.normaliser(rows, per_coordinate=True)
    rows, held = scale(rows), teacher.sample(5000, torch.Generator().manual_seed(2 if seed == SEARCH else 1))
    exact, held = teacher.log_prob(held) - scale.log_det, scale(held)
    g = torch.Generator().manual_seed(seed)
    net = nets.MLP(dim, width=128, generator=torch.Generator().manual_seed(seed), zero=True)
    mean = nets.MLP(dim, width=128, generator=torch.Generator().manual_seed(seed), zero=True).requires_grad_(False)
    field, optimiser = Augmented(net), torch.optim.Adam(net.parameters(), lr, fused=True)
    spent, steps, due, curve = 0.0, 0, 0.25, [(0.0, 0, float(kl(mean, held[:3000], exact[:3000], "rk4").mean()))]
    while spent < seconds:
        start = time.process_time()
        optimiser.zero_grad()
        loss = WAYS[way](field, rows[torch.randint(len(rows), (BATCH,), generator=g)], g)
        if not torch.isfinite(loss):
            break
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimiser.step()
        steps += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(mean.parameters()), list(net.parameters()), 1 - min(0.999, steps / (steps + 9)))
        spent += time.process_time() - start
        if spent >= due or spent >= seconds:
            curve.append((spent, field.calls, float(kl(mean, held[:3000], exact[:3000], "rk4").mean())))
            due = 1.6 * spent
    last = kl(mean, held, exact, "dopri5", rtol=1e-5, atol=1e-5)
    return {"seed": seed, "lr": lr, "steps": steps, "curve": [[round(s, 2), n, round(v, 4)] for s, n, v in curve],
            "kl": round(float(last.mean()), 4), "stderr": round(float(last.std()) / math.sqrt(len(last)), 4)}


def cost(options: argparse.Namespace) -> dict:
    """Each way first with every learning rate for a shorter time, then from every seed with the best of them."""
    tables = {}
    for dim in SIZES:
        search = common.side_by_side(
            race, [(way, dim, lr, SEARCH, options.search) for way in WAYS for lr in RATES], options)
        best = {way: min(found, key=lambda run: run["kl"])["lr"] for way, found in search.items()}
        runs = common.side_by_side(
            race, [(way, dim, best[way], seed, options.seconds) for seed in range(options.seeds) for way in WAYS],
            options)
        teacher = Teacher(dim)
        held, rows = (teacher.sample(5000, torch.Generator().manual_seed(k)) for k in (1, 0))
        gauss = torch.distributions.MultivariateNormal(rows.mean(0), rows.T.cov())
        tables[dim] = {"entropy": round(-float(teacher.log_prob(held).mean()), 4),
                       "Gaussian": round(float((teacher.log_prob(held) - gauss.log_prob(held)).mean()), 4),
                       "search": {way: {run["lr"]: run["kl"] for run in found} for way, found in search.items()},
                       "runs": runs}
    return {"what": "tables of known density: one network trained by an interpolant and by maximum likelihood",
            "tables": tables}


# diffusion ----------------------------------------------------------------------------------------------------------

EVALUATIONS, NOISES = (10, 20, 50, 100), (0.5, 1.0, 2.0, 4.0)
Guess = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (t, x) -> E[x_0 | x], E[x_1 | x]


def guess_of(net: nn.Module, p: path.Path, kind: str) -> Guess:
    """Both conditional means from a network of the velocity, or of the noise."""
    def guess(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        a, m, (da, dm) = p.a(t), p.m(t), p.rates(t)
        if kind == "velocity":
            b, turn = net(t, x), m * da - dm * a
            return (da * x - a * b) / turn, (m * b - dm * x) / turn
        x0 = net(t, x)
        return x0, (x - m * x0) / a

    return guess


def ancestral(guess: Guess, p: path.Path, x: Tensor, t: Tensor, eta: float, g: torch.Generator) -> Tensor:
    """DDIM for any Gaussian path (Song et al. 2021): from t to t′ guesses kept, with a share η of fresh noise."""
    for now, later in itertools.pairwise(t):
        x0, x1 = guess(now, x)
        fresh = eta * p.m(later) * (1 - (p.ratio(now) / p.ratio(later)).square()).clamp_min(0).sqrt() if eta else 0.0
        x = p.a(later) * x1 + (p.m(later) ** 2 - fresh**2 if eta else p.m(later) ** 2).clamp_min(0).sqrt() * x0
        x = x + fresh * torch.randn(x.shape, generator=g).to(x) if eta else x
    return x


def noisy(net: nn.Module, x: Tensor, steps: int, c: float, g: torch.Generator) -> Tensor:
    """Euler–Maruyama with ε = c·m, then one step of the flow."""
    t = torch.linspace(0, 1, steps + 1)[:-1]
    drift = lambda t, x: (v := net(t, x)) + c * ARC.ends.m(t) * si.score_from_velocity(ARC, t, x, v)
    x = solve.sde(drift, lambda t: (2 * c * ARC.ends.m(t)).sqrt(), x, t, g)[-1]
    return x + (1 - t[-1]) * net(t[-1], x)


def knots(p: path.Path, steps: int, evenly: str) -> Tensor:
    """Times to 1, even in t, or in the angle arctan(a/m), as the cosine schedule has them.

    The first is 0, but where a = 0 there: a guess of the data by the noise divides by a.
    """
    first = 0.0 if p.a(torch.tensor(0.0)) > 0 else 0.004  # a = 0.006, as VP's at 0
    if evenly == "t":
        return torch.linspace(first, 1, steps + 1)
    fine = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    angle = torch.atan2(p.a(fine), p.m(fine))
    wanted = torch.linspace(0, math.pi / 2, steps + 1, dtype=torch.float64)[1:-1]
    return torch.cat([torch.tensor([first]), fine[torch.searchsorted(angle, wanted)].float(), torch.ones(1)])


KINDS = {"velocity": path.trigonometric(), "VP": path.variance_preserving(), "cosine": path.trigonometric()}


class Space(NamedTuple):
    """Where pictures are generated."""

    x: Tensor  # (n, D) of the training set
    features: Callable[[Tensor], Tensor]  # the judge's, of points (B, D)
    real: Tensor  # those of the test set


def codes() -> Space:
    return Space(latents.mnist().train.x, lambda w: judge.view(latents.load().decode(w)).features,
                 judge.view(data.mnist().test.x / 255).features)


def coarse() -> Space:
    parts = data.mnist(side=14)
    scale = affine.normaliser(parts.train.x)
    features = lambda z: common.seen_doubled(scale.inverse(z)).features
    return Space(scale(parts.train.x), features, features(scale(parts.test.x)))


SPACES = {"diffusion": codes, "pixels": coarse}


def generated(task: tuple[str, int, str], options: argparse.Namespace) -> dict:
    """Fréchet distances of one network's samplers: the flow by evaluations, and noise of all strengths at the most."""
    kind, seed, part = task
    p, space = KINDS[kind], SPACES[part]()
    loss = common.flow_matching(p, space.x, 128, noise=kind != "velocity")
    net = nets.ResidualMLP(space.x.shape[1], generator=torch.Generator().manual_seed(seed))
    model, history = fit(net, loss, options.steps, generator=torch.Generator().manual_seed(seed), name=str(task))
    g, guess = torch.Generator().manual_seed(1000 + seed), guess_of(model, p, kind)
    start, found = torch.randn((options.samples, space.x.shape[1]), generator=g), {}
    far = lambda w: round(float(metrics.frechet_distance(space.features(w), space.real)), 3)
    with torch.no_grad():
        if kind == "velocity":
            found["flow"] = {n: far(solve.ode(model, start, torch.linspace(0, 1, n + 1), "euler")[-1])
                             for n in EVALUATIONS}
            found |= {f"ε = {c:g} m": {100: far(noisy(model, start, 100, c, g))} for c in NOISES}
        for evenly, eta in itertools.product(("t", "angle") if kind == "VP" else ("t",), (0.0, 0.5, 1.0)):
            found[f"DDIM, η = {eta:g}" + ", cosine knots" * (evenly == "angle")] = {
                n: far(ancestral(guess, p, start, knots(p, n, evenly), eta, g)) for n in EVALUATIONS
                if n in (10, 100) or eta == 0}
    return {"seed": seed, "loss": round(float(history["loss"][-500:].mean()), 4), "Fréchet": found}


def compared(part: str, seeds: int, options: argparse.Namespace) -> dict:
    kinds = common.side_by_side(generated, [(kind, seed, part) for seed in range(seeds) for kind in KINDS], options)
    space = SPACES[part]()
    floor = metrics.frechet_distance(space.features(space.x[:options.samples]), space.real)
    return {"what": "interpolant (velocity, trigonometric) and diffusions (noise; VP, cosine): one network, one budget",
            "floor": round(float(floor), 3), "kinds": kinds}


def diffusion(options: argparse.Namespace) -> dict:
    return compared("diffusion", options.seeds, options)


def pixels(options: argparse.Namespace) -> dict:
    return compared("pixels", 1, options)


# bits ---------------------------------------------------------------------------------------------------------------

BIT_STEPS, CODED, TRACED = 6000, 2000, 4  # gradient steps; test pictures, and those whose divergence is exact
CLUSTERS, SHRUNK = (1, 10, 100), (0.05, 0.15, 0.4)


class Clusters:
    """A mixture of Gaussians of pictures x (n, D): clusters of k-means, covariances shrunk towards their mean."""

    def __init__(self, x: Tensor, k: int) -> None:
        label = torch.from_numpy(MiniBatchKMeans(k, batch_size=4096, n_init=3, random_state=0).fit_predict(x.numpy()))
        parts = [x[label == j].double() for j in range(k)]
        self.weight = torch.tensor([len(part) for part in parts], dtype=torch.float64) / len(x)
        self.mean, self.cov = (torch.stack([f(part) for part in parts])
                               for f in (lambda x: x.mean(0), lambda x: (x - x.mean(0)).T @ (x - x.mean(0)) / len(x)))

    def log_prob(self, x: Tensor, shrink: float) -> Tensor:
        """Log-density (B,) of x (B, D) where each covariance has a share `shrink` of the mean of all."""
        mean = (self.weight[:, None, None] * self.cov).sum(0)
        terms = [weight.log() + torch.distributions.MultivariateNormal(centre, torch.lerp(cov, mean, shrink)).log_prob(
            x.double()) for weight, centre, cov in zip(self.weight, self.mean, self.cov, strict=True)]
        return torch.stack(terms).logsumexp(0)


def in_bits(log_p: Tensor) -> Tensor:
    """Bits per dimension of each picture from log-densities of levels and noise on [0, 1]."""
    return (math.log(256) - log_p.double() / 784) / math.log(2)


def codings(parts: data.Splits, test: Tensor) -> dict[str, tuple[float, Tensor]]:
    """By a histogram for each pixel and by mixtures: bits of the validation pictures, and of each of test (m, 784)."""
    g, train, some = torch.Generator().manual_seed(0), parts.train.x, parts.validation.x[:1000]
    by_histogram = lambda k: metrics.histogram_bits(train, k, 256)
    found = {"histogram for each pixel": (float(by_histogram(some).mean()), by_histogram(test))}
    x, validation, many = (data.dequantise(k, 256, g) for k in (train, some, test))
    for k in CLUSTERS:
        mixture = Clusters(x, k)
        bits = {share: float(in_bits(mixture.log_prob(validation, share)).mean()) for share in SHRUNK}
        best = min(bits, key=lambda share: bits[share])
        name = "Gaussian" if k == 1 else f"mixture of {k} Gaussians, {best:.0%} of each covariance shared"
        found[name] = bits[best], in_bits(mixture.log_prob(many, best))
    return found


def along(model: nn.Module, signs: Tensor) -> Callable[[Tensor, Tensor], solve.Flow]:
    """The velocity at x like signs (B, D), and Hutchinson's estimate of its divergence, from one evaluation."""
    def flow(t: Tensor, x: Tensor) -> solve.Flow:
        velocity, turn = torch.func.jvp(lambda y: model(t, y), (x,), (signs,))
        return solve.Flow(velocity, (turn * signs).sum(1))

    return flow


@torch.no_grad()
def coded(model: nn.Module, scale: affine.Affine, levels: Tensor, clock: Tensor, *, exact: bool = False,
          **options: object) -> Tensor:
    """Bits per dimension of each picture (m,), noised once, by the flow of a network in logits."""
    g, found = torch.Generator().manual_seed(3), []
    for piece in levels.split(125):
        y, log_det = data.logit(data.dequantise(piece, 256, g))
        z, signs = scale(y), solve.rademacher(tuple(y.shape), g)
        field = model if exact else along(model, signs)
        log_p = solve.log_likelihood(field, z, clock, common.standard_normal, **options)
        found.append(in_bits(log_p + scale.log_det + log_det))
    return torch.cat(found)


def bits(options: argparse.Namespace) -> dict:
    parts, g = data.mnist(), torch.Generator().manual_seed(0)
    levels, test = parts.train.x, parts.test.x[::len(parts.test.x) // CODED]
    scale = affine.normaliser(data.logit(data.dequantise(levels, 256, g)).y)

    def loss(model: nn.Module, g: torch.Generator) -> dict[str, Tensor]:
        x1 = scale(data.logit(data.dequantise(levels[torch.randint(len(levels), (128,), generator=g)], 256, g)).y)
        return si.velocity_loss(model, ARC, torch.randn(x1.shape, generator=g), x1, 1 - (1 - si.stratified(128, g))**2)

    net = nets.UNet(28, (16, 48, 96), generator=torch.Generator().manual_seed(0))
    model, _ = fit(net, loss, BIT_STEPS, generator=g, lr=1e-3, name="bits")
    whole, steps = torch.tensor([1.0, 0.0]), torch.linspace(1, 0, 9)
    flow, known = coded(model, scale, test, whole, method="dopri5", atol=1e-5), codings(parts, test)
    few = test[::len(test) // TRACED]
    traces = torch.stack([coded(model, scale, few, steps, exact=exact) for exact in (False, True)])
    best = min(known, key=lambda name: known[name][0])
    with torch.no_grad():
        end = solve.ode(model, torch.randn((40, 784), generator=g), whole.flip(0), "dopri5", atol=1e-5)[-1]
    sheet = data.unlogit(scale.inverse(end)).reshape(4, 10, 28, 28).permute(0, 2, 1, 3).reshape(4 * 28, 280)
    options.out.mkdir(parents=True, exist_ok=True)
    plt.imsave(options.out / "bits.png", 1 - sheet, cmap="gray", vmin=0, vmax=1, metadata={"Software": None})
    of = lambda x: [round(float(x.mean()), 4), round(float(x.std()) / math.sqrt(len(x)), 4)]
    return {"what": "bits per dimension of MNIST, upper bounds by uniform noise: [mean, standard error] over pictures",
            "steps": BIT_STEPS, "images seen": 128 * BIT_STEPS, "weights": sum(w.numel() for w in net.parameters()),
            "pictures": len(test), "bits": {"interpolant": of(flow)} | {name: of(x) for name, (_, x) in known.items()},
            "best baseline": best, "lead": of(known[best][1] - flow),
            "trace": {"pictures": len(few), "Hutchinson less exact": of(traces[0] - traces[1]), "exact": of(traces[1]),
                      "dopri5": of(flow[::len(test) // TRACED])}}


# pairs --------------------------------------------------------------------------------------------------------------

def perceptron(g: torch.Generator) -> nets.MLP:
    return nets.MLP(2, width=256, fourier=32, scale=0.3, generator=g)


def moons_to_lobes(seed: int, options: argparse.Namespace) -> dict:
    """KL at both ends of one field between two densities that are known."""
    ends = lambda g: (MOONS.sample(512, g), LOBES.sample(512, g))
    model, _ = fit(perceptron(torch.Generator().manual_seed(seed)), si.objective(si.linear(), ends),
                   options.plane_steps, generator=torch.Generator().manual_seed(seed), lr=2e-3, name="moons, lobes")
    g, found = torch.Generator().manual_seed(1000 + seed), {}
    for name, law, other, clock in (("lobes", LOBES, MOONS, [1.0, 0.0]), ("moons", MOONS, LOBES, [0.0, 1.0])):
        x = law.sample(20_000, g)
        with torch.no_grad():
            log_p = solve.log_likelihood(model, x, torch.tensor(clock), other.log_prob, method="dopri5", atol=1e-5)
        gap = law.log_prob(x) - log_p
        found[name] = {"kl": round(float(gap.mean()), 4), "stderr": round(float(gap.std()) / math.sqrt(len(x)), 4)}
    return {"seed": seed, **found, "pictures": densities(model) if seed == 0 else None}


@torch.no_grad()
def densities(field: solve.Field, side: int = 150, lim: float = 4.2) -> Tensor:
    """What the flow makes of the moons (above) and of the eight Gaussians (below) at five times, (2·side, 5·side)."""
    line, rows = torch.linspace(-lim, lim, side), []
    where = torch.cartesian_prod(line.flip(0), line).flip(1)  # rows of a picture from the top
    for start, law in ((0.0, MOONS), (1.0, LOBES)):
        for t in (0.0, 0.25, 0.5, 0.75, 1.0):
            clock = torch.linspace(t, start, 2 + round(40 * abs(t - start)))
            log_p = law.log_prob(where) if t == start else solve.log_likelihood(field, where, clock, law.log_prob)
            rows.append(log_p.exp().reshape(side, side))
    return torch.stack(rows).reshape(2, 5, side, side).permute(0, 2, 1, 3).reshape(2 * side, 5 * side)


def successor(seed: int, options: argparse.Namespace) -> dict:
    """Each test digit carried to the next class among the codes: where it arrives, and pictures of the way."""
    parts, dim = latents.mnist(), latents.SIZE
    by_class = [parts.train.x[parts.train.label == c] for c in range(10)]
    pool, sizes = torch.cat(by_class), torch.tensor([len(x) for x in by_class])
    first = sizes.cumsum(0) - sizes

    def loss(model: nn.Module, g: torch.Generator) -> dict[str, Tensor]:
        c = torch.randint(10, (128,), generator=g)
        draw = lambda c: pool[first[c] + (torch.rand(128, generator=g) * sizes[c]).long()]
        x0, x1 = draw(c), draw((c + 1) % 10)
        return si.velocity_loss(lambda t, x: model(t, x, c), si.linear(), x0, x1, si.stratified(128, g))

    net = nets.ResidualMLP(dim, classes=10, generator=torch.Generator().manual_seed(seed))
    model, _ = fit(net, loss, options.steps // 2, generator=torch.Generator().manual_seed(seed), name="next digit")
    test, label = parts.test
    with torch.no_grad():
        walk = solve.ode(lambda t, x: model(t, x, label), test, torch.linspace(0, 1, 51), "heun")
    view = judge.view(latents.load().decode(walk[-1]))
    real = judge.view(data.mnist().test.x / 255).features
    shown = [int(torch.nonzero(label == c)[0]) for c in range(10)]
    sheet = latents.load().decode(walk[::10][:, shown].reshape(-1, dim))
    return {"seed": seed, "arrived": round(float((view.label == (label + 1) % 10).double().mean()), 4),
            "Fréchet": round(float(metrics.frechet_distance(view.features, real)), 3),
            "pictures": sheet.reshape(6, 10, 28, 28).permute(0, 2, 1, 3).reshape(6 * 28, 10 * 28)}


PAIRS = {"moons to eight Gaussians": moons_to_lobes, "digit to next digit": successor}


def paired(task: tuple[str, int], options: argparse.Namespace) -> dict:
    return PAIRS[task[0]](task[1], options)


def pairs(options: argparse.Namespace) -> dict:
    runs = common.side_by_side(paired, [(name, seed) for seed in range(options.seeds) for name in PAIRS], options)
    moons, digits = (found[0]["pictures"] for found in runs.values())
    options.out.mkdir(parents=True, exist_ok=True)
    for file, sheet, cmap, high in (("pairs", 1 - digits, "gray", 1.0), ("moons", moons, "viridis", 0.2)):
        plt.imsave(options.out / f"{file}.png", sheet, cmap=cmap, vmin=0, vmax=high, metadata={"Software": None})
    for run in itertools.chain(*runs.values()):
        del run["pictures"]
    known = judge.view(latents.load().decode(latents.mnist().test.x))
    right = float((known.label == latents.mnist().test.label).double().mean())
    return {"what": "from any density to any density", "judge on reconstructed test digits": round(right, 4),
            "runs": runs}


# shorter ------------------------------------------------------------------------------------------------------------

def cloud_length(i: si.Interpolant, cloud: Tensor, g: torch.Generator, times: int = 8, batch: int = 160) -> Tensor:
    """Mean of E|b|² over t ≤ 0.97, between N(0, I) and a cloud of points, exact in b."""
    total = torch.zeros(())
    for t in 0.97 * (torch.arange(times) + torch.rand(times, generator=g)) / times:
        x1 = cloud[torch.randint(len(cloud), (batch,), generator=g)]
        x = i.point(torch.randn(x1.shape, generator=g), x1, t)
        total = total + posterior.velocity(i.one_sided(), t, x, cloud).square().sum(1).mean() / times
    return total


def board_ends(g: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(512, 2, generator=g), BOARD.sample(512, g) / END


def game(g: torch.Generator, rounds: int, inner: int = 5) -> si.Learned:
    """The max–min game: `inner` steps of the field, then one small step of the interpolant against it."""
    field, learned = perceptron(g), si.Learned(7)
    down = torch.optim.Adam(field.parameters(), 2e-3)
    up = torch.optim.Adam(learned.parameters(), 5e-4)
    for _ in range(rounds):
        for k in range(inner + 1):
            mover, i = (down, learned.interpolant()) if k < inner else (up, learned.opponent())
            x0, x1 = board_ends(g)
            loss = si.velocity_loss(field, i, x0, x1, si.stratified(512, g))["loss"]
            mover.zero_grad()
            loss.backward()
            mover.step()
    return learned.requires_grad_(False)


def by_exact_inner(cloud: Tensor, g: torch.Generator, steps: int = 300) -> si.Learned:
    """Descent on the exact length of a cloud: the game with a perfect inner player."""
    learned = si.Learned(7)
    optimiser = torch.optim.Adam(learned.parameters(), 0.015)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.015 * (1 - step / steps)
        optimiser.zero_grad()
        cloud_length(learned.interpolant(), cloud, g).backward()
        optimiser.step()
    return learned.requires_grad_(False)


def shortened(task: tuple[str, int], options: argparse.Namespace) -> dict:
    """One interpolant on the checkerboard: exact length, and likelihood, samples and map of a network trained on it."""
    kind, seed = task
    g = torch.Generator().manual_seed(seed)
    cloud = BOARD.sample(3000, torch.Generator().manual_seed(9)) / END
    play = {"game": lambda: game(g, options.rounds), "exact inner player": lambda: by_exact_inner(cloud, g)}
    learned = play[kind]() if kind in play else None
    i = learned.interpolant() if learned else ARC
    fresh_cloud = BOARD.sample(12_000, torch.Generator().manual_seed(19)) / END
    with torch.no_grad():
        length = torch.stack([cloud_length(i, fresh_cloud, torch.Generator().manual_seed(k), 16, 400)
                              for k in range(16)])
    late = lambda t: 1 - (1 - t) ** 1.5
    model, _ = fit(perceptron(torch.Generator().manual_seed(seed)), si.objective(i, board_ends, warp=late),
                   options.plane_steps, generator=torch.Generator().manual_seed(seed), lr=2e-3, name=str(task))
    fresh = torch.Generator().manual_seed(1000 + seed)
    held, start = BOARD.sample(5000, fresh), torch.randn(4000, 2, generator=fresh)
    goal = BOARD.sample(4000, fresh) / END
    with torch.no_grad():
        log_p = solve.log_likelihood(model, held / END, torch.tensor([1.0, 0.0]), common.standard_normal,
                                     method="dopri5", atol=1e-5) - 2 * math.log(END)
        end, many = (solve.ode(model, x, torch.linspace(0, 1, 101), "rk4")[-1]
                     for x in (start, torch.randn(10_000, 2, generator=fresh)))
    partner = [b[ot.emd([], [], torch.cdist(start.double(), b.double()).square().numpy(), numItermax=10_000_000)
                 .argmax(1)] for b in (goal, BOARD.sample(4000, fresh) / END)]
    return {"seed": seed, "nats": round(-float(log_p.mean()), 4),
            "length": round(float(length.mean()) * END**2, 3),
            "stderr": round(float(length.std()) * END**2 / math.sqrt(len(length)), 3),
            "dark": round(float(torch.isfinite(BOARD.log_prob(many * END)).double().mean()), 4),
            "map error": round(float((end - partner[0]).square().sum(1).mean()) * END**2, 3),
            "map floor": round(float((partner[1] - partner[0]).square().sum(1).mean()) * END**2, 3),
            "transport": round(float((start - partner[0]).square().sum(1).mean()) * END**2, 3),
            "corrections": None if learned is None else [[round(float(c), 4) for c in row]
                                                         for row in learned.corrections]}


def shorter(options: argparse.Namespace) -> dict:
    kinds = ("trigonometric", "game", "exact inner player")
    tasks = [(kind, seed) for seed in range(options.seeds) for kind in kinds]
    return {"what": "checkerboard: interpolants found by hand, by the max–min game and by descent on the exact length",
            "entropy": round(math.log(32), 4), "interpolants": common.side_by_side(shortened, tasks, options)}


# patches ------------------------------------------------------------------------------------------------------------

COMPONENTS = (5, 20, 100, 200)


class Chart:
    """Coordinates for photographs: z = c|y|^(β − 1) y, y whitened, with log|z| as a Gaussian has it.

    log|z| of N(0, I) has mean (ψ(D/2) + log 2)/2 and variance ψ′(D/2)/4.
    """

    def __init__(self, x: Tensor) -> None:
        x = x.double()
        self.dim, self.mean, self.factor = x.shape[1], x.mean(0), torch.linalg.cholesky(x.T.cov())
        log_r, half = self.white(x).norm(dim=1).log(), torch.tensor(self.dim / 2, dtype=torch.float64)
        self.beta = float(torch.polygamma(1, half).sqrt() / 2 / log_r.std())
        self.shift = float((torch.digamma(half) + math.log(2)) / 2 - self.beta * log_r.mean())

    def white(self, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor.to(x), (x - self.mean.to(x)).T, upper=False).T

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z (n, D) and log |dz/dx| (n,)."""
        y = self.white(x)
        stretch = self.shift + (self.beta - 1) * y.norm(dim=1).log()
        log_det = math.log(self.beta) - float(self.factor.diagonal().log().sum())
        return y * stretch.exp()[:, None], log_det + self.dim * stretch


def levelled(k: Tensor, g: torch.Generator) -> Tensor:
    """Patches of levels k (n, 64), noised afresh, less mean and last pixel: 63 dimensions, as BSDS300."""
    x = data.dequantise(k, 256, g)
    return (x - x.mean(1, keepdim=True))[:, :-1]


def held_out(stride: int = 4) -> tuple[Tensor, Tensor]:
    """Levels of the patches of the columns kept for tests, every `stride` pixels, and the tile that each lies in."""
    levels, tiles = [], []
    for number, image in enumerate(data.photographs().values()):
        grey = image.double().mean(2).round().float()
        windows = grey[:, int(0.85 * grey.shape[1]) + 8:].unfold(0, 8, stride).unfold(1, 8, stride)
        rows, columns = (torch.arange(n) * stride for n in windows.shape[:2])
        tiles.append((1000 * number + 10 * (rows // 61)[:, None] + (columns // 44)[None]).flatten())
        levels.append(windows.reshape(-1, 64))
    return torch.cat(levels), torch.cat(tiles)


def estimated(task: tuple[str, int | None], options: argparse.Namespace) -> dict:
    """Held-out nats of each patch, and the mean on validation patches, of the flow or of one mixture."""
    name, components = task
    parts = data.patches(370_440, dequantise=False)
    train, validation = ((part.x * 255).round() for part in (parts.train, parts.validation))
    g = torch.Generator().manual_seed(0)
    chart = Chart(levelled(train, g))
    test, log_det = chart(levelled(held_out()[0], g))
    some, log_det_some = chart(levelled(validation[:4000], g))
    mixture = None
    if name == "flow":
        def loss(model: nn.Module, g: torch.Generator) -> dict[str, Tensor]:
            x1 = chart(levelled(train[torch.randint(len(train), (512,), generator=g)], g))[0]
            t = 1 - (1 - si.stratified(512, g)) ** 1.5
            return si.velocity_loss(model, ARC, torch.randn(x1.shape, generator=g), x1, t)

        net = nets.ResidualMLP(63, zero=True, generator=torch.Generator().manual_seed(0))
        model, _ = fit(net, loss, options.steps, generator=g, name="patches")

        def log_p(x: Tensor) -> Tensor:
            signs = solve.rademacher((2, *x.shape), torch.Generator().manual_seed(5))
            with torch.no_grad():
                return solve.log_likelihood(model, x, torch.tensor([1.0, 0.0]), common.standard_normal,
                                            solve.hutchinson_divergence(model, signs), "dopri5", atol=1e-5)
    elif components is None:
        log_p = common.standard_normal
    else:
        points = chart(levelled(train, g))[0].numpy()
        mixture = GaussianMixture(components, reg_covar=1e-4, max_iter=60, random_state=0).fit(points)
        log_p = lambda x: torch.from_numpy(mixture.score_samples(x.numpy()))
    return {"nats": -(log_p(test) + log_det).double(), "converged": mixture and mixture.converged_,
            "validation": round(-float((log_p(some) + log_det_some).mean()), 3)}


def patches(options: argparse.Namespace) -> dict:
    mixtures = {f"mixture of {k}": k for k in reversed(COMPONENTS)}
    tasks = [("flow", None), *mixtures.items(), ("Gaussian", None)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mixtures that stop at their limit: the result says which
        runs = {name: found for name, (found,) in common.side_by_side(estimated, tasks, options).items()}
    best = min(mixtures, key=lambda name: runs[name]["validation"])
    lead, (_, tile) = runs[best]["nats"] - runs["flow"]["nats"], held_out()
    blocks, g = [lead[tile == name] for name in tile.unique()], torch.Generator().manual_seed(3)
    again = [torch.cat([blocks[j] for j in torch.randint(len(blocks), (len(blocks),), generator=g)]).mean()
             for _ in range(2000)]
    return {"what": "patches of photographs: held-out nats of the flow and of mixtures in the same coordinates",
            "patches": len(tile), "tiles": len(blocks), "best mixture": best, "lead": round(float(lead.mean()), 4),
            "stderr": round(float(torch.stack(again).std()), 4),
            "nats": {name: run | {"nats": round(float(run["nats"].mean()), 3)} for name, run in runs.items()}}


PARTS = {"cost": cost, "diffusion": diffusion, "pixels": pixels, "bits": bits, "pairs": pairs, "shorter": shorter,
         "patches": patches}


def main() -> None:
    options = arguments()
    for part in options.parts:
        file = common.place(options, part)
        common.save(file, common.head(options, part) | PARTS[part](options))


if __name__ == "__main__":
    main()

"""Schrödinger bridges against what is known without them: exact recursions of Gaussians, Sinkhorn, quadrature.

The oracle `fitted` carries means and covariances through alternating reversals of a chain with perfect
regressions, so the library's loops, given affine regressions and many paths, must come out where it does.
"""
from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import ot
import pytest
import torch
from draws import rng
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from lib import bridge, fit
from lib.bridge import Bridge, Cache, least_squares, network, reversal_pairs, simulate, symmetric_times
from lib.nets import MLP
from lib.transport import (
    CloudBridge,
    MixtureBridge,
    cloud_bridge,
    conditional_uvp,
    gaussian_bridge,
    marginal_kl,
    sinkhorn,
)

pytestmark = pytest.mark.usefixtures("float64")
STANDARD_ERRORS = 4.5
GOLDEN = (math.sqrt(5) - 1) / 2  # the covariance of unit Gaussians at σ = 1


# --- the oracle: Gaussian chains and perfect regressions --------------------------------------------------


class Law(NamedTuple):
    """What one half of an iteration generates: moments of the far end, and Cov(X_0, X_1)."""

    mean: Tensor
    covariance: Tensor
    cross: Tensor


def reverse(m, S, chain, exact):
    """Transitions (A, c, Q) that read a chain backwards: with the true covariance, or by mean matching."""
    back = []
    for A, c, Q in chain:
        later, covariance = A @ m + c, A @ S @ A.T + Q
        gain = torch.linalg.solve(covariance, A @ S).T
        if exact:
            back.insert(0, (gain, m - gain @ later, S - gain @ covariance @ gain.T))
        else:  # regress X_later + F(X) − F(X_later) on X_later, F(x) = A x + c, and keep the variance
            gain = torch.eye(len(m)) + A @ gain - A
            back.insert(0, (gain, later + A @ (m - later) - gain @ later, Q))
        m, S = later, covariance
    return back


def carried(m, S, chain, forward):
    cross = S
    for A, c, Q in chain:
        m, S, cross = A @ m + c, A @ S @ A.T + Q, cross @ A.T
    return Law(m, S, cross if forward else cross.T)


def fitted(m0, S0, m1, S1, sigma, times, iterations, *, exact=False, alpha=0.0):
    """(forward law, backward law) after each iteration, from the reference dX = −αX dt + σ dW run back from p_1."""
    eye = torch.eye(len(m0))
    chain = [((1 - alpha * h) * eye, 0 * m0, sigma**2 * h * eye) for h in times.diff().flip(0)]
    laws = []
    for _ in range(iterations):
        up = reverse(m1, S1, chain, exact)
        chain = reverse(m0, S0, up, exact)
        laws.append((carried(m0, S0, up, True), carried(m1, S1, chain, False)))
    return laws


def scalars(*values):
    """m0, S0, m1, S1 in one dimension."""
    return tuple(torch.tensor([v] if i % 2 == 0 else [[v]], dtype=torch.float64) for i, v in enumerate(values))


UNIT = scalars(0.1, 1.0, -0.1, 1.0)


PLANE = tuple(torch.tensor(v, dtype=torch.float64) for v in (  # two Gaussians whose covariances do not commute
    [0.4, -0.2], [[1.0, 0.4], [0.4, 0.6]], [-0.3, 0.5], [[0.7, -0.3], [-0.3, 1.2]]))


@pytest.mark.parametrize("problem", [UNIT, PLANE])
def test_exact_reversals_settle_at_the_closed_form(problem):
    """`gaussian_bridge` against a chain of 3 steps, reversed by Bayes' rule over and over."""
    closed = gaussian_bridge(*problem, 0.9).cross_covariance
    for law in fitted(*problem, 0.9, symmetric_times(3), 100, exact=True)[-1]:
        assert torch.allclose(law.cross, closed, atol=1e-10)


def test_the_closed_form_of_unit_gaussians_and_of_covariances_that_do_not_commute():
    assert gaussian_bridge(*UNIT, 1.0).cross_covariance.item() == pytest.approx(GOLDEN, abs=1e-12)
    closed = gaussian_bridge(*PLANE, 0.9).cross_covariance
    assert (closed - closed.T).abs().max() > 0.01


def test_sinkhorn_iterates_are_exact_fitting_iterates():
    """On a grid of 701 points: mean, variance and covariance after each of the first iterations."""
    problem = scalars(0.5, 0.8, -1.0, 1.2)
    line = torch.linspace(-7, 7, 701)[:, None]
    log_a, log_b = (torch.log_softmax(-((line[:, 0] - m) ** 2) / (2 * S[0]), 0)
                    for m, S in (problem[:2], problem[2:]))
    laws = fitted(*problem, 0.9, symmetric_times(1), 4, exact=True)
    for n in (1, 2, 3):
        found = sinkhorn(line, line, 2 * 0.9**2, log_a=log_a, log_b=log_b, iterations=n, tolerance=1e-12,
                         g=torch.zeros(701))
        cost = (line - line.T) ** 2
        plan = (log_a[:, None] + log_b + (found.f[:, None] + found.g - cost) / (2 * 0.9**2)).exp()
        law = laws[n][0]
        mean = (plan.sum(0) @ line).item()
        assert not found.converged
        assert mean == pytest.approx(law.mean.item(), abs=1e-6)
        assert (plan.sum(0) @ (line - mean) ** 2).item() == pytest.approx(law.covariance.item(), abs=1e-5)
        assert ((line - 0.5) * plan * (line - mean).T).sum().item() == pytest.approx(law.cross.item(), abs=1e-5)


def test_increments_of_fitting_do_not_grow(generator):
    """Total variation and symmetric KL between successive plans of Sinkhorn; KL one way may grow (Proposition 4)."""
    x, y = torch.randn(2, 40, 2, generator=generator)
    cost, epsilon, log_n = torch.cdist(x, y).square(), 0.3, math.log(40)
    plans, f, g = [], torch.zeros(40), torch.zeros(40)
    for n in range(30):
        if n % 2:
            g = -epsilon * ((f[:, None] - cost) / epsilon - log_n).logsumexp(0)
        else:
            f = sinkhorn(x, y, epsilon, iterations=1, g=g, tolerance=1e9).f  # the f that belongs to g
        plans.append((f[:, None] + g - cost) / epsilon - 2 * log_n)
    both = torch.stack([((q.exp() - p.exp()) * (q - p)).sum() for p, q in itertools.pairwise(plans)])
    tv = torch.stack([(q.exp() - p.exp()).abs().sum() / 2 for p, q in itertools.pairwise(plans)])
    assert (both.diff() <= 1e-14).all() and (tv.diff() <= 1e-14).all() and both[-1] < 0.1 * both[0]


# --- regression pairs -------------------------------------------------------------------------------------

TIMES = torch.tensor([0.0, 0.1, 0.4, 1.0], dtype=torch.float64)
pull = lambda t, x: torch.sin(3 * x) - t * x


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_targets_are_the_noise_that_was_drawn(direction, generator):
    """Simulating from the same seed again gives the noise; times, steps and weights follow each state."""
    times = TIMES if direction == "forward" else TIMES.flip(0)
    x, seed = torch.randn(50, 3, generator=generator), generator.get_state()
    pairs = reversal_pairs(pull, 0.8, x, times, generator)
    generator.set_state(seed)
    assert not pairs.target.requires_grad
    for k, rows in enumerate(range(0, 150, 50)):
        now, h = times[k], (times[k + 1] - times[k]).abs()
        z = torch.randn(50, 3, generator=generator)
        x = x + h * pull(now, x) + 0.8 * h.sqrt() * z
        part = bridge.Pairs(*(v[rows:rows + 50] for v in pairs))
        assert torch.allclose(part.x, x, atol=1e-13) and (part.t == times[k + 1]).all()
        assert torch.allclose(part.target, -0.8 * z / h.sqrt() - pull(now, x), atol=1e-12)
        assert torch.allclose(part.weight, 3 * h)


def test_the_first_regression_is_denoising_score_matching(generator):
    """Each target is σ²∇log q(y | x) of the reference's transition, less the reference's drift."""
    decay = lambda t, x: -1.5 * x
    x = torch.randn(80, 2, generator=generator)
    pairs = reversal_pairs(decay, 1.2, x, TIMES.flip(0), generator)
    for k, h in enumerate(TIMES.flip(0).diff().abs()):
        y = pairs.x[80 * k:80 * (k + 1)].clone().requires_grad_()
        transition = Normal(x + h * decay(0, x), 1.2 * h.sqrt())
        score, = torch.autograd.grad(transition.log_prob(y).sum(), y)
        target = 1.2**2 * score - decay(0, y)
        assert torch.allclose(pairs.target[80 * k:80 * (k + 1)], target, atol=1e-12)
        x = y.detach()


@pytest.mark.parametrize(("direction", "times"), [("forward", TIMES[:-1]), ("backward", TIMES[1:])])
def test_batches_are_rows_of_the_cache(direction, times, generator):
    """All of them, at the times of the drift that is fitted, until `refresh` puts others in their place."""
    cache = Cache(direction, pull, torch.randn(5, 2, generator=generator), None, 0.8, TIMES, 5, False)
    everything = cache.refresh(generator).pairs(generator)
    some = cache.pairs(generator, 400)
    assert [len(v) for v in everything] == [15] * 4 and [len(v) for v in some] == [400] * 4
    assert torch.equal(everything.t.unique(), times)
    rows = (some.x[:, None] == everything.x).all(-1)
    assert (rows.sum(1) == 1).all() and len(rows.double().argmax(1).unique()) == 15
    for a, b in zip(some, everything, strict=True):
        assert torch.equal(a, b[rows.double().argmax(1)])
    others = cache.refresh(generator).pairs(generator)
    assert torch.equal(others.t, everything.t) and not (others.x[:, None] == everything.x).all(-1).any()


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_joined_ends_are_those_of_the_paths_or_of_chance(direction, generator):
    """A drift of 3 and hardly any noise part the ends by 3; without a drift, the goal's points come, each with any."""
    start, goal = torch.arange(4.0)[:, None], 10 + torch.arange(3.0)[:, None]
    cache = Cache(direction, lambda t, x: torch.full_like(x, 3.0), start, goal, 1e-9, TIMES, 50, True)
    x0, x1 = cache.refresh(generator).rows
    first, last = (x1, x0) if direction == "forward" else (x0, x1)
    assert torch.allclose(last, first + 3) and len(first.unique()) == 4
    cache = Cache(direction, None, start, goal, 1.0, TIMES, 600, True)
    x0, x1 = cache.refresh(generator).rows
    first, last = (x1, x0) if direction == "forward" else (x0, x1)
    shares = torch.stack([((first == a) & (last == b)).double().mean() for a in start for b in goal])
    assert torch.allclose(shares, torch.full((12,), 1 / 12), atol=STANDARD_ERRORS * math.sqrt(1 / 12 / 600))


@pytest.mark.parametrize("train", [bridge.train_dsb, bridge.train_dsbm])
def test_the_cache_is_simulated_anew_after_so_many_steps(train, generator, monkeypatch):
    """Ten steps, anew after four: three caches for each fit, of other paths; without, one."""
    made, refresh = [], Cache.refresh

    def counted(cache, generator):
        made.append(refresh(cache, generator).pairs(generator).x)
        return cache

    monkeypatch.setattr(Cache, "refresh", counted)
    x0, x1 = torch.randn(2, 40, 2, generator=generator)
    make = lambda dim, generator: MLP(dim, generator=generator, width=8, depth=1)
    for anew, caches in ((4, 3), (0, 1)):
        made.clear()
        found = train(x0, x1, 1.0, generator=generator, iterations=2, paths=20,
                      regress=network(make, steps=10, batch=8, refresh=anew))
        assert len(made) == 4 * caches
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(made, 2))
        assert not list(found.forward_drift.buffers(recurse=False))  # the count of steps is gone


def test_ends_may_be_drawn_by_functions(generator):
    """As many as are asked for, and with the points drawn from a table of them the same bits."""
    x0, x1 = torch.randn(2, 30, 2, generator=generator)
    drawn = lambda x: lambda n, generator: x[torch.randint(30, (n,), generator=generator)]
    runs = [bridge.train_dsb(*ends, 1.0, generator=rng(4), iterations=2, times=TIMES, paths=40,
                             regress=least_squares(affine(TIMES)))
            for ends in ((x0, x1), (lambda n, g: drawn(x0)(n, g) if n > 1 else x0, lambda n, g: drawn(x1)(n, g)
                                    if n > 1 else x1))]
    assert torch.equal(*(run.sample(x0, "forward", rng(5)) for run in runs))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_bridge_targets_average_to_the_drift_of_the_bridge(direction, generator):
    """On pairs of the Gaussian bridge, E[(target − drift) φ(t, x)] = 0 for φ among 1, x, t, t·x; 4.5 s.e."""
    exact = gaussian_bridge(*PLANE, 0.9)
    C, n = exact.cross_covariance, 100_000
    joint = torch.cat([torch.cat([exact.S0, C], 1), torch.cat([C.T, exact.S1], 1)])
    both = torch.randn(n, 4, generator=generator) @ torch.linalg.cholesky(joint).T
    x0, x1 = both[:, :2] + exact.m0, both[:, 2:] + exact.m1
    cache = Cache(direction, None, x0, x1, 0.9, TIMES, n, joined=True, rows=(x0, x1))
    t, x, target, weight = cache.pairs(generator)
    drift = exact.forward_drift if direction == "forward" else exact.backward_drift
    low, high = (0.0, 0.4) if direction == "forward" else (0.1, 1.0)
    assert low <= t.min() < low + 1e-3 and high - 1e-3 < t.max() <= high and (weight == 1).all()
    features = torch.stack([torch.ones(n), x[:, 0], x[:, 1], t, t * x[:, 0], t * x[:, 1]], 1)
    residual = (target - drift(t, x))[:, None] * features[:, :, None]
    assert (residual.mean(0).abs() < STANDARD_ERRORS * residual.std(0) / math.sqrt(n)).all()
    assert residual.std(0).min() / math.sqrt(n) < 0.01  # the test can see an error of a few per cent


# --- the loops --------------------------------------------------------------------------------------------


def affine(times):
    """Features of a drift that is affine in x, freely at every knot."""
    def features(t, x):
        knot = torch.nn.functional.one_hot((t[:, None] - times).abs().argmin(1), len(times)).to(x)
        return (knot[:, :, None] * torch.cat([torch.ones_like(x[:, :1]), x], 1)[:, None]).flatten(1)

    return features


def normal(m, S, n, generator):
    """n points whose sample mean and covariance are exactly m and S."""
    z = torch.randn(n, len(m), generator=generator)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / n)).T
    return m + z @ torch.linalg.cholesky(S).T


def moments(x, y):
    a, b = x - x.mean(0), y - y.mean(0)
    return y.mean(0), b.T @ b / len(y), a.T @ b / len(y)


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_affine_regressions_follow_the_exact_recursion(alpha, generator):
    """Ends, spreads and cross-covariances of both halves of three iterations, uneven steps; 40,000 paths.

    Variances are below 2, so a moment's standard error is below 2·√(2/40,000) = 0.015 for each of the few
    noisy stages behind it.
    """
    times, n = symmetric_times(5, 3.0), 40_000
    laws = fitted(*PLANE, 0.9, times, 3, alpha=alpha)
    x0, x1 = normal(*PLANE[:2], n, generator), normal(*PLANE[2:], n, generator)
    found = bridge.train_dsb(x0, x1, 0.9, generator=generator, iterations=3, times=times, paths=n,
                             reference=None if alpha == 0 else lambda t, x: -alpha * x,
                             regress=least_squares(affine(times)))
    for k, (forward, backward) in enumerate(laws, 1):
        up = moments(x0, found.after(k).sample(x0, "forward", generator))
        down = moments(x1, found.after(k).sample(x1, "backward", generator))
        for measured, expected in ((up, forward), (down, backward._replace(cross=backward.cross.T))):
            for a, b in zip(measured, expected, strict=True):
                assert torch.allclose(a, b, atol=0.05), (k, a, b)
    apart = (laws[0][0].cross - laws[-1][0].cross).abs().max() + (laws[0][0].mean - laws[-1][0].mean).abs().max()
    assert apart > 0.15  # so that iterations cannot be confused


@pytest.mark.parametrize("steps", [2, 5])
def test_mean_matching_settles_beside_the_bridge_where_the_exact_recursion_does(steps, generator):
    """Unit Gaussians, σ = 1: either end's variance is too large by an error that falls with the steps; s.e. .005."""
    times, n = symmetric_times(steps), 100_000
    x0, x1 = normal(*UNIT[:2], n, generator), normal(*UNIT[2:], n, generator)
    found = bridge.train_dsb(x0, x1, 1.0, generator=generator, iterations=6, times=times, paths=n,
                             regress=least_squares(affine(times)))
    for x, direction, law in zip((x0, x1), ("forward", "backward"), fitted(*UNIT, 1.0, times, 100)[-1], strict=True):
        excess = found.sample(x, direction, generator).var().item() - 1
        assert excess == pytest.approx(law.covariance.item() - 1, abs=0.015)
        assert 0.15 < steps * excess < 0.4


def polynomial(t, x):
    powers = torch.stack([t**k for k in range(5)], 1)
    return (powers[:, :, None] * torch.cat([torch.ones_like(x[:, :1]), x], 1)[:, None]).flatten(1)


def test_markovian_fitting_converges_at_its_known_rate(generator):
    """Unit Gaussians, σ = 1: covariance −.618, −.0717, −.0069 short of the golden ratio; s.e. .005, Euler bias .01."""
    n = 40_000
    x0, x1 = normal(*UNIT[:2], n, generator), normal(*UNIT[2:], n, generator)
    found = bridge.train_dsbm(x0, x1, 1.0, generator=generator, iterations=3, times=symmetric_times(60), paths=n,
                              regress=least_squares(polynomial))
    first = moments(x0, found.after(1).sample(x0, "forward", generator))[2]
    second = moments(x1, found.after(1).sample(x1, "backward", generator))[2]
    assert first.item() - GOLDEN == pytest.approx(-0.0717, abs=0.03)
    assert second.item() - GOLDEN == pytest.approx(-0.0069, abs=0.03)
    mean, variance, cross = moments(x0, found.sample(x0, "forward", generator))
    assert (mean.item(), variance.item(), cross.item()) == pytest.approx((-0.1, 1.0, GOLDEN), abs=0.03)


def test_matching_started_at_the_reference_is_proportional_fitting(generator):
    """The first two iterations from pairs (x_1 + σξ, x_1), far from converged, against exact fitting; s.e. .01."""
    problem, n = scalars(0.5, 0.8, -1.0, 1.2), 40_000
    x0, x1 = normal(*problem[:2], n, generator), normal(*problem[2:], n, generator)
    found = bridge.train_dsbm(x0, x1, 0.9, generator=generator, iterations=2, times=symmetric_times(60), paths=n,
                              start="reference", regress=least_squares(polynomial))
    laws = fitted(*problem, 0.9, symmetric_times(1), 2, exact=True)
    for k, (forward, backward) in enumerate(laws, 1):
        up = moments(x0, found.after(k).sample(x0, "forward", generator))
        down = moments(x1, found.after(k).sample(x1, "backward", generator))
        assert [v.item() for v in up] == pytest.approx([v.item() for v in forward], abs=0.045)
        assert [v.item() for v in down] == pytest.approx([v.item() for v in backward], abs=0.045)
    assert abs(laws[0][0].mean.item() + 1) > 0.2  # the first iterate is far from p_1


def test_every_drift_sees_the_time_of_its_state(generator):
    """Constant drifts and hardly any noise: the state at t is known, in regression and in simulation alike."""
    seen, asked = [], []

    def regress(cache, previous, generator, name):
        seen.append((cache.direction, cache.pairs(generator)))
        slope = 5.0 if cache.direction == "forward" else -2.0

        def drift(t, x):
            asked.append((slope, float(t), x.mean().item()))
            return torch.full_like(x, slope)

        return drift, torch.zeros(1)

    zero = torch.zeros(4, 1)
    found = bridge.train_dsb(zero, zero, 1e-6, generator=generator, iterations=2, times=TIMES, paths=4,
                             reference=lambda t, x: torch.full_like(x, 3.0), regress=regress)
    directions = [direction for direction, _ in seen]
    assert directions == ["forward", "backward"] * 2
    for (_, pairs), slope, direction in zip(seen, (3.0, 5.0, -2.0, 5.0), directions, strict=True):
        elapsed = 1 - pairs.t if direction == "forward" else pairs.t  # paths start at the other end
        assert torch.allclose(pairs.x[:, 0], slope * elapsed, atol=1e-4)
        knots = TIMES[:-1] if direction == "forward" else TIMES[1:]
        assert torch.equal(pairs.t.unique(), knots)
    asked.clear()
    found.sample(zero, "forward", generator)
    found.sample(zero, "backward", generator)
    assert [t for _, t, _ in asked] == [*TIMES[:-1].tolist(), *TIMES[1:].flip(0).tolist()]
    for slope, t, x in asked:
        assert x == pytest.approx(5 * t if slope == 5 else -2 * (1 - t), abs=1e-4)


def test_a_network_learns_the_bridge(generator):
    """Two iterations in the plane end where perfect regressions would; the seeds' spread is below 0.05."""
    x0, x1 = (normal(m, S, 10_000, generator).float() for m, S in (PLANE[:2], PLANE[2:]))
    regress = network(lambda dim, generator: MLP(dim, generator=generator, width=32, depth=2), steps=400, lr=5e-3)
    found = bridge.train_dsb(x0, x1, 0.9, generator=generator, iterations=2, times=symmetric_times(6), paths=4000,
                             regress=regress)
    assert found.history[0].forward_loss.shape == (400,) and len(found.history) == 2
    assert not any(p.requires_grad for p in found.forward_drift.parameters())
    assert found.after(1).forward_drift is not found.forward_drift
    law = fitted(*PLANE, 0.9, symmetric_times(6), 2)[-1][0]
    for a, b in zip(moments(x0, found.sample(x0, "forward", generator)), law, strict=True):
        assert torch.allclose(a.double(), b, atol=0.15), (a, b)


def test_warm_and_cold_starts(generator):
    made, steps = [], []

    def make(dim, generator):
        made.append(MLP(dim, generator=generator, width=8, depth=1))
        return made[-1]

    x = torch.randn(50, 2, generator=generator)
    for warm, networks in ((True, 2), (False, 6)):
        made.clear()
        found = bridge.train_dsb(x, x + 1, 1.0, generator=generator, iterations=3, paths=20,
                                 regress=network(make, steps=2, batch=8, lr=1e-9, warm=warm))
        assert len(made) == networks
        first, last = (found.after(k).forward_drift(0.5, x) for k in (1, 3))
        steps.append((first - last).abs().max().item())
        assert first.dtype == torch.float64
    assert steps[0] < 1e-6 < steps[1]  # at a vanishing learning rate a warm start stays where it was


def test_a_killed_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
    """Cut off inside the third of four fits; the caches are drawn again, finished fits are read, not repeated."""
    monkeypatch.setenv(fit.CHECKPOINTS, str(tmp_path))
    monkeypatch.setattr(fit, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    clock = {"left": None, "steps": 0}

    class Interrupted(MLP):
        def forward(self, t, x):
            if self.training:
                clock["steps"] += 1
                if clock["left"] is not None and clock["steps"] > clock["left"]:
                    raise KeyboardInterrupt
            return super().forward(t, x)

    def run(folder, left=None, train=bridge.train_dsb, refresh=0):
        monkeypatch.setenv(fit.CHECKPOINTS, str(tmp_path / folder))
        clock.update(left=left, steps=0)
        generator = rng(3)
        x0, x1 = torch.randn(2, 40, 2, generator=generator)
        make = lambda dim, generator: Interrupted(dim, generator=generator, width=8, depth=1)
        found = train(x0, x1, 1.0, generator=generator, iterations=2, paths=20,
                      regress=network(make, steps=10, batch=8, refresh=refresh))
        return found, found.sample(x0, "forward", generator), clock["steps"]

    for train, refresh in itertools.product((bridge.train_dsb, bridge.train_dsbm), (0, 3)):
        name = f"{train.__name__} {refresh}"
        whole, ends, steps = run(f"whole {name}", None, train, refresh)
        with pytest.raises(KeyboardInterrupt):
            run(name, 25, train, refresh)
        resumed, again, repeated = run(name, None, train, refresh)
        assert torch.equal(ends, again) and repeated < steps / 2
        for a, b in zip(whole.history, resumed.history, strict=True):
            assert torch.equal(a.forward_loss, b.forward_loss) and torch.equal(a.backward_loss, b.backward_loss)


# --- the object -------------------------------------------------------------------------------------------


def growing(s=0.7, sigma=1.3):
    """Brownian motion from N(0, s²I) as a bridge with known drifts; p_1 = N(0, (s² + σ²)I)."""
    return Bridge(lambda t, x: torch.zeros_like(x), lambda t, x: -sigma**2 * x / (s**2 + sigma**2 * t), sigma,
                  symmetric_times(40))


def test_likelihood_by_the_probability_flow(generator):
    base = MultivariateNormal(torch.zeros(3), 0.7**2 * torch.eye(3))
    end = MultivariateNormal(torch.zeros(3), (0.7**2 + 1.3**2) * torch.eye(3))
    x = 1.5 * torch.randn(20, 3, generator=generator)
    found = growing().log_likelihood(x, base.log_prob)
    assert torch.allclose(found, end.log_prob(x), atol=1e-6)
    with pytest.raises(ValueError, match=r"^t: got a grid that rises; need one that falls"):
        growing().log_likelihood(x, base.log_prob, torch.linspace(0, 1, 5))
    coarse = growing().log_likelihood(x, base.log_prob, torch.linspace(1, 0, 5))
    assert torch.allclose(coarse, found, atol=1e-2) and not torch.allclose(coarse, found, atol=1e-6)


def test_simulation_runs_from_either_end(generator):
    """Variances after Brownian growth and its reversal; relative s.e. √(2/60,000) = .006, Euler bias below .02."""
    x0 = 0.7 * torch.randn(20_000, 3, generator=generator)
    walk = growing().trajectory(x0, "forward", generator)
    assert walk.shape == (41, 20_000, 3) and torch.equal(walk[0], x0)
    assert walk[20].var().item() == pytest.approx(0.7**2 + 1.3**2 / 2, rel=0.03)
    assert growing().sample(walk[-1], "backward", generator).var().item() == pytest.approx(0.49, rel=0.05)
    times = torch.tensor([0.0, 0.3, 1.0])
    for clock, first in ((times, 0.3), (times.flip(0), 0.7)):
        walk = simulate(lambda t, x: torch.zeros_like(x), 1.3, 0 * x0, clock, generator)
        assert walk[1].var().item() == pytest.approx(1.3**2 * first, rel=0.03)


def test_symmetric_times():
    even, uneven = symmetric_times(8), symmetric_times(8, 5.0)
    assert torch.allclose(even, torch.linspace(0, 1, 9))
    h = uneven.diff()
    assert torch.allclose(h, h.flip(0)) and uneven[-1].item() == pytest.approx(1)
    assert (h[3] / h[0]).item() == pytest.approx(5) and torch.allclose(h[:4].diff(), h[1] - h[0])
    odd = symmetric_times(7, 0.5).diff()
    assert (odd[3] / odd[0]).item() == pytest.approx(0.5) and torch.allclose(odd, odd.flip(0))
    assert symmetric_times(1, 9.0).tolist() == [0, 1] and symmetric_times(2, 9.0).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("train", [bridge.train_dsb, bridge.train_dsbm])
def test_training_refuses_times_that_do_not_go_from_0_to_1(train, generator):
    x = torch.randn(6, 2, generator=generator)
    for bad in (TIMES / 2, TIMES.flip(0), TIMES + 0.1):
        with pytest.raises(ValueError, match=r"^t(imes)?: got .+; need"):
            train(x, x, 1.0, generator=generator, iterations=1, times=bad, paths=5)


def test_a_bridge_refuses_bad_directions_and_iterations(generator):
    x = torch.zeros(2, 3)
    for call, name in ((lambda: growing().sample(x, "sideways", generator), "direction"),
                       (lambda: growing().sample(x[0], "forward", generator), "x"),
                       (lambda: growing().after(1), "iteration")):
        with pytest.raises(ValueError, match=rf"^{name}: got .+; need"):
            call()


def test_marginal_kl_is_zero_for_the_bridge_and_counts_a_shift(generator):
    """Exact marginals in float64, 20,000 points: s.e. about √(5/2)/20,000 = 8e-5; then means moved by 0.1."""
    exact, times = gaussian_bridge(*PLANE, 0.9), torch.tensor([0.0, 0.3, 1.0])
    walk = torch.stack([exact.mean(t) + torch.randn(20_000, 2, generator=generator)
                        @ torch.linalg.cholesky(exact.covariance(t)).T for t in times])
    assert abs(marginal_kl(exact, times, walk)) < STANDARD_ERRORS * 8e-5
    away = torch.tensor([0.1, 0.0])
    expected = sum((away @ torch.linalg.solve(exact.covariance(t), away) / 2).item() for t in times) / 3
    assert marginal_kl(exact, times, walk + away) == pytest.approx(expected, rel=0.1)
    assert marginal_kl(exact, times, walk.flip(0)) > 0.05


# --- bridges known without training -----------------------------------------------------------------------


@pytest.fixture
def clouds(generator):
    return torch.randn(30, 2, generator=generator), 1 + torch.randn(40, 2, generator=generator)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_bridge_of_clouds_is_the_plan_joined_by_brownian_bridges(clouds, weighted, generator):
    """Density, and drifts at both ends, from POT's plan."""
    (x0, x1), sigma = clouds, 0.8
    a, b = (torch.rand(n, generator=generator) + 0.1 if weighted else torch.ones(n) for n in (30, 40))
    a, b = a / a.sum(), b / b.sum()
    logs = {"log_a": a.log() + 1, "log_b": b.log() - 2} if weighted else {}
    found = cloud_bridge(x0, x1, sigma, tolerance=1e-11, **logs)
    cost = torch.cdist(x0, x1).square()
    plan = torch.from_numpy(ot.sinkhorn(a.numpy(), b.numpy(), cost.numpy(), 2 * sigma**2, method="sinkhorn_log",
                                        stopThr=1e-12, numItermax=50_000))
    assert torch.allclose(x0 + found.forward_drift(0.0, x0), plan @ x1 / a[:, None], atol=1e-7)
    assert torch.allclose(x1 + found.backward_drift(1.0, x1), plan.T @ x0 / b[:, None], atol=1e-7)
    x, t = torch.randn(6, 2, generator=generator), torch.tensor([0.1, 0.3, 0.5, 0.6, 0.8, 0.9])
    centres = (1 - t)[:, None, None, None] * x0[:, None] + t[:, None, None, None] * x1
    spread = (sigma * (t * (1 - t)).sqrt())[:, None, None, None]
    density = (plan * Normal(centres, spread).log_prob(x[:, None, None]).sum(-1).exp()).sum((1, 2))
    assert torch.allclose(found.log_p(t, x), density.log(), atol=1e-7)


def test_the_bridge_of_clouds_draws_its_other_end_from_the_plan(clouds, generator):
    """Shares of each point among 20,000 draws, in both directions, of a point and of a place between; 4.5 s.e."""
    found, n = cloud_bridge(*clouds, 0.8), 20_000
    for direction, points, log_w in (("forward", found.x1, found.log_w1), ("backward", found.x0, found.log_w0)):
        for x in (clouds[direction == "backward"][:1], torch.tensor([[0.3, -0.2]])):
            p = (log_w - (x - points).square().sum(1) / (2 * 0.8**2)).softmax(0)
            ends = found.sample(x.expand(n, 2), direction, generator)
            share = (ends[:, None] == points).all(2).double().mean(0)
            assert ((share - p).abs() <= STANDARD_ERRORS * (p * (1 - p) / n).sqrt() + 1 / n).all()


@pytest.mark.parametrize("t", [0.1, 0.7])
def test_nelson_for_clouds(clouds, t, generator):
    found = cloud_bridge(*clouds, 0.8)
    x = torch.randn(6, 2, generator=generator).requires_grad_()
    score, = torch.autograd.grad(found.log_p(t, x).sum(), x)
    assert torch.allclose(found.forward_drift(t, x) + found.backward_drift(t, x), 0.8**2 * score, atol=1e-10)


def test_clouds_far_apart_for_their_noise_are_refused():
    far = torch.linspace(0, 100, 30)[:, None]
    with pytest.raises(ValueError, match=r"^sigma: got 0.001, marginal error .+; need a larger"):
        cloud_bridge(far, far.square() / 100, 1e-3, iterations=20)
    assert isinstance(cloud_bridge(far, far, 50.0), CloudBridge)


@pytest.fixture(params=[False, True], ids=["equal", "weighted"])
def mixture(request, generator):
    log_w = torch.tensor([0.0, 1.0, -2.0, 2.0]) if request.param else None
    return MixtureBridge(2 * torch.randn(4, 1, generator=generator), 0.4, 0.9, log_w)


def test_the_known_plan_by_quadrature(mixture, generator):
    """Conditional moments, drift and samples of π(y | x) ∝ N(y; x, σ²) φ(y) in one dimension."""
    y = torch.linspace(-12, 12, 6001)
    weights = torch.zeros(4) if mixture.log_w is None else mixture.log_w
    potential = (Normal(mixture.centres, 0.4).log_prob(y) + weights[:, None]).logsumexp(0)
    x = torch.tensor([[-1.5], [0.0], [0.3], [2.0]])
    p = (Normal(x, 0.9).log_prob(y) + potential).softmax(1)
    mean = p @ y
    variance = (p * (y - mean[:, None]) ** 2).sum(1)
    found = mixture.conditional(x)
    assert torch.allclose(found[0][:, 0], mean, atol=1e-8) and torch.allclose(found[1][:, 0, 0], variance, atol=1e-8)
    for t in (0.0, 0.6):
        at = x.clone().requires_grad_()
        ahead = (Normal(at, 0.9 * math.sqrt(1 - t)).log_prob(y) + potential).logsumexp(1)
        gradient, = torch.autograd.grad(ahead.sum(), at)
        assert torch.allclose(mixture.forward_drift(t, x), 0.9**2 * gradient, atol=1e-7)
    draws = mixture.sample(x.repeat_interleave(20_000, 0), generator).reshape(4, 20_000)
    error = (variance / 20_000).sqrt()
    assert ((draws.mean(1) - mean).abs() < STANDARD_ERRORS * error).all()
    fourth = (p * (y - mean[:, None]) ** 4).sum(1)
    assert ((draws.var(1) - variance).abs() < STANDARD_ERRORS * ((fourth - variance**2) / 20_000).sqrt()).all()


def test_covariances_of_the_known_plan_in_the_plane(generator):
    """Against the moments of many samples: means and covariances, entry by entry; 4.5 s.e."""
    plan = MixtureBridge(2 * torch.randn(5, 2, generator=generator), 0.3, 1.1)
    x, n = torch.randn(3, 2, generator=generator), 40_000
    y = plan.sample(x.repeat_interleave(n, 0), generator).reshape(3, n, 2)
    mean, cov = plan.conditional(x)
    products = (y - mean[:, None])[..., :, None] * (y - mean[:, None])[..., None, :]
    assert ((products.mean(1) - cov).abs() < STANDARD_ERRORS * products.std(1) / math.sqrt(n)).all()
    assert (cov[:, 0, 1].abs() > 0.05).any()


def test_one_component_is_the_gaussian_bridge(generator):
    """From N(m, v) the plan of a single component is Gaussian: its drift is the closed form's."""
    plan = MixtureBridge(torch.tensor([[0.7, -0.4]]), 0.6, 0.8)
    m0, v = torch.tensor([-0.5, 0.3]), 0.9
    mean, cov = plan.conditional(m0[None])
    gain = (plan.conditional(m0[None] + torch.eye(2))[0] - mean).T  # dE[y|x]/dx
    exact = gaussian_bridge(m0, v * torch.eye(2), mean[0], cov[0] + v * gain @ gain.T, 0.8)
    assert torch.allclose(exact.cross_covariance, v * gain.T, atol=1e-10)
    x = torch.randn(5, 2, generator=generator)
    for t in (0.0, 0.4, 0.9):
        assert torch.allclose(exact.forward_drift(t, x), plan.forward_drift(t, x), atol=1e-10)


def test_a_gaussian_potential_gives_the_gaussian_bridge_in_general(generator):
    """LightSB with one component: S = S0⁻¹C, r = m1 − S m0 reproduce the conditional law and the drift."""
    m0, S0, m1, S1 = PLANE
    exact = gaussian_bridge(*PLANE, 0.9)
    S = torch.linalg.solve(S0, exact.cross_covariance)
    r, epsilon = m1 - S @ m0, 0.9**2
    assert torch.allclose(S1 - exact.cross_covariance.T @ S, epsilon * S, atol=1e-10)
    x, t = torch.randn(5, 2, generator=generator), 0.35
    precision = (torch.linalg.inv(S) - torch.eye(2)) / epsilon + torch.eye(2) / (epsilon * (1 - t))
    end = torch.linalg.solve(precision, (torch.linalg.solve(S, r) / epsilon + x / (epsilon * (1 - t))).T).T
    assert torch.allclose(exact.forward_drift(t, x), (end - x) / (1 - t), atol=1e-10)


def test_uvp_is_zero_for_the_plan_and_counts_shifts_and_scales(generator):
    plan = MixtureBridge(2 * torch.randn(5, 2, generator=generator), 0.3, 1.0)
    x = torch.randn(300, 2, generator=generator)
    y = plan.sample(x.repeat_interleave(1000, 0), generator).reshape(300, 1000, 2)
    total = y.flatten(0, 1).var(0).sum()
    assert 0 < conditional_uvp(plan, x, y) < 0.15
    shifted = conditional_uvp(plan, x, y + torch.tensor([0.3, 0.4]))
    assert shifted == pytest.approx(100 * 0.25 / total.item(), rel=0.05, abs=0.15)
    mean, cov = plan.conditional(x)
    wide = conditional_uvp(plan, x, mean[:, None] + 2 * (y - mean[:, None]))
    trace = cov.diagonal(dim1=1, dim2=2).sum(1).mean()
    assert wide == pytest.approx((100 * trace / total).item(), rel=0.05)


def test_ten_thousand_points_need_no_matrix():
    """One pair of Sinkhorn's updates between two clouds of 10,000: a 10⁸ matrix of doubles would take 800 MB."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process by itself is Linux's to tell; that of resource counts its parent's")
    code = ("import re, torch; from lib.transport import sinkhorn; g = torch.Generator().manual_seed(0); "
            "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); "
            "x = torch.randn(10_000, 2, generator=g); sinkhorn(x[:10], x[:10], 1.0, iterations=1); before = peak(); "
            "p = sinkhorn(x, x + 1, 1.0, iterations=1); assert p.f.isfinite().all(); print(peak() - before, before)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) * 1024 < 150e6 and sum(map(int, out)) * 1024 < 1e9

"""Solvers against exact solutions: order, direction, noise, and likelihoods of fields that are not divergence-free."""
from __future__ import annotations

import itertools
import math

import pytest
import torch
from draws import rng
from torch.distributions import MultivariateNormal

from lib import path, posterior, solve, transport
from lib.markov import house_path
from lib.nets import MLP

pytestmark = pytest.mark.usefixtures("float64")
A = torch.tensor([[0.6, -1.1], [0.4, 0.3]], dtype=torch.float64)  # trace 0.9, not normal
START = torch.tensor([[0.5, 1.0], [2.0, 0.3]], dtype=torch.float64)
STANDARD_ERRORS = 4.5


def riccati(t, x):
    """x′ = −2t x², solved by 1/(1/x₀ + t² − t₀²)."""
    return -2 * t * x**2


def solution(x0, t0, t1):
    return 1 / (1 / x0 + t1**2 - t0**2)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
@pytest.mark.parametrize("ends", [(0.2, 1.4), (1.4, 0.2)], ids=["forwards", "backwards"])
def test_order_of_convergence(method, order, ends):
    x0 = solution(START, 0.2, ends[0])
    errors = [(solve.ode(riccati, x0, torch.linspace(*ends, n + 1), method)[-1]
               - solution(x0, *ends)).abs().max().item() for n in (64, 128)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("method", "degree"), [("euler", 0), ("heun", 1), ("rk4", 3)])
def test_one_step_is_an_exact_quadrature(method, degree):
    """Where the stages sit in time: a step integrates tᵏ exactly up to the degree of its rule, and no further."""
    for k in range(degree + 2):
        step = solve.ode(lambda t, x: t**k * torch.ones_like(x), torch.zeros(1), torch.tensor([1.0, 1.5]), method)[-1]  # noqa: B023
        exact = (1.5 ** (k + 1) - 1) / (k + 1)
        assert (step.item() == pytest.approx(exact, rel=1e-12)) == (k <= degree)


def test_dopri5_meets_its_tolerance_at_every_knot():
    t = torch.tensor([0.2, 0.5, 1.4])
    for grid in (t, t.flip(0)):
        exact = torch.stack([solution(START, 0.2, s) for s in grid])
        found = [solve.ode(riccati, exact[0], grid, "dopri5", rtol=r, atol=r) for r in (1e-4, 1e-9)]
        errors = [(walk - exact).abs().max() for walk in found]
        assert errors[1] < 1e-7 < errors[0] < 3e-3


def watched(f):
    """f, and the times at which it is evaluated."""
    times = []
    return lambda t, x: (times.append(float(t)), f(t, x))[1], times


KNOTS = torch.linspace(0, 1, 9, dtype=torch.float64)
PATHS = [path.cond_ot(), path.trigonometric(), path.variance_preserving(), house_path(),
         path.from_table(KNOTS, KNOTS**2, 1 - KNOTS)]


@pytest.mark.parametrize("ends", [(0.9, 0.0), (0.0, 0.9)])
@pytest.mark.parametrize("p", PATHS, ids=lambda p: p.name)
def test_dopri5_stays_inside_its_interval_on_the_exact_field(p, ends, generator):
    dtype = torch.float32 if p is PATHS[0] else torch.float64
    data, t = torch.randn(20, 2, generator=generator, dtype=dtype), torch.tensor(ends, dtype=dtype)
    x = 0.5 * torch.randn(8, 2, generator=generator, dtype=dtype)
    f, times = watched(lambda s, y: posterior.velocity(p, s, y, data))
    found = solve.ode(f, x, t, "dopri5", rtol=1e-5, atol=1e-5)[-1]
    assert min(t) <= min(times) and max(times) <= max(t)
    fine = solve.ode(lambda s, y: posterior.velocity(p, s, y, data.double()), x.double(),
                     torch.linspace(*ends, 101, dtype=torch.float64))[-1]
    assert torch.allclose(found.double(), fine, atol=2e-3)
    log_p = solve.log_likelihood(f, x, t, lambda y: posterior.posterior(p, ends[1], y, data).log_p,
                                 lambda s, y: posterior.divergence(p, s, y, data), "dopri5")
    assert torch.allclose(log_p, posterior.posterior(p, ends[0], x, data).log_p, atol=2e-2)
    assert min(t) <= min(times) and max(times) <= max(t)


@pytest.mark.parametrize("ends", [(0.01, 0.99), (0.99, 0.01)])
@pytest.mark.parametrize("drift", ["forward_drift", "backward_drift"])
def test_dopri5_stays_inside_its_interval_on_a_bridge(drift, ends):
    exact = transport.gaussian_bridge(START[0], torch.eye(2), START[1], A @ A.T, 0.7)
    f, times = watched(getattr(exact, drift))
    found = solve.ode(f, START, torch.tensor(ends), "dopri5", rtol=1e-7, atol=1e-7)[-1]
    assert min(times) >= 0.01 and max(times) <= 0.99
    assert torch.allclose(found, solve.ode(getattr(exact, drift), START, torch.linspace(*ends, 301))[-1], rtol=2e-3)


def test_dopri5_stays_inside_where_the_field_is_nearly_still():
    f, times = watched(lambda t, x: 1e-4 * x)  # its guess of a first step is then far too long
    solve.ode(f, START, torch.tensor([0.3, 0.2]), "dopri5")
    assert min(times) >= 0.2 and max(times) <= 0.3


@pytest.mark.parametrize("method", solve.METHODS)
def test_trajectories_start_at_x_and_follow_uneven_knots(method):
    t = torch.tensor([0.0, 0.1, 0.15, 0.5])
    walk = solve.ode(lambda t, x: torch.ones_like(x), START, t, method)
    assert walk.shape == (4, 2, 2) and torch.equal(walk[0], START)
    assert torch.allclose(walk - START, t[:, None, None].expand(4, 2, 2))


def test_there_and_back_again():
    t = torch.linspace(0, 1, 101)
    there = solve.ode(riccati, START, t)[-1]
    assert (there - START).abs().max() > 0.1
    assert torch.allclose(solve.ode(riccati, there, t.flip(0))[-1], START, atol=1e-8)


@pytest.mark.parametrize("t", [[0.0, 1.0], torch.tensor([0.5]), torch.zeros(2, 2), torch.tensor([0.0, 1.0, 0.5]),
                               torch.tensor([0.0, 0.0]), torch.tensor([0.0, math.nan]),
                               torch.tensor([1.0, 1 + 1e-9], dtype=torch.float64)])
def test_bad_grids_are_refused(t, generator):
    x = START.float()  # two float64 knots can be one in float32
    for call in (lambda: solve.ode(riccati, x, t), lambda: solve.sde(riccati, 1.0, x, t, generator),
                 lambda: solve.log_likelihood(riccati, x, t, lambda y: y[:, 0])):
        with pytest.raises(ValueError, match=r"^t: got .+; need"):
            call()


def within(sample, mean, variance):
    """Mean and variance of n normal samples per column, within stated standard errors."""
    n = len(sample)
    assert ((sample.mean(0) - mean).abs() < STANDARD_ERRORS * math.sqrt(variance / n)).all()
    assert ((sample.var(0) - variance).abs() < STANDARD_ERRORS * variance * math.sqrt(2 / n)).all()


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)], ids=["forwards", "backwards"])
def test_ornstein_uhlenbeck_moments(ends, generator):
    """Exact moments of the Euler–Maruyama chain, and within its O(h) bias those of the process."""
    rate, g, n = 1.5, 0.8, 50
    x = torch.full((20_000, 2), 2.0)
    sign = math.copysign(1, ends[1] - ends[0])
    end = solve.sde(lambda t, y: -sign * rate * y, g, x, torch.linspace(*ends, n + 1), generator)[-1]
    shrink = 1 - rate / n
    mean, variance = 2 * shrink**n, g**2 / n * sum(shrink ** (2 * k) for k in range(n))
    within(end, mean, variance)
    assert mean == pytest.approx(2 * math.exp(-rate), rel=0.05)
    assert variance == pytest.approx(g**2 / (2 * rate) * (1 - math.exp(-2 * rate)), rel=0.05)
    assert abs(torch.corrcoef(end.T)[0, 1]) < STANDARD_ERRORS / math.sqrt(20_000)


def test_noise_is_scaled_by_the_root_of_each_step_and_read_at_its_start(generator):
    for t in (torch.tensor([0.1, 0.2, 0.6, 1.0]), torch.tensor([1.0, 0.6, 0.2, 0.1])):
        walk = solve.sde(lambda t, x: torch.zeros_like(x), lambda t: 1 + t, torch.zeros(20_000, 1), t, generator)
        for k, step in enumerate(walk.diff(dim=0)):
            within(step, 0.0, float((1 + t[k]) ** 2 * (t[k + 1] - t[k]).abs()))
        steps = walk.diff(dim=0)[:, :, 0]
        assert (torch.corrcoef(steps) - torch.eye(3)).abs().max() < STANDARD_ERRORS / math.sqrt(20_000)


def test_without_noise_it_is_eulers_method_and_a_seed_fixes_the_path(generator):
    t = torch.linspace(1.4, 0.2, 20)
    assert torch.equal(solve.sde(riccati, 0.0, START, t, generator), solve.ode(riccati, START, t, "euler"))
    one, same, other = (solve.sde(riccati, 1.0, START, t, rng(s)) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("ends", [(0.0, 1.3), (1.3, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("divergence", ["given", "exact", "hutchinson"])
def test_likelihood_of_a_linear_flow(ends, divergence, generator):
    """x′ = Ax carries N(0, e^{−AT}e^{−AT}ᵀ) to N(0, I): sign and scale of a divergence that is not zero."""
    x = torch.randn(50, 2, generator=generator)
    inverse = torch.linalg.matrix_exp(-A * (ends[1] - ends[0]))
    exact = MultivariateNormal(torch.zeros(2), inverse @ inverse.T).log_prob(x)
    base = MultivariateNormal(torch.zeros(2), torch.eye(2)).log_prob
    field = lambda t, y: y @ A.T
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)))[:, None].expand(4, 50, 2)
    choices = {"given": lambda t, y: A.trace().expand(len(y)), "exact": None,
               "hutchinson": solve.hutchinson_divergence(field, signs)}
    t = torch.linspace(*ends, 101)
    assert torch.allclose(solve.log_likelihood(field, x, t, base, choices[divergence]), exact, atol=1e-7)
    adaptive = solve.log_likelihood(field, x, t, base, choices[divergence], "dopri5", rtol=1e-8, atol=1e-8)
    assert torch.allclose(adaptive, exact, atol=1e-6)


def test_likelihood_integrates_to_one():
    """A nonlinear, time-dependent field on the line: exp log p is a density whatever the field."""
    x = torch.linspace(-12, 12, 2401)[:, None]
    base = MultivariateNormal(torch.zeros(1), torch.eye(1)).log_prob
    log_p = solve.log_likelihood(lambda t, y: torch.sin(y) * (1 + t) + 0.3 * y, x, torch.linspace(0, 1, 41), base)
    assert log_p.exp().sum().item() * 0.01 == pytest.approx(1, abs=1e-6)


def test_divergence_integrates_to_the_log_determinant_of_the_flow(generator):
    net = MLP(3, generator=generator, width=16, depth=2)
    torch.nn.init.normal_(net.last.weight, generator=generator)
    x, t = torch.randn(5, 3, generator=generator), torch.linspace(0, 1, 41)
    flow = lambda y: solve.ode(net, y[None], t)[-1, 0]
    jacobians = torch.stack([torch.autograd.functional.jacobian(flow, y) for y in x])
    change = solve.log_likelihood(net, x, t, lambda y: torch.zeros(len(y)))
    assert change.abs().max() > 0.05
    assert torch.allclose(change, torch.linalg.slogdet(jacobians).logabsdet, atol=1e-5)


def test_divergences_against_the_whole_jacobian(generator):
    net = MLP(4, generator=generator, width=16, depth=2)
    x, t = torch.randn(6, 4, generator=generator), torch.tensor(0.3)
    brute = torch.func.vmap(torch.func.jacrev(lambda y: net(t, y[None])[0]))(x)
    trace = brute.diagonal(dim1=1, dim2=2).sum(1)
    assert torch.allclose(solve.exact_divergence(net)(t, x), trace, atol=1e-12)
    every_sign = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)))[:, None].expand(16, 6, 4)
    assert torch.allclose(solve.hutchinson_divergence(net, every_sign)(t, x), trace, atol=1e-12)
    for probes in (solve.rademacher((4000, 6, 4), generator), torch.randn(4000, 6, 4, generator=generator)):
        estimates = torch.stack([solve.hutchinson_divergence(net, z[None])(t, x) for z in probes[:400]])
        assert torch.allclose(solve.hutchinson_divergence(net, probes[:400])(t, x), estimates.mean(0), atol=1e-6)
        mean = solve.hutchinson_divergence(net, probes)(t, x)
        assert ((mean - trace).abs() < STANDARD_ERRORS * estimates.std(0) / math.sqrt(4000)).all()


def test_rademacher_probes_are_fair_signs(generator):
    z = solve.rademacher((10_000, 3), generator, torch.float64)
    assert z.dtype == torch.float64 and torch.equal(z.abs(), torch.ones_like(z))
    assert (z.mean(0).abs() < STANDARD_ERRORS / 100).all()
    assert ((z.T @ z / 10_000 - torch.eye(3)).abs() < STANDARD_ERRORS / 100).all()


def test_float32_stays_float32(generator):
    x, t = START.float(), torch.linspace(0, 1, 5)
    for method in solve.METHODS:
        assert solve.ode(riccati, x, t, method).dtype == torch.float32
    assert solve.sde(riccati, 1.0, x, t, generator).dtype == torch.float32
    assert solve.log_likelihood(riccati, x, t, lambda y: y[:, 0]).dtype == torch.float32

"""A data set seen through a path: exact likelihood along the exact field, and independent oracles for each part."""
from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from draws import rng
from torch.distributions import MultivariateNormal

from lib import path, solve
from lib import posterior as module
from lib.kernels import prepare
from lib.posterior import divergence, flow, posterior, score, velocity

pytestmark = pytest.mark.usefixtures("float64")
FAMILIES = {"Cond-OT": path.cond_ot(), "trigonometric": path.trigonometric(), "VP": path.variance_preserving()}
every_family = pytest.mark.parametrize("p", FAMILIES.values(), ids=FAMILIES)


@pytest.fixture
def cloud() -> torch.Tensor:
    return torch.randn(20, 3, generator=rng(1), dtype=torch.float64)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 3, generator=rng(2), dtype=torch.float64)  # B = D on purpose


@every_family
@pytest.mark.parametrize("end", [(0.7, 0.0), (0.0, 0.8)], ids=["to noise", "to data"])
def test_likelihood_along_the_exact_field(p, end, generator):
    """Velocity, divergence, log-density, solver and signs together: fourth order towards the known log p_t."""
    data = torch.randn(200, 2, generator=generator)
    x = p.point(*torch.randn(2, 32, 2, generator=generator), end[0])
    exact = posterior(p, end[0], x, data).log_p

    def error(steps: int) -> float:
        carried = solve.log_likelihood(
            lambda t, y: velocity(p, t, y, data), x, torch.linspace(*end, steps + 1),
            lambda y: posterior(p, end[1], y, data).log_p, lambda t, y: divergence(p, t, y, data))
        return float((carried - exact).abs().mean())

    coarse, fine = error(16), error(32)
    assert fine < 1e-5
    assert 12 < coarse / fine < 20


@every_family
def test_score_is_the_gradient_of_log_p(p, cloud, x):
    for t in (0.0, 0.3, 0.9, torch.tensor([0.2, 0.5, 0.8])):
        y = x.clone().requires_grad_()
        gradient, = torch.autograd.grad(posterior(p, t, y, cloud).log_p.sum(), y)
        assert torch.allclose(score(p, t, x, cloud), gradient, rtol=1e-8, atol=1e-10)


@every_family
def test_divergence_is_the_trace_of_the_jacobian(p, cloud, x):
    for t in (0.3, 0.9, torch.tensor([0.2, 0.5, 0.8])):
        trace = solve.exact_divergence(lambda s, y: velocity(p, s, y, cloud))(torch.as_tensor(t), x)
        assert torch.allclose(divergence(p, t, x, cloud), trace, rtol=1e-9, atol=1e-9)


@every_family
def test_continuity_equation(p, cloud, x):
    """∂ log p + v·∇log p + ∇·v = 0."""
    for t in (0.2, 0.5, 0.8):
        h = 1e-5
        later, sooner = (posterior(p, t + s, x, cloud).log_p for s in (h, -h))
        flow = (velocity(p, t, x, cloud) * score(p, t, x, cloud)).sum(1) + divergence(p, t, x, cloud)
        assert torch.allclose((later - sooner) / (2 * h), -flow, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("p", [path.cond_ot(), path.trigonometric()], ids=["Cond-OT", "trigonometric"])
def test_where_noise_hides_everything(p, cloud, x):
    """At a = 0 the posterior is the data set, the density the noise, and t → 0 is continuous."""
    seen = posterior(p, 0, x, cloud)
    normal = MultivariateNormal(torch.zeros(3), torch.eye(3))
    assert torch.allclose(seen.log_p, normal.log_prob(x))
    assert torch.allclose(seen.mean, cloud.mean(0).expand(3, 3))
    assert torch.allclose(seen.spread, torch.trace(cloud.T.cov(correction=0)).expand(3))
    assert torch.allclose(score(p, 0, x, cloud), -x)
    da, dm = p.rates(0.0)
    assert torch.allclose(velocity(p, 0, x, cloud), da * cloud.mean(0) + dm * x)
    assert torch.allclose(divergence(p, 0, x, cloud), 3 * dm)
    for f in (score, velocity, divergence):
        assert torch.allclose(f(p, 1e-7, x, cloud), f(p, 0, x, cloud), atol=1e-5)


def test_each_row_at_its_own_time(cloud, x):
    p, t = path.cond_ot(), torch.tensor([0.0, 0.4, 0.9])
    for f in (score, velocity, divergence, lambda *a: posterior(*a).log_p, lambda *a: posterior(*a).mean,
              lambda *a: posterior(*a).spread):
        rows = torch.cat([f(p, float(t[i]), x[i:i + 1], cloud) for i in range(3)])
        assert torch.allclose(f(p, t, x, cloud), rows, rtol=1e-10)


@every_family
def test_one_point_is_a_gaussian(p, x):
    y, t = torch.tensor([[1.0, -2.0, 0.5]]), 0.6
    a, m = p.a(torch.tensor(t)), p.m(torch.tensor(t))
    normal = MultivariateNormal(a * y[0], m**2 * torch.eye(3))
    seen = posterior(p, t, x, y)
    assert torch.allclose(seen.log_p, normal.log_prob(x)) and torch.allclose(seen.mean, y.expand(3, 3))
    assert seen.spread.abs().max() < 1e-12
    noise = torch.randn(3, 3, generator=rng(5))
    assert torch.allclose(velocity(p, t, p.point(noise, y.expand(3, 3), t), y), p.velocity(noise, y.expand(3, 3), t))


@every_family
def test_gaussian_data_through_quadrature_weights(p):
    """Gauss–Hermite nodes and log-weights stand for N(0, S²): everything about x_t is linear in x."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    S, t, x = 0.8, 0.4, torch.tensor([[-1.0], [0.2], [1.5]])
    data = S * torch.from_numpy(nodes)[:, None]
    log_w = torch.from_numpy(weights).log() - math.log(weights.sum())
    a, m = p.a(torch.tensor(t)), p.m(torch.tensor(t))
    (da, dm), V = p.rates(t), a**2 * S**2 + m**2
    seen = posterior(p, t, x, data, log_w)
    assert torch.allclose(seen.log_p, MultivariateNormal(torch.zeros(1), V.reshape(1, 1)).log_prob(x), atol=1e-8)
    assert torch.allclose(seen.mean, a * S**2 / V * x, atol=1e-8)
    assert torch.allclose(seen.spread, (S**2 * m**2 / V).expand(3), atol=1e-8)
    rate = (a * da * S**2 + m * dm) / V  # half the logarithmic derivative of the variance
    assert torch.allclose(velocity(p, t, x, data, log_w), rate * x, atol=1e-8)
    assert torch.allclose(divergence(p, t, x, data, log_w), rate.expand(3), atol=1e-8)
    assert torch.allclose(score(p, t, x, data, log_w), -x / V, atol=1e-8)


def test_log_weights_count_points(cloud, x):
    p, twice = path.cond_ot(), torch.cat([cloud, cloud[:5]])
    log_w = torch.full((20,), -math.log(25))
    log_w[:5] += math.log(2)
    for one, two in zip(posterior(p, 0.7, x, cloud, log_w), posterior(p, 0.7, x, twice), strict=True):
        assert torch.allclose(one, two)


@every_family
@pytest.mark.parametrize("t", [1.0, torch.tensor([0.5, 1.0, 0.1])], ids=["all", "one of three"])
@pytest.mark.parametrize("f", [posterior, score, velocity, divergence])
def test_times_without_noise_are_refused(p, t, f, cloud, x):
    with pytest.raises(ValueError, match=r"^t: got a time with m\(t\) = .+; need times with noise left"):
        f(p, t, x, cloud)


@pytest.mark.parametrize("name", ["x", "data"])
def test_clouds_are_refused_by_their_own_names(name, cloud, x):
    arguments = {"x": x, "data": cloud} | {name: torch.full((4, 3), math.nan)}
    for f in (posterior, score, velocity, divergence):
        with pytest.raises(ValueError, match=re.escape(f"{name}: got 12 non-finite")):
            f(path.cond_ot(), 0.5, **arguments)


@every_family
@pytest.mark.parametrize("weighted", [False, True])
def test_the_flow_is_velocity_and_divergence_and_a_cloud_changes_nothing(p, weighted, x, cloud):
    log_w = torch.linspace(-2, 1, len(cloud)).log_softmax(0) if weighted else None
    prepared = prepare(cloud, log_w=log_w)
    for t in (0.0, 0.4, torch.tensor([0.1, 0.4, 0.9])):
        found = flow(p, t, x, cloud, log_w)
        parts = velocity(p, t, x, cloud, log_w), divergence(p, t, x, cloud, log_w)
        for pair in (parts, flow(p, t, x, prepared), (velocity(p, t, x, prepared), divergence(p, t, x, prepared))):
            assert all(torch.equal(a, b) for a, b in zip(found, pair, strict=True))
        assert torch.equal(score(p, t, x, prepared), score(p, t, x, cloud, log_w))
    trace = solve.exact_divergence(lambda t, x: flow(p, t, x, cloud, log_w).velocity)(torch.tensor(0.4), x)
    torch.testing.assert_close(flow(p, 0.4, x, prepared).divergence, trace)


def test_likelihood_along_the_flow_takes_one_softmax_a_stage(x, cloud, monkeypatch):
    calls = []
    real = module.reduce
    monkeypatch.setattr(module, "reduce", lambda *a, **k: calls.append(1) or real(*a, **k))
    p, grid = FAMILIES["Cond-OT"], torch.linspace(0.8, 0.1, 6)
    start = lambda y: posterior(p, 0.1, y, cloud).log_p
    prepared = prepare(cloud)
    found = solve.log_likelihood(lambda t, y: flow(p, t, y, prepared), x, grid, start)
    assert len(calls) == 4 * 5 + 1
    calls.clear()
    two = solve.log_likelihood(lambda t, y: velocity(p, t, y, cloud), x, grid, start,
                               lambda t, y: divergence(p, t, y, cloud))
    assert len(calls) == 2 * 4 * 5 + 1 and torch.equal(found, two)
    with pytest.raises(ValueError, match=r"^divergence: got .*; need None"):
        solve.log_likelihood(lambda t, y: flow(p, t, y, cloud), x, grid, start, lambda t, y: y[:, 0])


def test_weights_belong_into_the_cloud(x, cloud):
    with pytest.raises(ValueError, match=r"^log_w: got .*; need None"):
        flow(FAMILIES["VP"], 0.5, x, prepare(cloud), torch.zeros(len(cloud)))
    with pytest.raises(ValueError, match=r"^data: got .*; need 2 columns"):
        flow(FAMILIES["VP"], 0.5, x[:, :2], prepare(cloud))

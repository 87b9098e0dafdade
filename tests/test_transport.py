"""Couplings against POT and scipy; the Gaussian bridge against its own defining equations."""
from __future__ import annotations

import itertools
import math

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.distributions import MultivariateNormal

from lib import solve
from lib.transport import couple, gaussian_bridge, sinkhorn

pytestmark = pytest.mark.usefixtures("float64")
STANDARD_ERRORS = 4.5


@pytest.fixture
def clouds(generator) -> tuple[torch.Tensor, torch.Tensor]:
    return (torch.randn(30, 2, generator=generator, dtype=torch.float64),
            1 + torch.randn(40, 2, generator=generator, dtype=torch.float64))


def cost(x, y):
    return (x[:, None] - y[None]).square().sum(-1)


def plan_of(found, x, y, epsilon, a, b):
    return a[:, None] * b * ((found.f[:, None] + found.g - cost(x, y)) / epsilon).exp()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("epsilon", [0.2, 2.0])
def test_sinkhorn_finds_pots_plan_and_value(clouds, weighted, epsilon, generator):
    x, y = clouds
    a, b = (torch.rand(n, generator=generator) + 0.1 if weighted else torch.ones(n) for n in (30, 40))
    a, b = a / a.sum(), b / b.sum()
    logs = {"log_a": a.log() + 3, "log_b": b.log() - 2} if weighted else {}  # normalised inside
    found = sinkhorn(x, y, epsilon, tolerance=1e-10, iterations=20_000, **logs)
    reference = torch.from_numpy(ot.sinkhorn(a.numpy(), b.numpy(), cost(x, y).numpy(), epsilon, method="sinkhorn_log",
                                             stopThr=1e-11, numItermax=50_000))
    assert found.converged and found.error <= 1e-10
    assert torch.allclose(plan_of(found, x, y, epsilon, a, b), reference, atol=1e-9)
    divergence = torch.special.xlogy(reference, reference / (a[:, None] * b)).sum()
    assert found.value.item() == pytest.approx(((cost(x, y) * reference).sum() + epsilon * divergence).item(), rel=1e-7)


def test_what_it_reports_is_true(clouds):
    """Few iterations at a low temperature: not converged, and the error is that of the plan returned."""
    x, y = clouds
    a, b = torch.full((30,), 1 / 30), torch.full((40,), 1 / 40)
    for iterations, start in itertools.product((3, 30), (None, torch.zeros(40))):
        found = sinkhorn(x, y, 0.02, iterations=iterations, g=start)
        plan = plan_of(found, x, y, 0.02, a, b)
        assert not found.converged
        assert torch.allclose(plan.sum(1), a, atol=1e-12)
        assert (plan.sum(0) - b).abs().sum() <= found.error * (1 + 1e-9)
    stopped = sinkhorn(x, y, 0.5, tolerance=1e-4)
    plan = plan_of(stopped, x, y, 0.5, a, b)
    assert stopped.converged and stopped.error.item() == pytest.approx((plan.sum(0) - b).abs().sum().item(), rel=1e-6)
    again = sinkhorn(x, y, 0.5, tolerance=1e-4, iterations=1, g=stopped.g)  # a warm start has nothing left to do
    assert again.converged and torch.allclose(again.f, stopped.f)


@pytest.mark.parametrize("relative", [1e-1, 1e-2, 1e-3])
def test_the_fast_road_ends_where_the_plain_one_does_and_sooner(relative, generator):
    x, y = torch.randn(100, 2, generator=generator), 1 + torch.rand(100, 2, generator=generator)
    epsilon, budget = relative * cost(x, y).mean().item(), 1000
    fast, plain = (sinkhorn(x, y, epsilon, iterations=budget, g=g) for g in (None, torch.zeros(100)))
    a = torch.full((100,), 0.01)
    plan = plan_of(fast, x, y, epsilon, a, a)
    assert fast.converged and fast.error <= 1e-6
    assert torch.allclose(plan.sum(1), a, atol=1e-12)
    assert (plan.sum(0) - a).abs().sum().item() == pytest.approx(fast.error.item(), rel=1e-5)
    assert plain.converged == (relative > 1e-3)
    assert plain.value <= fast.value + 1e-9  # the dual rises to its maximum
    exact = ot.emd2([], [], cost(x, y).numpy())
    assert exact < fast.value < exact + epsilon * math.log(100)


def test_temperatures_from_cold_to_hot_in_float32(clouds):
    x, y = (z.float() for z in clouds)
    mean_cost = cost(x.double(), y.double()).mean().item()
    exact = ot.emd2([], [], cost(x.double(), y.double()).numpy())
    values = []
    for relative in (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2):
        found = sinkhorn(x, y, relative * mean_cost)
        assert all(v.isfinite().all() and v.dtype == torch.float32 for v in found[:4])
        assert found.converged or relative < 1e-2
        values.append(found.value.item())
    assert values == sorted(values)
    assert exact < values[0] < exact + 0.01 * mean_cost
    assert values[-1] == pytest.approx(mean_cost, rel=1e-2)


def test_identical_single_and_weightless_points(clouds):
    x, y = clouds
    same = sinkhorn(x, x, 1.0, tolerance=1e-11)
    a = torch.full((30,), 1 / 30)
    plan = plan_of(same, x, x, 1.0, a, a)
    assert same.converged and torch.allclose(plan, plan.T, atol=1e-9) and same.value < cost(x, x).mean() / 2
    piled = sinkhorn(x[:1].expand(5, 2), y[:1].expand(3, 2), 1e-3)
    assert piled.converged and piled.value.item() == pytest.approx(cost(x, y)[0, 0].item())
    log_b = torch.zeros(40)
    log_b[10:] = -math.inf
    some, few = sinkhorn(x, y, 0.5, log_b=log_b), sinkhorn(x, y[:10], 0.5)
    assert some.value.item() == pytest.approx(few.value.item()) and (some.f - few.f).std() < 1e-5  # up to a constant


def test_exact_coupling_is_the_optimal_assignment(generator):
    x0, x1 = torch.randn(2, 60, 3, generator=generator)
    x1[7] = x1[3]  # a tie
    first, paired = couple(x0, x1, "exact", generator=generator)
    rows, columns = linear_sum_assignment(cost(x0, x1).numpy())
    assert torch.equal(first, x0)
    assert (x0 - paired).square().sum().item() == pytest.approx(cost(x0, x1)[rows, columns].sum().item())
    assert torch.equal(paired, x1[torch.from_numpy(columns)])


@pytest.mark.parametrize("kind", ["independent", "exact"])
def test_permutations_keep_both_clouds(kind, generator):
    x0, x1 = torch.randn(2, 50, 2, generator=generator, dtype=torch.float32)
    first, paired = couple(x0, x1, kind, generator=generator)
    assert torch.equal(first, x0) and paired.dtype == torch.float32
    assert torch.equal(torch.tensor(sorted(paired.tolist())), torch.tensor(sorted(x1.tolist())))
    again = couple(x0, x1, kind, generator=generator)[1]
    assert torch.equal(paired, again) == (kind == "exact")


def test_entropic_coupling_draws_from_the_plan(generator):
    """Frequencies of 1200 draws from each of five points against POT's plan; its columns are x1's weights."""
    x0, x1 = torch.randn(2, 5, 2, generator=generator)
    n, copies = 1200, 150  # a plan between copied points is the copied plan
    many = [couple(x0.repeat(copies, 1), x1.repeat(copies, 1), "entropic", epsilon=1.0, generator=generator)[1]
            for _ in range(n // copies)]
    pairs = torch.cat(many).reshape(n, 5, 2)
    counts = (pairs[:, :, None] == x1).all(-1).double().mean(0)
    plan = 5 * torch.from_numpy(ot.sinkhorn([], [], cost(x0, x1).numpy(), 1.0, stopThr=1e-12))
    assert (plan > 0.4).any()  # far from independent
    assert ((counts - plan).abs() < STANDARD_ERRORS * (plan * (1 - plan) / n).sqrt() + 1e-6).all()
    uniform = STANDARD_ERRORS * math.sqrt(5 * 0.25 / n)  # a column sums five shares, each of variance ≤ ¼
    assert ((counts.sum(0) - 1).abs() < uniform).all()


def test_couplings_refuse_what_they_cannot_do(generator):
    x = torch.randn(6, 2, generator=generator)
    for name, arguments in {"x1": (x, x[:5], "exact", None), "kind": (x, x, "random", None),
                            "epsilon": (x, x, "entropic", None)}.items():
        with pytest.raises(ValueError, match=rf"^{name}: got .+; need"):
            couple(*arguments[:3], epsilon=arguments[3], generator=generator)
    for kind, epsilon in (("exact", 1.0), ("entropic", 0.0)):
        with pytest.raises(ValueError, match=r"^epsilon: got .+; need"):
            couple(x, x, kind, epsilon=epsilon, generator=generator)
    far = torch.linspace(0, 100, 30)[:, None]
    with pytest.raises(ValueError, match=r"^epsilon: got 1e-13 for clouds of squared diameter .+; need at least"):
        couple(far, far.square() / 100, "entropic", epsilon=1e-13, generator=generator)


# --- the Gaussian bridge ----------------------------------------------------------------------------------


def ends(generator, d=3):
    """Two Gaussians whose covariances do not commute."""
    m0, m1 = torch.randn(2, d, generator=generator)
    S0, S1 = (r @ r.T + 0.3 * torch.eye(d) for r in torch.randn(2, d, d, generator=generator))
    return m0, S0, m1, S1


@pytest.fixture
def bridge(generator):
    return gaussian_bridge(*ends(generator), 0.9)


def test_the_joint_law_is_a_brownian_tilt(bridge):
    """The precision of (X_0, X_1) has −I/σ² off its diagonal, as exp(−‖x_0 − x_1‖²/2σ²) times two factors must."""
    C = bridge.cross_covariance
    joint = torch.cat([torch.cat([bridge.S0, C], 1), torch.cat([C.T, bridge.S1], 1)])
    assert (C - C.T).abs().max() > 0.01  # so that C and Cᵀ differ
    assert torch.allclose(torch.linalg.inv(joint)[:3, 3:], -torch.eye(3) / 0.9**2, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_limits_of_small_and_large_noise(dtype, generator):
    m0, S0, m1, S1 = (v.to(dtype) for v in ends(generator))
    still, wild = gaussian_bridge(m0, S0, m1, S1, 1e-4), gaussian_bridge(m0, S0, m1, S1, 1e4)
    T, _ = ot.gaussian.bures_wasserstein_mapping(*(v.double() for v in (m0, m1, S0, S1)))
    tolerance = 1e-5 if dtype == torch.float64 else 1e-3
    assert torch.allclose(still.cross_covariance.double(), S0.double() @ T, atol=tolerance)
    distance = ot.gaussian.bures_wasserstein_distance(*(v.double() for v in (m0, m1, S0, S1)))
    assert still.entropic_cost.item() == pytest.approx(distance.item() ** 2, rel=tolerance)
    assert torch.allclose(wild.cross_covariance * 1e8, S0 @ S1, rtol=tolerance, atol=tolerance)  # C ≈ S₀S₁/σ²
    independent = (m0 - m1).square().sum() + torch.trace(S0 + S1)
    assert wild.entropic_cost.item() == pytest.approx(independent.item(), rel=1e-6)


def test_ends_and_rows(bridge, generator):
    for t, m, S in ((0, bridge.m0, bridge.S0), (1, bridge.m1, bridge.S1)):
        assert torch.allclose(bridge.mean(t), m) and torch.allclose(bridge.covariance(t), S)
    t, x = torch.tensor([0.1, 0.5, 0.8]), torch.randn(3, 3, generator=generator)  # B = D
    for f in (bridge.mean, bridge.covariance):
        assert torch.allclose(f(t), torch.stack([f(float(s)) for s in t]))
    for f in (bridge.forward_drift, bridge.backward_drift):
        assert torch.allclose(f(t, x), torch.cat([f(float(s), y[None]) for s, y in zip(t, x, strict=True)]))


@pytest.mark.parametrize("t", [0.2, 0.7])
def test_nelson(bridge, t, generator):
    x = torch.randn(5, 3, generator=generator).requires_grad_()
    log_p = MultivariateNormal(bridge.mean(t), bridge.covariance(t)).log_prob(x)
    score, = torch.autograd.grad(log_p.sum(), x)
    total = bridge.forward_drift(t, x.detach()) + bridge.backward_drift(t, x.detach())
    assert torch.allclose(total, 0.9**2 * score, atol=1e-10)


def moments(drift, generator, t, start):
    """(mean, covariance, cross-covariance with the start) carried by dX = (A x + c) dt + σ dW along `t`."""
    sign, noise = (t[-1] - t[0]).sign(), 0.9**2 * torch.eye(3)

    def rate(s, state):
        m, S, K = state[0], state[1:4], state[4:]
        c = sign * drift(s, torch.zeros(1, 3))[0]
        A = (sign * drift(s, torch.eye(3)) - c).T
        return torch.cat([(A @ m + c)[None], A @ S + S @ A.T + sign * noise, K @ A.T])

    end = solve.ode(rate, torch.cat([start[0][None], start[1], start[1]]), t)[-1]
    return end[0], end[1:4], end[4:]


def test_both_drifts_carry_each_end_to_the_other(bridge, generator):
    """Exact moment equations: the marginals and the coupling, from either end."""
    t = torch.linspace(0, 1 - 1e-7, 201)
    mean, S, cross = moments(bridge.forward_drift, generator, t, (bridge.m0, bridge.S0))
    assert torch.allclose(mean, bridge.m1, atol=1e-5) and torch.allclose(S, bridge.S1, atol=1e-5)
    assert torch.allclose(cross, bridge.cross_covariance, atol=1e-5)
    mean, S, cross = moments(bridge.backward_drift, generator, 1 - t, (bridge.m1, bridge.S1))
    assert torch.allclose(mean, bridge.m0, atol=1e-5) and torch.allclose(S, bridge.S0, atol=1e-5)
    assert torch.allclose(cross, bridge.cross_covariance.T, atol=1e-5)
    halfway = moments(bridge.forward_drift, generator, t[:101], (bridge.m0, bridge.S0))
    s = float(t[100])
    assert torch.allclose(halfway[0], bridge.mean(s), atol=1e-7)
    assert torch.allclose(halfway[1], bridge.covariance(s), atol=1e-7)


def test_cost_and_coupling_agree_with_sinkhorn_on_a_grid():
    """ε = 2σ², and cost and covariance are those of the discretised problem."""
    line = torch.linspace(-7, 7, 701)[:, None]
    log_a, log_b = -(line[:, 0] + 0.5) ** 2 / (2 * 0.8), -(line[:, 0] - 1) ** 2 / (2 * 1.5)
    sigma = 0.8
    found = sinkhorn(line, line, 2 * sigma**2, log_a=log_a, log_b=log_b, tolerance=1e-9)
    ends = (torch.tensor(v) for v in ([-0.5], [[0.8]], [1.0], [[1.5]]))
    exact = gaussian_bridge(*ends, sigma)
    assert found.value.item() == pytest.approx(exact.entropic_cost.item(), abs=1e-4)
    plan = plan_of(found, line, line, 2 * sigma**2, log_a.softmax(0), log_b.softmax(0))
    covariance = ((line + 0.5) * plan * (line - 1).T).sum()
    assert covariance.item() == pytest.approx(exact.cross_covariance.item(), abs=1e-4)


def test_bridges_refuse_bad_ends_and_singular_times(bridge, generator):
    m0, S0, m1, S1 = ends(generator)
    good = {"m0": m0, "S0": S0, "m1": m1, "S1": S1, "sigma": 1.0}
    skew = S1 + torch.tensor(np.triu(np.ones((3, 3)), 1))
    for name, bad in [("S1", skew), ("S0", S0 - 10 * torch.eye(3)), ("S0", torch.zeros(3, 3)), ("S0", S0[:2]),
                      ("S1", S1[:, :2]), ("m1", m1[:2]), ("m0", torch.tensor(1.0)), ("m0", 1.0), ("sigma", 0.0),
                      ("sigma", math.inf), ("S1", S1.float()), ("m1", m1 * math.nan)]:
        with pytest.raises(ValueError, match=rf"^{name}: got .+; need"):
            gaussian_bridge(**(good | {name: bad}))
    for drift, t in ((bridge.forward_drift, 1), (bridge.backward_drift, torch.tensor([0.5, 0.0, 0.1]))):
        with pytest.raises(ValueError, match=r"^t: got [01]; need times other than"):
            drift(t, torch.zeros(3, 3))

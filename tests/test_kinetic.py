"""Kinetic-optimal paths against exact separations, brute-force energies, and the geometry of the chord."""
from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from draws import rng
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from lib import affine, data, kinetic, path, posterior
from lib.kernels import gaussian_posterior, reduce

pytestmark = pytest.mark.usefixtures("float64")
EPS = torch.linspace(-10, 10, 401, dtype=torch.float64)  # the trapezoid rule is exact to rounding for Gaussian tails
WEIGHT = torch.exp(-EPS**2 / 2) / torch.exp(-EPS**2 / 2).sum()


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def scaled(x: torch.Tensor) -> torch.Tensor:
    return x / x.square().mean().sqrt()




def of_points(x: torch.Tensor):
    """λ of points on a line, from the posterior weights as Bayes' rule has them; each s is computed once."""
    known: dict[bytes, torch.Tensor] = {}

    def exact(s):
        y = s[:, None, None] * x.ravel()[:, None] + EPS  # (K, n, E)
        logits = -(y[..., None] - s[:, None, None, None] * x.ravel()).square() / 2
        return ((logits.softmax(-1) @ x.ravel()).square() @ WEIGHT).mean(1)

    def lam(s):
        key = s.numpy().tobytes()
        if key not in known:
            known[key] = torch.cat([exact(part) for part in s.split(64)])
        return known[key]

    return lam


FIVE = scaled(column(-2, -0.5, 0.2, 1, 3))  # not centred
LAMBDA_FIVE = of_points(FIVE)


def two_points(s):
    return torch.tanh(s[:, None] ** 2 + s[:, None] * EPS) @ WEIGHT


def isotropic(s):
    return s**2 / (1 + s**2)


def gaussian(*eigenvalues: float):
    e = torch.tensor(eigenvalues, dtype=torch.float64)
    return lambda s: (s[:, None] ** 2 * e**2 / (1 + s[:, None] ** 2 * e)).mean(1)


def two_gaussians(s, std=0.2):
    """½N(±1, std²) scaled to unit second moment: mean over y of the squared posterior mean."""
    mu, sd = (v / math.sqrt(1 + std**2) for v in (1.0, std))
    total = torch.sqrt(s**2 * sd**2 + 1)[:, None]
    y = s[:, None] * mu + total * EPS  # by symmetry, one component suffices
    right = torch.sigmoid(2 * s[:, None] * mu * y / total**2)
    means = [c * mu + s[:, None] * sd**2 / total**2 * (y - c * s[:, None] * mu) for c in (1, -1)]
    return (right * means[0] + (1 - right) * means[1]).square() @ WEIGHT


def integral(f, lower=0.0, upper=math.inf) -> float:
    return quad(lambda s: float(f(torch.tensor([s], dtype=torch.float64))), lower, upper, limit=400, epsabs=1e-9)[0]


KNOWN = {"anisotropic Gaussian": gaussian(1.9, 0.1), "two points": two_points, "five points": LAMBDA_FIVE,
         "two Gaussians": two_gaussians}  # λ
FAMILIES = (path.cond_ot(), path.trigonometric(), path.variance_preserving())


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    x = torch.cat([part.x for part in data.digits(dequantise=False)])
    return affine.normaliser(x)(x)


@pytest.fixture(scope="module")
def seen(digits) -> kinetic.Separation:
    return kinetic.separation(digits, kinetic.nodes(60), generator=rng())


# --- the optimal path -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_angles_and_energies_of_laws_with_a_known_separation(name):
    """By adaptive quadrature of γ = 1 − (1 − λ)/cos²θ, along θ = πt/2 for the trigonometric path."""
    lam = KNOWN[name]

    def over_angles(f):
        gamma = lambda theta: 1 - (1 - float(lam(torch.tan(torch.tensor([theta]))))) / math.cos(theta) ** 2
        return sum(quad(lambda theta: f(gamma(theta)), *ends)[0] for ends in ((0, 0.8), (0.8, math.pi / 2)))

    angle = over_angles(lambda gamma: math.sqrt(max(gamma, 0)))
    found = kinetic.optimal_path(lam, floor=0)
    assert found.angle == pytest.approx(angle, abs=1e-4)
    assert found.energy == pytest.approx(2 - 2 * math.cos(angle), abs=1e-3)
    quarter = math.pi / 2 * over_angles(lambda gamma: gamma)
    assert kinetic.kinetic_energy(path.trigonometric(), lam) == pytest.approx(quarter, abs=1e-3)
    for other in FAMILIES:
        assert found.energy < kinetic.kinetic_energy(other, lam)


def test_isotropic_gaussian_costs_nothing_to_turn():
    assert kinetic.kinetic_energy(path.trigonometric(), isotropic) == pytest.approx(0, abs=1e-9)
    assert kinetic.kinetic_energy(path.cond_ot(), isotropic, cutoff=0) == pytest.approx(2 - math.pi / 2, abs=1e-6)
    with pytest.warns(UserWarning, match="isotropic Gaussian"):
        found = kinetic.optimal_path(isotropic)
    assert found.path.name == "Cond-OT" and found.angle == 0
    assert found.energy == pytest.approx(2 - math.pi / 2, abs=1e-4)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_full_separation_gives_conditional_transport(floor):
    found, t = kinetic.optimal_path(torch.ones_like, floor), torch.linspace(0, 1, 101)
    assert found.angle == pytest.approx(math.pi / 2, abs=1e-12)
    torch.testing.assert_close(found.path.a(t), t, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.path.m(t), 1 - t, atol=1e-6, rtol=0)
    assert kinetic.kinetic_energy(found.path, torch.ones_like, cutoff=0) == pytest.approx(2, abs=1e-9)


@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize("name", KNOWN)
def test_the_path_is_a_chord_run_at_constant_speed(name, floor):
    found = kinetic.optimal_path(KNOWN[name], floor)
    theta, angle = kinetic.unroll(KNOWN[name], floor)
    t = torch.linspace(0, 1, 401)
    a, m = found.path.a(t), found.path.m(t)
    ends = torch.stack([a[[0, -1]], m[[0, -1]]])
    torch.testing.assert_close(ends, torch.eye(2).flip(0), atol=1e-12, rtol=0)
    assert bool((a.diff() > 0).all()) and bool((a / m)[:-1].diff().gt(0).all())
    flat = torch.from_numpy(np.interp(torch.atan2(a, m), theta, angle))  # back to the flat cone, another way
    p = torch.hypot(a, m)[:, None] * torch.stack([flat.cos(), flat.sin()], 1)
    torch.testing.assert_close(p, p[0] + t[:, None] * (p[-1] - p[0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", KNOWN)
def test_energy_in_discrete_time_is_that_of_the_chord(name):
    """Finite differences of r and θ, with γ integrated over each step, against 2 − 2 cos Θ*."""
    lam = KNOWN[name]
    found = kinetic.optimal_path(lam, floor=0)
    t = torch.linspace(0, 1, 4001)
    a, m = found.path.a(t), found.path.m(t)
    theta, angle = kinetic.unroll(lam)
    flat = torch.from_numpy(np.interp(torch.atan2(a, m), theta, angle))
    r = torch.hypot(a, m)
    speed = (r.diff().square() + r[1:] * r[:-1] * flat.diff().square()) / t.diff()
    assert float(speed.sum()) == pytest.approx(2 - 2 * math.cos(found.angle), rel=2e-3)


def test_no_other_path_between_the_ends_is_cheaper():
    """Random bends of the optimal path, in angle and in radius, cost more, to second order."""
    lam = LAMBDA_FIVE
    best = kinetic.optimal_path(lam, floor=0)

    def bent(turn, stretch):
        def polar(t):
            theta = torch.atan2(best.path.a(t), best.path.m(t)) + turn * torch.sin(math.pi * t)
            return (1 + stretch * torch.sin(math.pi * t)) * torch.hypot(best.path.a(t), best.path.m(t)), theta
        return path.Path(lambda t: polar(t)[0] * polar(t)[1].sin(), lambda t: polar(t)[0] * polar(t)[1].cos())

    for turn, stretch in ((0.05, 0.0), (-0.05, 0.0), (0.0, 0.05), (0.0, -0.05), (0.05, 0.05)):
        gap, half = (kinetic.kinetic_energy(bent(k * turn, k * stretch), lam) - best.energy for k in (1, 0.5))
        assert 1e-4 < gap < 0.05
        assert gap / half == pytest.approx(4, abs=0.5)


def test_the_floor_slides_from_the_optimum_to_conditional_transport():
    lam = KNOWN["two Gaussians"]
    found = [kinetic.optimal_path(lam, floor) for floor in (0.0, 0.03, 0.1, 0.3, 1.0)]
    energies, angles = [f.energy for f in found], [f.angle for f in found]
    assert energies == sorted(energies) and angles == sorted(angles)
    assert energies[-1] == pytest.approx(kinetic.kinetic_energy(path.cond_ot(), lam), abs=1e-9)
    t = torch.linspace(0, 1, 1001)
    fastest = [float(f.path.rates(t).da.max()) for f in found]
    assert fastest == sorted(fastest, reverse=True)
    assert fastest[-1] == pytest.approx(1) and fastest[2] < 4 and fastest[0] > 50
    start = float(found[2].path.rates(torch.zeros(1)).da)  # at t = 0 the chord turns at sin Θ, and θ at sin Θ/√ε
    assert start == pytest.approx(math.sin(angles[2]) / math.sqrt(0.1), rel=1e-3)


@pytest.mark.parametrize(("name", "power"),
                         [("anisotropic Gaussian", 1 / 2), ("two points", 1 / 4), ("five points", 1)])
def test_how_singular_the_start_is(name, power):
    """γ ~ θ^{2p} at 0 makes θ_t grow like t^{1/(p + 1)}."""
    found = kinetic.optimal_path(KNOWN[name], floor=0).path
    t = torch.tensor([1e-5, 1e-4])
    theta = torch.atan2(found.a(t), found.m(t))
    assert math.log10(float(theta[1] / theta[0])) == pytest.approx(power, abs=0.02)


def test_a_path_like_any_other(generator):
    found = kinetic.optimal_path(two_points).path
    t = torch.rand(7, generator=generator)
    rates, h = found.rates(t), 1e-6
    torch.testing.assert_close(rates.da, (found.a(t + h) - found.a(t - h)) / (2 * h), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rates.dm, (found.m(t + h) - found.m(t - h)) / (2 * h), rtol=1e-5, atol=1e-6)
    x0, x1 = torch.randn(2, 7, 3, generator=generator)
    assert found.point(x0, x1, t).shape == (7, 3)
    single = found.a(t.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), found.a(t), atol=1e-6, rtol=0)
    v = posterior.velocity(found, 0.0, x0, x1)  # the floor keeps the rates at t = 0 finite
    assert bool(v.isfinite().all())


def test_every_path_has_the_same_map_from_noise_to_data(generator):
    """y = x/m obeys dy/ds = D, so exponential-Euler steps end at the same points whatever the path."""
    cloud = scaled(torch.randn(5, 2, generator=generator))
    lam = kinetic.separation(cloud, kinetic.nodes(40), generator=generator).smooth
    start, ends = torch.randn(64, 2, generator=generator), []
    for p in (path.cond_ot(), path.trigonometric(), kinetic.optimal_path(lam).path):
        s, y = p.ratio(torch.linspace(0, 1, 2001))[:-1], start
        for now, later in zip(s[:-1].tolist(), s[1:].tolist(), strict=True):
            centre = cloud.mean(0) if now == 0 else gaussian_posterior(y / now, cloud, 1 / now).mean
            y = y + (later - now) * centre
        ends.append(gaussian_posterior(y / s[-1], cloud, 1 / float(s[-1])).mean)
    for end in ends[1:]:
        assert float((end - ends[0]).square().mean().sqrt()) < 0.01


# --- the energy -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_energy_of_conditional_transport_is_two_minus_the_area_over_lambda(name):
    lam = KNOWN[name]
    area = integral(lambda s: 1 - lam(s), 0, 3) + integral(lambda s: 1 - lam(s), 3)
    assert kinetic.kinetic_energy(path.cond_ot(), lam) == pytest.approx(2 - area, abs=1e-4)


@pytest.mark.parametrize("name", ["Cond-OT", "trigonometric", "VP", "KO"])
def test_energy_is_the_mean_square_of_the_velocity(name, generator):
    """Brute force: ‖u_t(x_t)‖² at 400 000 random (t, x_t), of five points, t < 0.99; standard error below 0.9 %."""
    p = next((p for p in FAMILIES if p.name == name), None) or kinetic.optimal_path(LAMBDA_FIVE).path
    t = torch.linspace(0, 0.99, 81)
    t = (t[1:] + t[:-1]) / 2
    x1 = FIVE[torch.randint(5, (400_000,), generator=generator)]
    t = t.repeat_interleave(5000)
    x = p.point(torch.randn(400_000, 1, generator=generator), x1, t)
    squares = posterior.velocity(p, t, x, FIVE).square().mean(1)
    expected = kinetic.kinetic_energy(p, LAMBDA_FIVE, cutoff=0.01)
    assert 0.99 * float(squares.std()) / math.sqrt(400_000) < 0.009 * expected
    assert float(squares.mean()) * 0.99 == pytest.approx(expected, rel=0.02)


def test_the_cutoff_matters_for_variance_preserving_paths_only():
    """m² ≈ β_min(1 − t) near t = 1, so ṁ² adds β_min/4 · log 10 for each decade of the cut-off."""
    vp = [kinetic.kinetic_energy(path.variance_preserving(), LAMBDA_FIVE, cutoff=c) for c in (1e-5, 1e-6)]
    assert vp[1] - vp[0] == pytest.approx(0.1 / 4 * math.log(10), rel=0.02)
    straight = [kinetic.kinetic_energy(path.cond_ot(), LAMBDA_FIVE, cutoff=c) for c in (1e-5, 1e-6)]
    assert abs(straight[1] - straight[0]) < 2e-5


@pytest.mark.parametrize(("x", "count"), [(column(-1, 1), 2), (FIVE, 5)])
def test_information_identity(x, count):
    lam = of_points(x)
    found = integral(lambda s: s * (1 - lam(s)), 0, 3) + integral(lambda s: s * (1 - lam(s)), 3, 60)
    assert found == pytest.approx(math.log(count), abs=1e-4)


@given(n=st.integers(2, 40), d=st.integers(1, 6), seed=st.integers(0, 1000))
def test_bounds_for_any_finite_set(n, d, seed):
    """Θ* ≥ arcsin(n^{−1/d}), E ≥ 2 − 2√(1 − n^{−2/d}), and Cond-OT within arccos(n^{−1/d}) of 2; noise 3 %.

    With G = ∫(1 − λ)ds = 2 − E(Cond-OT), Cond-OT exceeds E by at most 2 sin G − G, whatever the λ.
    """
    g = rng(seed)
    x = scaled(torch.randn(n, d, generator=g))
    lam = kinetic.separation(x, kinetic.nodes(40), generator=g, draws=1000).smooth
    share = n ** (-1 / d)
    found = kinetic.optimal_path(lam, floor=0)
    assert found.angle >= math.asin(share) - 0.03
    assert found.energy >= 2 - 2 * math.sqrt(1 - share**2) - 0.03
    missing = 2 - kinetic.kinetic_energy(path.cond_ot(), lam, cutoff=0)
    assert missing <= math.acos(share) + 0.03
    assert 2 - missing - (2 - 2 * math.cos(found.angle)) <= 2 * math.sin(missing) - missing + 1e-3
    for p in FAMILIES:
        assert found.energy <= kinetic.kinetic_energy(p, lam) + 1e-3


# --- the separation function ------------------------------------------------------------------------------


@pytest.mark.parametrize(("x", "exact"), [(column(-1, 1), two_points), (FIVE, LAMBDA_FIVE)])
def test_separation_is_unbiased_and_its_standard_error_is_honest(x, exact):
    s = torch.tensor([0.1, 0.5, 1.0, 1.5, 3.0])
    runs = [kinetic.estimators(x, s, generator=rng(k), draws=500) for k in range(40)]
    for field in kinetic.Estimators._fields:
        means = torch.stack([getattr(run, field).mean(0) for run in runs])
        spread = means.std(0)
        assert bool(((means.mean(0) - exact(s)).abs() <= 4 * spread / math.sqrt(40) + 1e-12).all()), field
    seen = [kinetic.separation(x, s, generator=rng(k), draws=500) for k in range(40)]
    ratio = torch.stack([v.lam for v in seen]).std(0)[1:4] / torch.stack([v.stderr for v in seen]).mean(0)[1:4]
    assert bool(((ratio > 0.65) & (ratio < 1.5)).all())  # 40 runs give a standard deviation to 11 %


def test_estimators_agree_and_their_best_mixture_beats_each(digits):
    values = kinetic.estimators(digits, kinetic.nodes(20), generator=rng(1), draws=2000)
    assert float(kinetic.disagreement(values).max()) < 4  # 60 comparisons
    wrong = values._replace(inner=values.inner * 1.05)
    assert float(kinetic.disagreement(wrong).max()) > 10
    mixed = kinetic.separation(digits, kinetic.nodes(20), generator=rng(1), draws=2000)
    for v in (values.norm, values.spread, values.error):
        assert bool((mixed.stderr <= v.std(0) / math.sqrt(2000) + 1e-6).all())  # 1e-6: single draws decide


def test_separation_of_digits_matches_the_published_check(seen):
    """Specification, section 6 (Monte Carlo ± 0.01)."""
    found = kinetic.optimal_path(seen.smooth, floor=0)
    assert found.angle == pytest.approx(1.272, abs=0.01)
    assert found.energy == pytest.approx(1.411, abs=0.015)
    assert kinetic.kinetic_energy(path.cond_ot(), seen.smooth) == pytest.approx(1.583, abs=0.015)
    assert kinetic.kinetic_energy(path.trigonometric(), seen.smooth) == pytest.approx(1.813, abs=0.015)
    share = 1797 ** (-1 / 64)
    assert found.energy >= 2 - 2 * math.sqrt(1 - share**2)


def test_information_identity_by_monte_carlo(seen):
    theta = torch.linspace(0, math.pi / 2, 4001)[:-1]
    s = torch.tan(theta)
    found = torch.trapezoid(s * (1 - seen.smooth(s)) * (1 + s**2), theta)
    assert float(found) == pytest.approx(math.log(1797) / 64, rel=0.02)


def test_smooth_separation_is_what_is_known_of_it(seen):
    s = torch.cat([torch.zeros(1), torch.logspace(-4, 5, 3000)])
    lam = seen.smooth(s)
    assert bool((lam.diff() >= 0).all()) and bool((lam >= s**2 / (1 + s**2)).all()) and float(lam.max()) <= 1
    assert float(lam[0]) == pytest.approx(0, abs=1e-10) and float(seen.smooth(torch.tensor(math.inf))) == 1
    torch.testing.assert_close(seen.smooth(seen.s), seen.lam, atol=1e-12, rtol=0)
    assert seen.smooth(s.float()).dtype == torch.float32 and seen.smooth(s[:6].reshape(2, 3)).shape == (2, 3)
    off_centre = kinetic.separation(FIVE, torch.tensor([0.0, 1.0]), generator=rng())
    assert float(off_centre.lam[0]) == pytest.approx(float(FIVE.mean() ** 2), rel=1e-9)
    assert float(off_centre.smooth(torch.zeros(()))) == pytest.approx(float(FIVE.mean() ** 2), rel=1e-9)


def test_smooth_separation_between_nodes():
    """Interpolated from 60 nodes, against the exact λ everywhere; standard error 0.5 % at 20 000 draws."""
    seen = kinetic.separation(FIVE, kinetic.nodes(60), generator=rng(), draws=20_000)
    s = torch.tan(torch.linspace(0.001, 1.55, 500))
    assert float((seen.smooth(s) - LAMBDA_FIVE(s)).abs().max()) < 4 * float(seen.stderr.max()) + 1e-3
    assert kinetic.optimal_path(seen.smooth, 0).angle == pytest.approx(0.53838, abs=5e-3)


def test_leave_one_out_forgets_exactly_one_point(generator):
    x = affine.normaliser(torch.randn(30, 3, generator=generator))
    x = x(torch.randn(30, 3, generator=generator))
    x = scaled(x)
    own = torch.arange(30)
    for s in (0.3, 2.0, 40.0):
        query = x + torch.randn(30, 3, generator=generator) / s
        got = kinetic._without_own(query, x, own, s)
        for i in range(30):
            others = torch.cat([x[:i], x[i + 1:]])
            torch.testing.assert_close(got[i], gaussian_posterior(query[i:i + 1], others, 1 / s).mean[0])


def test_leave_one_out_bounds_the_population_from_below():
    """Uniform on [−√3, √3]: in-sample mmse ≤ population mmse ≤ leave-one-out error, averaged over data sets."""
    s, n = 16.0, 100
    points = torch.linspace(-math.sqrt(3), math.sqrt(3), 20_001)[1::2]  # a midpoint rule for the uniform law
    g = rng()
    x1 = math.sqrt(3) * (2 * torch.rand(4000, 1, generator=g) - 1)
    y = x1 + torch.randn(4000, 1, generator=g) / s
    population = float(gaussian_posterior(y, points[:, None], 1 / s).spread.mean())
    seen, left = [], []
    for _ in range(30):
        x = scaled(math.sqrt(3) * (2 * torch.rand(n, 1, generator=g) - 1))
        ratio = torch.tensor([s])
        seen.append(1 - float(kinetic.estimators(x, ratio, generator=g, draws=1000).error.mean()))
        left.append(1 - float(kinetic.estimators(x, ratio, generator=g, draws=1000, leave_one_out=True).error.mean()))
    seen, left = torch.tensor(seen), torch.tensor(left)
    stderr = float((seen.std() + left.std()) / math.sqrt(30)) + 5e-5
    assert float(seen.mean()) + 2 * stderr < population < float(left.mean()) - 2 * stderr


def test_leave_one_out_separation_is_floored(digits):
    s = torch.tensor([0.5, 1.0, 2.0, 4.0, 20.0])
    inside = kinetic.separation(digits, s, generator=rng(), draws=1500)
    outside = kinetic.separation(digits, s, generator=rng(), draws=1500, leave_one_out=True)
    assert bool((outside.lam <= inside.lam).all()) and bool((outside.lam >= s**2 / (1 + s**2) - 1e-12).all())
    raw = kinetic.estimators(digits, s, generator=rng(), draws=1500, leave_one_out=True)
    assert float(raw.error.mean(0)[-1]) < float(s[-1] ** 2 / (1 + s[-1] ** 2))  # where it must be floored
    assert float(outside.lam[1]) == pytest.approx(float(raw.error.mean(0)[1]), abs=1e-9)


def test_same_generator_same_answer(digits):
    s = torch.tensor([0.5, 2.0])
    one, two, other = (kinetic.separation(digits, s, generator=rng(k), draws=200).lam
                       for k in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


# --- bad input --------------------------------------------------------------------------------------------

X = column(-1, 1)
S = torch.tensor([0.5, 1.0])
G = torch.Generator()


@pytest.mark.parametrize(("call", "got"), [
    (lambda: kinetic.separation(2 * X, S, generator=G), "^data: got second moment 4 per dimension; need 1: use lib"),
    (lambda: kinetic.separation([1.0], S, generator=G), "^data: got list"),
    (lambda: kinetic.separation(X * math.nan, S, generator=G), "^data: got 2 non-finite"),
    (lambda: kinetic.separation(X[:1], S, generator=G, leave_one_out=True), "^data: got 1 point; need at least two"),
    (lambda: kinetic.separation(X, 1.0, generator=G), "^s: got float"),
    (lambda: kinetic.separation(X, S.flip(0), generator=G), "^s: got a grid"),
    (lambda: kinetic.separation(X, -S.flip(0), generator=G), "^s: got a grid"),
    (lambda: kinetic.separation(X, S, generator=0), "^generator: got int"),
    (lambda: kinetic.separation(X, S, generator=G, draws=1), "^draws: got 1; need an integer ≥ 2"),
    (lambda: kinetic.optimal_path(lambda s: 0.5 * isotropic(s)), "^lam: got λ"),
    (lambda: kinetic.optimal_path(lambda s: 1 + s), "^lam: got λ"),
    (lambda: kinetic.optimal_path(lambda s: s * math.nan), "^lam: got λ"),
    (lambda: kinetic.kinetic_energy(path.cond_ot(), lambda s: 0.5 * isotropic(s)), "^lam: got λ"),
    (lambda: kinetic.optimal_path(two_points, floor=-0.1), "^floor: got -0.1"),
    (lambda: kinetic.optimal_path(two_points, floor=1.1), "^floor: got 1.1"),
    (lambda: kinetic.kinetic_energy(path.cond_ot(), two_points, cutoff=-1), "^cutoff: got -1"),
    (lambda: kinetic.nodes(0), "^count: got 0"),
])
def test_bad_input_is_refused_by_name(call, got):
    with pytest.raises(ValueError, match=got):
        call()


def test_estimators_that_disagree_are_reported(monkeypatch):
    wrong = lambda *args: reduce(*args)._replace(mean=torch.zeros(4096, 1))
    monkeypatch.setattr(kinetic, "reduce", wrong)
    with pytest.warns(UserWarning, match="estimators of λ disagree"):
        kinetic.separation(X, S, generator=rng())


def test_a_constant_separation_may_be_a_number():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kinetic.optimal_path(lambda s: 1.0).angle == pytest.approx(math.pi / 2)


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.5, 1.0])
def test_both_energies_of_the_optimal_path(floor, float64):
    """The floored one is that of the path where turning costs at least the floor; the other one is never above it."""
    lam = lambda s: s**2 / (1 + s**2) + 2 / 3 * s**6 / (1 + s**2) ** 4
    floored = lambda s: (kinetic.gamma(lam, s).clamp_min(floor) + s**2) / (1 + s**2)
    found = kinetic.optimal_path(lam, floor)
    assert found.floored_energy == pytest.approx(kinetic.kinetic_energy(found.path, floored), rel=2e-3)
    assert found.energy == pytest.approx(kinetic.kinetic_energy(found.path, lam), rel=1e-12)
    assert found.energy <= found.floored_energy * (1 + 2e-3)

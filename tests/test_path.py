"""Gaussian paths: rates against finite differences and known formulas, tables, broadcasting."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from draws import rng
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from lib import path

pytestmark = pytest.mark.usefixtures("float64")
KNOTS = torch.linspace(0, 1, 9, dtype=torch.float64)
FAMILIES = {
    "Cond-OT": path.cond_ot(), "trigonometric": path.trigonometric(), "VP": path.variance_preserving(),
    "mild VP": path.variance_preserving(0.5, 3.0), "table": path.from_table(KNOTS, KNOTS**2, (1 - KNOTS) ** 3),
}
every_family = pytest.mark.parametrize("p", FAMILIES.values(), ids=FAMILIES)


@every_family
def test_rates_are_the_derivatives(p):
    t, h = torch.linspace(0.03, 0.97, 41), 1e-6
    for f, rate in zip((p.a, p.m), p.rates(t), strict=True):
        assert torch.allclose(rate, (f(t + h) - f(t - h)) / (2 * h), rtol=1e-5, atol=1e-8)


def test_known_derivatives():
    for t in (0.1, 0.5, 0.9):
        assert path.cond_ot().rates(t) == (1, -1)
        da, dm = path.trigonometric().rates(t)  # x″ = −(π/2)² x, so the phase a + im turns at a steady rate
        assert (da**2 + dm**2).item() == pytest.approx((math.pi / 2) ** 2, rel=1e-12)
        assert da.item() == pytest.approx(math.pi / 2 * math.cos(math.pi * t / 2), rel=1e-12)
        vp = FAMILIES["VP"]
        beta = 0.1 + (1 - t) * 19.9  # dX = −½βX dτ + √β dW: (log a)˙ = β/2 in our time, and a² + m² = 1
        da, dm = vp.rates(t)
        s = torch.tensor(t)
        assert (da / vp.a(s)).item() == pytest.approx(beta / 2, rel=1e-12)
        assert (vp.a(s) * da + vp.m(s) * dm).abs().item() < 1e-13


@pytest.mark.parametrize(("p", "at0", "at1"), [
    (path.cond_ot(), (0, 1), (1, 0)), (path.trigonometric(), (0, 1), (1, 0)),
    (path.variance_preserving(), (math.exp(-5.025), math.sqrt(1 - math.exp(-10.05))), (1, 0)),
    (FAMILIES["table"], (0, 1), (1, 0)),
])
def test_endpoints(p, at0, at1):
    for t, (a, m) in ((0.0, at0), (1.0, at1)):
        assert p.a(torch.tensor(t)).item() == pytest.approx(a, abs=1e-15)
        assert p.m(torch.tensor(t)).item() == pytest.approx(m, abs=1e-15)


@every_family
def test_the_amplitude_ratio_rises(p):
    s = p.ratio(torch.linspace(0, 1, 101))
    assert (s.diff() > 0).all() and s[-1] > 1e8 and s[0] < 0.5
    assert p.ratio(0.5).item() == pytest.approx((p.a(torch.tensor(0.5)) / p.m(torch.tensor(0.5))).item())


@every_family
def test_points_join_their_ends_along_their_velocity(p, generator):
    x0, x1 = torch.randn(2, 4, 3, generator=generator)
    assert torch.allclose(p.point(x0, x1, 1.0), x1, atol=1e-12)
    assert torch.allclose(p.point(x0, x1, 0), p.m(torch.tensor(0.0)) * x0 + p.a(torch.tensor(0.0)) * x1)
    h = 1e-6
    slope = (p.point(x0, x1, 0.4 + h) - p.point(x0, x1, 0.4 - h)) / (2 * h)
    assert torch.allclose(p.velocity(x0, x1, 0.4), slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 3, 3), (3,)])
def test_a_time_for_each_row_multiplies_rows(shape, generator):
    """B = D is where broadcasting along the wrong axis passes unnoticed."""
    p, t = path.trigonometric(), torch.tensor([0.2, 0.5, 0.9])
    x0, x1 = torch.randn(2, *shape, generator=generator)
    for f in (p.point, p.velocity):
        rows = torch.stack([f(x0[i], x1[i], float(t[i])) for i in range(3)])
        assert torch.allclose(f(x0, x1, t), rows, rtol=1e-14)


def test_dtype_follows_the_points_and_shape_the_time():
    x = torch.zeros(2, 5, dtype=torch.float32)
    for t in (0.5, 1, torch.tensor(0.5), torch.tensor([0.5, 0.1]), torch.tensor(1)):
        assert path.cond_ot().point(x, x, t).dtype == torch.float32
    assert path.cond_ot().rates(torch.zeros(7)).dm.shape == (7,)
    assert path.cond_ot().rates(1).da.shape == ()


@pytest.mark.parametrize("t", [-1e-3, 1.001, math.nan, "half", None, torch.tensor([0.1, 2.0]), torch.zeros(2, 1),
                               torch.zeros(3)])
def test_bad_times_are_refused(t):
    with pytest.raises(ValueError, match=r"^t: got .+; need"):
        path.cond_ot().point(torch.zeros(2, 2), torch.zeros(2, 2), t)


def test_a_table_reproduces_the_path_it_was_read_from():
    t = torch.linspace(0, 1, 5)
    p, s = path.from_table(t, t, 1 - t), torch.rand(50, generator=rng())
    assert torch.allclose(p.a(s), s, atol=1e-15) and torch.allclose(p.m(s), 1 - s, atol=1e-15)
    assert torch.allclose(torch.stack(p.rates(s)), torch.stack(path.cond_ot().rates(s)), atol=1e-13)
    fine = torch.linspace(0, 1, 401)
    arc = path.trigonometric()
    q = path.from_table(fine, arc.a(fine), arc.m(fine))
    assert (q.a(s) - arc.a(s)).abs().max() < 1e-5 and (q.rates(s).dm - arc.rates(s).dm).abs().max() < 1e-2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_pchip_is_scipys_monotone_and_differentiable(steps, random):
    values = np.cumsum([0.0, *steps])
    knots = np.concatenate([[0.0], np.sort([random.uniform(0.01, 0.99) for _ in steps[1:]]), [1.0]])
    if np.diff(knots).min() < 1e-3:
        return
    f = path.pchip(torch.tensor(knots), torch.tensor(values))
    reference = PchipInterpolator(knots, values)
    t = np.linspace(0, 1, 203)
    s = torch.tensor(t)
    assert np.allclose(f(s), reference(t), atol=1e-12)
    assert (f(s).diff() >= -1e-12).all()
    slope = torch.func.jvp(f, (s,), (torch.ones_like(s),))[1]
    assert np.allclose(slope, reference.derivative()(t), atol=1e-9)
    assert np.allclose(torch.func.vmap(torch.func.grad(f))(s), reference.derivative()(t), atol=1e-9)
    assert f(torch.tensor(-0.5)) == values[0] and f(torch.tensor(1.5)) == pytest.approx(values[-1])


@pytest.mark.parametrize(("name", "change"), [
    ("t", {"t": KNOTS.flip(0)}), ("t", {"t": KNOTS / 2}), ("t", {"t": KNOTS + 0.1}),
    ("t", dict.fromkeys("tam", KNOTS[:1])),
    ("t", {"t": KNOTS.round()}), ("a", {"a": 1 - KNOTS}), ("a", {"a": KNOTS - 0.1}), ("m", {"m": KNOTS}),
    ("m", {"m": 0.5 - KNOTS}), ("a", {"a": KNOTS[1:]}), ("m", {"m": KNOTS * math.nan}), ("t", {"t": 0.5}),
])
def test_bad_tables_are_refused(name, change):
    with pytest.raises(ValueError, match=rf"^{name}: got .+; need"):
        path.from_table(**({"t": KNOTS, "a": KNOTS, "m": 1 - KNOTS} | change))

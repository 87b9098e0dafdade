r"""Gaussian probability paths between noise (t = 0) and data (t = 1).

    x_t = a(t) x_1 + m(t) x_0,      x_0 ~ N(0, I),      p_t(x | x_1) = N(a(t) x_1, m(t)² I)

with a rising from 0 to 1 and m falling from 1 to 0.  The conditional velocity is ẋ_t = a′x_1 + m′x_0,
and the amplitude ratio s = a/m, the square root of the signal-to-noise ratio, orders all such paths:
two paths with the same s at their own times see the same data through the same noise.

House → papers: a is a (kinetic-optimal paths), b (interpolants), e^{−τ} (operator-informed scores);
m is m, a, and √(1 − e^{−2τ}).  Derivatives come from `torch.func.jvp`, never by hand.
Sources: Lipman et al. 2023 (Cond-OT), Albergo & Vanden-Eijnden 2023 (trigonometric), Song et al. 2021
(variance preserving), Shaul et al. 2023 (general (a, m)).
"""
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from lib.base import check
from lib.base.shapes import as_time, column


class Rates(NamedTuple):
    """Time derivatives of a path's two coefficients."""

    da: Tensor
    dm: Tensor


@dataclass(frozen=True)
class Path:
    """A Gaussian path: two smooth functions of time, each from a 0-d or (B,) tensor to the same shape."""

    a: Callable[[Tensor], Tensor]
    m: Callable[[Tensor], Tensor]
    name: str = "path"

    def rates(self, t: float | Tensor) -> Rates:
        """(a′(t), m′(t)) by forward-mode differentiation, shapes as t."""
        t = as_time(t)
        return Rates(*torch.func.jvp(lambda u: (self.a(u), self.m(u)), (t,), (torch.ones_like(t),))[1])

    def ratio(self, t: float | Tensor) -> Tensor:
        """Amplitude ratio s = a/m, from 0 to ∞; its square is the signal-to-noise ratio."""
        t = as_time(t)
        return self.a(t) / self.m(t)

    def point(self, x0: Tensor, x1: Tensor, t: float | Tensor) -> Tensor:
        """x_t = a x_1 + m x_0 for noise x0 and data x1 of one shape (B, …); t is a number or (B,)."""
        t = _paired(x0, x1, t)
        return column(self.a(t), x1) * x1 + column(self.m(t), x0) * x0

    def velocity(self, x0: Tensor, x1: Tensor, t: float | Tensor) -> Tensor:
        """Conditional velocity a′x_1 + m′x_0, the regression target of flow matching."""
        t = _paired(x0, x1, t)
        da, dm = self.rates(t)
        return column(da, x1) * x1 + column(dm, x0) * x0


def _paired(x0: Tensor, x1: Tensor, t: float | Tensor) -> Tensor:
    check.finite("x1", check.floating("x1", x1))
    check.alike("x0", x0, x1, "x1")
    return as_time(t, x1)


def cond_ot() -> Path:
    """Straight lines: a = t, m = 1 − t (Lipman et al. 2023, Eq. 20)."""
    return Path(lambda t: t, lambda t: 1 - t, "Cond-OT")


def trigonometric() -> Path:
    """A quarter circle: a = sin πt/2, m = cos πt/2 (Albergo & Vanden-Eijnden 2023)."""
    return Path(lambda t: torch.sin(math.pi / 2 * t), lambda t: torch.cos(math.pi / 2 * t), "trigonometric")


def variance_preserving(beta_min: float = 0.1, beta_max: float = 20.0) -> Path:
    """The VP diffusion read from noise to data: a = ξ(1 − t), m = √(1 − a²) (Song et al. 2021).

    ξ(τ) = exp(−τ²(β_max − β_min)/4 − τβ_min/2), so a(0) is small but not 0.
    """
    for label, value in (("beta_min", beta_min), ("beta_max", beta_max)):
        check.finite(label, check.positive(label, value))

    def log_a(t: Tensor) -> Tensor:
        tau = 1 - t
        return -(tau**2) * (beta_max - beta_min) / 4 - tau * beta_min / 2

    return Path(lambda t: log_a(t).exp(), lambda t: (-torch.expm1(2 * log_a(t))).clamp_min(0).sqrt(), "VP")


def from_table(t: Tensor, a: Tensor, m: Tensor, name: str = "table") -> Path:
    """A path through tabulated (t_k, a_k, m_k): monotone cubic (PCHIP) interpolation, once differentiable.

    t (K,) increases strictly from 0 to 1; a (K,) ≥ 0 does not fall; m (K,) ≥ 0 does not rise.
    """
    length = len(check.vector("t", t))
    for label, v in (("a", a), ("m", m)):
        check.vector(label, v, length)
    if length < 2 or t[0] != 0 or t[-1] != 1 or bool((t.diff() <= 0).any()):
        check.refuse("t", "a grid that does not increase from 0 to 1", "strictly increasing knots from 0 to 1")
    if a[0] < 0 or bool((a.diff() < 0).any()):
        check.refuse("a", "a negative value or a decreasing step", "values ≥ 0 that do not fall")
    if m[-1] < 0 or bool((m.diff() > 0).any()):
        check.refuse("m", "a negative value or an increasing step", "values ≥ 0 that do not rise")
    return Path(pchip(t, a), pchip(t, m), name)


def pchip(knots: Tensor, values: Tensor) -> Callable[[Tensor], Tensor]:
    """Monotone cubic interpolant of (K,) knots and values, for tensors of any shape; constant outside."""
    edges = knots.detach().double().cpu()
    spline = PchipInterpolator(edges.numpy(), values.detach().double().cpu().numpy())
    cubics = torch.cat([torch.from_numpy(spline.c.T), edges[:-1, None]], 1)  # a row for each interval, from its left

    def f(t: Tensor) -> Tensor:
        u = t.double().clamp(edges[0].item(), edges[-1].item())
        k = torch.searchsorted(edges[1:-1].to(t.device), u.detach().contiguous(), right=True)
        row = torch.nn.functional.embedding(k, cubics.to(t.device))  # cubics[k] fails under vmap(grad)
        c3, c2, c1, c0, left = row.unbind(-1)
        h = u - left
        return (((c3 * h + c2) * h + c1) * h + c0).to(t.dtype)

    return f

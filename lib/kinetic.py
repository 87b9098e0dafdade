r"""Kinetic-optimal Gaussian paths: the least energy with which noise can be moved to a data set.

A path x_t = a x_1 + m x_0 moves noise to data with the marginal velocity u_t, and spends per dimension

    E = (1/d) ∫₀¹ E‖u_t(x_t)‖² dt = ∫ ȧ² + ṁ² − β²(1 − λ(s)) dt,    s = a/m,  β = ȧ − aṁ/m        (Eq. 18, 21)

for data of unit second moment.  The data enter through one function of the amplitude ratio s alone, the
data separation, the size of the posterior mean D(y) = E[x_1 | s x_1 + ε = y]:

    λ(s) = E‖D‖²/d = 1 − mmse(s)/d,       s²/(1 + s²) ≤ λ ≤ 1,   never falling                 (Eq. 23, 24, 30)

In polar coordinates (a, m) = r (sin θ, cos θ) the energy is that of a curve in a cone,

    E = ∫ ṙ² + r² γ(θ) θ̇² dt,     γ = λ(1 + s²) − s² ∈ [0, 1],   s = tan θ                      (Eq. 27)

and with the angle Θ(θ) = ∫₀^θ √γ the cone is flat: dr² + r²dΘ².  The least energy is therefore that of a
straight chord between two points at radius 1, an angle Θ* = Θ(π/2) ≤ π/2 apart:

    E = 2 − 2 cos Θ*,   r² = 1 − Et + Et²,   Θ(θ_t) = atan2(t sin Θ*, 1 − t + t cos Θ*)

which solves Theorem 3.1 without shooting (its constant b is E).  Centred data have γ(0) = 0, so θ_t starts
like a root of t, with infinite velocity; a floor max(γ, ε) slides from this path (0) to Cond-OT (1).

Source: Shaul, Chen, Nickel, Le, Lipman, On Kinetic Optimal Probability Paths for Generative Models, ICML 2023.
"""
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from lib.base import check
from lib.base.stage import progress
from lib.kernels import prepare, reduce
from lib.path import Path, cond_ot, pchip, trigonometric

Lambda = Callable[[Tensor], Tensor]  # s ≥ 0 of any shape -> λ(s)

MOMENT_TOLERANCE = 1e-2  # by which the second moment per dimension may miss 1 and be set right
BOUND_TOLERANCE = 1e-4  # by which λ may miss its bounds before it is refused
DISAGREEMENT = 6.0  # standard errors
ROUNDING = 1e-6  # of λ in single precision
NODES = 2000  # cells of θ in [0, π/2]


class Estimators(NamedTuple):
    """Four values per draw and node, each (draws, K) with mean λ(s) over the draws."""

    norm: Tensor  # ‖D‖²/d
    inner: Tensor  # x_i·D/d
    error: Tensor  # 1 − ‖x_i − D‖²/d; the only one with a meaning when x_i is left out
    spread: Tensor  # 1 − tr Cov[x_1 | y]/d, the mean of `error` given y; `error` itself when x_i is left out


class Separation(NamedTuple):
    """The data separation function of a data set."""

    s: Tensor  # (K,) amplitude ratios a/m, increasing
    lam: Tensor  # (K,) λ(s), projected onto what is known of it
    stderr: Tensor  # (K,) standard error of the estimate, before projection
    smooth: Lambda  # s -> λ(s) through the nodes: non-decreasing, within its bounds, exact at 0 and ∞


def nodes(count: int = 80) -> Tensor:
    """Amplitude ratios s = tan θ at the midpoints of `count` equal cells of θ in [0, π/2], float64."""
    return torch.tan(math.pi / 2 * (torch.arange(check.count("count", count), dtype=torch.float64) + 0.5) / count)


def estimators(data: Tensor, s: Tensor, *, generator: torch.Generator, draws: int = 4096,
               leave_one_out: bool = False) -> Estimators:
    """Monte Carlo values of λ(s) for data (n, d) of unit second moment, at ratios s (K,) ≥ 0 (Eq. 36, 39).

    Each draw picks a point x_i and a noise ε and looks at s x_i + ε for every s: the same draws at all nodes make
    the estimate smooth in s.  `leave_one_out` gives the posterior every point but x_i; of the results only
    `error` then says anything, a lower bound in expectation on the λ of the law that the data were drawn from.
    """
    data = _normalised(data)
    check.count("draws", draws, low=2)
    check.generator("generator", generator)
    n, d = data.shape
    index = torch.randint(n, (draws,), generator=generator).to(data.device)
    noise = torch.randn(draws, d, generator=generator, dtype=torch.float64).to(data)
    x, values = data[index], []
    cloud = data.double() if leave_one_out else prepare(data)
    for ratio in progress(_ratios(s).tolist(), desc="λ(s)"):
        query = x + noise / ratio if ratio else torch.zeros_like(x)
        if leave_one_out:
            mean = _without_own(query, cloud, index, ratio)
            left = (x - mean).square().sum(1)
        else:
            _, mean, left = reduce(query, cloud, 1 / ratio if ratio else math.inf)
        error = (x - mean).square().sum(1)
        values.append(torch.stack([mean.square().sum(1), (x * mean).sum(1), d - error, d - left]) / d)
    return Estimators(*torch.stack(values, 2).double().cpu())


def _without_own(query: Tensor, points: Tensor, own: Tensor, s: float) -> Tensor:
    """Posterior means (B, d) over all points (float64) but each query's own, exact, by blocks of rows in float64.

    Taking a point's share out of the finished sum would cancel as soon as its weight nears 1, which at large s
    it always does.
    """
    if len(points) < 2:
        check.refuse("data", "1 point", "at least two points to leave one out")
    look = query.double() * s**2
    bias, means = -(s**2) / 2 * points.square().sum(1), []
    for q, i in zip(*(v.split(max(1, 2**22 // len(points))) for v in (look, own)), strict=True):
        logits = torch.addmm(bias, q, points.T)
        logits[torch.arange(len(q), device=q.device), i] = -math.inf
        means.append(logits.softmax(1) @ points)
    return torch.cat(means).to(query)


def disagreement(values: Estimators) -> Tensor:
    """Largest distance, in standard errors, between the means of `norm` and the other estimators at each node (K,).

    All have the same mean, by the tower property, so more than a few says that something is wrong.
    """
    gaps = torch.stack([v - values.norm for v in values[1:]])
    return (gaps.mean(1).abs() / (_stderr(gaps, 1) + ROUNDING)).amax(0)


def separation(data: Tensor, s: Tensor, *, generator: torch.Generator, draws: int = 4096,
               leave_one_out: bool = False) -> Separation:
    """The data separation function λ(s) of data (n, d), unit second moment per dimension, at ratios s (K,) ≥ 0.

    The estimate is norm + c (spread − norm), unbiased for any c, with the c of least variance at each node: near
    s = 0 that is the norm of the posterior mean, at large s its spread, whose noise vanishes with it.  With
    `leave_one_out` it is the mean of `error`.  Projection: mmse = 1 − λ does not rise with s (isotonic
    regression) and is at most 1/(1 + s²), the error of the best linear guess.

    `data` in float64 where λ is needed beyond s ≈ 100.  Warns where the estimators disagree by more than six
    standard errors.  ValueError for data whose second moment is not 1 to 1 % (`lib.data.normaliser` makes it so,
    and its inverse carries samples back).
    """
    values = estimators(data, s, generator=generator, draws=draws, leave_one_out=leave_one_out)
    s = _ratios(s)
    if leave_one_out:
        value = values.error
    else:
        worst = float(disagreement(values).max())
        if worst > DISAGREEMENT:
            warnings.warn(f"separation: estimators of λ disagree by {worst:.1f} standard errors", stacklevel=2)
        gap = values.spread - values.norm
        centred = gap - gap.mean(0)
        c = -(centred * values.norm).mean(0) / centred.square().mean(0).clamp_min(1e-30)
        value = values.norm + c * gap
    stderr = _stderr(value, 0)
    rising = isotonic_regression(value.mean(0).numpy(), weights=1 / (stderr.numpy() ** 2 + 1e-16)).x
    least, start = s**2 / (1 + s**2), float(_normalised(data).double().mean(0).square().mean())
    lam = torch.maximum(torch.from_numpy(rising), least).clamp(start, 1)
    inner = s > 0
    knots = torch.cat([s.new_zeros(1), least[inner], s.new_ones(1)])
    table = torch.cat([s.new_tensor([start]), lam[inner], s.new_ones(1)])
    through = pchip(knots, table)

    def smooth(ratio: Tensor) -> Tensor:
        ratio = torch.as_tensor(ratio)
        least = 1 / (1 + ratio.double() ** -2)
        return torch.maximum(through(least), least).to(ratio.dtype)

    return Separation(s, lam, stderr, smooth)


def _stderr(values: Tensor, dim: int) -> Tensor:
    return values.std(dim) / math.sqrt(values.shape[dim])


def _normalised(data: Tensor) -> Tensor:
    moment = float(check.points("data", data).detach().double().square().mean())
    if abs(moment - 1) > MOMENT_TOLERANCE:
        check.refuse("data", f"second moment {moment:.4g} per dimension",
                     "1: use lib.data.normaliser and carry samples back with its inverse")
    return data.detach() / math.sqrt(moment)


def _ratios(s: Tensor) -> Tensor:
    s = check.vector("s", s).detach().double().cpu()
    if s[0] < 0 or bool((s.diff() <= 0).any()):
        check.refuse("s", "a grid that is negative or does not increase", "increasing ratios a/m ≥ 0")
    check.within("s", s, 0.0, 1e7)  # beyond it s²/(1 + s²) is 1
    return s


def gamma(lam: Lambda, s: Tensor) -> Tensor:
    """The price of turning, γ = λ(1 + s²) − s² = 1 − (1 − λ)(1 + s²), at ratios s (K,) ≥ 0; in [0, 1].

    ValueError where λ misses s²/(1 + s²) ≤ λ ≤ 1.
    """
    value = torch.as_tensor(lam(s)).to(s).expand_as(s)
    least = s**2 / (1 + s**2)
    bad = ~((value >= least - BOUND_TOLERANCE) & (value <= 1 + BOUND_TOLERANCE))
    if bool(bad.any()):
        check.refuse("lam", f"λ({s[bad][0]:.3g}) = {value[bad][0]:.4g}", "s²/(1 + s²) ≤ λ(s) ≤ 1")
    return (1 - (1 - value) * (1 + s**2)).clamp(0, 1)


def kinetic_energy(path: Path, lam: Lambda, *, cutoff: float = 1e-5) -> float:
    """Energy per dimension ∫ ṙ² + r²γθ̇² dt of a path, for data with separation λ(s), over t in [0, 1 − cutoff].

    The cut-off matters for variance-preserving paths, whose energy diverges like its logarithm; a path of
    finite energy E loses about E·cutoff.
    """
    check.within("cutoff", cutoff, 0.0, 1.0)
    u, w = _gauss_legendre(panels=64, order=8)
    t = (1 - cutoff) * u**3 * (10 - 15 * u + 6 * u**2)  # crowds both ends, where rates may be unbounded
    w = (1 - cutoff) * w * 30 * u**2 * (1 - u) ** 2
    a, m, (da, dm) = path.a(t), path.m(t), path.rates(t)
    radial, turning = a * da + m * dm, m * da - a * dm
    return float((w * (radial**2 + gamma(lam, a / m) * turning**2) / (a**2 + m**2)).sum())


def _gauss_legendre(panels: int, order: int) -> tuple[Tensor, Tensor]:
    z, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(order))
    left = torch.arange(panels, dtype=torch.float64)[:, None]
    return ((left + (z + 1) / 2) / panels).ravel(), (w / 2 / panels).repeat(panels)


def unroll(lam: Lambda, floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """Table of the flat angle Θ(θ) = ∫₀^θ √max(γ, floor): two increasing tensors (θ, Θ), float64, θ from 0 to π/2."""
    check.within("floor", floor, 0.0, 1.0)
    theta = torch.linspace(0, math.pi / 2, NODES + 1, dtype=torch.float64)
    middle = (theta[1:] + theta[:-1]) / 2  # never asks for λ at s = ∞
    root = gamma(lam, torch.tan(middle)).clamp_min(max(float(floor), 1e-16)).sqrt()  # never 0: Θ has an inverse
    return theta, torch.cat([root.new_zeros(1), (root * theta.diff()).cumsum(0)])


class OptimalPath(NamedTuple):
    """The path of least energy for max(γ, floor): the least of all where the floor is 0."""

    path: Path
    angle: float  # Θ*, radians, of its chord, in the cone of max(γ, floor)
    energy: float  # kinetic_energy(path, lam), per dimension, with λ as it is

    @property
    def floored_energy(self) -> float:
        """2 − 2 cos Θ*, the energy per dimension that max(γ, floor) makes least; at least `energy`."""
        return 2 - 2 * math.cos(self.angle)


def optimal_path(lam: Lambda, floor: float = 0.1) -> OptimalPath:
    """The path of least kinetic energy for data with separation λ(s): a chord of the flat cone.

    lam    callable s -> λ(s) for float64 tensors, s²/(1 + s²) ≤ λ ≤ 1.
    floor  ε in max(γ, ε), in [0, 1]: 0 is the optimum itself, singular at t = 0 for centred data; 1 is Cond-OT.

    For an isotropic Gaussian, λ = s²/(1 + s²), every path of radius 1 has energy 0 and none is singled out: Cond-OT
    comes back, with a warning.
    """
    if kinetic_energy(trigonometric(), lam) < 1e-6:
        warnings.warn("optimal_path: λ is that of an isotropic Gaussian; no path is singled out: Cond-OT", stacklevel=2)
        return OptimalPath(cond_ot(), 0.0, kinetic_energy(cond_ot(), lam))
    theta, angle = unroll(lam, floor)
    turn, end = pchip(angle, theta), float(angle[-1])

    def polar(t: Tensor) -> tuple[Tensor, Tensor]:
        along, across = 1 - t + t * math.cos(end), t * math.sin(end)
        return torch.hypot(along, across), turn(torch.atan2(across, along))

    def a(t: Tensor) -> Tensor:
        r, angle = polar(t.double())
        return (r * torch.sin(angle)).to(t.dtype)

    def m(t: Tensor) -> Tensor:
        r, angle = polar(t.double())
        return (r * torch.cos(angle)).to(t.dtype)

    path = Path(a, m, "KO")
    return OptimalPath(path, end, kinetic_energy(path, lam))

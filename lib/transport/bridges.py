r"""Schrödinger bridges that are known exactly: between Gaussians, between clouds, through a mixture.

Between Gaussians the bridge is Gaussian (Janati et al. 2020; Bunne et al. 2023, Table 1):

    Δ = (4 S₀^½ S₁ S₀^½ + σ⁴ I)^½ − σ² I,    C = Cov(X₀, X₁) = ½ S₀^½ Δ S₀^−½
    S_t = (1−t)² S₀ + t² S₁ + t(1−t)(C + Cᵀ + σ² I)

Each eigenvalue of Δ is √(μ + σ⁴) − σ² = μ/(√(μ + σ⁴) + σ²), which does not cancel when σ is large.
"""
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from lib.base import check, draw
from lib.base.shapes import as_time, column
from lib.kernels import GaussianPosterior, gaussian_posterior
from lib.transport.couplings import normalised, sinkhorn


@dataclass(frozen=True)
class GaussianBridge:
    """Schrödinger bridge from N(m0, S0) at t = 0 to N(m1, S1) at t = 1, Brownian reference of variance σ²."""

    m0: Tensor  # (D,)
    S0: Tensor  # (D, D)
    m1: Tensor
    S1: Tensor
    sigma: float
    cross_covariance: Tensor  # (D, D)  Cov(X_0, X_1)
    entropic_cost: Tensor  # 0-d  min E‖X_0 − X_1‖² + 2σ² KL(π | p_0 ⊗ p_1)

    def mean(self, t: float | Tensor) -> Tensor:
        """Mean of the marginal at time t: (D,), or (B, D) for t (B,)."""
        t = as_time(t, self.m0)[..., None]
        return (1 - t) * self.m0 + t * self.m1

    def covariance(self, t: float | Tensor) -> Tensor:
        """Covariance of the marginal at time t: (D, D), or (B, D, D) for t (B,)."""
        t, C = as_time(t, self.m0)[..., None, None], self.cross_covariance
        noise = self.sigma**2 * torch.eye(len(self.m0), dtype=C.dtype, device=C.device)
        return (1 - t) ** 2 * self.S0 + t**2 * self.S1 + t * (1 - t) * (C + C.T + noise)

    def forward_drift(self, t: float | Tensor, x: Tensor) -> Tensor:
        """u(t, x) of dX = u dt + σ dW, x (B, D), 0 ≤ t < 1 a number or (B,): (E[X_1|x] − x)/(1 − t)."""
        t = self._time(t, x, excluded=1.0)
        end = self.m1 + self._regress(self.cross_covariance.T, self.S1, t, x)
        return (end - x) / column(1 - t, x)

    def backward_drift(self, t: float | Tensor, x: Tensor) -> Tensor:
        """Drift of the time-reversed bridge, x (B, D), 0 < t ≤ 1 a number or (B,): (E[X_0|x] − x)/t.

        forward + backward = σ²∇log p_t (Nelson); the probability flow is half of forward − backward.
        """
        t = self._time(t, x, excluded=0.0)
        start = self.m0 + self._regress(self.S0, self.cross_covariance, t, x)
        return (start - x) / column(t, x)

    def _time(self, t: float | Tensor, x: Tensor, *, excluded: float) -> Tensor:
        check.points("x", x, dim=len(self.m0), like=self.m0)
        t = as_time(t, x)
        column(t, x)
        if not check.opaque(t) and bool((t == excluded).any()):
            check.refuse("t", f"{excluded:g}", f"times other than {excluded:g}, where this drift is singular")
        return t

    def _regress(self, at0: Tensor, at1: Tensor, t: Tensor, x: Tensor) -> Tensor:
        """K Cov(X_t)⁻¹ (x − mean), where K = (1 − t) at0 + t at1 is the covariance of an end with X_t."""
        s = t[..., None, None]
        gain = torch.linalg.solve(self.covariance(t), ((1 - s) * at0 + s * at1).mT).mT
        return torch.einsum("...ij,...j->...i", gain, x - self.mean(t))


def gaussian_bridge(m0: Tensor, S0: Tensor, m1: Tensor, S1: Tensor, sigma: float) -> GaussianBridge:
    """The bridge between two Gaussians: means (D,), covariances (D, D), a standard deviation σ > 0."""
    sigma = check.finite("sigma", check.positive("sigma", sigma)).item()
    d = len(check.vector("m0", m0))
    check.vector("m1", m1, d, like=m0)
    for name, S in (("S0", S0), ("S1", S1)):
        covariance(name, S, d, like=m0)
    root = power(S0, 0.5)
    mu, vectors = torch.linalg.eigh(4 * root @ S1 @ root)
    delta = mu / ((mu + sigma**4).sqrt() + sigma**2)
    C = root @ (vectors * delta) @ vectors.T @ power(S0, -0.5) / 2
    cost = ((m0 - m1).square().sum() + torch.trace(S0 + S1) - delta.sum()
            + sigma**2 * torch.log1p(delta / (2 * sigma**2)).sum())
    return GaussianBridge(m0, S0, m1, S1, sigma, C, cost)


def marginal_kl(bridge: GaussianBridge, times: Tensor, walk: Tensor) -> float:
    """How far simulated marginals are from the bridge's: mean over `times` (K,) of KL(fit of walk[k] | p_t), nats.

    walk (K, n, D).  A Gaussian is fitted to each cloud; the fit's own bias, (D + D(D+1)/2)/2n, is subtracted.
    """
    if check.finite("walk", check.floating("walk", walk)).dim() != 3 or walk.shape[1] < 2:
        check.refuse("walk", f"shape {tuple(walk.shape)}", "shape (K, n, D) with n ≥ 2")
    check.vector("times", times, len(walk))
    n, d = walk.shape[1:]
    found = MultivariateNormal(walk.mean(1), torch.stack([torch.cov(x.T) for x in walk]))
    kl = kl_divergence(found, MultivariateNormal(bridge.mean(times.to(walk)), bridge.covariance(times.to(walk))))
    return float(kl.mean()) - d * (d + 3) / (4 * n)


def covariance(name: str, S: Tensor, d: int, *, like: Tensor) -> Tensor:
    """A symmetric positive definite (d, d) matrix, or `ValueError` saying what is wrong with it."""
    check.points(name, S, dim=d, like=like)
    if len(S) != d:
        check.refuse(name, f"shape {tuple(S.shape)}", f"shape ({d}, {d})")
    if not torch.allclose(S, S.T, atol=1e-6 * float(S.abs().max())):
        check.refuse(name, "a non-symmetric matrix", "a symmetric positive definite matrix")
    smallest = torch.linalg.eigvalsh(S).min().item()
    if smallest <= 0:
        check.refuse(name, f"smallest eigenvalue {smallest:.3g}", "a positive definite matrix")
    return S


def power(S: Tensor, exponent: float) -> Tensor:
    """Power of symmetric positive semi-definite matrices (…, d, d), by their eigenvalues."""
    values, vectors = torch.linalg.eigh(S)
    return (vectors * values.clamp_min(0)[..., None, :] ** exponent) @ vectors.mT


@dataclass(frozen=True)
class CloudBridge:
    """Schrödinger bridge between weighted clouds: Sinkhorn's plan, its pairs joined by Brownian bridges.

    With a_i e^{f_i/ε} and b_j e^{g_j/ε} as log-weights, ε = 2σ², everything is two of the one reduction:
    at noise σ√t over x0 and at noise σ√(1−t) over x1.
    """

    x0: Tensor  # (n, D)
    x1: Tensor  # (m, D)
    sigma: float
    log_w0: Tensor  # (n,)  log a + f/ε
    log_w1: Tensor  # (m,)  log b + g/ε

    def forward_drift(self, t: float | Tensor, x: Tensor) -> Tensor:
        """(E[X_1|x] − x)/(1 − t) for x (B, D), 0 ≤ t < 1 a number or (B,)."""
        return (self._seen(1, t, x).mean - x) / column(1 - as_time(t, x), x)

    def backward_drift(self, t: float | Tensor, x: Tensor) -> Tensor:
        """(E[X_0|x] − x)/t for x (B, D), 0 < t ≤ 1 a number or (B,)."""
        return (self._seen(0, t, x).mean - x) / column(as_time(t, x), x)

    def sample(self, x: Tensor, direction: str, generator: torch.Generator) -> Tensor:
        """The other end (B, D), drawn exactly: x at t = 0 goes "forward", x at t = 1 "backward".  Forms B × N."""
        check.choice("direction", direction, ("forward", "backward"))
        points, log_w = (self.x1, self.log_w1) if direction == "forward" else (self.x0, self.log_w0)
        return points[_chosen(x, points, self.sigma, log_w, generator)]

    def log_p(self, t: float | Tensor, x: Tensor) -> Tensor:
        """log-density (B,) of the bridge at 0 < t < 1, nats."""
        log_z = self._seen(0, t, x).log_z + self._seen(1, t, x).log_z
        t = as_time(t, x)
        return (log_z - x.shape[1] / 2 * torch.log(2 * math.pi * self.sigma**2 * t * (1 - t)))

    def _seen(self, end: int, t: float | Tensor, x: Tensor) -> GaussianPosterior:
        check.points("x", x, dim=self.x0.shape[1], like=self.x0)
        t = as_time(t, x)
        column(t, x)
        points, log_w, time = (self.x1, self.log_w1, 1 - t) if end else (self.x0, self.log_w0, t)
        return gaussian_posterior(x, points, self.sigma * time.sqrt(), log_w=log_w)


def cloud_bridge(x0: Tensor, x1: Tensor, sigma: float, **options: Any) -> CloudBridge:
    """The bridge between x0 (n, D) and x1 (m, D); `options` are those of `sinkhorn`, which must converge."""
    check.points("x1", x1, dim=check.points("x0", x0).shape[1], like=x0)
    epsilon = 2 * check.positive("sigma", sigma).item() ** 2
    plan = sinkhorn(x0, x1, epsilon, **options)
    if not plan.converged:
        check.refuse("sigma", f"{sigma:g}, marginal error {plan.error:.1e} after all iterations", "a larger σ")
    log_a, log_b = (normalised(name, options.get(name), x).to(x) for name, x in (("log_a", x0), ("log_b", x1)))
    return CloudBridge(x0, x1, sigma, log_a + plan.f / epsilon, log_b + plan.g / epsilon)


@dataclass(frozen=True)
class MixtureBridge:
    """Schrödinger bridge whose plan is known from any p_0: Brownian motion seen through a Gaussian mixture.

    π(y | x) ∝ N(y; x, σ²I) φ(y),  φ = Σ_k w_k N(r_k, s²I): a mixture over k again, with softmax weights
    (Gushchin et al. 2023; Korotin et al. 2024).  The law of y is whatever it comes to be.
    """

    centres: Tensor  # (K, D)  r_k
    std: float  # s > 0
    sigma: float
    log_w: Tensor | None = None  # (K,)  log w_k, of weights that need not sum to one; None: equal ones

    def __post_init__(self) -> None:
        check.points("centres", self.centres)
        for name, value in (("std", self.std), ("sigma", self.sigma)):
            check.finite(name, check.positive(name, value))
        if self.log_w is not None:
            check.log_weights("log_w", self.log_w, len(self.centres), like=self.centres)

    def forward_drift(self, t: float | Tensor, x: Tensor) -> Tensor:
        """σ²∇log E[φ(X_1) | X_t = x] for x (B, D), t a number or (B,)."""
        check.points("x", x, dim=self.centres.shape[1], like=self.centres)
        t = as_time(t, x)
        column(t, x)
        variance = self.std**2 + self.sigma**2 * (1 - t)
        mean = gaussian_posterior(x, self.centres, variance.sqrt(), log_w=self.log_w).mean
        return column(self.sigma**2 / variance, x) * (mean - x)

    def conditional(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, D) and covariance (B, D, D) of y given x (B, D)."""
        p, gain = _weights(x, self.centres, self._width, self.log_w), self._gain
        mean, eye = p @ self.centres, torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        off = self.centres - mean[:, None]
        spread = torch.einsum("bk,bki,bkj->bij", p, off, off)
        return x + gain * (mean - x), gain * self.std**2 * eye + gain**2 * spread

    def sample(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """One y (B, D) for each x (B, D)."""
        k = _chosen(x, self.centres, self._width, self.log_w, generator)
        z = draw.normal(x, generator)
        return x + self._gain * (self.centres[k] - x) + math.sqrt(self._gain) * self.std * z

    _width = property(lambda self: math.hypot(self.sigma, self.std))
    _gain = property(lambda self: self.sigma**2 / self._width**2)


def _weights(x: Tensor, points: Tensor, sigma: float, log_w: Tensor | None) -> Tensor:
    """The posterior weights (B, N) of points seen from x, which every draw needs one by one."""
    check.points("x", x, dim=points.shape[1], like=points)
    apart = torch.cdist(x, points, compute_mode="donot_use_mm_for_euclid_dist")
    return ((0 if log_w is None else log_w) - (apart / sigma).square() / 2).softmax(1)


def _chosen(x: Tensor, points: Tensor, sigma: float, log_w: Tensor | None, generator: torch.Generator) -> Tensor:
    """The number of a point (B,), drawn from these weights."""
    p = _weights(x, points, sigma, log_w)
    check.generator("generator", generator)
    return torch.multinomial(p.to(generator.device), 1, generator=generator)[:, 0].to(x.device)


def conditional_uvp(bridge: MixtureBridge, x: Tensor, y: Tensor) -> float:
    """cBW₂²-UVP in per cent: how far conditional samples y (B, n, D), n for each x (B, D), are from the known plan.

    100 · E_x W₂²(Gaussians with the moments of y and of π(·|x)) / total variance of y under the plan, the
    latter over the x given (Gushchin et al. 2023).  0 is exact; n samples leave a bias of order tr Cov/n.
    """
    mean, cov = bridge.conditional(x)
    if check.finite("y", check.floating("y", y, like=x)).shape != (len(x), *y.shape[1:2], x.shape[1]) or y.shape[1] < 2:
        check.refuse("y", f"shape {tuple(y.shape)}", f"shape ({len(x)}, n, {x.shape[1]}) with n ≥ 2")
    root, found = power(cov, 0.5), torch.stack([torch.cov(rows.T) for rows in y])
    bures = _trace(cov) + _trace(found) - 2 * _trace(power(root @ found @ root, 0.5))
    w2 = (mean - y.mean(1)).square().sum(1) + bures
    return float(100 * w2.mean() / (_trace(cov).mean() + mean.var(0, correction=0).sum()))


def _trace(S: Tensor) -> Tensor:
    return S.diagonal(dim1=-2, dim2=-1).sum(-1)

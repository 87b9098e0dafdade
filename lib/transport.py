r"""Couplings of two clouds, and the Gaussian Schrödinger bridge in closed form.

Entropic transport of weights a, b on points x, y with cost C_ij = ‖x_i − y_j‖² and temperature ε:

    value = min_π ⟨C, π⟩ + ε KL(π | a ⊗ b),      π_ij = a_i b_j exp((f_i + g_j − C_ij)/ε)
    f_i = −ε log Σ_j b_j exp((g_j − C_ij)/ε),     g_j likewise                                (Sinkhorn)

Each update is the log-normaliser of the one reduction with σ² = ε/2 and log-weights log b + g/ε, so it
needs O(n) memory.  A Brownian reference with variance σ² over [0, 1] corresponds to ε = 2σ².

Between Gaussians the bridge is Gaussian (Janati et al. 2020; Bunne et al. 2023, Table 1):

    Δ = (4 S₀^½ S₁ S₀^½ + σ⁴ I)^½ − σ² I,    C = Cov(X₀, X₁) = ½ S₀^½ Δ S₀^−½
    S_t = (1−t)² S₀ + t² S₁ + t(1−t)(C + Cᵀ + σ² I)

Each eigenvalue of Δ is √(μ + σ⁴) − σ² = μ/(√(μ + σ⁴) + σ²), which does not cancel when σ is large.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import ot
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from lib import check
from lib.kernels import GaussianPosterior, gaussian_posterior
from lib.path import as_time, column

KINDS = ("independent", "exact", "entropic")


class Sinkhorn(NamedTuple):
    """Entropic optimal transport between two weighted clouds."""

    f: Tensor  # (n,) potential at x, units of the squared-distance cost
    g: Tensor  # (m,) potential at y
    value: Tensor  # 0-d  ⟨C, π⟩ + ε KL(π | a ⊗ b), from the dual
    error: Tensor  # 0-d  Σ_j |(πᵀ1)_j − b_j|; the other marginal is exact
    converged: bool  # error ≤ tolerance


def sinkhorn(x: Tensor, y: Tensor, epsilon: float, *, log_a: Tensor | None = None, log_b: Tensor | None = None,
             iterations: int = 2000, tolerance: float = 1e-6, g: Tensor | None = None) -> Sinkhorn:
    """Log-domain Sinkhorn for squared distances between x (n, D) and y (m, D), in O(n + m) memory.

    epsilon     temperature > 0, in units of the cost.
    log_a/log_b log-weights of x (n,) and y (m,), each normalised to sum to one; None means equal.
    iterations  at most so many pairs of updates; one pair is one full iteration of proportional fitting.
    tolerance   on the marginal error in L¹; `converged` says whether it was reached: never silent.
    g           (m,) starting potential, for a warm start.

    Runs in float64 whatever the input, because g/ε is large; results come back in the input's dtype.
    """
    check.points("x", x)
    check.points("y", y, dim=x.shape[1], like=x)
    check.finite("epsilon", check.positive("epsilon", epsilon))
    check.count("iterations", iterations)
    check.positive("tolerance", tolerance)
    log_a, log_b = _normalised("log_a", log_a, x), _normalised("log_b", log_b, y)
    xs, ys, sigma = x.double(), y.double(), math.sqrt(epsilon / 2)
    g = torch.zeros_like(log_b) if g is None else check.vector("g", g, len(y), like=x).double()

    def soft_min(at: Tensor, points: Tensor, log_w: Tensor, potential: Tensor) -> Tensor:
        return -epsilon * gaussian_posterior(at, points, sigma, log_w=log_w + potential / epsilon).log_z

    for _ in range(iterations):
        f = soft_min(xs, ys, log_b, g)
        update = soft_min(ys, xs, log_a, f)
        error = (log_b.exp() * torch.expm1((g - update) / epsilon)).abs().sum()
        value = (log_a.exp() * f).sum() + (log_b.exp() * g).sum()
        if error <= tolerance:
            break
        g = update
    else:
        f = soft_min(xs, ys, log_b, g)
        value = (log_a.exp() * f).sum() + (log_b.exp() * g).sum()
    return Sinkhorn(f.to(x), g.to(x), value.to(x), error.to(x), bool(error <= tolerance))


def _normalised(name: str, log_w: Tensor | None, points: Tensor) -> Tensor:
    if log_w is None:
        return torch.full((len(points),), -math.log(len(points)), dtype=torch.float64, device=points.device)
    log_w = check.log_weights(name, log_w, len(points), like=points).double()
    return log_w - log_w.logsumexp(0)


def couple(x0: Tensor, x1: Tensor, kind: str, *, epsilon: float | None = None,
           generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pair two batches (B, D): returns (x0, x1[j]) with j drawn from a coupling of the two.

    "independent" shuffles x1; "exact" pairs by the optimal assignment for squared distance (POT);
    "entropic" draws each j from the Sinkhorn plan at temperature `epsilon`.  The first two are
    permutations, so both marginals are kept exactly; the third keeps x1's in expectation, to 10⁻³ in L¹.
    """
    check.choice("kind", kind, KINDS)
    check.points("x0", x0)
    check.points("x1", x1, dim=x0.shape[1], like=x0)
    if len(x0) != len(x1):
        check.refuse("x1", f"{len(x1)} points", f"{len(x0)}, as many as x0")
    check.generator("generator", generator)
    if (kind == "entropic") != (epsilon is not None):
        check.refuse("epsilon", epsilon, 'a number > 0 for kind "entropic" and None otherwise')
    cost = torch.cdist(x0.double(), x1.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    if kind == "independent":
        j = torch.randperm(len(x1), generator=generator, device=generator.device)
    elif kind == "exact":
        j = torch.from_numpy(ot.emd([], [], cost.cpu().numpy(), numItermax=10_000_000).argmax(1))
    else:
        plan = sinkhorn(x0, x1, epsilon, tolerance=1e-3)
        if not plan.converged:
            check.refuse("epsilon", f"{epsilon:g}, marginal error {plan.error:.1e} after all iterations",
                         "a larger temperature")
        p = ((plan.g - cost) / epsilon).softmax(1)
        j = torch.multinomial(p.to(generator.device), 1, generator=generator)[:, 0]
    return x0, x1[j.to(x1.device)]


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

    def log_p(self, t: float | Tensor, x: Tensor) -> Tensor:
        """log-density (B,) of the bridge at 0 < t < 1, nats."""
        t = as_time(t, x)
        return (self._seen(0, t, x).log_z + self._seen(1, t, x).log_z
                - x.shape[1] / 2 * torch.log(2 * math.pi * self.sigma**2 * t * (1 - t)))

    def _seen(self, end: int, t: float | Tensor, x: Tensor) -> GaussianPosterior:
        t = as_time(t, x)
        points, log_w, time = (self.x1, self.log_w1, 1 - t) if end else (self.x0, self.log_w0, t)
        return gaussian_posterior(x, points, self.sigma * time.sqrt(), log_w=log_w)


def cloud_bridge(x0: Tensor, x1: Tensor, sigma: float, **options: object) -> CloudBridge:
    """The bridge between x0 (n, D) and x1 (m, D); `options` are those of `sinkhorn`, which must converge."""
    epsilon = 2 * check.positive("sigma", sigma).item() ** 2
    plan = sinkhorn(x0, x1, epsilon, **options)
    if not plan.converged:
        check.refuse("sigma", f"{sigma:g}, marginal error {plan.error:.1e} after all iterations", "a larger σ")
    log_a, log_b = (_normalised(name, options.get(name), x).to(x) for name, x in (("log_a", x0), ("log_b", x1)))
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

    def forward_drift(self, t: float | Tensor, x: Tensor) -> Tensor:
        """σ²∇log E[φ(X_1) | X_t = x] for x (B, D), t a number or (B,)."""
        variance = self.std**2 + self.sigma**2 * (1 - as_time(t, x))
        mean = gaussian_posterior(x, self.centres, variance.sqrt()).mean
        return column(self.sigma**2 / variance, x) * (mean - x)

    def conditional(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, D) and covariance (B, D, D) of y given x (B, D)."""
        p, gain = self._weights(x), self._gain
        mean, eye = p @ self.centres, torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        off = self.centres - mean[:, None]
        spread = torch.einsum("bk,bki,bkj->bij", p, off, off)
        return x + gain * (mean - x), gain * self.std**2 * eye + gain**2 * spread

    def sample(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """One y (B, D) for each x (B, D)."""
        k = torch.multinomial(self._weights(x), 1, generator=generator)[:, 0]
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return x + self._gain * (self.centres[k] - x) + math.sqrt(self._gain) * self.std * z

    @property
    def _gain(self) -> float:
        return self.sigma**2 / (self.sigma**2 + self.std**2)

    def _weights(self, x: Tensor) -> Tensor:
        return (-torch.cdist(x, self.centres).square() / (2 * (self.sigma**2 + self.std**2))).softmax(1)


def conditional_uvp(bridge: MixtureBridge, x: Tensor, y: Tensor) -> float:
    """cBW₂²-UVP in per cent: how far conditional samples y (B, n, D), n for each x (B, D), are from the known plan.

    100 · E_x W₂²(Gaussians with the moments of y and of π(·|x)) / total variance of y under the plan, the
    latter over the x given (Gushchin et al. 2023).  0 is exact; n samples leave a bias of order tr Cov/n.
    """
    mean, cov = bridge.conditional(x)
    root, found = power(cov, 0.5), torch.stack([torch.cov(rows.T) for rows in y])
    bures = _trace(cov) + _trace(found) - 2 * _trace(power(root @ found @ root, 0.5))
    w2 = (mean - y.mean(1)).square().sum(1) + bures
    return float(100 * w2.mean() / (_trace(cov).mean() + mean.var(0, correction=0).sum()))


def _trace(S: Tensor) -> Tensor:
    return S.diagonal(dim1=-2, dim2=-1).sum(-1)

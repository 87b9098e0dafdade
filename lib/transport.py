r"""Couplings of two clouds, and the Gaussian Schrödinger bridge in closed form.

Entropic transport of weights a, b on points x, y with cost C_ij = ‖x_i − y_j‖² and temperature ε:

    value = min_π ⟨C, π⟩ + ε KL(π | a ⊗ b),      π_ij = a_i b_j exp((f_i + g_j − C_ij)/ε)
    f_i = −ε log Σ_j b_j exp((g_j − C_ij)/ε),     g_j likewise                                (Sinkhorn)

Each update is the log-normaliser of the one reduction with σ² = ε/2 and log-weights log b + g/ε, so it
needs O(n) memory.  A Brownian reference with variance σ² over [0, 1] corresponds to ε = 2σ².

Between Gaussians the bridge is Gaussian (Janati et al. 2020; Bunne et al. 2023, Table 1):

    D = (4 S₀^½ S₁ S₀^½ + σ⁴ I)^½,    C = Cov(X₀, X₁) = ½ (S₀^½ D S₀^−½ − σ² I)
    S_t = (1−t)² S₀ + t² S₁ + t(1−t)(C + Cᵀ + σ² I)
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import ot
import torch
from torch import Tensor

from lib import check
from lib.kernels import gaussian_posterior

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
    check.positive("epsilon", epsilon)
    check.count("iterations", iterations)
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
    permutations, so both marginals are kept exactly; the third keeps x1's in expectation.
    """
    check.choice("kind", kind, KINDS)
    check.points("x0", x0)
    check.points("x1", x1, dim=x0.shape[1], like=x0)
    if len(x0) != len(x1):
        check.refuse("x1", f"{len(x1)} points", f"{len(x0)}, as many as x0")
    check.generator("generator", generator)
    if (kind == "entropic") != (epsilon is not None):
        check.refuse("epsilon", epsilon, 'a number > 0 for kind "entropic" and None otherwise')
    if kind == "independent":
        j = torch.randperm(len(x1), generator=generator, device=generator.device)
    elif kind == "exact":
        cost = torch.cdist(x0.double(), x1.double()).square().cpu().numpy()
        j = torch.from_numpy(ot.emd([], [], cost).argmax(1))
    else:
        plan = sinkhorn(x0, x1, epsilon)
        if not plan.converged:
            check.refuse("epsilon", f"{epsilon:g}, marginal error {plan.error:.1e} after all iterations",
                         "a larger temperature")
        p = ((plan.g - torch.cdist(x0, x1).square()) / epsilon).softmax(1)
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
        """Mean (D,) of the marginal at time t."""
        return (1 - t) * self.m0 + t * self.m1

    def covariance(self, t: float | Tensor) -> Tensor:
        """Covariance (D, D) of the marginal at time t."""
        C = self.cross_covariance
        noise = self.sigma**2 * torch.eye(len(self.m0), dtype=C.dtype, device=C.device)
        return (1 - t) ** 2 * self.S0 + t**2 * self.S1 + t * (1 - t) * (C + C.T + noise)

    def forward_drift(self, t: float | Tensor, x: Tensor) -> Tensor:
        """u(t, x) of dX = u dt + σ dW, x (B, D), 0 ≤ t < 1: (E[X_1|x] − x)/(1 − t)."""
        if not 0 <= float(t) < 1:
            check.refuse("t", f"{float(t):g}", "0 ≤ t < 1 for the forward drift")
        gain = (1 - t) * self.cross_covariance.T + t * self.S1
        return (self.m1 + self._regress(gain, t, x) - x) / (1 - t)

    def backward_drift(self, t: float | Tensor, x: Tensor) -> Tensor:
        """Drift of the time-reversed bridge, x (B, D), 0 < t ≤ 1: (E[X_0|x] − x)/t.

        forward + backward = σ²∇log p_t (Nelson); the probability flow is half of forward − backward.
        """
        if not 0 < float(t) <= 1:
            check.refuse("t", f"{float(t):g}", "0 < t ≤ 1 for the backward drift")
        gain = (1 - t) * self.S0 + t * self.cross_covariance
        return (self.m0 + self._regress(gain, t, x) - x) / t

    def _regress(self, gain: Tensor, t: float | Tensor, x: Tensor) -> Tensor:
        return torch.linalg.solve(self.covariance(t), (x - self.mean(t)).T).T @ gain.T


def gaussian_bridge(m0: Tensor, S0: Tensor, m1: Tensor, S1: Tensor, sigma: float) -> GaussianBridge:
    """The bridge between two Gaussians: means (D,), covariances (D, D), a standard deviation σ > 0."""
    check.positive("sigma", sigma)
    d = len(m0)
    for name, v in (("m0", m0), ("m1", m1)):
        check.vector(name, v, d, like=m0)
    for name, S in (("S0", S0), ("S1", S1)):
        covariance(name, S, d, like=m0)
    eye = torch.eye(d, dtype=S0.dtype, device=S0.device)
    root = power(S0, 0.5)
    D = power(4 * root @ S1 @ root + sigma**4 * eye, 0.5)
    C = (root @ D @ power(S0, -0.5) - sigma**2 * eye) / 2
    cost = ((m0 - m1).square().sum() + torch.trace(S0 + S1 - D) + d * sigma**2 * (1 - math.log(2 * sigma**2))
            + sigma**2 * torch.logdet(D + sigma**2 * eye))
    return GaussianBridge(m0, S0, m1, S1, float(sigma), C, cost)


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
    """Power of a symmetric positive semi-definite matrix, by its eigenvalues."""
    values, vectors = torch.linalg.eigh(S)
    return (vectors * values.clamp_min(0) ** exponent) @ vectors.T

r"""Two Markov processes with known spectra: what noise does to every average, in closed form.

A reversible process X_τ with generator L and stationary law π has eigenfunctions Lφ_k = λ_k φ_k, and

    E[φ_k(X_τ) | X_0 = x] = e^{λ_k τ} φ_k(x),     p_τ(y | x)/π(y) = Σ_k e^{λ_k τ} φ_k(x) φ_k(y)/‖φ_k‖²

(the second is Mehler's kernel, or the heat kernel).  Both processes here have L = Σ_j c_j(∂_j² − κ u_j ∂_j) in
coordinates u = xQ, so eigenfunctions are products over axes of one-dimensional ones and eigenvalues add up:

    OrnsteinUhlenbeck   dX = −CX dτ + √(2C) dW    π = N(0, I)            φ_n = He_n/√n!    λ_k = −Σ_j c_j k_j    κ = 1
    ReflectedBrownian   dX = √2 dW, folded        π uniform on [0, π]^d  φ_n = cos nu      λ_k = −Σ_j k_j²      κ = 0

τ = 0 is data, τ = ∞ noise; `house_time` and `house_path` convert to the t of `lib.path`.
Sources: Bakry, Gentil & Ledoux 2014 (sections 2.6 and 2.7); Shen et al. 2024 (arXiv 2406.09084) for their use.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from lib.affine import Affine
from lib.base import check, draw
from lib.base.shapes import column
from lib.kernels import gaussian_posterior
from lib.path import Path
from lib.solve import Field


def house_time(tau: float | Tensor) -> Tensor:
    """The time t = e^{−τ} at which `house_path` has the noise of the Ornstein–Uhlenbeck process with C = I."""
    check.within("tau", tau, 0.0, math.inf)
    return (tau if isinstance(tau, Tensor) else torch.tensor(tau, dtype=torch.float64)).neg().exp()


def house_path() -> Path:
    """That process as a path from noise (t = 0) to data (t = 1): a = t, m = √(1 − t²)."""
    return Path(lambda t: t, lambda t: (1 - t**2).sqrt(), "Ornstein–Uhlenbeck")


class Process:
    """What both share.  `frame` (d, d) has the axes as columns, `rates` (d,) the c_j, `pull` is κ."""

    dim: int
    pull: float
    frame: Tensor
    rates: Tensor
    line_eigenvalues: Callable[[Tensor], Tensor]
    line: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    products: Callable[[int], Tensor]
    curvatures: Callable[[int], Tensor]
    noise: Callable[[Tensor, float | Tensor, torch.Generator], Tensor]
    kernel_score: Callable[..., Tensor]
    transition: Callable[[float | Tensor, Tensor, Tensor], Tensor]
    log_stationary: Callable[[Tensor], Tensor]

    def placed(self, name: str, x: Tensor) -> Tensor:
        """`x` itself if it is finite and has the coordinates of the process last."""
        if check.floating(name, x).shape[-1:] != (self.dim,) or not x.numel():
            check.refuse(name, f"shape {tuple(x.shape)}", f"shape (…, {self.dim})")
        return check.finite(name, x)

    def eigenvalues(self, index: Tensor) -> Tensor:
        """λ_k ≤ 0, shape (M,), for multi-indices (M, d)."""
        return self.line_eigenvalues(index) @ self.rates

    def eigenfunctions(self, x: Tensor, index: Tensor) -> Tensor:
        """φ_k(x), shape (B, M), for x (B, d) and multi-indices (M, d)."""
        check.points("x", x, dim=self.dim)
        if check.dense("index", index).dtype != torch.int64 or index.shape[1:] != (self.dim,) or not len(index):
            check.refuse("index", f"{index.dtype} of shape {tuple(index.shape)}", f"integers of shape (M, {self.dim})")
        check.within("index", index, 0, 1000)
        value, _ = self.line(x @ self.frame.to(x), int(index.max()))
        return value[:, torch.arange(self.dim), index].prod(-1)

    def kernel(self, tau: float | Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Transition density relative to π, p_τ(y | x)/π(y); symmetric; x and y (…, d) broadcast."""
        return (self.transition(tau, x, y) - self.log_stationary(y)).exp()

    def flow(self, score: Field) -> Field:
        """Velocity dx/dτ = −C(κx + score(τ, x)) of the probability flow: data at small τ, π at large τ."""
        C = self.frame * self.rates @ self.frame.T
        return lambda tau, x: -(self.pull * x + score(tau, x)) @ C.to(x)

    def transition_score(self, tau: float | Tensor, x: Tensor, y: Tensor) -> Tensor:
        """∇_y log p_τ(y | x) for x and y (B, d): the target of denoising score matching."""
        with torch.enable_grad():
            y = self.placed("y", y).detach().requires_grad_()
            return torch.autograd.grad(self.transition(tau, x, y).sum(), y)[0]


@dataclass(frozen=True)
class OrnsteinUhlenbeck(Process):
    """dX = −CX dτ + √(2C) dW, C (d, d) symmetric positive definite, None for I; X_τ | x ~ N(e^{−Cτ}x, I − e^{−2Cτ})."""

    dim: int
    C: Tensor | None = None
    pull = 1.0

    def __post_init__(self) -> None:
        check.count("dim", self.dim)
        if self.C is not None:
            check.points("C", self.C, dim=self.dim)
            if self.C.shape != (self.dim, self.dim) or not torch.allclose(self.C, self.C.T):
                check.refuse("C", "a matrix that is not its own transpose", f"symmetric, shape {(self.dim, self.dim)}")
            check.positive("eigenvalues of C", self.rates, shape=(self.dim,))

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        identity = torch.eye(self.dim, dtype=torch.float64)
        return torch.linalg.eigh(self.C.double()) if self.C is not None else (identity.diagonal(), identity)

    rates = property(lambda self: self._spectrum[0])
    frame = property(lambda self: self._spectrum[1])

    @staticmethod
    def line_eigenvalues(n: Tensor) -> Tensor:
        """−n: of one axis at unit rate."""
        return -n.double()

    @staticmethod
    def line(u: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """ψ_0 … ψ_K and their derivatives at u, each (…, K + 1); ψ_n′ = √n ψ_{n−1}."""
        values, slopes = [torch.ones_like(u)], [torch.zeros_like(u)]
        for n in range(1, order + 1):
            slopes.append(math.sqrt(n) * values[-1])
            values.append((u * values[-1] - (slopes[-2] if n > 1 else 0)) / math.sqrt(n))
        return torch.stack(values, -1), torch.stack(slopes, -1)

    @staticmethod
    @cache
    def products(order: int) -> Tensor:
        """c of ψ_a ψ_b = Σ_q c[a, b, q] ψ_q, shape (K + 1, K + 1, 2K + 1)."""
        c = torch.zeros(order + 1, order + 1, 2 * order + 1, dtype=torch.float64)
        half = torch.lgamma(torch.arange(2 * order + 1, dtype=torch.float64) + 1) / 2  # log √n!
        for a, b in torch.cartesian_prod(torch.arange(order + 1), torch.arange(order + 1)).tolist():
            k = torch.arange(min(a, b) + 1)
            c[a, b, a + b - 2 * k] = (half[a] + half[b] + half[a + b - 2 * k]
                                      - 2 * (half[k] + half[a - k] + half[b - k])).exp()
        return c

    @staticmethod
    def curvatures(order: int) -> Tensor:
        """Second derivatives in the eigenbasis: ψ_n″ = √(n(n − 1)) ψ_{n−2}, shape (K + 1, K + 1)."""
        n = torch.arange(2, order + 1, dtype=torch.float64)
        return torch.diag((n * (n - 1)).sqrt(), -2)

    def scales(self, tau: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """e^{−cτ} and √(1 − e^{−2cτ}) along the axes, for τ a number or (B,) and x (B, …, d)."""
        self.placed("x", x)
        decay = column(check.positive("tau", tau, shape=x.shape[:1], like=x), x) * self.rates.to(x)
        return (-decay).exp(), (-torch.expm1(-2 * decay)).sqrt()

    def noise(self, x: Tensor, tau: float | Tensor, generator: torch.Generator) -> Tensor:
        """An exact draw of X_τ from each row of x (B, d); τ a number or (B,)."""
        (r, s), frame = self.scales(tau, x), self.frame.to(x)
        return (r * (x @ frame) + s * draw.normal(x, generator)) @ frame.T

    def transition(self, tau: float | Tensor, x: Tensor, y: Tensor) -> Tensor:
        """log p_τ(y | x) in nats; x and y (…, d) broadcast."""
        (r, s), frame = self.scales(tau, y), self.frame.to(check.floating("x", self.placed("x", x), like=y))
        z = (y @ frame - r * (x @ frame)) / s
        return -(z.square() / 2 + s.log() + math.log(2 * math.pi) / 2).sum(-1)

    def stationary(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws from π, shape (n, d), float64."""
        return draw.normal(torch.empty(check.count("n", n), self.dim, dtype=torch.float64), generator)

    def log_stationary(self, x: Tensor) -> Tensor:
        """log π(x) in nats, for x (…, d)."""
        return -(self.placed("x", x).square() + math.log(2 * math.pi)).sum(-1) / 2

    def kernel_score(self, data: Tensor, tau: float, x: Tensor, log_w: Tensor | None = None) -> Tensor:
        """Score of the noised data set: each axis in units of its own noise, so that one softmax serves any C."""
        (r, s), frame = self.scales(tau, x[0]), self.frame.to(x)
        q, y = x @ frame / s, data @ frame * (r / s)
        return (gaussian_posterior(q, y, 1.0, log_w=log_w).mean - q) / s @ frame.T


@dataclass(frozen=True)
class ReflectedBrownian(Process):
    """dX = √2 dW on the box [0, π]^d, reflected at its walls: a free path folded at the mirror images ±x + 2πm."""

    dim: int
    pull = 0.0

    def __post_init__(self) -> None:
        check.count("dim", self.dim)

    rates = property(lambda self: torch.ones(self.dim, dtype=torch.float64))
    frame = property(lambda self: torch.eye(self.dim, dtype=torch.float64))

    @staticmethod
    def line_eigenvalues(k: Tensor) -> Tensor:
        """−k²: of one axis."""
        return -k.double().square()

    @staticmethod
    def line(u: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """cos ku and its derivative for k = 0 … K, each (…, K + 1)."""
        k = torch.arange(order + 1, dtype=u.dtype, device=u.device)
        return (u[..., None] * k).cos(), -k * (u[..., None] * k).sin()

    @staticmethod
    @cache
    def products(order: int) -> Tensor:
        """cos au cos bu = ½ cos (a + b)u + ½ cos (a − b)u, shape (K + 1, K + 1, 2K + 1)."""
        k, unit = torch.arange(order + 1), torch.eye(2 * order + 1, dtype=torch.float64)
        return (unit[k[:, None] + k] + unit[(k[:, None] - k).abs()]) / 2

    @staticmethod
    def curvatures(order: int) -> Tensor:
        """Second derivatives in the eigenbasis: diag(−k²), shape (K + 1, K + 1)."""
        return torch.diag(-torch.arange(order + 1, dtype=torch.float64).square())

    def noise(self, x: Tensor, tau: float | Tensor, generator: torch.Generator) -> Tensor:
        """An exact draw of X_τ from each row of x (B, d); τ a number or (B,)."""
        tau = check.finite("tau", check.positive("tau", tau, shape=self.placed("x", x).shape[:1], like=x))
        free = (x + column(2 * tau, x).sqrt() * draw.normal(x, generator)).remainder(2 * math.pi)
        return torch.minimum(free, 2 * math.pi - free)

    def images(self, tau: float, x: Tensor) -> Tensor:
        """Mirror images of x (…, d), per coordinate, that are near enough to matter at time τ: (…, d, I)."""
        reach = math.ceil((math.pi + 9 * math.sqrt(2 * tau)) / (2 * math.pi))
        shift = 2 * math.pi * torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        return torch.cat([x[..., None] + shift, shift - x[..., None]], -1)

    def transition(self, tau: float | Tensor, x: Tensor, y: Tensor) -> Tensor:
        """log p_τ(y | x) in nats; x and y (…, d) broadcast."""
        check.floating("x", self.placed("x", x), like=self.placed("y", y))
        tau = column(check.finite("tau", check.positive("tau", tau, shape=y.shape[:1], like=y)), y)
        step = self.images(float(tau.max()), x) - y[..., None]
        log_p = -step.square() / (4 * tau[..., None]) - (4 * math.pi * tau[..., None]).log() / 2
        return log_p.logsumexp(-1).sum(-1)

    def stationary(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws from π, shape (n, d), float64."""
        return math.pi * draw.uniform(torch.empty(check.count("n", n), self.dim, dtype=torch.float64), generator)

    def log_stationary(self, x: Tensor) -> Tensor:
        """log π(x) = −d log π in nats, for x (…, d) in the box."""
        return self.placed("x", x).new_full(x.shape[:-1], -self.dim * math.log(math.pi))

    def kernel_score(self, data: Tensor, tau: float, x: Tensor, log_w: Tensor | None = None) -> Tensor:
        """Score of the noised data set, one softmax over its mirror images: one image per axis, every combination."""
        images, axes = self.images(tau, data), torch.arange(self.dim)
        which = torch.cartesian_prod(*[torch.arange(images.shape[2])] * self.dim).reshape(-1, self.dim)
        cloud = images[:, axes, which].flatten(0, 1)
        log_w = None if log_w is None else log_w.repeat_interleave(len(which))
        return (gaussian_posterior(x, cloud, math.sqrt(2 * tau), log_w=log_w).mean - x) / (2 * tau)


def into_box(x: Tensor, margin: float = 0.1) -> Affine:
    """The affine map of each coordinate's range onto [margin·π, (1 − margin)·π], for `ReflectedBrownian`."""
    low, high = check.points("x", x).aminmax(dim=0)
    check.within("margin", margin, 0.0, 0.499)
    if bool((low == high).any()):
        check.refuse("x", f"{int((low == high).sum())} constant coordinates", "coordinates that vary")
    scale = (high - low) / (math.pi * (1 - 2 * margin))
    return Affine(low - margin * math.pi * scale, scale)

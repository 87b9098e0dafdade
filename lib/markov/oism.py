r"""Operator-informed score matching: scores of noised data by linear algebra in an eigenbasis.

For a process of `lib.markov.process` (generator L, Lφ_k = λ_k φ_k, stationary
law π, Γ(f, g) = ½(L(fg) − fLg − gLf)) write the score of X_τ as ∇log π + ∇f with f = Σ_m α_m φ_m.  Integration by
parts turns the Fisher divergence into α·Aα − 2b·α + const with A_mn = E Γ(φ_m, φ_n)(X_τ), b_m = −E Lφ_m(X_τ), and
the semigroup turns these averages at τ into averages over the data: with φ_m φ_n = Σ_q c^q_mn φ_q,

    A_mn = Σ_q ½(λ_q − λ_m − λ_n) c^q_mn e^{λ_q τ} M_q,     b_m = −λ_m e^{λ_m τ} M_m,     M_q = E φ_q(X_0).

One vector of moments serves every τ.  Order 2 is the Gaussian score; order ∞ is `kernel_score`, which memorises.
Shrinkage c mixes the data with π, M_q → (1 − c)M_q for q ≠ 0: a ridge c/(1 − c) on the Dirichlet energy E_π Γ(f, f).

Source: Shen, Wang, Riabiz & Oates, Operator-informed score matching for Markov diffusion models (arXiv 2406.09084);
the formulas were derived for this library and are tested against quadrature.
"""
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor, nn

from lib.base import check
from lib.base.shapes import column
from lib.markov.process import Process
from lib.solve import Flow

LARGEST_BASIS = 5000  # functions in one linear system
LARGEST_CONDITION = 1e13
LEVELS = 2048  # noise levels that a fit remembers
SHRINKAGES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)  # tried where held-out data choose


@dataclass(frozen=True, eq=False)
class OISM:
    """Scores at every noise level from one set of moments; made by `fit_oism`.

    Coordinates u = xQ fall into G blocks of p axes (one block for a joint basis, d blocks of one axis for a separable
    one) and every block has the same M orders.  Vectors over the basis run over blocks, then over `index`.
    """

    process: Process
    frame: Tensor  # (d, d)  Q
    rates: Tensor  # (G, p)
    index: Tensor  # (M, p)
    spectrum: Tensor  # (G, 2K + 1, …, 2K + 1)  λ_q
    moments: Tensor  # (G, 2K + 1, …, 2K + 1)  M_q
    covariance: Tensor  # (G, p, p) of the data
    low: Tensor  # (G, p) of the data
    high: Tensor
    shrinkage: float
    tails: float
    held_out: "OISM | None" = None
    levels: Callable[[float], tuple[Tensor, ...]] = field(init=False, repr=False)  # `_level`, with a memory

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", functools.lru_cache(LEVELS)(self._level))

    def __reduce__(self) -> tuple:
        """Copies and pickles take no memory of levels along."""
        return OISM, tuple(getattr(self, made.name) for made in fields(self) if made.init)

    def gram(self, tau: float) -> Tensor:
        """A_τ, symmetric, (GM, GM)."""
        return torch.block_diag(*self._gram(self._moments_at(tau, self.shrinkage)))

    def rhs(self, tau: float, ansatz: str = "relative") -> Tensor:
        """b_τ, (GM,), for the score ∇log π + ∇f ("relative") or ∇f ("absolute")."""
        check.choice("ansatz", ansatz, ("relative", "absolute"))
        rhs = self._rhs if ansatz == "relative" else self._absolute_rhs
        return rhs(self._moments_at(tau, self.shrinkage)).flatten()

    def coefficients(self, tau: float) -> Tensor:
        """α_τ = A_τ⁻¹b_τ of f ≈ log dρ_τ/dπ, (GM,); solved in float64, once for each τ."""
        check.within("tau", tau, 0.0, math.inf)
        return self._pick(self.levels(float(tau))[0]).flatten()

    def score(self, tau: float | Tensor, x: Tensor) -> Tensor:
        """∇log ρ_τ(x), shape (B, d), for τ a number or (B,); each distinct τ is solved for once and kept."""
        u, slope, _ = self._expand(tau, x)
        return ((slope - self.process.pull * u) @ self.frame.T).to(x.dtype)

    def score_divergence(self, tau: float | Tensor, x: Tensor) -> Tensor:
        """∇·score in closed form, shape (B,)."""
        return (self._expand(tau, x)[2] - self.process.pull).sum(1).to(x.dtype)

    def flow(self, tau: float | Tensor, x: Tensor) -> Flow:
        """Probability flow dx/dτ = −C∇f, (B, d), and its divergence, (B,), from one expansion.

        It leads from the data at small τ to π at large τ; `solve.log_likelihood` takes it as it is.
        """
        _, slope, curve = self._expand(tau, x)
        rates = -self.rates.flatten()
        return Flow(((rates * slope) @ self.frame.T).to(x.dtype), (rates * curve).sum(1).to(x.dtype))

    def velocity(self, tau: float | Tensor, x: Tensor) -> Tensor:
        """The velocity of `flow`, (B, d)."""
        return self.flow(tau, x).velocity

    @property
    def order(self) -> int:
        """Largest order along an axis."""
        return int(self.index.max())

    def _pick(self, grid: Tensor) -> Tensor:
        """The basis functions' entries of a grid over all orders, (G, M)."""
        return grid[(slice(None), *self.index.T)]

    def _moments_at(self, tau: float, shrinkage: float) -> Tensor:
        """E φ_q(X_τ) over the shrunk data, like `moments`."""
        check.within("tau", tau, 0.0, math.inf)
        moments = (1 - shrinkage) * self.moments * (float(tau) * self.spectrum).exp()
        moments.flatten(1)[:, 0] = 1.0
        return moments

    def _sum_over_axes(self, moments: Tensor, special: Tensor, plain: Tensor) -> Tensor:
        """Σ_j c_j Σ_q M_q Π_i T_i[…, q_i] with the table T_j = special and all others plain."""
        total = 0.0
        for axis in range(self.rates.shape[1]):
            term = moments * self.rates[:, axis].reshape(-1, *[1] * (moments.dim() - 1))
            for other in range(self.rates.shape[1]):  # each step eats the first moment axis and appends the table's
                table = (special if other == axis else plain).to(term)
                term = torch.tensordot(term, table, dims=([1], [table.dim() - 1]))
            total = total + term
        return total

    def _gram(self, moments: Tensor) -> Tensor:
        """E Γ(φ_m, φ_n), (G, M, M)."""
        p = self.index.shape[1]
        products = self.process.products(self.order)
        line = self.process.line_eigenvalues(torch.arange(products.shape[2]))
        carre = (line - line[:len(products), None, None] - line[:len(products), None]) / 2 * products
        pairs = self._sum_over_axes(moments, carre, products)  # (G, m_1, n_1, …, m_p, n_p)
        pairs = pairs.permute(0, *range(1, 2 * p, 2), *range(2, 2 * p + 1, 2))
        return pairs[(slice(None), *self.index.T[:, :, None], *self.index.T[:, None])]

    def _rhs(self, moments: Tensor) -> Tensor:
        """−E Lφ_m, (G, M)."""
        return self._pick(-self.spectrum * moments)

    def _absolute_rhs(self, moments: Tensor) -> Tensor:
        """−E tr(C∇²φ_m), (G, M)."""
        second = nn.functional.pad(self.process.curvatures(self.order), (0, self.order))
        return -self._pick(self._sum_over_axes(moments, second, torch.eye(*second.shape)))

    def _level(self, tau: float) -> tuple[Tensor, ...]:
        """α on the grid of orders (G, K + 1, …); slope (G, p, p) and beginnings (G, p) of the Gaussian tails."""
        alpha = self.moments.new_zeros(len(self.rates), *[self.order + 1] * self.index.shape[1])
        alpha[(slice(None), *self.index.T)] = self._solve(tau)
        r, variance = (-tau * self.rates).exp(), -torch.expm1(-2 * tau * self.rates)
        precision = torch.linalg.inv(r[:, :, None] * self.covariance * r[:, None] + torch.diag_embed(variance))
        excess = self.process.pull * torch.eye(r.shape[1]).to(r) - precision
        reach = variance.sqrt() * self.tails if self.tails < math.inf else torch.full_like(variance, math.inf)
        return alpha, excess, r * self.low - reach, r * self.high + reach

    def _solve(self, tau: float) -> Tensor:
        """α, (G, M): with the given shrinkage, or with the order and shrinkage that held-out moments prefer."""
        a, b = (f(self._moments_at(tau, 0.0)) for f in (self._gram, self._rhs))
        energy = self._gram(self._moments_at(tau, 1.0)).diagonal(dim1=1, dim2=2)  # orthogonal under π
        if self.held_out is None:
            (alpha, low, high), = _solutions(a, b, energy, (self.shrinkage,))
            if not bool((high < LARGEST_CONDITION * low).all()):
                worst = float((high / low.clamp_min(0)).max())
                check.refuse("order", f"{self.order} with condition number {worst:.1e} at τ = {tau:.3g}",
                             f"at most {LARGEST_CONDITION:.0e}: a lower order, a larger τ, or shrinkage of at least "
                             f"{float((10 * high / LARGEST_CONDITION - 2 * low.clamp_max(0)).max()):.0e}")
            return alpha
        moments = self.held_out._moments_at(tau, 0.0)
        test = self.held_out._gram(moments), self.held_out._rhs(moments)
        best, least = torch.zeros_like(b), torch.full_like(b[:, 0], math.inf)
        total = self.index.sum(1)
        size = total if int(total.max()) == self.order else self.index.amax(1)
        for order in range(self.order, 0, -2):
            keep = size <= order
            for part, low, high in _solutions(a[:, keep][:, :, keep], b[:, keep], energy[:, keep], SHRINKAGES):
                alpha = torch.zeros_like(b)
                alpha[:, keep] = part
                loss = _loss(alpha, *test)
                better = (loss < least) & (high < LARGEST_CONDITION * low)
                best, least = torch.where(better[:, None], alpha, best), torch.where(better, loss, least)
        return best

    def _expand(self, tau: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u = xQ, ∂f/∂u_j and ∂²f/∂u_j², each (B, d) in float64; beyond the noised data ∇f goes on linearly."""
        check.points("x", x, dim=len(self.frame))
        check.within("tau", tau, 0.0, math.inf)
        if isinstance(tau, Tensor) and tau.dim():
            column(tau, x)
            distinct, which = tau.unique(return_inverse=True)
            parts = zip(*map(self.levels, distinct.tolist()), strict=True)
            alpha, excess, low, high = (torch.stack(part)[which] for part in parts)
        else:
            alpha, excess, low, high = (part[None] for part in self.levels(float(tau)))
        u = (x.double() @ self.frame).reshape(len(x), *self.rates.shape)
        near = torch.maximum(torch.minimum(u, high), low)
        value, slope = self.process.line(near, alpha.shape[-1] - 1)
        lines = self.process.line_eigenvalues(torch.arange(alpha.shape[-1], device=x.device))
        curve = lines * value + self.process.pull * near[..., None] * slope  # from Lφ = λφ on a line

        def along(axis: int, special: Tensor) -> Tensor:
            """Σ_k α_k Π_i φ_{k_i}(u_i) with another factor along one axis, (B, G)."""
            terms = alpha
            for other in range(u.shape[2]):
                terms = torch.einsum("bgk...,bgk->bg...", terms, (special if other == axis else value)[:, :, other])
            return terms

        first, second = (torch.stack([along(axis, d) for axis in range(u.shape[2])], 2) for d in (slope, curve))
        first = first + (excess @ (u - near)[..., None])[..., 0]
        second = torch.where(u == near, second, excess.diagonal(dim1=2, dim2=3))
        return u.flatten(1), first.flatten(1), second.flatten(1)


def _loss(alpha: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """α·Aα − 2b·α for every block, (G,)."""
    return torch.einsum("gm,gmn,gn->g", alpha, a, alpha) - 2 * (b * alpha).sum(1)


def _solutions(a: Tensor, b: Tensor, energy: Tensor, shrinkages: tuple[float, ...]) -> Iterator[tuple[Tensor, ...]]:
    """α of ((1 − c)A + cD)α = (1 − c)b, and the extreme eigenvalues (G,) in the metric D = diag(energy), for each c.

    Scaled by D the system is diagonal in one basis for every c: one eigendecomposition serves them all.
    """
    scale = energy.rsqrt()
    w, v = torch.linalg.eigh(scale[:, :, None] * a * scale[:, None])
    beta = (v.mT @ (scale * b)[..., None])[..., 0]
    for c in shrinkages:
        values = (1 - c) * w + c
        yield scale * (v @ ((1 - c) * beta / values)[..., None])[..., 0], values[:, 0], values[:, -1]


def fit_oism(data: Tensor, process: Process, order: int, basis: str = "tensor", *, shrinkage: float = 0.0,
             held_out: Tensor | None = None, tails: float = 3.0, log_w: Tensor | None = None) -> OISM:
    """Moments of data (N, d), taken once: the score of `process` started at the data, at every τ, by linear algebra.

    order      largest order K, per axis, or in total for the basis "total".
    basis      "tensor" and "total" join all axes, for d ≤ 3; "separable" is one expansion for each axis of the
               process, "pca" one for each principal axis of the data (C = I only), at a cost linear in d.
    shrinkage  weight c in [0, 1) of the stationary law mixed into the data.
    held_out   (N′, d): at each τ the order (in steps of two) and the shrinkage with the least loss on these data
               are taken instead of the ones given, for each block on its own.
    tails      standard deviations of the noise beyond the data's range at which the Gaussian score of the data
               takes over, because polynomials may not confine; ∞ never.  Cosines need none.
    log_w      (N,) logarithms of weights that sum to one.

    The process acts on the data as they are: scale them first to about unit variance (`data.normaliser`) or into
    the box (`into_box`).  Raises ValueError for data outside the box, a constant coordinate, a basis too large and,
    when a score is asked for, an order too high for the data at that τ (with the condition number).
    """
    check.points("data", data, dim=process.dim)
    check.count("order", order)
    check.choice("basis", basis, ("tensor", "total", "separable", "pca"))
    check.within("shrinkage", shrinkage, 0.0, 1 - 1e-12)
    check.within("tails", tails, 0.0, math.inf)
    p = process.dim if basis in ("tensor", "total") else 1
    if (order + 1) ** p > LARGEST_BASIS:
        check.refuse("basis", f"{basis!r} with {order + 1}^{p} functions", f"at most {LARGEST_BASIS}, or 'separable'")
    if log_w is None:
        log_w = data.new_full((len(data),), -math.log(len(data)))
    check.log_weights("log_w", log_w, len(data), like=data)
    if abs(float(log_w.logsumexp(0))) > 1e-4:
        check.refuse("log_w", f"weights that sum to {float(log_w.exp().sum()):g}", "weights that sum to 1")
    if bool((constant := data.amin(0) == data.amax(0)).any()):
        check.refuse("data", f"{int(constant.sum())} constant coordinates", "coordinates that vary")
    if process.pull == 0:
        check.within("data", data, 0.0, math.pi + 1e-6)
        tails = math.inf
    x, w = data.double(), log_w.double().softmax(0)
    frame, rates = process.frame.to(x), process.rates.to(x).reshape(-1, p)
    if basis == "pca":
        if bool((rates != rates[0]).any()):
            check.refuse("basis", "'pca' with unequal rates", "C = I, which commutes with every rotation")
        frame = torch.linalg.eigh(torch.cov(x.T, aweights=w).reshape(process.dim, process.dim)).eigenvectors
    index = _grid(order, p)[1:].to(x.device)
    if basis == "total":
        index = index[index.sum(1) <= order]
    u = (x @ frame).reshape(len(x), *rates.shape)
    spectrum = rates @ process.line_eigenvalues(_grid(2 * order, p).to(x.device)).T
    shape = (len(rates), *[2 * order + 1] * p)
    centred = u - torch.einsum("n,ngp->gp", w, u)
    fit = OISM(process, frame, rates, index, spectrum.reshape(shape), _moments(process, u, w, order).reshape(shape),
               torch.einsum("n,ngi,ngj->gij", w, centred, centred), *u.aminmax(dim=0), shrinkage=shrinkage, tails=tails)
    if held_out is None:
        return fit
    check.points("held_out", held_out, dim=process.dim, like=data)
    v = (held_out.double() @ frame).reshape(len(held_out), *rates.shape)
    equal = v.new_full((len(v),), 1 / len(v))
    return replace(fit, held_out=replace(fit, moments=_moments(process, v, equal, order).reshape(shape)))


def _grid(order: int, p: int) -> Tensor:
    """All multi-indices of p orders from 0 to `order`, the last fastest."""
    return torch.cartesian_prod(*[torch.arange(order + 1)] * p).reshape(-1, p)


def _moments(process: Process, u: Tensor, w: Tensor, order: int) -> Tensor:
    """Σ_n w_n Π_i φ_{q_i}(u_ni) for all orders up to 2·order, (G, Π), in blocks of points."""
    total = 0.0
    for part, weight in zip(u.split(8192), w.split(8192), strict=True):
        value, _ = process.line(part, 2 * order)  # (n, G, p, 2K + 1)
        product = weight[:, None, None].expand(-1, u.shape[1], 1)
        for axis in range(u.shape[2] - 1):
            product = (product[..., None] * value[:, :, axis, None]).flatten(2)
        total = total + torch.einsum("nga,ngq->gaq", product, value[:, :, -1])
    return total

r"""The one reduction: a single pass over the data carries all five papers.

For points y_j with log-weights w_j seen from x through Gaussian noise of standard deviation σ,

    ℓ_j(x)   = w_j − ‖x − y_j‖² / 2σ²
    log_z(x) = log Σ_j exp ℓ_j                          log-normaliser
    p_j(x)   = exp(ℓ_j − log_z)                         posterior weights, a softmax over the data
    mean(x)  = Σ_j p_j y_j                              E[y | x]
    spread(x)= Σ_j p_j ‖y_j − mean‖²                    tr Cov[y | x]

The density of the noised data set is log_z − (D/2) log 2πσ², its score (mean − x)/σ² (Tweedie), and
the Jacobian of the mean is Cov[y | x]/σ², with trace spread/σ².

Four ways to compute it, with one meaning:

    "definition"  forms the B × N matrix of ℓ in float64.  Short, differentiable in every mode and to every
                  order, and what the others are tested against.
    "cpu"         never forms it.  With   q = [x/σ², −1/2σ², 1],  k = [y, ‖y‖², w]   we have
                  q·k_j = ℓ_j + ‖x‖²/2σ², so torch's fused attention streams the softmax in compiled
                  code, and with values [y, ‖y‖²] returns the mean and E‖y‖²; memory O(B + N).
    "blocks"      the same attention by matrix products over blocks of bounded size, on any device: what a
                  GPU does where Triton is missing or D is large, when the products are all the work.
    "triton"      `lib.kernels_gpu`, for tensors on an NVIDIA GPU, of up to 64 columns.

Expanding the square cancels when σ is small against the data: in arithmetic of precision ε, ℓ is off
by at most δ ≈ ε · max(‖x‖R + R²/2)/σ² + ε·max|w|, R = max‖y‖ after centring, so the mean by 2δR.  The
attention runs in float32 where that bound keeps the mean within 10⁻³σ and log_z within 10⁻⁴, and in
float64 everywhere else: accuracy first, speed where it is safe.

Backward passes stream as well: they recompute p_j from log_z, in the arithmetic of the forward pass.
"""
from __future__ import annotations

import functools
import importlib.util
import math
from typing import NamedTuple

import torch
from torch import Tensor

from lib import check

BACKENDS = ("definition", "cpu", "blocks", "triton")
MEAN_TOLERANCE = 1e-3  # of σ
LOG_Z_TOLERANCE = 1e-4  # nats
ROWS, COLUMNS = 2048, 16384  # of a block of logits: 0.13 GB in float32
TRITON_COLUMNS = 64  # widest x, y and values of the Triton kernels


class GaussianPosterior(NamedTuple):
    """What one pass over the data returns, for B queries."""

    log_z: Tensor  # (B,)    log Σ_j exp(log_w_j − ‖x − y_j‖²/2σ²), nats
    mean: Tensor  # (B, D)  posterior mean of y, or (B, V) of `values`
    spread: Tensor  # (B,)    trace of the posterior covariance of y, or of `values`; ≥ 0


def gaussian_posterior(x: Tensor, y: Tensor, sigma: float | Tensor, *, log_w: Tensor | None = None,
                       values: Tensor | None = None, backend: str | None = None) -> GaussianPosterior:
    """Log-normaliser, posterior mean and posterior spread of points `y` seen from `x` with noise `sigma`.

    x       (B, D) queries, float32 or float64; bfloat16 trades accuracy for speed, see below.
    y       (N, D) points, same dtype and device.
    sigma   standard deviation of the noise, > 0: a number or (B,), one for each query.
    log_w   (N,) log-weights, used as given (−inf masks a point); None means −log N each.
    values  (N, V) averaged in place of `y`.
    backend None chooses: "cpu" for CPU tensors, "triton" or "blocks" elsewhere, "definition" inside functorch
            transforms and torch.compile; a name insists.

    Differentiable in x, y, sigma, log_w and values; once, except by "definition".  The mean is within 1e-3·σ,
    log_z within 1e-4 nats and 2 ulp, the spread within 1e-3·σ² + 0.1 %, for σ down to 1e-3 of the data's scale;
    the mean of `values` within 2e-4 of their radius.
    Raises ValueError naming the argument for wrong shapes or dtypes, empty or non-finite input, σ ≤ 0.

    In bfloat16 the results are float32, of the points as bfloat16 holds them (3 digits: that rounding is the
    caller's).  Where tensor cores then take them as they are, the weights p_j are rounded as well, which moves
    log_z by at most 2⁻⁸, the mean by 2⁻⁸·√spread and the spread by 1 %.
    """
    rounded = all(isinstance(t, Tensor) and t.dtype == torch.bfloat16 for t in (x, y))
    if rounded:
        x, y, values = x.float(), y.float(), values.float() if isinstance(values, Tensor) else values
    check.points("x", x)
    check.points("y", y, dim=x.shape[1], like=x)
    if values is not None:
        check.points("values", values, like=x)
        if len(values) != len(y):
            check.refuse("values", f"{len(values)} rows", f"{len(y)} rows, one for each point of y")
    sigma = check.positive("sigma", sigma, shape=(len(x),), like=x)
    opaque = check.opaque(x, y, sigma, log_w, values)
    if log_w is not None:
        check.log_weights("log_w", log_w, len(y), like=x)
        if not opaque and bool((log_w == -math.inf).any()):
            keep = log_w > -math.inf
            y, log_w, values = y[keep], log_w[keep], None if values is None else values[keep]
    check.choice("backend", backend, (None, *BACKENDS))
    if backend is None:
        backend = "definition" if opaque else _fastest(x, y if values is None else values)
    if backend == "triton":
        from lib import kernels_gpu  # here, so that nothing else imports triton
        return kernels_gpu.posterior(x, y, sigma, log_w, values, rounded)
    if log_w is None:
        log_w = x.new_full((len(y),), -math.log(len(y)))
    if backend == "definition":
        return definition(x, y, sigma, log_w, values)
    if backend == "cpu" and x.device.type != "cpu":
        check.refuse("backend", f"'cpu' for tensors on {x.device}", "tensors on the CPU")
    return _attention(x, y, sigma, log_w, values, fused=backend == "cpu")


def _fastest(x: Tensor, v: Tensor) -> str:
    if x.device.type == "cpu":
        return "cpu"
    narrow = max(x.shape[1], v.shape[1]) <= TRITON_COLUMNS
    return "triton" if x.is_cuda and narrow and _triton_is_here() else "blocks"


@functools.cache
def _triton_is_here() -> bool:
    return importlib.util.find_spec("triton") is not None


def definition(x: Tensor, y: Tensor, sigma: Tensor, log_w: Tensor, values: Tensor | None) -> GaussianPosterior:
    """The formulas of this module, as they stand, in float64; forms the B × N matrix."""
    dtype = x.dtype
    x, y, log_w, sigma = x.double(), y.double(), log_w.double(), sigma.double().reshape(-1, 1)
    v = y if values is None else values.double()
    centre = y.mean(0)
    x, y = x - centre, y - centre
    logits = log_w + (x @ y.T - y.square().sum(1) / 2) / sigma**2  # ℓ + ‖x‖²/2σ², of which the softmax is the same
    p = logits.softmax(1)
    mean = p @ v
    origin = v.mean(0)
    spread = p @ (v - origin).square().sum(1) - (mean - origin).square().sum(1)
    log_z = logits.logsumexp(1) - (x.square() / (2 * sigma**2)).sum(1)
    return GaussianPosterior(log_z.to(dtype), mean.to(dtype), spread.clamp_min(0).to(dtype))


def _attention(x: Tensor, y: Tensor, sigma: Tensor, log_w: Tensor, values: Tensor | None,
               fused: bool) -> GaussianPosterior:
    """Attention on augmented vectors, in the lowest precision that meets the tolerances."""
    dtype = x.dtype
    v = y if values is None else values
    centre, origin = y.detach().mean(0), v.detach().mean(0)
    own = (x.double() - centre.double()).square().sum(1) / (2 * sigma.double() ** 2)  # may be far larger than log_z
    reduced = x.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"  # the user's choice for other products
    if dtype == torch.float32 and (reduced or not products_are_enough(
            x - centre, y - centre, sigma, log_w, torch.finfo(dtype).eps)):
        x, y, v, sigma, log_w, centre, origin = (t.double() for t in (x, y, v, sigma, log_w, centre, origin))
    x, y, v = x - centre, y - centre, v - origin
    precision = (1 / sigma**2).expand(len(x))[:, None]
    width = max(x.shape[1], v.shape[1]) + 2
    width = width if fused else -(-width // 8) * 8  # matrix products like aligned rows
    q = _padded(width, x * precision, -precision / 2, torch.ones_like(precision))
    k = _padded(width, y, y.square().sum(1, keepdim=True), log_w[:, None])
    v = _padded(width, v, v.square().sum(1, keepdim=True), torch.ones_like(log_w)[:, None])
    average, lse = _Attention.apply(q, k, v, fused)
    columns = len(origin)
    mean = average[:, :columns]
    log_z = lse.double() - own
    spread = average[:, columns] - mean.square().sum(1)
    return GaussianPosterior(log_z.to(dtype), (mean + origin).to(dtype), spread.clamp_min(0).to(dtype))


def _padded(width: int, *columns: Tensor) -> Tensor:
    """Columns side by side, with zeros before the last up to `width`."""
    *first, last = columns
    missing = width - sum(c.shape[1] for c in columns)
    return torch.cat([*first, last.new_zeros(len(last), missing), last], 1)


def tolerable(delta: Tensor, radius: Tensor, sigma: Tensor) -> Tensor:
    """Where logits off by δ keep log_z and the mean, of points within `radius` of it, in their tolerances."""
    return (delta <= LOG_Z_TOLERANCE) & (2 * delta * radius <= MEAN_TOLERANCE * sigma)


def products_are_enough(x: Tensor, y: Tensor, sigma: Tensor, log_w: Tensor | None, eps: float) -> bool:
    """Whether the bound of this module's docstring meets the tolerances for all queries; x and y centred."""
    x, y, sigma = x.detach(), y.detach(), sigma.detach()
    radius = y.norm(dim=1).max()
    delta = (x.norm(dim=1) * radius + radius**2 / 2) / sigma**2
    delta = delta if log_w is None else delta + log_w.detach().abs().max()
    return bool(tolerable(eps * delta, radius, sigma).all())


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ) v and the log-sum-exp of its logits, both differentiable, in streaming passes.

    The backward pass of attention has no gradient for the log-sum-exp g.  It forms, with o the output,
    dS = p ∘ (dO·v − dO·o), and we need p ∘ (dO·v − dO·o + g): the last column of v is 1, so handing
    the pass dO = g and o = 0 in that column adds exactly g.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, fused: bool) -> tuple[Tensor, Tensor]:
        with torch.autocast(q.device.type, enabled=False):
            out, lse = (_fused if fused else _blocked)(q, k, v)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.fused = fused
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        grad_out = torch.cat([grad_out[:, :-1], grad_lse[:, None]], 1)
        out = torch.cat([out[:, :-1], torch.zeros_like(out[:, -1:])], 1)
        with torch.autocast(q.device.type, enabled=False):
            grads = (_fused_backward if ctx.fused else _blocked_backward)(grad_out, q, k, v, out, lse)
        return *grads, None


def _fused(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(t[None, None] for t in (q, k, v)), scale=1.0)
    return out[0, 0], lse[0, 0]


def _fused_backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, ...]:
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *(t[None, None] for t in (grad_out, q, k, v, out, lse)), 0.0, False, scale=1.0)
    return tuple(g[0, 0] for g in grads)


def _blocked(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    outs, lses = [], []
    for rows in q.split(ROWS):
        top, mass, out = rows.new_full((len(rows), 1), -math.inf), 0, 0
        for keys, vals in zip(k.split(COLUMNS), v.split(COLUMNS), strict=True):
            logits = rows @ keys.T
            before, top = top, torch.maximum(top, logits.amax(1, keepdim=True))
            p, old = logits.sub_(top).exp_(), (before - top).exp()
            mass, out = mass * old + p.sum(1, keepdim=True), out * old + p @ vals
        outs.append(out / mass)
        lses.append((top + mass.log())[:, 0])
    return torch.cat(outs), torch.cat(lses)


def _blocked_backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor,
                      lse: Tensor) -> tuple[Tensor, ...]:
    dq, dk, dv = (torch.zeros_like(t) for t in (q, k, v))
    shift = (grad_out * out).sum(1, keepdim=True)
    for i in range(0, len(q), ROWS):
        rows = slice(i, i + ROWS)
        for j in range(0, len(k), COLUMNS):
            cols = slice(j, j + COLUMNS)
            p = (q[rows] @ k[cols].T).sub_(lse[rows, None]).exp_()
            dv[cols] += p.T @ grad_out[rows]
            ds = (grad_out[rows] @ v[cols].T).sub_(shift[rows]).mul_(p)
            dq[rows] += ds @ k[cols]
            dk[cols] += ds.T @ q[rows]
    return dq, dk, dv


def merge(parts: list[GaussianPosterior]) -> GaussianPosterior:
    """The posterior over the union of disjoint sets of points, from the posteriors over each.

    Exact and associative, so a data set can be streamed in blocks or split over machines.  Every part
    must carry the log-weights of the whole (for N equal points: −log N, not minus the log of its own count).
    """
    log_z = torch.stack([part.log_z for part in parts])
    total = log_z.logsumexp(0)
    p = (log_z - total).exp()
    means = torch.stack([part.mean for part in parts])
    mean = (p[..., None] * means).sum(0)
    within = torch.stack([part.spread for part in parts])
    between = (means - mean).square().sum(-1)
    return GaussianPosterior(total, mean, (p * (within + between)).sum(0))

r"""The one reduction: a single pass over the data carries all five papers.

For points y_j with log-weights w_j seen from x through Gaussian noise of standard deviation σ,

    ℓ_j(x)   = w_j − ‖x − y_j‖² / 2σ²
    log_z(x) = log Σ_j exp ℓ_j                          log-normaliser
    p_j(x)   = exp(ℓ_j − log_z)                         posterior weights, a softmax over the data
    mean(x)  = Σ_j p_j y_j                              E[y | x]
    spread(x)= Σ_j p_j ‖y_j − mean‖²                    tr Cov[y | x]

The density of the noised data set is log_z − (D/2) log 2πσ², its score (mean − x)/σ² (Tweedie), and
the Jacobian of the mean is Cov[y | x]/σ², with trace spread/σ².

Three ways to compute it, with one meaning:

    "definition"  forms the B × N matrix of ℓ in float64.  Short, differentiable in every mode, and
                  what the others are tested against.
    "cpu"         never forms it.  With   q = [x/σ², −1/2σ², 1],  k = [y, ‖y‖², w]   we have
                  q·k_j = ℓ_j + ‖x‖²/2σ², so torch's fused attention streams the softmax in compiled
                  code, and with values [y, ‖y‖²] returns the mean and E‖y‖²; memory O(B + N).

Expanding the square cancels when σ is small against the data: in arithmetic of precision ε, ℓ is off
by at most δ ≈ ε · max(‖x‖R + R²/2)/σ² + ε·max|w|, R = max‖y‖ after centring, so the mean by 2δR.  The
CPU path runs in float32 where that bound keeps the mean within 10⁻³σ and log_z within 10⁻⁴, and in
float64 everywhere else: accuracy first, speed where it is safe.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lib import check

BACKENDS = ("definition", "cpu")
MEAN_TOLERANCE = 1e-3  # of σ
LOG_Z_TOLERANCE = 1e-4  # nats


class GaussianPosterior(NamedTuple):
    """What one pass over the data returns, for B queries."""

    log_z: Tensor  # (B,)    log Σ_j exp(log_w_j − ‖x − y_j‖²/2σ²), nats
    mean: Tensor  # (B, D)  posterior mean of y, or (B, V) of `values`
    spread: Tensor  # (B,)    trace of the posterior covariance of y, or of `values`; ≥ 0


def gaussian_posterior(x: Tensor, y: Tensor, sigma: float | Tensor, *, log_w: Tensor | None = None,
                       values: Tensor | None = None, backend: str | None = None) -> GaussianPosterior:
    """Log-normaliser, posterior mean and posterior spread of points `y` seen from `x` with noise `sigma`.

    x       (B, D) queries, float32 or float64.
    y       (N, D) points, same dtype and device.
    sigma   standard deviation of the noise, > 0: a number or (B,), one for each query.
    log_w   (N,) log-weights, used as given (−inf masks a point); None means −log N each.
    values  (N, V) averaged in place of `y`.
    backend None chooses; "definition" or "cpu" insists.

    Differentiable in x, y, sigma, log_w and values.  The mean is within 1e-3·σ, log_z within 1e-4 nats
    and 2 ulp, the spread within 1e-3·σ² + 0.1 %, for σ down to 1e-3 of the data's scale.
    Raises ValueError naming the argument for wrong shapes or dtypes, empty or non-finite input, σ ≤ 0.
    """
    check.points("x", x)
    check.points("y", y, dim=x.shape[1], like=x)
    sigma = check.positive("sigma", sigma, shape=(len(x),), like=x)
    if log_w is None:
        log_w = x.new_full((len(y),), -math.log(len(y)))
    else:
        check.log_weights("log_w", log_w, len(y), like=x)
    if values is not None:
        check.points("values", values, like=x)
        if len(values) != len(y):
            check.refuse("values", f"{len(values)} rows", f"{len(y)} rows, one for each point of y")
    check.choice("backend", backend, (None, *BACKENDS))
    if backend is None:
        cpu = x.device.type == "cpu" and not check.opaque(x, y, sigma, log_w, values)
        backend = "cpu" if cpu else "definition"
    return {"definition": definition, "cpu": _fused_cpu}[backend](x, y, sigma, log_w, values)


def definition(x: Tensor, y: Tensor, sigma: Tensor, log_w: Tensor, values: Tensor | None) -> GaussianPosterior:
    """The formulas of this module, as they stand, in float64; forms the B × N matrix."""
    dtype = x.dtype
    x, y, log_w, sigma = x.double(), y.double(), log_w.double(), sigma.double().reshape(-1, 1)
    v = y if values is None else values.double()
    centre = y.mean(0)
    x, y = x - centre, y - centre
    squares = x.square().sum(1, keepdim=True) - 2 * x @ y.T + y.square().sum(1)
    logits = log_w - squares / (2 * sigma**2)
    log_z = logits.logsumexp(1)
    p = (logits - log_z[:, None]).exp()
    mean = p @ v
    origin = v.mean(0)
    spread = p @ (v - origin).square().sum(1) - (mean - origin).square().sum(1)
    return GaussianPosterior(log_z.to(dtype), mean.to(dtype), spread.clamp_min(0).to(dtype))


def _fused_cpu(x: Tensor, y: Tensor, sigma: Tensor, log_w: Tensor, values: Tensor | None) -> GaussianPosterior:
    """Fused attention on augmented vectors, in the lowest precision that meets the tolerances."""
    dtype = x.dtype
    keep = log_w > -math.inf
    if not bool(keep.all()):
        y, log_w = y[keep], log_w[keep]
        values = None if values is None else values[keep]
    v = y if values is None else values
    centre, origin = y.detach().mean(0), v.detach().mean(0)
    if dtype == torch.float32 and not _float32_is_enough(
            x.detach() - centre, y.detach() - centre, sigma.detach(), log_w.detach()):
        x, y, v, sigma, log_w, centre, origin = (t.double() for t in (x, y, v, sigma, log_w, centre, origin))
    x, y, v = x - centre, y - centre, v - origin
    precision = (1 / sigma**2).expand(len(x))[:, None]
    one = torch.ones_like(precision)
    q = torch.cat([x * precision, -precision / 2, one], 1)
    k = torch.cat([y, y.square().sum(1, keepdim=True), log_w[:, None]], 1)
    v = torch.cat([v, v.square().sum(1, keepdim=True), torch.ones_like(log_w)[:, None]], 1)
    width = max(q.shape[1], v.shape[1])
    pad = lambda t, n: t if n == 0 else torch.cat([t[:, :-1], t.new_zeros(len(t), n), t[:, -1:]], 1)
    q, k, v = (pad(t, width - t.shape[1]) for t in (q, k, v))
    average, lse = _Attention.apply(q, k, v)
    columns = len(origin)
    mean = average[:, :columns]
    log_z = lse - x.square().sum(1) * precision[:, 0] / 2
    spread = average[:, columns] - mean.square().sum(1)
    return GaussianPosterior(log_z.to(dtype), (mean + origin).to(dtype), spread.clamp_min(0).to(dtype))


def _float32_is_enough(x: Tensor, y: Tensor, sigma: Tensor, log_w: Tensor) -> bool:
    """Whether the error bound of this module's docstring meets the tolerances in float32."""
    eps = torch.finfo(torch.float32).eps
    radius = y.norm(dim=1).max()
    delta = eps * ((x.norm(dim=1) * radius + radius**2 / 2) / sigma**2 + log_w.abs().max())
    return bool(((2 * delta * radius <= MEAN_TOLERANCE * sigma) & (delta <= LOG_Z_TOLERANCE)).all())


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ) v and the log-sum-exp of its logits, both differentiable, in streaming passes.

    torch's own backward pass has no gradient for the log-sum-exp g.  It forms, with o the output,
    dS = p ∘ (dO·v − dO·o), and we need p ∘ (dO·v − dO·o + g): the last column of v is 1, so handing
    the pass dO = g and o = 0 in that column adds exactly g.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (t[None, None] for t in (q, k, v))
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=1.0)
        ctx.save_for_backward(q, k, v, out, lse)
        return out[0, 0], lse[0, 0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, lse = ctx.saved_tensors
        grad_out = torch.cat([grad_out[:, :-1], grad_lse[:, None]], 1)[None, None]
        out = torch.cat([out[..., :-1], torch.zeros_like(out[..., :1])], -1)
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, q, k, v, out, lse, 0.0, False, scale=1.0)
        return tuple(g[0, 0] for g in grads)


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

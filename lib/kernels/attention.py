"""The one reduction as attention on augmented vectors: fused on the CPU, by blocks of matrix products anywhere."""
import math

import torch
from torch import Tensor

from lib.kernels.cloud import Cloud, padded
from lib.kernels.terms import GaussianPosterior, products_are_enough

ROWS, COLUMNS = 2048, 16384  # of a block of logits: 0.13 GB in float32


def attention(x: Tensor, cloud: Cloud, sigma: Tensor, fused: bool) -> GaussianPosterior:
    """Attention on augmented vectors, in the lowest precision that meets the tolerances."""
    dtype, centred = x.dtype, x - cloud.centre
    reduced = x.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"  # the user's choice for other products
    if dtype == torch.float32 and not reduced and products_are_enough(
            centred.norm(dim=1), cloud.radius, sigma, cloud.heaviest, torch.finfo(dtype).eps, bool(cloud.whole)):
        x, terms = centred, cloud.single
    else:
        x, terms = x.double() - cloud.centre.double(), cloud.double
    squares = torch.cat([rows.double().square().sum(1) for rows in x.split(256)])  # copies of a size that is at hand
    own = squares / (2 * sigma.double() ** 2)
    precision = (1 / sigma.to(x.dtype) ** 2).expand(len(x))[:, None]
    weighted = torch.zeros_like(precision) if cloud.log_w is None else torch.ones_like(precision)
    q = padded(terms.keys.shape[1], x * precision, -precision / 2, weighted)
    average, lse = _Attention.apply(q, *terms, fused)
    columns = cloud.v.shape[1]
    mean = average[:, :columns]
    spread = average[:, -2] - mean.square().sum(1)
    log_z = lse.double() - own  # which may be far larger
    mean = mean + cloud.origin.to(mean)
    return GaussianPosterior(log_z, mean, spread.clamp_min(0))


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
        top = rows.new_full((len(rows), 1), -math.inf)
        mass, out = torch.zeros_like(top), None
        for keys, vals in zip(k.split(COLUMNS), v.split(COLUMNS), strict=True):
            logits = rows @ keys.T
            before, top = top, torch.maximum(top, logits.amax(1, keepdim=True))
            p, old = logits.sub_(top).exp_(), (before - top).exp()
            mass = mass * old + p.sum(1, keepdim=True)
            out = p @ vals if out is None else out.mul_(old).add_(p @ vals)
        outs.append(out.div_(mass))
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

"""The one reduction as attention on augmented vectors: fused on the CPU, by blocks of matrix products anywhere."""
from __future__ import annotations

import math

import torch
from torch import Tensor

from lib.kernels.terms import GaussianPosterior, products_are_enough

ROWS, COLUMNS = 2048, 16384  # of a block of logits: 0.13 GB in float32


def attention(x: Tensor, y: Tensor, sigma: Tensor, log_w: Tensor, values: Tensor | None,
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
        mass = out = torch.zeros_like(top)
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

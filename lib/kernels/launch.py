r"""The one reduction on a GPU: which Triton kernel runs, in which arithmetic, and its derivative.

    explicit  up to 8 columns.  Differences d = x − y, squared and summed: nothing cancels at any offset, and d is
              its own feature, so mean = x − E[d] and spread = E‖d‖² − ‖E[d]‖² lose nothing either.
    products  up to 64 columns.  ‖x − y‖² = ‖x‖² + ‖y‖² − 2x·y of centred points, by matrix products: on tensor
              cores by three TF32 products where the error bound of `lib.kernels` allows, else in float32 proper.

Where float32 does not meet the bound both run in float64: explicit differences for the single queries that need it,
judged from their own result (ℓ is off by a few ε of itself), products for the whole batch, judged beforehand.

Backward: with o = x − mean and feature v = d, or o = −mean and v = the value, the derivative of a loss with incoming
gradients g_z, g_m, g_s of log_z, mean and spread is

    ∂L/∂ℓ_j = p_j (e + f·v_j + h‖v_j‖²),   h = g_s,   f = ±(g_m + 2h o),   e = g_z + g_m·o + h(‖o‖² − spread)

(− for d, + for values), and each gradient a sum of it over keys or queries.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from lib.base import check
from lib.kernels import device as on_device
from lib.kernels.terms import TRITON_COLUMNS, GaussianPosterior, merge, products_are_enough, tolerable

EXPLICIT_COLUMNS = 8
PROGRAMS_PER_PROCESSOR = 4
LOG2E = math.log2(math.e)
TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
# Ways to a float32 matrix product, cheapest first, and the ε of their rounding.
PRODUCTS = {"tf32x3": 2**-20, "ieee": 2**-23}


class Plan(NamedTuple):
    """How a kernel is compiled."""

    precision: str | None  # of matrix products; None: explicit differences
    exponent: torch.dtype  # of the exponentials; the sums are in the type of the points


def posterior(x: Tensor, y: Tensor, sigma: Tensor, log_w: Tensor | None, values: Tensor | None,
              rounded: bool) -> GaussianPosterior:
    """`lib.kernels.gaussian_posterior` for checked arguments; `rounded` if the points were given in bfloat16."""
    if not x.is_cuda and isinstance(on_device.explicit_forward, triton.JITFunction):
        check.refuse("backend", f"'triton' for tensors on {x.device}", "tensors on a GPU, or TRITON_INTERPRET=1")
    columns = max(x.shape[1], 0 if values is None else values.shape[1])
    if columns > TRITON_COLUMNS:
        check.refuse("backend", f"'triton' for {columns} columns", f"at most {TRITON_COLUMNS}")
    sigma = sigma.expand(len(x))
    origin = 0 if values is None else values.detach().mean(0)
    values = None if values is None else values - origin
    if columns <= EXPLICIT_COLUMNS:
        found = _explicit(x, y, sigma, log_w, values, x.dtype)
    else:
        found = _products(x, y, sigma, log_w, values, rounded)
    log_z = found.log_z if log_w is not None else found.log_z - math.log(len(y))
    return GaussianPosterior(log_z, found.mean + origin, found.spread)


def _explicit(x: Tensor, y: Tensor, sigma: Tensor, log_w: Tensor | None, values: Tensor | None,
              exponent: torch.dtype) -> GaussianPosterior:
    plan = Plan(None, exponent)
    with torch.no_grad():
        found = _forward(x, y, sigma, log_w, values, plan)
        heaviest = 0 if log_w is None else log_w.max()
        nearest = heaviest + math.log(len(y)) - found.log_z  # at least ‖x − y‖²/2σ² of the point that counts most
        delta = 4 * torch.finfo(x.dtype).eps * (nearest + 10 + (0 if log_w is None else log_w.abs().max()))
        good = tolerable(delta, found.spread.sqrt() if values is None else torch.zeros_like(delta), sigma)
    if x.dtype == torch.float64 or bool(good.all()):
        return GaussianPosterior(*_Reduction.apply(x, y, sigma, log_w, values, plan, *found))
    rows = [good.nonzero()[:, 0], (~good).nonzero()[:, 0]]
    single = _Reduction.apply(x[rows[0]], y, sigma[rows[0]], log_w, values, plan, *(t[rows[0]] for t in found))
    double = _explicit(*(None if t is None else t.double() for t in (x[rows[1]], y, sigma[rows[1]], log_w, values)),
                       exponent=x.dtype)
    order = torch.cat(rows).argsort()
    return GaussianPosterior(*(torch.cat([a, b.to(a.dtype)])[order] for a, b in zip(single, double, strict=True)))


def _products(x: Tensor, y: Tensor, sigma: Tensor, log_w: Tensor | None, values: Tensor | None,
              rounded: bool) -> GaussianPosterior:
    dtype = x.dtype
    centre = y.detach().mean(0)
    plan = Plan("ieee", dtype)
    if rounded and values is None and products_are_enough(x, y, sigma, log_w, PRODUCTS["ieee"]):
        plan, centre = Plan("bf16", dtype), torch.zeros_like(centre)  # as they are they lose nothing in bfloat16
    elif dtype == torch.float32:
        enough = (p for p in PRODUCTS if products_are_enough(x - centre, y - centre, sigma, log_w, PRODUCTS[p]))
        plan = Plan(next(enough, None), dtype)
        if plan.precision is None:
            plan = Plan("ieee", dtype)
            x, y, sigma, centre = x.double(), y.double(), sigma.double(), centre.double()
            log_w, values = (None if t is None else t.double() for t in (log_w, values))
    own = (x.double() - centre.double()).square().sum(1) / (2 * sigma.double() ** 2)  # may be far larger than log_z
    x, y = x - centre, y - centre
    with torch.no_grad():
        found = _forward(x, y, sigma, log_w, values, plan)
    log_z, mean, spread = _Reduction.apply(x, y, sigma, log_w, values, plan, *found)
    log_z = log_z.double() - own
    mean = mean + centre if values is None else mean
    return GaussianPosterior(log_z.to(dtype), mean.to(dtype), spread.to(dtype))


class _Reduction(torch.autograd.Function):
    """What `_forward` has found, as a function of the arguments.  By products log_z leaves out −‖x‖²/2σ²."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, sigma: Tensor, log_w: Tensor | None, values: Tensor | None, plan: Plan,
                log_z: Tensor, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.plan = plan
        ctx.save_for_backward(x, y, sigma, log_w, values, log_z, mean, spread)
        return log_z, mean, spread

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_log_z: Tensor, grad_mean: Tensor, grad_spread: Tensor) -> tuple[Tensor | None, ...]:
        x, y, sigma, log_w, values, log_z, mean, spread = ctx.saved_tensors
        difference = ctx.plan.precision is None and values is None
        o = x - mean if difference else -mean
        h = grad_spread
        f = (grad_mean + 2 * h[:, None] * o) * (-1 if difference else 1)
        e = grad_log_z + (grad_mean * o).sum(1) + h * (o.square().sum(1) - spread)
        backward = _explicit_backward if ctx.plan.precision is None else _products_backward
        sides = any(ctx.needs_input_grad[n] for n in (0, 2)), any(ctx.needs_input_grad[n] for n in (1, 3, 4))
        grads = backward(x, y, sigma, log_w, values, log_z * LOG2E, e, h, f, ctx.plan, sides)
        return *grads, *[None] * 4


def _forward(x: Tensor, y: Tensor, sigma: Tensor, log_w: Tensor | None, values: Tensor | None,
             plan: Plan) -> GaussianPosterior:
    forward = _explicit_forward if plan.precision is None else _products_forward
    parts = forward(x, y, sigma, log_w, values, plan)
    log_z, mean, spread = merge(parts) if len(parts) > 1 else parts[0]
    return GaussianPosterior(log_z, mean, spread.clamp_min(0))


def _explicit_forward(x, y, sigma, log_w, values, plan) -> list[GaussianPosterior]:
    q, k, sizes, (own, stream, warps) = _explicit_arguments(x, y, sigma, log_w, values, plan)
    parts, chunk = _split(q.shape[1] // own, len(y), stream, x.device)
    out = x.new_empty(parts, 2 + sizes["F"], q.shape[1])
    on_device.explicit_forward[q.shape[1] // own, parts](
        q, k, out, len(y), chunk, q.shape[1], k.shape[1], **sizes, OWN=own, STREAM=stream,
        WEIGHTS=log_w is not None, num_warps=warps)
    out = out[:, :, :len(x)]
    return [GaussianPosterior(part[0], part[2:].T, part[1]) for part in out]


def _explicit_backward(x, y, sigma, log_w, values, log2_z, e, h, f, plan, sides) -> list[Tensor | None]:
    more = [(log2_z, math.inf), (e, 0), (h, 0), (f.T, 0)]
    q, k, sizes, (own, stream, warps) = _explicit_arguments(x, y, sigma, log_w, values, plan, more)
    grads: list[Tensor | None] = [None] * 5
    for of_queries, needed, mine, others in ((True, sides[0], q, k), (False, sides[1], k, q)):
        if not needed:
            continue
        parts, chunk = _split(mine.shape[1] // own, others.shape[1], stream, x.device)
        rows = 1 + x.shape[1] + (0 if of_queries else sizes["F"])
        out = x.new_empty(parts, rows, mine.shape[1])
        on_device.explicit_backward[mine.shape[1] // own, parts](
            q, k, out, others.shape[1], chunk, q.shape[1], k.shape[1], **sizes, OWN=own, STREAM=stream,
            OF_QUERIES=of_queries, num_warps=warps)
        first, points, features = out.sum(0)[:, :len(x if of_queries else y)].split(
            [1, x.shape[1], rows - 1 - x.shape[1]])
        if of_queries:
            grads[0], grads[2] = -points.T, first[0] / sigma**3
        else:
            grads[1], grads[3] = points.T, None if log_w is None else first[0]
            grads[4] = None if values is None else features.T
    return grads


def _explicit_arguments(x, y, sigma, log_w, values, plan, more=()) -> tuple[Tensor, Tensor, dict, tuple]:
    d, f = x.shape[1], x.shape[1] if values is None else values.shape[1]
    blocks = _blocks(triton.next_power_of_2(max(d, f)), x, None, bool(more))
    q = _stacked(blocks[0], (x.T, 0), (_factor(sigma, x), 0), *more)
    w = y.new_zeros(len(y)) if log_w is None else log_w * LOG2E
    k = _stacked(blocks[0], (y.T, 0), (w, -math.inf), *(() if values is None else ((values.T, 0),)))
    sizes = {"D": d, "DP": triton.next_power_of_2(d), "F": f, "FP": triton.next_power_of_2(f),
             "VALUES": values is not None, "E": TYPES[plan.exponent]}
    return q, k, sizes, blocks


def _products_forward(x, y, sigma, log_w, values, plan) -> list[GaussianPosterior]:
    (a, b, v, _), q, k, sizes, (own, stream, warps) = _products_arguments(x, y, sigma, log_w, values, plan)
    parts, chunk = _split(len(a) // own, len(b), stream, x.device)
    moments, mean = x.new_empty(parts, 2, len(a)), x.new_empty(parts, len(a), sizes["FP"])
    if not x.is_cuda:  # the interpreter has no product in bfloat16
        sizes["PRECISION"] = "ieee"
    on_device.products_forward[len(a) // own, parts](
        a, b, v, q, k, moments, mean, chunk, len(a), len(b), **sizes, OWN=own, STREAM=stream,
        ROUNDED=plan.precision == "bf16", num_warps=warps, num_stages=2)
    features = x.shape[1] if values is None else values.shape[1]
    return [GaussianPosterior(m[0, :len(x)], f[:len(x), :features], m[1, :len(x)])
            for m, f in zip(moments, mean, strict=True)]


def _products_backward(x, y, sigma, log_w, values, log2_z, e, h, f, plan, sides) -> list[Tensor | None]:
    plan = plan._replace(precision="tf32x3") if plan.precision == "bf16" else plan
    more = [(log2_z, math.inf), (e, 0), (h, 0)]
    (a, b, v, f), q, k, sizes, (own, stream, warps) = _products_arguments(
        x, y, sigma, log_w, values, plan, more, f)
    grads: list[Tensor | None] = [None] * 5
    for of_queries, needed, sources in ((True, sides[0], (a, b, f, v)), (False, sides[1], (b, a, v, f))):
        if not needed:
            continue
        mine, others = sources[:2]
        parts, chunk = _split(len(mine) // own, len(others), stream, x.device)
        moments = x.new_empty(parts, 3, len(mine))
        points, features = (x.new_empty(parts, len(mine), sizes[n]) for n in ("DP", "FP"))
        on_device.products_backward[len(mine) // own, parts](
            *sources, q, k, moments, points, features, len(others), chunk, len(a), len(b), **sizes, OWN=own,
            STREAM=stream, OF_QUERIES=of_queries, num_warps=warps, num_stages=2)
        pulls, second, lengths = moments.sum(0)[:, :len(x if of_queries else y)]
        points = points.sum(0)[:len(x if of_queries else y), :x.shape[1]]
        if of_queries:
            grads[0], grads[2] = points, second / sigma**3
        else:
            target = y if values is None else values
            of_values = features.sum(0)[:len(y), :target.shape[1]] + 2 * lengths[:, None] * target
            grads[1], grads[3] = points - pulls[:, None] * y, None if log_w is None else second
            if values is None:
                grads[1] = grads[1] + of_values
            else:
                grads[4] = of_values
    return grads


def _products_arguments(x, y, sigma, log_w, values, plan, more=(), f=None) -> tuple[tuple, Tensor, Tensor, dict, tuple]:
    columns = x.shape[1] if values is None else values.shape[1]
    dp, fp = (max(16, triton.next_power_of_2(n)) for n in (x.shape[1], columns))
    blocks = _blocks(max(dp, fp), x, plan.precision, bool(more))
    matrix = lambda t, n: pad(t, (0, n - t.shape[1], 0, -len(t) % blocks[0]))
    b = matrix(y, dp)
    v = b if values is None else matrix(values, fp)
    q = _stacked(blocks[0], (_factor(sigma, x), 0), *more)
    lengths = [(t.square().sum(1), 0) for t in (y, y if values is None else values)]
    w = y.new_zeros(len(y)) if log_w is None else log_w * LOG2E
    k = _stacked(blocks[0], lengths[0], (w, -math.inf), lengths[1])
    sizes = {"DP": dp, "FP": fp, "VALUES": values is not None, "PRECISION": plan.precision, "E": TYPES[plan.exponent]}
    return (matrix(x, dp), b, v, None if f is None else matrix(f, fp)), q, k, sizes, blocks


def _factor(sigma: Tensor, x: Tensor) -> Tensor:
    """c with ℓ = c‖x − y‖² in base 2."""
    return (-LOG2E / 2 / sigma.double() ** 2).to(x.dtype)


def _stacked(block: int, *rows: tuple[Tensor, float]) -> Tensor:
    """Rows of equal length, each padded with its own value to a multiple of `block`."""
    return torch.cat([pad(torch.atleast_2d(row), (0, -row.shape[-1] % block), value=fill) for row, fill in rows])


def _split(programs: int, stream: int, step: int, device: torch.device) -> tuple[int, int]:
    """Into how many parts to split a stream so that the device is full, and how long each is."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    parts = min(-(-PROGRAMS_PER_PROCESSOR * processors // programs), -(-stream // (16 * step)))
    chunk = -(-stream // (max(parts, 1) * step)) * step
    return -(-stream // chunk), chunk


def _blocks(columns: int, x: Tensor, precision: str | None, backward: bool) -> tuple[int, int, int]:
    """Points of a program, points of a step, warps: a fixed table, for tuning by trial makes runs differ."""
    if not x.is_cuda:
        return 64, 64, 4  # the interpreter, which is slow by the step
    if precision is None:  # a thread loads 16 bytes of a row: 4 points, or 2
        return 2048 // x.dtype.itemsize, {1: 16, 2: 8, 4: 8, 8: 4}[columns], 4
    if x.dtype == torch.float64:
        return 32, 16, 4
    wide = torch.cuda.get_device_capability(x.device)[0] in (9, 10)  # H100, B200: products from shared memory
    if precision == "ieee" or not wide:
        return 32 if backward else 64, 32, 4
    return 128, 32 if backward else 64, 8

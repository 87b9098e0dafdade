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
from lib.kernels.cloud import Cloud
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


class Problem(NamedTuple):
    """What a kernel is asked; by position, the order in which autograd wants the gradients of it."""

    x: Tensor  # (B, D)
    y: Tensor  # (N, D)
    sigma: Tensor  # (B,)
    log_w: Tensor | None  # (N,)
    values: Tensor | None  # (N, V), around their mean

    @property
    def v(self) -> Tensor:
        """What is averaged, (N, V)."""
        return self.y if self.values is None else self.values

    def double(self) -> Problem:
        """The same in float64."""
        return Problem(*(None if t is None else t.double() for t in self))


class Incoming(NamedTuple):
    """What the backward pass knows of each query beside the problem: log₂ z, and e, h, f of the docstring."""

    log2_z: Tensor  # (B,)
    e: Tensor  # (B,)
    h: Tensor  # (B,)
    f: Tensor  # (B, V)


def posterior(x: Tensor, cloud: Cloud, sigma: Tensor, rounded: bool) -> GaussianPosterior:
    """`lib.kernels.reduce` on a GPU; `rounded` if queries and points were given in bfloat16."""
    if not x.is_cuda and isinstance(on_device.explicit_forward, triton.JITFunction):
        check.refuse("backend", f"'triton' for tensors on {x.device}", "tensors on a GPU, or TRITON_INTERPRET=1")
    if cloud.columns > TRITON_COLUMNS:
        check.refuse("backend", f"'triton' for {cloud.columns} columns", f"at most {TRITON_COLUMNS}")
    origin = 0 if cloud.values is None else cloud.origin
    values = None if cloud.values is None else cloud.values - origin
    problem = Problem(x, cloud.y, sigma.expand(len(x)), cloud.log_w, values)
    found = (_explicit(problem, x.dtype, bool(cloud.whole)) if cloud.columns <= EXPLICIT_COLUMNS else
             _products(problem, cloud, rounded))
    return found._replace(mean=found.mean + origin)


def _explicit(problem: Problem, exponent: torch.dtype, part: bool) -> GaussianPosterior:
    plan, (x, y, sigma, log_w, values) = Plan(None, exponent), problem
    with torch.no_grad():
        found = _forward(problem, plan)
        heaviest = 0 if log_w is None else log_w.max()
        nearest = heaviest + math.log(len(y)) - found.log_z  # at least ‖x − y‖²/2σ² of the point that counts most
        delta = 4 * torch.finfo(x.dtype).eps * (nearest + 10 + (0 if log_w is None else log_w.abs().max()))
        lever = found.spread.sqrt() + ((x - found.mean).norm(dim=1) if part else 0)
        good = tolerable(delta, lever if values is None else torch.zeros_like(delta), sigma)
    if x.dtype == torch.float64 or bool(good.all()):
        return GaussianPosterior(*_Reduction.apply(*problem, plan, *found))
    rows = [good.nonzero()[:, 0], (~good).nonzero()[:, 0]]
    exact, rough = (problem._replace(x=x[some], sigma=sigma[some]) for some in rows)
    single = _Reduction.apply(*exact, plan, *(t[rows[0]] for t in found))
    double = _explicit(rough.double(), x.dtype, part)
    order = torch.cat(rows).argsort()
    return GaussianPosterior(*(torch.cat([a, b])[order] for a, b in zip(single, double, strict=True)))  # in float64


def _products(problem: Problem, cloud: Cloud, rounded: bool) -> GaussianPosterior:
    x, sigma, centre, dtype = problem.x, problem.sigma, cloud.centre, problem.x.dtype
    enough = lambda reach, radius, way: products_are_enough(
        reach.norm(dim=1), radius, sigma, cloud.heaviest, PRODUCTS[way], bool(cloud.whole))
    precision = "ieee"
    if rounded and problem.values is None and enough(x, cloud.y.detach().norm(dim=1).max(), "ieee"):
        precision, centre = "bf16", torch.zeros_like(centre)  # as they are they lose nothing in bfloat16
    elif dtype == torch.float32:
        precision = next((way for way in PRODUCTS if enough(x - centre, cloud.radius, way)), None)
        if precision is None:
            precision, problem, centre = "ieee", problem.double(), centre.double()
    own = (x.double() - centre.double()).square().sum(1) / (2 * sigma.double() ** 2)  # may be far larger than log_z
    problem = problem._replace(x=problem.x - centre, y=problem.y - centre)
    plan = Plan(precision, dtype)
    with torch.no_grad():
        found = _forward(problem, plan)
    log_z, mean, spread = _Reduction.apply(*problem, plan, *found)
    log_z = log_z.double() - own
    mean = mean + centre if problem.values is None else mean
    return GaussianPosterior(log_z, mean, spread)


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
        *problem, log_z, mean, spread = ctx.saved_tensors
        problem = Problem(*problem)
        difference = ctx.plan.precision is None and problem.values is None
        o = problem.x - mean if difference else -mean
        h = grad_spread
        f = (grad_mean + 2 * h[:, None] * o) * (-1 if difference else 1)
        e = grad_log_z + (grad_mean * o).sum(1) + h * (o.square().sum(1) - spread)
        sides = any(ctx.needs_input_grad[n] for n in (0, 2)), any(ctx.needs_input_grad[n] for n in (1, 3, 4))
        backward = _explicit_backward if ctx.plan.precision is None else _products_backward
        return *backward(problem, ctx.plan, Incoming(log_z * LOG2E, e, h, f), sides), *[None] * 4


def _forward(problem: Problem, plan: Plan) -> GaussianPosterior:
    parts = (_explicit_forward if plan.precision is None else _products_forward)(problem, plan)
    log_z, mean, spread = merge(parts) if len(parts) > 1 else parts[0]
    return GaussianPosterior(log_z, mean, spread.clamp_min(0))


def _explicit_forward(problem: Problem, plan: Plan) -> list[GaussianPosterior]:
    x, y, *_ = problem
    q, k, sizes, (own, stream, warps) = _explicit_arguments(problem, plan)
    parts, chunk = _split(q.shape[1] // own, len(y), stream, x.device)
    out = x.new_empty(parts, 2 + sizes["F"], q.shape[1])
    on_device.explicit_forward[q.shape[1] // own, parts](
        q, k, out, len(y), chunk, q.shape[1], k.shape[1], **sizes, OWN=own, STREAM=stream,
        WEIGHTS=problem.log_w is not None, num_warps=warps)
    out = out[:, :, :len(x)]
    return [GaussianPosterior(part[0], part[2:].T, part[1]) for part in out]


def _explicit_backward(problem: Problem, plan: Plan, incoming: Incoming, sides: tuple[bool, bool]) -> Problem:
    """The gradients, each in the place of what it is the gradient of."""
    x, y, sigma, log_w, values = problem
    q, k, sizes, (own, stream, warps) = _explicit_arguments(problem, plan, incoming)
    grads = Problem(*[None] * 5)
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
            grads = grads._replace(x=-points.T, sigma=first[0] / sigma**3)
        else:
            grads = grads._replace(y=points.T, log_w=None if log_w is None else first[0],
                                   values=None if values is None else features.T)
    return grads


def _explicit_arguments(problem: Problem, plan: Plan,
                        incoming: Incoming | None = None) -> tuple[Tensor, Tensor, dict, tuple]:
    x, y, sigma, log_w, values = problem
    d, f = x.shape[1], problem.v.shape[1]
    blocks = _blocks(triton.next_power_of_2(max(d, f)), x, None, incoming is not None)
    more = [] if incoming is None else [(incoming.log2_z, math.inf), (incoming.e, 0), (incoming.h, 0),
                                        (incoming.f.T, 0)]
    q = _stacked(blocks[0], (x.T, 0), (_factor(sigma, x), 0), *more)
    w = y.new_zeros(len(y)) if log_w is None else log_w * LOG2E
    k = _stacked(blocks[0], (y.T, 0), (w, -math.inf), *(() if values is None else ((values.T, 0),)))
    sizes = {"D": d, "DP": triton.next_power_of_2(d), "F": f, "FP": triton.next_power_of_2(f),
             "VALUES": values is not None, "E": TYPES[plan.exponent]}
    return q, k, sizes, blocks


def _products_forward(problem: Problem, plan: Plan) -> list[GaussianPosterior]:
    x = problem.x
    (a, b, v, _), q, k, sizes, (own, stream, warps) = _products_arguments(problem, plan)
    queries, keys = len(a), len(b)
    parts, chunk = _split(queries // own, keys, stream, x.device)
    moments, mean = x.new_empty(parts, 2, queries), x.new_empty(parts, queries, sizes["FP"])
    if not x.is_cuda:  # the interpreter has no product in bfloat16
        sizes["PRECISION"] = "ieee"
    on_device.products_forward[queries // own, parts](
        a, b, v, q, k, moments, mean, chunk, queries, keys, **sizes, OWN=own, STREAM=stream,
        ROUNDED=plan.precision == "bf16", num_warps=warps, num_stages=2)
    return [GaussianPosterior(m[0, :len(x)], f[:len(x), :problem.v.shape[1]], m[1, :len(x)])
            for m, f in zip(moments, mean, strict=True)]


def _products_backward(problem: Problem, plan: Plan, incoming: Incoming, sides: tuple[bool, bool]) -> Problem:
    """The gradients, each in the place of what it is the gradient of."""
    x, y, sigma, log_w, values = problem
    plan = plan._replace(precision="tf32x3") if plan.precision == "bf16" else plan
    (a, b, v, f), q, k, sizes, (own, stream, warps) = _products_arguments(problem, plan, incoming)
    grads = Problem(*[None] * 5)
    for of_queries, needed, sources in ((True, sides[0], (a, b, f, v)), (False, sides[1], (b, a, v, f))):
        if not needed:
            continue
        mine, others = sources[:2]
        parts, chunk = _split(len(mine) // own, len(others), stream, x.device)
        moments = x.new_empty(parts, 3, len(mine))
        points, features = (x.new_empty(parts, len(mine), sizes[n]) for n in ("DP", "FP"))
        on_device.products_backward[len(mine) // own, parts](
            *sources, q, k, moments, points, features, len(others), chunk, len(a), len(b), **sizes,
            OWN=own, STREAM=stream, OF_QUERIES=of_queries, num_warps=warps, num_stages=2)
        pulls, second, lengths = moments.sum(0)[:, :len(x if of_queries else y)]
        points = points.sum(0)[:len(x if of_queries else y), :x.shape[1]]
        if of_queries:
            grads = grads._replace(x=points, sigma=second / sigma**3)
            continue
        of_y = points - pulls[:, None] * y
        of_v = features.sum(0)[:len(y), :problem.v.shape[1]] + 2 * lengths[:, None] * problem.v
        grads = grads._replace(y=of_y + of_v if values is None else of_y, log_w=None if log_w is None else second,
                               values=None if values is None else of_v)
    return grads


def _products_arguments(problem: Problem, plan: Plan,
                        incoming: Incoming | None = None) -> tuple[tuple, Tensor, Tensor, dict, tuple]:
    """Queries, points, what is averaged and f, padded to blocks; rows of numbers of both; sizes; blocks."""
    x, y, sigma, log_w, values = problem
    dp, fp = (max(16, triton.next_power_of_2(n)) for n in (x.shape[1], problem.v.shape[1]))
    blocks = _blocks(max(dp, fp), x, plan.precision, incoming is not None)
    matrix = lambda t, n: pad(t, (0, n - t.shape[1], 0, -len(t) % blocks[0]))
    more = [] if incoming is None else [(incoming.log2_z, math.inf), (incoming.e, 0), (incoming.h, 0)]
    q = _stacked(blocks[0], (_factor(sigma, x), 0), *more)
    w = y.new_zeros(len(y)) if log_w is None else log_w * LOG2E
    k = _stacked(blocks[0], (y.square().sum(1), 0), (w, -math.inf), (problem.v.square().sum(1), 0))
    sizes = {"DP": dp, "FP": fp, "VALUES": values is not None, "PRECISION": plan.precision, "E": TYPES[plan.exponent]}
    b = matrix(y, dp)
    f = None if incoming is None else matrix(incoming.f, fp)
    return (matrix(x, dp), b, b if values is None else matrix(values, fp), f), q, k, sizes, blocks


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

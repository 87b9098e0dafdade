"""The one door to the reduction: what is valid, and which way is fastest where."""
from __future__ import annotations

import functools
import importlib.util
import math

import torch
from torch import Tensor

from lib.base import check
from lib.kernels.attention import attention
from lib.kernels.definition import definition
from lib.kernels.terms import TRITON_COLUMNS, GaussianPosterior

BACKENDS = ("definition", "cpu", "blocks", "triton")


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
        from lib.kernels import launch  # here, so that nothing else imports triton
        return launch.posterior(x, y, sigma, log_w, values, rounded)
    if log_w is None:
        log_w = x.new_full((len(y),), -math.log(len(y)))
    if backend == "definition":
        return definition(x, y, sigma, log_w, values)
    if backend == "cpu" and x.device.type != "cpu":
        check.refuse("backend", f"'cpu' for tensors on {x.device}", "tensors on the CPU")
    return attention(x, y, sigma, log_w, values, fused=backend == "cpu")


def _fastest(x: Tensor, v: Tensor) -> str:
    if x.device.type == "cpu":
        return "cpu"
    narrow = max(x.shape[1], v.shape[1]) <= TRITON_COLUMNS
    return "triton" if x.is_cuda and narrow and _triton_is_here() else "blocks"


@functools.cache
def _triton_is_here() -> bool:
    return importlib.util.find_spec("triton") is not None

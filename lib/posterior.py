r"""A data set seen through a Gaussian path: density, score, velocity and divergence, all exact.

For weighted points y_j and x_t = a x_1 + m x_0, dividing by a turns the path into one noise level
σ = m/a, so the one reduction at x/a gives E[x_1|x] and tr Cov[x_1|x], and the rest is arithmetic:

    log p_t(x) = log_z(x/a, m/a) − (D/2) log 2πm²
    score      = (a·mean − x)/m²
    velocity   = (m′/m) x + (a′ − a m′/m)·mean                      (posterior average of a′x_1 + m′x_0)
    divergence = D m′/m + (a′ − a m′/m)(a/m²)·spread                (of the velocity; no autograd)

`flow` is velocity and divergence from one softmax, which is what `solve.log_likelihood` steps along.  Where a data
set is asked for, a `lib.kernels.prepare`d cloud will do, its weights in it: the choice for every loop.

They solve the continuity equation ∂_t p_t + ∇·(p_t v_t) = 0 exactly, for any data set.  At t with
m = 0 the density is a sum of spikes: a `ValueError`.
"""
import math
from typing import NamedTuple

import torch
from torch import Tensor

from lib.base import check
from lib.base.shapes import as_time, column
from lib.kernels import Cloud, reduce
from lib.kernels.cloud import checked
from lib.path import Path
from lib.solve import Flow


class Posterior(NamedTuple):
    """A data set seen from x at time t."""

    log_p: Tensor  # (B,)    log p_t(x), nats
    mean: Tensor  # (B, D)  E[x_1 | x_t = x]
    spread: Tensor  # (B,)    tr Cov[x_1 | x_t = x]


def posterior(path: Path, t: float | Tensor, x: Tensor, data: Tensor | Cloud, log_w: Tensor | None = None) -> Posterior:
    """log p_t(x), E[x_1|x] and tr Cov[x_1|x] for x (B, D), data (N, D), t a number or (B,) with m(t) > 0.

    `log_w` (N,) are the logarithms of weights that sum to one; None means equal weights.
    """
    a, m = _coefficients(path, t, x)
    cloud = checked("data", data, log_w, like=x)
    blind = a < torch.finfo(a.dtype).eps ** 2  # the noise hides everything: an infinite σ, whatever x
    safe = torch.where(blind, torch.ones_like(a), a)
    sigma = torch.where(blind, torch.full_like(a, math.inf), m / safe)
    seen = reduce(x / column(safe, x), cloud, sigma, once=cloud is not data)
    alone = torch.where(blind, x.square().sum(1) / (2 * m**2), torch.zeros_like(seen.log_z))
    log_p = seen.log_z - alone - x.shape[1] / 2 * torch.log(2 * math.pi * m**2)
    return Posterior(log_p, seen.mean, seen.spread)


def score(path: Path, t: float | Tensor, x: Tensor, data: Tensor | Cloud, log_w: Tensor | None = None) -> Tensor:
    """∇ log p_t(x), shape (B, D)."""
    a, m = _coefficients(path, t, x)
    mean = posterior(path, t, x, data, log_w).mean
    return (column(a, x) * mean - x) / column(m, x) ** 2


def flow(path: Path, t: float | Tensor, x: Tensor, data: Tensor | Cloud, log_w: Tensor | None = None) -> Flow:
    """The marginal velocity E[a′x_1 + m′x_0 | x_t = x], (B, D), and its divergence, (B,), from one softmax."""
    a, m = _coefficients(path, t, x)
    da, dm = path.rates(as_time(t, x))
    own, pull = dm / m, da - a * dm / m
    seen = posterior(path, t, x, data, log_w)
    velocity = column(own, x) * x + column(pull, x) * seen.mean
    return Flow(velocity, x.shape[1] * own + pull * a / m**2 * seen.spread)


def velocity(path: Path, t: float | Tensor, x: Tensor, data: Tensor | Cloud, log_w: Tensor | None = None) -> Tensor:
    """The marginal velocity E[a′x_1 + m′x_0 | x_t = x], shape (B, D)."""
    return flow(path, t, x, data, log_w).velocity


def divergence(path: Path, t: float | Tensor, x: Tensor, data: Tensor | Cloud, log_w: Tensor | None = None) -> Tensor:
    """∇·velocity at x, shape (B,), in closed form from the posterior spread."""
    return flow(path, t, x, data, log_w).divergence


def _coefficients(path: Path, t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(path, Path):
        check.refuse("path", type(path).__name__, "a Path; of an interpolant, what its one_sided() gives")
    check.points("x", x)
    t = as_time(t, x)
    column(t, x)
    a, m = path.a(t), path.m(t)
    if not check.opaque(m) and not bool((m > torch.finfo(m.dtype).eps).all()):
        check.refuse("t", f"a time with m(t) = {m.min().item():.1g}", "times with noise left: m(t) > 0")
    return a, m

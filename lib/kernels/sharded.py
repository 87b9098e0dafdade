r"""The one reduction over data that one device does not hold: split over ranks, or streamed from disk.

A posterior over disjoint sets of points is the `merge` of the posteriors over each, so every rank reduces its own
points and all ranks merge what B queries need of them: B·(V + 2) numbers of a rank, whatever N.
    seen = sharded_posterior(x, y[rank::world].to(device), sigma)       # under torchrun, see `lib.base.ranks`
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lib.base import check, ranks
from lib.kernels import GaussianPosterior, merge, reduce
from lib.kernels.cloud import checked
from lib.kernels.reduction import asked, united


def sharded_posterior(x: Tensor, y: Tensor, sigma: float | Tensor, *, log_w: Tensor | None = None,
                      values: Tensor | None = None, backend: str | None = None,
                      group: dist.ProcessGroup | None = None) -> GaussianPosterior:
    """`gaussian_posterior` of the points of all ranks of `group`, on every rank.

    x, sigma           the queries and their noise, the same on every rank.
    y, log_w, values   this rank's points, at least one with weight.  None for `log_w` means −log N each, N being
                       the number of points of all ranks.

    Where every rank takes the gradient of the same loss, each finds that of its own points, weights and values, and
    of x and sigma the whole gradient.
    Raises RuntimeError when another rank is lost, at the latest after the time-out of the process group.
    """
    asked(x, sigma, backend)
    cloud = checked("y", y, log_w, values, like=x)
    sizes = ranks.gathered((*x.shape, cloud.y.shape[1], cloud.v.shape[1], x.dtype, log_w is None), group)
    if len(set(sizes)) > 1:
        check.refuse("x", f"(B, D, D, V, dtype, equal weights) of the ranks {sizes}", "the same on every rank")
    x, sigma = _everywhere(x, group), _everywhere(sigma, group)
    own = reduce(x, replace(cloud, whole=sum(ranks.gathered(len(cloud), group))), sigma, backend)
    own = GaussianPosterior(*(t.double() for t in own))
    columns = ranks.stacked(torch.cat([own.log_z[:, None], own.mean, own.spread[:, None]], 1), group)
    parts = [GaussianPosterior(part[:, 0], part[:, 1:-1], part[:, -1]) for part in columns]
    parts[ranks.here(group)[0]] = own  # the one with a gradient
    return GaussianPosterior(*(t.to(x.dtype) for t in merge(parts)))


def _everywhere(t: float | Tensor, group: dist.ProcessGroup | None) -> float | Tensor:
    """What is the same on every rank; its gradient is the sum over ranks."""
    if isinstance(t, Tensor) and t.requires_grad and torch.is_grad_enabled():
        t = t.view_as(t)
        t.register_hook(lambda grad: ranks.total(grad, group))
    return t


@torch.no_grad()
def streamed_posterior(x: Tensor, y: Any, sigma: float | Tensor, *, log_w: Tensor | None = None, values: Any = None,
                       backend: str | None = None, chunk: int = 2**20) -> GaussianPosterior:
    """`gaussian_posterior` of points that are read in chunks of rows; memory O(B + N + chunk), no gradients.

    y, values   (N, D), (N, V): whatever has a length and gives rows as arrays by slices, `numpy.memmap` for one.
    """
    asked(x, sigma, backend)
    check.count("chunk", chunk)
    for name, t in (("y", y), ("values", values)):
        if t is not None and (getattr(t, "ndim", 0) != 2 or len(t) != len(y) or not len(t)):
            got = getattr(t, "shape", type(t).__name__)
            check.refuse(name, got, "an array of shape (N, D), or of the values (N, V), with N ≥ 1")
    if log_w is not None:
        check.log_weights("log_w", log_w, len(y), like=x)

    def parts() -> Iterator[GaussianPosterior]:
        for rows in (slice(start, start + chunk) for start in range(0, len(y), chunk)):
            weights = None if log_w is None else log_w[rows]
            if weights is None or bool((weights > -math.inf).any()):
                given = (None if t is None else torch.as_tensor(np.array(t[rows])).to(x) for t in (y, values))
                points, averaged = given
                cloud = checked("y", points, weights, averaged, like=x)
                yield reduce(x, replace(cloud, whole=len(y)), sigma, backend, once=True)

    return united(parts(), x.dtype)

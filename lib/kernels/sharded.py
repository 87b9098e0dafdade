r"""The one reduction over data that one device does not hold: split over ranks, or streamed from disk.

A posterior over disjoint sets of points is the `merge` of the posteriors over each, so every rank reduces its own
points and all ranks merge what B queries need of them: B·(V + 2) numbers of a rank, whatever N.

    torchrun --nproc-per-node 4 script.py
        device, (rank, world) = ranks.join(), ranks.here()
        seen = sharded_posterior(x, y[rank::world].to(device), sigma)       # the same on every rank
"""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lib.base import check, ranks
from lib.kernels import GaussianPosterior, gaussian_posterior, merge


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
    check.rows("x", x)
    check.rows("y", y)
    sizes = ranks.gathered((*x.shape, y.shape[1], None if values is None else values.shape[1], x.dtype), group)
    if len(set(sizes)) > 1:
        check.refuse("x", f"(B, D, D, V, dtype) of the ranks {sizes}", "the same on every rank")
    if log_w is None:
        log_w = y.new_full((len(y),), -math.log(sum(ranks.gathered(len(y), group))))
    x, sigma = _everywhere(x, group), _everywhere(sigma, group)
    own = gaussian_posterior(x, y, sigma, log_w=log_w, values=values, backend=backend)
    columns = ranks.stacked(torch.cat([own.log_z[:, None], own.mean, own.spread[:, None]], 1), group)
    parts = [GaussianPosterior(part[:, 0], part[:, 1:-1], part[:, -1]) for part in columns]
    parts[ranks.here(group)[0]] = own  # the one with a gradient
    return merge(parts)


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
    check.points("x", x)
    check.count("chunk", chunk)
    if len(y) == 0:
        check.refuse("y", "no rows", "at least one")
    log_w = x.new_full((len(y),), -math.log(len(y))) if log_w is None else log_w
    check.log_weights("log_w", log_w, len(y), like=x)
    total = None
    for start in range(0, len(y), chunk):
        rows = slice(start, start + chunk)
        if bool((log_w[rows] == -math.inf).all()):
            continue
        points, averaged = (None if t is None else torch.as_tensor(np.array(t[rows])).to(x) for t in (y, values))
        part = gaussian_posterior(x, points, sigma, log_w=log_w[rows], values=averaged, backend=backend)
        part = GaussianPosterior(*(t.double() for t in part))  # thousands of sums
        total = part if total is None else merge([total, part])
    return GaussianPosterior(*(t.to(x) for t in total))

"""What one pass over the data returns, when products are accurate enough for it, and how passes are merged."""
from typing import NamedTuple

import torch
from torch import Tensor

MEAN_TOLERANCE = 1e-3  # of σ
LOG_Z_TOLERANCE = 1e-4  # nats
TRITON_COLUMNS = 64  # widest x, y and values of the Triton kernels


class GaussianPosterior(NamedTuple):
    """What one pass over the data returns, for B queries."""

    log_z: Tensor  # (B,)    log Σ_j exp(log_w_j − ‖x − y_j‖²/2σ²), nats
    mean: Tensor  # (B, D)  posterior mean of y, or (B, V) of `values`
    spread: Tensor  # (B,)    trace of the posterior covariance of y, or of `values`; ≥ 0


def tolerable(delta: Tensor, radius: Tensor, sigma: Tensor) -> Tensor:
    """Where logits off by δ keep log_z and the mean, of points within `radius` of it, in their tolerances."""
    return (delta <= LOG_Z_TOLERANCE) & (2 * delta * radius <= MEAN_TOLERANCE * sigma)


def products_are_enough(reach: Tensor, radius: Tensor, sigma: Tensor, heaviest: Tensor | float, eps: float,
                        part: bool = False) -> bool:
    """Whether the estimate δ of the docstring of `lib.kernels` meets the tolerances for all queries.

    reach, radius  distance from the centre of each query (B,), and the largest of a point (0-d).
    heaviest       the largest |log-weight|.
    part           of a whole: log_z also weighs its mean against those of other parts, as far from a query as this one.
    """
    reach, sigma = reach.detach(), sigma.detach()
    delta = (reach * radius + radius**2 / 2) / sigma**2 + heaviest
    return bool(tolerable(eps * delta, radius + reach if part else radius, sigma).all())


def merge(parts: list[GaussianPosterior]) -> GaussianPosterior:
    """The posterior over the union of disjoint sets of points, from the posteriors over each.

    Exact and associative, so a data set can be streamed in blocks or split over machines.  Every part
    must carry the log-weights of the whole (for N equal points: −log N, not minus the log of its own count), and
    its log_z in float64: float32 holds one of −10⁶ to a sixteenth, and that is what weighs the parts.
    """
    log_z = torch.stack([part.log_z for part in parts])
    total = log_z.logsumexp(0)
    means = torch.stack([part.mean for part in parts])
    p = (log_z - total).exp().to(means)
    mean = (p[..., None] * means).sum(0)
    within = torch.stack([part.spread for part in parts])
    between = (means - mean).square().sum(-1)
    return GaussianPosterior(total, mean, (p * (within + between)).sum(0))

r"""Kernel smoothing: the score of a noised data set in closed form, with one noise for all or one for each datum.

The data set seen through a Markov process is a mixture of transition densities, one for each datum, and its score is
a softmax average of theirs.  `kernel_score` is that (diffusion kernel smoothing); its reverse flow returns the data:
it memorises.  `riemannian_kernel_score` blurs every datum along its neighbourhood first,

    ρ̂_0 = (1/N) Σ_i N(y_i, H_i),     H_i = h²·(local covariance at y_i) + floor²·I,

with the local metric H_i⁻¹, and pushes this mixture through the process.  It is a RECONSTRUCTION from a sentence of
the abstract of Shen et al. (arXiv 2406.09084), not the authors' algorithm, which we have not seen.
"""
import math
from typing import NamedTuple

import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from lib.base import check
from lib.kernels import gaussian_posterior
from lib.markov.process import OrnsteinUhlenbeck, Process

VARIANTS = ("pushed", "frozen")


def kernel_score(data: Tensor, process: Process, tau: float, x: Tensor, *, log_w: Tensor | None = None) -> Tensor:
    """Exact score at x (B, d) of the data (N, d) noised for a time τ > 0, shape (B, d).

    `log_w` (N,) are log-weights, None means equal ones.  For `ReflectedBrownian` every datum has mirror images
    along each axis: a cost exponential in d.
    """
    check.points("data", data, dim=process.dim)
    check.points("x", x, dim=process.dim, like=data)
    check.positive("tau", tau)
    return process.kernel_score(data, float(tau), x, log_w)


def riemannian_kernel_score(data: Tensor, process: OrnsteinUhlenbeck, tau: float, x: Tensor, *,
                            metric: Tensor | None = None, variant: str = "pushed", **neighbourhood: float) -> Tensor:
    """Score at x (B, d) of the data (N, d), each with a covariance of its own, at time τ > 0, shape (B, d).

    metric   (N, d, d) covariances H_i; None computes `local_covariances(data, **neighbourhood)` (keep them, if you
             call this more than once).  H = 0 gives `kernel_score`, H = h²I a kernel density estimate.
    variant  "pushed" or "frozen", see `noised_gaussians`.
    A reconstruction, see the head of this module.
    """
    check.points("data", data)
    metric = local_covariances(data, **neighbourhood) if metric is None else metric
    return gaussian_mixture(x, *noised_gaussians(data, process, tau, metric, variant)).score


def noised_gaussians(data: Tensor, process: OrnsteinUhlenbeck, tau: float, metric: Tensor,
                     variant: str = "pushed") -> tuple[Tensor, Tensor]:
    """Means (N, d) and covariances (N, d, d) at time τ of the mixture with a covariance H_i for each datum y_i.

    pushed  (R1) N(y_i, H_i) carried through the process exactly: mean Ry_i, covariance RH_iR + I − R², R = e^{−Cτ}.
    frozen  (R2) the process with C frozen at C_i = d·H_i/tr H_i for each datum: R_i y_i and I − R_i², R_i = e^{−C_iτ}.
    """
    check.points("data", data, dim=process.dim)
    check.choice("variant", variant, VARIANTS)
    check.positive("tau", tau)
    if not isinstance(process, OrnsteinUhlenbeck):
        check.refuse("process", type(process).__name__, "an OrnsteinUhlenbeck process")
    if check.floating("metric", metric).shape != (*data.shape, data.shape[1]):
        check.refuse("metric", f"shape {tuple(metric.shape)}", f"shape {(*data.shape, data.shape[1])}")
    y, h = data.double(), check.finite("metric", metric).to(data.device).double()
    if variant == "pushed":
        rates, axes = process.rates.to(y), process.frame.to(y)
    else:
        rates, axes = torch.linalg.eigh(h * (h.shape[1] / h.diagonal(dim1=1, dim2=2).sum(1))[:, None, None])
    r = (axes * (-tau * rates).exp()[..., None, :]) @ axes.mT
    noise = (axes * -torch.expm1(-2 * tau * rates)[..., None, :]) @ axes.mT
    means = (r @ y[..., None])[..., 0]
    return means, r @ h @ r + noise if variant == "pushed" else noise


class Mixture(NamedTuple):
    """A mixture of Gaussians seen from B points."""

    log_p: Tensor  # (B,)  nats
    score: Tensor  # (B, d)


def gaussian_mixture(x: Tensor, means: Tensor, covariances: Tensor) -> Mixture:
    """Log-density and score at x (B, d) of the equal mixture of N(means_i, covariances_i), (N, d) and (N, d, d).

    With P_i the precisions, log N(x; μ_i, P_i⁻¹) is linear in the features (xxᵀ, x), so this is the one reduction on
    features with the values (P_i, P_i μ_i): a streamed softmax, and B × N numbers are never held.
    """
    check.points("x", x, dim=check.points("means", means).shape[1])
    if check.floating("covariances", covariances).shape != (*means.shape, means.shape[1]):
        check.refuse("covariances", f"shape {tuple(covariances.shape)}", f"shape {(*means.shape, means.shape[1])}")
    centre = means.double().mean(0)
    y, mu = x.double() - centre, means.double() - centre
    root, failed = torch.linalg.cholesky_ex(check.finite("covariances", covariances).double())
    if bool(failed.any()):
        check.refuse("covariances", f"{int((failed > 0).sum())} that are not", "positive definite matrices")
    precision, pull = torch.cholesky_inverse(root), torch.cholesky_solve(mu[..., None], root)[..., 0]
    i, j = torch.triu_indices(x.shape[1], x.shape[1])
    twice = torch.where(i == j, 0.5, 1.0).to(y)
    features = torch.cat([y[:, i] * y[:, j], y], 1)
    keys = torch.cat([-twice * precision[:, i, j], pull], 1)
    constant = (-(mu * pull).sum(1) / 2 - root.diagonal(dim1=1, dim2=2).log().sum(1)
                - x.shape[1] / 2 * math.log(2 * math.pi) - math.log(len(mu)))
    seen = gaussian_posterior(features, keys, 1.0, log_w=constant + keys.square().sum(1) / 2)
    log_p = seen.log_z + features.square().sum(1) / 2
    mean = torch.zeros_like(y[:, :, None] * y[:, None])  # the average precision
    mean[:, i, j] = mean[:, j, i] = -seen.mean[:, :len(i)] / twice
    return Mixture(log_p.to(x.dtype), (seen.mean[:, len(i):] - torch.einsum("bij,bj->bi", mean, y)).to(x.dtype))


def local_covariances(data: Tensor, neighbours: int = 6, scale: float = 1.0, floor: float = 0.03) -> Tensor:
    """H_i = scale²·(mean of (y_l − y_i)(y_l − y_i)ᵀ over the nearest neighbours l of datum i) + floor²·I, (N, d, d)."""
    check.points("data", data)
    if len(data) <= check.count("neighbours", neighbours):
        check.refuse("neighbours", neighbours, f"fewer neighbours than points, {len(data)}")
    data = data.detach()
    points = data.cpu().numpy()
    near = NearestNeighbors(n_neighbors=neighbours + 1).fit(points).kneighbors(points, return_distance=False)
    steps = (data[torch.from_numpy(near).to(data.device)] - data[:, None]).double()
    floor_ = floor**2 * torch.eye(data.shape[1]).to(steps)
    return scale**2 / neighbours * steps.mT @ steps + floor_

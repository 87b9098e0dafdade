"""The one reduction as it is defined: what every other way to compute it is tested against."""
from torch import Tensor

from lib.kernels.cloud import Cloud
from lib.kernels.terms import GaussianPosterior


def definition(x: Tensor, cloud: Cloud, sigma: Tensor) -> GaussianPosterior:
    """The formulas of `lib.kernels`, as they stand, in float64; forms the B × N matrix."""
    x, y, v, sigma = x.double(), cloud.y.double(), cloud.v.double(), sigma.double().reshape(-1, 1)
    log_w = 0 if cloud.log_w is None else cloud.log_w.double()
    centre = y.mean(0)
    x, y = x - centre, y - centre
    logits = log_w + (x @ y.T - y.square().sum(1) / 2) / sigma**2  # ℓ + ‖x‖²/2σ², of which the softmax is the same
    p = logits.softmax(1)
    mean = p @ v
    origin = v.mean(0)
    spread = p @ (v - origin).square().sum(1) - (mean - origin).square().sum(1)
    log_z = logits.logsumexp(1) - (x.square() / (2 * sigma**2)).sum(1)
    return GaussianPosterior(log_z, mean, spread.clamp_min(0))

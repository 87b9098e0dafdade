"""The one door to the reduction: what is valid, and which way is fastest where."""
import functools
import importlib.util
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from lib.base import check
from lib.kernels.attention import attention
from lib.kernels.cloud import WIDE, Cloud, checked
from lib.kernels.definition import definition
from lib.kernels.terms import TRITON_COLUMNS, GaussianPosterior, merge

BACKENDS = ("definition", "cpu", "blocks", "triton")
ONCE = 2**22  # numbers that attention derives at a time of points it sees but once: 17 MB in float32


def gaussian_posterior(x: Tensor, y: Tensor | Cloud, sigma: float | Tensor, *, log_w: Tensor | None = None,
                       values: Tensor | None = None, backend: str | None = None) -> GaussianPosterior:
    """Log-normaliser, posterior mean and posterior spread of points `y` seen from `x` with noise `sigma`.

    x       (B, D) queries, float32 or float64; bfloat16 trades accuracy for speed, see below.
    y       (N, D) points, same dtype and device; or what `prepare` made of them, their log_w and values.
    sigma   standard deviation of the noise, > 0: a number or (B,), one for each query.
    log_w   (N,) log-weights, used as given (−inf masks a point); None means −log N each.
    values  (N, V) averaged in place of `y`.
    backend None chooses: "cpu" for CPU tensors of up to 512 columns, "blocks" for wider ones, "triton" or "blocks"
            elsewhere, "definition" inside functorch transforms and torch.compile; a name insists.

    Differentiable in x, y, sigma, log_w and values; once, except by "definition".  The mean is within 1e-3·σ,
    log_z within 1e-4 nats and 2 ulp, the spread within 1e-3·σ² + 0.1 %, for σ down to 1e-3 of the data's scale;
    the mean of `values` within 2e-4 of their radius.
    Raises ValueError naming the argument for wrong shapes or dtypes, empty or non-finite input, σ ≤ 0.

    In bfloat16 the results are float32, of the points as bfloat16 holds them (3 digits: that rounding is the
    caller's).  Where tensor cores then take them as they are, the weights p_j are rounded as well, which moves
    log_z by at most 2⁻⁸, the mean by 2⁻⁸·√spread and the spread by 1 %.
    """
    rounded = y.rounded if isinstance(y, Cloud) else getattr(y, "dtype", None) == torch.bfloat16
    plain = x.float() if rounded and isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x
    sigma = asked(plain, sigma, backend)
    cloud = checked("y", y, log_w, values, like=plain)
    found = reduce(x, cloud, sigma, backend, once=cloud is not y)
    if not check.opaque(found.log_z) and not bool(found.log_z.isfinite().all()):
        check.refuse("sigma", f"{sigma.min().item():.3g}, for which ‖x − y‖²/2σ² is beyond {found.log_z.dtype}",
                     "a larger σ, nearer points, or float64")
    return found


def asked(x: Tensor, sigma: float | Tensor, backend: str | None) -> Tensor:
    """What is asked of a data set, checked; σ as a tensor."""
    check.choice("backend", backend, (None, *BACKENDS))
    return check.positive("sigma", sigma, shape=(len(check.points("x", x)),), like=x)


def reduce(x: Tensor, cloud: Cloud, sigma: float | Tensor, backend: str | None = None, *,
           once: bool = False) -> GaussianPosterior:
    """`gaussian_posterior` of arguments that were checked before: for loops, whose door is outside.

    once  the cloud will be seen no more: what attention derives of it is made and dropped part by part.
    """
    rounded = x.dtype == torch.bfloat16
    x = x.float() if rounded else x
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    if backend is None:
        opaque = check.opaque(x, cloud.y, sigma, cloud.log_w, cloud.values)
        backend = "definition" if opaque else _fastest(x, cloud.columns)
    if once and backend in ("cpu", "blocks"):
        rows = max(len(x), ONCE // (cloud.columns + 2))
        if len(cloud) > rows:
            return united((reduce(x, part, sigma, backend) for part in cloud.parts(rows)),
                          torch.float64 if cloud.whole else x.dtype)
    if backend == "triton":
        from lib.kernels import launch  # here, so that nothing else imports triton
        found = launch.posterior(x, cloud, sigma, rounded)
    elif backend == "definition":
        found = definition(x, cloud, sigma)
    elif backend == "cpu" and x.device.type != "cpu":
        check.refuse("backend", f"'cpu' for tensors on {x.device}", "tensors on the CPU")
    else:
        found = attention(x, cloud, sigma, fused=backend == "cpu")
    log_z = found.log_z.double() - (math.log(cloud.whole or len(cloud)) if cloud.log_w is None else 0)
    found = found._replace(log_z=log_z)
    return found if cloud.whole else GaussianPosterior(*(t.to(x.dtype) for t in found))


def united(parts: Iterable[GaussianPosterior], dtype: torch.dtype) -> GaussianPosterior:
    """The posterior over all `parts` of a whole, one after the other, in `dtype`."""
    total = None
    for part in parts:
        part = GaussianPosterior(*(t.double() for t in part))  # thousands of sums
        total = part if total is None else merge([total, part])
    return GaussianPosterior(*(t.to(dtype) for t in total))


def _fastest(x: Tensor, columns: int) -> str:
    if x.device.type == "cpu":
        return "cpu" if columns <= WIDE else "blocks"
    return "triton" if x.is_cuda and columns <= TRITON_COLUMNS and _triton_is_here() else "blocks"


_triton_is_here = functools.cache(lambda: importlib.util.find_spec("triton") is not None)

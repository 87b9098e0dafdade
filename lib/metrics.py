"""What the chapters measure.  Every docstring says what comes back: squared or not, biased or not, in which units."""
import math
from typing import NamedTuple

import ot
import torch
from torch import Tensor

from lib.base import check


def mmd(x: Tensor, y: Tensor, bandwidth: float | None = None) -> float:
    """Squared MMD between x (n, D) and y (m, D), kernel exp(−‖x−y‖²/2h²) (Gretton et al. 2012, Eq. 3).

    Unbiased, so it can be < 0.  h is `bandwidth`, by default the median distance between the points of y.
    """
    _two_clouds(x, y)
    xx, yy, xy = (_distances(a, b) for a, b in ((x, x), (y, y), (x, y)))
    if bandwidth is None:
        bandwidth = float(yy[~torch.eye(len(y), dtype=torch.bool, device=y.device)].median())
    check.positive("bandwidth", bandwidth)
    kxx, kyy, kxy = (torch.exp(-d.square() / (2 * bandwidth**2)) for d in (xx, yy, xy))
    return float(_off_diagonal_mean(kxx) + _off_diagonal_mean(kyy) - 2 * kxy.mean())


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2E‖X−Y‖ − E‖X−X′‖ − E‖Y−Y′‖ of x (n, D) and y (m, D), not its root, unbiased (can be < 0)."""
    _two_clouds(x, y)
    xx, yy, xy = (_distances(a, b) for a, b in ((x, x), (y, y), (x, y)))
    return float(2 * xy.mean() - _off_diagonal_mean(xx) - _off_diagonal_mean(yy))


def _off_diagonal_mean(k: Tensor) -> Tensor:
    n = len(k)
    return (k.sum() - k.diagonal().sum()) / (n * (n - 1))


def wasserstein2(x: Tensor, y: Tensor) -> float:
    """W₂, not its square, of the empirical measures of x (n, D) and y (m, D), exact, by POT."""
    _two_clouds(x, y)
    cost = _distances(x, y).square().detach().cpu().numpy()
    return math.sqrt(max(float(ot.emd2([], [], cost, numItermax=10_000_000)), 0.0))


def sliced_wasserstein2(x: Tensor, y: Tensor, *, directions: int = 256, generator: torch.Generator) -> float:
    """√(mean over random unit directions of squared W₂ of the projections) of x (n, D) and y (m, D)."""
    _two_clouds(x, y)
    check.generator("generator", generator)
    v = torch.randn((x.shape[1], check.count("directions", directions)), generator=generator, dtype=torch.float64,
                    device=generator.device)
    v = (v / v.norm(dim=0)).to(x.device)
    px, py = (z.double() @ v for z in (x, y))
    return math.sqrt(float(torch.as_tensor(ot.wasserstein_1d(px, py, p=2)).mean()))


class ModeReport(NamedTuple):
    """How samples cover the modes of a mixture."""

    found: int  # modes holding at least one high-quality sample per 10 expected
    total: int
    high_quality: float  # share of samples within `reach` standard deviations of their nearest centre
    kl: float  # KL(shares of the high-quality samples over modes | uniform), nats


def mode_report(x: Tensor, centres: Tensor, std: float, reach: float = 3.0) -> ModeReport:
    """Coverage, quality and balance of samples x (n, D) against centres (K, D) of standard deviation `std`."""
    check.points("x", x)
    check.points("centres", centres, dim=x.shape[1])
    check.positive("std", std)
    check.positive("reach", reach)
    distance, nearest = _distances(x, centres).min(1)
    good = distance <= reach * std
    counts = torch.bincount(nearest[good], minlength=len(centres)).double()
    share = counts / counts.sum().clamp_min(1)
    kl = float(torch.special.xlogy(share, share * len(centres)).sum()) if counts.sum() else math.inf
    found = int((counts >= max(1.0, 0.1 * len(x) / len(centres))).sum())
    return ModeReport(found, len(centres), float(good.double().mean()), kl)


class PrecisionRecall(NamedTuple):
    """Share of samples inside the data's manifold, and of data inside the samples'."""

    precision: float
    recall: float


def precision_recall(samples: Tensor, data: Tensor, k: int = 5) -> PrecisionRecall:
    """Precision and recall by k nearest neighbours (Kynkäänniemi et al. 2019), samples (n, D) against data (m, D)."""
    _two_clouds(samples, data, ("samples", "data"))
    if min(len(samples), len(data)) <= check.count("k", k):
        check.refuse("k", k, "fewer neighbours than points")

    return PrecisionRecall(*(float(_inside(*pair, k).any(1).double().mean())
                             for pair in ((samples, data), (data, samples))))


class DensityCoverage(NamedTuple):
    """How deep in the data the samples lie, and the share of data that has a sample near by."""

    density: float  # 1 for samples like the data, and it may exceed 1
    coverage: float


def density_coverage(samples: Tensor, data: Tensor, k: int = 5) -> DensityCoverage:
    """Naeem et al. (2020), Eqs. 4 and 5: samples (n, D) in the balls that reach the k-th neighbours of data (m, D)."""
    _two_clouds(samples, data, ("samples", "data"))
    if len(data) <= check.count("k", k):
        check.refuse("k", k, "fewer neighbours than points")
    inside = _inside(samples, data, k)
    return DensityCoverage(float(inside.double().sum(1).mean()) / k, float(inside.any(0).double().mean()))


def _inside(points: Tensor, manifold: Tensor, k: int) -> Tensor:
    """Whether each point lies in the ball around each point of the manifold that reaches its k-th neighbour."""
    radius = _distances(manifold, manifold).kthvalue(k + 1, dim=1).values  # the point itself is first
    return _distances(points, manifold) <= radius


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """‖μ − ν‖² + tr(A + B − 2 (A^½ B A^½)^½) of the means and covariances of x (n, D) and y (m, D).

    A squared distance (Dowson & Landau 1982).  It is biased upwards by about 1/n: compare only at equal n and m.
    With A = UᵀU and B = VᵀV the last trace is the sum of the singular values of U Vᵀ.
    """
    _two_clouds(x, y)
    apart = (x.double().mean(0) - y.double().mean(0)).square().sum()
    u, v = (torch.linalg.qr((z.double() - z.double().mean(0)) / math.sqrt(len(z) - 1)).R for z in (x, y))
    return float(apart + u.square().sum() + v.square().sum() - 2 * torch.linalg.svdvals(u @ v.T).sum())


class Histogram(NamedTuple):
    """How labels are spread over classes."""

    share: Tensor  # (classes,) float64
    found: int  # classes that occur
    kl: float  # KL(share | reference), nats


def histogram(label: Tensor, classes: int, reference: Tensor | None = None) -> Histogram:
    """Shares of integer labels (n,) over `classes`, against the reference (classes,), by default uniform."""
    if not isinstance(label, Tensor) or label.dim() != 1 or label.dtype != torch.int64 or not len(label):
        check.refuse("label", getattr(label, "shape", type(label).__name__), "an int64 tensor of shape (n,), n ≥ 1")
    check.within("label", label, 0, check.count("classes", classes) - 1)
    q = torch.full((classes,), 1 / classes) if reference is None else check.vector("reference", reference, classes)
    check.within("reference", q, 0.0, 1.0)
    share = torch.bincount(label, minlength=classes).double() / len(label)
    kl = torch.special.xlogy(share, share) - torch.special.xlogy(share, q.double().to(share))
    return Histogram(share, int((share > 0).sum()), float(kl.sum()))


def copies(samples: Tensor, train: Tensor, held_out: Tensor, share: float = 0.01) -> float:
    """Share of samples (n, D) at most as far from a point of train (l, D) as the nearest `share` of held_out (m, D).

    Fresh data score about `share`, copies of training points 1.  Held-out points that stand in train as well, or data
    on a coarse grid, with its many equal distances, say nothing of copies: a ValueError.
    """
    from sklearn.neighbors import NearestNeighbors

    _two_clouds(samples, train, ("samples", "train"))
    check.points("held_out", held_out, dim=train.shape[1], like=train)
    check.within("share", share, 0, 1)
    plain = lambda z: z.detach().double().cpu().numpy()
    tree = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(plain(train))
    nearest = (tree.kneighbors(plain(z), return_distance=False)[:, 0] for z in (samples, held_out))
    near, fresh = ((z - train[torch.from_numpy(which).to(train.device)]).norm(dim=1)  # a copy is at 0, not near it
                   for z, which in zip((samples, held_out), nearest, strict=True))
    bound = fresh.quantile(float(share))
    if bound == 0:
        check.refuse("held_out", f"{float((fresh == 0).double().mean()):.2%} of its points in train", "unseen points")
    return float((near <= bound).double().mean())


def c2st(x: Tensor, y: Tensor, *, folds: int = 5, seed: int = 0) -> float:
    """Held-out accuracy of a boosted classifier told to separate x from y, ½ if it cannot (Lopez-Paz & Oquab 2017)."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    _two_clouds(x, y)
    check.count("seed", seed, low=0)
    n = min(len(x), len(y))
    if check.count("folds", folds, low=2) > n:
        check.refuse("folds", folds, f"at most {n}, the number of points in each cloud")
    features = torch.cat([x[:n], y[:n]]).detach().cpu().numpy()
    labels = torch.cat([torch.zeros(n), torch.ones(n)]).numpy()
    folds_ = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return float(cross_val_score(HistGradientBoostingClassifier(random_state=seed), features, labels, cv=folds_).mean())


def bits_per_dim(log_p: Tensor, dim: int, levels: int) -> float:
    """Mean bits per dimension from log-densities (B,), in nats, of x = (k + U)/levels in [0, 1]^dim.

    One level has volume 1/levels per dimension, so log₂ P(k) ≥ E log₂ p − dim·log₂ levels: an upper bound on
    the code length, in bits for each dimension.
    """
    check.count("dim", dim)
    check.count("levels", levels)
    check.vector("log_p", log_p)
    return float((math.log(levels) - log_p.double().mean() / dim) / math.log(2))


def histogram_bits(train: Tensor, held_out: Tensor, levels: int) -> Tensor:
    """Mean bits per dimension (m,) of each held-out k (m, D) by a histogram of train (n, D) for each coordinate.

    Whole numbers 0 … levels − 1; to every level is added one count, so that none is impossible.
    """
    _two_clouds(train, held_out, ("train", "held_out"))
    for name, k in (("train", train), ("held_out", held_out)):
        check.within(name, k, 0, check.count("levels", levels) - 1)
        if not torch.equal(k, k.round()):
            check.refuse(name, "fractions", "whole numbers")
    first = levels * torch.arange(train.shape[1], device=train.device)
    count = 1 + torch.bincount((train.long() + first).flatten(), minlength=levels * train.shape[1]).double()
    return -(count / (len(train) + levels)).log2()[held_out.long() + first].mean(1)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """All distances in float64, without the expansion of the square that cancels for near points far from 0."""
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _two_clouds(x: Tensor, y: Tensor, names: tuple[str, str] = ("x", "y")) -> None:
    check.points(names[0], x)
    check.points(names[1], y, dim=x.shape[1], like=x)
    if min(len(x), len(y)) < 2:
        check.refuse(" and ".join(names), f"{len(x)} and {len(y)} points", "at least two of each")

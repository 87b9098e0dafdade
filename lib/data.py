r"""Data: two-dimensional classics with exact densities, and real sets that ship with the repository.

Every classic is a `Toy`.  Mixtures, checkerboard and pinwheel have closed-form densities.  Curves blurred by
Gaussian noise (moons, spirals, Swiss roll, S-curve, circles),

    p(x) = ∫ N(x; c(u), s² I) du,

are integrated by composite Gauss–Legendre quadrature in √u, exact to rounding for the widths used here:
a quadrature rule is a weighted point cloud, so their log-density is the one reduction again.

Real sets are read from `data/` (made by `scripts/make_data.py`, pulled by `dvc pull data.dvc`), checked against
a committed SHA-256, and split by seed.  Larger sets come through OpenML.
"""
from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as File
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib import check
from lib.kernels import gaussian_posterior

FOLDER = File(__file__).resolve().parent.parent / "data"
SHA256 = {
    "breast_cancer.npz": "0632b2815ee02cb52594ff6a80525621a6605e996daeadcbcfc67cc9dbce357b",
    "digits.npz": "1dc781c8fe699ce12f056a510e6dd518c795428f089effc1a3e2eec0f3ece269",
    "photographs.npz": "dc926320c4c58e33eb9bba2e2c618b10325c7b5e0efc184c124a40ae6b77a0ef",
}
OPENML = {  # name: (identifier, rows, columns)
    "mnist": (554, 70_000, 784),
    "fashion-mnist": (40996, 70_000, 784),
    "cifar-10": (40927, 60_000, 3072),
    "miniboone": (41150, 130_064, 50),
}


@dataclass(frozen=True)
class Toy:
    """A two-dimensional density: exact sampling and exact log-density."""

    name: str
    sampler: Callable[[int, torch.Generator], Tensor]
    log_density: Callable[[Tensor], Tensor]
    centres: Tensor | None = None  # (K, 2) modes of a mixture
    std: float | None = None  # standard deviation of a mode, or of the noise around a curve

    def sample(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """n independent points, shape (n, 2), drawn on the CPU."""
        check.count("n", n)
        return self.sampler(n, check.generator("generator", generator)).to(dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, shape (B,), for x (B, 2); −inf outside the support."""
        check.points("x", x, dim=2)
        return self.log_density(x.double()).to(x.dtype)


def mixture(name: str, centres: Tensor, std: float) -> Toy:
    """Equal mixture of isotropic Gaussians: centres (K, 2), standard deviation `std`."""
    centres = check.points("centres", centres, dim=2).double()
    check.positive("std", std)

    def sample(n: int, g: torch.Generator) -> Tensor:
        which = torch.randint(len(centres), (n,), generator=g)
        return centres[which] + std * torch.randn((n, 2), generator=g, dtype=torch.float64)

    def log_prob(x: Tensor) -> Tensor:
        return gaussian_posterior(x, centres.to(x.device), std).log_z - math.log(2 * math.pi * std**2)

    return Toy(name, sample, log_prob, centres, std)


def eight_gaussians(radius: float = 4 / math.sqrt(2), std: float = 0.5 / math.sqrt(2)) -> Toy:
    """Eight Gaussians on a circle (sizes of Grathwohl et al. 2019)."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return mixture("8 Gaussians", radius * torch.stack([angle.cos(), angle.sin()], 1), std)


def gaussian_grid(side: int = 5, spacing: float = 2.0, std: float = 0.05) -> Toy:
    """side × side Gaussians on a square grid centred at 0; the 25-Gaussian grid by default."""
    line = spacing * (torch.arange(side, dtype=torch.float64) - (side - 1) / 2)
    return mixture(f"{side**2} Gaussians", torch.cartesian_prod(line, line), std)


def checkerboard() -> Toy:
    """Uniform on the eight dark squares, of side 2, of a board over [−4, 4]²; entropy log 32 nats."""

    def sample(n: int, g: torch.Generator) -> Tensor:
        column = torch.randint(4, (n,), generator=g)
        row = 2 * torch.randint(2, (n,), generator=g) + column % 2
        return 2 * (torch.stack([column, row], 1) + torch.rand((n, 2), generator=g, dtype=torch.float64)) - 4

    def log_prob(x: Tensor) -> Tensor:
        cell = torch.div(x + 4, 2, rounding_mode="floor")
        inside = ((cell >= 0) & (cell <= 3)).all(1) & (cell.sum(1) % 2 == 0)
        return torch.where(inside, -math.log(32.0), -math.inf).to(x)

    return Toy("checkerboard", sample, log_prob)


def pinwheel(arms: int = 5, radial: float = 0.6, tangential: float = 0.2, twist: float = 0.6) -> Toy:
    """Gaussian arms around (2, 0), turned to their places and sheared by the angle twist·|x|.

    A rotation by an angle that depends on |x| keeps |x| and areas, so the density is that of the
    unsheared point.  (Johnson et al. 2016 shear by the radial coordinate before rotation, which has no
    single-valued inverse.)
    """
    angle = torch.arange(arms, dtype=torch.float64) * 2 * math.pi / arms
    scale, centre = torch.tensor([[radial, tangential], [2.0, 0.0]], dtype=torch.float64)

    def sample(n: int, g: torch.Generator) -> Tensor:
        z = centre + scale * torch.randn((n, 2), generator=g, dtype=torch.float64)
        return _rotate(z, angle[torch.randint(arms, (n,), generator=g)] + twist * z.norm(dim=1))

    def log_prob(x: Tensor) -> Tensor:
        s, c = scale.to(x), centre.to(x)
        z = torch.stack([_rotate(x, -(a + twist * x.norm(dim=1))) for a in angle.tolist()])
        log_normal = -((z - c) / s).square().sum(-1) / 2 - torch.log(2 * math.pi * s.prod())
        return log_normal.logsumexp(0) - math.log(arms)

    return Toy("pinwheel", sample, log_prob)


def curves(name: str, parts: list[Callable[[Tensor], Tensor]], std: float, panels: int = 96, order: int = 16) -> Toy:
    """Equal mixture of curves u ∈ [0, 1] → R², u uniform, plus isotropic Gaussian noise `std`."""
    check.positive("std", std)
    z, w = np.polynomial.legendre.leggauss(order)
    root = torch.from_numpy(((np.arange(panels)[:, None] + (z + 1) / 2) / panels).ravel())  # √u: smooth in √u is enough
    weight = torch.from_numpy(np.tile(w / 2 / panels, panels)) * 2 * root / len(parts)
    nodes, log_w = torch.cat([c(root**2) for c in parts]), weight.log().repeat(len(parts))

    def sample(n: int, g: torch.Generator) -> Tensor:
        which = torch.randint(len(parts), (n,), generator=g)
        u = torch.rand((n,), generator=g, dtype=torch.float64)
        on_curve = torch.stack([c(u) for c in parts])[which, torch.arange(n)]
        return on_curve + std * torch.randn((n, 2), generator=g, dtype=torch.float64)

    def log_prob(x: Tensor) -> Tensor:
        seen = gaussian_posterior(x, nodes.to(x.device), std, log_w=log_w.to(x.device))
        return seen.log_z - math.log(2 * math.pi * std**2)

    return Toy(name, sample, log_prob, std=std)


def two_moons(std: float = 0.2) -> Toy:
    """Two interleaved half circles of radius 2."""
    def arc(u: Tensor) -> Tensor:
        return 2 * torch.stack([torch.cos(math.pi * u) - 0.5, torch.sin(math.pi * u) - 0.25], 1)
    return curves("two moons", [arc, lambda u: -arc(u)], std)


def two_spirals(std: float = 0.1) -> Toy:
    """Two spirals of one and a half turns, out to radius π; density even along the area swept."""
    def arm(u: Tensor) -> Tensor:
        angle = 3 * math.pi * u.sqrt()
        return angle[:, None] / 3 * torch.stack([-angle.cos(), angle.sin()], 1)
    return curves("two spirals", [arm, lambda u: -arm(u)], std)


def swiss_roll(std: float = 0.15) -> Toy:
    """A planar Swiss roll: angle uniform on [1.5π, 4.5π], radius a fifth of the angle."""
    def roll(u: Tensor) -> Tensor:
        angle = 1.5 * math.pi * (1 + 2 * u)
        return angle[:, None] / 5 * torch.stack([angle.cos(), angle.sin()], 1)
    return curves("Swiss roll", [roll], std)


def s_curve(std: float = 0.15) -> Toy:
    """An S of two circular arcs of radius 1.5."""
    def arc(u: Tensor) -> Tensor:  # from the centre of the S upward
        angle = 1.5 * math.pi * u
        return 1.5 * torch.stack([angle.sin(), 1 - angle.cos()], 1)
    return curves("S-curve", [arc, lambda u: -arc(u)], std)


def circles(radii: tuple[float, ...] = (1.5, 3.0), std: float = 0.15) -> Toy:
    """Concentric circles, equally likely; one radius gives a ring."""
    def circle(r: float) -> Callable[[Tensor], Tensor]:
        return lambda u: r * torch.stack([torch.cos(2 * math.pi * u), torch.sin(2 * math.pi * u)], 1)
    return curves("ring" if len(radii) == 1 else "circles", [circle(r) for r in radii], std)


TOYS: dict[str, Callable[[], Toy]] = {
    "8 Gaussians": eight_gaussians, "25 Gaussians": gaussian_grid, "checkerboard": checkerboard,
    "two moons": two_moons, "two spirals": two_spirals, "pinwheel": pinwheel,
    "Swiss roll": swiss_roll, "S-curve": s_curve, "circles": circles,
}


def _rotate(z: Tensor, angle: Tensor) -> Tensor:
    c, s = angle.cos(), angle.sin()
    return torch.stack([c * z[:, 0] - s * z[:, 1], s * z[:, 0] + c * z[:, 1]], 1)


class Part(NamedTuple):
    """One part of a data set."""

    x: Tensor  # (n, D) float32
    label: Tensor  # (n,) int64


class Splits(NamedTuple):
    """Training, validation and test parts, disjoint."""

    train: Part
    validation: Part
    test: Part


def digits(*, seed: int = 0, dequantise: bool = True) -> Splits:
    """1,797 handwritten digits as (n, 64) in [0, 1]: 1,197 / 300 / 300, shuffled by `seed`.

    Pixels have 17 levels k.  `dequantise` returns (k + U)/17, U uniform on [0, 1), whose density p bounds
    the probability of the levels: log P(k) ≥ E log p − 64 log 17.  Without it, k/16.
    """
    g, raw = torch.Generator().manual_seed(check.count("seed", seed, low=0)), _load("digits.npz")
    k = torch.from_numpy(raw["images"].reshape(-1, 64).astype(np.float32))
    splits = _split(k, torch.from_numpy(raw["labels"].astype(np.int64)), g, validation=300, test=300)
    return _scaled(splits, 17, dequantise, g)


def breast_cancer(*, seed: int = 0) -> Splits:
    """569 biopsies × 30 positive measurements in their own units, label 1 benign: 369 / 100 / 100 by `seed`."""
    g, raw = torch.Generator().manual_seed(check.count("seed", seed, low=0)), _load("breast_cancer.npz")
    x = torch.from_numpy(raw["features"].astype(np.float32))
    return _split(x, torch.from_numpy(raw["labels"].astype(np.int64)), g, validation=100, test=100)


def photographs() -> dict[str, Tensor]:
    """The two photographs, uint8 tensors (427, 640, 3), by name: china, flower."""
    return {name: torch.from_numpy(image) for name, image in _load("photographs.npz").items()}


def patches(n: int = 50_000, *, seed: int = 0, side: int = 8, colour: bool = False, remove_mean: bool = False,
            dequantise: bool = True) -> Splits:
    """Overlapping side × side patches of the photographs: n / n//10 / n//10, label = photograph.

    The images are first cut into bands of columns (70 % train, 15 % validation, 15 % test) with a gap of
    `side` pixels between bands, and patches are cut inside a band, so no pixel is shared.  Values are
    (k + U)/256 in [0, 1] per channel ("grey" is the rounded mean of the channels).  `remove_mean` subtracts
    each patch's mean and drops its last pixel, as the BSDS300 benchmark does: 63 dimensions for side 8.
    """
    check.count("n", n, low=10)
    check.count("side", side)
    g = torch.Generator().manual_seed(check.count("seed", seed, low=0))
    images = [image if colour else image.double().mean(2, keepdim=True).round() for image in photographs().values()]
    width = images[0].shape[1]
    first, second = int(0.7 * width), int(0.85 * width)
    bands = ((0, first), (first + side, second), (second + side, width))
    if min(right - left for left, right in bands) < side:
        check.refuse("side", side, f"bands of {width} columns wide enough for a patch")
    cut = Splits(*(_cut(images, band, size, side, g) for band, size in zip(bands, (n, n // 10, n // 10), strict=True)))
    splits = _scaled(cut, 256, dequantise, g)
    if remove_mean:
        splits = Splits(*(Part((x - x.mean(1, keepdim=True))[:, :-1].contiguous(), label) for x, label in splits))
    return splits


def _cut(images: list[Tensor], band: tuple[int, int], n: int, side: int, g: torch.Generator) -> Part:
    windows = torch.stack([image[:, band[0]:band[1]].unfold(0, side, 1).unfold(1, side, 1) for image in images])
    available = math.prod(windows.shape[:3])
    if n > available:
        check.refuse("n", n, f"at most {available} patches of side {side} in this band")
    place = torch.unravel_index(torch.randperm(available, generator=g)[:n], windows.shape[:3])  # label, row, column
    return Part(windows[place].permute(0, 2, 3, 1).reshape(n, -1).float(), place[0])


def _scaled(splits: Splits, levels: int, dequantise: bool, g: torch.Generator) -> Splits:
    """(k + U)/levels or k/(levels − 1), after the split: one seed means one split, dequantised or not."""
    def scale(k: Tensor) -> Tensor:  # U stays 2⁻¹⁶ short of 1, or float32 would sometimes round up to the next level
        noise = torch.rand(k.shape, generator=g) * (1 - 2**-16) if dequantise else 0
        return (k + noise) / (levels if dequantise else levels - 1)
    return Splits(*(Part(scale(k), label) for k, label in splits))


def _split(x: Tensor, label: Tensor, g: torch.Generator, *, validation: int, test: int) -> Splits:
    parts = torch.randperm(len(x), generator=g).split((len(x) - validation - test, validation, test))
    return Splits(*(Part(x[i], label[i]) for i in parts))


def _load(name: str) -> dict[str, np.ndarray]:
    file = FOLDER / name
    if not file.exists():
        raise FileNotFoundError(f"data/{name} is missing; need the bundled data: `make data` or `dvc pull data.dvc`")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256[name]:
        check.refuse(f"data/{name}", f"SHA-256 {found[:12]}…",
                     f"{SHA256[name][:12]}…: the file is damaged; delete it and run `make data`")
    with np.load(file) as arrays:
        return {key: arrays[key] for key in arrays.files}


@dataclass(frozen=True)
class Affine:
    """z = (x − shift)/scale, with the logarithm of its Jacobian, so that densities can be carried back."""

    shift: Tensor  # (D,)
    scale: Tensor  # (D,) > 0

    @property
    def log_det(self) -> float:
        """log|dz/dx| in nats: log p_x(x) = log p_z(z) + log_det."""
        return -float(self.scale.double().log().sum())

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.shift.to(x)) / self.scale.to(x)

    def inverse(self, z: Tensor) -> Tensor:
        """x from z."""
        return z * self.scale.to(z) + self.shift.to(z)


def normaliser(x: Tensor, *, per_coordinate: bool = False) -> Affine:
    """Centre x (n, D) and scale it to unit second moment: one scalar for all, or one for each coordinate."""
    check.points("x", x)
    shift = x.mean(0)
    moment = (x - shift).square().mean(0)
    scale = (moment if per_coordinate else moment.mean().expand_as(moment)).sqrt()
    constant = (x == x[0]).all(0)
    if bool(constant.any() if per_coordinate else constant.all()):
        check.refuse("x", f"{int(constant.sum())} constant coordinates of {x.shape[1]}", "coordinates that vary")
    return Affine(shift, scale.clone())


def openml(name: str, *, cache: str | File | None = None) -> Part:
    """A larger set through OpenML: "mnist", "fashion-mnist", "cifar-10" or "miniboone", x as published.

    Downloaded once by scikit-learn into `cache` (default: scikit-learn's data home), which checks the
    publisher's MD5; the shape is checked here.  Offline and not cached, a `ConnectionError` says so.
    """
    from sklearn.datasets import fetch_openml

    check.choice("name", name, tuple(OPENML))
    identifier, rows, columns = OPENML[name]
    try:
        bunch = fetch_openml(data_id=identifier, as_frame=False, parser="liac-arff", data_home=cache)
    except OSError as error:
        raise ConnectionError(f"openml: {name!r} is neither cached nor reachable ({error}); connect once, "
                              "or copy a cached scikit-learn data home to this machine") from error
    if bunch.data.shape != (rows, columns):
        check.refuse(name, f"shape {bunch.data.shape}", f"shape {(rows, columns)}")
    x, label = np.asarray(bunch.data, dtype=np.float32), np.unique(bunch.target, return_inverse=True)[1]
    return Part(torch.from_numpy(x), torch.from_numpy(label))

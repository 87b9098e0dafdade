r"""Two-dimensional classics with exact densities.

Every classic is a `Toy`.  Mixtures, checkerboard and pinwheel have closed-form densities.  Curves blurred by
Gaussian noise (moons, spirals, Swiss roll, S-curve, circles),

    p(x) = ∫ N(x; c(u), s² I) du,

are integrated by composite Gauss–Legendre quadrature in √u, exact to rounding for the widths used here:
a quadrature rule is a weighted point cloud, so their log-density is the one reduction again.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.base import check
from lib.kernels import gaussian_posterior


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
    check.positive("spacing", spacing)
    line = spacing * (torch.arange(check.count("side", side), dtype=torch.float64) - (side - 1) / 2)
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
    for name, value in (("radial", radial), ("tangential", tangential)):
        check.positive(name, value)
    check.within("twist", twist, -100.0, 100.0)
    angle = torch.arange(check.count("arms", arms), dtype=torch.float64) * 2 * math.pi / arms
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

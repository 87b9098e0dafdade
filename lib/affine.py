"""Affine maps of coordinates, with the logarithm of their Jacobian, and the one that sets the scale of data."""
from dataclasses import dataclass

from torch import Tensor

from lib.base import check


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

"""Shapes that recur: times as tensors, coefficients as columns."""
import torch
from torch import Tensor

from lib.base import check


def column(c: Tensor, x: Tensor) -> Tensor:
    """A coefficient of shape () or (B,) shaped to multiply x of shape (B, …) along its first axis."""
    if c.dim() == 0:
        return c
    if c.shape != x.shape[:1]:
        check.refuse("t", f"shape {tuple(c.shape)}", f"a number or shape {tuple(x.shape[:1])}, one time for each x")
    return c.reshape(-1, *[1] * (x.dim() - 1))


def as_time(t: float | Tensor, x: Tensor | None = None) -> Tensor:
    """`t` as a floating-point tensor in [0, 1], with the dtype and device of `x` where it is given."""
    check.within("t", t, 0.0, 1.0)
    if x is not None:
        return torch.as_tensor(t, dtype=x.dtype, device=x.device)
    t = torch.as_tensor(t)
    return t if t.is_floating_point() else t.to(torch.get_default_dtype())

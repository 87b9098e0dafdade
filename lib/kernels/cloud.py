"""A data set made ready for the one reduction: checked once, then centred, squared and padded once a precision."""
from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lib.base import check

WIDE = 512  # columns beyond which a CPU is faster by blocks of products than by fused attention


class Terms(NamedTuple):
    """A cloud as attention wants it, in one precision; one and the same matrix twice where nothing tells them apart."""

    keys: Tensor  # (N, W)  [y, 0, ‖y‖², w or 1], y centred
    averaged: Tensor  # (N, W)  [v, 0, ‖v‖², 1], v = y or the values, centred


@dataclass(frozen=True, eq=False)
class Cloud:
    """N weighted points, as `prepare` returns them: whatever takes a data set takes a cloud, and checks it no more.

    What the reduction derives of it is made at first use and kept: in float32, in float64 or both, each as large as
    the data.  The tensors are the caller's, not copies: whoever changes them in place has to prepare them again.
    """

    y: Tensor  # (N, D)
    log_w: Tensor | None = None  # (N,) finite; None: −log N each
    values: Tensor | None = None  # (N, V)
    rounded: bool = False  # given in bfloat16
    whole: int = 0  # of how many points it is a part, whose log_z then stays in float64 to be merged; 0: of none

    def __len__(self) -> int:
        return len(self.y)

    def parts(self, rows: int) -> Iterator[Cloud]:
        """The same in parts of so many rows."""
        for i in range(0, len(self), rows):
            y, log_w, v = (None if t is None else t[i:i + rows] for t in (self.y, self.log_w, self.values))
            yield Cloud(y, log_w, v, self.rounded, self.whole or len(self))

    @property
    def v(self) -> Tensor:
        """What is averaged: the values, or the points themselves."""
        return self.y if self.values is None else self.values

    @property
    def columns(self) -> int:
        """Of the wider of points and values."""
        return max(self.y.shape[1], self.v.shape[1])

    def weighted(self, log_w: Tensor) -> Cloud:
        """The same points with other log-weights (N,), finite and unchecked: what a loop over weights asks for.

        Of a cloud first used under `no_grad` no gradient reaches the weights.
        """
        other = replace(self, log_w=log_w)
        kept = {name: made for name, made in vars(self).items() if name in ("centre", "origin", "radius")}
        for name in vars(self).keys() & {"single", "double"}:
            keys, averaged = getattr(self, name)
            kept[name] = Terms(torch.cat([keys[:, :-1], log_w.to(keys)[:, None]], 1), averaged)
        vars(other).update(kept)
        return other

    @functools.cached_property
    def centre(self) -> Tensor:
        """(D,) mean of the points, a constant to every derivative: nothing depends on it but rounding."""
        return self.y.detach().mean(0)

    @functools.cached_property
    def origin(self) -> Tensor:
        """(V,) mean of what is averaged, a constant likewise."""
        return self.centre if self.values is None else self.values.detach().mean(0)

    @functools.cached_property
    def radius(self) -> Tensor:
        """Largest distance of a point from the centre, 0-d."""
        exactly = "donot_use_mm_for_euclid_dist"
        return torch.cdist(self.y.detach(), self.centre[None], compute_mode=exactly).max()

    @functools.cached_property
    def heaviest(self) -> Tensor | float:
        """Largest |log-weight| that enters a logit."""
        return 0.0 if self.log_w is None else self.log_w.detach().abs().max()

    single = functools.cached_property(lambda self: self._terms(self.y.dtype))  # for attention, as the points are
    double = functools.cached_property(lambda self: self._terms(torch.float64))

    def _terms(self, dtype: torch.dtype) -> Terms:
        width = self.columns + 2
        if self.columns > WIDE or self.y.device.type != "cpu":
            width = -(-width // 8) * 8  # matrix products like aligned rows
        y = self.y.to(dtype) - self.centre.to(dtype)
        one = y.new_ones(len(y), 1)
        keys = padded(width, y, y.square().sum(1, keepdim=True), one if self.log_w is None else
                      self.log_w.to(dtype)[:, None])
        if self.values is None and self.log_w is None:
            return Terms(keys, keys)
        v = y if self.values is None else self.values.to(dtype) - self.origin.to(dtype)
        return Terms(keys, padded(width, v, v.square().sum(1, keepdim=True), one))


def padded(width: int, first: Tensor, *last: Tensor) -> Tensor:
    """Columns side by side, with zeros after the first up to `width`."""
    missing = width - first.shape[1] - len(last)
    return torch.cat([first, *([first.new_zeros(len(first), missing)] if missing else []), *last], 1)


def prepare(y: Tensor, *, log_w: Tensor | None = None, values: Tensor | None = None) -> Cloud:
    """Points (N, D) with log-weights (N,) and values (N, V), ready for many calls of `gaussian_posterior`.

    Arguments and errors are those of `gaussian_posterior`, and so are results, to the last bit: what is saved is the
    checking, the centring and the copies of every call.  A cloud is a constant: no gradient reaches y, log_w or
    values through it, and tensors that ask for one are refused unless gradients are switched off.
    """
    for name, t in (("y", y), ("log_w", log_w), ("values", values)):
        if isinstance(t, Tensor) and t.requires_grad and torch.is_grad_enabled():
            check.refuse(name, "a tensor that requires a gradient",
                         "its .detach(): none passes through a cloud, only through the tensors themselves")
    return checked("y", *(t.detach() if isinstance(t, Tensor) else t for t in (y, log_w, values)))


def checked(name: str, y: Tensor | Cloud, log_w: Tensor | None = None, values: Tensor | None = None,
            like: Tensor | None = None) -> Cloud:
    """What is given for a data set as a cloud, with `like`'s columns, dtype and device."""
    dim = None if like is None else like.shape[1]
    if isinstance(y, Cloud):
        for other, given in (("log_w", log_w), ("values", values)):
            if given is not None:
                check.refuse(other, "a tensor beside a cloud", "None: a cloud has its own, given to `prepare`")
        check.floating(name, check.rows(name, y.y, dim=dim), like=like)
        return y
    rounded = isinstance(y, Tensor) and y.dtype == torch.bfloat16
    if rounded:
        y, values = y.float(), values.float() if isinstance(values, Tensor) else values
    check.points(name, y, dim=dim, like=like)
    if values is not None:
        check.points("values", values, like=y)
        if len(values) != len(y):
            check.refuse("values", f"{len(values)} rows", f"{len(y)} rows, one for each point of {name}")
    if log_w is not None:
        check.log_weights("log_w", log_w, len(y), like=y)
        if not check.opaque(y, log_w, values) and bool((log_w == -math.inf).any()):
            keep = log_w > -math.inf
            y, log_w, values = y[keep], log_w[keep], None if values is None else values[keep]
    return Cloud(y, log_w, values, rounded)

"""Checks at the door: a bad argument is refused by name before anything is computed.

Every message has the form  «name: got …; need …».  Checks that read values (finite, positive) are
skipped inside functorch transforms and under `torch.compile`, where values cannot be read.
"""
import math
from typing import NoReturn

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

FLOATS = (torch.float32, torch.float64)
LARGEST = {torch.float32: 1e15, torch.float64: 1e150}  # of an entry: sums of squares over coordinates stay finite


def refuse(name: str, got: object, need: str) -> NoReturn:
    """Raise the one form of `ValueError` this library raises for bad input."""
    raise ValueError(f"{name}: got {got}; need {need}")


def opaque(*tensors: object) -> bool:
    """True where the values of a tensor cannot be read: functorch transforms and compilation."""
    return torch.compiler.is_compiling() or any(
        isinstance(t, Tensor) and is_functorch_wrapped_tensor(t) for t in tensors)


def dense(name: str, x: object, need: str = "a torch.Tensor") -> Tensor:
    """A tensor whose numbers are there and real: neither sparse, nor on the device "meta", nor complex."""
    if not isinstance(x, Tensor):
        refuse(name, type(x).__name__, need)
    if x.layout != torch.strided or x.is_meta or x.is_complex():
        refuse(name, f"{x.dtype}, {x.layout} on {x.device}", f"{need}, real, dense and on a device that holds numbers")
    return x


def rows(name: str, x: object, *, dim: int | None = None) -> Tensor:
    """A non-empty tensor of shape (n, d), whatever its values."""
    x = dense(name, x, "a torch.Tensor of shape (n, d)")
    if x.dim() != 2 or 0 in x.shape:
        refuse(name, f"shape {tuple(x.shape)}", "shape (n, d) with n ≥ 1 and d ≥ 1")
    if dim is not None and x.shape[1] != dim:
        refuse(name, f"{x.shape[1]} columns", f"{dim} columns")
    return x


def points(name: str, x: object, *, dim: int | None = None, like: Tensor | None = None) -> Tensor:
    """A non-empty, finite floating-point cloud of shape (n, d), with `like`'s dtype and device."""
    return finite(name, floating(name, rows(name, x, dim=dim), like=like))


def vector(name: str, v: object, length: int | None = None, *, like: Tensor | None = None) -> Tensor:
    """A finite floating-point tensor of shape (length,), or of any length ≥ 1."""
    need = "(n,) with n ≥ 1" if length is None else f"({length},)"
    v = dense(name, v, f"a torch.Tensor of shape {need}")
    if v.dim() != 1 or len(v) == 0 or length not in (None, len(v)):
        refuse(name, f"shape {tuple(v.shape)}", f"shape {need}")
    return finite(name, floating(name, v, like=like))


def floating(name: str, x: object, *, like: Tensor | None = None) -> Tensor:
    """`x` itself if it is a float32 or float64 tensor, with `like`'s dtype and device."""
    x = dense(name, x)
    if x.dtype not in FLOATS:
        refuse(name, f"dtype {x.dtype}", f"one of {', '.join(str(d) for d in FLOATS)}")
    if like is not None and (x.dtype != like.dtype or x.device != like.device):
        refuse(name, f"{x.dtype} on {x.device}", f"{like.dtype} on {like.device}, as the other arguments")
    return x


def finite(name: str, x: Tensor) -> Tensor:
    """`x` itself if no entry is NaN or infinite, or so large that its square would be."""
    if not opaque(x) and x.numel():
        low, high = x.detach().aminmax()  # NaN if one is, and no copy of a large cloud
        large = LARGEST[x.dtype]
        if not bool((low >= -large) & (high <= large)):
            if bad := int((~torch.isfinite(x)).sum()):
                refuse(name, f"{bad} non-finite entries of {x.numel()}", "finite numbers")
            refuse(name, f"entries from {low:.3g} to {high:.3g}", f"sizes of at most {large:g}: they are squared")
    return x


def alike(name: str, x: object, other: Tensor, of: str) -> Tensor:
    """A finite tensor with the shape, dtype and device of the `other`, called `of`: nothing is broadcast."""
    x = floating(name, x, like=other)
    if x.shape != other.shape:
        refuse(name, f"shape {tuple(x.shape)}", f"the shape of {of}, {tuple(other.shape)}")
    return finite(name, x)


def log_weights(name: str, log_w: object, length: int, *, like: Tensor) -> Tensor:
    """Log-weights of shape (length,): finite or −inf, at least one finite."""
    log_w = dense(name, log_w, f"a torch.Tensor of shape ({length},)")
    if log_w.shape != (length,):
        refuse(name, f"shape {tuple(log_w.shape)}", f"shape ({length},)")
    floating(name, log_w, like=like)
    if not opaque(log_w):
        if bool((log_w.isnan() | (log_w == math.inf)).any()):
            refuse(name, "NaN or +inf", "finite log-weights or −inf")
        if bool((log_w == -math.inf).all()):
            refuse(name, "all −inf: no point has weight", "at least one finite log-weight")
    return log_w


def _number(name: str, value: object, need: str) -> None:
    if isinstance(value, Tensor):
        dense(name, value)
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        refuse(name, repr(value), need)


def positive(name: str, value: object, *, shape: tuple[int, ...] | None = None,
             like: Tensor | None = None) -> Tensor:
    """A number > 0 (or a tensor of them, of `shape` or 0-d) as a tensor with `like`'s dtype."""
    _number(name, value, "a number > 0" + (f" or a tensor of shape {shape}" if shape else ""))
    out = (torch.as_tensor(value, dtype=torch.float64) if like is None else
           torch.as_tensor(value, dtype=like.dtype, device=like.device))
    if out.dim() and out.shape != shape:
        refuse(name, f"shape {tuple(out.shape)}", "a number" + (f" or shape {shape}" if shape else ""))
    least = 1 / LARGEST[out.dtype]
    if not opaque(out) and not bool((out >= least).all()):
        refuse(name, f"smallest {out.min().item():g}", f"numbers > 0, at least {least:g}: they are squared")
    return out


def within(name: str, value: object, low: float, high: float) -> None:
    """A number or tensor with every entry in [low, high]."""
    _number(name, value, f"a number in [{low:g}, {high:g}] or a tensor of them")
    t = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    if not opaque(t) and not bool(((t >= low) & (t <= high)).all()):
        got = f"{t.item():g}" if t.dim() == 0 else f"entries from {t.min().item():g} to {t.max().item():g}"
        refuse(name, got, f"numbers in [{low:g}, {high:g}]")


def count(name: str, value: object, *, low: int = 1) -> int:
    """An integer ≥ low."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        refuse(name, repr(value), f"an integer ≥ {low}")
    return value


def choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """One of a fixed set."""
    if not any(type(value) is type(a) and value == a for a in allowed):
        refuse(name, repr(value), f"one of {', '.join(repr(a) for a in allowed)}")


def generator(name: str, value: object) -> torch.Generator:
    """An explicit random generator; nothing in this library touches the global one."""
    if not isinstance(value, torch.Generator):
        refuse(name, type(value).__name__, "a torch.Generator")
    return value

"""Random numbers come from an explicit generator, on its device, and are moved to where they are used.

So one seed means one sequence, wherever the data live.
"""
import torch
from torch import Tensor
from torch.distributions import Normal

from lib.base import check


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent N(0, 1) numbers with the shape, dtype and device of `like`."""
    check.generator("generator", generator)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent uniform numbers in [0, 1) with the shape, dtype and device of `like`."""
    check.generator("generator", generator)
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)


def log_normal(x: Tensor) -> Tensor:
    """log-density of N(0, I) at x (B, D), nats, shape (B,)."""
    return Normal(0.0, 1.0).log_prob(x).sum(1)

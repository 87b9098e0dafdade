"""Several processes as one: torchrun starts them, here they meet, find a device each, and share what they hold.

    torchrun --nproc-per-node 4 script.py          python script.py
        device = ranks.join()                          the same with one process, where all of this is the identity

A rank that dies, or is silent for the time-out, is a RuntimeError on all others, never an endless wait.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Thing = TypeVar("Thing")


def join(timeout: float = 600.0) -> torch.device:
    """This rank's device; meets the others where torchrun has started several (`timeout` in seconds)."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout))
    return device


def here(group: dist.ProcessGroup | None = None) -> tuple[int, int]:
    """This rank and the number of ranks: (0, 1) where there is no process group."""
    met = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(group), dist.get_world_size(group)) if met else (0, 1)


def total(t: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum over ranks of tensors of one shape."""
    out = t.detach().clone(memory_format=torch.contiguous_format)
    if here(group)[1] > 1:
        with _all_present(group):
            dist.all_reduce(out, group=group)
    return out


def stacked(t: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The tensors of all ranks, of one shape, as (rank, …)."""
    t = t.detach().contiguous()
    out = [torch.empty_like(t) for _ in range(here(group)[1])]
    if len(out) == 1:
        return t[None]
    with _all_present(group):
        dist.all_gather(out, t, group=group)
    return torch.stack(out)


def gathered(thing: Thing, group: dist.ProcessGroup | None = None) -> list[Thing]:
    """What all ranks hold, small and on the CPU."""
    out = [thing] * here(group)[1]
    if len(out) > 1:
        with _all_present(group):
            dist.all_gather_object(out, thing, group=group)
    return out


def first(thing: Thing) -> Thing:
    """What rank 0 holds, on the CPU."""
    out = [thing]
    if here()[1] > 1:
        with _all_present(None):
            dist.broadcast_object_list(out)
    return out[0]


@contextmanager
def _all_present(group: dist.ProcessGroup | None) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        rank, world = here(group)
        raise RuntimeError(f"rank {rank} lost another of {world} ranks: {error}") from error

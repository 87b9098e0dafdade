r"""The one training loop: Adam, a learning-rate schedule, an average of the weights, and nothing lost.

A loss is a function of the model and a generator: it draws its own batch and returns a scalar, or a dict
of scalars whose "loss" is minimised while the others are recorded.  So a notebook's loss is the method.

    def loss(model, generator): ...
    net, history = fit(model, loss, steps=2000, generator=generator)

Checkpoints hold everything that the future depends on (weights, average, optimiser, generator, history)
and are written whole or not at all, so a run killed at any step resumes to the same bits.  They are named
by the state they started from: the same call with other weights, seed or settings never meets them.
"""
from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib import check
from lib.progress import progress

CHECKPOINTS = "FIVE_ROADS_CHECKPOINTS"  # folder that the pipeline's runner names in the environment
SECONDS_BETWEEN_CHECKPOINTS = 20.0

Loss = Callable[[nn.Module, torch.Generator], Tensor | dict[str, Tensor]]


class Fit(NamedTuple):
    """What training leaves."""

    model: nn.Module  # the averaged model, frozen; or, without averaging, the model itself
    history: dict[str, Tensor]  # per step: "loss" and whatever else the loss returned, each (steps,)


def cosine(fraction: float) -> float:
    """Learning-rate multiplier from 1 down to 0 along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * fraction))


def constant(fraction: float) -> float:
    """Learning-rate multiplier 1."""
    return 1.0


def fit(model: nn.Module, loss: Loss, steps: int, *, generator: torch.Generator, lr: float = 1e-3,
        schedule: Callable[[float], float] = cosine, ema: float | None = 0.999, clip: float | None = None,
        name: str = "training", checkpoints: str | os.PathLike | None = None) -> Fit:
    """Minimise `loss` over the parameters of `model` by `steps` steps of Adam.

    lr, schedule  step size, and its multiplier as a function of the fraction of steps done.
    ema           decay of the exponential average of the weights that comes back; None returns the last.
    clip          largest gradient norm; None does not clip.
    checkpoints   folder for checkpoints; by default the one the pipeline names, else none are written.

    Raises FloatingPointError at the first non-finite loss, with the step, the times and the largest |x| that
    the model was last called with.  The model given is left at its last weights.
    """
    check.count("steps", steps)
    check.positive("lr", lr)
    check.generator("generator", generator)
    if ema is not None:
        check.within("ema", ema, 0.0, 1.0)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    average = None if ema is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema))
    history: dict[str, list[float]] = {}
    file = _file(checkpoints, model, generator, (name, steps, lr, schedule.__name__, ema, clip))
    start = _load(file, model, optimiser, average, generator, history)
    saved, seen = time.monotonic(), {}
    watch = model.register_forward_pre_hook(lambda _, args: seen.update(args=args))
    model.train()
    try:
        with progress(desc=name, total=steps) as bar:
            bar.update(start)
            for step in range(start, steps):
                for group in optimiser.param_groups:
                    group["lr"] = lr * schedule(step / steps)
                optimiser.zero_grad(set_to_none=True)
                terms = loss(model, generator)
                terms = terms if isinstance(terms, dict) else {"loss": terms}
                if not bool(torch.isfinite(terms["loss"])):
                    raise FloatingPointError(f"{name}: loss is {terms['loss'].item()} at step {step} of {steps}; "
                                             f"the model was last called with {_describe(seen)}")
                terms["loss"].backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimiser.step()
                if average is not None:
                    average.update_parameters(model)
                for key, value in terms.items():
                    history.setdefault(key, []).append(float(value.detach()))
                bar.update()
                if file and time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                    _save(file, step + 1, model, optimiser, average, generator, history)
                    saved = time.monotonic()
    finally:
        watch.remove()
    if file and start < steps:
        _save(file, steps, model, optimiser, average, generator, history)
    model.eval()
    result = model if average is None else average.module.eval().requires_grad_(False)
    return Fit(result, {key: torch.tensor(values) for key, values in history.items()})


def _describe(seen: dict) -> str:
    tensors = [a for a in seen.get("args", ()) if isinstance(a, Tensor)]
    if not tensors:
        return "no tensors"
    t, x = (tensors[0], tensors[-1]) if len(tensors) == 1 else tensors[:2]
    return f"t from {t.min().item():.4g} to {t.max().item():.4g} and largest |x| {x.abs().max().item():.4g}"


def _file(folder: str | os.PathLike | None, model: nn.Module, generator: torch.Generator,
          settings: tuple) -> Path | None:
    folder = folder or os.environ.get(CHECKPOINTS)
    if not folder:
        return None
    digest = hashlib.sha256(repr(settings).encode())
    for key, value in model.state_dict().items():
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    digest.update(generator.get_state().numpy().tobytes())
    return Path(folder) / f"{digest.hexdigest()[:16]}.pt"


def _save(file: Path, step: int, model, optimiser, average, generator, history) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {"step": step, "model": model.state_dict(), "optimiser": optimiser.state_dict(),
             "average": None if average is None else average.state_dict(),
             "generator": generator.get_state(), "history": history}
    part = file.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, file)


def _load(file: Path | None, model, optimiser, average, generator, history) -> int:
    if file is None or not file.exists():
        return 0
    state = torch.load(file, weights_only=True, map_location=next(model.parameters()).device)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    if average is not None:
        average.load_state_dict(state["average"])
    generator.set_state(state["generator"].cpu())
    history.update(state["history"])
    return state["step"]

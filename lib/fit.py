r"""The one training loop: Adam, a learning-rate schedule, an average of the weights, and nothing lost.

A loss is a function of the model and a generator: it draws its own batch and returns a scalar, or a dict of scalars
whose "loss" is minimised while the others are recorded.  So a notebook's loss is the method.

    net, history = fit(model, loss, steps=2000, generator=generator)

Checkpoints hold everything that the future depends on (weights, average, optimiser, generator, history) and their own
hash, and are written whole or not at all, so a run killed at any step resumes to the same bits; a damaged one is set
aside, with a warning.  They are named by where they started: other weights, seed, settings or loss never meet them.

On several ranks (`torchrun`, then `ranks.join`) each draws its own batch from a generator of its own, and gradients
are averaged as by DistributedDataParallel, but without its wrapper: a loss has the model itself, with its parts and
derivatives.  Rank 0 writes the checkpoints and shows the progress.
"""
import copy
import hashlib
import io
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lib.base import check, ranks
from lib.base.stage import CHECKPOINTS, progress, warn

SECONDS_BETWEEN_CHECKPOINTS = 20.0

Loss = Callable[[nn.Module, torch.Generator], Tensor | dict[str, Tensor]]


class Fit(NamedTuple):
    """What training leaves."""

    model: nn.Module  # the averaged model, frozen; or, without averaging, the model itself
    history: dict[str, Tensor]  # per step: "loss" and whatever else the loss returned, each (steps,)


class State(NamedTuple):
    """All that the future of a training depends on, but its loss and settings."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    average: list[Tensor]  # of the weights, or empty
    generator: torch.Generator
    history: dict[str, list[float]]


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
    ema           decay of the exponential average of the weights that comes back; None returns the last.  Step k of
                  0, 1, … decays by min(ema, (k + 1)/(k + 10)): a short training averages its last tenth or so.
    clip          largest gradient norm; None does not clip.
    checkpoints   folder for checkpoints; by default the one the pipeline names, else none are written.

    Raises FloatingPointError at the first non-finite loss, with the step, the times and the largest |x| that the model
    was last called with; RuntimeError where another rank is lost.  The model given is left at its last weights.
    """
    check.count("steps", steps)
    check.finite("lr", check.positive("lr", lr))
    check.generator("generator", generator)
    if clip is not None:
        check.positive("clip", clip)
    if ema is not None:
        check.within("ema", ema, 0.0, 1.0)
    rank, world = ranks.here()
    if world > 1:
        generator = _apart(model, generator)
    mean = model if ema is None else copy.deepcopy(model).requires_grad_(False)
    weights, average = list(model.parameters()), [] if ema is None else list(mean.parameters())
    state = State(model, torch.optim.Adam(weights, lr=lr, fused=True), average, generator, {})
    rates = [lr * schedule(step / steps) for step in range(steps)]
    file = _file(checkpoints, model, loss, generator, (name, rates, ema, clip, world))
    start, saved = _load(file, state), time.monotonic()
    seen: dict = {}  # what the model was last called with
    model.train()
    with (model.register_forward_pre_hook(lambda _, args: None if check.opaque(*args) else seen.update(args=args)),
          progress(desc=name, total=steps, disable=rank > 0) as bar):
        bar.update(start)
        for step in range(start, steps):
            terms = _terms(loss, model, generator)
            values = {key: float(value.detach()) for key, value in terms.items()}  # a GPU is waited for here alone
            if not math.isfinite(values["loss"]):
                raise FloatingPointError(f"{name}: loss is {values['loss']} at step {step} of {steps}; "
                                         f"the model was last called with {_describe(seen)}")
            due = file is not None and rank == 0 and time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS
            due = _descend(state, terms["loss"], values, rates[step], clip, due)
            if average:
                get_ema_multi_avg_fn(min(ema, (step + 1) / (step + 10)))(average, weights, step)
            bar.update()
            if due:
                _save(file, step + 1, state)
                saved = time.monotonic()
    if file and start < steps:
        _save(file, steps, state)
    for mine, last in zip(mean.buffers(), model.eval().buffers(), strict=True):
        mine.copy_(last)
    return Fit(mean.eval(), {key: torch.tensor(values) for key, values in state.history.items()})


def _descend(state: State, loss: Tensor, values: dict[str, float], rate: float, clip: float | None,
             due: bool) -> bool:
    """One step of Adam, and of the history; whether a checkpoint is due, for one rank or for any."""
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.zero_grad()
    loss.backward()
    if ranks.here()[1] > 1:
        values, due = _averaged(state.model, values, due)
    if clip is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), clip)
    state.optimiser.step()
    for key, value in values.items():
        state.history.setdefault(key, []).append(value)
    return due


def _terms(loss: Loss, model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    terms = loss(model, generator)
    terms = terms if isinstance(terms, dict) else {"loss": terms}
    for key, value in {"loss": None, **terms}.items():
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            check.refuse("loss", f"{key!r} of {got}", 'a scalar tensor, or a dict of them with a "loss"')
    return terms


def _describe(seen: dict) -> str:
    numbers = [torch.as_tensor(a) for a in seen.get("args", ()) if isinstance(a, (int, float, Tensor))]
    if not numbers:
        return "no numbers"
    *t, x = numbers[:2]
    when = "".join(f"t from {s.min().item():.4g} to {s.max().item():.4g} and " for s in t)
    return f"{when}largest |x| {x.abs().max().item():.4g}"


def _file(folder: str | os.PathLike | None, model: nn.Module, loss: Loss, generator: torch.Generator,
          settings: tuple) -> Path | None:
    folder = folder or os.environ.get(CHECKPOINTS)
    if not folder:
        return None
    digest = hashlib.sha256(repr(settings).encode())
    for key, value in model.state_dict().items():
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    state = generator.get_state()
    digest.update(state.cpu().numpy().tobytes())
    # The loss itself cannot be hashed; its first value can, off the start, where a zero network hides much.
    moved = copy.deepcopy(model).eval()
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(0.01)
    digest.update(repr({k: float(v.detach()) for k, v in _terms(loss, moved, generator).items()}).encode())
    generator.set_state(state)
    return Path(folder) / f"{digest.hexdigest()[:16]}.pt"


def _apart(model: nn.Module, generator: torch.Generator) -> torch.Generator:
    """Start every rank from the model of rank 0, and give each a stream of random numbers of its own."""
    model.load_state_dict(ranks.first({key: value.cpu() for key, value in model.state_dict().items()}))
    rank, world = ranks.here()
    seeds = torch.randint(2**62, (world,), generator=generator, device=generator.device)
    return torch.Generator(generator.device).manual_seed(int(seeds[rank]))


def _averaged(model: nn.Module, values: dict[str, float], due: bool) -> tuple[dict[str, float], bool]:
    """Average gradients and values over ranks in one message; a checkpoint is due for all when it is for one."""
    trained = [p for p in model.parameters() if p.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    scalars = grads[0].new_tensor([*values.values(), float(due)])
    message = torch.cat([t.flatten() for t in (*grads, scalars)])
    *means, scalars = (ranks.total(message) / ranks.here()[1]).split([*(g.numel() for g in grads), len(scalars)])
    for p, mean in zip(trained, means, strict=True):
        p.grad = mean.view_as(p).to(p)
    *shared, due = scalars.tolist()
    return dict(zip(values, shared, strict=True)), due > 0


def _save(file: Path, step: int, state: State) -> None:
    generators = ranks.gathered(state.generator.get_state())
    if ranks.here()[0] > 0:
        return
    kept = {"step": step, "model": state.model.state_dict(), "optimiser": state.optimiser.state_dict(),
            "average": state.average, "generators": generators, "history": state.history}
    torch.save(kept, buffer := io.BytesIO())
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".part").open("wb") as part:
        part.write(hashlib.sha256(buffer.getbuffer()).digest() + buffer.getbuffer())
        part.flush()
        os.fsync(part)
    os.replace(part.name, file)


def _read(file: Path) -> dict | None:
    """What a checkpoint holds; None where there is none, and where it is damaged and so set aside."""
    if not file.exists():
        return None
    digest, kept = (held := file.read_bytes())[:32], held[32:]
    if hashlib.sha256(kept).digest() == digest:
        return torch.load(io.BytesIO(kept), weights_only=True, map_location="cpu")
    aside = file.replace(file.with_suffix(".damaged"))
    warn(f"the checkpoint {file} is damaged: it is set aside as {aside.name}, and training starts from zero")
    return None


def _load(file: Path | None, state: State) -> int:
    """Take a training up where its checkpoint has left it; the number of steps done."""
    kept = ranks.first(_read(file) if file and ranks.here()[0] == 0 else None)
    if kept is None:
        return 0
    state.model.load_state_dict(kept["model"])
    state.optimiser.load_state_dict(kept["optimiser"])
    for mine, saved in zip(state.average, kept["average"], strict=True):
        mine.copy_(saved)
    state.generator.set_state(kept["generators"][ranks.here()[0]])
    state.history.update(kept["history"])
    return kept["step"]

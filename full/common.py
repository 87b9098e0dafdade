"""What the long runs share: the options all of them have, the head of a result, and a place that loses nothing.

A result is full/results/ROOM/NAME.json.  It says what was run, by which command, on what, and with which settings: the
options without those that only say where and on what to run.  A run with the settings of the file there replaces it; a
run with others goes beside it, into NAME_setting-value_….json, or in its place with --overwrite.  The chapters read
NAME.json alone.

Trainings leave checkpoints in full/checkpoints/: after a kill at any moment the same command goes on from the last one.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from lib import judge, path
from lib.base import ranks
from lib.base.stage import CHECKPOINTS, progress

RESULTS = Path(__file__).resolve().parent / "results"
NO_SETTINGS = ("device", "threads", "jobs", "parts", "timeout", "out", "overwrite")


def parser(doc: str, room: str, *, seeds: int | None = None, device: bool = True) -> argparse.ArgumentParser:
    """The options of every script of this folder; `room` is a folder of results/ or the script that is named so."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    if seeds is not None:
        made.add_argument("--seeds", type=int, default=seeds, help="runs of each kind, from different seeds")
    if device:
        made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    made.add_argument("--out", type=Path, default=RESULTS / Path(room).stem, help="folder of the results")
    made.add_argument("--overwrite", action="store_true", help="replace results that were made with other settings")
    return made


def options(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The options given; the CPU's threads are set, and so is the place of checkpoints, if it was not."""
    given = made.parse_args()
    torch.set_num_threads(given.threads)
    os.environ.setdefault(CHECKPOINTS, str(RESULTS.parent / "checkpoints"))
    return given


def settings(given: argparse.Namespace) -> dict[str, object]:
    """What the numbers depend on."""
    return {key: value for key, value in vars(given).items() if key not in NO_SETTINGS}


def place(given: argparse.Namespace, name: str) -> Path:
    """Where a result goes: NAME.json, or a file beside it where that one was made with other settings."""
    file, mine = given.out / f"{name}.json", settings(given)
    if given.overwrite or not file.exists() or json.loads(file.read_text(encoding="utf-8"))["settings"] == mine:
        return file
    words = {key: "-".join(map(str, value)) if isinstance(value, list) else value for key, value in mine.items()}
    beside = file.with_name("_".join([name, *(f"{key}-{value}" for key, value in words.items())]) + ".json")
    print(f"{file.name} was made with other settings and stays (--overwrite replaces it); writing {beside.name}")
    return beside


def head(given: argparse.Namespace, what: str) -> dict[str, object]:
    """The first lines of a result: what it is, command, hardware, versions and settings."""
    world = ranks.here()[1]
    launcher = "python" if world == 1 else f"torchrun --nproc-per-node {world}"
    threads = torch.get_num_threads()
    cpu = f"{threads} thread{'s' * (threads > 1)} on {os.cpu_count()} CPU cores"
    chip = torch.cuda.get_device_name(given.device) if torch.device(given.device).type == "cuda" else cpu
    return {"what": what, "command": f"{launcher} {shlex.join([f'full/{Path(sys.argv[0]).name}', *sys.argv[1:]])}",
            "hardware": f"{f'{world} × ' * (world > 1)}{chip}, {platform.machine()}",
            "versions": {"python": platform.python_version(), "torch": torch.__version__}, "settings": settings(given)}


def save(file: Path, result: dict[str, object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {file.parent.name}/{file.name}", flush=True)


def one_thread() -> None:
    """Of torch, numpy and scikit-learn: on few cores the threads of processes side by side wait for one another."""
    torch.set_num_threads(1)
    threadpool_limits(1)


def side_by_side(run: Callable[[Any, argparse.Namespace], dict], tasks: Sequence[tuple],
                 given: argparse.Namespace) -> dict[Any, list[dict]]:
    """run(task, options) of all tasks, under each task's first entry in their order.

    `jobs` at a time, a thread each: on two cores a quarter faster than in turn.
    """
    found: dict[Any, list[dict]] = {task[0]: [] for task in tasks}
    with ProcessPoolExecutor(given.jobs, get_context("fork"), one_thread) as pool:
        jobs = [pool.submit(run, task, given) for task in tasks]
        for task, job in zip(tasks, progress(jobs, desc=run.__name__), strict=True):
            found[task[0]].append(job.result())
    return found


def seen_doubled(levels: Tensor) -> judge.View:
    """What the judge sees of pictures of 14 × 14 (n, 196), levels 0 to 255: each pixel is two by two of its own."""
    return judge.view(levels.reshape(-1, 14, 14).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1) / 255)


def rounded(report: judge.Report) -> dict[str, float]:
    """The judge's report as a result keeps it."""
    return {key: round(float(value), 4) for key, value in report._asdict().items()}


def flow_matching(between: path.Path, data: Tensor, batch: int, *,
                  noise: bool = False) -> Callable[[nn.Module, torch.Generator], Tensor]:
    """The loss of conditional flow matching from noise to data (n, d) on a path; with `noise`, of a guess of x0."""
    def loss(model: nn.Module, g: torch.Generator) -> Tensor:
        x1 = data[torch.randint(len(data), (batch,), generator=g, device=g.device).to(data.device)]
        x0 = torch.randn(x1.shape, generator=g, device=g.device).to(x1)
        t = torch.rand(batch, generator=g, device=g.device).to(x1)
        target = x0 if noise else between.velocity(x0, x1, t)
        return (model(t, between.point(x0, x1, t)) - target).square().mean()

    return loss


def standard_normal(x: Tensor) -> Tensor:
    """Log-density of N(0, I) at x (n, d)."""
    return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)

"""What a stage of the pipeline and its notebook share: names in the environment, and progress of long work.

In Jupyter and in a terminal this is tqdm.  Inside the pipeline anything a cell prints would land in the
executed notebook, so the runner names a FIFO in the environment and the bar goes there instead.
"""
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from tqdm.auto import tqdm as auto
from tqdm.std import tqdm as plain

# What the runner of the pipeline tells a notebook's kernel, by names in the environment.
OUT = "FIVE_ROADS_OUT"  # folder of the running chapter's results
PIPE = "FIVE_ROADS_PROGRESS"  # path of the FIFO that the runner reads
CHECKPOINTS = "FIVE_ROADS_CHECKPOINTS"  # folder for checkpoints of training
DATA = "FIVE_ROADS_DATA"  # the reader's: where data/ is, for a library installed without its repository


def progress(iterable: Iterable | None = None, *, desc: str, total: int | None = None,
             disable: bool = False) -> plain:
    """A tqdm bar over `iterable` (or a manual one of `total` steps) that leaves no trace in a notebook."""
    pipe = os.environ.get(PIPE)
    if pipe:
        return plain(iterable, desc=desc, total=total, disable=disable, leave=False, mininterval=0.5, ncols=88,
                     file=open(pipe, "w", encoding="utf-8"))
    return auto(iterable, desc=desc, total=total, disable=disable, leave=False, mininterval=0.5)


def warn(message: str) -> None:
    """A warning; inside the pipeline it goes where progress goes, for what a cell shows is a result."""
    if pipe := os.environ.get(PIPE):
        Path(pipe).write_text(f"\n{message}\n", encoding="utf-8")
    else:
        warnings.warn(message, stacklevel=4)

r"""A judge of pictures: a small convolutional classifier of MNIST, and what its 64 features tell of samples.

    features   h = ReLU(W c(x) + b) in ℝ⁶⁴, of two convolutions c, each halved by its maxima
    classes    argmax of V h + v: ten digits, and none

Two sets of pictures are compared as clouds of features: by the *Fréchet distance in the judge's features* (not FID,
which is of another network), by precision, recall, density and coverage, and by the shares of their classes.  Every
such number is read beside its floors: the same for real pictures, training against test and test against test.  The
class of no digit keeps noise away from the digits: without it, noise lies within the reach of odd ones.
`full/judge.py` trains it; MNIST's test set is judged as the JSON beside the weights says.
"""
from __future__ import annotations

import functools
import os
from pathlib import Path as File
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lib import metrics
from lib.base import check
from lib.nets import seeded

WEIGHTS = File(__file__).resolve().parent.parent / "full" / "results" / "judge" / "judge.safetensors"


class Judge(nn.Module):
    """Classifier of flattened 28 × 28 pictures with values in [0, 1], (B, 784) -> (B, 11) logits; 10 is no digit."""

    def __init__(self, *, generator: torch.Generator) -> None:
        super().__init__()
        with seeded(generator):
            self.convolutions = nn.Sequential(
                nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 32, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(),
                nn.Conv2d(32, 64, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten())
            self.hidden = nn.Linear(64 * 49, 64)
            self.last = nn.Linear(64, 11)

    def features(self, x: Tensor) -> Tensor:
        """The 64 features (B, 64)."""
        return self.hidden(self.convolutions(check.rows("x", x, dim=784))).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))


@functools.cache
def load(file: str | os.PathLike = WEIGHTS) -> Judge:
    """The trained judge, frozen, on the CPU; its weights are stored in half precision and used in float32."""
    if not File(file).exists():
        raise FileNotFoundError(f"{File(file).name} is missing; train the judge: `python full/judge.py`")
    net = Judge(generator=torch.Generator()).float()  # whatever type is the default
    net.load_state_dict({key: value.float() for key, value in load_file(file).items()})
    return net.eval().requires_grad_(False)


class View(NamedTuple):
    """What the judge sees in n pictures."""

    features: Tensor  # (n, 64)
    label: Tensor  # (n,) int64, the likeliest digit


@torch.no_grad()
def view(x: Tensor, judge: Judge | None = None) -> View:
    """Features and classes of pictures x (n, 784), values in [0, 1]; those outside are cut off, as a screen does."""
    judge = judge or load()
    pixels = check.points("x", x, dim=784).float().clamp(0, 1)
    features = torch.cat([judge.features(part) for part in pixels.split(1000)])
    return View(features, judge.last(features)[:, :10].argmax(1))


def stacked(x: Tensor, judge: Judge | None = None) -> Tensor:
    """The mode 0 … 999 of each picture of three digits, x (n, 3·784): the 1,000 modes of Stacked MNIST."""
    digits = view(check.points("x", x, dim=3 * 784).reshape(-1, 784), judge).label
    return digits.reshape(-1, 3) @ digits.new_tensor([100, 10, 1])


class Report(NamedTuple):
    """How n samples compare with real pictures; read beside that of real pictures."""

    frechet: float  # Fréchet distance in the judge's features; falls with n, so compare at equal n
    precision: float
    recall: float
    density: float
    coverage: float
    classes: int  # found, of ten
    kl: float  # KL(shares of the samples' classes | shares of the data's), nats
    copies: float  # share nearer to a training picture than 99 % of the real pictures are; a fair 0.01


def report(samples: View, data: View, train: View, *, k: int = 5, neighbours: int = 2000) -> Report:
    """Views of samples (n), of held-out data (m), which hold every class, and of training pictures (l).

    Precision, recall, density and coverage are of the first `neighbours` of each, k nearest neighbours.
    """
    ours, theirs = (part.features[:check.count("neighbours", neighbours)] for part in (samples, data))
    near, dense = metrics.precision_recall(ours, theirs, k), metrics.density_coverage(ours, theirs, k)
    found = metrics.histogram(samples.label, 10, metrics.histogram(data.label, 10).share)
    return Report(metrics.frechet_distance(samples.features, data.features), near.precision, near.recall,
                  dense.density, dense.coverage, found.found, found.kl,
                  metrics.copies(samples.features, train.features, data.features))

r"""Real data that ships with the repository, and larger sets through OpenML.

Files are read from `data/` (made by `python -m pipeline make_data`, pulled by `dvc pull data.dvc`), checked against
a committed SHA-256, and split by seed.

A density needs numbers that fill the line.  A pixel in L levels k gets a fresh uniform U: x = (k + U)/L in [0, 1),
whose density bounds the probability of the levels, log P(k) ≥ E log p(x) − D log L; and the logit takes it from the
unit cube to ℝᴰ:

    y = log s − log(1 − s),  s = α + (1 − 2α) x,    log |dy/dx| = Σ log(1 − 2α) − log s − log(1 − s).

MNIST: Yann LeCun and Corinna Cortes, CC BY-SA 3.0, a derivative of the NIST data sets; the four files as published.
"""
import hashlib
import io
import lzma
import math
import os
from pathlib import Path as File
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.base import check
from lib.base.stage import DATA

FOLDER = File(os.environ.get(DATA) or File(__file__).resolve().parent.parent / "data")
TABLE = File(__file__).with_suffix(".sha256")  # as `sha256sum --check` reads it; the pipeline reads it too
SHA256 = {name: digest for digest, name in map(str.split, TABLE.read_text(encoding="utf-8").splitlines())}
OPENML = {"mnist": 554, "fashion-mnist": 40996, "cifar-10": 40927, "miniboone": 41150}  # name: identifier


class Part(NamedTuple):
    """One part of a data set."""

    x: Tensor  # (n, D) float32
    label: Tensor  # (n,) int64


class Splits(NamedTuple):
    """Training, validation and test parts, disjoint."""

    train: Part
    validation: Part
    test: Part


def digits(*, seed: int = 0, dequantise: bool = True) -> Splits:
    """1,797 handwritten digits as (n, 64) in [0, 1]: 1,197 / 300 / 300, shuffled by `seed`.

    Pixels have 17 levels k.  `dequantise` returns (k + U)/17, drawn once by `seed`.  Without it, k/16.
    """
    g, raw = torch.Generator().manual_seed(check.count("seed", seed, low=0)), _load("digits.npz")
    k = torch.from_numpy(raw["images"].reshape(-1, 64).astype(np.float32))
    splits = _split(k, torch.from_numpy(raw["labels"].astype(np.int64)), g, validation=300, test=300)
    return _scaled(splits, 17, dequantise, g)


def breast_cancer(*, seed: int = 0) -> Splits:
    """569 biopsies × 30 positive measurements in their own units, label 1 benign: 369 / 100 / 100 by `seed`."""
    g, raw = torch.Generator().manual_seed(check.count("seed", seed, low=0)), _load("breast_cancer.npz")
    x = torch.from_numpy(raw["features"].astype(np.float32))
    return _split(x, torch.from_numpy(raw["labels"].astype(np.int64)), g, validation=100, test=100)


def mnist(side: int = 28, *, seed: int = 0) -> Splits:
    """70,000 handwritten digits as (n, side²) grey levels 0 … 255, exact: 55,000 / 5,000 / 10,000.

    Training and validation are a permutation by `seed` of the published training set, the test is the published one.
    `side` 14 or 7 takes means of blocks of b² pixels, whose b²·x are whole numbers of 255 b² + 1 levels.
    """
    check.choice("side", check.count("side", side), (28, 14, 7))
    g = torch.Generator().manual_seed(check.count("seed", seed, low=0))
    k, label, *test = (_idx(f"mnist/{part}-{kind}") for part in ("train", "t10k")
                       for kind in ("images-idx3-ubyte.xz", "labels-idx1-ubyte.xz"))
    whole = _split(k, label, g, validation=5000, test=0)
    return Splits(*(_block_means(k, label, side) for k, label in (*whole[:2], test)))


def _idx(name: str) -> Tensor:
    """The bytes of an IDX file, (n, …) uint8: two zeros, the type 8, the number of sizes, the sizes, the entries."""
    raw = torch.frombuffer(bytearray(lzma.decompress(_checked(name))), dtype=torch.uint8)
    start = 4 + 4 * int(raw[3])
    return raw[start:].reshape(np.frombuffer(raw[4:start].numpy(), ">u4").tolist())


def _block_means(k: Tensor, label: Tensor, side: int) -> Part:
    check.within("label", label, 0, 9)
    n, b = len(k), k.shape[1] // side
    blocks = k.float().reshape(n, side, b, side, b)
    return Part((blocks.sum((2, 4)) / b**2).reshape(n, side**2), label.long())


def dequantise(k: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """(k + U)/levels in [0, 1) for levels k = 0 … levels − 1, U drawn afresh; float64 stays, the rest is float32.

    U stays 2⁻²⁴·max(levels, 256) short of 1, or float32 would sometimes round up to the next level.
    """
    if not isinstance(k, Tensor):
        check.refuse("k", type(k).__name__, "a torch.Tensor of levels")
    check.within("k", k, 0, check.count("levels", levels, low=2) - 1)
    check.generator("generator", generator)
    k = k if k.dtype == torch.float64 else k.float()
    u = torch.rand(k.shape, generator=generator, device=generator.device, dtype=k.dtype).to(k.device)
    return (k + u * (1 - max(levels, 256) * 2**-24)) / levels


class Logit(NamedTuple):
    """Numbers on the line, and what their density gains."""

    y: Tensor  # (n, D)
    log_det: Tensor  # (n,) log |det dy/dx|: log p(x) = log p(y) + log_det


def logit(x: Tensor, alpha: float = 1e-6) -> Logit:
    """logit(α + (1 − 2α) x) of x (n, D) in [0, 1]; α = 10⁻⁶ as Papamakarios et al. (2017, App. D) for MNIST."""
    check.within("x", check.points("x", x), 0, 1)
    check.within("alpha", alpha, 1e-12, 0.25)
    low, high = alpha + (1 - 2 * alpha) * x, alpha + (1 - 2 * alpha) * (1 - x)
    log_low, log_high = low.log(), high.log()
    return Logit(log_low - log_high, (math.log1p(-2 * alpha) - log_low - log_high).sum(1))


def unlogit(y: Tensor, alpha: float = 1e-6) -> Tensor:
    """The x of `logit`, for y (n, D)."""
    return (torch.sigmoid(check.points("y", y)) - alpha) / (1 - 2 * alpha)


def photographs() -> dict[str, Tensor]:
    """The two photographs, uint8 tensors (427, 640, 3), by name: china, flower."""
    return {name: torch.from_numpy(image) for name, image in _load("photographs.npz").items()}


def patches(n: int = 50_000, *, seed: int = 0, side: int = 8, colour: bool = False, remove_mean: bool = False,
            dequantise: bool = True) -> Splits:
    """Overlapping side × side patches of the photographs: n / n//10 / n//10, label = photograph.

    The images are first cut into bands of columns (70 % train, 15 % validation, 15 % test) with a gap of
    `side` pixels between bands, and patches are cut inside a band, so no pixel is shared.  Values are
    (k + U)/256 in [0, 1] per channel ("grey" is the rounded mean of the channels).  `remove_mean` subtracts
    each patch's mean and drops its last pixel, as the BSDS300 benchmark does: 63 dimensions for side 8.
    """
    check.count("n", n, low=10)
    check.count("side", side)
    g = torch.Generator().manual_seed(check.count("seed", seed, low=0))
    images = [image if colour else image.double().mean(2, keepdim=True).round() for image in photographs().values()]
    width = images[0].shape[1]
    first, second = int(0.7 * width), int(0.85 * width)
    bands = ((0, first), (first + side, second), (second + side, width))
    if min(right - left for left, right in bands) < side:
        check.refuse("side", side, f"bands of {width} columns wide enough for a patch")
    cut = Splits(*(_cut(images, band, size, side, g) for band, size in zip(bands, (n, n // 10, n // 10), strict=True)))
    splits = _scaled(cut, 256, dequantise, g)
    if remove_mean:
        splits = Splits(*(Part((x - x.mean(1, keepdim=True))[:, :-1].contiguous(), label) for x, label in splits))
    return splits


def _cut(images: list[Tensor], band: tuple[int, int], n: int, side: int, g: torch.Generator) -> Part:
    windows = torch.stack([image[:, band[0]:band[1]].unfold(0, side, 1).unfold(1, side, 1) for image in images])
    available = math.prod(windows.shape[:3])
    if n > available:
        check.refuse("n", n, f"at most {available} patches of side {side} in this band")
    place = torch.unravel_index(torch.randperm(available, generator=g)[:n], windows.shape[:3])  # label, row, column
    return Part(windows[place].permute(0, 2, 3, 1).reshape(n, -1).float(), place[0])


def _scaled(splits: Splits, levels: int, noisy: bool, g: torch.Generator) -> Splits:
    """(k + U)/levels or k/(levels − 1), after the split: one seed means one split, dequantised or not."""
    return Splits(*(Part(dequantise(k, levels, g) if noisy else k / (levels - 1), label) for k, label in splits))


def _split(x: Tensor, label: Tensor, g: torch.Generator, *, validation: int, test: int) -> Splits:
    parts = torch.randperm(len(x), generator=g).split((len(x) - validation - test, validation, test))
    return Splits(*(Part(x[i], label[i]) for i in parts))


def _checked(name: str) -> bytes:
    file = FOLDER / name
    if not file.exists():
        here = FOLDER.with_name("data.dvc").exists()
        raise FileNotFoundError(f"data/{name} is missing; need the bundled data: " + (
            "`make data` or `dvc pull data.dvc`" if here else f"the repository's folder data/, named by {DATA}; or "
            "`pip install -e .` in a clone, in place of `pip install .`"))
    raw = file.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != SHA256[name]:
        check.refuse(f"data/{name}", f"SHA-256 {found[:12]}…",
                     f"{SHA256[name][:12]}…: the file is damaged; delete it and run `make data`")
    return raw


def _load(name: str) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(_checked(name))) as arrays:
        return {key: arrays[key] for key in arrays.files}


def openml(name: str, *, cache: str | File | None = None) -> Part:
    """A larger set through OpenML: "mnist", "fashion-mnist", "cifar-10" or "miniboone", x as published.

    Downloaded once by scikit-learn into `cache` (default: scikit-learn's data home), which checks the
    publisher's MD5.  Offline and not cached, a `ConnectionError` says so.
    """
    from sklearn.datasets import fetch_openml

    check.choice("name", name, tuple(OPENML))
    try:
        bunch: Any = fetch_openml(data_id=OPENML[name], as_frame=False, parser="liac-arff", data_home=cache)
    except OSError as error:
        raise ConnectionError(f"openml: {name!r} is neither cached nor reachable ({error}); connect once, "
                              "or copy a cached scikit-learn data home to this machine") from error
    x, label = np.asarray(bunch.data, dtype=np.float32), np.unique(bunch.target, return_inverse=True)[1]
    return Part(torch.from_numpy(x), torch.from_numpy(label))

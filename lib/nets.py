r"""Small time-conditioned networks f(t, x[, label]), for clouds, latents and pictures.

Time enters as [t, cos πkt, sin πkt], k = 1 … K: smooth, bounded, and distinct at t = 0 and t = 1.
Activations are SiLU, so fields are smooth and their divergences exist everywhere.
"""
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lib.base import check
from lib.base.shapes import column


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Initialise modules from `generator`; torch's global state comes back as it was."""
    check.generator("generator", generator)
    seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class TimeFeatures(nn.Module):
    """A time for all rows of x (B, …), or one for each (B,) -> (B, 1 + 2K)."""

    def __init__(self, frequencies: int = 6) -> None:
        super().__init__()
        self.size = 1 + 2 * frequencies
        self.register_buffer("omega", math.pi * torch.arange(1, frequencies + 1))

    def forward(self, t: Tensor | float, x: Tensor) -> Tensor:
        t = column(torch.as_tensor(t, dtype=x.dtype, device=x.device), x).expand(len(x), 1)
        return torch.cat([t, torch.cos(t * self.omega), torch.sin(t * self.omega)], 1)


class FourierFeatures(nn.Module):
    """x (B, dim) -> [x, cos 2πxW, sin 2πxW] (B, dim + 2K), W (dim, K) drawn once from N(0, scale²), in periods a unit.

    A perceptron alone learns fine structure in few dimensions last (Tancik et al. 2020).
    """

    def __init__(self, dim: int, count: int, scale: float) -> None:
        super().__init__()
        deviation = 2 * math.pi * check.positive("scale", scale)
        self.register_buffer("omega", nn.init.normal_(torch.empty(dim, count), std=deviation))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.cos(x @ self.omega), torch.sin(x @ self.omega)], 1)


def given(t: Tensor | float, x: Tensor, dim: int, like: Tensor) -> None:
    """Refuse what is no state (B, dim) at a time, and say so where the two have changed places."""
    if not isinstance(t, (int, float)) and check.dense("t", t).dim() == 2:
        check.refuse("t", f"shape {tuple(t.shape)}", "a number or (B,): the order is f(t, x), time first")
    if check.rows("x", x, dim=dim).dtype != like.dtype or x.device != like.device:
        check.refuse("x", f"{x.dtype} on {x.device}", f"{like.dtype} on {like.device}, as the network")


def embedded(embedding: nn.Embedding | None, label: Tensor | None, x: Tensor) -> Tensor | float:
    """The embedding of integer labels (B,), one for each row of x; 0 for a network without classes."""
    if embedding is None and label is None:
        return 0.0
    if embedding is None or label is None:
        check.refuse("label", "None" if label is None else "labels",
                     "labels for a network with classes, None for one without")
    if check.dense("label", label).shape != x.shape[:1] or label.dtype not in (torch.int32, torch.int64):
        check.refuse("label", f"{label.dtype} of shape {tuple(label.shape)}", f"integers of shape ({len(x)},)")
    check.within("label", label, 0, embedding.num_embeddings - 1)
    return embedding(label)


class MLP(nn.Module):
    """Multilayer perceptron f(t, x) from (B, dim) to (B, out), SiLU, optionally conditioned on a class.

    dim, out    sizes of x and of the result (out = dim by default).
    width/depth units per hidden layer, number of hidden layers.
    classes     number of classes; then f(t, x, label) takes integer labels (B,).
    zero        start at the zero function (last layer zero).
    fourier     number of Fourier features of x, 0 for none; scale: their deviation, in periods per unit of x.
    """

    def __init__(self, dim: int, *, generator: torch.Generator, out: int | None = None, width: int = 256,
                 depth: int = 3, frequencies: int = 6, classes: int = 0, zero: bool = False,
                 fourier: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        out = dim if out is None else out
        for name, value in (("dim", dim), ("out", out), ("width", width), ("depth", depth)):
            check.count(name, value)
        self.dim = dim
        with seeded(generator):
            self.time = TimeFeatures(frequencies)
            self.embedding = nn.Embedding(classes, width) if classes else None
            self.features = FourierFeatures(dim, check.count("fourier", fourier), scale) if fourier else nn.Identity()
            self.first = nn.Linear(dim + 2 * fourier + self.time.size, width)
            self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
            self.last = nn.Linear(width, out)
        if zero:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, t: Tensor | float, x: Tensor, label: Tensor | None = None) -> Tensor:
        given(t, x, self.dim, self.last.weight)
        h = self.first(torch.cat([self.features(x), self.time(t, x)], 1)) + embedded(self.embedding, label, x)
        for layer in self.hidden:
            h = layer(nn.functional.silu(h))
        return self.last(nn.functional.silu(h))


class ResidualMLP(MLP):
    """Residual perceptron f(t, x), (B, dim) to (B, out), for latents: `depth` times h ← h + W silu(norm(h) + V time).

    Arguments as for `MLP`.  The sum passes unhindered from the first layer to the last, so depth costs no gradient.
    """

    def __init__(self, dim: int, *, generator: torch.Generator, width: int = 512, depth: int = 4, **settings) -> None:
        super().__init__(dim, generator=generator, width=width, depth=check.count("depth", depth) + 1, **settings)
        with seeded(generator):
            self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
            self.shift = nn.ModuleList(nn.Linear(self.time.size, width, bias=False) for _ in range(depth))

    def forward(self, t: Tensor | float, x: Tensor, label: Tensor | None = None) -> Tensor:
        given(t, x, self.dim, self.last.weight)
        time = self.time(t, x)
        h = self.first(torch.cat([self.features(x), time], 1)) + embedded(self.embedding, label, x)
        for norm, shift, layer in zip(self.norm, self.shift, self.hidden, strict=True):
            h = h + layer(nn.functional.silu(norm(h) + shift(time)))
        return self.last(nn.functional.silu(h))


class Block(nn.Module):
    """h ← h + W silu(norm(W′ silu(norm h) + V c)): convolutions of 3 × 3, c (B, conditions) shifts the channels."""

    def __init__(self, width: int, conditions: int) -> None:
        super().__init__()
        self.shift = nn.Linear(conditions, width)
        self.norm = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(2))
        self.convolution = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        r = self.convolution[0](nn.functional.silu(self.norm[0](h))) + self.shift(condition)[:, :, None, None]
        return h + self.convolution[1](nn.functional.silu(self.norm[1](r)))


class UNet(nn.Module):
    """U-Net f(t, x) for flattened square pictures, (B, side²) to the same (Ronneberger et al. 2015).

    widths   channels, multiples of 8, at each size: a block on the way down and one on the way up; between two of them
             the side is halved.
    depth    blocks at the last size.
    patch    squares of patch² pixels are the channels of the first size.
    classes  number of classes; then f(t, x, label) takes integer labels (B,).

    A learnt map is added to the first features, for pictures are centred and convolutions do not see where.  Starts at
    the zero function.
    """

    def __init__(self, side: int, widths: Sequence[int] = (48, 96), *, generator: torch.Generator, depth: int = 1,
                 patch: int = 1, frequencies: int = 6, classes: int = 0) -> None:
        super().__init__()
        for name, value in (("side", side), ("depth", depth), ("patch", patch), *(("widths", w) for w in widths)):
            check.count(name, value)
        if not widths or any(w % 8 for w in widths):
            check.refuse("widths", widths, "multiples of 8")
        if side % (patch * 2 ** (len(widths) - 1)):
            check.refuse("side", side, f"a multiple of {patch * 2 ** (len(widths) - 1)}, by patches and halvings")
        self.side, self.patch, pairs = side, patch, list(itertools.pairwise(widths))
        with seeded(generator):
            self.time = TimeFeatures(frequencies)
            self.embedding = nn.Embedding(classes, self.time.size) if classes else None
            blocks = lambda widths: nn.ModuleList(Block(width, self.time.size) for width in widths)
            self.first = nn.Conv2d(patch**2, widths[0], 3, padding=1)
            self.place = nn.Parameter(torch.zeros(widths[0], side // patch, side // patch))
            self.before, self.middle, self.after = blocks(widths[:-1]), blocks(widths[-1:] * depth), blocks(widths[:-1])
            self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
            self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
            self.last = nn.Conv2d(widths[0], patch**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, t: Tensor | float, x: Tensor, label: Tensor | None = None) -> Tensor:
        given(t, x, self.side**2, self.last.weight)
        condition, passed = self.time(t, x) + embedded(self.embedding, label, x), []
        square = x.unflatten(1, (1, self.side, self.side))
        h = self.first(nn.functional.pixel_unshuffle(square, self.patch)) + self.place
        for block, down in zip(self.before, self.down, strict=True):
            passed.append(block(h, condition))
            h = down(passed[-1])
        for block in self.middle:
            h = block(h, condition)
        for block, up, kept in list(zip(self.after, self.up, passed, strict=True))[::-1]:
            h = block(kept + nn.functional.interpolate(up(h), scale_factor=2, mode="nearest"), condition)
        return nn.functional.pixel_shuffle(self.last(nn.functional.silu(h)), self.patch).flatten(1)


def save(file: str | os.PathLike, net: MLP | UNet, **arguments: object) -> None:
    """Write a network as safetensors, with the `arguments` (but the generator) that it was made with."""
    save_file(net.state_dict(), file, {"class": type(net).__name__, "arguments": json.dumps(arguments)})


def load(file: str | os.PathLike) -> MLP | UNet:
    """The network that `save` has written, frozen, on the CPU."""
    with safe_open(file, "pt") as f:
        made, weights = f.metadata() or {}, {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
    kind = {"MLP": MLP, "ResidualMLP": ResidualMLP, "UNet": UNet}.get(made.get("class"))
    if kind is None or "arguments" not in made:
        check.refuse("file", f"{file} of class {made.get('class')}", "a network that nets.save has written")
    net = kind(**json.loads(made["arguments"]), generator=torch.Generator())
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)

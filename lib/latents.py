r"""MNIST as 70,000 points in ℝ³²: an autoencoder, its whitened code, and what it hides.

    z = E(x),  w = A (z − m),  x̂ = D(m + A⁻¹ w)

E and D are two strided convolutions and one linear map each; m and A come from the training set, whose codes w have
mean 0 and covariance 1.  Methods that a network of pixels would keep busy for hours are compared among the w in
minutes, and D shows the result in 28 × 28 pixels.  Distances between codes are not distances between pictures, and D
hides part of the errors: it draws digits from wrong codes too.  So what is generated through D is read beside D(E(x)).
`full/autoencoder.py` trains it; the stage `latents` of the pipeline, `python -m lib.latents`, encodes MNIST once.
"""
import functools
import os
from pathlib import Path as File

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib import data
from lib.base import check
from lib.nets import seeded

ROOT = File(__file__).resolve().parent.parent
WEIGHTS = ROOT / "full" / "results" / "latents" / "autoencoder.safetensors"
ENCODED = ROOT / "results" / "latents" / "mnist.safetensors"
SIZE = 32


class Autoencoder(nn.Module):
    """Flattened 28 × 28 pictures in [0, 1] to whitened codes of 32 numbers, and back."""

    mean: Tensor
    spread: Tensor

    def __init__(self, *, generator: torch.Generator) -> None:
        super().__init__()
        with seeded(generator):
            self.down = nn.Sequential(
                nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 64, 4, 2, 1),
                nn.SiLU(), nn.Flatten(), nn.Linear(64 * 49, SIZE))
            self.up = nn.Sequential(
                nn.Linear(SIZE, 64 * 49), nn.SiLU(), nn.Unflatten(1, (64, 7, 7)), nn.ConvTranspose2d(64, 32, 4, 2, 1),
                nn.SiLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Flatten())
        self.register_buffer("mean", torch.zeros(SIZE))
        self.register_buffer("spread", torch.eye(SIZE))  # lower triangular: z = mean + spread w

    def whiten(self, z: Tensor) -> None:
        """Take mean and spread from the codes z (n, 32) of a training set."""
        z = check.points("z", z, dim=SIZE).double()
        self.mean.copy_(z.mean(0))
        self.spread.copy_(torch.linalg.cholesky(z.T.cov()))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Whitened codes (n, 32) of pictures x (n, 784)."""
        pixels = check.points("x", x, dim=784).float()
        z = torch.cat([self.down(part) for part in pixels.split(1000)])
        return torch.linalg.solve_triangular(self.spread, (z - self.mean).T, upper=False).T.contiguous()

    @torch.no_grad()
    def decode(self, w: Tensor) -> Tensor:
        """Pictures (n, 784) in [0, 1] of whitened codes w (n, 32)."""
        z = self.mean + check.points("w", w, dim=SIZE).float() @ self.spread.T
        return torch.cat([self.up(part).sigmoid() for part in z.split(1000)])


@functools.cache
def load(file: str | os.PathLike = WEIGHTS) -> Autoencoder:
    """The trained autoencoder, frozen, on the CPU; its weights are stored in half precision and used in float32."""
    if not File(file).exists():
        raise FileNotFoundError(f"{File(file).name} is missing; train it: `python full/autoencoder.py`")
    net = Autoencoder(generator=torch.Generator()).float()  # whatever type is the default
    net.load_state_dict({key: value.float() for key, value in load_file(file).items()})
    return net.eval().requires_grad_(False)


def encode_mnist() -> None:
    """Write what `mnist` reads, in half precision: the same bytes every time on one machine."""
    net, found = load(), {}
    for name, part in data.mnist()._asdict().items():
        found |= {name: net.encode(part.x / 255).half(), f"{name}.label": part.label.to(torch.uint8)}
    ENCODED.parent.mkdir(parents=True, exist_ok=True)
    save_file(found, ENCODED)


def mnist() -> data.Splits:
    """The codes of `data.mnist()`, (n, 32) float32, and their labels, as the stage `latents` has left them."""
    if not ENCODED.exists():
        raise FileNotFoundError("results/latents is missing; encode MNIST once: `dvc repro latents`")
    parts = load_file(ENCODED)
    return data.Splits(*(data.Part(parts[name].float(), parts[f"{name}.label"].long()) for name in data.Splits._fields))


if __name__ == "__main__":
    encode_mnist()

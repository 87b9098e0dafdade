"""MNIST through the trained autoencoder, once for all chapters: results/latents/mnist.safetensors."""
from __future__ import annotations

import torch
from safetensors.torch import save_file

from lib import data, latents


def encode() -> None:
    """Write the codes of MNIST in half precision, and the labels: the same bytes every time on one machine."""
    net, found = latents.load(), {}
    for name, part in data.mnist()._asdict().items():
        found |= {name: net.encode(part.x / 255).half(), f"{name}.label": part.label.to(torch.uint8)}
    latents.ENCODED.parent.mkdir(parents=True, exist_ok=True)
    save_file(found, latents.ENCODED)

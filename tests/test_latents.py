"""Codes of pictures: white on the training set, undone exactly, read back as the stage has left them."""
from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from draws import rng
from safetensors.torch import save_file
from tree import script

from lib import data, latents


@pytest.fixture(scope="module")
def training():
    """full/autoencoder.py as a module."""
    return script(Path(__file__).resolve().parent.parent / "full" / "autoencoder.py")


@pytest.fixture
def net() -> latents.Autoencoder:
    """Untrained, whitened on half of the pictures."""
    made = latents.Autoencoder(generator=rng()).eval().requires_grad_(False)
    made.whiten(made.down(pictures()[:300]))
    return made


def pictures() -> torch.Tensor:
    return torch.rand((600, 784), generator=rng(1)) ** 3


def test_codes_are_white_and_the_whitening_is_undone(net):
    x = pictures()
    w = net.encode(x[:300]).double()
    assert w.shape == (300, 32) and w.mean(0).abs().max() < 1e-3
    assert torch.allclose(w.T.cov(), torch.eye(32, dtype=torch.float64), atol=5e-3)
    assert torch.equal(net.encode(x)[:300], net.encode(x[:300]))
    z = net.mean + net.encode(x[300:]) @ net.spread.T
    assert torch.allclose(z, net.down(x[300:]), atol=1e-4)
    again = net.decode(net.encode(x))
    assert torch.allclose(again, net.up(net.down(x)).sigmoid(), atol=1e-4) and again.min() >= 0 and again.max() <= 1


def test_the_loss_is_cross_entropy_plus_penalty(net, training, monkeypatch):
    monkeypatch.setattr(training, "NOISE", 0.0)
    x = pictures()[:1]
    z = net.down(x)
    p = net.up(z).sigmoid()
    nats = -(x * p.log() + (1 - x) * (1 - p).log()).sum() + training.PENALTY / 2 * z.square().sum()
    found = training.objective(x, 4)(net, rng())
    assert found.item() == pytest.approx(nats.item(), rel=1e-5)


def test_encoding_mnist_gives_the_same_bytes_and_is_read_back(net, monkeypatch, tmp_path):
    g = rng(2)
    few = data.Splits(*(data.Part(torch.randint(256, (n, 784), generator=g).float(), torch.arange(n) % 10)
                        for n in (50, 20, 30)))
    monkeypatch.setattr(data, "mnist", lambda: few)
    monkeypatch.setattr(latents, "load", lambda: net)
    monkeypatch.setattr(latents, "ENCODED", tmp_path / "latents" / "mnist.safetensors")
    with pytest.raises(FileNotFoundError, match="dvc repro latents"):
        latents.mnist()
    latents.encode_mnist()
    first = latents.ENCODED.read_bytes()
    latents.encode_mnist()
    assert latents.ENCODED.read_bytes() == first
    for part, found in zip(few, latents.mnist(), strict=True):
        assert torch.equal(found.label, part.label) and found.x.dtype == torch.float32
        assert torch.allclose(found.x, net.encode(part.x / 255), atol=2e-3, rtol=1e-3)


def test_weights_come_back_in_float32_and_bad_input_is_refused(net, tmp_path):
    file = tmp_path / "autoencoder.safetensors"
    with pytest.raises(FileNotFoundError, match=r"full/autoencoder\.py"):
        latents.load(file)
    save_file({name: p.half() for name, p in net.named_parameters()} | dict(net.named_buffers()), file)
    loaded = latents.load(file)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.parameters())
    assert torch.allclose(loaded.decode(torch.ones(2, 32)), net.decode(torch.ones(2, 32)), atol=1e-2)
    for name, call in (("x", lambda: net.encode(torch.zeros(2, 64))), ("w", lambda: net.decode(torch.zeros(2, 31))),
                       ("x", lambda: net.encode(pictures() * math.nan)), ("z", lambda: net.whiten(torch.zeros(2, 3)))):
        with pytest.raises(ValueError, match=rf"^{name}: got .+; need"):
            call()

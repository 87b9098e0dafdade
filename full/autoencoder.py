"""The autoencoder of `lib.latents`: train it on MNIST, or encode MNIST with it.

    python full/autoencoder.py            train; write weights and what they keep under full/results/latents/
    python full/autoencoder.py --encode   write the codes of MNIST, results/latents/mnist.safetensors   (a DVC stage)

The loss is the cross-entropy of the pixels, in nats a picture, with noise of 0.1 added to the codes and a penalty on
their size that keeps the noise from being outgrown.  autoencoder.json holds the judge's reports of reconstructed
pictures and of a Gaussian among the codes, with seed, steps, hardware, versions and command.  Killed at any moment, the
same command goes on from its last checkpoint.
"""
from __future__ import annotations

import argparse

import common
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lib import data, judge, latents
from lib.fit import fit

NOISE, PENALTY = 0.1, 0.05


def objective(x: Tensor, batch: int):
    """Cross-entropy of the pixels drawn from noisy codes, plus PENALTY ‖z‖² / 2."""
    def loss(model: latents.Autoencoder, g: torch.Generator) -> Tensor:
        picture = x[torch.randint(len(x), (batch,), generator=g, device=g.device)]
        z = model.down(picture)
        logits = model.up(z + NOISE * torch.randn(z.shape, generator=g, device=g.device))
        nats = nn.functional.binary_cross_entropy_with_logits(logits, picture, reduction="sum")
        return (nats + PENALTY / 2 * z.square().sum()) / batch

    return loss


def kept(net: latents.Autoencoder, mnist: data.Splits) -> dict[str, dict[str, float]]:
    """The judge's reports on reconstructions, and on the Gaussian of the codes."""
    train, test = (part.x / 255 for part in (mnist.train, mnist.test))
    first, known = train[:len(test)], train[len(test):3 * len(test)]
    again = lambda x: net.decode(net.encode(x))
    gaussian = torch.randn((len(test), latents.SIZE), generator=torch.Generator().manual_seed(1))
    cases = {"training pictures": first, "training pictures, reconstructed": again(first),
             "test pictures, reconstructed": again(test), "Gaussian codes": net.decode(gaussian)}
    real, seen = judge.view(test), judge.view(known)
    return {name: {key: round(float(v), 4) for key, v in judge.report(judge.view(x), real, seen)._asdict().items()}
            for name, x in cases.items()}


def encode() -> None:
    """Write the codes of MNIST in half precision, the same bytes every time on one machine."""
    net, found = latents.load(), {}
    for name, part in data.mnist()._asdict().items():
        found |= {name: net.encode(part.x / 255).half(), f"{name}.label": part.label.to(torch.uint8)}
    latents.ENCODED.parent.mkdir(parents=True, exist_ok=True)
    save_file(found, latents.ENCODED)


def train(options: argparse.Namespace) -> None:
    """Train, whiten, write the weights in half precision, and report what they keep."""
    file, mnist, device = common.place(options, "autoencoder"), data.mnist(), torch.device(options.device)
    x = (mnist.train.x / 255).to(device)
    net = latents.Autoencoder(generator=torch.Generator().manual_seed(options.seed)).to(device)
    model, _ = fit(net, objective(x, options.batch), options.steps, generator=torch.Generator(device).manual_seed(
        options.seed), lr=2e-3, ema=0.99, name="autoencoder", checkpoints=common.RESULTS.parent / "checkpoints")
    model = model.half().float().cpu()  # whitened as it will be used
    with torch.no_grad():
        model.whiten(torch.cat([model.down(part) for part in x.cpu().split(1000)]))
    file.parent.mkdir(parents=True, exist_ok=True)
    weights = file.with_suffix(".safetensors")
    half = {name: p.half() for name, p in model.named_parameters()}
    save_file(half | dict(model.named_buffers()), weights)
    latents.load.cache_clear()
    result = common.head(options, "autoencoder of MNIST, 32 whitened numbers a picture")
    common.save(file, result | {"reports": kept(latents.load(weights), mnist)})


def main() -> None:
    parser = common.parser(__doc__, "latents")
    parser.add_argument("--encode", action="store_true", help="encode MNIST with the weights there are")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = common.options(parser)
    encode() if options.encode else train(options)


if __name__ == "__main__":
    main()

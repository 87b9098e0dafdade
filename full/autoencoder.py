"""The autoencoder of `lib.latents`, trained on MNIST; the stage `latents` of the pipeline encodes MNIST with it.

    python full/autoencoder.py

writes weights and what they keep under full/results/latents/.

The loss is the cross-entropy of the pixels, in nats a picture, with noise of 0.1 added to the codes and a penalty on
their size that keeps the noise from being outgrown.  autoencoder.json holds the judge's reports of reconstructed
pictures and of a Gaussian among the codes, with seed, steps, hardware, versions and command.
"""
from __future__ import annotations

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
    return {name: common.rounded(judge.report(judge.view(x), real, seen)) for name, x in cases.items()}


def main() -> None:
    parser = common.parser(__doc__, "latents")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = common.options(parser)
    file, mnist, device = common.place(options, "autoencoder"), data.mnist(), torch.device(options.device)
    x = (mnist.train.x / 255).to(device)
    net = latents.Autoencoder(generator=torch.Generator().manual_seed(options.seed)).to(device)
    g = torch.Generator(device).manual_seed(options.seed)
    model, _ = fit(net, objective(x, options.batch), options.steps, generator=g, lr=2e-3, ema=0.99, name="autoencoder")
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


if __name__ == "__main__":
    main()

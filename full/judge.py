"""The judge: train the classifier of `lib.judge` on MNIST, and measure the floors of everything it will say.

    python full/judge.py

Training is Adam with every picture moved, turned, sheared and stretched a little, and with some of no digit.  Written
under full/results/judge/: judge.safetensors (half precision) and judge.json: accuracy, and the report of real pictures,
of blurred and noisy ones, of copies and of pure noise, with seed, steps, hardware, versions and command.  Real pictures
are training against test, and two halves of the test set drawn at random: as published, it has easy writers in one half
and hard ones in the other, and these halves are far apart.
"""
from __future__ import annotations

import common
import torch
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from lib import data, judge
from lib.fit import fit

REACH = 0.15


def moved(x: Tensor, g: torch.Generator) -> Tensor:
    """Pictures x (n, 784), each under an affine map of its own: the six numbers of the identity, changed by ≤ REACH.

    The unit is half a picture, so a picture is shifted by at most two pixels.
    """
    change = 2 * torch.rand((len(x), 2, 3), generator=g, device=x.device) - 1
    theta = torch.eye(2, 3, device=x.device) + REACH * change
    grid = nn.functional.affine_grid(theta, [len(x), 1, 28, 28], align_corners=False)
    return nn.functional.grid_sample(x.reshape(-1, 1, 28, 28), grid, align_corners=False).flatten(1)


def objective(x: Tensor, label: Tensor, batch: int):
    """Cross-entropy of a batch of moved pictures, and of an eighth as many of no digit: noise, and pixels shuffled."""
    few = batch // 16

    def loss(model: nn.Module, g: torch.Generator) -> Tensor:
        rows = torch.randint(len(x), (batch,), generator=g, device=g.device)
        digits, noise = moved(x[rows], g), torch.rand((few, 784), generator=g, device=g.device)
        shuffled = digits[:few].gather(1, torch.rand(noise.shape, generator=g, device=g.device).argsort(1))
        none = label.new_full((2 * few,), 10)
        return nn.functional.cross_entropy(model(torch.cat([digits, noise, shuffled])), torch.cat([label[rows], none]))

    return loss


def floors(train: Tensor, test: Tensor, net: judge.Judge) -> dict[str, dict[str, float]]:
    """Reports of pictures whose quality is known; training pictures are judged as samples, so they are all copies."""
    g, n, known = torch.Generator().manual_seed(1), len(test), train[len(test):3 * len(test)]
    one, other = test[torch.randperm(n, generator=g)].split(n // 2)
    first, second = test.split(n // 2)
    blur = lambda s: torch.from_numpy(gaussian_filter(one.reshape(-1, 28, 28), s, axes=(1, 2))).flatten(1)
    cases = {
        "training against test": (train[:n], test), "one half of test against the other": (one, other),
        "first half of test against the second, as published": (first, second),
        "copies of training pictures": (known[:n], test),
        "ten pictures, repeated": (test[:10].repeat(n // 10, 1), test),
        **{f"blurred by {s} pixels": (blur(s), other) for s in (0.5, 1.0, 2.0)},
        **{f"noise of {s}": (one + s * torch.randn(one.shape, generator=g), other) for s in (0.1, 0.2, 0.4)},
        "pure noise": (torch.rand(test.shape, generator=g), test),
    }
    seen, real = judge.view(known, net), {id(x): judge.view(x, net) for x in (test, other, second)}
    return {name: common.rounded(judge.report(judge.view(a, net), real[id(b)], seen)) for name, (a, b) in cases.items()}


def main() -> None:
    parser = common.parser(__doc__, __file__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = common.options(parser)
    file = common.place(options, "judge")
    mnist, device = data.mnist(), torch.device(options.device)
    train, test = (part.x / 255 for part in (mnist.train, mnist.test))
    g = torch.Generator(device).manual_seed(options.seed)
    net = judge.Judge(generator=torch.Generator().manual_seed(options.seed)).to(device)
    model, _ = fit(net, objective(train.to(device), mnist.train.label.to(device), options.batch), options.steps,
                   generator=g, lr=2e-3, ema=0.99, name="judge")
    file.parent.mkdir(parents=True, exist_ok=True)
    weights = file.with_suffix(".safetensors")
    save_file({key: value.half().cpu().contiguous() for key, value in model.state_dict().items()}, weights)
    judge.load.cache_clear()
    net = judge.load(weights)  # as everybody else will have it
    right = {name: round(float((judge.view(part.x / 255, net).label == part.label).double().mean()), 4)
             for name, part in mnist._asdict().items()}
    known = {"accuracy": right, "floors": floors(train, test, net)}
    common.save(file, common.head(options, "classifier of MNIST whose features judge samples") | known)
    print(f"accuracy {right}")


if __name__ == "__main__":
    main()

"""Chapter 5 at length: the one-step generator of digits, from a short training to a long one, over several seeds.

    python full/05_score_difference_flow.py

trains the chapter's generator (kernel form, pixel space) for several numbers of gradient steps and writes
full/results/05_score_difference_flow/digits.json: distance to held-out digits, precision and recall, variance and
distance to the nearest training image, with hardware, versions and command.  The chapter reads that file.
"""
from __future__ import annotations

import argparse
import itertools

import common
import torch
from torch import Tensor

from lib import affine, data, difference, metrics
from lib.base.stage import progress
from lib.nets import MLP


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__, __file__, seeds=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[2500, 10_000, 40_000, 160_000])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--latent", type=int, default=16)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--target-batch", type=int, default=1024)
    parser.add_argument("--high", type=float, default=5.0, help="largest noise level")
    parser.add_argument("--low", type=float, default=1.5, help="smallest noise level")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--samples", type=int, default=600, help="generated digits that are judged")
    return common.options(parser)


def judged(x: Tensor, train: Tensor, held_out: Tensor) -> dict[str, float]:
    pr = metrics.precision_recall(x, train)
    spread = lambda cloud: float((cloud - cloud.mean(0)).square().sum(1).mean())
    nearest = torch.cdist(x, train).min(1).values.median()
    found = {"energy distance": metrics.energy_distance(x, held_out), "precision": pr.precision, "recall": pr.recall,
             "variance": spread(x) / spread(held_out), "to nearest": float(nearest)}
    return {key: round(value, 4) for key, value in found.items()}


def run(steps: int, seed: int, train: Tensor, held_out: Tensor, options: argparse.Namespace) -> dict:
    g = torch.Generator().manual_seed(seed)
    net = MLP(options.latent, out=64, width=options.width, depth=3, generator=g).to(train.device)
    model = difference.train_generator(
        net, train, latent=options.latent, high=options.high, low=options.low, steps=steps, lr=options.lr, generator=g,
        batch=options.batch, target_batch=options.target_batch, name=f"{steps} steps, seed {seed}").model
    with torch.no_grad():
        x = difference.generate(model, options.samples, options.latent, torch.Generator().manual_seed(1000 + seed))
    return {"steps": steps, "seed": seed} | judged(x, train, held_out)


def main() -> None:
    options = arguments()
    digits = data.digits()
    scale = affine.normaliser(digits.train.x)
    train, validation, test = (scale(part.x).to(options.device) for part in digits)
    held_out = torch.cat([validation, test])
    what = "one-step generator of digits trained by the score-difference flow, kernel form in pixel space"
    file, real = common.place(options, "digits"), judged(train[:options.samples], train, held_out)
    result = common.head(options, what) | {"training digits": real, "runs": []}
    for steps, seed in progress(list(itertools.product(options.steps, range(options.seeds))), desc="trainings"):
        result["runs"].append(run(steps, seed, train, held_out, options))
    common.save(file, result)


if __name__ == "__main__":
    main()

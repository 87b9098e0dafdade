"""Flow matching outside the notebooks: a bigger network, more steps, several devices; a notebook loads the weights.

    python full/train.py                                        one device
    torchrun --nproc-per-node 4 full/train.py --data patches    four: each draws --batch examples a step

trains a velocity network on the Cond-OT path (Lipman et al. 2023, eq. 23) and writes, under full/results/train/,
NAME.safetensors (the average of the weights) and NAME.json (settings, losses, hardware, versions, command).  Killed
at any moment, the same command goes on from its last checkpoint.  In a notebook:

    velocity = nets.load("../full/results/train/digits-unet.safetensors")       # velocity(t, x)
"""
from __future__ import annotations

import argparse

import common
import torch
import torch.distributed as dist
from torch import Tensor

from lib import affine, data, nets, path
from lib.base import ranks
from lib.fit import fit

SIDE = 8  # pixels of a digit and of a patch


def examples(name: str) -> tuple[Tensor, Tensor]:
    """Training and validation part, centred and scaled alike."""
    splits = {"digits": data.digits, "patches": data.patches}[name]()
    scale = affine.normaliser(splits.train.x)
    return scale(splits.train.x), scale(splits.validation.x)


def options() -> argparse.Namespace:
    parser = common.parser(__doc__, __file__, device=False)
    parser.add_argument("--data", choices=("digits", "patches"), default="digits")
    parser.add_argument("--network", choices=("unet", "mlp"), default="unet")
    parser.add_argument("--width", type=int, default=128, help="channels of unet at 8 × 8, units of mlp")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=256, help="examples of one rank in one step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=600, help="seconds after which a silent rank counts as lost")
    return common.options(parser)


def main() -> None:
    given = options()
    given.device = device = ranks.join(given.timeout)
    rank, world = ranks.here()
    train, validation = (x.to(device) for x in examples(given.data))
    kind, size = {"unet": (nets.UNet, {"side": SIDE, "widths": [given.width, 2 * given.width]}),
                  "mlp": (nets.MLP, {"dim": SIDE**2, "width": given.width})}[given.network]
    size |= {"depth": given.depth}
    net = kind(**size, generator=torch.Generator().manual_seed(given.seed)).to(device)
    loss = common.flow_matching(path.cond_ot(), train, given.batch)
    model, history = fit(net, loss, given.steps, lr=given.lr, clip=1.0, name=given.data,
                         generator=torch.Generator().manual_seed(given.seed), checkpoints=given.out / "checkpoints")
    if rank == 0:
        with torch.no_grad():
            loss = common.flow_matching(path.cond_ot(), validation, len(validation))
            held_out = loss(model, torch.Generator().manual_seed(1))
        info = common.head(given, "velocity network, conditional flow matching on the Cond-OT path")
        info |= {"training loss": round(float(history["loss"][-500:].mean()), 5),
                 "validation loss": round(float(held_out), 5)}
        file = common.place(given, f"{given.data}-{given.network}")
        nets.save(file.with_suffix(".safetensors"), model, **size)
        common.save(file, info)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

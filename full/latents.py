"""Flow matching among the codes of MNIST: how near to real pictures, in how many steps.

    python full/latents.py

trains a residual perceptron on the Cond-OT path from noise to the codes of `lib.latents`, over several seeds, and
writes under full/results/latents/: flow.safetensors (the first seed's, half precision), flow.png (a hundred pictures of
the first seed, the first noise there was), and flow.json: the judge's reports of decoded samples by number of Euler
steps, beside that of reconstructed training pictures, with hardware, versions and command.  In a notebook:

    velocity = nets.load("../full/results/latents/flow.safetensors")       # velocity(t, w) for codes w
"""
from __future__ import annotations

import common
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from lib import data, judge, latents, nets, path, solve
from lib.base.stage import progress
from lib.fit import fit

EULER = (2, 4, 8, 16, 50)


def generate(velocity: nets.ResidualMLP, noise: Tensor, steps: int) -> Tensor:
    """Pictures (n, 784) from noise (n, 32) by Euler steps among the codes."""
    with torch.no_grad():
        w = solve.ode(velocity, noise, torch.linspace(0, 1, steps + 1), "euler")[-1]
    return latents.load().decode(w.cpu())


def main() -> None:
    parser = common.parser(__doc__, __file__, seeds=3)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=4)
    options = common.options(parser)
    file, device = common.place(options, "flow"), torch.device(options.device)
    train, test = (part.x / 255 for part in (data.mnist().train, data.mnist().test))
    n, codes = len(test), latents.load().encode(train)
    real, known = judge.view(test), judge.view(train[n:3 * n])
    report = lambda x: common.rounded(judge.report(judge.view(x), real, known))
    result = common.head(options, "flow matching on the Cond-OT path among the codes of MNIST") | {
        "training pictures, reconstructed": report(latents.load().decode(codes[:n])), "runs": []}
    size = {"dim": latents.SIZE, "width": options.width, "depth": options.depth}
    for seed in progress(range(options.seeds), desc="seeds"):
        net = nets.ResidualMLP(**size, generator=torch.Generator().manual_seed(seed)).to(device)
        loss = common.flow_matching(path.cond_ot(), codes.to(device), options.batch)
        model, history = fit(net, loss, options.steps, generator=torch.Generator(device).manual_seed(seed),
                             name=f"flow, seed {seed}")
        for p in model.parameters():  # judged as it is stored
            p.copy_(p.half())
        noise = torch.randn((n, latents.SIZE), generator=torch.Generator().manual_seed(1000 + seed)).to(device)
        samples = {steps: generate(model, noise, steps) for steps in EULER}
        result["runs"].append({"seed": seed, "loss": round(float(history["loss"][-500:].mean()), 4),
                               "Euler steps": {steps: report(x) for steps, x in samples.items()}})
        if seed == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            for p in model.parameters():
                p.data = p.half()
            nets.save(file.with_suffix(".safetensors"), model, **size)
            sheet = samples[EULER[-1]][:100].reshape(10, 10, 28, 28).transpose(1, 2).reshape(280, 280)
            plt.imsave(file.with_suffix(".png"), 1 - sheet, cmap="gray", vmin=0, vmax=1, metadata={"Software": None})
    common.save(file, result)


if __name__ == "__main__":
    main()

r"""Training a flow by an interpolant's loss beside maximum likelihood through an ODE solver (torchdiffeq's adjoint).

    python benchmarks/training_cost.py             one thread of the CPU; about two minutes
    python benchmarks/training_cost.py --quick     a quarter of the gradient steps

Both train the same network (3 × 64, SiLU) on two moons with batches of 256 and Adam, and are stopped now and then to
measure held-out nats by the exact trace.

    likelihood    maximise log p through dopri5 (tolerance 10⁻³), exact divergence, gradients by the adjoint method:
                  FFJORD (Grathwohl et al. 2019) with its noise in the trace taken away
    interpolant   the loss of Albergo & Vanden-Eijnden 2023, trigonometric, one evaluation for each step

Processor time of training alone, not wall-clock, so that other work on the machine matters less.  The last column is
the processor time to the first stop at or below the best nats of likelihood training, over that of the interpolant.
Results go to benchmarks/results/training_cost.csv, quick ones to training_cost-quick.csv.
"""
from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator

import common
import torch
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint

from lib import affine, solve, toys
from lib import interpolant as si
from lib.fit import cosine
from lib.nets import MLP

BATCH = 256


class Augmented(nn.Module):
    """Position and accumulated divergence, counting evaluations: one forward, and one backward where gradients flow."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.divergence, self.calls = net, solve.exact_divergence(net), 0

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.calls += 2 if torch.is_grad_enabled() else 1
        return self.net(t, state[0]), self.divergence(t, state[0])


def standard_normal(x: Tensor) -> Tensor:
    return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)


def by_likelihood(field: Augmented, x: Tensor, generator: torch.Generator) -> Tensor:
    z, total = odeint_adjoint(field, (x, torch.zeros(len(x))), torch.tensor([1.0, 0.0]), method="dopri5",
                              rtol=1e-3, atol=1e-3)
    return -(standard_normal(z[-1]) + total[-1]).mean()


def by_interpolant(field: Augmented, x: Tensor, generator: torch.Generator) -> Tensor:
    field.calls += 2
    x0 = torch.randn(x.shape, generator=generator)
    return si.velocity_loss(field.net, si.trigonometric(), x0, x, si.stratified(len(x), generator))["loss"]


def train(name: str, loss: Callable, steps: int, lr: float, stops: int) -> Iterator[common.Row]:
    """One row for each stop: steps, evaluations, processor seconds, held-out nats."""
    generator = torch.Generator().manual_seed(0)
    moons = toys.two_moons()
    scale = affine.normaliser(moons.sample(20_000, generator))
    held_out = scale(moons.sample(1000, generator))
    field = Augmented(MLP(2, width=64, generator=generator, zero=True))
    optimiser, seconds = torch.optim.Adam(field.net.parameters(), lr), 0.0
    for step in range(steps + 1):
        if step % (steps // stops) == 0:
            with torch.no_grad():
                log_p = si.log_density(field.net, 1.0, held_out, standard_normal, steps=20) + scale.log_det
            yield {"method": name, "steps": step, "evaluations": field.calls, "seconds": round(seconds, 2),
                   "nats": round(-float(log_p.mean()), 4)}
        start = time.process_time()
        optimiser.param_groups[0]["lr"] = lr * cosine(step / (steps + 1))
        optimiser.zero_grad()
        loss(field, scale(moons.sample(BATCH, generator)), generator).backward()
        optimiser.step()
        seconds += time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the gradient steps")
    quick = parser.parse_args().quick
    share = 4 if quick else 1
    torch.set_num_threads(1)
    print("two moons, processor time of training")
    rows = common.table(itertools.chain(train("likelihood", by_likelihood, 120 // share, 1e-2, 6),
                                        train("interpolant", by_interpolant, 4000 // share, 4e-3, 20)))
    slow, fast = ([row for row in rows if row["method"] == name] for name in ("likelihood", "interpolant"))
    goal = min(slow, key=lambda row: row["nats"])
    reached = next((row for row in fast if row["nats"] <= goal["nats"]), None)
    for row in rows:
        row["times the interpolant's seconds"] = ""
    if reached is None:
        print(f"the interpolant did not reach {goal['nats']} nats")
    else:
        ratio = goal["seconds"] / max(reached["seconds"], math.ulp(1.0))
        goal["times the interpolant's seconds"] = round(ratio, 2)
        print(f"{goal['nats']} nats: {goal['seconds']} s by likelihood, {reached['seconds']} s by interpolant, ratio "
              f"{ratio:.1f}; evaluations {goal['evaluations']} and {reached['evaluations']}, "
              f"ratio {goal['evaluations'] / reached['evaluations']:.1f}")
    common.save(common.named("training_cost", quick), [row | common.made() for row in rows])


if __name__ == "__main__":
    main()

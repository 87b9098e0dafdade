"""Networks on top of a score: what an operator-informed score misses, or all of it, by denoising score matching."""
import math

import torch
from torch import Tensor, nn

from lib.base.shapes import column
from lib.fit import Loss
from lib.markov.process import Process
from lib.solve import Field


class ScoreNet(nn.Module):
    """A score s(τ, x) = base(τ, x) − net(t, x)/√(1 − e^{−2τ}); t in [0, 1] places log τ between `low` and `high`.

    net   any f(t, x) of `lib.nets`: it predicts the noise, or, with a base, the part of it that the base misses.
    base  a score function of (τ, x), `OISM.score` for instance; None means 0, plain score matching.
    """

    def __init__(self, net: nn.Module, low: float, high: float, base: Field | None = None) -> None:
        super().__init__()
        self.net, self.base, self.low, self.high = net, base, math.log(low), math.log(high)

    def forward(self, tau: Tensor | float, x: Tensor) -> Tensor:
        tau = torch.as_tensor(tau, dtype=x.dtype, device=x.device)
        t = (tau.log() - self.low) / (self.high - self.low)
        score = -self.net(t, x) / column(-torch.expm1(-2 * tau), x).sqrt()
        return score if self.base is None else score + self.base(tau, x)


def score_loss(data: Tensor, process: Process, taus: Tensor, *, imitate: Field | None = None, batch: int = 256) -> Loss:
    """Loss for `lib.fit`: E (1 − e^{−2τ})‖model(τ, X_τ) − target‖², τ uniform over the grid `taus` (T,).

    The target is ∇log p_τ(X_τ | X_0), denoising score matching, whose minimiser is the score of X_τ; or the score
    function to `imitate`, a warm start.  A model or target made of `OISM.score` costs one solve for each τ, once.
    """
    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        draw = lambda n: torch.randint(n, (batch,), generator=generator, device=generator.device).to(data.device)
        x0, tau = data[draw(len(data))], taus[draw(len(taus))]
        x = process.noise(x0, tau, generator)
        target = process.transition_score(tau, x0, x) if imitate is None else imitate(tau, x)
        error = model(tau, x) - target
        return (-torch.expm1(-2 * tau) * error.square().sum(1)).mean()

    return loss

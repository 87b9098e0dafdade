r"""Schrödinger bridges between two clouds, learned by alternating regressions.

Among all random motions from p_0 (t = 0) to p_1 (t = 1), the bridge is the one closest to a reference Q,
dX = σ dW unless another is named:  P* = argmin {KL(P | Q) : P_0 = p_0, P_1 = p_1}.  It is a diffusion with a
forward drift u_f (time running up from p_0) and a backward drift u_b (time running down from p_1), and for any
diffusion with marginals p_t that runs forward with u_f and, reversed, backward with u_b,

    u_f + u_b = σ² ∇log p_t   (Nelson),         ½ (u_f − u_b) = velocity of the probability flow.

DSB (De Bortoli, Thornton, Heng & Doucet 2021), iterative proportional fitting by mean matching.  Simulate
backward from p_1 with the frozen u_b, X_k = X_{k+1} + h u_b(t_{k+1}, X_{k+1}) + σ√h Z; the motion read forward
has the drift σ²∇log p_t − u_b, the least-squares fit at (t_k, X_k) of

    (X_{k+1} − X_k)/h + u_b(t_{k+1}, X_{k+1}) − u_b(t_{k+1}, X_k)  =  −σZ/√h − u_b(t_{k+1}, X_k).      (their Eq. 12)

Start it from p_0 instead, do the same in the other direction, and repeat.  The first fit is score matching.

DSBM (Shi, De Bortoli, Campbell & Doucet 2023), iterative Markovian fitting.  Join pairs (x_0, x_1) by Brownian
bridges, x_t = (1−t)x_0 + t x_1 + σ√(t(1−t)) z, fit u_f to (x_1 − x_t)/(1 − t), simulate new pairs from p_0, fit
u_b to (x_0 − x_t)/t, simulate new pairs from p_1, and repeat.  The reference enters at every fit, so errors do
not pile up; in DSB it enters once, at the start, and is slowly forgotten.

House → DSB's paper: t = 0 is the prior and t = 1 the data, so its forward drift is our u_b; σ² = 2T, and our
drifts are T times theirs.  Every drift sees the time of the state it is given, whichever way we simulate.
"""
import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from lib import solve
from lib.base import check
from lib.base import draw as draws
from lib.fit import fit
from lib.nets import MLP
from lib.solve import Field

DIRECTIONS = ("forward", "backward")


class Pairs(NamedTuple):
    """A weighted least-squares problem for a drift."""

    t: Tensor  # (M,) times
    x: Tensor  # (M, D) states
    target: Tensor  # (M, D) what the drift at (t, x) is to be on average; carries no gradient
    weight: Tensor  # (M,) of mean one


Draw = Callable[[int | None, torch.Generator], Pairs]  # a batch of n, or, for None, one pass over all there is
Regress = Callable[[Draw, Field | None, torch.Generator, str], tuple[Field, Tensor]]  # -> drift, losses


class Iteration(NamedTuple):
    """What one iteration of alternating regressions leaves."""

    forward_drift: Field
    backward_drift: Field
    forward_loss: Tensor  # (steps,) of the regression
    backward_loss: Tensor


@dataclass(frozen=True)
class Bridge:
    """A pair of drifts f(t, x), t 0-d or (B,), x (B, D), for dX = u dt + σ dW along and against time."""

    forward_drift: Field
    backward_drift: Field
    sigma: float
    times: Tensor  # (N + 1,) from 0 to 1, the steps of the simulation
    history: tuple[Iteration, ...] = ()

    def after(self, iteration: int) -> Self:
        """The bridge as it was after `iteration` iterations, counted from 1."""
        check.choice("iteration", iteration, tuple(range(1, len(self.history) + 1)))
        last = self.history[iteration - 1]
        return replace(self, forward_drift=last.forward_drift, backward_drift=last.backward_drift,
                       history=self.history[:iteration])

    def trajectory(self, x: Tensor, direction: str, generator: torch.Generator) -> Tensor:
        """Simulated paths (N + 1, B, D), row 0 is x: "forward" from t = 0 or "backward" from t = 1."""
        check.points("x", x)
        check.choice("direction", direction, DIRECTIONS)
        drift, times = ((self.forward_drift, self.times) if direction == "forward" else
                        (self.backward_drift, self.times.flip(0)))
        return simulate(drift, self.sigma, x, times, generator)

    def sample(self, x: Tensor, direction: str, generator: torch.Generator) -> Tensor:
        """Ends (B, D) of simulated paths: x at t = 0 goes "forward" to t = 1, x at t = 1 "backward" to t = 0."""
        return self.trajectory(x, direction, generator)[-1]

    def velocity(self, t: float | Tensor, x: Tensor) -> Tensor:
        """Probability flow ½(u_f − u_b), (B, D): the marginals of the forward process without its noise."""
        return (self.forward_drift(t, x) - self.backward_drift(t, x)) / 2

    def log_likelihood(self, x: Tensor, base_log_p: Callable[[Tensor], Tensor], t: Tensor | None = None,
                       divergence: Field | None = None) -> Tensor:
        """log p_1(x) in nats, (B,), by the probability flow from t = 1 down to `base_log_p` = log p_0 at t = 0.

        `t` is the decreasing grid of the Runge–Kutta steps (default: `times`).  The backward drift of every
        iteration is the reversal of its forward drift started from p_0, so the flow is that of the forward
        process up to the error of the regression.  Its pairs (x_0, x_1) are not those of the bridge.
        """
        t = self.times.flip(0) if t is None else solve.grid(t, x)
        if t[0] < t[-1]:
            check.refuse("t", "a grid that rises", "one that falls, from the time of x to that of base_log_p")
        return solve.log_likelihood(self.velocity, x, t, base_log_p, divergence)


def train_dsb(x0: Tensor, x1: Tensor, sigma: float, *, generator: torch.Generator, iterations: int = 5,
              times: Tensor | None = None, paths: int = 5000, reference: Field | None = None,
              regress: Regress | None = None, name: str = "DSB") -> Bridge:
    """Diffusion Schrödinger bridge from x0 (n, D) to x1 (m, D) by iterative proportional fitting.

    sigma       standard deviation of the reference's noise over [0, 1], > 0; √(2T) in the paper.
    iterations  each fits the forward drift, then the backward drift.
    times       (N + 1,) from 0 to 1 (default `symmetric_times(20)`).
    paths       trajectories simulated for each fit, all N steps of each kept: the cache, (N + 1)·paths·D numbers.
    reference   backward drift r(t, x) of Q, such as −α(x − c) for Ornstein–Uhlenbeck; None means Brownian.
    regress     how drifts are fitted (default `network()`; see also `least_squares`).

    `history[n]` keeps drifts and losses of iteration n + 1; `after(n)` is the bridge after n iterations.
    """
    times = _check(x0, x1, sigma, generator, iterations, times, paths)
    regress = network() if regress is None else regress
    forward, backward = None, reference or (lambda t, x: torch.zeros_like(x))
    history: list[Iteration] = []
    for n in range(1, iterations + 1):
        cache = reversal_pairs(backward, sigma, _choose(x1, paths, generator), times.flip(0), generator)
        forward, up = regress(cache, forward, generator, f"{name} {n}/{iterations} forward")
        cache = reversal_pairs(forward, sigma, _choose(x0, paths, generator), times, generator)
        backward, down = regress(cache, backward, generator, f"{name} {n}/{iterations} backward")
        history.append(Iteration(forward, backward, up, down))
    return Bridge(forward, backward, float(sigma), times, tuple(history))


def train_dsbm(x0: Tensor, x1: Tensor, sigma: float, *, generator: torch.Generator, iterations: int = 5,
               times: Tensor | None = None, paths: int = 5000, start: str = "independent",
               regress: Regress | None = None, name: str = "DSBM") -> Bridge:
    """Diffusion Schrödinger bridge matching from x0 (n, D) to x1 (m, D), Brownian reference.

    start  pairs of the first fit: "independent" (x_0, x_1), which makes it iterative Markovian fitting, or
           "reference", (x_1 + σξ, x_1), which makes it iterative proportional fitting (their Prop. 10).

    Other arguments and the result as for `train_dsb`; `paths` is the number of pairs joined for each fit.
    """
    times = _check(x0, x1, sigma, generator, iterations, times, paths)
    check.choice("start", start, ("independent", "reference"))
    regress = network() if regress is None else regress
    forward = backward = None
    ends = _choose(x1, paths, generator)
    noise = draws.normal(ends, generator)
    pairs = (ends + sigma * noise if start == "reference" else _choose(x0, paths, generator)), ends
    history: list[Iteration] = []
    for n in range(1, iterations + 1):
        forward, up = regress(bridge_pairs(*pairs, sigma, times, "forward"), forward, generator,
                              f"{name} {n}/{iterations} forward")
        starts = _choose(x0, paths, generator)
        pairs = starts, simulate(forward, sigma, starts, times, generator)[-1]
        backward, down = regress(bridge_pairs(*pairs, sigma, times, "backward"), backward, generator,
                                 f"{name} {n}/{iterations} backward")
        ends = _choose(x1, paths, generator)
        pairs = simulate(backward, sigma, ends, times.flip(0), generator)[-1], ends
        history.append(Iteration(forward, backward, up, down))
    return Bridge(forward, backward, float(sigma), times, tuple(history))


def symmetric_times(steps: int, ratio: float = 1.0) -> Tensor:
    """Times 0 = t_0 < … < t_N = 1, steps growing linearly from both ends to `ratio` times the first in the middle."""
    check.count("steps", steps)
    check.finite("ratio", check.positive("ratio", ratio))
    k = torch.arange(steps, dtype=torch.float64)
    ramp = torch.minimum(k, steps - 1 - k) / max((steps - 1) // 2, 1)
    h = 1 + (ratio - 1) * ramp
    return torch.cat([torch.zeros(1, dtype=torch.float64), (h.cumsum(0) / h.sum())])


def simulate(drift: Field, sigma: float, x: Tensor, times: Tensor, generator: torch.Generator) -> Tensor:
    """Paths (N + 1, B, D) of steps |h|·drift(t, x) + σ√|h| z along `times`, increasing or decreasing."""
    times = times.to(x)
    along = torch.sign(times[-1] - times[0])
    with torch.no_grad():
        return solve.sde(lambda t, x: along * drift(t, x), sigma, x, times, generator)


def reversal_pairs(drift: Field, sigma: float, x: Tensor, times: Tensor, generator: torch.Generator) -> Draw:
    """Mean matching: regression of the drift that reads backwards the paths simulated with `drift` from x.

    From a step y = x + h·drift(t, x) + σ√h z to time s the pair is (s, y), target −σz/√h − drift(t, y), weight ∝ h.
    """
    times = times.to(x)
    path = simulate(drift, sigma, x, times, generator)
    steps = times.diff().abs()
    with torch.no_grad():
        target = torch.cat([(a - b) / h + drift(t, a) - drift(t, b)
                            for t, h, a, b in zip(times, steps, path, path[1:], strict=False)])
    t, weight = (v.repeat_interleave(len(x)) for v in (times[1:], steps / steps.mean()))
    states = path[1:].flatten(0, 1)

    def draw(n: int | None, generator: torch.Generator) -> Pairs:
        i = _indices(n, len(t), generator).to(t.device)
        return Pairs(t[i], states[i], target[i], weight[i])

    return draw


def bridge_pairs(x0: Tensor, x1: Tensor, sigma: float, times: Tensor, direction: str) -> Draw:
    """Bridge matching: regression of a drift on Brownian bridges between the pairs (x0, x1), each (M, D).

    t is uniform up to the last knot at which the drift is used: [0, t_{N−1}] forward, [t_1, 1] backward.
    """
    check.alike("x0", check.points("x0", x0), check.points("x1", x1), "x1")
    check.finite("sigma", check.positive("sigma", sigma))
    times = solve.grid(times, x0, "times")
    check.choice("direction", direction, DIRECTIONS)
    low, high = (0.0, float(times[-2])) if direction == "forward" else (float(times[1]), 1.0)

    def draw(n: int | None, generator: torch.Generator) -> Pairs:
        i = _indices(n, len(x0), generator).to(x0.device)
        start, end = x0[i], x1[i]
        t, z = low + (high - low) * draws.uniform(start[:, :1], generator), draws.normal(start, generator)
        x = (1 - t) * start + t * end + sigma * (t * (1 - t)).sqrt() * z
        target = (end - x) / (1 - t) if direction == "forward" else (start - x) / t
        return Pairs(t[:, 0], x, target, torch.ones_like(t[:, 0]))

    return draw


def network(make: Callable[..., nn.Module] | None = None, *, steps: int = 2000, batch: int = 256, lr: float = 1e-3,
            ema: float | None = 0.999, clip: float | None = None, warm: bool = True) -> Regress:
    """Fit a drift by `steps` steps of Adam on a network, made by make(dim, generator=…), default `MLP`.

    A new optimiser for every fit; the averaged network comes back, frozen, and starts the next fit of the
    same drift if `warm`.
    """
    make = make or (lambda dim, generator: MLP(dim, generator=generator, width=128, depth=2))

    def regress(draw: Draw, previous: Field | None, generator: torch.Generator, name: str) -> tuple[Field, Tensor]:
        like = draw(1, generator).x
        warm_start = warm and isinstance(previous, nn.Module)
        net = copy.deepcopy(previous) if warm_start else make(like.shape[1], generator=generator).to(like)

        def loss(net: nn.Module, generator: torch.Generator) -> Tensor:
            t, x, target, weight = draw(batch, generator)
            return (weight[:, None] * (net(t, x) - target).square()).mean()

        fitted = fit(net.requires_grad_(True), loss, steps, generator=generator, lr=lr, ema=ema, clip=clip, name=name)
        return fitted.model.requires_grad_(False), fitted.history["loss"]

    return regress


def least_squares(features: Callable[[Tensor, Tensor], Tensor], ridge: float = 1e-10) -> Regress:
    """Fit a drift that is linear in features(t, x) -> (B, K) of t (B,), x (B, D): exact, without training.

    Every pair is used once; `ridge` is relative to the mean square of the features.
    """
    def regress(draw: Draw, previous: Field | None, generator: torch.Generator, name: str) -> tuple[Field, Tensor]:
        t, x, target, weight = draw(None, generator)
        phi = features(t, x)
        gram = phi.T @ (weight[:, None] * phi)
        gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=x.dtype, device=x.device)
        coefficients = torch.linalg.solve(gram, phi.T @ (weight[:, None] * target))
        drift = lambda t, x: features(torch.as_tensor(t).to(x).expand(len(x)), x) @ coefficients
        return drift, (weight[:, None] * (phi @ coefficients - target).square()).mean()[None]

    return regress


def _indices(n: int | None, size: int, generator: torch.Generator) -> Tensor:
    if n is None:
        return torch.arange(size, device=generator.device)
    return torch.randint(size, (n,), generator=generator, device=generator.device)


def _choose(x: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return x[_indices(n, len(x), generator).to(x.device)]


def _check(x0: Tensor, x1: Tensor, sigma: float, generator: torch.Generator, iterations: int, times: Tensor | None,
           paths: int) -> Tensor:
    check.points("x0", x0)
    check.points("x1", x1, dim=x0.shape[1], like=x0)
    check.finite("sigma", check.positive("sigma", sigma))
    check.generator("generator", generator)
    check.count("iterations", iterations)
    check.count("paths", paths)
    times = solve.grid(symmetric_times(20) if times is None else times, x0, "times")
    if times[0] != 0 or times[-1] != 1:
        check.refuse("times", f"a grid from {times[0]:g} to {times[-1]:g}", "times from 0 to 1")
    return times

r"""Schrödinger bridges between two clouds, learned by alternating regressions.

Among all random motions from p_0 (t = 0) to p_1 (t = 1), the bridge is the one closest to a reference Q, dX = σ dW
unless another is named:  P* = argmin {KL(P | Q) : P_0 = p_0, P_1 = p_1}.  It is a diffusion; and for any diffusion
with marginals p_t that runs forward with drift u_f and, reversed, backward with u_b (time running down from p_1),

    u_f + u_b = σ² ∇log p_t   (Nelson),         ½ (u_f − u_b) = velocity of the probability flow.

DSB (De Bortoli, Thornton, Heng & Doucet 2021), iterative proportional fitting by mean matching.  Simulate
backward from p_1 with the frozen u_b, X_k = X_{k+1} + h u_b(t_{k+1}, X_{k+1}) + σ√h Z; the motion read forward
has the drift σ²∇log p_t − u_b, the least-squares fit at (t_k, X_k) of

    (X_{k+1} − X_k)/h + u_b(t_{k+1}, X_{k+1}) − u_b(t_{k+1}, X_k)  =  −σZ/√h − u_b(t_{k+1}, X_k).      (their Eq. 12)

Do the same from p_0, and repeat.  The first fit is score matching.

DSBM (Shi, De Bortoli, Campbell & Doucet 2023), iterative Markovian fitting.  Join pairs (x_0, x_1) by Brownian
bridges, fit u_f to (x_1 − x_t)/(1 − t), simulate new pairs from p_0, fit u_b to (x_0 − x_t)/t, simulate new pairs
from p_1, and repeat.  The reference enters at every fit; in DSB once, at the start, and fades.

House → DSB's paper: t = 0 is the prior and t = 1 the data, so its forward drift is our u_b; σ² = 2T, and our drifts
are T times theirs.  Every drift sees the time of the state it is given, whichever way we simulate.
"""
import copy
from collections.abc import Callable, Sequence
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
_brownian = lambda t, x: torch.zeros_like(x)
Source = Tensor | Callable[[int, torch.Generator], Tensor]  # points (n, D), or a function that draws n of them
Regress = Callable[["Cache", Field | None, torch.Generator, str], tuple[Field, Tensor]]  # -> drift, losses


class Pairs(NamedTuple):
    """A weighted least-squares problem for a drift."""

    t: Tensor  # (M,) times
    x: Tensor  # (M, D) states
    target: Tensor  # (M, D) what the drift at (t, x) is to be on average; carries no gradient
    weight: Tensor  # (M,) of mean one


@dataclass(frozen=True)
class Bridge:
    """A pair of drifts f(t, x), t 0-d or (B,), x (B, D), for dX = u dt + σ dW along and against time."""

    forward_drift: Field
    backward_drift: Field
    sigma: float
    times: Tensor  # (N + 1,) from 0 to 1, the steps of the simulation
    forward_loss: Tensor | None = None  # (steps,) of the regression, where there was one
    backward_loss: Tensor | None = None
    history: tuple[Self, ...] = ()  # the bridge after each iteration

    def after(self, iteration: int) -> Self:
        """The bridge as it was after `iteration` iterations, counted from 1."""
        check.choice("iteration", iteration, tuple(range(1, len(self.history) + 1)))
        return self.history[iteration - 1]

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

        `t` is the decreasing grid of the Runge–Kutta steps (default: `times`).  The flow is that of the forward process
        as far as u_b is its reversal, up to the error of a regression; its pairs (x_0, x_1) are not the bridge's.
        """
        t = self.times.flip(0) if t is None else solve.grid(t, x)
        if t[0] < t[-1]:
            check.refuse("t", "a grid that rises", "one that falls, from the time of x to that of base_log_p")
        return solve.log_likelihood(self.velocity, x, t, base_log_p, divergence)


@dataclass(eq=False)
class Cache:
    """What the drift that runs in `direction` is fitted to, made of paths against it; empty before `refresh`."""

    direction: str
    drift: Field | None  # of the paths; None, where ends are joined: they end in `goal`, whatever their start
    start: Source  # of the paths, x_1 where the drift to be fitted runs forward, x_0 where backward
    goal: Source
    sigma: float
    times: Tensor  # (N + 1,) rising
    paths: int  # how many
    joined: bool  # bridge matching, of their ends; or mean matching, of their steps
    rows: Sequence[Tensor] = ()  # what is kept, (M, …) each
    age: int = 0  # how often `network` has refreshed it

    def refresh(self, generator: torch.Generator) -> Self:
        """Simulate again, from other starts."""
        check.choice("direction", self.direction, DIRECTIONS)
        x, forward = _drawn(self.start, self.paths, generator), self.direction == "forward"
        times = self.times.flip(0) if forward else self.times
        if self.joined:
            end = (_drawn(self.goal, self.paths, generator) if self.drift is None else
                   simulate(self.drift, self.sigma, x, times, generator)[-1])
            self.rows = (end, x) if forward else (x, end)
        else:
            self.rows = reversal_pairs(self.drift, self.sigma, x, times, generator)
        return self

    def pairs(self, generator: torch.Generator, n: int | None = None) -> Pairs:
        """One pass over all there is, or n pairs with replacement.

        Joined ends are seen through Brownian bridges, at fresh times t, uniform up to the last knot at which the drift
        is used: [0, t_{N−1}] forward, [t_1, 1] backward.
        """
        rows, forward = self.rows if n is None else _some(self.rows, n, generator), self.direction == "forward"
        if not self.joined:
            return Pairs(*rows)
        x0, x1 = rows
        low, high = (0.0, float(self.times[-2])) if forward else (float(self.times[1]), 1.0)
        t, z = low + (high - low) * draws.uniform(x0[:, :1], generator), draws.normal(x0, generator)
        x = (1 - t) * x0 + t * x1 + self.sigma * (t * (1 - t)).sqrt() * z
        return Pairs(t[:, 0], x, (x1 - x) / (1 - t) if forward else (x0 - x) / t, torch.ones_like(t[:, 0]))


def train_dsb(x0: Source, x1: Source, sigma: float, *, generator: torch.Generator, iterations: int = 5,
              times: Tensor | None = None, paths: int = 5000, reference: Field | None = None,
              regress: Regress | None = None, name: str = "DSB") -> Bridge:
    """Diffusion Schrödinger bridge from x0 to x1 by iterative proportional fitting.

    x0, x1      points (n, D), drawn from with replacement, or functions (n, generator) -> (n, D).
    sigma       standard deviation of the reference's noise over [0, 1], > 0; √(2T) in the paper.
    iterations  each fits the forward drift, then the backward drift.
    times       (N + 1,) from 0 to 1 (default `symmetric_times(20)`).
    paths       trajectories simulated for each fit, all N steps of each kept: the cache, (N + 1)·paths·D numbers.
    reference   backward drift r(t, x) of Q, such as −α(x − c) for Ornstein–Uhlenbeck; None means Brownian.
    regress     how drifts are fitted (default `network()`; see also `least_squares`).

    `history[n]`, which is `after(n + 1)`, keeps drifts and losses of iteration n + 1.
    """
    return _alternate(False, reference or _brownian, x0, x1, sigma, generator, iterations, times, paths, regress, name)


def train_dsbm(x0: Source, x1: Source, sigma: float, *, generator: torch.Generator, iterations: int = 5,
               times: Tensor | None = None, paths: int = 5000, start: str = "independent",
               regress: Regress | None = None, name: str = "DSBM") -> Bridge:
    """Diffusion Schrödinger bridge matching from x0 to x1; the reference is Brownian, always.

    start  pairs of the first fit: "independent" (x_0, x_1), which makes it iterative Markovian fitting, or
           "reference", ends of Brownian paths from x_1, which makes it proportional fitting (their Prop. 10).

    Other arguments and the result as for `train_dsb`; `paths` is the number of pairs joined for each fit.
    """
    check.choice("start", start, ("independent", "reference"))
    return _alternate(True, _brownian if start == "reference" else None, x0, x1, sigma, generator, iterations, times,
                      paths, regress, name)


def _alternate(joined: bool, backward: Field | None, x0: Source, x1: Source, sigma: float,
               generator: torch.Generator, iterations: int, times: Tensor | None, paths: int,
               regress: Regress | None, name: str) -> Bridge:
    check.finite("sigma", check.positive("sigma", sigma))
    check.generator("generator", generator)
    for what, count in (("iterations", iterations), ("paths", paths)):
        check.count(what, count)
    one, other = (x(1, generator) if callable(x) else x for x in (x0, x1))
    check.points("x1", other, dim=check.points("x0", one).shape[1], like=one)
    times = solve.grid(symmetric_times(20) if times is None else times, one, "times")
    if times[0] != 0 or times[-1] != 1:
        check.refuse("times", f"a grid from {times[0]:g} to {times[-1]:g}", "times from 0 to 1")
    regress, forward, history = regress or network(), None, []
    for n in range(1, iterations + 1):
        cache = Cache("forward", backward, x1, x0, sigma, times, paths, joined).refresh(generator)
        forward, up = regress(cache, forward, generator, f"{name} {n}/{iterations} forward")
        cache = Cache("backward", forward, x0, x1, sigma, times, paths, joined).refresh(generator)
        backward, down = regress(cache, backward, generator, f"{name} {n}/{iterations} backward")
        history.append(Bridge(forward, backward, float(sigma), times, up, down))
    return replace(history[-1], history=tuple(history))


def symmetric_times(steps: int, ratio: float = 1.0) -> Tensor:
    """Times 0 = t_0 < … < t_N = 1, steps growing linearly from both ends to `ratio` times the first in the middle."""
    check.count("steps", steps)
    check.finite("ratio", check.positive("ratio", ratio))
    k = torch.arange(steps, dtype=torch.float64)
    h = 1 + (ratio - 1) * torch.minimum(k, steps - 1 - k) / max((steps - 1) // 2, 1)
    return torch.cat([torch.zeros(1, dtype=torch.float64), h.cumsum(0) / h.sum()])


def simulate(drift: Field, sigma: float, x: Tensor, times: Tensor, generator: torch.Generator) -> Tensor:
    """Paths (N + 1, B, D) of steps |h|·drift(t, x) + σ√|h| z along `times`, increasing or decreasing."""
    times = times.to(x)
    along = torch.sign(times[-1] - times[0])
    with torch.no_grad():
        return solve.sde(lambda t, x: along * drift(t, x), sigma, x, times, generator)


def reversal_pairs(drift: Field, sigma: float, x: Tensor, times: Tensor, generator: torch.Generator) -> Pairs:
    """Mean matching: regression of the drift that reads backwards the paths simulated with `drift` from x.

    From a step y = x + h·drift(t, x) + σ√h z to time s the pair is (s, y), target −σz/√h − drift(t, y), weight ∝ h as
    in the KL divergence between paths.  The paper fits the mean of a step, which is weight h² (its γ²).
    """
    times = times.to(x)
    path, h = simulate(drift, sigma, x, times, generator), times.diff().abs()
    with torch.no_grad():
        target = torch.cat([(a - b) / step + drift(t, a) - drift(t, b)
                            for t, step, a, b in zip(times, h, path, path[1:], strict=False)])
    t, weight = (v.repeat_interleave(len(x)) for v in (times[1:], h / h.mean()))
    return Pairs(t, path[1:].flatten(0, 1), target, weight)


def network(make: Callable[..., nn.Module] | None = None, *, steps: int = 2000, batch: int = 256, lr: float = 1e-3,
            ema: float | None = 0.999, clip: float | None = None, warm: bool = True, refresh: int = 0) -> Regress:
    """Fit a drift by `steps` steps of Adam on a network, made by make(dim, generator=…), default `MLP`.

    A new optimiser for every fit; the averaged network comes back, frozen, and starts the next fit of the same drift
    if `warm`.  The cache is simulated anew after every `refresh` steps; 0 keeps it.
    """
    make = make or (lambda dim, generator: MLP(dim, generator=generator, width=128, depth=2))

    def regress(cache: Cache, previous: Field | None, generator: torch.Generator, name: str) -> tuple[Field, Tensor]:
        like = cache.pairs(generator, 1).x
        net = (copy.deepcopy(previous) if warm and isinstance(previous, nn.Module) else
               make(like.shape[1], generator=generator).to(like))

        net.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # steps, which a checkpoint so remembers
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device)) if refresh else 0

        def loss(net: nn.Module, generator: torch.Generator) -> Tensor:
            if refresh and cache.age != (due := int(net.seen) // refresh):
                cache.refresh(torch.Generator(generator.device).manual_seed(seed + due)).age = due
            net.seen += net.training
            t, x, target, weight = cache.pairs(generator, batch)
            return (weight[:, None] * (net(t, x) - target).square()).mean()

        fitted = fit(net.requires_grad_(True), loss, steps, generator=generator, lr=lr, ema=ema, clip=clip, name=name)
        del fitted.model.seen
        return fitted.model.requires_grad_(False), fitted.history["loss"]

    return regress


def least_squares(features: Callable[[Tensor, Tensor], Tensor], ridge: float = 1e-10) -> Regress:
    """Fit a drift that is linear in features(t, x) -> (B, K) of t (B,), x (B, D): exact, without training.

    Every pair is used once; `ridge` is relative to the mean square of the features.
    """
    def regress(cache: Cache, previous: Field | None, generator: torch.Generator, name: str) -> tuple[Field, Tensor]:
        t, x, target, weight = cache.pairs(generator)
        phi = features(t, x)
        gram = phi.T @ (weight[:, None] * phi)
        gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=x.dtype, device=x.device)
        coefficients = torch.linalg.solve(gram, phi.T @ (weight[:, None] * target))
        drift = lambda t, x: features(torch.as_tensor(t).to(x).expand(len(x)), x) @ coefficients
        return drift, (weight[:, None] * (phi @ coefficients - target).square()).mean()[None]

    return regress


def _some(rows: Sequence[Tensor], n: int, generator: torch.Generator) -> list[Tensor]:
    i = torch.randint(len(rows[0]), (n,), generator=generator, device=generator.device)
    return [row[i.to(row.device)] for row in rows]


def _drawn(x: Source, n: int, generator: torch.Generator) -> Tensor:
    return x(n, generator) if callable(x) else _some([x], n, generator)[0]

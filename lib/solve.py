r"""Differential equations along t, and the log-likelihood they carry.

    ode             dx/dt = f(t, x)                    Euler (order 1), Heun (2), RK4 (4), adaptive dopri5 (5)
    sde             dX = f dt + g dW                   Euler–Maruyama (weak order 1)
    log_likelihood  log p(x) = log p_end(x_end) + ∫ ∇·f dt, along dx/dt = f from t[0] to t[-1]

The last line is the instantaneous change of variables (Chen et al. 2018): d log p_t(x_t)/dt = −∇·f, so
going from t[0] to t[-1], log p_{t[0]}(x_{t[0]}) = log p_{t[-1]}(x_{t[-1]}) + ∫_{t[0]}^{t[-1]} ∇·f dt, with
the sign of dt: a decreasing grid integrates backwards and the formula stands as it is.

Fixed-step methods are written out because the chapters discuss them; dopri5 is torchdiffeq's.
"""
import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lib.base import check, draw

Field = Callable[[Tensor, Tensor], Tensor]  # f(t, x), t 0-d: like x, or (B,) where it is a divergence
METHODS = ("euler", "heun", "rk4", "dopri5")


class Flow(NamedTuple):
    """A velocity and its divergence from one evaluation."""

    velocity: Tensor  # (B, D)
    divergence: Tensor  # (B,)


def ode(f: Field, x: Tensor, t: Tensor, method: str = "rk4", *, rtol: float = 1e-5, atol: float = 1e-6) -> Tensor:
    """Trajectory of dx/dt = f(t, x) through the grid `t`, shape (len(t), *x.shape); row 0 is x.

    t is a 1-D increasing or decreasing grid.  "euler", "heun" and "rk4" step from knot to knot with 1,
    2 and 4 evaluations of f; "dopri5" chooses its own steps to `rtol`, `atol` and reports at the knots.
    None evaluates f outside the interval of t: torchdiffeq's own default does, in its first guess and its last step.
    """
    check.finite("x", check.floating("x", x))
    t = grid(t, x)
    check.choice("method", method, METHODS)
    if method == "dopri5":
        from torchdiffeq import odeint

        low, high = t.aminmax()  # its guess of a first step may look beyond the end; no step does, by step_t
        return odeint(lambda s, y: f(s.clamp(low, high), y), x, t, method="dopri5", rtol=rtol, atol=atol,
                      options={"step_t": t[-1:]})
    step = {"euler": _euler, "heun": _heun, "rk4": _rk4}[method]
    path = [x]
    for now, later in itertools.pairwise(t):
        path.append(step(f, path[-1], now, later - now))
    return torch.stack(path)


def _euler(f: Field, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
    return x + h * f(t, x)


def _heun(f: Field, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
    k1 = f(t, x)
    k2 = f(t + h, x + h * k1)
    return x + h / 2 * (k1 + k2)


def _rk4(f: Field, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
    k1 = f(t, x)
    k2 = f(t + h / 2, x + h / 2 * k1)
    k3 = f(t + h / 2, x + h / 2 * k2)
    k4 = f(t + h, x + h * k3)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def sde(drift: Field, noise: float | Callable[[Tensor], Tensor], x: Tensor, t: Tensor,
        generator: torch.Generator) -> Tensor:
    """One Euler–Maruyama path of dX = f dt + g dW per row of x, shape (len(t), *x.shape).

    `noise` is g: a number ≥ 0 or a function of t, a standard deviation per square root of time.  On a
    decreasing grid dt < 0 multiplies the drift, so the drift to pass is minus the drift of the
    time-reversed process; the noise of a step has variance g²|dt| either way.
    """
    check.finite("x", check.floating("x", x))
    t = grid(t, x)
    check.generator("generator", generator)
    if not callable(noise):
        check.within("noise", noise, 0.0, torch.finfo(x.dtype).max)
    path = [x]
    for now, later in itertools.pairwise(t):
        h, x = later - now, path[-1]
        g = torch.as_tensor(noise(now) if callable(noise) else noise, dtype=x.dtype, device=x.device)
        path.append(x + h * drift(now, x) + g * h.abs().sqrt() * draw.normal(x, generator))
    return torch.stack(path)


def log_likelihood(f: Field | Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, t: Tensor,
                   base_log_p: Callable[[Tensor], Tensor], divergence: Field | None = None, method: str = "rk4",
                   **tolerances: float) -> Tensor:
    """log p(x) in nats, shape (B,), of the density that the flow of f carries to `base_log_p` at t[-1].

    x (B, D) lives at t[0], the base density at t[-1]: a grid that falls in the house's time, `linspace(1, 0, n)`, and
    rises in τ.  Reversed, the answer is that of another density, and no error shows it.  `f(t, x)` returns the velocity
    (B, D), or, at the least cost, the pair of velocity and divergence (B,), as a `Flow`.  Beside a velocity
    `divergence(t, x)` -> (B,) is ∇·f: a closed form, `exact_divergence(f)` (None: D forward-mode derivatives) or
    `hutchinson_divergence(f, probes)` (unbiased, noisy); beside a pair, None.
    """
    check.points("x", x)
    trace = exact_divergence(f) if divergence is None else divergence

    def augmented(s: Tensor, state: Tensor) -> Tensor:
        y = state[:, :-1]
        found = f(s, y)
        if isinstance(found, Tensor):
            found = found, trace(s, y)
        elif divergence is not None:
            check.refuse("divergence", "a function beside a field that returns its own", "None")
        return torch.cat([found[0], found[1][:, None]], 1)

    end = ode(augmented, torch.cat([x, torch.zeros_like(x[:, :1])], 1), t, method, **tolerances)[-1]
    return base_log_p(end[:, :-1]) + end[:, -1]


def exact_divergence(f: Field) -> Field:
    """∇·f as the trace of the Jacobian by D forward-mode derivatives; f must treat rows independently."""

    def divergence(t: Tensor, x: Tensor) -> Tensor:
        basis = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)

        def entry(e: Tensor) -> Tensor:
            return torch.func.jvp(lambda y: f(t, y), (x,), (e.expand_as(x),))[1] @ e

        return torch.func.vmap(entry)(basis).sum(0)

    return divergence


def hutchinson_divergence(f: Field, probes: Tensor) -> Field:
    """Unbiased estimate mean_k z_kᵀ(∂f/∂x)z_k of ∇·f with fixed probes (K, B, D), E zzᵀ = I.

    Keep one set of probes for a whole trajectory: the log-likelihood is then unbiased and smooth in t
    (Grathwohl et al. 2019); its exponential is not unbiased.
    """

    if check.finite("probes", check.floating("probes", probes)).dim() != 3 or not len(probes):
        check.refuse("probes", f"shape {tuple(probes.shape)}", "shape (K, B, D) with K ≥ 1")

    def divergence(t: Tensor, x: Tensor) -> Tensor:
        if probes.shape[1:] != x.shape:
            check.refuse("probes", f"shape {tuple(probes.shape)}", f"shape (K, {len(x)}, {x.shape[1]})")

        def quadratic(z: Tensor) -> Tensor:
            return (torch.func.jvp(lambda y: f(t, y), (x,), (z,))[1] * z).sum(1)

        return torch.func.vmap(quadratic)(probes.to(x)).mean(0)

    return divergence


def rademacher(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random signs ±1, the probes of least variance for `hutchinson_divergence`."""
    check.generator("generator", generator)
    signs = torch.randint(0, 2, shape, generator=generator, device=generator.device)
    return (2 * signs - 1).to(dtype)


def grid(t: Tensor, x: Tensor, name: str = "t") -> Tensor:
    """A strictly monotone 1-D time grid of at least two knots, in x's dtype and device."""
    need = "a 1-D tensor of at least two times"
    if check.dense(name, t, need).dim() != 1 or len(t) < 2:
        check.refuse(name, f"shape {tuple(t.shape)}", need)
    steps = check.finite(name, t.to(x)).diff()
    if not bool((steps > 0).all() | (steps < 0).all()):
        check.refuse(name, f"a grid that turns or stands still in {x.dtype}", "strictly increasing or decreasing times")
    return t.to(x)

r"""Couplings of two clouds.

Entropic transport of weights a, b on points x, y with cost C_ij = ‖x_i − y_j‖² and temperature ε:

    value = min_π ⟨C, π⟩ + ε KL(π | a ⊗ b),      π_ij = a_i b_j exp((f_i + g_j − C_ij)/ε)
    f_i = −ε log Σ_j b_j exp((g_j − C_ij)/ε),     g_j likewise                                (Sinkhorn)

Each update is the log-normaliser of the one reduction with σ² = ε/2 and log-weights log b + g/ε, so it
needs O(n) memory.  A Brownian reference with variance σ² over [0, 1] corresponds to ε = 2σ².
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import ot
import torch
from torch import Tensor

from lib.base import check
from lib.kernels import Cloud, reduce

STAGE, COARSE = 100, 0.05  # on the way down: at most so many iterations at a temperature, to so loose an error
KINDS = ("independent", "exact", "entropic")
Ends = Callable[[torch.Generator], tuple[Tensor, Tensor]]  # draws x0 and x1, (B, D) each


class Sinkhorn(NamedTuple):
    """Entropic optimal transport between two weighted clouds."""

    f: Tensor  # (n,) potential at x, units of the squared-distance cost
    g: Tensor  # (m,) potential at y
    value: Tensor  # 0-d  ⟨C, π⟩ + ε KL(π | a ⊗ b), from the dual
    error: Tensor  # 0-d  Σ_j |(πᵀ1)_j − b_j|, after the last iterate but one where `g` was given; the other is exact
    converged: bool  # error ≤ tolerance


def sinkhorn(x: Tensor, y: Tensor, epsilon: float, *, log_a: Tensor | None = None, log_b: Tensor | None = None,
             iterations: int = 2000, tolerance: float = 1e-6, g: Tensor | None = None) -> Sinkhorn:
    """Log-domain Sinkhorn for squared distances between x (n, D) and y (m, D), in O(n + m) memory.

    epsilon     temperature > 0, in units of the cost.
    log_a/log_b log-weights of x (n,) and y (m,), each normalised to sum to one; None means equal.
    iterations  at most so many pairs of updates, over all temperatures.
    tolerance   on the marginal error in L¹; `converged` says whether it was reached: never silent.
    g           (m,) potential to start from, at `epsilon` itself and without momentum: the plain iterates of
                proportional fitting, which start at zero.  None takes the fast road.

    The fast road starts at the squared diameter and halves the temperature (each start is the last one's potential),
    and at each it extrapolates g by Nesterov's momentum, dropped whenever it points away from the update.

    Runs in float64 whatever the input, because g/ε is large; results come back in the input's dtype.
    """
    check.points("x", x)
    check.points("y", y, dim=x.shape[1], like=x)
    check.finite("epsilon", check.positive("epsilon", epsilon))
    check.count("iterations", iterations)
    check.positive("tolerance", tolerance)
    log_a, log_b = normalised("log_a", log_a, x), normalised("log_b", log_b, y)
    clouds = x.double(), y.double(), log_a, log_b
    centre = clouds[0].mean(0)
    hot = sum(float((z - centre).detach().norm(dim=1).max()) for z in clouds[:2]) ** 2
    if epsilon < 1e-12 * hot:
        check.refuse("epsilon", f"{float(epsilon):.3g} for clouds of squared diameter {hot:.3g}",
                     f"at least {1e-12 * hot:.3g}, or float64 has no digits of g/ε")
    if g is not None:
        start = check.vector("g", g, len(y), like=x).double()
        f, g, error, _ = _iterate(*clouds, start, epsilon, iterations, tolerance, momentum=False)
    else:
        g = torch.zeros_like(log_b)
        while hot > 2 * epsilon and iterations > 1:
            _, g, _, used = _iterate(*clouds, g, hot, min(STAGE, iterations - 1), COARSE)
            iterations, hot = iterations - used, hot / 2
        f, g, error, _ = _iterate(*clouds, g, epsilon, iterations, tolerance)
    value = (log_a.exp() * f).sum() + (log_b.exp() * g).sum()
    return Sinkhorn(f.to(x), g.to(x), value.to(x), error.to(x), bool(error <= tolerance))


def _iterate(x: Tensor, y: Tensor, log_a: Tensor, log_b: Tensor, g: Tensor, epsilon: float, iterations: int,
             tolerance: float, momentum: bool = True) -> tuple[Tensor, Tensor, Tensor, int]:
    """Sinkhorn at one temperature: f that belongs to g exactly, g, the error of their plan, iterations used."""
    sigma, last, age = math.sqrt(epsilon / 2), g, 0
    heavy_x, heavy_y = log_a > -math.inf, log_b > -math.inf  # the others are seen from, and never seen
    cloud_x, cloud_y, log_a_, log_b_ = Cloud(x[heavy_x]), Cloud(y[heavy_y]), log_a[heavy_x], log_b[heavy_y]

    def f_of(g: Tensor) -> Tensor:
        return -epsilon * reduce(x, cloud_y.weighted(log_b_ + g[heavy_y] / epsilon), sigma).log_z

    def g_of(f: Tensor) -> Tensor:
        return -epsilon * reduce(y, cloud_x.weighted(log_a_ + f[heavy_x] / epsilon), sigma).log_z

    for used in range(1, iterations + 1):
        f = f_of(g)
        update = g_of(f)
        error = (log_b.exp() * torch.expm1((g - update) / epsilon)).abs().sum()
        if error <= tolerance or (used == iterations and momentum):
            return f, g, error, used
        age = age + 1 if momentum and ((update - g) * (update - last)).sum() >= 0 else 0
        g, last = update + age / (age + 3) * (update - last), update
    return f_of(g), g, error, used


def normalised(name: str, log_w: Tensor | None, points: Tensor) -> Tensor:
    """Log-weights (n,) of `points` in float64, normalised to sum to one; None means equal."""
    if log_w is None:
        return torch.full((len(points),), -math.log(len(points)), dtype=torch.float64, device=points.device)
    log_w = check.log_weights(name, log_w, len(points), like=points).double()
    return log_w - log_w.logsumexp(0)


def couple(x0: Tensor, x1: Tensor, kind: str, *, epsilon: float | None = None,
           generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pair two batches (B, D): returns (x0, x1[j]) with j drawn from a coupling of the two.

    "independent" shuffles x1; "exact" pairs by the optimal assignment for squared distance (POT);
    "entropic" draws each j from the Sinkhorn plan at temperature `epsilon`.  The first two are
    permutations, so both marginals are kept exactly; the third keeps x1's in expectation, to 10⁻³ in L¹.
    """
    check.choice("kind", kind, KINDS)
    check.points("x0", x0)
    check.points("x1", x1, dim=x0.shape[1], like=x0)
    if len(x0) != len(x1):
        check.refuse("x1", f"{len(x1)} points", f"{len(x0)}, as many as x0")
    check.generator("generator", generator)
    if (kind == "entropic") != (epsilon is not None):
        check.refuse("epsilon", epsilon, 'a number > 0 for kind "entropic" and None otherwise')
    if kind == "independent":
        j = torch.randperm(len(x1), generator=generator, device=generator.device)
        return x0, x1[j.to(x1.device)]
    cost = torch.cdist(x0.double(), x1.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    if kind == "exact":
        j = torch.from_numpy(ot.emd([], [], cost.detach().cpu().numpy(), numItermax=10_000_000).argmax(1))
    else:
        plan = sinkhorn(x0, x1, epsilon, tolerance=1e-3)
        if not plan.converged:
            check.refuse("epsilon", f"{epsilon:g}, marginal error {plan.error:.1e} after all iterations",
                         "a larger temperature")
        p = ((plan.g - cost) / epsilon).softmax(1)
        j = torch.multinomial(p.to(generator.device), 1, generator=generator)[:, 0]
    return x0, x1[j.to(x1.device)]


def coupled(ends: Ends, kind: str, *, epsilon: float | None = None) -> Ends:
    """`ends(generator)` -> (x0, x1), with every batch paired by `couple`: a batch of an interpolant's pairs."""
    return lambda generator: couple(*ends(generator), kind, epsilon=epsilon, generator=generator)

r"""Stochastic interpolants: from any density to any density, by least squares.

    x_t = a(t) x_1 + m(t) x_0 + γ(t) z,        (x_0, x_1) from any coupling of ρ_0 and ρ_1,   z ~ N(0, I) apart

a rises from 0 to 1, m falls from 1 to 0, the latent γ vanishes at both ends; without it this is Albergo &
Vanden-Eijnden 2023, with it Albergo, Boffi & Vanden-Eijnden 2023.  Three conditional means given x_t = x,

    velocity  b = E[a′x_1 + m′x_0 + γ′z | x]      denoiser  η = E[z | x]      score  s = ∇log ρ_t = −η/γ,

minimise one and the same objective, each for its own target T = ẋ_t, z, −z/γ:

    G(f) = E|f|² − 2 E f·T,     min G = −E|f*|²,     G(f) − min G = E|f − f*|²,     G̃(f) = G(f) + E|f|² = 0 at f*.

b carries ρ_0 to ρ_1, as ∂_t ρ + ∇·(bρ) = 0, and so do, forward and backward, dX = (b ± εs) dt + √(2ε) dW for
any ε(t) ≥ 0.  Where x_0 ~ N(0, I) apart from x_1 and γ = 0, the velocity alone knows the score:

    s = (a b − a′x) / (m (m a′ − m′a)).

House → papers: m, a are a, b in the first paper and α, β in the second.
"""
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lib import path as paths
from lib import solve
from lib.base import check, draw
from lib.base.shapes import as_time, column
from lib.path import Path
from lib.solve import Field

OfTime = Callable[[Tensor], Tensor]  # from a 0-d or (B,) tensor to the same shape
Ends = Callable[[torch.Generator], tuple[Tensor, Tensor]]  # draws x0 and x1, (B, D) each
END = 1e-4  # training times keep this distance from 0 and 1, where γ′ and 1/γ are infinite


@dataclass(frozen=True)
class Interpolant:
    """A path between any two densities: how the ends mix, and the variance γ² of a latent.

    `latent` is γ²(t), smooth where γ is not; None for no latent.  With it, `point` and `velocity` need z.
    It is not a `Path`, whose only noise is x_0: where that is so, `one_sided()` is the Path.
    """

    ends: Path  # a x_1 + m x_0
    latent: OfTime | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.ends, Path):
            check.refuse("ends", type(self.ends).__name__, "a Path, as in Interpolant(Path(a, m), latent)")

    def gamma(self, t: float | Tensor) -> Tensor:
        """γ(t) > 0, shape as t; `ValueError` without a latent and at the ends, where γ = 0."""
        if self.latent is None:
            check.refuse("interpolant", f"{self.ends.name} without latent", "one with γ: this is about its z")
        gamma = self.latent(as_time(t)).sqrt()
        if not check.opaque(gamma) and not bool((gamma > 0).all()):
            check.refuse("t", "a time with γ(t) = 0", "times with γ(t) > 0, inside (0, 1)")
        return gamma

    def gamma_rate(self, t: float | Tensor) -> Tensor:
        """γ′ = (γ²)′/2γ, shape as t."""
        t = as_time(t)
        return torch.func.jvp(self.latent, (t,), (torch.ones_like(t),))[1] / (2 * self.gamma(t))

    def point(self, x0: Tensor, x1: Tensor, t: float | Tensor, z: Tensor | None = None) -> Tensor:
        """x_t = a x_1 + m x_0 + γ z, shape (B, …), for ends of one shape; t is a number or (B,)."""
        x = self.ends.point(x0, x1, t)
        if not self._latent(z, x1):
            return x
        return x + column(self.latent(as_time(t, x1)).sqrt(), z) * z

    def velocity(self, x0: Tensor, x1: Tensor, t: float | Tensor, z: Tensor | None = None) -> Tensor:
        """ẋ_t = a′x_1 + m′x_0 + γ′z, whose conditional mean is b; with a latent, refused at the ends."""
        v = self.ends.velocity(x0, x1, t)
        if not self._latent(z, x1):
            return v
        return v + column(self.gamma_rate(as_time(t, x1)), z) * z

    def one_sided(self) -> Path:
        """The `Path` of the same ρ_t and b where x_0 ~ N(0, I) apart from x_1: m x_0 + γ z is one noise, √(m² + γ²)."""
        if self.latent is None:
            return self.ends
        noise = lambda t: (self.ends.m(t).square() + self.latent(t)).sqrt()
        return Path(self.ends.a, noise, f"one-sided {self.ends.name}")

    def _latent(self, z: Tensor | None, like: Tensor) -> bool:
        if (z is None) != (self.latent is None):
            need = "None: this interpolant has no latent" if self.latent is None else "a latent shaped like x1"
            check.refuse("z", "None" if z is None else "a tensor", need)
        return z is not None and check.alike("z", z, like, "x1") is z


def linear(latent: OfTime | None = None) -> Interpolant:
    """Straight lines: a = t, m = 1 − t."""
    return Interpolant(replace(paths.cond_ot(), name="linear"), latent)


def trigonometric(latent: OfTime | None = None) -> Interpolant:
    """A quarter circle: a = sin πt/2, m = cos πt/2; without latent, white uncorrelated ends keep their variance."""
    return Interpolant(paths.trigonometric(), latent)


def encoder_decoder() -> Interpolant:
    """x_0 melts into noise by t = ½, then x_1 forms out of it: cos²πt in either half, γ = sin²πt."""
    half = lambda t: torch.cos(math.pi * t).square()
    ends = Path(lambda t: half(t) * (t > 0.5), lambda t: half(t) * (t < 0.5), "encoder–decoder")
    return Interpolant(ends, lambda t: torch.sin(math.pi * t) ** 4)


def brownian(scale: float = 1.0) -> OfTime:
    """γ² = scale·t(1 − t): the latent of a Brownian bridge whose variance grows by `scale` per unit of time."""
    check.positive("scale", scale)
    return lambda t: scale * t * (1 - t)


class Learned(nn.Module):
    """An interpolant with Fourier corrections: a + Σ_k c_0k sin kπt and m + Σ_k c_1k sin kπt keep their ends.

    As min G = −∫E|b|²dt, the shortest path maximises over the corrections what the field minimises
    (Albergo & Vanden-Eijnden 2023, Prop. 2 and Appendix).
    """

    def __init__(self, modes: int = 7, start: Interpolant | None = None) -> None:
        super().__init__()
        self.start = trigonometric() if start is None else start
        self.corrections = nn.Parameter(torch.zeros(2, check.count("modes", modes)))

    def interpolant(self) -> Interpolant:
        """The interpolant as it stands, differentiable in the corrections."""
        return self._with(self.corrections)

    def opponent(self) -> Interpolant:
        """The same interpolant with its gradient reversed: one descent on G fits the field and lifts the path."""
        return self._with(2 * self.corrections.detach() - self.corrections)

    def _with(self, c: Tensor) -> Interpolant:
        order = torch.arange(1, c.shape[1] + 1, device=c.device)

        def corrected(f: OfTime, row: Tensor) -> OfTime:
            return lambda t: f(t) + torch.sin(math.pi * t[..., None] * order) @ row.to(t)

        a, m = (corrected(f, row) for f, row in zip((self.start.ends.a, self.start.ends.m), c, strict=True))
        return Interpolant(Path(a, m, "learned"), self.start.latent)


def quadratic(f: Tensor, target: Tensor) -> dict[str, Tensor]:
    """G = E|f|² − 2 E f·T for f, T (B, D), with its monitors: {"loss": G, "monitor": G̃, "length": E|f|²}.

    The gradient of G is that of the squared error E|f − T|², its minimum is minus the path length E|f*|², so
    its value does not compare interpolants.  G̃ = 0 is necessary at the minimum, not sufficient.
    """
    check.alike("target", target, check.rows("f", f), "f")
    length, product = f.square().sum(1).mean(), (f * target).sum(1).mean()
    return {"loss": length - 2 * product, "monitor": 2 * (length - product).detach(), "length": length.detach()}


def regression_loss(field: Field, interpolant: Interpolant, x0: Tensor, x1: Tensor, t: float | Tensor,
                    generator: torch.Generator | None = None, *, target: str = "velocity") -> dict[str, Tensor]:
    """`quadratic` for one of the conditional means, at ends (B, D) paired as they come and times t, a number or (B,).

    target  "velocity" b; "denoiser" η = E[z | x_t], bounded at the ends; "score" s = −E[z | x_t]/γ, whose variance
            grows as 1/γ² there.  The last two need a latent, and are refused where γ = 0.

    With a latent, z is drawn from `generator` and enters as ±z, so that γ′z, unbounded at the ends, cancels.
    """
    check.choice("target", target, ("velocity", "denoiser", "score"))
    if target != "velocity":
        interpolant.gamma(t)
    interpolant = Interpolant(interpolant) if isinstance(interpolant, Path) else interpolant
    x0, x1, t, z = antithetic(interpolant, x0, x1, t, generator)
    wanted = {"velocity": lambda: interpolant.velocity(x0, x1, t, z), "denoiser": lambda: z,
              "score": lambda: score_from_denoiser(interpolant, t, z)}[target]()
    return quadratic(field(t, interpolant.point(x0, x1, t, z)), wanted)


velocity_loss = regression_loss  # with the target that it has unless told otherwise


def antithetic(interpolant: Interpolant, x0: Tensor, x1: Tensor, t: float | Tensor,
               generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(x0, x1, t, z) with the batch repeated for z and −z; as given, with z = None, without latent."""
    check.alike("x0", x0, check.points("x1", x1), "x1")
    t = as_time(t, x1)
    if interpolant.latent is None:
        return x0, x1, t, None
    z = draw.normal(x1, generator)
    return torch.cat([x0, x0]), torch.cat([x1, x1]), torch.cat([t, t]) if t.dim() else t, torch.cat([z, -z])


def stratified(n: int, generator: torch.Generator) -> Tensor:
    """n times inside (0, 1), one in each of n equal strata, in random order."""
    u = torch.rand(check.count("n", n), generator=check.generator("generator", generator), device=generator.device)
    stratum = torch.randperm(n, generator=generator, device=generator.device)
    return END + (1 - 2 * END) * (stratum + u) / n


def objective(interpolant: Interpolant, ends: Ends, *,
              warp: OfTime | None = None) -> Callable[[nn.Module, torch.Generator], dict[str, Tensor]]:
    """A loss for `fit`: draws `ends(generator)`, draws stratified times, returns `velocity_loss`.

    ends  pairs (x0, x1) as they are to be joined: `transport.coupled` pairs each batch of another `ends`.
    warp  maps uniform times to those trained at, such as t ↦ 1 − (1 − t)², which is Beta(1, ½): it
          weighs times and leaves the minimiser alone, but "length" is then a weighted one.

    At its first batch it warns if the interpolant is variance preserving and the ends do not let it be.
    """
    first = iter([True])

    def loss(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        x0, x1 = ends(generator)
        if next(first, False):
            warn_unless_white(interpolant, x0, x1)
        t = stratified(len(x1), generator).to(x1)
        return velocity_loss(model, interpolant, x0, x1, t if warp is None else warp(t), generator)

    return loss


@torch.no_grad()
def warn_unless_white(interpolant: Interpolant, x0: Tensor, x1: Tensor) -> None:
    """Warn, with the cost, if a variance-preserving path meets ends (B, D) that are not white and uncorrelated.

    Variance preserving means a² + m² = 1 and no latent.  The cost is the path length of Gaussians with the same
    moments, against the least possible.
    """
    quarter = torch.tensor(0.25, dtype=torch.float64)
    path = interpolant.ends
    if interpolant.latent is not None or abs(path.a(quarter) ** 2 + path.m(quarter) ** 2 - 1) > 1e-6:
        return
    moments = [float(x.double().square().mean()) for x in (x0, interpolant.point(x0, x1, 0.5), x1)]
    if max(abs(moment - 1) for moment in moments) < 0.5:
        return
    x0, x1 = (x.double() - x.double().mean(0) for x in (x0, x1))
    v0, v1, c = x0.square().mean(0), x1.square().mean(0), (x0 * x1).mean(0)
    length, least = gaussian_length(interpolant, v0, v1, c) / len(v0), (v0.sqrt() - v1.sqrt()).square().mean()
    warnings.warn(f"{path.name} keeps unit variance only between whitened, uncorrelated ends; here E|x|²/D is "
                  "{:.3g}, {:.3g}, {:.3g} at t = 0, ½, 1. ".format(*moments) +
                  f"Gaussians with these moments travel {length:.3g} per dimension where {least:.3g} would do: "
                  "whiten the ends, or take another interpolant", stacklevel=3)


def score_from_velocity(path: Path | Interpolant, t: float | Tensor, x: Tensor, v: Tensor) -> Tensor:
    """∇log ρ_t at x (B, D) from the velocity v there, for x_0 ~ N(0, I) apart from x_1; t is a number or (B,).

    score = (a v − a′x)/(m(m a′ − m′a)), refused where m = 0 or a/m stands still.  Under a coupling that ties x_0
    to x_1 it is wrong and nothing shows it: use a latent and `score_from_denoiser` there.
    """
    path = path.one_sided() if isinstance(path, Interpolant) else path
    check.alike("v", v, check.points("x", x), "x")
    t = as_time(t, x)
    a, m, (da, dm) = path.a(t), path.m(t), path.rates(t)
    if not check.opaque(m) and not bool((m > torch.finfo(m.dtype).eps).all()):
        check.refuse("t", f"a time with m(t) = {m.min().item():.1g}", "times with noise left: m(t) > 0")
    turn = m * da - dm * a  # m² (a/m)′
    if not check.opaque(turn) and not bool((turn > 0).all()):
        check.refuse("t", "a time when a/m stands still or falls", "times when x_1 comes in")
    return (column(a, x) * v - column(da, x) * x) / column(m * turn, x)


def score_from_denoiser(interpolant: Interpolant, t: float | Tensor, eta: Tensor) -> Tensor:
    """∇log ρ_t = −η/γ (B, D), for any ends and any coupling; refused where γ = 0."""
    check.points("eta", eta)
    return -eta / column(interpolant.gamma(as_time(t, eta)), eta)


def diffuse(velocity: Field, score: Field, epsilon: float | OfTime, x: Tensor, t: Tensor,
            generator: torch.Generator) -> Tensor:
    """Euler–Maruyama for dX = (b ± εs) dt + √(2ε) dW, shape (len(t), B, D); every ε(t) ≥ 0 has the same marginals.

    An increasing grid runs b + εs forward from ρ at t[0], a decreasing one b − εs backward.
    """
    if not callable(epsilon):
        check.within("epsilon", epsilon, 0.0, 1e150)
    t = solve.grid(t, check.floating("x", x))
    epsilon_at = epsilon if callable(epsilon) else lambda t: torch.full_like(t, float(epsilon))
    sign = 1.0 if t[-1] > t[0] else -1.0
    return solve.sde(lambda t, x: velocity(t, x) + sign * epsilon_at(t) * score(t, x),
                     lambda t: (2 * epsilon_at(t)).sqrt(), x, t, generator)


def log_density(velocity: Field, t: float, x: Tensor, base_log_p: Callable[[Tensor], Tensor], *, steps: int = 50,
                divergence: Field | None = None) -> Tensor:
    """log ρ_t(x) in nats, shape (B,), 0 < t ≤ 1, of ρ_0 carried by `velocity`; x (B, D), `steps` of RK4.

    log ρ_t(x) = log ρ_0(X_0) − ∫_0^t ∇·b(r, X_r) dr on the trajectory that ends in X_t = x; `divergence` as in
    `solve.log_likelihood`: exact, or Hutchinson's estimate, unbiased for log ρ_t.
    """
    check.points("x", x)
    check.within("t", t, 0.0, 1.0)
    back = torch.linspace(float(t), 0, check.count("steps", steps) + 1, dtype=x.dtype, device=x.device)
    return solve.log_likelihood(velocity, x, back, base_log_p, divergence)


def gaussian_length(path: Path | Interpolant, variance0: float | Tensor, variance1: float | Tensor,
                    covariance: float | Tensor = 0.0, *, nodes: int = 400) -> Tensor:
    """Path length ∫E|b|²dt between centred Gaussians of diagonal variances, summed over coordinates, 0-d float64.

    With V = m²V_0 + a²V_1 + 2am·Cov(x_0, x_1) + γ² in a coordinate, b = (V′/2V) x and E|b|² = V′²/4V; the least
    possible, W₂², is (√V_1 − √V_0)².  Midpoint rule; differentiable in the path.
    """
    check.within("variance0", variance0, 0.0, 1e150)
    check.within("variance1", variance1, 0.0, 1e150)
    v0, v1, c = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1) for v in (variance0, variance1, covariance))
    t = (torch.arange(nodes, dtype=torch.float64, device=v1.device) + 0.5) / nodes
    path, latent = (path.ends, path.latent) if isinstance(path, Interpolant) else (path, None)

    def variance(t: Tensor) -> Tensor:
        a, m = path.a(t), path.m(t)
        return m**2 * v0 + a**2 * v1 + 2 * a * m * c + (latent(t) if latent else 0)

    V, rate = torch.func.jvp(variance, (t,), (torch.ones_like(t),))
    return (rate.square() / (4 * V)).mean(1).sum()

r"""Chapter 5, the score-difference flow: pulled to the data, pushed away from oneself.

Particles of density q move towards a target p along the difference of the two scores, both seen through
Gaussian noise of standard deviation σ,

    v_σ(x) = ∇log p_σ(x) − ∇log q_σ(x) = (D_p(x, σ) − D_q(x, σ)) / σ²,       D(y, σ) = E[x | x + σε = y],

because Tweedie's formula makes each score (D − x)/σ² and x cancels.  At σ = 0 this is the steepest descent of
KL(q ‖ p) per unit of speed, with dKL/dt = −E_q‖v‖², minus the Fisher divergence; at noisy points, its average
E_ε v_σ(x + σε) is the steepest descent of KL(q_σ ‖ p_σ), which is zero only where q = p.

Two forms: two clouds, whose D are softmax means (the one reduction), and two functions D, such as a trained
`Denoiser`.  (A third, the logit log p_σ/q_σ of the best classifier of p_σ against q_σ, is in the notebook.)

Steps are measured in mean shifts: Δx = step·(D_p − D_q) is a time step of step·σ².

Source: Weber 2023, The score-difference flow for implicit generative modeling (the flow, its proxies, kernel and
denoiser forms, particle and model optimisation, the sub-problem of GANs).  Derivations and settings are our own.
"""
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.base import check, draw
from lib.fit import Fit, Loss, fit
from lib.kernels import Cloud, gaussian_posterior
from lib.kernels.cloud import checked

Denoise = Callable[[Tensor, float | Tensor], Tensor]  # D(y, σ), (B, D) to (B, D)


def kernel_denoiser(cloud: Tensor | Cloud, *, log_w: Tensor | None = None) -> Denoise:
    """D(y, σ) = E[x | x + σε = y] of a cloud (N, D): its softmax mean.  The cloud is a constant to every gradient.

    log_w  (N,) log-weights; −inf leaves a point out, so a class is chosen by its weights.
    """
    log_w = log_w.detach().clone() if isinstance(log_w, Tensor) else log_w
    whole = checked("cloud", cloud.detach().clone() if isinstance(cloud, Tensor) else cloud, log_w)
    if whole.values is not None:
        check.refuse("cloud", "a cloud with values", "one without: a denoiser averages the points themselves")
    return lambda y, sigma: gaussian_posterior(y, whole, sigma).mean


def mean_shift(y: Tensor, target: Tensor | Cloud | Denoise, source: Tensor | Cloud | Denoise,
               sigma: float | Tensor) -> Tensor:
    """D_target(y, σ) − D_source(y, σ), shape (B, D): σ² times the score difference, bounded as σ → 0."""
    pull, push = (d(y, sigma) if callable(d) else gaussian_posterior(y, checked("cloud", d), sigma).mean
                  for d in (target, source))
    return pull - push


def score_difference(x: Tensor, target: Tensor | Denoise, source: Tensor | Denoise, sigma: float | Tensor) -> Tensor:
    """∇log p_σ(x) − ∇log q_σ(x), shape (B, D), at points x (B, D).

    target, source  clouds (N, D) and (M, D) standing for p and q, or functions D(y, σ): a `kernel_denoiser` with
                    weights, a trained `Denoiser`, a closed form.
    sigma           standard deviation of the noise, > 0: a number or (B,).

    The target pulls, the source pushes; the same array on both sides gives exactly 0.  Only for the Gaussian
    kernel is a mean shift a score.  Raises ValueError for bad shapes, an empty cloud or class, σ ≤ 0.
    """
    check.points("x", x)
    sigma = check.positive("sigma", sigma, shape=(len(x),), like=x)
    return mean_shift(x, target, source, sigma) / sigma.reshape(-1, 1) ** 2


def noise_levels(high: float, low: float, n: int, *, generator: torch.Generator | None = None) -> Tensor:
    """n noise levels (n,) falling geometrically from `high` to `low`; with a generator, log-uniform between them."""
    check.positive("low", low)
    check.within("high", check.finite("high", check.positive("high", high)), float(low), math.inf)
    check.count("n", n)
    u = torch.linspace(1, 0, n, dtype=torch.float64) if generator is None else torch.rand(
        n, generator=generator, dtype=torch.float64, device=generator.device)
    return low * (high / low) ** u


class Step(NamedTuple):
    """One step of the particles, as `watch` sees it."""

    index: int
    sigma: float
    x: Tensor  # (M, D) particles after the step
    shift: Tensor  # (M, D) D_target − D_particles

    @property
    def fisher(self) -> float:
        """Mean ‖v_σ‖²: the Fisher divergence of the proxies, so minus the rate of their KL, as the particles see it."""
        return float(self.shift.double().square().sum(1).mean()) / self.sigma**4


@torch.no_grad()
def transport_particles(x: Tensor, target: Tensor | Cloud | Denoise, sigmas: Iterable[float] | Tensor, *,
                        step: float | Callable[[float], float] = 1.0, noisy: bool = True, generator: torch.Generator,
                        batch: int | None = None, watch: Callable[[Step], object] | None = None) -> Tensor:
    """Move particles x (M, D) along the score-difference flow to `target`; returns them after the last step.

    For each σ of `sigmas`:  y = x + σε (y = x if not `noisy`),  x ← x + step·(D_target(y) − D_x(y)), where D_x
    belongs to all particles, clean and as they are before the step.

    target  cloud (N, D), or a function D(y, σ).
    sigmas  noise levels > 0, one for each step: `noise_levels` or your own.
    step    fraction of the mean shift, in (0, 1] for stability; or a function of σ (dt/σ² keeps the flow's time).
    batch   points of the target cloud drawn afresh for each step; None takes all.  Small batches bias D_target.
    watch   called with a `Step` after each step; a true answer ends the run (convergence).

    A single particle, not noisy, lands on D_target at step 1: denoising diffusion.  Particles that coincide stay
    together unless noisy.  Weber 2023, particle optimisation.
    """
    check.points("x", x)
    check.generator("generator", generator)
    if batch is not None and not isinstance(target, Tensor):
        check.refuse("batch", batch, "None where the target is a function or prepared")
    if not callable(target):
        target = checked("target", target, like=x) if batch is None else check.points(
            "target", target, dim=x.shape[1], like=x)
    for index, sigma in enumerate(_schedule(sigmas)):
        y = x + sigma * draw.normal(x, generator) if noisy else x
        seen = target if batch is None else Cloud(_draw(target, batch, generator)[0])
        shift = mean_shift(y, seen, Cloud(x), sigma)
        x = x + (step(sigma) if callable(step) else step) * shift
        if watch is not None and watch(Step(index, sigma, x, shift)):
            break
    return x


def _schedule(sigmas: Iterable[float] | Tensor) -> list[float]:
    levels = [float(s) for s in sigmas]
    bad = [s for s in levels if not 0 < s < math.inf]
    if bad or not levels:
        check.refuse("sigmas", f"{bad[0]:g} among them" if bad else "none", "at least one level, each finite and > 0")
    return levels


def _draw(x: Tensor, n: int, generator: torch.Generator, label: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    rows = torch.randint(len(x), (check.count("batch", n),), generator=generator, device=generator.device)
    return x[rows.to(x.device)], None if label is None else label[rows.to(label.device)]


def generate(model: nn.Module, n: int, latent: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
    """n samples model(0, z[, label]), z ~ N(0, I) of shape (n, latent): one network evaluation for each."""
    weight = next(model.parameters())
    z = torch.randn(n, latent, generator=generator, device=generator.device).to(weight)
    return model(0.0, z, label if label is None else label.to(weight.device))


def generator_loss(target: Tensor, *, latent: int, high: float, low: float, label: Tensor | None = None,
                   batch: int = 256, target_batch: int = 1024, step: float = 1.0, noisy: bool = True) -> Loss:
    """½‖model(0, z) − x′‖², x′ the model's own samples x moved once along the flow to `target` (N, D) and held fixed.

    Each call draws latents z (batch, latent), target_batch points and one σ, log-uniform between `low` and `high`;
    the gradient is −step·Jᵀ(D_target − D_x), the flow pulled back to the parameters.

    label  (N,) integer classes: then the model takes labels, and each class flows to its own points.
    noisy  evaluate at x + σε.  Without noise a sample in high dimension sees itself alone, and nothing pushes.
    """
    check.points("target", target)
    for name, value, least in (("latent", latent, 1), ("batch", batch, 1), ("target_batch", target_batch, batch)):
        check.count(name, value, low=least)
    noise_levels(high, low, 1)
    if label is not None and label.shape != target.shape[:1]:
        check.refuse("label", f"shape {tuple(label.shape)}", f"shape {tuple(target.shape[:1])}, one for each point")

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        points, classes = _draw(target, target_batch, generator, label)
        wanted = None if classes is None else classes[:batch]
        x = generate(model, batch, latent, generator, wanted)
        sigma = float(noise_levels(high, low, 1, generator=generator))
        with torch.no_grad():
            y = x + sigma * draw.normal(x, generator) if noisy else x
            moved = x + step * (mean_shift(y, points, x, sigma) if label is None else
                                class_shift(y, points, classes, x, wanted, sigma))
        return (x - moved).square().sum(1).mean() / 2

    return loss


def class_shift(y: Tensor, target: Tensor, target_label: Tensor, source: Tensor, source_label: Tensor,
                sigma: float) -> Tensor:
    """`mean_shift` within classes, shape (B, D): y[i], noised from source[i], sees only points of its own class."""
    check.points("target", target)
    check.alike("y", y, check.points("source", source, dim=target.shape[1], like=target), "source")
    for name, label, points in (("target_label", target_label, target), ("source_label", source_label, source)):
        if check.dense(name, label).shape != points.shape[:1]:
            check.refuse(name, f"shape {tuple(label.shape)}", f"shape {tuple(points.shape[:1])}, one for each point")
    shift = torch.empty_like(y)
    for c in source_label.unique().tolist():
        ours, theirs = source_label == c, target_label == c
        if not bool(theirs.any()):
            check.refuse("target_label", f"no point of class {c}", "every class of source_label")
        shift[ours] = mean_shift(y[ours], target[theirs], source[ours], sigma)
    return shift


def train_generator(model: nn.Module, target: Tensor, *, latent: int, high: float, low: float, steps: int,
                    generator: torch.Generator, lr: float = 1e-3, ema: float | None = 0.999,
                    name: str = "one-step generator", **options: Any) -> Fit:
    """A one-step generator model(0, z[, label]) trained on `target` (N, D): move its samples, then regress on them.

    Arguments and `options` (label, batch, target_batch, step, noisy) are those of `generator_loss`; steps, lr, ema
    and name those of `lib.fit.fit`.  Weber 2023, model optimisation.
    """
    loss = generator_loss(target, latent=latent, high=high, low=low, **options)
    return fit(model, loss, steps, generator=generator, lr=lr, ema=ema, name=name)


class Denoiser(nn.Module):
    """D(y, σ[, label]) ≈ E[x | x + σε = y] from a network f(t, x[, label]), for data of root mean square s.

    With r = √(s² + σ²), the point y/r lies on the trigonometric path at t = (2/π) atan(s/σ), 1 where σ = 0, and

        D = (s/r)² y + (σs/r) f(t, y/r),

    so f meets inputs and regression targets of unit size at every σ (Karras et al. 2022, Table 1).
    """

    def __init__(self, net: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.net, self.scale = net, float(check.positive("scale", scale))

    def forward(self, y: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        check.points("y", y)
        check.within("sigma", sigma, 0.0, torch.finfo(y.dtype).max)
        sigma, s = torch.as_tensor(sigma, dtype=y.dtype, device=y.device), self.scale
        r = (s**2 + sigma**2).sqrt().reshape(-1, 1)
        seen = self.net(2 / math.pi * torch.atan(s / sigma), y / r, label)
        return (s / r) ** 2 * y + sigma.reshape(-1, 1) * s / r * seen


def denoiser_loss(data: Tensor, *, high: float, low: float, label: Tensor | None = None, batch: int = 256) -> Loss:
    """(s² + σ²)/(σs)² ‖D(x + σε, σ) − x‖²/D over `data` (N, D), log σ uniform between `low` and `high`.

    On the data alone the minimiser is the kernel form; what a network adds is how it generalises from them.
    """
    check.points("data", data)
    noise_levels(high, low, 1)

    def loss(model: Denoiser, generator: torch.Generator) -> Tensor:
        x, classes = _draw(data, batch, generator, label)
        sigma = noise_levels(high, low, batch, generator=generator).to(x)
        error = model(x + sigma[:, None] * draw.normal(x, generator), sigma, classes) - x
        return (error.square().mean(1) * (model.scale**2 + sigma**2) / (sigma * model.scale) ** 2).mean()

    return loss

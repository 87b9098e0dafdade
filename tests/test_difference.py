"""lib.difference: the flow against densities from torch.distributions, closed forms, and its relatives' identities."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from draws import normal, rng
from scipy.integrate import solve_ivp
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from lib import affine, data, toys
from lib import difference as sd
from lib.kernels import prepare
from lib.metrics import mode_report
from lib.nets import MLP

F64 = torch.float64


def noised(cloud: Tensor, sigma: float, weights: Tensor | None = None) -> MixtureSameFamily:
    """The density of a cloud seen through noise, by code that shares nothing with the library."""
    weights = torch.ones(len(cloud), dtype=F64) if weights is None else weights
    return MixtureSameFamily(Categorical(weights), Independent(Normal(cloud, sigma), 1))


def gradient(f, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


def still(cloud: Tensor, sigmas, **options) -> Tensor:
    return sd.transport_particles(cloud, normal(30, cloud.shape[1], seed=9), sigmas, generator=rng(5), **options)


# --- the field --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("sigma", [0.3, 1.7])
def test_field_is_the_gradient_of_the_log_ratio_of_two_densities(dim, sigma):
    p, q, x = normal(40, dim, seed=1) + 1, 0.5 * normal(25, dim, seed=2), normal(12, dim, seed=3)
    ratio = lambda x: noised(p, sigma).log_prob(x) - noised(q, sigma).log_prob(x)
    h, v = 1e-4, sd.score_difference(x, p, q, sigma)
    for i, e in enumerate(torch.eye(dim, dtype=F64)):
        central = (8 * (ratio(x + h * e) - ratio(x - h * e)) - ratio(x + 2 * h * e) + ratio(x - 2 * h * e)) / (12 * h)
        torch.testing.assert_close(v[:, i], central, rtol=0, atol=1e-8)


def test_equal_clouds_give_exactly_zero_and_exchange_flips_the_sign():
    p, q, x = normal(30, 2, seed=1), normal(20, 2, seed=2), normal(9, 2, seed=3)
    assert bool((sd.score_difference(x, p, p, 0.4) == 0).all())
    assert torch.equal(sd.score_difference(x, p, q, 0.4), -sd.score_difference(x, q, p, 0.4))


def test_one_noise_level_for_each_query():
    p, q, x, sigma = normal(30, 2, seed=1), normal(20, 2, seed=2), normal(3, 2, seed=3), torch.tensor([0.2, 1.0, 3.0])
    together = sd.score_difference(x, p, q, sigma.double())
    for i in range(3):
        torch.testing.assert_close(together[i:i + 1], sd.score_difference(x[i:i + 1], p, q, float(sigma.double()[i])))


def test_translation_rotation_and_scale():
    p, q, x, sigma = normal(30, 3, seed=1), normal(20, 3, seed=2), normal(9, 3, seed=3), 0.7
    turn, shift, c = torch.linalg.qr(normal(3, 3, seed=4))[0], torch.tensor([3.0, -2.0, 5.0], dtype=F64), 2.5
    v = sd.score_difference(x, p, q, sigma)
    move = lambda z: z @ turn.T + shift
    torch.testing.assert_close(sd.score_difference(move(x), move(p), move(q), sigma), v @ turn.T, rtol=0, atol=1e-11)
    torch.testing.assert_close(sd.mean_shift(c * x, c * p, c * q, c * sigma), c * sigma**2 * v, rtol=0, atol=1e-12)


def test_limits_of_large_and_small_noise():
    p, q, x = normal(30, 2, seed=1) + 2, normal(20, 2, seed=2), normal(9, 2, seed=3)
    far = sd.mean_shift(x, p, q, 1e6)
    torch.testing.assert_close(far, (p.mean(0) - q.mean(0)).expand_as(x), rtol=0, atol=1e-8)
    near = sd.mean_shift(x, p, q, 1e-4)
    nearest = p[torch.cdist(x, p).argmin(1)] - q[torch.cdist(x, q).argmin(1)]
    torch.testing.assert_close(near, nearest, rtol=0, atol=1e-9)
    assert bool(sd.score_difference(x.float(), p.float(), q.float(), 1e-4).isfinite().all())


def test_log_weights_choose_a_class_and_weigh_points():
    p, q, x, label = normal(40, 2, seed=1), normal(20, 2, seed=2), normal(9, 2, seed=3), torch.arange(40) % 3
    log_w = torch.where(label == 1, 0.0, -math.inf).double()
    chosen = sd.score_difference(x, sd.kernel_denoiser(p, log_w=log_w), q, 0.5)
    torch.testing.assert_close(chosen, sd.score_difference(x, p[label == 1], q, 0.5))
    w = torch.rand(40, generator=rng(4), dtype=F64)
    v = sd.score_difference(x, sd.kernel_denoiser(p, log_w=w.log()), q, 0.5)
    torch.testing.assert_close(v, gradient(noised(p, 0.5, w).log_prob, x) - gradient(noised(q, 0.5).log_prob, x))


def test_functions_stand_for_clouds():
    """Gaussians N(m, S): D(y, σ) = m + S(y − m)/(S + σ²); the field is the difference of two linear scores."""
    x, sigma = normal(9, 2, seed=3), 0.6
    gaussian = lambda m, S: lambda y, s: m + S / (S + s**2).reshape(-1, 1) * (y - m)
    v = sd.score_difference(x, gaussian(1.0, 2.0), gaussian(-0.5, 0.3), sigma)
    torch.testing.assert_close(v, -(x - 1) / (2 + sigma**2) + (x + 0.5) / (0.3 + sigma**2))


def linear_field(m: Tensor, S: Tensor, sigma: float):
    """Denoiser of N(m, S) in closed form."""
    gain = S @ torch.linalg.inv(S + sigma**2 * torch.eye(len(S), dtype=F64))
    return lambda y, s: m + (y - m) @ gain.T


def test_divergence_falls_at_the_rate_of_the_fisher_divergence():
    """dKL/dt = −E‖v‖² on 3-D Gaussians: KL by torch, v = Ax + b by the library, Gaussian pushed through I + εv."""
    d, sigma, eye = 3, 0.5, torch.eye(3, dtype=F64)
    (mp, mq), (Ap, Aq) = (normal(2, d, seed=1)), (normal(2, d, d, seed=2))
    Sp, Sq = Ap @ Ap.T + eye, Aq @ Aq.T + 0.5 * eye
    field = lambda x: sd.score_difference(x, linear_field(mp, Sp, sigma), linear_field(mq, Sq, sigma), sigma)
    b = field(torch.zeros(1, d, dtype=F64))[0]
    A = (field(eye) - b).T
    noisy_p = MultivariateNormal(mp, Sp + sigma**2 * eye)
    cov = Sq + sigma**2 * eye

    def kl(epsilon):
        push = eye + epsilon * A
        return kl_divergence(MultivariateNormal(mq + epsilon * (A @ mq + b), push @ cov @ push.T), noisy_p)

    epsilon = torch.zeros((), dtype=F64, requires_grad=True)
    (rate,) = torch.autograd.grad(kl(epsilon), epsilon)
    fisher = (A @ cov @ A.T).trace() + (A @ mq + b).square().sum()
    assert abs(float(rate + fisher)) < 1e-6


def smoothed(field, x: Tensor, sigma: float, nodes: int = 60) -> Tensor:
    """E_ε field(x + σε) in one dimension by Gauss–Hermite quadrature."""
    z, w = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(nodes))
    at = (x + sigma * z).reshape(-1, 1)
    return (field(at).reshape(len(x), nodes) @ (w / w.sum()))[:, None]


def test_noisy_evaluation_is_the_gradient_flow_of_the_proxies_divergence():
    """F = KL(q_σ ‖ p_σ) of particles: each particle's −M ∂F/∂x_i is E_ε v_σ(x_i + σε); the clean field's is not."""
    p, q, sigma = 1 + 0.8 * normal(6, 1, seed=1), normal(4, 1, seed=2), 0.7
    grid = torch.linspace(-9, 9, 6001, dtype=F64)[:, None]

    def divergence(q):
        log_q, log_p = noised(q, sigma).log_prob(grid), noised(p, sigma).log_prob(grid)
        return torch.trapezoid(log_q.exp() * (log_q - log_p), grid[:, 0])

    field = lambda x: sd.score_difference(x, p, q, sigma)
    descent = -len(q) * gradient(divergence, q)
    torch.testing.assert_close(smoothed(field, q, sigma), descent, rtol=0, atol=1e-5)
    assert float((field(q) - descent).abs().max()) > 1e-2


# --- relatives --------------------------------------------------------------------------------------------


def test_stein_variational_direction_is_the_field_smoothed_by_a_kernel():
    p, q, sigma, at = normal(5, 1, seed=1) + 1, normal(4, 1, seed=2), 0.8, torch.linspace(-2, 2, 7, dtype=F64)[:, None]
    y = torch.linspace(-12, 12, 4001, dtype=F64)[:, None]
    density = noised(q, sigma).log_prob(y).exp()
    kernel = torch.exp(-(at - y.T).square() / (2 * 0.6**2))  # (7, 4001)
    slope = kernel * (at - y.T) / 0.6**2  # ∂k/∂y
    stein = torch.trapezoid((kernel * gradient(noised(p, sigma).log_prob, y).T + slope) * density, y[:, 0])
    ours = torch.trapezoid(kernel * sd.score_difference(y, p, q, sigma).T * density, y[:, 0])
    torch.testing.assert_close(stein, ours, rtol=0, atol=1e-10)


def test_mmd_velocity_in_terms_of_the_field():
    """∇p − ∇q = q v + (p − q) ∇log p, all noised."""
    p, q, sigma, x = normal(9, 2, seed=1) + 1, normal(7, 2, seed=2), 0.8, normal(20, 2, seed=3)
    fp, fq = (noised(c, sigma) for c in (p, q))
    left = gradient(lambda x: fp.log_prob(x).exp() - fq.log_prob(x).exp(), x)
    a, b = (f.log_prob(x).exp()[:, None] for f in (fp, fq))
    right = b * sd.score_difference(x, p, q, sigma) + (a - b) * gradient(fp.log_prob, x)
    torch.testing.assert_close(left, right, rtol=0, atol=1e-10)


class Denoised(nn.Module):
    """A linear map standing in for a network f(t, x)."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, out).double()
        nn.init.constant_(self.linear.weight, 0.1)
        nn.init.zeros_(self.linear.bias)

    def forward(self, t, x, label=None):
        return self.linear(x)


# --- diffusion --------------------------------------------------------------------------------------------


def test_a_single_particle_is_a_denoising_step():
    p, x, sigma = normal(30, 3, seed=1), normal(1, 3, seed=2), 0.9
    y = normal(7, 3, seed=3)
    D = y + sigma**2 * gradient(noised(p, sigma).log_prob, y)  # Tweedie
    torch.testing.assert_close(sd.score_difference(y, p, x, sigma), (D - x) / sigma**2, rtol=0, atol=1e-12)
    landed = sd.transport_particles(x, p, [sigma], noisy=False, generator=rng())
    torch.testing.assert_close(landed, x + sigma**2 * gradient(noised(p, sigma).log_prob, x), rtol=0, atol=1e-12)


def test_kept_noise_makes_the_single_particle_flow_a_ddim_step():
    """x = D_p(y), y′ = x + σ′(y − x)/σ is Euler's step of dy/dσ = −σ∇log p_σ from σ to σ′."""
    p, y, sigma, later = normal(30, 3, seed=1), normal(1, 3, seed=3), 0.9, 0.7
    x = y + sigma**2 * sd.score_difference(y, p, y, sigma)  # source: the point itself
    euler = y + (later - sigma) * (-sigma * gradient(noised(p, sigma).log_prob, y))
    torch.testing.assert_close(x + later * (y - x) / sigma, euler, rtol=0, atol=1e-12)


# --- particles --------------------------------------------------------------------------------------------


def test_one_step_is_pull_minus_push():
    x, p, sigma = normal(5, 2, seed=1), normal(8, 2, seed=2) + 1, 0.6
    moved = sd.transport_particles(x, p, [sigma], step=0.3, noisy=False, generator=rng())
    scores = gradient(noised(p, sigma).log_prob, x) - gradient(noised(x, sigma).log_prob, x)
    torch.testing.assert_close(moved - x, 0.3 * sigma**2 * scores, rtol=0, atol=1e-12)


def test_noise_enters_where_the_flow_is_evaluated_and_nowhere_else():
    """Averaged over many draws, a noisy step is the smoothed field; five standard errors."""
    x, p, sigma = normal(3, 1, seed=1), normal(6, 1, seed=2) + 1, 0.6
    g = rng()
    draws = torch.stack([sd.transport_particles(x, p, [sigma], generator=g) - x for _ in range(800)])
    field = lambda at: sd.score_difference(at, p, x, sigma)
    error = draws.mean(0) - sigma**2 * smoothed(field, x, sigma)
    assert float(error.abs().max()) < 5 * float(draws.std(0).max()) / math.sqrt(800)
    assert float(draws.std(0).min()) > 0.01


@pytest.mark.parametrize("sigma", [0.05, 1.0])
def test_gaussians_follow_their_closed_form(sigma):
    """ṁ = −m/(S + σ²), Ċ = 2C(1/(C + σ²) − 1/(S + σ²)): 2000 particles, exact denoisers, 1 %."""
    S, m, C, dt = 0.8, 2.0, 2.5, 1e-3
    x = normal(2000, 1, seed=1)
    x = m + math.sqrt(C) * (x - x.mean()) / x.std(unbiased=False)
    D = lambda m, S: lambda y, s: m + S / (S + s**2).reshape(-1, 1) * (y - m)
    for _ in range(1000):
        x = x + dt * sd.score_difference(x, D(0.0, S), D(x.mean(), x.var(unbiased=False)), sigma)
    truth = solve_ivp(lambda t, u: (-u[0] / (S + sigma**2), 2 * u[1] * (1 / (u[1] + sigma**2) - 1 / (S + sigma**2))),
                      (0, 1), (m, C), rtol=1e-10).y[:, -1]
    assert float(x.mean()) == pytest.approx(truth[0], rel=0.01)
    assert float(x.var(unbiased=False)) == pytest.approx(truth[1], rel=0.01)
    if sigma == 0.05:
        assert truth[1] == pytest.approx(S + (C - S) * math.exp(-2 / S), rel=0.01)


def test_particles_reach_a_gaussian_whatever_the_noise_of_the_proxies():
    """The proxies' flow rests where the originals agree: variance 0.25 to 10 %, four standard errors at 1000."""
    p, x = 3 + 0.5 * normal(1000, 1, seed=1), normal(1000, 1, seed=2)
    moved = sd.transport_particles(x, p, [0.5] * 60, noisy=False, generator=rng())
    assert float(moved.mean()) == pytest.approx(float(p.mean()), abs=0.02)
    assert float(moved.var()) == pytest.approx(float(p.var()), rel=0.1)


GRID = toys.gaussian_grid()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("start", ["noise", "corner"])
def test_all_twenty_five_modes(seed, start):
    g = rng(seed)
    x = torch.randn(500, 2, generator=g)
    x = x if start == "noise" else 4 + 0.05 * x
    moved = sd.transport_particles(x, GRID.sample(2000, g), sd.noise_levels(4, 0.05, 30), generator=g)
    report = mode_report(moved, GRID.centres.float(), GRID.std)
    assert report.found == 25 and report.high_quality >= 0.97 and report.kl <= 0.05


def test_without_the_push_particles_collapse_onto_few_modes():
    g = rng()
    target, x = GRID.sample(2000, g), torch.randn(500, 2, generator=g)
    for sigma in sd.noise_levels(4, 0.05, 30).tolist():
        x = sd.kernel_denoiser(target)(x, sigma)
    assert mode_report(x, GRID.centres.float(), GRID.std).found <= 5


def test_digits_particles_copy_the_training_set():
    train = data.digits().train.x
    train = affine.normaliser(train)(train)
    g = rng()
    x = sd.transport_particles(6 * torch.randn(300, 64, generator=g), train, sd.noise_levels(6, 0.3, 60), generator=g)
    nearest = torch.cdist(x.double(), train.double()).min(1)
    assert float(nearest.values.median()) < 1e-5  # single precision; digits lie about 4 apart
    assert float(nearest.values.max()) < 0.3  # two particles at one image keep their small offset: D_x is their mean
    assert len(nearest.indices.unique()) > 200


def test_coinciding_particles_part_only_with_noise():
    x = torch.zeros(20, 2, dtype=F64)
    together, apart = (still(x, [1.0] * 5, noisy=noisy) for noisy in (False, True))
    assert bool((together == together[0]).all())
    assert len(apart.unique(dim=0)) == 20


def test_one_particle_and_one_target():
    x = sd.transport_particles(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), [0.5], generator=rng())
    torch.testing.assert_close(x, torch.tensor([[3.0, 4.0]]))


def test_input_particles_are_left_alone_and_seeds_decide():
    x = normal(6, 2, seed=1)
    copy = x.clone()
    assert torch.equal(still(x, [1.0, 0.5]), still(x, [1.0, 0.5]))
    assert torch.equal(x, copy)


def test_watch_sees_every_step_and_may_stop():
    seen = []
    x = normal(6, 2, seed=1)
    last = still(x, [1.0, 0.5, 0.25], watch=lambda step: seen.append(step) or step.index == 1)
    assert [s.index for s in seen] == [0, 1] and [s.sigma for s in seen] == [1.0, 0.5]
    assert torch.equal(seen[-1].x, last)
    torch.testing.assert_close(seen[0].x, x + seen[0].shift)


def test_monitor_is_the_mean_squared_field():
    x, p, seen = normal(6, 2, seed=1), normal(30, 2, seed=9), []
    still(x, [0.7], noisy=False, watch=seen.append)
    v = sd.score_difference(x, p, x, 0.7)
    assert seen[0].fisher == pytest.approx(float(v.square().sum(1).mean()))


def test_step_may_depend_on_the_noise():
    """dt/σ² keeps the time of the flow: the particles move by dt times the field."""
    x, p = normal(6, 2, seed=1), normal(30, 2, seed=9)
    moved = still(x, [0.7], noisy=False, step=lambda s: 0.01 / s**2)
    torch.testing.assert_close(moved - x, 0.01 * sd.score_difference(x, p, x, 0.7))


def test_minibatches_of_the_target():
    """One point a step, no push from afar: every particle of a step is pulled to the same target point."""
    x, p = torch.zeros(4, 1, dtype=F64), torch.tensor([[100.0], [200.0]], dtype=F64)
    ends = {float(sd.transport_particles(x, p, [1.0], noisy=False, batch=1, generator=rng(s))[0]) for s in range(20)}
    assert ends == {100.0, 200.0}


def test_noise_levels():
    torch.testing.assert_close(sd.noise_levels(4, 0.25, 5), torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25], dtype=F64))
    drawn = sd.noise_levels(4, 0.25, 4000, generator=rng())
    assert 0.25 <= float(drawn.min()) < 0.26 and 3.9 < float(drawn.max()) <= 4
    assert float(drawn.log().mean()) == pytest.approx(0, abs=4 * math.log(16) / math.sqrt(12 * 4000))


# --- generators -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1.0, 0.25])
def test_regression_is_the_flow_pulled_back_to_the_parameters(step, monkeypatch):
    """For G(z) = Wz + b and a constant shift c the gradient in b is −step·c, in W −step·c ⊗ mean z: no more terms."""
    c, seen = torch.tensor([0.3, -0.7], dtype=F64), []
    monkeypatch.setattr(sd, "mean_shift", lambda y, p, x, s: c.expand_as(y) + 0 * x)
    model = Denoised(2, 2)
    model.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    sd.generator_loss(normal(50, 2), latent=2, high=1.0, low=0.5, step=step)(model, rng(1)).backward()
    torch.testing.assert_close(model.linear.bias.grad, -step * c)
    torch.testing.assert_close(model.linear.weight.grad, -step * torch.outer(c, seen[0].mean(0)))


def test_generator_flows_from_its_own_batch_and_fresh_noise(monkeypatch):
    """The source is the batch itself, clean; the field is evaluated at the batch plus σ times unit noise."""
    calls = []
    monkeypatch.setattr(sd, "mean_shift", lambda y, p, x, s: calls.append((y, p, x, s)) or torch.zeros_like(y))
    target = normal(50, 2) + 7
    loss = sd.generator_loss(target, latent=2, high=2.0, low=0.1, batch=4000, target_batch=5000)
    for seed in range(3):
        loss(Denoised(2, 2), rng(seed))
    for y, p, x, s in calls:
        assert y.shape == x.shape == (4000, 2) and p.shape == (5000, 2) and 0.1 <= s <= 2
        assert float((y - x).detach().std()) == pytest.approx(s, rel=0.05)  # 8,000 draws: standard error 0.8 %
        assert float(p.mean()) > 5
    assert len({s for *_, s in calls}) == 3
    calls.clear()
    sd.generator_loss(target, latent=2, high=2.0, low=0.1, noisy=False)(Denoised(2, 2), rng())
    assert torch.equal(calls[0][0], calls[0][2])


def test_generator_finds_every_mode():
    toy, g = toys.eight_gaussians(), rng()
    net = MLP(2, generator=g, width=64, depth=2)
    fitted = sd.train_generator(net, toy.sample(4000, g), latent=2, high=3.0, low=0.3, steps=500, lr=3e-3,
                                batch=128, target_batch=512, generator=g)
    x = sd.generate(fitted.model, 2000, 2, g)
    report = mode_report(x, toy.centres.float(), toy.std)
    assert report.found == 8 and report.kl < 0.1 and report.high_quality > 0.6
    assert fitted.history["loss"].shape == (500,)


def test_class_conditional_generator_sends_each_class_to_its_own_place():
    g = rng()
    label = torch.arange(600) % 3
    target = 4.0 * label[:, None] + 0.3 * torch.randn(600, 2, generator=g)
    net = MLP(2, generator=g, width=32, depth=2, classes=3)
    model = sd.train_generator(net, target, label=label, latent=2, high=3.0, low=0.5, steps=300, lr=5e-3,
                               batch=96, target_batch=192, generator=g).model
    for c in range(3):
        x = sd.generate(model, 500, 2, g, torch.full((500,), c)).detach()
        assert float((x.mean(0) - 4 * c).abs().max()) < 0.3
        assert 0.1 < float(x.std(0).mean()) < 0.6


def test_class_shift_is_the_field_of_each_class_alone():
    p, x, y = normal(40, 2, seed=1), normal(12, 2, seed=2), normal(12, 2, seed=3)
    lp, lx = torch.arange(40) % 3, torch.arange(12) % 3
    shift = sd.class_shift(y, p, lp, x, lx, 0.6)
    for c in range(3):
        scores = (gradient(noised(p[lp == c], 0.6).log_prob, y[lx == c])
                  - gradient(noised(x[lx == c], 0.6).log_prob, y[lx == c]))
        torch.testing.assert_close(shift[lx == c], 0.36 * scores, rtol=0, atol=1e-12)


# --- learned denoisers ------------------------------------------------------------------------------------


def test_denoiser_of_a_silent_network_is_exact_for_a_gaussian():
    """N(0, s² I): the posterior mean is s²y/(s² + σ²), all of it in the skip; the network need add nothing."""
    model = sd.Denoiser(MLP(2, generator=rng(), zero=True).double(), scale=1.5)
    y = normal(6, 2)
    torch.testing.assert_close(model(y, 0.7), 2.25 / (2.25 + 0.49) * y)


def test_denoiser_gives_its_network_unit_inputs_and_targets_at_every_noise():
    seen = []

    class Spy(nn.Module):
        def forward(self, t, x, label=None):
            seen.append((t, x))
            return torch.ones_like(x)

    scale, x, noise = 2.0, 2 * normal(20_000, 1, seed=1), normal(20_000, 1, seed=2)
    for sigma in (0.01, 1.0, 100.0):
        y = x + sigma * noise
        model = sd.Denoiser(Spy(), scale=scale)
        out = model(y, sigma)
        t, z = seen[-1]
        assert float(z.std()) == pytest.approx(1, rel=0.03)
        skip = out - (out - scale**2 / (scale**2 + sigma**2) * y)  # what remains when the network is silent
        target = (x - skip) / (out - skip)  # the network's output is 1, so out − skip is its coefficient
        assert float(target.std()) == pytest.approx(1, rel=0.03)
        assert float(t) == pytest.approx(math.atan2(scale, sigma) * 2 / math.pi)
    ts = [float(t) for t, _ in seen]
    assert ts == sorted(ts, reverse=True) and ts[-1] > 0 and ts[0] < 1


def test_denoiser_learns_the_posterior_mean():
    """Two points ±1 in one dimension: D = tanh(y/σ²)."""
    g = rng()
    cloud = torch.tensor([[-1.0], [1.0]])
    net = sd.Denoiser(MLP(1, generator=g, width=64, depth=2))
    net = sd.fit(net, sd.denoiser_loss(cloud, high=3.0, low=0.3, batch=512), 600, lr=5e-3, generator=g).model
    y = torch.linspace(-2, 2, 41)[:, None]
    for sigma in (0.5, 1.0, 2.0):
        assert float((net(y, sigma) - torch.tanh(y / sigma**2)).square().mean().sqrt()) < 0.08
    sigma = torch.full((41,), 0.5)
    torch.testing.assert_close(net(y, sigma), net(y, 0.5))


def test_denoiser_loss_weighs_every_noise_alike():
    """A silent network's loss is the posterior variance of a Gaussian in units of its own: 1 whatever σ and s."""
    for scale, level in ((0.5, 0.1), (2.0, 5.0)):
        cloud = scale * normal(50_000, 2, seed=1)
        model = sd.Denoiser(MLP(2, generator=rng(), zero=True).double(), scale=scale)
        loss = sd.denoiser_loss(cloud, high=level, low=level, batch=20_000)(model, rng())
        assert float(loss.detach()) == pytest.approx(1, abs=0.03)  # 40,000 draws: standard error 0.007


def test_denoiser_moves_particles():
    D = lambda y, s: torch.full_like(y, 5.0)
    x = sd.transport_particles(normal(6, 2), D, [0.5] * 30, step=0.5, generator=rng())
    assert float((x - 5).abs().mean()) < 1.0


# --- the door ---------------------------------------------------------------------------------------------

X, P = torch.zeros(3, 2), torch.ones(4, 2)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: sd.score_difference(X, P, X, torch.ones(2)), r"^sigma: got"),
    (lambda: sd.score_difference(X, torch.ones(4, 3), X, 1.0), r"^y: got 3 columns"),
    (lambda: sd.score_difference(X, torch.ones(0, 2), X, 1.0), r"^cloud: got shape \(0, 2\)"),
    (lambda: sd.kernel_denoiser(P, log_w=torch.full((4,), -math.inf)), "^log_w: got all −inf"),
    (lambda: sd.transport_particles(X, P, [1.0, -0.5], generator=rng()), "^sigmas: got -0.5 among them"),
    (lambda: sd.transport_particles(X, P, [1.0, 0.0], generator=rng()), "^sigmas: got 0 among them"),
    (lambda: sd.transport_particles(X, P, [math.nan], generator=rng()), "^sigmas: got nan among them"),
    (lambda: sd.transport_particles(X, P, [], generator=rng()), "^sigmas: got none"),
    (lambda: sd.transport_particles(X, P, [1.0], batch=0, generator=rng()), "^batch: got 0"),
    (lambda: sd.transport_particles(X, lambda y, s: y, [1.0], batch=2, generator=rng()), "^batch: got 2"),
    (lambda: sd.noise_levels(0.1, 0.2, 3), "^high: got 0.1"),
    (lambda: sd.generator_loss(P, latent=2, high=1.0, low=0.1, batch=8, target_batch=4), "^target_batch: got 4"),
    (lambda: sd.generator_loss(P, latent=2, high=0.1, low=1.0), "^high: got"),
    (lambda: sd.generator_loss(P, latent=2, high=1.0, low=0.1, label=torch.zeros(3)), "^label: got"),
    (lambda: sd.class_shift(X, P, torch.zeros(4), X, torch.ones(3), 1.0), "^target_label: got no point of class 1"),
])
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_denoiser_keeps_the_cloud_it_was_made_of(generator):
    x, y = (torch.randn(n, 2, generator=generator) for n in (4, 30))
    log_w = torch.zeros(30, requires_grad=True)
    before = y.clone()
    denoise = sd.kernel_denoiser(y, log_w=log_w)
    denoise(x, 0.5)
    y += 3
    for sigma in (0.5, 1e-3):  # one in each precision
        torch.testing.assert_close(denoise(x, sigma), sd.kernel_denoiser(before)(x, sigma))
    assert not denoise(x, 0.5).requires_grad
    with pytest.raises(ValueError, match=r"^cloud: got a cloud with values; need one without"):
        sd.kernel_denoiser(prepare(y, values=10 * y))

"""Operator-informed scores and kernel smoothing against quadrature, exact Gaussians, autograd and Monte Carlo.

The reference never uses the library's tables: eigenfunctions are differentiated by autograd and averages over noise
are Gauss–Hermite sums over `r x + s z`, exact for the polynomials and cosines at hand.
"""
from __future__ import annotations

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import scipy.linalg
import torch
from draws import normal, rng
from torch import Tensor
from torch.distributions import MultivariateNormal

from lib import affine, fit, markov, nets, posterior, solve
from lib.markov import (
    OrnsteinUhlenbeck,
    ReflectedBrownian,
    ScoreNet,
    fit_oism,
    kernel_score,
    oism,
    riemannian_kernel_score,
)
from lib.markov.process import house_path, house_time, into_box
from lib.markov.smoothing import gaussian_mixture, local_covariances, noised_gaussians
from lib.path import cond_ot

pytestmark = pytest.mark.usefixtures("float64")
STANDARD_ERRORS = 4.5
OU, BOX = OrnsteinUhlenbeck(1), ReflectedBrownian(1)


def hermite(n: int, d: int = 1) -> tuple[Tensor, Tensor]:
    """Nodes (n^d, d) and weights of the standard normal law."""
    z, w = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(n))
    w = w / w.sum()
    nodes = torch.cartesian_prod(*[z] * d).reshape(-1, d)
    return nodes, torch.cartesian_prod(*[w] * d).reshape(-1, d).prod(1)


def correlated(n: int, d: int, seed: int = 1) -> Tensor:
    """Skewed, correlated points of about unit scale."""
    x = normal(n, d, seed=seed)
    return (x + 0.4 * (x**2 - 1)) @ (torch.eye(d) + 0.3 * normal(d, d, seed=seed + 1)) * 0.8 + 0.2


def preconditioner(d: int = 2) -> Tensor:
    a = normal(d, d, seed=5)
    return a @ a.T / d + 0.5 * torch.eye(d)


def in_box(n: int, d: int, seed: int = 2) -> Tensor:
    return math.pi * torch.rand(n, d, generator=rng(seed)) ** 1.5


def exponential(C: Tensor) -> Tensor:
    """scipy's, because torch.matrix_exp is only good to 1e-10."""
    return torch.from_numpy(scipy.linalg.expm(C.numpy()))


def noised(process, x: Tensor, tau: float, nodes: int = 24) -> tuple[Tensor, Tensor]:
    """Points and weights that average over X_τ from equally likely x; unfolded for the box, where cosines fold."""
    d = x.shape[1]
    if isinstance(process, OrnsteinUhlenbeck):
        z, w = hermite(nodes, d)
        r = exponential(-tau * (torch.eye(d) if process.C is None else process.C))
        z, x = z @ torch.linalg.cholesky(torch.eye(d) - r @ r).T, x @ r
    else:  # equal steps: exact to rounding for exp(ikz), |k| up to 10, 6, 4
        line = {1: torch.arange(-28, 29) * 0.3, 2: torch.arange(-18, 19) * 0.45, 3: torch.arange(-14, 15) * 0.5}[d]
        z = torch.cartesian_prod(*[line] * d).reshape(-1, d)
        w = (-z.square().sum(1) / 2).softmax(0)
        z = math.sqrt(2 * tau) * z
    return (x[:, None] + z).reshape(-1, x.shape[1]), (w / len(x)).repeat(len(x))


def derivatives(process, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (B, M, d) and Hessians (B, M, d, d) of the eigenfunctions, by autograd."""
    one = lambda y: process.eigenfunctions(y[None], index)[0]
    return torch.func.vmap(torch.func.jacrev(one))(x), torch.func.vmap(torch.func.hessian(one))(x)


def multi_index(model: markov.OISM) -> Tensor:
    """(GM, d) multi-indices in the order of `gram`."""
    d, blocks = model.process.dim, len(model.rates)
    if blocks == 1:
        return model.index
    return torch.cat([torch.nn.functional.pad(model.index, (j, d - 1 - j)) for j in range(blocks)])


class Bimodal:
    """A one-dimensional mixture of two Gaussians, noised by OU: everything known."""

    means, stds, shares = (torch.tensor(v, dtype=torch.float64) for v in ([-1.1, 0.6], [0.3, 0.5], [0.4, 0.6]))

    def nodes(self) -> tuple[Tensor, Tensor]:
        """Weighted points with the mixture's moments (exact to degree 119)."""
        z, w = hermite(60)
        return (self.means[:, None] + self.stds[:, None] * z[:, 0]).reshape(-1, 1), torch.outer(self.shares, w).ravel()

    def log_p(self, tau: float, x: Tensor) -> Tensor:
        r, std = math.exp(-tau), (math.exp(-2 * tau) * self.stds**2 + 1 - math.exp(-2 * tau)).sqrt()
        return (torch.distributions.Normal(r * self.means, std).log_prob(x) + self.shares.log()).logsumexp(1)

    def score(self, tau: float, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(self.log_p(tau, x).sum(), x)[0]

    def grid(self, tau: float) -> tuple[Tensor, Tensor]:
        """Points and weights p_τ(x) dx."""
        x = torch.linspace(-12, 12, 24001)[:, None]
        return x, self.log_p(tau, x).exp() * 1e-3

    def error(self, model: markov.OISM, tau: float) -> float:
        x, w = self.grid(tau)
        return float((w[:, None] * (model.score(tau, x) - self.score(tau, x)).square()).sum())

    def energy(self, tau: float) -> float:
        x, w = self.grid(tau)
        return float((w[:, None] * self.score(tau, x).square()).sum())


MIXTURE = Bimodal()


def exact_fit(order: int, **options) -> markov.OISM:
    x, w = MIXTURE.nodes()
    return fit_oism(x, OU, order, log_w=w.log(), tails=math.inf, **options)


# --- the processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.05, 0.7])
def test_hermite_polynomials_are_eigenfunctions(tau):
    for process, index in ((OU, torch.arange(13)[:, None]),
                           (OrnsteinUhlenbeck(2, preconditioner()), torch.cartesian_prod(*[torch.arange(6)] * 2))):
        x = normal(5, process.dim)
        average = torch.stack([w @ process.eigenfunctions(y, index)
                               for y, w in (noised(process, row[None], tau) for row in x)])
        true = (process.eigenvalues(index) * tau).exp() * process.eigenfunctions(x, index)
        assert float((average - true).abs().max()) < 1e-12


def test_hermite_polynomials_are_orthonormal_and_start_as_they_should():
    z, w = hermite(40)
    values = OU.eigenfunctions(z, torch.arange(13)[:, None])
    assert torch.allclose(values.T @ (w[:, None] * values), torch.eye(13), atol=1e-11)
    assert torch.allclose(values[:, 3:4], (z**3 - 3 * z) / math.sqrt(6))
    assert OU.eigenvalues(torch.tensor([[0], [1], [5]])).tolist() == [0, -1, -5]


def test_eigenvalues_add_the_rates_of_the_preconditioner():
    process = OrnsteinUhlenbeck(2, torch.diag(torch.tensor([3.0, 0.5])))
    assert torch.allclose(process.eigenvalues(torch.tensor([[2, 1], [1, 2]])).sort().values,
                          torch.tensor([-6.5, -4.0]))
    assert ReflectedBrownian(2).eigenvalues(torch.tensor([[2, 1], [0, 3]])).tolist() == [-5, -9]


@pytest.mark.parametrize("tau", [0.02, 0.5])
def test_cosines_are_eigenfunctions_of_the_folded_walk(tau):
    y = (torch.arange(4000) + 0.5)[:, None] * math.pi / 4000  # midpoints: spectrally exact for smooth even functions
    x = in_box(6, 1)
    p = BOX.transition(tau, x[:, None], y).exp() * math.pi / 4000
    index = torch.arange(8)[:, None]
    assert torch.allclose(p.sum(1), torch.ones(6), atol=1e-10)
    assert torch.allclose(p @ BOX.eigenfunctions(y, index),
                          (BOX.eigenvalues(index) * tau).exp() * BOX.eigenfunctions(x, index), atol=1e-10)


def test_transition_of_ou_is_the_gaussian_it_should_be():
    C, x, y, tau = preconditioner(3), normal(4, 3), normal(4, 3, seed=1), 0.3
    r = torch.matrix_exp(-C * tau)
    law = MultivariateNormal(x @ r, torch.eye(3) - r @ r)
    assert torch.allclose(OrnsteinUhlenbeck(3, C).transition(tau, x, y), law.log_prob(y))


@pytest.mark.parametrize(("process", "orders"), [(OU, 200), (BOX, 60)])
def test_kernel_is_its_eigenfunction_series(process, orders):
    """Mehler's formula and the heat kernel, against the sum over eigenfunctions of unit norm."""
    tau, index = 0.3, torch.arange(orders)[:, None]
    x, y = (in_box(5, 1, seed) for seed in (1, 2))
    left, right = process.eigenfunctions(x, index), process.eigenfunctions(y, index)
    norm = 1.0 if process is OU else torch.where(index[:, 0] > 0, 0.5, 1.0)
    series = (left * (process.eigenvalues(index) * tau).exp() / norm) @ right.T
    assert torch.allclose(process.kernel(tau, x[:, None], y), series, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("process", [OrnsteinUhlenbeck(2, preconditioner()), ReflectedBrownian(2)])
def test_noise_draws_from_the_transition(process, generator):
    """Means of eigenfunctions over 4·10⁵ draws, within 4.5 standard errors of e^{λτ}φ."""
    x = in_box(2, 2).repeat_interleave(200_000, 0)
    tau = torch.full((len(x),), 0.15)
    tau[::2] = 0.6
    values = process.noise(x, tau, generator)
    index = torch.cartesian_prod(torch.arange(4), torch.arange(4))[1:]
    seen, start = process.eigenfunctions(values, index), process.eigenfunctions(x, index)
    for each in (0.15, 0.6):
        gap = (seen - (process.eigenvalues(index) * each).exp() * start)[tau == each]
        z = gap.mean(0) / (gap.std(0) / math.sqrt(len(gap)))
        assert float(z.abs().max()) < STANDARD_ERRORS
    if isinstance(process, ReflectedBrownian):
        assert float(values.min()) >= 0 and float(values.max()) <= math.pi


@pytest.mark.parametrize("process", [OrnsteinUhlenbeck(2, preconditioner()), ReflectedBrownian(2)])
def test_stationary_law_is_what_every_start_tends_to(process, generator):
    draws = process.stationary(100_000, generator)
    index = torch.cartesian_prod(torch.arange(4), torch.arange(4))[1:]
    values = process.eigenfunctions(draws, index)
    assert float((values.mean(0) / (values.std(0) / math.sqrt(len(values)))).abs().max()) < STANDARD_ERRORS
    x, y = in_box(3, 2), in_box(3, 2, seed=3)
    assert torch.allclose(process.transition(60.0, x, y), process.log_stationary(y), atol=1e-9)


@pytest.mark.parametrize("process", [OrnsteinUhlenbeck(2, preconditioner()), ReflectedBrownian(2)])
def test_transition_score_is_a_central_difference(process):
    x, y, tau, h = in_box(6, 2), in_box(6, 2, seed=4), torch.linspace(0.05, 1, 6), 1e-5
    found = process.transition_score(tau, x, y)
    for j, e in enumerate(torch.eye(2)):
        slope = (process.transition(tau, x, y + h * e) - process.transition(tau, x, y - h * e)) / (2 * h)
        assert torch.allclose(found[:, j], slope, atol=1e-6)


def test_house_path_is_the_ornstein_uhlenbeck_process(generator):
    cloud, x, tau = normal(30, 3), normal(7, 3, seed=1), 0.4
    path = house_path()
    r, s = OrnsteinUhlenbeck(3).scales(tau, x[0])
    assert float(path.a(house_time(tau))) == pytest.approx(float(r[0]), abs=1e-15)
    assert float(path.m(house_time(tau))) == pytest.approx(float(s[0]), abs=1e-15)
    assert torch.allclose(kernel_score(cloud, OrnsteinUhlenbeck(3), tau, x),
                          posterior.score(path, house_time(tau), x, cloud), atol=1e-12)
    assert not torch.allclose(posterior.score(cond_ot(), house_time(tau), x, cloud),
                              posterior.score(path, house_time(tau), x, cloud))


def test_into_box():
    x = correlated(100, 2) * 7 + 3
    z = into_box(x)(x)
    assert torch.allclose(z.amin(0), torch.full((2,), 0.1 * math.pi)) and torch.allclose(
        z.amax(0), torch.full((2,), 0.9 * math.pi))
    assert into_box(x).log_det == pytest.approx(float((0.8 * math.pi / (x.amax(0) - x.amin(0))).log().sum()))


# --- the linear system ------------------------------------------------------------------------------------

SYSTEMS = {
    "OU 1-D": (OU, 8, "tensor", lambda: correlated(30, 1)),
    "OU 2-D": (OrnsteinUhlenbeck(2), 3, "tensor", lambda: correlated(9, 2)),
    "OU 2-D, C": (OrnsteinUhlenbeck(2, preconditioner()), 4, "total", lambda: correlated(9, 2)),
    "OU 3-D, C, separable": (OrnsteinUhlenbeck(3, preconditioner(3)), 3, "separable", lambda: correlated(6, 3)),
    "box 1-D": (BOX, 5, "tensor", lambda: in_box(30, 1)),
    "box 2-D": (ReflectedBrownian(2), 3, "tensor", lambda: in_box(7, 2)),
    "box 3-D": (ReflectedBrownian(3), 2, "total", lambda: torch.tensor([[0.3, 1.9, 2.5], [1.1, 1.2, 0.1]])),
    "box 2-D, separable": (ReflectedBrownian(2), 4, "separable", lambda: in_box(7, 2)),
}


@pytest.mark.parametrize("tau", [0.03, 0.4])
@pytest.mark.parametrize("name", SYSTEMS)
def test_system_from_moments_equals_averages_over_noised_data(name, tau):
    """A = E ∇φ·C∇φ, b = −E Lφ, absolute b = −E tr C∇²φ: derivatives by autograd, noise by quadrature."""
    process, order, basis, make = SYSTEMS[name]
    x = make()
    model = fit_oism(x, process, order, basis)
    y, w = noised(process, x, tau, 10)
    C = process.frame @ torch.diag(process.rates) @ process.frame.T
    first, second = derivatives(process, y, multi_index(model))
    gram = torch.einsum("b,bmi,ij,bnj->mn", w, first, C, first)
    laplacian = torch.einsum("bmij,ij->bm", second, C)
    drift = first @ C @ y[..., None] if isinstance(process, OrnsteinUhlenbeck) else torch.zeros(*laplacian.shape, 1)
    for found, true in ((model.gram(tau), gram), (model.rhs(tau), -w @ (laplacian - drift[..., 0])),
                        (model.rhs(tau, "absolute"), -w @ laplacian)):
        assert float((found - true).abs().max()) < 1e-10 * float(true.abs().max())


@pytest.mark.parametrize("process", [OrnsteinUhlenbeck(2), ReflectedBrownian(2)])
def test_system_from_moments_equals_monte_carlo(process, generator):
    x, tau = in_box(30, 2), 0.2
    model = fit_oism(x, process, 2)
    y = process.noise(x[torch.randint(30, (400_000,), generator=generator)], tau, generator)
    h = 1e-4
    first = torch.stack([process.eigenfunctions(y + h * e, model.index) - process.eigenfunctions(y - h * e, model.index)
                         for e in torch.eye(2)], 2) / (2 * h)
    for m, n in itertools.combinations_with_replacement(range(len(model.index)), 2):
        value = (first[:, m] * first[:, n]).sum(1)
        error = float(value.std()) / math.sqrt(len(y))
        assert abs(float(value.mean() - model.gram(tau)[m, n])) < STANDARD_ERRORS * error + 1e-6


def test_log_weights_are_repetitions():
    x, counts = correlated(6, 2), torch.tensor([1, 2, 3, 1, 1, 4])
    weighted = fit_oism(x, OrnsteinUhlenbeck(2), 3, log_w=(counts / counts.sum()).log())
    repeated = fit_oism(x.repeat_interleave(counts, 0), OrnsteinUhlenbeck(2), 3)
    query = normal(5, 2) * 3
    assert torch.allclose(weighted.gram(0.3), repeated.gram(0.3))
    assert torch.allclose(weighted.score(0.3, query), repeated.score(0.3, query))


@pytest.mark.parametrize("name", SYSTEMS)
def test_gram_is_positive_and_tends_to_the_dirichlet_energy(name):
    process, order, basis, make = SYSTEMS[name]
    x = make()
    for shrinkage in (0.0, 0.2):
        model = fit_oism(x, process, order, basis, shrinkage=shrinkage)
        for tau in (1e-3, 0.05, 0.5):
            gram = model.gram(tau)
            assert torch.equal(gram, gram.T) or torch.allclose(gram, gram.T, atol=1e-12)
            assert float(torch.linalg.eigvalsh(gram).min()) > -1e-10 * float(gram.norm())
    index = multi_index(model)
    norm = 1.0 if isinstance(process, OrnsteinUhlenbeck) else 0.5 ** (index > 0).sum(1)
    assert torch.allclose(model.gram(200.0), torch.diag(-process.eigenvalues(index) * norm), atol=1e-9)
    query = in_box(5, process.dim)
    stationary = -query if isinstance(process, OrnsteinUhlenbeck) else torch.zeros_like(query)
    assert torch.allclose(model.score(200.0, query), stationary, atol=1e-9)


@pytest.mark.parametrize("name", ["OU 2-D, C", "box 2-D", "OU 3-D, C, separable"])
def test_shrinkage_is_a_ridge_on_the_dirichlet_energy(name):
    process, order, basis, make = SYSTEMS[name]
    x, c, tau = make(), 0.15, 0.2
    plain, shrunk = fit_oism(x, process, order, basis), fit_oism(x, process, order, basis, shrinkage=c)
    energy = plain.gram(200.0)
    assert torch.allclose(shrunk.gram(tau), (1 - c) * plain.gram(tau) + c * energy, atol=1e-9)
    ridge = torch.linalg.solve(plain.gram(tau) + c / (1 - c) * energy, plain.rhs(tau))
    assert float((shrunk.coefficients(tau) - ridge).abs().max()) < 1e-10
    assert torch.allclose(shrunk.coefficients(tau), torch.linalg.solve(shrunk.gram(tau), shrunk.rhs(tau)))


def test_absolute_and_relative_ansatz_give_one_score():
    model = exact_fit(6)
    x = torch.linspace(-2, 2, 9)[:, None]
    for tau in (0.1, 0.5, 2.0):
        alpha = torch.linalg.solve(model.gram(tau), model.rhs(tau, "absolute"))
        score = derivatives(OU, x, model.index)[0][..., 0] @ alpha
        assert torch.allclose(score[:, None], model.score(tau, x), atol=1e-10)
    assert fit_oism(MIXTURE.nodes()[0], OU, 1).rhs(0.3, "absolute").tolist() == [0.0]


# --- exact answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2, 4, 6])
@pytest.mark.parametrize("tau", [1e-3, 0.03, 1.0])
def test_gaussian_moments_give_the_gaussian_score_at_any_order(order, tau):
    z, w = hermite(30)
    model = fit_oism(0.3 + 0.7 * z, OU, order, log_w=w.log())
    x = torch.linspace(-9, 9, 37)[:, None]  # also in the tails
    exact = -(x - 0.3 * math.exp(-tau)) / (1 + (0.49 - 1) * math.exp(-2 * tau))
    assert float((model.score(tau, x) - exact).abs().max()) < 1e-10
    assert torch.allclose(model.score_divergence(tau, x), -1 / (1 + (0.49 - 1) * torch.tensor(-2 * tau).exp()))


@pytest.mark.parametrize(("process", "basis"), [
    (OrnsteinUhlenbeck(3), "tensor"), (OrnsteinUhlenbeck(3), "total"), (OrnsteinUhlenbeck(3), "pca"),
    (OrnsteinUhlenbeck(3, preconditioner(3)), "total")])
def test_order_two_is_the_gaussian_score_of_the_data(process, basis):
    """And its flow carries Gaussians to Gaussians, so the likelihood is known too, whatever C."""
    x, y, tau = correlated(200, 3), 0.6 * normal(8, 3), 0.2
    r = exponential(-tau * (torch.eye(3) if process.C is None else process.C))
    law = MultivariateNormal(r @ x.mean(0), r @ torch.cov(x.T, correction=0) @ r + torch.eye(3) - r @ r)
    model = fit_oism(x, process, 2, basis)
    if basis == "tensor":  # has more than quadratics: Gaussian only in the tails
        y = 100 * y.abs() + 50
        assert torch.allclose(model.score(tau, y).diff(dim=0), -y.diff(dim=0) @ law.precision_matrix)
        return
    far = torch.cat([y, 20 * y])
    assert float((model.score(tau, far) + (far - law.mean) @ law.precision_matrix).abs().max()) < 1e-10
    assert torch.allclose(model.score_divergence(tau, far), -law.precision_matrix.trace().expand(16))
    times = torch.logspace(math.log10(tau), 1.3, 120)
    found = solve.log_likelihood(model.flow, y, times, process.log_stationary)
    assert torch.allclose(found, law.log_prob(y), atol=1e-5)


def test_likelihood_along_the_flow_expands_once_a_stage(monkeypatch):
    model = fit_oism(correlated(50, 2), OrnsteinUhlenbeck(2), 3)
    x, times, calls = normal(4, 2), torch.linspace(0.3, 2, 4), []
    real = markov.OISM._expand
    monkeypatch.setattr(markov.OISM, "_expand", lambda *a: calls.append(1) or real(*a))
    found = solve.log_likelihood(model.flow, x, times, model.process.log_stationary)
    assert len(calls) == 4 * 3
    divergence = lambda tau, x: model.flow(tau, x).divergence
    two = solve.log_likelihood(model.velocity, x, times, model.process.log_stationary, divergence)
    assert torch.equal(found, two)


def test_noise_levels_are_solved_for_once(monkeypatch):
    model, solved = fit_oism(correlated(50, 2), OrnsteinUhlenbeck(2), 2), []
    real = markov.OISM._solve
    monkeypatch.setattr(markov.OISM, "_solve", lambda self, tau: solved.append(tau) or real(self, tau))
    x = normal(3, 2)
    for tau in (0.5, torch.tensor(0.5), torch.tensor([0.5, 0.25, 0.5])):
        model.score(tau, x)
    assert solved == [0.5, 0.25]


@pytest.mark.parametrize("tau", [0.2, 0.5, 1.0])
def test_error_is_the_energy_that_is_left(tau):
    """E‖s* − s̃‖² = E‖s*‖² − b·A⁻¹b, which cannot grow with the order."""
    errors = []
    for order in (2, 4, 8, 12):
        model = exact_fit(order)
        removed = model.rhs(tau, "absolute") @ torch.linalg.solve(model.gram(tau), model.rhs(tau, "absolute"))
        errors.append(MIXTURE.error(model, tau))
        assert errors[-1] == pytest.approx(MIXTURE.energy(tau) - float(removed), abs=1e-6)
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(errors))


def test_error_falls_tenfold_from_order_two_to_eight():
    assert MIXTURE.error(exact_fit(8), 0.2) < 0.1 * MIXTURE.error(exact_fit(2), 0.2)


@pytest.mark.parametrize(("basis", "d", "order"), [
    ("tensor", 1, 8), ("total", 2, 4), ("separable", 3, 4), ("pca", 3, 4)])
def test_loss_of_the_untrained_residual_is_known_beforehand(basis, d, order):
    """E‖s̃ + ε/σ‖² = d/σ² − b·A⁻¹b, and what exceeds the irreducible part is the distance to the kernel score."""
    x, tau, process = correlated(15, d), 0.3, OrnsteinUhlenbeck(d)
    model = fit_oism(x, process, order, basis, tails=math.inf)
    z, w = hermite(40 if d < 3 else 14, d)
    r, s = math.exp(-tau), math.sqrt(1 - math.exp(-2 * tau))
    y, noise = (r * x[:, None] + s * z).reshape(-1, d), z.repeat(len(x), 1) / s
    w = (w / len(x)).repeat(len(x))
    b = model.rhs(tau, "absolute")
    residual = model.score(tau, y)
    loss = w @ (residual + noise).square().sum(1)
    assert float(loss) == pytest.approx(d / s**2 - float(b @ torch.linalg.solve(model.gram(tau), b)), rel=1e-9)
    if d < 3:
        exact = kernel_score(x, process, tau, y)
        irreducible, distance = w @ (exact + noise).square().sum(1), w @ (residual - exact).square().sum(1)
        assert float(loss - irreducible) == pytest.approx(float(distance), abs=2e-6)


@pytest.mark.parametrize("name", SYSTEMS)
def test_score_and_divergences_are_the_derivatives_of_f(name):
    process, order, basis, make = SYSTEMS[name]
    model = fit_oism(make(), process, order, basis, tails=math.inf)
    x = in_box(6, process.dim, seed=7) * 0.8
    for tau in (0.1, 0.6):
        first, second = derivatives(process, x, multi_index(model))
        alpha = model.coefficients(tau)
        assert torch.allclose(alpha, torch.linalg.solve(model.gram(tau), model.rhs(tau)), rtol=1e-6, atol=1e-8)
        gradient, hessian = alpha @ first, torch.einsum("m,bmij->bij", alpha, second)
        pull = 1.0 if isinstance(process, OrnsteinUhlenbeck) else 0.0
        C = process.frame @ torch.diag(process.rates) @ process.frame.T
        assert torch.allclose(model.score(tau, x), gradient - pull * x)
        laplacian = hessian.diagonal(dim1=1, dim2=2).sum(1)
        assert torch.allclose(model.score_divergence(tau, x), laplacian - pull * process.dim)
        assert torch.allclose(model.velocity(tau, x), -gradient @ C)
        assert torch.allclose(model.flow(tau, x).divergence, -torch.einsum("bij,ji->b", hessian, C))
        assert torch.allclose(process.flow(model.score)(tau, x), model.velocity(tau, x))


@pytest.mark.parametrize("name", ["OU 2-D, C", "OU 3-D, C, separable", "box 2-D"])
def test_one_time_for_each_point(name):
    process, order, basis, make = SYSTEMS[name]
    model = fit_oism(make(), process, order, basis)
    x, tau = in_box(4, process.dim), torch.tensor([0.3, 0.05, 0.3, 1.0])
    for function in (model.score, model.score_divergence, model.velocity, lambda *a: model.flow(*a).divergence):
        each = torch.cat([function(float(t), row[None]) for t, row in zip(tau, x, strict=True)])
        assert torch.allclose(function(tau, x), each)
    assert model.score(0.3, x.float()).dtype == torch.float32


@pytest.mark.parametrize("order", [3, 5, 6])
def test_tails_are_gaussian_and_continuous(order):
    x = correlated(60, 2)
    model = fit_oism(x, OrnsteinUhlenbeck(2), order, "total", tails=2.0)
    wild = fit_oism(x, OrnsteinUhlenbeck(2), order, "total", tails=math.inf)
    tau = 0.1
    inside = x[:10] * math.exp(-tau)
    assert torch.equal(model.score(tau, inside), wild.score(tau, inside))
    reach = math.exp(-tau) * x[:, 0].max() + 2 * math.sqrt(1 - math.exp(-2 * tau))
    edge = torch.stack([reach * (1 + torch.tensor([-1e-9, 1e-9])), torch.zeros(2)], 1)
    assert torch.allclose(*model.score(tau, edge), atol=1e-5)
    assert not torch.allclose(model.score(tau, edge * 1.5), wild.score(tau, edge * 1.5))
    far = 40 * normal(30, 2)
    divergence = torch.func.vmap(torch.func.jacrev(lambda y: model.score(tau, y[None])[0]))(far)
    assert torch.allclose(model.score_divergence(tau, far), divergence.diagonal(dim1=1, dim2=2).sum(1))
    times = torch.linspace(1.0, 0.01, 200)
    ends = solve.ode(model.velocity, OrnsteinUhlenbeck(2).stationary(500, rng()) * 2, times, "heun")[-1]
    assert bool(torch.isfinite(ends).all()) and float(ends.abs().max()) < 3 * float(x.abs().max())


def test_box_samples_stay_in_the_box():
    x = into_box(correlated(2000, 2))(correlated(2000, 2))
    process = ReflectedBrownian(2)
    model = fit_oism(x, process, 8)
    times = torch.logspace(0.4, -2.5, 120)
    way = solve.ode(model.velocity, process.stationary(1000, rng()), times, "rk4")
    assert float(way.min()) >= 0 and float(way.max()) <= math.pi
    wall = torch.tensor([[0.0, 1.0], [math.pi, 2.0]])
    assert float(model.velocity(0.05, wall)[:, 0].abs().max()) < 1e-9
    assert float(affine.normaliser(x)(way[-1]).mean(0).abs().max()) < 0.1  # and they look like the data


# --- choosing order and shrinkage -------------------------------------------------------------------------


def fisher(model: markov.OISM, tau: float, data: markov.OISM) -> float:
    """α·Aα − 2b·α with A and b from the moments of `data` (same basis): Fisher divergence up to a constant."""
    alpha = model.coefficients(tau)
    return float(alpha @ data.gram(tau) @ alpha - 2 * data.rhs(tau) @ alpha)


@pytest.mark.parametrize("process", [OrnsteinUhlenbeck(2), ReflectedBrownian(2)])
def test_held_out_data_choose_the_best_of_all_orders_and_shrinkages(process):
    x, fresh = in_box(40, 2), in_box(400, 2, seed=9)
    chosen = fit_oism(x, process, 5, held_out=fresh)
    fresh_moments = {k: fit_oism(fresh, process, k) for k in (1, 3, 5)}
    for tau in (0.02, 0.3, 1.5):
        losses = [fisher(fit_oism(x, process, k, shrinkage=c), tau, fresh_moments[k])
                  for k in (1, 3, 5) for c in oism.SHRINKAGES]
        assert fisher(chosen, tau, fresh_moments[5]) == pytest.approx(min(losses), rel=1e-9)


def test_blocks_choose_for_themselves():
    x, fresh = correlated(50, 3), correlated(500, 3, seed=1)[50:]
    joint = fit_oism(x, OrnsteinUhlenbeck(3), 6, "separable", held_out=fresh)
    for j in range(3):
        alone = fit_oism(x[:, j:j + 1], OU, 6, held_out=fresh[:, j:j + 1])
        assert torch.allclose(joint.coefficients(0.1)[6 * j:6 * j + 6], alone.coefficients(0.1))


def test_loss_is_the_fisher_divergence_up_to_a_constant():
    x, w = MIXTURE.nodes()
    truth = fit_oism(x, OU, 4, log_w=w.log())
    few = x[:: 7]
    gaps = []
    for shrinkage in (0.0, 0.3):
        model = fit_oism(few, OU, 4, shrinkage=shrinkage, tails=math.inf)
        gaps.append(MIXTURE.error(model, 0.3) - fisher(model, 0.3, truth))
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-6)


# --- kernel smoothing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("process", "d"), [(OrnsteinUhlenbeck(3), 3), (OrnsteinUhlenbeck(3, preconditioner(3)), 3),
                                            (ReflectedBrownian(2), 2), (ReflectedBrownian(1), 1)])
@pytest.mark.parametrize("tau", [0.02, 0.8])
def test_kernel_score_is_the_gradient_of_the_mixture_of_transitions(process, d, tau):
    cloud, x = in_box(25, d), in_box(6, d, seed=3).requires_grad_()
    log_w = torch.linspace(-1, 1, 25).log_softmax(0)
    for weights in (None, log_w):
        each = process.transition(tau, cloud, x[:, None]) + (0 if weights is None else weights)
        exact, = torch.autograd.grad(each.logsumexp(1).sum(), x)
        assert float((kernel_score(cloud, process, tau, x.detach(), log_w=weights) - exact).abs().max()) < 1e-9


def test_chi_square_from_moments_and_from_the_kernel():
    """χ²(ρ_τ‖π) = E k_2τ(x, y) − 1 = Σ e^{2λτ}(Eφ)²/‖φ‖²."""
    cloud, tau, index = in_box(20, 1), 0.25, torch.arange(1, 90)[:, None]
    for process, norm in ((OU, 1.0), (BOX, 0.5)):
        by_kernel = process.kernel(2 * tau, cloud[:, None], cloud).mean() - 1
        moments = process.eigenfunctions(cloud, index).mean(0)
        by_moments = ((2 * tau * process.eigenvalues(index)).exp() * moments**2 / norm).sum()
        assert float(by_kernel) == pytest.approx(float(by_moments), abs=1e-10)


def test_gaussian_mixture_is_the_mixture_of_multivariate_normals():
    means, x = 3 * normal(40, 3) + 5, 2 * normal(9, 3, seed=1) + 5
    factors = normal(40, 3, 3, seed=2)
    covariances = factors @ factors.mT + 0.01 * torch.eye(3)
    query = x.clone().requires_grad_()
    log_p = MultivariateNormal(means, covariances).log_prob(query[:, None]).logsumexp(1) - math.log(40)
    exact, = torch.autograd.grad(log_p.sum(), query)
    seen = gaussian_mixture(x, means, covariances)
    assert torch.allclose(seen.log_p, log_p, rtol=1e-10) and torch.allclose(seen.score, exact, rtol=1e-9, atol=1e-9)
    single = gaussian_mixture(x.float(), means.float(), covariances.float())
    assert single.score.dtype == torch.float32 and torch.allclose(single.score.double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("C", [None, preconditioner(3)])
@pytest.mark.parametrize("variant", ["pushed", "frozen"])
def test_riemannian_score_is_the_gradient_of_its_density(C, variant):
    cloud, x, tau, h = correlated(30, 3), normal(5, 3), 0.1, 1e-5
    process, metric = OrnsteinUhlenbeck(3, C), local_covariances(cloud, 5, 0.8, 0.1)
    density = lambda y: gaussian_mixture(y, *noised_gaussians(cloud, process, tau, metric, variant)).log_p
    score = riemannian_kernel_score(cloud, process, tau, x, variant=variant, neighbours=5, scale=0.8, floor=0.1)
    for j, e in enumerate(torch.eye(3)):
        assert torch.allclose(score[:, j], (density(x + h * e) - density(x - h * e)) / (2 * h), atol=1e-6)


def test_riemannian_score_without_a_metric_is_the_kernel_score():
    cloud, x, tau = correlated(50, 2), normal(8, 2), 0.1
    for process in (OrnsteinUhlenbeck(2), OrnsteinUhlenbeck(2, preconditioner())):
        flat = riemannian_kernel_score(cloud, process, tau, x, metric=torch.zeros(50, 2, 2))
        assert float((flat - kernel_score(cloud, process, tau, x)).abs().max()) < 1e-12
    isotropic = riemannian_kernel_score(cloud, OrnsteinUhlenbeck(2), tau, x, variant="frozen",
                                        metric=0.3 * torch.eye(2).expand(50, 2, 2))
    assert float((isotropic - kernel_score(cloud, OrnsteinUhlenbeck(2), tau, x)).abs().max()) < 1e-12


def test_noised_gaussians_are_the_laws_of_the_process(generator):
    """Pushed: draw from N(y_i, H_i), run the process.  Frozen: run a process with C = C_i.  4.5 standard errors."""
    cloud, tau, C = correlated(20, 2), 0.3, preconditioner()
    metric = local_covariances(cloud, 4, 1.0, 0.1)
    own = metric[3] * 2 / metric[3].trace()
    start = cloud[3] + normal(200_000, 2, seed=3) @ torch.linalg.cholesky(metric[3]).T
    for variant, process, x in (("pushed", OrnsteinUhlenbeck(2, C), start),
                                ("frozen", OrnsteinUhlenbeck(2, own), cloud[3].expand(200_000, 2))):
        draws = process.noise(x, tau, generator)
        means, covariances = (v[3] for v in noised_gaussians(cloud, OrnsteinUhlenbeck(2, C), tau, metric, variant))
        white = (draws - means) @ torch.linalg.inv(torch.linalg.cholesky(covariances)).T
        root = math.sqrt(len(draws))
        assert float(white.mean(0).abs().max()) * root < STANDARD_ERRORS
        gap = white.T @ white / len(draws) - torch.eye(2)
        assert float((gap / torch.tensor([[2.0, 1.0], [1.0, 2.0]]).sqrt()).abs().max()) * root < STANDARD_ERRORS


def test_local_covariances_by_hand():
    line = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [7.0, 0.0]])
    found = local_covariances(line, neighbours=2, scale=0.5, floor=0.1)
    assert torch.allclose(found[:, 0, 0], 0.25 * torch.tensor([5.0, 2.5, 6.5, 26.0]) + 0.01)
    assert torch.allclose(found[:, 1, 1], torch.tensor(0.01)) and float(found[:, 0, 1].abs().max()) == 0


# --- networks ---------------------------------------------------------------------------------------------


def test_score_net_adds_a_network_to_its_base(generator):
    model = fit_oism(correlated(50, 2), OrnsteinUhlenbeck(2), 3, "total")
    x, tau = normal(6, 2), torch.logspace(-2, 0.4, 6)
    silent = nets.MLP(2, generator=generator, width=8, zero=True)
    assert torch.allclose(ScoreNet(silent, 0.01, 3.0, model.score)(tau, x), model.score(tau, x))
    assert not ScoreNet(silent, 0.01, 3.0)(tau, x).any()
    seen = []
    echo = torch.nn.Module()
    echo.forward = lambda t, y: seen.append(t) or torch.ones_like(y)
    added = ScoreNet(echo, 0.01, 3.0, model.score)(tau, x) - model.score(tau, x)
    assert torch.allclose(added, -1 / (1 - (-2 * tau).exp()).sqrt()[:, None].expand(6, 2))
    assert torch.allclose(seen[0], (tau / 0.01).log() / math.log(300))
    twin = copy.deepcopy(ScoreNet(silent, 0.01, 3.0, model.score))
    assert torch.allclose(twin(0.3, x), model.score(0.3, x))


@pytest.mark.parametrize("process", [OrnsteinUhlenbeck(2), ReflectedBrownian(2)])
def test_score_loss_has_the_score_as_its_minimum(process, generator):
    """For one datum the target is the score itself, and the zero score pays E σ²‖∇log p‖² (d for OU)."""
    datum, taus = in_box(1, 2), torch.logspace(-2, 0, 5)
    loss = markov.score_loss(datum, process, taus, batch=20_000)
    exact = lambda tau, x: process.transition_score(tau, datum.expand_as(x), x)
    assert float(loss(exact, generator)) < 1e-20
    nothing = loss(lambda tau, x: torch.zeros_like(x), generator)
    if isinstance(process, OrnsteinUhlenbeck):
        assert abs(float(nothing) - 2) < STANDARD_ERRORS * 2 / math.sqrt(20_000)  # ‖ε‖² has standard deviation 2
    shifted = loss(lambda tau, x: exact(tau, x) + 1, generator)
    weight = (1 - (-2 * taus).exp()).mean()
    assert float(shifted) == pytest.approx(2 * float(weight), rel=0.02)
    assert float(markov.score_loss(datum, process, taus, imitate=exact)(exact, generator)) == 0.0


def test_training_improves_on_the_base_it_starts_from(generator):
    """Fisher error on held-out noise, after 300 steps on a mixture, for all three ways of using order 2."""
    x, w = MIXTURE.nodes()
    cloud = x[torch.multinomial(w, 4000, True, generator=generator)]
    taus = torch.logspace(-1.2, 0.3, 8)
    base = fit_oism(cloud, OU, 2)

    def error(model) -> float:
        total = 0.0
        for tau in taus.tolist():
            x, w = (v[::20] for v in MIXTURE.grid(tau))
            gap = (model(tau, x) - MIXTURE.score(tau, x)).detach()
            total += (1 - math.exp(-2 * tau)) * float(w @ gap.square())
        return total

    make = lambda base=None: ScoreNet(nets.MLP(1, generator=rng(1), width=32, depth=2).double(), 0.05, 2.0, base)
    imitation, _ = fit.fit(make(), markov.score_loss(cloud, OU, taus, imitate=base.score), 300,
                           generator=generator, lr=1e-2)
    assert error(imitation) < 1.5 * error(base.score)
    residual, _ = fit.fit(make(base.score), markov.score_loss(cloud, OU, taus), 600,
                          generator=generator, lr=1e-2)
    assert error(residual) < 0.5 * error(base.score)


# --- bad input --------------------------------------------------------------------------------------------

CLOUD = torch.randn(20, 2, generator=rng(), dtype=torch.float64)
INSIDE = math.pi * torch.rand(20, 2, generator=rng(), dtype=torch.float64)
OU2, BOX2 = OrnsteinUhlenbeck(2), ReflectedBrownian(2)


@pytest.mark.parametrize(("call", "says"), [
    (lambda: OrnsteinUhlenbeck(2, torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "C: got .*transpose.*need symmetric"),
    (lambda: OrnsteinUhlenbeck(2, torch.eye(3)), "C: got 3 columns"),
    (lambda: OrnsteinUhlenbeck(2, torch.diag(torch.tensor([1.0, -1.0]))), "eigenvalues of C: got smallest -1"),
    (lambda: fit_oism(CLOUD, BOX2, 3), "data: got entries from .*need numbers in"),
    (lambda: fit_oism(CLOUD * torch.tensor([1.0, 0.0]), OU2, 3), "data: got 1 constant"),
    (lambda: into_box(CLOUD * torch.tensor([0.0, 1.0])), "x: got 1 constant"),
    (lambda: fit_oism(CLOUD, OrnsteinUhlenbeck(3), 3), "data: got 2 columns"),
    (lambda: fit_oism(torch.randn(9, 30), OrnsteinUhlenbeck(30), 3), r"basis: got 'tensor' with 4\^30"),
    (lambda: fit_oism(CLOUD, OrnsteinUhlenbeck(2, preconditioner()), 3, "pca"), "basis: got 'pca' with unequal rates"),
    (lambda: fit_oism(CLOUD, OU2, 3, shrinkage=1.0), "shrinkage: got 1"),
    (lambda: fit_oism(CLOUD, OU2, 3, log_w=torch.zeros(20).double()), "log_w: got weights that sum to 20"),
    (lambda: fit_oism(CLOUD, OU2, 3, held_out=CLOUD[:, :1]), "held_out: got 1 columns"),
    (lambda: fit_oism(CLOUD, OU2, 3).gram(-0.1), "tau: got -0.1"),
    (lambda: fit_oism(CLOUD, OU2, 3).score(torch.full((3,), 0.1), CLOUD), r"t: got shape \(3,\)"),
    (lambda: local_covariances(CLOUD, 20), "neighbours: got 20"),
    (lambda: riemannian_kernel_score(INSIDE, BOX2, 0.1, INSIDE), "process: got ReflectedBrownian"),
    (lambda: riemannian_kernel_score(CLOUD, OU2, 0.1, CLOUD, metric=torch.eye(2)), r"metric: got shape \(2, 2\)"),
])
def test_bad_input_is_refused_by_name(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_an_order_too_high_is_refused_with_its_condition_number():
    cloud = torch.linspace(-0.1, 0.1, 5)[:, None]
    model = fit_oism(cloud, OU, 24)
    with pytest.raises(ValueError, match=r"order: got 24 with condition number .* at τ = 1e-05; need at most 1e\+13"):
        model.score(1e-5, cloud)
    with pytest.raises(ValueError, match="shrinkage of at least") as refusal:
        model.score(1e-3, cloud)
    assert bool(torch.isfinite(model.score(2.0, cloud)).all())
    enough = float(str(refusal.value).split()[-1])
    assert bool(torch.isfinite(fit_oism(cloud, OU, 24, shrinkage=enough).score(1e-3, cloud)).all())


@pytest.mark.parametrize("process", [OrnsteinUhlenbeck(2), ReflectedBrownian(2)])
def test_the_score_of_the_data_themselves_without_tails_is_finite(process, float64):
    x = process.stationary(200, torch.Generator().manual_seed(0))
    fit = fit_oism(x, process, 4, shrinkage=0.1, tails=math.inf)
    start, soon = (fit.score(tau, x[:5]) for tau in (0.0, 1e-9))
    torch.testing.assert_close(start, soon, rtol=1e-6, atol=1e-6)


def test_an_oism_is_copied_and_pickled_without_what_it_remembers(float64):
    x = OrnsteinUhlenbeck(2).stationary(200, torch.Generator().manual_seed(0))
    fit = fit_oism(x, OrnsteinUhlenbeck(2), 3)
    wanted = fit.score(0.5, x[:5])
    for other in (copy.deepcopy(fit), pickle.loads(pickle.dumps(fit))):
        assert other.levels.cache_info().currsize == 0 and other.levels.__wrapped__.__self__ is other
        torch.testing.assert_close(other.score(0.5, x[:5]), wanted, rtol=0, atol=0)

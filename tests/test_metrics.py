"""Metrics against closed forms, hand counts, and their own null distributions."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from draws import rng
from scipy.linalg import sqrtm
from scipy.stats import norm

from lib import metrics

pytestmark = pytest.mark.usefixtures("float64")
STANDARD_ERRORS = 4.0


def test_hand_counts():
    """x = {0, 1}, y = {0, 3, 5} on the line, kernel e^{−d²}."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0], [5.0]])
    e = math.exp(-1)
    within = e + (e**9 + e**25 + e**4) / 3
    across = (1 + e**9 + e**25 + e + e**4 + e**16) / 6
    assert metrics.mmd(x, y, bandwidth=math.sqrt(0.5)) == pytest.approx(within - 2 * across, rel=1e-12)
    assert metrics.energy_distance(x, y) == pytest.approx(2 * 15 / 6 - 1 - 10 / 3, rel=1e-12)
    assert metrics.mmd(x, y) == pytest.approx(metrics.mmd(x, y, bandwidth=3.0), rel=1e-12)  # y's median distance
    assert metrics.wasserstein2(x, y) == pytest.approx(math.sqrt(9 / 6 + 4 / 6 + 16 / 3))  # 0→0, 0→3, 1→3, 1→5


@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_mmd_and_energy_are_unbiased(shift, generator):
    """Means over 400 pairs of small samples of N(0, I) and N(shift·e₁, I), D = 1, against their closed forms."""
    n, h, repeats = 12, 1.3, 400
    mmds, energies = [], []
    for _ in range(repeats):
        x, y = torch.randn(n, 1, generator=generator), shift + torch.randn(n + 3, 1, generator=generator)
        mmds.append(metrics.mmd(x, y, bandwidth=h))
        energies.append(metrics.energy_distance(x, y))
    mmd = 2 * math.sqrt(h**2 / (h**2 + 2)) * (1 - math.exp(-(shift**2) / (2 * (h**2 + 2))))
    mean_gap = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * (1 - 2 * norm.cdf(-shift / math.sqrt(2)))
    energy = 2 * mean_gap - 4 / math.sqrt(math.pi)
    # Means over all pairs, those of a point with itself too, would be off by more than 0.05 and 0.15.
    for found, exact, bias in ((np.array(mmds), mmd, 0.05), (np.array(energies), energy, 0.15)):
        error = STANDARD_ERRORS * found.std() / math.sqrt(repeats)
        assert abs(found.mean() - exact) < error < bias
        assert shift or (found < 0).any()


def test_wasserstein2(generator):
    x = torch.randn(80, 3, generator=generator)
    shift = torch.tensor([3.0, 0.0, -4.0])
    assert metrics.wasserstein2(x, x + shift) == pytest.approx(5, rel=1e-9)  # a distance, not its square
    assert metrics.wasserstein2(x, x[torch.randperm(80, generator=generator)]) < 1e-12
    far = x + 1e6
    assert metrics.wasserstein2(far, far + shift) == pytest.approx(5, rel=1e-8)
    u, v = torch.randn(2, 50, 1, generator=generator)
    sorted_gap = (u.sort(0).values - v.sort(0).values).square().mean().sqrt().item()
    assert metrics.wasserstein2(u, v) == pytest.approx(sorted_gap, rel=1e-9)
    assert metrics.wasserstein2(u, u.repeat(3, 1)) < 1e-12  # weights 1/n and 1/m


def test_sliced_wasserstein2(generator):
    u, v = torch.randn(60, 1, generator=generator), 1 + 2 * torch.randn(40, 1, generator=generator)
    exact = metrics.wasserstein2(u, v)
    assert metrics.sliced_wasserstein2(u, v, generator=generator) == pytest.approx(exact, rel=1e-9)
    x, n = torch.randn(30, 4, generator=generator), 4000
    found = metrics.sliced_wasserstein2(x, x + torch.tensor([0.0, 6.0, 0.0, 8.0]), directions=n, generator=generator)
    # Each direction sees 100 v₁² with E v₁² = 1/D and Var v₁² = 2(D − 1)/(D²(D + 2)).
    error = STANDARD_ERRORS * 100 * math.sqrt(2 * 3 / (16 * 6) / n)
    assert found**2 == pytest.approx(100 / 4, abs=error) and error < 2
    one, same = (metrics.sliced_wasserstein2(u, v, generator=rng(3)) for _ in range(2))
    assert one == same


def test_mode_report():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    offset = torch.tensor([[0.29, 0.0]])  # within three standard deviations of 0.1
    x = torch.cat([centres[:1].expand(60, 2), (centres[1:2] + offset).expand(20, 2),
                   (centres[2:3] + offset * 1.1).expand(18, 2), centres[3:].expand(2, 2)])
    report = metrics.mode_report(x, centres, 0.1)
    assert (report.found, report.total) == (2, 4)  # 2 of 100 is less than a tenth of the 25 expected
    assert report.high_quality == pytest.approx(0.82)
    shares = np.array([60, 20, 2]) / 82
    assert report.kl == pytest.approx((shares * np.log(4 * shares)).sum())
    even = metrics.mode_report(centres.repeat(5, 1), centres, 0.1)
    assert even == (4, 4, 1.0, pytest.approx(0, abs=1e-12))
    assert metrics.mode_report(x, centres, 0.1, reach=4).high_quality == 1
    nothing = metrics.mode_report(centres + 5, centres, 0.1)
    assert (nothing.found, nothing.high_quality, nothing.kl) == (0, 0.0, math.inf)


def test_precision_and_recall(generator):
    data = torch.randn(200, 2, generator=generator)
    assert metrics.precision_recall(data, data) == (1, 1)
    assert metrics.precision_recall(data + 100, data) == (0, 0)
    half = torch.cat([data[:100], data[:100] + 100])
    precision, recall = metrics.precision_recall(half, data)
    assert precision == 0.5 and 0.5 < recall <= 1
    narrow = metrics.precision_recall(data[:1] + 1e-3 * data, data)  # all samples good, most data unreached
    assert narrow.precision == 1 and narrow.recall < 0.1
    # {0, 1, 3} with one neighbour: radii 1, 1, 2; of {−1, 1.5, 5, 5.1} all but the last are covered.
    line, points = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[-1.0], [1.5], [5.0], [5.1]])
    assert metrics.precision_recall(points, line, k=1).precision == 0.75
    copies = torch.ones(20, 3) * 1e4 + 0.1
    assert metrics.precision_recall(copies, copies) == (1, 1)


def test_density_and_coverage_by_hand(generator):
    """{0, 1, 3} with one neighbour: radii 1, 1, 2."""
    line, points = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[-1.0], [1.5], [5.0], [5.1]])
    # −1 lies in one ball, 1.5 in two (of 1 and 3), 5 in one, 5.1 in none; all three balls are reached.
    assert metrics.density_coverage(points, line, k=1) == (pytest.approx(4 / 4), 1)
    assert metrics.density_coverage(points[[0, 3]], line, k=1) == (0.5, pytest.approx(1 / 3))
    x, y = torch.randn(2, 2000, 3, generator=generator)
    density, coverage = metrics.density_coverage(x, y)
    assert density == pytest.approx(1, abs=0.05)
    assert coverage == pytest.approx(1 - 0.5**5, abs=0.02)  # Naeem et al. (2020), Lemma 2, large n = m
    outlier = torch.cat([x[:50] * 0.1 + 30, y[:1] * 0 + 60])  # recall is fooled by one far point, coverage is not
    assert metrics.density_coverage(outlier, y).coverage == 0


def test_frechet_distance(generator):
    """Commuting covariances; a rotation; and scipy's root of the product."""
    x = torch.randn(400, 5, generator=generator)
    x = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(399)  # mean 0, covariance 1, exactly
    scale, shift = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0]), torch.arange(5.0)
    exact = (shift.square() + (scale - 1).square()).sum().item()
    assert metrics.frechet_distance(x, x * scale + shift) == pytest.approx(exact, rel=1e-10)
    assert metrics.frechet_distance(x * scale + shift, x) == pytest.approx(exact, rel=1e-10)
    assert abs(metrics.frechet_distance(x, x.flip(0))) < 1e-10
    a, b = (torch.randn(5, 5, generator=generator) for _ in range(2))
    A, B = a @ a.T, b @ b.T
    exact = (A + B).trace().item() - 2 * np.trace(sqrtm((A @ B).numpy()).real)
    assert metrics.frechet_distance(x @ a.T, x @ b.T + 0) == pytest.approx(exact, rel=1e-8)


def test_histogram():
    label = torch.tensor([0, 0, 0, 1])
    found = metrics.histogram(label, 3)
    assert found.share.tolist() == [0.75, 0.25, 0] and found.found == 2
    assert found.kl == pytest.approx(0.75 * math.log(0.75 * 3) + 0.25 * math.log(0.25 * 3))
    assert metrics.histogram(label, 3, found.share).kl == 0
    assert metrics.histogram(label, 3, torch.tensor([0.5, 0.0, 0.5])).kl == math.inf


def test_copies_cannot_be_told_by_points_seen_in_training(generator):
    train, fresh = (torch.randn(n, 4, generator=generator) for n in (500, 490))
    with pytest.raises(ValueError, match=r"^held_out: got 2\.00% of its points in train; need unseen points"):
        metrics.copies(train, train, torch.cat([fresh, train[:10]]))


def test_copies(generator):
    train, held_out, fresh = torch.randn(3, 2000, 4, generator=generator)
    assert metrics.copies(train[:100], train, held_out) == 1
    assert metrics.copies(train[:100] + 1e-3, train, held_out) == 1
    assert metrics.copies(held_out, train, held_out, 0.1) == pytest.approx(0.1)
    assert metrics.copies(fresh, train, held_out, 0.1) == pytest.approx(0.1, abs=4 * math.sqrt(2 * 0.09 / 2000))
    assert metrics.copies(torch.cat([train[:500], fresh[:1500] + 50]), train, held_out) == 0.25


def test_c2st(generator):
    """Under the null the accuracy of 600 held-out guesses is ½ within its standard error; far apart it is 1."""
    x, y = torch.randn(2, 300, 2, generator=generator)
    null = metrics.c2st(x, y)
    assert abs(null - 0.5) < STANDARD_ERRORS * 0.5 / math.sqrt(600)
    assert null == metrics.c2st(x, y)
    assert metrics.c2st(x, y + 20) > 0.99
    assert metrics.c2st(x, (y + 20)[:50]) > 0.9  # equal numbers of each, so ½ is chance


def test_bits_of_a_histogram_are_those_of_its_counts():
    """Two coordinates, three levels; by hand: counts (2, 1, 0) and (0, 3, 0) of three, plus one each, of six."""
    train, held_out = torch.tensor([[0.0, 1], [0, 1], [1, 1]]), torch.tensor([[0.0, 1], [2, 0]])
    by_hand = [-(math.log2(3 / 6) + math.log2(4 / 6)) / 2, -2 * math.log2(1 / 6) / 2]
    assert metrics.histogram_bits(train, held_out, 3).tolist() == pytest.approx(by_hand)
    assert metrics.histogram_bits(train[:, [1, 0]], held_out[:, [1, 0]], 3).tolist() == pytest.approx(by_hand)
    uniform = torch.arange(16.0)[:, None].expand(16, 5)
    assert metrics.histogram_bits(uniform, uniform[:3], 16).tolist() == pytest.approx([4.0] * 3)


def test_bits_per_dim():
    """The uniform density on [0, 1]^D costs log₂ levels; a point known to one level costs nothing."""
    assert metrics.bits_per_dim(torch.zeros(7), 64, 256) == pytest.approx(8)
    assert metrics.bits_per_dim(torch.zeros(7), 64, 17) == pytest.approx(math.log2(17))
    assert metrics.bits_per_dim(torch.full((3,), 64 * math.log(17)), 64, 17) == pytest.approx(0, abs=1e-12)
    assert metrics.bits_per_dim(torch.tensor([1.0, 3.0]) * 10 * math.log(2), 10, 256) == pytest.approx(6)


@pytest.mark.parametrize(("name", "call"), [
    ("bandwidth", lambda x: metrics.mmd(x, x, bandwidth=0.0)),
    ("bandwidth", lambda x: metrics.mmd(x, x[:1].expand(5, 2))),
    ("x and y", lambda x: metrics.energy_distance(x, x[:1])),
    ("y", lambda x: metrics.wasserstein2(x, x[:, :1])),
    ("y", lambda x: metrics.mmd(x, x.float())),
    ("k", lambda x: metrics.precision_recall(x, x, k=10)),
    ("k", lambda x: metrics.density_coverage(x, x, k=10)),
    ("label", lambda x: metrics.histogram(torch.tensor([0, 3]), 3)),
    ("label", lambda x: metrics.histogram(torch.tensor([-1]), 3)),
    ("label", lambda x: metrics.histogram(x[:, 0], 3)),
    ("reference", lambda x: metrics.histogram(torch.tensor([1]), 3, x[0])),
    ("held_out", lambda x: metrics.copies(x, x, x[:, :1])),
    ("share", lambda x: metrics.copies(x, x, x, 1.5)),
    ("folds", lambda x: metrics.c2st(x, x[:4])),
    ("log_p", lambda x: metrics.bits_per_dim(x, 2, 256)),
    ("log_p", lambda x: metrics.bits_per_dim(x[0] * math.nan, 2, 256)),
    ("levels", lambda x: metrics.bits_per_dim(x[0], 2, 0)),
    ("held_out", lambda x: metrics.histogram_bits(torch.zeros_like(x), torch.zeros_like(x) + 0.5, 2)),
    ("train", lambda x: metrics.histogram_bits(torch.zeros_like(x) + 2, torch.zeros_like(x), 2)),
    ("levels", lambda x: metrics.histogram_bits(torch.zeros_like(x), torch.zeros_like(x), 0)),
    ("generator", lambda x: metrics.sliced_wasserstein2(x, x, generator=None)),
    ("std", lambda x: metrics.mode_report(x, x, 0.0)),
])
def test_refusals(name, call, generator):
    with pytest.raises(ValueError, match=rf"^{name}: got .+; need"):
        call(torch.randn(10, 2, generator=generator))

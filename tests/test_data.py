"""Densities that integrate to one and describe their samples; data sets that neither leak nor rot."""
from __future__ import annotations

import hashlib
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import ive, ndtr
from torch.distributions import Independent, Normal

from lib import affine, data, toys

ROOT = Path(__file__).resolve().parent.parent
STANDARD_ERRORS = 4.5
HALF_WIDTH = {"25 Gaussians": (4.5, 0.025), "checkerboard": (4.0, 0.05), "pinwheel": (6.5, 0.05)}
every_toy = pytest.mark.parametrize("name", toys.TOYS)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def board(name: str) -> tuple[torch.Tensor, float]:
    """Cell centres of a grid that holds the toy, finer than its noise, and the area of a cell."""
    half, h = HALF_WIDTH.get(name, (6.0, 0.06))
    line = torch.arange(-half + h / 2, half, h, dtype=torch.float64)
    return torch.cartesian_prod(line, line), h**2


@every_toy
def test_densities_are_those_of_the_samples(name):
    """The density integrates to one; the entropy and ten moments of 20,000 samples are those of the density."""
    toy, (grid, area) = toys.TOYS[name](), board(name)
    log_p = toy.log_prob(grid)
    p = log_p.exp() * area
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    x = toy.sample(20_000, rng(), torch.float64)
    assert x.shape == (20_000, 2) and toy.name == name

    def features(at, log_p):
        waves = [f(at[:, i] * k) for f in (torch.sin, torch.cos) for i in (0, 1) for k in (0.7, 2.3)]
        return torch.stack([-log_p.clamp_min(-700), at[:, 0] * at[:, 1], at.square().sum(1), *waves], 1)

    found, exact = features(x, toy.log_prob(x)), p @ features(grid, log_p)
    assert ((found.mean(0) - exact).abs() < STANDARD_ERRORS * found.std(0) / math.sqrt(20_000) + 1e-4).all()


@every_toy
def test_samples_are_seeded_and_typed(name):
    toy = toys.TOYS[name]()
    before = torch.get_rng_state()
    one, same, other = (toy.sample(50, rng(s)) for s in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other) and one.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), before)
    assert toy.log_prob(one).dtype == torch.float32
    assert torch.allclose(toy.log_prob(one), toy.log_prob(one.double()).float(), atol=1e-4)


def test_a_blurred_segment_has_a_closed_form():
    length, s = 3.0, 0.2
    toy = toys.curves("segment", [lambda u: torch.stack([length * u, torch.zeros_like(u)], 1)], s)
    x = torch.tensor([[0.0, 0.0], [-0.3, 0.1], [1.4, -0.5], [3.3, 0.2]], dtype=torch.float64)
    along = (ndtr(x[:, 0].numpy() / s) - ndtr((x[:, 0].numpy() - length) / s)) / length
    across = Normal(*torch.tensor([0.0, s], dtype=torch.float64)).log_prob(x[:, 1])
    assert torch.allclose(toy.log_prob(x), torch.from_numpy(np.log(along)) + across, atol=1e-12)


def test_a_blurred_circle_is_a_bessel_function():
    s, radii = 0.15, (1.5, 3.0)
    for toy, used in ((toys.circles(), radii), (toys.circles((2.0,)), (2.0,))):
        x = torch.tensor([[0.0, 0.0], [1.4, 0.3], [-2.0, 1.9], [0.1, -3.3]], dtype=torch.float64)
        r = x.norm(dim=1).numpy()
        each = [np.exp(-(r - R) ** 2 / (2 * s**2)) * ive(0, r * R / s**2) / (2 * np.pi * s**2) for R in used]
        assert np.allclose(toy.log_prob(x), np.log(np.mean(each, 0)), atol=1e-11)
    assert toys.circles((2.0,)).name == "ring" and len(used) == 1


@pytest.mark.parametrize("at", [(0.0, 0.0), (0.05, 0.02), (0.2, -0.1), (-1.0, 0.4), (2.0, -2.4)])
def test_spirals_against_adaptive_quadrature(at):
    """In polar terms: radius θ/3 up to π, with density of θ proportional to θ; and its mirror image."""
    s, turn = 0.1, 3 * np.pi

    def integrand(theta, sign):
        point = sign * theta / 3 * np.array([-np.cos(theta), np.sin(theta)])
        return 2 * theta / turn**2 * np.exp(-((at - point) ** 2).sum() / (2 * s**2)) / (2 * np.pi * s**2) / 2

    knots = np.linspace(0, turn, 60)[1:-1]
    p = sum(quad(integrand, 0, turn, (sign,), points=knots, limit=400, epsabs=0, epsrel=1e-11)[0] for sign in (1, -1))
    found = toys.two_spirals().log_prob(torch.tensor([at], dtype=torch.float64)).item()
    assert found == pytest.approx(math.log(p), abs=1e-9)


def test_mixtures_know_their_modes():
    toy = toys.gaussian_grid(3, 2.0, 0.1)
    assert toy.centres.shape == (9, 2) and toy.centres.mean(0).abs().max() < 1e-12 and toy.std == 0.1
    assert toy.centres.abs().max() == 2
    eight = toys.eight_gaussians()
    assert torch.allclose(eight.centres.norm(dim=1), torch.full((8,), math.sqrt(8), dtype=torch.float64))
    nearest = torch.cdist(toy.sample(9000, rng(), torch.float64), toy.centres).min(1)
    counts = nearest.indices.bincount(minlength=9).double()
    assert ((counts - 1000).abs() < STANDARD_ERRORS * math.sqrt(1000 * 8 / 9)).all()


def test_checkerboard_support():
    toy = toys.checkerboard()
    x = toy.sample(5000, rng())
    assert torch.equal(toy.log_prob(x), torch.full((5000,), -math.log(32)))
    assert len({tuple(c) for c in ((x + 4) / 2).floor().long().tolist()}) == 8
    corners = torch.tensor([[-3.0, -3.0], [3.0, 3.0], [-3.0, -1.0], [3.0, -3.0], [5.0, 5.0], [-5.0, -3.0]])
    assert toy.log_prob(corners).isfinite().tolist() == [True, True, False, False, False, False]


# --- real sets --------------------------------------------------------------------------------------------


def test_the_script_makes_the_committed_bytes(tmp_path):
    subprocess.run([sys.executable, "-m", "pipeline", "make_data", str(tmp_path)], check=True, cwd=ROOT)
    made = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in tmp_path.iterdir()}
    assert made == data.SHA256


def test_splits_are_disjoint_and_seeded(monkeypatch):
    """Images and rows that encode their own number show where each went."""
    n = 1797
    number = np.zeros((n, 8, 8), np.uint8)
    number[:, 0, 0], number[:, 0, 1], number[:, 0, 2] = np.arange(n) % 17, np.arange(n) // 17 % 17, np.arange(n) // 289
    rows = np.tile(np.arange(569.0)[:, None], (1, 30))
    fake = {"digits.npz": {"images": number, "labels": np.arange(n) % 251},
            "breast_cancer.npz": {"features": rows, "labels": np.arange(569) % 251}}
    monkeypatch.setattr(data, "_load", fake.__getitem__)
    digits = lambda seed: [(p.x[:, :3] * 16).round().long() @ torch.tensor([1, 17, 289])
                           for p in data.digits(seed=seed, dequantise=False)]
    cancer = lambda seed: [p.x[:, 7].long() for p in data.breast_cancer(seed=seed)]
    for read, sizes in ((digits, (1197, 300, 300)), (cancer, (369, 100, 100))):
        parts = read(0)
        assert tuple(map(len, parts)) == sizes
        assert torch.cat(parts).sort().values.tolist() == list(range(sum(sizes)))
        assert all(torch.equal(a, b) for a, b in zip(parts, read(0), strict=True))
        assert not torch.equal(parts[2], read(1)[2])
    for split, numbers in zip(data.digits(dequantise=False), digits(0), strict=True):
        assert torch.equal(split.label, numbers % 251)


@pytest.mark.parametrize(("read", "levels", "top"), [
    (lambda d, seed=0: data.digits(dequantise=d, seed=seed), 17, 16),
    (lambda d, seed=0: data.patches(20_000, dequantise=d, seed=seed), 256, 255),
    (lambda d, seed=0: data.patches(500, dequantise=d, colour=True, seed=seed), 256, 255),
])
def test_dequantisation_keeps_every_level_and_fills_it(read, levels, top):
    """⌊levels·x⌋ is the level, for all of 1.3 million float32 numbers; the rest is uniform."""
    u = []
    for noisy, plain in zip(read(True), read(False), strict=True):
        k = (plain.x * top).round()
        assert torch.equal((noisy.x * levels).floor(), k) and noisy.x.max() < 1 and noisy.x.min() >= 0
        assert torch.equal(noisy.label, plain.label)
        u.append((noisy.x * levels - k).ravel())
    u = torch.cat(u).double()
    assert abs(u.mean() - 0.5) < STANDARD_ERRORS / math.sqrt(12 * len(u))
    assert abs(u.square().mean() - 1 / 3) < STANDARD_ERRORS * math.sqrt(4 / 45 / len(u))
    assert not torch.equal(read(True).train.x, read(True, 1).train.x)


def test_patches_share_no_pixel_between_parts(monkeypatch):
    """Photographs whose colours spell the pixel's place: row mod 256, both quotients, column mod 256."""
    row, column = np.mgrid[:427, :640]
    image = np.stack([row % 256, row // 256 + 2 * (column // 256), column % 256], -1).astype(np.uint8)
    monkeypatch.setattr(data, "photographs", lambda: {"one": torch.from_numpy(image), "two": torch.from_numpy(image)})
    columns, starts = [], []
    for part, n in zip(data.patches(3000, colour=True, dequantise=False), (3000, 300, 300), strict=True):
        k = (part.x * 255).round().long().reshape(n, 8, 8, 3)
        r, c = k[..., 0] + 256 * (k[..., 1] % 2), k[..., 2] + 256 * (k[..., 1] // 2)
        assert torch.equal(r, r[:, :1, :1] + torch.arange(8)[:, None].expand(n, 8, 8))  # rows run down …
        assert torch.equal(c, c[:, :1, :1] + torch.arange(8).expand(n, 8, 8))  # … and columns across
        corner = torch.stack([part.label, r[:, 0, 0], c[:, 0, 0]], 1)
        assert len(corner.unique(dim=0)) == n and set(part.label.tolist()) == {0, 1}
        columns.append(c)
        starts.append((int(r.min()), int(r.max())))
    train, validation, test = columns
    assert train.max() + 8 < validation.min() and validation.max() + 8 < test.min()
    assert train.min() < 5 and test.max() > 630 and all(s[0] < 20 and s[1] > 400 for s in starts)


def test_photographs_and_their_patches():
    photographs = data.photographs()
    assert list(photographs) == ["china", "flower"]
    assert all(p.shape == (427, 640, 3) and p.dtype == torch.uint8 for p in photographs.values())
    grey = data.patches(200, dequantise=False).train
    assert grey.x.shape == (200, 64) and grey.x.dtype == torch.float32
    assert data.patches(200, colour=True, side=4).test.x.shape == (20, 48)
    raw, centred = (data.patches(200, remove_mean=r).train.x for r in (False, True))
    assert centred.shape == (200, 63)
    assert torch.allclose(centred, (raw - raw.mean(1, keepdim=True))[:, :63], atol=1e-6)
    lost = -centred.sum(1)  # the pixel dropped is minus the sum of the others
    assert torch.allclose(lost, raw[:, 63] - raw.mean(1), atol=1e-4)
    for name, bad in (("n", {"n": 10**6}), ("side", {"side": 89}), ("n", {"n": 5})):
        with pytest.raises(ValueError, match=rf"^{name}: got .+; need"):
            data.patches(**bad)


def test_damaged_or_missing_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data/digits.npz is missing; need the bundled data: `make data`"):
        data.digits()
    file = tmp_path / "digits.npz"
    shutil.copy(ROOT / "data" / "digits.npz", file)
    assert len(data.digits().train.x) == 1197
    damaged = bytearray(file.read_bytes())
    damaged[50_000] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"^data/digits.npz: got SHA-256 \w{12}…; need 1dc781c8fe69…: the file is dam"):
        data.digits()


@pytest.mark.parametrize("per_coordinate", [False, True])
def test_affine_maps_carry_densities(per_coordinate):
    scale, shift = torch.tensor([[0.5, 2.0, 7.0], [1.0, -3.0, 0.0]], dtype=torch.float64)
    x = shift + scale * torch.randn(500, 3, generator=rng(), dtype=torch.float64)
    to = affine.normaliser(x, per_coordinate=per_coordinate)
    z = to(x)
    assert z.mean(0).abs().max() < 1e-12 and torch.allclose(to.inverse(z), x)
    moment = z.square().mean(0)
    assert torch.allclose(moment if per_coordinate else moment.mean(), torch.ones_like(moment[:1]))
    assert per_coordinate == bool(to.scale.std() > 0)
    log_z = Independent(Normal((shift - to.shift) / to.scale, scale / to.scale), 1).log_prob(z)
    assert torch.allclose(log_z + to.log_det, Independent(Normal(shift, scale), 1).log_prob(x))
    assert to(x.float()).dtype == torch.float32


def test_constant_coordinates_are_refused():
    x = torch.randn(7, 2, generator=rng())
    x[:, 1] = 0.1  # its mean over seven rows is not quite 0.1
    with pytest.raises(ValueError, match=r"^x: got 1 constant coordinates of 2; need"):
        affine.normaliser(x, per_coordinate=True)
    assert affine.normaliser(x).scale.shape == (2,)
    with pytest.raises(ValueError, match=r"^x: got 2 constant coordinates"):
        affine.normaliser(torch.full((7, 2), 0.1))


def test_openml_offline_and_changed(monkeypatch):
    def offline(**_):
        raise URLError("no route to host")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", offline)
    with pytest.raises(ConnectionError, match=r"'mnist' is neither cached nor reachable .+no route.+connect once"):
        data.openml("mnist")
    asked = {}

    def served(**settings):
        asked.update(settings)
        return SimpleNamespace(data=np.zeros((130_064, 50)), target=np.repeat(["b", "a"], 65_032))

    monkeypatch.setattr("sklearn.datasets.fetch_openml", served)
    part = data.openml("miniboone", cache="here")
    assert part.x.shape == (130_064, 50) and part.x.dtype == torch.float32
    assert part.label.bincount().tolist() == [65_032, 65_032] and part.label[0] == 1
    assert asked["data_id"] == 41150 and asked["data_home"] == "here"
    with pytest.raises(ValueError, match=r"^mnist: got shape \(130064, 50\); need shape \(70000, 784\)"):
        data.openml("mnist")
    with pytest.raises(ValueError, match=r"^name: got 'imagenet'; need one of 'mnist'"):
        data.openml("imagenet")

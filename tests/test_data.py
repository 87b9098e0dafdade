"""Densities that integrate to one and describe their samples; data sets that neither leak nor rot."""
from __future__ import annotations

import gzip
import hashlib
import lzma
import math
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from draws import rng
from scipy.integrate import quad
from scipy.special import ive, ndtr
from torch.distributions import Independent, Normal

from lib import affine, data, toys
from pipeline import make_data
from pipeline.parameters import Refused

ROOT = Path(__file__).resolve().parent.parent
STANDARD_ERRORS = 4.5
HALF_WIDTH = {"25 Gaussians": (4.5, 0.025), "checkerboard": (4.0, 0.05), "pinwheel": (6.5, 0.05)}
every_toy = pytest.mark.parametrize("name", toys.TOYS)


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
    """MNIST from .xz, .gz and plain originals; its small files compressed again, to the same bytes."""
    originals, made = tmp_path / "originals", tmp_path / "made"
    shutil.copytree(ROOT / "data" / "mnist", originals)
    test, train = "t10k-labels-idx1-ubyte", "train-labels-idx1-ubyte"
    for name, ending, pack in ((test, "", bytes), (train, ".gz", gzip.compress)):
        packed = originals / f"{name}.xz"
        (originals / (name + ending)).write_bytes(pack(lzma.decompress(packed.read_bytes())))
        packed.unlink()
    command = [sys.executable, "-m", "pipeline", "make_data", str(made), str(originals)]
    subprocess.run(command, check=True, cwd=ROOT)
    files = [f for f in made.rglob("*") if f.is_file()]
    assert {f.relative_to(made).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files} == data.SHA256
    (originals / test).write_bytes(bytes(10_008))
    for said in (rf"{test}.xz: got SHA-256 \w{{12}}…; need", rf"originals: got no {test} in"):
        with pytest.raises(Refused, match=said):
            make_data.make(made, originals)
        (originals / test).unlink(missing_ok=True)


def test_openml_has_the_original_files_byte_for_byte(monkeypatch):
    raw = {f.stem: lzma.decompress(f.read_bytes()) for f in (ROOT / "data" / "mnist").iterdir()}
    images, labels = (np.concatenate([np.frombuffer(raw[f"{part}-{kind}-ubyte"], np.uint8)[start:] for part in
                                      ("train", "t10k")]) for kind, start in (("images-idx3", 16), ("labels-idx1", 8)))
    table = SimpleNamespace(data=images.reshape(-1, 784).astype(float), target=labels.astype(str))
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda **_: table)
    assert make_data.from_openml() == raw

    def offline(**_):
        raise URLError("no route to host")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", offline)
    with pytest.raises(Refused, match=r"OpenML cannot be reached .+no route.+name a folder"):
        make_data.from_openml()


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


# The first and last digits of the published files, known to everybody.
FIRST, LAST, TEST = [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], [3, 5, 6, 8], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@pytest.fixture(scope="module")
def mnist() -> data.Splits:
    return data.mnist()


def test_mnist_is_whole_and_as_published(mnist):
    assert [(*p.x.shape, *p.label.shape) for p in mnist] == [(n, 784, n) for n in (55_000, 5_000, 10_000)]
    assert all(p.x.dtype == torch.float32 and p.label.dtype == torch.int64 for p in mnist)
    assert mnist.test.label[:10].tolist() == TEST
    whole = data._idx("mnist/train-labels-idx1-ubyte.xz")
    assert whole[:10].tolist() == FIRST and whole[-4:].tolist() == LAST
    images = data._idx("mnist/train-images-idx3-ubyte.xz").reshape(60_000, 784)
    order = torch.randperm(60_000, generator=rng())
    assert torch.equal(torch.cat([mnist.train.x, mnist.validation.x]), images[order].float())
    assert torch.equal(torch.cat([mnist.train.label, mnist.validation.label]), whole[order].long())
    levels = torch.cat([p.x for p in mnist[:2]])  # mean and deviation that everybody normalises by
    assert levels.double().mean().item() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert levels.double().std().item() / 255 == pytest.approx(0.3081, abs=5e-5)


def test_small_mnist_has_exact_means_and_other_seeds_other_splits(mnist):
    for side, b in ((14, 2), (7, 4)):
        small = data.mnist(side)
        for part, full in zip(small[1:], mnist[1:], strict=True):
            exact = torch.nn.functional.avg_pool2d(full.x.double().unflatten(1, (1, 28, 28)), b).flatten(1)
            assert torch.equal(part.x.double(), exact) and torch.equal(part.label, full.label)
            assert torch.equal(part.x * b**2, (part.x * b**2).round())
    other = data.mnist(7, seed=1)
    assert torch.equal(other.test.x, small.test.x) and not torch.equal(other.validation.x, small.validation.x)


def test_dequantisation_is_fresh_and_keeps_every_level():
    for levels in (2, 17, 256, 1021, 4081):
        k = torch.arange(levels).repeat(200_000 // levels, 1)
        g = rng()
        one, two = (data.dequantise(k, levels, g) for _ in range(2))
        assert torch.equal((one * levels).floor().long(), k) and one.dtype == torch.float32 and one.max() < 1
        assert not torch.equal(one, two) and torch.equal(one, data.dequantise(k, levels, rng()))
        u = (one.double() * levels - k).ravel()
        assert abs(u.mean() - 0.5) < STANDARD_ERRORS / math.sqrt(12 * len(u)) + 1e-3
    assert data.dequantise(k.double(), 4081, rng()).dtype == torch.float64


def test_logit_is_undone_and_knows_its_determinant():
    x = torch.rand(5, 4, generator=rng(), dtype=torch.float64)
    x[0] = torch.tensor([0.0, 1.0, 0.5, 1 - 1e-9])
    for alpha in (1e-6, 0.05):
        y, log_det = data.logit(x, alpha)
        assert torch.allclose(data.unlogit(y, alpha), x, atol=1e-14) and y.isfinite().all()
        for row, found in zip(x, log_det, strict=True):
            jacobian = torch.autograd.functional.jacobian(lambda v: data.logit(v[None], alpha).y[0], row)  # noqa: B023
            assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(found.item(), rel=1e-12)
    assert data.logit(x, 0.05).y[0, :3].tolist() == pytest.approx([math.log(1 / 19), math.log(19), 0])
    pixels = data.dequantise(torch.arange(256)[None], 256, rng())  # float32, to the ends of [0, 1)
    assert torch.allclose(data.unlogit(data.logit(pixels).y), pixels, atol=1e-6)


@pytest.mark.parametrize(("name", "call"), [
    ("side", lambda k: data.mnist(8)), ("side", lambda k: data.mnist(14.0)),
    ("seed", lambda k: data.mnist(seed=-1)),
    ("k", lambda k: data.dequantise(k, 3, rng())),
    ("levels", lambda k: data.dequantise(k, 1, rng())),
    ("generator", lambda k: data.dequantise(k, 4, None)),
    ("x", lambda k: data.logit(k.double())),
    ("x", lambda k: data.logit(k / 4 * math.nan)),
    ("alpha", lambda k: data.logit(k / 4, 0.0)),
    ("y", lambda k: data.unlogit(k)),
    ("label", lambda k: data._block_means(torch.zeros(2, 28, 28), torch.tensor([3, 10]), 14)),
])
def test_bad_levels_are_refused(name, call):
    with pytest.raises(ValueError, match=rf"^{name}: got .+; need"):
        call(torch.arange(4)[None])


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


def test_a_library_installed_without_its_repository_says_where_data_come_from(tmp_path):
    """As `pip install .` leaves it: a copy of lib/ elsewhere."""
    shutil.copytree(ROOT / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    ask = "from lib import data; print(data.FOLDER); print(len(data.digits().train.x))"
    bare = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "FIVE_ROADS_DATA")}
    run = partial(subprocess.run, [sys.executable, "-c", ask], cwd=tmp_path, capture_output=True, text=True)
    refused = run(env=bare)
    assert "data/digits.npz is missing; need the bundled data: the repository's folder data/, named by FIVE_" in (
        refused.stderr) and "`pip install -e .` in a clone" in refused.stderr
    assert run(env=bare | {"FIVE_ROADS_DATA": str(ROOT / "data")}).stdout.endswith("\n1197\n")


def test_damaged_or_missing_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "data.dvc").touch()
    tmp_path = tmp_path / "data"
    tmp_path.mkdir()
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
    shutil.copytree(ROOT / "data" / "mnist", tmp_path / "mnist")
    file = tmp_path / "mnist" / "t10k-images-idx3-ubyte.xz"
    damaged = bytearray(file.read_bytes())
    damaged[1_000_000] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"^data/mnist/t10k-images-idx3-ubyte.xz: got SHA.+; need d815adbb3188"):
        data.mnist()
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"data/mnist/t10k-images-idx3-ubyte.xz is missing; need the bundled"):
        data.mnist()


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


def test_openml_offline_and_served(monkeypatch):
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
    with pytest.raises(ValueError, match=r"^name: got 'imagenet'; need one of 'mnist'"):
        data.openml("imagenet")

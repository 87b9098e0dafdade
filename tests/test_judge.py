"""The judge says what we see: worse pictures are farther, and real ones set the floor."""
from __future__ import annotations

import math

import pytest
import torch
from draws import rng
from scipy.ndimage import gaussian_filter

from lib import data, judge, metrics

N = 1500


@pytest.fixture(scope="module")
def pictures() -> dict[str, torch.Tensor]:
    """Three thousand test pictures in two halves, their labels, and as many of the training set."""
    mnist = data.mnist()
    one, other = (mnist.test.x[:2 * N] / 255).split(N)
    return {"one": one, "other": other, "label": mnist.test.label[:N], "train": mnist.train.x[:4 * N] / 255}


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return metrics.frechet_distance(judge.view(x).features, judge.view(y).features)


def test_the_judge_is_good_enough():
    test = data.mnist().test
    assert (judge.view(test.x / 255).label == test.label).double().mean() >= 0.992


def test_the_judge_reads_digits(pictures):
    assert judge.WEIGHTS.stat().st_size < 1_000_000
    seen = judge.view(pictures["one"])
    error = (seen.label != pictures["label"]).double().mean().item()  # the first half of the test set is the harder
    assert error < 0.015 and seen.features.shape == (N, 64) and seen.features.min() >= 0
    assert torch.equal(judge.load()(pictures["one"])[:, :10].argmax(1), seen.label)
    assert (judge.load()(pictures["one"]).argmax(1) == 10).double().mean() < 0.005  # of no digit


@pytest.mark.parametrize("harm", ["blur", "noise", "dropped classes", "copies"])
def test_the_distance_grows_with_harm(harm, pictures):
    x, label, other = pictures["one"], pictures["label"], pictures["other"]
    draw = torch.randn(x.shape, generator=rng())
    harmed = {
        "blur": lambda s: torch.from_numpy(gaussian_filter(x.reshape(-1, 28, 28), 0.7 * s, axes=(1, 2))).flatten(1),
        "noise": lambda s: x + 0.15 * s * draw,
        "dropped classes": lambda s: x[label >= 2 * s],
        "copies": lambda s: x[:400 // 4**s].repeat(4**s, 1),
    }[harm]
    found = [distance(x, other), *(distance(harmed(s), other) for s in (1, 2, 3))]
    assert found == sorted(found) and found[1] > 1.05 * found[0] and found[3] > 2 * found[1], found


def test_noise_is_worse_than_a_digit(pictures):
    """Of kinds that the training has not seen, too: a digit repeated lacks nine classes of ten, and still is nearer."""
    noise, label, other = torch.rand((N, 784), generator=rng()), pictures["label"], pictures["other"]
    worst = max(distance(pictures["one"][label == digit][:1].expand(N, -1), other) for digit in range(10))
    assert distance(noise, other) > 1.2 * worst and distance((noise < 0.2).float(), other) > 1.2 * worst
    real, heap = judge.view(other).features, pictures["one"][label == 7][:100]
    for bad in (noise, (noise < 0.2).float(), noise**4, torch.zeros_like(noise)):
        assert metrics.precision_recall(judge.view(bad).features, real).precision < 0.05
    assert metrics.precision_recall(judge.view(heap).features, real).precision > 0.7


def test_a_report_has_its_floor(pictures):
    x, noise = pictures["one"], torch.rand((N, 784), generator=rng())
    one, other, train, bad = (judge.view(z) for z in (x, pictures["other"], pictures["train"], noise))
    fair, copied = judge.report(one, other, train), judge.report(judge.View(*(v[:N] for v in train)), other, train)
    assert fair.frechet == pytest.approx(distance(x, pictures["other"])) and fair.classes == 10 and fair.kl < 0.02
    assert fair.copies < 0.04 and copied.copies == 1
    assert min(fair.precision, fair.recall, fair.coverage) > 0.85 and fair.density == pytest.approx(1, abs=0.15)
    wrong = judge.report(bad, other, train)
    assert wrong.precision < 0.05 and wrong.coverage < 0.05 and wrong.kl > 0.5 and wrong.copies < 0.01
    few = judge.report(judge.View(*(v[pictures["label"] < 3] for v in one)), other, train)
    assert few.classes <= 6 and few.kl > 0.9 * math.log(10 / 3) and few.coverage < 0.5 < few.precision


def test_stacked_modes(pictures):
    three = torch.stack([pictures["one"][pictures["label"] == d][:1] for d in (0, 4, 7)]).reshape(1, -1)
    assert judge.stacked(three).tolist() == [47]
    assert judge.stacked(three.reshape(3, 784)[[2, 1, 0]].reshape(1, -1)).tolist() == [740]
    modes = metrics.histogram(judge.stacked(pictures["train"].reshape(-1, 3 * 784)), 1000)
    assert 800 < modes.found <= 1000 and 0 < modes.kl < 1  # 2,000 draws from 1,000 modes leave 1 − e⁻² of them


def test_values_outside_are_cut_and_bad_input_is_refused(pictures, tmp_path):
    x = pictures["one"][:50]
    assert torch.equal(judge.view(3 * x - 1).features, judge.view((3 * x - 1).clamp(0, 1)).features)
    assert judge.view(x.double()).features.dtype == torch.float32
    for name, call in (("x", lambda: judge.view(x[:, :64])), ("x", lambda: judge.view(x.to(torch.uint8))),
                       ("x", lambda: judge.view(x * math.nan)), ("x", lambda: judge.stacked(x)),
                       ("neighbours", lambda: judge.report(*[judge.view(x)] * 3, neighbours=0)),
                       ("k", lambda: judge.report(*[judge.view(x)] * 3, k=50))):
        with pytest.raises(ValueError, match=rf"^{name}: got .+; need"):
            call()
    with pytest.raises(FileNotFoundError, match="train the judge"):
        judge.load(tmp_path / "judge.safetensors")

"""Training: nothing lost, nothing mixed up, nothing silent."""
from __future__ import annotations

import math
import os

import pytest
import torch
from draws import rng
from torch import nn
from tqdm import tqdm

import lib.fit
from lib.base import stage
from lib.fit import constant, cosine, fit
from lib.nets import MLP

STEPS = 23


def regression(model, g):
    x = torch.randn(16, 2, generator=g)
    t = torch.rand(16, generator=g)
    error = (model(t, x) - x.flip(1) * t[:, None]).square().mean()
    return {"loss": error, "mean": x.mean()}


class Killed(Exception):
    pass


def killed_at(step, loss=regression):
    """The same loss, but the process dies in the given call of a model in training."""
    calls = iter(range(10**6))

    def fatal(model, g):
        if model.training and next(calls) == step:
            raise Killed
        return loss(model, g)

    return fatal


def start(seed=0):
    return MLP(2, generator=rng(seed), width=16, depth=2)


def train(loss=regression, folder=None, *, seed=0, model=None, **settings):
    """One training: (fit, last weights, state of the generator)."""
    model, g = model or start(), rng(seed)
    found = fit(model, loss, settings.pop("steps", STEPS), generator=g, checkpoints=folder, **settings)
    return found, model.state_dict(), g.get_state()


def assert_same_bits(one, two):
    for a, b in ((one[0].model.state_dict(), two[0].model.state_dict()), (one[1], two[1]),
                 (one[0].history, two[0].history)):
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert torch.equal(one[2], two[2])


@pytest.fixture
def every_step(monkeypatch):
    monkeypatch.setattr(lib.fit, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)


@pytest.mark.parametrize("step", [1, 2, 11, STEPS - 1])
@pytest.mark.parametrize("settings", [{}, {"ema": None, "clip": 0.1, "schedule": constant}], ids=["plain", "other"])
def test_resumes_to_the_same_bits(step, settings, tmp_path, every_step):
    whole = train(**settings)
    with pytest.raises(Killed):
        train(killed_at(step), tmp_path, **settings)
    assert len(list(tmp_path.iterdir())) == 1
    calls = []

    def counted(model, g):
        calls.append(model.training)
        return regression(model, g)

    assert_same_bits(train(counted, tmp_path, **settings), whole)
    assert sum(calls) == STEPS - step  # the first steps came from the checkpoint


def test_without_time_for_a_checkpoint_it_starts_over(tmp_path):
    with pytest.raises(Killed):
        train(killed_at(11), tmp_path)
    assert not list(tmp_path.iterdir())
    assert_same_bits(train(folder=tmp_path), train())


def test_completed_training_is_not_repeated(tmp_path):
    whole = train(folder=tmp_path)
    assert_same_bits(train(killed_at(0), tmp_path), whole)


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"lr": 2e-3}, {"ema": 0.9}, {"ema": None}, {"clip": 1.0}, {"steps": STEPS + 1}, {"name": "other"},
    {"schedule": constant}, {"schedule": lambda u: 1 - u}, {"model": 1},
    {"loss": lambda model, g: {k: 2 * v for k, v in regression(model, g).items()}},
    {"loss": lambda model, g: regression(model, g)["loss"]},
], ids=lambda change: next(iter(change)))
def test_another_training_never_meets_the_checkpoint(change, tmp_path):
    """Here `schedule` meets two functions of one name, and a loss that differs where only it does."""
    train(folder=tmp_path, schedule=lambda u: 1 - u / 2)
    settings = {"loss": regression, "schedule": lambda u: 1 - u / 2} | change
    model = settings.pop("model", 0)
    fresh = train(model=start(model), **settings)
    assert_same_bits(train(folder=tmp_path, model=start(model), **settings), fresh)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_seed_that_the_loss_never_uses_still_tells_trainings_apart(tmp_path):
    plain = lambda model, g: model(0.5, torch.ones(1, 2)).square().sum()
    for seed in (0, 1):
        assert_same_bits(train(plain, tmp_path, seed=seed, model=start()), train(plain, seed=seed, model=start()))


def test_losses_that_agree_at_a_zero_start_are_told_apart(tmp_path):
    def penalised(weight):
        def loss(model, g):
            x = torch.randn(8, 2, generator=g)
            return (model(0.5, x) - x).square().mean() + weight * model(0.5, x).square().mean()
        return loss

    zero = lambda: MLP(2, generator=rng(), width=8, zero=True)
    for weight in (0.0, 1.0, 2.0):
        assert_same_bits(train(penalised(weight), tmp_path, model=zero()), train(penalised(weight), model=zero()))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_half_written_checkpoint_is_never_read(tmp_path, monkeypatch, every_step):
    """Killed before the bytes are on the disk, and again before they have their name."""
    whole = train()
    for function in ("fsync", "replace"):
        calls, real = iter(range(10**6)), getattr(os, function)

        def dies(*args, calls=calls, real=real):
            if next(calls) == 8:
                raise Killed
            return real(*args)

        monkeypatch.setattr(os, function, dies)
        with pytest.raises(Killed):
            train(folder=tmp_path)
        assert {f.suffix for f in tmp_path.iterdir()} == {".pt", ".part"}
        monkeypatch.setattr(os, function, real)
    assert_same_bits(train(folder=tmp_path), whole)


@pytest.mark.parametrize("damage", [
    lambda held: b"", lambda held: held[:20], lambda held: held[:-1], lambda held: held + b"x",
    lambda held: held[:len(held) // 2] + bytes([held[len(held) // 2] ^ 1]) + held[len(held) // 2 + 1:],
    lambda held: bytes([held[0] ^ 128]) + held[1:],
], ids=["empty", "torn within its hash", "torn", "longer", "a bit flipped", "a bit of its hash flipped"])
def test_a_damaged_checkpoint_is_named_and_set_aside(damage, tmp_path, every_step):
    with pytest.raises(Killed):
        train(killed_at(11), tmp_path)
    file, = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=rf"checkpoint .*{file.name} is damaged: .* {file.stem}.damaged, .* from zero"):
        found = train(folder=tmp_path)
    assert_same_bits(found, train())
    assert {f.suffix for f in tmp_path.iterdir()} == {".pt", ".damaged"}
    assert_same_bits(train(killed_at(0), tmp_path), found)


def test_inside_the_pipeline_the_warning_goes_where_progress_goes(tmp_path, monkeypatch, recwarn):
    train(folder=tmp_path)
    next(tmp_path.iterdir()).write_bytes(b"")
    monkeypatch.setenv(stage.PIPE, str(tmp_path / "fifo"))
    monkeypatch.setattr(lib.fit, "progress", lambda **settings: tqdm(disable=True))
    train(folder=tmp_path)
    assert "is damaged" in (tmp_path / "fifo").read_text(encoding="utf-8") and not recwarn.list


def test_the_pipeline_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(lib.fit.CHECKPOINTS, str(tmp_path / "deep" / "folder"))
    whole = train()
    assert len(list((tmp_path / "deep" / "folder").glob("*.pt"))) == 1
    assert_same_bits(train(killed_at(0)), whole)


def test_the_average_and_the_schedule(generator):
    """One weight and the loss 'minus the weight': Adam's steps are +lr, so all that comes back is known."""
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
            self.register_buffer("calls", torch.tensor(0))

        def forward(self):
            self.calls += 1
            return self.w

    def descend(steps, **settings):
        model = One()
        found = fit(model, lambda m, g: -m().sum(), steps, generator=generator, lr=0.1, **settings)
        return found, model.w.item()

    weights = [0.1 * n for n in range(1, 6)]
    found, last = descend(5, schedule=constant, ema=0.25)  # decays 1/10, 2/11, and from the third step 1/4
    average = 0.0
    for decay, w in zip((1 / 10, 2 / 11, 1 / 4, 1 / 4, 1 / 4), weights, strict=True):
        average = decay * average + (1 - decay) * w
    assert last == pytest.approx(0.5, rel=1e-6) and found.model.w.item() == pytest.approx(average, rel=1e-6)
    assert not found.model.w.requires_grad and not found.model.training and found.model.calls == 5
    assert found.history["loss"].tolist() == pytest.approx([-0.1 * n for n in range(5)], abs=1e-6)

    found, last = descend(30, schedule=constant)  # step k has C(k + 9, 8) of C(39, 9) shares: on a ramp 9/10 of its end
    assert found.model.w.item() == pytest.approx(0.9 * last, rel=1e-6)

    found, last = descend(4, ema=None)
    assert found.model.w.item() == last == pytest.approx(0.1 * sum(cosine(k / 4) for k in range(4)), rel=1e-6)
    assert (cosine(0), cosine(0.5), cosine(1)) == pytest.approx((1, 0.5, 0))
    assert found.model.w.requires_grad


def test_clipping_bounds_what_the_optimiser_sees(monkeypatch):
    norms = []

    class Watch(torch.optim.Adam):
        def step(self, *args, **kwargs):
            norms.append(nn.utils.get_total_norm([p.grad for g in self.param_groups for p in g["params"]]).item())
            return super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "Adam", Watch)
    loud = lambda model, g: 1e3 * regression(model, g)["loss"]
    train(loud, clip=0.01)
    assert norms == pytest.approx([0.01] * STEPS, rel=1e-4)
    norms.clear()
    train(loud)
    assert min(norms) > 1


def test_training_learns_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    history = train(steps=300, lr=1e-2)[0].history
    assert torch.equal(torch.get_rng_state(), before)
    assert history["loss"].shape == history["mean"].shape == (300,)
    assert history["loss"][-20:].mean() < 0.2 * history["loss"][:20].mean()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_loss_stops_with_what_was_seen(bad, tmp_path, every_step):
    steps = iter(range(STEPS))

    def loss(model, g):
        x, t = torch.full((4, 2), -3.5), torch.tensor([0.25, 0.5, 0.5, 0.75])
        broken = model.training and next(steps) == 6
        return model(t, x).square().sum() * (bad if broken else 1.0)

    words = rf"^run: loss is {bad} at step 6 of {STEPS}; .+ with t from 0.25 to 0.75 and largest \|x\| 3.5$"
    with pytest.raises(FloatingPointError, match=words):
        train(loss, tmp_path, name="run")


@pytest.mark.parametrize(("call", "words"), [
    (lambda m, x: m(0.5, x), r"t from 0.5 to 0.5 and largest \|x\| 2$"),
    (lambda m, x: torch.func.jvp(lambda y: m(0.5, y), (x,), (x,))[0], "no numbers$"),
    (lambda m, x: m.last.weight, "no numbers$"),
])
def test_the_report_survives_any_way_of_calling_the_model(call, words):
    with pytest.raises(FloatingPointError, match=words):
        train(lambda m, g: call(m, torch.full((3, 2), 2.0)).sum() * math.nan)


@pytest.mark.parametrize("loss", [
    lambda m, g: 1.0, lambda m, g: m(0.5, torch.zeros(3, 2)), lambda m, g: {"other": m.last.bias.sum()},
    lambda m, g: {"loss": m.last.bias.sum(), "extra": 1.0},
])
def test_losses_that_are_no_scalars_are_refused(loss):
    with pytest.raises(ValueError, match=r"^loss: got .+; need a scalar tensor"):
        train(loss)

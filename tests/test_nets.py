"""Networks: seeded, shaped, conditioned on time and class as documented."""
from __future__ import annotations

import math

import pytest
import torch
from draws import rng
from safetensors.torch import save_file

from lib.nets import MLP, FourierFeatures, ResidualMLP, TimeFeatures, UNet, load, save, seeded

BUILD = {
    "MLP": lambda g, **k: MLP(16, generator=g, width=24, depth=2, **k),
    "ResidualMLP": lambda g, **k: ResidualMLP(16, generator=g, width=24, depth=2, **k),
    "UNet": lambda g, **k: UNet(4, (8, 16), generator=g, **k),
}
every_network = pytest.mark.parametrize("build", BUILD.values(), ids=BUILD)


def awake(net):
    """A network whose last layer is not zero."""
    torch.nn.init.normal_(net.last.weight, generator=rng(9))
    return net


@every_network
def test_a_seed_fixes_the_weights_and_the_global_state_is_untouched(build):
    before = torch.get_rng_state()
    one, same, other = (build(rng(s)).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["first.weight"], other["first.weight"])
    g = rng()
    assert not torch.equal(build(g).first.weight, build(g).first.weight)  # the generator moves on


def test_the_global_state_comes_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded(rng()):
        torch.rand(3)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), before)


@every_network
def test_a_number_a_scalar_and_a_batch_of_times_agree(build):
    net, x = awake(build(rng())), torch.randn(5, 16, generator=rng(1))
    out = net(0.3, x)
    assert out.shape == (5, 16)
    for t in (torch.tensor(0.3), torch.full((5,), 0.3), torch.tensor(0.3, dtype=torch.float64)):
        assert torch.allclose(net(t, x), out, atol=1e-6)
    t = torch.linspace(0, 1, 5)
    rows = torch.cat([net(t[i], x[i:i + 1]) for i in range(5)])
    assert torch.allclose(net(t, x), rows, atol=1e-5) and not torch.allclose(net(t, x), out, atol=1e-3)


def test_a_residual_network_by_hand():
    net, x, t = ResidualMLP(3, generator=rng(), out=2, width=8, depth=2, classes=4), torch.randn(5, 3), torch.rand(5)
    label, silu = torch.arange(5) % 4, torch.nn.functional.silu
    h = net.first(torch.cat([x, net.time(t, x)], 1)) + net.embedding.weight[label]
    straight = net.last(silu(h))
    for i in (0, 1):
        centred = h - h.mean(1, keepdim=True)
        normal = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        h = h + silu(normal + net.time(t, x) @ net.shift[i].weight.T) @ net.hidden[i].weight.T + net.hidden[i].bias
    assert len(net.hidden) == 2 and torch.allclose(net(t, x, label), net.last(silu(h)), atol=1e-6)
    for layer in net.hidden:  # without its blocks the sum passes as it is
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    assert torch.allclose(net(t, x, label), straight, atol=1e-6)
    with pytest.raises(ValueError, match=r"^depth: got 0; need"):
        ResidualMLP(3, generator=rng(), depth=0)


def test_time_features_tell_the_ends_apart_and_stay_bounded():
    f = TimeFeatures(6)(torch.linspace(0, 1, 101), torch.zeros(101, 2))
    assert f.shape == (101, 13) and f.abs().max() <= 1
    assert (f[0] - f[-1]).abs().max() > 1
    exact = [0.25, *(math.cos(math.pi * k / 4) for k in range(1, 7)), *(math.sin(math.pi * k / 4) for k in range(1, 7))]
    assert f[25].tolist() == pytest.approx(exact, abs=1e-6)


@every_network
def test_classes_condition_the_field(build):
    net, x = awake(build(rng(), classes=3)), torch.randn(1, 16, generator=rng(1)).expand(3, 16)
    out = net(0.5, x, torch.arange(3))
    assert (out[0] - out[1]).abs().max() > 1e-3 and (out[1] - out[2]).abs().max() > 1e-3
    assert torch.allclose(net(0.5, x, torch.tensor([2, 2, 2])), out[2].expand(3, 16), atol=1e-6)
    for label in (None, torch.zeros(2).long(), torch.zeros(3), torch.tensor([0, 1, 3]), torch.tensor([-1, 0, 0])):
        with pytest.raises(ValueError, match=r"^label: got .+; need"):
            net(0.5, x, label)
    with pytest.raises(ValueError, match=r"^label: got labels; need"):
        build(rng())(0.5, x, torch.arange(3))


def test_zero_start_and_sizes():
    x = torch.randn(4, 6, generator=rng())
    assert MLP(6, generator=rng(), zero=True)(0.1, x).abs().max() == 0 < MLP(6, generator=rng())(0.1, x).abs().max()
    assert UNet(4, generator=rng())(0.1, torch.ones(2, 16)).abs().max() == 0
    assert MLP(6, generator=rng(), out=3)(0.1, x).shape == (4, 3)
    deep = MLP(6, generator=rng(), width=10, depth=4)
    assert sum(p.numel() for p in deep.parameters()) == (6 + 13 + 1) * 10 + 3 * 110 + 11 * 6


def normalised(h):
    """Eight groups of channels, each of mean 0 and variance 1 in every picture."""
    groups = h.reshape(len(h), 8, -1)
    centred = groups - groups.mean(2, keepdim=True)
    return (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(h.shape)


def test_a_unet_by_hand():
    """Down once and up again, with what passed at full size added; a block at each width and two at the last."""
    net = awake(UNet(4, (8, 16), generator=rng(), depth=2, classes=3)).double()
    torch.nn.init.normal_(net.place, generator=rng(8))
    x, t = torch.randn(3, 16, generator=rng(1)).double(), torch.rand(3, generator=rng(2)).double()
    label = torch.arange(3)
    c, silu = net.time(t, x) + net.embedding.weight[label], torch.nn.functional.silu

    def block(b, h):
        r = b.convolution[0](silu(normalised(h))) + (c @ b.shift.weight.T + b.shift.bias)[..., None, None]
        return h + b.convolution[1](silu(normalised(r)))

    passed = block(net.before[0], net.first(x.reshape(3, 1, 4, 4)) + net.place)
    h = block(net.middle[1], block(net.middle[0], net.down[0](passed)))
    assert h.shape == (3, 16, 2, 2) and len(net.before) == len(net.after) == 1
    mixed = torch.einsum("ij,bjhw->bihw", net.up[0].weight[:, :, 0, 0], h) + net.up[0].bias[:, None, None]
    h = passed + mixed.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = net.last(silu(block(net.after[0], h))).flatten(1)
    assert torch.allclose(net(t, x, label), expected, atol=1e-10)


@pytest.mark.parametrize(("side", "widths", "patch"), [(28, (8, 16, 24), 1), (28, (8, 16), 2), (12, (16,), 4)])
def test_a_unet_leaves_pixels_in_their_place(side, widths, patch):
    """With no convolution but unit ones at its ends all that is left of it is silu, pixel by pixel."""
    net, x = UNet(side, widths, patch=patch, generator=rng()), torch.randn(3, side**2, generator=rng(1))
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        torch.nn.init.dirac_(net.first.weight)
        torch.nn.init.dirac_(net.last.weight)
        assert torch.allclose(net(0.4, x), torch.nn.functional.silu(x), atol=1e-6)


def test_a_unet_says_which_sizes_it_can_have():
    for name, size in (("widths", {"widths": (8, 12)}), ("widths", {"widths": ()}), ("side", {"side": 6, "patch": 2}),
                       ("depth", {"depth": 0}), ("patch", {"patch": 1.5}), ("side", {"widths": (8, 8, 8)})):
        with pytest.raises(ValueError, match=rf"^{name}: got .+; need"):
            UNet(**{"side": 10, "generator": rng()} | size)


@every_network
def test_gradients_are_finite_and_fields_smooth(build):
    net, x = awake(build(rng())), torch.randn(5, 16, generator=rng(1))
    net(torch.rand(5, generator=rng(2)), x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in net.parameters())
    tangent = torch.func.jvp(lambda t: net(t, x), (torch.tensor(0.5),), (torch.tensor(1.0),))[1]
    assert tangent.isfinite().all() and tangent.abs().max() > 0
    assert net.double()(0.5, x.double()).dtype == torch.float64


def test_fourier_features_are_waves_of_the_drawn_frequencies_and_their_slopes(float64):
    x, direction = torch.randn(5, 2, generator=rng()), torch.randn(5, 2, generator=rng(1))
    with seeded(rng(2)):
        features = FourierFeatures(2, 3, 0.5)
    with seeded(rng(2)):
        waves = 0.5 * torch.randn(2, 3)  # periods a unit
    phase = 2 * math.pi * torch.einsum("nd,dk->nk", x, waves)
    found, slope = torch.func.jvp(features, (x,), (direction,))
    torch.testing.assert_close(found, torch.cat([x, phase.cos(), phase.sin()], 1))
    rate = 2 * math.pi * torch.einsum("nd,dk->nk", direction, waves)
    torch.testing.assert_close(slope, torch.cat([direction, -rate * phase.sin(), rate * phase.cos()], 1))


@pytest.mark.parametrize("kind", [MLP, ResidualMLP])
def test_a_network_sees_the_fourier_features_and_keeps_them_in_its_file(kind, tmp_path, float64):
    net = kind(2, generator=rng(), width=8, depth=2, fourier=3, scale=0.5)
    net.first.weight.data[:, :2] = 0.0  # x itself unseen: what is left has the periods of the features
    net.features.omega.copy_(2 * math.pi * torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]))
    x = torch.randn(4, 2, generator=rng(1))
    torch.testing.assert_close(net(0.3, x), net(0.3, x + torch.tensor([3.0, -1.0])))
    assert (net(0.3, x) - net(0.3, x + 0.5)).abs().min() > 1e-4
    plain = kind(2, generator=rng(), width=8, depth=2)
    assert not any("features" in key for key in plain.state_dict())
    save(tmp_path / "net.safetensors", net, dim=2, width=8, depth=2, fourier=3, scale=0.5)
    assert torch.equal(load(tmp_path / "net.safetensors")(0.3, x), net(0.3, x))


@pytest.mark.parametrize("metadata", [None, {"class": "MLP"}, {"class": "Judge", "arguments": "{}"}])
def test_weights_that_were_saved_by_others_are_refused(metadata, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({"w": torch.zeros(2)}, file, metadata)
    with pytest.raises(ValueError, match=r"^file: got .*weights.safetensors of class .+; need a network that nets"):
        load(file)


@every_network
def test_the_order_of_others_is_named(build):
    with pytest.raises(ValueError, match=r"^t: got shape \(3, 16\); need .*the order is f\(t, x\)"):
        build(rng())(torch.zeros(3, 16), 0.5)

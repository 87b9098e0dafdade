"""The one reduction against brute force in extended precision: accuracy, gradients, memory, on every backend.

Without a GPU the Triton kernels run in Triton's interpreter, and the real compiler is asked whether it takes them.
"""
from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when lib.kernels.launch is first imported

from lib.kernels import GaussianPosterior, attention, gaussian_posterior, merge, prepare, reduce, reduction, terms
from lib.kernels import cloud as clouds
from lib.kernels.sharded import streamed_posterior

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("definition", "cpu", "blocks", "triton")
FLOATS = (torch.float32, torch.float64)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=["float32", "float64"])


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Every uninitialised tensor starts as NaN, so an entry that nobody writes or someone reads too early shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of "blocks" far smaller than the problem."""
    monkeypatch.setattr(attention, "ROWS", 7)
    monkeypatch.setattr(attention, "COLUMNS", 50)


def device(backend: str) -> str:
    return "cpu" if backend == "cpu" else DEVICE


def brute_force(x: Tensor, y: Tensor, sigma: float | Tensor, log_w: Tensor | None = None,
                values: Tensor | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log_z, mean and spread from differences, query by query, in 80-bit arithmetic."""
    x, y = (t.detach().cpu().double().numpy().astype(np.longdouble) for t in (x, y))
    v = y if values is None else values.detach().cpu().double().numpy().astype(np.longdouble)
    w = np.full(len(y), -np.log(np.longdouble(len(y)))) if log_w is None else log_w.detach().cpu().double().numpy()
    s = np.broadcast_to(torch.as_tensor(sigma).detach().cpu().double().numpy(), len(x)).astype(np.longdouble)
    rows = []
    for query, noise in zip(x, s, strict=True):
        logit = w - ((query - y) ** 2).sum(1) / (2 * noise**2)
        p = np.exp(logit - logit.max())
        mass = p.sum()
        mean = (p[:, None] * v).sum(0) / mass
        rows.append((logit.max() + np.log(mass), mean, (p * ((v - mean) ** 2).sum(1)).sum() / mass))
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def excess(found: GaussianPosterior, expected: tuple[np.ndarray, ...], sigma: float) -> dict[str, float]:
    """Errors over what is allowed: mean 1e-3·σ, log_z 1e-4 nats, spread 1e-3·σ² + 0.1 %, and 2 ulp of the result."""
    dtype = np.float32 if found.mean.dtype == torch.float32 else np.float64
    log_z, mean, spread = (t.detach().cpu().double().numpy() for t in found)
    ulp = lambda a: 2 * np.spacing(np.abs(a).astype(dtype)).astype(float)
    norm = lambda a: np.sqrt((np.asarray(a, float) ** 2).sum(1))
    return {"log_z": (np.abs(log_z - expected[0]) / (1e-4 + ulp(expected[0]))).max(),
            "mean": (norm(mean - expected[1]) / (1e-3 * sigma + norm(ulp(expected[1])))).max(),
            "spread": (np.abs(spread - expected[2]) / (1e-3 * sigma**2 + 1e-3 * expected[2])).max(),
            "negative spread": float((spread < 0).any()) * 2}


def cloud(generator: torch.Generator, n: int, d: int, kind: str) -> Tensor:
    y = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if kind == "duplicates":
        y[n // 3: 2 * (n // 3)] = y[:n // 3]
    return y[:1] if kind == "one point" else y


@every_backend
@every_dtype
@pytest.mark.parametrize("d", [1, 2, 3, 8, 64, 784])
def test_accuracy_down_to_a_thousandth_of_the_scale(backend, dtype, d, generator):
    if backend == "triton" and d > terms.TRITON_COLUMNS:
        pytest.skip("wider than the kernels")
    worst: dict[str, float] = {}
    n, b = (90, 5) if d == 784 else (150, 6)
    for sigma, offset, kind in itertools.product((1, 1e-1, 1e-2, 1e-3), (0, 10), ("cloud", "duplicates", "one point")):
        y = (cloud(generator, n, d, kind) + offset).to(dtype)
        noise = torch.randn(b, d, generator=generator, dtype=torch.float64)
        seen = y[torch.arange(b) % len(y)].double() + sigma * noise
        far = offset + torch.tensor([[3.0], [100.0]], dtype=torch.float64).expand(2, d)
        x = torch.cat([seen, far]).to(dtype)
        found = gaussian_posterior(x.to(device(backend)), y.to(device(backend)), sigma, backend=backend)
        for name, value in excess(found, brute_force(x, y, torch.tensor(sigma, dtype=dtype)), sigma).items():
            worst[name] = max(worst.get(name, 0), value)
    assert max(worst.values()) <= 1, worst


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize(("d", "n"), [(2, 20_000), (16, 5_000)])
def test_float32_is_used_where_its_error_bound_holds_and_its_error_is_a_tenth_of_the_tolerance(
        backend, d, n, generator, monkeypatch):
    """The guard must be neither blind (wrong answers) nor shy (no speed)."""
    n = n if backend == "cpu" or DEVICE == "cuda" else n // 10
    taken = []
    enough = terms.products_are_enough
    spy = lambda *a: taken.append(enough(*a)) or taken[-1]
    monkeypatch.setattr(attention, "products_are_enough", spy)
    if backend == "triton":
        from lib.kernels import launch
        monkeypatch.setattr(launch, "products_are_enough", spy)
    y = torch.randn(n, d, generator=generator, dtype=torch.float64).float()
    for sigma in (10.0, 1.0, 0.6, 0.02):
        x = (y[:6].double() + sigma * torch.randn(6, d, generator=generator, dtype=torch.float64)).float()
        found = gaussian_posterior(x.to(device(backend)), y.to(device(backend)), sigma, backend=backend)
        errors = excess(found, brute_force(x, y, torch.tensor(sigma)), sigma)
        assert max(errors.values()) <= 0.5, (sigma, errors)
    if taken:  # explicit differences ask afterwards
        assert taken[0]
        assert not taken[-1]


@every_backend
@every_dtype
def test_noise_weights_and_values(backend, dtype, generator, small_blocks):
    """One σ for each query, infinite ones too; points masked by −inf; values in place of points."""
    at = device(backend)
    x, y = (torch.randn(n, 2, generator=generator, dtype=torch.float64).to(dtype) for n in (9, 130))
    values = torch.randn(130, 3, generator=generator, dtype=torch.float64).to(dtype) + 5
    sigma = torch.logspace(-2, 1, 9, dtype=torch.float64).to(dtype)
    sigma[4] = math.inf
    log_w = torch.randn(130, generator=generator, dtype=torch.float64).to(dtype) * 3
    log_w[::7] = -math.inf
    y[::14] = 1e6 if dtype == torch.float32 else 1e12  # a masked point may lie anywhere
    kept = log_w > -math.inf
    for v in (None, values):
        found = gaussian_posterior(x.to(at), y.to(at), sigma.to(at), log_w=log_w.to(at),
                                   values=None if v is None else v.to(at), backend=backend)
        expected = brute_force(x, y[kept], sigma, log_w[kept], None if v is None else v[kept])
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(got.cpu().numpy(), want.astype(float), **tolerance)
    weights = torch.softmax(log_w, 0)
    blind = gaussian_posterior(x.to(at), y.to(at), math.inf, log_w=log_w.to(at), backend=backend)
    torch.testing.assert_close(blind.mean.cpu(), (weights[kept] @ y[kept]).expand(9, 2), rtol=1e-4, atol=1e-5)


@every_backend
@pytest.mark.parametrize(("b", "n", "d", "v"), [
    (1, 1, 1, None), (1, 63, 2, None), (63, 1, 3, 1), (1000, 63, 2, None), (63, 1025, 3, None), (5, 1000, 8, None),
    (65, 63, 5, 7), (63, 65, 9, None), (3, 1025, 20, None), (129, 130, 33, 17), (2, 100, 2, 40)])
def test_irregular_shapes_and_all_gradients(backend, b, n, d, v, generator, small_blocks):
    """Values and gradients of all outputs by all inputs against autograd of the definition, in float64."""
    at = device(backend)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    inputs = {"x": make(b, d), "y": make(n, d), "sigma": make(b).exp(), "log_w": make(n)}
    if v:
        inputs["values"] = make(n, v)
    probe = (make(b), make(b, v or d), make(b))

    def run(name: str, where: str) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        leaves = {k: t.to(where).requires_grad_() for k, t in inputs.items()}
        out = gaussian_posterior(leaves["x"], leaves["y"], leaves["sigma"], log_w=leaves["log_w"],
                                 values=leaves.get("values"), backend=name)
        loss = sum((o * p.to(where)).sum() for o, p in zip(out, probe, strict=True))
        return [o.detach().cpu() for o in out], tuple(g.cpu() for g in torch.autograd.grad(loss, leaves.values()))

    out, grads = run(backend, at)
    expected, expected_grads = run("definition", "cpu")
    for got, want in zip((*out, *grads), (*expected, *expected_grads), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    if n == 1:
        torch.testing.assert_close(out[1], (inputs.get("values", inputs["y"])).expand(b, -1), rtol=1e-12, atol=1e-12)


@every_backend
@pytest.mark.parametrize(("d", "with_values"), [(2, False), (2, True), (9, False)])
def test_gradients_against_finite_differences(backend, d, with_values, generator, small_blocks):
    at = device(backend)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(at).requires_grad_()
    inputs = [make(2, d), make(4, d), (make(2) / 3).exp().detach().requires_grad_(), make(4)]
    inputs += [make(4, 3)] if with_values else []
    call = lambda x, y, sigma, log_w, values=None: gaussian_posterior(
        x, y, sigma, log_w=log_w, values=values, backend=backend)
    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("backend", ["cpu", "blocks", "triton"])
@pytest.mark.parametrize("d", [2, 12])
@pytest.mark.parametrize("sigma", [2.0, 0.01])
def test_gradients_in_float32(backend, d, sigma, generator):
    """Large and small noise: in float32 where the bound holds, through float64 where not, 0.1 % either way."""
    at = device(backend)
    y = torch.randn(200, d, generator=generator).add(3)
    x = torch.cat([y[:5] + sigma * torch.randn(5, d, generator=generator), torch.full((1, d), 6.0)])  # near and far
    probe = torch.randn(6, d, generator=generator)

    def grads(name: str, where: str) -> list[Tensor]:
        leaves = [t.to(where).requires_grad_() for t in (x, y, torch.full((6,), sigma))]
        out = gaussian_posterior(*leaves, backend=name)
        loss = out.log_z.sum() + (out.mean * probe.to(where)).sum() + out.spread.sum() / d
        return [g.cpu() for g in torch.autograd.grad(loss, leaves)]

    for got, want in zip(grads(backend, at), grads("definition", "cpu"), strict=True):
        assert (got - want).norm() <= 1e-3 * want.norm()


def test_gradients_only_where_asked(generator):
    """A loss of the mean alone, a gradient of x alone: Tweedie's identity, ∂mean/∂x = Cov/σ², trace spread/σ²."""
    y = torch.randn(50, 2, generator=generator, dtype=torch.float64).to(DEVICE)
    for backend in ("cpu", "blocks", "triton"):
        x = torch.zeros(1, 2, dtype=torch.float64, device=DEVICE, requires_grad=True)
        seen = gaussian_posterior(x.to(device(backend)), y.to(device(backend)), 0.7, backend=backend)
        trace = sum(torch.autograd.grad(seen.mean[0, k], x, retain_graph=True)[0][0, k] for k in range(2))
        torch.testing.assert_close(trace.cpu(), seen.spread[0].detach().cpu() / 0.7**2)
        score, = torch.autograd.grad(seen.log_z.sum(), x)
        torch.testing.assert_close(score.cpu(), ((seen.mean - x.to(seen.mean)) / 0.7**2).detach().cpu())


def test_transforms_take_the_definition(generator):
    x, y = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (4, 9))
    tangent = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    call = lambda x: gaussian_posterior(x, y, 0.5).log_z
    _, along = torch.func.jvp(call, (x,), (tangent,))
    score = (gaussian_posterior(x, y, 0.5).mean - x) / 0.25
    torch.testing.assert_close(along, (score * tangent).sum(1))
    stacked = torch.func.vmap(call)(torch.stack([x, x + 1]))
    torch.testing.assert_close(stacked, torch.stack([call(x), call(x + 1)]))
    noise = torch.tensor([0.3, 0.9], dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(lambda s: gaussian_posterior(x, y, s).spread)(noise),
                               torch.stack([gaussian_posterior(x, y, s).spread for s in noise]))
    curvature = torch.func.hessian(lambda q: gaussian_posterior(q[None], y, 0.5).log_z[0])(x[0])
    cov = torch.func.jacrev(lambda q: gaussian_posterior(q[None], y, 0.5).mean[0])(x[0])
    torch.testing.assert_close(curvature, cov / 0.25 - torch.eye(2, dtype=torch.float64) / 0.25)


def test_compilation_does_not_break(generator):
    x, y = (torch.randn(n, 2, generator=generator) for n in (4, 9))
    call = lambda x: gaussian_posterior(2 * x, y, 0.5).mean + 1
    torch.testing.assert_close(torch.compile(call, backend="eager")(x), call(x))


@pytest.mark.parametrize("backend", ["cpu", "blocks", "triton"])
def test_autocast_leaves_the_reduction_alone(backend, generator):
    at = device(backend)
    x, y = (torch.randn(n, 20, generator=generator).to(at).requires_grad_() for n in (5, 40))
    plain = gaussian_posterior(x, y, 2.0, backend=backend)
    with torch.autocast(at, dtype=torch.bfloat16):
        cast = gaussian_posterior(x, y, 2.0, backend=backend)
        grad = torch.autograd.grad(cast.mean.sum(), y)[0]
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))
    torch.testing.assert_close(grad, torch.autograd.grad(plain.mean.sum(), y)[0])


def test_products_that_the_user_made_coarse_are_not_used(generator, monkeypatch):
    """Where matrix products of float32 are TF32 by choice, "blocks" goes to float64."""
    if DEVICE == "cpu":
        pytest.skip("needs a GPU")
    x, y = (torch.randn(n, 100, generator=generator).to(DEVICE) for n in (5, 300))
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    found = gaussian_posterior(x, y, 3.0, backend="blocks")
    assert max(excess(found, brute_force(x, y, 3.0), 3.0).values()) <= 1


def test_private_operators_are_those_this_library_was_written_for():
    """torch promises nothing about them: when this fails, read the new schema and check the gradients again."""
    name = "_scaled_dot_product_flash_attention_for_cpu"
    forward, backward = (str(getattr(torch.ops.aten, n).default._schema) for n in (name, f"{name}_backward"))
    assert forward == (
        f"aten::{name}(Tensor query, Tensor key, Tensor value, float dropout_p=0., bool is_causal=False, *, "
        "Tensor? attn_mask=None, float? scale=None) -> (Tensor output, Tensor logsumexp)")
    assert backward == (
        f"aten::{name}_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor logsumexp, "
        "float dropout_p, bool is_causal, *, Tensor? attn_mask=None, float? scale=None) "
        "-> (Tensor grad_query, Tensor grad_key, Tensor grad_value)")


@every_backend
@every_dtype
@pytest.mark.parametrize("d", [2, 20])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("v", [None, 3])
def test_a_prepared_cloud_gives_the_same_bits(backend, dtype, d, weights, v, generator, small_blocks):
    """Far from the origin, in both precisions, with masked points; twice, for the second call finds what is kept."""
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(device(backend))
    x, y = make(9, d) + 10, make(130, d) + 10
    given = {"log_w": make(130)} if weights else {}
    given |= {} if v is None else {"values": make(130, v) - 5}
    if weights:
        given["log_w"][::7] = -math.inf
    cloud = prepare(y, **given)
    for sigma in (3.0, 1e-3, 3.0, torch.logspace(-3, 1, 9).to(x)):
        plain = gaussian_posterior(x, y, sigma, **given, backend=backend)
        for found in (gaussian_posterior(x, cloud, sigma, backend=backend), reduce(x, cloud, sigma, backend)):
            assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


@every_backend
def test_gradients_of_queries_and_noise_pass_a_cloud(backend, generator):
    at = device(backend)
    x, y = (torch.randn(n, 2, generator=generator, dtype=torch.float64).to(at) for n in (9, 130))
    leaves = x.requires_grad_(), torch.linspace(0.3, 2, 9, dtype=torch.float64, device=at).requires_grad_()
    cloud = prepare(y)
    with torch.no_grad():
        gaussian_posterior(x, cloud, 0.5, backend=backend)  # what is kept must not have forgotten a gradient
    results = []
    for data in (y, cloud, cloud):
        out = gaussian_posterior(leaves[0], data, leaves[1], backend=backend)
        results.append(torch.autograd.grad(sum(o.square().sum() for o in out), leaves))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@every_dtype
def test_other_weights_on_the_same_points(dtype, generator):
    """With what is kept already made and not yet made; points weighted before or not; values or none."""
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    x, y, values, first, second = make(5, 3), make(40, 3), make(40, 2), make(40), make(40) * 2
    for before, v in itertools.product((None, first), (None, values)):
        cloud = prepare(y, log_w=before, values=v)
        for sigma in (2.0, 1e-3):
            fresh = gaussian_posterior(x, y, sigma, log_w=second, values=v)
            again = cloud.weighted(second)
            for found in (reduce(x, again, sigma), reduce(x, again.weighted(first).weighted(second), sigma)):
                assert all(torch.equal(a, b) for a, b in zip(found, fresh, strict=True))
            assert torch.equal(reduce(x, cloud, sigma).log_z, gaussian_posterior(x, y, sigma, log_w=before).log_z)


def test_a_cloud_of_one_point(generator):
    y = torch.randn(1, 3, generator=generator)
    x = torch.randn(4, 3, generator=generator)
    log_z, mean, spread = gaussian_posterior(x, prepare(y), 0.7)
    torch.testing.assert_close(log_z, -(x - y).square().sum(1) / (2 * 0.7**2))
    assert torch.equal(mean, y.expand(4, 3)) and bool((spread == 0).all())


def test_wide_points_go_by_blocks_on_a_cpu(generator, monkeypatch):
    """The rule is the number of columns, of points or values; both ways agree."""
    ways = []
    real = attention._Attention.apply
    monkeypatch.setattr(attention._Attention, "apply", lambda *a: ways.append(a[-1]) or real(*a))
    for d, v in ((clouds.WIDE, None), (clouds.WIDE + 1, None), (3, clouds.WIDE + 1)):
        x, y = (torch.randn(n, d, generator=generator) for n in (4, 30))
        values = None if v is None else torch.randn(30, v, generator=generator)
        found, other = (gaussian_posterior(x, y, 10.0, values=values, backend=name) for name in (None, "cpu"))
        for a, b in zip(found, other, strict=True):
            torch.testing.assert_close(a, b)
    assert ways == [True, True, False, True, False, True]


@pytest.mark.parametrize(("argument", "bad"), [
    ("y", torch.zeros(3)), ("y", torch.full((4, 2), math.nan)), ("y", torch.full((4, 2), math.inf)), ("y", "cloud"),
    ("y", torch.zeros(4, 2).half()), ("log_w", torch.zeros(3)), ("log_w", torch.full((4,), -math.inf)),
    ("values", torch.zeros(5, 1)), ("values", torch.zeros(4, 1).double()), ("y", torch.zeros(4, 2).requires_grad_()),
    ("log_w", torch.zeros(4).requires_grad_()), ("values", torch.zeros(4, 2).requires_grad_())])
def test_what_cannot_be_prepared_is_refused_by_name(argument, bad):
    given = {"y": torch.zeros(4, 2), argument: bad}
    with pytest.raises(ValueError, match=rf"^{argument}: got .*; need "):
        prepare(given.pop("y"), **given)


@pytest.mark.parametrize(("argument", "bad"), [
    ("log_w", torch.zeros(4)), ("values", torch.zeros(4, 2)), ("y", torch.zeros(4, 3)),
    ("y", torch.zeros(4, 2).double())])
def test_what_does_not_go_with_a_cloud_is_refused_by_name(argument, bad):
    given = {"y": prepare(torch.zeros(4, 2))} | {argument: prepare(bad) if argument == "y" else bad}
    with pytest.raises(ValueError, match=rf"^{argument}: got .*; need "):
        gaussian_posterior(torch.zeros(3, 2), sigma=1.0, **given)


MEMORY = """
import resource, sys, torch
from lib.kernels import gaussian_posterior
n, backend = 20_000, sys.argv[1]
x, y = (torch.rand(n, 2, requires_grad=True) for _ in range(2))
gaussian_posterior(x[:64], y[:64], 0.5, backend=backend).mean.sum().backward()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
gaussian_posterior(x, y, 0.5, backend=backend).mean.sum().backward()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_memory_is_linear():
    """Forward and backward at B = N = 20,000, where B × N floats are 1,600 MB."""
    run = subprocess.run([sys.executable, "-c", MEMORY, "cpu"], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 200


LARGE = """
import resource, sys, torch
from lib.kernels import gaussian_posterior
x, y = torch.randn(64, 64), torch.randn(600_000, 64)
gaussian_posterior(x, y[:64], float(sys.argv[1]))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
gaussian_posterior(x, y, float(sys.argv[1]))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
@pytest.mark.parametrize("sigma", ["8", "0.05"])
def test_points_seen_once_are_not_copied_whole(sigma):
    """In either arithmetic less above the inputs than they take, 146 MB."""
    run = subprocess.run([sys.executable, "-c", LARGE, sigma], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 146


def test_blocks_are_bounded(generator, monkeypatch):
    """The only tensor of "blocks" that grows as a product is one block of logits."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in torch.utils._pytree.tree_leaves(out):
                largest = max(largest, t.numel() if isinstance(t, Tensor) else 0)
            return out

    monkeypatch.setattr(attention, "ROWS", 100)
    monkeypatch.setattr(attention, "COLUMNS", 200)
    x, y = (torch.randn(n, 3, generator=generator).requires_grad_() for n in (1000, 1500))
    with Watch():
        gaussian_posterior(x, y, 0.5, backend="blocks").mean.sum().backward()
    assert largest <= 100 * 200


@every_backend
def test_merging_is_exact_and_associative(backend, generator):
    x, y = (torch.randn(n, 2, generator=generator, dtype=torch.float64).to(device(backend)) for n in (7, 60))
    log_w = torch.randn(60, generator=generator, dtype=torch.float64).to(device(backend))
    whole = gaussian_posterior(x, y, 0.3, log_w=log_w, backend=backend)
    parts = [gaussian_posterior(x, y[s], 0.3, log_w=log_w[s], backend=backend)
             for s in (slice(0, 1), slice(1, 40), slice(40, 60))]
    for merged in (merge(parts), merge([merge(parts[:2]), parts[2]]), merge([parts[2], merge(parts[1::-1])])):
        for got, want in zip(merged, whole, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@settings(max_examples=80)
@given(st.sampled_from(FLOATS), st.sampled_from((1, 2, 20)), st.floats(-3, 1), st.sampled_from((0, 0.3, 3, 100)),
       st.sampled_from((0, 10)), st.sampled_from((1, 7, 50)), st.booleans(), st.integers(0, 2**32))
def test_every_road_is_as_good_as_the_whole_cloud(dtype, d, decade, distance, offset, rows, weighted, seed):
    """In chunks from disk, in parts of a cloud that is seen once, from ranks: near points, between them, and far."""
    g, sigma = torch.Generator().manual_seed(seed), 10**decade
    y = (torch.randn(60, d, generator=g, dtype=torch.float64) + offset).to(dtype)
    away = torch.nn.functional.normalize(torch.randn(5, d, generator=g, dtype=torch.float64))
    middle = (y[:5] + y[5:10]).double() / 2 if seed % 2 else y[:5].double() + sigma * away
    x = (middle + distance * away).to(dtype)
    log_w = torch.randn(60, generator=g, dtype=torch.float64).to(dtype) * 3 if weighted else None
    expected = brute_force(x, y, torch.tensor(sigma, dtype=dtype), log_w)
    found = {"disk": streamed_posterior(x, y.numpy(), sigma, log_w=log_w, chunk=rows)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reduction, "ONCE", rows * (d + 2))
        found["once"] = gaussian_posterior(x, y, sigma, log_w=log_w)
    parts = [reduce(x, part, sigma) for part in prepare(y, log_w=log_w).parts(rows)]
    found["ranks"] = GaussianPosterior(*(t.to(dtype) for t in merge(parts)))
    for road, seen in found.items():
        errors = excess(seen, expected, sigma)
        assert max(errors.values()) <= 1, (road, errors)


@every_backend
def test_far_queries_weigh_parts_by_more_digits_than_float32_has(backend):
    """At x = (3000, 0.7) log_z is −4.5 million, which float32 holds to a half; both points are equally far."""
    y, x = (torch.tensor(rows, device=device(backend)) for rows in ([[0.0, 0.0], [0.0, 1.0]], [[3000.0, 0.7]]))
    exact = torch.tensor([[0.0, 1 / (1 + math.exp(-0.2))]])
    merged = merge([reduce(x, part, 1.0, backend) for part in prepare(y).parts(1)])
    streamed = streamed_posterior(x, y.cpu().numpy(), 1.0, chunk=1, backend=backend)
    for found in (merged, streamed):
        torch.testing.assert_close(found.mean.cpu().float(), exact, rtol=0, atol=1e-4)
    assert streamed.log_z.dtype == torch.float32


@pytest.mark.parametrize(("d", "dtype"), [(2, torch.float32), (20, torch.float64)])
def test_triton_repeats_its_bits(d, dtype, generator):
    x, y = (torch.randn(n, d, generator=generator, dtype=dtype).to(DEVICE).requires_grad_() for n in (70, 300))
    runs = []
    for _ in range(2):
        out = gaussian_posterior(x, y, 0.5, backend="triton")
        runs.append((*out, *torch.autograd.grad(sum(o.sum() for o in out), (x, y))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.skipif(DEVICE == "cuda", reason="is what a GPU does anyway")
def test_block_sizes_of_a_gpu(generator, monkeypatch):
    """Wide programs and short steps, split into many parts."""
    from lib.kernels import launch
    monkeypatch.setattr(launch, "_blocks", lambda *_: (512, 8, 4))
    monkeypatch.setattr(launch, "PROGRAMS_PER_PROCESSOR", 16)
    x, y = (torch.randn(n, 2, generator=generator).requires_grad_() for n in (530, 601))
    results = []
    for backend in ("definition", "triton"):
        out = gaussian_posterior(x, y, 0.5, backend=backend)
        results.append((*out, *torch.autograd.grad(sum(o.sum() for o in out), (x, y))))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_bfloat16_points(generator):
    """As good as float32 on the rounded points, or with rounded weights: within the documented error."""
    for d, offset in ((2, 10), (20, 0), (20, 10)):
        x, y = ((torch.randn(n, d, generator=generator) + offset).bfloat16().to(DEVICE) for n in (30, 200))
        expected = gaussian_posterior(x.double(), y.double(), 3.0, backend="definition")
        for backend in ("definition", "blocks", "triton"):
            found = gaussian_posterior(x, y, 3.0, backend=backend)
            assert found.mean.dtype == torch.float32
            coarse = 1 if backend == "triton" else 1e-3
            assert (found.log_z - expected.log_z).abs().max() <= 2**-8 * coarse
            root = expected.spread.sqrt()[:, None]
            assert ((found.mean - expected.mean).norm(dim=1, keepdim=True) <= 2**-8 * root * coarse + 1e-5).all()
            assert ((found.spread / expected.spread - 1).abs() <= 0.01 * coarse).all()


@pytest.mark.parametrize(("chip", "shared", "cases"), [
    (90, 232_448, [(2, 0.5), (64, 50.0)]), (120, 101_376, [(64, 0.5)])])
def test_the_real_compiler_takes_the_kernels(chip, shared, cases, tmp_path):
    """An H100 and a consumer Blackwell: compiled without a GPU, with the arguments of the real calls."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-m", "tests.compile_kernels", str(chip), json.dumps(cases)],
                         capture_output=True, text=True, env=env, cwd=Path(__file__).parent.parent)
    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads(run.stdout)
    assert len(results) == 3 * len(cases)  # forward, gradients of queries, gradients of keys
    for name, used, exponentials in results:
        assert used <= shared, f"{name} needs {used} bytes of shared memory"
        assert exponentials > 0, f"{name} takes its exponentials in software"


def test_importing_the_reduction_does_not_import_triton():
    code = "import sys, lib.kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(("argument", "bad"), [
    ("x", torch.zeros(3)), ("x", torch.zeros(0, 2)), ("x", torch.zeros(3, 2).half()), ("x", [[0.0, 0.0]]),
    ("x", torch.full((3, 2), math.nan)), ("y", torch.zeros(4, 3)), ("y", torch.zeros(4, 2).double()),
    ("y", torch.full((4, 2), math.inf)), ("sigma", 0.0), ("sigma", -1.0), ("sigma", math.nan),
    ("sigma", torch.ones(4)), ("log_w", torch.zeros(3)), ("log_w", torch.full((4,), -math.inf)),
    ("log_w", torch.tensor([0.0, 0.0, math.nan, 0.0])), ("values", torch.zeros(5, 1)), ("backend", "gpu")])
def test_bad_arguments_are_refused_by_name(argument, bad):
    good = {"x": torch.zeros(3, 2), "y": torch.zeros(4, 2), "sigma": 1.0}
    with pytest.raises(ValueError, match=rf"^{argument}: got .*; need "):
        gaussian_posterior(**(good | {argument: bad}))


def test_a_backend_that_cannot_run_says_so():
    wide = torch.zeros(3, terms.TRITON_COLUMNS + 1, device=DEVICE)
    with pytest.raises(ValueError, match=r"^backend: got 'triton' for 65 columns; need at most 64"):
        gaussian_posterior(wide, wide, 1.0, backend="triton")

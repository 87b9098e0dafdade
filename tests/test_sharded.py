"""Two processes are one: the reduction over split data, training, and what happens when one of them dies."""
from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import lib.fit
from lib import nets
from lib.base import ranks
from lib.fit import fit
from lib.kernels import gaussian_posterior
from lib.kernels.sharded import sharded_posterior, streamed_posterior

ROOT = Path(__file__).resolve().parent.parent
WORLD = 2
TIMEOUT = 3.0  # seconds after which a silent rank counts as lost
STEPS, BATCH = 13, 8


# --- two processes ----------------------------------------------------------------------------------------


def rank_main(rank: int, task: Any, folder: Path, arguments: tuple) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD,
                            timeout=timedelta(seconds=TIMEOUT if task in DEADLY else 60))
    torch.save(task(*arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()


def in_two_ranks(folder: Path, task: Any, *arguments: Any) -> list[Any]:
    """What the task returns on each rank, None from one that died; a hang is a failure."""
    folder.mkdir()
    context = mp.get_context("spawn")
    processes = [context.Process(target=rank_main, args=(rank, task, folder, arguments)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
    assert not hung, "a process hangs"
    files = [folder / f"{rank}.pt" for rank in range(WORLD)]
    return [torch.load(file, weights_only=False) if file.exists() else None for file in files]


# --- the reduction ----------------------------------------------------------------------------------------


def problem() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    log_w = make(101)
    log_w[::9] = -math.inf
    return {"x": make(7, 3), "y": make(101, 3) + 2, "sigma": make(7).exp(), "log_w": log_w, "values": make(101, 2),
            "of_log_z": make(7), "of_mean": make(7, 3), "of_spread": make(7)}


CASES = {"plain": (), "weights": ("log_w",), "values": ("values",), "all": ("log_w", "values")}


def outputs_and_gradients(reduce: Any, rows: slice, given: tuple[str, ...]) -> dict[str, Tensor]:
    """Of one loss of all three outputs, by all inputs; y, log_w and values are cut to `rows`."""
    p = problem()
    leaves = {name: p[name][rows] if name in ("y", "log_w", "values") else p[name]
              for name in ("x", "y", "sigma", *given)}
    leaves = {name: t.clone().requires_grad_() for name, t in leaves.items()}
    x, y, sigma, more = leaves["x"], leaves["y"], leaves["sigma"], {name: leaves[name] for name in given}
    seen = reduce(x, y, sigma, **more)
    loss = ((seen.log_z * p["of_log_z"]).sum() + (seen.mean * p["of_mean"][:, :seen.mean.shape[1]]).sum()
            + (seen.spread * p["of_spread"]).sum())
    loss.backward()
    return ({name: t.detach() for name, t in seen._asdict().items()}
            | {f"gradient of {name}": t.grad for name, t in leaves.items()})


def halves(rank: int) -> slice:
    return (slice(0, 30), slice(30, None))[rank]  # not of one length


def reduce_in_ranks() -> dict[str, Any]:
    rank, _ = ranks.here()
    found = {case: outputs_and_gradients(sharded_posterior, halves(rank), given) for case, given in CASES.items()}
    p = problem()
    x, y = p["x"].float(), p["y"].float()
    found["float32"] = sharded_posterior(x, y[halves(rank)], 0.3)._asdict()
    two = torch.tensor([[0.0, 0.0], [0.0, 1.0]])  # a point for each rank, equally far
    found["far"] = sharded_posterior(torch.tensor([[3000.0, 0.7]]), two[rank:rank + 1], 1.0).mean
    try:
        sharded_posterior(p["x"][:2 + rank], p["y"], 1.0)
    except ValueError as error:
        found["refused"] = str(error)
    return found


@pytest.fixture(scope="module")
def reduced(tmp_path_factory) -> list[dict]:
    return in_two_ranks(tmp_path_factory.mktemp("reduced") / "ranks", reduce_in_ranks)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_split_over_ranks_nothing_changes(case, reduced):
    """Values, and gradients by queries, points, noise, weights and averaged values, on both ranks."""
    whole = outputs_and_gradients(gaussian_posterior, slice(None), CASES[case])
    for rank in range(WORLD):
        assert reduced[rank][case].keys() == whole.keys()
        for name, got in reduced[rank][case].items():
            of_points = name in ("gradient of y", "gradient of log_w", "gradient of values")
            want = whole[name][halves(rank)] if of_points else whole[name]
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.slow
def test_in_float32_it_is_as_good_as_one_device(reduced):
    p = problem()
    whole = gaussian_posterior(p["x"].float(), p["y"].float(), 0.3)
    for found in reduced:
        for name, want in whole._asdict().items():
            scale = p["y"].abs().max().item()
            torch.testing.assert_close(found["float32"][name], want, rtol=1e-6, atol=1e-6 * scale)
        torch.testing.assert_close(found["far"], torch.tensor([[0.0, 1 / (1 + math.exp(-0.2))]]), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_ranks_that_disagree_are_refused_on_all(reduced):
    for found in reduced:
        assert found["refused"].startswith("x: got (B, D, D, V, dtype, equal weights) of the ranks [(2, ")


def test_alone_it_is_the_plain_reduction():
    for given in CASES.values():
        alone, plain = (outputs_and_gradients(f, slice(None), given) for f in (sharded_posterior, gaussian_posterior))
        for name, want in plain.items():
            torch.testing.assert_close(alone[name], want, rtol=1e-12, atol=1e-13)
    with torch.no_grad():
        assert not sharded_posterior(problem()["x"].requires_grad_(), problem()["y"], 0.5).mean.requires_grad


@pytest.mark.parametrize(("argument", "bad"), [("x", [[0.0]]), ("y", torch.zeros(0, 2)), ("values", torch.zeros(3, 1))])
def test_bad_arguments_are_refused_by_name(argument, bad):
    with pytest.raises(ValueError, match=rf"^{argument}: got .*; need "):
        sharded_posterior(**({"x": torch.zeros(3, 2), "y": torch.zeros(4, 2), "sigma": 1.0} | {argument: bad}))


@pytest.mark.parametrize("chunk", [1, 10, 64, 101, 1000])
@pytest.mark.parametrize("given", CASES.values(), ids=CASES)
def test_streamed_from_disk_nothing_changes(chunk, given, tmp_path):
    p = problem()
    log_w = p["log_w"].clone()
    log_w[20:45] = -math.inf  # chunks without any weight
    points = np.memmap(tmp_path / "points", dtype=np.float64, mode="w+", shape=p["y"].shape)
    points[:] = p["y"].numpy()
    points.flush()
    points = np.memmap(tmp_path / "points", dtype=np.float64, mode="r", shape=p["y"].shape)
    more = {name: {"log_w": log_w, "values": p["values"]}[name] for name in given}
    whole = gaussian_posterior(p["x"], p["y"], p["sigma"], **more)
    more |= {"values": p["values"].numpy()} if "values" in given else {}
    for got, want in zip(streamed_posterior(p["x"], points, p["sigma"], chunk=chunk, **more), whole, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_streaming_takes_the_type_of_the_queries_and_loses_no_digits(tmp_path, generator):
    """40,000 points on disk in bytes, as pixels are, in 40 chunks."""
    pixels = torch.randint(256, (40_000, 2), generator=generator).to(torch.uint8)
    x = torch.rand(5, 2, generator=generator) * 255
    found = streamed_posterior(x, pixels.numpy(), 30.0, chunk=1000)
    whole = gaussian_posterior(x.double(), pixels.double(), 30.0)
    assert {t.dtype for t in found} == {torch.float32}
    for got, want in zip(found, whole, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("argument", "bad"), [
    ("x", torch.zeros(3)), ("y", np.zeros((0, 2))), ("chunk", 0), ("log_w", torch.zeros(3)), ("sigma", -1.0),
    ("log_w", torch.full((4,), -math.inf)), ("y", np.full((4, 2), math.nan)), ("values", np.zeros((3, 1)))])
def test_bad_streams_are_refused_by_name(argument, bad):
    with pytest.raises(ValueError, match=rf"^{argument}: got .*; need "):
        streamed_posterior(**({"x": torch.zeros(3, 2), "y": np.zeros((4, 2)), "sigma": 1.0} | {argument: bad}))


# --- training ---------------------------------------------------------------------------------------------


def network(seed: int) -> nn.Module:
    return nets.MLP(2, generator=torch.Generator().manual_seed(seed), width=8, depth=2)


def share(rank: int) -> tuple[Tensor, Tensor]:
    """A rank's own examples, so that what all have learnt from is known."""
    g = torch.Generator().manual_seed(10 + rank)
    return torch.rand(BATCH, generator=g), torch.randn(BATCH, 2, generator=g)


def regression(model: nn.Module, examples: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Also by a derivative through the model, which a wrapper around it would not pass on."""
    t, x = examples
    t = t.clone().requires_grad_()
    out = model(t, x)
    slope, = torch.autograd.grad(out.sum(), t, create_graph=True)
    return {"loss": (out - x.flip(1)).square().mean() + slope.square().mean(), "size": out.abs().mean()}


def train(loss: Any, folder: Path | None = None, *, seed: int = 0) -> dict[str, Any]:
    model = network(seed)
    found = fit(model, loss, STEPS, lr=1e-2, clip=0.5, ema=0.9, checkpoints=folder,
                generator=torch.Generator().manual_seed(0))
    return {"average": found.model.state_dict(), "last": model.state_dict(), "history": found.history}


def train_on_shares() -> dict[str, Any]:
    rank, _ = ranks.here()
    return train(lambda model, g: regression(model, share(rank)), seed=5 * rank)  # rank 0 gives the start


def train_on_draws(folder: Path, dies: int | None = None) -> dict[str, Any]:
    """Batches from the generator, a checkpoint each step; rank 1 is killed in step `dies`."""
    lib.fit.SECONDS_BETWEEN_CHECKPOINTS = -1.0
    draws = []

    def loss(model: nn.Module, g: torch.Generator) -> dict[str, Tensor]:
        examples = torch.rand(BATCH, generator=g), torch.randn(BATCH, 2, generator=g)
        if model.training:  # not the loss's first value, which names the checkpoint
            if len(draws) == dies and ranks.here()[0] == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            draws.append(examples[1])
        return regression(model, examples)

    try:
        return train(loss, folder) | {"draws": torch.stack(draws)}
    except RuntimeError as error:
        return {"error": str(error)}


def assert_same_bits(one: dict, two: dict) -> None:
    for part in ("average", "last", "history"):
        assert one[part].keys() == two[part].keys()
        assert all(torch.equal(one[part][key], two[part][key]) for key in one[part]), part


@pytest.mark.slow
def test_ranks_learn_what_one_learns_from_all_examples(tmp_path):
    """Equal shares: the mean of the gradients is the gradient on the union, and so are losses and clipping."""
    one, two = in_two_ranks(tmp_path / "ranks", train_on_shares)
    assert_same_bits(one, two)
    both = lambda model, g: [regression(model, share(rank)) for rank in range(WORLD)]
    alone = train(lambda model, g: {key: sum(terms[key] for terms in both(model, g)) / WORLD
                                    for key in ("loss", "size")})
    for part in ("average", "last", "history"):
        for key, want in alone[part].items():
            torch.testing.assert_close(one[part][key], want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_killed_rank_stops_the_other_and_training_resumes_to_the_same_bits(tmp_path):
    whole = in_two_ranks(tmp_path / "whole", train_on_draws, None)
    assert_same_bits(*whole)
    assert not torch.equal(whole[0]["draws"], whole[1]["draws"])  # each rank has a stream of its own
    checkpoints = tmp_path / "checkpoints"
    left, killed = in_two_ranks(tmp_path / "killed", train_on_draws, checkpoints, 6)
    assert killed is None
    assert left["error"].startswith("rank 0 lost another of 2 ranks: ")
    assert len(list(checkpoints.glob("*.pt"))) == 1
    resumed = in_two_ranks(tmp_path / "resumed", train_on_draws, checkpoints)
    for rank in range(WORLD):
        assert_same_bits(resumed[rank], whole[rank])
        assert torch.equal(resumed[rank]["draws"], whole[rank]["draws"][6:])  # the first six were not repeated


# --- a lost rank ------------------------------------------------------------------------------------------


def lose_a_rank(kind: str) -> str | None:
    rank, _ = ranks.here()
    p = problem()
    x = p["x"].requires_grad_()
    seen = sharded_posterior(x, p["y"], 0.5)
    if rank == 1:
        if kind == "dead":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10 * TIMEOUT)  # longer than the time-out, which is what the other has to go by
        return None
    try:
        seen.log_z.sum().backward()  # waits for the other's part of the gradient
    except RuntimeError as error:
        return str(error)
    return "no error"


DEADLY = (lose_a_rank,)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dead", "silent"])
def test_a_lost_rank_is_an_error_and_no_hang(kind, tmp_path):
    found, _ = in_two_ranks(tmp_path / "ranks", lose_a_rank, kind)
    assert found.startswith("rank 0 lost another of 2 ranks: ")


# --- the script -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_script_trains_in_two_processes_and_a_notebook_loads_what_it_leaves(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "full/train.py",
               "--network", "mlp", "--width", "8", "--depth", "2", "--steps", "4", "--batch", "16", "--out", tmp_path]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    info = json.loads((tmp_path / "digits-mlp.json").read_text(encoding="utf-8"))
    assert info["hardware"].startswith("2 × ") and info["settings"]["steps"] == 4
    assert info["command"].startswith("torchrun --nproc-per-node 2 full/train.py --network mlp")
    saved, = (tmp_path / "checkpoints").glob("*.pt")
    average = lib.fit._read(saved)["average"]
    net = nets.load(tmp_path / "digits-mlp.safetensors")
    assert all(torch.equal(mine, its) for mine, its in zip(average, net.parameters(), strict=True))
    assert net(0.5, torch.zeros(3, 64)).shape == (3, 64) and not net.training


def test_networks_come_back_from_their_files(tmp_path, generator):
    for kind, size in ((nets.MLP, {"dim": 3, "width": 8, "classes": 4}), (nets.UNet, {"side": 4, "widths": [8]})):
        net = kind(**size, generator=generator)
        for p in net.parameters():
            nn.init.normal_(p, generator=generator)
        nets.save(tmp_path / "net.safetensors", net, **size)
        back = nets.load(tmp_path / "net.safetensors")
        assert type(back) is kind and not any(p.requires_grad for p in back.parameters())
        x, label = torch.randn(5, 3 if kind is nets.MLP else 16, generator=generator), torch.arange(5) % 4
        given = (0.3, x, label) if kind is nets.MLP else (0.3, x)
        assert torch.equal(back(*given), net(*given))

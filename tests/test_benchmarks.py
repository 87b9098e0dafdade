"""Benchmarks run, keep what they measured, and print nothing where numbers disagree."""
from __future__ import annotations

import csv
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import ot
import pytest
import torch
from tree import script

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "reduction.py"


@pytest.fixture
def benchmark(tmp_path, monkeypatch) -> ModuleType:
    module = script(FILE)
    monkeypatch.setattr(module.common, "RESULTS", tmp_path / "results")
    for name, value in {"SIZES": [(40, 90), (50, 300)],
                        "rates": lambda: dict.fromkeys(("bytes", "operations", "products", "exps"), 1e9)}.items():
        monkeypatch.setattr(module, name, value)
    methods = ["ours", "prepared", "torch", "sdpa"]
    monkeypatch.setattr(sys, "argv", ["reduction.py", "--dims", "2", "64", "--methods", *methods])
    return module


def test_it_writes_what_it_measured_and_keeps_the_rest(benchmark, capsys, monkeypatch):
    benchmark.main()
    file, = benchmark.common.RESULTS.iterdir()
    with file.open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 2 * 2 * (2 * 3 + 1)  # dimensions, sizes, passes and methods; prepared forward only
    assert all(float(row["error"]) <= 1 and float(row["processor_ms"]) >= 0 for row in rows)
    assert {row["torch"] for row in rows} == {torch.__version__}
    monkeypatch.setattr(sys, "argv", ["reduction.py", "--dims", "2", "--methods", "ours"])
    benchmark.main()
    with file.open(encoding="utf-8") as f:
        again = list(csv.DictReader(f))
    same = lambda row: (row["D"], row["method"]) != ("2", "ours")
    assert list(filter(same, again)) == list(filter(same, rows)) and len(again) == len(rows)
    assert "40       90  gradients" in capsys.readouterr().out


@pytest.mark.parametrize("entry", [0, 1, 2])
def test_a_method_that_disagrees_stops_it(entry, benchmark, monkeypatch, capsys):
    def wrong(x, y, sigma):
        out = list(benchmark.plain(x, y, sigma))
        out[entry] = out[entry] * 1.02 + 0.01
        return tuple(out)

    monkeypatch.setitem(benchmark.METHODS, "torch", wrong)
    with pytest.raises(SystemExit, match=r"^torch: D=2 B=40 N=90, forward: .+ times the error allowed; no table$"):
        benchmark.main()
    assert capsys.readouterr().out == "" and not benchmark.common.RESULTS.exists()


def test_the_floor_counts_what_it_says(benchmark):
    """A pair costs one exponential and 5D + 8 operations by differences, 4D + 8 by products."""
    rate = {"bytes": 1e30, "operations": 10.0, "products": 100.0, "exps": 1.0}
    assert benchmark.floor(3, 4, 2, False, rate) == (12 * 18 / 10, "operations")
    assert benchmark.floor(3, 4, 64, False, rate) == (12 * 264 / 100, "products")
    assert benchmark.floor(3, 4, 64, True, rate | {"products": 1e9}) == (24.0, "exps")


@pytest.fixture
def common(tmp_path, monkeypatch) -> ModuleType:
    module = script(FILE.parent / "common.py")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "chip", lambda: "Some(R) Chip, 2 threads")
    return module


def test_a_table_grows_as_it_is_measured(common, capsys):
    def rows():
        yield {"what": "a", "milliseconds, all": "1.5", "allowed": None}
        assert capsys.readouterr().out.endswith("a                1.5             \n")
        yield {"what": "b", "milliseconds, all": "2.5", "allowed": 3}

    assert [row["what"] for row in common.table(rows(), first=4)] == ["a", "b"]
    assert capsys.readouterr().out == "   b                2.5            3\n"


def test_files_are_kept_apart_and_say_what_they_were_measured_on(common):
    names = [common.named("a", quick, by_chip=by_chip).name for quick in (False, True) for by_chip in (False, True)]
    assert names == ["a.csv", "a-Some-R-Chip-2-threads.csv", "a-quick.csv", "a-Some-R-Chip-2-threads-quick.csv"]
    common.save(common.named("a"), [{"ms": 1} | common.made(), {"ms": 2} | common.made()])
    first, second = csv.DictReader(common.named("a").read_text(encoding="utf-8").splitlines())
    assert (first["ms"], second["ms"], second["chip"]) == ("1", "2", "Some(R) Chip, 2 threads")
    assert second["torch"] == torch.__version__ and "\r" not in common.named("a").read_bytes().decode()


def test_the_stopwatch_stops(common):
    calls = []
    clock, processor = common.stopwatch(lambda: calls.append(0), repeats=3)
    assert len(clock) == len(processor) == len(calls) == 3
    assert len(common.stopwatch(lambda: calls.append(0), seconds=0.0)[0]) == 1


def test_a_small_benchmark_from_one_end_to_the_other(monkeypatch, tmp_path):
    module = script(FILE.parent / "operator_informed.py")
    monkeypatch.setattr(module.common, "RESULTS", tmp_path / "results")
    for name, value in {"POINTS": 60, "QUERIES": 8, "FEW": 4, "ORDER": 3}.items():
        monkeypatch.setattr(module, name, value)
    module.main()
    with (tmp_path / "results" / "operator_informed.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 and rows[0]["allowed"] == "5000" and all(float(row["milliseconds"]) >= 0 for row in rows)


def test_sinkhorn_beside_its_peers(monkeypatch, tmp_path):
    """POT is always there: both meet the marginals, and the values are one; the process of each finds its way."""
    module = script(FILE.parent / "sinkhorn.py")
    monkeypatch.setattr(module.common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "PEERS", {"ours": None, "pot": "ot", "other": "not_installed"})
    monkeypatch.setattr(module, "SIZES", (60,))
    monkeypatch.setattr(module, "SHARES", (0.1,))
    monkeypatch.setattr(sys, "argv", ["sinkhorn.py"])
    module.main()
    with (tmp_path / "results" / "sinkhorn.csv").open(encoding="utf-8") as file:
        ours, pot = csv.DictReader(file)
    assert (ours["method"], pot["method"], ours["n"]) == ("ours", "pot", "60")
    assert max(float(ours["error"]), float(pot["error"])) <= 1.01e-3
    assert float(ours["value"]) == pytest.approx(float(pot["value"]), rel=1e-3)


def test_the_judge_of_sinkhorn_knows_value_and_error_of_a_plan():
    """Against ⟨C, π⟩ + ε KL(π | a ⊗ b) of POT's plan; a wrong g has the error of the plan that it makes."""
    module = script(FILE.parent / "sinkhorn.py")
    x, y, epsilon = module.problem(40, 0.1)
    assert epsilon == pytest.approx(0.1 * float(torch.cdist(x, y).square().mean()), rel=0.1)  # /(n − 1) and /n
    cost = torch.cdist(x, y).square()
    plan, log = ot.bregman.sinkhorn_log([], [], cost.numpy(), epsilon, stopThr=1e-12, numItermax=10_000, log=True)
    plan = torch.from_numpy(plan)
    value, error = module.judged(x, y, epsilon, epsilon * torch.from_numpy(log["log_v"]))
    assert value == pytest.approx(float((plan * cost).sum() + epsilon * (plan * (1600 * plan).log()).sum()), rel=1e-9)
    assert error < 1e-9
    rows = (-cost / epsilon).softmax(1) / 40  # what g = 0 makes
    assert module.judged(x, y, epsilon, torch.zeros(40).double())[1] == pytest.approx(
        float((rows.sum(0) - 1 / 40).abs().sum()), rel=1e-9)


def test_training_loops_in_small(monkeypatch, tmp_path):
    """Those that are installed; all start from the same weights, and the peers' stops are on one way."""
    module = script(FILE.parent / "training_loop.py")
    monkeypatch.setattr(module.common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(sys, "argv", ["training_loop.py"])
    for name, value in {"LENGTHS": (3, 5), "SEEDS": 2, "TURNS": 2, "TURN": 3, "SAMPLES": 40, "HELD_OUT": 9, "POOL": 50,
                        "BATCH": 8, "WIDTH": 8}.items():
        monkeypatch.setattr(module, name, value)
    loops = {name: loop for name, loop in module.LOOPS.items() if name.startswith("fit") or find_spec(name)}
    monkeypatch.setattr(module, "LOOPS", loops)
    nets = [module.start(loop, module.toys.two_moons(), 1)[0].state_dict() for loop in ("fit", "torchcfm")]
    assert all(torch.equal(nets[0][key], nets[1][key]) for key in nets[0])
    module.main()
    with (tmp_path / "results" / "training_loop.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["data"], row["loop"], row["steps"]) for row in rows] == [
        (data, loop, steps) for data in ("checkerboard", "two moons") for loop in loops for steps in ("3", "5")]
    assert all(float(row["seconds_least"]) <= float(row["seconds_median"]) for row in rows)
    assert all(float(row["distance_error"]) >= 0 and float(row["nats"]) > 0 for row in rows)


@pytest.fixture
def pixels(monkeypatch, tmp_path) -> ModuleType:
    """The benchmark of networks in small: few pictures, a moment for each training, and no other process."""
    module = script(FILE.parent / "pixel_networks.py")
    monkeypatch.setattr(module.common, "RESULTS", tmp_path / "results")
    few = module.data.Splits(*(module.data.Part(*(part[:n] for part in whole))
                               for whole, n in zip(module.data.mnist(), (900, 250, 200), strict=True)))
    monkeypatch.setattr(module.data, "mnist", lambda: few)
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda jobs, context: ThreadPoolExecutor(1))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    networks = {"MLP": lambda g: module.nets.ResidualMLP(784, width=16, depth=1, zero=True, generator=g),
                "U-Net": lambda g: module.nets.UNet(28, (8, 16), patch=2, generator=g)}
    for name, value in {"QUICK": 1.0, "SAMPLES": 100, "EULER": 2, "BATCH": 8, "NETWORKS": networks}.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_networks_of_pixels_in_small(pixels, monkeypatch):
    """The rate is the best of those that did not diverge, and the baselines are what they must be."""
    def fit(*args, lr, **settings):
        if lr == pixels.RATES[0]:
            raise FloatingPointError
        return true_fit(*args, lr=lr, **settings)

    true_fit = pixels.fit
    monkeypatch.setattr(pixels, "fit", fit)
    monkeypatch.setattr(pixels, "faster", lambda name: ("channels last", 0.01))
    monkeypatch.setattr(sys, "argv", ["pixel_networks.py", "--quick"])
    pixels.main()
    with (pixels.common.RESULTS / "pixel_networks-quick.csv").open(encoding="utf-8") as file:
        real, mean, gaussian, *networks = csv.DictReader(file)
    assert [row["network"] for row in networks] == ["MLP", "U-Net"] and real["held_out"] == ""
    assert float(mean["held_out"]) == pytest.approx(2, abs=0.05) and 0.5 < float(gaussian["held_out"]) < 1.6
    assert float(real["frechet"]) < float(gaussian["frechet"]) < float(mean["frechet"])
    for row in networks:
        assert row["at_0.0003"] == "inf" and row["layout"] == "channels last"
        assert row["rate"] == min(("0.001", "0.003"), key=lambda rate: float(row[f"at_{rate}"]))
        assert float(row["step_ms"]) * int(row["steps"]) / 1000 == pytest.approx(float(row["seconds"]), abs=0.1)
        assert float(row["held_out"]) < float(mean["held_out"]) and float(row["evaluation_ms"]) > 0
    assert [int(row["weights"]) for row in networks] == [
        sum(p.numel() for p in pixels.NETWORKS[name](torch.Generator()).parameters()) for name in ("MLP", "U-Net")]


def test_layouts_are_tried_where_there_are_convolutions(pixels, monkeypatch):
    taken = {"contiguous": iter((4.0, 2.0, 3.0)), "channels last": iter((9.0, 1.0, 9.0))}
    monkeypatch.setattr(pixels, "trained", lambda name, layout, rate, steps: (None, steps * next(taken[layout])))
    assert pixels.faster("MLP") == ("contiguous", 2.0)
    taken["contiguous"] = iter((4.0, 2.0, 3.0))
    assert pixels.faster("U-Net") == ("channels last", 1.0)


def test_a_draw_of_pixels_is_of_its_path(pixels):
    """x + (1 − t) v is the picture, whose levels come back; half of the times lie above 3/4, and noise is noise."""
    levels, scale = pixels.problem()[:2]
    t, x, velocity = pixels.draw(levels, scale, torch.Generator().manual_seed(3))
    again = 256 * pixels.data.unlogit(scale.inverse(x + (1 - t[:, None]) * velocity))
    assert ((again.floor() - levels).abs() > 0).float().mean() < 1e-3
    assert float(t.median()) == pytest.approx(0.75, abs=0.01) and float(t.mean()) == pytest.approx(2 / 3, abs=0.01)
    noise = x - t[:, None] * velocity
    assert float(noise.mean()) == pytest.approx(0, abs=0.01) and float(noise.std()) == pytest.approx(1, abs=0.01)


def test_the_baseline_is_the_regression_of_velocity_on_the_point(pixels):
    """Cov(ẋ, x_t) Cov(x_t)⁻¹ x_t of N(0, C), by a linear solver."""
    g = torch.Generator().manual_seed(0)
    data = torch.randn(50, 5, generator=g).double() @ torch.randn(5, 5, generator=g).double()
    c, one, x = data.T @ data / 50, torch.eye(5).double(), torch.randn(3, 5, generator=g).double()
    t = torch.tensor([0.1, 0.5, 0.97]).double()
    found = pixels.Gaussian(data)(t, x)
    for i, s in enumerate(t.tolist()):
        both, point = s * c - (1 - s) * one, s**2 * c + (1 - s)**2 * one
        assert torch.allclose(found[i], both @ torch.linalg.solve(point, x[i]), atol=1e-10)


def test_convolutions_see_neighbours_only(pixels):
    """Flattened pictures are rows of a square: a corner pixel sees as far as four 3 × 3 convolutions reach."""
    net = pixels.ConvNet(width=4, depth=1, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(net.last.weight)
    x = torch.randn(1, 784, generator=torch.Generator().manual_seed(1)).requires_grad_()
    reach = torch.autograd.grad(net(0.5, x)[0, 0], x)[0].reshape(28, 28) != 0
    assert reach[:5, :5].all() and reach.sum() == 25


@pytest.mark.parametrize("name", ["bridge", "particles", "separation"])
def test_the_others_load(name):
    assert callable(script(FILE.parent / f"{name}.py").main)


def test_no_script_hides_a_module_of_python():
    """A script's folder comes first on its path, and on that of every process torch's compiler starts."""
    for folder in ("benchmarks", "full", "pipeline"):
        names = {file.stem for file in (FILE.parent.parent / folder).glob("*.py")}
        assert not names & set(sys.stdlib_module_names)

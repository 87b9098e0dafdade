"""The figures that recur, in one style, each with alternative text.

`style()` sets the look once per notebook; the other functions draw on axes they are given; `show` ends a
figure: it embeds the PNG, sharp on screens of twice the density, with its alternative text below it as a
caption, and inside the pipeline writes it to the chapter's `figures/`.  Colours are Okabe and Ito's, told
apart by readers with any colour vision.
"""
import base64
import html
import io
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from PIL import Image
from torch import Tensor

from lib.base import check
from lib.base.stage import OUT

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
GREY = "#7F7F7F"
DENSITY = "viridis"
DPI, DENSER = 100, 2  # pixels of an inch on the page, and those of the file for each of them


def style() -> None:
    """Readable sizes, quiet axes, one colour cycle."""
    plt.rcParams.update({
        "figure.dpi": DPI, "savefig.dpi": DPI * DENSER, "figure.constrained_layout.use": True, "font.size": 11,
        "axes.titlesize": 11, "axes.labelsize": 11, "legend.fontsize": 9, "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.8,
        "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY]),
    })


def show(fig: Figure, name: str, alt: str) -> None:
    """Embed `fig` in the notebook with its caption, and keep it as figures/`name`.png of the chapter.

    `alt` says in a sentence or two what is to be seen.  It stands below the figure, for most tools show no reader the
    alternative text of an image, and in the attribute for those that do.
    """
    if not re.fullmatch(r"\w[\w-]*", name):
        check.refuse("name", repr(name), "letters, digits, _ and -, for it names a file")
    if len(alt.split()) < 6:
        check.refuse("alt", repr(alt), "a sentence that says what is to be seen")
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI * DENSER, metadata={"Software": None})
    plt.close(fig)
    image = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)  # a third of the bytes
    image.save(buffer := io.BytesIO(), format="png", optimize=True)
    size = {"width": image.width // DENSER, "height": image.height // DENSER}
    _keep(f"{name}.png", buffer.getvalue())
    display({"image/png": buffer.getvalue(), "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt, **size}})
    display({"text/html": f"<p><em>{html.escape(alt)}</em></p>", "text/plain": alt}, raw=True)


def film(fig: Figure, draw: Callable[[int], Any], frames: Iterable[int], name: str, alt: str, *,
         wait: int = 80) -> None:
    """Show the frames that draw(k) makes of `fig`, and keep them as figures/`name`.webp, the same bytes every time.

    A frame stands for `wait` milliseconds, the last one 25 times as long.
    """
    pictures = []
    for k in frames:
        draw(k)
        fig.savefig(still := io.BytesIO(), format="png", dpi=DPI)
        pictures.append(Image.open(still).convert("RGB"))
    plt.close(fig)
    times = [wait] * (len(pictures) - 1) + [25 * wait]
    pictures[0].save(buffer := io.BytesIO(), "webp", save_all=True, append_images=pictures[1:], duration=times, loop=0,
                     quality=60, method=4)
    _keep(f"{name}.webp", buffer.getvalue())
    source = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    said = html.escape(alt)
    display({"text/html": f'<img alt="{said}" src="{source}"><p><em>{said}</em></p>', "text/plain": alt}, raw=True)


def _keep(file: str, content: bytes) -> None:
    """Inside the pipeline, among the chapter's figures."""
    if os.environ.get(OUT):
        folder = Path(os.environ[OUT]) / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)


def grid(lower: float, upper: float, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An n × n grid of points over [lower, upper]², shape (n², 2), rows of an image from bottom to top."""
    line = torch.linspace(lower, upper, n, dtype=dtype)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.ravel(), y.ravel()], 1)


def scatter(ax: Axes, x: Tensor, *, lim: float | None = None, color: str = BLUE, size: float = 2.0, title: str = "",
            **kwargs: Any) -> None:
    """Points (n, 2) on square axes over [−lim, lim]²."""
    ax.scatter(x[:, 0].cpu(), x[:, 1].cpu(), s=size, color=color, linewidths=0, rasterized=True, **kwargs)
    frame(ax, lim, title)


def density(ax: Axes, log_p: Callable[[Tensor], Tensor], *, lim: float, n: int = 160, title: str = "",
            vmax: float | None = None) -> None:
    """exp(log_p) over [−lim, lim]², for a function from (n², 2) points to (n²,) nats."""
    values = log_p(grid(-lim, lim, n)).exp().reshape(n, n).cpu().numpy()
    ax.imshow(values, extent=(-lim, lim, -lim, lim), origin="lower", cmap=DENSITY, vmin=0, vmax=vmax)
    frame(ax, lim, title)


def arrows(ax: Axes, field: Callable[[Tensor], Tensor], *, lim: float, n: int = 15, color: str = "white") -> None:
    """A vector field on an n × n grid, arrows of length proportional to the field."""
    at = grid(-lim * 0.93, lim * 0.93, n)
    v = field(at).cpu()
    ax.quiver(at[:, 0], at[:, 1], v[:, 0], v[:, 1], color=color, width=0.005, alpha=0.85)
    frame(ax, lim, ax.get_title())


def images(ax: Axes, x: Tensor, *, side: int = 8, columns: int = 10, title: str = "", vmin: float = 0.0,
           vmax: float = 1.0, ink: bool = True) -> None:
    """Rows (n, side²) or (n, 3·side²) as a sheet of small images; `ink` draws grey values as ink on paper."""
    check.points("x", x)
    if x.shape[1] not in (side**2, 3 * side**2):
        check.refuse("x", f"{x.shape[1]} columns", f"{side**2} or {3 * side**2}, for side {side}")
    pixels = x.cpu().reshape(len(x), side, side, -1).clamp(vmin, vmax).sub(vmin).div(vmax - vmin)
    rows, depth = math.ceil(len(x) / columns), pixels.shape[-1]
    ink = ink and depth == 1
    sheet = torch.full((rows * columns, side + 1, side + 1, depth), 0.0 if ink else 1.0)  # white paper
    sheet[: len(x), :side, :side] = pixels
    sheet = sheet.reshape(rows, columns, side + 1, side + 1, depth).permute(0, 2, 1, 3, 4)
    ax.imshow(sheet.reshape(rows * (side + 1), columns * (side + 1), depth).squeeze(-1)[:-1, :-1].detach().numpy(),
              cmap="gray_r" if ink else "gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_title(title)
    ax.axis("off")


def frame(ax: Axes, lim: float | None, title: str = "") -> None:
    """Equal axes without ticks or spines, over [−lim, lim]² if a limit is given."""
    if lim is not None:
        ax.set(xlim=(-lim, lim), ylim=(-lim, lim))
    ax.set_aspect("equal")
    ax.spines[:].set_visible(False)
    ax.set(xticks=[], yticks=[], title=title)

"""The still pictures of the figures, and the README's film of it, as a headless Chromium paints them.

    PYTHONPATH=tests python docs/live/film.py
"""
from __future__ import annotations

import base64
import io
from pathlib import Path

from browser import CHROMIUM, Page, served, visit
from PIL import Image
from playwright.sync_api import sync_playwright

LIVE = Path(__file__).resolve().parent
FRAME = """(k) => new Promise((done) => {
  const { figure } = document.querySelector('.live');
  figure.seek(k);
  const look = () => figure.settled ? requestAnimationFrame(() => requestAnimationFrame(
    () => done(figure.canvas.toDataURL()))) : requestAnimationFrame(look);
  look();
})"""


def frame(tab: Page, k: int) -> Image.Image:
    """The canvas at the k-th of the figure's times."""
    encoded = tab.evaluate(FRAME, k).partition(",")[2]
    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")


def main() -> None:
    """Write the pictures here, and docs/gallery/draw.webp."""
    with sync_playwright() as playwright, served(LIVE) as address:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with visit(browser, address + "0.html#data=moons&arrows=velocity&t=0.1", width=960) as (tab, _):
            frame(tab, 90).quantize(128).save(LIVE / "0.png", optimize=True)
        with visit(browser, address + "1.html#data=two&flat=1", width=960) as (tab, _):
            frame(tab, 60)  # until λ is known
            Image.open(io.BytesIO(tab.locator(".live-stage").screenshot())).convert("RGB").quantize(128).save(
                LIVE / "1.png", optimize=True)
        with visit(browser, address + "2.html#flow=0", width=960) as (tab, _):
            frame(tab, 0).quantize(256).save(LIVE / "2.png", optimize=True)
        with visit(browser, address + "3.html#eps=14&t=0.4", width=960) as (tab, _):
            frame(tab, 24).quantize(128).save(LIVE / "3.png", optimize=True)
        with visit(browser, address + "4.html#t=0.95&order=8", width=960) as (tab, _):
            frame(tab, 95)
            Image.open(io.BytesIO(tab.locator(".live-stage").screenshot())).convert("RGB").quantize(128).save(
                LIVE / "4.png", optimize=True)
        with visit(browser, address + "5.html#done=0.12", width=960) as (tab, _):
            frame(tab, 12).quantize(256).save(LIVE / "5.png", optimize=True)
        with visit(browser, address + "bugs.html#bug=sign&t=0.5", width=960) as (tab, _):
            Image.open(io.BytesIO(tab.locator(".live-stage").screenshot())).convert("RGB").quantize(256).save(
                LIVE / "bugs.png", optimize=True)
        with visit(browser, address + "0.html#data=word&word=data&t=0", width=760, scheme="dark") as (tab, _):
            frames = [frame(tab, k) for k in range(0, 151, 3)]
        times = [80] * (len(frames) - 1) + [2000]
        frames[0].save(LIVE.parent / "gallery" / "draw.webp", save_all=True, append_images=frames[1:], duration=times,
                       loop=0, quality=70, method=6)


if __name__ == "__main__":
    main()

"""A headless Chromium, and a folder served to it."""
from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Browser as Visit
from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, while it lasts."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@contextmanager
def visit(browser: Visit, address: str, *, width: int = 820, height: int = 900, scheme: str = "light",
          **context: object) -> Iterator[tuple[Page, list[str]]]:
    """A tab at an address, and what it has complained of or asked of others; `context` as Playwright has it."""
    home = "/".join(address.split("/")[:3])
    heard: list[str] = []
    room = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **context)
    tab = room.new_page()
    tab.on("console", lambda said: heard.append(said.text) if said.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.on("request", lambda asked: None if asked.url.startswith((home, "data:", "blob:")) else heard.append(asked.url))
    tab.goto(address)
    yield tab, heard
    room.close()

"""What all tests share: explicit randomness, double precision on request, reproducible property tests."""
from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import matplotlib
import pytest
import torch
from draws import rng
from nbformat.v4 import new_markdown_cell
from tree import chapter, code, commit

from pipeline import files

# A background job of a shell ignores Ctrl-C and so would all its children, whom tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

matplotlib.use("Agg")
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None, max_examples=25)
hypothesis.settings.load_profile("house")


@pytest.fixture
def generator() -> torch.Generator:
    return rng()


@pytest.fixture
def float64() -> Iterator[None]:
    """Identities are tested in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def outside_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes where a running pipeline reads."""
    for name in ("FIVE_ROADS_OUT", "FIVE_ROADS_PROGRESS", "FIVE_ROADS_CHECKPOINTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def visitor() -> Iterator[object]:
    """A headless Chromium; what needs one is skipped where none is found."""
    from browser import CHROMIUM
    from playwright.sync_api import sync_playwright

    if not CHROMIUM:
        pytest.skip("no Chromium on the path: `apt-get install chromium`, and the pages are tried in it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


# --- a tree of the pipeline's -----------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree in the place of the repository."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "points.npz").write_bytes(b"some points")
    sha256 = hashlib.sha256(b"some points").hexdigest()
    (tmp_path / "lib" / "data.py").touch()
    (tmp_path / "lib" / "data.sha256").write_text(f"{sha256}  points.npz\n")
    (tmp_path / "results").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {run: {foreach: []}}")
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    return tmp_path


@pytest.fixture
def two_chapters(root: Path) -> Path:
    """A tree with two chapters and their results."""
    chapter(root, "00_a", new_markdown_cell("# The first"), code("claims.measure('A-1', 1.0)"))
    chapter(root, "01_b", new_markdown_cell("# B"), code("print(2)"))
    (root / "dvc.yaml").write_text("stages: {run: {foreach: [00_a, 01_b]}}")
    (root / "README.md").write_text("before\n<!-- ledger -->\nold rows\n<!-- /ledger -->\nafter\n")
    return root


CLAIMS = """\
00_a:
  A-1:
    says: something
    source: "paper: Table 1"
    quantity: a number
    rule: {relation: "≤", threshold: 2}
    refuted: a larger one
  A-2: {says: something, source: "paper: Table 1", not_reproduced: days}
01_b:
  B-1:
    says: something
    source: "paper: Table 1"
    quantity: a number
    rule: {relation: "≤", threshold: 2}
    refuted: a larger one
  B-2: {says: something, source: "paper: Table 1", not_reproduced: days}
"""


@pytest.fixture
def repository(two_chapters: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as a git repository, with a registry of claims and one commit."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "a")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@b")
    (two_chapters / "claims.yaml").write_text(CLAIMS)
    (two_chapters / ".gitignore").write_text("results\n")
    subprocess.run(["git", "init", "-q"], cwd=two_chapters, check=True)
    commit(two_chapters)
    return two_chapters

"""The site: every page in a real browser, without a word to anyone outside."""
from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import Visit, served, visit
from nbformat.v4 import new_markdown_cell, new_notebook, new_output
from tree import code

from pipeline import book, copies, files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["index.html", "docs/ledger.html", "docs/notation.html", "docs/performance.html", "docs/teaching.html",
         "docs/pipeline.html", "CONTRIBUTING.html", "bugs.html", "search.html",
         *(f"notebooks/{file.stem}.html" for file in sorted((ROOT / "notebooks").glob("*.ipynb")))]


# --- what is laid out for Sphinx --------------------------------------------------------------------------


def test_folding_adds_tags_and_changes_no_word():
    picture = new_output("display_data", data={"image/png": "iVBO"})
    long = "\n".join(["x = 1"] * 13)
    cells = [code("solution()", "solution"), code("check", "exercise-check"), code(long, outputs=[picture]),
             code("plot()", outputs=[picture]), code(long)]
    before = [(cell.source, list(cell.outputs)) for cell in cells]
    after = book.folded(new_notebook(cells=cells)).cells
    assert [(cell.source, list(cell.outputs)) for cell in after] == before
    assert [cell.metadata.get("tags", [])[-1:] for cell in after] == [
        ["hide-cell"], ["hide-input"], ["hide-input"], [], []]


def test_a_chapter_is_shown_as_it_was_run_here_and_else_as_published(two_chapters: Path):
    assert book.executed("00_a").cells[1].outputs[0].text == "made by the pipeline"
    shutil.rmtree(two_chapters / "results" / "00_a")
    assert not book.executed("00_a").cells[1].outputs


def test_links_of_the_ledger_lead_to_cells_of_the_site(two_chapters: Path):
    notebooks = {name: book.executed(name) for name in ("00_a", "01_b")}
    assert "(cell:00_a#cell-01)" in book.rows(notebooks)


def test_a_card_says_what_the_chapter_says_of_itself(two_chapters: Path):
    head = new_markdown_cell("# A title\n\n**A claim.**\n\n| | |\n|---|---|\n| Level | easy |\n| Time | a minute |")
    said = book.card("01_b", new_notebook(cells=[head]))
    assert all(part in said for part in ("1 · A title", "\nA claim.\n", "a minute · easy", "(notebooks/01_b.ipynb)"))
    assert "0 · Bare" in book.card("00_a", new_notebook(cells=[new_markdown_cell("# Bare")]))


def test_another_mathjax_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(book, "MATHJAX", "0" * 16)
    with pytest.raises(files.Refused, match="MathJax"):
        book.mathjax(tmp_path)


# --- what stands in results/book --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of this tree, from its published notebooks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "RESULTS", tmp_path_factory.mktemp("results"))
        book.book()
        assert {there.name for there in files.RESULTS.iterdir()} == {".book", "book"}
        return files.RESULTS / "book"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with served(site) as found:
        yield found


class Links(HTMLParser):
    """Where a page leads to, and where it can be led to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.to, self.loaded, self.ids = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        if target := found.get("href") or found.get("src"):
            self.to.add(target)
            self.loaded |= {target} if tag != "a" else set()


@pytest.mark.slow
def test_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path):
    pages = {page: Links(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")
             if "_static" not in page.parts}
    assert {site / page for page in PAGES} <= set(pages)
    for page, links in pages.items():
        assert not [target for target in links.loaded if urlsplit(target).netloc], page
        for target in map(urlsplit, links.to):
            if target.scheme or target.netloc:
                continue
            led = (page.parent / unquote(target.path)).resolve() if target.path else page
            assert led.exists(), f"{page.relative_to(site)}: {target.path}"
            if target.fragment and led in pages:
                assert unquote(target.fragment) in pages[led].ids, f"{page.relative_to(site)}: #{target.fragment}"


@pytest.mark.slow
def test_it_is_small_and_carries_the_licence_of_what_it_took(site: Path):
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) < 40e6
    assert "Apache License" in (site / "_static" / "mathjax" / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", [Path(page).stem for page in PAGES if page.startswith("notebooks/")])
def test_every_solution_is_folded_and_every_figure_and_table_there(name: str, site: Path):
    html = (site / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
    cells = copies.read(ROOT / "notebooks" / f"{name}.ipynb").cells
    for k, cell in enumerate(cells):
        if copies.tagged(cell, "solution"):
            start = re.search(rf'<div class="[^"]*tag_solution[^"]*" id="cell-{k:02d}">\s*<details', html)
            assert start, f"cell {k} stands open"
    shown = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    assert html.count("_images/") >= sum("image/png" in data for data in shown)
    assert html.count("<table") >= sum("|---" in data.get("text/markdown", "") for data in shown)
    assert "_sources/notebooks" in html  # the notebook, to download


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_in_silence_fits_and_can_be_read_by_all(page: str, address: str, visitor: Visit):
    with visit(visitor, address + page, width=380) as (tab, heard):
        tab.wait_for_function("!window.MathJax?.startup || window.MathJax.startup.promise.then(() => true)")
        assert tab.locator("mjx-container").count() >= tab.locator(".math.notranslate").count()
        assert not tab.locator("mjx-merror").count()
        assert not heard  # before axe, which looks for stylesheets where they are not
        for width, scheme in ((380, "light"), (1440, "dark")):
            tab.emulate_media(color_scheme=scheme)
            tab.set_viewport_size({"width": width, "height": 900})
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            if scheme == "dark" and "notebooks/0" in page and "00_" not in page:
                continue  # axe takes its time over long pages, and colours are those of Chapter 0
            found = Axe().run(tab, options={"resultTypes": ["violations"]}).response["violations"]
            assert not {one["id"]: one["nodes"][0]["html"][:200] for one in found
                        if one["impact"] in ("serious", "critical")}


@pytest.mark.slow
def test_the_ledger_can_be_asked(address: str, visitor: Visit):
    shown = "[...document.querySelectorAll('.ledger tbody tr')].filter(row => row.offsetParent !== null).map("
    with visit(visitor, address + "docs/ledger.html") as (tab, _):
        everything = tab.evaluate(shown + "row => 1)")
        tab.get_by_role("button", name="fails", exact=True).click()
        tab.get_by_role("button", name="paper", exact=True).click()
        rows = tab.evaluate(shown + "row => row.textContent)")
        assert 0 < len(rows) < len(everything)
        assert all("fails" in row and "paper" in row for row in rows)
        asked = tab.url
    with visit(visitor, asked) as (tab, _):
        assert tab.evaluate(shown + "row => row.textContent)") == rows

"""A deck of slides for a chapter, from its headings, figures and equations; its prose becomes the speaker's notes.

A slide each: title, aims, the code from scratch, the live figure if there is one, exercises, summary; the rest of at
most TALK slides goes to sections, first by rank (a figure under a main heading, equations of the derivation, a figure
under a lower heading, a second figure), then in their order.
"""
from __future__ import annotations

import html
import re
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat

from pipeline import files
from pipeline.book import mathjax
from pipeline.files import Refused, sha256
from pipeline.student import ANSWER

REVEAL = "46538b52db487241"  # how the SHA-256 of reveal.js begins, of the version that requirements.txt pins
TALK = 20  # slides of a deck at most
SHOWN = 2  # figures of a section at most
FIGURE = '<figure><img src="data:image/png;base64,{}" alt="{}"><figcaption>{}</figcaption></figure>'


class Section(NamedTuple):
    """What stands under a heading."""

    heading: str  # with its marks
    main: str  # the main heading above it, or its own
    pieces: list[nbformat.NotebookNode | str]  # code cells, and text between them

    @property
    def title(self) -> str:
        return self.heading.lstrip("# ")

    @property
    def prose(self) -> str:
        return "\n\n".join(piece for piece in self.pieces if isinstance(piece, str))


def sections(notebook: nbformat.NotebookNode) -> list[Section]:
    """The chapter cut at its headings, down to the third level."""
    found, main = [Section("", "", [])], ""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            found[-1].pieces.append(cell)
            continue
        for part in re.split(r"^(?=#{1,3} )", cell.source, flags=re.MULTILINE):
            if part.startswith("#"):
                heading, _, part = part.partition("\n")
                main = heading.lstrip("# ") if heading.count("#", 0, 3) < 3 else main
                found.append(Section(heading, main, []))
            found[-1].pieces.append(part.strip())
    return found[1:]


def figures(section: Section) -> Iterator[str]:
    """The pictures of a section, as HTML, each with what is to be seen in it."""
    for piece in section.pieces:
        for output in piece.get("outputs", []) if not isinstance(piece, str) else []:
            if picture := output.get("data", {}).get("image/png"):
                alt = output.metadata.get("image/png", {}).get("alt", section.title)
                yield FIGURE.format("".join(picture.split()), *map(html.escape, (alt, begins(alt, 340))))


def equations(prose: str) -> list[str]:
    """Displayed equations that have a number."""
    return [one for one in re.findall(r"\$\$.*?\$\$", prose, re.DOTALL) if r"\tag" in one]


def begins(text: str, most: int) -> str:
    """The first sentences of a text: one, and more as long as they are no longer than `most`."""
    found = ""
    for one in re.split(r"(?<=[.!?])\s+(?=[A-Z$*`])|(?<=[.!?]\*\*)\s+", text.strip().partition("\n")[0]):
        if found and len(found) + len(one) > most:
            break
        found += f" {one}" if found else one
    return found


def slide(title: str, content: str, notes: str = "", *, level: int = 2) -> str:
    """One slide; title, content and notes are Markdown."""
    from nbconvert.filters import markdown2html

    heading = markdown2html(title).strip().removeprefix("<p>").removesuffix("</p>")
    said = f'<aside class="notes">{markdown2html(ANSWER.sub("", notes))}</aside>' if notes.strip() else ""
    return f"<section>\n<h{level}>{heading}</h{level}>\n{markdown2html(content)}\n{said}</section>"


def chosen(parts: list[Section], room: int) -> list[str]:
    """Slides of the sections' figures and equations, no more than there is room for."""
    found: list[tuple[int, str]] = []
    for part in parts:
        lower = part.heading.startswith("###")
        pictures = list(figures(part))[:SHOWN]
        for second, picture in enumerate(pictures):
            found.append((3 if second else 2 if lower else 0, slide(part.title, picture, part.prose)))
        if not pictures and (formulas := equations(part.prose)):
            rank = 1 if part.main == "Derivation" else 3
            first = begins(part.prose, 200)
            shown = formulas[:2 * SHOWN] if first[:1] in "<|$#*" else [first, *formulas[:2 * SHOWN]]
            found.append((rank, slide(part.title, "\n\n".join(shown), part.prose)))
    kept = sorted(range(len(found)), key=lambda position: (found[position][0], position))[:room]
    return [found[position][1] for position in sorted(kept)]


def slides(name: str, notebook: nbformat.NotebookNode) -> list[str]:
    """The slides of a chapter."""
    head, *parts = sections(notebook)
    by = {part.title.split(",")[0].split(" and ")[0]: part for part in parts}
    tasks = [part for part in parts if part.main == "Exercises"]
    parts = [part for part in parts if part.main not in ("Exercises", "References")]
    claim = "".join(re.findall(r"^\*\*.*\*\*$", head.prose, re.MULTILINE)[:1])
    facts = re.findall(r"^\| Papers? \| (.*) \|$", head.prose, re.MULTILINE)
    opening = [slide(head.title, "\n\n".join([claim, *facts]), head.prose, level=1)]
    aims = re.search(r"^(?:\*\*)?After this chapter you can.*?(?=^\*\*You need|^#|\Z)", head.prose, re.DOTALL | re.M)
    if aims:
        opening.append(slide("What you can do afterwards", aims[0].strip(), head.prose))
    if scratch := by.get("From scratch") or by.get("The method"):
        code = [piece for piece in scratch.pieces if not isinstance(piece, str)][-1].source
        opening.append(slide(scratch.title, f"```python\n{code}\n```", scratch.prose))
    if (files.ROOT / "docs" / "live" / f"{int(name[:2])}.html").exists():
        opening.append(slide("Try it", f'<iframe data-src="live/{int(name[:2])}.html" title="live figure"></iframe>'))
    asked = "\n\n".join(one.prose for one in tasks)
    leads = re.findall(r"^\*\*((?:Exercise|On paper)[^*]*)\*\*( ★+ \d+ minutes)?", asked, re.MULTILINE)
    closing = [slide("Exercises", "\n".join(f"* {''.join(lead).rstrip('.')}" for lead in leads), asked)]
    if summary := by.get("Summary"):
        points = re.findall(r"^\* (.*)$", summary.prose, re.MULTILINE)
        closing.append(slide("Summary", "\n".join(f"* {begins(point, 200)}" for point in points), summary.prose))
    return opening + chosen(parts, TALK - len(opening) - len(closing)) + closing


def deck(name: str, notebook: nbformat.NotebookNode) -> str:
    """The page of a deck."""
    page = (files.ROOT / "docs" / "slides" / "deck.html").read_text(encoding="utf-8")
    title = notebook.cells[0].source.partition("\n")[0].removeprefix("# ")
    return page.replace("{{title}}", title).replace("{{slides}}", "\n".join(slides(name, notebook)))


def furniture(folder: Path) -> None:
    """What all decks load: reveal.js out of the package that carries it, MathJax, the style, the live figures."""
    home = Path(sysconfig.get_path("purelib")) / "sphinx_revealjs" / "_static" / "revealjs"
    parts = [home / "dist" / "reveal.js", home / "dist" / "reveal.css", home / "plugin" / "notes" / "notes.js",
             home / "LICENSE"]
    if not parts[0].exists() or not sha256(parts[0]).startswith(REVEAL):
        raise Refused("reveal.js: not the package that requirements.txt pins; `make setup` installs it")
    (folder / "reveal").mkdir(parents=True)
    for file in parts:
        shutil.copy(file, folder / "reveal")
    mathjax(folder / "mathjax")
    shutil.copy(files.ROOT / "docs" / "slides" / "deck.css", folder)
    shutil.copytree(files.ROOT / "docs" / "live", folder / "live", ignore=shutil.ignore_patterns("*.py", "__pycache__"))

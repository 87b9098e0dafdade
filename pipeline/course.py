"""For the teacher: results/course/, all of it from the notebooks and docs/teaching.md.

    python -m pipeline course

    student/           without solutions and outputs        student.zip   the same, with all that they need
    instructor/        as they were run, with a cell for whoever teaches: minutes, board, wrong answers, discussion
    slides/            a deck a chapter and what it loads; S opens the speaker's notes
    nbgrader/, otter/  the exercises and what they need, as these tools want their assignments
"""
from __future__ import annotations

import ast
import io
import os
import re
import shutil
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell

from pipeline import files, slides
from pipeline.assignments import CONFIG, body, nbgrader, otter
from pipeline.book import executed
from pipeline.copies import dumps, read
from pipeline.files import Refused, replace
from pipeline.parameters import chapters
from pipeline.run import repair, swap
from pipeline.student import student

READ_ME = """\
Five roads from noise to data: the course.  Python 3.11 to 3.13; in this folder,

    python -m pip install -r requirements.txt && python -m jupyterlab notebooks

A Python of its own is better: python -m venv .venv, and its python for the line above.
"""


def course() -> None:
    """Write the folder, whole or not at all."""
    made, names = files.RESULTS / "course", chapters()
    repair(made)
    work = made.with_name(f".course.{os.getpid()}.new")
    try:
        guide = (files.ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
        slides.furniture(work / "slides")
        for name in names:
            master = files.ROOT / "notebooks" / f"{name}.ipynb"
            editions = {f"student/{name}.ipynb": student(read(master)),
                        f"instructor/{name}.ipynb": instructor(name, executed(name), guide),
                        f"nbgrader/source/{name}/{name}.ipynb": nbgrader(read(master)),
                        f"otter/{name}/{name}.ipynb": otter(read(master), name)}
            for file, edition in editions.items():
                nbformat.validate(edition)
                replace(work / file, dumps(edition))
            replace(work / "slides" / f"{name}.html", slides.deck(name, executed(name)))
        replace(work / "nbgrader" / "nbgrader_config.py", CONFIG)
        (work / "student.zip").write_bytes(zipped(archive(work / "student")))
        swap(work, made)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"written to {made}; live figures move once the slides are served: python -m http.server -d {made}/slides")


def instructor(name: str, notebook: nbformat.NotebookNode, guide: str) -> nbformat.NotebookNode:
    """The notebook with a second cell for whoever teaches it."""
    number = int(name[:2])
    parts = {
        "Minutes": "\n".join(f"* {row}" for row in minutes(number, guide)),
        "At the board": "\n".join(f"* {row}" for row in board(notebook)),
        "Wrong answers to expect": "\n".join(f"* Exercise {exercise}: {'; '.join(answers)}"
                                             for exercise, answers in wrong(notebook)),
        "For discussion": "\n\n".join(discussion(number, guide))}
    text = "\n\n".join(f"### {title}\n\n{content}" for title, content in parts.items())
    notebook.cells.insert(1, new_markdown_cell(f"## For the teacher\n\n{text}", id="for-the-teacher"))
    return notebook


def minutes(number: int, guide: str) -> Iterator[str]:
    """What the calendars of the guide say of a chapter."""
    for row in re.findall(rf"^\| (.*\bCh\. {number}\b.*) \|$", guide, re.MULTILINE):
        first, second, third = row.split(" | ")
        yield (f"the day, {first}: {second} minutes: {third}" if ":" in first
               else f"week {first}: {second}; laboratory: {third}")


def board(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """The numbered equations under each heading."""
    for section in slides.sections(notebook):
        tags = re.findall(r"\\tag\{?\(?([\d.]+\w*)", " ".join(slides.equations(section.prose)))
        if tags and section.main != "Exercises":
            yield f"{section.title}: {', '.join(f'({tag})' for tag in tags)}"


def wrong(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, list[str]]]:
    """The names of the answers that each check has to reject."""
    for cell in notebook.cells:
        for node in ast.walk(ast.Module(body(cell.source), [])) if cell.cell_type == "code" else ():
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "Check":
                answers, = (keyword.value for keyword in node.keywords if keyword.arg == "wrong")
                yield ast.literal_eval(node.args[0]), [ast.literal_eval(key) for key in getattr(answers, "keys", [])]


def discussion(number: int, guide: str) -> Iterator[str]:
    """The guide's questions that name a chapter, with their answers."""
    section = guide.partition("## Questions for discussion\n")[2].partition("\n## ")[0]
    for question in re.findall(r"^\d+\. (.*?)(?=^\d+\. |\Z)", section, re.DOTALL | re.MULTILINE):
        where = re.search(r"\((Chapters? [^)]*|all)\)", question)
        if where and (where[1] == "all" or str(number) in re.findall(r"\d+", where[1])):
            yield re.sub(r"\n   ", "\n", question).strip()


def archive(notebooks: Path) -> dict[str, bytes]:
    """What students need and nothing else, by its place: their notebooks, the library, data, long results, versions."""
    tables = {name.split()[1] for name in (files.ROOT / "lib" / "data.sha256").read_text(encoding="utf-8").splitlines()}
    wanted = [files.ROOT / "data" / name for name in tables]
    if missing := [file.name for file in wanted if not file.exists()]:
        raise Refused(f"data/: {', '.join(missing)} not found; `python -m pipeline data` pulls them")
    for folder, kinds in (("lib", (".py", ".sha256")), ("full/results", (".json", ".safetensors", ".png"))):
        wanted += [file for file in (files.ROOT / folder).rglob("*") if file.suffix in kinds]
    wanted += [files.ROOT / name for name in ("claims.yaml", "LICENSE")]
    project = tomllib.loads((files.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [re.split(r"[^\w.-]", bound)[0] for bound in project["dependencies"]] + ["jupyterlab", "ruamel.yaml"]
    members = {file.relative_to(files.ROOT).as_posix(): file.read_bytes() for file in wanted}
    members |= {f"notebooks/{file.name}": file.read_bytes() for file in notebooks.iterdir()}
    return members | {"README.txt": READ_ME.encode(), "pins.txt": (files.ROOT / "requirements.txt").read_bytes(),
                      "requirements.txt": "\n".join(["-c pins.txt", *asked, ""]).encode()}


def zipped(members: dict[str, bytes]) -> bytes:
    """A zip of these in one folder, the same bytes every time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in sorted(members.items()):
            entry = zipfile.ZipInfo(f"five-roads/{name}")  # of 1980
            entry.external_attr, entry.create_system = 0o644 << 16, 3
            target.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()

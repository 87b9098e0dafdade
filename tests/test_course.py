"""For the teacher: no solution reaches a student, exercises run anywhere, decks ask nobody, tools get their due."""
from __future__ import annotations

import ast
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from datetime import datetime, timedelta
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
import yaml
from browser import Visit, served, visit
from nbformat.v4 import new_markdown_cell, new_notebook, new_output
from packaging.requirements import Requirement
from tree import code

from pipeline import assignments, course, files, grade, slides, student
from pipeline.copies import read, tagged

pytestmark = pytest.mark.slow  # every edition of every chapter, twice

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(file.stem for file in (ROOT / "notebooks").glob("*.ipynb"))
GUIDE = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The course of this tree, from its published notebooks, made twice: nothing moves."""
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "RESULTS", results)
        course.course()
        before = digests(results)
        course.course()
    assert len(before) > 40 and digests(results) == before
    assert [folder.name for folder in results.iterdir()] == ["course"]
    return results / "course"


def digests(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def nothing_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Chapters set a type, a style and a path for all that follows; the next test is not theirs."""
    before = torch.get_default_dtype()
    monkeypatch.setattr(sys, "path", list(sys.path))
    with plt.rc_context():
        yield
    torch.set_default_dtype(before)
    plt.close("all")


def load(file: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    return notebook


# --- what students get ------------------------------------------------------------------------------------


def secrets() -> set[str]:
    """Lines of solutions and of folded answers that stand nowhere else in the notebooks."""
    cells = [cell for name in NAMES for cell in read(ROOT / "notebooks" / f"{name}.ipynb").cells]
    told = "\n".join(cell.source for cell in cells if not tagged(cell, "solution"))
    answers = re.findall(r"<summary>Answer</summary>(.*?)</details>", told, re.DOTALL)
    hidden = [line.strip() for cell in cells if tagged(cell, "solution") for line in cell.source.splitlines()]
    lines = {line for line in hidden if len(line) > 24 and line not in told}
    return lines | {line for answer in answers for line in answer.splitlines() if line.strip()}


def test_no_solution_reaches_a_student(made: Path):
    lines = {json.dumps(line, ensure_ascii=False)[1:-1] for line in secrets()}
    assert len(lines) > 200
    taught = "".join(file.read_text(encoding="utf-8") for file in (made / "instructor").iterdir())
    assert all(line in taught for line in lines)
    with zipfile.ZipFile(made / "student.zip") as archive:
        texts = {name: archive.read(name).decode("utf-8", "replace") for name in archive.namelist()
                 if "/data/" not in name and not name.endswith(".safetensors")}
    texts |= {file.name: file.read_text(encoding="utf-8") for file in (made / "student").iterdir()}
    for name, text in texts.items():
        assert not [line for line in lines if line in text], name
        assert not re.search(r"BEGIN SOLUTION|def solution_|check_\d+\(solution", text), name


def test_folded_answers_go_and_proofs_stay():
    text = "Why?\n\n<details><summary>Answer</summary>\n\n42\n</details>\n\n<details><summary>Proof</summary></details>"
    cell, = student.student(new_notebook(cells=[new_markdown_cell(text)])).cells
    assert cell.source == "Why?\n\n*your answer*\n\n<details><summary>Proof</summary></details>"


def test_the_archive_has_what_it_asks_for_and_pins_it(made: Path):
    with zipfile.ZipFile(made / "student.zip") as archive:
        names = {name.removeprefix("five-roads/") for name in archive.namelist()}
        pins, asked = (archive.read(f"five-roads/{part}.txt").decode() for part in ("pins", "requirements"))
    assert {f"notebooks/{name}.ipynb" for name in NAMES} == {name for name in names if name.endswith(".ipynb")}
    assert {"README.txt", "lib/data.sha256", "lib/chapter/exercise.py", "claims.yaml", "data/digits.npz"} <= names
    assert not any(part in name for name in names for part in ("__pycache__", "tests/", "pipeline/", "docs/"))
    results = {file.relative_to(ROOT).as_posix() for file in (ROOT / "full" / "results").rglob("*.*")}
    assert results <= names, "a notebook that reads a long run would fail"
    first, *wanted = asked.split("\n")[:-1]
    pinned = {Requirement(line.split(" #")[0]).name for line in pins.splitlines() if line and line[0] != "#"}
    assert first == "-c pins.txt" and {"torch", "jupyterlab", "POT"} <= set(wanted) <= pinned


def test_data_that_are_not_there_are_asked_for(root: Path):
    (root / "data" / "points.npz").unlink()
    with pytest.raises(files.Refused, match=r"points\.npz not found; `python -m pipeline data`"):
        course.archive(root)


def guard(name: str, made: Path) -> str:
    source, = (cell.source for cell in load(made / "student" / f"{name}.ipynb").cells
               if cell.cell_type == "code" and assignments.GUARD in cell.source)
    return source


@pytest.mark.parametrize("name", NAMES)
def test_without_the_library_the_first_cell_says_in_a_line_what_to_install(
        name: str, made: Path, monkeypatch: pytest.MonkeyPatch, nothing_stays: None):
    monkeypatch.chdir("/")
    monkeypatch.setitem(sys.modules, "lib", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"^lib not found: .*pip install -r requirements\.txt.*$") as told:
        exec(guard(name, made), {"__name__": "student"})
    assert "\n" not in str(told.value) and "python -m pipeline" not in str(told.value)


def test_exercises_run_in_the_unpacked_archive_from_any_folder(made: Path, tmp_path: Path):
    """All of them in a process of their own, with nothing but the archive; and from / with its library installed."""
    zipfile.ZipFile(made / "student.zip").extractall(tmp_path)
    home = tmp_path / "five-roads"
    program = ["import torch, lib", "print(lib.__file__)"]
    for name in NAMES:
        body = [one for one in grade.statements(load(home / "notebooks" / f"{name}.ipynb")) if not isinstance(one, str)]
        calls = [position for position, one in enumerate(body) if grade.called(one)]
        wanted = {id(one) for position in calls for one in grade.needed(body[position], body[:position])}
        cells = ast.unparse(ast.Module([one for one in body if id(one) in wanted], []))
        program.append(f"torch.set_default_dtype(torch.float32); exec({guard(name, made) + chr(10) + cells!r}, {{}})")
    for folder, path in ((home / "notebooks", None), ("/", home)):  # of which the second needs no more than a chapter
        first = "" if path else "import sys; sys.path.insert(0, '..')"
        lines = [first, *program[:3 if path else None]]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"MPLBACKEND": "Agg"}
        environment |= {"PYTHONPATH": str(path)} if path else {}
        done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=folder, env=environment,
                              text=True, capture_output=True)
        where, *said = done.stdout.splitlines()
        assert Path(folder, where).resolve().is_relative_to(home.resolve()), done.stderr
        assert len(said) == 4 * (len(lines) - 3)
        assert all(re.fullmatch(r"exercise \d: not attempted", line) for line in said)


# --- what the teacher gets --------------------------------------------------------------------------------


def test_the_instructors_edition_is_the_notebook_as_it_was_run_and_one_cell(made: Path):
    for name in NAMES:
        cells, master = load(made / "instructor" / f"{name}.ipynb").cells, read(ROOT / "notebooks" / f"{name}.ipynb")
        taught = cells.pop(1).source
        assert cells == master.cells
        parts = dict(re.findall(r"^### (.*?)\n\n(.+?)(?=\n\n### |\Z)", taught, re.DOTALL | re.MULTILINE))
        assert list(parts) == ["Minutes", "At the board", "Wrong answers to expect", "For discussion"]
        assert parts["Minutes"].count("\n* week ") + parts["Minutes"].startswith("* week ") >= 1
        assert parts["Minutes"].count("the day") >= 1 and parts["For discussion"].count("*Answer.*") >= 2
        assert re.findall(r"Exercise (\d)", parts["Wrong answers to expect"]) == ["1", "2", "3", "4"]
        assert parts["At the board"].count("(") >= 3


def test_wrong_answers_are_those_of_the_checks():
    cell = code('check_1 = exercise.Check("1", {"a": f}, wrong={"twice": g, "the sum": h})')
    assert list(course.wrong(new_notebook(cells=[new_markdown_cell("a proof ("), cell]))) == [
        ("1", ["twice", "the sum"])]


def test_the_day_adds_up():
    table = GUIDE.partition("**A day")[2].partition("**A term")[0]
    rows = re.findall(r"^\| (\d+:\d\d) \| (\d*) ?\|", table, re.MULTILINE)
    now = datetime.strptime(rows[0][0], "%H:%M")
    for start, minutes in rows:
        assert datetime.strptime(start, "%H:%M") == now, start
        now += timedelta(minutes=int(minutes or 0))
    assert len(rows) > 8 and not rows[-1][1]
    assert sum(int(minutes or 0) for _, minutes in rows) == 60 * int(re.search(r"A day \((\d+) hours", GUIDE)[1])


def test_the_weeks_add_up_and_name_every_exercise_once():
    table = GUIDE.partition("**A term")[2].partition("\n## ")[0]
    head, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    budget = [int(re.search(r"(\d+) minutes", part)[1]) for part in head[1:]]
    assert [row[0] for row in rows] == [str(week) for week in range(1, 13)]
    exercises: dict[str, list[str]] = {}
    for week, *parts in rows:
        assert [sum(map(int, re.findall(r"\((\d+)\)", part))) for part in parts] == budget, week
        if chapter := re.match(r"Ch\. (\d)", parts[0]):
            exercises.setdefault(chapter[1], []).extend(re.findall(r"exercise (\d)", parts[1]))
    assert exercises == {str(int(name[:2])): ["1", "2", "3", "4"] for name in NAMES}


def test_it_is_written_whole_or_not_at_all(two_chapters: Path, monkeypatch: pytest.MonkeyPatch):
    old = two_chapters / "results" / "course" / "old"
    old.parent.mkdir()
    old.write_text("kept")
    for part in ("slides", "live", "teaching.md"):
        (two_chapters / "docs" / part).parent.mkdir(exist_ok=True)
        (two_chapters / "docs" / part).symlink_to(ROOT / "docs" / part)
    monkeypatch.setattr(slides, "deck", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        course.course()
    assert old.read_text() == "kept" and not list(old.parent.parent.glob(".course*"))


# --- slides -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_deck_has_a_talks_length_and_loads_only_what_lies_beside_it(name: str, made: Path):
    page = (made / "slides" / f"{name}.html").read_text(encoding="utf-8")
    assert 12 <= page.count("<section>") <= slides.TALK
    assert page.count('<aside class="notes">') >= page.count("<section>") - 1  # the live figure speaks for itself
    assert "<summary>Answer" not in page and "BEGIN SOLUTION" not in page and "solution_1" not in page
    loaded = re.findall(r'<(?:script|img|iframe|link)[^>]*?\b(?:data-)?(?:src|href)="([^"]*)"', page)
    beside = {one for one in loaded if not one.startswith("data:")}
    assert {"reveal/reveal.js", "mathjax/tex-chtml.js", "deck.css"} <= beside
    assert all((made / "slides" / one).is_file() for one in beside)


def test_what_gets_a_slide():
    """A figure under a main heading before one under a lower heading, before a second one; in their own order."""
    picture = [new_output("display_data", data={"image/png": "iVBO"}, metadata={"image/png": {"alt": "Seen. Twice."}})]
    notebook = new_notebook(cells=[
        new_markdown_cell("# T\n\n## A"), code("1", outputs=picture * 3), new_markdown_cell("### B"),
        code("2", outputs=picture), new_markdown_cell("## Derivation\n\nIt is.\n\n$$x \\tag{1}$$\n\n$$y$$")])
    parts = slides.sections(notebook)[1:]
    titles = [[re.search(r"<h2>(.*?)</h2>", one)[1] for one in slides.chosen(parts, room)] for room in range(5)]
    assert titles == [[], ["A"], ["A", "Derivation"], ["A", "B", "Derivation"], ["A", "A", "B", "Derivation"]]
    first, *_, last = slides.chosen(parts, 5)
    assert 'alt="Seen. Twice."' in first and "<figcaption>Seen. Twice.</figcaption>" in first
    assert last.count("$$x") == 2 and last.count("$$y") == 1  # shown and in the notes; only in the notes


def test_another_reveal_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slides, "REVEAL", "0" * 16)
    with pytest.raises(files.Refused, match=r"reveal\.js"):
        slides.furniture(tmp_path)


SEEN = """async (number) => {
  Reveal.slide(number)
  const slide = Reveal.getCurrentSlide()
  await typeset(slide)
  const rooms = [...slide.children, ...slide.querySelectorAll("mjx-math, img")].filter((one) => one.tagName != "ASIDE")
  const edges = rooms.map((one) => one.getBoundingClientRect())
  const text = rooms.map((one) => one.innerText ?? "").join(" ")
  return [Math.max(...edges.map((one) => one.bottom)), Math.max(...edges.map((one) => one.right)), text,
          [...slide.querySelectorAll("img")].every((one) => one.complete && one.naturalWidth > 0)]
}"""


@pytest.mark.parametrize("name", NAMES)
def test_every_slide_fits_and_asks_nobody(name: str, made: Path, visitor: Visit):
    with served(made / "slides") as home, visit(visitor, f"{home}{name}.html", width=1280, height=720) as (tab, heard):
        tab.wait_for_function("window.MathJax?.typesetPromise && Reveal.isReady()")
        for number in range(tab.evaluate("Reveal.getTotalSlides()")):
            bottom, right, text, pictures = tab.evaluate(SEEN, number)
            assert bottom <= 720 and right <= 1280 and pictures, (number, bottom, right)
            assert "$" not in text and text.strip(), number
        assert not heard


# --- assignments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_assignment_is_what_nbgrader_wants(name: str, made: Path):
    cells = load(made / "nbgrader" / "source" / name / f"{name}.ipynb").cells
    meta = [cell.metadata.nbgrader for cell in cells]
    assert len({one.grade_id for one in meta}) == len(meta)
    assert all(one.schema_version == 3 and not one.task for one in meta)
    for cell, one in zip(cells, meta, strict=True):
        assert re.fullmatch(r"[\w-]+", one.grade_id) and ("points" in one) == one.grade
        assert one.locked != one.solution and not (one.grade and one.solution)
        assert one.solution == ("### BEGIN SOLUTION" in cell.source) == ("### END SOLUTION" in cell.source)
        left = student.SOLUTION.sub("", cell.source)
        assert "solution_" not in left and (not one.solution or "return None" in left)
    assert [one.grade_id for one in meta if one.grade] == [f"test-{number}" for number in "1234"]
    assert sum(one.points for one in meta if one.grade) == 4


@pytest.mark.parametrize("name", NAMES)
def test_an_assignment_passes_with_its_solutions_and_only_then(
        name: str, made: Path, monkeypatch: pytest.MonkeyPatch, nothing_stays: None):
    """It is run as it stands, with no more of the chapter than it holds."""
    monkeypatch.chdir(ROOT / "notebooks")
    cells = [cell for cell in load(made / "nbgrader" / "source" / name / f"{name}.ipynb").cells
             if cell.cell_type == "code"]
    space: dict[str, object] = {"__name__": "assignment"}
    for before, cell in zip([None, *cells], cells, strict=False):
        with redirect_stdout(io.StringIO()):
            exec(cell.source, space)
            if cell.metadata.nbgrader.grade:
                exec(student.SOLUTION.sub("", before.source), space)
                with pytest.raises(AssertionError, match="not attempted"):
                    exec(cell.source, space)


@pytest.mark.parametrize("name", NAMES)
def test_an_assignment_is_what_otter_wants(name: str, made: Path):
    cells = load(made / "otter" / name / f"{name}.ipynb").cells
    raw = [cell.source.partition("\n") for cell in cells if cell.cell_type == "raw"]
    assert [first.removeprefix("# ") for first, _, _ in raw] == ["ASSIGNMENT CONFIG"] + 4 * [
        "BEGIN QUESTION", "BEGIN SOLUTION", "END SOLUTION", "BEGIN TESTS", "END TESTS", "END QUESTION"]
    assert yaml.safe_load(raw[0][2])["name"] == name
    assert [yaml.safe_load(rest) for first, _, rest in raw if first == "# BEGIN QUESTION"] == [
        {"name": f"exercise_{number}", "points": 1} for number in "1234"]
    for before, cell in itertools.pairwise(cells):
        answer = before.source == "# BEGIN SOLUTION" and before.cell_type == "raw"
        left = re.sub(r"# BEGIN SOLUTION NO PROMPT.*?# END SOLUTION", "", cell.source, flags=re.DOTALL)
        assert "solution_" not in left and (cell.source == left) != answer


def test_its_parts_are_as_they_are_written():
    """What is needed keeps its comments, what is not goes; a solution comes under the name that is asked for."""
    notebook = new_notebook(cells=[
        new_markdown_cell("# Title\n\nand a claim"),
        code("import math  # all imports stay\nunused = 1\nused = 2  # two"),
        new_markdown_cell("## Elsewhere"), new_markdown_cell("## Exercises\n\nEach has a stub, and a solution in a "
                                                             "collapsed cell."),
        code("check_1 = Check('1')", "exercise-check"), code("def f(x):\n    return None\n\n\ncheck_1(f)", "exercise"),
        code("### BEGIN SOLUTION\ndef solution_1(x):\n    return used * x  # so\n\n\ncheck_1(solution_1)\nplot()\n"
             "### END SOLUTION", "solution"), new_markdown_cell("## Summary")])
    title, given, exercises, check, answer = assignments.parts(notebook)
    assert title.source.startswith("# Title\n\nThe exercises") and exercises.source.endswith("Each has a stub.")
    assert given.source == "import math  # all imports stay\nused = 2  # two" and check.source == "check_1 = Check('1')"
    assert answer == (False, "def f(x):\n    return None", "1", "f",
                      "def solution_1(x):\n    return used * x  # so\n\n\nf = solution_1")


def tool(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"no {name} on the path: docs/teaching.md says how to install it")


def test_nbgrader_accepts_them(made: Path, tmp_path: Path):
    command = tool("nbgrader")
    shutil.copytree(made / "nbgrader", tmp_path / "course")
    for name in NAMES:
        subprocess.run([command, "generate_assignment", name], cwd=tmp_path / "course", check=True)
        released = load(tmp_path / "course" / "release" / name / f"{name}.ipynb")
        assert "solution_" not in str(released) and "your answer" in str(released)


def test_otter_accepts_them(made: Path, tmp_path: Path):
    command = tool("otter")
    for name in NAMES:
        master = made / "otter" / name / f"{name}.ipynb"
        subprocess.run([command, "assign", "--no-run-tests", "--no-pdfs", master, tmp_path / name], check=True)
        released = load(tmp_path / name / "student" / f"{name}.ipynb")
        assert "solution_" not in str(released) and "return None" in str(released)

"""The site: results/book/, from the executed notebooks and the guides in docs/.

    python -m pipeline book        needs no network; nothing on its pages asks for any

What Sphinx reads is laid out in results/.book/, as the repository is: the notebooks of results/, or the published ones
where there are none, with solutions and long plots folded by tags and not a word changed.
"""
from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat

from pipeline import files, ledger
from pipeline.copies import dumps, read, tagged
from pipeline.files import Refused, replace, sha256
from pipeline.parameters import chapters

MATHJAX = "9b5ae004241a76ab"  # how the SHA-256 of tex-chtml.js begins, of the version that requirements.txt pins
LONG = 12  # lines of code above a figure that are folded


def book() -> None:
    """Lay the sources out, and let Sphinx make the pages, with every warning an error."""
    work, made = files.RESULTS / ".book", files.RESULTS / "book"
    source, html = lay_out(work), work / "html"
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-q", "-j", "2", "-b", "html",
               "-d", str(work / "doctrees"), str(source), str(html)]
    if subprocess.call(command, cwd=files.ROOT):
        raise Refused("the book was not made; what Sphinx says is above")
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(html, made, ignore=shutil.ignore_patterns(".buildinfo*", "objects.inv"))
    print(f"the site is in {made}; its figures move once it is served: python -m http.server -d {made}")


def lay_out(work: Path) -> Path:
    """What Sphinx reads, in `work`/source: only what has changed is written."""
    source, docs, names = work / "source", files.ROOT / "docs", chapters()
    notebooks = {name: executed(name) for name in names}
    for name, notebook in notebooks.items():
        replace(source / "notebooks" / f"{name}.ipynb", dumps(folded(notebook)))
    copy(docs / "book", source)
    copy(docs / "gallery", source / "docs" / "gallery")
    copy(docs / "live", source / "extra" / "live")
    for guide in [*docs.glob("*.md"), *docs.glob("*.svg")]:
        replace(source / "docs" / guide.name, guide.read_text(encoding="utf-8"))
    for name in ("CONTRIBUTING.md", "claims.yaml"):
        replace(source / name, (files.ROOT / name).read_text(encoding="utf-8"))
    replace(source / "docs" / "ledger.md", rows(notebooks))
    index = (docs / "book" / "index.md").read_text(encoding="utf-8")
    cards = "\n".join(card(name, notebook) for name, notebook in notebooks.items())
    replace(source / "index.md", index.replace("<!-- chapters -->", cards))
    mathjax(source / "_static" / "mathjax")
    return source


def copy(source: Path, to: Path) -> None:
    """A folder, over what may be there."""
    shutil.copytree(source, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("index.md", "__pycache__"))


def executed(name: str) -> nbformat.NotebookNode:
    """A chapter as it was run here, or as it is published."""
    here = files.RESULTS / name / f"{name}.ipynb"
    return read(here if here.exists() else files.ROOT / "notebooks" / f"{name}.ipynb")


def folded(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with tags that fold solutions, the checks of exercises, long plots and the search for `lib`."""
    for cell in notebook.cells:
        shows = any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
        if tagged(cell, "solution"):
            tag, what = "hide-cell", "solution"
        elif tagged(cell, "exercise-check"):
            tag, what = "hide-input", "check"
        elif "google.colab" in cell.source or (shows and len(cell.source.splitlines()) > LONG):
            tag, what = "hide-input", "code"
        else:
            continue
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), tag]
        cell.metadata["mystnb"] = {"code_prompt_show": f"Show the {what}", "code_prompt_hide": f"Hide the {what}"}
    return notebook


def rows(notebooks: dict[str, nbformat.NotebookNode]) -> str:
    """The ledger of the results here, or the published one; its links lead to cells of this site."""
    from lib.chapter.claims import Row

    here = [Row(**row) for name in notebooks for row in ledger.claims(name)]
    complete = all((files.RESULTS / name / "claims.json").exists() for name in notebooks)
    text = (ledger.page(here, notebooks) if complete
            else (files.ROOT / "docs" / "ledger.md").read_text(encoding="utf-8"))
    return re.sub(r"\(\.\./notebooks/(\w+)\.ipynb#cell-id=([\w-]+)\)", r"(cell:\1#\2)", text)


def card(name: str, notebook: nbformat.NotebookNode) -> str:
    """A chapter on the first page: its picture, its claim, how long it takes and for whom; README has the caption."""
    head = notebook.cells[0].source
    title, _, rest = head.removeprefix("# ").partition("\n")
    claim = "".join(re.findall(r"^\s*\*\*(.*)\*\*$", rest, re.MULTILINE)[:1])
    about = dict(re.findall(r"^\| (Level|Time) \| (.*?) \|$", head, re.MULTILINE))
    readme = (files.ROOT / "README.md").read_text(encoding="utf-8")
    alt = re.search(rf"!\[([^\]]*)\]\(docs/gallery/{name}\.(?:png|webp)\)", readme)
    there = (files.ROOT / "docs" / "gallery" / f"{name}.png").exists()
    picture = f"[![{alt[1] if alt else title}](docs/gallery/{name}.png)](notebooks/{name}.ipynb)" if there else ""
    return (f"::::{{container}} chapter\n{picture}\n\n**[{int(name[:2])} · {title}](notebooks/{name}.ipynb)**\n\n"
            f"{claim}\n\n:::{{container}} small\n{about.get('Time', '')} · {about.get('Level', '')}\n:::\n::::\n")


def mathjax(folder: Path) -> None:
    """MathJax and its fonts out of the package that carries them, with its licence."""
    home = Path(sysconfig.get_path("purelib")) / "mathjax" / "static" / "mathjax"
    script = home / "es5" / "tex-chtml.js"
    if not script.exists() or not sha256(script).startswith(MATHJAX):
        raise Refused("MathJax: not the package that requirements.txt pins; `make setup` installs it")
    shutil.copytree(home / "es5" / "output" / "chtml" / "fonts", folder / "output" / "chtml" / "fonts",
                    dirs_exist_ok=True)
    for file in (script, home / "LICENSE"):
        shutil.copy2(file, folder)

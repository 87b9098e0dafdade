"""What a chapter depends on: the `lib` files that it imports, its long runs, its packages and its data."""
from __future__ import annotations

import ast
import functools
import importlib.metadata
import json
import re
import shutil
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_notebook

from pipeline import files
from pipeline.copies import dumps, read, stripped
from pipeline.files import Refused, replace, sha256
from pipeline.parameters import chapters

DATA = "lib/data.sha256"  # hashes of the files in data/


def imported(sources: list[str], folder: Path) -> tuple[dict[str, Path], set[str]]:
    """The `lib` modules that Python sources import, transitively, and the top-level packages they use.

    Names are dotted below `lib`, as "kernels.attention".  A package counts with its face, its `__init__.py`, which
    Python runs first and whose imports are followed like any other.
    """
    modules: dict[str, Path] = {}
    packages: set[str] = set()
    pending = [(source, "lib", "") for source in sources]
    while pending:
        for name in _imports(*pending.pop()):
            top, *rest = name.split(".")
            if top != "lib":
                packages.add(top)
                continue
            for depth in range(1, len(rest) + 1):
                module, at = ".".join(rest[:depth]), folder.joinpath(*rest[:depth])
                file, package = at / "__init__.py", f"lib.{module}"
                if not file.exists():
                    file, package = at.with_suffix(".py"), f"lib.{module}".rpartition(".")[0]
                if not file.exists():  # an attribute of the module before
                    break
                if module not in modules:
                    modules[module] = file
                    where = f"lib/{file.relative_to(folder).as_posix()}"
                    pending.append((_text(file, where), package, where))
    return dict(sorted(modules.items())), packages


def _text(file: Path, where: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{where} is no UTF-8: {error}") from error


@functools.cache  # chapters share most of lib
def _imports(source: str, package: str, where: str) -> tuple[str, ...]:
    """Absolute dotted names that a source imports; relative imports start from `package`.

    Refuses a file of lib, at `where`, that is no Python; a cell will say so itself when it runs.
    """
    source = re.sub(r"\A\s*%%.*", "", source)  # what %%time and the like hide; other magics become calls
    try:
        tree = ast.parse(TransformerManager().transform_cell(source))
    except (SyntaxError, ValueError) as error:  # ValueError: a null byte
        if where:
            raise Refused(f"{where} is no Python: {error}") from error
        return ()
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[:1 - node.level or None] if node.level else []
            module = ".".join(filter(None, [*above, node.module]))
            names += [f"{module}.{alias.name}" for alias in node.names]
    return tuple(names)


def fingerprint(name: str, notebook: nbformat.NotebookNode) -> dict[str, dict[str, str]]:
    """SHA-256 of each imported `lib` module, of what long runs left for them and for the chapter, and versions."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    modules, packages = imported(cells, files.ROOT / "lib")
    names = {owner for package in packages for owner in _distributions().get(package, [])}
    full = sorted(file for room in (name, *modules) for file in (files.ROOT / "full" / "results" / room).rglob("*")
                  if file.is_file())
    if "data" in modules:
        modules["data.sha256"] = files.ROOT / DATA
    return {"lib": {module: sha256(file) for module, file in modules.items()},
            "full": {file.relative_to(files.ROOT).as_posix(): sha256(file) for file in full},
            "packages": {owner: importlib.metadata.version(owner) for owner in sorted(names)}}


_distributions = functools.cache(importlib.metadata.packages_distributions)


def clean() -> None:
    """Write results/clean/NAME.ipynb and NAME.lib.json for every notebook and for the codes, once data/ is whole."""
    check_data()
    folder, encoding = files.RESULTS / "clean", new_notebook(cells=[new_code_cell("from lib import latents")])
    wanted = {"latents.lib.json": json.dumps(fingerprint("latents", encoding), indent=1) + "\n"}
    sources = sorted((files.ROOT / "notebooks").glob("*.ipynb"))
    if missing := set(chapters()) - {source.stem for source in sources}:
        raise Refused(f"notebooks/{min(missing)}.ipynb is missing; need a notebook of each chapter in dvc.yaml")
    for source in sources:
        notebook = stripped(read(source))
        wanted[source.name] = dumps(notebook)
        wanted[f"{source.stem}.lib.json"] = json.dumps(fingerprint(source.stem, notebook), indent=1) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in wanted.items():
        replace(folder / name, text)
    for file in folder.iterdir():
        if file.name not in wanted:
            shutil.rmtree(file) if file.is_dir() else file.unlink()


def check_data() -> None:
    """Refuse data/ that is not what lib/data.sha256 lists, before a chapter computes for minutes.

    Chapters depend on the data through that table.  Were data/ itself a dependency, `dvc repro` would take a
    damaged file for a new version, write it into data.dvc, and leave no way back.
    """
    for line in (files.ROOT / DATA).read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        if not re.fullmatch(r"[0-9a-f]{64}", digest) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", name):
            raise Refused(f"{DATA}: got {line!r}; need a SHA-256, two spaces and a path below data/")
        file = files.ROOT / "data" / name
        if not file.exists():
            raise Refused(f"data/{name} is missing; need the bundled data: `make data` or `dvc pull data.dvc`")
        if sha256(file) != digest:
            raise Refused(f"data/{name}: got SHA-256 {sha256(file)[:12]}…; need {digest[:12]}…: the file is "
                          "damaged; delete it and run `make data`")

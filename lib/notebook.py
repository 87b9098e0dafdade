"""One notebook as one pipeline stage.

    python -m lib.notebook clean             check data/, strip every notebook, fingerprint what it depends on
    python -m lib.notebook run 00_one_softmax

A chapter depends on its stripped copy and on the hashes of the `lib` files it imports, so saving outputs or
touching a file reruns nothing, and editing one module reruns the chapters that use it.  `run` checks the
parameters before anything is computed, executes the copy with papermill in a folder of its own, shows its
progress in the terminal, makes the result a function of its inputs alone (no dates, no random identifiers),
and puts it in place by two renames: a failure or a kill at any moment leaves the last good results readable.
"""
from __future__ import annotations

import ast
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from lib.parameters import Refused, checked, literals, read_yaml

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
          "language_info": {"name": "python"}}
INJECTED = "injected-parameters"  # papermill's tag


# --- the stripped copy and what it depends on -------------------------------------------------------------


def read(file: Path) -> nbformat.NotebookNode:
    """A notebook file; refuses what is not one, such as a file with merge-conflict marks."""
    try:
        return nbformat.read(file, as_version=4)
    except (ValueError, AttributeError, KeyError, nbformat.ValidationError) as error:
        raise Refused(f"{file.relative_to(ROOT)} cannot be read as a notebook: {str(error)[:200]}") from error


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as its author wrote it: no outputs, no injected cell, fixed metadata."""
    notebook.cells = [cell for cell in notebook.cells if not tagged(cell, INJECTED)]
    for position, cell in enumerate(notebook.cells):
        cell.id = f"cell-{position:02d}"
        cell.metadata = _metadata(cell)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = nbformat.from_dict(KERNEL)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def normalised(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An executed notebook as a function of its inputs: without times, widgets and random identifiers."""
    for cell in notebook.cells:
        cell.metadata = _metadata(cell)
        if tagged(cell, INJECTED):
            cell.id = INJECTED
    notebook.metadata = nbformat.from_dict(KERNEL)
    return notebook


def _metadata(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A cell's tags; cells tagged `solution` are collapsed."""
    kept = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
    if tagged(cell, "solution"):
        kept["jupyter"] = {"source_hidden": True}
    return nbformat.from_dict(kept)


def tagged(cell: nbformat.NotebookNode, tag: str) -> bool:
    """Whether a cell carries a tag."""
    return tag in cell.metadata.get("tags", [])


def dumps(notebook: nbformat.NotebookNode) -> str:
    """Notebook text with a fixed order of keys and a final newline."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def imported(sources: list[str], folder: Path) -> tuple[dict[str, Path], set[str]]:
    """The `lib` modules that Python sources import, transitively, and the top-level packages they use.

    Names are dotted below `lib`, as "kernels.attention".  A package counts with its face, its `__init__.py`, which
    Python runs first and whose imports are followed like any other.
    """
    modules: dict[str, Path] = {}
    packages: set[str] = set()
    pending = [(source, "lib") for source in sources]
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
                    pending.append((file.read_text(encoding="utf-8"), package))
    return dict(sorted(modules.items())), packages


def _imports(source: str, package: str) -> Iterator[str]:
    """Absolute dotted names that a source imports; relative imports start from `package`."""
    source = re.sub(r"\A\s*%%.*", "", source)  # what %%time and the like hide; other magics become calls
    try:
        tree = ast.parse(TransformerManager().transform_cell(source))
    except SyntaxError:  # the cell will say so itself when it runs
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[:1 - node.level or None] if node.level else []
            module = ".".join(filter(None, [*above, node.module]))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def fingerprint(name: str, notebook: nbformat.NotebookNode) -> dict[str, dict[str, str]]:
    """SHA-256 of each imported `lib` module and of the chapter's long-run results, and versions of packages."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    modules, packages = imported(cells, ROOT / "lib")
    names = {owner for package in packages for owner in _distributions().get(package, [])}
    full = sorted(file for file in (ROOT / "full" / "results" / name).rglob("*") if file.is_file())
    return {"lib": {module: _sha256(file) for module, file in modules.items()},
            "full": {file.relative_to(ROOT).as_posix(): _sha256(file) for file in full},
            "packages": {owner: importlib.metadata.version(owner) for owner in sorted(names)}}


_distributions = functools.cache(importlib.metadata.packages_distributions)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def clean() -> None:
    """Write results/clean/NAME.ipynb and NAME.lib.json for every notebook, once data/ is whole."""
    check_data()
    folder, wanted = RESULTS / "clean", {}
    for source in sorted((ROOT / "notebooks").glob("*.ipynb")):
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
    """Refuse data/ that is not what lib/data.py was written for, before a chapter computes for minutes.

    Chapters depend on the data through that table.  Were data/ itself a dependency, `dvc repro` would take a
    damaged file for a new version, write it into data.dvc, and leave no way back.
    """
    for name, sha256 in literals((ROOT / "lib" / "data.py").read_text(encoding="utf-8"))["SHA256"].items():
        file = ROOT / "data" / name
        if not file.exists():
            raise Refused(f"data/{name} is missing; need the bundled data: `make data` or `dvc pull data.dvc`")
        if _sha256(file) != sha256:
            raise Refused(f"data/{name}: got SHA-256 {_sha256(file)[:12]}…; need {sha256[:12]}…: the file is "
                          "damaged; delete it and run `make data`")


def replace(file: Path, text: str) -> None:
    """Write a text file whole or not at all, and only if it changed."""
    if file.exists() and file.read_bytes() == text.encode():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        part.write_bytes(text.encode())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


# --- running ----------------------------------------------------------------------------------------------


def parameters(name: str, notebook: nbformat.NotebookNode) -> tuple[dict[str, object], dict[str, object]]:
    """The chapter's parameters: all values by params.yaml, and those that differ from the notebook's defaults."""
    cells = [cell.source for cell in notebook.cells if tagged(cell, "parameters")]
    defaults = literals("\n".join(cells))
    sections = read_yaml(ROOT / "params.yaml")
    values = checked(name, sections.get(name, {}), defaults)
    return values, {key: value for key, value in values.items() if value != defaults[key]}


def run(name: str) -> None:
    """Execute the clean copy of a chapter and put its results at results/NAME/."""
    source, target = RESULTS / "clean" / f"{name}.ipynb", RESULTS / name
    if not source.exists():
        known = ", ".join(sorted(file.stem for file in source.parent.glob("*.ipynb"))) or "none: run `clean` first"
        raise Refused(f"chapter: got {name!r}; need one of {known}")
    values, changed = parameters(name, read(source))
    with alone(name):
        repair(target)
        work = RESULTS / f".{name}.{os.getpid()}.new"
        work.mkdir()
        started = time.monotonic()
        try:
            execute(source, work / source.name, changed, _checkpoints(name, source, values))
            swap(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(RESULTS / "checkpoints" / name, ignore_errors=True)
        (RESULTS / "failed" / source.name).unlink(missing_ok=True)
        took = {"seconds": round(time.monotonic() - started, 1), "finished": time.time()}
        replace(RESULTS / "timings" / f"{name}.json", json.dumps(took) + "\n")


def execute(source: Path, output: Path, changed: dict[str, object], checkpoints: Path) -> None:
    """papermill, with progress in the terminal; on failure keep the copy and say which cell and why."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    name = source.stem
    bar = {"desc": name, "ncols": 88, "leave": False, "bar_format": "{desc}: {n}/{total} cells |{bar}| {elapsed}"}
    with surroundings(output.parent, checkpoints):
        try:
            papermill.execute_notebook(str(source), str(output), parameters=changed, kernel_name="python3",
                                       cwd=str(ROOT / "notebooks"), progress_bar=bar, start_timeout=300,
                                       iopub_timeout=60)
            replace(output, dumps(normalised(read(output))))
            return
        except papermill.PapermillExecutionError as error:
            why = f"cell {error.exec_count} raised {error.ename}: {error.evalue}\n{error.source}"
        except DeadKernelError:
            why = "the kernel died, often for lack of memory"
        except KeyboardInterrupt:
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # what was under way has no one to tell
            raise Refused(f"{name}: interrupted; the last good results are untouched, "
                          "and the next run goes on from the last checkpoint") from None
        except OSError as error:  # such as a full disk
            raise Refused(f"{name}: {error}; the last good results are untouched") from None
    kept = RESULTS / "failed" / output.name
    kept.parent.mkdir(exist_ok=True)
    shutil.copyfile(output, kept)
    raise Refused(f"{name}: {why}\nThe notebook as far as it came: {kept.relative_to(ROOT)}; "
                  "the last good results are untouched.")


@contextmanager
def surroundings(out: Path, checkpoints: Path) -> Iterator[None]:
    """The environment a kernel inherits: where to write and report, this tree's lib, nobody's own settings."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        profile = Path(scratch) / "profile_default" / "ipython_kernel_config.py"
        profile.parent.mkdir()
        profile.write_text("c.IPKernelApp.log_level = 'CRITICAL'\n")
        with terminal(Path(scratch) / "progress") as pipe:
            os.environ.update(FIVE_ROADS_OUT=str(out), FIVE_ROADS_CHECKPOINTS=str(checkpoints),
                              FIVE_ROADS_PROGRESS=str(pipe), PYTHONPATH=str(ROOT), PYTHONHASHSEED="0",
                              IPYTHONDIR=scratch, JUPYTER_RUNTIME_DIR=scratch)
            os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # torch's idle threads leave a busy machine its cores
            yield


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Hold a chapter: another run of it, such as one whose parent was killed, is waited for."""
    with open(RESULTS / f".{name}.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{name}: waiting for another run of this chapter to end", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def swap(work: Path, target: Path) -> None:
    """Put `work` in the place of `target` by two renames."""
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        target.rename(old)
    work.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def repair(target: Path) -> None:
    """Undo a swap that was cut off, and sweep what killed runs left."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)
    for leftover in [old, *target.parent.glob(f".{target.name}.*.new")]:
        shutil.rmtree(leftover, ignore_errors=True)


def _checkpoints(name: str, source: Path, values: dict[str, object]) -> Path:
    """The checkpoint folder that belongs to these inputs; folders of other inputs are swept."""
    inputs = source.read_text(encoding="utf-8") + source.with_suffix(".lib.json").read_text(encoding="utf-8")
    key = hashlib.sha256((inputs + repr(sorted(values.items()))).encode()).hexdigest()[:16]
    mine = RESULTS / "checkpoints" / name / key
    for other in mine.parent.glob("*"):
        if other != mine:
            shutil.rmtree(other)
    return mine


@contextmanager
def terminal(fifo: Path) -> Iterator[Path]:
    """A FIFO whose every byte is shown on this process's stderr."""
    os.mkfifo(fifo)
    end = os.open(fifo, os.O_RDWR)  # read-write: opening blocks on neither side, and writers never meet a closed pipe

    def copy() -> None:
        ended = b""
        while not ended:
            text, ended, _ = os.read(end, 65536).partition(b"\0")
            with suppress(OSError):  # a terminal that has gone away must not stop the reading: writers would block
                os.write(2, text)

    reader = threading.Thread(target=copy, daemon=True)
    reader.start()
    try:
        yield fifo
    finally:
        os.write(end, b"\0")
        reader.join()
        os.close(end)


def main(arguments: list[str]) -> None:
    if arguments == ["clean"]:
        clean()
    elif len(arguments) == 2 and arguments[0] == "run":
        run(arguments[1])
    else:
        raise Refused("usage: python -m lib.notebook clean | run NAME")


if __name__ == "__main__":
    main(sys.argv[1:])

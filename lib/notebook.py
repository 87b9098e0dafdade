"""One notebook as one pipeline stage.

    python -m lib.notebook clean             strip every notebook and fingerprint what it imports
    python -m lib.notebook run 00_one_softmax

A chapter depends on its stripped copy and on the hashes of the `lib` files it imports, so saving outputs or
touching a file reruns nothing, and editing one module reruns the chapters that use it.  `run` checks the
parameters before anything is computed, executes the copy with papermill in a folder of its own, shows its
progress in the terminal, makes the result a function of its inputs alone (no dates, no random identifiers),
and puts it in place by two renames: a failure or a kill at any moment leaves the last good results readable.
"""
from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
          "language_info": {"name": "python"}}
SCALARS = (bool, int, float, str)


class Refused(SystemExit):
    """A clear error for the terminal; nothing has been computed or lost."""

    def __init__(self, message: str) -> None:
        super().__init__(f"error: {message}")


# --- the stripped copy and what it depends on -------------------------------------------------------------


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as its author wrote it: no outputs, no injected cell, fixed metadata."""
    cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for position, cell in enumerate(cells):
        cell.id = f"cell-{position:02d}"
        cell.metadata = _metadata(cell)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.cells, notebook.metadata = cells, nbformat.from_dict(KERNEL)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def _metadata(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A cell's tags; cells tagged `solution` are collapsed."""
    tags = cell.metadata.get("tags", [])
    kept = {"tags": tags} if tags else {}
    if "solution" in tags:
        kept["jupyter"] = {"source_hidden": True}
    return nbformat.from_dict(kept)


def dumps(notebook: nbformat.NotebookNode) -> str:
    """Notebook text with a fixed order of keys and a final newline."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def imported(sources: list[str], folder: Path) -> tuple[dict[str, Path], set[str]]:
    """The `lib` modules that Python sources import, transitively, and the top-level packages they use."""
    modules: dict[str, Path] = {}
    packages: set[str] = set()
    pending = list(sources)
    while pending:
        for name in _imports(pending.pop()):
            top, *rest = name.split(".")
            if top != "lib":
                packages.add(top)
            elif rest and rest[0] not in modules and (folder / f"{rest[0]}.py").exists():
                modules[rest[0]] = folder / f"{rest[0]}.py"
                pending.append(modules[rest[0]].read_text(encoding="utf-8"))
    return dict(sorted(modules.items())), packages


def _imports(source: str) -> Iterator[str]:
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def fingerprint(notebook: nbformat.NotebookNode) -> dict[str, dict[str, str]]:
    """SHA-256 of each imported `lib` module, and the versions of the packages behind them."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    modules, packages = imported(cells, ROOT / "lib")
    owners = importlib.metadata.packages_distributions()
    names = {owner for package in packages for owner in owners.get(package, [])}
    return {"lib": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in modules.items()},
            "packages": {name: importlib.metadata.version(name) for name in sorted(names)}}


def clean() -> None:
    """Write results/clean/NAME.ipynb and NAME.lib.json for every notebook."""
    folder = RESULTS / "clean"
    wanted = {}
    for source in sorted((ROOT / "notebooks").glob("*.ipynb")):
        try:
            notebook = stripped(nbformat.read(source, as_version=4))
            wanted[f"{source.stem}.lib.json"] = json.dumps(fingerprint(notebook), indent=1, sort_keys=True) + "\n"
        except (nbformat.reader.NotJSONError, SyntaxError) as error:
            raise Refused(f"notebooks/{source.name} cannot be read: {str(error)[:200]}") from error
        wanted[source.name] = dumps(notebook)
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.name not in wanted:
            file.unlink()
    for name, text in wanted.items():
        replace(folder / name, text)


def replace(file: Path, text: str) -> None:
    """Write a text file whole or not at all, and only if it changed."""
    if file.exists() and file.read_text(encoding="utf-8") == text:
        return
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


# --- parameters -------------------------------------------------------------------------------------------


def defaults(notebook: nbformat.NotebookNode) -> dict[str, object]:
    """The assignments of the cell tagged `parameters`: name → literal default."""
    found: dict[str, object] = {}
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            for node in ast.parse(cell.source).body:
                if isinstance(node, (ast.Assign, ast.AnnAssign)):
                    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                    found[target.id] = ast.literal_eval(node.value)
    return found


def checked(name: str, given: object, known: dict[str, object]) -> dict[str, object]:
    """The section of params.yaml for chapter `name`, as {key: value}; refuses by file, key, value, allowed.

    Each entry is {value: …, range: [low, high]} for numbers or {value: …, choices: […]}; booleans need neither.
    """
    where = f"params.yaml: {name}"
    if not isinstance(given, dict):
        raise Refused(f"{where}: got {given!r}; need a mapping of parameters")
    unknown, missing = sorted(set(given) - set(known)), sorted(set(known) - set(given))
    if unknown:
        raise Refused(f"{where}.{unknown[0]}: unknown parameter; known: {', '.join(sorted(known)) or 'none'}")
    if missing:
        raise Refused(f"{where}.{missing[0]}: missing; the notebook's parameters cell defines it")
    values = {}
    for key, entry in given.items():
        if not isinstance(entry, dict) or "value" not in entry or set(entry) - {"value", "range", "choices"}:
            raise Refused(f"{where}.{key}: got {entry!r}; need {{value: …, range: [low, high]}} or choices")
        value, kind = entry["value"], type(known[key])
        if kind is float and type(value) is int:
            value = float(value)
        if kind not in SCALARS or type(value) is not kind:
            raise Refused(f"{where}.{key}: got {value!r} ({type(value).__name__}); need {kind.__name__}")
        if "range" in entry and not entry["range"][0] <= value <= entry["range"][1]:
            raise Refused(f"{where}.{key}: got {value!r}; need {kind.__name__} in {entry['range']}")
        if "choices" in entry and value not in entry["choices"]:
            raise Refused(f"{where}.{key}: got {value!r}; need one of {entry['choices']}")
        values[key] = value
    return values


# --- running ----------------------------------------------------------------------------------------------


def run(name: str) -> None:
    """Execute the clean copy of a chapter and put its results at results/NAME/."""
    source, target = RESULTS / "clean" / f"{name}.ipynb", RESULTS / name
    if not source.exists():
        known = sorted(file.stem for file in source.parent.glob("*.ipynb"))
        raise Refused(f"chapter: got {name!r}; need one of {', '.join(known)}")
    notebook = nbformat.read(source, as_version=4)
    known = defaults(notebook)
    sections = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")) or {}
    values = checked(name, sections.get(name, {}), known)
    changed = {key: value for key, value in values.items() if value != known[key]}
    repair(target)
    work = RESULTS / f".{name}.{os.getpid()}.new"
    work.mkdir(parents=True)
    started = time.monotonic()
    try:
        execute(source, work / f"{name}.ipynb", changed, work, _checkpoints(name, source, values))
        swap(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for leftover in (RESULTS / "checkpoints").glob(f"{name}-*"):
        shutil.rmtree(leftover)
    timings = RESULTS / "timings.json"
    seconds = json.loads(timings.read_text(encoding="utf-8")) if timings.exists() else {}
    seconds[name] = {"seconds": round(time.monotonic() - started, 1), "finished": time.time()}
    replace(timings, json.dumps(seconds, indent=1) + "\n")


def execute(source: Path, output: Path, parameters: dict[str, object], work: Path, checkpoints: Path) -> None:
    """papermill, with progress in the terminal; on failure keep the copy and say which cell and why."""
    import papermill

    with tempfile.TemporaryDirectory() as scratch, terminal(Path(scratch) / "progress") as pipe:
        profile = Path(scratch) / "profile_default" / "ipython_kernel_config.py"
        profile.parent.mkdir()
        profile.write_text("c.IPKernelApp.log_level = 'ERROR'\n")  # an empty profile: nobody's start-up files
        os.environ.update(FIVE_ROADS_OUT=str(work), FIVE_ROADS_PROGRESS=str(pipe), IPYTHONDIR=scratch,
                          FIVE_ROADS_CHECKPOINTS=str(checkpoints), PYTHONHASHSEED="0", PYTHONPATH=str(ROOT))
        try:
            papermill.execute_notebook(str(source), str(output), parameters=parameters, kernel_name="python3",
                                       cwd=str(ROOT / "notebooks"), progress_bar={"ncols": 88, "leave": False})
        except papermill.PapermillExecutionError as error:
            kept = RESULTS / "failed" / output.name
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(output, kept)
            raise Refused(f"{output.stem}: cell {error.exec_count} raised {error.ename}: {error.evalue}\n"
                          f"{error.source}\nThe notebook as far as it came: {kept.relative_to(ROOT)}; "
                          "the last good results are untouched.") from None
    replace(output, dumps(normalised(nbformat.read(output, as_version=4))))


def normalised(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An executed notebook as a function of its inputs: without times, widgets and random identifiers."""
    for cell in notebook.cells:
        cell.metadata = _metadata(cell)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"
    notebook.metadata = nbformat.from_dict(KERNEL)
    return notebook


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
    if old.exists():
        if target.exists():
            shutil.rmtree(old)
        else:
            old.rename(target)
    for leftover in target.parent.glob(f".{target.name}.*.new"):
        shutil.rmtree(leftover)


def _checkpoints(name: str, source: Path, values: dict[str, object]) -> Path:
    """The checkpoint folder that belongs to these inputs; folders of other inputs are swept."""
    inputs = source.read_text(encoding="utf-8") + source.with_suffix(".lib.json").read_text(encoding="utf-8")
    key = hashlib.sha256((inputs + repr(sorted(values.items()))).encode()).hexdigest()[:16]
    mine = RESULTS / "checkpoints" / f"{name}-{key}"
    for other in mine.parent.glob(f"{name}-*"):
        if other != mine:
            shutil.rmtree(other)
    return mine


@contextmanager
def terminal(fifo: Path) -> Iterator[Path]:
    """A FIFO whose every byte is shown on this process's stderr."""
    os.mkfifo(fifo)
    end = os.open(fifo, os.O_RDWR)  # read-write: opening blocks on neither side, and writers never meet a closed pipe

    def copy() -> None:
        while (chunk := os.read(end, 4096)) and not chunk.endswith(b"\0"):
            os.write(sys.stderr.fileno(), chunk)

    reader = threading.Thread(target=copy, daemon=True)
    reader.start()
    try:
        yield fifo
    finally:
        os.write(end, b"\0")
        reader.join(timeout=5)
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

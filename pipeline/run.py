"""One notebook as one pipeline stage.

A chapter depends on its stripped copy and on the hashes of the `lib` files it imports, so saving outputs or
touching a file reruns nothing, and editing one module reruns the chapters that use it.  `run` checks the
parameters before anything is computed, executes the copy with papermill in a folder of its own, shows its
progress in the terminal, makes the result a function of its inputs alone (no dates, no random identifiers),
and puts it in place in one step: a failure or a kill at any moment leaves the last good results readable.
"""
from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import nbformat

from lib.base import stage
from pipeline import files
from pipeline.copies import dumps, normalised, read, tagged
from pipeline.files import Refused, exchange, load_json, replace
from pipeline.parameters import checked, literals, read_yaml


def parameters(name: str, notebook: nbformat.NotebookNode) -> tuple[dict[str, object], dict[str, object]]:
    """The chapter's parameters: all values by params.yaml, and those that differ from the notebook's defaults."""
    cells = [cell.source for cell in notebook.cells if tagged(cell, "parameters")]
    defaults = literals("\n".join(cells), f"notebooks/{name}.ipynb: the cell tagged `parameters`")
    sections = read_yaml(files.ROOT / "params.yaml")
    values = checked(name, sections.get(name, {}), defaults)
    return values, {key: value for key, value in values.items() if value != defaults[key]}


def run(name: str) -> None:
    """Execute the clean copy of a chapter and put its results at results/NAME/."""
    source, target = files.RESULTS / "clean" / f"{name}.ipynb", files.RESULTS / name
    known = sorted(file.stem for file in source.parent.glob("*.ipynb"))
    if name not in known:  # nor a path to one elsewhere
        raise Refused(f"chapter: got {name!r}; need one of {', '.join(known) or 'none: run `clean` first'}")
    values, changed = parameters(name, read(source))
    with alone(name):
        repair(target)
        work = files.RESULTS / f".{name}.{os.getpid()}.new"
        work.mkdir()
        started = time.monotonic()
        try:
            execute(source, work / source.name, changed, _checkpoints(name, source, values))
            swap(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(files.RESULTS / "checkpoints" / name, ignore_errors=True)
        (files.RESULTS / "failed" / source.name).unlink(missing_ok=True)
        took = {"seconds": round(time.monotonic() - started, 1), "finished": time.time()}
        replace(files.RESULTS / "timings" / f"{name}.json", json.dumps(took) + "\n")
    print(f"{name}: look at results/{name}/{name}.ipynb; `python -m pipeline compare` says what moved", flush=True)


def execute(source: Path, output: Path, changed: dict[str, object], checkpoints: Path) -> None:
    """papermill, with progress in the terminal; on failure keep the copy and say which cell and why."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    name = source.stem
    bar = {"desc": name, "ncols": 88, "leave": False, "bar_format": "{desc}: {n}/{total} cells |{bar}| {elapsed}"}
    with surroundings(output.parent, checkpoints):
        try:
            papermill.execute_notebook(str(source), str(output), parameters=changed, kernel_name="python3",
                                       cwd=str(files.ROOT / "notebooks"), progress_bar=bar, start_timeout=300,
                                       iopub_timeout=60)
            replace(output, dumps(normalised(read(output))))
            claims = output.with_name("claims.json")
            rows = load_json(claims, [{"id": str, "verdict": str}]) if claims.exists() else []
            verdicts = {row["id"]: row["verdict"] for row in rows}
            replace(output.with_name("verdicts.json"), json.dumps(verdicts, indent=1) + "\n")  # for `dvc metrics show`
            return
        except papermill.PapermillExecutionError as error:
            why = f"cell {error.exec_count} raised {error.ename}: {error.evalue}\n{error.source}"
        except DeadKernelError:
            why = "the kernel died, often for lack of memory"
        except RuntimeError as error:  # such as a kernel that never answered
            why = str(error)
        except KeyboardInterrupt:
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # what was under way has no one to tell
            raise Refused(f"{name}: interrupted; the last good results are untouched, "
                          "and the next run goes on from the last checkpoint") from None
        except OSError as error:  # such as a full disk
            raise Refused(f"{name}: {error}; the last good results are untouched") from None
    kept = files.RESULTS / "failed" / output.name
    try:
        kept.parent.mkdir(exist_ok=True)
        os.replace(output, kept)  # also where the disk is full
        where = kept.relative_to(files.ROOT).as_posix()
    except OSError as error:
        where = f"not kept, {error.strerror}"
    raise Refused(f"{name}: {why}\nThe notebook as far as it came: {where}; the last good results are untouched.")


@contextmanager
def surroundings(out: Path, checkpoints: Path) -> Iterator[None]:
    """The environment a kernel inherits: where to write and report, this tree's lib, nobody's own settings."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        profile = Path(scratch) / "profile_default" / "ipython_kernel_config.py"
        profile.parent.mkdir()
        profile.write_text("c.IPKernelApp.log_level = 'CRITICAL'\n")
        with terminal(Path(scratch) / "progress") as pipe:
            os.environ.update({stage.OUT: str(out), stage.CHECKPOINTS: str(checkpoints), stage.PIPE: str(pipe),
                               "PYTHONPATH": str(files.ROOT), "PYTHONHASHSEED": "0", "IPYTHONDIR": scratch,
                               "JUPYTER_RUNTIME_DIR": scratch})
            os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # torch's idle threads leave a busy machine its cores
            yield


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Hold a chapter: another run of it, such as one whose parent was killed, is waited for."""
    lock = filelock.FileLock(files.RESULTS / f".{name}.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        print(f"{name}: waiting for another run of this chapter to end", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def swap(work: Path, target: Path) -> None:
    """Put `work` in the place of `target`: in one step, or, where the system has none for it, by two renames."""
    old = target.with_name(f".{target.name}.old")
    if target.exists() and exchange(work, target):
        old = work
    else:
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
    mine = files.RESULTS / "checkpoints" / name / key
    for other in mine.parent.glob("*"):
        if other != mine:
            shutil.rmtree(other)
    return mine


@contextmanager
def terminal(fifo: Path) -> Iterator[Path]:
    """A FIFO whose every byte is shown on this process's stderr; where there are none, a place that swallows all."""
    if not hasattr(os, "mkfifo"):  # Windows: the bar over the cells must do
        yield Path(os.devnull)
        return
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

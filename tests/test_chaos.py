"""The runner killed before each of its file operations, its writes cut short, no room, no leave to write, two at once.

The notebook is a stand-in that writes what a chapter writes; test_pipeline.py kills and starves real kernels.
"""
from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import papermill
import pytest
from tree import code, folder, row, write

from pipeline import __main__ as command
from pipeline import run
from pipeline.files import Refused, exchange

pytestmark = pytest.mark.slow
resource = pytest.importorskip("resource", reason="needs a system of Unix's kind")

CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.chmod", "os.utime", "shutil.rmtree",
           "ctypes.dlsym"}  # the last comes just before the exchange
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
GOOD, REFUSED, KILLED, CUT = 0, 3, -signal.SIGKILL, -signal.SIGXFSZ


def forked(function: Callable[[], object]) -> int:
    """Start a process of its own; it ends with GOOD, with REFUSED, or with 1 after any other error."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            function()
            status = GOOD
        except Refused:
            status = REFUSED
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(step: int, function: Callable[[], object]) -> int:
    """Start a process that is killed before its file operation number `step`."""
    def disturbed() -> None:
        left = iter(range(step))

        def hook(event: str, args: tuple) -> None:
            if (event in CHANGES or (event == "open" and args[2] & WRITING)) and next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        function()

    return forked(disturbed)


def cut(length: int, by_kill: bool, function: Callable[[], object]) -> int:
    """Start a process whose system lets no file grow beyond a length: by a kill, or by an error as on a full disk."""
    def limited() -> None:
        if by_kill:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (length, length))
        function()

    return forked(limited)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; empty where there is none."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*"))
            if file.is_file()}


def execute(source: str, output: str, parameters: dict, **_: object) -> None:
    """In the place of papermill: a chapter that trains, draws and measures, its seed in all that it writes."""
    seed, work = parameters.get("seed", 0), Path(os.environ["FIVE_ROADS_OUT"])
    checkpoint = Path(os.environ["FIVE_ROADS_CHECKPOINTS"]) / "state.pt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_bytes(bytes([seed]) * 2000)
    notebook = json.loads(Path(source).read_text())
    for metadata in ({"papermill": {"duration": 1}}, {}):  # saved after each cell
        Path(output).write_text(json.dumps(notebook | {"metadata": metadata}))
    (work / "figures").mkdir()
    (work / "figures" / "gallery.png").write_bytes(bytes([seed]) * 9000)
    (work / "claims.json").write_text(json.dumps([row("A-1", "00_a", value=seed)]))
    (work / "metrics.json").write_text(json.dumps({"seed": seed}))


class Chapter:
    """A chapter, its results of before and those to come."""

    def __init__(self, root: Path) -> None:
        self.root, self.results, self.target = root, root / "results", root / "results" / "00_a"
        write(root / "notebooks" / "00_a.ipynb", code("seed = 0", "parameters"), code("1"))
        (root / "dvc.yaml").write_text("stages: {run: {foreach: [00_a]}}")
        command.main(["clean"])
        self.before, self.after = self.made(1), self.made(2)
        self.put_back()

    def run(self) -> None:
        command.main(["run", "00_a"])

    def fail(self) -> None:
        papermill.execute_notebook = lambda *_, **__: execute("nothing", "nowhere", {})
        self.run()

    def made(self, seed: int) -> dict[str, bytes]:
        (self.root / "params.yaml").write_text(f"00_a: {{seed: {{value: {seed}, range: [0, 9]}}}}")
        assert ended(forked(self.run)) == GOOD
        return contents(self.target)

    def put_back(self) -> None:
        """The results of before, whatever else lies about."""
        shutil.rmtree(self.target, ignore_errors=True)
        for name, content in self.before.items():
            (self.target / name).parent.mkdir(parents=True, exist_ok=True)
            (self.target / name).write_bytes(content)

    def check_that_nothing_is_lost(self, exchanged: bool = True) -> None:
        """The results are those of before or those to come: now, where the system exchanges, and when a run has begun.

        The next run that succeeds brings the latter and sweeps up.
        """
        whole = self.before, self.after
        assert contents(self.target) in whole or not exchanged
        assert ended(forked(self.fail)) == REFUSED and contents(self.target) in whole
        assert ended(forked(self.run)) == GOOD
        assert contents(self.target) == self.after
        assert {file.name for file in self.results.iterdir()} - {"failed", "filler"} == {
            ".00_a.lock", "00_a", "checkpoints", "clean", "timings"}
        assert not list((self.results / "checkpoints").iterdir())


@pytest.fixture
def chapter(root: Path, monkeypatch: pytest.MonkeyPatch) -> Chapter:
    monkeypatch.setattr("papermill.execute_notebook", execute)
    for name in ("PATH", "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # restored afterwards
    return Chapter(root)


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_runner_killed_before_any_file_operation_loses_nothing(
        chapter: Chapter, monkeypatch: pytest.MonkeyPatch, exchanged: bool):
    if not exchanged:  # a system that has none
        monkeypatch.setattr(run, "exchange", lambda *_: False)
    elif not exchange(folder(chapter.root / "a", "a"), folder(chapter.root / "b", "b")):
        pytest.skip("this file system has no exchange")
    for step in itertools.count():
        chapter.put_back()
        status = ended(killed(step, chapter.run))
        assert status in (GOOD, KILLED)
        chapter.check_that_nothing_is_lost(exchanged)
        if status == GOOD:
            break
    assert step > 30


def test_a_write_cut_short_at_any_length_loses_nothing(chapter: Chapter):
    for by_kill, bad in ((True, CUT), (False, REFUSED)):
        found = []
        for length in (0, 1, 10, 30, 100, 300, 600, 1000, 2500, 10_000):
            chapter.put_back()
            found.append(ended(cut(length, by_kill, chapter.run)))
            chapter.check_that_nothing_is_lost()
        assert found[-1] == GOOD and set(found[:-1]) == {bad}


def test_cleaning_killed_or_cut_short_anywhere_leaves_whole_files(chapter: Chapter):
    def edit(text: str) -> None:
        write(chapter.root / "notebooks" / "00_a.ipynb", code("seed = 0", "parameters"), code(text))
        (chapter.root / "lib" / "used.py").write_text(f"# {text}")

    def clean() -> None:
        command.main(["clean"])

    ends = []
    for start in (*(partial(killed, step) for step in range(16)),
                  *(partial(cut, length, by_kill) for length in (0, 10, 200) for by_kill in (True, False))):
        edit("import lib.used; 1")
        clean()
        old = contents(chapter.results / "clean")
        edit("import lib.used; 2")
        ends.append(ended(start(clean)))
        here = {name: text for name, text in contents(chapter.results / "clean").items() if not name.endswith(".part")}
        clean()
        new = contents(chapter.results / "clean")
        assert all(here[name] in (old[name], new[name]) for name in new) and here.keys() == new.keys() == old.keys()
    assert ends[0] == KILLED and ends[15] == GOOD and ends[16:] == [CUT, REFUSED] * 3


def test_two_runs_at_once_and_one_of_them_killed_anywhere(chapter: Chapter):
    for step in range(0, 60, 4):
        chapter.put_back()
        two = [killed(step, chapter.run), forked(chapter.run)]
        assert [ended(pid) for pid in two][1] == GOOD
        chapter.check_that_nothing_is_lost()


# --- a disk of its own ------------------------------------------------------------------------------------

PAGE = 4096


@pytest.fixture
def disk(chapter: Chapter) -> Iterator[Callable[[str], None]]:
    """results/ on a small disk in memory; mounts it anew with other options."""
    def mount(*words: str) -> int:
        command = ["mount", "-t", "tmpfs", *words, "tmpfs", chapter.results]
        return subprocess.run(command, capture_output=True).returncode

    kept = contents(chapter.results)
    if not shutil.which("mount") or mount("-o", f"size={64 * PAGE}"):
        pytest.skip("needs root, to mount a small disk")
    try:
        for name, content in kept.items():
            (chapter.results / name).parent.mkdir(parents=True, exist_ok=True)
            (chapter.results / name).write_bytes(content)
        (chapter.results / "checkpoints").mkdir()
        yield lambda options: mount("-o", f"remount,{options}")
    finally:
        subprocess.run(["umount", chapter.results], check=True)


@pytest.mark.usefixtures("disk")
def test_a_disk_that_is_full_loses_nothing(chapter: Chapter):
    found = []
    for pages in range(20):
        chapter.put_back()
        free = os.statvfs(chapter.results).f_bavail
        with (chapter.results / "filler").open("wb") as filler:
            filler.write(bytes((free - pages) * PAGE))
        found.append(ended(forked(chapter.run)))
        assert contents(chapter.target) in (chapter.before, chapter.after)
        (chapter.results / "filler").unlink()
        chapter.check_that_nothing_is_lost()
    assert found[0] == REFUSED and found[-1] == GOOD and set(found) == {REFUSED, GOOD}


def test_results_that_cannot_be_written_are_named(chapter: Chapter, disk: Callable[[str], None]):
    write(chapter.root / "notebooks" / "00_a.ipynb", code("seed = 0", "parameters"), code("2"))
    disk("ro")
    for words, file in ((["clean"], r"results/clean/\S*"), (["run", "00_a"], r"results/\.00_a\.lock")):
        with pytest.raises(Refused, match=rf"^error: \S*{file}: Read-only file system$"):
            command.main(words)
    assert contents(chapter.target) == chapter.before
    disk("rw")
    chapter.check_that_nothing_is_lost()

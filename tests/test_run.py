"""One chapter run: put in place at once, alone, and heard in the terminal."""
from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from nbclient.exceptions import DeadKernelError
from papermill import PapermillExecutionError
from tree import code, folder, missing, row, write

from lib.base.stage import progress
from pipeline import __main__ as command
from pipeline import files, run
from pipeline import fingerprint as prints
from pipeline.parameters import Refused


@pytest.mark.parametrize("step", range(5))
def test_where_two_renames_must_do_a_swap_cut_off_anywhere_is_repaired(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int):
    """A kill before each of the steps; then the last good results are whole, and nothing is left over."""
    target, work = folder(tmp_path / "00_a", "old"), folder(tmp_path / ".00_a.1.new", "new")
    calls = iter(range(9))

    def killed(call):
        def step_or_die(*args: object, **kwargs: object) -> object:
            if next(calls) >= step:
                raise KeyboardInterrupt
            return call(*args, **kwargs)
        return step_or_die

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) if step < 4 else monkeypatch.context():
        patch.setattr(run, "exchange", killed(lambda *_: False))
        patch.setattr(Path, "rename", killed(Path.rename))
        patch.setattr(run.shutil, "rmtree", killed(run.shutil.rmtree))
        run.swap(work, target)
    run.repair(target)
    assert (target / "file").read_text() == ("old" if step < 3 else "new")
    assert list(tmp_path.iterdir()) == [target]


def test_an_exchange_takes_one_step_or_none(tmp_path: Path):
    a, b = folder(tmp_path / "ä b", "a"), folder(tmp_path / "c", "b")
    if not files.exchange(a, b):
        pytest.skip("this system has no exchange")
    assert (a / "file").read_text() == "b" and (b / "file").read_text() == "a"
    with pytest.MonkeyPatch.context() as patch:  # elsewhere none is looked for
        patch.setattr(files.os, "name", "nt")
        assert not files.exchange(a, b)
    assert not files.exchange(a, tmp_path / "absent") and not files.exchange(tmp_path / "absent", a)
    assert (a / "file").read_text() == "b"


def test_a_first_result_needs_no_predecessor_and_repair_nothing_to_repair(tmp_path: Path):
    target = tmp_path / "00_a"
    run.repair(target)
    run.swap(folder(tmp_path / ".00_a.1.new", "new"), target)
    other = folder(tmp_path / ".00_ab.1.new", "of a chapter whose name begins the same way")
    run.repair(target)
    assert (target / "file").read_text() == "new" and other.exists()


def test_checkpoints_belong_to_their_inputs(root: Path):
    source = write(root / "results" / "clean" / "00_a.ipynb", code("1"))
    source.with_suffix(".lib.json").write_text("{}")

    def checkpoints(**values: object) -> Path:
        return run._checkpoints("00_a", source, values)

    first = folder(checkpoints(seed=0), "state")
    other = folder(root / "results" / "checkpoints" / "00_ab" / "key", "of another chapter")
    assert checkpoints(seed=0) == first and first.exists()
    assert checkpoints(seed=1) != first and not first.exists() and other.exists()
    first.mkdir()
    source.with_suffix(".lib.json").write_text('{"lib": "edited"}')
    assert checkpoints(seed=0) != first and not first.exists()
    second = checkpoints(seed=0)
    write(source, code("2"))
    assert checkpoints(seed=0) != second


def test_a_chapter_is_run_by_one_at_a_time(root: Path, capfd: pytest.CaptureFixture[str]):
    order = []

    def another() -> None:
        with run.alone("00_a"):
            order.append("second")

    with run.alone("00_a"):
        with run.alone("01_b"):  # another chapter is free
            pass
        waiting = threading.Thread(target=another, daemon=True)
        waiting.start()
        waiting.join(0.3)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
    assert "00_a: waiting for another run" in capfd.readouterr().err


def test_an_unknown_chapter_is_refused(root: Path):
    write(root / "notebooks" / "00_a.ipynb", code("1"))
    with pytest.raises(Refused, match="chapter: got '00_a'; need one of none: run `clean` first"):
        run.run("00_a")
    prints.clean()
    shutil.copytree(root / "results" / "clean", root / "elsewhere")
    for name in ("00_b", "../../elsewhere/00_a", str(root / "elsewhere" / "00_a"), "..", ""):
        with pytest.raises(Refused, match=f"chapter: got '{name}'; need one of 00_a"):
            run.run(name)
    for arguments in (["run"], ["clean", "00_a"], ["walk", "00_a"]):
        with pytest.raises(Refused, match="command: got"):
            command.main(arguments)


@pytest.fixture
def ready(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chapter ready to run, with good results from before; yields the stand-in for papermill to fill."""
    write(root / "notebooks" / "00_a.ipynb", code("seed = 0", "parameters"))
    (root / "params.yaml").write_text("00_a: {seed: {value: 1, range: [0, 9]}}")
    folder(root / "results" / "00_a", "good")
    prints.clean()
    for name in ("FIVE_ROADS_OUT", "FIVE_ROADS_PROGRESS", "FIVE_ROADS_CHECKPOINTS", "IPYTHONDIR",
                 "JUPYTER_RUNTIME_DIR", "PYTHONHASHSEED", "PYTHONPATH"):
        monkeypatch.setenv(name, "")  # restored afterwards
    return root


def test_a_run_puts_all_its_files_in_place_at_once(ready: Path, monkeypatch: pytest.MonkeyPatch):
    def execute(source: str, output: str, parameters: dict, **_: object) -> None:
        assert parameters == {"seed": 1} and (ready / "results" / "00_a" / "file").read_text() == "good"
        work, checkpoints = Path(os.environ["FIVE_ROADS_OUT"]), Path(os.environ["FIVE_ROADS_CHECKPOINTS"])
        assert work == Path(output).parent and work.parent == ready / "results" and not list(work.iterdir())
        folder(checkpoints, "state")
        (work / "metrics.json").write_text("{}")
        (work / "claims.json").write_text(json.dumps([row("A-1", "00_a"), missing("A-2", "00_a")]))
        Path(output).write_text(Path(source).read_text())

    monkeypatch.setattr("papermill.execute_notebook", execute)
    folder(ready / "results" / "failed", "").joinpath("00_a.ipynb").touch()
    run.run("00_a")
    assert sorted(file.name for file in (ready / "results" / "00_a").iterdir()) == [
        "00_a.ipynb", "claims.json", "metrics.json", "verdicts.json"]
    verdicts = json.loads((ready / "results" / "00_a" / "verdicts.json").read_text())
    assert verdicts == {"A-1": "holds", "A-2": "not reproduced"}
    assert sorted(path.name for path in (ready / "results").iterdir()) == [
        ".00_a.lock", "00_a", "checkpoints", "clean", "failed", "timings"]
    assert not list((ready / "results" / "checkpoints").iterdir())
    assert not (ready / "results" / "failed" / "00_a.ipynb").exists()
    assert json.loads((ready / "results" / "timings" / "00_a.json").read_text())["seconds"] >= 0


@pytest.mark.parametrize(("error", "message"), [
    (OSError(errno.ENOSPC, "No space left on device"), "00_a: .*No space left on device; the last good results"),
    (KeyboardInterrupt(), "00_a: interrupted; the last good results are untouched, and the next run goes on"),
    (DeadKernelError("Kernel died"), r"00_a: the kernel died.*\n.*results/failed/00_a\.ipynb"),
    (PapermillExecutionError(2, 5, "1/0", "ZeroDivisionError", "division", []),
     r"00_a: cell 5 raised ZeroDivisionError: division\n1/0\n.*results/failed/00_a\.ipynb; the last good"),
    (RuntimeError("Kernel didn't respond in 300 seconds"), r"00_a: Kernel didn't respond.*\n.*results/failed/00_a\."),
])
def test_a_run_that_fails_keeps_results_and_checkpoints(
        ready: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, message: str):
    def execute(source: str, output: str, **_: object) -> None:
        Path(output).write_text("as far as it came")
        folder(Path(os.environ["FIVE_ROADS_CHECKPOINTS"]), "state")
        raise error

    monkeypatch.setattr("papermill.execute_notebook", execute)
    with pytest.raises(Refused, match=message):
        run.run("00_a")
    assert (ready / "results" / "00_a" / "file").read_text() == "good"
    assert not list((ready / "results").glob(".*.new"))
    assert [file.read_text() for file in (ready / "results" / "checkpoints").rglob("file")] == ["state"]
    kept = ready / "results" / "failed" / "00_a.ipynb"
    assert kept.exists() == ("failed/" in message) and (not kept.exists() or kept.read_text() == "as far as it came")


def test_a_refused_parameter_touches_nothing(ready: Path):
    (ready / "params.yaml").write_text("00_a: {seed: {value: 10, range: [0, 9]}}")
    before = sorted(ready.rglob("*"))
    with pytest.raises(Refused, match=r"params\.yaml: 00_a\.seed: got 10"):
        run.run("00_a")
    assert sorted(ready.rglob("*")) == before


def in_time(function, seconds: float = 20) -> None:
    """Run `function`, which must not block."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "deadlock"


def test_what_is_written_to_the_fifo_reaches_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    def much() -> None:
        with run.terminal(tmp_path / "fifo") as fifo, open(fifo, "w") as pipe:
            for i in range(100):
                pipe.write(f"{i:03d}" * 1000)

    in_time(much)
    assert capfd.readouterr().err == "".join(f"{i:03d}" * 1000 for i in range(100))


def test_the_fifo_blocks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def nobody_writes() -> None:
        with run.terminal(tmp_path / "a"):
            pass

    def the_writer_stays_open() -> None:
        with run.terminal(tmp_path / "b") as fifo:
            os.write(os.open(fifo, os.O_WRONLY), b"half a line")

    def the_cell_fails() -> None:
        with pytest.raises(RuntimeError), run.terminal(tmp_path / "c"):
            raise RuntimeError

    def the_terminal_has_gone() -> None:
        write = os.write
        monkeypatch.setattr(run.os, "write", lambda fd, data: write(-1 if fd == 2 else fd, data))
        with run.terminal(tmp_path / "d") as fifo, open(fifo, "wb") as pipe:
            pipe.write(b"x" * 1_000_000)  # more than a pipe holds

    for case in (nobody_writes, the_writer_stays_open, the_cell_fails, the_terminal_has_gone):
        in_time(case)


def test_progress_goes_to_the_runner_and_not_to_the_notebook(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    with run.terminal(tmp_path / "fifo") as fifo:
        monkeypatch.setenv("FIVE_ROADS_PROGRESS", str(fifo))
        monkeypatch.setattr("sys.stderr", None)  # what a cell writes there would land in the notebook
        assert list(progress(range(3), desc="counting")) == [0, 1, 2]
        with progress(desc="training", total=5) as bar:
            bar.update(5)
    out, err = capfd.readouterr()
    assert "counting" in err and "training" in err and "0/5" in err and out == ""

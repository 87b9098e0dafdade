"""Setting the machine up, by make and without; pins that hold on every machine promised."""
from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from pipeline import __main__ as command
from pipeline import files, lab, prove, setup
from pipeline.files import Refused

HOUSE = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree without .venv, whose subprocesses only write down what they are asked and make an empty .venv."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((HOUSE / name).read_bytes())
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    return tmp_path


@pytest.fixture
def calls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []

    def call(arguments: list[str], **_: object) -> int:
        made.append(" ".join(map(str, arguments)))
        if "-m venv" in made[-1]:
            (folder / ".venv").mkdir(exist_ok=True)
        return 0

    monkeypatch.setattr(subprocess, "call", call)
    return made


# --- make -------------------------------------------------------------------------------------------------

RECORDER = """#!/bin/sh
# Instead of Python: writes down what it is asked, makes an environment where it should, fails at what it is told.
echo "$0 $*" >> calls
[ "$PYTHONPATH" = "$PWD" ] || exit 4
case "$*" in "-m pipeline setup") mkdir -p .venv/bin && cp "$0" .venv/bin/python && touch .venv/.ready ;; esac
case "$*" in "$FAILING") exit 3 ;; esac
"""
SIMPLE = ("data", "repro", "compare", "test", "check", "fresh", "book", "student", "course")
ASKED = {name: [f"-m pipeline {name}"] for name in SIMPLE} | {
    "setup": [], "publish": ["-m pipeline repro", "-m pipeline publish"],
    "lint": ["-m ruff check .", "-m basedpyright"],
    "lab OPTIONS='--a --b'": ["-m pipeline lab --a --b"], "grade FOLDER=homework": ["-m pipeline grade homework"],
    "full": ["-m pipeline data", "full/runs.py"],
    "full RUN='judge 01' OPTIONS=--overwrite": ["-m pipeline data", "full/runs.py judge 01 --overwrite"],
    "bench": ["-m pip --disable-pip-version-check install -qq -r benchmarks/requirements.txt", "benchmarks/one.py"]}


@pytest.fixture
def recorded(folder: Path) -> Path:
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "one.py").touch()
    (folder / "python").write_text(RECORDER)
    (folder / "python").chmod(0o755)
    return folder


def make(folder: Path, *arguments: str, failing: str = "") -> tuple[int, str, list[str]]:
    """Exit status of make, what it said, and what it asked of Python."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "PYTHON=./python", *arguments], cwd=folder, env=environment | {"FAILING": failing},
                          text=True, capture_output=True)
    asked = folder / "calls"
    lines = asked.read_text().splitlines() if asked.exists() else []
    asked.unlink(missing_ok=True)
    return done.returncode, done.stdout, lines


def test_make_alone_explains_itself_and_touches_nothing(recorded: Path):
    status, said, asked = make(recorded)
    assert status == 0 and not asked
    assert set(re.findall(r"^  make (\w+) +\S", said, re.MULTILINE)) == {words.split()[0] for words in ASKED} | {"help"}
    assert not (recorded / ".venv").exists()


@pytest.mark.parametrize("words", ASKED)
def test_every_target_sets_the_machine_up_once_and_works_in_its_environment(recorded: Path, words: str):
    there = [f".venv/bin/python {call}" for call in ASKED[words]]
    for first in (["./python -m pipeline setup"], []):
        assert make(recorded, *shlex.split(words))[::2] == (0, first + there)
    for pins in setup.PINS:
        os.utime(recorded / pins)
        os.utime(recorded / ".venv" / ".ready", (0, 0))
        assert make(recorded, *shlex.split(words))[::2] == (0, ["./python -m pipeline setup", *there])
        os.utime(recorded / pins, (0, 0))
    assert all(call.split()[2] in command.COMMANDS for call in ASKED[words] if call.startswith("-m pipeline "))


def test_what_fails_stops_the_rest(recorded: Path):
    for failing, words in (("-m pipeline setup", "check"), ("-m pipeline repro", "publish"), ("full/runs.py", "full"),
                           ("-m ruff check .", "lint")):
        status, _, asked = make(recorded, words, failing=failing)
        assert status == 2 and asked[-1].strip().endswith(failing)
        shutil.rmtree(recorded / ".venv")


@pytest.mark.parametrize(("failing", "done"), [("", ["repro", "test", "lint"]), ("test", ["repro", "test"])])
def test_continuous_integration_runs_the_two_commands_and_lints(tmp_path: Path, failing: str, done: list[str]):
    """From wherever it is called, and not beyond what fails."""
    (tmp_path / ".ci").mkdir()
    shutil.copy2(HOUSE / ".ci" / "run", tmp_path / ".ci")
    (tmp_path / "make").write_text('#!/bin/sh\necho $1 >> calls\n[ "$1" != "$FAILING" ]\n')
    (tmp_path / "make").chmod(0o755)
    changed = {"PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]]), "FAILING": failing}
    run = subprocess.run([tmp_path / ".ci" / "run"], cwd="/", env=os.environ | changed)
    assert (run.returncode == 0) == (not failing) and (tmp_path / "calls").read_text().split() == done


# --- without make -----------------------------------------------------------------------------------------


def test_setting_up_needs_the_standard_library_alone():
    """What is imported before there are packages; `-S` leaves out site-packages."""
    code = "import sys; from pipeline import __main__ as m; m.main([]); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=HOUSE, text=True, capture_output=True, check=True)
    assert "python -m pipeline COMMAND" in done.stdout and "'ruamel" not in done.stdout
    assert set(re.findall(r"^    (\w+)", command.__doc__, re.MULTILINE)) == set(command.COMMANDS)


def test_a_system_without_locks_of_unix_and_named_pipes_runs_the_pipeline_too(tmp_path: Path):
    code = ("import os, sys\nfrom pathlib import Path\n"
            "sys.modules['fcntl'] = None; del os.mkfifo, os.fork, os.geteuid\n"
            "from pipeline import compare, fingerprint, lab, prove, repro, run\n"
            f"run.files.RESULTS = Path({str(tmp_path)!r})\n"
            "with run.alone('00_a'), run.surroundings(Path('out'), Path('checkpoints')):\n"
            "    print(os.environ['FIVE_ROADS_PROGRESS'] == os.devnull)")
    done = subprocess.run([sys.executable, "-c", code], cwd=HOUSE, text=True, capture_output=True)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("minor", [10, 14])
def test_another_python_is_refused_before_anything_is_made(
        calls: list[str], minor: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "version_info", (3, minor, 0))
    with pytest.raises(Refused, match=rf"error: Python 3\.{minor}; need 3\.11 to 3\.13"):
        setup.setup()
    assert not calls


def test_setup_is_done_once_and_again_when_the_pins_change(folder: Path, calls: list[str]):
    setup.setup()
    made, *pip = calls
    assert made.endswith("-m venv " + str(folder / ".venv"))
    assert all(call.startswith(f"{setup.python()} -m pip ") for call in pip)
    first, second = (call.partition(" -qq ")[2] for call in pip)
    assert (first, second) == ("-r requirements.txt", "--no-deps --no-build-isolation -e .")
    setup.setup()
    assert len(calls) == 3
    for pins in setup.PINS:
        os.utime(folder / pins, (4e9, 4e9))
        setup.setup()
        os.utime(folder / pins, (0, 0))
    assert len(calls) == 9


@pytest.mark.parametrize("broken", range(3))
def test_an_interrupted_installation_is_not_taken_for_a_whole_one(
        folder: Path, calls: list[str], broken: int, monkeypatch: pytest.MonkeyPatch):
    """Whichever step fails or is interrupted, the next time all is done again."""
    def fails(arguments: list[str], **options: object) -> int:
        return whole(arguments, **options) or 3 * (len(calls) == broken + 1)

    def interrupted(arguments: list[str], **options: object) -> int:
        if whole(arguments, **options) or len(calls) == broken + 1:
            raise KeyboardInterrupt
        return 0

    whole = subprocess.call
    for disturbed, error in ((fails, SystemExit), (interrupted, KeyboardInterrupt)):
        calls.clear()
        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(subprocess, "call", disturbed)
            setup.setup()
        assert not (folder / ".venv" / ".ready").exists()
    calls.clear()
    setup.setup()
    assert (folder / ".venv" / ".ready").exists() and len(calls) == 3


def test_a_build_of_torch_can_be_chosen(calls: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_INDEX", "https://example.org/cpu")
    setup.setup()
    assert re.search(r"--index-url https://example.org/cpu torch==[\d.]+$", calls[1])
    assert calls[2].endswith("-r requirements.txt")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """This Python without the packages."""
    monkeypatch.setattr(setup, "find_spec", lambda name: None)


@pytest.mark.usefixtures("bare")
def test_a_python_without_packages_hands_over_to_the_environment_or_says_what_to_do(
        folder: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Refused, match="dvc and torch not found; need the packages: `python -m pipeline setup`"):
        command.main(["repro"])
    setup.setup()
    monkeypatch.setattr(sys, "prefix", str(folder / ".venv"))
    with pytest.raises(Refused, match="not found"):  # not to itself, for ever
        command.main(["repro"])
    monkeypatch.setattr(sys, "prefix", str(folder))
    taken: list[object] = []
    monkeypatch.setattr(os, "execv", lambda *call: taken.append(call) or sys.exit(7))
    monkeypatch.setattr(os, "chdir", lambda _: None)
    with pytest.raises(SystemExit, match="7"):
        command.main(["student", "out"])
    python = str(setup.python())
    assert taken == [(python, [python, "-m", "pipeline", "student", "out"])]
    monkeypatch.setattr(setup.os, "name", "another system")
    with pytest.raises(SystemExit, match="0"):
        command.main(["repro"])
    assert calls[-1].endswith("-m pipeline repro")


@pytest.mark.parametrize("words", ["frobnicate", "run", "clean 00_a", "grade", "student a b", "--repro"])
def test_a_wrong_command_is_answered_with_the_list(words: str):
    with pytest.raises(Refused) as refusal:
        command.main(words.split())
    said = str(refusal.value)
    assert said.startswith(f"error: command: got '{words}'; need one of\n")
    assert all(re.search(rf"^    {name}\b", said, re.MULTILINE) for name in command.COMMANDS)


def test_what_the_system_refuses_is_told_with_its_file_and_an_interruption_ends_quietly(
        folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(setup, "go_on", lambda _: None)
    monkeypatch.setattr(setup, "surroundings", lambda: None)
    (folder / "student").touch()
    monkeypatch.setattr("pipeline.student.write", lambda folder: folder.mkdir())
    monkeypatch.chdir(folder)
    with pytest.raises(Refused, match=r"^error: student: File exists$"):
        command.main(["student"])

    def interrupted(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.student.write", interrupted)
    with pytest.raises(SystemExit, match="130"):
        command.main(["student"])


def test_a_prover_that_fails_stops_the_rest(calls: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prove, "data", lambda: None)
    monkeypatch.setattr(prove, "mending", lambda *words, quiet: calls.append(" ".join(words)) or 0)
    prove.test()
    assert calls.pop(2) == "repro latents"
    assert [("not slow" in call, "nbval" in call) for call in calls] == [(True, False), (False, False), (False, True)]
    calls.clear()
    monkeypatch.setattr(subprocess, "call", lambda arguments, **_: calls.append("one") or 5)
    with pytest.raises(SystemExit, match="5"):
        prove.test()
    assert calls == ["one"]


# --- the notebooks in JupyterLab --------------------------------------------------------------------------


def test_lab_starts_at_the_root_with_chapter_0_open(calls: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lab, "data", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1, raising=False)
    with pytest.raises(SystemExit, match="0"):
        lab.lab("--no-browser")
    assert calls[-1].endswith(f"-m jupyterlab {lab.FIRST} --ServerApp.root_dir={folder} --no-browser")
    assert (HOUSE / lab.FIRST).exists()


def test_lab_says_what_to_do_as_root_and_with_a_home_that_cannot_be_written(
        calls: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(lab, "data", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    with pytest.raises(Refused, match="make lab OPTIONS=--allow-root, or python -m pipeline lab --allow-root"):
        lab.lab()
    assert not calls
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.setenv("USERPROFILE", "/nowhere")
    with pytest.raises(SystemExit, match="0"):
        lab.lab("--allow-root")
    assert "/nowhere cannot be written to: for this time Jupyter keeps its settings in " in capsys.readouterr().out
    assert os.environ["HOME"] != "/nowhere"


# --- versions ---------------------------------------------------------------------------------------------

LINES = [line.split("#")[0].strip() for line in (HOUSE / "requirements.txt").read_text().splitlines()]
PINS = {canonicalize_name(pin.name): pin for pin in map(Requirement, filter(None, LINES))}


def test_every_pin_admits_every_python_that_is_promised():
    """Also the first releases, which distributions keep."""
    for name in PINS:
        try:
            versions = importlib.metadata.metadata(name).get("Requires-Python") or ""
        except importlib.metadata.PackageNotFoundError:
            continue  # of another system
        assert all(python in SpecifierSet(versions) for python in ("3.11.0", "3.12.0", "3.13.0")), (name, versions)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_what_the_pins_need_is_pinned_too(platform: str, python: str):
    where = {"sys_platform": platform, "platform_system": platform.capitalize(), "python_version": python,
             "python_full_version": f"{python}.0"}
    pending = [(name, "") for name, pin in PINS.items() if not pin.marker or pin.marker.evaluate()]
    for name, extra in pending:
        for need in map(Requirement, importlib.metadata.requires(name) or []):
            if not need.marker or need.marker.evaluate(where | {"extra": extra}):
                other = canonicalize_name(need.name)
                exact = [specifier.operator for specifier in need.specifier] == ["=="]  # as torch names its CUDA
                assert other in PINS or exact, f"{name} needs {need} on {platform}, Python {python}"
                pending += [(other, wanted) for wanted in need.extras if (other, wanted) not in pending]

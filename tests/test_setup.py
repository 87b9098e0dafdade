"""Setting the machine up: the Makefile, and pins that hold on every machine promised."""
from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

HOUSE = Path(__file__).resolve().parent.parent
TARGETS = ("setup", "data", "repro", "test", "check", "fresh", "full", "publish", "lab", "student", "bench", "lint")

# Stands for Python: writes down what it is asked, makes a .venv of itself, and fails or hangs as pip when told to.
IMPOSTOR = f"""#!/bin/sh
echo "$*" >> calls
case "$*" in
    "-c "*) exec {sys.executable} -c 'import sys; sys.version_info = (3, int(open("minor").read()), 0); exec(sys.argv[2])' "$@" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp python "$3/bin/python" ;;
    *"-r requirements.txt"*) if [ -e broken ]; then exit 1; fi; while [ -e hang ]; do sleep 0.05; done ;;
esac
"""  # noqa: E501


class Folder:
    """A Makefile and an impostor of Python beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("Makefile", "requirements.txt", "pyproject.toml"):
            (root / name).write_bytes((HOUSE / name).read_bytes())
        (root / "python").write_text(IMPOSTOR)
        (root / "python").chmod(0o755)
        (root / "minor").write_text("12")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
        return subprocess.Popen(["make", "PYTHON=./python", *arguments], cwd=self.root, env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)

    def make(self, *arguments: str, fails: bool = False) -> str:
        process = self.start(*arguments)
        said = process.communicate(timeout=60)[0]
        assert (process.returncode != 0) == fails, said
        return said

    @property
    def calls(self) -> str:
        return (self.root / "calls").read_text() if (self.root / "calls").exists() else ""

    @property
    def ready(self) -> bool:
        return (self.root / ".venv" / ".ready").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_make_alone_explains_itself_and_touches_nothing(folder: Folder):
    said = folder.make()
    for target in TARGETS:
        assert re.search(rf"^  make {target} +\S", said, re.MULTILINE), target
    assert folder.calls == "" and not (folder.root / ".venv").exists()


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_sets_the_machine_up_first(folder: Folder, target: str):
    plan = folder.make("-n", target)
    assert plan.index("-m venv .venv") < plan.index("pip") < plan.index("touch .venv/.ready")


@pytest.mark.parametrize("minor", [10, 14])
def test_another_python_is_refused_before_anything_is_made(folder: Folder, minor: int):
    (folder.root / "minor").write_text(str(minor))
    assert f"error: Python 3.{minor}; need 3.11 to 3.13" in folder.make("repro", fails=True)
    assert not (folder.root / ".venv").exists()


def test_setup_is_done_once_and_again_when_the_pins_change(folder: Folder):
    folder.make("setup")
    assert folder.ready and folder.calls.count("-r requirements.txt") == 1 and "-e ." in folder.calls
    calls, started = folder.calls, time.monotonic()
    folder.make("setup")
    assert folder.calls == calls and time.monotonic() - started < 1
    os.utime(folder.root / "requirements.txt", (time.time() + 10,) * 2)
    folder.make("setup")
    assert folder.calls.count("-r requirements.txt") == 2


def test_an_interrupted_installation_is_not_taken_for_a_whole_one(folder: Folder):
    (folder.root / "broken").touch()
    folder.make("repro", fails=True)
    assert not folder.ready and "dvc" not in folder.calls
    (folder.root / "broken").unlink()
    (folder.root / "hang").touch()
    for disturbance in (signal.SIGINT, signal.SIGKILL):
        before, process = folder.calls.count("-r requirements.txt"), folder.start("setup")
        while folder.calls.count("-r requirements.txt") == before:
            time.sleep(0.01)
        os.killpg(process.pid, disturbance)
        process.communicate(timeout=60)
        assert process.returncode != 0 and not folder.ready
    (folder.root / "hang").unlink()
    folder.make("setup")
    assert folder.ready


def test_a_build_of_torch_can_be_chosen(folder: Folder):
    folder.make("setup", "TORCH_INDEX=https://example.org/cpu")
    torch, everything = [call for call in folder.calls.splitlines() if " install " in call][:2]
    assert re.search(r"--index-url https://example.org/cpu torch==[\d.]+$", torch) and "-r requirements" in everything


def test_continuous_integration_runs_the_two_commands_and_lints():
    script = HOUSE / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [line for line in script.read_text().splitlines() if line.startswith("make")]
    assert commands == ["make repro", "make test", "make lint"]


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

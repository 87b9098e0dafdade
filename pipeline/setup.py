"""The machine set up with nothing but Python: .venv from requirements.txt.  Standard library only.

    python -m pipeline setup        TORCH_INDEX in the environment names the index of a CPU or CUDA build of torch
"""
from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

from pipeline import files
from pipeline.files import Refused

PYTHONS = (3, 11), (3, 13)  # first and last promised
HERE = ("dvc", "torch")  # a Python that has these has what the other commands need
PINS = ("requirements.txt", "pyproject.toml")


def setup() -> None:
    """Make or refresh .venv; the file .ready in it, written last, says that it is whole and how old."""
    version = sys.version_info[:2]
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        raise Refused(f"Python {version[0]}.{version[1]}; need 3.11 to 3.13: python3.12 -m pipeline setup, "
                      "or make PYTHON=python3.12")
    venv, pins = files.ROOT / ".venv", [files.ROOT / name for name in PINS]
    ready = venv / ".ready"
    if ready.exists() and ready.stat().st_mtime >= max(pin.stat().st_mtime for pin in pins):
        return
    print("making .venv from requirements.txt: minutes the first time", flush=True)
    call(sys.executable, "-m", "venv", str(venv))
    install = [str(python()), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    if index := os.environ.get("TORCH_INDEX"):
        torch, = re.findall(r"^torch==\S+", pins[0].read_text(encoding="utf-8"), re.MULTILINE)
        call(*install, "--index-url", index, torch)
    call(*install, "-r", "requirements.txt")
    call(*install, "--no-deps", "--no-build-isolation", "-e", ".")
    ready.touch()


def call(*command: str) -> None:
    """Run a command in the root of the repository; stop with its exit status if it fails."""
    if code := subprocess.call(command, cwd=files.ROOT):
        raise SystemExit(code)


def python() -> os.PathLike[str]:
    """The interpreter of .venv."""
    return files.ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def surroundings() -> None:
    """What every command's children inherit: this tree's modules, and this Python's programs first on the path."""
    programs = os.path.dirname(sys.executable)
    path = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder != programs]
    os.environ.update(PATH=os.pathsep.join([programs, *path]), PYTHONPATH=str(files.ROOT))


def go_on(arguments: list[str]) -> None:
    """Where this Python lacks the packages, let that of .venv carry the command out."""
    missing = [name for name in HERE if not find_spec(name)]
    if not missing:
        return
    venv = files.ROOT / ".venv"
    if not (venv / ".ready").exists() or os.path.samefile(sys.prefix, venv):
        raise Refused(f"{' and '.join(missing)} not found; need the packages: `python -m pipeline setup` installs them")
    command = [str(python()), "-m", "pipeline", *arguments]
    if os.name == "posix":
        os.chdir(files.ROOT)
        os.execv(command[0], command)
    raise SystemExit(subprocess.call(command, cwd=files.ROOT))

"""The proof that the machine does what was promised: unit tests, the pipeline whole, every notebook again."""
from __future__ import annotations

import os
import subprocess
import sys

from pipeline import files
from pipeline.repro import data, mending

# Torch's threads and xdist's workers share the cores.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
# But notebooks get the threads of the pipeline: how many add up a sum decides its last digits, and near a threshold a
# verdict.  Two notebooks at a time have more threads than there are cores: one that waits for another must sleep, not
# spin on the core that the other needs, by which training took eight times as long (and no digit another value).
NOTEBOOKS = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONHASHSEED": "0"}


def check() -> None:
    """Unit tests."""
    data()
    pytest("--dist", "worksteal", "-m", "not slow", "tests")


def test() -> None:
    """Unit tests, the pipeline on a small project, every published notebook re-executed."""
    check()
    pytest("--dist", "worksteal", "-m", "slow", "tests")
    if code := mending("repro", "latents", quiet=True):  # notebooks read the codes
        raise SystemExit(code)
    pytest("--dist", "loadscope", "--nbval-lax", "--nbval-cell-timeout=1200", "notebooks", environment=NOTEBOOKS)


def pytest(*arguments: str, environment: dict[str, str] = ENVIRONMENT) -> None:
    """pytest on two workers; stop with its exit status if it fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *arguments]
    if code := subprocess.call(command, cwd=files.ROOT, env=os.environ | environment):
        raise SystemExit(code)

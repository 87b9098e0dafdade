"""JupyterLab at the root of the repository, with Chapter 0 open."""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline import files
from pipeline.files import Refused
from pipeline.repro import data

FIRST = "notebooks/00_one_softmax.ipynb"


def lab(*options: str) -> None:
    """Start JupyterLab with its own options, such as --no-browser; refuse early what it would refuse in many words."""
    if getattr(os, "geteuid", lambda: 1)() == 0 and "--allow-root" not in options:
        raise Refused("you are root, and Jupyter runs for root only when told to: "
                      "make lab OPTIONS=--allow-root, or python -m pipeline lab --allow-root")
    data()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        home = Path.home()
        if not os.access(home, os.W_OK):
            print(f"{home} cannot be written to: for this time Jupyter keeps its settings in {scratch}", flush=True)
            os.environ.update(HOME=scratch, USERPROFILE=scratch)
        command = [sys.executable, "-m", "jupyterlab", FIRST, f"--ServerApp.root_dir={files.ROOT}", *options]
        try:
            raise SystemExit(subprocess.call(command, cwd=files.ROOT))
        except KeyboardInterrupt:  # Jupyter has asked and said all there is to say
            pass

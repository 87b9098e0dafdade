"""The README's code does what it says."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent


def test_the_snippet_runs_anywhere_and_ends_in_a_picture(tmp_path: Path):
    """As a reader would try it: in an empty folder, in a fresh interpreter."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Use the library")[2]
    snippet, = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, env=environment,
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    picture = plt.imread(tmp_path / "digits.png")
    assert len(set(picture[..., 0].ravel().tolist())) > 20  # it shows shades, not an empty frame

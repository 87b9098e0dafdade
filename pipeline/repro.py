"""`dvc repro`, then a table: stage, time, state, claims that hold, where to look."""
from __future__ import annotations

import signal
import subprocess
import sys
import time

from pipeline import files
from pipeline.files import read_json
from pipeline.parameters import Refused, read_yaml

NOISE = ("Use `dvc push`", "Generating lock file", "Updating lock file")  # what DVC says of no use here


def chapters() -> list[str]:
    """Names of the chapters, in the order of dvc.yaml."""
    return list(read_yaml(files.ROOT / "dvc.yaml")["stages"]["run"]["foreach"])


def claims(name: str) -> list[dict]:
    """The ledger of a chapter's results; empty without results."""
    return read_json(files.RESULTS / name / "claims.json", [])


def repro(*options: str) -> None:
    """`dvc repro`, then one line a stage."""
    started = time.time()
    code = dvc("repro", *options)
    if code and mended():
        code = dvc("repro", *options)
    print(f"\n{'chapter':34} {'seconds':>8}  {'state':10} {'claims':>7}  look at")
    for name in chapters():
        timing = read_json(files.RESULTS / "timings" / f"{name}.json", {"seconds": "–", "finished": 0.0})
        state = "rebuilt" if timing["finished"] >= started else "last good" if code else "up to date"
        if not (files.RESULTS / name).exists():
            state = "missing"
        verdicts = [row["holds"] for row in claims(name) if row["holds"] is not None]
        held = f"{sum(verdicts)}/{len(verdicts)}"
        print(f"{name:34} {timing['seconds']:>8}  {state:10} {held:>7}  results/{name}/{name}.ipynb")
    print(f"{'this time':34} {time.time() - started:>8.1f}")
    if code:
        raise Refused("the pipeline stopped; the reason is above the table")


def dvc(*arguments: str) -> int:
    """Run DVC, leave out its lines of no use here, and return its exit status."""
    command = [sys.executable, "-m", "dvc", *arguments]
    with subprocess.Popen(command, cwd=files.ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the stage, which ends in good order
        for line in process.stdout:
            if not line.startswith(NOISE):
                print(line, end="", flush=True)
        process.wait()
        signal.signal(signal.SIGINT, before)
    return process.returncode


def mended() -> bool:
    """Remove those of DVC's own files that a kill cut short; True if there were any.  DVC writes them anew."""
    import voluptuous
    from dvc.rwlock import SCHEMA
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA

    torn = False
    for name, schema in (("dvc.lock", COMPILED_LOCKFILE_SCHEMA), (".dvc/tmp/rwlock", SCHEMA)):
        file = files.ROOT / name
        try:
            if file.exists():
                schema(read_yaml(file))
        except (Refused, voluptuous.Invalid):
            file.unlink()
            torn = True
            print(f"\n{name} had been cut short, as by a kill: once more without it\n", flush=True)
    return torn

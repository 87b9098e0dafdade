"""`dvc repro`, then a table: stage, time, state, claims that hold, where to look; and what moved."""
from __future__ import annotations

import signal
import subprocess
import sys
import time

from pipeline import compare, files, ledger
from pipeline.files import NUMBER, Refused, read_json
from pipeline.parameters import chapters, read_yaml

NOISE = ("Use `dvc push`", "Generating lock file", "Updating lock file")  # what DVC says of no use here


def data() -> None:
    """Pull the bundled data; never a bare `dvc pull`, which fails on what the pipeline makes."""
    if mending("pull", "data.dvc", quiet=True):
        raise Refused("data/ cannot be made whole, for the reason above. A file changed in data/: delete it and run "
                      "this again. A file damaged in store/: take a fresh copy of the repository.")


def repro(*options: str) -> None:
    """The data, `dvc repro`, then one line a stage."""
    data()
    started = time.time()
    code = mending("repro", *options)
    print(f"\n{'chapter':34} {'seconds':>8}  {'state':10} {'claims':>7}  look at")
    rebuilt = []
    for name in chapters():
        timing = read_json(files.RESULTS / "timings" / f"{name}.json", {"seconds": "–", "finished": 0.0},
                           {"seconds": NUMBER, "finished": NUMBER})
        state = "rebuilt" if timing["finished"] >= started else "last good" if code else "up to date"
        if not (files.RESULTS / name).exists():
            state = "missing"
        rebuilt += [name] * (state == "rebuilt")
        verdicts = [row["verdict"] for row in ledger.claims(name) if row["rule"]]
        held = f"{verdicts.count('holds')}/{len(verdicts)}"
        print(f"{name:34} {timing['seconds']:>8}  {state:10} {held:>7}  results/{name}/{name}.ipynb")
    print(f"{'this time':34} {time.time() - started:>8.1f}")
    ledger.write(chapters())
    compare.told(rebuilt)
    if code:
        raise Refused("the pipeline stopped; the reason is above the table")


def mending(*arguments: str, quiet: bool = False) -> int:
    """Run DVC, once more if it failed over its own files cut short."""
    code = dvc(*arguments, quiet=quiet)
    return dvc(*arguments, quiet=quiet) if code and mended() else code


def dvc(*arguments: str, quiet: bool = False) -> int:
    """Run DVC, leave out its lines of no use here (`quiet`: all but errors), and return its exit status."""
    command = [sys.executable, "-m", "dvc", *arguments]
    with subprocess.Popen(command, cwd=files.ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the stage, which ends in good order
        for line in process.stdout:
            if not (quiet or line.startswith(NOISE)):
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

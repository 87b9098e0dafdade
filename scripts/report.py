"""The pipeline as a person meets it: run it, certify it, publish it.

    python -m scripts.report repro      dvc repro, then a table: stage, time, state, claims that hold, where to look
    python -m scripts.report fresh      the same with everything forced, then a certificate against the results before
    python -m scripts.report publish    executed notebooks, gallery, metrics and ledger into the tree (maintainers)
"""
from __future__ import annotations

import json
import math
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lib.notebook import INJECTED, RESULTS, ROOT, dumps, read, replace, stripped, tagged
from lib.parameters import Refused, read_yaml

MARKS = ("<!-- ledger -->", "<!-- /ledger -->")
NOISE = ("Use `dvc push`", "Generating lock file", "Updating lock file")  # what DVC says of no use here
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+\.?\d*(?:[eE][-+]?\d+)?")
DIGITS = 4  # significant digits that another run must agree to
VERDICTS = ("identical", "agrees", "differs", "new", "gone")


def chapters() -> list[str]:
    """Names of the chapters, in the order of dvc.yaml."""
    return list(read_yaml(ROOT / "dvc.yaml")["stages"]["run"]["foreach"])


def claims(name: str) -> list[dict]:
    """The ledger of a chapter's results; empty without results."""
    return _json(RESULTS / name / "claims.json", [])


def repro(*options: str) -> None:
    """`dvc repro`, then one line a stage."""
    started = time.time()
    code = dvc("repro", *options)
    if code and mended():
        code = dvc("repro", *options)
    print(f"\n{'chapter':34} {'seconds':>8}  {'state':10} {'claims':>7}  look at")
    for name in chapters():
        timing = _json(RESULTS / "timings" / f"{name}.json", {"seconds": "–", "finished": 0.0})
        state = "rebuilt" if timing["finished"] >= started else "last good" if code else "up to date"
        if not (RESULTS / name).exists():
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
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
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
    for file, schema in ((ROOT / "dvc.lock", COMPILED_LOCKFILE_SCHEMA), (ROOT / ".dvc" / "tmp" / "rwlock", SCHEMA)):
        try:
            if file.exists():
                schema(read_yaml(file))
        except (Refused, voluptuous.Invalid):
            file.unlink()
            torn = True
            print(f"\n{file.relative_to(ROOT)} had been cut short, as by a kill: once more without it\n", flush=True)
    return torn


def _json(file: Path, default: object) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default


# --- the certificate --------------------------------------------------------------------------------------


def fresh() -> None:
    """Force every stage and compare each output with what stood there before."""
    lock = ROOT / "dvc.lock"
    with tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch)
        for name in chapters():
            if (RESULTS / name).exists():
                shutil.copytree(RESULTS / name, before / name)
        shutil.rmtree(RESULTS / "checkpoints", ignore_errors=True)
        locked = lock.read_bytes() if lock.exists() else b""
        repro("--force")
        outputs = sorted({file.relative_to(folder).as_posix() for folder in (before, RESULTS) for name in chapters()
                          for file in (folder / name).rglob("*") if file.is_file()})
        verdicts = {output: compare(before / output, RESULTS / output) for output in outputs}
    counts = {verdict: list(verdicts.values()).count(verdict) for verdict in VERDICTS}
    same_lock = "unchanged" if lock.read_bytes() == locked else "changed"
    certificate = {"machine": machine(), "dvc.lock": same_lock, "counts": counts, "outputs": verdicts}
    replace(RESULTS / "certificate.json", json.dumps(certificate, indent=1) + "\n")
    print(f"\ncertificate: {counts['identical']} outputs byte-identical, {counts['agrees']} agree to {DIGITS} digits, "
          f"{counts['differs']} differ, {counts['new']} new, {counts['gone']} gone; dvc.lock {same_lock}")
    for output, verdict in verdicts.items():
        if verdict != "identical":
            print(f"  {verdict}: results/{output}")
    print("written to results/certificate.json")


def compare(old: Path, new: Path) -> str:
    """"identical" bytes; "agrees" where all text is equal and all numbers to 4 digits; "differs"; "new"; "gone"."""
    if not (old.exists() and new.exists()):
        return "new" if new.exists() else "gone"
    a, b = old.read_bytes(), new.read_bytes()
    if a == b:
        return "identical"
    close = {".safetensors": _close_tensors, ".json": _close_text, ".ipynb": _close_notebooks}.get(new.suffix)
    return "agrees" if close and close(a, b) else "differs"


def _close_tensors(a: bytes, b: bytes) -> bool:
    import torch
    from safetensors.torch import load

    def close(x: torch.Tensor, y: torch.Tensor) -> bool:
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            return False
        return not x.numel() or torch.allclose(x, y, rtol=0.0, atol=10.0**-DIGITS * float(x.abs().max()))

    old, new = load(a), load(b)
    return old.keys() == new.keys() and all(close(old[key], new[key]) for key in old)


def _close_text(a: bytes, b: bytes) -> bool:
    old, new = a.decode(), b.decode()
    numbers = ([float(number.replace("−", "-")) for number in NUMBER.findall(text)] for text in (old, new))
    return NUMBER.sub("#", old) == NUMBER.sub("#", new) and all(
        math.isclose(x, y, rel_tol=10.0**-DIGITS, abs_tol=1e-12) for x, y in zip(*numbers, strict=True))


def _close_notebooks(a: bytes, b: bytes) -> bool:
    return _close_text(*(_without_images(json.loads(notebook)) for notebook in (a, b)))  # figures/ has the images


def _without_images(notebook: dict) -> bytes:
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    return json.dumps(notebook, ensure_ascii=False).encode()


def machine() -> dict[str, str]:
    """What a result depends on besides its inputs."""
    import torch

    cpu = next((line.split(":")[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
               platform.processor())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"system": f"{platform.system()} {platform.machine()}", "cpu": cpu, "threads": str(torch.get_num_threads()),
            "gpu": gpu, "python": platform.python_version(), "torch": torch.__version__}


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


# --- publishing -------------------------------------------------------------------------------------------


def publish() -> None:
    """Copy what the pipeline made into the tree: notebooks/, docs/gallery/, docs/published.json, README's ledger."""
    from lib.claims import Claim, table

    readme, gallery = ROOT / "README.md", ROOT / "docs" / "gallery"
    head, *rest = re.split(f"{MARKS[0]}.*{MARKS[1]}", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
    if len(rest) != 1:
        raise Refused(f"README.md: got no place for the ledger; need the marks {' and '.join(MARKS)}")
    executed, published, rows = {}, {}, []
    for name in chapters():  # refuse before anything is written
        executed[name] = publishable(name)
        metrics, tolerances = (_json(RESULTS / name / f"{part}.json", {}) for part in ("metrics", "tolerances"))
        rows += claims(name)
        published[name] = {"metrics": metrics, "tolerances": tolerances,
                           "claims": {row["id"]: row["holds"] for row in claims(name)}}
    gallery.mkdir(parents=True, exist_ok=True)
    for name, text in executed.items():
        replace(ROOT / "notebooks" / f"{name}.ipynb", text)
        picture = RESULTS / name / "figures" / "gallery.png"
        if picture.exists():
            shutil.copyfile(picture, gallery / f"{name}.png")
    replace(ROOT / "docs" / "published.json",
            json.dumps({"machine": machine(), "chapters": published}, indent=1, ensure_ascii=False) + "\n")
    replace(readme, f"{head}{MARKS[0]}\n{table([Claim(**row) for row in rows])}\n{MARKS[1]}{rest[0]}")
    print(f"published {len(published)} notebooks and {len(rows)} ledger rows")


def publishable(name: str) -> str:
    """The text of a chapter's executed notebook; refuses one that is not what the tree's notebook makes."""
    made = RESULTS / name / f"{name}.ipynb"
    if not made.exists():
        raise Refused(f"{name}: no results to publish; run `make repro`")
    if any(tagged(cell, INJECTED) for cell in read(made).cells):
        raise Refused(f"{name}: not made with the default parameters; restore params.yaml, then `make repro`")
    if dumps(stripped(read(made))) != dumps(stripped(read(ROOT / "notebooks" / f"{name}.ipynb"))):
        raise Refused(f"{name}: notebooks/{name}.ipynb has changed since its results were made; run `make repro`")
    return made.read_text(encoding="utf-8")


if __name__ == "__main__":
    commands = {"repro": repro, "fresh": fresh, "publish": publish}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        raise Refused("usage: python -m scripts.report repro | fresh | publish")
    commands[sys.argv[1]]()

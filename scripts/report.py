"""The pipeline as a person meets it: run it, certify it, publish it.

    python -m scripts.report repro      dvc repro, then a table: stage, time, state, claims that hold, where to look
    python -m scripts.report fresh      the same with everything forced, then a certificate against the results before
    python -m scripts.report publish    executed notebooks, gallery, metrics and ledger into the tree (maintainers)
"""
from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import yaml

from lib.claims import Claim, table
from lib.notebook import RESULTS, ROOT, Refused, dumps, replace, stripped

MARKS = ("<!-- ledger -->", "<!-- /ledger -->")
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+\.?\d*(?:[eE][-+]?\d+)?")
DIGITS = 4  # significant digits that another run must agree to


def chapters() -> list[str]:
    """Names of the chapters, in the order of dvc.yaml."""
    return list(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["run"]["foreach"])


def claims(name: str) -> list[Claim]:
    """The ledger of a chapter's results; empty without results."""
    file = RESULTS / name / "claims.json"
    return [Claim(**row) for row in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []


def repro(*options: str) -> None:
    """`dvc repro`, then one line a stage."""
    started = time.time()
    code = subprocess.run(["dvc", "repro", *options], cwd=ROOT).returncode
    file = RESULTS / "timings.json"
    timings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    print(f"\n{'stage':34} {'seconds':>8}  {'state':11} {'claims':>7}  look at")
    for name in chapters():
        seen = timings.get(name, {"seconds": math.nan, "finished": 0.0})
        state = "rebuilt" if seen["finished"] >= started else "up to date"
        if not (RESULTS / name).exists():
            state = "missing"
        elif code and seen["finished"] < started:
            state = "last good"
        rows = [row for row in claims(name) if row.holds is not None]
        held = f"{sum(row.holds for row in rows)}/{len(rows)}"
        print(f"{name:34} {seen['seconds']:8.0f}  {state:11} {held:>7}  results/{name}/{name}.ipynb")
    print(f"{'in all':34} {time.time() - started:8.0f}  this time; a chapter up to date shows what it took when it ran")
    if code:
        raise Refused("a stage failed: its message is above, its notebook under results/failed/")


# --- the certificate --------------------------------------------------------------------------------------


def fresh() -> None:
    """Force every stage and compare each output with what stood there before."""
    with tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch)
        for name in chapters():
            if (RESULTS / name).exists():
                shutil.copytree(RESULTS / name, before / name)
        shutil.rmtree(RESULTS / "checkpoints", ignore_errors=True)
        lock = _sha(ROOT / "dvc.lock")
        repro("--force")
        verdicts = {}
        for name in chapters():
            for file in sorted(p for p in (RESULTS / name).rglob("*") if p.is_file()):
                relative = file.relative_to(RESULTS)
                verdicts[str(relative)] = compare(before / relative, file)
    counts = {v: list(verdicts.values()).count(v) for v in ("identical", "agrees", "differs", "new")}
    same_lock = "unchanged" if lock == _sha(ROOT / "dvc.lock") else "changed"
    certificate = {"machine": machine(), "dvc.lock": same_lock, "counts": counts, "outputs": verdicts}
    replace(RESULTS / "certificate.json", json.dumps(certificate, indent=1) + "\n")
    print(f"\ncertificate: {counts['identical']} outputs byte-identical, {counts['agrees']} agree to {DIGITS} digits, "
          f"{counts['differs']} differ, {counts['new']} had no predecessor; dvc.lock {same_lock}")
    for name, verdict in verdicts.items():
        if verdict in ("agrees", "differs"):
            print(f"  {verdict}: results/{name}")
    print("written to results/certificate.json")


def compare(old: Path, new: Path) -> str:
    """"identical" bytes; "agrees" where every number is equal to 4 digits; "differs"; "new" without `old`."""
    if not old.exists():
        return "new"
    a, b = old.read_bytes(), new.read_bytes()
    if a == b:
        return "identical"
    if new.suffix == ".safetensors":
        import torch
        from safetensors.torch import load

        a, b = load(a), load(b)
        close = a.keys() == b.keys() and all(
            a[k].shape == b[k].shape and torch.allclose(a[k], b[k], rtol=10.0**-DIGITS, atol=10.0**-DIGITS) for k in a)
        return "agrees" if close else "differs"
    if new.suffix not in (".json", ".ipynb"):
        return "differs"
    a, b = (_text(data, new.suffix) for data in (a, b))
    x, y = ([float(n.replace("−", "-")) for n in NUMBER.findall(t)] for t in (a, b))
    if NUMBER.sub("#", a) != NUMBER.sub("#", b) or len(x) != len(y):
        return "differs"
    close = all(math.isclose(p, q, rel_tol=10.0**-DIGITS, abs_tol=1e-12) for p, q in zip(x, y, strict=True))
    return "agrees" if close else "differs"


def _text(data: bytes, suffix: str) -> str:
    if suffix == ".json":
        return data.decode()
    outputs = []
    for cell in json.loads(data)["cells"]:
        for output in cell.get("outputs", []):
            rich = output.get("data", {})
            outputs += [output.get("text", ""), rich.get("text/plain", ""), rich.get("text/markdown", "")]
    return "\n".join("".join(part) for part in outputs)


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


def _sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""


# --- publishing -------------------------------------------------------------------------------------------


def publish() -> None:
    """Copy what the pipeline made into the tree: notebooks/, docs/gallery/, docs/published.json, README's ledger."""
    published, rows = {}, []
    for name in chapters():
        source, made = ROOT / "notebooks" / f"{name}.ipynb", RESULTS / name / f"{name}.ipynb"
        if not made.exists():
            raise Refused(f"{name}: no results to publish; run `make repro`")
        if "injected-parameters" in made.read_text(encoding="utf-8"):
            raise Refused(f"{name}: not made with the default parameters; restore params.yaml, then `make repro`")
        if dumps(stripped(nbformat.read(source, as_version=4))) != dumps(stripped(nbformat.read(made, as_version=4))):
            raise Refused(f"{name}: notebooks/{name}.ipynb has changed since its results were made; run `make repro`")
        metrics, tolerances = (json.loads((RESULTS / name / f"{part}.json").read_text(encoding="utf-8"))
                               for part in ("metrics", "tolerances"))
        published[name] = {"metrics": metrics, "tolerances": tolerances,
                           "claims": {row.id: row.holds for row in claims(name)}}
        rows += claims(name)
    gallery = ROOT / "docs" / "gallery"
    gallery.mkdir(parents=True, exist_ok=True)
    for name in chapters():
        replace(ROOT / "notebooks" / f"{name}.ipynb", (RESULTS / name / f"{name}.ipynb").read_text(encoding="utf-8"))
        picture = RESULTS / name / "figures" / "gallery.png"
        if picture.exists():
            shutil.copyfile(picture, gallery / f"{name}.png")
    replace(ROOT / "docs" / "published.json",
            json.dumps({"machine": machine(), "chapters": published}, indent=1, ensure_ascii=False) + "\n")
    readme = ROOT / "README.md"
    head, rest = readme.read_text(encoding="utf-8").split(MARKS[0])
    tail = rest.split(MARKS[1])[1]
    replace(readme, f"{head}{MARKS[0]}\n{table(rows)}\n{MARKS[1]}{tail}")
    print(f"published {len(published)} notebooks and {len(rows)} ledger rows")


if __name__ == "__main__":
    commands = {"repro": repro, "fresh": fresh, "publish": publish}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        raise Refused("usage: python -m scripts.report repro | fresh | publish")
    commands[sys.argv[1]]()

"""Everything run again, with a certificate of what came back byte for byte, to four digits, or otherwise."""
from __future__ import annotations

import json
import math
import platform
import re
import shutil
import tempfile
from pathlib import Path

from pipeline import files
from pipeline.files import replace
from pipeline.parameters import chapters
from pipeline.repro import repro

NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+\.?\d*(?:[eE][-+]?\d+)?")
DIGITS = 4  # significant digits that another run must agree to
VERDICTS = ("identical", "agrees", "differs", "new", "gone")


def fresh() -> None:
    """Force every stage and compare each output with what stood there before."""
    lock = files.ROOT / "dvc.lock"
    with tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch)
        for name in chapters():
            if (files.RESULTS / name).exists():
                shutil.copytree(files.RESULTS / name, before / name)
        shutil.rmtree(files.RESULTS / "checkpoints", ignore_errors=True)
        locked = lock.read_bytes() if lock.exists() else b""
        repro("--force")
        outputs = sorted({file.relative_to(folder).as_posix() for folder in (before, files.RESULTS)
                          for name in chapters() for file in (folder / name).rglob("*") if file.is_file()})
        verdicts = {output: compare(before / output, files.RESULTS / output) for output in outputs}
    counts = {verdict: list(verdicts.values()).count(verdict) for verdict in VERDICTS}
    same_lock = "unchanged" if lock.read_bytes() == locked else "changed"
    certificate = {"machine": machine(), "dvc.lock": same_lock, "counts": counts, "outputs": verdicts}
    replace(files.RESULTS / "certificate.json", json.dumps(certificate, indent=1) + "\n")
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

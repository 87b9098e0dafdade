"""Where things are, files that are written whole or not at all, and how the pipeline refuses."""
from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"


class Refused(SystemExit):
    """A clear error for the terminal; nothing good has been lost."""

    def __init__(self, message: str) -> None:
        super().__init__(f"error: {message}")


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def replace(file: Path, text: str) -> None:
    """Write a text file whole or not at all, and only if it changed."""
    if file.exists() and file.read_bytes() == text.encode():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        part.write_bytes(text.encode())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def read_json(file: Path, default: Any) -> Any:
    """What a JSON file holds, or `default` where there is none that can be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default

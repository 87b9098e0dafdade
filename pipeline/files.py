"""Where things are, files that are written whole or not at all, JSON as it is meant, and how the pipeline refuses."""
from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
NUMBER = int | float


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


def exchange(a: Path, b: Path) -> bool:
    """Exchange two folders in one step; False, with nothing done, where the system cannot."""
    system = ctypes.CDLL(None) if os.name == "posix" else None
    names, here, swap = (os.fsencode(a), os.fsencode(b)), -100, 2  # AT_FDCWD; RENAME_EXCHANGE, as RENAME_SWAP
    if hasattr(system, "renameat2"):  # Linux
        return system.renameat2(here, names[0], here, names[1], swap) == 0
    return hasattr(system, "renamex_np") and system.renamex_np(*names, swap) == 0  # macOS


def fits(content: object, shape: Any) -> bool:
    """Whether JSON has a shape: a type; [shape of each]; {str: shape of each value}, or {key: shape} of keys needed."""
    match shape:
        case [each]:
            return isinstance(content, list) and all(fits(one, each) for one in content)
        case {**parts} if isinstance(content, dict):
            parts = dict.fromkeys(content, parts[str]) if str in parts else parts
            return all(key in content and fits(content[key], part) for key, part in parts.items())
        case {**parts}:
            return False
    return isinstance(content, shape) and not (isinstance(content, int) and abs(content) > 1 << 1000)  # is no float


def load_json(file: Path, shape: Any) -> Any:
    """What a JSON file holds; refuses, naming the file, what cannot be read or written again, and other shapes."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair cannot be
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{file.relative_to(ROOT)} cannot be read: {error}") from error
    if not fits(content, shape):
        raise Refused(f"{file.relative_to(ROOT)}: got other JSON than is written there; delete it and run `make repro`")
    return content


def read_json(file: Path, default: Any, shape: Any) -> Any:
    """What a JSON file holds, or `default`: where there is none, and, saying so, where it is refused."""
    try:
        return load_json(file, shape) if file.exists() else default
    except Refused as refusal:
        passed_over(file, str(refusal).removeprefix("error: "))
        return default


@functools.cache  # a file that is read for several tables is named once
def passed_over(file: Path, why: str) -> None:
    print(f"passed over: {why}", file=sys.stderr, flush=True)

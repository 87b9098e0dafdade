"""What a chapter's section of params.yaml may say.

The notebook's `parameters` cell assigns the defaults; params.yaml repeats them as

    key: {value: 2.0, range: [0.5, 4.0]}        numbers
    key: {value: auto, choices: [auto, cpu]}    words, or numbers
    key: {value: true}                          booleans

Everything is checked before anything is computed, and a refusal names file, key, value and what is allowed.
"""
from __future__ import annotations

import ast
import re
from contextlib import suppress
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from pipeline import files
from pipeline.files import Refused

NUMBER = "{value: …, range: [low, high]} or {value: …, choices: […]}"
FORMS = {int: NUMBER, float: NUMBER, str: "{value: …, choices: […]}", bool: "{value: true} or {value: false}"}


def literals(source: str, where: str = "source") -> dict[str, object]:
    """The top-level assignments of literals in Python source: name → value; what is no Python is refused."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise Refused(f"{where} is no Python: {error}") from error
    found: dict[str, object] = {}
    for node in body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and isinstance(node, (ast.Assign, ast.AnnAssign)):
            with suppress(ValueError, TypeError):
                found[target.id] = ast.literal_eval(node.value)
    return found


def read_yaml(file: Path) -> dict:
    """A YAML file that holds a mapping, read by DVC's parser: 1e-3 is a number, and a key given twice an error."""
    try:
        content = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError, YAMLError) as error:  # such as a 32nd of January
        raise Refused(f"{file.name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise Refused(f"{file.name}: got {type(content).__name__}; need a mapping")
    return content


def chapters() -> list[str]:
    """Names of the chapters, in the order of dvc.yaml; each names files and folders, and none outside the tree."""
    found = read_yaml(files.ROOT / "dvc.yaml")
    match found:
        case {"stages": {"run": {"foreach": [*names]}}} if all(re.fullmatch(r"\w[\w-]*", str(name)) for name in names):
            return [str(name) for name in names]
    raise Refused("dvc.yaml: need, under stages, run, foreach, a list of chapters named by letters, digits, _ and -")


def checked(name: str, given: object, defaults: dict[str, object]) -> dict[str, object]:
    """The section of params.yaml for chapter `name` as {key: value}, each of the type of its default."""
    where = f"params.yaml: {name}"
    if not isinstance(given, dict):
        raise Refused(f"{where}: got {given!r}; need a mapping of parameters")
    known = ", ".join(sorted(defaults)) or "none"
    for key in given:
        if key not in defaults:
            raise Refused(f"{where}.{key}: got {given[key]!r}; need a parameter of the notebook: {known}")
    for key in defaults:
        if key not in given:
            raise Refused(f"{where}.{key}: got nothing; need an entry for each parameter of the notebook: {known}")
    return {key: _value(f"{where}.{key}", entry, type(defaults[key])) for key, entry in given.items()}


def _value(where: str, entry: object, kind: type) -> object:
    match entry:
        case {"value": value, "range": [int() | float() as low, int() | float() as high], **rest} if (
                not rest and kind in (int, float)):
            need, allowed = f"{kind.__name__} from {low} to {high}", lambda v: low <= v <= high
        case {"value": value, "choices": [*choices], **rest} if not rest and kind in (int, float, str):
            need, allowed = f"{kind.__name__}, one of {', '.join(map(str, choices))}", lambda v: v in choices
        case {"value": value, **rest} if not rest and kind is bool:
            need, allowed = "true or false", lambda v: True
        case _:
            raise Refused(f"{where}: got {entry!r}; need, for a default of type {kind.__name__}, "
                          f"{FORMS.get(kind, 'a bool, int, float or str as default')}")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or not allowed(value):
        raise Refused(f"{where}: got {value!r}; need {need}")
    return value

"""The maintainer's step: executed notebooks, gallery, metrics and ledger into the tree."""
from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

from pipeline import files, history
from pipeline.certificate import machine
from pipeline.compare import NUMBERS
from pipeline.copies import INJECTED, dumps, read, stripped, tagged
from pipeline.files import Refused, load_json, replace
from pipeline.ledger import claims, page, summary
from pipeline.parameters import chapters

if TYPE_CHECKING:
    from lib.chapter.claims import Row

MARKS = ("<!-- ledger -->", "<!-- /ledger -->")


def publish() -> None:
    """Copy what the pipeline made into the tree: notebooks/, docs/ (gallery, ledger, record), README's part of it."""
    readme, gallery = files.ROOT / "README.md", files.ROOT / "docs" / "gallery"
    head, *rest = re.split(f"{MARKS[0]}.*{MARKS[1]}", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
    if len(rest) != 1:
        raise Refused(f"README.md: got no place for the ledger; need the marks {' and '.join(MARKS)}")
    history.refuse_late_rules()
    names = chapters()  # refuse before anything is written
    executed, rows = {name: publishable(name) for name in names}, judged(names)
    record = {"machine": machine(), "chapters": {name: recorded(name) for name in names}}
    notebooks = {name: read(files.RESULTS / name / f"{name}.ipynb") for name in names}
    for name, text in executed.items():
        replace(files.ROOT / "notebooks" / f"{name}.ipynb", text)
        for picture in (files.RESULTS / name / "figures").glob("gallery.*"):  # still, and moving
            gallery.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, gallery / f"{name}{picture.suffix}")
    replace(files.ROOT / "docs" / "published.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    replace(files.ROOT / "docs" / "ledger.md", page(rows, notebooks))
    replace(readme, f"{head}{MARKS[0]}\n{summary(rows, notebooks)}\n{MARKS[1]}{rest[0]}")
    print(f"published {len(names)} notebooks and {len(rows)} ledger rows")


def judged(names: list[str]) -> list[Row]:
    """The rows of all chapters; refuses them if they were not judged by the rules of claims.yaml."""
    from lib.chapter.claims import Row, registry

    rows = [Row(**row) for name in names for row in claims(name)]
    try:
        known = registry(files.ROOT / history.RULES)
    except ValueError as error:
        raise Refused(str(error)) from error
    rules = {id: claim.rule for id, claim in known.items() if claim.chapter in names}
    mine = {row.id: row.rule for row in rows}
    if other := sorted(id for id in rules.keys() | mine.keys() if str(rules.get(id) or "") != mine.get(id)):
        raise Refused(f"{', '.join(other)}: not measured under the rules of claims.yaml; run `make repro`")
    return rows


def recorded(name: str) -> dict[str, dict]:
    """What docs/published.json keeps of a chapter."""
    parts = [files.RESULTS / name / f"{part}.json" for part in ("metrics", "tolerances")]
    metrics, tolerances = (load_json(file, NUMBERS) if file.exists() else {} for file in parts)
    kept = ("value", "spread", "seeds", "verdict", "rule")
    return {"metrics": metrics, "tolerances": tolerances,
            "claims": {row["id"]: {key: row[key] for key in kept} for row in claims(name)}}


def publishable(name: str) -> str:
    """The text of a chapter's executed notebook; refuses one that is not what the tree's notebook makes."""
    made = files.RESULTS / name / f"{name}.ipynb"
    if not made.exists():
        raise Refused(f"{name}: no results to publish; run `make repro`")
    if any(tagged(cell, INJECTED) for cell in read(made).cells):
        raise Refused(f"{name}: not made with the default parameters; restore params.yaml, then `make repro`")
    if dumps(stripped(read(made))) != dumps(stripped(read(files.ROOT / "notebooks" / f"{name}.ipynb"))):
        raise Refused(f"{name}: notebooks/{name}.ipynb has changed since its results were made; run `make repro`")
    return made.read_text(encoding="utf-8")

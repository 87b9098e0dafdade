"""The maintainer's step: executed notebooks, gallery, metrics and ledger into the tree."""
from __future__ import annotations

import json
import re
import shutil

from pipeline import files
from pipeline.certificate import machine
from pipeline.copies import INJECTED, dumps, read, stripped, tagged
from pipeline.files import read_json, replace
from pipeline.parameters import Refused
from pipeline.repro import chapters, claims

MARKS = ("<!-- ledger -->", "<!-- /ledger -->")


def publish() -> None:
    """Copy what the pipeline made into the tree: notebooks/, docs/gallery/, docs/published.json, README's ledger."""
    from lib.chapter.claims import Claim, table

    readme, gallery = files.ROOT / "README.md", files.ROOT / "docs" / "gallery"
    head, *rest = re.split(f"{MARKS[0]}.*{MARKS[1]}", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
    if len(rest) != 1:
        raise Refused(f"README.md: got no place for the ledger; need the marks {' and '.join(MARKS)}")
    executed, published, rows = {}, {}, []
    for name in chapters():  # refuse before anything is written
        executed[name] = publishable(name)
        metrics, tolerances = (read_json(files.RESULTS / name / f"{part}.json", {})
                               for part in ("metrics", "tolerances"))
        rows += claims(name)
        published[name] = {"metrics": metrics, "tolerances": tolerances,
                           "claims": {row["id"]: row["holds"] for row in claims(name)}}
    gallery.mkdir(parents=True, exist_ok=True)
    for name, text in executed.items():
        replace(files.ROOT / "notebooks" / f"{name}.ipynb", text)
        picture = files.RESULTS / name / "figures" / "gallery.png"
        if picture.exists():
            shutil.copyfile(picture, gallery / f"{name}.png")
    replace(files.ROOT / "docs" / "published.json",
            json.dumps({"machine": machine(), "chapters": published}, indent=1, ensure_ascii=False) + "\n")
    replace(readme, f"{head}{MARKS[0]}\n{table([Claim(**row) for row in rows])}\n{MARKS[1]}{rest[0]}")
    print(f"published {len(published)} notebooks and {len(rows)} ledger rows")


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

"""This run against the published one, row by row: verdicts and values of claims, metrics with their tolerances."""
from __future__ import annotations

from typing import NamedTuple

from pipeline import files
from pipeline.copies import INJECTED, read, tagged
from pipeline.files import NUMBER, Refused, read_json
from pipeline.ledger import claims
from pipeline.parameters import chapters

PUBLISHED = "docs/published.json"
NUMBERS = {str: NUMBER}  # metrics.json and tolerances.json
SHAPE = {"chapters": {str: {"claims": {str: {"value": NUMBER | None, "verdict": str}}, "metrics": NUMBERS,
                            "tolerances": NUMBERS}}}


class Line(NamedTuple):
    """A claim or a metric, as published and here."""

    name: str
    was: float | None  # None: not there, or not reproduced
    now: float | None
    verdicts: tuple[str, str] = ("", "")  # of a claim
    tolerance: float | None = None  # of a metric: the relative change that another processor brings

    @property
    def moved(self) -> bool:
        """Whether anything is other than published."""
        return self.was != self.now or self.turned

    @property
    def turned(self) -> bool:
        """Whether a verdict is another, or a metric moved by more than its tolerance."""
        if self.tolerance is None:
            return self.verdicts[0] != self.verdicts[1]
        if self.was is None or self.now is None:
            return True
        return abs(self.now - self.was) > self.tolerance * abs(self.was) + 1e-12

    def __str__(self) -> str:
        was, now = ("–" if value is None else f"{value:.4g}" for value in (self.was, self.now))
        sides = [f"{value} {verdict}".strip() for value, verdict in zip((was, now), self.verdicts, strict=True)]
        told = [f"{self.now / self.was - 1:+.2%}"] if self.moved and self.was and self.now is not None else []
        told += [f"tolerance {self.tolerance:.2%}"] if told and self.tolerance is not None else []
        note = f" ({', '.join(told)})" if told else ""
        return f"{'!' if self.turned else ' '} {sides[0]:>22} {sides[1] if self.moved else '=':>22}  {self.name}{note}"


def lines(name: str) -> list[Line]:
    """Every claim and metric of a chapter that was published or is here."""
    published = read_json(files.ROOT / PUBLISHED, {"chapters": {}}, SHAPE)["chapters"].get(name, {})
    was = published.get("claims", {})
    now = {row["id"]: row for row in claims(name)}
    both = [(id, was.get(id, {}), now.get(id, {})) for id in dict.fromkeys([*was, *now])]
    found = [Line(id, a.get("value"), b.get("value"), (a.get("verdict", "none"), b.get("verdict", "none")))
             for id, a, b in both]
    here = {part: read_json(files.RESULTS / name / f"{part}.json", {}, NUMBERS) for part in ("metrics", "tolerances")}
    tolerances = published.get("tolerances", {}) | here["tolerances"]
    old, new = published.get("metrics", {}), here["metrics"]
    return found + [Line(key, old.get(key), new.get(key), tolerance=tolerances.get(key, 0.0))
                    for key in dict.fromkeys([*old, *new])]


def compare() -> None:
    """Print every row of every chapter that has results here, then the sum."""
    done = [name for name in chapters() if (files.RESULTS / name).exists()]
    for name in done:
        try:
            cells = read(files.RESULTS / name / f"{name}.ipynb").cells
        except Refused as refusal:
            cells = []
            print(refusal)
        injected = [cell.source for cell in cells if tagged(cell, INJECTED)]
        changed = [line for source in injected for line in source.splitlines() if " = " in line]
        print(f"{name}{' with ' if changed else ''}{', '.join(changed)}")
        print(f"  {'published':>22} {'here':>22}")
        print("\n".join(map(str, lines(name))) + "\n")
    print(summary(done) if done else "no results here; `make repro` makes them")


def summary(names: list[str]) -> str:
    """One line on how far the results of some chapters are from the published ones."""
    found = [line for name in names for line in lines(name)]
    verdicts, metrics = ([line for line in found if (line.tolerance is None) == of] for of in (True, False))
    moved, beyond = [line for line in metrics if line.moved], [line for line in metrics if line.turned]
    return (f"against {PUBLISHED}: {sum(line.turned for line in verdicts)} of {len(verdicts)} verdicts changed, "
            f"{sum(line.moved for line in verdicts)} of their values moved; {len(moved)} of {len(metrics)} metrics "
            f"moved, {len(beyond)} of them beyond their tolerance")


def told(names: list[str], most: int = 8) -> None:
    """The end of `repro`: what moved in the chapters that were rebuilt; nothing where nothing did."""
    moved = [line for name in names for line in lines(name) if line.moved]
    if not moved:
        return
    print(f"\n{summary(names)}")
    print("\n".join(map(str, sorted(moved, key=lambda line: not line.turned)[:most])))
    print(f"`make compare` shows {'the other ' + str(len(moved) - most) if len(moved) > most else 'them'} "
          "beside what did not move")

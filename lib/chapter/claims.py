"""The ledger: claims are decided in claims.yaml before their numbers exist; a run only measures.

    claims = Ledger("KO")
    claims.measure("KO-3", value, spread=standard_error, seeds=3)        a verdict by the rule in claims.yaml
    claims.check("Theorem 3.1 agrees with the chord", error, 0.0, 1e-5)  an identity: shown, and no claim
    claims.metric("energy of Cond-OT on digits", 1.583, tolerance=0.02)
    claims.show()

An entry of claims.yaml, in the section of its chapter, is

    KO-3:
      says: what could turn out false
      source: "paper: Table 1"                      or "follow-up: …", or "ours"
      quantity: the number that decides
      rule: {relation: "≤", threshold: 0.5, seeds: 3}          "=" takes a tolerance as well
      refuted: the outcome that would refute it

or, in place of the last three, `not_reproduced: why`.  With its 95 % interval (Student's t where the error comes
from few seeds: ± 4.3 of it from three) a claim *holds* where all of it obeys the rule, *fails* where none of it does,
and is *open* where it straddles the threshold, or where it would hold from fewer seeds than the rule asks for.  Running
a cell again overwrites; inside the pipeline a second value is refused.
"""
import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from IPython.display import Markdown, display
from ruamel.yaml import YAML, YAMLError
from scipy.special import stdtrit

from lib.base import check
from lib.base.stage import OUT

REGISTRY = Path(__file__).resolve().parents[2] / "claims.yaml"
RELATIONS = ("≤", "≥", "=")
SOURCES = ("paper", "follow-up", "ours")
HOLDS, FAILS, OPEN, NOT_REPRODUCED = "holds", "fails", "open", "not reproduced"
NEEDED = ("says", "source", "quantity", "rule", "refuted")


class Rule(NamedTuple):
    """What a value must obey: value `relation` threshold, up to the tolerance, from so many seeds."""

    relation: str
    threshold: float
    tolerance: float = 0.0
    seeds: int = 1

    def verdict(self, value: float, spread: float, seeds: int) -> str:
        """The verdict on the 95 % interval of value, `spread` its standard error; not a number never holds.

        From one seed the standard error is that of many samples, and the interval a normal one.
        """
        half = spread * (float(stdtrit(seeds - 1, 0.975)) if seeds > 1 else 1.96)
        low, high = value - half, value + half
        least = -math.inf if self.relation == "≤" else self.threshold - self.tolerance
        most = math.inf if self.relation == "≥" else self.threshold + self.tolerance
        if not (math.isfinite(value) and math.isfinite(spread)) or high < least or low > most:
            return FAILS
        return HOLDS if least <= low and high <= most and seeds >= self.seeds else OPEN

    def __str__(self) -> str:
        slack = f" ± {self.tolerance:.2g}" if self.tolerance else ""
        return f"{self.relation} {self.threshold:.4g}{slack}" + (f", {self.seeds} seeds" if self.seeds > 1 else "")


class Row(NamedTuple):
    """An entry of claims.yaml with, once measured, what this run says of it: a line of claims.json."""

    id: str
    chapter: str
    says: str
    source: str
    quantity: str = ""
    rule: Rule | str = ""  # as a string in claims.json; none where not reproduced
    value: float | None = None
    spread: float | None = None  # standard error
    seeds: int | None = None
    verdict: str = ""  # none where not measured
    note: str = ""


def registry(file: Path | None = None) -> dict[str, Row]:
    """All claims, by identifier; ValueError names an entry that says less, more or other than it must."""
    file = file or REGISTRY
    try:
        sections = YAML(typ="safe").load(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.name} cannot be read: {error}") from error
    if not isinstance(sections, dict) or not all(isinstance(entries, dict) for entries in sections.values()):
        check.refuse(file.name, "another shape", "a mapping of chapters, each a mapping of claims")
    found: dict[str, Row] = {}
    for chapter, entries in sections.items():
        for id, entry in entries.items():
            if not isinstance(id, str):
                check.refuse(f"{file.name}: {id}", "no word", "a name, as KO-3")
            if id in found:
                check.refuse(f"{file.name}: {id}", "two entries", "one")
            found[id] = _claim(f"{file.name}: {id}", id, chapter, entry)
    return found


def _claim(where: str, id: str, chapter: str, entry: Any) -> Row:
    untested = isinstance(entry, dict) and "not_reproduced" in entry
    needed = ("says", "source", "not_reproduced") if untested else NEEDED
    if not isinstance(entry, dict) or set(entry) != set(needed) or not all(entry.values()):
        check.refuse(where, sorted(entry) if isinstance(entry, dict) else entry, f"{', '.join(needed)}, none empty")
    if str(entry["source"]).split(":")[0] not in SOURCES:
        check.refuse(f"{where}: source", repr(entry["source"]), f"a word of {', '.join(SOURCES)}, and where")
    row = Row(id, chapter, entry["says"], entry["source"])
    if untested:
        return row._replace(verdict=NOT_REPRODUCED, note=entry["not_reproduced"])
    return row._replace(quantity=entry["quantity"], rule=_rule(f"{where}: rule", entry["rule"]))


def _rule(where: str, given: Any) -> Rule:
    if not isinstance(given, dict) or not {"relation", "threshold"} <= set(given) <= set(Rule._fields):
        check.refuse(where, given, "relation and threshold, and tolerance and seeds where needed")
    check.choice(f"{where}: relation", given["relation"], RELATIONS)
    check.within(f"{where}: threshold", given["threshold"], -math.inf, math.inf)
    check.within(f"{where}: tolerance", given.get("tolerance", 0.0), 0.0, math.inf)
    check.count(f"{where}: seeds", given.get("seeds", 1))
    return Rule(**given)


class Ledger:
    """The claims, checks and metrics of one chapter; `prefix` is that of its claims, as "KO" of KO-3."""

    def __init__(self, prefix: str) -> None:
        self.rows = {id: row for id, row in registry().items() if id.split("-")[0] == prefix}
        self.metrics: dict[str, float] = {}
        self.tolerances: dict[str, float] = {}
        self._write()

    def measure(self, id: str, value: float, *, spread: float | None = None, seeds: int = 1, note: str = "") -> str:
        """The verdict of the rule in claims.yaml on `value` with the standard error `spread` (None: exact).

        ValueError for a claim that claims.yaml does not know, and without a spread where the rule asks for seeds.
        """
        row = self.rows.get(id)
        if row is None or not isinstance(row.rule, Rule):
            ruled = ", ".join(one.id for one in self.rows.values() if one.rule) or "none"
            check.refuse("id", repr(id), f"a claim with a rule in claims.yaml: {ruled}")
        self._once(id, self.verdicts())
        check.count("seeds", seeds)
        if spread is None and row.rule.seeds > 1:
            check.refuse("spread", "none", f"a standard error: the rule of {id} asks for {row.rule.seeds} seeds")
        value, error = float(value), float(spread or 0.0)
        if error < 0:
            check.refuse("spread", error, "a standard error ≥ 0")
        verdict = row.rule.verdict(value, error, seeds)
        if seeds < row.rule.seeds:
            note = "; ".join(filter(None, [note, f"{seeds} of {row.rule.seeds} seeds"]))
        self.rows[id] = row._replace(value=_round(value), spread=None if spread is None else _round(error),
                                     seeds=seeds, verdict=verdict, note=note)
        self._write()
        return verdict

    def check(self, says: str, measured: float, expected: float = 0.0, tolerance: float = 0.0,
              relation: str = "=") -> None:
        """Show that a theorem, an identity or code holds: measured `relation` expected, up to the tolerance.

        Inside the pipeline AssertionError where it does not, for then something is broken.
        """
        check.choice("relation", relation, RELATIONS)
        good = Rule(relation, expected, tolerance).verdict(float(measured), 0.0, 1) == HOLDS
        said = f"{'✓' if good else '✗'} {says}: {_round(float(measured)):.4g} ({Rule(relation, expected, tolerance)})"
        if not good and os.environ.get(OUT):
            raise AssertionError(said)
        print(said)

    def metric(self, name: str, value: float, *, tolerance: float) -> float:
        """Record a number of this run; `tolerance` is the relative change another processor may bring."""
        self._once(name, self.metrics)
        self.metrics[name], self.tolerances[name] = _round(float(value)), tolerance
        self._write()
        return float(value)

    def show(self) -> None:
        """Print the ledger as a table; inside the pipeline ValueError where a claim with a rule was not measured."""
        missing = [row.id for row in self.rows.values() if not row.verdict]
        if missing and os.environ.get(OUT):
            check.refuse("claims", f"no value of {', '.join(missing)}", "a value of every claim of the chapter")
        display(Markdown(table([row for row in self.rows.values() if row.verdict])))
        if missing:
            print("not measured:", ", ".join(missing))

    def verdicts(self) -> dict[str, str]:
        """The verdict of each claim, in the order of claims.yaml."""
        return {id: row.verdict for id, row in self.rows.items() if row.verdict}

    def _once(self, name: str, known: dict[str, Any]) -> None:
        if name in known and os.environ.get(OUT):
            check.refuse("name", repr(name), "what this run has not recorded before")

    def _write(self) -> None:
        folder = os.environ.get(OUT)
        if not folder:
            return
        rows = [row._asdict() | {"rule": str(row.rule)} for row in self.rows.values() if row.verdict]
        for name, content in (("claims", rows), ("metrics", self.metrics), ("tolerances", self.tolerances)):
            text = json.dumps(content, indent=1, ensure_ascii=False)
            (Path(folder) / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def table(rows: list[Row]) -> str:
    """Rows of the ledger as a Markdown table."""
    lines = ["| claim | says | source | measured | rule | verdict |", "|---|---|---|---|---|---|"]
    for row in rows:
        spread = f" ± {row.spread:.2g}" if row.spread else ""
        measured = "" if row.value is None else f"{row.value:.4g}{spread}"
        note = f" ({_cell(row.note)})" if row.note else ""
        verdict = row.verdict if row.verdict == HOLDS else f"**{row.verdict}**"
        lines.append(f"| {row.id} | {_cell(row.says)} | {_cell(row.source)} | {measured}{note} | {row.rule} | "
                     f"{verdict} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")  # a bar would end the cell


def _round(value: float) -> float:
    """Four significant digits: what survives a change of processor, and what makes files comparable."""
    return float(f"{value:.4g}")

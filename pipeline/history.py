"""Rules before numbers: what git says of claims.yaml and of docs/published.json.

A rule that is written once its number is known decides nothing.  So a number is published only under a rule that has
been committed before, and no commit may change both.
"""
from __future__ import annotations

import json
import subprocess

from ruamel.yaml import YAML, YAMLError

from pipeline import files
from pipeline.files import Refused

RULES, NUMBERS = "claims.yaml", "docs/published.json"


def git(*arguments: str) -> str:
    """What a git command says; refuses where there is no git, or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=files.ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Refused("no history of claims.yaml here; publishing needs git and a clone: rules are compared with the "
                      "last commit") from error
    return done.stdout.decode("utf-8", errors="replace")


def at(commit: str, file: str) -> str:
    """A file's text at a commit; empty where there was none."""
    return git("show", f"{commit}:./{file}") if git("ls-tree", "--name-only", commit, file).strip() else ""


def rules(text: str) -> dict[str, object]:
    """The rule of each claim in the text of claims.yaml; None where it was not reproduced."""
    try:
        sections = YAML(typ="safe").load(text) or {}
        return {id: entry.get("rule") for entries in sections.values() for id, entry in entries.items()}
    except (YAMLError, ValueError, TypeError, AttributeError):  # a commit with a broken file
        return {}


def numbers(text: str) -> dict[str, object]:
    """What docs/published.json says of each claim, its rule apart."""
    try:
        return {id: {key: part for key, part in entry.items() if key != "rule"} if isinstance(entry, dict) else entry
                for chapter in json.loads(text)["chapters"].values() for id, entry in chapter["claims"].items()}
    except (ValueError, LookupError, TypeError, AttributeError):  # a commit with a broken file
        return {}


def _changed(before: dict[str, object], after: dict[str, object]) -> set[str]:
    """Keys of `after` that are new or other than before."""
    return {key for key in after if key not in before or before[key] != after[key]}


def undecided() -> list[str]:
    """Claims whose rule in the tree is not that of the last commit."""
    here = files.ROOT / RULES
    text = here.read_text(encoding="utf-8", errors="replace") if here.exists() else ""
    return sorted(_changed(rules(at("HEAD", RULES)), rules(text)))


def together() -> list[tuple[str, str]]:
    """(commit, claim) for every commit that changed a rule and, with it, what had been published under it.

    Where history begins, as in a shallow clone, there is nothing to compare with.
    """
    git("rev-parse", "--verify", "-q", "HEAD")
    both = [set(git("log", "--no-merges", "--format=%H %P", "--", file).splitlines()) for file in (RULES, NUMBERS)]
    found = []
    for commit, parent in (line.split() for line in sorted(set.intersection(*both)) if " " in line.strip()):
        texts = [(at(one, RULES), at(one, NUMBERS)) for one in (parent, commit)]
        (old_rules, old), (new_rules, new) = [(rules(one), numbers(two)) for one, two in texts]
        found += [(commit[:10], id) for id in sorted(_changed(old_rules, new_rules) & _changed(old, new))]
    return found


def refuse_late_rules() -> None:
    """Refuse to publish under a rule that was not there before the number."""
    if late := undecided():
        raise Refused(f"claims.yaml: the rule of {', '.join(late)} is not that of the last commit; commit a rule "
                      "first, then publish the number that it judges")
    if late := together():
        told = ", ".join(f"{id} in {commit}" for commit, id in late)
        raise Refused(f"claims.yaml: a rule was changed together with its published number: {told}; make two commits "
                      "of each, the rule first")

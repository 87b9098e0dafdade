"""Publishing: what is copied, what is refused, rules before numbers."""
from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from tree import code, commit, missing, record, row, write

from lib.chapter.claims import Row
from pipeline import copies, history, ledger, publish
from pipeline.parameters import Refused


def tree(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*"))
            if file.is_file() and not {"results", ".git"} & set(file.parts)}


def publish_again(repository: Path) -> str:
    """Publish and commit; what the README says between its marks."""
    publish.publish()
    commit(repository)
    return (repository / "README.md").read_text().split("<!-- ledger -->\n")[1].split("\n<!-- /ledger -->")[0]


def test_publishing_copies_what_the_pipeline_made(repository: Path):
    publish.publish()
    for name in ("00_a", "01_b"):
        results = repository / "results" / name
        assert (repository / "notebooks" / f"{name}.ipynb").read_bytes() == (results / f"{name}.ipynb").read_bytes()
        assert (repository / "docs" / "gallery" / f"{name}.png").read_bytes() == b"a picture"
        assert (repository / "docs" / "gallery" / f"{name}.webp").read_bytes() == b"a film"
    published = json.loads((repository / "docs" / "published.json").read_text())
    assert published["chapters"]["01_b"] == {"metrics": {"loss": 1.5}, "tolerances": {"loss": 0.1}, "claims": {
        "B-1": {"value": 1.0, "spread": None, "seeds": 1, "verdict": "holds", "rule": "≤ 2"},
        "B-2": {"value": None, "spread": None, "seeds": None, "verdict": "not reproduced", "rule": ""}}}
    assert published["machine"]["torch"] == torch.__version__
    once = tree(repository)
    publish.publish()
    assert tree(repository) == once


def test_the_readme_counts_and_shows_openly_what_does_not_hold(repository: Path):
    said = publish_again(repository)
    readme = (repository / "README.md").read_text()
    assert readme.startswith("before\n<!-- ledger -->\n") and readme.endswith("\n<!-- /ledger -->\nafter\n")
    assert said.startswith("4 claims: holds 2 · not reproduced 2. [docs/ledger.md](docs/ledger.md)")
    assert "old rows" not in said and "B-1" not in said and "[B-2](notebooks/01_b.ipynb) |" in said

    record(repository, "01_b", [row("B-1", "01_b", value=3.0, spread=0.1, verdict="fails"), missing("B-2", "01_b")])
    said = publish_again(repository)
    assert said.startswith("4 claims: holds 1 · fails 1 · not reproduced 2.")
    assert "| [B-1](notebooks/01_b.ipynb) | something | paper: Table 1 | 3 ± 0.1 | ≤ 2 | **fails** |" in said
    record(repository, "01_b", [row("B-1", "01_b", verdict="open"), missing("B-2", "01_b")])
    assert publish_again(repository).startswith("4 claims: holds 1 · open 1 · not reproduced 2.")


def test_the_whole_ledger_stands_by_chapter_and_source_with_a_link_to_the_cell(repository: Path):
    registry = repository / "claims.yaml"
    registry.write_text(registry.read_text().replace('A-2: {says: something, source: "paper: Table 1"',
                                                     "A-2: {says: something, source: ours"))
    commit(repository)
    rows = [row("A-1", "00_a"), missing("A-2", "00_a") | {"source": "ours"}]
    record(repository, "00_a", rows)
    publish.publish()
    said = (repository / "docs" / "ledger.md").read_text()
    assert re.findall(r"^#+ .*", said, re.MULTILINE) == [
        "# The ledger", "## The first", "### What the paper says", "### What we add", "## B",
        "### What the paper says"]
    first, second = said.split("## B")
    assert "2 claims: holds 1 · not reproduced 1." in first
    assert "| [A-1](../notebooks/00_a.ipynb#cell-id=cell-01) In [1] | something |" in first
    assert "| [A-2](../notebooks/00_a.ipynb) | something | ours |  (days) |" in first
    assert "| [B-1](../notebooks/01_b.ipynb) |" in second  # no cell names it


@pytest.mark.parametrize("source", ['claims.measure("A-1", 1)', "for id, v in {'A-1': 1}.items(): measure(id, v)"])
def test_a_claim_leads_to_the_cell_that_names_it_however_it_does(source: str):
    notebook = new_notebook(cells=[new_code_cell("claims['A-10']", id="no"), new_code_cell(source, id="yes")])
    found = ledger.linked(Row("A-1", "00_a", "something", "ours"), notebook, "")
    assert found.id == "[A-1](notebooks/00_a.ipynb#cell-id=yes)"


def test_publishing_refuses_before_anything_is_written(repository: Path):
    second = repository / "notebooks" / "01_b.ipynb"
    made = repository / "results" / "01_b" / "01_b.ipynb"
    good = {file: file.read_bytes() for file in (
        second, made, repository / "README.md", repository / "claims.yaml", made.with_name("claims.json"),
        made.with_name("metrics.json"))}

    def refused(message: str) -> None:
        before = tree(repository)
        with pytest.raises(Refused, match=message):
            publish.publish()
        assert tree(repository) == before
        for file, content in good.items():
            file.write_bytes(content)

    write(second, new_markdown_cell("# B"), code("print(3)"))
    refused(r"01_b: notebooks/01_b\.ipynb has changed since its results were made")
    write(made, new_markdown_cell("# B"), code("a = 1", copies.INJECTED), code("print(2)"))
    refused("01_b: not made with the default parameters")
    made.unlink()
    refused("01_b: no results to publish")
    (repository / "README.md").write_text("no marks")
    refused(r"README\.md: got no place for the ledger; need the marks")
    record(repository, "01_b", [row("B-1", "01_b", rule="≤ 3"), missing("B-2", "01_b")])
    refused(r"B-1: not measured under the rules of claims\.yaml")
    record(repository, "01_b", [row("B-1", "01_b")])
    refused("B-2: not measured")
    record(repository, "01_b", [row("B-1", "01_b"), missing("B-2", "01_b"), row("B-3", "01_b")])
    refused("B-3: not measured")
    record(repository, "01_b", [{"id": "B-1"}])
    refused("B-1, B-2: not measured")
    (repository / "claims.yaml").write_text("- no mapping")
    refused(r"claims\.yaml: ")
    for wrong in ("[]", '{"loss": null}', "{"):
        made.with_name("metrics.json").write_text(wrong)
        refused(r"results/01_b/metrics\.json")
    publish.publish()


# --- rules before numbers ---------------------------------------------------------------------------------


def loosen(repository: Path, threshold: int) -> None:
    """Change the rule of B-1, and judge its result by it."""
    registry = repository / "claims.yaml"
    head, tail = registry.read_text().split("01_b:")
    registry.write_text(head + "01_b:" + re.sub(r"threshold: \d+", f"threshold: {threshold}", tail))
    record(repository, "01_b", [row("B-1", "01_b", rule=f"≤ {threshold}"), missing("B-2", "01_b")])


def test_a_rule_is_committed_before_its_number_is_published(repository: Path):
    publish_again(repository)
    loosen(repository, 9)
    with pytest.raises(Refused, match=r"claims\.yaml: the rule of B-1 is not that of the last commit"):
        publish.publish()
    commit(repository)
    publish.publish()
    assert history.together() == []
    (repository / "claims.yaml").write_text((repository / "claims.yaml").read_text().replace("something", "in words"))
    assert history.undecided() == []  # words may be mended


def test_a_claim_that_is_new_is_committed_before_its_number(repository: Path):
    with (repository / "claims.yaml").open("a") as registry:
        registry.write("  B-3:\n    says: a\n    source: ours\n    quantity: a\n    refuted: b\n"
                       "    rule: {relation: '≥', threshold: 0}\n")
    with pytest.raises(Refused, match="the rule of B-3 is not that of the last commit"):
        publish.publish()


def test_a_commit_that_changes_a_rule_together_with_its_number_is_found_for_ever(repository: Path):
    publish_again(repository)
    assert history.together() == []
    published = repository / "docs" / "published.json"
    loosen(repository, 5)
    published.write_text(published.read_text().replace('"value": 1.0', '"value": 4.5'))  # of both chapters
    planted = commit(repository)
    assert history.together() == [(planted[:10], "B-1")]
    (repository / "more").write_text("later")
    commit(repository)
    assert history.together() == [(planted[:10], "B-1")]
    with pytest.raises(Refused, match=rf"together with its published number: B-1 in {planted[:10]}"):
        publish.publish()


@pytest.mark.parametrize("harmless", ["rule text alone", "another claim's number", "rule, then number"])
def test_other_commits_are_not_suspected(repository: Path, harmless: str):
    publish_again(repository)
    published = repository / "docs" / "published.json"
    loosen(repository, 5)
    if harmless == "rule text alone":  # the record follows its rule; value and verdict are as they were
        head, tail = published.read_text().split('"01_b"')
        published.write_text(head + '"01_b"' + tail.replace("≤ 2", "≤ 5"))
    elif harmless == "another claim's number":
        published.write_text(published.read_text().replace('"value": 1.0', '"value": 1.5', 1))
    else:
        commit(repository)
        published.write_text(published.read_text().replace('"value": 1.0', '"value": 1.5'))
    commit(repository)
    assert history.together() == []


def test_where_history_begins_there_is_nothing_to_compare(repository: Path, tmp_path_factory: pytest.TempPathFactory):
    publish_again(repository)
    loosen(repository, 5)
    published = repository / "docs" / "published.json"
    published.write_text(published.read_text().replace('"value": 1.0', '"value": 4.5'))
    commit(repository)
    shallow = tmp_path_factory.mktemp("shallow") / "house"
    subprocess.run(["git", "clone", "-q", "--depth", "1", repository.as_uri(), str(shallow)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history.files, "ROOT", shallow)
        assert history.together() == []


def test_publishing_needs_git_and_says_so(two_chapters: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(two_chapters.parent))
    before = tree(two_chapters)
    with pytest.raises(Refused, match="publishing needs git and a clone"):
        publish.publish()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Refused, match="publishing needs git and a clone"):
        publish.publish()
    assert tree(two_chapters) == before


def test_no_commit_of_this_repository_changes_a_rule_together_with_its_number():
    try:
        assert history.together() == []
    except Refused:
        pytest.skip("no git, or not a clone")

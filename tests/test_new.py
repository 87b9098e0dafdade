"""The skeleton of a chapter, made in a copy of this tree."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib.chapter.claims import registry
from pipeline import files, new
from pipeline.copies import read
from pipeline.parameters import Refused, read_yaml

HOUSE = files.ROOT
NAME = f"{int(read_yaml(HOUSE / 'dvc.yaml')['stages']['run']['foreach'][-1][:2]) + 1:02d}_my_method"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("lib", "pipeline", "notebooks"):
        shutil.copytree(HOUSE / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("dvc.yaml", "params.yaml", "claims.yaml", "pyproject.toml"):
        shutil.copyfile(HOUSE / name, tmp_path / name)
    monkeypatch.setattr(files, "ROOT", tmp_path)
    return tmp_path


def tree(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def test_a_skeleton_is_added_and_nothing_else_is_changed(root: Path):
    before, pipeline = tree(root), read_yaml(root / "dvc.yaml")
    new.new(NAME)
    after = tree(root)
    edited = {"dvc.yaml", "params.yaml", "claims.yaml"}
    assert after.keys() - before.keys() == {f"notebooks/{NAME}.ipynb", "lib/my_method.py", "tests/test_my_method.py"}
    assert {name for name in before if after[name] != before[name]} == edited
    for name in edited:  # only lines are added; comments stay
        old, kept = before[name].decode().split("\n"), iter(after[name].decode().split("\n"))
        assert all(line in kept for line in old)
    larger = read_yaml(root / "dvc.yaml")
    assert larger["stages"]["run"].pop("foreach") == [*pipeline["stages"]["run"].pop("foreach"), NAME]
    assert larger["stages"] == pipeline["stages"]
    assert set(larger["metrics"]) - set(pipeline["metrics"]) >= {f"results/{NAME}/metrics.json"}
    assert set(larger["plots"]) - set(pipeline["plots"]) == {f"results/{NAME}/figures"}
    claims = registry(root / "claims.yaml")
    assert claims.keys() - registry(HOUSE / "claims.yaml").keys() == {"MM-1"}


@pytest.mark.parametrize("name", [
    "my_method", "6_my_method", f"{NAME[:2]}-my-method", f"{NAME[:2]}_My", f"{NAME[:2]}_", f"{NAME[:2]}_2fast",
    "99_my_method", "00_my_method", f"../{NAME}", f"{NAME}.ipynb", f"{NAME} ", ""])
def test_a_bad_name_is_refused_before_anything_is_written(root: Path, name: str):
    before = tree(root)
    with pytest.raises(Refused, match=f"name: got .*; need {NAME[:2]}_ and words"):
        new.new(name)
    assert tree(root) == before


@pytest.mark.parametrize("there", [f"notebooks/{NAME}.ipynb", "lib/my_method.py", "tests/test_my_method.py",
                                   "lib/my_method/__init__.py"])
def test_what_is_there_is_not_overwritten(root: Path, there: str):
    (root / there).parent.mkdir(exist_ok=True)
    (root / there).write_text("work of days")
    before = tree(root)
    with pytest.raises(Refused, match=r"need one that is free: .* is there"):
        new.new(NAME)
    assert tree(root) == before


def test_a_section_that_is_there_is_not_given_twice(root: Path):
    for name in ("params.yaml", "claims.yaml"):
        text = (root / name).read_text(encoding="utf-8")
        (root / name).write_text(f"{text}\n{NAME}: {{}}\n", encoding="utf-8")
        with pytest.raises(Refused, match=rf"{name}: {NAME} is there"):
            new.new(NAME)
        (root / name).write_text(text, encoding="utf-8")
    new.new(NAME)
    with pytest.raises(Refused, match="name: got"):
        new.new(NAME)


def test_a_prefix_that_is_taken_gives_way_to_the_whole_name(root: Path):
    new.new(f"{NAME[:2]}_our_new_ends")  # ONE is Chapter 0's
    assert "OURNEWENDS-1" in registry(root / "claims.yaml")


@pytest.mark.slow
def test_the_skeleton_runs_passes_its_tests_and_those_of_every_notebook(root: Path):
    """Executed by the pipeline in a tree of its own, put in the place of the draft, and read as a published one."""
    (root / "lib" / "data.sha256").write_text("")  # no data needed
    environment = os.environ | {"PYTHONPATH": str(root)}

    def python(*arguments: str) -> None:
        done = subprocess.run([sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    python("-m", "pipeline", "new", NAME)
    python("-m", "ruff", "check", "--no-cache", "lib", "tests", f"notebooks/{NAME}.ipynb")
    python("-m", "pipeline", "clean")
    python("-m", "pipeline", "run", NAME)
    made = root / "results" / NAME
    printed = str(read(made / f"{NAME}.ipynb"))
    assert {file.name for file in (made / "figures").iterdir()} == {"gallery.png"}
    assert re.findall(r"exercise (\d): (not attempted|correct|not yet)", printed) == [
        (str(n), word) for n in range(1, 5) for word in ("not attempted", "correct")]
    shutil.copytree(HOUSE / "docs", root / "docs")  # the published record
    shutil.copyfile(made / f"{NAME}.ipynb", root / "notebooks" / f"{NAME}.ipynb")
    for name in ("conftest.py", "draws.py", "tree.py", "test_published.py"):
        shutil.copyfile(HOUSE / "tests" / name, root / "tests" / name)
    python("-m", "pytest", "-q", "tests/test_my_method.py")
    python("-m", "pytest", "-q", "tests/test_published.py", "-k", f"({NAME} or every_notebook) and not agree")

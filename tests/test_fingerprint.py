"""What a chapter depends on, found in its sources."""
from __future__ import annotations

import ast
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from nbformat.v4 import new_notebook
from tree import code, write

from pipeline import files
from pipeline import fingerprint as prints
from pipeline.copies import read
from pipeline.parameters import Refused


@pytest.mark.parametrize("source", [
    "import lib.path", "import lib.path as p", "from lib import path", "from lib import (\n    plot,\n    path)",
    "from lib.path import cond_ot", "def f():\n    from lib.path import Path", "%matplotlib inline\nimport lib.path",
    "%%time\nfrom lib import path", "!ls\nfrom lib import path", "files = !ls\nimport lib.path",
    "if True:\n    %time 1\nimport lib.path", "from lib import path\nlib.path?", "x = (3\n     % 2)\nimport lib.path",
    "try:\n    import lib.path\nexcept ImportError:\n    pass",
])
def test_imports_are_found_however_they_are_written(source: str, tmp_path: Path):
    for name in ("path", "plot"):
        (tmp_path / f"{name}.py").touch()
    assert "path" in prints.imported([source], tmp_path)[0]


@pytest.mark.parametrize("source", ["import library.path", "from library import path", "# import lib.path",
                                    "text = 'import lib.path'", "import lib", "from lib import absent", "def broken("])
def test_nothing_else_is_found(source: str, tmp_path: Path):
    (tmp_path / "path.py").touch()
    assert prints.imported([source], tmp_path)[0] == {}


def test_imports_are_followed_through_lib_also_in_circles_and_relative_ones(tmp_path: Path):
    (tmp_path / "a.py").write_text("from lib import b\nimport numpy.linalg")
    (tmp_path / "b.py").write_text("from . import c\nfrom lib import a")
    (tmp_path / "c.py").write_text("from .d import something")
    (tmp_path / "d.py").write_text("from scipy import stats")
    (tmp_path / "e.py").write_text("import torch")
    modules, packages = prints.imported(["from lib import a\nimport math"], tmp_path)
    assert list(modules) == ["a", "b", "c", "d"]
    assert packages == {"numpy", "scipy", "math"}


@pytest.mark.parametrize(("source", "found"), [
    ("from lib import house", ["house", "house.door", "house.stairs"]),
    ("import lib.house", ["house", "house.door", "house.stairs"]),
    ("from lib.house import open_door", ["house", "house.door", "house.stairs"]),
    ("import lib.house.attic", ["house", "house.attic", "house.door", "house.stairs", "shed"]),
    ("from lib.house.attic import box", ["house", "house.attic", "house.door", "house.stairs", "shed"]),
    ("from lib.house import attic as top", ["house", "house.attic", "house.door", "house.stairs", "shed"]),
    ("def f():\n    import lib.house.door", ["house", "house.door", "house.stairs"]),
])
def test_packages_count_with_their_faces(source: str, found: list[str], tmp_path: Path):
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "__init__.py").write_text("from lib.house.door import open_door")
    (tmp_path / "house" / "door.py").write_text("def open_door():\n    from . import stairs")
    (tmp_path / "house" / "stairs.py").touch()
    (tmp_path / "house" / "attic.py").write_text("from .. import shed")
    (tmp_path / "house" / "cellar.py").touch()
    (tmp_path / "shed.py").touch()
    assert list(prints.imported([source], tmp_path)[0]) == found


def test_the_real_library_is_read_as_python_reads_it():
    """IPython's transformation, through which all sources pass, changes no module of lib."""
    for file in (files.ROOT / "lib").rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        transformed = prints.TransformerManager().transform_cell(source)
        assert ast.dump(ast.parse(source)) == ast.dump(ast.parse(transformed)), file.name


def test_editing_a_file_of_lib_makes_stale_what_imports_it_and_nothing_else(tmp_path: Path,
                                                                            monkeypatch: pytest.MonkeyPatch):
    """On this tree: every chapter reduces by attention; the second alone reads no data; nobody streams from disk."""
    chapters = {file.stem: read(file) for file in sorted((files.ROOT / "notebooks").glob("*.ipynb"))}
    shutil.copytree(files.ROOT / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(files, "ROOT", tmp_path)

    def stale(edited: str) -> set[str]:
        before = {name: prints.fingerprint(name, notebook) for name, notebook in chapters.items()}
        with (tmp_path / "lib" / edited).open("a") as file:
            file.write("# edited\n")
        return {name for name, notebook in chapters.items() if prints.fingerprint(name, notebook) != before[name]}

    assert stale("kernels/attention.py") == stale("kernels/__init__.py") == set(chapters)
    assert stale("data.sha256") == set(chapters) - {"02_stochastic_interpolants"}
    assert stale("bridge.py") == {"03_diffusion_schrodinger_bridge"}
    assert stale("markov/smoothing.py") == {"04_operator_informed_scores"}
    assert stale("kernels/sharded.py") == set()


def test_a_fingerprint_is_content_alone(root: Path):
    (root / "lib" / "used.py").write_text("import torch\n")
    (root / "lib" / "other.py").write_text("")
    (root / "full" / "results" / "00_a").mkdir(parents=True)
    (root / "full" / "results" / "00_a" / "long.json").write_text("1")

    def fingerprint() -> dict:
        return prints.fingerprint("00_a", new_notebook(cells=[code("from lib import used")]))

    before = fingerprint()
    assert set(before["lib"]) == {"used"} and before["packages"] == {"torch": torch.__version__}
    assert set(before["full"]) == {"full/results/00_a/long.json"}
    os.utime(root / "lib" / "used.py", (0, 0))
    (root / "lib" / "other.py").write_text("x = 1")
    assert fingerprint() == before
    (root / "full" / "results" / "00_a" / "long.json").write_text("2")
    assert fingerprint() != before
    (root / "full" / "results" / "00_a" / "long.json").write_text("1")
    (root / "lib" / "used.py").write_text("import torch\nx = 1\n")
    assert fingerprint() != before


def test_clean_writes_copies_and_sweeps_the_rest(root: Path):
    write(root / "notebooks" / "00_a.ipynb", code("def broken("), code("import lib.data"))
    folder = root / "results" / "clean"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    (folder / "99_gone.ipynb").touch()
    prints.clean()
    assert sorted(file.name for file in folder.iterdir()) == ["00_a.ipynb", "00_a.lib.json", "latents.lib.json"]
    assert list(json.loads((folder / "00_a.lib.json").read_text())["lib"]) == ["data", "data.sha256"]
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    prints.clean()
    assert before == {file: file.stat().st_mtime_ns for file in folder.iterdir()}  # not even written again


@pytest.mark.parametrize(("content", "message"), [
    (b"x = '\xe4'", r"lib/used\.py is no UTF-8: "), (b"def broken(", r"lib/used\.py is no Python: .*line 1"),
    (b"a = 1\n b = 2", r"lib/used\.py is no Python: unexpected indent .*line 2"),
    (b"\0", r"lib/used\.py is no Python: ")])
def test_a_file_of_lib_that_python_cannot_read_is_named(root: Path, content: bytes, message: str):
    write(root / "notebooks" / "00_a.ipynb", code("from lib import used"))
    (root / "lib" / "used.py").write_bytes(content)
    (root / "lib" / "other.py").write_bytes(b"\xff")  # which no chapter imports
    with pytest.raises(Refused, match=message):
        prints.clean()


def test_a_chapter_without_its_notebook_is_named(root: Path):
    write(root / "notebooks" / "00_a.ipynb", code("1"))
    (root / "dvc.yaml").write_text("stages: {run: {foreach: [00_a, 01_b]}}")
    with pytest.raises(Refused, match=r"notebooks/01_b\.ipynb is missing; need a notebook of each chapter"):
        prints.clean()


@pytest.mark.parametrize("line", ["points.npz", "abc  points.npz", "0" * 64, f"{'0' * 64}  ../points.npz", "\udcff"])
def test_a_table_of_data_that_is_none_is_named(root: Path, line: str):
    (root / prints.DATA).write_bytes(line.encode("utf-8", "surrogateescape"))
    with pytest.raises(Refused, match=r"lib/data\.sha256: got .*; need a SHA-256, two spaces and a path below data/"):
        prints.clean()


def test_clean_refuses_damaged_and_missing_data(root: Path):
    file = root / "data" / "points.npz"
    file.write_bytes(b"some pointz")
    with pytest.raises(Refused, match=r"data/points\.npz: got SHA-256 .*; need .*: the file is damaged; delete it"):
        prints.clean()
    file.unlink()
    with pytest.raises(Refused, match=r"data/points\.npz is missing; need the bundled data"):
        prints.clean()


def test_the_library_and_the_pipeline_read_one_table_of_data():
    from lib import data

    assert data.TABLE == files.ROOT / prints.DATA and set(data.SHA256) >= {"digits.npz", "photographs.npz"}


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "sub" / "file.json"
    files.replace(file, "old")
    whole = Path.write_bytes

    def half(self: Path, content: bytes) -> None:
        whole(self, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left"):
        files.replace(file, "something new")
    assert file.read_text() == "old" and list(file.parent.iterdir()) == [file]

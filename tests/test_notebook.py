"""The functions of the pipeline, one by one; tests/test_pipeline.py has the pipeline whole."""
from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

import nbformat
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from papermill import PapermillExecutionError
from safetensors.torch import save

from lib.base.stage import progress
from pipeline import __main__ as command
from pipeline import certificate, copies, files, publish, repro, run, student
from pipeline import fingerprint as prints
from pipeline.copies import read
from pipeline.parameters import Refused, checked, literals, read_yaml


def code(source: str, *tags: str, **kwargs: object) -> nbformat.NotebookNode:
    return new_code_cell(source, metadata={"tags": list(tags)} if tags else {}, **kwargs)


def write(file: Path, *cells: nbformat.NotebookNode) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), file)
    return file


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree in the place of the repository."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "points.npz").write_bytes(b"some points")
    sha256 = hashlib.sha256(b"some points").hexdigest()
    (tmp_path / "lib" / "data.py").touch()
    (tmp_path / "lib" / "data.sha256").write_text(f"{sha256}  points.npz\n")
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    return tmp_path


# --- the stripped copy ------------------------------------------------------------------------------------


def executed(seconds: str, random: str) -> nbformat.NotebookNode:
    """A notebook as papermill leaves it, with its times and random identifiers."""
    cells = [new_markdown_cell("# Title", id=f"m{random}"),
             code("seed = 0", "parameters", id=f"p{random}"),
             code("seed = 1", copies.INJECTED, id=f"i{random}"),
             code("print(seed)", "solution", id=f"c{random}", execution_count=3,
                  outputs=[new_output("stream", name="stdout", text="1\n")])]
    for cell in cells:
        cell.metadata.update(papermill={"duration": seconds}, execution={"iopub.status.idle": seconds}, collapsed=True)
    metadata = {"kernelspec": {"name": random, "display_name": random}, "papermill": {"start_time": seconds},
                "widgets": {random: 1}}
    return new_notebook(cells=cells, metadata=metadata)


def test_stripping_leaves_what_the_author_wrote():
    copy = copies.stripped(executed("1.5", "abc"))
    assert [cell.source for cell in copy.cells] == ["# Title", "seed = 0", "print(seed)"]
    assert [cell.id for cell in copy.cells] == ["cell-00", "cell-01", "cell-02"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in copy.cells if cell.cell_type == "code")
    assert [dict(cell.metadata) for cell in copy.cells] == [
        {}, {"tags": ["parameters"]}, {"tags": ["solution"], "jupyter": {"source_hidden": True}}]
    assert copy.metadata.kernelspec.name == "python3"
    nbformat.validate(copy)


def test_stripping_and_normalising_forget_times_and_identifiers_and_are_idempotent():
    for function in (copies.stripped, copies.normalised):
        once = copies.dumps(function(executed("1.5", "abc")))
        assert once == copies.dumps(function(function(executed("1.5", "abc"))))
        if function is copies.stripped:
            assert once == copies.dumps(function(executed("2.5", "xyz")))


def test_normalising_keeps_outputs_and_the_injected_cell():
    first, second = (copies.normalised(executed(*run)) for run in (("1.5", "abc"), ("2.5", "abc")))
    assert copies.dumps(first) == copies.dumps(second)
    assert [cell.source for cell in first.cells] == ["# Title", "seed = 0", "seed = 1", "print(seed)"]
    assert first.cells[2].id == copies.INJECTED  # papermill's is random
    assert first.cells[3].outputs[0].text == "1\n" and first.cells[3].execution_count == 3


def test_a_file_that_is_no_notebook_is_refused_by_name(root: Path):
    (root / "notebooks").mkdir()
    for content in ("<<<<<<< ours\n{}", "[]", "{}", '{"nbformat": 4}', "\xff"):
        (root / "notebooks" / "00_a.ipynb").write_bytes(content.encode("latin1"))
        with pytest.raises(Refused, match=r"notebooks/00_a\.ipynb cannot be read"):
            prints.clean()


# --- what a chapter depends on ----------------------------------------------------------------------------


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
    """On this tree: every chapter reduces by attention; none streams from disk; the sharded reduction is nobody's."""
    chapters = {file.stem: read(file) for file in sorted((files.ROOT / "notebooks").glob("*.ipynb"))}
    shutil.copytree(files.ROOT / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(files, "ROOT", tmp_path)

    def stale(edited: str) -> set[str]:
        before = {name: prints.fingerprint(name, notebook) for name, notebook in chapters.items()}
        with (tmp_path / "lib" / edited).open("a") as file:
            file.write("# edited\n")
        return {name for name, notebook in chapters.items() if prints.fingerprint(name, notebook) != before[name]}

    assert stale("kernels/attention.py") == stale("kernels/__init__.py") == stale("data.sha256") == set(chapters)
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
    assert sorted(file.name for file in folder.iterdir()) == ["00_a.ipynb", "00_a.lib.json"]
    assert list(json.loads((folder / "00_a.lib.json").read_text())["lib"]) == ["data", "data.sha256"]
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    prints.clean()
    assert before == {file: file.stat().st_mtime_ns for file in folder.iterdir()}  # not even written again


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


# --- parameters -------------------------------------------------------------------------------------------

DEFAULTS = {"seed": 0, "lr": 1e-3, "device": "auto", "noisy": True}
GIVEN = {"seed": {"value": 3, "range": [0, 9]}, "lr": {"value": 1, "range": [0, 2]},
         "device": {"value": "cpu", "choices": ["auto", "cpu"]}, "noisy": {"value": False}}


def test_good_parameters_come_back_with_the_types_of_the_defaults():
    values = checked("00_a", GIVEN, DEFAULTS)
    assert values == {"seed": 3, "lr": 1.0, "device": "cpu", "noisy": False}
    assert {key: type(value) for key, value in values.items()} == {k: type(v) for k, v in DEFAULTS.items()}
    assert checked("00_a", GIVEN | {"seed": {"value": 4, "choices": [2, 4]}}, DEFAULTS)["seed"] == 4
    assert checked("00_a", {}, {}) == {}


@pytest.mark.parametrize(("key", "entry", "message"), [
    ("sede", {"value": 1, "range": [0, 9]}, "got {'value': 1, 'range': [0, 9]}; need a parameter of the notebook"),
    ("seed", {"value": 10, "range": [0, 9]}, "got 10; need int from 0 to 9"),
    ("seed", {"value": -1, "range": [0, 9]}, "got -1; need int from 0 to 9"),
    ("seed", {"value": "3", "range": [0, 9]}, "got '3'; need int from 0 to 9"),
    ("seed", {"value": 3.0, "range": [0, 9]}, "got 3.0; need int from 0 to 9"),
    ("seed", {"value": True, "range": [0, 9]}, "got True; need int from 0 to 9"),
    ("seed", {"value": None, "range": [0, 9]}, "got None; need int from 0 to 9"),
    ("seed", {"value": 3, "choices": [2, 4]}, "got 3; need int, one of 2, 4"),
    ("lr", {"value": float("nan"), "range": [0, 2]}, "got nan; need float from 0 to 2"),
    ("lr", {"value": True, "range": [0, 2]}, "got True; need float from 0 to 2"),
    ("device", {"value": "gpu", "choices": ["auto", "cpu"]}, "got 'gpu'; need str, one of auto, cpu"),
    ("noisy", {"value": 1}, "got 1; need true or false"),
    ("noisy", {"value": "no"}, "got 'no'; need true or false"),
    ("seed", 3, "got 3; need, for a default of type int, {value: …, range: [low, high]}"),
    ("seed", None, "got None; need, for a default of type int, {value: …, range: [low, high]}"),
    ("seed", {"value": 3}, "need, for a default of type int, {value: …, range: [low, high]}"),
    ("seed", {"range": [0, 9]}, "need, for a default of type int, {value: …, range: [low, high]}"),
    ("seed", {"value": 3, "range": [0]}, "need, for a default of type int, {value: …, range: [low, high]}"),
    ("seed", {"value": 3, "range": 9}, "need, for a default of type int, {value: …, range: [low, high]}"),
    ("seed", {"value": 3, "range": [0, "9"]}, "need, for a default of type int, {value: …, range: [low, high]}"),
    ("seed", {"value": 3, "choices": 3}, "need, for a default of type int, {value: …, range: [low, high]}"),
    ("seed", {"value": 3, "range": [0, 9], "unit": "m"}, "need, for a default of type int, {value: …, range: "),
    ("device", {"value": "cpu"}, "need, for a default of type str, {value: …, choices: […]}"),
    ("device", {"value": "cpu", "range": ["a", "d"]}, "need, for a default of type str, {value: …, choices: […]}"),
    ("noisy", {"value": True, "range": [0, 1]}, "need, for a default of type bool, {value: true}"),
])
def test_bad_parameters_are_refused_by_file_key_value_and_what_is_allowed(key: str, entry: object, message: str):
    with pytest.raises(Refused) as refusal:
        checked("00_a", GIVEN | {key: entry}, DEFAULTS)
    assert str(refusal.value).startswith(f"error: params.yaml: 00_a.{key}: got ")
    assert message in str(refusal.value)


def test_missing_parameters_and_sections_are_refused():
    with pytest.raises(Refused, match=r"params\.yaml: 00_a\.noisy: got nothing; .*: device, lr, noisy, seed"):
        checked("00_a", {key: GIVEN[key] for key in ("seed", "lr", "device")}, DEFAULTS)
    with pytest.raises(Refused, match=r"params\.yaml: 00_a\.seed: got nothing"):
        checked("00_a", {}, DEFAULTS)
    with pytest.raises(Refused, match=r"params\.yaml: 00_a: got None; need a mapping"):
        checked("00_a", None, DEFAULTS)
    with pytest.raises(Refused, match="for a default of type list, a bool, int, float or str as default"):
        checked("00_a", {"sizes": {"value": [1], "choices": [[1]]}}, {"sizes": [1]})


@given(low=st.floats(-5, 5), high=st.floats(-5, 5), value=st.floats(allow_nan=True))
def test_a_range_is_closed(low: float, high: float, value: float):
    entry = {"x": {"value": value, "range": [low, high]}}
    if low <= value <= high:
        assert checked("00_a", entry, {"x": 0.0}) == {"x": value}
    else:
        with pytest.raises(Refused):
            checked("00_a", entry, {"x": 0.0})


@given(st.dictionaries(st.sampled_from([*DEFAULTS, "extra"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["value", "range", "choices"]), inner, max_size=3), max_leaves=6)))
def test_whatever_stands_there_is_taken_or_refused_and_nothing_else(section: dict):
    try:
        values = checked("00_a", section, DEFAULTS)
    except Refused as refusal:
        assert "params.yaml: 00_a." in str(refusal)
    else:
        assert {key: type(value) for key, value in values.items()} == {k: type(v) for k, v in DEFAULTS.items()}


def test_literals():
    source = "a = 1\nb: float = -2.5\nc = 'x'  # why\nd = 2 * 3\ne = a\nf: int\ng += 1\nh.i = 3\nif a:\n    k = 1"
    assert literals(source) == {"a": 1, "b": -2.5, "c": "x"}


@pytest.mark.parametrize(("text", "message"), [
    ("a: [1", "params.yaml cannot be read"), ("a: 1\na: 2", "params.yaml cannot be read.*duplicate"),
    ("- 1", "params.yaml: got list; need a mapping"), ("", "params.yaml: got NoneType; need a mapping")])
def test_malformed_yaml_is_refused(text: str, message: str, tmp_path: Path):
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(Refused, match=f"(?s){message}"):
        read_yaml(file)


def test_yaml_is_read_as_dvc_reads_it(tmp_path: Path):
    file = tmp_path / "params.yaml"
    with pytest.raises(Refused, match=r"params\.yaml cannot be read"):
        read_yaml(file)
    file.write_text("a: 1e-3\nb: off\nc: {range: [0, 1e6]}\n")  # an older YAML reads words here, and False
    assert read_yaml(file) == {"a": 0.001, "b": "off", "c": {"range": [0, 1e6]}}


def test_only_what_differs_is_injected(root: Path):
    cells = [code("seed = 0\nsize = 2.0", "parameters"), code("seed = 5")]
    (root / "params.yaml").write_text("00_a:\n  seed: {value: 4, range: [0, 9]}\n  size: {value: 2, range: [0, 9]}\n")
    assert run.parameters("00_a", new_notebook(cells=cells)) == ({"seed": 4, "size": 2.0}, {"seed": 4})
    (root / "params.yaml").write_text("00_a:\n  seed: {value: 0, range: [0, 9]}\n  size: {value: 2, range: [0, 9]}\n")
    assert run.parameters("00_a", new_notebook(cells=cells))[1] == {}


# --- putting results in place -----------------------------------------------------------------------------


def folder(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    return path


def test_a_swap_cut_off_anywhere_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A kill after each of the three steps; the last good results are whole, and nothing is left over."""
    for step, expected in enumerate(["old", "old", "new", "new"]):
        base = tmp_path / str(step)
        target, work = folder(base / "00_a", "old"), folder(base / ".00_a.1.new", "new")
        calls = iter(range(9))

        def killed(call, calls=calls, step=step):
            def step_or_die(*args: object, **kwargs: object) -> object:
                if next(calls) >= step:
                    raise KeyboardInterrupt
                return call(*args, **kwargs)
            return step_or_die

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) if step < 3 else monkeypatch.context():
            patch.setattr(Path, "rename", killed(Path.rename))
            patch.setattr(run.shutil, "rmtree", killed(run.shutil.rmtree))
            run.swap(work, target)
        run.repair(target)
        assert (target / "file").read_text() == expected
        assert list(base.iterdir()) == [target]


def test_a_first_result_needs_no_predecessor_and_repair_nothing_to_repair(tmp_path: Path):
    target = tmp_path / "00_a"
    run.repair(target)
    run.swap(folder(tmp_path / ".00_a.1.new", "new"), target)
    other = folder(tmp_path / ".00_ab.1.new", "of a chapter whose name begins the same way")
    run.repair(target)
    assert (target / "file").read_text() == "new" and other.exists()


def test_checkpoints_belong_to_their_inputs(root: Path):
    source = write(root / "results" / "clean" / "00_a.ipynb", code("1"))
    source.with_suffix(".lib.json").write_text("{}")

    def checkpoints(**values: object) -> Path:
        return run._checkpoints("00_a", source, values)

    first = folder(checkpoints(seed=0), "state")
    other = folder(root / "results" / "checkpoints" / "00_ab" / "key", "of another chapter")
    assert checkpoints(seed=0) == first and first.exists()
    assert checkpoints(seed=1) != first and not first.exists() and other.exists()
    first.mkdir()
    source.with_suffix(".lib.json").write_text('{"lib": "edited"}')
    assert checkpoints(seed=0) != first and not first.exists()
    second = checkpoints(seed=0)
    write(source, code("2"))
    assert checkpoints(seed=0) != second


def test_a_chapter_is_run_by_one_at_a_time(root: Path, capfd: pytest.CaptureFixture[str]):
    order = []

    def another() -> None:
        with run.alone("00_a"):
            order.append("second")

    with run.alone("00_a"):
        with run.alone("01_b"):  # another chapter is free
            pass
        waiting = threading.Thread(target=another, daemon=True)
        waiting.start()
        waiting.join(0.3)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
    assert "00_a: waiting for another run" in capfd.readouterr().err


def test_an_unknown_chapter_is_refused(root: Path):
    write(root / "notebooks" / "00_a.ipynb", code("1"))
    with pytest.raises(Refused, match="chapter: got '00_a'; need one of none: run `clean` first"):
        run.run("00_a")
    prints.clean()
    with pytest.raises(Refused, match="chapter: got '00_b'; need one of 00_a"):
        run.run("00_b")
    for arguments in (["run"], ["clean", "00_a"], ["walk", "00_a"]):
        with pytest.raises(Refused, match="command: got"):
            command.main(arguments)


@pytest.fixture
def ready(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chapter ready to run, with good results from before; yields the stand-in for papermill to fill."""
    write(root / "notebooks" / "00_a.ipynb", code("seed = 0", "parameters"))
    (root / "params.yaml").write_text("00_a: {seed: {value: 1, range: [0, 9]}}")
    folder(root / "results" / "00_a", "good")
    prints.clean()
    for name in ("FIVE_ROADS_OUT", "FIVE_ROADS_PROGRESS", "FIVE_ROADS_CHECKPOINTS", "IPYTHONDIR",
                 "JUPYTER_RUNTIME_DIR", "PYTHONHASHSEED", "PYTHONPATH"):
        monkeypatch.setenv(name, "")  # restored afterwards
    return root


def test_a_run_puts_all_its_files_in_place_at_once(ready: Path, monkeypatch: pytest.MonkeyPatch):
    def execute(source: str, output: str, parameters: dict, **_: object) -> None:
        assert parameters == {"seed": 1} and (ready / "results" / "00_a" / "file").read_text() == "good"
        work, checkpoints = Path(os.environ["FIVE_ROADS_OUT"]), Path(os.environ["FIVE_ROADS_CHECKPOINTS"])
        assert work == Path(output).parent and work.parent == ready / "results" and not list(work.iterdir())
        folder(checkpoints, "state")
        (work / "metrics.json").write_text("{}")
        Path(output).write_text(Path(source).read_text())

    monkeypatch.setattr("papermill.execute_notebook", execute)
    folder(ready / "results" / "failed", "").joinpath("00_a.ipynb").touch()
    run.run("00_a")
    assert sorted(file.name for file in (ready / "results" / "00_a").iterdir()) == ["00_a.ipynb", "metrics.json"]
    assert sorted(path.name for path in (ready / "results").iterdir()) == [
        ".00_a.lock", "00_a", "checkpoints", "clean", "failed", "timings"]
    assert not list((ready / "results" / "checkpoints").iterdir())
    assert not (ready / "results" / "failed" / "00_a.ipynb").exists()
    assert json.loads((ready / "results" / "timings" / "00_a.json").read_text())["seconds"] >= 0


@pytest.mark.parametrize(("error", "message"), [
    (OSError(errno.ENOSPC, "No space left on device"), "00_a: .*No space left on device; the last good results"),
    (KeyboardInterrupt(), "00_a: interrupted; the last good results are untouched, and the next run goes on"),
    (DeadKernelError("Kernel died"), r"00_a: the kernel died.*\n.*results/failed/00_a\.ipynb"),
    (PapermillExecutionError(2, 5, "1/0", "ZeroDivisionError", "division", []),
     r"00_a: cell 5 raised ZeroDivisionError: division\n1/0\n.*results/failed/00_a\.ipynb; the last good"),
])
def test_a_run_that_fails_keeps_results_and_checkpoints(
        ready: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, message: str):
    def execute(source: str, output: str, **_: object) -> None:
        Path(output).write_text("as far as it came")
        folder(Path(os.environ["FIVE_ROADS_CHECKPOINTS"]), "state")
        raise error

    monkeypatch.setattr("papermill.execute_notebook", execute)
    with pytest.raises(Refused, match=message):
        run.run("00_a")
    assert (ready / "results" / "00_a" / "file").read_text() == "good"
    assert not list((ready / "results").glob(".*.new"))
    assert [file.read_text() for file in (ready / "results" / "checkpoints").rglob("file")] == ["state"]
    kept = ready / "results" / "failed" / "00_a.ipynb"
    assert kept.exists() == ("failed/" in message) and (not kept.exists() or kept.read_text() == "as far as it came")


def test_a_refused_parameter_touches_nothing(ready: Path):
    (ready / "params.yaml").write_text("00_a: {seed: {value: 10, range: [0, 9]}}")
    before = sorted(ready.rglob("*"))
    with pytest.raises(Refused, match=r"params\.yaml: 00_a\.seed: got 10"):
        run.run("00_a")
    assert sorted(ready.rglob("*")) == before


# --- progress ---------------------------------------------------------------------------------------------


def in_time(function, seconds: float = 20) -> None:
    """Run `function`, which must not block."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "deadlock"


def test_what_is_written_to_the_fifo_reaches_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    def much() -> None:
        with run.terminal(tmp_path / "fifo") as fifo, open(fifo, "w") as pipe:
            for i in range(100):
                pipe.write(f"{i:03d}" * 1000)

    in_time(much)
    assert capfd.readouterr().err == "".join(f"{i:03d}" * 1000 for i in range(100))


def test_the_fifo_blocks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def nobody_writes() -> None:
        with run.terminal(tmp_path / "a"):
            pass

    def the_writer_stays_open() -> None:
        with run.terminal(tmp_path / "b") as fifo:
            os.write(os.open(fifo, os.O_WRONLY), b"half a line")

    def the_cell_fails() -> None:
        with pytest.raises(RuntimeError), run.terminal(tmp_path / "c"):
            raise RuntimeError

    def the_terminal_has_gone() -> None:
        write = os.write
        monkeypatch.setattr(run.os, "write", lambda fd, data: write(-1 if fd == 2 else fd, data))
        with run.terminal(tmp_path / "d") as fifo, open(fifo, "wb") as pipe:
            pipe.write(b"x" * 1_000_000)  # more than a pipe holds

    for case in (nobody_writes, the_writer_stays_open, the_cell_fails, the_terminal_has_gone):
        in_time(case)


def test_progress_goes_to_the_runner_and_not_to_the_notebook(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    with run.terminal(tmp_path / "fifo") as fifo:
        monkeypatch.setenv("FIVE_ROADS_PROGRESS", str(fifo))
        monkeypatch.setattr("sys.stderr", None)  # what a cell writes there would land in the notebook
        assert list(progress(range(3), desc="counting")) == [0, 1, 2]
        with progress(desc="training", total=5) as bar:
            bar.update(5)
    out, err = capfd.readouterr()
    assert "counting" in err and "training" in err and "0/5" in err and out == ""


# --- the certificate --------------------------------------------------------------------------------------


def verdict(tmp_path: Path, suffix: str, old: bytes | str, new: bytes | str) -> str:
    files = tmp_path / f"old{suffix}", tmp_path / f"new{suffix}"
    for file, content in zip(files, (old, new), strict=True):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return certificate.compare(*files)


@pytest.mark.parametrize(("old", "new", "expected"), [
    ('{"a": 1.2345}', '{"a": 1.2345}', "identical"),
    ('{"a": 1.2345}', '{"a": 1.23451}', "agrees"),
    ('{"a": -1.2345e-7}', '{"a": -1.23449e-7}', "agrees"),
    ('{"a": 1.2345}', '{"a": 1.2349}', "differs"),
    ('{"a": 1.2345}', '{"a": -1.2345}', "differs"),
    ('{"a": "−1.2345"}', '{"a": "−1.23451"}', "agrees"),
    ('{"a": "1.2345"}', '{"a": "−1.2345"}', "differs"),
    ('{"a": 1.2345}', '{"b": 1.2345}', "differs"),
    ('{"x1": 1}', '{"x2": 1}', "differs"),
    ('{"a": true}', '{"a": false}', "differs"),
    ('{"a": 1}', '{"a": null}', "differs"),
    ('{"a": [1, 2]}', '{"a": [1, 2, 3]}', "differs"),
    ('{"a": 0.0}', '{"a": 1e-15}', "agrees"),
    ('{"a": 0.0}', '{"a": 1e-6}', "differs"),
    ('{"a": 1e5}', '{"a": 1e6}', "differs"),
])
def test_numbers_are_compared_to_four_digits_and_text_exactly(tmp_path: Path, old: str, new: str, expected: str):
    assert verdict(tmp_path, ".json", old, new) == expected


def test_other_outputs_are_compared_by_kind(tmp_path: Path):
    def one(text: str, image: str = "aaaa", source: str = "1") -> str:
        outputs = [new_output("stream", name="stdout", text=text),
                   new_output("display_data", data={"image/png": image, "text/plain": "a picture"})]
        return copies.dumps(new_notebook(cells=[code(source, outputs=outputs, id="a")]))

    assert verdict(tmp_path, ".ipynb", one("loss 1.2345"), one("loss 1.23451")) == "agrees"
    assert verdict(tmp_path, ".ipynb", one("loss 1.2345"), one("loss 1.2445")) == "differs"
    assert verdict(tmp_path, ".ipynb", one("a"), one("a", image="bbbb")) == "agrees"  # figures/ holds the pictures
    assert verdict(tmp_path, ".ipynb", one("a"), one("b")) == "differs"
    assert verdict(tmp_path, ".ipynb", one("a"), one("a", source="2")) == "differs"
    assert verdict(tmp_path, ".png", b"a", b"a") == "identical"
    assert verdict(tmp_path, ".png", b"a", b"b") == "differs"

    weights = torch.tensor([1.0, 1e-3])
    for change, expected in ((1e-6, "agrees"), (1e-3, "differs")):
        assert verdict(tmp_path, ".safetensors", save({"w": weights}), save({"w": weights + change})) == expected
    assert verdict(tmp_path, ".safetensors", save({"w": weights}), save({"v": weights})) == "differs"
    assert verdict(tmp_path, ".safetensors", save({"w": weights}), save({"w": weights.double()})) == "differs"
    assert verdict(tmp_path, ".safetensors", save({"w": weights}), save({"w": weights[:1]})) == "differs"


def test_what_is_new_and_what_has_gone(tmp_path: Path):
    here, absent = tmp_path / "here.json", tmp_path / "absent.json"
    here.touch()
    assert certificate.compare(absent, here) == "new" and certificate.compare(here, absent) == "gone"


# --- the table, and DVC's own files -----------------------------------------------------------------------


def chapter(root: Path, name: str, *cells: nbformat.NotebookNode) -> Path:
    """A chapter with results, as the pipeline leaves them."""
    source = write(root / "notebooks" / f"{name}.ipynb", *cells)
    results = root / "results" / name
    (results / "figures").mkdir(parents=True)
    (results / "figures" / "gallery.png").write_bytes(b"a picture")
    made = copies.stripped(copies.read(source))
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs = [new_output("stream", name="stdout", text="made by the pipeline")]
    (results / f"{name}.ipynb").write_text(copies.dumps(made))
    row = {"id": name[:2], "says": "something", "measured": 1.0, "relation": "=", "expected": 1.0, "tolerance": 0.1,
           "holds": True, "note": ""}
    (results / "claims.json").write_text(json.dumps([row, row | {"id": "no", "holds": None}]))
    (results / "metrics.json").write_text('{"loss": 1.5}')
    (results / "tolerances.json").write_text('{"loss": 0.1}')
    return source


@pytest.fixture
def two_chapters(root: Path) -> Path:
    chapter(root, "00_a", new_markdown_cell("# A"), code("print(1)"))
    chapter(root, "01_b", new_markdown_cell("# B"), code("print(2)"))
    (root / "dvc.yaml").write_text("stages: {run: {foreach: [00_a, 01_b]}}")
    (root / "README.md").write_text("before\n<!-- ledger -->\nold rows\n<!-- /ledger -->\nafter\n")
    return root


def test_the_table_says_what_was_done(
        two_chapters: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    timings = two_chapters / "results" / "timings"
    timings.mkdir()
    (timings / "00_a.json").write_text(json.dumps({"seconds": 12.3, "finished": time.time() + 60}))
    (timings / "01_b.json").write_text('{"seconds": 4')  # cut short
    monkeypatch.setattr(repro, "dvc", lambda *_: 0)
    repro.repro()
    lines = {line.split()[0]: " ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line}
    assert lines["00_a"] == "00_a 12.3 rebuilt 1/1 results/00_a/00_a.ipynb"
    assert lines["01_b"] == "01_b – up to date 1/1 results/01_b/01_b.ipynb"

    monkeypatch.setattr(repro, "dvc", lambda *_: 1)
    (timings / "00_a.json").unlink()
    run.shutil.rmtree(two_chapters / "results" / "01_b")
    with pytest.raises(Refused, match="stopped"):
        repro.repro()
    lines = {line.split()[0]: " ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line}
    assert lines["00_a"].startswith("00_a – last good 1/1") and lines["01_b"].startswith("01_b – missing 0/0")


def test_dvc_files_that_a_kill_cut_short_are_removed_and_whole_ones_kept(root: Path):
    out = {"path": "results/00_a", "hash": "md5", "md5": "a1588fce862686def999c952857ab0d3.dir", "size": 1, "nfiles": 1}
    stage = {"cmd": "python", "outs": [out]}
    whole = {root / "dvc.lock": json.dumps({"schema": "2.0", "stages": {"clean": stage, "run@00_a": stage}}),
             root / ".dvc" / "tmp" / "rwlock": json.dumps({"write": {"/a": {"pid": 1, "cmd": "dvc"}}, "read": {}})}
    (root / ".dvc" / "tmp").mkdir(parents=True)
    assert not repro.mended()
    for file, text in whole.items():
        file.write_text(text)
    assert not repro.mended() and all(file.exists() for file in whole)
    for file, text in whole.items():
        for length in range(0, len(text), 7):
            file.write_text(text[:length])
            assert repro.mended() and not file.exists()
        file.write_text(text)


def test_the_pipeline_goes_on_once_dvcs_files_are_mended(two_chapters: Path, monkeypatch: pytest.MonkeyPatch):
    codes = iter([1, 0])
    monkeypatch.setattr(repro, "dvc", lambda *_: next(codes))
    (two_chapters / "dvc.lock").write_text("schema: '2.0'\nstages:\n  clean:\n    cm")
    repro.repro()
    assert next(codes, None) is None


# --- publishing -------------------------------------------------------------------------------------------


def tree(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*"))
            if file.is_file() and "results" not in file.parts}


def test_publishing_copies_what_the_pipeline_made(two_chapters: Path):
    publish.publish()
    for name in ("00_a", "01_b"):
        results = two_chapters / "results" / name
        assert (two_chapters / "notebooks" / f"{name}.ipynb").read_bytes() == (results / f"{name}.ipynb").read_bytes()
        assert (two_chapters / "docs" / "gallery" / f"{name}.png").read_bytes() == b"a picture"
    readme = (two_chapters / "README.md").read_text()
    assert readme.startswith("before\n<!-- ledger -->\n| claim |") and readme.endswith("\n<!-- /ledger -->\nafter\n")
    assert "old rows" not in readme and readme.count("| 00 |") == readme.count("| 01 |") == 1
    published = json.loads((two_chapters / "docs" / "published.json").read_text())
    assert published["chapters"]["01_b"] == {
        "metrics": {"loss": 1.5}, "tolerances": {"loss": 0.1}, "claims": {"01": True, "no": None}}
    assert published["machine"]["torch"] == torch.__version__
    once = tree(two_chapters)
    publish.publish()
    assert tree(two_chapters) == once


def test_publishing_refuses_before_anything_is_written(two_chapters: Path):
    second = two_chapters / "notebooks" / "01_b.ipynb"
    made = two_chapters / "results" / "01_b" / "01_b.ipynb"
    good = {file: file.read_bytes() for file in (second, made, two_chapters / "README.md")}

    def refused(message: str) -> None:
        before = tree(two_chapters)
        with pytest.raises(Refused, match=message):
            publish.publish()
        assert tree(two_chapters) == before
        for file, content in good.items():
            file.write_bytes(content)

    write(second, new_markdown_cell("# B"), code("print(3)"))
    refused(r"01_b: notebooks/01_b\.ipynb has changed since its results were made")
    write(made, new_markdown_cell("# B"), code("a = 1", copies.INJECTED), code("print(2)"))
    refused("01_b: not made with the default parameters")
    made.unlink()
    refused("01_b: no results to publish")
    (two_chapters / "README.md").write_text("no marks")
    refused(r"README\.md: got no place for the ledger; need the marks")
    publish.publish()


# --- the student edition ----------------------------------------------------------------------------------


def test_the_student_has_no_solutions_and_no_outputs(root: Path):
    write(root / "notebooks" / "00_a.ipynb", new_markdown_cell("**Exercise.**"),
          code("def f(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION\n\n\nprint(1)",
               outputs=[new_output("stream", name="stdout", text="1\n")], execution_count=7),
          code("### BEGIN SOLUTION\nsecret = 1\n### END SOLUTION", "solution"),
          code("print(2)  # kept", "nbval-check-output"))
    student.write(root / "out")
    made = copies.read(root / "out" / "00_a.ipynb")
    assert [cell.source for cell in made.cells] == [
        "**Exercise.**", "def f(x):\n# your solution\n\n\nprint(1)", "# your solution", "print(2)  # kept"]
    assert all(not cell.outputs and cell.execution_count is None for cell in made.cells[1:])
    assert "source_hidden" not in str(made) and made.cells[2].metadata.tags == ["solution"]


def test_the_pipeline_speaks_with_one_kind_of_error():
    assert issubclass(Refused, SystemExit)  # a message and exit status 1, no traceback
    assert str(Refused("x")) == "error: x"

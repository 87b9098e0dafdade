"""What params.yaml may say."""
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_notebook
from tree import code

from pipeline import run
from pipeline.parameters import Refused, chapters, checked, literals, read_yaml

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
    ("- 1", "params.yaml: got list; need a mapping"), ("", "params.yaml: got NoneType; need a mapping"),
    ("a: \udcff", "params.yaml cannot be read"), ("a: 2001-13-45", "params.yaml cannot be read.*month"),
    ("a: !!int x", "params.yaml cannot be read"), ("a: " + "[" * 2000, "params.yaml cannot be read"),
    ("? {a: 1}\n: 2", "params.yaml cannot be read"), ("a: !!binary x", "params.yaml cannot be read"),
    ("a: *b", "params.yaml cannot be read"), ("a: \0", "params.yaml cannot be read")])
def test_malformed_yaml_is_refused(text: str, message: str, tmp_path: Path):
    file = tmp_path / "params.yaml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(Refused, match=f"(?s){message}"):
        read_yaml(file)


def test_yaml_is_read_as_dvc_reads_it(tmp_path: Path):
    file = tmp_path / "params.yaml"
    with pytest.raises(Refused, match=r"params\.yaml cannot be read"):
        read_yaml(file)
    file.write_text("a: 1e-3\nb: off\nc: {range: [0, 1e6]}\n")  # an older YAML reads words here, and False
    assert read_yaml(file) == {"a": 0.001, "b": "off", "c": {"range": [0, 1e6]}}


@pytest.mark.parametrize("text", [
    "[]", "a: 1", "stages:", "stages: {run: }", "stages: {run: {foreach: }}", "stages: {run: {foreach: {a: 1}}}",
    "stages: {run: {foreach: [../00_a]}}", "stages: {run: {foreach: [00_a, ..]}}", "stages: {run: {foreach: [a/b]}}"])
def test_chapters_are_a_list_of_plain_names(text: str, root: Path):
    (root / "dvc.yaml").write_text(text)
    with pytest.raises(Refused, match=r"error: dvc\.yaml: "):
        chapters()
    (root / "dvc.yaml").write_text("stages: {run: {foreach: [00_a, my-chapter, 7]}}")
    assert chapters() == ["00_a", "my-chapter", "7"]


@pytest.mark.parametrize("source", ["seed = ", "seed = 1\n  size = 2", "%matplotlib inline\nseed = 0"])
def test_a_parameters_cell_that_is_no_python_is_named(source: str, root: Path):
    (root / "params.yaml").write_text("00_a:\n  seed: {value: 4, range: [0, 9]}\n")
    with pytest.raises(Refused, match=r"notebooks/00_a\.ipynb: the cell tagged `parameters` is no Python: .*line "):
        run.parameters("00_a", new_notebook(cells=[code(source, "parameters")]))


def test_only_what_differs_is_injected(root: Path):
    cells = [code("seed = 0\nsize = 2.0", "parameters"), code("seed = 5")]
    (root / "params.yaml").write_text("00_a:\n  seed: {value: 4, range: [0, 9]}\n  size: {value: 2, range: [0, 9]}\n")
    assert run.parameters("00_a", new_notebook(cells=cells)) == ({"seed": 4, "size": 2.0}, {"seed": 4})
    (root / "params.yaml").write_text("00_a:\n  seed: {value: 0, range: [0, 9]}\n  size: {value: 2, range: [0, 9]}\n")
    assert run.parameters("00_a", new_notebook(cells=cells))[1] == {}

"""What comes back byte for byte, to four digits, or otherwise."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nbformat.v4 import new_notebook, new_output
from safetensors.torch import save
from tree import code

from pipeline import certificate, copies


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


def test_everything_run_again_is_certified_output_by_output(
        two_chapters: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    results = two_chapters / "results"
    (two_chapters / "dvc.lock").write_text("of before")
    (results / "01_b" / "old.json").write_text("{}")

    def repro(option: str) -> None:
        assert option == "--force"
        (results / "00_a" / "metrics.json").write_text('{"loss": 1.50001}')  # as another processor has it
        (results / "00_a" / "figures" / "gallery.png").write_bytes(b"another picture")
        (results / "01_b" / "old.json").unlink()
        (results / "01_b" / "new.json").write_text("{}")

    monkeypatch.setattr(certificate, "repro", repro)
    certificate.fresh()
    made = json.loads((results / "certificate.json").read_text())
    assert {name: verdict for name, verdict in made["outputs"].items() if verdict != "identical"} == {
        "00_a/metrics.json": "agrees", "00_a/figures/gallery.png": "differs", "01_b/old.json": "gone",
        "01_b/new.json": "new"}
    assert made["dvc.lock"] == "unchanged" and made["machine"]["torch"] == torch.__version__
    said = capsys.readouterr().out
    assert "differs: results/00_a/figures/gallery.png" in said and "identical:" not in said
    same = len(made["outputs"]) - 4
    assert f"certificate: {same} outputs byte-identical, 1 agree to 4 digits, 1 differ, 1 new, 1 gone" in said

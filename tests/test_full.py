"""Long runs say what made them, and never take the place of a result of other settings."""
from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tree import script

ROOT = Path(__file__).resolve().parent.parent
FULL = ROOT / "full"


@pytest.fixture
def common():
    return script(FULL / "common.py")


def given(common, monkeypatch, out, *arguments):
    """The options of a script with seeds, a list of numbers and a number."""
    monkeypatch.setattr(sys, "argv", ["/elsewhere/full/01_a.py", "--out", str(out), *arguments])
    parser = common.parser("A run.\n\nAt length.", "/elsewhere/full/01_a.py", seeds=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--high", type=float, default=0.5)
    return common.options(parser)


def test_a_run_of_other_settings_goes_beside(common, monkeypatch, tmp_path, capsys):
    first = given(common, monkeypatch, tmp_path)
    file = common.place(first, "digits")
    assert file == tmp_path / "digits.json"
    common.save(file, common.head(first, "digits") | {"runs": [1.0]})
    before = file.read_bytes()
    same = given(common, monkeypatch, tmp_path, "--seeds", "3", "--device", "cpu", "--threads", "1")
    assert common.place(same, "digits") == file
    capsys.readouterr()
    other = given(common, monkeypatch, tmp_path, "--steps", "10", "30")
    beside = common.place(other, "digits")
    assert beside == tmp_path / "digits_seeds-3_steps-10-30_high-0.5.json"
    assert beside.with_suffix(".safetensors").name == "digits_seeds-3_steps-10-30_high-0.5.safetensors"
    assert f"writing {beside.name}" in capsys.readouterr().out
    common.save(beside, common.head(other, "digits"))
    assert file.read_bytes() == before and common.place(other, "digits") == beside
    forced = given(common, monkeypatch, tmp_path, "--steps", "10", "30", "--overwrite")
    assert common.place(forced, "digits") == file


def test_a_result_says_what_made_it(common, monkeypatch, tmp_path):
    options = given(common, monkeypatch, tmp_path, "--high", "2", "--device", "cpu", "--threads", "1")
    common.save(tmp_path / "room" / "a.json", common.head(options, "δigits"))
    head = json.loads((tmp_path / "room" / "a.json").read_text(encoding="utf-8"))
    assert head["what"] == "δigits" and head["versions"]["torch"] == torch.__version__
    assert head["command"] == f"python full/01_a.py --out {tmp_path} --high 2 --device cpu --threads 1"
    assert head["hardware"].startswith("1 thread on ")
    assert head["settings"] == {"seeds": 3, "steps": [10, 20], "high": 2.0}


def test_every_script_keeps_its_results_in_its_room(monkeypatch):
    rooms = {"autoencoder": "latents"}
    for file in sorted(FULL.glob("*.py")):
        if file.stem == "common":
            continue
        module, seen = script(file), {}
        monkeypatch.setattr(module.common, "options", lambda made, seen=seen: exit(seen.update(made=made)))
        with pytest.raises(SystemExit):
            module.main()
        defaults = vars(seen["made"].parse_args([]))
        assert defaults["out"] == FULL / "results" / rooms.get(file.stem, file.stem)
        assert not defaults["overwrite"]


def test_the_published_results_are_of_the_scripts_settings(monkeypatch):
    """A script whose settings have changed their names could not be run again as its result says."""
    for result in sorted(FULL.glob("results/*/*.json")):
        kept = json.loads(result.read_text(encoding="utf-8"))
        command = kept["command"].split()
        module = script(ROOT / command[1])
        monkeypatch.setattr(sys, "argv", command[1:])
        seen = {}
        monkeypatch.setattr(module.common, "place", lambda given, name, seen=seen: exit(seen.update(given=given)))
        with pytest.raises(SystemExit):
            module.main()
        assert module.common.settings(seen["given"]) == kept["settings"], result.name


def test_the_standard_normal_is_a_density(common):
    x = torch.tensor([[0.0, 0.0], [1.0, -2.0]], dtype=torch.float64)
    expected = [-math.log(2 * math.pi), -math.log(2 * math.pi) - 2.5]
    assert common.standard_normal(x).tolist() == pytest.approx(expected)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("target", "folder"), [("full", "full"), ("bench", "benchmarks")])
def test_make_runs_every_script_once_and_the_judge_first(target, folder):
    said = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    line, = (line for line in said.splitlines() if line.startswith("for script in "))
    scripts = line.removeprefix("for script in ").split(";")[0].split()
    assert sorted(scripts) == sorted(f"{folder}/{file.name}" for file in (ROOT / folder).glob("*.py")
                                     if file.stem != "common")
    assert folder == "benchmarks" or scripts[:2] == ["full/judge.py", "full/autoencoder.py"]

"""The long runs: what there is, how long it takes, what is missing; and what is asked, run.

    python full/runs.py                   the list                                   (make full)
    python full/runs.py judge 03          these, by the beginnings of their names    (make full RUN="judge 03")
    python full/runs.py all --overwrite   everything, with an option for each (make full RUN=all OPTIONS=--overwrite)
"""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml import YAML

FULL = Path(__file__).resolve().parent


class Run(NamedTuple):
    """A script of this folder."""

    minutes: int  # expected on two cores
    on_gpu: int  # and there, reckoned from two milliseconds a step
    results: tuple[str, ...]  # below full/results/, without .json
    settings: tuple[str, ...] = ()  # not to fall short of the notebook's, as HERE=THERE where names differ


RUNS = {
    "judge": Run(5, 1, ("judge/judge",)),
    "autoencoder": Run(4, 1, ("latents/autoencoder",)),
    "latents": Run(18, 3, ("latents/flow",)),
    "01_kinetic_optimal_paths": Run(
        110, 20, tuple(f"01_kinetic_optimal_paths/{part}" for part in ("codes", "separation", "pixels"))),
    "02_stochastic_interpolants": Run(
        150, 25, tuple(f"02_stochastic_interpolants/{part}" for part in (
            "cost", "diffusion", "pixels", "bits", "pairs", "shorter", "patches")), ("plane_steps",)),
    "03_diffusion_schrodinger_bridge": Run(
        220, 75, ("03_diffusion_schrodinger_bridge/bridges",), ("steps", "iterations", "knots")),
    "04_operator_informed_scores": Run(
        110, 24, ("04_operator_informed_scores/digits", "04_operator_informed_scores/plane"),
        ("steps=training_steps", "digit_steps", "seeds", "points", "order", "small_order")),
    "05_score_difference_flow": Run(250, 36, ("05_score_difference_flow/digits",), ("steps=digit_steps",)),
    "train": Run(1200, 5, ("train/digits-unet",)),
}


def short(name: str, settings: dict) -> str:
    """In which settings a run falls short of its notebook, in words."""
    chapter, found = YAML(typ="safe").load(FULL.parent / "params.yaml").get(name, {}), []
    for key, _, other in (pair.partition("=") for pair in RUNS[name].settings):
        here, there = settings[key], chapter[other or key]["value"]
        here = max(here) if isinstance(here, list) else here
        found += [f"{key} {here:,} < {there:,}"] * (here < there)
    return ", ".join(found)


def state(name: str) -> str:
    """Whether a run's results are there, by which options, and whether they are of a long run at all."""
    files = [FULL / "results" / f"{result}.json" for result in RUNS[name].results]
    if not all(file.exists() for file in files):
        return "missing"
    made = json.loads(files[0].read_text(encoding="utf-8"))
    options, less = made["command"].partition(".py")[2], short(name, made["settings"])
    return f"there{options and ',' + options}{less and '; shorter than the notebook: ' + less}"


def main(words: list[str]) -> None:
    """List the runs, or run those that the words begin; words from the first option on go to each of them."""
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    asked, options = words[:first], words[first:]
    if unknown := [word for word in asked if word != "all" and not any(name.startswith(word) for name in RUNS)]:
        sys.exit(f"error: run: got {' '.join(unknown)}; need all, or beginnings of {', '.join(RUNS)}")
    if not asked:
        print(f"{'run':33}{'minutes: two cores':>19}{'GPU':>5}  results")
        for name, run in RUNS.items():
            print(f"{name:33}{run.minutes:>19,}{run.on_gpu:>5}  {state(name)}")
        print('\n`make full RUN="judge 03"` runs these, RUN=all everything; on a GPU where there is one.\n'
              "Minutes are reckoned from the time of a step: on two cores a measured one, on a GPU two milliseconds.")
    for name in RUNS:
        if any(word == "all" or name.startswith(word) for word in asked):
            print(f"== full/{name}.py", flush=True)
            if code := subprocess.call([sys.executable, str(FULL / f"{name}.py"), *options]):
                sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])

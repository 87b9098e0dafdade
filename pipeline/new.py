"""The skeleton of a chapter: `python -m pipeline new 06_my_method`.

It makes a notebook with the sections of a chapter, its parameters, a claim, a method file in `lib`, a test of it, and
the chapter's place in dvc.yaml.  All of it runs; every sentence and every formula in it is there to be replaced.
"""
from __future__ import annotations

import re
from collections.abc import Iterator

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from pipeline import files
from pipeline.copies import dumps, read, stripped
from pipeline.files import replace
from pipeline.parameters import Refused, chapters, read_yaml

METHOD = '''\
r"""TITLE: in one line, what this module computes.

    E[y | x] = Σ_j w_j y_j,     w = softmax_j(−‖x − y_j‖²/2σ²)

Source: authors and year (arXiv number), equation.
"""
from __future__ import annotations

from torch import Tensor

from lib.kernels import gaussian_posterior


def denoised(x: Tensor, data: Tensor, sigma: float | Tensor) -> Tensor:
    """Mean of the data (N, D) as seen from x (B, D) through noise of standard deviation σ, shape (B, D).

    `ValueError` for shapes that disagree, values that are not finite, σ ≤ 0.
    """
    return gaussian_posterior(x, data, sigma).mean
'''

TEST = '''\
"""lib.METHOD: against brute force, and a limit in closed form."""
from __future__ import annotations

import pytest
import torch

from lib.METHOD import denoised


def test_the_mean_is_the_softmax_by_brute_force(generator: torch.Generator):
    x, data = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (5, 20))
    expected = torch.softmax(-torch.cdist(x, data).square() / (2 * 0.7**2), 1) @ data
    torch.testing.assert_close(denoised(x, data, 0.7), expected)


def test_through_much_noise_one_sees_the_mean_of_all(generator: torch.Generator):
    data = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(denoised(data[:2], data, 1e6), data.mean(0).expand(2, 3))


@pytest.mark.parametrize(("sigma", "name"), [(0.0, "sigma"), (-1.0, "sigma")])
def test_bad_input_is_refused(sigma: float, name: str):
    with pytest.raises(ValueError, match=f"^{name}: got"):
        denoised(torch.zeros(1, 2), torch.zeros(3, 2), sigma)
'''

PARAMS = '''
NAME:
  seed: {value: 0, range: [0, 1000000]}  # of every random draw in the chapter
  points: {value: 500, range: [10, 100000]}  # points of the data set
'''

CLAIM = '''
NAME:
  PREFIX-1:
    says: what the paper says that could turn out false here
    source: "paper: section"
    quantity: mean squared distance of the denoised points to their clean ones over that of the noisy points
    rule: {relation: "≤", threshold: 0.5}
    refuted: the noisy points are nearer than twice that
'''

CELLS = '''\
## markdown
# TITLE

**The claim of the chapter in one sentence.**

| | |
|---|---|
| Chapter | NUMBER |
| Level | second-year graduate student |
| Time | minutes to read, minutes to run |
| Paper | authors (year), *title*, arXiv number |
## markdown
**After this chapter you can**

1. …

**You need** …
## code
import matplotlib.pyplot as plt
import torch

from lib import METHOD, toys
from lib.chapter import exercise, plot
from lib.chapter.claims import Ledger

plot.style()
claims = Ledger("PREFIX")
## code parameters
seed = 0  # of every random draw in the chapter
points = 500  # points of the data set
## code
generator = torch.Generator().manual_seed(seed)
## markdown
## The result first

What is to be seen, every word of it defined.
## code
clean = toys.two_moons().sample(points, generator)
noisy = clean + 0.3 * torch.randn(clean.shape, generator=generator)
better = METHOD.denoised(noisy, clean, 0.3)

fig, axes = plt.subplots(1, 3, figsize=(9, 3))
for axis, x, title in zip(axes, (clean, noisy, better), ("clean", "noisy", "denoised"), strict=True):
    plot.scatter(axis, x, lim=3.0, title=title)
plot.show(fig, "gallery", "Three panels of two moons: clean, blurred by noise, and sharp again once denoised.")
## markdown
## From scratch

The method in 15 to 25 lines.
## code
def denoised(x, cloud, sigma):
    """The mean of the cloud as seen from x."""
    return torch.softmax(-torch.cdist(x, cloud).square() / (2 * sigma**2), 1) @ cloud


scratch = denoised(noisy.double(), clean.double(), 0.3)
## markdown
## Notation

| here | meaning | in the paper | in the code |
|---|---|---|---|
| $\\sigma$ | standard deviation of the noise | | `sigma` |
## markdown
## The problem, in a picture

One worked example by hand.
## markdown
## Derivation

$$\\mathbb E[y\\mid x]=\\sum_j w_j y_j \\tag{NUMBER.1}$$

<details><summary>A long proof</summary>

…

</details>
## markdown
## Oracle check

Against a closed form.
## code
far = METHOD.denoised(noisy[:5].double(), clean.double(), 1e6)
claims.check("through much noise one sees the mean", float((far - clean.double().mean(0)).abs().max()), 0.0, 1e-6)
## markdown
## The same through the library
## code
ours = METHOD.denoised(noisy.double(), clean.double(), 0.3)
assert torch.allclose(ours, scratch, atol=1e-9)
## markdown
## An experiment

Its rule stood in `claims.yaml` before it ran.
## code
errors = [float((x - clean).square().sum(1).mean()) for x in (better, noisy)]
claims.metric("squared error, denoised", errors[0], tolerance=0.05)
claims.measure("PREFIX-1", errors[0] / errors[1])
## markdown
## Failure gallery

Two realistic bugs, their symptoms, and a diagnosis to remember.
## markdown
## How it relates to the other roads
## markdown
## The ledger of this chapter
## code
claims.show()
## code nbval-check-output
claims.verdicts()
## markdown
## Exercises

Each exercise has a stub, a check that tells you whether you are right, and a solution in a collapsed cell.
EXERCISES\
## markdown
## Summary, limits, and what was not done
## markdown
## References
'''

EXERCISE = '''\
## markdown
**Exercise N.** Write a function that returns the centre of a cloud of points (n, D).
## code exercise-check
check_N = exercise.Check("N", {
    "two points": lambda f: exercise.close(f(torch.tensor([[0.0, 1.0], [2.0, 5.0]])), [1.0, 3.0]),
    "three points on a line": lambda f: exercise.close(f(torch.tensor([[0.0], [1.0], [5.0]])), [2.0]),
}, wrong={
    "the sum": lambda x: x.sum(0),
    "along the wrong axis": lambda x: x.mean(1),
    "a point": lambda x: x[0],
})
## code exercise
def centre_N(x):
    return None  # your turn


check_N(centre_N)
## code solution
### BEGIN SOLUTION
def solution_N(x):
    return x.mean(0)


check_N(solution_N)
### END SOLUTION
'''


def new(name: str) -> None:
    """Write the skeleton of a chapter, or nothing: refuses a bad name, and one that is taken."""
    pipeline = (files.ROOT / "dvc.yaml").read_text(encoding="utf-8")
    params, registry = (read_yaml(files.ROOT / f"{part}.yaml") for part in ("params", "claims"))
    last = chapters()[-1]
    number = f"{int(last[:2]) + 1:02d}"
    if not re.fullmatch(number + "_[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise Refused(f"name: got {name!r}; need {number}_ and words of small letters and digits joined by _")
    method = name.partition("_")[2]
    taken = {claim.split("-")[0] for entries in registry.values() for claim in entries or ()}
    prefix = "".join(word[0] for word in method.split("_")).upper()
    prefix = method.replace("_", "").upper() if len(prefix) < 2 or prefix in taken else prefix
    words = {"TITLE": method.replace("_", " ").capitalize(), "NUMBER": str(int(number)), "NAME": name,
             "METHOD": method, "PREFIX": prefix}
    made = {f"notebooks/{name}.ipynb": dumps(notebook(words)), f"lib/{method}.py": filled(METHOD, words),
            f"tests/test_{method}.py": filled(TEST, words)}
    there = [file for file in (*made, f"lib/{method}") if (files.ROOT / file).exists()]
    there += [f"{part}.yaml: {name}" for part, entries in (("params", params), ("claims", registry)) if name in entries]
    if there:
        raise Refused(f"name: got {name!r}; need one that is free: {', '.join(there)} is there")
    for part, section in (("params", PARAMS), ("claims", CLAIM)):
        file = files.ROOT / f"{part}.yaml"
        made[file.name] = file.read_text(encoding="utf-8").rstrip("\n") + "\n" + filled(section, words)
    made["dvc.yaml"] = re.sub(rf"(?:^.*\b{last}\b.*\n)+", lambda lines: lines[0] + lines[0].replace(last, name),
                              pipeline, flags=re.MULTILINE)
    for file, text in made.items():
        replace(files.ROOT / file, text)
    print("\n".join(f"  {file}" for file in made))
    print(f"give `{method}` its floor in pipeline/architecture.py, replace what you find, and "
          f"`dvc repro run@{name}`; CONTRIBUTING.md has the rules")


def filled(template: str, words: dict[str, str]) -> str:
    """A template with its words in capitals replaced."""
    return re.sub(rf"\b(?:{'|'.join(words)})\b", lambda found: words[found[0]], template)


def notebook(words: dict[str, str]) -> nbformat.NotebookNode:
    """The notebook of the skeleton, without outputs, beginning as the first chapter does where it has a guard."""
    exercises = "".join(re.sub(r"\bN\b|(?<=_)N\b", str(n), EXERCISE) for n in range(1, 5))
    cells = list(parsed(filled(CELLS.replace("EXERCISES", exercises), words)))
    guards = [cell for file in sorted((files.ROOT / "notebooks").glob("*.ipynb"))[:1] for cell in read(file).cells
              if 'find_spec("lib")' in cell.source]
    return stripped(new_notebook(cells=[*cells[:2], *guards, *cells[2:]]))


def parsed(text: str) -> Iterator[nbformat.NotebookNode]:
    """Cells from text in which a line `## markdown` or `## code TAG` begins each."""
    for kind, tag, source in re.findall(r"^## (markdown|code) ?(\S*)\n(.*?)(?=^## (?:markdown|code)|\Z)", text,
                                        re.DOTALL | re.MULTILINE):
        make = new_markdown_cell if kind == "markdown" else new_code_cell
        yield make(source.rstrip("\n"), metadata={"tags": [tag]} if tag else {})

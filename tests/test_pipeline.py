"""The pipeline whole, on a small project of two notebooks made from this repository's own files.

`00_path` imports lib.path, `01_train` does not and trains through lib.fit.  While results/hold exists its
training stops at step HOLD, so that a test can disturb it there without watching a clock.
"""
from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from ruamel.yaml import YAML

pytestmark = pytest.mark.slow

HOUSE = Path(__file__).resolve().parent.parent
VENV = Path(sys.prefix)
COPIED = ("lib", "pipeline", "store", "Makefile", "data.dvc", "requirements.txt", "pyproject.toml", ".gitignore",
          ".gitattributes", ".dvcignore", ".dvc/config", ".dvc/.gitignore")
CHAPTERS = ("00_path", "01_train")
STEPS, HOLD, KILLS = 40, 15, 8
ENCODE = "echo again >> results/encoded.log; mkdir results/latents; cp full/results/latents/weights results/latents"

PARAMETERS = {"00_path": "seed = 0  # of the noise\nsteepness = 2.0", "01_train": f"seed = 0\nsteps = {STEPS}"}
PARAMS = f"""
00_path:
  seed: {{value: 0, range: [0, 100]}}
  steepness: {{value: 2, range: [0.5, 4]}}
01_train:
  seed: {{value: 0, range: [0, 100]}}
  steps: {{value: {STEPS}, range: [1, 1000]}}
"""
CLAIMS = """
00_path:
  PATH-1:
    says: the path ends in the data
    source: "paper: Eq. 1"
    quantity: the coefficient of the data at the end
    rule: {relation: "=", threshold: 1}
    refuted: another one
  PATH-2: {says: the path is seen from afar, source: ours, not_reproduced: too far}
01_train: {}
"""
CELLS = {"00_path": ["""\
from pathlib import Path

import matplotlib.pyplot as plt
import lib.path
from lib import data, path
from lib.chapter import plot
from lib.chapter.claims import Ledger

assert Path(lib.path.__file__).parent == Path.cwd().parent / "lib"  # the project's own
claims = Ledger("PATH")""", """\
x = data.digits(seed=seed).train.x
fig, ax = plt.subplots()
ax.plot([0, 1], [0, steepness])
plot.show(fig, "gallery", "A straight line that rises from nought to its steepness.")
claims.metric("mean grey", float(x.mean()), tolerance=1e-3)
claims.measure("PATH-1", float(path.cond_ot().a(1.0)))
claims.show()"""], "01_train": ["""\
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import lib.fit
from lib.chapter.claims import Ledger

assert Path(lib.fit.__file__).parent == Path.cwd().parent / "lib"
lib.fit.SECONDS_BETWEEN_CHECKPOINTS = 0.0
results, calls = Path("../results"), []""", f"""\
def loss(model, generator):
    calls.append(1)
    with (results / "calls.log").open("a") as log:
        log.write("call\\n")
    while len(calls) == {HOLD} and (results / "hold").exists():
        time.sleep(0.02)
    x = torch.randn(64, 2, generator=generator)
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


generator = torch.Generator().manual_seed(seed)
model = torch.nn.Linear(2, 1)
with torch.no_grad():
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=generator))
model, history = lib.fit.fit(model, loss, steps, generator=generator)
print(f"{{history['loss'][-1]:.3g}} after {{len(history['loss'])}} steps")""", """\
import os

save_file(model.state_dict(), Path(os.environ["FIVE_ROADS_OUT"]) / "weights.safetensors")
claims = Ledger("TRAIN")
claims.metric("loss", float(history["loss"][-1]), tolerance=0.1)"""]}


class Project:
    """A folder with a pipeline, and commands run in it as a reader would."""

    def __init__(self, root: Path) -> None:
        self.root, self.results = root, root / "results"

    @property
    def environment(self) -> dict[str, str]:
        """The reader's: nothing of the `make test` around us, no way to a network, no store of DVC's in common."""
        ours = {key: value for key, value in os.environ.items()
                if not key.startswith(("MAKE", "MFLAGS", "PYTHON", "FIVE_ROADS", "PYTEST", "GIT_"))}
        nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
        return ours | nowhere | {"OMP_NUM_THREADS": "1", "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}",
                                 "DVC_SITE_CACHE_DIR": str(self.root.parent / "site")}

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=self.root, env=self.environment, text=True, start_new_session=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)

    def run(self, *command: str, fails: bool = False) -> str:
        """What a command writes; its exit status is checked."""
        process = self.start(*command)
        out, err = process.communicate(timeout=400)
        assert (process.returncode != 0) == fails, f"{command} exited {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in out + err, err
        return out + err

    def make(self, target: str) -> list[str]:
        """`make TARGET` with the virtual environment that runs the tests, whatever its age."""
        return ["make", "-o", f"{VENV}/.ready", f"VENV={VENV}", target]

    def outputs(self) -> dict[str, bytes]:
        """Every file of every chapter's results."""
        return {str(file.relative_to(self.results)): file.read_bytes() for name in CHAPTERS
                for file in sorted((self.results / name).rglob("*")) if file.is_file()}

    def runs(self) -> dict[str, float]:
        """When each chapter last ran."""
        return {name: json.loads((self.results / "timings" / f"{name}.json").read_text())["finished"]
                for name in CHAPTERS}

    def edit(self, file: str, old: str, new: str) -> None:
        text = (self.root / file).read_text()
        assert old in text
        (self.root / file).write_text(text.replace(old, new))

    def executed(self, name: str) -> nbformat.NotebookNode:
        return nbformat.read(self.results / name / f"{name}.ipynb", as_version=4)

    def copy(self, to: Path) -> Project:
        shutil.copytree(self.root, to, symlinks=True)
        return Project(to)

    def status(self) -> str:
        return self.run("git", "status", "--porcelain")


def flip(file: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project as a git repository, nothing run yet."""
    project = Project(tmp_path_factory.mktemp("origin") / "house")
    for name in COPIED:
        source, target = HOUSE / name, project.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    pipeline = YAML(typ="safe").load(HOUSE / "dvc.yaml")
    pipeline["stages"]["run"]["foreach"] = list(CHAPTERS)
    pipeline["stages"]["latents"]["cmd"] = ENCODE
    pipeline["metrics"] = [f"results/{name}/{part}.json" for name in CHAPTERS for part in ("metrics", "verdicts")]
    pipeline["plots"] = ["results/00_path/figures"]
    YAML(typ="safe").dump(pipeline, project.root / "dvc.yaml")
    (project.root / "full" / "results" / "latents").mkdir(parents=True)
    (project.root / "full" / "results" / "latents" / "weights").write_text("weights")
    (project.root / "params.yaml").write_text(PARAMS)
    (project.root / "claims.yaml").write_text(CLAIMS)
    (project.root / "README.md").write_text("# A small house\n<!-- ledger -->\n<!-- /ledger -->\n")
    (project.root / "notebooks").mkdir()
    for name in CHAPTERS:
        first, *rest = map(new_code_cell, CELLS[name])
        knobs = new_code_cell(PARAMETERS[name], metadata={"tags": ["parameters"]})
        cells = [new_markdown_cell(f"# {name}"), first, knobs, *rest]
        nbformat.write(new_notebook(cells=cells), project.root / "notebooks" / f"{name}.ipynb")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        project.run("git", *command)
    return project


@pytest.fixture(scope="module")
def clone(origin: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Project]]:
    """Makes fresh clones."""
    def make() -> Project:
        project = Project(tmp_path_factory.mktemp("clone") / "house")
        origin.run("git", "clone", "-q", str(origin.root), str(project.root))
        return project
    return make


@pytest.fixture(scope="module")
def built(clone: Callable[[], Project]) -> Project:
    """A clone in which `make repro` has run.  Tests take copies."""
    project = clone()
    project.said = project.run(*project.make("repro"))
    return project


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    """A copy of the built project, to do with as a test likes."""
    return built.copy(tmp_path / "house")


# --- a reader's first hour --------------------------------------------------------------------------------


def test_a_clone_is_built_by_one_command_and_left_clean(built: Project):
    table = [line.split() for line in built.said.splitlines() if line.startswith(CHAPTERS) and "rebuilt" in line]
    assert [(row[0], *row[2:]) for row in table] == [
        ("00_path", "rebuilt", "1/1", "results/00_path/00_path.ipynb"),
        ("01_train", "rebuilt", "0/0", "results/01_train/01_train.ipynb")]
    assert "dvc push" not in built.said and "lock file" not in built.said
    assert sorted(built.outputs()) == [
        "00_path/00_path.ipynb", "00_path/claims.json", "00_path/figures/gallery.png", "00_path/metrics.json",
        "00_path/tolerances.json", "00_path/verdicts.json", "01_train/01_train.ipynb", "01_train/claims.json",
        "01_train/metrics.json", "01_train/tolerances.json", "01_train/verdicts.json", "01_train/weights.safetensors"]
    assert built.status() == ""
    known = {"clean", "latents", "encoded.log", "timings", "calls.log", "ledger.json", "ledger.csv", *CHAPTERS}
    leftovers = {path.name for path in built.results.iterdir()} - known
    assert not {name for name in leftovers if not name.endswith(".lock")} - {"checkpoints"}
    assert not list((built.results / "checkpoints").glob("*"))


def test_progress_is_seen_in_the_terminal_and_not_in_the_notebook(built: Project):
    assert "01_train: 2/5 cells" in built.said and "training:   0%|" in built.said and f"/{STEPS}" in built.said
    for name in CHAPTERS:
        notebook = built.executed(name)
        assert not [output for cell in notebook.cells for output in cell.get("outputs", [])
                    if output.get("name") == "stderr" or output.output_type == "error"]
        assert str(built.root) not in (built.results / name / f"{name}.ipynb").read_text()
        assert not [cell for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", [])]
        counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
        assert counts == list(range(1, len(counts) + 1))


def test_a_second_time_nothing_is_rebuilt(project: Project):
    before = project.runs(), project.outputs(), (project.root / "dvc.lock").read_bytes()
    said = project.run(*project.make("repro"))
    assert said.count("up to date") == 2 and "rebuilt" not in said
    said = project.run("dvc", "repro")
    assert "Stage 'run@00_path' didn't change" in said and "Stage 'run@01_train' didn't change" in said
    assert before == (project.runs(), project.outputs(), (project.root / "dvc.lock").read_bytes())
    metrics = project.run("dvc", "metrics", "show")
    assert "mean grey" in metrics and "loss" in metrics
    assert "PATH-1" in metrics and "holds" in metrics and "not reproduced" in metrics
    assert project.status() == ""


def test_a_download_without_git_gives_the_same_bytes(origin: Project, built: Project, tmp_path: Path):
    """From a zip, in a folder with a space in its name, by plain DVC, then by make from another folder."""
    project = Project(tmp_path / "a house")
    origin.run("git", "archive", "-o", str(tmp_path / "house.tar"), "HEAD")
    with tarfile.open(tmp_path / "house.tar") as archive:
        archive.extractall(project.root, filter="data")
    said = project.run("dvc", "repro", fails=True)
    assert "data/breast_cancer.npz is missing" in said and "make data" in said
    project.run("dvc", "pull", "data.dvc")
    said = project.run("dvc", "repro")
    assert "00_path: look at results/00_path/00_path.ipynb; `python -m pipeline compare` says what moved" in said
    assert project.outputs() == built.outputs()
    assert (project.root / "dvc.lock").read_bytes() == (built.root / "dvc.lock").read_bytes()
    said = Project(tmp_path).run(*project.make("repro"), "-C", str(project.root))
    assert said.count("up to date") == 2


def test_without_make_the_machine_is_set_up_and_the_pipeline_runs(built: Project, clone: Callable[[], Project]):
    """By the Python of the system alone.  The installed packages stand in for an index, so pip finds all there."""
    project = clone()
    packages = sysconfig.get_path("purelib")
    here = {"PATH": os.defpath, "PIP_NO_INDEX": "1"}
    system = getattr(sys, "_base_executable", sys.executable)

    def run(*words: str, fails: bool = False) -> str:
        done = subprocess.run([system, *words], cwd=project.root, env=project.environment | here, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=400)
        assert (done.returncode != 0) == fails and "Traceback" not in done.stdout, done.stdout
        return done.stdout

    said = run("-S", "-m", "pipeline", "repro", fails=True)
    assert "error: dvc and torch not found; need the packages: `python -m pipeline setup` installs them" in said
    here["PYTHONPATH"] = packages
    assert "making .venv from requirements.txt" in run("-m", "pipeline", "setup")
    assert run("-m", "pipeline", "setup") == ""
    del here["PYTHONPATH"]
    site, = (project.root / ".venv" / "lib").glob("python*/site-packages")
    (site / "all.pth").write_text(packages + "\n")  # what an index would have brought
    assert "rebuilt" in run("-S", "-m", "pipeline", "repro")
    assert project.outputs() == built.outputs()
    (project.root / "tests").mkdir()
    (project.root / "tests" / "test_a.py").write_text("def test_that_it_is_so():\n    assert True\n")
    assert "1 passed" in run("-S", "-m", "pipeline", "check")
    assert project.status() in ("", "?? tests/\n")


# --- what reruns ------------------------------------------------------------------------------------------


def test_outputs_metadata_and_dates_rerun_nothing(project: Project):
    before = project.runs()
    for name in CHAPTERS:
        notebook = project.executed(name)
        notebook.metadata.kernelspec.update(name="other", display_name="Another kernel")
        notebook.metadata.widgets = {"state": 1}
        for cell in notebook.cells:
            cell.metadata["collapsed"] = True
            cell.id = f"x{cell.id}"
        nbformat.write(notebook, project.root / "notebooks" / f"{name}.ipynb")
    for file in [*(project.root / "lib").iterdir(), *(project.root / "notebooks").iterdir(),
                 *(project.root / "data").iterdir(), project.root / "params.yaml", project.root / "dvc.yaml"]:
        os.utime(file, (time.time() + 1000,) * 2)
    project.run("dvc", "repro")
    assert project.runs() == before


def test_an_edited_module_and_a_changed_parameter_rerun_their_chapter_alone(project: Project):
    first, outputs = project.runs(), project.outputs()
    with (project.root / "lib" / "path.py").open("a") as module:
        module.write("\n# a remark\n")
    project.run("dvc", "repro")
    second = project.runs()
    assert second["00_path"] > first["00_path"] and second["01_train"] == first["01_train"]
    assert project.outputs() == outputs

    project.edit("params.yaml", "value: 2,", "value: 3,")
    project.run("dvc", "repro", "run@00_path")
    third = project.runs()
    assert third["00_path"] > second["00_path"] and third["01_train"] == first["01_train"]
    injected = [cell.source for cell in project.executed("00_path").cells
                if "injected-parameters" in cell.metadata.get("tags", [])]
    assert len(injected) == 1 and "steepness = 3.0" in injected[0] and "seed" not in injected[0]
    assert project.outputs()["00_path/figures/gallery.png"] != outputs["00_path/figures/gallery.png"]
    said = project.run(sys.executable, "-m", "pipeline", "publish", fails=True)
    assert "00_path: not made with the default parameters" in said

    project.edit("params.yaml", "value: 3,", "value: 2,")
    project.run("dvc", "repro")
    assert project.outputs() == outputs and project.runs()["01_train"] == first["01_train"]


def test_codes_are_made_anew_for_another_encoder_and_chapters_run_for_other_codes(project: Project):
    before, log = project.runs(), project.results / "encoded.log"
    assert log.read_text() == "again\n"
    with (project.root / "lib" / "latents.py").open("a") as module:  # neither chapter imports it
        module.write("\n# a remark\n")
    project.run("dvc", "repro")
    assert log.read_text() == 2 * "again\n" and project.runs() == before
    (project.root / "full" / "results" / "latents" / "weights").write_text("others")
    project.run(*project.make("repro"))
    assert log.read_text() == 3 * "again\n" and all(project.runs()[name] > before[name] for name in CHAPTERS)


# --- byte for byte ----------------------------------------------------------------------------------------


def test_a_forced_rerun_is_byte_identical_and_the_certificate_says_so(project: Project):
    lock, outputs, before = (project.root / "dvc.lock").read_bytes(), project.outputs(), project.runs()
    said = project.run(*project.make("fresh"))
    assert all(project.runs()[name] > before[name] for name in CHAPTERS)
    assert f"certificate: {len(outputs)} outputs byte-identical, 0 agree to 4 digits, 0 differ, 0 new, 0 gone" in said
    assert "dvc.lock unchanged" in said
    assert (project.root / "dvc.lock").read_bytes() == lock and project.outputs() == outputs


# --- killed, interrupted, failing -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(built: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the project makes with another seed, left alone."""
    project = built.copy(tmp_path_factory.mktemp("undisturbed") / "house")
    reseed(project)
    project.run("dvc", "repro", "run@01_train")
    return project.outputs()


def reseed(project: Project) -> None:
    project.edit("params.yaml", "01_train:\n  seed: {value: 0", "01_train:\n  seed: {value: 1")


def until(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def find(process: subprocess.Popen[str], word: str) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if word in " ".join(child.cmdline())]


@pytest.mark.parametrize("disturbance", ["parents killed", "runner killed", "interrupted"])
def test_a_disturbed_run_loses_nothing_and_ends_with_the_same_bytes(
        disturbance: str, project: Project, built: Project, undisturbed: dict[str, bytes]):
    assert undisturbed != built.outputs()
    reseed(project)
    calls, hold = project.results / "calls.log", project.results / "hold"
    calls.unlink()
    hold.touch()
    process = project.start(*project.make("repro"))
    until(lambda: calls.exists() and len(calls.read_text().splitlines()) >= HOLD, process)
    assert project.outputs() == built.outputs()  # the previous results are there all the while
    everything = psutil.Process(process.pid).children(recursive=True)
    runners, kernels = find(process, "pipeline run"), find(process, "ipykernel_launcher")
    assert runners and len(kernels) == 1
    again = None
    if disturbance == "parents killed":
        assert "busy" in project.run("dvc", "repro", fails=True)  # two at once: the second is turned away
        victims = [child for child in everything if child not in runners + kernels]
    elif disturbance == "runner killed":
        victims = runners
    if disturbance == "interrupted":
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=100)
        assert "01_train: interrupted; the last good results are untouched" in err
        assert "Traceback" not in err and "last good" in out and process.returncode != 0
    else:
        if victims is not runners:
            process.kill()
        for victim in victims:
            victim.kill()
        if disturbance == "parents killed":  # the runner goes on, and the next run waits for it
            again = project.start(*project.make("repro"))
            said = []
            until(lambda: said.append(again.stderr.readline()) or "waiting for another run" in said[-1], again)
        process.wait(100)
    assert project.outputs() == built.outputs()
    done = len(calls.read_text().splitlines())
    hold.unlink()
    if again is None:
        again = project.start(*project.make("repro"))
    out, err = again.communicate(timeout=400)
    assert again.returncode == 0, out + err
    assert project.outputs() == undisturbed
    calls_in_all = len(calls.read_text().splitlines())
    if disturbance != "parents killed":
        assert calls_in_all - done < STEPS  # it went on from a checkpoint, not from zero
    assert not list((project.results / "checkpoints").glob("*")) and not list(project.results.glob(".*.new"))
    assert project.run("dvc", "repro").count("didn't change") == 3


def kill(process: subprocess.Popen[str]) -> None:
    """With all that it has started, from the top, so that none starts another."""
    everything = psutil.Process(process.pid).children(recursive=True)
    for one in (process, *everything):
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()


def test_kills_at_random_over_a_whole_run_lose_nothing_and_end_with_the_same_bytes(
        project: Project, built: Project, undisturbed: dict[str, bytes]):
    started = time.monotonic()
    project.run("dvc", "repro", "--force")
    length = time.monotonic() - started
    assert project.outputs() == built.outputs()
    reseed(project)
    moments = random.Random(0)
    for _ in range(KILLS):
        process = project.start("dvc", "repro", "--force")
        try:
            process.communicate(timeout=moments.uniform(0, length))
        except subprocess.TimeoutExpired:
            kill(process)
        found = project.outputs()
        for name in CHAPTERS:
            mine, old, new = ({file: content for file, content in outputs.items() if file.startswith(name)}
                              for outputs in (found, built.outputs(), undisturbed))
            assert mine in (old, new), name
    lock = project.root / "dvc.lock"
    lock.write_text(lock.read_text()[:400])  # a kill may cut this short too
    project.run(*project.make("repro"))
    assert project.outputs() == undisturbed
    assert not list((project.results / "checkpoints").glob("*")) and not list(project.results.glob(".*.new"))


def test_a_full_disk_is_named_and_loses_nothing(
        project: Project, built: Project, undisturbed: dict[str, bytes], tmp_path: Path):
    kept, disk = tmp_path / "kept", ["mount", "-t", "tmpfs"]
    project.results.rename(kept)
    project.results.mkdir()
    if subprocess.run([*disk, "-o", "size=16m", "tmpfs", project.results], capture_output=True).returncode:
        pytest.skip("needs root, to mount a small disk")
    try:
        shutil.copytree(kept, project.results, dirs_exist_ok=True)
        space = os.statvfs(project.results)
        with (project.results / "filler").open("wb") as filler:
            filler.write(bytes((space.f_bavail - 6) * space.f_bsize))
        reseed(project)
        assert "No space left on device" in project.run(*project.make("repro"), fails=True)
        assert project.outputs() == built.outputs()
        (project.results / "filler").unlink()
        project.run(*project.make("repro"))
        assert project.outputs() == undisturbed
    finally:
        subprocess.run(["umount", project.results], check=True)


def test_a_failing_notebook_leaves_the_last_good_results(project: Project):
    outputs, copy = project.outputs(), project.results / "failed" / "00_path.ipynb"
    good = (project.root / "notebooks" / "00_path.ipynb").read_text()

    def first_cell(source: str) -> None:
        notebook = nbformat.reads(good, as_version=4)
        notebook.cells[1].source = source
        nbformat.write(notebook, project.root / "notebooks" / "00_path.ipynb")

    first_cell("a = 1\nassert a == 2, 'one is not two'")
    said = project.run(*project.make("repro"), fails=True)
    assert "error: 00_path: cell 1 raised AssertionError: one is not two\na = 1\nassert a == 2" in said
    assert "results/failed/00_path.ipynb" in said and "last good" in said
    assert project.outputs() == outputs and "one is not two" in copy.read_text()

    first_cell("import os\nos._exit(3)")
    said = project.run("dvc", "repro", fails=True)
    assert "error: 00_path: the kernel died" in said
    assert project.outputs() == outputs and "os._exit(3)" in copy.read_text()

    first_cell(CELLS["00_path"][0] + "\n# mended")
    project.run("dvc", "repro")
    del outputs["00_path/00_path.ipynb"]
    assert outputs.items() <= project.outputs().items() and not copy.exists()


@pytest.mark.parametrize(("old", "new", "message"), [
    ("steepness: {value: 2,", "steepness: {value: 5,",
     "error: params.yaml: 00_path.steepness: got 5.0; need float from 0.5 to 4"),
    ("steepness:", "stepness:", "params.yaml: 00_path.stepness: got {'value': 2, 'range': [0.5, 4]}; need a parameter"),
    ("00_path:", "00_poth:", "Parameters '00_path' are missing from 'params.yaml'"),
    ("seed: {value: 0,", "seed: {value: 0", "params.yaml"),
])
def test_bad_parameters_run_nothing(project: Project, old: str, new: str, message: str):
    before = project.runs(), project.outputs()
    project.edit("params.yaml", old, new)
    assert message in project.run("dvc", "repro", fails=True)
    assert (project.runs(), project.outputs()) == before and not (project.results / "failed").exists()


def test_a_broken_file_is_named_and_nothing_is_forced_to_run(project: Project):
    before = project.runs(), project.outputs()
    for name, text in {"notebooks/00_path.ipynb": '{"nbformat": 4, "cells": null}', "lib/path.py": "def broken(",
                       "claims.yaml": "00_path: [", "notebooks/01_train.ipynb": None}.items():
        file = project.root / name
        good = file.read_text()
        file.unlink() if text is None else file.write_text(text)
        assert name in project.run("dvc", "repro", fails=True)
        file.write_text(good)
    for name, text in {"timings/00_path.json": "[]", "timings/01_train.json": '{"seconds": 3}'}.items():
        good = (project.results / name).read_text()
        (project.results / name).write_text(text)
        said = project.run(*project.make("repro"))
        assert said.count(f"passed over: results/{name}: ") == 1 and said.count("up to date") == 2
        (project.results / name).write_text(good)
    assert (project.runs(), project.outputs()) == before


# --- damaged and missing data -----------------------------------------------------------------------------


def test_damaged_data_are_named_and_deleted_data_come_back(project: Project):
    before, file = project.runs(), project.root / "data" / "digits.npz"
    good = file.read_bytes()
    flip(file)
    for command in (project.make("repro"), ["dvc", "repro"]):
        said = project.run(*command, fails=True)
        assert "data/digits.npz" in said and "delete it" in said
    assert project.status() == ""  # the damage is not adopted
    file.unlink()
    (project.root / "data" / ".DS_Store").touch()  # a file browser was here
    project.run(*project.make("repro"))
    assert file.read_bytes() == good
    shutil.rmtree(project.root / "data")
    project.run(*project.make("repro"))
    assert file.read_bytes() == good and project.runs() == before


def test_a_damaged_store_stops_a_fresh_clone(clone: Callable[[], Project]):
    project = clone()
    files = [file for file in (project.root / "store").rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    largest.chmod(0o644)
    flip(largest)
    said = project.run(*project.make("repro"), fails=True)
    assert "failed to pull data" in said and "take a fresh copy" in said
    assert not project.results.exists()


# --- publishing -------------------------------------------------------------------------------------------


def test_publishing_copies_the_executed_notebooks_and_reruns_nothing(project: Project):
    before = project.runs()
    said = project.run(sys.executable, "-m", "pipeline", "publish")
    assert "published 2 notebooks and 2 ledger rows" in said
    for name in CHAPTERS:
        made = project.outputs()[f"{name}/{name}.ipynb"]
        assert (project.root / "notebooks" / f"{name}.ipynb").read_bytes() == made
    readme, ledger = ((project.root / file).read_text() for file in ("README.md", "docs/ledger.md"))
    assert "2 claims: holds 1 · not reproduced 1" in readme and "[PATH-2](notebooks/00_path.ipynb)" in readme
    assert "[PATH-1](../notebooks/00_path.ipynb#cell-id=cell-03) In [3] |" in ledger
    published = json.loads((project.root / "docs" / "published.json").read_text())
    assert set(published["chapters"]) == set(CHAPTERS) and published["chapters"]["01_train"]["metrics"]["loss"] > 0
    changed = {line[3:] for line in project.status().splitlines()}
    assert changed == {"README.md", "docs/", *(f"notebooks/{name}.ipynb" for name in CHAPTERS)}
    project.run("dvc", "repro")
    assert project.runs() == before

    project.edit("notebooks/00_path.ipynb", "# 00_path", "# another title")
    said = project.run(sys.executable, "-m", "pipeline", "publish", fails=True)
    assert "notebooks/00_path.ipynb has changed since its results were made" in said
    project.edit("notebooks/00_path.ipynb", "# another title", "# 00_path")

    project.edit("params.yaml", "seed: {value: 0", "seed: {value: 1")
    said = project.run(*project.make("repro"))
    assert "against docs/published.json: 0 of 2 verdicts changed" in said and "2 of 2 metrics moved" in said
    assert "mean grey" in project.run(*project.make("compare"))

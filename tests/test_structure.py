"""The house itself: who imports whom, how long the rooms are, one truth for versions, nothing of this machine."""
from __future__ import annotations

import ast
import importlib.metadata
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from pipeline import architecture, setup
from pipeline.architecture import FLOORS
from pipeline.copies import read

ROOT = Path(__file__).resolve().parent.parent


def module(file: Path) -> str:
    """The dotted name below `lib` of a file; a package's is that of its face."""
    return ".".join(file.relative_to(ROOT / "lib").with_suffix("").parts).removesuffix(".__init__")


FILES = {module(file): file for file in sorted((ROOT / "lib").rglob("*.py"))}
MODULES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}
LIBRARY = sorted(set(MODULES) - {"__init__"})
METHODS = {"kinetic", "interpolant", "bridge", "markov", "difference"}
BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = BUILD["project"]
EXTRAS = PROJECT["optional-dependencies"]


def imports(tree: ast.Module, *, at_load: bool = False) -> set[str]:
    """Modules of `lib` that a source imports: wherever the statement stands, or when it is loaded."""
    found = set()
    for node in tree.body if at_load else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where a name comes from"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name.removeprefix("lib.") in MODULES else node.module for name in names}
    return {name.removeprefix("lib.") for name in found if name.startswith("lib.")} & set(MODULES)


GRAPH = {name: imports(MODULES[name]) for name in LIBRARY}
LOADED = {name: imports(MODULES[name], at_load=True) for name in LIBRARY}


def room(name: str) -> str:
    return name.split(".")[0]


def floor(name: str) -> int:
    """0 for the ground floor."""
    level, = (i for i, rooms in enumerate(FLOORS.values()) if room(name) in rooms)
    return level


def reach(name: str, graph: dict[str, set[str]] = GRAPH) -> set[str]:
    """All that a module imports, directly or not."""
    seen, todo = set(), list(graph[name])
    while todo:
        if (one := todo.pop()) not in seen:
            seen.add(one)
            todo += graph[one]
    return seen


def test_every_room_has_its_floor():
    listed = list(itertools.chain(*FLOORS.values()))
    assert sorted({room(name) for name in LIBRARY} | {"pipeline"}) == sorted(listed)


@pytest.mark.parametrize("name", LIBRARY)
def test_nobody_looks_upstairs(name: str):
    """Lazy imports included; what only notebooks use is not for the mathematics, and needs none of it."""
    for other in GRAPH[name]:
        assert floor(other) <= floor(name), f"{name} imports {other}"
        assert room(name) != "chapter" or room(other) in ("base", "chapter"), f"{name} imports {other}"


def test_no_circles_lazy_imports_included():
    assert not [name for name in LIBRARY if name in reach(name)]
    rooms = {room(name): {room(other) for one in LIBRARY if room(one) == room(name) for other in GRAPH[one]}
             - {room(name)} for name in LIBRARY}
    assert not [name for name in rooms if name in reach(name, rooms)]


def test_methods_never_stand_on_each_other():
    for name in LIBRARY:
        assert not {room(other) for other in reach(name)} & METHODS - {room(name)}, name


def test_the_pipeline_sees_only_what_it_must():
    allowed = {"base.stage", "chapter.claims"}
    for file in (ROOT / "pipeline").glob("*.py"):
        found = imports(ast.parse(file.read_text(encoding="utf-8"))) - {"base", "chapter"}
        assert found <= allowed, f"{file.name} imports {found - allowed}"
    for name, file in FILES.items():
        assert not re.search(r"^\s*(from|import) pipeline", file.read_text(encoding="utf-8"), re.MULTILINE), name


def test_the_picture_is_of_this_house():
    """Its arrows are those found here, and what it leaves out follows from what it shows."""
    arrows = architecture.arrows()
    for name in {room(name) for name in LIBRARY}:
        mine = {room(other) for one in LIBRARY if room(one) == name for other in GRAPH[one]} - {name}
        assert arrows[name] == mine
    assert arrows["pipeline"] <= {"base", "chapter"}
    shown = architecture.reduced(arrows)
    for name, others in arrows.items():
        assert shown[name] <= others and reach(name, shown) == reach(name, arrows)
        for other in shown[name]:  # none is there in vain
            without = shown | {name: shown[name] - {other}}
            assert other not in reach(name, without)
    drawn = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert drawn == architecture.picture(), "run `python -m pipeline architecture`"


@pytest.mark.parametrize(("statement", "absent"), [
    ("import lib", ["torch", "numpy", "matplotlib"]),
    ("import pipeline.run, pipeline.fingerprint, pipeline.repro", ["torch", "matplotlib"]),
    ("import lib.kernels", ["triton", "matplotlib", "sklearn", "ot"]),
])
def test_importing_costs_no_more_than_it_must(statement, absent):
    code = f"{statement}; import sys; print([m for m in {absent} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


LONGEST_BODY = LONGEST_CELL = 45


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_documented_and_bodies_short(name: str):
    assert ast.get_docstring(MODULES[name])
    public = [node for node in MODULES[name].body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    public += [part for node in public if isinstance(node, ast.ClassDef) for part in node.body
               if isinstance(part, ast.FunctionDef)]
    for node in public:
        plain = node.name.startswith("_") or node.name in ("forward", "backward", "main")
        assert plain or ast.get_docstring(node), f"{name}: {node.name} has no docstring"
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= LONGEST_BODY, f"{name}: {node.name} has {lines} lines"


@pytest.mark.parametrize("name", sorted(file.name for file in (ROOT / "notebooks").glob("*.ipynb")))
def test_no_code_cell_is_longer_than_a_screen(name: str):
    """Columns are ruff's affair, in notebooks as in modules."""
    for cell in read(ROOT / "notebooks" / name).cells:
        lines = len(cell.source.splitlines())
        assert cell.cell_type != "code" or lines <= LONGEST_CELL, f"{lines} lines: {cell.source[:200]}"


def test_the_library_is_thin():
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in FILES.values()) <= 5915


@pytest.mark.parametrize("name", LIBRARY)
def test_nothing_touches_the_global_random_state(name: str):
    drawn = re.compile(r"np\.random\.(?!Generator|default_rng)|torch\.(manual_seed|seed)\(|\brandom\.(seed|random)\(")
    allowed = 1 if name == "nets" else 0  # `nets.seeded` forks the state and puts it back
    assert len(drawn.findall(FILES[name].read_text(encoding="utf-8"))) == allowed
    for node in ast.walk(MODULES[name]):
        call = getattr(getattr(node, "func", None), "attr", "")
        if getattr(getattr(getattr(node, "func", None), "value", None), "id", "") in ("draw", "draws"):
            continue  # `base.draw`, which cannot be called without one
        if call in {"rand", "randn", "randint", "randperm", "multinomial", "normal"}:
            explicit = any(k.arg in ("generator", None) for k in node.keywords)
            assert explicit, f"{name}:{node.lineno} draws without a generator"


# --- versions ---------------------------------------------------------------------------------------------


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line.split(" #")[0]) for line in lines if line.strip() and not line.startswith("#")]
    assert len(found) == len({canonicalize_name(r.name) for r in found})
    return {canonicalize_name(r.name): r for r in found}


def test_every_version_is_pinned_once_and_within_the_loose_bounds():
    pinned = pins()
    assert all(re.fullmatch(r"==[\w.!+-]+", str(r.specifier)) for r in pinned.values())
    bounds = [*PROJECT["dependencies"], *itertools.chain(*EXTRAS.values()), *BUILD["build-system"]["requires"]]
    assert len(bounds) == len({canonicalize_name(Requirement(loose).name) for loose in bounds})
    for loose in map(Requirement, bounds):
        version = str(pinned[canonicalize_name(loose.name)].specifier).removeprefix("==")
        assert loose.specifier.contains(version), f"{loose} excludes the pinned {version}"


def test_what_is_installed_is_what_is_pinned():
    for name, requirement in pins().items():
        if requirement.marker is None or requirement.marker.evaluate():
            try:
                installed = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                assert requirement.marker is not None, f"{name} is pinned but not installed"
                continue
            assert requirement.specifier.contains(installed.split("+")[0], prereleases=True), name


def declared(*extras: str) -> set[str]:
    """What `pip install .[extras]` asks for."""
    bounds = [*PROJECT["dependencies"], *(loose for extra in extras for loose in EXTRAS[extra])]
    return {canonicalize_name(Requirement(loose).name) for loose in bounds}


@pytest.mark.parametrize(("folder", "allowed"), [
    ("lib", declared()), ("lib/chapter", declared("pipeline")), ("pipeline", declared("pipeline")),
    ("tests", declared("pipeline", "test"))])
def test_what_is_imported_is_asked_for(folder: str, allowed: set[str]):
    """The mathematics needs neither notebooks nor a pipeline; Triton comes with torch where there is a GPU."""
    owners = importlib.metadata.packages_distributions()
    for file in sorted((ROOT / folder).rglob("*.py")):
        if folder == "lib" and "chapter" in file.parts:
            continue
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
        ours = {"lib", "pipeline", "triton", *(neighbour.stem for neighbour in file.parent.glob("*.py"))}
        for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - ours:
            assert {canonicalize_name(owner) for owner in owners[top]} & allowed, f"{file.relative_to(ROOT)}: {top}"


def test_what_is_installed_is_what_is_there():
    """Every package, and the table of hashes without which `lib.data` does not load."""
    packages = {".".join(file.parent.relative_to(ROOT).parts)
                for top in ("lib", "pipeline") for file in (ROOT / top).rglob("__init__.py")}
    assert set(BUILD["tool"]["setuptools"]["packages"]) == packages
    patterns = BUILD["tool"]["setuptools"]["package-data"]["lib"]
    shipped = {file for pattern in patterns for file in (ROOT / "lib").glob(pattern)}
    other = {file for file in (ROOT / "lib").rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert shipped == other


def test_one_range_of_python_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    python, = (line for line in environment if isinstance(line, str) and line.startswith("python"))
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert SpecifierSet(python.removeprefix("python")) == allowed
    assert {"pip": ["-r requirements.txt", "-e ."]} in environment  # versions live in requirements.txt alone
    minors = [n for n in range(30) if allowed.contains(f"3.{n}")]
    assert minors == [11, 12, 13]
    assert ((3, minors[0]), (3, minors[-1])) == setup.PYTHONS


def test_public_ci_lints_and_checks_on_every_python_promised_and_runs_everything_at_night():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    minors = [f"3.{n}" for n in range(30) if SpecifierSet(PROJECT["requires-python"]).contains(f"3.{n}")]
    assert jobs["check"]["strategy"]["matrix"]["python"] == minors
    commands = {job: [step["run"] for step in jobs[job]["steps"] if "run" in step] for job in jobs}
    assert commands == {"check": ["make lint", "make check"], "everything": [".ci/run"]}


def test_links_of_the_guides_lead_somewhere():
    for guide in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", guide.read_text(encoding="utf-8")):
            assert (guide.parent / target).exists(), f"{guide.name}: {target}"


# --- nothing of the machine it was made on ----------------------------------------------------------------


def tracked() -> list[Path]:
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in found.stdout.split("\0") if name]


def test_no_path_of_a_machine_and_no_package_index():
    here = re.compile(r"(?<![\w.~>/-])/(?:home|root|Users|work|mnt)/\w|https?://[^\s\"')]*(?:/simple\b|/whl\b|pypi)")
    for file in tracked():
        if file.is_file() and "store" not in file.relative_to(ROOT).parts and file.suffix != ".png":
            found = here.search(file.read_text(encoding="utf-8", errors="ignore"))
            assert not found, f"{file.relative_to(ROOT)}: {found[0]}"

"""The house itself: who imports whom, how long the rooms are, one truth for versions, nothing of this machine."""
from __future__ import annotations

import ast
import importlib.metadata
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

ROOT = Path(__file__).resolve().parent.parent
MODULES = {file.stem: ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "lib").glob("*.py")}
LIBRARY = sorted(set(MODULES) - {"__init__"})
CHAPTERS = {"kinetic", "interpolant", "bridge", "markov", "difference"}
NOTEBOOK_ONLY = {"plot", "claims", "notebook", "parameters"}
KERNELS = {module for module in LIBRARY if module.startswith("kernels")}
CORE = KERNELS | {"check", "ranks", "path", "posterior", "transport", "solve", "nets", "fit", "progress", "data",
                  "metrics"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def imports(module: str, *, at_load: bool = False) -> set[str]:
    """Modules of `lib` that a module imports: wherever the statement stands, or when it is loaded."""
    found = set()
    for node in MODULES[module].body if at_load else ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom) and node.module == "lib":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lib."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lib.")}
    return found & set(MODULES)


GRAPH = {module: imports(module) for module in LIBRARY}
LOADED = {module: imports(module, at_load=True) for module in LIBRARY}


def reach(module: str, graph: dict[str, set[str]] = GRAPH) -> set[str]:
    """All that a module imports, directly or not."""
    seen, todo = set(), list(graph[module])
    while todo:
        if (one := todo.pop()) not in seen:
            seen.add(one)
            todo += graph[one]
    return seen


def test_the_ground_floor_knows_nobody():
    assert not GRAPH["check"] and GRAPH["path"] == {"check"}
    assert not GRAPH["ranks"] and all(GRAPH[kernel] <= KERNELS | {"check", "ranks"} for kernel in KERNELS)
    assert GRAPH["posterior"] | GRAPH["transport"] <= {"check", "kernels", "path"}
    for module in CORE & set(LIBRARY):
        assert GRAPH[module] <= CORE, f"{module} of the core imports {GRAPH[module] - CORE}"


def test_no_circles():
    assert not [module for module in LIBRARY if module in reach(module, LOADED)]


def test_chapters_stand_on_the_core_and_never_on_each_other():
    for chapter in CHAPTERS & set(LIBRARY):
        assert not reach(chapter) & (CHAPTERS - {chapter})
    rooms = set(LIBRARY) - CORE - CHAPTERS - NOTEBOOK_ONLY
    for room in rooms:  # a second file of one chapter, and of one only
        assert len([c for c in CHAPTERS & set(LIBRARY) if room in reach(c)]) == 1, room


def test_only_notebooks_import_plot_and_claims():
    for module in LIBRARY:
        assert module in NOTEBOOK_ONLY or not GRAPH[module] & NOTEBOOK_ONLY, module


@pytest.mark.parametrize(("statement", "absent"), [
    ("import lib", ["torch", "numpy", "matplotlib"]),
    ("import lib.notebook", ["torch", "matplotlib"]),
    ("import lib.kernels", ["triton", "matplotlib", "sklearn", "ot"]),
])
def test_importing_costs_no_more_than_it_must(statement, absent):
    code = f"{statement}; import sys; print([m for m in {absent} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short_and_documented(module):
    lines = (ROOT / "lib" / f"{module}.py").read_text(encoding="utf-8").count("\n")
    assert lines <= (500 if module.startswith("kernels") else 350)
    assert ast.get_docstring(MODULES[module])
    public = [node for node in MODULES[module].body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    public += [part for node in public if isinstance(node, ast.ClassDef) for part in node.body
               if isinstance(part, ast.FunctionDef)]
    for node in public:
        plain = node.name.startswith("_") or node.name in ("forward", "backward", "main")
        assert plain or ast.get_docstring(node), f"{module}: {node.name} has no docstring"


@pytest.mark.parametrize("module", LIBRARY)
def test_nothing_touches_the_global_random_state(module):
    drawn = re.compile(r"np\.random\.(?!Generator|default_rng)|torch\.(manual_seed|seed)\(|\brandom\.(seed|random)\(")
    source = (ROOT / "lib" / f"{module}.py").read_text(encoding="utf-8")
    allowed = 1 if module == "nets" else 0  # `nets.seeded` forks the state and puts it back
    assert len(drawn.findall(source)) == allowed
    for node in ast.walk(MODULES[module]):
        name = getattr(getattr(node, "func", None), "attr", "")
        if name in {"rand", "randn", "randint", "randperm", "multinomial", "normal"}:
            explicit = any(k.arg in ("generator", None) for k in node.keywords)
            assert explicit, f"{module}:{node.lineno} draws without a generator"


# --- versions ---------------------------------------------------------------------------------------------


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line.split(" #")[0]) for line in lines if line.strip() and not line.startswith("#")]
    assert len(found) == len({canonicalize_name(r.name) for r in found})
    return {canonicalize_name(r.name): r for r in found}


def test_every_version_is_pinned_once_and_within_the_loose_bounds():
    pinned = pins()
    assert all(re.fullmatch(r"==[\w.!+-]+", str(r.specifier)) for r in pinned.values())
    for loose in map(Requirement, PROJECT["dependencies"]):
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


def test_what_is_imported_is_pinned():
    owners, pinned = importlib.metadata.packages_distributions(), set(pins())
    for file in [*(ROOT / "lib").glob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
        for top in {n.split(".")[0] for n in names} - set(sys.stdlib_module_names) - {"lib", "scripts", "triton"}:
            assert {canonicalize_name(owner) for owner in owners[top]} & pinned, f"{file.name}: {top}"


def test_one_range_of_python_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    python, = (line for line in environment if isinstance(line, str) and line.startswith("python"))
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert SpecifierSet(python.removeprefix("python")) == allowed
    assert {"pip": ["-r requirements.txt", "-e ."]} in environment  # versions live in requirements.txt alone
    minors = [n for n in range(30) if allowed.contains(f"3.{n}")]
    assert minors == [11, 12, 13]
    assert f"(3, {minors[0]}) <= v <= (3, {minors[-1]})" in (ROOT / "Makefile").read_text(encoding="utf-8")


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

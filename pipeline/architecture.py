"""The picture of the house, drawn from what imports what: docs/architecture.svg.

Each floor stands on those below it.  A line goes from a room down to one that it imports; left out are lines to
`base`, on which all stand, and those that a longer way through other rooms implies.
"""
from __future__ import annotations

import ast
from pathlib import Path

from pipeline import files
from pipeline.files import replace

# From the ground up; rooms of one floor have no circle among them, and stand from left to right as here.
FLOORS = {
    "base": ("base",),
    "core": ("data", "affine", "metrics", "kernels", "path", "solve", "fit", "nets", "judge", "latents"),
    "models": ("toys", "posterior", "kinetic", "transport", "interpolant", "markov", "difference", "bridge"),
    "notebooks": ("chapter", "pipeline"),
}
COLOURS = dict(zip(FLOORS, ("#7F7F7F", "#0072B2", "#009E73", "#D55E00"), strict=True))
BOX, STEP, ROW, LEFT, WIDTH = (114, 46), 128, 104, 110, 1150  # pixels


def rooms() -> dict[str, list[str]]:
    """Room → its modules: of each file or package of lib, and of pipeline."""
    library, found = files.ROOT / "lib", {}
    for at in [*sorted(library.iterdir()), files.ROOT / "pipeline"]:
        if (at.suffix == ".py" and at.stem != "__init__") or (at / "__init__.py").exists():
            found[at.stem] = sorted({file.stem for file in at.glob("*.py")} - {"__init__", "__main__"})
    return found


def arrows() -> dict[str, set[str]]:
    """Room → rooms that it imports, wherever the statement stands."""
    known = rooms()
    found: dict[str, set[str]] = {}
    for room, modules in known.items():
        folder = files.ROOT if room == "pipeline" else files.ROOT / "lib"
        sources = sorted((folder / room).rglob("*.py")) if modules else [folder / f"{room}.py"]
        found[room] = {name.split(".")[1] for file in sources for name in imported(file)} & set(known) - {room}
    return found


def imported(file: Path) -> set[str]:
    """Dotted names below `lib` that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("lib.")}


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without the arrows that a longer way implies."""
    def below(room: str) -> set[str]:
        return graph[room].union(*(below(other) for other in graph[room]))

    return {room: others - set().union(*(below(other) for other in others)) for room, others in graph.items()}


def places(graph: dict[str, set[str]]) -> dict[str, tuple[float, int]]:
    """Room → (x of its middle, row from the ground): a row above all that it imports."""
    found: dict[str, tuple[float, int]] = {}
    top = 0
    for names in FLOORS.values():
        left = list(names)
        while left:
            row = [room for room in left if not graph[room] & set(left)]
            for i, room in enumerate(row):
                found[room] = LEFT + (WIDTH - LEFT) / 2 + (i - (len(row) - 1) / 2) * STEP, top
            left, top = [room for room in left if room not in row], top + 1
    return found


def picture() -> str:
    """The SVG."""
    graph, modules = arrows(), rooms()
    where = places(graph)
    rows = 1 + max(row for _, row in where.values())
    height = 40 + rows * ROW
    y = {row: height - 20 - (row + 1) * ROW + (ROW - BOX[1]) / 2 for row in range(rows)}
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
             "<title>Rooms of the library by floor, and what imports what</title>",
             f'<rect width="{WIDTH}" height="{height}" fill="white"/>']
    for floor, names in FLOORS.items():
        span = [where[room][1] for room in names]
        top, bottom = y[max(span)] - (ROW - BOX[1]) / 2 + 4, y[min(span)] + BOX[1] + (ROW - BOX[1]) / 2 - 4
        parts += [f'<rect x="8" y="{top:g}" width="{WIDTH - 16}" height="{bottom - top:g}" rx="8" '
                  f'fill="{COLOURS[floor]}" fill-opacity="0.08"/>',
                  f'<text x="20" y="{(top + bottom) / 2 + 5:g}" font-size="15" fill="{COLOURS[floor]}">{floor}</text>']
    for room, others in reduced({room: graph[room] - {"base"} for room in graph}).items():
        for other in sorted(others):
            (x0, r0), (x1, r1) = where[room], where[other]
            a, b = y[r0] + BOX[1], y[r1]
            parts.append(f'<path d="M{x0:g} {a:g} C{x0:g} {a + 50:g} {x1:g} {b - 50:g} {x1:g} {b:g}" fill="none" '
                         f'stroke="#555" stroke-opacity="0.6"/><circle cx="{x1:g}" cy="{b:g}" r="3" fill="#555"/>')
    for floor, names in FLOORS.items():
        for room in names:
            x, top, inside = where[room][0], y[where[room][1]], " · ".join(modules[room])
            inside = inside if len(inside) <= 26 else ""  # what fits
            parts += [f'<rect x="{x - BOX[0] / 2:g}" y="{top:g}" width="{BOX[0]}" height="{BOX[1]}" rx="6" '
                      f'fill="white" stroke="{COLOURS[floor]}" stroke-width="1.5"/>',
                      f'<text x="{x:g}" y="{top + (20 if inside else 28):g}" font-size="15" '
                      f'text-anchor="middle">{room}</text>']
            parts += [f'<text x="{x:g}" y="{top + 34:g}" font-size="9" fill="#555" text-anchor="middle">{inside}</text>'
                      ] if inside else []
    return "\n".join([*parts, "</svg>"]) + "\n"


def draw() -> None:
    """Write docs/architecture.svg."""
    replace(files.ROOT / "docs" / "architecture.svg", picture())
    print("written to docs/architecture.svg")

"""Draw docs/architecture.svg, the floor plan: rooms by layer of the import contract, arrows to what a room imports.

    python -m tests.helpers.import_graph        draws, and prints the counts of rooms, arrows and what has grown long

A room is a package or module directly below `pipeline` or `data_tools`. An arrow that follows from others is counted, not
drawn.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import grimp

REPOSITORY = Path(__file__).parents[2]
PICTURE = REPOSITORY / "docs" / "architecture.svg"
ROOTS = ("pipeline", "data_tools")
LONG_MODULE, LONG_FUNCTION = 350, 50  # lines
WIDTH, ROW, HEIGHT, TOP = 1120, 74, 30, 58  # pixels
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#bc8f00", "#17a2a2")
STYLE = """<style>
text { font: 14px Helvetica, Arial, sans-serif; fill: #111 } .title { font-size: 17px; font-weight: bold }
.name { text-anchor: middle } .own { fill: #eef3fa; stroke: #456 }
.outside { fill: #f4f4f4; stroke: #999; stroke-dasharray: 4 3 }
path { fill: none; stroke-width: 1.6 }
</style>"""

Arrows = dict[str, set[str]]  # from a room to those that it imports


class Box(NamedTuple):
    """Places a room: the middle of its upper edge, and its width."""

    name: str
    x: int
    y: int
    width: int

    def svg(self, kind: str) -> str:
        rectangle = (
            f'<rect x="{self.x - self.width // 2}" y="{self.y}" width="{self.width}" height="{HEIGHT}" rx="5" class="{kind}"/>'
        )
        return f'{rectangle}<text x="{self.x}" y="{self.y + 20}" class="name">{self.name}</text>'


def read_layers(root: str) -> list[list[str]]:
    """Return the rooms of a root package as the contract orders them, from the top down."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract.get("containers") == [root])
    return [[f"{root}.{name}" for name in layer.split(" | ")] for layer in layers]


def read_arrows() -> Arrows:
    """Return which room imports which."""
    graph = grimp.build_graph(*ROOTS, cache_dir=None)
    arrows: Arrows = {}
    for module in sorted(graph.modules - set(ROOTS)):
        rooms = {_room(name) for name in graph.find_modules_directly_imported_by(module) - set(ROOTS)}
        arrows.setdefault(_room(module), set()).update(rooms - {_room(module)})
    return arrows


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def without_implied(arrows: Arrows) -> Arrows:
    """Return the arrows that no longer path replaces."""

    @cache
    def reached(room: str) -> frozenset[str]:
        return frozenset(arrows[room]).union(*map(reached, arrows[room]))

    return {room: below.difference(*map(reached, below)) for room, below in arrows.items()}


def count_long() -> dict[str, int]:
    """Count what the house style limits."""
    texts = [path.read_text() for root in ROOTS for path in sorted((REPOSITORY / root).rglob("*.py"))]
    functions = [
        node for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return {
        f"modules over {LONG_MODULE} lines": sum(len(text.splitlines()) > LONG_MODULE for text in texts),
        f"functions over {LONG_FUNCTION} lines": sum((f.end_lineno or 0) - f.lineno >= LONG_FUNCTION for f in functions),
        "fmt: skip": sum(text.count("# fmt: skip") for text in texts),
    }


def draw(arrows: Arrows) -> str:
    """Return the picture, as SVG. It holds no number that changes with every commit."""
    drawn = without_implied(arrows)
    lines, boxes, y = [], [], 0
    for root in ROOTS:
        rows, own = read_layers(root), [room for room in arrows if room.startswith(root)]
        outside = sorted({below for room in own for below in drawn[room] if below not in own})
        title = f"{root}/: {len(own)} rooms in {len(rows)} layers, {sum(len(arrows[room]) for room in own)} arrows"
        boxes.append(f'<text x="20" y="{y + 30}" class="title">{title}</text>')
        rows += [outside] if outside else []
        places = _arrange(rows, drawn, {room: room.removeprefix(f"{root}.") for row in rows for room in row}, y=y + TOP)
        for number, (room, box) in enumerate(places.items()):
            boxes.append(box.svg("outside" if room in outside else "own"))
            for below in sorted(drawn[room]) if room in own else ():
                lines.append(_arrow(box, places[below], color=COLORS[number % len(COLORS)]))
        y += TOP + ROW * len(rows)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}">'
    return "\n".join([head, STYLE, f'<rect width="{WIDTH}" height="{y}" fill="white"/>', *lines, *boxes, "</svg>\n"])


def _arrange(rows: Sequence[Sequence[str]], drawn: Arrows, names: dict[str, str], *, y: int) -> dict[str, Box]:
    """Return a box for each room: in its row below those that import it, as far as possible."""
    places: dict[str, Box] = {}
    for number, row in enumerate(rows):
        above = {room: [box.x for user, box in places.items() if room in drawn[user]] or [WIDTH // 2] for room in row}
        widths = {room: 9 * len(names[room]) + 20 for room in row}
        gap, end = (WIDTH - sum(widths.values())) // (len(row) + 1), 0
        for room in sorted(row, key=lambda room: (mean(above[room]), room)):
            places[room] = Box(names[room], end + gap + widths[room] // 2, y + number * ROW, widths[room])
            end += gap + widths[room]
    return places


def _arrow(start: Box, end: Box, *, color: str) -> str:
    x, y, bend = start.x, start.y + HEIGHT, (end.y - start.y - HEIGHT) // 2
    head = f"M{end.x - 4} {end.y - 8}L{end.x} {end.y - 1}L{end.x + 4} {end.y - 8}"
    return f'<path d="M{x} {y}C{x} {y + bend} {end.x} {end.y - bend} {end.x} {end.y - 1}{head}" stroke="{color}"/>'


def main() -> None:
    arrows = read_arrows()
    PICTURE.write_text(draw(arrows))
    counts = {"rooms": len(arrows), "arrows": sum(map(len, arrows.values())), **count_long()}
    print("\n".join(f"{number:5} {name}" for name, number in counts.items()))


if __name__ == "__main__":
    main()

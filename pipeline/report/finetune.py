"""Keep, print and draw the table of a grid of fine-tunings."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pipeline.console.figures import house_style, label_of
from pipeline.errors import ConfigError
from pipeline.files import write_whole
from pipeline.json_text import parse_json, to_finite
from pipeline.run.evaluations import show_value

TABLE_NAME = "finetune.json"


@dataclass(frozen=True)
class PointResult:
    """Holds the dev result of one point; None where it failed, with the reason."""

    name: str
    settings: Mapping[str, Any]
    value: float | None
    quantity: str = "accuracy"
    seconds: int | None = None
    error: str | None = None

    def describe(self) -> str:
        """Return the result in words."""
        if self.value is None:
            return f"{self.name}: failed: {self.error}"
        time = "" if self.seconds is None else f" ({self.seconds} s)"
        return f"{self.name}: {_shown(self.value, self.quantity)} of the dev images{time}"


@dataclass(frozen=True)
class Final:
    """Holds the results of a final training: value and quantity by measure, and where its weights are."""

    seed: int
    results: Mapping[str, Mapping[str, Any]]
    weights: str

    def describe(self) -> str:
        """Return the results in words."""
        values = ", ".join(f"{name} {_shown(found['value'], found['quantity'])}" for name, found in self.results.items())
        return f"final training, seed {self.seed}: {values or 'no results'}"


@dataclass(frozen=True)
class Table:
    """Holds all results of a fine-tuning so far."""

    name: str
    choose_by: str
    points: Sequence[PointResult]
    chosen: str | None = None
    finals: Sequence[Final] = ()

    def to_text(self) -> str:
        """Return the table for a terminal, and for Markdown."""
        keys = list(dict.fromkeys(key for point in self.points for key in point.settings))
        head = [*(key.rpartition(".")[2] for key in keys), f"dev {self.choose_by}", ""]
        rows = [
            [
                *(str(point.settings.get(key, "")) for key in keys),
                "failed" if point.value is None else _shown(point.value, point.quantity),
                "chosen" if point.name == self.chosen else (point.error or "")[:60],
            ]
            for point in self.points
        ]
        lines = [_line(head), _line(["---"] * len(head)), *map(_line, rows)]
        return "\n".join([f"{self.name}: {len(self.points)} points", "", *lines, "", *self._final_lines()])

    def _final_lines(self) -> list[str]:
        """Return the mean over seeds of each measure of the final trainings."""
        measures = dict.fromkeys(name for final in self.finals for name in final.results)
        lines = []
        for name in measures:
            found = [final.results[name] for final in self.finals if name in final.results]
            values, quantity = [float(one["value"]) for one in found], str(found[0]["quantity"])
            spread = f" ± {_shown(stdev(values), quantity)}" if len(values) > 1 else ""
            seeds = f" ({len(values)} seeds)" if len(values) > 1 else ""
            lines.append(f"{name}: {_shown(fmean(values), quantity)}{spread}{seeds}")
        return lines


def write_table(folder: Path, table: Table) -> None:
    """Write the table, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / TABLE_NAME, json.dumps(to_finite(asdict(table)), indent=1, default=str) + "\n")


def read_table(folder: Path) -> Table | None:
    """Return the table of a folder; None if it has none.

    Raises:
        ConfigError: it is damaged.
    """
    path = folder / TABLE_NAME
    if not path.exists():
        return None
    try:
        found = parse_json(path.read_bytes())
        points = [PointResult(**point) for point in found["points"]]
        finals = [Final(**final) for final in found["finals"]]
        return Table(found["name"], found["choose_by"], points, found["chosen"], finals)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is damaged ({error}); `python -m pipeline finetune` writes it again") from error


def _shown(value: float, quantity: str) -> str:
    return show_value(value, "loss" if quantity == "loss" else "accuracy")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


@house_style()
def draw_table(table: Table, *, format: str) -> bytes:
    """Draw the dev results over the first setting, a curve for each combination of the others, as a picture.

    Raises:
        ValueError: matplotlib does not know the format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    measured = [point for point in table.points if point.value is not None]
    curves: dict[str, list[PointResult]] = {}
    for point in measured:
        others = [f"{key.rpartition('.')[2]} {value}" for key, value in list(point.settings.items())[1:]]
        curves.setdefault(", ".join(others), []).append(point)
    for label, points in curves.items():
        axis.plot([_first(point) for point in points], [_drawn(point) for point in points], marker="o", label=label_of(label))
    for point in measured:
        if point.name == table.chosen:
            axis.plot(
                [_first(point)], [_drawn(point)], marker="*", markersize=16, color="tab:red", linestyle="", label="chosen"
            )
    first = next(iter(measured[0].settings), "") if measured else ""
    if measured and all(isinstance(_first(point), int | float) and _first(point) > 0 for point in measured):
        axis.set_xscale("log")
    unit = "" if measured and measured[0].quantity == "loss" else " %"
    axis.set(title=label_of(table.name), xlabel=label_of(first), ylabel=f"dev {table.choose_by}{unit}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, format=format)
    return picture.getvalue()


def _first(point: PointResult) -> Any:
    return next(iter(point.settings.values()), point.name)


def _drawn(point: PointResult) -> float:
    assert point.value is not None
    return point.value if point.quantity == "loss" else 100 * point.value

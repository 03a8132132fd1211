"""List the points of a grid, each with its configuration."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.read import parse_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError

DEV = "dev"  # name of the set that points are compared on
GRID, FINAL = "grid", "final"  # folders of the points' runs, and beginning of the final runs' names


@dataclass(frozen=True)
class Point:
    """Names one combination of settings."""

    name: str
    settings: Mapping[str, Any]


def list_points(grid: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Return every combination of a grid's values, the first setting's values changing slowest."""
    points = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        points.append(Point("-".join(_word(key, value) for key, value in settings.items()) or "only", settings))
    names = [point.name for point in points]
    if len(set(names)) < len(names):  # values that differ in characters that a name cannot have
        points = [Point(f"{number}-{point.name}", point.settings) for number, point in enumerate(points)]
    return points


def _word(key: str, value: Any) -> str:
    """Return a setting as part of a run's name: `learning_rate0.003`, `duration500steps`."""
    return re.sub(r"[^A-Za-z0-9_.]+", "", f"{key.rpartition('.')[2]}{value}")[:60]


def configure_point(base: RunConfig, point: Point, *, train: Any, dev: Any) -> RunConfig:
    """Return the configuration of a point's run: it trains on the rest, and is measured on the dev images alone.

    Args:
        train, dev: settings of shards.

    Raises:
        ConfigError: a setting of the grid is none, or its value does not fit.
    """
    validation = [{"name": DEV, "shards": dev, "class_map": "numbers"}]
    changes = {"name": point.name, "output_dir": str(base.run_dir / GRID), "finetune": None}
    values = _changed(base, {**changes, "data.train": train, **point.settings})
    values["evaluation"] = {**values["evaluation"], "datasets": [], "validation": validation, "references": {}}
    return parse_config(values, source=f"point {point.name} of finetune.grid")


def configure_final(base: RunConfig, point: Point, *, seed: int) -> RunConfig:
    """Return the configuration of a final run: it trains on all training images, and is measured on the test sets.

    Raises:
        ConfigError: the settings do not fit together.
    """
    changes = {"name": f"{FINAL}-s{seed}", "output_dir": str(base.run_dir), "seed": seed, "finetune": None}
    return parse_config(_changed(base, {**changes, **point.settings}), source=f"final run of {point.name}")


def _changed(base: RunConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration's values with others at some keys."""
    values = base.model_dump(mode="json")
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        node: Any = values
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ConfigError(f"finetune.grid: {dotted} is no setting of this configuration")
        node[last] = value
    return values

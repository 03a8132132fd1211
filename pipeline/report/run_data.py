"""Read what a report shows of a run, from its folder's files alone: curves by step, by images seen and by exaFLOPs."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.errors import ConfigError
from pipeline.run.checkpoint import RunFolder
from pipeline.run.evaluations import MeasureResults, name_failures, read_results, summarise_results
from pipeline.run.records import Row, number, read_json, read_json_lines, read_metrics
from pipeline.run.state import read_state

Axis = Literal["step", "images", "exaflops"]
AXES: dict[Axis, str] = {"step": "Step", "images": "Images seen", "exaflops": "Training compute (exaFLOPs)"}
_METRIC_KEYS: dict[Axis, str] = {"step": "step", "images": "images_seen", "exaflops": "exaflops"}
# What is shown of a configuration: the name in the report, the section and the key.
_FACTS = (
    ("model", "model", "name"),
    ("image size", "model", "image_size"),
    ("objective", "objective", "name"),
    ("optimizer", "optimizer", "name"),
    ("duration", "trainer", "duration"),
    ("batch", "trainer", "global_batch_size"),
    ("precision", "trainer", "precision"),
    ("ZeRO stage", "trainer", "zero_stage"),
)


@dataclass(frozen=True)
class RunData:
    """Holds one run.

    Attributes:
        alerts: those that were raised.
        facts: what a reader should know of it, by name.
        problems: what could not be read, and what failed.
    """

    name: str
    root: Path
    state: str
    metrics: list[Row]
    rows: list[Row]
    results: list[MeasureResults]
    alerts: list[Row]
    facts: dict[str, str]
    problems: list[str]

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.root)

    def curve(self, key: str, axis: Axis) -> tuple[list[float], list[float]]:
        """Return a metric's values by an axis; NaN where it was not finite. Lines without it are left out."""
        lines = [row for row in self.metrics if key in row and number(row, _METRIC_KEYS[axis]) is not None]
        x = [float(number(row, _METRIC_KEYS[axis]) or 0) for row in lines]
        return x, [math.nan if (value := number(row, key)) is None else value for row in lines]

    def place(self, step: int, axis: Axis) -> float | None:
        """Return where a step lies on an axis; None where no line says it."""
        if axis == "step":
            return float(step)
        if axis == "images":
            return self._images_seen.get(step)
        return None if self._exaflops_a_step is None else self._exaflops_a_step * step

    @functools.cached_property
    def _images_seen(self) -> dict[int, float]:
        lines = (*self.metrics, *self.rows)
        return {row["step"]: value for row in lines if (value := number(row, "images_seen")) is not None}

    @functools.cached_property
    def _exaflops_a_step(self) -> float | None:
        return next((value / row["step"] for row in self.metrics if (value := number(row, "exaflops")) and row["step"]), None)


def read_run(root: Path) -> RunData:
    """Read a run folder, or the folder of an evaluated model.

    Raises:
        ConfigError: it is neither, or has nothing to show yet.
    """
    if not root.is_dir():
        raise ConfigError(f"run folder {root} does not exist")
    folder, problems = RunFolder(root), list[str]()
    metrics = _read(folder.metrics, read_metrics, problems)
    results = read_results(folder)
    alerts = _read(folder.alerts, read_json_lines, problems)
    problems += results.passed_over
    if not metrics and not results.rows:
        said = f" ({'; '.join(problems)})" if problems else ""
        raise ConfigError(f"{root} has no line of metrics.jsonl or evaluations.jsonl yet; nothing to report{said}")
    found = read_state(root)
    rows = results.rows
    return RunData(
        name=root.resolve().name,
        root=root,
        state=f"{found.state}{f' ({found.detail})' if found.detail else ''}",
        metrics=metrics,
        rows=rows,
        results=summarise_results(rows),
        alerts=[row for row in alerts if row.get("change") == "raised"],
        facts=_facts(folder, metrics),
        problems=[*problems, *name_failures(rows, run=root)],
    )


def read_runs(roots: Iterable[Path]) -> list[RunData]:
    """Read several runs. Names that occur twice are told apart by their parent folders."""
    runs = [read_run(root) for root in roots]
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else replace(run, name=f"{run.root.resolve().parent.name}/{run.name}") for run in runs
    ]


def _read(path: Path, read: Any, problems: list[str]) -> list[Row]:
    try:
        return read(path)
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return []


def _facts(folder: RunFolder, metrics: Sequence[Row]) -> dict[str, str]:
    """Return what the run is, and how far it is."""
    config = _read_config(folder)
    facts: dict[str, str] = {}
    for name, section, key in _FACTS:
        values = config.get(section)
        if isinstance(values, dict) and values.get(key) is not None:
            facts[name] = str(values[key])
    data = read_json(folder.data)
    if data is not None and isinstance(data.get("fingerprint"), str):
        facts["data fingerprint"] = data["fingerprint"]
    if metrics:
        last = metrics[-1]
        facts["step"] = f"{last['step']:,}"
        for name, key, form in (("images seen", "images_seen", ",.0f"), ("exaFLOPs", "exaflops", ".4g")):
            if (value := number(last, key)) is not None:
                facts[name] = f"{value:{form}}"
        speeds = sorted(value for row in metrics if (value := number(row, "speed/images_per_s")) is not None)
        if speeds:
            facts["images/s (median)"] = f"{speeds[len(speeds) // 2]:.4g}"
        unreadable = number(last, "data/unreadable")
        if unreadable:
            facts["unreadable images"] = f"{unreadable:,.0f}"
    return facts


def _read_config(folder: RunFolder) -> dict[str, Any]:
    try:
        found = yaml.safe_load(folder.config.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}

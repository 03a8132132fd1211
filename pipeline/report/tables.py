"""Return every curve of a report as numbers: CSV for spreadsheets, JSON for programs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any, NamedTuple

from pipeline.report.charts import METRICS
from pipeline.report.run_data import RunData


class Point(NamedTuple):
    """Describes one point of a curve: a metric of training, or one measure at one checkpoint.

    Attributes:
        value: an accuracy is a part of 1; None where it was not finite.
        low: least and `high` largest value over seeds; equal to the value where there is one.
    """

    run: str
    curve: str
    step: int
    images_seen: float | None
    exaflops: float | None
    value: float | None
    low: float | None
    high: float | None
    seeds: int


def points_of(runs: Sequence[RunData]) -> Iterator[Point]:
    """Yield every point of every curve."""
    for run in runs:
        for key, *_ in METRICS:
            steps, values = run.curve(key, "step")
            for step, value in zip(steps, values, strict=True):
                known = None if math.isnan(value) else value
                places = run.place(int(step), "images"), run.place(int(step), "exaflops")
                yield Point(run.name, key, int(step), *places, known, known, known, 1)
        for results in run.results:
            for step, found in sorted(results.by_step.items()):
                places = run.place(step, "images"), run.place(step, "exaflops")
                yield Point(run.name, results.measure, step, *places, mean(found), min(found), max(found), len(found))


def curves_as_csv(runs: Sequence[RunData]) -> str:
    """Return all points, a line each, under a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Point._fields)
    writer.writerows(points_of(runs))
    return text.getvalue()


def curves_as_json(runs: Sequence[RunData]) -> dict[str, Any]:
    """Return {run: {curve: [point, ...]}}."""
    found: dict[str, Any] = {}
    for point in points_of(runs):
        values = {key: value for key, value in point._asdict().items() if key not in ("run", "curve")}
        found.setdefault(point.run, {}).setdefault(point.curve, []).append(values)
    return found

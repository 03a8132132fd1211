"""Draw a report's curves for print, and as SVG that a page can colour: of one run, or of several over each other."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from pipeline.console.figures import COLOURS, figure_bytes, label_of, paper_style
from pipeline.report.run_data import AXES, Axis, RunData
from pipeline.run.evaluations import MeasureResults

# Metrics that have a chart: key, title, label of the axis, and what is multiplied.
METRICS = (
    ("train/loss", "Training loss", "Loss", 1.0),
    ("train/learning_rate", "Learning rate", "Learning rate", 1.0),
    ("train/gradient_norm", "Gradient norm", "Norm before clipping", 1.0),
    ("speed/images_per_s", "Throughput", "Images/s", 1.0),
    ("speed/mfu", "Model FLOPs utilisation", "MFU (%)", 100.0),
    ("speed/data_wait_fraction", "Waiting for data", "Part of the time (%)", 100.0),
)
_FEW_POINTS = 30  # a line through fewer would hide single ones
_STYLES = ("-", "--", ":", "-.")

# Of measures that are no accuracy, by the ends of their names.
LABELS = {
    "mIoU": "mIoU (%)",
    "mAP": "mAP (%)",
    "attention distance": "Part of the image's side (%)",
    "effective rank": "Part of the features' width (%)",
}


@dataclass(frozen=True)
class Chart:
    """Describes one chart: a metric of training, or one measure of all runs.

    Attributes:
        key: of a metric; None for a measure.
        name: of its files.
    """

    name: str
    title: str
    label: str
    key: str | None = None
    measure: str | None = None
    scale: float = 1.0
    is_accuracy: bool = False


def list_charts(runs: Sequence[RunData]) -> list[Chart]:
    """Return the charts for which any run has values."""
    charts = [
        Chart(_file_name(title), title, label, key=key, scale=scale)
        for key, title, label, scale in METRICS
        if any(key in row for run in runs for row in run.metrics)
    ]
    measures: dict[str, MeasureResults] = {results.measure: results for run in runs for results in run.results}
    for measure, results in measures.items():
        is_accuracy = results.quantity == "accuracy"
        label = _value_label(results) if is_accuracy else "Loss"
        scale = 100.0 if is_accuracy else 1.0
        charts.append(Chart(_file_name(measure), measure, label, measure=measure, scale=scale, is_accuracy=is_accuracy))
    return charts


def _value_label(results: MeasureResults) -> str:
    return next((label for ending, label in LABELS.items() if results.measure.endswith(ending)), "Accuracy (%)")


def _file_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


@paper_style()
def draw_chart(chart: Chart, runs: Sequence[RunData], axis: Axis) -> Figure | None:
    """Draw a chart, without a title; None where no run has a value on this axis.

    Accuracies over several seeds are a mean with the range of the seeds.
    """
    figure = Figure()
    ax = figure.subplots()
    drawn = 0
    for number, run in enumerate(runs):
        colour, style = COLOURS[number % len(COLOURS)], _STYLES[number // len(COLOURS) % len(_STYLES)]
        look: dict[str, Any] = {"color": colour, "linestyle": style, "label": label_of(run.name)}
        drawn += (
            _draw_metric(ax, run, chart, axis, look) if chart.key is not None else _draw_measure(ax, run, chart, axis, look)
        )
    if not drawn:
        return None
    ax.set(xlabel=AXES[axis], ylabel=chart.label)
    ax.grid(alpha=0.3)
    ax.ticklabel_format(axis="x", style="sci", scilimits=(-3, 5))
    if chart.key in ("speed/images_per_s", "speed/mfu", "speed/data_wait_fraction"):
        ax.set_ylim(0, None)
    if len(ax.get_legend_handles_labels()[0]) > 1:
        ax.legend()
    return figure


def _draw_metric(ax: Any, run: RunData, chart: Chart, axis: Axis, look: dict[str, Any]) -> int:
    assert chart.key is not None
    x, y = run.curve(chart.key, axis)
    if not x:
        return 0
    few = sum(map(math.isfinite, y)) < _FEW_POINTS
    ax.plot(x, [chart.scale * value for value in y], marker="o" if few else None, markersize=2, **look)
    lost = [place for place, value in zip(x, y, strict=True) if math.isnan(value)]
    if lost:
        ax.axvspan(lost[0], lost[-1], color=COLOURS[1], alpha=0.15, label=f"{look['label']}: not finite")
    return 1


def _draw_measure(ax: Any, run: RunData, chart: Chart, axis: Axis, look: dict[str, Any]) -> int:
    results = next((found for found in run.results if found.measure == chart.measure), None)
    if results is None:
        return 0
    points = [
        (place, results.by_step[step]) for step in sorted(results.by_step) if (place := run.place(step, axis)) is not None
    ]
    if not points:
        return 0
    x = [place for place, _ in points]
    ax.plot(x, [chart.scale * mean(values) for _, values in points], marker="o", markersize=2.5, **look)
    low, high = ([chart.scale * choose(values) for _, values in points] for choose in (min, max))
    if low != high:
        ax.fill_between(x, low, high, alpha=0.2, color=look["color"], linewidth=0)
    if results.reference is not None:
        label = f"{label_of(results.reference.by)}"
        ax.axhline(chart.scale * results.reference.value, color=look["color"], linestyle=":", linewidth=0.8, label=label)
    return 1


def to_inline_svg(figure: Figure, *, description: str) -> str:
    """Return a figure as an SVG element whose lines and letters have the page's own colour, so that it fits a dark page."""
    text = figure_bytes(figure, "svg", background="none").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"(stroke|fill): ?#000000", r"\1: currentColor", text)
    text = text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
    return text.replace("\n", " ")

"""Show a run's results: a table in the terminal and a picture, from the run folder's files alone."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.console.figures import house_style, label_of
from pipeline.errors import ConfigError
from pipeline.files import write_whole
from pipeline.report.finetune import Table, draw_table, read_table
from pipeline.report.run_data import read_run
from pipeline.run.checkpoint import RunFolder
from pipeline.run.evaluations import MeasureResults, Quantity, summarise_results
from pipeline.run.records import Row, number

Panel = tuple[str, Quantity]  # protocol, and what its values are
MAX_COLUMNS = 8  # columns of the table: more would not fit on a screen
_DOWNSTREAM: list[Panel] = [("few_shot", "accuracy"), ("linear", "accuracy")]  # drawn even while nothing is measured
_TITLES: dict[Panel, str] = {
    ("few_shot", "accuracy"): "Few-shot accuracy (mean and range over seeds)",
    ("linear", "accuracy"): "Linear probe accuracy",
    ("upstream", "accuracy"): "Accuracy on held-out images of the corpus",
    ("upstream", "loss"): "Loss on held-out images of the corpus",
}
FEW_POINTS = 30  # a line through fewer would hide single ones


@dataclass(frozen=True)
class Report:
    """Holds what there is to print.

    Args:
        error: why the requested picture could not be written.
    """

    text: str
    error: str | None = None


def write_report(run_dir: Path, out: Path | None = None) -> Report:
    """Draw the curves and return the table. A picture that cannot be written does not keep the table from being shown.

    Args:
        out: file of the picture, or an existing folder, where the picture is named after the run.

    Raises:
        ConfigError: the path is not a run folder, or one without a single line of metrics or results.
    """
    if not run_dir.is_dir():
        raise ConfigError(f"run folder {run_dir} does not exist")
    if (table := read_table(run_dir)) is not None:
        return _write_table(table, run_dir, out)
    run = read_run(run_dir)
    text = [f"{run_dir}: {run.state}", summarise_training(run.metrics), "", tabulate_results(run.rows), ""]
    text += [f"! {problem}" for problem in run.problems]
    return _with_picture(text, run_dir, out, lambda format: draw(run.metrics, run.rows, title=run.name, format=format))


def _write_table(table: Table, run_dir: Path, out: Path | None) -> Report:
    """Report a grid of fine-tunings."""
    return _with_picture([table.to_text(), ""], run_dir, out, lambda format: draw_table(table, format=format))


def _with_picture(text: list[str], run_dir: Path, out: Path | None, draw_as: Callable[[str], bytes]) -> Report:
    """Write the picture, and say where it is."""
    target = _page_path(run_dir, out)
    try:
        write_whole(target, draw_as(target.suffix[1:] or "png"))
    except Exception as error:  # matplotlib raises almost anything; a ValueError where it does not know the format
        reason = f"picture {target} cannot be written: {getattr(error, 'strerror', None) or error}"
        if out is None:
            return Report("\n".join([*text, f"{reason}; --out FILE puts it elsewhere"]))
        return Report("\n".join(text).rstrip(), error=reason)
    return Report("\n".join([*text, f"picture: {target}"]))


def _page_path(run_dir: Path, out: Path | None) -> Path:
    if out is None:
        return RunFolder(run_dir).picture
    return out / f"{run_dir.resolve().name}.png" if out.is_dir() else out


def summarise_training(metrics: Sequence[Row]) -> str:
    """Return one line: how far, how well, how fast."""
    if not metrics:
        return "no training metrics"
    last = metrics[-1]
    images, unreadable, mfu = (number(last, key) for key in ("images_seen", "data/unreadable", "speed/mfu"))
    speeds = sorted(speed for row in metrics if (speed := number(row, "speed/images_per_s")) is not None)
    parts = [
        f"step {last['step']}",
        None if images is None else f"{images:.0f} images seen",
        _summarise_loss(metrics),
        f"median {speeds[len(speeds) // 2]:.4g} images/s" if speeds else None,
        None if mfu is None else f"MFU {100 * mfu:.1f} %",  # a CPU has none
        None if unreadable is None else f"unreadable images {unreadable:.0f}",
    ]
    return ", ".join(part for part in parts if part is not None)


def _summarise_loss(metrics: Sequence[Row]) -> str | None:
    losses = [(row["step"], loss) for row in metrics if (loss := number(row, "train/loss")) is not None]
    if not any("train/loss" in row for row in metrics):
        return None
    if not losses:
        return "loss not finite"
    (_, first), (step, last) = losses[0], losses[-1]
    if step < metrics[-1]["step"]:
        return f"loss {first:.4g} -> {last:.4g} at step {step}, not finite since"
    return f"loss {first:.4g}" if len(metrics) == 1 else f"loss {first:.4g} -> {last:.4g}"


def tabulate_results(rows: Sequence[Row]) -> str:
    """Return measures (rows) by step (columns): accuracy in %, or a loss; few-shot as mean and standard deviation over seeds.

    Where the run's configuration names values to expect, they are a last column.
    """
    if not rows:
        return "no evaluations"
    all_steps = sorted({row["step"] for row in rows})
    steps = _spread(all_steps, MAX_COLUMNS)
    found = summarise_results(rows)
    has_loss, has_reference = any(r.quantity == "loss" for r in found), any(r.reference is not None for r in found)
    header = ["accuracy %, or loss" if has_loss else "accuracy %", *(f"step {step}" for step in steps)]
    table = [[*header, "to expect"] if has_reference else header]
    for results in found:
        cells = [results.measure, *(_cell(results.by_step.get(step, []), results.quantity) for step in steps)]
        table.append([*cells, _expected(results)] if has_reference else cells)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    more = (
        [f"({len(steps)} of {len(all_steps)} checkpoints; evaluations.jsonl has them all)"]
        if len(steps) < len(all_steps)
        else []
    )
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *more])


def _expected(results: MeasureResults) -> str:
    reference = results.reference
    return "" if reference is None else f"{_cell([reference.value], results.quantity)} ({reference.by})"


def _spread(values: Sequence[int], count: int) -> list[int]:
    """Choose at most so many of them: the first, the last, and others at equal distances."""
    if len(values) <= count:
        return list(values)
    return [values[round(index * (len(values) - 1) / (count - 1))] for index in range(count)]


def _cell(values: Sequence[float], quantity: Quantity) -> str:
    if not values:
        return "-"
    scale, form = (100, ".1f") if quantity == "accuracy" else (1, ".5g")
    mean = sum(values) / len(values)
    if len(set(values)) == 1:  # one seed, or draws that are all of train: there is no spread
        return f"{scale * mean:{form}}"
    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return f"{scale * mean:{form}} ± {scale * spread:{form}}"


@house_style()
def draw(metrics: Sequence[Row], rows: Sequence[Row], *, title: str, format: str) -> bytes:
    """Draw loss, images/s, and the values of every protocol by step, as a picture.

    Raises:
        ValueError: matplotlib does not know the format.
    """
    from matplotlib.figure import Figure

    grouped = summarise_results(rows)
    panels: list[Panel] = list(dict.fromkeys([*_DOWNSTREAM, *((results.protocol, results.quantity) for results in grouped)]))
    num_rows = 1 + -(-len(panels) // 2)
    figure = Figure(figsize=(11, 3.5 * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, 2)
    for axis in axes.flat[2 + len(panels) :]:
        axis.set_axis_off()
    _draw_metric(axes[0, 0], metrics, "train/loss", color="tab:blue")
    axes[0, 0].set(title="Training loss", ylabel="cross-entropy")
    _draw_metric(axes[0, 1], metrics, "speed/images_per_s", color="tab:green")
    axes[0, 1].set(title="Throughput", ylabel="images/s", ylim=(0, None))
    for axis, panel in zip(axes.flat[2:], panels, strict=False):
        curves = [results for results in grouped if (results.protocol, results.quantity) == panel]
        _draw_results(axis, curves, quantity=panel[1], title=_TITLES.get(panel, f"{panel[1].capitalize()} by {panel[0]}"))
    for axis in axes.flat:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.suptitle(label_of(title))
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, format=format)
    return picture.getvalue()


def _draw_metric(axis: Any, metrics: Sequence[Row], key: str, *, color: str) -> None:
    values = [math.nan if (value := number(row, key)) is None else value for row in metrics]
    marker = "o" if sum(map(math.isfinite, values)) < FEW_POINTS else None
    axis.plot([row["step"] for row in metrics], values, color=color, marker=marker, markersize=3)
    lost = [row["step"] for row, value in zip(metrics, values, strict=True) if key in row and math.isnan(value)]
    if lost:
        axis.axvspan(lost[0], lost[-1], color="tab:red", alpha=0.1, label="not finite")
        axis.legend(fontsize=7)


def _draw_results(axis: Any, curves: Sequence[MeasureResults], *, quantity: Quantity, title: str) -> None:
    scale = 100 if quantity == "accuracy" else 1
    for results in curves:
        steps = sorted(results.by_step)
        values = [[scale * value for value in results.by_step[step]] for step in steps]
        (line,) = axis.plot(steps, [sum(v) / len(v) for v in values], marker="o", markersize=3, label=results.measure)
        axis.fill_between(steps, [min(v) for v in values], [max(v) for v in values], alpha=0.15, color=line.get_color())
        if results.reference is not None:
            label = f"{results.measure}: {results.reference.by}"
            axis.axhline(scale * results.reference.value, color=line.get_color(), linestyle="--", linewidth=1, label=label)
    axis.set(title=title, ylabel="accuracy %" if quantity == "accuracy" else "cross-entropy")
    if curves:
        aside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)} if len(curves) > 5 else {}  # many would hide the curves
        axis.legend(fontsize=7, **aside)
    else:
        axis.text(0.5, 0.5, "nothing measured", transform=axis.transAxes, ha="center", color="gray")

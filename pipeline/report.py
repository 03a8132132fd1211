"""A run's results at a glance: a table in the terminal and a picture, from the run folder's files alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.checkpoint import RunFolder
from pipeline.errors import ConfigError
from pipeline.journal import read_json_lines, read_metrics

Rows = list[dict[str, Any]]


def write_report(run_dir: Path, picture: Path | None = None) -> str:
    """Draw the curves and return the table.

    Raises:
        ConfigError: not a run folder, or one without a single line of metrics.
    """
    if not run_dir.is_dir():
        raise ConfigError(f"run folder {run_dir} does not exist")
    folder = RunFolder(run_dir)
    metrics, evaluations = read_metrics(folder.metrics), read_json_lines(folder.evaluations)
    if not metrics and not evaluations:
        raise ConfigError(f"{run_dir} has no line of metrics.jsonl or evaluations.jsonl yet; nothing to report")
    target = picture or run_dir / "report.png"
    try:
        draw(metrics, evaluations, target, title=run_dir.name)
    except (OSError, ValueError) as error:  # matplotlib's word for a format it does not know
        raise ConfigError(f"picture {target} cannot be written: {error}") from error
    return f"{summarise_training(metrics)}\n\n{tabulate_evaluations(evaluations)}\n\npicture: {target}"


def summarise_training(metrics: Rows) -> str:
    """One line: how far, how well, how fast."""
    if not metrics:
        return "no training metrics"
    first, last = metrics[0], metrics[-1]
    speeds = sorted(row["speed/images_per_s"] for row in metrics)
    return (
        f"step {last['step']}, {last['images_seen']} images seen, loss {first['train/loss']:.4g} -> {last['train/loss']:.4g}, "
        f"median {speeds[len(speeds) // 2]:.4g} images/s, {_mfu(last)}unreadable images {last['data/unreadable']}"
    )


def _mfu(line: dict[str, Any]) -> str:
    """A CPU has none."""
    return f"MFU {100 * line['speed/mfu']:.1f} %, " if "speed/mfu" in line else ""


def tabulate_evaluations(evaluations: Rows) -> str:
    """Accuracy in % by step (columns) and measure (rows); few-shot as mean and standard deviation over seeds."""
    if not evaluations:
        return "no evaluations"
    steps = sorted({row["step"] for row in evaluations})
    rows = [["accuracy %", *(f"step {step}" for step in steps)]]
    for label, by_step in group_evaluations(evaluations).items():
        rows.append([label, *(_cell(by_step.get(step, [])) for step in steps)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def group_evaluations(evaluations: Rows) -> dict[str, dict[int, list[float]]]:
    """Measure to step to its values, one a seed; a repeated result counts once."""
    unique = {(r["dataset"], r["protocol"], r["shots"] or 0, r["step"], r["seed"]): r["accuracy"] for r in evaluations}
    grouped: dict[str, dict[int, list[float]]] = {}
    for (dataset, protocol, shots, step, _), accuracy in sorted(
        unique.items(), key=lambda item: str(item[0][:2]) + f"{item[0][2]:04d}"
    ):
        label = f"{dataset} {shots}-shot" if protocol == "few_shot" else f"{dataset} {protocol}"
        grouped.setdefault(label, {}).setdefault(step, []).append(accuracy)
    return grouped


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{100 * mean:.1f}"
    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return f"{100 * mean:.1f} ± {100 * spread:.1f}"


def draw(metrics: Rows, evaluations: Rows, target: Path, *, title: str) -> None:
    """Loss, images/s, few-shot and linear accuracy by step, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), layout="constrained")
    steps = [row["step"] for row in metrics]
    axes[0, 0].plot(steps, [row["train/loss"] for row in metrics], color="tab:blue")
    axes[0, 0].set(title="Training loss", ylabel="cross-entropy")
    axes[0, 1].plot(steps, [row["speed/images_per_s"] for row in metrics], color="tab:green")
    axes[0, 1].set(title="Throughput", ylabel="images/s", ylim=(0, None))
    grouped = group_evaluations(evaluations)
    few_shot = {label: values for label, values in grouped.items() if label.endswith("-shot")}
    linear = {label: values for label, values in grouped.items() if label.endswith("linear")}
    _draw_accuracy(axes[1, 0], few_shot, title="Few-shot accuracy (mean and range over seeds)")
    _draw_accuracy(axes[1, 1], linear, title="Linear probe accuracy")
    for axis in axes.flat:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


def _draw_accuracy(axis: Any, curves: dict[str, dict[int, list[float]]], *, title: str) -> None:
    for label, by_step in curves.items():
        steps = sorted(by_step)
        values = [[100 * v for v in by_step[step]] for step in steps]
        (line,) = axis.plot(steps, [sum(v) / len(v) for v in values], marker="o", markersize=3, label=label)
        axis.fill_between(steps, [min(v) for v in values], [max(v) for v in values], alpha=0.15, color=line.get_color())
    axis.set(title=title, ylabel="accuracy %")
    if curves:
        beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)} if len(curves) > 5 else {}  # many would hide the curves
        axis.legend(fontsize=7, **beside)

"""Show what a study of choices found: means, spreads and differences, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from pipeline.benchmark.choices.variants import DEFAULT
from pipeline.console.figures import house_style
from pipeline.errors import ConfigError
from pipeline.files import write_whole


@dataclass(frozen=True)
class RunResult:
    """Holds what was measured of one run's weights.

    Attributes:
        macs: multiply-accumulates of one image's forward pass.
        images_per_s: median over the training; None for untrained weights.
        measures: accuracies in %, whose names say so, and losses.
    """

    variant: str
    seed: int
    parameters: int
    macs: int
    images_per_s: float | None
    measures: dict[str, float]

    def describe(self) -> str:
        measured = ", ".join(f"{name} {value:.{_digits(name)}f}" for name, value in self.measures.items())
        return f"{self.variant} seed {self.seed}: {measured}"


def _digits(measure: str) -> int:
    """Return how many decimals are worth showing."""
    return 1 if measure.endswith("%") else 3


@dataclass(frozen=True)
class Comparison:
    """Compares the seeds of one variant with those of the default, in one measure.

    Attributes:
        deviation: sample standard deviation over the seeds; None of one seed.
        difference: of the means.
        error: standard error of the difference; None where no variant has two seeds.
    """

    mean: float
    deviation: float | None
    difference: float | None
    error: float | None


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Return the standard deviation inside groups that is common to all.

    It is the root of the mean of their variances, weighted by degrees of freedom. Three seeds alone say little of a deviation;
    those of all variants together say more, if their spreads are alike.

    Returns:
        None where no group has two values.
    """
    freedom = sum(len(group) - 1 for group in groups if len(group) > 1)
    if freedom == 0:
        return None
    return math.sqrt(sum((len(group) - 1) * variance(group) for group in groups if len(group) > 1) / freedom)


def compare(results: Sequence[RunResult], *, measure: str) -> dict[str, Comparison]:
    """Compare every variant with the default in one measure.

    The standard error is the pooled deviation x sqrt(1/n + 1/n_default).
    """
    groups: dict[str, list[float]] = {}
    for result in results:
        if measure in result.measures:
            groups.setdefault(result.variant, []).append(result.measures[measure])
    pooled = pooled_deviation(list(groups.values()))
    found = {}
    for name, values in groups.items():
        other = [] if name == DEFAULT else groups.get(DEFAULT, [])
        found[name] = Comparison(
            mean=fmean(values),
            deviation=math.sqrt(variance(values)) if len(values) > 1 else None,
            difference=fmean(values) - fmean(other) if other else None,
            error=pooled * math.sqrt(1 / len(values) + 1 / len(other)) if other and pooled is not None else None,
        )
    return found


def measures_of(results: Sequence[RunResult]) -> list[str]:
    """Return the names of all measures, in the order of the runs' own."""
    return list(dict.fromkeys(measure for result in results for measure in result.measures))


def make_table(results: Sequence[RunResult]) -> str:
    """Return a row for each variant: mean and standard deviation over seeds, and the difference to the default."""
    measures = measures_of(results)
    compared = {measure: compare(results, measure=measure) for measure in measures}
    header = ["variant", "seeds", "parameters", "10^6 MACs", "images/s", *measures]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name in dict.fromkeys(result.variant for result in results):
        runs = [result for result in results if result.variant == name]
        speeds = [run.images_per_s for run in runs if run.images_per_s is not None]
        cells = [
            name,
            str(len(runs)),
            f"{runs[0].parameters:,}",
            f"{runs[0].macs / 1e6:.1f}",
            f"{max(speeds):.0f}" if speeds else "",  # a machine that is shared slows some runs down
            *(_cell(compared[measure].get(name), digits=_digits(measure)) for measure in measures),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(comparison: Comparison | None, *, digits: int) -> str:
    if comparison is None:
        return ""
    text = f"{comparison.mean:.{digits}f}"
    if comparison.deviation is not None:
        text += f" ± {comparison.deviation:.{digits}f}"
    if comparison.difference is not None:
        error = "" if comparison.error is None else f" ± {comparison.error:.{digits}f}"
        text += f" ({comparison.difference:+.{digits}f}{error})"
    return text


def write_json(path: Path, results: Sequence[RunResult], *, settings: Mapping[str, Any]) -> None:
    """Write every run's result, the comparisons, and what was trained.

    Raises:
        ConfigError: nothing can be written there.
    """
    values = {
        "settings": settings,
        "runs": [asdict(result) for result in results],
        "measures": {
            measure: {name: asdict(found) for name, found in compare(results, measure=measure).items()}
            for measure in measures_of(results)
        },
    }
    try:
        write_whole(path, json.dumps(values, indent=1).encode())
    except OSError as error:
        raise ConfigError(
            f"--json {path}: cannot be written ({error.strerror}); name a file in a folder that exists"
        ) from error


@house_style()
def draw(path: Path, results: Sequence[RunResult]) -> None:
    """Draw a panel for each measure: every seed as a point, the mean with the standard error of its difference to the default.

    Raises:
        ConfigError: nothing can be written there, or not in the format that the name asks for.
    """
    from matplotlib.figure import Figure

    measures = measures_of(results)
    names = list(dict.fromkeys(result.variant for result in results))
    figure = Figure(figsize=(2.6 + 2.4 * len(measures), 0.9 + 0.3 * len(names)), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axis, measure in zip(axes, measures, strict=True):
        compared = compare(results, measure=measure)
        if DEFAULT in compared:
            axis.axvline(compared[DEFAULT].mean, color="tab:gray", lw=1, ls="--")
        for row, name in enumerate(names):
            values = [run.measures[measure] for run in results if run.variant == name and measure in run.measures]
            axis.plot(values, [row] * len(values), "o", color="tab:blue", ms=4, alpha=0.45)
            if name in compared:
                error, mean = compared[name].error, compared[name].mean
                axis.errorbar(mean, row, xerr=error, fmt="|", color="tab:red", ms=9, lw=1.4, capsize=2)
        axis.set(title=measure)
        axis.set_yticks(range(len(names)), names)
        axis.grid(alpha=0.25)
    axes[0].invert_yaxis()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: cannot be written ({error}); name a .png in a folder that exists") from error

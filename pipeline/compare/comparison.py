"""Compare two folders: configurations, origins, lines of metrics, evaluations, and what follows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.compare.curves import TOLERANCES, Key, Samples, Series, align, compare_samples, compare_series
from pipeline.compare.folders import Course, Folder, read_folder
from pipeline.compare.origins import Origins, compare_origins
from pipeline.compare.scores import Score, compare_scores
from pipeline.compare.settings import Settings, compare_settings
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Comparison:
    """Holds everything that is shown of two runs.

    Attributes:
        a: folder of run A.
        settings: None where a folder has no configuration.
        key: what lines are aligned by: steps, or images seen where batches differ.
        samples: None where no line is common.
        series: learning rate, loss, gradient norm; empty where no line is common.
        weights_differ_at: first step whose weights both runs have and that differ; None where none does.
        weights_compared: number of steps whose weights both have.
        problems: what could not be read.
    """

    a: str
    b: str
    settings: Settings | None
    origins: Origins
    key: Key
    samples: Samples | None
    series: dict[str, Series]
    scores: list[Score]
    courses: tuple[Course, Course]
    weights_differ_at: int | None
    weights_compared: int
    problems: list[str]


def compare_folders(a: Path, b: Path) -> Comparison:
    """Compare two folders. Only files are read.

    Raises:
        ConfigError: a folder is neither a run's nor an evaluated model's, both are the same one, or nothing can be compared.
    """
    if a.is_dir() and b.is_dir() and a.samefile(b):
        raise ConfigError(f"{a} and {b} are the same folder; name two runs")
    one, other = read_folder(a), read_folder(b)
    origins = compare_origins(one, other)
    settings = _compare_configs(one, other, origins)
    key: Key = "images_seen" if _batches_differ(one, other) else "step"
    pairs = align(one.lines, other.lines, key=key)
    precision = _coarser(settings)
    series = {name: compare_series(pairs, name=name, precision=precision) for name in TOLERANCES} if pairs else {}
    scores = compare_scores(one.results, other.results)
    ours, theirs = one.course.digests, other.course.digests
    saved = sorted(ours.keys() & theirs.keys())
    if settings is None and not pairs and not scores and not saved:
        raise ConfigError(
            f"{a} and {b} have nothing in common: no two configurations, no line of metrics at the same step, no measure that "
            "both were evaluated by, no weights of the same step"
        )
    return Comparison(
        a=str(a),
        b=str(b),
        settings=settings,
        origins=origins,
        key=key,
        samples=compare_samples(pairs) if pairs else None,
        series=series,
        scores=scores,
        courses=(one.course, other.course),
        weights_differ_at=next((step for step in saved if ours[step] != theirs[step]), None),
        weights_compared=len(saved),
        problems=[f"{folder.root}: {problem}" for folder in (one, other) for problem in folder.problems],
    )


def _compare_configs(a: Folder, b: Folder, origins: Origins) -> Settings | None:
    if a.config is None or b.config is None:
        return None
    alike = {"data.train"} if origins.data.sameness == "the same" else set[str]()
    if a.initial is not None and origins.initial.sameness == "the same":
        alike.add("init_from")
    return compare_settings(a.config, b.config, alike=frozenset(alike))


def _batches_differ(a: Folder, b: Folder) -> bool:
    """Return whether a step of one run has another number of images than one of the other."""
    batches = [_images_per_step(folder) for folder in (a, b)]
    return None not in batches and batches[0] != batches[1]


def _images_per_step(folder: Folder) -> float | None:
    line = folder.lines[-1] if folder.lines else {}
    if line.get("step") and isinstance(line.get("images_seen"), int):
        return line["images_seen"] / line["step"]
    return folder.global_batch_size


def _coarser(settings: Settings | None) -> Literal["fp32", "bf16"]:
    """Return the coarser precision of two trainings. Where nothing says, less is called a difference."""
    return "fp32" if settings is not None and settings.precision == ("fp32", "fp32") else "bf16"

"""Choose the lines of evaluations.jsonl that are results of the run's present weights. This module imports nothing heavy.

A line names the digest of the weights it was measured on. Weights are replaced when a run begins again, or returns to an older
checkpoint and trains differently. Then results of the earlier weights are superseded.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.json_text import parse_json
from pipeline.run.folder import WEIGHTS_SUFFIX, RunFolder, WeightsKind, WeightsName
from pipeline.run.records import Row, has_step, is_count, number, read_json_lines

SUPERSEDED = "superseded-"
GROUPS = "groups"  # key of lines of sets that belong to a group: the number of sets of each, by name
WEIGHTS_KIND = "weights_kind"  # key of lines that are of averaged weights
Quantity = Literal["accuracy", "loss"]
"""What a line's value is, and its key there: a part of 1, which is better when higher, or a loss, better when lower."""
_MOST_HEADER_BYTES = 100 * 2**20  # safetensors' own limit


@dataclass(frozen=True)
class Results:
    """Holds the lines that count, in the order they were written, and a description of those that do not."""

    rows: list[Row]
    passed_over: list[str]


@dataclass(frozen=True)
class Reference:
    """Says what others have reached, to compare with: a part of 1, or a loss."""

    value: float
    by: str  # who has measured it, and when in training

    @classmethod
    def of_row(cls, row: Row) -> Reference | None:
        found = row.get("reference")
        if not isinstance(found, dict):
            return None
        value, by = number(found, "value"), found.get("by")
        return cls(value, by) if value is not None and isinstance(by, str) else None


@dataclass(frozen=True)
class MeasureResults:
    """Holds the values of one measure by step, one a seed."""

    measure: str
    protocol: str
    quantity: Quantity
    by_step: dict[int, list[float]]
    reference: Reference | None

    def show(self, value: float) -> str:
        """Return a value in words: `45.2 %`, or a loss as `2.3145`."""
        return show_value(value, self.quantity)


def show_value(value: float, quantity: Quantity) -> str:
    """Return a value in words: `45.2 %`, or a loss as `2.3145`."""
    return f"{100 * value:.1f} %" if quantity == "accuracy" else f"{value:.5g}"


def value_of(row: Row) -> float | None:
    """Return a result's value; None where the measurement failed."""
    return number(row, quantity_of(row))


def quantity_of(row: Row) -> Quantity:
    """Return what a result's value is."""
    return "loss" if "loss" in row else "accuracy"


def read_results(folder: RunFolder) -> Results:
    """Return the results of a run. An unreadable line is named, and only that line is lost."""
    try:
        rows = read_json_lines(folder.evaluations)
    except OSError as error:
        return Results([], [f"{folder.evaluations.name} cannot be read: {error.strerror}"])
    return choose_results(folder, rows)


def choose_results(folder: RunFolder, rows: Sequence[Row]) -> Results:
    """Return which of the lines are results of weights that the run has."""
    whole = [row for row in rows if is_result(row)]
    current = [row for row in whole if is_current(folder, row)]
    passed_over = []
    if len(whole) < len(rows):
        passed_over.append(f"{_lines(len(rows) - len(whole))} of {folder.evaluations.name} passed over: not a result")
    if len(current) < len(whole):
        superseded = _lines(len(whole) - len(current))
        passed_over.append(f"{superseded} of {folder.evaluations.name} passed over: of weights that were replaced since")
    return Results(current, passed_over)


def _lines(count: int) -> str:
    return f"{count} line{'s' * (count > 1)}"


def is_result(row: Row) -> bool:
    """Return whether a line has what a result needs. A value that is null means that a measurement failed."""
    named = all(isinstance(row.get(key), str) for key in ("dataset", "protocol")) and setting_of(row) is not None
    measured = row.get(quantity_of(row)) is None or value_of(row) is not None
    return has_step(row) and named and measured and isinstance(row.get("seed"), int | None)


def is_current(folder: RunFolder, row: Row) -> bool:
    """Return whether a result is of the weights that the run has at this step, or had before somebody deleted them."""
    digest = row.get("weights")
    if not isinstance(digest, str):
        return True  # the line does not say
    weights = weights_of_row(row)
    now = read_digest(folder.weights_of(weights.step, weights.kind))
    if now is not None:
        return now == digest
    return read_digest(superseded_weights(folder, weights.step, weights.kind)) != digest


def weights_of_row(row: Row) -> WeightsName:
    """Return the weights that a result is of. A line of raw weights does not say so."""
    return WeightsName(row["step"], "average" if row.get(WEIGHTS_KIND) == "average" else "raw")


def superseded_weights(folder: RunFolder, step: int, kind: WeightsKind = "raw") -> Path:
    """Return where a launch puts weights of steps that it will train again."""
    return folder.weights / f"{SUPERSEDED}{WeightsName(step, kind).stem}{WEIGHTS_SUFFIX}"


def set_weights_aside(folder: RunFolder, *, after: int) -> list[int]:
    """Rename weights of steps after `after` so that no reader takes them for the run's.

    A launch that begins there trains those steps again.

    Returns:
        The steps.
    """
    names = [weights for weights in folder.weight_names() if weights.step > after]
    for weights in names:
        folder.weights_of(weights.step, weights.kind).replace(superseded_weights(folder, weights.step, weights.kind))
    return sorted({weights.step for weights in names})


def measure_of(row: Row) -> str:
    """Return the name of a result's measure: the set, and how it was measured."""
    average = " (average)" if weights_of_row(row).kind == "average" else ""
    return f"{row['dataset']} {setting_of(row)}{average}"


def setting_of(row: Row) -> str | None:
    """Return how it was measured: `5-shot`, `linear`. Older lines say it by protocol and shots. None means no result."""
    if "measure" in row:
        measure = row["measure"]
    elif row.get("protocol") != "few_shot":
        measure = row.get("protocol")
    else:
        measure = f"{row['shots']}-shot" if is_count(row.get("shots")) else None
    return measure if isinstance(measure, str) else None


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort `5-shot` before `10-shot`."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def newest_of_each(rows: Sequence[Row]) -> list[Row]:
    """Keep the later line of a repeated measurement, for example under another precision. A later failure removes no value."""
    found: dict[tuple[str, int, object], Row] = {}
    for row in rows:
        key = (measure_of(row), row["step"], row.get("seed"))
        if value_of(row) is not None or value_of(found.get(key, row)) is None:
            found[key] = row
    return list(found.values())


def group_results(rows: Sequence[Row]) -> list[MeasureResults]:
    """Return each measure's values by step, one a seed, by set and protocol. Of a repeated result the later counts."""
    groups: dict[str, list[Row]] = {}
    for row in newest_of_each(rows):
        if value_of(row) is not None:
            groups.setdefault(measure_of(row), []).append(row)
    found = []
    for measure, group in groups.items():
        by_step: dict[int, list[float]] = {}
        for row in group:
            value = value_of(row)
            assert value is not None
            by_step.setdefault(row["step"], []).append(value)
        last = max(group, key=lambda row: row["step"])
        order = (last["dataset"], last["protocol"], _natural(setting_of(last) or ""), measure)
        found.append((order, MeasureResults(measure, last["protocol"], quantity_of(last), by_step, Reference.of_row(last))))
    return [results for _, results in sorted(found, key=lambda pair: pair[0])]


def group_means(rows: Sequence[Row]) -> list[MeasureResults]:
    """Return means over groups of sets, by group and way of measuring. A set counts by its mean over seeds.

    A step where fewer sets are measured than at another has no mean: it could not be compared.
    """
    members: dict[tuple[str, str, Quantity, str], dict[str, dict[int, list[float]]]] = {}
    sizes: dict[str, int] = {}
    for row in newest_of_each(rows):
        value, groups = value_of(row), row.get(GROUPS)
        if value is None or not isinstance(groups, dict):
            continue
        measured = measure_of(row).removeprefix(f"{row['dataset']} ")
        for group, size in groups.items():
            if is_count(size):
                sizes[group] = size
                key = (group, row["protocol"], quantity_of(row), measured)
                members.setdefault(key, {}).setdefault(row["dataset"], {}).setdefault(row["step"], []).append(value)
    found = []
    for (group, protocol, quantity, measured), sets in members.items():
        counts = {step: sum(step in by_step for by_step in sets.values()) for by_step in sets.values() for step in by_step}
        most = max(counts.values())
        means = {
            step: [sum(sum(of[step]) / len(of[step]) for of in sets.values() if step in of) / most]
            for step, count in sorted(counts.items())
            if count == most
        }
        name = f"mean of {most}{f' of {sizes[group]}' if most < sizes[group] else ''} {group} sets, {measured}"
        found.append(((group, protocol, _natural(measured)), MeasureResults(name, protocol, quantity, means, None)))
    return [results for _, results in sorted(found, key=lambda pair: pair[0])]


def summarise_results(rows: Sequence[Row]) -> list[MeasureResults]:
    """Return what readers are shown: every measure, then the means over groups of sets."""
    return [*group_results(rows), *group_means(rows)]


def name_failures(rows: Sequence[Row], *, run: Path) -> list[str]:
    """Return what failed at the newest step it was tried at, and why: a line for a set and a reason, then what to type."""
    newest: dict[str, int] = {}
    for row in rows:
        newest[measure_of(row)] = max(row["step"], newest.get(measure_of(row), 0))
    last = {(measure_of(row), row.get("seed")): row for row in rows if row["step"] == newest[measure_of(row)]}
    measured = {(found.measure, step) for found in group_results(rows) for step in found.by_step}
    groups: dict[tuple[str, object, int, bool], dict[str, None]] = {}
    for (measure, _), row in last.items():
        if value_of(row) is None:
            key = (row["dataset"], row.get("error"), row["step"], (measure, row["step"]) in measured)
            groups.setdefault(key, {})[measure.removeprefix(f"{row['dataset']} ")] = None
    failures = []
    for (dataset, reason, step, has_value), settings in groups.items():
        verb = "has" if len(settings) == 1 else "have"
        what = "failed again" if has_value else f"{verb} no result"
        failures.append(
            f"{dataset} {', '.join(settings)} {what} at step "
            f"{step}{f': {reason}' if isinstance(reason, str) and reason else ''}"
        )
    return [
        *failures,
        *([f"`python -m pipeline evaluate {shlex.quote(str(run))}` retries what failed"] if failures else []),
    ]


def read_digest(path: Path) -> str | None:
    """Return the digest in a weights file's header; None if there is no such file or header."""
    try:
        stat = path.stat()
        return _read_digest(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, ValueError):
        return None


@functools.lru_cache(maxsize=4096)
def _read_digest(path: Path, _mtime_ns: int, size: int) -> str | None:
    """Read the digest again only when the file changes. Eight bytes give the header's length, then comes JSON."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_MOST_HEADER_BYTES, size):
            return None
        header = parse_json(file.read(length))
    found = header.get("__metadata__") if isinstance(header, dict) else None
    digest = found.get("digest") if isinstance(found, dict) else None
    return digest if isinstance(digest, str) else None

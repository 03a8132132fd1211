"""Find where the lines of metrics of two runs begin to differ: samples, learning rates, losses, gradient norms.

The rule for rounding: a relative difference |a - b| / max(|a|, |b|) up to a tolerance is what another order of sums explains.
In fp32 losses of other numbers of ranks differ by 3.5e-6 at most over 39 steps (docs/checkpoints.md), and tests hold them to
1e-5 and gradient norms to 1e-3 (tests/laws/test_elastic.py). In bf16 tests hold losses to 2 % of those of fp32, and gradient
norms to 10 % (tests/laws/test_parity.py). Training amplifies rounding. So a difference that was there before, below the
tolerance, and grew past it by less than a hundred times between two lines is rounding that has grown. One that was not there,
or grew by more, is sudden: something else changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.data.streams.train import DIGEST_MODULUS
from pipeline.run.records import Row, is_count, number

SUDDEN = 100.0  # times, from one common line to the next
TOLERANCES: dict[str, dict[str, float]] = {
    "train/learning_rate": {"fp32": 1e-6, "bf16": 1e-6},  # computed in fp64 from the step alone
    "train/loss": {"fp32": 1e-5, "bf16": 0.02},
    "train/gradient_norm": {"fp32": 1e-3, "bf16": 0.1},
}
Key = Literal["step", "images_seen"]
Pattern = Literal["equal", "within rounding", "grown from rounding", "sudden", "not compared"]


@dataclass(frozen=True)
class Pair:
    """Holds two lines at the same point, and the point before, where both runs have a line too (0: the start)."""

    key: Key
    before: int
    at: int
    a: list[Row]  # the lines of run A since `before`; the last is at the point
    b: list[Row]


@dataclass(frozen=True)
class Samples:
    """Says where the samples of two runs begin to differ.

    Attributes:
        compared: number of common lines that have a digest.
        last: the last of them; None where there is none.
        after: last point up to which everything seen is the same; None where nothing differs.
        at: first common line whose digest differs.
        differing: intervals between common lines whose samples differ.
        intervals: all intervals.
    """

    compared: int
    last: int | None
    after: int | None
    at: int | None
    differing: int
    intervals: int


@dataclass(frozen=True)
class Series:
    """Says where one number of two runs begins to differ.

    Attributes:
        first: first common line where it differs at all.
        beyond: first line where it differs by more than `tolerance`.
        a: value of run A at `beyond`, else at `first`.
        b: value of run B there.
        relative: the relative difference there.
        largest: the largest relative difference.
        passing: lines of a loss that differ by more, and are passed over because equal ones follow.
    """

    name: str
    compared: int
    tolerance: float
    pattern: Pattern
    first: int | None = None
    beyond: int | None = None
    a: float | None = None
    b: float | None = None
    relative: float | None = None
    largest: float = 0.0
    passing: int = 0


def align(a: Sequence[Row], b: Sequence[Row], *, key: Key) -> list[Pair]:
    """Return the points at which both runs have a line, in order, with the lines since the point before.

    Args:
        key: `images_seen` where batches differ, so that a step of one run is not one of the other.
    """
    indexed = [{row[key]: row for row in rows if is_count(row.get(key))} for rows in (a, b)]
    points = sorted(indexed[0].keys() & indexed[1].keys())
    pairs = []
    for before, at in zip([0, *points], points, strict=False):
        within = [[row for point, row in rows.items() if before < point <= at] for rows in indexed]
        if all(within):
            pairs.append(Pair(key, before, at, within[0], within[1]))
    return pairs


def compare_samples(pairs: Sequence[Pair]) -> Samples:
    """Compare digests. A digest is of every image since the start of the run (its position, its number in the shards, and its
    pixels after cropping and augmentation), so that equal digests at one line mean equal samples up to it.
    """
    known = [(pair, _digest(pair.a[-1]), _digest(pair.b[-1])) for pair in pairs]
    points = [(pair.at, a, b) for pair, a, b in known if a is not None and b is not None]
    offsets = [0, *((b - a) % DIGEST_MODULUS for _, a, b in points)]
    differing = sum(one != other for one, other in itertools.pairwise(offsets))
    first = next((index for index, (_, a, b) in enumerate(points) if a != b), None)
    last = points[-1][0] if points else None
    if first is None:
        return Samples(len(points), last, None, None, 0, len(points))
    return Samples(len(points), last, points[first - 1][0] if first else 0, points[first][0], differing, len(points))


def _digest(row: Row) -> int | None:
    value: Any = row.get("data/digest")
    return value if is_count(value) else None


def compare_series(pairs: Sequence[Pair], *, name: str, precision: Literal["fp32", "bf16"]) -> Series:
    """Compare one number of the lines.

    A loss is a mean over the steps since the line before, so that lines between two common points are averaged. Other numbers
    are of the step itself.

    Args:
        precision: the coarser one of the two runs.
    """
    tolerance = TOLERANCES[name][precision]
    points = [(pair.at, *_values(pair, name)) for pair in pairs if any(name in row for row in (pair.a[-1], pair.b[-1]))]
    relative = [_relative(a, b) for _, a, b in points]
    if not points:
        return Series(name, 0, tolerance, "not compared")
    relative, passing = _pass_over(relative, tolerance=tolerance) if name == "train/loss" else (relative, 0)
    first = next((index for index, value in enumerate(relative) if value > 0), None)
    if first is None:
        return Series(name, len(points), tolerance, "equal", passing=passing)
    beyond = next((index for index, value in enumerate(relative) if value > tolerance), None)
    shown = first if beyond is None else beyond
    pattern: Pattern = "within rounding"
    if beyond is not None:
        before = relative[beyond - 1] if beyond else 0.0
        pattern = "grown from rounding" if 0 < before <= tolerance and relative[beyond] < SUDDEN * before else "sudden"
    at, a, b = points[shown]
    return Series(
        name,
        len(points),
        tolerance,
        pattern,
        first=points[first][0],
        beyond=None if beyond is None else at,
        a=a,
        b=b,
        relative=relative[shown],
        largest=max(relative),
        passing=passing,
    )


def _pass_over(relative: list[float], *, tolerance: float) -> tuple[list[float], int]:
    """Return differences of losses without those beyond rounding that equal losses follow, and the number of these.

    Trainings that part do not become equal again. A line after a resume is a mean over fewer steps than it seems.
    """
    last_equal = max((index for index, value in enumerate(relative) if value == 0), default=-1)
    passing = [index < last_equal and value > tolerance for index, value in enumerate(relative)]
    return [0.0 if passes else value for value, passes in zip(relative, passing, strict=True)], sum(passing)


def _values(pair: Pair, name: str) -> tuple[float | None, float | None]:
    if name != "train/loss":
        return number(pair.a[-1], name), number(pair.b[-1], name)
    return _mean(pair.a, pair), _mean(pair.b, pair)


def _mean(rows: Sequence[Row], pair: Pair) -> float | None:
    """Return the mean loss over the steps of several lines; of one line its own value, to the last bit."""
    losses = [number(row, "train/loss") for row in rows]
    if len(rows) == 1 or None in losses:
        return losses[-1] if len(rows) == 1 else None
    starts = [pair.before, *(row[pair.key] for row in rows[:-1])]
    weights = [row[pair.key] - start for row, start in zip(rows, starts, strict=True)]
    return sum((loss or 0.0) * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)


def _relative(a: float | None, b: float | None) -> float:
    """Return |a - b| / max(|a|, |b|); 1 where one of them is not finite."""
    if a == b:
        return 0.0
    if a is None or b is None:
        return 1.0
    return abs(a - b) / max(abs(a), abs(b))

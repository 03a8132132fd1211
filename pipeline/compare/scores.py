"""Put the evaluations of two runs side by side, and test whether they differ by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from pipeline.compare.statistics import LEVEL, Tested, compare_pairs, compare_proportions, correct
from pipeline.run.evaluations import Quantity, measure_of, newest_of_each, quantity_of, value_of
from pipeline.run.records import Row, number

Chance = Literal["test images", "seeds"]
Judgement = Literal["more than chance", "not more than chance", "not tested"]
CONDITIONS = ("protocol_version", "data", "short_side", "precision", "train_images", "test_images", "support", "support_images")
"""Keys of a line that say how it was measured, with the set's fingerprint."""


@dataclass(frozen=True)
class Score:
    """Holds one measure of two runs, at one step of each.

    Attributes:
        a: mean over `seeds`, or over all seeds where none is common; a part of 1, or a loss.
        difference: b - a.
        seeds: seeds that both runs have; empty for a measure without seeds.
        p_images: p-value over the choice of test images; None for a loss or a score that is no part of the images.
        p_seeds: p-value over the seeds, paired.
        p: the larger of both: a difference has to be beyond either chance.
        p_corrected: `p` after Holm's correction for the number of measures that are tested.
        interval: 95 % interval of the difference that belongs to `p`.
        by: which chance `p` and `interval` are over.
        conditions: what differs in how it was measured: name, value of A, value of B.
        common_steps: steps at which both runs have the measure.
        higher_in_a: those of them where run A's value is the higher one.
        judgement: whether `p_corrected` is below 0.05.
    """

    measure: str
    quantity: Quantity
    step_a: int
    step_b: int
    a: float
    b: float
    difference: float
    seeds: list[int]
    p_images: float | None
    p_seeds: float | None
    p: float | None
    interval: tuple[float, float] | None
    by: Chance | None
    conditions: list[tuple[str, str, str]]
    common_steps: list[int]
    higher_in_a: int
    p_corrected: float | None = None
    judgement: Judgement = "not tested"


def compare_scores(a: Sequence[Row], b: Sequence[Row]) -> list[Score]:
    """Compare each measure that both runs have: at the newest common step, else at the newest of each.

    Args:
        a: results of run A that count (`read_results`).
        b: results of run B.
    """
    groups = [_group(rows) for rows in (a, b)]
    scores = [_compare(measure, groups[0][measure], groups[1][measure]) for measure in groups[0] if measure in groups[1]]
    tested = [score for score in scores if score.p is not None]
    corrected = dict(
        zip((score.measure for score in tested), correct([score.p for score in tested if score.p is not None]), strict=True)
    )
    return [_judge(score, corrected.get(score.measure)) for score in scores]


def _judge(score: Score, p: float | None) -> Score:
    if p is None:
        return score
    return replace(score, p_corrected=p, judgement="more than chance" if p < LEVEL else "not more than chance")


def _group(rows: Sequence[Row]) -> dict[str, dict[int, list[Row]]]:
    """Return the lines with values, by measure and step."""
    groups: dict[str, dict[int, list[Row]]] = {}
    for row in newest_of_each(rows):
        if value_of(row) is not None:
            groups.setdefault(measure_of(row), {}).setdefault(row["step"], []).append(row)
    return dict(sorted(groups.items()))


def _compare(measure: str, a: dict[int, list[Row]], b: dict[int, list[Row]]) -> Score:
    common = sorted(a.keys() & b.keys())
    step_a, step_b = (common[-1], common[-1]) if common else (max(a), max(b))
    seeds, ours, theirs = _choose_seeds(a[step_a], b[step_b])
    first, second = _mean(ours), _mean(theirs)
    by_images = _test_images(ours, theirs)
    by_seeds = compare_pairs([_value(y) - _value(x) for x, y in zip(ours, theirs, strict=True)]) if seeds else None
    tests: list[tuple[Chance, Tested]] = []
    if by_images is not None:
        tests.append(("test images", by_images))
    if by_seeds is not None:
        tests.append(("seeds", by_seeds))
    by, decisive = max(tests, key=lambda pair: pair[1].p, default=(None, None))
    chosen = [_choose_seeds(a[step], b[step]) for step in common]
    return Score(
        measure=measure,
        quantity=quantity_of(ours[0]),
        step_a=step_a,
        step_b=step_b,
        a=first,
        b=second,
        difference=second - first,
        seeds=seeds,
        p_images=None if by_images is None else by_images.p,
        p_seeds=None if by_seeds is None else by_seeds.p,
        p=None if decisive is None else decisive.p,
        interval=None if decisive is None else (decisive.low, decisive.high),
        by=by,
        conditions=_differing_conditions(ours[0], theirs[0]),
        common_steps=common,
        higher_in_a=sum(_mean(x) > _mean(y) for _, x, y in chosen),
    )


def _choose_seeds(a: list[Row], b: list[Row]) -> tuple[list[int], list[Row], list[Row]]:
    """Return the common seeds and their lines in the same order; all lines where no seed is common."""
    found = [{row["seed"]: row for row in rows if row.get("seed") is not None} for rows in (a, b)]
    seeds = sorted(found[0].keys() & found[1].keys())
    if not seeds:
        return [], a, b
    return seeds, [found[0][seed] for seed in seeds], [found[1][seed] for seed in seeds]


def _test_images(a: list[Row], b: list[Row]) -> Tested | None:
    """Compare means of proportions. A mean over seeds is of the same test images, so their number is not multiplied."""
    counts = [min((_count_images(row) for row in rows), default=0) for rows in (a, b)]
    if 0 in counts:
        return None
    return compare_proportions(_mean(a), _mean(b), count_a=counts[0], count_b=counts[1])


def _count_images(row: Row) -> int:
    """Return the number of test images behind a proportion; 0 for losses and scores, whose lines have no `ci95`."""
    images = number(row, "test_images")
    if number(row, "ci95") is None or images is None or not 0 <= _value(row) <= 1:
        return 0
    return max(0, int(images))


def _differing_conditions(a: Row, b: Row) -> list[tuple[str, str, str]]:
    """Return what differs in how two values were measured. A line of older software may not say it."""
    known = [{"protocol_version": 1, **row} for row in (a, b)]
    return [
        (key, str(known[0][key]), str(known[1][key]))
        for key in CONDITIONS
        if key in known[0] and key in known[1] and known[0][key] != known[1][key]
    ]


def _mean(rows: Sequence[Row]) -> float:
    return fmean(_value(row) for row in rows)


def _value(row: Row) -> float:
    found = value_of(row)
    assert found is not None  # `_group` keeps lines with values
    return found

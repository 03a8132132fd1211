"""Print a comparison of two runs for a terminal: what they were, where they part, how they end, and why."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from pipeline.compare.comparison import Comparison
from pipeline.compare.curves import Series
from pipeline.compare.scores import Score
from pipeline.compare.settings import Setting
from pipeline.compare.verdict import Verdict
from pipeline.run.evaluations import show_value

WIDEST_VALUE = 40
WIDTH = 120
NAMES = {"train/learning_rate": "learning rate", "train/loss": "loss", "train/gradient_norm": "gradient norm"}
INFLUENCES = {
    "numbers": "can change numbers",
    "rounding": "change the order or precision of sums",
    "none": "cannot change numbers",
}


def to_text(found: Comparison, verdicts: Sequence[Verdict]) -> str:
    """Return the whole text."""
    parts = [
        [f"A  {found.a}", f"B  {found.b}"],
        ["configuration", *_indent(_settings(found))],
        ["began with", *_indent(_origins(found))],
        ["training", *_indent(_training(found))],
        ["evaluations", *_indent(_scores(found))],
        ["course", *_indent(_courses(found))],
        *([["passed over", *_indent(f"! {problem}" for problem in found.problems)]] if found.problems else []),
        ["likely reasons, in order", *_indent(f"{rank}. {each.text}" for rank, each in enumerate(verdicts, start=1))],
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def _indent(lines: Iterator[str]) -> Iterator[str]:
    """Indent lines, and break long sentences. Rows of tables begin with spaces and stay whole."""
    for line in lines:
        if line.startswith(" "):
            yield f"  {line}".rstrip()
        else:
            yield from textwrap.wrap(
                line, WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
            )


def _settings(found: Comparison) -> Iterator[str]:
    settings = found.settings
    if settings is None:
        yield "not compared: a folder without config.yaml is among them"
        return
    if settings.note is not None:
        yield f"! {settings.note}"
    for influence, title in INFLUENCES.items():
        group = [each for each in settings.settings if each.influence == influence]
        if group:
            yield from (f"{title}:", *_tabulate_settings(group))
    if not settings.settings:
        yield "no setting differs"
    if settings.effects:
        yield from ("what follows:", *_tabulate_settings(settings.effects))


def _tabulate_settings(settings: Sequence[Setting]) -> Iterator[str]:
    return _tabulate([("", "A", "B"), *((each.key, _short(each.a), _short(each.b)) for each in settings)])


def _short(text: str) -> str:
    """Shorten a value in the middle: paths differ at their ends."""
    if len(text) <= WIDEST_VALUE:
        return text
    half = (WIDEST_VALUE - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def _tabulate(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _origins(found: Comparison) -> Iterator[str]:
    origins = found.origins
    named = {"data": origins.data, "weights": origins.initial, "software": origins.software, "ranks": origins.ranks}
    for name, origin in named.items():
        yield f"{name:<9} {origin.text if origin.sameness != 'unknown' else f'unknown: {origin.text}'}"
    if found.settings is not None and found.settings.precision[0] == found.settings.precision[1]:
        yield f"precision {found.settings.precision[0]} in both"
    elif found.settings is not None:
        yield f"precision {found.settings.precision[0]} and {found.settings.precision[1]}"


def _training(found: Comparison) -> Iterator[str]:
    if found.samples is None:
        yield f"no line of metrics at the same {_unit(found)} in both"
    else:
        if found.key == "images_seen":
            yield "batches differ: lines are compared at the same number of images seen, not at the same step"
        yield f"samples: {_samples(found)}"
        yield from (f"{NAMES[name]}: {_series(found, series)}" for name, series in found.series.items())
    if found.weights_differ_at is not None:
        yield f"weights: differ at step {found.weights_differ_at}, of {found.weights_compared} common steps"
    elif found.weights_compared:
        yield f"weights: equal to the last bit at all {found.weights_compared} common steps"


def _samples(found: Comparison) -> str:
    samples = found.samples
    assert samples is not None
    if not samples.compared:
        return "unknown, the lines have no data/digest"
    if samples.at is None:
        return f"the same in all {samples.compared} common lines, up to {_unit(found)} {samples.last}"
    return (
        f"differ first between {_unit(found)} {samples.after} and {_unit(found)} {samples.at}, and in {samples.differing} of "
        f"{samples.intervals} intervals between common lines"
    )


def _series(found: Comparison, series: Series) -> str:
    unit, passing = _unit(found), ""
    if series.passing:
        passing = (
            f"; not counted: {series.passing} that differ though equal ones follow (after a resume a line may be a mean over "
            "fewer steps)"
        )
    values = " and ".join("not finite" if value is None else f"{value:.7g}" for value in (series.a, series.b))
    if series.pattern == "not compared":
        return "not recorded"
    if series.pattern == "equal":
        count = f"{'all ' * (not series.passing)}{series.compared - series.passing}"
        return f"equal to the last digit in {count} common lines{passing}"
    first = f"differs first at {unit} {series.first}"
    if series.beyond is None:
        largest = f"{series.largest:.2g} relative at most, tolerance {series.tolerance:g}"
        return f"{first} ({values}), within rounding: {largest}{passing}"
    return (
        f"{first}; beyond rounding ({series.tolerance:g}) from {unit} {series.beyond} on, {series.pattern} ({values}, "
        f"{series.relative:.2g} relative; {series.largest:.2g} at most){passing}"
    )


def _unit(found: Comparison) -> str:
    return "step" if found.key == "step" else "image"


def _scores(found: Comparison) -> Iterator[str]:
    if not found.scores:
        yield "no measure that both have"
        return
    rows = [("measure", "step", "A", "B", "B - A", "95 % interval", "by", "p", "corrected", "")]
    yield from _tabulate([*rows, *(_score_row(score) for score in found.scores)])
    tested = sum(score.p is not None for score in found.scores)
    if tested:
        yield (
            f"{tested} measure{'s' * (tested != 1)} tested; p is corrected for their number (Holm). Parts of the test images "
            "are compared by the normal approximation of two proportions, with Newcombe's interval, seeds by Student's t over "
            "pairs; the larger p counts."
        )
    apart = [score.measure for score in found.scores if score.step_a != score.step_b]
    if apart:
        yield f"! at no common step: {', '.join(apart)}; the newest of each is shown"
    for score in found.scores:
        for name, a, b in score.conditions:
            yield f"! {score.measure}: {name} differs: {_short(a)} and {_short(b)}"


def _score_row(score: Score) -> tuple[str, ...]:
    step = str(score.step_a) if score.step_a == score.step_b else f"{score.step_a}/{score.step_b}"
    percent = score.quantity == "accuracy"
    scale, unit = (100, " points") if percent else (1, "")
    interval = "-" if score.interval is None else f"{scale * score.interval[0]:+.2f} to {scale * score.interval[1]:+.2f}"
    seeds = f" ({len(score.seeds)} pairs)" if score.by == "seeds" else ""
    return (
        score.measure,
        step,
        f"{100 * score.a:.2f} %" if percent else show_value(score.a, "loss"),
        f"{100 * score.b:.2f} %" if percent else show_value(score.b, "loss"),
        f"{scale * score.difference:+.2f}{unit}" if percent else f"{score.difference:+.5g}",
        interval,
        "-" if score.by is None else f"{score.by}{seeds}",
        "-" if score.p is None else f"{score.p:.2g}",
        "-" if score.p_corrected is None else f"{score.p_corrected:.2g}",
        "" if score.judgement == "not tested" else score.judgement,
    )


def _courses(found: Comparison) -> Iterator[str]:
    a, b = found.courses
    alerts = [", ".join(f"{count} {kind}" for kind, count in course.alerts.items()) or "none" for course in (a, b)]
    rows = [
        ("", "A", "B"),
        ("state", a.state, b.state),
        ("last step", _text(a.last_step), _text(b.last_step)),
        ("images/s, median", _text(a.images_per_s), _text(b.images_per_s)),
        ("unreadable images", _text(a.unreadable), _text(b.unreadable)),
        ("reads retried", _text(a.retries), _text(b.retries)),
        ("skipped steps", _text(a.skipped_steps), _text(b.skipped_steps)),
        ("launches that went back", _text(a.repeats), _text(b.repeats)),
        ("alerts", *alerts),
    ]
    return _tabulate([tuple(_short(cell) for cell in row) for row in rows])


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"

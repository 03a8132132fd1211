"""Name likely reasons for a difference, the one that explains the others first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.compare.comparison import Comparison
from pipeline.compare.curves import Series
from pipeline.compare.settings import Influence

Reason = Literal[
    "learning rate",
    "settings",
    "first weights",
    "data",
    "samples",
    "masks by rank",
    "skipped steps",
    "length",
    "measured differently",
    "loss",
    "rounding",
    "more than chance",
    "chance",
    "nothing",
]
SHOWN_KEYS = 5
CHANCE = (
    "Chance is that of the test images and of the few-shot draws; two trainings of one configuration with other seeds differ "
    "by more than that"
)


@dataclass(frozen=True)
class Verdict:
    """Holds one reason, in a word for programs and in a sentence for people."""

    reason: Reason
    text: str


def judge(found: Comparison) -> list[Verdict]:
    """Return what explains the difference between two runs: causes before their effects."""
    causes = list(_causes_in_training(found))
    reasons = [*causes, *_causes_in_measuring(found), *_effects(found, explained=bool(causes))]
    if reasons:
        return reasons
    compared = [what for what, known in (("lines", found.samples), ("evaluations", found.scores)) if known]
    what = " and ".join(compared) or "configurations and weights"
    return [Verdict("nothing", f"nothing that is recorded explains a difference: the {what} of both agree")]


def _causes_in_training(found: Comparison) -> Iterator[Verdict]:
    rate = found.series.get("train/learning_rate")
    if rate is not None and rate.beyond is not None:
        yield Verdict(
            "learning rate",
            f"the learning rate differs from {_at(found, rate.beyond)} on ({rate.a:.6g} and {rate.b:.6g}): look at schedule.*, "
            "optimizer.learning_rate, optimizer.scale_lr, trainer.duration and trainer.global_batch_size first; it explains "
            "losses that differ later",
        )
    keys = _keys(found, "numbers")
    if keys:
        shown = ", ".join(keys[:SHOWN_KEYS]) + _more(len(keys))
        verb = "differs" if len(keys) == 1 else "differ"
        yield Verdict("settings", f"{_count(len(keys), 'setting')} that can change numbers {verb}: {shown}")
    origins = found.origins
    if origins.initial.sameness == "different":
        follows = _follow(keys, ("seed", "model.", "init", "objective."))
        yield Verdict("first weights", f"the runs did not begin with the same weights: {origins.initial.text}{follows}")
    if origins.data.sameness == "different":
        yield Verdict("data", f"the runs were not trained on the same shards: {origins.data.text}")
    if found.samples is not None and found.samples.at is not None:
        yield Verdict("samples", _explain_samples(found))
    ranks_differ = origins.ranks.sameness == "different"
    if ranks_differ and found.settings is not None and found.settings.noise:
        yield Verdict(
            "masks by rank",
            f"the numbers of ranks differ ({origins.ranks.text}), and dropout or stochastic depth draws its masks by rank: the "
            "losses differ as those of another seed would",
        )
    skipped = [course.skipped_steps for course in found.courses]
    if None not in skipped and skipped[0] != skipped[1]:
        yield Verdict("skipped steps", f"A skipped {skipped[0]} and B {skipped[1]} steps whose gradients were not finite")


def _causes_in_measuring(found: Comparison) -> Iterator[Verdict]:
    steps = [course.last_step for course in found.courses]
    apart = [score for score in found.scores if score.step_a != score.step_b]
    if None not in steps and steps[0] != steps[1] and apart:
        yield Verdict(
            "length",
            f"A was trained for {steps[0]} steps and B for {steps[1]}, and they are evaluated at no common step: "
            f"{', '.join(score.measure for score in apart[:SHOWN_KEYS])}",
        )
    other = [score for score in found.scores if score.conditions]
    if other:
        first = other[0]
        name, a, b = first.conditions[0]
        yield Verdict(
            "measured differently",
            f"{_count(len(other), 'measure')} of the same name measured in two ways, first {first.measure}: {name} {a} and "
            f"{b}; evaluate both again with the same settings before you compare them",
        )


def _explain_samples(found: Comparison) -> str:
    samples = found.samples
    assert samples is not None
    assert samples.at is not None
    why = ""
    if found.origins.data.sameness == "the same" and not _keys(found, "numbers"):
        why = "; shards and settings are the same, so look at versions of the software and of PIL, and at unreadable images"
    first = "first " if samples.after == 0 else ""
    where = f"between {_at(found, samples.after or 0)} and {_at(found, samples.at)}"
    often = "" if samples.differing > 1 else ", and are the same again in later intervals"
    why = why or _follow(_keys(found, "numbers"), ("seed", "data.", "model.image_size", "trainer.global_batch_size"))
    return f"the {first}samples differ {where}{often}: other images, another order, or other pixels{why}"


def _follow(keys: list[str], prefixes: tuple[str, ...]) -> str:
    """Return which of the settings that differ are enough for a difference, in words."""
    because = [key for key in keys if key.startswith(prefixes)]
    return f"; this follows from {', '.join(because[:SHOWN_KEYS])}{_more(len(because))}" if because else ""


def _effects(found: Comparison, *, explained: bool) -> Iterator[Verdict]:
    loss = found.series.get("train/loss")
    if loss is not None and (loss.pattern == "sudden" or (loss.pattern == "grown from rounding" and explained)):
        weak = [] if explained else _find_weak_causes(found)
        cause = f"; this may come from {' and '.join(weak)}" if weak else ""
        cause = cause if weak or explained else "; nothing that is recorded explains it: compare the code of both versions"
        yield Verdict("loss", f"losses differ beyond rounding from {_at(found, loss.beyond or 0)} on ({_values(loss)}){cause}")
    elif loss is not None and loss.pattern in ("grown from rounding", "within rounding"):
        yield Verdict("rounding", _explain_rounding(found, loss))
    yield from _judge_scores(found)


def _judge_scores(found: Comparison) -> Iterator[Verdict]:
    tested = [score for score in found.scores if score.judgement != "not tested"]
    beyond = [score for score in tested if score.judgement == "more than chance"]
    measures = _count(len(tested), "tested measure")
    if beyond:
        each = ", ".join(f"{score.measure} ({100 * score.difference:+.2f} points)" for score in beyond[:SHOWN_KEYS])
        yield Verdict(
            "more than chance",
            f"{len(beyond)} of {measures} differ by more than chance, from A to B: {each}{_more(len(beyond))}. {CHANCE}",
        )
    elif tested:
        yield Verdict("chance", f"no difference is more than chance, of {measures}. {CHANCE}")


def _explain_rounding(found: Comparison, loss: Series) -> str:
    others = _find_weak_causes(found)
    why = f" (of {' and '.join(others)})" if others else ""
    if loss.pattern == "within rounding":
        return f"losses differ by rounding alone{why}: {loss.largest:.2g} relative at most, tolerance {loss.tolerance:g}"
    return (
        f"losses differ by rounding{why} that training amplified past {loss.tolerance:g} at {_at(found, loss.beyond or 0)}: "
        "such runs end as those of two seeds do, and neither is better by a rule"
    )


def _find_weak_causes(found: Comparison) -> list[str]:
    """Return what changes rounding, and seldom more."""
    origins = {"the number of ranks": found.origins.ranks, "versions of software": found.origins.software}
    named = [f"{name} ({origin.text})" for name, origin in origins.items() if origin.sameness == "different"]
    return [*named, *_keys(found, "rounding")]


def _keys(found: Comparison, influence: Influence) -> list[str]:
    return [] if found.settings is None else [each.key for each in found.settings.settings if each.influence == influence]


def _at(found: Comparison, point: int) -> str:
    return f"step {point}" if found.key == "step" else f"{point:,} images"


def _values(series: Series) -> str:
    return " and ".join("not finite" if value is None else f"{value:.6g}" for value in (series.a, series.b))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _more(number: int) -> str:
    return ", ..." if number > SHOWN_KEYS else ""

"""Say what a configuration does that its user may not expect, where that is no reason to refuse it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pipeline.config.resolve import ResolvedRun
from pipeline.config.run import RunConfig
from pipeline.data.shards.class_names import class_names_of
from pipeline.data.streams.mixture import Corpus, Mixture
from pipeline.objectives.classification import ClassificationSection
from pipeline.optim.base import OptimizerSection
from pipeline.section import Section

INITIAL_PART = 0.01  # of the initial weights in an average, at the end of the run, that is worth a word
MOST_SHOWN = 5  # classes in a message
SHRUNK_A_STEP = 0.01  # part of each weight that weight decay takes in one step, that is worth a word


def remarks(run: ResolvedRun) -> list[str]:
    """Return what is worth a word about the schedule, weight decay, the average of the weights, classes and the objective."""
    config = run.config
    found = [
        _of_schedule(config),
        _of_weight_decay(config),
        _of_average(config.optimizer, total_steps=run.total_steps),
    ]
    if isinstance(config.objective, ClassificationSection):
        mixing = config.objective.mixing
        is_on = mixing.is_on or mixing.probability == 0  # switched off on purpose
        found.append(_of_idle("objective.mixing", mixing, is_on=is_on, switches=("mixup_alpha", "cutmix_alpha")))
    erasing = config.data.random_erasing
    found.append(_of_idle("data.random_erasing", erasing, is_on=erasing.probability > 0, switches=("probability",)))
    if isinstance(run.mixture, Mixture) and config.objective.labels != "none":
        found += [_of_shared_classes(run.mixture), _of_unused_classes(run.mixture, num_classes=run.model.num_classes)]
    return [*(text for text in found if text is not None), *config.objective.remarks(run.model, class_names=run.class_names)]


def _of_schedule(config: RunConfig) -> str | None:
    """Return that the learning rate does not fall, or does not rise, where its limits are not below the peak."""
    peak, schedule = config.peak_learning_rate, config.schedule
    if schedule.decay != "constant" and schedule.end >= peak:
        return (
            f"the learning rate does not decay: schedule.end={schedule.end:g} is not below the peak, {peak:.4g}; "
            "schedule.end=0 decays to zero"
        )
    if schedule.warmup_start >= peak:
        start = f"schedule.warmup_start={schedule.warmup_start:g}"
        return f"the learning rate does not rise: {start} is not below the peak, {peak:.4g}"
    return None


def _of_weight_decay(config: RunConfig) -> str | None:
    """Return how much of a weight a step takes, where that is much: two codebases may mean different things by one number."""
    optimizer, peak = config.optimizer, config.peak_learning_rate
    taken = {"decoupled_lr": peak * optimizer.weight_decay, "decoupled_schedule": optimizer.weight_decay}
    part = taken.get(optimizer.weight_decay_rule, 0.0)
    if part < SHRUNK_A_STEP:
        return None
    hint = ""
    if optimizer.weight_decay_rule == "decoupled_schedule":
        hint = f"; as much as weight_decay={optimizer.weight_decay / peak:.3g} of torch's AdamW (docs/optimizers.md)"
    return f"weight decay takes {100 * part:.3g} % of each kernel in every step at the peak{hint}"


def _of_idle(path: str, section: Section, *, is_on: bool, switches: Sequence[str]) -> str | None:
    """Return that a section does nothing although some of it is set: what turns it on is not."""
    given = [
        f"{name}={getattr(section, name)}"
        for name, field in type(section).model_fields.items()
        if name not in switches and getattr(section, name) != field.default
    ]
    if is_on or not given:
        return None
    verb = "is" if len(switches) == 1 else "are"
    return f"{path} does nothing: {', '.join(given)} is set, but {' and '.join(switches)} {verb} 0"


def _of_shared_classes(mixture: Mixture) -> str | None:
    """Return that two corpora share a part of their classes. Those with classes of their own do if one begins too early."""
    for one, other in itertools.combinations(mixture.corpora, 2):
        low, high = sorted((one, other), key=lambda corpus: corpus.first_class)
        end = low.first_class + _count_classes(low)
        if low.first_class < high.first_class < end:
            return (
                f"classes {high.first_class} to {end - 1} are of {low.index.folder} and of {high.index.folder} too "
                f"(first_class={high.first_class}); set first_class={end} if their classes are not the same"
            )
    return None


def _of_unused_classes(mixture: Mixture, *, num_classes: int) -> str | None:
    """Return which of the model's classes no image has, as where labels count from 1, or a list of classes is another's."""
    used: set[int] = set()
    for corpus in mixture.corpora:
        if corpus.index.class_counts is None:  # of an older version: nobody has counted
            return None
        used |= {corpus.first_class + number for number in corpus.index.class_counts.ids.tolist()}
    unused = [number for number in range(num_classes) if number not in used]
    if not unused:
        return None
    shown = ", ".join(map(str, unused[:MOST_SHOWN])) + (", ..." if len(unused) > MOST_SHOWN else "")
    from_one = "; labels count from 0, and these may count from 1" if unused == [0] else ""
    return f"{len(unused)} of model.num_classes={num_classes} classes have no image in data.train: {shown}{from_one}"


def _count_classes(corpus: Corpus) -> int:
    names = class_names_of(*corpus.index.folders)
    if names is not None:
        return len(names)
    return 0 if corpus.index.max_label is None else corpus.index.max_label + 1


def _of_average(optimizer: OptimizerSection, *, total_steps: int) -> str | None:
    """Return how much of the initial weights is in the average at the end, where that is much."""
    average = optimizer.average
    if average is None or average.warmup != "none":  # with a warmup the first update replaces them
        return None
    left = average.decay**total_steps
    if left < INITIAL_PART:
        return None
    return (
        f"the average of the weights is too slow for this run: {100 * left:.3g} % of it are the initial weights after "
        f"{total_steps} steps (optimizer.average.decay={average.decay:g}); set optimizer.average.warmup=timm, or a smaller "
        "decay"
    )

"""Make a configuration concrete: check it against its data and the number of ranks, and count it in steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.config.run import RunConfig
from pipeline.data.images.crop import Decoder
from pipeline.data.images.crops import Crop, Simple
from pipeline.data.images.decode import HOW_TO_BUILD, has_region_decoder
from pipeline.data.section import DataSection
from pipeline.data.shards.class_names import class_names_of
from pipeline.data.shards.index import load_index
from pipeline.data.streams.mixture import Corpus, Mixture, UnindexedShards
from pipeline.data.streams.train import largest_micro_batch
from pipeline.distributed.precision import TrainingPrecision
from pipeline.durations import Duration
from pipeline.errors import ConfigError
from pipeline.image_size import ImageSize, height_and_width
from pipeline.models.base import ModelConfig
from pipeline.optim.schedules.base import ScheduleSteps
from pipeline.train.section import TrainerSection


@dataclass(frozen=True)
class ResolvedRun:
    """Holds a concrete configuration: checked, and counted in steps."""

    config: RunConfig
    model: ModelConfig
    decoder: Decoder
    mixture: Mixture | UnindexedShards
    num_streams: int
    schedule_steps: ScheduleSteps
    stop_step: int
    checkpoint_steps: int
    keep_every_steps: int | None
    accumulation_steps: int
    micro_batch_size: int
    class_names: tuple[str, ...] | None  # of the only corpus, by class number

    @property
    def total_steps(self) -> int:
        """Return the steps of the whole run."""
        return self.schedule_steps.total

    @property
    def precision(self) -> TrainingPrecision:
        """Return the precision of the launch, which is chosen when the ranks know each other's devices."""
        assert self.config.trainer.precision != "auto", "asked before the start was agreed on"
        return self.config.trainer.precision

    def with_precision(self, precision: TrainingPrecision) -> ResolvedRun:
        """Return the same plan with its precision."""
        trainer = self.config.trainer.model_copy(update={"precision": precision})
        return replace(self, config=self.config.model_copy(update={"trainer": trainer}))


def resolve_run(config: RunConfig, *, world_size: int) -> ResolvedRun:
    """Check a configuration against its data and the number of ranks, before anything expensive starts.

    Raises:
        ConfigError: numbers do not fit together.
        DataError: no index.
    """
    model = config.model.resolve(head_bias=config.objective.head_bias)
    _check_blocks(config, model)
    config.optimizer.check(model.build)
    mixture = load_mixture(config.data)
    if isinstance(mixture, Mixture) and config.objective.labels != "none":
        _check_classes(mixture, num_classes=config.model.num_classes)
        if config.objective.labels == "one":
            _check_one_label(mixture)
    class_names = find_class_names(mixture)
    config.objective.check(model, class_names=class_names)
    _check_crop(config.data.crop, image_size=model.image_size)
    num_samples = images_of_epoch(mixture, repeats=config.data.repeats)
    batch = config.trainer.global_batch_size
    advice = mixture.advice if isinstance(mixture, UnindexedShards) else None
    to_steps = functools.partial(_to_steps, global_batch_size=batch, num_samples=num_samples, advice=advice)
    schedule_steps = count_schedule_steps(config, num_samples=num_samples, advice=advice)
    total = schedule_steps.total
    _check_max_steps(config.trainer, total=total)
    accumulation = count_accumulation_steps(config, world_size=world_size)
    keep_every = config.checkpoint.keep_every
    return ResolvedRun(
        config=config,
        model=model,
        decoder=choose_decoder(config.data.decoder),
        mixture=mixture,
        num_streams=_choose_num_streams(config),
        schedule_steps=schedule_steps,
        stop_step=config.trainer.max_steps or total,
        checkpoint_steps=to_steps(config.checkpoint.every, "checkpoint.every"),
        keep_every_steps=None if keep_every is None else to_steps(keep_every, "checkpoint.keep_every"),
        accumulation_steps=accumulation,
        micro_batch_size=largest_micro_batch(
            batch,
            num_ranks=world_size,
            accumulation_steps=accumulation,
            together=config.objective.images_together,
        ),
        class_names=class_names,
    )


def _check_max_steps(trainer: TrainerSection, *, total: int) -> None:
    if trainer.max_steps is not None and trainer.max_steps > total:
        raise ConfigError(
            f"trainer.max_steps={trainer.max_steps} ends a launch early, but the whole run "
            f"(trainer.duration={trainer.duration}) has {total}; lengthen trainer.duration, or leave max_steps out"
        )


def _check_blocks(config: RunConfig, model: ModelConfig) -> None:
    trainer = config.trainer
    asked = "trainer.compile=blocks" if trainer.compile == "blocks" else None
    if trainer.activation_checkpointing is not None:
        asked = f"trainer.activation_checkpointing={trainer.activation_checkpointing}"
    if asked is not None and not model.cost.blocks(precision="fp32"):
        raise ConfigError(
            f"{asked} is about a model's repeated blocks. {model.family} lists none for this model: it has none, "
            "or they hold BatchNorm "
            "or parameters of their own, which cannot be computed again; leave it out"
        )


def images_of_epoch(mixture: Mixture | UnindexedShards, *, repeats: int) -> int | None:
    """Images that the model sees in an epoch. None where that has no known length: several corpora, or shards without an index.

    Raises:
        ConfigError: repeats of shards without an index.
    """
    if isinstance(mixture, Mixture):
        return repeats * mixture.num_samples if mixture.is_one_corpus else None
    if repeats > 1:
        raise ConfigError(f"data.repeats={repeats} needs an exact order, which data.train has not: {mixture.advice}")
    return None


def make_schedule(config: RunConfig, steps: ScheduleSteps) -> Callable[[int], float]:
    """Optimizer step to learning rate."""
    return config.schedule.build(peak=config.peak_learning_rate, steps=steps)


def describe_learning_rate(config: RunConfig) -> str | None:
    """Return a line about the learning rate after the warmup; None where it is `optimizer.learning_rate` for every batch."""
    optimizer, batch = config.optimizer, config.trainer.global_batch_size
    if optimizer.scale_lr == "none":
        return None
    ratio = f"{batch} / {optimizer.reference_batch_size}"
    return (
        f"learning rate after the warmup: {config.peak_learning_rate:.4g} = {optimizer.learning_rate:g} x "
        f"{ratio if optimizer.scale_lr == 'linear' else f'sqrt({ratio})'} (optimizer.scale_lr={optimizer.scale_lr})"
    )


def count_schedule_steps(config: RunConfig, *, num_samples: int | None, advice: str | None = None) -> ScheduleSteps:
    """Return the steps of the whole run, of its warmup and of its cooldown.

    Args:
        num_samples: images of an epoch; None where epochs have no known length.
        advice: how to give them one.

    Raises:
        ConfigError: no step is left after the warmup, the cooldown does not fit, or a duration in epochs of unknown length.
    """
    batch = config.trainer.global_batch_size
    to_steps = functools.partial(_to_steps, global_batch_size=batch, num_samples=num_samples, advice=advice)
    total, warmup = to_steps(config.trainer.duration, "trainer.duration"), to_steps(config.schedule.warmup, None)
    if warmup >= total:
        raise ConfigError(
            f"schedule.warmup={config.schedule.warmup}{_in_steps(config.schedule.warmup, warmup)} must be shorter than the "
            f"whole run, trainer.duration={config.trainer.duration}{_in_steps(config.trainer.duration, total)}; shorten "
            "schedule.warmup or lengthen trainer.duration"
        )
    return ScheduleSteps(total, warmup, count_cooldown_steps(config, total=total, warmup=warmup, to_steps=to_steps))


def count_cooldown_steps(config: RunConfig, *, total: int, warmup: int, to_steps: Callable[[Duration, str], int]) -> int:
    """Return the steps of the schedule's cooldown; 0 where it has none.

    Args:
        to_steps: of a duration and the name of its setting.

    Raises:
        ConfigError: it does not fit behind the warmup.
    """
    length = config.schedule.cooldown_length()
    if length is None:
        return 0
    if isinstance(length, Duration):
        steps, said = to_steps(length, "schedule.cooldown"), f"schedule.cooldown={length}"
    else:
        steps, said = round(length * total), f"schedule.cooldown_fraction={length:g}"
    if warmup + steps > total:
        raise ConfigError(
            f"{said} ({steps} steps) does not fit behind schedule.warmup={config.schedule.warmup} into the whole run, "
            f"trainer.duration={config.trainer.duration} ({total} steps); shorten it or lengthen trainer.duration"
        )
    return steps


def load_mixture(section: DataSection) -> Mixture | UnindexedShards:
    """Return the corpora that a section names.

    Raises:
        ConfigError: the list is empty.
        DataError: no index.
    """
    if isinstance(section.train, str) and UnindexedShards.is_one(section.train):
        return UnindexedShards.parse(section.train)
    if isinstance(section.train, str):
        return Mixture((Corpus(load_index(section.train)),))
    if not section.train:
        raise ConfigError("data.train is an empty list; name at least one {path: FOLDER, weight: NUMBER}")
    return Mixture(tuple(Corpus(load_index(part.path, part.index), part.weight, part.first_class) for part in section.train))


def _check_crop(crop: Crop, *, image_size: ImageSize) -> None:
    smallest = min(height_and_width(image_size))
    if isinstance(crop, Simple) and crop.short_side is not None and crop.short_side < smallest:
        raise ConfigError(
            f"data.crop.short_side={crop.short_side} is less than the {smallest} px of model.image_size: a crop of that size "
            f"does not fit; use {smallest} or more, or leave it out"
        )


def _check_classes(mixture: Mixture, *, num_classes: int) -> None:
    for corpus in mixture.corpora:
        names = class_names_of(*corpus.index.folders)
        needed = 0 if names is None else corpus.first_class + len(names)
        if needed > num_classes:
            after = f" after the {corpus.first_class} before it (first_class)" if corpus.first_class else ""
            raise ConfigError(
                f"model.num_classes={num_classes}, but {corpus.index.folder}/classes.txt names {needed - corpus.first_class} "
                f"classes{after}; set model.num_classes={needed}"
            )
        largest = corpus.index.max_label
        if largest is not None and corpus.first_class + largest >= num_classes:
            after = f", and first_class adds {corpus.first_class}" if corpus.first_class else ""
            raise ConfigError(
                f"model.num_classes={num_classes}, but the largest label in {corpus.index.folder} is {largest} (counted from "
                f"0){after}; set model.num_classes={corpus.first_class + largest + 1} or more"
            )


def _check_one_label(mixture: Mixture) -> None:
    for corpus in mixture.corpora:
        if corpus.index.num_several:
            raise ConfigError(
                f"{corpus.index.num_several} of {corpus.index.num_samples} samples in {corpus.index.folder} have several "
                "labels, or an empty list of them; set objective.name=multi_label, or make shards with one label an image"
            )


def find_class_names(mixture: Mixture | UnindexedShards) -> tuple[str, ...] | None:
    """Return the class names of the only corpus, where it has a list of them."""
    if not isinstance(mixture, Mixture) or not mixture.is_one_corpus:
        return None
    names = class_names_of(*mixture.corpora[0].index.folders)
    return None if names is None else tuple(names)


def _choose_num_streams(config: RunConfig) -> int:
    batch, streams = config.trainer.global_batch_size, config.data.num_streams
    if streams is not None and batch % streams and streams % batch:
        raise ConfigError(
            f"data.num_streams={streams} neither divides trainer.global_batch_size={batch} nor is a multiple of it, so every "
            f"rank would read every block; use {batch}, or leave it out"
        )
    return streams or batch


def choose_decoder(wanted: Literal["auto", "region", "whole"]) -> Decoder:
    """Return the decoder of training images here.

    Raises:
        ConfigError: the region decoder is requested and was not built.
    """
    if wanted == "region" and not has_region_decoder():
        raise ConfigError(f"data.decoder=region, but it is not built here; {HOW_TO_BUILD}, or set data.decoder=auto")
    return "region" if wanted != "whole" and has_region_decoder() else "whole"


def _in_steps(duration: Any, steps: int) -> str:
    """Return a duration in steps."""
    return "" if duration.unit == "steps" else f" ({steps} step{'s' * (steps != 1)})"


def _to_steps(
    duration: Any, key: str | None, *, global_batch_size: int, num_samples: int | None, advice: str | None = None
) -> int:
    if num_samples is None and duration.unit == "epochs":
        raise ConfigError(
            f"{key or 'schedule.warmup'}={duration}: only a single indexed corpus has epochs of a known length; count "
            "in steps or images"
            f"{'' if advice is None else f'. The order is approximate too: {advice}'}"
        )
    steps = duration.to_steps(global_batch_size=global_batch_size, num_samples=num_samples or 1)
    if key is not None and steps < 1:
        raise ConfigError(f"{key}={duration} is less than one step of {global_batch_size} images; make it longer")
    return steps


def count_accumulation_steps(config: RunConfig, *, world_size: int) -> int:
    """Return the micro-batches in a step: as few as `micro_batch_size` allows. Ranks whose shares differ have equally many.

    Raises:
        ConfigError: a rank, or a micro-batch of one, would have no image.
    """
    batch, micro = config.trainer.global_batch_size, config.trainer.micro_batch_size
    together = config.objective.images_together
    if together > 1:
        _check_groups(batch, micro, together=together, world_size=world_size)
    if batch < world_size:
        raise ConfigError(
            f"trainer.global_batch_size={batch} is less than an image for each of the {world_size} ranks; use {world_size} or "
            f"more, or fewer ranks"
        )
    groups = batch // together
    share = -(-groups // world_size)
    accumulation = -(-share // (share if micro is None else micro // together))
    if accumulation > groups // world_size:
        raise ConfigError(
            f"trainer.micro_batch_size={micro}, but {world_size} ranks do not divide trainer.global_batch_size={batch}: some "
            f"have {share * together} images a step, some {(share - 1) * together}, which cannot be as many parts of "
            f"{'one' if together == 1 else together}; use trainer.micro_batch_size={2 * together}, or as many ranks as divide "
            "the batch"
        )
    return accumulation


def _check_groups(batch: int, micro: int | None, *, together: int, world_size: int) -> None:
    """Refuse batches that groups of neighbours, which a micro-batch holds whole, do not fill."""
    if batch % together or batch < together * world_size:
        raise ConfigError(
            f"trainer.global_batch_size={batch} is not {together} images or more for each of the {world_size} ranks in whole "
            f"pairs: objective.mixing mixes pairs of neighbours; use a multiple of {together}, {together * world_size} or more"
        )
    if micro is not None and micro < together:
        raise ConfigError(
            f"trainer.micro_batch_size={micro} holds no pair, and objective.mixing mixes pairs of neighbours; use {together} "
            "or more"
        )

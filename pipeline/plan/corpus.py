"""Find what is known of a corpus without reading its images, and count durations by it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from pipeline.config.resolve import count_cooldown_steps, load_mixture
from pipeline.config.run import RunConfig
from pipeline.data.shards.index import DEFAULT_BLOCK_SAMPLES
from pipeline.data.streams.mixture import Mixture
from pipeline.durations import Duration
from pipeline.errors import ConfigError, DataError

IMAGE_BYTES = 110_000  # size of a median ImageNet photo


@dataclass(frozen=True)
class CorpusFacts:
    """Holds corpus size and image size: their values, where they come from, and why the index could not be read, if so."""

    num_samples: int | None
    image_bytes: float
    block_samples: float
    source: str
    unread: str | None
    repeats: int = 1  # appearances of an image in an epoch

    @property
    def images_of_epoch(self) -> int | None:
        """Images that the model sees in an epoch."""
        return None if self.num_samples is None else self.repeats * self.num_samples


def corpus_facts(config: RunConfig, *, num_samples: int | None, image_bytes: float | None) -> CorpusFacts:
    """Return the corpus's facts from the flags, then from the index, where there is one."""
    if (num_samples is not None and num_samples < 1) or (image_bytes is not None and image_bytes <= 0):
        raise ConfigError("--samples and --image-bytes must be more than 0")
    mixture = unread = None
    if num_samples is None or image_bytes is None:
        try:
            mixture = load_mixture(config.data)
        except DataError as error:  # the corpus may be elsewhere, and its numbers given
            unread = str(error)
    if not isinstance(mixture, Mixture):
        assumed = "assumed" if image_bytes is None else "as given"
        bytes_each, repeats = image_bytes or IMAGE_BYTES, config.data.repeats
        return CorpusFacts(num_samples, bytes_each, DEFAULT_BLOCK_SAMPLES, source=assumed, unread=unread, repeats=repeats)
    indexes = [corpus.index for corpus in mixture.corpora]
    total = sum(index.num_samples for index in indexes)
    known = mixture.num_samples if mixture.is_one_corpus else None
    return CorpusFacts(
        num_samples=num_samples or known,
        image_bytes=image_bytes or sum(int(index.block_bytes.sum()) for index in indexes) / total,
        block_samples=total / sum(index.num_blocks for index in indexes),
        source="by the index" if image_bytes is None else "as given",
        unread=None,
        repeats=config.data.repeats,
    )


def to_steps(duration: Duration, key: str, *, config: RunConfig, corpus: CorpusFacts) -> int:
    """Return a duration of this run in steps.

    Raises:
        ConfigError: it is in epochs of a corpus whose size is not known, or it is less than one step.
    """
    if duration.unit == "epochs" and corpus.num_samples is None:
        raise ConfigError(
            f"{key}={duration}, and data.train={config.data.train} has no index here to count an epoch by: give the number "
            "of images with --samples, for example --samples 14197122 for all of ImageNet-21k"
        )
    steps = duration.to_steps(global_batch_size=config.trainer.global_batch_size, num_samples=corpus.images_of_epoch or 1)
    if steps < 1:
        raise ConfigError(f"{key}={duration} is less than one step of {config.trainer.global_batch_size} images")
    return steps


def count_steps(config: RunConfig, corpus: CorpusFacts) -> int:
    """Return the steps of the run.

    Raises:
        ConfigError: as `to_steps`, or warmup and cooldown do not fit into the run.
    """
    total = to_steps(config.trainer.duration, "trainer.duration", config=config, corpus=corpus)
    warmup_steps = 0
    if (warmup := config.schedule.warmup).amount:
        warmup_steps = to_steps(warmup, "schedule.warmup", config=config, corpus=corpus)
        if warmup_steps >= total:
            raise ConfigError(
                f"schedule.warmup={warmup} is {warmup_steps:,} steps, but trainer.duration={config.trainer.duration} is "
                f"{total:,}; shorten schedule.warmup or lengthen trainer.duration"
            )
    counted = functools.partial(to_steps, config=config, corpus=corpus)
    count_cooldown_steps(config, total=total, warmup=warmup_steps, to_steps=counted)
    return min(total, config.trainer.max_steps or total)

"""Show what a run sees at a step, without running it: keys, classes, byte ranges in the shards, and the pixels as a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from pipeline.build.streams import make_stream
from pipeline.config.resolve import resolve_run
from pipeline.config.run import RunConfig
from pipeline.data.shards.reader import BlockReader
from pipeline.data.streams.loader import Batch, BatchLoader
from pipeline.data.streams.mixture import Mixture, UnindexedShards
from pipeline.distributed.world import World
from pipeline.errors import ConfigError
from pipeline.files import Draft

COLUMNS = ("step", "position", "corpus", "shard", "key", "class", "sample_id", "note")
CAPTION_HEIGHT = 12  # pixels


class SeenSample(NamedTuple):
    """Describes one position of a run."""

    step: int
    position: int
    corpus: str
    shard: str
    key: str
    label: str  # class numbers with a comma between
    sample_id: int
    note: str  # the image that it substitutes, if any

    def line(self) -> str:
        return "\t".join(str(value) for value in self)


class SampleNames:
    """Finds the key and shard of a sample by its number in the mixture."""

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture
        self._readers = [BlockReader(corpus.index, capacity=64) for corpus in mixture.corpora]

    def find(self, sample_id: int) -> tuple[str, str, str]:
        """Return corpus folder, shard and key."""
        corpus = int(np.searchsorted(self._mixture.first_sample, sample_id, side="right")) - 1
        index = self._mixture.corpora[corpus].index
        own = sample_id - self._mixture.first_sample[corpus]
        block = int(np.searchsorted(index.first_sample, own, side="right")) - 1
        sample = self._readers[corpus].read(block)[own - int(index.first_sample[block])]
        return index.folder, sample.shard, sample.key


def list_samples(config: RunConfig, *, step: int, num_steps: int, picture: Path | None) -> Iterator[str]:
    """Yield tab-separated lines, one a position of steps [step, step + num_steps).

    Args:
        step: number as in metrics.jsonl and on the dashboard: step 1 is the first.
        picture: file for a contact sheet of the augmented images, or an existing folder.

    Raises:
        ConfigError: the step is beyond the run's end, or the picture cannot be written; raised before anything is read.
        DataError: shards cannot be read.
    """
    run = resolve_run(config, world_size=1)
    if isinstance(run.mixture, UnindexedShards):
        raise ConfigError("data.train names tars without an index: what a step sees is not known before it is read")
    if not 1 <= step <= run.total_steps:
        raise ConfigError(f"--step {step}: the run has steps 1 to {run.total_steps}")
    stream = make_stream(run, world=World.alone(), start_step=step - 1)
    target = None if picture is None else _picture_path(picture, name=config.name, step=step)
    names, images = SampleNames(run.mixture), []
    yield "\t".join(COLUMNS)
    batches = islice(BatchLoader(stream, num_workers=0, prefetch=1, pin_memory=False), num_steps * run.accumulation_steps)
    for batch in batches:
        for sample in _name(batch, names, global_batch_size=config.trainer.global_batch_size):
            yield sample.line()
        if target is not None:
            images += [_captioned(image, position) for image, position in zip(batch["images"], batch["positions"], strict=True)]
    if target is not None:
        _write_picture(_contact_sheet(images), target)


def draw_first_images(config: RunConfig, *, count: int) -> bytes:
    """Return a contact sheet, as PNG, of the first images of step 1: as many of its batch as divide it, at most `count`.

    Raises:
        ConfigError: shards without an index.
        DataError: shards cannot be read.
    """
    batch = config.trainer.global_batch_size
    size = next(number for number in range(min(count, batch), 0, -1) if batch % number == 0)
    # Micro-batches change no sample and no pixel; another batch would be another order.
    trainer = config.trainer.model_copy(update={"micro_batch_size": size})
    run = resolve_run(config.model_copy(update={"trainer": trainer}), world_size=1)
    if isinstance(run.mixture, UnindexedShards):
        raise ConfigError("data.train names tars without an index: what a step sees is not known before it is read")
    stream = make_stream(run, world=World.alone(), start_step=0)
    (first,) = islice(BatchLoader(stream, num_workers=0, prefetch=1, pin_memory=False), 1)
    buffer = io.BytesIO()
    _contact_sheet([_captioned(*pair) for pair in zip(first["images"], first["positions"], strict=True)]).save(buffer, "PNG")
    return buffer.getvalue()


def _picture_path(picture: Path, *, name: str, step: int) -> Path:
    """Return the picture's path, checked to be one that can be written, in a known format."""
    target = picture / f"{name}-step-{step}.png" if picture.is_dir() else picture
    if target.suffix.lower() not in Image.registered_extensions():
        raise ConfigError(f"--picture {picture}: no picture format is called {target.suffix!r}; use .png or .jpg")
    try:
        Draft(target, durability="unflushed").discard()
    except OSError as error:
        raise _not_written(target, error) from error
    return target


def _write_picture(sheet: Image.Image, target: Path) -> None:
    try:
        with Draft(target, durability="unflushed") as draft:
            sheet.save(draft.file, format=Image.registered_extensions()[target.suffix.lower()])
            draft.publish()
    except OSError as error:
        raise _not_written(target, error) from error


def _not_written(target: Path, error: OSError) -> ConfigError:
    return ConfigError(f"picture {target} cannot be written: {error.strerror or error}; --picture FILE puts it elsewhere")


def _name(batch: Batch, names: SampleNames, *, global_batch_size: int) -> Iterator[SeenSample]:
    replaced = {item.position: f"in place of {item.key}: {item.reason}" for item in batch["unreadable"]}
    labels, ends = batch["labels"].tolist(), batch["label_ends"].tolist()
    rows = zip(batch["positions"].tolist(), batch["sample_ids"].tolist(), [0, *ends], ends, strict=False)
    for position, sample_id, first_label, end in rows:
        folder, shard, key = names.find(sample_id)
        note, label = replaced.get(position, ""), ",".join(map(str, labels[first_label:end]))
        yield SeenSample(position // global_batch_size + 1, position, folder, shard, key, label, sample_id, note)


def _captioned(image: Tensor, position: Tensor) -> Image.Image:
    pixels = image.permute(1, 2, 0).numpy()
    framed = Image.new("RGB", (pixels.shape[1], pixels.shape[0] + CAPTION_HEIGHT), "white")
    framed.paste(Image.fromarray(pixels), (0, CAPTION_HEIGHT))
    ImageDraw.Draw(framed).text((1, 0), str(int(position)), fill="black")
    return framed


def _contact_sheet(images: list[Image.Image]) -> Image.Image:
    columns = math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * width, number // columns * height))
    return sheet

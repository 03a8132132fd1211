"""Run what `benchmark loader` compares: each contender is an endless iterator of batches, in a process of its own.

    python -m pipeline.benchmark.contenders NAME SETTINGS

It reads numbers of batches from standard input, a line each, and answers with a line of JSON: what that many cost. Libraries
that are not installed answer with a word. Peers are put together as their own training scripts do it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from pipeline.benchmark.torchvision_operators import declare_torchvision_operators
from pipeline.data.images.crop import TrainTransform
from pipeline.data.images.decode import entropy_decode
from pipeline.data.shards.index import load_index
from pipeline.data.shards.reader import BlockReader
from pipeline.data.streams.loader import BatchLoader
from pipeline.data.streams.mixture import Corpus, Mixture
from pipeline.data.streams.train import Division, TrainStream
from pipeline.image_size import ImageSize, height_and_width
from pipeline.keyed_random import Purpose, derive_key

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREFETCH = 2


@dataclass(frozen=True)
class Settings:
    """Holds the settings that are the same for all contenders."""

    folder: str
    converted: str  # folder for copies in the peers' own formats
    num_workers: int
    batch_size: int
    image_size: ImageSize

    @property
    def shards(self) -> list[str]:
        return sorted(str(path) for path in Path(self.folder).glob("*.tar"))


def make_transform(settings: Settings, decoder: str) -> TrainTransform:
    """Make the Inception crop of 5 to 100 % with antialiased resize, which is also what Pillow does."""
    return TrainTransform(
        image_size=settings.image_size,
        min_area=0.05,
        max_area=1.0,
        min_ratio=3 / 4,
        max_ratio=4 / 3,
        flip=True,
        resize="bilinear_antialias",
        decoder="region" if decoder == "region" else "whole",
    )


class PillowTransform:
    """Applies the usual transform: Pillow decodes all and resizes the crop; then fp32, normalised. The crop law is ours."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.law = make_transform(settings, "whole")
        self.mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
        self.std = torch.tensor(IMAGENET_STD)[:, None, None]
        self.calls = 0

    def __call__(self, image: Image.Image) -> torch.Tensor:
        self.calls += 1
        box, flip = self.law.choose(image.height, image.width, key=derive_key(0, Purpose.AUGMENTATION, 0, self.calls))
        height, width = height_and_width(self.settings.image_size)
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        image = image.convert("RGB").crop(corners).resize((width, height), Image.Resampling.BILINEAR)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
        return pixels.sub_(self.mean).div_(self.std)


class OurTransform:
    """Turns bytes into uint8 pixels with our decoder, for a peer's loader."""

    def __init__(self, settings: Settings, decoder: str) -> None:
        self.transform = make_transform(settings, decoder)
        self.calls = 0

    def __call__(self, data: bytes) -> torch.Tensor:
        self.calls += 1
        out = torch.empty((3, *height_and_width(self.transform.image_size)), dtype=torch.uint8)
        self.transform(data, seed=0, epoch=0, sample_id=self.calls, out=out)
        return out


def encoded_images(settings: Settings) -> list[bytes]:
    """Return all images of the folder, in memory."""
    index = load_index(settings.folder)
    reader = BlockReader(index, capacity=1)
    return [sample.image for block in range(index.num_blocks) for sample in reader.read(block)]


def alone(work: Callable[[bytes], Any]) -> Callable[[Settings], Iterator[Any]]:
    """Run `work` alone, in one process with images in memory: the baseline for a loader's overhead."""

    def batches(settings: Settings) -> Iterator[Any]:
        images = chain.from_iterable(repeat(encoded_images(settings)))
        while True:
            yield [work(next(images)) for _ in range(settings.batch_size)]

    return batches


def transform_alone(decoder: str) -> Callable[[Settings], Iterator[Any]]:
    return lambda settings: alone(OurTransform(settings, decoder))(settings)


def pillow_decode(data: bytes) -> Any:
    return Image.open(io.BytesIO(data)).convert("RGB")


def pillow_alone(settings: Settings) -> Iterator[Any]:
    transform = PillowTransform(settings)
    return alone(lambda data: transform(pillow_decode(data)))(settings)


def ours(decoder: str) -> Callable[[Settings], Iterator[Any]]:
    """Run this project's loader."""

    def batches(settings: Settings) -> Iterator[Any]:
        mixture = Mixture((Corpus(load_index(settings.folder)),))
        stream = TrainStream(
            mixture=mixture,
            order=mixture.make_order(seed=0, num_streams=settings.batch_size),
            division=Division(global_batch_size=settings.batch_size, rank=0, world_size=1, accumulation_steps=1),
            transform=make_transform(settings, decoder),
            num_classes=2**31,
            start_step=0,
        )
        return iter(BatchLoader(stream, num_workers=settings.num_workers, prefetch=PREFETCH, pin_memory=False))

    return batches


def open_clip_style(settings: Settings) -> Iterator[Any]:
    """Run webdataset as open_clip's training script assembles it: resampled shards, a shuffle buffer, pilrgb, batched."""
    wds: Any = importlib.import_module("webdataset")

    dataset = wds.DataPipeline(
        wds.ResampledShards(settings.shards),
        wds.tarfile_to_samples(),
        wds.shuffle(1000, initial=100),
        wds.decode("pilrgb"),
        wds.rename(image="jpg;jpeg;png", label="cls"),
        wds.map_dict(image=PillowTransform(settings)),
        wds.to_tuple("image", "label"),
        wds.batched(settings.batch_size, partial=False),
    )
    return iter(
        wds.WebLoader(
            dataset,
            batch_size=None,
            shuffle=False,
            num_workers=settings.num_workers,
            persistent_workers=settings.num_workers > 0,
        )
    )


def webdataset_with_ours(settings: Settings) -> Iterator[Any]:
    """Run the same pipeline with our transform."""
    wds: Any = importlib.import_module("webdataset")

    dataset = wds.DataPipeline(
        wds.ResampledShards(settings.shards),
        wds.tarfile_to_samples(),
        wds.shuffle(1000, initial=100),
        wds.rename(image="jpg;jpeg;png", label="cls"),
        wds.map_dict(image=OurTransform(settings, "region"), label=int),
        wds.to_tuple("image", "label"),
        wds.batched(settings.batch_size, partial=False),
    )
    return iter(
        wds.WebLoader(
            dataset,
            batch_size=None,
            shuffle=False,
            num_workers=settings.num_workers,
            persistent_workers=settings.num_workers > 0,
        )
    )


def timm_reader(settings: Settings) -> Iterator[Any]:
    """Run timm's WebDataset reader in its own dataset class, in torch's loader."""
    declare_torchvision_operators()
    timm_datasets: Any = importlib.import_module("timm.data.dataset")

    names = [Path(path).name for path in settings.shards]
    first, last = names[0].removesuffix(".tar"), names[-1].removesuffix(".tar")
    prefix = first.rstrip("0123456789")
    split = f"{prefix}{{{first[len(prefix) :]}..{last[len(prefix) :]}}}.tar" if len(names) > 1 else names[0]
    dataset = timm_datasets.IterableImageDataset(
        settings.folder,
        reader="wds/",
        split=f"{split}|{load_index(settings.folder).num_samples}",
        is_training=True,
        batch_size=settings.batch_size,
        transform=PillowTransform(settings),
        input_key="jpg;jpeg;png",
    )
    dataset.reader.sample_shuffle_size, dataset.reader.sample_initial_size = 1000, 100
    return endless(
        torch.utils.data.DataLoader(
            dataset,
            batch_size=settings.batch_size,
            num_workers=settings.num_workers,
            drop_last=True,
            persistent_workers=settings.num_workers > 0,
        )
    )


class _Record(torch.nn.Module):
    """Turns a peer's record, bytes and a class, into pixels."""

    def __init__(self, settings: Settings, *, pillow: bool) -> None:
        super().__init__()
        self.pillow = PillowTransform(settings) if pillow else None
        self.ours = OurTransform(settings, "region")

    def forward(self, image: bytes, label: int) -> tuple[torch.Tensor, int]:
        return (self.pillow(pillow_decode(image)) if self.pillow else self.ours(bytes(image))), int(label)


def litdata_reader(*, pillow: bool) -> Callable[[Settings], Iterator[Any]]:
    """Run litdata's optimised chunks of the encoded images."""

    def batches(settings: Settings) -> Iterator[Any]:
        litdata: Any = importlib.import_module("litdata")
        writers: Any = importlib.import_module("litdata.streaming.writer")

        folder = Path(settings.converted) / "litdata"
        if not (folder / "index.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            writer = writers.BinaryWriter(str(folder), chunk_bytes=16 << 20)
            for number, data in enumerate(encoded_images(settings)):
                writer.add_item(number, {"image": data, "label": 0})
            writer.done()
            writer.merge(1)
        record = _Record(settings, pillow=pillow)

        class Dataset(litdata.StreamingDataset):
            def __getitem__(self, index: Any) -> Any:
                item = super().__getitem__(index)
                return record(item["image"], item["label"])

        dataset = Dataset(str(folder), shuffle=True, drop_last=True)
        return endless(litdata.StreamingDataLoader(dataset, batch_size=settings.batch_size, num_workers=settings.num_workers))

    return batches


def mosaicml_reader(*, pillow: bool) -> Callable[[Settings], Iterator[Any]]:
    """Run mosaicml-streaming's MDS shards of the encoded images."""

    def batches(settings: Settings) -> Iterator[Any]:
        declare_torchvision_operators()
        streaming: Any = importlib.import_module("streaming")

        folder = Path(settings.converted) / "mds"
        if not (folder / "index.json").exists():
            with streaming.MDSWriter(
                out=str(folder), columns={"image": "bytes", "label": "int"}, size_limit=16 << 20
            ) as writer:
                for data in encoded_images(settings):
                    writer.write({"image": data, "label": 0})
        streaming.base.util.clean_stale_shared_memory()
        record = _Record(settings, pillow=pillow)

        class Dataset(streaming.StreamingDataset):
            def __getitem__(self, at: Any) -> Any:
                item = super().__getitem__(at)
                return record(item["image"], item["label"])

        dataset = Dataset(local=str(folder), shuffle=True, batch_size=settings.batch_size)
        return endless(
            torch.utils.data.DataLoader(
                dataset,
                batch_size=settings.batch_size,
                num_workers=settings.num_workers,
                drop_last=True,
                persistent_workers=settings.num_workers > 0,
            )
        )

    return batches


def endless(loader: Any) -> Iterator[Any]:
    """Yield epoch after epoch."""
    while True:
        yield from loader


CONTENDERS: dict[str, Callable[[Settings], Iterator[Any]]] = {
    "Pillow, decode alone": alone(pillow_decode),
    "entropy decode alone": alone(entropy_decode),
    "Pillow, decode + crop, fp32": pillow_alone,
    "simplejpeg + torch, decode + crop": transform_alone("whole"),
    "region decoder, decode + crop": transform_alone("region"),
    "ours, region decoder": ours("region"),
    "ours, libraries alone": ours("whole"),
    "webdataset as open_clip": open_clip_style,
    "timm reader (wds)": timm_reader,
    "litdata": litdata_reader(pillow=True),
    "mosaicml-streaming": mosaicml_reader(pillow=True),
    "webdataset, our transform": webdataset_with_ours,
    "litdata, our transform": litdata_reader(pillow=False),
    "mosaicml-streaming, our transform": mosaicml_reader(pillow=False),
}
ALONE = tuple(list(CONTENDERS)[:5])


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and all below it, also of those that have ended."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def worker_mib() -> float:
    """Return the largest private memory of a worker process, MiB; of this one if it has none."""
    processes = psutil.Process().children(recursive=True) or [psutil.Process()]
    return max(process.memory_full_info().uss for process in processes) / 2**20


def main(name: str, settings: Settings) -> None:
    torch.set_num_threads(1)
    batches = CONTENDERS[name](settings)
    next(batches)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        # What was prepared before the round began is used up first.
        for _ in range(PREFETCH * max(1, settings.num_workers)):
            next(batches)
        cpu, wall = cpu_seconds(), time.perf_counter()
        for _ in range(int(line)):
            next(batches)
        cost = {"wall_s": time.perf_counter() - wall, "cpu_s": cpu_seconds() - cpu, "mib": worker_mib()}
        print(json.dumps(cost), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Settings(**json.loads(sys.argv[2])))

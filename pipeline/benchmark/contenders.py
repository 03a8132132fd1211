"""Run what `benchmark loader` compares: each contender is an endless iterator of batches, in a process of its own.

    python -m pipeline.benchmark.contenders NAME SETTINGS

It reads numbers of batches from standard input, a line each, and answers with a line of JSON: what that many cost. A
contender whose library is not installed ends with Python's error, whose last line `benchmark loader` shows.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import Any

import psutil
import torch

from pipeline.benchmark.peers import litdata_reader, mosaicml_reader, open_clip_style, timm_reader, webdataset_with_ours
from pipeline.benchmark.transforms import OurTransform, PillowTransform, Settings, encoded_images, make_transform, pillow_decode
from pipeline.data.images.decode import entropy_decode
from pipeline.data.shards.index import load_index
from pipeline.data.streams.loader import BatchLoader
from pipeline.data.streams.mixture import Corpus, Mixture
from pipeline.data.streams.train import Division, TrainStream

PREFETCH = 2


def alone(work: Callable[[bytes], Any]) -> Callable[[Settings], Iterator[Any]]:
    """Run `work` alone, in one process with images in memory: the baseline for a loader's overhead."""

    def batches(settings: Settings) -> Iterator[Any]:
        images = chain.from_iterable(repeat(encoded_images(settings)))
        while True:
            yield [work(next(images)) for _ in range(settings.batch_size)]

    return batches


def transform_alone(decoder: str) -> Callable[[Settings], Iterator[Any]]:
    return lambda settings: alone(OurTransform(settings, decoder))(settings)


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

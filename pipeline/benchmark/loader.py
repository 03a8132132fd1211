"""Compare this project's loader with its peers' (`benchmark loader`), in interleaved rounds on the same images and cores."""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pipeline.benchmark.contenders import ALONE, CONTENDERS
from pipeline.benchmark.transforms import Settings, make_transform
from pipeline.benchmark.turns import PEERS, Contender
from pipeline.console.progress import progress, track
from pipeline.data.images.decode import has_region_decoder
from pipeline.data.shards.index import load_index
from pipeline.data.streams.loader import BatchLoader
from pipeline.data.streams.mixture import Corpus, Mixture
from pipeline.data.streams.train import Division, TrainStream
from pipeline.errors import DataError
from pipeline.image_size import ImageSize, describe_size

BASELINE = "Pillow, decode alone"
# What each loader does beyond this is its overhead.
WORK_OF = {
    "ours, region decoder": "region decoder, decode + crop",
    "ours, libraries alone": "simplejpeg + torch, decode + crop",
    "webdataset as open_clip": "Pillow, decode + crop, fp32",
    "timm reader (wds)": "Pillow, decode + crop, fp32",
    "litdata": "Pillow, decode + crop, fp32",
    "mosaicml-streaming": "Pillow, decode + crop, fp32",
    "webdataset, our transform": "region decoder, decode + crop",
    "litdata, our transform": "region decoder, decode + crop",
    "mosaicml-streaming, our transform": "region decoder, decode + crop",
}


@dataclass(frozen=True)
class Cost:
    """Holds the medians of one contender's rounds."""

    images_per_s: float
    cpu_ms_per_image: float
    worker_mib: float


class _Contender:
    """Holds a contender: its processes and what they took. Work alone runs in as many processes as a loader has workers."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.settings = settings
        self.problem: str | None = None
        self.rounds: list[dict[str, float]] = []
        self._processes = [
            Contender(
                "pipeline.benchmark.contenders",
                name,
                json.dumps(asdict(settings)),
                peers=PEERS[:2],
                variables={"OMP_NUM_THREADS": "1"},
            )
            for _ in range(max(1, settings.num_workers) if name in ALONE else 1)
        ]
        self._gather()

    def run(self, num_batches: int) -> None:
        share = -(-num_batches // len(self._processes))
        for process in self._processes:
            process.ask(str(share))
        answers = self._gather()
        if answers:
            images = share * len(answers) * self.settings.batch_size
            self.rounds.append(
                {
                    "images": images,
                    "wall_s": max(answer["wall_s"] for answer in answers),
                    "cpu_s": sum(answer["cpu_s"] for answer in answers),
                    "mib": max(answer["mib"] for answer in answers),
                }
            )

    def _gather(self) -> list[dict[str, Any]]:
        answers = [process.answer() for process in self._processes]
        if None in answers:
            self.problem = self._processes[answers.index(None)].last_words()
            return []
        return [answer for answer in answers if answer is not None]

    def close(self) -> None:
        for process in self._processes:
            process.close()

    def result(self) -> Cost | str:
        """Return the contender's cost, or why there is none."""
        return cost_of(self.rounds) if self.problem is None and self.rounds else f"not run: {self.problem}"


def cost_of(rounds: list[dict[str, float]]) -> Cost:
    """Return medians over rounds: one interrupted round does not count."""
    return Cost(
        images_per_s=statistics.median(r["images"] / r["wall_s"] for r in rounds),
        cpu_ms_per_image=statistics.median(1e3 * r["cpu_s"] / r["images"] for r in rounds),
        worker_mib=max(r["mib"] for r in rounds),
    )


def compare_loaders(
    folder: str, *, num_workers: int, batch_size: int, image_size: ImageSize, num_batches: int, num_rounds: int, only: list[str]
) -> str:
    """Measure all contenders in turns and return a table.

    Raises:
        DataError: no index, or fewer shards than workers.
    """
    index = load_index(folder)
    if len(index.shard_names) < num_workers:
        raise DataError(
            f"{folder} holds {len(index.shard_names)} shards, webdataset gives every worker its own: at least {num_workers}; "
            "pack it again with a smaller --samples-per-shard"
        )
    with tempfile.TemporaryDirectory() as converted:
        settings = Settings(folder, converted, num_workers, batch_size, image_size)
        names = [name for name in CONTENDERS if not only or any(part in name for part in only)]
        contenders = [_Contender(name, settings) for name in track(names, description="start", unit="loader")]
        try:
            running = [contender for contender in contenders if contender.problem is None]
            with progress(total=num_rounds * len(running), description="rounds", unit="round") as bar:
                for _ in range(num_rounds):
                    for contender in running:
                        if contender.problem is None:
                            contender.run(num_batches)
                        bar.update()
        finally:
            for contender in contenders:
                contender.close()
        heading = (
            f"{index.num_samples} images of {folder}, to {describe_size(image_size)}, batches of {batch_size}, {num_workers} "
            f"worker processes, {os.cpu_count()} cores; medians of {num_rounds} interleaved rounds of {num_batches} batches"
        )
        resume = "\n".join(resume_line(settings, position) for position in (10**4, 10**9))
    return f"{heading}\n\n{make_table({contender.name: contender.result() for contender in contenders})}\n\n{resume}"


def make_table(results: Mapping[str, Cost | str]) -> str:
    """Return a row for each contender: its cost, or why there is none."""
    costs = {name: result for name, result in results.items() if isinstance(result, Cost)}
    lines = [
        "| | images/s | images/s a core | CPU ms an image | of Pillow's decode | overhead over decode + crop | MiB a worker |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, cost in results.items():
        if not isinstance(cost, Cost):
            lines.append(f"| {name} | {cost} | | | | | |")
            continue
        own = cost.cpu_ms_per_image or math.nan  # less than a tick of the clock that counts it
        per_core = 1e3 / own
        relative = f"{costs[BASELINE].cpu_ms_per_image / own:.2f}" if BASELINE in costs else ""
        work = costs.get(WORK_OF.get(name, ""))
        overhead = (
            f"{100 * (cost.cpu_ms_per_image / work.cpu_ms_per_image - 1):+.0f} %" if work and work.cpu_ms_per_image else ""
        )
        memory = "" if name in ALONE else f"{cost.worker_mib:.0f}"
        wall = "" if name in ALONE else f"{cost.images_per_s:.0f}"
        lines.append(f"| {name} | {wall} | {per_core:.0f} | {cost.cpu_ms_per_image:.2f} | {relative} | {overhead} | {memory} |")
    return "\n".join(lines)


def resume_line(settings: Settings, position: int) -> str:
    """Return how long our loader takes from its start to the batch at a position."""
    mixture = Mixture((Corpus(load_index(settings.folder)),))
    begin = time.perf_counter()
    stream = TrainStream(
        mixture=mixture,
        order=mixture.make_order(seed=0, num_streams=settings.batch_size),
        division=Division(global_batch_size=settings.batch_size, rank=0, world_size=1, accumulation_steps=1),
        transform=make_transform(settings, "region" if has_region_decoder() else "whole"),
        num_classes=2**31,
        start_step=position // settings.batch_size,
    )
    torch.set_num_threads(1)
    next(iter(BatchLoader(stream, num_workers=0, prefetch=1, pin_memory=False)))
    elapsed_s = time.perf_counter() - begin
    return f"resume at position {position:.0e}: first batch after {elapsed_s:.2f} s (ours, decoding it included)"

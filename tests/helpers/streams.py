"""Streams of training batches over small shards, and a server of byte ranges, for tests."""

from __future__ import annotations

import http.server
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from pipeline.data.images.crop import TrainTransform
from pipeline.data.images.crops.boxes import CropBounds
from pipeline.data.shards.index import load_index
from pipeline.data.streams.loader import Batch, BatchLoader
from pipeline.data.streams.mixture import Corpus, Mixture
from pipeline.data.streams.train import Division, TrainStream

TRANSFORM = TrainTransform(
    image_size=16,
    bounds=CropBounds(min_area=0.2, max_area=1.0, min_ratio=0.75, max_ratio=4 / 3),
    flip=True,
    resize="bilinear",
    decoder="whole",
)
BATCH = 12


def make_stream(
    folder: Path,
    *,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
    start_step: int = 0,
    classes: int = 12,
    transform: TrainTransform = TRANSFORM,
    repeats: int = 1,
    read_ahead: int = 8,
) -> TrainStream:
    """Return a rank's stream over the shards of a folder, with the order of seed 5."""
    index = load_index(str(folder))
    division = Division(global_batch_size=BATCH, rank=rank, world_size=world_size, accumulation_steps=accumulation)
    mixture = Mixture((Corpus(index),))
    return TrainStream(
        mixture=mixture,
        order=mixture.make_order(seed=5, num_streams=BATCH, repeats=repeats),
        division=division,
        transform=transform,
        num_classes=classes,
        start_step=start_step,
        read_ahead=read_ahead,
    )


def keep(batch: Batch) -> Batch:
    """Return a batch whose images outlast the ring they lie in."""
    return {**batch, "images": batch["images"].clone()}


def batches(stream: TrainStream) -> BatchLoader:
    """Return the stream's batches, read in this process."""
    return BatchLoader(stream, num_workers=0, prefetch=2, pin_memory=False)


def collect(
    folder: Path, *, steps: int, world_size: int = 1, accumulation: int = 1, workers: int = 0, **changes: Any
) -> list[Batch]:
    """Return all ranks' micro-batches of `steps` steps, in position order."""
    per_rank = []
    for rank in range(world_size):
        stream = make_stream(folder, rank=rank, world_size=world_size, accumulation=accumulation, **changes)
        loader = BatchLoader(stream, num_workers=workers, prefetch=2, pin_memory=False)
        per_rank.append([keep(batch) for batch in islice(loader, steps * accumulation)])
    return [rank[step * accumulation + m] for step in range(steps) for rank in per_rank for m in range(accumulation)]


def joined(batches: list[Batch], key: str) -> torch.Tensor:
    """Return one entry of all batches, joined."""
    return torch.cat([batch[key] for batch in batches])  # type: ignore[literal-required]


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Python's own file server, taught the one header fsspec needs."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, wanted = path.read_bytes(), self.headers.get("Range")
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            part = data[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        else:
            part = data
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        pass

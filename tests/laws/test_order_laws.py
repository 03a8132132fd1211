"""Every run must see the right samples, for any shards, mixture, ranks, workers, kills and changes of the number of ranks."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.images.augment import RandAugmentTF, RandAugmentTimm, ThreeAugment
from pipeline.data.images.crop import TrainTransform
from pipeline.data.images.crops.boxes import CropBounds
from pipeline.data.images.erasing import RandomErasing
from pipeline.data.order import RunOrder, share_streams
from pipeline.data.shards.index import ShardIndex, assemble_index, load_index, save_index
from pipeline.data.shards.scan import scan_shard
from pipeline.data.streams.mixture import Corpus, Mixture
from pipeline.data.streams.train import DIGEST_MODULUS, Division, TrainStream
from pipeline.errors import ConfigError
from tests.conftest import encode, make_image, write_tar

TRANSFORM = TrainTransform(
    image_size=4,
    bounds=CropBounds(min_area=0.2, max_area=1.0, min_ratio=0.75, max_ratio=4 / 3),
    flip=True,
    resize="bilinear",
    decoder="whole",
)
TRANSFORMS = [TRANSFORM] + [
    replace(TRANSFORM, augmentation=section.build(), erasing=RandomErasing(probability=0.5).build())
    for section in (RandAugmentTF(magnitude=15), RandAugmentTimm(), ThreeAugment())
]
PREFIX = f"laws-{os.getpid()}-"  # for this process's folders alone
PICTURES = [encode(make_image(number, num_classes=4, size=8), format="JPEG") for number in range(50)]


@dataclass(frozen=True)
class Run:
    """Describes a run: what it trains on and how far it goes. Its batch is C, or a multiple or divisor of it."""

    mixture: Mixture
    batch: int
    num_streams: int
    seed: int
    steps: int
    repeats: int
    transform: TrainTransform


def write_corpus(folder: Path, shard_sizes: list[int], *, block_samples: int) -> ShardIndex:
    folder.mkdir()
    entries, number = [], 0
    for shard, count in enumerate(shard_sizes):
        members: list[tuple[str, bytes]] = []
        for _ in range(count):
            members += [(f"{number}.jpg", PICTURES[number % len(PICTURES)]), (f"{number}.cls", str(number).encode())]
            number += 1
        path = folder / f"{shard}.tar"
        write_tar(path, members)
        with path.open("rb") as file:
            entries.append(scan_shard(file, name=path.name, num_bytes=path.stat().st_size, block_samples=block_samples))
    save_index(assemble_index(str(folder), entries))
    return load_index(str(folder))


@st.composite
def runs(draw: st.DrawFn) -> Run:
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    sizes = st.lists(st.integers(1, 23), min_size=1, max_size=5)
    num_corpora = draw(st.sampled_from([1, 1, 2, 3]))
    corpora = tuple(
        Corpus(
            write_corpus(folder / str(number), draw(sizes), block_samples=draw(st.integers(1, 9))),
            weight=draw(st.sampled_from([1.0, 2.0, 0.5])),
            first_class=1000 * number,
        )
        for number in range(num_corpora)
    )
    batch = draw(st.sampled_from([12, 32, 48, 64]))
    streams = draw(st.sampled_from([batch, batch, batch // 2, 2 * batch]))
    return Run(
        Mixture(corpora),
        batch,
        streams,
        seed=draw(st.integers(0, 2**32)),
        steps=draw(st.integers(2, 6)),
        repeats=draw(st.sampled_from([1, 1, 2, 3])),
        transform=draw(st.sampled_from(TRANSFORMS)),
    )


def play(
    run: Run, *, first: int, last: int, world_size: int, accumulation: int, workers: int
) -> list[tuple[Counter[int], int]]:
    """Return what all simulated ranks and workers see at steps [first, last): (position, sample id) pairs, and the digest."""
    steps: list[tuple[Counter[tuple[int, int]], int]] = [(Counter(), 0) for _ in range(first, last)]
    for rank in range(world_size):
        division = Division(global_batch_size=run.batch, rank=rank, world_size=world_size, accumulation_steps=accumulation)
        stream = TrainStream(
            mixture=run.mixture,
            order=run.mixture.make_order(seed=run.seed, num_streams=run.num_streams, repeats=run.repeats),
            division=division,
            transform=run.transform,
            num_classes=10_000,
            start_step=first,
            read_ahead=workers % 4,
        )
        for worker in range(max(1, workers)):
            ring = torch.empty((1, division.micro_batch_size, 3, 4, 4), dtype=torch.uint8)
            parts = stream.parts(ring, worker=worker, num_workers=max(1, workers))
            for step in range(last - first):
                for _ in range(accumulation):
                    part = next(parts)
                    steps[step][0].update(zip(part.positions.tolist(), part.sample_ids.tolist(), strict=True))
                    corpus = np.searchsorted(run.mixture.first_sample, part.sample_ids, side="right") - 1
                    own = part.sample_ids - np.array(run.mixture.first_sample)[corpus]
                    assert part.labels.tolist() == (own + 1000 * corpus).tolist()  # as the shards hold them
                    steps[step] = (steps[step][0], (steps[step][1] + part.digest) % DIGEST_MODULUS)
    return steps  # type: ignore[return-value]


@settings(max_examples=25, deadline=None)
@given(run=runs(), data=st.data())
def test_ranks_workers_kills_and_elastic_resumes_change_nothing(run: Run, data: st.DataObject) -> None:
    check_laws(run, data)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=200, deadline=None)
@given(run=runs(), data=st.data())
def test_of_many_corpora_too(run: Run, data: st.DataObject) -> None:
    check_laws(run, data)


def check_laws(run: Run, data: st.DataObject) -> None:
    whole = play(run, first=0, last=run.steps, world_size=1, accumulation=1, workers=0)
    pairs = sorted(pair for step, _ in whole for pair in step)
    assert [position for position, _ in pairs] == list(range(run.steps * run.batch))
    first = 0
    while first < run.steps:  # each launch: other ranks, other workers, killed at some step
        last = data.draw(st.integers(first + 1, run.steps))
        world = data.draw(st.integers(1, run.batch))
        accumulation = data.draw(st.integers(1, min(3, run.batch // world)))
        workers = data.draw(st.integers(0, 8))
        part = play(run, first=first, last=last, world_size=world, accumulation=accumulation, workers=workers)
        assert part == whole[first:last]
        first = last


BLOCKS = st.lists(st.integers(1, 9), min_size=1, max_size=30)


@settings(max_examples=150, deadline=None)
@given(
    corpora=st.lists(BLOCKS, min_size=1, max_size=4), weights=st.data(), extra=st.integers(0, 40), seed=st.integers(0, 2**32)
)
def test_a_mixture_keeps_every_law(corpora: list[list[int]], weights: st.DataObject, extra: int, seed: int) -> None:
    """Shares hold in every C positions; each corpus's epochs hold each of its samples once."""
    drawn = [weights.draw(st.floats(0.2, 3.0)) for _ in corpora]
    streams = 20 * len(corpora) + extra
    blocks = [np.array(sizes) for sizes in corpora]
    order = RunOrder(blocks, weights=drawn, seed=seed, num_streams=streams)
    rows = 2 + 3 * max(int(sizes.sum()) for sizes in blocks) // min(order.streams_of)
    located = order.locate(np.arange(rows * streams))
    for corpus, sizes in enumerate(blocks):
        mine = located.corpus == corpus
        assert (mine.reshape(rows, streams).sum(axis=1) == order.streams_of[corpus]).all()
        assert abs(order.streams_of[corpus] - streams * drawn[corpus] / sum(drawn)) < 1
        first = np.concatenate([[0], np.cumsum(sizes)])
        samples, epochs = first[located.block[mine]] + located.slot[mine], located.epoch[mine]
        assert (np.diff(epochs) >= 0).all()
        for epoch in range(int(epochs[-1])):  # those that are over
            assert sorted(samples[epochs == epoch].tolist()) == list(range(int(sizes.sum())))
    again = order.locate(np.arange(streams, rows * streams, 7))
    assert again.block.tolist() == located.block[streams::7].tolist()


def test_shares_are_whole_streams_by_largest_remainder() -> None:
    assert share_streams([1, 1, 1], 100) == [34, 33, 33]
    assert share_streams([0.7, 0.3], 4096) == [2867, 1229]
    with pytest.raises(ConfigError, match=r"corpus number 2 has weight 0\.001 of 1\.001, less than one image in 64"):
        share_streams([1.0, 0.001], 64)


def test_a_rank_keeps_its_streams_to_the_end_of_an_epoch() -> None:
    """More than one rank reads only blocks that a cut or a turn of a stream divides, two a stream at most."""
    sizes = np.full(640, 32)
    sizes[::20] = 5
    order = RunOrder([sizes], weights=[1.0], seed=3, num_streams=64)
    located = order.locate(np.arange(int(sizes.sum())))
    ranks = (np.arange(len(located.block)) % 64) // 16
    readers = {(int(block), int(rank)) for block, rank in zip(located.block, ranks, strict=True)}
    assert len(readers) <= 640 + 64


@pytest.fixture(autouse=True, scope="module")
def _clean() -> Iterator[None]:
    yield
    import shutil

    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        shutil.rmtree(folder)

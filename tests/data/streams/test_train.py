"""What a run sees: the same pixels by position, whoever reads them and wherever it starts; and what bad data does."""

from __future__ import annotations

import http.server
import multiprocessing
import os
import signal
import threading
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.data.images.augment import RandAugmentTF, RandAugmentTimm
from pipeline.data.images.crop import EvalTransform
from pipeline.data.images.erasing import RandomErasing
from pipeline.data.shards.index import check_shards, load_index
from pipeline.data.shards.reader import LocalSource
from pipeline.data.streams.evaluation import EvalStream
from pipeline.data.streams.mixture import Corpus, Mixture
from pipeline.data.streams.train import TrainStream
from pipeline.data.workers import start_worker, started
from pipeline.errors import DataError
from tests.conftest import WriteShards, encode, make_image, write_tar
from tests.helpers.streams import BATCH, TRANSFORM, RangeHandler, batches, collect, joined, make_stream

PNG = encode(make_image(0, num_classes=4, size=24), format="PNG")


@pytest.mark.parametrize(
    ("world_size", "accumulation", "workers", "start_step"),
    [
        (1, 1, 0, 3),
        (3, 1, 0, 0),
        (4, 1, 0, 5),
        (12, 1, 0, 0),
        (2, 3, 0, 2),
        (1, 1, 2, 4),
        pytest.param(2, 2, 3, 0, marks=pytest.mark.slow),
        (5, 1, 0, 1),
        (1, 5, 2, 0),
    ],
)
def test_the_sequence_is_the_same_for_everyone(
    corpus: Path, world_size: int, accumulation: int, workers: int, start_step: int
) -> None:
    """83 samples in batches of 12: ten steps cross an epoch's end in the middle of a batch."""
    whole = collect(corpus, steps=10)
    part = collect(
        corpus, steps=10 - start_step, world_size=world_size, accumulation=accumulation, workers=workers, start_step=start_step
    )
    for key in ("positions", "sample_ids", "labels", "images"):
        assert torch.equal(joined(whole, key)[start_step * BATCH :], joined(part, key)), key


@pytest.mark.parametrize(("world_size", "workers", "repeats"), [(1, 2, 3), (5, 0, 2)])
def test_it_is_so_with_augmentation_and_repeats(corpus: Path, world_size: int, workers: int, repeats: int) -> None:
    section = RandAugmentTF(magnitude=5) if workers else RandAugmentTimm()
    law = replace(TRANSFORM, augmentation=section.build(), erasing=RandomErasing(probability=0.5).build())
    whole = collect(corpus, steps=25, transform=law, repeats=repeats)
    part = collect(corpus, steps=22, world_size=world_size, workers=workers, start_step=3, transform=law, repeats=repeats)
    for key in ("positions", "sample_ids", "labels", "images"):
        assert torch.equal(joined(whole, key)[3 * BATCH :], joined(part, key)), key
    ids, images = joined(whole, "sample_ids"), joined(whole, "images")
    copies = [image for number, image in zip(ids[: 2 * BATCH].tolist(), images, strict=False) if number == ids[0]]
    assert len(copies) == repeats
    assert all(not torch.equal(copies[0], other) for other in copies[1:])


@pytest.mark.parametrize(("world_size", "repeats"), [(1, 5), (3, 2)])  # a rank's share holds whole groups of copies
def test_repeats_do_not_read_more(
    tmp_path: Path, write_shards: WriteShards, monkeypatch: pytest.MonkeyPatch, world_size: int, repeats: int
) -> None:
    """An epoch with repeats reads each block as often as one without: a block is kept until all copies are played."""
    write_shards(tmp_path / "corpus", shard_sizes=[400], block_samples=16, size=8)
    loaded: list[int] = []
    original = LocalSource.start
    monkeypatch.setattr(LocalSource, "start", lambda self, block: (loaded.append(block), original(self, block))[1])
    counts = {}
    for times in (1, repeats):
        loaded.clear()
        collect(tmp_path / "corpus", steps=400 * times // BATCH, world_size=world_size, repeats=times, read_ahead=1)
        counts[times] = len(loaded)
    assert counts[1] >= 25
    assert counts[repeats] <= counts[1]


def test_positions_count_up_and_samples_are_what_the_shards_hold(corpus: Path) -> None:
    batches = collect(corpus, steps=7)
    assert joined(batches, "positions").tolist() == list(range(84))
    ids = joined(batches, "sample_ids")
    assert sorted(ids[:83].tolist()) == list(range(83))
    assert torch.equal(joined(batches, "labels"), ids % 4)  # as the fixture numbers them


def test_augmentation_differs_between_epochs_not_between_visits(corpus: Path) -> None:
    batches = collect(corpus, steps=14)
    ids, images = joined(batches, "sample_ids"), joined(batches, "images")
    first, second = (ids == 5).nonzero().flatten().tolist()
    assert not torch.equal(images[first], images[second])


def test_starting_reads_one_block_a_stream(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    original = LocalSource.start
    monkeypatch.setattr(LocalSource, "start", lambda self, block: (loaded.append(block), original(self, block))[1])
    next(iter(batches(make_stream(corpus, start_step=1000))))
    assert len(loaded) == len(set(loaded)) <= 2 * BATCH  # those being played, and the next ones read ahead


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Twelve images in three blocks; the sixth and eleventh cannot be decoded."""
    members: list[tuple[str, bytes]] = []
    for number in range(12):
        image = encode(make_image(number, num_classes=4, size=24), format="JPEG")
        if number in (5, 10):
            image = image[: len(image) // 2] if number == 5 else b"not an image"
        members += [(f"{number:03d}.jpg", image), (f"{number:03d}.cls", str(number).encode())]
    write_tar(tmp_path / "a.tar", members)
    from data_tools.index import index_folder
    from data_tools.parallel import LocalWorkers

    index_folder(str(tmp_path), block_samples=4, workers=LocalWorkers(1))
    return tmp_path


def test_an_unreadable_image_is_replaced_by_the_same_one_everywhere(damaged: Path) -> None:
    whole, halves = collect(damaged, steps=4), collect(damaged, steps=4, world_size=2)
    assert torch.equal(joined(whole, "sample_ids"), joined(halves, "sample_ids"))
    ids = joined(whole[:1], "sample_ids").tolist()
    assert 5 not in ids
    assert sorted(ids) == sorted([*(set(range(12)) - {5, 10}), 6, 11])  # the next of the same block
    assert torch.equal(joined(whole, "labels"), joined(whole, "sample_ids"))
    lost = [item for batch in whole[:1] for item in batch["unreadable"]]
    assert sorted(item.key for item in lost) == ["005", "010"]
    assert all(item.shard == "a.tar" and item.reason for item in lost)


def test_a_block_without_one_readable_image_stops(tmp_path: Path, write_shards: WriteShards) -> None:
    write_tar(tmp_path / "a.tar", [("0.jpg", b"x"), ("0.cls", b"0"), ("1.jpg", b"y"), ("1.cls", b"0")])
    from data_tools.index import index_folder
    from data_tools.parallel import LocalWorkers

    index_folder(str(tmp_path), block_samples=2, workers=LocalWorkers(1))
    with pytest.raises(DataError, match=r"a\.tar bytes 0-\d+: none of its 2 images can be decoded"):
        collect(tmp_path, steps=1)


def test_a_truncated_shard_is_named(tmp_path: Path, write_shards: WriteShards) -> None:
    index = write_shards(tmp_path, shard_sizes=[9, 9])
    shard = tmp_path / "shard-001.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"shard-001\.tar has 5000 bytes, not \d+.*Restore them, or index"):
        check_shards(index)
    with pytest.raises(DataError, match=r"shard-001\.tar bytes .*the shard is truncated"):
        collect(tmp_path, steps=5)


def test_a_missing_shard_is_named(tmp_path: Path, write_shards: WriteShards) -> None:
    index = write_shards(tmp_path, shard_sizes=[9, 9])
    (tmp_path / "shard-000.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000\.tar is missing"):
        check_shards(index)
    with pytest.raises(DataError, match=r"shard-000\.tar is missing"):
        collect(tmp_path, steps=5)


def test_shards_that_changed_under_their_index_are_noticed(tmp_path: Path, write_shards: WriteShards) -> None:
    write_shards(tmp_path, shard_sizes=[9])
    shard = tmp_path / "shard-000.tar"
    data = bytearray(shard.read_bytes())
    data[0:512] = bytes(512)  # a zeroed header
    shard.write_bytes(bytes(data))
    with pytest.raises(DataError, match="index the folder again if its shards changed"):
        collect(tmp_path, steps=1)


@pytest.mark.parametrize(
    ("members", "message"),
    [([("0.txt", b"hi"), ("0.cls", b"0")], "sample '0' has no image"), ([("0.png", PNG)], "has no label"),
     ([("0.png", PNG), ("0.cls", b"cat")], "label of sample '0' is 'cat', not a class number")],
)  # fmt: skip
def test_samples_without_image_or_label_are_answered_in_words(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    write_tar(tmp_path / "a.tar", members)
    from data_tools.index import index_folder
    from data_tools.parallel import LocalWorkers

    index_folder(str(tmp_path), block_samples=4, workers=LocalWorkers(1))
    with pytest.raises(DataError, match=message):
        collect(tmp_path, steps=1)


def test_a_class_the_model_lacks_is_answered_in_words(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"shard-00\d\.tar: sample '\d+' has class 3, but model\.num_classes=3"):
        list(islice(batches(make_stream(corpus, classes=3)), 3))


def test_a_negative_label_does_not_become_a_class_of_another_corpus(tmp_path: Path) -> None:
    """Labels that count from 1 and were lowered twice: with first_class=4, -1 would be class 3, of the corpus before."""
    from data_tools.index import index_folder
    from data_tools.parallel import LocalWorkers

    write_tar(tmp_path / "a.tar", [("0.png", PNG), ("0.cls", b"-1")])
    index_folder(str(tmp_path), block_samples=4, workers=LocalWorkers(1))
    stream = make_stream(tmp_path)
    stream.mixture = Mixture((Corpus(load_index(str(tmp_path)), first_class=4),))
    with pytest.raises(DataError, match=r"a\.tar: sample '0' has class -1; classes count from 0"):
        next(iter(batches(stream)))


def test_remote_shards_give_the_same_batches(corpus: Path) -> None:
    """A real HTTP server with range requests, through fsspec."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeHandler, directory=str(corpus)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        index = load_index(f"http://127.0.0.1:{server.server_port}")
        check_shards(index)
        local = make_stream(corpus)
        remote = TrainStream(
            mixture=Mixture((Corpus(index),)),
            order=local.order,
            division=local.division,
            transform=TRANSFORM,
            num_classes=12,
            start_step=0,
        )
        for ours, theirs in zip(islice(batches(local), 3), islice(batches(remote), 3), strict=True):
            assert torch.equal(ours["images"], theirs["images"])
    finally:
        server.shutdown()


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_each_sample_once_in_order(corpus: Path, workers: int) -> None:
    """Whatever a scheduler sends to all processes of a job, while they still start or later: their owner decides."""
    stream = EvalStream(index=load_index(str(corpus)), transform=EvalTransform(image_size=16, short_side=18))
    loader = DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=start_worker,
    )
    labels = []
    with started(loader) as items:
        for moment in ("while they import torch", "while they decode"):
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGTERM)
            labels += [item.labels for item in (items if moment == "while they decode" else islice(items, 1))]
    assert np.concatenate(labels).tolist() == (np.arange(83) % 4).tolist()

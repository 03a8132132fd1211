"""Shards are read from a real S3 server with real faults, and not one sample is lost, repeated or changed."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from data_tools.index import index_folder
from data_tools.parallel import LocalWorkers
from pipeline.data.shards.index import check_shards, load_index
from pipeline.data.shards.reader import BlockReader
from pipeline.data.shards.remote import BlockCache, RemoteOptions
from pipeline.data.streams.loader import BatchLoader
from pipeline.data.streams.mixture import Corpus, Mixture
from pipeline.data.streams.train import Division, TrainStream
from pipeline.errors import DataError
from tests.conftest import WriteShards
from tests.helpers.store import FaultProxy, S3Server, bad_network
from tests.helpers.streams import BATCH, TRANSFORM, joined, keep

STEPS = 24
PATIENT = RemoteOptions(timeout_s=0.8, patience_s=60.0)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, write_shards: WriteShards) -> Path:
    folder = tmp_path_factory.mktemp("store") / "bucket" / "corpus"
    write_shards(folder, shard_sizes=[137, 125, 121], block_samples=3)
    return folder


@pytest.fixture(scope="module")
def server(local: Path) -> Iterator[S3Server]:
    server = S3Server(local.parent.parent)
    yield server
    server.kill()


@pytest.fixture
def proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with bad_network(server, monkeypatch) as proxy:
        yield proxy


def make_stream(folder: str, remote: RemoteOptions = PATIENT) -> TrainStream:
    mixture = Mixture((Corpus(load_index(folder)),))
    return TrainStream(
        mixture=mixture,
        order=mixture.make_order(seed=5, num_streams=BATCH),
        transform=TRANSFORM,
        num_classes=4,
        start_step=0,
        division=Division(global_batch_size=BATCH, rank=0, world_size=1, accumulation_steps=1),
        remote=remote,
    )


def seen(stream: TrainStream, steps: int = STEPS) -> tuple[torch.Tensor, int, int]:
    """Return sample ids, digest of everything, and failed requests that were retried."""
    batches = [keep(batch) for batch in islice(BatchLoader(stream, num_workers=0, prefetch=1, pin_memory=False), steps)]
    return joined(batches, "sample_ids"), sum(b["digest"] for b in batches), sum(len(b["retries"]) for b in batches)


@pytest.mark.parametrize("fault", [*FaultProxy.FAULTS, "mixed"])
def test_no_sample_is_lost_or_repeated(fault: str, local: Path, proxy: FaultProxy) -> None:
    ids, digest, _ = seen(make_stream(str(local)))
    stream = make_stream("s3://bucket/corpus")
    proxy.inject(fault, probability=0.3 if fault != "hang" else 0.05)
    remote_ids, remote_digest, retries = seen(stream)
    print(f"{fault}: {dict(proxy.counts)}, made again: {retries}")
    assert torch.equal(ids, remote_ids)
    assert digest == remote_digest
    assert proxy.counts["reads"] - proxy.counts[fault] >= 40
    assert proxy.counts.total() > proxy.counts["reads"] + (2 if fault == "hang" else 8)
    # A slow answer is not a failure, and s3fs retries broken connections by itself before we do.
    assert retries > 0 or fault in ("slow", "reset", "truncated")


@pytest.mark.slow
def test_a_server_that_dies_and_returns(local: Path, server: S3Server, proxy: FaultProxy) -> None:
    ids, digest, _ = seen(make_stream(str(local)), steps=60)
    stream = make_stream("s3://bucket/corpus")
    batches = []
    for number, batch in enumerate(islice(BatchLoader(stream, num_workers=0, prefetch=1, pin_memory=False), 60)):
        batches.append(keep(batch))
        if number in (10, 30):
            server.kill()
            threading.Timer(2.0, server.start).start()
    retries = sum(len(batch["retries"]) for batch in batches)
    print(f"killed twice: made again: {retries}")
    assert torch.equal(ids, joined(batches, "sample_ids"))
    assert digest == sum(batch["digest"] for batch in batches)
    assert retries > 0


def test_patience_ends(local: Path, proxy: FaultProxy) -> None:
    stream = make_stream("s3://bucket/corpus", RemoteOptions(timeout_s=1.0, patience_s=1.0))
    proxy.inject("error", probability=1.0)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"shard-00\d\.tar bytes .* could not be read for \d+ s .*data\.read_patience_s"):
        seen(stream, steps=1)
    assert time.monotonic() - start < 30


def test_what_waiting_does_not_mend_is_said_at_once(local: Path, proxy: FaultProxy, tmp_path: Path) -> None:
    stream = make_stream("s3://bucket/corpus")
    moved = tmp_path / "shard-001.tar"
    shutil.move(local / "shard-001.tar", moved)
    try:
        with pytest.raises(DataError, match=r"s3://bucket/corpus/shard-001\.tar is missing"):
            seen(stream, steps=5)
        with pytest.raises(DataError, match=r"shard-001\.tar is missing"):
            check_shards(load_index("s3://bucket/corpus"))
    finally:
        shutil.move(moved, local / "shard-001.tar")
    with pytest.raises(DataError, match="credentials come from the environment"):
        load_index("https://me:secret@host/corpus")


def test_a_remote_folder_can_be_indexed(local: Path, proxy: FaultProxy) -> None:
    before = load_index(str(local))
    (local / "index.safetensors").unlink()
    made = index_folder("s3://bucket/corpus", block_samples=3, workers=LocalWorkers(1)).index
    assert made.fingerprint == before.fingerprint == load_index("s3://bucket/corpus").fingerprint
    check_shards(load_index("s3://bucket/corpus"))


def settled(proxy: FaultProxy) -> int:
    """Return the reads so far, once those begun ahead have ended."""
    reads = -1
    while reads != proxy.counts["reads"]:
        reads = proxy.counts["reads"]
        time.sleep(0.5)
    return reads


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_cache_answers_its_share_and_stays_within_its_limit(
    share: float, local: Path, proxy: FaultProxy, tmp_path: Path
) -> None:
    index = load_index(str(local))
    limit = int(share * (index.shard_bytes.sum() + 8 * index.num_blocks))
    remote = RemoteOptions(cache_dir=str(tmp_path / "cache"), cache_bytes=limit)
    proxy.inject("none", probability=0.0)
    ids, digest, _ = seen(make_stream(str(local)))
    first, reads = seen(make_stream("s3://bucket/corpus", remote)), settled(proxy)
    proxy.inject("none", probability=0.0)
    again, reads_again = seen(make_stream("s3://bucket/corpus", remote)), settled(proxy)
    assert torch.equal(first[0], ids)
    assert first[1] == again[1] == digest
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()) <= limit
    assert reads > 100
    assert reads_again == 0 if share == 1.0 else 0.3 < reads_again / reads < 0.7


def test_a_damaged_block_of_the_cache_is_read_again(local: Path, proxy: FaultProxy, tmp_path: Path) -> None:
    remote = RemoteOptions(cache_dir=str(tmp_path), cache_bytes=1 << 30)
    index = load_index("s3://bucket/corpus")
    whole = [sample.image for sample in BlockReader(index, capacity=1, remote=remote).read(3)]
    kept = BlockCache(index, folder=str(tmp_path), num_bytes=1 << 30).path_of(3)
    assert kept is not None
    data = bytearray(kept.read_bytes())
    data[700] ^= 1
    kept.write_bytes(bytes(data))
    assert [sample.image for sample in BlockReader(index, capacity=1, remote=remote).read(3)] == whole
    assert np.frombuffer(kept.read_bytes(), np.uint8)[700] == data[700] ^ 1  # mended

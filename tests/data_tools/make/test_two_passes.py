"""Two passes give the bytes of one, whatever the source, the memory and the kills; and say what they need."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.__main__ import main
from data_tools.make.pack import Passes, make_shards
from data_tools.make.plan import MakeOptions, ShardSize
from data_tools.make.reencode import Encoding
from data_tools.make.shuffle_plan import SUM_BYTES, locate, plan_shuffle
from data_tools.make.sources.listing import Listing, Member
from data_tools.make.sources.listing_builder import ListingBuilder
from data_tools.make.two_passes import WORKER_BYTES
from data_tools.parallel import LocalWorkers, Workers
from pipeline.errors import DataError
from tests.conftest import REPOSITORY, environment
from tests.helpers.sources import WRITERS, Made, read_made
from tests.helpers.web_server import serve
from tests.helpers.workers import WorkersHere

PLAIN = MakeOptions(shard_size=ShardSize(3), block_samples=4)
TINY = Passes(2, memory_bytes=WORKER_BYTES + 9_000)  # some shards a bucket


WAYS = {
    "plain": PLAIN,
    "split by bytes": replace(PLAIN, val_fraction=0.3, shard_size=ShardSize(6_000, "bytes")),
    "as listed": replace(PLAIN, order="as listed"),
    "smaller": replace(PLAIN, encoding=Encoding(short_side=24)),
}


def make(
    source: Path | str, folder: Path, passes: Passes = TINY, options: MakeOptions = PLAIN, workers: Workers | None = None
) -> Made:
    make_shards(str(source), str(folder), options=options, workers=workers or WorkersHere(), passes=passes)
    return read_made(folder)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    return {kind: write(root / kind.replace(" ", "-")) for kind, write in WRITERS.items()}


@pytest.mark.parametrize(
    ("kind", "way"),
    [*((kind, "split by bytes") for kind in WRITERS), *(("WebDataset tars", way) for way in WAYS if way != "split by bytes")],
)
def test_two_passes_give_the_bytes_of_one(kind: str, way: str, sources: dict[str, Path], tmp_path: Path) -> None:
    workers = WorkersHere()
    one = make(sources[kind], tmp_path / "one", Passes(1), WAYS[way])
    two = make(sources[kind], tmp_path / "two", TINY, WAYS[way], workers)
    assert one == two
    assert sum(name.startswith("pass 1") for name in workers.seen) > 2
    assert sum(name.startswith("pass 2") for name in workers.seen) > 2
    assert not (tmp_path / "two" / ".make").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("num_workers", [1, pytest.param(3, marks=pytest.mark.long)])
def test_the_number_of_workers_and_the_memory_change_nothing(
    kind: str, num_workers: int, sources: dict[str, Path], tmp_path: Path
) -> None:
    options = WAYS["split by bytes"]
    one = make(sources[kind], tmp_path / "one", Passes(1), options)
    for extra in (7_000, 10**9):
        passes = Passes(2, memory_bytes=WORKER_BYTES + extra, scratch=str(tmp_path / "scratch"))
        assert make(sources[kind], tmp_path / str(extra), passes, options, LocalWorkers(num_workers)) == one
        assert not list((tmp_path / "scratch").iterdir())


def test_a_source_on_a_web_server_is_read_in_two_passes(sources: dict[str, Path], tmp_path: Path) -> None:
    made = {}
    with serve(sources["class tars"].parent) as (url, requests):
        for place, source in (("web", f"{url}/{sources['class tars'].name}"), ("here", sources["class tars"])):
            made[place] = make(source, tmp_path / place, replace(TINY, number=None if place == "web" else 2))
        num_requests = len(requests)
        make(f"{url}/{sources['class tars'].name}", tmp_path / "web", replace(TINY, number=None))
    again = {path.rpartition("/")[2] for path, wanted in requests[num_requests:] if wanted not in ("", "bytes=0-0")}
    assert again == {"classa.tar", "classb.tar", "classc.tar"}  # all is there: only what kind it is was looked at
    # The record differs in what names the source's place and time alone.
    web, here = (json.loads(made[place].files.pop("make.json")) for place in ("web", "here"))
    assert made["web"] == made["here"]
    assert {name for name in web if web[name] != here[name]} == {"times", "stamp"}


def list_of(sizes: list[list[int]]) -> Listing:
    """Return a listing of samples with members of these sizes, that lie in two files in turn."""
    builder = ListingBuilder()
    ends = [0, 0]
    for number, of_sample in enumerate(sizes):
        members = []
        for extension, size in zip(("jpg", "json", "txt"), of_sample, strict=False):
            members.append(Member(extension, number % 2, ends[number % 2], size))
            ends[number % 2] += size
        builder.add(f"{number}", labels=(number,), members=members)
    return builder.build(layout="ranges", files=("a", "b"))


@given(
    st.lists(st.lists(st.integers(0, 900), min_size=1, max_size=3), min_size=1, max_size=40),
    st.integers(1, 12),
    st.integers(1, 20_000),
    st.integers(0, 99),
)
def test_the_plan_moves_every_byte_to_its_place(sizes: list[list[int]], per_shard: int, share: int, seed: int) -> None:
    """Both passes, played with arrays: what is put into runs comes out in the order of the shards."""
    listing = list_of(sizes)
    generator = np.random.default_rng(seed)
    files = [generator.integers(0, 256, 40_000, np.uint8) for _ in range(2)]
    order = generator.permutation(len(listing))
    shards = np.split(order, range(per_shard, len(order), per_shard))
    plan = plan_shuffle(listing, shards, share_bytes=share)
    runs = [np.zeros(size, np.uint8) for size in plan.run_bytes().tolist()]
    read: list[tuple[int, int]] = []
    for run in range(plan.num_runs):
        for sample in plan.run_samples(run).tolist():
            at = int(plan.offset[sample])
            for _, file, start, length in listing.members(sample):
                read.append((file, start))
                runs[run][at : at + length] = files[file][start : start + length]
                at += length
    assert read == sorted(read)  # in sequence
    assert [int(plan.segment_bytes(plan.run_samples(run)).sum()) for run in range(plan.num_runs)] == [
        len(run) - SUM_BYTES * plan.num_buckets for run in runs
    ]
    seen: list[int] = []
    for bucket in range(plan.num_buckets):
        for shard in plan.bucket_shards(bucket):
            seen.append(shard)
            for sample in shards[shard].tolist():
                assert plan.bucket[sample] == bucket
                located = locate(listing.take(np.array([sample])), plan.offset[[sample]])
                for (_, file, start, length), (_, _, at, _) in zip(listing.members(sample), located.members(0), strict=True):
                    assert np.array_equal(runs[plan.run[sample]][at : at + length], files[file][start : start + length])
    assert seen == list(range(len(shards)))


def test_a_source_that_changes_between_the_passes_is_named(sources: dict[str, Path], tmp_path: Path) -> None:
    source = shutil.copytree(sources["WebDataset tars"], tmp_path / "source")

    def change(description: str) -> None:
        if description.startswith("pass 1"):
            data = (source / "set-1.tar").read_bytes()
            (source / "set-1.tar").write_bytes(data[:1000] + b"\xff" * 50 + data[1050:])
            os.utime(source / "set-1.tar", (0, 0))

    with pytest.raises(DataError, match=r"set-1.tar has changed since it was listed \(before: \d+ bytes"):
        make(source, tmp_path / "made", workers=WorkersHere(change))


def test_a_damaged_run_is_found_and_the_same_command_mends_it(sources: dict[str, Path], tmp_path: Path) -> None:
    def damage(description: str) -> None:
        if description.startswith("pass 2"):
            run = sorted((tmp_path / "made" / ".make").rglob("*.run"))[1]
            data = bytearray(run.read_bytes())
            data[len(data) // 2] ^= 1
            run.write_bytes(data)

    expected = make(sources["image folder"], tmp_path / "one", Passes(1))
    with pytest.raises(DataError, match=r"000001.run was damaged on the disk, and is removed"):
        make(sources["image folder"], tmp_path / "made", workers=WorkersHere(damage))
    workers = WorkersHere()
    assert make(sources["image folder"], tmp_path / "made", workers=workers) == expected
    assert sum(name.startswith("pass 1") for name in workers.seen) == 1


def test_a_full_disk_is_said_and_the_same_command_resumes(sources: dict[str, Path], tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(description: str) -> None:
        if description.startswith("pass 1"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limits[1]))

    expected = make(sources["image folder"], tmp_path / "one", Passes(1))
    try:
        with pytest.raises(
            DataError, match=r"made/.make/runs/\w+ cannot be written \(File too large\).* with --scratch; the same"
        ):
            make(sources["image folder"], tmp_path / "made", workers=WorkersHere(fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "made" / ".make").rglob("*.part"))
    assert make(sources["image folder"], tmp_path / "made") == expected


def test_what_is_needed_is_said_and_what_is_not_there_is_refused(
    sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(sources["image folder"], tmp_path / "made")
    shown = capsys.readouterr().out
    assert re.search(r"two passes: 44.\d kB in \d+ runs and \d+ buckets, read in pieces of [\d.]+ kB\n", shown)
    assert "memory: at most 336 MB a worker (--memory), 1 workers" in shown
    assert re.search(rf"scratch: 4\d.\d kB in {tmp_path}/made/.make/runs/\w+ \(--scratch\), which has .* free", shown)
    with pytest.raises(DataError, match=r"--memory: a worker of 100 MB holds no sample; it takes 336 MB without any"):
        make(sources["image folder"], tmp_path / "other", Passes(2, memory_bytes=10**8))
    with pytest.raises(
        DataError, match=r"shard-\d+.tar will hold 3.\d+ kB, and a worker holds a shard in memory: give --memory"
    ):
        make(sources["image folder"], tmp_path / "other", Passes(2, memory_bytes=WORKER_BYTES + 99))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"has 1 kB free, and the two passes need 4\d.\d kB more there; .* --scratch"):
        make(sources["image folder"], tmp_path / "other")
    assert main(["make", str(sources["CSV"]), str(tmp_path / "x"), "--passes", "2", "--memory", "1KB", "--workers", "1"]) == 2


SCRIPT = """
import sys
from data_tools.make.pack import Passes, make_shards
from data_tools.make.plan import MakeOptions, ShardSize
from data_tools.make.two_passes import WORKER_BYTES
from data_tools.parallel import LocalWorkers
if __name__ == "__main__":
    options = MakeOptions(shard_size=ShardSize(1), block_samples=4)
    passes = Passes(2, memory_bytes=WORKER_BYTES + 4_000)
    make_shards(sys.argv[1], sys.argv[2], options=options, workers=LocalWorkers(2), passes=passes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [".make/runs/*/*.run", "*.tar"])
def test_killed_in_either_pass_it_leaves_nothing_half_and_goes_on(
    pattern: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    options = replace(PLAIN, shard_size=ShardSize(1))
    expected = make(sources["WebDataset tars"], tmp_path / "one", Passes(1), options)
    (tmp_path / "script.py").write_text(SCRIPT)
    target = tmp_path / "made"
    command = [sys.executable, str(tmp_path / "script.py"), str(sources["WebDataset tars"]), str(target)]
    seen = 0
    for _ in range(3):
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment() | {"PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        while process.poll() is None and len(list(target.glob(pattern))) <= seen:
            time.sleep(0.001)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        seen = len(list(target.glob(pattern)))
        assert seen > 0
        tars = {path.name: path.read_bytes() for path in target.glob("*.tar")}
        assert tars.items() <= expected.files.items()
    passes = Passes(2, memory_bytes=WORKER_BYTES + 4_000)
    assert make(sources["WebDataset tars"], target, passes, options) == expected

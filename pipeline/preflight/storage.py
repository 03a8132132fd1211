"""Try what a run folder's file system has to do, and how fast shards are read."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.data.shards.index import load_index
from pipeline.data.shards.reader import BlockReader
from pipeline.errors import PipelineError
from pipeline.files import write_whole
from pipeline.preflight.measure import Measure, Severity, wanted

GIB = 2**30
WRITTEN_BYTES = 64 * 2**20
SMALL_WRITES = 10
LEAST_FREE_GIB = 50.0  # three checkpoints of H/14
MOST_SKEW_S = 2.0
BLOCKS = 32  # read for the rate of shards


def try_folder(folder: Path) -> Iterator[Measure]:
    """Yield what the file system of a folder does and how fast. The folder is this process's own, and is left empty.

    Raises:
        OSError: nothing can be written there.
    """
    state = os.statvfs(folder)
    yield wanted(
        "run folder free",
        state.f_bavail * state.f_frsize / GIB,
        "GiB",
        at_least=LEAST_FREE_GIB,
        advice="three checkpoints of ViT-H/14 take 35 GiB, and all weights are kept: use a larger file system",
    )
    operations: dict[str, Callable[[Path], None]] = {
        "rename over a file": _rename,
        "create exclusively": _create_exclusively,
        "hard link": _link,
        "symbolic link": _symlink,
    }
    failed = []
    for name, operation in operations.items():
        try:
            operation(folder)
        except OSError as error:
            failed.append(f"{name} ({error.strerror or error})")
    needed = [text for text in failed if not text.startswith(("hard link", "symbolic link"))]
    advice = None
    if needed:
        advice = "checkpoints need it to be complete or absent: use another file system for output_dir"
    elif failed:
        advice = "weights are copied instead of linked, which takes space"
    severity: Severity = "problem" if needed else "warning"
    yield Measure("file operations", f"without {', '.join(failed)}" if failed else "all", advice=advice, severity=severity)
    yield Measure("checkpoint written at", _write_rate(folder) / 1e6, "MB/s", rule="none less")
    yield Measure("small file, flushed", 1e3 * _small_write_s(folder), "ms", rule="none more")
    skew = _clock_of(folder)
    yield Measure(
        "file system's clock is ahead by",
        skew,
        "s",
        advice=None if abs(skew) <= MOST_SKEW_S else "this machine's clock or the file server's is wrong: start chrony or ntpd",
    )


def _rename(folder: Path) -> None:
    first, second = folder / "first", folder / "second"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    first.replace(second)
    if second.read_bytes() != b"1":
        raise OSError("it has the old contents")


def _create_exclusively(folder: Path) -> None:
    path = folder / "exclusive"
    path.open("xb").close()
    with contextlib.suppress(FileExistsError):
        path.open("xb").close()
        raise OSError("it was created twice")


def _link(folder: Path) -> None:
    (folder / "linked").write_bytes(b"1")
    os.link(folder / "linked", folder / "link")


def _symlink(folder: Path) -> None:
    (folder / "symbolic").symlink_to("linked")


def _write_rate(folder: Path) -> float:
    data = os.urandom(WRITTEN_BYTES)
    begin = time.perf_counter()
    write_whole(folder / "large", data)
    return WRITTEN_BYTES / (time.perf_counter() - begin)


def _small_write_s(folder: Path) -> float:
    begin = time.perf_counter()
    for _ in range(SMALL_WRITES):
        write_whole(folder / "small", b"{}")
    return (time.perf_counter() - begin) / SMALL_WRITES


def _clock_of(folder: Path) -> float:
    path = folder / "clock"
    before = time.time()
    path.write_bytes(b"1")
    after = time.time()
    modified = path.stat().st_mtime
    # Times of files may be rounded down to the kernel's tick.
    return modified - before if modified < before else max(0.0, modified - after)


@contextlib.contextmanager
def own_folder(parent: Path, name: str) -> Iterator[Path]:
    """Make a folder of this process's own below a parent, and remove it at the end."""
    folder = parent / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_shards(path: str, *, rank: int, world_size: int) -> Iterator[Measure]:
    """Yield how fast this rank reads blocks from all over a corpus. Other ranks read at the same time."""
    try:
        index = load_index(path)
        reader = BlockReader(index, capacity=1)
        blocks = [(rank + world_size * number) * 7919 % index.num_blocks for number in range(BLOCKS)]
        begin, num_bytes = time.perf_counter(), 0
        slowest = 0.0
        for block in blocks:
            start = time.perf_counter()
            num_bytes += sum(len(sample.image) for sample in reader.read(block))
            slowest = max(slowest, time.perf_counter() - start)
        seconds = time.perf_counter() - begin
    except PipelineError as error:
        yield Measure("shards", "unreadable", advice=str(error), severity="problem")
        return
    yield Measure("shards read at", num_bytes / seconds / 1e6, "MB/s", rule="none less")
    yield Measure("slowest block", 1e3 * slowest, "ms", rule="none more")

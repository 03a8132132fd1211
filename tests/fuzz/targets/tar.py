"""The tar scanner gives what Python's own reader finds, or a refusal, and blocks read back as they were scanned."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

from pipeline.data.shards.member_names import split_name
from pipeline.data.shards.scan import scan_shard
from pipeline.data.shards.tar import TarSample, find_defect, scan_samples
from pipeline.errors import DataError
from tests.fuzz import tar_files
from tests.fuzz.fuzzer import BrokenLaw, Fuzzer, Outcome

NAME = "000.tar"
LARGE = 1 << 22  # bytes; a member with holes may be larger


def tars(scratch: Path) -> Fuzzer:
    return Fuzzer(make=tar_files.mutate, check=lambda data: _check(data, scratch / NAME))


def _check(data: bytes, path: Path) -> Outcome:
    path.write_bytes(data)  # a file, since reads of any size cost nothing in memory
    try:
        with path.open("rb") as file:
            samples = list(scan_samples(file, name=NAME))
    except DataError:
        return "refused"
    _check_ranges(samples, len(data))
    _check_content(samples, data)
    _check_blocks(data)
    return "taken"


def _check_ranges(samples: list[TarSample], num_bytes: int) -> None:
    end = 0
    for sample in samples:
        if not end <= sample.start < sample.end <= num_bytes + tar_files.UNIT:
            raise BrokenLaw("a sample overlaps another, or the end", details=str(sample))
        end = sample.end
        for member in sample.members:
            if member.start < 0 or member.length < 0 or (member.pieces is None and member.start + member.length > num_bytes):
                raise BrokenLaw("a member lies outside of the tar", details=str(member))


def _check_content(samples: list[TarSample], data: bytes) -> None:
    """Python's reader stops at damage without a message, so it may see less than a whole tar; ours must then have refused."""
    if any(member.length > LARGE for sample in samples for member in sample.members):
        return
    found = [
        (sample.key, member.extension, member.read(lambda start, length: data[start : start + length]))
        for sample in samples
        for member in sample.members
    ]
    expected = tar_files.reference(data)
    if expected is None:
        return
    named = [(*split_name(name), content) for name, content in expected]
    wanted = [(key, extension.lower(), content) for key, extension, content in named if key]
    if found != wanted and not tar_files.has_gnu_prefix(data):
        raise BrokenLaw("the members are not those that tarfile reads", details=f"{_sizes(found)}\n{_sizes(wanted)}")


def _sizes(members: list[tuple[str, str, bytes]]) -> str:
    return ", ".join(f"{key}.{extension} {len(content)} {zlib.crc32(content):08x}" for key, extension, content in members)


def _check_blocks(data: bytes) -> None:
    try:
        entry = scan_shard(io.BytesIO(data), name=NAME, num_bytes=len(data), block_samples=2)
    except DataError:
        return
    kept = [sample for sample in scan_samples(io.BytesIO(data), name=NAME) if find_defect(sample) is None]
    read: list[TarSample] = []
    for start, size in zip(entry.block_offset.tolist(), entry.block_bytes.tolist(), strict=True):
        read += scan_samples(io.BytesIO(data[start : start + size]), name=NAME, links="mark")
    if [(sample.key, len(sample.members)) for sample in read] != [(sample.key, len(sample.members)) for sample in kept]:
        raise BrokenLaw("a block's samples are not those of the tar", details=f"{read!r:.2000}\n{kept!r:.2000}")

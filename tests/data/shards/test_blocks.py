"""A block in memory and one in a file are the same to their reader, and descriptors are closed."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.shards.blocks import BlockBytes, FileBlock, MemoryBlock, OpenFile

DATA = os.urandom(9000)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blocks") / "shard.tar"
    path.write_bytes(DATA)
    return path


def both(path: Path, *, offset: int, num_bytes: int) -> tuple[BlockBytes, BlockBytes, bytes]:
    """Return the block in memory, the block in the file, and its bytes."""
    content = DATA[offset : offset + num_bytes]
    return MemoryBlock(content), FileBlock(OpenFile(path), offset=offset, num_bytes=num_bytes), content


@example(offset=1000, num_bytes=500, reads=[(490, 100)])  # another block follows in the file
@example(offset=8500, num_bytes=1000, reads=[(490, 100)])  # the file ends in the block
@example(offset=9200, num_bytes=100, reads=[(0, 10)])  # the file ends before the block
@given(st.integers(0, 9500), st.integers(0, 6000), st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 5000)), max_size=8))
@settings(max_examples=40, deadline=None)
def test_both_read_the_blocks_bytes_and_no_others(
    shard: Path, offset: int, num_bytes: int, reads: list[tuple[int, int]]
) -> None:
    """This also holds where the shard is truncated, in the block or before it."""
    *blocks, content = both(shard, offset=offset, num_bytes=num_bytes)
    for block in blocks:
        assert block.num_bytes == len(content)
        with block.open() as file:
            assert file.read() == content
        scanned, reference = block.open(), io.BytesIO(content)
        for start, length in reads:
            assert block.read(start, length) == content[start : start + length]
            scanned.seek(start)
            reference.seek(start)
            assert scanned.read(length) == reference.read(length)


@pytest.mark.parametrize(("offset", "whence"), [(0, os.SEEK_END), (-5, os.SEEK_END), (40, os.SEEK_SET), (3, os.SEEK_CUR)])
def test_seeks_are_within_the_block(shard: Path, offset: int, whence: int) -> None:
    *blocks, content = both(shard, offset=1000, num_bytes=500)
    reference = io.BytesIO(content)
    expected = reference.seek(offset, whence), reference.read(10)
    for block in blocks:
        file = block.open()
        assert (file.seek(offset, whence), file.read(10)) == expected


def test_a_descriptor_is_closed_with_its_last_user(shard: Path) -> None:
    descriptor = OpenFile(shard)
    number = descriptor()
    block = FileBlock(descriptor, offset=0, num_bytes=100)
    del descriptor
    assert block.read(0, 4) == DATA[:4]
    del block
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)

"""A file in ranges reads like a file in memory, and requests no more than it must."""

from __future__ import annotations

import io

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.shards.range_file import KEPT_BLOCKS, RangeFile

DATA = bytes(range(256)) * 5
Request = tuple[int, int]


def open_data(*, block_bytes: int, num_bytes: int = len(DATA)) -> tuple[RangeFile, list[Request]]:
    """Return the file, and the requests it makes."""
    requests: list[Request] = []

    def fetch(start: int, end: int) -> bytes:
        requests.append((start, end))
        return DATA[start:end]

    return RangeFile(fetch, num_bytes=num_bytes, block_bytes=block_bytes), requests


STEPS = st.lists(
    st.tuples(st.just("read"), st.integers(0, 300))
    | st.tuples(st.just("from start"), st.integers(0, 1500))
    | st.tuples(st.just("from here"), st.integers(0, 200))
    | st.tuples(st.just("from end"), st.integers(-1280, 20)),
    max_size=20,
)
WHENCE = {"from start": io.SEEK_SET, "from here": io.SEEK_CUR, "from end": io.SEEK_END}


@given(STEPS, st.integers(1, 400), st.booleans())
@settings(max_examples=50, deadline=None)
def test_reads_what_a_file_in_memory_reads(steps: list[tuple[str, int]], block_bytes: int, buffered: bool) -> None:
    raw, requests = open_data(block_bytes=block_bytes)
    file = io.BufferedReader(raw, 64) if buffered else raw
    reference = io.BytesIO(DATA)
    for action, value in steps:
        if action != "read":
            assert file.seek(value, WHENCE[action]) == reference.seek(value, WHENCE[action])
        elif buffered:
            assert file.read(value) == reference.read(value)
        else:  # a raw file may give less than was asked for, but not nothing
            got = file.read(value)
            assert got is not None
            assert reference.read(len(got)) == got
            assert got or value == 0 or reference.tell() >= len(DATA)
        assert file.tell() == reference.tell()
    assert all(0 <= start < end <= len(DATA) for start, end in requests)


@given(st.integers(1, 2000), st.integers(1, len(DATA)))
@settings(max_examples=50, deadline=None)
def test_reading_forwards_fetches_every_byte_once(block_bytes: int, num_bytes: int) -> None:
    raw, requests = open_data(block_bytes=block_bytes, num_bytes=num_bytes)
    assert io.BufferedReader(raw, 7).read() == DATA[:num_bytes]
    assert [end for _, end in requests[:-1]] == [start for start, _ in requests[1:]]
    assert (requests[0][0], requests[-1][1]) == (0, num_bytes)
    assert len(requests) == -(-num_bytes // block_bytes)


def test_steps_back_within_the_kept_blocks_cost_nothing() -> None:
    raw, requests = open_data(block_bytes=100)
    raw.seek(0)
    io.BufferedReader(raw, 100).read(1000)
    made = len(requests)
    for back in range(KEPT_BLOCKS):
        raw.seek(999 - 100 * back)
        assert raw.read(1) == DATA[999 - 100 * back :][:1]
    assert len(requests) == made
    raw.seek(999 - 100 * KEPT_BLOCKS)
    raw.read(1)
    assert len(requests) == made + 1


def test_the_block_that_was_read_longest_ago_goes_first() -> None:
    raw, requests = open_data(block_bytes=100)
    first, second, *others = range(KEPT_BLOCKS + 1)
    for number in (first, second, *others[:-1], first, others[-1]):
        raw.seek(100 * number)
        raw.read(1)
    assert [start // 100 for start, _ in requests] == [first, second, *others]
    for number, made in ((first, 0), (second, 1)):  # the first was read again meanwhile, the second made room
        before = len(requests)
        raw.seek(100 * number)
        raw.read(1)
        assert len(requests) == before + made

"""Mutate bytes and texts without knowledge of a format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

INTERESTING_BYTES = (
    0, 1, 2, 7, 8, 9, 10, 13, 15, 16, 31, 32, 34, 39, 44, 46, 47, 48, 57, 58, 63, 64, 91, 92, 123, 127, 128, 254, 255,
)  # fmt: skip
INTERESTING_INTEGERS = (
    0, 1, -1, 2, 7, 8, 255, 256, 511, 512, 513, 2**15, 2**16 - 1, 2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**32, 2**53,
    2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**18, 10**30,
)  # fmt: skip


def mutate_bytes(data: bytes, random: Random, *, words: Sequence[bytes] = (b"\0\0\0\0", b"\xff\xff\xff\xff")) -> bytes:
    """Make one to eight small changes: flips, replacements, cuts, copies, integers and words of the format.

    Args:
        words: words of the format, to be put anywhere.
    """
    result = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 8))):
        random.choice(BYTE_MUTATIONS)(result, random, words)
    return bytes(result)


def _flip(data: bytearray, random: Random, words: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _replace(data: bytearray, random: Random, words: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] = random.choice(INTERESTING_BYTES)


def _cut(data: bytearray, random: Random, words: Sequence[bytes]) -> None:
    start = random.randrange(len(data) + 1)
    del data[start : start + random.choice((1, 1, 2, 4, 16, 512, 1 << 30))]


def _copy(data: bytearray, random: Random, words: Sequence[bytes]) -> None:
    start, offset = (random.randrange(len(data) + 1) for _ in range(2))
    data[offset:offset] = data[start : start + random.choice((1, 2, 4, 16, 64, 512))]


def _overwrite(data: bytearray, random: Random, words: Sequence[bytes]) -> None:
    start, offset = (random.randrange(len(data) + 1) for _ in range(2))
    part = data[start : start + random.choice((1, 2, 4, 16, 64, 512))]
    data[offset : offset + len(part)] = part


def _integer(data: bytearray, random: Random, words: Sequence[bytes]) -> None:
    size = random.choice((1, 2, 4, 8))
    value = random.choice(INTERESTING_INTEGERS) % (1 << 8 * size)
    offset = random.randrange(len(data) + 1)
    data[offset : offset + size] = value.to_bytes(size, random.choice(("little", "big")))


def _digits(data: bytearray, random: Random, words: Sequence[bytes]) -> None:
    """Replace a number in decimal or octal digits by another."""
    starts = [
        offset for offset in range(len(data)) if 48 <= data[offset] <= 57 and (offset == 0 or not 48 <= data[offset - 1] <= 57)
    ]
    if not starts:
        return
    start = end = random.choice(starts)
    while end < len(data) and 48 <= data[end] <= 57:
        end += 1
    number = random.choice(INTERESTING_INTEGERS)
    text = random.choice(
        (str(number), str(number).zfill(end - start), f"{abs(number):o}".zfill(end - start), "1e400", "0.5", "nan")
    )
    data[start:end] = text.encode()


def _word(data: bytearray, random: Random, words: Sequence[bytes]) -> None:
    offset, word = random.randrange(len(data) + 1), random.choice(words)
    data[offset : offset + (len(word) if random.random() < 0.5 else 0)] = word


def _noise(data: bytearray, random: Random, words: Sequence[bytes]) -> None:
    offset = random.randrange(len(data) + 1)
    data[offset:offset] = random.randbytes(random.choice((1, 2, 8, 64)))


BYTE_MUTATIONS: tuple[Callable[[bytearray, Random, Sequence[bytes]], None], ...] = (
    _flip, _flip, _replace, _replace, _cut, _copy, _overwrite, _integer, _digits, _word, _noise,
)  # fmt: skip

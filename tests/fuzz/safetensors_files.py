"""Damage safetensors files: the header's length, the header in JSON, the arrays."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from tests.fuzz.mutations import INTERESTING_INTEGERS, mutate_bytes
from tests.fuzz.values import json_bytes


def mutate_file(data: bytes, random: Random, *, change: Callable[[dict[str, Any], Random], Any]) -> bytes:
    """Return a file with something wrong, or nothing.

    Args:
        change: changes the header's values.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    header, arrays = data[8:start], data[start:]
    kind = random.randrange(10)
    if kind < 5:
        header = json_bytes(change(json.loads(header), random), random)
    elif kind < 7:
        arrays = mutate_bytes(arrays, random)
    length = len(header)
    if kind == 7:
        length = random.choice((*INTERESTING_INTEGERS, length - 1, length + 1, length + len(arrays)))
    whole = (length % 2**64).to_bytes(8, "little") + header + arrays
    if kind == 8:
        whole = random.choice((whole[: random.randrange(len(whole))], whole + random.randbytes(8), mutate_bytes(whole, random)))
    return whole

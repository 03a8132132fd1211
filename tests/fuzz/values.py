"""Mutate nested values: what JSON and YAML files hold."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from random import Random
from typing import Any

from tests.fuzz.mutations import INTERESTING_INTEGERS, mutate_bytes

TEXTS = (
    "", "0", "1", "007", "1.5", "-1", "1e400", "nan", "null", "true", "on", "yes", "2020-01-01", "a", "A" * 3000, "\0", "\n",
    "\t", "\u2028", "é", "\U0001f600", "\ufeff", " ", "..", "../..", "/", "//", "a/b", "step_00000001", "{}", "[]", "%s", "{0}",
    "~", "-", "5 steps", "1e300 epochs", "0 images", "1e400 steps", "L/16", "L/0", "Ti/²", "B/99999999999",
)  # fmt: skip
NUMBERS = (*INTERESTING_INTEGERS, 0.0, -0.0, 0.5, 1.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan"))
SURROGATE = "\ud800"  # JSON can hold half of a character; UTF-8 cannot
DEPTHS = (3, 50, 400, 3000)  # of brackets; Python's parsers recurse to about a thousand


def mutate_values(values: Any, random: Random, *, words: Sequence[str] = ()) -> Any:
    """Return a copy with one to four things changed: values, keys, types, nesting.

    Args:
        words: keys and values of the format.
    """
    values = copy.deepcopy(values)
    for _ in range(random.choice((1, 1, 2, 4))):
        locations = list(_locations(values))
        if not locations:
            return odd_value(random, words)
        _change(*random.choice(locations), random, words)
    return values


def odd_value(random: Random, words: Sequence[str] = ()) -> Any:
    kind = random.randrange(8)
    if kind < 2:
        return random.choice(TEXTS)
    if kind < 4:
        return random.choice(NUMBERS)
    if kind == 4 and words:
        return random.choice(words)
    if kind == 5:
        return [odd_value(random, words) for _ in range(random.randrange(4))]
    if kind == 6:
        return {random.choice(TEXTS): odd_value(random, words) for _ in range(random.randrange(4))}
    return random.choice((None, True, False))


def _locations(values: Any) -> list[tuple[Any, Any]]:
    """Return every container with each of its keys, at any depth."""
    if not isinstance(values, dict | list):
        return []
    keys = list(values) if isinstance(values, dict) else list(range(len(values)))
    return [location for key in keys for location in ((values, key), *_locations(values[key]))]


def _change(container: Any, key: Any, random: Random, words: Sequence[str]) -> None:
    value, kind = container[key], random.randrange(8)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[random.choice((*TEXTS, *words))] = container.pop(key)
    elif kind == 2 and isinstance(container, dict):
        container[random.choice((*TEXTS, *words))] = copy.deepcopy(value)
    elif kind == 2:
        container.insert(random.randrange(len(container) + 1), copy.deepcopy(value))
    elif kind == 3:
        container[key] = random.choice(([value], [value] * 3, {"": value}, [[value]], str(value)))
    elif kind == 4 and isinstance(value, int | float) and not isinstance(value, bool):
        container[key] = random.choice((value + 1, value - 1, -value, float(value), str(value), value * 1000, value == 1))
    elif kind == 5 and isinstance(value, str):
        container[key] = mutate_bytes(value.encode(errors="replace"), random).decode(errors="replace")
    else:
        container[key] = odd_value(random, words)


def json_bytes(values: Any, random: Random) -> bytes:
    """Write values as JSON; one text in four is damaged as bytes too, or nested too deeply to parse."""
    data = json.dumps(values, ensure_ascii=random.random() < 0.5, allow_nan=True).encode(errors="surrogatepass")
    chance = random.random()
    if chance < 0.18:
        return mutate_bytes(
            data, random, words=(b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\ud800", b"NaN", b"1e999", b"\xff")
        )
    if chance < 0.21:
        return data[: random.randrange(len(data) + 1)]
    if chance < 0.23:
        depth = random.choice(DEPTHS)
        return data.replace(b"null", b"[" * depth + b"]" * depth, 1) if b"null" in data else b"[" * depth + data
    if chance < 0.25:
        return data.replace(b"1", b"9" * 5000, 1)
    return data

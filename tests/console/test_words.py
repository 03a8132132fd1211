"""Times are written in words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.console.words import duration

SECONDS = {"d": 86_400.0, "h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3}
TIMES = st.floats(0, 1e9) | st.floats(0, 1) | st.integers(0, 10_000_000).map(lambda halves: halves / 2)


def seconds_in(words: str) -> list[tuple[float, float]]:
    """Return each number with its unit in seconds."""
    parts = words.replace(",", "").split()
    return [(float(number), SECONDS[unit]) for number, unit in zip(parts[::2], parts[1::2], strict=True)]


def total(words: str) -> float:
    return sum(number * unit for number, unit in seconds_in(words))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (-1, "0 s"),
        (0.00341, "3.4 ms"),
        (1.254, "1.25 s"),
        (9.996, "10 s"),
        (59.6, "1 min"),
        (725, "12 min 5 s"),
        (3599.7, "1 h"),
        (3 * 86_400 + 4 * 3600 + 59 * 60, "3 d 4 h"),
        (1234 * 86_400, "1,234 d"),
    ],
)
def test_examples(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@given(TIMES)
@settings(max_examples=60, deadline=None)
def test_words_hold_the_time(seconds: float) -> None:
    words = duration(seconds)
    parts = seconds_in(words)
    assert len(parts) <= 2
    units = list(SECONDS.values())
    next_unit = units[min(units.index(parts[0][1]) + 1, len(units) - 1)]
    allowed = 0.055 * seconds if seconds < 0.1 else 0.0051 * seconds if seconds < 10 else max(0.51, next_unit)
    assert abs(total(words) - seconds) <= allowed + 1e-12


@given(TIMES, TIMES)
@settings(max_examples=60, deadline=None)
def test_a_longer_time_is_never_said_to_be_shorter(one: float, other: float) -> None:
    shorter, longer = sorted((one, other))
    assert total(duration(shorter)) <= total(duration(longer)) + 1e-12


def test_no_time_is_said_in_powers_of_ten() -> None:
    assert [words for n in range(1, 2000) if "e" in (words := duration(n / 10_000))] == []

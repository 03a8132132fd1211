"""Durations are read, written and counted in steps, and impossible ones are refused in words."""

from __future__ import annotations

import pytest

from pipeline.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "steps"),
    [("7 steps", 7), ("2 epochs", 25), ("1e3 images", 125), ("1 step", 1), ("0.5 epochs", 6), ("1_000 images", 125)],
)
def test_durations(text: str, steps: int) -> None:
    assert parse_duration(text).to_steps(global_batch_size=8, num_samples=100) == steps


@pytest.mark.parametrize("text", ["1281167654321.5 images", "0.1234567890123456 epochs", "1e15 images", "3 steps"])
def test_a_duration_is_written_as_it_was_read(text: str) -> None:
    assert parse_duration(str(parse_duration(text))) == parse_duration(text)


@pytest.mark.parametrize("text", ["1e400 steps", "1e300 epochs", "2e15 images"])
def test_durations_beyond_any_training_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="longer than any training"):
        parse_duration(text)

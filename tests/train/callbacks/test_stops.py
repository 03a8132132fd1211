"""Steps that the optimizer refuses are named, counted in a row, and at last end the run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from pipeline.errors import DivergedError
from pipeline.train.callbacks.stops import StopOnNonFinite
from tests.helpers.one_rank import fit, make_batch

pytestmark = pytest.mark.usefixtures("rank")


def train(good: Iterable[bool], folder: Path, *, accumulation_steps: int = 1, zero_stage: int = 0, most: int = 3) -> Trainer:
    """Train on one micro-batch each; the bad ones hold an infinity."""
    batches = [make_batch(number, value=1.0 if is_good else math.inf) for number, is_good in enumerate(good)]
    return fit(
        [StopOnNonFinite(max_skipped_steps=most)], batches, folder=folder, max_steps=len(batches) // accumulation_steps,
        accumulation_steps=accumulation_steps, zero_stage=zero_stage,
    )  # fmt: skip


def in_a_row(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"step skipped \((\d+) in a row\)", text)]


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_a_good_step_between_begins_the_count_again(
    zero_stage: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = train([True, False, False, True, False, False, True], tmp_path, zero_stage=zero_stage)
    assert trainer.global_step == 7
    assert in_a_row(capsys.readouterr().out) == [1, 2, 1, 2]


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_too_many_in_a_row_end_the_run(zero_stage: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DivergedError, match=r"not finite for 3 steps in a row \(up to step 4\)") as raised:
        train([True, False, False, False, True], tmp_path, zero_stage=zero_stage)
    assert raised.value.on_all_ranks
    assert in_a_row(capsys.readouterr().out) == [1, 2, 3]


def test_all_samples_of_the_step_are_named_and_no_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One bad micro-batch of two spoils the step."""
    train([True, True, True, False, True, True], tmp_path, accumulation_steps=2)
    assert "its samples: 4, 5, 6, 7\n" in capsys.readouterr().out


def test_a_long_list_of_samples_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train([False] * 9, tmp_path, accumulation_steps=9)
    assert "its samples: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, ...\n" in capsys.readouterr().out

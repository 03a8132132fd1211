"""A micro-batch's end is a step's end where the trainer's step has moved on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline.train.callbacks.steps import is_step_end
from tests.helpers.one_rank import fit, make_batch


class Steps(Callback):
    """After each micro-batch: what the function says, and the trainer's step."""

    def __init__(self) -> None:
        self.seen: list[tuple[bool, int]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen.append((is_step_end(trainer, batch_idx), trainer.global_step))


@pytest.mark.usefixtures("rank")
@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_a_step_ends_where_the_trainers_step_moves_on(accumulation_steps: int, tmp_path: Path) -> None:
    steps = Steps()
    batches = [make_batch(number) for number in range(12)]
    fit([steps], batches, folder=tmp_path, max_steps=3, accumulation_steps=accumulation_steps)
    assert len(steps.seen) == 3 * accumulation_steps
    before = 0
    for is_end, step in steps.seen:
        assert is_end == (step > before)
        before = step

"""A callback acts once a step, where the trainer's step has moved on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer

from pipeline.train.callbacks.steps import StepCallback
from tests.helpers.one_rank import fit, make_batch


class Steps(StepCallback):
    """Records after each micro-batch the steps that it was given, and the trainer's step."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        self.seen: list[tuple[bool, int]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        before = len(self.told)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.seen.append((len(self.told) > before, trainer.global_step))

    def on_step_end(self, trainer: Trainer, step: int, batch: Any, outputs: Any) -> None:
        self.told.append((step, batch["digest"]))


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
    # The call has the step's number and its last micro-batch.
    assert steps.told == [(step, accumulation_steps * step - 1) for step in (1, 2, 3)]

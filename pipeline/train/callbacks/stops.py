"""Stops a run whose gradients stay non-finite, and names the images it choked on."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline.console.lines import log_line
from pipeline.errors import DivergedError
from pipeline.train.callbacks.steps import is_step_end


class StopOnNonFinite(Callback):
    """Counts refused steps. The optimizer itself refuses a step with a non-finite gradient, on all ranks alike.

    Args:
        max_skipped_steps: how many in a row before the run stops.
    """

    def __init__(self, *, max_skipped_steps: int) -> None:
        self.max_skipped_steps = max_skipped_steps
        self._skipped_before: int | None = None
        self._in_a_row = 0
        self._samples: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._skipped_before is None:
            self._skipped_before = trainer.strategy.skipped_steps  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += batch["sample_ids"].tolist()
        if not is_step_end(trainer, batch_idx):
            return
        samples, self._samples = self._samples, []
        skipped = trainer.strategy.skipped_steps  # type: ignore[attr-defined]
        if skipped == self._skipped_before:
            self._in_a_row = 0
            return
        self._skipped_before = skipped
        self._in_a_row += 1
        shown = ", ".join(map(str, samples[:16])) + (", ..." if len(samples) > 16 else "")
        log_line(
            f"[guard] step {trainer.global_step}: non-finite gradients, step skipped ({self._in_a_row} in a row); "
            f"loss on rank {trainer.global_rank}: {float(outputs['micro_loss']):.6g}; its samples: {shown}"
        )
        if self._in_a_row >= self.max_skipped_steps:
            error = DivergedError(
                f"gradients were not finite for {self._in_a_row} steps in a row (up to step {trainer.global_step}); "
                f"lower optimizer.learning_rate, set optimizer.clip_norm, or look at the samples named above"
            )
            raise error.everywhere()

"""Stop a run whose gradients stay non-finite, or whose images cannot be read, and name the images."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from pipeline.console.lines import log_line
from pipeline.errors import DivergedError, TrainingError
from pipeline.train.callbacks.metrics import TrainingMetrics
from pipeline.train.callbacks.steps import StepCallback

UNREADABLE_GRACE = 10  # unreadable images that never stop a run, however short


class StopOnNonFinite(StepCallback):
    """Counts refused steps. The optimizer itself refuses a step with a non-finite gradient, on all ranks.

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
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_step_end(self, trainer: Trainer, step: int, batch: Any, outputs: Any) -> None:
        samples, self._samples = self._samples, []
        skipped = trainer.strategy.skipped_steps  # type: ignore[attr-defined]
        if skipped == self._skipped_before:
            self._in_a_row = 0
            return
        self._skipped_before = skipped
        self._in_a_row += 1
        shown = ", ".join(map(str, samples[:16])) + (", ..." if len(samples) > 16 else "")
        log_line(
            f"[guard] step {step}: non-finite gradients, step skipped ({self._in_a_row} in a row); "
            f"loss on rank {trainer.global_rank}: {float(outputs['micro_loss']):.6g}; its samples: {shown}"
        )
        if self._in_a_row >= self.max_skipped_steps:
            error = DivergedError(
                f"gradients were not finite for {self._in_a_row} steps in a row (up to step {step}); "
                f"lower optimizer.learning_rate, set optimizer.clip_norm, or look at the samples named above"
            )
            raise error.everywhere()


class StopOnUnreadable(StepCallback):
    """Names what could not be read, and judges its number by the metrics. It goes after the callback that makes lines.

    Args:
        budget: part of the images seen that may be unreadable.
    """

    def __init__(self, metrics: TrainingMetrics, *, budget: float) -> None:
        self.metrics = metrics
        self.budget = budget

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for item in batch["unreadable"]:
            log_line(
                f"[data] unreadable image {item.key!r} in {item.shard} at position {item.position} replaced: {item.reason}"
            )
        for reason, times in Counter(batch["retries"]).items():
            log_line(f"[data] {reason.shard}: a read failed {times} times and was retried: {reason.reason}")
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_step_end(self, trainer: Trainer, step: int, batch: Any, outputs: Any) -> None:
        line = self.metrics.line
        if line is None:
            return
        unreadable, images_seen = line["data/unreadable"], line["images_seen"]
        if unreadable > max(UNREADABLE_GRACE, self.budget * images_seen):
            error = TrainingError(
                f"{unreadable} of {images_seen} images could not be read, more than data.unreadable_budget="
                f"{self.budget} allows; the log above names them. Repair the shards, or raise the budget"
            )
            raise error.everywhere()

"""Show the progress bar of a training, on rank 0."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from pipeline.console.progress import Progress, progress
from pipeline.train.callbacks.metrics import TrainingMetrics
from pipeline.train.callbacks.steps import StepCallback


class ProgressBar(StepCallback):
    """Counts steps, and shows the last metrics line's loss and speed. It goes after the callback that makes lines.

    Args:
        total_steps: where the bar ends.
    """

    def __init__(self, metrics: TrainingMetrics, *, total_steps: int) -> None:
        self.metrics = metrics
        self.total_steps = total_steps
        self._bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._bar = progress(total=self.total_steps, initial=trainer.global_step, unit="step", description="train")

    def on_step_end(self, trainer: Trainer, step: int, batch: Any, outputs: Any) -> None:
        if self._bar is None:
            return
        self._bar.update()
        line = self.metrics.line
        if line is not None:
            text = f"loss {line['train/loss']:.4g}, {line['speed/images_per_s']:.4g} images/s"
            self._bar.set_postfix_str(text, refresh=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()

"""Define the base of callbacks that act at the end of an optimizer step, not of each micro-batch."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StepCallback(Callback):
    """Calls `on_step_end` after the last micro-batch of each optimizer step.

    Work for every micro-batch goes into `on_train_batch_end`, which calls this class's.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.on_step_end(trainer, trainer.global_step, batch, outputs)

    def on_step_end(self, trainer: Trainer, step: int, batch: Any, outputs: Any) -> None:
        """Act at the end of a step.

        Args:
            step: optimizer steps of the run up to here, the one that ended among them.
            batch: the step's last micro-batch.
            outputs: what `training_step` returned for it.
        """
        raise NotImplementedError

"""Feed the watchdog: what the rank is doing, and when a step has ended."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline.train.callbacks.steps import StepCallback
from pipeline.train.watchdog import Watchdog


class WatchStep(StepCallback):
    """Starts the watch, and reports the phases in and at the end of a step. It goes before callbacks that measure and save."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watchdog.enter("saving the first weights")
        self._watchdog.start(step=trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._watchdog.enter("in a step (forward, backward, all ranks' gradients)")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._watchdog.enter("at a step's end (metrics, saving)")

    def on_step_end(self, trainer: Trainer, step: int, batch: Any, outputs: Any) -> None:
        self._watchdog.beat(step=step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watchdog.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._watchdog.stop()


class WatchWaiting(Callback):
    """Reports the wait for the next batch, which follows a step's end. It is the last of the callbacks."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watchdog.enter("waiting for data (first batch)")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._watchdog.enter("waiting for data")

"""Train as `train` does, on a batch that is always there or with the loader, in turns with other contenders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from pipeline.benchmark.train.synthetic import make_batch
from pipeline.benchmark.train.turn import Turn
from pipeline.build.resume import ResumePoint
from pipeline.build.training import make_training
from pipeline.config.resolve import ResolvedRun
from pipeline.data.streams.loader import Batch
from pipeline.distributed.quiet import quiet_libraries
from pipeline.distributed.world import World, device_of, init_process_group
from pipeline.launch.signals import StopRequest
from pipeline.run.checkpoint import RunFolder
from pipeline.train.callbacks.steps import StepCallback


class SameBatch(LightningDataModule):
    """Gives the same batch for ever."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self._batch = batch

    def train_dataloader(self) -> Iterator[Batch]:
        while True:
            yield self._batch

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch


class TakeTurns(StepCallback):
    """Stops between two steps until it is this contender's turn. It goes after all other callbacks."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.turn.waited(batch["wait_s"])

    def on_step_end(self, trainer: Trainer, step: int, batch: Any, outputs: Any) -> None:
        self.turn.step_ended()


def run_lightning(run: ResolvedRun, *, world: World, real_data: bool) -> None:
    """Train as `train` does, with all of its callbacks."""
    quiet_libraries(is_first=True)
    init_process_group(world, timeout_s=run.config.trainer.collective_timeout_s)
    device = device_of(world)
    folder = RunFolder(run.config.run_dir)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    folder.weights.mkdir(exist_ok=True)
    folder.weights_of(0).touch()  # the training would write the first weights
    start = ResumePoint(checkpoint=None, wandb_id="", precision=run.precision, messages=[])
    training = make_training(run, world=world, stop=StopRequest(), start=start)
    if not real_data:
        training = replace(training, data=SameBatch(make_batch(run, device=device)))
    callbacks: list[Any] = training.trainer.callbacks  # type: ignore[attr-defined]
    callbacks.append(TakeTurns(Turn(device)))
    training.run()

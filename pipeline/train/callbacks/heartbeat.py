"""Write the run's sign of life.

RUN_DIR/heartbeat.json     who trains, and what its loop did last; written every few seconds while it moves
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer

from pipeline.credentials import redact
from pipeline.launch.processes import Process
from pipeline.launch.signals import StopRequest
from pipeline.run.checkpoint import RunFolder
from pipeline.run.live_files import LiveFiles
from pipeline.train.callbacks.steps import StepCallback

Phase = Literal["starting", "waiting for data", "computing", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Identity:
    """Holds what a heartbeat says of its launch."""

    total_steps: int
    global_batch_size: int
    world_size: int
    num_nodes: int
    slurm_job_id: str | None


class Heartbeat(StepCallback):
    """Writes heartbeats from the training loop, so that a hang shows as an old one. It acts on rank 0 alone.

    It goes after the callback that saves: a step ends when its checkpoint is complete.

    Args:
        start_step: first step of the launch, shown until the trainer has loaded it.
        files: where heartbeats go; None on other ranks.
        notices: what a reader should know now: alerts that are raised, and why W&B is off if it failed.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        identity: Identity,
        start_step: int,
        files: LiveFiles | None,
        stop: StopRequest,
        notices: Callable[[], list[str]],
    ) -> None:
        self.folder = folder
        self.identity = identity
        self.start_step = start_step
        self.files = files
        self.stop = stop
        self.notices = notices
        self._facts = {
            "started": round(time.time(), 3),
            **asdict(identity),
            **asdict(Process.myself()),
            "folder_inode": _inode(folder),
        }

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._beat(trainer, "starting")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._beat(trainer, "waiting for data")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._beat(trainer, "computing")

    def on_step_end(self, trainer: Trainer, step: int, batch: Any, outputs: Any) -> None:
        self._beat(trainer, "waiting for data")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step >= self.identity.total_steps:
            self._end(trainer, "finished")
        else:
            self._end(trainer, "stopped", by="/".join(self.stop.received) or "a signal to another rank")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end(trainer, "failed", by=redact(f"{type(exception).__name__}: {exception}")[:500])

    def _beat(self, trainer: Trainer, phase: Phase, **more: str) -> None:
        if self.files is None:
            return
        self.files.put(
            self.folder.heartbeat,
            {
                "time": round(time.time(), 3),
                "phase": phase,
                "step": max(self.start_step, trainer.global_step),
                **self._facts,
                "alerts": self.notices(),
                **more,
            },
        )

    def _end(self, trainer: Trainer, phase: Phase, **more: str) -> None:
        self._beat(trainer, phase, **more)
        if self.files is not None:
            self.files.close()


def _inode(folder: RunFolder) -> int | None:
    """Identify the run folder, to distinguish it from a copy."""
    try:
        return folder.root.stat().st_ino
    except OSError:
        return None

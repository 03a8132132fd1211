"""The run's sign of life, and alerts when its numbers leave the ordinary.

RUN_DIR/heartbeat.json     who trains, and what its loop did last; written every few seconds while it moves
RUN_DIR/alerts.jsonl       one line when an alert is raised, one when it is cleared
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline.console.lines import log_line
from pipeline.credentials import redact
from pipeline.launch.processes import Process
from pipeline.launch.signals import StopRequest
from pipeline.monitor.alerts import Alert, AlertState, observe_line
from pipeline.run.checkpoint import RunFolder
from pipeline.run.live_files import LiveFiles
from pipeline.run.records import append_json_line, read_metrics
from pipeline.train.callbacks.steps import is_step_end

Phase = Literal["starting", "waiting for data", "computing", "finished", "stopped", "failed"]
REMEMBERED_LINES = 500  # of earlier launches, for what is usual


@dataclass(frozen=True)
class Identity:
    """What a heartbeat says of its launch."""

    total_steps: int
    global_batch_size: int
    world_size: int
    num_nodes: int
    slurm_job_id: str | None


class Heartbeat(Callback):
    """Writes heartbeats from the training loop, so that a hang shows as an old one. Acts on rank 0 alone.

    Goes after the callback that saves: a step ends when its checkpoint is complete.

    Args:
        start_step: where the launch begins, shown until the trainer has loaded it.
        files: where heartbeats go; None on other ranks.
        send_alert: title and text to whoever should know.
        wandb_off: why W&B is off, if it failed.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        identity: Identity,
        start_step: int,
        files: LiveFiles | None,
        stop: StopRequest,
        send_alert: Callable[[str, str], None],
        wandb_off: Callable[[], str | None],
    ) -> None:
        self.folder = folder
        self.identity = identity
        self.start_step = start_step
        self.files = files
        self.stop = stop
        self.send_alert = send_alert
        self.wandb_off = wandb_off
        self._alert_state = AlertState()
        self._active: dict[str, str] = {}
        self._facts = {
            "started": round(time.time(), 3),
            **asdict(identity),
            **asdict(Process.myself()),
            "folder_inode": _inode(folder),
        }

    def observe(self, line: dict[str, Any]) -> None:
        """Judge a line of metrics. Rank 0 only."""
        self._alert_state, alerts = observe_line(self._alert_state, line)
        for alert in alerts:
            self._report(alert)

    def _report(self, alert: Alert) -> None:
        if alert.change == "raised":
            self._active[alert.kind] = alert.text
            log_line(f"[alert] step {alert.step}: {alert.text}")
            self.send_alert(f"{self.folder.root.name}: {alert.kind}", f"step {alert.step}: {alert.text}")
        else:
            self._active.pop(alert.kind, None)
            log_line(f"[alert] step {alert.step}: {alert.kind} is ordinary again")
        try:
            append_json_line(self.folder.alerts, {"time": round(time.time(), 3), **asdict(alert)})
        except OSError as error:  # it was printed; what matters is metrics.jsonl
            log_line(f"[alert] alerts.jsonl cannot be written: {error}")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._beat(trainer, "starting")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.files is not None:  # what was usual before this launch is usual now
            before = [row for row in read_metrics(self.folder.metrics) if row["step"] <= trainer.global_step]
            for line in before[-REMEMBERED_LINES:]:
                self._alert_state, _ = observe_line(self._alert_state, line)
        self._beat(trainer, "waiting for data")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._beat(trainer, "computing")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_step_end(trainer, batch_idx):
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
        off = self.wandb_off()
        active = [*self._active.values(), *([f"W&B is off for this launch: {off}"] if off else [])]
        self.files.put(
            self.folder.heartbeat,
            {
                "time": round(time.time(), 3),
                "phase": phase,
                "step": max(self.start_step, trainer.global_step),
                **self._facts,
                "alerts": active,
                **more,
            },
        )

    def _end(self, trainer: Trainer, phase: Phase, **more: str) -> None:
        self._beat(trainer, phase, **more)
        if self.files is not None:
            self.files.close()


def _inode(folder: RunFolder) -> int | None:
    """Tells the run folder from a copy of it."""
    try:
        return folder.root.stat().st_ino
    except OSError:
        return None

"""Make the loggers of a training: the metrics file, W&B and the alerts, and the run's identity there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.loggers import Logger

from pipeline.config.resolve import ResolvedRun
from pipeline.config.run import RunConfig
from pipeline.distributed.world import World
from pipeline.models.base import ModelConfig
from pipeline.monitor.alert_log import AlertLog
from pipeline.monitor.loggers import MetricsFile, RunIdentity, WandbTracker, make_wandb_logger
from pipeline.monitor.section import TrackingSection
from pipeline.monitor.tensorboard import TensorBoardLogger
from pipeline.run.checkpoint import collect_versions
from pipeline.run.folder import RunFolder
from pipeline.run.records import read_metrics


@dataclass(frozen=True)
class Loggers:
    """Holds where a training's lines of metrics go. All but the file are on rank 0 alone, and None where they are off."""

    file: MetricsFile
    wandb: WandbTracker | None
    alerts: AlertLog | None
    tensorboard: TensorBoardLogger | None = None

    def in_order(self) -> list[Logger]:
        """Return the existing loggers. A line is stored before it is judged."""
        return [logger for logger in (self.file, self.wandb, self.tensorboard, self.alerts) if logger is not None]

    def notices(self) -> list[str]:
        """Return what a reader of the run should know now: alerts that are raised, and why W&B is off if it failed."""
        alerts = [] if self.alerts is None else list(self.alerts.active.values())
        off = None if self.wandb is None else self.wandb.writer.off
        return alerts if off is None else [*alerts, f"W&B is off for this launch: {off}"]


def make_loggers(run: ResolvedRun, *, world: World, start_step: int, wandb_id: str) -> Loggers:
    """Make the loggers of this rank.

    Args:
        start_step: first step of the launch. Lines of later steps, which it trains again, do not count as history.
    """
    folder = RunFolder(run.config.run_dir)
    file = MetricsFile(folder.metrics)
    if not world.is_first:
        return Loggers(file=file, wandb=None, alerts=None)
    history = [row for row in read_metrics(folder.metrics) if row["step"] <= start_step]
    record = {
        **describe_run(run.config, folder, run.model),
        "world_size": world.size,
        "num_nodes": world.num_nodes,
        "slurm_job_id": world.slurm_job_id,
    }
    identity = make_run_identity(run.config.tracking, name=run.config.name, run_id=wandb_id, folder=folder)
    wandb = make_wandb_logger(identity, config=record, history=history)
    send_alert = wandb.writer.alert if wandb else lambda _title, _text: None
    events = None
    if run.config.tracking.tensorboard:
        events = TensorBoardLogger(folder.tensorboard / "train", start_step=start_step)
    alerts = AlertLog(folder, history=history, send_alert=send_alert)
    return Loggers(file=file, wandb=wandb, alerts=alerts, tensorboard=events)


def describe_run(config: RunConfig, folder: RunFolder, model: ModelConfig) -> dict[str, Any]:
    """Return what W&B keeps as a run's configuration."""
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in model.build().parameters())
    return {
        **config.model_dump(mode="json"),
        "versions": collect_versions(),
        "run_dir": str(folder.root.resolve()),
        "checkpoints": str(folder.checkpoints.resolve()),
        "model_resolved": {"family": model.family, **model.to_dict()},
        "parameters": parameters,
    }


def make_run_identity(tracking: TrackingSection, *, name: str, run_id: str, folder: RunFolder) -> RunIdentity:
    """Return the W&B run of a folder."""
    return RunIdentity(
        name=name,
        run_id=run_id,
        folder=folder.root,
        project=tracking.project,
        entity=tracking.entity,
        mode=tracking.mode,
        tensorboard=tracking.tensorboard,
    )

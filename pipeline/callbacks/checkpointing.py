"""Saves the run: at intervals, at the end, and when told to stop."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline.callbacks.steps import is_step_end
from pipeline.checkpoint import (
    CheckpointMeta,
    RunFolder,
    collect_versions,
    delete_old,
    describe_files,
    files_of,
    publish,
    save_weights,
    write_atomically,
    write_meta,
)
from pipeline.data.order import ORDER_VERSION
from pipeline.interruption import StopRequest
from pipeline.models.vit import ViTConfig


@dataclass(frozen=True)
class CheckpointPolicy:
    """When to save and what to keep, in optimizer steps."""

    every_steps: int
    keep_last: int
    keep_every_steps: int | None


@dataclass(frozen=True)
class RunFacts:
    """What goes into every checkpoint's meta.json and every weights file."""

    model: ViTConfig
    global_batch_size: int
    zero_stage: int
    wandb_id: str
    data_fingerprint: str


class Checkpointing(Callback):
    """Writes complete-or-absent checkpoints and plain weights, on all ranks together.

    Weights of the step a launch starts from are written too where they are missing: step 0 of a new run, and
    those that a crash between checkpoint and weights left out.
    """

    def __init__(self, folder: RunFolder, *, policy: CheckpointPolicy, facts: RunFacts, stop: StopRequest) -> None:
        self.folder = folder
        self.policy = policy
        self.facts = facts
        self.stop = stop
        self.stopped_by_signal = False
        self._saved_step: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop.install()  # Lightning put its own handlers in place since
        self._saved_step = trainer.global_step
        missing = trainer.strategy.broadcast(not self.folder.weights_of(trainer.global_step).exists())
        if missing:
            self._save_weights(trainer, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not is_step_end(trainer, batch_idx):
            return
        step = trainer.global_step
        # One rank that was signalled stops them all.
        told_to_stop = trainer.strategy.reduce_boolean_decision(self.stop.is_set, all=False)
        if told_to_stop or step % self.policy.every_steps == 0 or step == trainer.max_steps:
            self.save(trainer, step)
        if told_to_stop:
            self.stopped_by_signal = step != trainer.max_steps
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and trainer.global_step == trainer.max_steps:
            write_atomically(self.folder.complete, json.dumps({"step": trainer.global_step}).encode())

    def save(self, trainer: Trainer, step: int) -> None:
        """Weights, then checkpoint, then retention. A collective.

        In this order: a checkpoint that exists has its weights, whenever the run is killed.
        """
        if step == self._saved_step:
            return
        self._save_weights(trainer, step)
        staging = self.folder.staging_of(step)
        if trainer.is_global_zero:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        trainer.strategy.barrier()
        trainer.save_checkpoint(staging)
        trainer.strategy.barrier()
        manifest = self._hash_files(trainer, staging, step)
        if trainer.is_global_zero:
            publish(staging, self.folder.checkpoint_of(step), manifest=manifest)
        self._saved_step = step
        if trainer.is_global_zero:
            delete_old(self.folder, newest=step, keep_last=self.policy.keep_last, keep_every_steps=self.policy.keep_every_steps)
        trainer.strategy.barrier()

    def _hash_files(self, trainer: Trainer, staging: Path, step: int) -> dict[str, dict[str, Any]]:
        """Manifest of the staged files; the ranks share the hashing."""
        if trainer.is_global_zero:
            write_meta(staging, self._meta(trainer, step))
        trainer.strategy.barrier()
        # One listing for all: on a network file system two nodes may see different ones for a while.
        names = trainer.strategy.broadcast([str(path) for path in files_of(staging)] if trainer.is_global_zero else [])
        mine = describe_files(staging, [Path(name) for name in names[trainer.global_rank :: trainer.world_size]])
        parts: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(parts, mine)
        return {name: entry for part in parts for name, entry in sorted(part.items())}

    def _meta(self, trainer: Trainer, step: int) -> CheckpointMeta:
        return CheckpointMeta(
            step=step,
            images_seen=step * self.facts.global_batch_size,
            world_size=trainer.world_size,
            zero_stage=self.facts.zero_stage,
            wandb_id=self.facts.wandb_id,
            data_fingerprint=self.facts.data_fingerprint,
            order_version=ORDER_VERSION,
            versions=collect_versions(),
        )

    def _save_weights(self, trainer: Trainer, step: int) -> None:
        strategy: Any = trainer.strategy
        gathered = strategy.full_fp32_parameters()
        if trainer.is_global_zero:
            tensors = {name.removeprefix("model."): tensor for name, tensor in gathered.items()}
            images_seen = step * self.facts.global_batch_size
            save_weights(self.folder.weights_of(step), tensors, model=self.facts.model, step=step, images_seen=images_seen)
        strategy.barrier()

"""Saves the run: at intervals, at the end, and when told to stop. Training waits for a copy in memory only.

gather   all ranks put each parameter's master and moments together; each keeps its share of them  (training waits)
write    each rank writes and hashes its share in a thread                                         (training goes on)
publish  at the end of the first step at which all have written: manifest, rename, retention
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from pipeline import train_state
from pipeline.callbacks.steps import is_step_end
from pipeline.checkpoint import (
    FORMAT,
    MODEL_FILE,
    CheckpointMeta,
    RunFolder,
    collect_versions,
    delete_old,
    describe_files,
    publish,
    write_meta,
)
from pipeline.console import say
from pipeline.data.order import ORDER_VERSION
from pipeline.errors import CheckpointError
from pipeline.files import write_whole
from pipeline.interruption import StopRequest
from pipeline.models.vit import ViTConfig
from pipeline.weights import save_tensors, save_weights

T = TypeVar("T")
Entries = dict[str, dict[str, Any]]  # of a manifest


@dataclass(frozen=True)
class CheckpointPolicy:
    """When to save and what to keep, in optimizer steps."""

    every_steps: int
    keep_last: int
    keep_every_steps: int | None
    max_failed_saves: int


@dataclass(frozen=True)
class RunFacts:
    """What goes into every checkpoint's meta.json and every weights file."""

    model: ViTConfig
    global_batch_size: int
    zero_stage: int
    wandb_id: str
    data_fingerprint: str


@dataclass(frozen=True)
class Snapshot:
    """One rank's share of a checkpoint, in memory."""

    meta: CheckpointMeta
    moments: dict[str, Tensor]
    masters: dict[str, Tensor]  # all of them on rank 0, none elsewhere


@dataclass(frozen=True)
class Save:
    """A checkpoint on its way to disk."""

    step: int
    begun_at: float
    blocked_s: float
    written: Future[Entries]


class Checkpointing(Callback):
    """Writes complete-or-absent checkpoints and plain weights, on all ranks together.

    Weights of the step a launch starts from are written too where they are missing: step 0 of a new run.
    """

    def __init__(self, folder: RunFolder, *, policy: CheckpointPolicy, facts: RunFacts, stop: StopRequest) -> None:
        self.folder = folder
        self.policy = policy
        self.facts = facts
        self.stop = stop
        self.stopped_by_signal = False
        self._saved_step: int | None = None
        self._save: Save | None = None
        self._cleaning: Future[list[int]] | None = None
        self._failed_in_a_row = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step
        if trainer.strategy.broadcast(not self.folder.weights_of(trainer.global_step).exists()):
            self._write_first_weights(trainer, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not is_step_end(trainer, batch_idx):
            return
        step = trainer.global_step
        # One rank that was signalled stops them all; one that still writes makes them all wait for the next step's end.
        told_to_stop, writing = _any_rank(
            self.stop.is_set, self._save is not None and not self._save.written.done(), device=trainer.strategy.root_device
        )
        if self._save is not None and not writing:
            self._finish(trainer)
        is_last = told_to_stop or step == trainer.max_steps
        if is_last or step % self.policy.every_steps == 0:
            self._begin(trainer, step)
        if is_last:
            self._finish(trainer, on_failure="end")
        if told_to_stop:
            self.stopped_by_signal = step != trainer.max_steps
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report_cleaning()
        if trainer.is_global_zero and trainer.global_step == trainer.max_steps:
            write_whole(self.folder.complete, json.dumps({"step": trainer.global_step}).encode())

    def _begin(self, trainer: Trainer, step: int) -> None:
        """Gather, and start to write. A collective."""
        self._finish(trainer)  # the one before, if it takes longer than the interval
        if step == self._saved_step:
            return
        begun_at = time.perf_counter()
        staging = self.folder.staging_of(step)
        if trainer.is_global_zero:
            shutil.rmtree(staging, ignore_errors=True)  # of an attempt that failed
        trainer.strategy.barrier()
        snapshot = self._take_snapshot(trainer, step)
        name = f"moments-{trainer.global_rank:05d}-of-{trainer.world_size:05d}.safetensors"
        written = _in_background(functools.partial(self._write, snapshot, staging, name))
        blocked_s = time.perf_counter() - begun_at
        self._save = Save(step=step, begun_at=begun_at, blocked_s=blocked_s, written=written)

    def _take_snapshot(self, trainer: Trainer, step: int) -> Snapshot:
        strategy: Any = trainer.strategy
        engine = strategy.engine
        sizes = {
            f"{moment}/{name}": 4 * _numel(parameter)
            for name, parameter in train_state.named_parameters(engine)
            for moment in train_state.MOMENTS
        }
        # Rank 0 has the masters to write.
        owners = train_state.assign_owners(sizes, num_ranks=trainer.world_size, taken=sum(sizes.values()) // 2)
        moments = {
            name: _to_host(tensor) for name, tensor in train_state.gather_moments(engine) if owners[name] == trainer.global_rank
        }
        return Snapshot(meta=self._meta(trainer, step), moments=moments, masters=self._gather_masters(trainer))

    def _gather_masters(self, trainer: Trainer) -> dict[str, Tensor]:
        strategy: Any = trainer.strategy
        gathered = train_state.gather_masters(strategy.engine)
        return {name: _to_host(tensor) for name, tensor in gathered if trainer.is_global_zero}

    def _write(self, snapshot: Snapshot, staging: Path, name: str) -> Entries:
        """One rank's files, in a thread. Weights before anything: a checkpoint that exists has them.

        Returns:
            Manifest entries.
        """
        staging.mkdir(exist_ok=True)  # not its parents: see `save_weights`
        files = []
        if snapshot.masters:
            weights = self.folder.weights_of(snapshot.meta.step)
            self._write_weights(snapshot.masters, step=snapshot.meta.step)
            _link_or_copy(weights, staging / MODEL_FILE)
            write_meta(staging, snapshot.meta)
            files = [staging / MODEL_FILE, staging / "meta.json"]
        if snapshot.moments:
            save_tensors(staging / name, snapshot.moments)
            files.append(staging / name)
        return describe_files(staging, files)

    def _finish(self, trainer: Trainer, *, on_failure: Literal["go on", "end"] = "go on") -> None:
        """Wait for all ranks' files and make the checkpoint visible, or give it up. A collective.

        Args:
            on_failure: the same on every rank; going on has its limit all the same.

        Raises:
            CheckpointError: it cannot be written, and it was the last one or one too many in a row.
        """
        save, self._save = self._save, None
        if save is None:
            return
        parts: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(parts, _outcome(save.written))
        problems = [f"rank {rank}: {part}" for rank, part in enumerate(parts) if isinstance(part, str)]
        if not problems and trainer.is_global_zero:
            problems = self._publish(save, {name: entry for part in parts for name, entry in sorted(part.items())})
        problems = trainer.strategy.broadcast(problems)
        if problems:
            self._give_up(trainer, save, problems, on_failure=on_failure)
            return
        self._saved_step, self._failed_in_a_row = save.step, 0

    def _publish(self, save: Save, manifest: Entries) -> list[str]:
        try:
            publish(self.folder.staging_of(save.step), self.folder.checkpoint_of(save.step), manifest=manifest)
        except OSError as error:
            return [f"rank 0: {error}"]
        total_s = time.perf_counter() - save.begun_at
        size = sum(entry["bytes"] for entry in manifest.values()) / 2**30
        say(
            f"[checkpoint] step {save.step}: {size:.3g} GiB in {total_s:.3g} s, of which training waited {save.blocked_s:.3g} s"
        )
        self._report_cleaning()
        keep = functools.partial(delete_old, self.folder, newest=save.step, keep_last=self.policy.keep_last, keep_every_steps=self.policy.keep_every_steps)  # fmt: skip
        self._cleaning = _in_background(keep)
        return []

    def _report_cleaning(self) -> None:
        """Wait for the last deletion of old checkpoints. One that fails costs space alone: the next launch clears it up."""
        cleaning, self._cleaning = self._cleaning, None
        if cleaning is not None and isinstance(problem := _outcome(cleaning), str):
            say(f"[checkpoint] an old checkpoint could not be deleted: {problem}")

    def _give_up(self, trainer: Trainer, save: Save, problems: list[str], *, on_failure: Literal["go on", "end"]) -> None:
        if trainer.is_global_zero:
            shutil.rmtree(self.folder.staging_of(save.step), ignore_errors=True)
        self._failed_in_a_row += 1
        told = f"step {save.step} could not be saved to {self.folder.checkpoints} ({'; '.join(problems)})"
        if on_failure == "end" or self._failed_in_a_row >= self.policy.max_failed_saves:
            raise CheckpointError(
                f"{told}, {self._failed_in_a_row} in a row; make room there, then the same command goes on from the last checkpoint"
            ).everywhere()
        if trainer.is_global_zero:
            say(f"[checkpoint] {told}; training goes on and tries again at the next interval")

    def _meta(self, trainer: Trainer, step: int) -> CheckpointMeta:
        strategy: Any = trainer.strategy
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        return CheckpointMeta(
            format=FORMAT,
            step=step,
            images_seen=step * self.facts.global_batch_size,
            num_updates=train_state.num_updates(strategy.engine),
            skipped_steps=strategy.skipped_steps,
            callbacks={callback.state_key: state for callback in callbacks if (state := callback.state_dict())},
            world_size=trainer.world_size,
            zero_stage=self.facts.zero_stage,
            wandb_id=self.facts.wandb_id,
            data_fingerprint=self.facts.data_fingerprint,
            order_version=ORDER_VERSION,
            versions=collect_versions(),
        )

    def _write_first_weights(self, trainer: Trainer, step: int) -> None:
        masters = self._gather_masters(trainer)
        problem = ""
        if trainer.is_global_zero:
            try:
                self._write_weights(masters, step=step)
            except OSError as error:
                problem = str(error)
        problem = trainer.strategy.broadcast(problem)
        if problem:
            raise CheckpointError(f"weights of step {step} could not be written: {problem}").everywhere()

    def _write_weights(self, masters: dict[str, Tensor], *, step: int) -> None:
        images_seen = step * self.facts.global_batch_size
        save_weights(self.folder.weights_of(step), masters, model=self.facts.model, step=step, images_seen=images_seen)


def _any_rank(*facts: bool, device: torch.device) -> list[bool]:
    """Of each fact whether it holds on some rank. A collective."""
    flags = torch.tensor(facts, dtype=torch.int32, device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]


def _numel(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # ZeRO-3 leaves an empty tensor in its place


def _to_host(tensor: Tensor) -> Tensor:
    """A copy that training does not write to."""
    return tensor.detach().to("cpu", torch.float32, copy=True)


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file; a copy where the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _in_background(work: Callable[[], T]) -> Future[T]:
    """Run it in a thread that does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # handed to whoever asks for the result
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _outcome(future: Future[Any]) -> Any:
    """Its result, or in words what the file system refused. Waits for it."""
    try:
        return future.result()
    except OSError as error:
        return str(error)

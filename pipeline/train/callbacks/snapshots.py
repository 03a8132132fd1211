"""Gather one rank's share of a checkpoint in memory while training waits, and write it in a thread while training continues."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from pipeline.data.order import ORDER_VERSION
from pipeline.models.base import ModelConfig
from pipeline.run.checkpoint import FORMAT, MODEL_FILE, CheckpointMeta, RunFolder, collect_versions, describe_files, write_meta
from pipeline.run.checkpoint_search import is_finite
from pipeline.run.weights import save_tensors, save_weights
from pipeline.train import zero_state

Entries = dict[str, dict[str, Any]]  # a manifest's


@dataclass(frozen=True)
class RunFacts:
    """Holds what goes into every checkpoint's meta.json and every weights file."""

    model: ModelConfig
    global_batch_size: int
    zero_stage: int
    wandb_id: str
    data_fingerprint: str


@dataclass(frozen=True)
class Snapshot:
    """Holds one rank's share of a checkpoint, in memory."""

    meta: CheckpointMeta
    moments: dict[str, Tensor]
    masters: dict[str, Tensor]  # all of them on rank 0, none elsewhere


@dataclass(frozen=True)
class NotFinite:
    """Names tensors of a share with values that are not finite: the share is not written."""

    names: tuple[str, ...]


def take_snapshot(trainer: Trainer, step: int, *, facts: RunFacts, proven: bool) -> Snapshot:
    """Return this rank's share of the training's state. This is a collective.

    Args:
        proven: whether it will be published only after a step that began from it was taken.
    """
    strategy: Any = trainer.strategy
    sizes = {
        f"{moment}/{name}": 4 * _numel(parameter)
        for name, parameter in zero_state.named_parameters(strategy.engine)
        for moment in zero_state.inner_optimizer(strategy.engine).state_names
    }
    # Rank 0 has the masters to write.
    masters = sum(4 * _numel(parameter) for _, parameter in zero_state.named_parameters(strategy.engine))
    owners = zero_state.assign_owners(sizes, num_ranks=trainer.world_size, taken=masters)
    gathered = zero_state.gather_optimizer_state(strategy.engine)
    moments = {name: _to_host(tensor) for name, tensor in gathered if owners[name] == trainer.global_rank}
    return Snapshot(_make_meta(trainer, step, facts=facts, proven=proven), moments, gather_masters(trainer))


def gather_masters(trainer: Trainer) -> dict[str, Tensor]:
    """Return the fp32 weights on rank 0; nothing elsewhere. This is a collective."""
    strategy: Any = trainer.strategy
    gathered = zero_state.gather_masters(strategy.engine)
    return {name: _to_host(tensor) for name, tensor in gathered if trainer.is_global_zero}


def write_share(snapshot: Snapshot, *, folder: RunFolder, facts: RunFacts, name: str) -> Entries | NotFinite:
    """Write one rank's files below the checkpoint's staging folder, and prepare the weights file. It runs in a thread.

    Args:
        name: name of the file of moments.

    Returns:
        Manifest entries; nothing is written of a share that is not finite.
    """
    ruined = [key for key, tensor in [*snapshot.masters.items(), *snapshot.moments.items()] if not is_finite(tensor)]
    if ruined:
        return NotFinite(tuple(ruined))
    step = snapshot.meta.step
    staging = folder.staging_of(step)
    staging.mkdir(exist_ok=True)  # without parent folders: see `save_weights`
    files: list[Path] = []
    if snapshot.masters:
        model = staging / MODEL_FILE
        save_weights(model, snapshot.masters, model=facts.model, step=step, images_seen=snapshot.meta.images_seen)
        link_or_copy(model, prepared_weights(folder, step))
        write_meta(staging, snapshot.meta)
        files = [model, staging / "meta.json"]
    if snapshot.moments:
        save_tensors(staging / name, snapshot.moments)
        files.append(staging / name)
    return describe_files(staging, files)


def prepared_weights(folder: RunFolder, step: int) -> Path:
    """The weights of a checkpoint that is on its way: readers pass it over."""
    return folder.weights / f".{folder.weights_of(step).name}.part"


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; a copy, on disk, where the file system has no hard links."""
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def _make_meta(trainer: Trainer, step: int, *, facts: RunFacts, proven: bool) -> CheckpointMeta:
    strategy: Any = trainer.strategy
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return CheckpointMeta(
        format=FORMAT,
        step=step,
        images_seen=step * facts.global_batch_size,
        num_updates=zero_state.num_updates(strategy.engine),
        skipped_steps=strategy.skipped_steps,
        callbacks={callback.state_key: state for callback in callbacks if (state := callback.state_dict())},
        world_size=trainer.world_size,
        zero_stage=facts.zero_stage,
        wandb_id=facts.wandb_id,
        data_fingerprint=facts.data_fingerprint,
        order_version=ORDER_VERSION,
        versions=collect_versions(),
        proven=proven,
    )


def _numel(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # ZeRO-3 leaves an empty tensor in its place


def _to_host(tensor: Tensor) -> Tensor:
    """Return a copy that training does not write to."""
    return tensor.detach().to("cpu", torch.float32, copy=True)

"""Gather one rank's share of a checkpoint in memory while training waits, and write it in a thread while training continues."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from pipeline.data.order import ORDER_VERSION
from pipeline.files import sync_folder
from pipeline.models.base import ModelConfig
from pipeline.optim.average import AVERAGE
from pipeline.run.checkpoint import (
    AVERAGE_FILE,
    FORMAT,
    MODEL_FILE,
    CheckpointMeta,
    RunFolder,
    collect_versions,
    describe_files,
    write_meta,
)
from pipeline.run.checkpoint_search import is_finite
from pipeline.run.folder import WeightsKind
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
    masters: dict[str, Tensor]  # all of them on rank 0, none elsewhere; with the running statistics of BatchNorm
    averages: dict[str, Tensor] = field(default_factory=dict)  # likewise; none where no average is kept


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
    sizes = {key: 4 * _numel(parameter) for key, parameter in zero_state.state_keys(strategy.engine)}
    shared = {key: size for key, size in sizes.items() if _averaged(key) is None}
    # Rank 0 has the masters to write, and their average.
    masters = sum(4 * _numel(parameter) for _, parameter in zero_state.named_parameters(strategy.engine))
    averages = sum(sizes.values()) - sum(shared.values())
    owners = zero_state.assign_owners(shared, num_ranks=trainer.world_size, taken=masters + averages)
    gathered = zero_state.gather_optimizer_state(strategy.engine)
    statistics = _gather_statistics(trainer)
    kept = {key: _to_host(tensor) for key, tensor in gathered if owners.get(key, 0) == trainer.global_rank}
    averages = {name: tensor for key, tensor in kept.items() if (name := _averaged(key)) is not None}
    return Snapshot(
        meta=_make_meta(trainer, step, facts=facts, proven=proven),
        moments={key: tensor for key, tensor in kept.items() if key in shared},
        masters=_gather_masters(trainer) | statistics,
        averages=averages | statistics if averages else {},
    )


def _averaged(key: str) -> str | None:
    """Return the parameter's name if the key of an optimizer's tensor is that of an average."""
    state, _, name = key.partition("/")
    return name if state == AVERAGE else None


def gather_weights(trainer: Trainer) -> dict[str, Tensor]:
    """Return what a weights file holds on rank 0, in fp32; nothing elsewhere. This is a collective."""
    return _gather_masters(trainer) | _gather_statistics(trainer)


def _gather_statistics(trainer: Trainer) -> dict[str, Tensor]:
    strategy: Any = trainer.strategy
    gathered = zero_state.gather_statistics(strategy.engine)
    return {name: _to_host(tensor) for name, tensor in gathered if trainer.is_global_zero}


def _gather_masters(trainer: Trainer) -> dict[str, Tensor]:
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
    tensors = [*snapshot.masters.items(), *snapshot.averages.items(), *snapshot.moments.items()]
    ruined = [key for key, tensor in tensors if not is_finite(tensor)]
    if ruined:
        return NotFinite(tuple(ruined))
    step = snapshot.meta.step
    staging = folder.staging_of(step)
    staging.mkdir(exist_ok=True)  # without parent folders: see `save_weights`
    files: list[Path] = []
    whole: list[tuple[WeightsKind, str, dict[str, Tensor]]] = [
        ("raw", MODEL_FILE, snapshot.masters),
        ("average", AVERAGE_FILE, snapshot.averages),
    ]
    for kind, file_name, weights in whole:
        if weights:
            files.append(staging / file_name)
            seen = snapshot.meta.images_seen
            save_weights(files[-1], weights, model=facts.model, step=step, images_seen=seen, kind=kind)
            link_or_copy(files[-1], prepared_weights(folder, step, kind))
    if snapshot.masters:
        write_meta(staging, snapshot.meta)
        files.append(staging / "meta.json")
    if snapshot.moments:
        save_tensors(staging / name, snapshot.moments)
        files.append(staging / name)
    return describe_files(staging, files)


def prepared_weights(folder: RunFolder, step: int, kind: WeightsKind = "raw") -> Path:
    """Return the path of a coming checkpoint's weights, which readers pass over."""
    return folder.weights / f".{folder.weights_of(step, kind).name}.part"


def publish_weights(folder: RunFolder, step: int) -> None:
    """Give a checkpoint's weights the names that readers look for, its average first where there is one.

    Raises:
        OSError: they cannot be renamed.
    """
    average = prepared_weights(folder, step, "average")
    if average.exists():
        average.replace(folder.weights_of(step, "average"))
    prepared_weights(folder, step).replace(folder.weights_of(step))
    sync_folder(folder.weights)


def discard_weights(folder: RunFolder, step: int) -> None:
    """Leave nothing of what was prepared."""
    for kind in get_args(WeightsKind):
        prepared_weights(folder, step, kind).unlink(missing_ok=True)


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
    """Return a copy that training does not write to, in fp32 unless it is a whole number."""
    return tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)

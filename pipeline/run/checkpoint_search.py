"""Find the checkpoint that a launch resumes from, the newest sound one, and set aside or refuse those that it passes over.

    newer       another version of this software wrote it     the launch is refused, nothing is touched
    unreadable  the system does not let this process read it   the launch is refused, nothing is touched
    damaged     files are missing, or their bytes differ       set aside as broken-step_..., the next older one is taken
    ruined      it holds values that are not finite            set aside as ruined-step_..., the next older one is taken

The first two are whole, as far as anybody knows: a launch that passed them over would train their steps again.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open

from pipeline.errors import CheckpointError, DamagedError, RuinedError
from pipeline.run.checkpoint import Checkpoint, read_checkpoint
from pipeline.run.folder import RunFolder, step_name

Condition = Literal["broken", "ruined"]
SHOWN_TENSORS = 3


@dataclass(frozen=True)
class Rejected:
    """Names a checkpoint that was passed over, and why."""

    step: int
    condition: Condition
    reason: str


@dataclass(frozen=True)
class CheckpointSearch:
    """Holds the newest sound checkpoint, and the newer ones that are not sound."""

    newest: Checkpoint | None
    rejected: tuple[Rejected, ...]


def find_latest(folder: RunFolder) -> CheckpointSearch:
    """Return the newest checkpoint that is whole and finite.

    Raises:
        CheckpointError: a newer one cannot be judged, or none is whole.
    """
    rejected: list[Rejected] = []
    steps = folder.checkpoint_steps()
    for step in reversed(steps):
        try:
            checkpoint = read_checkpoint(folder.checkpoint_of(step))
            if checkpoint.meta.step != step:  # a copy that somebody made under one of our names
                raise DamagedError(f"{checkpoint.path} holds step {checkpoint.meta.step}, not {step}")
            check_finite(checkpoint.path)
            return CheckpointSearch(checkpoint, tuple(rejected))
        except DamagedError as error:
            rejected.append(Rejected(step, "broken", str(error)))
        except RuinedError as error:
            rejected.append(Rejected(step, "ruined", str(error)))
        except CheckpointError as error:
            older = [other for other in steps if other < step]
            way_out = f", or move it out of {folder.checkpoints} to train again from step {older[-1]}" if older else ""
            raise CheckpointError(f"{error}{way_out}") from error
    if any(item.condition == "broken" for item in rejected):
        reasons = "; ".join(item.reason for item in rejected)
        raise CheckpointError(
            f"no checkpoint of {folder.root} is whole: {reasons}. Restore one, or start a new run with name=..."
        )
    return CheckpointSearch(None, tuple(rejected))


def check_finite(path: Path) -> None:
    """Check every value of a checkpoint.

    Raises:
        RuinedError: some are not finite.
        CheckpointError: a file cannot be read.
    """
    ruined: list[str] = []
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                ruined += [name for name in tensors.keys() if not is_finite(tensors.get_tensor(name))]  # noqa: SIM118
        except Exception as error:  # its hash is right, so another version of this library wrote what this one cannot read
            raise CheckpointError(f"{file} cannot be read: {error}; read it with the version that wrote it") from error
    if ruined:
        raise RuinedError(f"{path} is ruined: {name_tensors(ruined)} not finite")


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether all values are finite. A sum of finite values may overflow, so only a finite sum is an answer."""
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
        return True
    return bool(torch.isfinite(tensor).all())


def name_tensors(names: list[str]) -> str:
    """Name some of the tensors, and how many there are, with the verb."""
    shown = ", ".join(names[:SHOWN_TENSORS]) + (f" and {len(names) - SHOWN_TENSORS} more" if len(names) > SHOWN_TENSORS else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def set_aside(folder: RunFolder, step: int, condition: Condition) -> Path:
    """Rename a checkpoint that nobody should resume from, so that it neither counts nor is in the way. Return its path."""
    path = folder.checkpoints / f"{condition}-{step_name(step)}"
    if path.exists():
        shutil.rmtree(path)  # an older broken checkpoint of the same step
    folder.checkpoint_of(step).rename(path)
    return path


def clear_leftovers(folder: RunFolder) -> None:
    """Remove what crashed saves and deletions left. Other names with a dot belong to a file system or a user."""
    for parent in (folder.checkpoints, folder.weights):
        for pattern in (".saving-step_*", ".deleting-step_*", ".step_*.part"):
            for path in parent.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for written in (folder.heartbeat, folder.stragglers, folder.config, folder.complete, folder.data):
        for path in folder.root.glob(f".{written.name}.*.part"):
            path.unlink(missing_ok=True)

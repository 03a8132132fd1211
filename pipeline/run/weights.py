"""Read and write files of tensors: plain weights with their model's config in the header, and parts of a checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from pipeline.errors import CheckpointError
from pipeline.files import sync_folder
from pipeline.json_text import parse_json
from pipeline.models import config_from_dict
from pipeline.models.base import Backbone, ModelConfig
from pipeline.run.folder import WeightsKind

OBJECTIVE_PREFIX = "objective."  # of the names of parameters that belong to the objective, not to the model


def save_weights(
    path: Path,
    tensors: dict[str, Tensor],
    *,
    model: ModelConfig,
    step: int,
    images_seen: int,
    kind: WeightsKind = "raw",
    more: Mapping[str, str] | None = None,
) -> None:
    """Write plain weights as safetensors, with the model's config in the header, whole or not at all.

    Args:
        more: further entries of the header.
    """
    header = {
        "family": model.family,
        "model": json.dumps(model.to_dict()),
        "step": str(step),
        "images_seen": str(images_seen),
        "digest": digest_tensors(tensors),
        "format": "pt",
        **({} if kind == "raw" else {"kind": kind}),
        **(more or {}),
    }
    path.parent.mkdir(
        exist_ok=True
    )  # without parent folders: if the file system is not mounted, they would be made below the empty mount point
    temporary = path.with_name(f".{path.name}.part")  # straight to disk: a copy in memory would double the peak
    try:
        save_tensors(temporary, tensors, header=header)
    except OSError:
        temporary.unlink(missing_ok=True)  # half a file takes the space that the next attempt needs
        raise
    temporary.replace(path)
    sync_folder(path.parent)


def save_tensors(path: Path, tensors: dict[str, Tensor], *, header: dict[str, str] | None = None) -> None:
    """Write tensors to a file, and make sure that they are on disk.

    Raises:
        OSError: they cannot be written, for example because the disk is full.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)  # the umask's mode: the library's files are readable by their owner alone
    try:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=header)
    except safetensors.SafetensorError as error:  # the library wraps an error of the system in it
        raise OSError(f"{path}: {error}") from error
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)
    with path.open("rb") as file:
        os.fsync(file.fileno())


class TensorFiles:
    """Reads tensors by name from several files of them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [safe_open(path, framework="pt") for path in paths]
        self._file_of = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118  (not a dictionary)

    def read(self, name: str) -> Tensor:
        """Return a tensor on CPU.

        Raises:
            CheckpointError: none of the files has it.
        """
        if name not in self._file_of:
            raise CheckpointError(f"the checkpoint lacks {name!r}: it is not of this model, or not of this version")
        return self._file_of[name].get_tensor(name)


def digest_tensors(tensors: dict[str, Tensor]) -> str:
    """Return a hash of names and values: it distinguishes two files of the same step."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class WeightsHeader:
    """Describes a weights file by its header."""

    digest: str
    model: ModelConfig
    step: int
    images_seen: int
    kind: WeightsKind = "raw"


def read_weights_header(path: Path) -> WeightsHeader:
    """Read a weights file's header alone.

    Raises:
        CheckpointError: missing, damaged, or not a file this software wrote.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        return WeightsHeader(
            digest=header["digest"],
            model=config_from_dict(header.get("family", "vit"), parse_json(header["model"])),
            step=_count(header["step"]),
            images_seen=_count(header["images_seen"]),
            kind="average" if header.get("kind") == "average" else "raw",
        )
    except FileNotFoundError as error:
        raise CheckpointError(f"weights file {path} does not exist") from error
    except CheckpointError as error:  # of a model that is not defined here
        raise CheckpointError(f"{path}: {error}") from error
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is not a weights file of this software, or is damaged: {error}") from error


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text[:40]!r} is not a count")
    return int(text)


@dataclass(frozen=True)
class Weights:
    """Holds a model loaded from plain weights, and how much training it has had."""

    path: Path
    model: Backbone
    header: WeightsHeader
    objective: dict[str, Tensor] = field(default_factory=dict)  # of the objective it was trained with, by its own names


def load_weights(path: Path) -> Weights:
    """Read a weights file into a model in eval mode, on CPU, fp32.

    Raises:
        CheckpointError: missing, damaged, or not a file this software wrote.
    """
    header = read_weights_header(path)
    _check_shapes(path, header.model)  # before a model is made: a damaged header may describe one of any size
    model = header.model.build()
    objective = load_tensors(model, path)
    if digest_tensors({**model.state_dict(), **objective}) != header.digest:
        raise CheckpointError(f"{path} is damaged: its tensors differ from the digest in its header")
    own = {name.removeprefix(OBJECTIVE_PREFIX): tensor for name, tensor in objective.items()}
    return Weights(path=path, model=model.eval(), header=header, objective=own)


def load_tensors(model: Backbone, path: Path, *, objective: nn.Module | None = None) -> dict[str, Tensor]:
    """Fill a model, and where it is given the objective that it was trained with, with a weights file's tensors.

    Returns:
        The objective's tensors by their names in the file.

    Raises:
        CheckpointError: they are damaged, or another model's.
    """
    try:
        tensors = safetensors.torch.load_file(path)
        own = {name: tensors.pop(name) for name in sorted(tensors) if not name.startswith(OBJECTIVE_PREFIX)}
        model.load_state_dict(own)
        if objective is not None:
            objective.load_state_dict({name.removeprefix(OBJECTIVE_PREFIX): tensor for name, tensor in tensors.items()})
        return tensors
    except (OSError, RuntimeError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged, or of another model: {error}") from error


def _check_shapes(path: Path, config: ModelConfig) -> None:
    with safe_open(path, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (not a dictionary)
    reason = f"{path} is damaged, or of another model: its tensors are not those of the model in its header"
    if config.least_tensors > len(found):
        raise CheckpointError(reason)
    try:
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in config.build().state_dict().items()}
    except RuntimeError as error:  # more elements than a tensor can have
        raise CheckpointError(reason) from error
    if {name: shape for name, shape in found.items() if not name.startswith(OBJECTIVE_PREFIX)} != expected:
        raise CheckpointError(reason)

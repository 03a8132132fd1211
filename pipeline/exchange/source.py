"""Recognise what a path of weights is, and read it: ours, or of timm, transformers or Google."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import CheckpointError, ExchangeError
from pipeline.exchange.files import read_json, read_npz_arrays, read_tensors
from pipeline.exchange.npz import read_npz
from pipeline.exchange.own import read_own
from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.timm_reading import read_timm_file, read_timm_folder
from pipeline.exchange.transformers_reading import read_transformers_folder
from pipeline.image_size import ImageSize

# Of a folder, the files of weights in the order in which they are looked for.
_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
# What computing with sizes of other kinds than their names say raises.
UNREADABLE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)
FORMATS = (
    "a weights file of this software (.safetensors), a Google .npz file, a folder of timm or transformers with config.json, or "
    "a .safetensors, .bin or .pth file with timm's names"
)


def read_pretrained(path: Path, *, size: ImageSize | None = None) -> Pretrained:
    """Return the model that a file or folder holds.

    Args:
        size: height and width of the model's images, for an .npz file that does not say them.

    Raises:
        ExchangeError: it is missing or damaged, or no model that is known here.
        CheckpointError: a weights file of this software is damaged.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise ExchangeError(f"weights {path} do not exist; they are {FORMATS}")
    if path.suffix == ".npz" or (path.suffix == "" and zipfile.is_zipfile(path)):
        return _read_npz(path, size)
    if path.suffix == ".safetensors" and is_own(path):
        return read_own(path)
    tensors = read_tensors(path)
    if (path.parent / "config.json").exists():
        return _read_described(path.parent, path)
    try:
        return read_timm_file(path, tensors)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _read_npz(path: Path, size: ImageSize | None) -> Pretrained:
    arrays = read_npz_arrays(path)
    try:
        return read_npz(arrays, source=str(path), size=size)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ExchangeError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:150]
    return ExchangeError(f"{path} describes no model that can be read ({reason})")


def is_own(path: Path) -> bool:
    """Return whether a .safetensors file is a weights file of this software."""
    try:
        with safe_open(path, framework="pt") as file:
            return {"model", "digest", "step"} <= (file.metadata() or {}).keys()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _read_folder(path: Path) -> Pretrained:
    weights = next((path / name for name in _WEIGHTS if (path / name).exists()), None)
    if weights is None:
        held = sorted(entry.name for entry in path.iterdir())[:3]
        raise ExchangeError(
            f"{path} holds no weights ({', '.join(held) or 'it is empty'}); a folder of timm or transformers has "
            f"model.safetensors and config.json"
        )
    if weights.suffix == ".safetensors" and is_own(weights):
        return read_own(weights)
    return _read_described(path, weights)


def _read_described(folder: Path, weights: Path) -> Pretrained:
    config = read_json(folder / "config.json")
    tensors = read_tensors(weights)
    try:
        return _read_by_config(folder, config, tensors)
    except UNREADABLE as error:
        raise _unreadable(folder / "config.json", error) from error


def _read_by_config(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Pretrained:
    source = str(folder)
    if "architecture" in config:  # also what transformers saves of TimmWrapperModel, whose names have a prefix
        prefix = "timm_model."
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        return read_timm_folder(config, tensors, source=source)
    if "model_type" in config:
        path = folder / "preprocessor_config.json"
        return read_transformers_folder(config, read_json(path) if path.exists() else None, tensors, source=source)
    raise ExchangeError(f"{folder / 'config.json'} is of neither timm (architecture) nor transformers (model_type)")

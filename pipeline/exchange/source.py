"""Recognise what a path of weights is, and read it: ours, or of timm, transformers or Google."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.errors import CheckpointError, ExchangeError
from pipeline.exchange.files import read_json, read_npz_arrays, read_tensors
from pipeline.exchange.kinds import kind_of
from pipeline.exchange.npz import read_npz
from pipeline.exchange.own import read_own
from pipeline.exchange.places import missing, place_of, snapshot_of
from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.state_dicts import StateDict, unwrapped
from pipeline.exchange.timm_reading import read_timm_file, read_timm_folder
from pipeline.exchange.transformers_reading import read_transformers_folder
from pipeline.image_size import ImageSize

# Of a folder, the files of weights in the order in which they are looked for.
_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
CONFIG = "config.json"
# What computing with sizes of other kinds than their names say raises.
UNREADABLE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)
FORMATS = (
    "a weights file of this software (.safetensors), a Google .npz file, a folder of timm or transformers with config.json, or "
    "a .safetensors, .bin or .pth file with timm's names"
)


def read_pretrained(path: str | Path, *, size: ImageSize | None = None) -> Pretrained:
    """Return the model that a file or folder holds. What a file is follows from its bytes, whatever its name.

    Args:
        size: height and width of the model's images, for an .npz file that does not say them.

    Raises:
        ExchangeError: it is missing or damaged, or no model that is known here.
        CheckpointError: a weights file of this software is damaged.
        DataError: a file is empty, or a placeholder of one that was not downloaded.
    """
    path = place_of(path)
    if path.is_dir():
        return _read_folder(snapshot_of(path))
    if not path.exists():
        raise missing(path, formats=FORMATS)
    kind = kind_of(path)
    if kind == "npz":
        return _read_npz(path, size)
    if kind == "safetensors" and is_own(path):
        return read_own(path)
    if (path.parent / CONFIG).exists() and describes_model(path.parent / CONFIG):
        return _read_described(path.parent, path)
    state = read_tensors(path)
    try:
        return read_timm_file(path, state)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def describes_model(path: Path) -> bool:
    """Return whether a config.json is a model's: a file of weights may lie next to that of anything."""
    try:
        return not {"architecture", "model_type"}.isdisjoint(read_json(path))
    except ExchangeError:
        return False


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
    weights = next((path / name for name in _WEIGHTS if (path / name).exists() or (path / name).is_symlink()), None)
    if weights is None:
        raise _without_weights(path)
    if not weights.exists():
        raise missing(weights, formats=FORMATS)
    if kind_of(weights) == "safetensors" and is_own(weights):
        return read_own(weights)
    return _read_described(path, weights)


def _without_weights(path: Path) -> ExchangeError:
    names = sorted(entry.name for entry in path.iterdir())
    others = [name for name in names if name.endswith((".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".npz"))]
    if "adapter_config.json" in names:
        what = "it has an adapter alone: merge it into its model with peft (merge_and_unload), and save that"
    elif others:
        what = f"give the file itself: {path / others[0]}" + (f", or one of {len(others) - 1} others" if others[1:] else "")
    else:
        what = "a folder of timm or transformers has model.safetensors and config.json"
    return ExchangeError(f"{path} holds no weights ({', '.join(names[:3]) or 'it is empty'}); {what}")


def _read_described(folder: Path, weights: Path) -> Pretrained:
    config = read_json(folder / CONFIG)
    state = read_tensors(weights)
    try:
        return _read_by_config(folder, config, state).noting(*state.notes)
    except UNREADABLE as error:
        raise _unreadable(folder / CONFIG, error) from error


def _read_by_config(folder: Path, config: dict[str, Any], state: StateDict) -> Pretrained:
    source = str(folder)
    tensors = unwrapped(state.tensors)
    if "architecture" in config:  # also what transformers saves of TimmWrapperModel, whose names have a prefix
        prefix = "timm_model."
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        return read_timm_folder(config, tensors, source=source)
    if "model_type" in config:
        path = folder / "preprocessor_config.json"
        return read_transformers_folder(config, read_json(path) if path.exists() else None, tensors, source=source)
    raise ExchangeError(f"{folder / CONFIG} is of neither timm (architecture) nor transformers (model_type)")

"""Write and read a model as a weights file of this software, which holds what others' files say of their models as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from safetensors import safe_open

from pipeline.data.images.crop import Resize
from pipeline.errors import CheckpointError
from pipeline.exchange.pretrained import Preprocessing, Pretrained
from pipeline.json_text import parse_json
from pipeline.objectives.base import Probabilities
from pipeline.run.weights import load_weights, save_weights

ABOUT = "about"  # key of the header that holds names of classes, and what images go through


def write_own(path: Path, model: Pretrained) -> None:
    """Write a weights file.

    Raises:
        OSError: it cannot be written.
    """
    about = {
        "source": model.source,
        "class_names": model.class_names,
        "short_side": model.preprocessing.short_side,
        "resize": model.preprocessing.resize,
        "notes": model.notes,
        **({} if model.probabilities is None else {"probabilities": model.probabilities}),
        **({} if model.has_head else {"has_head": False}),
    }
    save_weights(
        path,
        model.filled(),
        model=model.config,
        step=model.step,
        images_seen=model.images_seen,
        more={ABOUT: json.dumps(about)},
    )


def read_own(path: Path) -> Pretrained:
    """Return the model of a weights file.

    Raises:
        CheckpointError: it is damaged.
    """
    weights = load_weights(path)
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(ABOUT, "{}")
    about = _parse_about(text, path)
    names, preprocessing = _read_about(about, path)
    tensors = dict(weights.model.state_dict())
    return Pretrained(
        weights.header.model,
        {name: tensor for name, tensor in tensors.items() if about.get("has_head", True) or not name.startswith("head.")},
        source=str(path),
        class_names=names,
        preprocessing=preprocessing,
        probabilities=about["probabilities"] if about.get("probabilities") in get_args(Probabilities) else None,
        step=weights.header.step,
        images_seen=weights.header.images_seen,
    )


def _parse_about(text: str, path: Path) -> dict[str, Any]:
    try:
        found = parse_json(text)
        if not isinstance(found, dict):
            raise ValueError("no mapping")
        return found
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: what its header says about the model cannot be read ({error})") from error


def _read_about(about: dict[str, Any], path: Path) -> tuple[tuple[str, ...] | None, Preprocessing]:
    try:
        names, short_side = about.get("class_names"), about.get("short_side")
        resize: Resize = about.get("resize") or "bilinear_antialias"
        if resize not in ("bilinear", "bilinear_antialias", "bicubic_antialias"):
            raise ValueError(f"resize {resize!r}")
        if not (short_side is None or (type(short_side) is int and short_side > 0)):
            raise ValueError(f"short_side {short_side!r}")
        return None if names is None else tuple(map(str, names)), Preprocessing(short_side, resize)
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: what its header says about the model cannot be read ({error})") from error

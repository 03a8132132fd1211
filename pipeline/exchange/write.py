"""Write a model in the form of a target: a folder of timm or transformers, or one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.data.shards.class_names import LINE_END
from pipeline.errors import ExchangeError
from pipeline.exchange.files import write_npz_arrays
from pipeline.exchange.fold import drop_head
from pipeline.exchange.google_names import Naming
from pipeline.exchange.npz import make_npz
from pipeline.exchange.onnx import write_onnx
from pipeline.exchange.own import write_own
from pipeline.exchange.pieces import Tensors
from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.timm import make_timm_folder
from pipeline.exchange.transformers import make_transformers_folder
from pipeline.files import write_whole
from pipeline.image_size import ImageSize, height_and_width
from pipeline.run.weights import save_tensors

Target = Literal["timm", "transformers", "npz", "onnx", "safetensors"]
WEIGHTS, CONFIG, PREPROCESSOR, CARD, CLASSES = (
    "model.safetensors", "config.json", "preprocessor_config.json", "README.md", "classes.txt",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Holds what may be chosen for a target.

    Attributes:
        has_head: the classifier is written too.
        naming: of .npz files; None: by the model.
        sizes: of ONNX, the image sizes; empty: the model's own.
    """

    has_head: bool = True
    naming: Naming | None = None
    sizes: Sequence[ImageSize] = ()


@dataclass(frozen=True)
class Written:
    """Says what was written.

    Attributes:
        paths: files, in the order in which they were written.
        notes: what was folded, left out or measured, in words.
        card_target: the format, for the model card.
    """

    paths: tuple[Path, ...]
    notes: tuple[str, ...]


def write_model(model: Pretrained, target: Target, out: Path, options: Options = Options()) -> Written:
    """Write a model. Every file is whole or absent.

    Args:
        out: a folder, which is made, or for npz and onnx a file of that ending.

    Raises:
        ExchangeError: the target has no such model, or the path is not of its kind.
        OSError: a file cannot be written.
    """
    model.check_class_names()
    if not options.has_head:
        model = drop_head(model)
    if target in ("npz", "onnx"):
        return _write_file(model, target, out, options)
    if out.exists() and not out.is_dir():
        raise ExchangeError(f"{out} is a file; --to {target} writes a folder")
    out.mkdir(parents=True, exist_ok=True)
    if target == "timm":
        folder = make_timm_folder(model)
        return Written(_write_folder(out, folder.tensors, {CONFIG: folder.config}, model), folder.notes)
    if target == "transformers":
        made = make_transformers_folder(model)
        described = {CONFIG: made.config, PREPROCESSOR: made.preprocessor}
        return Written(_write_folder(out, made.tensors, described, model), made.notes)
    write_own(out / WEIGHTS, model)
    _remove_described(out)  # it was another model's: this file describes itself
    return Written((out / WEIGHTS, *_write_classes(out, model)), model.notes)


def _write_folder(out: Path, tensors: Tensors, described: Mapping[str, dict[str, Any]], model: Pretrained) -> tuple[Path, ...]:
    """Write a folder's files, the description last: a folder without one opens as no model.

    What an earlier export has left of a description is removed before its weights are replaced, so that no weights ever lie
    next to another model's.
    """
    draft = out / f".{WEIGHTS}.part"
    try:
        save_tensors(draft, tensors, header={"format": "pt"})
        _remove_described(out)
        draft.replace(out / WEIGHTS)
    finally:
        draft.unlink(missing_ok=True)
    written = [out / WEIGHTS, *_write_classes(out, model)]
    for name, values in reversed(list(described.items())):
        write_whole(out / name, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        written.append(out / name)
    return tuple(written)


def _remove_described(out: Path) -> None:
    for name in (CONFIG, PREPROCESSOR, CLASSES):
        (out / name).unlink(missing_ok=True)


def _write_classes(out: Path, model: Pretrained) -> tuple[Path, ...]:
    if model.class_names is None:
        return ()
    lines = [LINE_END.sub(" ", name) for name in model.class_names]  # a line for each class, whatever its name holds
    write_whole(out / CLASSES, "".join(f"{line}\n" for line in lines))
    return (out / CLASSES,)


def _write_file(model: Pretrained, target: Literal["npz", "onnx"], out: Path, options: Options) -> Written:
    if out.suffix != f".{target}":
        raise ExchangeError(f"--to {target} writes a file: name it {out.name or 'model'}.{target}, not {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    if target == "npz":
        arrays, model = make_npz(model, options.naming)
        write_npz_arrays(out, arrays)
        return Written((out,), model.notes)
    sizes = list(options.sizes) or [model.config.image_size]
    paths, notes = [], list(model.notes)
    for size in sizes:
        path = out if len(sizes) == 1 else out.with_name(f"{out.stem}-{_short(size)}{out.suffix}")
        graph = write_onnx(model, path, size=size)
        notes.append(f"{path.name}: onnxruntime's outputs differ from torch's by {graph.difference:.1e} of the largest")
        if len(graph.paths) > 1:
            notes.append(f"{path.name} names {graph.paths[1].name}, which has its weights: keep both, under these names")
        paths += graph.paths
    return Written(tuple(paths), tuple(notes))


def _short(size: ImageSize) -> str:
    return "x".join(map(str, height_and_width(size)))

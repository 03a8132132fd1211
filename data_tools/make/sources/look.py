"""Tell what tars hold: further tars, WebDataset samples with labels, or images without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from data_tools.make.sources.files import image_extension
from data_tools.make.sources.stored import open_stored, split_path
from pipeline.data.shards.sample import LABEL_EXTENSIONS, MASK_EXTENSIONS
from pipeline.data.shards.tar import scan_samples
from pipeline.errors import DataError

TarContent = Literal["tars", "images", "samples"]
MAX_LOOKED_INTO = 3  # counts tars with anything in them
# endings of a text about one image, which lies next to it: a caption, or a label that is not named as readers expect
TEXT_EXTENSIONS = frozenset({"txt", "text", "caption", "label", "labels", "class", "class_id", "target", "index", "idx", "id"})


def look_into_tars(paths: Sequence[str]) -> TarContent:
    """Return what the first tars hold that are not empty.

    Raises:
        DataError: nothing at all, or tars of tars among others.
    """
    found: list[TarContent] = []
    for path in paths:
        if (content := _look_into(path)) is not None:
            found.append(content)
        if len(found) == MAX_LOOKED_INTO:
            break
    if not found:
        raise DataError(f"{paths[0]}: no images in {len(paths)} tars: they are empty, or hold no KEY.EXTENSION like 000017.jpg")
    if "tars" in found and len(set(found)) > 1:
        raise DataError(
            f"{split_path(paths[0])[0]} holds tars of tars among others; give one such tar, or a folder of the inner ones"
        )
    return "samples" if "samples" in found else found[0]


def _look_into(path: str) -> TarContent | None:
    """Return what a tar holds; None for nothing. The tar is read until this is clear.

    A label, a caption or a mask belongs to an image of its key: an info.json among images makes no samples of them.
    """
    with_image: set[str] = set()
    with_label: set[str] = set()
    is_empty = True
    with open_stored(path) as file:
        for sample in scan_samples(file, name=path):
            is_empty = False
            extensions = [member.extension.rpartition(".")[2] for member in sample.members]  # input.jpg, output.cls
            if "tar" in extensions:
                return "tars"
            has_mask = any(member.extension in MASK_EXTENSIONS for member in sample.members)
            has_label = has_mask or not TEXT_EXTENSIONS.union(LABEL_EXTENSIONS).isdisjoint(extensions)
            has_image = any(image_extension(f"x.{extension}") for extension in extensions)
            if (has_label and (has_image or sample.key in with_image)) or (has_image and sample.key in with_label):
                return "samples"
            if has_image:
                with_image.add(sample.key)
            if has_label:
                with_label.add(sample.key)
    if is_empty:
        return None
    return "images" if with_image else "samples"

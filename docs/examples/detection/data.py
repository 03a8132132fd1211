"""Read a COCO-format folder of images with boxes, and give them to a detector at one size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.errors import DataError

ANNOTATIONS = "annotations.json"
EXIF_ORIENTATION, QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # width and height change places
FLIPPED = 1  # in a position of `batches`


@dataclass(frozen=True)
class LabelledImage:
    """Holds where an image is, and what is on it.

    Attributes:
        boxes: (N, 4) left, top, width and height in pixels of the file, fp32.
        labels: (N,) numbers of classes.
        crowd: (N,) 1 for a box of several objects, in which nothing found counts as wrong; they are not trained on.
        upright: the boxes are those of the image turned by its EXIF orientation.
    """

    path: Path
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    upright: bool = False


@dataclass(frozen=True)
class LabelledFolder:
    """Holds the images of a folder, and the names of their classes."""

    classes: tuple[str, ...]
    images: list[LabelledImage]


def read_folder(folder: Path, *, classes: tuple[str, ...] | None = None) -> LabelledFolder:
    """Read FOLDER/annotations.json. Images lie in the folder, by their `file_name`, or in FOLDER/images.

    Args:
        classes: those of another folder, whose numbers are to be used.

    Raises:
        DataError: a file is missing, or the annotations are not those of COCO.
    """
    path = folder / ANNOTATIONS
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # some programs of Windows write a byte-order mark
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; a folder needs images and {ANNOTATIONS}") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    try:
        return _parse(content, folder, classes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path} is not in COCO's format (images, annotations with bbox, categories): {what}") from error


def _parse(content: Any, folder: Path, classes: tuple[str, ...] | None) -> LabelledFolder:
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    classes = classes or tuple(dict.fromkeys(names[key] for key in sorted(names)))
    if unknown := sorted(set(names.values()) - set(classes)):
        raise ValueError(f"the category {unknown[0]!r} is not one of the training folder's: {', '.join(classes)}")
    number = {key: classes.index(name) for key, name in names.items()}
    entries: dict[Any, list[tuple[list[float], int, int]]] = {entry["id"]: [] for entry in content["images"]}
    for entry in content["annotations"]:
        left, top, width, height = map(float, entry["bbox"])
        for known, key, where in ((number, "category_id", "categories"), (entries, "image_id", "images")):
            if entry[key] not in known:
                raise ValueError(
                    f"annotation {entry.get('id', '')} has the {key} {entry[key]!r}, which {where} has not; a part of a set "
                    f"needs the {where} of its annotations"
                )
        if width > 0 and height > 0:
            label, crowd = number[entry["category_id"]], int(entry.get("iscrowd", 0))
            entries[entry["image_id"]].append(([left, top, width, height], label, crowd))
    images = [_image(folder, entry, entries[entry["id"]]) for entry in content["images"]]
    if not any(len(image.boxes) for image in images):
        raise ValueError("no image has a box")
    if max(float(image.boxes.max()) for image in images if len(image.boxes)) <= 1:
        raise ValueError("no box is larger than a pixel: they are parts of the image, and COCO's are in pixels")
    return LabelledFolder(classes, images)


def _image(folder: Path, entry: dict[str, Any], objects: list[tuple[list[float], int, int]]) -> LabelledImage:
    name = entry["file_name"]
    path = next((path for path in (folder / name, folder / "images" / name) if path.is_file()), None)
    if path is None:
        raise DataError(f"{folder / name} does not exist, nor {folder / 'images' / name}; {ANNOTATIONS} names it")
    upright = _is_upright(path, (entry.get("width"), entry.get("height")))
    boxes, labels, crowd = ([item[part] for item in objects] for part in range(3))
    numbers = [torch.tensor(values, dtype=torch.int64) for values in (labels, crowd)]
    return LabelledImage(path, torch.tensor(boxes).reshape(-1, 4), *numbers, upright=upright)


def _is_upright(path: Path, size: tuple[Any, Any]) -> bool:
    """Return whether boxes are those of the image as its EXIF orientation turns it: of the size that the annotations say.

    Raises:
        DataError: the file has another size, turned or not: its boxes are of another image.
    """
    try:
        with Image.open(path) as file:
            found, turned = file.size, file.getexif().get(EXIF_ORIENTATION, 1) in QUARTER_TURNS
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if None in size or found == size:
        return False
    if turned and found[::-1] == size:
        return True
    raise DataError(
        f"{path} has {found[0]} x {found[1]} pixels, and {ANNOTATIONS} says {size[0]} x {size[1]}: its boxes are those of "
        "another image, or it was resized; annotate it again, or scale its boxes"
    )


class Resized(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Gives images of one size, whatever their shape was, and their boxes as a detector is trained on.

    An item is the pixels, (3, H, W) in [-1, 1], and `class_labels` (N,) with `boxes` (N, 4): centre x and y, width and
    height as parts of the image. `size` (2,) is width and height of the file in pixels.
    """

    def __init__(self, folder: LabelledFolder, image_size: tuple[int, int]) -> None:
        self.images = folder.images
        self._size = image_size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        number, flip = position
        image = self.images[number]
        height, width = self._size
        try:
            with Image.open(image.path) as file:
                turned = ImageOps.exif_transpose(file) if image.upright else file
                size = torch.tensor(turned.size, dtype=torch.float32)
                pixels = np.asarray(turned.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
        except OSError as error:
            raise DataError(f"{image.path} cannot be read: {error}") from error
        tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1.0  # as the backbone was trained
        kept = image.crowd == 0
        corner, extent = image.boxes[kept].split(2, dim=1)
        centre = (corner + extent / 2) / size
        if flip == FLIPPED:
            tensor, centre = tensor.flip(2), torch.stack([1 - centre[:, 0], centre[:, 1]], dim=1)
        boxes = torch.cat([centre, extent / size], dim=1).clamp(0, 1)
        return tensor, {"class_labels": image.labels[kept], "boxes": boxes, "size": size}


def batches(count: int, steps: range, batch_size: int, *, seed: int, flip: bool) -> Iterator[list[tuple[int, int]]]:
    """Yield the images of each step, and whether each is flipped: a function of the seed and the step alone.

    Args:
        count: of images. Each epoch takes every image once; what does not fill a batch is left out.
    """
    per_epoch = max(1, count // batch_size)
    for step in steps:
        epoch, batch = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(count, generator=generator)[batch * batch_size : (batch + 1) * batch_size]
        flips = torch.randint(2, (count,), generator=generator)[order] * int(flip)
        yield list(zip(order.tolist(), flips.tolist(), strict=True))

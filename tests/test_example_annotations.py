"""The example of detectors reads COCO's annotations as they are meant, and refuses others in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pipeline.errors import DataError
from tests.helpers.detection import SIDE, write_squares


def test_boxes_are_around_what_they_name_also_when_mirrored(examples: None, tmp_path: Path) -> None:
    from detection.data import Resized, read_folder

    write_squares(tmp_path / "set", 8)
    folder = read_folder(tmp_path / "set")
    assert folder.classes == ("red", "green")
    for position in ((number, flip) for number in range(8) for flip in range(2)):
        pixels, target = Resized(folder, (2 * SIDE, SIDE))[position]  # stretched
        covered = torch.zeros(2, 2 * SIDE, SIDE, dtype=torch.bool)
        for label, (x, y, width, height) in zip(target["class_labels"], target["boxes"], strict=True):
            left, top = round(float(x - width / 2) * SIDE), round(float(y - height / 2) * 2 * SIDE)
            covered[label, top : top + round(float(height) * 2 * SIDE), left : left + round(float(width) * SIDE)] = True
        assert ((pixels[:2] > 0.9) <= covered).all()  # bright is in a box of its colour
        assert (pixels[:2][covered] > 0).float().mean() > 0.95  # and the boxes are full of it, but for interpolated edges


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_boxes_are_those_of_the_size_that_the_annotations_say(examples: None, tmp_path: Path, orientation: int) -> None:
    """Label tools annotate a photo as its EXIF orientation turns it, COCO as it is stored (HumanSignal/label-studio issue 6608,
    voxel51/fiftyone issue 3778): width and height say which."""
    from detection.data import Resized, read_folder

    (tmp_path / "set").mkdir()
    stored = np.zeros((40, 80, 3), np.uint8)
    stored[:10, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "set" / "photo.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "set" / "photo.png")))
    rows, columns = (np.flatnonzero(upright[:, :, 0].any(axis)) for axis in (1, 0))
    is_turned = orientation >= 5
    box = [int(columns[0]), int(rows[0]), len(columns), len(rows)] if is_turned else [0, 0, 20, 10]
    width, height = (40, 80) if is_turned else (80, 40)
    content = {
        "images": [{"id": 1, "file_name": "photo.png", "width": width, "height": height}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": False}],
        "categories": [{"id": 1, "name": "corner"}, {"id": 3, "name": "corner"}],
    }
    (tmp_path / "set" / "annotations.json").write_text("\ufeff" + json.dumps(content))
    folder = read_folder(tmp_path / "set")
    assert folder.classes == ("corner",)
    pixels, target = Resized(folder, (height, width))[0, 0]
    x, y, *_ = (target["boxes"][0] * torch.tensor([width, height, width, height])).tolist()
    left, top = round(x - box[2] / 2), round(y - box[3] / 2)
    bright = pixels[0] > 0
    assert bright[top : top + box[3], left : left + box[2]].all()
    assert bright.sum() == 200
    assert target["size"].tolist() == [width, height]


def test_an_epoch_takes_each_image_once_and_a_resumed_one_goes_on(examples: None) -> None:
    from detection.data import batches

    def draw(steps: range) -> list[list[tuple[int, int]]]:
        return list(batches(12, steps, 4, seed=3, flip=True))

    whole = draw(range(9))
    for first in (0, 3, 6):
        assert sorted(number for batch in whole[first : first + 3] for number, _ in batch) == list(range(12))
    assert whole[0] != whole[3]
    assert draw(range(4, 9)) == whole[4:]


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {name: value for name, value in content.items() if name != key}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("categories"), "not in COCO's format (images, annotations with bbox, categories): there is no 'categories'"),
        (without("annotations"), "there is no 'annotations'"),
        (lambda content: [content], "not in COCO's format"),
        (lambda content: content | {"annotations": []}, "no image has a box"),
        (lambda content: content | {"annotations": [{"image_id": 0, "category_id": 7, "bbox": [1, 2, 3]}]}, "COCO's format"),
        (
            lambda content: content | {"annotations": [{"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4]}]},
            "has the category_id 1, which categories has not",
        ),
        (lambda content: content | {"images": content["images"][1:]}, "has the image_id 0, which images has not"),
        (
            lambda content: content | {"annotations": [{"image_id": 0, "category_id": 7, "bbox": [0.1, 0.2, 0.3, 0.4]}]},
            "no box is larger than a pixel",
        ),
        (
            lambda content: content | {"images": [{**entry, "width": 2 * SIDE} for entry in content["images"]]},
            f"has {SIDE} x {SIDE} pixels, and annotations.json says {2 * SIDE} x {SIDE}",
        ),
        (
            lambda content: content | {"images": [{"id": 0, "file_name": "lost.png"}], "annotations": []},
            "lost.png does not exist",
        ),
    ],
)
def test_annotations_of_another_form_are_refused(examples: None, tmp_path: Path, change: Any, said: str) -> None:
    from detection.data import read_folder

    write_squares(tmp_path / "set", 2)
    path = tmp_path / "set" / "annotations.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path / "set")
    assert said in str(caught.value)
    path.write_text("{")
    with pytest.raises(DataError, match="is no JSON"):
        read_folder(tmp_path / "set")
    with pytest.raises(DataError, match="cannot be read"):
        read_folder(tmp_path / "elsewhere")


def test_the_made_digits_fill_their_boxes(examples: None, tmp_path: Path) -> None:
    from make_digits import write_set

    ink = np.zeros((3, 28, 28), np.uint8)
    ink[:, 6:20, 9:15] = 255
    photos, generator = [Image.new("RGB", (90, 80))], np.random.default_rng(0)
    write_set(tmp_path / "set", 5, digits=(ink, np.arange(3)), photos=photos, size=70, generator=generator)
    content = json.loads((tmp_path / "set" / "annotations.json").read_text())
    for entry in content["images"]:
        pixels = np.array(Image.open(tmp_path / "set" / entry["file_name"])).max(axis=2)
        boxes = [box["bbox"] for box in content["annotations"] if box["image_id"] == entry["id"]]
        assert boxes
        for left, top, width, height in boxes:
            assert (pixels[top : top + height, left : left + width] > 30).mean() > 0.9
            pixels[top : top + height, left : left + width] = 0
        assert pixels.max() == 0

"""A small set in COCO's format, for the example of detectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 48  # of images, in pixels


def write_squares(folder: Path, count: int) -> None:
    """Write images of noise with one or two bright squares, in two classes: red and green."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    entries, annotations = [], []
    for number in range(count):
        pixels = generator.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
        for half in range(generator.integers(1, 3)):
            side, label = generator.integers(10, 20), generator.integers(2)
            top, left = generator.integers(SIDE - side + 1), half * SIDE // 2 + generator.integers(SIDE // 2 - side + 1)
            pixels[top : top + side, left : left + side, label] = 255
            box = [int(value) for value in (left, top, side, side)]
            annotations.append({"id": len(annotations), "image_id": number, "category_id": int(label) + 7, "bbox": box})
        Image.fromarray(pixels).save(folder / f"{number}.png")
        entries.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
    categories = [{"id": 7, "name": "red"}, {"id": 8, "name": "green"}]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))

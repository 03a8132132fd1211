"""Write shards of random pictures of the size and the entropy of ImageNet's photographs: 500 x 375 pixels, about 110 kB."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.index import index_folder
from data_tools.parallel import LocalWorkers
from tests.conftest import write_tar

SHAPE = (375, 500)
NOISE = 22.0  # standard deviation of a pixel: gives a file of about 110 kB at quality 92


def picture(number: int) -> bytes:
    """Return a JPEG: a smooth picture and noise."""
    generator = np.random.default_rng(number)
    coarse = Image.fromarray(generator.integers(0, 256, (8, 10, 3), dtype=np.uint8))
    smooth = coarse.resize(SHAPE[::-1], Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth, np.float32) + NOISE * generator.standard_normal((*SHAPE, 1), dtype=np.float32)
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=92)
    return out.getvalue()


def write_photos(folder: Path, *, shards: int, images_per_shard: int, different: int = 64) -> None:
    """Write indexed shards.

    Args:
        different: pictures that are made; they come again and again, under other keys.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [picture(number) for number in range(different)]
    for shard in range(shards):
        members = []
        for slot in range(images_per_shard):
            number = shard * images_per_shard + slot
            members += [(f"{number:07d}.jpg", pictures[number % different]), (f"{number:07d}.cls", str(number % 1000).encode())]
        write_tar(folder / f"shard-{shard:04d}.tar", members)
    index_folder(str(folder), block_samples=32, workers=LocalWorkers(1))

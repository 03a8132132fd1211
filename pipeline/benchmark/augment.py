"""`benchmark augment`: measure what each augmentation law costs an image, next to the libraries that it comes from.

    python -m pipeline.benchmark.augment SETTINGS

measures in a process of its own and prints JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from pipeline.benchmark.torchvision_operators import declare_torchvision_operators
from pipeline.benchmark.transforms import Settings, encoded_images, make_transform
from pipeline.benchmark.turns import REPOSITORY
from pipeline.console.progress import track
from pipeline.data.images.augment import Augment
from pipeline.data.images.augment.base import Augmentation
from pipeline.data.images.decode import has_region_decoder
from pipeline.data.images.erasing import Erasing, RandomErasing
from pipeline.data.images.planes import Planes
from pipeline.data.shards.index import load_index
from pipeline.errors import PipelineError
from pipeline.keyed_random import Purpose, derive_key, few_uniforms
from pipeline.section import members_of

MAX_IMAGES = 64
OURS, DECODING = "ours", "JPEG decode + crop"
LAYERS, MAGNITUDE = 2, 9  # of every law that has them

Work = Callable[[int], Any]  # the number of an image to its augmented form
Images = list[Planes]


def compare_augmentations(folder: str, *, image_size: int, num_rounds: int) -> str:
    """Measure all laws in turns, in a fresh process with one thread, and return a table.

    Raises:
        DataError: no index.
        PipelineError: the process has ended.
    """
    num_images = min(load_index(folder).num_samples, MAX_IMAGES)
    paths = [str(REPOSITORY / ".reference"), os.environ.get("PYTHONPATH", "")]
    settings = {"folder": folder, "image_size": image_size, "num_rounds": num_rounds}
    answer = subprocess.run(
        [sys.executable, "-m", "pipeline.benchmark.augment", json.dumps(settings)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    if answer.returncode:
        raise PipelineError(f"the process that measures ended with code {answer.returncode}; what it said is above")
    heading = (
        f"{num_images} images of {folder}, cropped to {image_size} px; CPU microseconds an image on one core, medians of "
        f"{num_rounds} interleaved rounds; the fastest in brackets"
    )
    return f"{heading}\n\n{make_table(json.loads(answer.stdout))}"


def make_table(results: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Return a row for each law, a column for each who runs it.

    Args:
        results: law, then who, to the seconds an image of each round.
    """
    columns = list(dict.fromkeys(who for row in results.values() for who in row))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for law, row in results.items():
        cells = [
            f"{1e6 * statistics.median(row[who]):.0f} ({1e6 * min(row[who]):.0f})" if who in row else "" for who in columns
        ]
        lines.append(f"| {law} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(*, folder: str, image_size: int, num_rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the CPU seconds an image of each round, for each law and each who runs it."""
    torch.set_num_threads(1)
    settings = Settings(folder, converted="", num_workers=0, batch_size=1, image_size=image_size)
    encoded = encoded_images(settings)[:MAX_IMAGES]
    transform = make_transform(settings, "region" if has_region_decoder() else "whole")
    images: Images = []

    def decode(number: int) -> Planes:
        out = torch.empty((3, image_size, image_size), dtype=torch.uint8)
        transform(encoded[number], seed=0, epoch=0, sample_id=number, out=out)
        return out.numpy()

    images += [decode(number) for number in range(len(encoded))]
    work = {DECODING: {OURS: decode}, **our_laws(images)}
    for law, others in their_laws(images).items():
        work[law].update(others)
    results: dict[str, dict[str, list[float]]] = {law: {who: [] for who in row} for law, row in work.items()}
    for _ in track(range(num_rounds), description="rounds", unit="round"):
        for law, row in work.items():
            for who, run in row.items():
                begin = time.process_time()
                for number in range(len(images)):
                    run(number)
                results[law][who].append((time.process_time() - begin) / len(images))
    return results


def our_laws(images: Images) -> dict[str, dict[str, Work]]:
    """Return every member of the kind with its defaults, and random erasing of every image."""

    def augment(law: Augmentation) -> Work:
        def run(number: int) -> Planes:
            return law(images[number], few_uniforms(derive_key(0, Purpose.OPERATIONS, 0, number, 0), law.num_draws))

        return run

    def erase(law: Erasing) -> Work:
        return lambda number: law(images[number].copy(), key=derive_key(0, Purpose.ERASING, 0, number, 0))

    laws: dict[str, dict[str, Work]] = {}
    for name, section in members_of(Augment).items():
        law = section().build()  # type: ignore[attr-defined]  # every member is an AugmentSection
        if law is not None:
            laws[name] = {OURS: augment(law)}
    erasing = RandomErasing(probability=1.0).build()  # type: ignore[call-arg]
    assert erasing is not None
    laws["random_erasing"] = {OURS: erase(erasing)}
    return laws


def their_laws(images: Images) -> dict[str, dict[str, Work]]:
    """Return torchvision's and timm's laws, on the form of image that they are made for; none where they are not installed."""
    declare_torchvision_operators()
    try:
        tv: Any = importlib.import_module("torchvision.transforms")
        v2: Any = importlib.import_module("torchvision.transforms.v2")
        timm: Any = importlib.import_module("timm.data.auto_augment")
        erasing: Any = importlib.import_module("timm.data.random_erasing")
    except ImportError as error:
        print(f"torchvision and timm are left out: {error}", file=sys.stderr)
        return {}
    pictures = [Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))) for planes in images]
    tensors = [torch.from_numpy(planes) for planes in images]

    def on(inputs: list[Any], run: Callable[[Any], Any]) -> Work:
        return lambda number: run(inputs[number])

    increasing = timm.rand_augment_transform(
        f"rand-m{MAGNITUDE}-mstd0.5-inc1", {"img_mean": (124, 116, 104), "interpolation": 3}
    )

    def by_timm(picture: Image.Image) -> Image.Image:
        try:
            return increasing(picture)
        except ValueError:  # a magnitude that noise has brought to 10 leaves 0 bits, which Pillow refuses to posterize to
            return picture

    three = tv.Compose(
        [tv.RandomChoice([tv.Grayscale(3), tv.RandomSolarize(128, p=1.0), _blur]), tv.ColorJitter(0.3, 0.3, 0.3)]
    )
    erase = erasing.RandomErasing(probability=1.0, mode="pixel", device="cpu")
    floats = [tensor.float() for tensor in tensors]
    return {
        "randaugment_torchvision": {
            "torchvision, Pillow": on(pictures, tv.RandAugment(LAYERS, MAGNITUDE)),
            "torchvision v2, tensors": on(tensors, v2.RandAugment(LAYERS, MAGNITUDE)),
        },
        "randaugment_timm": {"timm, Pillow": on(pictures, by_timm)},
        "three_augment": {"torchvision, Pillow": on(pictures, three)},
        "random_erasing": {"timm, fp32 tensors": on(floats, lambda tensor: erase(tensor.clone()))},
    }


def _blur(image: Image.Image) -> Image.Image:
    """Blur as DeiT III does, which has no blur of torchvision."""
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))

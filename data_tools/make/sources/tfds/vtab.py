"""Define the 19 tasks of VTAB (arXiv 1910.04867) on TensorFlow Datasets: their splits, and labels where a set has none.

The definitions are those of google-research/task_adaptation (`task_adaptation/data/`), whose indices refer to the order of the
prepared files. Fractions of a split are rounded down there.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from PIL import Image

from data_tools.make.sources.tfds.records import Features
from data_tools.make.sources.tfds.slices import Part, parse_slices
from pipeline.errors import DataError

SPLITS = ("train", "val", "trainval", "test", "train800", "val200", "train800val200")
# Thresholds of distances (task_adaptation/data/clevr.py, kitti.py). The class is that of the last one below the distance.
CLEVR_DEPTHS = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_DEPTHS = (-100.0, 8.0, 20.0, 999.0)
NO_VEHICLE = 1000.0  # metres: no vehicle is the last class
NUM_VEHICLE_TYPES = 3  # Car, Van, Truck are the first types


@dataclass(frozen=True)
class Task:
    """Describes one task.

    Attributes:
        builder: the data set's name, which its dataset_info.json has.
        train, val, test: slices of the set's own splits.
        label: the feature that holds the label; None: `compute` does it.
        classes: names of the classes that are computed.
        draw: what becomes of the image.
    """

    builder: str
    train: str = "train"
    val: str = "validation"
    test: str = "test"
    label: str | None = "label"
    compute: Callable[[Features], int] | None = None
    classes: tuple[str, ...] | None = None
    draw: Callable[[bytes], bytes] | None = None

    def parts(self, split: str, counts: Mapping[str, int]) -> list[Part]:
        """Return the examples of a split of the task.

        Args:
            counts: examples of each of the set's own splits.

        Raises:
            DataError: VTAB has no such split, or the set has not what it needs.
        """
        if split not in SPLITS:
            raise DataError(f"--source-split {split!r}: with --vtab it is one of {', '.join(SPLITS)}")
        train, val = (parse_slices(text, counts, rounding="down")[0] for text in (self.train, self.val))
        first_800 = train._replace(end=min(train.end, train.first + 800))
        first_200 = val._replace(end=min(val.end, val.first + 200))
        parts = {
            "train": [train],
            "val": [val],
            "trainval": [train, val],
            "train800": [first_800],
            "val200": [first_200],
            "train800val200": [first_800, first_200],
        }
        return parse_slices(self.test, counts, rounding="down") if split == "test" else parts[split]


def _class_of(distance: float, thresholds: Sequence[float]) -> int:
    """Return the number of the last threshold that is below a distance; -1 where none is."""
    return sum(threshold < distance for threshold in thresholds) - 1


def _count_objects(features: Features) -> int:
    return len(features["objects/size"]) - 3


def _closest_object(features: Features) -> int:
    return _class_of(min(features["objects/pixel_coords"][2::3]), CLEVR_DEPTHS)


def _closest_vehicle(features: Features) -> int:
    depths = features["objects/location"][2::3]
    types = features["objects/type"]
    return _class_of(
        min([depth for depth, kind in zip(depths, types, strict=True) if kind < NUM_VEHICLE_TYPES] + [NO_VEHICLE]), KITTI_DEPTHS
    )


def _x_position(features: Features) -> int:
    """Return one of 16 classes of two positions each (task_adaptation/data/dsprites.py)."""
    return int(features["label_x_position"][0] // 2)


def _orientation(features: Features) -> int:
    """Return one of 16 classes of 2.5 of the 40 orientations each."""
    return int(features["label_orientation"][0] // 2.5)


def _brighten(image: bytes) -> bytes:
    """Return a picture of zeros and ones as one of 0 and 255."""
    with Image.open(io.BytesIO(image)) as opened:
        bright = opened.convert("L").point(lambda value: 255 * value)
    buffer = io.BytesIO()
    bright.save(buffer, format="PNG")
    return buffer.getvalue()


def _between(thresholds: Sequence[float], unit: str) -> tuple[str, ...]:
    return tuple(f"{low:g} to {high:g} {unit}" for low, high in pairwise(thresholds))


_COUNTS = tuple(f"{count} objects" for count in range(3, 11))
_VEHICLES = ("below 8 m", "8 to 20 m", "20 to 999 m", "no vehicle")
_NUMBERS = tuple(f"class {number}" for number in range(16))

# Their own percent of a split without a split for val, and of some without one for test.
_NINETY: dict[str, Any] = {"train": "train[:90%]", "val": "train[90%:]"}
_EIGHTY: dict[str, Any] = {"train": "train[:80%]", "val": "train[80%:]"}
_FIFTHS: dict[str, Any] = {"train": "train[:60%]", "val": "train[60%:80%]", "test": "train[80%:]"}
_CLEVR: dict[str, Any] = {"builder": "clevr", **_NINETY, "test": "validation", "label": None}
_DSPRITES: dict[str, Any] = {
    "builder": "dsprites", "train": "train[:80%]", "val": "train[80%:90%]", "test": "train[90%:]", "label": None,
    "classes": _NUMBERS, "draw": _brighten,
}  # fmt: skip
_SMALLNORB: dict[str, Any] = {"builder": "smallnorb", "val": "test[:50%]", "test": "test[50%:]"}

TASKS: dict[str, Task] = {
    "caltech101": Task("caltech101", **_NINETY),
    "cifar100": Task("cifar100", **_NINETY),
    "dtd": Task("dtd"),
    "flowers102": Task("oxford_flowers102"),
    "pets": Task("oxford_iiit_pet", **_EIGHTY),
    "sun397": Task("sun397"),
    "svhn": Task("svhn_cropped", **_NINETY),
    "patch_camelyon": Task("patch_camelyon"),
    "eurosat": Task("eurosat", **_FIFTHS),
    "resisc45": Task("resisc45", **_FIFTHS),
    "retinopathy": Task("diabetic_retinopathy_detection"),
    "clevr_count": Task(**_CLEVR, compute=_count_objects, classes=_COUNTS),
    "clevr_distance": Task(**_CLEVR, compute=_closest_object, classes=_between(CLEVR_DEPTHS, "units")),
    "dmlab": Task("dmlab"),
    "kitti_distance": Task("kitti", label=None, compute=_closest_vehicle, classes=_VEHICLES),
    "dsprites_location": Task(**_DSPRITES, compute=_x_position),
    "dsprites_orientation": Task(**_DSPRITES, compute=_orientation),
    "smallnorb_azimuth": Task(**_SMALLNORB, label="label_azimuth"),
    "smallnorb_elevation": Task(**_SMALLNORB, label="label_elevation"),
}


def find_task(name: str, *, builder: str, source: str) -> Task:
    """Return a task of VTAB.

    Raises:
        DataError: there is no such task, or it is defined on another set.
    """
    if name not in TASKS:
        raise DataError(f"--vtab {name!r} is no task; they are {', '.join(TASKS)}")
    task = TASKS[name]
    if task.builder != builder:
        raise DataError(f"--vtab {name} is defined on the set {task.builder}; {source} holds {builder}")
    return task

"""Write one small source of each kind that `make` packs, and read what it makes."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.shards.index import load_index
from tests.conftest import encode, make_image, write_tar

IMAGES = 40


def picture(number: int) -> bytes:
    return encode(make_image(number, num_classes=3, size=20 + number % 9), format="JPEG")


def write_folder(root: Path) -> Path:
    for number in range(IMAGES):
        path = root / f"class{number % 4}" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return root


def write_samples(root: Path) -> Path:
    """Write WebDataset tars with several labels a sample; in one of them the images come first, then all labels."""
    root.mkdir()
    for tar in range(3):
        members = [
            (f"{n:03d}.{kind}", data)
            for n in range(tar, IMAGES, 3)
            for kind, data in (
                ("jpg", picture(n)),
                ("json", json.dumps({"labels": [n % 3, 3], "caption": "x" * n}).encode()),
                ("txt", b"a caption"),
            )
        ]
        apart = sorted(members, key=lambda member: member[0].rpartition(".")[2]) if tar == 2 else members
        write_tar(root / f"set-{tar}.tar", apart)
    return root


def write_class_tars(root: Path) -> Path:
    root.mkdir()
    for label in range(4):
        write_tar(root / f"class{'abcd'[label]}.tar", [(f"{n}.v.jpg", picture(n)) for n in range(label, IMAGES, 4)])
    return root


def write_outer_tar(root: Path) -> Path:
    write_class_tars(root)
    with tarfile.open(root.with_suffix(".tar"), "w") as outer:
        for path in sorted(root.iterdir(), reverse=True):
            outer.add(path, path.name)
    return root.with_suffix(".tar")


def write_list(root: Path) -> Path:
    root.mkdir()
    for number in range(IMAGES):
        (root / f"{number:03d}.jpg").write_bytes(picture(number))
    lines = "".join(f"{n:03d}.jpg,{n % 4};{(n + 1) % 4}\n" for n in range(IMAGES))
    (root / "list.csv").write_text(f"path,label\n{lines}")
    return root / "list.csv"


def write_table(root: Path) -> Path:
    root.mkdir()
    for part in range(2):
        rows = range(part, IMAGES, 2)
        pq.write_table(
            pa.table({"image": [picture(n) for n in rows], "label": [n % 4 for n in rows]}), root / f"{part}.parquet"
        )
    return root


WRITERS: dict[str, Callable[[Path], Path]] = {
    "image folder": write_folder,
    "WebDataset tars": write_samples,
    "class tars": write_class_tars,
    "outer tar": write_outer_tar,
    "CSV": write_list,
    "table": write_table,
}


class Made(NamedTuple):
    files: dict[str, bytes]  # all but the index, whose header the library writes in an order of its own
    fingerprints: list[str]


def read_made(folder: Path) -> Made:
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    indexes = [path for name, path in files.items() if name.endswith("index.safetensors")]
    return Made(
        {name: path.read_bytes() for name, path in files.items() if path not in indexes and not name.startswith(".data-tools")},
        [load_index(str(path.parent)).fingerprint for path in indexes],
    )


def without_place(made: Made) -> Made:
    """Leave out of make.json what names the source's place and time."""
    record = json.loads(made.files["make.json"])
    return made._replace(files={**made.files, "make.json": json.dumps({**record, "times": 0, "stamp": 0}).encode()})

"""Where samples come from: a folder of class folders, or tars that exist already."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm
from webdataset.tariterators import base_plus_ext

from pipeline.data.folder import ShardFolder
from pipeline.data.reader import IMAGE_EXTENSIONS
from pipeline.errors import DataError


@dataclass(frozen=True)
class Member:
    """One file of a sample: bytes [start, start + length) of `path`, to be stored as KEY.extension."""

    extension: str
    path: str
    start: int
    length: int

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            data = file.read(self.length)
        if len(data) != self.length:
            raise DataError(f"{self.path}: cut short at byte {self.start + len(data)}")
        return data


@dataclass(frozen=True)
class SampleSource:
    """One sample to be written: its key, the files it takes bytes from, and its class unless a member holds it."""

    key: str
    members: tuple[Member, ...]
    label: int | None


@dataclass(frozen=True)
class Listing:
    """Everything a source holds, in a fixed order."""

    samples: list[SampleSource]
    classes: list[str] | None  # by class id, where the source tells
    passed_over: int  # files that are not images


def list_source(path: str, classes: list[str] | None = None) -> Listing:
    """Look at a path and list its samples.

    Args:
        classes: class names by id, for a folder of class folders; their sorted names if not given.

    Raises:
        DataError: neither an image folder nor a folder of tars nor a tar.
    """
    root = Path(path)
    if root.is_file() and root.suffix == ".tar":
        return list_tars([root])
    if root.is_file():
        raise DataError(f"source {path!r} is neither a folder nor a plain .tar; `gunzip` a compressed tar first")
    if not root.is_dir():
        raise DataError(f"source {path!r} does not exist")
    if any(child.is_dir() for child in root.iterdir()):
        return list_image_folder(root, classes)
    if not any(child.suffix == ".tar" for child in root.iterdir()):
        raise DataError(f"source {path!r} holds neither class folders (CLASS/image.jpg) nor WebDataset tars")
    return list_tars([root / name for name in ShardFolder(path).list_shards()])


def list_image_folder(root: Path, classes: list[str] | None = None) -> Listing:
    """ROOT/CLASS/any/depth/image.jpg: classes are numbered as given, or the folders in sorted order, from 0.

    Raises:
        DataError: no images, or a folder that is not among the given classes.
    """
    folders = sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    classes = folders if classes is None else classes
    strangers = sorted(set(folders) - set(classes))
    if strangers:
        raise DataError(f"{root}: class folders {', '.join(strangers[:5])} are not among the {len(classes)} classes given")
    samples: list[SampleSource] = []
    passed_over = 0
    for label, name in enumerate(tqdm(classes, desc="list classes", unit="class")):
        for path in sorted(p for p in (root / name).rglob("*") if p.is_file() and not p.name.startswith(".")):
            extension = path.suffix.lower().removeprefix(".")
            if extension not in IMAGE_EXTENSIONS:
                passed_over += 1
                continue
            key = _numbered_key(len(samples), path.stem)
            samples.append(SampleSource(key=key, members=(Member(extension, str(path), 0, path.stat().st_size),), label=label))
    if not samples:
        raise DataError(f"{root}: no images in its {len(classes)} class folders (looked for {', '.join(IMAGE_EXTENSIONS)})")
    return Listing(samples=samples, classes=classes, passed_over=passed_over)


def _numbered_key(number: int, name: str) -> str:
    """The number keeps keys unique; the name is there for people. WebDataset cuts keys at the first dot."""
    return f"{number:09d}-{re.sub(r'[^A-Za-z0-9_-]', '_', name.rpartition('/')[2])}"


def list_tars(paths: list[Path]) -> Listing:
    """Samples of existing WebDataset tars, all their members kept, addressed by byte range."""
    listed = [sample for path in tqdm(paths, desc="list tars", unit="tar") for sample in _samples_of_tar(path)]
    found = [sample for sample in listed if any(member.extension in IMAGE_EXTENSIONS for member in sample.members)]
    if not found:
        raise DataError(f"{paths[0]}: no images in its {len(listed)} samples (looked for {', '.join(IMAGE_EXTENSIONS)})")
    # Keys often begin anew in every tar; in one shard two neighbours of the same key would become one sample.
    samples = [replace(sample, key=_numbered_key(number, sample.key)) for number, sample in enumerate(found)]
    return Listing(samples=samples, classes=None, passed_over=len(listed) - len(found))


def _samples_of_tar(path: Path) -> Iterator[SampleSource]:
    key: str | None = None
    members: list[Member] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                name, extension = base_plus_ext(info.name) if info.isreg() else (None, None)
                if name is None or extension is None:
                    continue
                if name != key and key is not None:
                    yield SampleSource(key=key, members=tuple(members), label=None)
                    members = []
                key = name
                members.append(Member(extension, str(path), info.offset_data, info.size))
    except tarfile.TarError as error:
        raise DataError(f"{path}: not a whole, uncompressed tar ({error})") from error
    if key is not None:
        yield SampleSource(key=key, members=tuple(members), label=None)

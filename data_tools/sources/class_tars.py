"""One tar a class, as ImageNet is distributed: a folder of nXXXXXXXX.tar, or one outer tar of them. Nothing is unpacked."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from data_tools.sources.listing import Listing, ListingBuilder, Member
from data_tools.sources.parts import list_parts
from pipeline.data.sample import IMAGE_EXTENSIONS
from pipeline.data.tar import refuse_sparse, scan_samples
from pipeline.errors import DataError


class ClassTar(NamedTuple):
    """A class's tar: a file of its own (no start), or bytes [start, start + length) of an outer tar."""

    path: str
    start: int | None
    length: int
    name: str
    label: int


def list_class_tars(paths: list[Path], *, num_workers: int) -> Listing:
    """The images of tars that are each named after their class; classes are numbered in sorted order.

    Raises:
        DataError: damaged tars, or no images.
    """
    tars = sorted((path.stem, str(path)) for path in paths)
    return _list([ClassTar(path, None, 0, name, label) for label, (name, path) in enumerate(tars)], num_workers)


def list_outer_tar(path: Path, *, num_workers: int) -> Listing:
    """The same for a tar that holds the classes' tars.

    Raises:
        DataError: damaged tars, two of one name, or no images.
    """
    inner: list[tuple[str, int, int]] = []
    passed_over = 0
    with open(path, "rb") as file:
        for sample in scan_samples(file, name=str(path)):
            for member in sample.members:
                name, _, extension = f"{sample.key.rpartition('/')[2]}.{member.extension}".rpartition(".")
                if extension == "tar":
                    inner.append((name, member.start, member.length))
                else:
                    passed_over += 1
    inner.sort()
    for (name, *_), (following, *_) in pairwise(inner):
        if name == following:
            raise DataError(f"{path}: two inner tars are named {name}.tar, so they cannot be told apart")
    tars = [ClassTar(str(path), start, length, name, label) for label, (name, start, length) in enumerate(inner)]
    listing = _list(tars, num_workers)
    return replace(listing, passed_over=listing.passed_over + passed_over)


def _list(tars: list[ClassTar], num_workers: int) -> Listing:
    listing = list_parts(_list_tar, tars, num_workers=num_workers, description="list class tars", unit="tar")
    if not len(listing):
        raise DataError(f"{tars[0].path}: no images in {len(tars)} class tars (looked for {', '.join(IMAGE_EXTENSIONS)})")
    return replace(listing, classes=tuple(tar.name for tar in tars))


def _list_tar(tar: ClassTar) -> Listing:
    builder = ListingBuilder()
    passed_over = 0
    with open(tar.path, "rb") as file:
        within = file if tar.start is None else cast(BinaryIO, _Window(file, tar.start, tar.length))
        for sample in scan_samples(within, name=tar.path if tar.start is None else f"{tar.path} ({tar.name}.tar in it)"):
            refuse_sparse(sample, tar.path)
            for member in sample.members:  # WebDataset would join a.1.jpg and a.2.jpg; here each is an image of its own
                extension = member.extension.rpartition(".")[2]
                if extension not in IMAGE_EXTENSIONS:
                    passed_over += 1
                    continue
                builder.add(
                    f"{tar.name}/{sample.key}.{member.extension}", labels=(tar.label,),
                    members=(Member(extension, 0, (tar.start or 0) + member.start, member.length),),
                )  # fmt: skip
    return builder.build(layout="ranges", files=(tar.path,), passed_over=passed_over)


class _Window:
    """Bytes [start, start + length) of a file, read as a file of their own."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length = file, start, length
        self._place = 0

    def read(self, size: int) -> bytes:
        self._file.seek(self._start + self._place)
        data = self._file.read(min(size, max(0, self._length - self._place)))
        self._place += len(data)
        return data

    def seek(self, place: int) -> int:
        self._place = place
        return place

    def tell(self) -> int:
        return self._place

"""List one tar a class, as ImageNet is distributed: nXXXXXXXX.tar in a folder or an outer tar. Nothing is unpacked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from data_tools.make.sources.files import SIGNATURE_BYTES, image_extension, is_junk, is_unfinished, sniff_named
from data_tools.make.sources.image_folder import drop_empty_classes, sort_classes
from data_tools.make.sources.kept import keep_listings
from data_tools.make.sources.listing import MAX_NAMED, Listing, Member
from data_tools.make.sources.listing_builder import ListingBuilder
from data_tools.make.sources.parts import list_parts
from data_tools.make.sources.stored import changed_at, file_stem, open_stored
from data_tools.parallel import Workers
from data_tools.splits import is_split, parse_split, splits_among_classes
from data_tools.text_files import printable
from pipeline.data.shards.member_names import split_name
from pipeline.data.shards.sample import IMAGE_EXTENSIONS
from pipeline.data.shards.tar import TarFile, refuse_sparse, scan_files
from pipeline.errors import DataError

WORDNET_ID = re.compile(r"n\d{8}")
DIGITS = re.compile(r"\d+")


class ClassTar(NamedTuple):
    """Locates a class's tar: a file of its own (no start), or bytes [start, start + length) of an outer tar."""

    path: str
    start: int | None
    length: int
    name: str
    label: int


def list_class_tars(paths: list[str], *, known: Collection[str], workers: Workers, scratch: Path) -> Listing:
    """Return the images of tars that are each named after their class; classes are numbered in sorted order.

    Raises:
        DataError: damaged tars, no images, or tars whose folders are the classes.
    """
    path_of = {file_stem(path): path for path in paths}
    tars = [ClassTar(path_of[name], None, 0, name, label) for label, name in enumerate(sort_classes(path_of))]
    return _list(tars, known, workers, scratch)


def list_outer_tar(path: str, *, known: Collection[str], workers: Workers, scratch: Path) -> Listing:
    """List the images of a tar that holds the classes' tars.

    Raises:
        DataError: damaged tars, two of one name, names that are not classes, or no images.
    """
    inner: list[tuple[str, int, int]] = []
    others: list[str] = []
    with open_stored(path) as file:
        for member in _visible_files(file, path):
            stem, _, extension = member.name.rpartition("/")[2].rpartition(".")
            if extension.lower() == "tar" and stem:
                inner.append((stem, member.start, member.length))
            else:
                others.append(member.name)
    check_class_tars([name for name, *_ in inner], source=path, known=known)
    range_of = {name: (start, length) for name, start, length in inner}
    if len(range_of) < len(inner):
        name = next(name for name, count in Counter(name for name, *_ in inner).items() if count > 1)
        raise DataError(f"{path}: two inner tars are named {name}.tar, so they cannot be distinguished")
    tars = [
        ClassTar(path, range_of[name][0], range_of[name][1], name, label) for label, name in enumerate(sort_classes(range_of))
    ]
    listing = _list(tars, known, workers, scratch)
    return replace(
        listing,
        passed_over=listing.passed_over + len(others),
        first_passed_over=(*others, *listing.first_passed_over)[:MAX_NAMED],
    )


def check_class_tars(names: Collection[str], *, source: object, known: Collection[str]) -> None:
    """Refuse tars whose names are not classes: splits, numbered shards.

    Args:
        known: names that the user gives as classes: these are classes, whatever they are called.

    Raises:
        DataError: they are splits or shards.
    """
    unknown = sorted(name for name in names if name not in known)
    if unknown and _are_shards(unknown):
        raise DataError(
            f"{source} holds images without labels in tars that are numbered like shards ({unknown[0]}.tar ...). WebDataset "
            "samples have a label next to the image (KEY.jpg, KEY.cls); tars of one class each must be named after their "
            "class, like n01440764.tar or cat.tar. If these are classes, name them in a --classes file"
        )
    if splits := splits_among_classes(unknown):
        raise DataError(
            f"{source} holds tars of the splits {', '.join(splits)}, with images and no labels; a split is no class. "
            "WebDataset samples have a label next to the image (KEY.jpg, KEY.cls); if they are classes, name them in a "
            "--classes file"
        )


def _are_shards(names: Collection[str]) -> bool:
    """Whether tars are numbered like shards (train-000, part_0001_of_0010), not named like classes.

    Names that differ only in numbers, or hold a split and a number, are shards; so is a single one with a number.
    """
    if all(WORDNET_ID.fullmatch(name) for name in names):
        return False
    patterns = Counter(DIGITS.sub("#", name) for name in names)
    return any(
        "#" in pattern and (count > 1 or len(names) == 1 or parse_split(pattern) is not None)
        for pattern, count in patterns.items()
    )


def _check_folders(listing: Listing, tars: Sequence[ClassTar], known: Collection[str]) -> None:
    """Refuse tars that hold folders of the same names: these are the classes, as in ImageNet-C's blur.tar, noise.tar.

    Raises:
        DataError: two tars share two folders or more.
    """
    folders: dict[str, set[str]] = {}
    for sample in range(len(listing)):
        tar, *parts, _ = listing.name(sample).decode("utf-8", "surrogateescape").split("/")
        if parts and tar not in known:
            folders.setdefault(tar, set()).add(parts[-1])
    tars_of = Counter(folder for found in folders.values() for folder in found if not is_split(folder))
    for tar, found in folders.items():
        shared = sorted(folder for folder in found if tars_of[folder] > 1)
        if len(shared) > 1:
            raise DataError(
                f"{tars[0].path} and the other tars hold folders of the same names ({printable(shared[0])}, "
                f"{printable(shared[1])} ... in {tar}.tar), so the folders look like the classes, not the tars: unpack them "
                "and give the folder. If each tar is a class, name them in a --classes file"
            )


def _list(tars: list[ClassTar], known: Collection[str], workers: Workers, scratch: Path) -> Listing:
    list_tar = keep_listings(_list_tar, scratch, paths=[tar.path for tar in tars])
    listing = list_parts(list_tar, tars, workers=workers, description="list class tars", unit="tar")
    if not len(listing):
        raise DataError(f"{tars[0].path}: no images in {len(tars)} class tars (looked for {', '.join(IMAGE_EXTENSIONS)})")
    _check_folders(listing, tars, known)
    return drop_empty_classes(replace(listing, classes=tuple(tar.name for tar in tars)))


def _list_tar(tar: ClassTar) -> Listing:
    builder = ListingBuilder()
    with open_stored(tar.path) as file:
        builder.note_time(tar.name, changed_at(tar.path))
        within = file if tar.start is None else cast(BinaryIO, _Window(file, tar.start, tar.length))
        source = tar.path if tar.start is None else f"{tar.path} ({tar.name}.tar in it)"
        # WebDataset would join a.1.jpg and a.2.jpg; here each is an image of its own.
        for member in _visible_files(within, source):
            key, ending = split_name(member.name)
            name = f"{tar.name}/{key}.{ending.lower()}" if key else f"{tar.name}/{member.name}"
            extension = _find_extension(file, member, start=tar.start or 0)
            if extension is None:
                builder.pass_over(name.replace("/", ".tar/", 1))
                continue
            builder.add(
                name, labels=(tar.label,), members=(Member(extension, 0, (tar.start or 0) + member.start, member.length),)
            )
    return builder.build(layout="ranges", files=(tar.path,))


def _visible_files(file: BinaryIO, source: str) -> Iterator[TarFile]:
    """Yield the files of a tar without those that systems leave behind.

    Raises:
        DataError: damaged, or sparse.
    """
    for member in scan_files(file, name=source):
        if not any(is_junk(part) for part in member.name.removeprefix("./").split("/")):
            refuse_sparse(member, source)
            yield member


def _find_extension(file: BinaryIO, member: TarFile, *, start: int) -> str | None:
    """Return the extension to store an image with, by its name or its first bytes; None if it is not an image."""
    if (known := image_extension(member.name)) is not None or is_unfinished(member.name):
        return known
    file.seek(start + member.start)
    return sniff_named(file.read(min(SIGNATURE_BYTES, member.length)), member.name)


class _Window:
    """Reads bytes [start, start + length) of a file as a file of their own."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length = file, start, length
        self._offset = 0

    def read(self, size: int) -> bytes:
        self._file.seek(self._start + self._offset)
        data = self._file.read(min(size, max(0, self._length - self._offset)))
        self._offset += len(data)
        return data

    def seek(self, offset: int) -> int:
        self._offset = offset
        return offset

    def tell(self) -> int:
        return self._offset

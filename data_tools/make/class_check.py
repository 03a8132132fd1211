"""Check a numbering before any shard is written: names can be stored, and test is numbered as train is."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools import splits
from data_tools.make.output import Output
from data_tools.make.sources.files import is_junk
from data_tools.make.sources.listing import Listing
from data_tools.text_files import decode_text, is_text, printable, same_name
from pipeline.data.shards.class_names import CLASSES_NAME, LINE_END, split_lines
from pipeline.data.shards.folder import ShardFolder, is_remote
from pipeline.errors import DataError

if TYPE_CHECKING:
    from data_tools.make.plan import MakeOptions


def check_names(listing: Listing, *, source: str, output: Output, options: MakeOptions, is_new: bool) -> Listing:
    """Return the listing with names that classes.txt can hold.

    Args:
        is_new: nothing was made in the folders before.

    Raises:
        DataError: names that are no text, a classes.txt that is not ours, or a numbering that contradicts that of train.
    """
    if listing.classes is None:
        return listing
    classes = tuple(_as_text(name, options.source.encoding) for name in listing.classes)
    if is_new:
        for part in output.parts:
            _check_stored(output.folder(part), classes)
    if options.numbering.names is None and options.numbering.targets is None and options.val_fraction is None:
        _check_siblings(output.root, classes)
        if not is_remote(source):
            _check_source(Path(source), options)
    return replace(listing, classes=classes)


def _as_text(name: str, encoding: str | None) -> str:
    """Decode a name from a file system whose bytes are not UTF-8, in the encoding that is given."""
    if LINE_END.search(name):
        raise DataError(f"class '{printable(name)}' holds a line end, which {CLASSES_NAME} cannot store; rename it")
    if is_text(name):
        return name
    if encoding is None:
        raise DataError(
            f"class '{printable(name)}' has a name that is not UTF-8; say which encoding it is with --encoding (latin-1, "
            "cp1252), or rename it (`convmv` does that for whole trees)"
        )
    try:
        return os.fsencode(name).decode(encoding)
    except UnicodeError as error:
        raise DataError(f"class '{printable(name)}' has a name that is not {encoding}; choose another --encoding") from error


def _check_stored(folder: str, classes: Sequence[str]) -> None:
    stored = _stored_classes(folder)
    if stored is not None and stored != list(classes):
        raise DataError(
            f"{folder}/{CLASSES_NAME} exists already and names other classes; give it with --classes, or move it away"
        )


def _stored_classes(folder: str) -> list[str] | None:
    """Return the names that classes.txt of a folder of shards has; None if there is none."""
    store = ShardFolder(folder)
    return (
        split_lines(decode_text(store.read(CLASSES_NAME), name=f"{folder}/{CLASSES_NAME}", encoding=None))
        if store.exists(CLASSES_NAME)
        else None
    )


def _check_siblings(folder: str, classes: Sequence[str]) -> None:
    """Refuse to number a split differently from another split that was made next to it."""
    for name, other in _siblings_in_store(folder) if is_remote(folder) else _sibling_splits(Path(folder).absolute()):
        stored = _stored_classes(str(other))
        if stored is not None and stored != list(classes):
            raise DataError(
                f"{folder} would be numbered otherwise than {other}/{CLASSES_NAME} ({len(classes)} classes of this source, not "
                f"all the same): a model would be measured on wrong labels. Give --classes {other}/{CLASSES_NAME}, or choose a "
                f"folder outside {str(other).rpartition('/')[0]} if the two have nothing to do with each other ({name} is "
                "another split by its name)"
            )


def _siblings_in_store(url: str) -> Collection[tuple[str, str]]:
    parent, _, own_name = url.rpartition("/")
    own = splits.parse_split(own_name)
    if own is None or parent.endswith("/"):  # a bucket has no siblings
        return []
    named = ((name, splits.parse_split(name)) for name in ShardFolder(parent).list_folders() if name != own_name)
    return [(name, f"{parent}/{name}") for name, one in named if one is not None and one.family == own.family]


def _check_source(source: Path, options: MakeOptions) -> None:
    """Refuse to number a test folder by itself where the source's train folder has other classes."""
    if options.source.split is not None:
        root = source
        names = [
            name for name in _folders(root) if splits.matches([splits.split_of(name) or ""], options.source.wanted_splits or ())
        ]
        source = root / names[0] if len(names) == 1 else source
    if not source.is_dir() or (own := splits.parse_split(source.absolute().name)) is None or own.split == "train":
        return
    for name, other in _sibling_splits(source.absolute()):
        found = splits.parse_split(name)
        if found is None or found.split != "train":
            continue
        here, there = ({same_name(child) for child in _folders(folder)} for folder in (source, other))
        if here and there and (differing := sorted(here ^ there)):
            raise DataError(
                f"{source} and {other} do not hold the same class folders ({len(differing)} differ, {printable(differing[0])} "
                f"first), so {source.name} by itself would be numbered otherwise than {name}: give the train split's "
                "classes.txt with --classes"
            )


def _sibling_splits(folder: Path) -> Collection[tuple[str, Path]]:
    """Return folders next to this one that are other splits of the same set by their names."""
    own = splits.parse_split(folder.name)
    if own is None or not folder.parent.is_dir():
        return []
    named = ((name, splits.parse_split(name)) for name in _folders(folder.parent) if name != folder.name)
    return [(name, folder.parent / name) for name, one in named if one is not None and one.family == own.family]


def _folders(folder: Path) -> list[str]:
    return (
        sorted(child.name for child in folder.iterdir() if child.is_dir() and not is_junk(child.name))
        if folder.is_dir()
        else []
    )

"""Recognise a source that is folders of its classes, or of its splits, on a disk or in a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from data_tools import splits
from data_tools.make.sources.csv_file import CSV_SUFFIXES
from data_tools.make.sources.files import image_extension
from data_tools.make.sources.image_folder import check_class_folders, list_image_folder
from data_tools.make.sources.options import SourceOptions
from data_tools.make.sources.source import Source
from data_tools.make.sources.split_choice import take_split
from data_tools.make.sources.stored import join
from pipeline.data.shards.folder import is_remote
from pipeline.errors import DataError


def recognise_folders(
    root: str,
    folders: Sequence[str],
    files: Sequence[str],
    options: SourceOptions,
    *,
    known: frozenset[str],
    recognise: Callable[[str, SourceOptions], Source],
) -> Source:
    """Recognise what folders hold: images of a class each, or splits, of which one is recognised in turn.

    Args:
        root: a path or URL.
        folders: names of the folders in it that are not hidden.
        files: names of what else is in it.
        known: names that the user gives as classes.
        recognise: recognises the folder of a split, with the options that are left.

    Raises:
        DataError: several splits at once, or folders that are no classes.
    """
    wanted = options.wanted_splits
    real = set(splits.splits_among_classes(folders))
    of_split: dict[str, list[str]] = {}
    for name in folders:
        if (word := splits.split_of(name)) is not None and (name in real or splits.is_split(name)):
            of_split.setdefault(word, []).append(name)
    if wanted is not None and (taken := splits.matches(of_split, wanted)):
        inside = [name for word in taken for name in of_split[word]]
        if len(inside) > 1:
            raise DataError(
                f"--source-split {options.split} names {len(inside)} folders of {root} ({', '.join(inside)}); folders are "
                "packed one at a time"
            )
        rest = [word for word in wanted if not splits.matches(taken, [word])]
        return recognise(join(root, inside[0]), replace(options, split=",".join(rest) or None))
    if real:
        splits.check_found(wanted, of_split, source=root)
    if wanted is None:
        _refuse_list(root, folders, files)
        check_class_folders(root, known=known)
    return Source(
        "image folder",
        None,
        lambda scratch, workers: take_split(list_image_folder(root, workers=workers), options, source=root, skip_parts=1),
        remarks=tuple(_remark_next_to(root, files)),
    )


def _refuse_list(root: str, folders: Sequence[str], files: Sequence[str]) -> None:
    lists = [name for name in files if _is_list(name)]
    if lists and len(folders) == 1 and not splits.is_split(folders[0]):
        raise DataError(
            f"source '{root}' holds {lists[0]} and a single folder; give {join(root, lists[0])} if it lists the images"
        )


def _is_list(name: str) -> bool:
    return name.lower().endswith(CSV_SUFFIXES)


def _remark_next_to(root: str, files: Sequence[str]) -> Iterator[str]:
    """Yield a remark on what lies next to class folders, looks like part of the set and is not."""
    if images := [name for name in files if image_extension(name) is not None]:
        yield f"left out: {len(images)} images next to the class folders, in no class ({images[0]} first)"
    if lists := [name for name in files if _is_list(name)]:
        yield f"not read: {lists[0]}; labels are the folders' names. To take its labels give {join(root, lists[0])} itself"
    if found := [] if is_remote(root) else splits.lists_next_to(Path(root)):
        yield (
            f"not read: {', '.join(map(str, found[:3]))}, which by the name says what is of which split: every image is taken, "
            f"of all splits. To take one, give a CSV of path, label and split, with --source-split and --image-folder {root}"
        )

"""Look at a path, and tell which kind of source it is and how to list it.

kind               looks like                                         module
image folder       ROOT/CLASS/any/depth/image.jpg                     image_folder
class tars         CLASS.tar ..., or one tar that holds them          class_tars
WebDataset tars    .tar files whose samples have labels               webdataset_tars
table              .parquet or .arrow files                           table
CSV                one .csv, .tsv or .jsonl file of paths and labels  csv_file
CIFAR              batches.meta and data_batch_1 ..., meta and train  cifar

Every kind asks which split to take where names of folders, files or columns contain several: see `data_tools.splits`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from data_tools import splits
from data_tools.make.sources import cifar, csv_file, table
from data_tools.make.sources.class_tars import check_class_tars, list_class_tars, list_outer_tar
from data_tools.make.sources.files import image_extension, is_junk
from data_tools.make.sources.image_folder import check_class_folders, list_image_folder
from data_tools.make.sources.listing import Listing
from data_tools.make.sources.look import look_into_tars
from data_tools.make.sources.unpack import stamp_files
from data_tools.make.sources.webdataset_tars import LabelRule, LabelUse, list_webdataset
from data_tools.shard_names import check_finished, remark
from data_tools.text_files import check_encoding
from pipeline.data.shards.folder import COMPRESSED
from pipeline.errors import DataError

Kind = Literal["image folder", "class tars", "WebDataset tars", "Parquet or Arrow files", "CSV", "CIFAR"]
CHOOSE = "choose one with --source-split, and pack the others to folders of their own"


@dataclass(frozen=True)
class SourceOptions:
    """Holds what the user says about a source. An option that has no meaning for the source is refused."""

    image_column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    label_field: str | None = None
    image_folder: str | None = None
    encoding: str | None = None
    split: str | None = None  # several have commas between them

    @property
    def wanted_splits(self) -> tuple[str, ...] | None:
        return None if self.split is None else splits.parse_wanted(self.split)


OPTIONS_OF = {
    "image_column": ("Parquet or Arrow files", "CSV"),
    "label_column": ("Parquet or Arrow files", "CSV", "CIFAR"),
    "label_separator": ("CSV",),
    "label_field": ("WebDataset tars",),
    "image_folder": ("CSV",),
}
FLAGS = {name: f"--{name.replace('_', '-')}" for name in OPTIONS_OF}


@dataclass(frozen=True)
class Source:
    """Describes a source that was recognised but not yet listed."""

    kind: Kind
    stamp: str | None  # set where listing is costly: tells whether the source is the same as before
    list: Callable[[Path, int], Listing]  # scratch folder and number of processes
    remarks: tuple[str, ...] = ()  # remarks on the names in a folder


def find_source(path: str, *, options: SourceOptions, label_use: LabelUse, known: Collection[str] = ()) -> Source:
    """Recognise the source at a path.

    Args:
        label_use: whether every sample of WebDataset tars must have a label.
        known: names that the user gives as classes: folders and tars of these names are classes, whatever they are called.

    Raises:
        DataError: nothing that can be packed, several things or splits at once, or an option that has no meaning for it.
    """
    if options.encoding is not None:
        check_encoding(options.encoding)
    try:
        source = _recognise(Path(path), options=options, label_use=label_use, known=frozenset(known))
    except OSError as error:
        raise DataError(f"source {path!r} cannot be read: {error}") from error
    for name, kinds in OPTIONS_OF.items():
        if getattr(options, name) is not None and source.kind not in kinds:
            raise DataError(f"{FLAGS[name]} has no meaning for {path}, which is {_with_article(source.kind)}")
    return source


def _recognise(root: Path, *, options: SourceOptions, label_use: LabelUse, known: frozenset[str]) -> Source:
    suffix = root.suffix.lower()
    if suffix in csv_file.CSV_SUFFIXES and root.is_file():
        return _csv(root, options)
    if suffix in table.TABLE_SUFFIXES and root.is_file():
        return _table([root], options)
    if suffix == ".tar" and root.is_file():
        return _tars(root, [root], options, label_use, known)
    if root.is_file():
        raise DataError(
            f"source '{root}' is neither a folder nor a .csv, .tsv, .jsonl, .parquet, .arrow or plain .tar; `gunzip` a "
            "compressed tar first"
        )
    if not root.is_dir():
        raise DataError(f"source '{root}' does not exist")
    return _recognise_folder(root, options=options, label_use=label_use, known=known)


def _recognise_folder(root: Path, *, options: SourceOptions, label_use: LabelUse, known: frozenset[str]) -> Source:
    visible = sorted(child for child in root.iterdir() if not is_junk(child.name))
    folders = [child for child in visible if child.is_dir()]
    tars = [child for child in visible if child.suffix.lower() == ".tar" and child.is_file()]
    tables = [child for child in visible if child.suffix.lower() in table.TABLE_SUFFIXES and child.is_file()]
    if tars and {path.stem for path in tables} <= {path.stem for path in tars}:
        tables = []  # each is about the tar of its name, as img2dataset writes them
    batches = cifar.find_splits(root)
    found = [
        name
        for name, is_there in (
            ("class folders", folders),
            ("tars", tars),
            ("Parquet or Arrow files", tables),
            ("CIFAR batches", batches),
        )
        if is_there
    ]
    if len(found) > 1:
        raise DataError(
            f"source '{root}' holds {' and '.join(found)}; give them folders of their own, so that it is clear what to pack"
        )
    if batches:
        return _cifar(root, batches, options)
    if tables:
        return _table(tables, options)
    if folders:
        return _folders(root, folders, visible, options=options, label_use=label_use, known=known)
    if not tars:
        raise _nothing_found(root, visible)
    return _tars(root, tars, options, label_use, known)


def _nothing_found(root: Path, visible: list[Path]) -> DataError:
    names = [child.name for child in visible]
    if compressed := [name for name in names if name.lower().endswith(COMPRESSED)]:
        return DataError(f"{root}: {compressed[0]} is compressed; tars must be plain: `gunzip` (or `zstd -d`) them first")
    if lists := [name for name in names if name.lower().endswith(csv_file.CSV_SUFFIXES)]:
        return DataError(
            f"source '{root}' holds no class folders; give {root / lists[0]} itself if it lists the images and their labels"
        )
    files = f"; it holds {', '.join(names[:3])} ..." if names else "; it is empty"
    return DataError(
        f"source '{root}' holds neither class folders (CLASS/image.jpg) nor tars, Parquet or Arrow files, or CIFAR "
        f"batches{files}. Of a CSV file give its own path"
    )


def _folders(
    root: Path, folders: list[Path], visible: list[Path], *, options: SourceOptions, label_use: LabelUse, known: frozenset[str]
) -> Source:
    wanted = options.wanted_splits
    real = set(splits.splits_among_classes([child.name for child in folders]))
    of_split: dict[str, list[Path]] = {}
    for child in folders:
        if (word := splits.split_of(child.name)) is not None and (child.name in real or splits.is_split(child.name)):
            of_split.setdefault(word, []).append(child)
    if wanted is not None and (taken := splits.matches(of_split, wanted)):
        inside = [child for word in taken for child in of_split[word]]
        if len(inside) > 1:
            raise DataError(
                f"--source-split {options.split} names {len(inside)} folders of {root} "
                f"({', '.join(child.name for child in inside)}); folders are packed one at a time"
            )
        rest = [word for word in wanted if not splits.matches(taken, [word])]
        chosen = replace(options, split=",".join(rest) or None)
        return _recognise(inside[0], options=chosen, label_use=label_use, known=known)
    if real:
        splits.check_found(wanted, of_split, source=root)
    if wanted is None:
        lists = [child.name for child in visible if child.suffix.lower() in csv_file.CSV_SUFFIXES]
        if lists and len(folders) == 1 and not splits.is_split(folders[0].name):
            raise DataError(
                f"source '{root}' holds {lists[0]} and a single folder; give {root / lists[0]} if it lists the images"
            )
        check_class_folders(root, known=known)
    return Source(
        "image folder",
        None,
        lambda scratch, workers: _take_split(list_image_folder(root, num_workers=workers), options, source=root, skip_parts=1),
        remarks=tuple(_remark_beside(root, visible)),
    )


def _remark_beside(root: Path, visible: list[Path]) -> Iterator[str]:
    """Yield a remark on what lies next to class folders, looks like part of the set and is not."""
    if images := [child.name for child in visible if not child.is_dir() and image_extension(child.name) is not None]:
        yield f"left out: {len(images)} images next to the class folders, in no class ({images[0]} first)"
    if lists := [child for child in visible if child.suffix.lower() in csv_file.CSV_SUFFIXES and child.is_file()]:
        yield f"not read: {lists[0].name}; labels are the folders' names. To take its labels give {root / lists[0].name} itself"

    if found := splits.lists_next_to(root):
        yield (
            f"not read: {', '.join(map(str, found[:3]))}, which by the name says what is of which split: every image is taken, "
            f"of all splits. To take one, give a CSV of path, label and split, with --source-split and --image-folder {root}"
        )


def _take_split(listing: Listing, options: SourceOptions, *, source: Path, skip_parts: int) -> Listing:
    """Return the samples of one split, where the folders and files of the samples' names contain several.

    Args:
        skip_parts: how many parts of a name are no part of it: a class, a tar.
    """
    wanted = options.wanted_splits
    found = Counter(map(splits.parse_path, _inner_names(listing, skip_parts)))
    counts = splits.name_counts(found)
    taken = splits.choose(counts, wanted, source=source, unit="samples", answer=CHOOSE, unmarked=splits.unmarked_rule(found))
    splits.check_found(wanted, counts, source=source)
    if taken is None:
        return listing
    kept = np.fromiter(
        (splits.path_in(name, taken) for name in _inner_names(listing, skip_parts)), np.bool_, count=len(listing)
    )
    return listing.take(np.flatnonzero(kept))


def _inner_names(listing: Listing, skip_parts: int) -> Iterator[str]:
    for sample in range(len(listing)):
        yield listing.name(sample).decode("utf-8", "surrogateescape").split("/", skip_parts)[-1]


def _with_article(kind: Kind) -> str:
    return {"image folder": "an image folder", "CSV": "a CSV file"}.get(kind, kind)


def _csv(path: Path, options: SourceOptions) -> Source:
    of_file = csv_file.CsvOptions(
        image_column=options.image_column,
        label_column=options.label_column,
        label_separator=options.label_separator,
        image_folder=None if options.image_folder is None else Path(options.image_folder),
        encoding=options.encoding,
        wanted_splits=options.wanted_splits,
    )
    return Source("CSV", None, lambda scratch, workers: csv_file.list_csv(path, of_file))


def _table(paths: list[Path], options: SourceOptions) -> Source:
    groups = splits.group_files(path.name for path in paths)
    source = paths[0].parent if len(paths) > 1 else paths[0]
    taken = splits.choose(
        {split: len(names) for split, names in groups.items()},
        options.wanted_splits,
        source=source,
        unit="files",
        answer=CHOOSE,
    )
    chosen = [path for path in paths if taken is None or splits.split_of_file(path.name) in taken]
    others = [path for path in paths if path not in chosen and not splits.is_cache(path.name)]
    stamp = stamp_files([*chosen, *others], "table", options.image_column, options.label_column, options.wanted_splits)
    return Source(
        "Parquet or Arrow files",
        stamp,
        partial(
            table.list_tables,
            chosen,
            stamp=stamp,
            image_column=options.image_column,
            label_column=options.label_column,
            wanted_splits=options.wanted_splits,
            others=others,
            file_splits=tuple(groups),
        ),
    )


def _cifar(root: Path, batches: dict[str, list[Path]], options: SourceOptions) -> Source:
    taken = splits.choose(
        {split: len(paths) for split, paths in batches.items()}, options.wanted_splits, source=root, unit="files", answer=CHOOSE
    )
    splits.check_found(options.wanted_splits, batches, source=root)
    paths = [path for split, of_split in batches.items() if taken is None or split in taken for path in of_split]
    stamp = stamp_files(paths, "CIFAR", options.label_column)
    return Source("CIFAR", stamp, partial(cifar.list_cifar, paths, stamp=stamp, label_column=options.label_column))


def _tars(root: Path, paths: list[Path], options: SourceOptions, label_use: LabelUse, known: frozenset[str]) -> Source:
    if empty := [path.name for path in paths if not path.stat().st_size]:
        raise DataError(
            f"{root}: {len(empty)} tars of no bytes, {empty[0]} first, as downloads leave them that failed; fetch or "
            "delete them"
        )
    names = [root.name] if root.is_file() else [child.name for child in root.iterdir()]
    check_finished(names, source=root)
    source = _tars_by_content(root, paths, options, label_use, known)
    return replace(source, remarks=tuple(remark(names, [path.name for path in paths]) if root.is_dir() else ()))


def _tars_by_content(
    root: Path, paths: list[Path], options: SourceOptions, label_use: LabelUse, known: frozenset[str]
) -> Source:
    contents = look_into_tars(paths)
    if contents == "tars":
        if not root.is_file():
            raise DataError(f"{root} holds tars of tars; give one such tar, or a folder of the inner ones")
        return Source(
            "class tars",
            None,
            lambda scratch, workers: _take_split(
                list_outer_tar(root, known=known, num_workers=workers), options, source=root, skip_parts=1
            ),
        )
    if contents == "images" or all(path.stem in known for path in paths):
        if root.is_file() and root.stem not in known:
            raise DataError(
                f"{root} holds images without labels. WebDataset samples have a label next to the image (KEY.jpg, "
                f"KEY.cls); tars of one class each lie in a folder, named after their class, like n01440764.tar or cat.tar"
            )
        check_class_tars([path.stem for path in paths], source=root, known=known)
        return Source(
            "class tars",
            None,
            lambda scratch, workers: _take_split(
                list_class_tars(paths, known=known, num_workers=workers), options, source=root, skip_parts=1
            ),
        )
    return _webdataset(root, paths, options, LabelRule(label_use, options.label_field))


def _webdataset(root: Path, paths: list[Path], options: SourceOptions, rule: LabelRule) -> Source:
    groups = splits.group_files(path.name for path in paths)
    wanted = options.wanted_splits
    counts = {split: len(names) for split, names in groups.items()}
    taken = splits.choose(counts, wanted, source=root, unit="tars", answer=CHOOSE)
    chosen = [path for path in paths if taken is None or splits.split_of_file(path.name) in taken]
    rest = [word for word in wanted or () if not splits.matches(groups, [word])]
    inner = replace(options, split=",".join(rest) or None)
    return Source(
        "WebDataset tars",
        None,
        lambda scratch, workers: _take_split(
            list_webdataset(chosen, rule=rule, num_workers=workers), inner, source=root, skip_parts=1
        ),
    )

"""Where samples come from: looks at a path and tells which kind of source it is, and how to list it.

kind               looks like                                         module
image folder       ROOT/CLASS/any/depth/image.jpg                     image_folder
class tars         CLASS.tar ..., or one tar that holds them          class_tars
WebDataset tars    .tar files whose samples have labels               webdataset_tars
table              .parquet or .arrow files                           table
CSV                one .csv or .tsv file of paths and labels          csv_file
CIFAR              batches.meta and data_batch_1 ..., meta and train  cifar
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from data_tools.sources import cifar, csv_file, table
from data_tools.sources.class_tars import list_class_tars, list_outer_tar
from data_tools.sources.image_folder import list_image_folder
from data_tools.sources.listing import Listing
from data_tools.sources.unpack import stamp_files
from data_tools.sources.webdataset_tars import LabelUse, list_webdataset
from pipeline.data.folder import ShardFolder
from pipeline.data.sample import IMAGE_EXTENSIONS, LABEL_EXTENSIONS
from pipeline.data.tar import scan_samples
from pipeline.errors import DataError

Kind = Literal["image folder", "class tars", "WebDataset tars", "Parquet or Arrow files", "CSV", "CIFAR"]
WORDNET_ID = re.compile(r"n\d{8}")
NUMBERED = re.compile(r"(.*?)\d+")


@dataclass(frozen=True)
class SourceOptions:
    """What the user says about a source; each is refused where it means nothing."""

    image_column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    split: str | None = None


OPTIONS_OF = {
    "image_column": ("Parquet or Arrow files", "CSV"),
    "label_column": ("Parquet or Arrow files", "CSV", "CIFAR"),
    "label_separator": ("CSV",),
    "split": ("Parquet or Arrow files", "CIFAR"),
}
FLAGS = {name: f"--{name.replace('_', '-')}" for name in OPTIONS_OF} | {"split": "--source-split"}


@dataclass(frozen=True)
class Source:
    """A source that was recognised but not yet listed."""

    kind: Kind
    stamp: str | None  # where listing is costly: tells whether the source is the same as before
    list: Callable[[Path, int], Listing]  # scratch folder and number of processes


def find_source(path: str, *, options: SourceOptions, label_use: LabelUse) -> Source:
    """Look at a path.

    Args:
        label_use: whether labels that WebDataset members hold must be known.

    Raises:
        DataError: nothing that can be packed, several things at once, or an option that has no meaning for it.
    """
    try:
        source = _recognise(Path(path), options=options, label_use=label_use)
    except OSError as error:
        raise DataError(f"source {path!r} cannot be read: {error}") from error
    for name, kinds in OPTIONS_OF.items():
        if getattr(options, name) is not None and source.kind not in kinds:
            raise DataError(f"{FLAGS[name]} has no meaning for {path}, which is {_with_article(source.kind)}")
    return source


def _recognise(root: Path, *, options: SourceOptions, label_use: LabelUse) -> Source:
    if root.suffix in csv_file.CSV_SUFFIXES and root.is_file():
        return Source("CSV", None, _quick(
            csv_file.list_csv, root, image_column=options.image_column, label_column=options.label_column,
            label_separator=options.label_separator,
        ))  # fmt: skip
    if root.suffix in table.TABLE_SUFFIXES and root.is_file():
        return _table([root], options)
    if root.suffix == ".tar" and root.is_file():
        return _tars(root, [root], label_use)
    if root.is_file():
        raise DataError(
            f"source '{root}' is neither a folder nor a .csv, .tsv, .parquet, .arrow or plain .tar; `gunzip` a compressed tar first"
        )
    if not root.is_dir():
        raise DataError(f"source '{root}' does not exist")
    return _recognise_folder(root, options=options, label_use=label_use)


def _recognise_folder(root: Path, *, options: SourceOptions, label_use: LabelUse) -> Source:
    visible = sorted(child for child in root.iterdir() if not child.name.startswith("."))
    tars = [child for child in visible if child.suffix == ".tar"]
    tables = [child for child in visible if child.suffix in table.TABLE_SUFFIXES]
    batches = cifar.find_splits(root)
    holds_folders = any(child.is_dir() for child in visible)
    found = [name for name, is_there in (
        ("class folders", holds_folders), ("tars", tars), ("Parquet or Arrow files", tables), ("CIFAR batches", batches),
    ) if is_there]  # fmt: skip
    if len(found) > 1:
        raise DataError(
            f"source '{root}' holds {' and '.join(found)}; give them folders of their own, so that it is clear what to pack"
        )
    if batches:
        paths = _choose_split(batches, options.split, root)
        stamp = stamp_files(paths, "CIFAR", options.label_column)
        return Source("CIFAR", stamp, partial(cifar.list_cifar, paths, stamp=stamp, label_column=options.label_column))
    if tables:
        return _table(tables, options)
    if holds_folders:
        lists = [child.name for child in visible if child.suffix in csv_file.CSV_SUFFIXES]
        if lists and sum(child.is_dir() for child in visible) == 1:
            raise DataError(
                f"source '{root}' holds {lists[0]} and a single folder; give {root / lists[0]} if it lists the images"
            )
        return Source("image folder", None, lambda scratch, workers: list_image_folder(root, num_workers=workers))
    if not tars:
        files = f"; it holds {', '.join(child.name for child in visible[:3])} ..." if visible else "; it is empty"
        raise DataError(
            f"source '{root}' holds neither class folders (CLASS/image.jpg) nor tars, Parquet or Arrow files, or CIFAR "
            f"batches{files}. Of a CSV file give its own path"
        )
    return _tars(root, [root / name for name in ShardFolder(str(root)).list_shards()], label_use)


def _quick(function: Callable[..., Listing], *values: object, **named: object) -> Callable[[Path, int], Listing]:
    """A listing that needs neither scratch nor processes."""
    return lambda scratch, workers: function(*values, **named)


def _with_article(kind: Kind) -> str:
    return {"image folder": "an image folder", "CSV": "a CSV file"}.get(kind, kind)


def _table(paths: list[Path], options: SourceOptions) -> Source:
    chosen = _choose_split(table.find_splits(paths), options.split, paths[0].parent)
    stamp = stamp_files(chosen, "table", options.image_column, options.label_column)
    return Source("Parquet or Arrow files", stamp, partial(
        table.list_tables, chosen, stamp=stamp, image_column=options.image_column, label_column=options.label_column
    ))  # fmt: skip


def _choose_split(splits: dict[str, list[Path]], wanted: str | None, place: Path) -> list[Path]:
    names = ", ".join(name or "(none in the file's name)" for name in splits)
    if wanted is not None and wanted not in splits:
        raise DataError(f"{place} holds no split {wanted!r}; it holds {names}")
    if wanted is None and len(splits) > 1:
        raise DataError(
            f"{place} holds the splits {names}; choose one with --source-split, and pack the others to folders of their own"
        )
    return next(iter(splits.values())) if wanted is None else splits[wanted]


def _tars(root: Path, paths: list[Path], label_use: LabelUse) -> Source:
    contents = {_look_into(path) for path in paths[:3]}
    if contents == {"tars"} and root.is_file():
        return Source("class tars", None, lambda scratch, workers: list_outer_tar(root, num_workers=workers))
    if contents == {"images"}:
        if root.is_file() or _are_numbered([path.stem for path in paths]):
            raise DataError(
                f"{paths[0]} holds images without labels. WebDataset samples have a label beside the image (KEY.jpg, "
                f"KEY.cls); tars of one class each must be named after their class, like n01440764.tar or cat.tar"
            )
        return Source("class tars", None, lambda scratch, workers: list_class_tars(paths, num_workers=workers))
    if "tars" in contents:
        raise DataError(f"{root} holds tars of tars; give one such tar, or a folder of the inner ones")
    return Source(
        "WebDataset tars", None, lambda scratch, workers: list_webdataset(paths, label_use=label_use, num_workers=workers)
    )  # fmt: skip


def _look_into(path: Path) -> Literal["tars", "images", "samples"]:
    """What a tar holds: further tars, WebDataset samples with labels, or images without. Read on until that is plain."""
    extensions: set[str] = set()
    with path.open("rb") as file:
        for sample in scan_samples(file, name=str(path)):
            extensions.update(member.extension.rpartition(".")[2] for member in sample.members)
            if "tar" in extensions:
                return "tars"
            if not extensions.isdisjoint(LABEL_EXTENSIONS):
                return "samples"
    return "samples" if extensions.isdisjoint(IMAGE_EXTENSIONS) else "images"


def _are_numbered(names: list[str]) -> bool:
    """Whether tars are numbered like shards (train-000.tar, train-001.tar), not named like classes."""
    if all(WORDNET_ID.fullmatch(name) for name in names):
        return False
    matches = [NUMBERED.fullmatch(name) for name in names]
    prefixes = {match[1] for match in matches if match}
    return all(matches) and len(prefixes) == 1

"""Look at a path, and tell which kind of source it is and how to list it.

kind               looks like                                         module
image folder       ROOT/CLASS/any/depth/image.jpg                     class_folders
class tars         CLASS.tar ..., or one tar that holds them          class_tars
WebDataset tars    .tar files whose samples have labels               webdataset_tars
table              .parquet or .arrow files                           table
CSV                one .csv, .tsv or .jsonl file of paths and labels  csv_file
CIFAR              batches.meta and data_batch_1 ..., meta and train  cifar
TensorFlow set     dataset_info.json, features.json, TFRecord files   tfds

On a URL there are tars, tables and class folders: see `on_url`. Every kind asks which split to take where names of folders,
files or columns contain several: see `data_tools.splits`.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

from data_tools import splits
from data_tools.make.sources import cifar, csv_file, table
from data_tools.make.sources.class_folders import recognise_folders
from data_tools.make.sources.files import is_junk
from data_tools.make.sources.lists import recognise_csv
from data_tools.make.sources.on_url import recognise_url
from data_tools.make.sources.options import SourceOptions, refuse_unused
from data_tools.make.sources.source import Source
from data_tools.make.sources.split_choice import CHOOSE
from data_tools.make.sources.tables import recognise_tables
from data_tools.make.sources.tars import recognise_tars
from data_tools.make.sources.tfds.listing import find_version, is_prepared, open_prepared, plan_listing
from data_tools.make.sources.unpack import stamp_files
from data_tools.make.sources.webdataset_tars import LabelUse
from data_tools.text_files import check_encoding
from pipeline.data.shards.folder import COMPRESSED, is_remote
from pipeline.errors import DataError


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
    if is_remote(path):
        source = recognise_url(path, options=options, label_use=label_use, known=frozenset(known))
        refuse_unused(options, source.kind, path=path)
        return source
    try:
        source = _recognise(Path(path), options=options, label_use=label_use, known=frozenset(known))
    except OSError as error:
        raise DataError(f"source {path!r} cannot be read: {error}") from error
    refuse_unused(options, source.kind, path=path)
    return source


def _recognise(root: Path, *, options: SourceOptions, label_use: LabelUse, known: frozenset[str]) -> Source:
    suffix = root.suffix.lower()
    if suffix in csv_file.CSV_SUFFIXES and root.is_file():
        return recognise_csv(str(root), options)
    if suffix in table.TABLE_SUFFIXES and root.is_file():
        return recognise_tables([str(root)], options)
    if suffix == ".tar" and root.is_file():
        return recognise_tars(str(root), [str(root)], options, label_use, known)
    if root.is_file():
        raise DataError(
            f"source '{root}' is neither a folder nor a .csv, .tsv, .jsonl, .parquet, .arrow or plain .tar; `gunzip` a "
            "compressed tar first"
        )
    if not root.is_dir():
        raise DataError(f"source '{root}' does not exist")
    return _recognise_folder(root, options=options, label_use=label_use, known=known)


def _recognise_folder(root: Path, *, options: SourceOptions, label_use: LabelUse, known: frozenset[str]) -> Source:
    if (prepared := root if is_prepared(root) else find_version(root)) is not None:
        return _tfds(prepared, options)
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
        return recognise_tables([str(path) for path in tables], options)
    if folders:
        return recognise_folders(
            str(root),
            [child.name for child in folders],
            [child.name for child in visible if not child.is_dir()],
            options,
            known=known,
            recognise=lambda path, left: _recognise(Path(path), options=left, label_use=label_use, known=known),
        )
    if not tars:
        raise _nothing_found(root, visible)
    return recognise_tars(str(root), [str(path) for path in tars], options, label_use, known)


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


def _tfds(folder: Path, options: SourceOptions) -> Source:
    found = open_prepared(folder)
    files = [path for shards in found.shards.values() for path, _ in shards]
    stamp = stamp_files(files, "TFDS", options.split, options.image_column, options.label_column, options.vtab)
    make_listing = plan_listing(
        found, split=options.split, image=options.image_column, label=options.label_column, vtab=options.vtab, stamp=stamp
    )
    return Source("TensorFlow Datasets", stamp, make_listing)


def _cifar(root: Path, batches: dict[str, list[Path]], options: SourceOptions) -> Source:
    taken = splits.choose(
        {split: len(paths) for split, paths in batches.items()}, options.wanted_splits, source=root, unit="files", answer=CHOOSE
    )
    splits.check_found(options.wanted_splits, batches, source=root)
    paths = [path for split, of_split in batches.items() if taken is None or split in taken for path in of_split]
    stamp = stamp_files(paths, "CIFAR", options.label_column)
    return Source("CIFAR", stamp, partial(cifar.list_cifar, paths, stamp=stamp, label_column=options.label_column))

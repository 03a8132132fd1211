"""Recognise a source in a store or on a web server: WebDataset tars, tars or folders named after classes, tables, lists.

Tars and tables are read from front to back with few requests. Of class folders and lists each image is a request. CIFAR's
batches and TensorFlow's sets are refused, with what to do instead.
"""

from __future__ import annotations

from dataclasses import replace

from data_tools.make.sources.class_folders import recognise_folders
from data_tools.make.sources.csv_file import CSV_SUFFIXES
from data_tools.make.sources.files import is_junk
from data_tools.make.sources.lists import recognise_csv
from data_tools.make.sources.options import SourceOptions
from data_tools.make.sources.source import Source
from data_tools.make.sources.stored import file_name, file_stem, read_small, split_path
from data_tools.make.sources.table import TABLE_SUFFIXES
from data_tools.make.sources.tables import recognise_tables
from data_tools.make.sources.tars import recognise_tars
from data_tools.make.sources.unpack import stamp_files
from data_tools.make.sources.webdataset_tars import LabelUse
from pipeline.data.shards.class_names import CLASSES_NAME
from pipeline.data.shards.folder import ShardFolder, describe_hub_path
from pipeline.errors import DataError

KINDS = (
    "on a URL, `make` reads a WebDataset tar, a folder of them, a folder of tars named after classes, one tar of such tars, "
    "Parquet and Arrow files, folders named after classes, and a .csv, .tsv or .jsonl file of paths and labels"
)
INSTEAD = "copy it to a disk, or mount the store (`rclone mount`, `mount-s3`), and give the path there"


def recognise_url(url: str, *, options: SourceOptions, label_use: LabelUse, known: frozenset[str]) -> Source:
    """Recognise the source at a URL.

    Raises:
        DataError: nothing there, or a kind that is not read over a network.
        UnreachableError: the store cannot be reached.
    """
    url = url.rstrip("/")
    if url.lower().endswith((".tar", *TABLE_SUFFIXES, *CSV_SUFFIXES)):
        return _recognise_file(url, options, label_use, known)
    names = [name for name in ShardFolder(url).list_names() if not is_junk(file_name(f"{url}/{name}"))]
    tars = [f"{url}/{name}" for name in names if name.lower().endswith(".tar")]
    tables = [f"{url}/{name}" for name in names if name.lower().endswith(TABLE_SUFFIXES)]
    if tables and not {file_stem(path) for path in tables} <= {file_stem(path) for path in tars}:
        if tars:
            raise DataError(f"source {url!r} holds tars and tables; give them folders of their own")
        return recognise_tables(tables, options)
    if tars:
        return _recognise_tars(url, tars, options, label_use, known, folder=url)
    folders = [name for name in map(file_name, ShardFolder(url).list_folders()) if not is_junk(name)]
    if not folders:
        raise _nothing_found(url, names)

    def recognise(path: str, left: SourceOptions) -> Source:
        return recognise_url(path, options=left, label_use=label_use, known=known)

    return recognise_folders(url, folders, list(map(file_name, names)), options, known=known, recognise=recognise)


def _recognise_file(url: str, options: SourceOptions, label_use: LabelUse, known: frozenset[str]) -> Source:
    folder, name = split_path(url)
    if not ShardFolder(folder).exists(name):
        raise DataError(f"source {url!r} does not exist{describe_hub_path(url)}")
    if name.lower().endswith(TABLE_SUFFIXES):
        return recognise_tables([url], options)
    if name.lower().endswith(CSV_SUFFIXES):
        return recognise_csv(url, options)
    return _recognise_tars(url, [url], options, label_use, known, folder=folder)


def _recognise_tars(
    root: str, paths: list[str], options: SourceOptions, label_use: LabelUse, known: frozenset[str], *, folder: str
) -> Source:
    source = recognise_tars(root, paths, options, label_use, known)
    return replace(source, stamp=stamp_files(paths, read_small(folder, CLASSES_NAME)))


def _nothing_found(url: str, names: list[str]) -> DataError:
    head, name = split_path(url)
    if "." in name and ShardFolder(head).exists(name):
        return DataError(f"source {url!r} is a single file of another kind; {KINDS}. Of another source: {INSTEAD}")
    if not names:
        return DataError(f"source {url!r} does not exist, or is empty{describe_hub_path(url)}; {KINDS}")
    if lists := [name for name in names if name.lower().endswith(CSV_SUFFIXES)]:
        return DataError(
            f"source {url!r} holds no class folders; give {url}/{lists[0]} if it lists the images and their labels"
        )
    return DataError(
        f"source {url!r} holds neither tars nor tables nor folders, but {', '.join(names[:3])} ...; {KINDS}. Of another "
        f"source: {INSTEAD}"
    )

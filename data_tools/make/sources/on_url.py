"""Recognise a source in a store or on a web server: a WebDataset tar, a folder of them, or tars named after classes.

Tars are read from front to back with few requests. Of a folder of single images each would be a request of its own, and a CSV
names such images; these kinds are refused, with what to do instead.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from data_tools.make.sources.files import is_junk
from data_tools.make.sources.options import SourceOptions
from data_tools.make.sources.source import Source
from data_tools.make.sources.stored import file_name, read_small, split_path, version_of
from data_tools.make.sources.tars import recognise_tars
from data_tools.make.sources.webdataset_tars import LabelUse
from pipeline.data.shards.class_names import CLASSES_NAME
from pipeline.data.shards.folder import CONCURRENT_QUESTIONS, ShardFolder, describe_hub_path
from pipeline.errors import DataError

KINDS = (
    "on a URL, `make` reads a WebDataset tar, a folder of them, a folder of tars named after classes, and one tar of such tars"
)
INSTEAD = "copy it to a disk, or mount the store (`rclone mount`, `mount-s3`), and give the path there"


def recognise_url(url: str, *, options: SourceOptions, label_use: LabelUse, known: frozenset[str]) -> Source:
    """Recognise the source at a URL.

    Raises:
        DataError: nothing there, or a kind that is not read over a network.
        UnreachableError: the store cannot be reached.
    """
    url = url.rstrip("/")
    folder, name = split_path(url)
    if name.lower().endswith(".tar"):
        if not ShardFolder(folder).exists(name):
            raise DataError(f"source {url!r} does not exist{describe_hub_path(url)}")
        root, paths = url, [url]
    else:
        names = ShardFolder(url).list_names()
        paths = [f"{url}/{one}" for one in names if one.lower().endswith(".tar") and not is_junk(file_name(f"{url}/{one}"))]
        root, folder = url, url
        if not paths:
            raise _no_tars(url, names)
    source = recognise_tars(root, paths, options, label_use, known)
    return replace(source, stamp=_stamp(folder, paths))


def _stamp(folder: str, paths: list[str]) -> str:
    """Hash the files' URLs and versions. The hash tells whether an unread source is the same."""
    with ThreadPoolExecutor(CONCURRENT_QUESTIONS) as pool:
        facts = list(zip(paths, pool.map(version_of, paths), strict=True))
    return hashlib.blake2b(repr((facts, read_small(folder, CLASSES_NAME))).encode(), digest_size=16).hexdigest()


def _no_tars(url: str, names: list[str]) -> DataError:
    head, name = split_path(url)
    if "." in name and ShardFolder(head).exists(name):
        return DataError(f"source {url!r} is a single file and no tar; {KINDS}. Of another source: {INSTEAD}")
    if not names and not ShardFolder(url).list_folders():
        return DataError(f"source {url!r} does not exist, or is empty{describe_hub_path(url)}; {KINDS}")
    held = ", ".join(names[:3]) if names else "folders"
    return DataError(f"source {url!r} holds no tars, but {held} ...; {KINDS}. Of another source: {INSTEAD}")

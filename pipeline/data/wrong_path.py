"""Advise where a path is not a folder of shards: a shard, an index that lies elsewhere, a list, an archive, a pattern."""

from __future__ import annotations

import os
import shlex

from pipeline.data.shards.folder import COMPRESSED, is_remote

INDEX_SUFFIX = ".safetensors"
SOURCE_SUFFIXES = (".csv", ".tsv", ".parquet", ".arrow")  # files that `python -m data_tools make` packs
WILDCARDS = "*?["


def advise_on_folder(path: str, *, index_name: str) -> str | None:
    """Return what is wrong with a path and what to type instead; None for what may be a folder of shards.

    Args:
        index_name: name of an index next to its shards.
    """
    is_file = not is_remote(path) and os.path.isfile(path)
    folder = shlex.quote(path.rpartition("/")[0] or ("/" if path.startswith("/") else "."))
    lower = path.lower()
    if lower.endswith(".tar") and (is_file or is_remote(path) or not os.path.isdir(path)):
        return (
            f"{path} names {_tars_of(path)}, not a folder of shards with an index. {advise_on_tar(path, index_name=index_name)}"
        )
    if any(letter in path for letter in WILDCARDS) and not is_remote(path) and not os.path.exists(path):
        return f"{path} is a pattern, and there is no folder of this name: give the folder of the shards, as {folder}"
    if not is_file:
        return None
    if lower.endswith(COMPRESSED):
        return (
            f"{path} is a compressed tar; shards are plain tars: `gunzip` (or `zstd -d`) all of {folder} and give that folder"
        )
    if lower.endswith(INDEX_SUFFIX):
        return (
            f"{path} is a file; an index that does not lie next to its shards is given with their folder: {{url: "
            f"FOLDER, index: {path}}}"
        )
    if lower.endswith(SOURCE_SUFFIXES):
        return f"{path} is a file; pack its images with `python -m data_tools make {shlex.quote(path)} FOLDER` and give FOLDER"
    return (
        f"{path} is a file, not a folder of shards; unpack it, then `python -m data_tools make IMAGES FOLDER` and give FOLDER"
    )


def advise_on_tar(path: str, *, index_name: str, give: str = "give ") -> str:
    """Return how to read the tars of a folder through an index, given one of them or a pattern.

    Args:
        give: what to type before the folder.
    """
    folder = path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
    quoted = shlex.quote(folder)
    if not is_remote(path) and os.path.isfile(os.path.join(folder, index_name)):
        return f"{quoted} has an index: {give}{quoted}"
    return f"`python -m data_tools index {quoted}` makes an index, once; then {give}{quoted}"


def _tars_of(path: str) -> str:
    return "tars" if any(letter in path for letter in WILDCARDS + "{") else "one tar"

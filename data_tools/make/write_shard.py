"""Write one shard, whole or not at all, and a note on it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_tools.make.reencode import Encoding, reencode
from data_tools.make.source_files import SourceFiles
from data_tools.make.sources.listing import Listing, Sample
from data_tools.make.upload import upload
from data_tools.parallel import write_json
from pipeline.data.images.decode import UnreadableImage
from pipeline.data.shards.folder import is_remote
from pipeline.data.shards.sample import IMAGE_EXTENSIONS
from pipeline.files import Draft
from pipeline.json_text import parse_json

Values = Iterable[tuple[Sample, dict[str, bytes]]]  # samples, with the bytes of their members by extension


@dataclass(frozen=True)
class ShardTask:
    """Describes one shard to write.

    Attributes:
        target: path of the shard, or its URL.
        note: path of the note. A shard of this machine appears after its note, one of a store before it.
        numbers: the samples' numbers in the whole source; they make keys unique.
    """

    target: str
    note: Path
    numbers: NDArray[np.int64]
    samples: Listing
    encoding: Encoding


def write_shard(task: ShardTask) -> None:
    """Write the shard and its note. No shard is written if none of its samples can be kept.

    Raises:
        DataError: the source has changed since it was listed, or the store does not take the shard.
    """
    with SourceFiles(task.samples) as source:
        write_shard_of(task, source.read_all())


def write_shard_of(task: ShardTask, values: Values) -> None:
    """Do the same with samples from anywhere.

    Args:
        values: of all the task's samples, in their order.
    """
    is_local = not is_remote(task.target)
    with Draft(task.target if is_local else task.note.with_suffix(".tar")) as draft:
        note = _write_samples(draft.file, task, values)
        draft.file.flush()
        note |= {"num_bytes": draft.path.stat().st_size, "digest": digest_file(draft.path)}
        if is_local:
            write_json(task.note, note)
            if note["num_samples"]:
                draft.publish()
            return
        if note["num_samples"]:
            upload(draft.path, task.target)
        write_json(task.note, note)


def _write_samples(file: BinaryIO, task: ShardTask, values: Values) -> dict[str, Any]:
    """Write the tar. Return what came of it."""
    left_out: list[dict[str, str]] = []
    num_reencoded = 0
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, (sample, members) in zip(task.numbers.tolist(), values, strict=True):
            try:
                num_reencoded += _reencode_image(members, task.encoding)
            except UnreadableImage as error:
                left_out.append({"sample": sample.name, "reason": str(error)})
                continue
            add_sample(tar, make_key(number, sample.name), {**members, **label_member(sample.labels, members.get("json"))})
    return {"num_samples": len(task.samples) - len(left_out), "num_reencoded": num_reencoded, "left_out": left_out}


def digest_file(path: Path) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def is_intact(shard: tuple[str, str]) -> bool:
    """Return whether a shard holds what its note says, given the note's digest."""
    path, digest = shard
    return digest_file(Path(path)) == digest


def add_sample(tar: tarfile.TarFile, key: str, values: dict[str, bytes]) -> None:
    """Write KEY.EXTENSION for each value like webdataset's own writer, but with reproducible bytes: without owner and time."""
    for extension in sorted(values):
        info = tarfile.TarInfo(f"{key}.{extension}")  # its time is a whole number; a fraction would take 1 KB a member
        info.size, info.uname, info.gname = len(values[extension]), "root", "root"
        tar.addfile(info, io.BytesIO(values[extension]))


def make_key(number: int, name: str) -> str:
    """Make a unique key of a sample's number and name. The name is for people. WebDataset cuts keys at the first dot."""
    stem = os.path.splitext(name.rpartition("/")[2])[0]
    return f"{number:09d}-{re.sub(r'[^A-Za-z0-9_-]', '_', stem)}"


def label_member(labels: list[int], stored: bytes | None = None) -> dict[str, bytes]:
    """Return `.cls` for one label, `.json` for several, nothing for none.

    Args:
        stored: the sample's own .json, whose other fields stay.
    """
    one = {"cls": str(labels[0]).encode()} if len(labels) == 1 else {}
    value = parse_json(stored) if stored is not None and (b'"labels"' in stored or len(labels) > 1) else {}
    fields = value if isinstance(value, dict) else {}
    if len(labels) > 1 or (isinstance(fields.get("labels"), list) and labels):
        return one | {"json": json.dumps({**fields, "labels": labels}).encode()}
    return one


def _reencode_image(values: dict[str, bytes], encoding: Encoding) -> int:
    extension = next(extension for extension in IMAGE_EXTENSIONS if extension in values)
    encoded = reencode(values[extension], encoding)
    if encoded is None:
        return 0
    del values[extension]
    values["jpg"] = encoded
    return 1

"""Write one shard, whole or not at all, and a note on it. The samples' bytes are read from wherever they are stored."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_tools.make.reencode import Encoding, reencode
from data_tools.make.sources.listing import Listing, Sample
from data_tools.parallel import write_json
from pipeline.data.images.decode import UnreadableImage
from pipeline.data.shards.sample import IMAGE_EXTENSIONS
from pipeline.errors import DataError
from pipeline.files import Draft
from pipeline.json_text import parse_json

MAX_OPEN_FILES = 128


@dataclass(frozen=True)
class ShardTask:
    """Describes one shard to write.

    Attributes:
        note: path of the note, which is written before the shard appears.
        numbers: the samples' numbers in the whole source; they make keys unique.
    """

    target: Path
    note: Path
    numbers: NDArray[np.int64]
    samples: Listing
    encoding: Encoding


def write_shard(task: ShardTask) -> None:
    """Write the shard and its note. No shard is written if none of its samples can be kept.

    Raises:
        DataError: the source has changed since it was listed.
    """
    left_out: list[dict[str, str]] = []
    num_reencoded = 0
    with Draft(task.target) as draft, SourceFiles(task.samples) as source:
        with tarfile.open(fileobj=draft.file, mode="w") as tar:
            for index, number in enumerate(task.numbers.tolist()):
                sample = task.samples.sample(index)
                values = source.read(sample)
                try:
                    num_reencoded += _reencode_image(values, task.encoding)
                except UnreadableImage as error:
                    left_out.append({"sample": sample.name, "reason": str(error)})
                    continue
                add_sample(tar, make_key(number, sample.name), {**values, **label_member(sample.labels, values.get("json"))})
        draft.file.flush()
        num_samples = len(task.samples) - len(left_out)
        content = {"num_bytes": draft.path.stat().st_size, "digest": digest_file(draft.path)}
        write_json(task.note, {"num_samples": num_samples, "num_reencoded": num_reencoded, "left_out": left_out, **content})
        if num_samples:
            draft.publish()


def digest_file(path: Path) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def is_intact(shard: tuple[Path, str]) -> bool:
    """Return whether a shard holds what its note says, given the note's digest."""
    path, digest = shard
    return digest_file(path) == digest


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


class SourceFiles:
    """Reads samples. Files that many samples share are kept open."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()

    def __enter__(self) -> SourceFiles:
        return self

    def __exit__(self, *_: Any) -> None:
        for file in self._open.values():
            file.close()

    def read(self, sample: Sample) -> dict[str, bytes]:
        """Return the bytes of a sample's members by extension.

        Raises:
            DataError: gone, unreadable, or not as long as it was listed.
        """
        if self._listing.layout == "files":
            path = os.path.join(self._listing.files[0], sample.name)
            try:
                data = Path(path).read_bytes()
            except OSError as error:
                raise DataError(f"{path}: {error.strerror}") from error
            self._check(path, len(data), sample.members[0].length)
            return {sample.members[0].extension: data}
        return {
            extension: self._read_range(self._listing.files[file], start, length)
            for extension, file, start, length in sample.members
        }

    def _read_range(self, path: str, start: int, length: int) -> bytes:
        try:
            if path not in self._open:
                if len(self._open) >= MAX_OPEN_FILES:
                    self._open.popitem(last=False)[1].close()
                self._open[path] = open(path, "rb")
            self._open.move_to_end(path)
            data = os.pread(self._open[path].fileno(), length, start)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error
        self._check(path, len(data), length)
        return data

    def _check(self, path: str, num_bytes: int, expected: int) -> None:
        if num_bytes != expected:
            raise DataError(
                f"{path}: {num_bytes} bytes where {expected} were when it was listed; it has changed or was truncated"
            )

"""Copy images out once, file by file, of sources where they lie in no byte range (compressed tables, raw pixels).

A shuffled shard takes its samples from everywhere. Read from such a file directly, nearly every row group would be read and
decompressed again for every shard. Copied out in one pass, they are byte ranges like any other. The copies need as much disk as
the images, next to the shards, until these are written. Each file's copy is whole or absent, so a killed command resumes with
the next file.

    SCRATCH/<hash of the file's facts>.bytes       its images one behind the other
    SCRATCH/<hash of the file's facts>.listing     written last: where each lies
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from data_tools.make.sources.files import sniff_image
from data_tools.make.sources.listing import Listing, Member, load_listing
from data_tools.make.sources.listing_builder import ListingBuilder
from data_tools.make.sources.parts import list_parts
from data_tools.make.sources.stored import check_version, version_of
from data_tools.parallel import Workers
from pipeline.data.shards.folder import CONCURRENT_QUESTIONS, is_remote
from pipeline.errors import DataError
from pipeline.files import Draft

UNKNOWN = "jpg"  # extension where the first bytes say nothing


class Entry(NamedTuple):
    """Holds one sample of a file."""

    name: str
    labels: Sequence[int | str]
    image: bytes | None  # None for a sample of another split: its labels are numbered, and nothing is copied
    row: int | None = None  # row in the file, for messages


ReadEntries = Callable[[str], Iterator[Entry]]


def stamp_files(paths: Sequence[str | Path], *options: object) -> str:
    """Hash the files' paths, sizes and times or a store's versions, and options: it tells whether an unread source is the same.

    The time is among them because a label may be corrected without a change of the size.
    """
    with ThreadPoolExecutor(CONCURRENT_QUESTIONS) as pool:
        facts = list(pool.map(_facts, paths))
    return hashlib.blake2b(repr((facts, options)).encode(), digest_size=16).hexdigest()


def _facts(path: str | Path) -> tuple[str | int, ...]:
    if is_remote(str(path)):
        return str(path), version_of(str(path))
    stat = os.stat(path)
    return str(Path(path).resolve()), stat.st_size, stat.st_mtime_ns


def unpack_files(
    read: ReadEntries,
    paths: Sequence[str],
    *,
    scratch: Path,
    stamp: str,
    classes: Sequence[str] | None,
    workers: Workers,
) -> Listing:
    """Copy the images of all files out and list them.

    Args:
        read: yields a file's samples.
        stamp: what its samples depend on besides a file's name and size.
        classes: names by label, where `read` gives numbers.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    unpack = partial(_unpack, read, str(scratch), stamp, None if classes is None else tuple(classes))
    return list_parts(unpack, list(paths), workers=workers, description="copy images out", unit="file")


def _unpack(read: ReadEntries, scratch: str, stamp: str, classes: Sequence[str] | None, path: str) -> Listing:
    base = Path(scratch) / hashlib.blake2b(f"{stamp} {path}".encode(errors="surrogateescape"), digest_size=16).hexdigest()
    images, stored = base.with_suffix(".bytes"), base.with_suffix(".listing")
    if stored.exists():
        try:
            return replace(load_listing(stored), files=(str(images),))  # the folder may have been moved since
        except DataError:
            pass  # damaged, or of an older version: copied out again
    builder, version = ListingBuilder(), version_of(path)
    with Draft(images) as draft:  # two machines may do the same at once
        for entry in read(path):
            if entry.image is None:
                builder.note_labels(entry.labels)
                continue
            member = Member(sniff_image(entry.image) or UNKNOWN, 0, draft.file.tell(), len(entry.image))
            builder.add(entry.name, labels=entry.labels, members=(member,), row=entry.row)
            draft.file.write(entry.image)
        check_version(path, version, doing="read")
        draft.publish()
    listing = builder.build(layout="ranges", files=(str(images),), classes=classes, origins=(path,))
    with Draft(stored) as draft:
        listing.save(draft.path)
        draft.publish()
    return listing

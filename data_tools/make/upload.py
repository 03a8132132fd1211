"""Put a file into a store, whole or not at all, and check that the store holds its bytes."""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from data_tools.make.sources.stored import open_stored, split_path
from pipeline.data.shards.folder import ShardFolder
from pipeline.data.shards.retry import is_permanent, retry
from pipeline.errors import DataError

PART_BYTES = 16 << 20  # memory of one part; S3 takes 10,000 of them, so a file may have 160 GB
CONCURRENT_PARTS = 2
MAX_PARTS = 9_000
PATIENCE_S = 120.0
READ_BYTES = 1 << 20


class NotWholeError(OSError):
    """The store shows another content than was sent. A later try may succeed."""


def upload(path: Path, url: str, *, patience_s: float = PATIENCE_S) -> None:
    """Put a local file at a URL, and check it. It replaces a file that is there; an upload that fails leaves none.

    Object stores show an object when its last byte has come: one PUT, or a multipart upload's completion. So a killed command
    leaves no half object. It may leave parts, which nobody sees but the bill: a bucket's lifecycle rule removes them.

    Args:
        patience_s: time for retries since the first failure.

    Raises:
        DataError: the store does not take it.
    """
    part_bytes = max(PART_BYTES, -(-path.stat().st_size // MAX_PARTS))
    expected = checksums_of(path, part_bytes)

    def put() -> None:
        folder, name = split_path(url)
        store = ShardFolder(folder)
        target: Any = store.filesystem
        try:
            target.put_file(str(path), store.full_path(name), **_options(target, part_bytes))
        except FileNotFoundError as error:  # of an upload that was completed, and whose answer was lost: S3 knows it no longer
            if not store.exists(name):
                raise NotWholeError(f"{url}: {error}") from error
        check(url, expected)

    try:
        retry(put, patience_s=patience_s)
    except DataError:
        raise
    except Exception as error:  # stores' libraries have errors of their own
        advice = (
            "check the credentials and the bucket's rules"
            if is_permanent(error)
            else "what is finished is kept; the same command resumes"
        )
        raise DataError(f"{url} could not be written ({type(error).__name__}: {error}); {advice}") from error


def _options(filesystem: Any, part_bytes: int) -> dict[str, Any]:
    """Return what bounds an upload's memory: fsspec's S3 holds ten parts of 50 MiB at once."""
    protocols = filesystem.protocol if isinstance(filesystem.protocol, (tuple, list)) else (filesystem.protocol,)
    if "s3" in protocols:
        return {"chunksize": part_bytes, "max_concurrency": CONCURRENT_PARTS}
    if "gs" in protocols:
        return {"chunksize": part_bytes}
    return {}


class Checksums(NamedTuple):
    """Holds the checksums of a file that a store may report.

    Attributes:
        md5: of all bytes: S3's ETag of a single PUT, and Google's md5Hash.
        of_parts: S3's ETag of a multipart upload: the MD5 of the parts' MD5s, and their number.
        content: for a store that reports neither (S3 with keys of KMS or of the customer): the content is read back.
    """

    num_bytes: int
    md5: bytes
    of_parts: str
    content: str


def checksums_of(path: Path, part_bytes: int) -> Checksums:
    """Return the checksums of a local file that is sent in parts of so many bytes."""
    whole, content, parts = hashlib.md5(usedforsecurity=False), xxhash.xxh3_128(), list[bytes]()
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        for start in range(0, num_bytes, part_bytes):
            part = hashlib.md5(usedforsecurity=False)
            for at in range(start, min(start + part_bytes, num_bytes), READ_BYTES):
                data = file.read(min(READ_BYTES, start + part_bytes - at))
                for one in (whole, content, part):
                    one.update(data)
            parts.append(part.digest())
    joined = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    return Checksums(num_bytes, md5=whole.digest(), of_parts=f"{joined}-{len(parts)}", content=content.hexdigest())


def check(url: str, expected: Checksums) -> None:
    """Check that a store holds the bytes that were sent.

    An ETag that is the expected one proves it. One that is not proves nothing: of an encrypted object it is no MD5, and a
    server may cut parts otherwise. Then the object is read back.

    Raises:
        NotWholeError: it holds others.
    """
    folder, name = split_path(url)
    facts = ShardFolder(folder).facts(name)
    if facts.get("size") != expected.num_bytes:
        raise NotWholeError(f"{url}: the store reports {facts.get('size')} bytes of {expected.num_bytes}")
    etag = str(facts.get("ETag") or "").strip('"')
    if etag in (expected.md5.hex(), expected.of_parts) or facts.get("md5Hash") == base64.b64encode(expected.md5).decode():
        return
    content = xxhash.xxh3_128()
    with open_stored(url) as file:
        for data in iter(functools.partial(file.read, READ_BYTES), b""):
            content.update(data)
    if content.hexdigest() != expected.content:
        raise NotWholeError(f"{url}: the store holds other bytes than were sent")

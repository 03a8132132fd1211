"""Read the file that W&B's client writes for a run, `run-ID.wandb`: `wandb sync` uploads its contents.

The file is a LevelDB log. After a header of 7 bytes come blocks of 32 KiB. They hold chunks with checksum, length and kind. A
record is one whole chunk or several, and a protocol buffer of W&B's. On a full disk the client truncates the file without a
message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_MAGIC = b":W&B"
_HEADER = 7  # of the file, and of a chunk
_BLOCK = 32768
_WHOLE, _LAST = 1, 4  # kinds of chunks that end a record


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the records up to the first truncated one.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a file of W&B's.
    """
    data = path.read_bytes()
    if data[:4] != _MAGIC:
        raise ValueError(f"{path} is not a file of W&B's client")
    offset, record = _HEADER, b""
    while offset + _HEADER <= len(data):
        room = _BLOCK - offset % _BLOCK
        if room < _HEADER:  # too little for a chunk: padding
            offset += room
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", data, offset)
        end = offset + _HEADER + length
        if kind == 0 or end > len(data):
            return
        record += data[offset + _HEADER : end]
        offset = end
        if kind in (_WHOLE, _LAST):
            yield record
            record = b""


def count_rows(path: Path) -> int:
    """Return the number of lines of metrics in the file; 0 if it cannot be read."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    rows = 0
    try:
        for data in read_records(path):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(data)
            rows += record.WhichOneof("record_type") == "history"
    except (OSError, ValueError, DecodeError):
        pass
    return rows

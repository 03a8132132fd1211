"""Pack folders of files as one input, so that a finding is one file."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

_SIZES = struct.Struct("<II")


def pack(files: Mapping[str, bytes]) -> bytes:
    return b"".join(_SIZES.pack(len(name.encode()), len(data)) + name.encode() + data for name, data in files.items())


def unpack(packed: bytes) -> dict[str, bytes]:
    files, offset = {}, 0
    while offset < len(packed):
        name_bytes, data_bytes = _SIZES.unpack_from(packed, offset)
        offset += _SIZES.size
        name = packed[offset : offset + name_bytes].decode()
        files[name] = packed[offset + name_bytes : offset + name_bytes + data_bytes]
        offset += name_bytes + data_bytes
    return files


def write_folder(folder: Path, packed: bytes) -> None:
    """Write the packed files, and no others."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in unpack(packed).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

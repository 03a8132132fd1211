"""Tell what a file of weights is by its bytes: caches leave a name's ending out, and downloads change it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from pipeline.data.stand_ins import refuse_stand_in
from pipeline.errors import ExchangeError

Kind = Literal["npz", "safetensors", "torch", "index"]

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_INDEX = ".index.json"
# Formats of other libraries, which are not read: by their first bytes, what they are and what to do.
_OTHERS = {
    b"\x89HDF\r\n\x1a\n": "HDF5, as Keras and TensorFlow write it: take the model's .safetensors file",
    b"GGUF": "GGUF, whose numbers are quantised: take the model's .safetensors file",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first",
}
_TAR_PLACE, _TAR = 257, b"ustar"
_SUFFIXES: dict[str, Kind] = {
    ".npz": "npz", ".safetensors": "safetensors", ".bin": "torch", ".pth": "torch", ".pt": "torch", ".ckpt": "torch",
}  # fmt: skip


def kind_of(path: Path) -> Kind:
    """Return what a file is. Damaged files are of the kind that their name says.

    Raises:
        ExchangeError: it is none of the kinds that are read.
        DataError: it is empty, or a placeholder of a file that was not downloaded.
    """
    if path.name.lower().endswith(_INDEX):
        return "index"
    try:
        with path.open("rb") as file:
            start = file.read(512)
        size = path.stat().st_size
    except OSError as error:
        raise ExchangeError(f"{path} cannot be read ({error.strerror or error})") from error
    refuse_stand_in(start, name=path)
    if start.startswith(_ZIP) and (found := _kind_of_zip(path)) is not None:
        return found
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size:
        return "safetensors"
    if start.startswith(_PICKLE):
        return "torch"
    named = _SUFFIXES.get(path.suffix.lower())
    if named is not None:
        return named
    what = next((words for magic, words in _OTHERS.items() if start.startswith(magic)), None)
    if what is None and start[_TAR_PLACE:].startswith(_TAR):
        what = "a tar archive: unpack it first"
    ending = path.suffix or "such a file"
    raise ExchangeError(
        f"{path} is {what}" if what else f"{path}: weights are in .safetensors, .npz, .bin, .pth or .pt files, not {ending}"
    )


def _kind_of_zip(path: Path) -> Kind | None:
    """Return which of the two kinds that are zip archives a file is; None where it is truncated."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return None
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return "torch"
    return "npz" if path.suffix.lower() == ".npz" or any(name.endswith(".npy") for name in names) else None

"""Read files of tensors that anybody may have written. Nothing in them is executed: no pickled object is made but tensors."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pipeline.errors import ExchangeError
from pipeline.exchange.kinds import kind_of
from pipeline.exchange.state_dicts import StateDict, state_dict_of
from pipeline.files import Draft
from pipeline.json_text import parse_json

MOST_JSON_BYTES = 100 * 2**20
MOST_ARRAYS = 100_000
MOST_INFLATED = 200  # times a compressed file's size; weights hardly compress at all
SMALL_BYTES = 2**28  # of arrays that may be zeros
_NPY_SUFFIX = ".npy"
_BF16_IN_NPY = np.dtype("V2")  # NumPy has no bf16: JAX's arrays of it are stored as two bytes without a type
_ASKED_FOR = re.compile(r"(?:GLOBAL|class) ([\w.]+)")


def read_tensors(path: Path) -> StateDict:
    """Return the tensors of a .safetensors, .bin, .pth or .pt file, or of the files that a .index.json lists.

    Raises:
        ExchangeError: it cannot be read, holds anything but tensors, or is of another kind.
    """
    kind = kind_of(path)
    if kind == "index":
        return _read_indexed(path)
    if kind == "safetensors":
        return StateDict(_read_safetensors(path))
    if kind == "torch":
        return _read_pickled(path)
    raise ExchangeError(f"{path} is an .npz file of arrays, which is read by itself and not as part of a folder")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, ValueError, RuntimeError, KeyError, safetensors.SafetensorError) as error:
        raise ExchangeError(f"{path} cannot be read as safetensors ({_short(error)}); copy it again") from error


def _read_indexed(path: Path) -> StateDict:
    """Read the files that an index names. They are in its own folder."""
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ExchangeError(f"{path} names no files of weights")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(listed.values())):
        if Path(name).name != name:
            raise ExchangeError(f"{path} names the file {name[:80]!r}, which is not next to it")
        if not path.with_name(name).exists():
            raise ExchangeError(f"{path} names {name}, which is not there: the download is not complete; download it again")
        tensors |= read_tensors(path.with_name(name)).tensors
    if missing := sorted(listed.keys() - tensors.keys()):
        raise ExchangeError(f"{path} lists {missing[0]}, which its file does not hold")
    return StateDict(tensors)


def _read_pickled(path: Path) -> StateDict:
    """Read a file of `torch.save`, by its reader that makes tensors and plain values alone."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, AttributeError, ModuleNotFoundError) as error:
        asked = _ASKED_FOR.search(str(error))
        what = f"it asks for {asked[1][:100]}" if asked else _short(error)
        raise ExchangeError(
            f"{path} holds pickled objects other than tensors, which could run any code, and is not read ({what}): where you "
            "trust it, load it with its own library and save its state dict alone, as .safetensors"
        ) from error
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, IndexError, TypeError, MemoryError) as error:
        raise ExchangeError(f"{path} cannot be read ({_short(error)}); copy it again") from error
    return state_dict_of(found, source=str(path))


def read_npz_arrays(path: Path) -> dict[str, Tensor]:
    """Return the arrays of an .npz file, bf16 included.

    Raises:
        ExchangeError: it is damaged, holds pickled objects, or names that are no names of arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return dict(_read_members(archive, path))
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ExchangeError(f"{path} cannot be read as .npz ({_short(error)}); copy it again") from error


def _read_members(archive: zipfile.ZipFile, path: Path) -> Iterator[tuple[str, Tensor]]:
    members = archive.infolist()
    if len(members) > MOST_ARRAYS:
        raise ExchangeError(f"{path} holds {len(members)} files, which no model has")
    num_bytes, size = sum(member.file_size for member in members), path.stat().st_size
    if num_bytes > max(SMALL_BYTES, MOST_INFLATED * size):
        raise ExchangeError(
            f"{path} has {size} bytes and would take {num_bytes} in memory, which no weights do: it is not read"
        )
    for member in members:
        name = member.filename
        if not name.endswith(_NPY_SUFFIX) or name.startswith("/") or ".." in name.split("/"):
            raise ExchangeError(f"{path} holds {name[:80]!r}, which is no array of a model")
        with archive.open(member) as file:
            yield name.removesuffix(_NPY_SUFFIX), _read_array(file, member, path)


def _read_array(file: IO[bytes], member: zipfile.ZipInfo, path: Path) -> Tensor:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    name = member.filename.removesuffix(_NPY_SUFFIX)
    if dtype.hasobject:
        raise ExchangeError(f"{path}: {name} holds pickled objects, which could run any code, and is not read")
    if dtype != _BF16_IN_NPY and dtype.kind not in "fiub":
        raise ExchangeError(f"{path}: {name} is of {dtype}, which is no number")
    count = int(np.prod(shape, dtype=object))
    if count * dtype.itemsize > member.file_size:
        raise ExchangeError(f"{path}: {name} is truncated: {list(shape)} of {dtype} are more than its {member.file_size} bytes")
    data = file.read(count * dtype.itemsize)
    if len(data) < count * dtype.itemsize:
        raise ExchangeError(f"{path}: {name} is truncated")
    array = np.frombuffer(bytearray(data), dtype=dtype)
    array = array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)
    if dtype == _BF16_IN_NPY:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=True))


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping that a JSON file holds.

    Raises:
        ExchangeError: it is missing, or holds none.
    """
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise ExchangeError(f"{path} has more than {MOST_JSON_BYTES} bytes: it is no description of a model")
        found = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ExchangeError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise ExchangeError(f"{path} cannot be read as JSON ({_short(error)})") from error
    if not isinstance(found, dict):
        raise ExchangeError(f"{path} is no description of a model")
    return found


def write_npz_arrays(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write an .npz file, whole or not at all. Its bytes depend on the arrays alone.

    Raises:
        OSError: it cannot be written.
    """
    with Draft(path) as draft:
        with zipfile.ZipFile(draft.file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, tensor in tensors.items():
                member = zipfile.ZipInfo(f"{name}{_NPY_SUFFIX}", date_time=(1980, 1, 1, 0, 0, 0))
                with archive.open(member, "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, tensor.numpy(), allow_pickle=False)
        draft.publish()


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]

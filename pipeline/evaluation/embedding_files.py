"""Write the features of one shard as a file, safetensors or Parquet, and read such files again.

OUT/embedding.json            what the features are of: weights, preprocessing, precision (see `embedding_conditions`)
OUT/shard-000000.safetensors  of each shard: what was computed, keys, labels and positions of its images
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from pipeline.errors import ConfigError, DataError
from pipeline.files import Draft
from pipeline.json_text import parse_json
from pipeline.run.weights import save_tensors

if TYPE_CHECKING:
    import pyarrow

FileFormat = Literal["safetensors", "parquet"]
SUFFIXES: dict[FileFormat, str] = {"safetensors": ".safetensors", "parquet": ".parquet"}
DESCRIPTION = "embedding"  # the only entry of a file's metadata, in JSON: safetensors has no order of entries
ROW_GROUP_BYTES = 2**26  # a reader of Parquet takes a row group whole
_ABOUT_IMAGES = ("keys", "key_ends", "labels", "label_ends", "positions")


@dataclass(frozen=True)
class ShardFeatures:
    """Holds the features of one shard's readable images, in the index's order.

    Attributes:
        labels: (L,) int64, the images' labels one after the other; (N,) where each image has one.
        label_ends: (N,) int64, of each image, where its labels end.
        positions: (N,) int64 in the index's order, through all shards.
        values: by name, (N, D), of patches (N, P, D).
        description: conditions, the shard's name, and its unreadable images.
    """

    keys: list[str]
    labels: Tensor
    label_ends: Tensor
    positions: Tensor
    values: dict[str, Tensor]
    description: dict[str, Any]


def write_features(path: Path, found: ShardFeatures, *, format: FileFormat) -> None:
    """Write a file, whole or not at all. Its bytes follow from the features alone.

    Raises:
        OSError: it cannot be written.
        ConfigError: Parquet cannot hold them.
    """
    with Draft(path) as draft:
        (_write_safetensors if format == "safetensors" else _write_parquet)(draft, found)
        draft.publish()


def read_features(path: Path) -> ShardFeatures:
    """Read a file.

    Raises:
        DataError: it is damaged, or not one that `embed` wrote.
        ConfigError: it is Parquet, and pyarrow is not installed.
    """
    found = _read_parquet(path) if path.suffix == SUFFIXES["parquet"] else _read_safetensors(path)
    with _reading(path):
        counts = {len(found.keys), *(len(array) for array in (found.label_ends, found.positions, *found.values.values()))}
        num_labels = int(found.label_ends[-1]) if len(found.label_ends) else 0
        if len(counts) > 1 or num_labels != len(found.labels):
            raise ValueError("its arrays are not of the same images")
    return found


def read_description(path: Path) -> dict[str, Any]:
    """Return what a file says of its features, without reading them.

    Raises:
        DataError, ConfigError: see `read_features`.
    """
    if path.suffix == SUFFIXES["parquet"]:
        return _parse_description(_open_parquet(path).metadata.metadata or {}, path)
    with _reading(path), safe_open(path, framework="pt") as file:
        return _parse_description(file.metadata() or {}, path)


def _parse_description(metadata: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    text = metadata.get(DESCRIPTION, metadata.get(DESCRIPTION.encode()))
    with _reading(path):
        found = parse_json(text if text is not None else "null")
        if not isinstance(found, dict):
            raise ValueError("its metadata has no description")
        return found


class _reading:  # noqa: N801  (a context)
    """Raises in words what a damaged file raises."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError | ValueError | KeyError | IndexError | RuntimeError | safetensors.SafetensorError):
            raise DataError(
                f"{self._path} is damaged, or was not written by `embed` ({str(error)[:200]}); remove it, and the same `embed` "
                "command writes it again"
            ) from error


# --------------------------------------------------------------------------------------------------------- safetensors


def _write_safetensors(draft: Draft, found: ShardFeatures) -> None:
    names = [key.encode("utf-8", "surrogateescape") for key in found.keys]
    tensors = {
        **found.values,
        "keys": torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8) if any(names) else torch.empty(0).byte(),
        "key_ends": torch.from_numpy(np.cumsum([len(name) for name in names], dtype=np.int64)),
        "labels": found.labels,
        "label_ends": found.label_ends,
        "positions": found.positions,
    }
    save_tensors(draft.path, tensors, header={DESCRIPTION: json.dumps(found.description)})


def _read_safetensors(path: Path) -> ShardFeatures:
    with _reading(path), safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dictionary)
        description = file.metadata() or {}
    with _reading(path):
        text, ends = tensors["keys"].numpy().tobytes(), [0, *tensors["key_ends"].tolist()]
        keys = [text[start:end].decode("utf-8", "surrogateescape") for start, end in itertools.pairwise(ends)]
        return ShardFeatures(
            keys=keys,
            labels=tensors["labels"],
            label_ends=tensors["label_ends"],
            positions=tensors["positions"],
            values={name: tensor for name, tensor in tensors.items() if name not in _ABOUT_IMAGES},
            description=_parse_description(description, path),
        )


# ------------------------------------------------------------------------------------------------------------- Parquet


def check_parquet() -> None:
    """Import what reads and writes Parquet.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"Parquet needs pyarrow ({error}); pip install pyarrow, or take --format safetensors") from error


def _write_parquet(draft: Draft, found: ShardFeatures) -> None:
    """Write the columns key, position and labels, and lists of a fixed length for all that was computed."""
    check_parquet()
    import pyarrow as pa
    from pyarrow import parquet

    offsets = pa.array([0, *found.label_ends.tolist()], pa.int32())
    try:
        keys = pa.array(found.keys, pa.string())
    except UnicodeEncodeError as error:
        raise ConfigError(f"a key is not UTF-8 ({error}), which Parquet's texts are; take --format safetensors") from error
    columns: dict[str, Any] = {
        "key": keys,
        "position": pa.array(found.positions.numpy()),
        "labels": pa.ListArray.from_arrays(offsets, pa.array(found.labels.numpy())),
        **{name: _as_lists(values.numpy()) for name, values in found.values.items()},
    }
    table = pa.table(columns).replace_schema_metadata({DESCRIPTION: json.dumps(found.description)})
    row_bytes = sum(values.nbytes for values in found.values.values()) // max(1, len(found.keys))
    rows = max(1, ROW_GROUP_BYTES // max(1, row_bytes))
    parquet.write_table(table, draft.file, compression="none", use_dictionary=False, row_group_size=rows)


def _as_lists(values: NDArray[Any]) -> pyarrow.Array:
    """Return (N, ..., D) as nested lists of a fixed length."""
    import pyarrow as pa

    nested = pa.array(values.reshape(-1))
    for length in reversed(values.shape[1:]):
        nested = pa.FixedSizeListArray.from_arrays(nested, int(length))
    return nested


def _read_parquet(path: Path) -> ShardFeatures:
    file = _open_parquet(path)
    with _reading(path):
        table = file.read()
        values = {name: _from_lists(table.column(name)) for name in table.column_names[3:]}
        labels = table.column("labels").combine_chunks()
        lengths = np.array(labels.value_lengths().to_numpy(zero_copy_only=False), np.int64)
        return ShardFeatures(
            keys=table.column("key").to_pylist(),
            labels=torch.from_numpy(np.array(labels.flatten().to_numpy(zero_copy_only=False), np.int64)),
            label_ends=torch.from_numpy(np.cumsum(lengths)),
            positions=torch.from_numpy(np.array(table.column("position").to_numpy(), np.int64)),
            values=values,
            description=_parse_description(table.schema.metadata or {}, path),
        )


def _from_lists(column: pyarrow.ChunkedArray) -> Tensor:
    lengths: list[int] = []
    kind: Any = column.type
    while hasattr(kind, "list_size"):
        lengths.append(kind.list_size)
        kind = kind.value_type
    chunks: list[NDArray[Any]] = []
    for chunk in column.chunks:
        flat: Any = chunk
        for _ in lengths:
            flat = flat.flatten()
        chunks.append(flat.to_numpy())
    joined = np.concatenate(chunks) if chunks else np.empty(0, kind.to_pandas_dtype())
    return torch.from_numpy(joined.reshape(-1, *lengths) if joined.size else np.empty((0, *lengths), joined.dtype))


def _open_parquet(path: Path) -> Any:
    check_parquet()
    from pyarrow import parquet

    with _reading(path):  # pyarrow's errors are ValueErrors and OSErrors
        return parquet.ParquetFile(path)


def join_features(parts: Sequence[ShardFeatures]) -> ShardFeatures:
    """Return the features of several shards, those of all images by position."""
    ordered = sorted((part for part in parts if part.keys), key=lambda part: int(part.positions[0])) or list(parts[:1])
    lengths = torch.cat([torch.diff(part.label_ends, prepend=torch.zeros(1, dtype=torch.int64)) for part in ordered])
    return ShardFeatures(
        keys=[key for part in ordered for key in part.keys],
        labels=torch.cat([part.labels for part in ordered]),
        label_ends=torch.cumsum(lengths, dim=0),
        positions=torch.cat([part.positions for part in ordered]),
        values={name: torch.cat([part.values[name] for part in ordered]) for name in ordered[0].values},
        description=ordered[0].description,
    )


def read_features_of(path: Path) -> ShardFeatures:
    """Read a file, or all files of a folder that `embed` wrote.

    Raises:
        DataError: there is none, or one is damaged.
        ConfigError: see `read_features`.
    """
    if path.is_file():
        return read_features(path)
    suffixes = set(SUFFIXES.values())
    files = sorted(file for file in path.glob("*") if file.suffix in suffixes and not file.name.startswith("."))
    if not files:
        raise DataError(f"{path} holds no features; `python -m pipeline embed RUN_OR_WEIGHTS SHARDS {path}` writes some")
    return join_features([read_features(file) for file in files])

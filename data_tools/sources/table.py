"""Parquet and Arrow files with the images' bytes in a column, the layout of Hugging Face datasets."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import xxhash

from data_tools.sources.listing import MAX_LABEL, Listing
from data_tools.sources.unpack import Entry, unpack_files
from pipeline.errors import DataError

if TYPE_CHECKING:
    import pyarrow

TABLE_SUFFIXES = (".parquet", ".arrow")
ROWS_AT_ONCE = 64
READ_BUFFER_BYTES = 1 << 20
SPLIT_NAME = re.compile(r"(.+)-\d{5}-of-\d{5}|(train|validation|valid|val|test|dev)(?![a-zA-Z])")


class Columns(NamedTuple):
    """Where a table holds what, and its class names by label if it tells them."""

    image: str
    label: str
    classes: tuple[str, ...] | None


def find_splits(paths: list[Path]) -> dict[str, list[Path]]:
    """Files by the split in their name (train-00000-of-00294.parquet, test.parquet); all others under ""."""
    splits: dict[str, list[Path]] = {}
    for path in paths:
        match = SPLIT_NAME.match(path.name)
        splits.setdefault((match[1] or match[2]) if match else "", []).append(path)
    return splits


def list_tables(
    paths: list[Path], scratch: Path, num_workers: int, *, stamp: str, image_column: str | None, label_column: str | None
) -> Listing:
    """The rows of these files, their images copied to `scratch`.

    Args:
        stamp: tells these files and options from others.
        image_column: bytes, or a struct of `bytes` and `path`; the one that is said to hold images if not given.
        label_column: a number, a name, or a list of either; the one that is said to hold classes if not given.

    Raises:
        DataError: pyarrow is missing, a file is damaged, or has no such columns.
    """
    columns = [choose_columns(path, image=image_column, label=label_column) for path in paths]
    if others := [path for path, found in zip(paths, columns, strict=True) if found != columns[0]]:
        raise DataError(f"{paths[0]} and {others[0]} differ in their columns or in their class names, so they are not one set")
    read = partial(_read_rows, columns[0])
    classes = columns[0].classes
    return unpack_files(read, paths, scratch=scratch, stamp=stamp, classes=classes, num_workers=num_workers)


def choose_columns(path: Path, *, image: str | None, label: str | None) -> Columns:
    """The columns to take: those asked for, else those that Hugging Face's metadata say, else `image` and `label`.

    Raises:
        DataError: no such columns, or of types that cannot be images and labels.
    """
    pa = _pyarrow()
    schema = _open(str(path))[0]
    try:
        stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features: dict[str, Any] = (stored.get("info") or {}).get("features") or {}
    except ValueError as error:
        raise DataError(f"{path}: its Hugging Face metadata are damaged ({error})") from error
    image = image or _only([name for name, feature in features.items() if _kind(feature) == "Image"]) or "image"
    label = label or _only([name for name, feature in features.items() if _kind(feature) == "ClassLabel"]) or "label"
    for name, option in ((image, "--image-column"), (label, "--label-column")):
        if name not in schema.names:
            raise DataError(f"{path} has no column {name!r}; choose one of {', '.join(schema.names)} with {option}")
    kind = schema.field(image).type
    stored_as = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(stored_as) or pa.types.is_large_binary(stored_as)):
        raise DataError(f"{path}: column {image!r} is {kind}, not the bytes of images; choose one with --image-column")
    kind = schema.field(label).type
    of_one = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if not (pa.types.is_integer(of_one) or pa.types.is_string(of_one) or pa.types.is_large_string(of_one)):
        raise DataError(f"{path}: column {label!r} is {kind}, not class numbers or names; choose one with --label-column")
    names = _class_names(features.get(label))
    return Columns(image, label, tuple(names) if names and pa.types.is_integer(of_one) else None)


def _kind(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None


def _only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _class_names(feature: Any) -> list[str] | None:
    """Of a ClassLabel, or of a list of them: {"feature": ...} or [...]."""
    if isinstance(feature, list):
        return _class_names(feature[0]) if feature else None
    if not isinstance(feature, dict):
        return None
    return feature["names"] if "names" in feature else _class_names(feature.get("feature"))


def _read_rows(columns: Columns, path: str) -> Iterator[Entry]:
    batches = _open(path)[1]
    row = 0
    for batch in batches([columns.image, columns.label]):
        images, labels = batch.column(columns.image).to_pylist(), batch.column(columns.label).to_pylist()
        for image, label in zip(images, labels, strict=True):
            yield _entry(image, label, path=path, row=row)
            row += 1


def _entry(image: Any, label: Any, *, path: str, row: int) -> Entry:
    stored = image if isinstance(image, dict) else {"bytes": image}
    data = stored.get("bytes")
    if data is None:
        kept = f"; it names the file {stored['path']!r} instead" if stored.get("path") else ""
        raise DataError(f"{path}: row {row} has no image bytes{kept}")
    labels = label if isinstance(label, list) else [label]
    if not labels or any(one is None or (isinstance(one, int) and not 0 <= one <= MAX_LABEL) for one in labels):
        raise DataError(f"{path}: row {row} has the label {label!r}, which is no class; test splits often hold no labels")
    # Not all tables name their images, or each differently: the content says which it is, whatever table it comes to lie in.
    words = [os.path.splitext(stored["path"])[0]] if stored.get("path") else []
    return Entry("-".join([*words, xxhash.xxh64_hexdigest(data)]), labels, data)


def _open(path: str) -> tuple[pyarrow.Schema, Any]:
    """A file's schema, and a function from column names to record batches of few rows."""
    pa = _pyarrow()
    try:
        if path.endswith(".parquet"):
            from pyarrow import parquet

            # A whole row group may be gigabytes: its pages are read one by one.
            file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=READ_BUFFER_BYTES)
            return file.schema_arrow, partial(_parquet_batches, file, path)
        mapped = pa.memory_map(path)
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        table = pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no whole {Path(path).suffix[1:]} file: {error}") from error
    return table.schema, partial(_arrow_batches, table, path)


def _parquet_batches(file: Any, path: str, columns: list[str]) -> Iterator[pyarrow.RecordBatch]:
    batches = file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns, use_threads=False)
    yield from _checked(batches, path)


def _arrow_batches(table: Any, path: str, columns: list[str]) -> Iterator[pyarrow.RecordBatch]:
    stored = iter(table) if hasattr(table, "__iter__") else (table.get_batch(i) for i in range(table.num_record_batches))
    for batch in _checked(stored, path):
        chosen = batch.select(columns)
        for start in range(0, chosen.num_rows, ROWS_AT_ONCE):
            yield chosen.slice(start, ROWS_AT_ONCE)


def _checked(batches: Iterator[pyarrow.RecordBatch], path: str) -> Iterator[pyarrow.RecordBatch]:
    while True:
        try:
            batch = next(batches, None)
        except (_pyarrow().ArrowException, OSError) as error:
            raise DataError(f"{path} is damaged: {error}; copy it again") from error
        if batch is None:
            return
        yield batch


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise DataError(
            "Parquet and Arrow files are read with pyarrow, which is not installed: `pip install pyarrow`"
        ) from error
    return pyarrow

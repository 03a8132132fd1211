"""List Parquet and Arrow files with the images' bytes in a column, the layout of Hugging Face datasets.

The files may be in a store. Of a Parquet file the columns that are needed are read, once; of an Arrow file all columns.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import xxhash

from data_tools import splits
from data_tools.make.sources.concatenate import concatenate
from data_tools.make.sources.labels import tell_apart
from data_tools.make.sources.listing import MAX_LABEL, Listing
from data_tools.make.sources.listing_builder import ListingBuilder
from data_tools.make.sources.split_columns import Chosen, Survey, flag_of
from data_tools.make.sources.stored import open_stored, split_path
from data_tools.make.sources.unpack import Entry, unpack_files
from data_tools.parallel import Workers
from pipeline.data.shards.folder import CONCURRENT_QUESTIONS, is_remote
from pipeline.data.stand_ins import refuse_stand_in
from pipeline.errors import DataError
from pipeline.json_text import parse_json

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow

TABLE_SUFFIXES = (".parquet", ".arrow")
ROWS_AT_ONCE = 64
READ_BUFFER_BYTES = 1 << 20
UNNAMED = re.compile(rb"[0-9a-f]{16}")  # named by its content alone
FIRST_BYTES = 64
ARROW_FILE = b"ARROW1"  # of the format with an index at its end; Hugging Face writes streams, which have none
SAMPLE_ROWS = 256  # rows that decide whether a column of texts may hold splits


class Columns(NamedTuple):
    """Names the columns of a table, and its class names by label if it has them."""

    image: str
    label: str
    classes: tuple[str, ...] | None


def list_tables(
    paths: list[str],
    scratch: Path,
    workers: Workers,
    *,
    stamp: str,
    image_column: str | None,
    label_column: str | None,
    wanted_splits: tuple[str, ...] | None = None,
    others: Sequence[str] = (),
    file_splits: Collection[str] = (),
) -> Listing:
    """Return the rows of these files, with their images copied to `scratch`.

    Args:
        stamp: tells these files and options from others.
        image_column: bytes, or a struct of `bytes` and `path`; the one that is said to hold images if not given.
        label_column: a number, a name, or a list of either; the one that is said to hold classes if not given.
        wanted_splits: values of a column of splits to take, unless they are among `file_splits`.
        others: files of other splits, whose names of classes are numbered too.

    Raises:
        DataError: pyarrow is missing, a file is damaged, or has no such columns, or several splits.
    """
    with ThreadPoolExecutor(CONCURRENT_QUESTIONS if is_remote(paths[0]) else 1) as pool:
        schemas = dict(zip(paths, pool.map(_schema_if_filled, paths), strict=True))
    filled = [path for path in paths if schemas[path] is not None]
    if not filled:
        raise DataError(f"{paths[0]}: no rows in {len(paths)} files")
    columns = [choose_columns(schemas[path], path, image=image_column, label=label_column) for path in filled]
    if strangers := [path for path, found in zip(filled, columns, strict=True) if found != columns[0]]:
        raise DataError(
            f"{filled[0]} and {strangers[0]} differ in their columns or in their class names, so they are not one set"
        )
    selection = _select_rows(filled, columns[0], wanted_splits, file_splits)
    read = partial(_read_rows, columns[0], selection)
    listing = unpack_files(read, filled, scratch=scratch, stamp=stamp, classes=columns[0].classes, workers=workers)
    return _note_names(listing, others, columns[0])


def _note_names(listing: Listing, others: Sequence[str], columns: Columns) -> Listing:
    """Number names of classes that occur in other splits' files too, so that all splits agree."""
    if listing.class_source == "names" or listing.classes is None:
        return listing
    builder = ListingBuilder()
    for path in others:
        schema, batches = _open(path)
        if columns.label in schema.names:
            for batch in batches([columns.label]):
                for label in batch.column(columns.label).to_pylist():
                    builder.note_labels(one for one in (label if isinstance(label, list) else [label]) if isinstance(one, str))
    return concatenate([listing, builder.build(layout="ranges", files=())])


def _select_rows(
    paths: Sequence[str], columns: Columns, wanted: tuple[str, ...] | None, file_splits: Collection[str]
) -> Chosen | None:
    """Return which rows to take of files with columns of splits; None for all.

    Raises:
        DataError: several splits and no choice.
    """
    remaining = [word for word in wanted or () if word not in file_splits]
    names = _split_columns(paths[0], columns, remaining)
    survey = Survey(names, has_names=True, wanted=remaining)
    for path in paths if names else ():
        for batch in _open(path)[1](names):
            for row in _rows_of(batch, names):
                survey.add(row)
    folder = split_path(paths[0])[0]
    chosen = survey.choose(source=folder if len(paths) > 1 else paths[0])
    if chosen is None:
        splits.check_found(wanted, file_splits, source=folder)
    return chosen if chosen is not None and chosen.taken is not None else None


def _rows_of(batch: pyarrow.RecordBatch, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield rows of some columns, as texts."""
    return zip(*([str(value) for value in batch.column(name).to_pylist()] for name in names), strict=True)


def _split_columns(path: str, columns: Columns, wanted: Sequence[str]) -> list[str]:
    """Return columns that may give each row's split: by their name, because the user names them, or by their first values."""
    pa = _pyarrow()
    schema, batches = _open(path)
    rest = [name for name in schema.names if name not in (columns.image, columns.label)]
    kinds = {name: schema.field(name).type for name in rest}
    plain = [name for name in rest if not pa.types.is_nested(kinds[name]) and not pa.types.is_binary(kinds[name])]
    asked = {word.partition("=")[0].strip().lower() for word in wanted if "=" in word}
    named = [name for name in plain if splits.is_split_column(name) or flag_of(name) is not None or name.lower() in asked]
    texts = [name for name in plain if name not in named and _is_text(kinds[name])]
    if not texts:
        return named
    seen: dict[str, set[str]] = {name: set() for name in texts}
    num_rows = 0
    for batch in batches(texts):
        for name in texts:
            seen[name].update(str(value) for value in batch.column(name).to_pylist() if value is not None)
        num_rows += batch.num_rows
        if num_rows >= SAMPLE_ROWS:
            break
    return named + [name for name in texts if seen[name] and all(splits.is_split(value) for value in seen[name])]


def _is_text(kind: Any) -> bool:
    pa = _pyarrow()
    of_one = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(of_one) or pa.types.is_large_string(of_one) or pa.types.is_string_view(of_one)


def _is_number(kind: Any) -> bool:
    types = _pyarrow().types
    of_one = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_integer(of_one) or types.is_floating(of_one) or types.is_boolean(of_one)


def _schema_if_filled(path: str) -> pyarrow.Schema | None:
    """Return the schema of a file; None if it has no rows."""
    if path.lower().endswith(".parquet"):
        file = _parquet(path)
        return file.schema_arrow if file.metadata.num_rows else None
    schema, batches = _open(path)
    return schema if any(batch.num_rows for batch in batches(None)) else None


def choose_columns(schema: pyarrow.Schema, path: str, *, image: str | None, label: str | None) -> Columns:
    """Return the columns to take: those requested, else those that Hugging Face's metadata name, else `image` and `label`.

    Raises:
        DataError: no such columns, or of types that cannot be images and labels.
    """
    pa = _pyarrow()
    try:
        stored = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
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
    if not (pa.types.is_binary(stored_as) or pa.types.is_large_binary(stored_as) or pa.types.is_binary_view(stored_as)):
        raise DataError(f"{path}: column {image!r} is {kind}, not the bytes of images; choose one with --image-column")
    kind = schema.field(label).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    of_one = kind.value_type if is_list else kind
    if not (_is_number(of_one) or _is_text(of_one)):
        raise DataError(f"{path}: column {label!r} is {kind}, not class numbers or names; choose one with --label-column")
    names = _class_names(features.get(label))
    return Columns(image, label, tell_apart(names) if names and _is_number(of_one) else None)


def _kind(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None


def _only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _class_names(feature: Any) -> list[str] | None:
    """Return the class names of a ClassLabel, or of a list of them: {"feature": ...} or [...]."""
    if isinstance(feature, list):
        return _class_names(feature[0]) if feature else None
    if not isinstance(feature, dict):
        return None
    return feature["names"] if "names" in feature else _class_names(feature.get("feature"))


def _read_rows(columns: Columns, selection: Chosen | None, path: str) -> Iterator[Entry]:
    batches = _open(path)[1]
    names = selection.teller.names if selection else ()
    row = 0
    for batch in batches([columns.image, columns.label, *names]):
        images, labels = batch.column(columns.image).to_pylist(), batch.column(columns.label).to_pylist()
        rows = _rows_of(batch, names) if selection else [()] * batch.num_rows
        for image, label, values in zip(images, labels, rows, strict=True):
            if selection is None or selection.holds(values):
                yield _entry(image, label, path=path, row=row)
            else:
                yield Entry("", [one for one in (label if isinstance(label, list) else [label]) if isinstance(one, str)], None)
            row += 1


def _entry(image: Any, label: Any, *, path: str, row: int) -> Entry:
    stored = image if isinstance(image, dict) else {"bytes": image}
    data = stored.get("bytes")
    if data is None:
        kept = f"; it names the file {stored['path']!r} instead" if stored.get("path") else ""
        raise DataError(f"{path}: row {row} has no image bytes{kept}")
    labels = [_plain(one) for one in (label if isinstance(label, list) else [label])]
    if not labels or any(one is None for one in labels):
        raise DataError(f"{path}: row {row} has the label {label!r}, which is no class; test splits often hold no labels")
    # Not all tables name their images, or give each a different name. The content identifies the image, in any table.
    words = [os.path.splitext(stored["path"])[0]] if stored.get("path") else []
    return Entry("-".join([*words, xxhash.xxh64_hexdigest(data)]), [one for one in labels if one is not None], data, row)


def is_named(sample: bytes) -> bool:
    """Return whether the table names the image of a sample; otherwise only its content does."""
    return UNNAMED.fullmatch(sample) is None


def _plain(label: Any) -> int | str | None:
    """Return a class id or a text; None for a fraction, a negative number or an empty text."""
    if isinstance(label, str):
        return label.strip(" \t\r\n") or None
    if label is None or (isinstance(label, float) and not label.is_integer()):
        return None
    return int(label) if 0 <= label <= MAX_LABEL else None


def _open(path: str) -> tuple[pyarrow.Schema, Any]:
    """Return a file's schema, and a function from column names to record batches of few rows."""
    pa = _pyarrow()
    try:
        if path.lower().endswith(".parquet"):
            file = _parquet(path)
            return file.schema_arrow, partial(_parquet_batches, file, path)
        file = _checked_file(path)
        stored = pa.memory_map(path) if isinstance(file, str) else pa.PythonFile(file, mode="r")
        stored.seek(0)
        is_file = stored.read(len(ARROW_FILE)) == ARROW_FILE
        stored.seek(0)
        table = pa.ipc.open_file(stored) if is_file else pa.ipc.open_stream(stored)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no whole arrow file: {error}") from error
    return table.schema, partial(_arrow_batches, table, path)


def _parquet(path: str) -> Any:
    _pyarrow()
    import pyarrow
    from pyarrow import parquet

    try:  # a whole row group may be gigabytes: its pages are read one by one
        file = _checked_file(path)
        return parquet.ParquetFile(file, pre_buffer=False, buffer_size=READ_BUFFER_BYTES)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is no whole parquet file: {error}") from error


def _checked_file(path: str) -> str | BinaryIO:
    """Return what pyarrow reads a file from, once its first bytes are those of a table."""
    file = open_stored(path)
    try:
        refuse_stand_in(file.read(FIRST_BYTES), name=path)
        return file if is_remote(path) else path
    finally:
        if not is_remote(path):
            file.close()


def _parquet_batches(file: Any, path: str, columns: list[str]) -> Iterator[pyarrow.RecordBatch]:
    batches = file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns, use_threads=False)
    yield from _checked(batches, path)


def _arrow_batches(table: Any, path: str, columns: list[str] | None) -> Iterator[pyarrow.RecordBatch]:
    stored = iter(table) if hasattr(table, "__iter__") else (table.get_batch(i) for i in range(table.num_record_batches))
    for batch in _checked(stored, path):
        chosen = batch if columns is None else batch.select(columns)
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

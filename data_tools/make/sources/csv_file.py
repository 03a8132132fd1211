"""List a CSV, TSV or JSON-lines file of image paths and labels: a number, a name, or several of either for an image.

The file and the images may be in a store or on a web server.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import unquote

from data_tools import splits
from data_tools.ahead import map_ahead
from data_tools.make.sources.files import extension_of, image_extension
from data_tools.make.sources.labels import read_number
from data_tools.make.sources.listing import Listing, Member
from data_tools.make.sources.listing_builder import ListingBuilder
from data_tools.make.sources.named_files import NamedFiles
from data_tools.make.sources.split_columns import ANSWER, Survey
from data_tools.make.sources.stored import Entry, find_extension, join, open_stored, split_path
from data_tools.text_files import ADVICE, find_encoding, is_text
from pipeline.console.progress import track
from pipeline.data.shards.folder import CONCURRENT_QUESTIONS, is_remote
from pipeline.data.shards.sample import IMAGE_EXTENSIONS
from pipeline.data.shards.web import is_web
from pipeline.data.stand_ins import refuse_stand_in
from pipeline.errors import DataError
from pipeline.json_text import parse_json

CSV_SUFFIXES = (".csv", ".tsv", ".jsonl")
PATH_NAMES = (
    "path", "file_name", "filename", "file", "filepath", "filepaths", "image_path", "img_path", "image", "image_name",
    "img", "image_id", "id",
)  # fmt: skip
LABEL_NAMES = ("label", "labels", "class", "classes", "class_name", "category", "target", "tags")
DELIMITERS = (",", ";", "\t", "|")

Row = tuple[int, list[str]]  # line number, cells


@dataclass(frozen=True)
class CsvOptions:
    """Holds what the user says about a CSV file."""

    image_column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    image_folder: str | None = None  # path or URL; paths are relative to it; the file's own folder if not given
    encoding: str | None = None
    wanted_splits: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Columns:
    """Says which column of a row holds what."""

    width: int
    has_header: bool
    names: tuple[str, ...]
    path: int
    label: int


class _Image(NamedTuple):
    """Describes a file that a row names."""

    name: str
    extension: str
    entry: Entry


def list_csv(path: str, options: CsvOptions) -> Listing:
    """Return the images that a file names, by paths relative to it.

    The first line is a header if its first cell neither is a file nor ends like an image, or if a column is asked for by
    name. All labels of the file are numbered, those of other splits too, so that its splits agree.

    Args:
        path: of the file, or its URL.

    Raises:
        DataError: several splits, or naming the line that is not a path and a label, or whose file is not there.
    """
    files = NamedFiles(split_path(path)[0] if options.image_folder is None else options.image_folder)
    with _open(path, options) as rows:
        first = next(rows, None)
        if first is None:
            raise DataError(f"{path} is empty")
        columns = _find_columns(path, first[1], options, files)
        selected = _Selection(path, columns, options, rows if columns.has_header else chain([first], rows))

    def find(row: Row) -> _Image | None:
        line, cells = row
        if not selected.holds(cells):
            return None
        if not _split_labels(cells[columns.label], options.label_separator):
            raise DataError(f"{path} line {line}: no label")
        return _find_image(path, line, cells[columns.path], files, options)

    builder = ListingBuilder()
    with _open(path, options) as rows:
        if columns.has_header:
            next(rows)
        tracked = track(rows, description="list images", unit="image")
        threads = CONCURRENT_QUESTIONS if is_web(files.folder) else 1
        for (line, cells), image in map_ahead(find, tracked, threads=threads):
            labels = _split_labels(cells[columns.label], options.label_separator)
            if image is None:
                builder.note_labels(labels)
                continue
            builder.add(image.name, labels=labels, members=(Member(image.extension, 0, 0, image.entry.num_bytes),), row=line)
            builder.note_time(image.name, image.entry.version)
    if not len(builder):
        raise DataError(f"{path} names no images")
    return builder.build(layout="files", files=(files.folder,), origins=(path,))


class _Selection:
    """Selects the rows of the wanted split. It reads all rows once, before any image is listed."""

    def __init__(self, path: str, columns: _Columns, options: CsvOptions, rows: Iterator[Row]) -> None:
        self._columns = columns
        others = [i for i in range(columns.width) if i not in (columns.path, columns.label)]
        names = [columns.names[i] if columns.has_header else f"number {i + 1}" for i in others]
        survey = Survey(names, has_names=columns.has_header, wanted=options.wanted_splits)
        in_paths: Counter[splits.SplitName | None] = Counter()
        for line, cells in rows:
            if len(cells) != columns.width:
                raise DataError(f"{path} line {line}: {len(cells)} cells, not a path and a label as in line 1")
            if not is_text(cells[columns.label]) or "\0" in "".join(cells):
                raise DataError(f"{path} line {line}: bytes that are no UTF-8; {ADVICE}")
            survey.add([cells[i] for i in others])
            in_paths[splits.parse_path(cells[columns.path])] += 1
        self._chosen = survey.choose(source=path)
        if self._chosen is not None:
            teller = self._chosen.teller
            self._split_columns = [others[names.index(name)] for name in teller.names]
            return
        wanted, found = options.wanted_splits, splits.name_counts(in_paths)
        self._in_paths = splits.choose(
            found, wanted, source=path, unit="rows", answer=ANSWER, unmarked=splits.unmarked_rule(in_paths)
        )
        splits.check_found(wanted, found, source=path)

    def holds(self, cells: list[str]) -> bool:
        """Return whether a row belongs to the wanted split."""
        if self._chosen is not None:
            return self._chosen.holds([cells[i] for i in self._split_columns])
        return self._in_paths is None or splits.path_in(cells[self._columns.path], self._in_paths)


@contextmanager
def _open(path: str, options: CsvOptions) -> Iterator[Iterator[Row]]:
    try:
        with open_stored(path) as file:
            start = file.read(1 << 16)
        if start:
            refuse_stand_in(start, name=path)
        encoding = find_encoding(start) or options.encoding or "utf-8"
        # File names may be bytes of any kind. Labels may not; that is checked where they are read.
        errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
        with io.TextIOWrapper(open_stored(path), newline="", encoding=encoding, errors=errors) as file:
            if extension_of(path) == "jsonl":
                yield _objects(path, file, separator=options.label_separator or ";")
                return
            yield _rows(path, file, delimiter=_find_delimiter(path, start.decode(encoding, "replace")))
    except UnicodeError as error:
        raise DataError(f"{path}: bytes that are not {options.encoding or 'UTF-8'} ({error}); {ADVICE}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _find_delimiter(path: str, start: str) -> str:
    """Return the tab for a .tsv; for a .csv the comma, or what else cuts the first line where it has no comma."""
    if extension_of(path) == "tsv":
        return "\t"
    line = start.partition("\n")[0]
    return next((delimiter for delimiter in DELIMITERS if delimiter in line), ",")


def _rows(path: str, file: Iterator[str], *, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(file, delimiter=delimiter)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path} line {reader.line_num}: {error}") from error
        if cells is None:
            return
        if any(cells):
            yield reader.line_num, [cell.strip(" \t\r\n") for cell in cells]


def _objects(path: str, file: Iterator[str], *, separator: str) -> Iterator[Row]:
    """Yield lines of JSON objects (metadata.jsonl) as a table's rows: the first one's keys, then each one's values."""
    names: list[str] = []
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            values = parse_json(text)
        except ValueError as error:
            raise DataError(f"{path} line {line}: no JSON: {error}") from error
        if not isinstance(values, dict):
            raise DataError(f"{path} line {line}: not an object, as {{file_name: ..., label: ...}} is")
        if not names:
            names = list(values)
            yield 0, names
        yield line, [_cell(values.get(name), separator) for name in names]


def _cell(value: Any, separator: str) -> str:
    if isinstance(value, list):
        return separator.join(_cell(one, separator) for one in value)
    return "" if value is None else value.strip(" \t\r\n") if isinstance(value, str) else json.dumps(value)


def _find_columns(path: str, first: list[str], options: CsvOptions, files: NamedFiles) -> _Columns:
    if len(first) < 2:
        raise DataError(f"{path} line 1: 1 cells, not a path and a label")
    is_asked = options.image_column is not None or options.label_column is not None
    looks_like_image = image_extension(first[0]) is not None or files.find(files.relative(first[0])) is not None
    if not is_asked and looks_like_image:
        return _Columns(len(first), False, tuple(first), 0, 1)
    names = [name.lower() for name in first]
    columns: list[int] = []
    for asked, known, option in (
        (options.image_column, PATH_NAMES, "--image-column"),
        (options.label_column, LABEL_NAMES, "--label-column"),
    ):
        wanted = known if asked is None else (asked.lower(),)
        column = next((names.index(name) for name in wanted if name in names), None)
        if column is None and (asked is not None or len(names) != 2):
            raise DataError(
                f"{path}: no column {' or '.join(wanted)} among {', '.join(first)} in its header; name it with {option}"
            )
        columns.append(len(columns) if column is None else column)
    if columns[0] == columns[1]:
        raise DataError(
            f"{path}: column {first[columns[0]]!r} cannot be both path and label; see --image-column, --label-column"
        )
    return _Columns(len(first), True, tuple(first), columns[0], columns[1])


def _find_image(path: str, line: int, cell: str, files: NamedFiles, options: CsvOptions) -> _Image:
    """Return the file that a cell names: as it is, in the file's encoding, or without its ending as in lists of ids."""
    name = files.relative(cell)
    names = [name]
    if options.encoding is not None:
        names.append(os.fsdecode(name.encode(options.encoding, "replace")))
    if files.is_quoted(cell):
        names.append(unquote(name))
    if image_extension(name) is None:
        names += [f"{name}.{extension}" for extension in IMAGE_EXTENSIONS]
    for candidate in names:
        entry = files.find(candidate)
        if entry is None:
            continue
        image_path = join(files.folder, candidate)
        extension = find_extension(image_path, entry.num_bytes)
        if extension is None:
            raise DataError(f"{path} line {line}: {image_path} does not end like an image, and does not begin like one")
        return _Image(candidate, extension, entry)
    reason = "is no file" if files.exists(name) else "No such file or directory"
    raise DataError(f"{path} line {line}: {_where(cell, files)}: {reason}; {_advice(cell, options)}")


def _where(cell: str, files: NamedFiles) -> str:
    return cell if is_remote(cell) else join(files.folder, cell)


def _advice(cell: str, options: CsvOptions) -> str:
    if is_remote(cell) and "?" in cell:
        return "a URL with a query, such as a signed one, is not read; give the store's own (s3://...) with credentials"
    if is_remote(cell):
        return "where cells are URLs, give what all of them begin with as --image-folder (https://host/folder, s3://bucket)"
    folder = "the file" if options.image_folder is None else options.image_folder
    return f"paths are relative to {folder}, or give their folder with --image-folder"


def _split_labels(text: str, separator: str | None) -> list[str]:
    if separator is not None:
        parts = text.split(separator)
    elif ";" in text:
        parts = text.split(";")
    else:
        words = text.split(" ")
        parts = words if all(read_number(word.lstrip("-")) is not None for word in words if word) else [text]
    return [part.strip(" \t\r\n") for part in parts if part.strip(" \t\r\n")]

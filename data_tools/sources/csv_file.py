"""A CSV or TSV file of image paths and labels: a number, a name, or several of either for an image."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from data_tools.sources.listing import MAX_LABEL, Listing, ListingBuilder, Member
from pipeline.data.sample import IMAGE_EXTENSIONS
from pipeline.errors import DataError
from pipeline.progress import track

CSV_SUFFIXES = (".csv", ".tsv")
PATH_NAMES = ("path", "file_name", "filename", "file", "filepath", "image_path", "image")
LABEL_NAMES = ("label", "labels", "class", "classes", "class_name", "category", "target", "tags")

Row = tuple[int, list[str]]  # line number, cells


def list_csv(path: Path, *, image_column: str | None, label_column: str | None, label_separator: str | None) -> Listing:
    """The images that a file names, by paths relative to it.

    The first line is a header if its first cell does not end like an image, or if a column is asked for by name.

    Args:
        label_separator: what stands between the labels of one image. If not given: `;`, and spaces between numbers (in
            a class's name a space belongs to it).

    Raises:
        DataError: naming the line that is not a path and a label, or whose file is not there.
    """
    builder = ListingBuilder()
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = _rows(path, file)
        first = next(rows, None)
        if first is None:
            raise DataError(f"{path} is empty")
        is_header = image_column is not None or label_column is not None or _extension(first[1][0]) not in IMAGE_EXTENSIONS
        path_cell, label_cell = _find_columns(path, first[1], image=image_column, label=label_column) if is_header else (0, 1)
        for line, cells in track(rows if is_header else chain([first], rows), description="list images", unit="image"):
            if len(cells) != len(first[1]) or len(cells) < 2:
                raise DataError(f"{path} line {line}: {len(cells)} cells, not a path and a label as in line 1")
            member = _member(path, line, cells[path_cell])
            labels = _split_labels(cells[label_cell], label_separator)
            if not labels:
                raise DataError(f"{path} line {line}: no label")
            builder.add(cells[path_cell], labels=labels, members=(member,))
    if not len(builder):
        raise DataError(f"{path} names no images")
    return _number(builder.build(layout="files", files=(str(path.parent),)), path)


def _rows(path: Path, file: Iterator[str]) -> Iterator[Row]:
    reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path} line {reader.line_num}: {error}") from error
        if cells is None:
            return
        if cells:
            yield reader.line_num, [cell.strip() for cell in cells]


def _find_columns(path: Path, header: list[str], *, image: str | None, label: str | None) -> tuple[int, int]:
    names = [name.lower() for name in header]
    places: list[int] = []
    for asked, known, option in ((image, PATH_NAMES, "--image-column"), (label, LABEL_NAMES, "--label-column")):
        wanted = known if asked is None else (asked.lower(),)
        place = next((names.index(name) for name in wanted if name in names), None)
        if place is None and (asked is not None or len(names) != 2):
            raise DataError(
                f"{path}: no column {' or '.join(wanted)} among {', '.join(header)} in its header; name it with {option}"
            )
        places.append(len(places) if place is None else place)
    if places[0] == places[1]:
        raise DataError(
            f"{path}: column {header[places[0]]!r} cannot be both path and label; see --image-column, --label-column"
        )
    return places[0], places[1]


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].removeprefix(".").lower()


def _member(path: Path, line: int, name: str) -> Member:
    extension = _extension(name)
    if extension not in IMAGE_EXTENSIONS:
        raise DataError(f"{path} line {line}: {name!r} does not end like an image ({', '.join(IMAGE_EXTENSIONS)})")
    place = os.path.join(path.parent, name)
    try:
        return Member(extension, 0, 0, os.stat(place).st_size)
    except OSError as error:
        raise DataError(f"{path} line {line}: {place}: {error.strerror}; paths are relative to the file") from error


def _split_labels(text: str, separator: str | None) -> list[str]:
    if separator is not None:
        parts = text.split(separator)
    elif ";" in text:
        parts = text.split(";")
    else:
        words = text.split()
        parts = words if all(word.lstrip("-").isdecimal() for word in words) else [text]
    return [part.strip() for part in parts if part.strip()]


def _number(listing: Listing, path: Path) -> Listing:
    """Labels that are all numbers are class ids, not names."""
    names = listing.classes or ()
    if not all(name.lstrip("-").isdecimal() for name in names):
        return listing
    values = [int(name) for name in names]
    if strange := [value for value in values if not 0 <= value <= MAX_LABEL]:
        raise DataError(f"{path}: label {strange[0]} is no class number; they begin at 0")
    return listing.relabel(np.array(values), None)

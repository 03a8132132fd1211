"""Recognise a source that is a list of images and labels."""

from __future__ import annotations

from data_tools.make.sources import csv_file
from data_tools.make.sources.options import SourceOptions
from data_tools.make.sources.source import Source


def recognise_csv(path: str, options: SourceOptions) -> Source:
    """Describe a list as a source.

    Args:
        path: of the file, or its URL.
    """
    of_file = csv_file.CsvOptions(
        image_column=options.image_column,
        label_column=options.label_column,
        label_separator=options.label_separator,
        image_folder=None if options.image_folder is None else options.image_folder.rstrip("/") or "/",
        encoding=options.encoding,
        wanted_splits=options.wanted_splits,
    )
    return Source("CSV", None, lambda scratch, workers: csv_file.list_csv(path, of_file))

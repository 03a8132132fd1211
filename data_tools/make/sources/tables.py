"""Recognise a source that is Parquet or Arrow files, and choose the files of a split."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from data_tools import splits
from data_tools.make.sources import table
from data_tools.make.sources.options import SourceOptions
from data_tools.make.sources.source import Source
from data_tools.make.sources.split_choice import CHOOSE
from data_tools.make.sources.stored import file_name, split_path
from data_tools.make.sources.unpack import stamp_files


def recognise_tables(paths: Sequence[str], options: SourceOptions) -> Source:
    """Recognise what tables hold, by their names alone.

    Args:
        paths: on this machine or in a store; one, or those of a folder.

    Raises:
        DataError: several splits at once.
    """
    groups = splits.group_files(map(file_name, paths))
    taken = splits.choose(
        {split: len(names) for split, names in groups.items()},
        options.wanted_splits,
        source=split_path(paths[0])[0] if len(paths) > 1 else paths[0],
        unit="files",
        answer=CHOOSE,
    )
    chosen = [path for path in paths if taken is None or splits.split_of_file(file_name(path)) in taken]
    others = [path for path in paths if path not in chosen and not splits.is_cache(file_name(path))]
    stamp = stamp_files([*chosen, *others], "table", options.image_column, options.label_column, options.wanted_splits)
    return Source(
        "Parquet or Arrow files",
        stamp,
        partial(
            table.list_tables,
            chosen,
            stamp=stamp,
            image_column=options.image_column,
            label_column=options.label_column,
            wanted_splits=options.wanted_splits,
            others=others,
            file_splits=tuple(groups),
        ),
    )

"""Columns of yes and no that contain splits are understood where they say one thing, asked about where they say two or none."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.make.sources.split_columns import flag_of
from pipeline.errors import DataError
from tests.data_tools.make.test_labels import JPEG, list_source, write_images

FLAGS = {
    "is_train": "train", "isTrain": None, "is_training": "training", "for_test": "test", "in_val": "val", "train": "train",
    "test": "test", "Val": "val", "split": None, "training_time": None, "is_cat": None, "trained": None,
}  # fmt: skip


@pytest.mark.parametrize("name", FLAGS)
def test_columns_that_are_about_a_split(name: str) -> None:
    assert flag_of(name) == (FLAGS[name] or ("train" if name == "isTrain" else None))


def typed_values(values: Sequence[str]) -> list[bool] | list[int] | list[str]:
    """Return values as the writer of a table has them."""
    if {*values} <= {"true", "false"}:
        return [value == "true" for value in values]
    return [int(value) for value in values] if all(value.isdigit() for value in values) else list(values)


def write(folder: Path, kind: str, columns: dict[str, Sequence[str]]) -> Path:
    """Write a list or a table of images 0, 1, 2 ... with these columns; image i has label i."""
    count = len(next(iter(columns.values())))
    if kind == "csv":
        write_images(folder, count)
        with (folder / "x.csv").open("w", newline="") as file:
            rows = [[f"{i}.jpg", str(i), *(values[i] for values in columns.values())] for i in range(count)]
            csv.writer(file).writerows([["path", "label", *columns], *rows])
        return folder / "x.csv"
    folder.mkdir()
    typed = {name: typed_values(values) for name, values in columns.items()}
    pq.write_table(
        pa.table({"image": [JPEG + bytes([i]) for i in range(count)], "label": range(count), **typed}), folder / "x.parquet"
    )
    return folder / "x.parquet"


ONE = {"is_train": ["1", "0", "1", "0", "1"]}
THREE = {"train": ["1", "0", "0", "0"], "val": ["0", "1", "0", "0"], "test": ["0", "0", "1", "0"]}
BOTH = {"is_train": ["1", "0", "0"], "is_trainval": ["1", "1", "0"]}

TAKEN = {
    "the flag's split": (ONE, "train", [0, 2, 4]),
    "by another spelling": (ONE, "training", [0, 2, 4]),
    "the others": (ONE, "not-train", [1, 3]),
    "by its value": (ONE, "0", [1, 3]),
    "by column and value": (ONE, "is_train=0", [1, 3]),
    "by column and another value of this meaning": (ONE, "IS_TRAIN=true", [0, 2, 4]),
    "all": (ONE, "train,not-train", [0, 1, 2, 3, 4]),
    "booleans": ({"is_test": ["true", "false", "false"]}, "test", [0]),
    "booleans, the others": ({"is_test": ["true", "false", "false"]}, "is_test=false", [1, 2]),
    "a flag without a prefix": ({"test": ["1", "0"]}, "not-test", [1]),
    "one of several flags": (THREE, "val", [1]),
    "two of several flags": (THREE, "train,val", [0, 1]),
    "rows of no flag": (THREE, "unnamed", [3]),
    "flags that overlap, by column": (BOTH, "is_trainval=1", [0, 1]),
    "any column": ({"country": ["be", "nl", "be"]}, "country=be", [0, 2]),
    "any values of a column": ({"country": ["be", "nl", "fr"]}, "country=be,country=fr", [0, 2]),
    "a column of splits before flags": ({"is_train": ["1", "1", "0"], "split": ["train", "val", "test"]}, "val", [1]),
    "flags where they alone have the split": ({"fold": ["0", "1", "2"], "is_train": ["1", "1", "0"]}, "train", [0, 1]),
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("case", TAKEN)
def test_rows_of_a_split_are_taken(tmp_path: Path, case: str, kind: str) -> None:
    columns, split, expected = TAKEN[case]
    listing = list_source(write(tmp_path / "x", kind, columns), tmp_path / "scratch", split=split)
    assert [listing.sample(i).labels for i in range(len(listing))] == [[label] for label in expected]


ASKED = {
    "a flag": (ONE, None, r"column 'is_train' of .* holds the splits train \(3 rows\), not-train \(2 rows\); choose one with"),
    "several flags": (
        THREE,
        None,
        r"columns 'train', 'val', 'test' of .* holds the splits train \(1 row\), val .* unnamed \(1 row\)",
    ),
    "a split that the flag does not name": (
        ONE,
        "test",
        r"column 'is_train' of .* holds no split 'test'; it holds train, not-train",
    ),
    "flags that overlap": (
        BOTH,
        "train",
        r"1 rows are of several splits at once \(is_train=1 and is_trainval=1\); .*--source-split is_train=1",
    ),
    "a column that is not there": (ONE, "is_tran=1", r"has no column 'is_tran'; it has is_train"),
    "a value that is not there": (ONE, "is_train=2", r"column 'is_train' of .* holds no '2'; it holds"),
    "two columns": (BOTH, "is_train=1,is_trainval=1", r"rows are chosen by one column alone, as is_train=1"),
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("case", ASKED)
def test_what_is_not_clear_is_asked(tmp_path: Path, case: str, kind: str) -> None:
    columns, split, message = ASKED[case]
    with pytest.raises(DataError, match=message):
        list_source(write(tmp_path / "x", kind, columns), tmp_path / "scratch", split=split)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("columns", [{"test": ["0.5", "1"]}, {"is_train": ["1", "1"]}, {"train": ["1", "2"]}])
def test_columns_that_tell_nothing_are_left_alone(tmp_path: Path, kind: str, columns: dict[str, list[str]]) -> None:
    """There is a score, one split alone, and a number of trains."""
    assert len(list_source(write(tmp_path / "x", kind, columns), tmp_path / "scratch")) == 2

"""No split by name becomes a class or is merged with another, whatever kind of source names them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.__main__ import main
from data_tools.make.classes import Numbering, number_classes
from data_tools.make.sources import find_source
from data_tools.make.sources.listing import Listing
from data_tools.make.sources.options import SourceOptions
from data_tools.parallel import LocalWorkers
from data_tools.splits import are_splits, is_split_column, parse_split, split_of_file, splits_among_classes
from pipeline.data.shards.index import load_index
from pipeline.errors import DataError
from tests.conftest import write_tar

JPEG = b"\xff\xd8\xff\xe0 not looked at any further"

MEANINGS = {
    "train": "train", "Training": "train", "train2017": "train", "train_00001": "train", "trainset": "train",
    "train_images": "train",
    "TrainImages": "train", "ILSVRC2012_img_train": "train", "x-TRAIN-y": "train", "imagenet22k-train-0001": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "val2014": "val", "flowers_valid": "val",
    "test": "test", "testing": "test", "test_images": "test", "TestSet": "test", "t10k": None, "eval": "eval",
    "holdout": "holdout",
    "hold-out": "holdout", "trainval": "trainval", "train_val": "trainval", "train-validation": "trainval",
    "test-dev2017": "testdev",
    "contest": None, "detrain": None, "latest": None, "validity": None, "trainer": None, "develop": None, "n01440764": None,
}  # fmt: skip


@pytest.mark.parametrize("name", MEANINGS)
def test_a_split_is_a_word_of_a_name(name: str) -> None:
    found = parse_split(name)
    assert (None if found is None else found.split) == MEANINGS[name]


CLASS_NAMES: dict[str, tuple[list[str], list[str]]] = {  # names next to each other, and those that are splits
    "splits": (["train", "val"], ["train", "val"]),
    "splits and others": (["annotations", "test", "train"], ["test", "train"]),
    "of a set": (["flowers_test", "flowers_train", "labels"], ["flowers_test", "flowers_train"]),
    "years": (["train2014", "val2014"], ["train2014", "val2014"]),
    "alone": (["train"], ["train"]),
    "a vehicle": (["bicycle", "bus", "car", "train"], []),
    "two vehicles": (["bus", "freight_train", "passenger_train"], []),
    "tubes": (["beaker", "flask", "test_tube", "train"], []),
}


@pytest.mark.parametrize("case", CLASS_NAMES)
def test_a_split_among_many_classes_is_a_class(case: str) -> None:
    names, expected = CLASS_NAMES[case]
    assert splits_among_classes(names) == expected


def test_files_of_a_split() -> None:
    assert split_of_file("flowers-train-00000-of-00002.arrow") == "train"
    assert split_of_file("train-00000-of-00002.parquet") == "train"
    assert split_of_file("data-00000-of-00002.arrow") == "data"
    assert split_of_file("cache-ed205e500a7dc44c.arrow") == "cache-ed205e500a7dc44c"
    assert split_of_file("cache-ed205e500a7dc44c_00001_of_00004.arrow") == "cache-ed205e500a7dc44c"
    assert split_of_file("imagenet1k-validation-07.tar") == "validation"
    assert split_of_file("0001.parquet") == ""


def test_columns_of_splits() -> None:
    assert all(map(is_split_column, ["split", "Subset", "fold", "is_train", "is_training_image", "IsTest", "set", "Usage"]))
    assert not any(map(is_split_column, ["label", "is_red", "testosterone", "training_cost", "settings"]))
    assert are_splits(["train", "valid", ""])
    assert not are_splits(["train", "bus"])
    assert not are_splits(["train"])


def image_folder(root: Path, names: Sequence[str]) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG)


def table(path: Path, columns: dict[str, Sequence[Any]]) -> None:
    rows = len(next(iter(columns.values())))
    pq.write_table(pa.table({"image": [JPEG + bytes([i]) for i in range(rows)], **columns}), path)


def tables(names: Sequence[str]) -> Callable[[Path], None]:
    return lambda root: [table(root / name, {"label": [0, 1]}) for name in names] and None


def samples(names: Sequence[str], keys: Sequence[str] = ("0", "1")) -> Callable[[Path], None]:
    """Write WebDataset tars of these names."""
    members = [(f"{key}.{kind}", data) for key in keys for kind, data in (("jpg", JPEG), ("cls", b"1"))]
    return lambda root: [write_tar(root / name, members) for name in names] and None


def unlabelled(names: Sequence[str]) -> Callable[[Path], None]:
    return lambda root: [write_tar(root / name, [("0.jpg", JPEG)]) for name in names] and None


def folders(*names: str) -> Callable[[Path], None]:
    return lambda root: image_folder(root, names)


def csv_of(rows: Sequence[Sequence[str]]) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        image_folder(root, [row[0] for row in rows if row[0].endswith(".jpg")])
        with (root / "list.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)

    return write


def saved_to_disk(root: Path) -> None:
    """Write a DatasetDict as `datasets` saves it: a folder of .arrow files a split."""
    for split in ("test", "train"):
        (root / split).mkdir()
        table(root / split / "data-00000-of-00001.parquet", {"label": [0, 1]})


REFUSED: dict[str, tuple[Callable[[Path], None], str, str]] = {  # what is written, what is given, what the answer names
    "tables": (
        tables(["x-test.parquet", "x-train.parquet"]),
        "",
        r"test \(1 file\), train \(1 file\); choose .* --source-split",
    ),
    "tables and one more": (tables(["extra.parquet", "train.parquet"]), "", r"unnamed \(1 file\), train \(1 file\)"),
    "caches": (tables(["x-train.parquet", "cache-0123456789abcdef.parquet"]), "", r"cache-0123456789abcdef \(1 file\), train"),
    "parts of two": (
        tables([f"a-0000{i}-of-00002.parquet" for i in (0, 1)] + ["b-00000-of-00001.parquet"]),
        "",
        r"a \(2 files\), b",
    ),
    "tars": (
        samples(["in-train-0.tar", "in-train-1.tar", "in-validation-0.tar"]),
        "",
        r"train \(2 tars\), validation \(1 tar\)",
    ),
    "in tars": (samples(["0.tar"], ["train/0", "val/0", "val/1"]), "", r"train \(1 sample\), val \(2 samples\)"),
    "folders": (
        folders("train/a/0.jpg", "train/b/0.jpg", "val/a/0.jpg"),
        "",
        r"splits train/ \(2 folders\), val/ .*--source-split",
    ),
    "flat folders": (
        folders("test_images/0.jpg", "train_images/0.jpg"),
        "",
        r"splits test_images/.*, train_images/ \(1 image\)",
    ),
    "one folder": (folders("train/a/0.jpg", "train/b/0.jpg"), "", r"splits train/ \(2 folders\)"),
    "folders and a list": (folders("annotations/x.txt", "train/a/0.jpg", "train/b/0.jpg"), "", r"splits train/ \(2 folders\)"),
    "a folder on the way": (folders("images/train/a/0.jpg", "images/val/a/0.jpg"), "", r"holds a single folder, images/"),
    "folders behind classes": (
        folders("a/train/0.jpg", "a/test/0.jpg", "b/train/0.jpg"),
        "",
        r"test \(1 sample\), train \(2 samples\)",
    ),
    "a test folder in classes": (
        folders("a/0.jpg", "a/test/0.jpg", "b/0.jpg"),
        "",
        r"unnamed \(2 samples\), test \(1 sample\)",
    ),
    "names in classes": (
        folders("a/train_0.jpg", "a/test_0.jpg", "b/train_1.jpg"),
        "",
        r"test \(1 sample\), train \(2 samples\)",
    ),
    "tables in folders": (saved_to_disk, "", r"splits test/ \(1 file\), train/ \(1 file\); .* Give one of them"),
    "class tars": (unlabelled(["train.tar", "val.tar"]), "", r"tars of the splits train, val"),
    "shards without labels": (unlabelled(["cc3m-train-0000.tar", "cc3m-train-0001.tar"]), "", r"numbered like shards"),
    "one shard without labels": (unlabelled(["cc3m-train-0000.tar"]), "", r"numbered like shards"),
    "numbered tars": (unlabelled(["part_0001.tar", "part_0002.tar", "rest.tar"]), "", r"numbered like shards"),
    "numbered folders": (folders("images_001/a/0.jpg", "images_002/a/0.jpg"), "", r"numbered parts, images_001/"),
    "folds": (folders("fold1/a/0.jpg", "fold1/b/0.jpg", "fold2/a/0.jpg"), "", r"numbered parts, fold1/"),
    "column of a CSV": (
        csv_of([("path", "label", "split"), ("0.jpg", "1", "train"), ("1.jpg", "0", "test")]),
        "list.csv",
        r"column 'split'",
    ),
    "flag of a CSV": (
        csv_of([("path", "label", "is_train"), ("0.jpg", "1", "1"), ("1.jpg", "0", "0")]),
        "list.csv",
        r"column 'is_train'",
    ),
    "fold of a CSV": (
        csv_of([("path", "label", "fold"), ("0.jpg", "1", "3"), ("1.jpg", "0", "4")]),
        "list.csv",
        r"column 'fold'",
    ),
    "values of a CSV": (csv_of([("0.jpg", "cat", "train"), ("1.jpg", "dog", "valid")]), "list.csv", r"column 'number 3'"),
    "paths of a CSV": (csv_of([("train/0.jpg", "1"), ("test/0.jpg", "0")]), "list.csv", r"train \(1 row\), test \(1 row\)"),
    "column": (lambda root: table(root / "x.parquet", {"label": [0, 1], "split": ["train", "test"]}), "", r"column 'split'"),
    "flag": (lambda root: table(root / "x.parquet", {"label": [0, 1], "is_train": [True, False]}), "", r"column 'is_train'"),
    "fold": (lambda root: table(root / "x.parquet", {"label": [0, 1], "fold": [0, 1]}), "", r"column 'fold'"),
    "values": (
        lambda root: table(root / "x.parquet", {"label": [0, 1], "part": ["train", "validation"]}),
        "",
        r"column 'part'",
    ),
}


def list_source(path: Path, scratch: Path, *, known: Sequence[str] = (), **options: Any) -> Listing:
    found = find_source(str(path), options=SourceOptions(**options), label_use="keep", known=known)
    return number_classes(found.list(scratch, LocalWorkers(1)), Numbering())[0]


def write(tmp_path: Path, prepare: Callable[[Path], None]) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    prepare(source)
    return source


@pytest.mark.parametrize("case", REFUSED)
def test_several_splits_are_asked_about(tmp_path: Path, case: str) -> None:
    prepare, name, message = REFUSED[case]
    source = write(tmp_path, prepare)
    with pytest.raises(DataError, match=message):
        list_source(source / name, tmp_path / "scratch")


CHOSEN: dict[str, tuple[str, str, int]] = {  # what is written (of REFUSED), what is chosen, how many samples that are
    "tables": ("tables", "train", 2),
    "several tables": ("tables", "train,test", 4),
    "what names none": ("tables and one more", "train,unnamed", 4),
    "without the caches": ("caches", "train", 2),
    "tars": ("tars", "train", 4),
    "tars, by another spelling": ("tars", "val", 2),
    "in tars": ("in tars", "val", 2),
    "folders": ("folders", "val", 1),
    "folders behind classes": ("folders behind classes", "train", 2),
    "names in classes": ("names in classes", "test", 1),
    "tables in folders": ("tables in folders", "train", 2),
    "column of a CSV": ("column of a CSV", "test", 1),
    "flag of a CSV": ("flag of a CSV", "1", 1),
    "paths of a CSV": ("paths of a CSV", "train", 1),
    "column": ("column", "test", 1),
    "flag": ("flag", "true", 1),
    "fold": ("fold", "0,1", 2),
    "values": ("values", "val", 1),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_the_split_that_is_chosen_is_taken(tmp_path: Path, case: str) -> None:
    of, split, count = CHOSEN[case]
    prepare, name, _ = REFUSED[of]
    source = write(tmp_path, prepare)
    assert len(list_source(source / name, tmp_path / "scratch", split=split)) == count
    with pytest.raises(DataError, match="holds no split 'nonesuch'"):
        list_source(source / name, tmp_path / "scratch", split="nonesuch")


def test_a_train_among_vehicles_is_a_class_and_others_are_where_they_are_named(tmp_path: Path) -> None:
    names = ["bicycle", "bus", "train"]
    source = write(tmp_path, folders(*(f"{name}/0.jpg" for name in names)))
    assert list_source(source, tmp_path / "scratch").classes == tuple(names)
    source = write(tmp_path / "source", folders("test/0.jpg", "train/0.jpg"))
    assert list_source(source, tmp_path / "scratch", known=["test", "train"]).classes == ("test", "train")


def test_classes_of_the_other_split_are_numbered_too(tmp_path: Path) -> None:
    """Test is numbered like train, though one of the classes is in train alone."""
    rows = [("path", "label", "split"), ("0.jpg", "ant", "train"), ("1.jpg", "bee", "train"), ("2.jpg", "bee", "test")]
    source = write(tmp_path, csv_of(rows))
    listing = list_source(source / "list.csv", tmp_path / "scratch", split="test")
    assert listing.classes == ("ant", "bee")
    assert listing.labels.tolist() == [1]


def test_index_takes_one_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path, samples(["in22k-train-0.tar", "in22k-train-1.tar", "in22k-validation-0.tar"]))
    command = ["index", str(source), "--workers", "1"]
    assert main(command) == 2
    assert "splits train (2 tars), validation (1 tar); index one of them with --source-split" in capsys.readouterr().err
    assert not (source / "index.safetensors").exists()
    assert main([*command, "--source-split", "nonesuch"]) == 2
    assert "holds no split 'nonesuch'" in capsys.readouterr().err
    assert main([*command, "--source-split", "train"]) == 0
    assert load_index(str(source)).shard_names == ("in22k-train-0.tar", "in22k-train-1.tar")
    assert main([*command, "--source-split", "validation"]) == 2  # one folder has one index
    assert "holds the index of other tars already (in22k-train-0.tar ...)" in capsys.readouterr().err
    assert load_index(str(source)).num_samples == 4


def test_make_names_the_splits_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path, samples(["train-0.tar", "test-0.tar"]))
    assert main(["make", str(source), str(tmp_path / "made"), "--workers", "1"]) == 2
    assert "splits test (1 tar), train (1 tar); choose one with --source-split" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
    assert main(["make", str(source), str(tmp_path / "made"), "--workers", "1", "--source-split", "train"]) == 0
    assert json.loads((tmp_path / "made" / "make.json").read_text())["report"]["num_samples"] == 2

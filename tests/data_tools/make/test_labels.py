"""Labels are read as sources write them: whole numbers are ids in any form, names are numbered, anything else is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.make.classes import Numbering, number_classes
from data_tools.make.pack import make_shards
from data_tools.make.plan import MakeOptions
from data_tools.make.sources import find_source
from data_tools.make.sources.listing import Listing
from data_tools.make.sources.options import SourceOptions
from data_tools.make.write_shard import label_member
from data_tools.parallel import LocalWorkers
from pipeline.data.shards.sample import parse_label
from pipeline.errors import DataError
from tests.conftest import write_tar

JPEG = b"\xff\xd8\xff\xe0 not looked at any further"

STORED: dict[bytes, int | None] = {
    b"7": 7, b"007": 7, b"000": 0, b" 7\r\n": 7, b"\xef\xbb\xbf7": 7, b"+7": 7, b'"12"': 12, b"7.0": 7, b"\xff\xfe7\x00": 7,
    b'{"label": 7}': 7, b'{"label": "7"}': 7, b'{"label": 7.0}': 7, b"-1": -1, b"2147483647": 2147483647,
    b"0.87": None, b'{"label": 0.87}': None, b'{"label": "0.87"}': None, b"cat": None, b'"cat"': None, b"": None, b"1 2": None,
    b"[7]": None, b'{"labels": [7]}': 7, b'{"label": null}': None, b"nan": None, b"NaN": None, b"Infinity": None,
    b"1e400": None, b"2147483648": None, b"0x10": None, b"1_000": None, "\u0667".encode(): None, b"[" * 100_000: None,
}  # fmt: skip


@pytest.mark.parametrize("text", STORED, ids=lambda text: repr(text[:20]))
def test_a_stored_label_is_a_whole_number(text: bytes) -> None:
    expected = STORED[text]
    if expected is not None:
        assert parse_label(text, shard="x.tar", key="0") == expected
        return
    with pytest.raises(DataError, match=r"x\.tar: label of sample '0' is .*, not a class number"):
        parse_label(text, shard="x.tar", key="0")


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(JPEG + bytes([number]))


def list_source(path: Path, scratch: Path, numbering: Numbering | None = None, **options: Any) -> Listing:
    numbering = numbering or Numbering()
    is_renumbered = numbering.names is not None or numbering.targets is not None
    known = {*(numbering.names or ()), *(numbering.targets or {})}
    source = find_source(
        str(path), options=SourceOptions(**options), label_use="read" if is_renumbered else "keep", known=known
    )
    return number_classes(source.list(scratch, LocalWorkers(1)), numbering)[0]


def labels_of(listing: Listing) -> list[list[int]]:
    return [listing.sample(number).labels for number in range(len(listing))]


def write_csv(folder: Path, labels: Sequence[str], *, encoding: str = "utf-8") -> Path:
    write_images(folder, len(labels))
    with (folder / "list.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([("path", "label"), *((f"{i}.jpg", label) for i, label in enumerate(labels))])
    return folder / "list.csv"


def write_parquet(folder: Path, labels: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [JPEG + bytes([i]) for i in range(len(labels))], "label": labels}), folder / "x.parquet")
    return folder / "x.parquet"


def write_samples(path: Path, labels: Sequence[bytes], *, kind: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tar(path, [(f"{i}.{end}", data) for i, label in enumerate(labels) for end, data in (("jpg", JPEG), (kind, label))])
    return path


TEXTS: dict[str, tuple[list[str], list[int], tuple[str, ...] | None]] = {  # labels, ids, classes
    "numbers": (["10", "2", "0"], [10, 2, 0], None),
    "floats, as pandas writes them next to missing ones": (["10.0", "2.0", "0.0"], [10, 2, 0], None),
    "with zeros in front": (["010", "002", "000"], [10, 2, 0], None),
    "names": (["cat", "bee", "cat"], [1, 0, 1], ("bee", "cat")),
    "names that are numbers among others": (["a", "10", "2"], [2, 0, 1], ("10", "2", "a")),
}


@pytest.mark.parametrize("kind", ["csv", "parquet", "cls", "json"])
@pytest.mark.parametrize("case", TEXTS)
def test_whole_numbers_are_ids_and_names_are_numbered(tmp_path: Path, kind: str, case: str) -> None:
    texts, ids, classes = TEXTS[case]
    if kind == "csv":
        path = write_csv(tmp_path / "x", texts)
    elif kind == "parquet":
        path = write_parquet(tmp_path / "x", texts)
    else:
        stored = [text.encode() if kind == "cls" else json.dumps({"label": text, "caption": "x"}).encode() for text in texts]
        path = write_samples(tmp_path / "x" / "x.tar", stored, kind=kind)
    listing = list_source(path, tmp_path / "scratch")
    assert labels_of(listing) == [[label] for label in ids]
    assert listing.classes == classes


COLUMNS: dict[str, tuple[Any, list[list[int]], tuple[str, ...] | None]] = {
    "floats": (pa.array([10.0, 2.0]), [[10], [2]], None),
    "booleans": (pa.array([True, False]), [[1], [0]], None),
    "a dictionary of names": (pa.array(["cat", "bee"]).dictionary_encode(), [[1], [0]], ("bee", "cat")),
    "a dictionary of numbers": (pa.array([7, 3]).dictionary_encode(), [[7], [3]], None),
    "views": (pa.array(["cat", "bee"], pa.string_view()), [[1], [0]], ("bee", "cat")),
    "large texts": (pa.array(["cat", "bee"], pa.large_string()), [[1], [0]], ("bee", "cat")),
    "small numbers": (pa.array([7, 3], pa.uint8()), [[7], [3]], None),
    "lists of numbers as texts": (pa.array([["10", "2"], ["0"]]), [[10, 2], [0]], None),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns_of_every_type_are_read(tmp_path: Path, case: str) -> None:
    column, ids, classes = COLUMNS[case]
    listing = list_source(write_parquet(tmp_path, column), tmp_path / "scratch")
    assert (labels_of(listing), listing.classes) == (ids, classes)


def test_columns_of_images_of_every_type_are_read(tmp_path: Path) -> None:
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        table = pa.table({"image": pa.array([JPEG, JPEG + b"1"], kind), "label": [1, 0]})
        pq.write_table(table, tmp_path / "x.parquet")
        assert len(list_source(tmp_path / "x.parquet", tmp_path / f"scratch-{kind}")) == 2


def test_a_part_without_rows_is_passed_over(tmp_path: Path) -> None:
    write_parquet(tmp_path / "parts", [3, 4])
    empty = pa.table({"image": pa.array([], pa.null()), "label": pa.array([], pa.null())})  # types are unknown to its writer
    pq.write_table(empty, tmp_path / "parts" / "a.parquet")
    assert labels_of(list_source(tmp_path / "parts", tmp_path / "scratch")) == [[3], [4]]
    pq.write_table(empty, tmp_path / "parts" / "x.parquet")
    with pytest.raises(DataError, match="no rows in 2 files"):
        list_source(tmp_path / "parts", tmp_path / "scratch")


REFUSED: dict[str, tuple[str, list[str], str]] = {
    "fractions": ("csv", ["0.87", "0.12"], r"label 0\.\d+ is no class number"),
    "negative numbers": ("csv", ["3", "-1"], r"label -1 is no class number"),
    "a number beyond all": ("csv", ["3", "99999999999"], r"label 99999999999 is no class number"),
    "an empty cell": ("csv", ["3", ""], r"line 3: no label"),
    "a score in .json": ("json", ['{"label": 0.87}'], r"\.json that is no label: 0\.87 is no class"),
    "a score as .cls": ("cls", ["0.87"], r"\.cls that is no label: 0\.87 is no class"),
    "labels that differ": ("json", ['{"label": 3, "labels": [4]}'], r"label \(3\) and labels \(4\) differ: .*--label-field"),
    "no field of that name": ("json", ['{"caption": "x"}'], r"no field 'y'; it has caption"),
    "no JSON": ("json", ["{"], r"\.json that is no label"),
    "bytes that are no text": ("cls", ["\udcff"], r"\.cls that is no label"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_label_is_refused(tmp_path: Path, case: str) -> None:
    kind, texts, message = REFUSED[case]
    if kind == "csv":
        path = write_csv(tmp_path / "x", texts)
    else:
        path = write_samples(tmp_path / "x.tar", [text.encode("utf-8", "surrogateescape") for text in texts], kind=kind)
    with pytest.raises(DataError, match=message):
        list_source(path, tmp_path / "scratch", label_field="y" if "of that name" in case else None)


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_names_in_members_are_mapped(tmp_path: Path, kind: str) -> None:
    texts = [b"dog", b"cat"] if kind == "cls" else [b'{"label": "dog"}', b'{"label": "cat"}']
    path = write_samples(tmp_path / "x.tar", texts, kind=kind)
    assert labels_of(list_source(path, tmp_path)) == [[1], [0]]
    assert labels_of(list_source(path, tmp_path, Numbering(names=("ant", "cat", "dog")))) == [[2], [1]]
    assert labels_of(list_source(path, tmp_path, Numbering(targets={"cat": "5", "dog": "7"}))) == [[7], [5]]
    with pytest.raises(DataError, match="classes dog of the source are not among the 1 classes given with --classes"):
        list_source(path, tmp_path, Numbering(names=("cat",)))
    (tmp_path / "classes.txt").write_text("dog\r\ncat\r\n\r\n", encoding="utf-8-sig")  # the folder's own order
    listing = list_source(path, tmp_path)
    assert (labels_of(listing), listing.classes) == ([[0], [1]], ("dog", "cat"))


def test_a_field_of_json_is_the_label_if_it_is_named(tmp_path: Path) -> None:
    stored = [json.dumps({"label": 1, "class_id": 10 - i, "meta": {"wnid": f"n{i}"}}).encode() for i in range(3)]
    path = write_samples(tmp_path / "x.tar", stored, kind="json")
    assert labels_of(list_source(path, tmp_path)) == [[1]] * 3
    assert labels_of(list_source(path, tmp_path, label_field="class_id")) == [[10], [9], [8]]
    assert list_source(path, tmp_path, label_field="meta.wnid").classes == ("n0", "n1", "n2")
    with pytest.raises(DataError, match=r"no field 'meta\.id'; it has wnid"):
        list_source(path, tmp_path, label_field="meta.id")


def test_sets_of_a_hub_with_class_and_json_members_keep_both(tmp_path: Path) -> None:
    """They are like timm's ImageNet shards: KEY.cls, KEY.jpg, KEY.json with several fields, and a label in both."""
    facts = {"filename": "n01440764_10026.JPEG", "label": 3, "height": 500, "width": 375}
    members = [("n0.cls", b"3"), ("n0.jpg", JPEG), ("n0.json", json.dumps(facts).encode())]
    write_tar(tmp_path / "imagenet1k-train-0000.tar", members)
    listing = list_source(tmp_path / "imagenet1k-train-0000.tar", tmp_path)
    assert labels_of(listing) == [[3]]
    assert [member.extension for member in listing.members(0)] == ["jpg", "json"]
    assert label_member([3], json.dumps(facts).encode()) == {"cls": b"3"}  # the .json stays as it is


def test_a_label_corrected_in_place_is_noticed(tmp_path: Path) -> None:
    """The files keep their sizes: a tar's label, an image folder's picture, a table's column."""
    path = write_samples(tmp_path / "tars" / "x.tar", [b"1", b"2"], kind="cls")
    make_shards(str(path), str(tmp_path / "made"), options=MakeOptions(), workers=LocalWorkers(1))
    assert make_shards(str(path), str(tmp_path / "made"), options=MakeOptions(), workers=LocalWorkers(1)).num_written == 0
    write_samples(path, [b"1", b"3"], kind="cls")
    with pytest.raises(DataError, match=r"what differs: the source's files, labels or classes"):
        make_shards(str(path), str(tmp_path / "made"), options=MakeOptions(), workers=LocalWorkers(1))
    write_images(tmp_path / "images" / "a", 2)
    make_shards(str(tmp_path / "images"), str(tmp_path / "b"), options=MakeOptions(), workers=LocalWorkers(1))
    (tmp_path / "images" / "a" / "0.jpg").write_bytes(JPEG + b"?")
    with pytest.raises(DataError, match=r"what differs: when the source's files were written"):
        make_shards(str(tmp_path / "images"), str(tmp_path / "b"), options=MakeOptions(), workers=LocalWorkers(1))


@pytest.mark.parametrize("kind", ["txt", "label", "index"])
def test_an_image_with_a_caption_or_an_unknown_label_next_to_it_does_not_make_its_tar_a_class(
    tmp_path: Path, kind: str
) -> None:
    for name in ("pets", "wild"):
        write_samples(tmp_path / "source" / f"{name}.tar", [b"3", b"4"], kind=kind)
    listing = list_source(tmp_path / "source", tmp_path / "scratch")
    assert (labels_of(listing), listing.classes) == ([[]] * 4, None)
    assert {member.extension for member in listing.members(0)} == {"jpg", kind}
    named = list_source(
        tmp_path / "source", tmp_path / "scratch", Numbering(names=("pets", "wild"))
    )  # the user says that they are
    assert labels_of(named) == [[0], [0], [1], [1]]

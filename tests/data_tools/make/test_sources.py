"""Every kind of source gives the images and classes that were put into it, and what fits none is refused in words."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from data_tools.make.classes import Numbering, number_classes, read_class_map
from data_tools.make.reencode import Encoding
from data_tools.make.sources import find_source
from data_tools.make.sources.listing import Listing
from data_tools.make.sources.options import SourceOptions
from data_tools.make.write_shard import ShardTask, write_shard
from data_tools.parallel import LocalWorkers
from pipeline.errors import DataError
from tests.conftest import encode, make_image, write_tar

CLASSES = ("owl", "cat", "dog")  # not in sorted order, as metadata may have them
Labelled = tuple[str, bytes]  # class name and image bytes


@pytest.fixture(scope="module")
def images() -> list[Labelled]:
    return [(CLASSES[i % 3], encode(make_image(i, num_classes=3, size=12), format="JPEG")) for i in range(12)]


def list_source(path: Path, scratch: Path, numbering: Numbering | None = None, **options: str) -> Listing:
    label_use = "keep" if numbering is None else "read"
    listing = find_source(str(path), options=SourceOptions(**options), label_use=label_use).list(scratch, LocalWorkers(1))
    return number_classes(listing, numbering or Numbering())[0]


def pack(listing: Listing, folder: Path) -> list[dict[str, bytes]]:
    """Return the samples of a shard of the whole listing, through webdataset's own reader."""
    folder.mkdir()
    task = ShardTask(str(folder / "x.tar"), folder / "x.json", np.arange(len(listing)), listing, Encoding())
    write_shard(task)
    samples = webdataset.WebDataset(str(folder / "x.tar"), shardshuffle=False, empty_check=False)  # type: ignore[attr-defined]
    return list(samples)


def labelled(listing: Listing, folder: Path) -> list[Labelled]:
    """Return class name and image bytes of every sample, as packed."""
    assert listing.classes is not None
    packed = pack(listing, folder)
    return [(listing.classes[int(s["cls"])], next(s[k] for k in ("jpg", "jpeg", "png") if k in s)) for s in packed]


def write_class_tars(folder: Path, images: list[Labelled]) -> None:
    """Write CLASS.tar with plain members; one has dots in its name, one tar holds a file that is not an image."""
    folder.mkdir()
    for name in CLASSES:
        members = [(f"{name}.{i}.v2.JPEG", data) for i, (of, data) in enumerate(images) if of == name]
        write_tar(folder / f"{name}.tar", [*members, *([("readme.txt", b"hello")] if name == "cat" else [])])


@pytest.mark.parametrize("form", ["folder", "outer tar"])
def test_a_tar_a_class(tmp_path: Path, images: list[Labelled], form: str) -> None:
    write_class_tars(tmp_path / "tars", images)
    source = tmp_path / "tars"
    if form == "outer tar":
        source = tmp_path / "whole.tar"
        with tarfile.open(source, "w") as outer:
            for path in sorted((tmp_path / "tars").iterdir(), reverse=True):
                outer.add(path, f"winter/{path.name}")
    before = sorted(tmp_path.rglob("*"))
    listing = list_source(source, tmp_path / "scratch")
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked
    assert listing.classes == ("cat", "dog", "owl")
    assert listing.passed_over == 1
    assert sorted(labelled(listing, tmp_path / "shards")) == sorted(images)


def test_members_of_a_sample_that_lie_apart_are_joined(tmp_path: Path, images: list[Labelled]) -> None:
    pictures = [(f"a/{i:03d}.jpg", data) for i, (_, data) in enumerate(images)]
    labels = [(f"a/{i:03d}.cls", str(i).encode()) for i in range(len(images))]
    write_tar(tmp_path / "x.tar", [*pictures, *reversed(labels)])
    packed = pack(list_source(tmp_path / "x.tar", tmp_path), tmp_path / "shards")
    assert [(int(s["cls"]), s["jpg"]) for s in packed] == [(i, data) for i, (_, data) in enumerate(images)]


def test_members_that_lie_apart_under_a_repeated_key_are_refused(tmp_path: Path) -> None:
    """All images come first, then all labels, and a key twice: it is unknown which label is whose."""
    names = ["0.jpg", "1.jpg", "0.jpg", "0.cls", "1.cls", "0.cls"]
    write_tar(tmp_path / "x.tar", [(name, b"1") for name in names])
    with pytest.raises(DataError, match=r"sample '0' lie apart, and some occur more than once"):
        list_source(tmp_path / "x.tar", tmp_path)


def write_table(
    path: Path, images: list[Labelled], *, image: str = "image", label: str = "label", form: str = "struct"
) -> None:
    """Write a table like `datasets`: few rows a group, class names in the schema's metadata."""
    values = [{"bytes": data, "path": f"{i}.jpg"} if form == "struct" else data for i, (_, data) in enumerate(images)]
    features = {image: {"_type": "Image"}, label: {"names": list(CLASSES), "_type": "ClassLabel"}}
    table = pa.table(
        {
            "caption": ["x"] * len(images),
            image: values,
            label: [CLASSES.index(name) for name, _ in images],
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=5)
        return
    new = pa.ipc.new_stream if form == "struct" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)


@pytest.mark.parametrize("form", ["struct", "binary"])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])  # .arrow as a stream, and as a file of random access
def test_tables(tmp_path: Path, images: list[Labelled], suffix: str, form: str) -> None:
    source = tmp_path / "tables"
    source.mkdir()
    write_table(source / f"train-00000-of-00002{suffix}", images[:7], image="img", label="fine", form=form)
    write_table(source / f"train-00001-of-00002{suffix}", images[7:], image="img", label="fine", form=form)
    write_table(source / f"test-00000-of-00001{suffix}", images[:3], image="img", label="fine", form=form)
    with pytest.raises(DataError, match=r"holds the splits test \(1 file\), train \(2 files\); choose one with --source-split"):
        list_source(source, tmp_path / "scratch")
    listing = list_source(source, tmp_path / "scratch", split="train")
    assert listing.classes == CLASSES
    assert labelled(listing, tmp_path / "shards") == images
    copies = {path: path.stat().st_mtime_ns for path in (tmp_path / "scratch").iterdir()}
    assert len(copies) == 4
    assert list_source(source, tmp_path / "scratch", split="train").digest() == listing.digest()
    assert copies == {path: path.stat().st_mtime_ns for path in (tmp_path / "scratch").iterdir()}  # nothing copied again


def test_tables_without_metadata(tmp_path: Path, images: list[Labelled]) -> None:
    """Names and lists are labels, columns are as requested, and names of several files are numbered as one set."""
    for number, part in enumerate((images[:1], images[1:])):
        columns = {
            "picture": [data for _, data in part],
            "kind": [[name, name] if i else [name, "extra"] for i, (name, _) in enumerate(part)],
        }
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet")
    listing = list_source(tmp_path, tmp_path / "scratch", image_column="picture", label_column="kind")
    assert listing.classes == ("cat", "dog", "extra", "owl")
    packed = pack(listing, tmp_path / "shards")
    assert [s["jpg"] for s in packed] == [data for _, data in images]
    assert [json.loads(s["json"])["labels"] if "json" in s else int(s["cls"]) for s in packed] == [
        [3, 2], [0, 2], *(listing.classes.index(name) for name, _ in images[2:])
    ]  # fmt: skip


def test_without_pyarrow_the_answer_is_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # what an import finds where it is not installed
    with pytest.raises(DataError, match="pip install pyarrow"):
        list_source(tmp_path, tmp_path / "scratch")


CSV_FORMS: dict[str, tuple[str, Callable[[str], str], Any]] = {
    "names": (".csv", lambda name: f",{name} of prey", [f"{name} of prey" for name in CLASSES]),
    "header.csv": (".csv", lambda name: f",{name}", list(CLASSES)),
    "ids": (".tsv", lambda name: f"\t{CLASSES.index(name)}", [0, 1, 2]),
    "several ids": (".csv", lambda name: f",{CLASSES.index(name)} 7", [[0, 7], [1, 7], [2, 7]]),
    "several names": (".csv", lambda name: f",{name};a b", [[name, "a b"] for name in CLASSES]),
}


@pytest.mark.parametrize("form", CSV_FORMS)
def test_csv(tmp_path: Path, images: list[Labelled], form: str) -> None:
    suffix, cell, labels = CSV_FORMS[form]
    (tmp_path / "pictures").mkdir()
    lines = ["Image,Label"] if form.startswith("header") else []
    for number, (name, data) in enumerate(images):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(data)
        lines.append(f"pictures/{number}.jpg{cell(name)}")
    path = tmp_path / f"list{suffix}"
    path.write_text("\n".join(lines))
    listing = list_source(path, tmp_path)
    packed = pack(listing, tmp_path / "shards")
    assert [s["jpg"] for s in packed] == [data for _, data in images]
    found = [json.loads(s["json"])["labels"] if "json" in s else int(s["cls"]) for s in packed]
    if listing.classes is not None:
        found = [[listing.classes[i] for i in ids] if isinstance(ids, list) else listing.classes[ids] for ids in found]
    assert found == [labels[CLASSES.index(name)] for name, _ in images]


def test_a_separator_can_be_named_and_columns_too(tmp_path: Path, images: list[Labelled]) -> None:
    (tmp_path / "0.jpg").write_bytes(images[0][1])
    (tmp_path / "tags.csv").write_text("id,tags,path,split\n1,haze primary,0.jpg,train\n")
    listing = list_source(tmp_path / "tags.csv", tmp_path, label_separator=" ")
    assert listing.classes == ("haze", "primary")
    assert list_source(tmp_path / "tags.csv", tmp_path, label_column="split").classes == ("train",)


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Writes byte strings as Python 2 wrote its strings: what the CIFAR files consist of."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)  # type: ignore[attr-defined]

    dispatch[bytes] = save_string


def dump_like_python_2(value: Any) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def test_cifar(tmp_path: Path) -> None:
    """The layout is CIFAR-100's: pixels arrive exactly, with the requested labels and names."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    batch = {
        b"filenames": [f"image_{i}.png".encode() for i in range(6)],
        b"batch_label": b"training batch 1 of 1",
        b"fine_labels": [0, 1, 2, 0, 1, 2],
        b"coarse_labels": [1, 1, 0, 1, 1, 0],
        b"data": pixels.transpose(0, 3, 1, 2).reshape(6, 3072),
    }
    meta = {b"fine_label_names": [b"apple", b"bee", b"cup"], b"coarse_label_names": [b"thing", b"life"]}
    source = tmp_path / "cifar-100-python"
    source.mkdir()
    for name, value in (("train", batch), ("test", batch), ("meta", meta)):
        (source / name).write_bytes(dump_like_python_2(value))
    listing = list_source(source, tmp_path / "scratch", split="train")
    assert listing.classes == ("apple", "bee", "cup")
    packed = pack(listing, tmp_path / "shards")
    assert np.array_equal(np.stack([np.array(Image.open(io.BytesIO(s["png"]))) for s in packed]), pixels)
    assert [int(s["cls"]) for s in packed] == batch[b"fine_labels"]
    assert packed[3]["__key__"] == "000000003-image_3"
    coarse = list_source(source, tmp_path / "scratch", split="train", label_column="coarse_labels")
    assert coarse.classes == ("thing", "life")
    assert coarse.labels.tolist() == batch[b"coarse_labels"]


class Harm:
    """Calls a function when it is loaded, as a hostile pickle does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_that_calls_functions_is_refused_and_calls_none(tmp_path: Path) -> None:
    (tmp_path / "batches.meta").write_bytes(dump_like_python_2({b"label_names": [b"a"]}))
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Harm(tmp_path / "harm")}, protocol=3))
    with pytest.raises(DataError, match=r"asks for .*mkdir, which no CIFAR file needs"):
        list_source(tmp_path, tmp_path / "scratch")
    assert not (tmp_path / "harm").exists()


def test_classes_are_mapped_merged_and_dropped(tmp_path: Path, images: list[Labelled]) -> None:
    write_class_tars(tmp_path / "tars", images)
    (tmp_path / "map.tsv").write_text("cat\tmammal\ndog\tmammal\nlion\tmammal\n")
    targets = read_class_map(str(tmp_path / "map.tsv"))
    listing = list_source(tmp_path / "tars", tmp_path)
    with pytest.raises(DataError, match="classes owl of the source are not in the class map"):
        number_classes(listing, Numbering(targets=targets))
    mapped, dropped = number_classes(listing, Numbering(targets=targets, unmapped="drop", names=("bird", "mammal")))
    assert dropped == {"owl": 4}
    assert labelled(mapped, tmp_path / "shards") == [("mammal", d) for name in ("cat", "dog") for of, d in images if of == name]
    with pytest.raises(DataError, match="classes mammal"):
        number_classes(listing, Numbering(targets=targets, names=("bird",)))


def test_labels_in_members_and_several_labels_are_mapped_too(tmp_path: Path) -> None:
    labels = ["3", '{"label": 5}', '{"labels": [3, 5, 9]}', '{"labels": [5, 9]}', "9"]
    members = [
        (f"{i}.{kind}", data)
        for i, label in enumerate(labels)
        for kind, data in (("jpg", str(i).encode()), ("cls" if label.isdecimal() else "json", label.encode()))
    ]
    write_tar(tmp_path / "x.tar", members)
    numbering = Numbering(targets={"3": "0", "5": "1", "9": "7"})
    packed = pack(list_source(tmp_path / "x.tar", tmp_path, numbering), tmp_path / "shards")
    assert [s.get("cls") for s in packed] == [b"0", b"1", None, None, b"7"]
    assert [json.loads(s["json"]) for s in packed[1:4]] == [{"label": 5}, {"labels": [0, 1, 7]}, {"labels": [1, 7]}]
    dropping = Numbering(targets={"3": "0", "5": "0"}, unmapped="drop")
    packed = pack(list_source(tmp_path / "x.tar", tmp_path, dropping), tmp_path / "dropped")
    assert [(s["jpg"], s["cls"]) for s in packed] == [(b"0", b"0"), (b"1", b"0"), (b"2", b"0"), (b"3", b"0")]


def numbered_tars(path: Path) -> None:
    for number in range(2):
        write_tar(path / f"train-{number}.tar", [("0.jpg", b"x")])


def both(path: Path) -> None:
    (path / "cat").mkdir()
    write_tar(path / "cat.tar", [("0.jpg", b"x")])


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_text(content) and None


def table_of(columns: dict[str, Any]) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path / "x.parquet")


BAD_SOURCES: dict[str, tuple[Callable[[Path], None], str, dict[str, str]]] = {
    "holds neither class folders": (text("x.txt", "hello"), ".", {}),
    "holds images without labels": (numbered_tars, ".", {}),
    "holds class folders and tars": (both, ".", {}),
    "no images in its 1 class folders": (lambda path: (path / "cat").mkdir(), ".", {}),
    "--label-column has no meaning for .*, which is an image folder": (
        lambda path: (path / "c").mkdir(),
        ".",
        {"label_column": "x"},
    ),
    "line 2: .*gone.jpg: No such file": (text("x.csv", "path,label\ngone.jpg,1\n"), "x.csv", {}),
    "line 2: 1 cells": (text("x.csv", "path,label\ngone.jpg\n"), "x.csv", {}),
    "no column path or .* among a, b, c": (text("x.csv", "a,b,c\n1,2,3\n"), "x.csv", {}),
    "has no column 'image'; choose one of picture, label": (table_of({"picture": [b"x"], "label": [1]}), ".", {}),
    "row 1 has the label -1, which is no class": (table_of({"image": [b"x", b"y"], "label": [1, -1]}), ".", {}),
    "row 0 has no image bytes": (table_of({"image": pa.array([None], pa.binary()), "label": [1]}), ".", {}),
    "holds no split 'val'": (table_of({"image": [b"x"], "label": [1]}), ".", {"split": "val"}),
    "x.parquet is no whole parquet file": (text("x.parquet", "PAR1hello"), ".", {}),
    "batches.meta is not loaded": (
        lambda path: [text(n, "hello")(path) for n in ("batches.meta", "data_batch_1")] and None,
        ".",
        {},
    ),
}


@pytest.mark.parametrize("message", BAD_SOURCES)
def test_bad_sources_are_answered_in_words(tmp_path: Path, message: str) -> None:
    prepare, name, options = BAD_SOURCES[message]
    source = tmp_path / "source"
    source.mkdir()
    prepare(source)
    with pytest.raises(DataError, match=message):
        list_source(source / name, tmp_path / "scratch", **options)

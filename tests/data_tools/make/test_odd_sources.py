"""Sources are read as people have them: leftovers of systems, empty tars, endings of every kind, texts in old encodings."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_tools.__main__ import main
from data_tools.index import index_folder
from data_tools.make.classes import Numbering, number_classes
from data_tools.make.pack import make_shards
from data_tools.make.plan import MakeOptions
from data_tools.make.sources import find_source
from data_tools.make.sources.listing import Listing
from data_tools.make.sources.options import SourceOptions
from data_tools.parallel import LocalWorkers
from pipeline.data.shards.index import load_index
from pipeline.data.shards.reader import BlockReader
from pipeline.errors import DataError
from tests.conftest import encode, make_image, write_tar

JPEG = encode(make_image(0, num_classes=3, size=12), format="JPEG")


def list_source(path: Path, scratch: Path, *, known: Sequence[str] = (), **options: Any) -> Listing:
    source = find_source(str(path), options=SourceOptions(**options), label_use="keep", known=known)
    return number_classes(source.list(scratch, LocalWorkers(1)), Numbering())[0]


def labels_of(listing: Listing) -> dict[str, int]:
    samples = map(listing.sample, range(len(listing)))
    return {sample.name: sample.labels[0] for sample in samples}


def make(source: Path, target: Path, *arguments: str) -> int:
    return main(["make", str(source), str(target), "--workers", "1", *arguments])


def report_of(target: Path) -> dict[str, Any]:
    return json.loads((target / "make.json").read_text())["report"]


def write(path: Path, data: bytes = JPEG) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_folders_that_systems_leave_behind_are_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    for name in ("Adam", "beth"):
        write(source / name / "0.jpg")
        write(source / "__MACOSX" / name / "._0.jpg", b"\0\5\x16\7 AppleDouble")
    for name in (
        "__MACOSX/x.jpg",
        "@eaDir/0.jpg/SYNOFILE_THUMB_S.jpg",
        ".ipynb_checkpoints/0.jpg",
        "lost+found/0.jpg",
        "beth/.0.jpg",
        "beth/@eaDir/0.jpg",
        "beth/__MACOSX/0.jpg",
        "$RECYCLE.BIN/0.jpg",
    ):
        write(source / name)
    write(source / "beth" / "Thumbs.db", b"\xd0\xcf\x11\xe0")
    (source / "aaron").mkdir()
    write(source / "Zoe" / "readme.txt", b"to do")
    assert make(source, tmp_path / "made") == 0
    assert (tmp_path / "made" / "classes.txt").read_text() == "Adam\nbeth\n"
    assert "no classes, for want of images: Zoe, aaron" in capsys.readouterr().out
    report = report_of(tmp_path / "made")
    assert (report["num_samples"], report["without_images"]) == (2, ["Zoe", "aaron"])
    assert (report["num_passed_over"], report["first_passed_over"]) == (1, ["Zoe/readme.txt"])


def test_empty_class_tars_are_no_classes_wherever_they_lie(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_tar(tmp_path / "source" / "n00004475.tar", [])
    for name in ("n01443537", "n01695060"):
        info = [("info.json", b'{"source": "x"}'), ("readme.md", b"hello")] if name == "n01443537" else []
        write_tar(tmp_path / "source" / f"{name}.tar", [*info, (f"{name}_0.JPEG", JPEG), (f"{name}_1.JPEG", JPEG)])
    listing = list_source(tmp_path / "source", tmp_path / "scratch")
    assert listing.classes == ("n01443537", "n01695060")
    assert sorted(labels_of(listing).values()) == [0, 0, 1, 1]
    assert listing.empty_classes == ("n00004475",)
    assert listing.first_passed_over == ("n01443537.tar/info.json", "n01443537.tar/readme.md")


def test_tars_that_share_folders_are_no_classes(tmp_path: Path) -> None:
    """ImageNet-C comes as blur.tar, noise.tar ..., and the classes are folders in them."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("blur", "noise"):
        write_tar(source / f"{name}.tar", [(f"{name}/{wnid}/0.JPEG", JPEG) for wnid in ("n01440764", "n01443537")])
    with pytest.raises(DataError, match=r"n01440764, n01443537 \.\.\. in blur\.tar\), so the folders look like the classes"):
        list_source(source, tmp_path / "scratch")
    assert list_source(source, tmp_path / "scratch", known=("blur", "noise")).classes == ("blur", "noise")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("cat", "dog"):  # folders of a class's own, and one that all have
        write_tar(
            other / f"{name}.tar", [(f"images/{name}-{part}/{part}.jpg", JPEG) for part in range(2)] + [("images/x.jpg", JPEG)]
        )
    assert list_source(other, tmp_path / "scratch").classes == ("cat", "dog")


def test_empty_tars_among_shards_are_passed_over_and_those_of_no_bytes_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_tar(source / "0000.tar", [])
    write_tar(source / "0001.tar", [("0.jpg", JPEG), ("0.cls", b"7")])
    assert list(labels_of(list_source(source, tmp_path / "scratch")).values()) == [7]
    (source / "0002.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 tars of no bytes, 0002\.tar first"):
        list_source(source, tmp_path / "scratch")


ENDINGS = {"a.jfif": "JPEG", "b.JPE": "JPEG", "c.pgm": "PPM", "d": "PNG", "e.image": "WEBP", "f.jpg.1": "JPEG", "g.bmp": "BMP"}


@pytest.mark.parametrize("kind", ["folder", "class tars", "csv"])
def test_images_of_other_endings_or_none_are_known_by_their_content(tmp_path: Path, kind: str) -> None:
    """A file that is not an image is named. Every image arrives and decodes under an ending that readers look for."""
    images = {
        name: encode(make_image(number, num_classes=3, size=12), format=form)
        for number, (name, form) in enumerate(ENDINGS.items())
    }
    others = {"notes.txt": b"hello", "x.jpg.part": JPEG, "raw.nef": b"II*\0" + bytes(40), "empty": b""}
    source = tmp_path / "source"
    if kind == "class tars":
        source.mkdir()
        write_tar(source / "cat.tar", [(f"x/{name}", data) for name, data in (images | others).items()])
    else:
        for name, data in (images | others).items():
            write(source / "cat" / name, data)
    if kind == "csv":
        (source / "cat" / "list.csv").write_text("".join(f"{name},3\n" for name in images))
        source = source / "cat" / "list.csv"
    assert make(source, tmp_path / "made") == 0
    index = load_index(str(tmp_path / "made"))
    packed = [sample.image for block in range(index.num_blocks) for sample in BlockReader(index, capacity=1).read(block)]
    assert sorted(packed) == sorted(images.values())
    for image in packed:
        with Image.open(io.BytesIO(image)) as opened:
            assert opened.size == (12, 12)
    prefix = {"folder": "cat/", "class tars": "cat.tar/x/", "csv": ""}[kind]
    if kind != "csv":
        report = report_of(tmp_path / "made")
        assert (report["num_passed_over"], set(report["first_passed_over"])) == (4, {f"{prefix}{name}" for name in others})


def test_the_first_row_is_a_header_only_if_it_names_no_file(tmp_path: Path) -> None:
    for name in ("0.jfif", "1", "path"):
        write(tmp_path / name)
    for first in ("0.jfif", "1", "path"):
        (tmp_path / "list.csv").write_text(f"{first},4\n0.jfif,5\n")
        assert len(list_source(tmp_path / "list.csv", tmp_path)) == 2
    (tmp_path / "list.csv").write_text("filename,class\n0.jfif,5\n")
    assert labels_of(list_source(tmp_path / "list.csv", tmp_path)) == {"0.jfif": 5}
    (tmp_path / "LIST.CSV").write_text("0.jfif;5\n1;6\n")  # as spreadsheets in much of Europe write it
    assert labels_of(list_source(tmp_path / "LIST.CSV", tmp_path)) == {"0.jfif": 5, "1": 6}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_csv_in_any_encoding_is_read_or_asked_about_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    write(tmp_path / "0.jpg")
    write(tmp_path / "caf\u00e9.jpg")
    (tmp_path / "list.csv").write_bytes("path,label\n0.jpg,g\u00fcnther\ncaf\u00e9.jpg,ant\n".encode(encoding))
    target = tmp_path / "made"
    if encoding == "cp1252":
        assert make(tmp_path / "list.csv", target) == 2
        assert "list.csv line 2: bytes that are no UTF-8; say which encoding it is with --encoding" in capsys.readouterr().err
        assert not list(target.glob("*.tar"))
        assert make(tmp_path / "list.csv", target, "--encoding", "cp1252") == 0
    else:
        assert make(tmp_path / "list.csv", target) == 0
    assert (target / "classes.txt").read_text(encoding="utf-8") == "ant\ng\u00fcnther\n"
    assert load_index(str(target)).num_samples == 2


def test_names_of_folders_and_files_that_are_not_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = os.fsencode(tmp_path / "source")
    for name in (b"\xe9cureuil", b"ours"):
        os.makedirs(source + b"/" + name)
        (tmp_path / "source" / os.fsdecode(name) / os.fsdecode(b"\xe9t\xe9.jpg")).write_bytes(JPEG)
        (tmp_path / "source" / os.fsdecode(name) / os.fsdecode(b"\xe9.txt")).write_bytes(b"no image")
    target = tmp_path / "made"
    assert make(tmp_path / "source", target) == 2
    assert (
        r"class '\udce9cureuil' has a name that is not UTF-8; say which encoding it is with --encoding"
        in capsys.readouterr().err
    )
    assert not list(target.glob("*.tar"))
    assert make(tmp_path / "source", target, "--encoding", "latin-1") == 0
    assert r"passed over: ours/\udce9.txt, \udce9cureuil/\udce9.txt" in capsys.readouterr().out
    assert (target / "classes.txt").read_text(encoding="utf-8") == "ours\n\u00e9cureuil\n"
    assert make(tmp_path / "source", tmp_path / "other", "--encoding", "nonesuch") == 2
    assert "--encoding nonesuch: no such text encoding" in capsys.readouterr().err


def test_accents_in_names_may_be_written_in_two_ways(tmp_path: Path) -> None:
    """macOS stores e and its accent apart; a list typed elsewhere has one letter."""
    write(tmp_path / "source" / "cafe\u0301" / "0.jpg")
    write(tmp_path / "source" / "dog" / "0.jpg")
    (tmp_path / "list.txt").write_text("dog\ncaf\u00e9\n", encoding="utf-8")
    assert make(tmp_path / "source", tmp_path / "made", "--classes", str(tmp_path / "list.txt")) == 0
    index = load_index(str(tmp_path / "made"))
    assert {(sample.key[10:], sample.label) for sample in BlockReader(index, capacity=1).read(0)} == {("0", 0), ("0", 1)}


@pytest.mark.parametrize("target", ["FOLDER/val", "elsewhere"])
def test_a_test_split_that_would_be_numbered_otherwise_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    for name in ("train/ant", "train/bee", "train/cat", "val/bee", "val/cat"):
        write(tmp_path / "raw" / name / "0.jpg")
    folder = tmp_path / target
    folder.parent.mkdir(exist_ok=True)
    assert make(tmp_path / "raw" / "train", tmp_path / "FOLDER" / "train") == 0
    assert "3 classes, numbered by this source: give its other splits --classes" in capsys.readouterr().out
    assert make(tmp_path / "raw" / "val", folder) == 2
    assert "--classes" in capsys.readouterr().err
    assert not list(folder.glob("*.tar"))
    assert make(tmp_path / "raw" / "val", folder, "--classes", str(tmp_path / "FOLDER" / "train" / "classes.txt")) == 0
    index = load_index(str(folder))
    assert sorted(sample.label for sample in BlockReader(index, capacity=1).read(0)) == [1, 2]


def test_a_folder_of_img2dataset_is_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tars have a table and statistics of each next to them, captions, and a label in one of the .json's fields."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(2):
        facts = [json.dumps({"caption": "x", "url": "y", "class": i, "status": "success"}).encode() for i in range(3)]
        members = [
            (f"{number:05d}{i:04d}.{kind}", data)
            for i in range(3)
            for kind, data in (("jpg", JPEG), ("txt", b"x"), ("json", facts[i]))
        ]
        write_tar(source / f"{number:05d}.tar", members)
        pq.write_table(pa.table({"url": ["y"] * 3, "key": ["k"] * 3}), source / f"{number:05d}.parquet")
        (source / f"{number:05d}_stats.json").write_text("{}")
    (source / "._00000.tar").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert make(source, tmp_path / "unlabelled") == 0
    out = capsys.readouterr().out
    assert "6 samples have no label" in out
    assert "(caption, url, class, status), name it with --label-field" in out
    assert make(source, tmp_path / "made", "--label-field", "class") == 0
    index = load_index(str(tmp_path / "made"))
    assert sorted(sample.label for sample in BlockReader(index, capacity=1).read(0)) == [0, 0, 1, 1, 2, 2]


def test_a_second_make_of_something_else_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        for source in ("one", "two"):
            write(tmp_path / source / name / f"{source}.jpg")
    target = tmp_path / "made"
    assert make(tmp_path / "one", target) == 0
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    assert make(tmp_path / "one", target) == 0
    assert "(0 written now" in capsys.readouterr().out
    others = [(tmp_path / "two", ()), (tmp_path / "one", ("--seed", "1")), (tmp_path / "one", ("--split", "0.5"))]
    for source, arguments in others:
        assert make(source, target, *arguments) == 2
        assert "holds shards made from another source or with other options" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


DOTTED: dict[str, tuple[list[str], list[tuple[str, str | None]]]] = {  # members, and of each sample its name and its label
    "dates": (["22.05.jpg", "22.05.cls", "22.06.jpg", "22.06.cls"], [("x/22.05", "0"), ("x/22.06", "1")]),
    "versions": (["a.v1.jpg", "a.v1.cls", "b.v1.jpg", "b.v1.cls"], [("x/a.v1", "0"), ("x/b.v1", "1")]),
    "several dots": (["a.1.2.jpg", "a.1.2.cls", "a.1.3.jpg", "a.1.3.cls"], [("x/a.1.2", "0"), ("x/a.1.3", "1")]),
    "dots in folders": (["22.0/a.jpg", "22.0/a.cls", "22.0/b.jpg", "22.0/b.cls"], [("x/22.0/a", "0"), ("x/22.0/b", "1")]),
    "one sample of several images": (["a.jpg", "a.cls", "a.seg.jpg", "a.depth.png"], [("x/a", "0")]),
}


@pytest.mark.parametrize("case", DOTTED)
def test_keys_that_hold_dots(tmp_path: Path, case: str) -> None:
    names, expected = DOTTED[case]
    labels = iter("0123")
    write_tar(
        tmp_path / "x.tar", [(name, next(labels).encode() if name.endswith("cls") else JPEG + name.encode()) for name in names]
    )
    listing = list_source(tmp_path / "x.tar", tmp_path / "scratch")
    samples = [listing.sample(i) for i in range(len(listing))]
    assert [(s.name, str(s.labels[0]) if s.labels else None) for s in samples] == expected
    assert all(len({member.extension for member in s.members}) == len(s.members) for s in samples)


def test_index_refuses_images_that_become_one_sample_and_make_packs_them(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "x.tar",
        [(f"22.0{i}.{end}", data) for i in range(3) for end, data in (("jpg", JPEG + bytes([i])), ("cls", b"%d" % i))],
    )
    with pytest.raises(
        DataError, match=r"x\.tar: sample '22' holds 3 images \(00\.jpg, 01\.jpg, 02\.jpg \.\.\.\); .* first dot.*make"
    ):
        index_folder(str(tmp_path), block_samples=4, workers=LocalWorkers(0))
    make_shards(str(tmp_path / "x.tar"), str(tmp_path / "made"), options=MakeOptions(), workers=LocalWorkers(1))
    counts = load_index(str(tmp_path / "made")).class_counts
    assert counts is not None
    assert counts.images.tolist() == [1, 1, 1]


def test_images_that_would_get_one_name_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("a.jfif", JPEG), ("a.jpe", JPEG + b"1"), ("a.cls", b"1")])
    with pytest.raises(DataError, match=r"sample 'a' has two members \.jpg"):
        list_source(tmp_path / "x.tar", tmp_path / "scratch")

"""Folders of images and Arrow files in a store or on a web server: the bytes of a local make."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_tools.__main__ import main
from data_tools.make.pack import Passes, make_shards
from data_tools.make.plan import MakeOptions, ShardSize
from data_tools.make.sources.options import SourceOptions
from data_tools.make.two_passes import WORKER_BYTES
from data_tools.parallel import Workers
from pipeline.data.shards.folder import ShardFolder
from pipeline.errors import DataError
from tests.helpers.sources import WRITERS, read_made, without_place
from tests.helpers.store import FaultProxy
from tests.helpers.web_server import serve
from tests.helpers.workers import WorkersHere

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
OPTIONS = MakeOptions(shard_size=ShardSize(15), block_samples=4, val_fraction=0.3)


def make(source: str, folder: str, tmp_path: Path, workers: Workers | None = None) -> None:
    passes = Passes(scratch=str(tmp_path / "scratch"))
    make_shards(source, folder, options=OPTIONS, workers=workers or WorkersHere(), passes=passes)


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_files_in_a_store_are_made_as_on_a_disk(kind: str, store: FaultProxy, root: Path, tmp_path: Path) -> None:
    folder = root / "bucket" / f"arrow-{kind}"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for part in range(2):
        images = [{"bytes": b"\xff\xd8\xff" + generator.bytes(30_000), "path": f"{part}-{row}.jpg"} for row in range(200)]
        table = pa.table({"image": images, "label": [row % 3 for row in range(200)]})
        write = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file  # Hugging Face's cache has streams
        with write(folder / f"part-{part}.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=50)
    options = {"options": OPTIONS, "workers": WorkersHere()}
    make_shards(str(folder), str(tmp_path / "here"), **options)
    store.requests.clear()
    store.inject("mixed", probability=0.3)
    make_shards(f"s3://bucket/arrow-{kind}", str(tmp_path / "there"), **options)
    assert without_place(read_made(tmp_path / "here")) == without_place(read_made(tmp_path / "there"))
    assert store.counts.total() > store.counts["reads"]
    assert store.requests["GET bytes"] < 5 * sum(path.stat().st_size for path in folder.iterdir())
    one = make_shards(f"s3://bucket/arrow-{kind}/part-1.arrow", str(tmp_path / "one"), **options)
    assert one.num_samples == 200


@pytest.fixture
def photos(root: Path) -> Iterator[Path]:
    """Write class folders in the store, of all that such folders hold."""
    folder = WRITERS["image folder"](root / "bucket" / "photos")
    (folder / "class1" / "deeper in").mkdir()
    (folder / "class1" / "deeper in" / "ä b#1+2%20.jpg").write_bytes((folder / "class0" / "000.jpg").read_bytes())
    (folder / "class1" / "[a] b?c*").mkdir()
    (folder / "class1" / "[a] b?c*" / "x::y.jpg").write_bytes((folder / "class0" / "008.jpg").read_bytes())
    (folder / "class2" / "class2_$folder$").write_text("")  # as Hadoop marks folders
    (folder / "class2" / "without an ending").write_bytes((folder / "class0" / "004.jpg").read_bytes())
    (folder / "class2" / "empty.jpg").write_bytes(b"")
    (folder / "class2" / "tiny").write_bytes(b"P6")
    (folder / "class2" / "Thumbs.db").write_bytes(b"x")
    (folder / "class3" / "list.txt").write_text("no image")
    (folder / "readme.txt").write_text("no class")
    (folder / "empty").mkdir()
    (folder / "empty" / ".DS_Store").write_text("")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("fault", ["", "mixed"])
def test_class_folders_in_a_store_are_made_as_on_a_disk(
    fault: str, store: FaultProxy, photos: Path, root: Path, tmp_path: Path
) -> None:
    make(str(photos), str(tmp_path / "here"), tmp_path)
    store.requests.clear()
    store.inject(fault, probability=0.3)
    made = f"made-photos-{fault}"
    make("s3://bucket/photos", f"s3://bucket/{made}", tmp_path)
    here, there = read_made(tmp_path / "here"), read_made(root / "bucket" / made)
    assert without_place(here) == without_place(there)
    report = json.loads(there.files["make.json"])["report"]
    assert (report["kind"], report["num_samples"], report["without_images"]) == ("image folder", 44, ["empty"])
    if fault:
        assert store.counts.total() > store.counts["reads"]
        return
    read_again = store.requests["PUT"]  # the index reads each shard
    assert store.requests["GET"] == len(list(photos.rglob("*.jpg"))) + read_again
    assert store.requests["HEAD"] < 4 * read_again  # of shards alone
    store.requests.clear()
    make("s3://bucket/photos", f"s3://bucket/{made}", tmp_path)
    assert store.requests["GET"] == 0
    two = Passes(2, memory_bytes=WORKER_BYTES + 27_000)
    make_shards("s3://bucket/photos", str(tmp_path / "two"), options=OPTIONS, workers=WorkersHere(), passes=two)
    assert without_place(read_made(tmp_path / "two")) == without_place(here)


def test_class_folders_on_a_web_server_are_made_as_on_a_disk(photos: Path, root: Path, tmp_path: Path) -> None:
    make(str(photos), str(tmp_path / "here"), tmp_path)
    with serve(root / "bucket") as (url, _):
        make(f"{url}/photos", str(tmp_path / "there"), tmp_path)
    assert without_place(read_made(tmp_path / "here")) == without_place(read_made(tmp_path / "there"))


@pytest.mark.parametrize("place", ["store", "store, list here", "web server"])
def test_a_list_of_images_elsewhere_is_made_as_on_a_disk(place: str, store: FaultProxy, root: Path, tmp_path: Path) -> None:
    folder = root / "bucket" / f"list-{place.replace(', ', '-').replace(' ', '-')}"
    here = WRITERS["CSV"](folder)
    (folder / "deeper in").mkdir()
    for number in range(3):
        (folder / "deeper in" / f"ü {number}.jpg").write_bytes((folder / f"{number:03d}.jpg").read_bytes())
    url = f"s3://bucket/{folder.name}"
    with here.open("a") as file:
        file.write("./deeper in/ü 0.jpg,1;2\ndeeper in/ü 1,3\n")  # the second without its ending, as in lists of ids
        file.write(f"../{folder.name}/deeper in/ü 2.jpg,3\n")
    made = tmp_path / "there"
    make(str(here), str(tmp_path / "here"), tmp_path)
    store.inject("mixed", probability=0.3)
    if place == "web server":
        with serve(root / "bucket") as (address, _):
            make(f"{address}/{folder.name}/list.csv", str(made), tmp_path)
    elif place == "store":
        make(f"{url}/list.csv", str(made), tmp_path)
    else:
        other = tmp_path / "list.csv"
        other.write_text(here.read_text().replace("005.jpg", f"{url}/005.jpg"))  # a whole URL
        options = replace(OPTIONS, source=SourceOptions(image_folder=f"{url}/"))
        make_shards(str(other), str(made), options=options, workers=WorkersHere())
    files, others = (without_place(read_made(path)).files for path in (tmp_path / "here", made))
    request = json.loads(others["make.json"])["request"]
    assert {**files, "make.json": b""} == {**others, "make.json": b""}
    assert request["source"]["image_folder"] == (f"{url}/" if "here" in place else None)


def test_whole_urls_are_read_as_browsers_write_them(root: Path, tmp_path: Path) -> None:
    """A signed URL cannot be kept: make.json and later reads name a file by its path. A missing --image-folder is said too."""
    folder = root / "bucket" / "whole"
    here = WRITERS["CSV"](folder)
    shutil.copy(folder / "000.jpg", folder / "ü 50% a.jpg")
    shutil.copy(folder / "000.jpg", folder / "b%20c.jpg")
    text = here.read_text()
    here.write_text(f"{text}ü 50% a.jpg,1\nb%20c.jpg,1\n")
    make(str(here), str(tmp_path / "here"), tmp_path)
    listed, made = tmp_path / "list.csv", str(tmp_path / "there")
    with serve(root / "bucket") as (address, _):
        url = f"{address}/whole"
        options = replace(OPTIONS, source=SourceOptions(image_folder=url))
        listed.write_text(f"{text}{url}/%C3%BC%2050%25%20a.jpg,1\n{url}/b%20c.jpg,1\n")
        make_shards(str(listed), made, options=options, workers=WorkersHere())
        files, others = (without_place(read_made(path)).files for path in (tmp_path / "here", Path(made)))
        assert {**files, "make.json": b""} == {**others, "make.json": b""}
        for cell, asked, words in (
            (f"{url}/000.jpg?Signature=a%2Fb", options, "a URL with a query, such as a signed one, is not read"),
            (f"{url}/000.jpg", OPTIONS, "where cells are URLs, give what all of them begin with as --image-folder"),
        ):
            listed.write_text(f"path,label\n{cell},1\n")
            with pytest.raises(DataError, match=re.escape(f"line 2: {cell}: No such file or directory; {words}")):
                make_shards(str(listed), str(tmp_path / "other"), options=asked, workers=WorkersHere())


def test_a_line_of_what_is_not_in_the_store_is_named(store: FaultProxy, root: Path, tmp_path: Path) -> None:
    here = WRITERS["CSV"](root / "bucket" / "lines")
    (root / "bucket" / "lines" / "folder.jpg").mkdir()
    (root / "bucket" / "lines" / "folder.jpg" / "x.jpg").write_bytes(b"x")
    listed = here.read_text()
    for cell, words in (
        ("none.jpg", "line 42: s3://bucket/lines/none.jpg: No such file or directory; paths are relative to the file"),
        ("folder.jpg", "line 42: s3://bucket/lines/folder.jpg: No such file or directory"),
        ("s3://other/x.jpg", "line 42: s3://other/x.jpg: No such file or directory; where cells are URLs, give"),
    ):
        here.write_text(f"{listed}{cell},1\n")
        with pytest.raises(DataError, match=re.escape(words)):
            make("s3://bucket/lines/list.csv", str(tmp_path / "made"), tmp_path)


def test_splits_of_folders_in_a_store_are_asked_for(
    store: FaultProxy, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        WRITERS["image folder"](root / "bucket" / "both" / split)
    (root / "bucket" / "loose" / "images").mkdir(parents=True)
    (root / "bucket" / "loose" / "images" / "1.jpg").write_bytes(b"x")
    (root / "bucket" / "loose" / "labels.csv").write_text("path,label\n")
    for source, words in {
        "s3://bucket/both": "holds the splits train/ (4 folders), val/ (4 folders); splits are no classes. Give one of them, "
        "s3://bucket/both/train, or choose it with --source-split train",
        "s3://bucket/loose": "holds labels.csv and a single folder; give s3://bucket/loose/labels.csv if it lists the images",
    }.items():
        assert main(["make", source, str(tmp_path / "made"), "--workers", "1"]) == 2
        assert words in capsys.readouterr().err
    command = ["make", "s3://bucket/both", str(tmp_path / "made"), "--workers", "1", "--source-split", "val"]
    assert main(command) == 0
    assert "40 samples" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["gone", "longer"])
def test_an_image_of_a_store_that_is_not_as_listed_is_named(
    change: str, store: FaultProxy, photos: Path, tmp_path: Path
) -> None:
    def spoil(description: str) -> None:
        path = photos / "class1" / "009.jpg"
        if description.startswith("write shards"):
            path.unlink() if change == "gone" else path.write_bytes(path.read_bytes() + b"x")

    words = "it is gone since it was listed" if change == "gone" else r"\d+ bytes where \d+ were when it was listed"
    with pytest.raises(DataError, match=f"s3://bucket/photos/class1/009.jpg: {words}"):
        make("s3://bucket/photos", str(tmp_path / "made"), tmp_path, WorkersHere(spoil))


def test_a_folders_own_marker_is_no_entry_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consoles of stores make an empty object named like a folder; rclone's server has none."""
    folder = ShardFolder("memory://bucket/cat")
    listed = [{"name": "/bucket/cat", "size": 0, "type": "file"}, {"name": "/bucket/cat/1.jpg", "size": 3, "type": "file"}]
    monkeypatch.setattr(type(folder.filesystem), "ls", lambda *_, **__: listed)
    monkeypatch.setattr(type(folder.filesystem), "isdir", lambda *_: True)
    assert [entry["name"] for entry in folder.entries()] == ["/bucket/cat/1.jpg"]
    assert folder.list_names() == ["1.jpg"]


def test_keys_with_an_empty_part_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store takes bucket/cat//1.jpg for a name; a listing of bucket/cat then has a folder without one."""
    folder = ShardFolder("s3://bucket/cat")
    listed = [{"name": "bucket/cat/", "size": 0, "type": "directory"}, {"name": "bucket/cat/1.jpg", "size": 3, "type": "file"}]
    monkeypatch.setattr(folder.filesystem, "ls", lambda *_, **__: listed)
    with pytest.raises(DataError, match="s3://bucket/cat holds keys with an empty part, s3://bucket/cat//"):
        folder.entries()

"""Store to store: the bytes of a local make, over a network that fails, and nothing half in the store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from data_tools.__main__ import main
from data_tools.make import upload as upload_module
from data_tools.make.pack import Passes, make_shards
from data_tools.make.plan import MakeOptions, ShardSize
from data_tools.make.sources.options import SourceOptions
from data_tools.make.sources.unpack import Entry, unpack_files
from data_tools.make.two_passes import WORKER_BYTES
from data_tools.make.upload import NotWholeError, check, checksums_of, upload
from data_tools.parallel import Workers
from pipeline.data.shards.index import ShardIndex, check_shards, load_index
from pipeline.data.shards.reader import BlockReader
from pipeline.errors import DataError
from tests.helpers.sources import WRITERS, read_made, without_place
from tests.helpers.store import FaultProxy
from tests.helpers.workers import WorkersHere

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
OPTIONS = MakeOptions(shard_size=ShardSize(15), block_samples=4, val_fraction=0.3)
ONE_TABLE = "test-00000-of-00001.parquet"
KINDS = ("WebDataset tars", "class tars", "outer tar")


@pytest.fixture(scope="module", autouse=True)
def sources(root: Path) -> None:
    for kind in KINDS:
        WRITERS[kind](root / "bucket" / name_of(kind))


def name_of(kind: str) -> str:
    return kind.replace(" ", "-")


def source_of(kind: str) -> str:
    return f"{name_of(kind)}.tar" if kind == "outer tar" else name_of(kind)


def make(source: str, folder: str, tmp_path: Path, workers: Workers | None = None) -> None:
    passes = Passes(memory_bytes=WORKER_BYTES + 27_000, scratch=str(tmp_path / "scratch"))
    make_shards(source, folder, options=OPTIONS, workers=workers or WorkersHere(), passes=passes)
    assert not list((tmp_path / "scratch").glob("*/*"))


def samples_of(index: ShardIndex) -> list[tuple[str, bytes, int | None]]:
    """Return what a training reads."""
    reader = BlockReader(index, capacity=1)
    return [(sample.key, sample.image, sample.label) for block in range(index.num_blocks) for sample in reader.read(block)]


@pytest.mark.parametrize("kind", KINDS)
def test_from_store_to_store_it_makes_what_is_made_on_a_disk(
    kind: str, store: FaultProxy, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = source_of(kind)
    make(str(root / "bucket" / source), str(tmp_path / "here"), tmp_path)
    made = f"made-{name_of(kind)}"
    make(f"s3://bucket/{source}", f"s3://bucket/{made}", tmp_path)
    assert "two passes" in capsys.readouterr().out
    here, there = read_made(tmp_path / "here"), read_made(root / "bucket" / made)
    assert without_place(here) == without_place(there)
    assert any(name.startswith("val/") for name in there.files)
    index = load_index(f"s3://bucket/{made}/train")
    check_shards(index)
    if kind != "WebDataset tars":  # its samples have several labels
        assert samples_of(index) == samples_of(load_index(str(tmp_path / "here" / "train")))
    store.requests.clear()
    make(f"s3://bucket/{source}", f"s3://bucket/{made}", tmp_path)  # all is there: only what kind it is is looked at
    assert store.requests["GET"] <= 3
    assert store.requests["PUT"] == 0


def test_records_of_a_local_make_and_one_to_a_store_are_the_same_bytes(store: FaultProxy, root: Path, tmp_path: Path) -> None:
    source = WRITERS["image folder"](tmp_path / "source")
    make(str(source), str(tmp_path / "here"), tmp_path)
    make(str(source), "s3://bucket/from-here", tmp_path)
    assert read_made(tmp_path / "here") == read_made(root / "bucket" / "from-here")


@pytest.mark.parametrize("fault", ["mixed", "lost"])
def test_over_a_bad_network_nothing_is_lost(fault: str, store: FaultProxy, root: Path, tmp_path: Path) -> None:
    make(str(root / "bucket" / "WebDataset-tars"), str(tmp_path / "here"), tmp_path)
    methods = ("PUT",) if fault == "lost" else ("GET", "PUT")
    store.inject(fault, probability=0.6 if fault == "lost" else 0.3, methods=methods)
    make("s3://bucket/WebDataset-tars", f"s3://bucket/bad-{fault}", tmp_path)
    assert store.counts.total() - store.counts["reads"] - store.counts["writes"] > (0 if fault == "lost" else 2)
    assert without_place(read_made(tmp_path / "here")) == without_place(read_made(root / "bucket" / f"bad-{fault}"))


@pytest.fixture
def tables(root: Path) -> Path:
    """Write Parquet files of two splits, as Hugging Face names them."""
    folder = root / "bucket" / "tables"
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for number, name in enumerate(("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", ONE_TABLE)):
        images = [{"bytes": b"\xff\xd8\xff" + generator.bytes(100_000), "path": f"{number}-{row}.jpg"} for row in range(60)]
        labels = [f"class{row % 3}" for row in range(60)]
        table = pa.table({"image": images, "label": labels})
        parquet.write_table(table, folder / name, row_group_size=20)
    return folder


@pytest.mark.parametrize("fault", ["", "mixed"])
def test_tables_in_a_store_are_made_as_on_a_disk(fault: str, store: FaultProxy, tables: Path, tmp_path: Path) -> None:
    train = replace(OPTIONS, source=SourceOptions(split="train"))
    options = {"options": train, "workers": WorkersHere()}
    make_shards(str(tables), str(tmp_path / "here"), **options)
    store.requests.clear()
    store.inject(fault, probability=0.3)
    made = make_shards("s3://bucket/tables", str(tmp_path / "there"), **options)
    assert made.kind == "Parquet or Arrow files"
    assert without_place(read_made(tmp_path / "here")) == without_place(read_made(tmp_path / "there"))
    if fault:
        assert store.counts.total() > store.counts["reads"]
        return
    num_bytes = sum(path.stat().st_size for path in tables.glob("train-*"))
    assert store.requests["GET bytes"] < 4 * num_bytes  # images once; in blocks of 4 MiB first bytes, schemas and labels
    store.requests.clear()
    make_shards("s3://bucket/tables", str(tmp_path / "there"), **options)  # all is there
    assert store.requests["GET"] == 0
    one = make_shards(f"s3://bucket/tables/{ONE_TABLE}", "s3://bucket/one", options=OPTIONS, workers=WorkersHere())
    assert one.num_samples == 60
    check_shards(load_index("s3://bucket/one/train"))


def test_a_table_that_changes_while_it_is_read_is_named(store: FaultProxy, root: Path, tables: Path, tmp_path: Path) -> None:
    path = root / "bucket" / "changing.parquet"
    shutil.copy(tables / ONE_TABLE, path)

    def read(_: str) -> Iterator[Entry]:
        yield Entry("a", [0], b"x")
        path.write_bytes(path.read_bytes()[:-20_000])

    url = "s3://bucket/changing.parquet"
    with pytest.raises(DataError, match=rf"{url} has changed while it was read \(before: \d+ bytes, ETag"):
        unpack_files(read, [url], scratch=tmp_path, stamp="", classes=["a"], workers=WorkersHere())
    assert not [file for file in tmp_path.iterdir() if file.suffix in (".bytes", ".listing")]


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a file that goes to a store in three parts."""
    monkeypatch.setattr(upload_module, "PART_BYTES", 5 << 20)
    path = tmp_path / "large"
    path.write_bytes(np.random.default_rng(0).bytes(11 << 20))
    return path


@pytest.mark.parametrize("fault", ["error", "lost", "reset"])
def test_an_upload_in_parts_is_whole(fault: str, store: FaultProxy, root: Path, large: Path) -> None:
    store.inject(fault, probability=0.3, methods=("PUT", "POST"))
    for number in range(2):
        upload(large, f"s3://bucket/up/{fault}-{number}.tar")
        assert (root / "bucket" / "up" / f"{fault}-{number}.tar").read_bytes() == large.read_bytes()
    assert store.requests["POST"] >= 4
    assert store.counts[fault] > 0


@pytest.mark.parametrize("fault", ["error", "reset"])
def test_an_upload_that_fails_leaves_no_object(fault: str, store: FaultProxy, root: Path, large: Path) -> None:
    store.inject(fault, probability=1.0, methods=("PUT",))  # the multipart upload begins, and no part arrives
    with pytest.raises(DataError, match=r"s3://bucket/none/x.tar could not be written .*; the same command resumes"):
        upload(large, "s3://bucket/none/x.tar", patience_s=0.5)
    store.inject("")
    assert not fsspec.filesystem("s3").exists("bucket/none/x.tar")
    assert not (root / "bucket" / "none" / "x.tar").exists()


def test_an_etag_that_is_no_checksum_means_that_the_content_is_read(store: FaultProxy, root: Path, large: Path) -> None:
    upload(large, "s3://bucket/etag/x.tar")
    expected = checksums_of(large, 5 << 20)
    other = expected._replace(md5=bytes(16), of_parts="0-0")
    store.requests.clear()
    check("s3://bucket/etag/x.tar", expected)
    assert store.requests["GET"] == 0
    check("s3://bucket/etag/x.tar", other)
    assert store.requests["GET bytes"] == 11 << 20
    data = bytearray(large.read_bytes())
    data[5_000_000] ^= 1
    (root / "bucket" / "etag" / "x.tar").write_bytes(data)
    with pytest.raises(NotWholeError, match="the store holds other bytes than were sent"):
        check("s3://bucket/etag/x.tar", other)


def test_what_another_command_claims_meanwhile_is_noticed(store: FaultProxy, root: Path, tmp_path: Path) -> None:
    """Two commands on one remote folder with other options: no lock keeps them apart, so the later claim wins."""

    def claim(description: str) -> None:
        path = root / "bucket" / "two" / "make.json"
        if description.startswith("pass 2"):
            path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))

    with pytest.raises(DataError, match=r"two/make.json was written by another command meanwhile"):
        make("s3://bucket/class-tars", "s3://bucket/two", tmp_path, WorkersHere(claim))


def test_a_source_that_changes_in_the_store_is_named(store: FaultProxy, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "bucket" / "WebDataset-tars", root / "bucket" / "changing")

    def change(description: str) -> None:
        path = root / "bucket" / "changing" / "set-1.tar"
        if description.startswith("pass 1"):
            path.write_bytes(path.read_bytes()[:-20_000])

    with pytest.raises(DataError, match=r"changing/set-1.tar has changed since it was listed \(before: \d+ bytes, ETag"):
        make("s3://bucket/changing", str(tmp_path / "made"), tmp_path, WorkersHere(change))


def test_other_sources_on_a_url_are_refused_with_what_to_do(
    store: FaultProxy, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "bucket" / "lists").mkdir()
    (root / "bucket" / "lists" / "a.csv").write_text("path,label\n")
    (root / "bucket" / "texts").mkdir()
    (root / "bucket" / "texts" / "a.txt").write_text("x")
    for source, words in {
        "s3://bucket/lists": "holds no class folders; give s3://bucket/lists/a.csv if it lists the images and their labels",
        "s3://bucket/texts": "holds neither tars nor tables nor folders, but a.txt ...; on a URL, `make` reads a WebDataset",
        "s3://bucket/texts/a.txt": "is a single file of another kind; on a URL, `make` reads a WebDataset tar",
        "s3://bucket/none": "does not exist, or is empty",
        "s3://bucket/none.tar": "does not exist",
    }.items():
        assert main(["make", source, str(tmp_path / "made"), "--workers", "1"]) == 2
        assert words in capsys.readouterr().err
    for arguments, words in (
        (["s3://bucket/class-tars", "https://localhost/x"], "no shards can be written there (a web server takes no files)"),
        (["s3://bucket/class-tars", "s3://bucket/class-tars/made"], "is the source itself or lies in it"),
        (["s3://bucket/class-tars", str(tmp_path / "made"), "--passes", "1"], "--passes 1 reads tars at random places"),
        (
            ["s3://bucket/class-tars", "s3://bucket/x", "--cluster", "nowhere"],
            "name a folder that all workers see with --scratch",
        ),
    ):
        assert main(["make", *arguments, "--workers", "1"]) == 2
        assert words in capsys.readouterr().err

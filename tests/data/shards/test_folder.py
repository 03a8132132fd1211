"""A folder of shards is on disk or in a store, for which fsspec's memory is used."""

from __future__ import annotations

import io
import os
import uuid
from pathlib import Path

import fsspec
import pytest

from pipeline.data.shards import folder as module
from pipeline.data.shards.folder import ShardFolder, UnreachableError, describe_hub_path, describe_read_only, is_remote
from pipeline.errors import DataError

DATA = os.urandom(5000)


@pytest.fixture(params=["local", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a folder that does not exist yet."""
    return str(tmp_path / "shards") if request.param == "local" else f"memory://{uuid.uuid4().hex}/shards"


def fill(path: str, *names: str, data: bytes = DATA) -> ShardFolder:
    """Write a file with fsspec alone."""
    for name in names:
        with fsspec.open(f"{path}/{name}", "wb", auto_mkdir=True) as file:
            file.write(data)  # type: ignore[union-attr]
    return ShardFolder(path)


def test_names_are_sorted_and_of_files_alone(path: str) -> None:
    assert ShardFolder(path).list_names() == []
    folder = fill(path, "b.tar", "a.tar", "index", "below/c.tar")
    assert folder.list_names() == ["a.tar", "b.tar", "index"]
    assert ShardFolder(path + "/").list_names() == folder.list_names()


def test_a_listing_is_never_an_old_one(path: str) -> None:
    folder = fill(path, "a.tar")
    folder.list_names()
    fill(path, "b.tar")
    assert folder.list_names() == ["a.tar", "b.tar"]


def test_shards_are_plain_tars_that_are_not_hidden(path: str) -> None:
    folder = fill(path, "b.tar", "a.tar", "._a.tar", ".c.tar.gz", "index.json", "a.tar.txt")
    assert folder.list_shards() == ["a.tar", "b.tar"]
    assert folder.hidden_tars() == ["._a.tar", ".c.tar.gz"]
    fill(path, "c.tar.zst")
    with pytest.raises(DataError, match=r"c\.tar\.zst is compressed.*zstd -d"):
        folder.list_shards()


def test_a_folder_without_shards_is_named(path: str) -> None:
    with pytest.raises(DataError, match=r"does not exist or holds no \.tar files"):
        ShardFolder(path).list_shards()
    with pytest.raises(DataError, match=r"does not exist or holds no \.tar files"):
        fill(path, "notes.txt").list_shards()


def test_what_is_written_is_read(path: str) -> None:
    folder = ShardFolder(path)
    assert folder.why_unwritable() is None
    assert folder.list_names() == []  # the trial leaves nothing
    folder.write("index", DATA)
    assert folder.exists("index")
    assert not folder.exists("other")
    assert folder.read("index") == DATA
    assert folder.size("index") == len(DATA)
    folder.write("index", b"new")
    assert folder.read("index") == b"new"
    assert folder.list_names() == ["index"]


def test_a_rewritten_file_has_another_version(path: str) -> None:
    folder = fill(path, "a.tar")
    before = folder.version("a.tar")
    assert folder.version("a.tar") == before
    fill(path, "a.tar", data=DATA[::-1])  # of the same size
    assert folder.version("a.tar") != before


def test_an_open_file_reads_like_one_in_memory(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_AHEAD_BYTES", 512)
    with fill(path, "a.tar").open("a.tar") as file:
        reference = io.BytesIO(DATA)
        for start in (0, 700, 4990, 511, 513):
            assert file.seek(start) == reference.seek(start)
            assert file.read(600) == reference.read(600)


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 5000), (4999, 5000), (1024, 2048), (7, 7)])
def test_a_range_is_all_of_its_bytes(path: str, start: int, end: int) -> None:
    assert fill(path, "a.tar").read_range("a.tar", start, end) == DATA[start:end]


def test_a_range_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    folder = fill(str(tmp_path), "a.tar")
    with pytest.raises(UnreachableError, match="10 of 20 bytes came"):
        folder.read_range("a.tar", 4990, 5010)


def test_sizes_of_the_files_that_are_there(path: str) -> None:
    folder = fill(path, "a.tar", "b.tar")
    fill(path, "empty.tar", data=b"")
    assert folder.sizes(["b.tar", "empty.tar", "missing.tar"]) == {"b.tar": 5000, "empty.tar": 0}


@pytest.mark.parametrize("ask", ["read", "size", "open", "version"])
def test_a_missing_file_is_said_at_once(path: str, ask: str) -> None:
    with pytest.raises(FileNotFoundError):
        getattr(fill(path, "a.tar"), ask)("missing.tar")


def test_a_folder_that_takes_no_files_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    blocked = ShardFolder(str(tmp_path / "file" / "shards"))
    assert blocked.why_unwritable() == "Not a directory"
    with pytest.raises(DataError, match=r"file/shards/index cannot be written: Not a directory"):
        blocked.write("index", DATA)
    assert ShardFolder("https://127.0.0.1:1/shards").why_unwritable() == "a web server takes no files"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("hf://datasets/me/photos", "a repository on the Hugging Face hub"),
        ("hf://buckets/me/photos", None),
        ("http://host/shards", "a web server"),
        ("s3://bucket/shards", None),
        ("/data/shards", None),
    ],
)
def test_places_that_nobody_writes_to(path: str, kind: str | None) -> None:
    assert describe_read_only(path) == kind
    assert is_remote(path) == (not path.startswith("/"))


def test_a_hub_path_of_nothing_is_explained() -> None:
    assert "hf://datasets/OWNER/NAME" in describe_hub_path("hf://me/photos")
    assert "HF_TOKEN" in describe_hub_path("hf://datasets/me/photos")
    assert describe_hub_path("/data/photos") == ""


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("s3://me:secret@host/shards", "must hold no user or password"),
        ("nonsense://host/shards", "cannot be reached: Protocol not known"),
    ],
)
def test_urls_that_cannot_work(path: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as raised:
        ShardFolder(path)
    assert "secret" not in str(raised.value)


def test_an_at_sign_in_a_path_is_no_password() -> None:
    assert ShardFolder("memory://host/by@date").path == "memory://host/by@date"

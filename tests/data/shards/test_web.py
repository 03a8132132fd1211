"""Shards behind web servers as they are: redirects, no ranges, no HEAD, compression; and an index kept elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_tools.index import index_folder, lock_index_folder
from data_tools.parallel import LocalWorkers
from pipeline.data.shards.class_names import class_names_of
from pipeline.data.shards.folder import ShardFolder, describe_read_only
from pipeline.data.shards.index import check_shards, load_index
from pipeline.data.shards.reader import BlockReader
from pipeline.data.shards.scan import scan_shard
from pipeline.errors import DataError
from tests.conftest import WriteShards
from tests.helpers.web_server import Habit, serve


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_shards: WriteShards) -> Path:
    root = tmp_path_factory.mktemp("web")
    write_shards(root / "set", shard_sizes=[9, 7], block_samples=3)
    (root / "set" / "index.safetensors").unlink()
    (root / "set" / "classes.txt").write_text("ant\nbee\ncat\ndog\n")
    return root


@pytest.mark.parametrize("habit", ["plain", "redirects", "no HEAD", "compresses"])
def test_a_shard_is_read_whatever_the_server_does_that_http_allows(root: Path, habit: Habit) -> None:
    data = (root / "set" / "shard-000.tar").read_bytes()
    with serve(root, habit) as (url, _):
        folder = ShardFolder(f"{url}/set")
        assert folder.list_shards() == ["shard-000.tar", "shard-001.tar"]
        assert folder.size("shard-000.tar") == len(data)
        assert folder.version("shard-000.tar") == folder.version("shard-000.tar")
        assert folder.read_range("shard-000.tar", 700, 5000) == data[700:5000]
        with folder.open("shard-000.tar") as file:
            entry = scan_shard(file, name="shard-000.tar", num_bytes=len(data), block_samples=3)
        assert int(entry.block_samples.sum()) == 9


@pytest.mark.parametrize(
    ("habit", "words"),
    [
        (
            "no ranges",
            "the server sends the whole file where a part is asked for; serve its files with a server that knows byte ranges",
        ),
        ("login page", "the server answers with a web page instead of the file"),
        ("cut listing", "the server's listing ends in the middle"),
        ("no listing", "cannot be reached: .*403"),
    ],
)
def test_what_a_server_cannot_do_is_said_after_one_question(root: Path, habit: Habit, words: str) -> None:
    with serve(root, habit) as (url, requests):
        folder = ShardFolder(f"{url}/set")
        with pytest.raises(DataError, match=words):
            folder.size(folder.list_shards()[0])
        tars = [wanted for path, wanted in requests if path.endswith(".tar")]
        assert tars in ([], ["bytes=0-0"])  # no download, and no second try


def test_shards_of_a_public_store_are_indexed_elsewhere_and_read(root: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "indexes" / "set.safetensors")
    with serve(root, "redirects") as (url, requests):
        public = f"{url}/set"
        with (
            pytest.raises(
                DataError, match=f"no index can be written there .a web server takes no files.; `--out PLACE`.*{public}"
            ),
            lock_index_folder(public, None),
        ):
            pass
        assert not requests  # it is refused before anything is read
        with lock_index_folder(public, out):
            index_folder(public, block_samples=3, workers=LocalWorkers(1), out=out)
        index = load_index(public, out)
        check_shards(index)
        assert (index.num_samples, index.folder, index.kept_in) == (16, public, str(tmp_path / "indexes"))
        assert class_names_of(*index.folders) == ["ant", "bee", "cat", "dog"]
        local = index_folder(str(root / "set"), block_samples=3, workers=LocalWorkers(1), out=str(tmp_path / "local")).index
        assert index.fingerprint == local.fingerprint
        far, near = BlockReader(index, capacity=9), BlockReader(local, capacity=9)
        for block in range(index.num_blocks):
            assert [(raw.key, raw.label, raw.image) for raw in far.read(block)] == [
                (raw.key, raw.label, raw.image) for raw in near.read(block)
            ]
        assert not (root / "set" / "index.safetensors").exists()
        with (
            pytest.raises(DataError, match=f"holds the index of {public}; choose another folder with --out"),
            lock_index_folder(str(root / "set"), out),
        ):
            pass
    with pytest.raises(DataError, match=f"no index at .*; make it with `python -m data_tools index {public} --out nowhere`"):
        load_index(public, "nowhere")


def test_repositories_of_the_hub_take_no_files_but_its_buckets_do() -> None:
    assert describe_read_only("hf://datasets/timm/imagenet-1k-wds") == "a repository on the Hugging Face hub"
    assert describe_read_only("hf://buckets/owner/shards") is None
    assert describe_read_only("s3://bucket/shards") is describe_read_only("/data/http") is None


def test_a_store_that_refuses_is_asked_for_a_place_first(tmp_path: Path, root: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=r"nothing can be written there .*; choose another folder with --out"),
        lock_index_folder(str(root / "set"), str(tmp_path / "file" / "index")),
    ):
        pass
    if os.geteuid():
        (tmp_path / "set").mkdir(mode=0o500)
        with (
            pytest.raises(DataError, match=r"`--out PLACE` puts the index elsewhere"),
            lock_index_folder(str(tmp_path / "set"), None),
        ):
            pass

"""Sets on the Hugging Face hub, in timm's layout, are listed, indexed elsewhere and read block by block by the hub's client."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.index import index_folder
from data_tools.parallel import LocalWorkers
from pipeline.data.shards.index import load_index
from pipeline.data.shards.reader import BlockReader
from tests.conftest import REFERENCE, REPOSITORY, encode, make_image, write_tar
from tests.helpers.hub_server import serve_hub

NAME = "imagenet-22k-wds"
SHARDS = {"imagenet22k-train-0000": 5, "imagenet22k-train-0001": 7, "imagenet22k-validation-0000": 3}
PICTURES = [encode(make_image(number, num_classes=3, size=200), format="PNG") for number in range(3)]  # 100 kB each
PROGRAM = """
import json, sys
from data_tools.index import index_folder
from data_tools.parallel import LocalWorkers
from pipeline.data.shards.index import check_shards, load_index
from pipeline.data.shards.reader import BlockReader
folder, out, split = sys.argv[1:]
index_folder(folder, block_samples=2, workers=LocalWorkers(0), split=split or None, out=out)
index = load_index(folder, out)
check_shards(index)
reader = BlockReader(index, capacity=1)
order = sorted(range(index.num_blocks), key=lambda block: block * 7 % 11)
read = {block: [(sample.key, sample.label, len(sample.image)) for sample in reader.read(block)] for block in order}
samples = [sample for block in sorted(read) for sample in read[block]]
print(json.dumps([index.fingerprint, int(index.block_bytes.sum()), samples]))
"""


def write_hub(root: Path) -> Path:
    """Write OWNER/NAME like timm's sets: shards of two splits in one folder, members .cls, .jpg and .json, a card, a list."""
    folder = root / "timm" / NAME
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("a card")
    (folder / ".gitattributes").write_text("*.tar filter=lfs")
    (folder / "_info.json").write_text(json.dumps({"splits": {"train": {}}}))
    number = 0
    for shard, count in SHARDS.items():
        members: list[tuple[str, bytes]] = []
        for _ in range(count):
            key, label = f"n0{number % 3:07d}_{number}", number % 3
            facts = {"filename": f"n0/{key}.JPEG", "label": label, "class_id": f"n0{label:07d}", "height": 9, "width": 9}
            members += [
                (f"{key}.cls", b"%d" % label),
                (f"{key}.jpg", PICTURES[label]),
                (f"{key}.json", json.dumps(facts).encode()),
            ]
            number += 1
        write_tar(folder / f"{shard}.tar", members)
    return folder


def run(url: str, tmp_path: Path, folder: str, split: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(REPOSITORY), str(REFERENCE / "scientific")])
    locations = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path), "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, folder, str(tmp_path / "index"), split],
        env={**os.environ, "HF_TOKEN": "hf_of_a_test", **locations, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def read_here(folder: Path, out: Path) -> tuple[str, int, list[list[object]]]:
    index_folder(str(folder), block_samples=2, workers=LocalWorkers(0), split="train", out=str(out))
    index = load_index(str(folder), str(out))
    reader = BlockReader(index, capacity=1)
    read = [[s.key, s.label, len(s.image)] for block in range(index.num_blocks) for s in reader.read(block)]
    return index.fingerprint, int(index.block_bytes.sum()), read


def test_a_set_on_the_hub_is_indexed_and_read_as_one_on_a_disk(tmp_path: Path) -> None:
    """Its listing comes in pages, its files from another host, which must not learn the token. No byte is fetched twice."""
    folder = write_hub(tmp_path / "hub")
    with serve_hub(tmp_path / "hub") as (url, requests):
        done = run(url, tmp_path, f"hf://datasets/timm/{NAME}", "train")
    assert done.returncode == 0, done.stderr
    fingerprint, num_bytes, samples = read_here(folder, tmp_path / "here")
    assert json.loads(done.stdout) == [fingerprint, num_bytes, samples]
    assert len(samples) == SHARDS["imagenet22k-train-0000"] + SHARDS["imagenet22k-train-0001"]
    files = [request for request in requests if request.host == "store"]
    assert {request.token for request in files} == {""}
    assert {request.token for request in requests if "/tree/" in request.path} == {"Bearer hf_of_a_test"}
    assert any("cursor=" in request.path for request in requests)
    assert not any("validation" in request.path for request in files)
    shard_bytes = sum((folder / f"{shard}.tar").stat().st_size for shard in SHARDS if "train" in shard)
    assert sum(request.sent for request in files) == shard_bytes + num_bytes  # once to index them, once to read the blocks


MISSING: dict[str, tuple[str, dict[str, str], str]] = {
    "no such set": (
        "hf://datasets/timm/none",
        {},
        "does not exist or holds no .tar files; a private or gated repository shows",
    ),
    "a gated set without a token": (
        "hf://datasets/gated/set",
        {"HF_TOKEN": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"},
        "shows nothing without HF_TOKEN",
    ),
    "a model's path": (f"hf://timm/{NAME}", {}, "; data sets are at hf://datasets/OWNER/NAME"),
    "offline": (
        f"hf://datasets/timm/{NAME}",
        {"HF_HUB_OFFLINE": "1"},
        "cannot be reached: OfflineModeIsEnabled: .*unset the .HF_HUB_OFFLINE",
    ),
}


@pytest.mark.parametrize("case", MISSING)
def test_why_nothing_is_found_is_said(tmp_path: Path, case: str) -> None:
    folder, environment, message = MISSING[case]
    write_hub(tmp_path / "hub")
    (tmp_path / "hub" / "gated" / "set").mkdir(parents=True)
    with serve_hub(tmp_path / "hub") as (url, _):
        done = run(url, tmp_path, folder, "train", **environment)
    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr


def test_both_splits_are_not_one_corpus(tmp_path: Path) -> None:
    write_hub(tmp_path / "hub")
    with serve_hub(tmp_path / "hub") as (url, requests):
        done = run(url, tmp_path, f"hf://datasets/timm/{NAME}", "")
    assert "holds the splits train (2 tars), validation (1 tar); index one of them with --source-split" in done.stderr
    assert not [request for request in requests if request.host == "store"]

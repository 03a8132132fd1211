"""A part of a corpus is held out by two indexes over the same shards: whole together, disjoint, the same every time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data_tools.__main__ import main as data_tools
from pipeline.data.shards.hold_out import choose_held_out, hold_out
from pipeline.data.shards.index import ShardIndex, load_index
from pipeline.data.shards.reader import BlockReader
from pipeline.data.shards.skips import Skip, write_skips
from pipeline.errors import DataError
from tests.conftest import encode, make_image, write_tar

PICTURE = encode(make_image(0, num_classes=3, size=12), format="PNG")
COUNTS = {0: 30, 1: 10, 2: 2, 3: 1}  # images of each class


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Write three shards whose classes are mixed."""
    folder = tmp_path / "shards"
    folder.mkdir()
    labels = sorted((number * 7 % 11, label) for label, count in COUNTS.items() for number in range(count))
    for shard in range(3):
        members = []
        for number, (_, label) in list(enumerate(labels))[shard::3]:
            members += [(f"{number:04d}.png", PICTURE), (f"{number:04d}.cls", str(label).encode())]
        write_tar(folder / f"{shard:03d}.tar", members)
    assert data_tools(["index", str(folder), "--block-samples", "4", "--workers", "1"]) == 0
    return folder


def samples(index: ShardIndex) -> list[tuple[str, int]]:
    reader = BlockReader(index, capacity=1)
    return [(sample.key, sample.label) for block in range(index.num_blocks) for sample in reader.read(block)]


def divide(shards: Path, out: Path, *, index: str | None = None, seed: int = 0) -> tuple[ShardIndex, ShardIndex]:
    parts = hold_out(str(shards), index, share=0.2, seed=seed, out=out)
    rest, held = (load_index(str(shards), file) for file in (parts.rest, parts.held_out))
    assert (rest.num_samples, held.num_samples) == (parts.num_rest, parts.num_held_out)
    return rest, held


def test_both_parts_together_are_the_corpus_and_every_class_gives_its_share(shards: Path, tmp_path: Path) -> None:
    rest, held = (samples(part) for part in divide(shards, tmp_path / "splits"))
    assert sorted(rest + held) == sorted(samples(load_index(str(shards))))
    assert not set(rest) & set(held)
    assert Counter(label for _, label in held) == {0: 6, 1: 2, 2: 1}  # one image of a class alone stays


def test_the_same_shards_give_the_same_parts_and_another_seed_others(shards: Path, tmp_path: Path) -> None:
    first, second, other = (divide(shards, tmp_path / name, seed=seed)[1] for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first.fingerprint == second.fingerprint
    assert samples(first) != samples(other)


def test_parts_made_in_another_way_are_not_taken_for_those_asked_for(shards: Path, tmp_path: Path) -> None:
    divide(shards, tmp_path / "splits")
    divide(shards, tmp_path / "splits")
    with pytest.raises(DataError, match=r"'seed': 0}, and now .*'seed': 1} is asked for"):
        divide(shards, tmp_path / "splits", seed=1)
    (tmp_path / "splits" / "division.json").unlink()  # as of before there was one
    divide(shards, tmp_path / "splits")


def test_what_an_index_leaves_out_is_in_neither_part(shards: Path, tmp_path: Path) -> None:
    gone = samples(load_index(str(shards)))[:5]
    of_shard = {key: load_index(str(shards)).shard_names[int(key) % 3] for key, _ in gone}
    write_skips(tmp_path / "skips.tsv", [Skip(of_shard[key], key, "test") for key, _ in gone])
    line = ["index", str(shards), "--skip", str(tmp_path / "skips.tsv"), "--out", str(tmp_path / "index"), "--workers", "1"]
    assert data_tools(line) == 0
    rest, held = divide(shards, tmp_path / "splits", index=str(tmp_path / "index"))
    found = {key for key, _ in samples(rest) + samples(held)}
    assert not found & {key for key, _ in gone}
    assert len(found) == sum(COUNTS.values()) - len(gone)


def test_parts_of_another_corpus_are_not_taken_for_this_ones(shards: Path, tmp_path: Path) -> None:
    divide(shards, tmp_path / "splits")
    (shards / "002.tar").unlink()
    assert data_tools(["index", str(shards), "--workers", "1"]) == 0
    with pytest.raises(DataError, match="parts of another corpus"):
        divide(shards, tmp_path / "splits")


def test_a_corpus_of_single_images_cannot_be_divided(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    write_tar(folder / "000.tar", [("a.png", PICTURE), ("a.cls", b"0"), ("b.png", PICTURE), ("b.cls", b"1")])
    assert data_tools(["index", str(folder), "--workers", "1"]) == 0
    with pytest.raises(DataError, match="too few to hold out"):
        hold_out(str(folder), None, share=0.2, seed=0, out=tmp_path / "splits")


def test_samples_without_one_class_are_divided_as_one_class() -> None:
    chosen = choose_held_out([("s", str(number), None) for number in range(50)], share=0.1, seed=3)
    assert len(chosen) == 5

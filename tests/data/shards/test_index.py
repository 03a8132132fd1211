"""The index knows keys and labels: it keeps digests of them, and changes are refused."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.class_counts import ClassCounts
from pipeline.data.shards.index import ShardIndex, assemble_index, load_index, save_index
from pipeline.data.shards.reader import BlockReader
from pipeline.data.shards.scan import ShardEntry, scan_shard
from pipeline.errors import DataError
from tests.conftest import encode, make_image, write_tar

PICTURES = [encode(make_image(number, num_classes=3, size=12), format="PNG") for number in range(10)]
Member = tuple[str, bytes]


def members(labels: list[str], *, key: Callable[[int], str] = str) -> list[Member]:
    return [
        member
        for number, label in enumerate(labels)
        for member in ((f"{key(number)}.png", PICTURES[number]), (f"{key(number)}.cls", label.encode()))
    ]


def index(folder: Path, shard: list[Member] | None = None) -> ShardIndex:
    if shard is not None:
        folder.mkdir(exist_ok=True)
        write_tar(folder / "000.tar", shard)
    entries = []
    for path in sorted(folder.glob("*.tar")):  # as `data_tools index` does, in this process
        with path.open("rb") as file:
            entries.append(scan_shard(file, name=path.name, num_bytes=path.stat().st_size, block_samples=4))
    save_index(assemble_index(str(folder), entries))
    return load_index(str(folder))


def read_all(index: ShardIndex) -> list[int]:
    reader = BlockReader(index, capacity=1)
    return [sample.label for block in range(index.num_blocks) for sample in reader.read(block)]


def test_it_keeps_the_largest_label_and_counts_samples_without_one(tmp_path: Path) -> None:
    made = index(tmp_path / "a", members(["3", "0", "11", "2"]))
    assert (made.max_label, made.num_unlabelled) == (11, 0)
    made = index(tmp_path / "b", members(["3", "cat", "-4", "0"]))
    assert (made.max_label, made.num_unlabelled) == (3, 2)
    made = index(tmp_path / "c", [("a.png", PICTURES[0]), ("b.png", PICTURES[1])])
    assert (made.max_label, made.num_unlabelled) == (None, 2)


def test_it_counts_the_images_of_each_class(tmp_path: Path) -> None:
    """It counts all shards, without samples that have no label. An index without the counts is read as before."""
    (tmp_path / "a").mkdir()
    write_tar(tmp_path / "a" / "001.tar", members(["5", "0", "5"]))
    made = index(tmp_path / "a", members(["2", "0", "cat", "5"]))
    counts = made.class_counts
    assert counts is not None
    assert dict(zip(counts.ids.tolist(), counts.images.tolist(), strict=True)) == {0: 2, 2: 1, 5: 3}
    save_index(replace(made, class_counts=None))
    older = load_index(str(tmp_path / "a"))
    assert older.class_counts is None
    assert older.fingerprint == made.fingerprint


def test_counts_that_are_not_those_of_its_samples_are_damage(tmp_path: Path) -> None:
    made = index(tmp_path, members(["2", "0", "0"]))
    assert made.class_counts is not None
    for counts in (ClassCounts.of_labels([0, 0]), replace(made.class_counts, ids=made.class_counts.ids[::-1])):
        save_index(replace(made, class_counts=counts))
        with pytest.raises(DataError, match="damaged"):
            load_index(str(tmp_path))


@pytest.mark.parametrize(
    "changed",
    [
        members(["1", "0", "2", "0", "1", "2"]),  # two labels exchanged: every size and the number of each class are the same
        members(["0", "1", "2", "0", "1", "1"]),
        members(["0", "1", "2", "0", "1", "2"], key=lambda number: str((number + 1) % 6)),
    ],
)
def test_labels_and_keys_are_in_the_fingerprint(changed: list[Member], tmp_path: Path) -> None:
    before = index(tmp_path, members(["0", "1", "2", "0", "1", "2"]))
    assert read_all(before) == [0, 1, 2, 0, 1, 2]
    size = (tmp_path / "000.tar").stat().st_size
    fingerprint, order = before.fingerprint, before.order_fingerprint
    assert index(tmp_path).fingerprint == fingerprint  # made again of the same shards: the same
    write_tar(tmp_path / "000.tar", changed)
    assert (tmp_path / "000.tar").stat().st_size == size
    with pytest.raises(
        DataError, match=r"000\.tar bytes .*differ from the index: the shard was rewritten at the same size.*index"
    ):
        read_all(load_index(str(tmp_path)))
    after = index(tmp_path)
    assert after.fingerprint != fingerprint
    assert after.order_fingerprint == order


def test_the_text_of_a_label_does_not_matter_but_its_number(tmp_path: Path) -> None:
    one = index(tmp_path / "a", members(["1\n", "2 "]))
    other = index(tmp_path / "b", members([" 1", "2\n"]))
    assert one.fingerprint == other.fingerprint


def test_an_index_of_the_old_format_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    made = index(tmp_path, members(["0", "1"]))
    assert made.file is not None
    offset = Path(made.file)
    offset.write_bytes(offset.read_bytes().replace(b'"format":"3"', b'"format":"2"'))
    with pytest.raises(DataError, match=r"index format 2.*`python -m data_tools index .*` once more.*--skip lists"):
        load_index(str(tmp_path))
    offset.write_bytes(offset.read_bytes().replace(b'"format":"2"', b'"format":"9"'))
    with pytest.raises(DataError, match="index format 9 of a newer version"):
        load_index(str(tmp_path))


def write_odd_members(folder: Path) -> None:
    """Write a sample that is a link, one of two images, and one whose image has holes, between ordinary ones."""
    sources = folder.parent / "sources"
    sources.mkdir()
    for name, data in members(["0", "1", "2", "0", "1"]):
        (sources / name).write_bytes(data)
    (sources / "2.png").unlink()
    (sources / "2.png").hardlink_to(sources / "0.png")
    with (sources / "3.png").open("ab") as file:  # behind a PNG's end anything may lie
        file.truncate(1 << 20)
    folder.mkdir()
    order = ["0.png", "0.cls", "1.png", "1.cls", "1.png", "2.png", "2.cls", "3.png", "3.cls", "4.png", "4.cls"]
    subprocess.run(["tar", "--sparse", "-cf", folder / "000.tar", "-C", sources, *order], check=True)


def test_samples_that_cannot_be_read_by_their_range_are_refused_or_left_out_and_the_others_read(tmp_path: Path) -> None:
    write_odd_members(tmp_path / "x")
    path = tmp_path / "x" / "000.tar"

    def scan(skip: set[str]) -> ShardEntry:
        with path.open("rb") as file:
            return scan_shard(file, name="000.tar", num_bytes=path.stat().st_size, block_samples=8, skip=skip)

    with pytest.raises(DataError, match=r"000\.tar: sample '1' has two members \.png"):
        scan(set())
    with pytest.raises(DataError, match=r"000\.tar: sample '2' has a member \.png that is a link"):
        scan({"1"})
    save_index(assemble_index(str(tmp_path / "x"), [scan({"1", "2"})]))
    samples = BlockReader(load_index(str(tmp_path / "x")), capacity=1).read(0)
    assert [(sample.key, sample.label) for sample in samples] == [("0", 0), ("3", 0), ("4", 1)]
    assert [len(sample.image) for sample in samples] == [len(PICTURES[0]), 1 << 20, len(PICTURES[4])]
    assert samples[1].image.rstrip(b"\0") == PICTURES[3].rstrip(b"\0")


def test_a_tar_without_members_is_a_shard_without_samples(tmp_path: Path) -> None:
    index(tmp_path, members(["3", "0"]))
    write_tar(tmp_path / "00.tar", [])  # first by name
    assert index(tmp_path).shard_names == ("000.tar",)


@pytest.mark.parametrize("offset", [-1, -200, 300])
def test_an_index_with_a_byte_changed_is_refused(offset: int, tmp_path: Path) -> None:
    made = index(tmp_path, members(["0", "1", "2", "0", "1"]))
    assert made.file is not None
    data = bytearray(Path(made.file).read_bytes())
    data[offset] ^= 1
    Path(made.file).unlink()
    Path(made.file).write_bytes(data)
    with pytest.raises(DataError, match=r"index\.safetensors is damaged .*`python -m data_tools index"):
        load_index(str(tmp_path))

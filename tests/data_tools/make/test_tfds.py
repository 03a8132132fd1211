"""Sets of TensorFlow Datasets are packed with the images and labels that TensorFlow Datasets itself reads.

`tfds_kitti` was written by tensorflow-datasets 4.9.9: pictures of noise in three shards a split, with the features of its set
kitti. `expected.json` is what it reads for some slices: file name, MD5 of the pixels, a class, and the distance class that VTAB
defines.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_tools.__main__ import main
from data_tools.make.sources.options import SourceOptions
from data_tools.make.sources.tfds import vtab
from data_tools.make.sources.tfds.slices import Part, parse_slices, place_in_shards
from data_tools.make.sources.tfds.vtab import TASKS
from pipeline.errors import DataError
from tests.conftest import Outcome

Tool = Callable[..., Outcome]
SET = Path(__file__).parent / "tfds_kitti"
EXPECTED: dict[str, list[list[Any]]] = json.loads((SET / "expected.json").read_text())


@pytest.fixture
def tool(capfd: pytest.CaptureFixture[str]) -> Tool:
    """Run a command of `python -m data_tools` in this process."""

    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        code = main(list(arguments))
        captured = capfd.readouterr()
        return Outcome(code, captured.out + captured.err)

    return run


def packed(folder: Path) -> list[tuple[str, int]]:
    """Return MD5 of the pixels and label of each sample of a folder of shards."""
    found: list[tuple[str, int]] = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member) for member in tar}
        with tarfile.open(path) as tar:
            data = {name: tar.extractfile(name).read() for name in members}  # type: ignore[union-attr]
        for name in data:
            if name.endswith(".png"):
                pixels = np.asarray(Image.open(io.BytesIO(data[name])))
                label = int(data[f"{name[:-4]}.cls"])
                found.append((hashlib.md5(np.ascontiguousarray(pixels).tobytes()).hexdigest(), label))
    return found


@pytest.mark.parametrize("split", EXPECTED)
def test_slices_have_the_images_that_the_library_reads(split: str, tmp_path: Path, tool: Tool) -> None:
    made = tool("make", str(SET), str(tmp_path / "out"), "--source-split", split, "--workers", "1")
    assert made.code == 0, made.text
    assert sorted(packed(tmp_path / "out")) == sorted((digest, label) for _, digest, label, _ in EXPECTED[split])
    assert (tmp_path / "out" / "classes.txt").read_text() == "sun\nrain\n"


def test_a_task_of_vtab_has_its_own_labels_and_splits(tmp_path: Path, tool: Tool) -> None:
    for split, parts in (("test", ["test"]), ("train800val200", ["train", "validation"])):
        out = tmp_path / split
        made = tool("make", str(SET), str(out), "--vtab", "kitti_distance", "--source-split", split, "--workers", "1")
        assert made.code == 0, made.text
        examples = [row for part in parts for row in (EXPECTED | VALIDATION)[part]]
        assert sorted(packed(out)) == sorted((digest, label) for _, digest, _, label in examples)
        assert (out / "classes.txt").read_text().splitlines() == ["below 8 m", "8 to 20 m", "20 to 999 m", "no vehicle"]


# The whole of validation: its first two images and the rest of them, which two of the slices have.
VALIDATION = {
    "validation": list(
        {row[0]: row for row in [*EXPECTED["train[:4]+validation[:40%]"][4:], *EXPECTED["validation[25%:]"]]}.values()
    )
}


def test_the_version_below_a_sets_folder_is_found(tmp_path: Path, tool: Tool) -> None:
    shutil.copytree(SET, tmp_path / "kitti" / "3.1.0")
    made = tool("make", str(tmp_path / "kitti"), str(tmp_path / "out"), "--source-split", "test", "--workers", "1")
    assert made.code == 0, made.text
    assert "from TensorFlow Datasets" in made.text


def test_several_versions_and_half_a_version_are_told(tmp_path: Path, tool: Tool) -> None:
    for version in ("3.1.0", "3.2.0"):
        shutil.copytree(SET, tmp_path / "two" / version)
    made = tool("make", str(tmp_path / "two"), str(tmp_path / "out"), "--source-split", "test")
    assert "holds several versions or configurations of a TensorFlow data set (3.1.0, 3.2.0); give one of them" in made.text
    (tmp_path / "half" / "3.1.0.incompleteQ2B7").mkdir(parents=True)
    made = tool("make", str(tmp_path / "half"), str(tmp_path / "out"), "--source-split", "test")
    assert "3.1.0.incompleteQ2B7 was not prepared to its end" in made.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"has several splits; choose with --source-split: train (10), validation (5), test (4)"),
        (["--source-split", "dev"], "names 'dev'; the set has train, validation, test"),
        (["--source-split", "train[:11]"], "an example number 11 is asked for, and the split has 10"),
        (["--source-split", "train[3:3]"], "names no example"),
        (["--source-split", "train[::2]"], "is no slice"),
        (
            ["--source-split", "test", "--label-column", "objects"],
            "has no label 'objects'; choose with --label-column: weather",
        ),
        (["--source-split", "test", "--image-column", "picture"], "has no image 'picture'"),
        (["--source-split", "test", "--vtab", "kitty"], "is no task; they are caltech101"),
        (["--source-split", "test", "--vtab", "dtd"], "is defined on the set dtd;"),
        (["--source-split", "train", "--vtab", "kitti_distance", "--label-separator", ";"], "--label-separator has no meaning"),
        (["--source-split", "train[:3]", "--vtab", "kitti_distance"], "with --vtab it is one of train, val"),
        (["--vtab", "kitti_distance"], "train800val200"),
    ],
)
def test_what_is_asked_for_wrongly_is_said(options: Sequence[str], message: str, tmp_path: Path, tool: Tool) -> None:
    made = tool("make", str(SET), str(tmp_path / "out"), "--workers", "1", *options)
    assert made.code != 0
    assert message in made.text


def truncate(folder: Path) -> None:
    path = folder / "kitti-test.tfrecord-00001-of-00003"
    path.write_bytes(path.read_bytes()[:-20])


def flip(folder: Path) -> None:
    path = folder / "kitti-test.tfrecord-00001-of-00003"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def compress(folder: Path) -> None:
    path = folder / "kitti-test.tfrecord-00000-of-00003"
    path.write_bytes(b"\x1f\x8b" + path.read_bytes())


def point(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 144000000\n"
    (folder / "kitti-test.tfrecord-00000-of-00003").write_text(text)


def shorten(folder: Path) -> None:
    path = folder / "kitti-test.tfrecord-00001-of-00003"
    data = path.read_bytes()
    path.write_bytes(data[: 16 + int.from_bytes(data[:8], "little")])  # its first record


def lose(folder: Path) -> None:
    (folder / "kitti-train.tfrecord-00002-of-00003").unlink()


def rename_format(folder: Path) -> None:
    path = folder / "dataset_info.json"
    path.write_text(path.read_text().replace('"tfrecord"', '"array_record"'))


def break_description(folder: Path) -> None:
    (folder / "features.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "is truncated in record 1; copy it again"),
        (flip, "is damaged: its checksum is another; copy it again"),
        (compress, "record 0 has no valid header"),
        (point, "git-lfs"),  # google-research-datasets/richhf-18k issue 4
        (shorten, "has 1 records, and 2 are needed"),
        (lose, "kitti-train.tfrecord-00002-of-00003 does not exist"),
        (rename_format, "holds files of the format array_record"),
        (break_description, "its description is not that of TensorFlow Datasets"),
    ],
)
def test_damage_is_named(damage: Callable[[Path], None], message: str, tmp_path: Path, tool: Tool) -> None:
    shutil.copytree(SET, tmp_path / "set")
    damage(tmp_path / "set")
    made = tool("make", str(tmp_path / "set"), str(tmp_path / "out"), "--source-split", "test", "--workers", "1")
    assert made.code != 0
    assert message in made.text


def test_an_option_of_this_source_has_no_meaning_for_others(tmp_path: Path, tool: Tool) -> None:
    (tmp_path / "list.csv").write_text("a.jpg,0\n")
    made = tool("make", str(tmp_path / "list.csv"), str(tmp_path / "out"), "--vtab", "dtd")
    assert made.code != 0
    assert "--vtab has no meaning for" in made.text
    assert SourceOptions().vtab is None


# Numbers of examples (tensorflow.org/datasets/catalog), and the slices of google-research/big_vision's and scenic's VTAB-1k.
COUNTS = {
    "caltech101": {"train": 3060, "test": 6084},
    "cifar100": {"train": 50_000, "test": 10_000},
    "oxford_iiit_pet": {"train": 3680, "test": 3669},
    "svhn_cropped": {"train": 73_257, "test": 26_032, "extra": 531_131},
    "eurosat": {"train": 27_000},
    "resisc45": {"train": 31_500},
    "clevr": {"train": 70_000, "validation": 15_000, "test": 15_000},
    "dsprites": {"train": 737_280},
    "smallnorb": {"train": 24_300, "test": 24_300},
    "dtd": {"train": 1880, "validation": 1880, "test": 1880},
}
KNOWN = {
    "caltech101": ("train[:800]+train[2754:2954]", "test"),
    "cifar100": ("train[:800]+train[45000:45200]", "test"),
    "dtd": ("train[:800]+validation[:200]", "test"),
    "pets": ("train[:800]+train[2944:3144]", "test"),
    "svhn": ("train[:800]+train[65931:66131]", "test"),
    "eurosat": ("train[:800]+train[16200:16400]", "train[21600:]"),
    "resisc45": ("train[:800]+train[18900:19100]", "train[25200:]"),
    "clevr_count": ("train[:800]+train[63000:63200]", "validation"),
    "clevr_distance": ("train[:800]+train[63000:63200]", "validation"),
    "dsprites_location": ("train[:800]+train[589824:590024]", "train[663552:]"),
    "dsprites_orientation": ("train[:800]+train[589824:590024]", "train[663552:]"),
    "smallnorb_azimuth": ("train[:800]+test[:200]", "test[50%:]"),
    "smallnorb_elevation": ("train[:800]+test[:200]", "test[50%:]"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_splits_of_vtab_are_those_of_the_published_configurations(name: str) -> None:
    task, counts = TASKS[name], COUNTS[TASKS[name].builder]
    for split, text in zip(("train800val200", "test"), KNOWN[name], strict=True):
        assert task.parts(split, counts) == parse_slices(text, counts)
    train, test = (task.parts(split, counts) for split in ("train800val200", "test"))
    assert sum(part.end - part.first for part in train) == 1000
    for ours, theirs in ((a, b) for a in train for b in test if a.split == b.split):
        assert ours.end <= theirs.first or theirs.end <= ours.first, "an image of train is in test"


def test_all_nineteen_tasks_are_there() -> None:
    assert len(TASKS) == 19
    with pytest.raises(DataError, match="is one of train, val"):
        TASKS["dtd"].parts("dev", COUNTS["dtd"])


def test_labels_of_clevr_and_dsprites_are_those_of_task_adaptation() -> None:
    """Its thresholds are compared by `max(where(thresholds - distance < 0))`; counts begin at three objects."""
    thresholds = np.array(vtab.CLEVR_DEPTHS)
    for depth in (0.5, 8.0, 8.2, 8.5, 9.7, 10.0, 12.0):
        features = {"objects/pixel_coords": [1, 2, 99.0, 3, 4, depth], "objects/size": [0] * 5}
        compute = TASKS["clevr_distance"].compute
        assert compute is not None
        assert compute(features) == int(np.max(np.where(thresholds - depth < 0)))
    count = TASKS["clevr_count"].compute
    assert count is not None
    assert count({"objects/size": [0, 1, 1]}) == 0
    for name, key, factor in (
        ("dsprites_location", "label_x_position", 2.0),
        ("dsprites_orientation", "label_orientation", 2.5),
    ):
        compute = TASKS[name].compute
        assert compute is not None
        values = range(32 if factor == 2 else 40)
        assert [compute({key: [value]}) for value in values] == [int(np.floor(value / factor)) for value in values]


def test_pictures_of_zeros_and_ones_become_visible() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)).save(buffer, format="PNG")
    draw = TASKS["dsprites_location"].draw
    assert draw is not None
    assert np.asarray(Image.open(io.BytesIO(draw(buffer.getvalue())))).tolist() == [[0, 255], [255, 0]]


def test_places_in_shards_cover_a_part_once() -> None:
    assert place_in_shards(Part("train", 3, 9), [4, 0, 3, 5]) == {0: (3, 4), 2: (0, 3), 3: (0, 2)}

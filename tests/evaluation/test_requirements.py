"""A launch says of evaluation sets what the evaluator will find."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_tools.index import index_folder
from data_tools.parallel import LocalWorkers
from pipeline.data.class_counts import ClassCounts
from pipeline.data.shards.index import load_index, save_index
from pipeline.errors import EvaluationError
from pipeline.evaluation.datasets import examine_dataset
from pipeline.evaluation.features import Features
from pipeline.evaluation.protocols import FewShot, Linear
from pipeline.evaluation.requirements import compare_classes
from pipeline.evaluation.section import EvalDataset, EvaluationSection
from pipeline.evaluation.splits import Splits, prepare_splits
from tests.conftest import encode, make_image, write_tar

PICTURE = encode(make_image(0, num_classes=3, size=12), format="PNG")


def make_split(folder: Path, labels: list[int], *, names: str = "ant\nbee\ncat\n") -> str:
    folder.mkdir()
    members = [
        ((f"{folder.name}-{i}.png", PICTURE), (f"{folder.name}-{i}.cls", str(label).encode())) for i, label in enumerate(labels)
    ]
    write_tar(folder / "0.tar", [member for sample in members for member in sample])
    (folder / "classes.txt").write_text(names)
    index_folder(str(folder), block_samples=4, workers=LocalWorkers(0))
    return str(folder)


def examine(tmp_path: Path, train: list[int], test: list[int], **section: object) -> list[str]:
    paths = {"train": make_split(tmp_path / "train", train), "test": make_split(tmp_path / "test", test)}
    return examine_dataset(EvalDataset.model_validate({"name": "x", **paths}), EvaluationSection.model_validate(section))


def test_too_few_images_for_the_shots_are_said_with_the_class_and_the_line_to_type(tmp_path: Path) -> None:
    train = [0] * 6 + [1] * 3 + [2] * 12
    assert examine(tmp_path, train, [0, 1, 2], protocols={"few_shot": {"shots": (1, 3, 5, 10, 25)}}) == [
        "evaluation set 'x': class 1 (bee) has 3 train images, and evaluation.protocols.few_shot.shots asks for 5, 10 and "
        "25. A class with fewer gives "
        "all that it has (1 of 3 classes at 5-shot, 2 of 3 classes at 10-shot, 3 of 3 classes at 25-shot); at 25 that "
        "is all of "
        "train, whatever the seed. Shots that every class has: evaluation.protocols.few_shot.shots='[1, 3]'"
    ]


def test_enough_images_are_not_mentioned(tmp_path: Path) -> None:
    assert examine(tmp_path, [0, 1, 2] * 5, [0, 1, 2], protocols={"few_shot": {"shots": (1, 5)}, "linear": {}}) == []


def test_shots_without_few_shot_are_not_asked_for(tmp_path: Path) -> None:
    assert examine(tmp_path, [0, 1, 2] * 2, [0, 1, 2], protocols=("linear",)) == []


def test_a_linear_probe_that_will_fail_is_said_or_refused_if_nothing_else_is_asked_for(tmp_path: Path) -> None:
    (note,) = examine(tmp_path, [0, 1, 2], [0, 1, 2], protocols={"few_shot": {"shots": (1,)}, "linear": {}})
    assert "linear will fail: no class has two images in its train split (3 images of 3 classes)" in note
    assert note.endswith("leave it out with evaluation.protocols.linear=null")
    dataset = EvalDataset.model_validate({"name": "x", "train": str(tmp_path / "train"), "test": str(tmp_path / "test")})
    with pytest.raises(
        EvaluationError, match=r"set 'x': no class has two images .*; leave the set out, or name a protocol that can"
    ):
        examine_dataset(dataset, EvaluationSection.model_validate({"protocols": ["linear"]}))


@pytest.mark.parametrize(
    ("train", "test", "reason"),
    [
        ([1, 1, 1], [1, 1], "all 3 images of its train split are of class 1"),
        ([0, 1], [2, 2], "no image of its test split is of a"),
    ],
)
def test_a_set_on_which_nothing_can_be_measured_is_refused(
    train: list[int], test: list[int], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match=f"evaluation set 'x': {reason}.* leave it out of evaluation.datasets"):
        examine(tmp_path, train, test)


def test_classes_that_one_split_lacks_are_said(tmp_path: Path) -> None:
    assert examine(tmp_path, [0, 0, 1, 1], [1, 1, 2], protocols={"few_shot": {"shots": (1,)}, "linear": {}}) == [
        "evaluation set 'x': 1 of 3 test images are of classes that train does not have; they count as wrong",
        "evaluation set 'x': 1 of 2 classes have no test image",
    ]


def test_an_index_of_an_older_version_is_not_judged(tmp_path: Path) -> None:
    examine(tmp_path, [0, 1], [0, 1])
    for split in ("train", "test"):
        save_index(replace(load_index(str(tmp_path / split)), class_counts=None))
    dataset = EvalDataset.model_validate({"name": "x", "train": str(tmp_path / "train"), "test": str(tmp_path / "test")})
    assert examine_dataset(dataset, EvaluationSection()) == []


def prepare(train: Features, test: Features) -> tuple[str, Splits | None]:
    try:
        return "", prepare_splits(train, test)
    except EvaluationError as error:
        return str(error), None


@pytest.mark.parametrize("seed", range(20))
def test_the_launch_finds_what_the_evaluator_finds(seed: int, tmp_path: Path) -> None:
    """Sets have random sizes. Both refuse or neither, with the same notes, failing protocols and short classes."""
    generator = np.random.default_rng(seed)
    train, test = (generator.integers(0, 4, generator.integers(1, 9)).tolist() for _ in range(2))
    section = EvaluationSection.model_validate({"protocols": {"few_shot": {"shots": (1, 2), "seeds": (0,)}, "linear": {}}})
    features = [
        Features(torch.from_numpy(generator.normal(size=(len(labels), 3))).float(), torch.tensor(labels), 0)
        for labels in (train, test)
    ]
    dataset = EvalDataset(
        name="x",
        **{
            name: make_split(tmp_path / name, labels, names="a\nb\nc\nd\n")
            for name, labels in (("train", train), ("test", test))
        },
    )
    reason, splits = prepare(*features)
    if splits is None:
        with pytest.raises(EvaluationError, match=re.escape(reason)):
            examine_dataset(dataset, section)
        return
    notes = examine_dataset(dataset, section)
    compared = compare_classes(ClassCounts.of_labels(train), ClassCounts.of_labels(test))
    assert [note for note in splits.notes if "features" not in note] == list(compared.notes)
    assert all(f"evaluation set 'x': {note}" in notes for note in compared.notes)
    linear, few_shot = section.protocols["linear"], section.protocols["few_shot"]
    assert isinstance(linear, Linear)
    assert isinstance(few_shot, FewShot)
    if any("linear will fail" in note for note in notes):
        with pytest.raises(EvaluationError):
            linear.measure(splits, linear.settings()[0])
    else:
        linear.measure(splits, linear.settings()[0])
    for setting in few_shot.settings():
        short = few_shot.measure(splits, setting).detail["short_classes"]
        said = [note for note in notes if f"{short} of {splits.num_classes} classes at {setting.measure}" in note]
        assert len(said) == (short > 0)

"""Images with several labels, from a table to a training of other ranks; images without labels, for masked patches."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_tools.__main__ import main as data_tools
from pipeline.data.shards.index import load_index
from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_metrics
from pipeline.run.weights import load_weights
from tests.conftest import encode, make_image, write_tar
from tests.helpers.trainings import train_together

NAMES = ("red", "green", "round", "square")
LEGS = (2, 1)
STEPS = 6


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards that `make` packs from a table with several labels a line."""
    folder = tmp_path_factory.mktemp("several")
    images = folder / "images"
    images.mkdir()
    rows = ["path,labels"]
    for number in range(40):
        labels = [NAMES[number % 2], NAMES[2 + number // 2 % 2]][: 1 + number % 3 % 2]
        (images / f"{number:02d}.png").write_bytes(encode(make_image(number, num_classes=4, size=24), format="PNG"))
        rows.append(f"images/{number:02d}.png,{'|'.join(labels)}")
    table = folder / "table.csv"
    table.write_text("\n".join(rows) + "\n")
    shards = folder / "shards"
    assert data_tools(["make", str(table), str(shards), "--label-separator", "|"]) == 0
    return shards


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unlabelled")
    pictures = [(f"{number:02d}.png", encode(make_image(number, num_classes=4, size=24), format="PNG")) for number in range(40)]
    write_tar(folder / "shard-000000.tar", pictures)
    assert data_tools(["index", str(folder)]) == 0
    return folder


def train_in_legs(folder: Path, values: dict[str, Any]) -> dict[str, RunFolder]:
    """One run that two ranks begin and one ends, and one that one rank trains alone; each killed and resumed between legs."""
    runs = {}
    for name, legs in {"changing": LEGS, "alone": (1, 1)}.items():
        for leg, num_ranks in enumerate(legs):
            path = folder / f"{name}-{leg}.yaml"
            end = {"max_steps": STEPS // 2 * (leg + 1), "duration": f"{STEPS} steps", "precision": "fp32", "zero_stage": 2}
            trainer = {**values["trainer"], **end}
            path.write_text(yaml.safe_dump({**values, "name": name, "output_dir": str(folder / "runs"), "trainer": trainer}))
            train_together([path], folder / f"{name}-{leg}.json", num_ranks=num_ranks)
        runs[name] = RunFolder(folder / "runs" / name)
    return runs


def with_objective(tiny_config: dict[str, Any], shards: Path, objective: dict[str, Any]) -> dict[str, Any]:
    model = {**tiny_config["model"], "dropout": 0.0, "representation": "none"}
    data = {**tiny_config["data"], "train": str(shards)}
    return {**tiny_config, "model": model, "data": data, "objective": objective, "checkpoint": {"every": "100 steps"}}


def losses_of(folder: RunFolder) -> list[float]:
    return [row["train/loss"] for row in read_metrics(folder.metrics)]


def test_the_index_counts_samples_with_several_labels(several: Path) -> None:
    index = load_index(str(several))
    with tarfile.open(next(several.glob("*.tar"))) as tar:
        stored = [json.load(tar.extractfile(member))["labels"] for member in tar if member.name.endswith(".json")]  # type: ignore[arg-type]
    assert index.num_several == len(stored) > 0
    assert {len(labels) for labels in stored} == {2}
    assert index.class_counts is not None
    assert index.class_counts.num_images == index.num_samples + len(stored)


def test_an_objective_of_one_label_refuses_them_before_it_starts(
    several: Path, tiny_config: dict[str, Any], write_config: Callable[..., Path], call: Any
) -> None:
    outcome = call("train", str(write_config(data={"train": str(several)})))
    assert outcome.code == 2
    assert "have several labels, or an empty list of them; set objective.name=multi_label" in outcome.text


@pytest.mark.slow
def test_several_labels_survive_a_kill_and_other_ranks(several: Path, tiny_config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "hierarchy.txt").write_text("red round\n")
    mixing = {"mixup_alpha": 0.5, "cutmix_alpha": 1.0}
    objective = {"name": "multi_label", "hierarchy": str(tmp_path / "hierarchy.txt"), "mixing": mixing}
    runs = train_in_legs(tmp_path, with_objective(tiny_config, several, objective))
    assert losses_of(runs["changing"]) == pytest.approx(losses_of(runs["alone"]), rel=1e-5)
    digests = [[row["data/digest"] for row in read_metrics(folder.metrics)] for folder in runs.values()]
    assert digests[0] == digests[1]
    assert {"train/hit_at_1"} <= read_metrics(runs["alone"].metrics)[-1].keys()


@pytest.mark.slow
def test_patches_need_no_labels(unlabelled: Path, tiny_config: dict[str, Any], tmp_path: Path) -> None:
    runs = train_in_legs(tmp_path, with_objective(tiny_config, unlabelled, {"name": "masked_patches"}))
    assert losses_of(runs["changing"]) == pytest.approx(losses_of(runs["alone"]), rel=1e-5)
    rows = read_metrics(runs["alone"].metrics)
    assert 0 <= rows[-1]["train/patch_accuracy"] <= 1
    ends = [load_weights(folder.weights_of(STEPS)).model.state_dict() for folder in runs.values()]
    for name, tensor in ends[0].items():
        np.testing.assert_allclose(tensor, ends[1][name], atol=1e-4, rtol=1e-3, err_msg=name)

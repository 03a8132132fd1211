"""Models that are no run are evaluated like a run's weights, by suites whose sets may be missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.build.pretrained import open_pretrained
from pipeline.data.images.crop import EvalTransform
from pipeline.models.vit.model import VisionTransformer
from pipeline.run.checkpoint import RunFolder
from pipeline.run.evaluations import group_means, read_results
from pipeline.run.records import read_json_lines
from pipeline.run.weights import save_weights
from tests.conftest import Outcome
from tests.helpers.evaluations import MODEL, RESULTS_PER_STEP, add_weights

Call = Callable[..., Outcome]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    model = VisionTransformer(MODEL)
    model.init_weights(torch.Generator().manual_seed(0))
    save_weights(path, model.state_dict(), model=MODEL, step=4, images_seen=32)
    return path


@pytest.fixture
def suite(tmp_path: Path, downstream: dict[str, str]) -> Path:
    """Write a suite of two copies of a set below a root, and a third that is not there."""
    root = tmp_path / "sets"
    for copy in ("a", "b"):
        shutil.copytree(downstream["train"], root / copy / "train")
        shutil.copytree(downstream["test"], root / copy / "test")
    section = {
        "root": str(root),
        "absent": "leave_out",
        "protocols": {"few_shot": {"shots": [1, 5], "seeds": [0, 1]}, "linear": {}},
        "datasets": [{"name": name, "train": f"{name}/train", "test": f"{name}/test"} for name in "abc"],
        "groups": {"letters": ["a", "b", "c"]},
        "precision": "fp32",
        "num_workers": 0,
    }
    path = tmp_path / "letters.yaml"
    path.write_text(f"# Letters.\n{yaml.safe_dump({'evaluation': section})}")
    return path


def test_a_file_is_measured_as_a_run_of_it_would_be(
    weights: Path, suite: Path, tmp_path: Path, call: Call, write_config: Callable[..., Path], downstream: dict[str, str]
) -> None:
    out = tmp_path / "out"
    assert call("evaluate", str(weights), "--suite", str(suite), "--out", str(out)).code == 0
    found = read_json_lines(out / "evaluations.jsonl")
    assert len(found) == 2 * RESULTS_PER_STEP
    folder = RunFolder(tmp_path / "runs" / "tiny")
    folder.root.mkdir(parents=True)
    folder.config.write_bytes(write_config(evaluation={"datasets": [downstream], "precision": "fp32"}).read_bytes())
    folder.weights.mkdir()
    shutil.copy(weights, folder.weights_of(4))
    assert call("evaluate", str(folder.root)).code == 0
    of_run = {(row["measure"], row["seed"]): row["accuracy"] for row in read_json_lines(folder.evaluations)}
    assert {(row["measure"], row["seed"]): row["accuracy"] for row in found if row["dataset"] == "a"} == of_run


def test_it_is_not_measured_twice_and_another_model_is_refused(weights: Path, suite: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "out"
    command = ("evaluate", str(weights), "--suite", str(suite), "--out", str(out))
    assert "a: 5 values (1-shot, 5-shot, linear)" in call(*command, "--dry-run").text
    assert not (out / "evaluations.jsonl").exists()
    call(*command)
    before = (out / "evaluations.jsonl").read_bytes()
    again = call(*command, "--dry-run")
    assert "nothing to measure" in again.text
    call(*command)
    assert (out / "evaluations.jsonl").read_bytes() == before
    other = tmp_path / "other.safetensors"
    model = VisionTransformer(MODEL)
    model.init_weights(torch.Generator().manual_seed(1))
    save_weights(other, model.state_dict(), model=MODEL, step=4, images_seen=32)
    refused = call("evaluate", str(other), "--suite", str(suite), "--out", str(out))
    assert refused.code == 2
    assert "has results of another model" in refused.text


def test_missing_sets_are_said_and_left_out_of_means(weights: Path, suite: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "out"
    outcome = call("evaluate", str(weights), "--suite", str(suite), "--out", str(out))
    assert outcome.code == 0
    assert "left out: evaluation set 'c'" in outcome.text
    rows = read_results(RunFolder(out)).rows
    means = {results.measure: results.by_step for results in group_means(rows)}
    assert list(means) == [f"mean of 2 of 3 letters sets, {name}" for name in ("1-shot", "5-shot", "linear")]
    of_a = [row["accuracy"] for row in rows if row["dataset"] == "a" and row["measure"] == "5-shot"]
    assert means["mean of 2 of 3 letters sets, 5-shot"] == {4: [pytest.approx(sum(of_a) / 2)]}  # b is a copy of it
    assert "mean of 2 of 3 letters sets, linear" in call("report", str(out)).text
    strict = call("evaluate", str(weights), "--suite", str(suite), "--out", str(out), "evaluation.absent=refuse")
    assert strict.code == 2
    assert "evaluation set 'c'" in strict.text


def test_a_suite_replaces_a_runs_settings(tmp_path: Path, suite: Path, call: Call, write_config: Callable[..., Path]) -> None:
    folder = RunFolder(tmp_path / "runs" / "tiny")
    folder.root.mkdir(parents=True)
    folder.config.write_bytes(write_config(evaluation={"datasets": []}).read_bytes())
    add_weights(folder, 4)
    assert call("evaluate", str(folder.root), "--suite", str(suite), "evaluation.protocols=[linear]").code == 0
    assert [row["measure"] for row in read_json_lines(folder.evaluations)] == ["linear", "linear"]


def test_images_become_squares_where_asked(weights: Path, suite: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "out"
    command = ("evaluate", str(weights), "--suite", str(suite), "--out", str(out))
    call(*command)
    call(*command, "evaluation.resize=square")  # its images are squares already: the same values, under another condition
    rows = read_json_lines(out / "evaluations.jsonl")
    kept, stretched = ([row for row in rows if row.get("aspect") == aspect] for aspect in (None, "stretch"))
    assert [row["accuracy"] for row in kept] == [row["accuracy"] for row in stretched]
    assert len(stretched) == 2 * RESULTS_PER_STEP


def test_a_square_resize_is_pillows_then_a_crop() -> None:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    found = EvalTransform(image_size=28, short_side=32, aspect="stretch")(pixels).permute(1, 2, 0).numpy().astype(int)
    theirs = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)).astype(int)[2:30, 2:30]
    assert abs(found - theirs).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("evaluation.batch_size=3",), "the first argument is a run folder"),
        (("{weights}", "--watch"), "--watch waits for the checkpoints of a run"),
        (("{weights}", "model.depth=3"), "evaluation.* and tracking.* alone"),
        (("{weights}", "--suite", "{weights}.yaml"), "does not exist"),
        (("{folder}", "--out", "x"), "--out is for a model that is no run"),
    ],
)
def test_bad_commands_are_answered_in_words(
    arguments: tuple[str, ...], words: str, weights: Path, tmp_path: Path, call: Call
) -> None:
    named = [text.format(weights=weights, folder=tmp_path) for text in arguments]
    outcome = call("evaluate", *named)
    assert outcome.code == 2
    assert words in outcome.text


def test_the_list_names_protocols_and_suites(call: Call, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call("evaluate", "--list")
    assert ended.value.code in (0, None)
    text = capfd.readouterr().out
    for name in ("few_shot", "linear", "segmentation", "vtab1k.yaml", "big_vision_few_shot.yaml", "smallnorb_elevation"):
        assert name in text


def test_its_own_preprocessing_counts_unless_another_is_asked_for(
    suite: Path, weights: Path, tmp_path: Path, call: Call
) -> None:
    exported = tmp_path / "timm"
    assert call("export", str(weights), "--to", "timm", str(exported), "--without-head").code == 0
    config = json.loads((exported / "config.json").read_text())
    config["pretrained_cfg"]["crop_pct"] = 1.0
    (exported / "config.json").write_text(json.dumps(config))
    assert open_pretrained(exported).preprocessing.pixels(MODEL) == 16
    for name, more, pixels in (("own", (), 16), ("asked", ("evaluation.short_side=18",), 18)):
        out = tmp_path / name
        assert call("evaluate", str(exported), "--suite", str(suite), "--out", str(out), *more).code == 0
        rows: list[dict[str, Any]] = read_json_lines(out / "evaluations.jsonl")
        assert {row["short_side"] for row in rows} == {pixels}

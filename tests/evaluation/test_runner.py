"""The evaluator on a real run folder: what is there already is not done again, and nothing it does is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import RunFolder
from pipeline.files import write_whole
from pipeline.journal import read_json_lines
from pipeline.models.vit import VisionTransformer, ViTConfig
from pipeline.weights import save_weights
from tests.conftest import REPOSITORY, Outcome, environment

Call = Callable[..., Outcome]

MODEL = ViTConfig(
    image_size=16, patch_size=8, width=32, depth=1, mlp_dim=64, num_heads=2, num_classes=4, representation_size=32, dropout=0.1
)
RESULTS_PER_STEP = 2 * 2 + 1  # shots x seeds, and the linear probe


def add_weights(folder: RunFolder, step: int, *, seed: int = 0) -> None:
    model = VisionTransformer(MODEL)
    model.init_weights(torch.Generator().manual_seed(step + seed))
    save_weights(folder.weights_of(step), model.state_dict(), model=MODEL, step=step, images_seen=8 * step)


@pytest.fixture
def folder(tmp_path: Path, write_config: object) -> RunFolder:
    assert callable(write_config)
    folder = RunFolder(tmp_path / "runs" / "tiny")
    folder.root.mkdir(parents=True, exist_ok=True)
    write_whole(folder.config, write_config().read_bytes())
    write_whole(folder.wandb_id, b"abc123")
    return folder


def test_every_checkpoint_is_evaluated_once(folder: RunFolder, call: Call) -> None:
    add_weights(folder, 0)
    add_weights(folder, 4)
    first = call("evaluate", str(folder.root), "tracking.mode=offline")
    assert first.code == 0, first.text
    rows = read_json_lines(folder.evaluations)
    assert [row["step"] for row in rows] == [0] * RESULTS_PER_STEP + [4] * RESULTS_PER_STEP
    assert {(r["protocol"], r["shots"], r["seed"]) for r in rows} == {("few_shot", s, k) for s in (1, 5) for k in (0, 1)} | {
        ("linear", None, None)
    }
    assert all(row["test_images"] == 22 and row["images_seen"] == 8 * row["step"] for row in rows)
    again = call("evaluate", str(folder.root))
    assert "nothing to do" in again.text
    assert "[eval] step" not in again.text
    assert read_json_lines(folder.evaluations) == rows
    # A new setting adds what is missing and nothing else.
    call("evaluate", str(folder.root), "evaluation.shots=[1,5,10]")
    added = read_json_lines(folder.evaluations)[len(rows) :]
    assert [(row["step"], row["shots"]) for row in added] == [(0, 10), (0, 10), (4, 10), (4, 10)]
    assert sorted((folder.root / "wandb").glob("offline-run-*-abc123-eval/*.wandb"))


def test_a_result_stands_only_for_what_it_was_measured_on(
    folder: RunFolder, downstream: dict[str, str], tmp_path: Path, write_shards: Callable[..., object], call: Call
) -> None:
    """Other weights of the same step, other images under the same name, another preprocessing: measured anew."""
    add_weights(folder, 4)
    call("evaluate", str(folder.root), "evaluation.precision=fp32")
    first = read_json_lines(folder.evaluations)
    add_weights(folder, 4, seed=99)
    call("evaluate", str(folder.root))  # auto: as before
    rows = read_json_lines(folder.evaluations)
    assert len(rows) == 2 * len(first)
    assert {row["weights"] for row in first}.isdisjoint(row["weights"] for row in rows[len(first) :])
    write_shards(tmp_path / "other", shard_sizes=[30])
    other = f"evaluation.datasets=[{{name: bars, train: {downstream['train']}, test: {tmp_path / 'other'}}}]"
    for count, override in enumerate((other, "evaluation.short_side=20", "evaluation.precision=bf16"), start=3):
        for _ in range(2):
            assert call("evaluate", str(folder.root), override).code == 0
            assert len(read_json_lines(folder.evaluations)) == count * len(first)


def test_results_do_not_depend_on_batching_or_on_who_decodes(folder: RunFolder, call: Call) -> None:
    add_weights(folder, 4)
    call("evaluate", str(folder.root), "evaluation.precision=fp32")
    rows = read_json_lines(folder.evaluations)
    folder.evaluations.unlink()
    call("evaluate", str(folder.root), "evaluation.precision=fp32", "evaluation.batch_size=5", "evaluation.num_workers=2")
    assert read_json_lines(folder.evaluations) == rows


def test_a_line_cut_by_a_crash_is_measured_again(folder: RunFolder, call: Call) -> None:
    add_weights(folder, 4)
    call("evaluate", str(folder.root))
    rows = read_json_lines(folder.evaluations)
    folder.evaluations.write_bytes(folder.evaluations.read_bytes()[:-40])  # the last line loses its end
    assert len(read_json_lines(folder.evaluations)) == len(rows) - 1
    call("evaluate", str(folder.root))
    assert read_json_lines(folder.evaluations) == rows


def test_a_watcher_waits_survives_a_kill_and_ends_with_the_run(folder: RunFolder) -> None:
    command = [sys.executable, "-m", "pipeline", "evaluate", str(folder.root), "--watch", "--poll-seconds", "0.2"]
    watcher = subprocess.Popen(command, cwd=REPOSITORY, env=environment())
    add_weights(folder, 0)
    wait_for(lambda: len(read_json_lines(folder.evaluations)) >= 1, watcher)
    watcher.kill()  # most likely in the middle of step 0
    watcher.wait()
    watcher = subprocess.Popen(command, cwd=REPOSITORY, env=environment())
    add_weights(folder, 4)
    wait_for(lambda: any(row["step"] == 4 for row in read_json_lines(folder.evaluations)), watcher)
    assert watcher.poll() is None  # the run is not complete
    write_whole(folder.complete, json.dumps({"step": 4}).encode())
    assert watcher.wait(timeout=60) == 0
    rows = read_json_lines(folder.evaluations)
    assert sorted(row["step"] for row in rows) == [0] * RESULTS_PER_STEP + [4] * RESULTS_PER_STEP


def wait_for(condition: object, process: subprocess.Popen[bytes], timeout_s: float = 90) -> None:
    assert callable(condition)
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, "the evaluator ended early"
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.datasets=[]", "evaluation.datasets is empty"),
        (
            "evaluation.datasets=[{name: x, train: /nowhere, test: /nowhere}]",
            "evaluation set 'x': data folder '/nowhere' does not exist",
        ),
        ("evaluation.shot=[1]", "unknown key evaluation.shot; did you mean evaluation.shots?"),
    ],
)
def test_bad_settings_are_answered_in_words(folder: RunFolder, override: str, message: str, call: Call) -> None:
    result = call("evaluate", str(folder.root), override)
    assert result.code == 2
    assert message in result.text
    assert "Traceback" not in result.text


def test_splits_that_number_their_classes_differently_are_refused(
    folder: RunFolder, downstream: dict[str, str], tmp_path: Path, call: Call
) -> None:
    train, test = (Path(shutil.copytree(downstream[split], tmp_path / split)) for split in ("train", "test"))
    (train / "classes.txt").write_text("a cat\na dog\nbird\nfish\n")
    sets = f"evaluation.datasets=[{{name: x, train: {train}, test: {test}}}]"
    assert call("evaluate", str(folder.root), sets).code == 0  # only one says
    (test / "classes.txt").write_text("a dog\na cat\nbird\nfish\n")
    result = call("evaluate", str(folder.root), sets)
    assert result.code == 2
    assert "evaluation set 'x': the splits number their classes differently" in result.text
    (test / "classes.txt").write_text("a cat\na dog\nbird\nfish\n")
    assert call("evaluate", str(folder.root), sets).code == 0


def test_a_damaged_weights_file_is_named_and_does_not_hold_up_the_others(folder: RunFolder, call: Call) -> None:
    add_weights(folder, 4)
    add_weights(folder, 8)
    path = folder.weights_of(4)
    path.write_bytes(path.read_bytes()[:1000])
    result = call("evaluate", str(folder.root))
    assert result.code == 2
    assert f"error: not evaluated: {path} is not a weights file of this software, or is damaged" in result.text
    assert [row["step"] for row in read_json_lines(folder.evaluations)] == [8] * RESULTS_PER_STEP

"""W&B's offline files hold the whole run under one id."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.monitor.loggers import EvaluationTracker, make_wandb_logger
from pipeline.monitor.wandb_file import count_rows
from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_metrics
from pipeline.run.weights import load_weights
from tests.helpers.trainings import wait_until
from tests.helpers.wandb_files import identity, stored, stored_config, stored_history


def test_a_relaunch_writes_the_whole_history_under_the_same_id(tmp_path: Path) -> None:
    first = make_wandb_logger(identity(tmp_path), config={"seed": 1}, history=[])
    assert first is not None
    first.log_metrics({"step": 1, "train/loss": 0.5})
    first.finalize("success")
    history: list[dict[str, Any]] = [{"step": 1, "train/loss": 0.5, "train/accuracy": None}]
    second = make_wandb_logger(identity(tmp_path), config={"seed": 1}, history=history)
    assert second is not None
    second.log_metrics({"step": 2, "train/loss": 0.4})
    second.finalize("success")
    assert [(row["_step"], row["train/loss"]) for row in stored_history(tmp_path, "abc123")] == [(1, 0.5), (2, 0.4)]
    assert (
        len(list((tmp_path / "wandb" / "superseded").glob("offline-run-*/run-abc123.wandb"))) == 1
    )  # `wandb sync` finds one run


def result(step: int, seed: int | None, accuracy: float | None, **more: Any) -> dict[str, Any]:
    """Make a line of evaluations.jsonl."""
    protocol, shots = ("linear", None) if seed is None else ("few_shot", 5)
    return {
        "step": step,
        "images_seen": 8 * step,
        "dataset": "d",
        "protocol": protocol,
        "shots": shots,
        "seed": seed,
        "accuracy": accuracy,
        **more,
    }


def test_evaluations_are_logged_by_training_step_with_spread_and_confidence(tmp_path: Path) -> None:
    first = result(4, None, 0.25)
    tracker = EvaluationTracker(identity(tmp_path), config={"seed": 7}, history=[first])
    more = [
        result(8, 0, 0.5, ci95=0.02),
        result(8, 1, 0.7, ci95=0.04),
        result(8, None, 0.9),
        result(8, None, None, dataset="e"),
    ]
    tracker.log([first, *more], own={8})
    late = result(0, None, 0.1)  # weights that were evaluated late: W&B would drop a lower step
    tracker.log([first, *more, late], own={0, 8})
    tracker.close()
    rows = stored_history(tmp_path, "abc123-eval")
    assert [(r["_step"], r["images_seen"], r["eval/d/linear"]) for r in rows] == [(0, 0, 0.1), (4, 32, 0.25), (8, 64, 0.9)]
    few_shot = {key.removeprefix("eval/d/few_shot_5shot"): value for key, value in rows[2].items() if "few_shot" in key}
    assert few_shot == {"": pytest.approx(0.6), "_std": pytest.approx(0.02**0.5), "_ci95": pytest.approx(0.03)}
    assert not [key for row in rows for key in row if "eval/e" in key]  # a measurement that failed has no value
    assert not [key for key in rows[0] if "_std" in key]
    assert stored_config(tmp_path, "abc123-eval")["seed"] == 7


def test_of_a_measurement_that_was_made_twice_wandb_is_given_the_later(tmp_path: Path) -> None:
    """It was repeated under another precision. A mean over both would be nobody's accuracy, with a spread that no seed has."""
    twice = [result(4, 0, 0.2), result(4, 1, 0.4), result(4, 0, 0.6), result(4, 1, 0.6)]
    EvaluationTracker(identity(tmp_path), config={}, history=twice).close()
    (row,) = stored_history(tmp_path, "abc123-eval")
    assert {key: value for key, value in row.items() if "eval/" in key} == {"eval/d/few_shot_5shot": pytest.approx(0.6)}


def test_an_offline_run_shows_metrics_alone_over_the_training_step(reference: RunFolder) -> None:
    run_id = reference.wandb_id.read_text()
    rows = stored_history(reference.root, run_id)
    assert [row["_step"] for row in rows] == list(range(1, 13))
    assert not {"step", "time", "data/digest"} & {key for row in rows for key in row}
    axes = {metric.name or metric.glob_name: metric.step_metric for metric in stored(reference.root, run_id, "metric")}
    shown = {key for row in rows for key in row if not key.startswith("_")}
    assert {"epoch", "images_seen", "exaflops", "train/loss"} <= shown
    assert {axes.get(key) or axes.get(f"{key.partition('/')[0]}/*") for key in shown} == {"_step"}
    last = read_metrics(reference.metrics)[-1]
    summary = {
        item.key: json.loads(item.value_json) for part in stored(reference.root, run_id, "summary") for item in part.update
    }
    assert summary["data/digest"] == str(last["data/digest"])
    config = stored_config(reference.root, run_id)
    model = load_weights(reference.weights_of(12)).model
    assert config["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert {"slurm_job_id", "world_size", "num_nodes", "versions"} <= config.keys()
    (program,) = {record.program for record in stored(reference.root, run_id, "environment") if record.program}
    assert program == "python -m pipeline train"


def test_one_line_says_where_the_numbers_go_and_which_variables_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_DIR", "/somewhere")
    monkeypatch.setenv("WANDB_PROJECT", "other")
    monkeypatch.setenv("WANDB_TAGS", "a,, b ")
    monkeypatch.setenv("WANDB_RUN_GROUP", "g")
    monkeypatch.setenv("WANDB_RESUME", "must")
    monkeypatch.delenv("HOME")
    tracker = make_wandb_logger(identity(tmp_path), config={}, history=[])
    assert tracker is not None
    tracker.finalize("success")
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    assert line.startswith("[wandb] offline: tracking.mode=offline. Project p, entity ")
    assert f"run abc123, files in {tmp_path}/wandb. Ignored: " in line
    for part in ("WANDB_DIR (", "WANDB_RESUME (", "WANDB_PROJECT (tracking.project=p)"):
        assert part in line
    (run,) = stored(tmp_path, "abc123", "run")
    assert (run.project, run.run_group, list(run.tags)) == ("p", "g", ["a", "b"])


@pytest.mark.slow
def test_an_offline_file_that_is_cut_short_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a full disk W&B's client reports nothing: here a file may have 200 KB."""
    tracker = make_wandb_logger(identity(tmp_path), config={}, history=[])
    assert tracker is not None
    assert tracker.writer._process is not None
    wait_until(lambda: any((tmp_path / "wandb").glob("offline-run-*/*.wandb")), tracker.writer._process)
    writer = psutil.Process(tracker.writer._process.pid)  # not all children: a cluster of other tests may be among them
    for process in (writer, *writer.children(recursive=True)):
        process.rlimit(psutil.RLIMIT_FSIZE, (200_000, 200_000))
    for step in range(1, 1001):
        tracker.log_metrics({"step": step, **{f"train/{key}": step + key / 7 for key in range(30)}})
    tracker.finalize("success")
    (path,) = (tmp_path / "wandb").glob("offline-run-*/run-abc123.wandb")
    missing = 1000 - count_rows(path)
    assert 0 < missing < 1000
    assert (
        f"[wandb] {missing} of 1000 lines are missing in {path.parent}, which is truncated: is the disk full?"
        in capsys.readouterr().out
    )


def test_variables_that_wandbs_client_does_not_take_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WANDB_QUIET": "maybe", "WANDB_CONSOLE": "no", "WANDB_HTTP_TIMEOUT": "long"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_RUN_GROUP", "g" * 200)
    long = dataclasses.replace(identity(tmp_path), name="n" * 200)
    tracker = EvaluationTracker(long, config={}, history=[result(4, None, 0.25)])
    tracker.close()
    said = capsys.readouterr().out
    assert "WANDB_QUIET=maybe is ignored: Input should be a valid boolean" in said
    assert said.count(" is ignored: Input should be") == 3
    assert "SWITCHED OFF" not in said
    (run,) = stored(tmp_path, "abc123-eval", "run")
    assert (len(run.display_name), len(run.run_group)) == (128, 128)  # the server refuses longer ones

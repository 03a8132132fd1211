"""W&B's real client and a server on loopback: what reaches it of a training and its evaluator, and when it is down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.monitor.wandb_writer import WandbWriter
from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_json_lines, read_metrics
from tests.conftest import REPOSITORY, environment
from tests.helpers.trainings import WriteConfig, folder_of, ranks_of, reached, wait_until
from tests.helpers.wandb_server import KEY, Serving
from tests.monitor.test_wandb_service import make_writer


def rows(first: int, last: int) -> list[dict[str, Any]]:
    return [{"step": step, "train/loss": 1 / step, "images_seen": 8 * step} for step in range(first, last)]


def test_rows_alerts_and_the_end_reach_it(server: Serving, tmp_path: Path) -> None:
    more = {"mode": "online", "config": {"model": {"width": 32}}, "group": "g", "tags": ["t"], "notes": "n"}
    writer = WandbWriter(make_writer(tmp_path, history=rows(1, 3), **more))
    for row in rows(3, 6):
        writer.log(row)
    writer.alert("loss", "is not finite")
    writer.close(exit_code=0)
    assert (writer.off, writer.mode) == (None, "online")
    run = server.runs["abc123"]
    assert [(row["step"], row["train/loss"], row["images_seen"]) for row in run.history] == [
        (step, 1 / step, 8 * step) for step in range(1, 6)
    ]
    assert (run.display_name, run.group, run.tags, run.notes) == ("tiny", "g", ["t"], "n")
    assert run.config["model"] == {"width": 32}
    assert run.alerts == [{"title": "loss", "text": "is not finite", "severity": "WARN"}]
    assert run.exit_codes == [0]
    assert "config.yaml" in run.files
    assert not [data for data in run.files.values() if KEY.encode() in data]
    # The next launch sends what it lacks, under the same id; nothing comes twice.
    again = WandbWriter(make_writer(tmp_path, history=rows(1, 8), **more))
    again.close(exit_code=3)
    assert [row["step"] for row in run.history] == [1, 2, 3, 4, 5, 6, 7]
    assert run.exit_codes == [0, 3]


def test_an_evaluator_writes_to_the_same_run_and_does_not_end_it(server: Serving, tmp_path: Path) -> None:
    training = WandbWriter(make_writer(tmp_path, mode="online", config={"seed": 1}))
    for row in rows(1, 4):
        training.log(row)
    evaluator = WandbWriter(make_writer(tmp_path, mode="online", writer="evaluate", config={"seed": 2}))
    evaluator.log({"step": 2, "eval/bars/linear": 0.5, "images_seen": 16})
    evaluator.close(exit_code=0)
    run = server.runs["abc123"]
    assert run.exit_codes == []
    training.log({"step": 4, "train/loss": 0.1})
    training.close(exit_code=0)
    assert list(server.runs) == ["abc123"]
    assert [row["step"] for row in run.rows_with("train/loss")] == [1, 2, 3, 4]
    assert [(row["step"], row["eval/bars/linear"]) for row in run.rows_with("eval/bars/linear")] == [(2, 0.5)]
    assert run.config["seed"] == 1
    assert run.exit_codes == [0]
    assert set(run.job_types) >= {"train"}


@pytest.mark.slow
def test_a_server_that_is_down_for_a_while_loses_nothing(server: Serving, tmp_path: Path) -> None:
    writer = WandbWriter(make_writer(tmp_path, mode="online"))
    for row in rows(1, 4):
        writer.log(row)
    end = time.monotonic() + 60
    while "abc123" not in server.runs or len(server.runs["abc123"].history) < 3:
        assert time.monotonic() < end
        time.sleep(0.1)
    server.outage.set()
    start = time.monotonic()
    for row in rows(4, 8):
        writer.log(row)
    assert time.monotonic() - start < 1  # a training does not wait
    while not server.refused:
        assert time.monotonic() < end
        time.sleep(0.1)
    server.outage.clear()
    writer.close(exit_code=0)
    assert writer.off is None
    assert [row["step"] for row in server.runs["abc123"].history] == list(range(1, 8))


def test_a_wrong_key_is_named_and_the_run_kept_on_disk(
    server: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "w" * 40)
    writer = WandbWriter(make_writer(tmp_path, mode="online", history=rows(1, 3)))
    writer.close(exit_code=0)
    assert writer.mode == "offline"
    said = capsys.readouterr().out
    assert "no run online (" in said
    assert "w" * 40 not in said
    assert server.runs == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_that_is_killed_and_its_evaluator_are_one_run(server: Serving, write_config: WriteConfig) -> None:
    config = write_config(tracking={"mode": "online", "log_every": 1})
    folder = folder_of(config)
    settings = {**environment(), **server.environment}

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipeline", *arguments]
        with (config.parent / "output.log").open("a") as log:
            return subprocess.Popen(
                command, cwd=REPOSITORY, env=settings, text=True, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    first = start("train", str(config))
    wait_until(lambda: reached(folder, 6), first)
    assert len(ranks_of(first)) == 2
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert start("train", str(config)).wait(240) == 0
    assert start("evaluate", str(folder.root)).wait(240) == 0
    run_id = folder.wandb_id.read_text()
    assert list(server.runs) == [run_id]
    run = server.runs[run_id]
    logged = {row["step"]: row["train/loss"] for row in read_metrics(folder.metrics)}
    assert list(logged) == list(range(1, 13))
    seen = run.rows_with("train/loss")
    assert {row["step"]: row["train/loss"] for row in seen} == pytest.approx(logged)
    assert {row["step"] for row in run.rows_with("eval/bars/linear")} == {0, 4, 8, 12}
    assert run.exit_codes[-1] == 0
    assert run.config["trainer"]["global_batch_size"] == 8
    check_evaluations(folder, run.rows_with("eval/bars/linear"))


def check_evaluations(folder: RunFolder, sent: list[dict[str, Any]]) -> None:
    linear = {row["step"]: row["accuracy"] for row in read_json_lines(folder.evaluations) if row["protocol"] == "linear"}
    assert {row["step"]: row["eval/bars/linear"] for row in sent} == pytest.approx(linear)

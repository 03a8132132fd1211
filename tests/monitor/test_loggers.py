"""The local mirror survives crashes, and W&B's offline files hold the whole run under one id."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.errors import ExitCode
from pipeline.monitor import wandb_process
from pipeline.monitor.loggers import EvaluationTracker, MetricsFile, RunIdentity, make_wandb_logger
from pipeline.monitor.wandb_file import count_rows, read_records
from pipeline.monitor.wandb_process import SentSteps
from pipeline.monitor.wandb_writer import WandbRun, WandbWriter
from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import append_json_line, read_json, read_json_lines, read_metrics
from pipeline.run.weights import load_weights
from tests.helpers.trainings import WriteConfig, folder_of, reached, train, training, wait_until


def test_a_line_cut_by_a_crash_costs_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for step in range(3):
        append_json_line(path, {"step": step})
    path.write_bytes(path.read_bytes()[:-4])
    append_json_line(path, {"step": 3})
    assert [row["step"] for row in read_json_lines(path)] == [0, 1, 3]


def test_metrics_that_wait_at_the_end_are_written_once_more_or_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    mirror = MetricsFile(path)
    mirror.log_metrics({"step": 1})
    mirror.log_metrics({"step": 2})
    mirror.finalize("failed")
    assert f"2 lines of metrics are lost: {path} cannot be written" in capsys.readouterr().out
    path.parent.mkdir()
    mirror.finalize("success")
    assert [row["step"] for row in read_json_lines(path)] == [1, 2]
    mirror.finalize("success")
    assert len(read_json_lines(path)) == 2


def test_of_a_step_logged_twice_the_later_line_counts(tmp_path: Path) -> None:
    mirror = MetricsFile(tmp_path / "metrics.jsonl")
    for step, loss in [(1, 0.5), (2, 0.4), (3, 0.3), (2, 0.41), (3, 0.31)]:  # a resume from step 1
        mirror.log_metrics({"step": step, "train/loss": loss}, step=step)
    assert [(row["step"], row["train/loss"]) for row in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 0.5),
        (2, 0.41),
        (3, 0.31),
    ]


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    append_json_line(tmp_path / "x.jsonl", {"a": math.inf, "b": math.nan, "c": 1.0})
    assert read_json_lines(tmp_path / "x.jsonl") == [{"a": None, "b": None, "c": 1.0}]


def identity(folder: Path) -> RunIdentity:
    return RunIdentity(name="tiny", run_id="abc123", folder=folder, project="p", entity=None, mode="offline")


def stored(folder: Path, run_id: str, kind: str) -> list[Any]:
    """Return the records of a kind in a run's offline file. There is one such file: older ones are set aside."""
    from wandb.proto import wandb_internal_pb2

    (only,) = (folder / "wandb").glob(f"offline-run-*-{run_id}")
    found = []
    for data in read_records(next(only.glob("*.wandb"))):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  # made when it is imported
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == kind:
            found.append(getattr(record, kind))
    return found


def stored_history(folder: Path, run_id: str) -> list[dict[str, Any]]:
    """Return rows by key."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in history.item}
        for history in stored(folder, run_id, "history")
    ]


def stored_config(folder: Path, run_id: str) -> dict[str, Any]:
    (run,) = stored(folder, run_id, "run")
    return {item.key: json.loads(item.value_json) for item in run.config.update}


def test_a_relaunch_writes_the_whole_history_under_the_same_id(tmp_path: Path) -> None:
    first = make_wandb_logger(identity(tmp_path), config={"seed": 1}, history=[])
    assert first is not None
    first.log_metrics({"step": 1, "train/loss": 0.5})
    first.finalize("success")
    time.sleep(1.1)  # W&B names its folders by the second
    history: list[dict[str, Any]] = [{"step": 1, "train/loss": 0.5, "train/accuracy": None}]
    second = make_wandb_logger(identity(tmp_path), config={"seed": 1}, history=history)
    assert second is not None
    second.log_metrics({"step": 2, "train/loss": 0.4})
    second.finalize("success")
    assert [(row["_step"], row["train/loss"]) for row in stored_history(tmp_path, "abc123")] == [(1, 0.5), (2, 0.4)]
    assert len(list((tmp_path / "wandb" / "superseded").glob("offline-run-*-abc123"))) == 1  # `wandb sync` finds one run


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


def test_lines_are_counted_when_wandbs_service_has_written_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service writes its file when it ends. Counted before, lines are missing that are not lost."""
    services: list[list[psutil.Process]] = []

    def count(path: Path) -> int:
        services.append(service_of(os.getpid()))
        return count_rows(path)

    monkeypatch.setattr(wandb_process, "count_rows", count)
    history = [{"step": step, "train/loss": 1.0} for step in range(1, 4)]
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"finish": 0}) + "\n"))
    answers = io.StringIO()
    wandb_process.serve({**dataclasses.asdict(make_writer(tmp_path, history=history)), "pid": os.getpid()}, answers)
    assert services == [[]]
    assert json.loads(answers.getvalue().splitlines()[-1])["lost"] == 0


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


def test_wandbs_service_needs_no_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for home in (None, "/proc/1/nowhere"):
        monkeypatch.delenv("HOME", raising=False)
        if home is not None:
            monkeypatch.setenv("HOME", home)
        writer = WandbWriter(make_writer(tmp_path))
        writer.close(exit_code=0)
        assert writer.off is None
    assert capfd.readouterr().err == ""


def test_an_offline_file_that_is_cut_short_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a full disk W&B's client reports nothing: here a file may have 200 KB."""
    tracker = make_wandb_logger(identity(tmp_path), config={}, history=[])
    assert tracker is not None
    assert tracker.writer._process is not None
    wait_until(lambda: any((tmp_path / "wandb").glob("offline-run-*/*.wandb")), tracker.writer._process)
    for process in psutil.Process().children(recursive=True):
        process.rlimit(psutil.RLIMIT_FSIZE, (200_000, 200_000))
    for step in range(1, 1001):
        tracker.log_metrics({"step": step, **{f"train/{key}": step + key / 7 for key in range(30)}})
    tracker.finalize("success")
    (path,) = (tmp_path / "wandb").glob("offline-run-*-abc123/*.wandb")
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


def test_a_client_that_cannot_be_started_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path))
    tracker = make_wandb_logger(identity(tmp_path), config={}, history=[])
    assert tracker is not None
    tracker.log_metrics({"step": 1, "train/loss": 0.5})
    tracker.finalize("success")
    assert capsys.readouterr().out.count("its process cannot be started (") == 1


def service_of(launcher: int) -> list[psutil.Process]:
    """Return W&B's service among the processes that a training started."""
    return [child for child in psutil.Process(launcher).children(recursive=True) if child.name() == "wandb-core"]


@pytest.mark.slow
def test_a_training_outlives_wandbs_service(write_config: WriteConfig) -> None:
    config = write_config(
        tracking={"mode": "offline"}, checkpoint={"every": "100000 steps"}, trainer={"devices": 1, "duration": "100000 steps"}
    )
    folder, log = folder_of(config), config.with_suffix(".log")
    with training(config) as process:
        wait_until(lambda: any((folder.root / "wandb").glob("offline-run-*/*.wandb")) and reached(folder, 5), process)
        (service,) = service_of(process.pid)
        service.kill()
        wait_until(lambda: "W&B IS SWITCHED OFF" in log.read_text(), process)
        after = read_metrics(folder.metrics)[-1]["step"]
        wait_until(lambda: reached(folder, after + 5), process)
        process.terminate()
        assert process.wait(120) == ExitCode.STOPPED
    beat = read_json(folder.root / "heartbeat.json") or {}
    assert (beat["phase"], beat["by"]) == ("stopped", "SIGTERM")
    assert "W&B is off for this launch: " in beat["alerts"][-1]
    output = log.read_text()
    assert output.count("W&B IS SWITCHED OFF for this launch: ") == 1
    assert "Traceback" not in output
    done = read_metrics(folder.metrics)[-1]["step"]
    train(config, f"trainer.max_steps={done + 2}")
    assert [row["step"] for row in read_metrics(folder.metrics)] == list(range(1, done + 3))
    history = stored_history(folder.root, folder.wandb_id.read_text())
    assert [row["_step"] for row in history] == list(range(1, done + 3))  # the next launch has filled the gap


def make_writer(folder: Path, **changes: Any) -> WandbRun:
    return WandbRun(
        **{
            "writer": "train",
            "mode": "offline",
            "name": "tiny",
            "run_id": "abc123",
            "folder": str(folder),
            "project": "p",
            "entity": None,
            "config": {},
            "history": [],
            **changes,
        }
    )


def test_a_wandb_that_stalls_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = WandbWriter(make_writer(tmp_path, init_timeout_s=0.0), answer_timeout_s=0.5)
    assert writer._process is not None
    process = psutil.Process(writer._process.pid)
    process.suspend()
    slowest_s = 0.0
    for step in range(20):
        start = time.perf_counter()
        writer.log({"step": step})
        slowest_s = max(slowest_s, time.perf_counter() - start)
        time.sleep(0.05)
    writer.close(exit_code=0)
    assert writer.off is not None
    assert "has not answered for" in writer.off
    assert slowest_s < 0.2
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert capsys.readouterr().out.count("SWITCHED OFF") == 1


class Refusing(BaseHTTPRequestHandler):
    """Answers like a W&B server that knows nobody."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_error(401)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_wrong_key_makes_the_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    history = [{"step": step, "train/loss": 1.0} for step in (1, 2)]
    tracker = make_wandb_logger(dataclasses.replace(identity(tmp_path), mode="auto"), config={}, history=history)
    assert tracker is not None
    tracker.log_metrics({"step": 3, "train/loss": 0.5})
    tracker.finalize("success")
    server.shutdown()
    server.server_close()
    assert [row["_step"] for row in stored_history(tmp_path, "abc123")] == [1, 2, 3]
    said = capsys.readouterr().out
    assert "no run online (" in said
    assert "401" in said
    assert "`wandb sync " in said
    assert not (tmp_path / "wandb_sent_train.jsonl").exists()  # nothing has reached W&B


def test_what_wandb_was_given_counts_once_it_has_settled(tmp_path: Path) -> None:
    sent = SentSteps(tmp_path / "sent.jsonl")
    for step in (1, 2, 3):
        sent.add(step)
    assert SentSteps(tmp_path / "sent.jsonl").known == set()  # a crash now may have lost them
    sent.settle(min_age_s=0.0)
    assert SentSteps(tmp_path / "sent.jsonl").known == {1, 2, 3}


def test_no_credential_of_the_environment_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "s3cr3t-of-no-value-0123456789"
    for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, secret)
    tracker = make_wandb_logger(identity(tmp_path), config={"seed": 1}, history=[])
    assert tracker is not None
    tracker.finalize("success")
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    assert not [path for path in files if secret.encode() in path.read_bytes()]

"""W&B's client and its service: what they need, and what ends with them."""

from __future__ import annotations

import dataclasses
import io
import json
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
from pipeline.monitor.loggers import make_wandb_logger
from pipeline.monitor.wandb_file import count_rows
from pipeline.monitor.wandb_process import SentSteps
from pipeline.monitor.wandb_writer import WandbRun, WandbWriter
from pipeline.run.records import read_json, read_metrics
from tests.helpers.trainings import WriteConfig, folder_of, reached, train, training, wait_until
from tests.helpers.wandb_files import identity, stored_history


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

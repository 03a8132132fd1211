"""Alerts are printed, written and sent when a run's numbers become abnormal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.build.loggers import Loggers
from pipeline.monitor.alert_log import AlertLog
from pipeline.monitor.loggers import MetricsFile
from pipeline.run.folder import RunFolder
from pipeline.run.records import read_json_lines

Sent = list[tuple[str, str]]


def make_log(folder: Path, *, sent: Sent | None = None, history: list[dict[str, Any]] | None = None) -> AlertLog:
    sent = [] if sent is None else sent
    return AlertLog(RunFolder(folder), history=history or [], send_alert=lambda title, text: sent.append((title, text)))


def line(step: int, step_time_s: float) -> dict[str, Any]:
    return {"step": step, "speed/step_time_s": step_time_s}


def slow_down(log: AlertLog, *, ordinary: int, first: int = 1) -> list[int]:
    """Log ordinary steps, then slow ones. Return the steps of the lines in alerts.jsonl."""
    for step in range(first, first + ordinary):
        log.log_metrics(line(step, 0.4), step=step)
    for step in range(first + ordinary, first + ordinary + 15):
        log.log_metrics(line(step, 1.0), step=step)
    return [row["step"] for row in read_json_lines(log.folder.alerts)]


def test_an_alert_is_written_sent_and_active_until_it_is_cleared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent: Sent = []
    log = make_log(tmp_path, sent=sent)
    raised_at = slow_down(log, ordinary=40)
    assert len(raised_at) == 1
    assert [title for title, _ in sent] == [f"{tmp_path.name}: step_time"]
    assert sent[0][1].startswith(f"step {raised_at[0]}: steps take 1 s, usually 0.4 s")
    assert sent[0][1] in capsys.readouterr().out
    assert sent[0][1] == f"step {raised_at[0]}: {log.active['step_time']}"
    for step in range(100, 140):
        log.log_metrics(line(step, 0.4), step=step)
    assert [row["change"] for row in read_json_lines(log.folder.alerts)] == ["raised", "cleared"]
    assert log.active == {}
    assert len(sent) == 1  # nobody is woken by good news
    assert "step_time is normal again" in capsys.readouterr().out


def test_notices_are_the_active_alerts(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    loggers = Loggers(file=MetricsFile(tmp_path / "metrics.jsonl"), wandb=None, alerts=log)
    assert loggers.notices() == []
    slow_down(log, ordinary=40)
    assert loggers.notices() == [log.active["step_time"]]


@pytest.mark.parametrize(("known", "alerts"), [(30, 1), (0, 0)])
def test_what_was_usual_before_a_launch_is_usual_in_it(known: int, alerts: int, tmp_path: Path) -> None:
    log = make_log(tmp_path, history=[line(step, 0.4) for step in range(1, known + 1)])
    assert len(slow_down(log, ordinary=0, first=31)) == alerts


def test_history_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An earlier launch has reported its own alerts."""
    history = [line(step, 0.4 if step < 40 else 1.0) for step in range(60)]
    log = make_log(tmp_path, history=history)
    assert capsys.readouterr().out == ""
    assert not log.folder.alerts.exists()


def test_a_disk_that_takes_no_alerts_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent: Sent = []
    log = make_log(tmp_path, sent=sent)
    log.folder.alerts.mkdir()  # nothing can be appended to it
    for step in range(60):
        log.log_metrics(line(step, 0.4 if step < 40 else 1.0), step=step)
    assert len(sent) == 1
    assert "alerts.jsonl cannot be written" in capsys.readouterr().out

"""The local mirror of metrics survives crashes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.monitor.loggers import MetricsFile
from pipeline.run.records import append_json_line, read_json_lines, read_metrics


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

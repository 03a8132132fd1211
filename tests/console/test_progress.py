"""Progress is plain lines, few of them, in a log, and a bar on a terminal."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

import pytest

from pipeline.console.progress import Lines, track
from tests.conftest import REPOSITORY

COUNT = "from pipeline.console.progress import track; [None for _ in track(range(3), description='read', unit='shard')]"


def test_a_log_gets_the_first_and_the_last_line_of_short_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([5, 6, 7], description="read", unit="shard")) == [5, 6, 7]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("read: shard 1 of 3 (33.3 %), ")
    assert lines[0].endswith(" left")
    assert lines[1].startswith("read: shard 3 of 3 (100.0 %), ")


def test_lines_come_at_an_interval() -> None:
    log = io.StringIO()
    every = Lines(total=None, description="list", unit="image", every_s=0.0, file=log)
    seldom = Lines(total=None, description="list", unit="image", every_s=3600.0, file=log)
    for count in range(1, 6):
        every.update()
        seldom.update(0 if count < 5 else 5)
    lines = log.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "list: 1 images", "list: 0 images", "list: 2 images", "list: 3 images", "list: 4 images", "list: 5 images",
    ]  # fmt: skip
    seldom.close()
    assert log.getvalue().splitlines()[-1].startswith("list: 5 images, ")


def test_a_resumed_count_measures_its_own_speed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Lines(total=2000, initial=1000, description="train", unit="step")
    bar.set_postfix_str("loss 1.5")
    bar.update()
    line = capsys.readouterr().err
    assert line.startswith("train: step 1001 of 2000 (50.0 %), ")
    assert line.endswith(", loss 1.5\n")


def test_short_work_that_leaves_no_bar_leaves_no_line() -> None:
    log = io.StringIO()
    with Lines(total=3, description="features", unit="image", leave=False, file=log) as bar:
        bar.update(3)
    assert log.getvalue() == ""


def test_no_carriage_return_reaches_a_pipe_and_a_terminal_gets_a_bar() -> None:
    command = [sys.executable, "-c", COUNT]
    piped = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stderr
    assert b"\r" not in piped
    assert b"shard 3 of 3" in piped
    ours, theirs = pty.openpty()
    subprocess.run(command, cwd=REPOSITORY, stderr=theirs, check=True)
    os.close(theirs)
    assert b"\rread: 100%|" in os.read(ours, 65536)
    os.close(ours)

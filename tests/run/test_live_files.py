"""Files show the newest state of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.folder import RunFolder
from pipeline.run.live_files import LiveFiles
from pipeline.run.records import read_json


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


def test_the_newest_state_is_written_and_the_last_one_at_the_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    files = LiveFiles(folder, every_s=0.01)
    files.put(folder.heartbeat, {"step": 1})
    wait_for(lambda: read_json(folder.heartbeat) == {"step": 1})
    files.put(folder.heartbeat, {"step": 2})
    files.put(folder.stragglers, {"rank": 0})
    wait_for(lambda: read_json(folder.heartbeat) == {"step": 2} and read_json(folder.stragglers) == {"rank": 0})
    files.put(folder.heartbeat, {"step": 3})
    files.close()
    assert read_json(folder.heartbeat) == {"step": 3}


def test_no_more_is_written_than_once_an_interval(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    files = LiveFiles(folder, every_s=60)
    seen = set()
    for step in range(50):
        files.put(folder.heartbeat, {"step": step})
        time.sleep(0.002)
        seen.add(str(read_json(folder.heartbeat)))
    assert len(seen - {"None"}) <= 1
    files.close()  # does not wait for the interval's end
    assert read_json(folder.heartbeat) == {"step": 49}


def test_a_file_of_a_training_that_hangs_grows_old(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    files = LiveFiles(folder, every_s=0.01)
    files.put(folder.heartbeat, {"step": 1})
    wait_for(folder.heartbeat.exists)
    before = folder.heartbeat.stat()
    time.sleep(0.1)
    after = folder.heartbeat.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    files.close()


def test_a_disk_that_cannot_be_written_costs_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = LiveFiles(RunFolder(tmp_path / "gone"), every_s=0.01)
    for number in range(20):
        files.put(files.folder.heartbeat, {"step": number})
        time.sleep(0.01)  # more than one try
    files.close()
    assert capsys.readouterr().out.count("cannot be written") == 1


def test_writing_goes_on_once_the_disk_is_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path / "gone")
    files = LiveFiles(folder, every_s=0.01)
    files.put(folder.heartbeat, {"step": 1})
    said = ""

    def has_failed() -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return "the training continues" in said

    wait_for(has_failed)
    folder.root.mkdir()
    wait_for(folder.heartbeat.exists)  # though nothing new was put
    files.close()

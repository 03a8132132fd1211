"""One training a run folder: who is refused, and whose lock is taken over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline import run_lock
from pipeline.claims import Owner
from pipeline.errors import CheckpointError
from pipeline.run_lock import EXIT_LOST_LOCK, RunLock
from tests.conftest import REPOSITORY, run_command
from tests.trainings import WriteConfig, folder_of

HOLD = """
import sys, time
from pathlib import Path
from pipeline import run_lock
run_lock.TOUCH_EVERY_S = 0.05
run_lock.RunLock(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(100)
"""


@contextmanager
def holder(folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def elsewhere(folder: Path, **facts: str) -> Path:
    """A lock that another machine's process left."""
    owner = replace(Owner.myself(), host="elsewhere", slurm_job_id=None, **facts)
    path = folder / run_lock.LOCK_NAME
    path.write_text(json.dumps(asdict(owner)))
    return path


def test_a_second_training_is_refused_and_told_of_the_first(write_config: WriteConfig) -> None:
    config = write_config(trainer={"devices": 1})
    root = folder_of(config).root
    with holder(root, SLURM_JOB_ID="4242") as first:
        refused = run_command("train", str(config))
        assert refused.returncode == 2
        assert f"{root} is being trained by Slurm job 4242 on host" in refused.stdout
        assert f"(process {first.pid}, since" in refused.stdout
        assert "end it (scancel 4242), or start another run with name=" in refused.stdout
        assert sorted(path.name for path in root.iterdir()) == [run_lock.LOCK_NAME]  # nothing else was touched


def test_a_lock_is_given_up_at_the_end_and_taken_over_from_the_dead(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    assert first.take() == []
    with pytest.raises(CheckpointError, match=f"process {os.getpid()}"):
        second.take()
    first.release()
    assert second.take() == []
    second.release()
    assert list(tmp_path.iterdir()) == []
    with holder(tmp_path) as process:
        process.kill()
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)  # dead, and nobody has asked for its exit code: containers without an init leave such behind
        (message,) = first.take()
        assert "its process is gone" in message
    first.release()


def test_a_process_of_the_same_number_is_not_the_owner(tmp_path: Path) -> None:
    owner = replace(Owner.myself(), process_start="1")
    (tmp_path / run_lock.LOCK_NAME).write_text(json.dumps(asdict(owner)))
    lock = RunLock(tmp_path)
    assert len(lock.take()) == 1
    lock.release()


def test_another_machines_lock_is_watched_for_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "WATCH_S", 3.0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    path = elsewhere(tmp_path)
    done = threading.Event()

    def live() -> None:
        while not done.wait(0.2):
            os.utime(path)

    thread = threading.Thread(target=live)
    thread.start()
    lock = RunLock(tmp_path)
    with pytest.raises(CheckpointError, match="host elsewhere"):
        lock.take()
    done.set()
    thread.join()
    assert "no sign of life for 3 seconds" in lock.take()[0]
    lock.release()
    os.utime(elsewhere(tmp_path), (0, 0))
    assert "minutes" in lock.take()[0]
    lock.release()


def test_an_earlier_start_of_the_same_job_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    path = elsewhere(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "slurm_job_id": "7", "slurm_restart": "1"}))
    lock = RunLock(tmp_path)
    assert "an earlier start of this job" in lock.take()[0]
    lock.release()


def test_whoever_lost_its_lock_ends_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        elsewhere(tmp_path)
        assert process.wait(timeout=20) == EXIT_LOST_LOCK

"""One training owns a run folder: others are refused, and stale locks are taken over."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import CheckpointError, ExitCode, StoppedError
from pipeline.launch import slurm_queue
from pipeline.launch.processes import Process
from pipeline.launch.slurm_job import SlurmJob
from pipeline.launch.slurm_queue import read_answer
from pipeline.run import lock as run_lock
from pipeline.run.claims import Owner
from pipeline.run.folder import RunFolder
from pipeline.run.lock import RunLock
from tests.conftest import REPOSITORY, run_command
from tests.helpers.trainings import WriteConfig, folder_of

HOLD = """
import sys, time
from pathlib import Path
from pipeline.run import lock as run_lock
run_lock.TOUCH_EVERY_S = 0.05
run_lock.RunLock(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)


@contextmanager
def holder(folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run another process that holds the lock."""
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


def elsewhere(folder: Path, job: SlurmJob | None = None) -> Path:
    """Describe a lock that another machine's process left."""
    process = replace(Process.myself(), host="elsewhere", machine="another boot")
    path = RunFolder(folder).lock
    path.write_text(Owner(process=process, slurm=job, since=time.time()).to_json())
    return path


@contextmanager
def touched(path: Path, *, clock_s: float) -> Iterator[None]:
    """Act as an owner that lives, with a clock of its own."""
    done = threading.Event()

    def live() -> None:
        while not done.wait(0.1):
            os.utime(path, (time.time() + clock_s, time.time() + clock_s))

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_second_training_is_refused_and_told_of_the_first(write_config: WriteConfig) -> None:
    config = write_config(trainer={"devices": 1})
    root = folder_of(config).root
    with holder(root, SLURM_JOB_ID="4242") as first:
        refused = run_command("train", str(config))
        assert refused.returncode == 2
        assert f"{root} is being trained by Slurm job 4242 on host" in refused.stdout
        assert f"(process {first.pid}, since" in refused.stdout
        assert "end it (scancel 4242), or start another run with name=" in refused.stdout
        assert sorted(path.name for path in root.iterdir()) == ["lock.json"]  # nothing else was touched


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
            time.sleep(0.01)  # dead, and nobody has read its exit code: containers without an init leave such processes behind
        (message,) = first.take()
        assert "its process is gone" in message
    first.release()


def test_a_process_of_the_same_number_is_not_the_owner(tmp_path: Path) -> None:
    owner = Owner(process=replace(Process.myself(), process_start="1"), slurm=None, since=0.0)
    (RunFolder(tmp_path).lock).write_text(owner.to_json())
    lock = RunLock(tmp_path)
    assert len(lock.take()) == 1
    lock.release()


@pytest.mark.parametrize("clock_s", [0.0, -600.0, 86400.0])
def test_another_machines_lock_is_watched_for_a_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock_s: float
) -> None:
    monkeypatch.setattr(run_lock, "WATCH_S", 2.0)
    path, said = elsewhere(tmp_path), []
    lock = RunLock(tmp_path, tell=said.append)
    with touched(path, clock_s=clock_s), pytest.raises(CheckpointError, match="host elsewhere"):
        lock.take()
    assert "looking for a sign of life, 2 s at most" in said[0]
    assert "no sign of life for 2 seconds" in lock.take()[0]
    lock.release()


def test_an_earlier_start_of_the_same_job_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    elsewhere(tmp_path, SlurmJob("7", restart=1, cluster=None))
    lock = RunLock(tmp_path)
    assert "an earlier start of this job" in lock.take()[0]
    lock.release()


def test_whoever_lost_its_lock_ends_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        elsewhere(tmp_path)
        assert process.wait(timeout=20) == ExitCode.LOST_LOCK


def test_a_stop_is_heeded_while_a_lock_is_watched(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    with pytest.raises(StoppedError):
        RunLock(tmp_path, should_stop=lambda: True).take()


SQUEUES = {
    "hangs": ("exec sleep 60", "silent"),
    "fails": ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "silent"),
    "does not know the job": ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "silent"),
    "says nothing": ("exit 0", "silent"),
    "says what nobody understands": ("echo '77 QUANTUM'", "silent"),
    "names other jobs": ("echo '78 COMPLETED'", "silent"),
    "says that it runs": ("echo '77 RUNNING'", "refused"),
    "says that it ends": ("echo '77 COMPLETING'", "refused"),
    "says that it has ended": ("echo '77 FAILED'", "over"),
    "says that it waits to start again": ("echo '77 PENDING'", "over"),
}


@pytest.mark.parametrize("answer", SQUEUES)
def test_doubt_about_a_job_means_watching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """A squeue that hangs, fails, or prints something unreadable proves nothing."""
    script, outcome = SQUEUES[answer]
    (tmp_path / "bin").mkdir()
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text(f"#!/bin/sh\n{script}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm_queue, "ANSWER_TIMEOUT_S", 1.0)
    monkeypatch.setattr(run_lock, "WATCH_S", 1.5)
    run = tmp_path / "run"
    run.mkdir()
    path = elsewhere(run, SlurmJob("77", restart=0, cluster=None))
    lock = RunLock(run)
    if outcome != "over":
        with touched(path, clock_s=-3600), pytest.raises(CheckpointError, match="Slurm job 77 on host elsewhere"):
            lock.take()
    if outcome == "refused":
        with pytest.raises(CheckpointError, match="Slurm says that the job still runs, though it has not touched its lock"):
            lock.take()
        return
    assert ("its job is over" if outcome == "over" else "no sign of life") in lock.take()[0]
    lock.release()


def test_a_job_of_another_cluster_is_not_asked_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "here")
    monkeypatch.setattr(run_lock, "WATCH_S", 1.0)
    monkeypatch.setattr(run_lock, "ask_after_job", lambda _job: pytest.fail("asked"))
    elsewhere(tmp_path, SlurmJob("77", restart=0, cluster="there"))
    lock = RunLock(tmp_path)
    assert "no sign of life" in lock.take()[0]
    lock.release()


def test_a_queues_answer_is_that_of_one_job() -> None:
    assert read_answer("78 RUNNING\n77 COMPLETED\n", job_id="77") == "over"  # an array's tasks are listed together
    assert read_answer("77 COMPLETED\n77 RUNNING\n", job_id="77") == "alive"
    assert read_answer("77 COMPLETED\n77 NEW_STATE\n", job_id="77") == "unknown"
    assert read_answer("squeue: warning: something 77 RUNNING or other\n", job_id="77") == "unknown"

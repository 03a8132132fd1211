"""A run folder belongs to one training at a time: the second that is started on it refuses, and names the first.

The lock is a claim (see `claims`) that rank 0 holds. It is taken over from an owner that is known to be dead: its
process on this machine, or its Slurm job, is gone; it is an earlier start of this very job, requeued; or it has not
touched its lock for a while.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from pipeline.claims import Owner, create, give_up, is_dead, keep_touching, read_owner, remove, seconds_since_touched
from pipeline.errors import CheckpointError

LOCK_NAME = "lock.json"
TOUCH_EVERY_S = 10.0
WATCH_S = 45.0  # how long an owner of which nothing is known is watched for a sign of life
EXIT_LOST_LOCK = 70  # EX_SOFTWARE of sysexits.h
# Of squeue(1): the job runs, or its processes are being ended.
LIVE_STATES = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "CONFIGURING", "RESIZING"}


class RunLock:
    """The lock of one run folder, for one training."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._stop: Callable[[], None] | None = None
        self._mine: Owner | None = None

    def take(self) -> list[str]:
        """Take the lock. Rank 0 only.

        Returns:
            Messages: whose lock was taken over.

        Raises:
            CheckpointError: another training holds it.
        """
        messages: list[str] = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mine = Owner.myself()
        while not create(self.path, mine):
            owner = read_owner(self.path)
            if owner is None:
                continue  # given up just now
            why = why_dead(self.path, owner)
            if why is None:
                raise CheckpointError(_refuse(self.path.parent, owner))
            messages.append(f"took over the run folder from {_describe(owner)}: {why}")
            remove(self.path, owner)
        self._mine = mine
        self._stop = keep_touching(self.path, mine, every_s=TOUCH_EVERY_S, on_loss=self._end_at_once)
        return messages

    def release(self) -> None:
        """Give the lock up; nothing if it is not held."""
        if self._stop is not None and self._mine is not None:
            self._stop()
            give_up(self.path, self._mine)
        self._stop = self._mine = None

    def _end_at_once(self) -> None:
        # This process stood still for so long that another took over. Whatever it wrote now would harm that one.
        print(f"error: {self.path} was taken over by another training; this one ends at once", file=sys.stderr, flush=True)
        os._exit(EXIT_LOST_LOCK)


def why_dead(path: Path, owner: Owner) -> str | None:
    """Why the owner of a lock does not work any more, in words; None if it does."""
    if owner.is_on_this_host():
        return "its process is gone" if is_dead(owner) else None
    if is_dead(owner):
        return "it is an earlier start of this job"
    if owner.slurm_job_id in (None, os.environ.get("SLURM_JOB_ID")):
        return _watch(path)
    state = slurm_state(owner.slurm_job_id)
    if state is None:
        return _watch(path)
    return None if state in LIVE_STATES else f"its job is {state.lower() or 'over'}"


def slurm_state(job_id: str) -> str | None:
    """A job's state; "" if Slurm does not know it any more, None if Slurm cannot be asked."""
    if shutil.which("squeue") is None:
        return None
    asked = subprocess.run(
        ["squeue", "--noheader", f"--jobs={job_id}", "--format=%T"], capture_output=True, text=True, timeout=60
    )
    if asked.returncode != 0 and "Invalid job id" not in asked.stderr:
        return None
    return asked.stdout.strip()


def _watch(path: Path) -> str | None:
    """Look for a sign of life: clocks of two machines may differ, a time that changes is one."""
    if seconds_since_touched(path) > 20 * TOUCH_EVERY_S:
        return f"no sign of life for {seconds_since_touched(path) / 60:.0f} minutes"
    before, end = path.stat().st_mtime_ns, time.monotonic() + WATCH_S
    while time.monotonic() < end:
        time.sleep(1.0)
        try:
            if path.stat().st_mtime_ns != before:
                return None
        except FileNotFoundError:
            return "it gave up"
    return f"no sign of life for {WATCH_S:.0f} seconds"


def _describe(owner: Owner) -> str:
    job = f"Slurm job {owner.slurm_job_id} on " if owner.slurm_job_id else ""
    return (
        f"{job}host {owner.host or 'unknown'} (process {owner.pid}, since {datetime.fromtimestamp(owner.since):%Y-%m-%d %H:%M})"
    )


def _refuse(folder: Path, owner: Owner) -> str:
    end = f"end it (scancel {owner.slurm_job_id})" if owner.slurm_job_id else "end it"
    return f"{folder} is being trained by {_describe(owner)}; wait for it, {end}, or start another run with name=..."

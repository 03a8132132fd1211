"""A folder belongs to one program at a time: a second program that is started on it refuses, and names the first.

The lock is a claim (see `claims`). A stale lock is taken over from an owner that is known to be dead: its process on this
machine, or its Slurm job, is gone, or it is an earlier start of this same job, requeued. Any other owner is unknown. It is
watched, and taken for dead if it does not touch its lock for a while and Slurm does not say that its job runs. This module
imports nothing heavy.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import CheckpointError, ExitCode, PipelineError, StoppedError
from pipeline.launch.slurm_job import SlurmJob
from pipeline.launch.slurm_queue import ask_after_job
from pipeline.run.claims import Owner, Sightings, create, read_owner, refresh, release, remove_stale
from pipeline.run.folder import RunFolder

TOUCH_EVERY_S = 10.0
WATCH_S = 45.0  # how long an unknown owner is watched for a sign of life
POLL_S = 0.5


class FolderLock:
    """Holds the lock of one folder.

    Args:
        path: the lock's file; the folder is made.
        refuse: makes the error for an owner that lives, or may live, from a description of it.
        should_stop: called while an owner is watched.
        tell: prints what this process waits for.
    """

    def __init__(
        self,
        path: Path,
        *,
        refuse: Callable[[Owner, str], PipelineError],
        should_stop: Callable[[], bool] = lambda: False,
        tell: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.path = path
        self._refuse = refuse
        self._should_stop = should_stop
        self._tell = tell
        self._stop: Callable[[], None] | None = None
        self._mine: Owner | None = None

    def take(self) -> list[str]:
        """Take the lock.

        Returns:
            Messages: whose lock was taken over.

        Raises:
            PipelineError: another program holds it, or this one was asked to stop while it watched.
        """
        messages: list[str] = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mine = Owner.myself()
        while not create(self.path, mine):
            owner = read_owner(self.path)
            if owner is None:
                continue  # released just now
            why = owner.why_dead() or self._judge(owner)
            if why is None:
                continue  # released, or another's by now
            messages.append(f"took over the folder from {owner}: {why}")
            remove_stale(self.path, owner)
        self._mine = mine
        self._stop = refresh(self.path, mine, every_s=TOUCH_EVERY_S, on_loss=self._end_at_once)
        return messages

    def release(self) -> None:
        """Release the lock. Nothing happens if it is not held."""
        if self._stop is not None and self._mine is not None:
            self._stop()
            release(self.path, self._mine)
        self._stop = self._mine = None

    def _judge(self, owner: Owner) -> str | None:
        """Return why an owner that is not known to be dead may be taken for dead; None if the lock has changed hands.

        Raises:
            PipelineError: it lives, or may live.
        """
        if owner.process.life() == "alive":
            raise self._refuse(owner, "")
        here, job = SlurmJob.from_environment(), owner.slurm
        # A number identifies a job on one cluster alone. A process knows more about its own job than the queue does.
        can_ask = job is not None and not (here is not None and (here.id == job.id or here.is_of_another_cluster_than(job)))
        life = ask_after_job(job.id) if job is not None and can_ask else "unknown"
        if life == "over":
            return "its job is over"
        self._tell(f"{self.path} is held by {owner}: looking for a sign of life, {WATCH_S:.0f} s at most")
        silent = self._watch(owner)
        if silent and life == "alive":
            raise self._refuse(
                owner, f"Slurm says that the job still runs, though it has not touched its lock for {WATCH_S:.0f} s"
            )
        return f"no sign of life for {WATCH_S:.0f} seconds" if silent else None

    def _watch(self, owner: Owner) -> bool:
        """Return whether a lock stays unchanged while it is watched; False if it is gone or another's.

        Clocks of two machines may differ: a file that changes is a sign of life, whatever its time.

        Raises:
            PipelineError: its owner has touched it, or this process was asked to stop.
        """
        sightings, end = Sightings(), time.monotonic() + WATCH_S
        sightings.silent_s(self.path)
        while time.monotonic() < end:
            time.sleep(POLL_S)
            if self._should_stop():
                raise StoppedError(f"asked to stop while watching {self.path}")
            if sightings.silent_s(self.path) > 0.0:
                continue
            found = read_owner(self.path)
            if found is None:
                return False
            if not found.token:  # being written just now
                time.sleep(POLL_S)
                found = read_owner(self.path) or found
            raise self._refuse(found, "")
        return read_owner(self.path) == owner

    def _end_at_once(self) -> None:
        # This process was suspended for so long that another took over. Whatever it wrote now would harm that one.
        try:
            print(f"error: {self.path} was taken over by another program; this one ends at once", file=sys.stderr, flush=True)
        finally:
            os._exit(ExitCode.LOST_LOCK)


class RunLock(FolderLock):
    """Holds the lock of a run folder, for one training. Rank 0 takes it."""

    def __init__(
        self, folder: Path, *, should_stop: Callable[[], bool] = lambda: False, tell: Callable[[str], None] = lambda _text: None
    ) -> None:
        super().__init__(RunFolder(folder).lock, refuse=_refuse_second_training(folder), should_stop=should_stop, tell=tell)


def _refuse_second_training(folder: Path) -> Callable[[Owner, str], CheckpointError]:
    def refuse(owner: Owner, known: str) -> CheckpointError:
        end = f"end it (scancel {owner.slurm.id})" if owner.slurm else "end it"
        return CheckpointError(
            f"{folder} is being trained by {owner}{f'; {known}' if known else ''}; wait for it, {end}, or start another run "
            "with name=..."
        )

    return refuse

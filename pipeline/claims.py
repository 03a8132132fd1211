"""Claims: who works on something in a run folder, so that nobody else does; and what becomes of the claims of the dead.

    RUN_DIR/claims/step_00001000.json     the evaluator at work on these weights
    RUN_DIR/lock.json                     the training that this folder belongs to (see `run_lock`)

A claim is a file, created whole or not at all. Its owner touches it while it works, and finds out at the same time
whether it is still the owner: a claim whose process is gone, or that has not been touched for long, is taken over; so is one
of an earlier start of this very job, which Slurm has requeued.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

STALE_AFTER_S = 300.0
TOUCH_EVERY_S = 30.0


@dataclass(frozen=True)
class Owner:
    """The process that holds a claim."""

    host: str
    pid: int
    process_start: str | None  # tells two processes apart that had the same number; None where the system does not say
    slurm_job_id: str | None
    slurm_restart: str | None  # how often the job was requeued before
    since: float  # seconds since 1970
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @staticmethod
    def myself() -> Owner:
        pid = os.getpid()
        return Owner(
            host=socket.gethostname(), pid=pid, process_start=process_start(pid), slurm_job_id=os.environ.get("SLURM_JOB_ID"),
            slurm_restart=os.environ.get("SLURM_RESTART_COUNT"), since=time.time(),
        )  # fmt: skip

    def is_on_this_host(self) -> bool:
        return self.host == socket.gethostname()

    def is_earlier_start_of_this_job(self) -> bool:
        """Whether Slurm has requeued the job since, and this process is what it started then."""
        # Slurm counts from 1, and says nothing before. A process that was not told (srun into a running job) is no later start.
        mine, others = (int(count or 0) for count in (os.environ.get("SLURM_RESTART_COUNT"), self.slurm_restart))
        return self.slurm_job_id is not None and self.slurm_job_id == os.environ.get("SLURM_JOB_ID") and others < mine

    def is_alive_here(self) -> bool:
        """Whether its process exists on this machine."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's
            pass
        return self.process_start is None or process_start(self.pid) == self.process_start


def process_start(pid: int) -> str | None:
    """When a process began, in clock ticks since the boot (field 22 of /proc/PID/stat, proc(5)).

    None if it is unknown, or the process has ended and its parent has not asked for its exit code yet.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in ("Z", "X") else fields[18]


@contextmanager
def claim(path: Path, *, stale_after_s: float = STALE_AFTER_S) -> Iterator[bool]:
    """Try to claim; yields whether it worked. The claim is given up at the end of the block.

    Should two ever both believe that they hold one, the worst must be work done twice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = read_owner(path)
    if owner is not None and (is_dead(owner) or seconds_since_touched(path) > stale_after_s):
        remove(path, owner)
    mine = Owner.myself()
    if not create(path, mine):
        yield False
        return
    stop = keep_touching(path, mine, every_s=TOUCH_EVERY_S, on_loss=lambda: None)
    try:
        yield True
    finally:
        stop()
        give_up(path, mine)


def create(path: Path, owner: Owner) -> bool:
    """Make a claim; whether there was none."""
    # Linked into place whole: an exclusive create could be seen empty, and a reader would take it for damaged.
    draft = path.with_name(f".{path.name}.{owner.token}")
    draft.write_text(json.dumps(asdict(owner)))
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def read_owner(path: Path) -> Owner | None:
    """Who holds a claim; None if nobody does."""
    try:
        return Owner(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # emptied by a power cut, or another version's: nobody's, and stale in its time
        return Owner(host="", pid=0, process_start=None, slurm_job_id=None, slurm_restart=None, since=0.0, token="")


def is_dead(owner: Owner) -> bool:
    """Whether its process is known to be gone. Of another machine's nothing is known, but that this job was requeued."""
    return not owner.is_alive_here() if owner.is_on_this_host() else owner.is_earlier_start_of_this_job()


def seconds_since_touched(path: Path) -> float:
    """By this machine's clock; 0 if the claim is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def remove(path: Path, owner: Owner) -> None:
    """Take away the claim of an owner that is dead. Of several that try, one does."""
    grave = path.with_name(f".{path.name}.stale-{uuid.uuid4().hex}")
    try:
        path.rename(grave)
    except FileNotFoundError:
        return
    if read_owner(grave) != owner:  # put back what is not the claim we judged
        try:
            os.link(grave, path)
        except FileExistsError:
            pass  # somebody has claimed it since: theirs stands
    grave.unlink()


def give_up(path: Path, owner: Owner) -> None:
    """Remove a claim if it is still this owner's."""
    if read_owner(path) == owner:
        path.unlink(missing_ok=True)


def keep_touching(path: Path, owner: Owner, *, every_s: float, on_loss: Callable[[], None]) -> Callable[[], None]:
    """Show that the owner lives, from a thread, until the function that is returned is called.

    Args:
        on_loss: called once if the claim is found to be another's.
    """
    done = threading.Event()

    def touch() -> None:
        while not done.wait(every_s):
            try:
                found = read_owner(path)
                if found is not None and found.token not in ("", owner.token):
                    on_loss()
                    return
                os.utime(path)
            except OSError:
                continue  # the folder does not answer just now: whoever works there finds out if that lasts

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()

    def stop() -> None:
        done.set()
        thread.join()

    return stop

"""Lock files in a shared folder: they say who is working on what, and when a stale lock may be taken over.

    RUN_DIR/claims/step_00001000@cifar10.json     the evaluator at work on these weights and this set
    RUN_DIR/lock.json                             the training that this folder belongs to (see `run.lock`)

A claim is a file, created whole or not at all. Its owner touches it while it works, and checks at the same time whether it is
still the owner. A stale claim is taken over from an owner that is known to be dead: its process is gone from this machine and
container, or Slurm has requeued the same job since. Any other owner is unknown, and its claim is watched. Clocks of two
machines are never compared: what counts is whether the file changes while this process watches. This module imports nothing
heavy.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import CheckpointError
from pipeline.files import read_replaced
from pipeline.json_text import parse_json
from pipeline.launch.processes import Process
from pipeline.launch.slurm_job import SlurmJob

LATEST = 2.0**35  # seconds since 1970; a later time is damage, and no calendar shows it
TOUCH_EVERY_S = 10.0
SILENT_AFTER_S = 45.0  # four touches missed: a file server or a busy machine may delay them for less
# link(2) answers these where there are no hard links: FAT, SMB, gcsfuse and other FUSE mounts, too many links, another mount.
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EACCES}

GONE = {errno.ENOENT, errno.ESTALE}  # NFS gives the second for a file that another machine has removed


@dataclass(frozen=True)
class Owner:
    """Describes the process that holds a claim."""

    process: Process
    slurm: SlurmJob | None
    since: float  # seconds since 1970 by its own clock, for people
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @staticmethod
    def myself() -> Owner:
        return Owner(process=Process.myself(), slurm=SlurmJob.from_environment(), since=time.time())

    @staticmethod
    def described_by(values: dict[str, Any]) -> Owner:
        """Return the owner that a file's values describe. Missing values, as in an older version's file, are unknown."""
        since, token = values.get("since"), values.get("token")
        return Owner(
            process=Process.described_by(values),
            slurm=SlurmJob.described_by(values),
            since=since if isinstance(since, int | float) and 0 <= since < LATEST else 0.0,
            token=token if isinstance(token, str) else "",
        )

    def to_json(self) -> str:
        slurm = {} if self.slurm is None else self.slurm.to_values()
        return json.dumps({**asdict(self.process), **slurm, "since": self.since, "token": self.token})

    def why_dead(self) -> str | None:
        """Return why the owner is known not to work any more, in words; None if it lives or is unknown."""
        life = self.process.life()
        if life == "dead":
            return "its process is gone"
        job = SlurmJob.from_environment()
        if life == "unknown" and self.slurm is not None and job is not None and job.is_later_start_of(self.slurm):
            return "it is an earlier start of this job"
        return None

    def __str__(self) -> str:
        job = f"Slurm job {self.slurm.id} on " if self.slurm else ""
        since = f", since {time.strftime('%Y-%m-%d %H:%M', time.localtime(self.since))}" if self.since else ""
        return f"{job}host {self.process.host or 'unknown'} (process {self.process.pid or 'unknown'}{since})"


class Sightings:
    """Measures how long claims have not changed, by this process's own clock."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[object, float]] = {}

    def silent_s(self, path: Path) -> float:
        """Return seconds since this process first saw the claim as it is now; 0 if it is new, has changed, or is gone."""
        mark, now = _mark(path), time.monotonic()
        known = self._seen.get(path)
        if mark is None or known is None or known[0] != mark:
            self._seen[path] = (mark, now)
            return 0.0
        return now - known[1]


class Claims:
    """Manages the claims in one folder, as one process sees them."""

    def __init__(self, folder: Path, *, touch_every_s: float = TOUCH_EVERY_S, silent_after_s: float = SILENT_AFTER_S) -> None:
        self.folder = folder
        self._touch_every_s = touch_every_s
        self._silent_after_s = silent_after_s
        self._sightings = Sightings()
        self._met: set[Path] = set()
        self._doubts: set[Path] = set()
        self._held: dict[Path, Owner] = {}

    @contextmanager
    def take(self, name: str) -> Iterator[bool]:
        """Try to claim, and yield at once whether it worked. The claim is released at the end of the block.

        If two processes ever both believe that they hold one, the worst result must be work done twice.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        path = self.folder / name
        self._remove_if_stale(path)
        mine = Owner.myself()
        self._held[path] = mine
        try:
            path.parent.mkdir(exist_ok=True)  # without parents: a run's folder that was renamed must not be created again
            created = create(path, mine)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: no claim can be written ({error.strerror or error}); whoever works on a run must be able to "
                f"write to its folder"
            ) from error
        if not created:
            del self._held[path]
            yield False
            return
        self._doubts.discard(path)
        stop = refresh(path, mine, every_s=self._touch_every_s, on_loss=lambda: None)
        try:
            yield True
        finally:
            stop()
            release(path, mine)
            del self._held[path]

    def release_all(self) -> None:
        """Release what `take` was kept from releasing: a signal's exception may be raised in the middle of that."""
        while self._held:
            path, mine = next(iter(self._held.items()))
            with suppress(OSError):
                _draft_of(path, mine).unlink()
            release(path, mine)
            del self._held[path]

    def are_in_doubt(self) -> bool:
        """Return whether the owner of some claim may or may not live: it is then worth trying again soon."""
        return bool(self._doubts)

    def _remove_if_stale(self, path: Path) -> None:
        owner = read_owner(path)
        if owner is None:
            self._doubts.discard(path)
            return
        is_new = path not in self._met
        self._met.add(path)
        silent_s = self._sightings.silent_s(path)
        if owner.why_dead() is not None or silent_s > self._silent_after_s:
            self._doubts.discard(path)
            self._met.discard(path)
            remove_stale(path, owner)
        elif owner.process.life() == "alive" or (silent_s == 0.0 and not is_new):
            self._doubts.discard(path)  # it has changed while we watched
        elif is_new:
            self._doubts.add(path)


def create(path: Path, owner: Owner) -> bool:
    """Create a claim. Return whether there was none."""
    draft = _draft_of(path, owner)
    try:
        draft.write_text(owner.to_json())
        return link_or_create(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _draft_of(path: Path, owner: Owner) -> Path:
    return path.with_name(f".{path.name}.{owner.token}")


def link_or_create(draft: Path, path: Path) -> bool:
    """Give a file's contents a name that nobody has taken. Return whether it worked. The draft stays."""
    try:
        os.link(draft, path)  # whole or not at all
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _create_exclusively(path, draft.read_bytes())
    return True


def _create_exclusively(path: Path, content: bytes) -> bool:
    """Create the file without hard links. A reader that comes before it is written sees an unknown owner, and watches it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return True


def read_owner(path: Path) -> Owner | None:
    """Return who holds a claim; None if nobody does."""
    try:
        values = parse_json(read_replaced(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:  # being written, emptied by a power cut, or another program's: an unknown owner
        values = {}
    return Owner.described_by(values if isinstance(values, dict) else {})


def remove_stale(path: Path, owner: Owner) -> None:
    """Remove the stale claim of a dead owner. If several processes try, one does it."""
    stale_path = path.with_name(f".{path.name}.stale-{uuid.uuid4().hex}")
    if read_owner(path) != owner:  # another was first; renaming a living claim leaves its name free for a moment
        return
    try:
        path.rename(stale_path)
    except OSError as error:
        if error.errno not in GONE:
            raise
        return
    if (
        read_owner(stale_path) != owner
    ):  # put back a claim other than the one we judged; if another process has claimed it since, that claim holds
        link_or_create(stale_path, path)
    stale_path.unlink()


def release(path: Path, owner: Owner) -> None:
    """Remove a claim if it is still this owner's."""
    try:
        if read_owner(path) == owner:
            path.unlink(missing_ok=True)
    except OSError:
        return  # the folder is gone or read-only by now: the next process finds this one dead


def refresh(path: Path, owner: Owner, *, every_s: float, on_loss: Callable[[], None]) -> Callable[[], None]:
    """Show that the owner lives, from a thread, until the returned function is called.

    Args:
        on_loss: called once if the claim is found to be another's.
    """
    done = threading.Event()

    def work() -> None:
        while not done.wait(every_s):
            try:
                if touch(path, owner) == "lost":
                    on_loss()
                    return
            except OSError:
                continue  # the folder does not answer now: the process that works there notices if that lasts

    thread = threading.Thread(target=work, daemon=True, name="claim")
    thread.start()

    def stop() -> None:
        done.set()
        thread.join(timeout=every_s)  # a file server that hangs must not delay the end

    return stop


def touch(path: Path, owner: Owner) -> Literal["kept", "lost"]:
    """Change the claim's file, which others see. Return "lost" if it belongs to another."""
    content = read_replaced(path)
    try:
        values = parse_json(content)
    except ValueError:
        values = None  # torn: not another owner's
    if isinstance(values, dict) and values.get("token") not in (None, "", owner.token):
        return "lost"
    try:
        # The same bytes in the same file also change it on mounts that keep no times of their own.
        with path.open("r+b") as file:
            file.write(owner.to_json().encode())
    except FileNotFoundError:
        raise
    except OSError:  # a mount without random writes, or a full disk that copies what is written
        os.utime(path)
    return "kept"


def _mark(path: Path) -> object | None:
    """Return what changes when a claim is touched; None if it is gone."""
    try:
        with path.open(
            "rb"
        ) as file:  # opening makes a network file system ask its server, a stat alone may be answered from memory
            stat = os.fstat(file.fileno())
            return stat.st_mtime_ns, stat.st_size, file.read()
    except OSError:
        return None

"""Write files whole or not at all: under a temporary name, flushed, then renamed.

This module imports nothing heavy.
"""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path
from typing import BinaryIO, Literal

from pipeline.errors import ConfigError

Durability = Literal["flushed", "unflushed"]
STALE_LOOKS = 3  # the second read succeeds, unless the file was replaced in between


class Draft:
    """Writes a file next to its target. `publish` puts it in the target's place; everything else discards it.

    Its name is drawn at random and created exclusively. A process id would repeat across machines and containers.

    Args:
        target: the file to be written.
        durability: `flushed` survives a power cut; `unflushed` is for contents that are useless after one.
    """

    def __init__(self, target: str | Path, *, durability: Durability = "flushed") -> None:
        self._target = Path(target)
        self._durability = durability
        self.path = self._target.with_name(f".{self._target.name}.{uuid.uuid4().hex}.part")
        self.file: BinaryIO = self.path.open("xb")

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def discard(self) -> None:
        """Remove the draft. A published file stays."""
        try:
            self.file.close()  # flushes, which fails again on a full disk
        finally:
            self.path.unlink(missing_ok=True)

    def publish(self) -> None:
        """Put the file in the target's place."""
        self.file.flush()
        if self._durability == "flushed":
            os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.path, self._target)
        if self._durability == "flushed":
            sync_folder(self._target.parent)


def write_whole(target: str | Path, data: bytes | str, *, durability: Durability = "flushed") -> None:
    """Write a file that readers see whole: the old one or the new one. Text is written in UTF-8.

    Raises:
        OSError: the file cannot be written; the old file is unchanged.
    """
    with Draft(target, durability=durability) as draft:
        draft.file.write(data.encode("utf-8") if isinstance(data, str) else data)
        draft.publish()


def read_replaced(path: Path) -> bytes:
    """Return the contents of a file that other machines replace or remove.

    NFS answers "stale file handle" where its client still has the old file under this name. A second request looks up the name
    again, and finds the new file, or none.

    Raises:
        FileNotFoundError: it is gone.
        OSError: it cannot be read.
    """
    for _ in range(STALE_LOOKS):
        try:
            return path.read_bytes()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power cut, where its file system can do that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot
        pass
    finally:
        os.close(descriptor)


def remove_drafts(folder: Path) -> None:
    """Remove drafts that killed processes left. Call it only where nobody else writes: under a lock."""
    for draft in folder.glob(".*.part"):
        draft.unlink(missing_ok=True)


def check_surroundings() -> None:
    """Check the working folder and the folder for temporary files: without them libraries end in a traceback or a crash.

    Raises:
        ConfigError: one of them is missing.
    """
    import tempfile

    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise ConfigError(
            "the folder in which this command was started has been removed or renamed; `cd` into one that is there, then type "
            "the same command"
        ) from error
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        tried = str(error.strerror).partition("found in ")[2]
        raise ConfigError(
            f"no folder for temporary files can be written (tried: {tried}), or its disk is full; name another with the "
            "variable TMPDIR: type `export TMPDIR=FOLDER`, then the same command"
        ) from error

"""Claims: several evaluators share a run's checkpoints, and one that dies loses its claim.

    RUN_DIR/claims/step_00001000.json     who works on these weights; its modification time is the last sign of life

A claim is made by creating the file exclusively. Its owner touches it while it works; a claim that has not been
touched for `stale_after_s`, or whose process on this machine is gone, is taken over. Should two evaluators ever both
believe they hold one, the worst is work done twice: results are looked up before they are appended.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STALE_AFTER_S = 300.0
TOUCH_EVERY_S = 30.0


@contextmanager
def claim(path: Path, *, stale_after_s: float = STALE_AFTER_S) -> Iterator[bool]:
    """Try to claim; yields whether it worked. The claim is given up at the end of the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_if_abandoned(path, stale_after_s=stale_after_s)
    token = uuid.uuid4().hex
    if not _create(path, token):
        yield False
        return
    done = threading.Event()
    toucher = threading.Thread(target=_keep_touching, args=(path, done), daemon=True)
    toucher.start()
    try:
        yield True
    finally:
        done.set()
        toucher.join()
        owner = _read(path)
        if owner is not None and owner.get("token") == token:
            path.unlink(missing_ok=True)


def _create(path: Path, token: str) -> bool:
    # Linked into place whole: an exclusive create could be seen empty, and a reader would take it for damaged.
    draft = path.with_name(f".{path.name}.{token}")
    draft.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "token": token}))
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def _keep_touching(path: Path, done: threading.Event) -> None:
    while not done.wait(TOUCH_EVERY_S):
        if path.exists():
            os.utime(path)


def _remove_if_abandoned(path: Path, *, stale_after_s: float) -> None:
    owner = _read(path)
    if owner is None:
        return
    try:
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return
    if not (_is_dead(owner) or age_s > stale_after_s):
        return
    # Of several that see the same dead claim one wins the rename; put back what is not the claim we judged.
    grave = path.with_name(f".{path.name}.stale-{uuid.uuid4().hex}")
    try:
        path.rename(grave)
    except FileNotFoundError:
        return
    if _read(grave) != owner:
        try:
            os.link(grave, path)
        except FileExistsError:
            pass  # somebody has claimed it since: theirs stands
    grave.unlink()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:  # emptied by a power cut: nobody's, and stale in its time
        return {"host": "", "pid": 0, "token": ""}


def _is_dead(owner: dict[str, Any]) -> bool:
    if owner["host"] != socket.gethostname():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False

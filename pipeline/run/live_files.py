"""Files that show the newest state of a run, written by a thread: a slow or full disk must not hold the training up."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.run.records import replace_json

WRITE_EVERY_S = 5.0
CLOSE_TIMEOUT_S = 10.0


class StateFiles:
    """Writes what was last put, at most every few seconds, and only what has changed.

    The times in it are the caller's: a training that hangs puts nothing, so its files grow old although the thread lives.
    """

    def __init__(self, folder: Path, *, every_s: float = WRITE_EVERY_S) -> None:
        self._folder = folder
        self._every_s = every_s
        self._newest: dict[str, Mapping[str, Any]] = {}
        self._written: dict[str, Mapping[str, Any]] = {}
        self._closing = threading.Event()
        self._told = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="state files")
        self._thread.start()

    def put(self, name: str, values: Mapping[str, Any]) -> None:
        """Make this the newest state of a file; returns at once."""
        self._newest[name] = values

    def close(self) -> None:
        """Write what is left, waiting a few seconds at most."""
        self._closing.set()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _work(self) -> None:
        while not self._closing.is_set():
            self._write()
            self._closing.wait(self._every_s)
        self._write()

    def _write(self) -> None:
        for name, values in list(self._newest.items()):
            if self._written.get(name) is values:
                continue
            try:
                replace_json(self._folder / name, values)
            except OSError as error:
                if not self._told:
                    print(f"[health] {self._folder / name} cannot be written ({error}); the training goes on", flush=True)
                self._told = True
                return
            self._written[name] = values

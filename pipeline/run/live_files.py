"""Show the newest state of a run in files. A thread writes them: a slow or full disk must not hold the training up."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.run.folder import RunFolder
from pipeline.run.records import replace_json

WRITE_EVERY_S = 5.0
CLOSE_TIMEOUT_S = 10.0


class LiveFiles:
    """Writes the newest state of each file, at most every few seconds, and only if it has changed.

    Timestamps come from the training loop, not from this thread: if the loop hangs, the file becomes stale.
    """

    def __init__(self, folder: RunFolder, *, every_s: float = WRITE_EVERY_S) -> None:
        self.folder = folder
        self._every_s = every_s
        self._newest: dict[Path, Mapping[str, Any]] = {}
        self._written: dict[Path, Mapping[str, Any]] = {}
        self._closing = threading.Event()
        self._told = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="state files")
        self._thread.start()

    def put(self, path: Path, values: Mapping[str, Any]) -> None:
        """Make this the newest state of a file. The call returns at once."""
        self._newest[path] = values

    def close(self) -> None:
        """Write what is left, and wait a few seconds at most."""
        self._closing.set()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _work(self) -> None:
        while not self._closing.is_set():
            self._write()
            self._closing.wait(self._every_s)
        self._write()

    def _write(self) -> None:
        for path, values in list(self._newest.items()):
            if self._written.get(path) is values:
                continue
            try:
                replace_json(path, values)
            except OSError as error:
                if not self._told:
                    print(f"[health] {path} cannot be written ({error}); the training continues", flush=True)
                self._told = True
                return
            self._written[path] = values

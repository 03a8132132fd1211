"""Provide output streams that never hold a program up. This module imports nothing heavy.

A log may have no reader any more (a closed pipe or terminal), none at present (a stopped terminal, a pager), or a full disk.
None of these may end or stall a training: what cannot be written is dropped, and goes to a file where there is one.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

PATIENCE_S = 2.0  # how long a line waits for a reader; the lines behind it do not wait
PIECE = 2048  # a pipe that select(2) calls writable takes 4096 bytes at least
LOST = {errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF, errno.ENOTCONN, errno.ECONNRESET}


class Outlet(io.TextIOBase):
    """Wraps a file descriptor in a text stream that drops what cannot be written."""

    def __init__(self, descriptor: int, *, encoding: str) -> None:
        self._descriptor = descriptor
        self._encoding = encoding
        self._line = ""
        self._renew_lock()
        os.register_at_fork(after_in_child=self._renew_lock)  # a fork may come while another thread writes
        self._fallback: Path | None = None
        self._is_lost = False
        self._is_stuck = False
        self._dropped = 0

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._encoding

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        try:
            return os.isatty(self._descriptor)
        except OSError:
            return False

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        with self._lock:
            text, self._line = self._line, ""
            if text:
                self._send(text)

    def write(self, text: str, /) -> int:
        """Write whole lines at once: lines of several ranks may meet in one log."""
        with self._lock:
            self._line += text
            whole, newline, rest = self._line.rpartition("\n")
            if newline:
                self._line = rest
                self._send(whole + newline)
        return len(text)

    def _send(self, text: str) -> None:
        data = text.encode(self._encoding, errors="replace")
        if self._dropped and not self._is_lost and self._is_writable(0.0):
            lost, self._dropped = self._dropped, 0
            data = f"\n[output] {lost} bytes could not be written here and are lost\n".encode() + data
        self._write(data)

    def keep_in(self, fallback: Path) -> None:
        """Name the file for output that nobody reads any more."""
        with self._lock:
            self._fallback = fallback
            if self._is_lost:
                self._redirect()

    def _write(self, data: bytes) -> None:
        while data:
            if not self._is_writable(0.0 if self._is_stuck else PATIENCE_S):
                self._is_stuck = True
                self._dropped += len(data)
                return
            self._is_stuck = False
            try:
                data = data[os.write(self._descriptor, data[:PIECE]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno not in LOST:  # a full disk: later output may find room
                    self._dropped += len(data)
                    return
                if self._is_lost:
                    return
                self._is_lost = True
                self._redirect()

    def _is_writable(self, patience_s: float) -> bool:
        try:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            return bool(poll.poll(1000 * patience_s))
        except OSError:
            return True  # the write will report it

    def _redirect(self) -> None:
        """Redirect the descriptor, so that output of libraries and the kernel goes there too."""
        path: str | Path = os.devnull
        if self._fallback is not None and self._fallback.parent.is_dir():
            path = self._fallback
        try:
            target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError:
            target = os.open(os.devnull, os.O_WRONLY)
            path = os.devnull
        os.dup2(target, self._descriptor)
        os.close(target)
        if path != os.devnull:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            os.write(
                self._descriptor, f"[output] {stamp}: nobody reads this program's output any more; it continues here\n".encode()
            )


def open_outlets() -> None:
    """Replace standard output and error by outlets. Call it before anything keeps a reference to these."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        _keep_taken(descriptor)
        stream: TextIO | None = getattr(sys, name)
        if name == "stdin":
            continue
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.flush()
        setattr(sys, name, Outlet(descriptor, encoding=getattr(stream, "encoding", None) or "utf-8"))


def _keep_taken(descriptor: int) -> None:
    """Occupy a descriptor number that the shell has closed: otherwise output ends up in the next opened file."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)


def keep_output_in(path: Path) -> None:
    """Send output that nobody reads any more to a file of a run folder from now on."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Outlet):
            stream.keep_in(path)

"""Handle requests to stop: a signal only sets a flag, and the ranks agree at a step's end.

A handler that saves by itself deadlocks when another rank is inside another collective (Lightning issues #20806 and #21406).
The signals are blocked in all threads, and in all processes that are started, and one thread waits for them. So none is lost
while the main thread is inside a library, none interrupts a library's call, and a child that does not listen yet keeps them
pending. This module imports nothing heavy: it is installed before torch is loaded.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Literal

from pipeline.errors import ExitCode

# Shells and schedulers send these to stop a program: preemption, Ctrl-C, a supervisor's or a shell's end, Ctrl-\, warnings of a
# time limit.
SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)
SAME_KEYSTROKE_S = 1.0  # a Ctrl-C may arrive twice: from the terminal, and passed on by a process between
GIVE_UP_S = 5.0  # time that a second Ctrl-C leaves the main thread


class Interrupted(KeyboardInterrupt):
    """A stop was requested of a command that stops wherever it is. The message is the signal's name."""


def interruption_behind(error: BaseException) -> Interrupted | None:
    """Return the request to stop during which an error was raised: a library may fail to clean up where it is interrupted."""
    behind = error.__context__
    while behind is not None and not isinstance(behind, Interrupted):
        behind = behind.__context__
    return behind


@dataclass
class StopRequest:
    """Holds whether this process was asked to stop, and by which signals."""

    received: list[str] = field(default_factory=list)
    second_interrupt: Literal["abort", "ignore"] = "abort"  # SIGINT; ranks of `launch.local` leave it to their launcher
    _at: dict[str, float] = field(default_factory=dict)
    _listeners: list[Callable[[str], None]] = field(default_factory=list)
    _had_terminal: bool = False

    def install(self) -> None:
        """Listen from now on. A second SIGINT, a second later or more, ends the process without waiting."""
        self._had_terminal = has_terminal()
        # A background job whose terminal has `stty tostop` set would be halted by its first line of output.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        # `nohup` makes the process ignore SIGHUP, and this stays so. Shells ignore SIGINT in background jobs, where only `kill`
        # sends it.
        numbers = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        for number in numbers:
            signal.signal(number, self._handle)  # for threads that were there before
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        threading.Thread(target=self._listen, args=(numbers,), daemon=True, name="signals").start()

    def install_everywhere(self) -> None:
        """Listen from now on, and raise `Interrupted` in the main thread, wherever it is: for commands that may end there."""
        self._had_terminal = has_terminal()
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._raise)

    def on_request(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call a function with each signal's name, in another thread; at once if a signal has come already.

        Returns:
            The function that ends the calls.
        """
        self._listeners.append(listener)
        if self.received:
            listener(self.received[0])
        return lambda: self._listeners.remove(listener)

    @property
    def is_set(self) -> bool:
        return bool(self.received)

    def end_here(self) -> None:
        """Raise `Interrupted` again if there was a request: Python drops an exception raised while it deletes an object.

        Raises:
            Interrupted: a stop was requested.
        """
        if self.received:
            raise Interrupted(self.received[0])

    def note(self, name: str) -> bool:
        """Note a signal. Return whether it is a new request."""
        now = time.monotonic()
        if name == "SIGHUP" and self._had_terminal and not has_terminal():
            return False  # the terminal is gone, and nobody has requested anything: output that nobody reads is dropped
        last, self._at[name] = self._at.get(name), now
        if last is not None and now - last < SAME_KEYSTROKE_S:
            return False
        self.received.append(name)
        for listener in list(self._listeners):
            listener(name)
        return True

    def _listen(self, numbers: list[signal.Signals]) -> None:
        while True:
            name = signal.Signals(signal.sigwait(numbers)).name
            if self.note(name) and self._is_abort(name):
                _thread.interrupt_main()
                time.sleep(GIVE_UP_S)
                os._exit(ExitCode.STOPPED_AT_ONCE)  # the main thread waits in a library

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self.note(name)
        if self._is_abort(name):
            raise KeyboardInterrupt

    def _raise(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.note(name):
            raise KeyboardInterrupt if self._is_abort(name) else Interrupted(name)

    def _is_abort(self, name: str) -> bool:
        return name == "SIGINT" and self.received.count("SIGINT") > 1 and self.second_interrupt == "abort"


def has_terminal() -> bool:
    """Return whether this process has a controlling terminal that still exists."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def exit_on_request(stop: StopRequest, *, tell: bool) -> Callable[[], None]:
    """End the process at once on a signal, whatever it waits in, while there is nothing to save and nothing to clean up.

    Args:
        tell: whether to print it: one of the ranks does.

    Returns:
        The function that ends this phase.
    """

    def leave(name: str) -> None:
        try:
            if tell:
                print(f"[run] stopped by {name} before training began; the same command starts it", file=sys.stderr, flush=True)
        finally:
            os._exit(ExitCode.STOPPED)

    return stop.on_request(leave)

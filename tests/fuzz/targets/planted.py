"""Give the fuzzer readers with a fault that one input in ten meets."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.fuzzer import BrokenLaw, Fuzzer, Outcome


def sound(scratch: Path) -> Fuzzer:
    return _fuzzer(lambda: None)


def wrong(scratch: Path) -> Fuzzer:
    def do() -> None:
        raise BrokenLaw("two and two are five", details="of this input")

    return _fuzzer(do)


def foreign(scratch: Path) -> Fuzzer:
    return _fuzzer(lambda: {}["key"])


def memory(scratch: Path) -> Fuzzer:
    return _fuzzer(lambda: bytearray(1 << 30))


def crash(scratch: Path) -> Fuzzer:
    return _fuzzer(lambda: os.kill(os.getpid(), signal.SIGSEGV))


def hang(scratch: Path) -> Fuzzer:
    def do() -> None:
        while True:
            pass

    return _fuzzer(do)


def _fuzzer(fault: Callable[[], object]) -> Fuzzer:
    def check(data: bytes) -> Outcome:
        if data[0] < 13:
            fault()
        return "taken" if data[0] % 2 else "refused"

    return Fuzzer(make=lambda random: random.randbytes(8), check=check)

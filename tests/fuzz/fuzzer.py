"""Define what a target gives: inputs by number, and the law that each must keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

Outcome = Literal["taken", "refused"]


class BrokenLaw(Exception):  # noqa: N818  (a finding, not a failure)
    """A reader returned something wrong for an input; `details` are of this input alone."""

    def __init__(self, law: str, *, details: str = "") -> None:
        super().__init__(law)
        self.details = details


@dataclass(frozen=True)
class Fuzzer:
    """Makes an input, as a pure function of chance, and checks it.

    `check` raises `BrokenLaw`, or lets through whatever the reader raised beyond its documented errors.
    """

    make: Callable[[Random], bytes]
    check: Callable[[bytes], Outcome]


def random_of(seed: int, number: int) -> Random:
    """Return the chance behind one input. It does not depend on the inputs before."""
    return Random((seed << 40) + number)

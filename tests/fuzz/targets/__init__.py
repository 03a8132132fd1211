"""Hold what is fuzzed, a module for each kind of file; `TARGETS` names them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Build = Literal["vectors", "plain"]  # builds of the C decoder: with the vectors of x86 processors, or without


@dataclass(frozen=True)
class Target:
    """Describes one reader, and what one input may cost.

    `tests.fuzz.targets.MODULE.FUNCTION(scratch)` returns a `Fuzzer`; it runs in a process of its own.
    """

    module: str
    function: str
    executions: int  # executions of the long form
    limit_s: float = 10.0  # computation for one input
    memory_mib: int = 512  # beyond what the process has when it begins
    sanitized: Build | None = None  # with the C decoder under AddressSanitizer and UndefinedBehaviorSanitizer


# Readers with faults put into them: the fuzzer must find these. They do not run by default.
PLANTED = {
    kind: Target("planted", kind, 40, limit_s=0.5, memory_mib=64)
    for kind in ("sound", "wrong", "foreign", "memory", "crash", "hang")
}

TARGETS = {
    "jpeg": Target("jpeg", "region_decoder", 1_000_000, sanitized="vectors"),
    "jpeg-plain": Target("jpeg", "region_decoder", 200_000, sanitized="plain"),
    "config": Target("config", "configurations", 5_000),
    "weights": Target("weights", "weights_files", 10_000),
    "published": Target("published", "published_weights", 10_000),
    "tar": Target("tar", "tars", 100_000),
    "lists": Target("lists", "lists", 60_000),
    "stores": Target("stores", "stores", 60_000),
    "index": Target("index", "index_files", 100_000),
    "run-folder": Target("run_folder", "run_folders", 10_000),
}


def find_target(name: str) -> Target:
    return (TARGETS | PLANTED)[name]

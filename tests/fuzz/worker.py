"""Try a range of inputs in one process: `python -m tests.fuzz.worker TARGET ...`, started by `campaign`.

Its progress is in a mapped file, which survives its death by a signal.
"""

from __future__ import annotations

import argparse
import importlib
import json
import mmap
import resource
import struct
import traceback
from pathlib import Path
from random import Random

from tests.fuzz.fuzzer import BrokenLaw, Fuzzer, Outcome, random_of
from tests.fuzz.targets import Target, find_target

PROGRESS = struct.Struct("<qqq")  # number of the input now tried, inputs taken, inputs refused
OWN_CODE = ("/pipeline/", "/data_tools/")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    for name in ("seed", "first", "last"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("scratch", "progress", "findings"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--save", type=Path, help="write the first input here instead of trying it")
    arguments = parser.parse_args()
    target = find_target(arguments.target)
    fuzzer = build(target, arguments.scratch)
    if arguments.save:
        arguments.save.write_bytes(fuzzer.make(random_of(arguments.seed, arguments.first)))
        return
    if target.sanitized is None:  # the sanitizer maps terabytes; it has a limit of its own
        limit_memory(target.memory_mib)
    with arguments.progress.open("r+b") as file:
        progress = mmap.mmap(file.fileno(), PROGRESS.size)
    taken = refused = 0
    for number in range(arguments.first, arguments.last):
        PROGRESS.pack_into(progress, 0, number, taken, refused)
        finding = try_input(fuzzer, random_of(arguments.seed, number))
        taken, refused = taken + (finding == "taken"), refused + (finding == "refused")
        if isinstance(finding, dict):
            with arguments.findings.open("a") as file:
                file.write(json.dumps({"number": number, **finding}) + "\n")
    PROGRESS.pack_into(progress, 0, arguments.last, taken, refused)


def build(target: Target, scratch: Path) -> Fuzzer:
    module = importlib.import_module(f"tests.fuzz.targets.{target.module}")
    return getattr(module, target.function)(scratch)


def limit_memory(beyond_mib: int) -> None:
    """Bound the address space, so that an input that asks for more is a MemoryError and not a slow machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (beyond_mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def try_input(fuzzer: Fuzzer, random: Random) -> Outcome | dict[str, str]:
    """Return how a reader met one input. A finding has a fault, alike for inputs that show the same, and its details."""
    data = fuzzer.make(random)
    try:
        return fuzzer.check(data)
    except BrokenLaw as error:
        return {"fault": f"wrong: {error}", "text": error.details}
    except Exception as error:
        kind = "memory" if isinstance(error, MemoryError) else "foreign error"
        return {"fault": f"{kind}: {type(error).__name__} at {last_own_line(error)}", "text": traceback.format_exc()}


def last_own_line(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    ours = [frame for frame in frames if any(part in frame.filename for part in OWN_CODE)]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "no line of the project"


if __name__ == "__main__":
    main()

"""Run contenders of a benchmark in processes of their own, which do work when their turn comes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent.parent
# Peers live in folders of their own: `make peers`, `.reference` of the tests.
PEERS = (".peers", ".reference", ".reference/scientific")


def describe_machine() -> str:
    """Return the first GPU's name, or the processor's with what torch uses of it and the cores that this process may use."""
    import torch

    from pipeline.distributed.hardware import processor_name

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    cores = len(os.sched_getaffinity(0))
    return f"{processor_name()}, {cores} cores, {torch.backends.cpu.get_cpu_capability()}"


class Contender:
    """Runs a Python module as a process that answers lines of text with lines of JSON.

    It prints a first line when it is ready. What it prints besides is not read, and what it writes to standard error is
    kept for `last_words`.
    """

    def __init__(self, module: str, *arguments: str, peers: Sequence[str] = PEERS, variables: Mapping[str, str]) -> None:
        paths = [*(str(REPOSITORY / peer) for peer in peers), os.environ.get("PYTHONPATH", "")]
        self._errors = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would fill up and stop the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **variables},
        )

    def ask(self, line: str) -> None:
        """Send a line. A process that has ended is found out by `answer`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass

    def answer(self) -> dict[str, Any] | None:
        """Return the process's answer; None if it has ended."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        return None

    def last_words(self) -> str:
        """Wait for the process's end. Return the last line of what it wrote to standard error."""
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        return lines[-1] if lines else f"ended with code {code}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                pass

"""Time the steps of a contender's loop when the parent asks for them, and profile them."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, TextIO

import torch

from pipeline.benchmark.train.profile import Profile


class Turn:
    """Belongs to a loop that calls `step_ended` after each step, which returns when the loop may make the next.

    The parent sends lines of JSON: `{"steps": 10, "warmup": 2, "profile": FILE or null}`. The steps of `warmup` are not
    timed. The answer has the seconds of the others. At the end of input the process ends.

    Args:
        device: where the loop computes.
    """

    def __init__(self, device: torch.device, *, commands: TextIO = sys.stdin, answers: TextIO = sys.stdout) -> None:
        self.device = device
        self._commands, self._answers = commands, answers
        self._left = 1  # of the steps before the next change: the first step ends the start-up
        self._command: dict[str, Any] | None = None
        self._start: float | None = None  # of the timed steps
        self._wait_s = 0.0
        self._profile: Profile | None = None

    def waited(self, seconds: float) -> None:
        """Count time that the loop waited for data."""
        self._wait_s += seconds

    def step_ended(self) -> None:
        self._left -= 1
        if self._left > 0:
            return
        if self._command is None:
            self._synchronize()
            self._say({"ready": True})
        elif self._start is None:
            self._begin_timing(self._command)
            return
        else:
            self._end_timing(self._command, self._start)
        self._wait_for_command()

    def _wait_for_command(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # another contender's turn: it may need the memory
        line = self._commands.readline()
        if not line:
            raise SystemExit(0)
        self._command = json.loads(line)
        assert self._command is not None
        self._start = None
        self._left = self._command["warmup"]
        if self._left == 0:
            self._begin_timing(self._command)

    def _begin_timing(self, command: dict[str, Any]) -> None:
        self._synchronize()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._left, self._wait_s = command["steps"], 0.0
        if command.get("profile"):
            self._profile = Profile(self.device)
        self._start = time.perf_counter()

    def _end_timing(self, command: dict[str, Any], start: float) -> None:
        self._synchronize()
        seconds = time.perf_counter() - start
        answer: dict[str, Any] = {"seconds": seconds, "steps": command["steps"], "wait_s": self._wait_s}
        if self.device.type == "cuda":
            answer["peak_bytes"] = torch.cuda.max_memory_allocated()
        if self._profile is not None:
            answer["shares"] = self._profile.end(command["profile"], seconds=seconds)
            self._profile = None
        self._say(answer)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _say(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self._answers, flush=True)

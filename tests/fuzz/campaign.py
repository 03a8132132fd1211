"""Run a target's inputs in processes of its own, and outlive their crashes and hangs."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.fuzz.sanitizers import SanitizedModule
from tests.fuzz.targets import Target, find_target
from tests.fuzz.worker import PROGRESS

REPOSITORY = Path(__file__).parents[2]
KEPT_INPUTS = 3  # of each fault
POLL_S = 0.1
START_LIMIT_S = 120.0  # imports and seeds, under a sanitizer and on a busy machine
MAX_DEATHS = 20
WAITING_FACTOR = (
    20  # seconds on the clock for one of computation: the machine may be busy, or the input's reader may wait for ever
)
REPORT_CHARACTERS = 20_000


@dataclass
class Result:
    """Holds what came of a target."""

    target: str
    executions: int = 0
    taken: int = 0
    refused: int = 0
    seconds: float = 0.0  # starts of processes included
    faults: Counter[str] = field(default_factory=Counter)
    kept: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Campaign:
    """Says how a target is tried.

    Attributes:
        scratch: folder for what the target writes.
        out: where failing inputs are kept, named after target, seed and number.
        module: the C decoder, for targets that want it sanitized.
    """

    name: str
    target: Target
    seed: int
    executions: int
    scratch: Path
    out: Path
    module: SanitizedModule | None = None

    def run(self, *, limit_s: float | None = None) -> Result:
        """Try inputs 0 ... executions - 1, or as many as the time allows.

        A process that dies, or stays on one input beyond the target's limit, is a finding. The next one continues behind that
        input.
        """
        result = Result(self.name)
        began = time.monotonic()
        self.scratch.mkdir(parents=True, exist_ok=True)
        for _ in range(MAX_DEATHS):
            death = self._run_process(result, until=None if limit_s is None else began + limit_s)
            if death is None or result.executions >= self.executions:
                break
        result.seconds = time.monotonic() - began
        return result

    def number_now(self) -> int:
        """Return the number of the present input; 0 before the first."""
        try:
            return max(0, PROGRESS.unpack((self.scratch / "progress").read_bytes())[0])
        except (FileNotFoundError, struct.error):  # it has not begun, or its file is being written
            return 0

    def _run_process(self, result: Result, *, until: float | None) -> str | None:
        progress, findings, report = (self.scratch / name for name in ("progress", "findings.jsonl", "report.txt"))
        progress.write_bytes(PROGRESS.pack(-1, 0, 0))
        findings.write_text("")
        with report.open("wb") as file:
            process = self._start(
                "--first",
                str(result.executions),
                "--last",
                str(self.executions),
                "--progress",
                str(progress),
                "--findings",
                str(findings),
                stderr=file,
            )
        death = _watch(process, progress, limit_s=self.target.limit_s, until=until)
        number, taken, refused = PROGRESS.unpack(progress.read_bytes())
        result.taken, result.refused = result.taken + taken, result.refused + refused
        for line in findings.read_text().splitlines():
            finding = json.loads(line)
            self._note(result, finding["fault"], finding["text"], finding["number"])
        result.executions = max(number, result.executions)
        if death is not None and number < 0:
            raise RuntimeError(f"{self.name} does not start ({death}): {report.read_text(errors='replace')[-2000:]}")
        if death is not None:
            text = report.read_text(errors="replace")[-REPORT_CHARACTERS:]
            self._note(result, f"{death}: {_headline(text)}", text, number)
            result.executions += 1  # continue behind it
        return death

    def _start(self, *arguments: str, stderr: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.fuzz.worker", self.name, "--seed", str(self.seed)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **(self.module.environment() if self.module else {})}
        return subprocess.Popen(
            [*command, "--scratch", str(self.scratch), *arguments],
            cwd=REPOSITORY,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=stderr,  # type: ignore[arg-type]
        )

    def _note(self, result: Result, fault: str, text: str, number: int) -> None:
        result.faults[fault] += 1
        if result.faults[fault] > KEPT_INPUTS:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        kept = self.out / f"{self.name}-seed{self.seed}-{number}"
        kept.with_suffix(".txt").write_text(f"{fault}\n{text}")
        result.kept.append(kept)
        self._start(
            "--first",
            str(number),
            "--last",
            str(number),
            "--save",
            str(kept),
            "--progress",
            os.devnull,
            "--findings",
            os.devnull,
            stderr=subprocess.DEVNULL,
        ).wait()


def _watch(process: subprocess.Popen[bytes], progress: Path, *, limit_s: float, until: float | None) -> str | None:
    """Wait for a process's end, or end it. Return how it died, or None where it did not."""
    usage = psutil.Process(process.pid)
    seen, changed, computed_s = -1, time.monotonic(), 0.0
    while True:
        try:
            process.wait(POLL_S)
            break
        except subprocess.TimeoutExpired:
            number, now, cpu_s = PROGRESS.unpack(progress.read_bytes())[0], time.monotonic(), _cpu_s(usage)
        if number != seen:
            seen, changed, computed_s = number, now, cpu_s
        is_late = until is not None and now > until and seen >= 0
        allowed_s = limit_s if seen >= 0 else START_LIMIT_S
        if is_late or cpu_s - computed_s > allowed_s or now - changed > WAITING_FACTOR * allowed_s:
            process.kill()
            process.wait()
            return None if is_late else "hang"
    if process.returncode == 0:
        return None
    name = signal.Signals(-process.returncode).name if process.returncode < 0 else f"exit {process.returncode}"
    return f"crash ({name})"


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:  # it has just ended
        return 0.0
    return times.user + times.system


def _headline(report: str) -> str:
    """Return what a sanitizer or Python says first of a death, without addresses."""
    wanted = re.compile(r"ERROR: AddressSanitizer|runtime error|^\w*Error|Fatal Python error")
    line = next((line for line in report.splitlines() if wanted.search(line)), report.strip().rpartition("\n")[2])
    return re.sub(r"==\d+==|0x[0-9a-f]+", "", line).strip()[:160]


def campaign(
    name: str, *, seed: int, executions: int, folder: Path, out: Path, module: SanitizedModule | None = None
) -> Campaign:
    """Return the campaign of a target by its name."""
    return Campaign(
        name=name, target=find_target(name), seed=seed, executions=executions, scratch=folder / name, out=out, module=module
    )

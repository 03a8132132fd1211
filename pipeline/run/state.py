"""Judge what a run is doing, from its lock, its heartbeat and its last line of metrics. This module imports nothing heavy.

The lock says who trains in the folder. The heartbeat says what that training did last. A process of this machine is looked up;
the clock of another machine is not trusted: see `watch_for_life`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.launch.processes import Process
from pipeline.run import claims
from pipeline.run.folder import RunFolder
from pipeline.run.records import Row, is_count, newest_history, number, read_json, read_json_lines

State = Literal[
    "running",
    "starting",
    "saving",
    "waiting for data",
    "stopped by signal",
    "failed",
    "died",
    "silent",
    "finished",
    "copied",
    "never started",
]
GOING = ("running", "starting", "saving", "waiting for data")
TAIL_BYTES = 2**20  # of metrics.jsonl: about 1,500 lines
SILENT_AFTER_S = 60.0  # and after ten steps, if they are longer
SILENT_IN_LONG_PHASES_S = 1800.0  # starting (compilation) and saving take their time
WAITING_FRACTION = 0.5
WATCH_S = 6.0  # a training that makes progress writes its heartbeat every five seconds
DOUBTFUL_FOR_S = 86_400.0  # clocks do not differ by more than a time zone: older states are not watched


@dataclass(frozen=True)
class RunState:
    """Describes what a run is doing.

    Args:
        state: the state in a word.
        detail: the reason, or what to do.
        since_s: age of the last sign of life; None where there was none.
        step: the last one that is known to be reached.
        total_steps: where the launch ends.
    """

    state: State
    detail: str | None
    since_s: float | None
    step: int | None
    total_steps: int | None

    @property
    def outlook(self) -> Literal["going", "may go on", "over"]:
        """Return `over` if no checkpoint comes unless somebody changes something, `may go on` if the same command resumes."""
        if self.state in ("finished", "failed"):
            return "over"
        return "going" if self.state in GOING else "may go on"


def read_state(root: Path, *, now: float | None = None, lock: Literal["counts", "silent"] = "counts") -> RunState:
    """Return the state of the run in a folder. Whatever its files hold, this raises nothing.

    Args:
        now: the time that ages are counted to.
        lock: `silent` if its owner was seen not to touch it for long.
    """
    return judge(Signs.read(root), now=time.time() if now is None else now, lock=lock)


@dataclass(frozen=True)
class Signs:
    """Holds what the state is judged from."""

    root: Path
    heartbeat: Row
    lines: list[Row]  # newest lines of metrics
    complete_step: int | None
    problems: list[str]  # files that cannot be read
    lives: bool = False  # it was seen to change just now

    @staticmethod
    def read(root: Path) -> Signs:
        folder = RunFolder(root)
        problems: list[str] = []
        try:
            lines = newest_history(read_json_lines(folder.metrics, last_bytes=TAIL_BYTES))
        except OSError as error:
            lines = []
            problems.append(f"{folder.metrics.name} cannot be read: {error.strerror}")
        heartbeat = clean_heartbeat(read_json(folder.heartbeat) or {})
        complete = (read_json(folder.complete) or {}).get("step")
        return Signs(root, heartbeat, lines, complete if is_count(complete) else None, problems)

    @property
    def line(self) -> Row:
        return self.lines[-1] if self.lines else {}


_COUNTS = ("step", "total_steps", "global_batch_size", "world_size", "num_nodes", "folder_inode")
_TIMES = ("time", "started")
_TEXTS = ("phase", "host", "by", "slurm_job_id", "machine", "pid_namespace", "process_start")
_LARGEST_PID = 2**22  # Linux's limit


def clean_heartbeat(values: Row) -> Row:
    """Return a heartbeat without values of the wrong kind."""
    clean: Row = {key: values[key] for key in _COUNTS if is_count(values.get(key))}
    clean |= {key: value for key in _TIMES if (value := number(values, key)) is not None}
    clean |= {key: values[key] for key in _TEXTS if isinstance(values.get(key), str)}
    if is_count(values.get("pid")) and values["pid"] <= _LARGEST_PID:
        clean["pid"] = values["pid"]
    alerts = values.get("alerts")
    return {**clean, "alerts": [text for text in alerts if isinstance(text, str)]} if isinstance(alerts, list) else clean


def judge(signs: Signs, *, now: float, lock: Literal["counts", "silent"] = "counts") -> RunState:
    """Return the state, a word on it, and how far the run is.

    `now` and the times in files may be of two machines. They make ages for people, and the word `silent`, on which nothing is
    decided (see `watch_for_life`).
    """
    beat, line = signs.heartbeat, signs.line
    steps = [s for s in (line.get("step"), beat.get("step"), signs.complete_step) if s is not None]
    step = max(steps, default=None)
    if beat.get("started", 0.0) > (number(line, "time") or 0.0) and "step" in beat:
        step = beat["step"]  # a new launch, which began further back than the last one came
    state, detail, since_s = _judge(signs, owner=_lock_owner(signs.root) if lock == "counts" else None, now=now)
    return RunState(state, detail, since_s, step, beat.get("total_steps") or signs.complete_step)


def _judge(signs: Signs, *, owner: claims.Owner | None, now: float) -> tuple[State, str | None, float | None]:
    beat = signs.heartbeat
    phase, is_complete = beat.get("phase"), signs.complete_step is not None
    last = max(beat.get("time", 0.0), number(signs.line, "time") or 0.0)
    since_s = max(0.0, now - last) if last else None
    if owner is not None and not owner.process.is_same_as(Process.described_by(beat)) and owner.why_dead() is None:
        # A launch has not written a heartbeat yet. It is recognised by its process: the last one's clock may be another.
        held_s = max(0.0, now - owner.since)
        if held_s < SILENT_IN_LONG_PHASES_S:
            return "starting", None, held_s
        if phase != "finished" and not is_complete:
            return "silent", "while starting", held_s
    if phase == "finished" or is_complete:
        return "finished", None, since_s
    if phase == "stopped":
        return "stopped by signal", f"{beat.get('by')}; the same command resumes from here", since_s
    if phase == "failed":
        return "failed", beat.get("by"), since_s
    if since_s is None:
        return "never started", None, None
    if _is_copy(signs):
        return "copied", "from the folder of another run; the same command resumes from the newest checkpoint", since_s
    if _is_gone(beat, owner):
        return "died", f"process {beat.get('pid')} is gone; the same command resumes from the newest checkpoint", since_s
    if signs.lives:
        since_s = 0.0
    return *_judge_live(signs, since_s=since_s), since_s


def _judge_live(signs: Signs, *, since_s: float) -> tuple[State, str | None]:
    phase = signs.heartbeat.get("phase")
    step_time_s = max((number(row, "speed/step_time_s") or 0.0 for row in signs.lines[-10:]), default=0.0)
    is_saving = has_staging(signs.root)
    patience_s = SILENT_IN_LONG_PHASES_S if is_saving or phase == "starting" else max(SILENT_AFTER_S, 10 * step_time_s)
    if since_s > patience_s:
        return "silent", f"while {phase}" if phase else None
    if phase == "starting":
        return "starting", None
    if is_saving:
        return "saving", None
    stuck = phase == "waiting for data" and since_s > max(10.0, 3 * step_time_s)
    if stuck or (number(signs.line, "speed/data_wait_fraction") or 0.0) >= WAITING_FRACTION:
        return "waiting for data", None
    return "running", None


def _lock_owner(root: Path) -> claims.Owner | None:
    """Return who holds the folder, if anybody does and the lock can be read."""
    return read_claim(RunFolder(root).lock)


def read_claim(path: Path) -> claims.Owner | None:
    """Return who holds a claim; None where nobody does, or where the file does not say."""
    try:
        owner = claims.read_owner(path)
    except (OSError, RecursionError):
        return None
    is_whole = owner is not None and bool(owner.process.host) and owner.process.pid <= _LARGEST_PID
    return owner if is_whole and owner is not None and number({"since": owner.since}, "since") is not None else None


def _is_copy(signs: Signs) -> bool:
    """Return whether the heartbeat is of another folder, which this one was copied from."""
    recorded = signs.heartbeat.get("folder_inode")
    try:
        return recorded is not None and recorded != signs.root.stat().st_ino
    except OSError:
        return False


def _is_gone(beat: Row, owner: claims.Owner | None) -> bool:
    """Return whether the training's process is known to be gone."""
    return owner.why_dead() is not None if owner is not None else Process.described_by(beat).life() == "dead"


def has_staging(root: Path) -> bool:
    """Return whether a checkpoint or weights are being written to disk."""
    try:
        names = [
            name for folder in ("checkpoints", "weights") if (root / folder).is_dir() for name in os.listdir(root / folder)
        ]
    except OSError:
        return False
    return any(name.startswith(".saving-") or (name.startswith(".") and name.endswith(".part")) for name in names)


def watch_for_life(found: Sequence[Signs], *, watch_s: float = WATCH_S) -> list[Signs]:
    """Read runs that seem silent twice, some seconds apart: a heartbeat that changes is alive, whatever a clock says.

    The clock of another machine may be behind by more than the silence that would be reported.
    """
    now = time.time()
    states = [judge(signs, now=now) for signs in found]
    doubtful = [state.state == "silent" and (state.since_s or 0.0) < DOUBTFUL_FOR_S for state in states]
    if not any(doubtful):
        return list(found)
    before = [_stamp(signs.root) for signs in found]
    time.sleep(watch_s)
    return [
        replace(Signs.read(signs.root), lives=True) if doubt and _stamp(signs.root) != stamp else signs
        for signs, doubt, stamp in zip(found, doubtful, before, strict=True)
    ]


def _stamp(root: Path) -> Any:
    try:
        return RunFolder(root).heartbeat.stat().st_mtime_ns
    except OSError:
        return None

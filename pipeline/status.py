"""What a run is doing, read from the files of its folder alone. Imports nothing heavy: it answers at once, on any machine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import ConfigError
from pipeline.journal import read_json, read_json_lines
from pipeline.processes import Process

State = Literal[
    "running", "starting", "saving", "waiting for data", "stopped by signal", "failed", "died", "silent", "finished",
    "never started",
]  # fmt: skip
TAIL_BYTES = 2**20  # of metrics.jsonl: about 1,500 lines
RECENT_LINES = 50  # that speed and the time left are taken from
SILENT_AFTER_S = 60.0  # and after ten steps, if they are longer
SILENT_IN_LONG_PHASES_S = 1800.0  # starting (compilation) and saving take their time
WAITING_FRACTION = 0.5
MARKS = ("config.yaml", "metrics.jsonl", "heartbeat.json", "checkpoints")


@dataclass(frozen=True)
class CheckpointStatus:
    """The newest checkpoint that stands."""

    step: int
    age_s: float
    bytes: int


@dataclass(frozen=True)
class EvaluationStatus:
    """One measure: its best and its newest value, means over seeds, as parts of 1."""

    measure: str
    best: float
    best_step: int
    newest: float
    newest_step: int


@dataclass(frozen=True)
class RunStatus:
    """All that is shown of a run. Times in seconds; None where nothing says."""

    run: str
    state: State
    detail: str | None
    since_s: float | None  # age of the last sign of life
    step: int | None
    total_steps: int | None
    images_seen: int | None
    eta_s: float | None
    line: dict[str, Any]  # the newest line of metrics
    speed: dict[str, float]  # recent means: images_per_s, step_time_s, data_wait_fraction, mfu
    losses: list[float | None]
    loss_steps: tuple[int, int] | None
    checkpoint: CheckpointStatus | None
    evaluations: list[EvaluationStatus]
    evaluating: list[str]
    not_evaluated: int
    heartbeat: dict[str, Any]
    stragglers: dict[str, Any]
    warnings: list[str]


def find_runs(places: Sequence[str]) -> list[Path]:
    """Run folders named, and those inside folders named.

    Raises:
        ConfigError: a place that is neither.
    """
    runs: list[Path] = []
    for place in map(Path, places):
        if not place.is_dir():
            raise ConfigError(f"{place} is not a folder; name a run's folder, or one that holds several")
        inside = [place] if _is_run(place) else sorted(path for path in place.iterdir() if path.is_dir() and _is_run(path))
        if not inside:
            raise ConfigError(f"{place} is no run folder and holds none; `python -m pipeline train` makes one")
        runs += inside
    return runs


def _is_run(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in MARKS)


def read_status(folder: Path, *, now: float | None = None) -> RunStatus:
    """Look at a run folder. `now` is the time ages are counted to."""
    now = time.time() if now is None else now
    lines = newest_history(read_json_lines(folder / "metrics.jsonl", last_bytes=TAIL_BYTES))
    heartbeat = read_json(folder / "heartbeat.json") or {}
    complete = read_json(folder / "complete.json")
    line = lines[-1] if lines else {}
    speed = _recent_speed(lines)
    step = max(
        (s for s in (line.get("step"), heartbeat.get("step"), (complete or {}).get("step")) if s is not None), default=None
    )
    if heartbeat and heartbeat.get("started", 0) > line.get("time", 0):
        step = heartbeat["step"]  # a new launch, which began further back than the last one came
    total = heartbeat.get("total_steps") or (complete or {}).get("step")
    state, detail, since_s = judge_state(
        folder,
        heartbeat=heartbeat,
        line=line,
        is_complete=complete is not None,
        step_time_s=speed.get("step_time_s", 0.0),
        now=now,
    )
    going = state in ("running", "saving", "waiting for data", "starting")
    batch = heartbeat.get("global_batch_size")
    left = None if step is None or total is None or not going else total - step
    measured = _evaluations(read_json_lines(folder / "evaluations.jsonl"))
    stragglers = read_json(folder / "stragglers.json") or {}
    return RunStatus(
        run=str(folder), state=state, detail=detail, since_s=since_s, step=step, total_steps=total,
        images_seen=step * batch if step is not None and batch else line.get("images_seen"),
        eta_s=left * speed["step_time_s"] if left is not None and "step_time_s" in speed else None,
        line=line, speed=speed, losses=[row.get("train/loss") for row in lines],
        loss_steps=(lines[0]["step"], line["step"]) if lines else None, checkpoint=_newest_checkpoint(folder, now=now),
        evaluations=measured.values, evaluating=_claims(folder), not_evaluated=_count_not_evaluated(folder, measured.steps),
        heartbeat=heartbeat, stragglers=stragglers, warnings=list(heartbeat.get("alerts", [])) if going or state == "silent" else [],
    )  # fmt: skip


def newest_history(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that lead to the last one, in order: those of steps that a resume went back over are left out."""
    kept: list[dict[str, Any]] = []
    for row in reversed(rows):
        if "step" in row and (not kept or row["step"] < kept[-1]["step"]):
            kept.append(row)
    return kept[::-1]


def _recent_speed(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the last lines, each weighted by its steps. Saves between steps are in them, pauses between launches not."""
    recent = lines[-RECENT_LINES - 1 :]
    weights = [b["step"] - a["step"] for a, b in itertools.pairwise(recent)]
    rows = recent[1:] if weights else recent
    weights = weights or [1] * len(rows)
    speed = {}
    for name in ("images_per_s", "step_time_s", "data_wait_fraction", "mfu"):
        known = [(row[f"speed/{name}"], weight) for row, weight in zip(rows, weights, strict=True) if f"speed/{name}" in row]
        if known:
            speed[name] = sum(value * weight for value, weight in known) / sum(weight for _, weight in known)
    if speed.get("step_time_s") and "images_per_s" in speed:  # a mean of rates would not fit the mean of times
        speed["images_per_s"] = rows[-1]["speed/images_per_s"] * rows[-1]["speed/step_time_s"] / speed["step_time_s"]
    return speed


def judge_state(
    folder: Path, *, heartbeat: dict[str, Any], line: dict[str, Any], is_complete: bool, step_time_s: float, now: float
) -> tuple[State, str | None, float | None]:
    """State, a word on it, and the age of the last sign of life in seconds."""
    last = max(heartbeat.get("time", 0.0), line.get("time", 0.0))
    since_s = now - last if last else None
    phase = heartbeat.get("phase")
    if phase == "finished" or (is_complete and phase in (None, "stopped", "failed")):
        return "finished", None, since_s
    if phase == "stopped":
        return "stopped by signal", f"{heartbeat.get('by')}; the same command goes on from here", since_s
    if phase == "failed":
        return "failed", heartbeat.get("by"), since_s
    if since_s is None:
        return "never started", None, None
    if Process.described_by(heartbeat).life() == "dead":
        return "died", f"process {heartbeat['pid']} is gone; the same command goes on from the newest checkpoint", since_s
    is_saving = _has_staging(folder)
    patience_s = SILENT_IN_LONG_PHASES_S if is_saving or phase == "starting" else max(SILENT_AFTER_S, 10 * step_time_s)
    if since_s > patience_s:
        return "silent", f"while {phase}" if phase else None, since_s
    if phase == "starting":
        return "starting", None, since_s
    if is_saving:
        return "saving", None, since_s
    stuck = phase == "waiting for data" and since_s > max(10.0, 3 * step_time_s)
    if stuck or line.get("speed/data_wait_fraction", 0.0) >= WAITING_FRACTION:
        return "waiting for data", None, since_s
    return "running", None, since_s


def _has_staging(folder: Path) -> bool:
    return any((folder / "checkpoints").glob(".saving-*")) or any((folder / "weights").glob(".*.part"))


def _newest_checkpoint(folder: Path, *, now: float) -> CheckpointStatus | None:
    """By its manifest, which is written last and knows every file's size."""
    found = sorted((folder / "checkpoints").glob("step_*/manifest.json"), key=lambda path: int(path.parent.name.split("_")[1]))
    for path in reversed(found):
        manifest = read_json(path)
        if manifest is not None:
            size = sum(entry["bytes"] for entry in manifest.values())
            return CheckpointStatus(int(path.parent.name.split("_")[1]), now - path.stat().st_mtime, size)
    return None


@dataclass(frozen=True)
class Measured:
    """What has been evaluated."""

    values: list[EvaluationStatus]
    steps: set[int]


def _evaluations(rows: list[dict[str, Any]]) -> Measured:
    by_measure: dict[str, dict[int, dict[Any, float]]] = {}
    for row in rows:
        if row.get("accuracy") is None:
            continue
        setting = f"{row['shots']}-shot" if row.get("shots") else row["protocol"]
        by_measure.setdefault(f"{row['dataset']} {setting}", {}).setdefault(row["step"], {})[row.get("seed")] = row["accuracy"]
    values = []
    for measure, by_step in by_measure.items():
        means = {step: sum(seeds.values()) / len(seeds) for step, seeds in by_step.items()}
        best, newest = max(means, key=lambda step: means[step]), max(means)
        values.append(EvaluationStatus(measure, means[best], best, means[newest], newest))
    return Measured(values, {row["step"] for row in rows if "step" in row})


def _claims(folder: Path) -> list[str]:
    """Who evaluates what at this moment."""
    claims = []
    for path in sorted((folder / "claims").glob("step_*.json")):
        owner = read_json(path)
        if owner is not None:
            claims.append(f"step {int(path.stem.split('_')[1])} on {owner.get('host') or 'an unknown host'}")
    return claims


def _count_not_evaluated(folder: Path, evaluated: set[int]) -> int:
    steps = {int(path.stem.split("_")[1]) for path in (folder / "weights").glob("step_*.safetensors")}
    return len(steps - evaluated)

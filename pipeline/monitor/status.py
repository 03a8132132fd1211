"""Read what a run is doing from the files of its folder alone. It imports nothing heavy: it answers at once, on any machine."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.run import claims
from pipeline.run.evaluations import (
    MeasureResults,
    Quantity,
    name_failures,
    read_results,
    summarise_results,
    value_of,
    weights_of_row,
)
from pipeline.run.folder import RunFolder, WeightsName, claimed_by_name
from pipeline.run.records import Row, is_count, number, read_json
from pipeline.run.state import GOING, RunState, Signs, State, judge, read_claim, read_state

__all__ = ["RunState", "State", "find_runs", "read_signs", "read_state", "read_status"]

RECENT_LINES = 50  # lines for the speed and the time left
CLAIM_WATCH_S = 15.0  # an evaluator touches its claim every ten seconds
LOOKED_AT_TWICE_S = 300.0
MARKS = ("config.yaml", "metrics.jsonl", "heartbeat.json", "checkpoints")


@dataclass(frozen=True)
class CheckpointStatus:
    """Describes the newest checkpoint that can be resumed from, by its manifest."""

    step: int
    age_s: float
    bytes: int


@dataclass(frozen=True)
class EvaluationStatus:
    """Holds one measure: means over seeds of the newest checkpoint, and of the checkpoint with the best mean.

    Accuracies are parts of 1, and the highest is best; of losses the lowest is best. The best is chosen among checkpoints on
    the set that is reported. It is too optimistic, the more so the more checkpoints there are.

    Attributes:
        reference: what others have reached, and `reference_by` who and when; None where the run's configuration names nothing.
    """

    measure: str
    newest: float
    newest_step: int
    best: float
    best_step: int
    num_checkpoints: int
    quantity: Quantity = "accuracy"
    reference: float | None = None
    reference_by: str | None = None


@dataclass(frozen=True)
class RunStatus:
    """Holds everything that is shown of a run. Times are in seconds, or None where nothing says."""

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


def find_runs(paths: Sequence[str]) -> list[Path]:
    """Return run folders that are named, and those inside folders that are named.

    Raises:
        ConfigError: a path that is neither, or cannot be read.
    """
    runs: list[Path] = []
    for path in map(Path, paths):
        try:
            if not path.is_dir():
                raise ConfigError(f"{path} is not a folder; name a run's folder, or one that holds several")
            os.listdir(path)  # an unreadable folder would otherwise count as empty
            inside = [path] if _is_run(path) else sorted(child for child in path.iterdir() if child.is_dir() and _is_run(child))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        if not inside:
            raise ConfigError(f"{path} is not a run folder and holds none; `python -m pipeline train` makes one")
        runs += inside
    return runs


def _is_run(folder: Path) -> bool:
    try:
        return any((folder / mark).exists() for mark in MARKS)
    except OSError:
        return False


def read_signs(folder: Path) -> Signs:
    """Return what the state of a run is judged from."""
    return Signs.read(folder)


def read_status(
    folder: Path, *, signs: Signs | None = None, sightings: claims.Sightings | None = None, now: float | None = None
) -> RunStatus:
    """Read the status of a run folder. Whatever its files hold, this raises nothing.

    Args:
        signs: signs that were read before; without them they are read now.
        sightings: earlier observations of claims (see `watch_claims`).
        now: the time that ages are counted to. Ages are rough for files that another machine wrote.
    """
    now = time.time() if now is None else now
    signs = signs or Signs.read(folder)
    found = judge(signs, now=now)
    lines, line, heartbeat = signs.lines, signs.line, signs.heartbeat
    speed = _recent_speed(lines)
    going = found.state in GOING
    left = None if found.step is None or found.total_steps is None or not going else max(0, found.total_steps - found.step)
    results = read_results(RunFolder(folder))
    measured = {weights_of_row(row) for row in results.rows if value_of(row) is not None}
    stored = _read_stored(folder, measured=measured, now=now)
    problems = [*signs.problems, *results.passed_over, *name_failures(results.rows, run=folder), *stored.problems]
    return RunStatus(
        run=str(folder),
        state=found.state,
        detail=found.detail,
        since_s=found.since_s,
        step=found.step,
        total_steps=found.total_steps,
        images_seen=_images_seen(found.step, heartbeat, line),
        eta_s=left * speed["step_time_s"] if left is not None and "step_time_s" in speed else None,
        line=line,
        speed=speed,
        losses=[number(row, "train/loss") for row in lines],
        loss_steps=(lines[0]["step"], line["step"]) if lines else None,
        checkpoint=stored.checkpoint,
        evaluations=_summarise(results.rows),
        evaluating=_describe_claims(folder, sightings or claims.Sightings()),
        not_evaluated=stored.not_evaluated,
        heartbeat=heartbeat,
        stragglers=_stragglers(folder),
        warnings=[*(heartbeat.get("alerts", []) if going or found.state == "silent" else []), *problems],
    )


def _images_seen(step: int | None, heartbeat: Row, line: Row) -> int | None:
    batch, logged = heartbeat.get("global_batch_size"), line.get("images_seen")
    if step is not None and batch:
        return step * batch
    return logged if is_count(logged) else None


def _recent_speed(lines: list[Row]) -> dict[str, float]:
    """Return means over the last lines, weighted by steps. They include saves between steps, not pauses between launches."""
    recent = lines[-RECENT_LINES - 1 :]
    weights = [b["step"] - a["step"] for a, b in itertools.pairwise(recent)]
    rows = recent[1:] if weights else recent
    weights = weights or [1] * len(rows)
    speed = {}
    for name in ("images_per_s", "step_time_s", "data_wait_fraction", "mfu"):
        values = [(number(row, f"speed/{name}"), weight) for row, weight in zip(rows, weights, strict=True)]
        known = [(value, weight) for value, weight in values if value is not None]
        if known:
            speed[name] = sum(value * weight for value, weight in known) / sum(weight for _, weight in known)
    last = [number(rows[-1], f"speed/{name}") for name in ("images_per_s", "step_time_s")] if rows else []
    if speed.get("step_time_s") and None not in last and last:  # a mean of rates would not fit the mean of times
        speed["images_per_s"] = (last[0] or 0.0) * (last[1] or 0.0) / speed["step_time_s"]
    return speed


@dataclass(frozen=True)
class Stored:
    """Holds what lies in the run folder, and which of its parts could not be read."""

    checkpoint: CheckpointStatus | None
    not_evaluated: int
    problems: list[str]


def _read_stored(root: Path, *, measured: set[WeightsName], now: float) -> Stored:
    folder, problems = RunFolder(root), []
    checkpoint, weights = None, set[WeightsName]()
    try:
        checkpoint = _newest_checkpoint(folder, now=now)
    except OSError as error:
        problems.append(f"{folder.checkpoints} cannot be read: {error.strerror}")
    try:
        weights = set(folder.weight_names())
    except OSError as error:
        problems.append(f"{folder.weights} cannot be read: {error.strerror}")
    return Stored(checkpoint, len(weights - measured), problems)


def _newest_checkpoint(folder: RunFolder, *, now: float) -> CheckpointStatus | None:
    """Find the newest checkpoint by its manifest, which is written last and knows every file's size."""
    for step in reversed(folder.checkpoint_steps()):
        path = folder.checkpoint_of(step) / "manifest.json"
        manifest = read_json(path)
        sizes = [number(entry, "bytes") if isinstance(entry, dict) else None for entry in (manifest or {}).values()]
        if sizes and None not in sizes:
            return CheckpointStatus(step, max(0.0, now - path.stat().st_mtime), int(sum(size or 0 for size in sizes)))
    return None


def _summarise(rows: Sequence[Row]) -> list[EvaluationStatus]:
    """Return the newest checkpoint's values, and the best ones."""
    return [_summarise_measure(results) for results in summarise_results(rows)]


def _summarise_measure(results: MeasureResults) -> EvaluationStatus:
    means = {step: sum(seeds) / len(seeds) for step, seeds in results.by_step.items()}
    newest = max(means)
    choose = max if results.quantity == "accuracy" else min
    best = choose(sorted(means), key=lambda step: means[step])  # the first of equals
    reference = results.reference
    return EvaluationStatus(
        measure=results.measure,
        newest=means[newest],
        newest_step=newest,
        best=means[best],
        best_step=best,
        num_checkpoints=len(means),
        quantity=results.quantity,
        reference=None if reference is None else reference.value,
        reference_by=None if reference is None else reference.by,
    )


def _describe_claims(root: Path, sightings: claims.Sightings) -> list[str]:
    """Return who evaluates what at this moment, and which claims their owners do not touch any more."""
    return [
        f"{what} on {'an unknown host' if owner is None else owner.process.host + _doubt(path, owner, sightings)}"
        for what, path, owner in _list_claims(root)
    ]


def _list_claims(root: Path) -> list[tuple[str, Path, claims.Owner | None]]:
    """Return what each claim is of, its file and its owner; None where the file does not name an owner."""
    try:
        names = sorted(os.listdir(RunFolder(root).claims))
    except OSError:
        return []
    found = {RunFolder(root).claims / name: claimed_by_name(name) for name in names}
    return [(what, path, read_claim(path)) for path, what in found.items() if what is not None and path.is_file()]


def watch_claims(runs: Sequence[Path], sightings: claims.Sightings) -> None:
    """Watch claims whose owners may be gone, for as long as a living owner needs to touch them.

    A claim's time only selects it for a second look: the clock that wrote it may be another.
    """
    now = time.time()
    doubtful = [
        path for run in runs for _, path, owner in _list_claims(run) if owner is not None and _looks_old(path, owner, now=now)
    ]
    for path in doubtful:
        sightings.silent_s(path)
    if doubtful:
        time.sleep(CLAIM_WATCH_S)


def _looks_old(path: Path, owner: claims.Owner, *, now: float) -> bool:
    try:
        return owner.process.life() == "unknown" and abs(now - path.stat().st_mtime) > LOOKED_AT_TWICE_S
    except OSError:  # released just now
        return False


def _doubt(path: Path, owner: claims.Owner, sightings: claims.Sightings) -> str:
    """Return why an evaluator may not be at work, in words."""
    why_dead = owner.why_dead()
    if why_dead is not None:
        return f" ({why_dead}; the next evaluator takes it over)"
    silent_s = sightings.silent_s(path)
    if owner.process.life() == "alive" or silent_s < CLAIM_WATCH_S:
        return ""
    return f" (not touched while watched for {silent_s:.0f} s: it may be gone; the next evaluator finds out, and takes it over)"


def _stragglers(root: Path) -> Row:
    """Return the comparison of ranks, if it is complete."""
    values = read_json(RunFolder(root).stragglers) or {}
    nodes, measured = values.get("nodes"), values.get("measured")
    numbers = [number(values, key) for key in ("rank", "ratio", "cost")]
    if None in numbers or not isinstance(nodes, list) or not isinstance(measured, list):
        return {}
    keys = ("median_s", "slowest_rank", "slowest_s", "slowest_data_wait_s")
    whole = [
        node
        for node in nodes
        if isinstance(node, dict) and isinstance(node.get("host"), str) and all(number(node, key) is not None for key in keys)
    ]
    return {**values, "nodes": whole, "measured": [str(what) for what in measured]}

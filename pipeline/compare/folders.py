"""Read what a comparison needs from the folder of a run or of an evaluated model. Damaged files are named."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.errors import ConfigError
from pipeline.run.evaluations import read_digest, read_results
from pipeline.run.folder import RunFolder
from pipeline.run.records import Row, has_step, is_count, newest_history, number, read_json, read_json_lines
from pipeline.run.state import read_state

MARKS = ("config.yaml", "metrics.jsonl", "evaluations.jsonl", "checkpoints", "weights", "heartbeat.json")


@dataclass(frozen=True)
class Course:
    """Says how a training went.

    Attributes:
        repeats: times that a launch went back and trained logged steps again; other stops leave nothing in the lines.
        alerts: number of alerts that were raised, by kind.
        digests: of the weights of each step that has a file.
    """

    state: str
    last_step: int | None
    images_per_s: float | None
    unreadable: int | None
    retries: int | None
    skipped_steps: int | None
    repeats: int
    alerts: dict[str, int]
    digests: dict[int, str]


@dataclass(frozen=True)
class Folder:
    """Holds what is known of one run.

    Attributes:
        versions: of the software that wrote the newest checkpoint.
        ranks: number of ranks of the newest launch.
        problems: files that cannot be read, and lines that were passed over.
    """

    root: Path
    lines: list[Row]
    results: list[Row]
    data: Row
    initial: Row | None
    versions: dict[str, str]
    ranks: int | None
    global_batch_size: int | None
    course: Course
    problems: list[str]

    @property
    def config(self) -> Path | None:
        """Return its configuration's file; None where there is none, as for an evaluated model."""
        path = RunFolder(self.root).config
        return path if path.is_file() else None


def read_folder(root: Path) -> Folder:
    """Read a folder.

    Raises:
        ConfigError: it is neither a run's nor an evaluated model's, or cannot be listed.
    """
    _check(root)
    folder, problems = RunFolder(root), list[str]()
    try:
        raw = [row for row in read_json_lines(folder.metrics) if has_step(row)]
    except OSError as error:
        raw = []
        problems.append(f"{folder.metrics.name} cannot be read: {error.strerror}")
    results = read_results(folder)
    heartbeat, meta = read_json(folder.heartbeat) or {}, _newest_meta(folder)
    ranks = next((row["world_size"] for row in (heartbeat, meta) if is_count(row.get("world_size"))), None)
    batch = heartbeat.get("global_batch_size")
    versions = meta.get("versions")
    return Folder(
        root=root,
        lines=newest_history(raw),
        results=results.rows,
        data=read_json(folder.data) or {},
        initial=read_json(folder.initial),
        versions={str(key): str(value) for key, value in versions.items()} if isinstance(versions, dict) else {},
        ranks=ranks,
        global_batch_size=batch if is_count(batch) else None,
        course=_read_course(folder, raw),
        problems=[*problems, *results.passed_over],
    )


def _check(root: Path) -> None:
    if not root.is_dir():
        raise ConfigError(f"{root} is not a folder; name the folder of a run, or of an evaluated model")
    try:
        names = set(os.listdir(root))
    except OSError as error:
        raise ConfigError(f"{root} cannot be read: {error.strerror}") from error
    if not names.intersection(MARKS):
        raise ConfigError(
            f"{root} is not a run folder: it has none of {', '.join(MARKS)}; `python -m pipeline train` makes one, "
            "`python -m pipeline status FOLDER` lists the runs inside a folder"
        )


def _newest_meta(folder: RunFolder) -> Row:
    try:
        steps = folder.checkpoint_steps()
    except OSError:
        return {}
    return next((meta for step in reversed(steps) if (meta := read_json(folder.checkpoint_of(step) / "meta.json"))), {})


def _read_course(folder: RunFolder, raw: list[Row]) -> Course:
    lines = newest_history(raw)
    last = lines[-1] if lines else {}
    speeds = [value for row in lines[1:] or lines if (value := number(row, "speed/images_per_s")) is not None]
    state = read_state(folder.root)
    return Course(
        state=state.state if state.detail is None else f"{state.state} ({state.detail})",
        last_step=last.get("step", state.step),
        images_per_s=median(speeds) if speeds else None,
        unreadable=_count(last, "data/unreadable"),
        retries=_count(last, "data/retries"),
        skipped_steps=_count(last, "train/skipped_steps"),
        repeats=sum(b["step"] <= a["step"] for a, b in itertools.pairwise(raw)),
        alerts=_count_alerts(folder.alerts),
        digests=_read_digests(folder),
    )


def _count(row: Row, key: str) -> int | None:
    value: Any = row.get(key)
    return value if is_count(value) else None


def _count_alerts(path: Path) -> dict[str, int]:
    try:
        rows = read_json_lines(path)
    except OSError:
        return {}
    return dict(sorted(Counter(str(row.get("kind")) for row in rows if row.get("change") == "raised").items()))


def _read_digests(folder: RunFolder) -> dict[int, str]:
    try:
        steps = folder.weight_steps()
    except OSError:
        return {}
    return {step: digest for step in steps if (digest := read_digest(folder.weights_of(step))) is not None}

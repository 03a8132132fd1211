"""Log numbers to Weights & Biases, and to a local file that mirrors everything sent there."""

from __future__ import annotations

import re
import time
from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from pipeline.console.lines import log_line
from pipeline.monitor.wandb_identity import Destination, forked_from, settle_destination
from pipeline.monitor.wandb_settings import Choice, Mode, Resolved, WandbEnvironment, choose_mode, read_wandb_environment
from pipeline.monitor.wandb_writer import INIT_TIMEOUT_S, WandbRun, WandbWriter
from pipeline.run.evaluations import newest_of_each, setting_of, value_of, weights_of_row
from pipeline.run.records import append_json_lines, number


def resolve_mode(mode: Mode) -> Resolved:
    """Return the quieter of `tracking.mode` and the environment's mode; where neither says, online with a key, else offline."""
    return choose_mode(mode, read_wandb_environment()).mode


@dataclass(frozen=True)
class RunIdentity:
    """Says which W&B run to write to, and where its local files go. If project or entity is None, the environment decides."""

    name: str
    run_id: str
    folder: Path
    project: str | None
    entity: str | None
    mode: Mode
    tensorboard: bool = False  # whether event files are written too


class RowLogger(Logger):
    """Logs metrics alone: hyper-parameters are in config.yaml, and W&B's run was opened with them."""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        pass


class WandbTracker(RowLogger):
    """Adapts a `WandbWriter` to Lightning. It exists on rank 0 only."""

    def __init__(self, writer: WandbWriter) -> None:
        super().__init__()
        self.writer = writer

    @property
    def name(self) -> str:
        return "wandb"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.writer.log(metrics)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.writer.close(exit_code=0 if status == "success" else 1)


def make_wandb_logger(identity: RunIdentity, *, config: dict[str, Any], history: list[dict[str, Any]]) -> WandbTracker | None:
    """Return a tracker whose run continues under its id at every relaunch, or None when disabled. Call it on rank 0 only.

    Lines of the `history` that W&B was not given online are sent first. Offline, these are all lines: each launch writes a
    folder of its own, W&B cannot join them, and so the newest holds the whole run.
    """
    writer = _make_writer(identity, writer="train", config=config, history=history)
    return None if writer is None else WandbTracker(writer)


def _make_writer(
    identity: RunIdentity, *, writer: Literal["train", "evaluate"], config: dict[str, Any], history: list[dict[str, Any]]
) -> WandbWriter | None:
    environment = read_wandb_environment()
    choice = choose_mode(identity.mode, environment)
    if choice.mode == "disabled":
        log_line(f"[wandb] disabled: {choice.reason}")
        return None
    destination = settle_destination(identity.folder, environment, project=identity.project, entity=identity.entity)
    log_line(describe_run(identity, choice, destination, environment))
    fork = forked_from(identity.folder)
    copied = f"Copied from {fork['folder']} (run {fork['run_id']}) at step {fork['step']}." if fork else ""
    return WandbWriter(
        WandbRun(
            writer=writer,
            mode=choice.mode,
            name=identity.name,
            run_id=identity.run_id,
            folder=str(identity.folder),
            project=destination.project,
            entity=destination.entity,
            config={**config, **({"forked_from": fork} if fork else {})},
            history=history,
            group=environment.group or identity.name,
            tags=list(environment.tags),
            notes=" ".join(text for text in (environment.notes, copied) if text) or None,
            init_timeout_s=INIT_TIMEOUT_S if environment.init_timeout_s is None else environment.init_timeout_s,
        )
    )


def describe_run(identity: RunIdentity, choice: Choice, destination: Destination, environment: WandbEnvironment) -> str:
    """Return one line: what W&B is given, why, and which variables do not count."""
    entity = destination.entity or ("that of the key" if choice.mode == "online" else "that of the key at `wandb sync`")
    ignored = [f"{name} ({why})" for name, why in {**environment.ignored, **destination.ignored}.items()]
    return (
        f"[wandb] {choice.mode}: {choice.reason}. Project {destination.project}, entity {entity}, run "
        f"{identity.run_id}, files in "
        f"{identity.folder}/wandb{'. Ignored: ' + ', '.join(ignored) if ignored else ''}"
    )


class EvaluationTracker:
    """Sends an evaluator's results to W&B, keyed by training step.

    Online they join the training's run. Offline they go to a run of their own, `<id>-eval`, in the same group, and each
    evaluator's file holds the results of all evaluators: `wandb sync` would let the last file to arrive count. Earlier results
    that W&B was not given are sent at the start.

    Args:
        history: results that count, in the order in which they were measured.
    """

    def __init__(self, identity: RunIdentity, *, config: dict[str, Any], history: list[dict[str, Any]]) -> None:
        self._identity = identity
        self._config = config
        self._writer = self._open(list(rows_by_step(history)))

    def _open(self, rows: list[dict[str, Any]]) -> WandbWriter | None:
        self._given = {row["step"]: row for row in rows}
        return _make_writer(self._identity, writer="evaluate", config=self._config, history=rows)

    def log(self, results: list[dict[str, Any]], *, own: Collection[int]) -> None:
        """Log new results; few-shot results are logged as the mean over seeds.

        Args:
            results: all results that count now, from all evaluators, in the order in which they were measured.
            own: steps measured by this evaluator.
        """
        if self._writer is None:
            return
        offline = self._writer.mode == "offline"
        rows = list(rows_by_step(results))
        new = [row for row in rows if row != self._given.get(row["step"]) and (offline or row["step"] in own)]
        if offline and new and self._given and new[0]["step"] <= max(self._given):
            # W&B's offline file takes steps in rising order alone, so the whole file is written again.
            self._writer.close(exit_code=0)
            self._writer = self._open(rows)
            return
        for row in new:
            self._writer.log(row)
            self._given[row["step"]] = row

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close(exit_code=0)


def rows_by_step(results: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one row a step: each measure as the mean over seeds, its spread over them (`_std`), and its confidence (`_ci95`).

    `_ci95` is half the width of the 95 % interval over the choice of test images. Of a repeated measurement the later one
    counts.
    """
    measured = [row for row in newest_of_each(results) if value_of(row) is not None]
    for step in sorted({row["step"] for row in measured}):
        here = [row for row in measured if row["step"] == step]
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in here:
            measure = setting_of(row) or ""
            setting = "" if measure == row["protocol"] else "_" + re.sub(r"[^A-Za-z0-9.]+", "", measure)
            average = "_average" if weights_of_row(row).kind == "average" else ""
            groups.setdefault(f"eval/{row['dataset']}/{row['protocol']}{setting}{average}", []).append(row)
        values: dict[str, float] = {}
        for key, group in groups.items():
            found = [value for row in group if (value := value_of(row)) is not None]
            values[key] = mean(found)
            if len(set(found)) > 1:  # every seed drew the same images: there is no spread
                values[f"{key}_std"] = stdev(found)
            widths = [width for row in group if (width := number(row, "ci95")) is not None]
            if widths:
                values[f"{key}_ci95"] = mean(widths)
        yield {"step": step, "images_seen": here[0].get("images_seen"), **values}


class MetricsFile(RowLogger):
    """Appends every line of metrics to a JSON-lines file. After a resume a step may occur twice: the later line counts.

    Lines that cannot be written, because the disk is full or the folder is missing, wait in memory for the next.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._waiting: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return "metrics"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._waiting.append({"time": round(time.time(), 3), **metrics})
        error = self._write()
        if error is not None and len(self._waiting) == 1:
            log_line(f"[run] metrics wait in memory: {self._path} cannot be written ({error})")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write waiting lines once more, or count them in the log."""
        error = self._write() if self._waiting else None
        if error is not None:
            log_line(f"[run] {len(self._waiting)} lines of metrics are lost: {self._path} cannot be written ({error})")

    def _write(self) -> OSError | None:
        try:
            append_json_lines(self._path, self._waiting)
        except OSError as error:
            return error
        self._waiting.clear()
        return None

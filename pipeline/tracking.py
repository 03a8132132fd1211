"""Where numbers go: Weights & Biases, and a local file that mirrors everything sent there."""

from __future__ import annotations

import netrc
import os
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from pipeline.console import say
from pipeline.journal import append_json_lines
from pipeline.wandb_writer import INIT_TIMEOUT_S, WandbRun, WandbWriter

Mode = Literal["auto", "online", "offline", "disabled"]


def resolve_mode(mode: Mode) -> Literal["online", "offline", "disabled"]:
    """`auto` is online where an API key is in the environment or in netrc, else offline."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return os.environ["WANDB_MODE"]  # type: ignore[return-value]
    return "online" if os.environ.get("WANDB_API_KEY") or _key_in_netrc() else "offline"


def _key_in_netrc() -> bool:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


@dataclass(frozen=True)
class RunIdentity:
    """Which W&B run to write to, and where its local files go."""

    name: str
    run_id: str
    folder: Path
    project: str
    entity: str | None
    mode: Mode


class RowLogger(Logger):
    """A Lightning logger of metrics alone: hyper-parameters stand in config.yaml, and W&B's run was opened with them."""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        pass


class WandbTracker(RowLogger):
    """Lightning's view of a `WandbWriter`. Rank 0 only."""

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
    """A tracker whose run goes on under its id at every relaunch, or None when disabled. Rank 0 only.

    Of the `history` up to here, what W&B was not given online is sent first. Offline, that is all of it: each launch
    writes a folder of its own, W&B cannot join them, and so the newest holds the whole run.
    """
    writer = _make_writer(identity, writer="train", config=config, history=history)
    return None if writer is None else WandbTracker(writer)


def _make_writer(
    identity: RunIdentity, *, writer: Literal["train", "evaluate"], config: dict[str, Any] | None, history: list[dict[str, Any]]
) -> WandbWriter | None:
    mode = resolve_mode(identity.mode)
    if mode == "disabled":
        return None
    return WandbWriter(
        WandbRun(
            writer=writer, mode=mode, name=identity.name, run_id=identity.run_id, folder=str(identity.folder),
            project=identity.project, entity=identity.entity, config=config, history=history,
            init_timeout_s=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_TIMEOUT_S)),
        )
    )  # fmt: skip


class EvaluationTracker:
    """Sends an evaluator's results to W&B, keyed by training step.

    Online they join the training's run. Offline they go to a run of their own, `<id>-eval`, in the same group. What was
    measured before and W&B was not given is sent at the start.
    """

    def __init__(self, identity: RunIdentity, *, history: list[dict[str, Any]]) -> None:
        self._writer = _make_writer(identity, writer="evaluate", config=None, history=list(_by_step(history)))

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Log results, few-shot ones as the mean over seeds."""
        if self._writer is not None:
            for row in _by_step(rows):
                self._writer.log(row)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close(exit_code=0)


def _by_step(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for step in sorted({row["step"] for row in rows}):
        here = [row for row in rows if row["step"] == step]
        values: dict[str, list[float]] = {}
        for row in here:
            setting = f"_{row['shots']}shot" if row["shots"] is not None else ""
            values.setdefault(f"eval/{row['dataset']}/{row['protocol']}{setting}", []).append(row["accuracy"])
        yield {"step": step, "images_seen": here[0]["images_seen"], **{key: sum(v) / len(v) for key, v in values.items()}}


class MetricsFile(RowLogger):
    """Appends every line of metrics to a JSON-lines file. After a resume a step may stand twice: the later line counts.

    Lines that cannot be written, because the disk is full or the folder away, wait in memory for the next.
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
        try:
            append_json_lines(self._path, self._waiting)
        except OSError as error:
            if len(self._waiting) == 1:
                say(f"[run] metrics wait in memory: {self._path} cannot be written ({error})")
        else:
            self._waiting.clear()

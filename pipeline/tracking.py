"""Where numbers go: Weights & Biases, and a local file that mirrors everything sent there."""

from __future__ import annotations

import json
import math
import netrc
import os
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

Mode = Literal["auto", "online", "offline", "disabled"]
STEP_KEY = "step"  # our own: W&B drops whatever is logged at a lower internal step than its last
METRIC_GROUPS = ("train", "speed", "data", "eval")


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


def make_wandb_logger(identity: RunIdentity, *, config: dict[str, Any], history: list[dict[str, Any]]) -> WandbLogger | None:
    """A `WandbLogger` whose run goes on under its id at every relaunch, or None when disabled. Rank 0 only.

    Online, the run is opened in W&B's shared mode, so that the evaluator can write to it from its own process.
    Offline, each launch writes a folder of its own and W&B cannot join them, so the `history` up to here is logged
    again first: the newest folder holds the whole run.
    """
    run = _open_run(identity, writer="train", config=config)
    if run is None:
        return None
    if run.offline:
        for row in history:
            run.log({key: value for key, value in row.items() if value is not None})
    return TolerantWandbLogger(experiment=run)


class TolerantWandbLogger(WandbLogger):
    """A `WandbLogger` that a training outlives: Slurm's SIGTERM before a preemption also ends W&B's own process.

    What is not sent stands in metrics.jsonl. The next launch opens the same run again.
    """

    def __init__(self, *, experiment: Any) -> None:
        super().__init__(experiment=experiment)
        self._lost = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._lost:
            return
        try:
            super().log_metrics(metrics, step)
        except Exception as error:  # whatever a client raises whose server has gone
            self._lost = True
            reason = str(error) or type(error).__name__
            print(f"[wandb] nothing more is sent from this launch ({reason}); metrics.jsonl goes on", flush=True)
            self._forget_service()

    @staticmethod
    def _forget_service() -> None:
        """Or W&B would look for its process at exit, and print a traceback."""
        import wandb

        try:
            wandb.teardown()
        except Exception:  # the same loss, said above
            pass


def _open_run(identity: RunIdentity, *, writer: Literal["train", "evaluate"], config: dict[str, Any] | None = None) -> Any:
    import wandb

    mode = resolve_mode(identity.mode)
    if mode == "disabled":
        return None
    online = mode == "online"
    # Online both writers share one run, and the training owns it. Offline the evaluator has a run of its own in the group.
    apart = "" if online or writer == "train" else "-eval"
    run = wandb.init(
        project=identity.project, entity=identity.entity, dir=str(identity.folder), group=identity.name, job_type=writer,
        name=f"{identity.name}{apart}", id=f"{identity.run_id}{apart}", config=config,
        mode="shared" if online else "offline", resume="allow" if online else None,
        settings=wandb.Settings(
            x_primary=writer == "train" or not online, x_label=writer, x_update_finish_state=writer == "train" or not online,
            silent=not online, console="off",
        ),
    )  # fmt: skip
    run.define_metric(STEP_KEY, hidden=True)
    for group in METRIC_GROUPS:
        run.define_metric(f"{group}/*", step_metric=STEP_KEY)
    return run


class EvaluationTracker:
    """Sends an evaluator's results to W&B, keyed by training step.

    Online they join the training's run. Offline they go to a run of their own, `<id>-eval`, in the same group; what
    was measured before is logged again at the start, so the newest folder holds everything.
    """

    def __init__(self, identity: RunIdentity, *, history: list[dict[str, Any]]) -> None:
        self._run = _open_run(identity, writer="evaluate")
        if self._run is not None and self._run.offline:
            self.log(history)

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Log results, few-shot ones as the mean over seeds."""
        if self._run is None:
            return
        for step, images_seen, values in _by_step(rows):
            self._run.log({STEP_KEY: step, "images_seen": images_seen, **values})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def _by_step(rows: list[dict[str, Any]]) -> Iterator[tuple[int, int, dict[str, float]]]:
    for step in sorted({row["step"] for row in rows}):
        here = [row for row in rows if row["step"] == step]
        values: dict[str, list[float]] = {}
        for row in here:
            setting = f"_{row['shots']}shot" if row["shots"] is not None else ""
            values.setdefault(f"eval/{row['dataset']}/{row['protocol']}{setting}", []).append(row["accuracy"])
        yield step, here[0]["images_seen"], {key: sum(v) / len(v) for key, v in values.items()}


class MetricsFile(Logger):
    """Appends every line of metrics to a JSON-lines file. After a resume a step may stand twice: the later line counts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        pass  # config.yaml holds them

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        append_json_line(self._path, {"time": round(time.time(), 3), **metrics})


def append_json_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append one line in one write. A line that a crash cut short before is closed off first."""
    clean = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in values.items()}
    line = json.dumps(clean, allow_nan=False).encode() + b"\n"
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a JSON-lines file; a line that a crash cut short is passed over."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The metrics file with one row a step, the last written, in order."""
    by_step = {row["step"]: row for row in read_json_lines(path)}
    return [by_step[step] for step in sorted(by_step)]

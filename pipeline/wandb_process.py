"""The process that talks to Weights & Biases: `python -m pipeline.wandb_process`, started by `WandbWriter`, one a launch.

It reads JSON lines from its input (first who and what the run is, then rows and alerts) and answers each on its output.
Whatever becomes of W&B's client, its service or the network happens here, not in a training.

    RUN_DIR/wandb_sent_train.jsonl      the steps that W&B was given online; what the next launch sends are the others
    RUN_DIR/wandb_sent_evaluate.jsonl   the same of the evaluators
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pipeline.interruption import SIGNALS
from pipeline.journal import append_json_lines, read_json_lines

STEP_KEY = "step"  # our own: W&B drops whatever is logged at a lower internal step than its last
METRIC_GROUPS = ("train", "speed", "data", "eval")
SETTLE_S = 60.0  # W&B confirms nothing: a row given to it this long ago, without an error since, counts as sent


def main() -> int:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    # A scheduler signals every process of a job, and W&B's service would die of a warning that time is short. It inherits
    # what is blocked and ignored here; SIGTERM it answers all the same, and then the next launch sends what is missing.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    spec = json.loads(sys.stdin.readline())
    try:
        serve(spec, answers)
    except Exception as error:  # W&B raises almost anything; the writer prints it
        _answer(answers, off=f"{type(error).__name__}: {error}".strip().splitlines()[0])
        os._exit(1)  # its exit hooks wait for a service that may be gone
    return 0


def serve(spec: dict[str, Any], answers: TextIO) -> None:
    """Open the run, log what it lacks, then whatever comes; finish it when the input ends."""
    run, note = open_run_or_fall_back(spec)
    sent = SentSteps(Path(spec["folder"]) / f"wandb_sent_{spec['writer']}.jsonl")
    for row in spec["history"]:
        if run.offline or row[STEP_KEY] not in sent.known:
            _log(run, row, sent)
    _answer(answers, opened="offline" if run.offline else "online", note=note, folder=str(Path(run.settings.sync_dir)))
    exit_code = 1  # unless told otherwise: an input that merely ends is a writer that died
    for message in _messages():
        if "row" in message:
            _log(run, message["row"], sent)
        elif "alert" in message:
            run.alert(level="WARN", **message["alert"])
        else:
            exit_code = int(message["finish"])
            break
        _answer(answers, done=1)
    run.finish(exit_code=exit_code)
    sent.settle(min_age_s=0.0)
    _answer(answers, finished=1)


def open_run_or_fall_back(spec: dict[str, Any]) -> tuple[Any, str | None]:
    """The W&B run, offline where it cannot be opened online, and then why."""
    import wandb

    if spec["mode"] == "offline":
        return open_run(spec, mode="offline"), None
    try:
        return open_run(spec, mode="shared"), None
    except Exception as error:  # no network, a wrong key, a server that does not answer
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        wandb.teardown(exit_code=1)  # its service would say that the run's id is in use
        return open_run(spec, mode="offline"), reason


def open_run(spec: dict[str, Any], *, mode: str) -> Any:
    """Online in W&B's shared mode: training and evaluator write to one run, and the training owns it.

    Offline, each launch writes a folder of its own and W&B cannot join them: the newest is given the whole history. The
    evaluator then has a run of its own in the group.
    """
    import wandb

    online, is_training = mode == "shared", spec["writer"] == "train"
    apart = "" if online or is_training else "-eval"
    run = wandb.init(
        project=spec["project"], entity=spec["entity"], dir=spec["folder"], group=spec["name"], job_type=spec["writer"],
        name=f"{spec['name']}{apart}", id=f"{spec['run_id']}{apart}", config=spec["config"], mode=mode,  # type: ignore[arg-type]
        resume="allow" if online else None,
        settings=wandb.Settings(
            x_primary=is_training or not online, x_label=spec["writer"], x_update_finish_state=is_training or not online,
            silent=not online, console="off", init_timeout=spec["init_timeout_s"], x_stats_pid=spec["pid"], disable_code=True,
        ),
    )  # fmt: skip
    run.define_metric(STEP_KEY, hidden=True)
    for group in METRIC_GROUPS:
        run.define_metric(f"{group}/*", step_metric=STEP_KEY)
    return run


class SentSteps:
    """The steps that W&B was given online, on disk; those of the last minute are not yet counted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known = {row[STEP_KEY] for row in read_json_lines(path)}
        self._fresh: list[tuple[float, int]] = []

    def add(self, step: int) -> None:
        self._fresh.append((time.monotonic(), step))
        if time.monotonic() - self._fresh[0][0] > 2 * SETTLE_S:
            self.settle(min_age_s=SETTLE_S)

    def settle(self, *, min_age_s: float) -> None:
        """Count those that are at least this old."""
        now = time.monotonic()
        settled = [step for given, step in self._fresh if now - given >= min_age_s]
        self._fresh = self._fresh[len(settled) :]
        if settled:
            append_json_lines(self._path, [{STEP_KEY: step} for step in settled])


def _log(run: Any, row: dict[str, Any], sent: SentSteps) -> None:
    run.log({key: value for key, value in row.items() if value is not None})
    if not run.offline:
        sent.add(row[STEP_KEY])


def _messages() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def _answer(answers: TextIO, **values: Any) -> None:
    try:
        print(json.dumps(values), file=answers)
    except BrokenPipeError:  # nobody listens any more: the training is gone, its rows are still worth finishing
        pass


if __name__ == "__main__":
    sys.exit(main())

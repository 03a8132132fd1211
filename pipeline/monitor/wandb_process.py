"""Talk to Weights & Biases: `WandbWriter` starts `python -m pipeline.monitor.wandb_process` once a launch.

It reads JSON lines from its input (first who and what the run is, then rows and alerts) and answers each on its output.
Failures of W&B's client, its service or the network happen here, not in a training.

    RUN_DIR/wandb_sent_train.jsonl      the steps that W&B was given online; what the next launch sends are the others
    RUN_DIR/wandb_sent_evaluate.jsonl   the same of the evaluators
    RUN_DIR/wandb/superseded/           offline runs of earlier launches (the newest holds everything), failed openings
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import IO, Any, Literal, TextIO

from pipeline.launch.signals import SIGNALS
from pipeline.monitor.wandb_file import count_rows
from pipeline.monitor.wandb_settings import shorten_name
from pipeline.run.folder import RunFolder
from pipeline.run.records import append_json_lines, read_json_lines

STEP_KEY = "step"
# Online several writers share a run, W&B counts its own steps, and so the axis is a hidden metric of ours. Offline there is
# one writer, W&B's step is the training's, and no second one is needed.
AXES = {"shared": STEP_KEY, "offline": "_step"}
METRIC_GROUPS = ("train", "speed", "data", "eval")
DIGEST_KEY = "data/digest"  # identifies the samples seen: nothing to draw
WRITING_S = 10.0
SETTLE_S = 60.0  # W&B confirms nothing: a row given to it this long ago, without an error since, counts as sent


def main() -> int:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is not an answer
    # A scheduler signals every process of a job, and W&B's service would end on a warning of a time limit. It inherits the
    # signals that are blocked and ignored here. It still obeys SIGTERM, and then the next launch sends what is missing.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    spec = json.loads(sys.stdin.readline())
    try:
        serve(spec, answers)
    except Exception as error:  # W&B raises almost anything; the writer prints it
        _answer(answers, off=_in_one_line(error))
        os._exit(1)  # its exit hooks wait for a service that may be gone
    return 0


def serve(spec: dict[str, Any], answers: TextIO) -> None:
    """Open the run, log what it lacks, then every input. Finish the run when the input ends."""
    import wandb

    for text in drop_unreadable_variables(os.environ):
        _answer(answers, ignored=text)
    run, note = open_run_or_fall_back(spec)
    log = RunLog(run, SentSteps(Path(spec["folder"]) / f"wandb_sent_{spec['writer']}.jsonl"))
    folder = Path(run.settings.sync_dir)
    for row in spec["history"]:
        log.add(row, "all" if run.offline else "unsent")
    with (folder / "writer.lock").open("w") as lock:
        _try_lock(lock)
        if run.offline:
            set_superseded_aside(folder, run_id=run.id)
        _answer(answers, opened="offline" if run.offline else "online", note=note, folder=str(folder))
        exit_code = 1  # unless an option says otherwise: if the input merely ends, the writer has died
        for message in _messages():
            if "row" in message:
                log.add(message["row"], "all")
            elif "alert" in message:
                run.alert(level="WARN", **message["alert"])
            else:
                exit_code = int(message["finish"])
                break
            _answer(answers, done=1)
        log.finish(exit_code=exit_code)
        wandb.teardown(exit_code=exit_code)  # the end of its service writes the file: finishing a run does not wait for that
        lost = count_lost(folder / f"run-{run.id}.wandb", rows=log.rows) if run.offline else 0
        if run.offline:  # another evaluator's file, finished since, lacks what was measured after it
            set_superseded_aside(folder, run_id=run.id)
    _answer(answers, finished=1, lost=lost, rows=log.rows, folder=str(folder))


def count_lost(path: Path, *, rows: int, patience_s: float = WRITING_S) -> int:
    """Return the number of lines of metrics that W&B's file lacks.

    On a busy machine W&B's service writes the file a moment after it has reported its end.
    """
    end = time.monotonic() + patience_s
    while (lost := rows - count_rows(path)) > 0 and time.monotonic() < end:
        time.sleep(0.1)
    return lost


def drop_unreadable_variables(environ: MutableMapping[str, str]) -> list[str]:
    """Remove W&B's variables whose values would end its client. Return a message for each."""
    import wandb
    from pydantic import ValidationError
    from wandb.errors import UsageError

    messages = []
    for name in sorted(name for name in environ if name.startswith("WANDB_")):
        try:
            wandb.Settings().update_from_env_vars({name: environ[name]})
        except (ValidationError, ValueError, UsageError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else _in_one_line(error)
            messages.append(f"{name}={environ.pop(name)} is ignored: {reason}")
    return messages


def open_run_or_fall_back(spec: dict[str, Any]) -> tuple[Any, str | None]:
    """Return the W&B run, offline where it cannot be opened online, and in that case why."""
    import wandb

    if spec["mode"] == "offline":
        return open_run(spec, mode="offline"), None
    root = RunFolder(Path(spec["folder"])).wandb
    before = set(root.glob("run-*"))
    try:
        return open_run(spec, mode="shared"), None
    except Exception as error:  # no network, a wrong key, a server that does not answer
        reason = _in_one_line(error)
        wandb.teardown(exit_code=1)  # its service would report that the run's id is in use
        for folder in set(root.glob("run-*")) - before:  # `wandb sync` would upload an empty run
            _set_aside(folder)
        return open_run(spec, mode="offline"), reason


def open_run(spec: dict[str, Any], *, mode: str) -> Any:
    """Open a run, online in W&B's shared mode: training and evaluator write to one run, and the training owns it.

    Offline, each launch writes a folder of its own and W&B cannot join them: the newest is given the whole history. The
    evaluator then has a run of its own in the group.
    """
    import wandb

    online, is_training = mode == "shared", spec["writer"] == "train"
    owns = is_training or not online
    apart = "" if online or is_training else "-eval"
    run = wandb.init(
        project=spec["project"],
        entity=spec["entity"],
        dir=spec["folder"],
        group=shorten_name(spec["group"]) if spec["group"] else None,
        job_type=spec["writer"],
        name=shorten_name(f"{spec['name']}{apart}"),
        id=f"{spec['run_id']}{apart}",
        config=spec["config"] if owns else None,
        mode=mode,  # type: ignore[arg-type]
        resume="allow" if online else None,
        tags=spec["tags"] if owns else None,
        notes=spec["notes"] if owns else None,
        settings=wandb.Settings(
            x_primary=owns,
            x_label=spec["writer"],
            x_update_finish_state=owns,
            program=f"python -m pipeline {spec['writer']}",
            silent=not online,
            console="off",
            init_timeout=spec["init_timeout_s"],
            x_stats_pid=spec["pid"],
            disable_code=True,
            x_sync_dir_suffix=secrets.token_hex(3),  # a folder's name has the second, and two writers may begin in one
        ),
    )
    if online:
        run.define_metric(STEP_KEY, hidden=True)
    for group in METRIC_GROUPS:
        run.define_metric(f"{group}/*", step_metric=AXES[mode], step_sync=online)
    return run


def set_superseded_aside(newest: Path, *, run_id: str) -> None:
    """Move this run's older offline folders, and those that came with a copy of another run's folder, into `superseded/`.

    `wandb sync` would upload each of them under one id, and the last to arrive would count. A folder whose writer is alive
    holds a lock and stays.
    """
    own = {run_id, run_id.removesuffix("-eval"), f"{run_id}-eval"}
    for folder in sorted(newest.parent.glob("offline-run-*")):
        of = next((path.stem.removeprefix("run-") for path in folder.glob("run-*.wandb")), None)
        if folder == newest or of is None or (of in own and of != run_id):
            continue
        with (folder / "writer.lock").open("a") as lock:
            if _try_lock(lock):
                _set_aside(folder)


def _set_aside(folder: Path) -> None:
    superseded = folder.parent / "superseded"
    superseded.mkdir(exist_ok=True)
    folder.rename(superseded / folder.name)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process's, or a file system without locks
        return False
    return True


class RunLog:
    """Writes rows to a W&B run: the training step is the axis of every metric. `rows` counts those with a step of their own."""

    def __init__(self, run: Any, sent: SentSteps) -> None:
        self._run = run
        self._sent = sent
        self._axis = AXES["offline" if run.offline else "shared"]
        self._defined: set[str] = set()
        self._digest: Any = None
        self._last_step: int | None = None
        self.rows = 0

    def add(self, row: dict[str, Any], which: Literal["all", "unsent"]) -> None:
        """Log a row with a `step`. `unsent` passes over rows that W&B has."""
        step = row[STEP_KEY]
        if which == "unsent" and step in self._sent.known:
            return
        if step != self._last_step:
            self._last_step = step
            self.rows += 1
        self._digest = row.get(DIGEST_KEY, self._digest)
        values = {key: value for key, value in row.items() if value is not None and key not in (STEP_KEY, DIGEST_KEY, "time")}
        for key in values.keys() - self._defined:
            if key.partition("/")[0] not in METRIC_GROUPS:
                self._run.define_metric(key, step_metric=self._axis, step_sync=not self._run.offline)
            self._defined.add(key)
        if row.get("time") is not None:  # a row that was measured earlier
            values["_timestamp"] = row["time"]
        if self._run.offline:
            self._run.log(values, step=step)
        else:
            self._run.log({STEP_KEY: step, **values})
            self._sent.add(step)

    def finish(self, *, exit_code: int) -> None:
        if self._digest is not None:
            self._run.summary[DIGEST_KEY] = str(self._digest)  # a number of 16 digits would be drawn, and rounded
        self._run.finish(exit_code=exit_code)
        self._sent.settle(min_age_s=0.0)


class SentSteps:
    """Stores the steps that W&B was given online on disk. Those of the last minute do not count yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known = {row[STEP_KEY] for row in read_json_lines(path)}
        self._fresh: list[tuple[float, int]] = []

    def add(self, step: int) -> None:
        self._fresh.append((time.monotonic(), step))
        if time.monotonic() - self._fresh[0][0] > 2 * SETTLE_S:
            self.settle(min_age_s=SETTLE_S)

    def settle(self, *, min_age_s: float) -> None:
        """Count the steps that are at least this old."""
        now = time.monotonic()
        settled = [step for given, step in self._fresh if now - given >= min_age_s]
        self._fresh = self._fresh[len(settled) :]
        if settled:
            append_json_lines(self._path, [{STEP_KEY: step} for step in settled])


def _in_one_line(error: Exception) -> str:
    """Return an error as part of a message; the first lines of W&B's longest ones."""
    lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines()]
    return " ".join(line for line in lines if line)[:400]


def _messages() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def _answer(answers: TextIO, **values: Any) -> None:
    try:
        print(json.dumps(values), file=answers)
    except BrokenPipeError:  # nobody listens any more: the training is gone, but its rows are still worth finishing
        pass


if __name__ == "__main__":
    sys.exit(main())

"""Pass rows to the process that talks to W&B, without waiting for it: W&B must neither end nor stall a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, Literal

import psutil

from pipeline.console.lines import log_line
from pipeline.monitor.wandb_settings import client_environment

INIT_TIMEOUT_S = 90.0
ANSWER_TIMEOUT_S = 120.0
FINISH_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class WandbRun:
    """Says which run to write to, and as which user.

    Args:
        folder: the run folder.
        history: rows that the run folder has already; those that W&B lacks are sent first.
    """

    writer: Literal["train", "evaluate"]
    mode: Literal["online", "offline"]
    name: str
    run_id: str
    folder: str
    project: str
    entity: str | None
    config: dict[str, Any]
    history: list[dict[str, Any]]
    group: str | None = None
    tags: list[str] | None = None
    notes: str | None = None
    init_timeout_s: float = INIT_TIMEOUT_S


class WandbWriter:
    """Writes a W&B run from a process of its own.

    When that process fails, or has not answered for long, one message says so and W&B is off for this launch.
    """

    def __init__(self, run: WandbRun, *, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._run = run
        self._answer_timeout_s = answer_timeout_s
        self._lock = threading.Lock()
        self.off: str | None = None  # the reason
        self.mode: Literal["online", "offline"] = run.mode  # as opened: offline where W&B cannot be reached
        self._closed = False
        self._finished = False
        self._process: subprocess.Popen[str] | None
        self._unanswered = 1  # the opening
        self._waiting_since = time.monotonic() + run.init_timeout_s
        environment = client_environment(os.environ, cache=Path(run.folder).resolve() / "wandb" / "cache")
        if "WANDB_SWEEP_ID" in environment:  # the client takes a sweep's run from the environment alone
            if run.writer == "train":
                environment |= {
                    "WANDB_RUN_ID": run.run_id,
                    "WANDB_PROJECT": run.project,
                    **({"WANDB_ENTITY": run.entity} if run.entity else {}),
                }
            else:
                del environment["WANDB_SWEEP_ID"]
        self._outbox: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._outbox.put({**asdict(run), "pid": os.getpid()})
        self._listener = threading.Thread(target=self._listen, daemon=True, name="W&B answers")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.monitor.wandb_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C is for the training
            )
        except OSError as error:  # no memory, too many processes
            self._process = None
            self._switch_off(f"its process cannot be started ({error})")
            return
        self._listener.start()
        threading.Thread(target=self._feed, daemon=True, name="W&B rows").start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Send a row with a `step`. The call returns at once."""
        self._send({"row": {key: value for key, value in row.items() if value is not None}})

    def alert(self, title: str, text: str) -> None:
        """Have W&B mail or post an alert, as its user has configured it. The call returns at once."""
        self._send({"alert": {"title": title[:63], "text": text}})

    def close(self, *, exit_code: int) -> None:
        """Finish the run. Wait up to a minute for rows that are still on the way."""
        if self._closed or self._process is None:
            return
        self._closed = True
        self._send({"finish": exit_code})
        try:
            self._process.wait(FINISH_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            folder = f"{self._run.folder}/wandb"
            self._switch_off(f"it has not finished within {FINISH_TIMEOUT_S:.0f} s (`wandb sync` uploads what is in {folder})")
        self._listener.join(1.0)

    def _send(self, message: dict[str, Any]) -> None:
        if self.off is not None:
            return
        with self._lock:
            now = time.monotonic()
            if self._unanswered == 0:
                self._waiting_since = now
            waited_s = now - self._waiting_since
            self._unanswered += 1
        if waited_s > self._answer_timeout_s:
            self._switch_off(f"it has not answered for {waited_s:.0f} s")
        else:
            self._outbox.put(message)

    def _feed(self) -> None:
        """Feed the process, in a thread: a full pipe blocks."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            with self._process.stdin as pipe:
                message: dict[str, Any] = {}
                while "finish" not in message:
                    message = self._outbox.get()
                    print(json.dumps(message), file=pipe, flush=True)
        except OSError:
            pass  # its process is gone: the listener finds out why

    def _listen(self) -> None:
        """Listen to the process, in a thread."""
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            self._hear(answers)
        if not self._finished:
            self._switch_off("its process ended")

    def _hear(self, answers: IO[str]) -> None:
        for line in answers:
            answer = json.loads(line)
            if "ignored" in answer:  # not an answer to a row
                log_line(f"[wandb] {answer['ignored']}")
                continue
            with self._lock:
                self._unanswered -= 1
                self._waiting_since = time.monotonic()
            self.mode = answer.get("opened", self.mode)
            if "off" in answer:
                self._switch_off(answer["off"])
            elif answer.get("note"):
                log_line(
                    f"[wandb] no run online ({answer['note']}); it is written offline instead, and "
                    f"`wandb sync {answer['folder']}` uploads it later"
                )
            if answer.get("lost", 0) > 0:
                log_line(
                    f"[wandb] {answer['lost']} of {answer['rows']} lines are missing in {answer['folder']}, which is "
                    "truncated: is the disk full? "
                    f"{self._truth()} holds every line, and the next launch writes them all again"
                )
            self._finished = self._finished or "finished" in answer

    def _switch_off(self, reason: str) -> None:
        with self._lock:
            if self.off is not None:
                return
            self.off = reason
        log_line(
            f"[wandb] W&B IS SWITCHED OFF for this launch: {reason}. Nothing else is touched: {self._truth()} holds "
            "every line, and "
            f"the next launch sends W&B what it has missed"
        )
        self._outbox.put({"finish": 1})  # ends the feeder
        self._kill()

    def _truth(self) -> str:
        return "metrics.jsonl" if self._run.writer == "train" else "evaluations.jsonl"

    def _kill(self) -> None:
        """Kill the process and W&B's service, which has a session of its own."""
        if self._process is None:
            return
        try:
            process = psutil.Process(self._process.pid)
            family = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                pass

"""A watcher says what it waits for, and ends when nothing more can come."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import EvaluationError
from pipeline.evaluation import watch
from pipeline.evaluation.watch import LOOKS_AT_THE_END, wait_for_weights, watch_run
from pipeline.launch.signals import Interrupted, StopRequest
from pipeline.run.claims import Owner
from pipeline.run.folder import RunFolder

FAILED = {"phase": "failed", "by": "DivergedError: gradients were not finite", "step": 7, "total_steps": 12}


class Measured:
    """Behaves like an evaluator that has measured everything that exists."""

    def __init__(self, *, then: Any = None) -> None:
        self.looks = 0
        self.is_closed = False
        self.then = then

    def evaluate_pending(self) -> None:
        self.looks += 1
        if self.then is not None:
            self.then(self.looks)

    def has_pending(self) -> bool:
        return False

    def is_complete(self) -> bool:
        return False

    def has_doubtful_claims(self) -> bool:
        return False

    def close(self) -> None:
        self.is_closed = True

    def check(self, *, lost: str | None) -> None: ...

    def why_lost(self) -> str | None:
        return None


def write_heartbeat(folder: RunFolder, values: dict[str, Any]) -> None:
    folder.root.mkdir(exist_ok=True)
    folder.heartbeat.write_text(json.dumps({"time": time.time(), **values}))


def stop_at(count: int) -> Any:
    stop = StopRequest()
    return stop, lambda looks: stop.received.append("SIGTERM") if looks >= count else None


def test_a_watcher_ends_with_the_reason_when_the_run_has_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, evaluator = RunFolder(tmp_path), Measured()
    write_heartbeat(folder, FAILED)
    watch_run(evaluator, folder, watch=True, stop=StopRequest(), poll_s=0)
    assert (evaluator.looks, evaluator.is_closed) == (LOOKS_AT_THE_END, True)
    (line,) = capsys.readouterr().out.splitlines()
    assert "no further weights will come: the training has failed at step 7 (DivergedError: gradients were not finite)" in line


def test_a_watcher_goes_on_with_a_run_that_is_started_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A training that is submitted with its evaluator may start later: the folder still shows the last launch's state."""
    folder = RunFolder(tmp_path)
    write_heartbeat(folder, FAILED)
    stop, stops = stop_at(3 * LOOKS_AT_THE_END)

    def start_again(looks: int) -> None:
        if looks == LOOKS_AT_THE_END - 1:
            write_heartbeat(folder, {"phase": "training", "step": 8})
        stops(looks)

    evaluator = Measured(then=start_again)
    with pytest.raises(Interrupted, match="SIGTERM"):
        watch_run(evaluator, folder, watch=True, stop=stop, poll_s=0)
    assert evaluator.looks == 3 * LOOKS_AT_THE_END
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "[eval] no further weights will come",
        f"[eval] waiting for further weights of a training that is going on in {tmp_path}",
    ]  # fmt: skip


def test_a_lock_is_waited_for_while_it_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is of another machine's launch that has written no heartbeat yet, or was lost before it could."""
    monkeypatch.setattr(watch, "SILENT_AFTER_S", 0.3)
    folder = RunFolder(tmp_path)
    write_heartbeat(folder, FAILED)
    owner = {**json.loads(Owner.myself().to_json()), "machine": "another"}
    touches = 3 * LOOKS_AT_THE_END

    def touch(looks: int) -> None:
        if looks <= touches:
            RunFolder(tmp_path).lock.write_text(json.dumps({**owner, "since": time.time() - looks}))

    evaluator = Measured(then=touch)
    watch_run(evaluator, folder, watch=True, stop=StopRequest(), poll_s=0.02)
    assert evaluator.looks > touches + LOOKS_AT_THE_END  # and then it ends


@pytest.mark.parametrize(
    ("heartbeat", "said"),
    [(None, "no training has been started in this folder"),
     ({"phase": "stopped", "by": "SIGTERM", "step": 3},
      "the training was stopped by a signal at step 3 (SIGTERM; the same command"),
     ({"phase": "training", "step": 3, "time": 1e9}, "the training is silent at step 3")],
)  # fmt: skip
def test_a_watcher_says_once_what_it_waits_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], heartbeat: dict[str, Any] | None, said: str
) -> None:
    folder = RunFolder(tmp_path)
    if heartbeat is not None:
        write_heartbeat(folder, heartbeat)
    stop, stops = stop_at(3 * LOOKS_AT_THE_END)
    with pytest.raises(Interrupted, match="SIGTERM"):
        watch_run(Measured(then=stops), folder, watch=True, stop=stop, poll_s=0)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"[eval] waiting for further weights: {said}")


def test_the_wait_for_first_weights_ends_with_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_heartbeat(folder, FAILED)
    with pytest.raises(EvaluationError, match=r"no weights to evaluate, and none will come: the training has failed at step 7"):
        wait_for_weights(folder, stop=StopRequest(), poll_s=0)


@pytest.mark.parametrize("watch", [True, False])
def test_a_stop_that_a_handler_could_not_raise_is_no_success(tmp_path: Path, watch: bool) -> None:
    """Python drops what is raised inside `__del__`: only the flag is left of the signal."""
    folder, (stop, stops) = RunFolder(tmp_path), stop_at(1)
    with pytest.raises(Interrupted):
        watch_run(Measured(then=stops), folder, watch=watch, stop=stop, poll_s=0)
    with pytest.raises(Interrupted):
        wait_for_weights(folder, stop=stop, poll_s=0)

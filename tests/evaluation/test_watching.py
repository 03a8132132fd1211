"""An evaluator that watches a run: killed, preempted, or deprived of the folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipeline.build.evaluator import make_evaluator
from pipeline.config.read import load_config
from pipeline.errors import EvaluationError
from pipeline.evaluation.watch import watch_run
from pipeline.files import write_whole
from pipeline.launch.signals import StopRequest
from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_json_lines
from tests.conftest import REPOSITORY, environment
from tests.helpers.evaluations import RESULTS_PER_STEP, add_weights, watch_command


@contextmanager
def watching(folder: RunFolder, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """Run an evaluator that watches a run, in a process of its own. It is gone at the end."""
    command = watch_command(folder, *overrides)
    with (folder.root / "watcher.log").open("a") as log:
        watcher = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), text=True, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield watcher
        finally:
            watcher.kill()
            watcher.wait()


def test_a_watcher_waits_survives_a_kill_and_ends_with_the_run(folder: RunFolder) -> None:
    add_weights(folder, 0)
    with watching(folder) as watcher:
        wait_for(lambda: len(read_json_lines(folder.evaluations)) >= 1, watcher)
        watcher.kill()  # most likely in the middle of step 0
    with watching(folder) as watcher:
        add_weights(folder, 4)
        wait_for(lambda: any(row["step"] == 4 for row in read_json_lines(folder.evaluations)), watcher)
        assert watcher.poll() is None  # the run is not complete
        write_whole(folder.complete, json.dumps({"step": 4}).encode())
        assert watcher.wait(timeout=240) == 0
    rows = read_json_lines(folder.evaluations)
    assert sorted(row["step"] for row in rows) == [0] * RESULTS_PER_STEP + [4] * RESULTS_PER_STEP


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Return decoding processes: they were spawned, and import torch for a second or two."""
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], text=True, capture_output=True)
    return [int(pid) for pid in found.stdout.split()]


@pytest.mark.slow
def test_a_preempted_evaluation_is_no_failed_one(folder: RunFolder) -> None:
    """A scheduler signals every process of a job, in any order: the decoding ones before the one that knows what to do."""
    add_weights(folder, 4)
    with watching(folder, "evaluation.num_workers=1") as watcher:
        wait_for(lambda: workers_of(watcher) != [], watcher)
        for pid in workers_of(watcher):
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)
        watcher.send_signal(signal.SIGTERM)
        assert watcher.wait(timeout=60) == 75
    text = (folder.root / "watcher.log").read_text()
    assert "[evaluate] stopped by SIGTERM; the same command resumes from here" in text
    assert "cannot be measured" not in text
    assert read_json_lines(folder.evaluations) == []  # else it would be recorded there as tried and failed
    assert list((folder.root / "claims").iterdir()) == []


@pytest.mark.parametrize("after", ["renamed", "another run in its place"])
def test_a_folder_that_was_renamed_is_neither_made_again_nor_mixed_up(
    folder: RunFolder, after: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_weights(folder, 0)
    evaluator = make_evaluator(folder, load_config(folder.config, ["tracking.mode=disabled"]))
    renamed = folder.root.with_name("renamed")

    class Renamed:
        """Evaluates in a folder that is renamed after its first look."""

        def __getattr__(self, name: str) -> Any:
            return getattr(evaluator, name)

        def evaluate_pending(self) -> None:
            evaluator.evaluate_pending()
            if renamed.exists():
                return
            folder.root.rename(renamed)
            if after != "renamed":
                folder.root.mkdir()
                write_whole(folder.wandb_id, b"another")
                add_weights(folder, 8)

    with pytest.raises(EvaluationError, match="not evaluated: ") as raised:
        watch_run(Renamed(), folder, watch=True, stop=StopRequest(), poll_s=0.01)
    why = (
        f"{folder.root} no longer exists"
        if after == "renamed"
        else f"{folder.root} is another run's folder now (W&B id another, not abc123)"
    )
    assert str(raised.value) == f"not evaluated: {why}; if it was moved, type `python -m pipeline evaluate` with its new path"
    assert f"[eval] {why}. This ends shortly unless it comes back" in capsys.readouterr().out
    assert len(read_json_lines(renamed / "evaluations.jsonl")) == RESULTS_PER_STEP
    assert not folder.evaluations.exists()
    assert not folder.claims.exists()


def test_results_of_a_step_whose_folder_goes_are_counted_as_not_recorded(folder: RunFolder) -> None:
    add_weights(folder, 0)
    evaluator = make_evaluator(folder, load_config(folder.config, ["tracking.mode=disabled"]))
    with evaluator.claims.take("step_00000000.json"):
        folder.root.rename(folder.root.with_name("renamed"))
        evaluator.results.add({"step": 0, "accuracy": 0.5})
    evaluator.evaluate_pending()
    assert not folder.root.exists()
    with pytest.raises(
        EvaluationError, match=r"1 results are not recorded: .* cannot be written .No such file or directory.; fix that"
    ):
        evaluator.check(lost=evaluator.why_lost())


def wait_for(condition: object, process: subprocess.Popen[str], timeout_s: float = 240) -> None:
    assert callable(condition)
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, "the evaluator ended early"
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)

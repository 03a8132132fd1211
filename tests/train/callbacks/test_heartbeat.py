"""A run writes a sign of life."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline.errors import TrainingError
from pipeline.launch.signals import StopRequest
from pipeline.run.checkpoint import RunFolder
from pipeline.run.live_files import LiveFiles
from pipeline.run.records import read_json
from pipeline.train.callbacks.heartbeat import Heartbeat, Identity
from tests.conftest import REPOSITORY, environment
from tests.helpers.one_rank import fit, make_batch
from tests.helpers.trainings import WriteConfig, folder_of


class Recorded(LiveFiles):
    """Keeps every state that live files were given."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder, every_s=60)
        self.states: list[Mapping[str, Any]] = []

    def put(self, path: Path, values: Mapping[str, Any]) -> None:
        self.states.append(values)
        super().put(path, values)


@dataclass
class Outside:
    """Holds what a heartbeat reaches outside of the run folder."""

    notices: list[str] = field(default_factory=list)
    stop: StopRequest = field(default_factory=StopRequest)


def make_heartbeat(
    folder: RunFolder, *, files: LiveFiles | None, outside: Outside | None = None, start_step: int = 0, total_steps: int = 3
) -> Heartbeat:
    outside = outside or Outside()
    return Heartbeat(
        folder, identity=Identity(total_steps=total_steps, global_batch_size=2, world_size=1, num_nodes=1, slurm_job_id=None),
        start_step=start_step, files=files, stop=outside.stop, notices=lambda: outside.notices,
    )  # fmt: skip


class Fails(Callback):
    """Ends a training with an error at the end of its first step."""

    def __init__(self, message: str) -> None:
        self.message = message

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        raise TrainingError(self.message)


@pytest.mark.usefixtures("rank")
def test_a_beat_at_every_turn_of_the_loop(tmp_path: Path) -> None:
    """Micro-batches within a step do not count as steps."""
    folder = RunFolder(tmp_path)
    files = Recorded(folder)
    batches = [make_batch(number) for number in range(6)]
    fit([make_heartbeat(folder, files=files)], batches, folder=tmp_path, max_steps=3, accumulation_steps=2)
    step = ["computing", "computing", "waiting for data"]
    assert [state["phase"] for state in files.states] == ["starting", "waiting for data", *step, *step, *step, "finished"]
    assert [state["step"] for state in files.states if state["phase"] != "computing"] == [0, 0, 1, 2, 3, 3]
    beat = read_json(folder.heartbeat)
    assert beat == files.states[-1]  # written when it ends, not at the next interval
    assert (beat["pid"], beat["folder_inode"]) == (os.getpid(), tmp_path.stat().st_ino)
    times = [state["time"] for state in files.states]
    assert times == sorted(times)


@pytest.mark.usefixtures("rank")
@pytest.mark.parametrize(("received", "by"), [(["SIGTERM", "SIGINT"], "SIGTERM/SIGINT"), ([], "a signal to another rank")])
def test_a_run_that_was_told_to_stop_says_by_what(received: list[str], by: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    outside = Outside(stop=StopRequest(received=received))
    health = make_heartbeat(folder, files=Recorded(folder), outside=outside, total_steps=9)
    fit([health], [make_batch(0)], folder=tmp_path, max_steps=1)
    beat = read_json(folder.heartbeat)
    assert beat is not None
    assert (beat["phase"], beat["by"], beat["step"]) == ("stopped", by, 1)


@pytest.mark.usefixtures("rank")
def test_a_failure_is_said_without_credentials(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(TrainingError):
        fit(
            [make_heartbeat(folder, files=Recorded(folder)), Fails("https://me:opensesame@host is gone" + 1000 * "!")],
            [make_batch(0)], folder=tmp_path, max_steps=1,
        )  # fmt: skip
    beat = read_json(folder.heartbeat)
    assert beat is not None
    assert beat["phase"] == "failed"
    assert beat["by"].startswith("TrainingError: https://me:***@host is gone")
    assert len(beat["by"]) == 500


@pytest.mark.usefixtures("rank")
def test_a_resumed_run_shows_its_step_before_it_is_loaded(tmp_path: Path) -> None:
    files = Recorded(RunFolder(tmp_path))
    fit([make_heartbeat(files.folder, files=files, start_step=7)], [make_batch(0)], folder=tmp_path, max_steps=1)
    assert files.states[0]["step"] == 7


@pytest.mark.usefixtures("rank")
def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    fit([make_heartbeat(RunFolder(tmp_path), files=None)], [make_batch(0)], folder=tmp_path, max_steps=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("rank")
def test_heartbeats_show_what_a_reader_should_know(tmp_path: Path) -> None:
    folder, outside = RunFolder(tmp_path), Outside(notices=["steps take 1 s"])
    fit([make_heartbeat(folder, files=Recorded(folder), outside=outside)], [make_batch(0)], folder=tmp_path, max_steps=1)
    beat = read_json(folder.heartbeat)
    assert beat is not None
    assert beat["alerts"] == outside.notices


def test_a_finished_run_says_so(reference: RunFolder) -> None:
    beat = read_json(reference.root / "heartbeat.json")
    assert beat is not None
    assert (beat["phase"], beat["step"], beat["total_steps"], beat["world_size"]) == ("finished", 12, 12, 2)


def test_a_run_that_fails_says_why_and_leaves_nothing_that_everybody_may_write(write_config: WriteConfig) -> None:
    config = write_config(
        optimizer={"learning_rate": 1e30, "clip_norm": None}, checkpoint={"every": "1 steps"},
        trainer={"devices": 1, "max_skipped_steps": 3}, tracking={"mode": "offline"},
    )  # fmt: skip
    command = f"umask 0; exec {sys.executable} -m pipeline train {config}"
    assert subprocess.run(command, shell=True, cwd=REPOSITORY, env=environment(), timeout=200).returncode == 2
    folder = folder_of(config)
    beat = read_json(folder.root / "heartbeat.json")
    assert beat is not None
    assert beat["phase"] == "failed"
    assert "gradients were not finite for 3 steps in a row" in beat["by"]
    paths = list(folder.root.rglob("*"))
    assert {"config.yaml", "wandb", "metrics.jsonl", "meta.json", "heartbeat.json"} <= {path.name for path in paths}
    assert not [path for path in paths if not path.is_symlink() and path.stat().st_mode & stat.S_IWOTH]

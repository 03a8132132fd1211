"""The run's sign of life."""

from __future__ import annotations

import stat
import subprocess
import sys

from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_json
from tests.conftest import REPOSITORY, environment
from tests.helpers.trainings import WriteConfig, folder_of


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

"""Two evaluators watch a training and are killed again and again: all is measured once, and the training is undisturbed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections import Counter
from typing import Any

import pytest

from pipeline.run.checkpoint import RunFolder
from pipeline.run.evaluations import value_of
from pipeline.run.records import read_json_lines
from tests.conftest import REPOSITORY, environment
from tests.helpers.evaluations import watch_command
from tests.helpers.trainings import WriteConfig, assert_same_run, folder_of, training, tree_of

KILLS = 5
SETS = ("bars", "lines", "more")
STEPS = (0, 4, 8, 12)


class Watcher:
    """Starts an evaluator again whenever it is killed."""

    def __init__(self, folder: RunFolder, number: int) -> None:
        self._log = (folder.root.parent.with_name(f"watcher-{number}.log")).open("a")
        self._command = watch_command(folder)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command, cwd=REPOSITORY, env=environment(), stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def kill(self) -> None:
        for pid in tree_of(self.process.pid):
            subprocess.run(["kill", "-KILL", str(pid)], capture_output=True)
        self.process.wait()

    def text(self) -> str:
        with open(self._log.name) as log:
            return log.read()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_watchers_that_are_killed_measure_all_of_it(
    reference: RunFolder, write_config: WriteConfig, downstream: dict[str, str]
) -> None:
    draw = random.Random(0)
    datasets = [{**downstream, "name": name} for name in SETS]
    config = write_config(evaluation={"datasets": datasets, "replicas": 2, "order": "newest"}, tracking={"mode": "offline"})
    folder = folder_of(config)
    with training(config) as trained:
        watchers = [Watcher(folder, number) for number in range(2)]
        try:
            for _ in range(KILLS):
                before = len(results_of(folder))
                until = time.monotonic() + draw.uniform(0, 6)
                while time.monotonic() < until or (len(results_of(folder)) == before and not all_is_measured(folder)):
                    time.sleep(0.05)
                victim = draw.choice(watchers)
                victim.kill()
                victim.start()
            assert trained.wait(timeout=300) == 0
            for watcher in watchers:
                assert watcher.process.wait(timeout=300) == 0, watcher.text()
        finally:
            for watcher in watchers:
                watcher.process.send_signal(signal.SIGKILL)
                watcher.process.wait()
    assert_same_run(folder, reference)
    rows = results_of(folder)
    counts = Counter((row["step"], row["dataset"], row["protocol"], row["measure"], row["seed"]) for row in rows)
    per_set = 2 * 2 + 1  # shots x seeds, and the linear probe
    assert len(counts) == len(STEPS) * len(SETS) * per_set
    assert set(counts.values()) == {1}
    assert list(folder.claims.iterdir()) == []
    by_step: dict[int, set[Any]] = {step: set() for step in STEPS}
    for row in rows:  # the sets are the same images under three names
        by_step[row["step"]].add(json.dumps([row["measure"], row["seed"], row["accuracy"]]))
    assert all(len(found) == per_set for found in by_step.values())


def results_of(folder: RunFolder) -> list[dict[str, Any]]:
    return [row for row in read_json_lines(folder.evaluations) if value_of(row) is not None]


def all_is_measured(folder: RunFolder) -> bool:
    return len(results_of(folder)) == len(STEPS) * len(SETS) * 5

"""The watchdog is informed of a training's progress."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline.train.callbacks.hangs import WatchStep, WatchWaiting
from pipeline.train.watchdog import Watchdog
from tests.helpers.one_rank import fit, make_batch

pytestmark = pytest.mark.usefixtures("rank")


class Listened(Watchdog):
    """Records what a watchdog hears."""

    def __init__(self, folder: Path) -> None:
        super().__init__(timeout_s=60, rank=0, folder=folder)
        self.heard: list[str | int] = []

    def enter(self, phase: str) -> None:
        self.heard.append(phase.split(" (")[0])
        super().enter(phase)

    def beat(self, *, step: int) -> None:
        self.heard.append(step)
        super().beat(step=step)


class Fails(Callback):
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        raise RuntimeError("on purpose")


def watching() -> bool:
    """Return whether a watchdog still runs, a moment from now."""
    end = time.monotonic() + 5
    while any(thread.name == "watchdog" for thread in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.01)
    return time.monotonic() >= end


def test_phases_follow_the_training_and_only_steps_are_beats(tmp_path: Path) -> None:
    watchdog = Listened(tmp_path)
    batches = [make_batch(number) for number in range(4)]
    callbacks: list[Callback] = [WatchStep(watchdog), WatchWaiting(watchdog)]
    fit(callbacks, batches, folder=tmp_path, max_steps=2, accumulation_steps=2)
    micro_batch, end = ["in a step"], ["at a step's end", "waiting for data"]
    assert watchdog.heard == [
        "saving the first weights", "waiting for data", *micro_batch, *end, *micro_batch, 1, *end, *micro_batch, *end,
        *micro_batch, 2, *end,
    ]  # fmt: skip
    assert not watching()


def test_the_watch_ends_with_a_run_that_fails(tmp_path: Path) -> None:
    watchdog = Listened(tmp_path)
    with pytest.raises(RuntimeError, match="on purpose"):
        fit([WatchStep(watchdog), Fails()], [make_batch(0)], folder=tmp_path, max_steps=1)
    assert not watching()

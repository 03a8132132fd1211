"""Checkpoints that were saved after a run had lost what it learnt do not displace those from before."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.checkpoint import METRICS_STATE, RunFolder, delete_old, read_loss_history
from pipeline.run.loss_history import LossHistory, choose_kept
from tests.helpers.run_folders import write_checkpoint
from tests.helpers.trainings import WriteConfig, folder_of, train


def history(*losses: float) -> LossHistory:
    begun = LossHistory.begin(losses[0])
    assert begun is not None
    for loss in losses[1:]:
        begun = begun.after(loss)
    return begun


@pytest.mark.parametrize(
    ("losses", "lost"),
    [
        ((7.0, 6.0, 3.0), False),
        ((7.0, 3.0, 4.9), False),  # a third of the way back
        ((7.0, 3.0, 5.1), True),  # half of it, which is what a collapse to guessing gives at the least
        ((7.0, 3.0, 7.0), True),
        ((7.0, 3.0, 900.0), True),
        ((7.0, 3.0, math.inf), True),
        ((7.0, 3.0, math.nan), True),
        ((7.0, 3.0, 900.0, 3.1), False),  # it has recovered
        ((7.0, 6.9, 7.1), False),  # nothing is learnt yet: noise
        ((7.0, 6.9, 70.0), True),
        ((7.0,), False),
        ((7.0, 7.1), False),
    ],
)
def test_what_was_learnt_is_lost_half_of_the_way_back(losses: tuple[float, ...], lost: bool) -> None:
    assert history(*losses).is_lost == lost


def test_a_history_is_what_its_values_say_and_nothing_where_they_say_nothing() -> None:
    for known in (history(7.0, 3.0, 5.0), history(7.0, 3.0, math.nan)):
        assert LossHistory.described_by(json.loads(json.dumps(known.to_values()))) == known
    bad: list[Any] = [
        None,
        3,
        {},
        {"first": None, "lowest": 1.0},
        {"first": "7", "lowest": 3.0},
        {"first": math.nan, "lowest": 1.0},
    ]
    assert [LossHistory.described_by(values) for values in bad] == [None] * len(bad)
    assert LossHistory.begin(math.nan) is None


@pytest.mark.parametrize(
    ("lost", "keep_last", "kept"),
    [
        (set(), 2, {40, 50}),
        ({50}, 2, {30, 40, 50}),
        ({30, 40, 50}, 2, {10, 20, 40, 50}),
        ({30, 40}, 2, {20, 40, 50}),  # recovered: 20 stays until there are two after the rise
        ({10, 20, 30, 40, 50}, 1, {50}),
    ],
)
def test_lost_ones_take_one_anothers_places_alone(lost: set[int], keep_last: int, kept: set[int]) -> None:
    steps = [10, 20, 30, 40, 50]
    assert choose_kept(steps, lost=frozenset(lost), keep_last=keep_last, keep_every_steps=None) == kept
    assert choose_kept(steps, lost=frozenset(lost), keep_last=keep_last, keep_every_steps=25) == kept | {30, 50}


def test_retention_reads_it_from_the_checkpoints(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for step, losses in ((4, (7.0, 3.0)), (8, (7.0, 3.0, 8.0)), (12, (7.0, 3.0, 9.0))):
        write_checkpoint(run, step, callbacks={METRICS_STATE: {"loss": history(*losses).to_values()}})
    write_checkpoint(run, 2)  # of an earlier version: it does not say
    (run.checkpoint_of(2) / "meta.json").write_text("{")
    assert delete_old(run, newest=12, keep_last=1, keep_every_steps=None) == [2, 8]
    assert run.checkpoint_steps() == [4, 12]


@pytest.mark.slow
def test_a_run_whose_loss_explodes_keeps_what_it_had_learnt(write_config: WriteConfig) -> None:
    """Every gradient is finite, and every step is taken."""
    config = write_config(trainer={"duration": "60 steps"}, checkpoint={"every": "4 steps", "keep_last": 1})
    folder, alone = folder_of(config), "trainer.devices=1"
    train(config, alone, "trainer.max_steps=24", "optimizer.learning_rate=5e-3")
    before = read_loss_history(folder.checkpoint_of(24))
    assert before is not None
    assert not before.is_lost
    assert before.lowest < 0.8 * before.first
    train(config, alone, "trainer.max_steps=40", "optimizer.learning_rate=3.0")
    after = read_loss_history(folder.checkpoint_of(40))
    assert after is not None
    assert after.is_lost
    assert after.first == before.first
    assert folder.checkpoint_steps() == [24, 36, 40]  # 36: the last one from which a step was taken
    text = train(config, alone, "trainer.max_steps=41")
    assert f"the run has lost more than half of what it had learnt since {before.first:.4g}. To go on from step 24" in text

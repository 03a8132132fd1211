"""A run that is killed, asked to stop or deprived of a checkpoint ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from pipeline.run.checkpoint import RunFolder
from tests.helpers.trainings import (
    STEPS,
    WriteConfig,
    assert_same_run,
    folder_of,
    ranks_of,
    reached,
    train,
    training,
    tree_of,
    wait_until,
)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_one_death_after_another_changes_nothing(reference: RunFolder, write_config: WriteConfig) -> None:
    """It is stopped by a scheduler, by a terminal, killed, killed inside a save, and deprived of its newest checkpoint."""
    config = write_config(data={"num_workers": 1}, tracking={"mode": "offline"})
    folder = folder_of(config)
    with training(config) as process:
        wait_until(lambda: reached(folder, 1), process)
        os.kill(ranks_of(process)[1], signal.SIGUSR1)
        assert process.wait(timeout=60) == 75
    step = folder.checkpoint_steps()[-1]
    assert 1 <= step < STEPS
    assert not folder.complete.exists()

    with training(config) as process:
        wait_until(lambda: reached(folder, step + 1), process)
        for pid in tree_of(process.pid):  # decoding workers and W&B's process as well
            os.kill(pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 75
    assert folder.checkpoint_steps()[-1] > step

    with training(config) as process:
        wait_until(lambda: folder.staging_of(8).exists() or folder.checkpoint_of(8).exists(), process, poll_s=0.0005)
        ranks = ranks_of(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len(ranks) == 2
    wait_gone(ranks)  # no orphan keeps training

    newest = folder.checkpoint_steps()[-1]
    flip_a_bit(folder, newest)
    output = train(config)
    assert f"skipped a broken checkpoint: {folder.checkpoint_of(newest)}" in output
    assert "resuming from" in output
    assert not folder.staging_of(8).exists()
    assert_same_run(folder, reference)
    assert len({path.name for path in (folder.root / "wandb").glob("offline-run-*/*.wandb")}) == 1  # one W&B run


def flip_a_bit(folder: RunFolder, step: int) -> Path:
    """Damage the largest file of a checkpoint. Return its path."""
    victim = max(folder.checkpoint_of(step).rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    return victim


@pytest.mark.slow
def test_killed_between_checkpoints_it_ends_the_same(reference: RunFolder, write_config: WriteConfig) -> None:
    config = write_config(tracking={"mode": "offline"})
    folder = folder_of(config)
    with training(config) as process:
        wait_until(lambda: reached(folder, 6), process)
        ranks = ranks_of(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len(ranks) == 2
    wait_gone(ranks)  # no orphan keeps training
    output = train(config)
    assert "resuming from" in output
    assert "step 4 of 12" in output or "step 8 of 12" in output
    assert_same_run(folder, reference)
    assert len({path.name for path in (folder.root / "wandb").glob("offline-run-*/*.wandb")}) == 1  # one W&B run


def wait_gone(pids: list[int]) -> None:
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "ranks outlived their launcher"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 0.03])
def test_killed_inside_a_save_it_ends_the_same(reference: RunFolder, write_config: WriteConfig, delay_s: float) -> None:
    config = write_config()
    folder = folder_of(config)
    with training(config) as process:
        wait_until(lambda: folder.staging_of(8).exists(), process, poll_s=0.0005)
        time.sleep(delay_s)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert folder.checkpoint_steps()[0] == 4
    train(config)
    assert not folder.staging_of(8).exists()
    assert_same_run(folder, reference)


@pytest.mark.slow
def test_a_broken_newest_checkpoint_is_skipped_aloud(reference: RunFolder, write_config: WriteConfig) -> None:
    config = write_config()
    folder = folder_of(config)
    train(config, "trainer.max_steps=8")
    victim = flip_a_bit(folder, 8)
    output = train(config)
    assert f"skipped a broken checkpoint: {victim} is damaged: its hash differs from the manifest" in output
    assert "step 4 of 12" in output
    assert_same_run(folder, reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "target"),
    [
        pytest.param(signal.SIGUSR1, "rank", marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, "launcher", marks=pytest.mark.long),
        pytest.param(signal.SIGUSR1, "everyone", marks=pytest.mark.long),
        (signal.SIGTERM, "everyone"),
        (signal.SIGINT, "launcher"),
    ],
)
def test_told_to_stop_it_saves_and_goes_on_later(
    reference: RunFolder, write_config: WriteConfig, number: signal.Signals, target: str
) -> None:
    """Whichever process is signalled, both ranks save at the same step.

    `everyone`, as with a terminal's Ctrl-C or a scheduler, includes the decoding workers and W&B's process.
    """
    alone = {"data": {"num_workers": 1}, "tracking": {"mode": "offline"}}  # the processes that `everyone` adds
    config = write_config(**(alone if target == "everyone" else {}))
    folder = folder_of(config)
    with training(config) as process:
        wait_until(lambda: reached(folder, 5), process)
        targets = {"rank": ranks_of(process)[1:], "launcher": [process.pid], "everyone": tree_of(process.pid)}
        for pid in targets[target]:
            os.kill(pid, number)
        assert process.wait(timeout=60) == 75
    step = folder.checkpoint_steps()[-1]
    assert 5 <= step < STEPS
    assert not folder.complete.exists()
    assert f"step {step} of 12" in train(config)
    assert_same_run(folder, reference)


@pytest.mark.slow
def test_weights_that_a_kill_left_out_are_never_missing(reference: RunFolder, write_config: WriteConfig) -> None:
    """A checkpoint that exists has its weights, whenever the run is killed."""
    config = write_config()
    folder = folder_of(config)
    with training(config) as process:
        wait_until(lambda: folder.checkpoint_of(8).exists(), process, poll_s=0.0005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert 8 in folder.weight_steps()

"""A run that is killed, told to stop or robbed of a checkpoint ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from pipeline.checkpoint import RunFolder
from tests.trainings import (
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


def test_killed_between_checkpoints_it_ends_the_same(reference: RunFolder, write_config: WriteConfig) -> None:
    config = write_config(tracking={"mode": "offline"})
    folder = folder_of(config)
    with training(config) as process:
        wait_until(lambda: reached(folder, 6), process)
        ranks = ranks_of(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len(ranks) == 2
    wait_gone(ranks)  # no orphan goes on training
    output = train(config)
    assert "resuming from" in output
    assert "step 4 of 12" in output or "step 8 of 12" in output
    assert_same_run(folder, reference)
    assert len({path.name.split("-")[-1] for path in (folder.root / "wandb").glob("offline-run-*")}) == 1  # one W&B run


def wait_gone(pids: list[int]) -> None:
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "ranks outlived their launcher"
        time.sleep(0.05)


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


def test_a_broken_newest_checkpoint_is_skipped_aloud(reference: RunFolder, write_config: WriteConfig) -> None:
    config = write_config()
    folder = folder_of(config)
    train(config, "trainer.max_steps=8")
    victim = max(folder.checkpoint_of(8).rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1  # one bit
    victim.write_bytes(bytes(data))
    output = train(config)
    assert f"skipped a broken checkpoint: {victim} is damaged: its hash differs from the manifest" in output
    assert "step 4 of 12" in output
    assert_same_run(folder, reference)


@pytest.mark.parametrize(
    ("number", "target"),
    [
        (signal.SIGUSR1, "rank"),
        pytest.param(signal.SIGTERM, "launcher", marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, "everyone", marks=pytest.mark.slow),
        (signal.SIGTERM, "everyone"),
        (signal.SIGINT, "launcher"),
    ],
)
def test_told_to_stop_it_saves_and_goes_on_later(
    reference: RunFolder, write_config: WriteConfig, number: signal.Signals, target: str
) -> None:
    """Whoever is signalled, both ranks save at the same step. `everyone`, as a terminal's Ctrl-C or a scheduler, includes the decoding workers
    and W&B's process."""
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


def test_weights_that_a_kill_left_out_are_never_missing(reference: RunFolder, write_config: WriteConfig) -> None:
    """A checkpoint that exists has its weights, whenever the run is killed."""
    config = write_config()
    folder = folder_of(config)
    with training(config) as process:
        wait_until(lambda: folder.checkpoint_of(8).exists(), process, poll_s=0.0005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert 8 in folder.weight_steps()

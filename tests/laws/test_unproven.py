"""A launch sets aside the last checkpoint, from which no step was taken, only if it cannot take one from it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
from lightning.pytorch import Trainer

from pipeline.errors import CheckpointError, DivergedError, PipelineError
from pipeline.launch.signals import StopRequest
from pipeline.run.checkpoint import MODEL_FILE, RunFolder, read_checkpoint
from pipeline.run.weights import read_weights_header, save_weights
from pipeline.train.callbacks.checkpointing import Checkpointing, CheckpointPolicy
from tests.conftest import run_command
from tests.helpers.run_folders import rewrite_manifest, write_checkpoint
from tests.helpers.trainings import WriteConfig, folder_of, train

POLICY = CheckpointPolicy(every_steps=4, keep_last=2, keep_every_steps=None, max_failed_saves=3)
DIVERGED, FULL = DivergedError("gradients were not finite").everywhere(), CheckpointError("disk full").everywhere()


def trainer_at(step: int, *, refused: int, first: bool = True) -> Any:
    """Return what the callback asks of a trainer when it ends: where it is, and what the optimizer has refused."""
    return SimpleNamespace(
        global_step=step,
        is_global_zero=first,
        strategy=SimpleNamespace(skipped_steps=refused, broadcast=lambda found: found, root_device="cpu"),
    )


@pytest.mark.parametrize(
    ("error", "proven", "steps", "refused", "first", "aside"),
    [
        (DIVERGED, False, 3, 3, True, True),
        (DIVERGED, True, 3, 3, True, False),  # a step was taken from it once: the data or the settings are to blame
        (DIVERGED, False, 4, 3, True, False),  # this launch has taken one
        (DIVERGED, False, 3, 3, False, False),  # another rank's business
        (FULL, False, 3, 3, True, False),
        (DivergedError("on one rank alone"), False, 3, 3, True, False),
        (ValueError("a bug"), False, 3, 3, True, False),
    ],
)
def test_it_is_set_aside_by_a_launch_that_takes_no_step_from_it(
    tmp_path: Any,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    proven: bool,
    steps: int,
    refused: int,
    first: bool,
    aside: bool,
) -> None:
    run = RunFolder(tmp_path / "run")
    write_checkpoint(run, 8)
    write_checkpoint(run, 12, proven=proven, skipped_steps=1)
    start = read_checkpoint(run.checkpoint_of(12))
    facts: Any = None  # of saves, of which there is none here
    callback = Checkpointing(run, policy=POLICY, facts=facts, stop=StopRequest(), start=start)
    begun: Trainer = trainer_at(12, refused=1, first=first)
    callback.on_train_start(begun, facts)
    callback.on_exception(trainer_at(12 + steps, refused=1 + refused, first=first), facts, error)
    assert run.checkpoint_steps() == ([8] if aside else [8, 12])
    assert (run.checkpoints / "ruined-step_00000012").exists() == aside
    assert ("no step could be taken from step 12" in capsys.readouterr().out) == aside


def test_a_launch_from_step_0_has_nothing_to_set_aside(tmp_path: Any) -> None:
    run, facts = RunFolder(tmp_path / "run"), None
    write_checkpoint(run, 0)
    callback: Any = Checkpointing(run, policy=POLICY, facts=facts, stop=StopRequest(), start=None)  # type: ignore[arg-type]
    callback.on_train_start(trainer_at(0, refused=0), None)
    callback.on_exception(trainer_at(3, refused=3), None, DIVERGED)
    assert isinstance(DIVERGED, PipelineError)
    assert run.checkpoint_steps() == [0]


@pytest.mark.slow
def test_the_same_command_goes_on_from_the_one_before(write_config: WriteConfig) -> None:
    """Finite weights give gradients which are not finite."""
    config = write_config(checkpoint={"every": "2 steps"}, trainer={"max_skipped_steps": 2})
    folder, alone = folder_of(config), "trainer.devices=1"
    train(config, alone, "trainer.max_steps=5")
    last = folder.checkpoint_of(5)
    assert not read_checkpoint(last).meta.proven
    weights, header = safetensors.torch.load_file(last / MODEL_FILE), read_weights_header(last / MODEL_FILE)
    huge = {name: 1e30 * tensor for name, tensor in weights.items()}
    save_weights(last / MODEL_FILE, huge, model=header.model, step=header.step, images_seen=header.images_seen)
    rewrite_manifest(last)
    result = run_command("train", str(config), alone)
    assert result.returncode == 2, result.stdout
    assert "no step could be taken from step 5, the last one that an earlier launch saved" in result.stdout
    assert folder.checkpoint_steps() == [4]
    assert f"resuming from {folder.checkpoint_of(4)}: step 4 of 12" in train(config, alone)

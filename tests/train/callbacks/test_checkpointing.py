"""Saves of a real training come on time, hold the right values, and survive failures."""

from __future__ import annotations

import concurrent.futures
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.distributed.votes import Votes
from pipeline.errors import CheckpointError, DivergedError
from pipeline.launch.signals import StopRequest
from pipeline.run.checkpoint import MODEL_FILE, MOMENTS_FILES, RunFolder, read_checkpoint
from pipeline.run.weights import read_weights_header
from pipeline.train.callbacks.checkpointing import Checkpointing, CheckpointPolicy
from pipeline.train.callbacks.snapshots import RunFacts
from tests.helpers.one_rank import LEARNING_RATE, fit, make_batch, make_module
from tests.helpers.run_folders import TINY

pytestmark = pytest.mark.usefixtures("rank")
Batch = dict[str, Any]
FACTS = RunFacts(model=TINY, global_batch_size=2, zero_stage=0, wandb_id="abc", data_fingerprint="f")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    return run


def make_checkpointing(
    folder: RunFolder, *, stop: StopRequest | None = None, votes: Votes | None = None, **policy: Any
) -> Checkpointing:
    settings: dict[str, Any] = {"every_steps": 2, "keep_last": 9, "keep_every_steps": None, "max_failed_saves": 2}
    return Checkpointing(
        folder,
        policy=CheckpointPolicy(**{**settings, **policy}),
        facts=FACTS,
        stop=stop or StopRequest(),
        start=None,
        votes=votes,
    )


def make_batches(count: int, *, bad: Iterable[int] = ()) -> list[Batch]:
    """Make batches for steps 1 to `count`; the optimizer refuses the bad ones."""
    return [make_batch(step, value=torch.inf if step in bad else 1.0) for step in range(1, count + 1)]


def reference(batches: list[Batch]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return weights and moments after torch's own AdamW has taken these steps."""
    model: nn.Module = make_module().model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for batch in batches:
        F.cross_entropy(model(batch["images"]), batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    moments = {
        f"{key}/{name}": optimizer.state[p][key]
        for name, p in model.named_parameters()
        for key in ("exp_avg", "exp_avg_sq")
        if batches
    }
    return {name: p.detach() for name, p in model.named_parameters()}, moments


def assert_holds(path: Path, expected: dict[str, Tensor], pattern: str) -> None:
    held: dict[str, Tensor] = {}
    for file in sorted(path.glob(pattern)):
        held |= safetensors.torch.load_file(file)
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[name], expected[name]) for name in held)


class AtStep(Callback):
    """Does something at a step's end."""

    def __init__(self, step: int, action: Any) -> None:
        self.step = step
        self.action = action

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            self.action(pl_module)


def test_checkpoints_hold_what_torchs_own_training_has_at_their_steps(folder: RunFolder) -> None:
    batches = make_batches(5)
    fit([make_checkpointing(folder)], batches, folder=folder.root, max_steps=5)
    assert folder.checkpoint_steps() == [2, 4, 5]
    assert folder.weight_steps() == [0, 2, 4, 5]
    for step in (2, 4, 5):
        masters, moments = reference(batches[:step])
        checkpoint = read_checkpoint(folder.checkpoint_of(step))
        assert_holds(checkpoint.path, masters, MODEL_FILE)
        assert_holds(checkpoint.path, moments, MOMENTS_FILES)
        assert_holds(folder.weights, masters, folder.weights_of(step).name)
        meta = checkpoint.meta
        assert (meta.step, meta.images_seen, meta.num_updates, meta.skipped_steps) == (step, 2 * step, step, 0)
        assert meta.proven == (step < 5)
        assert read_weights_header(folder.weights_of(step)).images_seen == 2 * step
    assert_holds(folder.weights, reference([])[0], folder.weights_of(0).name)
    assert json.loads(folder.complete.read_text()) == {"step": 5}


@pytest.mark.parametrize(("policy", "kept"), [({"keep_last": 2}, [6, 7]), ({"keep_last": 1, "keep_every_steps": 4}, [4, 6, 7])])
def test_old_checkpoints_go_and_their_weights_stay(policy: dict[str, int], kept: list[int], folder: RunFolder) -> None:
    """The newest proven one stays besides the last one, which is not proven."""
    fit([make_checkpointing(folder, **policy)], make_batches(7), folder=folder.root, max_steps=7)
    assert folder.checkpoint_steps() == kept
    assert folder.weight_steps() == [0, 2, 4, 6, 7]


def test_a_checkpoint_is_seen_only_after_a_step_that_began_from_it(folder: RunFolder) -> None:
    seen: list[list[int]] = []
    look = AtStep(2, lambda _: seen.append(folder.checkpoint_steps()))
    fit([make_checkpointing(folder), look], make_batches(3), folder=folder.root, max_steps=3)
    assert seen == [[]]
    assert folder.checkpoint_steps() == [2, 3]


def test_a_refused_step_saves_at_the_next_that_is_taken(folder: RunFolder) -> None:
    batches = make_batches(7, bad=[2, 3])
    fit([make_checkpointing(folder, every_steps=2)], batches, folder=folder.root, max_steps=7)
    assert folder.checkpoint_steps() == [4, 6, 7]
    meta = read_checkpoint(folder.checkpoint_of(4)).meta
    assert (meta.num_updates, meta.skipped_steps) == (2, 2)
    assert_holds(folder.checkpoint_of(4), reference([batches[0], batches[3]])[0], MODEL_FILE)


def test_a_save_from_which_no_step_was_taken_gives_way_to_the_last_one(folder: RunFolder) -> None:
    """Every step after step 2 is refused: its weights were never proven, and are those of the end."""
    fit([make_checkpointing(folder)], make_batches(4, bad=[3, 4]), folder=folder.root, max_steps=4)
    assert folder.checkpoint_steps() == [4]
    assert not read_checkpoint(folder.checkpoint_of(4)).meta.proven
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step_00000004"]  # no half of the discarded one


def test_weights_that_are_not_finite_are_not_saved(folder: RunFolder) -> None:
    def ruin(module: LightningModule) -> None:
        torch.nn.init.constant_(next(module.parameters()), torch.nan)

    with pytest.raises(
        DivergedError, match=r"step 4 is not saved: weight .* not finite.*the last sound checkpoint is that of step 2"
    ) as raised:
        fit([AtStep(4, ruin), make_checkpointing(folder)], make_batches(4), folder=folder.root, max_steps=4)
    assert raised.value.on_all_ranks
    assert folder.checkpoint_steps() == [2]
    assert folder.weight_steps() == [0, 2]
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step_00000002"]


def test_told_to_stop_it_saves_and_ends(folder: RunFolder) -> None:
    stop = StopRequest()
    checkpointing = make_checkpointing(folder, stop=stop, every_steps=100)
    callbacks = [AtStep(3, lambda _: stop.received.append("SIGTERM")), checkpointing]
    trainer = fit(callbacks, make_batches(9), folder=folder.root, max_steps=9)
    assert (trainer.global_step, checkpointing.stopped_by_signal) == (3, True)
    assert folder.checkpoint_steps() == [3]
    assert not folder.complete.exists()


def test_told_to_stop_on_a_gpu_it_saves_a_step_later(folder: RunFolder) -> None:
    stop = StopRequest()
    checkpointing = make_checkpointing(folder, stop=stop, votes=Votes("a step later"), every_steps=100)
    callbacks = [AtStep(3, lambda _: stop.received.append("SIGTERM")), checkpointing]
    trainer = fit(callbacks, make_batches(9), folder=folder.root, max_steps=9)
    assert (trainer.global_step, checkpointing.stopped_by_signal) == (4, True)
    assert_holds(folder.checkpoint_of(4), reference(make_batches(4))[0], MODEL_FILE)


def test_a_save_is_published_when_the_answer_is_about_it(folder: RunFolder) -> None:
    """An answer that is a step old knows nothing of a save that began since: to publish it would be to wait for it."""
    checkpointing = make_checkpointing(folder, votes=Votes("a step later"))
    seen: dict[int, list[int]] = {}
    look = [AtStep(step, lambda _, step=step: seen.update({step: folder.checkpoint_steps()})) for step in range(1, 9)]

    def wait(_module: LightningModule) -> None:
        if checkpointing._save is not None:
            concurrent.futures.wait([checkpointing._save.written])

    waiting = [AtStep(step, wait) for step in range(1, 9)]
    fit([checkpointing, *waiting, *look], make_batches(8), folder=folder.root, max_steps=8)
    assert seen[3] == []  # begun at the end of step 2; step 3 asks about it
    assert seen[4][:1] == [2]  # and step 4 has the answer
    assert folder.checkpoint_steps() == [2, 4, 6, 8]
    for step in (2, 4, 6, 8):
        assert_holds(folder.checkpoint_of(step), reference(make_batches(step))[0], MODEL_FILE)


def test_told_to_stop_at_the_last_step_the_run_is_complete(folder: RunFolder) -> None:
    stop = StopRequest(received=["SIGTERM"])
    checkpointing = make_checkpointing(folder, stop=stop)
    fit([checkpointing], make_batches(1), folder=folder.root, max_steps=1)
    assert not checkpointing.stopped_by_signal
    assert folder.complete.exists()


def test_a_save_that_fails_is_tried_again_at_the_next_interval(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder of checkpoints is missing for a while, as when a file system is not mounted."""
    checkpointing = make_checkpointing(folder)

    def restore(_module: LightningModule) -> None:
        if checkpointing._save is not None:
            concurrent.futures.wait([checkpointing._save.written])
        folder.checkpoints.mkdir()

    hide = AtStep(1, lambda _: folder.checkpoints.rmdir())
    fit([hide, checkpointing, AtStep(3, restore)], make_batches(5), folder=folder.root, max_steps=5)
    assert "step 2 could not be saved" in capsys.readouterr().out
    assert folder.checkpoint_steps() == [4, 5]
    assert folder.weight_steps() == [0, 4, 5]


@pytest.mark.parametrize(("max_failed_saves", "ends_at"), [(1, 2), (2, 4)])
def test_too_many_failed_saves_end_the_run(max_failed_saves: int, ends_at: int, folder: RunFolder) -> None:
    hide = AtStep(1, lambda _: shutil.rmtree(folder.checkpoints))
    with pytest.raises(CheckpointError, match=rf"step {ends_at} could not be saved.*, {max_failed_saves} in a row") as raised:
        fit(
            [hide, make_checkpointing(folder, max_failed_saves=max_failed_saves)],
            make_batches(9),
            folder=folder.root,
            max_steps=9,
        )
    assert raised.value.on_all_ranks
    assert not folder.checkpoints.exists()  # never made again: it may be a mount point


def test_the_last_save_has_no_second_chance(folder: RunFolder) -> None:
    hide = AtStep(1, lambda _: folder.checkpoints.rmdir())
    with pytest.raises(CheckpointError, match="step 3 could not be saved"):
        fit(
            [hide, make_checkpointing(folder, every_steps=100, max_failed_saves=99)],
            make_batches(3),
            folder=folder.root,
            max_steps=3,
        )
    assert not folder.complete.exists()

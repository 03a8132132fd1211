"""Decide where a launch begins, at the newest complete checkpoint or at step 0, and what it refuses to resume from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from pydantic import ValidationError

from pipeline.build.data_record import Continuity, check_data, write_record
from pipeline.build.initial import Initial, examine_initial
from pipeline.config.remarks import remarks
from pipeline.config.resolve import ResolvedRun, count_schedule_steps, describe_learning_rate, images_of_epoch, make_schedule
from pipeline.config.run import RunConfig
from pipeline.config.upgrade import upgrade
from pipeline.data.images.decode import HOW_TO_BUILD
from pipeline.data.order import ORDER_VERSION
from pipeline.distributed.precision import TrainingPrecision, choose_training_precision, measure_bf16_speedup
from pipeline.distributed.world import World, broadcast, minimum
from pipeline.errors import CheckpointError, ConfigError, PipelineError
from pipeline.files import write_whole
from pipeline.monitor.tensorboard import check_tensorboard
from pipeline.monitor.wandb_identity import settle_run
from pipeline.monitor.wandb_settings import read_wandb_environment
from pipeline.run.checkpoint import Checkpoint, RunFolder, is_lost, read_loss_history
from pipeline.run.checkpoint_search import CheckpointSearch, clear_leftovers, find_latest, set_aside
from pipeline.run.evaluations import set_weights_aside, superseded_weights
from pipeline.run.lock import RunLock
from pipeline.section import flatten, relaunch_rule


@dataclass(frozen=True)
class ResumePoint:
    """Says where a launch begins, as rank 0 decided for all."""

    checkpoint: Checkpoint | None
    wandb_id: str
    precision: TrainingPrecision
    messages: list[str]

    @property
    def step(self) -> int:
        return 0 if self.checkpoint is None else self.checkpoint.meta.step


def prepare_run_folder(run: ResolvedRun, *, world_size: int, lock: RunLock, bf16_speedup: float) -> ResumePoint:
    """Find the newest complete checkpoint and refuse what would corrupt the run. Call it on rank 0 only.

    Args:
        lock: lock of the run folder, taken before anything is read.
        bf16_speedup: speedup of the slowest rank's device.

    Raises:
        CheckpointError: the relaunch differs where it must not, every checkpoint is broken, or another training is at work.
        DataError: shards are missing or changed.
    """
    run.mixture.check_shards()
    check_tensorboard(run.config.tracking)
    folder = RunFolder(run.config.run_dir)
    check_link(folder.root)
    messages = lock.take()
    found = find_latest(folder)
    newest = found.newest
    last_launch = None if newest is None else read_last_launch(folder)  # without a checkpoint any configuration may start
    choice = choose_training_precision(
        run.config.trainer.precision,
        zero_stage=run.config.trainer.zero_stage,
        bf16_speedup=bf16_speedup,
        recorded=None if last_launch is None else recorded_precision(last_launch),
    )
    run = run.with_precision(choice.precision)
    # An error here reaches every rank. A run without W&B need not check its variables.
    asked_id = None if run.config.tracking.mode == "disabled" else read_wandb_environment().run_id
    continuity = Continuity([])
    if newest is not None and last_launch is not None:
        messages += compare_with_last_launch(run, last_launch, root=folder.root)
        messages += compare_learning_rates(run, last_launch, step=newest.meta.step)
        continuity = _check_continuity(run, newest, root=folder.root)
        messages += continuity.messages
    initial = examine_initial(run.config, resolved=run.model, class_names=run.class_names) if newest is None else None
    # Nothing is touched before this line.
    messages += _clean_up(folder, found)
    messages += _describe_beginning(run, newest, folder=folder, world_size=world_size)
    messages += [] if initial is None else initial.messages
    messages += [choice.message] if choice.message is not None else []
    messages += _describe_choices(run)
    if newest is None or newest.meta.step < run.stop_step:
        folder.complete.unlink(missing_ok=True)  # this launch has more steps to do
    _write_records(folder, run, continuity, initial)
    meta = None if newest is None else newest.meta
    wandb = settle_run(
        folder.root, wanted=asked_id, checkpoint_id=meta.wandb_id if meta else None, step=meta.step if meta else 0
    )
    return ResumePoint(checkpoint=newest, wandb_id=wandb.run_id, precision=choice.precision, messages=messages + wandb.messages)


def _write_records(folder: RunFolder, run: ResolvedRun, continuity: Continuity, initial: Initial | None) -> None:
    """Keep with the run what it is made of."""
    write_record(folder.root, run.mixture, continuity.accepted)
    if initial is not None:
        initial.write(folder)
    _write_class_names(folder, run.class_names)
    write_whole(folder.config, run.config.to_yaml().encode())


def _write_class_names(folder: RunFolder, names: Sequence[str] | None) -> None:
    """Keep the classes' names with the run: whoever reads its weights need not reach the corpus."""
    if names is None:
        folder.classes.unlink(missing_ok=True)
    else:
        write_whole(folder.classes, "".join(f"{name}\n" for name in names).encode())


def _check_continuity(run: ResolvedRun, newest: Checkpoint, *, root: Path) -> Continuity:
    """Return whether the samples and their order are those of the checkpoint."""
    check_order_version(newest)
    return check_data(
        root, run.mixture, before=newest.meta.data_fingerprint, step=newest.meta.step, accept=run.config.data.accept
    )


def _clean_up(folder: RunFolder, found: CheckpointSearch) -> list[str]:
    """Set aside what this launch does not resume from. Return what was set aside, in words."""
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)
    skipped = [
        f"skipped a {item.condition} checkpoint: {item.reason} (now {set_aside(folder, item.step, item.condition)})"
        for item in found.rejected
    ]
    return skipped + _set_weights_aside(folder, after=-1 if found.newest is None else found.newest.meta.step)


def _describe_beginning(run: ResolvedRun, newest: Checkpoint | None, *, folder: RunFolder, world_size: int) -> list[str]:
    if newest is None:
        mixture = run.mixture.describe(num_streams=run.num_streams, repeats=run.config.data.repeats)
        return [f"new run in {folder.root}: {run.total_steps} steps on {mixture}"]
    return [
        f"resuming from {newest.path}: step {newest.meta.step} of {run.total_steps}",
        *describe_other_ranks(run, newest, world_size=world_size),
        *describe_lost_loss(folder, newest),
    ]


def _describe_choices(run: ResolvedRun) -> list[str]:
    """Return what a user may not expect of this configuration here."""
    messages = []
    told = describe_learning_rate(run.config)
    if told is not None:
        messages.append(told)
    messages += remarks(run)
    if run.config.data.decoder == "auto" and run.decoder == "whole":
        messages.append(f"JPEGs are decoded whole: the faster decoder, of the same pixels, is not built here; {HOW_TO_BUILD}")
    if not run.config.evaluation.datasets:
        messages.append(
            "no evaluation sets in this configuration: give them here or to `evaluate` later, for example "
            "evaluation.datasets='[{name: cifar10, train: /data/cifar10/train, test: /data/cifar10/test}]'"
        )
    if run.stop_step < run.total_steps:
        messages.append(f"this launch ends at step {run.stop_step} (trainer.max_steps)")
    return messages


def check_link(root: Path) -> None:
    """Check that a run folder that is a link leads anywhere: one to a disk that is not mounted must not look like a new run.

    Raises:
        CheckpointError: it does not.
    """
    if root.is_symlink() and not root.exists():
        raise CheckpointError(
            f"run folder {root} is a link to {root.readlink()}, which does not exist: mount it or make it, or set "
            "another output_dir"
        )


def _set_weights_aside(folder: RunFolder, *, after: int) -> list[str]:
    """Set aside weights of an abandoned start or a later checkpoint: this launch may not train to the same ones."""
    steps = set_weights_aside(folder, after=after)
    if not steps:
        return []
    names = ", ".join(superseded_weights(folder, step).name for step in steps[:3]) + (", ..." if len(steps) > 3 else "")
    return [
        f"weights of {len(steps)} step{'s' * (len(steps) > 1)} that this launch trains again are set aside: "
        f"{folder.weights}/{names}"
    ]


def compare_with_last_launch(run: ResolvedRun, last_launch: dict[str, Any], *, root: Path) -> list[str]:
    """Return what differs from the last launch's configuration, in words; nothing where this launch is the first.

    Raises:
        CheckpointError: a difference would mix two runs in one folder.
    """
    before, now = flatten(_with_defaults(last_launch)), flatten(run.config.model_dump(mode="json"))
    changed = {key: relaunch_rule(RunConfig, key) for key in sorted(before | now) if before.get(key) != now.get(key)}
    fatal = [key for key, rule in changed.items() if rule == "fixed"]
    if fatal:
        differences = ", ".join(f"{key} (was {before.get(key)}, now {now.get(key)})" for key in fatal)
        raise CheckpointError(
            f"{root} holds a run that cannot go on with this configuration: {differences}. "
            f"Set them back, or start a new run with name=..."
        )
    return [
        f"changed since the last launch: {key} was {before.get(key)}, now {now.get(key)}"
        for key, rule in changed.items()
        if rule == "told"
    ]


def compare_learning_rates(run: ResolvedRun, last_launch: dict[str, Any], *, step: int) -> list[str]:
    """Return what a changed schedule does to the learning rate of the next step, in words; nothing where it stays.

    Args:
        last_launch: the configuration of the last launch.
        step: first step of this launch.
    """
    try:
        before = RunConfig.model_validate({**last_launch, "data": run.config.data.model_dump(mode="json")})
        steps = count_schedule_steps(before, num_samples=images_of_epoch(run.mixture, repeats=before.data.repeats))
    except (ValidationError, ConfigError):
        return ["the last launch's configuration is of another version: its learning rate is not compared with this one's"]
    old = make_schedule(before, steps)
    new = make_schedule(run.config, run.schedule_steps)
    if old(step) == new(step):
        return []
    past = f", which ended at step {steps.total}," if step >= steps.total else ""
    return [
        f"the learning rate of the next step is {new(step):.3g}; by the last launch's schedule{past} it would be "
        f"{old(step):.3g}"
    ]


def recorded_precision(last_launch: dict[str, Any]) -> TrainingPrecision | None:
    """Return the precision that the run has trained in so far; None where its configuration does not say."""
    recorded = flatten(last_launch).get("trainer.precision")
    return recorded if recorded in get_args(TrainingPrecision) else None


def read_last_launch(folder: RunFolder) -> dict[str, Any]:
    """Return the configuration that the last launch recorded, with today's keys.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        last_launch = yaml.safe_load(folder.config.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise _unreadable_config(folder, str(error)) from error
    if not isinstance(last_launch, dict):
        raise _unreadable_config(folder, "it is empty")
    return upgrade(last_launch)


def _unreadable_config(folder: RunFolder, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{folder.config} cannot be read ({reason}), so nothing says whether the checkpoints next to it belong to this "
        f"configuration; restore it (W&B keeps a copy), or start a new run with name=..."
    )


def check_order_version(checkpoint: Checkpoint) -> None:
    """Check that this software orders samples as the checkpoint's did.

    Raises:
        CheckpointError: it does not.
    """
    if checkpoint.meta.order_version != ORDER_VERSION:
        raise CheckpointError(
            f"{checkpoint.path} was saved under version {checkpoint.meta.order_version} of the sample order, this software has "
            f"version {ORDER_VERSION}; go on with the software it began with, or start a new run with name=..."
        )


def describe_other_ranks(run: ResolvedRun, checkpoint: Checkpoint, *, world_size: int) -> list[str]:
    """Return what another number of ranks changes, in words; nothing where there are as many."""
    before = checkpoint.meta.world_size
    if before == world_size:
        return []
    dropout = "; dropout draws by rank, so its masks differ from here on" if run.model.dropout > 0 else ""
    return [f"{world_size} ranks go on where {before} stopped: the same samples, sums rounded in another order{dropout}"]


def describe_lost_loss(folder: RunFolder, checkpoint: Checkpoint) -> list[str]:
    """Warn that a launch resumes after the run had lost what it learnt, and name a better step; nothing where it had not."""
    history = read_loss_history(checkpoint.path)
    if history is None or not history.is_lost:
        return []
    last = "not finite" if history.last is None else f"{history.last:.4g}"
    text = (
        f"WARNING: at step {checkpoint.meta.step} the loss was {last}, after {history.lowest:.4g}: the run has lost more than "
        f"half of what it had learnt since {history.first:.4g}"
    )
    kept = [step for step in folder.checkpoint_steps() if step < checkpoint.meta.step]
    sound = next((step for step in reversed(kept) if not is_lost(folder.checkpoint_of(step))), None)
    if sound is None:
        return [text]
    return [
        f"{text}. To go on from step {sound}, before that, stop this, move the checkpoints after it out of "
        f"{folder.checkpoints}, and lower optimizer.learning_rate or set optimizer.clip_norm"
    ]


def _with_defaults(last_launch: dict[str, Any]) -> dict[str, Any]:
    """Return the last launch's configuration, with the defaults of settings that were added since."""
    try:
        return RunConfig.model_validate(last_launch).model_dump(mode="json")
    except ValidationError:
        return last_launch  # written by another version; it is compared key by key


def agree_on_start(run: ResolvedRun, world: World, *, device: torch.device, lock: RunLock) -> ResumePoint:
    """Let rank 0 take the lock and prepare the run folder. Every rank gets its answer, or its error."""
    outcome: ResumePoint | PipelineError | None = None
    bf16_speedup = minimum(measure_bf16_speedup(device), device=device)
    if world.is_first:
        try:
            outcome = prepare_run_folder(run, world_size=world.size, lock=lock, bf16_speedup=bf16_speedup)
        except PipelineError as error:
            outcome = error
        except OSError as error:
            outcome = CheckpointError(
                f"run folder {run.config.run_dir}: {error}; set output_dir to a folder that can be written"
            )
    outcome = broadcast(outcome, device=device)
    if isinstance(outcome, PipelineError):
        raise outcome.everywhere()
    assert outcome is not None
    return outcome

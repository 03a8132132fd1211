"""Save the run: at intervals, at the end, and when a stop is requested. Training waits for a copy in memory only.

gather   all ranks put each parameter's master and moments together; each keeps its share of them  (training waits)
write    each rank writes and hashes its share in a thread                                         (training goes on)
publish  once all have written and a step that began from it was taken: weights, manifest, rename, retention

A step that the optimizer refuses saves nothing. Weights that have gone wrong are often still finite, and give gradients that
are not. So a checkpoint is published only after its weights gave finite ones, and a run that diverges keeps its last sound
checkpoint. The last save of a launch cannot wait for that. It is marked `proven: false`, stays besides the newest proven one,
and is set aside if the launch that begins from it cannot take a step. `loss_history` covers finite weights that have lost what
was learnt.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import Any, Literal, TypeVar

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from pipeline.console.lines import log_line
from pipeline.distributed.votes import Votes
from pipeline.errors import CheckpointError, DivergedError, PipelineError
from pipeline.files import write_whole
from pipeline.launch.signals import StopRequest
from pipeline.run.checkpoint import AVERAGE_FILE, Checkpoint, RunFolder, delete_old, publish
from pipeline.run.checkpoint_search import name_tensors, set_aside
from pipeline.run.weights import save_weights
from pipeline.train.callbacks.snapshots import (
    Entries,
    NotFinite,
    RunFacts,
    discard_weights,
    gather_weights,
    link_or_copy,
    publish_weights,
    take_snapshot,
    write_share,
)
from pipeline.train.callbacks.steps import StepCallback

T = TypeVar("T")


@dataclass(frozen=True)
class CheckpointPolicy:
    """Says when to save and what to keep, in optimizer steps."""

    every_steps: int
    keep_last: int
    keep_every_steps: int | None
    max_failed_saves: int


@dataclass(frozen=True)
class Save:
    """Describes a checkpoint that is being written."""

    step: int
    taken_steps: int  # steps up to here without those that the optimizer refused
    begun_at: float
    blocked_s: float
    written: Future[Entries | NotFinite]


class Checkpointing(StepCallback):
    """Writes complete-or-absent checkpoints and plain weights, on all ranks together.

    Weights of the step a launch starts from are written too where they are missing: step 0 of a new run.

    Args:
        start: what the launch resumes from.
        votes: asks the ranks at each step; of its own kind only in tests.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        policy: CheckpointPolicy,
        facts: RunFacts,
        stop: StopRequest,
        start: Checkpoint | None,
        votes: Votes | None = None,
    ) -> None:
        self._votes = votes or Votes()
        self.folder = folder
        self.policy = policy
        self.facts = facts
        self.stop = stop
        self.start = start
        self.stopped_by_signal = False
        self._saved_step: int | None = None
        self._save: Save | None = None
        self._is_due = False
        self._refused_steps = 0  # number of steps that the optimizer refused, up to the last step
        self._first_taken = 0  # steps taken when the launch began
        self._sound_step: int | None = None  # the newest checkpoint from which a step was taken
        self._cleaning: Future[list[int]] | None = None
        self._failed_in_a_row = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step
        self._refused_steps = _refused_steps(trainer)
        self._first_taken = trainer.global_step - self._refused_steps
        if trainer.strategy.broadcast(not self.folder.weights_of(trainer.global_step).exists()):
            self._write_first_weights(trainer, trainer.global_step)

    def on_step_end(self, trainer: Trainer, step: int, batch: Any, outputs: Any) -> None:
        refused_before, self._refused_steps = self._refused_steps, _refused_steps(trainer)
        was_taken = self._refused_steps == refused_before
        if was_taken and self._sound_step is None and self.start is not None:
            self._sound_step = self.start.meta.step
        # One signalled rank stops all ranks. One that still writes makes all ranks wait for the next step's end.
        is_writing = self._save is not None and not self._save.written.done()
        answer = self._votes.ask(self.stop.is_set, is_writing, about=self._save, device=trainer.strategy.root_device)
        told_to_stop, writing = answer.facts
        if not writing and answer.about is self._save and self._is_proven(trainer):
            self._finish(trainer)
        is_last = told_to_stop or step == trainer.max_steps
        self._is_due = self._is_due or step % self.policy.every_steps == 0
        if is_last:
            self._save_last(trainer, step)
        elif self._is_due and was_taken:
            self._is_due = False
            self._begin(trainer, step, proven=True)
        if told_to_stop:
            self.stopped_by_signal = step != trainer.max_steps
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report_cleaning()
        if trainer.is_global_zero and trainer.global_step == trainer.max_steps:
            mark_complete(self.folder, trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Publish what is proven, and set aside what gave no step, also after an error that all ranks raise together."""
        if not isinstance(exception, PipelineError) or not exception.on_all_ranks:
            return
        if self._is_proven(trainer):
            self._finish(trainer)
        gave_nothing = trainer.global_step - _refused_steps(trainer) == self._first_taken
        if (
            isinstance(exception, DivergedError)
            and trainer.is_global_zero
            and gave_nothing
            and self.start is not None
            and not self.start.meta.proven
        ):
            path = set_aside(self.folder, self.start.meta.step, "ruined")
            log_line(
                f"[checkpoint] no step could be taken from step {self.start.meta.step}, the last one that an earlier launch "
                f"saved: it is now {path}, and the same command resumes from the checkpoint before it"
            )

    def _is_proven(self, trainer: Trainer) -> bool:
        """Return whether a step was taken from a save in progress; the same on every rank."""
        return self._save is not None and trainer.global_step - _refused_steps(trainer) > self._save.taken_steps

    def _save_last(self, trainer: Trainer, step: int) -> None:
        """Save where a launch ends, refused or not: the next one resumes from it."""
        if self._is_proven(trainer):
            self._finish(trainer)
        elif self._save is not None:  # every step since was refused: the weights are the same
            self._drop(trainer, self._save)
            self._save = None
        self._begin(trainer, step, proven=False)
        self._finish(trainer, on_failure="end")

    def _begin(self, trainer: Trainer, step: int, *, proven: bool) -> None:
        """Gather, and start to write. This is a collective."""
        self._finish(trainer)  # the previous save, if it takes longer than the interval
        if step == self._saved_step:
            return
        begun_at = time.perf_counter()
        if trainer.is_global_zero:
            self._remove_staged(step)  # left by a failed attempt
        trainer.strategy.barrier()
        snapshot = take_snapshot(trainer, step, facts=self.facts, proven=proven)
        name = f"moments-{trainer.global_rank:05d}-of-{trainer.world_size:05d}.safetensors"
        written = _in_background(functools.partial(write_share, snapshot, folder=self.folder, facts=self.facts, name=name))
        self._save = Save(
            step=step,
            taken_steps=step - self._refused_steps,
            begun_at=begun_at,
            blocked_s=time.perf_counter() - begun_at,
            written=written,
        )

    def _finish(self, trainer: Trainer, *, on_failure: Literal["go on", "end"] = "go on") -> None:
        """Wait for all ranks' files and make the checkpoint visible, or discard it. This is a collective.

        Args:
            on_failure: the same on every rank; failures are still limited.

        Raises:
            CheckpointError: it cannot be written, and it was the last one or one too many in a row.
            DivergedError: it holds values that are not finite.
        """
        save, self._save = self._save, None
        if save is None:
            return
        parts: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(parts, _outcome(save.written))
        self._refuse_ruined(trainer, save, parts)
        problems = [f"rank {rank}: {part}" for rank, part in enumerate(parts) if isinstance(part, str)]
        if not problems and trainer.is_global_zero:
            problems = self._publish(save, {name: entry for part in parts for name, entry in sorted(part.items())}, trainer)
        problems = trainer.strategy.broadcast(problems)
        if problems:
            self._give_up(trainer, save, problems, on_failure=on_failure)
            return
        if self._is_newer_taken(trainer, save):
            self._sound_step = save.step
        self._saved_step, self._failed_in_a_row = save.step, 0

    def _is_newer_taken(self, trainer: Trainer, save: Save) -> bool:
        return trainer.global_step - _refused_steps(trainer) > save.taken_steps

    def _refuse_ruined(self, trainer: Trainer, save: Save, parts: list[Any]) -> None:
        ruined = sorted({name for part in parts if isinstance(part, NotFinite) for name in part.names})
        if not ruined:
            return
        self._drop(trainer, save)
        last = (
            f"the last sound checkpoint is that of step {self._saved_step}"
            if self._saved_step
            else "there is no checkpoint yet"
        )
        raise DivergedError(
            f"step {save.step} is not saved: {name_tensors(ruined)} not finite, which no later step mends; {last}. "
            f"Lower optimizer.learning_rate or set optimizer.clip_norm; the same command then resumes from there"
        ).everywhere()

    def _publish(self, save: Save, manifest: Entries, trainer: Trainer) -> list[str]:
        """Publish the weights, then the checkpoint, which so always has them; on rank 0 only. Return what failed, in words."""
        try:
            publish_weights(self.folder, save.step)
            publish(self.folder.staging_of(save.step), self.folder.checkpoint_of(save.step), manifest=manifest)
        except OSError as error:
            return [f"rank 0: {error}"]
        total_s = time.perf_counter() - save.begun_at
        size = sum(entry["bytes"] for entry in manifest.values()) / 2**30
        log_line(
            f"[checkpoint] step {save.step}: {size:.3g} GiB in {total_s:.3g} s, of which training waited {save.blocked_s:.3g} s"
        )
        self._report_cleaning()
        sound = save.step if self._is_newer_taken(trainer, save) else self._sound_step
        keep = functools.partial(
            delete_old,
            self.folder,
            newest=save.step,
            sound=sound,
            keep_last=self.policy.keep_last,
            keep_every_steps=self.policy.keep_every_steps,
        )
        self._cleaning = _in_background(keep)
        return []

    def _report_cleaning(self) -> None:
        """Wait for the last deletion of old checkpoints. A failure costs only space: the next launch repeats the deletion."""
        cleaning, self._cleaning = self._cleaning, None
        if cleaning is not None and isinstance(problem := _outcome(cleaning), str):
            log_line(f"[checkpoint] an old checkpoint could not be deleted: {problem}")

    def _give_up(self, trainer: Trainer, save: Save, problems: list[str], *, on_failure: Literal["go on", "end"]) -> None:
        if trainer.is_global_zero:
            self._remove_staged(save.step)
        self._failed_in_a_row += 1
        told = f"step {save.step} could not be saved to {self.folder.checkpoints} ({'; '.join(problems)})"
        if on_failure == "end" or self._failed_in_a_row >= self.policy.max_failed_saves:
            raise CheckpointError(
                f"{told}, {self._failed_in_a_row} in a row; make room there, then the same command resumes from the "
                "last checkpoint"
            ).everywhere()
        if trainer.is_global_zero:
            log_line(f"[checkpoint] {told}; training continues and retries at the next interval")

    def _drop(self, trainer: Trainer, save: Save) -> None:
        """Remove a save. This is a collective: no rank may still write."""
        _outcome(save.written)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._remove_staged(save.step)

    def _remove_staged(self, step: int) -> None:
        shutil.rmtree(self.folder.staging_of(step), ignore_errors=True)
        discard_weights(self.folder, step)

    def _write_first_weights(self, trainer: Trainer, step: int) -> None:
        masters = gather_weights(trainer)
        problem = ""
        if trainer.is_global_zero:
            try:
                self._write_weights(masters, step=step)
            except OSError as error:
                problem = str(error)
        problem = trainer.strategy.broadcast(problem)
        if problem:
            raise CheckpointError(f"weights of step {step} could not be written: {problem}").everywhere()

    def _write_weights(self, masters: dict[str, Tensor], *, step: int) -> None:
        images_seen = step * self.facts.global_batch_size
        save_weights(self.folder.weights_of(step), masters, model=self.facts.model, step=step, images_seen=images_seen)
        average = None if self.start is None else self.start.path / AVERAGE_FILE  # that of step 0 is step 0's weights
        if average is not None and average.exists():
            link_or_copy(average, self.folder.weights_of(step, "average"))


def mark_complete(folder: RunFolder, step: int) -> None:
    """Record that the run has reached its last step: evaluators wait for this."""
    write_whole(folder.complete, json.dumps({"step": step}))


def _refused_steps(trainer: Trainer) -> int:
    strategy: Any = trainer.strategy
    return strategy.skipped_steps


def _in_background(work: Callable[[], T]) -> Future[T]:
    """Run a function in a thread that does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # passed to the caller that reads the result
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _outcome(future: Future[Any]) -> Any:
    """Wait for a task. Return its result, or in words what the file system refused."""
    try:
        return future.result()
    except OSError as error:
        return str(error)

"""Make the callbacks that act at each step of a training, in the order in which they act."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback

from pipeline.build.loggers import Loggers
from pipeline.config.resolve import ResolvedRun
from pipeline.distributed.hardware import peak_flops
from pipeline.distributed.world import World, device_of
from pipeline.run.folder import RunFolder
from pipeline.run.live_files import LiveFiles
from pipeline.train.callbacks.checkpointing import Checkpointing
from pipeline.train.callbacks.hangs import WatchStep, WatchWaiting
from pipeline.train.callbacks.heartbeat import Heartbeat, Identity
from pipeline.train.callbacks.metrics import TrainingMetrics
from pipeline.train.callbacks.progress_bar import ProgressBar
from pipeline.train.callbacks.stops import StopOnNonFinite, StopOnUnreadable
from pipeline.train.callbacks.stragglers import RankTimes
from pipeline.train.watchdog import Watchdog


def make_callbacks(
    run: ResolvedRun, *, world: World, start_step: int, loggers: Loggers, checkpointing: Checkpointing
) -> list[Callback]:
    """Return the callbacks of this rank.

    A line of metrics is made before the callbacks that read it. A heartbeat says that a step has ended once it is saved.
    """
    config = run.config
    files = LiveFiles(RunFolder(config.run_dir)) if world.is_first else None
    rank_times = RankTimes(zero_stage=config.trainer.zero_stage, files=files)
    metrics = _make_metrics(run, world=world, rank_times=rank_times)
    callbacks = [
        rank_times,
        metrics,
        ProgressBar(metrics, total_steps=run.stop_step),
        StopOnUnreadable(metrics, budget=config.data.unreadable_budget),
        StopOnNonFinite(max_skipped_steps=config.trainer.max_skipped_steps),
        checkpointing,
        Heartbeat(
            RunFolder(config.run_dir),
            identity=_identity(run, world),
            start_step=start_step,
            files=files,
            stop=checkpointing.stop,
            notices=loggers.notices,
        ),
    ]
    return _watched(callbacks, run=run, world=world)


def _make_metrics(run: ResolvedRun, *, world: World, rank_times: RankTimes) -> TrainingMetrics:
    config = run.config
    dtype = torch.float32 if run.precision == "fp32" else torch.bfloat16
    peak = config.trainer.peak_tflops * 1e12 if config.trainer.peak_tflops else peak_flops(device_of(world), dtype=dtype)
    return TrainingMetrics(
        metrics=config.objective.metrics(run.model),
        global_batch_size=config.trainer.global_batch_size,
        epochs_per_image=run.mixture.epochs_per_image(num_streams=run.num_streams, repeats=run.config.data.repeats),
        log_every=config.tracking.log_every,
        flops_per_image=run.model.cost.training_flops,
        peak_flops=None if peak is None else peak * world.size,
        rank_times=rank_times,
    )


def _identity(run: ResolvedRun, world: World) -> Identity:
    return Identity(
        total_steps=run.stop_step,
        global_batch_size=run.config.trainer.global_batch_size,
        world_size=world.size,
        num_nodes=world.num_nodes,
        slurm_job_id=world.slurm_job_id,
    )


def _watched(callbacks: list[Callback], *, run: ResolvedRun, world: World) -> list[Callback]:
    """Put the watchdog's callbacks around the others, where hangs are to be ended."""
    timeout_s = run.config.trainer.hang_timeout_s
    if timeout_s is None:
        return callbacks
    watchdog = Watchdog(timeout_s=timeout_s, rank=world.rank, folder=RunFolder(run.config.run_dir).hangs)
    return [WatchStep(watchdog), *callbacks, WatchWaiting(watchdog)]

"""The only wiring: a configuration in, running objects out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from pipeline.build.resume import ResumePoint
from pipeline.build.streams import make_remote_options, make_stream
from pipeline.config.resolve import ResolvedRun, make_schedule
from pipeline.config.run import RunConfig
from pipeline.console.lines import log_line
from pipeline.data.streams.datamodule import StreamDataModule
from pipeline.distributed.hardware import peak_flops
from pipeline.distributed.world import World
from pipeline.evaluation.runner import Evaluator
from pipeline.launch.cores import threads_of_a_rank
from pipeline.launch.signals import StopRequest
from pipeline.models.base import Backbone, ModelConfig
from pipeline.monitor.loggers import MetricsFile, RunIdentity, WandbTracker, make_wandb_logger
from pipeline.monitor.wandb_identity import settle_run
from pipeline.monitor.wandb_settings import read_wandb_environment
from pipeline.run.checkpoint import MODEL_FILE, RunFolder, collect_versions
from pipeline.run.live_files import LiveFiles
from pipeline.run.records import read_metrics
from pipeline.run.weights import load_tensors
from pipeline.train.callbacks.checkpointing import Checkpointing, CheckpointPolicy
from pipeline.train.callbacks.hangs import WatchStep, WatchWaiting
from pipeline.train.callbacks.heartbeat import Heartbeat, Identity
from pipeline.train.callbacks.metrics import TrainingMetrics
from pipeline.train.callbacks.snapshots import RunFacts
from pipeline.train.callbacks.stops import StopOnNonFinite
from pipeline.train.callbacks.stragglers import RankTimes
from pipeline.train.module import PretrainModule
from pipeline.train.watchdog import Watchdog
from pipeline.train.zero import ZeroStrategy, deepspeed_config


def make_model(config: ModelConfig, *, seed: int) -> Backbone:
    """A freshly initialised model; the same on every rank."""
    model = config.build()
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def device_of(world: World) -> torch.device:
    """This rank's device."""
    return torch.device("cuda", world.local_rank) if torch.cuda.is_available() else torch.device("cpu")


@dataclass(frozen=True)
class Training:
    """Everything `fit` needs."""

    trainer: Trainer
    module: PretrainModule
    data: StreamDataModule
    checkpointing: Checkpointing
    start: ResumePoint

    def run(self) -> None:
        """Train to the end, or until a signal asks it to stop."""
        path = self.start.checkpoint.path if self.start.checkpoint else None
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=path, weights_only=False)


def make_training(run: ResolvedRun, *, world: World, stop: StopRequest, start: ResumePoint) -> Training:
    """Wire a training up. The process group exists already."""
    config = run.config
    if "OMP_NUM_THREADS" not in os.environ:  # else torch has taken that
        share = threads_of_a_rank(local_size=world.local_size, has_own_cores=world.launcher in ("slurm", "mpi"))
        torch.set_num_threads(1 if torch.cuda.is_available() else share)
    if not torch.cuda.is_available():
        # The fused attention's bf16 backward is three times slower on CPU than the plain one, which also computes in fp32.
        torch.backends.cuda.enable_flash_sdp(False)
    model = make_model(run.model, seed=config.seed)
    if start.checkpoint is not None:  # before ZeRO cuts it up; the exact masters follow in `ZeroStrategy.load_checkpoint`
        load_tensors(model, start.checkpoint.path / MODEL_FILE)
    if config.trainer.compile:
        model.compile()
    module = PretrainModule(
        model=model,
        loss=config.objective.build(num_classes=config.model.num_classes),
        make_optimizer=lambda m: config.optimizer.build(m, fused=torch.cuda.is_available()),
        schedule=make_schedule(config, total_steps=run.total_steps, warmup_steps=run.warmup_steps),
        seed=config.seed,
    )
    checkpointing = _make_checkpointing(run, stop=stop, start=start)
    return Training(
        trainer=_make_trainer(run, world=world, start=start, checkpointing=checkpointing),
        module=module,
        data=StreamDataModule(
            make_stream(run, world=world, start_step=start.step),
            num_workers=config.data.num_workers,
            prefetch=config.data.prefetch,
        ),
        checkpointing=checkpointing,
        start=start,
    )


def _make_checkpointing(run: ResolvedRun, *, stop: StopRequest, start: ResumePoint) -> Checkpointing:
    config = run.config
    return Checkpointing(
        RunFolder(config.run_dir),
        policy=CheckpointPolicy(
            every_steps=run.checkpoint_steps,
            keep_last=config.checkpoint.keep_last,
            keep_every_steps=run.keep_every_steps,
            max_failed_saves=config.checkpoint.max_failed_saves,
        ),
        facts=RunFacts(
            model=run.model,
            global_batch_size=config.trainer.global_batch_size,
            zero_stage=config.trainer.zero_stage,
            wandb_id=start.wandb_id,
            data_fingerprint=run.mixture.fingerprint,
        ),
        stop=stop,
        start=start.checkpoint,
    )


def _make_metrics(run: ResolvedRun, *, world: World, rank_times: RankTimes, heartbeat: Heartbeat) -> TrainingMetrics:
    config = run.config
    dtype = torch.float32 if run.precision == "fp32" else torch.bfloat16
    peak = config.trainer.peak_tflops * 1e12 if config.trainer.peak_tflops else peak_flops(device_of(world), dtype=dtype)
    return TrainingMetrics(
        metrics=config.objective.metrics(num_classes=config.model.num_classes),
        global_batch_size=config.trainer.global_batch_size,
        epochs_per_image=run.mixture.epochs_per_image(num_streams=run.num_streams),
        total_steps=run.stop_step,
        log_every=config.tracking.log_every,
        flops_per_image=run.model.cost.training_flops,
        peak_flops=None if peak is None else peak * world.size,
        unreadable_budget=config.data.unreadable_budget,
        rank_times=rank_times,
        heartbeat=heartbeat,
    )


def _make_heartbeat(
    run: ResolvedRun,
    *,
    world: World,
    start: ResumePoint,
    stop: StopRequest,
    files: LiveFiles | None,
    tracker: WandbTracker | None,
) -> Heartbeat:
    identity = Identity(
        total_steps=run.stop_step,
        global_batch_size=run.config.trainer.global_batch_size,
        world_size=world.size,
        num_nodes=world.num_nodes,
        slurm_job_id=world.slurm_job_id,
    )
    return Heartbeat(
        RunFolder(run.config.run_dir),
        identity=identity,
        start_step=start.step,
        files=files,
        stop=stop,
        send_alert=tracker.writer.alert if tracker else lambda _title, _text: None,
        wandb_off=lambda: tracker.writer.off if tracker else None,
    )


def _watched(callbacks: list[Callback], *, run: ResolvedRun, world: World) -> list[Callback]:
    """Callbacks with the watchdog's around them, where hangs are to be ended."""
    timeout_s = run.config.trainer.hang_timeout_s
    if timeout_s is None:
        return callbacks
    watchdog = Watchdog(timeout_s=timeout_s, rank=world.rank, folder=RunFolder(run.config.run_dir).hangs)
    return [WatchStep(watchdog), *callbacks, WatchWaiting(watchdog)]


def _make_trainer(run: ResolvedRun, *, world: World, start: ResumePoint, checkpointing: Checkpointing) -> Trainer:
    config = run.config
    folder = RunFolder(config.run_dir)
    record = {
        **_describe_run(config, folder, run.model),
        "world_size": world.size,
        "num_nodes": world.num_nodes,
        "slurm_job_id": world.slurm_job_id,
    }
    wandb_logger = None
    if world.is_first:
        history = [row for row in read_metrics(folder.metrics) if row["step"] <= start.step]
        wandb_logger = make_wandb_logger(
            make_run_identity(config, run_id=start.wandb_id, folder=folder), config=record, history=history
        )
    files = LiveFiles(folder) if world.is_first else None
    heartbeat = _make_heartbeat(run, world=world, start=start, stop=checkpointing.stop, files=files, tracker=wandb_logger)
    rank_times = RankTimes(zero_stage=config.trainer.zero_stage, files=files)
    strategy = ZeroStrategy(
        config=deepspeed_config(
            zero_stage=config.trainer.zero_stage,
            precision=run.precision,
            micro_batch_size=run.micro_batch_size,
            clip_norm=config.optimizer.clip_norm,
        ),
        precision=run.precision,
        clip_norm=config.optimizer.clip_norm,
    )
    trainer = Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=world.local_size,
        num_nodes=world.num_nodes,
        strategy=strategy,
        max_steps=run.stop_step,
        max_epochs=-1,
        accumulate_grad_batches=run.accumulation_steps,
        logger=[logger for logger in (MetricsFile(folder.metrics), wandb_logger) if logger is not None],
        callbacks=_watched(
            [
                rank_times,
                _make_metrics(run, world=world, rank_times=rank_times, heartbeat=heartbeat),
                StopOnNonFinite(max_skipped_steps=config.trainer.max_skipped_steps),
                checkpointing,
                heartbeat,
            ],
            run=run,
            world=world,
        ),
        # Checkpoints, progress and sampling are ours.
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=max(1, config.tracking.log_every),
        default_root_dir=str(folder.root),
    )
    # Lightning's SIGTERM handler runs a collective inside the handler; ours, which only notes the signal, stays in place.
    trainer._signal_connector.register_signal_handlers = lambda: None
    return trainer


def make_evaluator(folder: RunFolder, config: RunConfig) -> Evaluator:
    """The evaluator of a run folder, which may have moved since the run's configuration was written."""
    # Created again if lost: results still belong in evaluations.jsonl.
    asked_id = None if config.tracking.mode == "disabled" else read_wandb_environment().run_id
    wandb = settle_run(folder.root, wanted=asked_id, checkpoint_id=None, step=max(folder.weight_steps(), default=0))
    for message in wandb.messages:
        log_line(f"[eval] {message}")
    return Evaluator(
        folder,
        section=config.evaluation,
        identity=make_run_identity(config, run_id=wandb.run_id, folder=folder),
        record={**_describe_run(config, folder, config.model.resolve()), "slurm_job_id": World.from_environment().slurm_job_id},
        remote=make_remote_options(config.data),
    )


def _describe_run(config: RunConfig, folder: RunFolder, model: ModelConfig) -> dict[str, Any]:
    """What W&B keeps as a run's configuration."""
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in model.build().parameters())
    return {
        **config.model_dump(mode="json"),
        "versions": collect_versions(),
        "run_dir": str(folder.root.resolve()),
        "checkpoints": str(folder.checkpoints.resolve()),
        "model_resolved": {"family": model.family, **model.to_dict()},
        "parameters": parameters,
    }


def make_run_identity(config: RunConfig, *, run_id: str, folder: RunFolder) -> RunIdentity:
    """The W&B run of a configuration."""
    tracking = config.tracking
    return RunIdentity(
        name=config.name,
        run_id=run_id,
        folder=folder.root,
        project=tracking.project,
        entity=tracking.entity,
        mode=tracking.mode,
    )

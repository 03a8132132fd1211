"""Wire a training: a configuration in, running objects out."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer

from pipeline.build.callbacks import make_callbacks
from pipeline.build.initial import begin, make_model, open_initial
from pipeline.build.loggers import make_loggers
from pipeline.build.resume import ResumePoint
from pipeline.build.streams import make_stream
from pipeline.config.resolve import ResolvedRun, make_schedule
from pipeline.console.lines import log_line
from pipeline.data.streams.datamodule import StreamDataModule
from pipeline.distributed.world import World, device_of
from pipeline.launch.cores import threads_of_a_rank
from pipeline.launch.signals import StopRequest
from pipeline.run.checkpoint import MODEL_FILE, RunFolder
from pipeline.run.weights import load_tensors, read_weights_header
from pipeline.train.attention import use_attention
from pipeline.train.blocks import prepare_blocks
from pipeline.train.callbacks.checkpointing import Checkpointing, CheckpointPolicy
from pipeline.train.callbacks.snapshots import RunFacts
from pipeline.train.module import PretrainModule
from pipeline.train.zero import ZeroStrategy, deepspeed_config


@dataclass(frozen=True)
class Training:
    """Holds everything that `fit` needs."""

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
    if "OMP_NUM_THREADS" not in os.environ:  # otherwise torch has read it
        share = threads_of_a_rank(local_size=world.local_size, has_own_cores=world.launcher in ("slurm", "mpi"))
        torch.set_num_threads(1 if torch.cuda.is_available() else share)
    device = device_of(world)
    use_attention(config.trainer.attention, device=device)
    model = make_model(run.model, seed=config.seed)
    objective = config.objective.build(run.model, seed=config.seed, class_names=run.class_names)
    objective.init_weights(config.seed)
    if start.checkpoint is not None:  # before ZeRO cuts it up; the exact masters follow in `ZeroStrategy.load_checkpoint`
        path = start.checkpoint.path / MODEL_FILE
        read_weights_header(path)  # refuses those of a model that another version of a library defines
        load_tensors(model, path, objective=objective)
    elif (weights := open_initial(config)) is not None:
        begin(weights, model, config, resolved=run.model)
    is_even = config.trainer.global_batch_size == world.size * run.accumulation_steps * run.micro_batch_size
    for line in prepare_blocks(model, config.trainer, device=device, is_even=is_even):
        if world.is_first:
            log_line(f"[run] {line}")
    module = PretrainModule(
        model=model,
        objective=objective,
        make_optimizer=lambda m: config.optimizer.build(m, objective, fused=True, peak=config.peak_learning_rate),
        schedule=make_schedule(config, run.schedule_steps),
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


def _make_strategy(run: ResolvedRun) -> ZeroStrategy:
    config = run.config
    return ZeroStrategy(
        config=deepspeed_config(
            zero_stage=config.trainer.zero_stage,
            precision=run.precision,
            micro_batch_size=run.micro_batch_size,
            clip_norm=config.optimizer.clip_norm,
            reduce_bucket_size=config.trainer.reduce_bucket_size,
            overlap_comm=config.trainer.overlap_comm,
        ),
        precision=run.precision,
        clip_norm=config.optimizer.clip_norm,
    )


def _make_trainer(run: ResolvedRun, *, world: World, start: ResumePoint, checkpointing: Checkpointing) -> Trainer:
    config = run.config
    loggers = make_loggers(run, world=world, start_step=start.step, wandb_id=start.wandb_id)
    trainer = Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=world.local_size,
        num_nodes=world.num_nodes,
        strategy=_make_strategy(run),
        max_steps=run.stop_step,
        max_epochs=-1,
        accumulate_grad_batches=run.accumulation_steps,
        logger=loggers.in_order(),
        callbacks=make_callbacks(run, world=world, start_step=start.step, loggers=loggers, checkpointing=checkpointing),
        # We make checkpoints, progress and sampling ourselves.
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=max(1, config.tracking.log_every),
        default_root_dir=str(config.run_dir),
    )
    # Lightning's SIGTERM handler runs a collective inside the handler. Ours, which only notes the signal, stays in place.
    trainer._signal_connector.register_signal_handlers = lambda: None
    # Before each batch it asks rank 0 what that handler noted, and waits for the device to know (Lightning's issue 21487).
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer

"""The only wiring: a configuration in, running objects out."""

from __future__ import annotations

import functools
import math
import os
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer

from pipeline.callbacks.checkpointing import Checkpointing, CheckpointPolicy, RunFacts
from pipeline.callbacks.guard import FiniteGuard
from pipeline.callbacks.metrics import TrainingMetrics
from pipeline.checkpoint import (
    Checkpoint,
    RunFolder,
    clear_leftovers,
    collect_versions,
    find_latest,
    set_aside,
    write_atomically,
)
from pipeline.config import ModelSection, RunConfig
from pipeline.data.augment import TrainTransform
from pipeline.data.datamodule import StreamDataModule
from pipeline.data.index import ShardIndex, check_shards, load_index
from pipeline.data.order import SampleOrder
from pipeline.data.stream import Division, TrainStream
from pipeline.errors import CheckpointError, ConfigError, PipelineError
from pipeline.evaluation.runner import Evaluator
from pipeline.functional.losses import one_hot_targets, sigmoid_cross_entropy, softmax_cross_entropy
from pipeline.functional.schedules import learning_rate
from pipeline.hardware import peak_flops
from pipeline.interruption import StopRequest
from pipeline.models.vit import VisionTransformer, ViTConfig
from pipeline.models.zoo import parse_name, training_flops_per_image
from pipeline.optim import GuardedAdamW, parameter_groups
from pipeline.strategy import ZeroStrategy, deepspeed_config
from pipeline.tracking import MetricsFile, RunIdentity, make_wandb_logger, read_metrics
from pipeline.train_module import LossFunction, PretrainModule
from pipeline.world import World, broadcast

SIGMOID_HEAD_BIAS = -10.0  # google-research/vision_transformer, issue #34
# Sections whose change would make a resumed run neither the old one nor the new.
FIXED_KEYS = (
    "seed", "model", "loss", "optimizer.betas", "optimizer.eps", "optimizer.decayed", "optimizer.weight_decay", "optimizer.clip_norm", "trainer.global_batch_size",
    "trainer.zero_stage", "trainer.precision", "data.num_streams", "data.min_area", "data.max_area", "data.min_ratio",
    "data.max_ratio", "data.flip", "data.resize",
)  # fmt: skip
# What may differ between two launches without a word.
FREE_KEYS = (
    "data.num_workers",
    "data.prefetch",
    "trainer.devices",
    "trainer.max_steps",
    "tracking",
    "evaluation",
    "trainer.peak_tflops",
)


@dataclass(frozen=True)
class Plan:
    """A configuration made concrete: checked, and counted in steps."""

    config: RunConfig
    model: ViTConfig
    index: ShardIndex
    total_steps: int
    warmup_steps: int
    stop_step: int
    checkpoint_steps: int
    keep_every_steps: int | None
    accumulation_steps: int
    micro_batch_size: int


def make_model_config(section: ModelSection, *, head_bias: float = 0.0) -> ViTConfig:
    """The model a section names.

    Raises:
        ConfigError: unknown name, or an image size or width that does not divide.
    """
    shape, patch_size = parse_name(section.name)
    if section.image_size % patch_size:
        below = section.image_size // patch_size * patch_size
        near = f"{below} or {below + patch_size}" if below else f"{patch_size}"
        raise ConfigError(
            f"model.image_size={section.image_size} is not divisible by the patch size {patch_size} of {section.name}; use {near}"
        )
    width, num_heads = section.width or shape.width, section.num_heads or shape.num_heads
    if width % num_heads:
        raise ConfigError(f"model.width={width} is not divisible by model.num_heads={num_heads}")
    return ViTConfig(
        image_size=section.image_size,
        patch_size=patch_size,
        width=width,
        depth=section.depth or shape.depth,
        mlp_dim=section.mlp_dim or (shape.mlp_dim if section.width is None else 4 * width),
        num_heads=num_heads,
        num_classes=section.num_classes,
        representation_size=width if section.representation == "tanh" else None,
        dropout=section.dropout,
        head_bias=head_bias,
    )


def make_plan(config: RunConfig, *, world_size: int) -> Plan:
    """Check a configuration against its data and the number of ranks, before anything expensive starts.

    Raises:
        ConfigError: numbers that do not fit together.
        DataError: no index.
    """
    model = make_model_config(config.model, head_bias=SIGMOID_HEAD_BIAS if config.loss.name == "sigmoid" else 0.0)
    index = load_index(config.data.train)
    batch = config.trainer.global_batch_size
    to_steps = functools.partial(_to_steps, global_batch_size=batch, num_samples=index.num_samples)
    total, warmup = to_steps(config.trainer.duration, "trainer.duration"), to_steps(config.schedule.warmup, None)
    if warmup >= total:
        raise ConfigError(
            f"schedule.warmup={config.schedule.warmup} is {warmup} steps, but the whole run ({config.trainer.duration} of "
            f"{index.num_samples} images in batches of {batch}) has {total}; shorten schedule.warmup or lengthen trainer.duration"
        )
    accumulation = _accumulation_steps(config, world_size=world_size)
    keep_every = config.checkpoint.keep_every
    return Plan(
        config=config,
        model=model,
        index=index,
        total_steps=total,
        warmup_steps=warmup,
        stop_step=min(total, config.trainer.max_steps or total),
        checkpoint_steps=to_steps(config.checkpoint.every, "checkpoint.every"),
        keep_every_steps=None if keep_every is None else to_steps(keep_every, "checkpoint.keep_every"),
        accumulation_steps=accumulation,
        micro_batch_size=batch // (world_size * accumulation),
    )


def _to_steps(duration: Any, key: str | None, *, global_batch_size: int, num_samples: int) -> int:
    steps = duration.to_steps(global_batch_size=global_batch_size, num_samples=num_samples)
    if key is not None and steps < 1:
        raise ConfigError(f"{key}={duration} is less than one step of {global_batch_size} images; make it longer")
    return steps


def _accumulation_steps(config: RunConfig, *, world_size: int) -> int:
    batch, micro = config.trainer.global_batch_size, config.trainer.micro_batch_size
    if batch % world_size:
        below = batch // world_size * world_size
        raise ConfigError(
            f"trainer.global_batch_size={batch} is not divisible by the {world_size} ranks; "
            f"use {below or world_size} or {below + world_size}, or another number of ranks"
        )
    share = batch // world_size
    if micro is None:
        return 1
    if share % micro:
        fits = [n for n in range(1, share + 1) if share % n == 0 and n <= micro]
        raise ConfigError(
            f"trainer.micro_batch_size={micro} does not divide a rank's share of {share} images "
            f"(trainer.global_batch_size={batch} / {world_size} ranks); use {fits[-1]}"
        )
    return share // micro


def make_loss(config: RunConfig) -> LossFunction:
    """Loss of logits (B, C) and labels (B,), in fp32."""
    function = {"sigmoid": sigmoid_cross_entropy, "softmax": softmax_cross_entropy}[config.loss.name]
    targets = functools.partial(
        one_hot_targets, num_classes=config.model.num_classes, label_smoothing=config.loss.label_smoothing
    )
    return lambda logits, labels: function(logits, targets(labels))


def make_schedule(plan: Plan) -> Callable[[int], float]:
    """Optimizer step to learning rate."""
    schedule = plan.config.schedule
    return functools.partial(
        learning_rate, peak=plan.config.optimizer.learning_rate, warmup_steps=plan.warmup_steps, total_steps=plan.total_steps,
        decay=schedule.decay, end=min(schedule.end, plan.config.optimizer.learning_rate),
    )  # fmt: skip


def make_optimizer(model: torch.nn.Module, config: RunConfig) -> GuardedAdamW:
    """AdamW over decayed and undecayed parameters; fused where the device offers it."""
    section = config.optimizer
    groups = parameter_groups(model, weight_decay=section.weight_decay, decayed=section.decayed)
    return GuardedAdamW(
        groups, lr=section.learning_rate, betas=section.betas, eps=section.eps, fused=torch.cuda.is_available() or None
    )


def make_stream(plan: Plan, *, world: World, start_step: int) -> TrainStream:
    """The training images of this rank, from `start_step` on."""
    data, batch = plan.config.data, plan.config.trainer.global_batch_size
    order = SampleOrder(plan.index.block_samples, seed=plan.config.seed, num_streams=data.num_streams or batch)
    transform = TrainTransform(
        image_size=plan.model.image_size, min_area=data.min_area, max_area=data.max_area, min_ratio=data.min_ratio,
        max_ratio=data.max_ratio, flip=data.flip, resize=data.resize,
    )  # fmt: skip
    division = Division(
        global_batch_size=batch, rank=world.rank, world_size=world.size, accumulation_steps=plan.accumulation_steps
    )
    return TrainStream(
        index=plan.index, order=order, division=division, transform=transform, num_classes=plan.model.num_classes, start_step=start_step
    )  # fmt: skip


def make_model(config: ViTConfig, *, seed: int) -> VisionTransformer:
    """A freshly initialised model; the same on every rank."""
    model = VisionTransformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


@dataclass(frozen=True)
class Start:
    """Where a launch begins, as rank 0 decided for all."""

    checkpoint: Checkpoint | None
    wandb_id: str
    messages: list[str]

    @property
    def step(self) -> int:
        return 0 if self.checkpoint is None else self.checkpoint.meta.step


def prepare_run_folder(plan: Plan, *, world_size: int) -> Start:
    """Find the newest complete checkpoint and refuse what would corrupt the run. Rank 0 only.

    Raises:
        CheckpointError: the relaunch differs where it must not, or every checkpoint is broken.
        DataError: shards missing or changed.
    """
    check_shards(plan.index)
    folder = RunFolder(plan.config.run_dir)
    found = find_latest(folder)
    if found.rejected and found.newest is None:
        reasons = "; ".join(found.rejected.values())
        raise CheckpointError(
            f"no checkpoint of {folder.root} is whole: {reasons}. Restore one, or start a new run with name=..."
        )
    messages = compare_with_last_launch(plan, folder)
    if found.newest is not None:
        check_continuity(plan, found.newest, world_size=world_size)
    # Nothing is touched before this line.
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)
    messages += [f"skipped a broken checkpoint: {why} (now {set_aside(folder, step)})" for step, why in found.rejected.items()]
    if found.newest is not None:
        messages.append(f"resuming from {found.newest.path}: step {found.newest.meta.step} of {plan.total_steps}")
    else:
        messages.append(f"new run in {folder.root}: {plan.total_steps} steps, {plan.index.num_samples} images an epoch")
    if found.newest is None or found.newest.meta.step < plan.stop_step:
        folder.complete.unlink(missing_ok=True)  # this launch was asked for more steps
    write_atomically(folder.config, plan.config.to_yaml().encode())
    if not folder.wandb_id.exists():
        write_atomically(folder.wandb_id, uuid.uuid4().hex[:8].encode())
    return Start(checkpoint=found.newest, wandb_id=folder.wandb_id.read_text().strip(), messages=messages)


def compare_with_last_launch(plan: Plan, folder: RunFolder) -> list[str]:
    """What differs from the configuration of the last launch, in words; nothing where this is the first.

    Raises:
        CheckpointError: a difference that would mix two runs in one folder.
    """
    if not folder.config.exists():
        return []
    before, now = _flatten(yaml.safe_load(folder.config.read_text())), _flatten(plan.config.model_dump(mode="json"))
    changed = sorted(key for key in before | now if before.get(key) != now.get(key) and not _is_under(key, FREE_KEYS))
    fatal = [key for key in changed if _is_under(key, FIXED_KEYS)]
    if fatal:
        differences = ", ".join(f"{key} (was {before.get(key)}, now {now.get(key)})" for key in fatal)
        raise CheckpointError(
            f"{folder.root} holds a run that cannot go on with this configuration: {differences}. "
            f"Set them back, or start a new run with name=..."
        )
    return [f"changed since the last launch: {key} was {before.get(key)}, now {now.get(key)}" for key in changed]


def check_continuity(plan: Plan, checkpoint: Checkpoint, *, world_size: int) -> None:
    """Whether a checkpoint can be gone on from with these shards and ranks.

    Raises:
        CheckpointError: other shards, or another number of ranks.
    """
    if checkpoint.meta.data_fingerprint != plan.index.fingerprint:
        raise CheckpointError(
            f"the shards of {plan.config.data.train} are not those this run began with (their index differs), so its "
            f"sample order cannot go on; restore them, or start a new run with name=..."
        )
    if checkpoint.meta.world_size != world_size:
        raise CheckpointError(
            f"{checkpoint.path} was saved by {checkpoint.meta.world_size} ranks, this launch has {world_size}; "
            f"launch as many (trainer.devices={checkpoint.meta.world_size} on one machine)"
        )


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _is_under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def agree_on_start(plan: Plan, world: World) -> Start:
    """Rank 0 prepares the run folder; every rank gets its answer, or its error."""
    outcome: Start | PipelineError | None = None
    if world.is_first:
        try:
            outcome = prepare_run_folder(plan, world_size=world.size)
        except PipelineError as error:
            outcome = error
    outcome = broadcast(outcome, device=_device(world))
    if isinstance(outcome, PipelineError):
        raise outcome.everywhere()
    assert outcome is not None
    return outcome


def _device(world: World) -> torch.device:
    return torch.device("cuda", world.local_rank) if torch.cuda.is_available() else torch.device("cpu")


@dataclass(frozen=True)
class Training:
    """Everything `fit` needs."""

    trainer: Trainer
    module: PretrainModule
    data: StreamDataModule
    checkpointing: Checkpointing
    start: Start

    def run(self) -> None:
        """Train to the end, or until told to stop."""
        path = self.start.checkpoint.path if self.start.checkpoint else None
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=path, weights_only=False)


def make_training(plan: Plan, *, world: World, stop: StopRequest, start: Start) -> Training:
    """Wire a training up. The process group exists already."""
    config = plan.config
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world.local_size))
        # The fused attention's bf16 backward is three times slower on CPU than the plain one, which also computes in fp32.
        torch.backends.cuda.enable_flash_sdp(False)
    model = make_model(plan.model, seed=config.seed)
    if config.trainer.compile:
        model.compile()
    module = PretrainModule(
        model=model, loss=make_loss(config), make_optimizer=lambda m: make_optimizer(m, config),
        schedule=make_schedule(plan), seed=config.seed,
    )  # fmt: skip
    checkpointing = _make_checkpointing(plan, stop=stop, start=start)
    return Training(
        trainer=_make_trainer(plan, world=world, start=start, checkpointing=checkpointing),
        module=module,
        data=StreamDataModule(
            make_stream(plan, world=world, start_step=start.step),
            num_workers=config.data.num_workers,
            prefetch=config.data.prefetch,
        ),
        checkpointing=checkpointing,
        start=start,
    )


def _make_checkpointing(plan: Plan, *, stop: StopRequest, start: Start) -> Checkpointing:
    config = plan.config
    return Checkpointing(
        RunFolder(config.run_dir),
        policy=CheckpointPolicy(
            every_steps=plan.checkpoint_steps, keep_last=config.checkpoint.keep_last, keep_every_steps=plan.keep_every_steps
        ),
        facts=RunFacts(
            model=plan.model, global_batch_size=config.trainer.global_batch_size, zero_stage=config.trainer.zero_stage,
            wandb_id=start.wandb_id, data_fingerprint=plan.index.fingerprint,
        ),
        stop=stop,
    )  # fmt: skip


def _make_metrics(plan: Plan, *, world: World) -> TrainingMetrics:
    config = plan.config
    dtype = torch.float32 if config.trainer.precision == "fp32" else torch.bfloat16
    peak = config.trainer.peak_tflops * 1e12 if config.trainer.peak_tflops else peak_flops(_device(world), dtype=dtype)
    return TrainingMetrics(
        num_classes=config.model.num_classes, global_batch_size=config.trainer.global_batch_size,
        num_samples=plan.index.num_samples, total_steps=plan.stop_step, log_every=config.tracking.log_every,
        flops_per_image=training_flops_per_image(plan.model), peak_flops=peak * world.size,
        unreadable_budget=config.data.unreadable_budget,
    )  # fmt: skip


def _make_trainer(plan: Plan, *, world: World, start: Start, checkpointing: Checkpointing) -> Trainer:
    config = plan.config
    folder = RunFolder(config.run_dir)
    record = {**config.model_dump(mode="json"), "versions": collect_versions(), "world_size": world.size,
              "run_dir": str(folder.root.resolve()), "checkpoints": str(folder.checkpoints.resolve()), "model_resolved": asdict(plan.model)}  # fmt: skip
    wandb_logger = None
    if world.is_first:
        history = [row for row in read_metrics(folder.metrics) if row["step"] <= start.step]
        wandb_logger = make_wandb_logger(
            make_run_identity(config, run_id=start.wandb_id, folder=folder), config=record, history=history
        )
    strategy = ZeroStrategy(
        config=deepspeed_config(
            zero_stage=config.trainer.zero_stage, precision=config.trainer.precision,
            micro_batch_size=plan.micro_batch_size, clip_norm=config.optimizer.clip_norm,
        ),
        precision=config.trainer.precision,
        clip_norm=config.optimizer.clip_norm,
    )  # fmt: skip
    trainer = Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=world.local_size,
        num_nodes=world.num_nodes,
        strategy=strategy,
        max_steps=plan.stop_step,
        max_epochs=-1,
        accumulate_grad_batches=plan.accumulation_steps,
        logger=[logger for logger in (MetricsFile(folder.metrics), wandb_logger) if logger is not None],
        callbacks=[
            _make_metrics(plan, world=world),
            FiniteGuard(max_skipped_steps=config.trainer.max_skipped_steps),
            checkpointing,
        ],
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
    run_id = folder.wandb_id.read_text().strip()
    return Evaluator(folder, section=config.evaluation, identity=make_run_identity(config, run_id=run_id, folder=folder))


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


def count_parameters(config: ViTConfig) -> int:
    """Weights of a model, without allocating them."""
    with torch.device("meta"):
        return sum(math.prod(parameter.shape) for parameter in VisionTransformer(config).parameters())

"""Compute what each ZeRO stage of a run needs on one GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.config.run import RunConfig
from pipeline.data.streams.train import largest_micro_batch
from pipeline.distributed.precision import TrainingPrecision
from pipeline.models.base import ModelConfig
from pipeline.objectives.base import ObjectiveSection
from pipeline.optim.groups import parameter_groups
from pipeline.plan.activations import activation_bytes, recomputed_flops, sparsest_that_fits
from pipeline.plan.memory import ParameterSizes, Stage, StateBytes, saved_bytes_per_pass, sizes_of_groups, state_bytes


@dataclass(frozen=True)
class ModelSizes:
    """Holds a model and the numbers of parameters that are trained, by what is decayed."""

    config: ModelConfig
    parameters: ParameterSizes
    num_kernel_elements: int


def sizes_of_model(config: ModelConfig, objective: ObjectiveSection) -> ModelSizes:
    """Count the parameters, those of the objective included. Takes no memory for them."""
    with torch.device("meta"):
        own = objective.build(config, seed=0, class_names=None) if objective.has_parameters else None
        groups = parameter_groups(config.build(), own, weight_decay=1.0, decayed="kernels")
    parameters = sizes_of_groups(groups)
    return ModelSizes(config=config, parameters=parameters, num_kernel_elements=sum(parameters.groups[0]))


@dataclass(frozen=True)
class StageMemory:
    """Holds the memory of one ZeRO stage on one GPU, in bytes, with the run's micro-batch.

    Attributes:
        chosen: whether it is the configuration's own stage.
        largest_micro_batch: images that fit at once, 0 if none.
        fitting_checkpointing: largest activation_checkpointing at which the micro-batch fits; None if it fits without or never.
        recomputed: operations of that, as a part of the counted ones; none without it.
        usable_micro_batch: micro-batch when a GPU's share is cut into the fewest, most equal parts that fit, 0 if none.
    """

    stage: Stage
    precision: TrainingPrecision
    chosen: bool
    state: StateBytes
    activations: int
    total: int
    fits: bool
    largest_micro_batch: int
    usable_micro_batch: int
    fitting_checkpointing: int | None
    recomputed: float | None


def precision_of(config: RunConfig, *, stage: Stage) -> TrainingPrecision:
    """Return the precision of a stage. `auto` is bf16 on every GPU known here. Without ZeRO nothing keeps fp32 masters."""
    wanted = "bf16" if config.trainer.precision == "auto" else config.trainer.precision
    return "bf16_autocast" if stage == 0 and wanted == "bf16" else wanted


def overlaps(config: RunConfig) -> bool:
    """Return whether communication goes on next to computing, on a GPU."""
    return config.trainer.overlap_comm is not False


def stage_memory(
    stage: Stage,
    config: RunConfig,
    *,
    model: ModelSizes,
    num_gpus: int,
    accumulation: int,
    memory_bytes: float,
) -> StageMemory:
    """Return what a stage needs on each GPU.

    Args:
        accumulation: micro-batches in a step.
        memory_bytes: memory that a GPU has for it.
    """
    precision = precision_of(config, stage=stage)
    batch, together = config.trainer.global_batch_size, config.objective.images_together
    share, micro = (
        largest_micro_batch(batch, num_ranks=num_gpus, accumulation_steps=parts, together=together)
        for parts in (1, accumulation)
    )
    cost = model.config.cost
    image = activation_bytes(cost, precision=precision, every=config.trainer.activation_checkpointing)
    once = saved_bytes_per_pass(model.num_kernel_elements, precision=precision) + cost.saved_bytes_once(precision=precision)
    state = _state(stage, config, sizes=model.parameters, num_gpus=num_gpus, accumulation=accumulation)
    largest = max(0, int((memory_bytes - state.total - once) // image))
    total = state.total + once + micro * image
    sparsest = None
    if total > memory_bytes:
        sparsest = sparsest_that_fits(cost, precision=precision, most_bytes=(memory_bytes - state.total - once) / micro)
    return StageMemory(
        stage=stage,
        precision=precision,
        chosen=stage == config.trainer.zero_stage,
        state=state,
        activations=once + micro * image,
        total=total,
        fits=total <= memory_bytes,
        largest_micro_batch=largest,
        usable_micro_batch=_usable(largest, share=share, together=together, is_even=batch // together % num_gpus == 0),
        fitting_checkpointing=sparsest,
        recomputed=None if sparsest is None else recomputed_flops(cost, every=sparsest) / cost.training_flops,
    )


def _state(stage: Stage, config: RunConfig, *, sizes: ParameterSizes, num_gpus: int, accumulation: int) -> StateBytes:
    return state_bytes(
        sizes,
        stage=stage,
        precision=precision_of(config, stage=stage),
        num_ranks=num_gpus,
        optimizer_bytes=config.optimizer.state_bytes,
        accumulation_steps=accumulation,
        bucket_elements=config.trainer.reduce_bucket_size,
        staging_buckets=2 if overlaps(config) else 1,
    )


def _usable(largest: int, *, share: int, together: int, is_even: bool) -> int:
    """Return the images of a micro-batch when a share of them is cut into the fewest parts that fit, with pairs kept whole."""
    most, groups = largest // together, share // together
    if most == 0 or (most == 1 < groups and not is_even):  # shares of 3 and 2 are not as many parts of one
        return 0
    return together * -(-groups // -(-groups // most))

"""Compute everything that a run will need and cost, from a configuration and a cluster."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.config.resolve import count_accumulation_steps, load_mixture
from pipeline.config.run import RunConfig
from pipeline.data.shards.index import DEFAULT_BLOCK_SAMPLES
from pipeline.data.streams.mixture import Mixture
from pipeline.data.streams.train import largest_micro_batch
from pipeline.distributed.hardware import DATA_SHEET_BF16_TFLOPS, DATA_SHEET_MEMORY_GIB, find_gpu
from pipeline.distributed.precision import TrainingPrecision
from pipeline.durations import Duration
from pipeline.errors import ConfigError, DataError
from pipeline.models.base import ModelConfig
from pipeline.optim.groups import parameter_groups
from pipeline.plan.compute import Compute, run_compute, step_traffic_bytes
from pipeline.plan.failures import Interruptions, daly_interval_s, job_mtbf_s, lost_fraction, young_interval_s
from pipeline.plan.memory import STAGES, ParameterSizes, Stage, StateBytes, saved_bytes_per_pass, sizes_of_groups, state_bytes
from pipeline.plan.storage import Reading, moments_bytes, reading_rates, weights_bytes

IMAGE_BYTES = 110_000  # size of a median ImageNet photo


@dataclass(frozen=True)
class Cluster:
    """Describes where a run would go, and what is assumed of it.

    Attributes:
        gpu_memory_gib: memory of one GPU; none: the data sheet's.
        headroom: part of the memory left to CUDA, NCCL and the allocator's fragments.
        price: price of a GPU for an hour.
        network_gb_per_s: rate at which a node sends to others, in 10^9 bytes.
        save_s: time that training waits for a checkpoint.
        restart_s: time from a node's failure to the next step.
    """

    gpu: str
    num_nodes: int
    gpus_per_node: int
    gpu_memory_gib: float | None
    headroom: float
    mfu: float
    price: float | None
    network_gb_per_s: float
    node_mtbf_hours: float
    save_s: float
    restart_s: float
    images_per_s_per_core: float


@dataclass(frozen=True)
class CorpusFacts:
    """Holds corpus size and image size: their values, where they come from, and why the index could not be read, if so."""

    num_samples: int | None
    image_bytes: float
    block_samples: float
    source: str
    unread: str | None


@dataclass(frozen=True)
class StageMemory:
    """Holds the memory of one ZeRO stage on one GPU, in bytes, with the run's micro-batch.

    Attributes:
        chosen: whether it is the configuration's own stage.
        largest_micro_batch: images that fit at once, 0 if none.
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


@dataclass(frozen=True)
class Checkpoints:
    """Describes the checkpoints. Sizes are in bytes, times in seconds.

    Attributes:
        kept_bytes: size on disk at the end of the run, weights included.
        interval_s: interval of the configuration; with these numbers it loses `lost`.
    """

    checkpoint_bytes: int
    weights_bytes: int
    kept_bytes: int
    interruptions: Interruptions
    interval_steps: int
    interval_s: float
    lost: float
    young_s: float
    daly_s: float
    lost_at_daly: float
    expected_failures: float


@dataclass(frozen=True)
class Forecast:
    """Holds the whole forecast."""

    name: str
    model_name: str
    model: ModelConfig
    num_parameters: int
    cluster: Cluster
    gpu_name: str
    num_gpus: int
    memory_bytes: float  # memory of a GPU, headroom taken off
    micro_batch_size: int
    accumulation_steps: int
    global_batch_size: int
    corpus: CorpusFacts
    memory: tuple[StageMemory, ...]
    compute: Compute
    traffic_bytes: float  # bytes that a node sends to others in a step
    reading: Reading
    checkpoints: Checkpoints


def make_forecast(config: RunConfig, *, cluster: Cluster, num_samples: int | None, image_bytes: float | None) -> Forecast:
    """Compute the whole forecast.

    Args:
        num_samples: samples of the corpus; none: as its index says, where it has one.
        image_bytes: mean size of its files; none: likewise, else 110 kB.

    Raises:
        ConfigError: numbers do not fit together, or the duration is in epochs of an unknown corpus.
    """
    _check(cluster)
    gpu = find_gpu(cluster.gpu)
    num_gpus = cluster.num_nodes * cluster.gpus_per_node
    model = config.model.resolve()
    accumulation = count_accumulation_steps(config, world_size=num_gpus)
    corpus = corpus_facts(config, num_samples=num_samples, image_bytes=image_bytes)
    sizes, num_kernel_elements = _sizes(model)
    memory_bytes = (cluster.gpu_memory_gib or DATA_SHEET_MEMORY_GIB[gpu]) * 2**30 * (1 - cluster.headroom)
    batch = config.trainer.global_batch_size
    compute = run_compute(
        steps=_count_steps(config, corpus),
        global_batch_size=batch,
        num_samples=corpus.num_samples,
        flops_per_image=model.cost.training_flops,
        peak_flops=_peak_flops(config, gpu),
        mfu=cluster.mfu,
        num_gpus=num_gpus,
        price_per_gpu_hour=cluster.price,
    )
    return Forecast(
        name=config.name,
        model_name=config.model.title,
        model=model,
        num_parameters=sizes.total,
        cluster=cluster,
        gpu_name=gpu,
        num_gpus=num_gpus,
        memory_bytes=memory_bytes,
        micro_batch_size=largest_micro_batch(batch, num_ranks=num_gpus, accumulation_steps=accumulation),
        accumulation_steps=accumulation,
        global_batch_size=batch,
        corpus=corpus,
        memory=tuple(
            _stage_memory(
                stage,
                config,
                model=model,
                sizes=sizes,
                kernels=num_kernel_elements,
                num_gpus=num_gpus,
                accumulation=accumulation,
                memory_bytes=memory_bytes,
            )
            for stage in STAGES
        ),
        compute=compute,
        traffic_bytes=step_traffic_bytes(
            sizes.total,
            stage=config.trainer.zero_stage,
            precision=_precision(config, stage=config.trainer.zero_stage),
            num_nodes=cluster.num_nodes,
            accumulation_steps=accumulation,
        ),
        reading=reading_rates(
            images_per_s=compute.images_per_s,
            image_bytes=corpus.image_bytes,
            block_samples=corpus.block_samples,
            num_samples=corpus.num_samples,
            num_streams=config.data.num_streams or batch,
            images_per_s_per_core=cluster.images_per_s_per_core,
            num_nodes=cluster.num_nodes,
        ),
        checkpoints=_checkpoints(config, cluster=cluster, sizes=sizes, compute=compute, corpus=corpus),
    )


def _check(cluster: Cluster) -> None:
    positive = {
        "--nodes": cluster.num_nodes,
        "--gpus-per-node": cluster.gpus_per_node,
        "--gpu-memory-gib": cluster.gpu_memory_gib,
        "--mfu": cluster.mfu,
        "--node-mtbf-hours": cluster.node_mtbf_hours,
        "--save-seconds": cluster.save_s,
        "--images-per-core": cluster.images_per_s_per_core,
        "--network-gb": cluster.network_gb_per_s,
    }
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{name} {value:g}: must be more than 0")
    if cluster.mfu > 1 or not 0 <= cluster.headroom < 1:
        raise ConfigError(f"--mfu {cluster.mfu:g}, --headroom {cluster.headroom:g}: parts of a whole, as 0.4 and 0.1 are")
    if cluster.restart_s < 0 or (cluster.price or 0) < 0:
        raise ConfigError("--restart-seconds and --price cannot be less than 0")


def _peak_flops(config: RunConfig, gpu: str) -> float:
    if config.trainer.peak_tflops is not None:
        return config.trainer.peak_tflops * 1e12
    if config.trainer.precision == "fp32":
        raise ConfigError(
            "trainer.precision=fp32: the rates known here are of bf16; give the GPU's own with trainer.peak_tflops=..."
        )
    return DATA_SHEET_BF16_TFLOPS[gpu] * 1e12


def _precision(config: RunConfig, *, stage: Stage) -> TrainingPrecision:
    """Return the precision that a stage trains in. `auto` is bf16 on every GPU known here. Without ZeRO nothing keeps fp32
    masters of bf16 weights.
    """
    wanted = "bf16" if config.trainer.precision == "auto" else config.trainer.precision
    return "bf16_autocast" if stage == 0 and wanted == "bf16" else wanted


def _sizes(model: ModelConfig) -> tuple[ParameterSizes, int]:
    with torch.device("meta"):
        groups = parameter_groups(model.build(), weight_decay=1.0, decayed="kernels")
    sizes = sizes_of_groups(groups)
    return sizes, sum(sizes.groups[0])


def corpus_facts(config: RunConfig, *, num_samples: int | None, image_bytes: float | None) -> CorpusFacts:
    """Return the corpus's facts from the flags, then from the index, where there is one."""
    if (num_samples is not None and num_samples < 1) or (image_bytes is not None and image_bytes <= 0):
        raise ConfigError("--samples and --image-bytes must be more than 0")
    mixture = unread = None
    if num_samples is None or image_bytes is None:
        try:
            mixture = load_mixture(config.data)
        except DataError as error:  # the corpus may be elsewhere, and its numbers given
            unread = str(error)
    if not isinstance(mixture, Mixture):
        assumed = "assumed" if image_bytes is None else "as given"
        return CorpusFacts(num_samples, image_bytes or IMAGE_BYTES, DEFAULT_BLOCK_SAMPLES, source=assumed, unread=unread)
    indexes = [corpus.index for corpus in mixture.corpora]
    total = sum(index.num_samples for index in indexes)
    known = mixture.num_samples if mixture.is_one_corpus else None
    return CorpusFacts(
        num_samples=num_samples or known,
        image_bytes=image_bytes or sum(int(index.block_bytes.sum()) for index in indexes) / total,
        block_samples=total / sum(index.num_blocks for index in indexes),
        source="by the index" if image_bytes is None else "as given",
        unread=None,
    )


def _to_steps(duration: Duration, key: str, *, config: RunConfig, corpus: CorpusFacts) -> int:
    if duration.unit == "epochs" and corpus.num_samples is None:
        raise ConfigError(
            f"{key}={duration}, and data.train={config.data.train} has no index here to count an epoch by: give the number "
            "of images with --samples, for example --samples 14197122 for all of ImageNet-21k"
        )
    steps = duration.to_steps(global_batch_size=config.trainer.global_batch_size, num_samples=corpus.num_samples or 1)
    if steps < 1:
        raise ConfigError(f"{key}={duration} is less than one step of {config.trainer.global_batch_size} images")
    return steps


def _count_steps(config: RunConfig, corpus: CorpusFacts) -> int:
    total = _to_steps(config.trainer.duration, "trainer.duration", config=config, corpus=corpus)
    if (warmup := config.schedule.warmup).amount:
        warmup_steps = _to_steps(warmup, "schedule.warmup", config=config, corpus=corpus)
        if warmup_steps >= total:
            raise ConfigError(
                f"schedule.warmup={warmup} is {warmup_steps:,} steps, but trainer.duration={config.trainer.duration} "
                f"is {total:,}; "
                "shorten schedule.warmup or lengthen trainer.duration"
            )
    return min(total, config.trainer.max_steps or total)


def _stage_memory(
    stage: Stage,
    config: RunConfig,
    *,
    model: ModelConfig,
    sizes: ParameterSizes,
    kernels: int,
    num_gpus: int,
    accumulation: int,
    memory_bytes: float,
) -> StageMemory:
    precision = _precision(config, stage=stage)
    batch = config.trainer.global_batch_size
    share, micro = (largest_micro_batch(batch, num_ranks=num_gpus, accumulation_steps=parts) for parts in (1, accumulation))
    image = model.cost.saved_bytes(precision=precision) + model.cost.working_bytes(precision=precision)
    once = saved_bytes_per_pass(kernels, precision=precision) + model.cost.saved_bytes_once(precision=precision)
    state = state_bytes(
        sizes,
        stage=stage,
        precision=precision,
        num_ranks=num_gpus,
        optimizer_bytes=config.optimizer.state_bytes,
        accumulation_steps=accumulation,
    )
    largest = max(0, int((memory_bytes - state.total - once) // image))
    total = state.total + once + micro * image
    return StageMemory(
        stage=stage,
        precision=precision,
        chosen=stage == config.trainer.zero_stage,
        state=state,
        activations=once + micro * image,
        total=total,
        fits=total <= memory_bytes,
        largest_micro_batch=largest,
        usable_micro_batch=_usable_micro_batch(largest, share=share, is_even=batch % num_gpus == 0),
    )


def _usable_micro_batch(largest: int, *, share: int, is_even: bool) -> int:
    if largest == 0 or (largest == 1 < share and not is_even):  # shares of 3 and 2 are not as many parts of one
        return 0
    return -(-share // -(-share // largest))


def _checkpoints(
    config: RunConfig, *, cluster: Cluster, sizes: ParameterSizes, compute: Compute, corpus: CorpusFacts
) -> Checkpoints:
    section = config.checkpoint
    every = min(compute.steps, _to_steps(section.every, "checkpoint.every", config=config, corpus=corpus))
    kept = min(section.keep_last, -(-compute.steps // every))
    if section.keep_every is not None:
        kept += compute.steps // _to_steps(section.keep_every, "checkpoint.keep_every", config=config, corpus=corpus)
    moments, weights = moments_bytes(sizes, optimizer_bytes=config.optimizer.state_bytes), weights_bytes(sizes)
    costs = Interruptions(
        mtbf_s=job_mtbf_s(node_mtbf_hours=cluster.node_mtbf_hours, num_nodes=cluster.num_nodes),
        save_s=cluster.save_s,
        restart_s=cluster.restart_s,
    )
    interval, daly = every * compute.step_s, daly_interval_s(costs)
    lost = lost_fraction(interval, costs=costs)
    return Checkpoints(
        checkpoint_bytes=moments + weights,
        weights_bytes=weights,
        kept_bytes=kept * moments + (1 + -(-compute.steps // every)) * weights,
        interruptions=costs,
        interval_steps=every,
        interval_s=interval,
        lost=lost,
        young_s=young_interval_s(costs),
        daly_s=daly,
        lost_at_daly=lost_fraction(daly, costs=costs),
        expected_failures=compute.seconds / (1 - lost) / costs.mtbf_s if lost < 1 else float("inf"),
    )

"""Compute everything that a run will need and cost, from a configuration and a cluster."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.resolve import count_accumulation_steps
from pipeline.config.run import RunConfig
from pipeline.data.streams.train import largest_micro_batch
from pipeline.distributed.hardware import DATA_SHEET_BF16_TFLOPS, DATA_SHEET_MEMORY_GIB, find_gpu
from pipeline.errors import ConfigError
from pipeline.models.base import ModelConfig
from pipeline.plan.activations import recomputed_flops
from pipeline.plan.checkpoints import Checkpoints, forecast_checkpoints
from pipeline.plan.cluster import Cluster, check_cluster
from pipeline.plan.compute import Compute, run_compute
from pipeline.plan.corpus import CorpusFacts, corpus_facts, count_steps
from pipeline.plan.memory import STAGES, Stage
from pipeline.plan.network import StepNetwork, Traffic, step_traffic
from pipeline.plan.stages import StageMemory, overlaps, precision_of, sizes_of_model, stage_memory
from pipeline.plan.storage import Reading, reading_rates


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
    network: StepNetwork
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
    check_cluster(cluster)
    gpu = find_gpu(cluster.gpu)
    num_gpus = cluster.num_nodes * cluster.gpus_per_node
    model = sizes_of_model(config.model.resolve(), config.objective)
    accumulation = count_accumulation_steps(config, world_size=num_gpus)
    corpus = corpus_facts(config, num_samples=num_samples, image_bytes=image_bytes)
    memory_bytes = (cluster.gpu_memory_gib or DATA_SHEET_MEMORY_GIB[gpu]) * 2**30 * (1 - cluster.headroom)
    batch = config.trainer.global_batch_size
    compute = _compute(config, cluster=cluster, gpu=gpu, corpus=corpus, model=model.config)
    network = _network(
        config, cluster=cluster, num_parameters=model.parameters.total, accumulation=accumulation, computing_s=compute.step_s
    )
    compute = compute.with_waiting(network.waiting_s)
    return Forecast(
        name=config.name,
        model_name=config.model.title,
        model=model.config,
        num_parameters=model.parameters.total,
        cluster=cluster,
        gpu_name=gpu,
        num_gpus=num_gpus,
        memory_bytes=memory_bytes,
        micro_batch_size=largest_micro_batch(
            batch, num_ranks=num_gpus, accumulation_steps=accumulation, together=config.objective.images_together
        ),
        accumulation_steps=accumulation,
        global_batch_size=batch,
        corpus=corpus,
        memory=tuple(
            stage_memory(stage, config, model=model, num_gpus=num_gpus, accumulation=accumulation, memory_bytes=memory_bytes)
            for stage in STAGES
        ),
        compute=compute,
        network=network,
        reading=_reading(config, cluster=cluster, corpus=corpus, compute=compute),
        checkpoints=forecast_checkpoints(config, cluster=cluster, sizes=model.parameters, compute=compute, corpus=corpus),
    )


def _network(config: RunConfig, *, cluster: Cluster, num_parameters: int, accumulation: int, computing_s: float) -> StepNetwork:
    def traffic(stage: Stage) -> Traffic:
        return step_traffic(
            num_parameters,
            stage=stage,
            precision=precision_of(config, stage=stage),
            num_nodes=cluster.num_nodes,
            accumulation_steps=accumulation,
            bucket_size=config.trainer.reduce_bucket_size,
            overlap=overlaps(config),
        )

    stage, rate = config.trainer.zero_stage, cluster.network_gb_per_s * 1e9
    own = traffic(stage)
    return StepNetwork(
        traffic_bytes=own.total,
        seconds=own.seconds(rate),
        waiting_s=own.waiting_s(rate, computing_s=computing_s),
        stage_2_waiting_s=traffic(2).waiting_s(rate, computing_s=computing_s) if stage < 2 else None,
    )


def _compute(config: RunConfig, *, cluster: Cluster, gpu: str, corpus: CorpusFacts, model: ModelConfig) -> Compute:
    return run_compute(
        steps=count_steps(config, corpus),
        global_batch_size=config.trainer.global_batch_size,
        num_samples=corpus.images_of_epoch,
        flops_per_image=model.cost.training_flops,
        recomputed_flops_per_image=recomputed_flops(model.cost, every=config.trainer.activation_checkpointing),
        peak_flops=_peak_flops(config, gpu),
        mfu=cluster.mfu,
        num_gpus=cluster.num_nodes * cluster.gpus_per_node,
        price_per_gpu_hour=cluster.price,
    )


def _reading(config: RunConfig, *, cluster: Cluster, corpus: CorpusFacts, compute: Compute) -> Reading:
    return reading_rates(
        images_per_s=compute.images_per_s,
        image_bytes=corpus.image_bytes,
        block_samples=corpus.block_samples,
        num_samples=corpus.num_samples,
        num_streams=config.data.num_streams or config.trainer.global_batch_size,
        repeats=corpus.repeats,
        images_per_s_per_core=cluster.images_per_s_per_core,
        num_nodes=cluster.num_nodes,
    )


def _peak_flops(config: RunConfig, gpu: str) -> float:
    if config.trainer.peak_tflops is not None:
        return config.trainer.peak_tflops * 1e12
    if config.trainer.precision == "fp32":
        raise ConfigError(
            "trainer.precision=fp32: the rates known here are of bf16; give the GPU's own with trainer.peak_tflops=..."
        )
    return DATA_SHEET_BF16_TFLOPS[gpu] * 1e12

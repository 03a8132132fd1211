"""Measure what DeepSpeed's engine holds, and the most that a step takes. test_memory.py runs it on real ranks.

    torchrun --nproc-per-node=2 -m tests.plan.measure_ranks CASES.json OUT.json FOLDER

Tensors are counted by their storages, each once. The peak is that of torch's own allocation events.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pipeline.distributed.quiet import quiet_libraries
from pipeline.distributed.world import World, die_with_parent, init_process_group, leave_process_group
from pipeline.functional.losses import one_hot_targets, sigmoid_cross_entropy
from pipeline.image_size import height_and_width
from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.optim.adamw import GuardedAdamW
from pipeline.optim.groups import parameter_groups
from pipeline.train.zero import deepspeed_config


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Map addresses to bytes."""
    found = [tensor.untyped_storage() for tensor in tensors if isinstance(tensor, Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in found if storage.nbytes()}


def all_tensors() -> list[Tensor]:
    return [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor) and thing.device.type == "cpu"]


def measure_peak(work: Callable[[], None]) -> int:
    """Return the bytes alive before, and the most that were added."""
    before = sum(storages(all_tensors()).values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recording:
        work()
    events: list[Any] = [event for event in recording.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return before + most


def gradients_of(engine: Any) -> dict[int, int]:
    """Return all that holds a gradient at the end of a backward pass."""
    optimizer = engine.optimizer
    held: list[Any] = [parameter.grad for parameter in engine.module.parameters()]
    held += getattr(optimizer, "fp32_groups_gradients_flat", [])
    for gradients in getattr(optimizer, "averaged_gradients", {}).values():
        held += gradients or []
    held.append(getattr(optimizer, "grad_partitions_flat_buffer", None))
    return storages(held)


def measure(case: dict[str, Any], model_config: ViTConfig) -> dict[str, int]:
    gc.collect()
    before = sum(storages(all_tensors()).values())
    model = VisionTransformer(model_config)
    model.init_weights(torch.Generator().manual_seed(0))
    groups = parameter_groups(model, weight_decay=0.1, decayed="kernels")
    config = deepspeed_config(
        zero_stage=case["stage"], precision=case["precision"], micro_batch_size=case["batch"], clip_norm=1.0
    )
    config["gradient_accumulation_steps"] = case["accumulation_steps"]
    if case["stage"]:
        config["zero_optimization"]["reduce_bucket_size"] = case["bucket_elements"]
    # Fused, as on GPUs: the other kinds of AdamW make temporaries as large as what they update.
    engine: Any = deepspeed.initialize(
        model=model, optimizer=GuardedAdamW(groups, fused=True), config=config, dist_init_required=False
    )[0]
    size = height_and_width(model_config.image_size)
    images = torch.randint(0, 255, (case["batch"], 3, *size), dtype=torch.uint8)
    targets = one_hot_targets(torch.arange(case["batch"]), num_classes=model_config.num_classes)

    def pass_once() -> None:
        engine.backward(sigmoid_cross_entropy(engine(images), targets))

    for _ in range(2 * case["accumulation_steps"]):
        pass_once()
        engine.step()
    peak = 0
    for micro_step in range(case["accumulation_steps"]):
        peak = max(peak, measure_peak(pass_once))
        gradients = gradients_of(engine)
        if micro_step + 1 < case["accumulation_steps"]:
            engine.step()
    peak = max(peak, measure_peak(engine.step))
    modules = list(engine.module.parameters())
    parameters = storages([*modules, *(getattr(parameter, "ds_tensor", None) for parameter in modules)])
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)  # torch's, inside DeepSpeed's
    updated = [parameter for group in inner.param_groups for parameter in group["params"]]
    if case["stage"] == 3:
        updated = engine.optimizer.fp32_partitioned_groups_flat
    masters = {address: held for address, held in storages(updated).items() if address not in parameters}
    states = [inner.state[parameter] for parameter in inner.state]
    moments = storages(value for state in states for value in state.values() if isinstance(value, Tensor) and value.numel() > 1)
    kinds = {"parameters": parameters, "masters": masters, "gradients": gradients, "moments": moments}
    return {**{name: sum(held.values()) for name, held in kinds.items()}, "peak": peak - before}


def main(cases: Path, out: Path) -> None:
    die_with_parent()
    world = World.from_environment()
    quiet_libraries(is_first=world.is_first)
    init_process_group(world, timeout_s=300.0)
    request = json.loads(cases.read_text())
    model_config = ViTConfig(**request["model"])
    measured = []
    for case in request["cases"]:
        measured.append(measure(case, model_config))
    if world.is_first:
        out.write_text(json.dumps(measured))
    leave_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

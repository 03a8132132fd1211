"""Find where ZeRO has put the model's parameters: the flat tensors that the optimizer updates here, and their parts."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from pipeline.optim.parts import Layout, Part


def flat_masters(engine: Any) -> list[tuple[Tensor, int]]:
    """Return the tensors that the optimizer updates on this rank, and the number of the group that each is of.

    At stage 0 these are the parameters, else flat parts of many.
    """
    stage = engine.zero_optimization_stage()
    if stage == 0:
        groups = engine.optimizer.param_groups
        return [(parameter, number) for number, group in enumerate(groups) for parameter in group["params"]]
    if stage == 3:
        flats = engine.optimizer.fp32_partitioned_groups_flat
        return [(flat, engine.optimizer.sub_group_to_group_id[number]) for number, flat in enumerate(flats)]
    if _is_bf16_optimizer(engine):
        flats = engine.optimizer.fp32_groups_flat_partition
    else:
        flats = engine.optimizer.single_partition_of_fp32_groups
    return [(flat, number) for number, flat in enumerate(flats)]


def find_layout(engine: Any) -> Layout:
    """Return, for each of these tensors, the parameters that it holds parts of."""
    stage = engine.zero_optimization_stage()
    num_ranks = dist.get_world_size()
    if stage == 0:
        return Layout()
    flats = [flat for flat, _ in flat_masters(engine)]
    if stage == 3:
        parameters, part_of = engine.optimizer.fp16_groups, _part_at_stage_3
    else:
        name = "bf16_groups" if _is_bf16_optimizer(engine) else "bit16_groups"
        parameters, part_of = getattr(engine.optimizer, name), _part_at_stage_1_or_2
    return Layout(
        {flat: tuple(part_of(engine, p) for p in group) for flat, group in zip(flats, parameters, strict=True)}, num_ranks
    )


def _is_bf16_optimizer(engine: Any) -> bool:
    return hasattr(engine.optimizer, "fp32_groups_flat_partition")  # DeepSpeed's optimizer of stage 1 in bf16


def _part_at_stage_1_or_2(_engine: Any, parameter: Any) -> Part:
    """Return a part where a group's parameters lie in one line, which is cut into equal parts."""
    mapping = parameter._hp_mapping
    if mapping is None:  # all of it is on other ranks
        return Part(tuple(parameter.shape), 0, 0, 0)
    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
    return Part(tuple(parameter.shape), here.start, there.start, here.numel)


def _part_at_stage_3(engine: Any, parameter: Any) -> Part:
    """Return a part where each parameter is cut into equal parts, the last ones filled up with zeros."""
    _, start, size = engine.optimizer.grad_position[engine.optimizer.get_param_id(parameter)]
    offset = min(dist.get_rank() * size, parameter.ds_numel)
    return Part(tuple(parameter.ds_shape), start, offset, min(size, parameter.ds_numel - offset))

"""Gather a training's tensors, whole and by name, from ZeRO's partitions: fp32 masters and the optimizer's state.

DeepSpeed's own checkpoints hold each rank's partition, so they fit only as many ranks and the same stage. Here every
parameter's state is put together from the ranks' parts and divided again for the ranks that load it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.optim.guard import GuardedOptimizer
from pipeline.train import zero_layout


def assign_owners(sizes: Mapping[str, int], *, num_ranks: int, taken: int = 0) -> dict[str, int]:
    """Return which rank keeps and writes which tensor: the largest first, each to the rank with the least so far.

    Args:
        taken: what rank 0 has to write in addition.
    """
    load = [taken] + [0] * (num_ranks - 1)
    owners: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner = load.index(min(load))
        owners[name] = owner
        load[owner] += sizes[name]
    return owners


def prepare_optimizer_state(engine: Any) -> None:
    """Give the optimizer its state before the first step: zeros, which is what it would begin with itself, and the average.

    DeepSpeed makes it at the first step that is not refused; until then there would be nothing to save or load.
    """
    optimizer = inner_optimizer(engine)
    optimizer.layout = zero_layout.find_layout(engine)
    counts_on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    for flat, group in zero_layout.flat_masters(engine):
        count = torch.zeros((), dtype=torch.float32, device=flat.device if counts_on_device else "cpu")
        optimizer.state[flat] = {"step": count, **optimizer.first_state(flat, optimizer.param_groups[group])}
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()  # lets each parameter find its part of them


def inner_optimizer(engine: Any) -> GuardedOptimizer:
    """Return the optimizer that ZeRO's own wraps, or that of stage 0."""
    return engine.optimizer.optimizer if engine.zero_optimization_stage() else engine.optimizer


def num_updates(engine: Any) -> int:
    """Return the steps that the optimizer has taken, without those refused."""
    return int(engine.global_steps - engine.skipped_steps)


def named_parameters(engine: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Return the parameters by name, in the same order on every rank. The objective's are named `objective.NAME`."""
    for name, parameter in engine.module.named_parameters():
        yield name.removeprefix("model."), parameter  # the Lightning module's name for it


def gather_statistics(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield each buffer that is a part of the weights: running statistics of BatchNorm, as means over the ranks.

    Each rank has statistics of its own images. Their updates are linear, so that it does not matter when they are averaged.
    This is a collective.
    """
    parts_of_weights = engine.module.state_dict().keys()
    for name, buffer in engine.module.named_buffers():
        if name in parts_of_weights:
            yield name.removeprefix("model."), _mean_over_ranks(buffer)


def _mean_over_ranks(buffer: Tensor) -> Tensor:
    if not buffer.is_floating_point():  # a count of batches, which is the same on all ranks
        return buffer
    mean = buffer.detach().float() / dist.get_world_size()
    dist.all_reduce(mean)
    return mean


def gather_masters(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter's name and whole fp32 master, on its device. This is a collective: all ranks iterate to the end."""
    for name, parameter in named_parameters(engine):
        yield name, _gather(engine, parameter, None)


def state_keys(engine: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield `STATE/NAME` (`exp_avg/head.weight`) of each tensor that the optimizer keeps, and its parameter."""
    for name, parameter in named_parameters(engine):
        for moment in inner_optimizer(engine).state_names_of(parameter):
            yield f"{moment}/{name}", parameter


def gather_optimizer_state(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """Return each tensor that the optimizer keeps, whole, by the key of `state_keys`. It is a collective."""
    for key, parameter in state_keys(engine):
        yield key, _gather(engine, parameter, key.partition("/")[0])


def restore(engine: Any, *, masters: Callable[[str], Tensor], moments: Callable[[str], Tensor], num_updates: int) -> None:
    """Set masters and moments, each rank its parts. Low-precision parameters must hold the rounded masters already.

    Args:
        masters, moments: from the names that `gather_masters` and `gather_optimizer_state` give, to whole fp32 tensors on CPU.
        num_updates: steps the optimizer had taken.
    """
    for name, parameter in named_parameters(engine):
        _scatter(engine, parameter, None, masters(name))
    for key, parameter in state_keys(engine):
        _scatter(engine, parameter, key.partition("/")[0], moments(key))
    for flat, _ in zero_layout.flat_masters(engine):
        inner_optimizer(engine).state[flat]["step"].fill_(num_updates)  # Adam's correction of its moments reads it


def _gather(engine: Any, parameter: nn.Parameter, moment: str | None) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if engine.zero_optimization_stage() == 0:
        return parameter if moment is None else engine.optimizer.state[parameter][moment]
    whole = safe_get_full_fp32_param(parameter) if moment is None else safe_get_full_optimizer_state(parameter, moment)
    assert whole is not None
    return whole


def _scatter(engine: Any, parameter: Any, moment: str | None, value: Tensor) -> None:
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    stage = engine.zero_optimization_stage()
    if stage == 0:
        target = parameter if moment is None else engine.optimizer.state[parameter][moment]
        target.data.copy_(value)
    elif stage == 3:
        # Its setter of whole tensors cannot divide one unevenly, so the part is cut here.
        part = _cut(value, dist.get_rank(), parameter.ds_tensor.numel())
        if moment is None:
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, moment)
    elif moment is None:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, moment)


def _cut(value: Tensor, rank: int, part_numel: int) -> Tensor:
    """Return one rank's part of a tensor that is cut into equal parts, the last ones padded with zeros."""
    part = torch.zeros(part_numel, dtype=value.dtype)
    mine = value.flatten()[rank * part_numel : (rank + 1) * part_numel]
    part[: len(mine)] = mine
    return part

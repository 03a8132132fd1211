"""The guard changes nothing of torch's own optimizer but the steps whose gradients are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pipeline.optim.adamw import AdamW, GuardedAdamW

STEPS = 6


def make_parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (4,), (2, 2))]


def make_gradients(step: int) -> list[Tensor]:
    """Of norms from small to large."""
    generator = torch.Generator().manual_seed(100 + step)
    return [10.0 ** (step - 3) * torch.randn(p.shape, generator=generator) for p in make_parameters()]


def take_step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()


def state_of(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Return a copy of the weights and of all that the optimizer keeps."""
    kept = [value for parameter in parameters for _, value in sorted(optimizer.state[parameter].items())]
    return [tensor.detach().clone() for tensor in (*parameters, *kept)]


def guarded(parameters: list[nn.Parameter]) -> GuardedAdamW:
    section = AdamW(learning_rate=0.1, weight_decay=0.05, betas=(0.8, 0.9), eps=1e-7)
    optimizer = section.build_from_groups([{"params": parameters, "weight_decay": 0.05}], fused=False)
    assert isinstance(optimizer, GuardedAdamW)
    return optimizer


def plain(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=0.1, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.05)


@pytest.mark.parametrize("clip_norm", [None, 0.5, 1e9])
def test_finite_steps_are_torchs_own_bit_for_bit(clip_norm: float | None) -> None:
    ours, theirs = make_parameters(), make_parameters()
    optimizer, reference = guarded(ours), plain(theirs)
    optimizer.guard_steps(clip_norm=clip_norm)
    for step in range(STEPS):
        gradients = make_gradients(step)
        take_step(optimizer, ours, gradients)
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        norm = nn.utils.clip_grad_norm_(theirs, math.inf if clip_norm is None else clip_norm)
        reference.step()
        assert optimizer.gradient_norm == norm  # before it was cut
        assert not optimizer.overflow
        for mine, other in zip(state_of(optimizer, ours), state_of(reference, theirs), strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_a_step_that_is_not_finite_changes_nothing(value: float) -> None:
    """3e38 is finite, the norm of two of them is not."""
    parameters = make_parameters()
    optimizer = guarded(parameters)
    optimizer.guard_steps(clip_norm=1.0)
    take_step(optimizer, parameters, make_gradients(0))
    before = state_of(optimizer, parameters)
    gradients = make_gradients(1)
    gradients[1][:2] = value
    take_step(optimizer, parameters, gradients)
    assert optimizer.overflow
    assert all(torch.equal(one, other) for one, other in zip(before, state_of(optimizer, parameters), strict=True))
    take_step(optimizer, parameters, make_gradients(1))
    assert not optimizer.overflow
    assert not torch.equal(before[0], state_of(optimizer, parameters)[0])


def test_parameters_without_a_gradient_are_left_alone() -> None:
    parameters = make_parameters()
    optimizer = guarded(parameters)
    optimizer.guard_steps(clip_norm=1.0)
    before = [parameter.detach().clone() for parameter in parameters]
    parameters[0].grad = torch.ones_like(parameters[0])
    optimizer.step()
    assert optimizer.gradient_norm == pytest.approx(math.sqrt(12))
    assert [torch.equal(old, new) for old, new in zip(before, parameters, strict=True)] == [False, True, True]


def test_without_the_guard_it_is_torchs_optimizer() -> None:
    """ZeRO has checked and clipped already."""
    ours, theirs = make_parameters(), make_parameters()
    optimizer, reference = guarded(ours), plain(theirs)
    gradients = make_gradients(0)
    gradients[0][0] = math.nan
    take_step(optimizer, ours, gradients)
    take_step(reference, theirs, gradients)
    assert optimizer.gradient_norm is None
    for mine, other in zip(state_of(optimizer, ours), state_of(reference, theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)


def test_it_keeps_the_tensors_it_says_it_keeps() -> None:
    parameters = make_parameters()
    optimizer = guarded(parameters)
    take_step(optimizer, parameters, make_gradients(0))
    for parameter in parameters:
        kept = {name: value for name, value in optimizer.state[parameter].items() if value.shape == parameter.shape}
        assert tuple(kept) == AdamW.state_names
        assert all(value.dtype == torch.float32 for value in kept.values())

"""Each optimizer against one that somebody else wrote: torch's, or timm's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.functional.newton_schulz import orthogonalize
from tests.helpers.optimizer_scenarios import TinyBackbone, learning_rate, make_images, parse_section

STEPS = 6
PEAK, DECAY = 0.02, 0.1

Make = Callable[[nn.Module, ModuleType], list[torch.optim.Optimizer]]


def groups_of(model: nn.Module, *, decay: float = DECAY) -> list[dict[str, Any]]:
    kernels = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    others = [p for p in model.parameters() if not any(p is kernel for kernel in kernels)]
    return [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def make_muon(model: nn.Module, adjust: str) -> list[torch.optim.Optimizer]:
    matrices = [p for block in model.blocks for p in block.parameters() if p.ndim == 2]  # type: ignore[union-attr]
    rest = [{**g, "params": [p for p in g["params"] if not any(p is m for m in matrices)]} for g in groups_of(model)]
    return [torch.optim.Muon(matrices, lr=PEAK, weight_decay=DECAY, adjust_lr_fn=adjust), torch.optim.AdamW(rest, lr=PEAK)]


class DecayedBySchedule(torch.optim.AdamW):
    """big_vision's rule as its formula stands: weights lose schedule * weight_decay of themselves, whatever the peak."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p -= group["lr"] / PEAK * group["by_schedule"] * p
        return super().step(closure)


REFERENCES: dict[str, tuple[dict[str, Any], Make]] = {
    "adam": ({"name": "adam"}, lambda m, _: [torch.optim.Adam(groups_of(m))]),
    "adamw": ({"name": "adamw"}, lambda m, _: [torch.optim.AdamW(groups_of(m))]),
    "adamw by schedule": (
        {"name": "adamw", "weight_decay_rule": "decoupled_schedule"},
        lambda m, _: [DecayedBySchedule([{**g, "by_schedule": g["weight_decay"], "weight_decay": 0.0} for g in groups_of(m)])],
    ),
    "sgd": ({"name": "sgd"}, lambda m, _: [torch.optim.SGD(groups_of(m), momentum=0.9)]),
    "sgdw": (
        {"name": "sgd", "weight_decay_rule": "decoupled_lr"},
        lambda m, timm: [timm.optim.SGDW(groups_of(m), lr=PEAK, momentum=0.9)],
    ),
    "lion": ({"name": "lion"}, lambda m, timm: [timm.optim.Lion(groups_of(m))]),
    "lamb": ({"name": "lamb"}, lambda m, timm: [timm.optim.Lamb(groups_of(m), max_grad_norm=None)]),
    "lamb always": (
        {"name": "lamb", "always_adapt": True},
        lambda m, timm: [timm.optim.Lamb(groups_of(m), max_grad_norm=None, always_adapt=True)],
    ),
    "lamb clipped": ({"name": "lamb", "clip_norm": 1.0}, lambda m, timm: [timm.optim.Lamb(groups_of(m), max_grad_norm=1.0)]),
    "muon": ({"name": "muon"}, lambda m, _: make_muon(m, "match_rms_adamw")),
    "muon original": ({"name": "muon", "adjust_lr": "original"}, lambda m, _: make_muon(m, "original")),
}


def train(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], after: Callable[[int], None] | None = None) -> None:
    for step in range(STEPS):
        images, labels = make_images(step)
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, peak=PEAK)
            optimizer.step()
        if after is not None:
            after(step + 1)


def train_ours(section: dict[str, Any], after: Callable[[int, Any], None] | None = None) -> tuple[TinyBackbone, Any]:
    model = TinyBackbone()
    parsed = parse_section({"learning_rate": PEAK, "weight_decay": DECAY, **section})
    optimizer = parsed.build(model, fused=False)
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p].update(optimizer.first_state(p, group), step=torch.zeros(()))
    optimizer.guard_steps(clip_norm=parsed.clip_norm)
    for step in range(STEPS):
        images, labels = make_images(step)
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.set_learning_rate(learning_rate(step, peak=PEAK))
        optimizer.num_updates = step
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("name", REFERENCES)
def test_it_is_the_reference(name: str, timm: ModuleType) -> None:
    """To the rounding of fp32: 6 steps of at most 0.02 each, of operations in another order."""
    import timm.optim

    section, make = REFERENCES[name]
    ours, _ = train_ours(section)
    theirs = TinyBackbone()
    train(theirs, make(theirs, timm))
    moved = dict(TinyBackbone().named_parameters())
    for key, parameter in theirs.named_parameters():
        torch.testing.assert_close(
            ours.get_parameter(key), parameter, atol=1e-6, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )
        assert not torch.equal(parameter, moved[key]), key


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5), (1, 4)])
def test_orthogonalized_matrices_are_torchs_bit_for_bit(shape: tuple[int, int]) -> None:
    """What `torch.optim.Muon` takes off a matrix of zeros at a learning rate of 1, without momentum."""
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    matrix = nn.Parameter(torch.zeros(shape))
    matrix.grad = gradient.clone()
    torch.optim.Muon([matrix], lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0, adjust_lr_fn=None).step()
    factor = max(1.0, shape[0] / shape[1]) ** 0.5
    assert torch.equal(torch.zeros(shape).add_(orthogonalize(gradient, steps=5), alpha=-factor), matrix.detach())


@pytest.mark.parametrize("shape", [(20, 20), (12, 30)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    """Those that are not tiny end between 0.7 and 1.2 (K. Jordan's post); bf16 adds some percent."""
    generator = torch.Generator().manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=generator), steps=5).float())
    assert values[:8].min() > 0.6
    assert values.max() < 1.3


def test_torchs_decay_and_big_visions_are_one_rule_with_two_numbers() -> None:
    """AdamW with 0.1 at a peak of 1e-3 is big_vision's 1e-4 (AugReg)."""
    by_lr, by_schedule = (
        parse_section({"learning_rate": 1e-3, "weight_decay": decay, "weight_decay_rule": rule}).build(
            TinyBackbone(), fused=False
        )
        for decay, rule in ((0.1, "decoupled_lr"), (1e-4, "decoupled_schedule"))
    )
    assert [g["weight_decay"] for g in by_lr.param_groups] == pytest.approx(
        [g["weight_decay"] for g in by_schedule.param_groups]
    )
    assert by_lr.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("warmup", ["none", "timm"])
def test_the_average_is_timms(warmup: str, timm: ModuleType) -> None:
    from timm.utils import ModelEmaV3

    _, optimizer = train_ours({"name": "adamw", "average": {"decay": 0.7, "warmup": warmup}})
    theirs = TinyBackbone()
    ema = ModelEmaV3(theirs, decay=0.7, use_warmup=warmup == "timm")
    train(
        theirs, [torch.optim.AdamW(groups_of(theirs))], lambda step: ema.update(theirs, step=step if warmup == "timm" else None)
    )
    averages: list[Tensor] = [optimizer.state[p]["average"] for group in optimizer.param_groups for p in group["params"]]
    expected = [p for group in torch.optim.AdamW(groups_of(ema.module)).param_groups for p in group["params"]]
    for mine, other in zip(sorted(averages, key=numbers), sorted(expected, key=numbers), strict=True):
        torch.testing.assert_close(mine, other.detach(), atol=1e-7, rtol=1e-6)


def numbers(tensor: Tensor) -> tuple[Any, ...]:
    return (*tensor.shape, *(round(value, 3) for value in tensor.detach().flatten().tolist()[:3]))


@pytest.mark.parametrize(
    ("section", "refusal"),
    [
        ({"name": "adamw", "weight_decay_rule": "coupled"}, "use decoupled_lr or decoupled_schedule, or name=adam"),
        ({"name": "adam", "weight_decay_rule": "decoupled_lr"}, "use coupled, or name=adamw"),
        ({"name": "lamb", "weight_decay_rule": "coupled"}, "is none of lamb's; use in_update"),
        ({"name": "sgd", "weight_decay_rule": "in_update"}, "is none of sgd's"),
        ({"name": "lion", "weight_decay_rule": "coupled"}, "is none of lion's"),
        ({"scale_lr": "linear"}, "needs reference_batch_size"),
        ({"reference_batch_size": 256}, "does nothing with scale_lr=none"),
    ],
)
def test_senseless_settings_are_refused(section: dict[str, Any], refusal: str) -> None:
    with pytest.raises(ValueError, match=refusal):
        parse_section({"learning_rate": PEAK, "weight_decay": DECAY, **section})


@pytest.mark.parametrize(("rule", "expected"), [("none", 5e-4), ("linear", 5e-4 * 16), ("sqrt", 5e-4 * 4)])
def test_the_learning_rate_grows_with_the_batch(rule: str, expected: float) -> None:
    """MAE: blr x batch / 256."""
    scale = {} if rule == "none" else {"scale_lr": rule, "reference_batch_size": 256}
    section = parse_section({"learning_rate": 5e-4, "weight_decay": 0.05, **scale})
    assert section.peak_at(4096) == pytest.approx(expected)

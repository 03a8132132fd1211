"""Train a tiny model on real ranks with several optimizers and ZeRO stages, one after another in one process group.

    python -m tests.helpers.forked_ranks 2 tests.helpers.optimizer_scenarios SCENARIOS.json

SCENARIOS.json lists scenarios (`Scenario`). Each leaves a file of its whole masters, and of all that the optimizer keeps.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.distributed.quiet import quiet_libraries
from pipeline.distributed.world import World, die_with_parent, init_process_group, leave_process_group
from pipeline.models.base import Backbone
from pipeline.objectives.base import ClassifierLoss
from pipeline.optim import Optimizer
from pipeline.optim.base import OptimizerSection
from pipeline.train import zero_state
from pipeline.train.module import PretrainModule
from pipeline.train.zero import ZeroStrategy, deepspeed_config

FEATURES, WIDTH, HIDDEN, CLASSES = 5, 7, 10, 3  # no two ranks' parts begin where a matrix does
GLOBAL_BATCH = 12


@dataclass(frozen=True)
class Scenario:
    """One training.

    Args:
        optimizer: its section.
        start: a file of another scenario that this one goes on from, and the step that it was left at.
        stop: the step after which it ends.
        ruined: steps whose gradients are not finite.
    """

    out: str
    optimizer: dict[str, Any]
    zero_stage: int
    stop: int
    start: tuple[str, int] | None = None
    ruined: tuple[int, ...] = ()
    precision: Literal["fp32", "bf16"] = "fp32"


class TinyBackbone(Backbone):
    """(B, FEATURES) to (B, CLASSES), with blocks between the first layer and the last, and a head of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(WIDTH))
        self.embed = nn.Linear(FEATURES, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, WIDTH)) for _ in range(2)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.init_weights(torch.Generator().manual_seed(1))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        for parameter in self.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
        self.head.weight.zero_()

    def forward_representation(self, images: Tensor) -> Tensor:
        tokens = self.embed(images.to(self.embed.weight.dtype)) + self.position
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return self.norm(tokens)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.forward_representation(images)).float()


def make_images(step: int) -> tuple[Tensor, Tensor]:
    """Images and labels of a step: (GLOBAL_BATCH, FEATURES), (GLOBAL_BATCH,)."""
    generator = torch.Generator().manual_seed(100 + step)
    images = torch.randn((GLOBAL_BATCH, FEATURES), generator=generator)
    return images, (images.sum(dim=1) > 0).long() + (images[:, 0] > 1).long()


def learning_rate(step: int, *, peak: float) -> float:
    """Rises and falls."""
    return peak * (0.25, 0.5, 1.0, 0.75, 0.6, 0.5)[step % 6]


def parse_section(values: dict[str, Any]) -> OptimizerSection:
    section = TypeAdapter(Optimizer).validate_python(values)
    assert isinstance(section, OptimizerSection)
    return section


class _Batches:
    """This rank's share of each step's images."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario

    def __iter__(self) -> Iterator[dict[str, Any]]:
        first = self.scenario.start[1] if self.scenario.start else 0
        for step in range(first, self.scenario.stop):
            images, labels = make_images(step)
            if step in self.scenario.ruined:
                images = images * torch.inf
            mine = slice(dist.get_rank(), None, dist.get_world_size())
            yield {"images": images[mine], "labels": labels[mine], "loss_weight": 1.0}


class _Ends(Callback):
    """Sets the state at the beginning, and writes it at the end."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.scenario.start is None:
            return
        path, step = self.scenario.start
        tensors = safetensors.torch.load_file(path)
        engine = trainer.strategy.engine  # type: ignore[attr-defined]
        zero_state.restore(
            engine, masters=lambda name: tensors[f"master/{name}"], moments=tensors.__getitem__, num_updates=step
        )
        engine.global_steps = step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        engine = trainer.strategy.engine  # type: ignore[attr-defined]
        tensors = {f"master/{name}": tensor.detach().cpu().clone() for name, tensor in zero_state.gather_masters(engine)}
        tensors |= {name: tensor.detach().cpu().clone() for name, tensor in zero_state.gather_optimizer_state(engine)}
        if trainer.is_global_zero:
            safetensors.torch.save_file(tensors, self.scenario.out)


def train(scenario: Scenario) -> None:
    section = parse_section(scenario.optimizer)
    first = scenario.start[1] if scenario.start else 0
    strategy = ZeroStrategy(
        config=deepspeed_config(
            zero_stage=scenario.zero_stage,
            precision=scenario.precision,
            micro_batch_size=GLOBAL_BATCH // dist.get_world_size(),
            clip_norm=section.clip_norm,
        ),
        precision=scenario.precision,
        clip_norm=section.clip_norm,
    )
    model = TinyBackbone()
    if scenario.start is not None:
        tensors = safetensors.torch.load_file(scenario.start[0])
        model.load_state_dict({name: tensors[f"master/{name}"] for name, _ in model.named_parameters()})
    module = PretrainModule(
        model=model,
        objective=ClassifierLoss(F.cross_entropy),
        make_optimizer=lambda m: section.build(m, fused=False),
        schedule=lambda step: learning_rate(first + step, peak=section.learning_rate),
        seed=0,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=strategy,
        max_steps=scenario.stop - first,
        max_epochs=-1,
        logger=False,
        callbacks=[_Ends(scenario)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer._signal_connector.register_signal_handlers = lambda: None  # as `build.training` does
    trainer.fit(module, train_dataloaders=_Batches(scenario))


def main(listing: Path) -> None:
    die_with_parent()
    world = World.from_environment()
    quiet_libraries(is_first=world.is_first)
    init_process_group(world, timeout_s=600)
    for values in json.loads(listing.read_text()):
        train(Scenario(**values))
    leave_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Train the matrices inside blocks by Muon, everything else by AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.functional.newton_schulz import orthogonalize
from pipeline.optim.adamw import Beta
from pipeline.optim.base import STATE_ELEMENT_BYTES, DecayRule, OptimizerSection
from pipeline.optim.groups import parameter_kinds
from pipeline.optim.guard import GuardedOptimizer
from pipeline.optim.parts import Layout
from pipeline.section import TOLD

Adjust = Literal["match_rms_adamw", "original"]


class Muon(OptimizerSection):
    """Configures Muon (https://kellerjordan.github.io/posts/muon/, `torch.optim.Muon`): the momentum as an orthogonal matrix.

    The matrices of dense layers inside blocks are trained so; query, key and value are one matrix, as the model has them.
    Patch embedding, positions, norms, biases and what follows the last block are trained by AdamW. The schedule is that of
    both. Under ZeRO each matrix is put together on one rank, which computes the iteration for all.
    """

    name: Literal["muon"] = "muon"
    momentum: float = Field(default=0.95, ge=0, lt=1)
    nesterov: bool = True
    ns_steps: int = Field(default=5, ge=1, lt=100, description="Newton-Schulz iterations")
    adjust_lr: Adjust = Field(
        default="match_rms_adamw",
        description="lr of an M x N matrix: match_rms_adamw times 0.2 sqrt(max(M, N)), so that AdamW's lr and weight decay fit "
        "(arXiv 2502.16982, section 2.2); original times sqrt(max(1, M / N))",
    )
    adamw_learning_rate: float | None = Field(
        default=None, gt=0, description="peak for everything else; null: learning_rate", json_schema_extra=TOLD
    )
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="AdamW's")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's")

    state_names: ClassVar[tuple[str, ...]] = ("momentum_buffer",)
    decay_rules: ClassVar[tuple[DecayRule, ...]] = ("decoupled_lr", "decoupled_schedule")
    looks_at_layers: ClassVar[bool] = True

    @property
    def state_bytes(self) -> int:
        """Return the bytes of one element, at most: AdamW's share has two tensors."""
        return super().state_bytes + STATE_ELEMENT_BYTES

    def make_groups(self, model: nn.Module, objective: nn.Module | None = None) -> list[dict[str, Any]]:
        kinds = parameter_kinds(model, objective, decayed=self.decayed, layer_decay=self.layer_decay, apart="hidden matrices")
        if not any(kind.is_hidden_matrix for kind in kinds):
            raise ConfigError(
                "optimizer.name=muon trains the matrices of dense layers inside blocks, and this model has none: everything "
                "would be trained by AdamW; set optimizer.name=adamw"
            )
        of_others = 1.0 if self.adamw_learning_rate is None else self.adamw_learning_rate / self.learning_rate
        return [
            {
                "params": parameters,
                "weight_decay": self.weight_decay if kind.decays else 0.0,
                "lr_scale": kind.layer_scale * (1.0 if kind.is_hidden_matrix else of_others),
                "update": "muon" if kind.is_hidden_matrix else "adamw",
            }
            for kind, parameters in kinds.items()
        ]

    def build_from_groups(self, groups: Iterable[dict[str, Any]], *, fused: bool) -> GuardedOptimizer:
        groups = [{**group, **(self._muon_options() if group["update"] == "muon" else {})} for group in groups]
        return GuardedMuon(groups, lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=fused or None)

    def _muon_options(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "nesterov": self.nesterov, "ns_steps": self.ns_steps, "adjust_lr": self.adjust_lr}


class MuonUpdate(torch.optim.AdamW):
    """Updates groups whose `update` is muon; AdamW updates the others. `layout` puts matrices together."""

    layout: Layout

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        groups = self.param_groups
        for group in groups:
            for p in group["params"] if group["update"] == "muon" else ():
                if p.grad is not None:
                    self._step_tensor(group, p)
        self.param_groups = [group for group in groups if group["update"] == "adamw"]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    def _step_tensor(self, group: dict[str, Any], p: Tensor) -> None:
        """Update one tensor: a matrix, or this rank's part of several."""
        assert p.grad is not None
        momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        momentum.lerp_(p.grad, 1.0 - group["momentum"])
        wanted = p.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        parts = self.layout.parts_of(p)
        updates = self.layout.map_whole(
            wanted, parts, lambda matrix: orthogonalize(matrix, steps=group["ns_steps"]), out_dtype=torch.bfloat16
        )
        p.mul_(1.0 - group["lr"] * group["weight_decay"])
        for part, update in zip(parts, updates, strict=True):
            part.of(p).add_(update, alpha=-group["lr"] * lr_factor(part.shape, group["adjust_lr"]))


def lr_factor(shape: tuple[int, ...], adjust: Adjust) -> float:
    """Return the factor of a matrix's learning rate."""
    rows, columns = shape
    return math.sqrt(max(1.0, rows / columns)) if adjust == "original" else 0.2 * math.sqrt(max(rows, columns))


class GuardedMuon(GuardedOptimizer, MuonUpdate):
    """Guards the steps of Muon and AdamW."""

    state_names: ClassVar[tuple[str, ...]] = Muon.state_names

    def names_for(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.state_names if group["update"] == "muon" else ("exp_avg", "exp_avg_sq")

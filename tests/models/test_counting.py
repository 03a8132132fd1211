"""Counts of models that are made in unusual ways."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.models.counting import count_macs


class PassesAViewOn(nn.Module):
    """As timm's CaiT does with its class token."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 12))
        self.dense = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(self.token.expand(len(images), -1)) + self.dense(images.flatten(1))


def test_a_view_of_a_parameter_may_be_what_a_module_is_called_with() -> None:
    assert count_macs(PassesAViewOn, image_size=2) == 2 * 12 * 5

"""The computed cost of hybrids against what torch counts."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.distributed.precision import TrainingPrecision
from pipeline.models.counting import count_macs, count_saved_bytes
from pipeline.models.hybrid.model import HybridConfig
from pipeline.models.hybrid.section import Hybrid

NUM_CLASSES = 10


def config_of(**settings: Any) -> HybridConfig:
    values = {"name": "R26+Ti/32", "blocks": [1, 1, 1, 1], "depth": 2, "image_size": 96, "num_classes": NUM_CLASSES}
    return Hybrid(**{**values, **settings}).resolve()


CONFIGS = {
    "stages": config_of(),
    "stem": config_of(name="R+Ti/16", blocks=None),
    "oblong": config_of(image_size=[64, 96], pooling="gap", representation="none"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_macs_equal_what_torch_counts(name: str) -> None:
    config = CONFIGS[name]
    assert config.cost.macs == count_macs(config.build, image_size=config.image_size)


@pytest.mark.parametrize("precision", ["bf16", "bf16_autocast", "fp32"])
@pytest.mark.parametrize("name", CONFIGS)
def test_saved_bytes_are_what_autograd_keeps(name: str, precision: TrainingPrecision) -> None:
    """Within the tolerances of the encoder's cost (tests/models/vit/test_cost.py), without the loss."""
    config = CONFIGS[name]
    counted = count_saved_bytes(config.build, image_size=config.image_size, precision=precision)
    predicted = config.cost.saved_bytes(precision=precision) - 2 * 4 * NUM_CLASSES
    assert predicted == pytest.approx(counted.per_image, rel=0.01)

"""Every size, pooling and family against timm and transformers, with equal weights: outputs and one step's gradients.

`python -m tests.helpers.parity` prints the same comparisons as a table, which docs/models.md has.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.models.bit.section import BiT
from pipeline.models.hybrid.section import Hybrid
from tests.helpers.parity.cases import CLASSES, all_cases, fill, images_of, vit_config
from tests.helpers.parity.google_files import Source, bit_arrays, vit_arrays
from tests.helpers.parity.measure import difference, take_steps
from tests.helpers.timm_names import timm_model
from tests.models.bit.test_model import timm_twin

CASES = all_cases()
BF16 = 2**-8  # between two neighbours of eight bits, as a part of the value
SMALL = vit_config("Ti/16", image_size=48)
VITS: dict[str, tuple[Source, dict[str, Any]]] = {
    "vision_transformer": ("vision_transformer", {}),
    "big_vision, positions on patches alone": ("big_vision", {"position_class_token": False}),
    "big_vision, gap": ("big_vision", {"pooling": "gap"}),
    "big_vision, map": ("big_vision", {"pooling": "map"}),
}


@pytest.fixture(autouse=True)
def _needs_timm(timm: ModuleType) -> None: ...


def params() -> list[Any]:
    """Every case, the wide ones as slow tests: a CPU without bf16 instructions takes a hundred times as long in bf16."""
    wide = ("ViT-B", "ViT-L", "ViT-H", "R50+")
    return [pytest.param(*key, marks=pytest.mark.slow if key[0].startswith(wide) else ()) for key in CASES]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("model", "library"), params())
def test_outputs_and_gradients_are_equal_to_rounding(model: str, library: str) -> None:
    """Those of a ViT, and the outputs of a ResNet.

    In fp32 these are sums of at most a few thousand terms in another order: some units of 2^-24 of the largest partial sum.
    timm's ResNets add another epsilon in each of up to 48 normalisations, of 5e-7 of what is normalised. A ReLU whose input
    is that near to zero has another gradient, so gradients of ResNets are compared in fp64 (tests/models/bit, hybrid).

    In bf16 each operation rounds to eight bits. The roundings of some twenty operations in a row add up like a random walk, to
    about two steps between neighbours on either side: 4 x 2^-8 for outputs, and twice that for gradients, which come back the
    same way. In ResNets, whose ReLUs flip, no bound follows; but we may be no further from fp32 than the other side.
    """
    twins, is_resnet = CASES[model, library](), model.startswith("R")
    (exact, exact_theirs), (ours, theirs) = take_steps(twins, "fp32"), take_steps(twins, "bf16")
    assert difference(exact, exact_theirs).output < (3e-5 if is_resnet else 1e-6)
    assert difference(ours, exact).norm < 1.5 * difference(theirs, exact_theirs).norm
    if not is_resnet:
        assert difference(exact, exact_theirs).gradients < 1e-5
        assert difference(ours, theirs).output < 4 * BF16
        assert difference(ours, theirs).norm < 8 * BF16


def load(model: Any, arrays: dict[str, Any], path: Path) -> Any:
    np.savez(path, **arrays)
    with torch.no_grad():
        model.load_pretrained(str(path))
    return model.eval()


@pytest.mark.parametrize("name", VITS)
def test_timms_loader_of_googles_files_makes_the_same_vit(timm: ModuleType, tmp_path: Path, name: str) -> None:
    source, settings = VITS[name]
    config = replace(SMALL, gelu="tanh", **settings)
    ours, theirs = fill(config.build()), timm_model(timm, config)
    load(theirs, vit_arrays(ours.state_dict(), config, source=source), tmp_path / "weights.npz")
    images = images_of(config)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_timms_loader_of_googles_files_makes_the_same_hybrid(timm: ModuleType, tmp_path: Path) -> None:
    settings = {"depth": 2, "num_heads": 3}
    config = Hybrid(name="R26+S/32", representation="none", num_classes=CLASSES, image_size=64, width=48, **settings).resolve()
    ours = fill(config.build())
    theirs = timm.create_model("vit_small_r26_s32_224", img_size=64, num_classes=CLASSES, embed_dim=48, **settings)
    load(theirs, vit_arrays(ours.state_dict(), config, source="vision_transformer"), tmp_path / "weights.npz")
    images = images_of(config)
    with torch.no_grad():  # group normalisations have other epsilons
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_timms_loader_of_googles_files_makes_the_same_resnet(timm: ModuleType, tmp_path: Path) -> None:
    config = BiT(name="R50x0.5", blocks=[2, 1, 2], num_classes=CLASSES, image_size=64).resolve()
    ours, theirs = fill(config.build()), timm_twin(timm, config).float()
    load(theirs, bit_arrays(ours.state_dict()), tmp_path / "weights.npz")
    images = images_of(config)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)

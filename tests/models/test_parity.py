"""Every size, pooling and family against timm and transformers, with equal weights: outputs and one step's gradients.

`python -m tests.helpers.parity` prints the same comparisons as a table, which docs/models.md has.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from tests.helpers.parity.cases import all_cases
from tests.helpers.parity.measure import difference, take_steps

CASES = all_cases()
BF16 = 2**-8  # between two neighbours of eight bits, as a part of the value


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

"""Print the table of docs/models.md: how far our models are from those of timm and transformers, with equal weights.

python -m tests.helpers.parity
"""

from __future__ import annotations

import sys

import lightning  # noqa: F401  # before torchvision can be found, which it would take up
import torch

from pipeline.benchmark.torchvision_operators import declare_torchvision_operators
from tests.helpers.reference_libraries import REFERENCE, find_library


def main() -> None:
    sys.path.append(str(REFERENCE / "scientific"))
    declare_torchvision_operators()
    assert find_library("timm") is not None, "timm is not installed"
    from tests.helpers.parity.cases import all_cases
    from tests.helpers.parity.measure import difference, take_steps

    torch.set_num_threads(1)
    print("| model | library | fp32: outputs | gradients | bf16: outputs | gradients | ours from fp32 | theirs |")
    print(f"|{'---|' * 8}")
    for (model, library), make in all_cases().items():
        twins = make()
        (exact, exact_theirs), (ours, theirs) = take_steps(twins, "fp32"), take_steps(twins, "bf16")
        apart = [difference(exact, exact_theirs), difference(ours, theirs)]
        numbers = [number for found in apart for number in (found.output, found.norm)]
        numbers += [difference(ours, exact).norm, difference(theirs, exact_theirs).norm]
        print(f"| {model} | {library} | {' | '.join(_shown(number) for number in numbers)} |", flush=True)


def _shown(number: float) -> str:
    return "0" if number == 0 else f"{number:.1e}"


if __name__ == "__main__":
    main()

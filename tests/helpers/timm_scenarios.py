"""As `rank_scenarios`, in processes that can import timm.

python -m tests.helpers.forked_ranks 2 tests.helpers.timm_scenarios SCENARIOS.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.benchmark.torchvision_operators import declare_torchvision_operators
from tests.helpers import rank_scenarios
from tests.helpers.reference_libraries import find_library

if __name__ == "__main__":
    declare_torchvision_operators()
    assert find_library("timm") is not None, "timm is not installed"
    rank_scenarios.main(Path(sys.argv[1]))

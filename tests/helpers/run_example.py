"""Run an example of docs/examples as `python docs/examples/NAME.py` does where all that it needs is installed.

`python -m tests.helpers.run_example docs/examples/NAME.py ARGUMENTS` finds the reference libraries in the folders that
trainings do not see.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from pipeline.benchmark.torchvision_operators import declare_torchvision_operators
from tests.helpers.reference_libraries import REFERENCE

if __name__ == "__main__":
    script = sys.argv[1]
    sys.path.extend([str(REFERENCE), str(REFERENCE / "scientific")])  # after our own environment's versions
    sys.path[0] = str(Path(script).parent)
    declare_torchvision_operators()
    sys.argv = sys.argv[1:]
    runpy.run_path(script, run_name="__main__")

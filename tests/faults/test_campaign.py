"""A short campaign of faults runs; `python -m tests.faults` runs the long one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, environment
from tests.faults.kinds import FAULTS


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_kind_of_fault_is_survived() -> None:
    """Each kind occurs once: every launch resumes, every training ends with the bits of the undisturbed one."""
    command = [sys.executable, "-m", "tests.faults", "--faults", str(len(FAULTS))]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), text=True, capture_output=True, timeout=1700)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert f"{len(FAULTS)} faults" in done.stdout

"""An owner is known by its process and container, and described in words whatever its claim's file holds."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.launch.processes import Process
from pipeline.run.claims import read_owner


def test_processes_of_the_same_number_and_host_are_told_apart() -> None:
    """Host names and process ids repeat in containers, process ids over time."""
    mine = Process.myself()
    assert mine.life() == "alive"
    assert replace(mine, process_start="1").life() == "dead"
    assert replace(mine, machine="another boot").life() == "unknown"
    assert replace(mine, pid_namespace="pid:[1]").life() == "unknown"
    assert replace(mine, machine=None).life() == "unknown"


def test_another_container_on_this_machine_is_not_taken_for_dead() -> None:
    """It has a process namespace of its own: the same host name, and a number that is another process here."""
    code = (
        "from dataclasses import asdict; import json; from pipeline.launch.processes import Process; "
        "print(json.dumps(asdict(Process.myself())))"
    )
    inside = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code], capture_output=True, text=True
    )
    if inside.returncode:
        pytest.skip(f"no namespaces here: {inside.stderr}")
    other = Process.described_by(json.loads(inside.stdout))
    assert (other.host, other.machine) == (Process.myself().host, Process.myself().machine)
    assert other.life() == "unknown"


@pytest.mark.parametrize("since", ["1e400", "NaN", "-1", "1e18", "null", "true"])
def test_a_claim_with_an_impossible_time_is_described(since: str, tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text(f'{{"host": "node1", "pid": 7, "since": {since}}}')
    assert "host node1 (process 7" in str(read_owner(tmp_path / "lock.json"))

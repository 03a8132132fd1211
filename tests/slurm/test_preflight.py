"""Four nodes are examined under srun, of which three are sabotaged: a limit, the clock, the speed."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_command
from tests.slurm.cluster import Cluster

# MKL on n4 keeps to instructions that every processor has: a quarter of the rate of AVX2.
SABOTAGE = """
cd {home}
AHEAD=
case "$SLURMD_NODENAME" in
n2) export FAKETIME_DONT_FAKE_MONOTONIC=1; AHEAD="faketime -f +90s" ;;
n3) ulimit -n 512 ;;
n4) export MKL_CBWR=COMPATIBLE ;;
esac
exec $AHEAD {python} -m pipeline preflight --folder {runs} --json {out}
"""


@pytest.mark.slow
def test_each_sabotaged_node_is_named(cluster: Cluster, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    out = tmp_path / "found.json"
    script = SABOTAGE.format(
        home=shlex.quote(str(REPOSITORY)), python=sys.executable, runs=shlex.quote(str(tmp_path / "runs")), out=out
    )
    said = cluster.run("srun", "--nodes=4", "--ntasks-per-node=1", "bash", "-c", script, timeout_s=280, OMP_NUM_THREADS="1")
    values = json.loads(out.read_text())
    record_property("table", said)
    assert [machine["name"] for machine in values["machines"]] == ["n1", "n2", "n3", "n4"]
    named = [finding for finding in values["findings"] if finding["machines"] == ["n3"]]
    texts = " | ".join(finding["text"] for finding in named)
    assert "open files: 512; workers and shards need more than 4096: ulimit -n 65536" in texts
    assert "open files: 512, 9" in texts  # per cent below the others'
    assert "n3: open files" in said
    by_name = [{measure["name"]: measure["value"] for measure in machine["measures"]} for machine in values["machines"]]
    assert "resumed differs by" in by_name[0]
    assert "PROBLEM" not in said
    assert all(found["link to the next machine"] > 0 for found in by_name)
    clocks = [found["clock ahead of rank 0's by"] for found in by_name]
    assert clocks == pytest.approx([0, 90, 0, 0], abs=1)
    assert "n2: clock ahead of rank 0's by: 90 s; its clock is wrong" in said
    assert "n4: fp32 matrix product: " in said
    # What was measured between the nodes is what `plan` takes.
    plan = ["plan", "configs/l16_in21k.yaml", "--nodes", "4", "--samples", "14197122", "--measured", str(out)]
    assert f"{by_name[0]['all-reduce']:.4g} GB/s (measured on 4 machines)" in run_command(*plan).stdout

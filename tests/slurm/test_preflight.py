"""Four nodes are examined under srun, of which one is sabotaged."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.slurm.cluster import Cluster

SABOTAGE = """
cd {home}
if [ "$SLURMD_NODENAME" = n3 ]; then
    ulimit -n 512
fi
exec {python} -m pipeline preflight --folder {runs} --json {out}
"""


@pytest.mark.slow
def test_the_sabotaged_node_is_named(cluster: Cluster, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
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
    assert by_name[0]["resumed differs by"] == 0
    assert all(found["link to the next machine"] > 0 for found in by_name)
    assert all(abs(found["clock ahead of rank 0's by"]) < 1 for found in by_name)

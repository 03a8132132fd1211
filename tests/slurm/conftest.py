"""Give a cluster to all tests of a session, and print what its daemons and jobs said when one fails."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster, running_cluster
from tests.slurm.jobs import Desk
from tests.slurm.packages import SlurmUnavailableError
from tests.slurm.site import write_site

LOG_END = 6000  # characters


@pytest.fixture(scope="session")
def running(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Start four nodes with eight declared GPUs each."""
    try:
        with running_cluster(num_nodes=4) as cluster:
            yield cluster
    except SlurmUnavailableError as error:
        pytest.skip(f"no Slurm here: {error}")


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """Give the cluster, with all nodes up and no job on it, and leave it so."""
    yield running
    running.clear()


@pytest.fixture
def desk(cluster: Cluster, tmp_path: Path, corpus: Path) -> Desk:
    """Give a site of the test's own, without an evaluator."""
    return Desk(cluster, write_site(tmp_path, DATA=shlex.quote(str(corpus)), RANK_WAIT_S="5"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    cluster, tmp_path = (getattr(item, "funcargs", {}).get(name) for name in ("cluster", "tmp_path"))
    if report.failed and isinstance(cluster, Cluster):
        report.sections.append(("Slurm's daemons", cluster.log_ends()))
        for log in sorted(Path(tmp_path).glob("*.log")) if tmp_path else []:
            report.sections.append((f"job log {log.name}", log.read_text(errors="replace")[-LOG_END:]))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what the tests have measured."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    measured = [
        report for report in reports if report.when == "call" and report.user_properties and "tests/slurm" in report.nodeid
    ]
    if measured:
        terminalreporter.section("measured on the Slurm cluster")
    for report in measured:
        terminalreporter.line(report.nodeid.partition("::")[2])
        for name, value in report.user_properties:
            terminalreporter.line(f"    {name}: {value}")

"""The tools write the same bytes on a cluster's workers as in processes of one machine, also when workers are killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.cluster import open_cluster
from data_tools.failures import WorkerKilledError
from data_tools.parallel import LocalWorkers, Workers
from pipeline.data.shards.index import load_index
from pipeline.errors import DataError
from tests.conftest import REPOSITORY, encode, environment, make_image

CLASSES = 4
IMAGES = 60


@dataclass
class Cluster:
    """Holds a real scheduler and its workers, as processes."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.folder / "scheduler.json")

    def start(self, *command: str, log: str) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *command, "--scheduler-file", self.address],
                cwd=REPOSITORY, env=environment(), stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def start_worker(self) -> subprocess.Popen[bytes]:
        options = ("--nthreads", "1", "--no-nanny", "--memory-limit", "0", "--no-dashboard")
        return self.start("worker", *options, "--local-directory", str(self.folder), log="workers.log")

    def end(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def serve_cluster(folder: Path, *, num_workers: int) -> Iterator[Cluster]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = Cluster(folder)
    try:
        cluster.start("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", log="scheduler.log")
        for _ in range(num_workers):
            cluster.start_worker()
        end = time.monotonic() + 100
        while not Path(cluster.address).is_file():
            assert time.monotonic() < end, (folder / "scheduler.log").read_text()
            time.sleep(0.1)
        yield cluster
    finally:
        cluster.end()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with serve_cluster(tmp_path_factory.mktemp("cluster"), num_workers=2) as serving:
        yield serving


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write class folders of JPEGs, one of them damaged."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        folder = root / f"class{number % CLASSES}"
        folder.mkdir(exist_ok=True)
        data = encode(make_image(number, num_classes=CLASSES, size=48), format="JPEG")
        (folder / f"{number:03d}.jpg").write_bytes(data if number != 7 else data[:200])
    return root


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file that a tool has left, but for locks and findings of single shards."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def without_times(report: bytes) -> dict[str, object]:
    """Return a report without what depends on the clock and the folder's name."""
    values = json.loads(report.replace(b"/local/", b"/cluster/"))
    return {name: value for name, value in values.items() if "second" not in name and "per_s" not in name and name != "folder"}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_tool_writes_the_same_on_a_cluster(cluster: Cluster, photos: Path, tmp_path: Path) -> None:
    options = ["--samples-per-shard", "7", "--block-samples", "4"]
    made: dict[str, dict[str, bytes]] = {}
    for name, where in (("local", ["--workers", "2"]), ("cluster", ["--cluster", cluster.address])):
        folder = tmp_path / name / "shards"
        assert main(["make", str(photos), str(folder), *options, *where]) == 0
        assert main(["verify", str(folder), *where]) in (0, 1)
        assert main(["index", str(folder), "--skip", str(folder / "skip.tsv"), "--block-samples", "4", *where]) == 0
        assert main(["dedup", str(folder), "--within", "--out", str(tmp_path / name / "copies"), *where]) == 0
        joined = ["--method", "bands", "--distance", "8", "--out", str(tmp_path / name / "joined")]
        assert main(["dedup", str(folder), "--within", *joined, *where]) == 0
        assert main(["stats", str(folder), "--out", str(tmp_path / name / "figures"), *where]) == 0
        made[name] = contents(tmp_path / name)
    local, on_cluster = made["local"], made["cluster"]
    assert local.keys() == on_cluster.keys()
    assert len([name for name in local if name.endswith(".tar")]) == 9
    for name in local:
        if name.endswith(".json"):
            assert without_times(local[name]) == without_times(on_cluster[name]), name
        elif name.endswith("index.safetensors"):  # the library writes its header in an order of its own each time
            ours, theirs = (load_index(str(tmp_path / place / "shards")) for place in ("local", "cluster"))
            assert ours.fingerprint == theirs.fingerprint
        elif not name.endswith(".html"):  # it has the folder's name
            assert local[name] == on_cluster[name], name


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return 2 * seconds


def die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail(number: int) -> int:
    if number == 2:
        raise DataError("the second is damaged")
    return number


def write_here(name: str) -> str:
    Path(name).write_text(name)
    return str(Path.cwd())


@contextmanager
def on(cluster: Cluster | None) -> Iterator[Workers]:
    if cluster is None:
        yield LocalWorkers(2)
    else:
        with open_cluster(cluster.address, folders=[], wait_s=60) as workers:
            yield workers


@pytest.mark.slow
@pytest.mark.parametrize("place", ["here", "cluster"])
def test_both_kinds_of_workers_keep_the_same_promises(
    place: str, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with on(cluster if place == "cluster" else None) as workers:
        assert workers.count == 2
        done = dict(workers.map(nap, [0.01 * number for number in range(8)], description="nap", unit="nap"))
        assert done == {0.01 * number: 0.02 * number for number in range(8)}
        assert list(workers.map(nap, [], description="nap", unit="nap")) == []
        with pytest.raises(DataError, match="the second is damaged"):
            list(workers.map(fail, range(5), description="fail", unit="number"))
        # Relative paths are below the command's folder; the next map works after a failure.
        folders = {folder for _, folder in workers.map(write_here, ["a", "b", "c"], description="write", unit="file")}
        assert folders == {str(tmp_path)}
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.long
def test_a_lost_worker_costs_nothing_and_a_deadly_task_is_named(tmp_path: Path) -> None:
    with serve_cluster(tmp_path, num_workers=2) as cluster, on(cluster) as workers:
        found = []
        for number, (task, result) in enumerate(
            workers.map(nap, [0.2 + n / 1000 for n in range(20)], description="nap", unit="nap")
        ):
            assert result == 2 * task
            found.append(task)
            if number == 5:
                os.killpg(cluster.processes[1].pid, signal.SIGKILL)
                cluster.start_worker()
        assert sorted(found) == [0.2 + n / 1000 for n in range(20)]
        for _ in range(4):  # Dask gives a task to another worker three times
            cluster.start_worker()
        with pytest.raises(WorkerKilledError, match="every worker that was at work on 3 was killed") as caught:
            list(workers.map(die, [3], description="die", unit="number"))
        assert caught.value.tasks == [3]


def test_a_cluster_that_is_not_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_tools.cluster.ANSWER_S", 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    assert main(["index", str(tmp_path), "--cluster", address]) == 2
    assert f"no scheduler answers at {address}" in capsys.readouterr().err


@pytest.mark.slow
def test_what_workers_lack_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no such file after 1 s \(--wait\)"), on_wait(Cluster(tmp_path), 1):
        pass
    with serve_cluster(tmp_path, num_workers=0) as cluster:
        with (
            pytest.raises(DataError, match=r"no worker has come to tcp://127.0.0.1:\d+ within 1 s \(--wait\)"),
            on_wait(cluster, 1),
        ):
            pass
        cluster.start_worker()
        monkeypatch.setattr("pipeline.__version__", "0.0.9")
        with pytest.raises(DataError, match=r"runs version .* of this software, the command 0\.0\.9"), on_wait(cluster, 60):
            pass


def on_wait(cluster: Cluster, wait_s: float) -> AbstractContextManager[Workers]:
    return open_cluster(cluster.address, folders=[], wait_s=wait_s)

"""The demo ends what it started, however it is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.launch.children import has_ended, kill_tree, start_child
from pipeline.run.records import read_json_lines
from tests.conftest import REPOSITORY, environment

# This process starts another one, says so, and waits; neither heeds Ctrl-C.
FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, file=open(sys.argv[1], "w"), flush=True)
time.sleep(600)
"""


def wait_for(path: Path) -> int:
    end = time.monotonic() + 60
    while not path.exists() or not path.read_text().endswith("\n"):
        assert time.monotonic() < end
        time.sleep(0.05)
    return int(path.read_text())


def is_gone(pid: int) -> bool:
    try:
        return has_ended(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return True


def test_a_tree_is_killed_whole(tmp_path: Path) -> None:
    process = start_child([sys.executable, "-c", FAMILY, str(tmp_path / "pid")], environment=environment())
    grandchild = wait_for(tmp_path / "pid")
    kill_tree(process)
    assert process.returncode == -signal.SIGKILL
    assert is_gone(grandchild)
    kill_tree(process)  # does nothing to a process that has ended


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pipeline.launch.children import start_child\n"
        "child = start_child([sys.executable, '-c', 'import time; time.sleep(600)'], environment=os.environ)\n"
        "print(child.pid, file=open(sys.argv[1], 'w'), flush=True); child.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "pid")], env=environment(), cwd=REPOSITORY)
    child = wait_for(tmp_path / "pid")
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while not is_gone(child):
        assert time.monotonic() < end
        time.sleep(0.05)


def started_in(folder: Path) -> list[psutil.Process]:
    """List living processes that a demo under test, or its descendants, have started: they inherit its environment."""

    def found() -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("DEMO_UNDER_TEST") == str(folder):
                    yield process
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue

    return [process for process in found() if not is_gone(process.pid)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_outlives_the_demo(tmp_path: Path, number: signal.Signals) -> None:
    """The demo ends while two ranks train, an evaluator watches and W&B writes: by Ctrl-C, or by the kernel."""
    log = (tmp_path / "log").open("w")
    demo = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "demo", "--out", str(tmp_path / "demo")],
        cwd=REPOSITORY,
        start_new_session=True,
        env=environment() | {"DEMO_UNDER_TEST": str(tmp_path)},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    metrics = tmp_path / "demo" / "runs" / "demo" / "metrics.jsonl"
    try:
        end = time.monotonic() + 200
        while not read_json_lines(metrics):
            assert demo.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        assert len(started_in(tmp_path)) >= 5  # demo, launcher, two ranks, evaluator
        if number == signal.SIGINT:
            os.killpg(demo.pid, number)  # as a terminal sends it
        else:
            demo.send_signal(number)
        demo.wait(timeout=60)
        end = time.monotonic() + 60
        while left := started_in(tmp_path):
            assert time.monotonic() < end, [process.cmdline() for process in left]
            time.sleep(0.2)
    finally:
        for process in started_in(tmp_path):
            process.kill()
        demo.wait()
        log.close()

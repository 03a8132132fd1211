"""The launcher of one machine's ranks gives them what they need, ends them together, and loses no signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import ExitCode
from pipeline.launch import local
from pipeline.launch.environment import read_ranks
from pipeline.launch.local import launch_local
from pipeline.launch.signals import StopRequest
from tests.conftest import REPOSITORY

LAUNCH = """
import sys
from pipeline.launch.signals import StopRequest
stop = StopRequest()
stop.install()
from pipeline.launch.local import launch_local
try:
    sys.exit(launch_local([sys.executable, "-c", sys.argv[1]], num_ranks=2, stop=stop))
except KeyboardInterrupt:
    sys.exit(130)
"""
LISTENS = """
import os, sys, time
{sleep}
from pipeline.launch.signals import StopRequest
stop = StopRequest(second_interrupt="ignore")
stop.install()
print("rank", os.environ["RANK"], "listens", flush=True)
while not stop.is_set: time.sleep(0.01)
time.sleep(1.5)  # saving
print("/".join(stop.received), flush=True)
sys.exit(75)
"""


def run(program: str, *, num_ranks: int = 2) -> int:
    return launch_local([sys.executable, "-c", program], num_ranks=num_ranks, stop=StopRequest())


def test_ranks_are_numbered_and_meet_at_one_port(capfd: pytest.CaptureFixture[str]) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", local.LOCAL_LAUNCHER)
    assert run(f"import os; print(*(os.environ[name] for name in {names}))") == 0
    first, second = sorted(line.split() for line in capfd.readouterr().out.splitlines())
    assert (first[:5], second[:5]) == (["0", "2", "0", "2", "127.0.0.1"], ["1", "2", "1", "2", "127.0.0.1"])
    assert first[5:] == second[5:]
    for values in (first, second):
        environment = {**dict(zip(names, values, strict=True)), local.LOCAL_LAUNCHER: str(os.getppid())}
        assert read_ranks(environment).launcher == "local"


def test_the_port_is_free_for_rank_0_and_for_nobody_else() -> None:
    listen = (
        "import os, socket; listener = socket.socket(); listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); "
        "os.environ['RANK'] == '1' or (listener.bind(('127.0.0.1', int(os.environ['MASTER_PORT']))), listener.listen())"
    )
    assert run(listen) == 0


@pytest.mark.parametrize(("ends", "code"), [("sys.exit(2)", 2), ("os.kill(os.getpid(), 9)", 137), ("sys.exit(75)", 75)])
def test_one_rank_that_ends_ends_the_others(ends: str, code: int, capfd: pytest.CaptureFixture[str]) -> None:
    """The first code counts: the others are then asked to stop, and end as intended."""
    start = time.monotonic()
    assert run(f"import os, sys, time; os.environ['RANK'] == '0' and time.sleep(100)\n{ends}") == code
    assert time.monotonic() - start < 60
    killed = "[run] rank 1 was ended by SIGKILL: most likely by the kernel, for lack of memory"
    assert (killed in capfd.readouterr().err) == (code == 137)


def test_a_rank_that_does_not_follow_is_killed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(local, "PATIENCE_S", {ExitCode.ERROR: 0.5})
    deaf = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "os.environ['RANK'] == '0' and time.sleep(100); time.sleep(0.5); sys.exit(2)"
    )
    assert run(deaf) == 2
    assert "[run] killing rank 0, which did not follow" in capfd.readouterr().err


def launch(program: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-c", LAUNCH, program], cwd=REPOSITORY, stdout=file, stderr=file, start_new_session=True
        )


def blocks(pid: int, number: signal.Signals) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigBlk"))
    return bool(mask >> (number - 1) & 1)


def test_a_signal_before_the_ranks_listen_reaches_them(tmp_path: Path) -> None:
    """Interpreters start and libraries are loaded: the signal waits until a process listens."""
    process = launch(LISTENS.format(sleep="time.sleep(1)"), tmp_path / "log")
    try:
        while not blocks(process.pid, signal.SIGTERM):
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 75
    finally:
        process.kill()
    # Each rank was told. The slower one may be told again, when the launcher sees that the other has ended.
    assert sum(line.startswith("SIGTERM") for line in (tmp_path / "log").read_text().splitlines()) == 2


def test_a_terminals_interrupt_counts_once_though_it_arrives_twice_and_a_second_one_ends_all(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = launch(LISTENS.format(sleep="").replace("time.sleep(1.5)", "time.sleep(100)"), log)
    try:
        while log.read_text().count("listens") < 2:
            time.sleep(0.01)
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(1.2)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)

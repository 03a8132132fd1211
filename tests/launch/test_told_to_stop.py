"""Whole commands are asked to stop before they train, lose their terminal, or have no reader of their output."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_json_lines
from tests.conftest import REPOSITORY, environment
from tests.helpers.trainings import (
    STEPS,
    WriteConfig,
    assert_same_run,
    folder_of,
    ranks_of,
    reached,
    training,
    tree_of,
    wait_until,
)


def blocks_signals(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigBlk"))
    return bool(mask >> (signal.SIGTERM - 1) & 1)


def maps(pid: int, name: str) -> bool:
    """Return whether a process has loaded a library."""
    try:
        return name in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


MOMENTS = {
    "the first line": lambda launcher: blocks_signals(launcher.pid),
    "the launcher loads torch": lambda launcher: maps(launcher.pid, "libtorch"),
    "the ranks are started": lambda launcher: len(ranks_of(launcher)) == 2,
    "the ranks load torch": lambda launcher: sum(maps(pid, "libtorch") for pid in ranks_of(launcher)) == 2,
}


@pytest.mark.parametrize(
    "moment", [next(iter(MOMENTS)), *(pytest.param(name, marks=pytest.mark.slow) for name in list(MOMENTS)[1:])]
)
def test_told_to_stop_before_training_it_stops(write_config: WriteConfig, moment: str) -> None:
    config = write_config()
    with training(config) as process:
        wait_until(lambda: MOMENTS[moment](process), process, poll_s=0.001)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 75
    log = config.with_suffix(".log").read_text()
    assert "Traceback" not in log
    assert "stopped by SIGTERM before training began; the same command starts it" in log or moment.startswith("the ranks")
    assert not folder_of(config).complete.exists()
    assert tree_gone(process.pid)


def tree_gone(pid: int) -> bool:
    """Wait until nothing is left of a session."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if path.read_text().rpartition(")")[2].split()[3] == str(pid):
                return False
        except OSError:
            continue
    return True


@pytest.mark.slow
def test_a_terminal_that_closes_does_not_end_a_training(reference: RunFolder, write_config: WriteConfig) -> None:
    """An ssh session breaks: SIGHUP comes, and nothing can be printed any more."""
    config = write_config()
    folder = folder_of(config)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(REPOSITORY)
        os.execve(sys.executable, [sys.executable, "-m", "pipeline", "train", str(config)], environment())
    try:
        end = time.monotonic() + 200
        while not reached(folder, 3):
            assert time.monotonic() < end
            os.set_blocking(terminal, False)
            try:
                os.read(terminal, 65536)
            except BlockingIOError:
                time.sleep(0.01)
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    except BaseException:
        for member in tree_of(pid):
            os.kill(member, signal.SIGKILL)
        raise
    assert os.waitstatus_to_exitcode(status) == 0
    assert_same_run(folder, reference)
    text = (folder.output_log).read_text()
    assert "nobody reads this program's output any more; it continues here" in text
    assert f"step {STEPS} of {STEPS} is saved" in text


def test_an_evaluator_that_nobody_reads_goes_on_and_told_to_stop_it_leaves_no_claim(
    reference: RunFolder, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / "weights").mkdir(parents=True)
    (run / "config.yaml").write_text(reference.config.read_text())
    weights = reference.weights_of(STEPS)
    (run / "weights" / weights.name).write_bytes(weights.read_bytes())
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "evaluate", str(run), "--watch"],
        cwd=REPOSITORY,
        env=environment(),
        stdout=write,
        stderr=write,
        start_new_session=True,
    )
    os.close(write)
    os.close(read)
    try:
        end = time.monotonic() + 200
        while f"[eval] step {STEPS}: " not in (
            (RunFolder(run).output_log).read_text() if (RunFolder(run).output_log).exists() else ""
        ):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 75
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert "[evaluate] stopped by SIGTERM; the same command resumes from here" in (RunFolder(run).output_log).read_text()
    assert list((run / "claims").iterdir()) == []
    rows = read_json_lines(run / "evaluations.jsonl")
    assert len({json.dumps([row[key] for key in ("dataset", "protocol", "measure", "seed")]) for row in rows}) == len(rows) == 5
